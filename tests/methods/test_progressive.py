"""Progressive networks: formulas by hand, nothing old moves, laterals live, and what a score is."""

from copy import deepcopy
from math import inf, nan

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import same, state
from torch import nn
from torch.testing import assert_close

from tlcourse.methods.fine_tuning import freeze, parameter_groups, unfreeze
from tlcourse.methods.progressive import Adapter, ProgressiveNetwork, transfer_score
from tlcourse.models import MLP, ConvNet, WideResNet
from tlcourse.training import accuracy, cross_entropy, fit, predict, record

KINDS = pytest.mark.parametrize("linear", [False, True], ids=["adapter", "linear"])


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


@pytest.fixture
def x():
    return torch.randn(6, 5)


def perceptrons(*sizes, alpha=0.5, **options):
    """MLPs of these sizes, one column each, in double precision."""
    first, *others = (MLP(*s).double() for s in sizes)
    network = ProgressiveNetwork(first)
    for column in others:
        network.add_column(column, alpha=alpha, **options)
    return network


def noisy(classes=4, width=2):
    """A column with everything that moves by itself."""
    body = ConvNet(classes, size=8, width=width, units=8)
    body.relu6 = nn.Sequential(nn.ReLU(), nn.Dropout(0.5))
    body.block1.add_module("norm", nn.BatchNorm2d(width))
    return body


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(40, 1, 8, 8, generator=generator), torch.randint(
        4, (40,), generator=generator
    )


def silent(network, data):
    """Which laterals of the newest column get no gradient, or one of zeros, after one step."""
    x, y = data
    network.train()
    network.zero_grad()
    F.cross_entropy(network(x), y).backward()
    laterals = network.columns[-1].laterals.named_parameters()
    return [name for name, p in laterals if p.grad is None or not p.grad.any()]


# the formula


def by_hand(network, x, linear):
    """Three columns of two hidden layers, in the paper's letters."""
    h = []
    for k, column in enumerate(network.columns):
        own = column.own
        z1 = own.fc1(x)
        now = [F.relu(z1)]
        for i, layer in enumerate([own.fc2, own.head]):
            z = layer(now[-1])
            if k > 0:
                a = column.laterals[i]
                below = torch.cat([a.alpha[j] * h[j][i] for j in range(k)], 1)
                z = z + (
                    below @ a.U.weight.T if linear else F.relu(below @ a.V.weight.T) @ a.U.weight.T
                )
            now.append(F.relu(z) if layer is own.fc2 else z)
        h.append(now)
    return h[-1][-1]


@KINDS
def test_three_columns_of_other_widths_are_the_formula_by_hand(x, linear):
    sizes = (5, 4, 3, 2), (5, 6, 7, 4), (5, 3, 5, 3)
    network = perceptrons(*sizes, linear=linear)
    assert network.layers == ["fc2", "head"]
    said = network(x.double())
    assert said.shape == (6, 3)
    assert_close(said, by_hand(network, x.double(), linear), rtol=1e-13, atol=1e-13)
    assert not torch.allclose(said, network.columns[2].own(x.double()))


def test_convolutions_are_reduced_one_by_one_and_read_with_the_layers_own_kernel():
    def column(maps):
        first = nn.Conv2d(1, maps, 3, padding=1)
        last = nn.Conv2d(maps, 6, 3, stride=2, padding=1, padding_mode="circular")
        return nn.Sequential(first, nn.ReLU(), last).double()

    network = ProgressiveNetwork(column(5)).add_column(column(4), alpha=0.7)
    x, (old, new) = torch.randn(2, 1, 8, 8).double(), network.columns
    lateral = new.laterals[0]
    assert tuple(lateral.V.weight.shape) == (4, 5, 1, 1)
    h = F.relu(F.conv2d(0.7 * F.relu(old.own[0](x)), lateral.V.weight))
    expected = F.conv2d(F.pad(h, (1, 1, 1, 1), "circular"), lateral.U.weight, stride=2)
    assert_close(network(x), new.own(x) + expected)


@KINDS
def test_at_alpha_zero_a_column_stands_alone_to_the_bit(x, linear):
    network = perceptrons((5, 4, 3, 2), (5, 4, 3, 2), (5, 4, 3, 2), linear=linear)
    for lateral in network.columns[2].laterals:
        lateral.alpha.data.zero_()
    assert torch.equal(network(x.double()), network.columns[2].own(x.double()))
    network.columns[2].laterals[1].alpha.data[0] = 0.5  # one source at one layer is heard
    assert not torch.equal(network(x.double()), network.columns[2].own(x.double()))


