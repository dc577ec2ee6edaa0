"""The paper's table at the scale of seconds: one teacher, selection, images for the widget."""

from importlib import import_module

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.distillation.mnist_table import (
    EXPERIMENT,
    FULL,
    SETTINGS,
    T,
    examples,
    run,
    train_teacher,
    tune,
)
from tlcourse.methods.distillation import distillation_loss
from tlcourse.training import Batch

module = import_module("tlcourse.experiments.distillation.mnist_table")
CPU = torch.device("cpu")
TINY = FULL.but(teacher=(16,), tuning_teacher_epochs=1, student_epochs=2, split=(300, 200))


def few(name, split="train"):
    return load(name, split).take(slice(0, 400 if split == "test" else 600))


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture
def small(monkeypatch):
    """Few images, and a small teacher as if it were the one on board."""
    monkeypatch.setattr(module, "load", few)
    teacher = train_teacher(TINY, few("mnist"), 2, seed=0)
    monkeypatch.setattr(module, "restore", lambda net, name: teacher.eval())
    return teacher


@pytest.mark.slow
def test_tuning_and_seeds_hold_all_that_the_claims_ask_for(small):
    settled = TINY.settle(table(tune(TINY, TUNING, CPU), TUNING))
    rows = pd.concat([table(run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert set(rows["arm"]) == set(EXPERIMENT.arms)
    assert {judge(claim, rows).seeds for claim in EXPERIMENT.claims} == {2}
    assert rows[(rows["arm"] == "teacher") & (rows["metric"] == "errors")]["value"].nunique() == 1
    shown = rows[rows["metric"] == "logit"]
    assert set(shown["seed"]) == {0}
    assert (shown.groupby(["image", "arm"])["class"].nunique() == 10).all()
    with torch.no_grad():
        image = int(shown["image"].iloc[-1])
        said = small(few("mnist", "test").pixels[image : image + 1].float() / 255)[0]
    recorded = shown[(shown["image"] == image) & (shown["arm"] == "teacher")].sort_values("class")[
        "value"
    ]
    torch.testing.assert_close(torch.tensor(recorded.to_numpy(), dtype=torch.float32), said)


@pytest.mark.slow
def test_tuning_gives_every_arm_as_many_settings_and_never_sees_a_test_image(small, monkeypatch):
    def only_training(name, split="train"):
        assert split == "train"
        return few(name)

    monkeypatch.setattr(module, "load", only_training)
    rows = table(tune(TINY, TUNING, CPU), TUNING)
    assert rows.groupby("arm")["setting"].nunique().to_dict() == {"alone": 4, "T=20": 4}
    with pytest.raises(AssertionError):
        list(run(TINY.settle(rows), 0, CPU))


def test_what_the_arms_minimise(monkeypatch):
    x, y, index = torch.randn(6, 5), torch.arange(6) % 4, torch.tensor([7, 0, 19, 3, 3, 11])
    net, said = torch.nn.Linear(5, 4), torch.randn(20, 4)
    batch = Batch(x, y, index, 0.0)
    monkeypatch.setattr(module, "train_student", lambda how, width, lr, *more: how(net, batch))
    alone, distilled = module.cases(TINY, few("mnist"), said, seed=0)
    assert alone.train((1e-3, 0.0)) == cross_entropy(net(x), y)
    for alpha in (0.5, 0.9):
        soft = distillation_loss(net(x), said[index], y, T=T, alpha=alpha)
        assert distilled.train((1e-3, alpha)) == soft
    assert {alpha for _, alpha in SETTINGS["alone"].values()} == {0.0}


def test_the_teacher_stays_within_the_norm():
    teacher = train_teacher(TINY.but(max_norm=0.3), few("mnist"), 1, seed=0)
    assert all(
        layer.weight.norm(dim=1).max() <= 0.3 + 1e-5 for layer in (teacher.fc1, teacher.head)
    )


def test_examples_are_one_of_each_digit_and_the_most_disputed():
    labels = torch.arange(10).repeat(10)
    logits = torch.zeros(100, 10)
    logits[:, 0] = torch.arange(100.0)  # the lead over the second grows with the position
    assert examples(logits, labels) == [*range(10), *range(10, 30)]
    logits[50, 1] = 50.0
    assert examples(logits, labels)[10:12] == [50, 10]


def test_the_teacher_on_board_is_what_its_file_says():
    teacher = module.restore(module._teacher(FULL), module.CHECKPOINT)
    test = load("mnist", "test").take(slice(0, 2_000))
    wrong = (module.predict(teacher, test).argmax(1) != test.labels).sum()
    assert wrong < 40
