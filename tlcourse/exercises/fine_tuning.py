"""Exercises of the chapter on fine-tuning; growing a network has a file of its own."""

from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Generator, Tensor, nn

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import Exercise, Function

Groups = list[dict[str, Any]]
State = Mapping[str, Tensor]
RIGHT = "an error, or all of the trunk"  # what should come of a checkpoint that does not fit


def frozen(network: Any) -> Any:
    """No gradient, no mode that changes, and nothing that an optimizer remembers."""
    network.eval()
    for part in network.modules():
        part.train = lambda mode=True, part=part: part  # stay in eval mode
    for parameter in network.parameters():
        parameter.requires_grad = False
        parameter.grad = None  # a gradient of 0 lets momentum and weight decay go on
    return network


def groups_of_two_rates(network: Any, lr: float, head_lr: float) -> Groups:
    """Disjoint groups, which hold what can be trained and nothing else."""
    trunk = [p for p in network.trunk.parameters() if p.requires_grad]
    head = [p for p in network.head.parameters() if p.requires_grad]
    return [{"params": trunk, "lr": lr}, {"params": head, "lr": head_lr}]


def loaded(network: nn.Module, state: State) -> nn.Module:
    """All but the head, or an error: for shapes PyTorch raises one itself."""
    trunk = {name: x for name, x in state.items() if not name.startswith("head.")}
    absent = network.load_state_dict(trunk, strict=False).missing_keys
    lost = [name for name in absent if not name.startswith("head.")]
    if lost:
        raise ValueError(f"not in the checkpoint: {', '.join(lost)}")
    return network


def trainable(network: nn.Sequential, frozen: int) -> int:
    """How many numbers learn when the first blocks are frozen."""
    return sum(p.numel() for block in network[frozen:] for p in block.parameters())


