"""JupyterLab in Chromium: the widgets under the keyboard; nothing in the notebook changes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from samples import weightings

SOURCES = [
    "import sys; sys.path.insert(0, {here!r})\n"
    "from samples import forgetting, looks, loss_weights, prediction\n"
    "from samples import scenario, sobolev, temperature",
    "widget = temperature(T=2.0)\nwidget",
    "asked = prediction()\nasked",
    "print('T is', widget.T)",
    "print('asked', asked.number, asked.because, asked.sure, asked.revealed)",
    "widget.T = 4",
    "curves = forgetting()\ncurves",
    "print('weight', curves.weight, curves.shown)",
    "maps = looks()\nmaps",
    "print('p', maps.p, maps.layer)",
    "fits = sobolev()\nfits",
    "print('points', fits.points, fits.length_scale)",
    "sums = loss_weights(at=0)\nsums",
    "print('at', sums.at, sums.coloured_by)",
    "case = scenario(here='01_what_is_transfer_learning.ipynb')\ncase",
    "print('case', case.same_domain, case.same_task, case.source_labels, case.target_labels)",
]

MORE = [
    "import sys; sys.path.insert(0, {here!r})\n"
    "from samples import looks, prediction, temperature\n"
    "from tlcourse.progress import progress_bar",
    "temperature()",
    "looks()",
    "looks()",
    "prediction()",
    "with progress_bar(total=2, leave=False) as bar: bar.update(2)",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two notebooks that were never run."""
    folder = tmp_path_factory.mktemp("lab")
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }  # else JupyterLab asks which
    for name, sources in {"one": SOURCES, "two": MORE}.items():
        texts = [source.replace("{here!r}", repr(str(Path(__file__).parent))) for source in sources]
        cells = [nbformat.v4.new_code_cell(text) for text in texts]
        book = nbformat.v4.new_notebook(cells=cells, metadata=kernel)
        nbformat.write(book, folder / f"{name}.ipynb")
    chapter = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell("# A chapter")])
    nbformat.write(chapter, folder / "03_knowledge_distillation.ipynb")
    return folder


@pytest.fixture(scope="module")
def server(folder):
    """JupyterLab on this folder; gives the address of the first notebook."""
    from jupyter_server.serverapp import list_running_servers

    command = [
        sys.executable,
        "-m",
        "jupyterlab",
        "--no-browser",
        "--port=0",
        "--allow-root",
        "--expose-app-in-browser",
        "--log-level=ERROR",
    ]
    environment = os.environ | {
        "JUPYTER_CONFIG_PATH": str(Path(__file__).parents[2] / "tlcourse" / "jupyter"),
        "JUPYTER_TOKEN": "learn",
    }
    running = subprocess.Popen(
        [*command, f"--ServerApp.root_dir={folder}"], env=environment, stderr=subprocess.DEVNULL
    )
    try:
        found, deadline = None, time.monotonic() + 90
        while found is None and running.poll() is None and time.monotonic() < deadline:
            time.sleep(0.3)
            found = next(
                (entry for entry in list_running_servers() if entry["pid"] == running.pid), None
            )
        assert found, "JupyterLab did not start"
        yield f"{found['url']}lab/tree/one.ipynb?reset&token=learn"
    finally:
        running.terminate()
        running.wait()


@pytest.fixture(scope="module")
def lab(server, browser):
    """The notebook, run from top to bottom."""
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.complaints = []
    tab.on("pageerror", lambda e: tab.complaints.append(str(e)))
    tab.on(
        "request",
        lambda r: (
            tab.complaints.append(r.url)
            if "//127.0.0.1" not in r.url
            and "//localhost" not in r.url
            and r.url.startswith("http")
            else None
        ),
    )
    tab.goto(server)
    tab.wait_for_selector(".jp-NotebookPanel .jp-Cell", timeout=60_000)
    tab.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
    tab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    tab.wait_for_selector(".tlc-temperature", timeout=60_000)
    tab.wait_for_selector(".tlc-prediction", timeout=60_000)
    tab.wait_for_function(
        "document.querySelectorAll('.jp-Cell .jp-InputPrompt')[15]?.textContent.includes('16')",
        timeout=60_000,
    )
    yield tab
    tab.close()


