r"""Matching Jacobians: a student answers as its teacher does, and changes its answer alike.

The **Jacobian** :math:`J = \partial y / \partial x` says how each of K outputs moves with each
pixel. **Sobolev training** matches values and derivatives of student S and teacher T. All of J
costs a backward pass for each output; a random direction v costs one, and is right on average:

.. math:: \mathcal{L} = \lVert S - T \rVert^2 + \lambda\, \lVert J_S - J_T \rVert_F^2,
    \qquad \lVert J \rVert_F^2 = E_v \lVert v^\top J \rVert^2

Of a classifier **one row** is matched, as a unit vector: that of the class c the teacher chose.

.. math:: \mathcal{L} = \Big\lVert \frac{J_S^c}{\lVert J_S^c \rVert_2}
    - \frac{J_T^c}{\lVert J_T^c \rVert_2} \Big\rVert^2

The lecture calls this distillation with noise :math:`\xi \sim N(0, \sigma^2 I)` on the inputs. With
:math:`g = S - T`, and :math:`H_i` the Hessian of its output i,

.. math:: E_\xi \lVert g(x + \xi) \rVert^2 = \lVert g \rVert^2 + \sigma^2 \Big( \lVert J_g
    \rVert_F^2 + \sum_i g_i\, \mathrm{tr}\, H_i \Big) + O(\sigma^4).

The paper leaves out the last term, which is of the same order: rightly for what is linear nearby,
or where the student agrees already.

One backward pass, of the sum of a batch's outputs, gives the rows of all samples, if samples do not
see each other. So a **probe** goes along: one more sample, left out of the sum. If the sum still
depends on it, an error says so. Not found is what has no derivative (a mean that is detached), and
what the probe has no part in (a maximum that it does not reach, groups that it is not in).

Czarnecki et al. 2017, "Sobolev training for neural networks"; Srinivas and Fleuret 2018, "Knowledge
transfer with Jacobian matching".
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tlcourse.methods._checks import (
    expect,
    expect_counts,
    expect_floating,
    expect_labels,
    expect_same_shape,
    expect_weight,
    wide,
)
from tlcourse.methods.attention import attention_map
from tlcourse.methods.saliency import _expect_one_map, _expect_tensor, _find

SHORTEST = 1e-12  # what a shorter row is divided by
Along = Literal["sphere", "gaussian"]
Model = Callable[[Tensor], Any]
Part = str | nn.Module
Inputs = tuple[Tensor, Tensor]  # the samples, and the probe


def class_jacobian(model: Model, x: Tensor, classes: Tensor, create_graph: bool = False) -> Tensor:
    r""":math:`J^c = \partial y_c / \partial x`: how the logit of each sample's class moves.

    x: (N, …), floating point; classes: (N,) whole numbers in [0, K), the teacher's choice for both
    networks. Returns one like x. create_graph: for a student, so that J can be differentiated by
    the weights; a teacher's rows can be recorded once. The model gives logits (N, K). It is run in
    the mode it is in, on N + 1 inputs, the last the probe; x and the model's gradients stay
    untouched. Raises ValueError for whole numbers as pixels, no sample, classes that do not fit, an
    answer that is no logits or does not depend on x, and a model that mixes samples, as BatchNorm
    in training mode does. Srinivas and Fleuret 2018, equation 10.
    """
    return logits_and_jacobian(model, x, classes, create_graph)[1]


def logits_and_jacobian(
    model: Model, x: Tensor, classes: Tensor, create_graph: bool = False
) -> tuple[Tensor, Tensor]:
    """The logits (N, K) too, of the same pass: a loss on both needs no second one.

    The rest is as for `class_jacobian`; with create_graph the logits have a gradient as well.
    """
    with torch.inference_mode(False), torch.enable_grad():
        answer, inputs = _ask(model, x)
        logits = _samples(answer, x)
        J = _row(logits, "classes", classes, inputs, create_graph)
    return logits if create_graph else logits.detach(), J


def attention_jacobian(
    model: nn.Module, layer: Part, x: Tensor, create_graph: bool = False, at: Tensor | None = None
) -> Tensor:
    r""":math:`\partial Q_{hw} / \partial x`, the map :math:`Q = \sum_c A_c^2` where it is largest.

    layer: a module of the model that gives A, (N, C, H, W), or its name. at: (N,) places h·W + w.
    Without it each network takes the largest pixel of its own, since maps may differ in size; where
    they do not, the student can be given the teacher's, `attention_map(A).flatten(1).argmax(1)`.
    The choice is not differentiated. The rest is as for `class_jacobian`; raises ValueError also
    for a layer that is not there, not met exactly once or gives something else, and places that do
    not fit. Srinivas and Fleuret 2018, on transfer learning.
    """
    part, name = _find(model, layer)
    taken: list[Tensor] = []

    def take(module: Any, inputs: Any, output: Any) -> None:
        _expect_tensor(output, name)
        taken.append(output.clone())  # what follows may work in place

    with part.register_forward_hook(take), torch.inference_mode(False), torch.enable_grad():
        _, inputs = _ask(model, x)
        _expect_one_map(taken, name)
        Q = attention_map(_samples(taken[0], x)).flatten(1)
        return _row(Q, "at", Q.argmax(1) if at is None else at, inputs, create_graph)


def jacobian_loss(J_student: Tensor, J_teacher: Tensor) -> Tensor:
    r""":math:`\lVert J_S / \lVert J_S \rVert - J_T / \lVert J_T \rVert \rVert^2`, batch mean.

    Both (N, …), from the functions above. Each row is divided by max(‖J‖₂, 1e-12). Squares are
    summed over the pixels (public code takes their mean), so the loss lies between 0 and 4. The
    teacher gets no gradient; nor does a row below 1e-12, as of a dead network: it has no direction,
    and its slope would be 1e12. Raises ValueError for whole numbers, and rows that are empty or
    differ in shape. Srinivas and Fleuret 2018, equation 10.
    """
    expect_same_shape("both Jacobians", J_student, J_teacher)
    expect_floating("J_student", J_student)
    expect_floating("J_teacher", J_teacher)
    shape = tuple(J_student.shape)
    expect(len(shape) > 1 and 0 not in shape, f"Jacobians must be (N, …), not empty, got {shape}")
    return (_unit(J_student) - _unit(J_teacher.detach())).square().sum(1).mean()


def sobolev_loss(
    student: Model,
    teacher: Model,
    x: Tensor,
    projections: int | None = 1,
    *,
    along: Along = "sphere",
    weight: float = 1.0,
) -> Tensor:
    r""":math:`\lVert S - T \rVert^2 + \lambda \lVert J_S - J_T \rVert_F^2`, batch mean.

    student, teacher: networks or functions, from x, (N, …), to K numbers a sample, (N,) or (N, …).
    weight: λ; 0 is values alone. projections: along how many random directions derivatives are
    compared, each sample's its own, from torch's global random numbers; unbiased. None: exactly, a
    backward pass for each output. along: directions of length √K, or Gaussian ones, which vary
    more. The teacher gets no gradient. Raises ValueError for numbers out of range, answers that
    differ in size, and what `class_jacobian` refuses. Czarnecki et al. 2017, section 2.
    """
    _expect_plan(projections, along, weight)
    training = torch.is_grad_enabled()
    with torch.inference_mode(False), torch.enable_grad():
        (S, ours), (T, theirs) = _ask(student, x), _ask(teacher, x)
        S, T = (wide(_samples(y, x)).reshape(len(x), -1) for y in (S, T))
        expect_same_shape("answers of student and teacher", S, T)
        loss = (S - T.detach()).square().sum(1)
        for v in _directions(S, projections, along) if weight else ():
            J_S, J_T = _gradient((v * S).sum(), ours, training), _gradient((v * T).sum(), theirs)
            loss = loss + weight * (wide(J_S) - wide(J_T)).flatten(1).square().sum(1)
        return loss.mean() if training else loss.mean().detach()


def _ask(model: Model, x: Tensor) -> tuple[Any, Inputs]:
    """What a model says of the samples and the probe, and these, to differentiate by."""
    expect_floating("x", x)
    expect(x.ndim > 0 and len(x) > 0, f"x must be (N, …), not empty, got {tuple(x.shape)}")
    _expect_averages(model)
    probe = x.detach()[:1] / 2  # no twin: what is normalised over two of them is constant
    inputs = x.detach().clone().requires_grad_(), probe.requires_grad_()
    return model(torch.cat(inputs)), inputs


def _samples(answer: Any, x: Tensor) -> Tensor:
    """An answer without that of the probe, which comes last."""
    kind = tuple(answer.shape) if isinstance(answer, Tensor) else type(answer).__name__
    fits = isinstance(answer, Tensor) and answer.ndim > 0 and len(answer) == len(x) + 1
    expect(fits, f"one entry must come for each of {len(x) + 1} inputs (one a probe), got {kind}")
    return answer[:-1]


def _row(scores: Tensor, name: str, chosen: Tensor, inputs: Inputs, create_graph: bool) -> Tensor:
    """The gradient of a chosen one of each sample's scores, (N, K)."""
    expect_labels(chosen, scores, name)
    index = chosen.to(scores.device, torch.int64, copy=True)[:, None]
    return _gradient(scores.gather(1, index).sum(), inputs, create_graph)


