"""With few pictures: which of a large pool's should be learnt beside them, if any?

The lecture's table of dogs and flowers, in small. The target is `digits`, few of a class. The pool
holds a share of useful pictures, digits by other writers, among clothes, digits inverted or turned,
and photos. All are seen through a camera of 8 × 8 pixels, else blur alone would tell them apart. As
dogs are in ImageNet too, what is useful is also of the target's classes (E9).

As in the paper, the network has learnt the whole pool before: does it pay to go on with a part? In
a batch every target picture stands beside a source picture, and arms differ in which. Random ones,
and the oracle's, take the places of those that were retrieved, one for one, and more are asked for
by the same rule: so there are as many, but for who is found hard.

Rounds are parts of one training, and all arms are trained in such parts. A network that has learnt
to the end is right about its few pictures; on the way, where the paper asks it, it is not yet.

Where labels are few, a validation set would be hidden labels, so settings are chosen on clothes,
with the roles of digits and clothes exchanged.
"""

from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from math import lcm
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tlcourse import lecture
from tlcourse.claims import Claim, Given, contrast, greater
from tlcourse.data import PHOTOS, Images, load, photo
from tlcourse.experiments.base import Case, Experiment, Row, Scale, combinations, tuned
from tlcourse.methods import selective as method
from tlcourse.models import ConvNet
from tlcourse.training import Batch, cross_entropy, fit, paired, predict, seed_everything

TARGET, TUNED_ON = "digits", "fashion_mnist"
# by target: where useful pictures of the pool come from, and other ones
SOURCES = {TARGET: ("mnist", "fashion_mnist"), TUNED_ON: ("fashion_mnist", "mnist")}
KINDS = ("useful", "other things", "inverted", "turned", "photos")
SHARE, SIZE = 10, 5  # % of the pool (dogs are 118 of ImageNet's 1,000 classes), pictures a class
ALONE, JOINT, TUNED = "from scratch", "selective from scratch", "fine-tuning"
EVERY, RANDOM, ORACLE = "all sources", "random sources", "useful sources"
ONCE, GABOR, SELECTIVE = "selective, not iterated", "selective, Gabor", "selective"
FUSION = "selective, fusion"
BY_SHARE, BY_SIZE = (TUNED, RANDOM, ORACLE, SELECTIVE), (ALONE, JOINT, TUNED, SELECTIVE)
# Four settings each: rates, and how much the source weighs, of 1 in all
BOTH = combinations({"lr": (1.5e-3, 3e-3), "weight": (0.2, 0.5)})
SETTINGS = {
    ALONE: combinations({"lr": (1e-3, 2e-3, 4e-3, 8e-3), "weight": (0.0,)}),
    JOINT: combinations({"lr": (3e-3, 6e-3), "weight": (0.2, 0.5)}),
    TUNED: combinations({"lr": (5e-4, 1e-3, 2e-3, 4e-3), "weight": (0.0,)}),
    **dict.fromkeys((EVERY, RANDOM, ORACLE, ONCE, GABOR, SELECTIVE), BOTH),
}
UNITS, BATCH, THRESHOLD = 64, 50, 0.1  # of entropy, in nats
Setting = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Borrowing(Scale):
    """Shares of useful pictures in the pool in %, target pictures a class, and how long all learn.

    Every size stands at `SHARE`, every share at `SIZE`. neighbours: the paper's K₀.
    """

    arms: tuple[str, ...] = tuple(SETTINGS)
    shares: tuple[int, ...] = (5, SHARE, 20, 40)
    sizes: tuple[int, ...] = (2, SIZE, 10, 20)
    pool: int = 8_000
    source_steps: int = 600
    neighbours: int = 10
    parts: int = 3
    steps: int = 300


class Task(NamedTuple):
    """Target pictures, those to test on, the pool, of which kind each is, the network it taught."""

    target: Images
    test: Images
    pool: Images
    kind: Tensor
    network: nn.Sequential
    seed: int

    def but(self, per_class: int) -> "Task":
        """With so many target pictures a class: fewer are some of more."""
        return self._replace(target=self.target.per_class(per_class, self.seed))


class Learnt(NamedTuple):
    """A network, its lists, what of them it saw last, and how many each target picture by round."""

    network: method.TwoHeads
    order: Tensor
    table: Tensor
    counts: Tensor


