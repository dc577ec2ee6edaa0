"""What `tlcourse page` refuses, what it takes into the page, and that it overwrites nothing."""

import base64
import errno
import hashlib
import json
import os
import re
import subprocess
import sys
from html import unescape
from pathlib import Path
from urllib.parse import unquote

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from PIL import Image

from tlcourse.publish.notebooks import STATE, VIEW
from tlcourse.publish.pages import MATHJAX, write_page

RAN = new_code_cell("1", execution_count=1)
ODD = "a b/ü & 100%#1.png"  # a name with all that addresses write in another way
ADDRESS = "a%20b/%C3%BC%20&%20100%25%231.png"


def saved(path, *cells):
    nbformat.write(new_notebook(cells=list(cells)), path)
    return path


@pytest.fixture
def notebook(tmp_path):
    return saved(tmp_path / "one.ipynb", RAN)


def of_html(text):
    outputs = [new_output("display_data", {"text/html": text})]
    return new_code_cell("1", execution_count=1, outputs=outputs)


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
        write_page(notebook.with_name(source), notebook.parent / target)
    assert [path.name for path in notebook.parent.iterdir()] == ["one.ipynb"]


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b"<html>"])
def test_what_is_no_notebook_is_refused(content, tmp_path):
    (tmp_path / "one.ipynb").write_bytes(content)
    with pytest.raises(ValueError, match=r"one\.ipynb is no notebook"):
        write_page(tmp_path / "one.ipynb", tmp_path / "one.html")


def test_a_notebook_that_was_never_run_is_refused(tmp_path):
    notebook = saved(tmp_path / "one.ipynb", RAN, new_code_cell("1"))
    with pytest.raises(
        ValueError, match=r"one\.ipynb has cells that were never run; run `tlcourse execute"
    ):
        write_page(notebook, notebook.with_name("one.html"))
    assert not notebook.with_name("one.html").exists()


@pytest.mark.parametrize(
    "cell",
    [
        new_code_cell(""),
        new_code_cell(" \n\t"),
        new_code_cell("1 / 0", metadata={"tags": ["other", "skip-execution"]}),
        new_markdown_cell("words"),
        nbformat.v4.new_raw_cell("raw"),
    ],
)
def test_cells_that_never_run_are_no_reason_to_refuse(cell, tmp_path):
    notebook = saved(tmp_path / "one.ipynb", RAN, cell)
    assert write_page(notebook, tmp_path / "one.html").is_file()


def test_a_page_without_a_heading_has_a_title(notebook):
    page = write_page(notebook, notebook.with_name("one.html")).read_text(encoding="utf-8")
    assert "<title>tlcourse</title>" in page
    assert "cdn" not in page.split("<body")[0].lower()


def test_mathjax_is_the_file_it_says():
    digest, name = (MATHJAX / "SHA256SUMS").read_text(encoding="utf-8").split()
    assert hashlib.sha256((MATHJAX / name).read_bytes()).hexdigest() == digest
    assert "Apache License" in (MATHJAX / "LICENSE").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["my page.html", "a#1 & 50%.html", "Übung.html"])
def test_the_page_finds_mathjax_whatever_its_name(name, notebook):
    page = write_page(notebook, notebook.with_name(name))
    address = re.search(r'src="([^"]*tex-svg-full\.js)"', page.read_text(encoding="utf-8"))[1]
    assert "#" not in address
    assert (page.parent / unquote(address)).is_file()


# pictures

