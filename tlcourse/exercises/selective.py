"""Exercises on finding similar images, of the chapter on learning several tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tlcourse.exercises._compare import Told, _numbers, tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.methods.selective import EPSILON

Layers = Sequence[int]


def distances(p: Tensor, q: Tensor, layers: Layers) -> Tensor:
    """½ Σ w (p − q)(log p − log q) over channels and bins, of every p with every q."""
    w = torch.cat([torch.full((c,), 1 / len(layers) / c) for c in layers])
    log_p, log_q = (p + 2.2e-16).log(), (q + 2.2e-16).log()
    each = (p[:, None] - q) * (log_p[:, None] - log_q)  # (N, M, C, B)
    return (w[:, None] * each).sum((2, 3)) / 2


def edges_of_equal_mass(target: Tensor, source: Tensor, bins: int) -> Tensor:
    """The last value of each bin but the last, channel by channel."""
    values = target.transpose(0, 1).flatten(1).sort(dim=1).values
    last = torch.arange(1, bins) * values.shape[1] // bins - 1
    return values[:, last]


def numbers_or_nan(distance: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What it returns; whether a number is infinite or none depends on how the sum is written."""
    found = distance(**inputs)

    def finite() -> Any:
        x = _numbers(found)
        if x.shape != (len(inputs["p"]), len(inputs["q"])):
            return found
        return torch.where(x.isfinite(), x, float("nan"))

    return {"": tried(finite, found)}


