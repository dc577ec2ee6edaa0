"""Attention transfer: loops as a reference, two libraries' numbers, invariances, gradients, and
what is refused.
"""

import copy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close
from torchdistill.losses.mid_level import ATLoss

from tlcourse.methods.attention import (
    activation_loss,
    attention_map,
    attention_transfer_loss,
    connectors,
    gradient_transfer_loss,
    input_gradient,
)

often = settings(deadline=None, max_examples=40, database=None)
powers = st.sampled_from([1, 1.5, 2, 3, 4])
seeds = st.integers(0, 10_000)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def layers(*channels, N=3, size=4, seed=0):
    """Features of one network at some layers, each half as large as the one before."""
    return [normal(N, C, size // 2**i, size // 2**i, seed=seed + i) for i, C in enumerate(channels)]


# the map


@often
@given(p=powers, seed=seeds)
def test_the_map_is_a_sum_over_channels_and_its_other_form_a_maximum(p, seed):
    A = normal(2, 3, 2, 4, seed=seed)
    for over, gather in (("sum", sum), ("max", max)):
        found = attention_map(A, p, over=over)
        for n in range(2):
            for h in range(2):
                for w in range(4):
                    assert found[n, h, w].item() == pytest.approx(
                        gather(abs(a) ** p for a in A[n, :, h, w].tolist())
                    )


@often
@given(p=powers, seed=seeds)
def test_the_order_and_the_signs_of_the_channels_do_not_matter(p, seed):
    A = normal(2, 5, 3, 3, seed=seed)
    signs = normal(5, seed=seed + 1).sign()[:, None, None]
    for over in ("sum", "max"):
        assert_close(
            attention_map(signs * A[:, torch.randperm(5)], p, over=over),
            attention_map(A, p, over=over),
        )
    assert (attention_map(A, p) >= 0).all()


def test_by_hand():
    A = torch.tensor([[[[1.0, -2.0]], [[3.0, 0.0]]]])  # two channels, one row, two places
    assert attention_map(A, 1).tolist() == [[[4.0, 2.0]]]
    assert attention_map(A, 2).tolist() == [[[10.0, 4.0]]]
    assert attention_map(A, 3).tolist() == [[[28.0, 8.0]]]  # an odd power without | | would give −8
    assert attention_map(A, 2, over="max").tolist() == [[[9.0, 4.0]]]


# the loss


def by_loops(student, teacher, p, form):
    """β = 1, from the formulas, image by image."""
    total = 0.0
    for s, t in zip(student, teacher):
        here = 0.0
        for a, b in zip(s, t):
            q = [(m.abs() ** p).sum(0).flatten() for m in (a, b)]
            d = q[0] / (q[0] @ q[0]).sqrt() - q[1] / (q[1] @ q[1]).sqrt()
            here += ((d @ d).sqrt() / 2 if form == "paper" else d @ d / d.numel()).item()
        total += here / len(s)
    return total


@often
@given(p=powers, form=st.sampled_from(["paper", "code"]), seed=seeds, beta=st.floats(0, 1000))
def test_both_forms_are_their_formulas(p, form, seed, beta):
    student, teacher = layers(3, 2, seed=seed), layers(5, 7, seed=seed + 50)
    loss = attention_transfer_loss(student, teacher, beta=beta, p=p, form=form)
    assert loss.item() == pytest.approx(
        beta * by_loops(student, teacher, p, form), rel=1e-9, abs=1e-12
    )


@pytest.mark.parametrize(("form", "factor"), [("code", 1.0), ("paper", 0.5)])
def test_torchdistill_agrees_up_to_the_half_of_the_paper(form, factor):
    student, teacher = layers(3, 2), layers(5, 7, seed=50)
    pairs = {
        f"pair{i}": {who: {"io": "output", "path": str(i)} for who in ("student", "teacher")}
        | {"weight": 1}
        for i in (0, 1)
    }
    dicts = [
        {str(i): {"output": x} for i, x in enumerate(features)} for features in (student, teacher)
    ]
    theirs = ATLoss(pairs, mode=form)(*dicts)
    assert_close(attention_transfer_loss(student, teacher, beta=1.0, form=form), factor * theirs)


def test_the_official_two_lines_agree():
    def at(x):
        return F.normalize(x.pow(2).mean(1).view(x.size(0), -1))

    x, y = layers(3)[0], layers(5, seed=50)[0]
    assert_close(
        attention_transfer_loss([x], [y], beta=1000.0, form="code"),
        1000 * (at(x) - at(y)).pow(2).mean(),
    )


@pytest.mark.parametrize("form", ["paper", "code"])
def test_it_is_zero_for_equal_maps_and_the_size_of_activations_does_not_matter(form):
    student, teacher = layers(3, 2), layers(5, 7, seed=50)
    loss = attention_transfer_loss(student, teacher, beta=1.0, form=form)
    scaled = attention_transfer_loss(
        [7 * s for s in student], [0.1 * t for t in teacher], beta=1.0, form=form
    )
    assert_close(scaled, loss)
    assert attention_transfer_loss(
        student, [-s.flip(1) for s in student], beta=1.0, form=form
    ).item() == pytest.approx(0, abs=1e-15)
    assert loss > 0.001


@often
@given(seed=seeds)
def test_the_code_form_is_at_most_two_over_the_places_and_the_paper_form_at_most_a_half_of_root_two(
    seed,
):
    s, t = layers(3, seed=seed), layers(5, seed=seed + 50)
    assert attention_transfer_loss(s, t, beta=1.0, form="code") <= 2 / 16
    assert attention_transfer_loss(s, t, beta=1.0, form="paper") <= 2**0.5 / 2
    far = [torch.zeros(1, 1, 2, 2, dtype=torch.float64) for _ in range(2)]
    far[0][..., 0, 0], far[1][..., 1, 1] = 1, 1  # maps that do not overlap reach both
    assert attention_transfer_loss(far[:1], far[1:], beta=1.0, form="code").item() == pytest.approx(
        2 / 4
    )
    assert attention_transfer_loss(
        far[:1], far[1:], beta=1.0, form="paper"
    ).item() == pytest.approx(2**0.5 / 2)


@pytest.mark.parametrize("over", ["sum", "max"])
def test_maps_that_were_recorded_do_as_well_as_features(over):
    student, teacher = layers(3, 2), layers(5, 7, seed=50)
    recorded = [attention_map(t, 3, over) for t in teacher]
    at = {"beta": 2.0, "p": 3, "over": over}
    assert torch.equal(
        attention_transfer_loss(student, recorded, **at),
        attention_transfer_loss(student, teacher, **at),
    )


def test_the_larger_map_is_averaged_down_on_whichever_side_it_is():
    small, large = normal(2, 3, 2, 2), normal(2, 5, 4, 4, seed=1)
    pooled = F.avg_pool2d(attention_map(large)[:, None], 2)[:, 0]
    expected = attention_transfer_loss([small], [pooled], beta=1.0)
    assert_close(attention_transfer_loss([small], [large], beta=1.0), expected)
    assert_close(attention_transfer_loss([large], [small], beta=1.0), expected)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_gradients_are_right_and_reach_the_student_only(form, p):
    student = [s.requires_grad_() for s in layers(3, 2, N=2)]
    teacher = [t.requires_grad_() for t in layers(2, 4, N=2, seed=50)]
    assert torch.autograd.gradcheck(
        lambda *s: attention_transfer_loss(s, teacher, beta=3.0, p=p, form=form), student
    )
    attention_transfer_loss(student, teacher, beta=1.0, p=p, form=form).backward()
    assert all(t.grad is None for t in teacher)


@pytest.mark.parametrize("form", ["paper", "code"])
@pytest.mark.parametrize("p", [1, 1.5, 2, 3])
def test_gradients_are_finite_where_all_activations_are_zero_and_where_the_maps_are_equal(form, p):
    for make in (torch.zeros_like, torch.clone):
        teacher = layers(3)
        student = [make(t).requires_grad_() for t in teacher]
        attention_transfer_loss(student, teacher, beta=1.0, p=p, form=form).backward()
        assert student[0].grad.isfinite().all()
    nothing = [torch.zeros(2, 3, 4, 4, dtype=torch.float64).requires_grad_()]
    attention_transfer_loss(nothing, [torch.zeros(2, 5, 4, 4)], beta=1.0, p=p, form=form).backward()
    assert nothing[0].grad.isfinite().all()


def test_half_precision_does_not_overflow():
    student, teacher = [normal(2, 64, 8, 8) * 20], [normal(2, 64, 8, 8, seed=1) * 20]
    for dtype in (torch.float16, torch.bfloat16):
        s, t = student[0].to(dtype), teacher[0].to(dtype)
        for loss in (attention_transfer_loss, activation_loss):
            leaf = s.clone().requires_grad_()
            found = loss([leaf], [t], beta=1.0)
            assert_close(found, loss([s.float()], [t.float()], beta=1.0))
            found.backward()
            assert leaf.grad.isfinite().all()
        assert loss([torch.zeros_like(s)], [torch.zeros_like(t)], beta=1.0) == 0


# the size of activations


SIZES = (1e-30, 1e-12, 1e-4, 1e-2, 100.0, 1e4, 1e12, 1e30)
LOSSES = {
    **{
        f"{form}, {over}, p={p}": lambda s, t, how=(form, over, p): attention_transfer_loss(
            [s], [t], beta=1.0, form=how[0], over=how[1], p=how[2]
        )
        for form in ("paper", "code")
        for over in ("sum", "max")
        for p in (1, 2, 3, 4, 8, 11.5)
    },
    "activations": lambda s, t: activation_loss([s], [t], beta=1.0),
}


@pytest.mark.parametrize("name", LOSSES)
def test_maps_are_unit_vectors_however_tiny_or_huge_the_activations_are(name):
    """In single precision; one image of a batch may be tiny and the next one huge."""
    s, t = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    expected = LOSSES[name](s, t)
    slope = torch.autograd.grad(LOSSES[name](leaf := s.clone().requires_grad_(), t), leaf)[0]
    for a, b in zip(SIZES, SIZES[::-1]):
        size = torch.tensor([a, b])[:, None, None, None]
        leaf = (s.float() * size).requires_grad_()
        loss = LOSSES[name](leaf, t.float() * size.flip(0))
        assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
        found = torch.autograd.grad(loss, leaf)[0] * size  # the slope is that of the logarithm
        assert_close(found, slope.float(), rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", LOSSES)
def test_half_precision_gives_unit_vectors_too(name):
    s, t = normal(2, 3, 4, 4).half(), normal(2, 3, 4, 4, seed=1).half()
    expected = LOSSES[name](s.double(), t.double()).item()
    for size in (1e-3, 1.0, 1e4):
        leaf = (s * size).requires_grad_()
        loss = LOSSES[name](leaf, t * size)
        assert loss.item() == pytest.approx(expected, rel=0.05)
        assert torch.autograd.grad(loss, leaf)[0].isfinite().all()


@pytest.mark.parametrize("size", SIZES)
def test_recorded_maps_may_be_tiny_or_huge(size):
    s, recorded = normal(2, 3, 4, 4), attention_map(normal(2, 5, 4, 4, seed=1))
    expected = attention_transfer_loss([s], [recorded], beta=1.0)
    found = attention_transfer_loss([s.float()], [recorded.float() * size], beta=1.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_an_image_without_activations_beside_one_with_them(name):
    """Zeros stay zeros: such an image is as far from any unit vector as zero is."""
    s, t = normal(2, 3, 4, 4).float(), normal(2, 3, 4, 4, seed=1).float()
    s[0], t[1] = 0, 0
    leaf = s.requires_grad_()
    loss = LOSSES[name](leaf, t)
    (slope,) = torch.autograd.grad(loss, leaf)
    alone = LOSSES[name](s[:1], t[:1]), LOSSES[name](s[1:], t[1:])
    assert_close(loss, torch.stack(alone).mean())
    assert slope.isfinite().all()
    assert (slope[0] == 0).all()


@pytest.mark.parametrize(("size", "p"), [(1e5, 8), (1e-6, 8), (1e-10, 4), (1e20, 2), (1e-20, 2)])
def test_a_map_that_would_be_lost_is_refused_where_it_is_recorded(size, p):
    A = normal(2, 3, 4, 4).float()
    with pytest.raises(ValueError, match="A must be scaled to 1 first"):
        attention_map(torch.stack([A[0], A[1] * size]), p)
    assert attention_map(A * 0, p).max() == 0  # nothing is lost


def test_recorded_maps_that_overflowed_are_refused():
    recorded = torch.full((2, 4, 4), float("inf"))
    with pytest.raises(ValueError, match="recorded maps must be finite"):
        attention_transfer_loss([normal(2, 3, 4, 4).float()], [recorded], beta=1.0)


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1.0, 1e20, 1e30])
def test_gradients_may_be_tiny_or_huge(size):
    """Their distance is not scaled, as maps are: it is as large as they are."""
    student, teacher = normal(3, 1, 2, 4), normal(3, 1, 2, 4, seed=1)
    expected = gradient_transfer_loss(student, teacher, beta=1.0).item()
    leaf = (student.float() * size).requires_grad_()
    loss = gradient_transfer_loss(leaf, teacher.float() * size, beta=1.0)
    assert loss.item() == pytest.approx(expected * size, rel=1e-5)
    d = student - teacher
    slope = d / d.flatten(1).norm(dim=1)[:, None, None, None] / 6
    assert_close(torch.autograd.grad(loss, leaf)[0], slope.float())


def test_equal_gradients_and_half_precision_ones():
    J = (200 * normal(2, 1, 16, 16)).half().requires_grad_()
    loss = gradient_transfer_loss(J, J.detach(), beta=1.0)
    assert loss == 0
    assert torch.autograd.grad(loss, J)[0].isfinite().all()
    far = gradient_transfer_loss(J, -J.detach(), beta=1.0)
    assert far.item() == pytest.approx(J.double().flatten(1).norm(dim=1).mean().item(), rel=1e-5)


# full activations


def test_full_activations_are_the_same_with_the_channels_kept():
    s, t = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    rows = [F.normalize(x.flatten(1)) for x in (s, t)]
    assert_close(activation_loss([s], [t], beta=4.0), 2 * (rows[0] - rows[1]).norm(dim=1).mean())
    assert activation_loss([s], [3 * s], beta=1.0).item() == pytest.approx(0, abs=1e-15)
    assert activation_loss([s], [s.flip(1)], beta=1.0) > 0.1  # unlike maps, it knows the channels


def test_full_activations_average_the_larger_down_and_reach_the_student_only():
    s, t = normal(2, 3, 2, 2).requires_grad_(), normal(2, 3, 4, 4, seed=1).requires_grad_()
    expected = activation_loss([s], [F.avg_pool2d(t, 2)], beta=1.0)
    assert_close(activation_loss([s], [t], beta=1.0), expected)
    assert torch.autograd.gradcheck(lambda s: activation_loss([s], [t], beta=1.0), s)
    expected.backward()
    assert t.grad is None


def test_connectors_are_convolutions_only_where_channels_differ():
    made = connectors([3, 5], [3, 8])
    assert isinstance(made[0], nn.Identity)
    assert made[1](torch.ones(2, 5, 4, 4)).shape == (2, 8, 4, 4)
    assert made[1].weight.shape == (8, 5, 1, 1)


# gradients of the loss


def network(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Flatten(), nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).double()


def test_the_input_gradient_of_a_linear_network_is_known():
    net = nn.Sequential(nn.Flatten(), nn.Linear(8, 3)).double()
    x, y = normal(4, 1, 2, 4), torch.tensor([0, 1, 2, 0])
    residual = net(x).softmax(1) - F.one_hot(y, 3)
    assert_close(input_gradient(net, x, y), (residual @ net[1].weight).reshape(x.shape).detach())


def test_the_input_gradient_of_an_image_is_the_same_in_any_batch_and_leaves_the_model_as_it_was():
    net, x, y = network(), normal(4, 1, 2, 4), torch.tensor([0, 1, 2, 0])
    before = copy.deepcopy(net.state_dict())
    with torch.no_grad():
        found = input_gradient(net, x, y)
    assert_close(found, torch.cat([input_gradient(net, x[[i]], y[[i]]) for i in range(4)]))
    assert all(p.grad is None for p in net.parameters())
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not x.requires_grad
    assert not found.requires_grad


def test_a_model_may_work_in_place_and_what_was_made_in_inference_mode_may_be_asked_about():
    net, x, y = network(), normal(3, 1, 2, 4), torch.tensor([0, 1, 2])
    expected, before = input_gradient(net, x, y), x.clone()
    assert_close(input_gradient(lambda x: net(x.mul_(1)), x, y), expected)
    assert torch.equal(x, before)
    with torch.inference_mode():
        assert_close(input_gradient(net, x * 1, y * 1), expected)


def test_the_loss_on_gradients_can_be_differentiated_by_the_weights():
    net, x, y = network(), normal(3, 1, 2, 4), torch.tensor([0, 1, 2])
    teacher = input_gradient(network(1), x, y)
    names = [name for name, _ in net.named_parameters()]

    def loss(*weights):
        def model(x):
            return torch.func.functional_call(net, dict(zip(names, weights)), x)

        return gradient_transfer_loss(
            input_gradient(model, x, y, create_graph=True), teacher, beta=2.0
        )

    weights = [p.detach().clone().requires_grad_() for p in net.parameters()]
    assert torch.autograd.gradcheck(loss, weights)
    rows = (input_gradient(net, x, y) - teacher).flatten(1)
    assert_close(loss(*weights), rows.norm(dim=1).mean())
    assert gradient_transfer_loss(teacher, teacher, beta=2.0) == 0


def test_the_teachers_gradient_gets_none():
    pair = [normal(2, 1, 2, 4, seed=seed).requires_grad_() for seed in (0, 1)]
    gradient_transfer_loss(*pair, beta=1.0).backward()
    assert pair[0].grad is not None
    assert pair[1].grad is None


class_of = torch.tensor([0, 1, 2, 0])


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_labels_of_the_input_gradient_may_be_whole_numbers_of_any_kind(kind):
    net, x = network(), normal(4, 1, 2, 4)
    assert torch.equal(input_gradient(net, x, class_of.to(kind)), input_gradient(net, x, class_of))


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (class_of[:, None], r"labels must have shape \(4,\) like the logits, got \(4, 1\)"),
        (F.one_hot(class_of, 3), r"like the logits, got \(4, 3\)"),
        (class_of[:3], r"like the logits, got \(3,\)"),
        (class_of.float(), "labels must be whole numbers, got torch.float32"),
        (class_of + 1, r"labels must be in \[0, 3\), got 1 to 3"),
        (-100 * class_of, r"labels must be in \[0, 3\), got -200 to 0"),
    ],
)
def test_labels_that_do_not_fit_are_refused(labels, said):
    with pytest.raises(ValueError, match=said):
        input_gradient(network(), normal(4, 1, 2, 4), labels)


