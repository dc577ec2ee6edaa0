"""The lecture's tables, measured: a folder per chapter, a file per table.

`EXPERIMENTS` lists them by name; `ledger` says what they say about the claims.
"""

import pkgutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import import_module
from math import isfinite, nan

from tlcourse.claims import Claim, Verdict
from tlcourse.data import is_there
from tlcourse.experiments.base import Experiment
from tlcourse.measure import State, state

CHAPTERS = [
    "what_is_transfer_learning",
    "fine_tuning",
    "distillation",
    "attention",
    "jacobian_matching",
    "multi_task_learning",
    "lwf",
]  # in the order of the lecture; others come after


def _discovered() -> Iterator[Experiment]:
    """The `EXPERIMENT` of every module here, by chapter and then by name."""
    found = [module.name for module in pkgutil.walk_packages(__path__, f"{__name__}.")]
    places = {name: name.removeprefix(f"{__name__}.").split(".") for name in found}
    order = {folder: i for i, folder in enumerate(CHAPTERS)}
    for name in sorted(places, key=lambda n: (order.get(places[n][0], len(order)), places[n])):
        module = import_module(name)
        if hasattr(module, "EXPERIMENT"):
            yield module.EXPERIMENT


EXPERIMENTS: dict[str, Experiment] = {experiment.name: experiment for experiment in _discovered()}


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: a claim at a scale. status and verified are those of its record."""

    claim: Claim
    experiment: Experiment
    scale: str
    status: str
    found: Verdict
    problem: str = ""
    verified: str = ""

    def as_dict(self) -> dict[str, object]:
        """What `tlcourse claims --json` prints; a record that does not count has no verdict.

        Its status stands in the place. Infinite and undefined numbers are None, as JSON has none.
        """
        keys = ("id", "sentence", "source", "paper", "unit")
        found = asdict(self.found)
        return {
            **{key: getattr(self.claim, key) for key in keys},
            "chapter": self.experiment.chapter,
            "kind": self.claim.decide.kind,
            **{key: found[key] if isfinite(found[key]) else None for key in NUMBERS},
            "verdict": self.found.verdict if self.status == "current" else self.status,
            "scale": self.scale,
            "experiment": self.experiment.name,
        }


NUMBERS = ("effect", "low", "high", "seeds")


def find(name: str) -> Experiment:
    """An experiment by name. Raises ValueError with the names there are."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def ledger(name: str | None = None) -> list[Entry]:
    """The claims of one experiment, or of all, at each scale that bears on them, with verdicts.

    A scale whose data are not on board is left out, unless it has been measured elsewhere.
    """
    entries = []
    for experiment in [find(name)] if name else EXPERIMENTS.values():
        states = {s: state(experiment, s) for s in experiment.scales if s != "live"}
        for claim in experiment.claims:
            for scale in claim.scales or states:
                here = is_there(getattr(experiment.scales[scale], "data", "mnist"))
                if here or states[scale].status != "missing":
                    entries.append(_entry(claim, experiment, scale, states[scale]))
    return entries


def _entry(claim: Claim, experiment: Experiment, scale: str, its: State) -> Entry:
    nothing = Verdict("", nan, nan, nan, 0)
    if its.record is None:
        return Entry(claim, experiment, scale, its.status, nothing, its.problem)
    try:
        found, verified = its.record.judge(claim), its.record.verified
    except LookupError as error:
        again = f"{error}; measure it with `tlcourse run {experiment.name} --scale {scale}`"
        return Entry(claim, experiment, scale, "missing", nothing, again)
    return Entry(claim, experiment, scale, its.status, found, verified=verified)
