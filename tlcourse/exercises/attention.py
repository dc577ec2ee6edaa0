"""Exercises of the chapter on attention; libraries' mistakes are among the planted ones."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import gradients
from tlcourse.methods.attention import attention_map

Head = Callable[[Tensor], Tensor]


def unit_map(A: Tensor, p: float) -> Tensor:
    """The attention map of every image as a unit vector, (N, H·W)."""
    return F.normalize(A.abs().pow(p).sum(1).flatten(1))


def cam_of_head(A: Tensor, head: Head, classes: Tensor) -> Tensor:
    """Grad-CAM, (N, H, W), of activations (N, C, H, W) for classes (N,).

    head: the network's rest, which turns the activations into logits (N, K).
    """
    A = A.detach().requires_grad_()
    score = head(A).gather(1, classes[:, None]).sum()
    (gradient,) = torch.autograd.grad(score, A)
    alpha = gradient.mean((2, 3), keepdim=True)
    return (alpha * A.detach()).sum(1).relu()


def repaired_loss(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float) -> Tensor:
    """The official code's form: β times the mean of squares, for lists of (N, C, H, W).

    Logits have no channels to sum over.
    """
    loss = torch.zeros(())
    for s, t in zip(student, teacher):
        q_s, q_t = (F.normalize(A.pow(2).sum(1).flatten(1)) for A in (s, t.detach()))
        loss = loss + (q_s - q_t).pow(2).mean()
    return beta * loss


def loss_of_the_paper(
    student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float, p: float
) -> Tensor:
    """β/2 Σ ‖q_S − q_T‖₂ over the layers, mean over the images."""
    total = torch.zeros(())
    for s, t in zip(student, teacher):
        maps = (A.abs().pow(p).sum(1).flatten(1) for A in (s, t.detach()))
        q_s, q_t = (F.normalize(m) for m in maps)
        apart = torch.linalg.vector_norm(q_s - q_t, dim=1)  # its slope at 0 is 0
        total = total + apart.mean()
    return beta / 2 * total


def guided_relu(x: Tensor, gradient: Tensor) -> Tensor:
    """What guided backpropagation hands down through a ReLU.

    x: its input; gradient: what came from above; both of one shape.
    """
    return gradient * (x > 0) * (gradient > 0)


def value_and_gradients(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The loss, and the sizes of its gradients by the features of student and teacher.

    Where two maps are equal the gradient's direction is a matter of rounding; then 0 stands for a
    gradient that is finite.
    """
    found = gradients(loss, inputs, "student", "teacher")
    pairs = zip(inputs["student"], inputs["teacher"])
    equal = any(torch.equal(s, t[:, : s.shape[1]]) for s, t in pairs)
    seen = {"the loss": found[""]}
    for name in ("student", "teacher"):
        parts = found[name]
        size = parts if isinstance(parts, Told) else sum(g.norm() for g in parts)
        seen[f"the size of the gradient at the {name}'s features"] = (
            size * 0.0 if equal and isinstance(size, Tensor) else size
        )
    return seen


