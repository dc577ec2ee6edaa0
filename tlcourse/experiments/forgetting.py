"""What does learning a new task cost the old one? The lecture's table of learning without
forgetting, in small.

A network learns an old task, then a new one in six ways. Four pairs of tasks, from near (other
clothes) to far (clothes, then digits). Every way gets the same number of updates and starts from
the same network with the same, already warmed-up head.

Li and Hoiem 2016, table 1(a), reads relative to LwF; so does the chapter.
"""

from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from typing import Any, NamedTuple

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.claims import Claim, count, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Experiment, Row, Scale
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
NEAR, FAR = " → ".join(PAIRS[0]), " → ".join(PAIRS[-1])
# For each way four settings, learning rate and weight of the old task; the best mean of both tasks
# on validation images is used.
# Where to look was found in a trial with a seed of its own.
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    "LwF": {f"lr {lr}, weight {w}": (lr, w) for lr in (1e-3, 3e-3) for w in (3.0, 10.0)},
    "LFL": {f"lr {lr}, weight {w}": (lr, w) for lr in (1e-3, 3e-3) for w in (0.03, 0.1)},
    "fine-tuning": {f"lr {lr}": (lr, 0.0) for lr in (1e-4, 3e-4, 1e-3, 3e-3)},
    "fine-tuning FC": {f"lr {lr}": (lr, 0.0) for lr in (1e-4, 3e-4, 1e-3, 3e-3)},
    "feature extraction": {f"lr {lr}": (lr, 0.0) for lr in (1e-3, 3e-3, 1e-2, 3e-2)},
    "joint training": {f"lr {lr}": (lr, 0.0) for lr in (1e-3, 3e-3, 1e-2, 3e-2)},
}
COLD = ("LwF", "fine-tuning")  # ways that are also tried without warm-up, with the same settings


class Task(NamedTuple):
    """A task's images."""

    train: Images
    validation: Images
    test: Images


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on the old, on the new task and their mean, for every pair and way; then
    the mean over all pairs.
    """
    rows = []
    for pair, old, new, network in pairs(scale, seed, device):
        rows.append(
            Row(
                "before",
                "accuracy",
                100 * accuracy_of(network, "old", old.test),
                {"pair": pair, "task": "old"},
            )
        )
        for way, warm_up in [*((way, True) for way in WAYS), *((way, False) for way in COLD)]:
            lr, weight = SETTINGS[way][scale.chosen(arm=way, pair=pair)]
            net = learn(
                network,
                way,
                "new",
                new.train,
                {"old": old.train},
                lr=lr,
                weight=weight,
                steps=scale.steps,
                seed=seed,
                warm_up=warm_up,
            )
            found = {
                "old": 100 * accuracy_of(net, "old", old.test),
                "new": 100 * accuracy_of(net, "new", new.test),
            }
            found["both"] = (found["old"] + found["new"]) / 2
            arm = way if warm_up else f"{way}, cold"
            rows += [
                Row(arm, "accuracy", value, {"pair": pair, "task": task})
                for task, value in found.items()
            ]
    yield from rows
    yield from _over_all_pairs(rows)
    behind = {(r.at["pair"], r.arm): r.value for r in rows if r.at["task"] == "old"}
    for arm, pair in {"near": NEAR, "far": FAR}.items():
        yield Row(
            arm,
            "points behind joint training",
            behind[pair, "joint training"] - behind[pair, "LwF"],
        )


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every pair, way and setting: validation errors in percent, mean of both tasks."""
    for pair, old, new, network in pairs(scale, seed, device):
        for way, settings in SETTINGS.items():
            for name, (lr, weight) in settings.items():
                net = learn(
                    network,
                    way,
                    "new",
                    new.train,
                    {"old": old.train},
                    lr=lr,
                    weight=weight,
                    steps=scale.steps,
                    seed=seed,
                )
                right = (
                    accuracy_of(net, "old", old.validation)
                    + accuracy_of(net, "new", new.validation)
                ) / 2
                yield Row(
                    way, "validation errors", 100 * (1 - right), {"pair": pair, "setting": name}
                )


def pairs(scale: Scale, seed: int, device: torch.device) -> Iterator[tuple[str, Task, Task, Heads]]:
    """Each pair's name, its tasks, and the network that has learnt the old one."""
    learnt: dict[str, tuple[Task, Heads]] = {}
    for old, new in PAIRS:
        if old not in learnt:
            task = load_task(old, scale.old_images, scale.test_images, seed, device)
            learnt[old] = task, first_task("old", task.train, scale.old_steps, seed)
        yield (
            f"{old} → {new}",
            learnt[old][0],
            load_task(new, scale.new_images, scale.test_images, seed, device),
            learnt[old][1],
        )


