"""Distillation: an independent reference, the identities of the paper, limits, invariances, and
what is refused.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.testing import assert_close

from tlcourse.data import Images, as_input
from tlcourse.methods._checks import class_labels
from tlcourse.methods.distillation import (
    distillation_loss,
    logit_matching_gradient,
    logit_matching_loss,
    prior_offsets,
    soft_cross_entropy,
    soft_target_gradient,
    soften,
)
from tlcourse.training import record

often = settings(deadline=None, max_examples=60, database=None)
sizes = {"N": st.integers(1, 7), "K": st.integers(1, 12), "seed": st.integers(0, 10_000)}
temperatures = st.floats(0.3, 50)


def draw(N=6, K=5, seed=0, scale=3.0):
    """Logits of a student and a teacher in double precision, and labels."""
    g = torch.Generator().manual_seed(seed)
    z, v = scale * torch.randn(2, N, K, generator=g, dtype=torch.float64)
    return z, v, torch.randint(K, (N,), generator=g)


def gradient(loss, z, *args, **kwargs):
    """What autograd says of d loss(z, …) / dz."""
    z = z.clone().requires_grad_()
    return torch.autograd.grad(loss(z, *args, **kwargs), z)[0]


def same(actual, expected, tolerance=1e-10):
    assert_close(actual, expected, rtol=tolerance, atol=tolerance)


def entropy(p):
    return -(p * p.log()).sum(1).mean()


def plain_softmax(row, T):
    top = [math.exp(z / T) for z in row]
    return [e / sum(top) for e in top]


def plain_loss(z, v, labels, T, alpha):
    total = 0.0
    for student, teacher, label in zip(z.tolist(), v.tolist(), labels.tolist()):
        hard = -math.log(plain_softmax(student, 1)[label])
        soft = -sum(
            p * math.log(q) for p, q in zip(plain_softmax(teacher, T), plain_softmax(student, T))
        )
        total += (1 - alpha) * hard + alpha * T * T * soft
    return total / len(z)


# references


@often
@given(T=temperatures, **sizes)
def test_soften_equals_plain_loops(N, K, seed, T):
    z, _, _ = draw(N, K, seed)
    same(
        soften(z, T),
        torch.tensor([plain_softmax(row, T) for row in z.tolist()], dtype=torch.float64),
    )


@often
@given(T=temperatures, alpha=st.floats(0, 1), **sizes)
def test_loss_equals_plain_loops(N, K, seed, T, alpha):
    z, v, labels = draw(N, K, seed)
    same(
        distillation_loss(z, v, labels, T=T, alpha=alpha).item(), plain_loss(z, v, labels, T, alpha)
    )


@pytest.mark.parametrize("alpha", [0.1, 0.5, 0.9])
@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_agrees_with_torchdistill(T, alpha):
    """Its alpha weighs the labels, and its soft term is a KL divergence: ours without the teacher's
    entropy, which has no gradient.
    """
    mid_level = pytest.importorskip("torchdistill.losses.mid_level")
    theirs = mid_level.KDLoss(".", "output", ".", "output", temperature=T, alpha=1 - alpha)
    z, v, labels = draw()

    def peer(z):
        return theirs({".": {"output": z}}, {".": {"output": v}}, labels)

    same(
        distillation_loss(z, v, labels, T=T, alpha=alpha) - alpha * T**2 * entropy(soften(v, T)),
        peer(z),
    )
    same(gradient(distillation_loss, z, v, labels, T=T, alpha=alpha), gradient(peer, z))


def test_soft_term_agrees_with_batchmean_and_mean_is_k_times_smaller():
    z, v, labels = draw(N=6, K=10)
    T = 4.0
    ours = distillation_loss(z, v, labels, T=T, alpha=1.0) / T**2 - entropy(soften(v, T))
    student, teacher = (z / T).log_softmax(1), soften(v, T)
    same(ours, F.kl_div(student, teacher, reduction="batchmean"))
    with pytest.warns(UserWarning, match="batchmean"):
        trap = F.kl_div(student, teacher, reduction="mean")
    same(ours, 10 * trap)


# gradients


@often
@given(T=temperatures, **sizes)
def test_gradient_of_the_soft_term_is_that_of_the_paper(N, K, seed, T):
    z, v, labels = draw(N, K, seed)
    same(
        gradient(distillation_loss, z, v, labels, T=T, alpha=1.0),
        T**2 * soft_target_gradient(z, v, T) / N,
    )


@often
@given(T=temperatures, alpha=st.floats(0, 1), **sizes)
def test_gradient_of_the_whole_loss_is_that_of_the_paper(N, K, seed, T, alpha):
    z, v, labels = draw(N, K, seed)
    hard = soften(z, 1.0) - F.one_hot(labels, K)
    expected = ((1 - alpha) * hard + alpha * T**2 * soft_target_gradient(z, v, T)) / N
    same(gradient(distillation_loss, z, v, labels, T=T, alpha=alpha), expected)


@pytest.mark.parametrize("T", [0.5, 1.0, 4.0, 20.0])
def test_cross_entropy_and_kl_differ_by_the_teachers_entropy_and_not_in_gradient(T):
    z, v, labels = draw()

    def kl(z):
        return T**2 * F.kl_div((z / T).log_softmax(1), soften(v, T), reduction="batchmean")

    same(distillation_loss(z, v, labels, T=T, alpha=1.0) - kl(z), T**2 * entropy(soften(v, T)))
    same(gradient(distillation_loss, z, v, labels, T=T, alpha=1.0), gradient(kl, z))


@pytest.mark.parametrize("T", [20.0, 40.0, 80.0, 160.0])
def test_distance_to_the_high_temperature_limit_halves_when_t_doubles(T):
    z, v, _ = draw(N=50, K=10, scale=1.0)

    def distance(T):
        limit = logit_matching_gradient(z, v, T)
        return ((soft_target_gradient(z, v, T) - limit).norm() / limit.norm()).item()

    assert distance(2 * T) / distance(T) == pytest.approx(0.5, rel=0.03)


@often
@given(T=temperatures, **sizes)
def test_gradient_of_logit_matching_is_its_formula(N, K, seed, T):
    z, v, _ = draw(N, K, seed)
    same(gradient(logit_matching_loss, z, v), T**2 * logit_matching_gradient(z, v, T) / N)


def test_logit_matching_equals_plain_loops():
    z, v, _ = draw(N=3, K=4)
    total = 0.0
    for student, teacher in zip(z.tolist(), v.tolist()):
        for a, b in zip(student, teacher):
            total += 0.5 * ((a - sum(student) / 4) - (b - sum(teacher) / 4)) ** 2
    same(logit_matching_loss(z, v).item(), total / 12)


def test_distillation_tends_to_logit_matching():
    z, v, labels = draw(K=10, scale=1.0)
    limit = gradient(logit_matching_loss, z, v)
    distances = [
        (gradient(distillation_loss, z, v, labels, T=T, alpha=1.0) - limit).norm() / limit.norm()
        for T in (1e2, 1e4)
    ]
    assert distances[0] < 0.03
    assert distances[1] < 0.0003


def test_size_of_the_soft_gradient_hardly_depends_on_t_because_of_t_squared():
    z, v, labels = draw(N=50, K=10, scale=1.0)
    norms = [
        gradient(distillation_loss, z, v, labels, T=T, alpha=1.0).norm().item()
        for T in (4.0, 20.0, 100.0, 1000.0)
    ]
    assert max(norms) < 1.1 * min(norms)


def test_gradcheck():
    z, v, labels = draw(N=3, K=4)
    z.requires_grad_()
    assert torch.autograd.gradcheck(lambda z: distillation_loss(z, v, labels, T=3.0, alpha=0.7), z)
    assert torch.autograd.gradcheck(lambda z: logit_matching_loss(z, v), z)
    assert torch.autograd.gradcheck(lambda z: soften(z, 2.0), z)


def test_teacher_gets_no_gradient_even_if_it_asks_for_one():
    z, v, labels = draw()
    z.requires_grad_(), v.requires_grad_()
    (distillation_loss(z, v, labels, T=4.0, alpha=0.5) + logit_matching_loss(z, v)).backward()
    assert v.grad is None
    assert z.grad.abs().sum() > 0


# limits


@often
@given(T=temperatures, **sizes)
def test_alpha_zero_is_cross_entropy_exactly(N, K, seed, T):
    z, v, labels = draw(N, K, seed)
    assert torch.equal(distillation_loss(z, v, labels, T=T, alpha=0.0), F.cross_entropy(z, labels))


def test_a_certain_teacher_at_temperature_one_is_cross_entropy():
    z, _, labels = draw()
    v = 1000 * F.one_hot(labels, z.shape[1]).double()
    same(distillation_loss(z, v, labels, T=1.0, alpha=1.0), F.cross_entropy(z, labels))


def test_alpha_one_never_looks_at_a_label():
    z, v, labels = draw()
    assert torch.equal(
        distillation_loss(z, v, labels, T=2.0, alpha=1.0),
        distillation_loss(z, v, (labels + 1) % 5, T=2.0, alpha=1.0),
    )


def test_soften_goes_from_the_largest_over_the_softmax_to_uniform():
    z, _, _ = draw()
    assert torch.equal(soften(z, 1.0), z.softmax(1))
    same(soften(z, 1e-3), F.one_hot(z.argmax(1), 5).double(), 1e-6)
    same(soften(z, 1e8), torch.full_like(z, 0.2), 1e-6)


def test_student_that_equals_its_teacher_has_no_gradient_and_the_least_loss():
    z, v, labels = draw()
    assert torch.equal(soft_target_gradient(v, v, 3.0), torch.zeros_like(v))
    same(gradient(distillation_loss, v, v, labels, T=3.0, alpha=1.0), torch.zeros_like(v))
    assert distillation_loss(v, v, labels, T=3.0, alpha=1.0) < distillation_loss(
        z, v, labels, T=3.0, alpha=1.0
    )


def test_swapped_arguments_change_the_value():
    z, v, labels = draw()
    right, swapped = (
        distillation_loss(z, v, labels, T=2.0, alpha=1.0),
        distillation_loss(v, z, labels, T=2.0, alpha=1.0),
    )
    assert abs(right - swapped) > 0.1


def test_one_class_leaves_nothing_to_learn():
    z, v, labels = draw(K=1)
    assert torch.equal(soften(z, 4.0), torch.ones_like(z))
    for loss in (distillation_loss(z, v, labels, T=4.0, alpha=0.5), logit_matching_loss(z, v)):
        assert loss == 0
    for grad in (
        gradient(distillation_loss, z, v, labels, T=4.0, alpha=0.5),
        soft_target_gradient(z, v, 4.0),
        logit_matching_gradient(z, v, 4.0),
    ):
        assert torch.equal(grad, torch.zeros_like(z))


# invariances


@often
@given(shift=st.floats(-50, 50), T=temperatures, **sizes)
def test_ignores_a_shift_of_all_logits_of_a_sample(N, K, seed, shift, T):
    z, v, labels = draw(N, K, seed)
    each = shift * torch.linspace(-1, 1, N, dtype=torch.float64)[:, None]
    expected = distillation_loss(z, v, labels, T=T, alpha=0.7)
    same(distillation_loss(z + each, v, labels, T=T, alpha=0.7), expected, 1e-8)
    same(distillation_loss(z, v + each, labels, T=T, alpha=0.7), expected, 1e-8)
    for moved in ((z + each, v), (z, v + each)):
        same(soft_target_gradient(*moved, T), soft_target_gradient(z, v, T))
        same(logit_matching_gradient(*moved, T), logit_matching_gradient(z, v, T))
        same(logit_matching_loss(*moved), logit_matching_loss(z, v), 1e-8)


@often
@given(times=st.integers(2, 5), **sizes)
def test_ignores_that_a_batch_is_repeated(N, K, seed, times):
    z, v, labels = draw(N, K, seed)
    again = z.repeat(times, 1), v.repeat(times, 1), labels.repeat(times)
    same(
        distillation_loss(*again, T=4.0, alpha=0.7),
        distillation_loss(z, v, labels, T=4.0, alpha=0.7),
    )
    same(logit_matching_loss(*again[:2]), logit_matching_loss(z, v))
    same(
        soft_target_gradient(*again[:2], 4.0)[:N], soft_target_gradient(z, v, 4.0)
    )  # per sample: no batch factor
    same(logit_matching_gradient(*again[:2], 4.0)[:N], logit_matching_gradient(z, v, 4.0))


@often
@given(T=temperatures, **sizes)
def test_rows_sum_to_one_and_their_gradients_to_zero(N, K, seed, T):
    z, v, _ = draw(N, K, seed)
    ones, zeros = torch.ones(N, dtype=torch.float64), torch.zeros(N, dtype=torch.float64)
    same(soften(z, T).sum(1), ones)
    same(soft_target_gradient(z, v, T).sum(1), zeros)
    same(logit_matching_gradient(z, v, T).sum(1), zeros)


# a frozen teacher, recorded


@pytest.fixture
def teacher():
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Flatten(),
        nn.Linear(16, 20),
        nn.BatchNorm1d(20),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(20, 5),
    )
    net(torch.randn(30, 16))  # statistics that are not those of a new BatchNorm
    return net


@pytest.fixture
def images():
    g = torch.Generator().manual_seed(1)
    return Images(
        torch.randint(256, (40, 1, 4, 4), generator=g).byte(),
        torch.randint(5, (40,), generator=g),
        tuple("abcde"),
        "noise",
    )


def test_recorded_logits_equal_live_ones(teacher, images):
    recorded = record(teacher.train(), images)
    x = as_input(images.pixels)
    live = teacher.eval()(x)
    assert_close(recorded, live, rtol=0, atol=1e-6)  # `record` may choose another memory format
    assert (recorded - teacher.train()(x)).abs().max() > 0.01  # dropout was off
    z = torch.randn(40, 5, requires_grad=True)
    assert_close(
        gradient(distillation_loss, z, recorded, images.labels, T=4.0, alpha=0.9),
        gradient(distillation_loss, z, live, images.labels, T=4.0, alpha=0.9),
    )


def test_recording_leaves_the_teacher_as_it_was(teacher, images):
    teacher[4].eval()
    state, modes = (
        copy.deepcopy(teacher.state_dict()),
        [layer.training for layer in teacher.modules()],
    )
    v = record(teacher, images)
    z = torch.randn(40, 5, requires_grad=True)
    distillation_loss(z, v, images.labels, T=4.0, alpha=0.9).backward()
    assert all(torch.equal(value, state[name]) for name, value in teacher.state_dict().items())
    assert all(p.grad is None and p.requires_grad for p in teacher.parameters())
    assert [layer.training for layer in teacher.modules()] == modes


# precision


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_single(dtype):
    z, v, labels = draw()
    z, v = z.to(dtype), v.to(dtype)
    assert torch.equal(soften(z, 4.0), soften(z.float(), 4.0))
    assert torch.equal(
        soft_target_gradient(z, v, 4.0), soft_target_gradient(z.float(), v.float(), 4.0)
    )
    assert torch.equal(
        logit_matching_gradient(z, v, 4.0), logit_matching_gradient(z.float(), v.float(), 4.0)
    )
    assert torch.equal(logit_matching_loss(z, v), logit_matching_loss(z.float(), v.float()))
    wide = distillation_loss(z.float(), v.float(), labels, T=4.0, alpha=0.7)
    assert torch.equal(distillation_loss(z, v, labels, T=4.0, alpha=0.7), wide)
    assert torch.equal(
        distillation_loss(z.float(), v, labels, T=4.0, alpha=0.7), wide
    )  # a teacher stored in half precision
    assert wide.dtype == torch.float32
    assert gradient(distillation_loss, z, v, labels, T=4.0, alpha=0.7).dtype == dtype


def test_double_precision_stays_double():
    z, v, labels = draw()
    for result in (
        soften(z, 2.0),
        distillation_loss(z, v, labels, T=2.0, alpha=0.5),
        logit_matching_loss(z, v),
        logit_matching_gradient(z, v, 2.0),
    ):
        assert result.dtype == torch.float64


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("T", [0.5, 1.0, 20.0])
def test_huge_logits_stay_finite(dtype, T):
    z = torch.tensor([[1e4, -1e4, 0.0], [-1e4, 1e4, 1e4]], dtype=dtype)
    labels = torch.tensor([1, 0])
    for v in (z, -z):
        assert distillation_loss(z, v, labels, T=T, alpha=0.9).isfinite()
        assert gradient(distillation_loss, z, v, labels, T=T, alpha=0.9).isfinite().all()
        assert logit_matching_loss(z, v).isfinite()
        assert soft_target_gradient(z, v, T).isfinite().all()


def test_runs_on_every_device(device):
    z, v, labels = draw()
    z, v = z.float(), v.float()
    loss = distillation_loss(z.to(device), v.to(device), labels.to(device), T=4.0, alpha=0.7)
    assert loss.device.type == device.type
    assert_close(loss.cpu(), distillation_loss(z, v, labels, T=4.0, alpha=0.7))


# what is refused, and the sentence it says


@pytest.mark.parametrize("T", [0, -1.0, float("nan"), float("inf"), -float("inf")])
def test_refuses_a_temperature(T):
    z, v, labels = draw()
    for call in (
        lambda: soften(z, T),
        lambda: distillation_loss(z, v, labels, T=T, alpha=0.5),
        lambda: soft_target_gradient(z, v, T),
        lambda: logit_matching_gradient(z, v, T),
    ):
        with pytest.raises(ValueError, match=f"^T must be a finite number > 0, got {T}$"):
            call()


@pytest.mark.parametrize("alpha", [-0.1, 1.1, float("nan"), float("inf")])
def test_refuses_alpha(alpha):
    with pytest.raises(ValueError, match=rf"^alpha must be in \[0, 1\], got {alpha}$"):
        distillation_loss(*draw(), T=2.0, alpha=alpha)


def losses(z, v):
    """Every function of two logits, ready to be called with them."""
    labels = torch.zeros(len(z), dtype=torch.int64)
    return (
        lambda: distillation_loss(z, v, labels, T=2.0, alpha=0.5),
        lambda: logit_matching_loss(z, v),
        lambda: soft_target_gradient(z, v, 2.0),
        lambda: logit_matching_gradient(z, v, 2.0),
    )


@pytest.mark.parametrize("shape", [(6, 4), (5, 5), (1, 5), (6, 1)])
def test_refuses_shapes_that_do_not_match(shape):
    for call in losses(torch.zeros(6, 5), torch.zeros(shape)):
        got = rf"got \(6, 5\) and \({shape[0]}, {shape[1]}\)"
        with pytest.raises(ValueError, match=f"teacher logits must have the same shape, {got}"):
            call()


@pytest.mark.parametrize("shape", [(0, 5), (6, 0)])
def test_refuses_an_empty_batch(shape):
    for call in losses(torch.zeros(shape), torch.zeros(shape)):
        got = rf"got shape \({shape[0]}, {shape[1]}\)"
        with pytest.raises(ValueError, match=f"at least one sample and one class, {got}"):
            call()


@pytest.mark.parametrize("shape", [(5,), (2, 3, 5)])
def test_refuses_logits_without_rows(shape):
    wrong, right = torch.zeros(shape), torch.zeros(5, 5)
    with pytest.raises(ValueError, match=r"^logits must have shape \(N, K\), got \("):
        soften(wrong, 2.0)
    for call in losses(wrong, right):
        with pytest.raises(ValueError, match=r"student logits must have shape \(N, K\), got \("):
            call()
    for call in losses(right, wrong):
        with pytest.raises(ValueError, match=r"teacher logits must have shape \(N, K\), got \("):
            call()


def test_refuses_integer_logits():
    whole, real = torch.zeros(6, 5, dtype=torch.int64), torch.zeros(6, 5)
    with pytest.raises(ValueError, match=r"^logits must be floating point, got torch.int64"):
        soften(whole, 2.0)
    for call in losses(whole, real):
        with pytest.raises(
            ValueError, match=r"student logits must be floating point, got torch.int64"
        ):
            call()
    for call in losses(real, whole):
        with pytest.raises(
            ValueError, match=r"teacher logits must be floating point, got torch.int64"
        ):
            call()


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        (torch.tensor([0, 1, 5]), r"labels must be in \[0, 5\), got 0 to 5"),
        (torch.tensor([0, -1, 4]), r"labels must be in \[0, 5\), got -1 to 4"),
        (
            torch.tensor([0, -100, 4]),
            r"labels must be in \[0, 5\), got -100 to 4",
        ),  # torch's ignore_index
        (torch.tensor([0, 1]), r"labels must have shape \(3,\) like the logits, got \(2,\)"),
        (
            torch.tensor([[0], [1], [2]]),
            r"labels must have shape \(3,\) like the logits, got \(3, 1\)",
        ),
        (torch.eye(5)[:3], r"labels must have shape \(3,\) like the logits, got \(3, 5\)"),
        (torch.tensor([0.0, 1.0, 2.0]), r"labels must be whole numbers, got torch.float32"),
        (torch.tensor([True, False, True]), r"labels must be whole numbers, got torch.bool"),
        (torch.tensor([0, 1, 200], dtype=torch.uint8), r"labels must be in \[0, 5\), got 0 to 200"),
        (torch.tensor(1), r"labels must have shape \(3,\) like the logits, got \(\)"),
        ([0, 1, 2], "labels must be a tensor, got list"),
    ],
)
def test_refuses_labels(labels, sentence):
    z, v, _ = draw(N=3, K=5)
    with pytest.raises(ValueError, match=sentence):
        distillation_loss(z, v, labels, T=2.0, alpha=0.5)


KINDS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16)


@pytest.mark.parametrize("kind", KINDS)
def test_labels_may_be_whole_numbers_of_any_kind(kind):
    z, v, labels = draw()
    expected = distillation_loss(z, v, labels, T=2.0, alpha=0.5)
    assert distillation_loss(z, v, labels.to(kind), T=2.0, alpha=0.5) == expected
    found = class_labels(labels.to(kind), z)
    assert found.dtype == torch.int64
    assert torch.equal(found, labels)


def test_labels_need_logits_with_rows_and_may_be_none_at_all():
    assert class_labels(torch.zeros(0, dtype=torch.int32), torch.zeros(0, 5)).shape == (0,)
    with pytest.raises(ValueError, match=r"logits must have shape \(N, K\), got \(3,\)"):
        class_labels(torch.tensor([0, 1, 2]), torch.zeros(3))


# masked classes: logits of −inf


def with_masked(logits, places, value=-math.inf):
    """The same logits with classes that are masked put in between."""
    whole = torch.full((len(logits), logits.shape[1] + len(places)), value, dtype=logits.dtype)
    whole[:, [k for k in range(whole.shape[1]) if k not in places]] = logits
    return whole


MASKED = {
    "loss": lambda z, v: distillation_loss(z, v, torch.zeros(len(z)).long(), T=3.0, alpha=0.7),
    "alpha 0": lambda z, v: distillation_loss(z, v, torch.zeros(len(z)).long(), T=3.0, alpha=0),
    "alpha 1": lambda z, v: distillation_loss(z, v, torch.zeros(len(z)).long(), T=3.0, alpha=1),
    "soft": lambda z, v: soft_cross_entropy(z, v, 3.0),
}


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("places", [[4], [1], [1, 3, 4]])
@pytest.mark.parametrize("name", MASKED)
def test_classes_that_both_mask_do_not_count(name, places, dtype):
    z, v, _ = (x.to(dtype) for x in draw())
    whole = with_masked(z, places).requires_grad_()
    loss, expected = MASKED[name](whole, with_masked(v, places)), MASKED[name](z, v)
    assert_close(loss.detach(), expected)
    (found,) = torch.autograd.grad(loss, whole)
    assert_close(found, with_masked(gradient(MASKED[name], z, v), places, value=0.0))


def test_classes_that_the_teacher_alone_masks_get_no_target():
    z, v, labels = draw()
    v[:, 3] = -math.inf
    almost = v.clone()
    almost[:, 3] = -1e6
    same(
        distillation_loss(z, v, labels, T=2.0, alpha=0.7),
        distillation_loss(z, almost, labels, T=2.0, alpha=0.7),
    )
    assert gradient(distillation_loss, z, v, labels, T=2.0, alpha=0.7).isfinite().all()


def test_what_the_student_alone_masks_is_infinitely_bad_and_its_gradient_that_of_the_paper():
    z, v, labels = draw()
    z[:, 3] = -math.inf
    assert distillation_loss(z, v, labels, T=2.0, alpha=1.0) == math.inf
    found = gradient(distillation_loss, z, v, labels, T=2.0, alpha=1.0)
    same(found, 4 * soft_target_gradient(z, v, 2.0) / len(z))


def test_a_term_with_weight_zero_is_not_looked_at():
    z, v, labels = draw()
    z[:, 3], labels[:] = -math.inf, 3
    assert distillation_loss(z, z, labels, T=2.0, alpha=1.0).isfinite()  # never looks at a label
    assert distillation_loss(z, v, labels * 0, T=2.0, alpha=0.0).isfinite()  # nor at the teacher


def test_soft_targets_of_masked_classes_are_zero_and_rows_still_sum_to_one():
    z, v, _ = draw()
    whole = with_masked(z, [2]).requires_grad_()
    p = soften(whole, 4.0)
    assert_close(p.detach(), with_masked(soften(z, 4.0), [2], value=0.0))
    assert torch.autograd.grad(p.square().sum(), whole)[0].isfinite().all()
    found = soft_target_gradient(with_masked(z, [2]), with_masked(v, [2]), 4.0)
    assert_close(found, with_masked(soft_target_gradient(z, v, 4.0), [2], value=0.0))


NOTHING = [[-math.inf] * 3, [0.0, math.inf, 1.0], [0.0, math.nan, 1.0]]


@pytest.mark.parametrize("row", NOTHING)
def test_rows_without_a_finite_largest_logit_are_refused(row):
    bad, good = torch.tensor([[0.0, 1.0, 2.0], row]), torch.rand(2, 3)
    with pytest.raises(ValueError, match=r"^logits must have a finite largest number in each row"):
        soften(bad, 2.0)
    labels, said = torch.tensor([0, 1]), "teacher logits must have a finite largest number"
    with pytest.raises(ValueError, match=said):
        distillation_loss(good, bad, labels, T=2.0, alpha=0.5)


def test_a_student_that_masks_all_is_refused_and_one_that_diverged_is_left_to_fit():
    bad, v, labels = torch.full((2, 3), -math.inf), torch.rand(2, 3), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="student logits must not be -inf for every class"):
        distillation_loss(bad, v, labels, T=2.0, alpha=1.0)
    for value in (math.nan, math.inf):
        assert distillation_loss(bad.fill_(value), v, labels, T=2.0, alpha=1.0).isnan()


def test_logit_matching_refuses_masked_classes():
    z, v, _ = draw()
    for pair in ((with_masked(z, [2]), with_masked(v, [2])), (z, with_masked(v[:, 1:], [0]))):
        for call in (logit_matching_loss, lambda z, v: logit_matching_gradient(z, v, 2.0)):
            with pytest.raises(ValueError, match="logits must not be -inf here"):
                call(*pair)


# prior_offsets


def skewed_logits(n=400, classes=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(n, classes, generator=generator, dtype=torch.float64) + torch.tensor(
        [0.0, -6, 1, 2, 0]
    )


@pytest.mark.parametrize("prior", [[0.2] * 5, [0.5, 0.2, 0.1, 0.1, 0.1]])
def test_prior_offsets_make_the_mean_probability_the_prior(prior):
    logits = skewed_logits()
    offsets = prior_offsets(logits, torch.tensor(prior, dtype=torch.float64))
    torch.testing.assert_close(
        (logits + offsets).softmax(1).mean(0),
        torch.tensor(prior, dtype=torch.float64),
        atol=2e-5,
        rtol=0,
    )
    assert abs(offsets.sum().item()) < 1e-9


def test_prior_offsets_are_none_where_the_mean_is_the_prior_already():
    logits = skewed_logits()
    assert prior_offsets(logits, logits.softmax(1).mean(0)).abs().max() < 1e-9


def test_prior_offsets_undo_an_offset():
    logits = skewed_logits()
    shift = torch.tensor([1.0, -4, 2, 0, 1], dtype=torch.float64)
    torch.testing.assert_close(
        prior_offsets(logits + shift, logits.softmax(1).mean(0), tolerance=1e-9),
        shift.mean() - shift,
        atol=1e-6,
        rtol=0,
    )


@pytest.mark.parametrize(
    "prior", [[0.5, 0.5], [0.5, 0.5, 0.0, 0.0, 0.0], [0.3] * 5, [float("nan")] * 5]
)
def test_prior_offsets_refuse_what_is_no_prior(prior):
    with pytest.raises(ValueError, match=r"prior must be \(5,\) positive numbers that sum to 1"):
        prior_offsets(skewed_logits(), torch.tensor(prior))


def test_prior_offsets_say_when_none_are_found():
    with pytest.raises(ValueError, match="no offsets were found in 2 steps"):
        prior_offsets(skewed_logits(), torch.full((5,), 0.2), steps=2)
