"""Data sets as tensors: pixels stay uint8 on the device and become floats batch by batch.

MNIST and Fashion-MNIST are on board and checked against their digests on every load; `digits` comes
with scikit-learn. Other sets come through torchvision after `tlcourse data fetch NAME`, and
`folder:PATH` reads your own images.
"""

import errno
import gzip
import hashlib
import os
import shutil
import signal
import socket
import tempfile
import threading
import unicodedata
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from filelock import FileLock
from PIL import Image, ImageOps
from torch import Generator, Tensor

from tlcourse.methods._checks import expect, expect_counts

FASHION: tuple[str, ...] = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal")
FASHION += ("shirt", "sneaker", "bag", "ankle boot")
ON_BOARD = {"mnist": tuple("0123456789"), "fashion_mnist": FASHION, "digits": tuple("0123456789")}
# name: class in torchvision.datasets, megabytes on disk (archive and files), whether the split is
# `train=True` or `split="train"`, side to which pictures of different sizes are brought
FETCHABLE = {
    "cifar10": ("CIFAR10", 350, "flag", None),
    "cifar100": ("CIFAR100", 350, "flag", None),
    "kmnist": ("KMNIST", 80, "flag", None),
    "svhn": ("SVHN", 250, "name", None),
    "flowers102": ("Flowers102", 700, "name", 96),
}
SILENCE = 20  # seconds after which a server that says nothing is given up

# photos that come with scikit-image: file, and the ImageNet class of what is on it
PHOTOS = {
    "cat": ("chelsea.png", "Egyptian cat"),
    "coffee": ("coffee.png", "espresso"),
    "motorcycle": ("motorcycle_left.png", "moped"),
    "camera": ("camera.png", "tripod"),
}
# what is taken for a picture in a folder (one that Pillow cannot read is named, not left out), and
# what systems put beside pictures
PICTURES = {".jpg", ".jpeg", ".jfif", ".png", ".gif", ".bmp", ".tif", ".tiff", ".webp", ".avif"}
PICTURES |= {".heic", ".ppm", ".pgm", ".pbm", ".jp2"}
NO_PICTURES = {"__MACOSX", "__pycache__", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}


class DataError(Exception):
    """A data set is missing, damaged or cannot be fetched; the message says what to do."""


@dataclass(frozen=True, eq=False)
class Images:
    """A labelled image set in memory.

    pixels: uint8 (N, C, H, W); labels: int64 (N,) that index classes. Raises ValueError when they
    do not fit together.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        pixels, labels = tuple(self.pixels.shape), tuple(self.labels.shape)
        expect(len(pixels) == 4, f"pixels must have shape (N, C, H, W), got {pixels}")
        expect(self.pixels.dtype == torch.uint8, f"pixels must be uint8, got {self.pixels.dtype}")
        expect(labels == pixels[:1], f"labels must have shape ({pixels[0]},), got {labels}")
        expect(self.labels.dtype == torch.int64, f"labels must be int64, got {self.labels.dtype}")
        if self.labels.device.type == "cpu" and len(self.labels):
            low, high, K = int(self.labels.min()), int(self.labels.max()), len(self.classes)
            expect(low >= 0 and high < K, f"labels must be in [0, {K}), got {low} to {high}")

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Images":
        """The same images on a device."""
        return replace(self, pixels=self.pixels.to(device), labels=self.labels.to(device))

    def take(self, index: Tensor | Sequence[int] | slice) -> "Images":
        """The images at these positions, in this order.

        index: whole numbers (n,), bool (N,), a list or a slice.
        """
        if not isinstance(index, slice):
            where = torch.as_tensor(index, device=self.labels.device)
            fractions = where.is_floating_point() and where.numel() > 0  # torch refuses them
            index = where if fractions or where.dtype == torch.bool else where.long()
        return replace(self, pixels=self.pixels[index], labels=self.labels[index])

    def only(self, classes: Sequence[int | str], relabel: bool = False) -> "Images":
        """The images of these classes (numbers or names).

        relabel numbers them 0, 1, … in the order given. Raises ValueError for an unknown class or
        one named twice.
        """
        wanted = [self._class_number(c) for c in classes]
        once = len(set(wanted)) == len(wanted) > 0
        expect(once, f"classes must be at least one, each named once, got {list(classes)}")
        kept = self.take(torch.isin(self.labels, torch.tensor(wanted, device=self.labels.device)))
        if not relabel:
            return kept
        new = torch.full((len(self.classes),), -1, device=self.labels.device)
        new[wanted] = torch.arange(len(wanted), device=self.labels.device)
        names = tuple(self.classes[c] for c in wanted)
        return replace(kept, labels=new[kept.labels], classes=names)

    def per_class(self, n: int, seed: int) -> "Images":
        """n images of every class that occurs, shuffled; the same on every machine.

        Raises ValueError if a class has fewer than n.
        """
        expect_counts("n must be a whole number", n)
        order = _permutation(len(self), seed)
        labels = self.labels.cpu().numpy()[order]
        chosen = np.zeros(len(self), dtype=bool)
        for c in np.unique(labels):
            where = np.flatnonzero(labels == c)
            expect(
                len(where) >= n, f"n must be <= {len(where)} for class {self.classes[c]!r}, got {n}"
            )
            chosen[where[:n]] = True
        return self.take(torch.from_numpy(order[chosen]))

    def split(self, *counts: int, seed: int) -> "tuple[Images, ...]":
        """Disjoint random subsets of these sizes; the same on every machine.

        For example `train, validation = images.split(50_000, 10_000, seed=0)`. Raises ValueError if
        there is no count, one is below 1, or there are not enough images.
        """
        expect_counts("each count must be a whole number", *counts)
        total = sum(map(int, counts))
        expect(total <= len(self), f"counts must add up to <= {len(self)}, got {counts}")
        parts = np.split(_permutation(len(self), seed), np.cumsum(counts))
        return tuple(self.take(torch.from_numpy(part)) for part in parts[: len(counts)])

    def _class_number(self, c: int | str) -> int:
        number = self.classes.index(c) if c in self.classes else c
        whole = isinstance(number, Integral) and not isinstance(number, bool)
        known = whole and number in range(len(self.classes))
        expect(known, f"class {c!r} is not one of {self.name}: {', '.join(self.classes)}")
        return int(number)


def as_input(pixels: Tensor) -> Tensor:
    """What a network takes: uint8 becomes float32 in [0, 1]; floats stay as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


