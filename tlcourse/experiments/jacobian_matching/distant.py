"""Of a teacher of another task: does matching Jacobians help, and is it worth pre-training?

The lecture's table of MIT Scenes, in small. The teacher has learnt the digits 0 to 4; the student,
half as wide, starts from nothing and learns 5 to 9. Its classes are not the teacher's, so logits do
not compare. What does is the features below the head, through a layer that is trained along and
thrown away; where the teacher looks; and the Jacobian of the place where it looks most. The oracle
is the student itself, pre-trained on the teacher's pictures.

Settings are chosen on clothes, 0 to 4 and then 5 to 9.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, as_input, load
from tlcourse.experiments.base import (
    Case,
    Experiment,
    Row,
    Scale,
    combinations,
    tuned,
    tuned_at,
)
from tlcourse.experiments.jacobian_matching.few_data import Grid, percent
from tlcourse.methods.attention import attention_map, attention_transfer_loss
from tlcourse.methods.fine_tuning import replace_head
from tlcourse.methods.jacobian import attention_jacobian, jacobian_loss
from tlcourse.models import ConvNet
from tlcourse.training import Batch, cross_entropy, fit, record, seed_everything

TARGET, TUNED_ON = "mnist", "fashion_mnist"
SOURCE_CLASSES, TARGET_CLASSES = range(5), range(5, 10)
CE, ORACLE, ACT = "CE", "CE, pre-trained", "CE + activations"
ACT_J, ACT_AT, ALL = (
    f"{ACT} + {more}" for more in ("Jacobians", "attention", "attention + Jacobians")
)
METHODS = (ACT, ACT_J, ACT_AT, ALL)
LOOKS, FEATURES, UNITS = "block3", "relu7", 128
CONVOLUTIONS = 3  # so many layers, the last of which is where networks look
RATES: Grid = {"lr": (2e-3, 4e-3)}
FOUR: Grid = {"lr": (1e-3, 2e-3, 4e-3, 8e-3)}
# Four settings each: rates, and what each thing that is matched weighs beside the labels' 1
GRIDS: dict[str, Grid] = {
    CE: FOUR,
    ORACLE: FOUR,
    ACT: RATES | {"activations": (0.3, 1.0)},
    ACT_J: RATES | {"activations": (1.0,), "Jacobians": (0.1, 1.0)},
    ACT_AT: RATES | {"activations": (1.0,), "attention": (0.1, 0.3)},
    ALL: RATES | {"activations": (1.0,), "attention": (0.1,), "Jacobians": (0.1, 1.0)},
}
SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}
Setting = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Distant(Scale):
    """Pictures of each class, at which of these sizes settings are chosen, and how long all learn.

    many_steps: the updates at the largest size, where `steps` would not see every picture.
    """

    sizes: tuple[int, ...] = (5, 10, 25, 50, 4_000)
    tuned_at: tuple[int, ...] = (5, 50, 4_000)
    source_images: int = 12_000
    source_epochs: int = 3
    steps: int = 200
    many_steps: int = 500
    test_images: int = 4_800


class Task(NamedTuple):
    """The teacher, the student pre-trained, pictures to learn from and others to judge by."""

    teacher: nn.Sequential
    oracle: nn.Sequential
    pool: Images
    test: Images


class Told(NamedTuple):
    """What a teacher said of pictures: features, maps, their largest places and Jacobians."""

    features: Tensor
    maps: Tensor
    places: Tensor
    rows: Tensor


def run(scale: Distant, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent by arm and pictures a class; and the teacher's, on its own task."""
    task = task_of(scale, TARGET, "test", seed, device)
    own = load(TARGET, "test").only(SOURCE_CLASSES, relabel=True).to(device)
    yield Row("teacher", "accuracy on its own task", percent(task.teacher, own))
    for n in scale.sizes:
        for case in cases(scale, task, n, seed):
            yield Row(
                case.arm, "accuracy", percent(case.trained(scale), task.test), {"per_class": n}
            )


