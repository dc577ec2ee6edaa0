"""What a claim is, and how measured rows decide it.

A claim is a sentence of the lecture with the effect that would bear it out. Rows are a table with
the columns seed, arm, metric, value and coordinates such as width. Arms of one seed share what they
can, so effects are paired: one difference per seed, then a t interval.

    decide=greater("alone", "distilled", metric="errors")     # alone makes more errors than distilled
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, isnan, nan

import numpy as np
import pandas as pd
from scipy import stats

from tlcourse.methods._checks import expect

TUNING = 1000  # seeds from here on choose settings on validation data; they never enter a verdict
SUPPORTED, CONTRADICTED, INCONCLUSIVE, NOT_TESTABLE = (
    "supported",
    "contradicted",
    "inconclusive",
    "not testable here",
)


@dataclass(frozen=True)
class Verdict:
    """How rows decide a claim. effect with the interval low to high (nan where there is none) over
    so many seeds; why, in a few words.
    """

    verdict: str
    effect: float
    low: float
    high: float
    seeds: int
    why: str = ""


@dataclass(frozen=True)
class Decision:
    """A rule from rows to a verdict, and its kind: greater, equivalent, exact, count or scope."""

    kind: str
    rule: Callable[[pd.DataFrame], Verdict]

    def __call__(self, rows: pd.DataFrame) -> Verdict:
        """Apply the rule. Raises LookupError when the rows hold nothing it asks for."""
        return self.rule(rows)


@dataclass(frozen=True)
class Given:
    """What must hold before a claim can be tested, for example that the teacher is better than the
    student.
    """

    sentence: str
    decide: Decision


@dataclass(frozen=True)
class Claim:
    """A sentence of the lecture that rows can decide.

    id is stable; source says where the sentence stands; paper quotes its numbers; unit is that of
    the effect; varies says what the interval is over. scales: the scales that bear on it (all of
    the experiment's, if empty). A claim whose `given` is not supported is not testable here.
    """

    id: str
    sentence: str
    source: str
    decide: Decision
    unit: str
    paper: str = ""
    varies: str = ""
    given: Given | None = None
    scales: tuple[str, ...] = ()


def judge(claim: Claim, rows: pd.DataFrame) -> Verdict:
    """The verdict of these rows on a claim. Raises LookupError when they hold nothing that it asks
    for.
    """
    rows = rows[rows["seed"] < TUNING]
    found = claim.decide(rows)
    if claim.given is None or claim.given.decide(rows).verdict == SUPPORTED:
        return found
    return Verdict(
        NOT_TESTABLE,
        found.effect,
        found.low,
        found.high,
        found.seeds,
        f"not shown here: {claim.given.sentence}",
    )


def greater(a: str, b: str, metric: str, **where: object) -> Decision:
    """Arm a has more of the metric than arm b: supported when the 95% interval of the paired
    difference a − b lies above zero.
    """
    return contrast({a: 1.0, b: -1.0}, metric, **where)


def contrast(weights: Mapping[str, float], metric: str, **where: object) -> Decision:
    """A weighted sum of arms is above zero, for example {"alone": 0.5, "teacher": 0.5, "distilled":
    -1}; 95% interval over seeds.

    where picks the rows by their coordinates, for example width=300.
    """
    return _interval_inside("greater", weights, metric, where, 0.95, (0, inf))


def at_least(a: str, b: str, metric: str, *, margin: float, **where: object) -> Decision:
    """Arm a has at least as much as arm b, up to a margin: the 95% interval of a − b lies above
    −margin (contradicted: below it).
    """
    expect(margin > 0, f"margin must be > 0, got {margin}")
    return _interval_inside(
        "greater", {a: 1.0, b: -1.0}, metric, where, 0.95, (-margin, inf), f"margin {margin:g}"
    )


def equivalent(a: str, b: str, metric: str, *, margin: float, **where: object) -> Decision:
    """Arms a and b differ by less than the margin: the 90% interval of a − b lies inside ±margin
    (contradicted: outside of it).
    """
    expect(margin > 0, f"margin must be > 0, got {margin}")
    return _interval_inside(
        "equivalent",
        {a: 1.0, b: -1.0},
        metric,
        where,
        0.90,
        (-margin, margin),
        f"margin ±{margin:g}",
    )


def exact(metric: str, *, tolerance: float, **where: object) -> Decision:
    """An identity or a guarantee: supported when the largest absolute value of the metric is at
    most the tolerance.
    """
    expect(tolerance >= 0, f"tolerance must be >= 0, got {tolerance}")

    def rule(rows: pd.DataFrame) -> Verdict:
        chosen = select(rows, metric, where)
        largest = float(chosen["value"].abs().max(skipna=False))
        return Verdict(
            SUPPORTED if largest <= tolerance else CONTRADICTED,
            largest,
            nan,
            nan,
            chosen["seed"].nunique(),
            f"tolerance {tolerance:g}",
        )

    return Decision("exact", rule)


def count(decisions: Sequence[Decision], *, at_least: int) -> Decision:
    """At least so many of several set-ups hold. effect: how many do; low, high: how many do for
    sure, and how many are not contradicted.
    """
    expect(
        1 <= at_least <= len(decisions), f"at_least must be in 1 … {len(decisions)}, got {at_least}"
    )

    def rule(rows: pd.DataFrame) -> Verdict:
        found = [decide(rows) for decide in decisions]
        yes = sum(v.verdict == SUPPORTED for v in found)
        open_ = sum(v.verdict == INCONCLUSIVE for v in found)
        verdict = (
            SUPPORTED
            if yes >= at_least
            else CONTRADICTED
            if yes + open_ < at_least
            else INCONCLUSIVE
        )
        return Verdict(
            verdict,
            yes,
            yes,
            yes + open_,
            min(v.seeds for v in found),
            f"{yes} of {len(found)}, at least {at_least} needed",
        )

    return Decision("count", rule)


def scope(limit: str) -> Decision:
    """A limit that can only be stated, not measured: its verdict is "stated"."""
    return Decision("scope", lambda rows: Verdict("stated", nan, nan, nan, 0, limit))


def select(rows: pd.DataFrame, metric: str, where: Mapping[str, object]) -> pd.DataFrame:
    """The rows of a metric at these coordinates. Raises LookupError when there are none."""
    chosen = rows[rows["metric"] == metric]
    for name, wanted in where.items():
        if name not in chosen:
            raise LookupError(f"the rows have no coordinate {name!r}")
        chosen = chosen[chosen[name] == wanted]
    if chosen.empty:
        raise LookupError(f"the rows hold no {metric!r} at {dict(where)}")
    return chosen


def one_each(rows: pd.DataFrame, metric: str, where: Mapping[str, object]) -> pd.DataFrame:
    """As `select`, for one value per seed and arm. Raises ValueError when there are several: then
    `where` must name more coordinates.
    """
    chosen = select(rows, metric, where)
    several = chosen.duplicated(["seed", "arm"]).any()
    expect(
        not several,
        f"{metric!r} at {dict(where)} has several values for one seed and arm: name more coordinates",
    )
    return chosen


def _paired(
    rows: pd.DataFrame, weights: Mapping[str, float], metric: str, where: Mapping[str, object]
) -> np.ndarray:
    """The weighted sum of the arms, for each seed that has them all."""
    chosen = one_each(rows[rows["arm"].isin(weights)], metric, where)
    table = chosen.pivot(index="seed", columns="arm", values="value").reindex(columns=list(weights))
    if table.isna().all().any():
        raise LookupError(
            f"the rows hold no {metric!r} at {dict(where)} for arm {table.columns[table.isna().all()][0]!r}"
        )
    return (table * pd.Series(weights)).sum(axis=1, skipna=False).dropna().to_numpy()


def interval(values: np.ndarray, confidence: float) -> tuple[float, float, float, int]:
    """Mean and t interval; an interval of nan for fewer than two seeds, which decides nothing."""
    n, mean = len(values), float(values.mean()) if len(values) else nan
    if n < 2:
        return mean, nan, nan, n
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half, n


def _interval_inside(
    kind: str,
    weights: Mapping[str, float],
    metric: str,
    where: Mapping[str, object],
    level: float,
    bounds: tuple[float, float],
    why: str = "",
) -> Decision:
    """Whether the interval of a weighted sum of arms, paired over seeds, lies inside these bounds."""

    def rule(rows: pd.DataFrame) -> Verdict:
        effect, low, high, n = interval(_paired(rows, weights, metric, where), level)
        return Verdict(_against(low, high, *bounds), effect, low, high, n, why)

    return Decision(kind, rule)


def _against(low: float, high: float, bottom: float, top: float) -> str:
    """Does the interval lie strictly inside (bottom, top), strictly outside of it, or across its
    edge?
    """
    if isnan(low):
        return INCONCLUSIVE
    return (
        SUPPORTED
        if bottom < low and high < top
        else CONTRADICTED
        if high < bottom or low > top
        else INCONCLUSIVE
    )
