"""Values and slopes at the scale of seconds: functions, points, arms and errors."""

from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import nn

from tlcourse.claims import TUNING, judge
from tlcourse.experiments.jacobian_matching.sobolev import (
    AS_MANY,
    EXPERIMENT,
    LECTURE,
    SETTINGS,
    SLOPES,
    VALUES,
    cases,
    error,
    run,
    trained,
    tune,
    waves,
)

module = import_module("tlcourse.experiments.jacobian_matching.sobolev")
CPU = torch.device("cpu")
TINY = LECTURE.but(steps=2)


class Of(nn.Module):
    """A function as a network."""

    def __init__(self, function):
        super().__init__()
        self.function, self.nothing = function, nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return self.function(x)


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for():
    tuning = pd.DataFrame([{"seed": TUNING, **row.as_dict()} for row in tune(TINY, TUNING, CPU)])
    assert set(tuning.groupby(["arm", "variables", "points"])["setting"].nunique()) == {8}
    settled = TINY.settle(tuning)
    rows = pd.DataFrame(
        [{"seed": s, **row.as_dict()} for s in (0, 1) for row in run(settled, s, CPU)]
    )
    assert len(rows) == 2 * 2 * 4 * len(SETTINGS)
    assert judge(EXPERIMENT.claims[0], rows).seeds == 2


@pytest.mark.parametrize("D", [1, 2])
def test_an_error_is_relative_to_the_functions_deviation(D):
    f = waves(D, 0, CPU)
    assert error(f, D, Of(f)) == 0
    side = torch.linspace(-1, 1, 1_001 if D == 1 else 51)
    x = side[:, None] if D == 1 else torch.cartesian_prod(side, side)
    mean = f(x).mean()
    assert error(f, D, Of(lambda x: mean + 0 * x[:, 0])) == pytest.approx(100, rel=1e-2)
    assert error(f, D, Of(lambda x: f(x) + f(x).std() / 5)) == pytest.approx(20, rel=1e-3)


def test_functions_of_seeds_and_of_tuning_are_others():
    x = torch.rand(9, 2)
    found = {seed: waves(2, seed, CPU)(x) for seed in (0, 1, TUNING, TUNING + 1)}
    assert torch.equal(found[0], waves(2, 0, CPU)(x))
    assert len({tuple(values.tolist()) for values in found.values()}) == 4


def test_arms_begin_alike_and_are_told_as_many_numbers(monkeypatch):
    fits = []

    def spy(network, data, how, **settings):
        fits.append(([p.detach().clone() for p in network.parameters()], data, settings))

    monkeypatch.setattr(module, "fit", spy)
    for case, _ in cases(TINY.but(variables=(2,), points=(5,)), 0, CPU):
        case.train(next(iter(case.settings.values())))
    assert [len(x) for _, (x, _), _ in fits] == [5, 5, 15]
    for weights, (x, _), settings in fits:
        assert all(torch.equal(a, b) for a, b in zip(weights, fits[0][0]))
        assert torch.equal(x[:5], fits[0][1][0])
        assert settings["batch_size"] == len(x)
        assert -1 <= x.min() < x.max() <= 1


def test_an_arm_minimises_values_and_what_its_setting_adds(monkeypatch):
    losses = []
    monkeypatch.setattr(
        module,
        "fit",
        lambda net, data, how, **_: losses.append((how(net, Batch(data[0])), net, data)),
    )
    f = waves(2, 0, CPU)
    for setting, weight in (({"lr": 1.0}, 0.0), ({"lr": 1.0, "weight": 0.3}, 0.3)):
        trained(TINY, f, 2, 6, 0, CPU, setting)
        loss, net, (x, _) = losses.pop()
        x = x.clone().requires_grad_()
        apart = net(x) - f(x)
        (slopes,) = torch.autograd.grad(apart.sum(), x, create_graph=True)
        expected = apart.square().mean() + weight * slopes.square().sum(1).mean()
        torch.testing.assert_close(loss, expected)
    assert {tuple(setting) for setting in SETTINGS[SLOPES].values()} == {("lr", "weight")}
    assert {tuple(s) for arm in (VALUES, AS_MANY) for s in SETTINGS[arm].values()} == {("lr",)}


class Batch:
    def __init__(self, x):
        self.x = x
