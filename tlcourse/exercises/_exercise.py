"""An exercise is a reference, inputs to draw, and the mistakes people make with their diagnoses."""

import dis
import inspect
import random
import re
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from types import CodeType
from typing import Any, Literal

import numpy as np
import torch
from torch import Generator
from torch.random import fork_rng

from tlcourse.exercises._compare import LONG, Told, apart, in_words, same, short, tried

Function = Callable[..., Any]
SIZES = (1, 2, 3, 4, 5, 6, 7, 8)  # inputs grow, so that the first one that differs is the smallest
CHANGED = "Not yet: the function changes its arguments; work on copies."


def value(function: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What the function returns: most exercises look at that."""
    return {"": function(**inputs)}


@dataclass(frozen=True)
class Exercise:
    """What to do, and how an answer is judged.

    task: holds the signature in backticks. kind: complete a stub, repair a wrong version, or write
    it anew; difficulty: 1 to 3. draw(generator, size) gives the arguments by name, larger with
    size. mistakes: pairs of a diagnosis, which is true of all that computes the same, and a wrong
    version. see(function, arguments) gives what is compared with the reference, part by part.
    axes: what the dimensions of a table are.
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
    see: Callable[[Function, Mapping[str, Any]], dict[str, Any]] = value
    axes: tuple[str, ...] = ("image", "class")
    core: bool = False

    @property
    def signature(self) -> str:
        """How the answer is called: its name and arguments."""
        return re.findall(r"`(my_\w+\([^)]*\))`", self.task)[0]


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
            found.append(_seen(exercise, _called(exercise, answer), inputs))
        except KeyboardInterrupt:
            raise
        except Told as told:
            return str(told)
        except BaseException as error:
            return tried(_crash, f"Not yet: {type(error).__name__}", error, answer)
        if not _alike(inputs, case):
            return CHANGED
    return _compared(exercise, cases, found)


def _compared(exercise: Exercise, cases: Sequence[Mapping[str, Any]], found: Sequence[Any]) -> str:
    expected = [_seen(exercise, exercise.reference, deepcopy(case)) for case in cases]
    if all(map(_alike, found, expected)):
        return "Right."
    for diagnosis, wrong in exercise.mistakes:
        pairs = zip(found, deepcopy(cases))
        if all(_alike(got, _seen(exercise, wrong, case)) for got, case in pairs):
            return f"Not yet: {diagnosis}"
    triples = zip(cases, expected, found)
    case, want, got = next(triple for triple in triples if not _alike(triple[2], triple[1]))
    for told in got.values():
        if isinstance(told, Told):
            return str(told)
    part = next(part for part in want if not same(got[part], want[part]))
    given = ", ".join(f"{name} = {short(value)}" for name, value in case.items())
    pair = want[part], got[part]
    place, *sides = tried(apart, in_words("", *pair), exercise.axes, *pair)
    what = ", ".join(word for word in (part, place) if word)
    lines = [what, f"expected {sides[0]}", f"got      {sides[1]}"]
    return "\n  ".join([f"Not yet. For {given}", *(line for line in lines if line)])


def _seen(exercise: Exercise, function: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
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


def _called(exercise: Exercise, answer: Function) -> Function:
    """The answer, called by the names of the arguments or, where it has others, by their places."""

    def called(**arguments: Any) -> Any:
        named = _takes(answer, **arguments)
        if not named and not _takes(answer, *arguments.values()):
            raise Told(f"Not yet: its arguments do not fit; write it as `{exercise.signature}`.")
        found = answer(**arguments) if named else answer(*arguments.values())
        if found is None or found is ...:
            raise Told(_unfinished(answer, found))
        return found

    return called


def _takes(answer: Function, *args: Any, **kwargs: Any) -> bool:
    try:
        inspect.signature(answer).bind(*args, **kwargs)
    except TypeError:
        return False
    except ValueError:  # it does not say
        return not kwargs
    return True


def _unfinished(answer: Function, found: Any) -> str:
    """A stub looks at nothing that it is given, and at nothing else."""
    code = getattr(inspect.unwrap(answer), "__code__", None)
    looks = ("LOAD_FAST", "LOAD_GLOBAL", "LOAD_DEREF")
    if isinstance(code, CodeType) and not any(
        step.opname.startswith(looks) for step in dis.get_instructions(code)
    ):
        return "Not attempted yet: the function returns nothing."
    if found is ...:
        return "Not yet: the function still returns `...`."
    return "Not yet: the function computes something but returns nothing. Is a `return` missing?"


def _alike(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    return all(same(found[part], expected[part]) for part in expected)


def _crash(error: BaseException, answer: Function) -> str:
    """Which line of the learner's code stopped, in its own words."""
    text = tried(str, "its text cannot be shown", error)[:LONG]
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