def says(tab, position):
    """Run one cell again, and what it prints then."""
    tab.evaluate(f"jupyterapp.shell.currentWidget.content.activeCellIndex = {position}")
    before = (
        tab.locator(".jp-Notebook .jp-Cell").nth(position).locator(".jp-InputPrompt").inner_text()
    )
    tab.evaluate("void jupyterapp.commands.execute('notebook:run-cell')")
    where = tab.locator(".jp-Notebook .jp-Cell").nth(position)
    for _ in range(100):
        if where.locator(".jp-InputPrompt").inner_text() not in (before, "[*]:"):
            break
        tab.wait_for_timeout(100)
    return " ".join(where.locator(".jp-OutputArea-output").all_inner_texts()).strip()


def sources(tab):
    return tab.evaluate(
        "jupyterapp.shell.currentWidget.content.widgets.map(cell => cell.model.sharedModel.source)"
    )


@pytest.mark.slow
def test_the_slider_moves_in_the_widget_and_in_python_and_nothing_else_changes(lab):
    before = sources(lab)
    slider = lab.get_by_role("slider", name="Temperature")
    assert slider.get_attribute("aria-valuetext") == "T = 4"  # the last cell set it from Python
    slider.focus()
    lab.keyboard.press("End")
    assert slider.get_attribute("aria-valuetext") == "T = 20"
    for key in ["ArrowLeft"] * 22 + list("bdd") + ["Shift+Enter", "a"]:
        lab.keyboard.press(key)
    assert slider.get_attribute("aria-valuetext") == "T = 1"
    assert lab.evaluate("document.activeElement.type") == "range"
    lab.wait_for_timeout(500)
    assert says(lab, 3) == "T is 1.0"
    assert says(lab, 5) == ""
    said = "document.querySelector('.tlc-temperature input').getAttribute('aria-valuetext')"
    lab.wait_for_function(f"{said} === 'T = 4'")
    assert sources(lab) == before
    assert lab.complaints == []


@pytest.mark.slow
def test_what_the_learner_says_reaches_python(lab):
    before = sources(lab)
    asked = lab.locator(".tlc-prediction")
    asked.get_by_label("Your number").focus()
    for keys in ("30", "bad idea", None):
        if keys:
            lab.keyboard.type(keys)
        lab.keyboard.press("Tab")
    lab.keyboard.press("Enter")
    assert asked.get_by_text("You predicted 30. Measured: 67.8 errors (58 to 77.7).").is_visible()
    lab.wait_for_timeout(500)
    assert says(lab, 4) == "asked 30.0 bad idea 50 True"
    assert sources(lab) == before


@pytest.mark.slow
def test_the_weight_and_the_lines_shown_reach_python(lab):
    before = sources(lab)
    lab.locator(".tlc-forgetting").get_by_role("slider").focus()
    for key in ("End", "b", "Tab", "Space"):
        lab.keyboard.press(key)
    lab.wait_for_timeout(500)
    assert says(lab, 7) == "weight 3.0 ['feature extraction', 'joint training']"
    assert sources(lab) == before


@pytest.mark.slow
def test_the_power_and_the_layer_reach_python_and_arrows_on_a_map_stay_there(lab):
    before = sources(lab)
    root = lab.locator(".tlc-attention")
    root.get_by_role("slider", name="Power p").focus()
    for key in ("Home", "Tab", "ArrowUp", "Tab", "Tab", "ArrowDown", "ArrowDown", "b"):
        lab.keyboard.press(key)
    assert root.locator(".tlc-cell").inner_text().startswith("Row 2 of 7, column 1 of 7")
    lab.wait_for_timeout(500)
    assert says(lab, 9) == "p 1.0 group 1"
    assert sources(lab) == before


