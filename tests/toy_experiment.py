"""An experiment of milliseconds, for tests of how experiments are measured.

Worker processes import it. Environment variables: TOY_LOG, a file that notes every call; TOY_SLEEP,
seconds a seed takes; TOY_FAIL, a seed that raises; TOY_SHIFT, added to the errors; TOY_SECONDS, the
time it pretends to take.
"""

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from math import nan
from pathlib import Path

import torch

from tlcourse.experiments.base import Experiment, Row, Scale

ARMS = ("plain", "tuned")
# floats that a careless writer rounds
AWKWARD = (0.1 + 0.2, 1 / 3, 5e-324, 1e22, 123456789.123456789, -0.0)
# by arm and setting, one value per tuning seed: the lowest value of "plain" is at 0.1, its lowest
# mean at 0.2
VALIDATION = {
    "plain": {0.1: (1.0, 9.0), 0.2: (4.0, 4.0)},
    "tuned": {0.1: (2.0, 2.0), 0.2: (3.0, 3.0)},
}


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    note(f"run {seed}")
    time.sleep(float(os.environ.get("TOY_SLEEP", 0)))
    if os.environ.get("TOY_FAIL") == str(seed):
        raise ArithmeticError(f"seed {seed} was told to fail")
    torch.manual_seed(seed)
    for width in (30, 300):
        for arm in ARMS:
            base = scale.chosen(arm=arm) if scale.tuning_seeds else 0.0
            noise = torch.randn(1000, dtype=torch.float64).mean().item()
            value = base + noise + float(os.environ.get("TOY_SHIFT", 0))
            yield Row(arm, "errors", value, {"width": width})
            for epoch in (1, 2):
                yield Row(arm, "errors by epoch", value / epoch, {"width": width, "epoch": epoch})
    yield from (Row("plain", "awkward", value, {"epoch": i}) for i, value in enumerate(AWKWARD))
    yield Row("plain", "undefined", nan)
    yield Row("plain", "threads", torch.get_num_threads())
    yield Row("plain", "seconds of a step", float(os.environ.get("TOY_SECONDS", 1)))
    note(f"done {seed}")


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    note(f"tune {seed}")
    time.sleep(float(os.environ.get("TOY_SLEEP", 0)))
    for arm, settings in VALIDATION.items():
        for setting, values in settings.items():
            yield Row(arm, "validation errors", values[seed % 2], {"setting": setting})
    note(f"done {seed}")


def run_counted(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """A setting that is a whole number: of steps, of layers."""
    yield Row("plain", "errors", sum(range(scale.chosen(arm="plain"))) + seed)


def tune_counted(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    yield from (
        Row("plain", "validation errors", abs(steps - 20), {"setting": steps})
        for steps in (10, 20, 30)
    )


def run_undefined(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """The first value is not a number."""
    yield Row("plain", "errors", nan, {"width": 30})
    yield Row("plain", "errors", seed, {"width": 300})


def run_kinds(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Coordinates of every kind."""
    for flag in (True, False):
        yield Row(
            "plain",
            "errors",
            10.0 * flag + seed,
            {"augmented": flag, "images": 5, "rate": 1e-3, "layer": "fc7"},
        )


def note(what: str) -> None:
    if "TOY_LOG" in os.environ:
        with Path(os.environ["TOY_LOG"]).open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")


EXPERIMENT = toy = Experiment(
    name="toy",
    question="Does it work?",
    chapter="none",
    run=run,
    tune=tune,
    arms=ARMS,
    scales={
        "tiny": Scale(seeds=3, tuning_seeds=2, minutes=1),
        "untuned": Scale(seeds=4, minutes=1),
    },
)
counted = replace(toy, name="counted", run=run_counted, tune=tune_counted)
undefined = replace(toy, name="undefined", run=run_undefined, tune=None)
kinds = replace(toy, name="kinds", run=run_kinds, tune=None)
