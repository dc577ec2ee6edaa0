"""The live cells on clothes and digits: which rows the record holds."""

from importlib import import_module

import pytest
import torch

from tlcourse.data import load
from tlcourse.experiments.lwf.two_tasks import EXPERIMENT, new_head, untrained

forgetting = import_module("tlcourse.experiments.lwf.forgetting")
CPU = torch.device("cpu")


@pytest.fixture
def small(monkeypatch):
    def few(name, split="train"):
        return load(name, split).take(slice(0, 1_000 if split == "train" else 300))

    monkeypatch.setattr(forgetting, "load", few)


def test_every_network_is_asked_by_its_old_head_and_by_a_new_one(small):
    few = {"images": {"clothes": 200, "digits": 150}, "test_images": 60}
    scale = EXPERIMENT.scales["live"].but(**few, old_steps=3, steps=2, head_steps=2)
    rows = [row.as_dict() for row in EXPERIMENT.run(scale, 0, CPU)]
    found = {(row["arm"], row["metric"], row["task"]): row["value"] for row in rows}
    assert len(found) == len(rows)
    ways = {"fine-tuning", "fine-tuning, cold", "LwF"}
    never_saw_clothes = {"digits only", "untrained"}
    assert (
        {arm for arm, *_ in found} == set(EXPERIMENT.arms) == ways | never_saw_clothes | {"before"}
    )
    own = {(arm, task) for arm, metric, task in found if metric == "accuracy"}
    assert own == {(way, task) for way in ways for task in ("old", "new")} | {("before", "old")}
    anew = {(arm, task) for arm, metric, task in found if metric == "accuracy of a new head"}
    assert anew == {(arm, "old") for arm in EXPERIMENT.arms}
    assert all(0 <= value <= 100 for value in found.values())


def test_a_new_head_leaves_the_network_as_it_is(small):
    old = forgetting.load_task("clothes", 200, 60, 0, CPU)
    network = forgetting.first_task("old", old.train, 3, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    assert new_head(network, old, 2, seed=0) == new_head(network, old, 2, seed=0)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_untrained_is_another_network_that_has_learnt_nothing(small):
    old = forgetting.load_task("clothes", 200, 60, 0, CPU)
    network = forgetting.first_task("old", old.train, 3, seed=0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    fresh = untrained(network, seed=0).state_dict()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(torch.equal(value, before[name]) for name, value in fresh.items())
