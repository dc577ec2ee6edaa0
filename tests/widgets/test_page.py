"""A saved page in Chromium, every request blocked: widgets work by keyboard, at every width."""

import importlib
import shutil
from contextlib import contextmanager
from pathlib import Path

import nbformat
import numpy as np
import pytest
from samples import TASKS, prediction, weightings

from tlcourse.chapters import METHODS, SETTINGS
from tlcourse.publish.notebooks import STATE, VIEW, execute
from tlcourse.publish.pages import MATHJAX, write_page

SOURCES = [
    "import sys; sys.path.insert(0, {here!r})\n"
    "from samples import forgetting, looks, loss_weights, photos\n"
    "from samples import prediction, scenario, sobolev, temperature",
    "temperature(T=2.0)",
    "prediction()",
    "prediction(choices=['alone', 'T = 20'], answer='T = 20', interval=None)",
    "temperature(image=1)",
    "forgetting()",
    "import ipywidgets\nipywidgets.IntSlider()",
    "from tlcourse.exercises import exercise\nexercise('soften')",
    "looks()",
    "photos()",
    "sobolev()",
    "loss_weights()",
    "scenario(here='01_what_is_transfer_learning.ipynb')",
    "from tlcourse import plots\nfig, axes = plots.figure()\n"
    "plots.show(fig, 'Nothing but \"axes\" & air, which is enough for a test.')",
]


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    """A notebook with all that a chapter holds, run and exported."""
    folder, here = tmp_path_factory.mktemp("page"), str(Path(__file__).parent)
    cells = [
        nbformat.v4.new_code_cell(source.replace("{here!r}", repr(here))) for source in SOURCES
    ]
    cells[7].metadata["jupyter"] = {"source_hidden": True}
    words = nbformat.v4.new_markdown_cell(
        "# A <page>\n\nWith $q_i = e^{z_i/T}$ and\n\n$$\\mathcal{L} = \\alpha T^2 \\boldsymbol{x}$$"
    )
    nbformat.write(nbformat.v4.new_notebook(cells=[words, *cells]), folder / "one.ipynb")
    execute(folder / "one.ipynb")
    saved = nbformat.read(
        folder / "one.ipynb", as_version=4
    )  # JupyterLab, unlike `execute`, also saves what other libraries draw
    view = {
        VIEW: {"model_id": "foreign", "version_major": 2, "version_minor": 0},
        "text/plain": "IntSlider(value=0)",
    }
    saved.cells[-2].outputs.append(nbformat.v4.new_output("display_data", view))
    foreign = {
        "model_module": "@jupyter-widgets/controls",
        "model_name": "IntSliderModel",
        "state": {},
    }
    saved.metadata.widgets[STATE]["state"]["foreign"] = foreign
    nbformat.write(saved, folder / "two.ipynb")
    for beside in ("03_knowledge_distillation", "07_continual_learning"):
        (folder / f"{beside}.html").write_text(f"<h1>{beside}</h1>", encoding="utf-8")
    return write_page(folder / "two.ipynb", folder / "one.html")


@contextmanager
def offline(page, browser):
    """A page in a browser of 1280 pixels; its requests and complaints are checked at the end."""
    tab = browser.new_page(viewport={"width": 1280, "height": 900})
    complaints, requests = [], []
    tab.on(
        "console", lambda m: complaints.append(m.text) if m.type in ("error", "warning") else None
    )
    tab.on("pageerror", lambda e: complaints.append(str(e)))
    tab.on("request", lambda r: requests.append(r.url))
    tab.route(
        "**/*",
        lambda route: (
            route.continue_() if route.request.url.startswith("file://") else route.abort()
        ),
    )
    tab.goto(page.as_uri())
    tab.wait_for_selector(".tlc >> nth=1")
    tab.wait_for_selector("mjx-container svg")
    yield tab
    tab.close()
    assert complaints == []
    assert {
        url.rsplit("/", 1)[-1] for url in requests if not url.startswith(("blob:", "data:"))
    } == {page.name, "tex-svg-full.js"}


@pytest.fixture
def opened(page, browser):
    """The page with one of everything."""
    with offline(page, browser) as tab:
        yield tab


