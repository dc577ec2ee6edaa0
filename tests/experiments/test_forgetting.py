"""Forgetting at the scale of seconds: what each way sees, records, leaves alone and costs."""

from functools import cache
from importlib import import_module

import pandas as pd
import pytest
import torch
from common import same, state

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.lwf.forgetting import (
    COLD,
    EXPERIMENT,
    LECTURE,
    PAIRS,
    SETTINGS,
    WAYS,
    Task,
    first_task,
    learn,
    load_task,
)
from tlcourse.experiments.lwf.lwf_cost import bytes_for_backward
from tlcourse.experiments.lwf.task_sequence import LINES, SEQUENCES
from tlcourse.training import predict

module, sequence, cost = (
    import_module(f"tlcourse.experiments.lwf.{name}")
    for name in ("forgetting", "task_sequence", "lwf_cost")
)
CPU = torch.device("cpu")
TINY = LECTURE.but(old_images=200, new_images=150, test_images=60, old_steps=3, steps=2)


@cache
def few(name, split="train"):
    return load(name, split).take(slice(0, 1_000 if split == "train" else 300))


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(module, "load", few)
    monkeypatch.setattr(sequence, "load", few)


@pytest.fixture
def tasks(small):
    return [load_task(name, 200, 60, 0, CPU) for name in ("clothes", "digits")]


@pytest.fixture
def network(tasks):
    return first_task("old", tasks[0].train, 3, seed=0)


