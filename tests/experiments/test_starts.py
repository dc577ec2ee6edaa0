"""Starts anew and from sources, at the scale of seconds."""

from copy import deepcopy
from importlib import import_module

import pandas as pd
import pytest
import torch

from tlcourse.claims import TUNING, judge
from tlcourse.data import Images, load
from tlcourse.models import ConvNet

module = import_module("tlcourse.experiments.what_is_transfer_learning.starts")
CPU = torch.device("cpu")
TINY = module.LECTURE.but(
    sizes=(1, module.FEW, module.MANY),
    tuned_sizes=(1, 5),
    steps=2,
    images=150,
    epochs=1,
    judged=60,
)


def tables(*rows):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for seed, row in rows])


def pictures(images):
    return {picture.numpy().tobytes() for picture in images.pixels}


@pytest.fixture
def fits(monkeypatch):
    """What every call of `fit` is given; nothing is trained."""
    given = []
    monkeypatch.setattr(
        module, "fit", lambda net, data, how, **more: given.append((net, data, more))
    )
    return given


# rows and claims


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for_and_tuning_sees_no_target(asked):
    tuning = tables(*((TUNING, row) for row in module.tune(TINY, TUNING, CPU)))
    assert {*asked} == {("mnist", "train"), ("fashion_mnist", "train")}
    assert {*tuning.groupby(["arm", "tuned_at"])["setting"].nunique()} == {len(module.RATES)}
    assert {*tuning["arm"]} == {*module.ARMS}
    asked.clear()
    settled = TINY.settle(tuning)
    rows = tables(*((seed, row) for seed in (0, 1) for row in module.run(settled, seed, CPU)))
    assert {split for name, split in asked if name != "digits"} == {"train"}
    assert not rows.drop(columns="value").duplicated().any()
    errors = rows[rows["metric"] == "errors"].groupby("arm")["per_class"].agg(set).to_dict()
    assert errors == {arm: {0, *TINY.sizes} for arm in module.ARMS}
    assert {*rows[rows["metric"] == "moved"]["rate"]} == {*module.COMPARED}
    for claim in module.EXPERIMENT.claims:
        assert judge(claim, rows).seeds == 2


def test_a_live_cell_needs_no_tuning(asked):
    rows = tables(*((0, row) for row in module.run(module.LIVE.but(images=150, steps=2), 0, CPU)))
    assert {*rows["arm"]} == {*module.LIVE.arms} == {*module.LIVE.settings}
    assert {*rows["metric"]} == {"errors"}
    assert {*rows["per_class"]} == {0, module.FEW}
    assert {*module.LIVE.settings.values()} <= {*module.RATES.values()}


def test_errors_are_at_the_rate_of_each_arm_and_weights_compared_at_the_same(asked, fits):
    chosen = [
        {"arm": arm, "tuned_at": n, "setting": [*module.RATES][i], "value": 0.0, "seed": TUNING}
        for i, arm in enumerate(module.ARMS)
        for n in TINY.tuned_sizes
    ]
    rows = tables(*((0, row) for row in module.run(TINY.settle(pd.DataFrame(chosen)), 0, CPU)))
    rates, own = [more["lr"] for *_, more in fits[2:]], [*module.RATES.values()][:3]
    same = [module.RATES[rate] for rate in module.COMPARED for _ in module.ARMS]
    assert rates == [*own * len(TINY.sizes), *same]
    labels = [len(data) for _, data, _ in fits[2:]]
    counts = (*TINY.sizes, *[TINY.moved_at] * len(module.COMPARED))
    assert labels == [10 * n for n in counts for _ in module.ARMS]
    assert (rows[rows["metric"] == "moved"]["value"] == 0).all()  # as nothing was trained
    assert {(more["steps"], more["batch_size"]) for *_, more in fits[2:]} == {(TINY.steps, 32)}


def verdicts(metric, values, ids, **at):
    """Of five seeds with little spread, where each arm has so much of the metric."""
    rows = [
        {"seed": seed, "arm": arm, "metric": metric, "value": value + 0.1 * seed * i, **at, **more}
        for seed in range(5)
        for i, (arm, places) in enumerate(zip(module.ARMS, values))
        for value, more in places
    ]
    claims = {claim.id: claim for claim in module.EXPERIMENT.claims}
    return [judge(claims[name], pd.DataFrame(rows)).verdict for name in ids]


@pytest.mark.parametrize(
    ("heads", "a_lot", "more"),
    [
        ((45, 45, 45), "supported", "supported"),
        ((30, 45, 45), "supported", "supported"),
        ((30, 30, 45), "contradicted", "supported"),
        ((10, 10, 45), "contradicted", "contradicted"),
    ],
)
def test_a_lot_is_more_than_half_of_a_start_anew_in_five_of_six(heads, a_lot, more):
    def places(below, heads):
        for rate, head in zip(module.COMPARED, heads):
            yield below, {"rate": rate, "layer": module.EXTRACTOR}
            yield head, {"rate": rate, "layer": module.HEAD}

    values = [[*places(50, [80] * 3)], [*places(20, [20] * 3)], [*places(30, heads)]]
    assert verdicts("moved", values, ("I4", "I4r")) == [a_lot, more]