CHAPTERS = sorted((Path(__file__).parents[2] / "notebooks").glob("*.ipynb"))
AXE = Path(__file__).parent / "node_modules" / "axe-core" / "axe.min.js"
# what is cut off, what scrolls and cannot be reached by Tab, and what is wider than the window
LOST_AT_THE_SIDE = """() => {
  const inside = 'main :is(pre, .wide, mjx-container)';
  const wide = node => node.scrollWidth > node.clientWidth + 1 && node.clientWidth > 0;
  const name = node => `${node.tagName}.${node.className}: ${node.textContent.slice(0, 40)}`;
  const boxes = [...document.querySelectorAll(inside)].filter(node => wide(node) && !(
      getComputedStyle(node).overflowX === 'auto' && node.tabIndex === 0));
  const rest = [...document.querySelectorAll('main *')].filter(node => !node.closest(inside)
      && !node.closest('.tlc-unseen, svg') && node.getBoundingClientRect().right > innerWidth + 1);
  return [...boxes, ...rest].map(name);
}"""

# full stops that begin a line, since the equation before them ends the last one
SEVERED = """() => [...document.querySelectorAll('main mjx-container:not([display], .long)')]
  .map(math => {
    const range = document.createRange();
    let after = math.nextSibling;
    while (after?.data && !after.data.replace('\\u2060', '')) after = after.nextSibling;
    if (!/^[.,;:!?)]/.test(after?.data ?? '') || !math.offsetParent) return '';
    range.setStart(after, 0);
    range.setEnd(after, 1);
    const below = range.getBoundingClientRect().top > math.getBoundingClientRect().bottom;
    return below ? math.closest('p, li, td, summary').textContent.slice(0, 60) : '';
  }).filter(Boolean)"""


@pytest.mark.slow
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_a_chapter_lives_on_a_page_of_any_width(path, tmp_path, browser):
    notebook = nbformat.read(path, as_version=4)
    views = sum(
        VIEW in out.get("data", {}) for cell in notebook.cells for out in cell.get("outputs", [])
    )
    page = write_page(path, tmp_path / "chapter.html")
    assert page.stat().st_size < 2_000_000
    assert path.stat().st_size < 1_000_000
    with offline(page, browser) as tab:
        tab.wait_for_selector(f".tlc >> nth={views - 1}")
        assert tab.locator(".tlc").count() == views
        assert tab.locator("mjx-merror").count() == 0
        tab.evaluate("document.querySelectorAll('main details').forEach(fold => fold.open = true)")
        for width in (360, 768, 1280):
            tab.set_viewport_size({"width": width, "height": 800})
            tab.wait_for_timeout(300)
            assert tab.evaluate("document.documentElement.scrollWidth") <= width
            assert tab.evaluate(LOST_AT_THE_SIDE) == []
            assert tab.evaluate(SEVERED) == []


def with_the_widgets_of_today(path, target):
    """A notebook whose widgets' states hold the modules and styles that the package has now."""
    notebook = nbformat.read(path, as_version=4)
    for state in notebook.metadata["widgets"][STATE]["state"].values():
        if "_anywidget_id" in state["state"]:
            module, _, name = state["state"]["_anywidget_id"].rpartition(".")
            kind = getattr(importlib.import_module(module), name)
            state["state"] |= {"_esm": str(kind._esm), "_css": str(kind._css)}
    target.write_text(nbformat.writes(notebook), encoding="utf-8")
    shutil.copytree(path.parent / "images", target.parent / "images")
    return target


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install --prefix tests/widgets")
@pytest.mark.parametrize("path", CHAPTERS, ids=lambda path: path.stem)
def test_axe_finds_nothing(path, tmp_path, browser):
    notebook = with_the_widgets_of_today(path, tmp_path / path.name)
    with offline(write_page(notebook, tmp_path / "chapter.html"), browser) as tab:
        tab.evaluate(AXE.read_text(encoding="utf-8"))
        for theme in ("light", "dark"):
            assert tab.evaluate("document.documentElement.dataset.theme") == theme
            for width in (360, 768, 1280) if theme == "light" else (1280,):
                tab.set_viewport_size({"width": width, "height": 800})
                tab.evaluate("document.querySelectorAll('main details').forEach(d => d.open = 1)")
                tab.wait_for_timeout(300)
                found = tab.evaluate("axe.run(document, {resultTypes: ['violations']})")
                said = [(v["id"], n["html"]) for v in found["violations"] for n in v["nodes"]]
                assert said == [], (theme, width)
            tab.locator("#theme").click()