@pytest.mark.slow
def test_points_and_the_length_scale_reach_python(lab):
    before = sources(lab)
    root = lab.locator(".tlc-sobolev")
    root.get_by_role("slider", name="Point 1").focus()
    for key in ("ArrowDown", "b", "Tab", "ArrowRight", "ArrowRight"):
        lab.keyboard.press(key)
    root.get_by_role("slider", name="Length scale").press("End")
    lab.wait_for_timeout(500)
    assert says(lab, 11) == "points [-0.92, -0.26, 0.3, 0.9] 0.6"
    assert sources(lab) == before


@pytest.mark.slow
def test_weights_and_the_task_that_is_shown_reach_python(lab):
    before = sources(lab)
    root = lab.locator(".tlc-lossweights")
    root.get_by_role("radio", checked=True).focus()
    for key in ("ArrowUp", "ArrowLeft", "b", "ArrowLeft", "Tab", "ArrowDown", "ArrowDown"):
        lab.keyboard.press(key)
    lab.wait_for_timeout(500)
    runs = [(6 * run["weights"]).round().tolist() for run in weightings()]
    assert says(lab, 13) == f"at {runs.index([1, 2, 3])} centres"
    assert sources(lab) == before


@pytest.mark.slow
def test_answers_reach_python_and_a_method_leads_to_its_notebook(lab, server):
    before = sources(lab)
    root = lab.locator(".tlc-scenario")
    root.get_by_role("radio").first.focus()
    for key in ("ArrowDown", "b", "Tab", "Tab", "ArrowRight", "Shift+Enter", "Tab"):
        lab.keyboard.press(key)
    lab.wait_for_timeout(500)
    assert says(lab, 15) == "case False True False True"
    assert sources(lab) == before
    link = root.get_by_role("link", name="distillation")
    there = server.split("?")[0].replace("one.ipynb", "03_knowledge_distillation.ipynb")
    assert link.evaluate("a => a.href") == there
    link.focus()
    with lab.context.expect_page() as news:
        lab.keyboard.press("Enter")
    chapter = news.value
    chapter.locator(".jp-NotebookPanel h1").get_by_text("A chapter").wait_for(timeout=60_000)
    assert chapter.url.split("?")[0].endswith("03_knowledge_distillation.ipynb")
    chapter.close()
    assert lab.complaints == []


def opened(tab, name):
    """Open another notebook in the same window; gives its panel."""
    tab.evaluate("name => jupyterapp.commands.execute('docmanager:open', { path: name })", name)
    panel = tab.locator(".jp-NotebookPanel:not(.lm-mod-hidden)")
    panel.locator(".jp-Cell").first.wait_for(timeout=60_000)
    tab.evaluate("jupyterapp.shell.currentWidget.context.ready")
    return panel


@pytest.fixture(scope="module")
def second(lab):
    """The second notebook beside the first, run from top to bottom."""
    panel = opened(lab, "two.ipynb")
    lab.evaluate("jupyterapp.shell.currentWidget.sessionContext.ready")
    lab.evaluate("void jupyterapp.commands.execute('notebook:run-all-cells')")
    panel.locator(".tlc-prediction").wait_for(timeout=60_000)
    done = "document.querySelector('.jp-NotebookPanel:not(.lm-mod-hidden)').querySelectorAll("
    done += "'.jp-InputPrompt')[5]?.textContent.includes('6')"
    lab.wait_for_function(done, timeout=60_000)
    return panel


