"""A few images for the experiments on fine-tuning and on growing, and which were asked for."""

from functools import cache
from importlib import import_module

import pytest

from tlcourse.data import load


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

    fine_tuning = import_module("tlcourse.experiments.fine_tuning.fine_tuning")
    monkeypatch.setattr(fine_tuning, "load", small)
    return names