def tune(scale: Distant, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting at some sizes, on clothes: errors in percent on other clothes."""
    task = task_of(scale, TUNED_ON, "train", seed, device)
    for n in scale.tuned_at:
        yield from tuned(cases(scale, task, n, seed), lambda net: 100 - percent(net, task.test))


def task_of(scale: Distant, name: str, split: str, seed: int, device: torch.device) -> Task:
    """Two networks that have learnt the source, and the target's pictures; for "train" in parts."""
    source = load(name).only(SOURCE_CLASSES, relabel=True)
    target = load(name).only(TARGET_CLASSES, relabel=True)
    if split == "test":
        pool, test = target, load(name, "test").only(TARGET_CLASSES, relabel=True)
    else:
        pool, test = target.split(len(target) - scale.test_images, scale.test_images, seed=seed)
    (seen,) = source.split(scale.source_images, seed=seed)
    teacher, oracle = (pretrained(scale, width, seen.to(device), seed) for width in (16, 8))
    test = test.take(slice(0, scale.test_images))
    return Task(teacher, oracle, pool.to(device), test.to(device))


def pretrained(scale: Distant, width: int, source: Images, seed: int) -> nn.Sequential:
    """A network of this width that has learnt the source."""
    seed_everything(seed + 1)  # not the student's initial weights
    network = ConvNet(len(source.classes), width=width, units=UNITS).to(source.pixels.device)
    how: dict[str, Any] = {"epochs": scale.source_epochs, "lr": 4e-3, "progress": False}
    fit(network, source, cross_entropy, seed=seed, **how)
    return network.eval()


def cases(scale: Distant, task: Task, per_class: int, seed: int) -> Iterator[Case]:
    """A student for every arm, on so many pictures of each class."""
    few = task.pool.per_class(per_class, seed)
    told = listen(task.teacher, few)
    at = {"tuned_at": tuned_at(scale.tuned_at, per_class)}
    for arm, settings in SETTINGS.items():
        begin = partial(beginning, arm, task, seed)
        yield Case(arm, settings, partial(train_student, scale, few, begin, told, seed), at)


def beginning(arm: str, task: Task, seed: int) -> nn.Sequential:
    """The student: new, or for the oracle pre-trained with a new head."""
    seed_everything(seed)
    classes = len(task.pool.classes)
    if arm == ORACLE:
        return replace_head(deepcopy(task.oracle), classes)
    return ConvNet(classes, width=8, units=UNITS).to(task.pool.pixels.device)


def train_student(
    scale: Distant, few: Images, begin: Any, told: Told, seed: int, setting: Setting
) -> nn.Sequential:
    """All new students of a seed begin with the same weights and see the same batches."""
    student: nn.Sequential = begin()
    how = Matching(told, setting).to(few.pixels.device) if len(setting) > 1 else cross_entropy
    steps = scale.steps if len(few) <= 32 * scale.steps else scale.many_steps
    more: dict[str, Any] = {"batch_size": 32, "lr": setting["lr"], "seed": seed, "progress": False}
    fit(student, few, how, steps=steps, **more)
    return student


def listen(teacher: nn.Sequential, images: Images) -> Told:
    """What a teacher says of images; features are standardised, each unit over these images."""
    said = record(teacher, images, of=(FEATURES, LOOKS))
    maps = attention_map(said[LOOKS])
    places, below = maps.flatten(1).argmax(1), teacher[:CONVOLUTIONS]
    parts = zip(images.pixels.split(500), places.split(500))
    rows = [attention_jacobian(below, below[-1], as_input(x), at=at) for x, at in parts]
    features = F.batch_norm(said[FEATURES], None, None, training=True)
    return Told(features, maps, places, torch.cat(rows))


class Matching(nn.Module):
    """The objective of a student that is told things: its layer onto features is trained along."""

    def __init__(self, told: Told, setting: Setting) -> None:
        super().__init__()
        self.told, self.setting, self.branch = told, setting, nn.Linear(UNITS, UNITS)

    def forward(self, net: nn.Sequential, batch: Batch) -> Tensor:
        """Cross-entropy, and what the setting gives a weight."""
        features, maps, places, rows = (said[batch.index] for said in self.told)
        below = net[:CONVOLUTIONS]
        A = below(batch.x)
        own = net[CONVOLUTIONS:-1](A)
        loss = F.cross_entropy(net[-1](own), batch.y)
        loss = loss + self.setting["activations"] * F.mse_loss(self.branch(own), features)
        if "attention" in self.setting:
            loss = loss + attention_transfer_loss([A], [maps], beta=self.setting["attention"])
        if "Jacobians" in self.setting:
            J = attention_jacobian(below, below[-1], batch.x, create_graph=True, at=places)
            loss = loss + self.setting["Jacobians"] * jacobian_loss(J, rows)
        return loss


LECTURE = Distant(seeds=20, tuning_seeds=2, minutes=37)
_GAPS = [
    gap
    for one, other in ((ACT_J, ACT), (ALL, ACT_AT))
    for gap in lecture.gaps(lecture.SCENES, one, other)
]
_ORACLE = [min(row[ORACLE] - row[method] for method in METHODS) for row in lecture.SCENES.values()]

_claim = partial(
    Claim,
    source="lecture, matching Jacobians, table of MIT Scenes; Srinivas and Fleuret 2018",
    varies="each seed draws its pictures and trains its own teacher",
)

EXPERIMENT = Experiment(
    name="distant",
    question="Of a teacher of another task: does matching Jacobians help, and is it enough?",
    chapter="jacobian_matching",
    run=run,
    tune=tune,
    arms=("teacher", *GRIDS),
    scales={"lecture": LECTURE},
    claims=[
        _claim(
            "J6",
            "matching Jacobians helps every case of transfer",
            paper=lecture.tally(_GAPS),
            decide=count(
                [
                    greater(one, other, "accuracy", per_class=n)
                    for one, other in ((ACT_J, ACT), (ALL, ACT_AT))
                    for n in LECTURE.sizes
                ],
                at_least=10,
            ),
            unit="of ten differences (five sizes, with and without attention), in how many "
            "Jacobians add accuracy",
        ),
        _claim(
            "J7",
            "no method reaches the student that was pre-trained",
            paper=lecture.tally(_ORACLE),
            decide=count(
                [
                    count(
                        [greater(ORACLE, method, "accuracy", per_class=n) for method in METHODS],
                        at_least=len(METHODS),
                    )
                    for n in LECTURE.sizes
                ],
                at_least=5,
            ),
            unit="of five sizes, at how many each of the four methods is behind the oracle",
            given=Given(
                "pre-training helps with 5 pictures a class",
                greater(ORACLE, CE, "accuracy", per_class=5),
            ),
        ),
    ],
)
