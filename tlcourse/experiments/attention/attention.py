"""Does a student that looks where its teacher looks learn more? The lecture's table, in small.

A thin residual network learns clothes from 2,000 pictures, with the help of a teacher of the same
depth and twice the width, or of the same width and more depth. The teacher learnt from the same
pictures, shifted and mirrored. What it says, and where it looks, is recorded once. At `full` scale
it is the paper's networks on CIFAR-10; there students see shifted pictures too, so teachers have to
be asked each time.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, load, random_crop, random_flip, random_shift
from tlcourse.experiments.base import Case, Experiment, Row, Scale, combinations, tuned
from tlcourse.methods.attention import (
    activation_loss,
    attention_map,
    attention_transfer_loss,
    connectors,
)
from tlcourse.methods.distillation import distillation_loss
from tlcourse.methods.fine_tuning import freeze
from tlcourse.metrics import errors
from tlcourse.models import WideResNet
from tlcourse.training import (
    Augmentation,
    Batch,
    Objective,
    cross_entropy,
    fit,
    predict,
    record,
    seed_everything,
)

GROUPS = ("group1", "group2", "group3")
PAIRS = ("wider", "deeper")
# Every arm has four settings: two values of each of two numbers, alone four learning rates. Where
# to look was found in a trial with a seed of its own; the second rate of two is the one at which T
# and alpha are chosen.
RATES = (2e-2, 5e-2)
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "alone": {"lr": (1e-2, 2e-2, 5e-2, 1e-1)},
    "AT": {"lr": RATES, "beta": (3.0, 10.0)},
    "AT, code's form": {"lr": RATES, "beta": (30.0, 100.0)},
    "F-ActT": {"lr": RATES, "beta": (3.0, 10.0)},
    "KD": {"lr": RATES[1:], "T": (4.0, 20.0), "alpha": (0.5, 0.9)},
    "AT+KD": {"lr": RATES[1:], "T": (4.0, 20.0), "alpha": (0.5, 0.9), "beta": (3.0,)},
}
OWN = tuple(arm for arm in GRIDS if arm != "alone")  # what a teacher adds something to
SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}
MAPPINGS: dict[str, dict[str, Any]] = {
    "sum, p = 1": {"p": 1},
    "sum, p = 2": {"p": 2},
    "sum, p = 4": {"p": 4},
    "max, p = 2": {"p": 2, "over": "max"},
}
LAYERS: dict[str, dict[str, Any]] = {
    "group 1": {"layers": GROUPS[:1]},
    "group 2": {"layers": GROUPS[1:2]},
    "group 3": {"layers": GROUPS[2:]},
    "all groups": {"layers": GROUPS},
}
AUGMENTED: dict[str, tuple[Augmentation, ...]] = {
    "fashion_mnist": (random_shift(2), random_flip()),
    "mnist": (random_shift(2),),
    "cifar10": (random_crop(4), random_flip()),
}
Setting = Mapping[str, float]
Size = tuple[int, int]  # of a residual network: depth and width
Look = Callable[[Tensor], Tensor]  # what of a group's activations (N, C, H, W) is compared
# From a batch to what a teacher says of it: logits (N, K), and what is compared, by group
Teacher = Callable[[Batch, Look], tuple[Tensor, dict[str, Tensor]]]


@dataclass(frozen=True, kw_only=True)
class Attention(Scale):
    """Pictures, networks, and how long they learn; shifted: whether students see moved pictures."""

    data: str
    images: int
    validation: int
    student: Size
    teachers: Mapping[str, Size]
    base: int
    stem_stride: int
    optimizer: str
    teacher_lr: float
    teacher_epochs: int
    epochs: int
    shifted: bool


def run(scale: Attention, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent of every arm and pair; for AT also by mapping and by layers."""
    train, validation = pictures(scale, seed, device)
    test = load(scale.data, "test").to(device)
    networks = {pair: train_teacher(scale, train, pair, seed) for pair in scale.teachers}
    teachers = {pair: listen(scale, network, train) for pair, network in networks.items()}
    rows = [Row("teacher", "errors", percent(networks[p], test), {"pair": p}) for p in networks]
    for case in cases(scale, train, teachers, seed):
        found = percent(case.trained(scale), test)
        pairs = [case.at["pair"]] if case.at else networks  # alone has no teacher
        arms = ["alone", "alone, shifted"] if case.arm == "alone" and scale.shifted else [case.arm]
        rows += [Row(arm, "errors", found, {"pair": pair}) for arm in arms for pair in pairs]
    rows.sort(key=lambda row: [*networks].index(row.at["pair"]))
    learn = partial(taught_student, scale, train, seed, "wider", teachers["wider"], "AT")
    yield from _variants(scale, learn, validation, test)
    yield from rows
    for arm in dict.fromkeys(row.arm for row in rows):
        values = [row.value for row in rows if row.arm == arm]
        yield Row(arm, "errors", sum(values) / len(values), {"pair": "both"})


