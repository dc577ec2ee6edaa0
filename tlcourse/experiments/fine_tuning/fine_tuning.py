"""How much is a source network worth, by the target's images, and how much of it should move?

Four pairs of source and target, from near (other digits) to far (clothes, then digits), and a
network from ImageNet. Every arm gets the same number of updates on the same few images of each
class, and starts from the same source network with the same new head. What is frozen is asked once,
and what is above it is trained on the answers: that is the same network, only faster.

Where labels are few, a large validation set would be hidden labels, so every arm's rates are chosen
on another pair of tasks.
"""

from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Decision, count, greater, scope
from tlcourse.data import Images, load
from tlcourse.experiments.base import Case, Experiment, Row, Scale, tuned, tuned_at
from tlcourse.lecture import SELECTIVE
from tlcourse.methods.fine_tuning import freeze, parameter_groups, replace_head, unfreeze
from tlcourse.metrics import errors
from tlcourse.models import ON_BOARD, ConvNet, imagenet_classes, pretrained
from tlcourse.training import Source, accuracy, cross_entropy, fit, predict, seed_everything

TASKS = {
    "digits 0-4": ("mnist", range(5)),
    "digits 5-9": ("mnist", range(5, 10)),
    "digits": ("mnist", range(10)),
    "clothes 0-4": ("fashion_mnist", range(5)),
    "clothes 5-9": ("fashion_mnist", range(5, 10)),
    "clothes": ("fashion_mnist", range(10)),
}
IMAGENET = "ImageNet"
PAIRS = {
    "digits 0-4 → 5-9": ("digits 0-4", "digits 5-9"),
    "clothes 0-4 → 5-9": ("clothes 0-4", "clothes 5-9"),
    "clothes → digits": ("clothes", "digits"),
    "ImageNet → clothes": (IMAGENET, "clothes"),
}
DIGITS, CLOTHES, FAR, FROM_IMAGENET = PAIRS
TUNED_ON = (("digits 5-9", "digits 0-4"), (IMAGENET, "digits"))
# how many layers of the network an arm keeps frozen, from below
LAYER_WISE, STEPWISE = "rates by layer", "unfrozen step by step"
CUTS = {
    "scratch": 0,
    "full": 0,
    "first block frozen": 1,
    "two blocks frozen": 2,
    "convolutions frozen": 4,
    "head only": 8,
    LAYER_WISE: 0,
    STEPWISE: 0,
}
PHOTO_CUTS = {"scratch": 0, "full": 0, "five blocks frozen": 8, "head only": 14}
FROZEN = {pair: "head only" if pair == FROM_IMAGENET else "convolutions frozen" for pair in PAIRS}
STEPS_UP = (8, 6, 4, 0)  # so many layers frozen, each for a quarter of the updates
DECAY = 1 / 2.6  # from layer to layer; Howard and Ruder 2018
# learning rates of what lies below the head, and of the head
SMALL, LARGE = (1e-3, 3e-3, 8e-3, 2e-2), (2e-3, 1e-2, 5e-2, 2e-1)
BOTH = {
    f"lr {low}, head {top}": (low, top)
    for low, top in ((1e-3, 4e-3), (2e-3, 2e-3), (4e-3, 4e-3), (8e-3, 8e-3))
}
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    "scratch": {f"lr {lr}": (lr, lr) for lr in SMALL},
    **dict.fromkeys(("full", "first block frozen", "two blocks frozen"), BOTH),
    **dict.fromkeys(("convolutions frozen", "five blocks frozen", LAYER_WISE, STEPWISE), BOTH),
    "head only": {f"head {lr}": (lr, lr) for lr in LARGE},
}
# what clothes are called in ImageNet, as far as it knows them: by meaning, before any was tried
CALLED = {
    "T-shirt": ("jersey",),
    "trouser": ("jean",),
    "pullover": ("sweatshirt", "cardigan"),
    "dress": ("gown", "overskirt"),
    "coat": ("trench coat", "fur coat"),
    "sandal": ("sandal",),
    "shirt": (),
    "sneaker": ("running shoe",),
    "bag": ("purse", "backpack", "mailbag"),
    "ankle boot": ("cowboy boot",),
}


