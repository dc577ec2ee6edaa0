"""Scenes: the same everywhere, as a slow painter would draw them, in perspective, and exact."""

import numpy as np
import pytest
import torch

from tlcourse import scenes as module
from tlcourse.data import Images
from tlcourse.scenes import Scenes, pieces, scenes


def images(n=40, seed=3, labels=5):
    """Random blobs of ink that do not reach the edges of their frames."""
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, 1, 28, 28), generator=g) * (
        torch.rand(n, 1, 28, 28, generator=g) < 0.7
    )
    pixels[..., 24:, :] = pixels[..., :3, :] = 0
    y = torch.randint(labels, (n,), generator=g)
    return Images(pixels.byte(), y, tuple("abcdefg"[:labels]), "blobs")


def solid(rows=slice(0, 28), columns=slice(0, 28)):
    """One piece: a bright box."""
    pixels = torch.zeros(1, 1, 28, 28, dtype=torch.uint8)
    pixels[0, 0, rows, columns] = 200
    return Images(pixels, torch.zeros(1, dtype=torch.int64), ("box",), "box")


@pytest.fixture(scope="module")
def made():
    return scenes(images(), 150, seed=1)


def same(a: Scenes, b: Scenes) -> bool:
    return all(torch.equal(getattr(a, k), v) for k, v in vars(b).items() if k != "names")


def first(s: Scenes, n: int) -> Scenes:
    return Scenes(*(v[:n] for k, v in vars(s).items() if k != "names"), s.names)


# the same everywhere


def test_a_seed_gives_the_same_bytes_and_another_seed_others(made):
    assert same(made, scenes(images(), 150, seed=1))
    other = scenes(images(), 150, seed=2)
    assert all((a != b).any() for a, b in zip(made.pixels, other.pixels))


@pytest.mark.parametrize("n", [1, 63, 64, 65])
def test_a_scene_does_not_depend_on_how_many_are_asked_for(made, n):
    assert same(scenes(images(), n, seed=1), first(made, n))


def test_neither_the_global_state_nor_where_the_pieces_are_matters(made, device):
    torch.manual_seed(7)
    np.random.seed(7)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy()
    with torch.autocast("cpu", torch.bfloat16):
        again = scenes(images().to(device), 5, seed=1)
    assert same(again, first(made, 5))
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert (np.random.get_state()[1] == before[1]).all()


def test_shapes_and_types(made):
    found = {k: (v.dtype, tuple(v.shape)) for k, v in vars(made).items() if k != "names"}
    assert found == {
        "pixels": (torch.uint8, (150, 1, 32, 64)),
        "classes": (torch.int64, (150, 16, 32)),
        "vectors": (torch.float32, (150, 2, 16, 32)),
        "depths": (torch.float32, (150, 16, 32)),
        "instances": (torch.int64, (150, 16, 32)),
    }
    assert made.names == ("ground", "a", "b", "c", "d", "e")
    assert made.targets == {"seg": made.classes, "inst": made.vectors, "depth": made.depths}
    assert all(value.is_contiguous() for value in made.targets.values())


# as a slow painter would draw them


