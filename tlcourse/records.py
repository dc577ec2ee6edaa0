"""Recorded results and their provenance.

A record is a table of rows and a file that says where they come from: `data/results/NAME.SCALE.csv`
and `NAME.SCALE.json`. It is measured seed by seed in worker processes of one thread each, so the
rows are the same whatever the number of workers; a seed that is finished is kept as a part, and an
interrupted measurement goes on where it stopped. Only a complete one replaces what was there.
"""

import csv
import hashlib
import io
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np
import pandas as pd
import torch
from scipy import stats
from tqdm.auto import tqdm

from tlcourse.claims import TUNING, interval, one_each
from tlcourse.data import data_dir
from tlcourse.digests import code_digest, forget_files
from tlcourse.methods._checks import expect


class Measurable(Protocol):
    """What `measure` needs of an experiment: a name, scales by name, and functions from (scale,
    seed, device) to rows.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def scales(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def run(self) -> Any: ...  # noqa: D102
    @property
    def tune(self) -> Any: ...  # noqa: D102


class RecordError(Exception):
    """A record is missing, damaged or being measured; the message says what to do."""


@dataclass(frozen=True)
class Record:
    """Measured rows (seed, arm, metric, value, coordinates) and where they come from."""

    rows: pd.DataFrame
    provenance: dict[str, Any]

    @property
    def seeds(self) -> int:
        """How many seeds were measured."""
        return len(self.provenance["seeds"])

    def summary(self, metric: str, **where: object) -> pd.DataFrame:
        """Mean and 95% interval over seeds of a metric, one line per arm: columns mean, low, high,
        seeds.
        """
        values = one_each(self.rows[self.rows["seed"] < TUNING], metric, where).groupby(
            "arm", sort=False
        )["value"]
        return pd.DataFrame(
            {arm: interval(v.to_numpy(), 0.95) for arm, v in values},
            index=["mean", "low", "high", "seeds"],
        ).T

    def expect(self, arm: str, metric: str, **where: object) -> tuple[float, float]:
        """Where one more seed should fall in 99 cases of 100: the prediction interval of a normal
        distribution.
        """
        rows = one_each(self.rows[self.rows["seed"] < TUNING], metric, where)
        values = rows.loc[rows["arm"] == arm, "value"]
        half = stats.t.ppf(0.995, len(values) - 1) * values.std() * (1 + 1 / len(values)) ** 0.5
        return values.mean() - half, values.mean() + half


def read(name: str, scale: str) -> Record:
    """The record of an experiment at a scale. Raises RecordError when it is missing or its two
    files do not belong together.
    """
    table, provenance = _paths(name, scale)
    again = f"Measure it with `tlcourse run {name} --scale {scale}`."
    if not (table.is_file() and provenance.is_file()):
        raise RecordError(f"{name} has no record at scale {scale}. {again}")
    try:
        origin = json.loads(provenance.read_text())
        if hashlib.sha256(table.read_bytes()).hexdigest() != origin["rows_sha256"]:
            raise ValueError("the rows are not those that were measured")
        return Record(pd.DataFrame(_from_csv(table.read_text())), origin)
    except (ValueError, KeyError, TypeError) as error:
        raise RecordError(
            f"the record {table.name} is damaged ({error}). Restore it with `git checkout -- data/results`, or: {again}"
        ) from error


def is_stale(record: Record, experiment: Measurable) -> bool:
    """Whether the code that a record was measured with has changed since, docstrings and
    annotations aside.
    """
    return record.provenance["digest"] != code_digest(experiment.run.__module__)


def measure(
    experiment: Measurable,
    scale: str,
    *,
    seeds: int | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Record:
    """Measure an experiment at a scale and write its record; seeds that are recorded already, by
    the same code, are not measured again.

    seeds: how many (those of the scale, if None). workers: processes (one per core on a CPU, else
    one; at most the scale's own `workers`, which is 1 where times are measured). Raises ValueError
    for settings out of range, and RecordError when the same measurement is running in another
    process.
    """
    expect(
        scale in experiment.scales,
        f"{experiment.name} has no scale {scale!r}; it has {', '.join(experiment.scales)}",
    )
    plan = experiment.scales[scale]
    seeds = plan.seeds if seeds is None else seeds
    workers = _cores() if workers is None else workers
    expect(1 <= seeds <= TUNING, f"seeds must be in 1 … {TUNING}, got {seeds}")
    expect(workers >= 1, f"workers must be >= 1, got {workers}")
    workers = min(workers, getattr(plan, "workers", workers)) if device == "cpu" else 1
    with _locked(experiment.name, scale):
        parts = _Parts(experiment, scale, device)
        tuning = [TUNING + i for i in range(plan.tuning_seeds)] if experiment.tune else []
        with tqdm(
            total=len(tuning) + seeds,
            desc=f"{experiment.name} ({scale})",
            unit="seed",
            disable=not progress,
        ) as bar:
            parts.fill(experiment.tune, plan, tuning, workers, bar)
            settled = plan.settle(pd.DataFrame(parts.rows(tuning)))
            seeds = max(
                seeds, parts.recorded
            )  # what is recorded stays, even if fewer are asked for
            parts.fill(experiment.run, settled, range(seeds), workers, bar)
        return parts.assemble(tuning, range(seeds))


def verify(experiment: Measurable, scale: str) -> bool:
    """Measure seed 0 again; if its rows agree with the record, stamp the record with the present
    code and return True, else False.

    Rows agree when they differ by at most one part in a million. Timings (metrics that begin with
    "seconds") are not compared.
    """
    record = read(experiment.name, scale)
    device, digest = record.provenance["device"], code_digest(experiment.run.__module__)
    with _locked(experiment.name, scale):
        recorded = _from_csv(_paths(experiment.name, scale)[0].read_text())
        plan = experiment.scales[scale].settle(
            pd.DataFrame([row for row in recorded if row["seed"] >= TUNING])
        )
        with _pool(1) as pool:
            rows, _ = pool.submit(_measure_seed, experiment.run, plan, 0, device).result()
        old, new = (
            _comparable(frame)
            for frame in (record.rows[record.rows["seed"] == 0], pd.DataFrame(rows))
        )
        if not old.index.equals(new.index) or not np.allclose(
            old, new, rtol=1e-6, atol=1e-12, equal_nan=True
        ):
            return False
        _expect_unchanged(experiment, digest)
        stamp = {"digest": digest, "verified": _today()}
        _write(
            _paths(experiment.name, scale)[1],
            json.dumps(record.provenance | stamp, indent=1) + "\n",
        )
        return True


class _Parts:
    """Finished seeds of one measurement, one file each, in a hidden folder that is named after the
    code that made them.
    """

    def __init__(self, experiment: Measurable, scale: str, device: str) -> None:
        self.experiment, self.scale, self.device = experiment, scale, device
        self.digest = code_digest(experiment.run.__module__)
        self.folder = _results() / f".{experiment.name}.{scale}.{device}.{self.digest[:12]}"
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recorded = 0
        self._keep_what_is_recorded()

    def _keep_what_is_recorded(self) -> None:
        try:
            old = read(self.experiment.name, self.scale)
        except RecordError:
            return
        rows = _from_csv(_paths(self.experiment.name, self.scale)[0].read_text())
        if old.provenance["digest"] != self.digest or old.provenance["device"] != self.device:
            return
        self.recorded = old.seeds
        for seed, seconds in zip(
            old.provenance["seeds"] + old.provenance["tuning_seeds"], old.provenance["seconds"]
        ):
            if not self._path(seed).exists():
                self._save(seed, [row for row in rows if row["seed"] == seed], seconds)

    def fill(self, function: Any, plan: Any, seeds: Iterable[int], workers: int, bar: Any) -> None:
        """Measure the seeds that have no part yet."""
        missing = [seed for seed in seeds if not self._path(seed).exists()]
        bar.update(len(list(seeds)) - len(missing))
        if not missing:
            return
        failed = []
        with _pool(min(workers, len(missing))) as pool:
            running = {
                pool.submit(_measure_seed, function, plan, seed, self.device): seed
                for seed in missing
            }
            for done in as_completed(running):
                if done.cancelled():
                    continue
                if error := done.exception():
                    failed.append(error)
                    for waiting in running:
                        waiting.cancel()  # those that run already finish
                    continue
                self._save(running[done], *done.result())
                bar.update()
        if failed:
            raise failed[0]

    def rows(self, seeds: Iterable[int]) -> list[dict[str, Any]]:
        """The rows of these seeds, in order."""
        return [row for seed in seeds for row in self._load(seed)["rows"]]

    def assemble(self, tuning: list[int], seeds: Iterable[int]) -> Record:
        """Write the record, then drop the parts."""
        everything = [*seeds, *tuning]
        try:
            _expect_unchanged(self.experiment, self.digest)
        except RecordError:
            shutil.rmtree(self.folder)  # nobody knows which code measured what
            raise
        name, scale, many = self.experiment.name, self.scale, len(everything) - len(tuning)
        table, provenance = _paths(name, scale)
        text = _to_csv(self.rows(everything))
        origin = {
            "experiment": name,
            "scale": scale,
            "command": f"tlcourse run {name} --scale {scale} --seeds {many} --device {self.device}",
            "digest": self.digest,
            "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "seeds": list(seeds),
            "tuning_seeds": tuning,
            "seconds": [round(self._load(seed)["seconds"], 1) for seed in everything],
            "device": self.device,
            "processor": _processor(self.device),
            "threads": 1,
            "versions": {
                name: version(name)
                for name in ("tlcourse", "torch", "torchvision", "numpy", "scipy")
            }
            | {"python": platform.python_version()},
            "measured": _today(),
        }
        _write(table, text)
        _write(provenance, json.dumps(origin, indent=1) + "\n")
        for folder in _results().glob(f".{self.experiment.name}.{self.scale}.{self.device}.*"):
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else None
        return read(self.experiment.name, self.scale)

    def _path(self, seed: int) -> Path:
        return self.folder / f"{seed}.json"

    def _save(self, seed: int, rows: list[dict[str, Any]], seconds: float) -> None:
        _write(self._path(seed), json.dumps({"seconds": seconds, "rows": rows}))

    def _load(self, seed: int) -> Any:
        return json.loads(self._path(seed).read_text())


def _expect_unchanged(experiment: Measurable, digest: str) -> None:
    """Raise RecordError if the code on disk is no longer that of the digest."""
    forget_files()
    if code_digest(experiment.run.__module__) != digest:
        raise RecordError(
            f"the code changed while {experiment.name} was measured; run the same command again"
        )


def _measure_seed(
    function: Any, plan: Any, seed: int, device: str
) -> tuple[list[dict[str, Any]], float]:
    """Runs in a worker process."""
    start = time.perf_counter()
    rows = [{"seed": seed, **row.as_dict()} for row in function(plan, seed, torch.device(device))]
    return rows, time.perf_counter() - start


def _start_worker() -> None:
    """One thread each; and none goes on when the process that asked for it is gone."""
    torch.set_num_threads(1)
    parent = parent_process()
    if parent is not None:
        threading.Thread(target=_exit_with, args=(parent,), daemon=True).start()


def _exit_with(parent: Any) -> None:
    parent.join()
    os._exit(1)


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Worker processes of one thread each. When the measurement is stopped, they stop at once."""
    others = active_children()
    with ProcessPoolExecutor(
        workers, mp_context=get_context("spawn"), initializer=_start_worker
    ) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                if process not in others:
                    process.terminate()
            raise


@contextmanager
def _locked(name: str, scale: str) -> Iterator[None]:
    _results().mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(_results() / f".{name}.{scale}.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RecordError(
            f"{name} ({scale}) is being measured by another process; wait for it, or stop it first."
        ) from error


def _comparable(rows: pd.DataFrame) -> pd.Series:
    kept = (
        rows[~rows["metric"].str.startswith("seconds")]
        .drop(columns="seed")
        .dropna(axis=1, how="all")
    )
    floats = kept.astype(
        dict.fromkeys(kept.select_dtypes("number"), float)
    )  # a width of 300 reads as 300.0 beside rows without one
    keys = sorted(str(column) for column in kept if column != "value")
    return floats.astype(dict.fromkeys(keys, str)).set_index(keys)["value"].sort_index()


def _results() -> Path:
    return data_dir() / "results"


def _paths(name: str, scale: str) -> tuple[Path, Path]:
    return _results() / f"{name}.{scale}.csv", _results() / f"{name}.{scale}.json"


def _to_csv(rows: list[dict[str, Any]]) -> str:
    columns = dict.fromkeys(
        ["seed", "arm", "metric", "value", *(key for row in rows for key in row)]
    )
    text = io.StringIO()
    writer = csv.DictWriter(text, list(columns), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _from_csv(text: str) -> list[dict[str, Any]]:
    """The rows as they were measured: whole numbers stay whole, floats keep every bit, and an empty
    field was no coordinate of its row.
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


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write(path: Path, text: str) -> None:
    """Write all of it or nothing."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_text(text)
    draft.replace(path)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
