"""Labels in one domain, none in the other: does it help if features are made alike in both?

MNIST is the source. One target is its digits over photos, as in MNIST-M; one is scikit-learn's, by
other writers and of eight by eight pixels; in a third the shares of classes differ, too: of the
digits over photos only 0 to 4 are there. No image of MNIST is in two places. What the target is
learnt from has no labels, but for an arm that shows what they would be worth.

A target without labels has none for validation either: to choose λ by them would be to have them.
So all settings are chosen on a shift that is not judged, noise: neither a background nor a hand.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse.claims import Claim, Decision, count, greater
from tlcourse.data import Images, load, noisy, over_photos
from tlcourse.experiments.base import Case, Experiment, Row, Scale, combinations, tuned
from tlcourse.methods.adaptation import coral_loss, domain_adversarial_loss, rising_strength
from tlcourse.models import MLP, ConvNet
from tlcourse.training import Batch, accuracy, cross_entropy, fit, joint, predict, seed_everything

ALONE, DANN, CORAL, LABELS = "source only", "DANN", "CORAL", "trained on the target"
ARMS, ALL_CLASSES = (ALONE, DANN, CORAL, LABELS), "DANN, all classes in the target"
OVER_PHOTOS, SCANS, HALF = "digits over photos", "scanned digits", "digits 0-4 over photos"
NOISE = "noisy digits"
PAPER = {ALONE: 52.25, DANN: 76.66, LABELS: 95.96}  # right in %; Ganin et al. 2016, table 1
TOP = 8  # so many layers give what the head reads
Grid = Mapping[str, tuple[float, ...]]
# six settings each: rates, and λ or the weight of CORAL; where to look was found on noisy digits
GRIDS: dict[str, Grid] = {
    ALONE: {"lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)},
    DANN: {"lr": (4e-3, 8e-3), "weight": (0.03, 0.1, 0.3)},
    CORAL: {"lr": (4e-3, 8e-3), "weight": (1e3, 1e4, 1e5)},
    LABELS: {"lr": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3, 1.6e-2)},
}
SETTINGS = {arm: combinations(grid) for arm, grid in GRIDS.items()}


@dataclass(frozen=True, kw_only=True)
class Adaptation(Scale):
    """Targets and arms, images of source and target, updates, and points of a picture."""

    targets: tuple[str, ...] = (OVER_PHOTOS, SCANS, HALF)
    arms: tuple[str, ...] = ARMS
    images: int = 20_000
    judged: int = 5_000
    steps: int = 600
    points: int = 100  # none for no picture


class Domains(NamedTuple):
    """Images of source and target to learn from, and others to judge by."""

    source: Images
    target: Images
    source_test: Images
    test: Images


class Alike(nn.Module):
    """The objective: labels of the source, and features up to a layer that are to be alike."""

    def __init__(self, arm: str, network: nn.Sequential, weight: float) -> None:
        super().__init__()
        self.arm, self.weight, self.cut = arm, weight, 4 if arm == DANN else TOP
        self.D = MLP(network.get_parameter("fc6.weight").shape[1], 100, 1) if arm == DANN else None

    def forward(self, network: nn.Sequential, batches: Mapping[str, Batch]) -> Tensor:
        """The loss of a batch of each; the target's labels are not there."""
        source, target = batches["source"], batches["target"]
        both = network[: self.cut](torch.cat([source.x, target.x]))
        f_S, f_T = both.split([len(source.x), len(target.x)])
        labels = F.cross_entropy(network[self.cut :](f_S), source.y)
        if self.D is None:
            return labels + self.weight * coral_loss(f_S, f_T)
        strength = self.weight * rising_strength(source.t)
        return labels + domain_adversarial_loss(self.D, f_S, f_T, strength=strength)


