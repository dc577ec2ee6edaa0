"""Does a small network learn more from a teacher's soft targets than from labels alone? The
lecture's MNIST table, and its algebra.
"""

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Given, equivalent, exact, greater
from tlcourse.data import Images, load, random_shift
from tlcourse.experiments.base import Experiment, Row, Scale
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

ALPHA = (
    0.9  # the weight of the soft targets; the paper gives the labels "a considerably lower weight"
)
TEMPERATURES = {f"T={T}": T for T in (1, 2, 4, 8, 20)}
STUDENTS = ("alone", *TEMPERATURES, "logits")
RATES = (
    2e-3,
    4e-3,
    8e-3,
    1.6e-2,
    3.2e-2,
)  # each student arm gets the one that makes the fewest errors on validation images
LOWEST = 3  # K8 looks at the three classes of ten that the teacher finds least likely


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """A teacher, then a student per arm and width: errors on the 10,000 test images at the end and
    along the way.
    """
    train, _ = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    teacher = train_teacher(scale, train, seed)
    pupils = train.take(slice(0, scale.student_images))
    teacher_errors, teacher_logits = (
        errors(predict(teacher, test), test.labels),
        record(teacher, pupils),
    )
    for width in scale.widths:
        yield Row("teacher", "errors", teacher_errors, {"width": width})
        goal = 0.0
        for arm in STUDENTS:
            lr = scale.chosen(arm=arm, width=width) if scale.tuning_seeds else scale.lr
            student, history = _student(arm, width, lr, scale, pupils, teacher_logits, seed, test)
            curve: list[float] = history.epochs["errors"].tolist()
            goal = curve[-1] if arm == "alone" else goal
            yield Row(arm, "errors", curve[-1], {"width": width})
            yield Row(
                arm, "epochs to what alone reaches", _first_at_most(curve, goal), {"width": width}
            )
            yield from (
                Row(arm, "errors by epoch", value, {"width": width, "epoch": epoch})
                for epoch, value in enumerate(curve, 1)
            )
            if arm == "alone" and width == max(scale.widths):
                yield from algebra(record(student, pupils), teacher_logits)


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, width and learning rate, on validation images."""
    train, validation = train_and_validation(scale, seed, device)
    pupils = train.take(slice(0, scale.student_images))
    teacher_logits = record(train_teacher(scale, train, seed), pupils)
    for width in scale.widths:
        for arm in STUDENTS:
            for lr in RATES:
                student, _ = _student(arm, width, lr, scale, pupils, teacher_logits, seed)
                found = errors(predict(student, validation), validation.labels)
                yield Row(arm, "validation errors", found, {"width": width, "setting": lr})


def algebra(student_logits: Tensor, teacher_logits: Tensor) -> Iterator[Row]:
    """The lecture's equations on real logits, (N, K), in double precision."""
    z, v = (logits.cpu().double() for logits in (student_logits, teacher_logits))
    for arm, T in TEMPERATURES.items():
        direct = (z / T).exp() / (z / T).exp().sum(1, keepdim=True)
        yield Row(arm, "softmax error", _largest(soften(z, T) - direct))
        yield Row(
            arm, "gradient error", _largest(soft_target_gradient(z, v, T) - _autograd(z, v, T))
        )
        yield Row(arm, "gradient size", _size_against_limit(z, v, T))
        yield Row(arm, "gradient size error", abs(_size_against_limit(z, v, T) - 1))
        yield Row(arm, "share of the lowest", _share_of_lowest(soft_target_gradient(z, v, T), v))
    yield Row("limit", "share of the lowest", _share_of_lowest(logit_matching_gradient(z, v, 1), v))
    powers = [2.0**k for k in range(13)]
    misses = [T for T in powers if abs(_size_against_limit(z, v, T) - 1) > 0.1]
    yield Row("limit", "gradient size holds from T", 2 * max(misses, default=0.5))
    for high in (256.0, 512.0, 1024.0, 2048.0):
        yield Row(
            "limit",
            "halving error",
            _distance_to_limit(z, v, high) / _distance_to_limit(z, v, 2 * high) - 2,
            {"T": high},
        )


def objective(arm: str, teacher_logits: Tensor) -> Objective:
    """What a student of this arm minimises. teacher_logits: (N, K), recorded on the training
    images.
    """
    if arm == "alone":
        return cross_entropy
    if arm == "logits":
        return lambda net, batch: _match_logits(net, batch, teacher_logits)
    T = TEMPERATURES[arm]
    return lambda net, batch: distillation_loss(
        net(batch.x), teacher_logits[batch.index], batch.y, T=T, alpha=ALPHA
    )


def _match_logits(net: nn.Module, batch: Batch, teacher_logits: Tensor) -> Tensor:
    logits = net(batch.x)
    return (1 - ALPHA) * F.cross_entropy(logits, batch.y) + ALPHA * logit_matching_loss(
        logits, teacher_logits[batch.index]
    )


