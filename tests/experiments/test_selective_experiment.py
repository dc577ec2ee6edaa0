"""What is borrowed from a pool, at the scale of seconds: who sees what, and who asks for more."""

from collections import Counter
from dataclasses import replace
from functools import cache
from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from torch.testing import assert_close

from tlcourse import lecture
from tlcourse.claims import TUNING, judge
from tlcourse.data import load

module = import_module("tlcourse.experiments.multi_task_learning.selective")
CPU, SETTINGS, KINDS = torch.device("cpu"), module.SETTINGS, module.KINDS
TINY = module.LECTURE.but(
    shares=(5, 10),
    sizes=(2, 5, 20),
    pool=320,
    source_steps=1,
    neighbours=2,
    steps=3,
)
WEIGHED = {"lr": 1e-2, "weight": 0.5}
ON_TARGET = ("from scratch", "fine-tuning")
NEW = ("from scratch", "selective from scratch")


@cache
def few(name, split="train"):
    return load(name, split).take(slice(0, None if name == "digits" else 3_000))


@pytest.fixture(autouse=True)
def asked(monkeypatch):
    """Which images were loaded: name and split."""
    names = []
    monkeypatch.setattr(
        module, "load", lambda name, split="train": names.append((name, split)) or few(name, split)
    )
    return names


@pytest.fixture
def task():
    return module.task_of(TINY, "digits", 10, 0, CPU).but(2)


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


def pictures(pixels):
    return Counter(picture.tobytes() for picture in pixels.numpy())


def lists(task, arms=tuple(SETTINGS)):
    """By arm, the lists that its case trains with."""
    return {case.arm: case.train.args[3] for case in module.cases(TINY, task, arms)}


