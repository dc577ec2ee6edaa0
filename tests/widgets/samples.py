"""Widgets to look at, made of random numbers."""

from typing import Any

import numpy as np

from tlcourse.widgets import ForgettingWidget, PredictionWidget, TemperatureWidget


def networks(many: int, classes: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(many, classes)) * 5 for name in ("teacher", "alone", "distilled")}


def temperature(**options: Any) -> TemperatureWidget:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    return TemperatureWidget(pixels, networks(3, 10), [7, 2, 1], **options)


def prediction(**options: Any) -> PredictionWidget:
    return PredictionWidget("How many?", **{"answer": 67.8, "interval": (58, 77.7), "unit": "errors", "why": "It says more."} | options)


def curves(points: int = 21, tasks: int = 3) -> np.ndarray:
    """Accuracies (points, tasks): each task is learnt at a third of the way, and then fades."""
    draw = np.random.default_rng(2).uniform(60, 100, (points, tasks))
    starts = np.arange(tasks) * points // tasks
    return np.where(np.arange(points)[:, None] >= starts, draw, np.nan)


def forgetting(**options: Any) -> ForgettingWidget:
    by_weight = {0.0: curves(), 0.3: curves() * 0.9, 3.0: curves() * 0.95}
    others = {"feature extraction": curves() * 0.8, "joint training": curves()}
    return ForgettingWidget(**{"tasks": ["a", "b", "c"], "starts": [0, 7, 14], "by_weight": by_weight, "others": others} | options)
