"""Domains with and without labels, at the scale of seconds."""

from importlib import import_module

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tlcourse.claims import TUNING, judge
from tlcourse.data import Images, load
from tlcourse.methods.adaptation import coral_loss, domain_adversarial_loss
from tlcourse.training import Batch, fit

module = import_module("tlcourse.experiments.what_is_transfer_learning.adaptation")
CPU = torch.device("cpu")
TINY = module.LECTURE.but(images=300, judged=100, steps=2, points=7)
TARGETS = pytest.mark.parametrize("name", [*TINY.targets, module.NOISE])


def tables(*rows):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for seed, row in rows])


def domains(name=module.OVER_PHOTOS, seed=0, scale=TINY):
    return module.domains_of(scale, name, seed, CPU)


def some(n=4):
    return load("mnist", "test").take(slice(n))


# the whole


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for_and_tuning_sees_no_target(
    asked, monkeypatch
):
    with monkeypatch.context() as patch:
        patch.setattr("tlcourse.data.photo", None)
        tuning = tables(*((TUNING, row) for row in module.tune(TINY, TUNING, CPU)))
    assert {*asked} == {("mnist", "train")}
    assert tuning.groupby("arm")["setting"].nunique().to_dict() == dict.fromkeys(module.ARMS, 6)
    settled = TINY.settle(tuning)
    rows = tables(*((seed, row) for seed in (0, 1) for row in module.run(settled, seed, CPU)))
    kept = rows.drop(columns="value")
    assert not kept.duplicated().any()
    assert {*rows["arm"]} == {*module.EXPERIMENT.arms}
    for claim in module.EXPERIMENT.claims:
        assert judge(claim, rows).seeds == 2
    errors = rows[rows["metric"] == "errors"].groupby("arm")["target"].agg(set)
    assert errors[module.ALL_CLASSES] == {module.HALF}
    assert {frozenset(errors[arm]) for arm in module.ARMS} == {frozenset(TINY.targets)}
    points = rows[rows["metric"].isin(["x", "y"])]
    assert len(points) == 2 * 3 * 2 * TINY.points
    assert {*points["seed"]} == {0}


def test_the_source_s_network_is_trained_once_and_the_others_for_every_target(asked, monkeypatch):
    made, says = [], [5, 0, 3, 1, 0, 3, 1, 2, 3, 1]

    def trained(scale, domains, arm, seed, setting):
        made.append((arm, len(domains.target.labels.unique())))
        net = module.ConvNet(channels=3)
        net.head.bias.data[says[len(made) - 1]] = 100  # it always says the same class
        return net

    monkeypatch.setattr(module, "learn", trained)
    scale = TINY.but(tuning_seeds=0, settings=dict.fromkeys(module.ARMS, None), points=0)
    rows = tables(*((3, row) for row in module.run(scale, 3, CPU)))
    both = [(arm, 10) for arm in module.ARMS[1:]]
    assert made == [(module.ALONE, 10), *both, *both, *((arm, 5) for arm, _ in both)]
    at = rows[(rows["metric"] == "errors") & (rows["target"] == module.HALF)]
    errors = at.set_index("arm")["value"]
    test = domains(module.HALF, seed=3).test.labels
    wrong = [100 * (test != said).double().mean().item() for said in (5, 2, 3, 1, 0)]
    assert [errors[arm] for arm in (*module.ARMS, module.ALL_CLASSES)] == pytest.approx(wrong)
    gone = rows[(rows["metric"] == "gap closed") & (rows["target"] == module.HALF)]
    shares = [100 * (100 - e) / (100 - wrong[3]) for e in wrong[1:3]]
    assert gone["value"].tolist() == pytest.approx(shares)


def test_one_seed_of_the_live_cell_needs_no_tuning(asked):
    scale = module.LIVE.but(images=300, judged=60, steps=2, points=7)
    rows = tables(*((1, row) for row in module.run(scale, 1, CPU)))
    assert {*rows["arm"]} == {*scale.arms}
    assert {*rows["target"]} == {module.OVER_PHOTOS}


