"""Made-up rows whose verdict is known: by hand, or from scipy's paired t test."""

import hashlib
import json
from math import isnan, nan
from pathlib import Path

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from tlcourse.claims import (
    CONTRADICTED,
    INCONCLUSIVE,
    NOT_TESTABLE,
    SUPPORTED,
    TUNING,
    Claim,
    Decision,
    Given,
    at_least,
    contrast,
    count,
    equivalent,
    exact,
    greater,
    interval,
    judge,
    quoted,
    scope,
    select,
)
from tlcourse.digests import Code
from tlcourse.experiments import EXPERIMENTS, ledger
from tlcourse.results import to_csv

SPREAD = [
    -2.0,
    -1.0,
    0.0,
    1.0,
    2.0,
]  # mean 0, s = √2.5: the interval's half is t·√0.5, 1.96324 at 95 %, 1.50745 at 90 %
STUDENTS = greater("alone", "distilled", "errors")
counts = st.integers(-1000, 1000).map(float)


def table(
    arms: dict[str, list[float]], metric: str = "errors", first_seed: int = 0, **where: object
) -> pd.DataFrame:
    """One row per arm and seed."""
    return pd.DataFrame(
        [
            {"seed": first_seed + i, "arm": arm, "metric": metric, "value": value, **where}
            for arm, values in arms.items()
            for i, value in enumerate(values)
        ]
    )


def differing_by(differences: list[float]) -> pd.DataFrame:
    """Rows of two arms whose paired differences, alone − distilled, are these."""
    return table({"alone": [100 + d for d in differences], "distilled": [100.0] * len(differences)})


def claim(decide: Decision, given: Given | None = None) -> Claim:
    return Claim("X1", "a sentence", source="a lecture", decide=decide, unit="errors", given=given)


# greater


def test_greater_equals_the_paired_t_test():
    alone, distilled = [140.0, 151, 133, 160, 149], [120.0, 126, 119, 131, 111]
    found = STUDENTS(table({"alone": alone, "distilled": distilled}))
    expected = stats.ttest_rel(alone, distilled)
    assert found.effect == pytest.approx(25.2)
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert (found.verdict, found.seeds) == (SUPPORTED, 5)


@given(
    st.lists(st.tuples(counts, counts), min_size=2, max_size=8).filter(
        lambda pairs: len({a - b for a, b in pairs}) > 1
    )
)
def test_supported_exactly_when_the_t_test_says_so(pairs):
    a, b = zip(*pairs)
    found = STUDENTS(table({"alone": list(a), "distilled": list(b)}))
    test = stats.ttest_rel(a, b)
    if abs(test.pvalue - 0.05) > 1e-9:
        assert found.verdict == (
            INCONCLUSIVE
            if test.pvalue > 0.05
            else SUPPORTED
            if test.statistic > 0
            else CONTRADICTED
        )


@pytest.mark.parametrize(
    ("mean", "verdict"),
    [
        (1.97, SUPPORTED),
        (1.96, INCONCLUSIVE),
        (0.0, INCONCLUSIVE),
        (-1.96, INCONCLUSIVE),
        (-1.97, CONTRADICTED),
    ],
)
def test_an_interval_that_just_holds_zero_decides_nothing(mean, verdict):
    found = STUDENTS(differing_by([mean + d for d in SPREAD]))
    assert found.verdict == verdict
    assert found.high - found.effect == pytest.approx(1.963243, abs=1e-6)


@pytest.mark.parametrize(
    ("difference", "verdict"), [(0.0, INCONCLUSIVE), (3.0, SUPPORTED), (-3.0, CONTRADICTED)]
)
def test_without_variance_the_interval_is_a_point(difference, verdict):
    found = STUDENTS(differing_by([difference] * 4))
    assert (found.verdict, found.effect, found.low, found.high) == (
        verdict,
        difference,
        difference,
        difference,
    )


def test_an_interval_that_ends_at_zero_decides_nothing():
    assert STUDENTS(differing_by([0.0, 0.0, 0.0])).verdict == INCONCLUSIVE


