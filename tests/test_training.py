"""The loop: reproducible, fair to every image, equal to a bare one, and leaving all as it was."""

import copy
import math
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from tlcourse import training
from tlcourse.data import Images, as_input, random_flip, random_shift
from tlcourse.methods.distillation import distillation_loss
from tlcourse.models import MLP, ConvNet, WideResNet
from tlcourse.training import (
    Batch,
    accuracy,
    cross_entropy,
    fit,
    joint,
    max_norm,
    paired,
    predict,
    record,
    seed_everything,
)
from tlcourse.training import device as find_device


def noise(n=20, seed=0, side=4, channels=1, name="noise"):
    g = torch.Generator().manual_seed(seed)
    pixels = torch.randint(256, (n, channels, side, side), generator=g).byte()
    return Images(pixels, torch.randint(3, (n,), generator=g), ("a", "b", "c"), name)


def net(seed=0, **options):
    torch.manual_seed(seed)
    return MLP(16, 8, 3, **options)


def weights(model):
    return torch.cat([p.detach().flatten().cpu() for p in model.parameters()])


def train(model, data=None, objective=cross_entropy, **options):
    """fit without a bar, for 4 steps unless told otherwise."""
    if not {"epochs", "steps"} & set(options):
        options["steps"] = 4
    return fit(
        model,
        noise() if data is None else data,
        objective,
        **({"batch_size": 8, "progress": False} | options),
    )


class Watch:
    """Cross-entropy that remembers every batch; of the last of a dict of them."""

    def __init__(self):
        self.seen = []

    def __call__(self, model, batch):
        self.seen.append(batch)
        return cross_entropy(model, batch if isinstance(batch, Batch) else list(batch.values())[-1])


class Say(nn.Module):
    """Answers with a function of its input."""

    def __init__(self, answer):
        super().__init__()
        self.answer = answer

    def forward(self, x):
        return self.answer(x)


class Blow(nn.Module):
    """A layer that raises."""

    def forward(self, x):
        raise RuntimeError("boom")


# --- reproducible ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"augment": random_shift(1)},
        {"augment": [random_shift(1), random_flip()], "optimizer": "sgd"},
    ],
)
def test_same_seed_same_weights_other_seed_other_weights(options, device):
    def run(seed):
        model = net(dropout=0.5, input_dropout=0.2).to(device)
        history = train(model, epochs=2, seed=seed, **options)
        return weights(model), history.losses

    first, again, other = run(1), run(1), run(2)
    assert torch.equal(first[0], again[0])
    assert torch.equal(first[1], again[1])
    assert not torch.equal(first[0], other[0])


def test_the_seed_alone_decides_not_the_global_state():
    def run(before):
        model = net(dropout=0.5)
        seed_everything(before)
        train(model)
        return weights(model)

    assert torch.equal(run(1), run(2))


def test_the_global_random_state_is_left_as_it_was():
    model = net(dropout=0.5)
    seed_everything(5)
    expected = torch.rand(1), np.random.rand(), random.random()
    seed_everything(5)
    train(model, augment=random_shift(1))
    predict(model, noise()), record(model, noise(), of="fc1")
    assert (torch.rand(1), np.random.rand(), random.random()) == expected


def test_the_global_random_state_is_left_as_it_was_when_the_objective_raises():
    seed_everything(5)
    expected = torch.rand(1)
    model = nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(16, 3), Blow())
    seed_everything(5)
    with pytest.raises(RuntimeError, match=r"boom"):
        train(model)
    assert torch.rand(1) == expected


@pytest.mark.gpu
@pytest.mark.parametrize("where", ["cpu", "cuda"])
def test_the_random_state_of_the_gpu_is_left_as_it_was(where):
    model = net(dropout=0.5).to(where)
    torch.cuda.manual_seed_all(5)
    before = torch.cuda.get_rng_state_all()
    train(model)
    assert all(torch.equal(a, b) for a, b in zip(before, torch.cuda.get_rng_state_all()))


@pytest.mark.gpu
def test_a_gpu_trains_in_bfloat16_and_answers_in_float32():
    seen = []

    def objective(model, batch):
        logits = model(batch.x)
        weight = model.block2.conv.weight
        seen.append((logits.dtype, weight.is_contiguous(memory_format=torch.channels_last)))
        return F.cross_entropy(logits, batch.y)

    model = ConvNet(3, channels=3, size=8, width=2, units=4).to("cuda")
    train(model, noise(side=8, channels=3), objective)
    assert seen == [(torch.bfloat16, True)] * 4
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert predict(model, noise(side=8, channels=3)).dtype == torch.float32


# --- a bare loop does the same --------------------------------------------------------------------


def bare_loop(model, data, *, epochs, batch_size, lr, factors, make, seed, loss):
    """Without `fit`: the order is that of one generator, dropout that of the global one."""
    order = torch.Generator().manual_seed(seed)
    optimizer, step, losses = make(model.parameters()), 0, []
    torch.manual_seed(seed)
    model.train()
    for _ in range(epochs):
        for index in torch.randperm(len(data), generator=order).split(batch_size):
            for group in optimizer.param_groups:
                group["lr"] = lr * factors[step]
            value = loss(model(data.pixels[index].float() / 255), index)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            losses.append(value.item())
            step += 1
    return losses


CURVES = {
    "constant": lambda t: 1.0,
    "cosine": lambda t: (1 + math.cos(math.pi * t)) / 2,
    "one-cycle": lambda t: (
        0.05 + 0.95 * 4 * t if t < 0.25 else (1 + math.cos(math.pi * (t - 0.25) / 0.75)) / 2
    ),
}


@pytest.mark.parametrize("schedule", CURVES)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_equals_a_bare_loop(optimizer, schedule):
    data, lr = noise(20), 0.05
    factors = [
        CURVES[schedule](step / 9) for step in range(9)
    ]  # 20 images in batches of 8: 3 steps an epoch

    def make(parameters):
        if optimizer == "sgd":
            return torch.optim.SGD(parameters, lr, momentum=0.9, weight_decay=0.01, fused=True)
        return torch.optim.AdamW(parameters, lr, weight_decay=0.01, fused=True)

    ours, theirs = net(dropout=0.5), net(dropout=0.5)
    history = train(
        ours,
        data,
        epochs=3,
        lr=lr,
        optimizer=optimizer,
        schedule=schedule,
        weight_decay=0.01,
        seed=3,
    )
    losses = bare_loop(
        theirs,
        data,
        epochs=3,
        batch_size=8,
        lr=lr,
        factors=factors,
        make=make,
        seed=3,
        loss=lambda z, index: F.cross_entropy(z, data.labels[index]),
    )
    assert torch.equal(weights(ours), weights(theirs))
    assert history.losses.tolist() == losses


