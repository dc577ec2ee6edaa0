"""The `tlcourse` command: open the notebooks, measure, read the verdicts, look after the data.

Every error is one sentence and exit code 2; `--debug` before the command's name shows the
traceback.
"""

import importlib.util
import json
import os
import platform
import secrets
import shutil
import signal
import subprocess
import sys
import time
import webbrowser
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="A transfer-learning course you can run, poke and check.",
)
data_app = typer.Typer(
    help="What data are on board, with digests checked; and fetching more.",
    invoke_without_command=True,
    rich_markup_mode=None,
)
app.add_typer(data_app, name="data")


def main() -> None:
    """Run the command line; turn every error into one sentence and exit code 2."""
    arguments = sys.argv[1:]
    debug = "--debug" in arguments
    try:
        code = app([a for a in arguments if a != "--debug"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        text = (
            error.format_message()
            if hasattr(error, "format_message")
            else str(error) or type(error).__name__
        )
        print(f"error: {' '.join(text.split())}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(code if isinstance(code, int) else 0)


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A transfer-learning course you can run, poke and check."""


@app.command()
def lab(
    copy: Annotated[
        Path | None,
        typer.Option(
            help="Work on a copy of the notebooks in this folder; what is there already is kept."
        ),
    ] = None,
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
    ip: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 reaches out of a container.")
    ] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
) -> None:
    """Open the course in JupyterLab."""
    from jupyter_client.manager import KernelManager

    folder = _notebooks() if copy is None else _copied(copy)
    print(f"Starting JupyterLab in {folder} …", flush=True)
    environment = {
        **os.environ,
        "JUPYTER_TOKEN": os.environ.get("JUPYTER_TOKEN") or secrets.token_hex(24),
    }
    settings = [
        str(Path(__file__).parent / "jupyter"),
        *filter(None, [os.environ.get("JUPYTER_CONFIG_PATH")]),
    ]
    environment["JUPYTER_CONFIG_PATH"] = os.pathsep.join(
        settings
    )  # JupyterLab then asks nobody for news and updates
    extra = ["--allow-root"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
    if (
        "transport_encryption" in KernelManager.class_trait_names()
    ):  # else newer kernels warn that nothing is encrypted
        extra.append("--KernelManager.transport_encryption=auto")
    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "-y",
        "--log-level=ERROR",
        f"--port={port}",
        f"--ip={ip}",
        *extra,
    ]
    signal.signal(
        signal.SIGTERM, signal.default_int_handler
    )  # being told to stop is as good as Ctrl-C
    server = subprocess.Popen([*command, f"--ServerApp.root_dir={folder}"], env=environment)
    try:
        _announce(server, port, environment["JUPYTER_TOKEN"], browser)
        code = server.wait()
    except KeyboardInterrupt:
        return
    finally:
        server.terminate()
        server.wait()
    if code:
        raise RuntimeError(f"JupyterLab stopped with exit code {code}")


def _announce(server: subprocess.Popen[bytes], port: int, token: str, browser: bool) -> None:
    """Wait until the server answers, then say where."""
    from jupyter_server.serverapp import list_running_servers

    found: dict[str, Any] = {}
    while not found and server.poll() is None:
        time.sleep(0.2)
        found = next((entry for entry in list_running_servers() if entry["pid"] == server.pid), {})
    if not found:
        return
    if found["port"] != port:
        print(f"Port {port} is taken, so it is {found['port']}.")
    host = "127.0.0.1" if found["hostname"] in ("0.0.0.0", "::", "") else found["hostname"]
    address = f"http://{host}:{found['port']}{found['base_url']}lab/tree/00_start_here.ipynb?token={token}"
    print(f"\n  {address}\n\nOpen this address in a browser. Stop with Ctrl-C.", flush=True)
    display = (
        sys.platform in ("win32", "darwin")
        or os.environ.get("DISPLAY")
        or os.environ.get("WAYLAND_DISPLAY")
    )
    if browser and display:
        webbrowser.open(address)


def _notebooks() -> Path:
    from tlcourse.data import data_dir

    return data_dir().parent / "notebooks"


def _copied(target: Path) -> Path:
    """Copy the notebooks that are not in the target yet."""
    target.mkdir(parents=True, exist_ok=True)
    new = [
        path for path in sorted(_notebooks().glob("*.ipynb")) if not (target / path.name).exists()
    ]
    for path in new:
        shutil.copyfile(path, target / path.name)
    kept = len(list(_notebooks().glob("*.ipynb"))) - len(new)
    print(
        f"Copied to {target}: {len(new)} of the notebooks"
        + (f"; kept {kept} that were there." if kept else ".")
    )
    return target.resolve()


@app.command("list")
def list_() -> None:
    """Experiments with their scales and arms, how long they take, and whether they are recorded."""
    from tlcourse import records
    from tlcourse.experiments import EXPERIMENTS

    for experiment in EXPERIMENTS.values():
        print(f"{experiment.name}: {experiment.question}\n  arms: {' · '.join(experiment.arms)}")
        for name, scale in experiment.scales.items():
            minutes = scale.minutes
            try:
                record = records.read(experiment.name, name)
                minutes = round(sum(record.provenance["seconds"]) / 60)
                age = "stale" if records.is_stale(record, experiment) else "current"
                state = (
                    f"recorded on {record.provenance['measured']} with {record.seeds} seeds, {age}"
                )
            except records.RecordError as error:
                state = "damaged" if "damaged" in str(error) else "not recorded"
            print(f"  {name}: {scale.seeds} seeds, about {minutes:g} minutes of one core; {state}")


@app.command()
def run(
    name: Annotated[str, typer.Argument(help="An experiment of `tlcourse list`.")],
    scale: Annotated[str, typer.Option(help="How large.")] = "lecture",
    seeds: Annotated[
        int | None, typer.Option(help="How many repetitions; those of the scale, if not given.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(help="Processes of one thread each; one per core, if not given.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    verify: Annotated[
        bool, typer.Option(help="Measure seed 0 again, and stamp the record anew when it agrees.")
    ] = False,
) -> None:
    """Measure an experiment and write its record. Finished seeds are kept when you stop it."""
    from tlcourse import records
    from tlcourse.experiments import find
    from tlcourse.training import device as device_of

    experiment, where = find(name), device_of(device).type
    if verify and records.verify(experiment, scale):
        print("Seed 0 agrees with the record, which is stamped anew.")
        return
    if verify:
        print("Seed 0 does not agree with the record: measuring everything again.")
    records.measure(experiment, scale, seeds=seeds, workers=workers, device=where)
    _print_ledger(name)


@app.command()
def claims(
    name: Annotated[str | None, typer.Argument(help="One experiment's claims only.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="A list of objects, and nothing else.")
    ] = False,
    strict: Annotated[
        bool, typer.Option(help="Fail when a record is stale, incomplete or missing.")
    ] = False,
) -> None:
    """The lecture's claims and what the records say of them, one line a claim and scale."""
    from tlcourse.experiments import ledger

    entries = ledger(name)
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=1, ensure_ascii=False))
    else:
        _print_ledger(name)
    bad = [
        f"{entry.claim.id} ({entry.scale}) is {entry.status}"
        for entry in entries
        if entry.status != "current"
    ]
    if strict and bad:
        raise RuntimeError(f"not every claim has a current record: {', '.join(bad)}")


def _print_ledger(name: str | None) -> None:
    from tlcourse.experiments import ledger

    for entry in ledger(name):
        found = entry.found
        verdict = (
            found.verdict
            if entry.status == "current"
            else f"{entry.status}{f' (was {found.verdict})' if found.verdict else ''}"
        )
        interval = f" [{found.low:.3g}, {found.high:.3g}]" if found.low == found.low else ""
        number = f"{found.effect:.3g}{interval}" if found.effect == found.effect else ""
        print(
            f"{entry.claim.id:<4}{entry.scale:<9}{verdict:<18}{number:<26}{entry.claim.sentence} ({found.seeds} seeds; {entry.claim.unit})"
        )


@data_app.callback()
def data(context: typer.Context) -> None:
    """What data are on board; every file is read and its digest checked."""
    if context.invoked_subcommand is not None:
        return
    from tlcourse.data import FETCHABLE, ON_BOARD, DataError, data_dir, is_there, load

    print(f"in {data_dir()}")
    damaged = []
    for name in [*ON_BOARD, *FETCHABLE]:
        if not is_there(name):
            print(
                f"  {name:<15}not here; `tlcourse data fetch {name}` brings it (about {FETCHABLE[name][1]} MB)"
            )
            continue
        try:
            train, test = load(name), load(name, "test")
            print(
                f"  {name:<15}ok: {len(train):,} images to train, {len(test):,} to test, {len(train.classes)} classes"
            )
        except DataError as error:
            damaged.append(name)
            print(f"  {name:<15}{error}")
    if damaged:
        raise DataError(
            f"damaged or missing: {', '.join(damaged)}; each line above says what to do"
        )


@data_app.command("fetch")
def data_fetch(
    name: Annotated[str, typer.Argument(help="A set that `tlcourse data` lists as not here.")],
) -> None:
    """Download a data set through torchvision into the data folder."""
    from tlcourse.data import fetch

    print(f"{name} is in {fetch(name)}")


@app.command()
def execute(
    notebooks: Annotated[list[Path], typer.Argument(help="Notebooks to run and save.")],
) -> None:
    """Run notebooks from a fresh kernel and save them as they are committed."""
    from tlcourse.publish.notebooks import execute as execute_one

    for path in notebooks:
        execute_one(path)
        print(f"{path} was run and saved")


@app.command()
def page(
    notebook: Annotated[Path, typer.Argument(help="A notebook that was run.")],
    target: Annotated[
        Path,
        typer.Argument(help="The page to write, OUT.html; MathJax goes to OUT_files beside it."),
    ],
) -> None:
    """Write a notebook as a page whose widgets work without kernel and network."""
    from tlcourse.publish.pages import write_page

    print(f"{write_page(notebook, target)} was written")


@app.command()
def doctor() -> None:
    """Check this machine: each line says ok, or what to do."""
    import torch

    from tlcourse.data import ON_BOARD, DataError, data_dir, load
    from tlcourse.training import device

    missing: list[str] = []

    def line(good: bool, what: str, advice: str, needed: bool = True) -> None:
        print(
            f"{'ok  ' if good else 'note' if not needed else 'FIX '} {what}{'' if good else f': {advice}'}"
        )
        if needed and not good:
            missing.append(what)

    line(
        sys.version_info >= (3, 11),
        f"Python {platform.python_version()}",
        "install Python 3.11 or newer",
    )
    for package in ("torch", "torchvision", "jupyterlab", "matplotlib", "ipywidgets", "anywidget"):
        there = importlib.util.find_spec(package) is not None
        line(
            there,
            f"{package} {version(package) if there else 'is missing'}",
            "run `pip install -e .` in the course's folder",
        )
    chosen = device().type
    line(
        chosen != "cpu",
        f"device: {chosen}",
        "no GPU that torch can use; every live cell is made for a CPU",
        needed=False,
    )
    line(True, f"threads: torch uses {torch.get_num_threads()} of {os.cpu_count()} cores", "")
    try:
        free = shutil.disk_usage(data_dir()).free / 1e9
        line(
            free > 1,
            f"disk: {free:.0f} GB free beside the data",
            "make room; copies and records need up to 1 GB",
        )
        for name in ON_BOARD:
            line(len(load(name, "test")) > 0, f"data: {name}", "")
    except DataError as error:
        line(False, "data", str(error))
    browser = next(
        (
            path
            for path in map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
            if path
        ),
        None,
    )
    line(
        browser is not None,
        f"browser for the widget tests: {browser or 'none'}",
        "the course runs without; to test the widgets install chromium",
        needed=False,
    )
    if missing:
        raise RuntimeError(f"not ready: {', '.join(missing)}")
