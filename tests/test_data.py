"""Data on board and from elsewhere: what is loaded is what was published.

Whatever is wrong is said and changes nothing.
"""

import errno
import gzip
import hashlib
import http.client
import http.server
import io
import multiprocessing
import os
import re
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tarfile
import threading
import time
import urllib.error
import warnings
import weakref
import zlib
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import torch
import torchvision.datasets
from PIL import Image, ImageOps
from scipy.io import savemat
from torch.utils.data import Dataset
from torchvision.datasets import SVHN

import tlcourse.data
from tlcourse.data import (
    PHOTOS,
    DataError,
    Images,
    as_input,
    data_dir,
    fetch,
    is_there,
    load,
    noisy,
    over_photos,
    photo,
    random_crop,
    random_flip,
    random_shift,
)


def picture(*labels, classes=("ant", "bee", "cow"), side=4):
    """Images whose every pixel is different, with these labels."""
    pixels = torch.arange(len(labels) * side * side).view(-1, 1, side, side).remainder(256).byte()
    return Images(pixels, torch.tensor(labels, dtype=torch.int64), tuple(classes), "animals")


def tree(folder):
    """Every file and folder below, with what it holds."""
    return {
        str(p.relative_to(folder)): p.read_bytes() if p.is_file() else None
        for p in folder.rglob("*")
    }


def sha256(tensor):
    return hashlib.sha256(tensor.numpy().tobytes()).hexdigest()


@pytest.fixture(scope="module")
def mnist():
    return load("mnist", "test")


# --- on board ---

MNIST = {
    "train": [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949],
    "test": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
}


@pytest.mark.parametrize(
    ("name", "split", "counts", "first", "mean"),
    [
        ("mnist", "train", MNIST["train"], [5, 0, 4, 1, 9], 0.1307),
        ("mnist", "test", MNIST["test"], [7, 2, 1, 0, 4], 0.1325),
        ("fashion_mnist", "train", [6000] * 10, [9, 0, 0, 3, 0], 0.2860),
        ("fashion_mnist", "test", [1000] * 10, [9, 2, 1, 1, 6], 0.2868),
    ],
)
def test_mnist_and_fashion_mnist_are_all_there(name, split, counts, first, mean):
    images = load(name, split)
    assert images.pixels.shape == (sum(counts), 1, 28, 28)
    assert (images.pixels.dtype, images.labels.dtype) == (torch.uint8, torch.int64)
    assert images.labels.bincount().tolist() == counts
    assert images.labels[:5].tolist() == first
    assert images.pixels.double().mean().item() / 255 == pytest.approx(
        mean, abs=5e-5
    )  # the figures that everyone normalises with
    assert (images.name, len(images.classes), len(images)) == (name, 10, sum(counts))


def test_classes_have_their_names():
    assert load("mnist", "test").classes == tuple("0123456789")
    assert load("fashion_mnist", "test").classes[9] == "ankle boot"


def test_pixels_are_upright(mnist):
    """A 7 and a 1: the bar of the 7 is at its top; the 1 is taller than wide."""
    seven, one = mnist.pixels[0, 0] > 100, mnist.pixels[2, 0] > 100
    assert seven[7:10].sum() > 2 * seven[20:23].sum()
    assert one.any(1).sum() > 2 * one.any(0).sum()


def test_digits_look_like_mnist():
    train, test = load("digits"), load("digits", "test")
    assert (train.pixels.shape, test.pixels.shape) == ((1297, 1, 28, 28), (500, 1, 28, 28))
    assert train.labels.bincount().tolist() == [128, 131, 128, 132, 130, 131, 130, 129, 128, 130]
    assert test.labels.bincount().tolist() == [50, 51, 49, 51, 51, 51, 51, 50, 46, 50]
    for images in (train, test):
        assert (images.pixels.dtype, images.classes) == (torch.uint8, tuple("0123456789"))
        inside = images.pixels.clone()
        inside[:, :, 4:24, 4:24] = 0
        assert not inside.any()  # a frame of zeros around 20×20 pixels
        assert images.pixels[:, :, 4:24, 4:24].amax((1, 2, 3)).min() > 200


def test_digits_of_both_splits_are_all_of_scikit_learns():
    from sklearn.datasets import load_digits

    bunch = load_digits()
    pixels, labels = (
        torch.cat(both)
        for both in zip(*((s.pixels, s.labels) for s in (load("digits"), load("digits", "test"))))
    )
    assert labels.tolist() == bunch.target.tolist()
    ours, theirs = (
        pixels[:, :, 4:24, 4:24].double(),
        torch.from_numpy(bunch.images)[:, None] * 255 / 16,
    )
    assert ours.mean().item() == pytest.approx(theirs.mean().item(), rel=1e-3)  # as much ink
    coarse = torch.stack(
        [torch.nn.functional.adaptive_avg_pool2d(x, 4).flatten() for x in (ours, theirs)]
    )
    assert torch.corrcoef(coarse)[0, 1] > 0.995  # in the same places


def test_loading_twice_gives_images_of_their_own(tiny):
    first = load("mnist", "test")
    first.pixels.zero_()
    assert load("mnist", "test").pixels.any()


@pytest.mark.parametrize("name", [None, 3, Path("mnist"), ["mnist"]])
def test_a_name_that_is_no_string_is_refused(name):
    with pytest.raises(ValueError, match=f"^name must be a string, got {re.escape(repr(name))}$"):
        load(name)


@pytest.mark.parametrize("name", ["mnits", "MNIST", "", "folder", "../mnist"])
def test_an_unknown_name_is_refused_with_those_there_are(name):
    with pytest.raises(
        ValueError,
        match=rf"^there is no data set '{re.escape(name)}'; there are mnist, .*folder:PATH$",
    ):
        load(name)


@pytest.mark.parametrize("name", ["mnist", "digits", "cifar10", "folder:x", "unknown"])
@pytest.mark.parametrize("split", ["validation", "Train", "", None])
def test_an_unknown_split_is_refused(name, split):
    with pytest.raises(ValueError, match=rf'^split must be "train" or "test", got {split!r}$'):
        load(name, split)


# --- missing and damaged ---


@pytest.fixture
def tiny(home):
    """A course folder with an MNIST of five images, and its digests."""
    folder = home / "data" / "mnist"
    folder.mkdir()
    pixels = np.random.RandomState(0).bytes(5 * 784)
    files = {
        "t10k-images-idx3-ubyte": struct.pack(">IIII", 0x803, 5, 28, 28) + pixels,
        "t10k-labels-idx1-ubyte": struct.pack(">II", 0x801, 5) + bytes([3, 1, 4, 1, 5]),
    }
    sums = ""
    for file, content in files.items():
        (folder / f"{file}.gz").write_bytes(gzip.compress(content, mtime=0))
        sums += f"{hashlib.sha256(content).hexdigest()}  mnist/{file}\n"
    (home / "data" / "SHA256SUMS").write_bytes(sums.encode())
    return home


IMAGES, LABELS = "t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"


def test_files_with_the_right_digests_are_read(tiny):
    images = load("mnist", "test")
    assert images.labels.tolist() == [3, 1, 4, 1, 5]
    assert images.pixels.numpy().tobytes() == np.random.RandomState(0).bytes(5 * 784)


def refuses(home, sentence, name="mnist", split="test"):
    """Loading fails with this sentence and leaves every file as it was."""
    before = tree(home)
    with pytest.raises(DataError, match=sentence) as caught:
        load(name, split)
    assert tree(home) == before
    return str(caught.value)


@pytest.mark.parametrize("file", [IMAGES, LABELS])
def test_a_missing_file_is_named(tiny, file):
    (tiny / "data" / "mnist" / file).unlink()
    sentence = refuses(tiny, "is missing")
    path = tiny / "data" / "mnist" / file
    assert sentence == f"{path} is missing. Restore it with `git checkout -- data/mnist`."


def test_a_missing_folder_is_named(home):
    assert "fashion_mnist" in refuses(
        home, r"train-images-idx3-ubyte.gz is missing\. Restore it with", "fashion_mnist", "train"
    )


