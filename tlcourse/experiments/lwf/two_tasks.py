"""What the live cells on continual learning show: clothes, then digits, with and without LwF.

The new head starts cold or warmed up. And, as a control, how good a new head for clothes is on each
trunk, on one that only ever saw digits and on one that saw nothing.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.lwf.forgetting import Task, accuracy_of, first_task, learn, load_task
from tlcourse.methods.lwf import Heads
from tlcourse.training import cross_entropy, fit, record, seed_everything

LINES: dict[str, tuple[str, dict[str, Any]]] = {
    "fine-tuning": ("fine-tuning", {}),
    "LwF": ("LwF", {"weight": 10.0}),
    "fine-tuning, cold": ("fine-tuning", {"warm_up": False}),
}


@dataclass(frozen=True, kw_only=True)
class TwoTasks(Scale):
    """Images of the old task and of the new one, and updates of each and of a head alone."""

    images: Mapping[str, int] = field(default_factory=lambda: {"clothes": 5_000, "digits": 2_000})
    test_images: int = 1_000
    old_steps: int = 400
    steps: int = 150
    lr: float = 3e-3
    head_steps: int = 300


def run(scale: TwoTasks, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on both tasks, before and after; then that of new heads for clothes."""
    old, new = (
        load_task(name, images, scale.test_images, seed, device)
        for name, images in scale.images.items()
    )
    networks = {"before": first_task("old", old.train, scale.old_steps, seed)}
    how: dict[str, Any] = {"lr": scale.lr, "steps": scale.steps, "seed": seed}
    for arm, (way, more) in LINES.items():
        networks[arm] = learn(networks["before"], way, "new", new.train, {}, **more, **how)
    for arm, net in networks.items():
        for task, images in {"old": old.test, "new": new.test}.items():
            if task in net.heads:
                accuracy = 100 * accuracy_of(net, task, images)
                yield Row(arm, "accuracy", accuracy, {"task": task})
    networks["digits only"] = first_task("new", new.train, scale.old_steps, seed)
    networks["untrained"] = untrained(networks["before"], seed)
    for arm, net in networks.items():
        right = 100 * new_head(net, old, scale.head_steps, seed)
        yield Row(arm, "accuracy of a new head", right, {"task": "old"})


def new_head(network: Heads, task: Task, steps: int, seed: int) -> float:
    """Share of right classes, in [0, 1], of a new head trained on what the trunk gives.

    A linear layer after a norm, for features of an untrained trunk are tiny.
    """
    features = record(network.trunk, task.train)
    seed_everything(seed)
    units = features.shape[1]
    head = nn.Sequential(nn.BatchNorm1d(units), nn.Linear(units, len(task.train.classes)))
    head.to(features.device)
    data = features, task.train.labels
    fit(head, data, cross_entropy, steps=steps, lr=1e-2, seed=seed, progress=False)
    return accuracy_of(Heads(network.trunk, new=head), "new", task.test)


def untrained(network: Heads, seed: int) -> Heads:
    """A copy of the network with new random weights."""
    seed_everything(seed)
    network = deepcopy(network)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.reset_parameters()
    return network


EXPERIMENT = Experiment(
    name="two_tasks",
    question="What is left of the old task after a few steps on a new one?",
    chapter="continual_learning",
    run=run,
    arms=("before", *LINES, "digits only", "untrained"),
    # of the first twenty seeds none fell as far as the twenty-first: their range was too narrow
    scales={"live": TwoTasks(seeds=30, minutes=25)},
)
