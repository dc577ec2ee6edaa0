"""What the widgets share in Python: their module's text, their look, and numbers as buffers."""

from pathlib import Path
from typing import Any

import anywidget
import numpy as np

STATIC = Path(__file__).parent / "static"
STYLE = (STATIC / "tlc.css").read_text()


def module(name: str) -> str:
    """The text of a widget's module, with what all of them share in front."""
    return "\n".join((STATIC / file).read_text() for file in ("common.js", f"{name}.js"))


def floats(values: Any) -> bytes:
    """Little-endian float32, in C order, as the browser reads them."""
    return np.ascontiguousarray(values, dtype="<f4").tobytes()


class CourseWidget(anywidget.AnyWidget):
    """A widget in the course's look, whose text form is always the same (nbval compares it)."""

    _css = STYLE

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def _repr_mimebundle_(self, **options: Any) -> Any:
        bundle = super()._repr_mimebundle_(**options)
        if bundle is not None:
            bundle[0]["text/plain"] = repr(self)
        return bundle
