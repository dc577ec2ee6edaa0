"""Exercises on what holds on average, of the chapter on matching Jacobians."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises.jacobian import OfTwo, normal, small_network


def estimated(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
    """A unit vector meets each of K outputs with 1 / K of its square; hence √K."""
    v = v / v.norm(dim=1, keepdim=True) * v.shape[1] ** 0.5
    x = x.detach().clone().requires_grad_()
    (row,) = torch.autograd.grad((v * model(x)).sum(), x)
    return row.square().sum(1)


def two_forms(g: Tensor, J: Tensor, traces: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """g + Jξ + ½ ξᵀHξ, squared: 2 · g · ½ ξᵀHξ is g · σ² tr H on average."""
    paper = g.square().sum() + sigma**2 * J.square().sum()
    return paper, paper + sigma**2 * (g * traces).sum()


def of_K_outputs(estimate: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The estimates for a network of K outputs."""
    x, v = inputs["x"], inputs["v"]
    return {"": estimate(model=small_network(inputs["seed"], x.shape[1], v.shape[1]), x=x, v=v)}


def both_forms(noise: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Two numbers, each by its name."""
    found = noise(**inputs)
    if tried(len, 0, found) != 2:
        raise Told("Not yet: return two numbers, the paper's form and the one with its term more.")
    return {"the paper's form": found[0], "with the term that it leaves out": found[1]}


def _for_estimate(g: Generator, size: int) -> dict[str, Any]:
    return {"seed": size, "x": normal(g, size, 3), "v": normal(g, size, 2 + size % 3)}


def _for_noise(g: Generator, size: int) -> dict[str, Any]:
    g_, J, traces = (torch.randint(-3, 4, n, generator=g).float() for n in ((2,), (2, 2), (2,)))
    return {"g": g_, "J": J, "traces": traces, "sigma": (0.2, 0.1, 0.5)[size % 3]}


def _estimate(
    scaled: Callable[[Tensor], Tensor],
    size: Callable[[Tensor], Tensor] = lambda row: row.square().sum(1),
) -> Function:
    """A version of the estimate: what becomes of v, and how vᵀJ becomes a number."""

    def estimate(model: nn.Module, x: Tensor, v: Tensor) -> Tensor:
        x = x.detach().clone().requires_grad_()
        return size(torch.autograd.grad((scaled(v) * model(x)).sum(), x)[0])

    return estimate


def _sphere(v: Tensor) -> Tensor:
    return F.normalize(v) * v.shape[1] ** 0.5


def _forms(
    more: OfTwo = lambda g, traces: (g * traces).sum(), powers: tuple[int, int] = (2, 2)
) -> Function:
    """A version of both forms. powers: of σ, before the Jacobian and before the Hessians."""

    def noise(g: Tensor, J: Tensor, traces: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
        paper = g.square().sum() + sigma ** powers[0] * J.square().sum()
        return paper, paper + sigma ** powers[1] * more(g, traces)

    return noise


EXERCISES: dict[str, Exercise] = {
    "projections": Exercise(
        title="one random direction",
        task="All of J costs a backward pass for each of K outputs. Write `my_estimate(model, x, "
        "v)`, which takes one: an estimate of ‖J‖_F² for each sample, (N,). `model` gives K "
        "numbers for each row of `x` (N, D); `v` (N, K) has a row of normal random numbers for "
        "each sample. Take the row's direction alone, not its length, and scale so that the mean "
        "over all directions is ‖J‖_F².",
        kind="write",
        difficulty=3,
        minutes=10,
        reference=estimated,
        axes=("sample",),
        draw=_for_estimate,
        see=of_K_outputs,
        mistakes=[
            (
                "this takes v as it is. Right on average, too, since its squared length is K on "
                "average; but that length varies, and with it the estimate. Normalise the rows.",
                _estimate(lambda v: v),
            ),
            (
                "K times too small on average: a unit vector meets each of K outputs with 1 / K "
                "of its square.",
                _estimate(F.normalize),
            ),
            (
                "scaled by K², K times too much: the vector's length is squared, so it takes √K.",
                _estimate(lambda v: F.normalize(v) * v.shape[1]),
            ),
            (
                "all samples have the first one's direction. Right on average, but then they err "
                "alike, and a mean over the batch does not help. Each row of v is one sample's.",
                _estimate(lambda v: _sphere(v)[:1]),
            ),
            (
                "one length is taken for the whole batch; each row of v has its own.",
                _estimate(lambda v: v / v.norm() * v.shape[1] ** 0.5),
            ),
            (
                "v has no effect: this differentiates the sum of the outputs.",
                _estimate(torch.ones_like),
            ),
            (
                "absolute values are added up; ‖vᵀJ‖² is a sum of squares.",
                _estimate(_sphere, lambda row: row.abs().sum(1)),
            ),
            (
                "this is ‖vᵀJ‖ without the square; the mean of a root is not the root of the mean.",
                _estimate(_sphere, lambda row: row.norm(dim=1)),
            ),
            (
                "this is the mean over the batch; return a number for each sample.",
                _estimate(_sphere, lambda row: row.square().sum(1).mean()),
            ),
        ],
        hints=[
            "vᵀJ is the gradient of one number for each sample. Which?",
            "If u is a unit vector in K dimensions, of any direction, what is the mean of u₁²? "
            "All K of them add up to 1.",
            "`v / v.norm(dim=1, keepdim=True) * K**0.5`; differentiate `(v * model(x)).sum()` by a "
            "copy of x; sum the squares of each row.",
        ],
    ),
    "why_the_hessian": Exercise(
        title="the term that is left out",
        task="At x two networks differ by two numbers, `g` (2,). `J` (2, D) is the Jacobian of g, "
        "and `traces` (2,) are the traces of the Hessians of its two outputs. What is "
        "E‖g(x + ξ)‖² up to order σ², for noise ξ ~ N(0, σ²I)? Complete `my_noise(g, J, traces, "
        "sigma)`: two numbers, first as the paper has it, then with the term that it leaves out. "
        "Predict first: how far apart are they for g = (1, −2), traces (3, 1) and σ = 0.1?",
        kind="complete",
        difficulty=2,
        minutes=7,
        reference=two_forms,
        draw=_for_noise,
        see=both_forms,
        mistakes=[
            (
                "both are the paper's: the term with the Hessians is missing. It is of the same "
                "order.",
                _forms(lambda g, traces: 0 * g.sum()),
            ),
            (
                "the Hessians' term is half of what it should be: Taylor's ½ meets the 2 of the "
                "square's mixed term.",
                _forms(lambda g, traces: (g * traces).sum() / 2),
            ),
            (
                "the Hessians' term is twice what it should be: the 2 of the square's mixed term "
                "meets Taylor's ½.",
                _forms(lambda g, traces: 2 * (g * traces).sum()),
            ),
            (
                "σ is not squared: the mean of ξ is 0, and that of ξ² is σ².",
                _forms(powers=(1, 1)),
            ),
            (
                "the Hessians' term has σ⁴, as if it belonged to the remainder; it is of order σ², "
                "like the Jacobian's.",
                _forms(powers=(2, 4)),
            ),
            (
                "the traces are added up as they are; each is multiplied by its output's g. Where "
                "the student agrees, there is no such term.",
                _forms(lambda g, traces: traces.sum()),
            ),
            (
                "g has lost its sign: the term may be negative.",
                _forms(lambda g, traces: (g.abs() * traces).sum()),
            ),
            (
                "these are products of all outputs with all: multiply each g with its own trace, "
                "then add up.",
                _forms(lambda g, traces: g.sum() * traces.sum()),
            ),
            (
                "the two are exchanged: the paper's form comes first.",
                lambda g, J, traces, sigma: two_forms(g, J, traces, sigma)[::-1],
            ),
            (
                "the second number is the term alone; add it to the paper's form.",
                lambda g, J, traces, sigma: (
                    two_forms(g, J, traces, sigma)[0],
                    sigma**2 * (g * traces).sum(),
                ),
            ),
        ],
        hints=[
            "Write each output as g + Jξ + ½ ξᵀHξ and square it. Which products have two ξ?",
            "E(Jξ)² is σ² times the squared length of J's row, and E ξᵀHξ is σ² tr H.",
            "`g.square().sum() + sigma**2 * J.square().sum()`; the mixed term is 2 · g · ½ ξᵀHξ.",
        ],
    ),
}
