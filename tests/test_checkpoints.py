"""Networks on board: what is saved comes back in half precision, and nothing else passes for it."""

import errno
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from tlcourse.checkpoints import restore, save
from tlcourse.data import DataError
from tlcourse.models import MLP, ConvNet


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
        match=r"tiny\.safetensors is missing\. Restore it with `git checkout -- data/models/tiny",
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


def with_buffer(value):
    net = nn.Linear(2, 2)
    net.register_buffer("more", value)
    return net


def with_weight(weight):
    net = nn.Linear(*weight.shape[::-1])
    net.weight = nn.Parameter(weight)
    return net


def tied():
    first, second = nn.Linear(2, 2), nn.Linear(2, 2)
    second.weight = first.weight
    first.register_buffer("ids", torch.arange(4))
    second.register_buffer("ids", first.ids)
    return nn.Sequential(first, second).half()


ROW = torch.arange(1.0, 101)
LAYOUTS = {
    "channels last": lambda: ConvNet(channels=3).to(memory_format=torch.channels_last),
    "transposed": lambda: with_weight(ROW[:6].view(3, 2).T),
    "tied": tied,
    "expanded buffer": lambda: with_buffer(torch.arange(1, 5).expand(2, 4)),
    "expanded weight": lambda: with_weight(ROW[:2].expand(3, 2)),
    "a view of more": lambda: with_buffer(ROW[10:14]),
    "every tenth": lambda: with_buffer(ROW.view(10, 10)[:, 3]),
    "mirrored": lambda: with_buffer(ROW[:6].flip(0)),
    "windows that overlap": lambda: with_buffer(ROW[:6].unfold(0, 3, 1)),
    "empty": lambda: with_buffer(torch.zeros(0, 3)),
    "empty and transposed": lambda: with_buffer(torch.zeros(3, 0).T),
    "a single number": lambda: with_buffer(torch.tensor(7)),
    "bool": lambda: with_buffer(torch.tensor([True, False])),
    "uint16": lambda: with_buffer(torch.tensor([1, 2**16 - 1]).to(torch.uint16)),
    "bfloat16": lambda: with_buffer(ROW[:3].bfloat16()),
    "float8": lambda: with_buffer(ROW[:3].to(torch.float8_e4m3fn)),
    "float64": lambda: with_weight(ROW[:4].view(2, 2).double()),
    "complex": lambda: with_buffer(torch.complex(ROW[:3], -ROW[:3])),
    "complex128": lambda: with_buffer(torch.complex(ROW[:3], -ROW[:3]).to(torch.complex128)),
    "complex32": lambda: with_buffer(torch.complex(ROW[:3], -ROW[:3]).to(torch.complex32)),
    "conjugate": lambda: with_buffer(torch.complex(ROW[:3], ROW[:3]).conj()),
    "negative": lambda: with_buffer(torch.complex(ROW[:3], ROW[:3]).conj().imag),
    "not finite": lambda: with_buffer(torch.tensor([float("inf"), -float("inf"), float("nan")])),
}


def values(net):
    """What a network holds, in half precision."""
    state = {key: value.resolve_conj().resolve_neg() for key, value in net.state_dict().items()}
    return {
        key: value.half() if value.is_floating_point() else value.to(torch.complex64)
        for key, value in state.items()
    }


def same(a, b):
    for key in a | b:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, equal_nan=True, msg=key)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_weights_come_back_however_they_lie_in_memory(home, layout):
    net, other = LAYOUTS[layout](), LAYOUTS[layout]()
    before = {key: value.clone() for key, value in values(net).items()}
    save(net, "odd", command="")
    same(values(net), before)
    for place in (*other.parameters(), *other.buffers()):
        zeros = torch.zeros((), dtype=place.dtype).expand(place.shape)
        place.data = zeros if 0 in place.stride() else torch.zeros_like(place)
    types = {key: value.dtype for key, value in other.state_dict().items()}
    found = restore(other, "odd")
    assert {key: value.dtype for key, value in found.state_dict().items()} == types
    same(values(found), before)
    if layout == "tied":
        assert found[0].weight is found[1].weight


class Words(nn.Module):
    def get_extra_state(self):
        return {"words": ["no", "tensor"]}

    def set_extra_state(self, state):
        pass


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: with_buffer(torch.tensor([1e6])), "^more cannot be saved: half precision ends at"),
        (lambda: with_buffer(torch.tensor([1e30]).bfloat16()), "^more .* ends at 65,504$"),
        (lambda: with_weight(torch.full((2, 2), -7e4)), "^weight .* ends at 65,504$"),
        (lambda: with_buffer(torch.eye(3).to_sparse()), "^more cannot be saved: "),
        (lambda: with_buffer(torch.empty(3, device="meta")), "^more cannot be saved: .*meta"),
        (lambda: nn.LazyLinear(3), "^weight cannot be saved: .*uninitialized"),
        (Words, "^_extra_state cannot be saved: "),
    ],
)
def test_what_cannot_be_saved_is_named_and_nothing_is_written(home, make, sentence):
    with pytest.raises(ValueError, match=sentence):
        save(make(), "odd", command="")
    assert not home.exists()
    path = save(network(), "odd", command="make odd")
    content = path.read_bytes()
    with pytest.raises(ValueError, match=sentence):
        save(make(), "odd", command="")
    assert [(p.name, p.read_bytes()) for p in home.iterdir()] == [("odd.safetensors", content)]


def test_a_full_disk_leaves_the_file_that_was_there_and_no_half_of_another(home, monkeypatch):
    content = save(network(), "tiny", command="").read_bytes()
    write = Path.write_bytes

    def half(self, data):
        write(self, data[: len(data) // 2])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", half)
    with pytest.raises(OSError, match="No space left"):
        save(network(seed=1), "tiny", command="")
    assert [(p.name, p.read_bytes()) for p in home.iterdir()] == [("tiny.safetensors", content)]


def test_files_on_board_are_read(repository, monkeypatch):
    monkeypatch.setenv("TLCOURSE_HOME", str(repository))
    net = restore(MLP(784, 1200, 1200, 10), "mnist_teacher")
    assert net.head.weight.abs().sum() > 1
