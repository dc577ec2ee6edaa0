"""The command line: what it prints, its exit codes, and that no error is a traceback."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager
from dataclasses import replace

import pytest
from toy_experiment import toy

from tlcourse.cli import main
from tlcourse.measure import measure, state
from tlcourse.results import read

KEYS = "chapter effect experiment high id kind low paper scale seeds sentence source unit verdict"


def tlcourse(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tlcourse", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **environment},
    )


@pytest.fixture
def said(monkeypatch, capsys):
    """Run a command in this process, and return its exit code and what it printed."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tlcourse", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


@pytest.fixture
def refused(said):
    """Run a command in this process, and return the sentence with which it is refused."""

    def run(*arguments):
        code, _, err = said(*arguments)
        assert code == 2
        (sentence,) = err.strip().splitlines()
        assert sentence.startswith("error: ")
        return sentence.removeprefix("error: ")

    return run


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nonsense"], "No such command 'nonsense'."),
        (["run", "nope"], "there is no experiment 'nope'; there are distillation"),
        (
            ["run", "distillation", "--scale", "huge"],
            "distillation has no scale 'huge'; it has lecture",
        ),
        (["run", "distillation", "--seeds", "0"], "seeds must be in 1 … 1000, got 0"),
        (["run", "distillation", "--workers", "0"], "workers must be >= 1, got 0"),
        (
            ["run", "distillation", "--device", "tpu"],
            'device must be "auto", "cpu", "cuda" or "mps"',
        ),
        (["claims", "nope"], "there is no experiment 'nope'"),
        (["data", "fetch", "mnist"], "'mnist' cannot be fetched; these can: cifar10"),
        (["execute", "none.ipynb"], "there is no notebook none.ipynb"),
        (["run"], "Missing argument"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_errors_are_one_sentence(arguments, sentence, refused):
    assert refused(*arguments).startswith(sentence)


def test_an_error_is_no_traceback_and_exits_with_2():
    done = tlcourse("run", "nope")
    assert done.returncode == 2
    assert done.stderr.startswith("error: there is no experiment 'nope'; there are distillation")
    assert done.stderr.count("\n") == 1


def test_debug_shows_the_traceback():
    done = tlcourse("--debug", "run", "nope")
    assert done.returncode != 0
    assert "Traceback" in done.stderr


def test_without_the_data_folder_the_error_says_what_to_do(tmp_path, monkeypatch, refused):
    monkeypatch.setenv("TLCOURSE_HOME", str(tmp_path))
    sentence = refused("data")
    assert "data folder was not found" in sentence
    assert "Clone the course's repository" in sentence


def test_list_names_experiments_scales_and_arms(said):
    _, out, _ = said("list")
    assert "distillation: Does a small network" in out
    assert "arms: teacher · alone · T=1" in out
    assert re.search(r"lecture: \d+ seeds, about \d+ minutes of one core; recorded on ", out)


def test_claims_are_one_line_each(said):
    lines = said("claims")[1].splitlines()
    assert {line.split()[0] for line in lines} >= {f"K{i}" for i in range(1, 9)}


def test_claims_as_json_are_a_list_and_nothing_else(said):
    entries = json.loads(said("claims", "--json")[1])
    assert {" ".join(sorted(entry)) for entry in entries} == {KEYS}
    assert all(isinstance(entry["seeds"], int) for entry in entries)


def test_strict_fails_without_records(home, refused):
    sentence = refused("claims", "--strict")
    assert "K1 (lecture) is missing" in sentence


@pytest.fixture
def two_toys(home, in_this_process, monkeypatch):
    """Two toys in the place of the experiments, one of them measured by other code since."""
    scales = {"tiny": toy.scales["tiny"]}
    toys = {name: replace(toy, name=name, scales=scales) for name in ("toy", "other")}
    monkeypatch.setattr("tlcourse.experiments.EXPERIMENTS", toys)
    for experiment in toys.values():
        measure(experiment, "tiny", progress=False, workers=1)
    path = home / "data" / "results" / "other.tiny.json"
    older = json.loads(path.read_text(encoding="utf-8")) | {"digest": "0" * 64}
    path.write_text(json.dumps(older), encoding="utf-8")
    monkeypatch.setenv("TOY_LOG", str(home / "log"))
    return toys


def test_run_stale_verify_looks_at_what_is_stale_and_at_nothing_else(two_toys, home, said):
    code, out, _ = said("run", "--stale", "--verify")
    assert (code, out) == (0, "other (tiny): seed 0 agrees exactly; stamped anew.\n")
    assert (home / "log").read_text(encoding="utf-8").split("\n")[:-1] == ["run 0", "done 0"]
    assert said("run", "--stale", "--verify")[:2] == (0, "")
    assert ", current; verified " in said("list")[1]


def test_run_stale_measures_what_is_stale(two_toys, home, said):
    assert said("run", "--stale", "--workers", "1")[0] == 0
    lines = (home / "log").read_text(encoding="utf-8").split("\n")
    assert sum(line.startswith("run ") for line in lines) == 3
    assert state(two_toys["other"], "tiny").status == "current"


def test_a_record_that_does_not_verify_is_measured_again(two_toys, home, said, monkeypatch):
    monkeypatch.setenv("TOY_SHIFT", "50")
    code, out, _ = said("run", "toy", "--scale", "tiny", "--verify", "--workers", "1")
    assert code == 0
    assert "toy (tiny): seed 0 does not agree; measuring everything again." in out
    assert read("toy", "tiny").summary("errors", width=30).loc["plain", "mean"] > 40


def test_run_wants_a_name_or_stale(refused):
    assert refused("run") == "name an experiment of `tlcourse list`, or ask for --stale"


def test_list_without_records_says_so(home, said):
    assert "not recorded" in said("list")[1]


def test_data_reads_and_checks_what_is_on_board(said):
    _, out, _ = said("data")
    for name in ("mnist", "fashion_mnist"):
        assert re.search(rf"^  {name} +ok: 60,000 images to train, 10,000 to test", out, re.M)


def test_data_goes_on_after_a_damaged_set(home, repository, said):
    (home / "data" / "mnist").mkdir()
    source = repository / "data" / "mnist" / "t10k-labels-idx1-ubyte.gz"
    (home / "data" / "mnist" / "train-images-idx3-ubyte.gz").write_bytes(source.read_bytes())
    code, out, err = said("data")
    assert code == 2
    assert "its digest is not the one in SHA256SUMS" in out
    assert re.search(r"digits +ok: 1,297", out)
    assert err.startswith("error: damaged or missing: mnist, fashion_mnist")


def test_doctor_says_ok_or_what_to_do(said):
    code, out, err = said("doctor")
    assert code == 0, err
    assert all(line.startswith(("ok  ", "note")) for line in out.splitlines())
    assert "data: mnist" in out


def test_doctor_fails_without_data(home, said):
    code, out, _ = said("doctor")
    assert code == 2
    assert re.search(r"^FIX  data: .* is missing\. Restore it", out, re.M)


@contextmanager
def lab(*arguments, **environment):
    """`tlcourse lab` in a process, and the lines it printed up to the address."""
    command = [sys.executable, "-u", "-m", "tlcourse", "lab", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**os.environ, **environment},
    )
    lines = []
    try:
        while not any("?token=" in line for line in lines):
            line = process.stdout.readline()
            assert line, f"it stopped: {lines}"
            lines.append(line.strip())
        yield process, lines, next(line for line in lines if "?token=" in line)
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(timeout=30)


