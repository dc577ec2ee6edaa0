r"""Attention transfer: a student looks where its teacher looks.

A convolutional layer gives C maps of H×W activations. How strongly it responds at each place, over
all channels, is an **attention map**:

.. math:: F(A)_{h,w} = \sum_{c=1}^{C} |A_{c,h,w}|^p

A large p stresses the strongest responses. The map has one channel, whatever C is, so networks of
different width can be compared. Each map is made a unit vector, and the student's maps are pulled
towards the teacher's, at a few layers j:

.. math:: \mathcal{L} = \mathcal{L}_{ce} + \frac{\beta}{2} \sum_j \lVert q_S^j - q_T^j \rVert_2,
    \qquad q = vec(F(A)) / \lVert vec(F(A)) \rVert_2

Letters: A (C, H, W) activations of one image, p the power, q the unit vector of H·W numbers, β the
weight, j a pair of layers.

The paper and the lecture write :math:`\lVert\cdot\rVert_p` for the outer norm, with the letter p
that is also the power; it is a 2-norm. The official code computes something else again: β times the
*mean of the squares* of the differences, without the half. The lecture's letters T and S are the
target, which is the student, and the source, which is the teacher.

Zagoruyko and Komodakis 2017, "Paying more attention to attention", section 3.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import (
    class_labels,
    expect,
    expect_floating,
    expect_same_shape,
    expect_weight,
    wide,
)

Form = Literal["paper", "code"]
Over = Literal["sum", "max"]


def attention_map(A: Tensor, p: float = 2, over: Over = "sum") -> Tensor:
    r""":math:`\sum_c |A_c|^p`, or the largest :math:`|A_c|^p` over the channels.

    A: (N, C, H, W). Returns (N, H, W), each >= 0, float32 or wider. Activations may be negative,
    and an odd power would keep their sign: hence the absolute value. Raises ValueError for another
    shape, an empty A, p below 1 (its slope at 0 would be infinite), another word for over, and (on
    a CPU) an image whose powers are too large or too small for the number format.
    Zagoruyko and Komodakis 2017, section 3.1.
    """
    _expect_features("A", A, 4)
    _expect_map(p, over)
    powers = _powers(wide(A), p, over)
    _expect_in_range(powers, A, p)
    return powers


def attention_transfer_loss(
    student_features: Sequence[Tensor],
    teacher_features: Sequence[Tensor],
    *,
    beta: float,
    p: float = 2,
    over: Over = "sum",
    form: Form = "paper",
) -> Tensor:
    r"""How far the student's attention maps are from the teacher's, summed over pairs of layers.

    student_features: one (N, C, H, W) for each pair. teacher_features: the same with channels of
    their own, or maps (N, H, W) that were recorded with `attention_map`; the teacher gets no
    gradient. p and over are those of the map. Where sizes differ the larger map is averaged down to
    the smaller. Mean over the batch. form "paper": :math:`\frac\beta2 \sum_j \lVert q_S - q_T
    \rVert_2`, its distance; "code": :math:`\beta \sum_j` mean of :math:`(q_S - q_T)^2` over batch
    and places, which for the same β is smaller by about the number of places. Raises ValueError for
    a beta below 0, unequal numbers of layers or images, maps of one place, which say nothing,
    recorded maps that are not finite (looked at on a CPU) and another form.
    Zagoruyko and Komodakis 2017, equation 2.
    """
    expect_weight("beta", beta)
    _expect_map(p, over)
    expect(form in ("paper", "code"), f"form must be 'paper' or 'code', got {form!r}")
    _expect_pairs(student_features, teacher_features)
    total = []
    for s, t in zip(student_features, teacher_features):
        _expect_maps(s, t)
        a, b = _scaled(s), _scaled(t.detach())
        maps = _powers(a, p, over), b if b.ndim == 3 else _powers(b, p, over)
        total.append(_distance(*_unit(*maps), form))
    return torch.stack(total).sum() * beta


def connectors(student_channels: Sequence[int], teacher_channels: Sequence[int]) -> nn.ModuleList:
    """One layer for each pair that gives a student's features the teacher's number of channels.

    They are 1×1 convolutions, or nothing to do; they are trained along with the student and thrown
    away afterwards. Raises ValueError for unequal numbers of layers.
    """
    S, T = len(student_channels), len(teacher_channels)
    names = "student_channels and teacher_channels"
    expect(S == T > 0, f"{names} must have the same length, got {S} and {T}")
    return nn.ModuleList(
        nn.Identity() if s == t else nn.Conv2d(s, t, 1)
        for s, t in zip(student_channels, teacher_channels)
    )


def activation_loss(
    student_features: Sequence[Tensor], teacher_features: Sequence[Tensor], *, beta: float
) -> Tensor:
    r"""Full-activation transfer (F-ActT): all channels are matched, not their sum.

    .. math:: \frac\beta2 \sum_j \lVert a_S - a_T \rVert_2,
        \qquad a = vec(A) / \lVert vec(A) \rVert_2

    Mean over the batch. Both sides: one (N, C, H, W) for each pair, with equal channels (see
    `connectors`); the larger is averaged down to the smaller. The teacher gets no gradient. Raises
    ValueError for a beta below 0, and shapes that do not fit. The paper names the method and not
    its formula; this is its equation 2 with A in the place of its map.
    """
    expect_weight("beta", beta)
    _expect_pairs(student_features, teacher_features)
    total = []
    for s, t in zip(student_features, teacher_features):
        _expect_equal_channels(s, t)
        total.append(_distance(*_unit(_scaled(s), _scaled(t.detach())), "paper"))
    return torch.stack(total).sum() * beta


def input_gradient(
    model: nn.Module, x: Tensor, labels: Tensor, create_graph: bool = False
) -> Tensor:
    r""":math:`J = \partial \mathcal{L}_{ce} / \partial x`: which pixels the loss hangs on.

    x: (N, …), floating point; labels: (N,) in [0, K). Returns one like x. create_graph: keep what
    is needed to differentiate J once more, by the weights. The model's own gradients stay
    untouched. Images of a batch must not see each other: a BatchNorm has to be in eval mode. Raises
    ValueError for whole numbers as pixels and labels that do not fit.
    Zagoruyko and Komodakis 2017, section 3.2.
    """
    expect_floating("x", x)
    with torch.inference_mode(False), torch.enable_grad():
        x = x.detach().clone().requires_grad_()
        logits = model(x.clone())  # a model may change its input in place
        y = class_labels(labels, logits).clone()
        loss = F.cross_entropy(logits, y, reduction="sum")
        return torch.autograd.grad(loss, x, create_graph=create_graph)[0]


def gradient_transfer_loss(
    student_gradient: Tensor, teacher_gradient: Tensor, *, beta: float
) -> Tensor:
    r"""Gradient-based attention transfer: mean of :math:`\frac\beta2 \lVert J_S - J_T \rVert_2`.

    Both (N, …), from `input_gradient`; the student's with create_graph=True. The teacher's gets no
    gradient. Raises ValueError for a beta below 0, and gradients that are empty or differ in shape.
    Zagoruyko and Komodakis 2017, equation 5.
    """
    expect_weight("beta", beta)
    expect_same_shape("both gradients", student_gradient, teacher_gradient)
    shape = tuple(student_gradient.shape)
    expect(len(shape) > 1 and 0 not in shape, f"gradients must be (N, …), got {shape}")
    d = (wide(student_gradient) - wide(teacher_gradient.detach())).flatten(1)
    top = _largest(d)  # the norm of tiny or huge numbers, without their squares
    return beta / 2 * (torch.linalg.vector_norm(d / top, dim=1) * top[:, 0]).mean()


def _largest(A: Tensor) -> Tensor:
    """The largest magnitude of each image, (N, 1, …), without gradient; what is tiny at least."""
    top = A.detach().abs().amax(tuple(range(1, A.ndim)), keepdim=True)
    return top.clamp_min(torch.finfo(A.dtype).tiny)


def _scaled(A: Tensor) -> Tensor:
    """Each image divided by its largest magnitude, so that powers stay in range; zeros stay so."""
    A = wide(A)
    top = _largest(A)
    return A / top.masked_fill(top == torch.finfo(A.dtype).tiny, math.inf)  # no slope at zero


def _powers(A: Tensor, p: float, over: Over) -> Tensor:
    """Of (N, C, H, W) the sum or the largest of |A|^p over the channels."""
    return _power(A, p).sum(1) if over == "sum" else _power(A.abs().amax(1), p)


def _power(A: Tensor, p: float) -> Tensor:
    """|A|^p, by squares as far as they go: torch's own power takes forty times as long."""
    if p in (1, 2):
        return A.abs() if p == 1 else A.square()
    return _power(A.square(), p / 2) if p % 2 == 0 else A.abs().pow(p)