def test_pairs_only_the_seeds_that_both_arms_have():
    rows = table({"alone": [10.0, 20, 30, 40], "distilled": [8.0, 17, 29, 0]})
    rows = rows[~((rows["arm"] == "distilled") & (rows["seed"] == 3))]
    found = STUDENTS(rows)
    low, high = stats.ttest_1samp([2, 3, 1], 0).confidence_interval(0.95)
    assert (found.effect, found.low, found.high) == pytest.approx((2.0, low, high))
    assert found.seeds == 3


def test_pairs_by_seed_not_by_order():
    rows = table({"alone": [10.0, 20, 30], "distilled": [9.0, 19, 29]})
    assert STUDENTS(rows.iloc[::-1]) == STUDENTS(rows.sort_values("value")) == STUDENTS(rows)
    assert STUDENTS(rows).effect == 1.0


def test_arms_without_a_common_seed_decide_nothing():
    rows = pd.concat([table({"alone": [10.0, 11]}), table({"distilled": [1.0, 2]}, first_seed=5)])
    found = STUDENTS(rows)
    assert (found.verdict, found.seeds) == (INCONCLUSIVE, 0)
    assert isnan(found.effect)


def test_one_seed_decides_nothing():
    found = STUDENTS(differing_by([50.0]))
    assert (found.verdict, found.effect, found.seeds) == (INCONCLUSIVE, 50.0, 1)
    assert isnan(found.low)
    assert isnan(found.high)


def test_a_seed_whose_value_is_nan_has_no_pair():
    found = STUDENTS(table({"alone": [10.0, nan, 31, 41], "distilled": [9.0, 18, 29, nan]}))
    assert (found.effect, found.seeds) == (1.5, 2)


def test_an_infinite_value_decides_nothing():
    with pytest.warns(RuntimeWarning):
        assert STUDENTS(differing_by([1.0, 1.0, float("inf")])).verdict == INCONCLUSIVE


def test_where_picks_the_rows():
    rows = pd.concat(
        [
            table({"alone": [9.0, 9], "distilled": [1.0, 1]}, width=30),
            table({"alone": [1.0, 1], "distilled": [9.0, 9]}, width=300),
        ]
    )
    assert greater("alone", "distilled", "errors", width=30)(rows).verdict == SUPPORTED
    assert greater("alone", "distilled", "errors", width=300)(rows).verdict == CONTRADICTED


def test_other_arms_and_metrics_do_not_count():
    rows = differing_by([1.0, 2, 3])
    more = [
        rows,
        table({"teacher": [7.0, 7, 7, 7]}),
        table({"alone": [0.0] * 9, "distilled": [5.0] * 9}, "seconds"),
    ]
    assert STUDENTS(pd.concat(more)) == STUDENTS(rows)


def test_several_values_for_one_seed_and_arm_are_refused():
    rows = pd.concat(
        [table({"alone": [1.0, 2], "distilled": [1.0, 2]}, width=width) for width in (30, 300)]
    )
    with pytest.raises(
        ValueError, match=r"'errors' .* several values for one seed and arm: name more coordinates"
    ):
        STUDENTS(rows)


@pytest.mark.parametrize(
    ("decide", "said"),
    [
        (greater("alone", "distiled", "errors"), "arm 'distiled'"),
        (greater("alone", "distilled", "accuracy"), "no 'accuracy'"),
        (greater("alone", "distilled", "errors", width=300), "no coordinate 'width'"),
        (equivalent("alone", "other", "errors", margin=1), "arm 'other'"),
        (exact("accuracy", tolerance=1), "no 'accuracy'"),
        (count([STUDENTS, greater("alone", "other", "errors")], at_least=1), "arm 'other'"),
    ],
)
def test_says_what_is_missing(decide, said):
    with pytest.raises(LookupError, match=said):
        decide(differing_by([1.0, 2, 3]))


def test_a_value_of_a_coordinate_that_is_missing():
    with pytest.raises(LookupError, match=r"no 'errors' at \{'width': 300\}"):
        select(table({"alone": [1.0]}, width=30), "errors", {"width": 300})