@pytest.mark.parametrize("file", [IMAGES, LABELS])
@pytest.mark.parametrize("where", [0, 3, 10, -6, -2])  # header, deflate stream, checksum and length
def test_a_flipped_byte_is_found(tiny, file, where):
    path = tiny / "data" / "mnist" / file
    content = bytearray(path.read_bytes())
    content[where] ^= 0xFF
    path.write_bytes(content)
    sentence = refuses(tiny, r"is damaged.*Restore it with `git checkout -- data/mnist`\.$")
    assert str(path) in sentence


@pytest.mark.parametrize("file", [IMAGES, LABELS])
@pytest.mark.parametrize("kept", [0, 1, 9, 20, -9, -1])
def test_a_truncated_file_is_found(tiny, file, kept):
    path = tiny / "data" / "mnist" / file
    path.write_bytes(path.read_bytes()[:kept])
    assert str(path) in refuses(tiny, "is damaged")


@pytest.mark.parametrize(
    "content", [b"", b"something else", struct.pack(">II", 0x801, 5) + bytes([3, 1, 4, 1, 6])]
)
def test_other_contents_in_a_sound_archive_are_found(tiny, content):
    path = tiny / "data" / "mnist" / LABELS
    path.write_bytes(gzip.compress(content))
    assert refuses(tiny, "digest is not the one in SHA256SUMS").startswith(str(path))


def test_a_file_without_a_digest_is_refused(tiny):
    (tiny / "data" / "SHA256SUMS").write_bytes(b"")
    refuses(tiny, "digest is not the one in SHA256SUMS")


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b"\n", b"\r\n"),
        lambda text: b"\xef\xbb\xbf" + text,
        lambda text: b"\n" + text.replace(b"\n", b"\n\n"),
        lambda text: b"no digest at all, \xe4 in latin-1\n" + text,
    ],
)
def test_digests_do_not_depend_on_line_endings_and_other_lines(tiny, change):
    path = tiny / "data" / "SHA256SUMS"
    path.write_bytes(change(path.read_bytes()))
    assert len(load("mnist", "test")) == 5
    path.write_bytes(path.read_bytes().replace(b"images", b"others"))
    refuses(tiny, "digest is not the one in SHA256SUMS")


def test_a_file_that_cannot_be_read_is_named(tiny, monkeypatch):
    def read_bytes(self):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    with pytest.raises(DataError, match=rf"^{tiny}/.*{IMAGES} is damaged .*Permission denied"):
        load("mnist", "test")


def test_files_on_board_that_were_exchanged_are_found(home, repository):
    """Real files: Fashion-MNIST's labels in the place of MNIST's."""
    (home / "data" / "mnist").mkdir()
    shutil.copy(repository / "data" / "mnist" / IMAGES, home / "data" / "mnist" / IMAGES)
    shutil.copy(repository / "data" / "fashion_mnist" / LABELS, home / "data" / "mnist" / LABELS)
    refuses(home, f"{LABELS} is damaged: its digest is not the one in SHA256SUMS")


# --- where the data folder is ---


@pytest.fixture
def elsewhere(tmp_path, monkeypatch):
    """An installed package with no data beside it, and a working folder outside the course."""
    monkeypatch.delenv("TLCOURSE_HOME", raising=False)
    monkeypatch.setattr(
        tlcourse.data, "__file__", str(tmp_path / "site-packages" / "tlcourse" / "data.py")
    )
    (tmp_path / "course" / "notebooks" / "deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def make_course(folder):
    (folder / "data").mkdir(parents=True)
    (folder / "data" / "SHA256SUMS").touch()
    return folder / "data"


def test_data_beside_the_package(monkeypatch, repository, tmp_path):
    monkeypatch.delenv("TLCOURSE_HOME", raising=False)
    monkeypatch.chdir(tmp_path)
    assert data_dir() == repository / "data"


def test_data_above_the_working_folder(elsewhere, monkeypatch):
    data = make_course(elsewhere / "course")
    for folder in ("course", "course/notebooks", "course/notebooks/deep"):
        monkeypatch.chdir(elsewhere / folder)
        assert data_dir() == data


def test_tlcourse_home_comes_first(elsewhere, monkeypatch):
    make_course(elsewhere / "course")
    monkeypatch.chdir(elsewhere / "course")
    other = make_course(elsewhere / "other")
    monkeypatch.setenv("TLCOURSE_HOME", str(elsewhere / "other"))
    assert data_dir() == other


def test_a_wrong_tlcourse_home_is_named_and_nothing_else_is_taken(elsewhere, monkeypatch):
    make_course(elsewhere / "course")
    monkeypatch.chdir(elsewhere / "course")
    monkeypatch.setenv("TLCOURSE_HOME", "/nowhere")
    with pytest.raises(
        DataError,
        match=r"^The course's data folder was not found: no data/SHA256SUMS in /nowhere\. Clone ",
    ):
        load("mnist")


def test_no_data_folder_at_all(elsewhere):
    places = f"{elsewhere}/site-packages, {elsewhere}, "
    with pytest.raises(
        DataError,
        match=rf"not found: no data/SHA256SUMS in .*{places}.*\. Clone the course's repository",
    ):
        load("mnist")


# --- Images ---


@pytest.mark.parametrize(
    ("pixels", "labels", "sentence"),
    [
        (
            torch.zeros(2, 4, 4).byte(),
            torch.tensor([0, 1]),
            r"pixels must have shape \(N, C, H, W\), got \(2, 4, 4\)",
        ),
        (torch.zeros(2, 1, 4, 4), torch.tensor([0, 1]), r"pixels must be uint8, got torch.float32"),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.tensor([0, 1, 1]),
            r"labels must have shape \(2,\), got \(3,\)",
        ),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.tensor([[0], [1]]),
            r"labels must have shape \(2,\), got \(2, 1\)",
        ),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.tensor([0.0, 1.0]),
            r"labels must be int64, got torch.float32",
        ),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.tensor([0, 2]),
            r"labels must be in \[0, 2\), got 0 to 2",
        ),
        (
            torch.zeros(2, 1, 4, 4).byte(),
            torch.tensor([-1, 1]),
            r"labels must be in \[0, 2\), got -1 to 1",
        ),
    ],
)
def test_images_must_fit_together(pixels, labels, sentence):
    with pytest.raises(ValueError, match=sentence):
        Images(pixels, labels, ("a", "b"), "two")


@pytest.mark.parametrize(
    "index",
    [[2, 0], torch.tensor([2, 0]), torch.tensor([2, 0], dtype=torch.int32), np.array([2, 0])],
)
def test_take_keeps_the_order_given(index):
    images = picture(0, 1, 2, 1)
    taken = images.take(index)
    assert torch.equal(taken.pixels, images.pixels[[2, 0]])
    assert taken.labels.tolist() == [2, 0]
    assert (taken.classes, taken.name) == (images.classes, images.name)


@pytest.mark.parametrize(
    ("index", "labels"),
    [
        (slice(1, 3), [1, 2]),
        (slice(None, None, 2), [0, 2]),
        (torch.tensor([True, False, False, True]), [0, 1]),
        ([-1], [1]),
        ([], []),
    ],
)
def test_take_by_slice_mask_and_list(index, labels):
    assert picture(0, 1, 2, 1).take(index).labels.tolist() == labels


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.uint16, np.int16, np.int64])
def test_take_by_whole_numbers_of_any_width(dtype):
    assert picture(0, 1, 2, 1).take(np.array([2, 0], dtype)).labels.tolist() == [2, 0]


@pytest.mark.parametrize("index", [[0.0, 1.0], torch.tensor([0.5])])
def test_take_refuses_fractions(index):
    with pytest.raises(IndexError, match="tensors used as indices must be"):
        picture(0, 1, 2).take(index)


