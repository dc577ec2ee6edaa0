"""JupyterLab in Chromium: the widgets under the keyboard; nothing in the notebook changes."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

SOURCES = [
    "import sys; sys.path.insert(0, {here!r})\n"
    "from samples import forgetting, looks, prediction, temperature",
    "widget = temperature(T=2.0)\nwidget",
    "asked = prediction()\nasked",
    "print('T is', widget.T)",
    "print('asked', asked.number, asked.because, asked.sure, asked.revealed)",
    "widget.T = 4",
    "curves = forgetting()\ncurves",
    "print('weight', curves.weight, curves.shown)",
    "maps = looks()\nmaps",
    "print('p', maps.p, maps.layer)",
]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """JupyterLab on a folder with one notebook; gives the address of that notebook."""
    from jupyter_server.serverapp import list_running_servers

    folder = tmp_path_factory.mktemp("lab")
    cells = [
        nbformat.v4.new_code_cell(source.replace("{here!r}", repr(str(Path(__file__).parent))))
        for source in SOURCES
    ]
    kernel = {
        "kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}
    }  # else JupyterLab asks which
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "one.ipynb")
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
        "document.querySelectorAll('.jp-Cell .jp-InputPrompt').item(9)?.textContent.includes('10')",
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