def load(name: str, split: str = "train", *, size: int | None = None) -> Images:
    """A data set by name: "mnist", "fashion_mnist", "digits", a fetched one, or "folder:PATH".

    split: "train" or "test". size: side in pixels to which photos are resized and cropped (default
    96 where they differ in size). Pictures in PATH/train/CLASS/ come upright, as 8-bit RGB, the
    first frame of several, on white where transparent; hidden files are left out. Raises ValueError
    for an unknown name or split, DataError when files are missing or damaged; it says what to do.
    """
    expect(isinstance(name, str), f"name must be a string, got {name!r}")
    expect_counts("size must be a whole number", 1 if size is None else size)
    expect(split in ("train", "test"), f'split must be "train" or "test", got {split!r}')
    if name == "digits":
        return _digits(split)
    if name in ON_BOARD:
        return _idx(name, split)
    if name in FETCHABLE:
        return _torchvision(name, split, data_dir() / name, size)
    if name.startswith("folder:"):
        return _folder(name, split, size)
    known = [*ON_BOARD, *FETCHABLE, "folder:PATH"]
    raise ValueError(f"there is no data set {name!r}; there are {', '.join(known)}")


def photo(name: str) -> Tensor:
    """A photo by name, one of `PHOTOS`: uint8 (3, H, W), grey ones with three equal channels.

    Raises ValueError for another name.
    """
    import skimage.data
    from skimage.io import imread

    expect(name in PHOTOS, f"there is no photo {name!r}; there are {', '.join(PHOTOS)}")
    pixels = torch.from_numpy(imread(Path(skimage.data.__file__).parent / PHOTOS[name][0]))
    if pixels.ndim == 2:
        return pixels.expand(3, *pixels.shape).clone()
    return pixels[..., :3].permute(2, 0, 1).contiguous()


