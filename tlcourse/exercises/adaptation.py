"""Exercises on domain adaptation, of the chapter on transfer learning."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import Exercise, Function
from tlcourse.exercises._loss import trained

OfTwo = Callable[[Tensor, Tensor], Tensor]
Of = Callable[[Tensor], Tensor]
Turned = Callable[[Tensor, float], Tensor]


def reversed_loss(features: Tensor, domains: Tensor, w: Tensor, strength: float) -> Tensor:
    """What goes to w is the features in value, and −λ times them for a derivative."""
    here = features.detach()
    turned = here - strength * (features - here)
    return F.binary_cross_entropy_with_logits(turned @ w, domains)


def coral(source: Tensor, target: Tensor) -> Tensor:
    """‖C_S − C_T‖² / 4d²: covariances over N − 1, squares of all entries."""
    S, T = source - source.mean(0), target - target.mean(0)
    apart = S.T @ S / (len(S) - 1) - T.T @ T / (len(T) - 1)
    return apart.square().sum() / (4 * source.shape[1] ** 2)


def with_statistics_of_the_target(network: Any, target: Tensor) -> Tensor:
    """Averages anew, over all that comes; then they stay as they are."""
    norm = network[1]
    norm.reset_running_stats()
    norm.momentum = None  # the mean of all batches so far, not a tenth of the last
    with torch.no_grad():
        network.train()(target)
        return network.eval()(target)


def of_all_and_of_one(answer: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The logits, how the network is left, and what it then says of the first picture alone.

    Logits in half precision: whether a variance is over n or n − 1 is free.
    """
    network, target = after_the_source(inputs["seed"]), inputs["target"]
    before = [p.clone() for p in network.parameters()]
    logits = answer(network=network, target=target)
    wanted = len(target), 3
    if not (isinstance(logits, Tensor) and logits.shape == wanted):
        got = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise Told(f"Not yet: return the logits, a tensor of shape {wanted}; got {got}.")
    same = all(torch.equal(a, b) for a, b in zip(before, network.parameters()))
    modes = {part.training for part in network.modules()}
    with torch.no_grad():
        alone = tried(network, "an error", target[:1])
    return {
        "the logits": logits.detach().to(torch.half),
        "the logits of the first picture alone, afterwards": (
            alone.half() if isinstance(alone, Tensor) else alone
        ),
        "the network's mode afterwards": "training, at least in part" if any(modes) else "eval",
        "the weights": "as they were" if same else "others",
    }


def after_the_source(seed: int) -> Any:
    """A small network whose averages are those of pictures of the source."""
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3, momentum=None)
    network = nn.Sequential(nn.Conv2d(1, 3, 2), norm, nn.ReLU(), nn.Flatten(), nn.Linear(12, 3))
    with torch.no_grad():
        network(0.7 + 1.5 * torch.randn(64, 1, 3, 3))
    norm.momentum = 0.1
    return network


def _for_reversal(g: Generator, size: int) -> dict[str, Any]:
    """Features that the discriminator has learnt something of."""
    domains = (torch.arange(size) % 2).float()
    features = torch.randn(size, 2, generator=g) + domains[:, None]
    strength = (0.0, 0.5, 2.0, 1.0)[size % 4]
    return {
        "features": features,
        "domains": domains,
        "w": torch.randn(2, generator=g),
        "strength": strength,
    }


def _for_coral(g: Generator, size: int) -> dict[str, Any]:
    """As many of both, of other means and other covariances."""
    shape = 1 + size, 2 + size % 3
    source, target = (2 * torch.randn(*shape, generator=g) for _ in range(2))
    return {"source": source + 1, "target": target @ torch.randn(shape[1], shape[1], generator=g)}


def _for_statistics(g: Generator, size: int) -> dict[str, Any]:
    """Other light than in the source; many, so that dividing by n or n − 1 is the same."""
    pictures = torch.randn(4_000, 1, 3, 3, generator=g)
    return {"seed": size, "target": (0.4 + 0.1 * size) * pictures - 0.3 * size}


def _gives(x: Tensor, backward: Tensor) -> Tensor:
    """The value of one, and the derivative of the other."""
    return x.detach() + backward - backward.detach()


def _reversal(
    turned: Turned = lambda f, k: _gives(f, -k * f),
    of_w: Turned = lambda w, k: w,
    of_loss: Turned = lambda L, k: L,
    of_domains: Of = lambda y: y,
) -> Function:
    """A version of the loss: what is done to features, to w and to the loss, given λ."""

    def loss(features: Tensor, domains: Tensor, w: Tensor, strength: float) -> Tensor:
        z = turned(features, strength) @ of_w(w, strength)
        return of_loss(F.binary_cross_entropy_with_logits(z, of_domains(domains)), strength)

    return loss


