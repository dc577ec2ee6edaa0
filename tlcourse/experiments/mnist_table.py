"""How near does one come to the paper's MNIST table with its own set-up?

All 60,000 images; a teacher of 1,200 + 1,200 units with dropout, max-norm and shifts, trained long;
students of 800 + 800 units without any regularisation, alone and distilled at T = 20. One teacher
serves all seeds. It is on board in half precision, so that its students can be trained again
without it: `make_teacher()` trains it anew.

Hinton, Vinyals and Dean 2015, section 3: 67 errors of the teacher, 146 of the student alone, 74 of
the distilled one.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from tlcourse.checkpoints import restore, save
from tlcourse.claims import Claim, Given, contrast, greater
from tlcourse.data import Images, load, random_shift
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.experiments.distillation import train_student
from tlcourse.methods.distillation import distillation_loss
from tlcourse.metrics import errors
from tlcourse.models import MLP
from tlcourse.training import (
    Batch,
    Objective,
    cross_entropy,
    fit,
    max_norm,
    predict,
    record,
    seed_everything,
)

T, WIDTH, CHECKPOINT = 20, 800, "mnist_teacher"
COMMAND = "python -c 'from tlcourse.experiments.mnist_table import make_teacher; make_teacher()'"
# For each arm four settings, learning rate and weight of the soft targets; the best on 10,000
# validation images is used
SETTINGS: dict[str, dict[str, tuple[float, float]]] = {
    "alone": {f"lr {lr}": (lr, 0.0) for lr in (0.001, 0.002, 0.004, 0.008)},
    "T=20": {
        f"lr {lr}, alpha {alpha}": (lr, alpha) for lr in (0.002, 0.004) for alpha in (0.5, 0.9)
    },
}


def run(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Test errors of the teacher and of a student per arm; of seed 0 also the logits of all three
    on some test images.
    """
    train, test = load("mnist").to(device), load("mnist", "test").to(device)
    teacher = restore(_teacher(scale), CHECKPOINT).to(device)
    said, logits = record(teacher, train), {"teacher": predict(teacher, test)}
    yield Row("teacher", "errors", errors(logits["teacher"], test.labels))
    for arm, settings in SETTINGS.items():
        lr, alpha = settings[scale.chosen(arm=arm)]
        student, history = train_student(
            _objective(said, alpha), WIDTH, lr, scale.student_epochs, train, seed, test
        )
        logits[arm] = predict(student, test)
        yield Row(arm, "errors", errors(logits[arm], test.labels))
        yield from (
            Row(arm, "errors by epoch", n, {"epoch": epoch})
            for epoch, n in enumerate(history.epochs["errors"].tolist(), 1)
        )
    for image in examples(logits["teacher"], test.labels) if seed == 0 else []:
        for arm, found in logits.items():
            yield from (
                Row(arm, "logit", z, {"image": image, "class": k})
                for k, z in enumerate(found[image].tolist())
            )


def tune(scale: Scale, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on 10,000 validation images that neither the students nor this
    teacher, a younger one, have seen.
    """
    train, validation = (part.to(device) for part in load("mnist").split(*scale.split, seed=seed))
    said = record(train_teacher(scale, train, scale.tuning_teacher_epochs, seed), train)
    for arm, settings in SETTINGS.items():
        for name, (lr, alpha) in settings.items():
            student, _ = train_student(
                _objective(said, alpha), WIDTH, lr, scale.student_epochs, train, seed
            )
            yield Row(
                arm,
                "validation errors",
                errors(predict(student, validation), validation.labels),
                {"setting": name},
            )


def train_teacher(scale: Scale, train: Images, epochs: int, seed: int) -> nn.Module:
    """The large network: dropout, incoming weights of bounded norm, and images shifted by up to two
    pixels.
    """
    seed_everything(seed)
    teacher = _teacher(scale).to(train.pixels.device)
    shift, bound = random_shift(2), max_norm(scale.max_norm)
    fit(
        teacher,
        train,
        cross_entropy,
        epochs=epochs,
        lr=scale.teacher_lr,
        augment=shift,
        after_step=bound,
        seed=seed,
        progress=False,
    )
    return teacher


def make_teacher() -> None:
    """Train the teacher of all seeds on all images, and save it: about 45 minutes on one thread."""
    everything = load("mnist")
    save(train_teacher(FULL, everything, FULL.teacher_epochs, seed=0), CHECKPOINT, command=COMMAND)


def examples(teacher_logits: Tensor, labels: Tensor) -> list[int]:
    """Test images worth a look: the first of each digit, then those 30 where the teacher's two
    likeliest digits are closest.
    """
    plain = [int((labels == digit).nonzero()[0]) for digit in labels.unique()]
    first, second = teacher_logits.topk(2, dim=1).values.T
    disputed = (first - second).argsort().tolist()[:30]
    return plain + [image for image in disputed if image not in plain]


def _teacher(scale: Scale) -> nn.Module:
    return MLP(784, *scale.teacher, 10, dropout=0.5, input_dropout=0.2)


def _objective(teacher_logits: Tensor, alpha: float) -> Objective:
    def distilled(net: nn.Module, batch: Batch) -> Tensor:
        return distillation_loss(
            net(batch.x), teacher_logits[batch.index], batch.y, T=T, alpha=alpha
        )

    return distilled if alpha else cross_entropy


FULL = Scale(
    seeds=3,
    tuning_seeds=1,
    minutes=140,
    split=(50_000, 10_000),
    teacher=(1200, 1200),
    teacher_lr=1e-3,
    max_norm=3.5,
    teacher_epochs=100,
    tuning_teacher_epochs=40,
    student_epochs=30,
)
_BETTER_TEACHER = Given(
    "the teacher makes fewer errors than the student alone", greater("alone", "teacher", "errors")
)
_PAPER = "0.67 % teacher, 1.46 % alone, 0.74 % distilled at T = 20"
_SOURCE = "lecture, knowledge distillation, MNIST table; Hinton 2015, section 3"
_VARIES = "the students' initial weights and batches, given this teacher"

mnist_table = Experiment(
    name="mnist_table",
    question="How near does one come to the paper's MNIST table with its own set-up?",
    chapter="knowledge_distillation",
    run=run,
    tune=tune,
    arms=("teacher", *SETTINGS),
    scales={"full": FULL},
    claims=[
        Claim(
            "K1",
            "the distilled student beats the student alone",
            source=_SOURCE,
            paper=_PAPER,
            decide=greater("alone", "T=20", "errors"),
            unit="errors in 10,000",
            varies=_VARIES,
            given=_BETTER_TEACHER,
        ),
        Claim(
            "K10",
            "distillation closes at least half of the gap to the teacher",
            source=_SOURCE,
            paper=_PAPER,
            decide=contrast({"alone": 0.5, "teacher": 0.5, "T=20": -1.0}, "errors"),
            unit="errors in 10,000, midway between teacher and alone minus distilled",
            varies=_VARIES,
            given=_BETTER_TEACHER,
        ),
    ],
)
