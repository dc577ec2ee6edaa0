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
import tempfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tlcourse.methods._checks import expect

FASHION = (
    "T-shirt",
    "trouser",
    "pullover",
    "dress",
    "coat",
    "sandal",
    "shirt",
    "sneaker",
    "bag",
    "ankle boot",
)
ON_BOARD = {"mnist": tuple("0123456789"), "fashion_mnist": FASHION, "digits": tuple("0123456789")}
# name: class in torchvision.datasets, megabytes on disk (archive and files), whether the split is
# `train=True` or `split="train"`
FETCHABLE = {
    "cifar10": ("CIFAR10", 350, "flag"),
    "cifar100": ("CIFAR100", 350, "flag"),
    "kmnist": ("KMNIST", 80, "flag"),
    "svhn": ("SVHN", 250, "name"),
    "flowers102": ("Flowers102", 700, "name"),
}

# photos that come with scikit-image: file, and the ImageNet class of what is on it
PHOTOS = {
    "cat": ("chelsea.png", "Egyptian cat"),
    "coffee": ("coffee.png", "espresso"),
    "motorcycle": ("motorcycle_left.png", "moped"),
    "camera": ("camera.png", "tripod"),
}


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
        """Check that the parts fit together."""
        expect(
            self.pixels.ndim == 4,
            f"pixels must have shape (N, C, H, W), got {tuple(self.pixels.shape)}",
        )
        expect(self.pixels.dtype == torch.uint8, f"pixels must be uint8, got {self.pixels.dtype}")
        expect(
            self.labels.shape == self.pixels.shape[:1],
            f"labels must have shape ({len(self.pixels)},), got {tuple(self.labels.shape)}",
        )
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
        """The images at these positions, in this order. index: int64 (n,), bool (N,), a list or a
        slice.
        """
        where = (
            index if isinstance(index, slice) else torch.as_tensor(index, device=self.labels.device)
        )
        where = (
            where.long()
            if isinstance(where, Tensor) and where.numel() == 0 and where.dtype != torch.bool
            else where
        )
        return replace(self, pixels=self.pixels[where], labels=self.labels[where])

    def only(self, classes: Sequence[int | str], relabel: bool = False) -> "Images":
        """The images of these classes (numbers or names). relabel numbers them 0, 1, … in the order
        given.

        Raises ValueError for an unknown class or one named twice.
        """
        wanted = [self._class_number(c) for c in classes]
        expect(
            len(set(wanted)) == len(wanted) > 0,
            f"classes must be at least one and each named once, got {list(classes)}",
        )
        kept = self.take(torch.isin(self.labels, torch.tensor(wanted, device=self.labels.device)))
        if not relabel:
            return kept
        new = torch.full((len(self.classes),), -1, device=self.labels.device)
        new[wanted] = torch.arange(len(wanted), device=self.labels.device)
        return replace(
            kept, labels=new[kept.labels], classes=tuple(self.classes[c] for c in wanted)
        )

    def per_class(self, n: int, seed: int) -> "Images":
        """n images of every class that occurs, shuffled; the same on every machine. Raises
        ValueError if a class has fewer than n.
        """
        expect(n >= 1, f"n must be >= 1, got {n}")
        order = _permutation(len(self), seed)
        labels = self.labels.cpu().numpy()[order]
        chosen = np.zeros(len(self), dtype=bool)
        for c in np.unique(labels):
            where = np.flatnonzero(labels == c)
            expect(
                len(where) >= n,
                f"n must be at most {len(where)}, the images of class {self.classes[c]!r} in {self.name}, got {n}",
            )
            chosen[where[:n]] = True
        return self.take(torch.from_numpy(order[chosen]))

    def split(self, *counts: int, seed: int) -> "tuple[Images, ...]":
        """Disjoint random subsets of these sizes; the same on every machine: `train, validation =
        images.split(50_000, 10_000, seed=0)`.

        Raises ValueError if a count is below 1 or there are not enough images.
        """
        expect(
            min(counts, default=0) >= 1, f"counts must be at least one number >= 1, got {counts}"
        )
        expect(
            sum(counts) <= len(self),
            f"counts must add up to at most the {len(self)} images of {self.name}, got {counts}",
        )
        parts = np.split(_permutation(len(self), seed), np.cumsum(counts))
        return tuple(self.take(torch.from_numpy(part)) for part in parts[: len(counts)])

    def _class_number(self, c: int | str) -> int:
        number = self.classes.index(c) if c in self.classes else c
        known = isinstance(number, int | np.integer) and 0 <= number < len(self.classes)
        expect(known, f"class {c!r} is not one of {self.name}: {', '.join(self.classes)}")
        return int(number)


