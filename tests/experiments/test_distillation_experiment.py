"""The distillation experiment at the scale of seconds: what is yielded, shared and kept apart."""

from importlib import import_module
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from scipy.special import log_softmax, softmax
from torch import nn

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments.base import Row
from tlcourse.experiments.distillation.distillation import (
    ALPHA,
    EXPERIMENT,
    LECTURE,
    LIVE,
    RATES,
    STUDENTS,
    TEMPERATURES,
    Distillation,
    algebra,
    objective,
    run,
    tune,
)
from tlcourse.training import Batch, cross_entropy

module = import_module("tlcourse.experiments.distillation.distillation")
CPU = torch.device("cpu")
SMALL = {
    "images": 200,
    "student_images": 150,
    "teacher": (32,),
    "teacher_epochs": 1,
    "student_epochs": 2,
    "widths": (8, 300),
}
TINY = LECTURE.but(**SMALL, seeds=2, tuning_seeds=1)


MANY_RATES = tuple(1e-3 * (1 + i) for i in range(2 * len(STUDENTS)))


def table(rows: list[Row], seed: int = 0) -> pd.DataFrame:
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


def chosen_by_hand() -> Distillation:
    """A different learning rate for every arm and width, as if tuning had chosen it."""
    pairs = [(arm, width) for width in TINY.widths for arm in STUDENTS]
    rows = [
        Row(arm, "validation errors", 0, {"width": width, "setting": rate})
        for (arm, width), rate in zip(pairs, MANY_RATES)
    ]
    return TINY.settle(table(rows, TUNING))


@pytest.fixture(scope="module")
def measured() -> SimpleNamespace:
    """What tuning and two seeds yield."""
    tuning = list(tune(TINY, TUNING, CPU))
    settled = TINY.settle(table(tuning, TUNING))
    seeds = [list(run(settled, seed, CPU)) for seed in (0, 1)]
    return SimpleNamespace(
        tuning=tuning,
        settled=settled,
        seeds=seeds,
        rows=pd.concat([table(rows, seed) for seed, rows in enumerate(seeds)]),
    )


@pytest.fixture
def fits(monkeypatch) -> list[SimpleNamespace]:
    """What every call of `fit` is given: the weights at its start, the data, the settings, the
    batches it draws.
    """
    return spied(monkeypatch)


@pytest.fixture(scope="module")
def by_hand() -> SimpleNamespace:
    """One seed with rates chosen by hand: its fits, its teacher, and the images and logits that
    each student gets.
    """
    teachers, lessons = [], []
    teacher, cases = module.train_teacher, module.cases
    with pytest.MonkeyPatch.context() as patch:
        fits = spied(patch)
        patch.setattr(
            module, "train_teacher", lambda *a: teachers.append(teacher(*a)) or teachers[-1]
        )
        patch.setattr(module, "cases", lambda *a: lessons.append((a[1], a[2])) or cases(*a))
        patch.setattr(module, "RATES", MANY_RATES)
        list(run(chosen_by_hand(), 0, CPU))
    return SimpleNamespace(teacher=teachers[0], fits=fits, lessons=lessons)


def spied(patch: pytest.MonkeyPatch) -> list[SimpleNamespace]:
    fits, fit = [], module.fit

    def spy(model: nn.Module, data, how, **settings):
        weights = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
        seen = SimpleNamespace(weights=weights, data=data, settings=settings, index=[], x=[])
        fits.append(seen)

        def watched(net: nn.Module, batch: Batch):
            seen.index.append(batch.index)
            seen.x.append(batch.x.clone())
            return how(net, batch)

        return fit(model, data, watched, **settings)

    patch.setattr(module, "fit", spy)
    return fits


# rows


@pytest.mark.slow
def test_yields_all_that_the_claims_ask_for(measured):
    for claim in EXPERIMENT.claims:
        assert judge(claim, measured.rows).seeds == 2, claim.id


