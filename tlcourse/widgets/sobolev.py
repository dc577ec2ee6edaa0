"""Two fits of a curve through points that the learner moves: values alone, or values and slopes."""

from typing import Any

import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Number, array, module, number


class Points(traitlets.List):
    """Three to seven places in [-1, 1], also an array of NumPy or torch."""

    def validate(self, obj: Any, value: Any) -> Any:
        """The places as a list of floats. Raises ValueError."""
        given = array(value)
        fits = given.ndim == 1 and 3 <= len(given) <= 7
        expect(fits, f"points must be 3 to 7 numbers, got {given.tolist()!r}")
        return [number("every one of the points", x, -1, 1) for x in given]


class Waves(traitlets.List):
    """One to three sines, each as amplitude, frequency and phase."""

    def validate(self, obj: Any, value: Any) -> Any:
        """The sines as lists of floats. Raises ValueError."""
        given = array(value)
        fits = given.shape in ((1, 3), (2, 3), (3, 3))
        expect(fits, f"waves must have shape (1, 3), (2, 3) or (3, 3), got {given.shape}")
        ends = {"every amplitude": 10, "every frequency": 20, "every phase": 10}
        return [[number(n, x, -ends[n], ends[n]) for n, x in zip(ends, wave)] for wave in given]


class SobolevWidget(CourseWidget):
    """Sobolev training in closed form: a function is told at points, with its slopes or without.

    Both fits are the posterior mean of a Gaussian process with kernel exp(-(x - x')² / 2l²): n
    equations for the values, 2n for values and slopes. points: 3 to 7 places in [-1, 1];
    length_scale: l in [0.1, 0.6]; slope_error: in [0, 1], size of a ripple in the slopes that are
    told, as a share of the target's typical slope (root mean square); waves: the target, one to
    three sines a·sin(ωx + φ) as rows (a, ω, φ). All are synced: `widget.points` says where the
    learner left them. Raises ValueError for shapes that do not fit and values out of range.
    """

    _esm = module("sobolev")
    points = Points().tag(sync=True)
    length_scale = Number(0.3, 0.1, 0.6).tag(sync=True)
    slope_error = Number(0.0, 0.0, 1.0).tag(sync=True)
    waves = Waves().tag(sync=True)

    def __init__(
        self,
        points: Any = (-0.9, -0.3, 0.3, 0.9),
        *,
        length_scale: float = 0.3,
        slope_error: float = 0.0,
        waves: Any = ((1.0, 3.0, 0.4), (0.5, 8.0, 1.0)),
    ) -> None:
        options = {"length_scale": length_scale, "slope_error": slope_error}
        super().__init__(points=points, waves=waves, **options)
