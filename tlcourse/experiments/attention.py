"""Does a student that looks where its teacher looks learn more? The lecture's table of attention transfer, in small.

A thin residual network learns clothes from 2,000 pictures, with the help of a teacher of the same depth and twice the width, or of the same
width and more depth. The teacher learnt from the same pictures, shifted and mirrored. What it says, and where it looks, is recorded once.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Given, count, greater
from tlcourse.data import Images, load, random_flip, random_shift
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.attention import activation_loss, attention_map, attention_transfer_loss, connectors
from tlcourse.methods.distillation import distillation_loss
from tlcourse.metrics import errors
from tlcourse.models import WideResNet
from tlcourse.training import Augmentation, Batch, Objective, cross_entropy, fit, predict, record, seed_everything

GROUPS = ("group1", "group2", "group3")
STUDENT = (10, 1)  # depth and width
TEACHERS = {"wider": (10, 2), "deeper": (28, 1)}
RATES = (2e-2, 5e-2)
# For each arm four settings of learning rate and what is its own. Where to look was found in a trial with a seed of its own.
OWN: dict[str, list[dict[str, float]]] = {
    "AT": [{"beta": 3.0}, {"beta": 10.0}],
    "AT, code's form": [{"beta": 30.0}, {"beta": 100.0}],
    "F-ActT": [{"beta": 3.0}, {"beta": 10.0}],
    "KD": [{"T": 4.0, "alpha": 0.9}, {"T": 20.0, "alpha": 0.9}],
    "AT+KD": [{"T": 4.0, "alpha": 0.9, "beta": 3.0}, {"T": 20.0, "alpha": 0.9, "beta": 3.0}],
}
SETTINGS: dict[str, dict[str, dict[str, float]]] = {"alone": {f"lr {lr:g}": {"lr": lr} for lr in (1e-2, 2e-2, 5e-2, 1e-1)}} | {
    arm: {", ".join(f"{k} {v:g}" for k, v in ({"lr": lr} | own).items()): {"lr": lr} | own for lr in RATES for own in owns}
    for arm, owns in OWN.items()
}
MAPPINGS: dict[str, dict[str, Any]] = {
    "sum, p = 1": {"p": 1},
    "sum, p = 2": {"p": 2},
    "sum, p = 4": {"p": 4},
    "max, p = 2": {"p": 2, "over": "max"},
}
LAYERS = {"group 1": GROUPS[:1], "group 2": GROUPS[1:2], "group 3": GROUPS[2:], "all groups": GROUPS}
Recorded = Mapping[str, Tensor]  # by group: activations (N, C, H, W); "logits": (N, K)


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent of every arm and pair; for AT also by mapping and by layers, and with the maps of other pictures."""
    train, validation = pictures(scale, seed, device)
    test = load("fashion_mnist", "test").to(device)
    alone = SETTINGS["alone"][scale.chosen(arm="alone")]
    plain, shifted = (train_student(scale, train, cross_entropy, alone, seed, augment) for augment in ((), AUGMENTED))
    rows = []
    for pair in TEACHERS:
        teacher = train_teacher(scale, train, pair, seed)
        said = recorded(teacher, train)
        students = {"teacher": teacher, "alone": plain, "alone, shifted": shifted}
        chosen = {arm: SETTINGS[arm][scale.chosen(arm=arm, pair=pair)] for arm in OWN}
        students |= {arm: train_student(scale, train, objective(arm, said, chosen[arm]), chosen[arm], seed) for arm in OWN}
        others = {name: value.roll(1, 0) for name, value in said.items()}
        students["AT, other pictures"] = train_student(scale, train, objective("AT", others, chosen["AT"]), chosen["AT"], seed)
        rows += [Row(arm, "errors", percent(net, test), {"pair": pair}) for arm, net in students.items()]
        if pair == "wider":
            yield from _variants(scale, train, validation, test, said, chosen["AT"], seed)
    yield from rows
    for arm in dict.fromkeys(row.arm for row in rows):
        values = [row.value for row in rows if row.arm == arm]
        yield Row(arm, "errors", sum(values) / len(values), {"pair": "both"})


