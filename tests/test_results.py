"""Reading records: summaries, differences, what to expect, and what can be wrong with a file."""

import json
from math import isnan, nan

import pandas as pd
import pytest
from scipy import stats
from toy_experiment import toy

from tlcourse import measure
from tlcourse.claims import TUNING, Claim, greater
from tlcourse.measure import state
from tlcourse.results import DamagedError, Expected, Record, RecordError, measured, prediction, read

ROWS = pd.DataFrame(
    [
        {"seed": seed, "arm": arm, "metric": "errors", "value": value, "width": width}
        for width, factor in ((30, 10), (300, 1))
        for arm, values in {"b": (1.0, 2.0, 3.0, 4.0), "a": (5.0, 5.0)}.items()
        for seed, value in enumerate(factor * v for v in values)
    ]
)
FOUR = Record(ROWS, ROWS.head(0), {"seeds": [0, 1, 2, 3]})


def test_summary_is_the_mean_and_the_t_interval_of_each_arm():
    found = FOUR.summary("errors", width=300)
    low, high = stats.ttest_1samp([1, 2, 3, 4], 0).confidence_interval(0.95)
    assert list(found.index) == ["b", "a"]
    assert list(found.columns) == ["mean", "low", "high", "seeds"]
    assert found.loc["b"].tolist() == pytest.approx([2.5, low, high, 4])
    assert found.loc["b", "high"] == pytest.approx(2.5 + 2.0542, abs=1e-3)
    assert found.loc["a"].tolist() == [5.0, 5.0, 5.0, 2.0]
    assert FOUR.seeds == 4


def test_summary_of_one_seed_has_no_interval():
    one = Record(ROWS[ROWS["seed"] == 0], ROWS.head(0), {"seeds": [0]})
    found = one.summary("errors", width=30).loc["b"]
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


def test_values_have_a_line_a_seed_and_a_column_an_arm():
    found = FOUR.values("errors", width=300)
    assert found["b"].tolist() == [1.0, 2.0, 3.0, 4.0]
    assert found["a"].tolist()[:2] == [5.0, 5.0]


def test_difference_is_paired_over_the_seeds_that_both_have():
    found = FOUR.difference("a", "b", "errors", width=300)
    assert (found.effect, found.seeds) == (3.5, 2)
    claim = Claim("X", "…", "…", greater("a", "b", "errors", width=300), "errors")
    assert FOUR.judge(claim) == found


def test_expected_is_the_prediction_interval_of_one_more_seed():
    low, high, df = FOUR.expected("b", "errors", width=300)
    assert (low, high) == pytest.approx(
        (2.5 - 8.4307, 2.5 + 8.4307), abs=1e-3
    )  # 5.8409 · s · √1.25
    assert df == 3
    assert FOUR.expected("a", "errors", width=300).df == 1  # two of the four seeds


def test_one_more_value_falls_inside_as_often_as_it_says():
    draws = stats.norm.rvs(size=(4_000, 6), random_state=0)
    ranges = [prediction(row[:5], 0.9) for row in draws]
    inside = sum(low <= row[5] <= high for row, (low, high) in zip(draws, ranges))
    assert inside / 4_000 == pytest.approx(0.9, abs=0.02)


# measured


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (12, "errors: 12 (expected 10 to 20)"),
        (25, "errors: 25 (expected 10 to 20): outside of what the record makes us expect"),
        (1234, "errors: 1,234 (expected 10 to 20): outside"),
        (12.3456, "errors: 12.35 (expected 10 to 20)"),
    ],
)
def test_measured_prints_the_value_beside_its_range(capsys, monkeypatch, value, said):
    monkeypatch.setenv("TLCOURSE_STRICT", "0")
    measured("errors", value, 10, 20)
    assert capsys.readouterr().out.startswith(said)


def test_measured_fails_only_far_outside_and_only_where_it_is_strict(monkeypatch, capsys):
    """Of a normal distribution 99 % lie within 2.576 standard deviations, 99.999 % within 4.417."""
    monkeypatch.setenv("TLCOURSE_STRICT", "1")
    for value in (2.5, -2.5, 2.7, 4.4, -4.4):
        measured("x", value, -2.5758, 2.5758)
    assert capsys.readouterr().out.count("outside") == 3
    for value in (4.5, -4.5, float("inf"), nan):
        with pytest.raises(AssertionError, match=r"x is .*, far outside of -2.5758 to 2.5758"):
            measured("x", value, -2.5758, 2.5758)
    monkeypatch.delenv("TLCOURSE_STRICT")
    measured("x", 9.0, -2.5758, 2.5758)


def test_measured_knows_that_few_seeds_know_little(monkeypatch):
    """With 3 degrees of freedom: 99 % within 5.841 units, 99.999 % within 60.4."""
    monkeypatch.setenv("TLCOURSE_STRICT", "1")
    unit = stats.t.ppf(0.995, 3)
    wide = stats.t.ppf(0.999995, 3)
    measured("x", 0.99 * wide, *Expected(-unit, unit, 3))
    with pytest.raises(AssertionError, match="far outside"):
        measured("x", 1.01 * wide, *Expected(-unit, unit, 3))