def _as_it_is(x: Tensor, k: float) -> Tensor:
    return x


def _centred(f: Tensor) -> Tensor:
    return f - f.mean(0)


def _covariance(f: Tensor) -> Tensor:
    return _centred(f).T @ _centred(f) / (len(f) - 1)


def _coral(
    C: Of = _covariance,
    norm: Of = lambda apart: apart.square().sum(),
    scale: Callable[[int], float] = lambda d: 4 * d**2,
    pair: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] = lambda S, T: (S, T),
) -> Function:
    """A version of the loss: a matrix of each, a norm of the difference, what it is divided by."""

    def loss(source: Tensor, target: Tensor) -> Tensor:
        S, T = pair(source, target)
        if C(S).shape != C(T).shape:
            return torch.tensor(torch.nan)
        return norm(C(S) - C(T)) / scale(source.shape[1])

    return loss


def _answers(
    *steps: Callable[[Any, Tensor], Any], changed: Of = lambda x: x, train: bool = False
) -> Function:
    """A version: steps before the network is asked, what it is asked of, and in which mode."""

    @torch.no_grad()
    def answers(network: Any, target: Tensor) -> Tensor:
        for step in steps:
            step(network, target)
        return network.train(train)(changed(target))

    return answers


@torch.no_grad()
def _then_eval(network: Any, target: Tensor) -> Tensor:
    logits = network.train()(target)
    network.eval()
    return logits


@torch.no_grad()
def _one_by_one(network: Any, target: Tensor) -> Tensor:
    """What `network.train()` answers to single pictures, for all at once."""
    x = network[0](target)
    var, mean = torch.var_mean(x, (2, 3), keepdim=True, correction=0)
    norm = network.train()[1]
    h = (x - mean) / (var + norm.eps).sqrt() * norm.weight[:, None, None]
    return network[2:](h + norm.bias[:, None, None])


def _reset(network: Any, target: Tensor) -> None:
    network[1].reset_running_stats()


def _pass(network: Any, target: Tensor) -> None:
    network.train()(target)


def _no_averages(network: Any, target: Tensor) -> None:
    norm = network[1]
    norm.running_mean = norm.running_var = None


def _by_hand(mean: bool = True, power: float = 0.0) -> Callable[[Any, Tensor], None]:
    """The averages are set. power: of the variance, 0 where it stays."""

    def set_(network: Any, target: Tensor) -> None:
        var, mu = torch.var_mean(network[0](target), (0, 2, 3))
        if mean:
            network[1].running_mean.copy_(mu)
        if power:
            network[1].running_var.copy_(var**power)

    return set_


def _standardised(x: Tensor) -> Tensor:
    return (x - x.mean()) / x.std()


