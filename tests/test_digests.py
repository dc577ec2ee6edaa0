"""What makes a record stale, and what does not: a made-up lesson whose code is edited."""

import importlib
import sys
from dataclasses import dataclass

import pytest

import tlcourse
from tlcourse import digests
from tlcourse.digests import Code, code_digest, forget_files
from tlcourse.experiments import EXPERIMENTS

LESSON = '''
"""What it asks."""

import math

from tlcourse.claims import Claim, Given, greater
from tlcourse.extra import double
from tlcourse.experiments.base import Experiment, Scale
from tlcourse.methods._checks import expect

RATE: float = 0.1
RATES = (0.1, 0.2)
BETTER = Given("the teacher is better", greater("alone", "teacher", "errors"))


class Helper:
    """A helper."""

    size = 3


def run(scale: Scale, seed: int, *more: int) -> list[float]:
    """What it does."""
    many = len(more)
    expect(many < 3, f"there are {many}")
    assert seed >= 0, "a seed is never negative"
    trouble = f"so many: {seed}."
    if seed > 1000:
        raise ValueError(f"seed is too large. {trouble}")
    value = math.sqrt(seed)  # a comment
    return [double(value) + RATE * Helper.size]


def tune(scale: Scale, seed: int) -> list[float]:
    """Which rate."""
    return [double(rate) for rate in RATES]


EXPERIMENT = Experiment(run, scales={"lecture": Scale(seeds=5)}, claims=[Claim("X1", "it helps")])
'''
EXTRA = '''"""Of use."""
from tlcourse.deeper import TWO

def double(x: float) -> float:
    """Twice x."""
    return TWO * x
'''


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Write a small module that can be imported; one named tlcourse.… is part of the package."""
    folder = tmp_path / "modules"
    (folder / "tlcourse").mkdir(parents=True)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(tlcourse, "__path__", [*tlcourse.__path__, str(folder / "tlcourse")])

    def write(name: str, text: str) -> None:
        (folder / f"{name.replace('.', '/')}.py").write_text(text, encoding="utf-8", newline="")
        importlib.invalidate_caches()
        forget_files()

    yield write
    for name in ("lesson", "tlcourse.extra", "tlcourse.deeper"):
        sys.modules.pop(name, None)
    forget_files()


@pytest.fixture
def digest(module):
    """The digest of what a lesson's run reaches, in the lesson and in the modules it imports."""

    def of(
        lesson: str = LESSON, extra: str = EXTRA, deeper: str = "TWO = 2\n", name: str = "run"
    ) -> str:
        texts = {"tlcourse.deeper": deeper, "tlcourse.extra": extra, "lesson": lesson}
        for place, text in texts.items():
            module(place, text)
        return code_digest("lesson", name)

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
        ("seed: int, *", "seed, *"),
        ("*more: int", "*more: str"),
        (' -> list[float]:\n    """What', ':\n    """What'),
        ('"it helps"', '"it helps a lot"'),
        ("import Claim, Given, greater", "import Claim, Given, equivalent, greater"),
        ("the teacher is better", "the teacher makes fewer errors"),
        ("seeds=5", "seeds=6"),
        ("seed is too large", "seed must be smaller"),
        ('raise ValueError(f"seed is too large. {trouble}")', "raise ValueError"),
        ("so many: {seed}.", "{seed} is too much."),
        ('    trouble = f"so many: {seed}."\n', ""),
        ("there are {many}", "more must be fewer than 3, got {many}"),
        ("many < 3", "many < 4"),
        ("    many = len(more)\n", "    many = min(len(more), 9)\n"),
        ("    assert seed >= 0", "    assert seed > -1"),
        ("RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)"),
        ("BETTER =", "LATER = 3\nBETTER ="),
    ],
)
def test_words_types_checks_and_claims_do_not_make_a_record_stale(digest, old, new):
    assert digest(edited(LESSON, old, new)) == digest()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("RATE: float = 0.1", "RATE: float = 0.2"),
        ("size = 3", "size = 4"),
        ("math.sqrt(seed)", "math.cbrt(seed)"),
        ("double(value)", "value"),
        ("double(value) + RATE", "RATE + double(value)"),
        ("seed: int, *", "seed: int = 0, *"),
        ('    """What it does."""', '    """What it does."""\n    print("here")'),
        ("seed > 1000", "seed > 999"),
        ("raise ValueError(f", "raise TypeError(f"),
        ("import math", "import cmath as math"),
    ],
)
def test_a_number_a_call_or_a_name_makes_a_record_stale(digest, old, new):
    assert digest(edited(LESSON, old, new)) != digest()