WAYS = [  # a cell, and which of the three pictures it shows
    (new_markdown_cell("![a square](x.png)"), 1),
    (new_markdown_cell("![a square](./x.png 'its title')"), 1),
    (new_markdown_cell("![a square](images/y.png)"), 2),
    (new_markdown_cell("![a square](images/../x.png)"), 1),
    (new_markdown_cell("![a square](../book/x.png)"), 1),
    (new_markdown_cell(f"![a square]({ADDRESS})"), 3),
    (new_markdown_cell("![a square](<a b/ü & 100%25%231.png>)"), 3),
    (new_markdown_cell("[![a square](x.png)](https://example.org)"), 1),
    (new_markdown_cell("![a square][s]\n\n[s]: images/y.png"), 2),
    (new_markdown_cell("![a square](x.png?raw=true#top)"), 1),
    (new_markdown_cell('<img src="images/y.png" width="20">'), 2),
    (new_markdown_cell("<p>one <IMG alt='1 > 0' SRC='x.png'/> square</p>"), 1),
    (new_markdown_cell("<img src=x.png>"), 1),
    (new_markdown_cell(f'<img src="{ODD.replace("&", "&amp;")}">'), 3),
    (new_markdown_cell("<picture><source src='x.png'></picture>"), 1),
    (new_markdown_cell("<video poster='x.png' controls></video>"), 1),
    (of_html('<img src="images/y.png"/>'), 2),
]
ATTACHED = [
    (form.format(written), unquote(written))
    for form in ("![one](<attachment:{}>)", '<img src="attachment:{}">')
    for written in ("image.png", "image.png", "a b ü.png", "a%20b%20%C3%BC.png")
]
ELSEWHERE = ["https://example.org/x.png", "//example.org/x.png", "data:image/png;base64,AAAA"]
NONE = [
    new_markdown_cell("`![no](none.png)` and\n\n    <img src='none.png'>"),
    new_markdown_cell("<!-- <img src='none.png'> <img src='x.png'> -->"),
    new_markdown_cell("[a link](none.png)"),
    new_code_cell("show('<img src=none.png>')", execution_count=1),
]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three pictures beside a notebook, each of a size of its own; and a folder for the page."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, name in enumerate(("x.png", "images/y.png", ODD), 1):
        (folder / "book" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (i, i)).save(folder / "book" / name)
    (folder / "out").mkdir()
    return folder


def page_of(folder, *cells):
    path = saved(folder / "book" / "a.ipynb", RAN, *cells)
    return write_page(path, folder / "out" / "a.html").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def shown(pictures):
    """The addresses of what a page shows that was written to another folder, in their order."""
    attached = [new_markdown_cell(source) for source, _ in ATTACHED]
    for i, (cell, (_, name)) in enumerate(zip(attached, ATTACHED)):
        cell["attachments"] = {name: {"image/png": f"AAA{i}"}}
    others = [new_markdown_cell(f"![there]({address})") for address in ELSEWHERE]
    page = page_of(pictures, *(cell for cell, _ in WAYS), *attached, *others, *NONE)
    return re.findall(
        r"""<(?:img|source|video)\b[^>]*?(?:src|poster)=["']?([^"'\s>]+)""", page.split("<body")[1]
    )


@pytest.mark.parametrize("i", range(len(WAYS)), ids=[str(cell.source) for cell, _ in WAYS])
def test_a_page_in_another_folder_holds_its_pictures(i, shown, pictures):
    file = ("x.png", "images/y.png", ODD)[WAYS[i][1] - 1]
    start, content = shown[i].split(",")
    assert start == "data:image/png;base64"
    assert base64.b64decode(content) == (pictures / "book" / file).read_bytes()


@pytest.mark.parametrize("i", range(len(ATTACHED)), ids=[source for source, _ in ATTACHED])
def test_pictures_inside_of_the_notebook_are_of_their_cell(i, shown):
    assert shown[len(WAYS) + i] == f"data:image/png;base64,AAA{i}"


def test_other_addresses_stay_and_what_only_looks_like_a_picture_is_none(shown):
    assert shown[len(WAYS) + len(ATTACHED) :] == [*ELSEWHERE, "none.png", "x.png"]  # in a comment


def test_what_else_a_tag_says_stays(pictures):
    page = page_of(pictures, new_markdown_cell("""<img alt='"1 > 0" & so' src=x.png width=20>"""))
    assert re.search(r'<img alt="&quot;1 &gt; 0&quot; &amp; so" src="data:[^"]+" width="20">', page)


@pytest.mark.parametrize(
    ("cells", "names"),
    [
        ([new_markdown_cell("![gone](attachment:none.png)")], "none.png"),
        (
            [
                new_markdown_cell("![gone](images/none.png)\n\n![a folder](images)"),
                of_html("<img src='../none.png'>"),
                new_markdown_cell("<img src='attachment:none.png'>"),
            ],
            "images/none.png, images, ../none.png, attachment:none.png",
        ),
    ],
)
def test_pictures_that_are_not_there_are_named_and_nothing_written(cells, names, pictures):
    (pictures / "out" / "a.html").unlink(missing_ok=True)
    with pytest.raises(ValueError, match=f"the notebook shows .*: .*{re.escape(names)}$"):
        page_of(pictures, *cells)
    assert not (pictures / "out" / "a.html").exists()


