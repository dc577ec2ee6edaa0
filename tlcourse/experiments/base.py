"""What an experiment is: arms and seeds in, rows out, and the claims that the rows decide."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any, Self

import pandas as pd
import torch

from tlcourse.claims import Claim


@dataclass(frozen=True)
class Row:
    """One measured value: an arm, a metric, its value, and coordinates such as {"width": 300}."""

    arm: str
    metric: str
    value: float
    at: Mapping[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """The row as it stands in a record."""
        return {"arm": self.arm, "metric": self.metric, "value": float(self.value), **self.at}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How large an experiment is; a subclass adds the experiment's own numbers.

    "lecture" and "full" decide claims; "live" is what a live cell shows with one seed, and only
    says what to expect of it. minutes: expected, of one core. workers: the most processes that may
    measure at once, 1 where times are measured. settings: by arm, where nothing is tuned. choices:
    what validation data chose, see `settle`.
    """

    seeds: int
    minutes: float
    tuning_seeds: int = 0
    workers: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    choices: pd.DataFrame | None = field(default=None, repr=False, compare=False)

    def but(self, **changes: Any) -> Self:
        """The same scale, but for these fields."""
        return replace(self, **changes)

    def settle(self, tuning: pd.DataFrame) -> Self:
        """The same scale, with the `setting` of each arm that validation data chose.

        It is the one with the lowest mean over the tuning seeds, of equals the first by name.
        """
        if tuning.empty:
            return self
        own = [column for column in tuning if column not in ("seed", "value", "setting")]
        keys = [column for column in own if tuning[column].notna().any()]
        means = tuning.groupby([*keys, "setting"], as_index=False, dropna=False)["value"].mean()
        best = means.groupby(keys, dropna=False)["value"].idxmin()
        return self.but(choices=means.loc[best])

    def chosen(self, **where: Any) -> Any:
        """The setting that was chosen, for example chosen(arm="alone", width=300)."""
        found = pd.DataFrame() if self.choices is None else self.choices
        for key, value in where.items():
            found = found[found[key] == value] if key in found else found.head(0)
        if len(found) != 1:
            raise LookupError(f"{len(found)} settings were chosen for {where}, expected one")
        return found["setting"].item()


@dataclass(frozen=True)
class Case:
    """What `tune` and `run` train alike: an arm, its settings by name, and at which coordinates.

    train takes a setting. A control has no settings to choose from: it takes what was chosen for
    the arm that it is `like`.
    """

    arm: str
    settings: Mapping[Any, Any]
    train: Callable[[Any], Any]
    at: Mapping[str, Any] = field(default_factory=dict)
    like: str = ""

    def trained(self, scale: Scale) -> Any:
        """What comes of the setting that was chosen, or where nothing is tuned of the scale's."""
        arm = self.like or self.arm
        if not scale.tuning_seeds:
            return self.train(scale.settings[arm])
        return self.train(self.settings[scale.chosen(arm=arm, **self.at)])


def tuned(cases: Iterable[Case], judge: Callable[[Any], float]) -> Iterator[Row]:
    """Every case with each of its settings, judged on validation data: the lower the better."""
    for case in cases:
        for name, setting in case.settings.items() if not case.like else ():
            found = judge(case.train(setting))
            yield Row(case.arm, "validation errors", found, {**case.at, "setting": name})


def tuned_at(tuned: Sequence[int], n: int) -> int:
    """The largest tuned size that is not above n, or the smallest of all."""
    return max((size for size in tuned if size <= n), default=min(tuned))


def combinations(grid: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Every setting that a grid of values holds, by a name that says them."""
    every = [dict(zip(grid, values)) for values in product(*grid.values())]
    return {", ".join(f"{key} {value:g}" for key, value in one.items()): one for one in every}


Measure = Callable[[Any, int, torch.device], Iterator[Row]]


@dataclass(frozen=True)
class Experiment:
    """A comparison of arms over seeds.

    run yields rows; tune, where there is one, yields validation rows with a `setting` each. name:
    of its file and records; question: what it asks; chapter: the part of the notebook's name after
    the number.
    """

    name: str
    question: str
    chapter: str
    run: Measure
    arms: Sequence[str]
    scales: Mapping[str, Scale]
    claims: Sequence[Claim] = ()
    tune: Measure | None = None