def tune(scale: Attention, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, pair and setting: errors in percent on validation pictures."""
    train, validation = pictures(scale, seed, device)
    networks = {pair: train_teacher(scale, train, pair, seed) for pair in scale.teachers}
    teachers = {pair: listen(scale, network, train) for pair, network in networks.items()}
    yield from tuned(cases(scale, train, teachers, seed), lambda net: percent(net, validation))


def cases(
    scale: Attention, train: Images, teachers: Mapping[str, Teacher], seed: int
) -> Iterator[Case]:
    """A student alone; then for each pair, with its teacher, one for every arm.

    As controls one alone that sees shifted pictures, and one that gets the maps of other pictures.
    """
    learn = partial(train_student, scale, train, cross_entropy, seed=seed)
    yield Case("alone", SETTINGS["alone"], learn)
    if not scale.shifted:
        shifted = partial(learn, move=True)
        yield Case("alone, shifted", SETTINGS["alone"], shifted, like="alone")
    for pair, teacher in teachers.items():
        taught = partial(taught_student, scale, train, seed, pair)
        for arm in OWN:
            yield Case(arm, SETTINGS[arm], partial(taught, teacher, arm), {"pair": pair})
        others = partial(taught, of_other_pictures(teacher), "AT")
        yield Case("AT, other pictures", SETTINGS["AT"], others, {"pair": pair}, like="AT")


def _variants(
    scale: Attention, learn: Callable[..., nn.Module], validation: Images, test: Images
) -> Iterator[Row]:
    """AT by mapping and by layers; and of each what validation finds best, and worst."""
    for metric, variants in {"errors by mapping": MAPPINGS, "errors by layers": LAYERS}.items():
        found = []
        for name, change in variants.items():
            how = partial(learn, **change)
            net = Case(name, SETTINGS["AT"], how, {"pair": "wider"}, like="AT").trained(scale)
            found.append((percent(net, validation), percent(net, test)))
            yield Row(name, metric, found[-1][1])
        ranked = sorted(found, key=lambda errors: errors[0])  # of equals the first named
        yield Row("best on validation", metric, ranked[0][1])
        yield Row("worst on validation", metric, ranked[-1][1])


def pictures(scale: Attention, seed: int, device: torch.device) -> list[Images]:
    """Training and validation pictures of a seed."""
    parts = load(scale.data).split(scale.images, scale.validation, seed=seed)
    return [part.to(device) for part in parts]


def train_teacher(scale: Attention, train: Images, pair: str, seed: int) -> nn.Sequential:
    """A larger network that saw the pictures shifted and mirrored."""
    seed_everything(seed + 1)  # not the student's initial weights
    teacher, augment = residual_network(scale, scale.teachers[pair], train), AUGMENTED[scale.data]
    how: dict[str, Any] = {"epochs": scale.teacher_epochs, "lr": scale.teacher_lr, "seed": seed}
    fit(teacher, train, cross_entropy, augment=augment, **_optimizer(scale), **how)
    return freeze(teacher)


def train_student(
    scale: Attention, train: Images, how: Objective, setting: Setting, seed: int, move: bool = False
) -> nn.Sequential:
    """All students of a seed begin with the same weights and see the same batches.

    The pictures are moved and mirrored if so asked, here or by the scale.
    """
    seed_everything(seed)
    student = residual_network(scale, scale.student, train)
    augment = AUGMENTED[scale.data] if move or scale.shifted else None
    more: dict[str, Any] = {"epochs": scale.epochs, "lr": setting["lr"], "seed": seed}
    fit(student, train, how, augment=augment, **_optimizer(scale), **more)
    return student


def _optimizer(scale: Attention) -> dict[str, Any]:
    return {"optimizer": scale.optimizer, "weight_decay": 5e-4, "progress": False}


def taught_student(
    scale: Attention,
    train: Images,
    seed: int,
    pair: str,
    teacher: Teacher,
    arm: str,
    setting: Setting,
    **change: Any,
) -> nn.Sequential:
    """A student that learns with a teacher's help. change: of `objective`'s mapping or layers."""
    if arm == "F-ActT":
        sizes = [channels(scale, size) for size in (scale.student, scale.teachers[pair])]
        full = FullActivations(teacher, setting["beta"], *sizes).to(train.pixels.device)
        return train_student(scale, train, full, setting, seed)
    how = objective(arm, teacher, setting, **change)
    return train_student(scale, train, how, setting, seed)


def residual_network(scale: Attention, size: Size, images: Images) -> nn.Sequential:
    """A wide residual network of this depth and width.

    At `lecture` scale thin: maps of 14, 7 and 4 pixels a side, as the first convolution halves the
    size.
    """
    shape: dict[str, int] = {"channels": images.pixels.shape[1], "base": scale.base}
    network = WideResNet(*size, len(images.classes), stem_stride=scale.stem_stride, **shape)
    return network.to(images.pixels.device)


def channels(scale: Attention, size: Size) -> list[int]:
    """How many maps the groups of a network give."""
    return [scale.base * size[1] * 2**i for i in range(len(GROUPS))]


def listen(scale: Attention, network: nn.Sequential, train: Images) -> Teacher:
    """What a network says: recorded, or asked for where pictures change every time."""
    return asked(network) if scale.shifted else recorded(network, train)


def recorded(network: nn.Module, images: Images, layers: Sequence[str] = GROUPS) -> Teacher:
    """A teacher whose answers and activations on these images were recorded, to be looked up.

    What is compared of a group's activations is computed once for all images, not in every step.
    """
    features = dict(zip(GROUPS, record(network, images, of=layers).values()))
    logits = predict(network, images)

    @lru_cache(maxsize=1)
    def seen(look: Look) -> dict[str, Tensor]:
        return {name: look(A) for name, A in features.items()}

    def teacher(batch: Batch, look: Look) -> tuple[Tensor, dict[str, Tensor]]:
        return logits[batch.index], {name: A[batch.index] for name, A in seen(look).items()}

    return teacher


def asked(network: nn.Sequential) -> Teacher:
    """A teacher that sees every batch itself."""

    def teacher(batch: Batch, look: Look) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            logits, features = tapped(network, batch.x)
            return logits, {name: look(A) for name, A in zip(GROUPS, features)}

    return teacher


def of_other_pictures(teacher: Teacher) -> Teacher:
    """A control: every picture gets what the teacher says of another, the one before it."""
    return lambda batch, look: teacher(
        replace(batch, x=batch.x.roll(1, 0), index=batch.index - 1), look
    )


def tapped(
    network: nn.Sequential, x: Tensor, layers: tuple[str, ...] = GROUPS
) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the activations after some layers on the way."""
    taken = []
    for name, layer in network.named_children():
        x = layer(x)
        if name in layers:
            taken.append(x)
    return x, taken


def objective(
    arm: str,
    teacher: Teacher,
    setting: Setting,
    *,
    layers: tuple[str, ...] = GROUPS,
    p: float = 2,
    over: Any = "sum",
) -> Objective:
    """What a student of this arm minimises, with what its teacher says.

    setting: its own of beta, T and alpha; layers, p and over are those of the maps.
    """
    look = partial(attention_map, p=p, over=over)
    form: Any = "code" if arm == "AT, code's form" else "paper"

    def minimise(net: Any, batch: Batch) -> Tensor:
        logits, features = tapped(net, batch.x, layers)
        said, maps = teacher(batch, look)
        loss = F.cross_entropy(logits, batch.y)
        if "T" in setting:
            loss = distillation_loss(logits, said, batch.y, T=setting["T"], alpha=setting["alpha"])
        if "beta" in setting:
            how: dict[str, Any] = {"beta": setting["beta"], "p": p, "over": over, "form": form}
            theirs = [maps[name] for name in layers]
            loss = loss + attention_transfer_loss(features, theirs, **how)
        return loss

    return minimise


class FullActivations(nn.Module):
    """The objective of F-ActT: its convolutions, from our channels to theirs, are trained along."""

    def __init__(
        self, teacher: Teacher, beta: float, ours: Sequence[int], theirs: Sequence[int]
    ) -> None:
        super().__init__()
        self.teacher, self.beta, self.connectors = teacher, beta, connectors(ours, theirs)

    def forward(self, net: Any, batch: Batch) -> Tensor:
        """Cross-entropy, and how far the student's activations are from the teacher's."""
        logits, features = tapped(net, batch.x)
        ours = [connect(x) for connect, x in zip(self.connectors, features)]
        _, theirs = self.teacher(batch, Tensor.detach)
        far = activation_loss(ours, list(theirs.values()), beta=self.beta)
        return F.cross_entropy(logits, batch.y) + far


def percent(network: nn.Module, images: Images) -> float:
    """Errors in percent."""
    return 100 * errors(predict(network, images), images.labels) / len(images)


LECTURE = Attention(
    seeds=6,
    tuning_seeds=2,
    minutes=65,
    data="fashion_mnist",
    images=2_000,
    validation=5_000,
    student=(10, 1),
    teachers={"wider": (10, 2), "deeper": (28, 1)},
    base=8,
    stem_stride=2,
    optimizer="adamw",
    teacher_lr=1e-2,
    teacher_epochs=60,
    epochs=40,
    shifted=False,
)
FULL = Attention(
    # the second and third row of the paper's table, for a GPU; its learning rate falls in three
    # steps, ours smoothly
    seeds=3,
    minutes=2_000,
    data="cifar10",
    images=45_000,
    validation=5_000,
    student=(16, 1),
    teachers={"wider": (16, 2), "deeper": (40, 1)},
    base=16,
    stem_stride=1,
    optimizer="sgd",
    teacher_lr=0.1,
    teacher_epochs=200,
    epochs=200,
    shifted=True,
    settings={
        "alone": {"lr": 0.1},
        "AT": {"lr": 0.1, "beta": 3.0},
        "AT, code's form": {"lr": 0.1, "beta": 1_000.0},
        "F-ActT": {"lr": 0.1, "beta": 3.0},
        "KD": {"lr": 0.1, "T": 4.0, "alpha": 0.9},
        "AT+KD": {"lr": 0.1, "T": 4.0, "alpha": 0.9, "beta": 3.0},
    },
)


_claim = partial(
    Claim,
    source="lecture, attention transfer, table of CIFAR-10; Zagoruyko and Komodakis 2017, table 1",
    unit="in how many of two pairs",
    varies="each seed draws its pictures and trains its own teachers",
    given=Given(
        "both teachers are better than the student alone",
        count([greater("alone", "teacher", "errors", pair=pair) for pair in PAIRS], at_least=2),
    ),
)


def _wins(arm: str, *others: str) -> str:
    """In how many columns of the lecture's table an arm makes fewer errors than each other."""
    rows = lecture.CIFAR10.values()
    return f"{sum(all(row[arm] < row[o] for o in others) for row in rows)} of {len(rows)}"


def _beats(id: str, sentence: str, arm: str, *others: str, **more: Any) -> Claim:
    """In both pairs an arm makes fewer errors than each of the others."""
    pairs = [
        count([greater(o, arm, "errors", pair=pair) for o in others], at_least=len(others))
        for pair in PAIRS
    ]
    more = {"paper": _wins(arm, *others), **more}
    return _claim(id, sentence, decide=count(pairs, at_least=2), **more)


_GAINS = lecture.gaps(lecture.CIFAR10, "alone", "AT")
_OPPONENTS = ("alone", "AT, other pictures")
_SLIDE = "lecture, attention transfer, third slide"

EXPERIMENT = Experiment(
    name="attention",
    question="Does a student that looks where its teacher looks learn more?",
    chapter="attention_transfer",
    run=run,
    tune=tune,
    arms=("teacher", "alone", "alone, shifted", *OWN, "AT, other pictures"),
    scales={"lecture": LECTURE, "full": FULL},
    claims=[
        _claim(
            "A1",
            "attention maps are transferable knowledge",
            source="lecture, matching intermediate features, first slide",
            decide=count([greater(o, "AT", "errors", pair="both") for o in _OPPONENTS], at_least=2),
            unit="of two opponents (alone, AT with the maps of other pictures), how many AT beats, "
            "mean of two pairs",
        ),
        _beats(
            "A3",
            "attention transfer beats the student alone",
            *("AT", "alone"),
            paper=f"{_wins('AT', 'alone')}, by {min(_GAINS)} to {max(_GAINS)} points",
        ),
        _beats("A4", "attention transfer beats the transfer of full activations", "AT", "F-ActT"),
        _beats(
            "A5",
            "attention transfer works better than distillation",
            *("AT", "KD"),
            source=f"{_SLIDE}; its own table has {_wins('AT', 'KD')} (E2)",
        ),
        _beats(
            "A6",
            "AT+KD is best in most cases",
            *("AT+KD", "alone", "AT", "F-ActT", "KD"),
            unit="in how many of two pairs it beats alone, AT, F-ActT and KD",
        ),
        *(
            _claim(
                id,
                f"the {what} must be chosen",
                source=_SLIDE,
                decide=greater("worst on validation", "best on validation", f"errors by {what}"),
                unit=f"points of error, the {what} that validation finds worst minus the best",
                given=None,
            )
            for id, what in (("A7", "mapping"), ("A8", "layers"))
        ),
    ],
)
