"""One chapter as a page that anybody can open: its widgets live in the browser, its mathematics are
drawn without a network.
"""

import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import HTMLExporter
from nbformat import NotebookNode

from tlcourse.methods._checks import expect

HERE = Path(__file__).parent
MATHJAX = HERE / "vendor" / "mathjax"


def write_page(notebook: Path, target: Path) -> Path:
    """Write a notebook as it was saved to an HTML page, with MathJax in `TARGET_files` beside it.
    Returns the page's path.

    Raises ValueError if there is no such notebook, if it was never run, or if the target is not an
    .html file in an existing folder.
    """
    expect(notebook.suffix == ".ipynb" and notebook.is_file(), f"there is no notebook {notebook}")
    expect(
        target.suffix == ".html" and target.parent.is_dir(),
        f"the page must be an .html file in an existing folder, got {target}",
    )
    content = nbformat.read(notebook, as_version=4)
    code = [cell for cell in content.cells if cell.cell_type == "code"]
    expect(
        all(cell.execution_count for cell in code),
        f"{notebook.name} has cells that were never run; run `tlcourse execute {notebook}` first",
    )
    files = target.with_name(f"{target.stem}_files")
    page = render(content, mathjax=f"{files.name}/tex-svg-full.js")
    files.mkdir(exist_ok=True)
    for file in ("tex-svg-full.js", "LICENSE"):
        shutil.copyfile(MATHJAX / file, files / file)
    draft = target.with_name(f".{target.name}.draft")
    draft.write_text(page, encoding="utf-8")
    return draft.replace(target)


def render(notebook: NotebookNode, mathjax: str) -> str:
    """A notebook as HTML; mathjax is the address of its file. Where JupyterLab hides a cell's
    source, only its output is shown.
    """
    for cell in notebook.cells:
        if cell.metadata.get("jupyter", {}).get("source_hidden"):
            cell.metadata["transient"] = {"remove_source": True}
    notebook.metadata["title"] = _title(notebook)
    exporter = HTMLExporter(template_name="page", extra_template_basedirs=[str(HERE / "templates")])
    parts = {
        name: (HERE / "static" / file).read_text()
        for name, file in (("host", "host.js"), ("style", "page.css"))
    }
    body, _ = exporter.from_notebook_node(notebook, resources={"mathjax": mathjax, **parts})
    return str(body)


def _title(notebook: NotebookNode) -> str:
    headings = re.findall(
        r"^# (.+)$",
        "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown"),
        re.MULTILINE,
    )
    return headings[0] if headings else "tlcourse"
