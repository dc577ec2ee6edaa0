"""What does a student know of a digit it has never seen, when its teacher has?

The student learns from the teacher's soft targets alone, on images without any 3, or with nothing
but 7s and 8s. It gives the digits it missed too little probability; one offset per class, found on
unlabelled images, corrects that (`prior_offsets`).
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tlcourse.data import load
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.distillation import (
    LECTURE,
    train_and_validation,
    train_student,
    train_teacher,
)
from tlcourse.methods.distillation import distillation_loss, prior_offsets
from tlcourse.metrics import errors
from tlcourse.training import Batch, predict, record

T, LR, WIDTH = (
    20,
    1.6e-2,
    300,
)  # the rate that validation chose for this student and temperature in the lecture's table
TRANSFER_SETS = {
    "all digits": tuple(range(10)),
    "without 3": tuple(d for d in range(10) if d != 3),
    "only 7 and 8": (7, 8),
}


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Test errors, in all and on 3s, before and after the correction. Every student makes the same
    number of updates.
    """
    train, unlabelled = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    prior = train.labels.bincount(minlength=10) / len(train)
    teacher = train_teacher(scale, train, seed)
    threes = test.labels == 3
    yield Row("teacher", "errors", errors(predict(teacher, test), test.labels))
    for arm, digits in TRANSFER_SETS.items():
        images = train.only(digits)
        said = record(teacher, images)
        epochs = round(scale.student_epochs * len(train) / len(images))

        def soft_targets_alone(net: nn.Module, batch: Batch, said: Tensor = said) -> Tensor:
            return distillation_loss(net(batch.x), said[batch.index], batch.y, T=T, alpha=1)

        student, _ = train_student(soft_targets_alone, WIDTH, LR, epochs, images, seed)
        logits = predict(student, test)
        corrected = logits + prior_offsets(predict(student, unlabelled), prior)
        for name, found in (("errors", logits), ("errors corrected", corrected)):
            yield Row(arm, name, errors(found, test.labels))
            yield Row(arm, f"{name}, 3s", errors(found[threes], test.labels[threes]))


omitted_digit = Experiment(
    name="omitted_digit",
    question="What does a student know of a digit it has never seen, when its teacher has?",
    chapter="knowledge_distillation",
    run=run,
    arms=("teacher", *TRANSFER_SETS),
    scales={"lecture": Scale(**{**vars(LECTURE), "minutes": 10, "tuning_seeds": 0})},
    claims=[],
)