@pytest.mark.parametrize("kind", [torch.uint8, torch.int64, torch.bool])
def test_pixels_that_are_whole_numbers_are_refused(kind):
    x = torch.ones(4, 1, 2, 4).to(kind)
    with pytest.raises(ValueError, match=f"x must be floating point, got {kind}"):
        input_gradient(network(), x, class_of)


# what is refused


A = torch.ones(2, 3, 4, 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: attention_map(A[0]),
            r"A must have shape \(N, C, H, W\) and not be empty, got \(3, 4, 4\)",
        ),
        (lambda: attention_map(A[:0]), "not be empty"),
        (lambda: attention_map(A, 0.5), "p must be a finite number >= 1, got 0.5"),
        (lambda: attention_map(A, float("nan")), "p must be a finite number >= 1, got nan"),
        (lambda: attention_map(A, over="mean"), "over must be 'sum' or 'max', got 'mean'"),
        (
            lambda: attention_transfer_loss([A], [A], beta=-1),
            "beta must be a finite number >= 0, got -1",
        ),
        (
            lambda: attention_transfer_loss([A], [A], beta=1, form="both"),
            "form must be 'paper' or 'code', got 'both'",
        ),
        (
            lambda: attention_transfer_loss([A, A], [A], beta=1),
            "the same number of layers, got 2 and 1",
        ),
        (lambda: attention_transfer_loss([], [], beta=1), "the same number of layers, got 0 and 0"),
        (lambda: attention_transfer_loss(A, A, beta=1), "give a list of features"),
        (lambda: attention_transfer_loss([A], [A[:1]], beta=1), "the same images, got 2 and 1"),
        (lambda: attention_transfer_loss([A], [A[0, 0]], beta=1), "the same images, got 2 and 4"),
        (
            lambda: activation_loss([A], [A[:, :2]], beta=1),
            r"equal channels, got \(2, 3, 4, 4\) and \(2, 2, 4, 4\)",
        ),
        (
            lambda: activation_loss([A], [A], beta=float("inf")),
            "beta must be a finite number >= 0, got inf",
        ),
        (
            lambda: attention_transfer_loss([A[..., :1, :1]], [A], beta=1),
            "maps must have more than one place",
        ),
        (
            lambda: activation_loss([A[:, :, 0]], [A], beta=1),
            r"\(N, C, H, W\) and not be empty, got \(2, 3, 4\)",
        ),
        (lambda: activation_loss([A[:0]], [A[:0]], beta=1), "not be empty"),
        (
            lambda: gradient_transfer_loss(A[:0], A[:0], beta=1),
            r"gradients must be \(N, …\), got \(0, 3, 4, 4\)",
        ),
        (lambda: connectors([3], [3, 4]), "the same length, got 1 and 2"),
        (
            lambda: attention_transfer_loss([A], [A], beta=1, p=0.5),
            "p must be a finite number >= 1",
        ),
        (lambda: attention_transfer_loss([A], [A], beta=1, over="all"), "over must be 'sum' or"),
        (lambda: attention_transfer_loss([A[:, 0]], [A], beta=1), r"\(N, C, H, W\)"),
        (lambda: attention_transfer_loss([A], [A[:, 0, 0]], beta=1), r"\(N, C, H, W\)"),
        (lambda: gradient_transfer_loss(A, A[:1], beta=1), "the same shape"),
        (
            lambda: gradient_transfer_loss(A, A, beta=-2),
            "beta must be a finite number >= 0, got -2",
        ),
    ],
)
def test_bad_input_is_refused_with_a_sentence(call, message):
    with pytest.raises(ValueError, match=message):
        call()
