"""Exercises on weighing losses, of the chapter on learning several tasks."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import trained

OfOne = Callable[[Tensor], Tensor]


def weighted_total(losses: Tensor, s: Tensor, kinds: Sequence[str]) -> Tensor:
    """Σ a e⁻ˢ L + ½ s, with e⁻ˢ = 1 / σ² and ½ s = log σ."""
    a = torch.tensor([1.0 if kind == "classification" else 0.5 for kind in kinds])
    return (a * torch.exp(-s) * losses + s / 2).sum()


def optimizer_of_both(
    network: nn.Module, weighting: Any, lr: float, s_lr: float, decay: float
) -> torch.optim.Optimizer:
    """`parameters()` finds no tensors in a list; and s has no reason to be near 0."""
    groups = [
        {"params": network.parameters(), "lr": lr, "weight_decay": decay},
        {"params": weighting.s, "lr": s_lr, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups)


def best_s(L: float, kind: str) -> tuple[float, float, float]:
    """The slope is 0 where a e⁻ˢ L = ½; the total, ½ + ½ s, is negative if s < −1."""
    twice_a = 2 if kind == "classification" else 1
    s = np.log(twice_a * L)
    return s, (1 + s) / 2, np.exp(-1) / twice_a


def sum_of_means(seg: Tensor, inst: Tensor, depth: Tensor, item: Tensor) -> Tensor:
    """Each task's errors are divided by the number of its own pixels."""
    n = item.sum().clamp(min=1)  # a batch may have no item
    return seg.mean() + (inst * item).sum() / n + depth.mean()


class AsFound(nn.Module):
    """A module that holds s in a list of plain tensors, where `parameters()` does not look."""

    def __init__(self, tasks: int) -> None:
        super().__init__()
        self.s = [torch.zeros((), requires_grad=True) for _ in range(tasks)]


def rate_and_decay_of_each(optimizer: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a small network's parameters and of s. Whether biases decay is free."""
    torch.manual_seed(0)
    network, weighting = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)), AsFound(2)
    found = optimizer(network=network, weighting=weighting, **inputs)
    if not isinstance(found, torch.optim.Optimizer):
        raise Told(f"Not yet: return the optimizer; got {type(found).__name__}.")
    groups = [(group, {id(p) for p in group["params"]}) for group in found.param_groups]

    def how(p: Tensor, decays: bool = True) -> str:
        for group, ids in groups:
            if id(p) in ids:
                decay = f", decay {group.get('weight_decay', 0):.4g}" if decays else ""
                return f"rate {float(group['lr']):.4g}{decay}"
        return "in no group"

    s = tried(list, [], weighting.s) if not isinstance(weighting.s, Tensor) else [weighting.s]
    network_ = (f"{name}: {how(p, p.ndim > 1)}" for name, p in network.named_parameters())
    return {
        "the network's parameters": "; ".join(network_),
        "s": "; ".join(sorted({how(p) for p in s})),
    }


