"""The table of methods holds what the notebooks are, the settings what the survey says."""

import io
from itertools import combinations, product

import matplotlib.pyplot as plt
import numpy as np
import pytest
from PIL import Image

from tlcourse import chapters, plots
from tlcourse.chapters import METHODS, SETTINGS, course_map

CASES = ["".join(signs) for signs in product("=≠", "=≠", "+-", "+-")]
NAMES = [method.name for method in METHODS]


def called(case):
    """The setting of a case, and whether that is our reading."""
    found = [s for s in SETTINGS if case in (*s.table, *s.ours)]
    assert len(found) == 1, case
    return found[0].name, case in found[0].ours


def surveyed(case):
    """Pan and Yang 2010: the words that tables 1 and 2 and section 2.3 give a case; "" for none."""
    same_domain, same_task = case[0] == "=", case[1] == "="
    source, target = case[2] == "+", case[3] == "+"
    if same_domain and same_task:
        return "ordinary learning" if source else ""
    if same_task:
        return "transductive" if source and not target else ""
    if target:  # whether the domains are the same or not
        return "inductive" if source else "self-taught"
    return "unsupervised transfer" if not (source or same_domain) else ""


@pytest.mark.parametrize("case", CASES)
def test_every_case_has_one_name_and_it_is_the_surveys_where_that_has_one(case):
    name, ours = called(case)
    assert surveyed(case) in name
    assert ours == (surveyed(case) == "")


def test_two_tasks_of_one_domain_with_all_labels_are_multi_task_learning():
    assert [case for case in CASES if "multi-task" in called(case)[0]] == ["=≠++"]


def test_every_method_fits_a_setting_and_every_fit_is_one():
    names = [setting.name for setting in SETTINGS]
    assert len({*names}) == len(names)
    assert len({*NAMES}) == len(NAMES)
    for method in METHODS:
        assert method.fits
        assert {*method.fits} <= {*names}, method.name
        assert len({*method.fits}) == len(method.fits)


def test_what_needs_target_labels_is_not_offered_without():
    unlabelled = {called(case)[0] for case in CASES if case[3] == "-" and case[:2] != "=="}
    fitting = {m.name for m in METHODS for name in m.fits if name in unlabelled}
    assert fitting == {"domain-adversarial training", "CORAL"}


def test_chapters_come_in_their_order():
    numbers = [method.chapter for method in METHODS]
    assert numbers == sorted(numbers)
    assert {*numbers} == {1, 2, 3, 4, 5, 6, 7}


def test_links_lead_to_notebooks_that_are_there(repository):
    linked = {method.notebook for method in METHODS if method.written}
    missing = {name for name in linked if not (repository / "notebooks" / name).is_file()}
    assert missing == set()


def test_every_chapter_is_on_the_map(repository):
    known = {method.notebook for method in METHODS}
    notebooks = {path.name for path in (repository / "notebooks").glob("*.ipynb")}
    assert {name for name in notebooks - known if name[:2] not in ("00", "08")} == set()


# the map


@pytest.fixture
def shown(monkeypatch):
    """What was shown: each figure's png and alt text."""
    published = []

    def display(data, raw, metadata):
        published.append((data["image/png"], metadata["image/png"]["alt"]))

    monkeypatch.setattr(plots, "display", display)
    return published


def test_the_map_says_in_words_what_it_shows(shown):
    course_map("fine-tuning")
    [(_, alt)] = shown
    assert alt.startswith("The map of the course, a line for each method. Chapter 2 is lit up.")
    assert "Chapter 3, distillation: matches soft targets, labels; freezes the teacher; " in alt
    assert "adds nothing." in alt
    assert all(f"Chapter {m.chapter}, {m.name}: " in alt for m in METHODS)
    course_map()
    assert "lit up" not in shown[1][1]


def test_a_chapter_is_lit_up_without_colour_too(shown):
    for lit in ("", "distillation"):
        course_map(lit)
    dark, lit = (np.asarray(Image.open(io.BytesIO(png)).convert("L"), float) for png, _ in shown)
    row = dark.shape[0] * (1 - (11 - 4 - 0.5) * 0.47 / (11 * 0.47 + 0.46))  # the fifth of 11 lines
    rows = np.abs(lit - dark).mean(1)
    assert abs(np.average(np.arange(len(rows)), weights=rows) - row) < 8
    assert (np.abs(lit - dark) > 100).sum() > 2_000  # the frame, and the number in black


def test_a_map_fits_a_phone(shown):
    """A page shows a figure at 60 % of its pixels or more: that is what 390 pixels leave."""
    course_map()
    assert Image.open(io.BytesIO(shown[0][0])).width * 0.6 <= 390 - 32
    assert len(shown[0][0]) < 60_000


def test_the_map_refuses_a_method_that_is_not_there(shown):
    with pytest.raises(ValueError, match=r"^lit must be one of domain-.*, CORAL, .*got 'chapter'$"):
        course_map("chapter")
    assert shown == []


@pytest.mark.parametrize("lit", {m.chapter: m.name for m in METHODS}.values())
def test_no_two_words_of_the_map_touch(lit, monkeypatch):
    figures = []
    monkeypatch.setattr(chapters, "show", lambda fig, alt: figures.append(fig))
    course_map(lit)
    fig = figures[0]
    fig.canvas.draw()
    axes = fig.axes[0]
    arrows = [a.arrow_patch.get_window_extent() for a in axes.texts if getattr(a, "arrow_patch", 0)]
    boxes = [text.get_window_extent() for text in axes.texts if text.get_text()] + arrows
    names = [text.get_text() for text in axes.texts if text.get_text()] + ["arrow"] * len(arrows)
    assert len(arrows) == len(METHODS)
    whole = axes.get_window_extent()
    assert [n for n, box in zip(names, boxes) if box.x1 > whole.x1 or box.x0 < whole.x0] == []
    pairs = combinations(zip(names, boxes), 2)
    assert [(a, b) for (a, one), (b, other) in pairs if one.overlaps(other)] == []
    plt.close(fig)