def test_grids_are_of_equal_size():
    assert {len(settings) for settings in module.SETTINGS.values()} == {6}


# domains


@TARGETS
def test_no_digit_is_in_two_places_and_all_have_three_channels(name, asked):
    source, target, source_test, test = domains(name)
    for images in (source, target, source_test, test):
        assert images.pixels.shape[1:] == (3, 28, 28)
        assert images.pixels.is_contiguous()
    whole = load("mnist").take(slice(0, 3_000)).split(300, 300, 100, seed=0)
    assert torch.equal(source.pixels[:, 2], whole[0].pixels[:, 0])
    assert len({*map(bytes, torch.cat([part.pixels for part in whole]).numpy())}) == 700
    if name != module.SCANS:
        labels = whole[1].labels
        wanted = labels[labels < 5] if name == module.HALF else labels
        assert torch.equal(target.labels, wanted[: len(wanted) // 2 * 2])
        assert len(target) % 2 == 0  # else the last batch of an epoch may hold one image
    asked_for_test = name != module.NOISE
    assert (("mnist", "test") in asked) == asked_for_test


def test_half_the_classes_are_missing_in_the_target_alone(asked):
    source, target, source_test, test = domains(module.HALF)
    assert {*target.labels.tolist()} == {*test.labels.tolist()} == {*range(5)}
    assert len({*source.labels.tolist()}) == len({*source_test.labels.tolist()}) == 10
    assert len(target.classes) == 10


def test_learnt_and_judged_images_lie_over_other_places_and_each_seed_has_its_own(monkeypatch):
    seeds = []
    monkeypatch.setitem(
        module.CHANGES, module.OVER_PHOTOS, lambda images, seed: seeds.append(seed) or images
    )
    for seed in range(4):
        domains(seed=seed)
    assert len({*seeds}) == 8


# arms


def learnt(monkeypatch, arm, setting, name=module.OVER_PHOTOS):
    """What `fit` is given, and the network that comes of it."""
    given = []

    def watched(network, data, objective, **how):
        given.append((data, objective, how, [p.detach().clone() for p in network.parameters()]))
        return fit(network, data, objective, **how)

    with monkeypatch.context() as patch:
        patch.setattr(module, "fit", watched)
        network = module.learn(TINY, domains(name), arm, 0, setting)
    return network, *given[0]


def test_arms_begin_alike_and_only_one_sees_labels_of_the_target(asked, monkeypatch):
    at, begun = domains(), []
    for arm in module.ARMS:
        network, data, objective, how, before = learnt(
            monkeypatch, arm, {"lr": 0.01, "weight": 0.5}
        )
        begun.append(before)
        assert (how["lr"], how["steps"]) == (0.01, 2)
        if arm in (module.DANN, module.CORAL):
            assert data.sources["target"][1] is None
            assert torch.equal(data.sources["target"][0], at.target.pixels)
            assert torch.equal(data.sources["source"].pixels, at.source.pixels)
            assert objective.weight == 0.5
        else:
            seen = at.target if arm == module.LABELS else at.source
            assert torch.equal(data.pixels, seen.pixels)
        assert not torch.equal(network.head.weight, before[-2])
    for other in begun[1:]:
        assert all(torch.equal(one, two) for one, two in zip(begun[0], other, strict=True))


def batches(n=6, m=5):
    g, ten = torch.Generator().manual_seed(0), torch.arange(10)
    x, y = torch.rand(n, 3, 28, 28, generator=g), ten[:n]
    return {
        "source": Batch(x, y, ten[:n], 0.3),
        "target": Batch(torch.rand(m, 3, 28, 28, generator=g), None, ten[:m], 0.3),
    }


@pytest.mark.parametrize(("arm", "weight"), [(module.DANN, 0.7), (module.CORAL, 1e6)])
def test_the_objective_is_labels_of_the_source_and_what_makes_features_alike(arm, weight):
    network, both = module.ConvNet(channels=3), batches()
    objective = module.Alike(arm, network, weight)
    source, target = (both[name].x for name in ("source", "target"))
    labels = F.cross_entropy(network(source), both["source"].y)
    if arm == module.CORAL:
        alike = weight * coral_loss(network[:-1](source), network[:-1](target))
    else:
        f_S, f_T = network[:4](source), network[:4](target)
        strength = weight * module.rising_strength(0.3)
        alike = domain_adversarial_loss(objective.D, f_S, f_T, strength=strength)
    parameters = [*network.parameters()]
    found = torch.autograd.grad(objective(network, both), parameters)
    expected = torch.autograd.grad(labels + alike, parameters)
    torch.testing.assert_close(objective(network, both), labels + alike)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_the_discriminator_learns_along(asked, monkeypatch):
    _, _, objective, *_ = learnt(monkeypatch, module.DANN, {"lr": 0.01, "weight": 0.5})
    torch.manual_seed(0)
    module.ConvNet(channels=3)
    fresh = module.Alike(module.DANN, module.ConvNet(channels=3), 0.5)
    assert [p.shape for p in fresh.D.parameters()] == [p.shape for p in objective.D.parameters()]
    torch.manual_seed(0)
    again = module.Alike(module.DANN, module.ConvNet(channels=3), 0.5)
    assert not torch.equal(again.D.fc1.weight, objective.D.fc1.weight)


# what is measured


class Means(nn.Module):
    """One feature: the mean grey of each image, and 0."""

    def forward(self, x):
        return F.pad(x.mean((1, 2, 3))[:, None], (0, 1))


def lit(grey, n=80):
    pixels = (grey + torch.arange(n) % 40).view(n, 1, 1, 1).expand(-1, 3, 28, 28)
    return Images(pixels.byte(), torch.arange(n) % 10, tuple("0123456789"), "lit")


@pytest.mark.parametrize(("apart", "expected"), [(0, 50.0), (100, 100.0)])
def test_domains_are_told_apart_by_images_that_were_not_learnt_from(apart, expected, monkeypatch):
    monkeypatch.setattr(module, "TOP", 1)
    parts = module.Domains(lit(10), lit(10 + apart), lit(10, 40), lit(10 + apart, 40))
    found = module.told_apart(nn.Sequential(Means()), parts, 0, most=60)
    assert found == pytest.approx(expected, abs=1)
    other = parts._replace(source_test=parts.test, test=parts.source_test)
    assert module.told_apart(nn.Sequential(Means()), other, 0) == pytest.approx(
        100 - expected if apart else 50, abs=1
    )


@pytest.mark.parametrize("seed", range(3))
def test_the_picture_is_that_of_principal_components(seed, asked):
    torch.manual_seed(seed)
    network, at = module.ConvNet(channels=3), domains()
    rows = tables(*((0, row) for row in module.picture("DANN", network, at, 20)))
    with torch.no_grad():
        shown = torch.cat([at.source_test.pixels[:20], at.test.pixels[:20]])
        features = network[:-1](shown / 255).double().numpy()
    covariance = np.cov(features, rowvar=False)
    largest, axes = np.linalg.eigh(covariance)
    for i, axis in enumerate("xy", start=1):
        part = rows[rows["metric"] == axis]
        assert part["value"].var() == pytest.approx(largest[-i], rel=1e-2)
        along = (features - features.mean(0)) @ axes[:, -i]
        turned = along * np.sign(axes[:, -i][np.abs(axes[:, -i]).argmax()])
        assert part["value"].to_numpy() == pytest.approx(turned, rel=1e-3, abs=1e-6)
        assert part["digit"].tolist() == [*at.source_test.labels[:20], *at.test.labels[:20]]
        assert part["domain"].tolist() == ["source"] * 20 + ["target"] * 20
        assert part["point"].tolist() == [*range(20)] * 2
