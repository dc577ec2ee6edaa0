"""One training loop for every method of the lecture.

A transfer method is an objective, what it freezes, and what it adds. An objective is a function
from a model and a batch to a loss; `batch.index` lets it look up what a frozen teacher said,
recorded once:

    said = record(teacher, train)
    fit(student, train, lambda net, b: response_loss(net(b.x), said[b.index]), epochs=10)
"""

import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, Literal

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.data import Augmentation, Images, as_input
from tlcourse.methods._checks import class_labels, expect, expect_labels
from tlcourse.progress import progress_bar

Source = Images | tuple[Tensor, Any]  # images, or inputs beside targets: see `Batch.y`
Objective = Callable[[nn.Module, Any], Tensor]  # of a Batch, or of a dict of them: see `joint`
# a batch: at most so many inputs, and bytes in its largest map; more leaves the cache of a CPU
MOST, LARGEST = 512, 10 * 2**20
# their layers take any layout; a network of one's own may call `view`, which wants the usual one
ANY_LAYOUT = ("torch.nn.", "torch._dynamo.", "torchvision.", "timm.", "tlcourse.")


@dataclass(frozen=True)
class Batch:
    """What an objective sees at one step. index: positions in the data; t: 0 to 1 over the run."""

    x: Tensor
    y: Any  # a Tensor, a dict of tensors, or None
    index: Tensor
    t: float


@dataclass(frozen=True)
class Joint:
    """Several sources, a batch of each at every step; made by `joint` and `paired`."""

    sources: dict[str, Source]
    neighbours: Tensor | None = None  # for each sample of "target", samples of "source"


def joint(**sources: Source) -> Joint:
    """Several sources at once: the objective gets `{"old": Batch, …}` for `joint(old=…, …)`.

    Each source is shuffled by itself; an epoch is one pass through the longest, the others start
    over. Raises ValueError for no source.
    """
    expect(len(sources) > 0, "joint needs at least one source, got none")
    return Joint(sources)


def paired(target: Source, source: Source, neighbours: Tensor) -> Joint:
    """A target set beside source images chosen for each of its images.

    neighbours: int64 (len(target), k), positions in source; every step draws one of the k for each
    target image. The objective gets {"target": Batch, "source": Batch}. Raises ValueError for
    neighbours that do not fit.
    """
    n, m, shape = len(_xy(target)[0]), len(_xy(source)[0]), tuple(neighbours.shape)
    fits = len(shape) == 2 and shape[0] == n and shape[1] >= 1
    expect(fits, f"neighbours must have shape ({n}, k), got {shape}; k must be >= 1")
    expect(neighbours.dtype == torch.int64, f"neighbours must be int64, got {neighbours.dtype}")
    low, high = (int(end) for end in neighbours.aminmax())
    expect(low >= 0 and high < m, f"neighbours must be positions in [0, {m}), got {low} to {high}")
    return Joint({"target": target, "source": source}, neighbours)


@dataclass(frozen=True)
class History:
    """How a run went."""

    losses: Tensor  # float32 (steps,), on the CPU
    epochs: pd.DataFrame  # a row per epoch: epoch, step, loss, and what on_epoch returned
    seconds: float


