"""Three losses in one sum: what each task gets, by the weights of all three."""

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Number, Position, array, module, number

TASK, RUN = ("name", "unit", "better", "alone", "learnt"), ("weights", "values")


class LossWeightsWidget(CourseWidget):
    """A triangle of weights for three losses; each dot in it is a recorded run.

    The learner moves from dot to dot, and sees what each task gets beside the task alone and
    weights that were learnt. tasks: three dicts of name, unit, better ("higher" or "lower"), alone
    and learnt; weightings: at least three dicts of three weights (>= 0, of sum 1) and the tasks'
    three values, in any order; learnt_weights: three, anywhere. scale: "linear", or "log" where
    distances are ratios of weights. at (which weighting; the most even one to begin with) and
    coloured_by (the task by which dots grow, or "") are synced, and may be set. Raises ValueError
    for shapes that do not fit and numbers out of range.
    """

    _esm = module("lossweights")
    tasks = traitlets.List(traitlets.Dict()).tag(sync=True)
    weightings = traitlets.List(traitlets.Dict()).tag(sync=True)
    learnt_weights = traitlets.List(Number()).tag(sync=True)
    scale = traitlets.Unicode("linear").tag(sync=True)
    at = Position(0).tag(sync=True)
    coloured_by = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        tasks: Sequence[Mapping[str, Any]],
        weightings: Sequence[Mapping[str, Any]],
        learnt_weights: Any,
        *,
        at: int | None = None,
        **state: Any,
    ) -> None:
        expect(len(tasks) == 3, f"tasks must be three, got {len(tasks)}")
        self._names = [str(_keys("a task", task, TASK)["name"]) for task in tasks]
        fits = len({*self._names} - {""}) == 3
        expect(fits, f"tasks must have three different names, got {self._names}")
        for name, task in zip(self._names, tasks):
            better = task["better"]
            fits = better in ("higher", "lower")
            expect(fits, f"better of {name!r} must be higher or lower, got {better!r}")
        found = [
            {**task, **{k: number(f"{k} of {task['name']!r}", task[k]) for k in TASK[3:]}}
            for task in tasks
        ]
        expect(len(weightings) >= 3, f"weightings must be at least three, got {len(weightings)}")
        recorded = [
            {k: _three(f"{k} of weighting {i}", _keys("a weighting", w, RUN)[k]) for k in RUN}
            for i, w in enumerate(weightings)
        ]
        every = [*(w["weights"] for w in recorded), _three("learnt_weights", learnt_weights)]
        apart = len({*map(tuple, every[:-1])})
        expect(apart == len(recorded), f"weightings must differ, got {len(recorded)} of {apart}")
        low = min(map(min, every))
        expect(state.get("scale") != "log" or low > 0, f"a log needs weights > 0, got {low:g}")
        even = min(range(len(recorded)), key=lambda i: max(every[i]))
        self.many, state["at"] = len(recorded), even if at is None else at
        super().__init__(tasks=found, weightings=recorded, learnt_weights=every[-1], **state)

    @traitlets.validate("scale", "coloured_by")
    def _one_of(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        known = ["linear", "log"] if name == "scale" else ["", *self._names]
        expect(value in known, f"{name} must be one of {known}, got {value!r}")
        return str(value)


def _keys(what: str, given: Any, keys: Sequence[str]) -> Mapping[str, Any]:
    fits = isinstance(given, Mapping) and {*given} == {*keys}
    expect(fits, f"{what} must have {', '.join(keys)}, got {given!r}")
    return dict(given)


def _three(what: str, given: Any) -> list[float]:
    """Three numbers; weights must sum to 1."""
    table = array(given)
    expect(table.shape == (3,), f"{what} must be three numbers, got {table.tolist()!r}")
    found = [number(f"every one of {what}", x) for x in table]
    fits = "weights" not in what or (min(found) >= 0 and abs(sum(found) - 1) <= 1e-6)
    expect(fits, f"{what} must be >= 0 and sum to 1, got {found}")
    return found