def test_distillation_from_recorded_logits_equals_a_bare_loop_with_a_live_teacher():
    data, teacher = noise(20), net(seed=9, dropout=0.5)
    logits = record(teacher, data)
    ours, theirs = net(), net()
    train(
        ours,
        data,
        lambda m, b: distillation_loss(m(b.x), logits[b.index], b.y, T=4, alpha=0.9),
        epochs=2,
        lr=0.01,
        schedule="constant",
    )
    teacher.eval()
    with torch.no_grad():  # in the batches that `record` asks in
        said = torch.cat([teacher(as_input(part)) for part in data.pixels.split([2, 18])])

    def loss(z, index):
        v = said[index]
        return distillation_loss(z, v, data.labels[index], T=4, alpha=0.9)

    def make(parameters):
        return torch.optim.AdamW(parameters, weight_decay=0.0, fused=True)

    bare_loop(
        theirs,
        data,
        epochs=2,
        batch_size=8,
        lr=0.01,
        factors=[1.0] * 6,
        make=make,
        seed=0,
        loss=loss,
    )
    assert torch.equal(weights(ours), weights(theirs))


@pytest.mark.parametrize(
    ("schedule", "at"),
    [
        ("one-cycle", {0: 0.05, 2: 0.525, 4: 1.0, 10: 0.5}),
        ("cosine", {0: 1, 8: 0.5}),
        ("constant", {0: 1, 15: 1}),
    ],
)
def test_learning_rate_follows_the_schedule(schedule, at):
    """With a gradient of 1, a parameter at rest moves by lr·factor·(1 + 0.9 + 0.81 + …)."""
    w = nn.Linear(1, 1, bias=False)
    places = [w.weight.item()]
    data = torch.ones(4, 1), torch.ones(4)
    options = {"optimizer": "sgd", "lr": 0.01, "steps": 16, "schedule": schedule}
    train(
        w,
        data,
        lambda m, b: m(b.x).mean(),
        after_step=lambda m: places.append(m.weight.item()),
        **options,
    )
    buffers = np.cumsum(0.9 ** np.arange(16))
    factors = -np.diff(places) / buffers / 0.01
    for step, factor in at.items():
        assert factors[step] == pytest.approx(factor, abs=1e-3)


# --- batches --------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch_size", [1, 8, 10, 20, 50])
def test_every_image_is_seen_exactly_once_an_epoch(batch_size):
    watch = Watch()
    train(net(), noise(20), watch, epochs=3, batch_size=batch_size)
    index = torch.cat([batch.index for batch in watch.seen]).view(3, 20)
    assert torch.equal(index.sort(1).values, torch.arange(20).expand(3, 20))
    assert not torch.equal(index[0], index[1])  # in a new order
    assert len(watch.seen) == 3 * math.ceil(20 / batch_size)


def test_index_says_where_x_and_y_are_from(device):
    data, watch = noise(20), Watch()
    train(net().to(device), data, watch, epochs=1)
    for batch in watch.seen:
        assert {batch.x.device.type, batch.y.device.type, batch.index.device.type} == {device.type}
        index = batch.index.cpu()
        assert torch.equal(batch.x.cpu(), data.pixels[index].float() / 255)
        assert torch.equal(batch.y.cpu(), data.labels[index])


def test_time_runs_from_zero_towards_one():
    watch = Watch()
    train(net(), noise(20), watch, epochs=2)
    assert [batch.t for batch in watch.seen] == [step / 6 for step in range(6)]


def test_data_may_be_a_pair_of_inputs_and_targets():
    x, y, watch = torch.randn(10, 16), torch.randint(3, (10,)), Watch()
    train(net(), (x, y), watch, epochs=1)
    for batch in watch.seen:
        assert torch.equal(batch.x, x[batch.index])  # floats stay as they are
        assert torch.equal(batch.y, y[batch.index])


def test_targets_may_be_a_dict():
    x, seen = torch.randn(10, 16), []
    targets = {"class": torch.randint(3, (10,)), "depth": torch.randn(10, 2)}

    def objective(model, batch):
        seen.append(batch)
        return F.cross_entropy(model(batch.x), batch.y["class"]) + batch.y["depth"].mean()

    train(net(), (x, targets), objective, epochs=1)
    for batch in seen:
        assert set(batch.y) == {"class", "depth"}
        assert all(torch.equal(batch.y[key], targets[key][batch.index]) for key in targets)


