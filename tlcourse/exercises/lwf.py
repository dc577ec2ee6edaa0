"""Exercises of the chapter on continual learning; some mistakes are three libraries'."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import trained
from tlcourse.methods.lwf import Heads

Start = tuple[Tensor, list[nn.Parameter]]


def old_loss(logits: Tensor, recorded: Tensor, T: float) -> Tensor:
    """−Σ y′ log ŷ′ over the classes, mean over the images."""
    y = (recorded / T).softmax(dim=1)
    log_now = (logits / T).log_softmax(dim=1)
    return -(y * log_now).sum(dim=1).mean()


def whole_loss(
    new_logits: Tensor,
    labels: Tensor,
    old_logits: Tensor,
    recorded: Tensor,
    weight: float,
    T: float,
) -> Tensor:
    """Cross-entropy of the new task plus weight times the loss that remembers."""
    y = (recorded / T).softmax(dim=1)
    log_now = (old_logits / T).log_softmax(dim=1)
    old = -(y * log_now).sum(dim=1).mean()
    return F.cross_entropy(new_logits, labels) + weight * old


def forgotten(R: Any) -> float:
    """The best accuracy before the last task minus that at the end, mean over tasks."""
    best = np.nanmax(R[:-1, :-1], axis=0)
    return float((best - R[-1, :-1]).mean())


def transferred(R: Any) -> float:
    """The accuracy at the end minus that right after learning, mean over tasks."""
    learnt = np.diagonal(R)[:-1]
    return float((R[-1, :-1] - learnt).mean())


def start_of_lwf(network: Heads, images: Tensor) -> Start:
    """The recorded responses (N, K) of the old head; all that the optimizer gets."""
    network.eval()
    with torch.no_grad():
        recorded = network(images)["old"]
    network.train()
    return recorded, list(network.parameters())


def what_it_starts_with(start: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The responses, the names of what will be trained, and how the network is left.

    The network is a small one with dropout.
    """
    torch.manual_seed(inputs["seed"])
    trunk = nn.Sequential(nn.Flatten(), nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5))
    network = Heads(trunk, old=nn.Linear(8, 2), new=nn.Linear(8, 3)).train()
    found = start(network=network, images=inputs["images"])
    if not (isinstance(found, tuple | list) and len(found) == 2 and isinstance(found[0], Tensor)):
        wanted = "the responses, a tensor, and the list of parameters"
        raise Told(f"Not yet: return two things: {wanted}.")
    chosen = {id(parameter) for parameter in found[1]}
    names = [name for name, p in network.named_parameters() if id(p) in chosen]
    modes = {part.training for part in network.modules()}
    return {
        "the recorded responses": found[0],
        "the parameters for the optimizer": " ".join(names),
        "the network's mode afterwards": "training" if all(modes) else "eval, at least in part",
        "the responses' graph": "with a graph" if found[0].requires_grad else "none",
    }


def _normal(g: Generator, *shape: int, spread: float = 3.0) -> Tensor:
    return spread * torch.randn(*shape, generator=g)


