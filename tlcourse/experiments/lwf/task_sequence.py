"""How does the accuracy on every task go while one is learnt after the other?

The curves of the chapter's widget. Two sequences, ways of `WAYS` with one learning rate for all
(nothing is selected, and no claim is decided here), and learning without forgetting with its weight
over a grid. With weight 0 it is fine-tuning.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch

from tlcourse.data import Images, load
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.lwf.forgetting import accuracy_of, first_task, learn
from tlcourse.methods.lwf import Heads
from tlcourse.metrics import average_accuracy, backward_transfer, forgetting

_SETS = {"clothes": "fashion_mnist", "digits": "mnist", "scanned digits": "digits"}
SEQUENCES: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "five tasks": {f"task {i + 1}": ("fashion_mnist", (2 * i, 2 * i + 1)) for i in range(5)},
    "three data sets": {name: (source, tuple(range(10))) for name, source in _SETS.items()},
}
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0)
# Each line of the picture: the way to learn, and the weight of the old tasks
LINES = (
    ("fine-tuning", 0.0),
    *(("LwF", weight) for weight in WEIGHTS),
    ("feature extraction", 0.0),
    ("joint training", 0.0),
)
METRICS = {
    "average accuracy": average_accuracy,
    "forgetting": forgetting,
    "backward transfer": backward_transfer,
}


@dataclass(frozen=True, kw_only=True)
class TaskSequence(Scale):
    """Images and updates of each task; head_lr is the rate of feature extraction."""

    images: int = 1_000
    test_images: int = 300
    steps: int = 128
    lr: float = 1e-3
    head_lr: float = 1e-2


class Task(NamedTuple):
    """A task's images."""

    train: Images
    test: Images


def run(scale: TaskSequence, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on every task learnt so far, at every second epoch.

    And what the metrics make of the ends.
    """
    for sequence, sources in SEQUENCES.items():
        tasks = {name: _task(*source, scale, seed, device) for name, source in sources.items()}
        name, first = next(iter(tasks.items()))
        start = first_task(name, first.train, scale.steps, seed)
        for arm, weight in LINES:
            at = {"sequence": sequence, "weight": weight}
            yield from _one_line(start, tasks, arm, weight, scale, seed, at)


def _one_line(
    network: Heads,
    tasks: dict[str, Task],
    way: str,
    weight: float,
    scale: TaskSequence,
    seed: int,
    at: dict[str, Any],
) -> Iterator[Row]:
    R = np.full((len(tasks), len(tasks)), np.nan)
    lr = scale.head_lr if way == "feature extraction" else scale.lr
    how: dict[str, Any] = {"lr": lr, "weight": weight, "steps": scale.steps}
    for stage, (name, task) in enumerate(tasks.items()):
        learnt = dict(list(tasks.items())[: stage + 1])
        curve = _Curve(learnt)
        if stage > 0:
            old = {earlier: tasks[earlier].train for earlier in list(learnt)[:-1]}
            more = how | {"seed": seed + stage, "watch": curve}
            network = learn(network, way, name, task.train, old, **more)
        R[stage, : stage + 1] = list(accuracies(network, learnt).values())
        for epoch, found in curve.seen.items() or [(0, dict(zip(learnt, R[stage])))]:
            now = {**at, "stage": stage + 1, "epoch": epoch}
            yield from (Row(way, "accuracy", v, {**now, "task": t}) for t, v in found.items())
    for metric, measure in METRICS.items():
        yield Row(way, metric, measure(R), at)


class _Curve:
    """Looks at every second epoch."""

    def __init__(self, tasks: Mapping[str, Task]) -> None:
        self.tasks, self.epoch, self.seen = tasks, 0, dict[int, dict[str, float]]()

    def __call__(self, network: Heads) -> dict[str, float]:
        self.epoch += 1
        if self.epoch % 2 == 0:
            self.seen[self.epoch] = accuracies(network, self.tasks)
        return {}


def accuracies(network: Heads, tasks: Mapping[str, Task]) -> dict[str, float]:
    """Test accuracy in percent on each task."""
    return {name: 100 * accuracy_of(network, name, task.test) for name, task in tasks.items()}


def _task(
    source: str, classes: tuple[int, ...], scale: TaskSequence, seed: int, device: torch.device
) -> Task:
    train, test = (
        load(source, part).only(classes, relabel=True).to(device) for part in ("train", "test")
    )
    return Task(train.split(scale.images, seed=seed)[0], test.take(slice(0, scale.test_images)))


EXPERIMENT = Experiment(
    name="task_sequence",
    question="How does the accuracy on every task go while one is learnt after the other?",
    chapter="continual_learning",
    run=run,
    arms=tuple(dict.fromkeys(arm for arm, _ in LINES)),
    scales={"lecture": TaskSequence(seeds=5, minutes=40)},
)
