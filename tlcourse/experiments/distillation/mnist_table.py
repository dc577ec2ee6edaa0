"""How near does one come to the paper's MNIST table with its own set-up?

All 60,000 images; a teacher of 1,200 + 1,200 units with dropout, max-norm and shifts, trained long;
students of 800 + 800 units without any regularisation, alone and distilled at T = 20. One teacher
serves all seeds. It is on board in half precision, so that its students can be trained again
without it: `make_teacher()` trains it anew. Hinton, Vinyals and Dean 2015, section 3.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.checkpoints import restore, save
from tlcourse.claims import Claim, Given, contrast, greater
from tlcourse.data import Images, load, random_shift
from tlcourse.experiments.base import Case, Experiment, Row, Scale, tuned
from tlcourse.experiments.distillation.distillation import (
    BETTER_TEACHER,
    softly,
    train_student,
    wrong_on,
)
from tlcourse.metrics import errors
from tlcourse.models import MLP
from tlcourse.training import cross_entropy, fit, max_norm, predict, record, seed_everything

T, WIDTH, CHECKPOINT = 20, 800, "mnist_teacher"
MODULE = "tlcourse.experiments.distillation.mnist_table"
COMMAND = f"python -c 'from {MODULE} import make_teacher; make_teacher()'"
# For each arm four settings, learning rate and weight of the soft targets; the best on 10,000
# validation images is used
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    "alone": {f"lr {lr}": (lr, 0.0) for lr in (0.001, 0.002, 0.004, 0.008)},
    "T=20": {
        f"lr {lr}, alpha {alpha}": (lr, alpha) for lr in (0.002, 0.004) for alpha in (0.5, 0.9)
    },
}


@dataclass(frozen=True, kw_only=True)
class MnistTable(Scale):
    """The teacher, its students, and how tuning splits the images."""

    split: tuple[int, int] = (50_000, 10_000)
    teacher: tuple[int, ...] = (1200, 1200)
    teacher_lr: float = 1e-3
    max_norm: float = 3.5
    teacher_epochs: int = 100
    tuning_teacher_epochs: int = 40
    student_epochs: int = 30


def run(scale: MnistTable, seed: int, device: torch.device) -> Iterator[Row]:
    """Test errors of the teacher and of a student per arm.

    Of seed 0 also the logits of all three on some test images.
    """
    train, test = load("mnist").to(device), load("mnist", "test").to(device)
    teacher = restore(_teacher(scale), CHECKPOINT).to(device)
    said, logits = record(teacher, train), {"teacher": predict(teacher, test)}
    yield Row("teacher", "errors", errors(logits["teacher"], test.labels))
    for case in cases(scale, train, said, seed, test):
        student, history = case.trained(scale)
        logits[case.arm] = predict(student, test)
        yield Row(case.arm, "errors", errors(logits[case.arm], test.labels))
        for epoch, n in enumerate(history.epochs["errors"].tolist(), 1):
            yield Row(case.arm, "errors by epoch", n, {"epoch": epoch})
    for image in examples(logits["teacher"], test.labels) if seed == 0 else []:
        for arm, found in logits.items():
            for k, z in enumerate(found[image].tolist()):
                yield Row(arm, "logit", z, {"image": image, "class": k})


def tune(scale: MnistTable, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on 10,000 validation images.

    Neither the students nor this teacher, a younger one, have seen them.
    """
    train, validation = (part.to(device) for part in load("mnist").split(*scale.split, seed=seed))
    said = record(train_teacher(scale, train, scale.tuning_teacher_epochs, seed), train)
    yield from tuned(cases(scale, train, said, seed), wrong_on(validation))


def cases(
    scale: MnistTable, train: Images, said: Tensor, seed: int, test: Images | None = None
) -> Iterator[Case]:
    """A student alone, and one that learns from what a teacher said, its logits on these images."""

    def student(setting: tuple[float, float]) -> Any:
        lr, alpha = setting
        how = softly(said, T, alpha) if alpha else cross_entropy
        return train_student(how, WIDTH, lr, scale.student_epochs, train, seed, test)

    yield from (Case(arm, settings, student) for arm, settings in SETTINGS.items())


def train_teacher(scale: MnistTable, train: Images, epochs: int, seed: int) -> nn.Module:
    """The large network: dropout, weights of bounded norm, images shifted by up to two pixels."""
    seed_everything(seed)
    teacher = _teacher(scale).to(train.pixels.device)
    shift, bound = random_shift(2), max_norm(scale.max_norm)
    how: dict[str, Any] = {"augment": shift, "after_step": bound, "seed": seed, "progress": False}
    fit(teacher, train, cross_entropy, epochs=epochs, lr=scale.teacher_lr, **how)
    return teacher


def make_teacher() -> None:
    """Train the teacher of all seeds on all images, and save it: about 45 minutes on one thread."""
    everything = load("mnist")
    save(train_teacher(FULL, everything, FULL.teacher_epochs, seed=0), CHECKPOINT, command=COMMAND)


def examples(teacher_logits: Tensor, labels: Tensor) -> list[int]:
    """Test images worth a look.

    The first of each digit, then those 30 where the teacher's two likeliest digits are closest.
    """
    plain = [int((labels == digit).nonzero()[0]) for digit in labels.unique()]
    first, second = teacher_logits.topk(2, dim=1).values.T
    disputed = (first - second).argsort().tolist()[:30]
    return plain + [image for image in disputed if image not in plain]


def _teacher(scale: MnistTable) -> nn.Module:
    return MLP(784, *scale.teacher, 10, dropout=0.5, input_dropout=0.2)


FULL = MnistTable(seeds=3, tuning_seeds=1, minutes=140)
_TABLE = lecture.MNIST
_claim = partial(
    Claim,
    source="lecture, knowledge distillation, MNIST table; Hinton 2015, section 3",
    paper=f"{_TABLE['teacher']} % teacher, {_TABLE['alone']} % alone, "
    f"{_TABLE['T=20']} % distilled at T = 20",
    varies="the students' initial weights and batches, given this teacher",
    given=Given(BETTER_TEACHER, greater("alone", "teacher", "errors")),
)

EXPERIMENT = Experiment(
    name="mnist_table",
    question="How near does one come to the paper's MNIST table with its own set-up?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *SETTINGS),
    scales={"full": FULL},
    claims=[
        _claim(
            "K1",
            "the distilled student beats the student alone",
            decide=greater("alone", "T=20", "errors"),
            unit="errors in 10,000",
        ),
        _claim(
            "K10",
            "distillation closes at least half of the gap to the teacher",
            decide=contrast({"alone": 0.5, "teacher": 0.5, "T=20": -1.0}, "errors"),
            unit="errors in 10,000, midway between teacher and alone minus distilled",
        ),
    ],
)
