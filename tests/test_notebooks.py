"""Notebooks are committed as they ran: executed, without errors, with alt text and slides."""

import json
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from tlcourse.living import outdated
from tlcourse.publish.notebooks import STATE, VIEW, execute, settle

NOTEBOOKS = sorted((Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.name)
def notebook(request):
    return nbformat.read(request.param, as_version=4)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def test_there_are_notebooks():
    assert NOTEBOOKS


def test_every_code_cell_was_run_in_order(notebook):
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))


def test_no_output_is_an_error_or_stderr(notebook):
    outputs = [out for cell in code_cells(notebook) for out in cell.outputs]
    assert [
        out for out in outputs if out.output_type == "error" or out.get("name") == "stderr"
    ] == []


def test_every_view_has_its_state(notebook):
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    views = [
        out.data[VIEW]["model_id"]
        for cell in code_cells(notebook)
        for out in cell.outputs
        if VIEW in out.get("data", {})
    ]
    assert [view for view in views if view not in states] == []


def test_every_figure_has_alt_text(notebook):
    figures = [
        out
        for cell in code_cells(notebook)
        for out in cell.outputs
        if "image/png" in out.get("data", {})
    ]
    assert [
        out for out in figures if len(out.metadata.get("image/png", {}).get("alt", "")) < 20
    ] == []


def test_every_cell_is_on_a_slide(notebook):
    assert [
        cell.source[:40]
        for cell in notebook.cells
        if "slide_type" not in cell.metadata.get("slideshow", {})
    ] == []


def test_cells_are_short(notebook):
    """What a reader sees at least; code that draws is hidden."""

    def limit(cell):
        return 30 if cell.metadata.get("jupyter", {}).get("source_hidden") else 22

    cells = code_cells(notebook)
    assert [c.source[:40] for c in cells if len(c.source.splitlines()) > limit(c)] == []


def test_measured_values_are_not_compared_to_the_digit(notebook):
    cells = [cell for cell in code_cells(notebook) if "measured(" in cell.source]
    assert [
        cell.source[:40]
        for cell in cells
        if "nbval-ignore-output" not in cell.metadata.get("tags", [])
    ] == []


def test_every_number_in_prose_is_what_its_record_says(notebook):
    """`tlcourse execute` fills the numbers; a sentence whose verdict changed is read again."""
    assert outdated(notebook) == []


def written(path, *sources):
    notebook = nbformat.v4.new_notebook(
        cells=[nbformat.v4.new_code_cell(source) for source in sources]
    )
    nbformat.write(notebook, path)
    return path


