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
from contextlib import closing, contextmanager
from dataclasses import replace
from math import nan
from pathlib import Path
from types import SimpleNamespace

import pytest
from toy_experiment import toy
from websocket import create_connection

from tlcourse.claims import Claim, Decision, Verdict
from tlcourse.cli import main
from tlcourse.experiments import Entry
from tlcourse.measure import measure, state
from tlcourse.publish.lab import _announce, copied
from tlcourse.results import read

KEYS = "chapter effect experiment high id kind low paper scale seeds sentence source unit verdict"


def tlcourse(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tlcourse", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=120,
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
    )


@pytest.fixture
def said(monkeypatch, capsys):
    """Run a command in this process, and return its exit code and what it printed."""
    monkeypatch.delenv("COLUMNS", raising=False)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["tlcourse", *arguments])
        with pytest.raises(SystemExit) as stop:
            main()
        return stop.value.code, *capsys.readouterr()

    return run


def fits(text, columns=80):
    return max(map(len, text.splitlines())) <= columns


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
        (["run", "nope"], "there is no experiment 'nope'; there are adaptation"),
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
    assert done.stderr.startswith("error: there is no experiment 'nope'; there are adaptation")
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


def test_alone_it_prints_its_help(said):
    for arguments in ([], ["--debug"]):
        code, out, err = said(*arguments)
        assert (code, err) == (0, "")
        commands = out.split("Commands:\n")[1].splitlines()
        assert [line.split()[0] for line in commands][:3] == ["lab", "list", "run"]
        assert all(line.endswith(".") and not line.endswith("..") for line in commands)
        assert fits(out)


def test_list_names_experiments_scales_and_arms_by_chapter(said):
    _, out, _ = said("list")
    heads = [line for line in out.splitlines() if line[:1].strip()]
    assert [head.split()[0] for head in heads[:3]] == ["arm:", "scale:", "seed:"]
    assert heads[3:5] == ["What is transfer learning", "Fine tuning"]
    assert heads[5:7] == ["Knowledge distillation", "Attention transfer"]
    assert heads[7:] == ["Jacobian matching", "Multi task learning", "Continual learning"]
    assert "\n  distillation: Does a small network" in out
    assert "\n    arms: teacher · alone · T=1" in out
    assert re.search(r"\n    lecture: \w+; \d+ seeds, about \d+ min of one core; recorded on ", out)
    assert fits(out)


def entry(name, kind="greater", verdict="supported", why="", status="current", **changes):
    """A line of the ledger, of the toy in the chapter of this kind."""
    numbers = changes.pop("numbers", (2.8, 1.1, 4.4))
    claim = Claim(
        id=name,
        sentence=changes.pop("sentence", f"the sentence of {name}"),
        source="",
        decide=Decision(kind, lambda rows: found),
        unit=changes.pop("unit", "errors"),
    )
    found = Verdict(verdict, *numbers, 6, why)
    chapter = replace(toy, chapter=changes.pop("chapter", "none"))
    return Entry(claim, chapter, changes.pop("scale", "lecture"), status, found, **changes)


@pytest.fixture
def listed(said, monkeypatch):
    """The lines that `tlcourse claims` prints of these entries, without the header."""

    def lines(*entries):
        monkeypatch.setattr("tlcourse.experiments.ledger", lambda name: list(entries))
        code, out, _ = said("claims")
        assert code == 0
        header, *rest = out.splitlines()
        assert header.split()[:3] == ["claim", "scale", "verdict"]
        return rest

    return lines


def test_claims_stand_by_chapter_and_number(listed):
    names = [("K1", "one"), ("K10", "one"), ("K9", "one"), ("A2", "two"), ("L5o", "three")]
    names += [("C1", "three"), ("L10", "three"), ("L5", "three"), ("A10", "two")]
    found = listed(*(entry(name, chapter=chapter) for name, chapter in names))
    starts = [line.split()[0] for line in found if line[:1].strip()][:-1]
    assert starts == ["K1", "K9", "K10", "A2", "A10", "C1", "L5", "L5o", "L10"]
    assert found[-1] == "9 claims: 9 supported"


