"""Anew, or from where another task ended: how many labels does it take, and how far do weights go?

The target is scikit-learn's scanned digits, by few labels of each class. One network starts anew;
one has learnt MNIST, the same task in another domain; one has learnt clothes, another task. There
are ten classes everywhere, so the whole network goes on, its head too, and no layer is new.

Every arm gets the same labels and as many updates. Where labels are few, a large validation set
would be hidden labels, so rates are chosen on another task: there clothes of seven by seven pixels
are the target, clothes are what is related, and digits are not.
"""

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn

from tlcourse.claims import Claim, contrast, count, equivalent, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Case, Experiment, Row, Scale, tuned, tuned_at
from tlcourse.experiments.what_is_transfer_learning.adaptation import percent
from tlcourse.models import ConvNet
from tlcourse.training import cross_entropy, fit, seed_everything

ANEW, RELATED, UNRELATED = ARMS = "anew", "from the same task", "from another task"
RATES = {f"lr {lr}": lr for lr in (2.5e-5, 1e-4, 5e-4, 2e-3, 8e-3, 1.6e-2, 3.2e-2)}
COMPARED = ("lr 0.0005", "lr 0.002", "lr 0.008")  # what weights do hangs on the rate
EXTRACTOR, HEAD, FEW, MANY = "all below the head", "head", 5, 100  # labels of a class
Networks = dict[str, nn.Sequential]  # by arm


@dataclass(frozen=True, kw_only=True)
class Starts(Scale):
    """Arms, labels of a class, updates, and from how many images in how many passes sources learn.

    Rates are chosen at some of the sizes; at one, and at each compared rate, weights are compared.
    """

    arms: tuple[str, ...] = ARMS
    sizes: tuple[int, ...] = (1, 2, FEW, 10, 20, 50, MANY)
    tuned_sizes: tuple[int, ...] = (1, FEW, 20, MANY)
    moved_at: int = MANY
    compared: tuple[str, ...] = COMPARED
    steps: int = 300
    images: int = 10_000
    epochs: int = 3
    judged: int = 2_000  # in tuning


class Task(NamedTuple):
    """Where each arm starts, the target's images to learn from, and others to judge by."""

    starts: Networks
    pool: Images
    test: Images


