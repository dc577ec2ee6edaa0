"""How does the accuracy on every task go while one is learnt after the other? The curves of the
chapter's widget.

Two sequences, ways of `WAYS` with one learning rate for all (nothing is selected, and no claim is
decided here), and learning without forgetting with its weight over a grid. With weight 0 it is
fine-tuning.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch

from tlcourse.data import Images, load
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.forgetting import accuracy_of, first_task, learn
from tlcourse.methods.lwf import Heads
from tlcourse.metrics import average_accuracy, backward_transfer, forgetting

_SETS = {"clothes": "fashion_mnist", "digits": "mnist", "scanned digits": "digits"}
SEQUENCES: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {
    "five tasks": {f"task {i + 1}": ("fashion_mnist", (2 * i, 2 * i + 1)) for i in range(5)},
    "three data sets": {name: (source, tuple(range(10))) for name, source in _SETS.items()},
}
WEIGHTS = (0.03, 0.1, 0.3, 1.0, 3.0)
# Each line of the picture: its name, the way to learn, and the weight of the old tasks
LINES = (
    ("fine-tuning", "fine-tuning", 0.0),
    *(("LwF", "LwF", weight) for weight in WEIGHTS),
    ("feature extraction", "feature extraction", 0.0),
    ("joint training", "joint training", 0.0),
)


class Task(NamedTuple):
    """A task's images."""

    train: Images
    test: Images


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on every task learnt so far, at every second epoch, and what the metrics
    make of the ends.
    """
    for sequence, sources in SEQUENCES.items():
        tasks = {
            name: _task(source, classes, scale, seed, device)
            for name, (source, classes) in sources.items()
        }
        name, first = next(iter(tasks.items()))
        start = first_task(name, first.train, scale.steps, seed)
        for arm, way, weight in LINES:
            yield from _one_line(
                start,
                tasks,
                arm,
                way,
                weight,
                scale,
                seed,
                {"sequence": sequence, "weight": weight},
            )


def _one_line(
    network: Heads,
    tasks: dict[str, Task],
    arm: str,
    way: str,
    weight: float,
    scale: Scale,
    seed: int,
    at: dict[str, Any],
) -> Iterator[Row]:
    R = np.full((len(tasks), len(tasks)), np.nan)
    lr = scale.head_lr if way == "feature extraction" else scale.lr
    for stage, (name, task) in enumerate(tasks.items()):
        learnt = dict(list(tasks.items())[: stage + 1])
        curve = _Curve(learnt)
        if stage > 0:
            old = {earlier: tasks[earlier].train for earlier in list(learnt)[:-1]}
            network = learn(
                network,
                way,
                name,
                task.train,
                old,
                lr=lr,
                weight=weight,
                steps=scale.steps,
                seed=seed + stage,
                watch=curve,
            )
        R[stage, : stage + 1] = list(accuracies(network, learnt).values())
        for epoch, found in curve.seen.items() or [(0, dict(zip(learnt, R[stage])))]:
            yield from (
                Row(arm, "accuracy", value, {**at, "stage": stage + 1, "epoch": epoch, "task": t})
                for t, value in found.items()
            )
    for metric, measure in (
        ("average accuracy", average_accuracy),
        ("forgetting", forgetting),
        ("backward transfer", backward_transfer),
    ):
        yield Row(arm, metric, measure(R), at)


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
    source: str, classes: tuple[int, ...], scale: Scale, seed: int, device: torch.device
) -> Task:
    train, test = (
        load(source, part).only(classes, relabel=True).to(device) for part in ("train", "test")
    )
    return Task(train.split(scale.images, seed=seed)[0], test.take(slice(0, scale.test_images)))


LECTURE = Scale(
    seeds=5, minutes=40, images=1_000, test_images=300, steps=128, lr=1e-3, head_lr=1e-2
)
task_sequence = Experiment(
    name="task_sequence",
    question="How does the accuracy on every task go while one is learnt after the other?",
    chapter="continual_learning",
    run=run,
    arms=tuple(dict.fromkeys(arm for arm, _, _ in LINES)),
    scales={"lecture": LECTURE},
    claims=[],
)
