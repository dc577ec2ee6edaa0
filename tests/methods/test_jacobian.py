"""Jacobians: known ones, the noise identity with and without its Hessian term, one row at a time
against all of them, unbiased projections, and samples that see each other.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from common import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.func import functional_call, hessian, jacrev, vmap
from torch.testing import assert_close

from tlcourse.methods.attention import attention_map
from tlcourse.methods.fine_tuning import freeze
from tlcourse.methods.jacobian import (
    attention_jacobian,
    class_jacobian,
    jacobian_loss,
    logits_and_jacobian,
    sobolev_loss,
)

classes = torch.tensor([0, 2, 1, 2])


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


x = normal(4, 1, 6, 6)


def linear(seed=0, outputs=3):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(36, outputs)).double()


def smooth(seed=0, activation=nn.Tanh):
    """Features in layer 1, logits above."""
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 2, 3), activation(), nn.Flatten(), nn.Linear(32, 3)]
    return nn.Sequential(*body).double()


def normed(norm, seed=0):
    torch.manual_seed(seed)
    body = [nn.Conv2d(1, 4, 3), norm, nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(64, 3)]
    return nn.Sequential(*body).double()


def own_rows(net, x, chosen):
    """Each sample's row, of a batch of one."""
    rows = vmap(jacrev(lambda one: net(one[None])[0]))(x)
    return torch.stack([row[c] for row, c in zip(rows, chosen)]).detach()


def weights(net):
    return [p.detach().clone().requires_grad_() for p in net.parameters()]


def with_weights(net, values):
    names = [name for name, _ in net.named_parameters()]
    return lambda x: functional_call(net, dict(zip(names, values)), x)


# one row


def test_a_linear_networks_row_is_its_weights():
    net = linear()
    expected = net[1].weight[classes].reshape(x.shape).detach()
    assert torch.equal(class_jacobian(net, x, classes), expected)


@pytest.mark.parametrize(
    "net",
    [
        smooth(),
        smooth(activation=nn.ReLU),
        normed(nn.BatchNorm2d(4)).eval(),
        freeze(normed(nn.BatchNorm2d(4))),
        normed(nn.GroupNorm(2, 4)).eval(),
        normed(nn.InstanceNorm2d(4)).eval(),
        normed(nn.LayerNorm(4)).eval(),
    ],
    ids=["tanh", "relu", "batch norm", "frozen", "group norm", "instance norm", "layer norm"],
)
def test_a_batch_gives_the_rows_that_each_sample_gives_alone(net):
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.normal_()
            part.running_var.uniform_(0.5, 2)
    assert_close(class_jacobian(net, x, classes), own_rows(net, x, classes))


def test_the_row_is_not_differentiable_by_the_weights_unless_asked_for(device):
    net, where = smooth().float().to(device), {"device": device, "dtype": torch.float32}
    here = x.to(**where)
    assert not class_jacobian(net, here, classes).requires_grad
    J = class_jacobian(net, here, classes, create_graph=True)
    assert_close(J.detach().cpu().double(), own_rows(smooth(), x, classes), atol=1e-2, rtol=1e-2)
    J.square().sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())
    assert net[0].weight.grad.abs().max() > 0


def test_logits_and_row_come_from_one_pass_and_both_teach():
    net, asked = smooth(), []
    net.register_forward_hook(lambda *seen: asked.append(len(seen[1][0])))
    logits, J = logits_and_jacobian(net, x, classes, create_graph=True)
    assert asked == [5]  # four samples and the probe
    assert_close(logits, net(x))
    assert_close(J, class_jacobian(net, x, classes))
    for part in (logits, J):
        assert torch.autograd.grad(part.square().sum(), net[0].weight, retain_graph=True)[0].any()
    assert not any(part.requires_grad for part in logits_and_jacobian(net, x, classes))