COUNTS = {
    "n": lambda n: picture(0, 1, 2, 0, 1, 2).per_class(n, seed=0),
    "each count": lambda n: picture(0, 1, 2, 0).split(n, seed=0)[0],
    "size": lambda n: load("digits", size=n),
    "pixels": lambda n: random_shift(n)(torch.ones(2, 1, 4, 4), generator()),
    "padding": lambda n: random_crop(n)(torch.ones(2, 1, 4, 4), generator()),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("wrong", [True, np.True_, 1.0, np.float64(2), "2", 0, np.int64(-1), None])
def test_counts_are_whole_numbers_from_one(name, wrong):
    if name == "size" and wrong is None:  # as big as they are
        return
    with pytest.raises(ValueError, match=f"^{name} must be a whole number >= 1, got "):
        COUNTS[name](wrong)


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_counts_may_be_numpys(name, dtype):
    def tensor(given):
        return given if isinstance(given, torch.Tensor) else given.pixels

    assert torch.equal(tensor(COUNTS[name](dtype(2))), tensor(COUNTS[name](2)))


def test_counts_of_numpy_do_not_overflow(photos):
    n = np.uint8(200)
    with pytest.raises(ValueError, match=r"^counts must add up to <= 300, got "):
        picture(*[0] * 300).split(n, n, seed=0)
    Image.new("RGB", (900, 900)).save(photos / "train" / "cat" / "0.jpg")
    assert load(f"folder:{photos}", size=n).pixels.shape[2:] == (200, 200)
    x = torch.zeros(50, 1, 1, 1) + 1
    assert torch.equal(random_shift(n)(x, generator()), random_shift(200)(x, generator()))


def test_to_moves_pixels_and_labels(device):
    images = picture(0, 1, 2).to(device)
    assert (images.pixels.device.type, images.labels.device.type) == (device.type, device.type)
    assert images.take([1]).labels.tolist() == [1]
    assert images.only(["cow", "ant"], relabel=True).labels.tolist() == [1, 0]
    assert images.per_class(1, seed=0).labels.sort().values.tolist() == [0, 1, 2]


@pytest.mark.parametrize("classes", [[2, 0], ["cow", "ant"], ("cow", 0)])
def test_only_keeps_classes_by_number_or_name(classes):
    images = picture(0, 1, 2, 1, 0, 2)
    kept = images.only(classes)
    assert torch.equal(kept.pixels, images.pixels[[0, 2, 4, 5]])
    assert kept.labels.tolist() == [0, 2, 0, 2]
    assert kept.classes == images.classes


@pytest.mark.parametrize("classes", [[2, 0], ["cow", "ant"], ("cow", 0)])
def test_only_with_relabel_counts_in_the_order_given(classes):
    images = picture(0, 1, 2, 1, 0, 2)
    kept = images.only(classes, relabel=True)
    assert torch.equal(kept.pixels, images.pixels[[0, 2, 4, 5]])
    assert kept.labels.tolist() == [1, 0, 1, 0]
    assert kept.labels.dtype == torch.int64
    assert kept.classes == ("cow", "ant")
    assert images.labels.tolist() == [0, 1, 2, 1, 0, 2]


def test_the_name_of_a_class_wins_over_its_number():
    images = picture(0, 1, 2, classes=("7", "8", "1"))
    assert images.only(["1"]).labels.tolist() == [2]
    assert images.only([1]).labels.tolist() == [1]


def test_only_takes_numbers_of_numpy():
    assert picture(0, 1, 2).only(np.array([2, 0]), relabel=True).labels.tolist() == [1, 0]


@pytest.mark.parametrize("c", ["dog", 3, -1, 1.5, 1.0, True, None])
def test_only_refuses_an_unknown_class(c):
    with pytest.raises(ValueError, match=f"^class {c!r} is not one of animals: ant, bee, cow$"):
        picture(0, 1, 2).only([0, c])


@pytest.mark.parametrize("classes", [[], [1, 1], ["bee", 1]])
def test_only_refuses_no_class_and_one_named_twice(classes):
    with pytest.raises(ValueError, match=r"^classes must be at least one, each named once, got \["):
        picture(0, 1, 2).only(classes)


def test_per_class_takes_as_many_of_each(mnist):
    few = mnist.per_class(7, seed=3)
    assert few.labels.bincount().tolist() == [7] * 10
    assert len({sha256(image) for image in few.pixels}) == 70  # none twice
    assert few.labels.tolist() != sorted(few.labels.tolist())  # shuffled
    assert sorted(picture(0, 2, 2, 0).per_class(2, seed=0).labels.tolist()) == [
        0,
        0,
        2,
        2,
    ]  # classes that occur


def test_per_class_keeps_pixels_and_labels_together():
    images = picture(*[i % 3 for i in range(15)])
    few = images.per_class(4, seed=1)
    for pixels, label in zip(few.pixels, few.labels):
        assert label == pixels.flatten()[0] // 16 % 3


def test_a_smaller_subset_is_part_of_a_larger_one_of_the_same_seed(mnist):
    small, large = ({sha256(image) for image in mnist.per_class(n, seed=5).pixels} for n in (3, 6))
    assert small < large


def test_subsets_are_the_same_on_every_machine(mnist):
    few = mnist.per_class(2, seed=0)
    assert few.labels.tolist() == PER_CLASS_LABELS
    assert sha256(few.pixels) == PER_CLASS_DIGEST
    first, second = mnist.split(5, 3, seed=1)
    assert (first.labels.tolist(), second.labels.tolist()) == ([6, 9, 2, 6, 7], [6, 1, 4])
    torch.manual_seed(1), np.random.seed(1)
    assert (
        mnist.per_class(2, seed=0).labels.tolist() == PER_CLASS_LABELS
    )  # whatever the global state


PER_CLASS_LABELS = [8, 7, 1, 7, 1, 2, 9, 5, 4, 5, 6, 3, 2, 0, 6, 4, 8, 9, 3, 0]
PER_CLASS_DIGEST = "81a4b011e2bae10d24fd902fed2dd00ae1fab7c27522ae2f1a9013042d186bec"


def test_other_seeds_give_other_subsets(mnist):
    assert not torch.equal(mnist.per_class(5, seed=0).pixels, mnist.per_class(5, seed=1).pixels)
    assert not torch.equal(mnist.split(50, seed=0)[0].pixels, mnist.split(50, seed=1)[0].pixels)


def test_per_class_refuses_more_than_there_are():
    with pytest.raises(ValueError, match=r"^n must be <= 1 for class 'bee', got 2$"):
        picture(0, 0, 1, 2, 2).per_class(2, seed=0)
    for n in (0, -1):
        with pytest.raises(ValueError, match=f"^n must be a whole number >= 1, got {n}$"):
            picture(0, 1, 2).per_class(n, seed=0)


@pytest.mark.parametrize("counts", [(10,), (6, 4), (3, 3, 3), (1,)])
def test_split_gives_disjoint_parts_of_these_sizes(counts):
    images = picture(*[i % 3 for i in range(10)])
    parts = images.split(*counts, seed=2)
    assert tuple(len(part) for part in parts) == counts
    seen = [int(pixels.flatten()[0]) for part in parts for pixels in part.pixels]
    assert len(set(seen)) == sum(counts)
    assert all(
        label == pixels.flatten()[0] // 16 % 3
        for part in parts
        for pixels, label in zip(part.pixels, part.labels)
    )


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ((), r"^each count must be a whole number >= 1, got none$"),
        ((3, 0), r"^each count must be a whole number >= 1, got 3, 0$"),
        ((-1,), r"^each count must be a whole number >= 1, got -1$"),
        ((2, 2), r"^counts must add up to <= 3, got \(2, 2\)$"),
    ],
)
def test_split_refuses(counts, sentence):
    with pytest.raises(ValueError, match=sentence):
        picture(0, 1, 2).split(*counts, seed=0)


def test_as_input_scales_bytes_and_leaves_floats():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8)
    assert torch.equal(as_input(pixels), torch.tensor([0.0, 0.2, 1.0]))
    assert pixels.tolist() == [0, 51, 255]
    floats = torch.tensor([0.0, 300.0])
    assert torch.equal(as_input(floats), floats)


