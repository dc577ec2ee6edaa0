"""Networks of the course. Each is a plain `nn.Sequential` of named layers, so that `record(model, data, of="fc7")` can tap any of them.

Every network ends in `head`, a linear layer from features to logits.
"""

from collections import OrderedDict
from collections.abc import Mapping
from itertools import pairwise

from torch import nn

from tlcourse.methods._checks import expect


def MLP(*sizes: int, dropout: float = 0.0, input_dropout: float = 0.0) -> nn.Sequential:
    """Fully connected ReLU network, for example `MLP(784, 800, 800, 10)`.

    Takes (N, …) and flattens it to (N, sizes[0]); gives logits (N, sizes[-1]). Layers: flatten, then fc1, relu1, fc2, relu2, …, head.
    dropout is the share of hidden units dropped in training, input_dropout that of the pixels. Raises ValueError for fewer than two sizes,
    a size below 1, or a share outside [0, 1).
    """
    expect(len(sizes) >= 2 and min(sizes) >= 1, f"sizes must be at least two numbers >= 1, got {sizes}")
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


def ConvNet(classes: int = 10, *, channels: int = 1, size: int = 28, width: int = 16, units: int = 128) -> nn.Sequential:
    """Three blocks of convolution, ReLU and pooling, without BatchNorm; then two fully connected layers, fc6 and fc7, as in AlexNet.

    Takes (N, channels, size, size), gives logits (N, classes). Layers: block1, block2, block3 (width, 2·width, 4·width maps, each half
    the size of the last), flatten, fc6, relu6, fc7, relu7, head. Raises ValueError if size is below 8 or another number below 1.
    """
    expect(
        min(classes, channels, width, units) >= 1, f"classes, channels, width and units must be >= 1, got {classes, channels, width, units}"
    )
    expect(size >= 8, f"size must be at least 8 pixels (three blocks halve it), got {size}")
    maps = [channels, width, 2 * width, 4 * width]
    blocks = {f"block{i}": _block(maps[i - 1], maps[i]) for i in (1, 2, 3)}
    fc6 = nn.Linear(maps[3] * (size // 8) ** 2, units)
    top = {"fc6": fc6, "relu6": nn.ReLU(), "fc7": nn.Linear(units, units), "relu7": nn.ReLU(), "head": nn.Linear(units, classes)}
    return _named({**blocks, "flatten": nn.Flatten(), **top})


def _block(maps_in: int, maps_out: int) -> nn.Sequential:
    return _named({"conv": nn.Conv2d(maps_in, maps_out, 3, padding=1), "relu": nn.ReLU(), "pool": nn.MaxPool2d(2)})


def _named(layers: Mapping[str, nn.Module]) -> nn.Sequential:
    return nn.Sequential(OrderedDict(layers))
