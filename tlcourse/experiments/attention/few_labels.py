"""With few labels and a teacher from ImageNet: is it attention that should be passed on?

The lecture's second table, in small. The teacher is fine-tuned on 100 labelled pictures, ten
classes, shifted and mirrored; the student is a thin network that starts from nothing and has the
same 100. Every student gets the same number of updates. Where labels are few, a large validation
set would be hidden labels, so settings are chosen on another task: digits; what counts is clothes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Given, at_least, greater
from tlcourse.data import Images, load
from tlcourse.experiments.attention.attention import (
    AUGMENTED,
    Setting,
    Teacher,
    objective,
    percent,
    recorded,
    residual_network,
)
from tlcourse.experiments.attention.attention import LECTURE as TABLE
from tlcourse.experiments.base import Case, Experiment, Row, Scale, combinations, tuned
from tlcourse.methods.fine_tuning import replace_head
from tlcourse.models import pretrained
from tlcourse.training import Augmentation, cross_entropy, fit, seed_everything

TARGET, TUNED_ON = "fashion_mnist", "mnist"
# of the teacher: 16, 8 and 4 places a side for a picture of 64
BLOCKS = ("network.blocks.1", "network.blocks.2", "network.blocks.4")
SETTINGS = {
    "alone": combinations({"lr": (1e-2, 2e-2, 4e-2, 8e-2)}),
    "KD": combinations({"lr": (2e-2, 4e-2), "T": (4.0, 20.0), "alpha": (0.9,)}),
    "AT": combinations({"lr": (2e-2, 4e-2), "beta": (3.0, 10.0)}),
}


@dataclass(frozen=True, kw_only=True)
class FewLabels(Scale):
    """Pictures of each class, how many to test on, and how many updates each network makes."""

    per_class: int = 10
    test_images: int = 5_000
    teacher_steps: int = 150
    steps: int = 400


def run(scale: FewLabels, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent of the teacher and of every student."""
    few, test = pictures(TARGET, scale, seed, device)
    network = fine_tuned(scale, few, seed)
    yield Row("teacher", "errors", percent(network, test))
    for case in cases(scale, few, recorded(network, few, BLOCKS), seed):
        yield Row(case.arm, "errors", percent(case.trained(scale), test))


def tune(scale: FewLabels, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on digits: errors in percent on other digits."""
    few, others = pictures(TUNED_ON, scale, seed, device)
    teacher = recorded(fine_tuned(scale, few, seed), few, BLOCKS)
    yield from tuned(cases(scale, few, teacher, seed), lambda net: percent(net, others))


def cases(scale: FewLabels, few: Images, teacher: Teacher, seed: int) -> Iterator[Case]:
    """A student for every arm; and one alone that sees its pictures moved and mirrored."""
    learn = partial(train_student, scale, few, seed=seed)
    for arm, settings in SETTINGS.items():
        yield Case(arm, settings, partial(learn, arm, teacher))
    shifted = partial(learn, "alone", teacher, augment=AUGMENTED[few.name])
    yield Case("alone, shifted", SETTINGS["alone"], shifted, like="alone")


def pictures(name: str, scale: FewLabels, seed: int, device: torch.device) -> tuple[Images, Images]:
    """A few labelled pictures of each class, and others to test on.

    The others come from the later half of the test set, as trials looked at the first.
    """
    few, test = load(name).per_class(scale.per_class, seed=seed), load(name, "test")
    half = len(test) // 2
    return few.to(device), test.take(slice(half, half + scale.test_images)).to(device)


class Enlarged(nn.Module):
    """A network of photos that takes small grey pictures.

    They are enlarged to 64 × 64, with three equal channels.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """x: (N, 1, H, W) in [0, 1]. Returns logits."""
        return self.network(F.interpolate(x, (64, 64), mode="bilinear").expand(-1, 3, -1, -1))


def fine_tuned(scale: FewLabels, few: Images, seed: int) -> nn.Module:
    """The teacher: a network from ImageNet, fine-tuned on these pictures."""
    seed_everything(seed + 1)
    network = Enlarged(replace_head(pretrained(), len(few.classes))).to(few.pixels.device)
    how: dict[str, Any] = {"batch_size": 32, "lr": 3e-3, "seed": seed, "progress": False}
    augment = AUGMENTED[few.name]
    fit(network, few, cross_entropy, steps=scale.teacher_steps, augment=augment, **how)
    return network


def train_student(
    scale: FewLabels,
    few: Images,
    arm: str,
    teacher: Teacher,
    setting: Setting,
    seed: int,
    augment: tuple[Augmentation, ...] | None = None,
) -> nn.Sequential:
    """A student like those of the first table, from nothing."""
    seed_everything(seed)
    student = residual_network(TABLE, TABLE.student, few)
    how = cross_entropy if arm == "alone" else objective(arm, teacher, setting)
    more: dict[str, Any] = {"batch_size": 64, "weight_decay": 5e-4, "progress": False}
    lr = setting["lr"]
    fit(student, few, how, steps=scale.steps, lr=lr, seed=seed, augment=augment, **more)
    return student


LECTURE = FewLabels(seeds=6, tuning_seeds=2, minutes=10)
_FEWER = zip(lecture.CUB_AND_SCENES, lecture.gaps(lecture.CUB_AND_SCENES, "KD", "AT"))

EXPERIMENT = Experiment(
    name="few_labels",
    question="With few labels and a teacher from ImageNet: should attention be passed on?",
    chapter="attention_transfer",
    run=run,
    tune=tune,
    arms=("teacher", *SETTINGS, "alone, shifted"),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "A9",
            "on a new data set attention transfer helps at least as much as distillation",
            source="lecture, attention transfer, table of CUB and Scenes; "
            "Zagoruyko and Komodakis 2017, table 3",
            paper=", ".join(f"{gap} ({name})" for name, gap in _FEWER),
            decide=at_least("KD", "AT", "errors", margin=1.0),
            unit="points of error that AT has fewer than distillation (at least −1)",
            varies="each seed draws 10 pictures of each class and fine-tunes its own teacher",
            given=Given(
                "the teacher is better than the student alone",
                greater("alone", "teacher", "errors"),
            ),
        )
    ],
)