def as_input(pixels: Tensor) -> Tensor:
    """What a network takes: uint8 becomes float32 in [0, 1]; floats stay as they are."""
    return pixels.float().div_(255) if pixels.dtype == torch.uint8 else pixels


def load(name: str, split: str = "train", *, size: int | None = None) -> Images:
    """A data set by name: "mnist", "fashion_mnist", "digits", one fetched through torchvision
    ("cifar10", …) or "folder:PATH".

    split: "train" or "test". size: side in pixels to which photos are resized and cropped (default
    96 where they differ in size). Raises ValueError for an unknown name or split, and DataError
    when files are missing or damaged, with what to do about it.
    """
    expect(size is None or size >= 1, f"size must be >= 1, got {size}")
    expect(split in ("train", "test"), f'split must be "train" or "test", got {split!r}')
    if name == "digits":
        return _digits(split)
    if name in ON_BOARD:
        return _idx(name, split)
    if name in FETCHABLE:
        return _torchvision(name, split, data_dir() / name, size)
    if name.startswith("folder:"):
        return _folder(name, split, size)
    known = ", ".join([*ON_BOARD, *FETCHABLE, "folder:PATH"])
    raise ValueError(f"there is no data set {name!r}; there are {known}")


def photo(name: str) -> Tensor:
    """A photo by name, one of `PHOTOS`: uint8 (3, H, W), grey ones with three equal channels.
    Raises ValueError for another name.
    """
    import skimage.data
    from skimage.io import imread

    expect(name in PHOTOS, f"there is no photo {name!r}; there are {', '.join(PHOTOS)}")
    pixels = torch.from_numpy(imread(Path(skimage.data.__file__).parent / PHOTOS[name][0]))
    return (
        pixels.expand(3, *pixels.shape).clone()
        if pixels.ndim == 2
        else pixels[..., :3].permute(2, 0, 1).contiguous()
    )


def data_dir() -> Path:
    """The course's data folder: of TLCOURSE_HOME, else beside the package, else in a parent of the
    working directory.

    Raises DataError where none of them holds one.
    """
    home = os.environ.get("TLCOURSE_HOME")
    places = [Path(home)] if home else [Path(__file__).parents[1], Path.cwd(), *Path.cwd().parents]
    for place in places:
        if (place / "data" / "SHA256SUMS").is_file():
            return place / "data"
    looked = (
        f"TLCOURSE_HOME is {home}, which has no data/SHA256SUMS"
        if home
        else "it is neither beside the package nor above this folder"
    )
    raise DataError(
        f"The course's data folder was not found: {looked}. Clone the course's repository and run from inside it."
    )


def is_there(name: str) -> bool:
    """Whether a data set can be loaded without a network: it came with the course, or has been
    fetched.
    """
    return name not in FETCHABLE or (data_dir() / name).exists()


def fetch(name: str) -> Path:
    """Download a set through torchvision into the data folder. Whatever goes wrong, nothing that
    was there is touched.

    Raises ValueError for a name that cannot be fetched, and DataError without network or room on
    the disk.
    """
    expect(name in FETCHABLE, f"{name!r} cannot be fetched; these can: {', '.join(FETCHABLE)}")
    home, megabytes = data_dir(), FETCHABLE[name][1]
    if (home / name).exists():
        load(name, "test")
        return home / name
    full = f"The disk is full: {name} needs about {megabytes} MB in {home}. Nothing was changed."
    if shutil.disk_usage(home).free < megabytes * 1e6:
        raise DataError(full)
    with tempfile.TemporaryDirectory(prefix=f".fetch-{name}-", dir=home) as part:
        try:
            for split in ("train", "test"):
                _dataset(name, split, Path(part) / name, download=True)
        except Exception as error:  # whatever a download dies of
            if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                raise DataError(full) from error
            on_board = ", ".join(ON_BOARD)
            raise DataError(
                f"{name} could not be downloaded ({error}). Is there a network? On board, without one, are: {on_board}."
            ) from error
        (Path(part) / name).rename(home / name)
    return home / name


Augmentation = Callable[[Tensor, Generator], Tensor]


def random_shift(pixels: int = 2) -> Augmentation:
    """Move each image by up to `pixels` along both axes, the border filled with zeros (black). For
    (N, C, H, W) of any dtype.
    """
    expect(pixels >= 1, f"pixels must be >= 1, got {pixels}")
    return lambda x, generator: _crop(x, pixels, "constant", generator)


def random_crop(padding: int = 4) -> Augmentation:
    """Move each image by up to `padding` along both axes, the border filled by reflection, as is
    usual for CIFAR.
    """
    expect(padding >= 1, f"padding must be >= 1, got {padding}")
    return lambda x, generator: _crop(x, padding, "reflect", generator)