def painted(kept: Images, chance: np.ndarray, K: int):
    """One scene from its random numbers, pixel by pixel, in Python's own whole numbers."""
    floor, each, noise = chance[:4], chance[4 : 4 + 4 * K].reshape(4, K), chance[4 + 4 * K :]
    horizon = 256 * 6 + int(floor[0] * 2048)
    which = [int(u * len(kept)) for u in each[0]]
    size = sorted(80 + int(u * 106) for u in each[1])
    middle = [int(u * 256 * 64) for u in each[2]]
    light = [154 + int(u * 103) for u in each[3]]
    picture, owner = np.zeros((32, 64), int), np.zeros((32, 64), int)
    depth = np.zeros((32, 64))
    p, q, bright = (int(u * 256) for u in floor[1:])
    for y in range(32):
        r = 256 * y + 128 - horizon
        for x in range(64):
            value = 20 + bright // 8 + (30 if r <= 0 else 0)
            if 5 * r > 5760:
                right, away = 240 * 128 * (2 * x - 63) + p * r, 192 * 5760 + q * r
                value += 16 * ((right // (128 * r) + away // (128 * r)) % 2)
            picture[y, x], depth[y, x] = value, max(r, 0) / 5760
    for k in range(K):
        frame = kept.pixels[which[k], 0].numpy().astype(int)
        foot = int(np.flatnonzero((frame > 25).any(1)).max()) + 1
        left, top = middle[k] - 14 * size[k], horizon + 24 * size[k] - foot * size[k]
        for y, x in np.ndindex(32, 64):
            grey = 0
            for i in range(max(0, (256 * y - top) // size[k]), 28):
                tall = min(256 * y + 256, top + (i + 1) * size[k]) - max(256 * y, top + i * size[k])
                if tall <= 0:
                    break
                for j in range(max(0, (256 * x - left) // size[k]), 28):
                    broad = min(256 * x + 256, left + (j + 1) * size[k]) - max(
                        256 * x, left + j * size[k]
                    )
                    if broad <= 0:
                        break
                    grey += tall * broad * int(frame[i, j])
            grey //= 2**16
            if grey > 25:
                owner[y, x], depth[y, x] = k + 1, size[k] / 240
                picture[y, x] = 70 + 185 * grey * light[k] // 2**16
    noisy = picture + np.floor(noise * 13).astype(int).reshape(32, 64) - 6
    return noisy.clip(0, 255), owner, depth, which


@pytest.mark.parametrize(("seed", "K"), [(0, 5), (4, 2)])
def test_a_scene_is_what_a_slow_painter_draws(seed, K):
    kept = images()
    chance = np.random.RandomState(seed).random_sample((2, 4 + 4 * K + 2048))[1]
    picture, owner, depth, which = painted(kept, chance, K)
    made, i = scenes(kept, 2, seed, K=K), 1
    assert (made.pixels[i, 0].numpy() == picture).all()
    owner, depth = owner[::2, ::2], depth[::2, ::2]
    assert (made.instances[i].numpy() == owner).all()
    assert (made.depths[i].numpy() == depth.astype(np.float32)).all()
    classes = np.array([0, *(int(kept.labels[w]) + 1 for w in which)])[owner]
    assert (made.classes[i].numpy() == classes).all()
    for k in set(owner.flat) - {0}:
        y, x = np.nonzero(owner == k)
        right, down = made.vectors[i, :, y, x].numpy()
        assert right == pytest.approx(2 * x.mean() - 2 * x, abs=1e-5)
        assert down == pytest.approx(2 * y.mean() - 2 * y, abs=1e-5)


# in perspective


def test_nearer_pieces_are_larger_and_stand_lower_on_the_same_plane():
    made = scenes(solid(), 300, seed=0, K=1)
    there = made.instances > 0
    whole = ~there[:, :, [0, -1]].any((1, 2)) & there.any((1, 2))  # not cut by the sides
    near = made.depths[whole].where(there[whole], 0).amax((1, 2))
    masks = there[whole].float()
    wide, low = masks.sum(2).amax(1), (masks.amax(2) * torch.arange(1, 17)).amax(1)
    assert near.min() < 0.36
    assert near.max() > 0.74
    torch.testing.assert_close(2 * wide, 26.25 * near, atol=3.0, rtol=0)
    rows = made.depths[whole].amax(2)  # of the ground, in front of the foot: as near as the piece
    foot = rows[torch.arange(len(low)), low.long().clamp(max=15)]
    assert (low < 16).sum() > 100
    assert ((foot - near).abs() < 3 / 22.5)[low < 16].all()


def test_the_foot_is_the_last_ink_not_the_end_of_the_frame():
    high, low = (scenes(solid(rows), 50, seed=5, K=1) for rows in (slice(0, 10), slice(18, 28)))
    assert torch.equal(high.pixels, low.pixels)
    assert torch.equal(high.instances, low.instances)


def test_the_nearer_hides_what_is_behind():
    made = scenes(solid(), 200, seed=0)
    behind = hidden = 0
    for instances, depths in zip(made.instances, made.depths):
        known = [depths[instances == k].unique() for k in range(1, 6)]
        assert all(len(depth) <= 1 for depth in known)
        seen = torch.cat(known)
        assert torch.equal(seen, seen.sort().values)
        hidden += sum(len(depth) == 0 for depth in known)
        behind += len(seen) > 1
    assert hidden > 0
    assert behind > 100
    boxes = made.instances.amax(1)  # in columns: a box that is cut by none is as wide as its depth
    nearest = (made.instances == 5).sum(2).amax(1) * 2.0
    depth = made.depths.where(made.instances == 5, 0).amax((1, 2))
    inside = (boxes[:, 0] < 5) & (boxes[:, -1] < 5)
    torch.testing.assert_close(nearest[inside], 26.25 * depth[inside], atol=3.0, rtol=0)


def test_the_sky_is_infinitely_far_and_the_ground_comes_nearer_row_by_row(made):
    ground = made.depths.where(made.instances == 0, torch.nan)
    rows = ground.nanmean(2)
    assert ((rows[:, 0] == 0) & (rows[:, -1] > 0.7)).all()
    spread = (ground - rows[:, :, None]).nan_to_num().abs()
    assert spread.max() < 1e-6
    step = rows.diff(dim=1)
    assert ((step >= 0) | step.isnan()).all()


# exact


def test_vectors_point_to_the_mean_of_what_is_seen(made):
    x, y = 2.0 * torch.arange(32), 2.0 * torch.arange(16)[:, None]
    right, down = (made.vectors[:, 0] + x), (made.vectors[:, 1] + y)
    parts = 0
    for k in range(1, 6):
        for i in range(len(made.pixels)):
            mask = made.instances[i] == k
            if mask.any():
                parts += 1
                mean = x.expand(16, 32)[mask].mean(), y.expand(16, 32)[mask].mean()
                assert (right[i][mask] - mean[0]).abs().max() < 1e-4
                assert (down[i][mask] - mean[1]).abs().max() < 1e-4
    assert parts > 500
    assert (made.vectors.movedim(1, -1)[made.instances == 0] == 0).all()


def test_every_instance_has_one_class_and_all_classes_come_up(made):
    assert torch.equal(made.classes == 0, made.instances == 0)
    for classes, instances in zip(made.classes, made.instances):
        assert all(len(classes[instances == k].unique()) <= 1 for k in range(6))
    assert torch.equal(made.classes.unique(), torch.arange(6))


def test_where_there_is_a_piece_the_picture_is_brighter(made):
    seen = made.pixels[:, 0, ::2, ::2]
    assert seen[made.instances > 0].min() >= 70
    assert seen[made.instances == 0].float().mean() < 70
    white = solid()
    white.pixels[white.pixels > 0] = 255
    lit = scenes(white, 100, seed=0, K=1)
    bright = lit.pixels[:, 0, ::2, ::2][lit.instances > 0]
    assert bright.max() == 255
    assert bright.min() >= 70


def test_a_piece_without_ink_is_not_there():
    empty = scenes(solid(rows=slice(0, 0)), 3, seed=0)
    assert (empty.instances == 0).all()
    assert empty.vectors.isfinite().all()


# real pieces


def test_no_piece_is_in_two_splits(monkeypatch):
    """Each image holds its own number, and of which file it is."""

    def numbered(name, split="train"):
        n = 60_000 if split == "train" else 10_000
        code = torch.arange(n) + 100_000 * (name == "mnist") + 200_000 * (split == "test")
        pixels = torch.stack([code // 256**k % 256 for k in range(3)], 1).byte()
        names = module.CLOTHES + tuple("0123456789"[: 10 - len(module.CLOTHES)])
        return Images(pixels[:, :, None, None], torch.arange(n) % 10, names, name)

    monkeypatch.setattr(module, "load", numbered)
    found = {split: pieces(split) for split in ("train", "validation", "test")}
    codes = {
        split: {tuple(code) for code in kept.pixels.flatten(1).tolist()}
        for split, kept in found.items()
    }
    assert all(len(codes[split]) == len(kept) for split, kept in found.items())
    assert len(set().union(*codes.values())) == sum(map(len, found.values()))
    assert [round(len(kept) / 1000) for kept in found.values()] == [35, 7, 7]
    for kept in found.values():
        assert (kept.labels.bincount() > len(kept) // 8).all()
    ours = {code[0] + 256 * code[1] + 65536 * code[2] for code in codes["test"]}
    assert min(ours) >= 200_000


def test_the_pieces_on_board():
    kept = pieces("test")
    assert kept.classes == (*module.CLOTHES, "digit")
    assert kept.labels.bincount().tolist() == [1000] * 7
    made = scenes(kept, 100, seed=0)
    assert 0.75 < (made.classes == 0).float().mean() < 0.88
    assert torch.equal(made.classes.unique(), torch.arange(8))


# what cannot be


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: scenes(images(), 0, 0), "n and K must be whole numbers >= 1, got 0, 5"),
        (lambda: scenes(images(), 2.5, 0), "n and K must be whole numbers >= 1, got 2.5, 5"),
        (lambda: scenes(images(), 2, 0, K=0), "n and K must be whole numbers >= 1, got 2, 0"),
        (lambda: scenes(images(), 2, -1), r"seed must be a whole number in \[0, 2\*\*32\), got -1"),
        (lambda: scenes(images(), 2, 2**32), r"\[0, 2\*\*32\), got 4294967296"),
        (lambda: scenes(images(), 2, 0.5), r"in \[0, 2\*\*32\), got 0.5"),
        (lambda: scenes(images(), 2, None), r"in \[0, 2\*\*32\), got None"),
        (
            lambda: scenes(images().take([]), 2, 0),
            r"pieces must have pixels \(M, 1, 28, 28\), M >= 1, got \(0, 1, 28, 28\)",
        ),
        (
            lambda: scenes(
                Images(torch.zeros(2, 3, 28, 28).byte(), torch.arange(2), "ab", ""), 2, 0
            ),
            r"pixels \(M, 1, 28, 28\), M >= 1, got \(2, 3, 28, 28\)",
        ),
        (lambda: pieces("val"), "split must be one of train, validation, test, got 'val'"),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()
