"""Fine-tuning by target images and frozen layers, at the scale of seconds."""

from copy import deepcopy
from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import nn

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.attention.few_labels import Enlarged
from tlcourse.methods.fine_tuning import freeze, parameter_groups
from tlcourse.models import ConvNet, imagenet_classes, pretrained
from tlcourse.training import accuracy, cross_entropy, fit

module = import_module("tlcourse.experiments.fine_tuning.fine_tuning")
CPU = torch.device("cpu")
TINY = module.LECTURE.but(
    source_images=60,
    source_epochs=1,
    sizes=(1, 2, 5, 20, 100),
    steps=4,
    test_images=40,
    photo_sizes=(1, 5, 20),
    photo_steps=1,
    tuned_sizes=(1, 5),
    photo_tuned_sizes=(5,),
    photo_test_images=20,
)


def tables(*rows):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for seed, row in rows])


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for(asked):
    tuning = tables(*((TUNING, row) for row in module.tune(TINY, TUNING, CPU)))
    assert {split for _, split in asked} == {"train"}
    settings = tuning.groupby(["arm", "network", "tuned_at"])["setting"].nunique()
    assert set(settings) == {4}
    settled = TINY.settle(tuning)
    rows = tables(*((seed, row) for seed in (0, 1) for row in module.run(settled, seed, CPU)))
    assert not rows.duplicated(["seed", "arm", "metric", "pair", "per_class"]).any()
    assert set(rows["arm"]) == {*module.EXPERIMENT.arms}
    assert rows["value"].between(0, 100).all()
    for claim in module.EXPERIMENT.claims:
        assert judge(claim, rows).verdict


def test_one_pair_alone_needs_no_tuning_where_settings_are_given(asked):
    arms = [arm for arm, cut in module.CUTS.items() if cut in (4, 8)]
    settings = {arm: (1e-3, 1e-3) for arm in module.CUTS}
    scale = TINY.but(tuning_seeds=0, settings=settings, pairs=(module.DIGITS,), sizes=(1,))
    rows = tables(*((0, row) for row in module.run(scale, 0, CPU)))
    assert set(rows["pair"]) == {module.DIGITS}
    assert {*arms, "untrained head", "nearest mean"} < set(rows["arm"])


def target(source="digits 0-4", task="digits 5-9"):
    return module.target_of(TINY, source, task, "test", 0, CPU)


def test_training_on_what_frozen_layers_say_is_training_above_frozen_layers(asked):
    at, cut = target(), module.CUTS["convolutions frozen"]
    data = at.pool.per_class(2, 0)
    above = module.beginning(at, "full", cut, 0)
    seen = module.seen_through(at.network[:cut], data)
    module.train("full", above, seen, 4, (1e-3, 1e-2), seed=0)
    whole = module.beginning(at, "full", 0, 0)
    freeze(whole[:cut])
    how = {"groups": parameter_groups(whole, 1e-3, 1e-2), "seed": 0, "progress": False}
    fit(whole, data, cross_entropy, steps=4, batch_size=32, **how)
    for one, other in zip(above.parameters(), whole[cut:].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_all_arms_begin_with_the_same_head_and_scratch_with_nothing_of_the_source(asked):
    at = target()
    full, frozen, scratch = (
        module.beginning(at, arm, cut, 0) for arm, cut in (("full", 0), ("x", 8), ("scratch", 0))
    )
    assert torch.equal(full.head.weight, frozen.head.weight)
    assert full.head.out_features == len(at.pool.classes)
    assert torch.equal(full.block1.conv.weight, at.network.block1.conv.weight)
    assert not torch.equal(scratch.block1.conv.weight, at.network.block1.conv.weight)


def test_step_by_step_moves_everything_in_the_end_and_lower_layers_last(asked, monkeypatch):
    at, moved = target(), []

    def watched(network, *args, **kwargs):
        before = deepcopy(network.state_dict())
        fit(network, *args, **kwargs)
        after = network.state_dict()
        moved.append({k.split(".")[0] for k in before if not torch.equal(before[k], after[k])})

    monkeypatch.setattr(module, "fit", watched)
    network = module.beginning(at, "full", 0, 0)
    module.train(module.STEPWISE, network, at.pool.per_class(2, 0), 8, (1e-3, 1e-2), seed=0)
    top = [{"head"}, {"head", "fc7"}, {"head", "fc7", "fc6"}]
    assert moved == [*top, top[-1] | {"block1", "block2", "block3"}]


def test_rates_by_layer_fall_from_layer_to_layer(asked, monkeypatch):
    rates = []
    monkeypatch.setattr(
        module, "fit", lambda *_, groups, **__: rates.extend({g["lr"] for g in groups})
    )
    module.train(module.LAYER_WISE, ConvNet(5), None, 4, (1e-2, 1e-1), seed=0)
    expected = [1e-1, *(1e-2 * module.DECAY**i for i in range(5))]
    assert sorted(rates, reverse=True) == pytest.approx(expected)


@pytest.mark.slow
def test_the_network_of_photos_as_a_row_of_layers_answers_as_it_does_whole():
    x = load("fashion_mnist", "test").pixels[:3] / 255
    whole = Enlarged(pretrained()).eval()
    with torch.no_grad():
        torch.testing.assert_close(module.photo_network()(x), whole(x))
    random = module.photo_network(random=True)
    assert isinstance(random[-1], nn.Linear)
    assert not torch.equal(random[-1].weight, module.photo_network()[-1].weight)


def test_every_article_of_clothing_has_its_names_and_imagenet_knows_them():
    assert {*module.CALLED} == {*load("fashion_mnist", "test").classes}
    words = [word for words in module.CALLED.values() for word in words]
    assert len(set(words)) == len(words)
    assert {*words} <= {*imagenet_classes()}


def test_the_nearest_mean_is_that_of_features(asked):
    at = target()
    ((_, n, wrong),) = module.nearest_mean(TINY.but(sizes=(2,)), at, 0)
    data, chosen = at.pool.per_class(2, 0), nn.functional.normalize
    with torch.no_grad():
        features, test = (chosen(at.network[:-1](d.pixels / 255)) for d in (data, at.test))
    means = torch.stack([features[data.labels == k].mean(0) for k in range(5)])
    nearest = torch.stack([chosen(m, dim=0) @ test.T for m in means]).argmax(0)
    assert n == 2
    assert wrong == pytest.approx(100 * (nearest != at.test.labels).float().mean().item())


def test_a_source_is_learnt(asked):
    scale = TINY.but(source_images=600, source_epochs=8)
    network = module.source_network(scale, "digits 0-4", 0, CPU)
    assert accuracy(network, module.images_of("digits 0-4")) > 0.6
    again = module.source_network(scale, "digits 0-4", 0, CPU)
    assert torch.equal(network[0].conv.weight, again[0].conv.weight)


@pytest.mark.parametrize(("n", "at"), [(1, 1), (2, 1), (5, 5), (20, 20), (100, 20)])
def test_a_size_takes_the_rates_of_the_largest_tuned_one_not_above_it(n, at):
    assert module.tuned_at(module.LECTURE.tuned_sizes, n) == at


def test_where_all_tuned_sizes_are_larger_the_smallest_is_taken():
    assert module.tuned_at((20, 50), 1) == 20
