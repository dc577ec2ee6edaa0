"""Scenes with exact labels: pieces of Fashion-MNIST, and digits, that stand on a tiled floor.

Each pixel has three labels, as in Kendall et al. 2018: its class, the vector to the centre of its
instance, and its inverse depth. A piece at depth z looks 1/z as large and its foot is 1/z as far
below the horizon, since all stand on one plane; the nearer hides what is behind.

All is drawn in whole numbers, lengths in 1/256 pixel, from a stream that NumPy promises to keep: so
pictures and labels are the same bytes on every machine.
"""

from dataclasses import dataclass
from numbers import Integral

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.data import Images, load
from tlcourse.methods._checks import expect, expect_counts

H, W, FRAME = 32, 64, 28  # pixels of a scene, and of the frame of a piece
FAR, NEAR, UNIT = 80, 185, 240  # what a pixel of a frame measures: least, most, and at depth 1
CAMERA, INK = 24, 25  # the camera's height in pixels of a frame; above which grey there is ink
CLOTHES = ("trouser", "pullover", "sandal", "sneaker", "bag", "ankle boot")


@dataclass(frozen=True, eq=False)
class Scenes:
    """N scenes of K pieces, with labels for every second pixel of every second row.

    pixels: uint8 (N, 1, 32, 64). classes: int64 (N, 16, 32), 0 for the ground. vectors: float32
    (N, 2, 16, 32), right and down to the instance's centre, in pixels of the scene; 0 on the
    ground. The centre is the mean of what is seen, as in the paper: what is hidden has no say.
    depths: float32 (N, 16, 32), 1/z; a frame at z = 1 is 26.25 pixels wide, and the sky has 0.
    instances: int64 (N, 16, 32), 0 for the ground, 1 to K from far to near. names: of the classes.
    """

    pixels: Tensor
    classes: Tensor
    vectors: Tensor
    depths: Tensor
    instances: Tensor
    names: tuple[str, ...]

    @property
    def targets(self) -> dict[str, Tensor]:
        """The labels by task, "seg", "inst" and "depth": `fit(model, (pixels, targets), …)`."""
        return {"seg": self.classes, "inst": self.vectors, "depth": self.depths}


