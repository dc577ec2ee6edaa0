"""JupyterLab on the course's notebooks, or on a copy; nobody gets in without its token."""

import json
import mimetypes
import os
import secrets
import signal
import ssl
import subprocess
import sys
import time
import webbrowser
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPSConnection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import quote

from tlcourse.methods._checks import expect
from tlcourse.publish import write

SETTINGS = Path(__file__).parents[1] / "jupyter"  # JupyterLab then asks nobody for news


def copied(source: Path, target: Path) -> Path:
    """Copy the notebooks, and pictures below them, that are not in the target yet: all or none."""
    instead = "name a new or an empty folder"
    expect(target.is_dir() or not os.path.lexists(target), f"{target} is a file; {instead}")
    course = [path.relative_to(source) for path in sorted(source.rglob("*")) if path.is_file()]
    course = [path for path in course if _is_of_the_course(path)]
    new = [path for path in course if not os.path.lexists(target / path)]
    mixed = f"{target} holds other things and no copy of the course; {instead}"
    expect(len(new) < len(course) or not any(target.glob("[!.]*")), mixed)
    target.mkdir(parents=True, exist_ok=True)
    write({target / path: (source / path).read_bytes() for path in new})
    kept = f"; kept {len(course) - len(new)} that were there" if len(new) < len(course) else ""
    print(f"Copied to {target}: {len(new)} notebooks and pictures{kept}.")
    return target.resolve()


def _is_of_the_course(path: Path) -> bool:
    picture = (mimetypes.guess_type(path.name)[0] or "").startswith("image/")
    hidden = any(part.startswith(".") for part in path.parts)
    return not hidden and (picture or (path.suffix == ".ipynb" and len(path.parts) == 1))


def serve(folder: Path, first: str, port: int, ip: str, browser: bool) -> None:
    """Run JupyterLab on a folder, with a notebook of it to open first, until it is told to stop.

    Raises RuntimeError if it stops by itself, or lets in who has no token: it is then stopped.
    """
    print(f"Starting JupyterLab in {folder} …", flush=True)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as good as Ctrl-C
    with TemporaryDirectory() as private:
        command = [*_command(), f"--port={port}", f"--ip={ip}", f"--ServerApp.root_dir={folder}"]
        server = subprocess.Popen(command, env=_environment(private))
        try:
            _announce(server, first, port, browser)
            code = server.wait()
        except KeyboardInterrupt:
            return
        finally:
            server.terminate()
            server.wait()
    if code:
        raise RuntimeError(f"JupyterLab stopped with exit code {code}")


def _command() -> list[str]:
    from jupyter_client.manager import KernelManager

    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "-y"]
    command.append("--Application.log_level=ERROR")  # of its extensions, too
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")
    if "transport_encryption" in KernelManager.class_trait_names():  # else newer kernels warn
        command.append("--KernelManager.transport_encryption=auto")
    return command


def _environment(private: str) -> dict[str, str]:
    """The token, also as a configuration that is read last: the user's own cannot empty it."""
    token = os.environ.get("JUPYTER_TOKEN", "").strip() or secrets.token_hex(24)
    config = json.dumps({"PasswordIdentityProvider": {"token": token}})
    Path(private, "jupyter_server_config.json").write_text(config, encoding="utf-8")
    paths = [private, str(SETTINGS), os.environ.get("JUPYTER_CONFIG_PATH", "")]
    path = os.pathsep.join(filter(None, paths))
    quiet = {"PYDEVD_DISABLE_FILE_VALIDATION": "1"}  # else some kernels warn of frozen modules
    return {**os.environ, **quiet, "JUPYTER_TOKEN": token, "JUPYTER_CONFIG_PATH": path}


def _announce(server: subprocess.Popen[bytes], first: str, port: int, browser: bool) -> None:
    """Wait until the server is up, make sure that it asks for a token, and say where it is."""
    from jupyter_server.serverapp import list_running_servers

    closed: bool | None = None
    while closed is None:
        if server.poll() is not None:
            return
        time.sleep(0.2)
        running: Iterator[dict[str, Any]] = list_running_servers()
        found = next((entry for entry in running if entry["pid"] == server.pid), {})
        name: str = found.get("hostname", "")
        host = "127.0.0.1" if name in ("0.0.0.0", "::", "") else name
        with suppress(ConnectionRefusedError):  # it is listed a moment before it listens
            closed = _is_closed(host, found) if found else None
    if not closed:
        raise RuntimeError(
            "JupyterLab would let everybody in, as your Jupyter configuration says, and was "
            "stopped; remove what it says of tokens and identity (`jupyter --paths` says where)"
        )
    if found["port"] != port:
        print(f"Port {port} is taken, so it is {found['port']}.")
    place = f"http{'s' * found['secure']}://{f'[{host}]' if ':' in host else host}:{found['port']}"
    path = f"{found['base_url']}lab/tree/{first}?token={quote(found['token'])}"
    print(f"\n  {place}{path}\n\nOpen this address in a browser. Stop with Ctrl-C.", flush=True)
    display = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if browser and (display or sys.platform in ("win32", "darwin")):
        webbrowser.open(place + path)


def _is_closed(host: str, found: dict[str, Any]) -> bool:
    """Whether the running server turns away who comes without a token."""
    connection = HTTPConnection(host, found["port"], timeout=60)
    if found["secure"]:
        unnamed = ssl._create_unverified_context()  # it is our own machine
        connection = HTTPSConnection(host, found["port"], timeout=60, context=unnamed)
    connection.request("GET", f"{found['base_url']}api/contents")
    return connection.getresponse().status in (302, 401, 403)
