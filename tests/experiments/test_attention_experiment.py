"""Attention transfer at the scale of seconds: who starts where, sees what, is asked what."""

from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments import ledger
from tlcourse.experiments.attention.attention import (
    EXPERIMENT,
    FULL,
    GROUPS,
    LAYERS,
    LECTURE,
    MAPPINGS,
    OWN,
    PAIRS,
    SETTINGS,
    FullActivations,
    asked,
    channels,
    objective,
    of_other_pictures,
    pictures,
    recorded,
    residual_network,
    tapped,
    train_student,
    train_teacher,
)
from tlcourse.methods.fine_tuning import freeze
from tlcourse.training import Batch, cross_entropy, record, seed_everything

module = import_module("tlcourse.experiments.attention.attention")
CPU = torch.device("cpu")
TINY = LECTURE.but(images=40, validation=30, teacher_epochs=1, epochs=1)


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
def network(train):
    seed_everything(0)
    return freeze(residual_network(TINY, (10, 2), train))


@pytest.fixture
def teacher(network, train):
    return recorded(network, train)


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
    assert set(errors["arm"]) == set(EXPERIMENT.arms)
    assert set(errors["pair"]) == {*PAIRS, "both"}
    assert {judge(claim, rows).seeds for claim in EXPERIMENT.claims} == {2}
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
    scale = FULL.but(**sizes, teacher_epochs=1, epochs=1)
    rows = table(module.run(scale, 0, CPU), 0)
    found = rows[rows["metric"] == "errors"]
    assert set(found["arm"]) == set(EXPERIMENT.arms)
    assert found["value"].between(0, 100).all()
    assert {
        judge(claim, pd.concat([rows, rows.assign(seed=1)])).seeds for claim in EXPERIMENT.claims
    } == {2}


def test_a_scale_whose_data_are_not_on_board_is_not_missing(home, cifar10):
    assert {entry.scale for entry in ledger("attention")} == {"lecture", "full"}
    cifar10.parent.rename(home / "elsewhere")
    assert {(entry.scale, entry.status) for entry in ledger("attention")} == {
        ("lecture", "missing")
    }


@pytest.mark.parametrize("arm", OWN)
def test_a_teacher_that_is_asked_says_what_it_said_when_it_was_recorded(arm, train, network):
    setting, batch, losses = {"beta": 3.0, "T": 4.0, "alpha": 0.9}, batch_of(train), []
    for teacher in (asked(network), recorded(network, train)):
        seed_everything(1)  # for the convolutions of F-ActT
        sizes = [channels(TINY, size) for size in ((10, 1), (10, 2))]
        own = arm == "F-ActT"
        how = FullActivations(teacher, 3.0, *sizes) if own else objective(arm, teacher, setting)
        seed_everything(2)
        net = residual_network(TINY, (10, 1), train)
        losses.append(how(net, batch))
        losses[-1].backward()
        assert all(p.grad is None for p in network.parameters())
    torch.testing.assert_close(losses[0], losses[1])


def maps(A):
    return module.attention_map(A, 2)


def test_a_recorded_teacher_is_looked_up_by_index_and_looked_at_once(train, network, teacher):
    looks = []

    def look(A):
        looks.append(A.shape)
        return maps(A)

    for index in ([3, 1, 7], [0, 39]):
        logits, found = teacher(batch_of(train, index), look)
        everything = record(network, train, of=GROUPS)
        assert torch.equal(logits, module.predict(network, train)[index])
        assert {name: A.shape[1:] for name, A in found.items()} == {
            "group1": (14, 14),
            "group2": (7, 7),
            "group3": (4, 4),
        }
        assert all(torch.equal(found[name], maps(everything[name])[index]) for name in GROUPS)
    assert len(looks) == len(GROUPS)
    assert {shape[0] for shape in looks} == {len(train)}