def pieces(split: str) -> Images:
    """Six classes of Fashion-MNIST, and about as many digits as there are of each: the seventh.

    split: "train", "validation" or "test". No piece is in two: the first are 50,000 and 10,000 of
    the training files, before other classes go. Raises ValueError for another split.
    """
    known = ("train", "validation", "test")
    expect(split in known, f"split must be one of {', '.join(known)}, got {split!r}")
    file, part = "test" if split == "test" else "train", known.index(split)
    both = [load("fashion_mnist", file), load("mnist", file)]
    if split != "test":
        both = [images.split(50_000, 10_000, seed=0)[part] for images in both]
    clothes = both[0].only(CLOTHES, relabel=True)
    digits = both[1].take(slice(len(clothes) // len(CLOTHES)))
    labels = torch.cat([clothes.labels, torch.full_like(digits.labels, len(CLOTHES))])
    return Images(torch.cat([clothes.pixels, digits.pixels]), labels, (*CLOTHES, "digit"), "pieces")


def scenes(pieces: Images, n: int, seed: int, *, K: int = 5) -> Scenes:
    """n scenes of K pieces each, on the CPU; scene i depends on pieces, K, seed and i alone.

    pieces: Images of 28×28 grey pixels. seed: a whole number in [0, 2³²). Raises ValueError for
    pieces that do not fit or are none, and numbers out of range.
    """
    shape, parts = tuple(pieces.pixels.shape), []
    fits = shape[1:] == (1, FRAME, FRAME) and shape[0] > 0
    expect(fits, f"pieces must have pixels (M, 1, {FRAME}, {FRAME}), M >= 1, got {shape}")
    expect_counts("n and K must be whole numbers", n, K)
    whole = isinstance(seed, Integral) and 0 <= seed < 2**32
    expect(whole, f"seed must be a whole number in [0, 2**32), got {seed!r}")
    stream, kept = np.random.RandomState(seed), pieces.to("cpu")
    for start in range(0, n, 64):  # so many fit a cache
        chance = stream.random_sample((min(64, n - start), 4 + 4 * K + H * W))
        parts.append(_render(kept, torch.from_numpy(chance), K))
    pixels, classes, vectors, depths, instances = map(torch.cat, zip(*parts))
    return Scenes(pixels, classes, vectors, depths, instances, ("ground", *kept.classes))


def _render(pieces: Images, chance: Tensor, K: int) -> tuple[Tensor, ...]:
    """What chance decides, numbers in [0, 1): a row of 4, 4·K and H·W of them for each scene."""
    floor, each, noise = chance.split([4, 4 * K, H * W], 1)
    which, size, middle, light = each.view(-1, 4, K).unbind(1)
    which, light = _whole(which, 0, len(pieces)), _whole(light, 154, 257)
    size, middle = _whole(size, FAR, NEAR + 1).sort(1).values, _whole(middle, 0, 256 * W)
    horizon = _whole(floor[:, :1], 256 * 6, 256 * 14)
    grey = _standing(pieces.pixels[which, 0].double(), size, middle, horizon)
    order = torch.arange(1, K + 1)[:, None, None]
    owner = ((grey > INK) * order).amax(1)  # the last, and nearest, that has ink there
    ink = grey.gather(1, (owner[:, None] - 1).clamp(min=0))[:, 0] * _of(light, owner)
    below = 256 * torch.arange(H) + 128 - horizon
    picture = torch.where(owner > 0, 70 + 185 * ink // 2**16, _floor(below, floor[:, 1:]))
    picture += _whole(noise, -6, 7).view_as(picture)
    seen, ground = owner[:, ::2, ::2], (below[:, ::2, None] / (CAMERA * UNIT)).clamp(min=0)
    depths = torch.where(seen > 0, _of(size, seen) / UNIT, ground)
    classes, vectors = _of(pieces.labels[which] + 1, seen), _to_centre(seen, seen[:, None] == order)
    return picture.clamp(0, 255).to(torch.uint8)[:, None], classes, vectors, depths, seen


def _standing(frames: Tensor, size: Tensor, middle: Tensor, horizon: Tensor) -> Tensor:
    """Each piece alone, (n, K, H, W), in greys of 0 to 255: the mean over each pixel's area."""
    rows = ((frames > INK).any(3) * torch.arange(1, FRAME + 1)).amax(2)  # down to the foot
    down = _overlap(horizon + (CAMERA - rows) * size, size, H)
    across = _overlap(middle - FRAME // 2 * size, size, W)
    return (down @ frames @ across.mT / 2**16).long()


def _overlap(start: Tensor, size: Tensor, length: int) -> Tensor:
    """How much of each of `length` pixels each of a frame's covers, (n, K, length, 28)."""
    edges = (start[..., None] + size[..., None] * torch.arange(FRAME + 1))[..., None, :]
    return (edges - 256 * torch.arange(length)[:, None]).clamp(0, 256).diff(dim=-1).double()


def _floor(below: Tensor, chance: Tensor) -> Tensor:
    """Tiles in perspective, up to z = 5, and a lighter sky: (n, H, W)."""
    r, (p, q, light) = below.clamp(min=1)[..., None], _whole(chance, 0, 256).T[..., None, None]
    columns = (240 * 128 * (2 * torch.arange(W) + 1 - W) + p * r) // (128 * r)
    rows = (192 * CAMERA * UNIT + q * r) // (128 * r)
    tiles = (columns + rows) % 2 * (5 * r > CAMERA * UNIT)
    return 20 + light // 8 + 16 * tiles + 30 * (below <= 0)[..., None]


def _to_centre(seen: Tensor, masks: Tensor) -> Tensor:
    """(n, 2, h, w) from each pixel to the mean of its instance's. masks: (n, K, h, w)."""
    h, w = seen.shape[1:]
    places = 2 * torch.arange(w).expand(h, w), 2 * torch.arange(h)[:, None].expand(h, w)
    means = [_of((masks * place).sum((2, 3)) / masks.sum((2, 3)), seen) for place in places]
    return torch.stack([(m - place) * (seen > 0) for m, place in zip(means, places)], 1)


def _of(values: Tensor, owner: Tensor) -> Tensor:
    """What each pixel's instance has, of values (n, K); 0 on the ground."""
    return F.pad(values, (1, 0)).gather(1, owner.flatten(1)).view_as(owner)


def _whole(chance: Tensor, low: int, high: int) -> Tensor:
    return low + (chance * (high - low)).long()
