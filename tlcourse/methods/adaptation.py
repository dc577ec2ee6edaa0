r"""Domain adaptation: labels here, none there, and features that look alike in both.

One task, two domains: a source S with labels, a target T of pictures alone. A head that learns from
features of S may serve T as well, if features do not tell where they come from. **By contest**
(domain-adversarial training): a discriminator D learns to tell the domains apart, and what makes
the features f learns to deceive it. Between the two stands a layer that does nothing forwards, and
turns the gradient round backwards:

.. math::
    R_\lambda(f) = f, \qquad \partial R_\lambda / \partial f := -\lambda I, \qquad
    \mathcal{L} = CE(y_S, h(f_S)) + \mathcal{L}_d(D(R_\lambda(f)))

One step makes D better, and f harder for D. To subtract :math:`\lambda \mathcal{L}_d` from the loss
would turn both round: D would learn to be wrong. **By moments** (CORAL): the covariances C of the d
features shall be the same, and no second network is trained:

.. math:: \mathcal{L}_{CORAL} = \lVert C_S - C_T \rVert_F^2 / 4 d^2

Means are not compared. Neither way looks at a label of T: all that differs is made alike, even the
shares of classes, and a class may come to lie where another was.

Ganin et al. 2016, "Domain-adversarial training of neural networks"; Sun and Saenko 2016, "Deep
CORAL"; on shares of classes Zhao et al. 2019, "On learning invariant representations".
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tlcourse.methods._checks import expect, expect_floating, expect_weight, wide


def gradient_reversal(x: Tensor, strength: float) -> Tensor:
    r"""x itself, through which a gradient g passes as :math:`-\lambda g`.

    x: any shape, finite, floating point; strength: λ >= 0, a number: at 0 nothing below learns of
    what is above. Returns a tensor of its own. Raises ValueError for whole numbers as x, a λ out of
    range, and one that is a tensor. Ganin et al. 2016, section 4.2.
    """
    expect_floating("x", x)
    number = not isinstance(strength, Tensor)
    expect(number, "strength must be a number: nothing is learnt of it, got a tensor")
    expect_weight("strength", strength)
    here = x.detach()
    return here - strength * (x - here)  # its value is x, its derivative −λ


def rising_strength(p: float, gamma: float = 10.0) -> float:
    r""":math:`\lambda_p = 2 / (1 + e^{-\gamma p}) - 1`: D has time to learn before it counts.

    p: how much of the run is over, in [0, 1], as `batch.t`. Returns a number from 0 to nearly 1,
    for the λ of the end to be multiplied by. Raises ValueError for numbers out of range. Ganin et
    al. 2016, section 5.2.
    """
    expect(0 <= p <= 1, f"p must be in [0, 1], got {p}")
    expect_weight("gamma", gamma)
    return 2 / (1 + math.exp(-gamma * p)) - 1


def domain_adversarial_loss(
    discriminator: Callable[[Tensor], Tensor], source: Tensor, target: Tensor, *, strength: float
) -> Tensor:
    r""":math:`-\frac12 E_S \log(1 - \sigma(D)) - \frac12 E_T \log \sigma(D)`, in nats.

    source, target: features (N, …) and (M, …); discriminator: gives one logit each of "from the
    target", (N + M,) or (N + M, 1). It is asked once, of both, behind a gradient reversal. Domains
    weigh the same, however many samples a batch holds of each, and a coin tossed costs log 2; the
    paper adds the two means, which doubles λ. Returns a scalar, float32 or wider. `fit` trains a
    discriminator that is part of an objective. Raises ValueError for what does not fit, and on a
    CPU FloatingPointError for features that are not finite. Ganin et al. 2016, section 4.2.
    """
    _expect_pair(source, target, 1)
    both = gradient_reversal(torch.cat([source, target]), strength)
    logits: Any = discriminator(both)
    n, shape = len(both), tuple(getattr(logits, "shape", "?"))
    wanted = f"({n},) or ({n}, 1)"
    expect(shape in ((n,), (n, 1)), f"discriminator must give logits {wanted}, got {shape}")
    z_S, z_T = wide(logits).flatten().split([len(source), len(target)])
    return (F.softplus(z_S).mean() + F.softplus(-z_T).mean()) / 2


def coral_loss(source: Tensor, target: Tensor) -> Tensor:
    r""":math:`\lVert C_S - C_T \rVert_F^2 / 4 d^2`, C the covariance of a batch, over n − 1.

    source, target: features (N, d) and (M, d), at least two samples of each; the last batch of an
    epoch may be short. Returns a scalar, float32 or wider, also under autocast, since a difference
    of products needs their digits. Both get a gradient, the source :math:`\tilde f_S (C_S - C_T) /
    d^2 (N - 1)`, where :math:`\tilde f` is centred. Raises ValueError for what does not fit, and on
    a CPU FloatingPointError for features that are not finite. Sun and Saenko 2016, section 3.1.
    """
    _expect_pair(source, target, 2)
    d = source[0].numel()
    expect(source.ndim == 2 and d > 0, f"features must be (N, d), got {tuple(source.shape)}")
    with torch.autocast(source.device.type, enabled=False):
        apart = _covariance(wide(source)) - _covariance(wide(target))
    return apart.square().sum() / (4 * d**2)


def _covariance(f: Tensor) -> Tensor:
    """(d, d), by hand, as `torch.cov` would have to wait for a GPU."""
    centred = f - f.mean(0)
    return centred.T @ centred / (len(f) - 1)


def _expect_pair(source: Tensor, target: Tensor, least: int) -> None:
    why = "1 sample" if least == 1 else f"{least} samples, as one has no covariance"
    shapes = tuple(source.shape), tuple(target.shape)
    for name, x, shape in zip(("source", "target"), (source, target), shapes):
        expect_floating(name, x)
        expect(shape >= (least,), f"{name} must hold at least {why}, got shape {shape}")
        if x.is_cpu and not x.isfinite().all():
            raise FloatingPointError(f"{name} holds numbers that are not finite")
    said = "source and target must have features of one shape, got {} and {}".format(*shapes)
    expect(shapes[0][1:] == shapes[1][1:], said)