def test_augmentations_change_the_pixels_in_their_order_and_not_the_data():
    data, watch = noise(20), Watch()
    before = data.pixels.clone()
    train(net(), data, watch, epochs=1, augment=[lambda x, g: x // 2, lambda x, g: x + 1])
    for batch in watch.seen:
        assert torch.equal(batch.x, (before[batch.index] // 2 + 1).float() / 255)
    train(net(), data, epochs=1, augment=lambda x, g: x.zero_())
    assert torch.equal(data.pixels, before)


def test_augmentation_is_drawn_anew_for_every_batch_from_the_seed():
    def drawn(seed):
        values = []
        train(
            net(),
            noise(20),
            epochs=2,
            seed=seed,
            augment=lambda x, g: values.append(torch.rand(1, generator=g).item()) or x,
        )
        return values

    assert len(set(drawn(1) + drawn(2))) == 12
    assert drawn(1) == drawn(1)


def test_joint_gives_a_batch_of_each_source_at_every_step():
    old, new, watch = noise(7, seed=1), noise(20, seed=2), Watch()
    train(net(), joint(old=old, new=new), watch, epochs=2)
    assert len(watch.seen) == 6  # two passes through the longest
    assert all(list(both) == ["old", "new"] for both in watch.seen)
    for name, data, passes in (("old", old, 6), ("new", new, 2)):
        index = torch.cat([both[name].index for both in watch.seen]).view(passes, len(data))
        assert torch.equal(
            index.sort(1).values, torch.arange(len(data)).expand(passes, -1)
        )  # the shorter one starts over
        for both in watch.seen:
            assert torch.equal(both[name].x, as_input(data.pixels[both[name].index]))
            assert torch.equal(both[name].y, data.labels[both[name].index])


def test_joint_takes_different_inputs_and_targets():
    old, new, watch = (torch.randn(9, 5), {"z": torch.randn(9, 2)}), noise(20), Watch()
    train(net(), joint(old=old, new=new), watch)
    assert watch.seen[0]["old"].x.shape == (8, 5)
    assert watch.seen[0]["old"].y["z"].shape == (8, 2)


def test_paired_draws_the_source_from_the_neighbours_of_each_target():
    target, source = noise(10, seed=1), noise(30, seed=2)
    neighbours = torch.stack([torch.arange(10), torch.arange(10) + 10, torch.arange(10) + 20], 1)
    watch = Watch()
    train(net(), paired(target, source, neighbours), watch, epochs=20)
    assert len(watch.seen) == 40
    drawn = set()
    for both in watch.seen:
        t, s = both["target"], both["source"]
        assert (neighbours[t.index] == s.index[:, None]).any(1).all()
        assert torch.equal(s.x, as_input(source.pixels[s.index]))
        assert torch.equal(s.y, source.labels[s.index])
        assert torch.equal(t.x, as_input(target.pixels[t.index]))
        drawn |= set(s.index.tolist())
    assert drawn == set(range(30))  # any of them may come


@pytest.mark.parametrize(
    ("neighbours", "sentence"),
    [
        (
            torch.zeros(9, 2, dtype=torch.int64),
            r"neighbours must have shape \(10, k\), got \(9, 2\)",
        ),
        (torch.zeros(10, dtype=torch.int64), r"neighbours must have shape \(10, k\), got \(10,\)"),
        (torch.full((10, 2), 30), r"neighbours must be positions in \[0, 30\), got 30 to 30"),
        (torch.full((10, 2), -1), r"neighbours must be positions in \[0, 30\), got -1 to -1"),
        (torch.zeros(10, 0, dtype=torch.int64), r"neighbours must"),
        (torch.zeros(10, 2), r"neighbours must be .*int64"),
    ],
)
def test_paired_refuses_neighbours(neighbours, sentence):
    with pytest.raises(ValueError, match=sentence):
        paired(noise(10), noise(30), neighbours)


def test_joint_needs_a_source():
    with pytest.raises(ValueError, match=r"^joint needs at least one source, got none$"):
        joint()


# --- what is trained, and how ---------------------------------------------------------------------


class Weighted(nn.Module):
    """An objective with a parameter that counts, one that does not, and one that is frozen."""

    def __init__(self):
        super().__init__()
        self.counts, self.idle = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
        self.frozen = nn.Parameter(torch.tensor(3.0), requires_grad=False)

    def forward(self, model, batch):
        return self.counts**2 + 0 * self.idle + self.frozen * cross_entropy(model, batch)


def test_an_objective_that_is_a_module_is_trained_along_without_weight_decay():
    objective, model = Weighted(), net()
    before = weights(model)
    train(model, objective=objective, weight_decay=0.5, lr=0.1)
    assert objective.counts < 1
    assert objective.idle == 2
    assert objective.frozen == 3
    assert not torch.equal(weights(model), before)


def test_a_parameter_of_the_objective_that_belongs_to_the_model_is_trained_once():
    model = net()

    class Shares(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.extra = model, nn.Parameter(torch.tensor(1.0))

        def forward(self, model, batch):
            return cross_entropy(model, batch) + self.extra**2

    plain, objective = net(), Shares()
    train(plain, weight_decay=0.5)
    train(model, objective=objective, weight_decay=0.5)
    assert torch.equal(weights(model), weights(plain))
    assert objective.extra < 1


def test_a_frozen_model_with_a_trainable_objective_trains_the_objective_alone():
    objective, model = Weighted(), net().requires_grad_(False)
    before = weights(model)
    train(model, objective=objective)
    assert objective.counts < 1
    assert torch.equal(weights(model), before)


def first_step(model, data, **options):
    """The gradient, and how far every parameter moved, in the first step of SGD."""
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    F.cross_entropy(model(as_input(data.pixels)), data.labels).backward()
    gradient = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad()
    train(
        model, data, steps=1, batch_size=len(data), optimizer="sgd", schedule="constant", **options
    )
    return gradient, {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_each_group_has_its_own_learning_rate():
    model, data = net(), noise()
    groups = [{"params": model.fc1.parameters(), "lr": 0.5}, {"params": model.head.parameters()}]
    gradient, moved = first_step(model, data, groups=groups, lr=0.02)
    for name, change in moved.items():
        assert_close(change, -(0.5 if name.startswith("fc1") else 0.02) * gradient[name])


def test_what_is_in_no_group_is_not_trained():
    model = net()
    _, moved = first_step(
        model, noise(), groups=[{"params": list(model.head.parameters())}], lr=0.1
    )
    assert all((change == 0).all() == name.startswith("fc1") for name, change in moved.items())


def test_groups_may_hold_generators_beside_a_trainable_objective():
    model, objective = net(), Weighted()
    before = weights(model)
    train(model, objective=objective, groups=[{"params": model.parameters(), "lr": 0.1}])
    assert not torch.equal(weights(model), before)
    assert objective.counts < 1


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_frozen_parameters_are_not_touched(optimizer):
    model = net()
    model.fc1.requires_grad_(False)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    train(model, optimizer=optimizer, weight_decay=0.5, lr=0.1)
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]) == name.startswith("fc1")
        assert name.startswith("head") or p.grad is None


def test_weight_decay_shrinks_what_has_no_gradient():
    model = nn.Linear(16, 3)
    before = model.weight.detach().clone()
    train(
        model,
        (torch.zeros(4, 16), torch.zeros(4).long()),
        steps=1,
        lr=0.1,
        weight_decay=0.5,
        schedule="constant",
    )
    assert_close(model.weight.detach(), before * (1 - 0.1 * 0.5))


def test_max_norm_holds_after_every_step():
    model, norms = MLP(16, 8, 6, 3), []
    clip = max_norm(0.3)

    def after_step(model):
        clip(model)
        norms.append(
            [layer.weight.norm(dim=1).max().item() for layer in (model.fc1, model.fc2, model.head)]
        )

    train(model, steps=6, lr=0.1, after_step=after_step)
    assert len(norms) == 6
    assert np.max(norms) <= 0.3 + 1e-6
    assert np.max(norms) == pytest.approx(
        0.3, abs=1e-4
    )  # not far below: only what is too long is shortened


def test_max_norm_shortens_rows_and_turns_none():
    model = nn.Sequential(nn.Linear(2, 3))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0]]))
        model[0].bias.fill_(100.0)
    max_norm(1.0)(model)
    assert_close(model[0].weight.detach(), torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0]]))
    assert (model[0].bias == 100).all()


def test_max_norm_leaves_frozen_layers_alone():
    model = net()
    model.fc1.requires_grad_(False)
    before = model.fc1.weight.clone()
    train(model, after_step=max_norm(0.01))
    assert torch.equal(model.fc1.weight, before)


# --- history --------------------------------------------------------------------------------------