@given(st.lists(st.tuples(counts, counts), min_size=1, max_size=8))
def test_swapping_the_arms_flips_the_verdict(pairs):
    a, b = (list(values) for values in zip(*pairs))
    found = STUDENTS(table({"alone": a, "distilled": b}))
    swapped = STUDENTS(table({"alone": b, "distilled": a}))
    assert swapped.effect == -found.effect
    assert {SUPPORTED: CONTRADICTED, CONTRADICTED: SUPPORTED}.get(
        found.verdict, found.verdict
    ) == swapped.verdict
    if len(pairs) > 1:
        assert (swapped.low, swapped.high) == (-found.high, -found.low)


@given(st.lists(st.tuples(counts, counts, counts), min_size=2, max_size=8))
def test_what_a_seed_adds_to_both_arms_cancels(triples):
    a, b, luck = (list(values) for values in zip(*triples))
    shifted = table(
        {"alone": [x + c for x, c in zip(a, luck)], "distilled": [x + c for x, c in zip(b, luck)]}
    )
    assert STUDENTS(shifted) == STUDENTS(table({"alone": a, "distilled": b}))


# contrast


def test_contrast_weighs_the_arms():
    alone, teacher, distilled = [150.0, 146, 161, 155], [70.0, 66, 71, 67], [101.0, 105, 110, 99]
    found = contrast({"alone": 0.5, "teacher": 0.5, "distilled": -1}, "errors")(
        table({"alone": alone, "teacher": teacher, "distilled": distilled})
    )
    sums = [9.0, 1.0, 6.0, 12.0]
    low, high = stats.ttest_1samp(sums, 0).confidence_interval(0.95)
    assert (found.effect, found.low, found.high) == pytest.approx((7.0, low, high))
    assert (found.verdict, found.seeds) == (INCONCLUSIVE, 4)  # 7 ± 7.5


def test_contrast_of_four_arms_is_a_difference_of_differences():
    arms = {
        "scaled wide": [9.0, 8, 9],
        "plain wide": [2.0, 2, 2],
        "scaled deep": [5.0, 5, 6],
        "plain deep": [4.0, 4, 4],
    }
    found = contrast(
        {"scaled wide": 1, "plain wide": -1, "scaled deep": -1, "plain deep": 1}, "errors"
    )(table(arms))
    assert (found.verdict, found.effect) == (SUPPORTED, pytest.approx((6 + 5 + 5) / 3))


def test_contrast_needs_every_arm_of_a_seed():
    found = contrast({"alone": 1, "teacher": 1, "distilled": -2}, "errors")(
        table({"alone": [3.0, 4, 5], "teacher": [1.0, 2], "distilled": [1.0, 1, 1]})
    )
    assert (found.seeds, found.effect) == (2, 3.0)


def test_contrast_with_itself_is_greater():
    rows = differing_by([3.0, 1, 2, 2])
    assert contrast({"alone": 1, "distilled": -1}, "errors")(rows) == STUDENTS(rows)


# equivalent


@pytest.mark.parametrize(
    ("mean", "margin", "verdict"),
    [
        (0.0, 1.51, SUPPORTED),
        (0.0, 1.50, INCONCLUSIVE),
        (1.0, 2.51, SUPPORTED),
        (1.0, 2.50, INCONCLUSIVE),
        (-1.0, 2.51, SUPPORTED),
        (5.0, 3.49, CONTRADICTED),
        (5.0, 3.50, INCONCLUSIVE),
        (-5.0, 3.49, CONTRADICTED),
        (-5.0, 3.50, INCONCLUSIVE),
    ],
)
def test_equivalent_inside_across_and_outside_the_margin(mean, margin, verdict):
    found = equivalent("alone", "distilled", "errors", margin=margin)(
        differing_by([mean + d for d in SPREAD])
    )
    assert found.verdict == verdict
    assert found.high - found.effect == pytest.approx(1.507444, abs=1e-6)
    assert f"{margin:g}" in found.why


def test_equivalent_uses_the_90_percent_interval():
    a, b = [3.0, 5, 4, 8], [4.0, 5, 2, 7]
    found = equivalent("alone", "distilled", "errors", margin=10)(
        table({"alone": a, "distilled": b})
    )
    assert (found.low, found.high) == pytest.approx(
        tuple(stats.ttest_rel(a, b).confidence_interval(0.90))
    )


