"""Widgets to look at, made of random numbers."""

from typing import Any

import numpy as np

from tlcourse.widgets import PredictionWidget, TemperatureWidget


def networks(many: int, classes: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(0)
    return {name: draw.normal(size=(many, classes)) * 5 for name in ("teacher", "alone", "distilled")}


def temperature(**options: Any) -> TemperatureWidget:
    pixels = np.random.default_rng(1).integers(0, 256, (3, 28, 28), dtype=np.uint8)
    return TemperatureWidget(pixels, networks(3, 10), [7, 2, 1], **options)


def prediction(**options: Any) -> PredictionWidget:
    return PredictionWidget("How many?", **{"answer": 67.8, "interval": (58, 77.7), "unit": "errors", "why": "It says more."} | options)