def test_a_first_column_alone_is_the_network_itself(images):
    first = noisy()
    network = ProgressiveNetwork(first).eval()
    assert torch.equal(network(images[0]), first.eval()(images[0]))
    assert network.heard == []
    fit(network, images, cross_entropy, steps=2, progress=False)
    assert all(p.requires_grad for p in network.parameters())


@KINDS
def test_gradients_of_an_adapter_are_right(linear):
    lateral = Adapter(nn.Linear(4, 3).double(), [2, 5], alpha=0.5, linear=linear)
    h = [torch.randn(3, n, dtype=torch.float64, requires_grad=True) for n in (2, 5)]
    names = [name for name, _ in lateral.named_parameters()]

    def function(*values):
        weights = dict(zip(names, values))
        return torch.func.functional_call(lateral, weights, (list(values[len(names) :]),))

    assert torch.autograd.gradcheck(function, (*lateral.parameters(), *h))


def test_the_number_of_parameters_is_that_of_the_formula():
    n, K = (5, 4, 3), 2  # inputs, hidden layers, outputs
    own = 5 * 4 + 4 + 4 * 3 + 3 + 3 * K + K
    for k in (1, 2, 3):
        j = k - 1  # older columns, and a scalar for each at both layers
        adapters = 3 * (4 * j) + 3 * 3 + K * (3 * j) + K * K  # V, U, V, U
        for linear, more in ((False, adapters if j else 0), (True, j * (4 * 3 + 3 * K))):
            newest = perceptrons(*[(*n, K)] * k, linear=linear).columns[-1]
            assert sum(p.numel() for p in newest.parameters()) == own + 2 * j + more


def test_hidden_is_the_smaller_side_or_what_is_asked_for():
    network = perceptrons((5, 4, 3, 2), (5, 4, 3, 2), hidden={"head": 9})
    assert [a.V.out_features for a in network.columns[1].laterals] == [3, 9]
    assert Adapter(nn.Linear(3, 8), [5]).V.out_features == 3
    grouped = Adapter(nn.Conv1d(6, 4, 3, groups=2, dilation=2, padding="same"), [5, 6])
    assert grouped.U.dilation == (2,)
    assert grouped([torch.randn(2, 5, 7), torch.randn(2, 6, 7)]).shape == (2, 4, 7)


# nothing old moves


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_old_answers_and_all_that_makes_them_stay_bit_for_bit(images, optimizer):  # P1
    network = ProgressiveNetwork(noisy())
    fit(network, images, cross_entropy, steps=3, progress=False)
    first, answers = state(network.columns[0]), [predict(network, images)]
    for classes in (4, 6):
        before = state(network)
        network.add_column(noisy(classes, width=3), alpha=0.5)
        options = {"optimizer": optimizer, "weight_decay": 0.1, "lr": 0.01}
        fit(network, images, cross_entropy, steps=4, progress=False, **options)
        after = state(network)
        assert all(torch.equal(after[name], before[name]) for name in before)
        for k, said in enumerate(answers):
            assert torch.equal(predict(network.task(k), images), said)
        answers.append(predict(network, images))
    assert same(first, state(network.columns[0]))


def test_an_optimizer_that_is_given_everything_moves_the_newest_column_alone(images):
    network = ProgressiveNetwork(noisy())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    F.cross_entropy(network(images[0]), images[1]).backward()
    optimizer.step()  # there is momentum now
    network.add_column(noisy(), alpha=0.5)
    optimizer.add_param_group({"params": list(network.columns[1].parameters())})
    before = state(network)
    for _ in range(3):
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(network.train()(images[0]), images[1]).backward()
        optimizer.step()
    moved = {name for name, value in state(network).items() if not torch.equal(value, before[name])}
    assert moved == {name for name in before if name.startswith("columns.1.")}


def test_no_gradient_reaches_an_old_column(images):
    network = ProgressiveNetwork(noisy()).add_column(noisy()).add_column(noisy())
    x = images[0]
    F.cross_entropy(network(x), images[1]).backward()
    for column in network.columns[:2]:
        assert all(p.grad is None and not p.requires_grad for p in column.parameters())
    graphs = []
    for column in network.columns[:2]:
        column.own.fc7.register_forward_hook(lambda *seen: graphs.append(seen[-1].requires_grad))
    network(x.clone().requires_grad_())
    assert graphs == [True, True]  # the gradient of the input takes the old ways, too
    for column in network.columns:
        unfreeze(column)
    network(x)
    with torch.no_grad():
        network(x.clone().requires_grad_())
    assert graphs[2:] == [False] * 4


