"""A teacher that learnt from ImageNet, a small student, and a new task with few labels: is it
attention that should be passed on?

The lecture's second table, in small. The teacher is fine-tuned on 100 labelled pictures, ten
classes, shifted and mirrored; the student is a thin network that starts from nothing and has the
same 100. Every student gets the same number of updates. Where labels are few, a large validation
set would be hidden labels, so settings are chosen on another task: digits; what counts is clothes.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Given, at_least, greater
from tlcourse.data import Images, load
from tlcourse.experiments.attention import (
    AUGMENTED,
    GROUPS,
    Recorded,
    combinations,
    objective,
    percent,
    residual_network,
)
from tlcourse.experiments.attention import LECTURE as TABLE
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.fine_tuning import replace_head
from tlcourse.models import pretrained
from tlcourse.training import Augmentation, cross_entropy, fit, predict, record, seed_everything

TARGET, TUNED_ON = "fashion_mnist", "mnist"
BLOCKS = (
    "blocks.1",
    "blocks.2",
    "blocks.4",
)  # of the teacher: 16, 8 and 4 places a side for a picture of 64
SETTINGS = {
    "alone": combinations({"lr": (1e-2, 2e-2, 4e-2, 8e-2)}),
    "KD": combinations({"lr": (2e-2, 4e-2), "T": (4.0, 20.0), "alpha": (0.9,)}),
    "AT": combinations({"lr": (2e-2, 4e-2), "beta": (3.0, 10.0)}),
}


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent of the teacher and of every student."""
    few, test = pictures(TARGET, scale, seed, device)
    said, teacher = taught(scale, few, seed)
    yield Row("teacher", "errors", percent(teacher, test))
    chosen = {arm: SETTINGS[arm][scale.chosen(arm=arm)] for arm in SETTINGS}
    for arm in SETTINGS:
        yield Row(
            arm, "errors", percent(train_student(scale, few, arm, said, chosen[arm], seed), test)
        )
    shifted = train_student(scale, few, "alone", said, chosen["alone"], seed, AUGMENTED[TARGET])
    yield Row("alone, shifted", "errors", percent(shifted, test))


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on digits: errors in percent on other digits."""
    few, others = pictures(TUNED_ON, scale, seed, device)
    said, _ = taught(scale, few, seed)
    for arm, settings in SETTINGS.items():
        for name, setting in settings.items():
            yield Row(
                arm,
                "validation errors",
                percent(train_student(scale, few, arm, said, setting, seed), others),
                {"setting": name},
            )


def pictures(name: str, scale: Scale, seed: int, device: torch.device) -> tuple[Images, Images]:
    """A few labelled pictures of each class, and others to test on: the later half of the test set,
    as trials looked at the first.
    """
    few = load(name).per_class(scale.per_class, seed=seed)
    test = load(name, "test")
    return few.to(device), test.take(slice(len(test) // 2, len(test) // 2 + scale.test_images)).to(
        device
    )


class Enlarged(nn.Module):
    """A network of photos that takes small grey pictures: enlarged to 64 × 64, with three equal
    channels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """x: (N, 1, H, W) in [0, 1]. Returns logits."""
        return self.network(F.interpolate(x, (64, 64), mode="bilinear").expand(-1, 3, -1, -1))


def taught(scale: Scale, few: Images, seed: int) -> tuple[Recorded, nn.Module]:
    """What a teacher, fine-tuned on these pictures, says of them and where it looks; and the
    teacher.
    """
    seed_everything(seed + 1)
    teacher = Enlarged(replace_head(pretrained(), len(few.classes))).to(few.pixels.device)
    how: dict[str, Any] = {
        "steps": scale.teacher_steps,
        "batch_size": 32,
        "lr": 3e-3,
        "seed": seed,
        "augment": AUGMENTED[few.name],
    }
    fit(teacher, few, cross_entropy, progress=False, **how)
    maps = record(teacher, few, of=[f"network.{block}" for block in BLOCKS])
    return {**dict(zip(GROUPS, maps.values())), "logits": predict(teacher, few)}, teacher


def train_student(
    scale: Scale,
    few: Images,
    arm: str,
    said: Recorded,
    setting: dict[str, float],
    seed: int,
    augment: tuple[Augmentation, ...] = (),
) -> nn.Sequential:
    """A student like those of the first table, from nothing."""
    seed_everything(seed)
    student = residual_network(TABLE, TABLE.student, few)
    how: dict[str, Any] = {
        "steps": scale.steps,
        "batch_size": 64,
        "lr": setting["lr"],
        "weight_decay": 5e-4,
        "seed": seed,
    }
    fit(
        student,
        few,
        cross_entropy if arm == "alone" else objective(arm, said, setting),
        augment=augment or None,
        progress=False,
        **how,
    )
    return student


LECTURE = Scale(
    seeds=6,
    tuning_seeds=2,
    minutes=10,
    per_class=10,
    test_images=5_000,
    teacher_steps=150,
    steps=400,
)

few_labels = Experiment(
    name="few_labels",
    question="With few labels and a teacher from ImageNet: is it attention that should be passed on?",
    chapter="attention_transfer",
    run=run,
    tune=tune,
    arms=("teacher", *SETTINGS, "alone, shifted"),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "A9",
            "on a new data set attention transfer helps at least as much as distillation",
            source="lecture, attention transfer, table of CUB and Scenes; Zagoruyko and Komodakis 2017, table 3",
            paper="CUB −1.5 and −1.5 (a tie), Scenes −1.1 and −0.1",
            decide=at_least("KD", "AT", "errors", margin=1.0),
            unit="points of error, distillation minus attention transfer (at least −1)",
            varies="each seed draws 10 pictures of each class and fine-tunes its own teacher",
            given=Given(
                "the teacher is better than the student alone",
                greater("alone", "teacher", "errors"),
            ),
        )
    ],
)