@pytest.mark.parametrize("range_", [(2, 1), (nan, 1), (1, nan)])
def test_measured_refuses_what_is_no_range(range_):
    with pytest.raises(ValueError, match="low must be at most high, got "):
        measured("x", 1.0, *range_)


# read


@pytest.fixture
def here(home, in_this_process):
    """A record of the toy."""
    measure.measure(toy, "tiny", progress=False, workers=1)
    return home / "data" / "results"


def test_rows_that_chose_settings_stand_apart(here):
    found = read("toy", "tiny")
    assert set(found.rows["seed"]) == {0, 1, 2}
    assert set(found.tuning["seed"]) == {TUNING, TUNING + 1}
    assert set(found.tuning["metric"]) == {"validation errors"}
    assert len(found.tuning) == 8
    with pytest.raises(LookupError, match="validation errors"):
        found.summary("validation errors")
    with pytest.raises(LookupError, match="validation errors"):
        found.difference("plain", "tuned", "validation errors")


DAMAGE = {
    "cut short": (".csv", lambda content: content[: len(content) // 2]),
    "one digit changed": (".csv", lambda content: content.replace(b"0.1", b"0.2", 1)),
    "rows emptied": (".csv", lambda content: b""),
    "rows no text": (".csv", lambda content: b"\xff\xfe\x00"),
    "half-written": (".json", lambda content: content[: len(content) // 2]),
    "emptied": (".json", lambda content: b""),
    "no text": (".json", lambda content: b"\xff\xfe\x00"),
    "of another kind": (".json", lambda content: b"[]"),
    "nothing": (".json", lambda content: b"null"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_record_says_so_and_is_measured_again(here, damage):
    suffix, change = DAMAGE[damage]
    path, csv = here / f"toy.tiny{suffix}", (here / "toy.tiny.csv").read_bytes()
    before = path.read_bytes()
    assert change(before) != before
    path.write_bytes(change(before))
    said = r"toy.tiny.csv is damaged .*git checkout -- data/results.*`tlcourse run toy --scale tiny"
    with pytest.raises(DamagedError, match=said):
        read("toy", "tiny")
    assert state(toy, "tiny").status == "damaged"
    measure.measure(toy, "tiny", progress=False, workers=1)
    assert (here / "toy.tiny.csv").read_bytes() == csv
    assert state(toy, "tiny").status == "current"


def provenance(here, **changes):
    """Change what a record says of itself; None drops a key."""
    path = here / "toy.tiny.json"
    origin = json.loads(path.read_text(encoding="utf-8")) | changes
    kept = {key: value for key, value in origin.items() if value is not None}
    path.write_text(json.dumps(kept), encoding="utf-8")


@pytest.mark.parametrize(
    "key",
    [
        *("experiment", "scale", "command", "digest", "tune_digest", "rows_sha256", "device"),
        *("processor", "measured", "seeds", "tuning_seeds", "seconds", "versions"),
    ],
)
def test_a_record_that_lacks_something_or_has_it_in_another_kind_is_damaged(here, key):
    for odd in (None, 7):
        provenance(here, **{key: odd})
        with pytest.raises(DamagedError, match=f"the provenance has no '{key}'"):
            read("toy", "tiny")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"scale": "huge"}, "it is the record of toy at scale huge"),
        ({"experiment": "another"}, "it is the record of another at scale tiny"),
        ({"seeds": [0, 1]}, "the rows are of other seeds than it says"),
        ({"seeds": [0, 1, 2, 3]}, "the rows are of other seeds than it says"),
        ({"tuning_seeds": []}, "the rows are of other seeds than it says"),
        ({"seconds": [1.0]}, "there is not one time for each seed"),
    ],
)
def test_a_record_of_something_else_is_damaged(here, changes, said):
    provenance(here, **changes)
    with pytest.raises(DamagedError, match=said):
        read("toy", "tiny")


@pytest.mark.parametrize(
    "line",
    [
        "0,plain,errors,many,30.0",
        "0,plain,errors,,30",
        "x,plain,errors,1.0,30",
        "0,plain",
        "0,a,m,1,2,3,4,5",
    ],
)
def test_a_row_that_is_none_is_damage_even_with_the_right_digest(here, line):
    import hashlib

    path = here / "toy.tiny.csv"
    text = path.read_text(encoding="utf-8") + line + "\n"
    path.write_text(text, encoding="utf-8", newline="")
    provenance(here, rows_sha256=hashlib.sha256(text.encode()).hexdigest())
    with pytest.raises(DamagedError):
        read("toy", "tiny")


def test_line_ends_of_windows_are_no_damage(here):
    before = read("toy", "tiny")
    for path in here.glob("toy.tiny.*"):
        path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    pd.testing.assert_frame_equal(read("toy", "tiny").rows, before.rows, check_exact=True)
    assert state(toy, "tiny").status == "current"


@pytest.mark.parametrize("missing", [[".csv"], [".json"], [".csv", ".json"]])
def test_a_missing_file_is_a_missing_record(here, missing):
    for suffix in missing:
        (here / f"toy.tiny{suffix}").unlink()
    said = r"toy has no record at scale tiny. Measure it with `tlcourse run toy --scale tiny`"
    with pytest.raises(RecordError, match=said):
        read("toy", "tiny")
    assert state(toy, "tiny").status == "missing"
