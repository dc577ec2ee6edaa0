"""What the slides derive, against densities written out."""

from importlib import import_module
from math import exp, log, pi

import pandas as pd
import pytest
import torch

from tlcourse.claims import judge
from tlcourse.experiments.multi_task_learning.likelihoods import (
    EXPERIMENT,
    SLIDE,
    SOFTMAX,
    WITH_D,
    Likelihoods,
    minus_log_likelihood,
    run,
    weighted,
)

module = import_module("tlcourse.experiments.multi_task_learning.likelihoods")
CPU = torch.device("cpu")
TINY = Likelihoods(seeds=2, minutes=1, samples=64)


@pytest.fixture(scope="module")
def rows():
    found = [(seed, row) for seed in (0, 1) for row in run(TINY, seed, CPU)]
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for seed, row in found])


def test_claims_are_decided(rows):
    verdicts = {claim.id: judge(claim, rows).verdict for claim in EXPERIMENT.claims}
    holds = ("U1", "U2", "U2d", "U3")
    assert {id for id, verdict in verdicts.items() if verdict == "supported"} == {*holds}
    assert verdicts["U2v"] == verdicts["U3f"] == "contradicted"
    assert {*rows["arm"]} == {*EXPERIMENT.arms}


def test_a_likelihood_that_is_written_out():
    y, f, s = torch.randn(2, 9, 3), torch.randn(2, 9, 3), torch.tensor([-0.3, 0.8])
    total = 0.0
    for task in range(2):
        for n in range(9):
            for d in range(3):
                variance, apart = exp(s[task]), (y[task, n, d] - f[task, n, d]).item()
                density = exp(-(apart**2) / (2 * variance)) / (2 * pi * variance) ** 0.5
                total -= log(density) / 9
    assert minus_log_likelihood(y, f, s).item() == pytest.approx(total, rel=1e-5)
    assert weighted(y, f, s, 3) + 3 * log(2 * pi) == pytest.approx(total, rel=1e-5)


def test_the_slide_is_off_by_a_log_sigma_for_each_further_number(rows):
    for seed in (0, 1):
        torch.manual_seed(seed)
        some = rows[(rows["seed"] == seed) & (rows["metric"] == "difference")]
        found = some.pivot(index="numbers", columns="arm", values="value")
        assert abs(found[WITH_D]).max() < 1e-5
        assert abs(found[SLIDE][1]) < 1e-5
        assert abs(found[SLIDE][2]) > 1e-2


def test_the_form_of_a_classification_against_one_written_out(rows):
    """Nats of the exact softmax and of the slide's form, and how far apart they are."""
    some = rows[rows["seed"] == 0]
    nats = some[some["metric"] == "nats"].pivot(index="variance", columns="arm", values="value")
    apart = some[some["metric"] == "error"].set_index("variance")["value"]
    for variance, row in nats.iterrows():
        assert row[SLIDE] == pytest.approx(nats[SLIDE][1.0] / variance + log(variance) / 2)
        assert apart[variance] == pytest.approx(abs(row[SLIDE] / row[SOFTMAX] - 1))
    assert nats[SOFTMAX][1e6] == pytest.approx(log(8), abs=1e-4)
    assert nats[SOFTMAX][1.0] == pytest.approx(nats[SLIDE][1.0])
    distance = some[some["metric"] == "distance from uniform"]["value"]
    assert distance.is_monotonic_decreasing