# files beside the page


def everything(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def a_licence(files):
    files.mkdir()
    (files / "LICENSE").write_text("MINE", encoding="utf-8")


def a_folder(files):
    (files / "tex-svg-full.js").mkdir(parents=True)


def a_dangling_link(files):
    files.mkdir()
    (files / "LICENSE").symlink_to(files.parent / "elsewhere")


def a_file(files):
    files.write_text("MINE", encoding="utf-8")


@pytest.mark.parametrize("mine", [a_licence, a_folder, a_dangling_link, a_file])
def test_what_is_not_the_pages_own_is_kept(mine, notebook):
    mine(notebook.with_name("x_files"))
    before = everything(notebook.parent)
    with pytest.raises(ValueError, match=r"x_files.* is there and"):
        write_page(notebook, notebook.with_name("x.html"))
    assert everything(notebook.parent) == before


def test_a_page_is_written_again_beside_other_files(notebook):
    page = write_page(notebook, notebook.with_name("x.html"))
    first = everything(notebook.parent)
    page.write_text("old", encoding="utf-8")
    (page.with_name("x_files") / "notes.txt").write_text("MINE", encoding="utf-8")
    write_page(notebook, page)
    assert everything(notebook.parent) == first | {page.with_name("x_files") / "notes.txt": b"MINE"}


@pytest.mark.parametrize("room", [0, 1, 2])
def test_a_full_disk_leaves_what_was_there(room, notebook, monkeypatch):
    notebook.with_name("x.html").write_text("old", encoding="utf-8")
    before, left, whole = everything(notebook.parent), [room], Path.write_bytes

    def write_bytes(path, content):
        if left[0] == 0:
            whole(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        return whole(path, content)

    monkeypatch.setattr(Path, "write_bytes", write_bytes)
    with pytest.raises(OSError, match="No space left"):
        write_page(notebook, notebook.with_name("x.html"))
    monkeypatch.undo()
    assert everything(notebook.parent) == before
    assert {path.name for path in notebook.parent.iterdir()} == {"one.ipynb", "x.html"}


def test_a_page_that_is_a_link_stays_one_and_keeps_who_may_read_it(notebook):
    real = notebook.with_name("real.html")
    real.write_text("old", encoding="utf-8")
    real.chmod(0o600)
    notebook.with_name("x.html").symlink_to(real)
    write_page(notebook, notebook.with_name("x.html"))
    assert notebook.with_name("x.html").is_symlink()
    assert "<title>" in real.read_text(encoding="utf-8")
    assert real.stat().st_mode & 0o777 == 0o600


# numbers that JSON has no word for


@pytest.mark.parametrize("number", [float("inf"), float("-inf"), float("nan")])
def test_a_number_that_is_not_finite_costs_its_own_widget_only(number, tmp_path, capsys):
    def state(**values):
        values["_anywidget_id"] = "tlcourse.widgets.prediction.PredictionWidget"
        return {"model_module": "anywidget", "model_name": "AnyModel", "state": values}

    ill = {"low": number, "deep": [{"high": number}], "question": "Infinity, NaN?"}
    views = [new_output("display_data", {VIEW: {"model_id": name}}) for name in ("ill", "well")]
    book = new_notebook(cells=[new_code_cell("w", execution_count=1, outputs=views)])
    states = {"ill": state(**ill), "well": state(low=1.5)}
    book.metadata["widgets"] = {STATE: {"state": states}}
    nbformat.write(book, tmp_path / "one.ipynb")
    page = write_page(tmp_path / "one.ipynb", tmp_path / "one.html").read_text(encoding="utf-8")
    text = re.search(rf'<script type="{re.escape(STATE)}">(.*?)</script>', page, re.DOTALL)[1]
    found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))["state"]
    said = "the state of this PredictionWidget holds a number that is not finite"
    assert found["ill"]["fault"] == said
    assert found["ill"]["state"]["question"] == "Infinity, NaN?"
    assert found["well"] == states["well"]
    assert capsys.readouterr().err == f"note: {said}; the page says so in its place\n"


# the page itself


