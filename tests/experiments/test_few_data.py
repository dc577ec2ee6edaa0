"""Few pictures and a teacher's Jacobians at the scale of seconds: who sees and minimises what."""

from importlib import import_module
from itertools import pairwise
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.jacobian_matching.few_data import (
    ACT,
    BOTH,
    EXPERIMENT,
    LECTURE,
    LIVE,
    NO_LABELS,
    NOISY,
    SETTINGS,
    cases,
    crossing,
    objective,
    recorded,
    run,
    train_student,
    train_teacher,
    tune,
)
from tlcourse.methods.jacobian import class_jacobian, jacobian_loss
from tlcourse.models import ConvNet
from tlcourse.training import Batch, seed_everything

module = import_module("tlcourse.experiments.jacobian_matching.few_data")
CPU = torch.device("cpu")
SMALL = {"pool": 12, "teacher_epochs": 1, "steps": 1, "many_steps": 1, "test_images": 40}
TINY = LECTURE.but(**SMALL, sizes=(1, 5, 10, 12), tuned_at=(5, 12))


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture
def pool():
    return load("mnist").take(slice(0, 400)).per_class(12, seed=0)


@pytest.fixture
def network(pool):
    """A teacher that has learnt little, but says it aloud."""
    network = train_teacher(TINY, pool, 0)
    network.head.weight.data *= 100
    return network


@pytest.fixture
def fits(monkeypatch):
    """What every call of `fit` is given, the weights it begins with, and the batches it draws."""
    seen, fit = [], module.fit

    def spy(model, data, how, **settings):
        weights = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        now = SimpleNamespace(weights=weights, data=data, settings=settings, index=[])
        seen.append(now)

        def watched(net, batch):
            now.index.append(batch.index.tolist())
            return how(net, batch)

        return fit(model, data, watched, **settings)

    monkeypatch.setattr(module, "fit", spy)
    return seen