# --- augmentation ---


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def windows(x, margin, mode):
    """All shifted copies of one image (C, H, W), by their shift."""
    _, H, W = x.shape
    wide = np.pad(x.double().numpy(), [(0, 0), (margin, margin), (margin, margin)], mode=mode)
    return {
        (i, j): wide[:, i : i + H, j : j + W]
        for i in range(2 * margin + 1)
        for j in range(2 * margin + 1)
    }


@pytest.mark.parametrize(
    ("augment", "mode"), [(random_shift, "constant"), (random_crop, "reflect")]
)
@pytest.mark.parametrize(
    "dtype", [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]
)
@pytest.mark.parametrize("margin", [1, 2])
def test_each_image_is_a_shifted_copy_of_itself(augment, mode, dtype, margin):
    """With a border of zeros or reflections; all channels move together, and all shifts occur."""
    x = (torch.rand(300, 2, 5, 6, generator=generator(1), dtype=torch.float64) * 254 + 1).to(dtype)
    before = x.clone()
    moved = augment(margin)(x, generator())
    assert (moved.shape, moved.dtype) == (x.shape, dtype)
    assert torch.equal(x, before)
    shifts = [
        [
            s
            for s, window in windows(old, margin, mode).items()
            if np.array_equal(window, new.double().numpy())
        ]
        for old, new in zip(x, moved)
    ]
    assert all(len(found) == 1 for found in shifts)
    assert len({found[0] for found in shifts}) == (2 * margin + 1) ** 2


def test_flip_mirrors_left_to_right_half_of_the_time():
    x = torch.rand(10_000, 1, 2, 3, generator=generator(1)).mul(255).byte()
    x[..., 0] = x[..., 2] ^ 1  # no image is its own mirror image
    flipped = random_flip()(x, generator())
    mirrored = (flipped == x.flip(3)).flatten(1).all(1)
    kept = (flipped == x).flatten(1).all(1)
    assert (mirrored ^ kept).all()
    assert mirrored.float().mean() == pytest.approx(0.5, abs=0.02)
    assert flipped.dtype == torch.uint8


@pytest.mark.parametrize("augment", [random_shift(), random_crop(), random_flip()])
def test_the_generator_alone_decides(augment):
    x = torch.rand(50, 3, 8, 8, generator=generator(1)).mul(255).byte()
    torch.manual_seed(1)
    first = augment(x, generator(4))
    torch.manual_seed(2)
    assert torch.equal(first, augment(x, generator(4)))
    assert not torch.equal(first, augment(x, generator(5)))


def test_augmentations_run_on_every_device(device):
    x = torch.rand(5, 3, 8, 8).mul(255).byte().to(device)
    for augment in (random_shift(), random_crop(), random_flip()):
        moved = augment(x, torch.Generator(device).manual_seed(0))
        assert (moved.device.type, moved.dtype, moved.shape) == (device.type, torch.uint8, x.shape)


@pytest.mark.parametrize("n", [0, -1])
def test_augmentations_refuse_no_pixels(n):
    with pytest.raises(ValueError, match=f"^pixels must be a whole number >= 1, got {n}$"):
        random_shift(n)
    with pytest.raises(ValueError, match=f"^padding must be a whole number >= 1, got {n}$"):
        random_crop(n)


# --- a folder of one's own images ---


@pytest.fixture
def photos(tmp_path):
    """Two classes of pictures of different sizes: bright cats, dark dogs."""
    for split, sizes in (("train", [(30, 20), (20, 40), (25, 25)]), ("test", [(22, 33)])):
        for c, value in (("cat", 200), ("dog", 50)):
            folder = tmp_path / "photos" / split / c
            folder.mkdir(parents=True)
            for i, size in enumerate(sizes):
                Image.new("RGB", size, (value, 0, i)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def test_a_folder_of_images_of_different_sizes(photos):
    images = load(f"folder:{photos}")
    assert images.pixels.shape == (6, 3, 96, 96)
    assert images.labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert (images.classes, images.name) == (("cat", "dog"), f"folder:{photos}")
    assert torch.equal(
        images.pixels[:, 0].float().mean((1, 2)), torch.tensor([200.0] * 3 + [50.0] * 3)
    )
    assert images.pixels[:, 1].max() == 0


@pytest.mark.parametrize(("split", "n"), [("train", 6), ("test", 2)])
def test_a_folder_with_a_size(photos, split, n):
    assert load(f"folder:{photos}", split, size=16).pixels.shape == (n, 3, 16, 16)


def test_images_of_one_size_keep_it_and_their_pixels(tmp_path):
    pixels = np.random.RandomState(0).randint(256, size=(2, 7, 9, 3)).astype(np.uint8)
    (tmp_path / "train" / "a").mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image).save(tmp_path / "train" / "a" / f"{i}.png")
    assert torch.equal(
        load(f"folder:{tmp_path}").pixels, torch.from_numpy(pixels).permute(0, 3, 1, 2)
    )


def test_a_size_cuts_the_middle_of_a_picture(tmp_path):
    wide = np.zeros((10, 30, 3), dtype=np.uint8)
    wide[:, 10:20] = 255
    (tmp_path / "train" / "a").mkdir(parents=True)
    Image.fromarray(wide).save(tmp_path / "train" / "a" / "0.png")
    assert (load(f"folder:{tmp_path}", size=10).pixels == 255).all()


def test_a_folder_below_the_home_folder(photos, monkeypatch):
    monkeypatch.setenv("HOME", str(photos.parent))
    assert len(load("folder:~/photos")) == 6


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(
        DataError,
        match=rf"^{tmp_path}/none/train does not exist; folder:{tmp_path}/none needs one folder",
    ):
        load(f"folder:{tmp_path}/none")
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/test does not exist"):
        load(f"folder:{tmp_path}", "test")


