"""Uncertainty weighting: densities, the optimum and what follows from it, known noise, and the
trap of weight decay.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from common import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.distributions import Laplace, Normal
from torch.testing import assert_close

from tlcourse.methods.distillation import soften
from tlcourse.methods.fine_tuning import parameter_groups
from tlcourse.methods.uncertainty import UncertaintyWeighting, softmax_nll
from tlcourse.training import fit

TASKS = {"seg": "classification", "depth": "regression", "inst": "laplace"}


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def weighting(s=(0.3, -0.7, 1.1), **options):
    return UncertaintyWeighting(TASKS, initial=dict(zip(TASKS, s)), **options)


def losses(*values):
    return dict(zip(TASKS, torch.tensor(values or (0.4, 30.0, 2.0)).unbind()))


def minimise(parameters, loss):
    """LBFGS, until nothing moves."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=200, tolerance_grad=1e-10, line_search_fn="strong_wolfe"
    )

    def closure():
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    for _ in range(3):
        optimizer.step(closure)


# what it is


@often
@given(seeds, st.floats(-3, 3))
def test_two_regressions_are_the_normal_density_of_vectors(seed, s):  # U2
    g = torch.Generator().manual_seed(seed)
    (y1, f1), (y2, f2) = torch.randn(2, 50, 3, generator=g), torch.randn(2, 50, generator=g)
    both = UncertaintyWeighting(
        {"a": "regression", "b": "regression"}, dims={"a": 3}, initial={"a": s, "b": 0.5}
    )
    said = both({"a": (y1 - f1).square().sum(1).mean(), "b": (y2 - f2).square().mean()})
    density = Normal(f1, math.exp(s / 2)).log_prob(y1).sum(1) + Normal(f2, math.exp(0.25)).log_prob(
        y2
    )
    assert_close(said, -density.mean() - 4 * 0.5 * math.log(2 * math.pi))
    sigma1, sigma2 = both.s.detach().div(2).exp()
    for weight, sigma in zip(both.weights().values(), (sigma1, sigma2)):
        assert_close(weight, 1 / (2 * sigma**2))
    nothing = both({"a": torch.tensor(0.0), "b": torch.tensor(0.0)})
    assert_close(nothing, 3 * sigma1.log() + sigma2.log())


@often
@given(seeds, st.floats(-3, 3))
def test_absolute_errors_are_a_laplace_density(seed, s):
    y, f = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(seed))
    one = UncertaintyWeighting({"v": "laplace"}, dims={"v": 2}, initial={"v": s})
    said = one({"v": (y - f).abs().sum(1).mean()})
    density = Laplace(f, math.exp(s)).log_prob(y).sum(1).mean()
    assert_close(said, -density - 2 * math.log(2))


def test_the_papers_absolute_errors_count_half():
    L = torch.tensor(3.0)
    for s in (-1.0, 0.0, 2.0):
        paper, laplace = (
            UncertaintyWeighting({"v": kind}, initial={"v": s})({"v": L})
            for kind in ("regression", "laplace")
        )
        assert_close(2 * paper, laplace)


def test_the_softmax_becomes_uniform_as_sigma_grows():  # U1
    logits, labels = torch.randn(40, 5) * 3, torch.randint(5, (40,))
    apart = [
        (softmax_nll(logits, labels, s) - math.log(5)).abs().item() for s in (2.0, 6.0, 12.0, 30.0)
    ]
    assert apart == sorted(apart, reverse=True)
    assert apart[-1] < 1e-6
    assert_close(soften(logits, math.exp(30.0)), torch.full((40, 5), 1 / 5))
    assert_close(
        softmax_nll(logits, labels, 1.4), F.nll_loss(soften(logits, math.exp(1.4)).log(), labels)
    )


@often
@given(seeds, st.floats(-2, 3))
def test_the_approximation_is_exact_at_sigma_one_and_short_of_a_ratio_elsewhere(seed, s):  # U3
    g = torch.Generator().manual_seed(seed)
    f, y = torch.randn(60, 4, generator=g).double() * 2, torch.randint(4, (60,), generator=g)
    near = UncertaintyWeighting({"seg": "classification"}, initial={"seg": s}).double()
    approximate = near({"seg": F.cross_entropy(f, y)})
    variance = near.s.detach()[0].exp()
    ratio = ((f / variance).logsumexp(1) - f.logsumexp(1) / variance).mean()
    exact = softmax_nll(f, y, near.s[0])
    assert_close(exact - approximate, ratio - variance.log() / 2)
    with torch.no_grad():
        near.s.zero_()
    assert_close(softmax_nll(f, y, 0.0), near({"seg": F.cross_entropy(f, y)}))
    assert_close(softmax_nll(f, y, 0.0), F.cross_entropy(f, y))


