"""An exercise is a reference, a way to draw inputs, and the mistakes that people make, each with
its diagnosis.
"""

import inspect
import linecache
import traceback
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor

Function = Callable[..., Any]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8)  # inputs grow, so that the first one that differs is the smallest
FEW = 16  # so many numbers of a table are shown


def value(function: Function, inputs: Mapping[str, Any]) -> Any:
    """What most exercises look at: what the function returns."""
    return function(**inputs)


@dataclass(frozen=True)
class Exercise:
    """What to do, and how an answer is judged.

    kind: complete a stub, repair a wrong version, or write it anew; difficulty: 1 to 3.
    draw(generator, size) gives the arguments by name, larger with size. mistakes: pairs of a
    diagnosis and a wrong version. see(function, arguments) is what is compared with the reference.
    """

    title: str
    task: str
    kind: Literal["complete", "repair", "write"]
    difficulty: int
    minutes: int
    reference: Function
    draw: Callable[[Generator, int], dict[str, Any]]
    mistakes: Sequence[tuple[str, Function]]
    hints: Sequence[str]
    see: Callable[[Function, Mapping[str, Any]], Any] = value
    core: bool = False


def verdict(exercise: Exercise, answer: object) -> str:
    """One sentence on an answer. Never raises on what the answer does."""
    if answer is None or answer is ...:
        return "Not attempted yet."
    if not callable(answer):
        return f"Give the function itself: check(name, function), got {type(answer).__name__}."
    with torch.random.fork_rng(devices=[]):
        return _judged(exercise, answer)


def _judged(exercise: Exercise, answer: Function) -> str:
    cases = [exercise.draw(Generator().manual_seed(size), size) for size in SIZES]
    found = []
    for case in cases:
        inputs = deepcopy(case)
        try:
            got = exercise.see(_attempted(answer), inputs)
        except NotImplementedError as nothing:
            return f"Not attempted yet{f': {nothing}' if nothing.args else ''}."
        except (Exception, SystemExit) as error:
            return _crash(error, answer)
        if not all(_same(inputs[name], case[name]) for name in case):
            return "Not yet: the function changes its arguments; work on copies."
        found.append(got)
    expected = [exercise.see(exercise.reference, deepcopy(case)) for case in cases]
    if all(map(_same, found, expected)):
        return "Right."
    for diagnosis, wrong in exercise.mistakes:
        if all(_same(got, exercise.see(wrong, deepcopy(case))) for got, case in zip(found, cases)):
            return f"Not yet: {diagnosis}"
    case, want, got = next(
        triple for triple in zip(cases, expected, found) if not _same(triple[2], triple[1])
    )
    given = ", ".join(f"{name} = {_short(part)}" for name, part in case.items())
    return f"Not yet. For {given}\n  expected {_short(want)}\n  got      {_short(got)}"


def _attempted(answer: Function) -> Function:
    """The same function, which says so when it returns nothing."""

    @wraps(answer)
    def attempted(*args: Any, **kwargs: Any) -> Any:
        found = answer(*args, **kwargs)
        if found is None or found is ...:
            raise NotImplementedError("the function returns nothing")
        return found

    return attempted


def trainable(loss: Any, of: str) -> Tensor:
    """The loss as it is. Raises TypeError, for the learner to read, unless it is one number that is
    computed from the argument `of`.
    """
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise TypeError(
            f"the loss must be one number, a tensor of no dimensions that is computed from {of}"
        )
    return loss


def _same(a: Any, b: Any) -> bool:
    """Equal up to rounding; nan equals nan, so that an overflow is recognised. Shapes must agree.
    Of lists each part.
    """
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    try:
        x, y = (torch.as_tensor(part).detach().double() for part in (a, b))
    except (TypeError, ValueError, RuntimeError):
        return False
    return x.shape == y.shape and bool(torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True))


def _short(part: Any) -> str:
    """An argument or an answer, in a few words: many numbers are told by their shape."""
    if isinstance(part, Tensor) and part.ndim > 1 and part.numel() > FEW:
        return f"numbers of shape {tuple(part.shape)}"
    if isinstance(part, Tensor):
        part = part.detach()
        part = part.float() if part.is_floating_point() else part
        with np.printoptions(precision=3, suppress=True, threshold=20, linewidth=10_000):
            return " ".join(str(part.tolist() if part.ndim == 0 else part.numpy()).split())
    if isinstance(part, list | tuple):
        return f"[{', '.join(map(_short, part))}]"
    return f"{part:.4g}" if isinstance(part, float) else repr(part)


def _crash(error: BaseException, answer: Function) -> str:
    """Which line of the learner's code stopped, in its own words."""
    what = f"{type(error).__name__}: {error}"
    code = getattr(inspect.unwrap(answer), "__code__", None)
    lines = [
        frame
        for frame in traceback.extract_tb(error.__traceback__)
        if code and frame.filename == code.co_filename
    ]
    if not lines:
        return f"Not yet: {what}"
    last = lines[-1]
    text = (last.line or linecache.getline(last.filename, last.lineno or 0)).strip()
    return f"Your code stopped at line {last.lineno} of its cell, `{text}`\n  {what}"