def run(scale: Borrowing, seed: int, device: torch.device) -> Iterator[Row]:
    """Accuracy in percent by arm, share and size; and what was borrowed."""
    for share in scale.shares:
        task, gains = task_of(scale, TARGET, share, seed, device), []
        for n in scale.sizes if share == SHARE else (SIZE,):
            at, said, right = {"share": share, "per_class": n}, {}, {}
            for case in cases(scale, task.but(n), arms_at(scale, share, n)):
                learnt = case.trained(scale)
                said[case.arm] = predict(learnt.network, task.test).softmax(1)
                for metric, value, more in borrowed(case.arm, task.but(n), learnt):
                    yield Row(case.arm, metric, value, at | more)
            if GABOR in said:
                said[FUSION] = (said[SELECTIVE] + said[GABOR]) / 2
            for arm, p in said.items():
                right[arm] = percent(p.argmax(1) == task.test.labels)
                yield Row(arm, "accuracy", right[arm], at)
            gains += [right[JOINT] - right[ALONE]] if JOINT in right else []
        if len(gains) > 1:
            yield Row(JOINT, "gain with few over many", gains[0] - gains[-1])


def tune(scale: Borrowing, seed: int, device: torch.device) -> Iterator[Row]:
    """Every arm and setting, on clothes: errors in percent on other clothes."""
    task = task_of(scale, TUNED_ON, SHARE, seed, device)
    for n in scale.sizes:
        yield from tuned(
            cases(scale, task.but(n), arms_at(scale, SHARE, n)),
            lambda its: percent(predict(its.network, task.test).argmax(1) != task.test.labels),
        )


def arms_at(scale: Borrowing, share: int, n: int) -> list[str]:
    """All arms at `SHARE` and `SIZE`, elsewhere those whose change is asked for."""
    some = BY_SHARE if n == SIZE else BY_SIZE
    return [arm for arm in scale.arms if (share, n) == (SHARE, SIZE) or arm in some]


def task_of(scale: Borrowing, name: str, share: int, seed: int, device: torch.device) -> Task:
    """A target, a pool with so many percent of useful pictures, and a network that learnt it."""
    parts = [load(name, split) for split in (("train", "test") if name == TARGET else ("test",))]
    pixels, labels = (torch.cat(some) for some in zip(*((p.pixels, p.labels) for p in parts)))
    scans = camera(pixels if name == TARGET else camera(pixels))  # `digits` were scanned before
    (images,) = Images(scans, labels, parts[0].classes, name).split(1_797, seed=seed)
    most = max(scale.sizes)
    place = F.one_hot(images.labels).cumsum(0).gather(1, images.labels[:, None])[:, 0]  # from 1 on
    few, test = (images.take(some).to(device) for some in (place <= most, place > most))
    pool, kind = pool_of(name, scale.pool, share, seed)
    seed_everything(seed + 1)  # not the other networks' initial weights
    network = ConvNet(len(pool.classes), width=8, units=UNITS).to(device)
    more: dict[str, Any] = {"steps": scale.source_steps, "seed": seed, "progress": False}
    fit(network, pool.to(device), cross_entropy, lr=4e-3, **more)
    return Task(few, test, pool.to(device), kind, network.eval(), seed)


def pool_of(name: str, size: int, share: int, seed: int) -> tuple[Images, Tensor]:
    """A pool with so many percent of useful pictures, and which of `KINDS` each is.

    Of the others there are as many of each kind. Every kind has classes of its own.
    """
    useful = size * share // 100
    each = (size - useful) // (len(KINDS) - 1)
    same, other = (load(source) for source in SOURCES[name])
    found, inverted, turned = same.split(useful, each, each, seed=seed)
    (things,) = other.split(each, seed=seed)
    parts = [found.pixels, things.pixels, 255 - inverted.pixels, turned.pixels.rot90(1, (2, 3))]
    squares, which = patches(each, seed)
    shown = [*(some.labels for some in (found, things, inverted, turned)), which]
    labels = torch.cat([y + 10 * i for i, y in enumerate(shown)])
    classes = *(f"{kind} {c}" for kind in KINDS[:-1] for c in range(10)), *PHOTOS
    return Images(camera(torch.cat([*parts, squares])), labels, classes, "pool"), labels // 10


