"""What the live cells of the chapter on continual learning show: clothes, then digits, by
fine-tuning and without forgetting.
"""

from collections.abc import Iterator

import torch

from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.forgetting import accuracy_of, first_task, learn, load_task
from tlcourse.methods.lwf import Heads

LINES = {"fine-tuning": 0.0, "LwF": 10.0}  # the weight of the old task


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent on both tasks, before and after."""
    old, new = (
        load_task(name, images, scale.test_images, seed, device)
        for name, images in scale.images.items()
    )
    network = first_task("old", old.train, scale.old_steps, seed)
    yield Row("before", "accuracy", 100 * accuracy_of(network, "old", old.test), {"task": "old"})
    for way, weight in LINES.items():
        net: Heads = learn(
            network,
            way,
            "new",
            new.train,
            {},
            lr=scale.lr,
            weight=weight,
            steps=scale.steps,
            seed=seed,
        )
        yield Row(way, "accuracy", 100 * accuracy_of(net, "old", old.test), {"task": "old"})
        yield Row(way, "accuracy", 100 * accuracy_of(net, "new", new.test), {"task": "new"})


# Thirty seeds: of the first twenty none fell as far as the twenty-first does, so their range was
# too narrow.
LIVE = Scale(
    seeds=30,
    minutes=13,
    images={"clothes": 5_000, "digits": 2_000},
    test_images=1_000,
    old_steps=400,
    steps=150,
    lr=3e-3,
)
two_tasks = Experiment(
    name="two_tasks",
    question="What is left of the old task after a few steps on a new one?",
    chapter="continual_learning",
    run=run,
    arms=("before", *LINES),
    scales={"live": LIVE},
    claims=[],
)
