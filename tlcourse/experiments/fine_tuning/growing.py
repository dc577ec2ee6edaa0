"""Is it worth while to give a network more room before it is fine-tuned?

The lecture's table of ways to grow and of what is tuned, in small: a network has learnt the digits
0 to 4 and gets twenty pictures of each of 5 to 9. Its fully connected layers fc6 and fc7 are those
that grow, as in the paper. Controls: fine-tuning with the same scaling, and the old and the grown
network from scratch.

Where no convolution moves they are asked once: the layers above are trained on what they said. The
settings of every arm and column are chosen with source and target exchanged. Wang, Ramanan and
Hebert 2017, "Growing a brain", table 1.
"""

from collections import OrderedDict
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Decision, contrast, count, equivalent, greater, quoted, scope
from tlcourse.data import Images
from tlcourse.experiments.base import Case, Experiment, Row, tuned
from tlcourse.experiments.fine_tuning.fine_tuning import (
    Sourced,
    percent,
    pool_and_others,
    seen_through,
    source_network,
)
from tlcourse.methods.fine_tuning import freeze, replace_head
from tlcourse.methods.growing import ScaledNorm, Widened, deepen, widen
from tlcourse.models import ConvNet
from tlcourse.training import Source, cross_entropy, fit, predict, seed_everything

WIDER, BOTH_WIDER, DEEPER, SCALE = {"fc7": 64}, {"fc6": 32, "fc7": 64}, 64, 10.0
UNITS = 128  # of fc7 before it grows
GROWTHS: dict[str, Callable[[nn.Sequential], nn.Sequential]] = {
    "fine-tuning": lambda net: net,
    "fine-tuning, scaled": lambda net: scaled(net),
    "DA, rand": lambda net: deepen(net, DEEPER),
    "DA, scaled": lambda net: deepen(net, DEEPER, scale=SCALE),
    "WA, rand": lambda net: widen(net, WIDER),
    "WA, copy+rand": lambda net: widen(net, WIDER, start="copy"),
    "WA, scaled": lambda net: widen(net, WIDER, scale=SCALE),
    "WWA, rand": lambda net: widen(net, BOTH_WIDER),
    "WWA, scaled": lambda net: widen(net, BOTH_WIDER, scale=SCALE),
}
PACED = ("WA, rand", "WA, copy+rand", "WA, scaled")
FROM_SCRATCH = {"scratch": "fine-tuning", "scratch, grown": "WA, scaled"}
COLUMNS = ("New", "FC7-new", "FC6-new", "All")
FROZEN = {"New": ("fc6", "fc7"), "FC7-new": ("fc6",)}  # above the convolutions
CONVOLUTIONS = 4  # so many layers; they move in the last column alone
# learning rates of what was there before, and of what is new
SETTINGS = {f"lr {lr}, new {4 * lr}": (lr, 4 * lr) for lr in (1.25e-3, 3e-3, 7e-3, 1.7e-2, 4e-2)}


@dataclass(frozen=True, kw_only=True)
class Growing(Sourced):
    """Images a class and updates of the target, and images to test on."""

    source_images: int = 10_000
    per_class: int = 20
    steps: int = 250
    test_images: int = 2_400


class Target(NamedTuple):
    """The source network, a few images of each of the target's classes, those to test on."""

    network: nn.Sequential
    few: Images
    test: Images