def load_task(name: str, images: int, test_images: int, seed: int, device: torch.device) -> Task:
    """At most so many images to train and to test, and up to 2,000 for validation, labels counted
    from 0.
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
    fit(
        network,
        train,
        lambda net, batch: F.cross_entropy(net(batch.x)[task], batch.y),
        steps=steps,
        lr=3e-3,
        seed=seed,
        progress=False,
    )
    return network


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
    """A copy of the network that has learnt a new task in one of `WAYS`. Only joint training looks
    at the old tasks' images.

    watch(network) is called after every epoch. The order matters: what LwF holds on to is recorded
    before anything moves, then the new head is warmed up alone, then everything is trained that
    this way trains.
    """
    network = deepcopy(network)
    answers = {name: predict(network, new, name) for name in network.heads}
    features = record(network.trunk, new)
    seed_everything(seed)
    head = add_task(network, task, len(new.classes), way).heads[task]
    looking = None if watch is None else (lambda _, __: watch(network))
    settings: dict[str, Any] = {
        "steps": steps,
        "seed": seed,
        "on_epoch": looking,
        "progress": False,
    }
    if (
        WAYS[way].trunk == "nothing"
    ):  # the features never change, so the head alone can be trained on what was recorded
        fit(head, (features, new.labels), cross_entropy, lr=lr, **settings)
        return network
    if warm_up:
        fit(
            head,
            (features, new.labels),
            cross_entropy,
            steps=steps,
            lr=1e-2,
            seed=seed,
            progress=False,
        )
    data = joint(**{task: new, **old}) if way == "joint training" else new
    fit(network, data, objective(way, task, answers, features, weight), lr=lr, **settings)
    return network


def objective(
    way: str, task: str, answers: Mapping[str, Tensor], features: Tensor, weight: float
) -> Objective:
    """What a way minimises while it learns a task. answers: the recorded logits (N, K) by old task;
    features: (N, D) of the trunk.
    """

    def lwf(net: Any, batch: Batch) -> Tensor:
        out = net(batch.x)
        return lwf_loss(
            out[task],
            batch.y,
            [out[t] for t in answers],
            [v[batch.index] for v in answers.values()],
            weight=weight,
        )

    def lfl(net: Any, batch: Batch) -> Tensor:
        now = net.trunk(batch.x)
        return lfl_loss(net.heads[task](now), batch.y, now, features[batch.index], weight=weight)

    def all_tasks(net: Any, batches: dict[str, Batch]) -> Tensor:
        return torch.stack(
            [F.cross_entropy(net(batch.x)[name], batch.y) for name, batch in batches.items()]
        ).sum()

    def new_task(net: Any, batch: Batch) -> Tensor:
        return F.cross_entropy(net(batch.x)[task], batch.y)

    own: dict[str, Objective] = {"LwF": lwf, "LFL": lfl, "joint training": all_tasks}
    return own.get(way, new_task)


def accuracy_of(network: Heads, task: str, images: Images) -> float:
    """Share of right classes, in [0, 1], by the task's own head."""
    return (predict(network, images, task).argmax(1) == images.labels).float().mean().item()


def _over_all_pairs(rows: list[Row]) -> Iterator[Row]:
    table = pd.DataFrame([row.as_dict() for row in rows])
    means = table.groupby(["arm", "task"], sort=False, as_index=False)["value"].mean()
    yield from (
        Row(row["arm"], "accuracy", row["value"], {"pair": "all", "task": row["task"]})
        for _, row in means.iterrows()
    )


LECTURE = Scale(
    seeds=5,
    tuning_seeds=1,
    minutes=110,
    old_images=20_000,
    new_images=5_000,
    test_images=5_000,
    old_steps=1_200,
    steps=400,
)
_SOURCE = "lecture, distillation from old tasks, table (a); Li and Hoiem 2016, table 1(a)"
_VARIES = "each seed draws its images and trains its own network on the old task"