def test_history_has_a_row_an_epoch_with_what_on_epoch_returned(device):
    model = net().to(device)
    history = train(
        model,
        noise(20),
        epochs=3,
        on_epoch=lambda m, epoch: {"double": 2 * epoch, "accuracy": accuracy(m, noise(20))},
    )
    assert (history.losses.shape, history.losses.dtype, history.losses.device.type) == (
        (9,),
        torch.float32,
        "cpu",
    )
    assert list(history.epochs.columns) == ["epoch", "step", "loss", "double", "accuracy"]
    assert history.epochs["epoch"].tolist() == [1, 2, 3]
    assert history.epochs["step"].tolist() == [3, 6, 9]
    assert history.epochs["double"].tolist() == [2, 4, 6]
    assert history.epochs["accuracy"].between(0, 1).all()
    assert history.epochs["loss"].tolist() == pytest.approx(
        history.losses.view(3, 3).mean(1).tolist()
    )
    assert history.seconds > 0


def test_on_epoch_may_return_nothing():
    epochs = []
    history = train(net(), epochs=2, on_epoch=lambda m, epoch: epochs.append(epoch))
    assert epochs == [1, 2]
    assert list(history.epochs.columns) == ["epoch", "step", "loss"]


@pytest.mark.parametrize(
    ("steps", "rows"),
    [
        (2, [2]),  # less than an epoch of 3 steps
        (7, [3, 6, 7]),  # epochs, and what is left
        (200, [*range(4, 201, 4)]),  # fiftieths of the run
        (210, [*range(4, 210, 4), 210]),
    ],
)
def test_with_steps_a_row_is_an_epoch_or_a_fiftieth(steps, rows):
    history = train(nn.Linear(2, 3), (torch.zeros(20, 2), torch.zeros(20).long()), steps=steps)
    assert len(history.losses) == steps
    assert history.epochs["step"].tolist() == rows
    starts = [0, *rows[:-1]]
    assert history.epochs["loss"].tolist() == pytest.approx(
        [history.losses[a:b].mean().item() for a, b in zip(starts, rows)]
    )


def test_on_epoch_does_not_change_the_training():
    quiet, watched = net(dropout=0.5), net(dropout=0.5)
    train(quiet, epochs=2)
    train(watched, epochs=2, on_epoch=lambda m, _: {"accuracy": accuracy(m, noise())})
    assert torch.equal(weights(quiet), weights(watched))


# --- modes ----------------------------------------------------------------------------------------


def modes(model):
    return [layer.training for layer in model.modules()]


def test_trains_in_training_mode_and_puts_every_layer_back():
    model, during = net(dropout=0.5), []
    model.eval()
    model.dropout1.train()
    before = modes(model)
    train(model, after_step=lambda m: during.append(modes(m)))
    assert during == [[True] * len(before)] * 4
    assert modes(model) == before


def test_trains_in_training_mode_whatever_on_epoch_leaves_behind():
    model, during = net(dropout=0.5), []
    train(
        model,
        epochs=2,
        on_epoch=lambda m, _: m.eval() and None,
        after_step=lambda m: during.append(all(modes(m))),
    )
    assert during == [True] * 6


def test_predicts_in_eval_mode_and_puts_every_layer_back():
    model = net(dropout=0.5, input_dropout=0.5)
    model.fc1.eval()
    before = modes(model)
    assert torch.equal(predict(model, noise()), predict(model, noise()))  # no dropout
    record(model, noise(), of="fc1")
    accuracy(model, noise())
    assert modes(model) == before


def test_modes_are_put_back_when_the_model_raises():
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), Blow())
    model[0].eval()
    before = modes(model)
    for call in (
        lambda: train(model),
        lambda: predict(model, noise()),
        lambda: record(model, noise(), of="1"),
        lambda: accuracy(model, noise()),
    ):
        with pytest.raises(RuntimeError, match=r"boom"):
            call()
        assert modes(model) == before


class LowRank(nn.Linear):
    """Merges its addition into its weights in eval mode, as LoRA's layers do."""

    def __init__(self, a, b):
        super().__init__(a, b)
        self.A, self.B = nn.Parameter(torch.randn(2, a)), nn.Parameter(torch.randn(b, 2))
        self.merged, self.turns = False, 0

    def train(self, mode=True):  # returns nothing, as some do
        super().train(mode)
        if mode == self.merged:
            self.weight.data = self.weight.data + (-1 if mode else 1) * (self.B @ self.A).detach()
            self.merged, self.turns = not mode, self.turns + 1

    def forward(self, x):
        more = 0 if self.merged else x @ self.A.T @ self.B.T
        return F.linear(x, self.weight, self.bias) + more


ASKED = {
    "predict": lambda model, data: predict(model, data),
    "accuracy": lambda model, data: accuracy(model, data),
    "record": lambda model, data: record(model, data, of="1"),
    "fit": lambda model, data: train(model, data, on_epoch=lambda m, _: {"x": accuracy(m, data)}),
}


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("part", [True, False])
@pytest.mark.parametrize("call", ASKED)
def test_a_layer_that_acts_on_its_mode_is_as_it_was(call, part, whole):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), LowRank(16, 3), nn.Dropout(0.1))
    model.train(whole)
    model[1].train(part)
    before = modes(model)
    weight, turns = model[1].weight.detach().clone(), model[1].turns
    ASKED[call](model, noise())
    assert modes(model) == before
    assert model[1].merged == (not part)
    if call != "fit":
        assert_close(model[1].weight.detach(), weight)
        assert model[1].turns == turns + (2 if part else 0)  # what was merged was left alone
    F.cross_entropy(model(torch.rand(4, 16)), torch.tensor([0, 1, 2, 0])).backward()
    assert (model[1].A.grad is not None) == part or call == "fit"


@pytest.mark.parametrize("call", ASKED)
def test_a_layer_whose_train_does_nothing_keeps_its_mode(call):
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), nn.Dropout(0.1), nn.BatchNorm1d(3))
    model.train()
    model[3].eval().train = lambda mode=True: model[3]  # a way to freeze its averages
    before, mean = modes(model), model[3].running_mean.clone()
    ASKED[call](model, noise())
    assert modes(model) == before == [True, True, True, True, False]
    assert torch.equal(model[3].running_mean, mean)


class Remembers(nn.Linear):
    """Makes a tensor in its first forward pass and keeps it."""

    offset = None

    def forward(self, x):
        self.offset = torch.ones(3) if self.offset is None else self.offset
        return super().forward(x.flatten(1)) * self.offset


@pytest.mark.parametrize("ask", [predict, accuracy, record])
def test_what_a_model_keeps_from_being_asked_can_be_trained_through(ask):
    model = Remembers(16, 3)
    ask(model, noise())
    assert train(model).losses.isfinite().all()


def test_a_model_that_finds_its_sizes_by_itself():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    assert predict(copy.deepcopy(lazy), noise()).shape == (20, 3)
    assert train(lazy).losses.isfinite().all()


# --- losses that explode --------------------------------------------------------------------------