@pytest.mark.parametrize(
    ("per_class", "errors", "ids", "expected"),
    [
        (module.FEW, (40, 20, 45), ("I1", "I1r"), ["supported"] * 2),
        (module.FEW, (40, 50, 20), ("I1", "I1r"), ["contradicted"] * 2),
        (module.MANY, (3, 2.8, 5), ("I1c",), ["supported"]),
        (module.MANY, (6, 2, 5), ("I1c",), ["contradicted"]),
    ],
)
def test_what_decides_about_errors(per_class, errors, ids, expected):
    values = [[(error, {})] for error in errors]
    assert verdicts("errors", values, ids, per_class=per_class) == expected


# data


def test_to_choose_rates_no_picture_is_in_two_places_and_none_is_a_test_image(asked, fits):
    task = module.coarse_clothes(TINY, 0, CPU)
    source, other = (data for _, data, _ in fits)
    clothes, digits = (load(name).take(slice(3_000)) for name in ("fashion_mnist", "mnist"))
    assert pictures(source) <= pictures(clothes)
    assert pictures(other) <= pictures(digits)
    assert (len(source), len(other), len(task.pool), len(task.test)) == (150, 150, 100, 60)
    seen = [*map(pictures, (module.coarse(source), task.pool, task.test))]
    assert sum(map(len, seen)) == len(set.union(*seen)) == 310


def test_scans_are_learnt_from_and_tested_on_apart_and_fewer_are_some_of_more(asked, fits):
    task = module.scans(TINY, 0, CPU)
    assert torch.equal(task.pool.pixels, load("digits").pixels)
    assert torch.equal(task.test.pixels, load("digits", "test").pixels[:300])
    few = [case.train.args[2] for case, _ in module.cases(TINY, task, (2, 5), 0)]
    assert pictures(few[0]) < pictures(few[-1])
    assert all(torch.equal(few[0].pixels, images.pixels) for images in few[1:3])


def test_coarse_pictures_are_means_of_blocks_of_four_by_four():
    x = torch.arange(28 * 28).view(1, 1, 28, 28) % 251
    images = Images(x.byte(), torch.zeros(1).long(), ("0",), "one")
    found = module.coarse(images).pixels
    assert found.dtype == torch.uint8
    blocks = x.double().view(7, 4, 7, 4).mean((1, 3)).round()
    wide = blocks.repeat_interleave(4, 0).repeat_interleave(4, 1)
    assert torch.equal(found[0, 0].double(), wide)


# starts, and how far it goes from them


def test_all_begin_alike_and_each_source_is_learnt_by_its_own_arm(asked, fits):
    found = module.scans(TINY, 3, CPU).starts
    assert [*found] == [*module.ARMS]
    (one, related, _), (two, unrelated, _) = fits
    assert (one, two) == (found[module.RELATED], found[module.UNRELATED])
    assert (related.name, unrelated.name) == ("mnist", "fashion_mnist")
    states = [network.state_dict() for network in found.values()]
    for other in states[1:]:
        assert all(torch.equal(states[0][key], other[key]) for key in other)
    again = module.scans(TINY, 4, CPU).starts[module.ANEW]
    assert not torch.equal(again.head.weight, found[module.ANEW].head.weight)


def test_a_start_stays_as_it_is_and_all_of_the_network_goes_on(asked):
    start = ConvNet()
    before = deepcopy(start.state_dict())
    few = load("digits").per_class(5, 0)
    end = module.learn(TINY.but(steps=5), start, few, 0, 0.02)
    assert all(torch.equal(value, before[key]) for key, value in start.state_dict().items())
    assert all(not torch.equal(value, before[key]) for key, value in end.state_dict().items())
    found = module.moved(start, end)
    layers = ["block1", "block2", "block3", "fc6", "fc7", module.HEAD]
    assert [*found] == [module.EXTRACTOR, *layers]
    assert min(found.values()) > 0


def test_how_far_weights_went_by_hand():
    start = ConvNet()
    for parameter in start.parameters():
        torch.nn.init.constant_(parameter, 2.0)
    end = deepcopy(start)
    with torch.no_grad():
        end.fc7.weight += 1.0  # not the biases
        end.head.bias -= 3.0
    found = module.moved(start, end)
    assert found["fc7"] == pytest.approx(50 * (128**2 / (128**2 + 128)) ** 0.5)
    assert found[module.HEAD] == pytest.approx(150 * (10 / (10 * 128 + 10)) ** 0.5)
    assert found["block1"] == found["fc6"] == 0
    below = sum(p.numel() for p in start[:-1].parameters())
    assert found[module.EXTRACTOR] == pytest.approx(50 * (128**2 / below) ** 0.5)