def test_equal_arms_are_equivalent_and_one_seed_is_not_enough():
    decide = equivalent("alone", "distilled", "errors", margin=1)
    assert decide(differing_by([0.0, 0.0])).verdict == SUPPORTED
    assert decide(differing_by([0.0])).verdict == INCONCLUSIVE


def test_a_difference_of_just_the_margin_is_not_inside():
    assert (
        equivalent("alone", "distilled", "errors", margin=2)(differing_by([2.0, 2.0])).verdict
        == INCONCLUSIVE
    )


# at least


@pytest.mark.parametrize(
    ("mean", "slack", "verdict"),
    [
        (0.0, 0.01, SUPPORTED),
        (0.0, -0.01, INCONCLUSIVE),
        (9.0, 0.01, SUPPORTED),
        (-3.0, 0.01, SUPPORTED),
        (-3.0, -0.01, INCONCLUSIVE),
    ],
)
def test_at_least_asks_that_the_whole_interval_is_above_the_margin(mean, slack, verdict):
    rows = differing_by([mean + d for d in SPREAD])
    low = greater("alone", "distilled", "errors")(rows).low
    margin = max(slack - low, 0.01)
    found = at_least("alone", "distilled", "errors", margin=margin)(rows)
    assert found.verdict == verdict
    assert found.low == low


def test_at_least_is_contradicted_when_the_whole_interval_is_below_the_margin():
    rows = differing_by([-9.0 + d for d in SPREAD])
    high = greater("alone", "distilled", "errors")(rows).high
    assert (
        at_least("alone", "distilled", "errors", margin=-high - 0.01)(rows).verdict == CONTRADICTED
    )
    assert (
        at_least("alone", "distilled", "errors", margin=-high + 0.01)(rows).verdict == INCONCLUSIVE
    )
    with pytest.raises(ValueError, match="margin must be > 0, got 0"):
        at_least("alone", "distilled", "errors", margin=0)


# exact


@pytest.mark.parametrize(
    ("values", "verdict", "largest"),
    [
        ([0.0, 0.25], SUPPORTED, 0.25),
        ([0.0, 0.2500001], CONTRADICTED, 0.2500001),
        ([0.1, -0.3], CONTRADICTED, 0.3),
        ([-0.25, 0.1], SUPPORTED, 0.25),
        ([0.0, nan], CONTRADICTED, nan),
        ([nan, nan], CONTRADICTED, nan),
    ],
)
def test_exact_looks_at_the_largest_error(values, verdict, largest):
    found = exact("error", tolerance=0.25)(table({"T=1": values}, "error"))
    assert found.verdict == verdict
    assert found.effect == pytest.approx(largest, nan_ok=True)
    assert isnan(found.low)
    assert isnan(found.high)


def test_exact_looks_at_every_arm_and_counts_seeds_not_rows():
    rows = table({"T=1": [0.0, 0, 0], "T=20": [0.0, 0.9, 0]}, "error")
    found = exact("error", tolerance=0.5)(rows)
    assert (found.verdict, found.effect, found.seeds) == (CONTRADICTED, 0.9, 3)
    assert exact("error", tolerance=0)(rows[rows["arm"] == "T=1"]).verdict == SUPPORTED


# count


@pytest.mark.parametrize(
    ("at_least", "verdict"),
    [(1, SUPPORTED), (2, SUPPORTED), (3, INCONCLUSIVE), (4, CONTRADICTED)],
)
def test_count_of_two_that_hold_one_open_and_one_against(at_least, verdict):
    differences = {"a": [3.0, 3, 3], "b": [1.0, 2, 1.5], "c": [-9.0, 9, 0], "d": [-3.0, -3, -3.5]}
    rows = pd.concat([differing_by(d).assign(pair=pair) for pair, d in differences.items()])
    found = count(
        [greater("alone", "distilled", "errors", pair=pair) for pair in differences],
        at_least=at_least,
    )(rows)
    assert (found.verdict, found.effect, found.low, found.high) == (verdict, 2, 2, 3)
    assert found.seeds == 3
    assert f"2 of 4, at least {at_least} needed" in found.why