def over_photos(images: Images, seed: int) -> Images:
    """|photo − image| in three channels, each at a place of its own in one of `PHOTOS`.

    Where there is ink, a photo's negative shows. images: grey or of three channels. MNIST-M's
    recipe (Ganin et al. 2016, section 5.2), of the photos that come with scikit-image.
    """
    draw, (n, _, *side) = np.random.RandomState(seed), images.pixels.shape
    pixels = images.pixels.new_empty(n, 3, *side)
    which = torch.from_numpy(draw.randint(len(PHOTOS), size=n))
    places = torch.from_numpy(draw.random_sample((2, n)))
    for i, name in enumerate(PHOTOS):
        mine, windows = which == i, photo(name).unfold(1, side[0], 1).unfold(2, side[1], 1)
        y, x = ((share[mine] * most).long() for share, most in zip(places, windows.shape[1:]))
        behind, ink = windows[:, y, x].transpose(0, 1).int(), images.pixels[mine].int()
        pixels[mine] = (behind - ink).abs().to(torch.uint8)
    return replace(images, pixels=pixels)


def noisy(images: Images, seed: int, sigma: float = 100.0) -> Images:
    """With noise of σ grey levels on every pixel, clipped."""
    noise = np.random.RandomState(seed).normal(0, sigma, images.pixels.shape).round()
    pixels = (images.pixels + torch.from_numpy(noise)).clamp(0, 255).to(torch.uint8)
    return replace(images, pixels=pixels)


def data_dir() -> Path:
    """The course's data folder.

    That of TLCOURSE_HOME, else beside the package, else in a parent of the working directory.
    Raises DataError where none of them holds one.
    """
    home = os.environ.get("TLCOURSE_HOME")
    places = [Path(home)] if home else [Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "data" / "SHA256SUMS").is_file():
            return place / "data"
    raise DataError(
        "The course's data folder was not found: no data/SHA256SUMS in "
        f"{', '.join(map(str, places))}. Clone the course's repository and run from inside it."
    )


def is_there(name: str) -> bool:
    """Whether a data set can be loaded without a network: on board, or fetched before."""
    return name not in FETCHABLE or (data_dir() / name).exists()


def fetch(name: str) -> Path:
    """Download a set through torchvision into the data folder.

    Whatever goes wrong, nothing that was there is touched, and what was downloaded so far is
    removed; also what an earlier, killed fetch left. Raises ValueError for a name that cannot be
    fetched, and DataError without network or room on the disk.
    """
    expect(name in FETCHABLE, f"{name!r} cannot be fetched; these can: {', '.join(FETCHABLE)}")
    home, megabytes = data_dir(), FETCHABLE[name][1]
    _sweep(home)
    if (home / name).exists():
        load(name, "test")
        return home / name
    full = f"The disk is full: {name} needs about {megabytes} MB in {home}. Nothing was changed."
    if shutil.disk_usage(home).free < megabytes * 1e6:
        raise DataError(full)
    part = tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=home)
    with _interruptible(), part as folder, FileLock(Path(folder) / "lock"):
        try:
            for split in ("train", "test"):
                _dataset(name, split, Path(folder) / name, download=True)
        except Exception as error:  # whatever a download dies of
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DataError(full) from error
            raise DataError(
                f"{name} could not be downloaded ({_why(error)}). Is there a network? On board, "
                f"without one, are: {', '.join(ON_BOARD)}."
            ) from error
        (Path(folder) / name).rename(home / name)
    return home / name


def _sweep(home: Path) -> None:
    """Remove what fetches left that were killed; one that still runs holds its lock."""
    for folder in home.glob(".fetch-*"):
        with suppress(OSError):
            FileLock(folder / "lock", timeout=0).acquire().lock.release()
            shutil.rmtree(folder)


@contextmanager
def _interruptible() -> Iterator[None]:
    """A silent server raises TimeoutError; SIGTERM and SIGHUP raise SystemExit."""

    def stop(number: int, frame: object) -> None:
        signal.signal(number, signal.SIG_IGN)  # let nothing disturb the tidying up
        raise SystemExit(128 + number)

    with ExitStack() as undo:
        undo.callback(socket.setdefaulttimeout, socket.getdefaulttimeout())
        socket.setdefaulttimeout(SILENCE)
        for number in {signal.SIGTERM, getattr(signal, "SIGHUP", signal.SIGTERM)}:
            main = threading.current_thread() is threading.main_thread()  # no other may do this
            if main and signal.getsignal(number) == signal.SIG_DFL:
                undo.callback(signal.signal, number, signal.signal(number, stop))
        yield


