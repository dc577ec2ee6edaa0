r"""Growing a network: new units beside the old ones, or a new layer above them.

Fine-tuning has no more room for the new task than the source task needed. So let the network grow.
**Width** (WA-CNN): layer K, below the classifier C, gets new units, which read what the old ones
read and feed the classifier alone. **Depth** (DA-CNN): one more layer, and the classifier sees
nothing else.

.. math:: h^K = f(W^K h^{K-1}), \quad h^{K+} = f(W^{K+} h^{K-1}), \quad z = C\,[h^K; h^{K+}]

Old units have learnt to be loud and new ones are quiet, so the classifier hears the old ones first.
To let both learn at the same pace, each block is divided by its own length, and each unit gets a
scale of its own:

.. math:: \hat h^K = \gamma \odot h^K / \lVert h^K \rVert_2

Wang, Ramanan and Hebert 2017, "Growing a brain: fine-tuning by increasing model capacity".
"""

from collections.abc import Mapping, Sequence
from math import inf
from typing import Literal

import torch
from torch import Tensor, nn

from tlcourse.methods._checks import expect, expect_counts, expect_weight, wide

SHORTEST = 1e-4  # what a shorter block is divided by, so that one of dead units stays 0
Start = Literal["rand", "copy"]


class ScaledNorm(nn.Module):
    r"""Blocks of units of one length: :math:`\gamma \odot h / \max(\lVert h \rVert_2, 10^{-4})`.

    units: how many, or how many in each of several blocks; each sample's block has a length of its
    own. scale: where γ starts, one for each unit. γ is trained if learn is true, without weight
    decay by `parameter_groups`. Raises ValueError for units that are no whole numbers >= 1 and a
    scale that is not > 0. Wang et al. 2017, section 3.3, after Liu et al. 2015, "ParseNet".
    """

    def __init__(self, units: int | Sequence[int], scale: float = 10.0, learn: bool = True) -> None:
        super().__init__()
        blocks = units if isinstance(units, Sequence) else [units]
        expect_counts("units must be whole numbers", *blocks)
        _expect_scale(scale)
        self.blocks = [int(n) for n in blocks]
        self.gamma = nn.Parameter(torch.full((sum(self.blocks),), float(scale)), learn)

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, units), block beside block. Returns (N, units), float32 or wider."""
        n, got = len(self.gamma), tuple(h.shape)
        expect(h.ndim == 2 and h.shape[1] == n, f"h must have shape (N, {n}), got {got}")
        return self.gamma * torch.cat([_unit(block) for block in wide(h).split(self.blocks, 1)], 1)


def _unit(h: Tensor) -> Tensor:
    """h / max(‖h‖₂, 1e-4), each row. Its largest value goes first: squares might be too large."""
    largest = h.detach().abs().amax(1, keepdim=True).clamp(min=SHORTEST)
    h = h / largest
    return h / h.norm(dim=1, keepdim=True).maximum(SHORTEST / largest)


class Widened(nn.Module):
    """A linear layer that has got new units: [old(h), new(h)].

    Where the layer below got some, too, theirs are the last entries of h: new units read them, old
    ones do not.
    """

    def __init__(self, old: nn.Linear, new: nn.Linear) -> None:
        super().__init__()
        self.old, self.new = old, new

    def forward(self, h: Tensor) -> Tensor:
        """h: (N, what new reads). Returns (N, old units + new units)."""
        return torch.cat([self.old(h[:, : self.old.in_features]), self.new(h)], 1)


def widen(
    model: nn.Sequential,
    units: Mapping[str, int],
    *,
    start: Start = "rand",
    noise: float = 0.1,
    scale: float | None = None,
) -> nn.Sequential:
    """Give linear layers new units, {"fc7": 64}, without a change of the answers.

    Returns the same model. Its last layer is the classifier, which gets columns of zeros for the
    new units. With start = "copy" these are copies of the old ones in turn, plus Gaussian noise of
    `noise` times the deviation of the old weights. With a scale a `ScaledNorm` comes below the
    classifier, old and new units a block each; that does change the answers. Raises ValueError for
    a model that does not end in a linear layer, names that are no linear layers below it, layers
    with weights in between that do not grow, and numbers out of range.
    Wang et al. 2017, section 3.2: WA-CNN, and WWA-CNN for two layers.
    """
    expect(start in ("rand", "copy"), f"start must be 'rand' or 'copy', got {start!r}")
    expect_weight("noise", noise)
    expect_counts("units must be whole numbers", *units.values())
    _expect_scale(scale)
    head, layers = _expect_classifier(model), _expect_growing(model, units)
    below = 0  # new units in the layer below
    for name, layer in layers.items():
        new = _linear(layer.in_features + below, units[name], like=layer)
        if start == "copy":
            _copy(layer, new, noise)
        setattr(model, name, Widened(layer, new))
        below = units[name]
    old = head.in_features
    wider = _linear(old + below, head.out_features, like=head)
    _copy(head, wider, noise=0.0)
    wider.weight.data[:, old:] = 0
    return _topped(model, {}, wider, [old, below], scale)


def deepen(model: nn.Sequential, units: int, *, scale: float | None = None) -> nn.Sequential:
    """Put a new layer, "deep", and a ReLU below a new classifier, which sees nothing else.

    Returns the same model. With a scale a `ScaledNorm` comes below the classifier. Raises
    ValueError for a model that does not end in a linear layer, and numbers out of range.
    Wang et al. 2017, section 3.1: DA-CNN, and DWA-CNN where the model was widened before.
    """
    expect_counts("units must be a whole number", units)
    _expect_scale(scale)
    head = _expect_classifier(model)
    there = [name for name, _ in model.named_children() if name in ("deep", "scaled")]
    expect(not there, f"the model must not have been deepened or scaled, and it has {there}")
    layers = {"deep": _linear(head.in_features, units, like=head), "deep_relu": nn.ReLU()}
    return _topped(model, layers, _linear(units, head.out_features, like=head), [units], scale)


def _topped(
    model: nn.Sequential,
    layers: Mapping[str, nn.Module],
    head: nn.Linear,
    blocks: Sequence[int],
    scale: float | None,
) -> nn.Sequential:
    """The model with these layers on top, a norm of these blocks (with a scale), and a head."""
    scaled = {} if scale is None else {"scaled": ScaledNorm(blocks, scale).to(head.weight)}
    *_, (name, old) = model.named_children()
    delattr(model, name)
    for new, layer in {**layers, **scaled, name: head}.items():
        model.add_module(new, layer.train(old.training))
    return model


def _linear(inputs: int, outputs: int, like: nn.Linear) -> nn.Linear:
    """A new linear layer on the device of another, with a bias if that has one."""
    bias, weight = like.bias is not None, like.weight
    return nn.Linear(inputs, outputs, bias, device=weight.device, dtype=weight.dtype)


@torch.no_grad()
def _copy(old: nn.Linear, new: nn.Linear, noise: float) -> None:
    """New units become copies of old ones in turn; what old ones do not read stays as it is."""
    rows = torch.arange(new.out_features, device=old.weight.device) % old.out_features
    weight, read = old.weight[rows], new.weight[:, : old.in_features]
    read.copy_(weight + noise * old.weight.std() * torch.randn_like(weight))
    if old.bias is not None:
        new.bias.copy_(old.bias[rows])


def _expect_scale(scale: float | None) -> None:
    expect(scale is None or 0 < scale < inf, f"scale must be a finite number > 0, got {scale}")


def _expect_classifier(model: nn.Sequential) -> nn.Linear:
    last = model[-1] if isinstance(model, nn.Sequential) and len(model) else model
    got = f"got {type(model).__name__} that ends in {type(last).__name__}"
    if not isinstance(last, nn.Linear) or last is model:
        raise ValueError(f"the model must be an nn.Sequential that ends in a linear layer, {got}")
    return last


def _expect_growing(model: nn.Sequential, units: Mapping[str, int]) -> dict[str, nn.Linear]:
    """The layers that shall grow, from the lowest up to the classifier."""
    below = dict(list(model.named_children())[:-1])
    linear = {name: layer for name, layer in below.items() if isinstance(layer, nn.Linear)}
    known = bool(units) and units.keys() <= linear.keys()
    names = f"{', '.join(linear) or 'none'}, got {', '.join(units) or 'none'}"
    expect(known, f"units must name linear layers below the classifier: {names}")
    lowest = min(list(below).index(name) for name in units)
    for name, layer in list(below.items())[lowest:]:
        fits = name in units or not [*layer.parameters(), *layer.buffers()]
        expect(fits, f"{name} lies above a layer that grows: it must grow, too, or have no weights")
    return {name: layer for name, layer in linear.items() if name in units}
