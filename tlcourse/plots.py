"""One look for every figure: colours for every eye, a second cue for print, alt text.

Figures are drawn with matplotlib as usual; `show(figure, alt)` puts them on the page.
"""

import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
from IPython.display import display
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import FancyBboxPatch, Patch
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

    It is stored in the few colours that suit it best, which makes photos a third as large. Raises
    ValueError without an alt text.
    """
    expect(bool(alt.strip()), "alt must say in words what the figure shows, got nothing")
    drawn, png = io.BytesIO(), io.BytesIO()
    with mpl.rc_context(_STYLE):
        fig.savefig(drawn, format="png", dpi=110)
    plt.close(fig)
    _fewer_colours(Image.open(drawn).convert("RGB")).save(png, format="png", optimize=True)
    text = f"[figure]\n{alt}"  # JupyterLab shows the first line of what is folded
    data = {"image/png": png.getvalue(), "text/plain": text}
    display(data, raw=True, metadata={"image/png": {"alt": alt}})


def _fewer_colours(image: Image.Image) -> Image.Image:
    """In 64 colours where this moves grey levels by a third of one at most, as in most drawings."""
    how: dict[str, Any] = {"method": Image.Quantize.MEDIANCUT, "dither": Image.Dither.NONE}
    fewer = image.quantize(64, kmeans=4, **how)
    moved = np.abs(np.asarray(image, float) - np.asarray(fewer.convert("RGB"), float)).mean()
    return fewer if moved < 1 / 3 else image.quantize(256, kmeans=4, **how)


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
    """Draw one grey image, (1, H, W) or (H, W), dark on light as on paper, pixel by pixel."""
    axes.imshow(np.asarray(pixels).squeeze(), cmap="gray_r", interpolation="nearest")
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


class Block(NamedTuple):
    """A part of a network, and what training does with it: "frozen", "trained" or "new"."""

    name: str
    kind: str


def frozen(*names: str) -> list[Block]:
    """Parts that stay as they are."""
    return [Block(name, "frozen") for name in names]


def trained(*names: str) -> list[Block]:
    """Parts that were there before and are trained."""
    return [Block(name, "trained") for name in names]


def new(*names: str) -> list[Block]:
    """Parts that are added and trained."""
    return [Block(name, "new") for name in names]


BLOCKS: dict[str, dict[str, Any]] = {  # colour, and hatch and border for greyscale
    "frozen": {"facecolor": "#ececec", "edgecolor": "#777777", "hatch": "////", "linewidth": 1.2},
    "trained": {"facecolor": "#d3e6f4", "edgecolor": BLUE, "linewidth": 2},
    "new": {"facecolor": "#d5efe5", "edgecolor": GREEN, "linewidth": 3},
}


@dataclass(frozen=True)
class Scheme:
    """A method in one picture: what is matched, what is frozen, what is added.

    rows: name of a network to its blocks from left to right; a row that begins with None goes on
    from the row above, which is how a trunk has two heads. Names of blocks in one scheme differ, or
    are written "row: block" in losses. losses: (block, what it is compared with, name of the loss);
    the latter is a block of another row, or any text, such as "label". inputs: what comes in, by
    row. joins: what else a block hears, (from, to).
    """

    rows: Mapping[str, Sequence[Block | None]]
    losses: Sequence[tuple[str, str, str]]
    inputs: str = "images"
    title: str = ""
    joins: Sequence[tuple[str, str]] = ()

    def places(self) -> Iterator[tuple[str, Block, int, int]]:
        """Every block with its row's name, its row and its column."""
        for row, (name, blocks) in enumerate(self.rows.items()):
            yield from ((name, b, row, column) for column, b in enumerate(blocks) if b)

    def find(self, wanted: str) -> tuple[int, int] | None:
        """Row and column of a block; None for any other text."""
        found = [
            (r, c) for name, b, r, c in self.places() if wanted in (b.name, f"{name}: {b.name}")
        ]
        expect(len(found) <= 1, f"{wanted!r} must name one block, got {len(found)}")
        return found[0] if found else None

    def place(self, block: str) -> tuple[int, int]:
        """Row and column of a block. Raises ValueError where there is none."""
        found = self.find(block)
        expect(found is not None, f"a loss or a join needs a block, and there is no {block!r}")
        return found or (0, 0)

    def alt(self) -> str:
        """The picture in words."""
        nets = "; ".join(
            f"{name}: " + ", ".join(f"{b.name} ({b.kind})" for b in blocks if b)
            for name, blocks in self.rows.items()
        )
        losses = "; ".join(f"{a} is compared with {b} by {loss}" for a, b, loss in self.losses)
        joins = "".join(f" {a} also goes to {b}." for a, b in self.joins)
        return " ".join(f"{self.title}: {nets}.{joins} {losses}.".removeprefix(": ").split())


WIDE, HIGH, ACROSS, DOWN = 1.5, 0.72, 1.95, 1.45  # a block, and from one to the next
INK, FAINT = "#333333", "#555555"


