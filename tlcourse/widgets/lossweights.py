"""Three losses in one sum: what each task gets, by the weights of all three."""

from collections.abc import Mapping, Sequence
from typing import Any

import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Number, Position, array, module, number

TASK, RUN = ("name", "unit", "better", "alone", "learnt"), ("weights", "values")


class LossWeightsWidget(CourseWidget):
    """A triangle of weights for three losses; each dot in it is a recorded run.

    tasks: three dicts of name, unit, better ("higher" or "lower"), and what it gets alone and with
    learnt weights; weightings: at least three dicts of weights (>= 0, of sum 1) and values, by
    task; scale: "linear", or "log" where distances are ratios. at (which weighting, to begin with
    the most even one) and coloured_by (the task by which dots grow, or "") are synced:
    `widget.at = 3` moves the ring. Raises ValueError for what does not fit or is out of range.
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
        **state: Any,
    ) -> None:
        told = [dict(zip(TASK, _task(*_of("a task", TASK, task)))) for task in tasks]
        names = [task["name"] for task in told]
        fits = len(names) == 3 == len({*names} - {""})
        expect(fits, f"tasks must be three with different names, got {names}")
        given = [zip(RUN, _of("a weighting", RUN, each)) for each in weightings]
        runs = [{k: _three(f"{k} of weighting {i}", v) for k, v in g} for i, g in enumerate(given)]
        every = [*(run["weights"] for run in runs), _three("learnt_weights", learnt_weights)]
        apart, least = len({*map(tuple, every[:-1])}), min(map(min, every))
        got = f"got {len(runs)}, {apart} of them different"
        expect(len(runs) == apart >= 3, f"weightings must be at least three, all different, {got}")
        expect(least > 0 or state.get("scale") != "log", f"a log needs weights > 0, got {least:g}")
        self.many, even = len(runs), min(range(apart), key=lambda i: max(every[i]))
        self._known = {"scale": ["linear", "log"], "coloured_by": ["", *names]}
        state = {"at": even, "learnt_weights": every[-1]} | state
        super().__init__(tasks=told, weightings=runs, **state)

    @traitlets.validate("scale", "coloured_by")
    def _one_of(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        expect(value in self._known[name], f"{name} must be in {self._known[name]}, got {value!r}")
        return str(value)


def _of(what: str, keys: Sequence[str], given: Any) -> list[Any]:
    fits = isinstance(given, Mapping) and {*given} == {*keys}
    expect(fits, f"{what} must have {', '.join(keys)}, got {given!r}")
    return [given[key] for key in keys]


def _task(name: str, unit: str, better: str, *measured: Any) -> tuple[Any, ...]:
    known = better in ("higher", "lower")
    expect(known, f"better of {name!r} must be higher or lower, got {better!r}")
    return name, unit, better, *(number(f"{k} of {name!r}", x) for k, x in zip(TASK[3:], measured))


def _three(what: str, given: Any) -> list[float]:
    table = array(given)
    expect(table.shape == (3,), f"{what} must be three numbers, got {table.tolist()!r}")
    found = [number(f"every one of {what}", x) for x in table]
    fits = "values" in what or (min(found) >= 0 and abs(sum(found) - 1) <= 1e-6)
    expect(fits, f"{what} must be >= 0 and sum to 1, got {found}")
    return found
