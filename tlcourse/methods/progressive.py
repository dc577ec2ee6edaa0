r"""Progressive networks: a new column for each task, which hears the old ones and never moves them.

What a task has learnt is frozen, so nothing is forgotten. The next one gets a network of its own,
**column** k. Each layer but the first also hears what the same layer reads in every older column j,
through **laterals**: U alone, or an **adapter**, where V first brings it down to few features.

.. math:: h_i^{(k)} = \sigma\big(W_i^{(k)} h_{i-1}^{(k)}
    + U_i^{(k)} \sigma(V_i^{(k)} [\alpha_{i-1}^{(j)} h_{i-1}^{(j)}]_{j<k})\big)

α, a number for each layer and old column, is learnt and small at first: how loud that column is.
There are no biases, so with α = 0 a column stands alone. V is a 1×1 convolution between maps.

Rusu et al. 2016, "Progressive neural networks". There U alone has no α, and V has :math:`n_i` rows
in the text, :math:`n_{i-1}` in the equation; here it has the smaller of both.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from math import inf, isfinite
from typing import Any, Self, get_args

import torch
from numpy.typing import ArrayLike
from torch import Tensor, nn

from tlcourse.methods._checks import expect, expect_counts, expect_same_shape
from tlcourse.methods.fine_tuning import freeze

Layer = nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d  # with weights of 2, 3, 4 and 5 axes


class Adapter(nn.Module):
    r"""What a layer hears of older columns: :math:`U\,\sigma(V [\alpha_j h_j]_{j<k})`.

    layer: the one it adds to; U has its kernel, stride and padding, but no groups. sources: how
    many features each older column has there. hidden: the rows of V. alpha: where each α starts;
    from 0 it would not move. linear: without V and σ. Raises ValueError for another kind of layer,
    counts below 1 and alpha not > 0. Rusu et al. 2016, section 2.
    """

    def __init__(
        self,
        layer: Layer,
        sources: Sequence[int],
        *,
        hidden: int | None = None,
        alpha: float = 0.1,
        linear: bool = False,
    ) -> None:
        super().__init__()
        _expect_layer("layer", layer)
        rows = min(_inputs(layer), len(layer.weight)) if hidden is None else hidden
        expect_counts("sources must be whole numbers", *sources)
        expect_counts("hidden must be a whole number", rows)
        expect(0 < alpha < inf, f"alpha must be a finite number > 0, got {alpha}")
        self.sources, self.axis, heard = list(sources), 1 - layer.weight.ndim, sum(sources)
        self.alpha = nn.Parameter(layer.weight.new_full((len(sources),), alpha))
        self.V = None if linear else _like(layer, heard, rows)
        self.U = _like(layer, heard if linear else rows)

    def forward(self, h: Sequence[Tensor]) -> Tensor:
        """h: what each older column has there, (N, n, …), or (N, …, n) for a linear layer."""
        got = [x.shape[self.axis] for x in h]
        expect(got == self.sources, f"h must be {self.sources} features of old columns, got {got}")
        heard = torch.cat([a * x for a, x in zip(self.alpha, h)], self.axis)
        return self.U(heard if self.V is None else self.V(heard).relu())


class Column(nn.Module):
    """One task's network, `own`, whose layers of these names are heard and hear older columns."""

    def __init__(self, own: nn.Module, layers: list[str], laterals: Sequence[Adapter] = ()) -> None:
        super().__init__()
        self.own, self.layers, self.laterals = own, layers, nn.ModuleList(laterals)
        self.taps = nn.ModuleList(nn.Identity() for _ in layers)  # where hooks can listen

    def forward(self, x: Tensor, older: Sequence[Any] = ()) -> tuple[Tensor, list[Tensor]]:
        """The answer, and what each layer reads; older: what it reads in the older columns."""
        met: list[list[Tensor]] = [[] for _ in self.layers]

        def read(i: int, layer: nn.Module, inputs: tuple[Tensor]) -> Tensor:
            met[i].append(self.taps[i](inputs[0].clone()))  # the next layer may change it in place
            return met[i][-1]

        def join(i: int, layer: nn.Module, inputs: Any, output: Tensor) -> Tensor:
            lateral = self.laterals[i]([h[i] for h in older])
            expect_same_shape(f"what {self.layers[i]!r} gives and hears", output, lateral)
            return output + lateral

        with ExitStack() as hooks:
            for i, layer in enumerate(map(self.own.get_submodule, self.layers)):
                hooks.enter_context(layer.register_forward_pre_hook(partial(read, i)))
                if self.laterals or older:
                    hooks.enter_context(layer.register_forward_hook(partial(join, i), prepend=True))
            answer = self.own(x)
        times = {name: len(h) for name, h in zip(self.layers, met) if len(h) != 1}
        expect(not times, f"each layer must be met once in a pass, got {times}")
        return answer, [h[0] for h in met]