def test_headings_have_ids_of_their_own_and_are_listed(tmp_path):
    words = "# A\n\n## The idea\n\n### By hand\n\n# Lesson b\n\n## The idea\n\n### By hand"
    path = saved(tmp_path / "one.ipynb", RAN, new_markdown_cell(words))
    page = write_page(path, tmp_path / "one.html").read_text(encoding="utf-8")
    ids = ["A", "The-idea", "By-hand", "Lesson-b", "The-idea-2", "By-hand-2"]
    assert re.findall(r'<h\d id="([^"]*)">', page) == ids
    links = re.findall(r'<li class="h[12]"><a href="#([^"]*)">', page)
    assert links == ["A", "The-idea", "Lesson-b", "The-idea-2"]
    assert "¶" not in page


def test_what_is_folded(tmp_path):
    said = "<small>In class: ask</small>"
    notes = new_markdown_cell(said, metadata={"slideshow": {"slide_type": "notes"}})
    hidden = of_html("<b>given</b>")
    hidden.metadata["jupyter"] = {"outputs_hidden": True}
    words = ("ours", "drawing", "asking")
    answer, gone, reveal = (new_code_cell(name, execution_count=1) for name in words)
    for cell in (answer, gone):
        cell.metadata["jupyter"] = {"source_hidden": True}
    answer.metadata["tags"], reveal.metadata["tags"] = ["answer"], ["reveal"]
    path = saved(tmp_path / "one.ipynb", notes, hidden, answer, gone, reveal, of_html("open"))
    page = write_page(path, tmp_path / "one.html").read_text(encoding="utf-8")
    folds = re.findall(r"<details[^>]*><summary>(.*?)</summary>(.*?)</details>", page, re.DOTALL)[
        1:
    ]
    summaries = ["In class", "Show what it gives", "Show our version"]
    assert [summary for summary, _ in folds] == summaries
    assert "<small>ask</small>" in folds[0][1]
    assert "<b>given</b>" in folds[1][1]
    assert "ours" in folds[2][1]
    assert "drawing" not in page
    assert "asking" not in page


def test_a_page_knows_the_pages_that_lie_beside_it(tmp_path):
    for name in ('a "b" & c.html', "d.html", "e.htm"):
        (tmp_path / name).write_text("", encoding="utf-8")
    page = write_page(saved(tmp_path / "one.ipynb", RAN), tmp_path / "one.html").read_text("utf-8")
    _, beside = re.search(r"<html[^>]* data-beside=(['\"])(.*?)\1", page).groups()
    assert unescape(beside) == 'a "b" & c/d/one'


def test_a_number_from_a_record_keeps_what_it_says(tmp_path):
    number = '<data title="5 seeds" value="K3.effect">2.8</data>'
    path = saved(tmp_path / "one.ipynb", RAN, new_markdown_cell(f"It is {number} points."))
    assert number in write_page(path, tmp_path / "one.html").read_text(encoding="utf-8")


def test_a_page_is_changed_before_it_is_written(tmp_path):
    path = saved(tmp_path / "one.ipynb", RAN, new_markdown_cell("before"))

    def change(book):
        book.cells[-1].source = "after"

    page = write_page(path, tmp_path / "one.html", change).read_text(encoding="utf-8")
    assert "after" in page
    assert "before" in nbformat.read(path, as_version=4).cells[-1].source


def test_a_widget_without_its_state_is_told_of_once(tmp_path, capsys):
    views = [new_output("display_data", {VIEW: {"model_id": name}}) for name in "ab"]
    cell = new_code_cell("w", execution_count=1, outputs=views)
    page = write_page(saved(tmp_path / "one.ipynb", cell), tmp_path / "one.html")
    assert page.read_text(encoding="utf-8").count(f'<script type="{VIEW}">') == 2
    assert capsys.readouterr().err.count("2 widgets have no state") == 1


@pytest.mark.slow
def test_no_text_is_read_in_the_systems_encoding(tmp_path, repository):
    """On Windows that is not UTF-8."""
    code = f"""import warnings; from pathlib import Path
warnings.filterwarnings("error", category=EncodingWarning, module="tlcourse")
import tlcourse.widgets
from tlcourse.exercises import EXERCISES, check
from tlcourse.publish import lab, pages
check("soften", EXERCISES["soften"].reference)
book = next(lab.copied(Path({str(repository / "notebooks")!r}), Path("copy")).glob("*.ipynb"))
pages.write_page(book, Path("x.html"))
lab._environment(".")"""
    done = subprocess.run(
        [sys.executable, "-X", "warn_default_encoding", "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(repository)},
        capture_output=True,
        encoding="utf-8",
    )
    assert done.returncode == 0, done.stderr
