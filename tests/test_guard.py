"""No test leaves this machine, not even from a process that it starts."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ATTEMPT = """
import socket
try:
    socket.create_connection(('192.0.2.1', 80), timeout=1)
except OSError as error:
    print(error)
"""


def forget() -> list[str]:
    """What was written of attempts so far; and forget it, since here they are the point."""
    log = Path(os.environ["TLCOURSE_GUARD"])
    found = log.read_text(encoding="utf-8").split() if log.exists() else []
    log.unlink(missing_ok=True)
    return found


def test_a_connection_to_another_machine_is_refused_and_written_down():
    with pytest.raises(OSError, match="network guard refused"):
        socket.create_connection(("192.0.2.1", 80), timeout=1)
    assert set(forget()) == {"192.0.2.1"}


def test_a_name_is_not_even_looked_up():
    with pytest.raises(OSError, match="network guard refused"):
        socket.getaddrinfo("example.invalid", 80)
    assert forget() == ["example.invalid"]


def test_a_process_that_a_test_starts_is_guarded_too():
    said = subprocess.run(
        [sys.executable, "-c", ATTEMPT], capture_output=True, text=True, check=True
    ).stdout
    assert "network guard refused" in said
    assert set(forget()) == {"192.0.2.1"}


def test_this_machine_may_be_reached():
    server = socket.create_server(("127.0.0.1", 0))
    with server, socket.create_connection(server.getsockname(), timeout=5):
        pass
    assert forget() == []
