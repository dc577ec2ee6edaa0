"""The `tlcourse` command: open the notebooks, measure, read the verdicts, look after the data.

Every error is one sentence and exit code 2; `--debug` before the command's name shows the
traceback.
"""

import importlib.util
import io
import json
import os
import platform
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
data_app = typer.Typer(invoke_without_command=True, rich_markup_mode=None)
app.add_typer(data_app, name="data")
WORDS = """\
arm:   one of the things that are compared, such as a student without teacher
scale: how large; lecture and full decide claims, live is what a cell measures
seed:  one repetition with its own random numbers; intervals are over seeds"""
ROW = "{:<6}{:<8}{:<13}{:<34}{:>5}  {}"  # of the table of claims: 80 columns


def main() -> None:
    """Run the command line; turn every error into one sentence and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not every encoding has all our letters
            stream.reconfigure(errors="backslashreplace")
    debug, arguments = "--debug" in sys.argv, [a for a in sys.argv[1:] if a != "--debug"]
    try:
        code = app(arguments or ["--help"], standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        print("\nstopped", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        if debug:
            raise
        said = error.format_message() if hasattr(error, "format_message") else str(error)
        print(f"error: {' '.join((said or type(error).__name__).split())}", file=sys.stderr)
        raise SystemExit(2) from None
    raise SystemExit(code if isinstance(code, int) else 0)


def _say(text: str) -> None:
    """Print a paragraph no wider than the terminal: lines after the first begin six letters in."""
    width, hang = shutil.get_terminal_size().columns, " " * 6
    print(textwrap.fill(text, width, subsequent_indent=hang, break_on_hyphens=False))


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """A transfer-learning course you can run, poke and check."""


@app.command()
def lab(
    copy: Annotated[Path | None, typer.Option(help="Work on a copy here, never replaced.")] = None,
    port: Annotated[int, typer.Option(help="First port to try.")] = 8888,
    ip: Annotated[str, typer.Option(help="Where to listen; 0.0.0.0 in a container.")] = "127.0.0.1",
    browser: Annotated[bool, typer.Option(help="Open a browser, where there is a display.")] = True,
) -> None:
    """Open the course in JupyterLab."""
    from tlcourse.data import data_dir
    from tlcourse.publish.lab import copied, serve

    root, first = data_dir().parent, "notebooks/00_start_here.ipynb"  # with what they point to
    if copy is not None:
        root, first = copied(root / "notebooks", copy), "00_start_here.ipynb"
    serve(root, first, port, ip, browser)


@app.command("list")
def list_() -> None:
    """Experiments: arms, scales, minutes, and whether recorded."""
    from tlcourse.experiments import EXPERIMENTS
    from tlcourse.measure import state

    print(WORDS)
    chapter = ""
    for experiment in EXPERIMENTS.values():
        if experiment.chapter != chapter:
            chapter = experiment.chapter
            print(f"\n{chapter.replace('_', ' ').capitalize()}")
        _say(f"  {experiment.name}: {experiment.question}")
        _say(f"    arms: {' · '.join(experiment.arms)}")
        for name, scale in experiment.scales.items():
            status, record, _ = state(experiment, name)
            minutes, said = scale.minutes, ""
            if record:
                origin, minutes = record.provenance, round(sum(record.provenance["seconds"]) / 60)
                said = f"; recorded on {origin['measured']} with {record.seeds} seeds"
                said += f"; verified {record.verified}" if record.verified else ""
            now = "not recorded" if status == "missing" else status
            _say(f"    {name}: {now}; {scale.seeds} seeds, about {minutes:g} min of one core{said}")


@app.command()
def run(
    name: Annotated[str | None, typer.Argument(help="One of `tlcourse list`; or --stale.")] = None,
    scale: Annotated[str, typer.Option(help="How large.")] = "lecture",
    seeds: Annotated[int | None, typer.Option(help="Repetitions; else those of the scale.")] = None,
    workers: Annotated[int | None, typer.Option(help="Processes; else one per core.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or mps.")] = "auto",
    verify: Annotated[bool, typer.Option(help="Measure seed 0 again, or all.")] = False,
    stale: Annotated[bool, typer.Option(help="Every record whose code has changed.")] = False,
) -> None:
    """Measure an experiment and write its record. Finished seeds are kept when you stop it."""
    from tlcourse import measure
    from tlcourse.experiments import EXPERIMENTS, find, ledger
    from tlcourse.training import device as device_of

    if name is None and not stale:
        raise ValueError("name an experiment of `tlcourse list`, or ask for --stale")
    chosen, where = [find(name)] if name else list(EXPERIMENTS.values()), device_of(device).type
    sizes = [(e, size) for e in chosen for size in (e.scales if stale else [scale])]
    for experiment, size in sizes:
        if stale and measure.state(experiment, size).status != "stale":
            continue
        agreement = measure.verify(experiment, size) if verify else None
        if agreement:
            print(f"{experiment.name} ({size}): seed 0 agrees {agreement}; stamped anew.")
            continue
        if verify:
            print(f"{experiment.name} ({size}): seed 0 does not agree; measuring everything again.")
        measure.measure(experiment, size, seeds=seeds, workers=workers, device=where)
        _print_claims(ledger(experiment.name), experiment.name)


@app.command()
def claims(
    name: Annotated[str | None, typer.Argument(help="One experiment's claims only.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON list, nothing else.")] = False,
    strict: Annotated[bool, typer.Option(help="Fail unless every record is current.")] = False,
) -> None:
    """The lecture's claims, and what the records say of each."""
    from tlcourse.experiments import ledger

    entries = ledger(name)
    if as_json:
        print(json.dumps([entry.as_dict() for entry in entries], indent=1))
    else:
        _print_claims(entries, name)
    bad = [f"{e.claim.id} ({e.scale}) is {e.status}" for e in entries if e.status != "current"]
    if strict and bad:
        raise RuntimeError(f"not every claim has a current record: {', '.join(bad)}")


