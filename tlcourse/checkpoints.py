"""Trained networks on board, in half precision, each with the command that made it.

A file, `data/models/NAME.safetensors`, holds its own digest, so a damaged or shortened one is found
before a single weight is used.
"""

import hashlib
from collections.abc import Mapping
from itertools import chain
from pathlib import Path
from typing import TypeVar

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from tlcourse.data import DataError, data_dir
from tlcourse.methods._checks import expect

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, name: str, *, command: str) -> Path:
    """Write a network's weights and buffers in half precision, all of the file or nothing.

    command: how they were made. Raises ValueError for what half precision or a file cannot hold.
    """
    path = _path(name)
    tensors = {key: _half(key, value) for key, value in model.state_dict().items()}
    stamp = {"command": command, "sha256": _digest(tensors)}
    content = safetensors.torch.save(tensors, metadata=stamp)
    path.parent.mkdir(exist_ok=True)
    draft = path.with_name(f".{path.name}.draft")
    try:
        draft.write_bytes(content)
        return draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def restore(model: Model, name: str) -> Model:
    """Give a network the weights that `save` wrote, and set it to eval mode; the same network.

    Raises DataError, and leaves it as it was, when the file is missing, damaged or does not fit.
    """
    path = _path(name)
    repair = f"Restore it with `git checkout -- data/models/{path.name}`."
    if not path.is_file():
        raise DataError(f"{path} is missing. {repair}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in set(file.keys())}
            stamp = file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). {repair}") from error
    if _digest(tensors) != stamp.get("sha256"):
        raise DataError(f"{path} is damaged: its digest is not the one it was saved with. {repair}")
    shapes = [{(k, v.shape) for k, v in state.items()} for state in (model.state_dict(), tensors)]
    odd = ", ".join(sorted({key for key, _ in shapes[0] ^ shapes[1]}))
    if odd:
        raise DataError(f"{path.name} does not fit the network: {odd} differ in name or shape.")
    for place in chain(model.parameters(), model.buffers()):
        if 0 in place.stride():  # expanded: several elements share one place
            place.data = place.data.contiguous()
    model.load_state_dict(tensors)
    return model.eval()


def _half(key: str, value: Tensor) -> Tensor:
    """A copy of its own on the CPU, contiguous; floats in half precision, complex in 32 bits."""
    try:
        small = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        if value.is_floating_point():
            small, finite = small.half(), small.double().isfinite()
            expect(small.isfinite().equal(finite), "half precision ends at 65,504")
        elif value.is_complex():
            small = small.to(torch.complex64)
        safetensors.torch.save({key: small})  # refuses what a file cannot hold
        return small
    except Exception as error:
        raise ValueError(f"{key} cannot be saved: {error}") from error


def _path(name: str) -> Path:
    return data_dir() / "models" / f"{name}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    parts = hashlib.sha256()
    for key in sorted(tensors):
        parts.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        parts.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()
