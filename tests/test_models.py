"""The course's networks: shapes, names, sizes, and that `record` can tap every layer."""

import dataclasses
import hashlib
import os
import pickle
import re
import socket
import zipfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torch.nn.functional as F
from torch import nn
from torchvision.models import SqueezeNet, SqueezeNet1_1_Weights

import tlcourse.models
from tlcourse.models import (
    MLP,
    ConvNet,
    WeightsError,
    WideBlock,
    WideResNet,
    imagenet_classes,
    in_order,
    pretrained,
)
from tlcourse.training import record, seed_everything

CONV = ["block1", "block2", "block3", "flatten", "fc6", "relu6", "fc7", "relu7", "head"]


def names(model):
    return [name for name, _ in model.named_children()]


def parameters(model):
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("shape", [(5, 12), (5, 1, 3, 4), (5, 3, 2, 2)])
def test_mlp_flattens_whatever_comes(shape):
    x = torch.randn(shape)
    net = MLP(12, 7, 3)
    assert net(x).shape == (5, 3)
    assert torch.equal(net(x), net(x.flatten(1)))


def test_mlp_is_its_formula():
    net = MLP(6, 5, 4, 3)
    x = torch.randn(8, 6)
    h = (x @ net.fc1.weight.T + net.fc1.bias).clamp(min=0)
    h = (h @ net.fc2.weight.T + net.fc2.bias).clamp(min=0)
    torch.testing.assert_close(net(x), h @ net.head.weight.T + net.head.bias)


@pytest.mark.parametrize(
    ("sizes", "shares", "expected"),
    [
        ((4, 3), {}, ["flatten", "head"]),
        ((4, 9, 3), {}, ["flatten", "fc1", "relu1", "head"]),
        ((4, 9, 8, 3), {}, ["flatten", "fc1", "relu1", "fc2", "relu2", "head"]),
        (
            (4, 9, 8, 3),
            {"dropout": 0.5},
            ["flatten", "fc1", "relu1", "dropout1", "fc2", "relu2", "dropout2", "head"],
        ),
        ((4, 9, 3), {"input_dropout": 0.2}, ["flatten", "input_dropout", "fc1", "relu1", "head"]),
        ((4, 3), {"dropout": 0.5, "input_dropout": 0.2}, ["flatten", "input_dropout", "head"]),
    ],
)
def test_mlp_names_its_layers_in_order(sizes, shares, expected):
    assert names(MLP(*sizes, **shares)) == expected


@pytest.mark.parametrize(
    "sizes", [(784, 10), (784, 800, 800, 10), (784, 1200, 1200, 10), (5, 1, 1)]
)
def test_mlp_has_as_many_parameters_as_the_formula_says(sizes):
    assert parameters(MLP(*sizes)) == sum((n + 1) * m for n, m in pairwise(sizes))


def test_mlp_drops_the_shares_it_was_told():
    net = MLP(10_000, 4, 2, dropout=0.5, input_dropout=0.2)
    assert (net.input_dropout.p, net.dropout1.p) == (0.2, 0.5)
    x = torch.ones(1, 10_000)
    torch.manual_seed(0)
    assert (net.input_dropout(x) == 0).float().mean() == pytest.approx(0.2, abs=0.02)
    assert torch.equal(net.eval().input_dropout(x), x)


@pytest.mark.parametrize("sizes", [(), (784,)])
def test_mlp_refuses_fewer_than_two_sizes(sizes):
    with pytest.raises(ValueError, match=r"^sizes must be at least two numbers >= 1, got \("):
        MLP(*sizes)


