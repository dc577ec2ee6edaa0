"""What does learning a new task cost the old one? The lecture's table, in small.

A network learns an old task, then a new one in six ways. Four pairs of tasks, the first near (other
clothes), the last far (clothes, then digits). Every way gets the same number of updates and starts
from the same network with the same, already warmed-up head.

Li and Hoiem 2016, table 1(a), reads relative to LwF; so does the chapter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.claims import Claim, count, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Case, Experiment, Row, Scale, tuned
from tlcourse.lecture import LWF_BOTH, LWF_NEW, LWF_OLD, gaps, tally
from tlcourse.methods.lwf import WAYS, Heads, add_task, lfl_loss, lwf_loss
from tlcourse.models import ConvNet
from tlcourse.training import (
    Batch,
    Objective,
    cross_entropy,
    fit,
    joint,
    predict,
    record,
    seed_everything,
)

TASKS = {
    "clothes": ("fashion_mnist", range(10)),
    "digits": ("mnist", range(10)),
    "scanned digits": ("digits", range(10)),
    "clothes 0-4": ("fashion_mnist", range(5)),
    "clothes 5-9": ("fashion_mnist", range(5, 10)),
}
PAIRS = (
    ("clothes 0-4", "clothes 5-9"),
    ("clothes", "scanned digits"),
    ("digits", "clothes"),
    ("clothes", "digits"),
)
NAMES = [f"{old} → {new}" for old, new in PAIRS]
NEAR, FAR = NAMES[0], NAMES[-1]
# For each way four settings, learning rate and weight of the old task; the best mean of both tasks
# on validation images is used. Where to look was found in a trial with a seed of its own.
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    "LwF": {f"lr {lr}, weight {w}": (lr, w) for lr in (1e-3, 3e-3) for w in (3.0, 10.0)},
    "LFL": {f"lr {lr}, weight {w}": (lr, w) for lr in (1e-3, 3e-3) for w in (0.03, 0.1)},
    "fine-tuning": {f"lr {lr}": (lr, 0.0) for lr in (1e-4, 3e-4, 1e-3, 3e-3)},
    "fine-tuning FC": {f"lr {lr}": (lr, 0.0) for lr in (1e-4, 3e-4, 1e-3, 3e-3)},
    "feature extraction": {f"lr {lr}": (lr, 0.0) for lr in (1e-3, 3e-3, 1e-2, 3e-2)},
    "joint training": {f"lr {lr}": (lr, 0.0) for lr in (1e-3, 3e-3, 1e-2, 3e-2)},
}
COLD = ("LwF", "fine-tuning")  # ways that are also tried without warm-up, with the same settings


@dataclass(frozen=True, kw_only=True)
class Forgetting(Scale):
    """Images and updates of the old task and of the new one."""

    old_images: int = 20_000
    new_images: int = 5_000
    test_images: int = 5_000
    old_steps: int = 1_200
    steps: int = 400


class Task(NamedTuple):
    """A task's images."""

    train: Images
    validation: Images
    test: Images


class Pair(NamedTuple):
    """An old task, a new one, and the network that has learnt the old one."""

    name: str
    old: Task
    new: Task
    network: Heads


