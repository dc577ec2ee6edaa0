"""Does a small network learn more from a teacher's soft targets than from labels alone?

The lecture's MNIST table in small, and its algebra.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Given, equivalent, exact, greater
from tlcourse.data import Images, load, random_shift
from tlcourse.experiments.base import Case, Experiment, Row, Scale, tuned
from tlcourse.methods.distillation import (
    distillation_loss,
    logit_matching_gradient,
    logit_matching_loss,
    soft_target_gradient,
    soften,
)
from tlcourse.metrics import errors
from tlcourse.models import MLP
from tlcourse.training import (
    Batch,
    History,
    Objective,
    cross_entropy,
    fit,
    predict,
    record,
    seed_everything,
)

ALPHA = 0.9  # of the soft targets; the paper gives the labels "a considerably lower weight"
TEMPERATURES = {f"T={T}": T for T in (1, 2, 4, 8, 20)}
STUDENTS = ("alone", *TEMPERATURES, "logits")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2, 3.2e-2)
LOWEST = 3  # K8 looks at the three classes of ten that the teacher finds least likely


@dataclass(frozen=True, kw_only=True)
class Distillation(Scale):
    """Images for training and as many for validation; the teacher, and its students."""

    images: int
    teacher: tuple[int, ...]
    teacher_dropout: Mapping[str, float]
    teacher_epochs: int
    teacher_lr: float
    student_images: int
    student_epochs: int
    widths: tuple[int, ...]


def run(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors on the 10,000 test images, of a teacher and of a student per arm and width.

    Those of students at the end and along the way.
    """
    train, _ = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    teacher = train_teacher(scale, train, seed)
    pupils = train.take(slice(0, scale.student_images))
    teacher_errors, said, goal = mistakes(teacher, test), record(teacher, pupils), 0.0
    for case in cases(scale, pupils, said, seed, test):
        arm, at = case.arm, case.at
        if arm == "alone":
            yield Row("teacher", "errors", teacher_errors, at)
        student, history = case.trained(scale)
        curve: list[float] = history.epochs["errors"].tolist()
        goal = curve[-1] if arm == "alone" else goal
        yield Row(arm, "errors", curve[-1], at)
        yield Row(arm, "epochs to what alone reaches", _first_at_most(curve, goal), at)
        for epoch, value in enumerate(curve, 1):
            yield Row(arm, "errors by epoch", value, {**at, "epoch": epoch})
        if arm == "alone" and at["width"] == max(scale.widths):
            yield from algebra(record(student, pupils), said)