@pytest.mark.parametrize(("at_least", "verdict"), [(2, SUPPORTED), (3, CONTRADICTED)])
def test_the_lectures_own_table_decides_without_a_row_and_a_tie_is_no_win(at_least, verdict):
    found = quoted([1.5, -2.0, 0.0, 0.1], at_least=at_least)(table({"alone": []}))
    assert (found.verdict, found.effect, found.low, found.high) == (verdict, 2, 2, 2)
    assert (found.seeds, found.why) == (0, f"2 of 4, at least {at_least} needed")


@pytest.mark.parametrize(("differences", "at_least"), [([], 1), ([1.0], 2), ([1.0], 0)])
def test_a_count_of_quoted_numbers_that_cannot_be(differences, at_least):
    with pytest.raises(ValueError, match=f"at_least must be in 1 … {len(differences)}, got"):
        quoted(differences, at_least=at_least)


def test_count_has_the_seeds_of_the_set_up_with_the_fewest():
    rows = pd.concat([differing_by([3.0] * n).assign(pair=n) for n in (5, 2)])
    assert (
        count([greater("alone", "distilled", "errors", pair=n) for n in (5, 2)], at_least=1)(
            rows
        ).seeds
        == 2
    )


# scope, kinds, arguments


def test_scope_is_only_stated():
    found = judge(claim(scope("ResNets were not grown")), differing_by([1.0, 2]))
    assert (found.verdict, found.seeds, found.why) == ("stated", 0, "ResNets were not grown")


def test_each_decision_names_its_kind():
    made = [
        STUDENTS,
        contrast({"a": 1}, "m"),
        equivalent("a", "b", "m", margin=1),
        exact("m", tolerance=1),
        count([STUDENTS], at_least=1),
        scope("…"),
    ]
    assert [decide.kind for decide in made] == [
        "greater",
        "greater",
        "equivalent",
        "exact",
        "count",
        "scope",
    ]


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: equivalent("a", "b", "errors", margin=0), "margin must be > 0, got 0"),
        (lambda: equivalent("a", "b", "errors", margin=nan), "margin must be > 0, got nan"),
        (lambda: exact("errors", tolerance=-1e-9), "tolerance must be >= 0, got -1e-09"),
        (lambda: exact("errors", tolerance=nan), "tolerance must be >= 0, got nan"),
        (lambda: count([STUDENTS], at_least=2), r"at_least must be in 1 … 1, got 2"),
        (lambda: count([STUDENTS], at_least=0), r"at_least must be in 1 … 1, got 0"),
        (lambda: count([], at_least=1), r"at_least must be in 1 … 0, got 1"),
    ],
)
def test_refuses(make, said):
    with pytest.raises(ValueError, match=said):
        make()


@pytest.mark.parametrize("confidence", [0.90, 0.95])
def test_interval_equals_scipy(confidence):
    values = pd.Series([3.0, 1.5, 4.25, -2.0]).to_numpy()
    mean, low, high, n = interval(values, confidence)
    assert (low, high) == pytest.approx(
        tuple(stats.ttest_1samp(values, 0).confidence_interval(confidence))
    )
    assert (mean, n) == (1.6875, 4)


# judge: what is never looked at, and what must hold first

BETTER = Given("the teacher makes fewer errors", greater("alone", "teacher", "errors"))


def with_teacher(errors: list[float]) -> pd.DataFrame:
    return table({"alone": [100.0, 101, 102], "distilled": [90.0, 92, 91], "teacher": errors})


def test_a_claim_whose_precondition_holds_is_decided():
    rows = with_teacher([50.0, 51, 53])
    assert judge(claim(STUDENTS, BETTER), rows) == judge(claim(STUDENTS), rows) == STUDENTS(rows)
    assert STUDENTS(rows).verdict == SUPPORTED


@pytest.mark.parametrize(
    "errors", [[150.0, 151, 153], [60.0, 110, 130]], ids=["contradicted", "inconclusive"]
)
def test_a_claim_whose_precondition_fails_is_not_testable_here(errors):
    rows = with_teacher(errors)
    found, plain = judge(claim(STUDENTS, BETTER), rows), STUDENTS(rows)
    assert found.verdict == NOT_TESTABLE == "not testable here"
    assert "the teacher makes fewer errors" in found.why
    assert (found.effect, found.low, found.high, found.seeds) == (
        plain.effect,
        plain.low,
        plain.high,
        plain.seeds,
    )