def _for_old(g: Generator, size: int) -> dict[str, Any]:
    spread = {7: 60.0, 8: 1000.0}.get(size, 3.0)
    return {
        "logits": _normal(g, size, size + 1, spread=spread),
        "recorded": _normal(g, size, size + 1, spread=spread),
        "T": 10.0 if size == 7 else 1.0 + size % 3,  # large logits, softened to a safe size
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


def _for_matrix(g: Generator, size: int) -> dict[str, Any]:
    """Accuracies after each task; NaN for a task that is still to come."""
    T = 2 + size % 4
    R = torch.rand(T, T, generator=g, dtype=torch.float64).numpy().round(2)
    return {"R": np.where(np.tri(T, dtype=bool), R, np.nan)}


def _loss(
    old: Callable[[Tensor, Tensor, float], Tensor] = old_loss,
    weights: Callable[[float], tuple[float, float]] = lambda weight: (1, weight),
) -> Function:
    """A version of the loss: old(logits, recorded, T), the weights of new and old."""

    def loss(
        new_logits: Tensor,
        labels: Tensor,
        old_logits: Tensor,
        recorded: Tensor,
        weight: float,
        T: float,
    ) -> Tensor:
        of_new, of_old = weights(weight)
        new = F.cross_entropy(new_logits, labels)
        return of_new * new + of_old * old(old_logits, recorded, T)

    return loss


def _power(logits: Tensor, T: float) -> Tensor:
    p = logits.softmax(1) ** (1 / T)
    return p / p.sum(1, keepdim=True)


def _kl(logits: Tensor, recorded: Tensor, T: float) -> Tensor:
    y, log_now = (recorded / T).softmax(1), (logits / T).log_softmax(1)
    return F.kl_div(log_now, y, reduction="batchmean")


def _cross(p: Tensor, log_q: Tensor) -> Tensor:
    return -(p * log_q).sum(1).mean()


def _start(train: bool, *parts: str, after: bool = True, graph: bool = False) -> Function:
    """A version of the start: the modes while it records and after, and what is trained."""

    def start(network: Heads, images: Tensor) -> Start:
        network.train(train)
        with torch.set_grad_enabled(graph):
            recorded = network(images)["old"]
        network.train(after)
        return recorded, [p for name, p in network.named_parameters() if name.startswith(parts)]

    return start


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
        reference=old_loss,
        draw=_for_old,
        see=trained("logits"),
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
                "right for small logits; for large ones a probability is rounded to 0, and its "
                "logarithm is infinite. `log_softmax` is safe.",
                lambda logits, recorded, T: _cross(
                    (recorded / T).softmax(1), (logits / T).softmax(1).log()
                ),
            ),
            (
                "the minus is missing: to make this small is to forget.",
                lambda logits, recorded, T: -old_loss(logits, recorded, T),
            ),
            (
                "the logarithm is missing.",
                lambda logits, recorded, T: _cross(
                    (recorded / T).softmax(1), (logits / T).softmax(1)
                ),
            ),
            (
                "this is the KL divergence. It trains alike, but the loss that is asked for is the "
                "cross-entropy, without y′ log y′.",
                _kl,
            ),
            (
                "now and then are exchanged: the recorded probabilities stand before the "
                "logarithm.",
                lambda logits, recorded, T: old_loss(recorded, logits, T),
            ),
            (
                "T has no effect: both softmaxes are at T = 1.",
                lambda logits, recorded, T: old_loss(logits, recorded, 1),
            ),
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
                lambda logits, recorded, T: T**2 * old_loss(logits, recorded, T),
            ),
            (
                "the mean is over images and classes. Sum over the classes first.",
                lambda logits, recorded, T: old_loss(logits, recorded, T) / logits.shape[1],
            ),
            (
                "the sum is over the batch; it should be a mean.",
                lambda logits, recorded, T: old_loss(logits, recorded, T) * len(logits),
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
        "`network` has dropout, is in training mode, and has the heads old and new. Repair "
        "`my_start(network, images)`: it returns the recorded responses of the old head, a "
        "constant, and the list of parameters for the optimizer. The training begins right after.",
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
            (
                "the network is left in eval mode: it would be trained without its dropout.",
                _start(False, "trunk", "heads", after=False),
            ),
            (
                "the responses still carry a graph; they are a constant. Record them under "
                "`torch.no_grad()`, or detach them.",
                _start(False, "trunk", "heads", graph=True),
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
        reference=forgotten,
        draw=_for_matrix,
        mistakes=[
            (
                "a task that got better counts as 0; it should count below 0. Is the last row "
                "among the candidates for the best?",
                lambda R: _lost(R, lambda R: np.nanmax(R[:, :-1], axis=0)),
            ),
            (
                "this is accuracy right after learning minus at the end: backward transfer with "
                "its sign turned round.",
                lambda R: -transferred(R),
            ),
            ("this is backward transfer.", lambda R: transferred(R)),
            (
                "the sign is turned round: forgetting is above 0 when something is lost.",
                lambda R: -forgotten(R),
            ),
            (
                "the mean is over T tasks; there are T − 1 that can be forgotten.",
                lambda R: forgotten(R) * (len(R) - 1) / len(R),
            ),
            (
                "this is the sum; it should be a mean over tasks.",
                lambda R: forgotten(R) * (len(R) - 1),
            ),
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
                "the best is over tasks; the maximum runs down a column, over time.",
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
        reference=whole_loss,
        draw=_for_lwf,
        see=trained("new_logits", "old_logits"),
        mistakes=[
            (
                "the weight belongs to the old task; you gave it to the new one.",
                _loss(weights=lambda weight: (weight, 1)),
            ),
            (
                "there is a factor T², as in distillation; the paper has none here.",
                _loss(lambda z, v, T: T**2 * old_loss(z, v, T)),
            ),
            (
                "the old term is summed over the batch; it should be a mean.",
                _loss(lambda z, v, T: len(z) * old_loss(z, v, T)),
            ),
            (
                "the old head learns the recorded best guess; it should match all probabilities.",
                _loss(lambda z, v, T: F.cross_entropy(z, v.argmax(1))),
            ),
            ("the new task is missing.", _loss(weights=lambda weight: (0, weight))),
            ("the old task is missing.", _loss(weights=lambda weight: (1, 0))),
            ("the weight has no effect: both terms have 1.", _loss(weights=lambda weight: (1, 1))),
            (
                "the weights are 1 − weight and weight; the new task's is 1.",
                _loss(weights=lambda weight: (1 - weight, weight)),
            ),
            (
                "the old term has the wrong sign: to make this small is to forget.",
                _loss(lambda z, v, T: -old_loss(z, v, T)),
            ),
            (
                "both sides of the old term are the recorded ones; the old head never enters it.",
                _loss(lambda z, v, T: old_loss(v, v, T)),
            ),
            (
                "now and then are exchanged in the old term: the recorded probabilities stand "
                "before the logarithm.",
                _loss(lambda z, v, T: old_loss(v, z, T)),
            ),
            (
                "T has no effect: the old term is at T = 1.",
                _loss(lambda z, v, T: old_loss(z, v, 1)),
            ),
            (
                "the old term is the KL divergence. It trains alike, but the loss that is asked "
                "for is the cross-entropy, without y′ log y′.",
                _loss(_kl),
            ),
        ],
        hints=["Two terms, one weight.", "The labels are only for the new head."],
    ),
    "backward_transfer": Exercise(
        title="backward transfer",
        task="Write `my_backward_transfer(R)`: for each task but the last, the accuracy at the "
        "end minus the accuracy right after that task was learnt; then the mean.",
        kind="write",
        difficulty=1,
        minutes=4,
        reference=transferred,
        draw=_for_matrix,
        mistakes=[
            (
                "the sign is turned round: losing accuracy is backward transfer below 0.",
                lambda R: -transferred(R),
            ),
            (
                "this is forgetting with its sign turned round: it begins at the best, not at the "
                "diagonal.",
                lambda R: -forgotten(R),
            ),
            (
                "the mean is over T tasks; the last one has no part in it.",
                lambda R: transferred(R) * (len(R) - 1) / len(R),
            ),
            (
                "with three tasks or more it is NaN: an accuracy still to come has entered, as in "
                "the first row. A later task is learnt in a later row.",
                lambda R: float((R[-1, :-1] - R[0, :-1]).mean()),
            ),
        ],
        hints=[
            "The accuracy right after learning task j stands on the diagonal.",
            "`np.diagonal(R)` without its last entry.",
        ],
    ),
}
