"""Where a network looks: collages, shares and likeness by hand, and a small network."""

from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import nn

from tlcourse.claims import judge
from tlcourse.data import PHOTOS
from tlcourse.experiments.attention.looking import (
    EXPERIMENT,
    LECTURE,
    WAYS,
    collage,
    likeness,
    randomise,
    share_on_the_left,
)
from tlcourse.models import ConvNet, imagenet_classes, pretrained

module = import_module("tlcourse.experiments.attention.looking")


def test_a_collage_is_two_squares_and_a_seed_decides_which():
    pixels = collage("cat", "coffee", 0)
    assert pixels.shape == (3, 224, 448)
    assert 0 <= pixels.min() < pixels.max() <= 1
    assert torch.equal(pixels, collage("cat", "coffee", 0))
    assert not torch.equal(pixels, collage("cat", "coffee", 1))


def test_the_network_knows_what_is_on_every_photo():
    network, names = pretrained(), imagenet_classes()
    for name, (_, label) in PHOTOS.items():
        with torch.inference_mode():
            likely = network(collage(name, name, 0)[None]).topk(3).indices[0]
        assert label in [names[i] for i in likely]


def test_shares_by_hand():
    maps = torch.zeros(3, 2, 4)
    maps[0, 0, 0], maps[0, 1, 3] = 3, 1
    maps[1, :, 2:] = 5
    assert share_on_the_left(maps).tolist() == [0.75, 0.0, 0.5]


def test_likeness_by_hand():
    a = torch.tensor([[[1.0, 2.0, 3.0, 4.0]]])
    assert likeness(a, a**3) == pytest.approx(1)  # ranks alone count
    assert likeness(a, -a) == pytest.approx(-1)
    assert likeness(a, torch.ones_like(a)) == 0
    assert likeness(torch.cat([a, a]), torch.cat([a, -a])) == pytest.approx(0)


def test_randomised_layers_keep_their_size_and_nothing_else():
    layer = nn.Sequential(nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64))
    nn.init.normal_(layer[0].weight, 0, 0.5)
    before = layer[0].weight.detach().clone()
    randomise(layer)
    assert layer[0].weight.std().item() == pytest.approx(0.5, rel=0.1)
    assert likeness(
        before.flatten(1)[None], layer[0].weight.detach().flatten(1)[None]
    ) == pytest.approx(0, abs=0.1)
    assert (layer[1].weight == 1).all()


@pytest.mark.slow
def test_the_experiment_holds_what_its_claim_asks_for(monkeypatch):
    torch.manual_seed(0)
    network = nn.Sequential(
        nn.AdaptiveAvgPool2d(16), ConvNet(1_000, channels=3, size=16, width=2, units=8)
    ).eval()
    network.requires_grad_(False)
    monkeypatch.setattr(module, "pretrained", lambda: network)
    monkeypatch.setattr(module, "LAYER", "1.block1")
    monkeypatch.setattr(module, "TOP_DOWN", ("1.head", "1.fc7"))
    before = {name: value.clone() for name, value in network.state_dict().items()}
    rows = pd.concat(
        [
            pd.DataFrame(
                [
                    {"seed": seed, **row.as_dict()}
                    for row in module.run(LECTURE, seed, torch.device("cpu"))
                ]
            )
            for seed in (0, 1)
        ]
    )
    assert judge(EXPERIMENT.claims[0], rows).seeds == 2
    assert set(rows["arm"]) == set(EXPERIMENT.arms)
    shares = rows[rows["metric"] == "share on the half asked for"]["value"]
    assert shares.between(0, 1).all()
    assert set(rows["layers"].dropna()) == {1, 2}
    assert all(
        torch.equal(value, network.state_dict()[name]) for name, value in before.items()
    )  # randomised is a copy
    assert set(WAYS) == set(rows.loc[rows["metric"] == "likeness after randomising", "arm"])
