"""Numbers that say how good a network is, and how a sequence of tasks went.

For T tasks learnt one after the other, R[i, j] is the accuracy on task j after learning task i,
both counted from 0. Entries that a measure does not use may be NaN; with one task only, nothing can
be transferred or forgotten, and those measures are NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from tlcourse.methods._checks import class_labels, expect


def errors(logits: Tensor, labels: Tensor) -> int:
    """How many of the N images get the wrong class. logits: (N, K); labels: (N,) whole numbers.

    Raises ValueError for labels of another shape or kind, and (on a CPU) outside [0, K).
    """
    labels = class_labels(labels, logits).to(logits.device)
    return int((logits.argmax(1) != labels).sum())


def average_accuracy(R: ArrayLike) -> float:
    """Mean accuracy over all T tasks after the last one. R: (T, T).

    Raises ValueError if R is not square. Lopez-Paz and Ranzato 2017.
    """
    return float(_square(R)[-1].mean())


def backward_transfer(R: ArrayLike) -> float:
    """How much better each earlier task is at the end than right after it was learnt.

    Mean of R[T-1, j] − R[j, j] over j < T-1. R: (T, T). Below 0 where tasks are forgotten, NaN for
    T = 1. Raises ValueError if R is not square. Lopez-Paz and Ranzato 2017.
    """
    R = _square(R)
    return _mean(R[-1, :-1] - R.diagonal()[:-1])


def forward_transfer(R: ArrayLike, b: ArrayLike) -> float:
    """How much better than b each later task is just before it is learnt.

    Mean of R[j-1, j] − b[j] over j ≥ 1. R: (T, T); b: (T,), the accuracy of an untrained network on
    each task. NaN for T = 1. Raises ValueError if R is not square or b does not fit.
    Lopez-Paz and Ranzato 2017.
    """
    R, b = _square(R), np.asarray(b, dtype=float)
    expect(b.shape == (len(R),), f"b must have shape ({len(R)},), got {b.shape}")
    return _mean(R.diagonal(offset=1) - b[1:])


def forgetting(R: ArrayLike) -> float:
    """How far each earlier task is, at the end, below its best accuracy before the last task.

    Mean over j < T-1 of the largest R[l, j], l < T-1, minus R[T-1, j]. R: (T, T). Below 0 where the
    last task improves the earlier ones, NaN for T = 1. Raises ValueError if R is not square.
    Chaudhry et al. 2018, "Riemannian walk", section 3.
    """
    R = _square(R)
    if len(R) == 1:
        return float("nan")
    return _mean(np.fmax.reduce(R[:-1, :-1]) - R[-1, :-1])


def _square(R: ArrayLike) -> NDArray[np.float64]:
    matrix = np.asarray(R, dtype=float)
    fits = matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1] > 0
    expect(fits, f"R must have shape (T, T) with T >= 1, got {matrix.shape}")
    return matrix


def _mean(differences: NDArray[np.float64]) -> float:
    return float(differences.mean()) if len(differences) else float("nan")