def test_model_and_pixels_are_left_as_they_were_whoever_asks():
    net, pixels = normed(nn.BatchNorm2d(4)).eval(), x.clone().requires_grad_()
    pixels.grad = torch.ones_like(x)
    before = copy.deepcopy(net.state_dict())
    expected = class_jacobian(net, pixels, classes)
    for asking in (torch.no_grad, torch.inference_mode):
        with asking():
            assert torch.equal(class_jacobian(net, x * 1, classes * 1), expected)
            assert torch.equal(
                attention_jacobian(net, "0", x * 1), attention_jacobian(net, net[0], x)
            )
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert torch.equal(pixels.grad, torch.ones_like(x))
    assert torch.equal(class_jacobian(lambda x: net(x.mul_(1)), pixels, classes), expected)
    assert torch.equal(pixels.detach(), x)


def test_the_pixels_may_lie_in_memory_in_any_order():
    net, many = normed(nn.GroupNorm(1, 4)).eval(), normal(4, 3, 6, 6)
    net[0] = nn.Conv2d(3, 4, 3).double()
    expected = class_jacobian(net, many, classes)
    for view in (
        many.to(memory_format=torch.channels_last),
        many.repeat_interleave(2, 3)[..., ::2],
        many.mT.contiguous().mT,
    ):
        assert_close(class_jacobian(net, view, classes), expected)


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_classes_may_be_whole_numbers_of_any_kind(kind):
    assert torch.equal(
        class_jacobian(smooth(), x, classes.to(kind)), class_jacobian(smooth(), x, classes)
    )


# samples that see each other


def test_batch_norm_in_training_mode_would_lose_the_rows():
    """Of one unit's normalised values the sum over the batch is 0, however the pixels move."""
    net = nn.Sequential(linear(), nn.BatchNorm1d(3).double())
    pixels = x.clone().requires_grad_()
    scores = net(pixels)[:, 0]
    own = [torch.autograd.grad(s, pixels, retain_graph=True)[0][i] for i, s in enumerate(scores)]
    assert torch.stack(own).abs().max() > 0.01
    assert torch.autograd.grad(scores.sum(), pixels)[0].abs().max() < 1e-12


BATCH_NORMS = {
    "in training mode": normed(nn.BatchNorm2d(4)),
    "without averages": normed(nn.BatchNorm2d(4, track_running_stats=False)).eval(),
    "synchronised": normed(nn.SyncBatchNorm(4)),
}


@pytest.mark.parametrize("kind", BATCH_NORMS)
def test_batch_norm_of_the_batch_is_named_and_refused_before_its_averages_move(kind):
    net = BATCH_NORMS[kind]
    before = copy.deepcopy(net.state_dict())
    for call in (
        lambda: class_jacobian(net, x, classes),
        lambda: attention_jacobian(net, "2", x),
        lambda: sobolev_loss(net, linear(), x),
        lambda: sobolev_loss(linear(), net, x),
    ):
        with pytest.raises(ValueError, match="the layer '1' mixes the samples of a batch, so no"):
            call()
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())


class Called(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, z):
        return self.function(z)


MIXERS = {
    "minus the mean": lambda z: z - z.mean(0),
    "batch norm as a function": lambda z: F.batch_norm(z, None, None, training=True),
    "softmax over the batch": lambda z: z.softmax(0),
    "attention over the batch": lambda z: (
        (z.flatten(1) @ z.flatten(1).T).softmax(1) @ z.flatten(1)
    ).reshape(z.shape),
    "rolled": lambda z: z + z.roll(1, 0),
    "decorrelated": lambda z: z / z.flatten(1).norm(),
}


