"""One training loop for every method of the lecture.

A transfer method is an objective, what it freezes, and what it adds. An objective is a function
from a model and a batch to a loss; `batch.index` lets it look up what a frozen teacher said,
recorded once:

    teacher_logits = record(teacher, train)
    fit(student, train, lambda net, b: distillation_loss(net(b.x), teacher_logits[b.index], b.y, T=4, alpha=0.9), epochs=10)
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn
from tqdm.auto import tqdm

from tlcourse.data import Augmentation, Images, as_input
from tlcourse.methods._checks import expect

Target = Tensor | dict[str, Tensor]
Source = Images | tuple[Tensor, Target]  # images, or any inputs and targets as a pair


@dataclass(frozen=True)
class Batch:
    """What an objective sees at one step: inputs, targets, their positions in the data, and time t,
    from 0 to 1 over the whole run.
    """

    x: Tensor
    y: Any  # a Tensor, or a dict of tensors
    index: Tensor
    t: float


Objective = Callable[
    [nn.Module, Any], Tensor
]  # the second argument is a Batch, or a dict of them for `joint` and `paired`


@dataclass(frozen=True)
class Joint:
    """Several sources, a batch of each at every step; made by `joint`."""

    sources: dict[str, Source]


@dataclass(frozen=True)
class Paired:
    """A target set and, for each of its images, source images to draw from; made by `paired`."""

    target: Source
    source: Source
    neighbours: Tensor


def joint(**sources: Source) -> Joint:
    """Train on several sources at once: the objective gets `{"old": Batch, "new": Batch}` for
    `joint(old=…, new=…)`.

    Each source is shuffled by itself; an epoch is one pass through the longest, the others start
    over. Raises ValueError for no source.
    """
    expect(len(sources) > 0, "joint needs at least one source, got none")
    return Joint(sources)


def paired(target: Source, source: Source, neighbours: Tensor) -> Paired:
    """Train on a target set beside source images chosen for each target image: the objective gets
    {"target": Batch, "source": Batch}.

    neighbours: int64 (len(target), k), positions in source; every step draws one of the k for each
    target image. Raises ValueError if its shape or its values do not fit.
    """
    n, m = (len(_xy(s)[0]) for s in (target, source))
    expect(
        neighbours.ndim == 2 and len(neighbours) == n,
        f"neighbours must have shape ({n}, k), got {tuple(neighbours.shape)}",
    )
    expect(
        neighbours.numel() > 0,
        f"neighbours must name at least one source image each, got shape {tuple(neighbours.shape)}",
    )
    expect(neighbours.dtype == torch.int64, f"neighbours must be int64, got {neighbours.dtype}")
    inside = bool(((neighbours >= 0) & (neighbours < m)).all())
    expect(
        inside,
        f"neighbours must be positions in [0, {m}), got {neighbours.min()} to {neighbours.max()}",
    )
    return Paired(target, source, neighbours)


@dataclass(frozen=True)
class History:
    """How a run went. losses: float32 (steps,), on the CPU; epochs: one row per epoch (epoch, step,
    loss, and what on_epoch returned).
    """

    losses: Tensor
    epochs: pd.DataFrame
    seconds: float


def fit(
    model: nn.Module,
    data: Source | Joint | Paired,
    objective: Objective,
    *,
    epochs: int | None = None,
    steps: int | None = None,
    batch_size: int = 128,
    lr: float = 1e-3,
    groups: Sequence[Mapping[str, Any]] | None = None,
    optimizer: Literal["adamw", "sgd"] = "adamw",
    weight_decay: float = 0.0,
    schedule: Literal["one-cycle", "cosine", "constant"] = "one-cycle",
    augment: Augmentation | Sequence[Augmentation] | None = None,
    after_step: Callable[[nn.Module], None] | None = None,
    on_epoch: Callable[[nn.Module, int], Mapping[str, float] | None] | None = None,
    seed: int = 0,
    progress: bool | str = True,
) -> History:
    """Minimise objective(model, batch) for a number of epochs or steps, on the model's device. Same
    seed and threads, same weights.

    groups: optimizer groups, each with "params" and perhaps its own "lr"; without, all trainable
    parameters in one. An objective that is an nn.Module is trained along, without weight decay.
    augment changes the pixels of every batch. after_step(model) runs after every update,
    on_epoch(model, epoch) after every epoch (with steps: after every epoch or fiftieth of the run,
    whichever is longer); the numbers it returns go to the history. progress: show a bar, with this
    text. The global random state is left as it was. Raises ValueError for settings out of range,
    and FloatingPointError, naming the step, when the loss is no longer finite.
    """
    expect(
        (epochs is None) != (steps is None),
        f"give either epochs or steps, got epochs={epochs} and steps={steps}",
    )
    expect(
        (epochs or steps or 0) >= 1,
        f"epochs or steps must be >= 1, got {epochs if steps is None else steps}",
    )
    expect(batch_size >= 1, f"batch_size must be >= 1, got {batch_size}")
    expect(
        schedule in SCHEDULES, f"schedule must be one of {', '.join(SCHEDULES)}, got {schedule!r}"
    )
    updater = _optimizer(model, objective, groups, optimizer, lr, weight_decay)
    where = _device_of(model)
    feed = _Feed(data, where, batch_size, augment, seed)
    total = steps or feed.steps_per_epoch * (epochs or 0)
    stride = max(feed.steps_per_epoch, steps // 50 if steps else 0)
    pace = torch.optim.lr_scheduler.LambdaLR(
        updater, lambda step: SCHEDULES[schedule](step / total)
    )
    losses, rows, start = torch.zeros(total, device=where), [], time.perf_counter()

    bar = tqdm(
        total=total,
        desc=progress if isinstance(progress, str) else None,
        disable=not progress,
        leave=False,
    )
    with (
        bar,
        _mode_restored(model),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        torch.manual_seed(seed)
        model.train()
        for step in range(total):
            batch = feed.draw(t=step / total)
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
                loss = objective(model, batch)
            updater.zero_grad(set_to_none=True)
            loss.backward()
            updater.step()
            pace.step()
            losses[step] = loss.detach()
            if after_step:
                after_step(model)
            bar.update()
            if (step + 1) % stride == 0 or step + 1 == total:
                _expect_finite(losses[: step + 1])
                epoch = math.ceil((step + 1) / stride)
                row = {
                    "epoch": epoch,
                    "step": step + 1,
                    "loss": losses[(epoch - 1) * stride : step + 1].mean().item(),
                }
                rows.append(row | dict((on_epoch(model, epoch) if on_epoch else None) or {}))
                model.train()  # whatever on_epoch left behind
    return History(losses.cpu(), pd.DataFrame(rows), time.perf_counter() - start)


def predict(model: nn.Module, data: Source, output: str | None = None) -> Tensor:
    """What the model says of every image, in order: (N, …) on the model's device, float32. In eval
    mode, in big batches, without gradients.

    output: which entry, for a model that returns a dict. Raises ValueError for an entry that is not
    there.
    """
    return _run(model, data, lambda answer: _entry(answer, output))


def accuracy(model: nn.Module, data: Source) -> float:
    """Share of right classes, in [0, 1], for a model that returns logits (N, K) and data whose
    targets are labels.
    """
    answer = predict(model, data)
    labels = _xy(data)[1]
    expect(
        isinstance(labels, Tensor),
        "accuracy needs data whose targets are labels, got a dict of targets",
    )
    return (answer.argmax(1) == torch.as_tensor(labels, device=answer.device)).float().mean().item()


def record(model: nn.Module, data: Source, of: str | Sequence[str] | None = None) -> Any:
    """What a frozen network says, once and for all: look it up with `batch.index` instead of
    running the network at every step.

    of: None for the outputs, a layer's name for what that layer gives, (N, …), or a list of names
    for a dict of such tensors. In eval mode, in big batches, without gradients. Raises ValueError
    for a layer that is not there.
    """
    if of is None:
        return predict(model, data)
    names = [of] if isinstance(of, str) else list(of)
    layers = dict(model.named_modules())
    for name in names:
        expect(
            name in layers,
            f"the model has no layer {name!r}; it has {', '.join(n for n in layers if n)}",
        )
    taken: dict[str, Tensor] = {}
    hooks = [
        layers[name].register_forward_hook(
            lambda _, __, out, name=name: taken.__setitem__(name, out.clone())
        )
        for name in names
    ]
    try:
        found = _run(model, data, lambda _: dict(taken))
    finally:
        for hook in hooks:
            hook.remove()
    return found[of] if isinstance(of, str) else found


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The plain objective: cross-entropy of the labels, in nats, mean over the batch."""
    return F.cross_entropy(model(batch.x), batch.y)


