r"""Three tasks in one small network: how are their losses to be weighed, and does sharing pay?

The lecture's table of CityScapes, in small. Scenes of real pieces on a floor are labelled with the
class of each pixel, the vector to its instance's centre, and inverse depth. Losses are the paper's:
a cross-entropy and two mean absolute errors, of vectors over instances alone. "Unweighted" adds
them as they come, in nats, pixels and inverse depth; that is one choice of units, so another arm
has them over the loss of the best constant answer.

The grid weighs these standardised losses by powers of two on a triangle,
:math:`w = 2^{(i, j, k)}, i + j + k = 6`: as Adam does not mind the size of a loss, only ratios
count, and a step doubles one weight and halves another. In its middle all are alike. Its
best, like every rate, has the best mean log ratio to the single tasks on validation scenes.

All arms of a seed have the same network, initial weights, batches and number of updates. There are
as many scenes as pictures that the paper trains on.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations
from itertools import count as count_from
from math import log
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Decision, at_least, count, equivalent, greater
from tlcourse.experiments.base import Case, Experiment, Row, Scale
from tlcourse.methods.fine_tuning import parameter_groups
from tlcourse.methods.uncertainty import Tasks, UncertaintyWeighting
from tlcourse.scenes import Scenes, pieces, scenes
from tlcourse.training import Batch, fit, record, seed_everything

KINDS: Tasks = {"segmentation": "classification", "instance": "regression", "depth": "regression"}
TASKS, SIGNS = tuple(KINDS), {"segmentation": 1, "instance": -1, "depth": -1}  # IoU is to be high
MAPS = {"segmentation": 8, "instance": 2, "depth": 1}
ALONE, PLAIN, THREE = "each alone", "unweighted", "three tasks"
STANDARD, BEST = "unweighted, standardised", "best weights of a grid"
GRIDDED = "of the grid"  # every weighting's test errors: shown, and never chosen by
PAIRS = {" + ".join(pair): pair for pair in combinations(TASKS, 2)}
HUNDRED = {arm: f"{arm}, pixels in hundredths" for arm in (PLAIN, THREE)}
STARTS = {f"{THREE}, s from {s:+g}": float(s) for s in (-3, 3)}
SLOW, LAPLACE = f"{THREE}, s ten times slower", f"{THREE}, Laplace"
CONSTANT = "best constant answer"
CONTROLS = (*HUNDRED.values(), *STARTS, SLOW, LAPLACE)
S_RATE = 0.1  # of s; a tenth of it is an arm of its own

RATES = {f"lr {lr:g}": {"lr": lr} for lr in (1.6e-2, 3.2e-2, 6.4e-2)}
HIGHER = ("lr 0.032", "lr 0.064")  # in trials no weighting of three tasks was best at the lowest
GRID = {
    f"{i} {j} {k}, {name}": rate | dict(zip(TASKS, (2.0**i, 2.0**j, 2.0**k)))
    for i in range(7)
    for j in range(7 - i)
    for k in [6 - i - j]
    for name in HIGHER
    for rate in [RATES[name]]
}


@dataclass(frozen=True, kw_only=True)
class Uncertainty(Scale):
    """Arms, scenes to learn from and to judge by, and how long all learn."""

    arms: tuple[str, ...]
    scenes: int = 2_975
    judged: int = 1_000
    width: int = 16
    steps: int = 1_000
    batch_size: int = 16


class SceneNet(nn.Module):
    """From (N, 1, H, W) down to an eighth and up to a half: by task, maps (N, …, H/2, W/2)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        a, b, c = width, 2 * width, 4 * width
        quarter, eighth = (nn.Sequential(_conv(i, o, 2), _conv(o, o)) for i, o in ((a, b), (b, c)))
        self.down = nn.ModuleList([_conv(1, a, 2), quarter, eighth])
        self.side = nn.ModuleList([nn.Conv2d(c, b, 1), nn.Conv2d(b, a, 1)])
        self.up = nn.ModuleList([_conv(b, b), _conv(a, a)])
        self.heads = nn.ModuleDict({task: nn.Conv2d(a, maps, 1) for task, maps in MAPS.items()})

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """What the heads say of pixels in [0, 1]."""
        half = self.down[0](x)
        quarter = self.down[1](half)
        above = self.side[0](self.down[2](quarter))
        quarter = self.up[0](quarter + F.interpolate(above, scale_factor=2))
        half = self.up[1](half + F.interpolate(self.side[1](quarter), scale_factor=2))
        return {task: head(half) for task, head in self.heads.items()}


