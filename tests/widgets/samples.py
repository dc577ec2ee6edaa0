"""Widgets to look at, made of random numbers."""

from typing import Any

import numpy as np

from tlcourse.chapters import scenarios
from tlcourse.widgets import (
    AttentionWidget,
    ForgettingWidget,
    LossWeightsWidget,
    PredictionWidget,
    ScenarioWidget,
    SobolevWidget,
    TemperatureWidget,
)


def networks(many: int, classes: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {
        name: draw.normal(size=(many, classes)) * 5 for name in ("teacher", "alone", "distilled")
    }


def temperature(**options: Any) -> TemperatureWidget:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    return TemperatureWidget(pixels, networks(3, 10), [7, 2, 1], **options)


def prediction(**options: Any) -> PredictionWidget:
    return PredictionWidget(
        "How many?",
        **{"answer": 67.8, "interval": (58, 77.7), "unit": "errors", "why": "It says more."}
        | options,
    )


def curves(points: int = 21, tasks: int = 3) -> np.ndarray:
    """Accuracies (points, tasks): each task is learnt at a third of the way, and then fades."""
    draw = np.random.default_rng(2).uniform(60, 100, (points, tasks))
    starts = np.arange(tasks) * points // tasks
    return np.where(np.arange(points)[:, None] >= starts, draw, np.nan)


def forgetting(**options: Any) -> ForgettingWidget:
    by_weight = {0.0: curves(), 0.3: curves() * 0.9, 3.0: curves() * 0.95}
    others = {"feature extraction": curves() * 0.8, "joint training": curves()}
    return ForgettingWidget(
        **{"tasks": ["a", "b", "c"], "starts": [0, 7, 14], "by_weight": by_weight, "others": others}
        | options
    )


def features(
    many: int = 3, networks: tuple[str, ...] = ("teacher", "alone")
) -> dict[str, dict[str, np.ndarray]]:
    draw = np.random.default_rng(3)
    sizes = {"group 1": (4, 7, 7), "group 2": (6, 4, 4)}
    return {
        name: {layer: draw.normal(size=(many, *size)) for layer, size in sizes.items()}
        for name in networks
    }


def looks(**options: Any) -> AttentionWidget:
    pixels = np.random.default_rng(4).integers(0, 256, (3, 1, 28, 28), dtype=np.uint8)
    return AttentionWidget(**{"pictures": pixels, "features": features()} | options)


def photos(**options: Any) -> AttentionWidget:
    pixels = np.random.default_rng(5).integers(0, 256, (2, 3, 64, 64), dtype=np.uint8)
    maps = {"cat": np.random.default_rng(6).uniform(size=(2, 7, 7)), "coffee": np.zeros((2, 7, 7))}
    given = {
        "pictures": pixels,
        "features": features(2, ("network",)),
        "maps": maps,
        "names": ["a cat", "a cup"],
    }
    return AttentionWidget(**given | options)


def weightings(log: bool = False) -> list[dict[str, np.ndarray]]:
    """(i, j, k) / 6, or powers of two; on each task the value has a bend and some noise."""
    draw, runs = np.random.default_rng(7), []
    for i, j in [pair for pair in np.ndindex(7, 7) if sum(pair) < 7]:
        steps = np.array([i, j, 6 - i - j])
        weights = 2.0**steps if log else steps
        weights = weights / weights.sum()
        values = np.array([40 + 18 * weights[0] ** 0.5, 2 - weights[1], 0.4 - 0.2 * weights[2]])
        runs.append({"weights": weights, "values": values * draw.uniform(0.9, 1.1, 3)})
    return runs


TASKS = [
    {"name": "segments", "unit": "%", "better": "higher", "alone": 54.1, "learnt": 53.2},
    {"name": "centres", "unit": "px", "better": "lower", "alone": 1.43, "learnt": 1.34},
    {"name": "depth", "unit": "", "better": "lower", "alone": 0.31, "learnt": 0.26},
]


def loss_weights(**options: Any) -> LossWeightsWidget:
    given = {"tasks": TASKS, "weightings": weightings(), "learnt_weights": [0.18, 0.3, 0.52]}
    return LossWeightsWidget(**given | options)


def sobolev(**options: Any) -> SobolevWidget:
    return SobolevWidget(**options)


def scenario(**options: Any) -> ScenarioWidget:
    return ScenarioWidget(**scenarios() | options)