def run(scale: Adaptation, seed: int, device: torch.device) -> Iterator[Row]:
    """In percent, by target and arm: errors in both domains, and how well these are told apart.

    Then how much of the way from the source alone to the target's labels is gone; and of the first
    seed what features look like, in two dimensions.
    """
    networks: dict[tuple[str, str], nn.Sequential] = {}
    for name in scale.targets:
        domains, found, at = domains_of(scale, name, seed, device), {}, {"target": name}
        for case in cases(scale, domains, seed):
            key = case.arm, "" if case.arm == ALONE else name  # it is the same for every target
            if key not in networks:
                networks[key] = case.trained(scale)
            network, there = networks[key], domains.source_test
            found[case.arm] = percent(network, domains.test)
            yield Row(case.arm, "errors", found[case.arm], at)
            yield Row(case.arm, "errors on the source", percent(network, there), at)
            yield Row(case.arm, "domains told apart", told_apart(network, domains, seed), at)
            if seed == 0 and scale.points and name == OVER_PHOTOS and case.arm != LABELS:
                yield from picture(case.arm, network, domains, scale.points)
        gap = found[ALONE] - found[LABELS] if {*found} == {*ARMS} else 0.0
        for arm in (DANN, CORAL) if gap > 0 else ():
            yield Row(arm, "gap closed", 100 * (found[ALONE] - found[arm]) / gap, at)
        if name == HALF and (DANN, OVER_PHOTOS) in networks:
            whole = networks[DANN, OVER_PHOTOS]
            yield Row(ALL_CLASSES, "errors", percent(whole, domains.test), at)


