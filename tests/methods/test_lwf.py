"""Learning without forgetting: its identities, what each way trains, and the mistakes of other
libraries.
"""

from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from common import state
from torch import nn

from tlcourse.methods.distillation import distillation_loss
from tlcourse.methods.fine_tuning import freeze, unfreeze
from tlcourse.methods.lwf import WAYS, Heads, add_task, lfl_loss, lwf_loss, response_loss
from tlcourse.models import ConvNet
from tlcourse.training import Batch, fit, predict

D = torch.float64


def logits(*shape, seed=0, spread=3.0):
    return spread * torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=D)


@pytest.fixture
def labels():
    return torch.tensor([0, 2, 1, 4, 3, 3])


def network(dropout=0.0) -> Heads:
    torch.manual_seed(0)
    body = ConvNet(4, size=8, width=2, units=8)
    trunk = nn.Sequential()
    for name, part in body.named_children():
        if name != "head":
            trunk.add_module(name, part)
    trunk.add_module("norm", nn.BatchNorm1d(8))
    trunk.add_module("dropout", nn.Dropout(dropout))
    return Heads(trunk, old=body.head)


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(48, 1, 8, 8, generator=generator), torch.randint(
        5, (48,), generator=generator
    )


# the loss


def test_the_old_loss_is_cross_entropy_of_softened_probabilities():
    z, v = logits(6, 4), logits(6, 4, seed=1)
    p, q = (
        x.softmax(1) ** 0.5 for x in (v, z)
    )  # the paper's form: powers 1/T of probabilities, made to sum to one again
    p, q = p / p.sum(1, keepdim=True), q / q.sum(1, keepdim=True)
    torch.testing.assert_close(response_loss(z, v, T=2), -(p * q.log()).sum(1).mean())


def test_at_the_start_the_old_loss_is_the_entropy_and_pulls_nowhere():
    v = logits(6, 4)
    z = v.clone().requires_grad_()
    loss = response_loss(z, v)
    loss.backward()
    p = (v / 2).softmax(1)
    torch.testing.assert_close(loss.detach(), -(p * p.log()).sum(1).mean())
    assert z.grad.abs().max() < 1e-15


def test_its_gradient_is_that_of_distillation_without_the_factor(labels):
    z, v = logits(6, 5).requires_grad_(), logits(6, 5, seed=1)
    (ours,) = torch.autograd.grad(response_loss(z, v, T=2), z)
    (theirs,) = torch.autograd.grad(distillation_loss(z, v, labels, T=2, alpha=1), z)
    torch.testing.assert_close(4 * ours, theirs)
    torch.testing.assert_close(
        response_loss(z, v, T=2, scaled=True), distillation_loss(z, v, labels, T=2, alpha=1)
    )
    torch.testing.assert_close(6 * ours, ((z / 2).softmax(1) - (v / 2).softmax(1)).detach() / 2)


def test_gradcheck():
    v = logits(3, 4, seed=1)
    assert torch.autograd.gradcheck(lambda z: response_loss(z, v), logits(3, 4).requires_grad_())


@pytest.mark.parametrize("size", [1e3, 1e4])
def test_large_logits_stay_finite(size):
    """A power of probabilities would be 0 ** 0.5 and its logarithm −inf, as in one library."""
    z = (size * logits(4, 5).sign()).requires_grad_()
    loss = response_loss(z, -z.detach())
    loss.backward()
    assert loss.isfinite()
    assert z.grad.isfinite().all()


def test_a_weight_of_zero_is_fine_tuning_and_the_weight_scales_the_old_loss(labels):
    new, old, then = logits(6, 5), logits(6, 4, seed=1), logits(6, 4, seed=2)
    assert lwf_loss(new, labels, old, then, weight=0) == F.cross_entropy(new, labels)
    torch.testing.assert_close(
        lwf_loss(new, labels, old, then, weight=3),
        F.cross_entropy(new, labels) + 3 * response_loss(old, then),
    )