def test_a_folder_without_classes_or_images(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/train could not be read"):
        load(f"folder:{tmp_path}")
    (tmp_path / "train" / "empty").mkdir()
    with pytest.raises(DataError, match=rf"^{tmp_path}/train could not be read: .*empty"):
        load(f"folder:{tmp_path}")


@pytest.mark.parametrize("damage", ["not an image", "cut", "length"])
def test_a_folder_with_a_damaged_image(photos, damage):
    path = photos / "train" / "cat" / "1.png"
    Image.fromarray(np.random.RandomState(0).randint(256, size=(9, 7, 3)).astype(np.uint8)).save(
        path
    )
    content = bytearray(path.read_bytes())
    if damage == "length":  # of the pixels' chunk: the reader then takes pixels for the next one
        content[content.index(b"IDAT") - 1] -= 40
    path.write_bytes(
        {"not an image": b"hello", "cut": content[: len(content) // 2], "length": content}[damage]
    )
    refuses(photos, rf"^{path} could not be read: .", f"folder:{photos}", "train")


NOISE = np.random.RandomState(0).randint(256, size=(32, 24, 3)).astype(np.uint8)


@pytest.fixture
def one(tmp_path):
    """Saves a picture as the only one of a class; gives what is loaded, (3, H, W)."""
    folder = tmp_path / "mine" / "train" / "a"
    folder.mkdir(parents=True)

    def only(name, picture, **options):
        for old in folder.iterdir():
            old.unlink()
        if isinstance(picture, bytes):
            (folder / name).write_bytes(picture)
        else:
            picture.save(folder / name, **options)
        return load(f"folder:{tmp_path / 'mine'}").pixels[0]

    only.folder = folder
    return only


def as_array(pixels):
    return pixels.permute(1, 2, 0).numpy()


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["png", "tif", "webp", "jpg"])
def test_a_picture_is_upright_as_its_tag_says(one, kind, turn):
    exif = Image.Exif()
    exif[0x0112] = turn
    Image.fromarray(NOISE).save(path := one.folder / f"0.{kind}", exif=exif, lossless=True)
    with Image.open(path) as file:
        upright = np.asarray(ImageOps.exif_transpose(file.copy() if kind == "jpg" else file))
    assert upright.shape == ((32, 24, 3) if turn < 5 else (24, 32, 3))
    assert np.array_equal(as_array(one(path.name, path.read_bytes())), upright)


def test_pictures_that_are_of_one_size_once_they_are_upright_keep_it(photos):
    exif = Image.Exif()
    exif[0x0112] = 6
    for path in photos.glob("train/*/*.png"):
        Image.new("RGB", (20, 10)).save(path)
    Image.new("RGB", (10, 20)).save(photos / "train/dog/0.png", exif=exif)
    assert load(f"folder:{photos}").pixels.shape == (6, 3, 10, 20)
    Image.new("RGB", (20, 10)).save(photos / "train/dog/0.png", exif=exif)
    assert load(f"folder:{photos}").pixels.shape == (6, 3, 96, 96)


RAMP = np.linspace(0, 1, 256).reshape(16, 16)
GREY = {
    "u8.png": Image.fromarray(np.rint(RAMP * 255).astype(np.uint8)),
    "u16.png": Image.fromarray((RAMP * 65535).astype(np.uint16)),
    "u16.tif": Image.fromarray((RAMP * 65535).astype(np.uint16)),
    "big.tif": Image.fromarray((RAMP * 65535).astype(">u2")),
    "u16.pgm": Image.fromarray((RAMP * 65535).astype(np.uint16)),
    "u16.jp2": Image.fromarray((RAMP * 65535).astype(np.uint16)),
    "f32.tif": Image.fromarray(RAMP.astype(np.float32)),
    "f255.tif": Image.fromarray((RAMP * 255).astype(np.float32)),
    "i32.tif": Image.fromarray((RAMP * 255).astype(np.int32)),
    "i31.tif": Image.fromarray((RAMP * (2**31 - 1)).astype(np.int32)),
}


@pytest.mark.parametrize("name", GREY)
def test_a_ramp_of_greys_stays_one_or_is_refused(one, name):
    if name[0] in "fi":  # nobody knows which number is white
        with pytest.raises(DataError, match=rf"{name} could not be read: it has 32 bits a colour"):
            one(name, GREY[name])
        return
    pixels = one(name, GREY[name])
    assert torch.equal(pixels[0], pixels[1])
    assert torch.equal(pixels[0], pixels[2])
    assert np.abs(pixels[0].numpy() - np.rint(RAMP * 255)).max() <= 1


def palette(transparency=None):
    picture = Image.new("P", (4, 4), 1)
    picture.putpalette([9, 9, 9, 200, 10, 0])
    picture.info |= {} if transparency is None else {"transparency": transparency}
    return picture


@pytest.mark.parametrize(
    ("name", "picture", "colour"),
    [
        ("a.png", Image.new("RGBA", (4, 4), (200, 10, 0, 255)), (200, 10, 0)),
        ("b.png", Image.new("RGBA", (4, 4), (200, 10, 0, 0)), (255, 255, 255)),
        ("c.png", Image.new("RGBA", (4, 4), (200, 10, 0, 51)), (244, 206, 204)),
        ("d.webp", Image.new("RGBA", (4, 4), (200, 10, 0, 0)), (255, 255, 255)),
        ("e.png", Image.new("LA", (4, 4), (77, 0)), (255, 255, 255)),
        ("f.png", Image.new("LA", (4, 4), (77, 255)), (77, 77, 77)),
        ("g.png", palette(), (200, 10, 0)),
        ("h.png", palette(1), (255, 255, 255)),
        ("i.png", palette(b"\xff\x00"), (255, 255, 255)),
        ("j.gif", palette(1), (255, 255, 255)),
        ("k.png", Image.new("1", (4, 4), 1), (255, 255, 255)),
        ("l.tif", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        ("m.jpg", Image.new("CMYK", (4, 4), (0, 255, 255, 0)), (255, 0, 0)),
        ("n.tif", Image.new("YCbCr", (4, 4), (76, 85, 255)), (254, 0, 0)),
        ("o.PNG", Image.new("RGB", (4, 4), (200, 10, 0)), (200, 10, 0)),
        ("p.JPeG", Image.new("L", (4, 4), 77), (77, 77, 77)),
        ("q.BMP", Image.new("RGB", (4, 4), (200, 10, 0)), (200, 10, 0)),
        ("Ärger 猫.png", Image.new("RGB", (4, 4), (200, 10, 0)), (200, 10, 0)),
    ],
)
def test_a_picture_is_rgb_and_white_where_it_is_transparent(one, name, picture, colour):
    _needs_file_names(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels = one(name, picture)
    assert pixels.shape == (3, 4, 4)
    assert np.abs(as_array(pixels).astype(int) - colour).max() <= 2


@pytest.mark.parametrize("kind", ["gif", "png", "webp", "tif"])
def test_of_several_frames_the_first_is_taken(one, kind):
    first, second = (Image.new("RGB", (4, 4), c) for c in ((200, 10, 0), (0, 0, 250)))
    pixels = one(f"0.{kind}", first, save_all=True, append_images=[second])
    assert np.abs(as_array(pixels).astype(int) - (200, 10, 0)).max() <= 5


@pytest.mark.parametrize("kind", ["jpg", "png", "webp", "tif", "bmp", "ppm", "gif", "avif", "jp2"])
@pytest.mark.parametrize("damage", ["cut", "head", "empty", "text", "page"])
def test_a_damaged_picture_of_any_format_is_named(photos, kind, damage):
    path = photos / "train" / "dog" / f"7.{kind}"
    Image.fromarray(NOISE).save(path)
    content = path.read_bytes()
    parts = {"cut": content[: len(content) * 2 // 3], "head": content[:20], "empty": b""}
    path.write_bytes(parts.get(damage, b"hello" if damage == "text" else b"<html></html>" * 99))
    for size in (None, 8):
        with pytest.raises(DataError, match=f"^{re.escape(str(path))} could not be read: ."):
            load(f"folder:{photos}", size=size)


def test_a_picture_that_cannot_be_opened_or_read_is_named(photos, monkeypatch):
    path = photos / "train" / "dog" / "7.jpg"
    path.symlink_to(photos / "gone.jpg")
    refuses(photos, f"^{path} could not be read: .*No such file", f"folder:{photos}", "train")
    path.unlink()
    Image.new("RGB", (4, 4)).save(path)
    load(f"folder:{photos}")
    whole = Image.open

    def forbidden(file):
        if Path(file) == path:
            raise PermissionError(errno.EACCES, "Permission denied", str(file))
        return whole(file)

    monkeypatch.setattr(Image, "open", forbidden)
    refuses(photos, f"^{path} could not be read: .*Permission denied", f"folder:{photos}", "train")


def test_a_format_that_pillow_cannot_read_is_named_and_not_left_out(one):
    with pytest.raises(DataError, match=r"0\.heic could not be read: cannot identify"):
        one("0.heic", b"\0\0\0\x18ftypheic" + bytes(99))


@pytest.mark.parametrize("side", [10_000, 50_000])
def test_a_picture_too_large_to_be_safe_is_refused_in_a_sentence(one, side):
    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    bomb = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(bytes(99)))
    with pytest.raises(DataError, match=r"0\.png could not be read: Image size .*exceeds limit"):
        one("0.png", bomb)


HIDDEN = [
    *(".ipynb_checkpoints", ".git", ".hidden", "__MACOSX", "@eaDir"),
    *("cat/.ipynb_checkpoints", "cat/.thumbnails", "dog/__MACOSX", "dog/@eaDir"),
]


@pytest.mark.parametrize("folder", HIDDEN)
def test_what_a_system_hides_beside_pictures_is_no_class_and_no_picture(photos, folder):
    expected = load(f"folder:{photos}")
    for split in ("train", "test"):
        (photos / split / folder).mkdir()
        Image.new("RGB", (8, 8)).save(photos / split / folder / "0-checkpoint.png")
    (photos / "train" / "only_in_train.txt").write_bytes(b"")
    for junk in ("._1.png", ".DS_Store", ".2.jpg", "Thumbs.db", "desktop.ini", "notes.txt"):
        (photos / "train" / "cat" / junk).write_bytes(b"\0\5\x16\7")
        (photos / "train" / junk).write_bytes(b"x")
    found = load(f"folder:{photos}")
    assert (found.classes, found.labels.tolist()) == (("cat", "dog"), expected.labels.tolist())
    assert torch.equal(found.pixels, expected.pixels)


def test_a_hidden_folder_in_one_split_only_makes_no_difference(photos):
    (photos / "train" / ".ipynb_checkpoints").mkdir()
    assert load(f"folder:{photos}", "test").classes == ("cat", "dog")


def test_folders_below_a_class_belong_to_it_and_links_are_followed_but_not_in_a_circle(photos):
    (photos / "more").mkdir()
    Image.new("RGB", (8, 8), (1, 2, 3)).save(photos / "more" / "9.png")
    cat = photos / "train" / "cat"
    (cat / "deep" / "deeper").mkdir(parents=True)
    (cat / "deep" / "deeper" / "5.png").write_bytes((cat / "0.png").read_bytes())
    (cat / "linked").symlink_to(photos / "more")
    (cat / "deep" / "up").symlink_to(cat)
    (cat / "deep" / "itself").symlink_to(cat / "deep" / "itself")
    for split in ("train", "test"):
        (photos / split / "emu").symlink_to(photos / "more")
    images = load(f"folder:{photos}")
    assert images.classes == ("cat", "dog", "emu")
    assert images.labels.bincount().tolist() == [5, 3, 1]
    assert images.pixels[:, 0, 0, 0].tolist() == [200, 200, 200, 200, 1, 50, 50, 50, 1]


def test_a_broken_link_in_the_place_of_a_class_is_named(photos):
    for split in ("train", "test"):
        (photos / split / "emu").symlink_to(photos / "gone")
    refuses(photos, r"^.*could not be read: .*No such file .*emu", f"folder:{photos}", "train")


def test_one_class_is_enough_and_a_class_without_pictures_is_named(photos):
    shutil.rmtree(photos / "train" / "dog"), shutil.rmtree(photos / "test" / "dog")
    assert load(f"folder:{photos}").classes == ("cat",)
    for split in ("train", "test"):
        (photos / split / "emu").mkdir()
        (photos / split / "emu" / "notes.txt").write_bytes(b"none yet")
    refuses(photos, rf"^{photos}/train could not be read: .*/emu\.$", f"folder:{photos}", "train")


def test_pictures_that_lie_beside_the_classes_are_no_class(tmp_path):
    (tmp_path / "train").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "train" / "0.png")
    with pytest.raises(DataError, match=r"could not be read: no pictures in .*/train/CLASS\.$"):
        load(f"folder:{tmp_path}")


def test_train_and_test_must_have_the_same_classes(photos):
    (photos / "test" / "dog").rename(photos / "test" / "Dog")
    refuses(photos, "must have the same class folders in train/ and test/", f"folder:{photos}")


def _needs_file_names(text):
    """Where a locale says how file names are written, not every one can be."""
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        pytest.skip(f"in this locale no file can be called {text!a}")


def test_a_name_is_the_same_however_its_accents_are_written(photos):
    _needs_file_names("cafe\u0301")
    (photos / "train" / "cat").rename(photos / "train" / "caf\u00e9")
    (photos / "test" / "cat").rename(photos / "test" / "cafe\u0301")
    for split in ("train", "test"):
        assert load(f"folder:{photos}", split).only(["caf\u00e9"]).classes[0] == "caf\u00e9"


def test_a_folder_of_an_unknown_user_does_not_exist():
    with pytest.raises(DataError, match=r"^~nobody-of-that-name/x/train does not exist"):
        load("folder:~nobody-of-that-name/x")


def test_a_very_long_picture_is_cut_and_not_blown_up(one):
    one.folder.joinpath("long.png").unlink(missing_ok=True)
    Image.new("L", (20_000, 2), 7).save(one.folder / "long.png")
    pixels = load(f"folder:{one.folder.parents[1]}", size=64).pixels
    assert pixels.shape == (1, 3, 64, 64)
    assert (pixels == 7).all()


def memory(folder, size, peak):
    """What it takes to load a folder, in MB; for a process of its own."""
    import resource  # not on Windows

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert load(f"folder:{folder}", size=size).pixels.shape == (25, 3, 96, 96)
    peak.value = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024


@pytest.mark.skipif(sys.platform != "linux", reason="memory is measured as Linux does")
@pytest.mark.parametrize(("kind", "size"), [("jpg", 96), ("jpg", None), ("png", None)])
def test_pictures_are_made_small_one_by_one(tmp_path, kind, size):
    (tmp_path / "train" / "a").mkdir(parents=True)
    first = tmp_path / "train" / "a" / f"00.{kind}"
    Image.linear_gradient("L").resize((1600, 1600)).convert("RGB").save(first)
    for i in range(1, 24):
        (first.parent / f"{i:02}.{kind}").write_bytes(first.read_bytes())
    Image.new("RGB", (96, 96)).save(first.parent / f"99.{kind}")  # of another size, the last
    fork = multiprocessing.get_context("fork")
    process = fork.Process(target=memory, args=[tmp_path, size, peak := fork.Value("d")])
    process.start(), process.join()
    assert 0 < peak.value < 90  # all at full size are 184


def test_pictures_of_a_fetched_set_are_made_small_one_by_one(monkeypatch, home):
    made, most = [], []

    class Flowers(Dataset):
        def __len__(self):
            return 30

        def __getitem__(self, i):
            if i >= 30:
                raise IndexError
            found = Image.new("RGB", (50 + i, 60), (i, 0, 0))
            made.append(weakref.ref(found))
            most.append(sum(picture() is not None for picture in made))
            return found, i % 2

    monkeypatch.setattr(tlcourse.data, "_dataset", lambda *_, **__: Flowers())
    (home / "data" / "flowers102").mkdir()
    images = load("flowers102")
    assert images.pixels.shape == (30, 3, 96, 96)
    assert images.pixels[:, 0, 0, 0].tolist() == list(range(30))
    assert max(most) <= 3


# --- torchvision's sets ---


def test_what_is_there(home, write_cifar10):
    assert [is_there(name) for name in ("mnist", "digits", "cifar10")] == [True, True, False]
    write_cifar10(home / "data" / "cifar10")
    assert is_there("cifar10")


def test_cifar10_is_read_through_torchvision(cifar10):
    train, test = load("cifar10"), load("cifar10", "test")
    assert (train.pixels.shape, test.pixels.shape) == ((10, 3, 32, 32), (2, 3, 32, 32))
    assert train.labels.tolist() == [0, 9, 1, 9, 2, 9, 3, 9, 4, 9]
    assert test.labels.tolist() == [5, 9]
    assert train.pixels[:, 0, 0, 0].tolist() == [100, 100, 101, 101, 102, 102, 103, 103, 104, 104]
    assert train.pixels[:, 1:].amax() == 4
    assert (train.classes[3], train.name) == ("class 3", "cifar10")


def test_svhn_names_its_split(home, monkeypatch):
    root = home / "data" / "svhn"
    root.mkdir()
    splits = {}
    for split, labels in (("train", [1, 9, 10]), ("test", [3, 9])):
        file = f"{split}_32x32.mat"
        savemat(
            root / file,
            {
                "X": np.full((32, 32, 3, len(labels)), len(labels), np.uint8),
                "y": np.array(labels)[:, None],
            },
        )
        splits[split] = ["", file, hashlib.md5((root / file).read_bytes()).hexdigest()]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", splits)
    train, test = load("svhn"), load("svhn", "test")
    assert (train.labels.tolist(), test.labels.tolist()) == ([1, 9, 0], [3, 9])
    assert (train.pixels.unique().tolist(), test.pixels.unique().tolist()) == ([3], [2])
    assert test.classes == tuple("0123456789")
    assert train.classes == tuple("0123456789")


@pytest.mark.parametrize("size", [0, -3])
def test_a_size_below_one_is_refused_and_no_set_is_called_damaged(cifar10, size):
    with pytest.raises(ValueError, match=f"^size must be a whole number >= 1, got {size}$"):
        load("cifar10", size=size)


def test_a_set_that_was_not_fetched(home):
    refuses(
        home,
        r"^cifar10 is not on board\. Fetch it with `tlcourse data fetch cifar10` \(about 350 MB\), "
        r"or use mnist, fashion_mnist, digits\.$",
        "cifar10",
    )


@pytest.mark.parametrize("file", ["data_batch_3", "test_batch", "batches.meta"])
@pytest.mark.parametrize("damage", ["missing", "flipped", "cut"])
def test_a_damaged_set(home, cifar10, file, damage):
    path = cifar10 / file
    content = bytearray(path.read_bytes())
    content[-3] ^= 0xFF
    path.unlink() if damage == "missing" else path.write_bytes(
        content if damage == "flipped" else content[:-9]
    )
    root = home / "data" / "cifar10"
    refuses(
        home,
        rf"^{root} is damaged or incomplete \(.*\)\. Delete it and run "
        r"`tlcourse data fetch cifar10`\.$",
        "cifar10",
    )


@pytest.mark.parametrize("kept", [0, 3, 10, 100])
def test_a_damaged_set_that_torchvision_does_not_check(home, kept):
    """KMNIST has no digests once it is unpacked: its reader stumbles in its own ways."""
    raw = home / "data" / "kmnist" / "KMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, n in (("train", 3), ("t10k", 2)):
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(
            struct.pack(">IIII", 0x803, n, 28, 28) + bytes(n * 784)
        )
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 0x801, n) + bytes(n))
    assert load("kmnist").pixels.shape == (3, 1, 28, 28)
    path = raw / "train-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:kept])
    refuses(
        home,
        r"kmnist is damaged or incomplete .*Delete it and run `tlcourse data fetch kmnist`\.$",
        "kmnist",
        "train",
    )


# --- fetch ---

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def roomy(home, monkeypatch):
    """A course folder on a disk with room, where nothing can be downloaded yet."""
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 0, 10**12))
    return home