@pytest.mark.slow
def test_everything_is_there(opened):
    assert opened.locator(".tlc-temperature").count() == 2
    assert opened.locator(".tlc-prediction").count() == 2
    assert opened.locator(".tlc-forgetting").count() == 1
    assert opened.locator(".tlc-attention").count() == 2
    assert opened.locator(".tlc-sobolev").count() == 1
    assert opened.locator(".tlc-lossweights").count() == 1
    assert opened.locator(".tlc-scenario").count() == 1
    assert opened.locator("mjx-container").count() == 2
    assert opened.locator("mjx-merror").count() == 0
    assert opened.title() == "A <page>"
    assert (
        opened.locator("img").get_attribute("alt")
        == 'Nothing but "axes" & air, which is enough for a test.'
    )
    assert (
        opened.locator("script[type='application/vnd.jupyter.widget-view+json']").count() == 10
    )  # the slider of another library is gone
    assert "IntSlider(" not in opened.locator(".output").all_inner_texts().__str__()
    assert opened.locator("main details").first.get_attribute("open") is None
    assert opened.get_by_text("exercise('soften')").count() == 0  # its source is hidden
    opened.get_by_text("Hint 1 of 3").click()
    assert opened.get_by_text("Which dimension must sum to 1?").is_visible()


@pytest.mark.slow
def test_the_temperature_by_keyboard(opened):
    first, second = (opened.locator(".tlc-temperature").nth(i) for i in (0, 1))
    slider = first.get_by_role("slider", name="Temperature")
    slider.focus()
    for key, said in [("Home", "T = 0.1"), ("End", "T = 20")]:
        opened.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext") == said
    for _ in range(22):
        opened.keyboard.press("ArrowLeft")
    assert slider.get_attribute("aria-valuetext") == "T = 1"
    assert (
        second.get_by_role("slider", name="Temperature").get_attribute("aria-valuetext") == "T = 1"
    )
    opened.keyboard.press("ArrowRight")
    assert (
        second.get_by_role("slider", name="Temperature").get_attribute("aria-valuetext") == "T = 1"
    )
    order = []
    for _ in range(4):
        opened.keyboard.press("Tab")
        order.append(
            opened.evaluate(
                "[document.activeElement.tagName, document.activeElement.type].join(' ')"
            )
        )
    assert order == ["INPUT number", "BUTTON button", "INPUT checkbox", "INPUT radio"]
    opened.keyboard.press("ArrowRight")
    assert first.locator(".tlc-caption").inner_text() == "label: 2"
    opened.wait_for_function(
        "document.querySelector('.tlc-temperature [role=status]').textContent.includes('label 2')"
    )


@pytest.mark.slow
def test_forgetting_by_keyboard(opened):
    root = opened.locator(".tlc-forgetting")
    slider, line = (
        root.get_by_role("slider", name="LwF: weight of the old tasks"),
        root.locator("path.tlc-line-solid").first,
    )
    slider.focus()
    before = line.get_attribute("d")
    for key, said in [("Home", "weight 0"), ("ArrowRight", "weight 0.3"), ("End", "weight 3")]:
        opened.keyboard.press(key)
        assert slider.get_attribute("aria-valuetext") == said
    assert line.get_attribute("d") != before
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.type") == "checkbox"
    opened.keyboard.press("Space")
    assert line.get_attribute("d") == ""
    said = "document.querySelector('.tlc-forgetting [role=status]').textContent"
    opened.wait_for_function(f"{said}.startsWith('Weight 3. LwF: mean accuracy ')")


