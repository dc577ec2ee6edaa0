"""The command line: what it prints, its exit codes, and that no error is a traceback."""

import errno
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from toy_experiment import toy

from tlcourse.cli import main
from tlcourse.measure import measure, state
from tlcourse.publish.lab import copied
from tlcourse.results import read

KEYS = "chapter effect experiment high id kind low paper scale seeds sentence source unit verdict"


def tlcourse(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tlcourse", *arguments],
        capture_output=True,
        encoding="utf-8",
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
        (["run"], "name an experiment of `tlcourse list`, or ask for --stale"),
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
    assert str(tmp_path) in sentence
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
        encoding="utf-8",
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
    (work / "00_start_here.ipynb").write_text(mine, encoding="utf-8")
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
    assert (work / "00_start_here.ipynb").read_text(encoding="utf-8") == mine


OPEN = """
from jupyter_server.auth import IdentityProvider, User
class Open(IdentityProvider):
    def get_user(self, handler):
        return User("anybody")
c.ServerApp.identity_provider_class = Open
"""
EMPTY = "c.{0}.token = ''\nc.{0}.password = ''\n".format


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "text", "variables"),
    [
        ("jupyter_server_config.py", EMPTY("IdentityProvider"), {"JUPYTER_TOKEN": ""}),
        ("jupyter_server_config.py", EMPTY("PasswordIdentityProvider"), {}),
        ("jupyter_notebook_config.py", EMPTY("NotebookApp"), {}),
        ("jupyter_lab_config.py", EMPTY("ServerApp") + EMPTY("IdentityProvider"), {}),
    ],
    ids=["identity", "password", "notebook", "lab"],
)
def test_lab_asks_for_its_token_whatever_the_configuration_says(file, text, variables, tmp_path):
    (tmp_path / file).write_text(text, encoding="utf-8")
    places = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    with lab("--no-browser", "--port", "0", **places, **variables) as (_, _, address):
        api = address.replace("/lab/tree/", "/api/contents/")
        assert len(address.split("?token=")[1]) >= 20
        with urllib.request.urlopen(api, timeout=20) as answer:
            assert answer.status == 200
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(api.split("?")[0], timeout=20)


@pytest.mark.slow
def test_lab_stops_rather_than_to_let_everybody_in(tmp_path):
    (tmp_path / "jupyter_server_config.py").write_text(OPEN, encoding="utf-8")
    places = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    done = tlcourse("lab", "--no-browser", "--port", "0", **places)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("error: JupyterLab would let everybody in")
    assert "token=" not in done.stdout
    assert not list(tmp_path.glob("jpserver-*.json"))  # it is gone


@pytest.fixture
def notebooks(tmp_path):
    """A folder as the course's: notebooks, pictures beside and below, and what is nobody's."""
    ours = ("a.ipynb", "b.ipynb", "one.png", "images/two.svg", "images/deep/ü 3.jpg")
    others = (
        ".ipynb_checkpoints/a.ipynb",
        ".hidden.png",
        "images/.four.png",
        "x.html",
        "old/a.ipynb",
    )
    for name in (*ours, *others):
        (tmp_path / "notebooks" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "notebooks" / name).write_bytes(name.encode() * 1000)
    return tmp_path / "notebooks", ours


def files(folder):
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_a_copy_has_the_notebooks_and_the_pictures_that_they_show(notebooks, tmp_path, capsys):
    source, ours = notebooks
    copied(source, tmp_path / "my" / "work")
    wanted = {str(Path(name)): name.encode() * 1000 for name in ours}
    assert files(tmp_path / "my" / "work") == wanted
    assert capsys.readouterr().out.endswith("work: 5 notebooks and pictures.\n")
    (tmp_path / "my" / "work" / "a.ipynb").write_bytes(b"mine")
    (tmp_path / "my" / "work" / "one.png").unlink()
    copied(source, tmp_path / "my" / "work")
    assert files(tmp_path / "my" / "work") == wanted | {"a.ipynb": b"mine"}
    assert "1 notebooks and pictures; kept 4 that were there." in capsys.readouterr().out


@pytest.mark.parametrize("room", range(5))
def test_a_copy_on_a_full_disk_leaves_nothing_that_later_ones_would_keep(
    room, notebooks, tmp_path, monkeypatch
):
    left, whole = [room], Path.write_bytes

    def write_bytes(path, content):
        if left[0] == 0:
            whole(path, content[:100])
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        copied(notebooks[0], tmp_path / "work")
    assert list((tmp_path / "work").iterdir()) == []
    monkeypatch.undo()
    copied(notebooks[0], tmp_path / "work")
    assert len(files(tmp_path / "work")) == len(notebooks[1])


def test_a_copy_keeps_a_link_that_leads_nowhere(notebooks, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "a.ipynb").symlink_to(tmp_path / "elsewhere")
    copied(notebooks[0], tmp_path / "work")
    assert (tmp_path / "work" / "a.ipynb").is_symlink()
    assert not (tmp_path / "elsewhere").exists()


def test_a_copy_to_a_file_is_refused(refused, tmp_path):
    (tmp_path / "work").write_bytes(b"mine")
    sentence = refused("lab", "--copy", str(tmp_path / "work"))
    assert sentence == f"{tmp_path / 'work'} is there and is no folder"
    assert (tmp_path / "work").read_bytes() == b"mine"


def test_what_the_terminal_has_no_letter_for_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "tlcourse", "list"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="cp1252",
    )
    assert (done.returncode, done.stderr) == (0, "")


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
        in subprocess.run(
            [script, "--help"], capture_output=True, encoding="utf-8", check=True
        ).stdout
    )