@pytest.mark.slow
def test_execute_saves_what_ran_without_the_progress_bar(tmp_path):
    path = written(
        tmp_path / "one.ipynb",
        "from tqdm.auto import tqdm\nfor _ in tqdm(range(3), leave=False): pass\nprint('done')",
        "from tlcourse.progress import progress_bar\n"
        "with progress_bar(total=3, leave=False) as bar: bar.update(3)\nprint('done')",
    )
    execute(path)
    cells = nbformat.read(path, as_version=4).cells
    assert [cell.execution_count for cell in cells] == [1, 2]
    assert [[out.get("text") for out in cell.outputs] for cell in cells] == [["done\n"]] * 2
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_execute_leaves_a_failing_notebook_as_it_was(tmp_path):
    path = written(tmp_path / "one.ipynb", "1 / 0")
    before = path.read_bytes()
    with pytest.raises(
        RuntimeError, match=r"one\.ipynb: a cell fails, ZeroDivisionError: division"
    ):
        execute(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def saved_by_another(path):
    written(path, "precious = 1")


def removed(path):
    path.unlink()


def renamed(path):
    path.rename(path.with_name("two.ipynb"))


@pytest.fixture
def ran(monkeypatch):
    """Running a notebook takes no kernel, and something happens meanwhile."""

    def during(what):
        monkeypatch.setattr(NotebookClient, "execute", lambda client: what())

    return during


@pytest.mark.parametrize("meanwhile", [saved_by_another, removed, renamed])
def test_execute_keeps_what_happened_to_the_file_while_it_ran(meanwhile, tmp_path, ran):
    path = written(tmp_path / "one.ipynb", "1")
    path.with_name("one.executed-1.ipynb").write_text("mine", encoding="utf-8")
    after = {}

    def happen():
        meanwhile(path)
        after.update({other: other.read_bytes() for other in tmp_path.iterdir()})

    ran(happen)
    beside = path.with_name("one.executed-2.ipynb")
    said = f"{path} was changed while it ran, and is kept so; what ran is in {beside}"
    with pytest.raises(RuntimeError, match=f"^{re.escape(said)}$"):
        execute(path)
    found = {other: other.read_bytes() for other in tmp_path.iterdir()}
    assert nbformat.reads(found.pop(beside).decode("utf-8"), as_version=4).cells[0].source == "1"
    assert found == after


def test_execute_saves_where_the_same_was_saved_again(tmp_path, ran):
    path = written(tmp_path / "one.ipynb", "1")
    ran(lambda: path.write_bytes(path.read_bytes()))
    execute(path)
    assert list(tmp_path.iterdir()) == [path]


def test_a_saved_notebook_is_utf8_with_the_same_line_ends_everywhere(tmp_path, ran):
    path = written(tmp_path / "one.ipynb", "'ŷ → Σ'")
    ran(lambda: None)
    execute(path)
    assert "ŷ → Σ".encode() in path.read_bytes()
    assert b"\r" not in path.read_bytes()
    assert path.read_bytes().endswith(b"}\n")


def test_execute_refuses_what_is_no_notebook(tmp_path):
    with pytest.raises(ValueError, match="there is no notebook"):
        execute(tmp_path / "none.ipynb")


def test_settle_keeps_the_widgets_that_live_in_the_browser():
    view = {"output_type": "display_data", "metadata": {}, "data": {VIEW: {"model_id": "a"}}}
    bar = json.loads(json.dumps(view).replace('"a"', '"b"'))
    notebook = nbformat.from_dict(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("w", outputs=[view, bar])])
    )
    layout = {"model_module": "@jupyter-widgets/base"}
    states = {
        "a": {"model_module": "anywidget", "state": {"layout": "IPY_MODEL_c"}},
        "b": {"model_module": "@jupyter-widgets/controls", "state": {"layout": None}},
        "c": layout,
        "d": layout,
        "e": {"model_module": "anywidget", "state": {"layout": None}},
    }
    notebook.metadata["widgets"] = {STATE: {"state": states}}
    settle(notebook)
    assert [out.data[VIEW]["model_id"] for out in notebook.cells[0].outputs] == ["a"]
    assert notebook.metadata["widgets"][STATE]["state"].keys() == {"a", "c", "e"}


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_an_answer_is_folded_until_it_is_asked_for(path):
    """Between a prediction and the next one an output that answers it is folded."""
    cells = nbformat.read(path, as_version=4).cells
    asked = [i for i, cell in enumerate(cells) if "PredictionWidget(" in cell.source]
    for i, end in zip(asked, [*asked[1:], len(cells)]):
        later = cells[i + 1 : end]
        folds = [cell.metadata.get("jupyter", {}) for cell in later]
        folds = [fold for fold in folds if fold.get("outputs_hidden")]
        assert folds, i
        # JupyterLab shows nothing at all of a cell whose source is hidden as well
        assert not any(fold.get("source_hidden") for fold in folds), i
        assert cells[i].metadata["jupyter"]["source_hidden"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_a_figure_comes_first_in_what_is_folded(path):
    """JupyterLab shows the first line of a fold, and a number there would be the answer."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.metadata.get("jupyter", {}).get("outputs_hidden"):
            drawn = any("image/png" in out.get("data", {}) for out in cell.outputs)
            assert not drawn or cell.outputs[0].output_type != "stream", cell.source


def lessons(path):
    """The later lessons of a chapter, each as a notebook of its own."""
    whole = nbformat.read(path, as_version=4)
    starts = [i for i, cell in enumerate(whole.cells) if cell.source.startswith("# Lesson ")]
    for start, end in zip(starts[1:], [*starts[2:], None]):
        yield nbformat.v4.new_notebook(cells=whole.cells[start:end], metadata=whole.metadata)


LESSONS = [(path, lesson) for path in NOTEBOOKS for lesson in lessons(path)]


@pytest.mark.slow
@pytest.mark.parametrize(("path", "lesson"), LESSONS, ids=[path.name for path, _ in LESSONS])
def test_a_later_lesson_runs_on_its_own(path, lesson):
    place = {"metadata": {"path": str(path.parent)}}
    NotebookClient(lesson, timeout=300, kernel_name="python3", resources=place).execute()