@pytest.mark.slow
def test_attention_by_keyboard(opened):
    first, second = (opened.locator(".tlc-attention").nth(i) for i in (0, 1))
    pixels = """canvas => Array.from(
        canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data)"""
    painted = "canvas => canvas.toDataURL()"
    canvas, power = (
        first.locator("canvas.tlc-look").first,
        first.get_by_role("slider", name="Power p"),
    )
    before = canvas.evaluate(painted)
    power.focus()
    opened.keyboard.press("End")
    assert power.get_attribute("aria-valuetext") == "p = 8"
    assert canvas.evaluate(painted) != before
    canvas.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        opened.keyboard.press(key)
    said = first.locator(".tlc-cell").inner_text()
    assert said.startswith("Row 2 of 4, column 2 of 4: teacher ")
    opened.wait_for_function(
        "said => document.querySelector('.tlc-attention [role=status]').textContent === said",
        arg=said,
    )
    first.get_by_role("slider", name="Overlay").focus()
    opened.keyboard.press("Home")
    colours = canvas.evaluate(pixels)
    assert all(
        colours[i] == colours[i + 1] == colours[i + 2] for i in range(0, len(colours), 4)
    )  # the grey picture alone
    second.get_by_label("Map").focus()
    opened.keyboard.press("ArrowDown")
    assert second.get_by_label("Map").input_value() == "cat"
    assert second.get_by_role("slider", name="Power p").is_disabled()
    second.locator("canvas.tlc-look").hover(position={"x": 5, "y": 5})
    assert (
        second.locator(".tlc-cell").inner_text().startswith("Row 1 of 7, column 1 of 7: network ")
    )


@pytest.mark.slow
def test_points_of_a_fit_by_keyboard_and_by_hand(opened):
    root = opened.locator(".tlc-sobolev")
    handles = root.locator("svg").get_by_role("slider")
    where = "nodes => nodes.map(node => Number(node.getAttribute('aria-valuenow')))"
    assert handles.evaluate_all(where) == [-0.9, -0.3, 0.3, 0.9]
    second, line = handles.nth(1), root.locator("path.tlc-line-solid").first
    before = line.get_attribute("d")
    second.focus()
    for key, at in [("ArrowRight", -0.28), ("PageDown", -0.48), ("Home", -1), ("End", 1)]:
        opened.keyboard.press(key)
        assert handles.evaluate_all(where) == [-0.9, at, 0.3, 0.9]
    assert second.get_attribute("aria-valuetext").startswith("x = 1.00, value ")
    assert line.get_attribute("d") != before
    opened.keyboard.press("Tab")
    assert opened.evaluate("document.activeElement.ariaLabel") == "Point 3"
    said = "document.querySelector('.tlc-sobolev [role=status]').textContent"
    opened.wait_for_function(f"{said}.startsWith('Slopes ')")
    box = handles.nth(2).locator(".tlc-knob").bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.mouse.move(x, y)
    opened.mouse.down()
    opened.mouse.move(x - 100, y - 300, steps=4)
    opened.mouse.up()
    moved = handles.evaluate_all(where)
    assert -0.1 < moved[2] < 0.1
    opened.mouse.move(x, y)
    assert handles.evaluate_all(where) == moved  # it was let go
    root.get_by_role("slider", name="Points").press("End")
    assert handles.count() == 7


def said_of_a_dot(run):
    """Every task's line and the sum of them, as Python says them."""
    lines, better = [], 0
    for task, value in zip(TASKS, run["values"]):
        values = [abs(each["values"][TASKS.index(task)]) for each in weightings()]
        d = 2 - int(np.floor(np.log10(max(*values, task["alone"], task["learnt"]))))
        text, alone, learnt = (f"{v:.{d}f}" for v in (value, task["alone"], task["learnt"]))
        gain = (float(text) - float(alone)) * (1 if task["better"] == "higher" else -1)
        word = "better than" if gain > 0 else "worse than" if gain < 0 else "as good as"
        better += gain > 0
        lines.append(
            [f"{text} {task['unit']}".strip(), f"{word} alone ({alone}); learnt: {learnt}"]
        )
    return lines, f"Better than alone: {better} of 3 tasks"


