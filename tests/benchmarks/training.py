"""Timings of the training loop, side by side in one process, on one thread. Run by hand.

`python tests/benchmarks/training.py [OLD.py]` prints a table: the median seconds of both, taken in
turns, and the median of the ratios of each turn, with its range. They are seconds of the processor,
so that other processes count little. On Linux most of the noise goes when freed memory is kept for
the next step: `MALLOC_MMAP_MAX_=0 MALLOC_TRIM_THRESHOLD_=4294967296` in front of the command.
OLD.py is an earlier `training.py`, of which `fit` is then compared too
(`git show REVISION:tlcourse/training.py`).
"""

import importlib.util
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset
from torchvision.transforms.functional import to_pil_image, to_tensor

from tlcourse import training
from tlcourse.data import Images, as_input, load
from tlcourse.methods.distillation import distillation_loss
from tlcourse.models import MLP, ConvNet, WideResNet
from tlcourse.training import fit, predict, record, seed_everything

STEPS, BATCH = 40, 128
NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "MLP(784, 800, 800, 10)": lambda: MLP(784, 800, 800, 10),
    "ConvNet(10, width=12, units=96)": lambda: ConvNet(10, width=12, units=96),
    "WideResNet(10, 1, channels=1, base=8, stem_stride=2)": lambda: WideResNet(
        10, 1, channels=1, base=8, stem_stride=2
    ),
}
Run = Callable[[], object]


def in_turns(runs: list[Run], rounds: int) -> list[list[float]]:
    """Seconds of each, round by round; the order turns around, and a first round warms up."""
    taken: list[list[float]] = [[] for _ in runs]
    for turn in range(rounds + 1):
        for i in range(len(runs)) if turn % 2 else reversed(range(len(runs))):
            start = time.process_time()
            runs[i]()
            if turn:
                taken[i].append(time.process_time() - start)
    return taken


def line(title: str, ours: list[float], other: list[float], goal: str) -> None:
    """A line of the table."""
    a, b = statistics.median(ours), statistics.median(other)
    ratios = sorted(x / y for x, y in zip(ours, other))
    middle, span = statistics.median(ratios), f"{ratios[0]:.2f} to {ratios[-1]:.2f}"
    print(f"{title:84} {a:6.2f} s {b:6.2f} s {middle:6.3f} ({span})  {goal}", flush=True)


def compare(title: str, ours: Run, other: Run, goal: str, rounds: int = 9) -> None:
    """Both in turns, as a line of the table."""
    line(title, *in_turns([ours, other], rounds), goal)


def bare(make: Callable[[], nn.Module], train: Images) -> nn.Module:
    """The fast step, written out: index, scale, forward, backward, fused update, schedule."""
    seed_everything(0)
    network = channels_last(make()).train()
    optimizer = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=0.0, fused=True)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: training.SCHEDULES["one-cycle"](step / STEPS)
    )
    order = torch.Generator().manual_seed(0)
    for index in torch.randperm(len(train), generator=order).split(BATCH)[:STEPS]:
        loss = F.cross_entropy(network(as_input(train.pixels[index])), train.labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        pace.step()
    return network


def ours(make: Callable[[], nn.Module], train: Images, by: Any = training) -> nn.Module:
    """The same through `fit`, of this module or an earlier one."""
    seed_everything(0)
    network = make()
    by.fit(network, train, by.cross_entropy, steps=STEPS, batch_size=BATCH, progress=False)
    return network


def channels_last(network: nn.Module) -> nn.Module:
    """What is usual for speed."""
    return network.to(memory_format=torch.channels_last)


def asked(network: nn.Module, images: Images, size: int) -> Tensor:
    """A bare loop over all images in batches of this size."""
    with torch.inference_mode():
        return torch.cat([network(as_input(part)) for part in images.pixels.split(size)])


def evaluation(title: str, make: Callable[[], nn.Module], test: Images) -> None:
    """`predict` against bare loops over batches of several sizes: the fastest of these counts."""
    sizes = (64, 128, 256, 512, 2048)
    plain, fast = make(), channels_last(make()).eval()
    loops = [partial(asked, fast, test, size) for size in sizes]
    mine, *others = in_turns([lambda: predict(plain, test), *loops], 7)
    best = min(others, key=statistics.median)
    size = sizes[others.index(best)]
    line(f"10,000 images: {title}, best bare loop ({size} at once)", mine, best, "≤ 1.05")


class Pictures(Dataset):
    """Items as torchvision's data sets give them, each turned from a picture into a tensor."""

    def __init__(self, images: Images) -> None:
        self.images, self.pictures = images, [to_pil_image(x) for x in images.pixels]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, i: int) -> tuple[Tensor, Tensor]:
        return to_tensor(self.pictures[i]), self.images.labels[i]