def test_several_old_tasks_are_summed(labels):
    new, old, then = (
        logits(6, 5),
        [logits(6, 4, seed=1), logits(6, 2, seed=3)],
        [logits(6, 4, seed=2), logits(6, 2, seed=4)],
    )
    expected = F.cross_entropy(new, labels) + sum(response_loss(z, v) for z, v in zip(old, then))
    torch.testing.assert_close(lwf_loss(new, labels, old, then), expected)


def test_a_batch_given_twice_has_the_same_loss(labels):
    new, old, then = logits(6, 5), logits(6, 4, seed=1), logits(6, 4, seed=2)
    twice = [torch.cat([x, x]) for x in (new, labels, old, then)]
    torch.testing.assert_close(lwf_loss(*twice), lwf_loss(new, labels, old, then))
    torch.testing.assert_close(
        lfl_loss(*twice, weight=2), lfl_loss(new, labels, old, then, weight=2)
    )


def test_lfl_is_half_the_squared_distance_of_features(labels):
    new, now, then = logits(6, 5), logits(6, 8, seed=1), logits(6, 8, seed=2)
    expected = (
        F.cross_entropy(new, labels)
        + 0.7 * 0.5 * sum((a - b).norm() ** 2 for a, b in zip(now, then)) / 6
    )
    torch.testing.assert_close(lfl_loss(new, labels, now, then, weight=0.7), expected)
    leaf = now.clone().requires_grad_()
    (found,) = torch.autograd.grad(lfl_loss(new, labels, leaf, then, weight=0.7), leaf)
    torch.testing.assert_close(found, 0.7 * (now - then) / 6)


def test_recorded_answers_get_no_gradient(labels):
    then = logits(6, 4, seed=2).requires_grad_()
    loss = lwf_loss(logits(6, 5).requires_grad_(), labels, logits(6, 4, seed=1), then)
    loss = loss + lfl_loss(
        logits(6, 5), labels, logits(6, 4, seed=1).requires_grad_(), then, weight=1
    )
    loss.backward()
    assert then.grad is None


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (
            lambda: response_loss(logits(6), logits(6)),
            r"logits must have shape \(N, K\) and not be empty, got \(6,\)",
        ),
        (lambda: response_loss(logits(0, 3), logits(0, 3)), r"not be empty, got \(0, 3\)"),
        (
            lambda: response_loss(logits(2, 3), logits(2, 4)),
            r"must have the same shape, got \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: response_loss(logits(2, 3), logits(2, 3), T=0),
            "T must be a finite number > 0, got 0",
        ),
        (
            lambda: lwf_loss(
                logits(2, 3), torch.tensor([0, 1]), logits(2, 3), logits(2, 3), weight=-1
            ),
            "weight must be a finite number >= 0, got -1",
        ),
        (
            lambda: lwf_loss(logits(2, 3), torch.tensor([0, 1]), [], []),
            "must be of the same old tasks, got 0 and 0",
        ),
        (
            lambda: lwf_loss(logits(2, 3), torch.tensor([0, 1]), [logits(2, 3)] * 2, logits(2, 3)),
            "must be of the same old tasks, got 2 and 1",
        ),
        (
            lambda: lfl_loss(
                logits(2, 3), torch.tensor([0, 1]), logits(2, 3), logits(2, 4), weight=1
            ),
            r"got \(2, 3\) and \(2, 4\)",
        ),
        (
            lambda: lfl_loss(
                logits(2, 3), torch.tensor([0, 1]), logits(2, 3), logits(2, 3), weight=float("nan")
            ),
            "weight must be a finite",
        ),
        (lambda: Heads(nn.Identity()), "a network needs at least one head"),
    ],
)
def test_refuses(call, said):
    with pytest.raises(ValueError, match=said):
        call()


# labels, masked classes, precision


LABELLED = {
    "lwf_loss": lambda y: lwf_loss(logits(6, 5), y, logits(6, 4, seed=1), logits(6, 4, seed=2)),
    "lfl_loss": lambda y: lfl_loss(
        logits(6, 5), y, logits(6, 8, seed=1), logits(6, 8, seed=2), weight=0.7
    ),
}


