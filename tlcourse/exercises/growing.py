"""Exercises on growing a network, of the chapter on fine-tuning."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import gradients

Pair = tuple[nn.Linear, nn.Linear]


def scaled_norm(old: Tensor, new: Tensor, gamma: Tensor) -> Tensor:
    """γ · h / max(‖h‖₂, 1e-4), each block and each sample by itself."""
    blocks = [h / h.norm(dim=1, keepdim=True).clamp(min=1e-4) for h in (old, new)]
    return gamma * torch.cat(blocks, dim=1)


def widened(layer: nn.Linear, head: nn.Linear, units: int) -> Pair:
    """New units are random and the head does not hear them yet."""
    n = layer.out_features
    wider = torch.nn.Linear(layer.in_features, n + units)
    wider_head = torch.nn.Linear(n + units, head.out_features)
    with torch.no_grad():
        wider.weight[:n] = layer.weight
        wider.bias[:n] = layer.bias
        wider_head.weight[:, :n] = head.weight
        wider_head.weight[:, n:] = 0
        wider_head.bias.copy_(head.bias)
    return wider, wider_head


def value_and_gradients(norm: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What it returns, and the gradients of a weighted sum of it."""

    shape = len(inputs["old"]), len(inputs["gamma"])

    def total(**given: Any) -> Any:
        found = norm(**given)
        if not isinstance(found, Tensor):
            return 0.0  # no gradient
        if found.shape != shape:
            raise Told(f"Not yet: it must have shape {shape} here, and has {tuple(found.shape)}.")
        return (found.flatten() * (torch.arange(found.numel()) % 4 - 1.5).to(found.dtype)).sum()

    value = norm(**inputs)
    slopes = gradients(total, inputs, "old", "new", "gamma")
    return {"": value, **{f"the gradient at `{at}`": slopes[at] for at in ("old", "new", "gamma")}}


