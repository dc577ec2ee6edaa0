"""Sensitivity: closed forms, a column heard as loudly as another, and nothing left behind."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from tlcourse.methods.progressive import ProgressiveNetwork
from tlcourse.methods.sensitivity import fisher_sensitivity, perturbation_sensitivity
from tlcourse.models import MLP, ConvNet
from tlcourse.training import record

D = torch.float64


def perturbed(network, x, **options):
    """Of answers that are right by definition."""
    return perturbation_sensitivity(network, x, network.eval()(x).argmax(1), **options)


BOTH = pytest.mark.parametrize(
    "sensitivity", [fisher_sensitivity, perturbed], ids=["fisher", "perturbation"]
)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def perceptrons(*widths, alpha=0.7, **options):
    network = ProgressiveNetwork(MLP(5, *widths[0], 4).double())
    for hidden in widths[1:]:
        network.add_column(MLP(5, *hidden, 4).double(), alpha=alpha, **options)
    return network


def drawn(n=60):
    return torch.randn(n, 5, dtype=D)


def duplicated():
    """The new column is the old one, and hears it at the head as it hears itself."""
    network = perceptrons((8, 6), (8, 6), alpha=1.0, linear=True)
    old, new = network.columns
    new.own.load_state_dict(old.own.state_dict())
    new.laterals[0].U.weight.data.zero_()
    new.laterals[1].U.weight.data.copy_(old.own.head.weight)
    return network


# shares


@BOTH
def test_a_duplicated_column_has_half(sensitivity):
    shares = sensitivity(duplicated(), drawn())
    assert_close(shares, torch.full_like(shares, 0.5))
    assert shares.shape == (2, 2)


@BOTH
def test_rows_are_layers_and_sum_to_one_and_what_is_not_heard_has_no_share(sensitivity):
    network, x = perceptrons((8, 6), (7, 9), (8, 6)), drawn()
    shares = sensitivity(network, x)
    assert shares.shape == (2, 3)
    assert (shares > 0).all()
    assert_close(shares.sum(1), torch.ones(2, dtype=shares.dtype))
    raw = sensitivity(network, x, shares=False)
    assert_close(shares, raw / raw.sum(1, keepdim=True))
    head = network.columns[2].laterals[1]
    head.alpha.data[1] = 0
    network.columns[2].laterals[0].alpha.data[0] = 0
    shares = sensitivity(network, x)
    assert shares[1, 1] == 0  # the second column's last features
    assert (shares[[0, 0, 0, 1, 1], [0, 1, 2, 0, 2]] > 0).all()  # the first's go up by its own way


@BOTH
def test_the_scale_of_a_column_makes_no_difference(sensitivity):
    network, x = perceptrons((8, 6), (8, 6)), drawn()
    shares = sensitivity(network, x)
    (old, new), first = network.columns, network.columns[0].own.fc1
    first.weight.data *= 10
    first.bias.data *= 10
    old.own.fc2.weight.data /= 10
    new.laterals[0].alpha.data /= 10
    assert_close(sensitivity(network, x), shares)


def test_what_changes_nothing_has_no_share():
    network = perceptrons((8, 6), (8, 6))
    network.columns[1].own.head.weight.data.zero_()
    network.columns[1].laterals[1].alpha.data.zero_()
    assert fisher_sensitivity(network, drawn()).isnan().all()
    assert not fisher_sensitivity(network, drawn(), shares=False).any()


def test_a_layer_whose_answer_is_dropped_has_no_share():
    class Aside(nn.Module):
        def __init__(self):
            super().__init__()
            self.low, self.aside, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            h = self.low(x)
            self.aside(h)
            return self.head(h)

    network = ProgressiveNetwork(Aside()).add_column(Aside())
    shares = fisher_sensitivity(network, drawn().float())
    assert shares[0].isnan().all()
    assert (shares[1] > 0).all()


# closed forms


def test_fisher_of_a_softmax_is_its_closed_form():
    """Σ_m Var(h_m) E_x[the variance of W_m over classes], W from a column's features to logits."""
    network, x = perceptrons((8, 6), (7, 9), linear=True), drawn()
    new, p = network.columns[1], network(x).softmax(1)
    lateral = new.laterals[1]
    expected = []
    for name, W in (
        ("columns.0.taps.1", lateral.alpha[0] * lateral.U.weight),
        ("columns.1.taps.1", new.own.head.weight),
    ):
        h = record(network, (x, None), of=name)
        spread = p @ W.square() - (p @ W).square()
        expected.append((h.var(0, correction=0) * spread.mean(0)).sum())
    found = fisher_sensitivity(network, x, shares=False)
    assert_close(found[1], torch.stack(expected).detach())


def test_fisher_of_maps_is_summed_over_places():
    column = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Conv2d(2, 3, 2), nn.Flatten()).double()
    network, x = ProgressiveNetwork(column), torch.randn(6, 1, 4, 4, dtype=D)
    h = record(network, (x, None), of="columns.0.taps.0")
    total = 0
    for image in h:
        leaf = image.clone().requires_grad_()
        log_p = column[1:](leaf[None]).log_softmax(1)[0]
        for log_q in log_p:
            (slope,) = torch.autograd.grad(log_q, leaf, retain_graph=True)
            variance = h.var((0, 2, 3), correction=0)[:, None, None]
            total += log_q.exp() * (variance * slope.square()).sum() / len(x)
    assert_close(fisher_sensitivity(network, x, shares=False), total.detach().view(1, 1))


