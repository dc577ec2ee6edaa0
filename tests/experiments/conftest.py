"""A few images for experiments, and which were asked for."""

from functools import cache
from importlib import import_module

import pytest

from tlcourse.data import load

JACOBIANS = ("jacobian_matching.few_data", "jacobian_matching.distant")
TRANSFER = ("what_is_transfer_learning.adaptation", "what_is_transfer_learning.starts")


@cache
def few(name, split="train"):
    return load(name, split).take(slice(0, 3_000 if split == "train" else 300))


@pytest.fixture
def asked(monkeypatch):
    """Which images were loaded: name and split."""
    names = []

    def small(name, split="train"):
        names.append((name, split))
        return few(name, split)

    for name in ("fine_tuning.fine_tuning", *JACOBIANS, *TRANSFER):
        monkeypatch.setattr(import_module(f"tlcourse.experiments.{name}"), "load", small)
    return names
