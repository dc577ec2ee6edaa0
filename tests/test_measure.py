"""Measured, interrupted, continued, verified: with a made-up experiment of milliseconds."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import toy_experiment
from toy_experiment import counted, kinds, toy, undefined

from tlcourse import measure as measuring
from tlcourse.claims import TUNING
from tlcourse.digests import Code, forget_files
from tlcourse.experiments.base import Scale
from tlcourse.measure import EXACTLY, WITHIN, measure, state, verify
from tlcourse.results import Record, RecordError, read, to_csv

TESTS = Path(__file__).parent
DIGESTS = Code.of(toy, toy.scales["tiny"]).digests()


@pytest.fixture
def log(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the toy notes its calls."""
    monkeypatch.setenv("TOY_LOG", str(home / "log"))
    return home / "log"


@pytest.fixture
def here(log: Path, in_this_process: None) -> Path:
    """Where the records go."""
    return log.parent / "data" / "results"


def quietly(experiment=toy, scale="tiny", **how) -> Record:
    return measure(experiment, scale, progress=False, workers=1, **how)


def calls(log: Path) -> list[str]:
    """What was called since the last time this was asked, in alphabetical order, without the seeds
    that were done.
    """
    lines = log.read_text(encoding="utf-8").split("\n")[:-1] if log.exists() else []
    log.unlink(missing_ok=True)
    return sorted(line for line in lines if not line.startswith("done"))


def files(results: Path) -> dict[str, bytes]:
    """The record's two files."""
    return {path.suffix: path.read_bytes() for path in results.glob("[!.]*")}


def left_over(results: Path) -> set[str]:
    """Whatever lies beside the record; a lock file may stay."""
    return {path.name for path in results.glob(".*") if path.suffix != ".lock"}


def rewrite(results: Path, rows: pd.DataFrame | None = None, **changes: object) -> None:
    """Change a record as if other code had measured it."""
    table, provenance = results / "toy.tiny.csv", results / "toy.tiny.json"
    if rows is not None:
        kept = [
            {k: v for k, v in row.items() if k == "value" or v == v}
            for row in rows.to_dict("records")
        ]
        table.write_bytes(to_csv(kept).encode())
    digest = hashlib.sha256(table.read_bytes()).hexdigest()
    said = json.loads(provenance.read_text(encoding="utf-8"))
    provenance.write_text(json.dumps(said | {"rows_sha256": digest} | changes), encoding="utf-8")


# what is written


def test_a_record_reads_back_bit_for_bit(here):
    measured = quietly()
    settled = toy.scales["tiny"].settle(measured.tuning)
    cpu = torch.device("cpu")
    expected = [
        {"seed": s, **row.as_dict()}
        for s in range(3)
        for row in toy_experiment.run(settled, s, cpu)
    ]
    expected += [
        {"seed": s, **row.as_dict()}
        for s in (TUNING, TUNING + 1)
        for row in toy_experiment.tune(settled, s, cpu)
    ]
    for found in (measured, read("toy", "tiny")):
        both = pd.concat([found.rows, found.tuning])
        wanted = pd.DataFrame(expected)
        pd.testing.assert_frame_equal(
            both[wanted.columns].reset_index(drop=True), wanted, check_exact=True
        )
        assert both["value"].to_numpy().tobytes() == wanted["value"].to_numpy().tobytes()


def test_coordinates_keep_their_kind(here):
    quietly(kinds)
    found = read("kinds", "tiny").summary(
        "errors", augmented=True, images=5, rate=1e-3, layer="fc7"
    )
    assert found.loc["plain", "mean"] == 11.0  # of 10, 11 and 12


