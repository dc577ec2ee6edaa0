"""One look for every figure: colours for every eye, a second cue for print, alt text.

Figures are drawn with matplotlib as usual; `show(figure, alt)` puts them on the page.
"""

import io
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch
from PIL import Image

from tlcourse.methods._checks import expect

# Okabe and Ito 2008, ordered so that neighbours also differ in lightness
BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#d55e00",
    "#cc79a7",
    "#56b4e9",
    "#222222",
)
# who is who in every chapter: colour, and line, marker and hatch for greyscale
LOOKS: dict[str, dict[str, Any]] = {
    "teacher": {"color": BLACK, "linestyle": ":", "marker": "s", "hatch": ""},
    "alone": {"color": ORANGE, "linestyle": "--", "marker": "o", "hatch": "///"},
    "distilled": {"color": BLUE, "linestyle": "-", "marker": "D", "hatch": "..."},
}

_STYLE: dict[Any, Any] = {
    "font.size": 11,
    "axes.titlesize": 12,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": "#666666",
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.prop_cycle": plt.cycler(color=[BLUE, ORANGE, GREEN, VERMILLION, PURPLE, SKY, BLACK]),
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.8,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "lines.linewidth": 2.2,
    "hatch.linewidth": 0.8,
    "figure.facecolor": "white",
    "figure.constrained_layout.use": True,
    "savefig.facecolor": "white",
}


def figure(
    rows: int = 1, columns: int = 1, *, size: tuple[float, float] = (7.5, 3.6), **options: Any
) -> tuple[Figure, Any]:
    """A figure in the course's style and its axes, as from `plt.subplots`.

    size: width and height in inches.
    """
    with mpl.rc_context(_STYLE):
        made = plt.subplots(rows, columns, figsize=size, **options)
    return made


def show(fig: Figure, alt: str) -> None:
    """Put a figure on the page with its alt text: what it shows, in words.

    It is stored in the 256 colours that suit it best, which makes photos a third as large. Raises
    ValueError without an alt text.
    """
    expect(bool(alt.strip()), "alt must say in words what the figure shows, got nothing")
    drawn, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(_STYLE):
        fig.savefig(drawn, format="png", dpi=110)
    plt.close(fig)
    photo = Image.open(drawn).convert("RGB")
    photo = photo.quantize(256, Image.Quantize.MEDIANCUT, kmeans=4, dither=Image.Dither.NONE)
    photo.save(png, format="png", optimize=True)
    data = {"image/png": png.getvalue(), "text/plain": f"[figure: {alt}]"}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def label_lines(axes: Axes, *, gap: float = 0.055) -> None:
    """Write each line's label at its right end, in its colour, moved apart where ends lie close."""
    lines = [line for line in axes.get_lines() if not str(line.get_label()).startswith("_")]
    to_axes = axes.transData + axes.transAxes.inverted()
    ends = [to_axes.transform(np.asarray(line.get_xydata())[-1]) for line in lines]
    heights = _apart([end[1] for end in ends], gap)
    for line, end, height in zip(lines, ends, heights):
        place = (min(end[0], 1.0) + 0.015, height)
        axes.text(
            *place,
            str(line.get_label()),
            color=line.get_color(),
            transform=axes.transAxes,
            va="center",
            clip_on=False,
        )


def picture(axes: Axes, pixels: Any, title: str = "") -> None:
    """Draw one grey image, (1, H, W) or (H, W), dark on light as on paper."""
    axes.imshow(np.asarray(pixels).squeeze(), cmap="gray_r")
    axes.axis("off")
    axes.set_title(title, loc="center")


def box(
    axes: Axes,
    corner: tuple[float, float],
    size: tuple[float, float],
    title: str,
    text: str,
    colour: str,
) -> None:
    """Draw a rounded box with a bold title and text below, for maps and diagrams.

    corner (lower left) and size in data units.
    """
    (x, y), (width, height) = corner, size
    style: dict[str, Any] = {
        "boxstyle": "round,pad=0,rounding_size=0.05",
        "facecolor": colour + "1c",
        "edgecolor": colour,
        "linewidth": 2,
    }
    axes.add_patch(FancyBboxPatch(corner, width, height, **style))
    axes.text(x + 0.06, y + 0.88 * height, title, weight="bold", va="top")
    axes.text(x + 0.06, y + 0.64 * height, text, va="top", linespacing=1.5)


def bars(axes: Axes, groups: Mapping[str, Sequence[float]], ticks: Sequence[str]) -> None:
    """Bars side by side, one colour and hatch per name in `groups`; known names keep their look."""
    width = 0.8 / len(groups)
    for i, (name, heights) in enumerate(groups.items()):
        look = LOOKS.get(name, {"color": f"C{i}", "hatch": ""})
        places = np.arange(len(ticks)) + (i - (len(groups) - 1) / 2) * width
        axes.bar(
            places,
            heights,
            width * 0.92,
            color=look["color"],
            hatch=look["hatch"],
            edgecolor="white",
            linewidth=0,
            label=name,
        )
    axes.set_xticks(range(len(ticks)), ticks)
    axes.grid(axis="x", visible=False)


def intervals(axes: Axes, table: Any, *, unit: str) -> None:
    """One line per row of `table`, first on top: a dot, its interval, its number.

    table: columns mean, low and high; its index names the rows.
    """
    for y, (name, row) in enumerate(table.iterrows()):
        look = LOOKS.get(str(name), LOOKS["distilled"])
        axes.plot(
            [row["low"], row["high"]],
            [y, y],
            color=look["color"],
            linewidth=3,
            solid_capstyle="butt",
            alpha=0.45,
        )
        axes.plot(row["mean"], y, look["marker"], color=look["color"], markersize=8)
        axes.annotate(
            f"{row['mean']:.0f}",
            (row["high"], y),
            (8, 0),
            textcoords="offset points",
            va="center",
            color="#444444",
        )
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.set(ylim=(len(table) - 0.4, -0.6), xlabel=unit)
    axes.grid(axis="y", visible=False)


def _apart(heights: Sequence[float], gap: float) -> list[float]:
    """Move heights apart until neighbours differ by at least gap, as little as that takes."""
    order = np.argsort(heights)
    moved = np.asarray(heights, dtype=float)[order]
    for _ in range(200):
        short = gap - np.diff(moved)
        if (short <= 1e-6).all():
            break
        push = np.where(short > 0, short / 2, 0)
        moved[:-1] -= push
        moved[1:] += push
    result = np.empty_like(moved)
    result[order] = moved
    return result.tolist()
