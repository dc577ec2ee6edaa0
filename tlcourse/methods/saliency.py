r"""Seeing what a network looks at: Grad-CAM and guided backpropagation.

**Grad-CAM** asks a convolutional layer: which of your channels speak for class c, and where are
they active? A channel's weight is the mean of the gradient of the class's logit over all places:

.. math:: \alpha_k^c = \frac{1}{HW} \sum_{h,w} \frac{\partial y^c}{\partial A^k_{h,w}}, \qquad
    L^c = \mathrm{ReLU}\Big(\sum_k \alpha_k^c A^k\Big)

Letters: A^k is channel k of the layer, (H, W); y^c the logit of class c before the softmax; L^c a
map as coarse as the layer.

**Guided backpropagation** asks the pixels. It is the gradient of the logit by the image, with one
change: at every ReLU, what is negative on its way back is dropped.

.. math:: R^l = 1[f^l > 0] \cdot 1[R^{l+1} > 0] \cdot R^{l+1}

Its pictures are sharp and pretty. Whether they say anything about the class is another question.

Selvaraju et al. 2017, "Grad-CAM"; Springenberg et al. 2015, "Striving for simplicity".
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tlcourse.methods._checks import expect


def grad_cam(model: nn.Module, layer: str, x: Tensor, classes: Tensor | int) -> Tensor:
    r""":math:`L^c` for every image, at the layer's resolution. x: (N, …). Returns (N, h, w), each
    >= 0, without gradient.

    layer: name of a module in model.named_modules() that gives (N, C, h, w). classes: (N,) int64,
    or one for all. The model, which gives logits (N, K), is run in eval mode and left as it was.
    Raises ValueError for a layer that is not there, is not met exactly once, gives something else
    or does not reach the logits, and for classes that do not fit. Selvaraju et al. 2017, equations
    1 and 2.
    """
    part = dict(model.named_modules()).get(layer) if layer else None
    expect(
        part is not None,
        f"the model has no layer {layer!r}; it has {', '.join(name for name, _ in model.named_modules() if name)}",
    )
    taken: list[Tensor] = []

    def take(module: Any, inputs: Any, output: Any) -> Tensor:
        expect(
            isinstance(output, Tensor),
            f"the layer {layer!r} must give a tensor, got {type(output).__name__}",
        )
        taken.append(output.detach().requires_grad_())
        return taken[-1].clone()  # what follows may work in place

    assert part is not None
    hook = part.register_forward_hook(take)
    try:
        with _evaluating(model):
            score = _score(model, x.detach().clone(), classes)
            expect(
                len(taken) == 1,
                f"the layer {layer!r} must be met once in a forward pass, it was met {len(taken)} times",
            )
            A = taken[0]
            expect(A.ndim == 4, f"the layer {layer!r} must give (N, C, H, W), got {tuple(A.shape)}")
            gradient: Any = (
                torch.autograd.grad(score, A, allow_unused=True)[0] if score.requires_grad else None
            )
            expect(
                gradient is not None,
                f"the layer {layer!r} must reach the logits, and they do not depend on it",
            )
    finally:
        hook.remove()
    alpha = gradient.mean((2, 3), keepdim=True)
    return (alpha * A.detach()).sum(1).relu()


def guided_backprop(model: nn.Module, x: Tensor, classes: Tensor | int) -> Tensor:
    """The gradient of the class's logit by the pixels, with what is negative dropped on its way
    back at every ReLU. Returns one like x.

    x: (N, …); classes: (N,) int64, or one for all. ReLU and ReLU6 are met wherever they are called,
    as modules, functions or in place; the model, which gives logits (N, K), is run in eval mode and
    left as it was. Raises ValueError for classes that do not fit, and for a model that computes no
    ReLU or another nonlinearity, for which the rule is not defined: one that torch differentiates
    as such, not a product like x·(x > 0). Springenberg et al. 2015, figure 1.
    """
    with _evaluating(model):
        pixels = x.detach().clone().requires_grad_()
        with _Guided():
            score = _score(model, pixels.clone(), classes)
        computed = _computed(score)
        others = sorted(computed & _NONLINEAR)
        expect(
            not others,
            f"guided backpropagation is defined for ReLUs, and this model computes {', '.join(others)}",
        )
        expect(
            "_Rectified" in computed,
            "guided backpropagation needs a model with ReLUs, and this one computes none",
        )
        return torch.autograd.grad(score, pixels)[0]


def guided_grad_cam(model: nn.Module, layer: str, x: Tensor, classes: Tensor | int) -> Tensor:
    """Guided backpropagation times Grad-CAM, the map enlarged (bilinear) to the image. x: (N, C, H,
    W). Returns a tensor like x.

    Arguments and errors are those of `grad_cam` and `guided_backprop`. Selvaraju et al. 2017,
    section 3.2.
    """
    coarse = grad_cam(model, layer, x, classes)[:, None]
    return guided_backprop(model, x, classes) * F.interpolate(
        coarse, x.shape[2:], mode="bilinear", align_corners=False
    )


def _score(model: nn.Module, x: Tensor, classes: Tensor | int) -> Tensor:
    """The sum over the batch of each image's logit of its class. In eval mode images do not see
    each other, so one gradient serves all.
    """
    logits, asked = model(x), torch.as_tensor(classes)
    expect(
        isinstance(logits, Tensor) and logits.ndim == 2,
        "the model must give logits of shape (N, K)",
    )
    expect(
        len(logits) == len(x),
        f"the model must give one row of logits for each of {len(x)} images, got {len(logits)}",
    )
    fits = asked.dtype in (torch.int32, torch.int64) and asked.shape in ((), (1,), (len(x),))
    expect(
        fits,
        f"classes must be one whole number or one for each of {len(x)} images, got {tuple(asked.shape)}, {asked.dtype}",
    )
    chosen = asked.to(logits.device, torch.int64, copy=True).expand(len(logits))
    low, high = (int(chosen.min()), int(chosen.max())) if len(chosen) else (0, 0)
    expect(
        low >= 0 and high < logits.shape[1],
        f"classes must be in 0 … {logits.shape[1] - 1}, got {low if low < 0 else high}",
    )
    return logits.gather(1, chosen[:, None]).sum()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode and with gradients; afterwards every part is in the mode it was in."""
    modes = [(part, part.training) for part in model.modules()]
    try:
        model.eval()
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        for part, training in modes:  # parents first, so that parts which differ come after
            if part.training != training:
                part.train(training)


