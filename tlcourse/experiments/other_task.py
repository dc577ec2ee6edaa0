"""Does distillation still help when the student's own data or task is not the teacher's?

The teacher learnt upright digits. Its students have to learn the same digits, the digits turned by
90 degrees (other data), or articles of clothing (another task), each from labels alone and with the
teacher's opinion of the student's own images.
"""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.distillation import (
    LECTURE,
    train_and_validation,
    train_student,
    train_teacher,
)
from tlcourse.methods.distillation import distillation_loss
from tlcourse.metrics import errors
from tlcourse.training import Objective, cross_entropy, predict, record

T = 20  # the lecture's
ARMS = {
    "alone": 0.0,
    "distilled lightly": 0.1,
    "distilled": 0.9,
}  # the weight alpha of the teacher's opinion
TARGETS = ("same", "rotated", "clothes")
RATES = (2e-3, 4e-3, 8e-3, 1.6e-2)
WIDTH = 300


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors on the target's test images, for every target and arm."""
    train, _ = train_and_validation(scale, seed, device)
    teacher = train_teacher(scale, train, seed)
    for target in TARGETS:
        images, _ = target_images(target, scale, seed, device)
        test = _turned(load("mnist", "test")) if target == "rotated" else load(_set(target), "test")
        test = test.to(device)
        yield Row(
            "teacher", "errors", errors(predict(teacher, test), test.labels), {"target": target}
        )
        teacher_logits = record(teacher, images)
        for arm in ARMS:
            lr = scale.chosen(arm=arm, target=target)
            student, _ = train_student(
                objective(arm, teacher_logits), WIDTH, lr, scale.student_epochs, images, seed
            )
            yield Row(
                arm, "errors", errors(predict(student, test), test.labels), {"target": target}
            )


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every target, arm and learning rate, on validation images of the target."""
    train, _ = train_and_validation(scale, seed, device)
    teacher = train_teacher(scale, train, seed)
    for target in TARGETS:
        images, validation = target_images(target, scale, seed, device)
        teacher_logits = record(teacher, images)
        for arm in ARMS:
            for lr in RATES:
                student, _ = train_student(
                    objective(arm, teacher_logits), WIDTH, lr, scale.student_epochs, images, seed
                )
                found = errors(predict(student, validation), validation.labels)
                yield Row(arm, "validation errors", found, {"target": target, "setting": lr})


def target_images(target: str, scale: Scale, seed: int, device: torch.device) -> list[Images]:
    """Training and validation images of a target. Those of "same" and "rotated" are the teacher's
    own, in their order.
    """
    parts = load(_set(target)).split(scale.images, scale.images, seed=seed)
    return [(_turned(part) if target == "rotated" else part).to(device) for part in parts]


def objective(arm: str, teacher_logits: Tensor) -> Objective:
    """What a student of this arm minimises."""
    if arm == "alone":
        return cross_entropy
    return lambda net, batch: distillation_loss(
        net(batch.x), teacher_logits[batch.index], batch.y, T=T, alpha=ARMS[arm]
    )


def _set(target: str) -> str:
    return "fashion_mnist" if target == "clothes" else "mnist"


def _turned(images: Images) -> Images:
    return replace(images, pixels=images.pixels.rot90(1, (2, 3)).contiguous())


_HELPS = Given(
    "distillation helps where data and task are the teacher's",
    greater("alone", "distilled", "errors", target="same"),
)

other_task = Experiment(
    name="other_task",
    question="Does distillation still help when the student's data or task is not the teacher's?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *ARMS),
    scales={"lecture": Scale(**{**vars(LECTURE), "minutes": 30})},
    claims=[
        Claim(
            "K11",
            "distillation may degrade when data or task change",
            source="lecture, knowledge distillation, summary slide",
            decide=count(
                [greater("distilled", "alone", "errors", target=target) for target in TARGETS[1:]],
                at_least=1,
            ),
            unit="of two changed targets (rotated digits, clothes), in how many the distilled student makes more errors than alone",
            varies="each seed draws its images and trains its own teacher",
            given=_HELPS,
        )
    ],
)
