"""What matching Jacobians costs, in turns with a plain step, on one thread. Run by hand.

`python tests/benchmarks/jacobian.py` prints, for each way, the median seconds of the processor, and
the ratio to a plain step of the same turn. See training.py here for how to have less noise.
"""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp
from training import compare

from tlcourse.methods.jacobian import class_jacobian, jacobian_loss, logits_and_jacobian
from tlcourse.models import ConvNet
from tlcourse.training import seed_everything

CLASSES, BATCH = 10, 64
Loss = Callable[[nn.Module, Tensor, Tensor, Tensor], Tensor]  # of a network, x, labels and rows


def plain(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy alone."""
    return F.cross_entropy(net(x), y)


def one_row(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy and a matched row, from one pass."""
    logits, J = logits_and_jacobian(net, x, y, create_graph=True)
    return F.cross_entropy(logits, y) + jacobian_loss(J, rows)


def two_passes(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """The same, asked twice."""
    J = class_jacobian(net, x, y, create_graph=True)
    return F.cross_entropy(net(x), y) + jacobian_loss(J, rows)


def forward_mode(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy, and how all logits move along one direction of the input."""
    weights = dict(net.named_parameters())
    logits, moved = jvp(lambda at: functional_call(net, weights, (at,)), (x,), (rows,))
    return F.cross_entropy(logits, y) + moved.square().mean()


def every_row(net: nn.Module, x: Tensor, y: Tensor, rows: Tensor) -> Tensor:
    """Cross-entropy and all K rows, one by one."""
    loss = F.cross_entropy(net(x), y)
    for k in range(CLASSES):
        loss = loss + jacobian_loss(class_jacobian(net, x, y * 0 + k, create_graph=True), rows)
    return loss


def step(net: nn.Module, loss: Loss, *batch: Tensor, steps: int = 10) -> None:
    """Some updates' gradients."""
    for _ in range(steps):
        net.zero_grad(set_to_none=True)
        loss(net, *batch).backward()


def main() -> None:
    """All ways beside the plain step."""
    torch.set_num_threads(1)
    seed_everything(0)
    x, y = torch.rand(BATCH, 1, 28, 28), torch.randint(CLASSES, (BATCH,))
    for name, width in (("width 8", 8), ("width 16", 16)):
        net = ConvNet(CLASSES, width=width)
        rows = class_jacobian(net, x, y)
        take = partial(partial, step, net)
        goals = {one_row: "≤ 2.0", two_passes: "", forward_mode: "", every_row: ""}
        for loss, goal in goals.items():
            title = f"{name}: {(loss.__doc__ or '').rstrip('.')}"
            compare(title, take(loss, x, y, rows), take(plain, x, y, rows), goal)


if __name__ == "__main__":
    main()