def max_norm(limit: float) -> Callable[[nn.Module], None]:
    """For `fit(after_step=…)`: scale each linear unit's incoming weights down to a norm of at most
    `limit`. Srivastava et al. 2014.
    """
    expect(limit > 0, f"limit must be > 0, got {limit}")

    @torch.no_grad()
    def clip(model: nn.Module) -> None:
        for layer in model.modules():
            if isinstance(layer, nn.Linear) and layer.weight.requires_grad:
                layer.weight.copy_(layer.weight.renorm(2, 0, limit))

    return clip


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch on every device."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def device(name: str = "auto") -> torch.device:
    """ "auto" is the GPU (cuda, else mps) where there is one, else the CPU. Raises ValueError for a
    device this machine does not have.
    """
    there = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    found = next(kind for kind, yes in there.items() if yes) if name == "auto" else name
    expect(found in there, f'device must be "auto", "cpu", "cuda" or "mps", got {name!r}')
    expect(there.get(found, False), f"this machine has no {found} device that torch can use")
    return torch.device(found)


def _one_cycle(t: float, rise: float = 0.25, start: float = 0.05) -> float:
    """Up in a straight line for the first quarter, then down along a cosine. Smith 2018."""
    return (
        start + (1 - start) * t / rise
        if t < rise
        else 0.5 * (1 + math.cos(math.pi * (t - rise) / (1 - rise)))
    )


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one-cycle": _one_cycle,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "constant": lambda t: 1.0,
}


