"""What an experiment is: arms and seeds in, rows out, and the claims that the rows decide."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

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


class Scale(SimpleNamespace):
    """How large an experiment is: seeds, tuning_seeds, minutes (expected, of one core) and the
    experiment's own numbers.

    "lecture" and "full" decide claims; "live" is what a live cell shows with one seed, and only
    says what to expect of it. workers, where it is given, is the most processes that may measure at
    once: 1 where times are measured.
    """

    seeds: int
    minutes: float
    tuning_seeds: int = 0

    def settle(self, tuning: pd.DataFrame) -> "Scale":
        """The same scale, with what validation data chose for each arm: the `setting` with the
        lowest mean over the tuning seeds.
        """
        if tuning.empty:
            return self
        keys = [
            column
            for column in tuning
            if column not in ("seed", "value", "setting") and tuning[column].notna().any()
        ]
        means = tuning.groupby([*keys, "setting"], as_index=False, dropna=False)["value"].mean()
        return Scale(
            **vars(self), choices=means.loc[means.groupby(keys, dropna=False)["value"].idxmin()]
        )

    def chosen(self, **where: Any) -> Any:
        """The setting that was chosen, for example chosen(arm="alone", width=300)."""
        found = self.choices
        for key, value in where.items():
            found = found[found[key] == value]
        if len(found) != 1:
            raise LookupError(f"{len(found)} settings were chosen for {where}, expected one")
        return found["setting"].item()


Measure = Callable[[Scale, int, torch.device], Iterator[Row]]


@dataclass(frozen=True)
class Experiment:
    """A comparison of arms over seeds. run yields rows; tune, where there is one, yields validation
    rows with a `setting` each.

    name: of its file and records; question: what it asks; chapter: the part of the notebook's name
    after the number.
    """

    name: str
    question: str
    chapter: str
    run: Measure
    arms: Sequence[str]
    scales: Mapping[str, Scale]
    claims: Sequence[Claim]
    tune: Measure | None = None
