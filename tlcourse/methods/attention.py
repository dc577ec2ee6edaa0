r"""Attention transfer: a student looks where its teacher looks.

A convolutional layer gives C maps of H×W activations. How strongly it responds at each place, over
all channels, is an **attention map**:

.. math:: F(A)_{h,w} = \sum_{c=1}^{C} |A_{c,h,w}|^p

A large p stresses the strongest responses. The map has one channel, whatever C is, so networks of
different width can be compared. Each map is made a unit vector, and the student's maps are pulled
towards the teacher's, at a few layers j:

.. math:: \mathcal{L} = \mathcal{L}_{ce} + \frac{\beta}{2} \sum_j \lVert q_S^j - q_T^j \rVert_2, \qquad
    q = vec(F(A)) / \lVert vec(F(A)) \rVert_2

Letters: A (C, H, W) activations of one image, p the power, q the unit vector of H·W numbers, β the
weight, j a pair of layers.

The paper and the lecture write :math:`\lVert\cdot\rVert_p` with the letter p that is also the
power; it is a 2-norm. The official code computes something else again: β times the *mean of the
squares* of the differences, without the half (E3). The lecture also exchanges the letters: its S is
the source, which is the teacher.

Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import expect

Form = Literal["paper", "code"]
Over = Literal["sum", "max"]


def attention_map(A: Tensor, p: float = 2, over: Over = "sum") -> Tensor:
    r""":math:`\sum_c |A_c|^p`, or the largest :math:`|A_c|^p` over the channels. A: (N, C, H, W).
    Returns (N, H, W), each >= 0.

    Activations may be negative, and an odd power would keep their sign: hence the absolute value.
    Raises ValueError for another shape, an empty A, p below 1 (its slope at 0 would be infinite),
    and another word for over. Zagoruyko and Komodakis 2017, section 3.1.
    """
    expect(
        A.ndim == 4 and A.numel() > 0,
        f"A must have shape (N, C, H, W) and not be empty, got {tuple(A.shape)}",
    )
    expect(1 <= p < math.inf, f"p must be a finite number >= 1, got {p}")
    expect(over in ("sum", "max"), f"over must be 'sum' or 'max', got {over!r}")
    powers = _wide(A).abs().pow(p)
    return powers.sum(1) if over == "sum" else powers.amax(1)


def attention_transfer_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    beta: float,
    p: float = 2,
    over: Over = "sum",
    form: Form = "paper",
) -> Tensor:
    r"""How far the student's attention maps are from the teacher's, mean over the batch, sum over
    the pairs of layers.

    student_features: one (N, C, H, W) for each pair. teacher_features: the same with channels of
    their own, or maps (N, H, W) that were recorded with `attention_map`; the teacher gets no
    gradient. p and over are those of the map. Where sizes differ the larger map is averaged down to
    the smaller. form "paper": :math:`\frac\beta2 \sum_j \lVert q_S - q_T \rVert_2`, its distance;
    "code": :math:`\beta \sum_j` mean of :math:`(q_S - q_T)^2` over batch and places, which for the
    same β is smaller by about the number of places. Raises ValueError for a beta below 0, unequal
    numbers of layers or images, maps of one place, which say nothing, and another form. Zagoruyko
    and Komodakis 2017, equation 2.
    """
    expect(0 <= beta < math.inf, f"beta must be a finite number >= 0, got {beta}")
    expect(form in ("paper", "code"), f"form must be 'paper' or 'code', got {form!r}")
    maps = [
        _unit(attention_map(s, p, over), _as_map(t, p, over))
        for s, t in _pairs(student_features, teacher_features)
    ]
    expect(
        all(q.shape[1] > 1 for q, _ in maps),
        "maps must have more than one place: as a unit vector a single number is always 1",
    )
    return torch.stack([_distance(*pair, form) for pair in maps]).sum() * beta


def connectors(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """One layer for each pair that gives a student's features the teacher's number of channels: 1×1
    convolutions, or nothing to do.

    They are trained along with the student and thrown away afterwards. Raises ValueError for
    unequal numbers of layers.
    """
    many = len(student_channels), len(teacher_channels)
    expect(
        many[0] == many[1] > 0,
        f"student_channels and teacher_channels must have the same length, got {many[0]} and {many[1]}",
    )
    return nn.ModuleList(
        nn.Identity() if s == t else nn.Conv2d(s, t, 1)
        for s, t in zip(student_channels, teacher_channels)
    )


def activation_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, beta: float
) -> Tensor:
    r"""Full-activation transfer (F-ActT): all channels are matched, not their sum.
    :math:`\frac\beta2 \sum_j \lVert a_S - a_T \rVert_2`.

    a is vec(A) of one image as a unit vector; mean over the batch. Both sides: one (N, C, H, W) for
    each pair, with equal channels (see `connectors`); the larger is averaged down to the smaller.
    The teacher gets no gradient. Raises ValueError for a beta below 0, and shapes that do not fit.
    The paper names the method and not its formula; this is its equation 2 with A in the place of
    its map.
    """
    expect(0 <= beta < math.inf, f"beta must be a finite number >= 0, got {beta}")
    total = []
    for s, t in _pairs(student_features, teacher_features):
        shapes = f"{tuple(s.shape)} and {tuple(t.shape)}"
        expect(
            s.ndim == t.ndim == 4 and s.numel() > 0,
            f"features must have shape (N, C, H, W) and not be empty, got {shapes}",
        )
        expect(s.shape[1] == t.shape[1], f"features must have equal channels, got {shapes}")
        total.append(_distance(*_unit(_wide(s), _wide(t.detach())), "paper"))
    return torch.stack(total).sum() * beta


def input_gradient(
    model: nn.Module, x: Tensor, labels: Tensor, create_graph: bool = False
) -> Tensor:
    r""":math:`J = \partial \mathcal{L}_{ce} / \partial x`: which pixels the loss hangs on. x: (N,
    …); labels: (N,). Returns one like x.

    create_graph: keep what is needed to differentiate J once more, by the weights. The model's own
    gradients stay untouched. Images of a batch must not see each other: a BatchNorm has to be in
    eval mode. Zagoruyko and Komodakis 2017, section 3.2.
    """
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        loss = F.cross_entropy(
            model(x.clone()), labels.clone(), reduction="sum"
        )  # a model may change its input in place
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def gradient_transfer_loss(
    student_gradient: Tensor, teacher_gradient: Tensor, *, beta: float
) -> Tensor:
    r"""Gradient-based attention transfer: :math:`\frac\beta2 \lVert J_S - J_T \rVert_2`, mean over
    the batch.

    Both (N, …), from `input_gradient`; the student's with create_graph=True. The teacher's gets no
    gradient. Raises ValueError for a beta below 0, and gradients that are empty or differ in shape.
    Zagoruyko and Komodakis 2017, equation 5.
    """
    expect(0 <= beta < math.inf, f"beta must be a finite number >= 0, got {beta}")
    same = student_gradient.shape == teacher_gradient.shape
    expect(
        student_gradient.numel() > 0 and student_gradient.ndim > 1,
        f"gradients must be (N, …), got {tuple(student_gradient.shape)}",
    )
    expect(
        same,
        f"both gradients must have the same shape, got {tuple(student_gradient.shape)} and {tuple(teacher_gradient.shape)}",
    )
    return beta * _distance(
        student_gradient.flatten(1), teacher_gradient.detach().flatten(1), "paper"
    )


def _pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
    expect(
        not isinstance(student, Tensor) and not isinstance(teacher, Tensor),
        "give a list of features, one for each pair of layers",
    )
    many = len(student), len(teacher)
    expect(
        many[0] == many[1] > 0,
        f"student and teacher must give the same number of layers, got {many[0]} and {many[1]}",
    )
    for s, t in zip(student, teacher):
        expect(
            len(s) == len(t),
            f"student and teacher must see the same images, got {len(s)} and {len(t)}",
        )
    return list(zip(student, teacher))


def _wide(A: Tensor) -> Tensor:
    """Half-precision numbers as float32, since their squares may overflow."""
    return A.to(torch.promote_types(A.dtype, torch.float32))


def _as_map(features: Tensor, p: float, over: Over) -> Tensor:
    """A teacher's map: recorded already, (N, H, W), or still to be computed."""
    features = features.detach()
    return _wide(features) if features.ndim == 3 else attention_map(features, p, over)


def _unit(student: Tensor, teacher: Tensor) -> tuple[Tensor, Tensor]:
    """Two of (N, …, H, W) as unit vectors, the larger averaged down to the smaller. Zeros stay
    zeros.
    """
    h, w = (min(a, b) for a, b in zip(student.shape[-2:], teacher.shape[-2:]))
    flat = [F.adaptive_avg_pool2d(m, (h, w)).flatten(1) for m in (student, teacher)]
    return F.normalize(flat[0]), F.normalize(flat[1])


def _distance(a: Tensor, b: Tensor, form: Form) -> Tensor:
    """Of rows (N, D): half the 2-norm of the difference, or the mean of its squares. The norm's
    slope at 0 is taken as 0.
    """
    return (
        torch.linalg.vector_norm(a - b, dim=1).mean() / 2
        if form == "paper"
        else (a - b).square().mean()
    )
