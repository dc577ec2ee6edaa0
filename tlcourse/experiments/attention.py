"""Does a student that looks where its teacher looks learn more? The lecture's table of attention
transfer, in small.

A thin residual network learns clothes from 2,000 pictures, with the help of a teacher of the same
depth and twice the width, or of the same width and more depth. The teacher learnt from the same
pictures, shifted and mirrored. What it says, and where it looks, is recorded once. At `full` scale
it is the paper's networks on CIFAR-10; there students see shifted pictures too, so teachers have to
be asked each time.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import product
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, load, random_crop, random_flip, random_shift
from tlcourse.experiments.base import Experiment, Row, Scale
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
# to look was found in a trial with a seed
# of its own; the second rate of two is the one at which T and alpha are chosen.
RATES = (2e-2, 5e-2)
GRIDS: dict[str, dict[str, tuple[float, ...]]] = {
    "alone": {"lr": (1e-2, 2e-2, 5e-2, 1e-1)},
    "AT": {"lr": RATES, "beta": (3.0, 10.0)},
    "AT, code's form": {"lr": RATES, "beta": (30.0, 100.0)},
    "F-ActT": {"lr": RATES, "beta": (3.0, 10.0)},
    "KD": {"lr": RATES[1:], "T": (4.0, 20.0), "alpha": (0.5, 0.9)},
    "AT+KD": {"lr": RATES[1:], "T": (4.0, 20.0), "alpha": (0.5, 0.9), "beta": (3.0,)},
}
OWN = tuple(
    arm for arm in GRIDS if arm != "alone"
)  # the arms that have something of their own beside the labels


def combinations(grid: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Every setting that a grid of values holds, by a name that says them."""
    every = [dict(zip(grid, values)) for values in product(*grid.values())]
    return {", ".join(f"{key} {value:g}" for key, value in one.items()): one for one in every}


SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}
MAPPINGS: dict[str, dict[str, Any]] = {
    "sum, p = 1": {"p": 1},
    "sum, p = 2": {"p": 2},
    "sum, p = 4": {"p": 4},
    "max, p = 2": {"p": 2, "over": "max"},
}
LAYERS = {
    "group 1": GROUPS[:1],
    "group 2": GROUPS[1:2],
    "group 3": GROUPS[2:],
    "all groups": GROUPS,
}
AUGMENTED: dict[str, tuple[Augmentation, ...]] = {
    "fashion_mnist": (random_shift(2), random_flip()),
    "mnist": (random_shift(2),),
    "cifar10": (random_crop(4), random_flip()),
}
Recorded = Mapping[str, Tensor]  # by group: activations (N, C, H, W); "logits": (N, K)
Teacher = Recorded | nn.Sequential  # what it said, or itself


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent of every arm and pair; for AT also by mapping and by layers, and with the
    maps of other pictures.
    """
    train, validation = pictures(scale, seed, device)
    test = load(scale.data, "test").to(device)
    alone = chosen_setting(scale, arm="alone")
    plain = train_student(scale, train, cross_entropy, alone, seed)
    shifted = (
        plain
        if scale.shifted
        else train_student(scale, train, cross_entropy, alone, seed, shifted=True)
    )
    rows = []
    for pair in scale.teachers:
        teacher = train_teacher(scale, train, pair, seed)
        said = teacher if scale.shifted else recorded(teacher, train)
        students = {"teacher": teacher, "alone": plain, "alone, shifted": shifted}
        chosen = {arm: chosen_setting(scale, arm=arm, pair=pair) for arm in OWN}
        for arm in OWN:
            how = objective(arm, said, chosen[arm], channels=channels(scale))
            students[arm] = train_student(scale, train, how, chosen[arm], seed)
        others = objective("AT", of_other_pictures(said), chosen["AT"])
        students["AT, other pictures"] = train_student(scale, train, others, chosen["AT"], seed)
        rows += [
            Row(arm, "errors", percent(net, test), {"pair": pair}) for arm, net in students.items()
        ]
        if pair == "wider":
            yield from _variants(scale, train, validation, test, said, chosen["AT"], seed)
    yield from rows
    for arm in dict.fromkeys(row.arm for row in rows):
        values = [row.value for row in rows if row.arm == arm]
        yield Row(arm, "errors", sum(values) / len(values), {"pair": "both"})


def _variants(
    scale: Scale,
    train: Images,
    validation: Images,
    test: Images,
    said: Teacher,
    chosen: Mapping[str, float],
    seed: int,
) -> Iterator[Row]:
    """AT by mapping and by layers; and of each kind the one that validation finds best, and worst."""
    kinds: dict[str, dict[str, dict[str, Any]]] = {
        "mapping": MAPPINGS,
        "layers": {name: {"layers": groups} for name, groups in LAYERS.items()},
    }
    for kind, variants in kinds.items():
        found = {}
        for name, change in variants.items():
            net = train_student(scale, train, objective("AT", said, chosen, **change), chosen, seed)
            found[name] = percent(net, validation), percent(net, test)
            yield Row(name, f"errors by {kind}", found[name][1])
        ranked = sorted(
            found.values(), key=lambda errors: errors[0]
        )  # by validation; of equals the first named
        yield Row("best on validation", f"errors by {kind}", ranked[0][1])
        yield Row("worst on validation", f"errors by {kind}", ranked[-1][1])


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, pair and setting: errors in percent on validation images."""
    train, validation = pictures(scale, seed, device)
    for name, setting in SETTINGS["alone"].items():
        net = train_student(scale, train, cross_entropy, setting, seed)
        yield Row("alone", "validation errors", percent(net, validation), {"setting": name})
    for pair in scale.teachers:
        said = recorded(train_teacher(scale, train, pair, seed), train)
        for arm in OWN:
            for name, setting in SETTINGS[arm].items():
                net = train_student(
                    scale,
                    train,
                    objective(arm, said, setting, channels=channels(scale)),
                    setting,
                    seed,
                )
                yield Row(
                    arm,
                    "validation errors",
                    percent(net, validation),
                    {"pair": pair, "setting": name},
                )