def run(scale: Starts, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent by labels of a class, 0 for what a start knows; then how far weights went.

    All have then learnt from the same labels at the same rate, whatever was chosen.
    """
    task = scans(scale, seed, device)
    for arm, start in task.starts.items():
        yield Row(arm, "errors", percent(start, task.test), {"per_class": 0})
    for case, n in cases(scale, task, scale.sizes, seed):
        yield Row(case.arm, "errors", percent(case.trained(scale), task.test), {"per_class": n})
    few = task.pool.per_class(scale.moved_at, seed)
    for rate, (arm, start) in product(scale.compared, task.starts.items()):
        network, at = learn(scale, start, few, seed, RATES[rate]), {"rate": rate}
        yield Row(arm, "errors at a rate", percent(network, task.test), at)
        for layer, far in moved(start, network).items():
            yield Row(arm, "moved", far, {**at, "layer": layer})


def tune(scale: Starts, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and rate where the target is coarse clothes, errors in percent on other ones."""
    task = coarse_clothes(scale, seed, device)
    of_all = cases(scale, task, scale.tuned_sizes, seed)
    yield from tuned((case for case, _ in of_all), partial(percent, data=task.test))


def cases(scale: Starts, task: Task, sizes: Sequence[int], seed: int) -> Iterator[tuple[Case, int]]:
    """Every arm with every number of labels of a class. A case, trained, gives a network."""
    for n in sizes:
        few, at = task.pool.per_class(n, seed), {"tuned_at": tuned_at(scale.tuned_sizes, n)}
        for arm, start in task.starts.items():
            yield Case(arm, RATES, partial(learn, scale, start, few, seed), at), n


def learn(scale: Starts, start: nn.Sequential, few: Images, seed: int, lr: float) -> nn.Sequential:
    """A network that has gone on from a start, which stays as it is."""
    network, how = deepcopy(start), dict[str, Any](batch_size=32, seed=seed, progress=False)
    fit(network, few, cross_entropy, steps=scale.steps, lr=lr, **how)
    return network


def scans(scale: Starts, seed: int, device: torch.device) -> Task:
    """The target that is judged: scanned digits; where one starts are digits, or clothes."""
    sources = {RELATED: load("mnist"), UNRELATED: load("fashion_mnist")}
    pool, test = load("digits"), load("digits", "test")
    return Task(starts(scale, sources, seed, device), pool.to(device), test.to(device))


def coarse_clothes(scale: Starts, seed: int, device: torch.device) -> Task:
    """The target by which rates are chosen: training images alone, and none in two places."""
    size = scale.images, 20 * max(scale.tuned_sizes), scale.judged
    source, pool, test = load("fashion_mnist").split(*size, seed=seed)
    begun = starts(scale, {RELATED: source, UNRELATED: load("mnist")}, seed, device)
    return Task(begun, coarse(pool).to(device), coarse(test).to(device))


def coarse(images: Images) -> Images:
    """The same as seven by seven pixels show them."""
    small = F.avg_pool2d(images.pixels.float(), 4)
    return replace(images, pixels=F.interpolate(small, scale_factor=4).round().byte())


def starts(scale: Starts, sources: dict[str, Images], seed: int, device: torch.device) -> Networks:
    """By arm, a network that has learnt its source, if any; all began with the same weights."""
    seed_everything(seed)
    anew, found = ConvNet().to(device), Networks()
    how: dict[str, Any] = {"epochs": scale.epochs, "lr": 2e-3, "seed": seed, "progress": False}
    for arm in scale.arms:
        found[arm] = deepcopy(anew)
        if arm in sources:
            (images,) = sources[arm].split(scale.images, seed=seed)
            fit(found[arm], images.to(device), cross_entropy, **how)
    return found


def moved(start: nn.Sequential, end: nn.Sequential) -> dict[str, float]:
    """By layer that learns, and below the head: ‖w − w₀‖ / ‖w₀‖ in percent, biases among w."""
    found, parts = {}, {EXTRACTOR: start[:-1], **dict(start.named_children())}
    for name in (name for name, part in parts.items() if [*part.parameters()]):
        other = end[:-1] if name == EXTRACTOR else end.get_submodule(name)
        both = (nn.utils.parameters_to_vector(part.parameters()) for part in (parts[name], other))
        w_0, w = (weights.detach().double() for weights in both)
        found[name] = float(100 * (w - w_0).norm() / w_0.norm())
    return found


LECTURE = Starts(seeds=6, tuning_seeds=2, minutes=12)
LIVE = Starts(
    arms=(ANEW, RELATED),
    sizes=(FEW,),
    compared=(),
    seeds=8,
    minutes=2,
    settings={ANEW: RATES["lr 0.0005"], RELATED: RATES["lr 2.5e-05"]},  # as lecture chose them
)


def _further(than: str, times: float, what: str) -> dict[str, Any]:
    """How a claim is decided: do weights from clothes go further than so many times an arm's?"""
    arms, at = {UNRELATED: 1, than: -times}, product(COMPARED, (EXTRACTOR, HEAD))
    found = [contrast(arms, "moved", rate=rate, layer=layer) for rate, layer in at]
    unit = "of six comparisons (three rates; all below the head, the head), in how many weights "
    unit += f"that come from clothes go further, by their norm, than {what}"
    return {"decide": count(found, at_least=5), "unit": unit}


_claim = partial(
    Claim,
    varies="each seed draws labels, sources and weights; rates are of another task and other seeds",
    scales=("lecture",),
)

EXPERIMENT = Experiment(
    name="starts",
    question="Few labels, or transfer: what is a start worth, and how far do weights go from it?",
    chapter="what_is_transfer_learning",
    run=run,
    tune=tune,
    arms=ARMS,
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "I1",
            "where labels are few, transfer beats learning from scratch",
            source="lecture, why transfer learning now",
            decide=greater(ANEW, RELATED, "errors", per_class=FEW),
            unit=f"points of error saved by MNIST, scanned digits, {FEW} labels of a class",
        ),
        _claim(
            "I1c",
            "where there are labels, learning from scratch catches up",
            source="ours",
            decide=equivalent(ANEW, RELATED, "errors", margin=1.0, per_class=MANY),
            unit=f"points of error saved by MNIST, scanned digits, {MANY} labels of a class (±1)",
        ),
        _claim(
            "I1r",
            "what saves labels is that the source is related",
            source="ours",
            decide=greater(UNRELATED, RELATED, "errors", per_class=FEW),
            unit=f"points of error more from clothes than from MNIST, {FEW} labels of a class",
        ),
        _claim(
            "I4",
            "a new task changes feature extractor and output layer a lot",
            source="lecture, overview of scenarios, different tasks",
            **_further(ANEW, 0.5, "half as far as those that start anew"),
        ),
        _claim(
            "I4r",
            "a new task changes them more than the same task in another domain",
            source="ours",
            **_further(RELATED, 1, "those that come from MNIST"),
        ),
    ],
)
