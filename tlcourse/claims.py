"""What a claim is, and how measured rows decide it.

A claim is a sentence of the lecture with the effect that would bear it out. Rows are a table with
the columns seed, arm, metric, value and coordinates such as width. Arms of one seed share what they
can, so effects are paired: one difference per seed, then a t interval.

    decide=greater("alone", "distilled", metric="errors")  # alone makes more errors
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, nan

import numpy as np
import pandas as pd
from scipy import stats

from tlcourse.methods._checks import expect

TUNING = 1000  # seeds from here on choose settings on validation data; they never enter a verdict
CONFIDENCE = 0.95  # of every interval; two one-sided tests of equivalence take 1 - 2 (1 - 0.95)
SUPPORTED, CONTRADICTED = "supported", "contradicted"
INCONCLUSIVE, NOT_TESTABLE = "inconclusive", "not testable here"


@dataclass(frozen=True)
class Verdict:
    """How rows decide a claim, and why in a few words.

    effect with the interval low to high (nan where there is none) over so many seeds.
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
    """What must hold before a claim can be tested: say, that the teacher beats the student."""

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
    """The verdict of these rows on a claim. Raises LookupError if they hold nothing it asks for."""
    rows = rows[rows["seed"] < TUNING]
    found = claim.decide(rows)
    if claim.given is None or claim.given.decide(rows).verdict == SUPPORTED:
        return found
    return replace(found, verdict=NOT_TESTABLE, why=f"not shown here: {claim.given.sentence}")


def greater(a: str, b: str, metric: str, **where: object) -> Decision:
    """Arm a has more of the metric than arm b: the interval of a − b, paired, lies above zero."""
    return contrast({a: 1.0, b: -1.0}, metric, **where)


def contrast(weights: Mapping[str, float], metric: str, **where: object) -> Decision:
    """A weighted sum of arms is above zero, by the interval over seeds.

    weights: for example {"alone": 0.5, "teacher": 0.5, "distilled": -1}. where picks the rows by
    their coordinates, for example width=300.
    """
    return _interval_inside("greater", _paired(weights, metric, where), CONFIDENCE, (0, inf))


def at_least(a: str, b: str, metric: str, *, margin: float, **where: object) -> Decision:
    """Arm a has at least as much as arm b, up to a margin: a − b has its interval above −margin."""
    expect(margin > 0, f"margin must be > 0, got {margin}")
    values = _paired({a: 1.0, b: -1.0}, metric, where)
    return _interval_inside("greater", values, CONFIDENCE, (-margin, inf), f"margin {margin:g}")


def equivalent(a: str, b: str, metric: str, *, margin: float, **where: object) -> Decision:
    """Arms a and b differ by less than the margin: the 90 % interval of a − b lies inside ±margin.

    Contradicted where it lies outside.
    """
    expect(margin > 0, f"margin must be > 0, got {margin}")
    values, level = _paired({a: 1.0, b: -1.0}, metric, where), 1 - 2 * (1 - CONFIDENCE)
    bounds = (-margin, margin)
    return _interval_inside("equivalent", values, level, bounds, f"margin ±{margin:g}")


def exact(metric: str, *, tolerance: float, **where: object) -> Decision:
    """An identity or a guarantee: the largest absolute value of the metric is within tolerance."""
    expect(tolerance >= 0, f"tolerance must be >= 0, got {tolerance}")

    def rule(rows: pd.DataFrame) -> Verdict:
        chosen = select(rows, metric, where)
        largest = float(chosen["value"].abs().max(skipna=False))
        verdict = SUPPORTED if largest <= tolerance else CONTRADICTED
        seeds = chosen["seed"].nunique()
        return Verdict(verdict, largest, nan, nan, seeds, f"tolerance {tolerance:g}")

    return Decision("exact", rule)


def count(decisions: Sequence[Decision], *, at_least: int) -> Decision:
    """At least so many of several set-ups hold.

    effect: how many do; low, high: how many do for sure, and how many are not contradicted.
    """
    many = len(decisions)
    expect(1 <= at_least <= many, f"at_least must be in 1 … {many}, got {at_least}")

    def rule(rows: pd.DataFrame) -> Verdict:
        found = [decide(rows) for decide in decisions]
        yes = sum(v.verdict == SUPPORTED for v in found)
        most = yes + sum(v.verdict == INCONCLUSIVE for v in found)
        open_ = INCONCLUSIVE if most >= at_least else CONTRADICTED
        verdict = SUPPORTED if yes >= at_least else open_
        why = f"{yes} of {many}, at least {at_least} needed"
        return Verdict(verdict, yes, yes, most, min(v.seeds for v in found), why)

    return Decision("count", rule)


def quoted(differences: Sequence[float], *, at_least: int) -> Decision:
    """The lecture's own table decides, and no row of ours: so many differences are above zero."""
    many, yes = len(differences), sum(value > 0 for value in differences)
    expect(1 <= at_least <= many, f"at_least must be in 1 … {many}, got {at_least}")
    verdict = SUPPORTED if yes >= at_least else CONTRADICTED
    found = Verdict(verdict, yes, yes, yes, 0, f"{yes} of {many}, at least {at_least} needed")
    return Decision("count", lambda rows: found)


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
    """As `select`, for one value per seed and arm.

    Raises ValueError when there are several: then `where` must name more coordinates.
    """
    chosen = select(rows, metric, where)
    several = f"{metric!r} at {dict(where)} has several values for one seed and arm"
    expect(not chosen.duplicated(["seed", "arm"]).any(), f"{several}: name more coordinates")
    return chosen


def interval(values: np.ndarray, confidence: float = CONFIDENCE) -> tuple[float, float, float, int]:
    """Mean, t interval, and n; of fewer than two seeds the interval is nan and decides nothing."""
    n, mean = len(values), float(values.mean()) if len(values) else nan
    if n < 2:
        return mean, nan, nan, n
    half = stats.t.ppf(0.5 + confidence / 2, n - 1) * values.std(ddof=1) / np.sqrt(n)
    return mean, mean - half, mean + half, n


def _paired(
    weights: Mapping[str, float], metric: str, where: Mapping[str, object]
) -> Callable[[pd.DataFrame], np.ndarray]:
    """From rows to the weighted sum of the arms, for each seed that has them all."""

    def values(rows: pd.DataFrame) -> np.ndarray:
        chosen = one_each(rows[rows["arm"].isin(weights)], metric, where)
        table = chosen.pivot(index="seed", columns="arm", values="value").reindex(
            columns=[*weights]
        )
        for arm in table.columns[table.isna().all()]:
            raise LookupError(f"the rows hold no {metric!r} at {dict(where)} for arm {arm!r}")
        return (table * pd.Series(weights)).sum(axis=1, skipna=False).dropna().to_numpy()

    return values


def _interval_inside(
    kind: str,
    values: Callable[[pd.DataFrame], np.ndarray],
    level: float,
    bounds: tuple[float, float],
    why: str = "",
) -> Decision:
    """Whether the interval of values over seeds lies inside these bounds."""

    def rule(rows: pd.DataFrame) -> Verdict:
        effect, low, high, n = interval(values(rows), level)
        return Verdict(_against(low, high, *bounds), effect, low, high, n, why)

    return Decision(kind, rule)


def _against(low: float, high: float, bottom: float, top: float) -> str:
    """Does the interval lie strictly inside (bottom, top), strictly outside, or across an edge?"""
    if bottom < low and high < top:
        return SUPPORTED
    return CONTRADICTED if high < bottom or low > top else INCONCLUSIVE  # nan is on neither side