def fit(
    model: nn.Module,
    data: Source | Joint,
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
    """Minimise objective(model, batch) on the model's device. Same seed and threads, same weights.

    groups: optimizer groups, each with "params" and perhaps its own "lr"; without, all trainable
    parameters in one. An objective that is an nn.Module is trained along, without weight decay.
    augment changes the pixels of every batch. after_step(model) runs after every update,
    on_epoch(model, epoch) after every epoch (with steps: after every epoch or fiftieth of the run,
    whichever is longer); the numbers it returns go to the history. progress: show a bar, with this
    text. The global random state is left as it was. Raises ValueError for settings out of range,
    and FloatingPointError, naming the step, when the loss is no longer finite.
    """
    given = [number for number in (epochs, steps) if number is not None]
    expect(len(given) == 1, f"give either epochs or steps, got epochs={epochs} and steps={steps}")
    expect(given[0] >= 1, f"epochs or steps must be >= 1, got {given[0]}")
    expect(batch_size >= 1, f"batch_size must be >= 1, got {batch_size}")
    known = ", ".join(SCHEDULES)
    expect(schedule in SCHEDULES, f"schedule must be one of {known}, got {schedule!r}")
    updater = _optimizer(model, objective, groups, optimizer, lr, weight_decay)
    where, rates = _device_of(model), [group["lr"] for group in updater.param_groups]
    feed = _Feed(data, where, batch_size, augment, seed)
    total = steps or feed.steps_per_epoch * (epochs or 0)
    stride = max(feed.steps_per_epoch, steps // 50 if steps else 0)
    losses, rows, start = torch.zeros(total, device=where), list[Any](), time.perf_counter()
    title = progress if isinstance(progress, str) else None
    with (
        progress_bar(total=total, desc=title, disable=not progress, leave=False) as bar,
        _borrowed(model),
        torch.random.fork_rng(devices=range(torch.cuda.device_count())),
    ):
        if objective is cross_entropy:
            _expect_classes(model, data)
        torch.manual_seed(seed)
        model.train()
        for step in range(total):
            for group, rate in zip(updater.param_groups, rates):
                group["lr"] = rate * SCHEDULES[schedule](step / total)
            batch = feed.draw(t=step / total)
            with torch.autocast(where.type, torch.bfloat16, enabled=where.type == "cuda"):
                loss = objective(model, batch)
            updater.zero_grad(set_to_none=True)
            loss.backward()
            updater.step()
            losses[step] = loss.detach()
            if after_step:
                after_step(model)
            bar.update()
            if (step + 1) % stride == 0 or step + 1 == total:
                rows.append(_row(losses, len(rows), stride, step + 1))
                if on_epoch:
                    rows[-1] |= on_epoch(model, len(rows)) or {}
                    model.train()  # whatever on_epoch left behind
    return History(losses.cpu(), pd.DataFrame(rows), time.perf_counter() - start)


def predict(model: nn.Module, data: Source, output: str | None = None) -> Tensor:
    """What the model says of every image, in order: (N, …) on the model's device, float32.

    In eval mode, without gradients, in batches bounded by memory. output: which entry of a dict.
    Raises ValueError for an entry that is not there, and an answer that is no tensor (N, …).
    """
    return _run(model, data, lambda answer: {"model": _entry(answer, output)})["model"]


def accuracy(model: nn.Module, data: Source) -> float:
    """Share of right classes, in [0, 1], for a model that gives logits (N, K) and labels (N,).

    Raises ValueError for targets that are no labels and for data without samples.
    """
    x, targets = _xy(data)
    expect("" in targets and len(x) > 0, "accuracy needs data with labels, got none")
    logits = predict(model, data)
    right = logits.argmax(1) == class_labels(targets[""], logits).to(logits.device)
    return right.float().mean().item()


def record(model: nn.Module, data: Source, of: str | Sequence[str] | None = None) -> Any:
    """What a frozen network says, once and for all: look it up with `batch.index` at every step.

    of: None for the outputs, a layer's name for what it gives, (N, …), or a list of names for such
    tensors by name. As `predict`, and uncompiled. Raises ValueError for a layer that is not there,
    and for one that does not give one tensor (N, …) in a pass.
    """
    if of is None:
        return predict(model, data)
    names = [of] if isinstance(of, str) else list(of)
    layers, heard = dict(model.named_modules(remove_duplicate=False)), dict[str, Tensor]()
    there = ", ".join(name for name in layers if name)
    for name in names:
        expect(name in layers, f"the model has no layer {name!r}; it has {there}")

    def note(name: str, _: Any, __: Any, out: Any) -> None:
        expect(name not in heard, f"layer {name!r} is met more than once; record one met once")
        expect(isinstance(out, Tensor), f"layer {name!r} gives no tensor, but {type(out).__name__}")
        heard[name] = out.clone()  # the next layer may change it in place

    def said(_: Any) -> dict[str, Tensor]:
        for name in names:
            expect(name in heard, f"layer {name!r} is not met when the model answers in eval mode")
        return {name: heard.pop(name) for name in dict.fromkeys(names)}

    with _hooked({name: layers[name] for name in names}, note):
        found = _run(model, data, said)
    return found[of] if isinstance(of, str) else found


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """The plain objective: cross-entropy of the labels, in nats, mean over the batch."""
    logits = model(batch.x)
    return F.cross_entropy(logits, class_labels(batch.y, logits))


def max_norm(limit: float) -> Callable[[nn.Module], None]:
    """For `fit(after_step=…)`: shorten each linear unit's incoming weights to a norm of `limit`.

    Srivastava et al. 2014. Raises ValueError for a limit that is not > 0.
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
    """The device of this name; "auto" is the GPU (cuda, else mps) where there is one, else the CPU.

    Raises ValueError for a device this machine does not have.
    """
    cuda, mps = torch.cuda.is_available(), torch.backends.mps.is_available()
    there = {"cuda": cuda, "mps": mps, "cpu": True}
    found = next(kind for kind, yes in there.items() if yes) if name == "auto" else name
    expect(found in there, f'device must be "auto", "cpu", "cuda" or "mps", got {name!r}')
    expect(there.get(found, False), f"this machine has no {found} device that torch can use")
    return torch.device(found)


def _one_cycle(t: float, rise: float = 0.25, start: float = 0.05) -> float:
    """Up in a straight line for the first quarter, then down along a cosine. Smith 2018."""
    if t < rise:
        return start + (1 - start) * t / rise
    return 0.5 * (1 + math.cos(math.pi * (t - rise) / (1 - rise)))


SCHEDULES: dict[str, Callable[[float], float]] = {
    "one-cycle": _one_cycle,
    "cosine": lambda t: 0.5 * (1 + math.cos(math.pi * t)),
    "constant": lambda t: 1.0,
}


class _Feed:
    """Shuffles the sources by index and hands out batches that live on the device."""

    def __init__(self, data: Any, where: torch.device, size: int, augment: Any, seed: int) -> None:
        parts = data.sources if isinstance(data, Joint) else {"": data}
        self.sources = {}
        for name, source in parts.items():
            x, targets = _xy(source)
            _expect_samples(f"data {name!r}" if name else "data", x, targets)
            self.sources[name] = x.to(where), {key: y.to(where) for key, y in targets.items()}
        self.augments = [augment] if callable(augment) else list(augment or [])
        self.generator = Generator(where).manual_seed(seed)
        self.neighbours = data.neighbours if isinstance(data, Joint) else None
        paced = {name: len(x) for name, (x, _) in self.sources.items()}
        if self.neighbours is not None:
            self.neighbours = self.neighbours.to(where)
            del paced["source"]
        self.steps_per_epoch = math.ceil(max(paced.values()) / size)
        self.orders = {name: self._shuffled(n, size) for name, n in paced.items()}

    def _shuffled(self, n: int, size: int) -> Iterator[Tensor]:
        g = self.generator
        while True:
            yield from torch.randperm(n, device=g.device, generator=g).split(size)

    def draw(self, t: float) -> Any:
        indices = {name: next(order) for name, order in self.orders.items()}
        if self.neighbours is not None:
            rows, g = self.neighbours[indices["target"]], self.generator
            one = torch.randint(rows.shape[1], (len(rows), 1), device=g.device, generator=g)
            indices["source"] = rows.gather(1, one)[:, 0]
        batches = {}
        for name, index in indices.items():
            x, targets = self.sources[name]
            chosen, y = x[index], {key: values[index] for key, values in targets.items()}
            for change in self.augments:
                chosen = change(chosen, self.generator)
            batches[name] = Batch(as_input(chosen), y.get("", y or None), index, t)
        return batches.get("", batches)


def _xy(data: Any) -> tuple[Tensor, Any]:
    """Inputs, and targets by name: one that stands alone has none, and there may be no targets."""
    pair = (data.pixels, data.labels) if isinstance(data, Images) else data
    known = isinstance(pair, tuple | list) and len(pair) == 2 and isinstance(pair[0], Tensor)
    expect(known, f"data must be Images or a pair (inputs, targets), got {type(data).__name__}")
    x, y = pair
    return x, y if isinstance(y, dict) else {} if y is None else {"": y}


def _expect_samples(which: str, x: Tensor, targets: dict[str, Tensor]) -> None:
    expect(len(x) > 0, f"{which} must hold at least one sample, got none")
    found = [len(y) if isinstance(y, Tensor) else type(y).__name__ for y in targets.values()]
    same = {len(x), *found} == {len(x)}
    expect(same, f"{which} must have as many targets as inputs, got {found} for {len(x)}")


def _expect_classes(model: nn.Module, data: Any) -> None:
    """Labels outside the classes are found before the first step; on a GPU nobody looks later."""
    x, targets = _xy(data)
    one = predict(model, (x[:1], None))
    expect_labels(targets.get(""), one.expand(len(x), *one.shape[1:]))


def _device_of(model: nn.Module) -> torch.device:
    first = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if first is None else first.device


def _optimizer(
    model: nn.Module, objective: Objective, groups: Any, kind: str, lr: float, weight_decay: float
) -> torch.optim.Optimizer:
    expect(kind in ("adamw", "sgd"), f'optimizer must be "adamw" or "sgd", got {kind!r}')
    expect(0 < lr < math.inf, f"lr must be a finite number > 0, got {lr}")
    expect(weight_decay >= 0, f"weight_decay must be >= 0, got {weight_decay}")
    trainable = [{"params": (p for p in model.parameters() if p.requires_grad)}]
    given = trainable if groups is None else groups
    chosen = [{**group, "params": list(group["params"])} for group in given]
    if isinstance(objective, nn.Module):
        known = {*model.parameters()}.union(*(group["params"] for group in chosen))
        own = [p for p in objective.parameters() if p.requires_grad and p not in known]
        chosen.append({"params": own, "weight_decay": 0.0})
    chosen = [group for group in chosen if group["params"]]
    expect(len(chosen) > 0, "there is nothing to train: every parameter is frozen")
    sparse = any(getattr(part, "sparse", False) for part in model.modules())
    fused = not sparse and all(_fast(p) for group in chosen for p in group["params"])
    make: Any = torch.optim.AdamW if kind == "adamw" else partial(torch.optim.SGD, momentum=0.9)
    return make(chosen, lr=lr, weight_decay=weight_decay, fused=fused or None)


def _row(losses: Tensor, before: int, stride: int, end: int) -> dict[str, Any]:
    """The next row of the history: of the steps since the last, whose losses must be finite."""
    begin = before * stride
    bad = (~losses[begin:end].isfinite()).nonzero()
    if len(bad):
        step = begin + int(bad[0])
        raise FloatingPointError(
            f"the loss became {losses[step].item()} at step {step + 1}; "
            "try a smaller lr, or look for a log or a division by zero"
        )
    return {"epoch": before + 1, "step": end, "loss": losses[begin:end].mean().item()}


@contextmanager
def _borrowed(model: nn.Module) -> Iterator[None]:
    """Convolutions hold their weights channels last, and so all that follows them is faster.

    Afterwards they are in their old places, and every part in its old mode, through its `train`
    where that is its own and may do more (LoRA unmerges its weights).
    """
    modes = [(part, part.training) for part in model.modules()]
    known = all(type(part).__module__.startswith(ANY_LAYOUT) for part, _ in modes)
    maps = [p for p in model.parameters() if p.ndim == 4 and _fast(p)] if known else []
    places = [p.data for p in maps]
    for p in maps:
        p.data = torch.empty_like(p.data, memory_format=torch.channels_last).copy_(p.data)
    try:
        yield
    finally:
        for p, place in zip(maps, places):
            p.data = place.copy_(p.data)
        for part, mode in modes:
            if getattr(part.train, "__func__", None) is nn.Module.train:
                part.training = mode
            elif part.training != mode:
                part.train(mode)


def _fast(p: Tensor) -> bool:
    """Whether fused and channels-last kernels take it: floats that leave no gaps in memory."""
    lazy, kinds = nn.parameter.is_lazy(p), (torch.float32, torch.float64)
    known = not lazy and p.dtype in kinds and p.device.type in ("cpu", "cuda")
    return known and torch.empty_like(p, device="meta").stride() == p.stride()


def _hooked(layers: Mapping[str, nn.Module], note: Callable[..., None]) -> ExitStack:
    """note(name, layer, inputs, output) after each; uncompiled, as compiled code meets no hook."""
    with ExitStack() as stack:
        stack.enter_context(torch.compiler.set_stance("force_eager"))
        for name, layer in layers.items():
            if not isinstance(layer, torch.jit.ScriptModule):  # these take none
                stack.enter_context(layer.register_forward_hook(partial(note, name)))
        return stack.pop_all()


def _run(model: nn.Module, data: Source, take: Callable[[Any], dict[str, Tensor]]) -> Any:
    """take(model(x)) over all of x, joined. The first two inputs tell how large their maps are."""
    x, where, whole = _xy(data)[0], _device_of(model), dict[str, Tensor]()
    sizes = [4 * x[:2].numel()]

    def note(*seen: Any) -> None:
        sizes.append(getattr(seen[-1], "nbytes", 1))

    def answer(start: int, size: int) -> None:
        values = as_input(x[start : start + size].to(where, copy=True))
        found, n = take(model(values)), len(values)
        for name, value in found.items():
            shape = tuple(value.shape)
            expect(shape[:1] == (n,), f"{name!r} must give {n} entries for {n} inputs, got {shape}")
            if name not in whole:
                whole[name] = value.new_empty(len(x), *shape[1:])
            whole[name][start : start + n] = value

    with _borrowed(model), torch.no_grad():
        model.eval()
        with _hooked(dict(model.named_modules()), note):
            answer(0, 2)
        room = 2 * LARGEST * (1 if where.type == "cpu" else 32)
        size = max(1, min(MOST, room // max(1, *sizes)))
        for start in range(2, len(x), size):
            answer(start, size)
    return whole


def _entry(answer: Any, output: str | None) -> Tensor:
    answers = answer if isinstance(answer, dict) else {None: answer}
    expect(output in answers, f"output must be {' or '.join(map(str, answers))}, got {output!r}")
    kind = type(answers[output]).__name__
    expect(isinstance(answers[output], Tensor), f"the model must return a tensor, got {kind}")
    return answers[output]
