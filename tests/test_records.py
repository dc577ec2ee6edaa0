"""Measured, interrupted, continued, read back, checked: with a made-up experiment of milliseconds
(toy_experiment.py).
"""

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
from datetime import UTC, datetime
from importlib.metadata import version
from math import isnan
from pathlib import Path

import pandas as pd
import pytest
import torch
import toy_experiment
from scipy import stats
from toy_experiment import counted, kinds, toy, undefined

import tlcourse
from tlcourse import digests, records
from tlcourse.claims import TUNING, Claim, greater, judge
from tlcourse.digests import forget_files
from tlcourse.experiments.base import Scale
from tlcourse.records import Record, RecordError, code_digest, is_stale, measure, read, verify

TESTS = Path(__file__).parent


@pytest.fixture
def log(home: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the toy notes its calls."""
    monkeypatch.setenv("TOY_LOG", str(home / "log"))
    return home / "log"


@pytest.fixture
def here(log: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Seeds are measured in this process, one after the other; worker processes, seconds to start,
    are left to the slow tests.
    """
    monkeypatch.setattr(records, "_pool", lambda workers: ThreadPoolExecutor(1))
    return log.parent / "data" / "results"


def quietly(experiment=toy, scale="tiny", **how) -> Record:
    return measure(experiment, scale, progress=False, workers=1, **how)


def calls(log: Path) -> list[str]:
    """What was called since the last time this was asked, in alphabetical order, without the seeds
    that were done.
    """
    lines = log.read_text().split("\n")[:-1] if log.exists() else []
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
    csv, provenance = results / "toy.tiny.csv", results / "toy.tiny.json"
    if rows is not None:
        csv.write_text(rows.to_csv(index=False))
    digest = hashlib.sha256(csv.read_bytes()).hexdigest()
    provenance.write_text(
        json.dumps(json.loads(provenance.read_text()) | {"rows_sha256": digest} | changes)
    )


# what is written


def test_a_record_reads_back_bit_for_bit(here):
    measured = quietly()
    settled = toy.scales["tiny"].settle(measured.rows[measured.rows["seed"] >= TUNING])
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
    for found in (measured.rows, read("toy", "tiny").rows):
        pd.testing.assert_frame_equal(found, pd.DataFrame(expected), check_exact=True)
        assert (
            found["value"].to_numpy().tobytes()
            == pd.DataFrame(expected)["value"].to_numpy().tobytes()
        )


def test_coordinates_keep_their_kind(here):
    quietly(kinds)
    found = read("kinds", "tiny").summary(
        "errors", augmented=True, images=5, rate=1e-3, layer="fc7"
    )
    assert found.loc["plain", "mean"] == 11.0  # of 10, 11 and 12


def test_a_record_says_where_it_comes_from(here):
    origin = quietly(seeds=2).provenance
    assert (
        origin == read("toy", "tiny").provenance == json.loads((here / "toy.tiny.json").read_text())
    )
    said = ("experiment", "scale", "seeds", "tuning_seeds", "device", "threads", "command")
    command = "tlcourse run toy --scale tiny --seeds 2 --device cpu"
    assert [origin[key] for key in said] == ["toy", "tiny", [0, 1], [1000, 1001], "cpu", 1, command]
    assert origin["digest"] == code_digest("toy_experiment")
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
    if "TOY_SHIFT" in os.environ:
        Path(__file__).write_text(Path(__file__).read_text().replace("RATE = 1", "RATE = 2"))
    yield Row("a", "m", RATE)
"""


def test_code_that_changes_during_the_measurement_makes_no_record(here, log, module, monkeypatch):
    module("lesson", CHANGES)
    lesson = toy_experiment.replace(
        toy, name="lesson", run=importlib.import_module("lesson").run, tune=None
    )
    monkeypatch.setenv("TOY_SHIFT", "yes")
    with pytest.raises(RecordError, match="the code changed while lesson was measured"):
        quietly(lesson)
    assert files(here) == {}
    monkeypatch.delenv("TOY_SHIFT")
    module("lesson", CHANGES)
    calls(log)
    quietly(lesson)
    assert calls(log) == ["run 0", "run 1", "run 2"], (
        "it kept seeds of which nobody knows what code measured them"
    )


# interrupted


class Killed(BaseException):
    """Stands for a power cut."""


@pytest.mark.parametrize("after", ["nothing", "the draft", "the file"])
def test_interrupted_at_any_write_it_goes_on_where_it_stopped(here, log, monkeypatch, after):
    whole = quietly()
    csv = files(here)[".csv"]
    rewrite(here, digest="0" * 64)
    old, write = files(here), records._write
    pieces = 2 + 3 + 2  # tuning seeds, seeds, the record's two files
    for point in range(pieces):
        for suffix, content in old.items():
            (here / f"toy.tiny{suffix}").write_bytes(content)
        done: list[Path] = []

        def interrupted(path: Path, text: str, point: int = point, done: list[Path] = done) -> None:
            if len(done) == point:
                if after == "the draft":
                    path.with_name(f".{path.name}.draft").write_text(text[:5])
                if after == "the file":
                    write(path, text)
                raise Killed
            write(path, text)
            done.append(path)

        monkeypatch.setattr(records, "_write", interrupted)
        with pytest.raises(Killed):
            quietly()
        monkeypatch.setattr(records, "_write", write)
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
    heed = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)"  # a job in the background may ignore it
    code = f"{heed}; import toy_experiment as t; from tlcourse.records import measure; "
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
    monkeypatch.setattr(records, "_pool", lambda workers: ThreadPoolExecutor(1))
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
    provenance.write_text(provenance.read_text().replace(code_digest("toy_experiment"), "0" * 64))
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
    done = Counter(line for line in log.read_text().splitlines() if line.startswith("done"))
    assert done == {f"done {seed}": 1 for seed in range(6)}, (
        "a seed that was finished was measured again"
    )


def test_a_second_measurement_at_the_same_time_is_refused(here, log):
    quietly()
    calls(log)
    before = files(here)
    with records._locked("toy", "tiny"):
        for second in (lambda: quietly(seeds=5), lambda: verify(toy, "tiny")):
            with pytest.raises(
                RecordError,
                match=r"toy \(tiny\) is being measured by another process; wait for it, or stop it first",
            ):
                second()
        assert calls(log) == []
        assert files(here) == before
        assert quietly(scale="untuned", seeds=1).seeds == 1  # another scale is another record
    assert quietly(seeds=5).seeds == 5


# damaged

DAMAGE = {
    "cut short": (".csv", lambda content: content[: len(content) // 2]),
    "one digit changed": (".csv", lambda content: content.replace(b"0.1", b"0.2", 1)),
    "rows emptied": (".csv", lambda content: b""),
    "half-written": (".json", lambda content: content[: len(content) // 2]),
    "emptied": (".json", lambda content: b""),
    "no text": (".json", lambda content: b"\xff\xfe\x00"),
    "of another kind": (".json", lambda content: b"[]"),
    "without its digest": (".json", lambda content: content.replace(b"rows_sha256", b"rows")),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_says_so_and_is_measured_again(here, log, damage):
    quietly()
    suffix, change = DAMAGE[damage]
    before = files(here)
    assert change(before[suffix]) != before[suffix]
    (here / f"toy.tiny{suffix}").write_bytes(change(before[suffix]))
    with pytest.raises(
        RecordError,
        match=r"toy.tiny.csv is damaged .*git checkout -- data/results.*`tlcourse run toy --scale tiny",
    ):
        read("toy", "tiny")
    calls(log)
    quietly()
    assert len(calls(log)) == 5
    assert files(here)[".csv"] == before[".csv"]


@pytest.mark.parametrize("missing", [[".csv"], [".json"], [".csv", ".json"]])
def test_a_missing_file_is_a_missing_record(here, missing):
    quietly()
    for suffix in missing:
        (here / f"toy.tiny{suffix}").unlink()
    with pytest.raises(
        RecordError,
        match=r"toy has no record at scale tiny. Measure it with `tlcourse run toy --scale tiny`",
    ):
        read("toy", "tiny")


# stale

LESSON = '''
"""What it asks."""

import math

from tlcourse.claims import Claim, Given, greater
from tlcourse.extra import double
from tlcourse.experiments.base import Experiment, Scale

RATE: float = 0.1
BETTER = Given("the teacher is better", greater("alone", "teacher", "errors"))


class Helper:
    """A helper."""

    size = 3


def run(scale: Scale, seed: int, *more: int) -> list[float]:
    """What it does."""
    value = math.sqrt(seed)  # a comment
    return [double(value) + RATE]


lesson = Experiment(run, scales={"lecture": Scale(seeds=5)}, claims=[Claim("X1", "it helps", "", greater("a", "b", "m"), "", given=BETTER)])
'''
EXTRA = '"""Of use."""\nfrom tlcourse.deeper import TWO\n\ndef double(x: float) -> float:\n    """Twice x."""\n    return TWO * x\n'


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a small module that can be imported; one whose name begins with tlcourse. becomes part
    of the package.
    """
    folder = tmp_path / "modules"
    (folder / "tlcourse").mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(tlcourse, "__path__", [*tlcourse.__path__, str(folder / "tlcourse")])

    def write(name: str, text: str) -> None:
        (folder / f"{name.replace('.', '/')}.py").write_text(text)
        importlib.invalidate_caches()
        forget_files()

    yield write
    for name in (
        "lesson",
        "tlcourse.extra",
        "tlcourse.deeper",
    ):  # to look for a function in a module is to import it
        sys.modules.pop(name, None)
    forget_files()


@pytest.fixture
def digest(module):
    """The digest of a lesson and the modules it imports."""

    def of(lesson: str = LESSON, extra: str = EXTRA, deeper: str = "TWO = 2\n") -> str:
        for name, text in (
            ("tlcourse.deeper", deeper),
            ("tlcourse.extra", extra),
            ("lesson", lesson),
        ):
            module(name, text)
        return code_digest("lesson")

    return of


def edited(text: str, old: str, new: str) -> str:
    assert text.count(old) == 1
    return text.replace(old, new)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""What it asks."""', '"""What it asks, in other words."""'),
        ('"""What it does."""', '"""What it does,\n    at length."""'),
        ('    """What it does."""\n', ""),
        ('"""A helper."""', '"""Helps."""'),
        ("  # a comment", ""),
        ("\n\n\nclass", "\n# a new comment\n\n\n\nclass"),
        ("math.sqrt(seed)", "math.sqrt(\n        seed\n    )"),
        ("RATE: float", 'RATE: "int | float"'),
        ("seed: int", "seed"),
        ("*more: int", "*more: str"),
        (" -> list[float]", ""),
        ('"it helps"', '"it helps a lot"'),
        ('greater("a", "b", "m")', 'greater("a", "c", "m")'),
        (', claims=[Claim("X1"', ', claims=[Claim("X0", "", "", None, ""), Claim("X1"'),
        ("import Claim, Given, greater", "import Claim, Given, equivalent, greater"),
        ("the teacher is better", "the teacher makes fewer errors"),
    ],
)
def test_words_types_and_claims_do_not_make_a_record_stale(digest, old, new):
    assert digest(edited(LESSON, old, new)) == digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("0.1", "0.2"),
        ("seeds=5", "seeds=6"),
        ("size = 3", "size = 4"),
        ("math.sqrt(seed)", "math.cbrt(seed)"),
        ("double(value)", "value"),
        ("double(value) + RATE", "RATE + double(value)"),
        ('{"lecture"', '{"full"'),
        ("seed: int", "seed: int = 0"),
        ('    """What it does."""', '    """What it does."""\n    print("here")'),
    ],
)
def test_a_number_a_call_or_a_name_makes_a_record_stale(digest, old, new):
    assert digest(edited(LESSON, old, new)) != digest()


def test_imported_modules_of_the_course_count_and_so_do_theirs(digest):
    before = digest()
    assert digest(extra=edited(EXTRA, "TWO * x", "x + x")) != before
    assert digest(deeper="TWO = 2.5\n") != before
    assert (
        digest(extra=edited(EXTRA, '"""Twice x."""', '"""2 x."""'), deeper="# two\nTWO = 2\n")
        == before
    )


@pytest.mark.parametrize(
    "line",
    [
        "import tlcourse.extra",
        "from tlcourse import extra",
        "from tlcourse.extra import *",
        "import tlcourse.extra as e",
    ],
)
def test_every_way_to_import_counts(digest, line):
    lesson = edited(LESSON, "from tlcourse.extra import double", line)
    assert digest(lesson, extra="A = 1\n") != digest(lesson, extra="A = 2\n")


def test_an_import_within_a_function_counts(digest):
    lesson = edited(LESSON, "from tlcourse.extra import double", "").replace(
        "    value =", "    from tlcourse.extra import double\n    value ="
    )
    assert digest(lesson, extra="A = 1\n") != digest(lesson, extra="A = 2\n")


def test_the_modules_that_only_read_rows_do_not_count(digest, monkeypatch):
    digest()
    seen, syntax = [], digests._syntax
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_syntax", lambda name: seen.append(name) or syntax(name))
        code_digest("lesson")
    assert set(seen) == {"lesson", "tlcourse.deeper", "tlcourse.experiments.base", "tlcourse.extra"}


BESIDE = """
def beside(x):
    return TWO + x


LIST = [beside(2)]
"""
USED = """
import os

HALF = 3
SIZE: int = HALF


def halved(x, by=SIZE):
    return helper(x) / by


def helper(x):
    return x


class Base:
    width = HALF


class Of(Base):
    def run(self):
        return halved(self.width)
"""


def test_what_is_not_used_of_a_module_does_not_count(digest):
    assert digest(extra=EXTRA + BESIDE) == digest()
    assert digest(deeper="TWO = 2\nTHREE = 3\n") == digest()
    assert digest(extra=EXTRA + "import os\n") == digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("HALF = 3", "HALF = 4"),
        ("/ by", "* by"),
        ("return x\n", "return -x\n"),
        ("width = HALF", "width = 4"),
        ("by=SIZE", "by=SIZE + 1"),
    ],
)
def test_what_is_used_counts_however_far_away(digest, old, new):
    lesson = edited(
        LESSON, "from tlcourse.extra import double", "from tlcourse.extra import Of as double"
    )
    assert digest(lesson, extra=USED) != digest(lesson, extra=edited(USED, old, new))


@pytest.mark.parametrize(
    "does",
    [
        "print('here')",
        "if True:\n    TWO = 3",
        "for i in range(3):\n    TWO = i",
        "TWO += 1",
        "del TWO",
    ],
)
def test_what_a_module_does_when_it_is_imported_counts(digest, does):
    assert digest(extra=f"{EXTRA}{does}\n") != digest()


def test_a_record_is_stale_when_its_digest_is_not_that_of_the_code(here):
    assert not is_stale(quietly(), toy)
    rewrite(here, digest="0" * 64)
    assert is_stale(read("toy", "tiny"), toy)


# verify


@pytest.fixture
def stale(here, log):
    """A record of older code that measured the same."""
    quietly()
    rewrite(here, digest="0" * 64)
    calls(log)
    return here


def test_verify_stamps_a_record_whose_rows_agree(stale, log):
    before = json.loads(files(stale)[".json"])
    rows = files(stale)[".csv"]
    assert verify(toy, "tiny") is True
    assert calls(log) == ["run 0"]
    after = json.loads(files(stale)[".json"])
    assert {key for key in after if after[key] != before.get(key)} == {"digest", "verified"}
    assert after["digest"] == code_digest("toy_experiment")
    assert files(stale)[".csv"] == rows
    assert not is_stale(read("toy", "tiny"), toy)
    assert left_over(stale) == set()


@pytest.mark.parametrize(("shift", "agrees"), [("1e-9", True), ("1e-5", False), ("nan", False)])
def test_verify_compares_within_one_part_in_a_million(stale, monkeypatch, shift, agrees):
    before = files(stale)
    monkeypatch.setenv("TOY_SHIFT", shift)
    assert verify(toy, "tiny") is agrees
    assert (files(stale) == before) is not agrees


def test_verify_does_not_compare_timings(stale, monkeypatch):
    monkeypatch.setenv("TOY_SECONDS", "7")
    assert verify(toy, "tiny")


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
    rows = read("toy", "tiny").rows
    choices = rows["seed"] >= TUNING
    rewrite(stale, pd.concat([change(rows[~choices]), rows[choices]]), digest="0" * 64)
    before = files(stale)
    assert verify(toy, "tiny") is False
    assert files(stale) == before


def test_verify_does_not_mind_the_order_of_rows(stale):
    rewrite(stale, read("toy", "tiny").rows.iloc[::-1], digest="0" * 64)
    assert verify(toy, "tiny")


def test_verify_of_whole_number_settings(here):
    quietly(counted)
    assert verify(counted, "tiny")


def test_verify_needs_a_record(here):
    with pytest.raises(RecordError, match="toy has no record at scale tiny"):
        verify(toy, "tiny")


def test_seeds_can_be_added_to_a_verified_record(stale, log):
    verify(toy, "tiny")
    calls(log)
    quietly(seeds=4)
    assert calls(log) == ["run 3"]


# tuning


def test_the_setting_with_the_lowest_mean_is_chosen_for_each_arm(here):
    found = quietly()
    settled = toy.scales["tiny"].settle(found.rows[found.rows["seed"] >= TUNING])
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


def test_tuning_rows_are_recorded_but_decide_nothing(here):
    found = quietly()
    tuned = found.rows[found.rows["seed"] >= TUNING]
    assert set(tuned["metric"]) == {"validation errors"}
    assert len(tuned) == 8
    assert set(found.rows.loc[found.rows["seed"] < TUNING, "metric"]).isdisjoint(tuned["metric"])
    with pytest.raises(LookupError, match="validation errors"):
        judge(
            Claim("X", "…", "…", greater("plain", "tuned", "validation errors"), "errors"),
            found.rows,
        )
    with pytest.raises(LookupError, match="validation errors"):
        found.summary("validation errors")


# summaries

ROWS = pd.DataFrame(
    [
        {"seed": seed, "arm": arm, "metric": "errors", "value": value, "width": width}
        for width, factor in ((30, 10), (300, 1))
        for arm, values in {"b": (1.0, 2.0, 3.0, 4.0), "a": (5.0, 5.0)}.items()
        for seed, value in enumerate(factor * v for v in values)
    ]
)
FOUR = Record(ROWS, {"seeds": [0, 1, 2, 3]})


def test_summary_is_the_mean_and_the_t_interval_of_each_arm():
    found = FOUR.summary("errors", width=300)
    low, high = stats.ttest_1samp([1, 2, 3, 4], 0).confidence_interval(
        0.95
    )  # 2.5 ± 3.1824 · 1.2910 / 2
    assert list(found.index) == ["b", "a"]
    assert list(found.columns) == ["mean", "low", "high", "seeds"]
    assert found.loc["b"].tolist() == pytest.approx([2.5, low, high, 4])
    assert found.loc["b", "high"] == pytest.approx(2.5 + 2.0542, abs=1e-3)
    assert found.loc["a"].tolist() == [5.0, 5.0, 5.0, 2.0]
    assert FOUR.seeds == 4


def test_summary_of_one_seed_has_no_interval():
    found = Record(ROWS[ROWS["seed"] == 0], {"seeds": [0]}).summary("errors", width=30).loc["b"]
    assert (found["mean"], found["seeds"]) == (10.0, 1)
    assert isnan(found["low"])
    assert isnan(found["high"])


def test_summary_without_the_coordinates_that_tell_rows_apart_is_refused():
    with pytest.raises(ValueError, match="several values for one seed and arm"):
        FOUR.summary("errors")


def test_summary_of_what_was_not_measured():
    with pytest.raises(LookupError, match="accuracy"):
        FOUR.summary("accuracy")
    with pytest.raises(LookupError, match="depth"):
        FOUR.summary("errors", depth=3)


def test_expect_is_the_prediction_interval_of_one_more_seed():
    low, high = FOUR.expect("b", "errors", width=300)
    assert (low, high) == pytest.approx(
        (2.5 - 8.4307, 2.5 + 8.4307), abs=1e-3
    )  # 5.8409 · 1.2910 · √1.25