def pictures(images):
    return {picture.tobytes() for picture in images.pixels.numpy()}


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for(asked):
    tuning = table(tune(TINY, TUNING, CPU), TUNING)
    assert {*asked} == {("mnist", "train")}
    assert set(tuning.groupby(["arm", "tuned_at"])["setting"].nunique()) == {4}
    assert set(tuning["arm"]) == set(SETTINGS)
    asked.clear()
    settled = TINY.settle(tuning).but(sizes=(1, 5, 10))
    rows = pd.concat([table(run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert {*asked} == {("fashion_mnist", "train"), ("fashion_mnist", "test")}
    found = rows[rows["metric"] == "accuracy"]
    assert set(found["arm"]) == {*EXPERIMENT.arms}
    assert found["value"].between(0, 100).all()
    gains = found.pivot(index=["seed", "per_class"], columns="arm", values="value")
    for seed, gain in (gains[BOTH] - gains[ACT]).groupby("seed"):
        value = rows[(rows["metric"] == "crossing") & (rows["seed"] == seed)]["value"].item()
        assert value == pytest.approx(crossing((1, 5, 10), [*gain]))
    one = found[found["per_class"] == 5]
    whole = pd.concat([one.assign(per_class=n) for n in LECTURE.sizes])  # as if measured there
    assert {judge(claim, whole).seeds for claim in EXPERIMENT.claims} == {2}


def test_tuning_judges_by_pictures_that_no_network_learns_from(asked, fits, monkeypatch):
    judged, percent = [], module.percent
    monkeypatch.setattr(module, "SETTINGS", {"CE": {"one": {"lr": 1e-3}}})
    monkeypatch.setattr(module, "percent", lambda *a: judged.append(a[1]) or percent(*a))
    list(tune(TINY.but(arms=("CE",)), TUNING, CPU))
    learnt = set().union(*(pictures(fit.data) for fit in fits))
    assert len(learnt) == 120
    assert all(learnt.isdisjoint(pictures(images)) for images in judged)


def test_a_live_cell_needs_no_tuning(asked):
    rows = table(run(LIVE.but(**SMALL), 0, CPU), 0)
    assert [*rows["arm"]] == ["teacher", *LIVE.arms]
    assert {*rows["per_class"]} == {5}
    assert {*LIVE.settings} == {*LIVE.arms}
    assert all(setting in SETTINGS[arm].values() for arm, setting in LIVE.settings.items())


def test_the_teacher_knows_nothing_that_the_largest_subset_does_not_hold(asked, fits):
    settings = {arm: next(iter(grid.values())) for arm, grid in SETTINGS.items()}
    list(run(TINY.but(tuning_seeds=0, settings=settings, arms=(ACT, BOTH)), 0, CPU))
    teacher, students = fits[0], fits[1::2]
    sets = [pictures(fit.data) for fit in students]
    assert [len(some) for some in sets] == [10, 50, 100, 120]
    assert all(smaller < larger for smaller, larger in pairwise(sets))
    assert sets[-1] == pictures(teacher.data)
    assert len(teacher.weights) > 2 * len(students[0].weights)


def test_arms_begin_alike_and_see_the_same_batches(pool, network, fits, monkeypatch):
    labels, how = [], module.objective
    monkeypatch.setattr(
        module, "objective", lambda *a, **k: labels.append(k["labels"]) or how(*a, **k)
    )
    for case in cases(TINY.but(steps=3), pool, network, 10, 0):
        case.train(next(iter(case.settings.values())))
        assert case.at == {"tuned_at": 5}
    assert len(fits) == len(SETTINGS)
    assert labels == ["CE" in arm for arm in SETTINGS]
    for fit in fits[1:]:
        assert torch.equal(fit.weights, fits[0].weights)
        assert fit.index == fits[0].index
        assert len(fit.index) == 3
    train_student(TINY, pool, "CE", recorded(network, pool), 1, {"lr": 1e-3})
    assert not torch.equal(fits[-1].weights, fits[0].weights)


def test_what_is_recorded_is_what_the_teacher_says_when_it_is_asked(pool, network):
    teacher, x = recorded(network, pool), pool.pixels / 255
    logits = network(x).detach()
    torch.testing.assert_close(teacher.logits, logits, rtol=1e-3, atol=1e-4)
    J = class_jacobian(network, x, teacher.logits.argmax(1))
    torch.testing.assert_close(teacher.rows, J, rtol=1e-3, atol=1e-5)


SETTING = {"activations": 0.3, "Jacobians": 0.7, "sigma": 0.2}
TERMS = {
    "CE": (),
    ACT: ("activations",),
    "CE + Jacobians": ("Jacobians",),
    BOTH: ("activations", "Jacobians"),
    "activations": ("activations",),
    NO_LABELS: ("activations", "Jacobians"),
    NOISY: ("activations", "sigma"),
}


@pytest.mark.parametrize("arm", SETTINGS)
def test_an_arm_minimises_labels_and_what_its_name_says(arm, pool, network):
    assert {tuple(setting)[1:] for setting in SETTINGS[arm].values()} == {TERMS[arm]}
    index = torch.tensor([7, 100, 3, 55])
    teacher, b = recorded(network, pool), batch(pool, index)
    net, x = ConvNet(width=8, units=64), b.x
    setting = {name: SETTING[name] for name in TERMS[arm]}
    if arm == NOISY:
        torch.manual_seed(1)
        x = x + 0.2 * torch.randn_like(x)
    said = network(x).detach()
    expected = F.cross_entropy(net(x), b.y) if arm.startswith("CE") else 0
    if "activations" in setting:
        expected = expected + 0.3 * ((net(x) - said) ** 2).sum() / 4
    if "Jacobians" in setting:
        chosen = said.argmax(1)
        rows = class_jacobian(net, x, chosen), class_jacobian(network, x, chosen)
        expected = expected + 0.7 * jacobian_loss(*rows)
    torch.manual_seed(1)
    looks = []
    net.register_forward_hook(lambda *seen: looks.append(len(seen[1][0])))
    loss = objective(teacher, setting, labels=arm.startswith("CE"))(net, b)
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=1e-5)
    assert looks == [4 + ("Jacobians" in setting)]  # one pass, with the probe
    network.zero_grad()
    loss.backward()
    assert all(p.grad is None for p in network.parameters())


def batch(pool, index):
    return Batch(pool.pixels[index] / 255, pool.labels[index], index, 0.0)


def test_every_arm_chooses_among_four():
    assert {len(settings) for settings in SETTINGS.values()} == {4}


@pytest.mark.parametrize(
    ("gains", "size"),
    [
        ([3, 1, -1], 10**1.5),
        ([3, 3, -1], 10**1.75),
        ([3, 0.5, -0.5], 10**1.5),
        ([-1, 1, -1], 10**1.5),
        ([1, -1, 2], 100),
        ([1, 1, 1], 100),
        ([-1, -2, 0], 1),
    ],
)
def test_where_there_is_no_more_gain(gains, size):
    assert crossing((1, 10, 100), gains) == pytest.approx(size)


def test_a_teacher_begins_elsewhere_and_learns(pool):
    seed_everything(0)
    assert not torch.equal(
        train_teacher(TINY, pool, 0)[0].conv.weight[:8], ConvNet(width=8)[0].conv.weight
    )