def test_away_from_one_it_is_another_loss():
    f, y = torch.tensor([[2.0, 0.0, -1.0]]), torch.tensor([0])
    L, exact = F.cross_entropy(f, y).item(), {-9.0: 0.0, 9.0: math.log(3)}
    for s, limit in exact.items():
        near = UncertaintyWeighting({"seg": "classification"}, initial={"seg": s})
        assert_close(softmax_nll(f, y, s).item(), limit, atol=1e-3, rtol=0)
        assert_close(near({"seg": torch.tensor(L)}).item(), L * math.exp(-s) + s / 2)
        assert abs(near({"seg": torch.tensor(L)}) - limit) > 3


def test_the_sum_is_that_of_public_code():
    L, s = torch.tensor([2.0, 30.0, 0.1]), torch.tensor([-0.5, 0.2, 1.0])
    names = ["a", "b", "c"]
    ours = UncertaintyWeighting(
        dict.fromkeys(names, "regression"), initial=dict(zip(names, s.tolist()))
    )
    said = ours(dict(zip(names, L)))
    assert_close(said, (L / (2 * s.exp()) + s / 2).sum())  # LibMTL
    assert_close(2 * said, ((-s).exp() * L + s).sum())  # the authors' demonstration


@pytest.mark.parametrize("dims", [{}, {"depth": 3, "inst": 2}])
def test_gradients_are_right(dims):
    total = weighting(dims=dims).double()
    L = torch.tensor([0.4, 30.0, 2.0], dtype=torch.float64, requires_grad=True)

    def function(L, s):
        return torch.func.functional_call(total, {"s": s}, (dict(zip(TASKS, L)),))

    assert torch.autograd.gradcheck(function, (L, total.s))
    f = torch.randn(4, 3, 2, dtype=torch.float64, requires_grad=True)
    s = torch.tensor(0.4, dtype=torch.float64, requires_grad=True)
    y = torch.randint(3, (4, 2))
    assert torch.autograd.gradcheck(lambda f, s: softmax_nll(f, y, s), (f, s))


def test_every_pixel_counts_alike_in_the_exact_likelihood():
    f, y = torch.randn(2, 5, 3, 4), torch.randint(5, (2, 3, 4))
    flat = f.permute(0, 2, 3, 1).reshape(-1, 5)
    assert_close(softmax_nll(f, y, 0.7), softmax_nll(flat, y.flatten(), 0.7))


# the optimum


@pytest.mark.parametrize("D", [1, 3])
@pytest.mark.parametrize("start", [-4.0, 0.0, 4.0])
def test_the_optimum_is_the_closed_form_wherever_it_starts(D, start):
    total = weighting([start] * 3, dims={"depth": D, "inst": D}).double()
    given = {"seg": 0.02, "depth": 30.0, "inst": 2.0}
    L = {name: torch.tensor(value).double() for name, value in given.items()}
    minimise(total.parameters(), lambda: total(L))
    expected = [math.log(2 * 0.02), math.log(30 / D), math.log(2 / D)]
    assert_close(total.s.detach(), torch.tensor(expected).double(), atol=1e-4, rtol=0)


def test_a_sum_over_samples_needs_them_among_the_dimensions():
    errors = torch.randn(200, 3).double()
    summed = UncertaintyWeighting({"v": "regression"}, dims={"v": 600}).double()
    mean = UncertaintyWeighting({"v": "regression"}).double()
    minimise(summed.parameters(), lambda: summed({"v": errors.square().sum()}))
    minimise(mean.parameters(), lambda: mean({"v": errors.square().mean()}))
    assert_close(summed.s.detach(), mean.s.detach(), atol=1e-4, rtol=0)


def test_the_trunk_does_not_see_the_scale_of_a_loss_at_the_optimum():
    torch.manual_seed(0)
    trunk, x = nn.Linear(4, 6).double(), torch.randn(20, 4).double()
    target = torch.randn(20, 6).double()

    def gradient(scale, best=True):
        total = weighting([0.0] * 3).double()

        def tasks():
            h = trunk(x)
            L = [F.cross_entropy(h, target.argmax(1)), F.mse_loss(h, target), h.abs().mean()]
            return {name: c * value for name, c, value in zip(TASKS, scale, L)}

        fixed = {name: value.detach() for name, value in tasks().items()}
        if best:
            minimise(total.parameters(), lambda: total(fixed))
        return torch.autograd.grad(total(tasks()), trunk.weight)[0]

    assert_close(gradient((1, 1, 1)), gradient((1000, 0.01, 7)), atol=1e-6, rtol=1e-5)
    assert not torch.allclose(gradient((1, 1, 1), best=False), gradient((1, 0.01, 7), best=False))


