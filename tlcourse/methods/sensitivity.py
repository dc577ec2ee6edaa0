r"""Sensitivity: which column an answer hangs on, layer by layer.

A progressive network hears its old columns and may make nothing of them. Two measures tell. Both
are of what each layer reads in each column, which its own column reads and newer ones hear.
**Fisher's** asks for the slope: how do log-probabilities change with the features m of column j,
each divided by its deviation over the images (a map's features: summed over places)?

.. math:: F^{(j)} = \textstyle\sum_m E_x\, E_{y \sim p(y|x)}
    \big(\partial \log p(y|x) / \partial \hat h_m^{(j)}\big)^2

**Perturbation** tries it: how much noise, in deviations of each feature, until half of what is
better than guessing is lost? The measure is this noise's precision :math:`\Lambda = 1 / \sigma^2`.
A column's share at a layer is its measure, divided by the sum over all columns.

Rusu et al. 2016, "Progressive neural networks", section 3 (AFS and APS). There performance itself
is halved; of few classes, guessing alone gets more than that.
"""

from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Generator, Tensor, nn

from tlcourse.methods._checks import class_labels, expect, expect_floating, wide
from tlcourse.methods.progressive import ProgressiveNetwork
from tlcourse.methods.saliency import _evaluating


def fisher_sensitivity(network: ProgressiveNetwork, x: Tensor, *, shares: bool = True) -> Tensor:
    """What the newest column's answers hang on, by slopes: (layers, columns), exact over classes.

    x: (N, …), two or more images, all at once; the network gives logits (N, K), here in eval mode.
    Rows sum to 1, and are NaN where nothing changes them; without shares they hold F, in nats².
    Raises ValueError for x that is not floating point or too short.
    """
    expect_floating("x", x)
    expect(len(x) > 1, f"x must hold at least two images, got {len(x)}")
    axes, heard = _axes(network), dict[nn.Module, Tensor]()
    with _evaluating(network), ExitStack() as hooks:
        for tap in axes:
            hooks.enter_context(tap.register_forward_hook(partial(_keep, heard)))
        log_p = wide(network(x.detach().clone().requires_grad_())).log_softmax(1)
        h = [heard[tap] for tap in axes]
        deviations = [_deviation(*pair) for pair in zip(h, axes.values())]
        F = log_p.new_zeros(len(axes))
        for log_q in log_p.unbind(1):
            slopes = torch.autograd.grad(log_q.sum(), h, retain_graph=True, materialize_grads=True)
            squares = [wide(g * d).square().flatten(1).sum(1) for g, d in zip(slopes, deviations)]
            F += torch.stack(squares) @ log_q.detach().exp() / len(x)
    return _by_layer(F.detach(), network, shares)


def perturbation_sensitivity(
    network: ProgressiveNetwork, x: Tensor, labels: Tensor, *, shares: bool = True, seed: int = 0
) -> Tensor:
    """What the newest column's right answers hang on, by noise: (layers, columns).

    x: (N, …), all at once; labels: (N,) whole numbers in [0, K). In eval mode, with the same noise
    for every column. Rows sum to 1, and are NaN where no noise does it; without shares they hold Λ,
    0 where a σ of 1,000 is not enough. Raises ValueError for labels that do not fit, and a network
    that is no better than guessing one of K.
    """
    with _evaluating(network), torch.no_grad():
        logits = network(x)
        y, guess = class_labels(labels, logits).to(logits.device), 1 / logits.shape[1]
        start = _right(logits, y)
        expect(start > guess, f"the network must do better than guessing, {guess}, got {start}")

        def right(tap: nn.Module, axis: int, sigma: float) -> float:
            with tap.register_forward_hook(partial(_disturb, axis, sigma, seed)):
                return _right(network(x), y)

        half, axes = (start + guess) / 2, _axes(network)
        found = [_precision(partial(right, *pair), half) for pair in axes.items()]
    return _by_layer(torch.tensor(found, device=logits.device), network, shares)


def _axes(network: ProgressiveNetwork) -> dict[nn.Module, int]:
    """Where to listen, column by column and layer by layer, and which axis holds the features."""
    return {
        tap: 1 - column.own.get_submodule(name).weight.ndim
        for column in network.columns
        for name, tap in zip(network.layers, column.taps)
    }


def _keep(heard: dict[nn.Module, Tensor], tap: nn.Module, inputs: Any, h: Tensor) -> None:
    heard[tap] = h


def _disturb(axis: int, sigma: float, seed: int, tap: nn.Module, inputs: Any, h: Tensor) -> Tensor:
    g = Generator(h.device).manual_seed(seed)
    noise = torch.randn(h.shape, generator=g, device=h.device, dtype=h.dtype)
    return h + sigma * _deviation(h, axis) * noise


def _deviation(h: Tensor, axis: int) -> Tensor:
    """Of each feature over images and places."""
    others = [a for a in range(-h.ndim, 0) if a != axis]
    return h.detach().std(others, correction=0, keepdim=True)


def _right(logits: Tensor, labels: Tensor) -> float:
    return (logits.argmax(1) == labels).float().mean().item()


def _precision(right: Callable[[float], float], half: float) -> float:
    """1 / σ² where right(σ) falls to half, by halving an interval of log σ."""
    low, high = -3.0, 3.0
    if right(10**high) > half:
        return 0.0
    for _ in range(12):
        middle = (low + high) / 2
        low, high = (middle, high) if right(10**middle) > half else (low, middle)
    return 10 ** (-low - high)


def _by_layer(measures: Tensor, network: ProgressiveNetwork, shares: bool) -> Tensor:
    table = measures.view(len(network.columns), -1).T
    return table / table.sum(1, keepdim=True) if shares else table
