"""A slider for the temperature: what teacher and students then think of a real image."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Flag, Number, Position, array, floats, module


class TemperatureWidget(CourseWidget):
    """Softened probabilities of up to four networks for chosen images, redrawn as T moves.

    pixels: uint8 (M, H, W) or (M, 1, H, W), at most 128 × 128; logits: name to (M, K) finite
    numbers, the teacher first; labels: M numbers in [0, K); classes: K names ("0" … without). T in
    [0.1, 20]; image: position of the one to begin with; log: logarithmic axis. T, image and log are
    synced: `widget.T = 4` moves the slider, and `widget.T` says where the learner left it. With
    details, below stand the entropy in bits, and for each student the size of the soft loss's
    gradient (q_T − p_T) / T against the teacher, with and without T². Raises ValueError for shapes
    that do not fit, numbers that are not finite, and values out of range.
    """

    _esm = module("temperature")
    T = Number(1.0, 0.1, 20.0).tag(sync=True)
    image = Position(0).tag(sync=True)
    log = Flag(False).tag(sync=True)
    details = Flag(True).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    classes = traitlets.List(traitlets.Unicode()).tag(sync=True)
    labels = traitlets.List(traitlets.Int()).tag(sync=True)
    size = traitlets.List(traitlets.Int()).tag(sync=True)
    logits = traitlets.Bytes(b"").tag(sync=True)
    pixels = traitlets.Bytes(b"").tag(sync=True)

    def __init__(
        self,
        pixels: Any,
        logits: Mapping[str, Any],
        labels: Any,
        *,
        classes: Sequence[str] | None = None,
        T: float = 1.0,
        image: int = 0,
        log: bool = False,
        details: bool = True,
    ) -> None:
        given = array(pixels)
        shown = given[:, 0] if given.ndim == 4 and given.shape[1] == 1 else given
        expect(
            shown.ndim == 3 and shown.size > 0,
            f"pixels must have shape (M, H, W) or (M, 1, H, W), got {given.shape}",
        )
        expect(shown.dtype == np.uint8, f"pixels must be uint8, got {shown.dtype}")
        expect(
            max(shown.shape[1:]) <= 128,
            f"pixels must be at most 128 by 128 per image, got {shown.shape[1:]}",
        )
        expect(1 <= len(logits) <= 4, f"logits must be of one to four networks, got {len(logits)}")
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite
            tables = {name: array(table).astype("<f4") for name, table in logits.items()}
        K = next(iter(tables.values())).shape[-1] if classes is None else len(classes)
        for name, table in tables.items():
            expect(
                table.shape == (len(shown), K),
                f"logits of {name!r} must have shape ({len(shown)}, {K}), got {table.shape}",
            )
            expect(bool(np.isfinite(table).all()), f"logits of {name!r} must be finite")
        numbers = array(labels)
        fits = numbers.shape == shown.shape[:1] and numbers.dtype.kind in "iu"
        fits = fits and bool(((numbers >= 0) & (numbers < K)).all())
        expect(fits, f"labels must be {len(shown)} numbers in [0, {K}), got {numbers.tolist()}")
        self.many = len(shown)
        super().__init__(
            T=T,
            image=image,
            log=log,
            details=details,
            names=list(tables),
            classes=[str(k) for k in range(K)] if classes is None else list(classes),
            labels=numbers.tolist(),
            size=list(shown.shape[1:]),
            logits=floats(np.stack(list(tables.values()))),
            pixels=np.ascontiguousarray(shown).tobytes(),
        )