@pytest.mark.parametrize("bad", ["nan", "inf", "-inf"])
@pytest.mark.parametrize("step", [1, 4, 5, 8])
def test_a_loss_that_is_not_finite_names_its_step(step, bad):
    seen = []

    def objective(model, batch):
        seen.append(batch)
        return cross_entropy(model, batch) + (float(bad) if len(seen) == step else 0)

    model = net().eval()
    with pytest.raises(
        FloatingPointError, match=f"^the loss became {bad} at step {step}; try a smaller lr"
    ):
        train(model, noise(20), objective, steps=8)
    assert not model.training


# --- settings that are refused --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"epochs": 1, "steps": 1}, "^give either epochs or steps, got epochs=1 and steps=1$"),
        (
            {"epochs": None, "steps": None},
            "^give either epochs or steps, got epochs=None and steps=None$",
        ),
        ({"epochs": 0}, "^epochs or steps must be >= 1, got 0$"),
        ({"epochs": -2}, "^epochs or steps must be >= 1, got -2$"),
        ({"steps": 0}, "^epochs or steps must be >= 1, got 0$"),
        ({"batch_size": 0}, "^batch_size must be >= 1, got 0$"),
        (
            {"schedule": "linear"},
            "^schedule must be one of one-cycle, cosine, constant, got 'linear'$",
        ),
        ({"optimizer": "adam"}, '^optimizer must be "adamw" or "sgd", got \'adam\'$'),
        ({"lr": 0.0}, r"^lr must be a finite number > 0, got 0\.0$"),
        ({"lr": -1.0}, r"^lr must be a finite number > 0, got -1\.0$"),
        ({"lr": float("nan")}, "^lr must be a finite number > 0, got nan$"),
        ({"lr": float("inf")}, "^lr must be a finite number > 0, got inf$"),
        ({"weight_decay": -0.1}, r"^weight_decay must be >= 0, got -0\.1$"),
        ({"weight_decay": float("nan")}, "^weight_decay must be >= 0, got nan$"),
    ],
)
def test_refuses_settings_before_any_work(options, sentence):
    model, watch = net(), Watch()
    before = weights(model)
    with pytest.raises(ValueError, match=sentence):
        train(model, noise(), watch, **options)
    assert not watch.seen
    assert torch.equal(weights(model), before)


def test_refuses_to_train_nothing():
    for options in ({}, {"groups": []}, {"groups": [{"params": []}]}):
        with pytest.raises(
            ValueError, match=r"^there is nothing to train: every parameter is frozen$"
        ):
            train(net().requires_grad_(False), **options)


def test_refuses_data_without_samples():
    with pytest.raises(ValueError, match=r"^data must hold at least one sample, got none$"):
        train(net(), noise(0))
    with pytest.raises(ValueError, match=r"^data 'old' must hold at least one sample, got none$"):
        train(net(), joint(new=noise(5), old=noise(0)))


@pytest.mark.parametrize(
    "targets", [torch.zeros(9).long(), torch.zeros(3).long(), {"class": torch.zeros(9).long()}]
)
def test_refuses_inputs_and_targets_of_different_length(targets):
    with pytest.raises(
        ValueError, match=r"^data must have as many targets as inputs, got \[(9|3)\] for 5$"
    ):
        train(net(), (torch.zeros(5, 16), targets), lambda m, b: m(b.x).mean())


@pytest.mark.parametrize("limit", [0, -1.0, float("nan")])
def test_max_norm_refuses(limit):
    with pytest.raises(ValueError, match=f"^limit must be > 0, got {limit}$"):
        max_norm(limit)


# --- predict and accuracy -------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 513, 514, 515, 1500])
def test_predicts_every_image_in_order(n, device):
    x = torch.arange(n, dtype=torch.float32)[:, None]
    model = nn.Linear(1, 1, bias=False).to(device)
    nn.init.constant_(model.weight, 2.0)
    answer = predict(model, (x, torch.zeros(n)))
    assert answer.device.type == device.type
    assert torch.equal(answer.cpu(), 2 * x)


def test_predicts_in_big_batches_without_gradients():
    batches = []

    class Look(nn.Linear):
        def forward(self, x):
            batches.append((len(x), torch.is_grad_enabled(), self.training))
            return super().forward(x)

    answer = predict(Look(1, 1), (torch.zeros(1500, 1), torch.zeros(1500)))
    assert batches == [(n, False, False) for n in (2, 512, 512, 474)]
    assert not answer.requires_grad


class TwoHeads(nn.Module):
    """Answers with a dict."""

    def __init__(self):
        super().__init__()
        self.flat, self.seg, self.depth = nn.Flatten(), nn.Linear(16, 3), nn.Linear(16, 1)

    def forward(self, x):
        return {"seg": self.seg(self.flat(x)), "depth": self.depth(self.flat(x))}


def test_predicts_one_entry_of_a_dict():
    model, data = TwoHeads(), noise()
    for key, width in (("seg", 3), ("depth", 1)):
        answer = predict(model, data, output=key)
        assert answer.shape == (20, width)
        assert_close(answer, model(as_input(data.pixels))[key].detach())


def test_predict_refuses_an_entry_that_is_not_there():
    with pytest.raises(ValueError, match=r"^output must be seg or depth, got 'normals'$"):
        predict(TwoHeads(), noise(), output="normals")
    with pytest.raises(ValueError, match=r"^output must be seg or depth, got None$"):
        predict(TwoHeads(), noise())
    with pytest.raises(ValueError, match=r"^output must be None, got 'seg'$"):
        predict(net(), noise(), output="seg")


def test_predict_and_record_leave_the_data_as_they_were():
    x = torch.randn(10, 16)
    before, model = x.clone(), nn.Sequential(nn.ReLU(inplace=True), nn.Linear(16, 3))
    predict(model, (x, torch.zeros(10)))
    assert torch.equal(x, before)


def test_accuracy_is_the_share_of_right_classes(device):
    model = nn.Identity()  # the inputs are the logits
    logits, labels = torch.eye(4), torch.tensor([0, 1, 2, 0])
    assert accuracy(model, (logits, labels)) == 0.75
    model = nn.Linear(4, 4, bias=False).to(device)
    nn.init.eye_(model.weight)
    assert accuracy(model, (logits, labels)) == 0.75


@pytest.mark.parametrize(
    "data",
    [
        (torch.eye(3), {"class": torch.arange(3)}),
        (torch.eye(3), None),
        (torch.zeros(0, 3), torch.zeros(0).long()),
    ],
)
def test_accuracy_needs_labels(data):
    with pytest.raises(ValueError, match=r"^accuracy needs data with labels, got none$"):
        accuracy(nn.Identity(), data)