def _unit(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Two of (N, …, H, W) as unit vectors, the larger averaged down to the smaller."""
    h, w = (min(sides) for sides in zip(a.shape[-2:], b.shape[-2:]))
    a, b = (m if m.shape[-2:] == (h, w) else F.adaptive_avg_pool2d(m, (h, w)) for m in (a, b))
    return F.normalize(a.flatten(1)), F.normalize(b.flatten(1))


def _distance(a: Tensor, b: Tensor, form: Form) -> Tensor:
    """Of rows (N, D): half the 2-norm of the difference (slope 0 at 0), or its mean square."""
    if form == "code":
        return (a - b).square().mean()
    return torch.linalg.vector_norm(a - b, dim=1).mean() / 2


def _expect_features(name: str, A: Tensor, *dimensions: int) -> None:
    shape = tuple(A.shape)
    fits = len(shape) in dimensions and 0 not in shape
    expect(fits, f"{name} must have shape (N, C, H, W) and not be empty, got {shape}")


def _expect_map(p: float, over: Over) -> None:
    expect(1 <= p < math.inf, f"p must be a finite number >= 1, got {p}")
    expect(over in ("sum", "max"), f"over must be 'sum' or 'max', got {over!r}")


def _expect_in_range(powers: Tensor, A: Tensor, p: float) -> None:
    """On a CPU only: elsewhere it would have to wait for the device."""
    if powers.device.type == "cpu":
        top, kind = powers.amax((1, 2)), powers.dtype
        vanished = A[top < torch.finfo(kind).tiny].any()
        fits = not bool(vanished | top.isposinf().any())
        expect(fits, f"A must be scaled to 1 first: its powers, p = {p}, leave the range of {kind}")


def _expect_pairs(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> None:
    lists = not isinstance(student, Tensor) and not isinstance(teacher, Tensor)
    expect(lists, "give a list of features, one for each pair of layers")
    S, T = len(student), len(teacher)
    expect(S == T > 0, f"student and teacher must give the same number of layers, got {S} and {T}")
    for s, t in zip(student, teacher):
        S, T = len(s), len(t)
        expect(S == T, f"student and teacher must see the same images, got {S} and {T}")


def _expect_maps(s: Tensor, t: Tensor) -> None:
    _expect_features("student features", s, 4)
    _expect_features("teacher features", t, 4, 3)
    places = min(s.shape[-2], t.shape[-2]) * min(s.shape[-1], t.shape[-1])
    expect(places > 1, "maps must have more than one place: a single number as a unit vector is 1")
    if t.ndim == 3 and t.device.type == "cpu":
        finite = bool(t.amax((1, 2)).isfinite().all())
        expect(finite, "recorded maps must be finite: scale features to 1 before they are recorded")


def _expect_equal_channels(s: Tensor, t: Tensor) -> None:
    _expect_features("student features", s, 4)
    _expect_features("teacher features", t, 4)
    S, T = tuple(s.shape), tuple(t.shape)
    expect(S[1] == T[1], f"features must have equal channels, got {S} and {T}")