@pytest.mark.parametrize("kind", MIXERS)
@pytest.mark.parametrize("samples", [1, 4])
def test_any_layer_that_mixes_samples_is_refused(kind, samples):
    mix = Called(MIXERS[kind])
    net = nn.Sequential(nn.Conv2d(1, 4, 3), mix, nn.Flatten(), nn.Linear(64, 3)).double()
    few = x[:samples]
    with pytest.raises(ValueError, match="the model mixes the samples of a batch, so no row is of"):
        class_jacobian(net, few, classes[:samples])
    with pytest.raises(ValueError, match="the model mixes"):
        class_jacobian(lambda x: net(x), few, classes[:samples], create_graph=True)
    with pytest.raises(ValueError, match="the model mixes"):
        sobolev_loss(net, linear(), few, None)
    with pytest.raises(ValueError, match="the model mixes"):
        attention_jacobian(net, "1", few)


def test_what_is_held_constant_is_not_seen_and_is_a_constant():
    net = nn.Sequential(Called(lambda z: z - z.mean(0).detach()), *linear())
    assert_close(class_jacobian(net, x, classes), class_jacobian(linear(), x, classes))


@pytest.mark.parametrize("kind", [nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), nn.Identity()])
def test_layers_that_keep_samples_apart_may_be_in_training_mode(kind):
    """Dropout drops the sample's own units, the same ones for value and row."""
    net = normed(kind)
    torch.manual_seed(1)
    J = class_jacobian(net, x, classes, create_graph=True)
    torch.manual_seed(1)
    pixels = torch.cat([x, x[:1]]).requires_grad_()
    scores = net(pixels)[:4].gather(1, classes[:, None]).sum()
    assert_close(J.detach(), torch.autograd.grad(scores, pixels)[0][:4])
    assert not torch.allclose(J, class_jacobian(net, x, classes))  # another mask


def test_a_slope_without_end_is_not_taken_for_mixing():
    J = class_jacobian(lambda z: z.sqrt(), torch.zeros(3, 2), torch.tensor([0, 1, 0]))
    assert (J[torch.arange(3), [0, 1, 0]] == torch.inf).all()


# the attention map's largest pixel


def test_the_largest_pixel_of_the_map_is_followed_to_the_image():
    net = smooth()
    rows = [jacrev(lambda one: attention_map(net[:2](one[None])).flatten())(one) for one in x]
    largest = attention_map(net[:2](x)).flatten(1).argmax(1)
    expected = torch.stack([row[i] for row, i in zip(rows, largest)]).detach()
    for layer in ("1", net[1]):
        assert_close(attention_jacobian(net, layer, x), expected)
    other = (largest + 1) % 16
    assert_close(
        attention_jacobian(net, "1", x, at=other),
        torch.stack([row[i] for row, i in zip(rows, other)]).detach(),
    )


def test_by_hand_the_pixel_of_a_map_of_one_convolution():
    """Q = (2x)² at the brightest pixel, so its slope there is 8x."""
    net = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(inplace=True))
    net[0].weight.data.fill_(2)
    image = torch.tensor([[[[1.0, 3.0], [-2.0, 0.5]]]])
    assert attention_jacobian(net, "0", image).tolist() == [[[[0.0, 24.0], [0.0, 0.0]]]]
    at = torch.tensor([2])
    assert attention_jacobian(net, "0", image, at=at).tolist() == [[[[0.0, 0.0], [-16.0, 0.0]]]]
    assert attention_jacobian(net, "1", image, at=at).tolist() == [[[[0.0, 0.0], [0.0, 0.0]]]]


def test_of_any_model_with_such_a_layer_whatever_it_answers_and_no_hook_stays():
    net = smooth()
    whole = Called(lambda z: {"logits": net(z)})
    whole.net = net
    assert_close(attention_jacobian(whole, "net.1", x), attention_jacobian(net, "1", x))
    with pytest.raises(ValueError, match="no layer"):
        attention_jacobian(net, "9", x)
    with pytest.raises(ValueError, match=r"must give \(N, C, H, W\)"):
        attention_jacobian(net, "3", x)
    assert not any(part._forward_hooks for part in net.modules())