@pytest.mark.slow
def test_tuning_and_seeds_hold_all_that_the_claims_ask_for(small, monkeypatch):
    monkeypatch.setattr(
        module,
        "SETTINGS",
        {way: dict(list(settings.items())[:1]) for way, settings in SETTINGS.items()},
    )
    settled = TINY.settle(table(module.tune(TINY, TUNING, CPU), TUNING))
    rows = pd.concat([table(module.run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert {*EXPERIMENT.arms, "near", "far"} == set(rows["arm"])
    assert {judge(claim, rows).seeds for claim in EXPERIMENT.claims} == {2}
    found = rows[
        (rows["seed"] == 0) & (rows["arm"] == "LwF") & (rows["metric"] == "accuracy")
    ].set_index(["pair", "task"])["value"]
    for old, new in PAIRS:
        pair = f"{old} → {new}"
        assert found[pair, "both"] == pytest.approx((found[pair, "old"] + found[pair, "new"]) / 2)
    assert found["all", "old"] == pytest.approx(
        sum(found[f"{a} → {b}", "old"] for a, b in PAIRS) / 4
    )


@pytest.mark.slow
def test_tuning_gives_every_way_as_many_settings_and_never_sees_a_test_image(small, monkeypatch):
    real = module.load_task
    monkeypatch.setattr(module, "load_task", lambda *how: Task(*real(*how)[:2], test=None))
    monkeypatch.setattr(module, "PAIRS", PAIRS[:1])
    rows = table(module.tune(TINY, TUNING, CPU), TUNING)
    assert rows.groupby("arm")["setting"].nunique().to_dict() == dict.fromkeys(WAYS, 4)
    assert {len(settings) for settings in SETTINGS.values()} == {4}


@pytest.mark.parametrize("way", WAYS)
def test_a_way_leaves_the_network_it_starts_from_and_trains_what_it_says(way, tasks, network):
    old, new = tasks
    before = state(network)
    net = learn(
        network, way, "new", new.train, {"old": old.train}, lr=1e-2, weight=1.0, steps=3, seed=0
    )
    assert same(state(network), before)
    plan = WAYS[way]
    moved = {
        name
        for name, value in state(network).items()
        if not torch.equal(value, net.state_dict()[name])
    }
    assert any("fc7" in name for name in moved) == (plan.trunk != "nothing")
    assert any("block" in name for name in moved) == (plan.trunk == "all")
    assert any("heads.old" in name for name in moved) == plan.old_heads


def test_only_joint_training_looks_at_the_old_images(tasks, network):
    old, new = tasks
    for way in WAYS:
        settings = {"lr": 1e-2, "weight": 1.0, "steps": 2, "seed": 0}
        there = learn(network, way, "new", new.train, {"old": old.train}, **settings)
        other = learn(network, way, "new", new.train, {"old": old.validation}, **settings)
        assert same(state(there), state(other)) == (way != "joint training")


def test_responses_are_recorded_first_and_the_warm_up_moves_the_new_head_alone(
    tasks, network, monkeypatch
):
    _, new = tasks
    real, calls, held = module.fit, [], []

    def fit(model, *how, **settings):
        calls.append((model, state(model)))
        return real(model, *how, **settings)

    monkeypatch.setattr(module, "fit", fit)
    monkeypatch.setattr(
        module,
        "objective",
        lambda way, task, answers, *rest: (
            held.append(answers) or OBJECTIVE(way, task, answers, *rest)
        ),
    )
    net = learn(network, "LwF", "new", new.train, {}, lr=1e-2, weight=1.0, steps=3, seed=0)
    (head, fresh), (whole, warm) = calls
    assert head is net.heads["new"]
    assert whole is net
    assert not torch.equal(fresh["weight"], warm["heads.new.weight"])
    assert all(torch.equal(value, warm[name]) for name, value in state(network).items())
    assert torch.equal(held[0]["old"], predict(network, new.train, "old"))


OBJECTIVE = module.objective


def test_lwf_of_weight_zero_is_fine_tuning(tasks, network):
    _, new = tasks
    a, b = (
        learn(network, way, "new", new.train, {}, lr=1e-3, weight=0.0, steps=3, seed=0)
        for way in ("LwF", "fine-tuning")
    )
    assert same(state(a), state(b))


def test_cold_is_without_warm_up(tasks, network):
    _, new = tasks
    assert set(COLD) <= set(WAYS)
    a, b = (
        learn(network, "LwF", "new", new.train, {}, lr=1e-3, steps=3, seed=0, warm_up=warm)
        for warm in (True, False)
    )
    assert not same(state(a), state(b))


@pytest.mark.slow
def test_sequences_hold_every_line_and_their_ends_agree_with_the_curves(small):
    lecture = sequence.EXPERIMENT.scales["lecture"]
    scale = lecture.but(images=150, test_images=40, steps=4)
    rows = table(sequence.run(scale, 0, CPU), 0)
    assert set(rows["arm"]) == set(sequence.EXPERIMENT.arms)
    for name, tasks in SEQUENCES.items():
        for arm, weight in LINES:
            line = rows[
                (rows["sequence"] == name) & (rows["arm"] == arm) & (rows["weight"] == weight)
            ].set_index("metric")
            curve = line.loc["accuracy"]
            assert set(curve["task"]) == set(tasks)
            last = curve[curve["stage"] == len(tasks)]
            assert last[last["epoch"] == last["epoch"].max()]["value"].mean() == pytest.approx(
                line.loc["average accuracy", "value"]
            )
            assert line.loc["forgetting", "value"] >= -line.loc["backward transfer", "value"] - 1e-9
            if arm == "feature extraction":
                assert line.loc["forgetting", "value"] == 0


@pytest.mark.slow
def test_what_it_costs(monkeypatch):
    monkeypatch.setattr(module, "load", few)
    scale = cost.EXPERIMENT.scales["lecture"].but(images=200, steps=2)
    rows = pd.concat([table(cost.run(scale, seed, CPU), seed) for seed in (0, 1)])
    value = rows.groupby(["arm", "metric"])["value"].mean()
    assert value["fine-tuning", "bytes kept of the old task"] == 0
    assert value["LwF", "bytes kept of the old task"] == 200 * 10 * 4
    assert value["joint training", "bytes kept of the old task"] == 200 * (28 * 28 + 8)
    assert (
        1.9
        < value["joint training", "bytes for the backward pass"]
        / value["LwF", "bytes for the backward pass"]
        < 2.0
    )
    assert value["LwF", "difference without old data"] == 0
    assert {judge(claim, rows).seeds for claim in cost.EXPERIMENT.claims} == {2}


def test_bytes_are_counted_once_per_tensor():
    x = torch.ones(1_000, requires_grad=True)
    assert bytes_for_backward(lambda: (x * x).sum()) == 4_000
    y = torch.ones(1_000)
    assert bytes_for_backward(lambda: (x * y).sum()) == 4_000
