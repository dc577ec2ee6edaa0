"""Argument checks: one sentence that names the argument, what came and what was expected."""

import math
from numbers import Integral

import torch
from torch import Tensor

WHOLE = {torch.int8, torch.int16, torch.int32, torch.int64}
WHOLE |= {torch.uint8, torch.uint16, torch.uint32, torch.uint64}


def expect(condition: bool, message: str) -> None:
    """Raise ValueError(message) unless the condition holds."""
    if not condition:
        raise ValueError(message)


def expect_counts(what: str, *numbers: object) -> None:
    """Raise ValueError unless all are whole numbers >= 1: `what` is "n must be a whole number"."""
    whole = [isinstance(n, Integral) and not isinstance(n, bool) and int(n) > 0 for n in numbers]
    came = ", ".join(map(repr, numbers)) or "none"
    expect(bool(whole) and all(whole), f"{what} >= 1, got {came}")


def expect_labels(labels: Tensor, logits: Tensor, name: str = "labels") -> None:
    """Raise ValueError unless labels are whole numbers (N,) in [0, K), for logits (N, K).

    The range is looked at on a CPU only: elsewhere it would have to wait for the device.
    """
    if logits.ndim != 2:
        raise ValueError(f"logits must have shape (N, K), got {tuple(logits.shape)}")
    if not isinstance(labels, Tensor):
        raise ValueError(f"{name} must be a tensor, got {type(labels).__name__}")
    if labels.shape != logits.shape[:1]:
        got = tuple(labels.shape)
        raise ValueError(f"{name} must have shape ({len(logits)},) like the logits, got {got}")
    if labels.dtype not in WHOLE:
        raise ValueError(f"{name} must be whole numbers, got {labels.dtype}")
    if labels.is_cpu and len(labels):
        low, high = (int(end) for end in labels.long().aminmax())
        K = logits.shape[1]
        if low < 0 or high >= K:
            raise ValueError(f"{name} must be in [0, {K}), got {low} to {high}")


def class_labels(labels: Tensor, logits: Tensor) -> Tensor:
    """The labels (N,) of logits (N, K) as int64, checked by `expect_labels`."""
    expect_labels(labels, logits)
    return labels.long()


def wide(x: Tensor) -> Tensor:
    """Half-precision (and whole) numbers as float32, since squares and sums may overflow."""
    full = x.dtype in (torch.float32, torch.float64)
    return x if full else x.to(torch.promote_types(x.dtype, torch.float32))


def expect_floating(name: str, x: Tensor) -> None:
    """Raise ValueError unless x holds floating point numbers."""
    expect(x.is_floating_point(), f"{name} must be floating point, got {x.dtype}")


def expect_same_shape(names: str, a: Tensor, b: Tensor) -> None:
    """Raise ValueError unless both have one shape."""
    if a.shape != b.shape:
        shapes = f"{tuple(a.shape)} and {tuple(b.shape)}"
        raise ValueError(f"{names} must have the same shape, got {shapes}")


def expect_weight(name: str, value: float) -> None:
    """Raise ValueError unless value is a finite number >= 0."""
    expect(0 <= value < math.inf, f"{name} must be a finite number >= 0, got {value}")
