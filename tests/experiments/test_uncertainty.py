"""Three tasks in one network in seconds: who learns from what, and how it is judged."""

from importlib import import_module
from math import log
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.experiments.multi_task_learning.uncertainty import (
    ALONE,
    ARMS,
    BEST,
    CONTROLS,
    EXPERIMENT,
    GRID,
    GRIDDED,
    HIGHER,
    HUNDRED,
    KINDS,
    LAPLACE,
    LECTURE,
    LIVE,
    PAIRS,
    PLAIN,
    RATES,
    SLOW,
    STANDARD,
    STARTS,
    TASKS,
    THREE,
    SceneNet,
    Way,
    Weighed,
    cases,
    constant,
    drawn,
    errors,
    learn,
    losses,
    mean_iou,
    run,
    score,
    tune,
    ways,
)
from tlcourse.methods.uncertainty import UncertaintyWeighting
from tlcourse.training import Batch, seed_everything

module = import_module("tlcourse.experiments.multi_task_learning.uncertainty")
CPU = torch.device("cpu")
SMALL = {"scenes": 24, "judged": 6, "width": 4, "batch_size": 8}
TINY = LECTURE.but(**SMALL, steps=2)
RATE = {"lr": 1e-2}


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture(scope="module")
def some():
    return drawn("train", 24, 0)


@pytest.fixture
def fits(monkeypatch):
    """What every call of `fit` is given, the weights it begins with, and the batches it draws."""
    seen, fit = [], module.fit

    def spy(network, data, objective, **settings):
        weights = torch.cat([p.detach().flatten().clone() for p in network.parameters()])
        now = SimpleNamespace(weights=weights, data=data, how=objective, settings=settings)
        now.index = []
        seen.append(now)
        objective.register_forward_pre_hook(lambda _, args: now.index.append(args[1].index))
        return fit(network, data, objective, **settings)

    monkeypatch.setattr(module, "fit", spy)
    return seen


def first_of(grid):
    return dict([next(iter(grid.items())), list(grid.items())[-1]])