class _Rectified(torch.autograd.Function):
    """min(max(x, 0), top), in place if asked to, whose way back lets only positive gradients
    through.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float, inplace: bool) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < top))
        if inplace:
            ctx.mark_dirty(x)
            return x.clamp_(0, top)
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passes,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * passes, None, None


_PLAIN = (F.relu, torch.relu, Tensor.relu)
_IN_PLACE = (F.relu_, torch.relu_, Tensor.relu_)
_CAPPED = (F.relu6, F.hardtanh, F.hardtanh_)
# As autograd calls them. Max-pooling is not among them: it passes on what it chose.
_NONLINEAR = {
    *(
        "Abs",
        "Celu",
        "Clamp",
        "ClampMax",
        "ClampMin",
        "Elu",
        "Gelu",
        "Glu",
        "Hardshrink",
        "Hardsigmoid",
    ),
    *(
        "Hardswish",
        "Hardtanh",
        "LeakyRelu",
        "LogSigmoid",
        "MaskedFill",
        "Maximum",
        "Minimum",
        "Mish",
        "PreluKernel",
    ),
    *(
        "Relu",
        "RreluWithNoise",
        "Sigmoid",
        "Silu",
        "Softmax",
        "Softplus",
        "Softshrink",
        "Tanh",
        "Threshold",
        "Where",
    ),
}


def _computed(score: Tensor) -> set[str]:
    """What was computed on the way to a score, in autograd's words without "Backward" and a digit."""
    found, todo = set(), [score.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [before for before, _ in node.next_functions]
    return {node.name().split("Backward")[0] for node in found}


class _Guided(TorchFunctionMode):
    """While it is on, every ReLU that is called is a `_Rectified`. The model is not touched."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        x = _argument(0, "input", None, args, kwargs)
        if func in _PLAIN or func in _IN_PLACE:
            return _Rectified.apply(
                x, torch.inf, func in _IN_PLACE or _argument(1, "inplace", False, args, kwargs)
            )
        if func in _CAPPED:
            relu6 = func is F.relu6
            low, top = (
                (0, 6)
                if relu6
                else (
                    _argument(i, name, d, args, kwargs)
                    for i, name, d in ((1, "min_val", -1), (2, "max_val", 1))
                )
            )
            if low == 0:
                return _Rectified.apply(
                    x,
                    top,
                    func is F.hardtanh_
                    or _argument(1 if relu6 else 3, "inplace", False, args, kwargs),
                )
        return func(*args, **kwargs)


def _argument(
    place: int, name: str, default: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """An argument of a call, wherever it was given."""
    return args[place] if len(args) > place else kwargs.get(name, default)