def random_flip() -> Augmentation:
    """Mirror each image left to right with probability one half."""

    def flip(x: Tensor, generator: Generator) -> Tensor:
        mirrored = torch.rand(len(x), 1, 1, 1, device=x.device, generator=generator) < 0.5
        return torch.where(mirrored, x.flip(3), x)

    return flip


def _crop(x: Tensor, margin: int, mode: str, generator: Generator) -> Tensor:
    """Pad by margin, then cut one window of the old size per image, all with one gather."""
    N, C, H, W = x.shape
    floats = (
        x.float() if mode == "reflect" and not x.is_floating_point() else x
    )  # reflection is written for floats only
    wide = F.pad(floats, [margin] * 4, mode=mode).to(x.dtype)
    corner = torch.randint(0, 2 * margin + 1, (2, N, 1, 1, 1), device=x.device, generator=generator)
    n, c, h, w = (torch.arange(k, device=x.device) for k in (N, C, H, W))
    return wide[
        n.view(N, 1, 1, 1),
        c.view(1, C, 1, 1),
        corner[0] + h.view(1, 1, H, 1),
        corner[1] + w.view(1, 1, 1, W),
    ]


def _permutation(n: int, seed: int) -> np.ndarray:
    return np.random.RandomState(seed).permutation(
        n
    )  # the one stream that NumPy promises never to change


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
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise DataError(f"{path} is damaged or was copied in part ({error}). {repair}") from error
    digests = {
        file: digest
        for digest, file in map(str.split, (home / "SHA256SUMS").read_text().splitlines())
    }
    if hashlib.sha256(content).hexdigest() != digests.get(f"{name}/{file}"):
        raise DataError(f"{path} is damaged: its digest is not the one in SHA256SUMS. {repair}")
    return np.frombuffer(bytearray(content), dtype=np.uint8)


def _digits(split: str) -> Images:
    """scikit-learn's 1,797 scans of 8×8 pixels, enlarged to 20×20 in a frame of 28×28 as MNIST's
    are. The last 500 are the test set.
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

    kind, _, style = FETCHABLE[name]
    chosen = {"train": split == "train"} if style == "flag" else {"split": split}
    return getattr(torchvision.datasets, kind)(root=str(root), download=download, **chosen)


def _torchvision(name: str, split: str, root: Path, size: int | None) -> Images:
    on_board = ", ".join(ON_BOARD)
    if not root.exists():
        raise DataError(
            f"{name} is not on board. Fetch it with `tlcourse data fetch {name}` (about {FETCHABLE[name][1]} MB), or use {on_board}."
        )
    try:
        return _stack(_dataset(name, split, root, download=False), name, size)
    except (
        OSError,
        RuntimeError,
        EOFError,
        ValueError,
        AssertionError,
    ) as error:  # all that torchvision is known to trip over
        raise DataError(
            f"{root} is damaged or incomplete ({error}). Delete it and run `tlcourse data fetch {name}`."
        ) from error


def _folder(name: str, split: str, size: int | None) -> Images:
    from torchvision.datasets import ImageFolder

    root = Path(name.removeprefix("folder:")).expanduser() / split
    if not root.is_dir():
        raise DataError(
            f"{root} does not exist; {name} needs one folder of images per class in {root}/CLASS/."
        )
    parts = [part for part in (root.with_name("train"), root.with_name("test")) if part.is_dir()]
    folders = {
        part.name: sorted(folder.name for folder in part.iterdir() if folder.is_dir())
        for part in parts
    }
    if len({tuple(classes) for classes in folders.values()}) > 1:
        raise DataError(
            f"{root.parent} must have the same class folders in train/ and test/, got {folders}"
        )
    try:
        return _stack(ImageFolder(str(root)), name, size)
    except (
        OSError,
        SyntaxError,
    ) as error:  # a class without images, a file that is no image or a broken one
        raise DataError(f"{root} could not be read: {error}") from error


def _stack(dataset: Any, name: str, size: int | None) -> Images:
    """All items of a torchvision data set as one tensor."""
    from torchvision.transforms.functional import center_crop, pil_to_tensor, resize

    pictures, labels = zip(*dataset)
    if size is None and len({picture.size for picture in pictures}) > 1:
        size = 96
    if size is not None:
        pictures = tuple(center_crop(resize(picture, [size]), [size, size]) for picture in pictures)
    numbers = torch.tensor(labels)
    classes = getattr(dataset, "classes", None) or [str(i) for i in range(int(numbers.max()) + 1)]
    return Images(
        torch.stack([pil_to_tensor(picture) for picture in pictures]), numbers, tuple(classes), name
    )