class _Feed:
    """Shuffles the sources by index and hands out batches that live on the device; no worker
    processes, no copies.
    """

    def __init__(
        self, data: Any, where: torch.device, batch_size: int, augment: Any, seed: int
    ) -> None:
        parts = (
            data.sources
            if isinstance(data, Joint)
            else {"target": data.target, "source": data.source}
            if isinstance(data, Paired)
            else None
        )
        self.sources = {
            name: _on_device(*_xy(source), where) for name, source in (parts or {"": data}).items()
        }
        for name, (x, y) in self.sources.items():
            which = f"data {name!r}" if parts else "data"
            expect(len(x) > 0, f"{which} must hold at least one sample, got none")
            lengths = [len(value) for value in (y.values() if isinstance(y, dict) else [y])]
            expect(
                {*lengths} == {len(x)},
                f"{which} must have as many targets as inputs, got {lengths} for {len(x)}",
            )
        self.alone = parts is None
        self.augments = [augment] if callable(augment) else list(augment or [])
        self.generator = Generator(where).manual_seed(seed)
        self.neighbours = data.neighbours.to(where) if isinstance(data, Paired) else None
        paced = [
            name for name in self.sources if not (self.neighbours is not None and name == "source")
        ]
        self.steps_per_epoch = max(
            math.ceil(len(self.sources[name][0]) / batch_size) for name in paced
        )
        self.orders = {
            name: self._shuffled(len(self.sources[name][0]), batch_size) for name in paced
        }

    def _shuffled(self, n: int, batch_size: int) -> Iterator[Tensor]:
        while True:
            yield from torch.randperm(
                n, device=self.generator.device, generator=self.generator
            ).split(batch_size)

    def draw(self, t: float) -> Any:
        indices = {name: next(order) for name, order in self.orders.items()}
        if self.neighbours is not None:
            rows = self.neighbours[indices["target"]]
            one = torch.randint(
                rows.shape[1], (len(rows), 1), device=rows.device, generator=self.generator
            )
            indices["source"] = rows.gather(1, one)[:, 0]
        batches = {
            name: self._batch(*self.sources[name], index, t) for name, index in indices.items()
        }
        return batches[""] if self.alone else batches

    def _batch(self, x: Tensor, y: Target, index: Tensor, t: float) -> Batch:
        chosen = x[index]
        for change in self.augments:
            chosen = change(chosen, self.generator)
        target = (
            {key: value[index] for key, value in y.items()} if isinstance(y, dict) else y[index]
        )
        return Batch(_input(chosen), target, index, t)