def test_a_record_says_where_it_comes_from(here):
    origin = quietly(seeds=2).provenance
    assert (
        origin
        == read("toy", "tiny").provenance
        == json.loads((here / "toy.tiny.json").read_text(encoding="utf-8"))
    )
    said = ("experiment", "scale", "seeds", "tuning_seeds", "device", "threads", "command")
    command = "tlcourse run toy --scale tiny --seeds 2 --device cpu"
    assert [origin[key] for key in said] == ["toy", "tiny", [0, 1], [1000, 1001], "cpu", 1, command]
    assert (origin["digest"], origin["tune_digest"]) == DIGESTS
    assert origin["rows_sha256"] == hashlib.sha256((here / "toy.tiny.csv").read_bytes()).hexdigest()
    assert {name: version(name) for name in ("tlcourse", "torch", "numpy")}.items() <= origin[
        "versions"
    ].items()
    assert origin["versions"]["python"] == sys.version.split()[0]
    assert len(origin["processor"]) > 0
    assert (
        abs(datetime.now(UTC).date() - datetime.fromisoformat(origin["measured"]).date()).days <= 1
    )


def test_seconds_are_those_of_each_seed(here, monkeypatch):
    monkeypatch.setenv("TOY_SLEEP", "0.1")
    found = quietly(scale="untuned", seeds=2).provenance["seconds"]
    assert len(found) == 2
    assert min(found) >= 0.1


def test_nothing_is_left_beside_a_record(here):
    quietly()
    assert set(files(here)) == {".csv", ".json"}
    assert left_over(here) == set()


def test_the_number_of_seeds_is_that_of_the_scale(here):
    assert quietly().seeds == 3
    assert sorted(set(quietly(scale="untuned").rows["seed"])) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("scale", "how", "said"),
    [
        ("huge", {}, "toy has no scale 'huge'; it has tiny, untuned"),
        ("tiny", {"seeds": 0}, "seeds must be in 1 … 1000, got 0"),
        ("tiny", {"seeds": 1001}, "seeds must be in 1 … 1000, got 1001"),
        ("tiny", {"workers": 0}, "workers must be >= 1, got 0"),
    ],
)
def test_refuses(log, scale, how, said):
    with pytest.raises(ValueError, match=said):
        measure(toy, scale, progress=False, **how)
    assert calls(log) == []
    assert not (log.parent / "data" / "results").exists()


# more seeds, and other code


def test_more_seeds_measure_only_the_new_ones(here, log):
    quietly(seeds=4)
    at_once = files(here)[".csv"]
    (here / "toy.tiny.csv").unlink()
    quietly(seeds=2)
    calls(log)
    quietly(seeds=4)
    assert calls(log) == ["run 2", "run 3"]
    assert files(here)[".csv"] == at_once
    assert left_over(here) == set()


def test_a_record_that_is_complete_is_not_measured_again(here, log):
    quietly()
    before = files(here)[".csv"]
    calls(log)
    quietly()
    assert calls(log) == []
    assert files(here)[".csv"] == before


def test_whole_number_settings_stay_whole_when_seeds_are_added(here):
    at_once = quietly(counted, seeds=3).rows
    (here / "counted.tiny.csv").unlink()
    quietly(counted, seeds=1)
    pd.testing.assert_frame_equal(quietly(counted, seeds=3).rows, at_once)


def test_a_first_value_that_is_nan_stays_in_its_column_when_seeds_are_added(here):
    quietly(undefined, seeds=3)
    at_once = files(here)[".csv"]
    (here / "undefined.tiny.csv").unlink()
    quietly(undefined, seeds=1)
    quietly(undefined, seeds=3)
    assert files(here)[".csv"] == at_once


@pytest.mark.parametrize("change", [{"digest": "0" * 64}, {"device": "cuda"}])
def test_what_other_code_or_another_device_measured_is_measured_again(here, log, change):
    quietly()
    rewrite(here, **change)
    calls(log)
    quietly()
    assert calls(log) == ["run 0", "run 1", "run 2", "tune 1000", "tune 1001"]


CHANGES = """
import os
from pathlib import Path
from tlcourse.experiments.base import Row
from toy_experiment import note

RATE = 1

def run(scale, seed, device):
    note(f"run {seed}")
    if os.environ.get("TOY_EDIT") == str(seed):
        path = Path(__file__)
        text = path.read_text(encoding="utf-8").replace("RATE = 1", "RATE = 2")
        path.write_text(text, encoding="utf-8")
    yield Row("a", "m", RATE)
"""


