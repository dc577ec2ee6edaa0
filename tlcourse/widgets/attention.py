"""Where networks look: attention maps over pictures, with the power p under a slider."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Number, Position, array, module

ATTENTION = "attention"


class AttentionWidget(CourseWidget):
    """Maps Σ|A|^p of up to three networks over pictures, summed in the browser as p moves.

    With one network also maps that are given.
    pictures: uint8 (M, C, H, W), C = 1 or 3, at most 256 × 256; features: name of a network to
    layer to activations (M, K, h, w), at most 32 × 32, the same layers in each; maps: what was
    asked to (M, h, w) >= 0, such as Grad-CAM by class; names: M words for the pictures. Activations
    travel as bytes: |A| in 255 steps of the largest of its picture and layer. picture, layer, shown
    ("attention" or a key of maps), p in [1, 8] and strength of the overlay in [0, 1] are synced.
    Says where a map is strongest, and in how many places half of it lies. Raises ValueError for
    shapes that do not fit, numbers that are not finite, and values out of range.
    """

    _esm = module("attention")
    p = Number(2.0, 1.0, 8.0).tag(sync=True)
    strength = Number(0.6, 0.0, 1.0).tag(sync=True)
    picture = Position(0).tag(sync=True)
    layer = traitlets.Unicode().tag(sync=True)
    shown = traitlets.Unicode(ATTENTION).tag(sync=True)
    names = traitlets.List(traitlets.Unicode()).tag(sync=True)
    networks = traitlets.List(traitlets.Unicode()).tag(sync=True)
    layers = traitlets.List(traitlets.Unicode()).tag(sync=True)
    asked = traitlets.List(traitlets.Unicode()).tag(sync=True)
    # (C, H, W) of the pictures, then (K, h, w) by network and layer, then (1, h, w) by map
    shapes = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)
    pixels = traitlets.Bytes(b"").tag(sync=True)
    values = traitlets.Bytes(b"").tag(sync=True)

    def __init__(
        self,
        pictures: Any,
        features: Mapping[str, Mapping[str, Any]],
        *,
        maps: Mapping[str, Any] | None = None,
        names: Sequence[str] | None = None,
        layer: str | None = None,
        **state: Any,
    ) -> None:
        pixels, maps = array(pictures), maps or {}
        many = len(pixels)
        right = pixels.ndim == 4 and pixels.size > 0 and pixels.shape[1] in (1, 3)
        expect(right, f"pictures must have shape (M, C, H, W) with C = 1 or 3, got {pixels.shape}")
        expect(pixels.dtype == np.uint8, f"pictures must be uint8, got {pixels.dtype}")
        size = pixels.shape[2:]
        expect(max(size) <= 256, f"pictures must be at most 256 by 256, got {size}")
        networks = len(features)
        expect(1 <= networks <= 3, f"features must be of one to three networks, got {networks}")
        layers = list(next(iter(features.values())))
        expect(len(layers) > 0, "features must hold at least one layer")
        for network, by_layer in features.items():
            expect(
                list(by_layer) == layers,
                f"the layers of {network!r} must be {', '.join(layers)}, got {', '.join(by_layer)}",
            )
        expect(not maps or len(features) == 1, "maps are of one network, and there are several")
        expect(ATTENTION not in maps, f"a map may not be called {ATTENTION!r}")
        words = [f"picture {i + 1}" for i in range(many)] if names is None else list(names)
        expect(len(words) == many, f"names must be {many} words, got {len(words)}")
        tables = {
            f"features of {network!r} at {name!r}": array(A)
            for network, by in features.items()
            for name, A in by.items()
        }
        tables |= {f"the map {name!r}": _as_one_channel(values) for name, values in maps.items()}
        for what, table in tables.items():
            _check(what, table, many)
        for name in layers:
            sizes = {array(by_layer[name]).shape[2:] for by_layer in features.values()}
            expect(
                len(sizes) == 1,
                f"maps of {name!r} must be of one size in all networks, got {sorted(sizes)}",
            )
        self.many, self._known = many, {"layer": layers, "shown": [ATTENTION, *maps]}
        super().__init__(
            layer=layers[-1] if layer is None else layer,
            names=words,
            networks=list(features),
            layers=layers,
            asked=list(maps),
            shapes=[list(table.shape[1:]) for table in (pixels, *tables.values())],
            pixels=np.ascontiguousarray(pixels).tobytes(),
            values=b"".join(in_bytes(table).tobytes() for table in tables.values()),
            **state,
        )

    @traitlets.validate("layer", "shown")
    def _one_of(self, proposal: Any) -> str:
        name, value = proposal["trait"].name, proposal["value"]
        known = self._known[name]
        expect(value in known, f"{name} must be one of {', '.join(known)}, got {value!r}")
        return str(value)


def in_bytes(A: np.ndarray) -> np.ndarray:
    """|A| in 255 steps of the largest of each picture; all zeros stay zeros.

    A: (M, K, h, w). Returns uint8 of the same shape.
    """
    size = np.abs(A.astype(np.float64))
    largest = size.max(axis=(1, 2, 3), keepdims=True)
    return np.rint(255 * (size / np.where(largest > 0, largest, 1))).astype(np.uint8)


def _as_one_channel(values: Any) -> np.ndarray:
    table = array(values)
    return table[:, None] if table.ndim == 3 else table[:0]


def _check(what: str, table: np.ndarray, many: int) -> None:
    wanted = f"of all {many} pictures, (M, K, h, w) or a map (M, h, w)"
    right = table.ndim == 4 and len(table) == many and table.size > 0
    expect(right, f"{what} must be {wanted}, got {table.shape}")
    expect(max(table.shape[2:]) <= 32, f"{what} must be at most 32 by 32, got {table.shape[2:]}")
    expect(bool(np.isfinite(table).all()), f"{what} must be finite")
