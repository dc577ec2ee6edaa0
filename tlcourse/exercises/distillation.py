"""Exercises of the chapter on knowledge distillation; some mistakes are papers' and libraries'."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from tlcourse.exercises._exercise import Exercise, Function, trainable
from tlcourse.methods.distillation import distillation_loss, soft_target_gradient, soften


def recorded_targets(teacher_logits: Tensor, index: Tensor, T: float) -> Tensor:
    """Soft targets (B, K) of a shuffled batch, from logits recorded once for all N images.

    index: (B,), the batch's positions.
    """
    return soften(teacher_logits[index], T)


def weight_without_factor(alpha: float, T: float) -> float:
    """The β for which (1 − β)·hard + β·soft trains as (1 − α)·hard + α·T²·soft, up to a factor."""
    return alpha * T**2 / (1 - alpha + alpha * T**2)


def gradients(loss: Function, inputs: Mapping[str, Any]) -> Tensor:
    """What a loss does to the logits of student and teacher, (2, N, K).

    Two losses that differ by a constant train alike.
    """
    z, v = (inputs[name].clone().requires_grad_() for name in ("student_logits", "teacher_logits"))
    found = trainable(
        loss(**{**inputs, "student_logits": z, "teacher_logits": v}), "student_logits"
    )
    parts = torch.autograd.grad(found, (z, v), allow_unused=True)
    return torch.stack([torch.zeros_like(z) if part is None else part for part in parts])


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
    hard: Callable[..., Tensor] | None = None,
    power: float = 2,
) -> Function:
    """A version of the loss: soft(z, v, T) and its factor T^power, hard(z, y, T)."""

    def loss(
        student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
    ) -> Tensor:
        z, v = student_logits, teacher_logits.detach()
        plain = F.cross_entropy(z, labels) if hard is None else hard(z, labels, T)
        return (1 - alpha) * plain + alpha * T**power * soft(z, v, T)

    return loss


def _cross(p: Tensor, z: Tensor) -> Tensor:
    """Cross-entropy of the probabilities p against softmax(z), mean over the batch."""
    return -(p * z.log_softmax(1)).sum(1).mean()


def _soft(z: Tensor, v: Tensor, T: float) -> Tensor:
    return _cross((v / T).softmax(1), z / T)


def _swapped(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
) -> Tensor:
    return _loss(_soft)(student_logits, teacher_logits, labels, T, 1 - alpha)


def _not_detached(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
) -> Tensor:
    z, v = student_logits, teacher_logits
    return (1 - alpha) * F.cross_entropy(z, labels) + alpha * T**2 * _soft(z, v, T)


def _not_detached_kl(
    student_logits: Tensor, teacher_logits: Tensor, labels: Tensor, T: float, alpha: float
) -> Tensor:
    z, v = student_logits, teacher_logits
    kl = F.kl_div((z / T).log_softmax(1), (v / T).softmax(1), reduction="batchmean")
    return (1 - alpha) * F.cross_entropy(z, labels) + alpha * T**2 * kl


_silent = _loss(lambda z, v, T: _soft(v, v, T))  # the loss with a bug, as it was found
LOSS_MISTAKES: list[tuple[str, Function]] = [
    ("the factor T² is missing, so the soft targets fade as T grows.", _loss(_soft, power=0)),
    (
        "the factor is T, but both the softmax's slope and its argument bring a 1/T: it takes T².",
        _loss(_soft, power=1),
    ),
    ("alpha is the weight of the soft targets; you gave it to the labels.", _swapped),
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
    (
        "nothing is learnt from the soft term. Does it compare two networks, with the student's "
        "side not detached?",
        _silent,
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
        "the soft term ignores T: both softmaxes are at T = 1.",
        _loss(lambda z, v, T: _cross(v.softmax(1), z)),
    ),
    (
        "the softmax is over the batch, dimension 0; classes are dimension 1.",
        _loss(lambda z, v, T: _soft(z.T, v.T, T) * z.shape[1] / len(z)),
    ),
    (
        "kl_div takes log-probabilities of the student, and got probabilities.",
        _loss(lambda z, v, T: -_plain_product(z, v, T)),
    ),
    (
        "the teacher gets a gradient; it must not learn from its student. Detach its logits.",
        _not_detached,
    ),
    (
        "the teacher gets a gradient; it must not learn from its student. Detach its logits.",
        _not_detached_kl,
    ),
]


def _plain_product(z: Tensor, v: Tensor, T: float) -> Tensor:
    return ((v / T).softmax(1) * (z / T).softmax(1)).sum(1).mean()


EXERCISES: dict[str, Exercise] = {
    "soften": Exercise(
        title="soften the logits",
        task="Complete `my_soften(logits, T)`: the probabilities of each row of `logits` (N "
        "images, K classes) at temperature `T`.",
        kind="complete",
        difficulty=1,
        minutes=3,
        core=True,
        reference=soften,
        draw=_for_soften,
        mistakes=[
            (
                "the softmax runs over the batch, dimension 0; each row must sum to 1.",
                lambda logits, T: (logits / T).softmax(0),
            ),
            (
                "you multiply by T; a high temperature would then sharpen.",
                lambda logits, T: (logits * T).softmax(1),
            ),
            (
                "you divide the probabilities by T, not the logits.",
                lambda logits, T: logits.softmax(1) / T,
            ),
            ("T is not used.", lambda logits, T: logits.softmax(1)),
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
        "nothing. Find the bug and repair it. Only the gradients are compared, so a loss that "
        "differs by a constant is right.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=distillation_loss,
        draw=_for_loss,
        mistakes=[
            ("this is the loss as it was found.", _silent),
            *(pair for pair in LOSS_MISTAKES if pair[1] is not _silent),
        ],
        see=gradients,
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
        reference=distillation_loss,
        draw=_for_loss,
        mistakes=LOSS_MISTAKES,
        see=gradients,
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
        reference=soft_target_gradient,
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
                "you take the first rows; the batch is shuffled.",
                lambda teacher_logits, index, T: soften(teacher_logits[: len(index)], T),
            ),
            (
                "you sort the index; then targets and images no longer belong together.",
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
            ("T is not used.", lambda teacher_logits, index, T: teacher_logits[index].softmax(1)),
        ],
        hints=[
            "Row i of the recording belongs to image i of the data.",
            "A tensor of positions picks rows, in its own order.",
        ],
    ),
}
