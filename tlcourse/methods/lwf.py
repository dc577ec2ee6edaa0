r"""Learning without forgetting: a new task is learnt with the old data gone, and the old answers on
the new images held fast.

Before a single weight moves, the network says what it thinks of the *new* images with its *old*
head. These responses are recorded. Then a head for the new task is added and everything is trained,
with a second loss that asks the old head to answer as it did:

.. math:: \mathcal{L} = \mathcal{L}_{ce}(y_n, \hat y_n) + \lambda_o\, \mathcal{L}_{old}(y_o, \hat y_o), \qquad
    \mathcal{L}_{old} = -\sum_i y_o'^{(i)} \log \hat y_o'^{(i)}, \qquad y' = \mathrm{softmax}(v / T)

Letters: :math:`\theta_s` is the shared trunk, :math:`\theta_o` and :math:`\theta_n` are the old and
the new task's heads, v the recorded old logits, T = 2. It is distillation from the network's own
past, without the factor :math:`T^2`, which the paper does not have.

Li and Hoiem 2016, "Learning without forgetting", section 3. The lecture writes the old task's
second probability without its hat (E6).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.methods._checks import expect
from tlcourse.methods.fine_tuning import freeze


class Heads(nn.Module):
    """One trunk and a head for each task: answers a dict of logits by the task's name."""

    def __init__(self, trunk: nn.Module, **heads: nn.Module) -> None:
        super().__init__()
        expect(len(heads) > 0, "a network needs at least one head")
        self.trunk, self.heads = trunk, nn.ModuleDict(heads)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        """x: what the trunk takes. Returns logits (N, K) by task; classes differ from task to task."""
        features = self.trunk(x)
        return {name: head(features) for name, head in self.heads.items()}


@dataclass(frozen=True)
class Way:
    """A way to learn a new task: what of the network it trains besides the new head, and whether
    that head has a hidden layer.
    """

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
    """Add a new task's head and freeze what this way of learning it does not train. Changes the
    network, and returns it.

    way: one of `WAYS`. "fully connected" freezes each child of the trunk without a linear layer.
    hidden: units of feature extraction's head. Raises ValueError for an unknown way, a task that is
    there already, and fewer than one class. Li and Hoiem 2016, figure 2.
    """
    expect(way in WAYS, f"way must be one of {', '.join(WAYS)}, got {way!r}")
    expect(task not in network.heads, f"there is a head for {task!r} already")
    expect(classes >= 1, f"classes must be >= 1, got {classes}")
    plan = WAYS[way]
    features = next(
        layer.in_features for layer in network.heads.modules() if isinstance(layer, nn.Linear)
    )
    if plan.trunk == "nothing":
        freeze(network.trunk)
    if plan.trunk == "fully connected":
        for part in network.trunk.children():
            if not any(isinstance(layer, nn.Linear) for layer in part.modules()):
                freeze(part)
    if not plan.old_heads:
        freeze(network.heads)
    where = next(network.parameters())
    new = (
        nn.Sequential(nn.Linear(features, hidden), nn.ReLU(), nn.Linear(hidden, classes))
        if plan.hidden
        else nn.Linear(features, classes)
    )
    network.heads[task] = new.to(where.device, where.dtype)
    return network


def response_loss(
    logits: Tensor, recorded: Tensor, *, T: float = 2.0, scaled: bool = False
) -> Tensor:
    r""":math:`-\sum_i y'^{(i)} \log \hat y'^{(i)}` with both softened by T, in nats, mean over the
    batch.

    logits, recorded: (N, K); the recorded side gets no gradient. Computed as log-softmax of z / T,
    so that logits of any size are safe (a power of a probability is not). scaled multiplies by T²,
    as distillation does; the paper does not. Raises ValueError for shapes that differ, an empty
    batch and T not > 0. Li and Hoiem 2016, equations 2 to 4.
    """
    expect(
        logits.ndim == 2 and logits.numel() > 0,
        f"logits must have shape (N, K) and not be empty, got {tuple(logits.shape)}",
    )
    same = logits.shape == recorded.shape
    expect(
        same,
        f"logits and recorded must have the same shape, got {tuple(logits.shape)} and {tuple(recorded.shape)}",
    )
    expect(0 < T < math.inf, f"T must be a finite number > 0, got {T}")
    target = (recorded.detach() / T).softmax(1)
    loss = -(target * (logits / T).log_softmax(1)).sum(1).mean()
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
    r""":math:`\mathcal{L}_{ce}(y_n, \hat y_n) + \lambda_o \sum_{old} \mathcal{L}_{old}`, in nats,
    mean over the batch.

    new_logits: (N, K) of the new head; labels: (N,) in [0, K); old_logits, recorded: (N, K_old) of
    the old head now and before training, or one of each for every old task. weight is λ_o: 0 is
    fine-tuning. Raises ValueError for a weight below 0, shapes that differ, and unequal numbers of
    old tasks. Li and Hoiem 2016, section 3.
    """
    expect(0 <= weight < math.inf, f"weight must be a finite number >= 0, got {weight}")
    now, then = ([x] if isinstance(x, Tensor) else list(x) for x in (old_logits, recorded))
    expect(
        len(now) == len(then) > 0,
        f"old_logits and recorded must be of the same old tasks, got {len(now)} and {len(then)}",
    )
    old = torch.stack([response_loss(z, v, T=T, scaled=scaled) for z, v in zip(now, then)]).sum()
    return F.cross_entropy(new_logits, labels) + weight * old


def lfl_loss(
    logits: Tensor, labels: Tensor, features: Tensor, recorded: Tensor, *, weight: float
) -> Tensor:
    r"""Less-forgetting learning: :math:`\mathcal{L}_{ce} + \lambda_e\, \tfrac12 \lVert f - f_0
    \rVert^2`, mean over the batch.

    logits: (N, K); labels: (N,); features, recorded: (N, D), what the trunk gives now and gave
    before training. The recorded side gets no gradient. Raises ValueError for a weight below 0 and
    shapes that differ. Jung et al. 2016, "Less-forgetting learning in deep networks".
    """
    expect(0 <= weight < math.inf, f"weight must be a finite number >= 0, got {weight}")
    same = features.shape == recorded.shape and features.ndim == 2
    expect(
        same,
        f"features and recorded must have the same shape (N, D), got {tuple(features.shape)} and {tuple(recorded.shape)}",
    )
    moved = 0.5 * (features - recorded.detach()).square().sum(1).mean()
    return F.cross_entropy(logits, labels) + weight * moved
