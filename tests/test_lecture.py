"""What the lecture says, against itself: tables are whole, and counts from them are right."""

import ast
import re
from pathlib import Path

import pytest

from tlcourse import lecture
from tlcourse.experiments import EXPERIMENTS
from tlcourse.lecture import SLIPS, gaps, tally

TABLES = {name: value for name, value in vars(lecture).items() if name.isupper() and name[0] != "_"}
TABLES = {name: t for name, t in TABLES.items() if isinstance(t, dict) and name != "SLIPS"}
PER_SET_UP = {name: table for name, table in TABLES.items() if name != "MNIST"}
PAPER = {(e.name, c.id): c.paper for e in EXPERIMENTS.values() for c in e.claims}


def test_it_imports_nothing_of_the_course():
    tree = ast.parse(Path(lecture.__file__).read_text(encoding="utf-8"))
    assert "tlcourse" not in ast.dump(tree)


@pytest.mark.parametrize("name", PER_SET_UP)
def test_tables_are_whole(name):
    """Numbers everywhere; set-ups differ, and none lacks more than two methods."""
    table = PER_SET_UP[name]
    methods = {method for row in table.values() for method in row}
    assert all(isinstance(value, float) for row in table.values() for value in row.values())
    assert all(len(methods) - 2 <= len(row) for row in table.values())
    assert len({tuple(row.values()) for row in table.values()}) == len(table)


def test_a_table_reads_as_it_is_written():
    found = lecture._table("""
          | one | two, old
        a | 1.5 | –
        b | -2  | 0.0
    """)
    assert found == {"one": {"a": 1.5, "b": -2.0}, "two, old": {"b": 0.0}}


def test_gaps_and_tallies_by_hand():
    table = {"x": {"a": 1.0, "b": 0.9, "c": 2.0}, "y": {"a": 1.0, "b": 1.0}}
    assert gaps(table, "a", "b", "c") == [0.1, 0.0, -1.0]
    assert tally(gaps(table, "a", "b", "c")) == "1 of 3, 1 tie"
    assert tally([0.0, 0.0]) == "0 of 2, 2 ties"
    assert tally([1.0, -1.0]) == "1 of 2"


def test_methods_are_called_as_the_experiments_call_them():
    arms = {arm for experiment in EXPERIMENTS.values() for arm in experiment.arms}
    ours = {*lecture.MNIST, *lecture.CIFAR10["WRN-16-1 ← 16-2"], *lecture.CUB_AND_SCENES["CUB"]}
    ours |= {*lecture.JACOBIANS["1"], *lecture.SCENES["5"]}
    assert ours | {*lecture.LWF_OLD["I→VOC"]} - {"accuracy of LwF"} <= arms
    weighed = {method for column in lecture.TASK_WEIGHTS.values() for method in column}
    assert weighed <= {*EXPERIMENTS["uncertainty"].arms}


def test_numbers_of_the_slides():
    """A few of each table, typed again from the lecture."""
    assert lecture.MNIST == {"teacher": 0.67, "alone": 1.46, "T=20": 0.74}
    assert lecture.CIFAR10["WRN-16-1 ← 40-1"]["KD"] == 8.39
    assert list(lecture.CUB_AND_SCENES["Scenes"].values()) == [28.2, 28.1, 27.1, 26.0]
    assert lecture.GROWN["MIT-67"]["task-customised"] == 68.2
    assert lecture.SUN397["All"]["WA, scaled"] == 58.95
    assert lecture.JACOBIANS["500"]["activations + Jacobians"] == 51.33
    assert lecture.SCENES["full"]["CE, pre-trained"] == 71.42
    assert lecture.SELECTIVE["Flowers"]["fine-tuning"] == 92.3
    assert lecture.TASK_WEIGHTS["segmentation"]["unweighted"] == 50.1
    assert lecture.TASK_WEIGHTS["depth"]["instance + depth"] == 0.539
    assert lecture.LWF_OLD["I→MNIST"]["feature extraction"] == 7.3
    assert lecture.LWF_NEW["P→CUB"]["feature extraction"] == -12.3
    assert lecture.LWF_TEST_AND_VGG["I→CUB old"]["fine-tuning"] == -9.9
    # what is relative to LwF adds up to accuracies
    for table in (lecture.LWF_OLD, lecture.LWF_NEW):
        for own, *others in (row.values() for row in table.values()):
            assert all(0 < own + value <= 100.0 for value in others)


def test_a_teacher_is_better_than_the_student_alone():
    assert min(gaps(lecture.CIFAR10, "alone", "teacher")) > 0
    assert min(gaps(lecture.CUB_AND_SCENES, "alone", "teacher")) > 0


