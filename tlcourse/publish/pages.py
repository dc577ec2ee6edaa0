"""One chapter as a page that anybody can open: widgets and mathematics live in the browser."""

import json
import mimetypes
import os
import re
import sys
from base64 import b64encode
from collections.abc import Callable, Iterable
from html import escape
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from nbconvert import HTMLExporter
from nbconvert.filters.markdown_mistune import InvalidNotebook
from nbformat import NotebookNode

from tlcourse.methods._checks import expect
from tlcourse.publish import write
from tlcourse.publish.notebooks import STATE, VIEW, read, was_run

HERE = Path(__file__).parent
MATHJAX = HERE / "vendor" / "mathjax"


def write_page(
    notebook: Path,
    target: Path,
    change: Callable[[NotebookNode], object] = lambda notebook: None,
) -> Path:
    """Write a notebook as it was saved to an HTML page, pictures included. Returns its path.

    change is called with the notebook before it is written.

    MathJax lies in `TARGET_files` beside it. Raises ValueError if there is no such notebook, if it
    was never run, if it shows a picture that is not there, if the target is not an .html file in an
    existing folder, or if something else lies where MathJax should.
    """
    book, _ = read(notebook)
    good = target.suffix == ".html" and target.parent.is_dir() and not target.is_dir()
    expect(good, f"the page must be an .html file in an existing folder, got {target}")
    expect(
        all(map(was_run, book.cells)),
        f"{notebook.name} has cells that were never run; run `tlcourse execute {notebook}` first",
    )
    files = target.with_name(f"{target.stem}_files")
    ours = {files / n: (MATHJAX / n).read_bytes() for n in ("tex-svg-full.js", "LICENSE")}
    expect(files.is_dir() or not os.path.lexists(files), f"{files} is there and is no folder")
    for path, content in ours.items():
        same = path.is_file() and path.read_bytes() == content
        expect(same or not os.path.lexists(path), f"{path} is there and not of this page: move it")
    change(book)
    mathjax, pages = f"{quote(files.name)}/tex-svg-full.js", {target, *target.parent.glob("*.html")}
    page = with_pictures(render(book, mathjax, [p.stem for p in pages]), notebook.parent)
    write({**ours, target: page.encode()})
    return target


def render(notebook: NotebookNode, mathjax: str, beside: Iterable[str] = ()) -> str:
    """A notebook as HTML, with the address of MathJax and the pages beside it. Raises ValueError.

    Where JupyterLab hides a cell's source, or the tag is "reveal", only its output is shown; a
    hidden source with the tag "answer" is folded.
    """
    for cell in notebook.cells:
        tags = cell.metadata.get("tags", [])
        hidden = cell.metadata.get("jupyter", {}).get("source_hidden")
        if "reveal" in tags or (hidden and "answer" not in tags):
            cell.metadata["transient"] = {"remove_source": True}
        _attach(cell)
    _mend(notebook)
    notebook.metadata["title"] = _title(notebook)
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(HERE / "templates")])
    static = {"host": "host.js", "page": "page.js", "style": "page.css"}
    texts = {key: (HERE / "static" / name).read_text("utf-8") for key, name in static.items()}
    texts |= {"mathjax": mathjax, "beside": "/".join(sorted(beside))}
    try:
        page, _ = exporter.from_notebook_node(notebook, resources=texts)
        return _listed(str(page))
    except InvalidNotebook as error:
        raise ValueError(f"the notebook shows a picture that it does not hold: {error}") from None


class _Shown(HTMLParser):
    """The tags of a page that show files of a folder, each with its files inside."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.tags: dict[str, str] = {}
        self.missing: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Called for each start tag outside of scripts and comments."""
        if tag in ("img", "source", "video", "audio"):
            now = [(k, self._inside(v) if v and k in ("src", "poster") else v) for k, v in attrs]
            words = "".join(f' {key}="{escape(value or "")}"' for key, value in now)
            if now != attrs:
                self.tags[self.get_starttag_text() or ""] = f"<{tag}{words}>"

    def _inside(self, address: str) -> str:
        """A data: address where a file is meant, anything else as it is."""
        url = urlsplit(address)
        if url.netloc or url.scheme not in ("", "file", "attachment"):
            return address
        names = (unquote(url.path), address, unquote(url.path).lstrip("/"))
        file = next((self.folder / n for n in names if (self.folder / n).is_file()), None)
        if file is None:
            self.missing.append(address)
            return address
        kind = mimetypes.guess_type(file.name, strict=False)[0] or "application/octet-stream"
        return f"data:{kind};base64,{b64encode(file.read_bytes()).decode()}"


def with_pictures(page: str, folder: Path) -> str:
    """A page, and inside it the files that it shows. Raises ValueError if one is not there."""
    shown = _Shown(folder)
    shown.feed(page)
    missing = ", ".join(shown.missing)
    expect(not missing, f"the notebook shows what is not in {folder}: {missing}")
    for tag, whole in shown.tags.items():
        page = page.replace(tag, whole)
    return page


def _attach(cell: NotebookNode) -> None:
    """Put the pictures that a cell holds where it shows them, however their names are written."""
    for name, by_kind in sorted(cell.get("attachments", {}).items(), reverse=True):
        kind, content = next(iter(by_kind.items()))
        for written in (name, quote(name)):
            inside = f"data:{kind};base64,{''.join(content.split())}"
            cell.source = cell.source.replace(f"attachment:{written}", inside)


def _mend(notebook: NotebookNode) -> None:
    """Numbers that JSON has no word for become null; what was saved without state is named."""
    states = notebook.metadata.get("widgets", {}).get(STATE, {}).get("state", {})
    data = [out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])]
    if lost := sum(VIEW in d and d[VIEW]["model_id"] not in states for d in data):
        print(f"note: {lost} widgets have no state; the page says what to do", file=sys.stderr)
    for saved in states.values():
        try:
            json.dumps(saved, allow_nan=False)
        except ValueError:
            name = str(saved.get("state", {}).get("_anywidget_id", "widget")).split(".")[-1]
            saved |= json.loads(json.dumps(saved), parse_constant=lambda word: None)
            saved["fault"] = f"the state of this {name} holds a number that is not finite"
            print(f"note: {saved['fault']}; the page says so in its place", file=sys.stderr)


def _listed(page: str) -> str:
    """A page with a list of its headings, each with an id of its own."""
    whole, *rest = re.split(r'<h(\d) id="([^"]*)">(.*?)<a class="anchor-link".*?</a>', page)
    names, entries = rest[1::4], ""
    for i, (level, name, text, after) in enumerate(zip(rest[::4], names, rest[2::4], rest[3::4])):
        name += f"-{names[:i].count(name) + 1}" * (name in names[:i])
        whole += f'<h{level} id="{name}">{text}{after}'
        if level in "12":
            entries += f'<li class="h{level}"><a href="#{name}">{text}</a></li>'
    return whole.replace("<!-- headings -->", entries, 1)


def _title(notebook: NotebookNode) -> str:
    sources = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    heading = re.search(r"^# (.+)$", "\n".join(sources), re.MULTILINE)
    return heading[1] if heading else "tlcourse"
