"""Is learning without forgetting faster than joint training, and what must be kept for it?

The lecture says faster, with one forward pass where joint training has two. The authors' README
says that their code is not, since it does not share the pass (E7). Here the steps of each way are
timed side by side, and what a step keeps for its backward pass is counted.
"""

import time
from collections.abc import Callable, Iterator
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tlcourse.claims import Claim, exact, greater
from tlcourse.data import Images, as_input
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.lwf.forgetting import first_task, learn, load_task, objective
from tlcourse.methods.lwf import Heads, add_task
from tlcourse.training import Batch, fit, joint, predict

WAYS = ("fine-tuning", "LwF", "joint training")
BATCH = 128


@dataclass(frozen=True, kw_only=True)
class LwfCost(Scale):
    """Images of each task, and updates that are timed."""

    images: int = 2_000
    steps: int = 60


def run(scale: LwfCost, seed: int, device: torch.device) -> Iterator[Row]:
    """One round a seed: seconds per step of each way, in another order each time.

    And the bytes that a step and a whole run need.
    """
    old, new = (
        load_task(name, scale.images, 1, seed, device).train for name in ("clothes", "digits")
    )
    network = first_task("old", old, 1, seed)
    start = time.perf_counter()
    answers = predict(network, new, "old")
    yield Row("LwF", "seconds to record", time.perf_counter() - start)
    kept = {"fine-tuning": [], "LwF": [answers], "joint training": [old.pixels, old.labels]}
    for way in WAYS[seed % 3 :] + WAYS[: seed % 3]:
        net = add_task(deepcopy(network), "new", 10, way)
        how = objective(way, "new", {"old": answers}, answers, weight=1.0)
        data = joint(new=new, old=old) if way == "joint training" else new
        batch = {"new": _batch(new), "old": _batch(old)} if way == "joint training" else _batch(new)
        yield Row(way, "bytes for the backward pass", bytes_for_backward(lambda: how(net, batch)))  # noqa: B023
        yield Row(way, "bytes kept of the old task", sum(tensor.nbytes for tensor in kept[way]))
        history = fit(net, data, how, steps=scale.steps, lr=1e-4, seed=seed, progress=False)
        yield Row(way, "seconds per step", history.seconds / scale.steps)
    yield Row("LwF", "difference without old data", _without_old_data(network, old, new, seed))


def bytes_for_backward(loss: Callable[[], Tensor]) -> int:
    """What a loss keeps in memory until its gradient is computed: each tensor once, weights too."""
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss()
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def _without_old_data(network: Heads, old: Images, new: Images, seed: int) -> float:
    """The largest difference between networks that learnt with the old images at hand or not."""
    settings: dict[str, Any] = {"lr": 1e-3, "weight": 1.0, "steps": 5, "seed": seed}
    there, gone = (
        learn(network, "LwF", "new", new, images, **settings).state_dict()
        for images in ({"old": old}, {})
    )
    return max((there[name] - gone[name]).abs().max().item() for name in there)


def _batch(images: Images) -> Batch:
    x, y = as_input(images.pixels[:BATCH]), images.labels[:BATCH]
    return Batch(x, y, torch.arange(BATCH, device=y.device), 0.0)


EXPERIMENT = Experiment(
    name="lwf_cost",
    question="Is learning without forgetting faster than joint training, and what must it keep?",
    chapter="continual_learning",
    run=run,
    arms=WAYS,
    scales={"lecture": LwfCost(seeds=9, workers=1, minutes=3)},
    claims=[
        Claim(
            "L1",
            "LwF trains faster than joint training",
            source="lecture, distillation from old tasks; the authors' README says that their code "
            "does not (E7)",
            paper="“faster than joint training”",
            decide=greater("joint training", "LwF", "seconds per step"),
            unit="seconds per step, joint training minus LwF",
            varies="rounds on one machine, ways in turn",
        ),
        Claim(
            "L2",
            "LwF stores no old data",
            source="lecture, distillation from old tasks",
            paper="“we don't have to store previous data”",
            decide=exact("difference without old data", tolerance=0.0),
            unit="largest difference of a weight, trained with the old images at hand and without",
        ),
    ],
)