def run(scale: Growing, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors in percent by arm and by what is tuned; and what old and new units come to alone."""
    target = target_of(scale, "digits 0-4", "digits 5-9", "test", seed, device)
    found: dict[str, dict[str, float]] = {}
    for case in (case for column in COLUMNS for case in cases(scale, target, column, seed)):
        network, test = case.trained(scale)
        found.setdefault(case.arm, {})[case.at["tuned"]] = wrong = percent(network, test)
        yield Row(case.arm, "errors", wrong, case.at)
        if case.at == {"tuned": "All"} and case.arm in PACED:
            yield from pace(case.arm, "start", grown(target, case.arm, seed)[0], test)
            yield from pace(case.arm, "end", network, test)
    for arm in GROWTHS:
        yield Row(arm, "gain of tuning all", found[arm]["New"] - found[arm]["All"])
        moved = found["fine-tuning"]["FC6-new"]  # nothing grows, old layers move instead
        yield Row(arm, "gap to moving old layers", found[arm]["New"] - moved)


def tune(scale: Growing, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, column and setting with the tasks exchanged, on images left aside."""
    target = target_of(scale, "digits 5-9", "digits 0-4", "train", seed, device)
    for column in COLUMNS:
        yield from tuned(cases(scale, target, column, seed), lambda found: percent(*found))


def cases(scale: Growing, target: Target, column: str, seed: int) -> Iterator[Case]:
    """Every way to grow, tuned as the column says; where all is tuned, also two from scratch.

    A case, trained, gives a network and what to ask it about.
    """
    cut = 0 if column == "All" else CONVOLUTIONS
    data, test = (seen_through(target.network[:cut], part) for part in (target.few, target.test))
    for arm in (*GROWTHS, *FROM_SCRATCH) if column == "All" else GROWTHS:
        learn = partial(trained, scale, target, arm, column, data, test, seed)
        yield Case(arm, SETTINGS, learn, {"tuned": column})


def target_of(
    scale: Growing, source: str, task: str, split: str, seed: int, device: torch.device
) -> Target:
    """A network that has learnt the source, and the target's images."""
    network = source_network(scale, source, seed, device)
    pool, others = pool_and_others(task, split, seed)
    (test,) = others.split(scale.test_images, seed=0)
    return Target(network, pool.per_class(scale.per_class, seed).to(device), test.to(device))


def grown(target: Target, arm: str, seed: int) -> tuple[nn.Sequential, list[nn.Parameter]]:
    """A network that has grown, with a new head, and what of it was there before it grew.

    From scratch that is what is old in place, not in what it has learnt.
    """
    seed_everything(seed)
    classes = len(target.few.classes)
    network = deepcopy(target.network)
    if arm in FROM_SCRATCH:
        network = ConvNet(classes).to(target.few.pixels.device)
    old = list(network.parameters())
    return replace_head(GROWTHS[FROM_SCRATCH.get(arm, arm)](network), classes), old


def scaled(network: nn.Sequential) -> nn.Sequential:
    """Nothing grows: there only is a norm below the head."""
    *below, (name, head) = network.named_children()
    norm = ScaledNorm(UNITS, SCALE).to(next(head.parameters()))
    return nn.Sequential(OrderedDict([*below, ("scaled", norm), (name, head)]))


def trained(
    scale: Growing,
    target: Target,
    arm: str,
    column: str,
    data: Source,
    test: Source,
    seed: int,
    rates: tuple[float, float],
) -> tuple[nn.Sequential, Source]:
    """A grown network, or what of it lies above the convolutions, trained as the column says."""
    network, old = grown(target, arm, seed)
    if column != "All":
        network = network[CONVOLUTIONS:]
    for name in FROZEN.get(column, ()):
        layer = network.get_submodule(name)
        freeze(layer.old if isinstance(layer, Widened) else layer)
    how: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 5e-4, "batch_size": 32}
    how |= {"steps": scale.steps, "groups": groups(network, old, rates), "progress": False}
    fit(network, data, cross_entropy, seed=seed, **how)
    return network, test


def groups(
    network: nn.Module, old: list[nn.Parameter], rates: tuple[float, float]
) -> list[dict[str, Any]]:
    """What is old learns at the first rate, what is new at the second; γ does not decay."""
    before = {id(p) for p in old}
    parts: dict[str, list[nn.Parameter]] = {"old": [], "new": [], "gamma": []}
    for name, p in network.named_parameters():
        if p.requires_grad:
            new = "gamma" if name.endswith("gamma") else "new"
            parts["old" if id(p) in before else new].append(p)
    how = {"old": {"lr": rates[0]}, "new": {"lr": rates[1]}}
    how["gamma"] = {"lr": rates[1], "weight_decay": 0.0}
    return [{"params": ps, **how[kind]} for kind, ps in parts.items() if ps]


def pace(arm: str, when: str, network: nn.Sequential, test: Source) -> Iterator[Row]:
    """Old and new units apart: how long their features are, and the errors of each alone.

    Then by how many points new ones are better, and how far apart the two are.
    """
    features, wrong = predict(network[:-1], test), dict[str, float]()
    for name, units in {"old": slice(None, UNITS), "new": slice(UNITS, None)}.items():
        alone = torch.zeros_like(features)
        alone[:, units] = features[:, units]
        length = alone.norm(dim=1).mean().item()
        yield Row(arm, "length", length, {"units": name, "when": when})
        wrong[name] = percent(network[-1:], (alone, labels_of(test)))
        yield Row(arm, "errors alone", wrong[name], {"units": name, "when": when})
    lead = wrong["old"] - wrong["new"]
    yield Row(arm, "lead of the new units", lead, {"when": when})
    yield Row(arm, "distance of old and new units", abs(lead), {"when": when})


def labels_of(data: Source) -> Tensor:
    """The labels of images, or of recorded features."""
    return data.labels if isinstance(data, Images) else data[1]


def _worse(a: str, b: str) -> Decision:
    return greater(a, b, "errors", tuned="All")


def _of_table(*arms: str) -> str:
    """The lecture's accuracies, all layers tuned."""
    return ", ".join(f"{arm} {lecture.SUN397['All'][arm]:.2f} %" for arm in arms)


