r"""Is matching Jacobians the same as distilling with noise on the inputs?

With :math:`g = S - T`, what noise adds to the squared distance of two networks is measured, over
:math:`\sigma^2`. Beside it stand the paper's term, :math:`\lVert J_g \rVert_F^2`, and the same with
what the paper leaves out, :math:`\sum_i g_i\, \mathrm{tr}\, H_i`.

Networks are smooth (tanh); smooth, and of one mind wherever they are asked, so that g is 0 there;
linear; or of straight pieces (ReLU). A piece has no Hessian, but noise crosses from piece to piece:
the smaller it is the fewer points notice, and the more each of them does.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import hessian, jacrev, vmap

from tlcourse.claims import Claim, Decision, count, exact
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.training import seed_everything

PAPER, WHOLE = "paper's", "with Hessian"
AGREEING = "tanh, agreeing"
NETWORKS: dict[str, type[nn.Module]] = {
    "tanh": nn.Tanh,
    AGREEING: nn.Tanh,
    "linear": nn.Identity,
    "ReLU": nn.ReLU,
}
Function = Callable[[Tensor], Tensor]  # (…, inputs) -> (…, outputs)


@dataclass(frozen=True, kw_only=True)
class Noise(Scale):
    """The noise's deviations, at how many points it is put, pairs ±ξ, and numbers that ξ has."""

    sigmas: tuple[float, ...] = (0.003, 0.01, 0.03, 0.1, 0.3)
    points: int = 512
    pairs: int = 512
    inputs: int = 8


def run(scale: Noise, seed: int, device: torch.device) -> Iterator[Row]:
    """By network and σ: what noise adds, over σ², and how far each form is from it.

    Errors are relative to the paper's term: of the mean over all points, and of the middle point.
    """
    seed_everything(seed)
    x = torch.randn(scale.points, scale.inputs, dtype=torch.float64)
    noise = draws(scale.pairs, scale.inputs)
    for name, activation in NETWORKS.items():
        student, teacher = (network(scale.inputs, activation) for _ in "ST")
        g = gap(student, teacher)
        values = torch.zeros_like(g(x)) if name == AGREEING else g(x)
        forms = terms(g, x, values)
        size = forms[PAPER].mean()
        for sigma in scale.sigmas:
            at, found = {"network": name, "sigma": sigma}, added(g, x, values, noise, sigma)
            yield Row("measured", "added", found.mean().item(), at)
            for form, term in forms.items():
                yield Row(form, "added", term.mean().item(), at)
                yield Row(form, "error", ((term - found).mean() / size).item(), at)
                middle = ((term - found).abs() / size).median().item()
                yield Row(form, "error of the middle point", middle, at)


def network(inputs: int, activation: type[nn.Module]) -> nn.Sequential:
    """A random network with four outputs; its weights are doubled, else it would hardly bend."""
    linear = nn.Linear(inputs, 32), nn.Linear(32, 4)
    net = nn.Sequential(linear[0], activation(), linear[1]).double().requires_grad_(False)
    for layer in linear:
        layer.weight.mul_(2)
    return net


def gap(student: Function, teacher: Function) -> Function:
    """g = S − T."""
    return lambda x: student(x) - teacher(x)


def terms(g: Function, x: Tensor, values: Tensor) -> dict[str, Tensor]:
    """At every point the paper's term, and with the Hessian's. values: g there."""
    J, H = vmap(jacrev(g))(x), vmap(hessian(g))(x)
    paper = J.square().sum((1, 2))
    lost = (values * H.diagonal(dim1=2, dim2=3).sum(2)).sum(1)
    return {PAPER: paper, WHOLE: paper + lost}


def added(g: Function, x: Tensor, values: Tensor, noise: Tensor, sigma: float) -> Tensor:
    """What noise adds to ‖g‖² at every point, over σ². values: g there, whatever its constant."""
    moved = g(x[:, None] + sigma * noise) - g(x)[:, None] + values[:, None]
    return (moved.square().sum(2).mean(1) - values.square().sum(1)) / sigma**2


def draws(pairs: int, inputs: int) -> Tensor:
    """Gaussian draws ±ξ whose mean is 0 and whose covariance is 1 exactly, and not on average.

    So what is quadratic in the noise has no error of chance.
    """
    columns, _ = torch.linalg.qr(torch.randn(pairs, inputs, dtype=torch.float64))
    return torch.cat([columns, -columns]) * pairs**0.5


def _within(form: str, name: str, sigma: float = 0.01) -> Decision:
    return exact("error", tolerance=1e-3, arm=form, network=name, sigma=sigma)


_SLIDE = "lecture, matching Jacobians, first slide, second point; Srinivas and Fleuret 2018"
_ERROR = "largest error of what noise of σ = 0.01 adds, relative to the Jacobians' term"

EXPERIMENT = Experiment(
    name="noise_equivalence",
    question="Is matching Jacobians the same as distilling with noise on the inputs?",
    chapter="jacobian_matching",
    run=run,
    arms=("measured", PAPER, WHOLE),
    scales={"lecture": Noise(seeds=5, minutes=1)},
    claims=[
        Claim(
            "J2",
            "matching Jacobians is distilling with noisy inputs",
            source=f"{_SLIDE}, proposition 1 (E4)",
            decide=_within(PAPER, "tanh"),
            unit=f"{_ERROR}; smooth networks",
            varies="each seed draws two networks and where they are asked",
        ),
        Claim(
            "J2h",
            "with the Hessian's term it is",
            source="ours (E4)",
            decide=_within(WHOLE, "tanh"),
            unit=f"{_ERROR} and the Hessian's; smooth networks",
            varies="each seed draws two networks and where they are asked",
        ),
        Claim(
            "J2l",
            "it is where the networks agree already, or are linear",
            source="ours (E4)",
            decide=count([_within(PAPER, name) for name in (AGREEING, "linear")], at_least=2),
            unit="of two kinds of networks, for how many the Jacobians' term is what noise adds",
            varies="each seed draws two networks and where they are asked",
        ),
    ],
)
