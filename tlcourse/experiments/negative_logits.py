"""Is it an advantage that a high temperature makes the student match the teacher's very negative
logits?

The lecture says so. The paper says that they may carry knowledge or mere noise, and that it is an
empirical question which effect wins. Here the student learns from the teacher's logits as they are,
and from copies whose lower half no longer says how its classes rank.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from tlcourse.claims import Claim, Given, greater
from tlcourse.data import load
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.distillation import (
    ALPHA,
    LECTURE,
    train_and_validation,
    train_student,
    train_teacher,
)
from tlcourse.methods.distillation import distillation_loss
from tlcourse.metrics import errors
from tlcourse.training import Objective, cross_entropy, predict, record

LOWER = 5  # of ten classes: those that the teacher finds least likely
ARMS = ("alone", "intact", "flattened", "shuffled")
TEMPERATURES = (2, 20)
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
WIDTH = 300


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors on the test images, for every arm and temperature."""
    train, _ = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    teacher = train_teacher(scale, train, seed)
    teacher_logits = record(teacher, train)
    yield from (
        Row("teacher", "errors", errors(predict(teacher, test), test.labels), {"T": T})
        for T in TEMPERATURES
    )
    for arm, T in _cases():
        how = objective(arm, T, teacher_logits, seed)
        student, _ = train_student(
            how, WIDTH, scale.chosen(arm=arm, T=T), scale.student_epochs, train, seed
        )
        yield Row(arm, "errors", errors(predict(student, test), test.labels), {"T": T})


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, temperature and learning rate, on validation images."""
    train, validation = train_and_validation(scale, seed, device)
    teacher_logits = record(train_teacher(scale, train, seed), train)
    for arm, T in _cases():
        for lr in RATES:
            student, _ = train_student(
                objective(arm, T, teacher_logits, seed),
                WIDTH,
                lr,
                scale.student_epochs,
                train,
                seed,
            )
            found = errors(predict(student, validation), validation.labels)
            yield Row(arm, "validation errors", found, {"T": T, "setting": lr})


def objective(arm: str, T: int, teacher_logits: Tensor, seed: int) -> Objective:
    """What a student of this arm minimises."""
    if arm == "alone":
        return cross_entropy
    said = {"intact": lambda v: v, "flattened": flattened, "shuffled": lambda v: shuffled(v, seed)}[
        arm
    ](teacher_logits)
    return lambda net, batch: distillation_loss(
        net(batch.x), said[batch.index], batch.y, T=T, alpha=ALPHA
    )


def flattened(logits: Tensor) -> Tensor:
    """Each row's lower half replaced by its mean. (N, K) -> (N, K)."""
    lower = logits.argsort(1)[:, :LOWER]
    mean = logits.gather(1, lower).mean(1, keepdim=True)
    return logits.scatter(1, lower, mean.expand(-1, LOWER))


def shuffled(logits: Tensor, seed: int) -> Tensor:
    """Each row's lower half dealt out anew among the same classes: as large as before, but noise.
    (N, K) -> (N, K).
    """
    lower = logits.argsort(1)[:, :LOWER]
    order = (
        torch.rand(lower.shape, generator=torch.Generator().manual_seed(seed))
        .argsort(1)
        .to(logits.device)
    )
    return logits.scatter(1, lower, logits.gather(1, lower.gather(1, order)))


def _cases() -> list[tuple[str, int]]:
    return [
        ("alone", TEMPERATURES[-1]),
        *((arm, T) for T in TEMPERATURES for arm in ARMS[1:]),
    ]  # alone has no temperature


negative_logits = Experiment(
    name="negative_logits",
    question="Is it an advantage that a high temperature makes the student match the teacher's very negative logits?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *ARMS),
    scales={"lecture": Scale(**{**vars(LECTURE), "minutes": 30})},
    claims=[
        Claim(
            "K9",
            "attending to very negative logits is an advantage",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, section 2.1, leaves it open",
            decide=greater("flattened", "intact", "errors", T=20),
            unit="errors in 10,000, with the lower half of the teacher's logits flattened minus as they are, at T = 20",
            varies="each seed draws its images and trains its own teacher",
            given=Given(
                "the teacher makes fewer errors than the student alone",
                greater("alone", "teacher", "errors", T=20),
            ),
        )
    ],
)