def test_a_precondition_without_rows_is_missing_not_failed():
    with pytest.raises(LookupError, match="'teacher'"):
        judge(claim(STUDENTS, BETTER), differing_by([1.0, 2, 3]))


@pytest.mark.parametrize(
    "decide",
    [
        STUDENTS,
        contrast({"alone": 2, "distilled": -1}, "errors"),
        equivalent("alone", "distilled", "errors", margin=5),
        exact("errors", tolerance=104),
        count([STUDENTS], at_least=1),
    ],
    ids=["greater", "contrast", "equivalent", "exact", "count"],
)
def test_tuning_seeds_never_enter_a_verdict(decide):
    rows = differing_by([1.0, 2, 3])
    tuned = table({"alone": [1e6, 1e6], "distilled": [0.0, 0]}, first_seed=TUNING)
    assert judge(claim(decide), pd.concat([rows, tuned])) == judge(claim(decide), rows)


def test_tuning_seeds_do_not_bear_out_a_precondition():
    tuned = table({"alone": [900.0] * 9, "teacher": [1.0] * 9}, first_seed=TUNING)
    assert (
        judge(claim(STUDENTS, BETTER), pd.concat([with_teacher([99.0, 102, 102]), tuned])).verdict
        == NOT_TESTABLE
    )


def test_rows_of_tuning_seeds_alone_decide_nothing():
    with pytest.raises(LookupError):
        judge(claim(STUDENTS), table({"alone": [5.0, 5], "distilled": [1.0, 1]}, first_seed=TUNING))


# the ledger, over records made up for the course's own experiment

KEYS = [
    "id",
    "chapter",
    "sentence",
    "source",
    "paper",
    "kind",
    "effect",
    "unit",
    "low",
    "high",
    "verdict",
    "seeds",
    "scale",
    "experiment",
]
E = EXPERIMENTS["distillation"]


def made_up(seeds: int, teacher: float = 50.0, softmax_error: float = 0.0) -> pd.DataFrame:
    """Rows that decide every claim of the distillation experiment."""
    wobble = [float(i % 3) for i in range(seeds)]
    arms = {"alone": 150.0, "T=20": 120.0, "logits": 119.0, "teacher": teacher}
    by_width = [
        table(
            {
                arm: [value + (1 + i) * w for w in wobble]
                for i, (arm, value) in enumerate(arms.items())
            },
            metric,
            width=300,
        )
        for metric in ("errors", "epochs to what alone reaches")
    ]
    algebra = [
        table({"limit": [0.0] * seeds}, metric)
        for metric in ("gradient error", "gradient size error", "halving error")
    ]
    shares = table(
        {"T=20": [0.4 + w / 100 for w in wobble], "T=1": [0.1] * seeds}, "share of the lowest"
    )
    return pd.concat(
        [*by_width, *algebra, shares, table({"limit": [softmax_error] * seeds}, "softmax error")]
    )


def write_record(home: Path, rows: pd.DataFrame, seeds: int, **changes: object) -> None:
    folder = home / "data" / "results"
    folder.mkdir(exist_ok=True)
    kept = [
        {k: v for k, v in row.items() if k == "value" or v == v} for row in rows.to_dict("records")
    ]
    text = to_csv(kept)
    digest, tune_digest = Code.of(E, E.scales["lecture"]).digests()
    origin = {
        **dict.fromkeys(("command", "processor", "measured"), "made up"),
        **{"experiment": "distillation", "scale": "lecture", "device": "cpu", "versions": {}},
        **{"digest": digest, "tune_digest": tune_digest, "tuning_seeds": []},
        **{"seeds": list(range(seeds)), "seconds": [1.0] * seeds},
        "rows_sha256": hashlib.sha256(text.encode()).hexdigest(),
    } | changes
    (folder / "distillation.lecture.csv").write_bytes(text.encode())
    (folder / "distillation.lecture.json").write_text(json.dumps(origin), encoding="utf-8")


