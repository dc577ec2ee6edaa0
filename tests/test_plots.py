import io

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from skimage.data import astronaut

from tlcourse import plots


@pytest.fixture
def shown(monkeypatch):
    published = []
    monkeypatch.setattr(
        plots, "display", lambda data, raw, metadata: published.append((data, metadata))
    )
    return published


def test_show_publishes_a_png_with_its_alt_text_and_closes_the_figure(shown):
    fig, axes = plots.figure()
    axes.plot([0, 1])
    plots.show(fig, "a line that rises")
    data, metadata = shown[0]
    assert data["image/png"].startswith(b"\x89PNG")
    assert metadata == {"image/png": {"alt": "a line that rises"}}
    assert data["text/plain"].splitlines() == ["[figure]", "a line that rises"]  # folded: the first
    assert plt.get_fignums() == []


def test_a_drawing_is_kept_in_fewer_colours_than_a_photo(shown):
    fig, axes = plots.figure(size=(3, 2))
    axes.plot([0, 1])
    plots.show(fig, "a line")
    fig, axes = plots.figure(size=(3, 2))
    axes.imshow(astronaut()[:200, :300])
    plots.show(fig, "a photo")
    colours = [len(Image.open(io.BytesIO(data["image/png"])).getcolors()) for data, _ in shown]
    assert colours[0] <= 64 < colours[1] <= 256


@pytest.mark.parametrize("alt", ["", "  "])
def test_a_figure_without_alt_text_is_refused(alt, shown):
    with pytest.raises(ValueError, match="alt must say in words"):
        plots.show(plots.figure()[0], alt)
    plt.close("all")


def test_the_style_does_not_leak():
    before = dict(plt.rcParams)
    plt.close(plots.figure()[0])
    assert dict(plt.rcParams) == before


@pytest.mark.parametrize("ends", [[0, 0, 0], [1.0, 1.01, 5], [3, 2, 1], [0.5]])
def test_labels_keep_their_distance_and_their_order(ends):
    fig, axes = plots.figure()
    for i, end in enumerate(ends):
        axes.plot([0, 1], [0, end], label=f"line {i}")
    plots.label_lines(axes, gap=0.1)
    heights = [text.get_position()[1] for text in axes.texts]
    assert [text.get_text() for text in axes.texts] == [f"line {i}" for i in range(len(ends))]
    assert (np.diff(np.sort(heights)) >= 0.1 - 1e-4).all()
    order = np.argsort(ends, kind="stable")
    assert (np.diff(np.asarray(heights)[order]) >= -1e-9).all()
    plt.close(fig)


def test_bars_have_the_heights_they_were_given():
    fig, axes = plots.figure()
    plots.bars(axes, {"teacher": [0.2, 0.8], "alone": [0.5, 0.5]}, ["3", "5"])
    assert [bar.get_height() for bar in axes.patches] == [0.2, 0.8, 0.5, 0.5]
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["3", "5"]
    plt.close(fig)


def test_everyone_can_be_told_apart_without_colour():
    looks = [(look["linestyle"], look["marker"]) for look in plots.LOOKS.values()]
    assert len(set(looks)) == len({look["hatch"] for look in plots.LOOKS.values()}) == len(looks)


def test_intervals_write_the_mean_of_every_row():
    table = pd.DataFrame(
        {"mean": [10.4, 20.0], "low": [9.0, 18.0], "high": [11.0, 22.0]}, index=["teacher", "alone"]
    )
    fig, axes = plots.figure()
    plots.intervals(axes, table, unit="errors")
    assert [text.get_text() for text in axes.texts] == ["10", "20"]
    looks = {"alone": {"color": "red", "marker": "s"}}
    fig_2, other = plots.figure()
    plots.intervals(other, table, unit="errors", digits=1, looks=looks)
    assert [text.get_text() for text in other.texts] == ["10.4", "20.0"]
    assert (other.lines[-1].get_color(), other.lines[-1].get_marker()) == ("red", "s")
    plt.close(fig_2)
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["teacher", "alone"]
    plt.close(fig)


