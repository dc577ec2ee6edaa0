"""What `tlcourse page` refuses, and that the vendored file is the one it says."""

import hashlib

import nbformat
import pytest

from tlcourse.publish.pages import MATHJAX, write_page


@pytest.fixture
def notebook(tmp_path):
    cell = nbformat.v4.new_code_cell("1", execution_count=1)
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "one.ipynb")
    return tmp_path / "one.ipynb"


@pytest.mark.parametrize(
    ("source", "target", "said"),
    [
        ("two.ipynb", "one.html", "there is no notebook"),
        ("one.ipynb", "one.htm", "the page must be an .html file in an existing folder"),
        ("one.ipynb", "nowhere/one.html", "the page must be an .html file in an existing folder"),
    ],
)
def test_refuses(notebook, source, target, said):
    with pytest.raises(ValueError, match=said):
        write_page(
            notebook.with_name(source),
            notebook.with_name(target) if "/" not in target else notebook.parent / target,
        )
    assert [path.name for path in notebook.parent.iterdir()] == ["one.ipynb"]


def test_a_notebook_that_was_never_run_is_refused(notebook):
    content = nbformat.read(notebook, as_version=4)
    content.cells[0].execution_count = None
    nbformat.write(content, notebook)
    with pytest.raises(
        ValueError, match=r"one\.ipynb has cells that were never run; run `tlcourse execute"
    ):
        write_page(notebook, notebook.with_name("one.html"))
    assert not notebook.with_name("one.html").exists()


def test_a_page_without_a_heading_has_a_title(notebook):
    page = write_page(notebook, notebook.with_name("one.html")).read_text()
    assert "<title>tlcourse</title>" in page
    assert "cdn" not in page.split("<body")[0].lower()


def test_mathjax_is_the_file_it_says():
    digest, name = (MATHJAX / "SHA256SUMS").read_text().split()
    assert hashlib.sha256((MATHJAX / name).read_bytes()).hexdigest() == digest
    assert "Apache License" in (MATHJAX / "LICENSE").read_text()