def pictures(scale: Scale, seed: int, device: torch.device) -> list[Images]:
    """Training and validation pictures of a seed."""
    return [
        part.to(device)
        for part in load(scale.data).split(scale.images, scale.validation, seed=seed)
    ]


def chosen_setting(scale: Scale, **where: str) -> Mapping[str, float]:
    """What validation chose for an arm and a pair, or where nothing is tuned what the scale says."""
    return (
        SETTINGS[where["arm"]][scale.chosen(**where)]
        if scale.tuning_seeds
        else scale.settings[where["arm"]]
    )


def train_teacher(scale: Scale, train: Images, pair: str, seed: int) -> nn.Sequential:
    """A larger network that saw the pictures shifted and mirrored."""
    seed_everything(seed + 1)  # not the student's initial weights
    teacher = residual_network(scale, scale.teachers[pair], train)
    how: dict[str, Any] = {
        "epochs": scale.teacher_epochs,
        "lr": scale.teacher_lr,
        "augment": AUGMENTED[scale.data],
        "seed": seed,
    }
    fit(
        teacher,
        train,
        cross_entropy,
        optimizer=scale.optimizer,
        weight_decay=5e-4,
        progress=False,
        **how,
    )
    return freeze(teacher)


def train_student(
    scale: Scale,
    train: Images,
    objective: Objective,
    setting: Mapping[str, float],
    seed: int,
    *,
    shifted: bool = False,
) -> nn.Sequential:
    """All students of a seed begin with the same weights and see the same batches, moved and
    mirrored if so asked here or by the scale.
    """
    seed_everything(seed)
    student = residual_network(scale, scale.student, train)
    augment = AUGMENTED[scale.data] if shifted or scale.shifted else None
    how: dict[str, Any] = {
        "epochs": scale.epochs,
        "lr": setting["lr"],
        "augment": augment,
        "seed": seed,
    }
    fit(
        student,
        train,
        objective,
        optimizer=scale.optimizer,
        weight_decay=5e-4,
        progress=False,
        **how,
    )
    return student