@dataclass(frozen=True, kw_only=True)
class Sourced(Scale):
    """From how many images, in how many passes, a source network learns."""

    source_images: int = 20_000
    source_epochs: int = 3


@dataclass(frozen=True, kw_only=True)
class FineTuning(Sourced):
    """Pairs of tasks, images of a class, updates, and images to test on.

    Rates are chosen at some of the sizes. Those of the network from ImageNet stand apart: an update
    of it takes thirty times as long.
    """

    pairs: tuple[str, ...] = tuple(PAIRS)
    sizes: tuple[int, ...] = (1, 2, 5, 20, 100)
    tuned_sizes: tuple[int, ...] = (1, 5, 20)
    steps: int = 200
    test_images: int = 2_400
    photo_sizes: tuple[int, ...] = (1, 5, 20, 100)
    photo_tuned_sizes: tuple[int, ...] = (20,)
    photo_steps: int = 80
    photo_test_images: int = 1_000


class Target(NamedTuple):
    """A source network, whether it is that of photos, the target's images, those to test on."""

    photos: bool
    network: nn.Sequential
    pool: Images
    test: Images


def run(scale: FineTuning, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent on the target, for every pair, number of images a class, and arm."""
    for pair in scale.pairs:
        target = target_of(scale, *PAIRS[pair], "test", seed, device)
        for arm, n, wrong in (*untrained(target, seed), *nearest_mean(scale, target, seed)):
            yield Row(arm, "errors", wrong, {"pair": pair, "per_class": n})
        for case, n in cases(scale, target, sizes(scale, target), seed):
            at = {"pair": pair, "per_class": n}
            yield Row(case.arm, "errors", case.trained(scale), at)


def tune(scale: FineTuning, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting on another pair of tasks, errors in percent on images left aside."""
    for source, task in TUNED_ON:
        target = target_of(scale, source, task, "train", seed, device)
        few = tuned_sizes(scale, target)
        yield from tuned((case for case, _ in cases(scale, target, few, seed)), float)


def cases(
    scale: FineTuning, target: Target, few: Sequence[int], seed: int
) -> Iterator[tuple[Case, int]]:
    """Every arm with every number of images a class. A case, trained, gives errors in percent."""
    cuts, steps = (PHOTO_CUTS, scale.photo_steps) if target.photos else (CUTS, scale.steps)
    for arm, cut in cuts.items():
        seen = partial(seen_through, target.network[:cut])
        test = seen(target.test)
        for n in few:
            data = seen(target.pool.per_class(n, seed))
            begin = partial(beginning, target, arm, cut, seed)
            learn = partial(_errors, arm, begin, data, test, steps, seed)
            network = "ImageNet's" if target.photos else "ConvNet"
            at = {"network": network, "tuned_at": tuned_at(tuned_sizes(scale, target), n)}
            yield Case(arm, SETTINGS[arm], learn, at), n


def target_of(
    scale: FineTuning, source: str, task: str, split: str, seed: int, device: torch.device
) -> Target:
    """The source network, trained here unless it is ImageNet's, and the target's images."""
    photos = source == IMAGENET
    network = photo_network() if photos else source_network(scale, source, seed, device)
    pool, others = pool_and_others(task, split, seed)
    (test,) = others.split(scale.photo_test_images if photos else scale.test_images, seed=0)
    return Target(photos, network.to(device), pool.to(device), test.to(device))


def pool_and_others(task: str, split: str, seed: int) -> tuple[Images, Images]:
    """A task's images to learn from, and others to judge by; for "train", two halves of one."""
    pool = images_of(task)
    if split == "test":
        return pool, images_of(task, "test")
    half = len(pool) // 2
    learnt, judged = pool.split(half, half, seed=seed)
    return learnt, judged


def images_of(task: str, split: str = "train") -> Images:
    """All images of a task, its classes numbered from 0."""
    name, classes = TASKS[task]
    return load(name, split).only(list(classes), relabel=True)


def source_network(scale: Sourced, task: str, seed: int, device: torch.device) -> nn.Sequential:
    """A small convolutional network that has learnt a source task."""
    (images,) = images_of(task).split(scale.source_images, seed=seed)
    seed_everything(seed)
    network = ConvNet(len(images.classes)).to(device)
    how: dict[str, Any] = {"epochs": scale.source_epochs, "lr": 2e-3, "progress": False}
    fit(network, images.to(device), cross_entropy, seed=seed, **how)
    return network


class Enlarge(nn.Module):
    """Small grey pictures, (N, 1, H, W) in [0, 1], as the network from ImageNet takes them."""

    def forward(self, x: Tensor) -> Tensor:
        """Returns (N, 3, 64, 64) in [-1, 1]."""
        return 2 * F.interpolate(x, (64, 64), mode="bilinear").expand(-1, 3, -1, -1) - 1


def photo_network(random: bool = False) -> nn.Sequential:
    """The network from ImageNet as a row of layers, or the same with random weights."""
    network: Any = timm.create_model(ON_BOARD) if random else pretrained()
    return nn.Sequential(Enlarge(), *network.as_sequential()).eval()


def beginning(target: Target, arm: str, cut: int, seed: int) -> nn.Sequential:
    """What an arm trains: the source's layers from the cut on, with a new head; or all anew."""
    seed_everything(seed)
    classes = len(target.pool.classes)
    if arm == "scratch":
        network = photo_network(random=True) if target.photos else ConvNet(classes)
    else:
        network = deepcopy(target.network)
    return replace_head(network, classes)[cut:].to(target.pool.pixels.device)


def train(
    arm: str,
    network: nn.Sequential,
    data: Source,
    steps: int,
    rates: tuple[float, float],
    seed: int,
) -> None:
    """Train all layers at once, or from the head downwards; rates: below the head, and of it."""
    decay = DECAY if arm == LAYER_WISE else 1.0
    stages = STEPS_UP if arm == STEPWISE else (0,)
    for frozen in stages:
        unfreeze(network)
        freeze(network[:frozen])
        groups = parameter_groups(network, *rates, decay)
        how: dict[str, Any] = {"steps": steps // len(stages), "batch_size": 32, "progress": False}
        fit(network, data, cross_entropy, groups=groups, seed=seed, **how)


def untrained(target: Target, seed: int) -> Iterator[tuple[str, int, float]]:
    """Without a single labelled image: a new head, and for photos what ImageNet's own head says."""
    network = beginning(target, "full", 0, seed)
    yield "untrained head", 0, percent_of(predict(network, target.test), target.test.labels)
    if target.photos:
        called = [CALLED[name] for name in target.test.classes]
        at = [[imagenet_classes().index(word) for word in words] for words in called]
        said = predict(target.network, target.test).softmax(1)
        votes = torch.stack([said[:, places].sum(1) for places in at], 1)
        yield "names", 0, percent_of(votes, target.test.labels)


def nearest_mean(scale: FineTuning, target: Target, seed: int) -> Iterator[tuple[str, int, float]]:
    """Nothing is trained: the class whose mean points most nearly where the features point."""
    features = partial(predict, target.network[:-1])
    test = F.normalize(features(target.test))
    for n in sizes(scale, target):
        few = target.pool.per_class(n, seed)
        seen = F.normalize(features(few))
        means = [seen[few.labels == k].mean(0) for k in range(len(few.classes))]
        said = test @ F.normalize(torch.stack(means)).T
        yield "nearest mean", n, percent_of(said, target.test.labels)


def sizes(scale: FineTuning, target: Target) -> tuple[int, ...]:
    """How many images a class a target is learnt from."""
    return scale.photo_sizes if target.photos else scale.sizes


def tuned_sizes(scale: FineTuning, target: Target) -> tuple[int, ...]:
    """At how many images a class the rates are chosen."""
    return scale.photo_tuned_sizes if target.photos else scale.tuned_sizes


def seen_through(frozen: nn.Sequential, images: Images) -> Source:
    """What frozen layers make of images, beside the labels; without any, the images."""
    return (predict(frozen, images), images.labels) if len(frozen) else images


def _errors(
    arm: str,
    begin: Callable[[], nn.Sequential],
    data: Source,
    test: Source,
    steps: int,
    seed: int,
    rates: tuple[float, float],
) -> float:
    network = begin()
    train(arm, network, data, steps, rates, seed)
    return percent(network, test)


def percent(network: nn.Module, data: Source) -> float:
    """Errors in percent."""
    return 100 * (1 - accuracy(network, data))


def percent_of(said: Tensor, labels: Tensor) -> float:
    """Errors in percent."""
    return 100 * errors(said, labels) / len(labels)


def _worse(a: str, b: str, pair: str, per_class: int) -> Decision:
    return greater(a, b, "errors", pair=pair, per_class=per_class)


LECTURE = FineTuning(seeds=5, tuning_seeds=2, minutes=33)
LIVE = FineTuning(
    pairs=(FROM_IMAGENET,),
    photo_sizes=(5,),
    photo_steps=40,
    photo_test_images=500,
    seeds=8,
    minutes=3,
    settings={  # for the same network on digits these came out best
        "scratch": SETTINGS["scratch"]["lr 0.008"],
        "full": SETTINGS["full"]["lr 0.002, head 0.002"],
        "five blocks frozen": SETTINGS["full"]["lr 0.002, head 0.002"],
        "head only": SETTINGS["head only"]["head 0.01"],
    },
)
_SLIDES = "lecture, fine-tuning, {} slide"
_FIRST, _SECOND = (_SLIDES.format(which) for which in ("first", "third"))
_VARIES = "each seed draws the target's images and trains its own source (ImageNet's is given)"
_NEAR = (DIGITS, CLOTHES, FROM_IMAGENET)

EXPERIMENT = Experiment(
    name="fine_tuning",
    question="How much is a source network worth, and how much of it should move?",
    chapter="fine_tuning",
    run=run,
    tune=tune,
    arms=("untrained head", "names", "nearest mean", *CUTS, "five blocks frozen"),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        Claim(
            "F1",
            "lower layers see edges, higher layers parts of objects",
            source=_FIRST,
            decide=scope("shown on photos, not counted"),
            unit="",
        ),
        Claim(
            "F2",
            "a network from ImageNet is a good feature extractor",
            source=_FIRST,
            decide=_worse("scratch", "head only", FROM_IMAGENET, 5),
            unit="points of error saved by its frozen features, clothes, 5 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F3",
            "a network from ImageNet is a good initialisation",
            source=_FIRST,
            paper=", ".join(
                f"{name} {row['fine-tuning']} % right, {row['from scratch']} from scratch"
                for name, row in SELECTIVE.items()
            ),
            decide=_worse("scratch", "full", FROM_IMAGENET, 20),
            unit="points of error saved by its weights, clothes, 20 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F4",
            "for small target sets, convolutional layers are better frozen",
            source=_FIRST,
            decide=count(
                [_worse("full", arm, pair, 5) for pair, arm in FROZEN.items()], at_least=3
            ),
            unit="of four pairs, in how many tuning all makes more errors, 5 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F5",
            "fine-tuning transfers to other domains and tasks",
            source=_FIRST,
            decide=count([_worse("scratch", "full", pair, 5) for pair in _NEAR], at_least=3),
            unit="of three pairs (digits, clothes, ImageNet to clothes), in how many it saves "
            "errors, 5 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F6",
            "the extractor's architecture must stay the same",
            source=_FIRST,
            decide=scope("weights fit only the layers that they were trained in"),
            unit="",
        ),
        Claim(
            "F7",
            "lower features serve other tasks, higher ones are of their own task",
            source=_SECOND,
            decide=count(
                [
                    _worse("head only", "first block frozen", pair, 100)
                    for pair in (DIGITS, CLOTHES, FAR)
                ],
                at_least=3,
            ),
            unit="of three pairs, in how many freezing all below the head costs more than freezing "
            "the first block, 100 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F8",
            "fine-tuning fails when source and target are very different",
            source=_SECOND,
            decide=_worse("full", "scratch", FAR, 20),
            unit="points of error more than from scratch, clothes → digits, 20 images a class",
            varies=_VARIES,
        ),
        Claim(
            "F9",
            "fine-tuning fails when there are very few labels",
            source=_SECOND,
            decide=count([_worse("full", "nearest mean", pair, 1) for pair in PAIRS], at_least=3),
            unit="of four pairs, in how many tuning all layers on one image a class is worse than "
            "to train nothing and name the nearest image",
            varies=_VARIES,
        ),
    ],
)
