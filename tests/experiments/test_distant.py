"""A teacher of another task at the scale of seconds: what it learnt, what it says."""

from importlib import import_module

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.experiments.jacobian_matching.distant import (
    ACT,
    ACT_AT,
    ACT_J,
    ALL,
    CE,
    EXPERIMENT,
    LECTURE,
    ORACLE,
    SETTINGS,
    Matching,
    beginning,
    cases,
    listen,
    run,
    task_of,
    tune,
)
from tlcourse.methods.attention import attention_map, attention_transfer_loss
from tlcourse.methods.jacobian import attention_jacobian, jacobian_loss
from tlcourse.training import Batch

module = import_module("tlcourse.experiments.jacobian_matching.distant")
CPU = torch.device("cpu")
TINY = LECTURE.but(
    source_images=60,
    source_epochs=1,
    sizes=(5, 40),
    tuned_at=(5, 40),
    steps=1,
    many_steps=2,
    test_images=40,
)


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture
def task(asked):
    return task_of(TINY, "mnist", "test", 0, CPU)


@pytest.fixture
def few(task):
    return task.pool.per_class(5, 0)


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for(asked):
    tuning = table(tune(TINY, TUNING, CPU), TUNING)
    assert {*asked} == {("fashion_mnist", "train")}
    assert set(tuning.groupby(["arm", "tuned_at"])["setting"].nunique()) == {4}
    asked.clear()
    settled = TINY.settle(tuning)
    rows = pd.concat([table(run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert {*asked} == {("mnist", "train"), ("mnist", "test")}
    assert set(rows["arm"]) == {*EXPERIMENT.arms}
    assert rows["value"].between(0, 100).all()
    one = rows[rows["per_class"] == 5]
    whole = pd.concat([one.assign(per_class=n) for n in LECTURE.sizes])  # as if measured there
    assert {judge(claim, whole).seeds for claim in EXPERIMENT.claims} == {2}


def test_teacher_and_oracle_learn_the_first_five_classes_and_the_student_the_others(
    asked, monkeypatch
):
    learnt, fit = [], module.fit
    monkeypatch.setattr(module, "fit", lambda *a, **k: learnt.append(a[1]) or fit(*a, **k))
    for split, name in (("test", "mnist"), ("train", "fashion_mnist")):
        task = task_of(TINY, name, split, 0, CPU)
        assert [network[0].conv.out_channels for network in (task.teacher, task.oracle)] == [16, 8]
        source, again = learnt
        assert source.classes == module.load(name).classes[:5]
        assert torch.equal(source.pixels, again.pixels)
        assert task.pool.classes == task.test.classes == module.load(name).classes[5:]
        seen, judged = ({p.tobytes() for p in s.pixels.numpy()} for s in (task.pool, task.test))
        assert seen.isdisjoint(judged)
        learnt.clear()


def test_new_students_begin_alike_and_the_oracle_with_what_it_learnt(task):
    ours = [beginning(arm, task, 0) for arm in (CE, ACT, ALL)]
    assert all(torch.equal(net.fc6.weight, ours[0].fc6.weight) for net in ours)
    oracle = beginning(ORACLE, task, 0)
    assert torch.equal(oracle.fc6.weight, task.oracle.fc6.weight)
    assert not torch.equal(oracle.head.weight, task.oracle.head.weight)
    assert not torch.equal(oracle.fc6.weight, ours[0].fc6.weight)
    assert [p.shape for p in oracle.parameters()] == [p.shape for p in ours[0].parameters()]


def test_what_is_recorded_is_what_the_teacher_says_when_it_is_asked(task, few):
    told, x = listen(task.teacher, few), few.pixels / 255
    A = task.teacher[:3](x).detach()
    own = task.teacher[:-1](x).detach()
    standard = (own - own.mean(0)) / (own.var(0, correction=0) + 1e-5).sqrt()  # dead units stay 0
    torch.testing.assert_close(told.features, standard, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(told.maps, attention_map(A), rtol=1e-3, atol=1e-4)
    assert torch.equal(told.places, attention_map(A).flatten(1).argmax(1))
    J = attention_jacobian(task.teacher, "block3", x)
    torch.testing.assert_close(told.rows, J, rtol=1e-3, atol=1e-5)


TERMS = {
    ACT: {"activations": 0.5},
    ACT_J: {"activations": 0.5, "Jacobians": 0.7},
    ACT_AT: {"activations": 0.5, "attention": 0.2},
    ALL: {"activations": 0.5, "attention": 0.2, "Jacobians": 0.7},
}


@pytest.mark.parametrize("arm", TERMS)
def test_an_arm_minimises_labels_and_what_its_name_says(arm, task, few):
    setting = TERMS[arm]
    assert {frozenset(each) for each in SETTINGS[arm].values()} == {frozenset({"lr", *setting})}
    net, told, index = beginning(arm, task, 0), listen(task.teacher, few), torch.tensor([9, 2, 4])
    b = Batch(few.pixels[index] / 255, few.labels[index], index, 0.0)
    how, A, own = Matching(told, setting), net[:3](b.x), net[:-1](b.x)
    expected = F.cross_entropy(net(b.x), b.y)
    apart = how.branch(own) - told.features[index]
    expected = expected + 0.5 * apart.square().mean()
    if "attention" in setting:
        theirs = task.teacher[:3](b.x)
        expected = expected + attention_transfer_loss([A], [theirs], beta=0.2)
    if "Jacobians" in setting:
        places = attention_map(task.teacher[:3](b.x)).flatten(1).argmax(1)
        ours = attention_jacobian(net, "block3", b.x, at=places)
        expected = expected + 0.7 * jacobian_loss(ours, told.rows[index])
    loss = how(net, b)
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-6)
    task.teacher.zero_grad()
    loss.backward()
    assert how.branch.weight.grad.any()
    assert all(p.grad is None for p in task.teacher.parameters())


def test_every_arm_chooses_among_four_and_cross_entropy_hears_no_teacher(task, monkeypatch):
    assert {len(settings) for settings in SETTINGS.values()} == {4}
    fits = []
    monkeypatch.setattr(module, "fit", lambda *a, **k: fits.append((a[2], k["steps"])))
    for n in (5, 40):
        for case in cases(TINY.but(steps=3), task, n, 0):
            case.train(next(iter(case.settings.values())))
    hears = [how is not module.cross_entropy for how, _ in fits]
    assert hears == [arm not in (CE, ORACLE) for arm in SETTINGS] * 2
    assert [steps for _, steps in fits] == [3] * 6 + [TINY.many_steps] * 6