EXERCISES: dict[str, Exercise] = {
    "gradient_reversal": Exercise(
        title="learn to deceive",
        task="Write `my_domain_loss(features, domains, w, strength)`. A domain classifier with the "
        "weights `w` (d,) gives each of `features` (N, d) a logit, `features @ w`; `domains` (N,) "
        "are 0.0 for the source and 1.0 for the target. Return the mean binary cross-entropy. Its "
        "gradient at `w` is the usual one, so that the classifier learns to tell the domains "
        "apart. At `features` it is the usual one times −λ, `strength`, so that what makes them "
        "learns to deceive it. The value does not depend on λ.",
        kind="write",
        difficulty=2,
        minutes=10,
        core=True,
        reference=reversed_loss,
        axes=("sample", "feature"),
        draw=_for_reversal,
        see=trained("features", "w"),
        mistakes=[
            (
                "nothing is turned round: the features learn to help the discriminator.",
                _reversal(_as_it_is),
            ),
            (
                "the gradient at the features is λ times the usual one, without the minus: they "
                "help the discriminator.",
                _reversal(lambda f, k: _gives(f, k * f)),
            ),
            (
                "the features' gradient is turned round, but λ is forgotten.",
                _reversal(lambda f, k: _gives(f, -f)),
            ),
            (
                "λ counts twice at the features: −λ² times the usual gradient.",
                _reversal(lambda f, k: _gives(f, -(k**2) * f)),
            ),
            (
                "the loss is subtracted, so both are turned round: the discriminator learns to be "
                "wrong, which is no contest.",
                _reversal(_as_it_is, of_loss=lambda L, k: -k * L),
            ),
            (
                "the loss is subtracted, so both are turned round and the discriminator learns to "
                "be wrong; and λ is forgotten.",
                _reversal(_as_it_is, of_loss=lambda L, k: -L),
            ),
            (
                "the value is right, but the gradient at `w` is turned round, too: the "
                "discriminator learns to be wrong. Reverse before it, not behind it.",
                _reversal(_as_it_is, of_loss=lambda L, k: _gives(L, -k * L)),
            ),
            (
                "the value is right, but both gradients are turned round, the discriminator's too; "
                "and λ is forgotten.",
                _reversal(_as_it_is, of_loss=lambda L, k: _gives(L, -L)),
            ),
            (
                "the sign is on the forward pass: the discriminator sees −f, which is as if the "
                "domains were exchanged. Forwards nothing changes.",
                _reversal(lambda f, k: -f),
            ),
            (
                "the discriminator sees −λf. Forwards nothing changes; only the gradient is "
                "multiplied.",
                _reversal(lambda f, k: -k * f),
            ),
            (
                "the sign is on the forward pass, too: the discriminator sees −f, and the gradient "
                "is multiplied by −λ.",
                _reversal(lambda f, k: _gives(-f, -k * f)),
            ),
            (
                "λ is on the forward pass, too: the discriminator sees λf.",
                _reversal(lambda f, k: _gives(k * f, -k * f)),
            ),
            (
                "`f.detach() - λ * f` is (1 − λ)f in value; add λf, detached.",
                _reversal(lambda f, k: f.detach() - k * f),
            ),
            (
                "the discriminator learns λ times, too; λ is for the features alone.",
                _reversal(lambda f, k: _gives(f, -f), of_loss=lambda L, k: k * L),
            ),
            (
                "the value is right, but the discriminator learns λ times, too; λ is for the "
                "features alone.",
                _reversal(lambda f, k: _gives(f, -k * f), lambda w, k: _gives(w, k * w)),
            ),
            (
                "the features are detached: the discriminator learns, and nobody deceives it.",
                _reversal(lambda f, k: f.detach()),
            ),
            (
                "the discriminator does not learn: `w` is detached.",
                _reversal(of_w=lambda w, k: w.detach()),
            ),
            (
                "the domains are exchanged, 1 for the source: so the discriminator learns the "
                "opposite.",
                _reversal(of_domains=lambda y: 1 - y),
            ),
        ],
        hints=[
            "Forwards the features stay as they are. Between them and `w`, what must a gradient "
            "be multiplied by on its way back?",
            "`x.detach()` has the value of x and no gradient. What are the value and the gradient "
            "of `x.detach() + c * (x - x.detach())`?",
            "c is −λ. Take that for the features: `F.binary_cross_entropy_with_logits(turned @ "
            "w, domains)`.",
        ],
    ),
    "coral": Exercise(
        title="covariances alike",
        task="Write `my_coral(source, target)`: how far the covariances of two batches of "
        "features are apart, `source` and `target`, (N, d) each. A covariance C (d, d) is over "
        "the samples of a batch, around its own mean, divided by N − 1. Sum the squares of all "
        "entries of C_S − C_T, and divide by 4d². Both batches get a gradient.",
        kind="write",
        difficulty=1,
        minutes=7,
        reference=coral,
        axes=("sample", "feature"),
        draw=_for_coral,
        see=trained("source", "target"),
        mistakes=[
            (
                "the features are not centred: means count as well. Subtract each batch's mean.",
                _coral(lambda f: f.T @ f / (len(f) - 1)),
            ),
            (
                "the features are not centred, and the products are divided by N.",
                _coral(lambda f: f.T @ f / len(f)),
            ),
            (
                "each sample is centred over its features; centre each feature over the samples.",
                _coral(lambda f: (g := f - f.mean(1, keepdim=True)).T @ g / (len(f) - 1)),
            ),
            (
                "the products are divided by N; here it is N − 1.",
                _coral(lambda f: _centred(f).T @ _centred(f) / len(f)),
            ),
            (
                "it is divided by N twice: `torch.cov` is a mean already.",
                _coral(lambda f: _covariance(f) / len(f)),
            ),
            (
                "it is divided by N − 1 twice.",
                _coral(lambda f: _covariance(f) / (len(f) - 1)),
            ),
            (
                "the products are not divided by N − 1, so a larger batch weighs more.",
                _coral(lambda f: _centred(f).T @ _centred(f)),
            ),
            ("the factor 1 / 4d² is missing.", _coral(scale=lambda d: 1)),
            ("it is divided by d², as a mean is; a 4 is missing.", _coral(scale=lambda d: d**2)),
            ("it is divided by 4d, not by 4d².", _coral(scale=lambda d: 4 * d)),
            ("it is divided by 4, and d² is missing.", _coral(scale=lambda d: 4)),
            (
                "the matrices are N × N, of samples: `f.T @ f` is the one of features. "
                "`torch.cov` wants samples in columns.",
                _coral(lambda f: _centred(f) @ _centred(f).T / (len(f) - 1)),
            ),
            (
                "the matrices are N × N, of samples: `torch.cov` wants them in columns, so give "
                "it `f.T`.",
                _coral(lambda f: _covariance(f.T)),
            ),
            (
                "this is the norm itself; its square is asked for.",
                _coral(norm=lambda apart: apart.square().sum().sqrt()),
            ),
            (
                "these are absolute values, not squares.",
                _coral(norm=lambda apart: apart.abs().sum()),
            ),
            (
                "variances alone are compared; the other entries say how features go together.",
                _coral(norm=lambda apart: apart.diagonal().square().sum()),
            ),
            (
                "means are compared, too; CORAL looks at covariances alone.",
                lambda source, target: (
                    coral(source, target) + (source.mean(0) - target.mean(0)).square().sum()
                ),
            ),
            (
                "these are correlations: spreads are compared, too, so do not divide by them.",
                _coral(lambda f: (C := _covariance(f)) / torch.outer(*[C.diagonal().sqrt()] * 2)),
            ),
            (
                "the value is right, but the source is detached: both are to move.",
                _coral(pair=lambda S, T: (S.detach(), T)),
            ),
            (
                "the value is right, but the target is detached: both are to move.",
                _coral(pair=lambda S, T: (S, T.detach())),
            ),
        ],
        hints=[
            "What must be subtracted from a batch before its features are multiplied with each "
            "other? Of what shape is the result?",
            "`f - f.mean(0)` is centred. Is it `f.T @ f` or `f @ f.T` that is (d, d)?",
            "`C = f.T @ f / (len(f) - 1)` of centred f; `(C_S - C_T).square().sum()`, divided by "
            "`4 * d**2`.",
        ],
    ),
    "find_the_bug_batch_statistics": Exercise(
        title="find the bug",
        task="A function as one finds it. `network` has learnt from the source: a convolution, a "
        "`BatchNorm2d`, ReLU, flattening, a linear layer. The target's pictures are taken in "
        "other light, and its answers to them are far worse than they need be. Repair "
        "`my_logits(network, target)`: `target` (N, 1, H, W) is all pictures of the target, "
        "without labels. Return their logits (N, K), normalised by mean and variance of all of "
        "them. Change no weight, and leave the network in eval mode, so that a single picture of "
        "the target, asked later, is normalised by the same numbers.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=with_statistics_of_the_target,
        axes=("picture", "class"),
        draw=_for_statistics,
        see=of_all_and_of_one,
        mistakes=[
            (
                "this is the function as it was found.",
                _answers(),
            ),
            (
                "the logits are right, but the network is left in training mode: a single picture "
                "is normalised by itself.",
                _answers(train=True),
            ),
            (
                "the logits are right, but a single picture is not: one pass in training mode "
                "moves the running averages by a tenth, and the rest is the source's.",
                _then_eval,
            ),
            (
                "one pass in training mode moves the running averages by a tenth, the momentum; "
                "the rest is still the source's.",
                _answers(_pass),
            ),
            (
                "the averages begin at 0 and 1 again, and one pass moves them by a tenth, the "
                "momentum. `momentum = None` takes the mean of all that comes.",
                _answers(_reset, _pass),
            ),
            (
                "the averages begin at 0 and 1 again, and nothing has gone through since: in eval "
                "mode nothing is normalised.",
                _answers(_reset),
            ),
            (
                "BatchNorm has no averages any more, so it uses those of what comes: right for "
                "all pictures at once; a single one is normalised by itself.",
                _answers(_no_averages),
            ),
            (
                "each picture is normalised by its own pixels, as in training mode with a single "
                "one: how light it is, is lost. And the network is left in training mode.",
                _one_by_one,
            ),
            (
                "the pixels are standardised, but BatchNorm still normalises what the convolution "
                "makes of them by the source's numbers.",
                _answers(changed=_standardised),
            ),
            (
                "the mean is the target's now; the variance is still the source's.",
                _answers(_by_hand()),
            ),
            (
                "the variance is the target's now; the mean is still the source's.",
                _answers(_by_hand(mean=False, power=1.0)),
            ),
            (
                "`running_var` holds variances, not their roots.",
                _answers(_by_hand(power=0.5)),
            ),
        ],
        hints=[
            "Print `network[1].running_mean`, and the mean of `network[0](target)` over all but "
            "its channels.",
            "In training mode BatchNorm uses the batch, and moves its averages by `momentum`, a "
            "tenth. In eval mode it uses the averages. How do they become the target's?",
            "`reset_running_stats()` and `momentum = None`; all pictures once in training mode; "
            "then `network.eval()(target)`.",
        ],
    ),
}
