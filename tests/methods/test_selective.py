"""Filters that turn, retrieval against brute force and scipy, rounds by hand, two heads apart."""

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from common import often, seeds
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import rotate
from scipy.stats import entropy
from skimage.filters import gabor_kernel
from torch import nn
from torch.testing import assert_close

from tlcourse.data import Images, load
from tlcourse.methods import selective
from tlcourse.methods.fine_tuning import parameter_groups
from tlcourse.methods.selective import (
    TwoHeads,
    descriptors,
    equal_mass_bins,
    first_layers,
    gabor_bank,
    iterative_retrieval,
    joint_loss,
    nearest_sources,
    symmetric_kl,
)
from tlcourse.models import MLP, ConvNet
from tlcourse.training import Batch, fit, paired, predict

bank = gabor_bank()


def generator(seed):
    return torch.Generator().manual_seed(seed)


def noise(n, side=12, seed=0, channels=1):
    return torch.randint(0, 256, (n, channels, side, side), generator=generator(seed)).byte()


def histograms(n, channels=3, bins=5, seed=0, zeros=True):
    """Random ones in double precision; about a third of the bins are empty."""
    p = torch.rand(n, channels, bins, generator=generator(seed), dtype=torch.float64)
    p = (p - 0.3).clamp(min=0) + 0.1 * F.one_hot(torch.tensor(1), bins) if zeros else p + 0.01
    return p / p.sum(2, keepdim=True)


def by_hand(p, q, weights):
    """Both divergences, one pair, channel and bin at a time."""
    eps, out = 2.2e-16, torch.zeros(len(p), len(q), dtype=torch.float64)
    for i, a in enumerate(p.tolist()):
        for j, b in enumerate(q.tolist()):
            for w, u, v in zip(weights, a, b):
                for x, y in zip(u, v):
                    gap = math.log((x + eps) / (y + eps))
                    out[i, j] += 0.5 * w * (x * gap - y * gap)
    return out


def pixels(x):
    """Filters that say what they see."""
    return [x]