@pytest.mark.parametrize("name", LABELLED)
def test_labels_are_right_or_refused_with_a_sentence(name, labels):
    call = LABELLED[name]
    for kind in (torch.int32, torch.uint8, torch.int16):
        assert call(labels.to(kind)) == call(labels)
    for wrong, said in (
        (labels[:, None], r"labels must have shape \(6,\) like the logits, got \(6, 1\)"),
        (F.one_hot(labels, 5), r"like the logits, got \(6, 5\)"),
        (labels[:1], r"like the logits, got \(1,\)"),
        (labels.double(), "labels must be whole numbers, got torch.float64"),
        (labels > 2, "labels must be whole numbers, got torch.bool"),
        (labels + 1, r"labels must be in \[0, 5\), got 1 to 5"),
    ):
        with pytest.raises(ValueError, match=said):
            call(wrong)


def test_classes_that_are_masked_on_both_sides_do_not_count(labels):
    z, v, mask = logits(6, 4), logits(6, 4, seed=1), torch.full((6, 1), -torch.inf, dtype=D)
    whole = torch.cat([z, mask], 1).requires_grad_()
    loss = response_loss(whole, torch.cat([v, mask], 1))
    torch.testing.assert_close(loss.detach(), response_loss(z, v))
    (found,) = torch.autograd.grad(loss, whole)
    leaf = z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(response_loss(leaf, v), leaf)
    torch.testing.assert_close(found, torch.cat([expected, torch.zeros(6, 1, dtype=D)], 1))
    new = torch.cat([logits(6, 5, seed=2), mask], 1)
    torch.testing.assert_close(
        lwf_loss(new, labels, whole, torch.cat([v, mask], 1)),
        lwf_loss(new[:, :5], labels, z, v),
    )


@pytest.mark.parametrize("value", [-torch.inf, torch.inf, torch.nan])
def test_recorded_rows_without_a_finite_largest_logit_are_refused(value):
    with pytest.raises(ValueError, match="must have a finite largest number in each row"):
        response_loss(logits(2, 3), torch.full((2, 3), value, dtype=D))


def test_half_precision_is_computed_in_single(labels):
    """Squares of 300 features would overflow."""
    now, then = (100 * logits(6, 300, seed=i) for i in (1, 2))
    halves = [x.half() for x in (logits(6, 5), now, then)]
    wide = [x.float() for x in halves]
    found = lfl_loss(halves[0], labels, *halves[1:], weight=1e-6)
    torch.testing.assert_close(found, lfl_loss(wide[0], labels, *wide[1:], weight=1e-6))
    z, v = logits(6, 5).half(), logits(6, 5, seed=1).half()
    torch.testing.assert_close(response_loss(z, v), response_loss(z.float(), v.float()))


# who learns what


def lwf(net, batch, recorded, weight=1.0):
    said = net(batch.x)
    return lwf_loss(said["new"], batch.y, said["old"], recorded[batch.index], weight=weight)


def test_each_head_learns_from_its_own_loss_only(images, labels):
    net = add_task(network(), "new", 5, "LwF")
    said = net(images[0][:6])
    response_loss(said["old"], torch.randn(6, 4)).backward(retain_graph=True)
    assert net.heads["new"].weight.grad is None
    assert net.heads["old"].weight.grad.abs().sum() > 0
    before = net.heads["old"].weight.grad.clone()
    F.cross_entropy(said["new"], labels).backward()
    assert torch.equal(net.heads["old"].weight.grad, before)
    assert net.trunk[0].conv.weight.grad.abs().sum() > 0