forgetting = Experiment(
    name="forgetting",
    question="What does learning a new task cost the old one?",
    chapter="continual_learning",
    run=run,
    tune=tune,
    arms=("before", *WAYS, *(f"{way}, cold" for way in COLD)),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "C1",
            "fine-tuning on a new task forgets the old one",
            source="lecture, progressive networks, first slide",
            decide=greater("before", "fine-tuning", "accuracy", pair="all", task="old"),
            unit="points of accuracy on the old task, before minus after, mean of four pairs",
            varies=_VARIES,
        ),
        Claim(
            "L3",
            "LwF beats feature extraction on the new task",
            source=_SOURCE,
            paper="7 of 7",
            decide=count(
                [
                    greater("LwF", "feature extraction", "accuracy", pair=f"{a} → {b}", task="new")
                    for a, b in PAIRS
                ],
                at_least=4,
            ),
            unit="in how many of four pairs",
            varies=_VARIES,
        ),
        Claim(
            "L4",
            "LwF sometimes beats fine-tuning on the new task",
            source=_SOURCE,
            paper="4 of 7",
            decide=count(
                [
                    greater("LwF", "fine-tuning", "accuracy", pair=f"{a} → {b}", task="new")
                    for a, b in PAIRS
                ],
                at_least=1,
            ),
            unit="in how many of four pairs",
            varies=_VARIES,
        ),
        *(
            Claim(
                id,
                f"LwF generally performs better than other baselines: {where}",
                source=_SOURCE,
                paper=paper,
                decide=count(
                    [
                        greater("LwF", other, "accuracy", pair=f"{a} → {b}", task=task)
                        for other in ("LFL", "fine-tuning", "fine-tuning FC", "feature extraction")
                        for a, b in PAIRS
                    ],
                    at_least=9,
                ),
                unit="in how many of 16 comparisons: four other ways (without joint training), four pairs",
                varies=_VARIES,
            )
            for id, task, where, paper in (
                ("L5", "both", "mean of both tasks", "25 of 28"),
                ("L5o", "old", "on the old task", "11 of 28, one tie"),
                ("L5n", "new", "on the new task", "25 of 28, one tie"),
            )
        ),
        Claim(
            "L6",
            "joint training is the upper bound",
            source=_SOURCE,
            paper="against LwF 7 of 7 old, 1 of 7 new; feature extraction keeps more of the old in 7 of 7",
            decide=count(
                [
                    greater("joint training", other, "accuracy", pair=f"{a} → {b}", task=task)
                    for other in (
                        "LwF",
                        "LFL",
                        "fine-tuning",
                        "fine-tuning FC",
                        "feature extraction",
                    )
                    for a, b in PAIRS
                    for task in ("old", "new")
                ],
                at_least=40,
            ),
            unit="in how many of 40 comparisons: five other ways, four pairs, both tasks",
            varies=_VARIES,
        ),
        Claim(
            "L7",
            "fine-tuning only the fully connected layers keeps the old task but costs the new",
            source=_SOURCE,
            paper="against fine-tuning: old better 7 of 7, new worse 6 of 7",
            decide=count(
                [
                    greater("fine-tuning FC", "fine-tuning", "accuracy", pair="all", task="old"),
                    greater("fine-tuning", "fine-tuning FC", "accuracy", pair="all", task="new"),
                ],
                at_least=2,
            ),
            unit="halves of the sentence, of two, mean of four pairs",
            varies=_VARIES,
        ),
        Claim(
            "L8",
            "LwF keeps more of the old task than fine-tuning",
            source=_SOURCE,
            paper="7 of 7",
            decide=count(
                [
                    greater("LwF", "fine-tuning", "accuracy", pair=f"{a} → {b}", task="old")
                    for a, b in PAIRS
                ],
                at_least=4,
            ),
            unit="in how many of four pairs",
            varies=_VARIES,
        ),
        Claim(
            "L9",
            "LwF beats less-forgetting learning",
            source=_SOURCE,
            paper="new task 7 of 7; old task 4 of 7, one tie",
            decide=count(
                [
                    greater("LwF", "LFL", "accuracy", pair=f"{a} → {b}", task=task)
                    for a, b in PAIRS
                    for task in ("old", "new")
                ],
                at_least=5,
            ),
            unit="in how many of 8 comparisons: four pairs, both tasks",
            varies=_VARIES,
        ),
        Claim(
            "L10",
            "a very different new task costs LwF more of the old one",
            source=_SOURCE,
            paper="behind joint training by 7.2 points for MNIST, by 0.3 to 2.3 elsewhere",
            decide=greater("far", "near", "points behind joint training"),
            unit="points behind joint training on the old task, clothes → digits minus clothes → other clothes",
            varies=_VARIES,
        ),
    ],
)
