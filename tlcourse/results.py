"""Reading records: what was measured, where it comes from, and what it says.

A record is a table of rows and a file that says where they come from, `data/results/NAME.SCALE.csv`
and `NAME.SCALE.json`. `tlcourse.measure` writes them.
"""

import csv
import hashlib
import io
import json
import os
from dataclasses import dataclass
from math import inf, isnan
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from tlcourse.claims import TUNING, Claim, Verdict, greater, interval, judge, one_each
from tlcourse.data import data_dir
from tlcourse.methods._checks import expect

EXPECTED, SURELY = (
    0.99,
    0.99999,
)  # beyond the first a value is called unexpected, beyond the second it fails a test
KEYS = {  # what every provenance says
    **dict.fromkeys(
        ("experiment", "scale", "command", "digest", "tune_digest", "rows_sha256"), str
    ),
    **dict.fromkeys(("device", "processor", "measured"), str),
    **dict.fromkeys(("seeds", "tuning_seeds", "seconds"), list),
    "versions": dict,
}


class RecordError(Exception):
    """A record is missing, damaged or being measured; the message says what to do."""


class DamagedError(RecordError):
    """A record is there, and is not what was measured."""


class Expected(NamedTuple):
    """Where one more value should fall: low to high; df, the degrees of freedom behind that."""

    low: float
    high: float
    df: float


@dataclass(frozen=True)
class Record:
    """Measured rows (seed, arm, metric, value, coordinates), those that chose settings apart."""

    rows: pd.DataFrame
    tuning: pd.DataFrame
    provenance: dict[str, Any]

    @property
    def seeds(self) -> int:
        """How many seeds were measured, without those that chose settings."""
        return len(self.provenance["seeds"])

    @property
    def verified(self) -> str:
        """When the record was verified, where and how well it agreed; "" if it never was."""
        return str(self.provenance.get("verified", ""))

    def summary(self, metric: str, **where: object) -> pd.DataFrame:
        """Mean and interval over seeds of a metric, a line per arm: mean, low, high, seeds."""
        values = one_each(self.rows, metric, where).groupby("arm", sort=False)["value"]
        table = {arm: interval(v.to_numpy()) for arm, v in values}
        return pd.DataFrame(table, index=["mean", "low", "high", "seeds"]).T

    def values(self, metric: str, **where: object) -> pd.DataFrame:
        """A metric as a table, a line per seed and a column per arm."""
        return one_each(self.rows, metric, where).pivot(index="seed", columns="arm", values="value")

    def difference(self, a: str, b: str, metric: str, **where: object) -> Verdict:
        """By how much arm a has more of a metric than arm b, paired over seeds."""
        return greater(a, b, metric, **where)(self.rows)

    def judge(self, claim: Claim) -> Verdict:
        """What the rows say of a claim. Raises LookupError if they hold nothing it asks for."""
        return judge(claim, self.rows)

    def expected(self, arm: str, metric: str, **where: object) -> Expected:
        """Where one more seed should fall in 99 cases of 100. For `measured`."""
        values = self.values(metric, **where)[arm].dropna().to_numpy()
        return Expected(*prediction(values, EXPECTED), len(values) - 1)


def prediction(values: np.ndarray, confidence: float) -> tuple[float, float]:
    """Where one more normally distributed value falls with this confidence, from values (n,)."""
    n = len(values)
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) * (1 + 1 / n) ** 0.5
    return values.mean() - half, values.mean() + half


def measured(name: str, value: float, low: float, high: float, df: float = inf) -> None:
    """Print a measured number beside the range in which the record makes us expect it.

    low, high: of `Record.expected`, for 99 runs of 100; outside of it the line says so. Raises
    ValueError if it is no range, and, only where TLCOURSE_STRICT=1 (the tests set it),
    AssertionError for a value that 99,999 runs of 100,000 would not give. df: degrees of freedom.
    """
    expect(not isnan(low) and low <= high, f"low must be at most high, got {low} and {high}")
    digits = ",.0f" if isinstance(value, int) else ",.4g"
    odd = "" if low <= value <= high else ": outside of what the record makes us expect"
    print(f"{name}: {value:{digits}} (expected {low:{digits}} to {high:{digits}}){odd}")
    wider = stats.t.ppf(0.5 + SURELY / 2, df) / stats.t.ppf(0.5 + EXPECTED / 2, df)
    far = not abs(value - (low + high) / 2) <= wider * (high - low) / 2
    if odd and far and os.environ.get("TLCOURSE_STRICT") == "1":
        raise AssertionError(f"{name} is {value}, far outside of {low} to {high}")