WHOLE = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
WRONG = {
    "a column": lambda y: y[:, None],
    "one-hot": lambda y: F.one_hot(y, 3),
    "floats": lambda y: y.float(),
    "too high": lambda y: y + 1,
    "below zero": lambda y: y - 1,
    "one too high, the last": lambda y: torch.cat([y[:-1], torch.tensor([3])]),
}


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_numbers_of_any_kind_are_labels(kind):
    data, model = noise(), net()
    same = data.pixels, data.labels.to(kind)
    assert accuracy(model, same) == accuracy(model, data)
    other = net()
    assert torch.equal(train(other, same).losses, train(model, data).losses)
    assert torch.equal(weights(other), weights(model))


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_no_label_is_named_before_anything_moves(kind):
    x, y = torch.rand(20, 16), torch.arange(20) % 3
    model = nn.Sequential(nn.BatchNorm1d(16), nn.Linear(16, 3))
    before = {key: value.clone() for key, value in model.state_dict().items()}
    for call in (train, accuracy):
        with pytest.raises(ValueError, match=r"^labels must "):
            call(model, (x, WRONG[kind](y)))
    with pytest.raises(ValueError, match=r"^labels must "):
        cross_entropy(model.eval(), Batch(x, WRONG[kind](y), torch.arange(20), 0.0))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


@pytest.mark.parametrize("y", [None, {"class": torch.zeros(20).long()}])
def test_training_on_labels_needs_labels(y):
    with pytest.raises(ValueError, match=r"^labels must be a tensor, got NoneType$"):
        train(net(), (torch.rand(20, 16), y))


def test_there_may_be_no_targets():
    x, seen = torch.rand(20, 16), []
    train(net(), (x, None), lambda m, b: seen.append(b.y) or m(b.x).square().mean())
    assert seen == [None] * 4
    assert torch.equal(predict(net(), (x, None)), record(net(), (x, None)))


@pytest.mark.parametrize(
    "data",
    [
        torch.zeros(5, 16),
        TensorDataset(torch.zeros(5, 16), torch.zeros(5).long()),
        DataLoader(TensorDataset(torch.zeros(5, 16), torch.zeros(5).long())),
        (np.zeros((5, 16)), torch.zeros(5).long()),
        (torch.zeros(5, 16), torch.zeros(5).long(), torch.zeros(5)),
    ],
    ids=lambda data: type(data).__name__,
)
def test_refuses_data_of_another_kind(data):
    sentence = r"^data must be Images or a pair \(inputs, targets\), got " + type(data).__name__
    for call in (train, predict, record, accuracy):
        with pytest.raises(ValueError, match=sentence):
            call(net(), data)


def test_predict_refuses_what_is_not_one_entry_an_input():
    x = torch.rand(5, 3)
    for answer, sentence in (
        (lambda x: x.mean(0), r"^'model' must give 2 entries for 2 inputs, got \(3,\)$"),
        (lambda x: x.sum(), r"^'model' must give 2 entries for 2 inputs, got \(\)$"),
        (lambda x: (x, x), "^the model must return a tensor, got tuple$"),
        (lambda x: None, "^the model must return a tensor, got NoneType$"),
        (lambda x: {"a": [x]}, "^output must be a, got None$"),
    ):
        with pytest.raises(ValueError, match=sentence):
            predict(Say(answer), (x, None))
    with pytest.raises(ValueError, match=r"^the model must return a tensor, got list$"):
        predict(Say(lambda x: {"a": [x]}), (x, None), output="a")


def test_a_model_without_parameters_is_where_its_buffers_are():
    model = nn.BatchNorm1d(3, affine=False, device="meta")
    assert predict(model, (torch.rand(5, 3), None)).device.type == "meta"
    assert predict(nn.ReLU(), (torch.rand(5, 3), None)).device.type == "cpu"


def test_an_empty_set_has_an_empty_answer():
    empty = noise(0)
    assert predict(net(), empty).shape == (0, 3)
    assert record(net(), empty, of="fc1").shape == (0, 8)


# --- record ---------------------------------------------------------------------------------------


def test_records_what_layers_give(device):
    model, data = net(dropout=0.5).to(device), noise()
    x = as_input(data.pixels).to(device).flatten(1)
    fc1 = model.fc1(x)
    taps = record(model, data, of=["fc1", "relu1", "head"])
    assert list(taps) == ["fc1", "relu1", "head"]
    assert_close(taps["fc1"], fc1.detach())
    assert_close(taps["relu1"], fc1.detach().relu())
    assert_close(taps["head"], model.head(fc1.relu()).detach())
    assert torch.equal(record(model, data, of="relu1"), taps["relu1"])
    assert torch.equal(record(model, data), taps["head"])


def test_records_more_than_one_batch_in_order():
    model = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU())
    nn.init.ones_(model[0].weight)
    x = torch.arange(5000.0)[:, None]
    assert torch.equal(record(model, (x, torch.zeros(5000)), of="0"), x)


def test_records_a_layer_inside_a_block():
    model, data = ConvNet(3, size=8, width=2, units=4), noise(side=8)
    assert_close(
        record(model, data, of="block1.conv"), model.block1.conv(as_input(data.pixels)).detach()
    )


def test_records_what_a_layer_gave_before_the_next_one_changed_it_in_place():
    model = nn.Sequential(nn.Linear(16, 8), nn.ReLU(inplace=True))
    x = torch.randn(10, 16)
    assert_close(record(model, (x, torch.zeros(10)), of="0"), model[0](x).detach())


def test_record_removes_its_hooks():
    model = net()
    record(model, noise(), of=["fc1", "head"])
    assert not any(layer._forward_hooks for layer in model.modules())
    broken = nn.Sequential(nn.Flatten(), nn.Linear(16, 3), Blow())
    with pytest.raises(RuntimeError, match=r"boom"):
        record(broken, noise(), of=["0", "1"])
    assert not any(layer._forward_hooks for layer in broken.modules())


def test_record_refuses_a_layer_that_is_not_there():
    for of in ("fc9", ["fc1", "fc9"]):
        model = net()
        with pytest.raises(
            ValueError, match=r"^the model has no layer 'fc9'; it has flatten, fc1, relu1, head$"
        ):
            record(model, noise(), of=of)
        assert not any(layer._forward_hooks for layer in model.modules())


