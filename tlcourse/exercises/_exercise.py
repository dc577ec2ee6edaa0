"""An exercise is a reference, inputs to draw, and the mistakes people make with their diagnoses."""

import inspect
import random
import re
import reprlib
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator, Tensor
from torch.random import fork_rng

Function = Callable[..., Any]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8)  # inputs grow, so that the first one that differs is the smallest
FEW, LONG = 16, 600  # so many numbers of a table, and so many letters of a text, are shown


def value(function: Function, inputs: Mapping[str, Any]) -> Any:
    """What the function returns: most exercises look at that."""
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
    """One sentence on an answer. Never raises on what the answer does; only Ctrl-C goes through.

    Seeds and settings are afterwards as they were, whatever the answer does to them.
    """
    if answer is None or answer is ...:
        return "Not attempted yet."
    if not callable(answer):
        return f"Give the function itself: check(name, function), got {type(answer).__name__}."
    with _undone():
        return _judged(exercise, answer)


def _judged(exercise: Exercise, answer: Function) -> str:
    cases = [exercise.draw(Generator().manual_seed(size), size) for size in SIZES]
    found = []
    for case in cases:
        inputs = deepcopy(case)
        try:
            found.append(_seen(exercise, _attempted(answer), inputs))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return _tried(_crash, f"Not yet: {type(error).__name__}", error, answer)
        if not all(_same(inputs[name], case[name]) for name in case):
            return "Not yet: the function changes its arguments; work on copies."
    return _compared(exercise, cases, found)


def _compared(exercise: Exercise, cases: Sequence[Mapping[str, Any]], found: Sequence[Any]) -> str:
    expected = [_seen(exercise, exercise.reference, deepcopy(case)) for case in cases]
    if all(map(_same, found, expected)):
        return "Right."
    for diagnosis, wrong in exercise.mistakes:
        pairs = zip(found, deepcopy(cases))
        if all(_same(got, _seen(exercise, wrong, case)) for got, case in pairs):
            return f"Not yet: {diagnosis}"
    triples = zip(cases, expected, found)
    case, want, got = next(triple for triple in triples if not _same(triple[2], triple[1]))
    given = ", ".join(f"{name} = {_short(part)}" for name, part in case.items())
    return f"Not yet. For {given}\n  expected {_short(want)}\n  got      {_short(got)}"


def _seen(exercise: Exercise, function: Function, inputs: Mapping[str, Any]) -> Any:
    with _undone():
        return exercise.see(function, inputs)


@contextmanager
def _undone() -> Iterator[None]:
    """Run something on torch's own settings; seeds and settings are afterwards as they were."""
    drawn, thrown = np.random.get_state(), random.getstate()
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    strict = torch.get_deterministic_debug_mode()
    gpus = range(torch.cuda.device_count() if torch.cuda.is_initialized() else 0)
    with fork_rng(gpus), torch.enable_grad(), np.errstate(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
        try:
            yield
        finally:
            np.random.set_state(drawn)
            random.setstate(thrown)
            torch.set_default_dtype(dtype)
            torch.set_default_device(None if device.type == "cpu" else device)
            torch.set_deterministic_debug_mode(strict)


def _attempted(answer: Function) -> Function:
    """The same function, which says so when it returns nothing."""

    def attempted(*args: Any, **kwargs: Any) -> Any:
        found = answer(*args, **kwargs)
        if found is None or found is ...:
            raise NotImplementedError("the function returns nothing")
        return found

    return attempted


def trainable(loss: Any, of: str) -> Tensor:
    """The loss as it is. Raises TypeError unless it is one number that is computed from `of`."""
    wanted = f"one number, a tensor of no dimensions that is computed from {of}"
    if not isinstance(loss, Tensor) or loss.ndim != 0 or not loss.requires_grad:
        raise TypeError(f"the loss must be {wanted}")
    return loss


def _tried(function: Function, otherwise: Any, *arguments: Any) -> Any:
    """What the function returns, or `otherwise` where the learner's objects do not let it."""
    try:
        return function(*arguments)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return otherwise


def _same(a: Any, b: Any) -> bool:
    """Equal up to rounding, of one shape; nan equals nan, so that an overflow is recognised."""
    return _tried(_equal, False, a, b)


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, list | tuple) and isinstance(b, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    x, y = (torch.as_tensor(part).detach().cpu() for part in (a, b))
    if x.shape != y.shape or x.is_complex() or y.is_complex():
        return False
    return torch.allclose(x.double(), y.double(), rtol=1e-4, atol=1e-5, equal_nan=True)


class _Words(reprlib.Repr):
    """Arguments and answers in a few words: many numbers are told by their shape."""

    def repr_Tensor(self, x: Tensor, level: int) -> str:
        if x.ndim > 1 and x.numel() > FEW:
            return f"numbers of shape {tuple(x.shape)}"
        table = (x.float() if x.is_floating_point() else x).detach().cpu().numpy()
        with np.printoptions(precision=3, suppress=True, threshold=20, linewidth=10_000):
            return str(table.tolist() if table.ndim == 0 else table)

    def repr_float(self, x: float, level: int) -> str:
        return f"{x:.4g}"


_words = _Words()
vars(_words).update(maxlist=FEW, maxother=LONG, maxstring=LONG)


def _short(part: Any) -> str:
    kind = f", {part.layout} on {part.device}" if isinstance(part, Tensor) else ""
    shown = _tried(_words.repr, f"{type(part).__name__} that cannot be shown{kind}", part)
    return " ".join(re.sub(r" at 0x\w+", "", shown).split())[:LONG]


def _crash(error: BaseException, answer: Function) -> str:
    """Which line of the learner's code stopped, in its own words."""
    text = _tried(str, "its text cannot be shown", error)[:LONG]
    if isinstance(error, NotImplementedError):
        return f"Not attempted yet{f': {text}' if error.args else ''}."
    what = f"{type(error).__name__}: {text}"
    code = getattr(inspect.unwrap(answer), "__code__", None)
    stack = traceback.extract_tb(error.__traceback__)
    lines = [frame for frame in stack if code and frame.filename == code.co_filename]
    if not lines:
        return f"Not yet: {what}"
    at = lines[-1]
    return f"Your code stopped at line {at.lineno} of its cell, `{at.line}`\n  {what}"