def test_a_line_has_its_intervals_and_says_its_means():
    fig, axes = plots.figure()
    table = {5: (10.0, 9.0, 12.0), 10: (20.25, 18.0, 21.0)}
    assert (
        plots.mean_line(axes, table, label="ours", shift=2.0, color="red")
        == "ours 10.0 at 5, 20.2 at 10"
    )
    drawn, _, (bars,) = axes.containers[0]
    assert drawn.get_xydata().tolist() == [[10, 10], [20, 20.25]]
    assert [bar[:, 1].tolist() for bar in bars.get_segments()] == [[9, 12], [18, 21]]
    plots.log_axis(axes, [5, 10, 1000])
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["5", "10", "1,000"]
    assert axes.get_xscale() == "log"
    assert len(axes.xaxis.get_minorticklocs()) == 0
    plt.close(fig)


def two_rows(**changes):
    rows = {
        "teacher": plots.frozen("body", "head"),
        "student": [*plots.trained("body"), *plots.new("head")],
        "": [None, *plots.trained("second head")],
    }
    losses = [("student: head", "teacher: head", "soft targets"), ("second head", "label", "CE")]
    return plots.Scheme(**{"rows": rows, "losses": losses} | changes)


def test_a_scheme_says_in_words_what_it_shows(shown):
    plots.scheme(two_rows(title="distillation"), two_rows())
    alt = shown[0][1]["image/png"]["alt"]
    one = (
        "teacher: body (frozen), head (frozen); student: body (trained), head (new); "
        ": second head (trained). student: head is compared with teacher: head by soft targets; "
        "second head is compared with label by CE."
    )
    assert alt == f"distillation: {one} {one}"
    assert shown[0][0]["image/png"].startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("losses", "said"),
    [
        ([("nobody", "label", "CE")], "needs a block, and there is no 'nobody'"),
        ([("head", "label", "CE")], "'head' must name one block, got 2"),
    ],
)
def test_a_loss_needs_a_block(losses, said, shown):
    with pytest.raises(ValueError, match=said):
        plots.scheme(two_rows(losses=losses))
    plt.close("all")


def test_a_join_goes_from_the_side_of_a_block_to_that_of_another(shown, monkeypatch):
    arrows = []
    monkeypatch.setattr(
        plots.Axes, "annotate", lambda _, text, end, start, **__: arrows.append((start, end))
    )
    rows = {"net": plots.frozen("fc6", "fc7") + plots.new("head"), "": [None, *plots.new("more")]}
    plots.scheme(plots.Scheme(rows, [("head", "label", "CE")], joins=[("more", "head")]))
    assert "more also goes to head." in shown[0][1]["image/png"]["alt"]
    right, left = plots.ACROSS + plots.WIDE, 2 * plots.ACROSS
    (join,) = [
        (start, end)
        for start, end in arrows
        if start[1] < -plots.DOWN / 2 and end[1] > -plots.DOWN / 2 and start[0] < end[0]
    ]
    assert (join[0][0], join[1][0]) == pytest.approx((right, left), abs=0.1)


@pytest.mark.parametrize(("trunk", "rows_up"), [(plots.trained, 1), (plots.frozen, 0)])
def test_a_branch_sends_its_gradient_into_a_trunk_that_moves(trunk, rows_up, shown, monkeypatch):
    ends = []

    def watched(_, text, end, start, arrowprops):
        if arrowprops["linestyle"] == "--":
            ends.append((start, end))

    monkeypatch.setattr(
        plots.Axes,
        "annotate",
        lambda *a, arrowprops, **__: watched(*a, {"linestyle": "-"} | arrowprops),
    )
    rows = {"net": [*trunk("trunk"), *plots.new("head")], "": [None, *plots.new("branch")]}
    losses = [("head", "label", "CE"), ("branch", "label", "CE")]
    plots.scheme(plots.Scheme(rows, losses))
    start, end = ends[-1]
    assert end[1] - start[1] == pytest.approx(rows_up * plots.DOWN)
    assert (end[0] < plots.ACROSS) == bool(rows_up)  # left of the branch, or below it


def test_a_join_needs_blocks(shown):
    with pytest.raises(ValueError, match="a loss or a join needs a block, and there is no 'fc9'"):
        plots.scheme(two_rows(joins=[("second head", "fc9")]))
    plt.close("all")


def test_kinds_of_blocks_differ_without_colour():
    looks = [(look.get("hatch"), look["linewidth"]) for look in plots.BLOCKS.values()]
    assert len(set(looks)) == len(looks) == 3