def _why(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


Augmentation = Callable[[Tensor, Generator], Tensor]


def random_shift(pixels: int = 2) -> Augmentation:
    """Move each image (N, C, H, W) by up to `pixels` along both axes; the border is black."""
    expect_counts("pixels must be a whole number", pixels)
    return lambda x, generator: _crop(x, int(pixels), "constant", generator)


def random_crop(padding: int = 4) -> Augmentation:
    """Move each image (N, C, H, W) by up to `padding`; the border is filled by reflection."""
    expect_counts("padding must be a whole number", padding)
    return lambda x, generator: _crop(x, int(padding), "reflect", generator)


def random_flip() -> Augmentation:
    """Mirror each image left to right with probability one half."""

    def flip(x: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(x), 1, 1, 1, device=x.device, generator=generator) < 0.5
        return torch.where(mirrored, x.flip(3), x)

    return flip


def _crop(x: Tensor, margin: int, mode: str, generator: Generator) -> Tensor:
    """Pad by margin, then cut one window of the old size per image, all with one gather."""
    N, C, H, W = x.shape
    reflected = mode == "reflect" and not x.is_floating_point()
    floats = x.float() if reflected else x  # reflection is written for floats only
    wide = F.pad(floats, [margin] * 4, mode=mode).to(x.dtype)
    corner = torch.randint(0, 2 * margin + 1, (2, N, 1, 1, 1), device=x.device, generator=generator)
    n, c, h, w = (torch.arange(k, device=x.device) for k in (N, C, H, W))
    rows, columns = corner[0] + h.view(1, 1, H, 1), corner[1] + w.view(1, 1, 1, W)
    return wide[n.view(N, 1, 1, 1), c.view(1, C, 1, 1), rows, columns]


def _permutation(n: int, seed: int) -> np.ndarray:
    """In an order of the one stream that NumPy promises never to change."""
    return np.random.RandomState(seed).permutation(n)


def _idx(name: str, split: str) -> Images:
    prefix = "train" if split == "train" else "t10k"
    pixels = _unpack(name, f"{prefix}-images-idx3-ubyte")[16:].reshape(-1, 1, 28, 28)
    labels = _unpack(name, f"{prefix}-labels-idx1-ubyte")[8:]
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels).long(), ON_BOARD[name], name)


def _unpack(name: str, file: str) -> np.ndarray:
    """The bytes of a gzipped file on board, once they have been checked against their digest."""
    home = data_dir()
    path = home / name / f"{file}.gz"
    repair = f"Restore it with `git checkout -- data/{name}`."
    if not path.is_file():
        raise DataError(f"{path} is missing. {repair}")
    try:
        content = gzip.decompress(path.read_bytes())
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is damaged or was copied in part ({error}). {repair}") from error
    sums = (home / "SHA256SUMS").read_text(encoding="utf-8-sig", errors="replace").splitlines()
    if f"{hashlib.sha256(content).hexdigest()}  {name}/{file}" not in sums:
        raise DataError(f"{path} is damaged: its digest is not the one in SHA256SUMS. {repair}")
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def _digits(split: str) -> Images:
    """scikit-learn's 1,797 scans of 8×8 pixels, enlarged to 20×20 in a frame of 28×28 as MNIST's.

    The last 500 are the test set.
    """
    from sklearn.datasets import load_digits

    bunch = load_digits()
    small = torch.from_numpy(bunch.images).float()[:, None] * (255 / 16)
    large = F.interpolate(small, size=(20, 20), mode="bilinear", align_corners=False)
    pixels = F.pad(large, [4] * 4).round().to(torch.uint8)
    everything = Images(pixels, torch.from_numpy(bunch.target).long(), ON_BOARD["digits"], "digits")
    return everything.take(slice(None, -500) if split == "train" else slice(-500, None))


def _dataset(name: str, split: str, root: Path, download: bool) -> Any:
    import torchvision.datasets

    kind, _, style, _ = FETCHABLE[name]
    chosen = {"train": split == "train"} if style == "flag" else {"split": split}
    return getattr(torchvision.datasets, kind)(root=str(root), download=download, **chosen)


def _torchvision(name: str, split: str, root: Path, size: int | None) -> Images:
    if not root.exists():
        raise DataError(
            f"{name} is not on board. Fetch it with `tlcourse data fetch {name}` (about "
            f"{FETCHABLE[name][1]} MB), or use {', '.join(ON_BOARD)}."
        )
    try:
        dataset = _dataset(name, split, root, download=False)
        pixels, labels = _stack(dataset, size or FETCHABLE[name][3])
        classes = getattr(dataset, "classes", None) or map(str, range(int(labels.max()) + 1))
        return Images(pixels, labels, tuple(classes), name)
    except Exception as error:  # whatever torchvision trips over
        raise DataError(
            f"{root} is damaged or incomplete ({_why(error)}). Delete it and run "
            f"`tlcourse data fetch {name}`."
        ) from error


