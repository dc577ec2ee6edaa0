"""One thread each, no network, strict measured values; the marks of the inner loop."""

import hashlib
import os
import pickle
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

GUARD = Path(__file__).parent / "tests" / "guard"
LOG = Path(tempfile.gettempdir()) / f"tlcourse-guard-{os.getpid()}"
os.environ |= {
    "OMP_NUM_THREADS": "1",
    "TLCOURSE_STRICT": "1",
    "TLCOURSE_GUARD": str(LOG),
    "PYTHONPATH": os.pathsep.join([str(GUARD), *filter(None, [os.environ.get("PYTHONPATH")])]),
}
sys.path.insert(0, str(GUARD))
sys.modules.pop("sitecustomize", None)  # a distribution may have its own

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import sitecustomize  # noqa: E402, F401
import torch  # noqa: E402
import torchvision  # noqa: E402

torch.set_num_threads(1)
REPOSITORY = Path(__file__).parent
DEVICES = [
    "cpu",
    *(["cuda"] if torch.cuda.is_available() else []),
    *(["mps"] if torch.backends.mps.is_available() else []),
]


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Notebooks are slow; what only a GPU shows is skipped without one."""
    for item in items:
        if item.path.suffix == ".ipynb":
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU here"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item):
    """Fail a test that tried to reach another machine, even if the code swallowed the refusal."""
    LOG.unlink(missing_ok=True)
    result = yield
    if LOG.exists():
        hosts = sorted(set(LOG.read_text(encoding="utf-8").split()))
        pytest.fail(f"tried to reach the network: {', '.join(hosts)}")
    return result


@pytest.fixture(params=DEVICES)
def device(request: pytest.FixtureRequest) -> torch.device:
    """Every device that this machine has."""
    return torch.device(request.param)


@pytest.fixture
def repository() -> Path:
    """The root of the checkout."""
    return REPOSITORY


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty course folder, whose data/ holds only SHA256SUMS: what is written goes there."""
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "SHA256SUMS").write_bytes(
        (REPOSITORY / "data" / "SHA256SUMS").read_bytes()
    )
    monkeypatch.setenv("TLCOURSE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def write_cifar10(monkeypatch: pytest.MonkeyPatch) -> Callable[[Path], Path]:
    """Writes CIFAR-10 as it lies on a disk, two images a batch; torchvision is told the digests."""

    def write(root: Path) -> Path:
        folder = root / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        digests = {}
        for b, file in enumerate(
            [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]
        ):
            data = np.full((2, 3072), b, dtype=np.uint8)
            data[:, :1024] += 100  # red
            batch = (
                {"label_names": [f"class {i}" for i in range(10)]}
                if "meta" in file
                else {"data": data, "labels": [b, 9]}
            )
            (folder / file).write_bytes(pickle.dumps(batch))
            digests[file] = hashlib.md5((folder / file).read_bytes()).hexdigest()
        cifar = torchvision.datasets.CIFAR10
        monkeypatch.setattr(cifar, "train_list", [[f, digests[f]] for f in digests if "data" in f])
        monkeypatch.setattr(cifar, "test_list", [["test_batch", digests["test_batch"]]])
        monkeypatch.setattr(
            cifar,
            "meta",
            {"filename": "batches.meta", "key": "label_names", "md5": digests["batches.meta"]},
        )
        return folder

    return write


@pytest.fixture
def cifar10(home: Path, write_cifar10: Callable[[Path], Path]) -> Path:
    """A CIFAR-10 of twelve images, fetched already."""
    return write_cifar10(home / "data" / "cifar10")
