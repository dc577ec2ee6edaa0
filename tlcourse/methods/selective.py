r"""Selective joint fine-tuning: train beside those source images that look like the target's.

A target task with few images is learnt together with part of the source task: one trunk, two heads.
Each target image comes with a source image whose edges and textures are like its own,

.. math:: \mathcal{L} = (1 - \lambda)\, \mathcal{L}_{ce}^{target} + \lambda\,
    \mathcal{L}_{ce}^{source}.

Filters give C maps of an image, and each map a histogram p of B bins, which over the *target* hold
equally much each. Layers have equal shares, spread over their channels: the weights w. The distance

.. math:: d(p, q) = \frac12 \sum_{c, b} w_c\, (p_{cb} - q_{cb}) \big(\log(p_{cb} + \epsilon) -
    \log(q_{cb} + \epsilon)\big)

is a symmetric KL divergence; multiplied out, all N·M distances are two matrix products. In rounds,
target images that are hard to learn get more neighbours than the :math:`K_0` of the beginning.

Ge and Yu 2017, "Borrowing treasures from the wealthy: deep transfer learning through selective
joint fine-tuning"; ε and w are those of the official code.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import class_labels, expect, expect_counts, expect_weight, wide
from tlcourse.methods.fine_tuning import freeze
from tlcourse.methods.saliency import _find

EPSILON = 2.2e-16
PLACES, BLOCK = 2**17, 1024  # at once: pixels that are filtered, images that are compared
Filters = Tensor | Callable[[Tensor], Sequence[Tensor]]
Train = Callable[[Tensor], Tensor]


def gabor_bank(orientations: int = 6, scales: int = 4, highest: float = 0.35) -> Tensor:
    """Gabor filters: waves under a round bell, in several lengths and directions.

    highest: frequency of the first scale, in waves a pixel; each further one is half an octave
    lower. Returns (2·scales·orientations, 1, S, S) float32: real parts, which are even, then
    imaginary ones, scale by scale, neighbours 180°/orientations apart. Raises ValueError for
    numbers out of range. Ge and Yu 2017 have 4 scales and 6 orientations; the frequencies are ours.
    """
    expect_counts("orientations and scales must be whole numbers", orientations, scales)
    expect(0 < highest <= 0.5, f"highest must be in (0, 0.5], got {highest}")
    f = highest / 2 ** (torch.arange(scales).view(-1, 1, 1, 1) / 2)
    theta = torch.arange(orientations).view(-1, 1, 1) * math.pi / orientations
    sigma = 0.56 / f  # an octave wide
    r = math.ceil(3 * sigma.max())
    y, x = torch.meshgrid(*[torch.arange(-r, r + 1)] * 2, indexing="ij")
    bell = torch.exp((x**2 + y**2) / (-2 * sigma**2)) / (2 * math.pi * sigma**2)
    wave = 2 * math.pi * f * (x * theta.cos() + y * theta.sin())
    return torch.stack([bell * wave.cos(), bell * wave.sin()]).reshape(-1, 1, *x.shape)


def first_layers(model: nn.Module, *layers: str) -> Filters:
    """A network's layers as filters: a function from (N, C, H, W) to a map of each layer.

    layers: names in named_modules(); of convolutions, for maps before the nonlinearity, as in the
    official code. A copy answers, in eval mode, on the model's device: what is learnt later is not
    seen. Raises ValueError for no layer, and one that is not there.
    """
    expect(len(layers) > 0, "layers must name at least one layer, got none")
    net, taken = freeze(copy.deepcopy(model)), dict[str, Tensor]()
    for name in layers:
        part, _ = _find(net, name)
        part.register_forward_hook(lambda *seen, name=name: taken.update({name: seen[2].clone()}))

    def filters(x: Tensor) -> list[Tensor]:
        net(x)
        return [taken[name] for name in layers]

    return filters


def equal_mass_bins(images: Tensor, filters: Filters, bins: int = 32) -> Tensor:
    """The edges between bins that hold equally much each, over the target's images.

    images: the target's, as for `descriptors`; of many, some are used, evenly spaced. Returns
    (channels, bins − 1). Where one value fills several bins, all but one stay empty. Raises
    ValueError for images and filters of another form, bins below 2, and more bins than places.
    Official code: 100 bins, 32 with Gabor filters.
    """
    expect_counts("bins - 1 must be a whole number", bins - 1)
    edges = []
    for A in _maps(images[:: -(-len(images) // _at_once(images))], filters):
        values = wide(A).transpose(0, 1).flatten(1).sort(1).values
        n = values.shape[1]
        expect(n >= bins, f"{bins} bins need as many places in the target's maps, got {n}")
        edge = values[:, torch.arange(1, bins, device=A.device) * n // bins - 1]
        # a little higher: rounding must not move the one value of a flat ground to the next bin
        edges.append(edge + 1e-5 * values.abs().amax(1, keepdim=True))
    return torch.cat(edges)


def descriptors(
    images: Tensor, filters: Filters, bins: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """For each image a histogram of every filter's responses.

    images: (N, C, H, W), uint8 or floats in [0, 1]. filters: those of `first_layers`, or a bank,
    for which colours are averaged and the border continued. bins: the *target's*, for source images
    too; what lies outside goes into the first or last. dtype: float16 for large pools. Returns (N,
    channels, B); each histogram sums to 1. Raises ValueError for images, filters and bins of
    another form. Ge and Yu 2017, section 3.
    """
    expect(isinstance(bins, Tensor), f"bins must be edges, from equal_mass_bins, got {bins}")
    parts = images.split(_at_once(images))
    return torch.cat([_histograms(_maps(part, filters), bins).to(dtype) for part in parts])


def symmetric_kl(p: Tensor, q: Tensor, layers: Sequence[int] | None = None) -> Tensor:
    """The distance d of every p to every q, in nats, without gradient.

    p: (N, C, B), q: (M, C, B). layers: the channels of each, such as (96, 256); one without.
    Returns (N, M), float32 or wider, on p's device; >= 0, to itself 0 up to rounding. Raises
    ValueError for whole numbers and shapes that do not fit. Ge and Yu 2017, section 3.
    """
    w = _shares(p, q, layers)
    both = [h.detach().to(p.device, w.dtype) for h in (p, q)]
    (P, log_P), (Q, log_Q) = (((w * h).flatten(1), (h + EPSILON).log().flatten(1)) for h in both)
    own = (P * log_P).sum(1)[:, None] + (Q * log_Q).sum(1)
    return (own - P @ log_Q.T - log_P @ Q.T).clamp(min=0) / 2


def nearest_sources(
    target: Tensor, source: Tensor, k: int, layers: Sequence[int] | None = None
) -> Tensor:
    """For each target image the k source images nearest to it, the nearest first.

    target: (N, C, B), source: (M, C, B), from `descriptors`; layers as for `symmetric_kl`, which is
    asked block by block. Returns int64 (N, k), positions in source. Raises ValueError for k outside
    [1, M], and descriptors that do not fit.
    """
    expect_counts("k must be a whole number", k)
    expect(k <= len(source), f"k must be <= {len(source)}, the images there are, got {k}")
    rows = []
    for some in target.split(BLOCK):
        near, index = wide(some[:, 0, :0]), torch.empty(len(some), 0).to(some.device, torch.int64)
        for start in range(0, len(source), BLOCK):
            d = symmetric_kl(some, source[start : start + BLOCK], layers)
            new = torch.arange(start, start + d.shape[1], device=d.device).expand(d.shape)
            near, order = torch.cat([near, d], 1).sort(dim=1, stable=True)
            near, index = near[:, :k], torch.cat([index, new], 1).gather(1, order[:, :k])
        rows.append(index)
    return torch.cat(rows)


def iterative_retrieval(
    order: Tensor, labels: Tensor, train: Train, *, k: int, rounds: int, threshold: float
) -> Tensor:
    """Train, give the target images that are hard to learn more neighbours, and train again.

    One that is misclassified gets 4·K₀ more; right, but with an entropy above the threshold (nats),
    2·K₀; else none. order: (N, most), from `nearest_sources`: what an image can get. labels: (N,).
    train: gets a table for `training.paired`, returns logits of the target images. k: :math:`K_0`.
    It ends after so many rounds, or when nobody gets more. Returns int64 (trainings, N): how many
    neighbours each had. Raises ValueError for numbers out of range, and shapes that do not fit.
    Ge and Yu 2017, section 3.
    """
    expect_counts("k and rounds + 1 must be whole numbers", k, rounds + 1)
    expect_weight("threshold", threshold)
    n, most = order.shape
    expect(len(labels) == n, f"order and labels must be of as many images, got {n}, {len(labels)}")
    expect(k <= most, f"k must be <= {most}, what order holds of each image, got {k}")
    counts = [torch.full((n,), k, device=order.device)]
    while True:
        logits = train(_table(order, counts[-1]))
        more = _wanted(logits, labels, threshold).to(order.device) * k
        larger = (counts[-1] + more).clamp(max=most)
        if len(counts) > rounds or torch.equal(larger, counts[-1]):
            return torch.stack(counts)
        counts.append(larger)


class TwoHeads(nn.Module):
    """One trunk and two heads, as they are, not copied. It answers with the target's."""

    def __init__(self, trunk: nn.Module, target: nn.Module, source: nn.Module) -> None:
        super().__init__()
        self.trunk, self.heads = trunk, nn.ModuleDict({"target": target, "source": source})

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, …). Returns the target's logits (N, K)."""
        return self.heads["target"](self.trunk(x))