def three_numbers(best: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Each by its name."""
    found = best(**inputs)
    if tried(len, 0, found) != 3:
        raise Told("Not yet: return three numbers: the best s, the total there, and the bound.")
    parts = "the best s", "the total at the best s", "the loss below which that is negative"
    return dict(zip(parts, found))


def loss_and_gradients(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """A loss of NaN has no gradients, whatever autograd makes of it."""
    seen = trained("seg", "inst", "depth")(loss, inputs)
    none = tried(lambda: bool(torch.as_tensor(seen["the loss"]).isnan()), False)
    return {part: np.nan if none and isinstance(x, Tensor) else x for part, x in seen.items()}


def _for_total(g: Generator, size: int) -> dict[str, Any]:
    """Noise is about as large as the loss, so that some totals are negative."""
    s, off = (torch.randn(1 + size % 3, generator=g) for _ in range(2))
    s = 2 * s - 1
    kinds = [("regression", "classification")[(i + size) % 2] for i in range(len(s))]
    return {"losses": (s + off).exp(), "s": s, "kinds": kinds}


def _for_optimizer(g: Generator, size: int) -> dict[str, Any]:
    return {"lr": size / 1000, "s_lr": size / 50, "decay": size / 10}


def _for_best(g: Generator, size: int) -> dict[str, Any]:
    L = (0.1, 0.25, 1.0, 4.0)[(size - 1) // 2]
    return {"L": L, "kind": ("classification", "regression")[size % 2]}


def _for_means(g: Generator, size: int) -> dict[str, Any]:
    """From the third size on one picture has no item; in the fourth none has."""
    shape = (size + 1) // 2, 2, size + 1
    seg, inst, depth = (torch.randn(*shape, generator=g).abs() for _ in range(3))
    item = torch.rand(*shape, generator=g) < 0.4
    item[..., 0], item[..., 1] = True, False
    item[: (shape[0] if size == 4 else int(size > 2))] = False
    return {"seg": seg, "inst": inst, "depth": depth, "item": item}


def _weighted(
    weight: OfOne = lambda s: torch.exp(-s),
    price: OfOne = lambda s: s / 2,
    a: tuple[float, float] = (1.0, 0.5),
    total: OfOne = torch.sum,
) -> Function:
    """A version of the total. a: of a classification, and of a regression."""

    def weighted(losses: Tensor, s: Tensor, kinds: Sequence[str]) -> Tensor:
        factors = torch.tensor([a[kind != "classification"] for kind in kinds])
        return total(factors * weight(s) * losses + price(s))

    return weighted


def _optimizer(*groups: tuple[str, str, bool]) -> Function:
    """A version of the optimizer: whose parameters, the name of their rate, and the decay."""

    def optimizer(
        network: nn.Module, weighting: AsFound, lr: float, s_lr: float, decay: float
    ) -> torch.optim.Optimizer:
        learns = [*network.parameters()]
        of = {"network": learns, "s": weighting.s, "both": [*learns, *weighting.s]}
        rates = {"lr": lr, "s_lr": s_lr}
        return torch.optim.AdamW(
            [
                {"params": of[which], "lr": rates[rate], "weight_decay": decay * decays}
                for which, rate, decays in groups
            ]
        )

    return optimizer


def _best(
    k: tuple[float, float] = (2, 1),
    s: Callable[[float], float] = np.log,
    total: Callable[[float], float] = lambda x: (1 + np.log(x)) / 2,
    bound: Callable[[float], float] = lambda k: np.exp(-1) / k,
) -> Function:
    """A version of the three numbers, by x = k·L; k of a classification, and of a regression."""

    def best(L: float, kind: str) -> tuple[float, float, float]:
        factor = k[kind != "classification"]
        return s(factor * L), total(factor * L), bound(factor)

    return best


def _at_log_L(L: float, kind: str) -> tuple[float, float, float]:
    """What comes of it, if the rest is right."""
    s, twice_a = np.log(L), 2 if kind == "classification" else 1
    return s, (twice_a + s) / 2, np.exp(-twice_a)


def _over(e: Tensor, item: Tensor) -> Tensor:
    return (e * item).sum() / item.sum().clamp(min=1)


def _everywhere(e: Tensor, item: Tensor) -> Tensor:
    return e.mean()


def _divided_by_all(e: Tensor, item: Tensor) -> Tensor:
    return (e * item).mean()


def _without_floor(e: Tensor, item: Tensor) -> Tensor:
    return (e * item).sum() / item.sum()


def _by_picture(least: int) -> Callable[[Tensor, Tensor], Tensor]:
    return lambda e, item: ((e * item).sum((1, 2)) / item.sum((1, 2)).clamp(min=least)).mean()


def _means(
    of_inst: Callable[[Tensor, Tensor], Tensor] = _over,
    of_depth: Callable[[Tensor, Tensor], Tensor] = _everywhere,
    of_seg: Callable[[Tensor, Tensor], Tensor] = _everywhere,
) -> Function:
    """A version of the sum: how each task's errors become a number."""

    def means(seg: Tensor, inst: Tensor, depth: Tensor, item: Tensor) -> Tensor:
        return of_seg(seg, item) + of_inst(inst, item) + of_depth(depth, item)

    return means


EXERCISES: dict[str, Exercise] = {
    "uncertainty_weighting": Exercise(
        title="how noisy each task is",
        task="Write `my_total(losses, s, kinds)`: what is minimised, one number. `losses` (T,) has "
        "the mean loss of each task: a cross-entropy, or a mean squared error. `s` (T,) is log σ² "
        'of each, and `kinds` says "classification" or "regression". A regression gives '
        "L / 2σ² + log σ, a classification L / σ² + log σ; all are added up. Losses and `s` are "
        "trained through it.",
        kind="write",
        difficulty=2,
        minutes=8,
        core=True,
        reference=weighted_total,
        axes=("task",),
        draw=_for_total,
        see=trained("losses", "s"),
        mistakes=[
            (
                "s is kept at 0 or above, σ at 1 or above. Below, s gets no gradient, and a task "
                "with little noise never gets its weight.",
                _weighted(lambda s: torch.exp(-s.clamp(min=0)), lambda s: s.clamp(min=0) / 2),
            ),
            (
                "the total is kept at 0 or above. It may be negative, for a density may exceed 1; "
                "clipped, it teaches nothing there.",
                _weighted(total=lambda parts: parts.sum().clamp(min=0)),
            ),
            (
                "each task's part is kept at 0 or above. It may be negative, for a density may "
                "exceed 1; clipped, it teaches nothing there.",
                _weighted(total=lambda parts: parts.clamp(min=0).sum()),
            ),
            (
                "this is the absolute value of the total. It may be negative, for a density may "
                "exceed 1; there, this would make all losses larger.",
                _weighted(total=lambda parts: parts.sum().abs()),
            ),
            (
                "log(1 + σ²) stands in the place of log σ², which keeps the total above 0. Some "
                "do so; it is another loss, with another best s.",
                _weighted(price=lambda s: F.softplus(s) / 2),
            ),
            (
                "the noisier a task, the more it counts here: 1 / σ² is e to the minus s.",
                _weighted(torch.exp),
            ),
            (
                "the losses are divided by σ, not by σ²: e⁻ˢ is 1 / σ² already.",
                _weighted(lambda s: torch.exp(-s / 2)),
            ),
            (
                "s is taken for log σ; it is log σ².",
                _weighted(lambda s: torch.exp(-2 * s), lambda s: s),
            ),
            (
                "s is taken for σ²; it is its logarithm, and may be negative.",
                _weighted(lambda s: 1 / s, lambda s: s.log() / 2),
            ),
            (
                "s is taken for σ; it is log σ², and may be negative.",
                _weighted(lambda s: 1 / s.square(), torch.log),
            ),
            (
                "log σ is missing: without a price for noise, s grows without end and all weights "
                "go to 0.",
                _weighted(price=lambda s: 0 * s),
            ),
            (
                "s is added whole: log σ is half of log σ².",
                _weighted(price=lambda s: s),
            ),
            (
                "a classification has no ½ before its loss; it comes from the exponent of the "
                "normal density.",
                _weighted(a=(0.5, 0.5)),
            ),
            (
                "a regression has a ½ before its loss, from the exponent of the normal density.",
                _weighted(a=(1.0, 1.0)),
            ),
            (
                "the ½ stands before the wrong losses: it belongs to the regressions.",
                _weighted(a=(0.5, 1.0)),
            ),
            (
                "e⁻ˢ L + s for all tasks, as in a demo of the authors: right for a regression, but "
                "for a factor 2; for a classification it is another loss.",
                _weighted(price=lambda s: s, a=(1.0, 1.0)),
            ),
            (
                "this is the mean over the tasks; add them up.",
                _weighted(total=torch.mean),
            ),
            (
                "the value is right, but the weights are detached from s: it feels only its price, "
                "and falls without end.",
                _weighted(lambda s: torch.exp(-s.detach())),
            ),
            (
                "the value is right, but s gets no gradient, so the weights stay as they are.",
                lambda losses, s, kinds: weighted_total(losses, s.detach(), kinds),
            ),
        ],
        hints=[
            "Which power of e is 1 / σ², and which multiple of s is log σ?",
            "`torch.exp(-s)` is 1 / σ², and `s / 2` is log σ. Which of the two kinds has another "
            "½, and where?",
            '`a = torch.tensor([1.0 if kind == "classification" else 0.5 for kind in kinds])`; '
            "sum `a * torch.exp(-s) * losses + s / 2`. Keep it negative where it is.",
        ],
    ),
    "why_negative": Exercise(
        title="less than nothing",
        task='One task with loss `L` > 0 adds L / (2σ²) + ½ s if its `kind` is "regression", and '
        'L / σ² + ½ s if it is "classification"; s = log σ². Complete `my_best(L, kind)`: three '
        "numbers, the s at which that is least, the value there, and the bound: the loss below "
        "which this value is negative. Predict first: which of the losses 0.1, 0.25 and 1 make it "
        "negative for a regression, and which for a classification?",
        kind="complete",
        difficulty=2,
        minutes=7,
        reference=best_s,
        draw=_for_best,
        see=three_numbers,
        mistakes=[
            (
                "for a classification the best s is log 2L, where its slope −e⁻ˢL + ½ is 0. The "
                "rest is right for your s.",
                _at_log_L,
            ),
            (
                "all three are right for a regression; a classification has no ½ before its loss, "
                "and its best s is log 2L.",
                _best(k=(1, 1)),
            ),
            (
                "all three are right for a classification; a regression has a ½ before its loss, "
                "and its best s is log L.",
                _best(k=(2, 2)),
            ),
            (
                "the two kinds are exchanged: it is the regression that has a ½ before its loss.",
                _best(k=(1, 2)),
            ),
            (
                "s has the wrong sign: the larger the loss, the more noise.",
                _best(s=lambda x: -np.log(x)),
            ),
            ("the first number is σ²; s is its logarithm.", _best(s=lambda x: x)),
            ("the first number is log σ; s is log σ².", _best(s=lambda x: np.log(x) / 2)),
            (
                "the total is ½ s alone. The first term is not 0 there: it is ½, whatever the "
                "loss.",
                _best(total=lambda x: np.log(x) / 2, bound=lambda k: 1 / k),
            ),
            (
                "the bound is where s changes its sign; the total is ½ + ½ s, and does so later.",
                _best(bound=lambda k: 1 / k),
            ),
            (
                "the bound is that of s, −1; asked is the loss there.",
                _best(bound=lambda k: -1.0),
            ),
            (
                "the bound is a regression's for both; a classification's is half of it, since its "
                "s is log 2L.",
                _best(bound=lambda k: np.exp(-1)),
            ),
            (
                "the bound has the wrong sign in its exponent: ½ + ½ s is 0 at s = −1.",
                _best(bound=lambda k: np.exp(1) / k),
            ),
            (
                "the total is kept at 0 or above. It may be negative: that is what is asked.",
                _best(total=lambda x: max(0.0, (1 + np.log(x)) / 2)),
            ),
            (
                "the total is an absolute value. It may be negative: that is what is asked.",
                _best(total=lambda x: abs(1 + np.log(x)) / 2),
            ),
        ],
        hints=[
            "Write the first term as a · e⁻ˢ · L. What is its slope in s, and where does it cancel "
            "the slope of ½ s?",
            "e to the s is 2aL, with a = ½ or 1. So what is the first term there, whatever L?",
            "s = log 2aL, and the total is ½ + ½ s. It is 0 at s = −1: solve log 2aL = −1 for L.",
        ],
    ),
    "find_the_bug_means": Exercise(
        title="find the bugs",
        task="A sum of three means, as one finds it. With few items in a picture one task is "
        "hardly learnt, another never learns the ground, and one batch made it NaN. `seg`, `inst` "
        "and `depth` are errors of pixels, (N, H, W). `seg` and `depth` are meant for every pixel, "
        "`inst` only for those of items, where `item` is True; elsewhere it means nothing. Repair "
        "`my_sum(seg, inst, depth, item)`: the sum of the three tasks' mean errors, each over its "
        "own pixels of the batch. Where no picture has an item, `inst` adds 0.",
        kind="repair",
        difficulty=1,
        minutes=6,
        reference=sum_of_means,
        axes=("picture", "row", "column"),
        draw=_for_means,
        see=loss_and_gradients,
        mistakes=[
            (
                "this is the sum as it was found.",
                _means(_divided_by_all, _without_floor),
            ),
            (
                "`inst` is divided by its own pixels now, but `depth` is still over items alone: "
                "it never learns the ground, and is NaN without items.",
                _means(_over, _without_floor),
            ),
            (
                "`depth` is over all pixels now, but `inst` is still divided by all of them: the "
                "fewer items there are, the less it counts.",
                _means(_divided_by_all),
            ),
            (
                "the means are right, but a batch without any item is 0 / 0, NaN.",
                _means(_without_floor),
            ),
            (
                "the value is right, but its gradient is NaN without items: `nan_to_num` comes "
                "after the division. Divide by at least 1.",
                _means(lambda e, item: _without_floor(e, item).nan_to_num()),
            ),
            (
                "`inst` is a sum over its pixels; divide by how many they are.",
                _means(lambda e, item: (e * item).sum()),
            ),
            (
                "`inst` counts on the ground, too, where it means nothing.",
                _means(_everywhere),
            ),
            (
                "all three are over the pixels of items; `seg` and `depth` are meant for every "
                "pixel.",
                _means(_over, _over, _over),
            ),
            (
                "`depth` is still over the pixels of items; it is meant for every pixel.",
                _means(_over, _over),
            ),
            (
                "each picture has a mean of its own, so a pixel counts the more the fewer there "
                "are. Divide once, for the batch.",
                _means(_by_picture(1)),
            ),
            (
                "each picture has a mean of its own, which is 0 / 0, NaN, if it has no item. "
                "Divide once, for the batch, and by at least 1.",
                _means(_by_picture(0)),
            ),
        ],
        hints=[
            "By how many pixels is each of the three sums divided? By how many should it be?",
            "`(inst * item).mean()` divides by N·H·W. What is the mean over nothing?",
            "`(inst * item).sum() / item.sum().clamp(min=1)`; the others are plain means.",
        ],
    ),
    "find_the_bug_weighting": Exercise(
        title="find the bugs",
        task="An optimizer as one finds it: the parameters of `network` and of `weighting` all "
        "go into one `AdamW`, and yet each s stays at 0 to the last digit. `weighting.s` is a list "
        "with a plain tensor for each task. And once s learns, it is slow, and drawn back to 0. "
        "Repair `my_optimizer(network, weighting, lr, s_lr, decay)`: return an optimizer in which "
        "the network learns at the rate `lr` with weight decay `decay`, and each s at `s_lr` with "
        "none.",
        kind="repair",
        difficulty=2,
        minutes=7,
        core=True,
        reference=optimizer_of_both,
        draw=_for_optimizer,
        see=rate_and_decay_of_each,
        mistakes=[
            (
                "s is in no group, as in the function as it was found: `parameters()` finds what "
                "is registered, and no plain tensors in a list; copies do not help.",
                _optimizer(("network", "lr", True)),
            ),
            (
                "s is in no group, for `parameters()` finds no plain tensors in a list; and now "
                "the network does not decay, either.",
                _optimizer(("network", "lr", False)),
            ),
            (
                "s learns now, but weight decay draws it to 0, that is σ to 1; and it is as slow "
                "as the network.",
                _optimizer(("both", "lr", True)),
            ),
            (
                "s learns now, at its own rate, but weight decay draws it to 0, that is σ to 1. A "
                "group without `weight_decay` takes the optimizer's.",
                _optimizer(("network", "lr", True), ("s", "s_lr", True)),
            ),
            (
                "s learns now and does not decay, but at the network's rate; its own is `s_lr`.",
                _optimizer(("network", "lr", True), ("s", "lr", False)),
            ),
            (
                "s is in it now, but decay is off for all; the network should keep its own. And s "
                "learns at the network's rate.",
                _optimizer(("both", "lr", False)),
            ),
            (
                "s is as it should be, but the network does not decay any more.",
                _optimizer(("network", "lr", False), ("s", "s_lr", False)),
            ),
            (
                "s is as it should be, but the network learns at `s_lr`, too.",
                _optimizer(("network", "s_lr", True), ("s", "s_lr", False)),
            ),
            (
                "the two rates are exchanged: s learns at `s_lr`.",
                _optimizer(("network", "s_lr", True), ("s", "lr", False)),
            ),
            ("the network is in no group.", _optimizer(("s", "s_lr", False))),
        ],
        hints=[
            "Print `list(weighting.parameters())`. What is in it?",
            "A module registers an `nn.Parameter`, and no tensor in a list. And what does weight "
            "decay do to a log σ² that should be −4?",
            'Two groups, dictionaries with "params", "lr" and "weight_decay": '
            "`network.parameters()`, and `weighting.s` with a decay of 0.",
        ],
    ),
}