def patches(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Squares of photos, grey and half as large, equally many of each; and of which."""
    draw, found, each = torch.Generator().manual_seed(seed), [], n // len(PHOTOS)
    for name in PHOTOS:
        grey = F.avg_pool2d(photo(name).float().mean(0, keepdim=True), 2)[0]
        squares = grey.unfold(0, 28, 1).unfold(1, 28, 1)
        top, left = (torch.randint(most, (each,), generator=draw) for most in squares.shape[:2])
        found.append(squares[top, left, None].byte())
    return torch.cat(found), torch.arange(len(PHOTOS)).repeat_interleave(each)


def camera(pixels: Tensor) -> Tensor:
    """Pictures (N, 1, 28, 28) as 8 × 8 pixels show them."""
    small = F.interpolate(pixels.float(), (8, 8), mode="area")
    return F.interpolate(small, (28, 28), mode="bilinear").round().byte()


def retrieved(task: Task, k: int, gabor: bool = False) -> Tensor:
    """For each target picture its k nearest of the pool, by pixels alone.

    Filters are Gabor's, or those of the first two layers of the network that learnt the pool.
    """
    layers = "block1.conv", "block2.conv"
    filters = method.gabor_bank() if gabor else method.first_layers(task.network, *layers)
    few, pool = task.target.pixels, task.pool.pixels
    bins = method.equal_mass_bins(few, filters, 32 if gabor else 100)
    p, q = (method.descriptors(pixels, filters, bins) for pixels in (few, pool))
    return method.nearest_sources(p, q, k, None if gabor else (8, 16)).cpu()


def exchanged(order: Tensor, among: Tensor, seed: int) -> Tensor:
    """The same lists with other pictures: each is exchanged, wherever it stands, for one of these.

    Where these are fewer, several are exchanged for the same one.
    """
    lots = among[torch.randperm(len(among), generator=torch.Generator().manual_seed(seed))]
    return lots[order.unique(return_inverse=True)[1] % len(lots)]


def cases(scale: Borrowing, task: Task, arms: list[str]) -> Iterator[Case]:
    """A network for every arm, with its lists of source pictures; a case, trained, is `Learnt`."""
    most, pool = scale.neighbours * (4 * scale.parts - 3), torch.arange(len(task.pool))
    nearest = retrieved(task, most)
    lists = {
        RANDOM: exchanged(nearest, pool, task.seed),
        ORACLE: exchanged(nearest, pool[task.kind == 0], task.seed),
        EVERY: pool.expand(len(nearest), -1),
        GABOR: retrieved(task, most, gabor=True) if GABOR in arms else nearest,
    }
    at = {"per_class": len(nearest) // len(task.target.classes)}
    for arm in arms:
        learn = partial(trained, scale, task, arm, lists.get(arm, nearest))
        yield Case(arm, SETTINGS[arm], learn, at)


def trained(scale: Borrowing, task: Task, arm: str, order: Tensor, setting: Setting) -> Learnt:
    """All arms of a seed begin with the same new head, and see the same target batches.

    Pictures that do not fill a batch are repeated. Where nobody asks for more source pictures, the
    parts that remain are trained with those there are.
    """
    seed_everything(task.seed)
    head, network = nn.Linear(UNITS, len(task.target.classes)), deepcopy(task.network)
    if arm in (ALONE, JOINT):
        network = ConvNet(len(task.pool.classes), width=8, units=UNITS)
    net = method.TwoHeads(network[:-1], head, network[-1]).to(task.pool.pixels.device)
    again, tables = torch.arange(lcm(len(order), BATCH)) % len(order), list[Tensor]()
    how: Any = partial(method.joint_loss, weight=setting["weight"])
    more: dict[str, Any] = {"batch_size": BATCH, "lr": setting["lr"], "progress": False}

    def train(table: Tensor) -> Tensor:
        data = paired(task.target.take(again), task.pool, table[again])
        seed, steps = 100 * task.seed + len(tables), scale.steps // scale.parts
        fit(net, data, how if setting["weight"] else on_target, steps=steps, seed=seed, **more)
        tables.append(table)
        return predict(net, task.target).cpu()

    k = len(task.pool) if arm == EVERY else scale.neighbours
    rounds = 0 if arm in (ALONE, TUNED, EVERY, ONCE) else scale.parts - 1
    asking = partial(method.iterative_retrieval, threshold=THRESHOLD)
    counts = asking(order, task.target.labels.cpu(), train, k=k, rounds=rounds)
    while len(tables) < scale.parts:
        train(tables[-1])
    return Learnt(net, order, tables[-1], counts)


def on_target(net: nn.Module, batch: Mapping[str, Batch]) -> Tensor:
    """The objective without a source: what a weight of 0 gives, only faster."""
    return cross_entropy(net, batch["target"])


def borrowed(arm: str, task: Task, its: Learnt) -> Iterator[tuple[str, float, dict[str, Any]]]:
    """How many source pictures, in percent how many of them useful; what is nearest; and rounds."""
    if arm not in (ALONE, TUNED):
        yield "source pictures", len(its.table.unique()), {}
        yield "useful", percent(task.kind[its.table] == 0), {}
    if arm in (SELECTIVE, GABOR):
        k = int(its.counts[0, 0])
        kinds, labels = task.kind[its.order[:, :k]], task.pool.labels.cpu()[its.order[:, :k]]
        for i, kind in enumerate(KINDS):
            yield "nearest", percent(kinds == i), {"kind": kind}
        same = labels == task.target.labels.cpu()[:, None]
        yield "useful ones of the same class", percent(same[kinds == 0]), {}
        for i, asked in enumerate(its.counts.diff(dim=0) // k, start=1):
            yield "misclassified", percent(asked == 4), {"round": i}
            yield "uncertain", percent(asked == 2), {"round": i}


def percent(yes: Tensor) -> float:
    """How many are true."""
    return 100 * yes.float().mean().item()


LECTURE = Borrowing(seeds=12, tuning_seeds=3, minutes=52)
LIVE = Borrowing(
    arms=BY_SHARE,
    shares=(SHARE,),
    sizes=(SIZE,),
    pool=3_200,
    source_steps=300,
    seeds=8,
    minutes=2,
    settings={  # with as small a pool on clothes these came out best
        TUNED: SETTINGS[TUNED]["lr 0.0005, weight 0"],
        ORACLE: BOTH["lr 0.0015, weight 0.5"],
        **dict.fromkeys((RANDOM, SELECTIVE), BOTH["lr 0.003, weight 0.5"]),
    },
)
_HERE = {"share": SHARE, "per_class": SIZE}
_claim = partial(
    Claim,
    varies="each seed draws pictures and pool, and trains its own network on the pool",
    scales=("lecture",),
)


def _better(id: str, sentence: str, one: str, other: str, **more: Any) -> Claim:
    every = zip(lecture.SELECTIVE, lecture.gaps(lecture.SELECTIVE, one, other))
    return _claim(
        id,
        sentence,
        source="lecture, multi-task learning, tables of dogs and flowers; Ge and Yu 2017",
        paper=", ".join(f"{gap:+.1f} ({name})" for name, gap in every).replace("-", "−"),
        decide=greater(one, other, "accuracy", **_HERE),
        unit=f"points of accuracy above {other}; 10 % useful, 5 pictures a class",
        **more,
    )


_MATTERS = Given(
    "useful pictures do more than random ones", greater(ORACLE, RANDOM, "accuracy", **_HERE)
)

EXPERIMENT = Experiment(
    name="selective",
    question="With few pictures: which of a large pool's should be learnt beside them, if any?",
    chapter="multi_task_learning",
    run=run,
    tune=tune,
    arms=(*SETTINGS, FUSION),
    scales={"lecture": LECTURE, "live": LIVE},
    claims=[
        _claim(
            "M2",
            "tasks with little data gain most",
            source="lecture, multi-task learning, first slide",
            decide=contrast({JOINT: 1.0}, "gain with few over many"),
            unit="points of accuracy that joint training gains more with 2 pictures a class than "
            "with 20, both from scratch",
        ),
        _claim(
            "S1",
            "low-level descriptors find useful source images",
            source="lecture, multi-task learning, second slide; Ge and Yu 2017",
            decide=greater(ONCE, RANDOM, "useful", **_HERE),
            unit="points that the share of useful pictures is above that of random ones",
        ),
        _better("S2", "selective beats fine-tuning without source", SELECTIVE, TUNED),
        _better("S3", "selective beats all source", SELECTIVE, EVERY, given=_MATTERS),
        _better("S4", "selective beats as many random ones", SELECTIVE, RANDOM, given=_MATTERS),
        _better("S5", "iterative retrieval helps", SELECTIVE, ONCE),
        _better("S6", "learned filters beat Gabor", SELECTIVE, GABOR),
        _better("S7", "selective helps from scratch too", JOINT, ALONE),
        _better("S8", "model fusion adds", FUSION, SELECTIVE),
    ],
)
