"""Run a notebook from a fresh kernel and save it as it is committed: executed, and without what
only a live kernel can show.
"""

from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from tlcourse.methods._checks import expect

VIEW = "application/vnd.jupyter.widget-view+json"
STATE = "application/vnd.jupyter.widget-state+json"


def execute(path: Path) -> None:
    """Run all cells and write the notebook back, all of it or nothing.

    Raises ValueError if there is no such notebook, and nbclient's CellExecutionError when a cell
    fails; the file is then as it was.
    """
    expect(path.suffix == ".ipynb" and path.is_file(), f"there is no notebook {path}")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(
        notebook,
        timeout=600,
        kernel_name="python3",
        resources={"metadata": {"path": str(path.parent)}},
    ).execute()
    settle(notebook)
    draft = path.with_name(f".{path.name}.draft")
    nbformat.write(notebook, draft)
    draft.replace(path)


def settle(notebook: NotebookNode) -> None:
    """Drop what a saved notebook cannot show: progress bars and other views that need a kernel, and
    the times of execution.
    """
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    lasting = {name for name, state in states.items() if state["model_module"] == "anywidget"}
    layouts = {
        states[name].get("state", {}).get("layout", "").removeprefix("IPY_MODEL_")
        for name in lasting
    }
    for name in states.keys() - lasting - layouts:
        del states[name]
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = [
                out
                for out in cell.outputs
                if VIEW not in out.get("data", {}) or out.data[VIEW]["model_id"] in lasting
            ]
    if not lasting:
        notebook.metadata.pop("widgets", None)