def fetch_fails(home, sentence, name="cifar10", error=DataError):
    before = tree(home)
    with pytest.raises(error, match=sentence):
        fetch(name)
    assert tree(home) == before  # no half of a set, no folder left behind


def half(error):
    """A download that breaks off in the middle."""

    def download(name, split, root, download):
        root.mkdir(parents=True, exist_ok=True)
        (root / "part.tar.gz").write_bytes(b"half of it")
        raise error

    return download


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no route"),
        TimeoutError("timed out"),
        ConnectionResetError("reset"),
        RuntimeError("File not found or corrupted."),
        http.client.IncompleteRead(b"half"),
    ],
)
def test_fetch_without_network_says_what_is_on_board(roomy, monkeypatch, error):
    monkeypatch.setattr(tlcourse.data, "_dataset", half(error))
    fetch_fails(
        roomy,
        r"^cifar10 could not be downloaded \(.+\)\. Is there a network\? On board, without one, "
        r"are: mnist, fashion_mnist, digits\.$",
    )


def test_fetch_needs_room_before_it_starts(home, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(10**12, 10**12, 349_000_000))
    monkeypatch.setattr(tlcourse.data, "_dataset", lambda *_, **__: pytest.fail("it started"))
    fetch_fails(
        home,
        rf"^The disk is full: cifar10 needs about 350 MB in {home}/data\. Nothing was changed\.$",
    )


