r"""What the slides derive: is a weighted sum of losses minus the log of a likelihood?

Two regressions are compared with what `torch.distributions` says of normal densities, up to the
constant :math:`D \log \sqrt{2\pi}`. A classification's approximation,
:math:`CE / \sigma^2 + \log \sigma`, is compared with the exact softmax of :math:`f / \sigma^2`: how
far it is off depends on the logits; here they are drawn, and mostly right.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import log, pi

import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.claims import Claim, exact
from tlcourse.experiments.base import Experiment, Row, Scale
from tlcourse.methods.uncertainty import Tasks, UncertaintyWeighting, softmax_nll
from tlcourse.training import seed_everything

SLIDE, WITH_D, SOFTMAX = "slide's", "with D", "softmax"
REGRESSIONS: Tasks = {"one": "regression", "other": "regression"}


@dataclass(frozen=True, kw_only=True)
class Likelihoods(Scale):
    """σ² of a softmax and of two regressions, numbers in a y, samples, and classes."""

    variances: tuple[float, ...] = (0.25, 0.5, 0.8, 1.0, 1.25, 2.0, 4.0, 16.0, 1e6)
    sizes: tuple[int, ...] = (1, 2)
    samples: int = 512
    classes: int = 8


def run(scale: Likelihoods, seed: int, device: torch.device) -> Iterator[Row]:
    """How far a sum of losses is from minus the log-likelihood, and a softmax from uniform."""
    seed_everything(seed)
    labels = torch.randint(scale.classes, (scale.samples,))
    logits = 2 * torch.randn(scale.samples, scale.classes) + 3 * F.one_hot(labels, scale.classes)
    for variance in scale.variances:
        at, s = {"variance": variance}, log(variance)
        softmax = (logits.double() / variance).softmax(1)
        apart = (softmax - 1 / scale.classes).abs().max().item()
        yield Row(SOFTMAX, "distance from uniform", apart, at)
        right = softmax_nll(logits.double(), labels, s).item()
        found = F.cross_entropy(logits.double(), labels).item() / variance + s / 2
        yield Row(SOFTMAX, "nats", right, at)
        yield Row(SLIDE, "nats", found, at)
        yield Row(SLIDE, "error", abs(found - right) / right, at)
    for D in scale.sizes:
        y, f = torch.randn(2, scale.samples, D), torch.randn(2, scale.samples, D)
        noises = torch.randn(2)
        right = minus_log_likelihood(y, f, noises).item()
        for form, dims in {SLIDE: 1, WITH_D: D}.items():
            found = weighted(y, f, noises, dims) + D * log(2 * pi)
            yield Row(form, "difference", found - right, {"numbers": D})


def minus_log_likelihood(y: Tensor, f: Tensor, s: Tensor) -> Tensor:
    """Of two tasks with normal noise, summed over tasks and numbers, mean over samples."""
    noise = torch.exp(s / 2)[:, None, None]
    return -torch.distributions.Normal(f, noise).log_prob(y).sum((0, 2)).mean()


def weighted(y: Tensor, f: Tensor, s: Tensor, dims: int) -> float:
    """The sum that uncertainty weighting minimises, of squared distances and so many numbers."""
    begin = dict(zip(REGRESSIONS, s.tolist()))
    weigh = UncertaintyWeighting(REGRESSIONS, dims=dict.fromkeys(begin, dims), initial=begin)
    return weigh(dict(zip(REGRESSIONS, (y - f).square().sum(2).mean(1)))).item()


_claim = partial(
    Claim,
    source="lecture, uncertainty weighting; Kendall et al. 2018, section 3",
    varies="each seed draws answers, labels and noise",
)

EXPERIMENT = Experiment(
    name="likelihoods",
    question="Is a weighted sum of losses minus the log of a likelihood?",
    chapter="multi_task_learning",
    run=run,
    arms=(SOFTMAX, SLIDE, WITH_D),
    scales={"lecture": Likelihoods(seeds=5, minutes=0.1)},
    claims=[
        _claim(
            "U1",
            "the distribution becomes uniform as σ → ∞",
            decide=exact("distance from uniform", tolerance=1e-4, variance=1e6),
            unit="largest distance of a probability from 1/8, at σ² = 1,000,000",
        ),
        _claim(
            "U2",
            "two regressions are weighted by 1/(2σ²), and log σ is added",
            decide=exact("difference", tolerance=1e-4, arm=SLIDE, numbers=1),
            unit="nats between the sum and minus the log-likelihood; y is one number",
        ),
        _claim(
            "U2v",
            "with log σ, as on the slide, it is so for vectors, too",
            source="lecture, uncertainty weighting, slide on two regression tasks: ‖y − f‖²",
            decide=exact("difference", tolerance=1e-4, arm=SLIDE, numbers=2),
            unit="nats between the sum and minus the log-likelihood; y has two numbers",
        ),
        _claim(
            "U2d",
            "for vectors of D numbers D·log σ is added",
            source="ours",
            decide=exact("difference", tolerance=1e-4, arm=WITH_D, numbers=2),
            unit="nats between the sum and minus the log-likelihood; y has two numbers",
        ),
        _claim(
            "U3",
            "the form of a classification is right as σ → 1",
            decide=exact("error", tolerance=1e-6, variance=1.0),
            unit="error relative to the exact softmax, at σ² = 1",
        ),
        _claim(
            "U3f",
            "it is close elsewhere",
            source="ours (E5)",
            decide=exact("error", tolerance=0.1, variance=2.0),
            unit="error relative to the exact softmax, at σ² = 2",
        ),
    ],
)