@pytest.mark.slow
def test_yields_every_arm_at_every_width(measured):
    errors = measured.rows[measured.rows["metric"] == "errors"]
    expected = {(arm, width) for arm in EXPERIMENT.arms for width in TINY.widths}
    assert len(errors) == 2 * len(expected)
    assert set(zip(errors["arm"], errors["width"])) == expected
    assert errors["value"].between(0, 10_000).all()


@pytest.mark.slow
def test_errors_at_the_end_are_those_of_the_last_epoch(measured):
    rows = measured.rows
    students = rows[(rows["metric"] == "errors") & (rows["arm"] != "teacher")].set_index(
        ["seed", "arm", "width"]
    )["value"]
    along = rows[rows["metric"] == "errors by epoch"]
    assert sorted(along["epoch"].unique()) == [1, 2]
    last = along[along["epoch"] == 2].set_index(["seed", "arm", "width"])["value"]
    pd.testing.assert_series_equal(last.sort_index(), students.sort_index())


@pytest.mark.slow
def test_the_goal_of_every_arm_is_what_alone_reaches(measured):
    rows = measured.rows
    curves = rows[rows["metric"] == "errors by epoch"].pivot(
        index=["seed", "width", "arm"], columns="epoch", values="value"
    )
    first = rows[rows["metric"] == "epochs to what alone reaches"].set_index(
        ["seed", "width", "arm"]
    )["value"]
    assert len(first) == 2 * 2 * len(STUDENTS)
    for (seed, width, arm), epochs in first.items():
        reached = curves.loc[(seed, width, arm)] <= curves.loc[(seed, width, "alone"), 2]
        assert epochs == (reached.idxmax() if reached.any() else 3)


@pytest.mark.slow
def test_the_same_seed_yields_the_same_rows_and_another_seed_others(measured):
    again = list(run(measured.settled, 0, CPU))
    pd.testing.assert_frame_equal(table(again), table(measured.seeds[0]), check_exact=True)
    first, second = (table(rows)["value"].tolist() for rows in measured.seeds)
    assert first != second


@pytest.mark.slow
def test_tuning_tries_every_rate_for_every_arm_and_width_alike(measured):
    tried = [(row.arm, row.at["width"], row.at["setting"]) for row in measured.tuning]
    assert sorted(tried) == sorted(
        (arm, width, rate) for arm in STUDENTS for width in TINY.widths for rate in RATES
    )
    assert {row.metric for row in measured.tuning} == {"validation errors"}
    assert all(0 <= row.value <= 200 for row in measured.tuning)


@pytest.mark.slow
def test_a_live_cell_needs_no_tuning(fits):
    live = LIVE.but(**SMALL | {"widths": (300,)})
    rows = table(list(run(live, 0, CPU)))
    assert {fit.settings["lr"] for fit in fits[1:]} == set(LIVE.settings.values()) == {4e-3}
    assert set(rows.loc[rows["metric"] == "errors", "arm"]) == set(EXPERIMENT.arms)


# what the arms of a seed share, and what they do not


@pytest.mark.slow
def test_the_arms_of_a_seed_start_alike_and_see_the_same_batches(by_hand):
    students = by_hand.fits[1:]
    assert len(students) == 2 * len(STUDENTS)
    assert {len(fit.index) for fit in students} == {2 * 2}  # epochs, batches of 128 in 150 images
    for i, width in enumerate(TINY.widths):
        arms = students[i * len(STUDENTS) : (i + 1) * len(STUDENTS)]
        assert arms[0].weights.numel() == (784 + 1) * width + (width + 1) * width + (width + 1) * 10
        for fit in arms[1:]:
            assert torch.equal(fit.weights, arms[0].weights)
            assert [batch.tolist() for batch in fit.index] == [
                batch.tolist() for batch in arms[0].index
            ]
            assert all(torch.equal(a, b) for a, b in zip(fit.x, arms[0].x))


@pytest.mark.slow
def test_each_student_learns_at_the_rate_that_was_chosen_for_it(by_hand):
    settled = chosen_by_hand()
    rates = [fit.settings["lr"] for fit in by_hand.fits[1:]]
    assert rates == [
        settled.chosen(arm=arm, width=width) for width in TINY.widths for arm in STUDENTS
    ]
    assert len(set(rates)) == len(rates)


