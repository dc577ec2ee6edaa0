r"""Uncertainty weighting: the noisier a task, the less its loss counts; how noisy is learnt.

A sum of losses needs weights: one is in nats, another in pixels. Read each as minus the log of a
density with one noise σ for the whole task, and σ is a parameter like any other. For y of D numbers

.. math::
    N(f, \sigma^2 I) &: \quad \lVert y - f \rVert_2^2 / 2\sigma^2 + D \log \sigma \\
    \mathrm{Laplace}(f, b) &: \quad \lVert y - f \rVert_1 / b + D \log b \\
    \mathrm{Softmax}(f / \sigma^2) &: \quad -f_y / \sigma^2 + \log \textstyle\sum_k
        e^{f_k / \sigma^2} \approx CE(y, f) / \sigma^2 + \log \sigma

up to constants. Much noise makes the first term small, and has its price in the second. In a
softmax σ² is a temperature; there :math:`\frac{1}{\sigma} \sum_k e^{f_k / \sigma^2} \approx
(\sum_k e^{f_k})^{1 / \sigma^2}` is assumed: right at σ = 1, and elsewhere another loss. What is
trained is :math:`s = \log \sigma^2`, or log b, which may be any number. At the best s the sum is
:math:`\sum_i c_i D_i \log L_i` and a constant, with c = ½, or 1 for log b: the unit of a loss makes
no difference to the network, and the weight of a loss that goes to 0 has no bound.

Kendall, Gal and Cipolla 2018, "Multi-task learning using uncertainty to weigh losses for scene
geometry and semantics".
"""

from collections.abc import Mapping
from math import inf, isfinite
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import class_labels, expect, expect_counts, wide

Tasks = Mapping[str, Literal["classification", "regression", "laplace"]]
KINDS = {"classification": (1.0, 0.5), "regression": (0.5, 0.5), "laplace": (1.0, 1.0)}  # a, c


class UncertaintyWeighting(nn.Module):
    r""":math:`\sum_i a_i e^{-s_i} L_i + c_i D_i s_i`, with a trained s for each task.

    tasks: by name "classification" for a cross-entropy (a = 1, c = ½), "regression" for squared
    errors (½, ½), "laplace" for absolute ones (1, 1; under "regression", as in the paper, they
    count half). dims: D, how many numbers a loss sums over, samples too; 1, for a mean over all, if
    not given. initial: where s starts, 0 if not given. s wants a higher rate than a network and no
    weight decay. `fit` gives an objective that holds this module the latter; to any optimizer
    `[*parameter_groups(network, lr), *parameter_groups(this, 2e-2)]` gives both. Raises ValueError
    for no task, unknown kinds or names, and numbers out of range. Kendall et al. 2018, section 3.
    """

    factors: Tensor

    def __init__(
        self, tasks: Tasks, *, dims: Mapping[str, int] = {}, initial: Mapping[str, float] = {}
    ) -> None:
        super().__init__()
        _expect_tasks(tasks, dims, initial)
        rows = [(*KINDS[k], dims.get(name, 1), initial.get(name, 0)) for name, k in tasks.items()]
        a, c, D, s = torch.tensor(rows, dtype=torch.float32).unbind(1)
        self.tasks, self.s = dict(tasks), nn.Parameter(s.clone())
        self.register_buffer("factors", torch.stack([a, c * D]), persistent=False)

    def forward(self, losses: Mapping[str, Tensor]) -> Tensor:
        """losses: by name a scalar >= 0 for each task. Returns a scalar, float32 or wider.

        A density may exceed 1, so the total of small losses is negative, and rightly: to clip it,
        or s, would end the learning. Raises ValueError for a task that is missing or unknown and a
        loss that is no scalar; on a CPU only, so as not to wait for a GPU, FloatingPointError for
        one that is not finite, or negative.
        """
        _expect_scalars(losses, self.tasks)
        L, s = torch.stack([wide(losses[name]) for name in self.tasks]), wide(self.s)
        _expect_sound(L, self.tasks)
        return (self.factors[0] * torch.exp(-s) * L + self.factors[1] * s).sum()

    def weights(self) -> dict[str, Tensor]:
        """What each loss is multiplied by now, a·e⁻ˢ: scalars by name, without gradient."""
        return dict(zip(self.tasks, self.factors[0] * torch.exp(-wide(self.s.detach()))))


def softmax_nll(logits: Tensor, labels: Tensor, s: float | Tensor) -> Tensor:
    r"""The exact :math:`-\log \mathrm{Softmax}(f / \sigma^2)_y`, in nats, mean over all labels.

    logits: f, (N, K, …); labels: (N, …) whole numbers in [0, K), checked on a CPU; s: log σ², one
    number. Raises ValueError for what does not fit. Kendall et al. 2018, equation 6.
    """
    shape, scale = tuple(logits.shape), torch.exp(-torch.as_tensor(s))
    fits = len(shape) > 1 and 0 not in shape and labels.shape == shape[:1] + shape[2:]
    got = f"{shape}, {tuple(labels.shape)} and {tuple(scale.shape)}"
    wanted = "logits, labels and s must be (N, K, …), (N, …) and (), not empty"
    expect(fits and scale.ndim == 0, f"{wanted}, got {got}")
    flat = wide(logits).movedim(1, -1).flatten(0, -2)
    return F.cross_entropy(flat * scale, class_labels(labels.flatten(), flat))


def _expect_tasks(tasks: Tasks, dims: Mapping[str, int], initial: Mapping[str, float]) -> None:
    known = len(tasks) > 0 and {*tasks.values()} <= {*KINDS}
    expect(known, f"tasks must be at least one, each of {', '.join(KINDS)}, got {tasks}")
    for name in [*dims, *initial]:
        expect(name in tasks, f"dims and initial must be of {', '.join(tasks)}, got {name!r}")
    expect_counts("dims must be whole numbers", 1, *dims.values())
    expect(all(map(isfinite, initial.values())), f"initial must be finite numbers, got {initial}")


def _expect_scalars(losses: Mapping[str, Any], tasks: Tasks) -> None:
    names = f"{', '.join(tasks)}, got {', '.join(losses) or 'none'}"
    expect(losses.keys() == tasks.keys(), f"losses must be of {names}")
    for name, loss in losses.items():
        got = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        expect(got == "shape ()", f"the loss of {name!r} must be a scalar tensor, got {got}")


def _expect_sound(L: Tensor, tasks: Tasks) -> None:
    if L.is_cpu and not ((L >= 0) & L.isfinite()).all():
        bad = {name: loss for name, loss in zip(tasks, L.tolist()) if not 0 <= loss < inf}
        raise FloatingPointError(f"losses must be finite and >= 0, got {bad}")
