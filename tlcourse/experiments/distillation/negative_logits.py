"""Is it an advantage that a high temperature makes the student match very negative logits?

The lecture says so (E1). The paper says that they may carry knowledge or mere noise, and that it is
an empirical question which effect wins. Here the student learns from the teacher's logits as they
are, and from copies whose lower half no longer says how its classes rank.
"""

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from tlcourse.claims import Claim, Given, greater
from tlcourse.data import Images, load
from tlcourse.experiments.base import Case, Experiment, Row, tuned
from tlcourse.experiments.distillation.distillation import (
    ALPHA,
    BETTER_TEACHER,
    LECTURE,
    VARIES,
    Distillation,
    mistakes,
    softly,
    train_and_validation,
    train_student,
    train_teacher,
    wrong_on,
)
from tlcourse.training import Objective, cross_entropy, record

LOWER = 5  # of ten classes: those that the teacher finds least likely
ARMS = ("alone", "intact", "flattened", "shuffled")
TEMPERATURES = (2, 20)
RATES = (4e-3, 8e-3, 1.6e-2, 3.2e-2)
WIDTH = 300


def run(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Errors on the test images, for every arm and temperature."""
    train, _ = train_and_validation(scale, seed, device)
    test = load("mnist", "test").to(device)
    teacher = train_teacher(scale, train, seed)
    found = mistakes(teacher, test)
    yield from (Row("teacher", "errors", found, {"T": T}) for T in TEMPERATURES)
    for case in cases(scale, train, record(teacher, train), seed):
        yield Row(case.arm, "errors", mistakes(case.trained(scale)[0], test), case.at)


def tune(scale: Distillation, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm, temperature and learning rate, on validation images."""
    train, validation = train_and_validation(scale, seed, device)
    said = record(train_teacher(scale, train, seed), train)
    yield from tuned(cases(scale, train, said, seed), wrong_on(validation))


def cases(scale: Distillation, train: Images, said: Tensor, seed: int) -> Iterator[Case]:
    """A student for every arm and temperature; alone has none. said: the teacher's logits."""
    others = [(arm, T) for T in TEMPERATURES for arm in ARMS[1:]]
    for arm, T in [("alone", TEMPERATURES[-1]), *others]:
        learn = partial(train_student, objective(arm, T, said, seed), WIDTH)
        student = partial(learn, epochs=scale.student_epochs, images=train, seed=seed)
        yield Case(arm, dict(zip(RATES, RATES)), student, {"T": T})


def objective(arm: str, T: int, said: Tensor, seed: int) -> Objective:
    """What a student of this arm minimises."""
    changes: dict[str, Callable[[Tensor], Tensor]] = {
        "intact": lambda v: v,
        "flattened": flattened,
        "shuffled": partial(shuffled, seed=seed),
    }
    return cross_entropy if arm == "alone" else softly(changes[arm](said), T, ALPHA)


def flattened(logits: Tensor) -> Tensor:
    """Each row's lower half replaced by its mean. (N, K) -> (N, K)."""
    lower = logits.argsort(1)[:, :LOWER]
    mean = logits.gather(1, lower).mean(1, keepdim=True)
    return logits.scatter(1, lower, mean.expand(-1, LOWER))


def shuffled(logits: Tensor, seed: int) -> Tensor:
    """Each row's lower half dealt out anew among the same classes: as large as before, but noise.

    (N, K) -> (N, K).
    """
    lower = logits.argsort(1)[:, :LOWER]
    draws = torch.rand(lower.shape, generator=torch.Generator().manual_seed(seed))
    order = draws.argsort(1).to(logits.device)
    return logits.scatter(1, lower, logits.gather(1, lower.gather(1, order)))


EXPERIMENT = Experiment(
    name="negative_logits",
    question="Is it an advantage that a high temperature makes a student match negative logits?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *ARMS),
    scales={"lecture": LECTURE.but(minutes=30)},
    claims=[
        Claim(
            "K9",
            "attending to very negative logits is an advantage",
            source="lecture, knowledge distillation, high temperature; Hinton 2015, section 2.1, "
            "leaves it open",
            decide=greater("flattened", "intact", "errors", T=20),
            unit="errors in 10,000, with the lower half of the teacher's logits flattened minus as "
            "they are, at T = 20",
            varies=VARIES,
            given=Given(BETTER_TEACHER, greater("alone", "teacher", "errors", T=20)),
        )
    ],
)
