"""Tables of the page: verdicts, differences, and the lecture's numbers beside ours.

They are HTML that reads without colour, scrolls on a phone, and takes the page's theme; as text
they say the same. JupyterLab shows the first line of what is folded, which is therefore a comment,
and drops the style of what it does not trust, but for that of a cell.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from math import isfinite

import pandas as pd

from tlcourse.claims import CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE, SUPPORTED, Verdict
from tlcourse.experiments import Entry, ledger
from tlcourse.methods._checks import expect

SIGNS = {SUPPORTED: ("✓", "#0072b2"), CONTRADICTED: ("✕", "#d55e00"), INCONCLUSIVE: ("?", "#888")}
COUNTED = (
    "Squares: comparisons that are clear (■), open (◧), clear against it (□); supported when as "
    "many as needed are clear, contradicted when even the open ones could not make enough, else "
    "inconclusive."
)
STYLE = """<style>
.tlc-scroll { overflow-x: auto; }
.tlc-numbers { border-collapse: collapse; margin: 0.4em 0; font-size: 0.95em; }
.tlc-numbers { color: var(--jp-ui-font-color1, inherit); }
.tlc-scroll .tlc-numbers :is(th, td) { padding: 0.35em 0.8em 0.35em 0; border: 0; }
.tlc-scroll .tlc-numbers :is(th, td) { background: none; font-weight: 400; max-width: 26em; }
.tlc-scroll .tlc-numbers :is(th, td) { text-align: left; vertical-align: top; white-space: normal; }
.tlc-scroll .tlc-numbers tr { background: none; }
.tlc-scroll .tlc-numbers tr { border-bottom: 1px solid var(--jp-border-color2, #ccc); }
.tlc-scroll .tlc-numbers thead :is(th, td) { font-weight: 600; vertical-align: bottom; }
.tlc-scroll .tlc-numbers .tlc-few { white-space: nowrap; font-variant-numeric: tabular-nums; }
.tlc-numbers caption { caption-side: bottom; text-align: left; padding-top: 0.5em; }
.tlc-numbers caption { color: inherit; font-size: 0.92em; }
.tlc-numbers svg { vertical-align: middle; }
</style>"""


@dataclass(frozen=True)
class Cell:
    """What stands in a cell: as text, and as HTML where that says more."""

    text: str
    html: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of cells, the first one a heading; a notebook shows it as HTML."""

    head: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    legend: str = ""

    def __repr__(self) -> str:
        lines = [self.head, *([cell.text for cell in row] for row in self.rows)]
        widths = [max(map(len, column)) for column in zip(*lines)]
        text = [" ".join(f"{part:<{w}}" for part, w in zip(line, widths)) for line in lines]
        return "\n".join(line.rstrip() for line in text)

    def _repr_html_(self) -> str:
        head = "".join(
            f'<th scope="col" style="text-align: left">{escape(name)}</th>' if name else "<td></td>"
            for name in self.head
        )
        rows = "\n".join(
            f"<tr>{''.join(_html(cell, i) for i, cell in enumerate(row))}</tr>" for row in self.rows
        )
        legend = f"<caption>{escape(self.legend)}</caption>" if self.legend else ""
        return (
            f"<!-- a table -->\n{STYLE}"
            f'<div class="tlc-scroll"><table class="tlc-numbers">{legend}\n'
            f"<thead><tr>{head}</tr></thead>\n<tbody>\n{rows}\n</tbody></table></div>"
        )


def _html(cell: Cell, column: int) -> str:
    inside = cell.html or escape(cell.text)
    tag, end = ("td", "td") if column else ('th scope="row"', "th")
    return f'<{tag} style="text-align: left">{inside}</{end}>'


def verdicts(chapter: str, only: Sequence[str] = ()) -> Table:
    """The claims of a chapter, or some of them by id, with what the records say of them.

    Raises ValueError for a chapter or a claim that is not there.
    """
    entries = [e for e in ledger() if e.experiment.chapter == chapter]
    expect(bool(entries), f"no experiment is of the chapter {chapter!r}")
    missing = ", ".join({*only} - {e.claim.id for e in entries})
    expect(not missing, f"the chapter {chapter!r} has no claim {missing}")
    chosen = [e for e in entries if not only or e.claim.id in only]
    head = ["claim", "the lecture", "ours", "", "verdict"]
    return Table(head, [_line(e) for e in sorted(chosen, key=_order)], _legend(chosen))


def _legend(entries: Sequence[Entry]) -> str:
    """How to read these lines, and no others."""
    kinds = {e.claim.decide.kind for e in entries if isfinite(e.found.effect)}
    level = " (90 % where the claim says “as well as”)" if "equivalent" in kinds else ""
    grey = any(_margin(e) for e in entries)
    margin = ", grey the margin that was fixed beforehand" if grey else ""
    drawn = (
        f"Ours: the effect and, in brackets, its 95 % interval over seeds{level}. "
        f"Drawn: dot and interval; the thin line is no effect{margin}."
    )
    parts = {drawn: kinds & {"greater", "equivalent"}, COUNTED: kinds & {"count"}}
    return " ".join(text for text, needed in parts.items() if needed)


def _order(entry: Entry) -> tuple[str, int, str, bool]:
    letters, digits, rest = re.fullmatch(r"(\D+)(\d+)(.*)", entry.claim.id).groups()  # type: ignore[union-attr]
    return letters, int(digits), rest, entry.scale != "lecture"


def _line(entry: Entry) -> list[Cell]:
    claim, verdict = entry.claim, entry.found.verdict
    where = " (the paper’s set-up)" if entry.scale == "full" else ""
    if entry.status != "current":
        verdict = f"{entry.status} (was {verdict})" if verdict else entry.status
    sign, colour = SIGNS.get(verdict, ("–", "#888"))
    signed = f'<span style="color:{colour}" aria-hidden="true">{sign}</span> {escape(verdict)}'
    sentence = f"{escape(claim.sentence)}{where}<br><small>{claim.id}</small>"
    number = _number_of(entry)
    return [
        Cell(f"{claim.id}  {claim.sentence}{where}", sentence),
        Cell(claim.paper),
        Cell(number, f"{_few(number)}<br><small>{escape(_unit(entry))}</small>"),
        Cell("", _drawn(entry)),
        Cell(verdict, _few(signed)),
    ]


def _few(text: str) -> str:
    """A few words that stay on one line."""
    return f'<span class="tlc-few">{text}</span>'


def _unit(entry: Entry) -> str:
    """What was measured, and what was fixed beforehand; or why it cannot be tested."""
    fixed = re.search(
        r"(margin |tolerance |not shown here: ).*|at least \d+ needed", entry.found.why
    )
    return f"{entry.claim.unit}; {fixed[0]}" if fixed else entry.claim.unit


def _margin(entry: Entry) -> re.Match[str] | None:
    return re.match(r"margin (±?)([\d.]+)", entry.found.why)


def _uncounted(entry: Entry) -> bool:
    return entry.claim.decide.kind == "count" and entry.found.verdict == NOT_TESTABLE


def _number_of(entry: Entry) -> str:
    found, kind = entry.found, entry.claim.decide.kind
    if not isfinite(found.effect) or _uncounted(entry):
        return ""
    if kind == "count":
        return found.why.split(",")[0]
    if kind == "exact":
        return f"{found.effect:.2g}"
    return with_interval(found.effect, found.low, found.high)


def with_interval(effect: float, low: float, high: float, digits: int | None = None) -> str:
    """An effect and its interval: "1.5 (0.3 to 2.8)", with so many decimals, or what fits."""
    size = max(abs(effect), abs(high - low) / 2)
    fitting = 0 if size >= 100 else 1 if size >= 1 else 2 if size >= 0.1 else 4
    decimals = fitting if digits is None else digits
    parts = [f"{value:,.{decimals}f}".replace("-", "−") for value in (effect, low, high)]
    spread = isfinite(low) and low < high
    return f"{parts[0]} ({parts[1]} to {parts[2]})" if spread else parts[0]


def _drawn(entry: Entry) -> str:
    found = entry.found
    if entry.claim.decide.kind == "count":
        return _squares(found) if _number_of(entry) else ""
    margin = _margin(entry)
    band = (-float(margin[2]), float(margin[2]) * bool(margin[1])) if margin else None
    return drawn_interval(found, band=band) if isfinite(found.low) else ""


def _squares(found: Verdict) -> str:
    many = int(found.why.split(" of ")[1].split(",")[0])
    yes, still = int(found.effect), int(found.high - found.effect)
    text = "■" * yes + "◧" * still + "□" * (many - yes - still)
    rows = [text[i : i + 10] for i in range(0, many, 10)]
    said = f"{yes} clear, {still} open, {many - yes - still} clear against it"
    return f'<span role="img" aria-label="{said}" class="tlc-few">{"<br>".join(rows)}</span>'


def drawn_interval(
    found: Verdict,
    span: tuple[float, float] | None = None,
    band: tuple[float, float] | None = None,
) -> str:
    """A dot and its interval as SVG, with a thin line at zero.

    span: from where to where the drawing goes, to compare several; band: drawn in grey.
    """
    ends = [found.low, found.high, found.effect, 0.0, *(band or ())]
    bottom, top = span or (min(ends), max(ends))
    x = {v: 6 + 128 * (v - bottom) / ((top - bottom) or 1) for v in ends}
    low, high, effect = x[found.low], x[found.high], x[found.effect]
    left, right = (x[end] for end in band or (0.0, 0.0))
    grey = f'<path d="M{left:.1f} 1H{right:.1f}V15H{left:.1f}" fill="currentColor" opacity="0.15"/>'
    return (
        '<svg width="140" height="16" viewBox="0 0 140 16" aria-hidden="true">'
        f'{grey}<path d="M{x[0.0]:.1f} 0V16" stroke="currentColor" stroke-width="1"/>'
        f'<path d="M{low:.1f} 8H{high:.1f}" stroke="currentColor" stroke-width="3" opacity="0.55"/>'
        f'<circle cx="{effect:.1f}" cy="8" r="4" fill="currentColor"/></svg>'
    )


def differences(found: Mapping[str, Verdict], *, unit: str, digits: int | None = None) -> Table:
    """What several comparisons come to, drawn on one axis, a line for each name in `found`."""
    ends = [0.0, *(end for v in found.values() for end in (v.low, v.high, v.effect))]
    span = min(ends), max(ends)
    rows = [
        [
            Cell(name),
            Cell(
                text := with_interval(v.effect, v.low, v.high, digits),
                f'<span class="tlc-few">{text}</span>',
            ),
            Cell("", drawn_interval(v, span)),
        ]
        for name, v in found.items()
    ]
    return Table(
        ["", unit, ""],
        rows,
        "In brackets and drawn: 95 % interval over seeds; the thin line is zero.",
    )


def compare(
    columns: Mapping[str, Mapping[str, float] | pd.DataFrame],
    rows: Mapping[str, str] | Sequence[str],
    *,
    digits: int = 1,
    legend: str = "",
) -> Table:
    """The lecture's numbers beside ours: a column a set-up, a line a method.

    A column is a dict of numbers, or a table with the columns mean, low and high, as from
    `Record.summary`. rows: the methods, or what to call each of them. Nothing stands where a column
    does not have a method.
    """
    names = rows if isinstance(rows, Mapping) else {row: row for row in rows}
    lines = [
        [Cell(name), *(_compared(column, row, digits) for column in columns.values())]
        for row, name in names.items()
    ]
    return Table(["", *columns], lines, legend)


def _compared(column: Mapping[str, float] | pd.DataFrame, row: str, digits: int) -> Cell:
    if isinstance(column, pd.DataFrame):
        if row not in column.index:
            return Cell("–")
        mean, low, high = column.loc[[row], ["mean", "low", "high"]].to_numpy()[0]
        text = with_interval(mean, low, high, digits)
    else:
        text = f"{column[row]:,.{digits}f}".replace("-", "−") if row in column else "–"
    return Cell(text, _few(text))