def grating(frequency, angle, side=61):
    y, x = torch.meshgrid(*[torch.arange(side, dtype=torch.float64) - side // 2] * 2, indexing="ij")
    wave = torch.cos(2 * math.pi * frequency * (x * math.cos(angle) + y * math.sin(angle)))
    return (0.5 + 0.5 * wave)[None, None]


def energies(image):
    """|response| at the centre, (scales, orientations)."""
    middle = image[..., 30 - 14 : 30 + 15, 30 - 14 : 30 + 15]
    real, imaginary = (bank.double() * middle[0]).sum((1, 2, 3)).view(2, 4, 6)
    return (real**2 + imaginary**2).sqrt()


# Gabor filters


def test_the_bank_has_real_and_imaginary_parts_of_four_scales_and_six_orientations():
    assert bank.shape == (48, 1, 29, 29)
    assert bank.dtype == torch.float32
    assert gabor_bank(2, 3).shape[0] == 12
    real, imaginary = bank.split(24)
    assert imaginary.sum((1, 2, 3)).abs().max() < 1e-6
    assert_close(real.flip(2, 3), real)
    assert_close(imaginary.flip(2, 3), -imaginary)


def test_the_kernels_are_those_of_scikit_image():
    parts = bank.view(2, 4, 6, 29, 29)
    for scale, orientation in ((0, 0), (1, 2), (3, 5)):
        f = 0.35 / 2 ** (scale / 2)
        known = gabor_kernel(f, orientation * math.pi / 6, sigma_x=0.56 / f, sigma_y=0.56 / f)
        h, w = (side // 2 for side in known.shape)
        inside = parts[:, scale, orientation, 14 - h : 15 + h, 14 - w : 15 + w]
        assert_close(inside[0].double(), torch.from_numpy(known.real), atol=1e-7, rtol=1e-5)
        assert_close(inside[1].double(), torch.from_numpy(known.imag), atol=1e-7, rtol=1e-5)


def test_a_quarter_turn_moves_the_orientations_by_three():
    real, imaginary = bank.view(2, 4, 6, 29, 29)
    turned = torch.rot90(real, -1, (2, 3))
    assert_close(turned, real.roll(-3, 1), atol=1e-6, rtol=0)
    sign = torch.tensor([1, 1, 1, -1, -1, -1.0]).view(6, 1, 1)  # half a turn conjugates
    assert_close(
        torch.rot90(imaginary, -1, (2, 3)), (sign * imaginary.roll(-3, 1)), atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("scale", range(4))
@pytest.mark.parametrize("degrees", [0, 10, 65])
def test_turning_a_picture_by_30_degrees_moves_the_orientations_by_one(scale, degrees):
    f, angle = 0.35 / 2 ** (scale / 2), math.radians(degrees)
    before, after = (energies(grating(f, angle + turn))[scale] for turn in (0, math.pi / 6))
    assert_close(after, before.roll(1), atol=0.02 * before.max().item(), rtol=0)
    assert before.max() > 3 * before.min()


def test_turning_a_kernel_by_30_degrees_gives_the_next():
    real = bank[:24].view(4, 6, 29, 29)[3]
    for first, second in zip(real[:5].numpy(), real[1:].numpy()):
        turned = rotate(first, -30, reshape=False, order=3)
        assert np.abs(turned - second)[4:-4, 4:-4].max() < 0.03 * np.abs(second).max()


@pytest.mark.parametrize("scale", range(4))
def test_each_scale_answers_its_own_frequency_most(scale):
    answers = energies(grating(0.35 / 2 ** (scale / 2), 0.0))[:, 0]
    assert answers.argmax() == scale


# histograms


@pytest.mark.parametrize("filters", [bank, pixels], ids=["gabor", "pixels"])
def test_on_the_target_every_bin_holds_the_same_mass(filters):
    x = torch.rand(30, 1, 12, 12, generator=generator(0))
    p = descriptors(x, filters, equal_mass_bins(x, filters, 8))
    assert_close(p.mean(0), torch.full_like(p[0], 1 / 8), atol=2e-3, rtol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_every_channel_of_every_image_sums_to_one(dtype):
    bins = equal_mass_bins(noise(5), bank, 8)
    p = descriptors(noise(9, seed=1), bank, bins, dtype=dtype)
    assert p.shape == (9, 48, 8)
    assert p.dtype == dtype
    assert_close(
        p.float().sum(2), torch.ones(9, 48), atol=2e-3 if p.element_size() < 4 else 1e-6, rtol=0
    )


def test_the_histograms_are_numpys():
    target, source = noise(6), noise(4, seed=1)
    bins = equal_mass_bins(target, pixels, 5)
    p = descriptors(source, pixels, bins)
    limits = [-math.inf, *bins[0].tolist(), math.inf]
    for image, row in zip(source, p):
        counts, _ = np.histogram((image.double() / 255).numpy(), limits)
        np.testing.assert_allclose(row[0].numpy(), counts / 144, atol=1e-6)


def test_what_lies_outside_the_targets_range_falls_into_the_outer_bins():
    x = torch.rand(10, 1, 12, 12, generator=generator(0))
    bins = equal_mass_bins(x, pixels, 4)
    far = torch.cat([torch.full((1, 1, 12, 6), -9.0), torch.full((1, 1, 12, 6), 9.0)], 3)
    assert descriptors(far, pixels, bins).tolist() == [[[0.5, 0.0, 0.0, 0.5]]]


def test_a_channel_that_is_constant_on_the_target_still_tells_others_apart():
    flat, other = torch.full((4, 1, 8, 8), 0.3), torch.full((1, 1, 8, 8), 0.6)
    bins = equal_mass_bins(flat, pixels, 4)
    p, q = descriptors(flat, pixels, bins), descriptors(other, pixels, bins)
    assert p[:, 0].max(1).values.tolist() == [1.0] * 4
    assert symmetric_kl(p, p).max() < 1e-5
    assert symmetric_kl(p, q).isfinite().all()
    assert symmetric_kl(p, q).min() > 1


@pytest.mark.parametrize("level", [0.3, 17.0, -5.0])
def test_rounding_does_not_move_a_flat_ground_from_bin_to_bin(level):
    """Half of the places have one value; in another batch it comes out a little different."""
    x = torch.rand(20, 1, 8, 8, generator=generator(0)) + level - 0.5
    x[..., :4] = level
    bins = equal_mass_bins(x, pixels, 6)
    p = descriptors(x, pixels, bins)
    for off in (1e-6, -1e-6):
        moved = x.clone()
        moved[..., :4] *= 1 + off
        assert (descriptors(moved, pixels, bins) - p).abs().max() < 0.05


def test_bytes_are_divided_by_255_and_colours_averaged():
    grey, bins = noise(3), equal_mass_bins(noise(3), bank, 4)
    expected = descriptors(grey, bank, bins)
    assert torch.equal(descriptors(grey.float() / 255, bank, bins), expected)
    x = torch.rand(3, 3, 12, 12, generator=generator(1))
    assert torch.equal(descriptors(x, bank, bins), descriptors(x.mean(1, True), bank, bins))


def test_images_may_be_smaller_than_a_filter_and_a_flat_one_has_no_edges():
    small = noise(3, side=5)
    assert descriptors(small, bank, equal_mass_bins(small, bank, 4)).shape == (3, 48, 4)
    maps = selective._maps(torch.full((1, 1, 9, 9), 0.7), bank)[0]
    assert (maps.amax((2, 3)) - maps.amin((2, 3))).max() < 1e-6


def test_blocks_change_nothing_but_the_memory(monkeypatch):
    target, source = noise(5), noise(11, seed=1)
    bins = equal_mass_bins(target, bank, 6)
    whole = descriptors(source, bank, bins)
    monkeypatch.setattr(selective, "PLACES", 3 * 144)
    assert_close(descriptors(source, bank, bins), whole, atol=2 / 144, rtol=0)
    seen = []
    descriptors(source, lambda x: seen.append(len(x)) or [x], bins[:1])
    assert seen == [3, 3, 3, 2]


def test_bins_are_read_off_images_spread_over_a_large_target(monkeypatch):
    monkeypatch.setattr(selective, "PLACES", 4 * 144)
    x, seen = noise(11), []
    equal_mass_bins(x, lambda x: seen.append(x) or [x], 4)
    assert torch.equal(seen[0], x[::3].float() / 255)


# a network's layers


def tapped(net, x):
    h1 = net.block1[0](x)
    return [h1, net.block2[0](net.block1[2](h1.relu()))]


def test_layers_are_tapped_where_they_are_named_before_their_nonlinearity():
    net = ConvNet(3, width=2, units=8)
    net.block1.relu = nn.ReLU(inplace=True)
    x = noise(4, side=28)
    filters = first_layers(net, "block1.conv", "block2.conv")
    for map_, expected in zip(filters(x.float() / 255), tapped(net, x.float() / 255)):
        assert_close(map_, expected.detach())
        assert map_.min() < 0
        assert not map_.requires_grad
    p = descriptors(x, filters, equal_mass_bins(x, filters, 5))
    assert p.shape == (4, 2 + 4, 5)
    swapped = first_layers(net, "block2.conv", "block1.conv")
    q = descriptors(x, swapped, equal_mass_bins(x, swapped, 5))
    assert_close(q, torch.cat([p[:, 2:], p[:, :2]], 1))


def test_the_network_is_left_alone_and_what_it_learns_later_is_not_seen():
    net = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(200, 2))
    before, x = copy.deepcopy(net.state_dict()), torch.rand(4, 1, 12, 12)
    filters = first_layers(net, "1")
    first = filters(x)[0]
    assert torch.equal(filters(x[:2])[0], first[:2])  # running averages, not the batch's
    assert net.training
    assert all(torch.equal(value, net.state_dict()[name]) for name, value in before.items())
    assert not net[1]._forward_hooks
    net[0].weight.data += 1
    assert torch.equal(filters(x)[0], first)


# the distance


@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(
    ("layers", "weights"), [(None, [1 / 3] * 3), ([3], [1 / 3] * 3), ((1, 2), [0.5, 0.25, 0.25])]
)
def test_the_fast_form_is_the_equation_and_layers_share_alike(zeros, layers, weights):
    p, q = histograms(4, seed=1, zeros=zeros), histograms(6, seed=2, zeros=zeros)
    assert zeros == bool((p == 0).any())
    assert (symmetric_kl(p, q, layers) - by_hand(p, q, weights)).abs().max() < 1e-10


def test_it_is_scipys_entropy_in_a_loop():
    p, q = histograms(4, seed=1, zeros=False), histograms(6, seed=2, zeros=False)
    for i, a in enumerate(p.numpy()):
        for j, b in enumerate(q.numpy()):
            both = [entropy(u, v) + entropy(v, u) for u, v in zip(a, b)]
            assert symmetric_kl(p, q)[i, j].item() == pytest.approx(np.mean(both) / 2, abs=1e-10)


@often
@given(seeds, st.integers(1, 4), st.integers(2, 9))
def test_it_is_zero_to_itself_symmetric_and_never_negative(seed, channels, bins):
    p, q = (histograms(4, channels, bins, seed + i) for i in range(2))
    assert symmetric_kl(p, p).diagonal().max() < 1e-12
    assert_close(symmetric_kl(p, q), symmetric_kl(q, p).T, atol=1e-12, rtol=1e-10)
    for kind in (torch.float64, torch.float32, torch.float16):
        d = symmetric_kl(p.to(kind), p.to(kind))
        assert d.min() >= 0
        assert d.diagonal().max() < 1e-4


def test_half_precision_is_widened_and_costs_little():
    p, q = histograms(4, 48, 32, 1), histograms(6, 48, 32, 2)
    half = symmetric_kl(p.half(), q.half())
    assert half.dtype == torch.float32
    assert_close(half.double(), symmetric_kl(p, q), rtol=2e-3, atol=0)


# the nearest


def test_the_nearest_come_first_whatever_the_blocks(monkeypatch, device):
    p, q = histograms(5, seed=1).to(device, torch.float32), histograms(23, seed=2).float()
    expected = symmetric_kl(p.cpu(), q).argsort(1)
    for block in (2, 7, 100):
        monkeypatch.setattr(selective, "BLOCK", block)
        for k in (1, 4, 23):
            found = nearest_sources(p, q, k)
            assert found.dtype == torch.int64
            assert torch.equal(found.cpu(), expected[:, :k])


def test_more_neighbours_keep_those_before(monkeypatch):
    p, q = histograms(3, seed=1), histograms(18, seed=2)
    monkeypatch.setattr(selective, "BLOCK", 5)
    few, all_of_them = nearest_sources(p, q, 7), nearest_sources(p, q, 18)
    assert torch.equal(few, all_of_them[:, :7])
    assert all_of_them.sort(1).values.tolist() == [list(range(18))] * 3


def test_of_equals_the_first_comes_first(monkeypatch):
    p = histograms(1)
    for block in (2, 100):
        monkeypatch.setattr(selective, "BLOCK", block)
        assert nearest_sources(p, p.expand(9, 3, 5), 9).tolist() == [list(range(9))]


def test_layers_decide_how_much_a_channel_counts():
    p = torch.tensor([[[1.0, 0.0]] * 4])
    far = torch.tensor([0.0, 1.0])
    one_of_one, two_of_three = p.clone(), p.clone()
    one_of_one[0, 0], two_of_three[0, 1:3] = far, far
    q = torch.cat([one_of_one, two_of_three])
    assert nearest_sources(p, q, 1).tolist() == [[0]]
    assert nearest_sources(p, q, 1, layers=(1, 3)).tolist() == [[1]]


def test_digits_of_other_writers_find_digits_among_clothes():
    def camera(images, n):
        x = F.interpolate(images.pixels[:n].float(), size=(8, 8), mode="area")
        return F.interpolate(x, size=(28, 28), mode="bilinear").round().byte()

    target = camera(load("digits"), 10)
    source = torch.cat([camera(load(name), 150) for name in ("fashion_mnist", "mnist")])
    bins = equal_mass_bins(target, bank, 32)
    p, q = (descriptors(x, bank, bins) for x in (target, source))
    share = (nearest_sources(p, q, 10) >= 150).float().mean()
    assert share > 0.9


# rounds


LABELS = torch.tensor([0, 0, 0])
SAID = torch.tensor([[0.0, 3.0], [0.2, 0.0], [9.0, 0.0]])  # wrong; right but unsure; sure
ORDER = torch.arange(3 * 40).view(3, 40)


def listener(*answers):
    """Training that answers thus, one after the other, and keeps what it was given."""
    given = []

    def train(neighbours):
        given.append(neighbours)
        return answers[min(len(given), len(answers)) - 1]

    return train, given


def rounds(train, order=ORDER, labels=LABELS, **changes):
    return iterative_retrieval(
        order, labels, train, **{"k": 4, "rounds": 2, "threshold": 0.1} | changes
    )


def test_after_a_round_the_three_kinds_have_five_three_and_one_times_the_first_number():
    assert rounds(lambda _: SAID).tolist() == [[4, 4, 4], [20, 12, 4], [36, 20, 4]]


def test_uncertain_is_an_entropy_above_the_threshold_in_nats():
    H = entropy(SAID[1].softmax(0).numpy())
    for threshold, more in ((H * 0.999, 12), (H * 1.001, 4)):
        history = rounds(lambda _: SAID, rounds=1, threshold=threshold)
        assert history[1].tolist() == [20, more, 4]
    masked = torch.tensor([[0.0, -math.inf]] * 3)
    assert rounds(lambda _: masked, threshold=0).tolist() == [[4, 4, 4]]


def test_every_round_trains_on_what_the_last_asked_for():
    train, given = listener(SAID, SAID.flip(0))
    history = rounds(train)
    assert history.tolist() == [[4, 4, 4], [20, 12, 4], [20, 20, 20]]
    assert [table.shape for table in given] == [(3, 4), (3, 20), (3, 20)]
    for table, counts in zip(given, history):
        for row, order, n in zip(table, ORDER, counts):
            assert row.unique().tolist() == order[:n].tolist()


def test_rounds_end_when_nobody_asks_for_more():
    train, given = listener(SAID, SAID[[2, 2, 2]])
    assert rounds(train, rounds=9).tolist() == [[4, 4, 4], [20, 12, 4]]
    assert len(given) == 2
    train, given = listener(SAID)
    assert rounds(train, rounds=0).tolist() == [[4, 4, 4]]
    assert len(given) == 1


def test_an_image_that_asks_for_more_than_there_are_gets_all_and_that_ends_it():
    train, given = listener(SAID[[0, 0, 2]])
    assert rounds(train, rounds=99)[-1].tolist() == [40, 40, 4]
    assert len(given) == 4


@often
@given(st.lists(st.integers(1, 30), min_size=1, max_size=5))
def test_a_table_holds_each_images_own_neighbours_evenly(counts):
    order = torch.rand(len(counts), 30, generator=generator(0)).argsort(1)
    table = selective._table(order, torch.tensor(counts))
    assert table.shape == (len(counts), max(counts))
    for row, own, n in zip(table, order, counts):
        times = torch.bincount(row, minlength=30)[own]
        assert (times[n:] == 0).all()
        assert times[:n].max() - times[:n].min() <= 1
        assert abs(times[: n // 2].sum() - max(counts) * (n // 2) / n) < 1


def test_every_source_image_of_a_batch_is_in_its_partners_list():
    """In the second round the three have ten, six and two neighbours."""
    target, source = (Images(noise(n), torch.zeros(n).long(), ("a",), "n") for n in (3, 50))
    order, seen = torch.rand(3, 50, generator=generator(0)).argsort(1), []

    def watch(net, b):
        seen[-1].update(zip(b["target"].index.tolist(), b["source"].index.tolist()))
        return net(b["target"].x).sum()

    def train(neighbours):
        seen.append(set())
        fit(MLP(144, 1), paired(target, source, neighbours), watch, epochs=150, progress=False)
        return SAID

    for pairs, counts in zip(seen, rounds(train, order, k=2, rounds=1), strict=True):
        assert pairs == {(i, j) for i, n in enumerate(counts) for j in order[i, :n].tolist()}
    assert len(seen) == 2


# one trunk, two heads


def two_heads(seed=0):
    torch.manual_seed(seed)
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(144, 8), nn.Tanh())
    return TwoHeads(trunk, nn.Linear(8, 3), nn.Linear(8, 5)).double()


def batch():
    x, index = noise(10).double() / 255, torch.arange(6)
    return {
        "target": Batch(x[:4], torch.tensor([0, 1, 2, 0]), index[:4], 0.0),
        "source": Batch(x[4:], torch.tensor([4, 3, 2, 1, 0, 4]), index, 0.0),
    }


def gradients(weight):
    net = two_heads()
    joint_loss(net, batch(), weight).backward()
    return {name: p.grad for name, p in net.named_parameters()}


def test_the_joint_loss_is_a_weighted_sum_of_each_heads_cross_entropy():
    net, (target, source) = two_heads(), batch().values()
    a = F.cross_entropy(net(target.x), target.y)
    b = F.cross_entropy(net.heads["source"](net.trunk(source.x)), source.y)
    assert_close(joint_loss(net, batch(), 0.2), 0.8 * a + 0.2 * b)
    assert_close(joint_loss(net, batch()), (a + b) / 2)


def test_each_head_learns_from_its_own_images_and_the_trunk_from_both():
    target, source, both = gradients(0), gradients(1), gradients(0.5)
    for name in both:
        a, b = target[name], source[name]
        assert name.startswith("heads.source") != bool(a.any())
        assert name.startswith("heads.target") != bool(b.any())
        assert_close(both[name], (a + b) / 2)


def test_the_trunk_answers_once_for_both():
    net, asked = two_heads(), []
    net.trunk.register_forward_hook(lambda *seen: asked.append(len(seen[1][0])))
    joint_loss(net, batch())
    assert asked == [10]


def test_both_heads_are_heads_to_the_groups_of_an_optimizer():
    net = two_heads()
    groups = parameter_groups(net, 0.1, head_lr=0.7)
    fast = {id(p) for group in groups if group["lr"] == 0.7 for p in group["params"]}
    assert fast == {id(p) for p in net.heads.parameters()}


def test_the_course_trains_it_through_its_one_loop():
    """Two images a class beside their neighbours, in the lines of an experiment."""
    few, pool = load("digits").per_class(2, seed=0), load("mnist").split(150, seed=0)[0]
    bins = equal_mass_bins(few.pixels, bank, 16)
    p, q = (descriptors(some.pixels, bank, bins) for some in (few, pool))
    start = ConvNet(10, width=2, units=8)
    net = TwoHeads(start[:-1], nn.Linear(8, 10), start.head)

    def train(neighbours):
        fit(net, paired(few, pool, neighbours), joint_loss, steps=10, progress=False)
        return predict(net, few)

    order = nearest_sources(p, q, 40)
    history = iterative_retrieval(order, few.labels, train, k=5, rounds=1, threshold=0.1)
    assert history.shape == (2, 20)
    assert set(history[1].tolist()) <= {5, 15, 25}


# bad input


P, Q, BINS = histograms(2), histograms(4, seed=1), torch.zeros(48, 3)


def never(neighbours):
    raise AssertionError("trained before the arguments were looked at")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: gabor_bank(0), "orientations and scales must be whole numbers >= 1, got 0, 4"),
        (lambda: gabor_bank(6, 2.5), "must be whole numbers >= 1, got 6, 2.5"),
        (lambda: gabor_bank(highest=0.6), r"highest must be in \(0, 0.5\], got 0.6"),
        (lambda: first_layers(ConvNet(2)), "layers must name at least one layer, got none"),
        (lambda: first_layers(ConvNet(2), "conv9"), "the model has no layer 'conv9'; it has"),
        (
            lambda: equal_mass_bins(noise(2), first_layers(MLP(144, 8, 2), "fc1"), 4),
            r"filters must give maps \(2, C, H, W\), got \(2, 8\)",
        ),
        (lambda: equal_mass_bins(noise(2), lambda x: [], 4), "filters must give maps .*, got none"),
        (lambda: descriptors(noise(2), lambda x: [x[:1]], BINS[:1]), r"maps \(2, .*, got \(1, 1"),
        (
            lambda: equal_mass_bins(noise(4)[0], bank),
            r"be bytes or floats \(N, C, H, W\), not empty, got torch.uint8 \(1, 12, 12\)",
        ),
        (lambda: equal_mass_bins(noise(0), bank), r"not empty, got torch.uint8 \(0, 1, 12, 12\)"),
        (lambda: descriptors(noise(1).int(), bank, BINS), "be bytes or floats .* got torch.int32"),
        (lambda: equal_mass_bins(noise(2), bank, 1), "bins - 1 must be a whole number >= 1, got 0"),
        (lambda: equal_mass_bins(noise(2), bank, 2.5), "a whole number >= 1, got 1.5"),
        (lambda: equal_mass_bins(noise(1, 2), pixels, 5), "5 bins need as many places .* got 4"),
        (
            lambda: descriptors(noise(2), bank, 32),
            "bins must be edges, from equal_mass_bins, got 32",
        ),
        (
            lambda: descriptors(noise(2), bank, BINS[:9]),
            r"bins must be edges \(48, B - 1\), got \(9, 3\)",
        ),
        (
            lambda: symmetric_kl(P[0], Q),
            r"must be floats \(N, C, B\) and \(M, C, B\), got \(3, 5\) and \(4, 3, 5\)",
        ),
        (lambda: symmetric_kl(P, Q[:, :2]), r"got \(2, 3, 5\) and \(4, 2, 5\)"),
        (lambda: symmetric_kl(P.int(), Q), "descriptors must be floats"),
        (lambda: symmetric_kl(P, Q, (1, 1)), r"layers must add up to 3 channels, got \(1, 1\)"),
        (lambda: symmetric_kl(P, Q, (0, 3)), r"layers must add up to 3 channels, got \(0, 3\)"),
        (lambda: nearest_sources(P, Q, 5), "k must be <= 4, the images there are, got 5"),
        (lambda: nearest_sources(P, Q, 0), "k must be a whole number >= 1, got 0"),
        (lambda: nearest_sources(P, Q[:0], 1), "k must be <= 0, the images there are, got 1"),
        (lambda: nearest_sources(P[:, :2], Q, 1), r"got \(2, 2, 5\) and \(4, 3, 5\)"),
        (lambda: rounds(never, k=41), "k must be <= 40, what order holds of each image, got 41"),
        (lambda: rounds(never, k=0), "k and rounds [+] 1 must be whole numbers >= 1, got 0, 3"),
        (lambda: rounds(never, rounds=-1), "must be whole numbers >= 1, got 4, 0"),
        (lambda: rounds(never, rounds=1.5), "must be whole numbers >= 1, got 4, 2.5"),
        (lambda: rounds(never, ORDER[:2]), "order and labels must be of as many images, got 2, 3"),
        (lambda: rounds(never, threshold=-1), "threshold must be a finite number >= 0, got -1"),
        (lambda: rounds(never, threshold=math.nan), "threshold must be a finite number >= 0, got"),
        (lambda: rounds(lambda _: SAID, labels=LABELS + 2), r"labels must be in \[0, 2\), got 2"),
        (lambda: rounds(lambda _: SAID[:2]), r"labels must have shape \(2,\) like the logits"),
        (lambda: joint_loss(two_heads(), batch(), 1.5), r"weight must be in \[0, 1\], got 1.5"),
        (
            lambda: joint_loss(
                two_heads(), {"target": batch()["source"], "source": batch()["source"]}
            ),
            r"labels must be in \[0, 3\), got 0 to 4",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
