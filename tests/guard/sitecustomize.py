"""Fails whatever tries to leave this machine, in the tests and in the processes they start.

Kernels too: Python imports a module of this name at start-up when its folder is on PYTHONPATH;
conftest.py puts it there. An attempt is refused and written to the file TLCOURSE_GUARD, so that the
test fails even where the code under test catches the error.
"""

import ipaddress
import os
import socket

_connect, _lookup = socket.socket.connect, socket.getaddrinfo


def _is_local(host: object) -> bool:
    if host in (None, "", b"", "localhost", socket.gethostname()):
        return True
    try:
        address = ipaddress.ip_address(
            host.decode() if isinstance(host, bytes) else str(host).split("%")[0]
        )
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse(host: object) -> None:
    log = os.environ.get("TLCOURSE_GUARD")
    if log:
        with open(log, "a", encoding="utf-8") as file:
            file.write(f"{host}\n")
    raise OSError(f"the tests' network guard refused a connection to {host}")


def connect(self: socket.socket, address: object) -> None:
    """`socket.socket.connect`, for this machine only."""
    if isinstance(address, tuple) and not _is_local(address[0]):
        _refuse(address[0])
    return _connect(self, address)


def getaddrinfo(host: object, *args: object, **kwargs: object) -> object:
    """`socket.getaddrinfo`, for this machine only."""
    if not _is_local(host):
        _refuse(host)
    return _lookup(host, *args, **kwargs)


if os.environ.get("TLCOURSE_GUARD"):
    socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
