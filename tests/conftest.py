"""What tests of measuring share."""

from concurrent.futures import ThreadPoolExecutor

import pytest

from tlcourse import measure


@pytest.fixture
def in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeds are measured here, one after the other: worker processes take seconds to start."""
    monkeypatch.setattr(measure, "_pool", lambda workers: ThreadPoolExecutor(1))
    measure._loaded.cache_clear()