@pytest.fixture
def lesson(tmp_path, monkeypatch):
    """An experiment whose code edits itself at the seed TOY_EDIT, and what puts it back."""
    monkeypatch.syspath_prepend(tmp_path / "modules")
    monkeypatch.setenv(
        "PYTHONPATH", f"{tmp_path / 'modules'}{os.pathsep}{TESTS}", prepend=os.pathsep
    )
    path = tmp_path / "modules" / "lesson.py"
    path.parent.mkdir()

    def put_back():
        path.write_text(CHANGES, encoding="utf-8")
        importlib.invalidate_caches()
        forget_files()
        measuring._loaded.cache_clear()
        sys.modules.pop("lesson", None)
        run = importlib.import_module("lesson").run
        return replace(toy, name="lesson", run=run, tune=None)

    yield put_back
    sys.modules.pop("lesson", None)
    forget_files()


def test_code_that_changes_during_the_measurement_makes_no_record(here, log, lesson, monkeypatch):
    """Seeds that were measured before the edit, and with it, count for what they are."""
    monkeypatch.setenv("TOY_EDIT", "1")
    with pytest.raises(RecordError, match="the code changed while lesson was measured"):
        quietly(lesson())
    assert files(here) == {}
    monkeypatch.delenv("TOY_EDIT")
    calls(log)
    quietly(lesson())
    assert calls(log) == [], "one process had loaded one code, so its seeds count"


@pytest.mark.slow
def test_seeds_of_edited_code_do_not_count_when_it_is_put_back(log, lesson, monkeypatch):
    """The second worker process starts after the edit."""
    results = log.parent / "data" / "results"
    experiment = lesson()
    monkeypatch.setenv("TOY_EDIT", "0")
    with pytest.raises(RecordError, match="the code changed"):
        measure(experiment, "tiny", seeds=1, workers=1, progress=False)
    edited = measure(experiment, "tiny", seeds=2, workers=1, progress=False)
    assert edited.rows["value"].tolist() == [2.0, 2.0], "a record of the code that is there now"
    monkeypatch.delenv("TOY_EDIT")
    found = measure(lesson(), "tiny", seeds=2, workers=1, progress=False)
    assert found.rows["value"].tolist() == [1.0, 1.0]
    assert left_over(results) == set()


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"rows": []}', b"\xff"])
def test_a_part_that_is_damaged_is_measured_again(here, log, content):
    whole = quietly().rows
    rewrite(here, digest="0" * 64)
    folder = measuring._Parts(toy, "tiny", "cpu").folder
    (folder / "1.json").write_bytes(content)
    pd.testing.assert_frame_equal(quietly().rows, whole, check_exact=True)
    assert left_over(here) == set()


def test_a_part_that_was_measured_with_other_settings_does_not_count(here, log):
    whole = quietly().rows
    rewrite(here, digest="0" * 64)
    parts = measuring._Parts(toy, "tiny", "cpu")
    part = {"seconds": 1.0, "settings": "others", "code": [*parts.digests]}
    parts._save(1, part | {"rows": [{"seed": 1, "arm": "plain", "metric": "m", "value": 0}]})
    pd.testing.assert_frame_equal(quietly().rows, whole, check_exact=True)


# interrupted


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.mark.parametrize("after", ["nothing", "the draft", "the file"])
def test_interrupted_at_any_write_it_goes_on_where_it_stopped(here, log, monkeypatch, after):
    whole = quietly()
    csv = files(here)[".csv"]
    rewrite(here, digest="0" * 64)
    old, write = files(here), measuring._write
    pieces = 2 + 3 + 2  # tuning seeds, seeds, the record's two files
    for point in range(pieces):
        for suffix, content in old.items():
            (here / f"toy.tiny{suffix}").write_bytes(content)
        done: list[Path] = []

        def interrupted(path: Path, text: str, point: int = point, done: list[Path] = done) -> None:
            if len(done) == point:
                if after == "the draft":
                    path.with_name(f".{path.name}.draft").write_text(text[:5], encoding="utf-8")
                if after == "the file":
                    write(path, text)
                raise Killed
            write(path, text)
            done.append(path)

        monkeypatch.setattr(measuring, "_write", interrupted)
        with pytest.raises(Killed):
            quietly()
        monkeypatch.setattr(measuring, "_write", write)
        kept = {path.stem for path in here.glob(".toy.tiny.*/[!.]*.json")}
        assert len(kept) == min(point + (after == "the file"), 5)
        if len(kept) < 5:
            assert files(here) == old
        calls(log)
        found = quietly()
        expected = {"tune 1000", "tune 1001", "run 0", "run 1", "run 2"}
        assert set(calls(log)) == {call for call in expected if call.split()[1] not in kept}
        assert files(here)[".csv"] == csv
        assert found.provenance["digest"] == whole.provenance["digest"]
        assert left_over(here) == set()


