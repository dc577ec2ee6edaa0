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

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from tlcourse.methods._checks import WHOLE, expect, expect_floating
from tlcourse.methods.fine_tuning import set_modes


def grad_cam(model: nn.Module, layer: str | nn.Module, x: Tensor, classes: Tensor | int) -> Tensor:
    r""":math:`L^c` for every image, at the layer's resolution.

    x: (N, …), floating point. Returns (N, h, w), each >= 0, without gradient. layer: a module of
    the model that gives (N, C, h, w), or its name in model.named_modules(). classes: (N,) whole
    numbers, or one for all. The model, which gives logits (N, K), is run in eval mode and left as
    it was. Raises ValueError for whole numbers as pixels, a layer that is not there, is not met
    exactly once, gives something else or does not reach the logits, and for classes that do not
    fit. Selvaraju et al. 2017, equations 1 and 2.
    """
    expect_floating("x", x)
    part, name = _find(model, layer)
    taken: list[Tensor] = []

    def take(module: Any, inputs: Any, output: Any) -> Tensor:
        _expect_tensor(output, name)
        taken.append(output.detach().requires_grad_())
        return taken[-1].clone()  # what follows may work in place

    hook = part.register_forward_hook(take)
    try:
        with _evaluating(model):
            score = _score(model, x.detach().clone(), classes)
            _expect_one_map(taken, name)
            gradient: Any = None
            if score.requires_grad:
                gradient = torch.autograd.grad(score, taken[0], allow_unused=True)[0]
            expect(gradient is not None, f"the logits must depend on the layer {name!r}")
    finally:
        hook.remove()
    alpha = gradient.mean((2, 3), keepdim=True)
    return (alpha * taken[0].detach()).sum(1).relu()


def guided_backprop(model: nn.Module, x: Tensor, classes: Tensor | int) -> Tensor:
    """The gradient of the class's logit by the pixels, negative parts dropped at every ReLU.

    x: (N, …), floating point; classes: (N,) whole numbers, or one for all. Returns one like x. ReLU
    and ReLU6 are met wherever they are called, as modules, functions or in place; the model, which
    gives logits (N, K), is run in eval mode and left as it was. Raises ValueError for whole numbers
    as pixels, classes that do not fit, and a model that computes no ReLU or, on the way from the
    pixels to the logits, anything else than `LINEAR`: the rule is not defined for it. What torch
    does not differentiate, as the condition in x·(x > 0), is not seen.
    Springenberg et al. 2015, figure 1.
    """
    expect_floating("x", x)
    with _evaluating(model):
        pixels = x.detach().clone().requires_grad_()
        with _Guided() as guide:
            score = _score(model, pixels.clone(), classes)
        _expect_only_relus(score, guide.hidden)
        return torch.autograd.grad(score, pixels)[0]


def guided_grad_cam(
    model: nn.Module, layer: str | nn.Module, x: Tensor, classes: Tensor | int
) -> Tensor:
    """Guided backpropagation times Grad-CAM, the map enlarged (bilinear) to the image.

    x: (N, C, H, W). Returns a tensor like x. Arguments and errors are those of `grad_cam` and
    `guided_backprop`. Selvaraju et al. 2017, section 3.2.
    """
    coarse = grad_cam(model, layer, x, classes)[:, None]
    fine = F.interpolate(coarse, x.shape[2:], mode="bilinear", align_corners=False)
    return guided_backprop(model, x, classes) * fine


def _find(model: nn.Module, layer: str | nn.Module) -> tuple[nn.Module, str]:
    """A layer inside a model, and its name there."""
    inside = {name: part for name, part in model.named_modules(remove_duplicate=False) if name}
    names = [name for name, part in inside.items() if layer in (name, part)]
    asked = repr(layer) if isinstance(layer, str) else f"that is this {type(layer).__name__}"
    expect(len(names) > 0, f"the model has no layer {asked}; it has {', '.join(inside)}")
    return inside[names[0]], names[0]


def _score(model: nn.Module, x: Tensor, classes: Tensor | int) -> Tensor:
    """The sum over the batch of each image's logit of its class.

    In eval mode images do not see each other, so one gradient serves all.
    """
    logits, asked = model(x), torch.as_tensor(classes)
    _expect_classes(logits, asked, len(x))
    chosen = asked.to(logits.device, torch.int64, copy=True).expand(len(logits))
    _expect_inside(chosen, logits)
    return logits.gather(1, chosen[:, None]).sum()


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode, with gradients by the input alone; afterwards every part is as it was."""
    modes = [(part, part.training) for part in model.modules()]
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        set_modes((part, False) for part, _ in modes)
        for parameter in learning:
            parameter.requires_grad_(False)
        with torch.inference_mode(False), torch.enable_grad():
            yield
    finally:
        set_modes(modes)
        for parameter in learning:
            parameter.requires_grad_()


class _Rectified(torch.autograd.Function):
    """min(max(x, 0), top), whose way back lets only positive gradients through."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, top: float) -> Tensor:
        ctx.save_for_backward((x > 0) & (x < top))
        return x.clamp(0, top)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (passes,) = ctx.saved_tensors
        return gradients[0].clamp(min=0) * passes, None


