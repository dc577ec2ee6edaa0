"""Numbers that say how good a network is."""

from torch import Tensor

from tlcourse.methods._checks import expect


def errors(logits: Tensor, labels: Tensor) -> int:
    """How many of the N images get the wrong class. logits: (N, K); labels: (N,). Raises ValueError if N differs."""
    expect(len(logits) == len(labels), f"logits and labels must have the same length, got {len(logits)} and {len(labels)}")
    return int((logits.argmax(1) != labels).sum())