def test_the_students_pixel_can_be_trained():
    net, other = smooth(), smooth(1)
    target = attention_jacobian(other, "1", x)
    loss = jacobian_loss(attention_jacobian(net, "1", x, create_graph=True), target)
    loss.backward()
    assert net[0].weight.grad.abs().max() > 0
    assert all(p.grad is None for p in other.parameters())


# the loss on rows


@often
@given(seed=seeds)
def test_the_loss_is_its_formula_and_lies_between_0_and_4(seed):
    student, teacher = normal(3, 2, 4, seed=seed), normal(3, 2, 4, seed=seed + 1)
    rows = [J.flatten(1) / J.flatten(1).norm(dim=1, keepdim=True) for J in (student, teacher)]
    by_hand = ((rows[0] - rows[1]) ** 2).sum() / 3
    loss = jacobian_loss(student, teacher)
    assert_close(loss, by_hand)
    assert_close(loss, (2 - 2 * F.cosine_similarity(*rows)).mean())
    assert 0 <= loss <= 4
    assert jacobian_loss(student, student) == 0
    assert jacobian_loss(student, -student).item() == pytest.approx(4)


@often
@given(seed=seeds, c=st.floats(1e-6, 1e6), d=st.floats(1e-6, 1e6))
def test_how_steep_a_row_is_makes_no_difference(seed, c, d):
    student, teacher = normal(3, 2, 4, seed=seed), normal(3, 2, 4, seed=seed + 1)
    size = torch.tensor([c, 1.0, d])[:, None, None]
    expected = jacobian_loss(student, teacher)
    assert_close(jacobian_loss(student * size, teacher / size), expected)


def test_a_row_shorter_than_the_smallest_length_is_divided_by_that():
    short, unit = torch.tensor([[3e-13, 4e-13]]).double(), torch.tensor([[1.0, 0.0]]).double()
    assert jacobian_loss(short, unit).item() == pytest.approx(0.7**2 + 0.4**2)


def test_a_row_of_zeros_stays_as_it_is_and_its_neighbours_do_not_notice():
    student, teacher = normal(3, 2, 4), normal(3, 2, 4, seed=1)
    student[1], teacher[2] = 0, 0
    leaf = student.clone().requires_grad_()
    loss = jacobian_loss(leaf, teacher)
    (slope,) = torch.autograd.grad(loss, leaf, create_graph=True)
    one = student[:1].clone().requires_grad_()
    alone = torch.autograd.grad(jacobian_loss(one, teacher[:1]), one)[0]
    assert loss.item() == pytest.approx((jacobian_loss(one, teacher[:1]).item() + 1 + 1) / 3)
    assert_close(slope[:1], alone / 3)
    assert (slope[1] == 0).all()
    assert slope.isfinite().all()
    assert torch.autograd.grad(slope.square().sum(), leaf)[0].isfinite().all()
    nothing = torch.zeros(2, 3).requires_grad_()
    (zero,) = torch.autograd.grad(jacobian_loss(nothing, torch.zeros(2, 3)), nothing)
    assert (zero == 0).all()


def test_a_dead_network_has_a_loss_and_gradients():
    net = smooth(activation=nn.ReLU)
    net[0].bias.data.fill_(-100)
    loss = jacobian_loss(
        class_jacobian(net, x, classes, True), class_jacobian(linear(), x, classes)
    )
    assert loss.item() == pytest.approx(1)
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_half_precision(kind):
    student, teacher = (200 * normal(2, 64, 8, 8, seed=seed).to(kind) for seed in (0, 1))
    leaf = student.clone().requires_grad_()
    loss = jacobian_loss(leaf, teacher)
    assert loss.dtype == torch.float32
    assert_close(
        loss.double(), jacobian_loss(student.double(), teacher.double()), atol=1e-4, rtol=0
    )
    assert torch.autograd.grad(loss, leaf)[0].isfinite().all()
    assert jacobian_loss(student.float(), teacher.to(kind)).isfinite()  # rows recorded in half


