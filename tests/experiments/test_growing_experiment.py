"""Ways to grow a network, by what is tuned, at the scale of seconds."""

from importlib import import_module

import pandas as pd
import pytest
import torch

from tlcourse import lecture
from tlcourse.claims import TUNING, judge
from tlcourse.methods.growing import ScaledNorm
from tlcourse.training import predict

fine_tuning = import_module("tlcourse.experiments.fine_tuning.fine_tuning")
module = import_module("tlcourse.experiments.fine_tuning.growing")
CPU = torch.device("cpu")
TINY = module.LECTURE.but(source_images=60, source_epochs=1, per_class=2, steps=3, test_images=40)
NEW = {"fc7.new.weight", "fc7.new.bias", "scaled.gamma", "head.weight", "head.bias"}


@pytest.fixture
def target(asked):
    return module.target_of(TINY, "digits 0-4", "digits 5-9", "test", 0, CPU)


def tables(*rows):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for seed, row in rows])


def test_tuning_and_seeds_hold_what_the_claims_ask_for(asked):
    tuning = tables(*((TUNING, row) for row in module.tune(TINY, TUNING, CPU)))
    assert {split for _, split in asked} == {"train"}
    assert set(tuning.groupby(["arm", "tuned"])["setting"].nunique()) == {len(module.SETTINGS)}
    settled = TINY.settle(tuning)
    rows = tables(*((seed, row) for seed in (0, 1) for row in module.run(settled, seed, CPU)))
    keys = ["seed", "arm", "metric", "tuned", "units", "when"]
    assert not rows.duplicated(keys).any()
    errors = rows[rows["metric"] == "errors"]
    assert set(errors[errors["tuned"] == "All"]["arm"]) == {*module.EXPERIMENT.arms}
    assert set(errors["tuned"]) == {*lecture.SUN397}
    assert {*lecture.SUN397["All"]} < set(errors["arm"])
    for claim in module.EXPERIMENT.claims:
        assert judge(claim, rows).verdict
    gain = rows[(rows["metric"] == "gain of tuning all") & (rows["arm"] == "WA, scaled")]
    by = errors[errors["arm"] == "WA, scaled"].pivot(index="seed", columns="tuned", values="value")
    assert gain["value"].tolist() == pytest.approx((by["New"] - by["All"]).tolist())
    gap = rows[(rows["metric"] == "gap to moving old layers") & (rows["arm"] == "WA, scaled")]
    tuned = errors[(errors["arm"] == "fine-tuning") & (errors["tuned"] == "FC6-new")]["value"]
    assert gap["value"].tolist() == pytest.approx((by["New"] - tuned.to_numpy()).tolist())


@pytest.mark.parametrize(
    ("column", "more"),
    [
        ("New", set()),
        ("FC7-new", {"fc7.old.weight", "fc7.old.bias"}),
        ("FC6-new", {"fc7.old.weight", "fc7.old.bias", "fc6.weight", "fc6.bias"}),
    ],
)
def test_a_column_tunes_what_it_says(target, column, more):
    data = module.seen_through(target.network[:4], target.few)
    rates = 1e-2, 1e-2
    net, _ = module.trained(TINY, target, "WA, scaled", column, data, data, 0, rates)
    begin = module.grown(target, "WA, scaled", 0)[0].state_dict()
    moved = {k for k, v in net.state_dict().items() if not torch.equal(v, begin[k])}
    assert moved == NEW | more


def test_in_the_last_column_everything_moves(target):
    images = target.few
    net, _ = module.trained(TINY, target, "WA, scaled", "All", images, images, 0, (1e-2, 1e-2))
    begin = module.grown(target, "WA, scaled", 0)[0].state_dict()
    assert all(not torch.equal(v, begin[k]) for k, v in net.state_dict().items())


@pytest.mark.parametrize("arm", module.GROWTHS)
def test_where_nothing_old_moves_the_rate_of_old_parts_makes_no_difference(target, arm):
    data = module.seen_through(target.network[:4], target.few)
    one, other = (
        module.trained(TINY, target, arm, "New", data, data, 0, (low, 1e-2))[0]
        for low in (1e-4, 1.0)
    )
    for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_only_the_scales_do_not_decay(target):
    network, old = module.grown(target, "WA, scaled", 0)
    learnt, new, gamma = module.groups(network, old, (0.1, 0.2))
    assert [group["lr"] for group in (learnt, new, gamma)] == [0.1, 0.2, 0.2]
    assert "weight_decay" not in learnt | new
    assert gamma["weight_decay"] == 0
    assert gamma["params"] == [network.scaled.gamma]
    many = [len(group["params"]) for group in (learnt, new, gamma)]
    assert many == [10, 4, 1]  # the old head is gone


def test_fine_tuning_with_the_norm_alone(target):
    network, _ = module.grown(target, "fine-tuning, scaled", 0)
    assert isinstance(network.scaled, ScaledNorm)
    lengths = predict(network[:-1], target.test).norm(dim=1)
    torch.testing.assert_close(lengths, torch.full_like(lengths, module.SCALE))
    assert torch.equal(network.fc7.weight, target.network.fc7.weight)


def test_a_network_from_scratch_has_the_same_parts_and_nothing_of_the_source(target):
    for arm, like in module.FROM_SCRATCH.items():
        one, other = (module.grown(target, name, 0)[0].state_dict() for name in (arm, like))
        assert {k: v.shape for k, v in one.items()} == {k: v.shape for k, v in other.items()}
        assert not torch.equal(one["block1.conv.weight"], other["block1.conv.weight"])


def test_old_and_new_units_apart(target):
    network, _ = module.grown(target, "WA, rand", 0)
    with torch.no_grad():
        network.head.weight[:, module.UNITS :] = 0  # new units say nothing
    rows = {
        (r.metric, r.at.get("units")): r.value
        for r in module.pace("WA, rand", "end", network, target.test)
    }
    assert rows["errors alone", "old"] == module.percent(network, target.test)
    features = predict(network[:-1], target.test)
    expected = features[:, module.UNITS :].norm(dim=1).mean().item()
    assert rows["length", "new"] == pytest.approx(expected)
    lead = rows["errors alone", "old"] - rows["errors alone", "new"]
    assert rows["lead of the new units", None] == lead
    assert rows["distance of old and new units", None] == abs(lead)
