"""Tables that read without colour, as HTML and as text."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from math import nan

import pandas as pd
import pytest

from tlcourse.claims import NOT_TESTABLE, Verdict
from tlcourse.experiments import ledger
from tlcourse.tables import (
    Cell,
    Table,
    compare,
    differences,
    drawn_interval,
    verdicts,
    with_interval,
)

CHAPTERS = [
    "what_is_transfer_learning",
    "fine_tuning",
    "knowledge_distillation",
    "attention_transfer",
    "jacobian_matching",
    "multi_task_learning",
    "continual_learning",
]


class Balanced(HTMLParser):
    """Fails on a tag that is not closed where it should be."""

    def __init__(self):
        super().__init__()
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag != "br":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def whole(html):
    parser = Balanced()
    parser.feed(html)
    assert parser.open == []
    return html


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_every_claim_of_a_chapter_has_its_line_and_its_verdict_in_words(chapter):
    html, text = whole(verdicts(chapter)._repr_html_()), repr(verdicts(chapter))
    entries = [e for e in ledger() if e.experiment.chapter == chapter]
    assert html.count('<th scope="row"') == len(entries)
    for entry in entries:
        assert f"<small>{entry.claim.id}</small>" in html
        line = next(s for s in text.splitlines() if s.startswith(f"{entry.claim.id} "))
        assert entry.claim.sentence in line
        assert entry.found.verdict in html
    assert "<caption>" in html


def test_claims_stand_in_the_order_of_their_numbers_and_can_be_chosen():
    found = [row[0].text.split()[0] for row in verdicts("knowledge_distillation").rows]
    assert found == ["I2", "K1", "K1", *(f"K{i}" for i in range(2, 12))]
    few = verdicts("knowledge_distillation", only=["K6", "K3"])
    assert [row[0].text.split()[0] for row in few.rows] == ["K3", "K6"]


def test_a_chapter_or_a_claim_that_is_not_there():
    with pytest.raises(ValueError, match="no experiment is of the chapter 'cooking'"):
        verdicts("cooking")
    with pytest.raises(ValueError, match="'attention_transfer' has no claim K1"):
        verdicts("attention_transfer", only=["A1", "K1"])


def test_a_count_is_squares_with_words():
    html = verdicts("continual_learning", only=["L4"])._repr_html_()
    assert "3 of 4" in html
    assert 'aria-label="3 clear, 1 open, 0 clear against it"' in html
    assert "■■■◧" in html
    assert "in how many of four pairs; at least 1 needed" in html


@pytest.mark.parametrize(
    ("chapter", "only", "said"),
    [
        ("knowledge_distillation", ["K1"], ""),
        ("knowledge_distillation", ["K1", "K3"], "90 % grey"),
        ("knowledge_distillation", ["K4"], None),
        ("attention_transfer", ["A9"], "grey"),
        ("attention_transfer", ["A3"], "Squares"),
        ("attention_transfer", [], "grey Squares"),
        ("knowledge_distillation", [], "90 % grey Squares"),
    ],
)
def test_the_legend_says_what_its_lines_need(chapter, only, said):
    legend = verdicts(chapter, only=only).legend
    known = ["90 %", "grey", "Squares"]
    assert " ".join(word for word in known if word in legend) == (said or "")
    assert ("95 %" in legend) == (said not in (None, "Squares"))


def test_how_counts_are_decided_is_said_under_them():
    """In the words of `claims.count`: as many as needed, or too few whatever the open ones do."""
    legend = verdicts("attention_transfer", only=["A3", "A5", "A6"]).legend
    assert "supported when as many as needed are clear" in legend
    assert "contradicted when even the open ones could not make enough" in legend


def test_what_was_fixed_beforehand_stands_beside_what_was_measured():
    html = verdicts("knowledge_distillation", only=["K3", "K4"])._repr_html_()
    assert "errors in 10,000; margin ±25<" in html
    assert "largest difference of a probability; tolerance 1e-12<" in html


def test_a_count_that_cannot_be_tested_says_why(monkeypatch):
    (entry,) = (e for e in ledger() if e.claim.id == "L4")
    found = replace(entry.found, verdict=NOT_TESTABLE, why="not shown here: it is better")
    monkeypatch.setattr("tlcourse.tables.ledger", lambda: [replace(entry, found=found)])
    html = whole(verdicts("continual_learning")._repr_html_())
    assert "in how many of four pairs; not shown here: it is better<" in html
    assert NOT_TESTABLE in html
    assert "■" not in html.split("<tbody>")[1]


@pytest.mark.parametrize("id", ["C1", "L2", "L4"])
def test_a_claim_without_its_record_has_its_line(id, monkeypatch):
    (entry,) = (e for e in ledger() if e.claim.id == id)
    nothing = replace(entry, status="missing", found=Verdict("", nan, nan, nan, 0))
    monkeypatch.setattr("tlcourse.tables.ledger", lambda: [nothing])
    html = whole(verdicts("continual_learning")._repr_html_())
    assert f"{entry.claim.sentence}<br>" in html
    assert "missing</span>" in html


@pytest.mark.parametrize(
    ("numbers", "digits", "text"),
    [
        ((67.83, 57.96, 77.71), None, "67.8 (58.0 to 77.7)"),
        ((-2.83, -9.84, 4.17), None, "−2.8 (−9.8 to 4.2)"),
        ((0.0248, 0.0224, 0.0272), None, "0.0248 (0.0224 to 0.0272)"),
        ((0.19, 0.177, 0.204), None, "0.19 (0.18 to 0.20)"),
        ((1019.0, 881.0, 1157.0), None, "1,019 (881 to 1,157)"),
        ((1.539, 0.33, 2.75), 1, "1.5 (0.3 to 2.8)"),
        ((3.0, nan, nan), None, "3.0"),
        ((83.0, 83.0, 83.0), 0, "83"),
    ],
)
def test_an_effect_with_its_interval(numbers, digits, text):
    assert with_interval(*numbers, digits) == text


def test_the_drawing_is_to_scale():
    svg = whole(drawn_interval(Verdict("", 5.0, 2.5, 7.5, 5), span=(0.0, 10.0)))
    assert 'cx="70.0"' in svg
    assert "M38.0 8H102.0" in svg
    assert "M6.0 0V16" in svg


def test_differences_share_one_axis():
    found = {"a < b": Verdict("", 1.0, 0.0, 2.0, 5), "c": Verdict("", 8.0, 6.0, 10.0, 5)}
    table = differences(found, unit="points")
    html = whole(table._repr_html_())
    assert "a &lt; b" in html
    assert [float(x) for x in re.findall(r'cx="([\d.]+)"', html)] == [18.8, 108.4]
    assert repr(table).splitlines()[1] == "a < b 1.0 (0.0 to 2.0)"


def test_the_lectures_numbers_beside_ours():
    ours = pd.DataFrame({"mean": [17.42], "low": [16.5], "high": [18.3]}, index=["alone"])
    columns = {"lecture": {"alone": 9.38, "AT": 8.93}, "ours": ours}
    table = compare(columns, {"alone": "student alone", "AT": "AT"})
    whole(table._repr_html_())
    assert [line.split() for line in repr(table).splitlines()] == [
        ["lecture", "ours"],
        ["student", "alone", "9.4", "17.4", "(16.5", "to", "18.3)"],
        ["AT", "8.9", "–"],
    ]


def test_no_header_cell_is_empty_and_texts_are_never_html():
    html = Table(["", "<i>"], [[Cell("<b>x</b>"), Cell("")]], "<u>")._repr_html_()
    assert "<thead><tr><td></td><th" in html
    assert not {"<i>", "<b>", "<u>"} & set(re.findall(r"<[^>]+>", html))
