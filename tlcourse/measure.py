"""Measuring: seed by seed, in worker processes of one thread each, resumable.

The rows are the same whatever the number of workers. A seed that is finished is kept as a part,
which says with which code it was measured; an interrupted measurement goes on where it stopped, and
only a complete one replaces the record that was there.
"""

import hashlib
import json
import os
import platform
import shutil
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from multiprocessing import active_children, get_context, parent_process
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import filelock
import numpy as np
import pandas as pd
import torch
from scipy import stats

from tlcourse.claims import TUNING
from tlcourse.digests import Code, forget_files
from tlcourse.methods._checks import expect
from tlcourse.progress import progress_bar
from tlcourse.results import DamagedError, Record, RecordError, from_csv, paths, read, to_csv

EXACTLY, WITHIN = "exactly", "within the recorded range"
ALL_ROWS = 0.999  # with this confidence all rows of a seed lie within the recorded range


class Measurable(Protocol):
    """What `measure` needs: a name, scales by name, and functions (scale, seed, device) -> rows."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def scales(self) -> Mapping[str, Any]: ...  # noqa: D102
    @property
    def run(self) -> Any: ...  # noqa: D102
    @property
    def tune(self) -> Any: ...  # noqa: D102


class State(NamedTuple):
    """Whether a record counts: "current", "stale", "incomplete", "missing" or "damaged"."""

    status: str
    record: Record | None
    problem: str = ""


def state(experiment: Measurable, scale: str) -> State:
    """Whether the record of an experiment at a scale counts, and the record where there is one."""
    try:
        record = read(experiment.name, scale)
    except RecordError as error:
        return State("damaged" if isinstance(error, DamagedError) else "missing", None, str(error))
    plan = experiment.scales[scale]
    if _stamp(record) != Code.of(experiment, plan).digests():
        return State("stale", record)
    return State("incomplete" if record.seeds < plan.seeds else "current", record)


def measure(
    experiment: Measurable,
    scale: str,
    *,
    seeds: int | None = None,
    workers: int | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> Record:
    """Measure an experiment at a scale and write its record.

    Seeds that are recorded already, by the same code, are not measured again. seeds: how many
    (those of the scale, if None). workers: processes (one per core on a CPU, else one; at most the
    scale's own). Raises ValueError for settings out of range, and RecordError when the same is
    being measured by another process, or when the code changed meanwhile.
    """
    known = f"it has {', '.join(experiment.scales)}"
    expect(scale in experiment.scales, f"{experiment.name} has no scale {scale!r}; {known}")
    plan = experiment.scales[scale]
    seeds = plan.seeds if seeds is None else seeds
    workers = _cores() if workers is None else workers
    expect(1 <= seeds <= TUNING, f"seeds must be in 1 … {TUNING}, got {seeds}")
    expect(workers >= 1, f"workers must be >= 1, got {workers}")
    workers = min(workers, plan.workers or workers) if device == "cpu" else 1
    with _locked(experiment.name, scale):
        parts = _Parts(experiment, scale, device)
        seeds = max(seeds, parts.recorded)  # what is recorded stays, even if fewer are asked for
        tuning = _tuning_seeds(experiment, plan)
        title = f"{experiment.name} ({scale})"
        shown = {"total": len(tuning) + seeds, "desc": title, "unit": "seed"}
        with progress_bar(**shown, disable=not progress) as bar:
            parts.fill(experiment.tune, plan, tuning, workers, bar)
            settled = plan.settle(pd.DataFrame(parts.rows(tuning, plan)))
            parts.fill(experiment.run, settled, range(seeds), workers, bar)
        return parts.assemble(plan, tuning, settled, range(seeds))


def verify(experiment: Measurable, scale: str, *, progress: bool = True) -> str | None:
    """Measure seed 0 again, and the first that chose settings where the code that tunes changed.

    Where the code, the processor and the libraries are those that measured, rows must agree
    exactly. Elsewhere they must lie within what the recorded seeds make us expect, with a
    confidence of 99.9 % for all of them together; the rows of a single recorded seed, which has no
    spread, may not be shifted as a whole. Timings (metrics that begin with "seconds") are not
    compared. Returns how the rows agree, and stamps the record with the present code; or None, and
    the record is stale from then on. Raises RecordError as `read` and `measure` do.
    """
    record, plan = read(experiment.name, scale), experiment.scales[scale]
    code, settled = Code.of(experiment, plan), plan.settle(record.tuning)
    digests, device = code.digests(), record.provenance["device"]
    jobs = [(experiment.run, settled, 0)]
    tuning = _tuning_seeds(experiment, plan)
    if tuning and record.provenance["tune_digest"] != digests[1]:
        jobs.append((experiment.tune, plan, tuning[0]))
    agree, title = tuning == record.provenance["tuning_seeds"], f"{experiment.name} ({scale})"
    with (
        _locked(experiment.name, scale),
        progress_bar(total=len(jobs), desc=f"verifying {title}", disable=not progress) as bar,
        _pool(min(_cores(), len(jobs))) as pool,
    ):
        running = [pool.submit(_measure_seed, *job, device, code) for job in jobs if agree]
        how: list[str | None] = [EXACTLY]
        for done in as_completed(running):
            part = done.result()
            _expect_code(part["code"] == [*digests], experiment.name)
            how.append(_agreement(record, pd.DataFrame(part["rows"])))
            bar.update()
        exact = _was_exact(record) and _same_machine(record) and _stamp(record) == digests
        best = min(how, key=[None, WITHIN, EXACTLY].index) if agree else None
        best = None if exact and best != EXACTLY else best
        stamp = dict(zip(("digest", "tune_digest"), digests if best else ("", "")))
        said = f"{_today()} on {_processor(device)}, {best or 'seed 0 does not agree'}"
        _write_provenance(experiment.name, scale, record.provenance | stamp | {"verified": said})
    return best


def _agreement(record: Record, rows: pd.DataFrame) -> str | None:
    """How the rows of a seed that was measured again agree with the record."""
    seed = rows["seed"].iloc[0]
    recorded = record.rows if seed < TUNING else record.tuning
    table = pd.DataFrame({s: _comparable(part) for s, part in recorded.groupby("seed")})
    new, old = _comparable(rows), table[seed].dropna()
    if not new.dropna().index.equals(old.index):
        return None
    if new.dropna().equals(old):
        return EXACTLY
    if table.shape[1] == 1:  # one seed has no spread: is it shifted as a whole?
        return WITHIN if stats.ttest_1samp(new - old, 0).pvalue >= 1 - ALL_ROWS else None
    return WITHIN if _is_within(new, table.loc[new.index]) else None


def _is_within(new: pd.Series, recorded: pd.DataFrame) -> bool:
    """Whether values lie inside the range that the columns of recorded seeds make us expect.

    No value may be outside of it, nor all of them together further out than one alone might be.
    Where a few seeds happen to agree, the spread is that of the metric; if it has none, the value
    must be the same again. One that a single seed has is not judged.
    """
    many, mean, own = recorded.count(axis=1), recorded.mean(axis=1), recorded.std(axis=1)
    own = own.where(own > 1e-9 * recorded.abs().max(axis=1))
    metric = [json.loads(key)["metric"] for key in recorded.index]
    spread = own.fillna((own**2).groupby(metric).transform("mean") ** 0.5)
    fixed = many.gt(1) & spread.isna()
    known = many.gt(1) & spread.notna()
    far = ((new - mean).abs() / (spread * (1 + 1 / many) ** 0.5))[known]
    limit = [stats.t.ppf(1 - (1 - ALL_ROWS) / 2 / rows, many[known] - 1) for rows in (len(new), 1)]
    alone, together = (far <= limit[0]).all(), (far**2).mean() <= (limit[1] ** 2).mean()
    same = np.isclose(new[fixed], mean[fixed], rtol=1e-6, atol=0).all()
    return bool(same and (not len(far) or (alone and together)))


def _comparable(rows: pd.DataFrame) -> pd.Series:
    """The values of rows by arm, metric and coordinates, sorted; without timings."""
    kept = rows[~rows["metric"].str.startswith("seconds")]
    at = kept.drop(columns=["seed", "value"]).to_dict("records")
    keys = [{k: v * 1.0 if isinstance(v, int) else v for k, v in row.items()} for row in at]
    named = [json.dumps({k: v for k, v in key.items() if v == v}, sort_keys=True) for key in keys]
    return pd.Series(kept["value"].to_numpy(float), index=named).sort_index()


class _Parts:
    """Finished seeds of one measurement, a file each, in hidden folders named after their code."""

    def __init__(self, experiment: Measurable, scale: str, device: str) -> None:
        self.experiment, self.scale, self.device = experiment, scale, device
        self.code = Code.of(experiment, experiment.scales[scale])
        self.digests = self.code.digests()
        self.folder = self._folder(self.digests)
        self.folder.mkdir(parents=True, exist_ok=True)
        self.recorded, self.verified = 0, ""
        self._keep_what_is_recorded()

    def _folder(self, digests: Iterable[str]) -> Path:
        name = hashlib.sha256("".join(digests).encode()).hexdigest()[:12]
        return self._results / f".{self.experiment.name}.{self.scale}.{self.device}.{name}"

    @property
    def _results(self) -> Path:
        return paths(self.experiment.name, self.scale)[0].parent

    def _keep_what_is_recorded(self) -> None:
        try:
            old = read(self.experiment.name, self.scale)
        except RecordError:
            return
        if _stamp(old) != self.digests or old.provenance["device"] != self.device:
            return
        self.recorded, self.verified = old.seeds, old.verified
        rows = from_csv(paths(self.experiment.name, self.scale)[0].read_text(encoding="utf-8"))
        plan = self.experiment.scales[self.scale]
        seeds = old.provenance["seeds"] + old.provenance["tuning_seeds"]
        for seed, seconds in zip(seeds, old.provenance["seconds"]):
            settings = _settings(plan if seed >= TUNING else plan.settle(old.tuning))
            part = {"seconds": seconds, "settings": settings, "code": self.digests}
            self._save(seed, part | {"rows": [row for row in rows if row["seed"] == seed]})

    def fill(self, function: Any, plan: Any, seeds: Iterable[int], workers: int, bar: Any) -> None:
        """Measure the seeds that have no part yet. One that fails lets those that run finish."""
        missing = [seed for seed in seeds if self._load(seed, plan) is None]
        bar.update(len(list(seeds)) - len(missing))
        failed: list[BaseException] = []
        with _pool(min(workers, len(missing)) or 1) as pool:
            jobs = [(function, plan, seed, self.device, self.code) for seed in missing]
            running = {pool.submit(_measure_seed, *job): job[2] for job in jobs}
            for done in as_completed(running):
                if done.cancelled():
                    continue
                if error := done.exception():
                    failed.append(error)
                    for waiting in running:
                        waiting.cancel()
                    continue
                self._save(running[done], done.result())
                bar.update()
        if failed:
            raise failed[0]

    def rows(self, seeds: Iterable[int], plan: Any) -> list[dict[str, Any]]:
        """The rows of these seeds, in order. Raises RecordError if one is of other code."""
        parts = [self._load(seed, plan) for seed in seeds]
        _expect_code(None not in parts, self.experiment.name)
        return [row for part in parts if part for row in part["rows"]]

    def assemble(self, plan: Any, tuning: list[int], settled: Any, seeds: Iterable[int]) -> Record:
        """Write the record, read it back, then drop the parts."""
        forget_files()
        _expect_code(self.code.digests() == self.digests, self.experiment.name)
        rows = [*self.rows(seeds, settled), *self.rows(tuning, plan)]
        name, scale, device, text = self.experiment.name, self.scale, self.device, to_csv(rows)
        everything = [(seed, settled) for seed in seeds] + [(seed, plan) for seed in tuning]
        times = [part["seconds"] for job in everything if (part := self._load(*job))]
        many = len(everything) - len(tuning)
        packages = ("tlcourse", "torch", "torchvision", "numpy", "scipy")
        origin = {
            "experiment": name,
            "scale": scale,
            "command": f"tlcourse run {name} --scale {scale} --seeds {many} --device {device}",
            "digest": self.digests[0],
            "tune_digest": self.digests[1],
            "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
            "seeds": list(seeds),
            "tuning_seeds": tuning,
            "seconds": [round(seconds, 1) for seconds in times],
            "device": device,
            "processor": _processor(device),
            "threads": 1,
            "versions": {p: version(p) for p in packages} | {"python": platform.python_version()},
            "measured": _today(),
        } | ({"verified": self.verified} if self.verified else {})
        _write(paths(name, scale)[0], text)
        _write_provenance(name, scale, origin)
        record = read(name, scale)
        for folder in self._results.glob(f".{name}.{scale}.{device}.*"):
            shutil.rmtree(folder, ignore_errors=True) if folder.is_dir() else None
        return record

    def _save(self, seed: int, part: dict[str, Any]) -> None:
        folder = self._folder(part["code"])
        folder.mkdir(exist_ok=True)
        _write(folder / f"{seed}.json", json.dumps(part))

    def _load(self, seed: int, plan: Any) -> dict[str, Any] | None:
        """A finished seed; None if there is none, or it is damaged, or its settings were others."""
        try:
            part = json.loads((self.folder / f"{seed}.json").read_text(encoding="utf-8"))
            own = part["rows"] and all(row["seed"] == seed for row in part["rows"])
            right = own and part["settings"] == _settings(plan) and part["seconds"] >= 0
            return part if right else None
        except (OSError, ValueError, KeyError, TypeError):
            return None


def _tuning_seeds(experiment: Measurable, plan: Any) -> list[int]:
    return [TUNING + i for i in range(plan.tuning_seeds)] if experiment.tune else []


def _settings(plan: Any) -> str:
    """What was chosen for the arms, as text."""
    return "" if plan.choices is None else plan.choices.drop(columns="value").to_csv(index=False)


def _stamp(record: Record) -> tuple[str, str]:
    return record.provenance["digest"], record.provenance["tune_digest"]


def _was_exact(record: Record) -> bool:
    return not record.verified.endswith(WITHIN)


def _same_machine(record: Record) -> bool:
    origin = record.provenance
    packages = {name: v for name, v in origin["versions"].items() if name in ("torch", "numpy")}
    return origin["processor"] == _processor(origin["device"]) and all(
        version(name) == v for name, v in packages.items()
    )


def _expect_code(same: bool, name: str) -> None:
    """Raise RecordError unless all was measured with the code that is on disk."""
    if not same:
        raise RecordError(
            f"the code changed while {name} was measured: seeds of other code do not count, those "
            "of this code are kept. Run the same command again"
        )


@cache
def _loaded(code: Code) -> list[str]:
    """The digests of the code that this process has loaded: asked when it begins to measure."""
    return [*code.digests()]


def _measure_seed(function: Any, plan: Any, seed: int, device: str, code: Code) -> dict[str, Any]:
    """Runs in a worker process. A part: rows, seconds, settings, and the code that measured it."""
    loaded, start = _loaded(code), time.perf_counter()
    rows = [{"seed": seed, **row.as_dict()} for row in function(plan, seed, torch.device(device))]
    seconds = time.perf_counter() - start
    return {"rows": rows, "seconds": seconds, "settings": _settings(plan), "code": loaded}


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
    spawn = get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=spawn, initializer=_start_worker) as pool:
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
    folder = paths(name, scale)[0].parent
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with filelock.FileLock(folder / f".{name}.{scale}.lock", timeout=0):
            yield
    except filelock.Timeout as error:
        raise RecordError(
            f"{name} ({scale}) is being measured by another process; wait for it, or stop it first."
        ) from error


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _write_provenance(name: str, scale: str, origin: dict[str, Any]) -> None:
    _write(paths(name, scale)[1], json.dumps(origin, indent=1) + "\n")


def _write(path: Path, text: str) -> None:
    """Write all of it or nothing, as UTF-8 with plain line ends."""
    draft = path.with_name(f".{path.name}.draft")
    draft.write_bytes(text.encode())
    draft.replace(path)


def _today() -> str:
    return datetime.now(UTC).date().isoformat()


def _processor(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(
            line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")
        )
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