class Odd(nn.Module):
    """Layers that cannot be recorded: met twice, met in training only, or giving no one tensor."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.relu = nn.Linear(16, 8), nn.Linear(8, 8), nn.ReLU()
        self.rnn, self.aux, self.again = nn.LSTM(8, 3), nn.Linear(8, 2), self.b
        self.named, self.nothing = Say(lambda x: {"x": x}), Say(lambda x: None)
        self.mean, self.turned = Say(lambda x: x.mean(0)), Say(lambda x: x.t())

    def forward(self, x):
        h = self.relu(self.a(x.flatten(1)))
        h = self.relu(self.b(h))
        self.rnn(h[:, None]), self.named(h), self.nothing(h), self.mean(h), self.turned(h)
        return self.aux(h) if self.training else h


@pytest.mark.parametrize(
    ("layer", "sentence"),
    [
        ("relu", "^layer 'relu' is met more than once; record one met once$"),
        ("rnn", "^layer 'rnn' gives no tensor, but tuple$"),
        ("named", "^layer 'named' gives no tensor, but dict$"),
        ("nothing", "^layer 'nothing' gives no tensor, but NoneType$"),
        ("aux", "^layer 'aux' is not met when the model answers in eval mode$"),
        ("mean", r"^'mean' must give 2 entries for 2 inputs, got \(8,\)$"),
        ("turned", r"^'turned' must give 2 entries for 2 inputs, got \(8, 2\)$"),
    ],
)
def test_record_refuses_a_layer_that_does_not_give_one_tensor(layer, sentence):
    model = Odd()
    for of in (layer, ["a", layer], [layer, layer]):
        with pytest.raises(ValueError, match=sentence):
            record(model, noise(), of=of)
        assert not any(part._forward_hooks for part in model.modules())
        assert all(part.training for part in model.modules())


def test_records_a_layer_by_each_of_its_names_and_a_name_once():
    model, data = Odd(), noise()
    assert torch.equal(record(model, data, of="b"), record(model, data, of="again"))
    assert list(record(model, data, of=("b", "a", "b"))) == ["b", "a"]


def compiled(where):
    """A network of which all or a part is compiled, the name of its ReLU, and the plain one."""
    torch._dynamo.reset()
    plain = net().eval()
    model = copy.deepcopy(plain)
    if where == "itself":
        model.compile(backend="eager")
    if where == "inside":
        return nn.Sequential(torch.compile(model, backend="eager")), "0._orig_mod.relu1", plain
    if where == "whole":
        return torch.compile(model, backend="eager"), "_orig_mod.relu1", plain
    return model, "relu1", plain


@pytest.mark.parametrize("met", [False, True])
@pytest.mark.parametrize("where", ["whole", "inside", "itself"])
def test_a_compiled_model_is_recorded_before_and_after_it_ran(where, met):
    data = noise()
    model, relu, plain = compiled(where)
    if met:
        predict(model, data), model(as_input(data.pixels))
    found = record(model, data, of=[relu])
    assert_close(found[relu], record(plain, data, of="relu1"))
    kept = found[relu].clone()
    assert_close(model(as_input(data.pixels[:3])), plain(as_input(data.pixels[:3])))
    assert torch.equal(found[relu], kept)  # nothing listens any more
    assert_close(predict(model, data), predict(plain, data))
    history = train(model, data)
    assert_close(history.losses, train(plain, data).losses)


def test_a_scripted_model_answers_and_trains_and_its_layers_are_not_recorded():
    data, plain = noise(), net()
    for model in (
        torch.jit.script(net()),
        torch.jit.trace(net().eval(), as_input(data.pixels[:2])).train(),
    ):
        assert_close(predict(model, data), predict(plain, data))
        assert all(part.training for part in model.modules())
        with pytest.raises(ValueError, match=r"^layer 'relu1' is not met"):
            record(model, data, of="relu1")
    assert_close(train(torch.jit.script(net()), data).losses, train(plain, data).losses)


@pytest.mark.parametrize("n", [20, 1000])
@pytest.mark.parametrize("of", [None, "fc1", ["fc1", "head"]])
def test_what_is_recorded_can_be_part_of_a_later_backward_pass(n, of):
    found = record(net(), noise(n), of=of)
    for tensor in found.values() if isinstance(found, dict) else [found]:
        assert not tensor.is_inference()
        assert not tensor.requires_grad
        w = torch.ones(tensor.shape[1], requires_grad=True)
        (w * tensor[:5]).sum().backward()  # saves the recorded tensor
        assert_close(w.grad, tensor[:5].sum(0))
        nn.Parameter(tensor.clone()).square().sum().backward()


# --- machinery ------------------------------------------------------------------------------------


def test_seed_everything_seeds_python_numpy_and_torch(device):
    def drawn(seed):
        seed_everything(seed)
        return (
            random.random(),
            np.random.rand(),
            torch.rand(1).item(),
            torch.rand(1, device=device).item(),
        )

    first, again, other = drawn(1), drawn(1), drawn(2)
    assert first == again
    assert all(a != b for a, b in zip(first, other))


def test_device_finds_the_best_there_is(monkeypatch):
    assert find_device("cpu") == torch.device("cpu")
    for cuda, mps, best in ((True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        assert find_device() == find_device("auto") == torch.device(best)


def test_device_refuses_what_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    for name in ("cuda", "mps"):
        with pytest.raises(
            ValueError, match=f"^this machine has no {name} device that torch can use$"
        ):
            find_device(name)
    with pytest.raises(
        ValueError, match=r'^device must be "auto", "cpu", "cuda" or "mps", got \'tpu\'$'
    ):
        find_device("tpu")


def test_the_bar_carries_its_text_and_can_be_left_out(capsys):
    train(net(), progress="a teacher")
    assert "a teacher" in capsys.readouterr().err
    train(net(), progress=False)
    assert capsys.readouterr().err == ""


def test_learns_something(device):
    data = noise(30)
    model = net().to(device)
    history = train(model, data, steps=300, lr=0.02)
    assert accuracy(model, data) > 0.7
    assert history.losses[-30:].mean() < history.losses[:30].mean() / 2


# --- memory, layout and kernels -------------------------------------------------------------------


def convnet():
    torch.manual_seed(0)
    return ConvNet(3, channels=3, size=8, width=4, units=8)


class Views(nn.Module):
    """A network of one's own that counts on the usual layout."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(256, 3)

    def forward(self, x):
        return self.head(self.conv(x).view(len(x), -1))


def rgb(n=20):
    return noise(n, side=8, channels=3)


@pytest.mark.parametrize(("most", "largest"), [(1, 1), (7, 10**9), (512, 10_000), (512, 1)])
@pytest.mark.parametrize("make", [convnet, Views, lambda: WideResNet(10, 1, 3, base=4)])
def test_answers_do_not_depend_on_the_size_of_a_batch(make, most, largest, monkeypatch):
    model, data = make(), rgb()
    first = [name for name, _ in model.named_modules()][1]
    wanted = record(model, data), record(model, data, of=first)
    monkeypatch.setattr(training, "MOST", most)
    monkeypatch.setattr(training, "LARGEST", largest)
    assert_close((record(model, data), record(model, data, of=first)), wanted)
    assert_close(wanted[0], model.eval()(as_input(data.pixels)).detach())