def train_and_validation(scale: Scale, seed: int, device: torch.device) -> list[Images]:
    """Disjoint parts of MNIST's training images, of scale.images each."""
    return [part.to(device) for part in load("mnist").split(scale.images, scale.images, seed=seed)]


def train_teacher(scale: Scale, train: Images, seed: int) -> nn.Module:
    """A larger network that sees shifted copies of the images, so that it knows more than its
    students.
    """
    seed_everything(seed)
    teacher = MLP(784, *scale.teacher, 10, **scale.teacher_dropout).to(train.pixels.device)
    shift, lr = random_shift(2), scale.teacher_lr
    fit(
        teacher,
        train,
        cross_entropy,
        epochs=scale.teacher_epochs,
        lr=lr,
        augment=shift,
        seed=seed,
        progress=False,
    )
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
    """Every arm of a seed starts from the same weights and sees the same batches. With test images,
    errors are counted every epoch.
    """
    seed_everything(seed)
    student = MLP(784, width, width, 10).to(images.pixels.device)
    watch = (
        None
        if test is None
        else lambda net, epoch: {"errors": errors(predict(net, test), test.labels)}
    )
    return student, fit(
        student, images, how, epochs=epochs, lr=lr, seed=seed, on_epoch=watch, progress=False
    )


def _student(
    arm: str,
    width: int,
    lr: float,
    scale: Scale,
    train: Images,
    teacher_logits: Tensor,
    seed: int,
    test: Images | None = None,
) -> tuple[nn.Module, History]:
    return train_student(
        objective(arm, teacher_logits), width, lr, scale.student_epochs, train, seed, test
    )


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


LECTURE = Scale(
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
LIVE = Scale(  # what a live cell shows: seconds, not minutes; the students get a tenth of the teacher's images
    seeds=10,
    tuning_seeds=0,
    minutes=5,
    images=10_000,
    teacher=(400, 400),
    teacher_dropout={},
    teacher_epochs=10,
    teacher_lr=4e-3,
    student_images=1_000,
    student_epochs=30,
    widths=(300,),
    lr=4e-3,
)

_BETTER_TEACHER = Given(
    "the teacher makes fewer errors than the student alone",
    greater("alone", "teacher", "errors", width=300),
)
_VARIES = "each seed draws its images and trains its own teacher"

distillation = Experiment(
    name="distillation",
    question="Does a small network learn more from a teacher's soft targets than from labels alone?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *STUDENTS),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        Claim(
            "K1",
            "the distilled student beats the student alone",
            source="lecture, knowledge distillation, MNIST table; Hinton 2015, section 3",
            paper="error 1.46 % alone, 0.74 % distilled at T = 20 (60,000 images)",
            decide=greater("alone", "T=20", "errors", width=300),
            unit="errors in 10,000",
            varies=_VARIES,
            given=_BETTER_TEACHER,
        ),
        Claim(
            "K2",
            "distillation can train faster",
            source="lecture, knowledge distillation, first slide",
            decide=greater("alone", "T=20", "epochs to what alone reaches", width=300),
            unit="epochs of the student until it makes no more errors than alone at the end (the teacher's training not counted)",
            varies=_VARIES,
            given=_BETTER_TEACHER,
        ),
        Claim(
            "K3",
            "MSE on the logits works as well as soft targets",
            source="lecture, knowledge distillation, first slide",
            decide=equivalent("logits", "T=20", "errors", margin=25, width=300),
            unit="errors in 10,000",
            varies=_VARIES,
        ),
        Claim(
            "K4",
            "softened probabilities are softmax(z/T)",
            source="lecture, knowledge distillation, equation of q; Hinton 2015, equation 1",
            decide=exact("softmax error", tolerance=1e-12),
            unit="largest difference of a probability",
        ),
        Claim(
            "K5",
            "the gradient of the soft loss is (q - p) / T",
            source="lecture, knowledge distillation, gradient; Hinton 2015, equation 2",
            decide=exact("gradient error", tolerance=1e-10),
            unit="largest difference of a gradient's entry",
        ),
        Claim(
            "K6",
            "T² keeps the size of the gradients, for T from 1 to 20",
            source="lecture, knowledge distillation, below the loss; Hinton 2015, section 2",
            decide=exact("gradient size error", tolerance=0.1),
            unit="largest relative distance from the size at high temperature",
            varies=_VARIES,
        ),
        Claim(
            "K7",
            "at high temperature distillation matches zero-mean logits",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, equation 4",
            decide=exact("halving error", tolerance=0.05),
            unit="largest distance from 2 of error(T) / error(2T), for T from 256",
            varies=_VARIES,
        ),
        Claim(
            "K8",
            "a high temperature weighs very negative logits more",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, section 2.1",
            decide=greater("T=20", "T=1", "share of the lowest"),
            unit="share of the gradient on the three lowest of ten classes, at T = 20 minus at T = 1",
            varies=_VARIES,
        ),
    ],
)