def tune(scale: Adaptation, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting on noisy digits, errors in percent on images left aside."""
    domains = domains_of(scale, NOISE, seed, device)
    yield from tuned(cases(scale, domains, seed), partial(percent, data=domains.test))


def cases(scale: Adaptation, domains: Domains, seed: int) -> Iterator[Case]:
    """Every arm; a case, trained, gives a network. All start from the same one."""
    for arm in scale.arms:
        yield Case(arm, SETTINGS[arm], partial(learn, scale, domains, arm, seed))


def learn(
    scale: Adaptation, domains: Domains, arm: str, seed: int, setting: Mapping[str, float]
) -> nn.Sequential:
    """A network of this seed after all its updates, each on 64 images of what an arm learns from.

    DANN and CORAL look at as many of the target beside these, without labels.
    """
    source, target = domains.source, domains.target
    seed_everything(seed)
    network = ConvNet(channels=3).to(source.pixels.device)
    data: Any = target if arm == LABELS else source
    objective: Any = cross_entropy
    if arm in (DANN, CORAL):
        data = joint(source=source, target=(target.pixels, None))
        objective = Alike(arm, network, setting["weight"]).to(source.pixels.device)
    how: dict[str, Any] = {"batch_size": 64, "lr": setting["lr"], "progress": False}
    fit(network, data, objective, steps=scale.steps, seed=seed, **how)
    return network


def domains_of(scale: Adaptation, name: str, seed: int, device: torch.device) -> Domains:
    """The source and a target. Noisy digits are all of training images; others have test images."""
    source, target, test = load("mnist").split(scale.images, scale.images, scale.judged, seed=seed)
    source_test = test
    if name != NOISE:
        test = source_test = load("mnist", "test").take(slice(scale.judged))
    if name == SCANS:
        target, test = load("digits"), load("digits", "test")
    if name == HALF:
        target, test = target.only(range(5)), test.only(range(5))
        target = target.take(slice(len(target) // 2 * 2))  # no batch may hold a single image
    if name in CHANGES:
        target, test = CHANGES[name](target, 2 * seed), CHANGES[name](test, 2 * seed + 1)
    found = (source, target, source_test, test)
    return Domains(*(coloured(images).to(device) for images in found))


def coloured(images: Images) -> Images:
    """The same with three channels."""
    return replace(images, pixels=images.pixels.expand(-1, 3, -1, -1).contiguous())


CHANGES = {OVER_PHOTOS: over_photos, HALF: over_photos, NOISE: noisy}


def percent(network: nn.Module, data: Images) -> float:
    """Errors in percent."""
    return 100 * (1 - accuracy(network, data))


def told_apart(network: nn.Sequential, domains: Domains, seed: int, most: int = 1_000) -> float:
    """How often, in percent, a linear layer tells from features that it has not seen where they
    come from: 50 if it can but guess. It learns from as many images of either domain.
    """
    of = partial(predict, network[:TOP])
    parts = []
    for source, target in ((domains.source, domains.target), (domains.source_test, domains.test)):
        n = min(most, len(source), len(target))
        features = torch.cat([of(source.take(slice(n))), of(target.take(slice(n)))])
        parts.append((features, torch.arange(2 * n, device=features.device) // n))
    seed_everything(seed)
    units = parts[0][0].shape[1]
    probe = nn.Sequential(nn.BatchNorm1d(units), nn.Linear(units, 2)).to(parts[0][0].device)
    fit(probe, parts[0], cross_entropy, steps=200, lr=1e-2, seed=seed, progress=False)
    return 100 * accuracy(probe, parts[1])


def picture(arm: str, network: nn.Sequential, domains: Domains, points: int) -> Iterator[Row]:
    """Where features of so many images of each domain lie, along their two principal axes."""
    shown = {"source": domains.source_test, "target": domains.test}
    shown = {domain: images.take(slice(points)) for domain, images in shown.items()}
    features = torch.cat([predict(network[:TOP], images) for images in shown.values()]).cpu()
    centred = features.double() - features.double().mean(0)
    U, S, Vh = torch.linalg.svd(centred, full_matrices=False)
    signs = Vh[:2].gather(1, Vh[:2].abs().argmax(1, keepdim=True)).sign().T
    for i, place in enumerate((U[:, :2] * S[:2] * signs).tolist()):
        domain = [*shown][i // points]
        at = {"domain": domain, "point": i % points}
        label = int(shown[domain].labels[i % points])
        for axis, value in zip("xy", place):
            yield Row(arm, axis, float(f"{value:.4g}"), at | {"digit": label})


def _fewer(arms: tuple[str, ...], targets: tuple[str, ...], metric: str) -> list[Decision]:
    return [greater(ALONE, arm, metric, target=name) for arm in arms for name in targets]


LECTURE = Adaptation(seeds=5, tuning_seeds=2, minutes=23)
LIVE = Adaptation(
    targets=(OVER_PHOTOS,),
    arms=(ALONE, DANN),
    images=5_000,
    judged=1_000,
    steps=300,
    points=0,
    seeds=8,
    minutes=2,
    settings={ALONE: {"lr": 4e-3}, DANN: {"lr": 6e-3, "weight": 0.1}},
)
_BOTH, _WHOLE = (DANN, CORAL), (OVER_PHOTOS, SCANS)
_claim = partial(
    Claim,
    varies="each seed draws images, photos' places and initial weights; settings are chosen on "
    "another shift, on other seeds",
    scales=("lecture",),
)

EXPERIMENT = Experiment(
    name="adaptation",
    question="Labels in one domain, none in the other: do features that look alike help?",
    chapter="what_is_transfer_learning",
    run=run,
    tune=tune,
    arms=(*ARMS, ALL_CLASSES),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "I3",
            "features that are alike in both domains carry over to the target",
            source="lecture, overview of scenarios, same task in different domains",
            paper="MNIST to MNIST-M, right: "
            + ", ".join(f"{arm} {right} %" for arm, right in PAPER.items())
            + " (Ganin et al. 2016)",
            decide=count(_fewer(_BOTH, _WHOLE, "errors"), at_least=3),
            unit="of four comparisons (DANN and CORAL, two targets), in how many there are fewer "
            "errors than by the source only",
        ),
        _claim(
            "I3i",
            "what DANN and CORAL learn is harder to tell apart by domain",
            source="ours",
            decide=count(_fewer(_BOTH, _WHOLE, "domains told apart"), at_least=3),
            unit="of four comparisons (DANN and CORAL, two targets), in how many a linear layer "
            "tells domains apart less often than by features of the source only",
        ),
        _claim(
            "I3h",
            "to make features alike may hurt",
            source="ours",
            decide=greater(DANN, ALONE, "errors", target=SCANS),
            unit="points of error more with DANN than by the source only, scanned digits",
        ),
        _claim(
            "I3s",
            "where the target has other shares of classes, alike features mislead",
            source="ours; Zhao et al. 2019",
            decide=greater(DANN, ALL_CLASSES, "errors", target=HALF),
            unit="points of error more, on 0 to 4, if the target had only these and not all digits",
        ),
    ],
)