def start(scale: str, **environment: str) -> subprocess.Popen[bytes]:
    """Measure the toy in a process group of its own, with one worker process."""
    # a job in the background may ignore Ctrl-C
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"
    code = f"{heed}; import toy_experiment as t; from tlcourse.measure import measure; "
    code += f"measure(t.toy, '{scale}', seeds=6, workers=1, progress=False)"
    environment |= {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ["PYTHONPATH"]])}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        start_new_session=True,
        **pipes,
    )


def wait_for(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited too long"
        time.sleep(0.02)


def end(process: subprocess.Popen[bytes]) -> None:
    """Leave nothing of a process group behind."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.slow
def test_killed_again_and_again_it_goes_on_where_it_stopped(log, monkeypatch):
    results = log.parent / "data" / "results"

    def parts() -> set[str]:
        return {path.stem for path in results.glob(".toy.tiny.cpu.*/[!.]*.json")}

    finished: set[str] = set()
    for many in (1, 4):
        process = start("tiny", TOY_SLEEP="0.4")
        try:
            wait_for(lambda many=many: len(parts()) >= many)
            with pytest.raises(
                RecordError, match=r"toy \(tiny\) is being measured by another process"
            ):
                quietly()
            process.kill()
            process.communicate(timeout=60)  # until no worker is left that could write to it
        finally:
            end(process)
        assert process.returncode == -signal.SIGKILL
        begun = {call.split()[1] for call in calls(log)}
        assert not begun & finished, "a finished seed was measured again"
        finished = parts()
    assert files(results) == {}
    monkeypatch.setattr(measuring, "_pool", lambda workers: ThreadPoolExecutor(1))
    quietly(seeds=6)
    seeds = {"1000", "1001", *map(str, range(6))}
    assert {call.split()[1] for call in calls(log)} == seeds - finished
    resumed = files(results)[".csv"]
    assert left_over(results) == set()
    (results / "toy.tiny.csv").unlink()
    quietly(seeds=6)
    assert files(results)[".csv"] == resumed


@pytest.mark.slow
def test_ctrl_c_stops_the_measurement_and_keeps_finished_seeds(log):
    results = log.parent / "data" / "results"
    process = start("untuned", TOY_SLEEP="1")
    try:
        wait_for(lambda: list(results.glob(".toy.untuned.cpu.*/0.json")))
        os.killpg(process.pid, signal.SIGINT)
        wait_for(lambda: process.poll() is not None)
    finally:
        end(process)
    assert files(results) == {}
    assert list(results.glob(".toy.untuned.cpu.*/0.json"))
    assert "run 5" not in calls(log), "it went on measuring after Ctrl-C"


@pytest.mark.slow
def test_the_number_of_workers_changes_no_row(log, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS")
    results = log.parent / "data" / "results"
    one = measure(toy, "untuned", workers=1, progress=False)
    written = files(results)[".csv"]
    (results / "toy.untuned.csv").unlink()
    measure(toy, "untuned", workers=2, progress=False)
    assert files(results)[".csv"] == written
    assert set(one.rows.loc[one.rows["metric"] == "threads", "value"]) == {1.0}
    assert calls(log) == sorted(2 * [f"run {seed}" for seed in range(4)])


@pytest.mark.slow
def test_a_seed_that_raises_loses_no_finished_seed(here, log):
    quietly(scale="untuned", seeds=1)
    provenance = here / "toy.untuned.json"
    text = provenance.read_text(encoding="utf-8")
    digest = Code.of(toy, toy.scales["untuned"]).digests()[0]
    provenance.write_text(text.replace(digest, "0" * 64), encoding="utf-8")
    before = files(here)
    log.unlink()
    process = start("untuned", TOY_FAIL="2", TOY_SLEEP="0.2")
    try:
        said, _ = process.communicate(timeout=60)
    finally:
        end(process)
    assert b"ArithmeticError: seed 2 was told to fail" in said
    assert files(here) == before
    quietly(scale="untuned", seeds=6)
    done = Counter(
        line for line in log.read_text(encoding="utf-8").splitlines() if line.startswith("done")
    )
    assert done == {f"done {seed}": 1 for seed in range(6)}, (
        "a seed that was finished was measured again"
    )


def test_a_second_measurement_at_the_same_time_is_refused(here, log):
    quietly()
    calls(log)
    before = files(here)
    with measuring._locked("toy", "tiny"):
        for second in (lambda: quietly(seeds=5), lambda: verify(toy, "tiny")):
            said = (
                r"toy \(tiny\) is being measured by another process; wait for it, or stop it first"
            )
            with pytest.raises(RecordError, match=said):
                second()
        assert calls(log) == []
        assert files(here) == before
        assert quietly(scale="untuned", seeds=1).seeds == 1  # another scale is another record
    assert quietly(seeds=5).seeds == 5


# verify


@pytest.fixture
def stale(here, log):
    """A record of older code that measured the same."""
    quietly()
    rewrite(here, digest="0" * 64)
    calls(log)
    return here


def again(**how) -> str | None:
    return verify(toy, "tiny", progress=False, **how)


def origin(results: Path) -> dict:
    return json.loads((results / "toy.tiny.json").read_text(encoding="utf-8"))


def test_verify_stamps_a_record_whose_rows_agree(stale, log):
    before, rows = origin(stale), files(stale)[".csv"]
    assert again() == EXACTLY
    assert calls(log) == ["run 0"]
    after = origin(stale)
    assert {key for key in after if after[key] != before.get(key)} == {"digest", "verified"}
    assert (after["digest"], after["tune_digest"]) == DIGESTS
    assert after["verified"].endswith(f" on {after['processor']}, exactly")
    assert files(stale)[".csv"] == rows
    assert state(toy, "tiny").status == "current"
    assert left_over(stale) == set()


def test_verify_looks_at_tuning_where_its_code_changed(here, log):
    quietly()
    rewrite(here, tune_digest="0" * 64)
    assert state(toy, "tiny").status == "stale"
    calls(log)
    assert again() == EXACTLY
    assert calls(log) == ["run 0", "tune 1000"]
    assert state(toy, "tiny").status == "current"


def test_a_grid_that_changed_is_not_stamped_with_the_old_tuning_rows(here, log, monkeypatch):
    quietly()
    rewrite(here, tune_digest="0" * 64)
    more = {"plain": {0.1: (1.0, 9.0), 0.2: (4.0, 4.0), 0.3: (5.0, 5.0)}}
    monkeypatch.setattr(toy_experiment, "VALIDATION", toy_experiment.VALIDATION | more)
    assert again() is None
    assert state(toy, "tiny").status == "stale"


def test_verify_measures_even_what_is_current_and_wants_it_exact(here, log, monkeypatch):
    quietly()
    calls(log)
    assert again() == EXACTLY
    assert calls(log) == ["run 0"]
    monkeypatch.setenv("TOY_SHIFT", "1e-12")
    assert again() is None


def test_what_does_not_agree_is_stale_and_measured_anew(here, log):
    whole = quietly().rows
    wrong = pd.concat([read("toy", "tiny").rows, read("toy", "tiny").tuning])
    wrong.iloc[0, wrong.columns.get_loc("value")] = 99.0
    rewrite(here, wrong)
    assert again() is None
    assert state(toy, "tiny").status == "stale"
    calls(log)
    pd.testing.assert_frame_equal(quietly().rows, whole, check_exact=True)
    assert calls(log) == ["run 0", "run 1", "run 2", "tune 1000", "tune 1001"]


@pytest.mark.parametrize(
    "elsewhere",
    [
        {"digest": "0" * 64},
        {"processor": "of another kind"},
        {"versions": {"torch": "2.0"}},
        {"verified": "2026-01-01 on another, within the recorded range"},
    ],
)
def test_elsewhere_rows_must_lie_within_the_recorded_range(here, monkeypatch, elsewhere):
    """The toy's errors spread by 0.03 over three seeds: a shift of 0.02 is nothing, 20 is."""
    quietly()
    rewrite(here, **elsewhere)
    steady = read("toy", "tiny").rows.query("metric != 'awkward'")
    monkeypatch.setattr(toy_experiment, "AWKWARD", ())
    rewrite(here, pd.concat([steady, read("toy", "tiny").tuning]), **elsewhere)
    monkeypatch.setenv("TOY_SHIFT", "0.02")
    assert again() == WITHIN
    assert state(toy, "tiny").status == "current"
    assert origin(here)["verified"].endswith(", within the recorded range")
    assert again() == WITHIN, "exact agreement is not asked of what agreed within the range"
    monkeypatch.setenv("TOY_SHIFT", "20")
    assert again() is None


def test_what_is_equal_in_every_seed_must_be_equal_again(stale, monkeypatch):
    monkeypatch.setattr(toy_experiment, "AWKWARD", (0.31, *toy_experiment.AWKWARD[1:]))
    assert again() is None


def frames(seeds: int, shift: float, rows: int = 50, wild: float = 0.0):
    """Recorded values of so many rows and seeds, and those of a seed that is shifted."""
    generator = np.random.default_rng(0)
    index = [json.dumps({"metric": "errors", "row": row}) for row in range(rows)]
    recorded = pd.DataFrame(generator.normal(size=(rows, seeds)), index)
    new = pd.Series(generator.normal(size=rows) + shift, index)
    new.iloc[0] += wild
    return new, recorded


def test_rows_of_the_same_distribution_are_within_the_range_999_times_of_1000():
    drawn = np.random.default_rng(1).normal(size=(2000, 40, 6))
    index = ['{"metric": "errors"}'] * 40
    inside = [
        measuring._is_within(pd.Series(table[:, 5], index), pd.DataFrame(table[:, :5], index))
        for table in drawn
    ]
    assert np.mean(inside) >= 0.997


@pytest.mark.parametrize(
    ("seeds", "shift", "wild", "within"),
    [
        (6, 0.0, 0.0, True),
        (6, 10.0, 0.0, False),  # every row a little out is more than one row may be
        (6, 0.0, 100.0, False),
        (30, 0.0, 8.0, False),
        (30, 0.5, 0.0, True),
    ],
)
def test_the_range_is_of_all_rows_together(seeds, shift, wild, within):
    assert measuring._is_within(*frames(seeds, shift, wild=wild)) is within


def test_a_tie_of_two_seeds_is_no_promise():
    """Two of many counts agree by chance; where a metric never varies, it must not."""
    new, recorded = frames(2, 0.0)
    recorded.iloc[0] = 0.5
    new.iloc[0] = 1.5
    assert measuring._is_within(new, recorded)
    recorded.index = [*['{"metric": "fixed"}'], *recorded.index[1:]]
    new.index = recorded.index
    assert not measuring._is_within(new, recorded)
    new.iloc[0] = 0.5
    assert measuring._is_within(new, recorded)


def test_a_row_of_one_seed_alone_says_nothing():
    new, recorded = frames(6, 0.0)
    recorded.iloc[0, 1:] = np.nan
    new.iloc[0] = 1e9
    assert measuring._is_within(new, recorded)


@pytest.mark.parametrize(
    ("noise", "within"), [((0.3, -0.2, -0.3, 0.1), True), ((2.0, 2.1, 1.9, 2.2), False)]
)
def test_the_rows_of_one_tuning_seed_may_not_be_shifted_as_a_whole(
    here, monkeypatch, noise, within
):
    one = replace(toy, scales={"tiny": toy.scales["tiny"].but(tuning_seeds=1)})
    quietly(one)
    rewrite(here, tune_digest="0" * 64, processor="of another kind")
    shifts = iter(noise)
    moved = {
        arm: {setting: (first + next(shifts), second) for setting, (first, second) in by.items()}
        for arm, by in toy_experiment.VALIDATION.items()
    }
    monkeypatch.setattr(toy_experiment, "VALIDATION", moved)
    assert verify(one, "tiny", progress=False) == (WITHIN if within else None)


def test_verify_does_not_compare_timings(stale, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "7")
    assert again() == EXACTLY


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[rows["metric"] != "threads"],
        lambda rows: pd.concat([rows, rows.tail(1).assign(seed=0, metric="another")]),
        lambda rows: rows.assign(width=rows["width"].replace(300, 301)),
        lambda rows: rows.assign(arm=rows["arm"].replace("plain", "bare")),
    ],
    ids=["a row more", "a row less", "another coordinate", "another arm"],
)
def test_verify_wants_the_same_rows(stale, change):
    found = read("toy", "tiny")
    rewrite(stale, pd.concat([change(found.rows), found.tuning]), digest="0" * 64)
    before = files(stale)[".csv"]
    assert again() is None
    assert files(stale)[".csv"] == before