def test_a_claim_says_its_effect_with_unit_its_seeds_and_how_it_was_verified(listed):
    exactly, within = (
        f"2026-01-01 on AMD, {how}" for how in ("exactly", "within the recorded range")
    )
    found = listed(
        entry("K1", verified=within),
        entry("K2", verified=exactly, unit="errors in 10,000, alone minus distilled, at T = 20"),
        entry("K3", "equivalent", why="margin ±25", unit="a unit that finds no room in the table"),
        entry("K4", "count", why="3 of 4, at least 4 needed", unit="in how many of four pairs"),
        entry("K5", "exact", numbers=(0.982, nan, nan), why="tolerance 0.1"),
        entry("K6", "scope", "stated", numbers=(nan, nan, nan), unit=""),
        entry("K7", "count", "not testable here", "not shown here: it rains", numbers=(1, 1, 2)),
    )
    rows = [line.split("supported")[-1] for line in found[:-1:2]]
    assert rows[0] == "    2.8 [1.1, 4.4] errors                 6  within range"
    assert rows[1] == "    2.8 [1.1, 4.4] errors in 10,000       6  exactly"
    assert [row.split() for row in rows[2:5]] == [
        ["2.8", "[1.1,", "4.4]", "6", "not", "yet"],
        ["3", "of", "4", "6", "not", "yet"],
        ["0.982", "errors", "6", "not", "yet"],
    ]
    assert " not testable 1 [1, 2] errors 6 not yet" in " ".join(rows[6].split())
    assert [line.strip() for line in found[1:-1:2]] == [
        "the sentence of K1",
        "the sentence of K2 (alone minus distilled, at T = 20)",
        "the sentence of K3 (a unit that finds no room in the table; margin ±25)",
        "the sentence of K4 (in how many of four pairs; at least 4 needed)",
        "the sentence of K5 (tolerance 0.1)",
        "the sentence of K6",
        "the sentence of K7 (not shown here: it rains)",
    ]
    assert found[-1] == "7 claims: 5 supported, 1 stated, 1 not testable here"


def test_a_record_that_does_not_count_says_what_to_do(listed):
    nothing = {"verdict": "", "numbers": (nan, nan, nan)}
    problem = "it is damaged. Restore it with `git checkout`"
    found = listed(
        entry("K1", scale="full"),
        entry("K1", status="stale"),
        entry("K2", status="missing", problem="there is none: measure it", **nothing),
        entry("K3", status="damaged", problem=problem, **nothing),
        entry("K4", status="incomplete", verdict="inconclusive"),
    )
    text = " ".join(" ".join(found).split())
    again = "`tlcourse run toy --scale lecture"
    assert "K1 lecture stale 2.8 [1.1, 4.4] errors" in text
    assert f"the sentence of K1 was supported; {again} --verify`" in text
    assert "the sentence of K2 there is none: measure it" in text
    assert f"the sentence of K3 {problem}" in text
    assert f"the sentence of K4 was inconclusive; {again}`" in text
    assert text.endswith(
        "4 claims, a line for each scale: 1 supported, 1 stale, 1 missing, 1 damaged, 1 incomplete"
    )


@pytest.mark.parametrize("columns", [80, 50, 200])
def test_claims_fit_the_terminal(columns, listed, monkeypatch):
    words = "a sentence of many words --and a dash " * 6
    monkeypatch.setenv("COLUMNS", str(columns))
    found = listed(entry("K1", sentence=words), entry("K2", status="stale", sentence=words))
    assert fits("\n".join(found), columns)
    assert " ".join(words.split()) in " ".join(" ".join(found).split())
    starts = {len(line) - len(line.lstrip()) for line in found}
    assert starts == {0, 6}  # what is wrapped hangs


def test_the_claims_of_the_course_fit(said):
    _, out, _ = said("claims")
    assert fits(out)
    starts = [line.split()[0] for line in out.splitlines() if line[:1].strip()]
    assert starts[:4] == ["claim", "I1", "I1c", "I1r"]
    assert re.search(r"^\d+ claims, a line for each scale: \d+ \w+", out, re.MULTILINE)


def test_an_experiment_without_claims_says_so(said):
    assert said("claims", "one_teacher")[1] == "0 claims: one_teacher decides none\n"


def test_claims_as_json_are_a_list_and_nothing_else(said):
    out = said("claims", "--json")[1]
    entries = json.loads(out)
    assert {" ".join(sorted(entry)) for entry in entries} == {KEYS}
    assert all(isinstance(entry["seeds"], int) for entry in entries)
    assert out.isascii()  # so that it is UTF-8 in every code page
    assert "T² keeps" in " ".join(entry["sentence"] for entry in entries)


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
    listed = " ".join(said("list")[1].split())
    assert re.search(r"other: .* tiny: current; [^;]*; recorded on [^;]* seeds; verified ", listed)
    assert "stale" not in listed


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
    *lines, last = out.splitlines()
    assert all(line.startswith(("ok  ", "note", "     ")) for line in lines)
    assert "data: mnist" in out
    assert last == "ready: open the course with `tlcourse lab`"
    assert fits(out)


