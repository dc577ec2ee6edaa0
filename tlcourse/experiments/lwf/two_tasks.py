"""What the live cells on continual learning show: clothes, then digits, with and without LwF."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.lwf.forgetting import accuracy_of, first_task, learn, load_task

LINES = {"fine-tuning": 0.0, "LwF": 10.0}  # the weight of the old task


@dataclass(frozen=True, kw_only=True)
class TwoTasks(Scale):
    """Images of the old task and of the new one, and updates of each."""

    images: Mapping[str, int] = field(default_factory=lambda: {"clothes": 5_000, "digits": 2_000})
    test_images: int = 1_000
    old_steps: int = 400
    steps: int = 150
    lr: float = 3e-3


def run(scale: TwoTasks, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on both tasks, before and after."""
    old, new = (
        load_task(name, images, scale.test_images, seed, device)
        for name, images in scale.images.items()
    )
    network = first_task("old", old.train, scale.old_steps, seed)
    yield Row("before", "accuracy", 100 * accuracy_of(network, "old", old.test), {"task": "old"})
    how: dict[str, Any] = {"lr": scale.lr, "steps": scale.steps, "seed": seed}
    for way, weight in LINES.items():
        net = learn(network, way, "new", new.train, {}, weight=weight, **how)
        yield Row(way, "accuracy", 100 * accuracy_of(net, "old", old.test), {"task": "old"})
        yield Row(way, "accuracy", 100 * accuracy_of(net, "new", new.test), {"task": "new"})


EXPERIMENT = Experiment(
    name="two_tasks",
    question="What is left of the old task after a few steps on a new one?",
    chapter="continual_learning",
    run=run,
    arms=("before", *LINES),
    # of the first twenty seeds none fell as far as the twenty-first: their range was too narrow
    scales={"live": TwoTasks(seeds=30, minutes=13)},
)
