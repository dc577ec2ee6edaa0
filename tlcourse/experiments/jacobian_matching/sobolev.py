"""Does a network learn a function better when it is told its slopes too?

Functions of one and of two variables, sums of waves, each seed its own. A small smooth network sees
a few points, and the function's values there; or also its slopes; or, as a control, the values at
so many more points that it is told as many numbers. With one output a projection of the Jacobian is
the whole of it, so there is no arm for that.

Every arm makes the same number of updates. Settings are chosen on other functions of the same kind.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from tlcourse.claims import Claim, count, greater
from tlcourse.experiments.base import Case, Experiment, Row, Scale, combinations, tuned
from tlcourse.methods.jacobian import sobolev_loss
from tlcourse.training import fit, seed_everything

VALUES, SLOPES, AS_MANY = "values", "values and slopes", "values, as many numbers"
Grid = dict[str, tuple[float, ...]]
EIGHT: Grid = {"lr": (1e-3, 3e-3, 1e-2, 2e-2, 3e-2, 6e-2, 0.12, 0.24)}
GRIDS: dict[str, Grid] = {
    VALUES: EIGHT,
    SLOPES: {"lr": (1e-2, 3e-2, 6e-2, 0.12), "weight": (0.3, 3.0)},
    AS_MANY: EIGHT,
}
SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}
Function = Callable[[Tensor], Tensor]  # (N, variables) -> (N,)


@dataclass(frozen=True, kw_only=True)
class Sobolev(Scale):
    """Of how many variables functions are, at how many points they are seen, for how long."""

    variables: tuple[int, ...] = (1, 2)
    points: tuple[int, ...] = (5, 10, 20, 50)
    steps: int = 500


def run(scale: Sobolev, seed: int, device: torch.device) -> Iterator[Row]:
    """The error of every arm, in percent of how much the function varies."""
    for case, judge in cases(scale, seed, device):
        yield Row(case.arm, "error", judge(case.trained(scale)), case.at)


def tune(scale: Sobolev, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on functions of this seed."""
    for case, judge in cases(scale, seed, device):
        yield from tuned([case], judge)


def cases(
    scale: Sobolev, seed: int, device: torch.device
) -> Iterator[tuple[Case, Callable[[nn.Module], float]]]:
    """A network for every function, number of points and arm; and how it is judged."""
    for D in scale.variables:
        f = waves(D, seed, device)
        for n in scale.points:
            for arm, settings in SETTINGS.items():
                many = n * (1 + D) if arm == AS_MANY else n
                learn = partial(trained, scale, f, D, many, seed, device)
                yield (
                    Case(arm, settings, learn, {"variables": D, "points": n}),
                    partial(error, f, D),
                )


def waves(D: int, seed: int, device: torch.device, count: int = 6) -> Function:
    """A sum of sines on [−1, 1]^D, each of a length, a direction and a phase of its own."""
    draw = torch.Generator().manual_seed(2 * seed)
    w = 3 * torch.randn(D, count, generator=draw)
    phase = 2 * torch.pi * torch.rand(count, generator=draw)
    w, phase = w.to(device), phase.to(device)
    return lambda x: (x @ w + phase).sin().sum(1)


def trained(
    scale: Sobolev,
    f: Function,
    D: int,
    points: int,
    seed: int,
    device: torch.device,
    setting: Mapping[str, float],
) -> nn.Module:
    """Networks of a seed begin alike, and fewer points are the first of more."""
    draw = torch.Generator().manual_seed(2 * seed + 1)
    x = 2 * torch.rand(points, D, generator=draw).to(device) - 1
    seed_everything(seed)
    layers = nn.Linear(D, 32), nn.Tanh(), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 1)
    network = nn.Sequential(*layers, nn.Flatten(0)).to(device)
    weight = setting.get("weight", 0.0)
    how: dict[str, Any] = {"steps": scale.steps, "batch_size": points, "lr": setting["lr"]}
    fit(
        network,
        (x, None),
        lambda net, batch: sobolev_loss(net, f, batch.x, None, weight=weight),
        progress=False,
        seed=seed,
        **how,
    )
    return network


def error(f: Function, D: int, network: nn.Module) -> float:
    """Root mean squared error on a fine grid, in percent of the function's deviation there."""
    line = torch.linspace(-1, 1, 1_001 if D == 1 else 51, device=next(network.parameters()).device)
    x = torch.cartesian_prod(*[line] * D).reshape(-1, D)
    with torch.no_grad():
        return (100 * (network(x) - f(x)).square().mean().sqrt() / f(x).std()).item()


LECTURE = Sobolev(seeds=20, tuning_seeds=2, minutes=8)
_SET_UPS = [(D, n) for D in LECTURE.variables for n in LECTURE.points]

EXPERIMENT = Experiment(
    name="sobolev",
    question="Does a network learn a function better when it is told its slopes too?",
    chapter="jacobian_matching",
    run=run,
    tune=tune,
    arms=tuple(GRIDS),
    scales={"lecture": LECTURE},
    claims=[
        Claim(
            "J1",
            "derivatives as targets help",
            source="lecture, matching Jacobians, first slide, first point; Czarnecki et al. 2017",
            decide=count(
                [greater(VALUES, SLOPES, "error", variables=D, points=n) for D, n in _SET_UPS],
                at_least=6,
            ),
            unit="of eight set-ups (functions of one and of two variables, at 5, 10, 20 and 50 "
            "points), in how many slopes lower the error",
            varies="each seed draws a function, points and initial weights",
        )
    ],
)
