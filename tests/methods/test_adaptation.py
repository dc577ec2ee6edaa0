"""Domain adaptation: whose gradient is reversed and whose is not, covariances by hand, and the
difference between reversing a gradient and subtracting a loss.
"""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import grad, jacfwd, jacrev, vmap
from torch.testing import assert_close

from tlcourse.methods.adaptation import (
    coral_loss,
    domain_adversarial_loss,
    gradient_reversal,
    rising_strength,
)
from tlcourse.training import fit, joint

strengths = st.floats(0, 5)


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


def discriminator(features=4):
    return nn.Sequential(nn.Linear(features, 5), nn.Tanh(), nn.Linear(5, 1)).double()


def plain(D, source, target):
    """The same without a reversal: cross-entropy by torch, for as many of the one as the other."""
    logits = D(torch.cat([source, target]))[:, 0]
    y = torch.cat([torch.zeros(len(source)), torch.ones(len(target))]).double()
    return F.binary_cross_entropy_with_logits(logits, y)


# the reversal


@pytest.mark.parametrize("kind", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_forwards_nothing_changes(kind):
    largest = torch.finfo(kind).max
    x = torch.tensor([[1.5, -0.0], [largest, -1e-6]], dtype=kind, requires_grad=True)
    for strength in (0.3, 1e-3):
        said = gradient_reversal(x, strength)
        assert said.dtype == kind
        assert torch.equal(said, x)
        assert said[0, 1].signbit()
        (found,) = torch.autograd.grad(said, x, torch.ones_like(x))
        assert torch.equal(found, torch.full_like(x, -strength))  # of the same kind


@often
@given(seeds, strengths, strengths)
def test_backwards_the_gradient_is_minus_lambda_times_and_two_of_them_multiply(seed, a, b):
    x, g = normal(3, 2, 4, seed=seed).requires_grad_(), normal(3, 2, 4, seed=seed + 1)
    (once,) = torch.autograd.grad(gradient_reversal(x, a), x, g)
    assert_close(once, -a * g)
    (twice,) = torch.autograd.grad(gradient_reversal(gradient_reversal(x, a), b), x, g)
    assert_close(twice, a * b * g)


def test_gradients_of_gradients_are_right():
    """Alone it is no derivative of what it computes; two that cancel are."""
    x = normal(3, 2).requires_grad_()
    there_and_back = lambda x: gradient_reversal(gradient_reversal(x, 0.5), 2.0).square()  # noqa: E731
    assert torch.autograd.gradcheck(there_and_back, x)
    assert torch.autograd.gradgradcheck(there_and_back, x)
    (g,) = torch.autograd.grad(gradient_reversal(x, 0.5).pow(3).sum(), x, create_graph=True)
    (h,) = torch.autograd.grad(g.sum(), x)
    assert_close(g, -0.5 * 3 * x.square())
    assert_close(h, 0.5**2 * 6 * x)  # the reversal is passed twice on the way


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_functions_of_torch_know_it():
    x = normal(3)
    assert_close(jacrev(lambda x: gradient_reversal(x, 0.7))(x), -0.7 * torch.eye(3).double())
    assert_close(jacfwd(lambda x: gradient_reversal(x, 0.7))(x), -0.7 * torch.eye(3).double())
    each = vmap(grad(lambda x: gradient_reversal(x, 0.7).square().sum()))(normal(5, 3))
    assert_close(each, -1.4 * normal(5, 3))


def test_what_follows_may_work_in_place_and_leaves_the_features_alone():
    x = normal(4, 3).requires_grad_()
    h = 1 * x
    nn.ReLU(inplace=True)(gradient_reversal(h, 2.0)).sum().backward()
    assert torch.equal(h, x)
    assert_close(x.grad, -2.0 * (x > 0).double())


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_without_gradients_it_is_nothing(mode):
    with mode():
        said = gradient_reversal(normal(2, 2).requires_grad_(), 1.0)
        assert torch.equal(said, normal(2, 2))
        assert not said.requires_grad


# its strength


def test_the_strength_rises_as_in_the_paper():
    found = [rising_strength(p) for p in (0.0, 0.1, 0.5, 1.0)]
    expected = [2 / (1 + math.exp(-10 * p)) - 1 for p in (0.0, 0.1, 0.5, 1.0)]
    assert found == pytest.approx(expected)
    assert found[0] == 0
    assert found[1] == pytest.approx(0.46, abs=0.005)
    assert 0.9999 < found[3] < 1
    assert rising_strength(0.3, gamma=2.0) == pytest.approx(2 / (1 + math.exp(-0.6)) - 1)
    assert rising_strength(1.0, gamma=0.0) == 0
    assert rising_strength(1.0, gamma=1e9) == 1


# the domain loss


@often
@given(seeds, strengths)
def test_features_get_minus_lambda_times_the_gradient_and_the_discriminator_all_of_it(seed, lam):
    torch.manual_seed(seed)
    D, source, target = discriminator(), normal(6, 4, seed=seed), normal(6, 4, seed=seed + 1)
    inputs = [source.requires_grad_(), target.requires_grad_(), *D.parameters()]
    loss = domain_adversarial_loss(D, source, target, strength=lam)
    assert_close(loss, plain(D, source, target))
    found = torch.autograd.grad(loss, inputs)
    expected = torch.autograd.grad(plain(D, source, target), inputs)
    for signed, theirs, unsigned in zip([-lam] * 2 + [1.0] * 4, found, expected, strict=True):
        assert_close(theirs, signed * unsigned)


def test_to_subtract_the_loss_is_not_the_same():
    """It turns the discriminator round as well, which then learns to be wrong."""
    D, source, target = discriminator(), normal(6, 4).requires_grad_(), normal(6, 4, seed=1)
    reversed_ = domain_adversarial_loss(D, source, target, strength=0.5)
    subtracted = -0.5 * plain(D, source, target)
    features, *own = zip(
        *(torch.autograd.grad(loss, [source, *D.parameters()]) for loss in (reversed_, subtracted))
    )
    assert_close(*features)
    for right, wrong in own:
        assert_close(wrong, -0.5 * right)
        assert not torch.allclose(wrong, right)


@pytest.mark.parametrize(("way", "better"), [("reversed", True), ("subtracted", False)])
def test_a_discriminator_that_is_trained_tells_domains_apart_unless_its_loss_is_subtracted(
    way, better
):
    D, source, target = discriminator(), normal(40, 4), normal(40, 4, seed=1) + 1
    before = plain(D, source, target).item()
    optimizer = torch.optim.SGD(D.parameters(), 0.3)
    for _ in range(30):
        optimizer.zero_grad()
        if way == "reversed":
            domain_adversarial_loss(D, source, target, strength=1.0).backward()
        else:
            (-plain(D, source, target)).backward()
        optimizer.step()
    assert (plain(D, source, target).item() < before - 0.1) == better


def test_at_strength_zero_features_learn_nothing_of_domains_and_the_discriminator_all():
    D, source, target = discriminator(), normal(6, 4).requires_grad_(), normal(6, 4, seed=1)
    domain_adversarial_loss(D, source, target, strength=0.0).backward()
    assert not source.grad.any()
    assert all(p.grad.any() for p in D.parameters())


@pytest.mark.parametrize("times", [1, 2, 5])
def test_domains_weigh_the_same_whatever_the_batch_holds_of_each(times):
    D, source, target = discriminator(), normal(6, 4), normal(6, 4, seed=1)
    said = domain_adversarial_loss(D, source, target.repeat(times, 1), strength=1.0)
    assert_close(said, plain(D, source, target))


def test_by_hand():
    """The source's logit is log 3, the target's 0: it is a quarter and a half sure, and right."""
    source, target = torch.tensor([[math.log(3.0)]]), torch.tensor([[0.0], [0.0]])
    said = domain_adversarial_loss(lambda h: h, source, target, strength=1.0)
    assert_close(said.item(), (math.log(4) + math.log(2)) / 2)
    tossed = domain_adversarial_loss(lambda h: 0 * h, source, target, strength=1.0)
    assert_close(tossed.item(), math.log(2))


def test_a_logit_each_may_come_with_or_without_a_column():
    D, source, target = discriminator(), normal(3, 4), normal(2, 4, seed=1)
    flat = domain_adversarial_loss(lambda h: D(h)[:, 0], source, target, strength=1.0)
    assert torch.equal(flat, domain_adversarial_loss(D, source, target, strength=1.0))


def test_the_discriminator_is_asked_once_of_source_and_then_target_with_any_shape():
    source, target, asked = normal(3, 2, 5, 5), normal(2, 2, 5, 5, seed=1), []
    D = lambda h: asked.append(h) or h.mean((1, 2, 3))  # noqa: E731
    domain_adversarial_loss(D, source, target, strength=1.0)
    assert len(asked) == 1
    assert torch.equal(asked[0], torch.cat([source, target]))


def test_a_sure_discriminator_has_a_finite_loss_and_gradient():
    sure = torch.tensor([[900.0]], requires_grad=True)
    loss = domain_adversarial_loss(lambda h: h, sure, sure.detach(), strength=1.0)
    loss.backward()
    assert_close(loss.item(), 450.0)
    assert_close(sure.grad, torch.tensor([[-0.5]]))


@pytest.mark.parametrize("n", [1, 3])
def test_one_sample_of_a_domain_is_enough(n):
    D = discriminator()
    assert domain_adversarial_loss(D, normal(n, 4), normal(1, 4), strength=1.0).isfinite()


class Adversarial(nn.Module):
    """An objective that holds its discriminator, as `fit` wants it."""

    def __init__(self, hold=True):
        super().__init__()
        D = discriminator().float()
        self.D = D if hold else D.forward

    def forward(self, net, batches):
        source, target = (net[0](batches[name].x) for name in ("source", "target"))
        labels = F.cross_entropy(net[1](source), batches["source"].y)
        strength = rising_strength(batches["source"].t)
        return labels + domain_adversarial_loss(self.D, source, target, strength=strength)


@pytest.mark.parametrize("hold", [True, False])
def test_fit_trains_a_discriminator_that_is_part_of_the_objective(hold):
    objective, net = Adversarial(hold), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 2))
    D = objective.D if hold else objective.D.__self__
    before = copy.deepcopy(D.state_dict())
    source = normal(32, 4).float(), torch.arange(32) % 2
    target = normal(20, 4, seed=1).float(), None
    fit(net, joint(source=source, target=target), objective, steps=3, progress=False)
    assert all(torch.equal(before[k], v) != hold for k, v in D.state_dict().items())


