"""Networks on board: what is saved comes back in half precision, and nothing else passes for it."""

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tlcourse.checkpoints import restore, save
from tlcourse.data import DataError
from tlcourse.models import MLP


@pytest.fixture
def home(monkeypatch, tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "SHA256SUMS").touch()
    monkeypatch.setenv("TLCOURSE_HOME", str(tmp_path))
    return tmp_path / "data" / "models"


def network(units=3, seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(4, units), nn.BatchNorm1d(units), nn.Dropout(0.5))


def test_weights_and_buffers_come_back_in_half_precision(home):
    net = network()
    net(torch.randn(8, 4))  # moves the running averages
    path = save(net, "tiny", command="make tiny")
    assert path == home / "tiny.safetensors"
    found = restore(network(seed=1), "tiny")
    for key, value in net.state_dict().items():
        expected = value.half().to(value.dtype) if value.is_floating_point() else value
        assert torch.equal(found.state_dict()[key], expected), key
    assert not found.training
    assert next(found.parameters()).dtype == torch.float32
    with safe_open(path, "pt") as file:
        assert file.metadata()["command"] == "make tiny"
    assert [p.name for p in home.iterdir()] == ["tiny.safetensors"]


def test_a_missing_file_says_how_to_get_it_back(home):
    with pytest.raises(
        DataError,
        match=r"tiny\.safetensors is missing\. Restore it with `git checkout -- data/models/tiny\.safetensors`",
    ):
        restore(network(), "tiny")


@pytest.mark.parametrize("damage", ["cut", "flipped", "other", "empty"])
def test_a_damaged_file_is_found_before_a_weight_is_used(home, damage):
    path = save(network(), "tiny", command="")
    content = bytearray(path.read_bytes())
    if damage == "cut":
        path.write_bytes(content[:-3])
    elif damage == "flipped":
        content[-1] ^= 1
        path.write_bytes(content)
    elif damage == "other":
        save_file(load_file(path), path)  # no digest
    else:
        path.write_bytes(b"")
    net = network(seed=1)
    before = [p.clone() for p in net.parameters()]
    with pytest.raises(DataError, match="is damaged"):
        restore(net, "tiny")
    assert all(torch.equal(a, b) for a, b in zip(before, net.parameters()))


@pytest.mark.parametrize(
    ("other", "odd"),
    [(network(units=5), "0.bias, 0.weight"), (MLP(4, 3), "head.bias"), (nn.Linear(4, 3), "0.bias")],
)
def test_a_file_that_does_not_fit_is_refused(home, other, odd):
    save(network(), "tiny", command="")
    with pytest.raises(DataError, match=rf"tiny\.safetensors does not fit the network: .*{odd}"):
        restore(other, "tiny")
    assert other.training