def test_verify_does_not_mind_the_order_of_rows(stale):
    found = read("toy", "tiny")
    rewrite(stale, pd.concat([found.rows.iloc[::-1], found.tuning]), digest="0" * 64)
    assert again() == EXACTLY


def test_verify_of_whole_number_settings(here):
    quietly(counted)
    assert verify(counted, "tiny", progress=False) == EXACTLY


def test_verify_needs_a_record(here):
    with pytest.raises(RecordError, match="toy has no record at scale tiny"):
        again()


def test_seeds_can_be_added_to_a_verified_record(stale, log, monkeypatch):
    rewrite(stale, processor="of another kind")
    assert again() == EXACTLY
    said = origin(stale)["verified"]
    calls(log)
    quietly(seeds=4)
    assert calls(log) == ["run 3"]
    assert origin(stale)["verified"] == said, "rows of an earlier code are among them"


# tuning


def test_the_setting_with_the_lowest_mean_is_chosen_for_each_arm(here):
    found = quietly()
    settled = toy.scales["tiny"].settle(found.tuning)
    assert [settled.chosen(arm=arm) for arm in ("plain", "tuned")] == [0.2, 0.1]
    assert settled.seeds == 3
    plain, tuned = (
        found.summary("errors", width=30).loc[arm, "mean"] for arm in ("plain", "tuned")
    )
    assert (plain, tuned) == (
        pytest.approx(0.2, abs=0.08),
        pytest.approx(0.1, abs=0.08),
    )  # the toy adds what was chosen to noise of 0.03