def test_known_noise_is_recovered():
    g = torch.Generator().manual_seed(0)
    x = torch.randn(4000, 1, generator=g)
    noise = torch.randn(4000, 2, generator=g) * torch.tensor([10.0, 1.0])
    y = torch.cat([2 * x + 8, 3 - 3 * x], 1) + noise
    line, total = nn.Linear(1, 2), UncertaintyWeighting({"a": "regression", "b": "regression"})

    def loss():
        a, b = (line(x) - y).square().mean(0)
        return total({"a": a, "b": b})

    minimise([*line.parameters(), *total.parameters()], loss)
    a, b = (total.s / 2).exp().tolist()
    assert a == pytest.approx(10, rel=0.03)
    assert b == pytest.approx(1, rel=0.03)
    assert line.weight[1].item() == pytest.approx(-3, abs=0.06)


def test_a_small_loss_makes_the_total_negative():
    total = UncertaintyWeighting({"v": "regression"}, initial={"v": -4.6})
    assert total({"v": torch.tensor(0.01)}) < 0
    spread = torch.tensor(0.01) ** 0.5
    density = Normal(0.0, spread).log_prob(spread) + 0.5 * math.log(2 * math.pi)
    assert_close(total({"v": torch.tensor(0.01)}), -density, atol=1e-3, rtol=0)


# s is trained, at a rate of its own, and never decays


class TwoTasks(nn.Module):
    """An objective that holds its weighting, as `fit` wants it."""

    def __init__(self):
        super().__init__()
        tasks = {"near": "regression", "far": "regression"}
        self.total = UncertaintyWeighting(tasks, initial={"near": 3.0, "far": 3.0})

    def forward(self, model, batch):
        near, far = (model(batch.x) - batch.y).square().mean(0)
        return self.total({"near": near, "far": far})


def pairs():
    x = torch.randn(64, 3, generator=torch.Generator().manual_seed(0))
    return x, x[:, :2] + torch.tensor([0.5, 3.0]) * x.roll(1, 0)[:, :2]


def trained(decay, rate=None, plain=False):
    torch.manual_seed(0)
    model, objective = nn.Linear(3, 2).requires_grad_(False), TwoTasks()
    groups = [*parameter_groups(objective, rate)] if rate else None
    fit(
        model,
        pairs(),
        (lambda model, batch: objective(model, batch)) if plain else objective,
        steps=30,
        batch_size=64,
        lr=1e-3,
        groups=groups,
        weight_decay=decay,
        progress=False,
    )
    return objective.total.s.detach()


def test_fit_trains_it_without_weight_decay():
    s = trained(0.0)
    assert (s < 2.99).all()
    assert torch.equal(trained(50.0), s)


@pytest.mark.parametrize("plain", [False, True])
def test_a_group_gives_it_a_rate_and_no_decay_even_in_a_plain_function(plain):
    s = trained(0.0, rate=2e-2, plain=plain)
    assert torch.equal(trained(50.0, rate=2e-2, plain=plain), s)
    ratio = (3 - s) / (3 - trained(0.0))
    assert ((ratio > 10) & (ratio < 25)).all()


def test_an_optimizer_by_hand_leaves_it_alone():
    total = weighting()
    before = total.s.detach().clone()
    net = nn.Linear(2, 2)
    groups = [*parameter_groups(net, 0.1), *parameter_groups(total, 0.1)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.9)
    (0 * total.s.sum() + 0 * net.weight.sum()).backward()
    weight = net.weight.detach().clone()
    optimizer.step()
    assert torch.equal(total.s.detach(), before)
    assert not torch.equal(net.weight.detach(), weight)


# with the rest of the house


def test_weights_are_what_multiplies_each_loss_and_have_no_gradient():
    total, L = weighting(), losses()
    leaves = [value.requires_grad_() for value in L.values()]
    total(L).backward()
    said = total.weights()
    assert list(said) == list(TASKS)
    for leaf, weight in zip(leaves, said.values()):
        assert_close(leaf.grad, weight)
        assert not weight.requires_grad
    expected = [math.exp(-0.3), 0.5 * math.exp(0.7), math.exp(-1.1)]
    assert_close(torch.stack(list(said.values())), torch.tensor(expected))
    with torch.no_grad():
        total.s.zero_()
    assert_close(torch.stack(list(said.values())), torch.tensor(expected))  # a plot keeps them


def test_the_order_of_the_losses_makes_no_difference():
    L = losses()
    assert torch.equal(weighting()(dict(reversed(L.items()))), weighting()(L))