def test_features_that_tell_the_domain_are_given_up_and_those_that_do_not_are_kept():
    """Labels can be read off two inputs, one of which is shifted in the target."""
    g = torch.Generator().manual_seed(0)
    y = torch.randint(2, (512,), generator=g)
    clue = 2.0 * y[:, None] - 1
    source = torch.cat([clue, clue], 1) + 0.5 * torch.randn(512, 2, generator=g)
    target = torch.cat([clue, -clue - 3], 1) + 0.5 * torch.randn(512, 2, generator=g)

    def right(strength):
        torch.manual_seed(0)
        f, head, D = nn.Linear(2, 1), nn.Linear(1, 2), nn.Linear(1, 1)
        parts = [*f.parameters(), *head.parameters(), *D.parameters()]
        optimizer = torch.optim.Adam(parts, 0.02)
        for step in range(300):
            lam = strength * rising_strength(step / 300)
            loss = F.cross_entropy(head(f(source)), y)
            loss = loss + domain_adversarial_loss(D, f(source), f(target), strength=lam)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        return (head(f(target)).argmax(1) == y).float().mean().item()

    assert right(0.0) < 0.6
    assert right(1.0) > 0.9


# CORAL


def test_coral_by_hand():
    source = torch.tensor([[0.0, 0.0], [2.0, 2.0]])  # covariance 2 everywhere
    target = torch.tensor([[0.0, 1.0], [2.0, 1.0]])  # 2 of the first, else 0
    assert_close(coral_loss(source, target), torch.tensor((0 + 4 + 4 + 4) / 16))