@pytest.mark.parametrize("wrong", [0, -1, 2.0, True, np.True_, "3", None, np.float32(2)])
@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("sizes", lambda n: MLP(784, n, 10)),
        ("sizes", lambda n: MLP(n, 10)),
        ("classes, channels, width and units", lambda n: ConvNet(n)),
        ("classes, channels, width and units", lambda n: ConvNet(channels=n)),
        ("classes, channels, width and units", lambda n: ConvNet(width=n)),
        ("classes, channels, width and units", lambda n: ConvNet(units=n)),
        ("width, classes, channels, base and stem_stride", lambda n: WideResNet(10, n)),
        ("width, classes, channels, base and stem_stride", lambda n: WideResNet(10, 1, base=n)),
        ("depth", lambda n: WideResNet(n, 1)),
    ],
)
def test_networks_refuse_what_is_no_whole_number_from_one(name, build, wrong):
    said = rf"^{name} must be (a whole number|whole numbers) >= 1, got .*{re.escape(repr(wrong))}"
    with pytest.raises(ValueError, match=said):
        build(wrong)


@pytest.mark.parametrize("dtype", [np.int64, np.int32, np.uint8])
def test_sizes_may_be_numpys(dtype):
    n = dtype(100)
    for theirs, ours in (
        (MLP(n, n, n), MLP(100, 100, 100)),
        (ConvNet(n, channels=n, size=n, width=n), ConvNet(100, channels=100, size=100, width=100)),
        (WideResNet(dtype(10), dtype(3), n, base=n), WideResNet(10, 3, 100, base=100)),
    ):
        theirs, ours = ([v.shape for v in net.state_dict().values()] for net in (theirs, ours))
        assert theirs == ours


@pytest.mark.parametrize("share", [-0.1, 1.0, 1.5, float("nan")])
@pytest.mark.parametrize("name", ["dropout", "input_dropout"])
def test_mlp_refuses_shares(name, share):
    with pytest.raises(ValueError, match=rf"^{name} must be in \[0, 1\), got {share}"):
        MLP(4, 3, 2, **{name: share})


