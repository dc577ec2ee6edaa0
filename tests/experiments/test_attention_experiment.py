"""Attention transfer measured, at the scale of seconds: who starts where, sees what, and is asked what."""

from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.attention import (
    GROUPS,
    LAYERS,
    LECTURE,
    MAPPINGS,
    OWN,
    SETTINGS,
    TEACHERS,
    attention,
    objective,
    pictures,
    recorded,
    tapped,
    thin,
    train_student,
    train_teacher,
)
from tlcourse.experiments.base import Scale
from tlcourse.training import Batch, cross_entropy, record

module = import_module("tlcourse.experiments.attention")
CPU = torch.device("cpu")
TINY = Scale(**vars(LECTURE) | {"images": 40, "validation": 30, "teacher_epochs": 1, "epochs": 1})


@cache
def few(name, split="train"):
    return load(name, split).take(slice(0, 100))


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "load", few)


@pytest.fixture
def train(small):
    return pictures(TINY, 0, CPU)[0]


@pytest.fixture
def said(train):
    return recorded(thin(10, 2, train), train)


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.mark.slow
def test_tuning_and_seeds_hold_all_that_the_claims_ask_for(small, monkeypatch):
    monkeypatch.setattr(module, "SETTINGS", {arm: dict(list(settings.items())[:1]) for arm, settings in SETTINGS.items()})
    settled = TINY.settle(table(module.tune(TINY, TUNING, CPU), TUNING))
    rows = pd.concat([table(module.run(settled, seed, CPU), seed) for seed in (0, 1)])
    errors = rows[rows["metric"] == "errors"]
    assert set(errors["arm"]) == set(attention.arms)
    assert set(errors["pair"]) == {*TEACHERS, "both"}
    assert {judge(claim, rows).seeds for claim in attention.claims} == {2}
    for kind, names in (("mapping", MAPPINGS), ("layers", LAYERS)):
        one = rows[(rows["seed"] == 0) & (rows["metric"] == f"errors by {kind}")].set_index("arm")["value"]
        assert set(one.index) == {*names, "best on validation", "worst on validation"}
        assert {one["best on validation"], one["worst on validation"]} <= set(one[list(names)])
    first = errors[errors["seed"] == 0].pivot(index="arm", columns="pair", values="value")
    assert first["both"].to_numpy() == pytest.approx(((first["wider"] + first["deeper"]) / 2).to_numpy())
    assert first.loc["alone", "wider"] == first.loc["alone", "deeper"]  # it has no teacher


@pytest.mark.slow
def test_tuning_gives_every_arm_as_many_settings_and_never_sees_a_test_picture(small, monkeypatch):
    monkeypatch.setattr(module, "load", lambda name, split="train": few(name, split) if split == "train" else None)
    rows = table(module.tune(TINY, TUNING, CPU), TUNING)
    assert rows.groupby("arm")["setting"].nunique().to_dict() == dict.fromkeys(["alone", *OWN], 4)


def test_students_of_a_seed_begin_alike_and_a_teacher_does_not(train):
    start = {"lr": 1e-12}
    ours = [train_student(TINY, train, cross_entropy, start, 0) for _ in range(2)]
    other = train_student(TINY, train, cross_entropy, start, 1)
    weights = [net.stem.weight for net in (*ours, other)]
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0] - weights[2]).abs().max() > 0.01
    assert (weights[0] - train_teacher(TINY, train, "wider", 0).stem.weight).abs().max() > 0.01


def test_what_is_tapped_is_what_record_records(train):
    net = thin(10, 1, train).eval()
    logits, taken = tapped(net, train.pixels.float() / 255)
    expected = record(net, train, of=GROUPS)
    assert all(torch.equal(ours, expected[name]) for name, ours in zip(GROUPS, taken))
    assert [x.shape[2] for x in taken] == [14, 7, 4]
    torch.testing.assert_close(logits, net(train.pixels.float() / 255))


def batch_of(train):
    index = torch.tensor([3, 1, 7])
    return Batch(train.pixels[index].float() / 255, train.labels[index], index, 0.0)


def test_an_objective_is_labels_and_what_its_arm_adds(train, said):
    net, batch = thin(10, 1, train), batch_of(train)
    logits, features = tapped(net, batch.x)
    teacher = [said[name][batch.index] for name in GROUPS]
    hard = F.cross_entropy(logits, batch.y)
    at = module.attention_transfer_loss(features, teacher, beta=3.0)
    code = module.attention_transfer_loss(features, teacher, beta=3.0, form="code")
    soft = module.distillation_loss(logits, said["logits"][batch.index], batch.y, T=4, alpha=0.9)
    beta, both = {"beta": 3.0}, {"beta": 3.0, "T": 4.0, "alpha": 0.9}
    expected = {
        "AT": (beta, hard + at),
        "AT, code's form": (beta, hard + code),
        "KD": ({"T": 4.0, "alpha": 0.9}, soft),
        "AT+KD": (both, soft + at),
    }
    for arm, (setting, loss) in expected.items():
        torch.testing.assert_close(objective(arm, said, setting)(net, batch), loss)


def test_full_activations_train_a_convolution_where_channels_differ(train, said):
    how = objective("F-ActT", said, {"beta": 3.0})
    assert sum(p.numel() for p in how.parameters()) == sum((c + 1) * 2 * c for c in (8, 16, 32))
    net, batch = thin(10, 1, train), batch_of(train)
    how(net, batch).backward()
    assert all(p.grad is not None for p in how.parameters())


def test_a_mapping_and_layers_can_be_chosen(train, said):
    net, batch = thin(10, 1, train), batch_of(train)
    found = {
        name: objective("AT", said, {"beta": 30.0}, **change)(net, batch).item()
        for name, change in (MAPPINGS | {name: {"layers": groups} for name, groups in LAYERS.items()}).items()
    }
    assert found.pop("sum, p = 2") == pytest.approx(found["all groups"])
    assert len({round(value, 4) for value in found.values()}) == len(found)