def _print_claims(entries: list[Any], name: str | None) -> None:
    """A table by chapter and number: a row a scale, and below it the sentence; then a tally."""
    chapters = [entry.experiment.chapter for entry in entries]
    entries.sort(key=lambda e: [part.zfill(3) for part in re.split(r"(\d+)", e.claim.id)])
    entries.sort(key=lambda e: chapters.index(e.experiment.chapter))
    verdicts = [entry.as_dict()["verdict"] for entry in entries]
    if entries:
        _say(ROW.format("claim", "scale", "verdict", "effect [interval]", "seeds", "verified"))
    for entry, verdict in zip(entries, verdicts):
        (number, facts), said = _number_and_facts(entry), verdict.removesuffix(" here")
        how = entry.verified.rpartition(", ")[2].replace("the recorded ", "") or "not yet"
        _say(ROW.format(entry.claim.id, entry.scale, said, number, entry.found.seeds or "", how))
        _say(f"      {entry.claim.sentence}" + (f" ({facts})" if facts else ""))
        if entry.status != "current":
            verify = " --verify" if entry.status == "stale" else ""
            again = f"`tlcourse run {entry.experiment.name} --scale {entry.scale}{verify}`"
            _say(f"      {entry.problem or f'was {entry.found.verdict}; {again}'}")
    many = len({entry.claim.id for entry in entries})
    lines = ", a line for each scale" if many < len(entries) else ""
    order = dict.fromkeys(["supported", "contradicted", "inconclusive", *verdicts])
    tally = ", ".join(f"{verdicts.count(v)} {v}" for v in order if v in verdicts)
    _say(f"{many} claim{'s' * (many != 1)}{lines}: {tally or f'{name} decides none'}")


def _number_and_facts(entry: Any) -> tuple[str, str]:
    """The effect, with its unit where the table has room, and what else there is to say."""
    found, unit, why = entry.found, entry.claim.unit, entry.found.why
    span = f" [{found.low:.3g}, {found.high:.3g}]" if found.low == found.low else ""
    number = f"{found.effect:.3g}{span}" if found.effect == found.effect else ""
    short, _, more = unit.partition(", ")
    if entry.claim.decide.kind == "count" and why[:1].isdigit():
        number, _, why = why.partition(", ")  # 3 of 4
    elif number and len(f"{number} {short}") < 34:
        number, unit = f"{number} {short}", more
    return number, "; ".join(filter(None, (number and unit, why)))


