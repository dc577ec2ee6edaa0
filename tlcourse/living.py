"""Numbers in prose that are filled from records, so that nobody types a measured number.

In a notebook's text stands `<data value="ADDRESS">67.8</data>`. An address is one of

- a claim: `K3.effect`, also `.low`, `.high`, `.paper`, `.verdict`; at a scale `K1@full.effect`,
- a record: `two_tasks.live; accuracy; LwF; task=old`, that is experiment and scale, metric, arm and
  coordinates, for the mean over seeds; with `; low` or `; high` for the ends of its interval. Two
  arms, `alone - T=20`, are their difference, paired over seeds,
- the lecture: `lecture.CIFAR10; WRN-16-1 ← 16-2; AT`, a table of `tlcourse.lecture`, its set-up and
  its row.

A number is written to the digits that are shown, with its sign if one is shown.
"""

import re
from collections.abc import Iterator
from html import escape
from typing import Any, NamedTuple

from nbformat import NotebookNode

from tlcourse import lecture
from tlcourse.experiments import EXPERIMENTS
from tlcourse.methods._checks import expect
from tlcourse.results import Record, RecordError, read

DATA = re.compile(r'<data value="([^"]*)"[^>]*>([^<]*)</data>')
ENDS = ("effect", "low", "high")


class Found(NamedTuple):
    """What an address leads to, and where that comes from."""

    value: float | str
    origin: str


def look_up(address: str) -> Found:
    """What an address leads to. Raises ValueError, with the address, if that is nothing."""
    try:
        if address.startswith("lecture."):
            return _of_the_lecture(*_parts(address))
        return _of_a_record(*_parts(address)) if ";" in address else _of_a_claim(address)
    except (LookupError, TypeError, ValueError, AttributeError, RecordError) as error:
        raise ValueError(f"the number {address!r} leads nowhere: {error}") from error


def written(value: float | str, shown: str) -> str:
    """A value as it is shown: as many decimals, thousands apart, a true minus, and its sign."""
    if isinstance(value, str):
        return value
    decimals = len(shown.partition(".")[2].rstrip(" %"))
    sign = "+" if shown.strip().startswith("+") else ""
    return f"{value:{sign},.{decimals}f}".replace("-", "−")


def numbers(notebook: NotebookNode) -> Iterator[tuple[str, str]]:
    """Every address in a notebook's text, and what is shown for it."""
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            yield from DATA.findall(cell.source)


def outdated(notebook: NotebookNode) -> list[str]:
    """A line for each number or word that is not what its record says now."""
    lines = []
    for address, shown in numbers(notebook):
        now = written(look_up(address).value, shown)
        if now.casefold() != shown.casefold():
            lines.append(f"{address}: the text says {shown!r}, the record {now!r}")
    return lines


def fill(notebook: NotebookNode) -> None:
    """Write every number anew. Words are left as they are.

    Where a verdict has changed, the sentence around it must be read again: see `outdated`.
    """

    def anew(match: re.Match[str]) -> str:
        value = look_up(match[1]).value
        text = match[2] if isinstance(value, str) else written(value, match[2])
        return f'<data value="{match[1]}">{text}</data>'

    _replace(notebook, anew)


def explain(notebook: NotebookNode) -> None:
    """Give every number a title that says where it comes from, if that can be found."""

    def titled(match: re.Match[str]) -> str:
        try:
            title = escape(look_up(match[1]).origin)
        except ValueError:
            return match[0]
        return f'<data value="{match[1]}" title="{title}">{match[2]}</data>'

    _replace(notebook, titled)


def _replace(notebook: NotebookNode, by: Any) -> None:
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            cell.source = DATA.sub(by, cell.source)


def _parts(address: str) -> list[str]:
    return [part.strip() for part in address.split(";")]


def _of_the_lecture(table: str, column: str, row: str) -> Found:
    value = getattr(lecture, table.removeprefix("lecture."))[column][row]
    return Found(value, f"the lecture’s table: {column}, {row}")


def _of_a_claim(address: str) -> Found:
    """From `K1@full.low`; without a scale, at the first that decides the claim."""
    name, _, what = address.partition(".")
    id_, _, scale = name.partition("@")
    known = [(c, e) for e in EXPERIMENTS.values() for c in e.claims if c.id == id_]
    known = [(c, e) for c, e in known if scale in ("", *e.scales)]
    expect(bool(known), f"there is no claim {name}")
    claim, experiment = known[0]
    scale = scale or (claim.scales or [*experiment.scales])[0]
    if what == "paper":
        return Found(claim.paper, claim.source)
    record = read(experiment.name, scale)
    verdict = record.judge(claim)
    expect(what in (*ENDS, "verdict"), f"a claim has {', '.join(ENDS)}, verdict and paper")
    return Found(getattr(verdict, what), f"claim {id_}: {_origin(record)}")


def _of_a_record(record_name: str, metric: str, arms: str, *rest: str) -> Found:
    name, _, scale = record_name.partition(".")
    record, end = read(name, scale), rest[-1] if rest and rest[-1] in ENDS else "effect"
    at = dict(part.split("=", 1) for part in rest if part not in ENDS)
    where = {key: _like(record, key, value) for key, value in at.items()}
    if " - " in arms:
        one, other = arms.split(" - ")
        value = getattr(record.difference(one, other, metric, **where), end)
    else:
        value = record.summary(metric, **where).loc[arms, end.replace("effect", "mean")]
    return Found(float(value), _origin(record))


def _like(record: Record, key: str, text: str) -> Any:
    """The value of a coordinate that is written so."""
    known = [value for value in record.rows[key].dropna().unique() if _text(value) == text]
    expect(len(known) == 1, f"the record has no {key}={text}")
    return known[0]


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _origin(record: Record) -> str:
    origin, seeds = record.provenance, record.provenance["seeds"]
    over = f"seeds {seeds[0]} to {seeds[-1]}" if len(seeds) > 1 else f"seed {seeds[0]}"
    place = (
        f"{origin['experiment']}, {origin['scale']} scale, {over}, measured {origin['measured']}"
    )
    return f"{place}; {origin['command']}"