def _xy(data: Source) -> tuple[Tensor, Target]:
    return (data.pixels, data.labels) if isinstance(data, Images) else data


def _on_device(x: Tensor, y: Target, where: torch.device) -> tuple[Tensor, Target]:
    return x.to(where), {key: value.to(where) for key, value in y.items()} if isinstance(
        y, dict
    ) else y.to(where)


def _input(x: Tensor) -> Tensor:
    values = as_input(x)
    return (
        values.contiguous(memory_format=torch.channels_last)
        if x.is_cuda and x.ndim == 4
        else values
    )


def _device_of(model: nn.Module) -> torch.device:
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _optimizer(
    model: nn.Module, objective: Objective, groups: Any, kind: str, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    expect(kind in ("adamw", "sgd"), f'optimizer must be "adamw" or "sgd", got {kind!r}')
    expect(0 < lr < math.inf, f"lr must be a finite number > 0, got {lr}")
    expect(weight_decay >= 0, f"weight_decay must be >= 0, got {weight_decay}")
    chosen: list[dict[str, Any]] = (
        [{**group, "params": list(group["params"])} for group in groups]
        if groups is not None
        else [{"params": [p for p in model.parameters() if p.requires_grad]}]
    )
    if isinstance(objective, nn.Module):
        known = {id(p) for group in chosen for p in group["params"]} | {
            id(p) for p in model.parameters()
        }
        own = [p for p in objective.parameters() if p.requires_grad and id(p) not in known]
        chosen.append({"params": own, "weight_decay": 0.0})
    chosen = [group for group in chosen if group["params"]]
    expect(len(chosen) > 0, "there is nothing to train: every parameter is frozen")
    if kind == "sgd":
        return torch.optim.SGD(chosen, lr=lr, weight_decay=weight_decay, momentum=0.9)
    return torch.optim.AdamW(chosen, lr=lr, weight_decay=weight_decay)


def _expect_finite(losses: Tensor) -> None:
    bad = (~losses.isfinite()).nonzero()
    if len(bad):
        step = int(bad[0])
        raise FloatingPointError(
            f"the loss became {losses[step].item()} at step {step + 1}; try a smaller lr, or look for a log or a division by zero"
        )


@contextmanager
def _mode_restored(model: nn.Module) -> Iterator[None]:
    """Put every layer back into the mode, training or eval, in which it was found."""
    modes = [(layer, layer.training) for layer in model.modules()]
    try:
        yield
    finally:
        for layer, mode in modes:
            layer.training = mode


def _run(model: nn.Module, data: Source, take: Callable[[Any], Any], batch_size: int = 2048) -> Any:
    """take(model(x)) over all of x, joined; a Tensor or a dict of tensors."""
    where = _device_of(model)
    with _mode_restored(model), torch.inference_mode():
        model.eval()
        parts = [
            take(model(_input(x.to(where, copy=True)))) for x in _xy(data)[0].split(batch_size)
        ]
    # joined outside of inference mode, so that the result may be saved for a later backward pass
    return (
        {key: torch.cat([part[key] for part in parts]) for key in parts[0]}
        if isinstance(parts[0], dict)
        else torch.cat(parts)
    )


def _entry(answer: Any, output: str | None) -> Tensor:
    if not isinstance(answer, dict):
        expect(
            output is None, f"output is {output!r}, but the model returns one tensor, not a dict"
        )
        return answer
    expect(output in answer, f"output must be one of {', '.join(answer)}, got {output!r}")
    return answer[output]