def scheme(*schemes: Scheme, columns: int | None = None) -> None:
    """Show one or several schemes, with one legend below.

    Raises ValueError for a loss or a join of a block that is not there.
    """
    across = columns or len(schemes)
    wide = max(max(map(len, one.rows.values())) for one in schemes) * ACROSS
    lines = [schemes[i : i + across] for i in range(0, len(schemes), across)]
    high = [max(len(one.rows) for one in line) * DOWN + 0.2 for line in lines]
    right = max(_beside(one) for one in schemes)
    tall = sum(high) * 0.62 + 0.4 + 0.3 * len(lines)  # a line of titles above each
    size = (max(6.2, across * (wide + 1.3 + right) * 0.62), tall)
    ratios = {"height_ratios": high}
    fig, places = figure(len(lines), across, size=size, squeeze=False, gridspec_kw=ratios)
    for line, row, height in zip(lines, places, high):
        for axes, one in zip(row, line):
            axes.set(xlim=(-1.4, wide - ACROSS + WIDE + right), ylim=(0.75 - height, 0.75))
            axes.set_aspect("equal")
            axes.set_title(one.title, weight="bold", loc="center")
            _draw(axes, one)
    for axes in places.flat:
        axes.axis("off")
    kinds = {block.kind for one in schemes for _, block, _, _ in one.places()}
    handles: list[Any] = [Patch(label=kind, **BLOCKS[kind]) for kind in BLOCKS if kind in kinds]
    handles.append(Line2D([], [], color=VERMILLION, label="compared by a loss", linewidth=1.8))
    handles.append(Line2D([], [], color=FAINT, linestyle="--", label="way of the gradient"))
    where: dict[str, Any] = {"loc": "outside lower center", "ncols": len(handles), "frameon": False}
    fig.legend(handles=handles, fontsize=9, columnspacing=1.4, **where)
    show(fig, " ".join(one.alt() for one in schemes))


def _beside(one: Scheme) -> float:
    """The room that losses need to the right of the last block."""
    texts = [(b, loss) for _, b, loss in one.losses if one.find(b) is None]
    return 0.4 + max(
        (_length(loss) + 0.12 * len(max(b.split("\n"), key=len)) for b, loss in texts), default=0
    )


def _length(loss: str) -> float:
    """Of an arrow with this text above it."""
    return max(0.6, 0.11 * len(loss))


def _draw(axes: Axes, one: Scheme) -> None:
    for name, block, row, column in one.places():
        x, y = column * ACROSS, -row * DOWN
        first = not any(one.rows[name][:column])
        start, bend = (x - ACROSS + WIDE, y), "arc3"
        if first and column:
            start, bend = (x - 0.25, y + DOWN), "angle,angleA=-90,angleB=0,rad=0"
        elif first:
            start = (-0.35, y)
            axes.text(-0.45, y + 0.03, name, weight="bold", fontsize=10, ha="right", va="bottom")
            axes.text(-0.45, y - 0.03, one.inputs, fontsize=9, ha="right", va="top")
        line = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "connectionstyle": bend}
        axes.annotate("", (x, y), start, arrowprops={**line, "shrinkA": 0, "shrinkB": 0})
        style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.08", **BLOCKS[block.kind]}
        axes.add_patch(FancyBboxPatch((x, y - HIGH / 2), WIDE, HIGH, **style))
        words = axes.text(x + WIDE / 2, y, block.name, ha="center", va="center", fontsize=9)
        if block.kind == "frozen":
            words.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1, "alpha": 0.85})
    for a, b in one.joins:
        _draw_join(axes, one.place(a), one.place(b))
    for loss in one.losses:
        _draw_loss(axes, one, *loss)
    for row, blocks in enumerate(one.rows.values()):
        _draw_gradient(axes, one, row, blocks)