@pytest.mark.parametrize("size", [8, 9, 15, 16, 28, 33])
def test_convnet_takes_any_size_from_eight(size):
    net = ConvNet(7, channels=3, size=size, width=2, units=5)
    x = torch.randn(2, 3, size, size)
    assert net(x).shape == (2, 7)
    for i in (1, 2, 3):
        x = net.get_submodule(f"block{i}")(x)
        assert x.shape == (2, 2 ** (i - 1) * 2, size // 2**i, size // 2**i)


def test_convnet_takes_mnist_unless_told_otherwise():
    assert ConvNet()(torch.zeros(2, 1, 28, 28)).shape == (2, 10)


def test_convnet_names_its_layers_in_order_and_has_no_batchnorm():
    net = ConvNet()
    assert names(net) == CONV
    assert [names(net.get_submodule(f"block{i}")) for i in (1, 2, 3)] == [
        ["conv", "relu", "pool"]
    ] * 3
    assert not list(net.buffers())


@pytest.mark.parametrize(
    ("classes", "channels", "size", "width", "units"),
    [(10, 1, 28, 16, 128), (3, 3, 32, 4, 6), (2, 1, 8, 1, 1)],
)
def test_convnet_has_as_many_parameters_as_the_formula_says(classes, channels, size, width, units):
    maps = [channels, width, 2 * width, 4 * width]
    convolutions = sum((9 * n + 1) * m for n, m in pairwise(maps))
    flat = maps[3] * (size // 8) ** 2
    full = (flat + 1) * units + (units + 1) * units + (units + 1) * classes
    assert (
        parameters(ConvNet(classes, channels=channels, size=size, width=width, units=units))
        == convolutions + full
    )


@pytest.mark.parametrize("size", [7, 0, -8])
def test_convnet_refuses_small_images(size):
    with pytest.raises(ValueError, match=f"^size must be at least 8 pixels .*, got {size}$"):
        ConvNet(size=size)


@pytest.mark.parametrize("size", [8.0, 28.5, np.float64(28)])
def test_convnet_refuses_a_size_that_is_not_whole(size):
    with pytest.raises(ValueError, match=r"^size must be a whole number >= 1, got "):
        ConvNet(size=size)


@pytest.mark.parametrize(
    "build",
    [
        lambda: MLP(64, 9, 8, 3, dropout=0.5, input_dropout=0.2),
        lambda: ConvNet(3, size=8, width=2, units=5),
    ],
)
def test_every_named_layer_can_be_tapped(build, device):
    net = build().to(device).eval()
    x = torch.rand(6, 1, 8, 8)
    taps = record(net, (x, torch.zeros(6)), of=names(net))
    assert list(taps) == names(net)
    for name, layer in net.named_children():
        x = layer(x.to(device))
        torch.testing.assert_close(taps[name], x)


@pytest.mark.parametrize("build", [lambda: MLP(12, 9, 3), lambda: ConvNet(3, size=8, width=2)])
def test_the_same_seed_gives_the_same_network(build):
    def weights(seed):
        seed_everything(seed)
        return torch.cat([p.flatten() for p in build().parameters()])

    assert torch.equal(weights(3), weights(3))
    assert not torch.equal(weights(3), weights(4))


# wide residual networks


@pytest.mark.parametrize(
    ("depth", "width", "count"),
    [(16, 1, 175_066), (16, 2, 691_674), (40, 1, 563_930), (40, 2, 2_243_546)],
)
def test_wide_residual_networks_have_as_many_parameters_as_the_official_ones(depth, width, count):
    assert parameters(WideResNet(depth, width)) == count


def test_wide_residual_networks_halve_the_size_twice_and_can_be_tapped():
    net = WideResNet(10, 2, 7, channels=1, base=4, stem_stride=2)
    x = torch.rand(3, 1, 28, 28)
    assert names(net) == [
        "stem",
        "group1",
        "group2",
        "group3",
        "norm",
        "relu",
        "pool",
        "flatten",
        "head",
    ]
    taken = record(net, (x, torch.zeros(3, dtype=torch.int64)), of=["group1", "group2", "group3"])
    assert [tuple(v.shape) for v in taken.values()] == [
        (3, 8, 14, 14),
        (3, 16, 7, 7),
        (3, 32, 4, 4),
    ]
    assert net(x).shape == (3, 7)


def test_a_wide_block_is_its_formula():
    block = WideBlock(4, 6, 2).eval()
    x = torch.randn(2, 4, 6, 6)
    active = F.relu(F.batch_norm(x, torch.zeros(4), torch.ones(4)))
    inner = F.relu(
        F.batch_norm(
            F.conv2d(active, block.conv1.weight, stride=2, padding=1), torch.zeros(6), torch.ones(6)
        )
    )
    expected = F.conv2d(inner, block.conv2.weight, padding=1) + F.conv2d(
        active, block.skip.weight, stride=2
    )
    torch.testing.assert_close(block(x), expected)
    plain = WideBlock(4, 4, 1)
    nn.init.zeros_(plain.conv2.weight)
    assert plain.skip is None
    assert torch.equal(plain(x), x)


# networks of others


@pytest.fixture(scope="module")
def on_board():
    return pretrained()


@pytest.mark.parametrize(
    ("photo", "expected"),
    [
        ("chelsea", {"Egyptian cat", "tiger cat", "tabby"}),
        ("coffee", {"espresso"}),
        ("rocket", {"missile"}),
    ],
)
def test_the_network_on_board_knows_what_is_on_a_photo(on_board, photo, expected):
    pixels = torch.from_numpy(getattr(skimage.data, photo)()).permute(2, 0, 1)[None] / 255
    side = min(pixels.shape[2:])
    top, left = ((n - side) // 2 for n in pixels.shape[2:])
    square = pixels[:, :, top : top + side, left : left + side]
    small = F.interpolate(square, (224, 224), mode="bicubic", antialias=True)
    with torch.inference_mode():
        assert imagenet_classes()[on_board(small).argmax().item()] in expected


def test_the_network_on_board_is_in_eval_mode_and_takes_pixels_from_0_to_1(on_board):
    assert not any(part.training for part in on_board.modules())
    x = torch.rand(1, 3, 64, 64)
    (hook,) = on_board._forward_pre_hooks.values()
    torch.testing.assert_close(hook(on_board, (x,)), 2 * x - 1)
    assert len(imagenet_classes()) == 1_000


def test_weights_that_do_not_fit_are_refused_by_name():
    wanted = MLP(3, 2, 2).state_dict()
    weights = {f"other.{i}": value + 1 for i, value in enumerate(wanted.values())}
    named = in_order(weights, wanted)
    assert list(named) == list(wanted)
    assert all(torch.equal(named[name], wanted[name] + 1) for name in wanted)
    with pytest.raises(WeightsError, match="the weights have 3 tensors, the network 4"):
        in_order(dict(list(weights.items())[:3]), wanted)
    with pytest.raises(WeightsError, match=r"other.0, \(1,\), does not fit fc1.weight, \(2, 3\)"):
        in_order(weights | {"other.0": torch.ones(1)}, wanted)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where torchvision keeps what it fetched."""
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    return tmp_path / "checkpoints"


@pytest.fixture
def keep(cache, monkeypatch):
    """Puts a file that torchvision asks for into the cache; its name has its hash, or another."""

    def put(content, digest=None):
        digest = digest or hashlib.sha256(content).hexdigest()[:8]
        url = f"http://192.0.2.1/models/squeezenet1_1-{digest}.pth"
        monkeypatch.setattr(SqueezeNet1_1_Weights.DEFAULT.value, "url", url)
        (cache / url.rsplit("/", 1)[1]).write_bytes(content)

    return put


def saved(value, folder, **options):
    torch.save(value, folder / "saved", **options)
    return (folder / "saved").read_bytes()


@pytest.mark.parametrize("zipped", [True, False])
def test_a_network_of_torchvision_comes_from_its_files(keep, tmp_path, zipped):
    theirs = SqueezeNet("1_1")
    keep(saved(theirs.state_dict(), tmp_path, _use_new_zipfile_serialization=zipped))
    ours = pretrained("torchvision:squeezenet1_1")
    x = torch.rand(1, 3, 64, 64)
    mean, deviation = (
        torch.tensor(v)[:, None, None] for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    )
    torch.testing.assert_close(ours(x), theirs.eval()((x - mean) / deviation))


def test_a_file_that_does_not_fit_is_refused(keep, tmp_path):
    keep(saved(MLP(3, 2).state_dict(), tmp_path))
    with pytest.raises(
        WeightsError,
        match=r"weights of torchvision:squeezenet1_1 could not be had \(Error.*On board is tf_eff",
    ):
        pretrained("torchvision:squeezenet1_1")


def test_a_kept_file_whose_hash_is_not_that_of_its_name_is_refused(keep, tmp_path):
    content = saved(SqueezeNet("1_1").state_dict(), tmp_path)
    digest = hashlib.sha256(content).hexdigest()
    keep(content, digest[:12])  # longer than torch's eight
    pretrained("torchvision:squeezenet1_1")
    for changed in (content[:-1], content + b"\0", b""):
        keep(changed, digest[:8])
        with pytest.raises(
            WeightsError, match=rf"squeezenet1_1-{digest[:8]}\.pth is damaged: its "
        ):
            pretrained("torchvision:squeezenet1_1")


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def wrapped(content, folder):
    """As torch's files were long ago: an archive that holds a pickle."""
    with zipfile.ZipFile(folder / "old", "w") as archive:
        archive.writestr("squeezenet1_1.pth", content)
    return (folder / "old").read_bytes()


@pytest.mark.parametrize("own", [True, False])
@pytest.mark.parametrize("form", ["pickle", "torch", "legacy", "zip"])
def test_nothing_but_weights_is_ever_unpickled(keep, tmp_path, monkeypatch, form, own):
    evil = Evil(tmp_path / "ran")
    content = {
        "pickle": lambda: pickle.dumps(evil),
        "torch": lambda: saved({"a": evil}, tmp_path),
        "legacy": lambda: saved({"a": evil}, tmp_path, _use_new_zipfile_serialization=False),
        "zip": lambda: wrapped(pickle.dumps(evil), tmp_path),
    }[form]()
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    keep(content, None if own else "b8a52dc0")
    with pytest.raises(WeightsError, match="could not be had"):
        pretrained("torchvision:squeezenet1_1")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("own", [True, False])
def test_nothing_but_weights_is_ever_unpickled_by_timm(cache, tmp_path, monkeypatch, own):
    content = pickle.dumps(Evil(tmp_path / "ran"))
    digest = hashlib.sha256(content).hexdigest()[:8] if own else "01234567"
    url = f"http://192.0.2.1/{digest}/resnet10t-{digest}.pth"
    cfgs = timm.models._registry._model_pretrained_cfgs
    (name,) = [name for name in cfgs if name.startswith("resnet10t.")]
    monkeypatch.setitem(cfgs, name, dataclasses.replace(cfgs[name], url=url, hf_hub_id=None))
    monkeypatch.setattr("timm.models._builder.has_hf_hub", lambda *_, **__: False)
    (cache / url.rsplit("/", 1)[1]).write_bytes(content)
    why = "Weights only load failed" if own else "is damaged: its hash is not that of its name"
    with pytest.raises(WeightsError, match=f"could not be had .*{why}"):
        pretrained(name)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("before", [None, "0", "1"])
def test_the_environment_is_as_before(keep, monkeypatch, tmp_path, before):
    monkeypatch.delenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", raising=False)
    if before is not None:
        monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", before)
    keep(saved(MLP(3, 2).state_dict(), tmp_path))
    with pytest.raises(WeightsError):
        pretrained("torchvision:squeezenet1_1")
    assert os.environ.get("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "0") == (before or "0")
    assert socket.getdefaulttimeout() is None


def test_a_server_that_never_answers_is_given_up(cache, monkeypatch):
    monkeypatch.setattr(tlcourse.models, "SILENCE", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"http://127.0.0.1:{mute.getsockname()[1]}/squeezenet1_1-b8a52dc0.pth"
        monkeypatch.setattr(SqueezeNet1_1_Weights.DEFAULT.value, "url", url)
        with pytest.raises(WeightsError, match=r"could not be had \(.*timed out.*\)\. On board is"):
            pretrained("torchvision:squeezenet1_1")
    assert not list(cache.iterdir())


def test_a_network_of_timm_brings_its_own_mean(monkeypatch):
    create = timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda name, pretrained: create(name, pretrained=False)
    )
    net = pretrained("mobilenetv3_small_050")
    (hook,) = net._forward_pre_hooks.values()
    assert hook.mean.flatten().tolist() == pytest.approx([0.485, 0.456, 0.406])


def test_what_cannot_be_fetched_says_what_is_on_board(monkeypatch):
    def create(name, pretrained):
        raise OSError("no network")

    monkeypatch.setattr(timm, "create_model", create)
    with pytest.raises(
        WeightsError,
        match=r"weights of resnet18 could not be had \(no network\). On board is tf_efficientnet",
    ):
        pretrained("resnet18")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: WideResNet(15, 1), "depth must be 10, 16, 22, 28, …, got 15"),
        (lambda: WideResNet(4, 1), "got 4"),
        (lambda: WideResNet(10, 0), "must be whole numbers >= 1"),
        (
            lambda: pretrained("no_such_network"),
            "another network of timm, or torchvision:NAME, got 'no_such_network'",
        ),
        (lambda: pretrained("torchvision:no_such_network"), "got 'torchvision:no_such_network'"),
        (lambda: pretrained("torchvision:raft_small"), "got 'torchvision:raft_small'"),
        (lambda: pretrained("torchvision:fcn_resnet50"), "got 'torchvision:fcn_resnet50'"),
        (lambda: pretrained("keras:resnet18"), "got 'keras:resnet18'"),
    ],
)
def test_networks_that_cannot_be_are_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
