"""Frozen means frozen, groups are disjoint and complete, and unfreezing restores exactly."""

import io
from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from common import same, state
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

from tlcourse.data import Images
from tlcourse.methods.fine_tuning import (
    freeze,
    parameter_groups,
    replace_head,
    set_modes,
    unfreeze,
)
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


class Counts(nn.Module):
    """Counts its forward passes in training mode, in a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x):
        self.seen += self.training
        return x


def counting():
    """A layer with a hook of its own that moves a buffer in training mode."""
    layer = nn.Linear(16, 8)
    layer.register_buffer("seen", torch.zeros(()))

    def count(part, _):
        part.seen += part.training

    layer.register_forward_pre_hook(count)
    return layer


def parametrized():
    layer = nn.Linear(16, 8)
    nn.utils.parametrize.register_parametrization(layer, "weight", Counts())
    return layer


BEFORE_FORWARD = {
    "spectral_norm": lambda: nn.utils.spectral_norm(nn.Linear(16, 8)),
    "parametrizations.spectral_norm": lambda: nn.utils.parametrizations.spectral_norm(
        nn.Linear(16, 8)
    ),
    "weight_norm": lambda: nn.utils.weight_norm(nn.Linear(16, 8)),
    "parametrizations.weight_norm": lambda: nn.utils.parametrizations.weight_norm(nn.Linear(16, 8)),
    "orthogonal": lambda: nn.utils.parametrizations.orthogonal(nn.Linear(16, 8)),
    "a parametrization with a buffer": parametrized,
    "a hook with a buffer": counting,
    "both": lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(16, 8)), Counts()),
}


@pytest.mark.filterwarnings("ignore:.*weight_norm.* is deprecated")
@pytest.mark.parametrize("kind", BEFORE_FORWARD)
def test_what_a_layer_computes_before_its_forward_pass_stays_too(kind):
    torch.manual_seed(0)
    layer, x = BEFORE_FORWARD[kind](), torch.rand(4, 16)
    model = nn.Sequential(layer, nn.Linear(8, 3))
    moves = state(layer)
    model.train()(x)
    assert "weight_norm" in kind or kind == "orthogonal" or not same(state(layer), moves)
    before = state(freeze(layer))
    for _ in range(3):
        model.train()
        model(x).sum().backward()
        model.eval()
    assert same(state(layer), before)
    unfreeze(layer)
    model.train()(x).sum().backward()
    assert all(p.grad is not None for p in layer.parameters())


def test_a_hook_of_its_own_sees_eval_mode_whenever_it_was_registered():
    layer, seen = nn.Linear(4, 4), []
    layer.register_forward_pre_hook(lambda part, _: seen.append(part.training))
    freeze(layer)
    layer.register_forward_pre_hook(lambda part, _: seen.append(part.training))
    layer.training = True
    nn.Sequential(layer).train()(torch.rand(1, 4))
    assert seen == [False, False]


class LowRank(nn.Linear):
    """Merges its update into its weight in eval mode, as adapters do."""

    def __init__(self, inputs, outputs):
        super().__init__(inputs, outputs)
        self.A = nn.Parameter(torch.randn(2, inputs))
        self.B = nn.Parameter(torch.randn(outputs, 2))
        self.merged, self.told = False, []

    def train(self, mode=True):
        self.told.append(mode)
        if mode == self.merged:
            self.weight.data += (-1 if mode else 1) * (self.B @ self.A)
            self.merged = not mode
        return super().train(mode)

    def forward(self, x):
        own = F.linear(x, self.weight, self.bias)
        return own if self.merged else own + x @ self.A.T @ self.B.T


@pytest.mark.parametrize("nested", [False, True])
def test_parts_that_act_on_a_change_of_mode_are_told_once_each_way(nested):
    layer, x = LowRank(16, 4), torch.rand(8, 16)
    model = nn.Sequential(nn.Sequential(layer) if nested else layer)
    expected, weight = model(x), layer.weight.clone()
    freeze(model)
    before = state(model)
    torch.testing.assert_close(model(x), expected)
    model.train().eval()
    nn.Sequential(model).train()(x)
    assert same(state(model), before)  # no update is taken out and put in again
    unfreeze(model)
    assert layer.told == [False, True]
    torch.testing.assert_close(layer.weight, weight)
    model(x).sum().backward()
    assert layer.A.grad is not None


def test_modes_that_differ_come_back_without_touching_the_others():
    model = nn.Sequential(LowRank(4, 4), nn.Dropout(0.5), nn.Sequential(LowRank(4, 4)))
    model[0].eval()
    for layer in (model[0], model[2][0]):
        layer.told.clear()
    modes = [(part, part.training) for part in model.modules()]
    unfreeze(freeze(model))
    assert [(part, part.training) for part in model.modules()] == modes
    assert (model[0].told, model[2][0].told) == ([], [False, True])
    set_modes((part, True) for part in model.modules())
    assert all(part.training for part in model.modules())
    assert model[0].told == [True]


@pytest.mark.filterwarnings("ignore:.*spectral_norm.* is deprecated")
@pytest.mark.parametrize("kind", ["plain", "spectral", "parametrized", "low rank"])
def test_frozen_modules_can_be_copied_and_their_state_moved(kind):
    torch.manual_seed(0)
    wrap = {"spectral": nn.utils.spectral_norm}.get(kind, lambda layer: layer)
    wrap = {"parametrized": nn.utils.parametrizations.spectral_norm}.get(kind, wrap)
    make = LowRank if kind == "low rank" else lambda *size: wrap(nn.Linear(*size))
    model, x = nn.Sequential(make(6, 5), nn.BatchNorm1d(5)), torch.rand(4, 6)
    keys = model.state_dict().keys()
    freeze(model)
    assert model.state_dict().keys() == keys
    other = deepcopy(model)
    before = state(other)
    assert other.train() is other
    assert other(x).shape == (4, 5)
    assert same(state(other), before)
    unfreeze(other)
    assert other.training
    assert all(p.requires_grad for p in other.parameters())
    assert not any(p.requires_grad for p in model.parameters())
    assert not model.train().training
    fresh = nn.Sequential(make(6, 5), nn.BatchNorm1d(5)).eval()
    fresh.load_state_dict(model.state_dict())
    torch.testing.assert_close(fresh[1](model[0](x)), model(x))


def test_tied_weights_can_be_trained_again():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    model[2].weight.requires_grad_(False)
    unfreeze(freeze(model))
    assert [p.requires_grad for _, p in model.named_parameters()] == [True, True, True, False, True]
    freeze(model[0]), freeze(model[1])  # one after the other, and undone in either order
    unfreeze(model[0]), unfreeze(model[1])
    assert model[0].weight.requires_grad
    freeze(model[0]), freeze(model[1])
    unfreeze(model[1]), unfreeze(model[0])
    assert model[0].weight.requires_grad


def test_a_part_of_two_modules_is_frozen_in_both(batch):
    shared = nn.BatchNorm2d(1)
    first, second = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Flatten())
    freeze(first)
    before = state(shared)
    second.train()(batch[0])
    assert same(state(shared), before)
    assert second.training
    assert second[1].training
    unfreeze(first)
    second(batch[0])
    assert not same(state(shared), before)


def test_a_part_that_was_unfrozen_alone_keeps_its_mode(batch):
    model = freeze(network())
    unfreeze(model.trunk)
    model.trunk.eval()
    unfreeze(model)
    assert model.training
    assert not any(part.training for part in model.trunk.modules())
    unfreeze(freeze(freeze(model)))
    assert model.training


def test_a_compiled_model_is_frozen_with_what_it_compiles(batch):
    torch._dynamo.reset()
    model = network()
    compiled = torch.compile(model, backend="eager")
    compiled.train()(batch[0])
    before = state(freeze(compiled))
    compiled.train()
    assert torch.equal(compiled(batch[0]), compiled(batch[0]))
    assert same(state(compiled), before)
    unfreeze(compiled)
    assert model.training
    assert all(p.requires_grad for p in model.parameters())


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


TWO = {"deit_tiny_distilled_patch16_224": "head, head_dist", "levit_128s": "head.linear, head_dist"}


@pytest.mark.parametrize("name", TWO)
def test_networks_with_two_heads_are_refused_and_left_as_they_were(name):
    model = timm.create_model(name)
    before = state(model)
    with pytest.raises(ValueError, match=f"must have one head, and each of {TWO[name]}.* could be"):
        replace_head(model, 3)
    assert same(state(model), before)


class Auxiliary(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc1, self.aux, self.fc2 = nn.Linear(4, 8), nn.Linear(8, 5), nn.Linear(8, 5)


def test_an_auxiliary_head_is_a_second_one():
    with pytest.raises(ValueError, match="must have one head, and each of aux, fc2 could be one"):
        replace_head(Auxiliary(), 3)


@pytest.mark.parametrize("model", [MLP(10, 10, 10, 10), MLP(784, 10, 10), MLP(4, 5, 5)])
def test_hidden_layers_as_wide_as_the_head_are_no_heads(model):
    hidden = state(model.fc1)
    replace_head(model, 3)
    assert model(torch.zeros(2, model.fc1.in_features)).shape == (2, 3)
    assert same(state(model.fc1), hidden)


@pytest.mark.parametrize("name", ["resnet18", "vit_tiny_patch16_224", "convnext_atto"])
def test_networks_of_timm_with_one_head(name):
    model = replace_head(timm.create_model(name), 3).eval()
    assert model(torch.zeros(1, 3, 224, 224)).shape == (1, 3)


def test_a_head_that_waits_for_its_inputs_is_replaced_by_another():
    model = replace_head(nn.Sequential(nn.Flatten(), nn.LazyLinear(10, bias=False)), 3)
    assert model(torch.zeros(2, 3, 4)).shape == (2, 3)
    assert (model[1].in_features, model[1].bias) == (12, None)


def test_a_head_that_is_a_convolution_is_refused():
    squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8), nn.Sigmoid())
    model = nn.Sequential(nn.Conv2d(1, 8, 3), squeeze, nn.Conv2d(8, 10, 1), nn.Flatten())
    with pytest.raises(ValueError, match="must end in a linear layer, and it ends in a Conv2d"):
        replace_head(model, 3)


def test_a_head_that_stands_at_two_places_is_replaced_at_both():
    model = nn.Sequential()
    model.first = model.last = nn.Linear(4, 5)
    replace_head(model, 3)
    assert model.first is model.last
    assert model.first.out_features == 3


def test_a_head_with_tied_weights_gets_its_own():
    model = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 10, bias=False))
    model[1].weight = model[0].weight
    replace_head(model, 3)
    assert model(torch.tensor([0, 1])).shape == (2, 3)
    assert model[0].weight.shape == (10, 4)


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
