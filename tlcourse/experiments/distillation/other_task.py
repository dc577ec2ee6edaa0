"""Does distillation still help when the student's own data or task is not the teacher's?

The teacher learnt upright digits. Its students have to learn the same digits, the digits turned by
90 degrees (other data), or articles of clothing (another task), each from labels alone and with the
teacher's opinion of the student's own images.
"""

from collections.abc import Iterator
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Case, Experiment, Row, tuned
from tlcourse.experiments.distillation.distillation import (
    LECTURE,
    VARIES,
    Distillation,
    mistakes,
    softly,
    train_and_validation,
    train_student,
    train_teacher,
    wrong_on,
)
from tlcourse.training import Objective, cross_entropy, record

T = 20  # the lecture's
ARMS = {"alone": 0.0, "distilled lightly": 0.1, "distilled": 0.9}  # alpha: the teacher's weight
TARGETS = ("same", "rotated", "clothes")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
WIDTH = 300


def run(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors on the target's test images, for every target and arm."""
    teacher = train_teacher(scale, train_and_validation(scale, seed, device)[0], seed)
    for target in TARGETS:
        images, _ = target_images(target, scale, seed, device)
        test = _posed(target, load(_set(target), "test")).to(device)
        yield Row("teacher", "errors", mistakes(teacher, test), {"target": target})
        for case in cases(scale, target, images, teacher, seed):
            yield Row(case.arm, "errors", mistakes(case.trained(scale)[0], test), case.at)


def tune(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Every target, arm and learning rate, on validation images of the target."""
    teacher = train_teacher(scale, train_and_validation(scale, seed, device)[0], seed)
    for target in TARGETS:
        images, validation = target_images(target, scale, seed, device)
        yield from tuned(cases(scale, target, images, teacher, seed), wrong_on(validation))


def cases(
    scale: Distillation, target: str, images: Images, teacher: nn.Module, seed: int
) -> Iterator[Case]:
    """A student for every arm, on the training images of a target."""
    said = record(teacher, images)
    for arm in ARMS:
        learn = partial(train_student, objective(arm, said), WIDTH)
        student = partial(learn, epochs=scale.student_epochs, images=images, seed=seed)
        yield Case(arm, dict(zip(RATES, RATES)), student, {"target": target})


def target_images(
    target: str, scale: Distillation, seed: int, device: torch.device
) -> list[Images]:
    """Training and validation images of a target.

    Those of "same" and "rotated" are the teacher's own, in their order.
    """
    parts = load(_set(target)).split(scale.images, scale.images, seed=seed)
    return [_posed(target, part).to(device) for part in parts]


def objective(arm: str, said: Tensor) -> Objective:
    """What a student of this arm minimises. said: the teacher's logits (N, K)."""
    return cross_entropy if arm == "alone" else softly(said, T, ARMS[arm])


def _set(target: str) -> str:
    return "fashion_mnist" if target == "clothes" else "mnist"


def _posed(target: str, images: Images) -> Images:
    if target != "rotated":
        return images
    return replace(images, pixels=images.pixels.rot90(1, (2, 3)).contiguous())


EXPERIMENT = Experiment(
    name="other_task",
    question="Does distillation still help when the student's data or task is not the teacher's?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *ARMS),
    scales={"lecture": LECTURE.but(minutes=30)},
    claims=[
        Claim(
            "K11",
            "distillation may degrade when data or task change",
            source="lecture, knowledge distillation, summary slide",
            decide=count(
                [greater("distilled", "alone", "errors", target=target) for target in TARGETS[1:]],
                at_least=1,
            ),
            unit="of two changed targets (rotated digits, clothes), in how many the distilled "
            "student (α = 0.9) makes more errors than alone",
            varies=VARIES,
            given=Given(
                "distillation helps where data and task are the teacher's",
                greater("alone", "distilled", "errors", target="same"),
            ),
        )
    ],
)
