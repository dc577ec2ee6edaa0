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

from collections.abc import Iterator
from typing import Any, TypeVar

from torch import nn

from tlcourse.methods._checks import expect

Model = TypeVar("Model", bound=nn.Module)
BEFORE = "_before_freezing"  # where a frozen module keeps what it was


def freeze(module: Model) -> Model:
    """Keep a module's parameters and buffers as they are, whatever train(), an optimizer or
    deepcopy do. Returns the same module.

    It then works in eval mode in every forward pass: no dropout, BatchNorm with its running
    averages. Gradients still flow through it to what lies below. Modules that are frozen already
    stay so. Undone by `unfreeze`.
    """
    for part in module.modules():
        if not hasattr(part, BEFORE):
            own = {
                name: parameter.requires_grad
                for name, parameter in part.named_parameters(recurse=False)
            }
            setattr(
                part, BEFORE, (part.training, own, part.register_forward_pre_hook(_in_eval_mode))
            )
        for parameter in part.parameters(recurse=False):
            parameter.requires_grad_(False)
            parameter.grad = None  # an optimizer moves a weight with a gradient of zero, by momentum and decay, but never one with None
    return module.eval()


def unfreeze(module: Model) -> Model:
    """Undo `freeze`: the same parameters can be trained as before, and the modes are what they
    were. Returns the same module.
    """
    for part in module.modules():
        if hasattr(part, BEFORE):
            part.training, own, hook = getattr(part, BEFORE)
            hook.remove()
            delattr(part, BEFORE)
            for name, parameter in part.named_parameters(recurse=False):
                parameter.requires_grad_(own[name])
    return module


def replace_head(model: Model, classes: int) -> Model:
    """Put a new, randomly initialised linear layer for another number of classes where the last one
    was. Returns the same model.

    The last linear layer is the last in the order of `named_modules`; the new one has its input,
    bias, device and dtype. Raises ValueError for classes below 1 and for a model without a linear
    layer.
    """
    expect(classes >= 1, f"classes must be >= 1, got {classes}")
    layers = [
        (name, layer)
        for name, layer in model.named_modules()
        if isinstance(layer, nn.Linear) and name
    ]
    expect(len(layers) > 0, "the model has no linear layer inside that could be its head")
    name, old = layers[-1]
    parent, _, last = name.rpartition(".")
    new = nn.Linear(
        old.in_features,
        classes,
        bias=old.bias is not None,
        device=old.weight.device,
        dtype=old.weight.dtype,
    )
    setattr(model.get_submodule(parent), last, new)
    return model


def parameter_groups(
    model: nn.Module, lr: float, head_lr: float | None = None, decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for an optimizer: rates by layer, and no weight decay on biases and norms. Only what
    can be trained is in them, once each.

    Layers are the model's children in order; the last with trainable parameters is the head and
    learns at head_lr (lr without). The one below it learns at lr, and each further down at `decay`
    times the rate of the one above. Groups that must not decay carry weight_decay = 0; the others
    leave it to the optimizer. Raises ValueError for rates that are not > 0, decay outside (0, 1],
    and a model with nothing to train. Howard and Ruder 2018, section 3.2, used 1/2.6 for decay.
    """
    expect(
        lr > 0 and (head_lr is None or head_lr > 0),
        f"lr and head_lr must be > 0, got {lr} and {head_lr}",
    )
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
    """The trainable parameters of each child that has some, each parameter once; first those of the
    model itself.
    """
    seen: set[int] = set()
    for part in (
        model.parameters(recurse=False),
        *(child.parameters() for child in model.children()),
    ):
        new = [p for p in part if p.requires_grad and id(p) not in seen]
        seen |= {id(p) for p in new}
        if new:
            yield new


def _in_eval_mode(module: nn.Module, inputs: Any) -> None:
    """Runs before every forward pass of a frozen module, since `train()` of a module above would
    switch it over.
    """
    module.training = False