def what_still_moves(freeze: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The names of what is not as it was, bit by bit, and whether dropout and batches matter.

    The network is below a head that is trained: a step, then the freezing, then both optimizers
    for some steps through train() and eval(), where gradients are set to 0 and not to None.
    """
    torch.manual_seed(inputs["seed"])
    block = nn.Sequential(nn.Linear(3, 6), nn.BatchNorm1d(6), nn.ReLU())
    network = nn.Sequential(block, nn.Dropout(0.5), nn.Linear(6, 4))
    model, (x, y) = (
        nn.Sequential(network, nn.Linear(4, 2)),
        (torch.randn(8, 3), torch.arange(8) % 2),
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    optimizers = [sgd, torch.optim.AdamW(model.parameters(), lr=0.1)]
    for optimizer in optimizers:
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    learnt = {name for name, _ in network.named_parameters()}
    if freeze(network=network) is not network:
        raise Told("Not yet: freeze the network that is given, and return it.")

    def moved() -> set[str]:
        now = network.state_dict()
        stays = {n for n, x in before.items() if n in now and torch.equal(now[n], x)}
        return before.keys() - stays

    model(x)
    at_once = moved()
    for optimizer in 2 * optimizers:
        network.train()
        model.train()
        optimizer.zero_grad(set_to_none=False)
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        model.eval()
    network.train()
    trained = model.train()(x)
    same = torch.allclose(trained, model.eval()(x))
    later = moved()
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {
        "parameters that get a gradient": _names(
            {name for name, p in network.named_parameters() if p.grad is not None}
        ),
        "parameters that move": _names(later & learnt),
        "buffers that move before train() is called again": _names(at_once - learnt),
        "buffers that move after it": _names(later - learnt),
        "its answers in training mode": "as in eval mode" if same else "others than in eval mode",
    }


def rate_of_each(groups: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The rates of every parameter of a small network whose lowest layer is frozen."""
    trunk = nn.Sequential(nn.Linear(3, 4).requires_grad_(False), nn.ReLU(), nn.Linear(4, 4))
    network = _named(trunk=trunk, head=nn.Linear(4, 2))
    found = groups(network=network, lr=inputs["lr"], head_lr=inputs["head_lr"])
    rates = tried(_rates, None, found)
    if rates is None:
        raise Told('Not yet: return a list of groups, each a dictionary with "params" and "lr".')
    rows = ((name, rates.get(id(p), [])) for name, p in network.named_parameters())
    return {
        "the rates": "; ".join(
            f"{name}: {' and '.join(sorted(many))}" for name, many in rows if many
        )
    }


def _rates(groups: Any) -> dict[int, list[str]] | None:
    """The rates at which a parameter, by its id, is in groups; none where they are no groups."""
    if not (isinstance(groups, list | tuple) and all(isinstance(group, dict) for group in groups)):
        return None
    found: dict[int, list[str]] = {}
    for group in groups:
        rate = f"{float(group['lr']):.4g}" if "lr" in group else "no rate"
        params = group["params"]
        for p in [params] if isinstance(params, Tensor) else params:
            found.setdefault(id(p[1] if isinstance(p, tuple) else p), []).append(rate)
    return found


def what_it_loads(load: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """What becomes of the network with checkpoints that fit but for the head, and with others."""
    torch.manual_seed(inputs["seed"])
    other, alike, wider = (_source(*sizes) for sizes in ((6, 5), (6, 3), (7, 3)))
    elsewhere = {name.replace("trunk.0", "trunk.first"): x for name, x in alike.items()}
    prefixed = {f"module.{name}": x for name, x in alike.items()}
    return {
        "a checkpoint with a head of another size": _loads(load, other, other),
        "a checkpoint with a head of the same size": _loads(load, alike, alike),
        'a checkpoint whose names begin with "module."': _loads(load, prefixed, alike, True),
        "a checkpoint with another name for one layer": _loads(load, elsewhere, alike, True),
        "a checkpoint with a layer of another width": _loads(load, wider, wider, True),
    }


def _source(width: int, classes: int) -> dict[str, Tensor]:
    """The state of a network of which no entry is as in a new one."""
    network = _fresh(width, classes)
    network(torch.randn(8, 4))
    for parameter in network.parameters():
        nn.init.normal_(parameter)
    return dict(network.state_dict())


def _fresh(width: int, classes: int) -> nn.Module:
    trunk = nn.Sequential(nn.Linear(4, width), nn.BatchNorm1d(width), nn.ReLU())
    return _named(trunk=trunk, head=nn.Linear(width, classes))


def _loads(load: Function, state: State, source: State, unfit: bool = False) -> str:
    """What was loaded into a new network. With a checkpoint that does not fit, an error is right.

    So is it to find the trunk all the same. A slip of the code's own is no refusal.
    """
    network = _fresh(6, 3)
    try:
        load(network=network, state=dict(state))
    except (Told, NotImplementedError, NameError, TypeError, AttributeError):
        raise
    except Exception:
        return RIGHT if unfit else "an error"
    now = network.state_dict()
    there = {name: name in now and torch.equal(now[name], x) for name, x in source.items()}
    trunk, head = ([there[n] for n in there if n.startswith(part)] for part in ("trunk.", "head."))
    if unfit and all(trunk) and not any(head):
        return RIGHT
    much = "all" if all(trunk) else "a part" if any(trunk) else "nothing"
    return f"{much} of the trunk is loaded, and the head is {'old' if any(head) else 'new'}"


def count(answer: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a network of these widths: linear layers with a norm each, and a head."""
    widths = inputs["widths"]
    blocks = [
        nn.Sequential(nn.Linear(n, m), nn.BatchNorm1d(m), nn.ReLU())
        for n, m in pairwise(widths[:-1])
    ]
    network = nn.Sequential(*blocks, nn.Linear(*widths[-2:]))
    return {"": answer(network=network, frozen=inputs["frozen"])}


def _names(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "none"


def _named(**parts: nn.Module) -> Any:
    network = nn.Sequential()
    for name, part in parts.items():
        network.add_module(name, part)
    return network


def _for_seed(g: Generator, size: int) -> dict[str, Any]:
    return {"seed": size}


def _for_rates(g: Generator, size: int) -> dict[str, Any]:
    return {"lr": size / 1000, "head_lr": size / 100}


def _for_count(g: Generator, size: int) -> dict[str, Any]:
    blocks = 2 + size % 3
    widths = torch.randint(2, 9, (blocks + 1,), generator=g).tolist()
    return {"widths": widths, "frozen": size % blocks}


def _freeze(
    mode: Callable[[nn.Module], Any] = lambda network: None,
    clear: bool = True,
    chosen: Callable[[Any], Any] = lambda network: network.parameters(),
) -> Function:
    """A version of freezing: the mode, whether old gradients go, and which parameters."""

    def freeze(network: nn.Module) -> nn.Module:
        mode(network)
        for parameter in chosen(network):
            parameter.requires_grad = False
            parameter.grad = None if clear else parameter.grad
        return network

    return freeze


def _held(network: nn.Module) -> None:
    """In eval mode for good."""
    for part in network.eval().modules():
        vars(part)["train"] = lambda mode=True, part=part: part


def _norms_held(network: nn.Module) -> None:
    for part in network.modules():
        if isinstance(part, nn.BatchNorm1d):
            _held(part)


def _groups(*pairs: tuple[Callable[[Any], Any], str]) -> Function:
    """A version of the groups: what is in each, and the name of its rate."""

    def groups(network: Any, **rates: float) -> Groups:
        return [{"params": [*chosen(network)], "lr": rates[rate]} for chosen, rate in pairs]

    return lambda network, lr, head_lr: groups(network, lr=lr, head_lr=head_lr)


def _learns(network: nn.Module) -> list[nn.Parameter]:
    return [p for p in network.parameters() if p.requires_grad]


def _trunk(network: Any) -> list[nn.Parameter]:
    return _learns(network.trunk)


def _head(network: Any) -> list[nn.Parameter]:
    return _learns(network.head)


def _loading(
    kept: Callable[[str], str | None] = lambda name: None if name.startswith("head.") else name,
    refuses: Callable[[list[str]], bool] = lambda lost: False,
    shapes: bool = True,
    strict: bool = False,
) -> Function:
    """A version of loading: the name under which an entry is kept, and what is refused.

    shapes: entries of another shape are left out. refuses: told the trunk's entries that are lost.
    """

    def load(network: nn.Module, state: State) -> nn.Module:
        own = network.state_dict()
        named = {kept(name): x for name, x in state.items()}
        fits = {
            name: x
            for name, x in named.items()
            if name and not (shapes and (name not in own or x.shape != own[name].shape))
        }
        network.load_state_dict(fits, strict=strict)
        if refuses([name for name in own if name.startswith("trunk.") and name not in fits]):
            raise ValueError
        return network

    return load


def _without_buffers(name: str) -> str | None:
    return name if name.endswith(("weight", "bias")) and name.startswith("trunk.") else None


def _stripped(name: str) -> str | None:
    name = name.removeprefix("module.")
    return None if name.startswith("head.") else name


EXERCISES: dict[str, Exercise] = {
    "freeze": Exercise(
        title="freeze a network",
        task="Write `my_freeze(network)`: from now on nothing in it moves. Parameters and buffers "
        "stay as they are, bit by bit, and it answers as in eval mode, whatever `train()` is told "
        "and whatever an optimizer with momentum and weight decay does. It has BatchNorm and "
        "dropout, is in training mode, and carries the gradients of its last step. Return the same "
        "network.",
        kind="write",
        difficulty=2,
        minutes=10,
        core=True,
        reference=frozen,
        draw=_for_seed,
        see=what_still_moves,
        mistakes=[
            ("nothing is frozen: parameters and buffers move as before.", lambda network: network),
            (
                "only `requires_grad` is off. BatchNorm's running averages still drift, dropout "
                "still drops, and gradients from before still feed momentum and weight decay.",
                _freeze(clear=False),
            ),
            (
                "the parameters stay, but in training mode BatchNorm's running averages drift and "
                "dropout drops: they are no parameters.",
                _freeze(),
            ),
            (
                "`.eval()` holds only until somebody calls `train()` on the whole model; then "
                "BatchNorm's running averages drift.",
                _freeze(nn.Module.eval),
            ),
            (
                "`.eval()` holds only until somebody calls `train()`, and gradients from before "
                "are left: an optimizer skips a parameter only if its gradient is None.",
                _freeze(nn.Module.eval, clear=False),
            ),
            (
                "the gradients from before are left. Even set to 0 they let momentum and weight "
                "decay move a parameter; an optimizer skips it only if its gradient is None.",
                _freeze(_held, clear=False),
            ),
            (
                "it stays in eval mode, but that stops no gradient: `requires_grad` is still on.",
                _freeze(_held, chosen=lambda network: []),
            ),
            (
                "`.eval()` is all there is: it stops no gradient, and `train()` undoes it.",
                _freeze(nn.Module.eval, chosen=lambda network: []),
            ),
            (
                "only the parameters of the first layers are frozen.",
                _freeze(_held, chosen=lambda network: network[0].parameters()),
            ),
            (
                "only the parameters of the last layer are frozen.",
                _freeze(_held, chosen=lambda network: network[-1].parameters()),
            ),
            (
                "BatchNorm is held in eval mode, but dropout still drops: features that were "
                "recorded once would not be those of the next epoch.",
                _freeze(_norms_held),
            ),
        ],
        hints=[
            "Print `network.state_dict()` before and after a step. Which are no parameters?",
            "An optimizer skips a parameter whose `.grad` is None, but not one whose gradient is "
            "0. And who calls `train()` on your network when somebody calls it on the model?",
            "`requires_grad = False`, `grad = None`, `network.eval()`; then put a function in the "
            "place of `train`, of the network and its parts, that only returns the part.",
        ],
    ),
    "rates_by_group": Exercise(
        title="two rates",
        task="Complete `my_groups(network, lr, head_lr)`: groups for an optimizer, a list of "
        'dictionaries with "params" and "lr". `network.trunk` learns at `lr` and `network.head` at '
        "`head_lr`. Some of the trunk is frozen, `requires_grad` off: only what can be trained is "
        "in a group, each parameter once.",
        kind="complete",
        difficulty=1,
        minutes=4,
        core=True,
        reference=groups_of_two_rates,
        draw=_for_rates,
        see=rate_of_each,
        mistakes=[
            (
                "the head is in two groups: the network's parameters hold it already.",
                _groups((_learns, "lr"), (_head, "head_lr")),
            ),
            (
                "the head is in two groups, and frozen parameters are in one: the network's "
                "parameters hold both.",
                _groups((nn.Module.parameters, "lr"), (_head, "head_lr")),
            ),
            ("the head learns at the trunk's rate.", _groups((_trunk, "lr"), (_head, "lr"))),
            (
                "the two rates are exchanged: the head is new and takes `head_lr`.",
                _groups((_trunk, "head_lr"), (_head, "lr")),
            ),
            (
                "frozen parameters are in a group; take those with `requires_grad`.",
                _groups((lambda n: n.trunk.parameters(), "lr"), (_head, "head_lr")),
            ),
            ("the head is in no group, so it stays random.", _groups((_trunk, "lr"))),
            ("the trunk is in no group: that is feature extraction.", _groups((_head, "head_lr"))),
        ],
        hints=[
            "How many groups are there, and what differs between them?",
            "`network.parameters()` holds the head and what is frozen; `network.trunk` has a "
            "`parameters()` of its own.",
            '`[p for p in network.trunk.parameters() if p.requires_grad]` is "params" of the first '
            "group.",
        ],
    ),
    "find_the_bug_checkpoint": Exercise(
        title="find the bugs",
        task="This loads what fits and is silent about the rest; you find it in every forum. One "
        'day a checkpoint comes from `nn.DataParallel`, all its names begin with "module.", and '
        "nothing is loaded. Another has as many classes as the new task, and its old head is kept. "
        "Repair `my_load(network, state)`: `network` has a `trunk` and a new `head`, `state` is a "
        "state dict. Load all of the trunk, buffers too; leave the head as it is, whatever the "
        "checkpoint's looks like; raise an error if anything of the trunk is lost. Return the "
        "network.",
        kind="repair",
        difficulty=2,
        minutes=8,
        core=True,
        reference=loaded,
        draw=_for_seed,
        see=what_it_loads,
        mistakes=[
            ("this is the function as it was found.", _loading(str)),
            (
                "the head stays new, but a trunk that does not fit is still lost in silence.",
                _loading(),
            ),
            (
                'names that begin with "module." no longer pass in silence, but a layer of '
                "another name or width is still lost.",
                _loading(_stripped),
            ),
            (
                "a trunk that does not fit is refused, but a source's head of the same size takes "
                "the new one's place.",
                _loading(str, refuses=bool),
            ),
            (
                "`strict=False` forgives names but not shapes: it stops at a head of another size, "
                "and in silence it loads nothing of other names.",
                _loading(str, shapes=False),
            ),
            (
                "it stops although only the head differs, and where the old head fits it is kept. "
                "Leave it out, by its name.",
                _loading(str, shapes=False, strict=True),
            ),
            (
                "it stops at every checkpoint. Does the head that you left out count as missing? "
                "It may be missing, the trunk may not.",
                _loading(shapes=False, strict=True),
            ),
            (
                "the buffers are lost: BatchNorm's running averages belong to the trunk, and are "
                "no parameters.",
                _loading(_without_buffers, lambda lost: "trunk.0.weight" in lost),
            ),
        ],
        hints=[
            "How many entries does `fits` have for each of the two checkpoints? Which?",
            "The head should be left out by its name, not by its shape. And `load_state_dict` "
            "returns what it did not find.",
            "Drop the names that begin with `head.`; load with `strict=False`; raise if "
            "`missing_keys` of what comes back has a name that is not the head's. Shapes that "
            "differ raise by themselves.",
        ],
    ),
    "trainable": Exercise(
        title="what is left to train",
        task="`network` is an `nn.Sequential` of blocks, a head last. Complete "
        "`my_trainable(network, frozen)`: how many numbers learn when the first `frozen` blocks "
        "are frozen?",
        kind="complete",
        difficulty=1,
        minutes=4,
        reference=trainable,
        draw=_for_count,
        see=count,
        mistakes=[
            (
                "these are the frozen ones.",
                lambda network, frozen: trainable(network, 0) - trainable(network, frozen),
            ),
            (
                "one block too few learns: with the first 2 frozen, `network[2]` learns.",
                lambda network, frozen: trainable(network, frozen + 1),
            ),
            (
                "these are tensors, and each holds many numbers: `numel()`.",
                lambda network, frozen: len([*network[frozen:].parameters()]),
            ),
            (
                "buffers are counted too; a state dict holds them, and no gradient reaches them.",
                lambda network, frozen: sum(
                    x.numel() for x in network[frozen:].state_dict().values()
                ),
            ),
            (
                "only matrices are counted; biases and the norm's scales learn, too.",
                lambda network, frozen: sum(
                    p.numel() for p in network[frozen:].parameters() if p.ndim > 1
                ),
            ),
        ],
        hints=[
            "`network[frozen:]` is what is above the frozen blocks.",
            "A parameter is a tensor; how many numbers are in it?",
            "Sum `p.numel()` over `network[frozen:].parameters()`.",
        ],
    ),
}