@pytest.mark.parametrize("how", ["asked", "recorded"])
def test_a_teacher_of_other_pictures_says_what_it_says_of_the_one_before(how, train, network):
    teacher = asked(network) if how == "asked" else recorded(network, train)
    index = [0, 1, 2, 3]
    logits, found = of_other_pictures(teacher)(batch_of(train, index), maps)
    last = [3, 0, 1, 2] if how == "asked" else [-1, 0, 1, 2]  # of the batch, of all pictures
    expected, theirs = teacher(batch_of(train, last), maps)
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(found["group2"], theirs["group2"])
    assert not torch.equal(found["group2"], teacher(batch_of(train, index), maps)[1]["group2"])


def test_what_is_trained_is_said_once_for_tuning_and_measuring(train, monkeypatch):
    """Each arm has settings of its own, or takes those that were chosen for another."""
    monkeypatch.setattr(module, "train_student", lambda *how, **more: more.get("move", False))
    teachers = dict.fromkeys(PAIRS, lambda batch, look: None)
    found = [*module.cases(TINY, train, teachers, 0)]
    assert [case.arm for case in found] == [
        *("alone", "alone, shifted"),
        *(*OWN, "AT, other pictures"),
        *(*OWN, "AT, other pictures"),
    ]
    assert {case.arm: case.like for case in found if case.like} == {
        "alone, shifted": "alone",
        "AT, other pictures": "AT",
    }
    assert [case.at.get("pair") for case in found[1:3]] == [None, "wider"]
    assert [case.train({"lr": 1.0}) for case in found[:2]] == [False, True]


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
    for name, ours in zip(GROUPS, taken):  # record's layers may lie otherwise in memory
        torch.testing.assert_close(ours, expected[name], rtol=1e-5, atol=1e-5)
    assert [x.shape[2] for x in taken] == [14, 7, 4]
    torch.testing.assert_close(logits, net(train.pixels.float() / 255))


def batch_of(train, index=(3, 1, 7)):
    index = torch.tensor(index)
    return Batch(train.pixels[index].float() / 255, train.labels[index], index, 0.0)


def test_an_objective_is_labels_and_what_its_arm_adds(train, network, teacher):
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
    logits, features = tapped(net, batch.x)
    said, activations = teacher(batch, torch.Tensor.detach)
    theirs = list(activations.values())
    hard = F.cross_entropy(logits, batch.y)
    at = module.attention_transfer_loss(features, theirs, beta=3.0)
    code = module.attention_transfer_loss(features, theirs, beta=3.0, form="code")
    soft = module.distillation_loss(logits, said, batch.y, T=4, alpha=0.9)
    beta, both = {"beta": 3.0}, {"beta": 3.0, "T": 4.0, "alpha": 0.9}
    expected = {
        "AT": (beta, hard + at),
        "AT, code's form": (beta, hard + code),
        "KD": ({"T": 4.0, "alpha": 0.9}, soft),
        "AT+KD": (both, soft + at),
    }
    for arm, (setting, loss) in expected.items():
        torch.testing.assert_close(objective(arm, teacher, setting)(net, batch), loss)


def test_full_activations_train_a_convolution_where_channels_differ(train, teacher):
    ours, theirs = (channels(TINY, size) for size in ((10, 1), (10, 2)))
    how = FullActivations(teacher, 3.0, ours, theirs)
    assert sum(p.numel() for p in how.parameters()) == sum((c + 1) * 2 * c for c in (8, 16, 32))
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
    how(net, batch).backward()
    assert all(p.grad is not None for p in how.parameters())


def test_a_mapping_and_layers_can_be_chosen(train, teacher):
    net, batch = residual_network(TINY, (10, 1), train), batch_of(train)
    found = {
        name: objective("AT", teacher, {"beta": 30.0}, **change)(net, batch).item()
        for name, change in (MAPPINGS | LAYERS).items()
    }
    assert found.pop("sum, p = 2") == pytest.approx(found["all groups"])
    assert len({round(value, 4) for value in found.values()}) == len(found)