@pytest.mark.parametrize(
    ("model", "shape", "bytes_each"),
    [
        (nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten()), (3, 98, 98), 8 * 96 * 96 * 4),
        (nn.Sequential(nn.Linear(2, 100_000), nn.Linear(100_000, 2)), (2,), 400_000),
        (nn.Sequential(nn.Upsample(scale_factor=512), nn.AvgPool2d(512)), (1, 1, 1), 512 * 512 * 4),
        (Say(lambda x: x.mean((1, 2, 3))[:, None]), (3, 200, 200), 3 * 200 * 200 * 4),
        (nn.Linear(4, 4), (4,), 16),
    ],
)
def test_a_batch_is_bounded_by_its_largest_map(model, shape, bytes_each):
    lengths = []
    model.register_forward_pre_hook(lambda _, inputs: lengths.append(len(inputs[0])))
    predict(model, (torch.zeros(100, *shape), None))
    assert sum(lengths) == 100
    assert lengths[0] == 2  # to see how large its maps are
    bound = min(training.MOST, max(1, training.LARGEST // bytes_each))
    assert max(lengths[1:]) == min(bound, 98)


@pytest.mark.slow
def test_the_memory_for_many_photos_is_that_for_few():
    pytest.importorskip("resource")
    code = """
import resource, torch
from torch import nn
from tlcourse.training import predict, record
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if {mac} else 2**10)
torch.set_num_threads(1)
layers = nn.Conv2d(3, 64, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
net = nn.Sequential(*layers)
photos = torch.zeros(96, 3, 224, 224, dtype=torch.uint8)
predict(net, (photos[:2], None)), record(net, (photos[:2], None), of="2")
before = peak()
predict(net, (photos, None)), record(net, (photos, None), of="2")
print(peak() - before)
"""
    code = code.replace("{mac}", str(sys.platform == "darwin"))
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert float(run.stdout) < 200  # all at once they take 2,400 MB


def test_weights_stay_where_they_are_and_answers_are_plain():
    model, data = convnet(), rgb()
    held = model.state_dict()  # the same memory

    def places():
        return {name: (p.data_ptr(), p.stride()) for name, p in model.named_parameters()}

    before, old = places(), weights(model)
    predict(model, data), accuracy(model, data)
    assert record(model, data, of="block1").is_contiguous()
    assert torch.equal(weights(model), old)
    assert places() == before
    train(model, data)
    assert places() == before
    assert not torch.equal(weights(model), old)
    assert all(torch.equal(held[name], p) for name, p in model.named_parameters())
    with pytest.raises(FloatingPointError):
        train(model, data, lambda m, b: cross_entropy(m, b) * float("nan"))
    assert places() == before


def layouts(model, layer):
    """Whether the maps of a layer are channels last, in training and when asked."""
    seen = []
    layer.register_forward_hook(
        lambda _, __, out: seen.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    train(model, rgb(), steps=1)
    predict(model, rgb())
    return set(seen)


def test_networks_of_known_layers_work_with_channels_last():
    model = convnet()
    assert layouts(model, model.block2.conv) == {True}


def test_a_network_of_ones_own_may_count_on_the_usual_layout():
    model = Views()
    assert layouts(model, model.conv) == {False}
    mixed = nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), Views())
    assert layouts(mixed, mixed[0]) == {False}


def test_weights_that_share_or_lack_memory_train_as_they_are():
    data = rgb()
    tied = nn.Sequential(*(nn.Conv2d(3, 3, 3, padding=1) for _ in range(2)), nn.Flatten())
    tied[1].weight = tied[0].weight
    tied.append(nn.Linear(192, 3))
    train(tied, data)
    assert tied[1].weight is tied[0].weight
    edges = nn.Sequential(nn.Conv2d(3, 5, 3, bias=False), nn.Flatten(), nn.Linear(180, 3))
    edges[0].weight = nn.Parameter(torch.ones(1, 1, 3, 3).expand(5, 3, 3, 3), requires_grad=False)
    train(edges, data)
    assert edges[0].weight.stride() == (0, 0, 3, 1)
    assert (edges[0].weight == 1).all()


def linear(weight):
    layer = nn.Linear(*weight.shape[::-1], bias=False)
    layer.weight = nn.Parameter(weight)
    return layer


HELD = {  # how a weight lies in memory, and whether one kernel can update it with others
    "plain": (lambda w: w, True),
    "turned": (lambda w: w.t().contiguous().t(), True),
    "with gaps": (lambda w: torch.cat([w, w], 1)[:, ::2].copy_(w), False),
    "a part": (lambda w: torch.cat([w, w])[:3], True),
    "double": (lambda w: w.double(), True),
    "half": (lambda w: w.bfloat16(), False),
}


@pytest.mark.parametrize("held", HELD)
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_fused_where_that_is_right_and_the_same_everywhere(optimizer, held, monkeypatch):
    lay, one_kernel = HELD[held]
    w, x = torch.randn(3, 16, generator=torch.Generator().manual_seed(0)), torch.randn(20, 16)
    ours, theirs, fused = linear(lay(w.clone())), linear(lay(w.clone())), []
    name = {"adamw": "AdamW", "sgd": "SGD"}[optimizer]
    make = getattr(torch.optim, name)
    spy = lambda *args, **options: fused.append(options["fused"]) or make(*args, **options)  # noqa: E731
    monkeypatch.setattr(torch.optim, name, spy)
    data = x.to(ours.weight.dtype), torch.arange(20) % 3
    train(ours, data, epochs=2, lr=0.1, optimizer=optimizer, schedule="constant")
    assert fused == [one_kernel or None]
    order, extra = torch.Generator().manual_seed(0), {"momentum": 0.9} if name == "SGD" else {}
    plain = make(theirs.parameters(), lr=0.1, weight_decay=0.0, foreach=False, **extra)
    for _ in range(2):
        for index in torch.randperm(20, generator=order).split(8):
            plain.zero_grad()
            F.cross_entropy(theirs(data[0][index]), data[1][index]).backward()
            plain.step()
    assert_close(ours.weight, theirs.weight)


def test_gradients_that_are_sparse_are_taken_by_sgd():
    model = nn.Sequential(nn.EmbeddingBag(10, 4, sparse=True, mode="sum"), nn.Linear(4, 3))
    before = model[0].weight.detach().clone()
    train(model, (torch.arange(20).view(10, 2) % 10, torch.arange(10) % 3), optimizer="sgd")
    assert not torch.equal(model[0].weight, before)


def test_no_step_waits_for_a_number(monkeypatch):
    asked = []
    item = torch.Tensor.item
    monkeypatch.setattr(torch.Tensor, "item", lambda self: asked.append(1) or item(self))
    train(net(), noise(160), lambda m, b: m(b.x).square().mean(), epochs=2)
    assert len(asked) == 2  # one an epoch, of 20 steps
