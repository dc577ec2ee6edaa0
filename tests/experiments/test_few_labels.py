"""Few labels and a teacher from ImageNet, at the scale of seconds."""

from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import nn

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.attention.attention import GROUPS, recorded
from tlcourse.experiments.attention.few_labels import (
    BLOCKS,
    EXPERIMENT,
    LECTURE,
    SETTINGS,
    Enlarged,
    fine_tuned,
    train_student,
)
from tlcourse.training import Batch

module = import_module("tlcourse.experiments.attention.few_labels")
CPU = torch.device("cpu")
TINY = LECTURE.but(per_class=2, test_images=20, teacher_steps=1, steps=2)


@cache
def few(name, split="train"):
    return load(name, split).take(slice(0, 300))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "load", few)


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claim_asks_for_and_tuning_never_sees_the_target(
    small, monkeypatch
):
    asked = []
    monkeypatch.setattr(
        module, "load", lambda name, split="train": asked.append(name) or few(name, split)
    )
    tuning = pd.DataFrame(
        [{"seed": TUNING, **row.as_dict()} for row in module.tune(TINY, TUNING, CPU)]
    )
    assert set(asked) == {module.TUNED_ON}
    asked.clear()
    assert tuning.groupby("arm")["setting"].nunique().to_dict() == dict.fromkeys(SETTINGS, 4)
    settled = TINY.settle(tuning)
    rows = pd.concat(
        [
            pd.DataFrame([{"seed": s, **row.as_dict()} for row in module.run(settled, s, CPU)])
            for s in (0, 1)
        ]
    )
    assert set(asked) == {module.TARGET}
    assert set(rows["arm"]) == set(EXPERIMENT.arms)
    assert judge(EXPERIMENT.claims[0], rows).seeds == 2


def test_small_grey_pictures_are_enlarged_to_three_equal_channels():
    seen = Enlarged(nn.Identity())(torch.rand(2, 1, 28, 28))
    assert seen.shape == (2, 3, 64, 64)
    assert torch.equal(seen[:, 0], seen[:, 2])


def test_what_is_recorded_is_of_the_fine_tuned_teacher(small):
    images = few("mnist").per_class(2, seed=0)
    network = fine_tuned(TINY, images, 0)
    x, everything = images.pixels.float() / 255, torch.arange(20)
    batch = Batch(x, images.labels, everything, 0.0)
    logits, found = recorded(network, images, BLOCKS)(batch, torch.Tensor.detach)
    assert [tuple(found[name].shape[2:]) for name in GROUPS] == [(16, 16), (8, 8), (4, 4)]
    assert logits.shape == (20, 10)
    with torch.inference_mode():
        torch.testing.assert_close(network.eval()(x), logits, rtol=1e-3, atol=1e-4)


def test_students_begin_alike_and_their_arms_differ(small):
    images = few("mnist").per_class(2, seed=0)
    teacher = recorded(fine_tuned(TINY, images, 0), images, BLOCKS)
    students = {
        arm: train_student(TINY, images, arm, teacher, next(iter(settings.values())), 0)
        for arm, settings in SETTINGS.items()
    }
    again = train_student(TINY, images, "AT", teacher, next(iter(SETTINGS["AT"].values())), 0)
    assert torch.equal(again.stem.weight, students["AT"].stem.weight)
    assert len({tuple(net.head.weight.flatten()[:3].tolist()) for net in students.values()}) == 3