@pytest.mark.slow
def test_weights_by_keyboard_and_by_hand(opened):
    root, runs = opened.locator(".tlc-lossweights"), weightings()
    dots, lines = root.get_by_role("radio"), root.locator(".tlc-task")
    checked = "dots => dots.findIndex(dot => dot.ariaChecked === 'true')"
    told = "rows => rows.map(row => [...row.querySelectorAll('.tlc-gets')].map(e => e.innerText))"

    def at(weights):
        [here] = [i for i, r in enumerate(runs) if np.allclose(6 * r["weights"], weights)]
        assert dots.evaluate_all(checked) == here
        found = [[a.splitlines()[-1], b] for a, b in lines.evaluate_all(told)]
        assert (found, root.locator(".tlc-verdict").inner_text()) == said_of_a_dot(runs[here])

    at([2, 2, 2])
    root.get_by_role("radio", checked=True).focus()
    for key, weights in [
        ("ArrowRight", [2, 1, 3]),
        ("ArrowUp", [3, 0, 3]),
        ("ArrowDown", [2, 1, 3]),
        ("Home", [6, 0, 0]),
        ("ArrowUp", [6, 0, 0]),
        ("End", [0, 0, 6]),
        ("2", [0, 6, 0]),
        ("ArrowRight", [0, 5, 1]),
    ]:
        opened.keyboard.press(key)
        at(weights)
    name = opened.evaluate("document.activeElement.ariaLabel")
    assert name == "segments 0, centres 0.83, depth 0.17"
    said = "document.querySelector('.tlc-lossweights [role=status]').textContent"
    opened.wait_for_function(f"{said}.startsWith('Weights: {name}. segments ')")
    box = root.locator(".tlc-triangle").bounding_box()
    middle = dots.nth(15).bounding_box()
    x, y = middle["x"] + middle["width"] / 2, middle["y"] + middle["height"] / 2
    opened.mouse.move(x + 8, y - 8)
    opened.mouse.down()
    at(6 * runs[15]["weights"])
    opened.mouse.move(box["x"] + 5, box["y"] + box["height"], steps=5)
    at([0, 6, 0])
    opened.mouse.up()
    opened.mouse.move(x, y)
    at([0, 6, 0])  # it was let go
    root.get_by_label("Size and shade").select_option("depth")
    size = "dots => dots.map(dot => dot.firstChild.r.baseVal.value)"
    sizes = np.array(dots.evaluate_all(size))
    values = np.array([run["values"][2] for run in runs])
    assert values[sizes == sizes.max()].max() < values[sizes < sizes.max()].min()


