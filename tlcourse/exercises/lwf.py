"""Exercises of the chapter on continual learning; some mistakes are three libraries'."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.methods.distillation import soft_target_gradient
from tlcourse.methods.lwf import Heads, lwf_loss, response_loss
from tlcourse.metrics import backward_transfer, forgetting

Start = tuple[Tensor, list[nn.Parameter]]


def start_of_lwf(network: Heads, images: Tensor) -> Start:
    """The recorded responses (N, K) of the old head, and all that the optimizer gets.

    network: in training mode, with heads old and new.
    """
    network.eval()
    with torch.no_grad():
        recorded = network(images)["old"]
    network.train()
    return recorded, list(network.parameters())


def what_it_starts_with(start: Function, inputs: Mapping[str, Any]) -> Tensor:
    """The responses, and for each parameter whether it will be trained, as one row of numbers.

    The network is a small one with dropout.
    """
    torch.manual_seed(inputs["seed"])
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5))
    network = Heads(trunk, old=nn.Linear(8, 2), new=nn.Linear(8, 3)).train()
    found = start(network=network, images=inputs["images"])
    if not (isinstance(found, tuple) and len(found) == 2 and isinstance(found[0], Tensor)):
        raise TypeError("return two things: the responses, a tensor, and the list of parameters")
    trained = {id(parameter) for parameter in found[1]}
    return torch.cat(
        [
            found[0].detach().flatten(),
            torch.tensor([float(id(p) in trained) for p in network.parameters()]),
        ]
    )


def _normal(g: Generator, *shape: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=g)


def _for_old(g: Generator, size: int) -> dict[str, Any]:
    spread = 3.0 if size < 8 else 1000.0
    return {
        "logits": _normal(g, size, size + 1, spread=spread),
        "recorded": _normal(g, size, size + 1, spread=spread),
        "T": 1.0 + size % 3,
    }


def _for_lwf(g: Generator, size: int) -> dict[str, Any]:
    labels = torch.randint(0, 3, (size,), generator=g)
    old, recorded = _normal(g, size, size + 2), _normal(g, size, size + 2)
    return {
        "new_logits": _normal(g, size, 3),
        "labels": labels,
        "old_logits": old,
        "recorded": recorded,
        "weight": (0.5, 1.0, 4.0)[size % 3],
        "T": (2.0, 3.0)[size % 2],
    }


def _for_start(g: Generator, size: int) -> dict[str, Any]:
    return {"seed": size, "images": _normal(g, size, 4)}


def _for_gradient(g: Generator, size: int) -> dict[str, Any]:
    return {
        "z": _normal(g, size, size + 2),
        "v": _normal(g, size, size + 2),
        "T": (2.0, 4.0, 0.5)[size % 3],
    }


def _for_matrix(g: Generator, size: int) -> dict[str, Any]:
    """Accuracies after each task; NaN for a task that is still to come."""
    T = 2 + size % 4
    R = torch.rand(T, T, generator=g, dtype=torch.float64).numpy().round(2)
    return {"R": np.where(np.tri(T, dtype=bool), R, np.nan)}


def _loss(
    new: float = 1.0,
    weight_on: str = "old",
    power: float = 0.0,
    sum_: bool = False,
    labels_for_old: bool = False,
) -> Function:
    """A version of the loss with something wrong."""

    def loss(
        new_logits: Tensor,
        labels: Tensor,
        old_logits: Tensor,
        recorded: Tensor,
        weight: float,
        T: float,
    ) -> Tensor:
        plain = F.cross_entropy(new_logits, labels)
        old = (
            F.cross_entropy(old_logits, recorded.argmax(1))
            if labels_for_old
            else response_loss(old_logits, recorded, T=T)
        )
        old = old * T**power * (len(labels) if sum_ else 1)
        return new * plain + weight * old if weight_on == "old" else weight * plain + old

    return loss


def _power(logits: Tensor, T: float) -> Tensor:
    p = logits.softmax(1) ** (1 / T)
    return p / p.sum(1, keepdim=True)


def _cross(p: Tensor, log_q: Tensor) -> Tensor:
    return -(p * log_q).sum(1).mean()


def _without_gradient(
    network: Heads, images: Tensor, *, train: bool, parts: tuple[str, ...]
) -> Start:
    network.train(train)
    with torch.no_grad():
        recorded = network(images)["old"]
    network.train()
    chosen = [p for name, p in network.named_parameters() if name.startswith(parts)]
    return recorded, chosen


def _start(train: bool, *parts: str) -> Function:
    return lambda network, images: _without_gradient(network, images, train=train, parts=parts)


def _lost(R: Any, best: Any) -> float:
    R = np.asarray(R)
    return float((best(R) - R[-1, :-1]).mean())


EXERCISES: dict[str, Exercise] = {
    "old_loss": Exercise(
        title="the loss that remembers",
        task="Complete `my_old_loss(logits, recorded, T)`: −Σ y′ log ŷ′ over the classes, mean "
        "over the images. y′ is what was recorded, ŷ′ what the old head says now, both (N, K) "
        "logits softened by `T`.",
        kind="complete",
        difficulty=1,
        minutes=4,
        core=True,
        reference=response_loss,
        draw=_for_old,
        mistakes=[
            (
                "both softened outputs are the recorded ones, as the slide writes it. Then the "
                "network never enters the loss.",
                lambda logits, recorded, T: _cross(
                    (recorded / T).softmax(1), (recorded / T).log_softmax(1)
                ),
            ),
            (
                "the log of a power of a probability overflows for large logits, as in one "
                "library. softmax(z / T) is the same, and safe.",
                lambda logits, recorded, T: _cross(_power(recorded, T), _power(logits, T).log()),
            ),
            (
                "now and then are exchanged: the recorded probabilities stand before the "
                "logarithm.",
                lambda logits, recorded, T: response_loss(recorded, logits, T=T),
            ),
            ("T is not used.", lambda logits, recorded, T: response_loss(logits, recorded, T=1)),
            (
                "the recorded side is not softened.",
                lambda logits, recorded, T: _cross(
                    recorded.softmax(1), (logits / T).log_softmax(1)
                ),
            ),
            (
                "the present side is not softened.",
                lambda logits, recorded, T: _cross(
                    (recorded / T).softmax(1), logits.log_softmax(1)
                ),
            ),
            (
                "distillation has a factor T² here; learning without forgetting has none.",
                lambda logits, recorded, T: response_loss(logits, recorded, T=T, scaled=True),
            ),
            (
                "the mean is over images and classes. Sum over the classes first.",
                lambda logits, recorded, T: response_loss(logits, recorded, T=T) / logits.shape[1],
            ),
            (
                "the sum is over the batch; it should be a mean.",
                lambda logits, recorded, T: response_loss(logits, recorded, T=T) * len(logits),
            ),
        ],
        hints=[
            "It is cross-entropy between two softmaxes at temperature T.",
            "`log_softmax` of `logits / T` is safe at any size.",
        ],
    ),
    "find_the_bug_lwf": Exercise(
        title="find the bugs",
        task="Two libraries start LwF like this, each with one of two bugs; here are both. "
        "`network` has dropout, is in training mode, and has the heads old and new. Return the "
        "recorded responses of the old head and the list of parameters for the optimizer.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=start_of_lwf,
        draw=_for_start,
        see=what_it_starts_with,
        mistakes=[
            (
                "this is the start as it was found; both bugs are still in it.",
                _start(True, "trunk", "heads.new"),
            ),
            (
                "the old head is left out of the optimizer; it has to follow the trunk.",
                _start(False, "trunk", "heads.new"),
            ),
            (
                "dropout was on while the responses were recorded: even an unchanged network "
                "would be told that it has changed.",
                _start(True, "trunk", "heads"),
            ),
            ("the trunk is left out: that is feature extraction.", _start(False, "heads")),
            ("only the new head is trained: that is the warm-up.", _start(False, "heads.new")),
        ],
        hints=[
            "What does `network.train()` change in a network with dropout?",
            "List the three parts of the network. Which does the method train?",
        ],
    ),
    "forgetting": Exercise(
        title="write forgetting",
        task="Write `my_forgetting(R)`: for each task but the last, its best accuracy before the "
        "last task was learnt minus its accuracy at the end; then the mean. `R` is a NumPy array "
        "(T, T), R[i, j] the accuracy on task j after task i, and NaN for j > i, where there is "
        "no head yet. T ≥ 2.",
        kind="write",
        difficulty=2,
        minutes=8,
        core=True,
        reference=forgetting,
        draw=_for_matrix,
        mistakes=[
            (
                "the last row is among the candidates for the best, so a task that got better "
                "counts as 0, not below.",
                lambda R: _lost(R, lambda R: np.nanmax(R[:, :-1], axis=0)),
            ),
            (
                "this is accuracy right after learning minus at the end: backward transfer with "
                "its sign turned round.",
                lambda R: -backward_transfer(R),
            ),
            ("this is backward transfer.", lambda R: backward_transfer(R)),
            (
                "the sign is turned round: forgetting is above 0 when something is lost.",
                lambda R: -forgetting(R),
            ),
            (
                "you divide by T; there are T − 1 tasks that can be forgotten.",
                lambda R: forgetting(R) * (len(R) - 1) / len(R),
            ),
            ("you take the sum; it is a mean over tasks.", lambda R: forgetting(R) * (len(R) - 1)),
            (
                "the result is always NaN: an accuracy still to come has entered. Is the last "
                "task counted? It has none before the end.",
                lambda R: float("nan"),
            ),
            (
                "a maximum over NaN is NaN, and tasks that are still to come have NaN. "
                "`np.nanmax` leaves it out.",
                lambda R: _lost(R, lambda R: R[:-1, :-1].max(0)),
            ),
            (
                "you take the best over tasks; the maximum runs down a column, over time.",
                lambda R: _lost(R, lambda R: np.nanmax(R[:-1, :-1], axis=1)),
            ),
        ],
        hints=[
            "Which rows are before the last task? Which columns are earlier tasks?",
            "`np.nanmax(R[:-1, :-1], axis=0)` is the best before.",
        ],
    ),
    "lwf": Exercise(
        title="the whole loss",
        task="Write `my_own_lwf_loss(new_logits, labels, old_logits, recorded, weight, T)`: "
        "cross-entropy of the new task plus `weight` times the loss that remembers. You may call "
        "your own `my_old_loss`.",
        kind="write",
        difficulty=1,
        minutes=4,
        reference=lwf_loss,
        draw=_for_lwf,
        mistakes=[
            (
                "the weight belongs to the old task; you gave it to the new one.",
                _loss(weight_on="new"),
            ),
            ("there is a factor T², as in distillation; the paper has none here.", _loss(power=2)),
            ("the old term is summed over the batch; it should be a mean.", _loss(sum_=True)),
            (
                "the old head learns the recorded best guess; it should match all probabilities.",
                _loss(labels_for_old=True),
            ),
            ("the new task is missing.", _loss(new=0.0)),
        ],
        hints=["Two terms, one weight.", "The labels are only for the new head."],
    ),
    "old_gradient": Exercise(
        title="where it pulls",
        task="Write `my_pull(z, v, T)`: the gradient of the remembering loss at the old head's "
        "logits `z`, with `v` recorded, per image.",
        kind="write",
        difficulty=2,
        minutes=5,
        reference=soft_target_gradient,
        draw=_for_gradient,
        mistakes=[
            (
                "the 1/T of the chain rule is missing.",
                lambda z, v, T: T * soft_target_gradient(z, v, T),
            ),
            ("the sign is turned round.", lambda z, v, T: -soft_target_gradient(z, v, T)),
            (
                "T² belongs to distillation; this loss has no such factor.",
                lambda z, v, T: T**2 * soft_target_gradient(z, v, T),
            ),
            ("both softmaxes are at T = 1.", lambda z, v, T: (z.softmax(1) - v.softmax(1)) / T),
            (
                "v − z is the pull between logits; the loss compares probabilities.",
                lambda z, v, T: z - v,
            ),
        ],
        hints=[
            "You met it in the chapter on distillation.",
            "(q − p) / T, with q from z and p from v.",
        ],
    ),
    "backward_transfer": Exercise(
        title="backward transfer",
        task="Write `my_backward_transfer(R)`: for each task but the last, the accuracy at the "
        "end minus the accuracy right after that task was learnt; then the mean.",
        kind="write",
        difficulty=1,
        minutes=4,
        reference=backward_transfer,
        draw=_for_matrix,
        mistakes=[
            (
                "the sign is turned round: losing accuracy is backward transfer below 0.",
                lambda R: -backward_transfer(R),
            ),
            (
                "this is forgetting with its sign turned round: it begins at the best, not at the "
                "diagonal.",
                lambda R: -forgetting(R),
            ),
            (
                "you divide by T; the last task has no part in it.",
                lambda R: backward_transfer(R) * (len(R) - 1) / len(R),
            ),
            (
                "you compare with the first row; a later task is learnt in a later row.",
                lambda R: float((R[-1, :-1] - R[0, :-1]).mean()),
            ),
        ],
        hints=[
            "The accuracy right after learning task j stands on the diagonal.",
            "`np.diagonal(R)` without its last entry.",
        ],
    ),
}