def _variants(
    scale: Scale, train: Images, validation: Images, test: Images, said: Recorded, chosen: Mapping[str, float], seed: int
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
        ranked = sorted(found.values(), key=lambda errors: errors[0])  # by validation; of equals the first named
        yield Row("best on validation", f"errors by {kind}", ranked[0][1])
        yield Row("worst on validation", f"errors by {kind}", ranked[-1][1])


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, pair and setting: errors in percent on validation images."""
    train, validation = pictures(scale, seed, device)
    for name, setting in SETTINGS["alone"].items():
        net = train_student(scale, train, cross_entropy, setting, seed)
        yield Row("alone", "validation errors", percent(net, validation), {"setting": name})
    for pair in TEACHERS:
        said = recorded(train_teacher(scale, train, pair, seed), train)
        for arm in OWN:
            for name, setting in SETTINGS[arm].items():
                net = train_student(scale, train, objective(arm, said, setting), setting, seed)
                yield Row(arm, "validation errors", percent(net, validation), {"pair": pair, "setting": name})


def pictures(scale: Scale, seed: int, device: torch.device) -> list[Images]:
    """Training and validation pictures of a seed."""
    return [part.to(device) for part in load("fashion_mnist").split(scale.images, scale.validation, seed=seed)]


AUGMENTED: tuple[Augmentation, ...] = (random_shift(2), random_flip())


def train_teacher(scale: Scale, train: Images, pair: str, seed: int) -> nn.Sequential:
    """A larger network that saw the pictures shifted and mirrored."""
    seed_everything(seed + 1)  # not the student's initial weights
    teacher = thin(*TEACHERS[pair], train)
    fit(
        teacher, train, cross_entropy, epochs=scale.teacher_epochs, lr=1e-2, weight_decay=5e-4, augment=AUGMENTED, seed=seed, progress=False
    )
    return teacher


def train_student(
    scale: Scale, train: Images, objective: Objective, setting: Mapping[str, float], seed: int, augment: tuple[Augmentation, ...] = ()
) -> nn.Sequential:
    """All students of a seed begin with the same weights and see the same batches."""
    seed_everything(seed)
    student = thin(*STUDENT, train)
    how: dict[str, Any] = {"epochs": scale.epochs, "lr": setting["lr"], "weight_decay": 5e-4, "seed": seed, "progress": False}
    fit(student, train, objective, augment=augment or None, **how)
    return student


def thin(depth: int, width: int, images: Images) -> nn.Sequential:
    """A residual network with half of the usual maps, whose first convolution halves the size: maps of 14, 7 and 4 pixels a side."""
    network = WideResNet(depth, width, len(images.classes), channels=images.pixels.shape[1], base=8, stem_stride=2)
    return network.to(images.pixels.device)


def recorded(teacher: nn.Module, images: Images) -> Recorded:
    """What a teacher answers, and its activations after each group."""
    return {**record(teacher, images, of=GROUPS), "logits": predict(teacher, images)}


def tapped(network: nn.Sequential, x: Tensor, layers: tuple[str, ...] = GROUPS) -> tuple[Tensor, list[Tensor]]:
    """Logits, and the activations after some layers on the way."""
    taken = []
    for name, layer in network.named_children():
        x = layer(x)
        if name in layers:
            taken.append(x)
    return x, taken


def objective(
    arm: str, said: Recorded, setting: Mapping[str, float], *, layers: tuple[str, ...] = GROUPS, p: float = 2, over: Any = "sum"
) -> Objective:
    """What a student of this arm minimises, with what its teacher said. setting: its own of beta, T and alpha."""
    if arm == "F-ActT":
        return FullActivations(said, setting["beta"])
    maps = {name: attention_map(said[name], p, over) for name in layers}
    form: Any = "code" if arm == "AT, code's form" else "paper"

    def minimise(net: Any, batch: Batch) -> Tensor:
        logits, features = tapped(net, batch.x, layers)
        loss = F.cross_entropy(logits, batch.y)
        if "T" in setting:
            loss = distillation_loss(logits, said["logits"][batch.index], batch.y, T=setting["T"], alpha=setting["alpha"])
        if "beta" in setting:
            theirs = [maps[name][batch.index] for name in layers]
            loss = loss + attention_transfer_loss(features, theirs, beta=setting["beta"], p=p, over=over, form=form)
        return loss

    return minimise


class FullActivations(nn.Module):
    """The objective of F-ActT: it has convolutions of its own, which are trained along."""

    def __init__(self, said: Recorded, beta: float) -> None:
        super().__init__()
        self.said, self.beta = said, beta
        width = [8 * STUDENT[1] * 2**i for i in range(3)]
        self.connectors = connectors(width, [said[name].shape[1] for name in GROUPS]).to(said["logits"].device)

    def forward(self, net: Any, batch: Batch) -> Tensor:
        """Cross-entropy, and how far the student's activations are from the teacher's."""
        logits, features = tapped(net, batch.x)
        ours = [connect(x) for connect, x in zip(self.connectors, features)]
        theirs = [self.said[name][batch.index] for name in GROUPS]
        return F.cross_entropy(logits, batch.y) + activation_loss(ours, theirs, beta=self.beta)


def percent(network: nn.Module, images: Images) -> float:
    """Errors in percent."""
    return 100 * errors(predict(network, images), images.labels) / len(images)


LECTURE = Scale(seeds=6, tuning_seeds=2, minutes=60, images=2_000, validation=5_000, teacher_epochs=60, epochs=40)
_SOURCE = "lecture, attention transfer, table of CIFAR-10; Zagoruyko and Komodakis 2017, table 1"
_VARIES = "each seed draws its pictures and trains its own teachers"
_BETTER = Given(
    "both teachers are better than the student alone",
    count([greater("alone", "teacher", "errors", pair=pair) for pair in TEACHERS], at_least=2),
)


def _beats(arm: str, other: str) -> Callable[[str], Any]:
    return lambda pair: greater(other, arm, "errors", pair=pair)


def _in_both(arm: str, other: str) -> Any:
    return count([_beats(arm, other)(pair) for pair in TEACHERS], at_least=2)


attention = Experiment(
    name="attention",
    question="Does a student that looks where its teacher looks learn more?",
    chapter="attention_transfer",
    run=run,
    tune=tune,
    arms=("teacher", "alone", "alone, shifted", *OWN, "AT, other pictures"),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "A1",
            "attention maps are transferable knowledge",
            source="lecture, matching intermediate features, first slide",
            decide=count(
                [greater(other, "AT", "errors", pair="both") for other in ("alone", "AT, other pictures")],
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
                [count([_beats("AT+KD", other)(pair) for other in ("alone", "AT", "F-ActT", "KD")], at_least=4) for pair in TEACHERS],
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
