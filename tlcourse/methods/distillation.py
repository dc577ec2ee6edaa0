r"""Knowledge distillation: a student learns what the teacher thinks of every class, not only which
class is right.

A trained network's probabilities say more than the label: this 7 looks a little like a 2 and not at
all like an 8. At temperature 1 those small probabilities hardly count in the loss. A temperature
:math:`T > 1` softens teacher :math:`p` and student :math:`q` until they do:

.. math::
    q_{i,T} &= \frac{\exp(z_i / T)}{\sum_j \exp(z_j / T)} \\
    \mathcal{L} &= (1 - \alpha)\, \mathcal{L}_{ce}(y, q_1) + \alpha\, T^2\, \mathcal{L}_{ce}(p_T, q_T)

Letters: z and v are the logits of student and teacher, q and p their probabilities, y the labels, K
the number of classes. The factor :math:`T^2` is there because the gradient of the second term,
:math:`(q_T - p_T) / T`, shrinks like :math:`1 / T^2` once T is large.

Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.methods._checks import expect


def soften(logits: Tensor, T: float) -> Tensor:
    r"""Probabilities at temperature T: :math:`q_{i,T} = \exp(z_i / T) / \sum_j \exp(z_j / T)`.

    logits: (N, K). Returns (N, K), float32 or wider; rows sum to 1. T = 1 is the softmax; T towards
    infinity is uniform, T towards 0 picks the largest. Raises ValueError unless logits are (N, K)
    and T is a finite number > 0. Hinton et al. 2015, equation 1.
    """
    _expect_logits("logits", logits)
    _expect_temperature(T)
    return (_wide(logits) / T).softmax(1)


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, T: float, alpha: float
) -> Tensor:
    r"""(1 − α)·CE(y, q₁) + α·T²·CE(p_T, q_T), in nats, mean over the batch. The teacher gets no
    gradient.

    student_logits, teacher_logits: (N, K); labels: (N,) int64 in [0, K). T > 0; alpha in [0, 1]: 0
    is plain cross-entropy, 1 never looks at a label. Raises ValueError for shapes that do not
    match, an empty batch, T or alpha out of range, and for labels outside the classes (on CPU only:
    elsewhere it would have to wait for the device). Hinton et al. 2015, section 2.
    """
    _expect_pair(student_logits, teacher_logits)
    _expect_temperature(T)
    _expect_labels(labels, student_logits)
    expect(0 <= alpha <= 1, f"alpha must be in [0, 1], got {alpha}")
    z, v = _wide(student_logits), _wide(teacher_logits.detach())
    hard = F.cross_entropy(z, labels)
    p = (v / T).softmax(1)
    soft = -(p * (z / T).log_softmax(1)).sum(1).mean()
    return (1 - alpha) * hard + alpha * T**2 * soft


def logit_matching_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""½·mean((z − v)²) with rows of z and v centred: where T²·CE(p_T, q_T) goes for large T, up to
    a constant.

    student_logits, teacher_logits: (N, K). Returns a scalar, mean over classes and batch. The
    teacher gets no gradient. Raises ValueError for shapes that do not match and an empty batch.
    Hinton et al. 2015, section 2.1.
    """
    _expect_pair(student_logits, teacher_logits)
    return 0.5 * F.mse_loss(_centred(student_logits), _centred(teacher_logits.detach()))


def soft_target_gradient(z: Tensor, v: Tensor, T: float) -> Tensor:
    r""":math:`\partial\, \mathcal{L}_{ce}(p_T, q_T) / \partial z = (q_T - p_T) / T`, for each
    sample (no batch factor).

    z, v: (N, K) logits of student and teacher. Returns (N, K); rows sum to 0. Raises ValueError for
    shapes that do not match and T out of range. Hinton et al. 2015, equation 2.
    """
    _expect_pair(z, v)
    return (soften(z, T) - soften(v, T)) / T