def with_and_without_features(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The same, and whether logits are refused in the place of features, alone and in a list."""
    student, teacher = (inputs[name][0].mean((2, 3)) for name in ("student", "teacher"))
    return {
        **value_and_gradients(loss, inputs),
        "logits by themselves": _answer_to(loss, student, teacher, inputs["beta"]),
        "logits in a list": _answer_to(loss, [student], [teacher], inputs["beta"]),
    }


def _answer_to(loss: Function, student: Any, teacher: Any, beta: float) -> str:
    try:
        loss(student=student, teacher=teacher, beta=beta)
    except (Told, NotImplementedError):  # to return nothing is no refusal
        return "pass"
    except Exception:
        return "an error"
    return "pass"


def on_a_small_network(cam: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The map for the second half of a small network, whose weights depend on the seed."""
    torch.manual_seed(inputs["seed"])
    channels = inputs["A"].shape[1]
    head = nn.Sequential(
        nn.Conv2d(channels, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(6, 4),
    )
    return {"the map": cam(A=inputs["A"], head=head, classes=inputs["classes"])}


def _normal(g: Generator, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=g)


def _for_map(g: Generator, size: int) -> dict[str, Any]:
    return {"A": _normal(g, size, size + 1, 2, 2), "p": (1, 2, 3)[size % 3]}


def _for_loss(g: Generator, size: int) -> dict[str, Any]:
    """Two layers; the teacher has more channels. No loss should stumble over two equal maps."""
    student = [_normal(g, size, 2, 3, 3), _normal(g, size, 3, 2, 2)]
    teacher = [_normal(g, size, 4, 3, 3), _normal(g, size, 5, 2, 2)]
    if size == 5:
        teacher[1] = torch.cat([student[1], torch.zeros(size, 2, 2, 2)], dim=1)
    return {
        "student": student,
        "teacher": teacher,
        "beta": (1.0, 3.0, 0.5)[size % 3],
        "p": (2, 3, 1)[size % 3],
    }


def _for_bug(g: Generator, size: int) -> dict[str, Any]:
    parts = {
        name: [_normal(g, size, 3, 2, 2), _normal(g, size, 4, 1, 2)]
        for name in ("student", "teacher")
    }
    return {**parts, "beta": (1.0, 100.0, 10.0)[size % 3]}


def _for_cam(g: Generator, size: int) -> dict[str, Any]:
    return {
        "seed": size,
        "A": _normal(g, size, 3, 2, 3),
        "classes": torch.randint(0, 4, (size,), generator=g),
    }


def _for_relu(g: Generator, size: int) -> dict[str, Any]:
    return {"x": _normal(g, size, 3), "gradient": _normal(g, size, 3)}


def _map(
    how: Callable[[Tensor, float], Tensor], unit: Callable[[Tensor], Tensor] = F.normalize
) -> Function:
    """A version of the map: how it is summed, (N, H, W), and how (N, H·W) is made a unit vector."""
    return lambda A, p: unit(how(A, p).flatten(1))


def _loss(
    distance: Function, unit: Callable[[Tensor], Tensor] = F.normalize, taught: bool = False
) -> Function:
    """A version of the loss: β / 2 times the sum of distance(q_s, q_t, p) over the layers."""

    def loss(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float, p: float) -> Tensor:
        pairs = zip(student, teacher if taught else [t.detach() for t in teacher])
        rows = [[unit(attention_map(A, p).flatten(1)) for A in pair] for pair in pairs]
        return beta / 2 * torch.stack([distance(*pair, p) for pair in rows]).sum()

    return loss


def _norms(a: Tensor, b: Tensor, p: float) -> Tensor:
    return (a - b).norm(dim=1).mean()


_plain = _loss(_norms)


def _found(
    mapped: Callable[[Tensor], Tensor], *, whole: bool = False, taught: bool = False
) -> Function:
    """The loss as it was found, changed. mapped: from features to what is normalised."""

    def loss(student: Sequence[Tensor], teacher: Sequence[Tensor], beta: float) -> Tensor:
        pairs = zip(student, teacher if taught else [t.detach() for t in teacher])
        rows = [[F.normalize(mapped(A).reshape(len(A), -1)) for A in pair] for pair in pairs]
        return beta * sum(
            ((s - t).pow(2).sum() / (1 if whole else s.numel()) for s, t in rows), torch.zeros(())
        )

    return loss


def _channels(A: Tensor) -> Tensor:
    return A.pow(2).sum(1).flatten(1)


def _mean(g: Tensor) -> Tensor:
    return g.mean((2, 3), keepdim=True)


def _cam(
    weights: Callable[[Tensor], Tensor] = _mean,
    scores: Callable[[Tensor], Tensor] = lambda logits: logits,
    final: Callable[[Tensor], Tensor] = torch.relu,
    asked: bool = True,
) -> Function:
    """A version of Grad-CAM: what is done with the gradient, the logits, and the sum at the end."""

    def cam(A: Tensor, head: Head, classes: Tensor) -> Tensor:
        A = A.detach().requires_grad_()
        out = scores(head(A))
        (gradient,) = torch.autograd.grad(
            (out.gather(1, classes[:, None]) if asked else out).sum(), A
        )
        return final((weights(gradient) * A.detach()).sum(1))

    return cam


EXERCISES: dict[str, Exercise] = {
    "attention_map": Exercise(
        title="the map",
        task="Complete `my_own_map(A, p)`: where a layer is active. Σ|A|^p over the channels of "
        "`A` (N, C, H, W), one row of H·W numbers for each image, each row a unit vector.",
        kind="complete",
        difficulty=1,
        minutes=4,
        core=True,
        reference=unit_map,
        axes=("image", "place"),
        draw=_for_map,
        mistakes=[
            (
                "the absolute value is missing: for an odd p negative activations cancel positive "
                "ones. Two libraries do this.",
                _map(lambda A, p: A.pow(p).sum(1)),
            ),
            (
                "the absolute value is taken after the sum; until then activations of different "
                "sign have cancelled.",
                _map(lambda A, p: A.pow(p).sum(1).abs()),
            ),
            (
                "the map is normalised over the whole batch, so each image's map depends on the "
                "others. One norm for each row.",
                _map(attention_map, lambda q: q / q.norm()),
            ),
            (
                "the norm is over the images, dimension 0; places are dimension 1.",
                _map(attention_map, lambda q: F.normalize(q, dim=0)),
            ),
            ("the rows are not normalised.", _map(attention_map, lambda q: q)),
            (
                "the rows sum to 1; as unit vectors their squares do.",
                _map(attention_map, lambda q: F.normalize(q, p=1)),
            ),
            (
                "the softmax is not the norm: divide by the 2-norm.",
                _map(attention_map, lambda q: q.softmax(1)),
            ),
            (
                "the sum is over the places and leaves the channels. It is the other way round: "
                "what remains is where, not what.",
                _map(lambda A, p: A.abs().pow(p).sum((2, 3))),
            ),
            (
                "the root is taken after the sum, as for a norm; the map has none.",
                _map(lambda A, p: attention_map(A, p) ** (1 / p)),
            ),
            ("p has no effect: the power is always 2.", _map(lambda A, p: attention_map(A, 2))),
        ],
        hints=[
            "`A.abs().pow(p)` first; which dimension of (N, C, H, W) holds the channels?",
            "`F.normalize` makes rows unit vectors.",
        ],
    ),
    "find_the_bug_attention": Exercise(
        title="find the bug",
        task="A library's loss of attention transfer. Its users pass it logits, and it answers "
        "exactly 0, whatever the networks. Given features, it answers something, but not what it "
        "should. Repair `my_found_loss(student, teacher, beta)`: lists of (N, C, H, W); β times "
        "the mean of squares of the maps' differences, summed over the layers. The teacher gets "
        "no gradient, and logits (N, K) must not pass, neither by themselves nor in a list: let "
        "them raise an error.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=repaired_loss,
        draw=_for_bug,
        see=with_and_without_features,
        mistakes=[
            ("this is the loss as it was found.", _found(lambda A: A.pow(2))),
            (
                "features are summed over their channels, but logits still pass, and still give 0.",
                _found(lambda A: _channels(A) if A.ndim == 4 else A.pow(2)),
            ),
            (
                "logits no longer pass by themselves, but in a list they do: summed over their "
                "classes they are one place.",
                _found(lambda A: A.pow(2).sum(1)),
            ),
            (
                "logits are refused, but the channels are still not summed: what is compared is "
                "every activation, not a map.",
                _found(lambda A: A.pow(2).flatten(2)),
            ),
            (
                "the squares are summed over batch and places; the official code takes their mean.",
                _found(_channels, whole=True),
            ),
            (
                "the teacher gets a gradient; it must not learn from its student. Detach its "
                "features.",
                _found(_channels, taught=True),
            ),
        ],
        hints=[
            "Print the shape of what is normalised, for features and for logits (N, K). What does "
            "`zip` walk along in a tensor?",
            "A row of K numbers, reshaped to (K, 1), and then each made a unit vector of one "
            "entry: what can it be?",
            "What is a map? One number for each place, whatever the number of channels. Does your "
            "code ask for places at all?",
        ],
    ),
    "attention_loss": Exercise(
        title="write the loss",
        task="Write `my_own_attention_loss(student, teacher, beta, p)` in the "
        "paper's form: β/2 Σ ‖q_S − q_T‖₂ over the layers, mean over the images. `student` and "
        "`teacher` are lists of (N, C, H, W), with channels of their own. The teacher gets no "
        "gradient.",
        kind="write",
        difficulty=2,
        minutes=10,
        core=True,
        reference=loss_of_the_paper,
        draw=_for_loss,
        see=value_and_gradients,
        mistakes=[
            (
                "the maps are not unit vectors, so a loud layer outweighs the others.",
                _loss(_norms, unit=lambda q: q),
            ),
            (
                "the sum is over the batch; it should be a mean over the images.",
                _loss(lambda a, b, p: _norms(a, b, p) * len(a)),
            ),
            (
                "beta has no effect.",
                lambda student, teacher, beta, p: _plain(student, teacher, 1, p),
            ),
            ("the half is missing.", _loss(lambda a, b, p: 2 * _norms(a, b, p))),
            (
                "the norm is squared; the paper's is not.",
                _loss(lambda a, b, p: (a - b).square().sum(1).mean()),
            ),
            (
                "this is the official code's form, a mean of squares; the paper has the norm "
                "itself.",
                _loss(lambda a, b, p: 2 * (a - b).square().mean()),
            ),
            (
                "the norm has the map's p, as the slide writes it; it is a 2-norm.",
                _loss(lambda a, b, p: torch.linalg.vector_norm(a - b, ord=p, dim=1).mean()),
            ),
            (
                "one norm is taken over the whole batch; take one for each image, then their mean.",
                _loss(lambda a, b, p: (a - b).norm()),
            ),
            (
                "it is a mean over the layers; the paper sums them.",
                _loss(lambda a, b, p: _norms(a, b, p) / 2),
            ),
            (
                "the teacher gets a gradient; it must not learn from its student. Detach its "
                "features.",
                _loss(_norms, taught=True),
            ),
            (
                "where both maps are equal the gradient is not a number: the slope of the root at "
                "0. `torch.linalg.vector_norm` takes 0.",
                _loss(lambda a, b, p: (a - b).square().sum(1).sqrt().mean()),
            ),
        ],
        hints=[
            "Use your map for both sides.",
            "`.detach()` the teacher's, and take one norm for each image: `dim=1`.",
        ],
    ),
    "grad_cam": Exercise(
        title="Grad-CAM",
        task="Write `my_own_grad_cam(A, head, classes)`. `A` (N, C, H, W) are a "
        "layer's activations, `head` is the rest of the network and turns them into logits (N, "
        "K), `classes` (N,) what is asked for. Returns the maps, (N, H, W).",
        kind="write",
        difficulty=3,
        minutes=12,
        reference=cam_of_head,
        axes=("image", "row", "column"),
        draw=_for_cam,
        see=on_a_small_network,
        mistakes=[
            (
                "the gradients are cut off below 0. The ReLU belongs at the end, over the sum.",
                _cam(lambda g: _mean(g.relu())),
            ),
            (
                "the channels' weights are cut off below 0; channels that speak against the class "
                "count too.",
                _cam(lambda g: _mean(g).relu()),
            ),
            (
                "the score is a probability. Take the logit: a softmax mixes in the other classes.",
                _cam(scores=lambda z: z.softmax(1)),
            ),
            (
                "the score is a log-probability. Take the logit: a softmax mixes in the other "
                "classes.",
                _cam(scores=lambda z: z.log_softmax(1)),
            ),
            ("the ReLU at the end is missing.", _cam(final=lambda m: m)),
            (
                "the end is an absolute value; what speaks against the class should be 0.",
                _cam(final=torch.abs),
            ),
            (
                "the weights are sums over the places; the paper has means.",
                _cam(lambda g: g.sum((2, 3), keepdim=True)),
            ),
            (
                "each place has a weight of its own. A channel has one, the mean over all places.",
                _cam(lambda g: g),
            ),
            ("all classes are added up; only the one that is asked for counts.", _cam(asked=False)),
            (
                "the absolute value of the weights is taken; their sign says for or against.",
                _cam(lambda g: _mean(g).abs()),
            ),
        ],
        hints=[
            "`A` has no gradient yet: `A = A.detach().requires_grad_()`.",
            "`head(A).gather(1, classes[:, None]).sum()` is one number for the whole batch; "
            "differentiate it by `A` once.",
            "Weights: the gradient's mean over (2, 3). Map: the weighted sum over the channels, "
            "then a ReLU.",
        ],
    ),
    "guided_relu": Exercise(
        title="a guided ReLU",
        task="Complete `my_guided_relu(x, gradient)`: what guided backpropagation hands down "
        "through a ReLU with input `x`, when `gradient` comes from above.",
        kind="complete",
        difficulty=1,
        minutes=3,
        reference=guided_relu,
        axes=("row", "column"),
        draw=_for_relu,
        mistakes=[
            (
                "this is plain backpropagation: negative gradients pass.",
                lambda x, gradient: gradient * (x > 0),
            ),
            (
                "this is the deconvolutional network's rule: it forgets where the input was "
                "negative.",
                lambda x, gradient: gradient.relu(),
            ),
            (
                "the signs of input and gradient must be positive each; their product is not "
                "enough.",
                lambda x, gradient: gradient * (x * gradient > 0),
            ),
            ("this is the input, not the gradient.", lambda x, gradient: x.relu() * (gradient > 0)),
        ],
        hints=["Two conditions, one on `x` and one on `gradient`."],
    ),
}