def _conv(maps_in: int, maps_out: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(maps_in, maps_out, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(maps_out), nn.ReLU())


@dataclass(frozen=True)
class Way:
    """How tasks are weighed: what each loss is multiplied by, and whether weights are learnt."""

    factors: Mapping[str, float]
    learnt: bool = False
    initial: float = 0.0
    rate: float = S_RATE
    kinds: Tasks = field(default_factory=lambda: KINDS)


class Trained(NamedTuple):
    """A network, and by step what its losses were multiplied by, where that was learnt."""

    network: nn.Module
    weights: dict[int, dict[str, float]]


class Weighed(nn.Module):
    """The objective of a way; tasks that it leaves out have no loss."""

    def __init__(self, way: Way) -> None:
        super().__init__()
        self.way, kinds = way, {task: way.kinds[task] for task in way.factors}
        begin = dict.fromkeys(kinds, way.initial)
        self.weighting = UncertaintyWeighting(kinds, initial=begin) if way.learnt else None

    def forward(self, network: nn.Module, batch: Batch) -> Tensor:
        """The loss of a batch."""
        found = losses(network(batch.x), batch.y)
        scaled = {task: times * found[task] for task, times in self.way.factors.items()}
        return self.weighting(scaled) if self.weighting else torch.stack([*scaled.values()]).sum()

    def weights(self) -> dict[str, float]:
        """What each loss is multiplied by now."""
        own = self.weighting.weights() if self.weighting else {}
        return {task: times * float(own.get(task, 1.0)) for task, times in self.way.factors.items()}


def losses(said: Mapping[str, Tensor], true: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """By task: nats a pixel, pixels a coordinate of an instance's pixel, inverse depth a pixel."""
    inside = true["segmentation"] > 0
    apart = (said["instance"] - true["instance"]).abs().mean(1)
    return {
        "segmentation": F.cross_entropy(said["segmentation"], true["segmentation"]),
        "instance": (apart * inside).sum() / inside.sum().clamp(min=1),
        "depth": (said["depth"][:, 0] - true["depth"]).abs().mean(),
    }


def constant(scenes: Scenes) -> dict[str, float]:
    """Each loss of the best constant answer: shares of classes, and medians."""
    shares = scenes.classes.flatten().bincount() / scenes.classes.numel()
    vectors, depths = scenes.vectors.movedim(1, -1)[scenes.classes > 0], scenes.depths
    found = (
        torch.special.entr(shares).sum(),
        (vectors - vectors.median(0).values).abs().mean(),
        (depths - depths.median()).abs().mean(),
    )
    return dict(zip(TASKS, (value.item() for value in found)))


def errors(network: nn.Module, scenes: Scenes) -> dict[str, float]:
    """Mean IoU in %, pixels by which a centre is missed, and inverse depth in hundredths."""
    heads = {task: f"heads.{task}" for task in TASKS}
    said = record(network, (scenes.pixels, None), of=[*heads.values()])
    logits, vectors, depths = (said[head].cpu() for head in heads.values())
    missed = (vectors - scenes.vectors).norm(dim=1)[scenes.classes > 0]
    found = (
        100 * mean_iou(logits.argmax(1), scenes.classes, MAPS[TASKS[0]]),
        missed.mean().item(),
        100 * (depths[:, 0] - scenes.depths).abs().mean().item(),
    )
    return dict(zip(TASKS, found))


def mean_iou(called: Tensor, true: Tensor, K: int) -> float:
    """Intersection over union, in [0, 1], mean over those of K classes that are there or called."""
    both = torch.bincount(K * true.flatten() + called.flatten(), minlength=K * K).view(K, K)
    union = both.sum(0) + both.sum(1) - both.diagonal()
    return (both.diagonal() / union)[union > 0].double().mean().item()


def score(found: Mapping[str, float]) -> float:
    """The mean over tasks of the log of what is to be high, or of one over what is to be low."""
    return sum(SIGNS[task] * log(value) for task, value in found.items()) / len(found)


def drawn(split: str, n: int, seed: int) -> Scenes:
    """Scenes of a split's pieces; they are put elsewhere in each split, and for each seed."""
    place = {"train": 0, "validation": 2**30, "test": 2**31}[split]
    return scenes(pieces(split), n, place + seed)


def ways(units: Mapping[str, float]) -> dict[str, Way]:
    """Every arm but the single tasks. units: each loss of the best constant answer."""
    every, standard = dict.fromkeys(TASKS, 1.0), {task: 1 / unit for task, unit in units.items()}
    hundredths = every | {"instance": 100.0}
    laplace: Tasks = {**KINDS, "instance": "laplace", "depth": "laplace"}
    return {
        PLAIN: Way(every),
        STANDARD: Way(standard),
        BEST: Way(standard),
        **{arm: Way(dict.fromkeys(pair, 1.0), learnt=True) for arm, pair in PAIRS.items()},
        THREE: Way(every, learnt=True),
        **{HUNDRED[arm]: Way(hundredths, learnt=arm == THREE) for arm in HUNDRED},
        **{arm: Way(every, learnt=True, initial=s) for arm, s in STARTS.items()},
        SLOW: Way(every, learnt=True, rate=S_RATE / 10),
        LAPLACE: Way(every, learnt=True, kinds=laplace),
    }


def cases(
    scale: Uncertainty, train: Scenes, seed: int, device: torch.device
) -> Iterator[tuple[Case, tuple[str, ...]]]:
    """What is trained on these scenes, the single tasks first, and for which tasks."""
    go = partial(learn, scale, train, seed, device)
    for task in TASKS if ALONE in scale.arms else ():
        yield Case(ALONE, RATES, partial(go, Way({task: 1.0})), {"task": task}), (task,)
    for arm, way in ways(constant(train)).items():
        if arm in scale.arms:
            like = "" if arm not in CONTROLS else PLAIN if arm == HUNDRED[PLAIN] else THREE
            settings = GRID if arm == BEST else RATES
            yield Case(arm, settings, partial(go, way), like=like), (*way.factors,)


def learn(
    scale: Uncertainty,
    train: Scenes,
    seed: int,
    device: torch.device,
    way: Way,
    setting: Mapping[str, float],
) -> Trained:
    """A network of this seed after all its updates. setting: the rate, and what the grid weighs."""
    seed_everything(seed)
    network, lr = SceneNet(scale.width).to(device), setting["lr"]
    factors = {task: times * setting.get(task, 1.0) for task, times in way.factors.items()}
    objective, seen = Weighed(replace(way, factors=factors)).to(device), dict[int, Any]()
    groups, steps = parameter_groups(network, lr), count_from(1)
    if way.learnt:
        groups += parameter_groups(objective, way.rate)

    def note(_: nn.Module) -> None:
        step = next(steps)
        if step in (1, scale.steps) or step % max(1, scale.steps // 25) == 0:
            seen[step] = objective.weights()

    data = train.pixels, dict(zip(TASKS, train.targets.values()))
    how: dict[str, Any] = {"steps": scale.steps, "batch_size": scale.batch_size, "seed": seed}
    fit(network, data, objective, lr=lr, groups=groups, after_step=note, progress=False, **how)
    return Trained(network, seen if way.learnt else {scale.steps: objective.weights()})


def run(scale: Uncertainty, seed: int, device: torch.device) -> Iterator[Row]:
    """Each task's error by arm; for three tasks the mean log ratio to alone in %; and weights.

    A weight is what a task's loss in its own unit was multiplied by, after so many steps; times
    the loss of the best constant answer it is what the standardised loss was.
    """
    train, test = drawn("train", scale.scenes, seed), drawn("test", scale.judged, 0)
    for task, unit in constant(train).items():
        yield Row(CONSTANT, "loss", unit, {"task": task})
    alone = dict[str, float]()
    for case, tasks in cases(scale, train, seed, device):
        network, weights = case.trained(scale)
        every = errors(network, test)
        found = {task: every[task] for task in tasks}
        yield from (Row(case.arm, task, value) for task, value in found.items())
        if case.arm == ALONE:
            alone |= found
            continue
        if len(tasks) == len(alone):
            yield Row(case.arm, "gain", 100 * (score(found) - score(alone)))
        for step, now in weights.items():
            for task, weight in now.items():
                yield Row(case.arm, "weight", weight, {"task": task, "step": step})


def tune(scale: Uncertainty, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting by validation scenes; the grid's errors on test scenes only to show."""
    train = drawn("train", scale.scenes, seed)
    judged = {split: drawn(split, scale.judged, 0) for split in ("validation", "test")}
    for case, tasks in cases(scale, train, seed, device):
        for name, setting in case.settings.items() if not case.like else ():
            network, at = case.train(setting).network, {**case.at, "setting": name}
            found = errors(network, judged["validation"])
            cost = -score({task: found[task] for task in tasks})
            yield Row(case.arm, "validation errors", cost, at)
            if case.arm == BEST:
                shown = errors(network, judged["test"]).items()
                yield from (Row(GRIDDED, task, value, at) for task, value in shown)


ARMS = (ALONE, PLAIN, STANDARD, BEST, *PAIRS, THREE, *CONTROLS)
LECTURE = Uncertainty(arms=ARMS, seeds=5, tuning_seeds=2, minutes=55)
LIVE = Uncertainty(
    arms=(PLAIN, THREE),
    steps=300,
    scenes=1_000,
    judged=500,
    seeds=20,
    minutes=4,
    settings={PLAIN: RATES["lr 0.032"], THREE: RATES["lr 0.032"]},
)
SEARCH = f"{len(GRID) // len(HIGHER)} weightings, {len(HIGHER)} rates, {LECTURE.tuning_seeds} seeds"
_SLIDE = "lecture, uncertainty weighting, table of three tasks; Kendall et al. 2018"
_RATIO = "100 × the mean log ratio of three tasks, nearly %; above 0 is better"
_EITHER = [(pair, task) for pair, tasks in PAIRS.items() for task in tasks]


def _better(one: str, other: str, task: str) -> Decision:
    high, low = (one, other)[:: SIGNS[task]]
    return greater(high, low, task)


def _everywhere(one: str, other: str) -> Decision:
    return count([_better(one, other, task) for task in TASKS], at_least=len(TASKS))


def _said(one: str, *others: str) -> str:
    """In how many of the lecture's comparisons the one is better."""
    gaps = [
        SIGNS[task] * gap
        for task in TASKS
        for gap in lecture.gaps({task: lecture.TASK_WEIGHTS[task]}, one, *others)
    ]
    return lecture.tally(gaps)


def _both(one: str, other: str, *tasks: str) -> str:
    table = lecture.TASK_WEIGHTS
    return ", ".join(f"{task} {table[task][one]:g} / {table[task][other]:g}" for task in tasks)


_claim = partial(
    Claim,
    source=_SLIDE,
    varies="each seed draws its scenes and initial weights; settings are chosen on other seeds",
    scales=("lecture",),
)

EXPERIMENT = Experiment(
    name="uncertainty",
    question="Who weighs the losses of three tasks best, and does it pay to learn them together?",
    chapter="multi_task_learning",
    run=run,
    tune=tune,
    arms=(*ARMS, GRIDDED, CONSTANT),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "M1",
            "multi-task learning improves all tasks at once",
            source="lecture, multi-task learning, first slide",
            paper=_said(THREE, ALONE),
            decide=_everywhere(THREE, ALONE),
            unit="of three tasks, how many gain from the other two, weighed by uncertainty",
        ),
        _claim(
            "U4",
            "uncertainty weighting beats the unweighted sum",
            paper=_both(THREE, PLAIN, *TASKS),
            decide=greater(THREE, PLAIN, "gain"),
            unit=f"{_RATIO}; losses as they come, in nats, pixels and inverse depth",
        ),
        _claim(
            "U4s",
            "it does so in standardised units, too",
            source="ours",
            decide=greater(THREE, STANDARD, "gain"),
            unit=f"{_RATIO}; losses over those of the best constant answer",
        ),
        _claim(
            "U4t",
            "it beats the unweighted sum on every task",
            paper=_said(THREE, PLAIN),
            decide=_everywhere(THREE, PLAIN),
            unit="of three tasks, on how many it is better; losses as they come",
        ),
        _claim(
            "U4u",
            "it does not depend on units, nor on where s begins",
            source="ours; where s begins: Kendall et al. 2018",
            decide=count(
                [equivalent(a, THREE, "gain", margin=5) for a in (HUNDRED[THREE], *STARTS)],
                at_least=3,
            ),
            unit="of three changes (pixels in hundredths; s from −3; s from 3), how many change "
            "errors by less than 5 %, as the geometric mean of three tasks",
        ),
        _claim(
            "U5",
            "uncertainty weighting reaches or beats the best weights of a grid",
            paper=_said(THREE, BEST),
            decide=at_least(THREE, BEST, "gain", margin=5),
            unit=f"{_RATIO}; the grid: {SEARCH}",
        ),
        _claim(
            "U6",
            "three tasks together beat each alone",
            paper=_said(THREE, ALONE),
            decide=_everywhere(THREE, ALONE),
            unit="of three tasks, how many gain from the other two, weighed by uncertainty",
        ),
        _claim(
            "U7",
            "the unweighted sum hurts segmentation",
            paper=_both(ALONE, PLAIN, "segmentation"),
            decide=_better(ALONE, PLAIN, "segmentation"),
            unit="points of mean IoU lost by the sum of losses as they come",
        ),
        _claim(
            "U8",
            "three tasks beat pairs",
            paper=_said(THREE, *PAIRS),
            decide=count([_better(THREE, *each) for each in _EITHER], at_least=5),
            unit="of six comparisons (three pairs, the two tasks of each), in how many the third "
            "task helps",
        ),
    ],
)