@pytest.mark.slow
def test_tuning_and_seeds_hold_what_the_claims_ask_for(monkeypatch):
    monkeypatch.setattr(module, "GRID", first_of(GRID))
    tuning = table(tune(TINY, TUNING, CPU), TUNING)
    judged = tuning[tuning["metric"] == "validation errors"]
    assert {*judged["arm"]} == {*ARMS} - {*CONTROLS}
    assert {*judged.groupby(["arm", "task"], dropna=False)["setting"].nunique()} == {2, 3}
    shown = tuning[tuning["arm"] == GRIDDED]
    assert {*zip(shown["setting"], shown["metric"])} == {(s, t) for s in module.GRID for t in TASKS}
    settled = TINY.settle(tuning)
    assert settled.chosen(arm=BEST) in module.GRID
    rows = pd.concat([table(run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert {*rows["arm"]} == {*EXPERIMENT.arms} - {GRIDDED}
    assert not rows.duplicated(["seed", "arm", "metric", "task", "step"]).any()
    for seed, some in rows.groupby("seed"):
        wide = some[some["metric"].isin([*TASKS, "gain"])].pivot(
            index="arm", columns="metric", values="value"
        )
        for arm in (PLAIN, THREE, LAPLACE):
            logs = [
                log(wide[t][arm] / wide[t][ALONE]) * (1 if t == TASKS[0] else -1) for t in TASKS
            ]
            assert wide["gain"][arm] == pytest.approx(100 * sum(logs) / 3), seed
    assert {judge(claim, pd.concat([rows, tuning])).seeds for claim in EXPERIMENT.claims} == {2}


def test_a_live_cell_needs_no_tuning():
    rows = table(run(LIVE.but(**SMALL, steps=2), 0, CPU), 0)
    assert {*rows[rows["metric"].isin(TASKS)]["arm"]} == {PLAIN, THREE} == {*LIVE.settings}
    assert all(setting in RATES.values() for setting in LIVE.settings.values())


def test_claims_are_decided_by_the_better_error_of_each_task():
    """By hand: segmentation is to be high, the others low; each is off by two seeds' noise."""
    right = {"segmentation": 60.0, "instance": 1.0, "depth": 2.0}
    worse = {"segmentation": 50.0, "instance": 1.2, "depth": 2.4}

    def rows(of):
        return pd.DataFrame(
            [
                {"seed": s, "arm": arm, "metric": m, "value": v * (1 + (s - 1) * k / 1e4)}
                for s in range(3)
                for k, (arm, found) in enumerate(of.items())
                for m, v in {**found, "gain": 100 * score(found)}.items()
            ]
        )

    arms = [THREE, PLAIN, STANDARD, BEST, ALONE, *PAIRS, *CONTROLS]
    well = rows({arm: right if arm in (THREE, *CONTROLS) else worse for arm in arms})
    badly = rows({arm: worse if arm == THREE else right for arm in arms})
    other = {"M1", "U4", "U4s", "U4t", "U5", "U6", "U8"}
    for claim in EXPERIMENT.claims:
        if claim.id in other:
            assert judge(claim, well).verdict == "supported", claim.id
            assert judge(claim, badly).verdict == "contradicted", claim.id
    (units,) = (c for c in EXPERIMENT.claims if c.id == "U4u")
    assert judge(units, well).verdict == "supported"
    assert judge(units, badly).verdict == "contradicted"
    (hurts,) = (c for c in EXPERIMENT.claims if c.id == "U7")
    assert judge(hurts, rows({ALONE: right, PLAIN: worse})).verdict == "supported"
    assert judge(hurts, rows({ALONE: worse, PLAIN: right})).verdict == "contradicted"


def test_scenes_of_a_split_are_of_pieces_and_places_of_their_own(monkeypatch):
    asked, pieces = [], module.pieces
    monkeypatch.setattr(module, "pieces", lambda split: asked.append(split) or pieces(split))
    names = ("train", "validation", "test")
    some = [drawn(split, 20, 0) for split in names]
    assert asked == [*names]
    images = [{p.tobytes() for p in pieces(split).pixels.numpy()} for split in names]
    assert not images[0] & images[1] and not images[2] & (images[0] | images[1])  # noqa: PT018
    grounds = [s.depths[:, -1].amin(1) for s in some]  # of the nearest row: says where horizons are
    assert not set(grounds[0].tolist()) & set(grounds[1].tolist() + grounds[2].tolist())
    assert not set(grounds[1].tolist()) & set(grounds[2].tolist())
    again, other = drawn("train", 20, 0), drawn("train", 20, 1)
    assert torch.equal(again.pixels, some[0].pixels)
    assert not torch.equal(other.pixels, some[0].pixels)


def test_who_sees_which_scenes(monkeypatch):
    """Networks learn from training scenes; only the grid is looked at on test scenes in tuning."""
    kept, judged, plain = [], [], module.errors
    draw, go = module.drawn, module.learn

    def watched(split, n, seed):
        kept.append((split, draw(split, n, seed)))
        return kept[-1][1]

    def split_of(scenes):
        return next(split for split, found in kept if found is scenes)

    learnt = []
    monkeypatch.setattr(module, "drawn", watched)
    monkeypatch.setattr(module, "GRID", first_of(GRID))
    monkeypatch.setattr(module, "learn", lambda *a: learnt.append(split_of(a[1])) or go(*a))
    monkeypatch.setattr(module, "errors", lambda *a: judged.append(split_of(a[1])) or plain(*a))
    list(tune(TINY.but(arms=(BEST, PLAIN), steps=1), TUNING, CPU))
    assert {*learnt} == {"train"}
    assert judged == ["validation"] * len(RATES) + ["validation", "test"] * 2
    judged.clear()
    list(run(LIVE.but(**SMALL, steps=1), 0, CPU))
    assert {*learnt} == {"train"}
    assert {*judged} == {"test"}


def test_arms_begin_alike_and_see_the_same_batches(some, fits):
    for case, _ in cases(TINY.but(steps=4), some, 0, CPU):
        case.train(next(iter(case.settings.values())))
    assert len(fits) == len(ARMS) + 2
    for fit in fits[1:]:
        assert torch.equal(fit.weights, fits[0].weights)
        assert fit.data[0] is fits[0].data[0]
        assert len(fit.index) == 4
        assert all(torch.equal(a, b) for a, b in zip(fit.index, fits[0].index))
    learn(TINY, some, 1, CPU, Way({"depth": 1.0}), RATE)
    assert not torch.equal(fits[-1].weights, fits[0].weights)


def test_a_way_weighs_as_its_name_says(some, fits):
    unit = constant(some)
    every = ways(unit)
    expected = {
        PLAIN: (1, 1, 1),
        STANDARD: [1 / unit[task] for task in TASKS],
        HUNDRED[PLAIN]: (1, 100, 1),
        HUNDRED[THREE]: (1, 100, 1),
    }
    for arm, way in every.items():
        assert way.learnt == (arm in (*PAIRS, THREE, HUNDRED[THREE], *STARTS, SLOW, LAPLACE))
        wanted = expected.get(arm, [1 / unit[t] for t in TASKS] if arm == BEST else (1, 1, 1))
        tasks = PAIRS.get(arm, TASKS)
        assert way.factors == {t: v for t, v in zip(TASKS, wanted) if t in tasks}
    assert [every[arm].initial for arm in STARTS] == [-3, 3]
    assert {way.initial for arm, way in every.items() if arm not in STARTS} == {0}
    for arm in (THREE, SLOW):
        learn(TINY, some, 0, CPU, every[arm], RATE)
        (own,) = fits[-1].how.parameters()
        rates = {g["lr"]: {id(p) for p in g["params"]} for g in fits[-1].settings["groups"]}
        assert rates[0.1 if arm == THREE else 0.01] >= {id(own)}
        assert fits[-1].settings["lr"] == 1e-2
    assert {arm: Weighed(every[arm]).weights()["depth"] for arm in (LAPLACE, THREE)} == {
        LAPLACE: 1.0,
        THREE: 0.5,
    }


def test_the_grid_is_a_triangle_around_the_standardised_sum(some, fits):
    triples = {tuple(int(i) for i in name.split(",")[0].split()) for name in GRID}
    assert len(triples) == 28
    assert {sum(triple) for triple in triples} == {6}
    assert {name.split(", ")[1] for name in GRID} == {*HIGHER} < {*RATES}
    assert len(GRID) == 28 * len(HIGHER)
    assert GRID["1 0 5, lr 0.032"] == {"lr": 0.032, **dict(zip(TASKS, (2, 1, 32)))}
    way = ways(constant(some))[BEST]
    middle = learn(TINY, some, 0, CPU, way, GRID["2 2 2, lr 0.032"]).weights[2]
    plain = learn(TINY, some, 0, CPU, ways(constant(some))[STANDARD], RATES["lr 0.032"]).weights[2]
    assert middle == pytest.approx({task: 4 * weight for task, weight in plain.items()})


def test_the_best_of_the_grid_has_the_best_mean_log_ratio_on_validation_scenes(monkeypatch):
    """The single tasks' errors are the same for all weightings, so they cannot change the order."""
    found = {"0 0 6, lr 0.064": (60, 1.0, 2.0), "6 0 0, lr 0.032": (50, 1.2, 1.3)}
    monkeypatch.setattr(module, "GRID", {name: GRID[name] for name in found})
    monkeypatch.setattr(module, "learn", lambda *a: SimpleNamespace(network=a[-1]))

    def told(setting, scenes):
        name = next(name for name in found if GRID[name] == setting)
        return dict(zip(TASKS, found[name]))

    monkeypatch.setattr(module, "errors", told)
    tuning = table(tune(TINY.but(arms=(BEST,)), TUNING, CPU), TUNING)
    alone = (70, 0.9, 1.1)
    ratios = {
        name: (log(a / alone[0]) - log(b / alone[1]) - log(c / alone[2])) / 3
        for name, (a, b, c) in found.items()
    }
    assert TINY.settle(tuning).chosen(arm=BEST) == max(ratios, key=ratios.__getitem__)
    costs = tuning[tuning["arm"] == BEST].set_index("setting")["value"]
    one, other = found
    assert costs[other] - costs[one] == pytest.approx(ratios[one] - ratios[other])


def test_a_single_task_is_the_network_of_three_with_other_losses_times_nothing(some):
    for task in TASKS:
        alone = learn(TINY.but(steps=5), some, 0, CPU, Way({task: 1.0}), RATE).network
        zeros = Way({t: float(t == task) for t in TASKS})
        whole = learn(TINY.but(steps=5), some, 0, CPU, zeros, RATE).network
        for one, other in zip(alone.state_dict().values(), whole.state_dict().values()):
            torch.testing.assert_close(one, other)
        seed_everything(0)
        new = SceneNet(TINY.width)
        for name, head in alone.heads.items():
            assert torch.equal(head.weight, new.heads[name].weight) == (name != task)


def test_errors_by_brute_force(some, monkeypatch):
    net = SceneNet(4)
    generator = torch.Generator().manual_seed(0)
    said = {
        "heads.segmentation": torch.randn(24, 8, 16, 32, generator=generator),
        "heads.instance": torch.randn(24, 2, 16, 32, generator=generator),
        "heads.depth": torch.randn(24, 1, 16, 32, generator=generator),
    }
    monkeypatch.setattr(
        module, "record", lambda network, data, of: {name: said[name] for name in of}
    )
    found, called = errors(net, some), said["heads.segmentation"].argmax(1)
    ious = [
        ((called == k) & (some.classes == k)).sum() / ((called == k) | (some.classes == k)).sum()
        for k in range(8)
    ]
    assert found["segmentation"] == pytest.approx(100 * torch.stack(ious).mean().item())
    missed, apart = [], []
    for n in range(3):
        for r in range(16):
            for c in range(32):
                if some.classes[n, r, c] > 0:
                    u = said["heads.instance"][n, :, r, c] - some.vectors[n, :, r, c]
                    missed.append((u[0] ** 2 + u[1] ** 2).item() ** 0.5)
                apart.append(abs(said["heads.depth"][n, 0, r, c] - some.depths[n, r, c]).item())
    said = {name: value[:3] for name, value in said.items()}
    three = SimpleNamespace(
        pixels=some.pixels[:3],
        classes=some.classes[:3],
        vectors=some.vectors[:3],
        depths=some.depths[:3],
    )
    found = errors(net, three)
    assert found["instance"] == pytest.approx(sum(missed) / len(missed), rel=1e-5)
    assert found["depth"] == pytest.approx(100 * sum(apart) / len(apart), rel=1e-5)


def test_errors_of_a_network_are_those_of_its_answers(some):
    net = SceneNet(4).eval()
    with torch.no_grad():
        said = net(some.pixels / 255)
    found = errors(net, some)
    apart = (said["depth"][:, 0] - some.depths).abs().mean().item()
    assert found["depth"] == pytest.approx(100 * apart, rel=1e-4)
    assert {task: maps.shape[1:] for task, maps in said.items()} == {
        "segmentation": (8, 16, 32),
        "instance": (2, 16, 32),
        "depth": (1, 16, 32),
    }


def test_losses_are_means_and_vectors_count_inside_instances_alone(some):
    true = dict(zip(TASKS, some.targets.values()))
    said = SceneNet(4)(some.pixels / 255)
    found, inside = losses(said, true), some.classes > 0
    assert found["segmentation"] == F.cross_entropy(said["segmentation"], some.classes)
    apart = (said["instance"] - some.vectors).abs().movedim(1, -1)[inside]
    torch.testing.assert_close(found["instance"], apart.mean())
    torch.testing.assert_close(found["depth"], (said["depth"][:, 0] - some.depths).abs().mean())
    nothing = losses(said, true | {"segmentation": torch.zeros_like(some.classes)})
    assert nothing["instance"] == 0


def test_no_constant_answer_has_a_smaller_loss(some):
    true, unit = dict(zip(TASKS, some.targets.values())), constant(some)
    shares = some.classes.flatten().bincount() / some.classes.numel()
    inside = some.vectors.movedim(1, -1)[some.classes > 0]

    def of(logits, vector, depth):
        n = len(some.classes)
        said = {
            "segmentation": logits[None, :, None, None].expand(n, -1, 16, 32),
            "instance": vector[None, :, None, None].expand(n, -1, 16, 32),
            "depth": depth.expand(n, 1, 16, 32),
        }
        return {task: loss.item() for task, loss in losses(said, true).items()}

    best = shares.log(), inside.median(0).values, some.depths.median()
    assert of(*best) == pytest.approx(unit, rel=1e-4)
    for step in (-0.1, 0.1):
        moved = best[0] + step * torch.arange(8), best[1] + step, best[2] + step
        assert all(of(*moved)[task] > unit[task] for task in TASKS)


def test_weights_are_kept_by_step_and_are_what_losses_are_multiplied_by(some, fits):
    way = ways(constant(some))[HUNDRED[THREE]]
    found = learn(TINY.but(steps=60), some, 0, CPU, way, RATE)
    assert [*found.weights] == [1, *range(2, 61, 2)]
    a = {"segmentation": 1.0, "instance": 50.0, "depth": 0.5}
    s = dict(zip(TASKS, fits[0].how.weighting.s.tolist()))
    last = {task: a[task] * torch.tensor(-s[task]).exp().item() for task in TASKS}
    assert found.weights[60] == pytest.approx(last)
    assert found.weights[1] == pytest.approx(a, rel=0.1)
    said, true = SceneNet(4)(some.pixels / 255), dict(zip(TASKS, some.targets.values()))
    L = losses(said, true)
    weigh = UncertaintyWeighting(KINDS)
    weigh.s.data = torch.tensor([s[task] for task in TASKS])
    batch = Batch(some.pixels / 255, true, torch.arange(24), 0.0)
    total = fits[0].how(lambda x: said, batch)
    torch.testing.assert_close(total, weigh({**L, "instance": 100 * L["instance"]}))
    plain = Weighed(Way({"depth": 2.0, "instance": 3.0}))(lambda x: said, batch)
    torch.testing.assert_close(plain, 2 * L["depth"] + 3 * L["instance"])


def test_intersection_over_union_by_hand():
    """Class 0: 1 of 3, class 1: 2 of 5, class 2 is called and never there, class 3 is nowhere."""
    true, called = torch.tensor([[0, 0, 1], [1, 1, 0]]), torch.tensor([[0, 1, 1], [1, 2, 1]])
    assert mean_iou(called, true, 4) == pytest.approx((1 / 3 + 2 / 5 + 0) / 3)
    assert mean_iou(true, true, 4) == 1