class ProgressiveNetwork(nn.Module):
    """Columns, one for each task: the newest learns and answers, the older ones are frozen.

    first: the first task's network. layers: names of the linear layers and convolutions that hear
    older columns, all but the first if not given; each must be met once in a pass. `fit` trains the
    newest column and its laterals alone. Raises ValueError for layers that are not there.
    """

    def __init__(self, first: nn.Module, layers: Sequence[str] | None = None) -> None:
        super().__init__()
        found = [name for name, part in first.named_modules() if isinstance(part, Layer)]
        self.layers = found[1:] if layers is None else list(layers)
        _expect_column(first, self.layers, [])
        self.columns: Any = nn.ModuleList([Column(first, self.layers)])

    def add_column(self, own: nn.Module, *, hidden: Mapping[str, int] = {}, **more: Any) -> Self:
        """Freeze what is there and add the next task's network. Changes and returns this one.

        own: has layers of these names and kinds, of any width. hidden (by layer), alpha and linear
        are `Adapter`'s. Raises ValueError if it lacks one, is elsewhere, frozen, or shares weights.
        """
        old = [column.own for column in self.columns]
        _expect_column(own, self.layers, old)
        expect({*hidden} <= {*self.layers}, f"hidden must be of {self.layers}, got {[*hidden]}")
        laterals = []
        for name in self.layers:
            layer, *rest = (one.get_submodule(name) for one in (own, *old))
            laterals.append(Adapter(layer, [*map(_inputs, rest)], hidden=hidden.get(name), **more))
        freeze(self.columns[-1])
        self.columns.append(Column(own, self.layers, laterals).train(self.training))
        return self

    def task(self, k: int) -> "ProgressiveNetwork":
        """The network as it was for task k, from 0: it shares the first k + 1 columns."""
        expect(k in range(n := len(self.columns)), f"k must be a whole number < {n}, got {k}")
        network = ProgressiveNetwork(self.columns[0].own, self.layers)
        network.columns, network.training = self.columns[: k + 1], self.training
        return network

    @property
    def heard(self) -> list[str]:
        """What the newest column hears, for `record(network, data, of=network.heard)`."""
        layers, old = range(len(self.layers)), range(len(self.columns) - 1)
        return [f"columns.{j}.taps.{i}" for j in old for i in layers]

    def forward(self, x: Tensor, heard: Mapping[str, Tensor] | None = None) -> Tensor:
        """What the newest column says of x. heard: recorded, by name; then no old column runs."""
        older: list[Any] = []
        if heard is not None:
            expect({*heard} == {*self.heard}, f"heard must be of {self.heard}, got {[*heard]}")
            said = iter(map(heard.__getitem__, self.heard))
            older = [[next(said) for _ in self.layers] for _ in self.columns[:-1]]
        with torch.set_grad_enabled(x.requires_grad and torch.is_grad_enabled()):
            for column in self.columns[len(older) : -1]:
                older.append(column(x, older)[1])  # with no graph, but for a gradient by x
        return self.columns[-1](x, older)[0]


def transfer_score(curve: ArrayLike, baseline: ArrayLike) -> float:
    """The area under a learning curve over that of baseline 1, one column trained alone.

    curve, baseline: (T,), T >= 2, scores at equal distances in training, the higher the better;
    areas are of trapezia. Raises ValueError for other shapes, scores that are not finite, and a
    baseline whose area is not > 0: count from another zero. Rusu et al. 2016, section 4.
    """
    y, z = (torch.as_tensor(scores, dtype=torch.float64) for scores in (curve, baseline))
    fits = y.ndim == 1 < len(y) and y.shape == z.shape
    expect(fits, f"curve and baseline must be (T,), T >= 2, got {[*y.shape]} and {[*z.shape]}")
    a, b = torch.trapezoid(y).item(), torch.trapezoid(z).item()
    expect(isfinite(a) and 0 < b < inf, f"areas must be finite, the baseline's > 0, got {a}, {b}")
    return a / b


def _inputs(layer: Any) -> int:
    return layer.in_features if isinstance(layer, nn.Linear) else layer.in_channels


def _like(layer: Layer, heard: int, rows: int | None = None) -> nn.Module:
    """A layer of this kind and kernel, without bias and groups; V, if rows are given, is 1×1."""
    kind: Any = get_args(Layer)[layer.weight.ndim - 2]
    names = ("kernel_size", "stride", "padding", "dilation", "padding_mode")
    kernel = {name: getattr(layer, name) for name in names if kind is not nn.Linear}
    kernel = {"kernel_size": 1} if rows and kernel else kernel
    return kind(heard, rows or len(layer.weight), bias=False, **kernel).to(layer.weight)


def _expect_layer(name: str, layer: Any) -> None:
    fits = isinstance(layer, Layer) and _inputs(layer) > 0  # a lazy one does not know yet
    expect(fits, f"{name} must be a linear layer or a convolution, got {type(layer).__name__}")


def _expect_column(own: nn.Module, layers: list[str], old: list[nn.Module]) -> None:
    expect(0 < len(layers) == len({*layers}), f"layers must be some, each once, got {layers}")
    for name in layers:
        _expect_layer(repr(name), dict(own.named_modules()).get(name))
        weights: Any = [one.get_submodule(name).weight for one in (own, *old)]
        got, *wanted = (f"{w.ndim} axes, {w.dtype} on {w.device}" for w in weights)
        expect(got in (wanted or [got]), f"weights of {name!r} must be {wanted}, got {got}")
    theirs = {p for one in old for p in one.parameters()}
    expect(theirs.isdisjoint(own.parameters()), "the column shares parameters with an older one")
    expect(not old or any(p.requires_grad for p in own.parameters()), "the column is frozen")
