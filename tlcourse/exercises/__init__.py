"""Exercises that say what is wrong: `exercise(name)` shows one, `check(name, answer)` judges."""

import sys

from tlcourse.exercises import (
    adaptation,
    attention,
    distillation,
    fine_tuning,
    growing,
    jacobian,
    lwf,
    multi_task,
    on_average,
    scenarios,
    selective,
)
from tlcourse.exercises._box import box, fold, source
from tlcourse.exercises._exercise import Exercise, verdict
from tlcourse.methods._checks import expect

EXERCISES: dict[str, Exercise] = {
    **scenarios.EXERCISES,
    **adaptation.EXERCISES,
    **fine_tuning.EXERCISES,
    **growing.EXERCISES,
    **distillation.EXERCISES,
    **attention.EXERCISES,
    **jacobian.EXERCISES,
    **on_average.EXERCISES,
    **selective.EXERCISES,
    **multi_task.EXERCISES,
    **lwf.EXERCISES,
}
_given: dict[str, int] = {}  # hints so far


def find(name: str) -> Exercise:
    """An exercise by name. Raises ValueError with the names there are."""
    known = isinstance(name, str) and name in EXERCISES
    expect(known, f"there is no exercise {name!r}; there are {', '.join(EXERCISES)}")
    return EXERCISES[name]


def exercise(name: str) -> None:
    """Show an exercise, hints and solution folded. Raises ValueError for an unknown name."""
    box(find(name))


def check(name: str, answer: object) -> None:
    """Print a short verdict on an answer, a function like the stub's: right, or what is wrong.

    Whatever the answer does, the notebook goes on. Raises ValueError only for an unknown name.
    """
    _say(verdict(find(name), answer))


def hint(name: str) -> None:
    """Print the next hint, from soft to strong. Raises ValueError for an unknown name."""
    hints = find(name).hints
    given = _given[name] = _given.get(name, 0) + 1
    more = given <= len(hints)
    said = f"Hint {given} of {len(hints)}: {hints[given - 1]}" if more else "No more hints."
    _say(said if more else f'{said} solution("{name}") shows ours.')


def solution(name: str) -> None:
    """Fold out the package's own source. Raises ValueError for an unknown name."""
    fold("Solution", source(find(name)))


def _say(text: str) -> None:
    """Print, also what the terminal's encoding has no letter for."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding))
