r"""Fine-tuning: begin where another task ended, and decide what may move.

The source's weights :math:`\theta_S` are the starting point and a new head replaces the old one.
Then there are three choices: train all of it, train it with smaller steps below than above, or
**freeze** the lower part and use it as it is.

Freezing is more than `requires_grad = False`. A frozen BatchNorm still moves its running averages
in training mode, and a frozen Dropout still drops; an optimizer with momentum or weight decay still
moves a weight whose gradient is zero rather than None. Frozen here means that parameters and
buffers stay as they are, bit by bit.

Yosinski et al. 2014, "How transferable are features in deep neural networks?"; Howard and Ruder
2018, section 3.2 (rates by layer).
"""

from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, TypeVar

from torch import nn
from torch.nn.modules.conv import _ConvNd

from tlcourse.methods._checks import expect

Model = TypeVar("Model", bound=nn.Module)


class _Frozen:
    """What a module was before it was frozen, and its `train` until it is unfrozen."""

    def __init__(self, part: nn.Module) -> None:
        self.part, self.training = part, part.training
        own = part.named_parameters(recurse=False)
        self.learnt = [name for name, parameter in own if parameter.requires_grad]
        self.hook = part.register_forward_pre_hook(_in_eval_mode, prepend=True)

    def __call__(self, mode: bool = True) -> nn.Module:
        """Instead of switching over, stay in eval mode."""
        return self.part


def freeze(module: Model) -> Model:
    """Keep parameters and buffers as they are, whatever train(), an optimizer or deepcopy do.

    Returns the same module. It then stays in eval mode: no dropout, BatchNorm with its running
    averages. Gradients still flow through it to what lies below. Modules that are frozen already
    stay so; one that another module holds as well is frozen there, too. Undone by `unfreeze`.
    """
    new = {part: _Frozen(part) for part in module.modules() if not _frozen(part)}
    set_modes((part, False) for part in new)
    for part, frozen in new.items():
        vars(part)["train"] = frozen
    for parameter in module.parameters():
        parameter.requires_grad_(False)
        parameter.grad = None  # with a gradient of 0, momentum and weight decay still move it
    return module


def unfreeze(module: Model) -> Model:
    """Undo `freeze`: parameters can be trained as before, modes are as before. Returns module."""
    modes = {part: part.training for part in module.modules()}
    for part in modes:
        if frozen := _frozen(part):
            del vars(part)["train"]
            frozen.hook.remove()
            modes[part] = frozen.training
            for name, parameter in part.named_parameters(recurse=False):
                parameter.requires_grad_(parameter.requires_grad or name in frozen.learnt)
    set_modes(modes.items())
    return module


def set_modes(modes: Iterable[tuple[nn.Module, bool]]) -> None:
    """Put each part in training (True) or eval mode, those above first, as `modules()` gives them.

    A part that does something of its own when its mode changes is told, once.
    """
    for part, training in modes:
        if part.training != training:
            if type(part).train is nn.Module.train:
                part.training = training  # the parts below have modes of their own
            else:
                part.train(training)


def replace_head(model: Model, classes: int) -> Model:
    """Put a new linear layer for another number of classes where the last one was.

    Returns the same model. The last linear layer is the last in the order of `named_modules`; the
    new one is randomly initialised and has its input, bias, device and dtype. Raises ValueError for
    classes below 1, a model without a linear layer, one that ends in a convolution, and one with
    several layers that could be its heads: as many outputs, which no linear layer takes.
    """
    expect(classes >= 1, f"classes must be >= 1, got {classes}")
    places = list(model.named_modules(remove_duplicate=False))  # a layer may be at several
    layers = {part: name for name, part in places if name and isinstance(part, nn.Linear)}
    _expect_head(layers, model)
    old = list(layers)[-1]
    make = nn.LazyLinear if isinstance(old, nn.LazyLinear) else partial(nn.Linear, old.in_features)
    new = make(classes, old.bias is not None, device=old.weight.device, dtype=old.weight.dtype)
    for name in [name for name, part in places if part is old]:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, new)
    return model


def parameter_groups(
    model: nn.Module, lr: float, head_lr: float | None = None, decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: rates by layer, and no weight decay on biases and norms.

    Only what can be trained is in them, once each. Layers are the model's children in order; the
    last with trainable parameters is the head and learns at head_lr (lr without). The one below it
    learns at lr, and each further down at `decay` times the rate of the one above. Groups that must
    not decay carry weight_decay = 0; the others leave it to the optimizer. Raises ValueError for
    rates that are not > 0, decay outside (0, 1], and a model with nothing to train.
    Howard and Ruder 2018, section 3.2, used 1/2.6 for decay.
    """
    rates = f"{lr} and {head_lr}"
    expect(lr > 0 and (head_lr is None or head_lr > 0), f"lr and head_lr must be > 0, got {rates}")
    expect(0 < decay <= 1, f"decay must be in (0, 1], got {decay}")
    layers = list(_layers(model))
    expect(len(layers) > 0, "the model has nothing to train: all its parameters are frozen")
    groups = []
    for height, parameters in enumerate(reversed(layers)):
        rate = (head_lr or lr) if height == 0 else lr * decay ** (height - 1)
        for settings, chosen in (
            ({}, [p for p in parameters if p.ndim > 1]),
            ({"weight_decay": 0.0}, [p for p in parameters if p.ndim <= 1]),
        ):
            if chosen:
                groups.append({"params": chosen, "lr": rate, **settings})
    return groups


def _layers(model: nn.Module) -> Iterator[list[nn.Parameter]]:
    """The trainable parameters of the model itself, then of each child; each parameter once."""
    seen: set[int] = set()
    for part in (
        model.parameters(recurse=False),
        *(child.parameters() for child in model.children()),
    ):
        new = [p for p in part if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in new}
        if new:
            yield new


def _frozen(part: nn.Module) -> _Frozen | None:
    found = vars(part).get("train")
    return found if isinstance(found, _Frozen) else None


def _in_eval_mode(module: nn.Module, inputs: Any) -> None:
    """Runs first in every forward pass of a frozen module, whoever has set its mode by hand."""
    module.training = False


def _expect_head(layers: dict[nn.Linear, str], model: nn.Module) -> None:
    expect(len(layers) > 0, "the model has no linear layer inside that could be its head")
    head = list(layers)[-1]
    weights = [part for part in model.modules() if isinstance(part, nn.Linear | _ConvNd)]
    ends = type(weights[-1]).__name__
    expect(weights[-1] is head, f"the model must end in a linear layer, and it ends in a {ends}")
    out = head.out_features
    twins = [name for layer, name in layers.items() if layer.out_features == out]
    alone = len(twins) == 1 or any(layer.in_features == out for layer in layers)
    expect(alone, f"the model must have one head, and each of {', '.join(twins)} could be one")