def test_in_half_precision_and_under_autocast_rows_are_nearly_the_same():
    net = smooth()
    expected = class_jacobian(net, x, classes)
    half = class_jacobian(copy.deepcopy(net).bfloat16(), x.bfloat16(), classes)
    assert half.dtype == torch.bfloat16
    assert jacobian_loss(half, expected) < 1e-3
    single = net.float()
    with torch.autocast("cpu", torch.bfloat16):
        J = class_jacobian(single, x.float(), classes, create_graph=True)
        loss = jacobian_loss(J, expected) + sobolev_loss(single, linear().float(), x.float())
    assert jacobian_loss(J, expected) < 1e-3
    loss.backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in single.parameters())


@pytest.mark.gpu
def test_a_gpu_gives_the_same_rows_and_trains_in_bfloat16():
    net, rows = smooth().cuda(), own_rows(smooth(), x, classes)
    assert_close(class_jacobian(net, x.cuda(), classes).cpu(), rows)
    net.float()
    with torch.autocast("cuda", torch.bfloat16):
        J = class_jacobian(net, x.float().cuda(), classes.cuda(), create_graph=True)
        loss = jacobian_loss(J, rows.cuda())
    assert loss < 1e-2
    loss.backward()
    assert net[0].weight.grad.isfinite().all()
    with pytest.raises(ValueError, match="the model mixes"):
        class_jacobian(
            nn.Sequential(net, Called(lambda z: z - z.mean(0))), x.float().cuda(), classes
        )


@pytest.mark.parametrize("activation", [nn.Tanh, nn.Softplus])
def test_the_loss_can_be_differentiated_by_the_weights_once_and_twice(activation):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 2), activation(), nn.Linear(2, 2)).double()
    few, chosen, target = normal(2, 3), torch.tensor([0, 1]), normal(2, 3, seed=1)

    def loss(*values):
        J = class_jacobian(with_weights(net, values), few, chosen, create_graph=True)
        return jacobian_loss(J, target)

    assert torch.autograd.gradcheck(loss, weights(net)[:3])
    assert torch.autograd.gradgradcheck(loss, weights(net)[:3])


def test_rows_alone_can_be_differentiated_twice():
    J, target = normal(2, 3).requires_grad_(), normal(2, 3, seed=1).requires_grad_()
    assert torch.autograd.gradcheck(lambda J: jacobian_loss(J, target), J)
    assert torch.autograd.gradgradcheck(lambda J: jacobian_loss(J, target), J)
    jacobian_loss(J, target).backward()
    assert target.grad is None
    assert J.grad is not None


def test_recorded_rows_teach_a_student_and_the_teacher_learns_nothing():
    teacher, student = smooth(), smooth(1)
    recorded = torch.cat(
        [class_jacobian(teacher, x[i : i + 2], classes[i : i + 2]) for i in (0, 2)]
    )
    assert_close(recorded, class_jacobian(teacher, x, classes))
    optimizer = torch.optim.Adam(student.parameters(), 0.01)
    losses = []
    for _ in range(50):
        losses.append(jacobian_loss(class_jacobian(student, x, classes, True), recorded))
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.2 * losses[0]
    assert all(p.grad is None for p in teacher.parameters())


# values and derivatives

ALONG = ("sphere", "gaussian")


def whole_jacobian(net, x):
    return vmap(jacrev(lambda one: net(one[None])[0].flatten()))(x).flatten(2).detach()


def test_exactly_it_is_values_and_all_derivatives_squared():
    student, teacher = smooth(), smooth(1)
    apart = (student(x) - teacher(x)).square().sum(1)
    J = whole_jacobian(student, x) - whole_jacobian(teacher, x)
    expected = (apart + 0.3 * J.square().sum((1, 2))).mean()
    assert_close(sobolev_loss(student, teacher, x, None, weight=0.3), expected)
    assert_close(sobolev_loss(student, teacher, x, weight=0.0), apart.mean())
    assert sobolev_loss(torch.sqrt, torch.sqrt, torch.zeros(2, 1), weight=0.0) == 0  # slopes: ∞


