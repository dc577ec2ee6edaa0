"""What does a student know of a digit it has never seen, when its teacher has?

The student learns from the teacher's soft targets alone, on images without any 3, or with nothing
but 7s and 8s. It gives the digits it missed too little probability; one offset per class, found on
unlabelled images, corrects that (`prior_offsets`).
"""

from collections.abc import Iterator

import torch

from tlcourse.data import load
from tlcourse.experiments.base import Experiment, Row
from tlcourse.experiments.distillation.distillation import (
    LECTURE,
    Distillation,
    mistakes,
    softly,
    train_and_validation,
    train_student,
    train_teacher,
)
from tlcourse.methods.distillation import prior_offsets
from tlcourse.metrics import errors
from tlcourse.training import predict, record

# the rate that validation chose for this student and temperature in the lecture's table
T, LR, WIDTH = 20, 1.6e-2, 300
TRANSFER_SETS = {
    "all digits": tuple(range(10)),
    "without 3": tuple(d for d in range(10) if d != 3),
    "only 7 and 8": (7, 8),
}


def run(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Test errors, in all and on 3s, before and after the correction.

    Every student makes the same number of updates.
    """
    train, unlabelled = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    prior = train.labels.bincount(minlength=10) / len(train)
    teacher = train_teacher(scale, train, seed)
    threes = test.labels == 3
    yield Row("teacher", "errors", mistakes(teacher, test))
    for arm, digits in TRANSFER_SETS.items():
        images = train.only(digits)
        epochs = round(scale.student_epochs * len(train) / len(images))
        how = softly(record(teacher, images), T, alpha=1)
        student, _ = train_student(how, WIDTH, LR, epochs, images, seed)
        logits = predict(student, test)
        corrected = logits + prior_offsets(predict(student, unlabelled), prior)
        for name, found in (("errors", logits), ("errors corrected", corrected)):
            yield Row(arm, name, errors(found, test.labels))
            yield Row(arm, f"{name}, 3s", errors(found[threes], test.labels[threes]))


EXPERIMENT = Experiment(
    name="omitted_digit",
    question="What does a student know of a digit it has never seen, when its teacher has?",
    chapter="knowledge_distillation",
    run=run,
    arms=("teacher", *TRANSFER_SETS),
    scales={"lecture": LECTURE.but(minutes=10, tuning_seeds=0)},
)
