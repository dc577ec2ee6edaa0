"""Frozen means frozen, groups are disjoint and complete, and unfreezing restores exactly."""

import io
from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from tlcourse.data import Images
from tlcourse.methods.fine_tuning import freeze, parameter_groups, replace_head, unfreeze
from tlcourse.models import MLP, ConvNet
from tlcourse.training import cross_entropy, fit, record


def network() -> nn.Sequential:
    """A trunk with everything that moves by itself, and a head."""
    torch.manual_seed(0)
    trunk = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 36, 8),
    )
    model = nn.Sequential()
    model.trunk, model.head = trunk, nn.Linear(8, 3)
    return model


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(16, 1, 8, 8, generator=generator), torch.randint(
        3, (16,), generator=generator
    )


def state(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(a, b):
    return all(torch.equal(a[name], b[name]) for name in a) and a.keys() == b.keys()


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, weight_decay=5e-4)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01, weight_decay=0.1)


def train(model, batch, optimizer, steps=3, set_to_none=True):
    for _ in range(steps):
        model.train()
        optimizer.zero_grad(set_to_none=set_to_none)
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
        model.eval()


# frozen means frozen


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_parameters_and_buffers_stay_bit_by_bit(batch, optimizer, set_to_none):
    model = network()
    before, head = state(model.trunk), state(model.head)
    freeze(model.trunk)
    train(model, batch, optimizer(model.parameters()), set_to_none=set_to_none)
    assert same(state(model.trunk), before)
    assert not same(state(model.head), head)


@pytest.mark.parametrize("optimizer", [sgd, adamw])
def test_freezing_after_training_or_between_backward_and_step_stops_at_once(batch, optimizer):
    """Momentum is in the optimizer by then, and gradients in the parameters."""
    model = network()
    updater = optimizer(model.parameters())
    train(model, batch, updater)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    freeze(model.trunk)
    before = state(model.trunk)
    updater.step()
    train(model, batch, updater, set_to_none=False)
    assert same(state(model.trunk), before)


def test_requires_grad_alone_does_not_freeze(batch):
    """Why there is more to it: BatchNorm's averages move."""
    model = network().train()
    before = state(model.trunk)
    model.trunk.requires_grad_(False)
    model(batch[0])
    assert not same(state(model.trunk), before)


def test_a_frozen_part_is_in_eval_mode_whatever_is_said(batch):
    model = freeze(network())
    expected = model(batch[0])
    model.train()
    model.trunk[3].training = True
    assert torch.equal(model(batch[0]), expected)


@pytest.mark.parametrize("copied", ["deepcopy", "saved"])
def test_copies_are_frozen_too_and_unfreeze_by_themselves(batch, copied):
    model = freeze(network())
    if copied == "deepcopy":
        other = deepcopy(model)
    else:
        file = io.BytesIO()
        torch.save(model, file)
        file.seek(0)
        other = torch.load(file, weights_only=False)
    before = state(other)
    other.train()(batch[0])
    assert same(state(other), before)
    assert not any(p.requires_grad for p in other.parameters())
    unfreeze(other).train()(batch[0])
    assert not same(state(other), before)
    assert all(p.requires_grad for p in other.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    model.train()(batch[0])
    assert same(state(model), before)


def test_gradients_flow_through_to_what_lies_below(batch):
    model = network()
    freeze(model.head)
    x = batch[0].requires_grad_()
    model(x).sum().backward()
    assert x.grad.abs().sum() > 0
    assert model.trunk[0].weight.grad.abs().sum() > 0
    assert model.head.weight.grad is None


def test_fit_leaves_a_frozen_trunk_alone():
    images = Images(
        torch.randint(0, 256, (64, 1, 28, 28), dtype=torch.uint8),
        torch.arange(64) % 10,
        tuple("0123456789"),
        "noise",
    )
    model = MLP(784, 16, 10, dropout=0.5)
    freeze(model.fc1)
    before, head = state(model.fc1), state(model.head)
    fit(model, images, cross_entropy, epochs=2, weight_decay=0.1, progress=False)
    assert same(state(model.fc1), before)
    assert not same(state(model.head), head)


def test_a_head_on_recorded_features_learns_the_same():
    """Why a frozen trunk needs to run only once."""
    generator = torch.Generator().manual_seed(2)
    x, y = (
        torch.randn(96, 1, 8, 8, generator=generator),
        torch.randint(3, (96,), generator=generator),
    )
    through = network()
    alone = deepcopy(through.head)
    freeze(through.trunk)
    features = record(through, (x, y), of="trunk")
    fit(through, (x, y), cross_entropy, epochs=3, lr=0.01, batch_size=32, progress=False)
    fit(alone, (features, y), cross_entropy, epochs=3, lr=0.01, batch_size=32, progress=False)
    torch.testing.assert_close(through.head.weight, alone.weight, atol=1e-6, rtol=0)


def test_frozen_batch_norm_is_torchvisions(batch):
    norm = nn.BatchNorm2d(1)
    norm(batch[0] * 3 + 1)
    theirs = FrozenBatchNorm2d(1, eps=norm.eps)
    theirs.load_state_dict(
        {name: value for name, value in norm.state_dict().items() if name != "num_batches_tracked"}
    )
    torch.testing.assert_close(freeze(norm).train()(batch[0]), theirs(batch[0]))


# unfreezing


def test_unfreezing_restores_exactly(batch):
    model = network()
    model.trunk[0].bias.requires_grad_(False)
    model.trunk[3].eval()
    trainable = {name for name, p in model.named_parameters() if p.requires_grad}
    modes = {name: part.training for name, part in model.named_modules()}
    freeze(model.trunk)
    freeze(model)  # what is frozen already stays what it was before
    unfreeze(model)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == trainable
    assert {name: part.training for name, part in model.named_modules()} == modes
    assert not any(part._forward_pre_hooks for part in model.modules())
    assert unfreeze(model) is model  # nothing to undo


def test_an_inner_part_can_be_unfrozen_alone(batch):
    model = freeze(network())
    unfreeze(model.head)
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight",
        "head.bias",
    }