def test_fetch_when_the_disk_fills_up_on_the_way(roomy, monkeypatch):
    monkeypatch.setattr(
        tlcourse.data, "_dataset", half(OSError(errno.ENOSPC, "No space left on device"))
    )
    fetch_fails(
        roomy,
        rf"^The disk is full: cifar10 needs about 350 MB in {roomy}/data\. Nothing was changed\.$",
    )


def test_fetch_that_is_interrupted_leaves_nothing(roomy, monkeypatch):
    monkeypatch.setattr(tlcourse.data, "_dataset", half(KeyboardInterrupt("by hand")))
    fetch_fails(roomy, "by hand", error=KeyboardInterrupt)


@pytest.fixture
def online(roomy, monkeypatch, write_cifar10):
    """torchvision's download, which writes a small CIFAR-10."""
    calls = []

    def download(self):
        calls.append(self.root)
        if not (Path(self.root) / self.base_folder).exists():
            write_cifar10(Path(self.root))

    monkeypatch.setattr(torchvision.datasets.CIFAR10, "download", download)
    return calls


def test_fetch_brings_a_set_that_can_be_loaded(roomy, online):
    assert fetch("cifar10") == roomy / "data" / "cifar10"
    assert len(load("cifar10")) == 10
    assert sorted(p.name for p in (roomy / "data").iterdir()) == ["SHA256SUMS", "cifar10"]
    assert online


def test_fetch_does_not_touch_a_set_that_is_there(home, cifar10, online):
    before = tree(home)
    assert fetch("cifar10") == home / "data" / "cifar10"
    assert tree(home) == before
    assert not online


def test_fetch_says_that_a_set_that_is_there_is_damaged(home, cifar10, online):
    (cifar10 / "test_batch").write_bytes(b"")
    fetch_fails(home, "is damaged or incomplete.*Delete it and run `tlcourse data fetch cifar10`")
    assert not online