def test_the_gradient_of_the_input_is_right():
    network = perceptrons((5, 4, 3, 2), (5, 4, 3, 2))
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(network, x)
    network(x).sum().backward()
    assert all(p.grad is None for p in network.columns[0].parameters())


def test_training_mode_does_not_wake_old_columns(images):
    network = ProgressiveNetwork(noisy()).add_column(noisy()).train()
    old, new = network.columns
    assert not any(part.training for part in old.modules())
    assert all(part.training for part in new.modules())
    for part in old.modules():
        part.training = True  # by hand, past train()
    before = state(old)
    features = [record(network, images, of=network.heard) for _ in range(2)]
    network.train()(images[0])
    assert same(state(old), before)
    assert same(*features)
    network = ProgressiveNetwork(noisy()).eval().add_column(noisy())
    assert not any(part.training for part in network.modules())


# laterals live


def silenced(network):
    """A fault of a library in use: its forward asks a list of old columns that nobody fills."""
    network.forward = lambda x: network.columns[-1].own(x)
    return network


def unheard(network):
    """Another: adapters are built and never registered, so no optimizer has them."""
    for column in network.columns:
        column.laterals = nn.ModuleList()
    return network


def test_groups_hold_the_newest_column_and_do_not_shrink_alpha():
    network = ProgressiveNetwork(noisy()).add_column(noisy(), alpha=0.3)
    groups = parameter_groups(network, 0.01)
    listed = [p for group in groups for p in group["params"]]
    assert {*listed} == {*network.columns[1].parameters()}
    kept = {p for group in groups if group.get("weight_decay") == 0 for p in group["params"]}
    assert {lateral.alpha for lateral in network.columns[1].laterals} <= kept


@KINDS
@pytest.mark.parametrize("columns", [2, 3])
def test_every_part_of_every_lateral_gets_gradient_and_moves(images, linear, columns):
    network = ProgressiveNetwork(ConvNet(4, size=8, width=4, units=16))
    for _ in range(columns - 1):
        network.add_column(ConvNet(4, size=8, width=4, units=16), alpha=0.1, linear=linear)
    assert network.layers == ["block2.conv", "block3.conv", "fc6", "fc7", "head"]
    assert silent(network, images) == []
    alphas = [lateral.alpha for lateral in network.columns[-1].laterals]
    assert all(a.shape == (columns - 1,) and a.grad.all() for a in alphas)
    before = state(network.columns[-1].laterals)
    fit(network, images, cross_entropy, steps=2, progress=False)
    after = state(network.columns[-1].laterals)
    assert [name for name in before if torch.equal(after[name], before[name])] == []


def test_dead_laterals_are_found(images):
    network = ProgressiveNetwork(ConvNet(4, size=8)).add_column(ConvNet(4, size=8))
    assert len(silent(silenced(network), images)) == 5 * 3
    network = ProgressiveNetwork(ConvNet(4, size=8)).add_column(ConvNet(4, size=8))
    with pytest.raises(IndexError):
        unheard(network)(images[0])


@KINDS
def test_a_column_never_runs_without_what_its_laterals_should_hear(x, linear):
    network = perceptrons((5, 4, 3, 2), (5, 4, 3, 2), linear=linear)
    with pytest.raises(ValueError, match=r"h must be \[4\] features of old columns, got \[\]"):
        network.columns[1](x.double())


class Attention(nn.Module):
    """Its `out_proj` is a linear layer that is never called: PyTorch uses its weights alone."""

    def __init__(self):
        super().__init__()
        self.below, self.attend = nn.Linear(4, 4), nn.MultiheadAttention(4, 2)
        self.head = nn.Linear(4, 2)

    def forward(self, x):
        h = self.below(x)
        return self.head(self.attend(h, h, h)[0])


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.below, self.shared = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.shared(self.shared(self.below(x)))


