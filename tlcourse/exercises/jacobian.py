"""Exercises of the chapter on matching Jacobians; what holds on average has a file of its own."""

from collections.abc import Callable, Mapping
from copy import deepcopy
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import gradients, one_number, where_lost

OfTwo = Callable[[Tensor, Tensor], Tensor]


def row_of_class(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
    """One backward pass for the batch; in eval mode samples do not see each other."""
    mode = model.training
    x = x.detach().clone().requires_grad_()
    logits = model.eval()(x)
    model.train(mode)
    score = logits.gather(1, classes[:, None]).sum()
    (J,) = torch.autograd.grad(score, x, create_graph=True)
    return J


def distance_of_directions(J_student: Tensor, J_teacher: Tensor) -> Tensor:
    """Between 0 and 4, whatever the lengths of the rows."""
    q_t = F.normalize(J_teacher.detach().flatten(1), eps=1e-12)
    q_s = F.normalize(J_student.flatten(1), eps=1e-12)
    return (q_s - q_t).square().sum(1).mean()


def repaired_loss(
    student: nn.Module, teacher: nn.Module, x: Tensor, labels: Tensor, weight: float
) -> Tensor:
    """The student's row carries a graph, and both are of the teacher's class."""
    x = x.detach().clone().requires_grad_()
    s, t = student(x), teacher(x)
    c = t.argmax(1, keepdim=True)
    (J_s,) = torch.autograd.grad(s.gather(1, c).sum(), x, create_graph=True)
    (J_t,) = torch.autograd.grad(t.gather(1, c).sum(), x)
    q_s, q_t = F.normalize(J_s.flatten(1)), F.normalize(J_t.flatten(1))
    return F.cross_entropy(s, labels) + weight * (q_s - q_t).square().sum(1).mean()


def what_it_gives_and_leaves(jacobian: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The rows, what a loss on them teaches the weights, and how model and x are left."""
    x, model = inputs["x"], small_network(inputs["seed"], 4, 3, nn.BatchNorm1d(6))
    model(torch.randn(32, 4))  # running averages of its own
    before = deepcopy(model.state_dict())
    J = jacobian(model=model, x=x, classes=inputs["classes"])
    if not (isinstance(J, Tensor) and J.shape == x.shape):
        got = tuple(J.shape) if isinstance(J, Tensor) else type(J).__name__
        raise Told(f"Not yet: return a tensor of the shape of x, {tuple(x.shape)}; got {got}.")
    after = model.state_dict()
    states = {
        "in eval mode": not all(part.training for part in model.modules()),
        "with other averages": not all(torch.equal(s, before[n]) for n, s in after.items()),
        "with frozen weights": not all(p.requires_grad for p in model.parameters()),
        "with gradients": any(p.grad is not None for p in model.parameters()),
    }
    of_x = {"with requires_grad": x.requires_grad, "with a gradient": x.grad is not None}
    weighed = J * (torch.arange(J.numel()) % 4 - 1.5).reshape(J.shape).to(J.dtype)
    slope = _slope(weighed.sum(), model)
    none = f"none: the rows carry {'another graph' if J.requires_grad else 'no graph'}"
    return {
        "the rows": J.detach(),
        "what a weighted sum of the rows teaches the weights": none if slope is None else slope,
        "the model afterwards": ", ".join(s for s, true in states.items() if true) or "as it was",
        "x afterwards": ", ".join(s for s, true in of_x.items() if true) or "as it was",
    }


def value_and_gradients(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a student's row of zeros the gradient must be a number; which one is free."""
    found = gradients(loss, inputs, "J_student", "J_teacher")
    slope = found["J_student"]
    if isinstance(slope, Tensor):
        alive = inputs["J_student"].flatten(1).any(1)[:, None, None, None]
        slope = torch.where(alive | slope.isnan(), slope, 0.0)
    return {
        "the loss": found[""],
        "the gradient at the student's rows": slope,
        "the gradient at the teacher's rows": found["J_teacher"],
    }


def what_it_trains(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and its gradients at the weights of two small networks."""
    student, teacher = (small_network(inputs["seed"] + i, 4, 3) for i in (0, 100))
    parts = {name: inputs[name] for name in ("x", "labels", "weight")}
    given = {"student": student, "teacher": teacher, **parts}
    found = one_number(loss, given)
    slope, taught = _slope(found, student), _slope(found, teacher)
    told = None if isinstance(found, Tensor) and found.requires_grad else where_lost(loss, given)
    return {
        "the loss": found.detach() if isinstance(found, Tensor) else found,
        "the gradient at the student's weights": told or ("none" if slope is None else slope),
        "the gradient at the teacher's weights": told or ("none" if taught is None else "some"),
    }


def small_network(seed: int, pixels: int, K: int, *norm: nn.Module) -> nn.Sequential:
    """In training mode, from (N, …) to (N, K); smooth, so that derivatives of rows are seen."""
    torch.manual_seed(seed)
    body = [nn.Linear(pixels, 6), *norm, nn.Tanh(), nn.Linear(6, K)]
    network = nn.Sequential(nn.Flatten(), *body)
    for p in network.parameters():
        nn.init.normal_(p)
    return network


def _slope(number: Any, network: nn.Module) -> Tensor | None:
    """The gradient of a number at all of a network's weights in a row, None where there is none."""
    weights = [p for p in network.parameters() if p.requires_grad]
    if not (weights and isinstance(number, Tensor) and number.requires_grad):
        return None
    slopes = torch.autograd.grad(number, weights, retain_graph=True, allow_unused=True)
    if all(slope is None for slope in slopes):
        return None
    rows = [torch.zeros_like(p) if s is None else s for p, s in zip(weights, slopes)]
    return torch.cat([row.flatten() for row in rows])


def normal(g: Generator, *shape: int) -> Tensor:
    """Normal random numbers."""
    return torch.randn(*shape, generator=g)


def _for_row(g: Generator, size: int) -> dict[str, Any]:
    """At least two samples: with one BatchNorm does not run in training mode."""
    classes = torch.randint(0, 3, (size + 1,), generator=g)
    return {"seed": size, "x": normal(g, size + 1, 1, 2, 2), "classes": classes}


def _for_loss(g: Generator, size: int) -> dict[str, Any]:
    """From the second size on a student's row is dead, from the third on a teacher's is short."""
    J_student, J_teacher = (normal(g, size, 2, 2, 3) for _ in range(2))
    J_student[1:2] = 0
    J_teacher[2:3] *= 3e-8 / J_teacher[2:3].norm()
    return {"J_student": J_student, "J_teacher": J_teacher}


def _for_bug(g: Generator, size: int) -> dict[str, Any]:
    x, labels = normal(g, size, 1, 2, 2), torch.randint(0, 3, (size,), generator=g)
    return {"seed": size, "x": x, "labels": labels, "weight": (10.0, 1.0, 3.0)[size % 3]}


def _chosen(logits: Tensor, classes: Tensor) -> Tensor:
    return logits.gather(1, classes[:, None]).sum()


def _row(
    score: OfTwo = _chosen,
    *,
    modes: tuple[bool, bool] = (False, True),
    graph: bool = True,
    copy: bool = True,
    backward: bool = False,
) -> Function:
    """A version of the row. modes: whether it trains while it is asked, and afterwards."""

    def jacobian(model: nn.Module, x: Tensor, classes: Tensor) -> Tensor:
        leaf = (x.detach().clone() if copy else x).requires_grad_()
        number = score(model.train(modes[0])(leaf), classes)
        model.train(modes[1])
        if not backward:
            return torch.autograd.grad(number, leaf, create_graph=graph)[0]
        number.backward(create_graph=graph)
        assert leaf.grad is not None
        return leaf.grad

    return jacobian


def _unit(J: Tensor) -> Tensor:
    return F.normalize(J.flatten(1))


def _squares(S: Tensor, T: Tensor) -> Tensor:
    return (S - T).square().sum(1).mean()


def _distance(
    unit: Callable[[Tensor], Tensor] = _unit, apart: OfTwo = _squares, taught: bool = False
) -> Function:
    """A version of the loss. taught: whether the teacher is trained, too."""

    def loss(J_student: Tensor, J_teacher: Tensor) -> Tensor:
        rows = J_student, J_teacher if taught else J_teacher.detach()
        return apart(*(unit(J).flatten(1) for J in rows))

    return loss


def _squared(J: Tensor) -> Tensor:
    return J.square().sum((1, 2, 3), keepdim=True)


def _lengths(J: Tensor) -> Tensor:
    return J.flatten(1).norm(dim=1)[:, None, None, None]


def _found(
    classes: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]], *graphs: bool
) -> Function:
    """The loss as it was found, changed. classes: of student and teacher, by their logits.

    graphs: whether the rows of student and teacher carry one.
    """

    def loss(
        student: nn.Module, teacher: nn.Module, x: Tensor, labels: Tensor, weight: float
    ) -> Tensor:
        x = x.detach().clone().requires_grad_()
        both = student(x), teacher(x)
        scores = map(_chosen, both, classes(*both, labels))
        S, T = (
            torch.autograd.grad(score, x, retain_graph=True, create_graph=graph)[0]
            for score, graph in zip(scores, graphs)
        )
        return F.cross_entropy(both[0], labels) + weight * _squares(_unit(S), _unit(T))

    return loss


def _own(s: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return s.argmax(1), t.argmax(1)


def _teachers(s: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    return t.argmax(1), t.argmax(1)


EXERCISES: dict[str, Exercise] = {
    "class_jacobian": Exercise(
        title="one row for each sample",
        task="Write `my_class_jacobian(model, x, classes)`: for each sample the gradient of the "
        "logit of its class, `classes` (N,), by its pixels; a tensor like `x` (N, …). A loss on it "
        "must be able to train the model. The model has BatchNorm and is in training mode, where "
        "the samples of a batch see each other: ask it in eval mode, so that each row is of one "
        "sample alone. Leave all as it was: the model's mode, averages and gradients, and `x`.",
        kind="write",
        difficulty=2,
        minutes=12,
        core=True,
        reference=row_of_class,
        axes=("sample", "channel", "row", "column"),
        draw=_for_row,
        see=what_it_gives_and_leaves,
        mistakes=[
            (
                "each row is of the class that the network itself finds largest; take the one that "
                "is given. Student and teacher are compared on the same question.",
                _row(lambda z, c: z.max(1).values.sum()),
            ),
            (
                "`logits[:, classes]` is a table of every sample with all samples' classes, N × N, "
                "as in public code. `gather` takes one a sample.",
                _row(lambda z, c: z[:, c].sum()),
            ),
            (
                "all classes are added up; only the one that is asked for counts.",
                _row(lambda z, c: z.sum()),
            ),
            (
                "the mean over the batch makes each row N times smaller. Sum: a sample's pixels "
                "move its own logit alone.",
                _row(lambda z, c: _chosen(z, c) / len(z)),
            ),
            (
                "the score is a probability. Take the logit: a softmax mixes in the other classes.",
                _row(lambda z, c: _chosen(z.softmax(1), c)),
            ),
            (
                "the model was asked in training mode: through BatchNorm a sample's pixels move "
                "the logits of others, so the rows are mixed, and the running averages have moved.",
                _row(modes=(True, True)),
            ),
            (
                "the model was asked in training mode, so BatchNorm mixes the rows; and no "
                "gradient reaches the weights, since the rows carry no graph.",
                _row(modes=(True, True), graph=False),
            ),
            (
                "the rows are right, but the model is left in eval mode.",
                _row(modes=(False, False)),
            ),
            (
                "the numbers are right, but no gradient reaches the weights: the rows carry no "
                "graph. Beside another loss, one on them looks fine and teaches nothing. "
                "`create_graph=True`.",
                _row(graph=False),
            ),
            (
                "the rows carry a graph, but not of the model's weights: of a copy's, or of "
                "detached ones. A loss on them does not train the model.",
                lambda model, x, classes: row_of_class(deepcopy(model), x, classes),
            ),
            (
                "x is left with `requires_grad`. Take a copy: "
                "`x.detach().clone().requires_grad_()`.",
                _row(copy=False),
            ),
            (
                "the weights have gradients now, which the next step adds to its own: `backward` "
                "goes to all leaves, `torch.autograd.grad` only to what it is told.",
                _row(backward=True),
            ),
            (
                "`backward` leaves gradients in the weights and in x, and what it leaves there "
                "carries no graph. Use `torch.autograd.grad`, with `create_graph=True`.",
                _row(backward=True, copy=False, graph=False),
            ),
            (
                "`backward` leaves gradients in the weights and in x, which carry no graph; and in "
                "training mode BatchNorm mixes the rows.",
                _row(backward=True, copy=False, graph=False, modes=(True, True)),
            ),
        ],
        hints=[
            "One backward pass gives all rows: what is the gradient of the sum of the chosen "
            "logits by one sample's pixels, if no other logit depends on them?",
            "`logits.gather(1, classes[:, None])` takes one logit a sample. And what must "
            "`torch.autograd.grad` be told, so that its result can be differentiated again?",
            "`x.detach().clone().requires_grad_()`; `model.eval()`, ask it, `model.train()`; then "
            "`torch.autograd.grad(score, x, create_graph=True)`, which returns a tuple of one.",
        ],
    ),
    "jacobian_loss": Exercise(
        title="directions alone",
        task="Complete `my_jacobian_loss(J_student, J_teacher)`: rows of N samples, both "
        "(N, C, H, W). Each sample's row is divided by its length, max(‖J‖₂, 1e-12). Squared "
        "differences are summed over a sample's pixels; then comes the mean over the batch. The "
        "teacher gets no gradient, and a student's row of zeros must make nothing NaN.",
        kind="complete",
        difficulty=1,
        minutes=5,
        core=True,
        reference=distance_of_directions,
        axes=("sample", "channel", "row", "column"),
        draw=_for_loss,
        see=value_and_gradients,
        mistakes=[
            (
                "the rows are not normalised, so a steep network outweighs a flat one.",
                _distance(lambda J: J),
            ),
            (
                "one length is taken for the whole batch; each sample has its own.",
                _distance(lambda J: J / J.norm()),
            ),
            (
                "`F.normalize` works along dimension 1, and here that is the channels. A row is "
                "all pixels of a sample: `flatten(1)` first.",
                _distance(F.normalize),
            ),
            (
                "each line of the image has a length of its own. A row is all pixels of a sample: "
                "`flatten(1)` first.",
                _distance(lambda J: F.normalize(J, dim=-1)),
            ),
            (
                "a row of zeros is 0 / 0, NaN: there is no floor.",
                _distance(lambda J: J / _lengths(J)),
            ),
            (
                "the loss is right, but its gradient at a row of zeros is NaN: the slope of the "
                "root at 0. `norm` and `F.normalize` take 0 there.",
                _distance(lambda J: J / _squared(J).sqrt().clamp(min=1e-12)),
            ),
            (
                "a short row counts as none: the floor is too high. Under the root 1e-12 is a "
                "floor of 1e-6.",
                _distance(lambda J: J / (_squared(J) + 1e-12).sqrt()),
            ),
            (
                "the length counts as a constant in the gradient; it depends on every pixel.",
                _distance(lambda J: J / _lengths(J).clamp(min=1e-12).detach()),
            ),
            (
                "this is the mean over the pixels, as in public code: smaller by their number. "
                "Sum over them.",
                _distance(apart=F.mse_loss),
            ),
            (
                "the sum is over the batch; it should be a mean.",
                _distance(apart=lambda S, T: (S - T).square().sum()),
            ),
            (
                "the distance is not squared.",
                _distance(apart=lambda S, T: (S - T).norm(dim=1).mean()),
            ),
            (
                "the teacher gets a gradient; it must not learn from its student. Detach its rows.",
                _distance(taught=True),
            ),
        ],
        hints=[
            "Which numbers of (N, C, H, W) make up one sample's row?",
            "`J.flatten(1)` is (N, C·H·W), and `F.normalize` divides its rows, with a floor.",
            "`.detach()` the teacher's, `.square().sum(1)` of the difference, `.mean()`.",
        ],
    ),
    "find_the_bug_jacobian": Exercise(
        title="find the bugs",
        task="A loss as one finds it. Whatever the `weight`, the student becomes the same, to the "
        "last digit. Yet the second term is there when one prints it. And where the two networks "
        "disagree, it compares answers to different questions. Repair `my_found_loss(student, "
        "teacher, x, labels, weight)`: the student's cross-entropy, plus `weight` times the "
        "squared distance of both rows as unit vectors, mean over the batch. Both rows are of the "
        "class that the teacher finds largest. The student learns from both terms, and the "
        "teacher gets no gradient.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=repaired_loss,
        axes=("weight",),
        draw=_for_bug,
        see=what_it_trains,
        mistakes=[
            ("this is the loss as it was found.", _found(_own, False, False)),
            (
                "the loss is right and its gradient is not: the Jacobian term still moves nothing, "
                "for the student's row carries no graph.",
                _found(_teachers, False, False),
            ),
            (
                "the Jacobian term moves the student now, but each row is still of the class that "
                "its own network finds largest.",
                _found(_own, True, False),
            ),
            (
                "the Jacobian term moves the student now, and the teacher too, which must be a "
                "constant; and each row is still of its own network's class.",
                _found(_own, True, True),
            ),
            (
                "the teacher gets a gradient; it must not learn from its student. Its row needs no "
                "graph.",
                _found(_teachers, True, True),
            ),
            (
                "the teacher's row carries a graph and the student's none: the Jacobian term moves "
                "the wrong network.",
                _found(_teachers, False, True),
            ),
            (
                "the teacher's row carries a graph and the student's none; and each row is still "
                "of its own network's class.",
                _found(_own, False, True),
            ),
            (
                "both rows are of the student's class; it is the teacher who chooses.",
                _found(lambda s, t, labels: (s.argmax(1), s.argmax(1)), True, False),
            ),
            (
                "both rows are of the label's class, as in public code; it is the teacher who "
                "chooses.",
                _found(lambda s, t, labels: (labels, labels), True, False),
            ),
        ],
        hints=[
            "Differentiate the second term alone by the student's weights. What comes?",
            "`retain_graph` keeps a graph, `create_graph` makes one of the gradient itself. Which "
            "network's row needs it? And of whose class is each row?",
            "`c = t.argmax(1, keepdim=True)`, `gather(1, c)` from both networks' logits, and "
            "`create_graph=True` in the student's `torch.autograd.grad` only.",
        ],
    ),
}