def _folder(name: str, split: str, size: int | None) -> Images:
    root = Path(os.path.expanduser(name.removeprefix("folder:"))) / split
    if not root.is_dir():
        raise DataError(
            f"{root} does not exist; {name} needs one folder of images per class in {root}/CLASS/."
        )
    parts = [part for part in (root.with_name("train"), root.with_name("test")) if part.is_dir()]
    try:
        found = {part.name: _classes(part) for part in parts}
    except OSError as error:
        raise DataError(f"{root.parent} could not be read: {_why(error)}") from error
    names = {part: list(classes) for part, classes in found.items()}
    if any(other != names[split] for other in names.values()):
        raise DataError(
            f"{root.parent} must have the same class folders in train/ and test/, got {names}"
        )
    empty = [c for c in names[split] if not found[split][c]] if names[split] else ["CLASS"]
    if empty:
        raise DataError(f"{root} could not be read: no pictures in {root}/{', '.join(empty)}.")
    files = [(path, label) for label, c in enumerate(names[split]) for path in found[split][c]]
    if size is None:
        sizes = (_picture(path).size for path, _ in files)
        size = 96 if any(one != other for one, other in pairwise(sizes)) else None
    pixels, labels = _stack(((_picture(path, size), label) for path, label in files), size)
    return Images(pixels, labels, tuple(names[split]), name)


def _classes(root: Path) -> dict[str, list[Path]]:
    """The pictures of each class folder; a broken link in the place of one raises OSError."""
    folders = [entry for entry in _shown(root) if entry.is_dir() or not entry.exists()]
    return {unicodedata.normalize("NFC", f.name): list(_pictures(f)) for f in folders}


def _pictures(folder: Path, above: tuple[str, ...] = ()) -> Iterator[Path]:
    """The pictures in a folder and below; links are followed, but not in a circle."""
    above = (*above, os.path.realpath(folder))
    for path in _shown(folder):
        if path.is_dir() and os.path.realpath(path) not in above:
            yield from _pictures(path, above)
        elif not path.is_dir() and path.suffix.lower() in PICTURES:
            yield path


def _shown(folder: Path) -> list[Path]:
    entries = sorted(folder.iterdir(), key=lambda path: path.name)
    return [p for p in entries if not p.name.startswith(".") and p.name not in NO_PICTURES]


def _picture(path: Path, size: int | None = None) -> Image.Image:
    """A file's first frame as 8-bit RGB, upright, on white where it is transparent.

    size: what it will be brought to; a JPEG is then decoded at a half to an eighth of its own.
    Raises DataError, which names the file, for what is no whole picture, or has 32 bits a colour.
    """
    try:
        bomb = Image.DecompressionBombWarning
        with warnings.catch_warnings(action="error", category=bomb), Image.open(path) as file:
            if size is not None:
                file.draft(None, (2 * int(size),) * 2)
            return _rgb(ImageOps.exif_transpose(file), file.format)
    except Exception as error:  # whatever Pillow trips over
        raise DataError(f"{path} could not be read: {_why(error)}") from error


def _rgb(picture: Image.Image, kind: str | None) -> Image.Image:
    if picture.mode[:4] == "I;16" or (picture.mode == "I" and kind in ("PNG", "PPM")):  # 16 bits
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    expect(picture.mode not in ("I", "F"), "it has 32 bits a colour; save it with 8 or 16")
    if picture.has_transparency_data:
        white = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(white, picture.convert("RGBA"))
    return picture.convert("RGB")


def _stack(pairs: Iterable[tuple[Any, int]], size: int | None) -> tuple[Tensor, Tensor]:
    """Pictures and labels as tensors, each picture made small before the next is read."""
    from torchvision.transforms.functional import pil_to_tensor

    def small(picture: Image.Image) -> Image.Image:
        bilinear = Image.Resampling.BILINEAR
        return ImageOps.fit(picture, (size, size), bilinear) if size else picture

    pixels, labels = zip(*((pil_to_tensor(small(picture)), label) for picture, label in pairs))
    return torch.stack(pixels), torch.tensor(labels)