@data_app.callback()
def data(context: typer.Context) -> None:
    """Which data are on board; `data fetch` brings more."""
    if context.invoked_subcommand is not None:
        return
    from tlcourse.data import FETCHABLE, ON_BOARD, DataError, data_dir

    print(f"in {data_dir()}")
    damaged = []
    for name in [*ON_BOARD, *FETCHABLE]:
        try:
            print(f"  {name:<15}{_on_board(name)}")
        except DataError as error:
            damaged.append(name)
            print(f"  {name:<15}{error}")
    if damaged:
        raise DataError(f"damaged or missing: {', '.join(damaged)}; each line says what to do")


def _on_board(name: str) -> str:
    from tlcourse.data import FETCHABLE, is_there, load

    if not is_there(name):
        return f"not here; `tlcourse data fetch {name}` brings it (about {FETCHABLE[name][1]} MB)"
    train, test = load(name), load(name, "test")
    images = f"{len(train):,} images to train, {len(test):,} to test"
    return f"ok: {images}, {len(train.classes)} classes"


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
    """Run notebooks afresh, fill in the recorded numbers, and save."""
    from tlcourse.living import fill, outdated
    from tlcourse.publish.notebooks import execute as execute_one
    from tlcourse.publish.notebooks import read

    for path in notebooks:
        execute_one(path, fill)
        print(f"{path} was run and saved")
        for line in outdated(read(path)[0]):
            print(f"read the sentence again: {line}", file=sys.stderr)


@app.command()
def page(
    notebook: Annotated[Path, typer.Argument(help="A notebook that was run.")],
    target: Annotated[Path, typer.Argument(help="OUT.html, the page; MathJax goes to OUT_files.")],
) -> None:
    """Write a notebook as a page whose widgets work without Python."""
    from tlcourse.living import explain
    from tlcourse.publish.pages import write_page

    print(f"{write_page(notebook, target, explain)} was written")


@app.command()
def doctor() -> None:
    """Check this machine: each line says ok, or what to do."""
    missing = []
    for good, what, advice, needed in _findings():
        mark = "ok  " if good else "FIX " if needed else "note"
        _say(f"{mark} {what}" + ("" if good else f": {advice}"))
        missing += [what] if needed and not good else []
    if missing:
        raise RuntimeError(f"not ready: {', '.join(missing)}; do what the lines with FIX say")
    print("ready: open the course with `tlcourse lab`")


def _findings() -> Iterator[tuple[bool, str, str, bool]]:
    """What is good or not, what it is, what to do, and whether the course needs it."""
    import torch

    from tlcourse.data import ON_BOARD, DataError, data_dir, load
    from tlcourse.training import device

    yield True, f"Python {platform.python_version()}", "", True  # pip installs on no older one
    for package in ("torch", "torchvision", "jupyterlab", "matplotlib", "ipywidgets", "anywidget"):
        there = importlib.util.find_spec(package) is not None
        what = f"{package} {version(package) if there else 'is missing'}"
        yield there, what, "run `pip install -e .` in the course's folder", True
    chosen, advice = device().type, "no GPU that torch can use; every live cell is made for a CPU"
    yield chosen != "cpu", f"device: {chosen}", advice, False
    yield True, f"threads: torch uses {torch.get_num_threads()} of {os.cpu_count()} cores", "", True
    try:
        free = shutil.disk_usage(data_dir()).free / 1e9
        advice = "make room; copies and records need up to 1 GB"
        yield free > 1, f"disk: {free:.0f} GB free beside the data", advice, True
        for name in ON_BOARD:
            yield len(load(name, "test")) > 0, f"data: {name}", "", True
    except DataError as error:
        yield False, "data", str(error), True
    browsers = map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))
    browser = next(filter(None, browsers), None)
    advice = "the course runs without; to test the widgets install chromium"
    yield browser is not None, f"browser for the widget tests: {browser or 'none'}", advice, False