@often
@given(seeds, st.integers(2, 9), st.integers(2, 9), st.integers(1, 6))
def test_coral_is_the_distance_of_numpys_covariances(seed, n, m, d):
    source, target = normal(n, d, seed=seed), normal(m, d, seed=seed + 1)
    C_S, C_T = (np.cov(h.numpy(), rowvar=False).reshape(d, d) for h in (source, target))
    assert_close(coral_loss(source, target).item(), np.square(C_S - C_T).sum() / (4 * d * d))


def test_the_gradient_of_coral_by_hand_and_by_autograd():
    source, target = normal(6, 3).requires_grad_(), normal(9, 3, seed=1).requires_grad_()
    of_source, of_target = torch.autograd.grad(coral_loss(source, target), [source, target])
    apart = torch.cov(source.T) - torch.cov(target.T)
    assert_close(of_source, (source - source.mean(0)) @ apart / (9 * 5))
    assert_close(of_target, -(target - target.mean(0)) @ apart / (9 * 8))
    assert torch.autograd.gradcheck(coral_loss, (source, target))
    assert torch.autograd.gradgradcheck(coral_loss, (source, target))
    assert_close(grad(coral_loss)(source.detach(), target.detach()), of_source)


@often
@given(seeds, st.floats(-100, 100))
def test_coral_sees_no_shift_of_either_batch(seed, shift):
    source, target = normal(6, 3, seed=seed), normal(5, 3, seed=seed + 1)
    said, moved = coral_loss(source, target), shift * normal(3, seed=seed + 2)
    assert_close(coral_loss(source + moved, target), said)
    assert_close(coral_loss(source, target + moved), said)
    assert_close(coral_loss(source, source + moved), torch.tensor(0.0).double(), atol=1e-9, rtol=0)