def test_doctor_fails_without_data(home, said):
    code, out, err = said("doctor")
    assert code == 2
    assert re.search(r"^FIX  data: .* is missing\.\s+Restore it", out, re.M | re.S)
    assert "ready:" not in out
    assert err == "error: not ready: data; do what the lines with FIX say\n"


@contextmanager
def lab(*arguments, **environment):
    """`tlcourse lab` in a process, and the lines it printed up to the address."""
    command = [sys.executable, "-u", "-m", "tlcourse", "lab", *arguments]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
        env={**os.environ, "PYTHONIOENCODING": "utf-8", **environment},
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
    assert sentence == f"{tmp_path / 'work'} is a file; name a new or an empty folder"
    assert (tmp_path / "work").read_bytes() == b"mine"


def test_a_copy_among_what_is_not_of_the_course_is_refused(refused, tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_bytes(b"mine")
    sentence = refused("lab", "--copy", str(tmp_path))
    assert sentence == (
        f"{tmp_path} holds other things and no copy of the course; name a new or an empty folder"
    )
    assert files(tmp_path) == {str(Path("letters", "dear.txt")): b"mine"}


def test_a_copy_goes_to_a_folder_that_looks_empty_or_holds_an_earlier_one(notebooks, tmp_path):
    source, ours = notebooks
    (tmp_path / "work" / ".git").mkdir(parents=True)
    copied(source, tmp_path / "work")
    (tmp_path / "work" / "my notes.txt").write_bytes(b"mine")
    (tmp_path / "work" / "b.ipynb").unlink()
    copied(source, tmp_path / "work")
    assert set(files(tmp_path / "work")) == {str(Path(name)) for name in (*ours, "my notes.txt")}


def test_what_the_terminal_has_no_letter_for_is_no_error():
    done = subprocess.run(
        [sys.executable, "-m", "tlcourse", "list"],
        env={**os.environ, "PYTHONIOENCODING": "cp1252"},
        capture_output=True,
        encoding="cp1252",
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.slow
def test_lab_waits_for_a_server_that_is_listed_before_it_listens(monkeypatch, capsys):
    found = {"pid": 7, "hostname": "localhost", "port": 8888, "secure": False, "token": "t"}
    monkeypatch.setattr(
        "jupyter_server.serverapp.list_running_servers", lambda: [found | {"base_url": "/"}]
    )
    answers = [ConnectionRefusedError, ConnectionRefusedError, True]

    def is_closed(host, entry):
        answer = answers.pop(0)
        if answer is not True:
            raise answer
        return answer

    monkeypatch.setattr("tlcourse.publish.lab._is_closed", is_closed)
    _announce(SimpleNamespace(pid=7, poll=lambda: None), "one.ipynb", 8888, browser=False)
    assert answers == []
    assert "http://localhost:8888/lab/tree/one.ipynb?token=t" in capsys.readouterr().out


def test_lab_is_quiet_and_opens_what_the_notebooks_point_to(tmp_path):
    """All lines are ours, while a kernel starts, too; but for one that JupyterLab ends with."""
    places = {"JUPYTER_CONFIG_DIR": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)}
    with lab("--no-browser", "--port", "0", **places) as (process, lines, address):
        assert "/lab/tree/notebooks/00_start_here.ipynb?token=" in address
        place, token = re.fullmatch(r"(.*)/lab/tree/.*(\?token=.*)", address).groups()

        def asked(what, **more):
            request = urllib.request.Request(f"{place}/api/{what}{token}", **more)
            with urllib.request.urlopen(request, timeout=60) as answer:
                return json.load(answer)

        course = ("README.md", "data/results", "tlcourse/methods/lwf.py", "notebooks")
        assert [asked(f"contents/{path}")["path"] for path in course] == list(course)
        kernel = asked("kernels", data=b"{}", method="POST")["id"]
        channels = f"ws{place.removeprefix('http')}/api/kernels/{kernel}/channels{token}"
        deadline = time.monotonic() + 60
        with closing(create_connection(channels)):  # as the browser does: the kernel starts
            while asked(f"kernels/{kernel}")["execution_state"] != "idle":
                assert time.monotonic() < deadline
                time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        lines += [line.strip() for line in process.stdout]
    ours = ("Starting", "Port", "http://", "Open this address")
    (end,) = (line for line in lines if line and not line.startswith(ours))
    assert "received signal 15" in end


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
