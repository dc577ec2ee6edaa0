"""The lecture's tables, measured: one file per table. `EXPERIMENTS` lists them, `ledger` says what
they say about the claims.
"""

from dataclasses import asdict, dataclass
from math import inf, nan

from tlcourse import records
from tlcourse.claims import Claim, Verdict, judge
from tlcourse.data import is_there
from tlcourse.experiments.attention import attention
from tlcourse.experiments.base import Experiment
from tlcourse.experiments.distillation import distillation
from tlcourse.experiments.few_labels import few_labels
from tlcourse.experiments.forgetting import forgetting
from tlcourse.experiments.looking import looking
from tlcourse.experiments.lwf_cost import lwf_cost
from tlcourse.experiments.mnist_table import mnist_table
from tlcourse.experiments.negative_logits import negative_logits
from tlcourse.experiments.omitted_digit import omitted_digit
from tlcourse.experiments.one_teacher import one_teacher
from tlcourse.experiments.other_task import other_task
from tlcourse.experiments.task_sequence import task_sequence
from tlcourse.experiments.two_tasks import two_tasks

_ALL = (
    distillation,
    mnist_table,
    negative_logits,
    omitted_digit,
    other_task,
    attention,
    one_teacher,
    few_labels,
    looking,
    forgetting,
    task_sequence,
    lwf_cost,
    two_tasks,
)
EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in _ALL}


@dataclass(frozen=True)
class Entry:
    """One line of the ledger: a claim at a scale. status is "current", "stale", "incomplete",
    "missing" or "damaged".
    """

    claim: Claim
    experiment: Experiment
    scale: str
    status: str
    found: Verdict
    problem: str = ""

    def as_dict(self) -> dict[str, object]:
        """What `tlcourse claims --json` prints; the verdict of a record that does not count is its
        status.
        """
        numbers = {
            key: None if value in (inf, -inf) or value != value else value
            for key, value in asdict(self.found).items()
        }  # JSON knows neither
        keys = ("id", "sentence", "source", "paper", "unit")
        return {
            **{key: getattr(self.claim, key) for key in keys},
            "chapter": self.experiment.chapter,
            "kind": self.claim.decide.kind,
            **{key: numbers[key] for key in ("effect", "low", "high", "seeds")},
            "verdict": self.found.verdict if self.status == "current" else self.status,
            "scale": self.scale,
            "experiment": self.experiment.name,
        }


def find(name: str) -> Experiment:
    """An experiment by name. Raises ValueError with the names there are."""
    if name not in EXPERIMENTS:
        raise ValueError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}")
    return EXPERIMENTS[name]


def ledger(name: str | None = None) -> list[Entry]:
    """The claims of one experiment, or of all, at each scale that bears on them, with their
    verdicts.

    A scale whose data are not on board is left out, unless it has been measured elsewhere.
    """
    chosen = [find(name)] if name else list(EXPERIMENTS.values())
    entries = [
        _entry(claim, e, scale)
        for e in chosen
        for claim in e.claims
        for scale in claim.scales or e.scales
        if scale != "live"
    ]
    return [
        e
        for e in entries
        if e.status != "missing" or is_there(getattr(e.experiment.scales[e.scale], "data", "mnist"))
    ]


def _entry(claim: Claim, experiment: Experiment, scale: str) -> Entry:
    nothing = Verdict("", nan, nan, nan, 0)
    try:
        record = records.read(experiment.name, scale)
        found = judge(claim, record.rows)
    except (records.RecordError, LookupError) as error:
        status = "damaged" if "damaged" in str(error) else "missing"
        return Entry(claim, experiment, scale, status, nothing, str(error))
    stale, short = (
        records.is_stale(record, experiment),
        record.seeds < experiment.scales[scale].seeds,
    )
    return Entry(
        claim, experiment, scale, "stale" if stale else "incomplete" if short else "current", found
    )