def distillation(train: Images) -> Iterator[tuple[str, Run, Run, str]]:
    """A recorded teacher against a live one, and against torchdistill's loss and a DataLoader."""
    from torchdistill.losses.mid_level import KDLoss

    teacher = MLP(784, 1200, 1200, 10).eval()
    said = record(teacher, train)
    theirs = KDLoss(".", "output", ".", "output", temperature=4.0, alpha=0.1)
    steps = STEPS // 2

    def live(net: nn.Module, batch: Any) -> Tensor:
        with torch.no_grad():
            v = teacher(batch.x)
        return distillation_loss(net(batch.x), v, batch.y, T=4, alpha=0.9)

    def recorded(net: nn.Module, batch: Any) -> Tensor:
        return distillation_loss(net(batch.x), said[batch.index], batch.y, T=4, alpha=0.9)

    def distil(objective: Any) -> Run:
        return lambda: fit(MLP(784, 800, 800, 10), train, objective, steps=steps, progress=False)

    def usual(items: Any) -> None:
        student = MLP(784, 800, 800, 10)
        optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3, weight_decay=0.0)
        for _, (x, y) in zip(range(steps), DataLoader(items, batch_size=BATCH, shuffle=True)):
            with torch.no_grad():
                v = teacher(x)
            loss = theirs({".": {"output": student(x)}}, {".": {"output": v}}, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    who = "1200-1200 teaches 800-800: recorded teacher, "
    yield who + "live teacher", distil(recorded), distil(live), "≤ 0.75"
    floats = TensorDataset(as_input(train.pixels), train.labels)
    for items, what in ((Pictures(train), "pictures"), (floats, "tensors")):
        title = f"{who}torchdistill, DataLoader of {what}"
        yield title, distil(recorded), partial(usual, items), "≤ 0.5"


def two_workers_against_one() -> None:
    """A measurement with two workers and with one, each in a fresh folder; of two free cores."""
    from tlcourse import measure
    from tlcourse.experiments.distillation.distillation import EXPERIMENT, LIVE

    data, seconds = Path(__file__).parents[2] / "data", {}
    for workers in (2, 1):
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "data").mkdir()
            (Path(home) / "data" / "SHA256SUMS").write_bytes((data / "SHA256SUMS").read_bytes())
            (Path(home) / "data" / "mnist").symlink_to(data / "mnist")
            os.environ["TLCOURSE_HOME"] = home
            experiment = replace(EXPERIMENT, scales={"bench": LIVE.but(seeds=4)})
            start = time.perf_counter()
            measure.measure(experiment, "bench", workers=workers, progress=False)
            seconds[workers] = [time.perf_counter() - start]
    line("four seeds measured: two workers, one", seconds[2], seconds[1], "≤ 0.6")


def earlier(path: str) -> Any:
    """An earlier training.py as a module."""
    spec: Any = importlib.util.spec_from_file_location("earlier", path)
    module = sys.modules["earlier"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def main() -> None:
    """Print the table."""
    torch.set_num_threads(1)
    train, test = load("mnist").split(10_000, 10_000, seed=0)
    print(f"{'ours, other':84} {'ours':>8} {'other':>8} {'ratio':>6} (of each turn)  goal")
    for title, make in NETWORKS.items():
        both = partial(ours, make, train), partial(bare, make, train)
        compare(f"{STEPS} steps: {title}, bare", *both, "≤ 1.02")
    for title, make in NETWORKS.items():
        evaluation(title, make, test)
    for comparison in distillation(train):
        compare(*comparison)
    if len(sys.argv) > 1:
        before = earlier(sys.argv[1])
        for title, make in NETWORKS.items():
            both = partial(ours, make, train), partial(ours, make, train, before)
            compare(f"{STEPS} steps: {title}, earlier", *both, "")
    two_workers_against_one()


if __name__ == "__main__":
    main()