def validation(arm: str, setting: float, *values: float, **where: object) -> list[dict]:
    return [
        {"seed": TUNING + i, "arm": arm, "metric": "v", "value": value, "setting": setting, **where}
        for i, value in enumerate(values)
    ]


def test_a_setting_is_chosen_for_each_coordinate():
    misses = {30: {0.1: 1.0, 0.2: 3.0}, 300: {0.1: 3.0, 0.2: 1.0}}
    rows = [
        row
        for width, means in misses.items()
        for setting, mean in means.items()
        for row in validation("a", setting, mean, width=width)
    ]
    settled = Scale(seeds=1, minutes=1).settle(pd.DataFrame(rows))
    assert [settled.chosen(arm="a", width=width) for width in (30, 300)] == [0.1, 0.2]


def test_an_arm_without_a_coordinate_is_tuned_beside_one_that_has_it():
    rows = [
        *validation("a", 0.1, 1.0, width=30),
        *validation("a", 0.2, 2.0, width=30),
        *validation("b", 0.1, 2.0),
        *validation("b", 0.2, 1.0),
    ]
    settled = Scale(seeds=1, minutes=1).settle(pd.DataFrame(rows))
    assert [settled.chosen(arm="a", width=30), settled.chosen(arm="b")] == [0.1, 0.2]


def test_without_tuning_a_scale_stays_as_it_is(here):
    scale = toy.scales["untuned"]
    assert scale.settle(pd.DataFrame()) is scale
    assert quietly(scale="untuned").provenance["tuning_seeds"] == []
