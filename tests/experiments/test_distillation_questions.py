"""The experiments around distillation: negative logits, other tasks, an omitted digit."""

from importlib import import_module

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tlcourse.claims import TUNING, judge
from tlcourse.data import load
from tlcourse.experiments import EXPERIMENTS
from tlcourse.experiments.distillation.distillation import LECTURE, Distillation
from tlcourse.experiments.distillation.negative_logits import LOWER, flattened, shuffled
from tlcourse.experiments.distillation.other_task import ARMS, objective, target_images
from tlcourse.methods.distillation import distillation_loss
from tlcourse.training import Batch

CPU = torch.device("cpu")
SMALL = {
    "seeds": 2,
    "images": 200,
    "student_images": 200,
    "teacher": (32,),
    "teacher_epochs": 1,
    "student_epochs": 1,
}
NAMES = ("negative_logits", "omitted_digit", "other_task")
LOGITS = torch.randn(50, 10, generator=torch.Generator().manual_seed(0))


def module_of(name):
    return import_module(f"tlcourse.experiments.distillation.{name}")


def tiny(name) -> Distillation:
    return EXPERIMENTS[name].scales["lecture"].but(**SMALL)


def table(rows, seed):
    return pd.DataFrame([{"seed": seed, **row.as_dict()} for row in rows])


@pytest.fixture(params=NAMES)
def name(request):
    return request.param


@pytest.mark.slow
def test_two_tiny_seeds_hold_all_that_the_claims_ask_for(name):
    experiment, scale = EXPERIMENTS[name], tiny(name)
    tuning = (
        table(experiment.tune(scale, TUNING, CPU), TUNING) if experiment.tune else pd.DataFrame()
    )
    settled = scale.settle(tuning)
    rows = pd.concat([table(experiment.run(settled, seed, CPU), seed) for seed in (0, 1)])
    assert set(rows["arm"]) == set(experiment.arms)
    assert {judge(claim, rows).seeds for claim in experiment.claims} <= {2}
    pd.testing.assert_frame_equal(
        table(experiment.run(settled, 1, CPU), 1), rows[rows["seed"] == 1].reset_index(drop=True)
    )


@pytest.mark.parametrize("name", ["negative_logits", "other_task"])
def test_tuning_never_sees_a_test_image(name, monkeypatch):
    def only_training(which, split="train"):
        assert split == "train"
        return load(which, split)

    for module in (module_of(name), module_of("distillation")):
        monkeypatch.setattr(module, "load", only_training)
    monkeypatch.setattr(module_of(name), "RATES", (1e-3,))
    assert len(list(module_of(name).tune(tiny(name), TUNING, CPU))) > 0


def test_every_arm_has_a_grid_of_the_same_size():
    for name in ("negative_logits", "other_task"):
        monkey = pytest.MonkeyPatch()
        with monkey.context() as patch:
            patch.setattr(module_of(name), "train_student", lambda *a, **more: None)
            patch.setattr(module_of(name), "wrong_on", lambda images: lambda student: 0)
            rows = table(module_of(name).tune(tiny(name), TUNING, CPU), TUNING)
        keys = [key for key in rows if key not in ("value", "setting", "seed")]
        assert set(rows.groupby(keys)["setting"].nunique()) == {len(module_of(name).RATES)}


def test_flattening_takes_the_ranks_of_the_lower_half_and_nothing_else():
    flat = flattened(LOGITS)
    lower = LOGITS.argsort(1)[:, :LOWER]
    assert (flat.gather(1, lower).std(1) < 1e-6).all()
    torch.testing.assert_close(flat.sum(1), LOGITS.sum(1))
    upper = LOGITS.argsort(1)[:, LOWER:]
    assert torch.equal(flat.gather(1, upper), LOGITS.gather(1, upper))


def test_shuffling_deals_out_the_same_lower_logits_anew():
    mixed = shuffled(LOGITS, seed=3)
    assert torch.equal(mixed.sort(1).values, LOGITS.sort(1).values)
    upper = LOGITS.argsort(1)[:, LOWER:]
    assert torch.equal(mixed.gather(1, upper), LOGITS.gather(1, upper))
    assert (mixed != LOGITS).any(1).float().mean() > 0.9  # one of 120 orders changes nothing
    assert torch.equal(mixed, shuffled(LOGITS, seed=3))
    assert not torch.equal(mixed, shuffled(LOGITS, seed=4))


def test_the_rotated_target_shows_the_same_images_turned():
    scale = tiny("other_task")
    upright, turned, clothes = (
        target_images(target, scale, 0, CPU)[0] for target in ("same", "rotated", "clothes")
    )
    assert torch.equal(turned.pixels[5, 0].rot90(-1), upright.pixels[5, 0])
    assert torch.equal(turned.labels, upright.labels)
    assert clothes.name == "fashion_mnist"
    assert len(clothes) == len(upright)


@pytest.mark.parametrize(("arm", "alpha"), ARMS.items())
def test_arms_weigh_the_teacher_as_they_say(arm, alpha):
    images = load("mnist").take(slice(0, 8))
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    x = images.pixels.float() / 255
    batch = Batch(x, images.labels, torch.arange(8), 0.0)
    found = objective(arm, LOGITS)(net, batch)
    torch.testing.assert_close(
        found, distillation_loss(net(x), LOGITS[:8], images.labels, T=20, alpha=alpha)
    )
    if arm == "alone":
        torch.testing.assert_close(found, F.cross_entropy(net(x), images.labels))


def test_no_student_sees_a_digit_that_its_transfer_set_omits(monkeypatch):
    module = module_of("omitted_digit")
    seen = []

    def watched(how, width, lr, epochs, images, seed):
        seen.append((set(images.labels.tolist()), epochs * len(images)))
        return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10)), None

    monkeypatch.setattr(module, "train_student", watched)
    list(module.run(LECTURE.but(**SMALL | {"images": 1000, "student_epochs": 20}), 0, CPU))
    assert [digits for digits, _ in seen] == [set(range(10)), set(range(10)) - {3}, {7, 8}]
    presented = [count for _, count in seen]
    assert max(presented) < 1.05 * min(presented)  # as many images are shown to each