# a new head


def test_a_new_head_has_new_weights_and_as_many_outputs():
    model = ConvNet(10, size=8, width=2, units=8)
    body, old = state(model.fc7), model.head.weight.clone()
    assert replace_head(model, 4) is model
    assert model(torch.zeros(2, 1, 8, 8)).shape == (2, 4)
    assert same(state(model.fc7), body)
    assert not torch.equal(model.head.weight, old[:4])


def test_a_head_deep_inside_keeps_device_dtype_and_bias():
    model = nn.Sequential(
        nn.Linear(3, 4),
        nn.Sequential(nn.ReLU(), nn.Linear(4, 5, bias=False, dtype=torch.float64)),
        nn.ReLU(),
    )
    replace_head(model, 2)
    assert (model[1][1].out_features, model[1][1].bias, model[1][1].weight.dtype) == (
        2,
        None,
        torch.float64,
    )


@pytest.mark.parametrize("model", [nn.Conv2d(1, 1, 1), nn.Linear(2, 2)])
def test_a_model_without_a_linear_layer_inside_is_refused(model):
    with pytest.raises(
        ValueError, match="the model has no linear layer inside that could be its head"
    ):
        replace_head(model, 3)


def test_no_classes_are_refused():
    with pytest.raises(ValueError, match="classes must be >= 1, got 0"):
        replace_head(MLP(4, 2), 0)


# groups


def test_groups_are_disjoint_and_complete():
    model = network()
    model.trunk[0].weight.requires_grad_(False)
    ids = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert sorted(ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_rates_by_layer_and_no_decay_on_norms_and_biases():
    model = ConvNet(size=8, width=2, units=8)
    rate = {
        id(p): (g["lr"], g.get("weight_decay"))
        for g in parameter_groups(model, 0.1, head_lr=1.0, decay=0.5)
        for p in g["params"]
    }
    expected = {
        "head": 1.0,
        "fc7": 0.1,
        "fc6": 0.05,
        "block3": 0.025,
        "block2": 0.0125,
        "block1": 0.00625,
    }
    for name, p in model.named_parameters():
        lr, weight_decay = rate[id(p)]
        assert lr == pytest.approx(expected[name.split(".")[0]])
        assert weight_decay == (0.0 if p.ndim == 1 else None)
    norm = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 2))
    assert [
        g["weight_decay"]
        for g in parameter_groups(norm, 0.1)
        if any(p is norm[0].weight for p in g["params"])
    ] == [0.0]


def test_a_frozen_head_leaves_the_next_layer_the_head():
    model = network()
    freeze(model.head)
    assert {g["lr"] for g in parameter_groups(model, 0.1, head_lr=0.7)} == {0.7}


def test_a_shared_parameter_is_in_one_group():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    ids = [id(p) for group in parameter_groups(model, 0.1) for p in group["params"]]
    assert len(ids) == len(set(ids)) == 3


def test_the_first_step_is_minus_the_rate_times_the_gradient(batch):
    model = network().eval()
    groups = parameter_groups(model, 0.1, head_lr=0.5)
    updater, before = torch.optim.SGD(groups, lr=9.9), state(model)
    F.cross_entropy(model(batch[0]), batch[1]).backward()
    updater.step()
    rates = {id(p): g["lr"] for g in groups for p in g["params"]}
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[name] - rates[id(p)] * p.grad)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": 0.0}, "lr and head_lr must be > 0, got 0.0 and None"),
        ({"lr": 0.1, "head_lr": -1.0}, "lr and head_lr must be > 0, got 0.1 and -1.0"),
        ({"lr": 0.1, "decay": 0.0}, r"decay must be in \(0, 1\], got 0.0"),
        ({"lr": 0.1, "decay": 1.5}, r"decay must be in \(0, 1\], got 1.5"),
    ],
)
def test_groups_refuse(settings, said):
    with pytest.raises(ValueError, match=said):
        parameter_groups(network(), **settings)


def test_nothing_to_train_is_refused():
    with pytest.raises(ValueError, match="the model has nothing to train"):
        parameter_groups(freeze(network()), 0.1)