def test_by_hand_a_function_of_one_variable():
    """At x = 1 x² and 3x are 1 and 3, and rise by 2 and 3: (1 − 3)² + (2 − 3)² = 5."""
    one = torch.tensor([[1.0]])
    for projections in (None, 1, 4):
        assert sobolev_loss(lambda x: x**2, lambda x: 3 * x[:, 0], one, projections).item() == (
            pytest.approx(5)
        )


@pytest.mark.parametrize("along", ALONG)
def test_projections_are_right_on_average(along):
    """4096 samples that are the same, each with directions of its own; within 4 standard errors."""
    student, teacher, many = smooth(), smooth(1), x[:1].expand(4096, -1, -1, -1)
    J = (whole_jacobian(student, x[:1]) - whole_jacobian(teacher, x[:1]))[0]
    values = sobolev_loss(student, teacher, x[:1], weight=0.0)
    exact = sobolev_loss(student, teacher, x[:1], None) - values
    assert_close(exact, J.square().sum())
    for projections in (1, 3):
        torch.manual_seed(projections)
        found = sobolev_loss(student, teacher, many, projections, along=along) - values
        G = J @ J.T  # vᵀGv for Gaussian v varies by 2·‖G‖²; on a sphere by less
        error = (2 * G.square().sum() / (4096 * projections)).sqrt()
        assert abs(found - exact) < 4 * error
        assert error < 0.05 * exact


def test_gaussian_directions_vary_more_than_those_on_a_sphere():
    """Of a Jacobian that is the same in all directions a sphere's are exact."""
    many = normal(500, 3)
    sphere, gaussian = (
        sobolev_loss(lambda x: 2 * x, lambda x: x, many, along=along) for along in ALONG
    )
    values = many.square().sum(1).mean()
    assert_close(sphere, values + 3)
    assert 0.01 < abs(gaussian - values - 3) < 4 * (6 / 500) ** 0.5


def test_it_is_zero_only_where_values_and_derivatives_agree():
    student, teacher = smooth(), copy.deepcopy(smooth())
    for projections in (None, 1, 2):
        assert sobolev_loss(student, teacher, x, projections) == 0
    teacher[3].bias.data += 1  # other values, the same derivatives
    assert sobolev_loss(student, teacher, x, None).item() == pytest.approx(3)
    other = smooth(1)
    shift = student(x[:1]) - other(x[:1])
    other[3].bias.data += shift[0].detach()  # the same values, other derivatives
    for along in ALONG:
        assert sobolev_loss(student, other, x[:1], along=along) > 0.01
    assert sobolev_loss(student, other, x[:1], weight=0.0).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize("projections", [None, 1, 2])
