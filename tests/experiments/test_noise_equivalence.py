"""Noise on the inputs: the terms against autograd, the draws, and networks that are known."""

from importlib import import_module

import pandas as pd
import pytest
import torch
from torch import nn
from torch.func import hessian, vmap

from tlcourse.claims import judge
from tlcourse.experiments.jacobian_matching.noise_equivalence import (
    EXPERIMENT,
    NETWORKS,
    PAPER,
    WHOLE,
    Noise,
    added,
    draws,
    gap,
    network,
    run,
    terms,
)
from tlcourse.methods.jacobian import sobolev_loss

module = import_module("tlcourse.experiments.jacobian_matching.noise_equivalence")
CPU = torch.device("cpu")
TINY = Noise(seeds=2, minutes=1, points=16, pairs=64)


@pytest.fixture
def pair():
    torch.manual_seed(0)
    return network(8, nn.Tanh), network(8, nn.Tanh), torch.randn(16, 8, dtype=torch.float64)


def test_draws_have_mean_0_and_covariance_1_exactly():
    torch.manual_seed(0)
    noise = draws(64, 8)
    assert noise.mean(0).abs().max() < 1e-12
    torch.testing.assert_close(noise.T @ noise / len(noise), torch.eye(8, dtype=torch.float64))
    many = draws(20_000, 2)
    assert many.pow(4).mean().item() == pytest.approx(3, abs=0.1)  # as Gaussian ones


def test_the_terms_are_those_of_the_package_and_of_the_laplacian(pair):
    student, teacher, x = pair
    g = gap(student, teacher)
    forms = terms(g, x, g(x))
    slopes, values = (sobolev_loss(student, teacher, x, None, weight=w) for w in (1.0, 0.0))
    torch.testing.assert_close(forms[PAPER].mean(), slopes - values)
    H = vmap(hessian(lambda one: g(one).square().sum()))(x)
    torch.testing.assert_close(forms[WHOLE], H.diagonal(dim1=1, dim2=2).sum(1) / 2)
    torch.testing.assert_close(terms(g, x, torch.zeros_like(g(x)))[WHOLE], forms[PAPER])


def test_of_linear_networks_noise_adds_the_papers_term_at_any_size():
    torch.manual_seed(0)
    g, x = gap(network(8, nn.Identity), network(8, nn.Identity)), torch.randn(4, 8).double()
    for sigma in (0.01, 1.0, 30.0):
        found = added(g, x, g(x), draws(64, 8), sigma)
        torch.testing.assert_close(found, terms(g, x, g(x))[PAPER], rtol=1e-6, atol=1e-6)


def test_of_smooth_networks_what_is_left_falls_as_the_square_of_sigma(pair):
    student, teacher, x = pair
    g, noise = gap(student, teacher), draws(4_096, 8)
    whole = terms(g, x, g(x))[WHOLE]
    rest = [(added(g, x, g(x), noise, sigma) - whole).mean() for sigma in (0.01, 0.02)]
    assert (rest[1] / rest[0]).item() == pytest.approx(4, rel=0.05)


def test_where_networks_agree_values_are_those_of_the_difference_moved_to_zero(pair):
    student, teacher, x = pair
    g, noise = gap(student, teacher), draws(64, 8)
    one = x[:1]
    found = added(g, one, torch.zeros_like(g(one)), noise, 0.1)
    student[2].bias -= g(one)[0]
    assert g(one).abs().max() < 1e-12
    torch.testing.assert_close(found, added(g, one, g(one), noise, 0.1))


def test_seeds_hold_what_the_claims_ask_for():
    rows = pd.DataFrame(
        [{"seed": seed, **row.as_dict()} for seed in (0, 1) for row in run(TINY, seed, CPU)]
    )
    assert set(rows["arm"]) == {*EXPERIMENT.arms}
    assert set(rows["network"]) == {*NETWORKS}
    assert not rows.duplicated(["seed", "arm", "metric", "network", "sigma"]).any()
    assert {judge(claim, rows).seeds for claim in EXPERIMENT.claims} == {2}
    at = (
        rows[rows["seed"] == 0]
        .set_index(["network", "sigma", "metric", "arm"])["value"]
        .sort_index()
    )
    for name in NETWORKS:
        found = at[name, 0.01, "added"]
        error = (found[WHOLE] - found["measured"]) / found[PAPER]
        assert at[name, 0.01, "error", WHOLE] == pytest.approx(error, abs=1e-9)
    assert at["ReLU", 0.01, "added", WHOLE] == at["ReLU", 0.01, "added", PAPER]
