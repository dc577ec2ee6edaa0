"""Do the maps show where a network looks?

Two photos side by side, and the network is asked for the one and for the other. An explanation of
"cat" should lie on the cat's half, and change when the question does. A network with random weights
explains nothing, so maps should change, too, when its layers are randomised one after the other,
from the top down (Adebayo et al. 2018).
"""

from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import permutations

import torch
import torch.nn.functional as F
from scipy.stats import spearmanr
from torch import Generator, Tensor, nn

from tlcourse.claims import Claim, count, greater
from tlcourse.data import PHOTOS, photo
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.saliency import grad_cam, guided_backprop
from tlcourse.models import imagenet_classes, pretrained

LAYER = "bn2"  # the last maps of the network: 1,280 of 7 by 7 for a picture of 224
SIDE = 224
TOP_DOWN = ("classifier", "conv_head", *(f"blocks.{i}" for i in range(6, -1, -1)), "conv_stem")


def cam(network: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM, (N, h, w)."""
    return grad_cam(network, LAYER, x, classes)


def guided(network: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """The size of guided backpropagation at every pixel, (N, H, W)."""
    return guided_backprop(network, x, classes).abs().sum(1)


def plain(network: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """The size of the gradient at every pixel, (N, H, W)."""
    x = x.detach().requires_grad_()
    with torch.enable_grad():
        score = network(x).gather(1, classes[:, None]).sum()
        return torch.autograd.grad(score, x)[0].abs().sum(1)


WAYS: dict[str, Callable[[nn.Module, Tensor, Tensor], Tensor]] = {
    "Grad-CAM": cam,
    "guided backpropagation": guided,
    "gradient": plain,
}


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Shares of the half that was asked for, likeness of the maps for both classes.

    And likeness to the maps of a network that is randomised from the top.
    """
    network, names, pairs = pretrained().to(device), imagenet_classes(), [*permutations(PHOTOS, 2)]
    left, right = (
        torch.tensor([names.index(PHOTOS[pair[i]][1]) for pair in pairs]).to(device) for i in (0, 1)
    )
    x = torch.stack([collage(*pair, seed * 100 + i) for i, pair in enumerate(pairs)]).to(device)
    found = {
        name: [way(network, x, asked) for asked in (left, right)] for name, way in WAYS.items()
    }
    for name, (of_left, of_right) in found.items():
        shares = torch.cat([share_on_the_left(of_left), 1 - share_on_the_left(of_right)])
        yield Row(name, "share on the half asked for", shares.mean().item())
        yield Row(name, "likeness of the maps for both classes", likeness(of_left, of_right))
    yield Row("chance", "share on the half asked for", 0.5)
    torch.manual_seed(seed)
    randomised = deepcopy(network)
    for depth, layer in enumerate(TOP_DOWN, start=1):
        randomise(randomised.get_submodule(layer))
        for name, way in WAYS.items():
            alike = likeness(found[name][0], way(randomised, x, left))
            yield Row(
                name, "likeness after randomising", alike, {"layers": depth, "down to": layer}
            )


def collage(left: str, right: str, seed: int) -> Tensor:
    """Two photos side by side, each a random square of it, mirrored or not.

    Returns pixels (3, 224, 448) in [0, 1].
    """
    generator = Generator().manual_seed(seed)
    return torch.cat([square(photo(name), generator) for name in (left, right)], dim=2)


def square(pixels: Tensor, generator: Generator) -> Tensor:
    """A random square of 80 to 100 % of the shorter side, mirrored or not: (3, 224, 224)."""
    scale, top, leftmost, mirrored = torch.rand(4, generator=generator).tolist()
    side = round(min(pixels.shape[1:]) * (0.8 + 0.2 * scale))
    y, x = (
        round(place * (length - side)) for place, length in zip((top, leftmost), pixels.shape[1:])
    )
    cut = pixels[None, :, y : y + side, x : x + side].float() / 255
    small = F.interpolate(cut, (SIDE, SIDE), mode="bicubic", antialias=True)[0].clamp(0, 1)
    return small.flip(2) if mirrored < 0.5 else small


def share_on_the_left(maps: Tensor) -> Tensor:
    """How much of each map (N, h, w), >= 0, lies on the left half; of a map of zeros 0.5."""
    sides = maps.unflatten(2, (2, -1)).sum((1, 3))
    total = sides.sum(1)
    return torch.where(total > 0, sides[:, 0] / total.clamp(min=1e-30), 0.5)


def likeness(a: Tensor, b: Tensor) -> float:
    """Mean rank correlation of two sets of maps (N, h, w), in [-1, 1].

    A map that is the same everywhere is like nothing: 0.
    """
    pairs = [[m.flatten().cpu().numpy() for m in maps] for maps in zip(a, b)]
    varied = [pair for pair in pairs if all(m.std() > 0 for m in pair)]
    return float(sum(spearmanr(*pair).statistic for pair in varied) / len(pairs))


def randomise(layer: nn.Module) -> None:
    """Give every convolution and linear layer inside new random weights of the old ones' size."""
    for part in layer.modules():
        if isinstance(part, nn.Conv2d | nn.Linear):
            nn.init.normal_(part.weight, 0.0, part.weight.std().item())


LECTURE = Scale(seeds=10, minutes=30)

EXPERIMENT = Experiment(
    name="looking",
    question="Do the maps show where a network looks?",
    chapter="attention_transfer",
    run=run,
    arms=(*WAYS, "chance"),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "A2",
            "Grad-CAM and guided backpropagation show where a network looks",
            source="lecture, matching intermediate features, first slide",
            decide=count(
                [
                    greater(way, "chance", "share on the half asked for")
                    for way in ("Grad-CAM", "guided backpropagation")
                ],
                at_least=2,
            ),
            unit="of two methods, how many lie more on the half asked for than on the other",
            varies="each seed cuts other squares out of four photos",
        )
    ],
)