def tune(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, width and learning rate, on validation images."""
    train, validation = train_and_validation(scale, seed, device)
    pupils = train.take(slice(0, scale.student_images))
    said = record(train_teacher(scale, train, seed), pupils)
    yield from tuned(cases(scale, pupils, said, seed), wrong_on(validation))


def cases(
    scale: Distillation, pupils: Images, said: Tensor, seed: int, test: Images | None = None
) -> Iterator[Case]:
    """A student for every width and arm. said: the teacher's logits on the pupils' images."""
    how: Any = {"epochs": scale.student_epochs, "images": pupils, "seed": seed, "test": test}
    for width, arm in product(scale.widths, STUDENTS):
        train = partial(train_student, objective(arm, said), width, **how)
        yield Case(arm, dict(zip(RATES, RATES)), train, {"width": width})


def algebra(student_logits: Tensor, teacher_logits: Tensor) -> Iterator[Row]:
    """The lecture's equations on real logits, (N, K), in double precision."""
    z, v = (logits.cpu().double() for logits in (student_logits, teacher_logits))
    for arm, T in TEMPERATURES.items():
        direct = (z / T).exp() / (z / T).exp().sum(1, keepdim=True)
        gradient = soft_target_gradient(z, v, T)
        yield Row(arm, "softmax error", _largest(soften(z, T) - direct))
        yield Row(arm, "gradient error", _largest(gradient - _autograd(z, v, T)))
        yield Row(arm, "gradient size", _size_against_limit(z, v, T))
        yield Row(arm, "gradient size error", abs(_size_against_limit(z, v, T) - 1))
        yield Row(arm, "share of the lowest", _share_of_lowest(gradient, v))
    yield Row("limit", "share of the lowest", _share_of_lowest(logit_matching_gradient(z, v, 1), v))
    powers = [2.0**k for k in range(13)]
    misses = [T for T in powers if abs(_size_against_limit(z, v, T) - 1) > 0.1]
    yield Row("limit", "gradient size holds from T", 2 * max(misses, default=0.5))
    for high in (256.0, 512.0, 1024.0, 2048.0):
        ratio = _distance_to_limit(z, v, high) / _distance_to_limit(z, v, 2 * high)
        yield Row("limit", "halving error", ratio - 2, {"T": high})


def objective(arm: str, said: Tensor) -> Objective:
    """What a student of this arm minimises. said: a teacher's logits (N, K) on its images."""
    if arm == "alone":
        return cross_entropy
    if arm == "logits":
        return lambda net, batch: _match_logits(net, batch, said)
    return softly(said, TEMPERATURES[arm], ALPHA)


def softly(said: Tensor, T: float, alpha: float) -> Objective:
    """Labels, and a teacher's recorded logits at a temperature with a weight of alpha."""
    return lambda net, batch: distillation_loss(
        net(batch.x), said[batch.index], batch.y, T=T, alpha=alpha
    )


def _match_logits(net: nn.Module, batch: Batch, said: Tensor) -> Tensor:
    logits = net(batch.x)
    hard = F.cross_entropy(logits, batch.y)
    return (1 - ALPHA) * hard + ALPHA * logit_matching_loss(logits, said[batch.index])


def mistakes(network: nn.Module, images: Images) -> int:
    """How many of these images a network gets wrong."""
    return errors(predict(network, images), images.labels)


def wrong_on(images: Images) -> Callable[[tuple[nn.Module, History]], int]:
    """The same of what `train_student` returns."""
    return lambda new: mistakes(new[0], images)


def train_and_validation(scale: Distillation, seed: int, device: torch.device) -> list[Images]:
    """Disjoint parts of MNIST's training images, of scale.images each."""
    return [part.to(device) for part in load("mnist").split(scale.images, scale.images, seed=seed)]


def train_teacher(scale: Distillation, train: Images, seed: int) -> nn.Module:
    """A larger network that sees shifted images, so that it knows more than its students."""
    seed_everything(seed)
    teacher = MLP(784, *scale.teacher, 10, **scale.teacher_dropout).to(train.pixels.device)
    how: dict[str, Any] = {"augment": random_shift(2), "seed": seed, "progress": False}
    fit(teacher, train, cross_entropy, epochs=scale.teacher_epochs, lr=scale.teacher_lr, **how)
    return teacher


def train_student(
    how: Objective,
    width: int,
    lr: float,
    epochs: int,
    images: Images,
    seed: int,
    test: Images | None = None,
) -> tuple[nn.Module, History]:
    """Every arm of a seed starts from the same weights and sees the same batches.

    With test images, errors are counted every epoch.
    """
    seed_everything(seed)
    student = MLP(784, width, width, 10).to(images.pixels.device)
    watch = None if test is None else lambda net, _: {"errors": mistakes(net, test)}
    settings: dict[str, Any] = {"seed": seed, "on_epoch": watch, "progress": False}
    return student, fit(student, images, how, epochs=epochs, lr=lr, **settings)


def _first_at_most(curve: list[float], goal: float) -> int:
    """The first epoch with at most `goal` errors; one more than there are, if none has."""
    return next((epoch for epoch, value in enumerate(curve, 1) if value <= goal), len(curve) + 1)


def _largest(difference: Tensor) -> float:
    return difference.abs().max().item()


def _autograd(z: Tensor, v: Tensor, T: float) -> Tensor:
    leaf = z.clone().requires_grad_()
    F.cross_entropy(leaf / T, soften(v, T), reduction="sum").backward()
    return leaf.grad if leaf.grad is not None else torch.full_like(z, torch.nan)


def _size_against_limit(z: Tensor, v: Tensor, T: float) -> float:
    """Mean size of T² times the gradient, relative to where it goes for T towards infinity."""
    size = T**2 * soft_target_gradient(z, v, T).norm(dim=1).mean()
    return (size / logit_matching_gradient(z, v, 1).norm(dim=1).mean()).item()


def _share_of_lowest(gradient: Tensor, v: Tensor) -> float:
    lowest = v.argsort(1)[:, :LOWEST]
    return (gradient.abs().gather(1, lowest).sum() / gradient.abs().sum()).item()


def _distance_to_limit(z: Tensor, v: Tensor, T: float) -> float:
    limit = logit_matching_gradient(z, v, T)
    return ((soft_target_gradient(z, v, T) - limit).norm() / limit.norm()).item()


LECTURE = Distillation(
    seeds=6,
    tuning_seeds=2,
    minutes=40,
    images=10_000,
    teacher=(800, 800),
    teacher_dropout={"dropout": 0.5, "input_dropout": 0.2},
    teacher_epochs=30,
    teacher_lr=1e-3,
    student_images=10_000,
    student_epochs=20,
    widths=(30, 300),
)
LIVE = Distillation(  # seconds, not minutes; the students get a tenth of the teacher's images
    seeds=10,
    minutes=5,
    images=10_000,
    teacher=(400, 400),
    teacher_dropout={},
    teacher_epochs=10,
    teacher_lr=4e-3,
    student_images=1_000,
    student_epochs=30,
    widths=(300,),
    settings=dict.fromkeys(STUDENTS, 4e-3),
)

VARIES = "each seed draws its images and trains its own teacher"
BETTER_TEACHER = "the teacher makes fewer errors than the student alone"
_GIVEN = Given(BETTER_TEACHER, greater("alone", "teacher", "errors", width=300))
_FEWER = greater("alone", "T=20", "errors", width=300)
_TABLE = lecture.MNIST
_claim = partial(Claim, varies=VARIES)

EXPERIMENT = Experiment(
    name="distillation",
    question="Does a small network learn more from soft targets than from labels alone?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *STUDENTS),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "I2",
            "same task, same domain: a small target that mimics its source beats learning alone",
            source="lecture, overview of scenarios, same task in the same domain",
            decide=_FEWER,
            unit="errors in 10,000; as K1, for the lecture says it twice",
            given=_GIVEN,
        ),
        _claim(
            "K1",
            "the distilled student beats the student alone",
            source="lecture, knowledge distillation, MNIST table; Hinton 2015, section 3",
            paper=f"error {_TABLE['alone']} % alone, {_TABLE['T=20']} % distilled at T = 20 "
            f"({lecture.MNIST_TRAIN:,} images)",
            decide=_FEWER,
            unit="errors in 10,000",
            given=_GIVEN,
        ),
        _claim(
            "K2",
            "distillation can train faster",
            source="lecture, knowledge distillation, first slide",
            decide=greater("alone", "T=20", "epochs to what alone reaches", width=300),
            unit="epochs saved, until it makes no more errors than the student alone at the end "
            "(the teacher's training not counted)",
            given=_GIVEN,
        ),
        _claim(
            "K3",
            "MSE on the logits works as well as soft targets",
            source="lecture, knowledge distillation, first slide",
            decide=equivalent("logits", "T=20", "errors", margin=25, width=300),
            unit="errors in 10,000",
        ),
        Claim(
            "K4",
            "softened probabilities are softmax(z/T)",
            "lecture, knowledge distillation, equation of q; Hinton 2015, equation 1",
            exact("softmax error", tolerance=1e-12),
            "largest difference of a probability",
        ),
        Claim(
            "K5",
            "the gradient of the soft loss is (q - p) / T",
            "lecture, knowledge distillation, gradient; Hinton 2015, equation 2",
            exact("gradient error", tolerance=1e-10),
            "largest difference of a gradient's entry",
        ),
        _claim(
            "K6",
            "T² keeps the size of the gradients, for T from 1 to 20",
            source="lecture, knowledge distillation, below the loss; Hinton 2015, section 2",
            decide=exact("gradient size error", tolerance=0.1),
            unit="largest distance from the size at high temperature, as a share of that size",
        ),
        _claim(
            "K7",
            "at high temperature distillation matches zero-mean logits",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, equation 4",
            decide=exact("halving error", tolerance=0.05),
            unit="error of the limit at T over that at 2T: distance of this ratio from 2, at most, "
            "for T from 256 to 2,048",
        ),
        _claim(
            "K8",
            "a high temperature weighs very negative logits more",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, section 2.1",
            decide=greater("T=20", "T=1", "share of the lowest"),
            unit="share of the gradient on the three lowest of ten classes, at T = 20 minus at "
            "T = 1",
        ),
    ],
)