def test_slips_are_numbered_and_say_where_they_stand():
    assert list(SLIPS) == [f"E{i}" for i in range(1, 13)]
    for slip in SLIPS.values():
        assert slip.says
        assert slip.right
        assert slip.source
        lines = [int(number) for number in re.findall(r"\d+", slip.lines)]
        assert lines == sorted(lines)
        assert 1 <= lines[0] <= lines[-1] <= 680
    assert all(SLIPS[id].right.startswith("no slip") for id in ("E3", "E7"))


def test_slips_agree_with_the_tables_that_they_quote():
    cifar = lecture.CIFAR10.values()
    first = sum(row["AT+KD"] == min(list(row.values())[:-1]) for row in cifar)
    at = tally(gaps(lecture.CIFAR10, "KD", "AT")).replace(" of ", " pairs of ")
    assert SLIPS["E2"].right == f"AT in {at}, AT+KD in {first} of {len(cifar)}"
    wins = tally(gaps(lecture.GROWN, "WA-CNN", "task-customised")).replace(" of ", " sets of ")
    assert SLIPS["E10"].right == f"on {wins}"
    assert f"{lecture.SELECTIVE['Flowers']['fine-tuning']}" in SLIPS["E9"].says
    with_ = "CE + activations + attention + Jacobians"
    gain = gaps(lecture.SCENES, with_, "CE + activations + attention")[-1]
    assert f"by {gain}" in SLIPS["E11"].right
    alone = gaps(lecture.JACOBIANS, "activations + Jacobians", "activations")
    assert [value > 0 for value in alone] == [True] * 4 + [False] * 2  # from 100 a class on
    beside = gaps(lecture.JACOBIANS, "CE + activations + Jacobians", "CE + activations")
    assert [value > 0 for value in beside] == [True] * 5 + [False]


@pytest.mark.parametrize(
    ("where", "said"),
    {
        ("distillation", "K1"): "error 1.46 % alone, 0.74 % distilled at T = 20 (60,000 images)",
        ("mnist_table", "K10"): "0.67 % teacher, 1.46 % alone, 0.74 % distilled at T = 20",
        ("attention", "A3"): "4 of 4, by 0.45 to 0.84 points",
        ("attention", "A4"): "4 of 4",
        ("attention", "A5"): "2 of 4",
        ("attention", "A6"): "3 of 4",
        ("few_labels", "A9"): "0.0 (CUB), 1.0 (Scenes)",
        ("few_data", "J3"): "+6.42 at 5, +5.63 at 10",
        ("few_data", "J4"): "+2.08 at 500",
        ("few_data", "J5"): "−0.09 at 100, −5.26 at 500",
        ("few_data", "J8"): "5 of 6",
        ("distant", "J6"): "10 of 10",
        ("distant", "J7"): "5 of 5",
        ("uncertainty", "U4"): "segmentation 63.4 / 50.1, instance 3.5 / 3.79, depth 0.522 / 0.592",
        ("uncertainty", "U4t"): "3 of 3",
        ("uncertainty", "U5"): "3 of 3",
        ("uncertainty", "U6"): "3 of 3",
        ("uncertainty", "U7"): "segmentation 59.4 / 50.1",
        ("uncertainty", "U8"): "5 of 6",
        ("forgetting", "L3"): "new 7 of 7",
        ("forgetting", "L4"): "new 4 of 7, 1 tie",
        ("forgetting", "L5"): "both 25 of 28",
        ("forgetting", "L5o"): "old 11 of 28, 1 tie",
        ("forgetting", "L5n"): "new 25 of 28, 1 tie",
        ("forgetting", "L6"): "against LwF old 7 of 7; new 1 of 7, 2 ties; "
        "feature extraction against it old 7 of 7",
        ("forgetting", "L7"): "better old 7 of 7, worse new 6 of 7",
        ("forgetting", "L8"): "old 7 of 7",
        ("forgetting", "L9"): "old 4 of 7, 1 tie; new 7 of 7",
        ("forgetting", "L10"): "behind joint training by 7.2 points for MNIST, by 0.3 to 2.3 "
        "elsewhere",
    }.items(),
    ids=lambda case: case[1] if isinstance(case, tuple) else "",
)
def test_what_claims_quote_is_counted_from_the_tables(where, said):
    """The counts on the right were made by hand."""
    assert PAPER[where] == said


def test_no_experiment_types_a_number_of_the_lecture_again():
    """Where a claim quotes the lecture, the text is computed."""
    root = Path(lecture.__file__).parent / "experiments"
    for file in sorted(root.rglob("*.py")):
        text = file.read_text(encoding="utf-8")
        assert not re.search(r'paper="[^"{]*\d', text), file.name
