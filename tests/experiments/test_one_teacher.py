"""The live cells of the chapter on attention: the teacher on board, and distances of maps."""

from importlib import import_module

import pytest
import torch

from tlcourse.data import load
from tlcourse.experiments.attention.attention import (
    GROUPS,
    LECTURE,
    percent,
    pictures,
    residual_network,
)
from tlcourse.experiments.attention.one_teacher import ARMS, DRAWN, LIVE, distances, the_teacher
from tlcourse.training import seed_everything

module = import_module("tlcourse.experiments.attention.one_teacher")
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def train():
    return pictures(LECTURE, DRAWN, CPU)[0]


def test_the_teacher_on_board_knows_clothes_that_it_has_not_seen(train):
    assert (
        percent(the_teacher(train), load("fashion_mnist", "test").take(slice(0, 500))) < 20
    )  # guessing makes 90 % errors


def test_pictures_and_teacher_are_not_those_of_the_table():
    assert DRAWN not in range(LECTURE.seeds)


def test_distances_are_zero_for_the_same_network_and_no_more_than_the_root_of_two(train):
    some, teacher = train.take(slice(0, 20)), the_teacher(train)
    seed_everything(0)
    other = residual_network(LECTURE, LECTURE.student, train)
    assert distances(teacher, teacher, some) == dict.fromkeys(GROUPS, 0.0)
    far = distances(other, teacher, some)
    assert all(0.1 < value < 2**0.5 for value in far.values())
    assert far == pytest.approx(distances(teacher, other, some))


@pytest.mark.slow
def test_rows_hold_what_the_live_cells_expect(monkeypatch):
    monkeypatch.setattr(module, "LECTURE", LECTURE.but(images=40, validation=30, epochs=1))
    rows = [row.as_dict() for row in module.run(LIVE, 0, CPU)]
    assert [row["arm"] for row in rows if row["metric"] == "errors"] == ["teacher", *ARMS]
    assert {(row["arm"], row["group"]) for row in rows if row["metric"] == "distance"} == {
        (arm, group) for arm in ARMS for group in GROUPS
    }