def run(scale: Forgetting, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on the old, on the new task and their mean, for every pair and way.

    Then the mean over all pairs.
    """
    rows = []
    for pair in pairs(scale, seed, device):
        before = 100 * accuracy_of(pair.network, "old", pair.old.test)
        rows.append(Row("before", "accuracy", before, {"pair": pair.name, "task": "old"}))
        for case in cases(scale, pair, seed):
            net = case.trained(scale)
            old, new = (100 * accuracy_of(net, t, getattr(pair, t).test) for t in ("old", "new"))
            for task, value in {"old": old, "new": new, "both": (old + new) / 2}.items():
                rows.append(Row(case.arm, "accuracy", value, {**case.at, "task": task}))
    yield from rows
    yield from _over_all_pairs(rows)
    kept = {(row.at["pair"], row.arm): row.value for row in rows if row.at["task"] == "old"}
    for arm, name in {"near": NEAR, "far": FAR}.items():
        behind = kept[name, "joint training"] - kept[name, "LwF"]
        yield Row(arm, "points behind joint training", behind)


def tune(scale: Forgetting, seed: int, device: torch.device) -> Iterator[Row]:
    """Every pair, way and setting: validation errors in percent, mean of both tasks."""
    for pair in pairs(scale, seed, device):
        yield from tuned(cases(scale, pair, seed), partial(_wrong, pair))


def _wrong(pair: Pair, net: Heads) -> float:
    old, new = (accuracy_of(net, t, getattr(pair, t).validation) for t in ("old", "new"))
    return 100 * (1 - (old + new) / 2)


def cases(scale: Forgetting, pair: Pair, seed: int) -> Iterator[Case]:
    """Every way to learn a pair's new task; as controls two of them without warm-up."""

    def learnt(way: str, setting: tuple[float, float], warm_up: bool = True) -> Heads:
        lr, weight = setting
        how: dict[str, Any] = {"lr": lr, "weight": weight, "warm_up": warm_up, "seed": seed}
        old = {"old": pair.old.train}
        return learn(pair.network, way, "new", pair.new.train, old, steps=scale.steps, **how)

    at = {"pair": pair.name}
    for way in WAYS:
        yield Case(way, SETTINGS[way], partial(learnt, way), at)
    for way in COLD:
        yield Case(f"{way}, cold", SETTINGS[way], partial(learnt, way, warm_up=False), at, like=way)


def pairs(scale: Forgetting, seed: int, device: torch.device) -> Iterator[Pair]:
    """Each pair of tasks, with the network that has learnt the old one."""
    learnt: dict[str, tuple[Task, Heads]] = {}
    for old, new in PAIRS:
        if old not in learnt:
            task = load_task(old, scale.old_images, scale.test_images, seed, device)
            learnt[old] = task, first_task("old", task.train, scale.old_steps, seed)
        second = load_task(new, scale.new_images, scale.test_images, seed, device)
        yield Pair(f"{old} → {new}", learnt[old][0], second, learnt[old][1])


def load_task(name: str, images: int, test_images: int, seed: int, device: torch.device) -> Task:
    """At most so many images to train and to test, and up to 2,000 for validation.

    Labels are counted from 0.
    """
    source, classes = TASKS[name]
    everything, test = (
        load(source, part).only(classes, relabel=True).to(device) for part in ("train", "test")
    )
    images = min(images, len(everything) - 200)
    train, validation = everything.split(images, min(2_000, len(everything) - images), seed=seed)
    return Task(train, validation, test.take(slice(0, test_images)))


def first_task(task: str, train: Images, steps: int, seed: int) -> Heads:
    """A small convolutional network that has learnt one task."""
    seed_everything(seed)
    body = ConvNet(len(train.classes), width=12, units=96)
    head = body.get_submodule("head")
    del body.head
    network = Heads(body, **{task: head}).to(train.pixels.device)
    fit(network, train, _labels_of(task), steps=steps, lr=3e-3, seed=seed, progress=False)
    return network


def _labels_of(task: str) -> Objective:
    return lambda net, batch: F.cross_entropy(net(batch.x)[task], batch.y)


def learn(
    network: Heads,
    way: str,
    task: str,
    new: Images,
    old: Mapping[str, Images],
    *,
    lr: float,
    steps: int,
    seed: int,
    weight: float = 0.0,
    warm_up: bool = True,
    watch: Callable[[Heads], Mapping[str, float]] | None = None,
) -> Heads:
    """A copy of the network that has learnt a new task in one of `WAYS`.

    Only joint training looks at the old tasks' images. watch(network) is called after every epoch.
    The order matters: what LwF holds on to is recorded before anything moves, then the new head is
    warmed up alone, then everything is trained that this way trains.
    """
    network = deepcopy(network)
    answers = {name: predict(network, new, name) for name in network.heads}
    features = record(network.trunk, new)
    seed_everything(seed)
    head = add_task(network, task, len(new.classes), way).heads[task]
    looking = None if watch is None else (lambda _, __: watch(network))
    how: dict[str, Any] = {"steps": steps, "seed": seed, "progress": False}
    if WAYS[way].trunk == "nothing":  # features never change, so the recorded ones will do
        fit(head, (features, new.labels), cross_entropy, lr=lr, on_epoch=looking, **how)
        return network
    if warm_up:
        fit(head, (features, new.labels), cross_entropy, lr=1e-2, **how)
    data = joint(**{task: new, **old}) if way == "joint training" else new
    wanted = objective(way, task, answers, features, weight)
    fit(network, data, wanted, lr=lr, on_epoch=looking, **how)
    return network


def objective(
    way: str, task: str, answers: Mapping[str, Tensor], features: Tensor, weight: float
) -> Objective:
    """What a way minimises while it learns a task.

    answers: the recorded logits (N, K) by old task; features: (N, D) of the trunk.
    """

    def lwf(net: Any, batch: Batch) -> Tensor:
        out = net(batch.x)
        said = [v[batch.index] for v in answers.values()]
        return lwf_loss(out[task], batch.y, [out[t] for t in answers], said, weight=weight)

    def lfl(net: Any, batch: Batch) -> Tensor:
        now = net.trunk(batch.x)
        return lfl_loss(net.heads[task](now), batch.y, now, features[batch.index], weight=weight)

    def all_tasks(net: Any, batches: dict[str, Batch]) -> Tensor:
        losses = [F.cross_entropy(net(b.x)[name], b.y) for name, b in batches.items()]
        return torch.stack(losses).sum()

    own: dict[str, Objective] = {"LwF": lwf, "LFL": lfl, "joint training": all_tasks}
    return own.get(way, _labels_of(task))


def accuracy_of(network: Heads, task: str, images: Images) -> float:
    """Share of right classes, in [0, 1], by the task's own head."""
    return (predict(network, images, task).argmax(1) == images.labels).float().mean().item()


def _over_all_pairs(rows: list[Row]) -> Iterator[Row]:
    table = pd.DataFrame([row.as_dict() for row in rows])
    means = table.groupby(["arm", "task"], sort=False, as_index=False)["value"].mean()
    for arm, task, value in means.itertuples(index=False):
        yield Row(arm, "accuracy", value, {"pair": "all", "task": task})


LECTURE = Forgetting(seeds=5, tuning_seeds=1, minutes=110)
OTHERS = ("LFL", "fine-tuning", "fine-tuning FC", "feature extraction")  # no joint training
FREE, FIXED, ORDER = ["fine-tuning"], ["feature extraction"], ["old", "new"]
_GENERALLY = "LwF generally performs better than other baselines"
_OF_16 = "in how many of 16 comparisons: four other ways (without joint training), four pairs"
_OF_8 = "in how many of 8 comparisons: four pairs, both tasks"
_LECTURE = {"old": LWF_OLD, "new": LWF_NEW, "both": LWF_BOTH}
_BEHIND = gaps(LWF_OLD, "joint training", "LwF")  # the last is MNIST
_claim = partial(
    Claim,
    source="lecture, distillation from old tasks, table (a); Li and Hoiem 2016, table 1(a)",
    unit="in how many of four pairs",
    varies="each seed draws its images and trains its own network on the old task",
)


def _paper(way: str, others: Sequence[str], tasks: Sequence[str]) -> str:
    """In how many comparisons of the lecture's table a way is more accurate than each other."""
    return "; ".join(f"{task} {tally(gaps(_LECTURE[task], way, *others))}" for task in tasks)


def _beats(
    id: str,
    sentence: str,
    way: str,
    others: Sequence[str],
    tasks: Sequence[str],
    at_least: int,
    **more: Any,
) -> Claim:
    """In at least so many comparisons: with each other way, in each pair, on each task."""
    every = product(others, NAMES, tasks)
    wins = [greater(way, other, "accuracy", pair=pair, task=task) for other, pair, task in every]
    decide = count(wins, at_least=at_least)
    return _claim(id, sentence, decide=decide, **{"paper": _paper(way, others, tasks), **more})


EXPERIMENT = Experiment(
    name="forgetting",
    question="What does learning a new task cost the old one?",
    chapter="continual_learning",
    run=run,
    tune=tune,
    arms=("before", *WAYS, *(f"{way}, cold" for way in COLD)),
    scales={"lecture": LECTURE},
    claims=[
        _claim(
            "C1",
            "fine-tuning on a new task forgets the old one",
            source="lecture, progressive networks, first slide",
            paper="“a significant performance drop in previous tasks”",
            decide=greater("before", "fine-tuning", "accuracy", pair="all", task="old"),
            unit="points of accuracy on the old task, before minus after, mean of four pairs",
        ),
        _beats("L3", "LwF beats feature extraction on the new task", "LwF", FIXED, ["new"], 4),
        _beats("L4", "LwF sometimes beats fine-tuning on the new task", "LwF", FREE, ["new"], 1),
        *(
            _beats(id, f"{_GENERALLY}: {where}", "LwF", OTHERS, [task], 9, unit=_OF_16)
            for id, task, where in (
                ("L5", "both", "mean of both tasks"),
                ("L5o", "old", "on the old task"),
                ("L5n", "new", "on the new task"),
            )
        ),
        _beats(
            "L6",
            "joint training is the upper bound",
            "joint training",
            ("LwF", *OTHERS),
            ORDER,
            at_least=40,
            paper=f"against LwF {_paper('joint training', ['LwF'], ORDER)}; feature extraction "
            f"against it {_paper('feature extraction', ['joint training'], ['old'])}",
            unit="in how many of 40 comparisons: five other ways, four pairs, both tasks",
        ),
        _claim(
            "L7",
            "fine-tuning only the fully connected layers keeps the old task but costs the new",
            paper=f"better {_paper('fine-tuning FC', FREE, ['old'])}, worse "
            f"{_paper('fine-tuning', ['fine-tuning FC'], ['new'])}",
            decide=count(
                [
                    greater("fine-tuning FC", "fine-tuning", "accuracy", pair="all", task="old"),
                    greater("fine-tuning", "fine-tuning FC", "accuracy", pair="all", task="new"),
                ],
                at_least=2,
            ),
            unit="halves of the sentence, of two, mean of four pairs",
        ),
        _beats("L8", "LwF keeps more of the old task than fine-tuning", "LwF", FREE, ["old"], 4),
        _beats("L9", "LwF beats less-forgetting learning", "LwF", ["LFL"], ORDER, 5, unit=_OF_8),
        _claim(
            "L10",
            "a very different new task costs LwF more of the old one, in one comparison",
            paper=f"behind joint training by {_BEHIND[-1]} points for MNIST, by "
            f"{min(_BEHIND[:-1])} to {max(_BEHIND[:-1])} elsewhere",
            decide=greater("far", "near", "points behind joint training"),
            unit="points behind joint training on the old task, clothes → digits minus clothes → "
            "other clothes",
        ),
    ],
)