@pytest.mark.slow
def test_weights_under_a_thumb(page, browser):
    """A tap chooses; the ring can be dragged; a thumb beside it scrolls the page."""
    context = browser.new_context(viewport={"width": 360, "height": 700}, has_touch=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    root = tab.locator(".tlc-lossweights")
    root.scroll_into_view_if_needed()
    dots, checked = root.get_by_role("radio"), root.get_by_role("radio", checked=True)
    root.locator(".tlc-triangle").scroll_into_view_if_needed()
    box = dots.nth(0).bounding_box()
    tab.touchscreen.tap(box["x"] + 9, box["y"] - 4)
    assert checked.get_attribute("aria-label") == "segments 0, centres 0, depth 1.00"
    for selector, action in [(".tlc-triangle", "auto"), (".tlc-grip", "none")]:
        style = root.locator(selector).evaluate("node => getComputedStyle(node).touchAction")
        assert style == action
    context.close()


ANSWERS = """root => [...root.querySelectorAll('fieldset')].map(group =>
  group.querySelectorAll('input')[0].checked)"""


@pytest.mark.slow
def test_a_setting_by_keyboard(opened):
    """All 16 cases, by arrows and Tab alone, are named as the table does."""
    root = opened.locator(".tlc-scenario")
    lit = root.locator(".tlc-lit .tlc-method")
    root.get_by_role("radio").first.focus()
    at = 0
    for count in range(16):
        yes = root.evaluate(ANSWERS)
        assert yes == [bool((count ^ count >> 1) & bit) ^ True for bit in (8, 4, 2, 1)]
        case = "".join(pair[not one] for pair, one in zip(("=≠", "=≠", "+-", "+-"), yes))
        [setting] = [one for one in SETTINGS if case in (*one.table, *one.ours)]
        name, whose = (root.locator(f".tlc-named {tag}").inner_text() for tag in ("strong", "span"))
        assert name.lower() == setting.name.lower()
        assert ("our reading" in whose) == (case in setting.ours)
        assert root.locator(".tlc-setting p").last.inner_text() == setting.why
        fitting = [method.name for method in METHODS if setting.name in method.fits]
        assert lit.all_inner_texts() == fitting
        said = f"{len(fitting)} of {len(METHODS)}" if fitting else "No method of this course fits."
        assert said in root.locator(".tlc-count").inner_text()
        if count == 15:
            break
        changed = 3 - ((count + 1) & -(count + 1)).bit_length() + 1  # one answer at a time
        for _ in range(abs(changed - at)):
            opened.keyboard.press("Tab" if changed > at else "Shift+Tab")
        at = changed
        opened.keyboard.press("ArrowRight" if yes[changed] else "ArrowLeft")
    spoken = "document.querySelector('.tlc-scenario [role=status]').textContent"
    opened.wait_for_function(f"said => {spoken}.startsWith(said)", arg=f"{name}. {setting.why}")


@pytest.mark.slow
def test_a_method_leads_to_the_page_of_its_chapter_or_nowhere(opened, page):
    root = opened.locator(".tlc-scenario")
    links = root.locator("a").evaluate_all("links => links.map(a => [a.innerText, a.href])")
    there = ("03_knowledge_distillation.ipynb", "07_continual_learning.ipynb")
    assert links == [
        [m.name, page.with_name(f"{m.notebook[:-6]}.html").as_uri()]
        for m in METHODS
        if m.notebook in there and m.written
    ]
    assert len(links) == 2
    notes = [" ".join(text.split()) for text in root.locator(".tlc-chapter").all_inner_texts()]
    assert {notes[i] for i, m in enumerate(METHODS) if m.chapter == 1} == {"this chapter"}
    to_come = {notes[i] for i, m in enumerate(METHODS) if not m.written and m.chapter != 1}
    assert to_come <= {"chapter 7, to come"}


@pytest.mark.slow
def test_a_link_of_the_widget_opens_the_page(page, browser):
    tab = browser.new_page()
    tab.goto(page.as_uri())
    tab.locator(".tlc-scenario").get_by_role("link", name="distillation").press("Enter")
    tab.wait_for_url("**/03_knowledge_distillation.html")
    assert tab.locator("h1").inner_text() == "03_knowledge_distillation"
    tab.close()


@pytest.mark.slow
@pytest.mark.skipif(not AXE.is_file(), reason="no axe-core: npm install --prefix tests/widgets")
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_in_any_widget(opened, theme):
    opened.emulate_media(color_scheme=theme)
    opened.wait_for_function(f"document.documentElement.dataset.theme === '{theme}'")
    opened.evaluate(AXE.read_text(encoding="utf-8"))
    for width in (360, 1280):
        opened.set_viewport_size({"width": width, "height": 800})
        opened.wait_for_timeout(300)
        found = opened.evaluate("axe.run('.tlc', {resultTypes: ['violations']})")
        said = [(v["id"], n["html"]) for v in found["violations"] for n in v["nodes"]]
        assert said == [], width


@pytest.mark.slow
def test_a_redraw_takes_less_than_a_frame(opened):
    """Not a timing: the bars have moved when the key's own event has been handled."""
    moved = opened.evaluate("""() => {
      const root = document.querySelector('.tlc-temperature');
      const slider = root.querySelector('input[type=range]');
      const height = () => root.querySelector('rect[fill]').getAttribute('height');
      const before = height();
      slider.value = 40; slider.dispatchEvent(new Event('input'));
      return before !== height();
    }""")
    assert moved


@pytest.mark.slow
def test_a_prediction_by_keyboard(opened):
    number = opened.locator(".tlc-prediction").nth(0)
    assert not number.get_by_text("It says more.").is_visible()
    number.get_by_label("Your number").focus()
    opened.keyboard.type("30")
    opened.keyboard.press("Tab")
    opened.keyboard.type("because b and d d")
    opened.keyboard.press("Tab")
    opened.keyboard.press("ArrowRight")
    opened.keyboard.press("Tab")
    opened.keyboard.press("Enter")
    assert number.get_by_text("You predicted 30. Measured: 67.8 errors (58 to 77.7).").is_visible()
    assert number.get_by_label("Because").input_value() == "because b and d d"
    assert number.locator("strong").inner_text() == "60 %"
    opened.keyboard.press("Tab")
    opened.keyboard.type("much")
    assert number.get_by_label("What surprised you?").input_value() == "much"
    choice = opened.locator(".tlc-prediction").nth(1)
    choice.get_by_label("alone").focus()
    opened.keyboard.press("ArrowDown")
    choice.get_by_role("button", name="Reveal").press("Enter")
    assert choice.get_by_text("As you predicted.").is_visible()


@pytest.mark.slow
@pytest.mark.parametrize("width", [360, 768, 1280])
def test_nothing_needs_scrolling_sideways(opened, width):
    opened.set_viewport_size({"width": width, "height": 800})
    opened.evaluate("document.querySelectorAll('main details').forEach(fold => fold.open = true)")
    opened.wait_for_timeout(200)
    assert opened.evaluate("document.documentElement.scrollWidth") <= width
    for widget in opened.locator(".tlc").all():
        inner, outer = widget.evaluate("node => [node.scrollWidth, node.clientWidth]")
        assert inner <= outer
    texts = "document.querySelectorAll('.tlc-number, .tlc-tick, .tlc-name')"
    sizes = opened.evaluate(f"""() => [...{texts}].map(node => {{
      const drawing = node.ownerSVGElement, width = drawing.viewBox.baseVal.width;
      return parseFloat(getComputedStyle(node).fontSize) * drawing.clientWidth / width; }})""")
    assert min(sizes) >= 7.5


@pytest.mark.slow
def test_a_solution_of_100_columns_fits_its_box(opened):
    opened.evaluate("document.querySelectorAll('main details').forEach(fold => fold.open = true)")
    code = opened.locator("details pre code").first
    code.evaluate("(node, text) => node.textContent = text", f"{'x' * 100}\n{'y' * 40}")
    inner, outer = code.locator("..").evaluate("node => [node.scrollWidth, node.clientWidth]")
    assert inner <= outer
    height = code.evaluate("node => node.getBoundingClientRect().height")
    line = code.evaluate("node => parseFloat(getComputedStyle(node).lineHeight)")
    assert height < 3 * line  # two lines: nothing is broken


@pytest.mark.slow
def test_a_widget_whose_state_has_a_fault_says_so_and_the_others_live(tmp_path, browser):
    states, outputs = {}, []
    for name, low in (("ill", float("-inf")), ("well", 58.0)):
        state = {k: v for k, v in prediction().get_state().items() if k != "layout"} | {"low": low}
        states[name] = {"model_module": "anywidget", "model_name": "AnyModel", "state": state}
        outputs.append(nbformat.v4.new_output("display_data", {VIEW: {"model_id": name}}))
    cell = nbformat.v4.new_code_cell("w", execution_count=1, outputs=outputs)
    notebook = nbformat.v4.new_notebook(
        cells=[cell], metadata={"widgets": {STATE: {"state": states}}}
    )
    nbformat.write(notebook, tmp_path / "one.ipynb")
    tab = browser.new_page()
    tab.goto(write_page(tmp_path / "one.ipynb", tmp_path / "one.html").as_uri())
    tab.wait_for_selector(".tlc")
    said = "the state of this PredictionWidget holds a number that is not finite"
    assert tab.get_by_text(f"This interactive figure could not be drawn: {said}").is_visible()
    assert tab.locator(".tlc-prediction").count() == 1
    tab.close()


@pytest.mark.slow
def test_tables_lie_in_boxes_and_a_widget_without_state_says_what_to_do(tmp_path, browser):
    table = "<table class='tlc-table'><tr><th></th><th>x</th></tr></table>"
    data = [{"text/html": table}, {VIEW: {"model_id": "gone"}}]
    outputs = [nbformat.v4.new_output("display_data", each) for each in data]
    cells = [
        nbformat.v4.new_markdown_cell("| | a |\n|---|---|\n| b | 1 |"),
        nbformat.v4.new_code_cell("w", execution_count=1, outputs=outputs),
    ]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), tmp_path / "one.ipynb")
    tab = browser.new_page()
    tab.goto(write_page(tmp_path / "one.ipynb", tmp_path / "one.html").as_uri())
    assert tab.locator(".wide > table").count() == tab.locator("table").count() == 2
    assert tab.locator("th").all_inner_texts() == ["a", "x"]
    assert tab.get_by_text("this interactive figure was saved without its state").is_visible()
    tab.close()