def listed() -> dict[str, dict]:
    """What `tlcourse claims --json` prints, by id, at the lecture's scale, as strict JSON."""
    text = json.dumps(
        [entry.as_dict() for entry in ledger("distillation") if entry.scale == "lecture"],
        allow_nan=False,
    )
    return {entry["id"]: entry for entry in json.loads(text)}


def test_the_ledger_has_exactly_the_keys_of_the_contract(home):
    write_record(home, made_up(6), 6)
    found = listed()
    assert all(sorted(entry) == sorted(KEYS) for entry in found.values())
    assert set(found) >= {"K1", "K2", "K3", "K4", "K5", "K6", "K7", "K8"}


def test_the_ledger_quotes_the_verdicts(home):
    rows = made_up(6)
    write_record(home, rows, 6)
    found = listed()
    expected = judge(next(c for c in E.claims if c.id == "K1"), rows)
    kept = ("verdict", "effect", "low", "high", "seeds", "kind", "experiment", "scale", "chapter")
    assert [found["K1"][key] for key in kept] == [
        SUPPORTED,
        *(pytest.approx(x) for x in (expected.effect, expected.low, expected.high)),
        *(6, "greater", "distillation", "lecture", "knowledge_distillation"),
    ]
    assert [found["K4"][key] for key in ("verdict", "effect", "low", "high", "seeds")] == [
        SUPPORTED,
        0.0,
        None,
        None,
        6,
    ]


def test_the_ledger_of_a_teacher_that_is_no_better(home):
    write_record(home, made_up(6, teacher=200.0), 6)
    found = listed()
    assert (found["K1"]["verdict"], found["K2"]["verdict"], found["K8"]["verdict"]) == (
        NOT_TESTABLE,
        NOT_TESTABLE,
        SUPPORTED,
    )


@pytest.mark.parametrize("value", [nan, float("inf")])
def test_a_number_that_json_does_not_know_is_null(home, value):
    write_record(home, made_up(6, softmax_error=value), 6)
    assert (listed()["K4"]["effect"], listed()["K4"]["verdict"]) == (None, CONTRADICTED)


def test_without_a_record_every_claim_is_missing(home):
    found = listed().values()
    assert len(found) >= 8
    assert all(
        [e["verdict"], e["effect"], e["low"], e["high"], e["seeds"]]
        == ["missing", None, None, None, 0]
        for e in found
    )


def test_a_record_of_other_code_is_stale(home):
    write_record(home, made_up(6), 6, digest="0" * 64)
    found = listed()
    assert {entry["verdict"] for entry in found.values()} == {"stale"}
    assert found["K1"]["effect"] is not None


def test_a_record_of_too_few_seeds_is_incomplete(home):
    write_record(home, made_up(2), 2)
    assert {entry["verdict"] for entry in listed().values()} == {"incomplete"}


def test_a_record_that_was_tampered_with_is_damaged(home):
    write_record(home, made_up(6), 6, rows_sha256="0" * 64)
    assert {entry["verdict"] for entry in listed().values()} == {"damaged"}


def test_a_claim_that_the_rows_do_not_hold_is_missing(home):
    rows = made_up(6)
    write_record(home, rows[rows["metric"] != "share of the lowest"], 6)
    found = listed()
    assert (found["K8"]["verdict"], found["K1"]["verdict"]) == ("missing", SUPPORTED)


def test_the_ledger_knows_no_other_experiment():
    with pytest.raises(ValueError, match=r"no experiment 'destillation'; there are .*distillation"):
        ledger("destillation")


def test_the_ledger_says_how_a_record_was_verified(home):
    how = "2026-11-25 on another processor, within the recorded range"
    write_record(home, made_up(6), 6, verified=how)
    assert {entry.verified for entry in ledger("distillation") if entry.scale == "lecture"} == {how}


def test_ids_are_used_once_and_claims_name_scales_that_exist():
    for experiment in EXPERIMENTS.values():
        assert all(scale in experiment.scales for c in experiment.claims for scale in c.scales)
    pairs = [(entry.claim.id, entry.scale) for entry in ledger()]
    assert len(pairs) == len(set(pairs)) > 0