def _gradient(score: Tensor, inputs: Inputs, create_graph: bool = False) -> Tensor:
    """By the samples. By the probe it is 0, or samples mix; to know, a GPU is waited for."""
    J: Any = None
    if score.requires_grad:
        J, leak = torch.autograd.grad(
            score, inputs, retain_graph=True, create_graph=create_graph, allow_unused=True
        )
    expect(J is not None, "what the model says must depend on x")
    expect(not (leak.abs() > 0).any(), f"the model {MIXES}")
    return J


def _unit(J: Tensor) -> Tensor:
    rows = wide(J).flatten(1)
    squares = rows.square().sum(1, keepdim=True)
    rows = torch.where(squares > SHORTEST**2, rows, rows.detach())
    return rows / squares.clamp_min(SHORTEST**2).sqrt()


def _directions(S: Tensor, projections: int | None, along: Along) -> Tensor:
    """(M, N, K) or (M, 1, K), scaled so that Σ_M ‖vᵀJ‖² is ‖J‖_F², on average or exactly."""
    N, K = S.shape
    if projections is None:
        return torch.eye(K, dtype=S.dtype, device=S.device)[:, None]
    v = torch.randn(projections, N, K, dtype=S.dtype, device=S.device) / projections**0.5
    return v if along == "gaussian" else F.normalize(v, dim=2) * (K / projections) ** 0.5


MIXES = (
    "mixes the samples of a batch, so no row is of one sample alone: let BatchNorm use its running "
    "averages (eval mode, or freeze it), or take GroupNorm"
)


def _expect_averages(model: Model) -> None:
    """BatchNorm is found before it runs, for then its averages move."""
    for name, part in model.named_modules() if isinstance(model, nn.Module) else ():
        if isinstance(part, _BatchNorm):
            uses = not part.training and part.running_mean is not None
            expect(uses, f"the layer {name!r} {MIXES}")


def _expect_plan(projections: int | None, along: Along, weight: float) -> None:
    many = 1 if projections is None else projections
    expect_counts("projections must be None or a whole number", many)
    expect(along in ("sphere", "gaussian"), f"along must be 'sphere' or 'gaussian', got {along!r}")
    expect_weight("weight", weight)