# rows and claims


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for(asked, monkeypatch):
    monkeypatch.setattr(
        module,
        "retrieved",
        lambda task, k, gabor=False: torch.rand(len(task.target), 320).argsort(1)[:, :k],
    )
    tuning = table(module.tune(TINY, TUNING, CPU), TUNING)
    assert {*asked} == {("fashion_mnist", "test"), ("fashion_mnist", "train"), ("mnist", "train")}
    assert {*tuning.groupby(["arm", "per_class"])["setting"].nunique()} == {4}
    assert {*tuning["arm"]} == {*SETTINGS}
    asked.clear()
    settled = TINY.settle(tuning)
    rows = pd.concat([table(module.run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert {("digits", "train"), ("digits", "test")} < {*asked}
    keys = ["seed", "arm", "metric", "share", "per_class", "kind", "round"]
    assert not rows.duplicated(keys).any()
    found = rows[rows["metric"] == "accuracy"]
    assert {*found["arm"]} == {*module.EXPERIMENT.arms}
    at = {
        key: {*map(tuple, group[["share", "per_class"]].values)}
        for key, group in found.groupby("arm")
    }
    assert at["selective"] == at["fine-tuning"] == {(5, 5), (10, 2), (10, 5), (10, 20)}
    assert at["useful sources"] == at["random sources"] == {(5, 5), (10, 5)}
    assert at["from scratch"] == at["selective from scratch"] == {(10, 2), (10, 5), (10, 20)}
    by = found[found["share"] == 10].pivot(
        index=["seed", "per_class"], columns="arm", values="value"
    )
    gain = (by["selective from scratch"] - by["from scratch"]).unstack()
    extra = rows[rows["metric"] == "gain with few over many"]["value"]
    assert [*extra] == pytest.approx([*(gain[2] - gain[20])])
    for claim in module.EXPERIMENT.claims:
        assert judge(claim, rows).seeds == 2


def test_a_live_cell_needs_no_tuning():
    small = module.LIVE.but(pool=320, source_steps=1, neighbours=2, steps=3)
    rows = table(module.run(small, 0, CPU), 0)
    assert {*rows["arm"]} == {*module.LIVE.arms} == {*module.LIVE.settings}
    assert {*rows["share"]} == {10}
    assert {*rows["per_class"]} == {5}
    assert all(s in SETTINGS[arm].values() for arm, s in module.LIVE.settings.items())


def test_fusion_is_the_mean_of_what_two_networks_hold_likely(monkeypatch):
    """One says 0 loudly and 2 a little; the other says 1 a little less loudly, and also 2."""
    heard = iter([[5.0, -5, 4.9], [-5.0, 5, 4.9]])
    monkeypatch.setattr(
        module, "trained", lambda *_: module.Learnt(None, *[torch.ones(9, 9).long()] * 3)
    )
    monkeypatch.setattr(module, "borrowed", lambda *_: ())
    monkeypatch.setattr(
        module,
        "predict",
        lambda _, test: torch.tensor([next(heard) + [-9.0] * 7]).expand(len(test), -1),
    )
    arms = ("selective, Gabor", "selective")
    small = TINY.but(shares=(10,), sizes=(5,), arms=arms, tuning_seeds=0)
    rows = table(module.run(small.but(settings=dict.fromkeys(arms)), 0, CPU), 0)
    test = module.task_of(small, "digits", 10, 0, CPU).test
    shares = {arm: 100 * (test.labels == c).float().mean().item() for c, arm in enumerate(arms)}
    shares["selective, fusion"] = 100 * (test.labels == 2).float().mean().item()
    assert rows.set_index("arm")["value"].to_dict() == pytest.approx(shares)


def test_gain_with_few_over_many_is_that_at_the_smallest_size_less_that_at_the_largest(monkeypatch):
    """From scratch it is right about n in a hundred; jointly, with 2 a class, about 30 more."""
    right = {("from scratch", n): n for n in (2, 5, 20)}
    right |= {("selective from scratch", 2): 32, ("selective from scratch", 5): 9}
    right["selective from scratch", 20] = 25

    def predict(net, test):
        wrong = torch.arange(len(test)) >= round(right[net] / 100 * len(test))
        return 9.0 * torch.nn.functional.one_hot((test.labels + wrong) % 10, 10)

    learnt = lambda _, __, arm, order, ___: module.Learnt((arm, len(order) // 10), *[None] * 3)  # noqa: E731
    monkeypatch.setattr(module, "trained", learnt)
    monkeypatch.setattr(module, "borrowed", lambda *_: ())
    monkeypatch.setattr(module, "predict", predict)
    small = TINY.but(shares=(10,), arms=NEW, tuning_seeds=0, settings=dict.fromkeys(NEW))
    rows = table(module.run(small, 0, CPU), 0)
    gain = rows[rows["metric"] == "gain with few over many"]["value"].item()
    assert gain == pytest.approx(30 - 5, abs=0.2)


def test_claims_quote_the_lecture_and_arms_are_called_as_there():
    paper = {claim.id: claim.paper for claim in module.EXPERIMENT.claims}
    assert paper["S2"] == "+9.8 (Dogs), +2.4 (Flowers)"
    assert paper["S8"] == "+0.1 (Dogs), +1.1 (Flowers)"
    assert {*lecture.SELECTIVE["Dogs"]} <= {*module.EXPERIMENT.arms}


# target and pool


def test_every_digit_is_learnt_from_or_tested_on_and_fewer_are_some_of_more(task):
    whole = module.task_of(TINY, "digits", 10, 0, CPU)
    scans = torch.cat([load("digits", split).pixels for split in ("train", "test")])
    every = pictures(whole.target.pixels) + pictures(whole.test.pixels)
    assert every == pictures(module.camera(scans))
    assert torch.bincount(whole.target.labels).tolist() == [20] * 10
    sizes = [pictures(whole.but(n).target.pixels) for n in (2, 5, 10, 20)]
    assert [size.total() for size in sizes] == [20, 50, 100, 200]
    assert all(small < large for small, large in pairwise(sizes))
    assert whole.but(5).test is whole.test


@pytest.mark.parametrize("share", [5, 10, 20, 40])
@pytest.mark.parametrize("name", ["digits", "fashion_mnist"])
def test_a_pool_holds_the_share_that_it_says(name, share):
    pool, kind = module.pool_of(name, 320, share, seed=0)
    useful, *others = torch.bincount(kind).tolist()
    assert useful == 320 * share // 100
    assert len({*others}) == 1
    assert useful + sum(others) == len(pool) == 320
    same, other = (few(source).pixels for source in module.SOURCES[name])
    seen = same, other, 255 - same, torch.rot90(same, 1, (2, 3))
    for i, pixels in enumerate(seen):
        own = pool.take(kind == i)
        assert pictures(own.pixels).keys() <= pictures(module.camera(pixels)).keys()
        assert {pool.classes[c].rsplit(" ", 1)[0] for c in own.labels} == {KINDS[i]}
    labels = few(module.SOURCES[name][0]).labels
    at = {picture.tobytes(): c for picture, c in zip(module.camera(same).numpy(), labels.tolist())}
    own = pool.take(kind == 0)
    assert [at[picture.tobytes()] for picture in own.pixels.numpy()] == own.labels.tolist()


def test_photos_are_patches_of_each(monkeypatch):
    squares, which = module.patches(40, seed=0)
    assert squares.shape == (40, 1, 28, 28)
    assert torch.bincount(which).tolist() == [10] * 4
    monkeypatch.setattr(module, "photo", lambda name: torch.full((3, 80, 90), len(name)))
    flat, which = module.patches(40, seed=0)
    names = [*module.PHOTOS]
    assert [len(names[i]) for i in which] == flat[:, 0, 5, 5].tolist()


def test_the_camera_keeps_eight_by_eight_pixels():
    x = few("mnist").pixels[:5]
    seen = module.camera(x)
    assert seen.dtype == torch.uint8
    assert seen.shape == x.shape
    assert_close(seen.float().mean((2, 3)), x.float().mean((2, 3)), atol=3, rtol=0.1)
    blocks = (
        x.repeat_interleave(2, 2).repeat_interleave(2, 3).view(5, 8, 7, 8, 7).float().mean((2, 4))
    )
    inside = seen[..., 14, 14].float().flatten()
    assert_close(inside, blocks[:, 3:5, 3:5].mean((1, 2)), atol=25, rtol=0.1)


# retrieval


@pytest.mark.parametrize("gabor", [True, False])
def test_retrieval_sees_no_label_and_no_test_picture(task, gabor):
    found = module.retrieved(task, 3, gabor)
    blind = replace(task.pool, labels=torch.zeros_like(task.pool.labels))
    target = replace(task.target, labels=torch.zeros_like(task.target.labels))
    changed = task._replace(pool=blind, target=target, test=None, kind=None)
    assert torch.equal(module.retrieved(changed, 3, gabor), found)


def test_a_target_picture_that_is_in_the_pool_is_found(task):
    pool = task.pool.pixels.clone()
    pool[100:120] = task.target.pixels
    task = task._replace(pool=replace(task.pool, pixels=pool))
    for gabor in (True, False):
        assert module.retrieved(task, 1, gabor)[:, 0].tolist() == [*range(100, 120)]


def test_random_and_useful_pictures_take_the_places_of_the_nearest(task):
    found = lists(task)
    nearest, random, useful = (
        found[f"{arm}"] for arm in ("selective", "random sources", "useful sources")
    )
    assert nearest.shape == random.shape == useful.shape == (20, 18)
    assert torch.equal(nearest, found["selective, not iterated"])
    assert torch.equal(nearest, found["selective from scratch"])
    assert not torch.equal(nearest, found["selective, Gabor"])
    assert torch.equal(
        nearest.flatten()[:, None] == nearest.flatten(),
        random.flatten()[:, None] == random.flatten(),
    )
    for k in (1, 2, 18):
        assert len(random[:, :k].unique()) == len(nearest[:, :k].unique())
    assert (task.kind[useful] == 0).all()
    assert len(useful.unique()) == min((task.kind == 0).sum(), len(nearest.unique()))
    chance = (task.kind[random] == 0).float().mean()
    assert chance < 0.5 * (task.kind[nearest] == 0).float().mean()
    assert found["all sources"].tolist() == [[*range(320)]] * 20


# training


@pytest.fixture
def fits(monkeypatch):
    """What every call of `fit` is given, what the network is like, and the batches it draws."""
    seen, fit = [], module.fit

    def spy(net, data, how, **settings):
        weights = {name: p.detach().clone() for name, p in net.named_parameters()}
        now = SimpleNamespace(net=net, weights=weights, data=data, settings=settings, pairs=[])
        seen.append(now)

        def watched(net, both):
            now.pairs.append((both["target"].index, both["source"].index))
            return how(net, both)

        return fit(net, data, watched, **settings)

    monkeypatch.setattr(module, "fit", spy)
    return seen


def test_arms_begin_alike_and_see_the_same_target_batches(task, fits):
    began = {}
    for case in module.cases(TINY, task, [*SETTINGS]):
        fits.clear()
        case.train(next(iter(case.settings.values())))
        assert len(fits) == TINY.parts
        assert [fit.settings["steps"] for fit in fits] == [1] * 3
        began[case.arm] = fits[0].weights, [pair[0].tolist() for fit in fits for pair in fit.pairs]
    (one, order), *_ = began.values()
    assert len({*map(tuple, order)}) == 3
    assert {len(batch) for batch in order} == {50}
    source = {name: p.detach() for name, p in task.network.named_parameters()}
    scratch = began["from scratch"][0]
    for arm, (weights, batches) in began.items():
        assert batches == order
        assert torch.equal(weights["heads.target.weight"], one["heads.target.weight"])
        for name in ("fc6.weight", "block1.conv.weight"):
            same = scratch[f"trunk.{name}"] if arm in NEW else source[name]
            assert torch.equal(weights[f"trunk.{name}"], same)
    assert not torch.equal(scratch["trunk.fc6.weight"], source["fc6.weight"])


def test_every_target_picture_is_seen_beside_one_of_its_own(task, fits):
    for arm in ("selective, not iterated", "random sources", "all sources"):
        fits.clear()
        order = lists(task, [arm])[arm] if arm in ("selective, not iterated",) else lists(task)[arm]
        module.trained(TINY.but(steps=30), task, arm, order, WEIGHED)
        for at, source in (pair for fit in fits for pair in fit.pairs):
            most = 320 if arm == "all sources" else 18 if arm == "random sources" else 2
            own = order[at % 20, :most]
            assert (own == source[:, None]).any(1).all()


def says(*kinds):
    """Logits of the 20 target pictures: the first few wrong or unsure, the others right."""

    def predict(net, images):
        logits = 50.0 * torch.nn.functional.one_hot(images.labels, 10)
        for i, kind in enumerate(kinds):
            logits[i] = logits[i].roll(1) if kind == "wrong" else logits[i] / 20
        return logits

    return predict


def test_the_wrong_get_four_times_more_the_unsure_twice_and_the_sure_none(task, fits, monkeypatch):
    monkeypatch.setattr(module, "predict", says("wrong", "unsure"))
    order = lists(task)["selective"]
    its = module.trained(TINY, task, "selective", order, WEIGHED)
    assert [row[:3] for row in its.counts.tolist()] == [[2, 2, 2], [10, 6, 2], [18, 10, 2]]
    assert len({id(fit.net) for fit in fits}) == 1  # it goes on with the network
    tables = [fit.data.neighbours for fit in fits]
    for given, counts in zip(tables, its.counts):
        assert len(given) == 100
        for i, n in enumerate(counts.tolist()):
            assert {*given[i].tolist()} == {*given[i + 80].tolist()} == {*order[i, :n].tolist()}
    assert torch.equal(its.table, tables[-1][:20])


@pytest.mark.parametrize("arm", ["selective", "selective, not iterated"])
def test_without_rounds_or_where_all_are_sure_the_parts_are_trained_all_the_same(
    task, fits, monkeypatch, arm
):
    monkeypatch.setattr(module, "predict", says(*["wrong"] * ("not" in arm)))
    its = module.trained(TINY, task, arm, lists(task)[arm], WEIGHED)
    assert its.counts.tolist() == [[2] * 20]
    assert [fit.settings["seed"] for fit in fits] == [0, 1, 2]
    assert all(torch.equal(fit.data.neighbours, fits[0].data.neighbours) for fit in fits)


@pytest.mark.parametrize("arm", ON_TARGET)
def test_without_weight_no_source_is_looked_at(task, arm):
    setting = next(iter(SETTINGS[arm].values()))
    one, other = (
        module.trained(TINY, task, arm, lists(task)[name], setting).network.state_dict()
        for name in ("selective", "random sources")
    )
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert {setting["weight"] for a in ON_TARGET for setting in SETTINGS[a].values()} == {0}
    joint = [
        s["weight"] for a, many in SETTINGS.items() if a not in ON_TARGET for s in many.values()
    ]
    assert min(joint) > 0


def test_what_was_borrowed_by_hand(task):
    """Two target pictures, of the classes 3 and 4; one asked for more after the second part."""
    kind = torch.tensor([0, 0, 0, 1, 4, 4])
    pool = task.pool.take(slice(0, 6))
    pool = replace(pool, labels=torch.tensor([3, 3, 4, 13, 40, 41]))
    target = replace(task.target.take(slice(0, 2)), labels=torch.tensor([3, 4]))
    task = task._replace(pool=pool, kind=kind, target=target)
    order = torch.tensor([[0, 3, 4, 5], [0, 2, 1, 3]])
    drawn = torch.tensor([[0, 3, 0, 3], [0, 2, 1, 3]])
    counts = torch.tensor([[2, 2], [2, 2], [2, 10]])
    its = module.Learnt(None, order, drawn, counts)
    rows = [
        (metric, value, *more.values())
        for metric, value, more in module.borrowed("selective", task, its)
    ]
    assert rows == [
        (
            "source pictures",
            4,
        ),
        ("useful", 62.5),
        ("nearest", 75.0, "useful"),
        ("nearest", 25.0, "other things"),
        ("nearest", 0.0, "inverted"),
        ("nearest", 0.0, "turned"),
        ("nearest", 0.0, "photos"),
        ("useful ones of the same class", pytest.approx(200 / 3)),
        ("misclassified", 0.0, 1),
        ("uncertain", 0.0, 1),
        ("misclassified", 50.0, 2),
        ("uncertain", 0.0, 2),
    ]
    assert [m for m, *_ in module.borrowed("all sources", task, its)] == [
        "source pictures",
        "useful",
    ]
    assert [*module.borrowed("fine-tuning", task, its)] == []