@pytest.mark.slow
def test_students_get_images_that_the_teacher_saw_and_its_logits_on_them(by_hand):
    seen = by_hand.fits[0].data
    assert len(seen) == 200
    for pupils, logits in by_hand.lessons:
        assert torch.equal(pupils.pixels, seen.pixels[:150])
        with torch.no_grad():
            torch.testing.assert_close(logits, by_hand.teacher.eval()(pupils.pixels.float() / 255))


@pytest.mark.slow
def test_no_image_of_the_test_set_is_trained_on(by_hand, fits):
    list(tune(TINY.but(widths=(8,)), 0, CPU))
    test = images(load("mnist", "test"))
    assert len(fits) == 1 + len(STUDENTS) * len(RATES)
    assert all(test.isdisjoint(images(fit.data)) for fit in (*by_hand.fits, *fits))


def images(some) -> set[bytes]:
    return {picture.tobytes() for picture in some.pixels.numpy()}


def test_training_and_validation_images_are_apart_and_change_with_the_seed():
    scale = LECTURE.but(images=2_000)
    train, validation = (images(part) for part in module.train_and_validation(scale, 0, CPU))
    assert len(train) == len(validation) == 2_000
    assert train.isdisjoint(validation)
    assert train != images(module.train_and_validation(scale, 1, CPU)[0])


@pytest.mark.slow
def test_tuning_never_opens_the_test_set(monkeypatch):
    def guarded(name, split="train", **more):
        if split == "test":
            raise AssertionError("tuning looked at the test set")
        return load(name, split, **more)

    monkeypatch.setattr(module, "load", guarded)
    small = TINY.but(widths=(8,))
    assert len(list(tune(small, TUNING, CPU))) == len(STUDENTS) * len(RATES)
    with pytest.raises(AssertionError, match="looked at the test set"):  # the guard does guard
        list(run(chosen_by_hand(), 0, CPU))


# what each arm minimises


@pytest.fixture
def batch() -> tuple[nn.Module, Batch, torch.Tensor]:
    """Six images out of twenty, a linear network, and a teacher's logits on the twenty."""
    g = torch.Generator().manual_seed(3)
    x, y, index = (
        torch.randn(6, 5, generator=g),
        torch.tensor([0, 1, 2, 3, 0, 1]),
        torch.tensor([7, 0, 19, 3, 3, 11]),
    )
    net = nn.Linear(5, 4)
    with torch.no_grad():
        for p in net.parameters():
            p.copy_(torch.randn(p.shape, generator=g))
    return net, Batch(x, y, index, 0.0), 3 * torch.randn(20, 4, generator=g)


def test_alone_looks_at_labels_only(batch):
    net, b, logits = batch
    assert objective("alone", logits) is cross_entropy
    assert objective("alone", logits)(net, b) == objective("alone", -logits)(net, b)


@pytest.mark.parametrize("arm", TEMPERATURES)
def test_soft_targets_are_looked_up_by_index(batch, arm):
    net, b, logits = batch
    z, v, T = (
        net(b.x).detach().double().numpy(),
        logits[b.index].double().numpy(),
        float(arm.removeprefix("T=")),
    )
    hard = -log_softmax(z, 1)[range(6), b.y.numpy()].mean()
    soft = -(softmax(v / T, 1) * log_softmax(z / T, 1)).sum(1).mean()
    assert objective(arm, logits)(net, b).item() == pytest.approx(
        (1 - ALPHA) * hard + ALPHA * T**2 * soft, rel=1e-5
    )


def test_logits_are_matched_up_to_a_constant_per_image(batch):
    net, b, logits = batch
    z, v = net(b.x).detach(), logits[b.index]
    gap = (z - z.mean(1, keepdim=True)) - (v - v.mean(1, keepdim=True))
    expected = (1 - ALPHA) * F.cross_entropy(z, b.y) + ALPHA * 0.5 * (gap**2).mean()
    torch.testing.assert_close(objective("logits", logits)(net, b), expected)
    torch.testing.assert_close(objective("logits", logits + 5)(net, b), expected)