@pytest.mark.slow
def test_lab_opens_the_first_notebook_of_a_copy_and_keeps_its_token(tmp_path, repository):
    work = tmp_path / "work"
    work.mkdir()
    mine = json.dumps(
        {"cells": [], "metadata": {"whose": "mine"}, "nbformat": 4, "nbformat_minor": 5}
    )
    (work / "00_start_here.ipynb").write_text(mine)
    shelf = socket.create_server(("127.0.0.1", 0))  # so that the port is taken
    taken = shelf.getsockname()[1]
    display = dict.fromkeys(("DISPLAY", "WAYLAND_DISPLAY"), "")
    with (
        shelf,
        lab(
            "--copy", str(work), "--port", str(taken), JUPYTER_RUNTIME_DIR=str(tmp_path), **display
        ) as (_, lines, address),
    ):
        assert "/lab/tree/00_start_here.ipynb?token=" in address
        assert f":{taken}/" not in address
        assert any(line.startswith(f"Port {taken} is taken") for line in lines)
        assert any("kept 1 that were there" in line for line in lines)
        with urllib.request.urlopen(
            address.replace("/lab/tree/", "/api/contents/"), timeout=20
        ) as answer:
            assert json.load(answer)["name"] == "00_start_here.ipynb"
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(address.split("/lab/tree/")[0] + "/api/contents", timeout=20)
    assert (work / "00_start_here.ipynb").read_text() == mine


@pytest.mark.slow
def test_lab_leaves_nothing_running(tmp_path):
    with lab(
        "--copy", str(tmp_path / "work"), "--no-browser", JUPYTER_RUNTIME_DIR=str(tmp_path)
    ) as (_, _, address):
        port = int(re.search(r":(\d+)/", address).group(1))
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)):
                return
        time.sleep(0.2)
    pytest.fail("the server still answers")


def test_the_script_is_installed():
    script = shutil.which("tlcourse", path=os.path.dirname(sys.executable))
    assert script is not None
    assert (
        "Commands:"
        in subprocess.run([script, "--help"], capture_output=True, text=True, check=True).stdout
    )