@pytest.mark.slow
def test_two_notebooks_in_one_window_share_nothing(lab, second):
    found = lab.evaluate("""() => [...document.querySelectorAll('.tlc')].map((root) => {
      const all = (query) => [...root.querySelectorAll(query)];
      const fills = all("[fill^='url(#']").map((bar) => bar.getAttribute('fill').slice(5, -1));
      return {
        ids: all('[id]').map((node) => node.id),
        groups: [...new Set(all('[name]').map((node) => node.name))],
        away: [...fills, ...all('[for]').map((l) => l.htmlFor)]
          .filter((id) => !root.querySelector('#' + CSS.escape(id))),
        checked: all('input[type=radio]').length ? all('input[type=radio]:checked').length : 1,
      }; })""")
    assert len(found) >= 8
    for what in ("ids", "groups"):
        names = [name for widget in found for name in widget[what]]
        assert len(names) == len(set(names)), what
    assert [widget["away"] for widget in found] == [[]] * len(found)
    pictures = [w for w in found if "temperature" in str(w) or "attention" in str(w)]
    assert [widget["checked"] for widget in pictures] == [1] * len(pictures)


@pytest.mark.slow
def test_answers_and_widgets_are_there_again_without_a_kernel(lab, second, folder):
    asked = second.locator(".tlc-prediction")
    asked.get_by_label("Your number").fill("30")
    asked.get_by_label("Because").fill("it is a guess")
    asked.get_by_role("button", name="Reveal").click()
    lab.wait_for_timeout(500)
    lab.evaluate("jupyterapp.commands.execute('docmanager:save')")
    lab.evaluate("jupyterapp.shell.currentWidget.sessionContext.shutdown()")
    lab.evaluate("jupyterapp.shell.currentWidget.close()")
    again = opened(lab, "two.ipynb").locator(".jp-Notebook")
    again.locator(".tlc-prediction").wait_for(timeout=60_000)
    assert again.get_by_label("Your number").input_value() == "30"
    assert again.get_by_label("Because").input_value() == "it is a guess"
    assert again.get_by_text("You predicted 30. Measured: 67.8").is_visible()
    assert again.locator(".tlc").count() == 4
    assert "Error displaying widget" not in again.inner_text()
    saved = (folder / "two.ipynb").read_text(encoding="utf-8")
    assert "HBox" not in saved
    assert "FloatProgress" not in saved


@pytest.mark.slow
def test_a_notebook_that_is_not_trusted_says_what_to_do(lab, second, folder):
    saved = (folder / "two.ipynb").read_text(encoding="utf-8")
    (folder / "three.ipynb").write_text(
        saved.replace("bar.update(2)", "bar.update(1)"), encoding="utf-8"
    )
    panel = opened(lab, "three.ipynb")
    panel.get_by_text("Run this cell to see this PredictionWidget.").wait_for(timeout=30_000)
    assert panel.locator(".tlc").count() == 0
    assert "67.8" not in panel.inner_text()


@pytest.mark.slow
@pytest.mark.parametrize("theme", ["JupyterLab Dark", "JupyterLab Light"])
def test_text_can_be_read_in_both_themes(lab, theme):
    lab.evaluate("theme => jupyterapp.commands.execute('apputils:change-theme', { theme })", theme)
    lab.wait_for_function(
        "dark => document.body.dataset.jpThemeLight === (dark ? 'false' : 'true')",
        arg="Dark" in theme,
    )
    ratios = lab.evaluate("""() => {
      const linear = (c) => (c <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
      const light = (colour) => {
        const [r, g, b] = colour.match(/[\\d.]+/g).map((c) => linear(Number(c) / 255));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
      };
      const contrast = (a, b) => {
        const [x, y] = [light(a), light(b)].sort();
        return (y + 0.05) / (x + 0.05);
      };
      const found = {}, look = (node) => getComputedStyle(node);
      for (const root of document.querySelectorAll('.tlc')) {
        const page = look(root).backgroundColor;
        found[root.className] = contrast(look(root).color, page);
        for (const bar of root.querySelectorAll('.tlc-fill'))
          found[bar.closest('svg').classList[1]] = contrast(look(bar).fill, page);
        for (const line of root.querySelectorAll('.tlc-line'))
          found[line.classList[1]] = contrast(look(line).stroke, page);
      }
      return found; }""")
    assert min(ratio for name, ratio in ratios.items() if name.startswith("tlc tlc")) > 7
    assert min(ratios.values()) > 2