def test_tune_has_a_digest_of_its_own(digest):
    grid = edited(LESSON, "RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)")
    assert digest(grid) == digest()
    assert digest(grid, name="tune") != digest(name="tune")


def test_imported_modules_of_the_course_count_and_so_do_theirs(digest):
    before = digest()
    assert digest(extra=edited(EXTRA, "TWO * x", "x + x")) != before
    assert digest(deeper="TWO = 2.5\n") != before
    words = edited(EXTRA, '"""Twice x."""', '"""2 x."""')
    assert digest(extra=words, deeper="# two\nTWO = 2\n") == before


def test_line_ends_do_not_count(digest):
    windows = LESSON.replace("\n", "\r\n")
    assert digest(windows, extra=EXTRA.replace("\n", "\r\n")) == digest()


def test_where_a_function_lies_does_not_count(digest, module):
    before = digest()
    moved = edited(
        LESSON, "from tlcourse.extra import double", "from tlcourse.deeper import double"
    )
    assert digest(moved, deeper=f"TWO = 2\n{EXTRA.split('import TWO')[1]}") == before
    inside = edited(EXTRA, "from tlcourse.deeper import TWO", "TWO = 2")
    assert digest(extra=inside) == before


def test_what_a_name_is_bound_to_counts(digest):
    both = "def f(x):\n    return x\n\ndef g(x):\n    return -x\n"
    line = "from tlcourse.extra import double"
    straight, crossed = (
        edited(LESSON, line, f"from tlcourse.extra import {a} as double, {b} as other").replace(
            "* Helper.size", "* other(Helper.size)"
        )
        for a, b in ("fg", "gf")
    )
    assert digest(straight, extra=both) != digest(crossed, extra=both)


@pytest.mark.parametrize(
    "line",
    [
        "import tlcourse.extra",
        "from tlcourse import extra",
        "import tlcourse.extra as e",
    ],
)
def test_every_way_to_import_counts(digest, line):
    used = {"e": "e.double(", "extra": "extra.double("}.get(line.split()[-1], "double(")
    used = "tlcourse.extra.double(" if line == "import tlcourse.extra" else used
    lesson = edited(LESSON, "from tlcourse.extra import double", line)
    lesson = edited(lesson, "double(value)", f"{used}value)")
    assert digest(lesson, extra="A = 1\n") != digest(lesson, extra="A = 2\n")


def test_an_import_within_a_function_counts(digest):
    inside = "    from tlcourse.extra import double\n    value ="
    lesson = edited(LESSON, "from tlcourse.extra import double\n", "")
    lesson = edited(lesson, "    value =", inside)
    assert digest(lesson) != digest(lesson, extra=edited(EXTRA, "TWO * x", "x + x"))
    assert digest(lesson) == digest(lesson, extra=edited(EXTRA, "Twice x", "2 x"))


def test_what_only_reads_rows_does_not_count(digest, monkeypatch):
    digest()
    seen, statements = [], digests._statements
    with monkeypatch.context() as patch:
        patch.setattr(digests, "_statements", lambda name: seen.append(name) or statements(name))
        digests._bindings.cache_clear()
        code_digest("lesson", "run")
    assert set(seen) == {"lesson", "tlcourse.deeper", "tlcourse.extra"}


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
    line = "from tlcourse.extra import double"
    lesson = edited(LESSON, line, "from tlcourse.extra import Of as double")
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


