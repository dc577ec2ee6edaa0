"""What grows leaves the rest as it is: blocks, scales, starts, and which units read which."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from tlcourse.methods.fine_tuning import freeze, parameter_groups, replace_head
from tlcourse.methods.growing import ScaledNorm, Widened, deepen, widen
from tlcourse.models import MLP, ConvNet

SIZES = st.lists(st.integers(1, 6), min_size=1, max_size=3)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return ConvNet(5, width=2, units=8).eval()


@pytest.fixture
def x():
    return torch.rand(7, 1, 28, 28, generator=torch.Generator().manual_seed(1))


def features(model: nn.Sequential, x: torch.Tensor) -> torch.Tensor:
    """What the classifier sees."""
    return model[:-1](x)


# ScaledNorm


@settings(deadline=None, max_examples=50)
@given(SIZES, st.floats(0.1, 50), st.integers(0, 99))
def test_every_block_of_every_sample_gets_the_length_gamma(blocks, scale, seed):
    h = torch.randn(4, sum(blocks), generator=torch.Generator().manual_seed(seed)) * 100
    for part in ScaledNorm(blocks, scale)(h).split(blocks, 1):
        torch.testing.assert_close(part.norm(dim=1), torch.full((4,), scale))


def test_it_is_the_equation_with_a_gamma_for_each_unit():
    h = torch.tensor([[3.0, 4.0, 0.0, 2.0], [1.0, 0.0, -5.0, 12.0]])
    norm = ScaledNorm([2, 2], 10.0)
    norm.gamma.data = torch.tensor([1.0, 2.0, 3.0, 4.0])
    expected = [[3 / 5, 2 * 4 / 5, 0.0, 4.0], [1.0, 0.0, 3 * -5 / 13, 4 * 12 / 13]]
    torch.testing.assert_close(norm(h), torch.tensor(expected))


def test_one_number_is_one_block():
    h = torch.randn(3, 6)
    assert torch.equal(ScaledNorm(6)(h), ScaledNorm([6])(h))
    assert not torch.allclose(ScaledNorm(6)(h), ScaledNorm([3, 3])(h))


@pytest.mark.parametrize("c", [1e-3, 7.0, 1e30])
def test_how_loud_a_block_is_makes_no_difference(c):
    h = torch.randn(3, 6)
    torch.testing.assert_close(
        ScaledNorm([2, 4])(torch.cat([h[:, :2], c * h[:, 2:]], 1)), ScaledNorm([2, 4])(h)
    )


def test_a_block_shorter_than_the_smallest_length_is_divided_by_that():
    h = torch.tensor([[3e-6, 4e-6]])
    torch.testing.assert_close(ScaledNorm(2, 1.0)(h), h / 1e-4)


def test_gradients_are_right_and_of_dead_blocks_finite():
    h = torch.randn(3, 5, dtype=torch.float64, requires_grad=True)
    norm = ScaledNorm([2, 3]).double()
    assert torch.autograd.gradcheck(norm, (h,))
    short = torch.full((1, 5), 1e-6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(norm, (short,), eps=1e-9, atol=1e-3)
    dead = torch.zeros(2, 5, requires_grad=True)
    out = ScaledNorm([2, 3])(dead)
    out.sum().backward()
    assert torch.equal(out, torch.zeros(2, 5))
    assert dead.grad.isfinite().all()
    half = ScaledNorm([2, 3])(torch.full((1, 5), 6e4, dtype=torch.float16))
    torch.testing.assert_close(half[:, :2].norm(dim=1), torch.tensor([10.0]))


def test_gamma_is_trained_unless_told_otherwise_and_never_decays():
    assert ScaledNorm(3).gamma.requires_grad
    assert not ScaledNorm(3, learn=False).gamma.requires_grad
    model = deepen(network(), 6, scale=20.0)
    (gamma,) = [p for name, p in model.named_parameters() if name.endswith("gamma")]
    assert gamma.tolist() == [20.0] * 6
    (group,) = [g for g in parameter_groups(model, 0.1) if any(p is gamma for p in g["params"])]
    assert group["weight_decay"] == 0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ScaledNorm(0), "units must be whole numbers >= 1, got 0"),
        (lambda: ScaledNorm([]), "units must be whole numbers >= 1, got none"),
        (lambda: ScaledNorm([3, 2.5]), "units must be whole numbers >= 1, got 3, 2.5"),
        (lambda: ScaledNorm(3, scale=0), "scale must be a finite number > 0, got 0"),
        (lambda: ScaledNorm(3)(torch.ones(2, 4)), r"h must have shape \(N, 3\), got \(2, 4\)"),
        (lambda: ScaledNorm(3)(torch.ones(3)), r"h must have shape \(N, 3\), got \(3,\)"),
    ],
)
def test_norms_that_cannot_be(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# width


@pytest.mark.parametrize("start", ["rand", "copy"])
@pytest.mark.parametrize(
    "units", [{"fc7": 5}, {"fc7": 20}, {"fc6": 3, "fc7": 5}, {"fc7": 5, "fc6": 3}]
)
def test_a_wider_network_answers_as_before(x, units, start):
    model = network()
    before = model(x)
    assert widen(model, units, start=start) is model
    torch.testing.assert_close(model(x), before)
    assert features(model, x).shape == (7, 8 + units["fc7"])


def test_new_units_read_the_layer_below_and_feed_the_classifier_alone(x):
    model = widen(network(), {"fc7": 5})
    old, new = features(model, x).split([8, 5], 1)
    with torch.no_grad():
        model.fc7.old.weight += 1
    moved, same = features(model, x).split([8, 5], 1)
    assert torch.equal(same, new)
    assert not torch.equal(moved, old)
    with torch.no_grad():
        model.fc7.new.weight += 1
    still, changed = features(model, x).split([8, 5], 1)
    assert torch.equal(still, moved)
    assert not torch.equal(changed, new)
    h6 = model[:-3](x)
    torch.testing.assert_close(changed, model.fc7.new(h6).relu())


def test_of_two_wider_layers_old_units_read_old_ones_and_new_units_all(x):
    model = widen(network(), {"fc6": 3, "fc7": 5})
    old, new = features(model, x).split([8, 5], 1)
    with torch.no_grad():
        model.fc6.new.bias += 1
    same, moved = features(model, x).split([8, 5], 1)
    assert torch.equal(same, old)
    assert not torch.equal(moved, new)


def test_copies_without_noise_are_copies(x):
    old, new = features(widen(network(), {"fc7": 20}, start="copy", noise=0), x).split([8, 20], 1)
    torch.testing.assert_close(new, old[:, torch.arange(20) % 8])


def test_noise_is_measured_in_deviations_of_the_old_weights():
    model = nn.Sequential(nn.Linear(200, 300), nn.ReLU(), nn.Linear(300, 2))
    source = model[0].weight.detach().clone()
    widen(model, {"0": 300}, start="copy", noise=0.5)
    apart = model[0].new.weight.detach() - source
    assert apart.std() / source.std() == pytest.approx(0.5, rel=0.02)
    assert torch.equal(model[0].new.bias, model[0].old.bias)


def test_the_number_of_parameters():
    def many(model):
        return sum(p.numel() for p in model.parameters())

    S, below, top, classes = 5, 8, 8, 5
    grown = widen(network(), {"fc7": S}, scale=10.0)
    assert many(grown) == many(network()) + S * (below + 1) + S * classes + (top + S)


def test_a_scale_puts_a_norm_of_two_blocks_below_the_classifier(x):
    model = widen(network(), {"fc7": 6}, scale=7.0)
    assert list(dict(model.named_children()))[-2:] == ["scaled", "head"]
    for block in features(model, x).split([8, 6], 1):
        torch.testing.assert_close(block.norm(dim=1), torch.full((7,), 7.0))
    answers = replace_head(model, 3)(x)
    model.fc7.new.weight.data *= 100
    model.fc7.new.bias.data *= 100
    torch.testing.assert_close(model(x), answers)


def test_without_a_bias_and_in_another_format():
    model = nn.Sequential(nn.Linear(4, 6, bias=False), nn.Linear(6, 3, bias=False)).double()
    x = torch.randn(5, 4, dtype=torch.float64)
    before = model(x)
    widen(model, {"0": 2}, start="copy")
    torch.testing.assert_close(model(x), before)
    assert model[0].new.bias is None
    assert model[-1].weight.dtype == torch.float64
    assert deepen(model, 4, scale=1.0)(x).dtype == torch.float64


@pytest.mark.parametrize(
    ("model", "more", "message"),
    [
        (network, {"units": {}}, "units must be whole numbers >= 1, got none"),
        (network, {"units": {"fc7": 0}}, "units must be whole numbers >= 1, got 0"),
        (network, {"units": {"fc9": 3}}, "below the classifier: fc6, fc7, got fc9"),
        (network, {"units": {"head": 3}}, "classifier: fc6, fc7, got head"),
        (network, {"units": {"block1": 3}}, "classifier: fc6, fc7, got block1"),
        (network, {"units": {"fc6": 3}}, "fc7 lies above a layer that grows: it must grow, too"),
        (network, {"units": {"fc7": 3}, "start": "zero"}, "start must be 'rand' or 'copy', got"),
        (network, {"units": {"fc7": 3}, "noise": -1}, "noise must be a finite number >= 0"),
        (network, {"units": {"fc7": 3}, "scale": -1}, "scale must be a finite number > 0"),
        (
            lambda: nn.Linear(2, 2),
            {"units": {"fc7": 3}},
            "ends in a linear layer, got Linear that ends in Linear",
        ),
        (lambda: network()[:-1], {"units": {"fc7": 3}}, "got Sequential that ends in ReLU"),
        (
            nn.Sequential,
            {"units": {"fc7": 3}},
            "got Sequential that ends in Sequential",
        ),
    ],
)
def test_growth_that_cannot_be_is_refused_before_anything_moves(model, more, message):
    model = model()
    layers = list(model.modules())
    with pytest.raises(ValueError, match=message):
        widen(model, **more)
    assert list(model.modules()) == layers


def test_a_norm_in_between_does_not_fit():
    model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    with pytest.raises(
        ValueError, match="1 lies above a layer that grows: it must grow, too, or have no"
    ):
        widen(model, {"0": 2})


# depth


def test_the_classifier_sees_the_new_layer_alone(x):
    model = network()
    before = features(model, x)
    assert deepen(model, 6) is model
    assert list(dict(model.named_children()))[-3:] == ["deep", "deep_relu", "head"]
    torch.testing.assert_close(features(model, x), F.relu(model.deep(before)))
    assert model.head.in_features == 6
    assert model(x).shape == (7, 5)


def test_deeper_and_wider(x):
    model = deepen(widen(network(), {"fc7": 5}), 6, scale=10.0)
    assert model.deep.in_features == 13
    torch.testing.assert_close(features(model, x).norm(dim=1), torch.full((7,), 10.0))


@pytest.mark.parametrize(
    ("model", "units", "scale", "message"),
    [
        (network, 0, None, "units must be a whole number >= 1, got 0"),
        (network, 3, 0, "scale must be a finite number > 0, got 0"),
        (
            lambda: deepen(network(), 3),
            3,
            None,
            "must not have been deepened or scaled, and it has",
        ),
        (lambda: widen(network(), {"fc7": 3}, scale=1.0), 3, 1.0, "and it has .'scaled'."),
        (lambda: network()[:-1], 3, None, "got Sequential that ends in ReLU"),
    ],
)
def test_depth_that_cannot_be(model, units, scale, message):
    model = model()
    layers = list(model.modules())
    with pytest.raises(ValueError, match=message):
        deepen(model, units, scale=scale)
    assert list(model.modules()) == layers


# with the rest of the house


@pytest.mark.parametrize("column", ["new", "fc7", "fc6", "all"])
def test_old_parts_are_frozen_and_new_ones_move(x, column):
    parts = {"new": 7, "fc7": 6, "fc6": 4, "all": 0}  # so many layers stay
    model = replace_head(widen(network(), {"fc7": 6}, scale=10.0), 4)
    for part in model[: parts[column]]:
        freeze(part.old if isinstance(part, Widened) else part)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD(parameter_groups(model, 0.1), momentum=0.9, weight_decay=0.1)
    for _ in range(3):
        model.train()
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), torch.arange(7) % 4).backward()
        optimizer.step()
    moved = {
        name for name, value in model.state_dict().items() if not torch.equal(value, before[name])
    }
    new = {"fc7.new.weight", "fc7.new.bias", "scaled.gamma", "head.weight", "head.bias"}
    fc7 = {"fc7.old.weight", "fc7.old.bias"}
    fc6 = {"fc6.weight", "fc6.bias"}
    blocks = {name for name in before if name.startswith("block")}
    trained = {"new": new, "fc7": new | fc7, "fc6": new | fc7 | fc6, "all": {*before}}
    assert moved == trained[column]
    assert trained["all"] == new | fc7 | fc6 | blocks


def test_a_multilayer_perceptron_grows_as_well():
    model, x = MLP(4, 3, 3, 2), torch.randn(5, 4)
    before = model(x)
    torch.testing.assert_close(widen(model, {"fc1": 2, "fc2": 2})(x), before)