@pytest.mark.slow
def test_links_to_notebooks_lead_to_pages_that_are_there(tmp_path, browser):
    links = ["03_there.ipynb", "03_there.ipynb#By-hand", "./04_gone.ipynb", "%C3%BC%20x.ipynb"]
    links += ["#top", "https://example.org/03_there.ipynb", "images/03_there.ipynb", "x.png"]
    words = " ".join(f"[{i}]({link})" for i, link in enumerate(links))
    nbformat.write(
        nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(words)]),
        tmp_path / "one.ipynb",
    )
    for name in ("03_there.html", "ü x.html"):
        (tmp_path / name).write_text("<h1>there</h1>", encoding="utf-8")
    tab = browser.new_page()
    tab.goto(write_page(tmp_path / "one.ipynb", tmp_path / "one.html").as_uri())
    found = tab.locator("main a").evaluate_all("links => links.map(a => a.getAttribute('href'))")
    there = ["03_there.html", "03_there.html#By-hand", None, "%C3%BC%20x.html"]
    assert found == [*there, *links[4:]]
    tab.get_by_role("link", name="1").click()
    assert tab.locator("h1").inner_text() == "there"
    tab.close()


@pytest.mark.slow
def test_a_theme_is_the_systems_until_one_is_chosen_and_stays(page, browser):
    context = browser.new_context(color_scheme="dark")
    tab, theme = context.new_page(), "document.documentElement.dataset.theme"
    tab.goto(page.as_uri())
    assert tab.evaluate(theme) == "dark"
    tab.emulate_media(color_scheme="light")
    tab.wait_for_function(f"{theme} === 'light'")
    tab.get_by_role("button", name="Dark colours").click()
    assert tab.evaluate(theme) == "dark"
    assert tab.evaluate("getComputedStyle(document.querySelector('.tlc')).color") == (
        tab.evaluate("getComputedStyle(document.documentElement).color")
    )
    tab.reload()
    assert tab.evaluate(theme) == "dark"
    assert tab.get_by_role("button", name="Light colours").is_visible()
    context.close()


