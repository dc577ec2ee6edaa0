r"""Knowledge distillation: a student learns what the teacher thinks of every class.

A trained network's probabilities say more than the label: this 7 looks a little like a 2 and not at
all like an 8. At temperature 1 those small probabilities hardly count in the loss. A temperature
:math:`T > 1` softens teacher :math:`p` and student :math:`q` until they do:

.. math::
    q_{i,T} &= \frac{\exp(z_i / T)}{\sum_j \exp(z_j / T)} \\
    \mathcal{L} &= (1 - \alpha)\, \mathcal{L}_{ce}(y, q_1)
        + \alpha\, T^2\, \mathcal{L}_{ce}(p_T, q_T)

Letters: z and v are the logits of student and teacher, q and p their probabilities, y the labels, K
the number of classes. The factor :math:`T^2` is there because the gradient of the second term,
:math:`(q_T - p_T) / T`, shrinks like :math:`1 / T^2` once T is large.

Hinton, Vinyals and Dean 2015, "Distilling the knowledge in a neural network", section 2.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.methods._checks import class_labels, expect, expect_floating, expect_same_shape, wide


def soften(logits: Tensor, T: float) -> Tensor:
    r"""Probabilities at temperature T: :math:`q_{i,T} = \exp(z_i / T) / \sum_j \exp(z_j / T)`.

    logits: (N, K); −inf stands for a class that is masked. Returns (N, K), float32 or wider; rows
    sum to 1. T = 1 is the softmax; T towards infinity is uniform, T towards 0 picks the largest.
    Raises ValueError unless logits are (N, K) and T is a finite number > 0, and (on a CPU) for a
    row without a finite largest logit. Hinton et al. 2015, equation 1.
    """
    _expect_logits("logits", logits)
    expect_temperature(T)
    probabilities = _soften(logits, T)
    _expect_finite_largest("logits", probabilities)
    return probabilities


def distillation_loss(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, *, T: float, alpha: float
) -> Tensor:
    r"""(1 − α)·CE(y, q₁) + α·T²·CE(p_T, q_T), in nats, mean over the batch.

    student_logits, teacher_logits: (N, K), −inf where a class is masked; labels: (N,) whole numbers
    in [0, K). T > 0; alpha in [0, 1]: 0 is plain cross-entropy, 1 never looks at a label. The
    teacher gets no gradient. Raises ValueError for shapes that do not match, an empty batch, T or
    alpha out of range, and (on a CPU only: elsewhere it would have to wait for the device) for
    labels outside the classes and rows that are masked altogether. Hinton et al. 2015, section 2.
    """
    _expect_pair(student_logits, teacher_logits)
    expect_temperature(T)
    expect(0 <= alpha <= 1, f"alpha must be in [0, 1], got {alpha}")
    y = class_labels(labels, student_logits)
    if alpha == 0:
        return F.cross_entropy(wide(student_logits), y)
    soft = alpha * T**2 * soft_cross_entropy(student_logits, teacher_logits, T)
    return soft if alpha == 1 else (1 - alpha) * F.cross_entropy(wide(student_logits), y) + soft


def soft_cross_entropy(z: Tensor, v: Tensor, T: float) -> Tensor:
    r""":math:`CE(p_T, q_T) = -\sum_i p_{i,T} \log q_{i,T}`, in nats, mean over the batch.

    z, v: (N, K) logits of student and teacher, which gets no gradient. 0·log 0 is 0: what both mask
    does not count, and the loss is infinite where the student masks what the teacher holds
    possible. The arguments are checked by those who call it.
    """
    weights = _soften(v.detach(), T) / -len(z)  # for a sum that is the mean over the batch
    log_q = (wide(z) / T).log_softmax(1)
    loss = (weights * log_q).masked_fill(weights == 0, 0).sum()
    _expect_rows(loss, z, v)
    return loss


def logit_matching_loss(student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
    r"""½·mean((z − v)²) with rows of z and v centred.

    It is where T²·CE(p_T, q_T) goes for large T, up to a constant. student_logits, teacher_logits:
    (N, K). Returns a scalar, mean over classes and batch. The teacher gets no gradient. Raises
    ValueError for shapes that do not match, an empty batch, and (on a CPU) masked classes, since
    −inf has no place in a mean. Hinton et al. 2015, section 2.1.
    """
    _expect_pair(student_logits, teacher_logits)
    loss = 0.5 * F.mse_loss(_centred(student_logits), _centred(teacher_logits.detach()))
    _expect_unmasked(loss, student_logits, teacher_logits)
    return loss


def soft_target_gradient(z: Tensor, v: Tensor, T: float) -> Tensor:
    r""":math:`\partial\, \mathcal{L}_{ce}(p_T, q_T) / \partial z = (q_T - p_T) / T`.

    For each sample, without a batch factor. z, v: (N, K) logits of student and teacher. Returns
    (N, K); rows sum to 0. Raises ValueError for shapes that do not match, T out of range, and (on a
    CPU) rows without a finite largest logit. Hinton et al. 2015, equation 2.
    """
    _expect_pair(z, v)
    return (soften(z, T) - soften(v, T)) / T


def logit_matching_gradient(z: Tensor, v: Tensor, T: float) -> Tensor:
    r""":math:`(z - v) / (K T^2)` with rows centred: `soft_target_gradient` at a large T.

    For each sample. z, v: (N, K) logits of student and teacher. Returns (N, K); rows sum to 0. The
    limit holds for T large against the logits, and its error halves when T doubles. Raises
    ValueError for shapes that do not match, T out of range, and (on a CPU) masked classes.
    Hinton et al. 2015, equation 4.
    """
    _expect_pair(z, v)
    expect_temperature(T)
    gradient = (_centred(z) - _centred(v)) / (z.shape[1] * T**2)
    _expect_unmasked(gradient, z, v)
    return gradient


def prior_offsets(
    logits: Tensor, prior: Tensor, *, tolerance: float = 1e-5, steps: int = 1000
) -> Tensor:
    r"""One number per class that, added to its logits, makes its mean probability its prior.

    A student that never saw a class gives it too little probability. This puts the mass back, and
    needs no labels: :math:`b \leftarrow b + \log \pi - \log \bar q`, where :math:`\bar q` is the
    mean of softmax(z + b) over the samples, until they agree. logits: (N, K); prior: (K,),
    positive, sum 1. Returns (K,), with mean 0. Raises ValueError for a prior that is none, and if
    the two do not agree within `tolerance` after `steps`. Hinton et al. 2015, section 3, chose such
    an offset on the test set; here unlabelled images are enough.
    """
    _expect_logits("logits", logits)
    _expect_prior(prior, logits)
    z, pi = logits.double(), prior.double()
    b = torch.zeros_like(pi)
    for _ in range(steps):
        mean = (z + b).softmax(1).mean(0)
        if (mean - pi).abs().max() <= tolerance:
            return (b - b.mean()).to(wide(logits).dtype)
        b = b + pi.log() - mean.log()
    raise ValueError(
        f"no offsets were found in {steps} steps: the logits may be too far apart, "
        f"or tolerance {tolerance} too small"
    )


def _soften(logits: Tensor, T: float) -> Tensor:
    return (wide(logits) / T).softmax(1)


def _centred(logits: Tensor) -> Tensor:
    z = wide(logits)
    return z - z.mean(1, keepdim=True)


def _expect_logits(name: str, logits: Tensor) -> None:
    expect(logits.ndim == 2, f"{name} must have shape (N, K), got {tuple(logits.shape)}")
    expect_floating(name, logits)


def _expect_pair(student: Tensor, teacher: Tensor) -> None:
    _expect_logits("student logits", student)
    _expect_logits("teacher logits", teacher)
    expect_same_shape("student and teacher logits", student, teacher)
    shape = tuple(student.shape)
    expect(0 not in shape, f"logits must hold at least one sample and one class, got shape {shape}")


def _expect_prior(prior: Tensor, logits: Tensor) -> None:
    shaped = prior.shape == logits.shape[1:] and len(logits) > 0
    fits = shaped and bool((prior > 0).all()) and abs(prior.sum().item() - 1) < 1e-4
    wanted = f"({logits.shape[1]},) positive numbers that sum to 1"
    expect(fits, f"prior must be {wanted}, for at least one sample")


def expect_temperature(T: float) -> None:
    """Raise ValueError unless T is a finite number > 0."""
    expect(0 < T < math.inf, f"T must be a finite number > 0, got {T}")


def _undefined(result: Tensor) -> bool:
    """Whether NaN came out. Asked on a CPU only: elsewhere it would have to wait for the device."""
    return result.is_cpu and bool(result.isnan().any())


def _expect_finite_largest(name: str, result: Tensor) -> None:
    fits = not _undefined(result)
    expect(fits, f"{name} must have a finite largest number in each row, and one has none")


def _expect_rows(loss: Tensor, z: Tensor, v: Tensor) -> None:
    """A student's NaN is let through: `fit` says at which step it diverged."""
    if loss.is_cpu and loss.isnan():
        _expect_finite_largest("teacher logits", v.softmax(1))
        masked = bool((z.amax(1) == -math.inf).any())
        expect(not masked, "student logits must not be -inf for every class of a row")


def _expect_unmasked(result: Tensor, *logits: Tensor) -> None:
    masked = _undefined(result) and any(bool((x == -math.inf).any()) for x in logits)
    expect(not masked, "logits must not be -inf here: leave out the classes that are masked")