def test_coral_sees_no_order_no_rotation_of_both_and_not_which_is_which():
    source, target = normal(6, 3), 2 * normal(5, 3, seed=1)
    said, (Q, _) = coral_loss(source, target), torch.linalg.qr(normal(3, 3, seed=2))
    assert_close(coral_loss(target, source), said)
    assert_close(coral_loss(source.flip(0), target), said)
    assert_close(coral_loss(source @ Q, target @ Q), said)
    assert_close(coral_loss(3 * source, 3 * target), 81 * said)
    assert (coral_loss(source @ Q, target) - said).abs() > 1e-3


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_in_half_precision_and_under_autocast_losses_stay_exact(kind):
    source, target = (500 * normal(8, 4, seed=s).to(kind) for s in (0, 1))
    said = coral_loss(source, target)
    assert said.dtype == torch.float32  # a square of 500 · 500 would have left float16
    assert_close(said, coral_loss(source.float(), target.float()))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(coral_loss(source, target), said)
        assert torch.equal(coral_loss(source.float(), target.float()), said)
    D = discriminator().to(kind)
    loss = domain_adversarial_loss(D, source / 500, target / 500, strength=1.0)
    assert loss.dtype == torch.float32
    assert_close(loss, plain(D, source / 500, target / 500).float(), atol=1e-2, rtol=0)
    with torch.autocast("cpu", torch.bfloat16):
        x = source.float().requires_grad_()
        domain_adversarial_loss(D.float(), x / 500, target.float(), strength=1.0).backward()
    assert x.grad.dtype == torch.float32


def test_on_every_device_the_same(device):
    D, source, target = discriminator().float(), normal(6, 4).float(), normal(5, 4, seed=1).float()
    said = coral_loss(source, target), domain_adversarial_loss(D, source, target, strength=1.0)
    D, source, target = D.to(device), source.to(device), target.to(device)
    assert_close(coral_loss(source, target).cpu(), said[0])
    assert_close(domain_adversarial_loss(D, source, target, strength=1.0).cpu(), said[1])


def test_no_step_waits_for_a_device():
    """A fake tensor of a GPU holds no numbers: who asks for one gets an error."""
    with FakeTensorMode():
        source, target = (torch.ones(n, 4, device="cuda", requires_grad=True) for n in (6, 5))
        weight = torch.ones(4, device="cuda", requires_grad=True)
        said = domain_adversarial_loss(lambda h: h @ weight, source, target, strength=1.0)
        assert {said.device.type, coral_loss(source, target).device.type} == {"cuda"}


# what cannot be

