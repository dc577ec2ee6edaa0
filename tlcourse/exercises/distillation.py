"""Exercises of the chapter on knowledge distillation; some mistakes are papers' and libraries'."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tlcourse.exercises._compare import tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import gradients
from tlcourse.methods.distillation import soft_target_gradient, soften


def softened(logits: Tensor, T: float) -> Tensor:
    """Probabilities at temperature T, (N, K); each row sums to 1."""
    return (logits / T).softmax(dim=1)


def loss_of_the_paper(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
) -> Tensor:
    """(1 − α)·CE(y, q₁) + α·T²·CE(p_T, q_T), mean over the batch."""
    hard = F.cross_entropy(student_logits, labels)
    p = (teacher_logits.detach() / T).softmax(dim=1)
    log_q = (student_logits / T).log_softmax(dim=1)
    soft = -(p * log_q).sum(dim=1).mean()
    return (1 - alpha) * hard + alpha * T**2 * soft


def gradient_of_the_soft_targets(z: Tensor, v: Tensor, T: float) -> Tensor:
    """(q − p) / T for each image, (N, K); rows sum to 0."""
    q = (z / T).softmax(dim=1)
    p = (v / T).softmax(dim=1)
    return (q - p) / T


def recorded_targets(teacher_logits: Tensor, index: Tensor, T: float) -> Tensor:
    """Soft targets (B, K) of a shuffled batch, from the logits of all N images."""
    return (teacher_logits[index] / T).softmax(dim=1)


def weight_without_factor(alpha: float, T: float) -> float:
    """The β whose ratio to 1 − β is α·T² / (1 − α)."""
    return alpha * T**2 / (1 - alpha + alpha * T**2)


def gradients_of_terms(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What a loss does to the logits of student and teacher, of each term and of the whole.

    Two losses that differ by a constant train alike.
    """
    logits = "student_logits", "teacher_logits"
    hard, soft = (gradients(loss, {**inputs, "alpha": alpha}, *logits) for alpha in (0.0, 1.0))
    whole = gradients(loss, inputs, *logits)
    return {
        "the gradient of the labels' term (alpha = 0)": hard["student_logits"],
        "the gradient of the soft term (alpha = 1)": soft["student_logits"],
        "the gradient at the student's logits": whole["student_logits"],
        "the gradient at the teacher's logits": whole["teacher_logits"],
        "the soft term's networks": _networks(loss, inputs, soft["student_logits"]),
    }


def _networks(loss: Function, inputs: Mapping[str, Any], slope: Any) -> str:
    """Whose logits the soft term looks at; its value says so where it has no gradient."""
    if not isinstance(slope, Tensor) or slope.abs().max() > 1e-6:
        return "student and teacher"
    inputs = {**inputs, "alpha": 1.0}
    unknown = {"teacher_logits": torch.full_like(inputs["teacher_logits"], torch.nan)}
    moved = {"student_logits": inputs["student_logits"].flip(1)}
    before, blind, other = (
        float(tried(lambda change=change: loss(**{**inputs, **change}), torch.nan))
        for change in ({}, unknown, moved)
    )
    if blind == blind:  # without the teacher's logits there is still a loss
        return "no teacher"
    return "the teacher alone" if other == before else "the teacher and a detached student"


def _normal(g: Generator, *shape: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=g)


def _temperature(size: int) -> float:
    return (2.0, 4.0, 0.5, 8.0)[size % 4]


def _for_soften(g: Generator, size: int) -> dict[str, Any]:
    return {
        "logits": _normal(g, size, size + 1, spread=3.0 if size < 8 else 1000.0),
        "T": _temperature(size),
    }


def _for_loss(g: Generator, size: int) -> dict[str, Any]:
    labels = torch.randint(0, size + 2, (size,), generator=g)
    logits = {
        "student_logits": _normal(g, size, size + 2),
        "teacher_logits": _normal(g, size, size + 2),
    }
    return {**logits, "labels": labels, "T": _temperature(size), "alpha": (0.3, 0.9, 0.6)[size % 3]}


def _for_gradient(g: Generator, size: int) -> dict[str, Any]:
    return {
        "z": _normal(g, size, size + 2),
        "v": _normal(g, size, size + 2),
        "T": _temperature(size),
    }


def _for_recorded(g: Generator, size: int) -> dict[str, Any]:
    index = torch.randperm(3 * size, generator=g)[: size + 1]
    return {
        "teacher_logits": _normal(g, 3 * size, size + 2),
        "index": index,
        "T": _temperature(size),
    }