def what_widening_does(widen: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """In words what became of the answers, and how many units get or give a gradient."""
    torch.manual_seed(inputs["seed"])
    n = inputs["old_units"]
    layer, head, x = nn.Linear(3, n), nn.Linear(n, 2), 10 * torch.randn(64, 3)
    h = layer(x).relu().detach()
    z = head(h).detach()
    found = widen(layer=layer, head=head, units=inputs["units"])
    pair = isinstance(found, tuple | list) and len(found) == 2
    if not (pair and all(isinstance(part, nn.Module) for part in found)):
        raise Told("Not yet: return two modules, the wider layer and its head.")
    wider, wider_head = found
    pre = wider(x).detach().requires_grad_()
    if pre.shape[1] != n + inputs["units"]:
        wanted = f"{n} old and {inputs['units']} new units"
        raise Told(f"Not yet: the wider layer must have {wanted}, and it has {pre.shape[1]}.")
    H = pre.relu()
    answers = tried(wider_head, None, H)
    if answers is None or answers.shape != z.shape:
        raise Told(
            "Not yet: the head must read all units, and answer for as many classes as before."
        )
    (slope,) = torch.autograd.grad(answers.square().sum(), pre)
    can_learn = (H != 0).any(0) | (slope != 0).any(0)
    quiet = wider_head(torch.cat([H[:, :n], torch.zeros_like(H[:, n:])], 1))
    copies = all(any(_near(new, old) for old in h.T) for new in H[:, n:].T)
    states = {
        "as before": _near(answers, z),
        "all shifted by the same": _near(answers - z, (answers - z)[:1].expand_as(z)),
        "changed by new units that are copies": _near(quiet, z) and copies,
        "changed by new units": _near(quiet, z),
        "changed, since the old units are others": not _near(H[:, :n], h),
        "changed, since the head reads old units otherwise": True,
    }
    return {
        "the answers": next(state for state, true in states.items() if true),
        "how many units can learn": int(can_learn.sum()),
    }


def _near(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-4)


def _for_norm(g: Generator, size: int) -> dict[str, Any]:
    """From the second size on one new block is dead, from the third on one old is almost."""
    old, new = (torch.randn(size, units, generator=g) for units in (size + 1, 2))
    new[1:2] = 0
    old[2:3] *= 5e-5 / old[2:3].norm()
    return {"old": old, "new": new, "gamma": 0.5 + 2 * torch.rand(size + 3, generator=g)}


def _for_widen(g: Generator, size: int) -> dict[str, Any]:
    return {"seed": size, "old_units": 2 + size % 3, "units": 1 + size % 4}


def _norm(unit: Callable[[Tensor], Tensor]) -> Function:
    """A version of the norm: how one block is divided."""
    return lambda old, new, gamma: gamma * torch.cat([unit(old), unit(new)], 1)


def _length(h: Tensor) -> Tensor:
    return h.norm(dim=1, keepdim=True)


def _changed(change: Callable[[nn.Linear, nn.Linear, nn.Linear, nn.Linear], Any]) -> Function:
    """A version of widening: change(layer, head, wider, wider_head) after it."""

    def widen(layer: nn.Linear, head: nn.Linear, units: int) -> Pair:
        pair = widened(layer, head, units)
        with torch.no_grad():
            change(layer, head, *pair)
        return pair

    return widen


def _copies(layer: nn.Linear, head: nn.Linear, wider: nn.Linear, wider_head: nn.Linear) -> None:
    """Every unit's own weights, and its columns in the head, come again in turn."""
    rows = torch.arange(wider.out_features) % layer.out_features
    wider.weight.copy_(layer.weight[rows])
    wider.bias.copy_(layer.bias[rows])
    wider_head.weight.copy_(head.weight[:, rows])


def _silenced(layer: nn.Linear, head: nn.Linear, wider: nn.Linear, wider_head: nn.Linear) -> None:
    wider.weight[layer.out_features :] = 0
    wider.bias[layer.out_features :] = 0


EXERCISES: dict[str, Exercise] = {
    "scaled_norm": Exercise(
        title="at the same pace",
        task="Write `my_scaled_norm(old, new, gamma)`: two blocks of units, `old` (N, S) and `new` "
        "(N, S+). In each block each sample is divided by its own length, ‖h‖₂, or by 1e-4 where "
        "that is larger; then the blocks are joined, old first, and each unit is multiplied by its "
        "own γ, `gamma` (S + S+,). Gradients are compared, too: a dead block must not make them "
        "NaN.",
        kind="write",
        difficulty=2,
        minutes=8,
        reference=scaled_norm,
        axes=("sample", "unit"),
        draw=_for_norm,
        see=value_and_gradients,
        mistakes=[
            (
                "the length is over the batch, dimension 0; units are dimension 1.",
                _norm(lambda h: h / h.norm(dim=0, keepdim=True).clamp(min=1e-4)),
            ),
            (
                "one length is taken for the whole batch; each sample has its own.",
                _norm(lambda h: h / h.norm().clamp(min=1e-4)),
            ),
            (
                "one length is taken for both blocks, so the loud one still drowns the other.",
                lambda old, new, gamma: gamma * F.normalize(torch.cat([old, new], 1), eps=1e-4),
            ),
            (
                "a block of dead units is 0 / 0, NaN: there is no floor.",
                _norm(lambda h: h / _length(h)),
            ),
            (
                "the value is right, but a dead block's gradient is NaN: the slope of the root at "
                "0. `h.norm` takes 0 there.",
                _norm(lambda h: h / h.square().sum(1, keepdim=True).sqrt().clamp(min=1e-4)),
            ),
            (
                "the floor is that of `F.normalize`, 1e-12: then a dead block's gradient is "
                "huge. It takes `eps=1e-4`.",
                _norm(F.normalize),
            ),
            (
                "the floor is added to the length; it is the larger of the two.",
                _norm(lambda h: h / (_length(h) + 1e-4)),
            ),
            (
                "the floor is under the root, where it is squared: it takes 1e-8 there, and a "
                "maximum.",
                _norm(lambda h: h / (h.square().sum(1, keepdim=True) + 1e-4).sqrt()),
            ),
            (
                "the length is the sum of absolute values; it is the root of the sum of squares.",
                _norm(lambda h: F.normalize(h, p=1, eps=1e-4)),
            ),
            (
                "the root is missing: the blocks are divided by their squared length.",
                _norm(lambda h: h / h.square().sum(1, keepdim=True).clamp(min=1e-4)),
            ),
            (
                "the length counts as a constant in the gradient; it depends on every unit.",
                _norm(lambda h: h / _length(h).clamp(min=1e-4).detach()),
            ),
            ("γ is missing.", lambda old, new, gamma: scaled_norm(old, new, 1 + 0 * gamma)),
            (
                "all units have the same γ; each has its own.",
                lambda old, new, gamma: scaled_norm(old, new, gamma[:1]),
            ),
            (
                "the new units stand first; the classifier knows the old ones in front.",
                lambda old, new, gamma: scaled_norm(new, old, gamma),
            ),
        ],
        hints=[
            "Which dimension of (N, S) holds the units? Each row has a length of its own.",
            "`h.norm(dim=1, keepdim=True)`, and `clamp(min=...)` is the larger of the two.",
            "Divide both blocks, `torch.cat` them along dimension 1, and multiply by `gamma` last.",
        ],
    ),
    "widen": Exercise(
        title="more units, the same answers",
        task="Write `my_widen(layer, head, units)`: `layer` and `head` are `nn.Linear`, with a "
        "ReLU between them. Return a wider layer, with `units` more, and a head for it, such that "
        "the network's answers are what they were, and the new units can learn.",
        kind="write",
        difficulty=2,
        minutes=10,
        reference=widened,
        draw=_for_widen,
        see=what_widening_does,
        mistakes=[
            (
                "the head hears the new units already: random columns change the answers. New "
                "units need columns of zeros.",
                _changed(
                    lambda layer, head, wider, top: top.weight[:, head.in_features :].normal_()
                ),
            ),
            (
                "the new units are copies, and the head hears them beside the old ones. Their "
                "columns must be 0, or the columns of a unit and its copies share the old one.",
                _changed(_copies),
            ),
            (
                "the head's old columns do not meet their old units: they were moved, overwritten "
                "or not copied.",
                _changed(lambda layer, head, wider, top: top.weight.copy_(top.weight.roll(1, 1))),
            ),
            (
                "the old units say something else: their weights and biases must be copied, both.",
                _changed(lambda layer, head, wider, top: wider.bias.uniform_(1, 2)),
            ),
            (
                "all answers are shifted by the same: the head's bias is lost.",
                _changed(lambda layer, head, wider, top: top.bias.uniform_(1, 2)),
            ),
            (
                "the answers stay, but new units can never learn: their weights are 0 below and "
                "above, so no gradient reaches them.",
                _changed(_silenced),
            ),
        ],
        hints=[
            "A head's weight is (K, S): a row for each class. What does a new unit add to it?",
            "Copy weights and biases of both layers to where the old units are. Which numbers are "
            "left, and which of them must be 0?",
            "Rows of the layer beyond the old ones may be random; columns of the head beyond the "
            "old ones are 0. Copy under `torch.no_grad()`, or make an `nn.Parameter` of "
            "`torch.cat`.",
        ],
    ),
}
