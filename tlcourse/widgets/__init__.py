"""Widgets that draw and compute in the browser: they live on in a saved page."""

from tlcourse.widgets.attention import AttentionWidget
from tlcourse.widgets.forgetting import ForgettingWidget
from tlcourse.widgets.lossweights import LossWeightsWidget
from tlcourse.widgets.prediction import PredictionWidget
from tlcourse.widgets.scenario import ScenarioWidget
from tlcourse.widgets.sobolev import SobolevWidget
from tlcourse.widgets.temperature import TemperatureWidget

__all__ = [
    "AttentionWidget",
    "ForgettingWidget",
    "LossWeightsWidget",
    "PredictionWidget",
    "ScenarioWidget",
    "SobolevWidget",
    "TemperatureWidget",
]