def _for_weight(g: Generator, size: int) -> dict[str, Any]:
    return {"alpha": (0.9, 0.5, 0.1)[size % 3], "T": (20.0, 4.0, 2.0, 1.0)[size % 4]}


def _loss(
    soft: Callable[[Tensor, Tensor, float], Tensor],
    hard: Callable[[Tensor, Tensor, float], Tensor] = lambda z, y, T: F.cross_entropy(z, y),
    power: float = 2,
    weights: Callable[[float], tuple[float, float]] = lambda alpha: (1 - alpha, alpha),
    taught: bool = False,
) -> Function:
    """A version of the loss: soft(z, v, T) and its factor T^power, hard(z, y, T), the weights."""

    def loss(
        student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
    ) -> Tensor:
        z, v = student_logits, teacher_logits if taught else teacher_logits.detach()
        of_labels, of_soft = weights(alpha)
        return of_labels * hard(z, labels, T) + of_soft * T**power * soft(z, v, T)

    return loss


def _cross(p: Tensor, z: Tensor) -> Tensor:
    """Cross-entropy of the probabilities p against softmax(z), mean over the batch."""
    return -(p * z.log_softmax(1)).sum(1).mean()


def _soft(z: Tensor, v: Tensor, T: float) -> Tensor:
    return _cross((v / T).softmax(1), z / T)


def _kl(z: Tensor, v: Tensor, T: float) -> Tensor:
    return F.kl_div((z / T).log_softmax(1), (v / T).softmax(1), reduction="batchmean")


def _plain_product(z: Tensor, v: Tensor, T: float) -> Tensor:
    return -((v / T).softmax(1) * (z / T).softmax(1)).sum(1).mean()


TAUGHT = "the teacher gets a gradient; it must not learn from its student. Detach its logits."
NO_TEACHER = (
    "the teacher has no part in the loss: the soft term is missing, or the student is its own "
    "teacher."
)
_silent = _loss(lambda z, v, T: _soft(v, v, T))  # the loss with a bug, as it was found
LOSS_MISTAKES: list[tuple[str, Function]] = [
    ("the factor T² is missing, so the soft targets fade as T grows.", _loss(_soft, power=0)),
    (
        "the factor is T, but both the softmax's slope and its argument bring a 1/T: it takes T².",
        _loss(_soft, power=1),
    ),
    (
        "alpha is the weight of the soft targets; you gave it to the labels.",
        _loss(_soft, weights=lambda alpha: (alpha, 1 - alpha)),
    ),
    (
        "the labels' term has weight 1; it takes 1 − alpha.",
        _loss(_soft, weights=lambda alpha: (1, alpha)),
    ),
    (
        "the soft term has weight T² alone; it takes alpha·T².",
        _loss(_soft, weights=lambda alpha: (1 - alpha, 1)),
    ),
    ("alpha has no effect: both weights are 1.", _loss(_soft, weights=lambda alpha: (1, 1))),
    ("the labels' term is missing.", _loss(_soft, weights=lambda alpha: (0, alpha))),
    ("the labels' term is missing, and so is alpha.", _loss(_soft, weights=lambda alpha: (0, 1))),
    (NO_TEACHER, _loss(lambda z, v, T: 0 * z.sum())),
    (
        f"{NO_TEACHER} And the labels' term has weight 1.",
        _loss(lambda z, v, T: 0 * z.sum(), weights=lambda alpha: (1, alpha)),
    ),
    (NO_TEACHER, _loss(lambda z, v, T: _soft(z, z.detach(), T))),
    (
        "the soft term has the wrong sign: it drives the student away from its teacher.",
        _loss(lambda z, v, T: -_soft(z, v, T)),
    ),
    (
        "the labels' term has the wrong sign: it drives the student away from the labels.",
        _loss(_soft, lambda z, y, T: -F.cross_entropy(z, y)),
    ),
    (
        "the whole loss has the wrong sign: a minus is missing in both terms.",
        _loss(lambda z, v, T: -_soft(z, v, T), lambda z, y, T: -F.cross_entropy(z, y)),
    ),
    (
        "the soft term is a mean over images and classes. Sum over the classes (kl_div: "
        "reduction='batchmean', not 'mean').",
        _loss(lambda z, v, T: _soft(z, v, T) / z.shape[1]),
    ),
    (
        "the soft term is summed over the batch; it should be a mean over the images.",
        _loss(lambda z, v, T: _soft(z, v, T) * len(z)),
    ),
    (
        "student and teacher are exchanged in the soft term: it is −Σ p log q, with the teacher's "
        "p.",
        _loss(lambda z, v, T: _soft(v, z, T)),
    ),
    ("nothing is learnt from the soft term: it looks at the teacher alone.", _silent),
    (
        "nothing is learnt from the soft term: the student is detached in it. Only the teacher is "
        "a constant.",
        _loss(lambda z, v, T: _soft(z.detach(), v, T)),
    ),
    (
        "the labels' term is softened too; it is at T = 1.",
        _loss(_soft, lambda z, y, T: F.cross_entropy(z / T, y)),
    ),
    (
        "the soft term does not use T in both softmaxes: the teacher's is at T = 1.",
        _loss(lambda z, v, T: _cross(v.softmax(1), z / T)),
    ),
    (
        "the soft term does not use T in both softmaxes: the student's is at T = 1.",
        _loss(lambda z, v, T: _cross((v / T).softmax(1), z)),
    ),
    (
        "T has no effect on the soft term's softmaxes: both are at T = 1.",
        _loss(lambda z, v, T: _cross(v.softmax(1), z)),
    ),
    (
        "the softmax is over the batch, dimension 0; classes are dimension 1.",
        _loss(lambda z, v, T: _soft(z.T, v.T, T) * z.shape[1] / len(z)),
    ),
    (
        "the logarithm of the student's probabilities is missing; kl_div, too, takes "
        "log-probabilities.",
        _loss(_plain_product),
    ),
    (TAUGHT, _loss(_soft, taught=True)),
    (TAUGHT, _loss(_kl, taught=True)),
]