LECTURE = Growing(seeds=30, tuning_seeds=2, minutes=24)
_TABLE = "lecture, fine-tuning, table of SUN-397; Wang 2017, section 4"
_SETS = "lecture, fine-tuning, table of four sets; Wang 2017, section 4"
_VARIES = "each seed draws 20 pictures of each class and trains its own source"
_BETTER = lecture.gaps(lecture.GROWN, "WA-CNN", "fine-tuning")
_THAN_CUSTOM = lecture.gaps(lecture.GROWN, "WA-CNN", "task-customised")
_THAN_MULTI = lecture.gaps(lecture.GROWN, "WA-CNN", "multi-task")
_OF_ALL = [lecture.SUN397["All"][arm] - lecture.SUN397["New"][arm] for arm in lecture.SUN397["All"]]

EXPERIMENT = Experiment(
    name="growing",
    question="Is it worth while to give a network more room before it is fine-tuned?",
    chapter="fine_tuning",
    run=run,
    tune=tune,
    arms=(*GROWTHS, *FROM_SCRATCH),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "G1",
            "grown networks beat fine-tuning",
            source=_SETS,
            paper=f"{lecture.tally(_BETTER)} sets; "
            + _of_table("fine-tuning", "DA, scaled", "WA, scaled"),
            decide=count(
                [_worse("fine-tuning", "DA, scaled"), _worse("fine-tuning", "WA, scaled")],
                at_least=2,
            ),
            unit="of two ways to grow (DA and WA, scaled), how many make fewer errors, all layers "
            "tuned",
            varies=_VARIES,
        ),
        Claim(
            "G2",
            "they beat most networks that were made for one task",
            source=_SETS,
            paper=lecture.tally(_THAN_CUSTOM),
            decide=quoted(_THAN_CUSTOM, at_least=3),
            unit="of the four sets of the lecture's table, on how many WA-CNN has the best number",
        ),
        Claim(
            "G3",
            "they beat multi-task learning",
            source=_SETS,
            paper=lecture.tally(_THAN_MULTI),
            decide=quoted(_THAN_MULTI, at_least=len(_THAN_MULTI)),
            unit="of the sets for which the lecture's table has both, on how many WA-CNN is better",
        ),
        Claim(
            "G4",
            "normalising and scaling activations matters",
            source=_TABLE,
            paper=_of_table("WA, rand", "WA, copy+rand", "WA, scaled"),
            decide=count(
                [_worse("WA, rand", "WA, scaled"), _worse("WA, copy+rand", "WA, scaled")],
                at_least=2,
            ),
            unit="of two starts without scaling, how many make more errors than WA scaled, all "
            "layers tuned",
            varies=_VARIES,
        ),
        Claim(
            "G5",
            "it matters more when a network grows in width than in depth",
            source=_TABLE,
            paper=_of_table("WA, rand", "WA, scaled", "DA, rand", "DA, scaled"),
            decide=contrast(
                {"WA, rand": 1.0, "WA, scaled": -1.0, "DA, rand": -1.0, "DA, scaled": 1.0},
                "errors",
                tuned="All",
            ),
            unit="points of error, all layers tuned: what scaling saves with WA, minus what it "
            "saves with DA",
            varies=_VARIES,
        ),
        Claim(
            "G6",
            "without it, WA is marginally better or worse than fine-tuning",
            source=_TABLE,
            paper=_of_table("fine-tuning", "WA, rand", "WA, copy+rand"),
            decide=count(
                [
                    equivalent(arm, "fine-tuning", "errors", margin=1.0, tuned="All")
                    for arm in ("WA, rand", "WA, copy+rand")
                ],
                at_least=2,
            ),
            unit="of two starts without scaling, how many are within one point of fine-tuning, all "
            "layers tuned",
            varies=_VARIES,
        ),
        Claim(
            "G7",
            "scaling lets new and old units learn at the same pace",
            source=_TABLE,
            decide=greater("WA, rand", "WA, scaled", "distance of old and new units", when="end"),
            unit="points of error that old units alone and new units alone lie apart: without "
            "scaling minus with it",
            varies=_VARIES,
        ),
        Claim(
            "G8",
            "only fully connected layers were grown, and no residual network",
            source="lecture, fine-tuning, slide on growing, drawbacks",
            decide=scope("so are ours: fc6 and fc7 of a small convolutional network"),
            unit="",
        ),
        Claim(
            "G9",
            "tuning all layers beats tuning the new ones",
            source=_TABLE,
            paper=f"{lecture.tally(_OF_ALL)} rows",
            decide=count(
                [contrast({arm: 1.0}, "gain of tuning all") for arm in lecture.SUN397["All"]],
                at_least=5,
            ),
            unit="of six rows of the lecture's table, in how many it makes fewer errors",
            varies=_VARIES,
        ),
    ],
)
