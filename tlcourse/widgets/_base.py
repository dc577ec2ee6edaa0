"""What the widgets share in Python: their module's text, their look, and numbers as buffers."""

from math import inf, isfinite
from pathlib import Path
from typing import Any

import anywidget
import numpy as np
import traitlets

from tlcourse.methods._checks import expect

STATIC = Path(__file__).parent / "static"
STYLE = (STATIC / "tlc.css").read_text(encoding="utf-8")


def module(name: str) -> str:
    """The text of a widget's module, with what all of them share in front."""
    files = ("common.js", f"{name}.js")
    return "\n".join((STATIC / file).read_text(encoding="utf-8") for file in files)


def array(values: Any) -> np.ndarray:
    """Numbers of any kind as an array, those of torch also from a GPU or with a gradient."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def floats(values: Any) -> bytes:
    """Little-endian float32, in C order, as the browser reads them."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


def number(name: str, value: Any, low: float = -inf, high: float = inf) -> float:
    """A finite number in [low, high], also one of NumPy or torch, whose 0.3 in float32 is 0.3.

    Raises ValueError, with the argument's name, for anything else; true and false are no numbers.
    """
    scalar = array(value)[()]
    found = float(str(scalar)) if isinstance(scalar, np.floating | np.integer) else np.nan
    came = found if isfinite(found) else value
    wanted = "finite number" if (low, high) == (-inf, inf) else f"number in [{low:g}, {high:g}]"
    expect(isfinite(found) and low <= found <= high, f"{name} must be a {wanted}, got {came!r}")
    return found


class Number(traitlets.Float):
    """A number as `number` takes it, whenever it is set: JSON has no word for an infinite one."""

    def __init__(self, default: Any = 0.0, low: float = -inf, high: float = inf, **options: Any):
        super().__init__(default, **options)
        self.low, self.high = low, high

    def validate(self, obj: Any, value: Any) -> Any:
        """The number as a float. Raises ValueError."""
        return number(self.name or "every one of the numbers", value, self.low, self.high)


class Whole(traitlets.Int):
    """A whole number, also one of NumPy or torch."""

    def validate(self, obj: Any, value: Any) -> Any:
        """The number as an int. Raises TraitError."""
        return super().validate(obj, array(value)[()])


class Position(Whole):
    """Which of the widget's `many` pictures."""

    def validate(self, obj: Any, value: Any) -> Any:
        """The position as an int. Raises ValueError or TraitError."""
        at, many = super().validate(obj, value), obj.many
        expect(0 <= at < many, f"{self.name} must be in [0, {many}), got {at}")
        return at


class Flag(traitlets.Bool):
    """True or false, also of NumPy."""

    def validate(self, obj: Any, value: Any) -> Any:
        """The value as a bool. Raises TraitError."""
        return super().validate(obj, bool(value) if isinstance(value, np.bool_) else value)


class CourseWidget(anywidget.AnyWidget):
    """A widget in the course's look.

    Its text form is always the same (nbval compares it), and says what to do: it is what a notebook
    shows that is not trusted.
    """

    _css = STYLE
    many = 0

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is not None:
            bundle[0]["text/plain"] = f"Run this cell to see this {type(self).__name__}."
        return bundle