EXERCISES: dict[str, Exercise] = {
    "soften": Exercise(
        title="soften the logits",
        task="Complete `my_soften(logits, T)`: the probabilities of each row of `logits` (N "
        "images, K classes) at temperature `T`.",
        kind="complete",
        difficulty=1,
        minutes=3,
        core=True,
        reference=softened,
        draw=_for_soften,
        mistakes=[
            (
                "the softmax runs over the batch, dimension 0; each row must sum to 1.",
                lambda logits, T: (logits / T).softmax(0),
            ),
            (
                "the logits are multiplied by T; a high temperature would then sharpen.",
                lambda logits, T: (logits * T).softmax(1),
            ),
            (
                "the probabilities are divided by T, not the logits.",
                lambda logits, T: logits.softmax(1) / T,
            ),
            ("T has no effect: this is the softmax at T = 1.", lambda logits, T: logits.softmax(1)),
            (
                "these are logarithms of the probabilities.",
                lambda logits, T: (logits / T).log_softmax(1),
            ),
            (
                "exp overflows for large logits. Subtract each row's largest first, or let "
                "softmax do it.",
                lambda logits, T: (logits / T).exp() / (logits / T).exp().sum(1, keepdim=True),
            ),
        ],
        hints=[
            "Which dimension must sum to 1?",
            "T divides the logits before anything else happens.",
            "`torch.softmax` takes `dim=1`.",
        ],
    ),
    "find_the_bug": Exercise(
        title="find the bug",
        task="This loss was found in the wild, and its author wonders why distillation does "
        "nothing. Find the bug and repair `my_repaired_loss(student_logits, teacher_logits, "
        "labels, T, alpha)`. Only the gradients are compared, so a loss that differs by a constant "
        "is right.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=loss_of_the_paper,
        draw=_for_loss,
        mistakes=[
            ("this is the loss as it was found.", _silent),
            *(pair for pair in LOSS_MISTAKES if pair[1] is not _silent),
        ],
        see=gradients_of_terms,
        hints=[
            "Print the soft term for a few logits, and its gradient at the student's.",
            "Read each name on the right-hand sides: which network does it belong to?",
        ],
    ),
    "loss": Exercise(
        title="write the loss",
        task="From memory, write `my_own_loss(student_logits, teacher_logits, labels, T, alpha)`: "
        "the loss of this chapter, a mean over the batch, from `softmax` and `log_softmax`. KL in "
        "place of CE is as good: only the gradients are compared.",
        kind="write",
        difficulty=2,
        minutes=10,
        core=True,
        reference=loss_of_the_paper,
        draw=_for_loss,
        mistakes=LOSS_MISTAKES,
        see=gradients_of_terms,
        hints=[
            "(1 − α) times the labels' term plus α·T² times the soft one. Labels: "
            "`F.cross_entropy` on the student's plain logits.",
            "The soft term is −Σ p log q over the classes, then the mean over the images. p "
            "belongs to the teacher.",
            "The teacher is a constant: `teacher_logits.detach()`.",
        ],
    ),
    "gradient": Exercise(
        title="its gradient",
        task="Write `my_gradient(z, v, T)`: the gradient of −Σ p log q by the student's logits z, "
        "for each image by itself. No autograd.",
        kind="write",
        difficulty=2,
        minutes=6,
        reference=gradient_of_the_soft_targets,
        draw=_for_gradient,
        mistakes=[
            (
                "the chain rule's 1/T is missing: the loss sees z / T.",
                lambda z, v, T: soften(z, T) - soften(v, T),
            ),
            (
                "the sign is turned round: descent would move away from the teacher.",
                lambda z, v, T: (soften(v, T) - soften(z, T)) / T,
            ),
            (
                "one 1/T too many: the softmax's own 1/T is in q already.",
                lambda z, v, T: (soften(z, T) - soften(v, T)) / T**2,
            ),
            (
                "this is the gradient of the batch's mean; the exercise asks for each image.",
                lambda z, v, T: soft_target_gradient(z, v, T) / len(z),
            ),
            (
                "this includes the factor T² of the whole loss.",
                lambda z, v, T: T**2 * soft_target_gradient(z, v, T),
            ),
            (
                "both softmaxes must be at temperature T.",
                lambda z, v, T: (z.softmax(1) - v.softmax(1)) / T,
            ),
        ],
        hints=[
            "For plain cross-entropy the gradient is q − y. What takes y's place?",
            "z enters only as z / T: one application of the chain rule.",
        ],
    ),
    "why_the_factor": Exercise(
        title="why T²",
        task="A colleague's loss has no T²: (1 − β)·hard + β·soft. Write `my_weight(alpha, T)`: "
        "the β that makes it train as ours does with α, up to one factor on the whole loss (which "
        "Adam, the optimiser of `fit`, does not notice).",
        kind="write",
        difficulty=3,
        minutes=8,
        reference=weight_without_factor,
        draw=_for_weight,
        mistakes=[
            (
                "without T² the same weight says something else: at T = 20 the soft term would be "
                "400 times weaker.",
                lambda alpha, T: alpha,
            ),
            (
                "β and 1 − β must sum to 1, so the T² has to be shared out between the two.",
                lambda alpha, T: alpha * T**2,
            ),
            ("the factor is T², not T.", lambda alpha, T: alpha * T / (1 - alpha + alpha * T)),
            (
                "this is the weight of the labels, 1 − β.",
                lambda alpha, T: (1 - alpha) / (1 - alpha + alpha * T**2),
            ),
            (
                "this goes the other way: it finds α from β.",
                lambda alpha, T: alpha / (alpha + (1 - alpha) * T**2),
            ),
        ],
        hints=[
            "What matters is the ratio of the two weights. What is it in our loss?",
            "β / (1 − β) = αT² / (1 − α). Solve for β.",
        ],
    ),
    "recorded": Exercise(
        title="recorded logits and shuffled batches",
        task="The teacher ran once over all N images, unshuffled. Write "
        "`my_targets(teacher_logits, index, T)`: soft targets for a batch whose images stood at "
        "`index`, (B,) for its B images.",
        kind="complete",
        difficulty=1,
        minutes=4,
        reference=recorded_targets,
        draw=_for_recorded,
        mistakes=[
            (
                "these are the recording's first rows; the batch is shuffled.",
                lambda teacher_logits, index, T: soften(teacher_logits[: len(index)], T),
            ),
            (
                "the rows are in the order of the recording, not of the batch; targets and images "
                "no longer belong together.",
                lambda teacher_logits, index, T: soften(teacher_logits[index.sort().values], T),
            ),
            (
                "these are the targets of all images; the batch has only some.",
                lambda teacher_logits, index, T: soften(teacher_logits, T),
            ),
            (
                "the logits are looked up but not softened.",
                lambda teacher_logits, index, T: teacher_logits[index],
            ),
            (
                "T has no effect: this is the softmax at T = 1.",
                lambda teacher_logits, index, T: teacher_logits[index].softmax(1),
            ),
        ],
        hints=[
            "Row i of the recording belongs to image i of the data.",
            "A tensor of positions picks rows, in its own order.",
        ],
    ),
}