def residual_network(scale: Scale, size: tuple[int, int], images: Images) -> nn.Sequential:
    """Depth and width are size. At `lecture` scale thin: maps of 14, 7 and 4 pixels a side, as the
    first convolution halves the size.
    """
    channels = images.pixels.shape[1]
    network = WideResNet(
        *size,
        len(images.classes),
        channels=channels,
        base=scale.base,
        stem_stride=scale.stem_stride,
    )
    return network.to(images.pixels.device)


def channels(scale: Scale) -> list[int]:
    """How many maps the student's groups give."""
    return [scale.base * scale.student[1] * 2**i for i in range(len(GROUPS))]


def recorded(teacher: nn.Module, images: Images) -> Recorded:
    """What a teacher answers, and its activations after each group."""
    return {**record(teacher, images, of=GROUPS), "logits": predict(teacher, images)}


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


def told(
    teacher: Teacher, batch: Batch, layers: Sequence[str] = GROUPS
) -> tuple[Tensor, list[Tensor]]:
    """What a teacher says of a batch, and its features or maps: looked up where recorded, asked for
    where pictures change every time.
    """
    if isinstance(teacher, nn.Module):
        with torch.no_grad():
            return tapped(teacher, batch.x, tuple(layers))
    return teacher["logits"][batch.index], [teacher[name][batch.index] for name in layers]


def of_other_pictures(teacher: Teacher) -> Teacher:
    """A control: every picture gets what the teacher says of another."""
    if isinstance(teacher, nn.Module):
        return nn.Sequential(OrderedDict(others=_Exchanged(), **dict(teacher.named_children())))
    return {name: value.roll(1, 0) for name, value in teacher.items()}


