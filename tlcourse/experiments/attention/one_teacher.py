"""What the live cells of the chapter on attention transfer show.

Students that learn alone, and with the maps of one teacher on board. Pictures and teacher are those
of a seed that the lecture's table in small does not use; what varies is where a student starts.
"""

from collections.abc import Iterator

import torch
from torch import nn

from tlcourse.checkpoints import restore, save
from tlcourse.data import Images, load
from tlcourse.experiments.attention.attention import (
    GROUPS,
    LECTURE,
    objective,
    percent,
    pictures,
    recorded,
    residual_network,
    train_student,
    train_teacher,
)
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.attention import attention_transfer_loss
from tlcourse.training import cross_entropy, record

CHECKPOINT, DRAWN = "fashion_teacher", 6  # the first seed that the table does not use
MODULE = "tlcourse.experiments.attention.one_teacher"
COMMAND = f"python -c 'from {MODULE} import make_teacher; make_teacher()'"
ARMS = ("alone", "AT")


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent, and how far maps are from the teacher's on pictures new to both."""
    train, validation = pictures(LECTURE, DRAWN, device)
    network = the_teacher(train)
    test, teacher = load("fashion_mnist", "test").to(device), recorded(network, train)
    yield Row("teacher", "errors", percent(network, test))
    for arm in ARMS:
        setting = scale.settings[arm]
        how = cross_entropy if arm == "alone" else objective(arm, teacher, setting)
        student = train_student(LECTURE, train, how, setting, seed)
        yield Row(arm, "errors", percent(student, test))
        for group, far in distances(student, network, validation.take(slice(0, 500))).items():
            yield Row(arm, "distance", far, {"group": group})


def the_teacher(train: Images) -> nn.Sequential:
    """The teacher on board, on the device of these pictures."""
    return restore(residual_network(LECTURE, LECTURE.teachers["wider"], train), CHECKPOINT)


def make_teacher() -> None:
    """Train the teacher of the live cells, and save it: about half a minute on one thread."""
    train, _ = pictures(LECTURE, DRAWN, torch.device("cpu"))
    save(train_teacher(LECTURE, train, "wider", DRAWN), CHECKPOINT, command=COMMAND)


def distances(student: nn.Module, teacher: nn.Module, images: Images) -> dict[str, float]:
    """By group, the mean of ‖q_S − q_T‖₂ over these images.

    0 for maps that are alike, √2 for maps that nowhere meet.
    """
    ours, theirs = (record(network, images, of=GROUPS) for network in (student, teacher))
    return {
        group: attention_transfer_loss([ours[group]], [theirs[group]], beta=2.0).item()
        for group in GROUPS
    }


# One rate for both: validation for the table finds it best for AT, and for the student alone as
# good as any.
LIVE = Scale(seeds=20, minutes=8, settings={"alone": {"lr": 0.05}, "AT": {"lr": 0.05, "beta": 3.0}})

EXPERIMENT = Experiment(
    name="one_teacher",
    question="Does a student that looks where one teacher looks learn more?",
    chapter="attention_transfer",
    run=run,
    arms=("teacher", *ARMS),
    scales={"live": LIVE},
)