def test_its_gradients_are_right_and_reach_the_student_only(projections):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(2, 3), nn.Softplus(), nn.Linear(3, 2)).double()
    teacher = nn.Sequential(nn.Linear(2, 2), nn.Tanh()).double()
    few = normal(2, 2)

    def loss(*values):
        torch.manual_seed(3)
        return sobolev_loss(with_weights(net, values), teacher, few, projections, weight=0.7)

    assert torch.autograd.gradcheck(loss, weights(net))
    sobolev_loss(net, teacher, few, projections).backward()
    assert all(p.grad is not None for p in net.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    with torch.no_grad():
        torch.manual_seed(3)
        quiet = sobolev_loss(net, teacher, few, projections, weight=0.7)
    assert not quiet.requires_grad
    assert_close(quiet, loss(*weights(net)).detach())


def test_derivatives_of_half_precision_are_compared_in_single():
    student, teacher = (lambda x: 600 * x.sum(1), lambda x: 100 * x.sum(1))
    half = torch.ones(2, 4, dtype=torch.float16)
    assert sobolev_loss(student, teacher, half, None).item() == 2000**2 + 4 * 500**2


# noise


def spread(net, x, noise):
    """The mean of ‖g(x + ξ)‖² over the noise, and its standard error, for one sample x."""
    squares = net(x + noise).square().flatten(1).sum(1).detach()
    return squares.mean(), squares.std() / len(squares) ** 0.5


def gap(student, teacher):
    return lambda x: student(x) - teacher(x)


@pytest.mark.parametrize("sigma", [0.01, 1.0, 100.0])
def test_of_linear_networks_distilling_with_noise_is_matching_jacobians_exactly(sigma):
    """Noise of ±σ√D in one pixel at a time has the same second moments as Gaussian noise."""
    pair = linear(), linear(1)
    noise = torch.cat([torch.eye(36), -torch.eye(36)]).double().reshape(-1, 1, 6, 6) * sigma * 6
    found = spread(gap(*pair), x[:1], noise)[0]
    assert_close(found, sobolev_loss(*pair, x[:1], None, weight=sigma**2).detach())
    mean, error = spread(gap(*pair), x[:1], sigma * normal(20_000, 1, 6, 6, seed=5))
    assert abs(mean - found) < 4 * error


def bent(seed):
    """A smooth network, far from linear."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 2)).double()
    for layer in (net[0], net[2]):
        layer.weight.data *= 3
    return net


def hessian_term(g, x):
    """Σ_i g_i·tr H_i at one x."""
    H = hessian(lambda one: g(one[None])[0])(x[0])
    return (g(x)[0] * H.diagonal(dim1=1, dim2=2).sum(1)).sum().detach()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("agree", [False, True])
def test_of_smooth_networks_the_hessian_has_its_part_unless_they_agree(agree):
    """With antithetic noise, within 4 standard errors; the paper's form is far off, or right."""
    student, teacher, here, sigma = bent(0), bent(1), 0.5 * normal(1, 3), 0.02
    if agree:
        student[2].bias.data += (teacher(here) - student(here))[0].detach()
    g = gap(student, teacher)
    noise = sigma * normal(100_000, 3, seed=6)
    pairs = (g(here + noise).square() + g(here - noise).square()).sum(1).detach() / 2
    mean, error = pairs.mean(), pairs.std() / len(pairs) ** 0.5
    paper = sobolev_loss(student, teacher, here, None, weight=sigma**2).detach()
    term = sigma**2 * hessian_term(g, here)
    assert abs(mean - paper - term) < 4 * error
    if agree:
        assert abs(term) < 1e-12
    else:
        assert abs(mean - paper) > 40 * error


def test_the_rest_falls_as_the_fourth_power_of_sigma():
    student, teacher, here = bent(0), bent(1), 0.5 * normal(1, 3)
    g = gap(student, teacher)
    nodes = torch.tensor([-1, 0, 1]).double() * 3**0.5  # Gauss and Hermite's: right up to σ⁵
    mass = torch.tensor([1, 4, 1]).double() / 6
    grid, w = torch.cartesian_prod(nodes, nodes, nodes), torch.cartesian_prod(mass, mass, mass)
    rest = []
    for sigma in (0.005, 0.01):
        mean = (w.prod(1) * g(here + sigma * grid).square().sum(1)).sum().detach()
        near = sobolev_loss(student, teacher, here, None, weight=sigma**2).detach()
        rest.append(mean - near - sigma**2 * hessian_term(g, here))
    assert (rest[1] / rest[0]).item() == pytest.approx(16, rel=0.05)


# what is refused

J = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("chosen", "said"),
    [
        (classes[:, None], r"classes must have shape \(4,\) like the logits, got \(4, 1\)"),
        (F.one_hot(classes, 3), r"classes must have shape \(4,\) like the logits, got \(4, 3\)"),
        (classes[:3], r"like the logits, got \(3,\)"),
        (classes.float(), "classes must be whole numbers, got torch.float32"),
        (classes > 1, "classes must be whole numbers, got torch.bool"),
        (classes + 1, r"classes must be in \[0, 3\), got 1 to 3"),
        (-classes, r"classes must be in \[0, 3\), got -2 to 0"),
        (2, "classes must be a tensor, got int"),
    ],
)
def test_classes_that_do_not_fit_are_refused(chosen, said):
    with pytest.raises(ValueError, match=said):
        class_jacobian(smooth(), x, chosen)


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: class_jacobian(smooth(), x.long(), classes), "x must be floating point, got"),
        (
            lambda: class_jacobian(smooth(), x[:0], classes[:0]),
            r"x must be \(N, …\), not empty, got \(0, 1, 6, 6\)",
        ),
        (lambda: class_jacobian(smooth(), x.sum(), classes), r"x must be \(N, …\), not empty"),
        (
            lambda: class_jacobian(lambda x: {"logits": x}, x, classes),
            r"one entry must come for each of 5 inputs \(one a probe\), got dict",
        ),
        (lambda: class_jacobian(lambda x: x.sum(), x, classes), r"one a probe\), got \(\)"),
        (lambda: class_jacobian(lambda x: x[:2], x, classes), r"one a probe\), got \(2, 1, 6, 6\)"),
        (lambda: class_jacobian(smooth()[:2], x, classes), r"logits must have shape \(N, K\), got"),
        (
            lambda: class_jacobian(lambda x: x.flatten(1).detach(), x, classes),
            "what the model says must depend on x",
        ),
        (
            lambda: class_jacobian(lambda x: linear()(0 * x.detach()), x, classes),
            "what the model says must depend on x",
        ),
        (lambda: attention_jacobian(smooth(), "1", x.byte()), "x must be floating point"),
        (
            lambda: attention_jacobian(smooth(), "1", x, at=torch.tensor([0, 16, 0, 0])),
            r"at must be in \[0, 16\), got 0 to 16",
        ),
        (
            lambda: attention_jacobian(smooth(), "1", x, at=classes[:2]),
            r"at must have shape \(4,\)",
        ),
        (
            lambda: attention_jacobian(nn.Sequential(nn.LSTM(6, 2).double()), "0", x[:, 0]),
            "the layer '0' must give a tensor, got tuple",
        ),
        (lambda: jacobian_loss(J, J[:1]), "both Jacobians must have the same shape, got"),
        (
            lambda: jacobian_loss(J[:0], J[:0]),
            r"Jacobians must be \(N, …\), not empty, got \(0, 3\)",
        ),
        (lambda: jacobian_loss(J[0], J[0]), r"Jacobians must be \(N, …\), not empty, got \(3,\)"),
        (lambda: jacobian_loss(J.long(), J), "J_student must be floating point, got torch.int64"),
        (lambda: jacobian_loss(J, J.long()), "J_teacher must be floating point, got torch.int64"),
        (
            lambda: sobolev_loss(linear(), linear(), x, 0),
            "projections must be None or a whole number >= 1, got 0",
        ),
        (lambda: sobolev_loss(linear(), linear(), x, 1.5), "a whole number >= 1, got 1.5"),
        (
            lambda: sobolev_loss(linear(), linear(), x, along="cube"),
            "along must be 'sphere' or 'gaussian', got 'cube'",
        ),
        (
            lambda: sobolev_loss(linear(), linear(), x, weight=-1),
            "weight must be a finite number >= 0, got -1",
        ),
        (
            lambda: sobolev_loss(linear(), linear(outputs=2), x),
            r"answers of student and teacher must have the same shape, got \(4, 3\) and \(4, 2\)",
        ),
        (lambda: sobolev_loss(linear(), lambda x: 1.0, x), r"one a probe\), got float"),
        (lambda: sobolev_loss(linear(), linear(), x.long()), "x must be floating point"),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, said):
    with pytest.raises(ValueError, match=said):
        call()
