"""How what an answer gave is compared with what was expected, and how both are said in words."""

import re
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

FEW, LONG = 16, 600  # so many numbers of a table, and so many letters of a text, are shown


class Told(Exception):
    """What an answer did is judged already: the text is the verdict."""


def tried(function: Callable[..., Any], otherwise: Any, *arguments: Any) -> Any:
    """What the function returns, or `otherwise` where the learner's objects do not let it."""
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return otherwise


def same(a: Any, b: Any) -> bool:
    """Equal up to rounding, of one shape; nan equals nan, so that an overflow is recognised."""
    return tried(_equal, False, a, b)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, str | Told) or isinstance(b, str | Told):
        return a == b if isinstance(a, str) else isinstance(a, Told) and isinstance(b, Told)
    x, y = _numbers(a), _numbers(b)
    return x.shape == y.shape and bool(_close(x, y).all())


def _numbers(found: Any) -> Tensor:
    """Numbers of any kind, also in nested lists, as one tensor."""
    try:
        return torch.as_tensor(found).detach().cpu()
    except (TypeError, ValueError, RuntimeError):
        if not isinstance(found, list | tuple):
            raise
        return torch.stack([_numbers(part) for part in found])


def _close(x: Tensor, y: Tensor) -> Tensor:
    """Which entries are equal up to the rounding of the coarser of the two, float32 or half."""
    if x.is_complex() or y.is_complex():
        return torch.zeros(x.shape, dtype=torch.bool)
    half = [torch.finfo(z.dtype).eps for z in (x, y) if z.dtype in (torch.half, torch.bfloat16)]
    eps = max(half, default=0.0)
    near = {"rtol": max(1e-4, 4 * eps), "atol": max(1e-5, eps)}
    return torch.isclose(x.double(), y.double(), **near, equal_nan=True)


def apart(names: tuple[str, ...], want: Any, got: Any) -> tuple[str, str, str]:
    """Where two parts differ first, and both in words, with so many digits that one sees it."""
    x, y = _numbers(want), _numbers(got)
    if x.shape != y.shape:
        return in_words("", want, got)
    index = tuple(int(i) for i in (~_close(y, x)).nonzero()[0])
    axes = names if len(names) == len(index) else ["entry"] * len(index)
    place = ", ".join(f"{axis} {i}" for axis, i in zip(axes, index))
    a, b = (x, y) if x.numel() <= FEW else (x[index], y[index])
    p, q = float(x[index]), float(y[index])
    shows = (d for d in range(4, 18) if f"{p:.{d}g}" != f"{q:.{d}g}")
    digits = next(d for d in shows if f"{p:.{d - 1}f}" != f"{q:.{d - 1}f}")
    return in_words(place and f"{place} (counted from 0)", a, b, digits)


def in_words(place: str, want: Any, got: Any, digits: int = 4) -> tuple[str, str, str]:
    """A place, and two parts in words."""
    return place, short(want, digits), short(got, digits)


class _Words(reprlib.Repr):
    """Arguments and answers in a few words: many numbers are told by their shape."""

    def __init__(self, digits: int) -> None:
        super().__init__()
        self.digits = digits
        self.maxlist, self.maxother, self.maxstring = FEW, LONG, LONG

    def repr_Tensor(self, x: Tensor, level: int) -> str:
        if x.numel() > FEW:
            return f"numbers of shape {tuple(x.shape)}"
        table = (x.double() if x.is_floating_point() else x).detach().cpu().numpy()
        with np.printoptions(
            precision=self.digits - 1, suppress=True, threshold=20, linewidth=10_000
        ):
            return str(table) if table.ndim else self.repr1(table.item(), level)

    def repr_float(self, x: float, level: int) -> str:
        return f"{x:.{self.digits}g}"


def short(part: Any, digits: int = 4) -> str:
    """Anything in one short line."""
    kind = f", {part.layout} on {part.device}" if isinstance(part, Tensor) else ""
    unseen = f"{type(part).__name__} that cannot be shown{kind}"
    shown = tried(_Words(digits).repr, unseen, part)
    return " ".join(re.sub(r" at 0x\w+", "", shown).split())[:LONG]
