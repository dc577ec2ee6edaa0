"""The course's networks: shapes, names, sizes, and that `record` can tap every layer."""

from itertools import pairwise

import pytest
import torch

from tlcourse.models import MLP, ConvNet
from tlcourse.training import record, seed_everything

CONV = ["block1", "block2", "block3", "flatten", "fc6", "relu6", "fc7", "relu7", "head"]


def names(model):
    return [name for name, _ in model.named_children()]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(5, 12), (5, 1, 3, 4), (5, 3, 2, 2)])
def test_mlp_flattens_whatever_comes(shape):
    x = torch.randn(shape)
    net = MLP(12, 7, 3)
    assert net(x).shape == (5, 3)
    assert torch.equal(net(x), net(x.flatten(1)))


def test_mlp_is_its_formula():
    net = MLP(6, 5, 4, 3)
    x = torch.randn(8, 6)
    h = (x @ net.fc1.weight.T + net.fc1.bias).clamp(min=0)
    h = (h @ net.fc2.weight.T + net.fc2.bias).clamp(min=0)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize(
    ("sizes", "shares", "expected"),
    [
        ((4, 3), {}, ["flatten", "head"]),
        ((4, 9, 3), {}, ["flatten", "fc1", "relu1", "head"]),
        ((4, 9, 8, 3), {}, ["flatten", "fc1", "relu1", "fc2", "relu2", "head"]),
        ((4, 9, 8, 3), {"dropout": 0.5}, ["flatten", "fc1", "relu1", "dropout1", "fc2", "relu2", "dropout2", "head"]),
        ((4, 9, 3), {"input_dropout": 0.2}, ["flatten", "input_dropout", "fc1", "relu1", "head"]),
        ((4, 3), {"dropout": 0.5, "input_dropout": 0.2}, ["flatten", "input_dropout", "head"]),
    ],
)
def test_mlp_names_its_layers_in_order(sizes, shares, expected):
    assert names(MLP(*sizes, **shares)) == expected


@pytest.mark.parametrize("sizes", [(784, 10), (784, 800, 800, 10), (784, 1200, 1200, 10), (5, 1, 1)])
def test_mlp_has_as_many_parameters_as_the_formula_says(sizes):
    assert parameters(MLP(*sizes)) == sum((n + 1) * m for n, m in pairwise(sizes))


def test_mlp_drops_the_shares_it_was_told():
    net = MLP(10_000, 4, 2, dropout=0.5, input_dropout=0.2)
    assert (net.input_dropout.p, net.dropout1.p) == (0.2, 0.5)
    x = torch.ones(1, 10_000)
    torch.manual_seed(0)
    assert (net.input_dropout(x) == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(net.eval().input_dropout(x), x)


@pytest.mark.parametrize("sizes", [(), (784,), (784, 0, 10), (0, 10), (784, -1)])
def test_mlp_refuses_sizes(sizes):
    with pytest.raises(ValueError, match=r"^sizes must be at least two numbers >= 1, got \("):
        MLP(*sizes)


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_mlp_refuses_shares(name, share):
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 1\), got {share}"):
        MLP(4, 3, 2, **{name: share})


@pytest.mark.parametrize("size", [8, 9, 15, 16, 28, 33])
def test_convnet_takes_any_size_from_eight(size):
    net = ConvNet(7, channels=3, size=size, width=2, units=5)
    x = torch.randn(2, 3, size, size)
    assert net(x).shape == (2, 7)
    for i in (1, 2, 3):
        x = net.get_submodule(f"block{i}")(x)
        assert x.shape == (2, 2 ** (i - 1) * 2, size // 2**i, size // 2**i)


def test_convnet_takes_mnist_unless_told_otherwise():
    assert ConvNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_convnet_names_its_layers_in_order_and_has_no_batchnorm():
    net = ConvNet()
    assert names(net) == CONV
    assert [names(net.get_submodule(f"block{i}")) for i in (1, 2, 3)] == [["conv", "relu", "pool"]] * 3
    assert not list(net.buffers())


@pytest.mark.parametrize(("classes", "channels", "size", "width", "units"), [(10, 1, 28, 16, 128), (3, 3, 32, 4, 6), (2, 1, 8, 1, 1)])
def test_convnet_has_as_many_parameters_as_the_formula_says(classes, channels, size, width, units):
    maps = [channels, width, 2 * width, 4 * width]
    convolutions = sum((9 * n + 1) * m for n, m in pairwise(maps))
    flat = maps[3] * (size // 8) ** 2
    full = (flat + 1) * units + (units + 1) * units + (units + 1) * classes
    assert parameters(ConvNet(classes, channels=channels, size=size, width=width, units=units)) == convolutions + full


@pytest.mark.parametrize("size", [7, 0, -8])
def test_convnet_refuses_small_images(size):
    with pytest.raises(ValueError, match=f"^size must be at least 8 pixels .*, got {size}$"):
        ConvNet(size=size)


@pytest.mark.parametrize("wrong", [{"classes": 0}, {"channels": 0}, {"width": 0}, {"units": -1}])
def test_convnet_refuses_counts_below_one(wrong):
    with pytest.raises(ValueError, match=r"^classes, channels, width and units must be >= 1, got "):
        ConvNet(**wrong)


@pytest.mark.parametrize("build", [lambda: MLP(64, 9, 8, 3, dropout=0.5, input_dropout=0.2), lambda: ConvNet(3, size=8, width=2, units=5)])
def test_every_named_layer_can_be_tapped(build, device):
    net = build().to(device).eval()
    x = torch.rand(6, 1, 8, 8)
    taps = record(net, (x, torch.zeros(6)), of=names(net))
    assert list(taps) == names(net)
    for name, layer in net.named_children():
        x = layer(x.to(device))
        torch.testing.assert_close(taps[name], x)


@pytest.mark.parametrize("build", [lambda: MLP(12, 9, 3), lambda: ConvNet(3, size=8, width=2)])
def test_the_same_seed_gives_the_same_network(build):
    def weights(seed):
        seed_everything(seed)
        return torch.cat([p.flatten() for p in build().parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))