class _Guided(TorchFunctionMode):
    """While it is on, every ReLU that is called is a `_Rectified`. The model is not touched.

    hidden: what was done in place to a part of a tensor, which autograd does not name.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hidden: set[str] = set()

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        kwargs = dict(kwargs or {})
        x, top = _argument(0, "input", None, args, kwargs), _top(func, args, kwargs)
        if top is not None:
            rectified = _Rectified.apply(x, top)
            return x.copy_(rectified) if _in_place(func, args, kwargs) else rectified
        part = isinstance(x, Tensor) and not x.is_inference() and x._is_view()
        before = x._version if part else 0
        result = func(*args, **kwargs)
        if part and x._version > before and func.__name__ not in _COPIES:
            self.hidden.add(func.__name__)
        return result


_RELUS = (F.relu, torch.relu, Tensor.relu, F.relu_, torch.relu_, Tensor.relu_)
_COPIES = ("copy_", "add_", "sub_", "zero_", "fill_", "__setitem__")  # linear, whatever the part


def _top(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> float | None:
    """Where a call of a ReLU ends; None for other calls."""
    if func in _RELUS:
        return torch.inf
    if func is F.relu6:
        return 6
    if func in (F.hardtanh, F.hardtanh_) and _argument(1, "min_val", -1, args, kwargs) == 0:
        return _argument(2, "max_val", 1, args, kwargs)
    return None


def _in_place(func: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
    place = 3 if func is F.hardtanh else 1
    return func.__name__.endswith("_") or _argument(place, "inplace", False, args, kwargs)


def _argument(
    place: int, name: str, default: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """An argument of a call, wherever it was given."""
    return args[place] if len(args) > place else kwargs.get(name, default)


# As autograd calls them. Those that choose, as max-pooling, pass on what they chose.
SUMS = re.compile("Add|Sub|Rsub|Cat|Stack|Copy|CopySlices|IndexPut")
LINEAR = re.compile(
    r"""AccumulateGrad|_Rectified|Neg|Mul|Div|Dot|Mv|Mm|Bmm|(Add|Addb|Baddb)m[mv]|Linear
    |(Cudnn)?Convolution|(Native|Cudnn|Miopen)?BatchNorm|NativeDropout|Cumsum|Mean|Sum
    |((Adaptive|Fractional)?(Avg|Max)Pool|MaxUnpool|(Constant|Reflection|Replication)Pad)\w*
    |Max|Amax|Upsample\w*|Pixel(Uns|S)huffle|ChannelShuffle|Gather|Take|Index(Select)?|Slice|Select
    |(Unsafe)?(View|Split)(WithSizes)?|Unbind|Reshape(Alias)?|(Uns|S)queeze|Alias|AsStrided|Clone
    |Contiguous|ToCopy|T|Transpose|Permute|Expand|Repeat|Flip|Roll|Rot90|Unfold|Im2Col|Col2Im
    |Diagonal|Tril|Triu""",
    re.VERBOSE,
)


def _computed(score: Tensor) -> set[Any]:
    """The steps on the way to a score. Nothing but the input has a gradient here."""
    found, todo = set(), [score.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in found:
            found.add(node)
            todo += [before for before, _ in node.next_functions]
    return found


def _name(node: Any) -> str:
    return node.name().split("::")[-1].split("Backward")[0]


def _obstacle(node: Any) -> str:
    """Why a step is no linear one and no ReLU; empty if it is one."""
    name, inputs = _name(node), [before is not None for before, _ in node.next_functions]
    if SUMS.fullmatch(name):
        return ""
    if not LINEAR.fullmatch(name) or getattr(node, "_saved_rounding_mode", None):
        return name
    if sum(inputs) > 1 or (name == "Div" and not inputs[0]):
        return f"{name} by what depends on x"
    return f"{name} with statistics of the batch" if getattr(node, "_saved_training", False) else ""


def _expect_only_relus(score: Tensor, hidden: set[str]) -> None:
    steps = _computed(score)
    others = {_obstacle(step) for step in steps} | {f"{name} on a part" for name in hidden}
    what = ", ".join(sorted(others - {""}))
    expect(not what, f"guided backpropagation is defined for ReLUs, and this model computes {what}")
    relus = any(_name(step) == "_Rectified" for step in steps)
    expect(relus, "guided backpropagation needs a model with ReLUs, and this one computes none")


def _expect_tensor(output: Any, layer: str) -> None:
    kind = type(output).__name__
    expect(isinstance(output, Tensor), f"the layer {layer!r} must give a tensor, got {kind}")


def _expect_one_map(taken: list[Tensor], layer: str) -> None:
    many = f"it was met {len(taken)} times"
    expect(len(taken) == 1, f"the layer {layer!r} must be met once in a forward pass, {many}")
    shape = tuple(taken[0].shape)
    expect(len(shape) == 4, f"the layer {layer!r} must give (N, C, H, W), got {shape}")


def _expect_classes(logits: Any, asked: Tensor, images: int) -> None:
    rows = isinstance(logits, Tensor) and logits.ndim == 2
    expect(rows, "the model must give logits of shape (N, K)")
    given = f"for each of {images} images, got {len(logits)}"
    expect(len(logits) == images, f"the model must give one row of logits {given}")
    fits = asked.dtype in WHOLE and asked.shape in ((), (1,), (images,))
    given = f"for each of {images} images, got {tuple(asked.shape)}, {asked.dtype}"
    expect(fits, f"classes must be one whole number or one {given}")


def _expect_inside(chosen: Tensor, logits: Tensor) -> None:
    low, high = (int(end) for end in chosen.aminmax()) if len(chosen) else (0, 0)
    last, wrong = logits.shape[1] - 1, low if low < 0 else high
    expect(low >= 0 and high <= last, f"classes must be in 0 … {last}, got {wrong}")
