"""Timings of the training loop, side by side in one process. Run by hand: `python
tests/benchmarks/training.py`.

Each pair runs in turns, several times, and the ratio of the medians is printed beside its goal. All
on one thread.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch.utils.data import DataLoader, TensorDataset

from tlcourse.data import Images, as_input, load
from tlcourse.methods.distillation import distillation_loss
from tlcourse.models import MLP
from tlcourse.training import cross_entropy, fit, record, seed_everything

STEPS, BATCH = 150, 128


def side_by_side(
    title: str, ours: Callable[[], object], other: Callable[[], object], goal: str, rounds: int = 7
) -> None:
    """Print the median seconds of both, taken in turns, and their ratio."""
    taken: dict[Callable[[], object], list[float]] = {ours: [], other: []}
    for round_ in range(rounds + 1):
        for run in (ours, other) if round_ % 2 else (other, ours):
            start = time.perf_counter()
            run()
            if round_:  # the first round warms up
                taken[run].append(time.perf_counter() - start)
    a, b = (statistics.median(taken[run]) for run in (ours, other))
    ratios = sorted(x / y for x, y in zip(taken[ours], taken[other]))
    print(
        f"{title}: {a:.3f} s against {b:.3f} s, ratio {a / b:.3f} (rounds {ratios[0]:.3f} to {ratios[-1]:.3f}; goal {goal})",
        flush=True,
    )


def student() -> torch.nn.Module:
    """The same student every time."""
    seed_everything(0)
    return MLP(784, 300, 300, 10)


def with_fit(train: Images) -> None:
    """Our step."""
    fit(student(), train, cross_entropy, steps=STEPS, batch_size=BATCH, progress=False)


def bare(train: Images) -> None:
    """The same step, written out: index, scale, forward, backward, update."""
    net = student().train()
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.0)
    pace = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
    generator = torch.Generator().manual_seed(0)
    orders = [
        index
        for _ in range(3)
        for index in torch.randperm(len(train), generator=generator).split(BATCH)
    ][:STEPS]
    for index in orders:
        loss = F.cross_entropy(net(as_input(train.pixels[index])), train.labels[index])
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        pace.step()


def batches_by_index(train: Images) -> None:
    """One epoch of batches, sliced from the tensor."""
    for index in torch.randperm(len(train)).split(BATCH):
        as_input(train.pixels[index]), train.labels[index]


def batches_by_loader(train: Images) -> None:
    """One epoch of batches from a DataLoader."""
    for pixels, _ in DataLoader(
        TensorDataset(train.pixels, train.labels), batch_size=BATCH, shuffle=True
    ):
        as_input(pixels)


def two_workers_against_one() -> None:
    """Seconds of a measurement with one worker and with two, in fresh folders."""
    import os

    from tlcourse import records
    from tlcourse.experiments.base import Experiment, Scale
    from tlcourse.experiments.distillation import LIVE, distillation, run

    sums = Path(__file__).parents[2] / "data" / "SHA256SUMS"
    seconds = {}
    for workers in (1, 2):
        with tempfile.TemporaryDirectory() as home:
            (Path(home) / "data").mkdir()
            (Path(home) / "data" / "SHA256SUMS").write_bytes(sums.read_bytes())
            (Path(home) / "data" / "mnist").symlink_to(sums.parent / "mnist")
            os.environ["TLCOURSE_HOME"] = home
            scales = {"bench": Scale(**{**vars(LIVE), "seeds": 4})}
            experiment = Experiment("bench", "", "", run, distillation.arms, scales, ())
            start = time.perf_counter()
            records.measure(experiment, "bench", workers=workers, progress=False)
            seconds[workers] = time.perf_counter() - start
    print(
        f"one worker against two: {seconds[1]:.1f} s against {seconds[2]:.1f} s, {seconds[1] / seconds[2]:.2f}× (goal ≥ 1.7×)"
    )


def main() -> None:
    """Print all four comparisons."""
    torch.set_num_threads(1)
    train, _ = load("mnist").split(10_000, 10_000, seed=0)
    side_by_side(
        "our step against the bare one", lambda: with_fit(train), lambda: bare(train), "≤ 1.02"
    )
    side_by_side(
        "index slicing against DataLoader",
        lambda: batches_by_index(train),
        lambda: batches_by_loader(train),
        "well below 1",
    )

    teacher = MLP(784, 1200, 1200, 10).eval()
    said = record(teacher, train)

    def live(net: torch.nn.Module, batch) -> torch.Tensor:
        with torch.no_grad():
            teacher_logits = teacher(batch.x)
        return distillation_loss(net(batch.x), teacher_logits, batch.y, T=4, alpha=0.9)

    def recorded(net: torch.nn.Module, batch) -> torch.Tensor:
        return distillation_loss(net(batch.x), said[batch.index], batch.y, T=4, alpha=0.9)

    def distil(objective) -> Callable[[], object]:
        return lambda: fit(MLP(784, 800, 800, 10), train, objective, steps=50, progress=False)

    side_by_side(
        "recorded teacher against a live one (1200-1200 teaches 800-800)",
        distil(recorded),
        distil(live),
        "≤ 0.75",
    )
    two_workers_against_one()


if __name__ == "__main__":
    main()
