r"""Learning without forgetting: a new task is learnt, and the old answers to its images are kept.

The old data are gone. Before a single weight moves, the network says what it thinks of the *new*
images with its *old* head. These responses are recorded. Then a head for the new task is added and
everything is trained, with a second loss that asks the old head to answer as it did:

.. math:: \mathcal{L} = \mathcal{L}_{ce}(y_n, \hat y_n)
    + \lambda_o\, \mathcal{L}_{old}(y_o, \hat y_o), \qquad
    \mathcal{L}_{old} = -\sum_i y_o'^{(i)} \log \hat y_o'^{(i)}, \qquad y' = \mathrm{softmax}(v / T)

Letters: :math:`\theta_s` is the shared trunk, :math:`\theta_o` and :math:`\theta_n` are the old and
the new task's heads, v the recorded old logits, T = 2. It is distillation from the network's own
past, without the factor :math:`T^2`, which the paper does not have.

Li and Hoiem 2016, "Learning without forgetting", section 3. In the lecture one hat is missing, on
the left of the definition of the second :math:`y'`; its loss is written rightly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import class_labels, expect, expect_same_shape, expect_weight, wide
from tlcourse.methods.distillation import expect_temperature, soft_cross_entropy
from tlcourse.methods.fine_tuning import freeze


class Tasks(nn.ModuleDict):
    """Modules by a task's name, which may be one that a ModuleDict's own methods have ("train")."""

    def add_module(self, name: str, module: Any) -> None:
        """Raise ValueError for a name that is no string, is empty, or holds a dot."""
        _expect_name(name)
        self._modules[name] = module


class Heads(nn.Module):
    """One trunk and a head for each task: answers a dict of logits by the task's name."""

    def __init__(self, trunk: nn.Module, /, **heads: nn.Module) -> None:
        super().__init__()
        expect(len(heads) > 0, "a network needs at least one head")
        self.trunk, self.heads = trunk, Tasks(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: what the trunk takes. Returns logits (N, K) by task; K differs from task to task."""
        features = self.trunk(x)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Way:
    """A way to learn a new task: what it trains besides the new head, and how deep that head is."""

    trunk: Literal["all", "fully connected", "nothing"]
    old_heads: bool
    hidden: bool = False


WAYS = {
    "LwF": Way("all", old_heads=True),
    "LFL": Way("all", old_heads=False),
    "fine-tuning": Way("all", old_heads=False),
    "fine-tuning FC": Way("fully connected", old_heads=False),
    "feature extraction": Way("nothing", old_heads=False, hidden=True),
    "joint training": Way("all", old_heads=True),
}


def add_task(network: Heads, task: str, classes: int, way: str, *, hidden: int = 256) -> Heads:
    """Add a new task's head and freeze what this way of learning it does not train.

    Changes the network, and returns it. way: one of `WAYS`. "fully connected" freezes each child of
    the trunk without a linear layer. hidden: units of feature extraction's head. Raises ValueError
    for an unknown way, a task that is there already or no name, fewer than one class, and heads
    without a linear layer. Li and Hoiem 2016, figure 2.
    """
    expect(way in WAYS, f"way must be one of {', '.join(WAYS)}, got {way!r}")
    _expect_name(task)
    expect(task not in network.heads, f"there is a head for {task!r} already")
    expect(classes >= 1, f"classes must be >= 1, got {classes}")
    inputs = [x.in_features for x in network.heads.modules() if isinstance(x, nn.Linear)]
    features = next(iter(inputs), 0)
    expect(features > 0, "the first head must begin with a linear layer that knows its inputs")
    plan = WAYS[way]
    if plan.trunk == "nothing":
        freeze(network.trunk)
    if plan.trunk == "fully connected":
        for part in network.trunk.children():
            if not any(isinstance(layer, nn.Linear) for layer in part.modules()):
                freeze(part)
    if not plan.old_heads:
        freeze(network.heads)
    where = next(network.parameters())
    new: nn.Module = (
        nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        if plan.hidden
        else nn.Linear(features, classes)
    )
    network.heads[task] = new.to(where.device, where.dtype)
    return network


def response_loss(
    logits: Tensor, recorded: Tensor, *, T: float = 2.0, scaled: bool = False
) -> Tensor:
    r""":math:`-\sum_i y'^{(i)} \log \hat y'^{(i)}` with both softened by T, in nats, batch mean.

    logits, recorded: (N, K), −inf where a class is masked; the recorded side gets no gradient.
    Computed as log-softmax of z / T, so that logits of any size are safe (a power of a probability
    is not). scaled multiplies by T², as distillation does; the paper does not. Raises ValueError
    for shapes that differ, an empty batch, T not > 0, and (on a CPU) rows that are masked
    altogether. Li and Hoiem 2016, equations 2 to 4.
    """
    shape = tuple(logits.shape)
    full = len(shape) == 2 and 0 not in shape
    expect(full, f"logits must have shape (N, K) and not be empty, got {shape}")
    expect_same_shape("logits and recorded", logits, recorded)
    expect_temperature(T)
    loss = soft_cross_entropy(logits, recorded, T)
    return loss * T**2 if scaled else loss


def lwf_loss(
    new_logits: Tensor,
    labels: Tensor,
    old_logits: Tensor | Sequence[Tensor],
    recorded: Tensor | Sequence[Tensor],
    *,
    weight: float = 1.0,
    T: float = 2.0,
    scaled: bool = False,
) -> Tensor:
    r""":math:`\mathcal{L}_{ce}(y_n, \hat y_n) + \lambda_o \sum_{old} \mathcal{L}_{old}`, in nats.

    Mean over the batch. new_logits: (N, K) of the new head; labels: (N,) whole numbers in [0, K);
    old_logits, recorded: (N, K_old) of the old head now and before training, or one of each for
    every old task. weight is λ_o: 0 is fine-tuning. Raises ValueError for a weight below 0, labels
    and shapes that do not fit, and unequal numbers of old tasks. Li and Hoiem 2016, section 3.
    """
    expect_weight("weight", weight)
    now, then = ([x] if isinstance(x, Tensor) else list(x) for x in (old_logits, recorded))
    many = f"{len(now)} and {len(then)}"
    same = len(now) == len(then) > 0
    expect(same, f"old_logits and recorded must be of the same old tasks, got {many}")
    first, *others = (response_loss(z, v, T=T, scaled=scaled) for z, v in zip(now, then))
    new = F.cross_entropy(wide(new_logits), class_labels(labels, new_logits))
    return new + weight * sum(others, start=first)


def lfl_loss(
    logits: Tensor, labels: Tensor, features: Tensor, recorded: Tensor, *, weight: float
) -> Tensor:
    r"""Less-forgetting learning: :math:`\mathcal{L}_{ce} + \lambda_e\, ½ \lVert f - f_0 \rVert^2`.

    Mean over the batch. logits: (N, K); labels: (N,) whole numbers in [0, K); features, recorded:
    (N, D), what the trunk gives now and gave before training. The recorded side gets no gradient.
    Raises ValueError for a weight below 0, and labels and shapes that do not fit.
    Jung et al. 2016, "Less-forgetting learning in deep networks".
    """
    expect_weight("weight", weight)
    expect_same_shape("features and recorded", features, recorded)
    expect(features.ndim == 2, f"features must have shape (N, D), got {tuple(features.shape)}")
    moved = (wide(features) - wide(recorded.detach())).square().sum() / len(features)
    return F.cross_entropy(wide(logits), class_labels(labels, logits)) + weight / 2 * moved


def _expect_name(task: str) -> None:
    fits = isinstance(task, str) and task != "" and "." not in task
    expect(fits, f"a task's name must be a string without dots, not empty, got {task!r}")