def test_it_moves_and_is_saved_like_any_module(device):
    total = weighting().to(device)
    L = {name: value.to(device) for name, value in losses().items()}
    said = total(L)
    assert said.device.type == device.type
    assert_close(said.cpu(), weighting()(losses()))
    assert list(total.state_dict()) == ["s"]
    other = UncertaintyWeighting(TASKS)
    other.load_state_dict(total.state_dict())
    assert torch.equal(other(losses()), weighting()(losses()))
    assert torch.equal(copy.deepcopy(total)(L), said)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision_stays_outside(kind):
    half = {name: value.to(kind) for name, value in losses(0.5, 60000.0, 2.0).items()}
    total = weighting([0.0, -3.0, 1.0])
    assert total.s.dtype == torch.float32
    said = total(half)
    assert said.dtype == torch.float32
    assert_close(said, total({name: value.float() for name, value in half.items()}))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(total(half), said)
    f, y = torch.randn(6, 3).to(kind), torch.randint(3, (6,))
    assert_close(softmax_nll(f, y, 0.3), softmax_nll(f.float(), y, 0.3))


def test_no_step_waits_for_a_device(monkeypatch):
    """Meta tensors hold no numbers: who asks for one gets an error; nor may one be written out."""
    monkeypatch.delattr(torch.Tensor, "__format__")
    monkeypatch.setattr(torch.Tensor, "__repr__", None)
    total = weighting().to("meta")
    L = {name: torch.ones((), device="meta") for name in TASKS}
    total(L).backward()
    assert total.weights()["seg"].is_meta
    f, y = torch.ones(4, 3, device="meta"), torch.ones(4, dtype=torch.int64, device="meta")
    assert softmax_nll(f, y, total.s[0]).is_meta


# what cannot be

ONE = torch.tensor(1.0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: UncertaintyWeighting({}),
            "tasks must be at least one, each of classification, regression, laplace, got {}",
        ),
        (
            lambda: UncertaintyWeighting({"seg": "softmax"}),
            "each of classification, regression, laplace, got {'seg': 'softmax'}",
        ),
        (lambda: weighting(dims={"seg": 0}), "dims must be whole numbers >= 1, got 1, 0"),
        (lambda: weighting(dims={"seg": 1.5}), "dims must be whole numbers >= 1, got 1, 1.5"),
        (
            lambda: weighting(dims={"dept": 2}),
            "dims and initial must be of seg, depth, inst, got 'dept'",
        ),
        (
            lambda: UncertaintyWeighting(TASKS, initial={"dept": 2}),
            "dims and initial must be of seg, depth, inst, got 'dept'",
        ),
        (
            lambda: weighting([math.nan] * 3),
            "initial must be finite numbers, got {.seg.: nan",
        ),
        (
            lambda: weighting()({"seg": ONE, "depth": ONE}),
            "losses must be of seg, depth, inst, got seg, depth",
        ),
        (
            lambda: weighting()({**losses(), "pose": ONE}),
            "losses must be of seg, depth, inst, got seg, depth, inst, pose",
        ),
        (lambda: weighting()({}), "losses must be of seg, depth, inst, got none"),
        (
            lambda: weighting()({**losses(), "inst": torch.ones(2)}),
            r"the loss of 'inst' must be a scalar tensor, got shape \(2,\)",
        ),
        (
            lambda: weighting()({**losses(), "inst": 1.0}),
            "the loss of 'inst' must be a scalar tensor, got float",
        ),
        (
            lambda: softmax_nll(torch.ones(3), torch.ones(3).long(), 0.0),
            r"must be \(N, K, …\), \(N, …\) and \(\), not empty, got \(3,\), \(3,\) and \(\)",
        ),
        (
            lambda: softmax_nll(torch.ones(2, 3, 4), torch.ones(2, 3).long(), 0.0),
            r"and \(\), not empty, got \(2, 3, 4\), \(2, 3\) and \(\)",
        ),
        (
            lambda: softmax_nll(torch.ones(2, 3), torch.tensor([0, 3]), 0.0),
            r"labels must be in \[0, 3\), got 0 to 3",
        ),
        (
            lambda: softmax_nll(torch.ones(0, 3), torch.ones(0).long(), 0.0),
            r"and \(\), not empty, got \(0, 3\), \(0,\) and \(\)",
        ),
        (
            lambda: softmax_nll(torch.ones(2, 3), torch.tensor([0, 1]), torch.zeros(2)),
            r"and \(\), not empty, got \(2, 3\), \(2,\) and \(2,\)",
        ),
    ],
)
def test_what_cannot_be_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("bad", [math.nan, math.inf, -0.5])
def test_a_loss_that_is_no_number_or_negative_is_named(bad):
    with pytest.raises(
        FloatingPointError, match=f"losses must be finite and >= 0, got {{'depth': {bad}}}"
    ):
        weighting()(losses(0.4, bad, 2.0))