@pytest.mark.parametrize(
    ("curve", "goal", "epoch"),
    [
        ([5, 3, 1], 3, 2),
        ([5, 3, 1], 2, 3),
        ([5, 3, 1], 5, 1),
        ([5, 3, 1], 9, 1),
        ([5, 3, 1], 0, 4),
        ([4, 2, 6, 2], 2, 2),
        ([], 1, 1),
    ],
)
def test_first_epoch_with_at_most(curve, goal, epoch):
    assert module._first_at_most(curve, goal) == epoch


# the algebra, against NumPy


@pytest.fixture(scope="module")
def logits() -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(5)
    return 2 * draw.normal(size=(64, 10)), 6 * draw.normal(size=(64, 10))


@pytest.fixture(scope="module")
def found(logits) -> pd.DataFrame:
    rows = [row.as_dict() for row in algebra(*(torch.from_numpy(x) for x in logits))]
    return pd.DataFrame(rows).set_index(["metric", "arm"])["value"].sort_index()


def gradient(z: np.ndarray, v: np.ndarray, T: float) -> np.ndarray:
    return (softmax(z / T, 1) - softmax(v / T, 1)) / T


def limit(z: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Of T² times the gradient."""
    return ((z - v) - (z - v).mean(1, keepdims=True)) / 10


def size(z: np.ndarray, v: np.ndarray, T: float) -> float:
    return (
        T**2
        * np.linalg.norm(gradient(z, v, T), axis=1).mean()
        / np.linalg.norm(limit(z, v), axis=1).mean()
    )


@pytest.mark.parametrize("arm", TEMPERATURES)
def test_algebra_at_each_temperature(found, logits, arm):
    T = float(arm.removeprefix("T="))
    assert found["softmax error", arm].item() < 1e-14
    assert found["gradient error", arm].item() < 1e-14
    assert found["gradient size", arm].item() == pytest.approx(size(*logits, T))
    assert found["gradient size error", arm].item() == pytest.approx(abs(size(*logits, T) - 1))
    assert found["share of the lowest", arm].item() == pytest.approx(
        share(gradient(*logits, T), logits[1])
    )


def share(g: np.ndarray, v: np.ndarray) -> float:
    """Of the gradient's absolute entries, on the three classes of each row that the teacher finds
    least likely.
    """
    lowest = sum(abs(g[i, k]) for i in range(len(v)) for k in np.argsort(v[i])[:3])
    return lowest / abs(g).sum()


def test_algebra_at_the_limit(found, logits):
    assert found["share of the lowest", "limit"].item() == pytest.approx(
        share(limit(*logits), logits[1])
    )

    def distance(T: float) -> float:
        return np.linalg.norm(T**2 * gradient(*logits, T) - limit(*logits)) / np.linalg.norm(
            limit(*logits)
        )

    expected = [distance(T) / distance(2 * T) - 2 for T in (256, 512, 1024, 2048)]
    assert found["halving error", "limit"].tolist() == pytest.approx(expected, abs=1e-6)
    assert max(map(abs, expected)) < 0.05


def test_the_temperature_from_which_the_size_holds(found, logits):
    T = found["gradient size holds from T", "limit"].item()
    assert abs(size(*logits, T / 2) - 1) > 0.1
    assert all(abs(size(*logits, T * 2**k) - 1) <= 0.1 for k in range(8))


def test_a_gradient_or_a_softmax_that_is_wrong_shows(logits, monkeypatch):
    z, v = (torch.from_numpy(x) for x in logits)
    right = module.soft_target_gradient
    monkeypatch.setattr(module, "soft_target_gradient", lambda z, v, T: T * right(z, v, T))
    monkeypatch.setattr(module, "soften", lambda z, T: (z / T**2).softmax(1))
    rows = pd.DataFrame([row.as_dict() for row in algebra(z, v)]).set_index(["metric", "arm"])[
        "value"
    ]
    assert rows["softmax error", "T=20"] > 0.01
    assert rows["gradient error", "T=20"] > 0.01