@pytest.mark.slow
def test_a_page_that_may_not_remember_still_changes_its_theme(page, browser):
    tab = browser.new_page(color_scheme="light")
    tab.add_init_script(
        "Object.defineProperty(window, 'localStorage', {get() { throw new Error('refused'); }})"
    )
    tab.goto(page.as_uri())
    tab.get_by_role("button", name="Dark colours").click()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    tab.close()


@pytest.mark.slow
def test_paper_is_light_and_unfolded_and_100_columns_fit(page, browser):
    tab = browser.new_page(color_scheme="dark", viewport={"width": 673, "height": 900})  # A4's
    tab.goto(page.as_uri())
    tab.wait_for_selector(".tlc")
    state = "[document.documentElement.dataset.theme, $$('main details:not([open])').length]"
    state = state.replace("$$", "document.querySelectorAll")
    before = tab.evaluate(state)
    assert before[0] == "dark"
    assert before[1] > 0
    tab.emulate_media(media="print")
    tab.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert tab.evaluate(state) == ["light", 0]
    assert not tab.get_by_role("button", name="colours").is_visible()
    heights = tab.evaluate("""() => [...document.querySelectorAll('main pre')].map(pre => {
        (pre.querySelector('code') ?? pre).textContent = 'x'.repeat(100);
        const style = getComputedStyle(pre), inner = document.createRange();
        inner.selectNodeContents(pre);
        return [inner.getBoundingClientRect().height, 1.7 * parseFloat(style.lineHeight)]; })""")
    assert len(heights) > 10
    assert [height for height, limit in heights if height > limit] == []
    tab.evaluate("dispatchEvent(new Event('afterprint'))")
    assert tab.evaluate(state) == before
    tab.close()


@pytest.mark.slow
def test_the_page_is_small_and_mathjax_lies_beside_it(page):
    assert page.stat().st_size < 2_000_000
    beside = page.with_name("one_files")
    assert sorted(file.name for file in beside.iterdir()) == ["LICENSE", "tex-svg-full.js"]
    assert (beside / "tex-svg-full.js").read_bytes() == (MATHJAX / "tex-svg-full.js").read_bytes()
    assert not list(page.parent.glob(".*.draft"))


@pytest.mark.slow
def test_saved_states_are_those_of_the_course_only(page):
    notebook = nbformat.read(page.with_name("one.ipynb"), as_version=4)
    states = notebook.metadata.widgets[STATE]["state"]
    assert (
        sorted(state["model_name"] for state in states.values())
        == ["AnyModel"] * 10 + ["LayoutModel"] * 10
    )