TRAINED = {
    "LwF": {"trunk.block1", "trunk.fc6", "heads.old", "heads.new"},
    "joint training": {"trunk.block1", "trunk.fc6", "heads.old", "heads.new"},
    "LFL": {"trunk.block1", "trunk.fc6", "heads.new"},
    "fine-tuning": {"trunk.block1", "trunk.fc6", "heads.new"},
    "fine-tuning FC": {"trunk.fc6", "heads.new"},
    "feature extraction": {"heads.new"},
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_trains_exactly_its_tensors(way, images):
    net = add_task(network(), "new", 5, way)
    trainable = {
        ".".join(name.split(".")[:2]) for name, p in net.named_parameters() if p.requires_grad
    }
    assert trainable & {"trunk.block1", "trunk.fc6", "heads.old", "heads.new"} == TRAINED[way]
    before = state(net)
    recorded = predict(net, images, output="old")
    fit(
        net,
        images,
        lambda n, b: lwf(n, b, recorded),
        epochs=1,
        batch_size=16,
        weight_decay=0.1,
        progress=False,
    )
    moved = {
        name for name, value in net.state_dict().items() if not torch.equal(value, before[name])
    }
    learnable = {name for name, p in net.named_parameters() if p.requires_grad}
    assert moved & dict(net.named_parameters()).keys() == learnable
    assert ("trunk.norm.running_mean" in moved) == (WAYS[way].trunk == "all")


def test_the_old_head_is_in_the_optimizer_of_lwf():
    """It is not, in one library."""
    net = add_task(network(), "new", 5, "LwF")
    assert all(p.requires_grad for p in net.heads["old"].parameters())


def test_feature_extraction_gets_a_head_with_a_hidden_layer():
    net = add_task(network(dropout=0.5), "new", 5, "feature extraction", hidden=16)
    assert [layer.out_features for layer in net.heads["new"] if isinstance(layer, nn.Linear)] == [
        16,
        5,
    ]
    x = torch.randn(4, 1, 8, 8)
    net.train()
    assert torch.equal(net(x)["new"], net(x)["new"])  # dropout is off


@pytest.mark.parametrize("way", ["LwF", "feature extraction"])
def test_only_the_new_head_draws_random_numbers(way):
    """Recorded experiments rest on it: the same seed gives the same head."""
    net = network()
    torch.manual_seed(7)
    add_task(net, "new", 5, way, hidden=16)
    torch.manual_seed(7)
    hidden = [nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5)] if way != "LwF" else [nn.Linear(8, 5)]
    ours, theirs = net.heads["new"].parameters(), nn.Sequential(*hidden).parameters()
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_warm_up_leaves_trunk_old_head_and_buffers_as_they_were(images):
    net = add_task(network(dropout=0.5), "new", 5, "LwF")
    freeze(net.trunk), freeze(net.heads["old"])
    trunk, old, new = state(net.trunk), state(net.heads["old"]), state(net.heads["new"])
    fit(
        net,
        images,
        lambda n, b: F.cross_entropy(n(b.x)["new"], b.y),
        epochs=2,
        weight_decay=0.1,
        progress=False,
    )
    assert all(torch.equal(value, net.trunk.state_dict()[name]) for name, value in trunk.items())
    assert all(
        torch.equal(value, net.heads["old"].state_dict()[name]) for name, value in old.items()
    )
    assert not torch.equal(net.heads["new"].weight, new["weight"])
    unfreeze(net.trunk), unfreeze(net.heads["old"])
    assert all(p.requires_grad for p in net.parameters())


def test_recording_in_eval_mode_makes_an_unchanged_network_agree_with_itself(images):
    """With a teacher left in training mode, dropout alone would make a penalty out of nothing, as
    in one library.
    """
    net = network(dropout=0.5)
    net.train()
    recorded = predict(net, images, output="old")
    twin = deepcopy(net).eval()
    with torch.no_grad():
        torch.testing.assert_close(recorded, twin(images[0])["old"])
    z = recorded.double().requires_grad_()
    (gradient,) = torch.autograd.grad(response_loss(z, recorded.double()), z)
    assert gradient.abs().max() < 1e-12
    with torch.no_grad():
        careless = net(images[0])["old"].double()
    (gradient,) = torch.autograd.grad(response_loss(z, careless), z)
    assert gradient.abs().max() > 1e-3


def test_the_recording_does_not_change_while_the_network_learns(images):
    net = add_task(network(), "new", 5, "LwF")
    recorded = predict(net, images, output="old")
    kept = recorded.clone()
    fit(net, images, lambda n, b: lwf(n, b, recorded), epochs=2, progress=False)
    assert torch.equal(recorded, kept)