def test_noise_takes_half_of_what_is_better_than_guessing():
    """h and h + σ·noise have one sign with probability 1 − arctan(σ) / π: three quarters at 1."""
    column = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 2)).double()
    with torch.no_grad():
        for layer, weight in zip(column, ([[3.0]], [[-1.0], [1.0]])):
            layer.weight.copy_(torch.tensor(weight))
            layer.bias.zero_()
    network, x = ProgressiveNetwork(column), torch.randn(20_000, 1, dtype=D)
    labels = (x[:, 0] > 0).long()
    found = perturbation_sensitivity(network, x, labels, shares=False)
    assert found.item() == pytest.approx(1, rel=0.1)
    assert perturbation_sensitivity(network, x, labels).item() == 1
    wrong = torch.arange(20_000) % 5 == 0  # right at first: 0.8, so noise must take it to 0.65
    found = perturbation_sensitivity(network, x, labels ^ wrong, shares=False)
    assert found.item() == pytest.approx(1, rel=0.1)


def test_a_louder_column_bears_less_noise():
    """Logits of 2x from the new column and x from the old one: shares are 4 to 1."""

    def column(weight):
        one = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)).double()
        one[0].weight.data.fill_(1)
        one[1].weight.data.copy_(torch.tensor([[-weight], [weight]]))
        return one

    network = ProgressiveNetwork(column(1.0)).add_column(column(2.0), alpha=1.0, linear=True)
    network.columns[1].laterals[0].U.weight.data.copy_(network.columns[0].own[1].weight)
    x = torch.randn(4000, 1, dtype=D)
    for shares in (
        perturbation_sensitivity(network, x, (x[:, 0] > 0).long()),
        fisher_sensitivity(network, x),
    ):
        assert_close(shares.double(), torch.tensor([[0.2, 0.8]], dtype=D), atol=0.001, rtol=0)


def test_less_noise_than_it_takes_is_none():
    network = duplicated()
    network.columns[1].own.head.bias.data[2] = 1e6  # one class, whatever is heard
    assert not perturbed(network, drawn(), shares=False).any()
    assert perturbed(network, drawn()).isnan().all()


# what it leaves, and what cannot be


@BOTH
def test_looking_changes_nothing(sensitivity):
    def column():
        body = ConvNet(4, size=8, width=2, units=8)
        body.block1.add_module("norm", nn.BatchNorm2d(2))
        body.relu6 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
        return body

    network, x = ProgressiveNetwork(column(), ["fc6", "head"]), torch.randn(40, 1, 8, 8)
    network.add_column(column(), alpha=1.0)
    labels = network.eval()(x).argmax(1)
    network.train()

    def all_of_it():
        learns = [p.requires_grad for p in network.parameters()]
        hooks = [len(part._forward_hooks) for part in network.modules()]
        values = [*network.state_dict().values(), torch.get_rng_state()]
        modes = [part.training for part in network.modules()]
        return [value.clone() for value in values], (learns, hooks, modes)

    def look():
        if sensitivity is fisher_sensitivity:
            return fisher_sensitivity(network, x)
        return perturbation_sensitivity(network, x, labels)

    values, rest = all_of_it()
    with torch.no_grad():
        shares = look()
    assert_close(shares.sum(1), torch.ones(2))
    assert torch.equal(look(), shares)
    now, others = all_of_it()
    assert all(map(torch.equal, now, values))
    assert others == rest
    assert all(p.grad is None for p in network.parameters())
    assert not shares.requires_grad


def test_images_of_inference_mode_are_taken():
    network = perceptrons((8, 6), (8, 6))
    with torch.inference_mode():
        x = drawn()
        shares = fisher_sensitivity(network, x)
    assert torch.equal(shares, fisher_sensitivity(network, x.clone()))


def test_the_seed_is_that_of_the_noise():
    network, x = perceptrons((8, 6), (8, 6)), drawn()
    a, b = (perturbed(network, x, shares=False, seed=seed) for seed in (0, 1))
    assert not torch.equal(a, b)
    assert torch.equal(a, perturbed(network, x, shares=False))


def test_sensitivities_that_cannot_be():
    network, x = perceptrons((8, 6), (8, 6)), drawn()
    with pytest.raises(ValueError, match=r"x must be floating point, got torch\.int64"):
        fisher_sensitivity(network, x.long())
    with pytest.raises(ValueError, match=r"x must hold at least two images, got 1"):
        fisher_sensitivity(network, x[:1])
    wrong = (network(x).argmax(1) + 1) % 4
    with pytest.raises(ValueError, match=r"must do better than guessing, 0\.25, got 0\.0"):
        perturbation_sensitivity(network, x, wrong)
    with pytest.raises(ValueError, match=r"labels must be in \[0, 4\), got 0 to 9"):
        perturbation_sensitivity(network, x, torch.arange(60) % 10)
    assert math.isclose(fisher_sensitivity(network, x).sum().item(), 2)
