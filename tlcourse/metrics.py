"""Numbers that say how good a network is, and how a sequence of tasks went.

For T tasks learnt one after the other, R[i, j] is the accuracy on task j after learning task i,
both counted from 0. Entries that a measure does not use may be NaN; with one task only, nothing can
be transferred or forgotten, and those measures are NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tlcourse.methods._checks import expect


def errors(logits: Tensor, labels: Tensor) -> int:
    """How many of the N images get the wrong class. logits: (N, K); labels: (N,). Raises ValueError
    if N differs.
    """
    expect(
        len(logits) == len(labels),
        f"logits and labels must have the same length, got {len(logits)} and {len(labels)}",
    )
    return int((logits.argmax(1) != labels).sum())


def average_accuracy(R: ArrayLike) -> float:
    """Mean accuracy over all T tasks after the last one. R: (T, T). Raises ValueError if R is not
    square. Lopez-Paz and Ranzato 2017.
    """
    return float(_square(R)[-1].mean())


def backward_transfer(R: ArrayLike) -> float:
    """How much better each earlier task is at the end than right after it was learnt, R[T-1, j] −
    R[j, j], mean over j < T-1.

    R: (T, T). Below 0 where tasks are forgotten, NaN for T = 1. Raises ValueError if R is not
    square. Lopez-Paz and Ranzato 2017.
    """
    R = _square(R)
    return _mean(R[-1, :-1] - R.diagonal()[:-1])


def forward_transfer(R: ArrayLike, b: ArrayLike) -> float:
    """How much better than b each later task is just before it is learnt, R[j-1, j] − b[j], mean
    over j ≥ 1.

    R: (T, T); b: (T,), the accuracy of an untrained network on each task. NaN for T = 1.
    Raises ValueError if R is not square or b does not fit. Lopez-Paz and Ranzato 2017.
    """
    R, b = _square(R), np.asarray(b, dtype=float)
    expect(b.shape == (len(R),), f"b must have shape ({len(R)},), got {b.shape}")
    return _mean(R.diagonal(offset=1) - b[1:])


def forgetting(R: ArrayLike) -> float:
    """From the best accuracy a task had before the last one to the accuracy at the end: max over l
    < T-1 of R[l, j] − R[T-1, j].

    Mean over j < T-1. R: (T, T). Below 0 where the last task improves the earlier ones, NaN for T =
    1. Raises ValueError if R is not square. Chaudhry et al. 2018, "Riemannian walk", section 3.
    """
    R = _square(R)
    if len(R) == 1:
        return float("nan")
    return _mean(np.nanmax(R[:-1, :-1], axis=0) - R[-1, :-1])


def _square(R: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(R, dtype=float)
    shape = matrix.shape
    expect(
        matrix.ndim == 2 and shape[0] == shape[1] > 0,
        f"R must have shape (T, T) with T >= 1, got {shape}",
    )
    return matrix


def _mean(differences: NDArray[np.float64]) -> float:
    return float(differences.mean()) if len(differences) else float("nan")