class Server(http.server.BaseHTTPRequestHandler):
    """Answers with an archive, all of it or in part, as `behaviour` says."""

    archive, behaviour = b"", "whole"

    def do_HEAD(self):
        self.send_response(200)
        self.end_headers()

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.archive)))
        self.end_headers()
        whole = self.behaviour in ("whole", "other")
        self.wfile.write(self.archive if whole else self.archive[: len(self.archive) // 2])
        self.wfile.flush()
        if self.behaviour == "stalls":
            time.sleep(3)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(roomy, monkeypatch, write_cifar10, tmp_path):
    """A server on this machine with a small CIFAR-10; torchvision is told its address."""
    folder = write_cifar10(tmp_path / "elsewhere")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        archive.add(folder, folder.name)
    handler = type("Handler", (Server,), {"archive": buffer.getvalue()})
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "tgz_md5", hashlib.md5(handler.archive).hexdigest())
    monkeypatch.setattr(tlcourse.data, "SILENCE", 0.5)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        monkeypatch.setattr(
            cifar, "url", f"http://127.0.0.1:{running.server_port}/{cifar.filename}"
        )
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield handler
        running.shutdown()
        thread.join()


@pytest.fixture
def mute(roomy, monkeypatch):
    """A server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        url = f"http://127.0.0.1:{listening.getsockname()[1]}/cifar-10-python.tar.gz"
        monkeypatch.setattr(torchvision.datasets.CIFAR10, "url", url)
        splits = {split: [url, *rest] for split, (_, *rest) in SVHN.split_list.items()}
        monkeypatch.setattr(SVHN, "split_list", splits)
        monkeypatch.setattr(tlcourse.data, "SILENCE", 0.5)
        yield


def test_fetch_from_a_server(server, roomy):
    assert fetch("cifar10") == roomy / "data" / "cifar10"
    assert len(load("cifar10")) == 10
    assert not list((roomy / "data").glob(".*"))


@pytest.mark.parametrize("behaviour", ["stalls", "breaks off", "other"])
def test_fetch_from_a_server_that_fails(server, roomy, behaviour):
    server.behaviour = behaviour
    if behaviour == "other":  # than torchvision's digest says
        server.archive = server.archive[:-1] + b"\1"
    why = r"timed out" if behaviour == "stalls" else r"File not found or corrupted\."
    fetch_fails(roomy, rf"^cifar10 could not be downloaded \(.*{why}\)\. Is there a network\?")


def test_fetch_gives_up_on_a_server_that_never_answers(mute, roomy):
    before = socket.getdefaulttimeout(), signal.getsignal(signal.SIGTERM)
    start = time.monotonic()
    fetch_fails(roomy, r"^cifar10 could not be downloaded \(.*timed out\)\. Is there a network\?")
    assert time.monotonic() - start < 20
    assert (socket.getdefaulttimeout(), signal.getsignal(signal.SIGTERM)) == before


def test_fetch_works_outside_of_the_main_thread(mute, roomy):
    with ThreadPoolExecutor(1) as thread:
        thread.submit(fetch_fails, roomy, "could not be downloaded").result(timeout=20)


def fetch_patiently(ignored):
    tlcourse.data.SILENCE = 60
    usual = {signal.SIGINT: signal.default_int_handler, signal.SIGHUP: signal.SIG_DFL}
    for number, handler in usual.items():  # however pytest itself was started
        signal.signal(number, signal.SIG_IGN if number in ignored else handler)
    fetch("cifar10")


@contextmanager
def fetching(home, *ignored):
    """Another process that waits for a mute server, with half a set on the disk."""
    before = set((home / "data").glob(".fetch-*"))
    process = multiprocessing.get_context("fork").Process(target=fetch_patiently, args=[ignored])
    process.start()
    try:
        while not (new := set((home / "data").glob(".fetch-cifar10-*")) - before):
            assert process.is_alive()
            time.sleep(0.01)
        folder = new.pop()
        while not (folder / "cifar10").exists():  # torchvision is at work
            assert process.is_alive()
            time.sleep(0.01)
        (folder / "cifar10" / "half").write_bytes(b"half of it")
        yield process
    finally:
        process.kill()
        process.join()


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@POSIX
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_fetch_that_is_told_to_stop_leaves_nothing(mute, roomy, name):
    before = tree(roomy)
    with fetching(roomy) as process:
        os.kill(process.pid, getattr(signal, name))
        process.join(timeout=20)
        assert process.exitcode not in (0, None)
    assert tree(roomy) == before


@POSIX
def test_fetch_under_nohup_goes_on(mute, roomy):
    with fetching(roomy, signal.SIGHUP) as process:
        os.kill(process.pid, signal.SIGHUP)
        process.join(timeout=0.5)
        assert process.is_alive()


@POSIX
def test_what_a_killed_fetch_left_is_swept_the_next_time_but_one_that_runs_is_left_alone(
    mute, roomy
):
    data, before = roomy / "data", tree(roomy)
    with fetching(roomy) as process:
        process.kill()
        process.join()
    (data / ".fetch-svhn-of-an-older-version" / "half").mkdir(parents=True)
    assert list(data.glob(".fetch-cifar10-*/cifar10/half"))
    with fetching(roomy) as process:
        running = tree(roomy)
        assert len(list(data.glob(".fetch-*"))) == 1
        fetch_fails(roomy, "could not be downloaded", "svhn")
        assert tree(roomy) == running
    with pytest.raises(DataError, match="could not be downloaded"):
        fetch("cifar10")
    assert tree(roomy) == before


@pytest.mark.parametrize("name", ["mnist", "imagenet", "folder:x", ""])
def test_fetch_refuses_a_name(home, name):
    fetch_fails(
        home,
        f"^'{name}' cannot be fetched; these can: cifar10, cifar100, kmnist, svhn, flowers102$",
        name,
        ValueError,
    )


# photos


@pytest.mark.parametrize("name", PHOTOS)
def test_a_photo_has_three_channels_of_bytes_and_is_not_blank(name):
    pixels = photo(name)
    assert pixels.dtype == torch.uint8
    assert pixels.shape[0] == 3
    assert min(pixels.shape[1:]) >= 300
    assert pixels.float().std() > 30


def test_photos_are_upright_and_grey_ones_have_equal_channels():
    cat = torch.from_numpy(skimage.data.chelsea())
    assert torch.equal(photo("cat").permute(1, 2, 0), cat)
    camera = photo("camera")
    assert torch.equal(camera[0], camera[2])


def test_an_unknown_photo_is_refused_with_those_there_are():
    with pytest.raises(
        ValueError, match="there is no photo 'dog'; there are cat, coffee, motorcycle, camera"
    ):
        photo("dog")


# --- line endings ---

TEXT = b"one\ntwo,3.5\n"
KEPT = {
    **dict.fromkeys(["data/SHA256SUMS", "data/results/a.lecture.csv", "data/README.md"], TEXT),
    **dict.fromkeys(["data/results/a.json", "tlcourse/data.py", "notebooks/a.ipynb", "new"], TEXT),
    "tlcourse/publish/vendor/mathjax/a.js": b"theirs\r\nkeeps\nits bytes\r\n",
    **dict.fromkeys(["data/mnist/a.gz", "data/models/a.safetensors", "a.png"], b"no\r\ntext\n"),
}


def git(*arguments, at):
    name = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "core.safecrlf=false"]
    run = ["git", "-c", "core.autocrlf=true", *name, *map(str, arguments)]
    return subprocess.run(run, cwd=at, capture_output=True, check=True).stdout.decode("utf-8")


@pytest.fixture
def with_git(repository):
    if not shutil.which("git") or not (repository / ".git").exists():
        pytest.skip("no git, or no checkout")


def test_a_clone_on_windows_holds_the_same_bytes(with_git, tmp_path, repository):
    """Git for Windows turns line endings into CRLF unless told otherwise."""
    here, there = tmp_path / "here", tmp_path / "there"
    for name, content in KEPT.items():
        (here / name).parent.mkdir(parents=True, exist_ok=True)
        (here / name).write_bytes(content)
    shutil.copy(repository / ".gitattributes", here)
    git("init", "-q", at=here)
    git("add", "-A", at=here)
    git("commit", "-q", "-m", "all", at=here)
    git("clone", "-q", here, there, at=tmp_path)
    assert {name: (there / name).read_bytes() for name in KEPT} == KEPT


def test_no_text_of_the_repository_has_other_line_endings(with_git, repository):
    wrong = [
        line
        for line in git("ls-files", "--eol", at=repository).splitlines()
        if re.match(r"i/(crlf|mixed)", line) and "attr/-text" not in line
    ]
    assert not wrong


def test_a_digit_lies_over_its_own_piece_of_a_photo():
    digits, draw = load("mnist", "test").take(slice(40)), np.random.RandomState(3)
    found = over_photos(digits, 3)
    which, places = draw.randint(4, size=40), draw.random_sample((2, 40))
    for i in range(40):
        behind = photo([*PHOTOS][which[i]]).numpy().astype(int)
        y, x = (int(share * (n - 27)) for share, n in zip(places[:, i], behind.shape[1:]))
        expected = np.abs(behind[:, y : y + 28, x : x + 28] - digits.pixels[i].numpy().astype(int))
        assert np.array_equal(found.pixels[i].numpy(), expected)
    assert torch.equal(found.labels, digits.labels)
    assert torch.equal(over_photos(digits, 3).pixels, found.pixels)
    assert not torch.equal(over_photos(digits, 4).pixels, found.pixels)


def test_every_photo_has_its_turn_up_to_its_last_row_and_column(monkeypatch):
    corner = torch.arange(30 * 31).view(1, 30, 31).expand(3, -1, -1) % 256
    monkeypatch.setattr(tlcourse.data, "photo", lambda name: corner.to(torch.uint8))
    blank = Images(torch.zeros(500, 1, 28, 28).byte(), torch.zeros(500).long(), ("0",), "blank")
    corners = {*over_photos(blank, 0).pixels[:, 0, 0, 0].tolist()}
    assert corners == {31 * y + x for y in range(3) for x in range(4)}


def test_noise_is_of_its_size_and_clipped():
    grey = Images(torch.full((50, 1, 28, 28), 128).byte(), torch.zeros(50).long(), ("0",), "grey")
    found = noisy(grey, 0, sigma=20.0).pixels.double()
    assert found.mean().item() == pytest.approx(128, abs=0.5)
    assert found.std().item() == pytest.approx(20, rel=0.02)
    wild = noisy(grey, 0, sigma=9999.0).pixels
    assert ((wild == 0) | (wild == 255)).double().mean() > 0.98
    assert torch.equal(wild, noisy(grey, 0, sigma=9999.0).pixels)