def logit_matching_gradient(z: Tensor, v: Tensor, T: float) -> Tensor:
    r""":math:`(z - v) / (K T^2)` with rows centred: the limit of `soft_target_gradient` for T large
    against the logits, for each sample.

    z, v: (N, K) logits of student and teacher. Returns (N, K); rows sum to 0. The error of the
    limit halves when T doubles. Raises ValueError for shapes that do not match and T out of range.
    Hinton et al. 2015, equation 4.
    """
    _expect_pair(z, v)
    _expect_temperature(T)
    return (_centred(z) - _centred(v)) / (z.shape[1] * T**2)


def prior_offsets(
    logits: Tensor, prior: Tensor, *, tolerance: float = 1e-5, steps: int = 1000
) -> Tensor:
    r"""One number per class that, added to its logits, makes the mean probability of every class
    equal to its prior. No labels are needed.

    A student that never saw a class gives it too little probability. This puts the mass back:
    :math:`b \leftarrow b + \log \pi - \log \bar q`, where :math:`\bar q` is the mean of softmax(z +
    b) over the samples, until they agree. logits: (N, K); prior: (K,), positive, sum 1. Returns
    (K,), with mean 0. Raises ValueError for a prior that is none, and if the two do not agree
    within `tolerance` after `steps`. Hinton et al. 2015, section 3, chose such an offset on the
    test set; here unlabelled images are enough.
    """
    _expect_logits("logits", logits)
    fits = (
        prior.shape == logits.shape[1:]
        and bool((prior > 0).all())
        and abs(prior.sum().item() - 1) < 1e-4
    )
    expect(
        fits and len(logits) > 0,
        f"prior must be ({logits.shape[1]},) positive numbers that sum to 1, for at least one sample",
    )
    z, pi = logits.double(), prior.double()
    b = torch.zeros_like(pi)
    for _ in range(steps):
        mean = (z + b).softmax(1).mean(0)
        if (mean - pi).abs().max() <= tolerance:
            return (b - b.mean()).to(_wide(logits).dtype)
        b = b + pi.log() - mean.log()
    raise ValueError(
        f"no offsets were found in {steps} steps: the logits may be too far apart, or tolerance {tolerance} too small"
    )


def _wide(logits: Tensor) -> Tensor:
    return logits.float() if logits.dtype in (torch.float16, torch.bfloat16) else logits


def _centred(logits: Tensor) -> Tensor:
    wide = _wide(logits)
    return wide - wide.mean(1, keepdim=True)


def _expect_logits(name: str, logits: Tensor) -> None:
    expect(logits.ndim == 2, f"{name} must have shape (N, K), got {tuple(logits.shape)}")
    expect(logits.is_floating_point(), f"{name} must be floating point, got {logits.dtype}")


def _expect_pair(student: Tensor, teacher: Tensor) -> None:
    _expect_logits("student logits", student)
    _expect_logits("teacher logits", teacher)
    same = student.shape == teacher.shape
    expect(
        same,
        f"student and teacher logits must have the same shape, got {tuple(student.shape)} and {tuple(teacher.shape)}",
    )
    expect(
        student.numel() > 0,
        f"logits must hold at least one sample and one class, got shape {tuple(student.shape)}",
    )


def _expect_temperature(T: float) -> None:
    expect(0 < T < math.inf, f"T must be a finite number > 0, got {T}")


def _expect_labels(labels: Tensor, logits: Tensor) -> None:
    N, K = logits.shape
    expect(
        labels.shape == (N,),
        f"labels must have shape ({N},) like the logits, got {tuple(labels.shape)}",
    )
    expect(labels.dtype == torch.int64, f"labels must be int64, got {labels.dtype}")
    if labels.device.type == "cpu":
        expect(
            bool(((labels >= 0) & (labels < K)).all()),
            f"labels must be in [0, {K}), got {labels.min()} to {labels.max()}",
        )