def test_the_larger_the_weight_the_less_the_old_answers_move(images):
    moved = []
    for weight in (0.0, 1.0, 30.0):
        net = add_task(network(), "new", 5, "LwF")
        recorded = predict(net, images, output="old")
        fit(
            net,
            images,
            lambda n, b, w=weight, r=recorded: lwf(n, b, r, w),
            epochs=10,
            lr=3e-3,
            batch_size=16,
            progress=False,
        )
        moved.append((predict(net, images, output="old") - recorded).norm().item())
    assert moved[0] > moved[1] > moved[2]


@pytest.mark.parametrize(
    ("task", "classes", "way", "said"),
    [
        (
            "new",
            5,
            "magic",
            f"way must be one of {', '.join(WAYS)}, got 'magic'",
        ),
        ("old", 5, "LwF", "there is a head for 'old' already"),
        ("new", 0, "LwF", "classes must be >= 1, got 0"),
    ],
)
def test_add_task_refuses(task, classes, way, said):
    net = network()
    before = state(net)
    with pytest.raises(ValueError, match=said):
        add_task(net, task, classes, way)
    assert net.state_dict().keys() == before.keys()
    assert all(p.requires_grad for p in net.parameters())


# names of tasks


ODD = ("train", "type", "float", "half", "to", "forward", "heads", "trunk", "self", "é", "a b", "5")


@pytest.mark.parametrize("name", ODD)
def test_a_task_may_have_any_name_that_a_module_can_have(name, images):
    net = add_task(network(), name, 5, "LwF")
    first = Heads(nn.Flatten(), **{name: nn.Linear(64, 3)})
    assert set(first(images[0])) == {name}
    assert list(net.heads) == ["old", name]
    assert len(net.heads) == 2
    assert name in net.heads
    assert isinstance(net.heads[name], nn.Linear)
    assert not net.train().eval().heads[name].training  # its own methods still work
    twin = add_task(network(), name, 5, "LwF")
    twin.load_state_dict(net.state_dict())
    for other in (twin, deepcopy(net)):
        assert torch.equal(predict(other, images, output=name), predict(net, images, output=name))
    freeze(net.heads)
    assert not any(p.requires_grad for p in net.heads[name].parameters())
    unfreeze(net.heads)
    assert all(p.requires_grad for p in net.parameters())


@pytest.mark.parametrize("name", ["cat.dog", "", ".", 5, None, ("a",)])
def test_other_names_are_refused_before_anything_is_frozen(name):
    net = network()
    with pytest.raises(ValueError, match="a task's name must be a string without dots, not empty"):
        add_task(net, name, 2, "feature extraction")
    assert all(p.requires_grad for p in net.parameters())
    if isinstance(name, str):
        with pytest.raises(ValueError, match="a task's name must be"):
            Heads(nn.Flatten(), **{name: nn.Linear(64, 3)})


def test_ordinary_names_keep_the_keys_of_checkpoints():
    net = add_task(network(), "new", 5, "LwF")
    keys = {key for key in net.state_dict() if key.startswith("heads")}
    assert keys == {
        f"heads.{task}.{what}" for task in ("old", "new") for what in ("weight", "bias")
    }


@pytest.mark.parametrize("head", [nn.Conv2d(8, 3, 1), nn.LazyLinear(3), nn.Identity()])
def test_heads_that_do_not_tell_their_features_are_refused(head):
    with pytest.raises(ValueError, match="first head must begin with a linear layer that knows"):
        add_task(Heads(nn.Linear(3, 3), old=head), "new", 2, "LwF")


def test_batches_carry_what_the_objective_needs(images):
    net = add_task(network(), "new", 5, "LwF")
    recorded = predict(net, images, output="old")
    index = torch.tensor([5, 3, 40])
    batch = Batch(images[0][index], images[1][index], index, 0.0)
    said = net.eval()(batch.x)
    torch.testing.assert_close(
        lwf(net, batch, recorded), lwf_loss(said["new"], batch.y, said["old"], recorded[[5, 3, 40]])
    )
