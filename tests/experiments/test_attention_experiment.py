"""Attention transfer measured, at the scale of seconds: who starts where, sees what, and is asked
what.
"""

from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments import ledger
from tlcourse.experiments.attention import (
    FULL,
    GROUPS,
    LAYERS,
    LECTURE,
    MAPPINGS,
    OWN,
    PAIRS,
    SETTINGS,
    attention,
    channels,
    objective,
    of_other_pictures,
    pictures,
    recorded,
    residual_network,
    tapped,
    told,
    train_student,
    train_teacher,
)
from tlcourse.experiments.base import Scale
from tlcourse.methods.fine_tuning import freeze
from tlcourse.training import Batch, cross_entropy, record, seed_everything

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
    return recorded(residual_network(TINY, (10, 2), train), train)


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.mark.slow
def test_tuning_and_seeds_hold_all_that_the_claims_ask_for(small, monkeypatch):
    monkeypatch.setattr(
        module,
        "SETTINGS",
        {arm: dict(list(settings.items())[:1]) for arm, settings in SETTINGS.items()},
    )
    settled = TINY.settle(table(module.tune(TINY, TUNING, CPU), TUNING))
    rows = pd.concat([table(module.run(settled, seed, CPU), seed) for seed in (0, 1)])
    errors = rows[rows["metric"] == "errors"]
    assert set(errors["arm"]) == set(attention.arms)
    assert set(errors["pair"]) == {*PAIRS, "both"}
    assert {judge(claim, rows).seeds for claim in attention.claims} == {2}
    for kind, names in (("mapping", MAPPINGS), ("layers", LAYERS)):
        one = rows[(rows["seed"] == 0) & (rows["metric"] == f"errors by {kind}")].set_index("arm")[
            "value"
        ]
        assert set(one.index) == {*names, "best on validation", "worst on validation"}
        assert {one["best on validation"], one["worst on validation"]} <= set(one[list(names)])
    first = errors[errors["seed"] == 0].pivot(index="arm", columns="pair", values="value")
    assert first["both"].to_numpy() == pytest.approx(
        ((first["wider"] + first["deeper"]) / 2).to_numpy()
    )
    assert first.loc["alone", "wider"] == first.loc["alone", "deeper"]  # it has no teacher


@pytest.mark.slow
def test_tuning_gives_every_arm_as_many_settings_and_never_sees_a_test_picture(small, monkeypatch):
    monkeypatch.setattr(
        module, "load", lambda name, split="train": few(name, split) if split == "train" else None
    )
    rows = table(module.tune(TINY, TUNING, CPU), TUNING)
    assert rows.groupby("arm")["setting"].nunique().to_dict() == dict.fromkeys(["alone", *OWN], 4)


@pytest.mark.slow
def test_the_paper_s_set_up_runs_on_cifar10_where_it_is(cifar10):
    """A few pictures, in CIFAR's own files; the networks are the paper's, but for their depth."""
    sizes = {
        "images": 6,
        "validation": 4,
        "student": (10, 1),
        "teachers": {"wider": (10, 2), "deeper": (16, 1)},
    }
    scale = Scale(**vars(FULL) | sizes | {"teacher_epochs": 1, "epochs": 1})
    rows = table(module.run(scale, 0, CPU), 0)
    found = rows[rows["metric"] == "errors"]
    assert set(found["arm"]) == set(attention.arms)
    assert found["value"].between(0, 100).all()
    assert {
        judge(claim, pd.concat([rows, rows.assign(seed=1)])).seeds for claim in attention.claims
    } == {2}


def test_a_scale_whose_data_are_not_on_board_is_not_missing(home, cifar10):
    assert {entry.scale for entry in ledger("attention")} == {"lecture", "full"}
    cifar10.parent.rename(home / "elsewhere")
    assert {(entry.scale, entry.status) for entry in ledger("attention")} == {
        ("lecture", "missing")
    }


@pytest.mark.parametrize("arm", OWN)
def test_a_teacher_that_is_asked_says_what_it_said_when_it_was_recorded(arm, train, said):
    seed_everything(0)
    teacher = freeze(residual_network(TINY, (10, 2), train))
    batch = batch_of(train)
    losses = []
    for source in (teacher, recorded(teacher, train)):
        seed_everything(1)  # for the convolutions of F-ActT
        how = objective(arm, source, {"beta": 3.0, "T": 4.0, "alpha": 0.9}, channels=channels(TINY))
        seed_everything(2)
        net = residual_network(TINY, (10, 1), train)
        losses.append(how(net, batch))
        losses[-1].backward()
        assert all(p.grad is None for p in teacher.parameters())
    torch.testing.assert_close(losses[0], losses[1])


def test_a_teacher_of_other_pictures_is_the_next_one_s(train, said):
    teacher = freeze(residual_network(TINY, (10, 2), train))
    batch = batch_of(train)
    logits, features = told(of_other_pictures(teacher), batch)
    expected, theirs = told(teacher, batch)
    torch.testing.assert_close(logits, expected.roll(1, 0))
    torch.testing.assert_close(features[1], theirs[1].roll(1, 0))
    assert torch.equal(of_other_pictures(said)["group2"][5], said["group2"][4])


def test_students_of_a_seed_begin_alike_and_a_teacher_does_not(train):
    start = {"lr": 1e-12}
    ours = [train_student(TINY, train, cross_entropy, start, 0) for _ in range(2)]
    other = train_student(TINY, train, cross_entropy, start, 1)
    weights = [net.stem.weight for net in (*ours, other)]
    torch.testing.assert_close(weights[0], weights[1])
    assert (weights[0] - weights[2]).abs().max() > 0.01
    assert (weights[0] - train_teacher(TINY, train, "wider", 0).stem.weight).abs().max() > 0.01


def test_what_is_tapped_is_what_record_records(train):
    net = residual_network(TINY, (10, 1), train).eval()
    logits, taken = tapped(net, train.pixels.float() / 255)
    expected = record(net, train, of=GROUPS)
    assert all(torch.equal(ours, expected[name]) for name, ours in zip(GROUPS, taken))
    assert [x.shape[2] for x in taken] == [14, 7, 4]
    torch.testing.assert_close(logits, net(train.pixels.float() / 255))


def batch_of(train):
    index = torch.tensor([3, 1, 7])
    return Batch(train.pixels[index].float() / 255, train.labels[index], index, 0.0)


def test_an_objective_is_labels_and_what_its_arm_adds(train, said):
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
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
    how = objective("F-ActT", said, {"beta": 3.0}, channels=channels(TINY))
    assert sum(p.numel() for p in how.parameters()) == sum((c + 1) * 2 * c for c in (8, 16, 32))
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
    how(net, batch).backward()
    assert all(p.grad is not None for p in how.parameters())


def test_a_mapping_and_layers_can_be_chosen(train, said):
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
    found = {
        name: objective("AT", said, {"beta": 30.0}, **change)(net, batch).item()
        for name, change in (
            MAPPINGS | {name: {"layers": groups} for name, groups in LAYERS.items()}
        ).items()
    }
    assert found.pop("sum, p = 2") == pytest.approx(found["all groups"])
    assert len({round(value, 4) for value in found.values()}) == len(found)
