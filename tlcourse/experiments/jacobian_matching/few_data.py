"""With few pictures, is it worth while to match how a teacher's answer changes?

The lecture's table of CIFAR-100, in small. The teacher learns clothes from 500 pictures a class,
and the student, a smaller network, sees some of these: nothing is known that the largest subset
does not hold, else no gain could turn into a loss. What the teacher says, and the row of its
Jacobian for the class that it finds most likely, is recorded once. Only where the inputs are noisy,
which to the lecture is the same as matching Jacobians, has it to be asked each time.

Every arm makes as many updates as the others. Where labels are few, a validation set would be
hidden labels, so settings are chosen on another task, digits; a size takes those of the largest
tuned size that it is not below.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Decision, Given, count, equivalent, greater
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
from tlcourse.methods.jacobian import class_jacobian, jacobian_loss, logits_and_jacobian
from tlcourse.models import ConvNet
from tlcourse.training import (
    Batch,
    Objective,
    accuracy,
    cross_entropy,
    fit,
    record,
    seed_everything,
)

TARGET, TUNED_ON = "fashion_mnist", "mnist"
ACT, BOTH = "CE + activations", "CE + activations + Jacobians"
NO_LABELS = "activations + Jacobians"
NOISY = "CE + activations, noisy inputs"
Grid = dict[str, tuple[float, ...]]
RATES: Grid = {"lr": (6e-3, 1.2e-2)}
# Four settings each: rates, what activations and Jacobians weigh beside the labels' 1, σ of noise
GRIDS: dict[str, Grid] = {
    "CE": {"lr": (6e-3, 1.2e-2, 2.4e-2, 4.8e-2)},
    ACT: RATES | {"activations": (0.03, 0.3)},
    "CE + Jacobians": RATES | {"Jacobians": (1.0, 10.0)},
    BOTH: RATES | {"activations": (0.03,), "Jacobians": (1.0, 10.0)},
    "activations": {"lr": (1.5e-3, 3e-3, 6e-3, 1.2e-2), "activations": (1.0,)},
    NO_LABELS: RATES | {"activations": (0.03,), "Jacobians": (1.0, 10.0)},
    NOISY: RATES | {"activations": (0.03,), "sigma": (0.2, 0.4)},
}
SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}
Setting = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class FewData(Scale):
    """Pictures of each class, at which of these sizes settings are chosen, and how long all learn.

    pool: pictures of each class that the teacher learns from, and students at the largest size,
    where they make `many_steps`: accuracy still rises at `steps`, and what speeds it up would help.
    """

    arms: tuple[str, ...] = tuple(GRIDS)
    sizes: tuple[int, ...] = (1, 5, 10, 50, 100, 500)
    tuned_at: tuple[int, ...] = (5, 50, 500)
    pool: int = 500
    teacher_epochs: int = 20
    steps: int = 250
    many_steps: int = 600
    test_images: int = 5_000


class Teacher(NamedTuple):
    """A network, and what was recorded of some pictures: logits, and rows of its Jacobian."""

    network: nn.Module
    logits: Tensor
    rows: Tensor


def run(scale: FewData, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent by arm and pictures a class; and from where on Jacobians do not help."""
    pool = load(TARGET).per_class(scale.pool, seed).to(device)
    test = load(TARGET, "test").take(slice(0, scale.test_images)).to(device)
    network, found = train_teacher(scale, pool, seed), dict[tuple[str, int], float]()
    right = percent(network, test)
    for n in scale.sizes:
        yield Row("teacher", "accuracy", right, {"per_class": n})
        for case in cases(scale, pool, network, n, seed):
            found[case.arm, n] = percent(case.trained(scale), test)
            yield Row(case.arm, "accuracy", found[case.arm, n], {"per_class": n})
    if len(scale.sizes) > 1:
        gains = [found[BOTH, n] - found[ACT, n] for n in scale.sizes]
        yield Row(BOTH, "crossing", crossing(scale.sizes, gains))