H = torch.ones(3, 4)
one_each = lambda h: h[:, 0]  # noqa: E731


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: gradient_reversal(H, -0.1), "strength must be a finite number >= 0, got -0.1"),
        (lambda: gradient_reversal(H, math.nan), "strength must be a finite number >= 0, got nan"),
        (lambda: gradient_reversal(H, math.inf), "strength must be a finite number >= 0, got inf"),
        (
            lambda: gradient_reversal(H, torch.tensor(1.0)),
            "strength must be a number: nothing is learnt of it, got a tensor",
        ),
        (
            lambda: gradient_reversal(H, nn.Parameter(torch.ones(4))),
            "strength must be a number: nothing is learnt of it, got a tensor",
        ),
        (lambda: gradient_reversal(H.long(), 1.0), "x must be floating point, got torch.int64"),
        (lambda: rising_strength(-0.1), "p must be in [0, 1], got -0.1"),
        (lambda: rising_strength(1.1), "p must be in [0, 1], got 1.1"),
        (lambda: rising_strength(math.nan), "p must be in [0, 1], got nan"),
        (lambda: rising_strength(0.5, -1.0), "gamma must be a finite number >= 0, got -1.0"),
        (
            lambda: domain_adversarial_loss(one_each, H, H[:, :3], strength=1.0),
            "source and target must have features of one shape, got (3, 4) and (3, 3)",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H, H[:, :, None], strength=1.0),
            "source and target must have features of one shape, got (3, 4) and (3, 4, 1)",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H[:0], H, strength=1.0),
            "source must hold at least 1 sample, got shape (0, 4)",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H, H[:0], strength=1.0),
            "target must hold at least 1 sample, got shape (0, 4)",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H.sum(), H.sum(), strength=1.0),
            "source must hold at least 1 sample, got shape ()",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H.long(), H, strength=1.0),
            "source must be floating point, got torch.int64",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H, H.long(), strength=1.0),
            "target must be floating point, got torch.int64",
        ),
        (
            lambda: domain_adversarial_loss(one_each, H, H, strength=-1.0),
            "strength must be a finite number >= 0, got -1.0",
        ),
        (
            lambda: domain_adversarial_loss(lambda h: h[:, :2], H, H, strength=1.0),
            "discriminator must give logits (6,) or (6, 1), got (6, 2)",
        ),
        (
            lambda: domain_adversarial_loss(lambda h: h.mean(), H, H, strength=1.0),
            "discriminator must give logits (6,) or (6, 1), got ()",
        ),
        (
            lambda: domain_adversarial_loss(lambda h: h[:3, 0], H, H, strength=1.0),
            "discriminator must give logits (6,) or (6, 1), got (3,)",
        ),
        (
            lambda: domain_adversarial_loss(lambda h: {"D": h}, H, H, strength=1.0),
            "discriminator must give logits (6,) or (6, 1), got ('?',)",
        ),
        (
            lambda: coral_loss(H, H[:, :3]),
            "source and target must have features of one shape, got (3, 4) and (3, 3)",
        ),
        (
            lambda: coral_loss(H[:1], H),
            "source must hold at least 2 samples, as one has no covariance, got shape (1, 4)",
        ),
        (
            lambda: coral_loss(H, H[:1]),
            "target must hold at least 2 samples, as one has no covariance, got shape (1, 4)",
        ),
        (
            lambda: coral_loss(H, H[:0]),
            "target must hold at least 2 samples, as one has no covariance, got shape (0, 4)",
        ),
        (
            lambda: coral_loss(H[:, :0], H[:, :0]),
            "features must be (N, d), got (3, 0)",
        ),
        (
            lambda: coral_loss(H[:, :, None], H[:, :, None]),
            "features must be (N, d), got (3, 4, 1)",
        ),
        (lambda: coral_loss(H[0], H[0]), "features must be (N, d), got (4,)"),
        (lambda: coral_loss(H.long(), H), "source must be floating point, got torch.int64"),
        (lambda: coral_loss(H, H.byte()), "target must be floating point, got torch.uint8"),
    ],
)
def test_what_cannot_be_is_said(call, said):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        call()
    assert str(error.value) == said


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["source", "target"])
def test_features_that_are_no_numbers_are_named(bad, which):
    broken = {"source": normal(3, 4), "target": normal(3, 4, seed=1)}
    broken[which][1, 2] = bad
    with pytest.raises(FloatingPointError, match=f"^{which} holds numbers that are not finite$"):
        coral_loss(**broken)
    with pytest.raises(FloatingPointError, match=f"^{which} holds numbers that are not finite$"):
        domain_adversarial_loss(discriminator(), **broken, strength=1.0)