def _draw_join(axes: Axes, here: tuple[int, int], there: tuple[int, int]) -> None:
    """A slanting arrow from the side of one block to that of another."""
    (row, column), (to_row, to_column) = here, there
    slant = 0.15 * (row - to_row)  # so that it does not end where another arrow does
    start = column * ACROSS + WIDE, slant - row * DOWN
    end = to_column * ACROSS - 0.02, -slant - to_row * DOWN
    style = {"arrowstyle": "-|>", "color": INK, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", end, start, arrowprops=style)


def _draw_loss(axes: Axes, one: Scheme, a: str, b: str, loss: str) -> None:
    """An arrow with two heads between two blocks, or from a block to what stands beside it."""
    (row, column), there = one.place(a), one.find(b)
    words: dict[str, Any] = {"fontsize": 8.5, "color": VERMILLION}
    x, y = column * ACROSS + WIDE, -row * DOWN
    ends = (x + 0.02, y), (x + _length(loss), y)
    if there is None:
        axes.text(sum(end[0] for end in ends) / 2, y + 0.1, loss, ha="center", va="bottom", **words)
        axes.text(ends[1][0] + 0.08, y, b, va="center", fontsize=9, linespacing=1.1)
    else:
        above, below = sorted((row, there[0]))
        middle = x - WIDE / 2
        ends = (middle, -above * DOWN - HIGH / 2), (middle, -below * DOWN + HIGH / 2)
        axes.text(middle + 0.1, sum(end[1] for end in ends) / 2, loss, va="center", **words)
    style = {"arrowstyle": "<|-|>", "color": VERMILLION, "linewidth": 1.8}
    axes.annotate("", *ends, arrowprops={**style, "shrinkA": 0, "shrinkB": 0})


def _draw_gradient(axes: Axes, one: Scheme, row: int, blocks: Sequence[Block | None]) -> None:
    """Dashed, below a row, from where a loss is back to the first block that moves."""
    moving = [c for c, block in enumerate(blocks) if block and block.kind != "frozen"]
    ends = [one.find(end) for a, b, _ in one.losses for end in (a, b)]
    begin = max([end[1] for end in ends if end and end[0] == row], default=max(moving, default=0))
    if not moving:
        return
    y = -row * DOWN - HIGH / 2 - 0.13
    start, end, bend = (begin * ACROSS + WIDE, y), (moving[0] * ACROSS + 0.05, y), "arc3"
    above = [r for r, others in enumerate([*one.rows.values()][:row]) if _moves(others, moving[0])]
    if moving[0] and blocks[moving[0] - 1] is None and above:  # on into what it branches from
        end = moving[0] * ACROSS - 0.36, -above[-1] * DOWN - HIGH / 2 - 0.13
        bend = "angle,angleA=0,angleB=90,rad=0"
    style = {"arrowstyle": "-|>", "linestyle": "--", "color": FAINT, "linewidth": 1.1}
    axes.annotate("", end, start, arrowprops={**style, "connectionstyle": bend})


def _moves(blocks: Sequence[Block | None], column: int) -> bool:
    """Whether what stands left of this column is there and moves."""
    left = blocks[column - 1] if 0 < column <= len(blocks) else None
    return left is not None and left.kind != "frozen"


def bars(axes: Axes, groups: Mapping[str, Sequence[float]], ticks: Sequence[str]) -> None:
    """Bars side by side, one colour and hatch per name in `groups`; known names keep their look."""
    width = 0.8 / len(groups)
    for i, (name, heights) in enumerate(groups.items()):
        look = LOOKS.get(name, {"color": f"C{i}", "hatch": ""})
        places = np.arange(len(ticks)) + (i - (len(groups) - 1) / 2) * width
        drawn: dict[str, Any] = {
            "color": look["color"],
            "hatch": look["hatch"],
            "edgecolor": "white",
        }
        axes.bar(places, heights, width * 0.92, linewidth=0, label=name, **drawn)
    axes.set_xticks(range(len(ticks)), ticks)
    axes.grid(axis="x", visible=False)


def intervals(
    axes: Axes, table: Any, *, unit: str, digits: int = 0, looks: Mapping[str, Any] = LOOKS
) -> None:
    """One line per row of `table`, first on top: a dot, its interval, its number.

    table: columns mean, low and high; its index names the rows. looks: by name, colour and marker.
    """
    for y, (name, row) in enumerate(table.iterrows()):
        look = looks.get(str(name), LOOKS["distilled"])
        line: dict[str, Any] = {"color": look["color"], "linewidth": 3, "alpha": 0.45}
        axes.plot([row["low"], row["high"]], [y, y], solid_capstyle="butt", **line)
        axes.plot(row["mean"], y, look["marker"], color=look["color"], markersize=8)
        beside: dict[str, Any] = {"textcoords": "offset points", "va": "center", "color": "#444444"}
        axes.annotate(f"{row['mean']:.{digits}f}", (row["high"], y), (8, 0), **beside)
    axes.set_yticks(range(len(table)), [str(name) for name in table.index])
    axes.set(ylim=(len(table) - 0.4, -0.6), xlabel=unit)
    axes.grid(axis="y", visible=False)


def mean_line(
    axes: Axes,
    table: Mapping[float, Sequence[float]],
    *,
    label: str,
    shift: float = 1.0,
    **look: Any,
) -> str:
    """Means with their intervals over a number of something; returns them in words.

    table: by that number, mean, low and high. shift: the numbers are drawn at so many times
    themselves, so that lines stand side by side on a logarithmic axis. look: as in `plot`.
    """
    means, low, high = np.array([*table.values()], dtype=float).T
    style: dict[str, Any] = {"capsize": 3, "elinewidth": 1.2, **look}
    places = np.array([*table]) * shift
    axes.errorbar(places, means, [means - low, high - means], label=label, **style)
    return f"{label} " + ", ".join(f"{mean:.1f} at {n:g}" for n, mean in zip(table, means))


def log_axis(axes: Axes, numbers: Sequence[float]) -> None:
    """A logarithmic axis below, marked with these numbers as they are and with no others."""
    axes.set(xscale="log")
    axes.set_xticks(numbers, [f"{n:,g}" for n in numbers])
    axes.minorticks_off()


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