def tune(scale: FewData, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting at some sizes, on digits: errors in percent on other digits."""
    images = load(TUNED_ON)
    pool, others = images.split(len(images) // 2, scale.test_images, seed=seed)
    pool, others = pool.per_class(scale.pool, seed).to(device), others.to(device)
    network = train_teacher(scale, pool, seed)
    for n in scale.tuned_at:
        every = cases(scale, pool, network, n, seed)
        yield from tuned(every, lambda net: 100 - percent(net, others))


def cases(
    scale: FewData, pool: Images, network: nn.Module, per_class: int, seed: int
) -> Iterator[Case]:
    """A student for every arm, on so many pictures of each class."""
    few = pool.per_class(per_class, seed)
    teacher = recorded(network, few)
    at = {"tuned_at": tuned_at(scale.tuned_at, per_class)}
    for arm in scale.arms:
        yield Case(arm, SETTINGS[arm], partial(train_student, scale, few, arm, teacher, seed), at)


def train_teacher(scale: FewData, pool: Images, seed: int) -> nn.Sequential:
    """A network twice as wide as the student's, trained until it no longer gains."""
    seed_everything(seed + 1)  # not the student's initial weights
    network = ConvNet(len(pool.classes), width=16).to(pool.pixels.device)
    how: dict[str, Any] = {"lr": 4e-3, "seed": seed, "progress": False}
    fit(network, pool, cross_entropy, epochs=scale.teacher_epochs, **how)
    return network.eval().to(memory_format=torch.channels_last)  # faster, where it is asked


def train_student(
    scale: FewData, few: Images, arm: str, teacher: Teacher, seed: int, setting: Setting
) -> nn.Sequential:
    """All students of a seed begin with the same weights and see the same batches."""
    seed_everything(seed)
    student = ConvNet(len(few.classes), width=8, units=64).to(few.pixels.device)
    how = objective(teacher, setting, labels=arm.startswith("CE"))
    more: dict[str, Any] = {"batch_size": 64, "lr": setting["lr"], "seed": seed, "progress": False}
    whole = len(few) == scale.pool * len(few.classes)
    fit(student, few, how, steps=scale.many_steps if whole else scale.steps, **more)
    return student


def recorded(network: nn.Module, images: Images) -> Teacher:
    """What a network says of images; its rows are those of the class it finds most likely."""
    logits = record(network, images)
    parts = zip(images.pixels.split(500), logits.argmax(1).split(500))
    rows = [class_jacobian(network, as_input(pixels), c) for pixels, c in parts]
    return Teacher(network, logits, torch.cat(rows))


def objective(teacher: Teacher, setting: Setting, labels: bool = True) -> Objective:
    """Labels, unless left out, and what a setting weighs; of noisy inputs where it has a σ."""

    def minimise(net: nn.Module, batch: Batch) -> Tensor:
        x, said, rows = batch.x, teacher.logits[batch.index], teacher.rows[batch.index]
        if "sigma" in setting:
            x = x + setting["sigma"] * torch.randn_like(x)
            with torch.no_grad():
                said = teacher.network(x)
        loss = torch.zeros((), device=x.device)
        if "Jacobians" in setting:
            logits, J = logits_and_jacobian(net, x, said.argmax(1), create_graph=True)
            loss = loss + setting["Jacobians"] * jacobian_loss(J, rows)
        else:
            logits = net(x)
        if "activations" in setting:
            apart = (logits - said).square().sum(1).mean()
            loss = loss + setting["activations"] * apart
        return loss + F.cross_entropy(logits, batch.y) if labels else loss

    return minimise


def percent(network: nn.Module, images: Images) -> float:
    """Accuracy in percent."""
    return 100 * accuracy(network, images)


def crossing(sizes: Sequence[int], gains: Sequence[float]) -> float:
    """The size from which on there is no gain, on a straight line over the size's logarithm.

    The smallest size where there never is one, the largest where there is one to the end.
    """
    last = max((i for i, gain in enumerate(gains) if gain > 0), default=None)
    if last is None or last + 1 == len(sizes):
        return float(sizes[0] if last is None else sizes[-1])
    share = gains[last] / (gains[last] - gains[last + 1])
    return float(sizes[last] * (sizes[last + 1] / sizes[last]) ** share)


LECTURE = FewData(seeds=10, tuning_seeds=2, minutes=42)
LIVE = FewData(
    arms=("CE", ACT, BOTH),
    sizes=(5,),
    teacher_epochs=10,
    test_images=2_000,
    seeds=8,
    minutes=4,
    settings={  # for the same networks on digits these came out best
        "CE": {"lr": 2.4e-2},
        ACT: {"lr": 1.2e-2, "activations": 0.03},
        BOTH: {"lr": 1.2e-2, "activations": 0.03, "Jacobians": 10.0},
    },
)
_SLIDE = "lecture, matching Jacobians, table of CIFAR-100; Srinivas and Fleuret 2018"
_FEW, _MANY, _ALL = (5, 10), (100, 500), LECTURE.sizes


def _paper(one: str, other: str, sizes: Sequence[int]) -> str:
    """What the lecture's table has one arm above another, by pictures a class."""
    rows = [lecture.JACOBIANS[str(n)] for n in sizes]
    every = (f"{row[one] - row[other]:+.2f} at {n}" for n, row in zip(sizes, rows))
    return ", ".join(every).replace("-", "−")


def _beats(one: str, other: str, sizes: Sequence[int], at_least: int) -> Decision:
    every = [greater(one, other, "accuracy", per_class=n) for n in sizes]
    return count(every, at_least=at_least)


_claim = partial(
    Claim,
    source=_SLIDE,
    varies="each seed draws its pictures and trains its own teacher",
    given=Given(
        "the teacher is better than the student alone",
        greater("teacher", "CE", "accuracy", per_class=500),
    ),
    scales=("lecture",),
)

EXPERIMENT = Experiment(
    name="few_data",
    question="With few pictures, should a student match how its teacher's answer changes?",
    chapter="jacobian_matching",
    run=run,
    tune=tune,
    arms=("teacher", *GRIDS),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "J2n",
            "noise on the inputs does what matching Jacobians does",
            source="lecture, matching Jacobians, first slide, second point",
            decide=_beats(NOISY, ACT, _FEW, at_least=2),
            unit="of two sizes (5 and 10 pictures a class), in how many noise on the inputs adds "
            "to activations",
        ),
        _claim(
            "J3",
            "matching Jacobians helps with few data",
            paper=_paper(BOTH, ACT, _FEW),
            decide=_beats(BOTH, ACT, _FEW, at_least=2),
            unit="of two sizes (5 and 10 pictures a class), in how many Jacobians add to "
            "activations",
        ),
        _claim(
            "J4",
            "with all the data, matching Jacobians hurts",
            paper=_paper(ACT, BOTH, _MANY[1:]),
            decide=greater(ACT, BOTH, "accuracy", per_class=500),
            unit="points of accuracy lost by Jacobians beside activations, 500 pictures a class",
        ),
        _claim(
            "J5",
            "without cross-entropy, Jacobians add nothing from 100 pictures a class on",
            paper=_paper(NO_LABELS, "activations", _MANY),
            decide=count(
                [
                    equivalent(NO_LABELS, "activations", "accuracy", margin=1, per_class=n)
                    for n in _MANY
                ],
                at_least=2,
            ),
            unit="of two sizes (100 and 500 pictures a class), in how many Jacobians change "
            "accuracy by less than a point",
        ),
        _claim(
            "J8",
            "Jacobians alone do less than activations alone",
            paper=lecture.tally(lecture.gaps(lecture.JACOBIANS, ACT, "CE + Jacobians")),
            decide=_beats(ACT, "CE + Jacobians", _ALL, at_least=5),
            unit="of six sizes, in how many activations add more to cross-entropy than Jacobians",
        ),
    ],
)
