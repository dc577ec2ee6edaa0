"""Trained networks on board: `data/models/NAME.safetensors`, in half precision, each with the
command that made it.

A file holds its own digest, so a damaged or shortened one is found before a single weight is used.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from tlcourse.data import DataError, data_dir

Model = TypeVar("Model", bound=nn.Module)


def save(model: nn.Module, name: str, *, command: str) -> Path:
    """Write a network's weights and buffers in half precision, with the command that made them. All
    of the file is written, or nothing.
    """
    path = _path(name)
    path.parent.mkdir(exist_ok=True)
    tensors = {
        key: value.cpu().half() if value.is_floating_point() else value.cpu()
        for key, value in model.state_dict().items()
    }
    draft = path.with_name(f".{path.name}.draft")
    save_file(tensors, draft, metadata={"command": command, "sha256": _digest(tensors)})
    return draft.replace(path)


def restore(model: Model, name: str) -> Model:
    """Give a network the weights that `save` wrote, and set it to eval mode. Returns the same
    network.

    Raises DataError when the file is missing or damaged, or holds other layers or shapes than the
    network; it is then left as it was.
    """
    path = _path(name)
    repair = f"Restore it with `git checkout -- data/models/{path.name}`."
    if not path.is_file():
        raise DataError(f"{path} is missing. {repair}")
    try:
        with safe_open(path, framework="pt") as file:
            tensors, stamp = (
                {key: file.get_tensor(key) for key in set(file.keys())},
                file.metadata() or {},
            )
    except (SafetensorError, OSError) as error:
        raise DataError(f"{path} is damaged ({error}). {repair}") from error
    if _digest(tensors) != stamp.get("sha256"):
        raise DataError(f"{path} is damaged: its digest is not the one it was saved with. {repair}")
    wanted, found = (
        {key: tuple(value.shape) for key, value in state.items()}
        for state in (model.state_dict(), tensors)
    )
    if wanted != found:
        odd = sorted(
            key for key in wanted.keys() | found.keys() if wanted.get(key) != found.get(key)
        )
        raise DataError(
            f"{path.name} does not fit the network: {', '.join(odd)} differ in name or shape."
        )
    model.load_state_dict(tensors)
    return model.eval()


def _path(name: str) -> Path:
    return data_dir() / "models" / f"{name}.safetensors"


def _digest(tensors: Mapping[str, Tensor]) -> str:
    parts = hashlib.sha256()
    for key in sorted(tensors):
        parts.update(f"{key} {tuple(tensors[key].shape)} {tensors[key].dtype}".encode())
        parts.update(tensors[key].contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return parts.hexdigest()