class _Exchanged(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.roll(1, 0)


def objective(
    arm: str,
    teacher: Teacher,
    setting: Mapping[str, float],
    *,
    layers: tuple[str, ...] = GROUPS,
    p: float = 2,
    over: Any = "sum",
    channels: Sequence[int] = (),
) -> Objective:
    """What a student of this arm minimises, with what its teacher says.

    setting: its own of beta, T and alpha; layers, p and over are those of the maps; channels: the
    student's, which F-ActT has to know.
    """
    if arm == "F-ActT":
        return FullActivations(teacher, setting["beta"], channels)
    if not isinstance(teacher, nn.Module):
        teacher = {**teacher, **{name: attention_map(teacher[name], p, over) for name in layers}}
    form: Any = "code" if arm == "AT, code's form" else "paper"

    def minimise(net: Any, batch: Batch) -> Tensor:
        logits, features = tapped(net, batch.x, layers)
        said, theirs = told(teacher, batch, layers)
        loss = F.cross_entropy(logits, batch.y)
        if "T" in setting:
            loss = distillation_loss(logits, said, batch.y, T=setting["T"], alpha=setting["alpha"])
        if "beta" in setting:
            loss = loss + attention_transfer_loss(
                features, theirs, beta=setting["beta"], p=p, over=over, form=form
            )
        return loss

    return minimise


class FullActivations(nn.Module):
    """The objective of F-ActT: it has convolutions of its own, from the student's number of
    channels to the teacher's, trained along.
    """

    def __init__(self, teacher: Teacher, beta: float, channels: Sequence[int]) -> None:
        super().__init__()
        self.teacher, self.beta = teacher, beta
        theirs = [_channels_of(teacher, name) for name in GROUPS]
        where = (
            next(teacher.parameters()).device
            if isinstance(teacher, nn.Module)
            else teacher["logits"].device
        )
        self.connectors = connectors(channels, theirs).to(where)

    def forward(self, net: Any, batch: Batch) -> Tensor:
        """Cross-entropy, and how far the student's activations are from the teacher's."""
        logits, features = tapped(net, batch.x)
        ours = [connect(x) for connect, x in zip(self.connectors, features)]
        return F.cross_entropy(logits, batch.y) + activation_loss(
            ours, told(self.teacher, batch)[1], beta=self.beta
        )


def _channels_of(teacher: Teacher, group: str) -> int:
    if isinstance(teacher, nn.Module):
        return int(
            next(reversed(list(teacher.get_submodule(group).parameters()))).shape[0]
        )  # the last convolution's
    return teacher[group].shape[1]


def percent(network: nn.Module, images: Images) -> float:
    """Errors in percent."""
    return 100 * errors(predict(network, images), images.labels) / len(images)


LECTURE = Scale(
    seeds=6,
    tuning_seeds=2,
    minutes=65,
    data="fashion_mnist",
    images=2_000,
    validation=5_000,
    student=(10, 1),  # depth and width
    teachers={"wider": (10, 2), "deeper": (28, 1)},
    base=8,
    stem_stride=2,
    optimizer="adamw",
    teacher_lr=1e-2,
    teacher_epochs=60,
    epochs=40,
    shifted=False,
)
FULL = Scale(  # the paper's second and third row, for a GPU; its learning rate falls in three steps, ours smoothly
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
_SOURCE = "lecture, attention transfer, table of CIFAR-10; Zagoruyko and Komodakis 2017, table 1"
_VARIES = "each seed draws its pictures and trains its own teachers"
_BETTER = Given(
    "both teachers are better than the student alone",
    count([greater("alone", "teacher", "errors", pair=pair) for pair in PAIRS], at_least=2),
)


def _beats(arm: str, other: str) -> Callable[[str], Any]:
    return lambda pair: greater(other, arm, "errors", pair=pair)


def _in_both(arm: str, other: str) -> Any:
    return count([_beats(arm, other)(pair) for pair in PAIRS], at_least=2)


attention = Experiment(
    name="attention",
    question="Does a student that looks where its teacher looks learn more?",
    chapter="attention_transfer",
    run=run,
    tune=tune,
    arms=("teacher", "alone", "alone, shifted", *OWN, "AT, other pictures"),
    scales={"lecture": LECTURE, "full": FULL},
    claims=[
        Claim(
            "A1",
            "attention maps are transferable knowledge",
            source="lecture, matching intermediate features, first slide",
            decide=count(
                [
                    greater(other, "AT", "errors", pair="both")
                    for other in ("alone", "AT, other pictures")
                ],
                at_least=2,
            ),
            unit="of two opponents (alone, AT with the maps of other pictures), how many AT beats, mean of two pairs",
            varies=_VARIES,
            given=_BETTER,
        ),
        Claim(
            "A3",
            "attention transfer beats the student alone",
            source=_SOURCE,
            paper="4 of 4, by 0.46 to 0.84 points",
            decide=_in_both("AT", "alone"),
            unit="in how many of two pairs",
            varies=_VARIES,
            given=_BETTER,
        ),
        Claim(
            "A4",
            "attention transfer beats the transfer of full activations",
            source=_SOURCE,
            paper="4 of 4",
            decide=_in_both("AT", "F-ActT"),
            unit="in how many of two pairs",
            varies=_VARIES,
            given=_BETTER,
        ),
        Claim(
            "A5",
            "attention transfer works better than distillation",
            source="lecture, attention transfer, third slide; its own table has 2 of 4 (E2)",
            paper="2 of 4",
            decide=_in_both("AT", "KD"),
            unit="in how many of two pairs",
            varies=_VARIES,
            given=_BETTER,
        ),
        Claim(
            "A6",
            "AT+KD is best in most cases",
            source=_SOURCE,
            paper="3 of 4 (E2)",
            decide=count(
                [
                    count(
                        [_beats("AT+KD", other)(pair) for other in ("alone", "AT", "F-ActT", "KD")],
                        at_least=4,
                    )
                    for pair in PAIRS
                ],
                at_least=2,
            ),
            unit="in how many of two pairs it beats alone, AT, F-ActT and KD",
            varies=_VARIES,
            given=_BETTER,
        ),
        Claim(
            "A7",
            "the mapping must be chosen",
            source="lecture, attention transfer, third slide",
            decide=greater("worst on validation", "best on validation", "errors by mapping"),
            unit="points of error, the mapping that validation finds worst minus the best",
            varies=_VARIES,
        ),
        Claim(
            "A8",
            "the layers must be chosen",
            source="lecture, attention transfer, third slide",
            decide=greater("worst on validation", "best on validation", "errors by layers"),
            unit="points of error, the layers that validation finds worst minus the best",
            varies=_VARIES,
        ),
    ],
)
