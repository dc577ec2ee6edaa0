"""What is seen of an answer that is a loss: its value, and the gradients that it trains with."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from tlcourse.exercises._compare import Told, tried
from tlcourse.exercises._exercise import CHANGED, Function

NUMBERS = (Tensor, np.ndarray, np.generic, float, int)
LOST = {name: f"at `.{name}()`" for name in ("item", "detach", "tolist", "numpy")}
LOST |= {"__array__": "in NumPy", "__float__": "at `float()`", "tensor": "at `torch.tensor()`"}


class _Watch(TorchFunctionMode):
    """Remembers where a gradient was lost last."""

    where = ""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if any(isinstance(x, Tensor) and x.requires_grad for x in args):
            off = "inference_mode" if torch.is_inference_mode_enabled() else "no_grad"
            lost = LOST.get(getattr(func, "__name__", ""), "")
            lost = "at `.data`" if func == Tensor.data.__get__ else lost  # type: ignore[attr-defined]
            self.where = lost or (
                self.where if torch.is_grad_enabled() else f"under `torch.{off}()`"
            )
        return func(*args, **(kwargs or {}))


def gradients(loss: Function, inputs: Mapping[str, Any], *at: str) -> dict[str, Any]:
    """The loss, under "", and its gradient at each of these arguments, tensors or lists of them.

    Where it carries none, what is to be said of that stands in its place.
    """
    leaves = {name: [x.clone().requires_grad_() for x in _listed(inputs[name])] for name in at}
    copies = {name: [x.clone() for x in parts] for name, parts in leaves.items()}
    given = {**inputs, **{name: _like(inputs[name], parts) for name, parts in copies.items()}}
    found = one_number(loss, given)
    if any(x._version for parts in copies.values() for x in parts):
        raise Told(CHANGED)
    flat = [x for parts in leaves.values() for x in parts]
    slopes: list[Tensor | None] = [None for _ in flat]
    if isinstance(found, Tensor) and found.requires_grad:
        slopes = list(torch.autograd.grad(found, flat, allow_unused=True))
        found = found.detach()
    if all(slope is None for slope in slopes):
        return {"": found, **dict.fromkeys(at, where_lost(loss, given))}
    kind = found.dtype  # an answer in half precision is judged as such
    known = iter(torch.zeros_like(x) if s is None else s for x, s in zip(flat, slopes))
    rounded = {name: [next(known).to(kind) for _ in parts] for name, parts in leaves.items()}
    return {"": found, **{name: _like(inputs[name], parts) for name, parts in rounded.items()}}


def trained(*at: str) -> Callable[[Function, Mapping[str, Any]], dict[str, Any]]:
    """What is seen of a loss that trains what gives these arguments."""

    def see(loss: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
        seen = gradients(loss, inputs, *at)
        return {f"the gradient at `{part}`" if part else "the loss": seen[part] for part in seen}

    return see


def _listed(x: Any) -> list[Tensor]:
    return [x] if isinstance(x, Tensor) else list(x)


def _like(x: Any, parts: list[Tensor]) -> Any:
    return parts[0] if isinstance(x, Tensor) else parts


def one_number(loss: Function, given: Mapping[str, Any]) -> Any:
    """What the loss returns, nan where NumPy refuses its gradient. Tells unless it is a number."""
    try:
        found = loss(**given)
    except RuntimeError as error:
        if "Can't call numpy()" not in tried(str, "", error):
            raise
        return float("nan")
    shape = tuple(getattr(found, "shape", ())) if isinstance(found, NUMBERS) else None
    if shape != ():
        got = f"shape {shape}" if shape else type(found).__name__
        raise Told(f"Not yet: the loss must be one number, a tensor of no dimensions; got {got}.")
    return found


def where_lost(loss: Function, given: Mapping[str, Any]) -> Told:
    with _Watch() as watch:
        tried(partial(loss, **given), None)
    where = f"it is lost {watch.where}" if watch.where else "it does not depend on what is trained"
    return Told(f"Not yet: the result carries no gradient, so nothing can learn from it: {where}.")