@pytest.mark.parametrize(
    ("column", "message"),
    [
        (Attention, "must be met once in a pass, got {'attend.out_proj': 0}"),
        (Twice, "must be met once in a pass, got {'shared': 2}"),
    ],
)
def test_a_layer_that_cannot_hear_is_no_silence(column, message):
    network = ProgressiveNetwork(column())
    with pytest.raises(ValueError, match=message):
        network(torch.randn(3, 4))
    with pytest.raises(ValueError, match=message):
        network.add_column(column())(torch.randn(3, 4))
    named = ProgressiveNetwork(Attention(), ["head"]).add_column(Attention())
    assert named(torch.randn(3, 4)).shape == (3, 2)


# what is heard


def test_a_column_says_in_a_larger_network_what_it_says_for_its_own_task(images):
    network = ProgressiveNetwork(noisy()).add_column(noisy(), alpha=1.0)
    alone = network.eval()(images[0])
    second = record(network, images, of=[f"columns.1.taps.{i}" for i in range(5)])
    network.add_column(noisy(3), alpha=1.0)
    heard = record(network, images, of=network.heard)
    assert len(network.heard) == 2 * 5
    assert all(torch.equal(heard[name], value) for name, value in second.items())
    assert torch.equal(network.task(1)(images[0]), alone)
    assert torch.equal(network.task(2)(images[0]), network(images[0]))
    network.columns[2].own.block1.train()
    modes = [part.training for part in network.modules()]
    assert not network.task(2).training
    assert [part.training for part in network.modules()] == modes


def test_what_old_columns_say_can_be_recorded_and_looked_up(images):
    network = ProgressiveNetwork(noisy()).add_column(noisy()).add_column(noisy(), alpha=0.5)
    said, twin = record(network, images, of=network.heard), deepcopy(network)

    def looked_up(net, batch):
        heard = {name: values[batch.index] for name, values in said.items()}
        return F.cross_entropy(net(batch.x, heard), batch.y)

    with torch.no_grad():
        assert_close(network.eval()(images[0], said), network(images[0]))
    options = {"steps": 4, "progress": False, "lr": 1e-2, "batch_size": 16}
    a = fit(twin, images, cross_entropy, **options).losses
    for column in network.columns[:2]:
        column.forward = None  # is not run
    b = fit(network, images, looked_up, **options).losses
    assert_close(a, b, rtol=1e-4, atol=1e-5)
    assert a[-1] != a[0]


def test_laterals_hear_what_a_layer_read_before_others_changed_it():
    class InPlace(nn.Module):
        """A residual network without norm, whose next step overwrites what its layer read."""

        def __init__(self):
            super().__init__()
            self.a, self.b, self.c = nn.Linear(5, 5), nn.Linear(5, 5), nn.Linear(5, 2)

        def forward(self, x, safe=False):
            h = self.a(x)
            out = self.b(h)
            h = h * 0 if safe else h.mul_(0)
            return self.c(out + h)

    network = ProgressiveNetwork(freeze(InPlace())).add_column(InPlace(), alpha=1.0)
    network.columns[1].own.forward = lambda x: InPlace.forward(network.columns[1].own, x, True)
    x, (old, new) = torch.randn(3, 5), network.columns
    with torch.no_grad():
        low, high = new.laterals
        expected = new.own.b(new.own.a(x)) + low([old.own.a(x)])
        expected = new.own.c(expected) + high([old.own.b(old.own.a(x))])
        assert_close(network(x), expected)


def test_other_hooks_hear_a_layer_with_its_laterals(images):
    network = ProgressiveNetwork(noisy()).add_column(noisy(), alpha=1.0)
    said = record(network, images, of=["columns.1.own.head", "columns.1.own.block2.conv"])
    assert torch.equal(said["columns.1.own.head"], predict(network, images))


@pytest.mark.parametrize("broken", [False, True])
def test_no_hook_is_left(x, broken):
    network = perceptrons((5, 4, 3, 2), (5, 4, 3, 2))
    if broken:
        with pytest.raises(RuntimeError):
            network(torch.randn(2, 7).double())
    network(x.double())
    for part in network.columns[1].modules():
        assert not part._forward_hooks
        assert not part._forward_pre_hooks


# with the rest of the house


@pytest.mark.parametrize("column", [lambda k: MLP(64, 6 + k, 5, 4), lambda k: tiny(k)])
def test_any_network_of_named_layers_is_a_column(images, column):
    network = ProgressiveNetwork(column(0))
    for k in (1, 2):
        network.add_column(column(k))
    before = fit(network, images, cross_entropy, steps=12, lr=0.01, progress=False).losses
    assert before[-1] < before[0]
    assert 0 <= accuracy(network, images) <= 1