def read(name: str, scale: str) -> Record:
    """The record of an experiment at a scale.

    Raises RecordError when it is missing, and DamagedError when its files do not belong together,
    are of another experiment or scale, or lack something.
    """
    table, provenance = paths(name, scale)
    again = f"Measure it with `tlcourse run {name} --scale {scale}`."
    if not (table.is_file() and provenance.is_file()):
        raise RecordError(f"{name} has no record at scale {scale}. {again}")
    try:
        text = table.read_bytes().decode("utf-8").replace("\r\n", "\n")
        origin = json.loads(provenance.read_text(encoding="utf-8"))
        _expect_whole(origin, text, name, scale)
        rows = from_csv(text)
        _expect_rows(rows, origin)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        restore = "Restore it with `git checkout -- data/results`, or: "
        raise DamagedError(
            f"the record {table.name} is damaged ({error}). {restore}{again}"
        ) from error
    tuning = [row for row in rows if row["seed"] >= TUNING]
    kept = [row for row in rows if row["seed"] < TUNING]
    return Record(pd.DataFrame(kept), pd.DataFrame(tuning), origin)


def paths(name: str, scale: str) -> tuple[Path, Path]:
    """Where a record's rows and its provenance lie."""
    folder = data_dir() / "results"
    return folder / f"{name}.{scale}.csv", folder / f"{name}.{scale}.json"


def _expect_whole(origin: Any, text: str, name: str, scale: str) -> None:
    """The provenance says all that it should, of these rows and this experiment."""
    expect(isinstance(origin, dict), "the provenance is no object")
    for key, kind in KEYS.items():
        expect(isinstance(origin.get(key), kind), f"the provenance has no {key!r}")
    digest = hashlib.sha256(text.encode()).hexdigest()
    expect(digest == origin["rows_sha256"], "the rows are not those that were measured")
    of = (origin["experiment"], origin["scale"])
    expect(of == (name, scale), f"it is the record of {of[0]} at scale {of[1]}")


def _expect_rows(rows: list[dict[str, Any]], origin: dict[str, Any]) -> None:
    """Every row has what it needs, and they are of the seeds that the provenance names."""
    for row in rows:
        whole = {"seed", "arm", "metric", "value"} <= row.keys() and None not in row
        expect(whole and isinstance(row["seed"], int), f"a row lacks something: {row}")
        expect(isinstance(row["value"], int | float), f"a value is no number: {row['value']!r}")
    seeds = [*origin["seeds"], *origin["tuning_seeds"]]
    expect({row["seed"] for row in rows} == {*seeds}, "the rows are of other seeds than it says")
    expect(len(origin["seconds"]) == len(seeds) > 0, "there is not one time for each seed")


def to_csv(rows: list[dict[str, Any]]) -> str:
    """Rows as text, with a column for every coordinate that occurs."""
    columns = dict.fromkeys(
        ["seed", "arm", "metric", "value", *(key for row in rows for key in row)]
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def from_csv(text: str) -> list[dict[str, Any]]:
    """The rows as they were measured: whole numbers stay whole, floats keep every bit.

    An empty field was no coordinate of its row.
    """
    rows = csv.DictReader(io.StringIO(text))
    return [{key: _value(key, field) for key, field in row.items() if field != ""} for row in rows]


def _value(key: str, field: str) -> Any:
    if key in ("arm", "metric"):
        return field
    if field in ("True", "False"):
        return field == "True"
    for kind in (int, float):
        try:
            return kind(field)
        except ValueError:
            pass
    return field