def joint_loss(model: TwoHeads, batch: Mapping[str, Any], weight: float = 0.5) -> Tensor:
    r"""The objective, in nats: a mean over target images, and one over source images.

    batch: what `training.paired` gives, {"target": …, "source": …}, each with images x and labels
    y. weight: λ in [0, 1]. The trunk sees both in one pass, and so does a BatchNorm in it. Raises
    ValueError for another weight, and labels that do not fit.
    """
    expect(0 <= weight <= 1, f"weight must be in [0, 1], got {weight}")
    both = [batch["target"], batch["source"]]
    h = model.trunk(torch.cat([b.x for b in both])).split([len(b.x) for b in both])
    logits = model.heads["target"](h[0]), model.heads["source"](h[1])
    losses = [F.cross_entropy(wide(z), class_labels(b.y, z)) for z, b in zip(logits, both)]
    return (1 - weight) * losses[0] + weight * losses[1]


def _maps(images: Tensor, filters: Filters) -> list[Tensor]:
    """One (N, C, H, W) of each layer."""
    x = images.float() / 255 if images.dtype == torch.uint8 else wide(images)
    if isinstance(filters, Tensor):
        x = F.pad(x.mean(1, keepdim=True), [filters.shape[-1] // 2] * 4, mode="replicate")
        return [F.conv2d(x, filters.to(x))]
    maps = list(filters(x))
    fits = len(maps) > 0 and all(A.ndim == 4 and len(A) == len(x) for A in maps)
    came = ", ".join(str(tuple(A.shape)) for A in maps) or "none"
    expect(fits, f"filters must give maps ({len(x)}, C, H, W), got {came}")
    return maps


def _histograms(maps: list[Tensor], bins: Tensor) -> Tensor:
    channels, shape, found = [A.shape[1] for A in maps], tuple(bins.shape), []
    expect(shape[0] == sum(channels), f"bins must be edges ({sum(channels)}, B - 1), got {shape}")
    for A, edges in zip(maps, bins.split(channels)):
        values = wide(A).transpose(0, 1).flatten(1)
        inside = torch.searchsorted(edges.to(values), values).view(A.shape[1], len(A), -1)
        counts = values.new_zeros(*inside.shape[:2], bins.shape[1] + 1)
        counts.scatter_add_(2, inside, torch.ones_like(inside, dtype=counts.dtype))
        found.append(counts.transpose(0, 1) / inside.shape[2])
    return torch.cat(found, 1)


def _shares(p: Tensor, q: Tensor, layers: Sequence[int] | None) -> Tensor:
    """The weights w, (C, 1)."""
    shapes = f"{tuple(p.shape)} and {tuple(q.shape)}"
    fits = p.ndim == q.ndim == 3 and p.shape[1:] == q.shape[1:] and p.is_floating_point()
    expect(fits, f"descriptors must be floats (N, C, B) and (M, C, B), got {shapes}")
    parts = [p.shape[1]] if layers is None else layers
    fits = sum(parts) == p.shape[1] and min(parts) > 0
    expect(fits, f"layers must add up to {p.shape[1]} channels, got {layers}")
    shares = [1 / c / len(parts) for c in parts for _ in range(c)]
    return torch.tensor(shares, dtype=wide(p[:0]).dtype, device=p.device)[:, None]


def _wanted(logits: Tensor, labels: Tensor, threshold: float) -> Tensor:
    """How many times :math:`K_0` more each image gets: 4, 2 or 0."""
    wrong = logits.argmax(1) != class_labels(labels, logits).to(logits.device)
    entropy = torch.special.entr(wide(logits).softmax(1)).sum(1)
    return torch.where(wrong, 4, torch.where(entropy > threshold, 2, 0))


def _table(order: Tensor, counts: Tensor) -> Tensor:
    """The first counts[i] of each row; a short one repeats its own, spread evenly."""
    largest = int(counts.max())
    return order.gather(1, torch.arange(largest, device=order.device) * counts[:, None] // largest)


def _at_once(images: Tensor) -> int:
    """How many images are filtered at once."""
    shape, kind = tuple(images.shape), images.dtype
    fits = len(shape) == 4 and 0 not in shape and (kind == torch.uint8 or kind.is_floating_point)
    expect(fits, f"images must be bytes or floats (N, C, H, W), not empty, got {kind} {shape}")
    return max(1, PLACES // (shape[2] * shape[3]))