def tiny(k):
    return WideResNet(10, 1, 4 + k, channels=1, base=2 + k)


def build():
    return ProgressiveNetwork(noisy()).add_column(noisy(3, width=3)).add_column(noisy(5))


def test_a_state_goes_out_and_comes_back(images):
    network, other = build(), build()
    fit(network, (images[0], images[1]), cross_entropy, steps=2, progress=False)
    assert not torch.equal(predict(network, images), predict(other, images))
    other.load_state_dict(network.state_dict())
    for k in range(3):
        assert torch.equal(predict(network.task(k), images), predict(other.task(k), images))
    assert len({*network.state_dict()}) == len({*network.columns.state_dict()})  # nothing twice


def test_a_copy_learns_by_itself_and_its_old_columns_stay_frozen(images):
    network = build()
    before, said = state(network), predict(network, images)
    other = deepcopy(network)
    fit(other, images, cross_entropy, steps=3, lr=0.05, weight_decay=0.1, progress=False)
    assert same(state(network), before)
    assert torch.equal(predict(network, images), said)
    assert same(state(other.columns[:2]), state(network.columns[:2]))
    assert not torch.equal(predict(other, images), said)


def test_it_moves_to_a_device_and_a_column_must_be_there_already(images, device):
    network = build().to(device)
    assert network.task(0)(images[0].to(device)).device.type == device.type
    network.add_column(noisy().to(device))
    assert network(images[0].to(device)).shape == (40, 4)
    layers = list(network.modules())
    with pytest.raises(
        ValueError, match=r"must be .*, torch.float32 on .*, got .*, torch.float64 on"
    ):
        network.add_column(noisy().double())
    assert list(network.modules()) == layers


def test_half_precision(images):
    network = build()
    full = network.eval()(images[0])
    with torch.autocast("cpu", torch.bfloat16):
        mixed = network(images[0])
        F.cross_entropy(mixed, images[1]).backward()
    assert_close(mixed.float(), full, rtol=0.1, atol=0.05)
    assert all(p.grad is not None for p in network.columns[2].laterals.parameters())
    half = network.to(torch.bfloat16)(images[0].to(torch.bfloat16))
    assert half.dtype == torch.bfloat16
    assert_close(half.float(), full, rtol=0.1, atol=0.05)


# what cannot be


def first(**options):
    return ProgressiveNetwork(MLP(5, 4, 3, 2), **options)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (lambda: MLP(5, 4, 2), {}, "'fc2' must be a linear layer or a convolution, got NoneType"),
        (lambda: nn.ReLU(), {}, "'fc2' must be .* got NoneType"),
        (lambda: swapped(nn.ReLU()), {}, "'fc2' must be .* got ReLU"),
        (lambda: swapped(nn.LazyLinear(3)), {}, "'fc2' must be .* got LazyLinear"),
        (
            lambda: swapped(nn.Conv1d(4, 3, 1)),
            {},
            "weights of 'fc2' must be .*2 axes, .*, got 3 axes",
        ),
        (
            lambda: MLP(5, 4, 3, 2).double(),
            {},
            "must be .*2 axes, torch.float32 on cpu.*, got .*float64",
        ),
        (lambda: freeze(MLP(5, 4, 3, 2)), {}, "the column is frozen"),
        (lambda: MLP(5, 4, 3, 2), {"alpha": 0.0}, "alpha must be a finite number > 0, got 0.0"),
        (lambda: MLP(5, 4, 3, 2), {"alpha": nan}, "alpha must be a finite number > 0, got nan"),
        (lambda: MLP(5, 4, 3, 2), {"alpha": inf}, "alpha must be a finite number > 0, got inf"),
        (lambda: MLP(5, 4, 3, 2), {"hidden": {"fc1": 3}}, "hidden must be of .*fc2.*, got .'fc1."),
        (lambda: MLP(5, 4, 3, 2), {"hidden": {"fc2": 0}}, "hidden must be a whole number >= 1"),
    ],
)
def test_a_column_that_cannot_be_is_refused_before_anything_moves(make, options, message):
    network, column = first(), make()
    before = [*network.modules()], [p.requires_grad for p in network.parameters()]
    with pytest.raises(ValueError, match=message):
        network.add_column(column, **options)
    assert before == ([*network.modules()], [p.requires_grad for p in network.parameters()])
    assert network.training


def swapped(layer):
    column = MLP(5, 4, 3, 2)
    column.fc2 = layer
    return column