def share_of_each_bin(edges: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """How the target's values are spread; where an edge stands between two of them is free."""
    target, bins = inputs["target"], inputs["bins"]
    found, shape = edges(**inputs), (target.shape[1], bins - 1)
    x = tried(lambda: _numbers(found).float(), None)
    if x is None or x.shape != shape:
        got = type(found).__name__ if x is None else f"shape {tuple(x.shape)}"
        raise Told(
            f"Not yet: return bins − 1 edges, the inner ones, of each channel: {shape}; got {got}."
        )
    values = target.transpose(0, 1).flatten(1)
    inside = (values[:, :, None] > x[:, None]).sum(2)
    shares = F.one_hot(inside, bins).float().mean(1)
    return {"the share of the target's values in each bin": shares}


def _for_distance(g: Generator, size: int) -> dict[str, Any]:
    """From the second size on some bins are empty, but none of the last; before, a p is a q."""
    layers = ([3], [2, 1], [1, 2, 1])[size % 3]
    p, q = (
        torch.randint(0, 4, (n, sum(layers), size + 2), generator=g).float()
        for n in (size, size + 1)
    )
    for h in (p, q):
        h[..., 0] += 1
        h[0, 0, 1] = 0
        h[-1 if size > 1 else slice(None)] += 1
        h /= h.sum(2, keepdim=True)
    if size == 1:
        q[0] = p[0]
    return {"p": p, "q": q, "layers": layers}


def _for_edges(g: Generator, size: int) -> dict[str, Any]:
    """Squares, so that equal widths are not equal mass, and exact in half precision."""
    N, bins = 2 + (size > 3), 3 + (size - 1) % 3
    n, scales = N * bins, torch.tensor([1.0, -0.5])[:, None]
    target, source = (
        (torch.stack([torch.randperm(n, generator=g) + 1 for _ in scales]) ** power * scales)
        .view(2, N, 1, bins)
        .transpose(0, 1)
        .contiguous()
        for power in (2, 1)
    )
    return {"target": target, "source": source, "bins": bins}


def _shares(layers: Layers) -> Tensor:
    return torch.tensor([1 / len(layers) / c for c in layers for _ in range(c)])


def _both_ways(p: Tensor, q: Tensor) -> Tensor:
    return (p - q) * ((p + EPSILON).log() - (q + EPSILON).log())


def _one_way(p: Tensor, q: Tensor) -> Tensor:
    return p * ((p + EPSILON).log() - (q + EPSILON).log())


def _sum(d: Tensor) -> Tensor:
    return d.sum((2, 3))


def _distance(
    each: Callable[[Tensor, Tensor], Tensor] = _both_ways,
    weights: Callable[[Layers], Tensor] = _shares,
    total: Callable[[Tensor], Tensor] = lambda d: _sum(d) / 2,
) -> Function:
    """A version of the distance: of one bin, the channels' weights, and how it is summed."""

    def distance(p: Tensor, q: Tensor, layers: Layers) -> Tensor:
        return total(weights(layers)[:, None] * each(p[:, None], q[None]))

    return distance


def _each(x: Tensor) -> Tensor:
    """(N, C, H, W) channel by channel."""
    return x.transpose(0, 1).flatten(1)


def _together(x: Tensor) -> Tensor:
    """All values in one row, for each channel."""
    return x.flatten().expand(x.shape[1], -1)


def _places(bins: int) -> Tensor:
    return torch.arange(1, bins) / bins


def _edges(
    values: Callable[[Tensor, Tensor], Tensor],
    places: Callable[[int], Tensor] = _places,
    how: str = "lower",
) -> Function:
    """A version of the edges: quantiles of which values, and where."""

    def edges(target: Tensor, source: Tensor, bins: int) -> Tensor:
        rows = values(target, source)
        return torch.quantile(rows, places(bins), dim=1, interpolation=how).T

    return edges


def _of_equal_width(values: Callable[[Tensor], Tensor]) -> Function:
    def edges(target: Tensor, source: Tensor, bins: int) -> Tensor:
        rows = values(target)
        low, high = rows.amin(1, keepdim=True), rows.amax(1, keepdim=True)
        return low + (high - low) * _places(bins)

    return edges


EXERCISES: dict[str, Exercise] = {
    "equal_mass_bins": Exercise(
        title="bins that hold equally much",
        task="A filter's responses crowd around 0, so bins of equal width would be almost empty, "
        "or overfull. Complete `my_edges(target, source, bins)`: the `bins` − 1 edges between the "
        "bins of each channel, (C, `bins` − 1), such that each bin holds the same share of the "
        "target's values in that channel. `target` and `source` are maps (N, C, H, W), and N·H·W "
        "can be divided by `bins`; source images will be counted in the same bins. A value on an "
        "edge belongs to the bin below.",
        kind="complete",
        difficulty=1,
        minutes=6,
        core=True,
        reference=edges_of_equal_mass,
        axes=("channel", "bin"),
        draw=_for_edges,
        see=share_of_each_bin,
        mistakes=[
            (
                "the bins have equal widths; they should hold equally many values. Sort them.",
                _of_equal_width(_each),
            ),
            (
                "the bins have equal widths, and are the same for all channels.",
                _of_equal_width(_together),
            ),
            (
                "the edges are over all channels together, so a filter with strong responses has "
                "its values in a few bins. Each channel has edges of its own.",
                _edges(lambda target, source: _together(target)),
            ),
            (
                "the edges are the source's. It is the target whose images must be told apart.",
                _edges(lambda target, source: _each(source)),
            ),
            (
                "target and source are put together; the edges are the target's alone.",
                _edges(lambda target, source: torch.cat([_each(target), _each(source)], 1)),
            ),
            (
                "each edge is one value too high: it is the first of the bin above, and a value on "
                "an edge belongs below. Counted from 0, the last of the first n/B is n/B − 1.",
                _edges(lambda target, source: _each(target), how="higher"),
            ),
            (
                "least and largest value are among the edges, so nothing is left outside of them. "
                "The inner ones stand at 1/B, 2/B, …, (B − 1)/B.",
                _edges(
                    lambda target, source: _each(target),
                    lambda bins: torch.linspace(0, 1, bins - 1),
                ),
            ),
        ],
        hints=[
            "If you sort the n values of a channel, how many of them go into the first bin?",
            "`target.transpose(0, 1).flatten(1)` has a row for each channel; sort it. Where does "
            "the last value of bin 1 stand, of bin 2, …?",
            "At `torch.arange(1, bins) * n // bins - 1`, counted from 0. `torch.quantile` at the "
            "same shares does as well.",
        ],
    ),
    "symmetric_kl": Exercise(
        title="how far apart two images are",
        task="Write `my_distance(p, q, layers)`: how far every p (N, C, B) is from every q "
        "(M, C, B), a table (N, M). Each image has a histogram of B bins for each of C channels. "
        "KL divergences of both directions, in nats, are summed over the bins, averaged over the "
        "two directions, and summed over channels with weights: `layers`, such as `[96, 256]`, "
        "says how many channels each layer has, in order; layers have equal shares of 1, which "
        "their channels divide equally. Bins may be empty: ε = 2.2e-16 is added inside each "
        "logarithm.",
        kind="write",
        difficulty=2,
        minutes=10,
        reference=distances,
        axes=("p", "q"),
        draw=_for_distance,
        see=numbers_or_nan,
        mistakes=[
            (
                "this is KL(p‖q) alone, which counts little where p is empty and q is not. Add "
                "KL(q‖p), and halve.",
                _distance(_one_way, total=_sum),
            ),
            (
                "this is KL(q‖p) alone, which counts little where q is empty and p is not. Add "
                "KL(p‖q), and halve.",
                _distance(lambda p, q: _one_way(q, p), total=_sum),
            ),
            ("this is half of KL(p‖q); KL(q‖p) is missing.", _distance(_one_way)),
            (
                "an empty bin in either histogram makes the distance infinite or NaN: some "
                "logarithm or quotient has no ε.",
                _distance(lambda p, q: (p - q) * (p.log() - q.log())),
            ),
            (
                "an empty bin of q makes the distance infinite or NaN: ε is added to p alone.",
                _distance(lambda p, q: (p - q) * ((p + EPSILON).log() - q.log())),
            ),
            (
                "an empty bin of p makes the distance infinite or NaN: ε is added to q alone.",
                _distance(lambda p, q: (p - q) * (p.log() - (q + EPSILON).log())),
            ),
            (
                "twice as much: the two directions are averaged, so there is a ½.",
                _distance(total=_sum),
            ),
            (
                "the channels are added up without weights.",
                _distance(weights=lambda layers: torch.ones(sum(layers))),
            ),
            (
                "all channels count alike, so a layer with many outweighs the others. Each layer "
                "has the same share.",
                _distance(weights=lambda layers: torch.ones(sum(layers)) / sum(layers)),
            ),
            (
                "each layer has the share 1; all of them together have it.",
                _distance(weights=lambda layers: _shares(layers) * len(layers)),
            ),
            (
                "each channel has its layer's whole share; the channels of a layer divide it.",
                _distance(weights=lambda layers: torch.ones(sum(layers)) / len(layers)),
            ),
            (
                "the weights stand in the wrong order: the first `layers[0]` channels are the "
                "first layer's.",
                _distance(weights=lambda layers: _shares(layers).flip(0)),
            ),
            (
                "this is the mean over the bins; sum over them.",
                _distance(total=lambda d: d.mean(3).sum(2) / 2),
            ),
            (
                "the table is turned: a row for each p, a column for each q.",
                _distance(total=lambda d: _sum(d).T / 2),
            ),
        ],
        hints=[
            "Write KL(p‖q) + KL(q‖p) as one sum over bins. What is it that the logarithms share?",
            "It is Σ (p − q)(log p − log q). `p[:, None]` and `q` make (N, M, C, B) of it. And "
            "what is the weight of one of 256 channels, in the second of two layers?",
            "`w` is 1 / len(layers) / c, c times for each layer of c channels; "
            "`(w[:, None] * each).sum((2, 3)) / 2`, with `(p + 2.2e-16).log()`.",
        ],
    ),
}
