"""Notebooks as files: read, run from a fresh kernel, and saved as they are committed."""

from collections.abc import Callable
from itertools import count
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from tlcourse.methods._checks import expect
from tlcourse.publish import write

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def read(path: Path) -> tuple[NotebookNode, bytes]:
    """A notebook, and the bytes that it was read from. Raises ValueError for anything else."""
    expect(path.suffix == ".ipynb" and path.is_file(), f"there is no notebook {path}")
    content = path.read_bytes()
    try:
        return nbformat.reads(content.decode("utf-8-sig"), as_version=4), content
    except Exception as error:
        raise ValueError(f"{path} is no notebook: {error}") from None


def execute(path: Path, change: Callable[[NotebookNode], object] = lambda notebook: None) -> None:
    """Run all cells and write the notebook back, all of it or nothing.

    change is called with the notebook that ran, before it is written.
    Raises ValueError if there is no such notebook, and RuntimeError when a cell fails, or when the
    file has changed meanwhile: it is then left as it is, and what ran is written beside it.
    """
    notebook, before = read(path)
    place = {"metadata": {"path": str(path.parent)}}
    try:
        NotebookClient(notebook, timeout=600, kernel_name="python3", resources=place).execute()
    except CellExecutionError as error:
        raise RuntimeError(f"{path}: a cell fails, {error.ename}: {error.evalue}") from error
    settle(notebook)
    change(notebook)
    after = nbformat.writes(notebook).rstrip("\n").encode() + b"\n"
    if path.is_file() and path.read_bytes() == before:
        return write({path: after})
    names = (path.with_name(f"{path.stem}.executed-{i}.ipynb") for i in count(1))
    beside = next(name for name in names if not name.exists())
    write({beside: after})
    raise RuntimeError(f"{path} was changed while it ran, and is kept so; what ran is in {beside}")


def was_run(cell: NotebookNode) -> bool:
    """Whether a cell shows what it does: code was run, or is never run (blank, skip-execution)."""
    skipped = not cell.source.strip() or "skip-execution" in cell.metadata.get("tags", [])
    return cell.cell_type != "code" or skipped or bool(cell.execution_count)


def settle(notebook: NotebookNode) -> None:
    """Drop what a saved notebook cannot show: views that need a kernel, and times of execution."""
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    lasting = {name for name, state in states.items() if state.get("model_module") == "anywidget"}
    inner = [states[name].get("state", {}) for name in lasting]
    layouts = {str(state.get("layout")).removeprefix("IPY_MODEL_") for state in inner}
    for name in states.keys() - lasting - layouts:
        del states[name]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if out.get("data") != {"text/plain": ""}  # a progress bar's place
                and (VIEW not in out.get("data", {}) or out.data[VIEW]["model_id"] in lasting)
            ]
    if not lasting:
        notebook.metadata.pop("widgets", None)