# of an experiment


@dataclass(frozen=True)
class Plan:
    """A scale."""

    seeds: int = 3
    minutes: float = 1
    workers: int | None = None
    choices: object = None
    tuning_seeds: int = 1
    images: int = 10


@dataclass
class Made:
    """As much of an experiment as a digest needs."""

    run: object
    tune: object = None


@pytest.fixture
def code(digest):
    """The two digests of an edited lesson at an edited scale."""

    def of(lesson: str = LESSON, extra: str = EXTRA, **scale) -> tuple[str, str]:
        digest(lesson, extra)
        sys.modules.pop("lesson", None)
        made = importlib.import_module("lesson")
        return Code.of(Made(made.run, made.tune), Plan(**scale)).digests()

    return of


@pytest.fixture(autouse=True)
def _an_experiment_that_can_be_made(monkeypatch):
    """The lesson's last line makes an experiment, which is of no interest here."""
    monkeypatch.setattr("tlcourse.experiments.base.Experiment", lambda *_, **__: None)
    monkeypatch.setattr("tlcourse.experiments.base.Scale", lambda **_: None)
    monkeypatch.setattr("tlcourse.claims.Claim", lambda *_: None)


@pytest.mark.parametrize("change", [{"seeds": 9}, {"minutes": 7}, {"workers": 1}])
def test_how_much_is_measured_does_not_count(code, change):
    assert code(**change) == code()


@pytest.mark.parametrize("change", [{"images": 11}, {"tuning_seeds": 2}])
def test_the_values_of_a_scale_count(code, change):
    assert [a == b for a, b in zip(code(**change), code())] == [False, False]


def test_another_grid_changes_what_tunes_alone(code):
    changed = code(edited(LESSON, "RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)"))
    assert [a == b for a, b in zip(changed, code())] == [True, False]


def test_a_grid_that_run_reads_too_changes_both(code):
    lesson = edited(LESSON, "RATE * Helper", "RATES[0] * Helper")
    changed = code(edited(lesson, "RATES = (0.1, 0.2)", "RATES = (0.1, 0.3)"))
    assert [a == b for a, b in zip(changed, code(lesson))] == [False, False]


def test_what_run_reaches_of_the_house_is_judged_by_its_seed_for_both(code):
    changed = code(extra=edited(EXTRA, "TWO * x", "x + x"))
    assert [a == b for a, b in zip(changed, code())] == [False, True]


def test_without_tuning_there_is_no_second_digest(code, digest):
    digest()
    made = importlib.import_module("lesson")
    assert Code.of(Made(made.run), Plan()).digests()[1] == ""


def test_the_wording_of_an_error_leaves_every_record_current(repository, tmp_path, monkeypatch):
    """Every text of every error in the house is edited, and no digest moves."""
    plans = [(e, plan) for e in EXPERIMENTS.values() for plan in e.scales.values()]
    before = [Code.of(*pair).digests() for pair in plans]
    assert all(first for first, _ in before)
    words = ("must", "needs", "has no", "there is no", "missing", "damaged", "neither")
    edits = 0
    for path in sorted((repository / "tlcourse").rglob("*.py")):
        text, kept = path.read_text(encoding="utf-8"), []
        for line in text.splitlines(keepends=True):
            told = "expect(" in line or "raise " in line or "repair" in line
            changed = line
            for word in words if told else ():
                changed = changed.replace(f" {word} ", f" {word} indeed ")
            edits += changed != line
            kept.append(changed)
        place = tmp_path / path.relative_to(repository)
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text("".join(kept), encoding="utf-8", newline="")
    assert edits > 100
    monkeypatch.setattr(tlcourse, "__path__", [str(tmp_path / "tlcourse")])
    forget_files()
    assert [Code.of(*pair).digests() for pair in plans] == before
    monkeypatch.undo()
    forget_files()


def test_a_module_without_source_is_refused():
    with pytest.raises(ValueError, match=r"module tlcourse.nothing has no source file"):
        code_digest("tlcourse.nothing")
