"""What several ways of learning remember while one task is learnt after the other."""

from collections.abc import Mapping, Sequence
from math import isclose
from typing import Any

import numpy as np
import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Number, array, floats, module, number


class ForgettingWidget(CourseWidget):
    """Accuracy on every task along training: one panel a task, one line a way of learning.

    A slider moves the weight of one of them.
    tasks: J names in the order they are learnt; starts: J positions, rising from 0, at which the
    learning of each begins; by_weight: weight to (P, J) accuracies in percent at P positions, NaN
    before a task is learnt; others: name to (P, J), up to three ways without a slider. name: of the
    way with the slider; weight: one of by_weight to begin with (the middle one without). weight and
    shown (names of the lines) are synced: `widget.weight = 3` moves the slider. Below stand mean
    accuracy and forgetting at the end, as `tlcourse.metrics` has them. Raises ValueError for shapes
    that do not fit, and values out of range.
    """

    _esm = module("forgetting")
    weight = Number().tag(sync=True)
    shown = traitlets.List(traitlets.Unicode()).tag(sync=True)
    tasks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    weights = traitlets.List(Number()).tag(sync=True)
    starts = traitlets.List(traitlets.Int()).tag(sync=True)
    accuracy = traitlets.Bytes(b"").tag(sync=True)

    def __init__(
        self,
        tasks: Sequence[str],
        starts: Sequence[int],
        by_weight: Mapping[float, Any],
        others: Mapping[str, Any],
        *,
        name: str = "LwF",
        weight: float | None = None,
    ) -> None:
        expect(len(tasks) >= 2, f"tasks must be at least two names, got {list(tasks)}")
        expect(len(by_weight) >= 1, "by_weight must hold at least one weight, got none")
        expect(
            len(others) <= 3 and name not in others,
            f"others must be up to three ways, none of them {name!r}, got {', '.join(others)}",
        )
        grid = {number("each weight of by_weight", w): line for w, line in by_weight.items()}
        weights = sorted(grid)
        given = [*(grid[w] for w in weights), *others.values()]
        lines = [array(line).astype(np.float64) for line in given]
        P = len(np.atleast_1d(lines[0]))
        for which, line in zip([*(f"{name} at {w:g}" for w in weights), *others], lines):
            expect(
                line.shape == (P, len(tasks)),
                f"accuracies of {which!r} must have shape ({P}, {len(tasks)}), got {line.shape}",
            )
        begin = array(starts)
        rising = begin.shape == (len(tasks),) and begin.dtype.kind in "iu" and begin[0] == 0
        expect(
            rising and bool((np.diff([*begin, P]) > 0).all()),
            f"starts must be {len(tasks)} positions rising from 0 and below {P}, "
            f"got {begin.tolist()}",
        )
        for line in lines:
            there = np.arange(P)[:, None] >= begin
            inside = ((line >= 0) & (line <= 100))[there].all() and np.isnan(line[~there]).all()
            expect(
                bool(inside),
                "accuracies must be in [0, 100] from a task's start on, and NaN before",
            )
        self._grid = weights
        super().__init__(
            weight=weights[len(weights) // 2] if weight is None else weight,
            shown=[name, *others],
            tasks=list(tasks),
            names=[name, *others],
            weights=weights,
            starts=begin.tolist(),
            accuracy=floats(np.stack(lines)),
        )

    @traitlets.validate("weight")
    def _on_the_grid(self, proposal: Any) -> float:
        weight = min(self._grid, key=lambda w: abs(w - proposal["value"]))
        grid = ", ".join(f"{w:g}" for w in self._grid)
        expect(
            isclose(weight, proposal["value"], rel_tol=1e-6),
            f"weight must be one of {grid}, got {proposal['value']:g}",
        )
        return weight