def test_a_column_is_a_network_of_its_own():
    network = first()
    old, halves = network.columns[0].own, MLP(5, 4, 3, 2)
    halves.fc1 = old.fc1
    for column in (old, halves):
        with pytest.raises(ValueError, match="shares parameters with an older"):
            network.add_column(column)
    network.add_column(MLP(5, 4, 3, 2))
    network.add_column(unfreeze(deepcopy(old)))  # a copy is


@pytest.mark.parametrize(
    ("column", "layers", "message"),
    [
        (lambda: MLP(5, 2), None, r"layers must be some, each once, got \[\]"),
        (lambda: MLP(5, 3, 2), [], r"layers must be some, each once, got \[\]"),
        (lambda: MLP(5, 3, 2), ["fc2"], "'fc2' must be .* got NoneType"),
        (lambda: MLP(5, 3, 2), ["relu1"], "'relu1' must be .* got ReLU"),
        (
            lambda: MLP(5, 3, 2),
            ["head", "head"],
            "layers must be some, each once, got .'head', 'head'",
        ),
    ],
)
def test_a_first_column_that_cannot_be(column, layers, message):
    with pytest.raises(ValueError, match=message):
        ProgressiveNetwork(column(), layers)


def test_other_arguments_that_cannot_be(x):
    network = first().add_column(MLP(5, 4, 3, 2))
    for k in (-1, 2, 0.5):
        with pytest.raises(ValueError, match=r"k must be a whole number < 2, got"):
            network.task(k)
    with pytest.raises(ValueError, match=r"heard must be of .'columns.0.taps.0', .*, got .'other'"):
        network(x, {"other": x})
    with pytest.raises(ValueError, match=r"sources must be whole numbers >= 1, got none"):
        Adapter(nn.Linear(3, 2), [])
    with pytest.raises(ValueError, match="layer must be a linear layer or a convolution, got ReLU"):
        Adapter(nn.ReLU(), [3])
    with pytest.raises(ValueError, match=r"h must be \[3, 4\] features of old columns, got \[4\]"):
        Adapter(nn.Linear(3, 2), [3, 4])([torch.randn(2, 4)])


def test_maps_of_other_sizes_are_no_laterals():
    def column(stride):
        return nn.Sequential(nn.Conv2d(1, 2, 3, stride), nn.ReLU(), nn.Conv2d(2, 2, 3))

    network = ProgressiveNetwork(column(2)).add_column(column(1))
    with pytest.raises(ValueError, match="what '2' gives and hears must have the same shape"):
        network(torch.randn(1, 1, 12, 12))


# the score


def test_a_score_is_a_ratio_of_areas():
    baseline, curve = [0.0, 1.0, 2.0, 2.0], [1.0, 2.0, 2.0, 2.0]
    assert transfer_score(baseline, baseline) == 1
    assert transfer_score(curve, baseline) == pytest.approx(5.5 / 4)  # trapezia, not the last value
    assert transfer_score(np.array(curve) * 3, torch.tensor(baseline)) == pytest.approx(16.5 / 4)
    assert transfer_score([-1, -1], [1, 1]) == -1
    a, b = torch.rand(2, 20) + 0.1
    assert transfer_score(a, b) * transfer_score(b, a) == pytest.approx(1)
    assert isinstance(transfer_score(a, b), float)


@pytest.mark.parametrize(
    ("curve", "baseline", "message"),
    [
        ([1.0, 2.0], [0.0, 0.0], "areas must be finite, the baseline's > 0, got 1.5, 0.0"),
        ([1.0, 2.0], [-3.0, 1.0], "the baseline's > 0, got 1.5, -1.0"),
        ([1.0, nan], [1.0, 2.0], "areas must be finite, .*, got nan, 1.5"),
        ([1.0, 1.0], [1.0, inf], "areas must be finite, .*, got 1.0, nan"),
        ([1.0, 2.0], [1.0, 2.0, 3.0], r"must be \(T,\), T >= 2, got \[2\] and \[3\]"),
        ([1.0], [1.0], r"must be \(T,\), T >= 2, got \[1\] and \[1\]"),
        ([[1.0, 2.0]], [[1.0, 2.0]], r"got \[1, 2\] and \[1, 2\]"),
        (2.0, 1.0, r"got \[\] and \[\]"),
    ],
)
def test_scores_that_cannot_be(curve, baseline, message):
    with pytest.raises(ValueError, match=message):
        transfer_score(curve, baseline)
