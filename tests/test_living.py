"""Numbers in prose come from records, and say so."""

import nbformat
import pytest

from tlcourse import lecture
from tlcourse.experiments import EXPERIMENTS
from tlcourse.living import explain, fill, look_up, numbers, outdated, written
from tlcourse.results import read


def notebook(*texts):
    return nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell(text) for text in texts])


def number(address, shown):
    return f'<data value="{address}">{shown}</data>'


def test_a_claim_gives_its_effect_interval_verdict_and_the_lecture():
    record, claim = (
        read("distillation", "lecture"),
        next(c for c in EXPERIMENTS["distillation"].claims if c.id == "K1"),
    )
    found = record.judge(claim)
    assert look_up("K1.effect").value == found.effect
    assert look_up("K1.low").value == found.low
    assert look_up("K1.high").value == found.high
    assert look_up("K1.verdict").value == found.verdict == "supported"
    assert look_up("K1.paper").value == claim.paper
    full = read("mnist_table", "full").judge(EXPERIMENTS["mnist_table"].claims[0])
    assert look_up("K1@full.effect").value == full.effect != found.effect


def test_a_record_gives_means_ends_and_paired_differences():
    record = read("two_tasks", "live")
    table = record.summary("accuracy", task="old")
    assert look_up("two_tasks.live; accuracy; LwF; task=old").value == table["mean"]["LwF"]
    assert look_up("two_tasks.live; accuracy; LwF; task=old; low").value == table["low"]["LwF"]
    found = record.difference("LwF", "fine-tuning", "accuracy", task="old")
    address = "two_tasks.live; accuracy; LwF - fine-tuning; task=old"
    assert look_up(address).value == found.effect
    assert look_up(f"{address}; high").value == found.high
    width = read("distillation", "lecture").summary("errors", width=300)["mean"]["T=20"]
    assert look_up("distillation.lecture; errors; T=20; width=300").value == width


def test_the_lecture_gives_its_tables():
    found = look_up("lecture.CIFAR10; NIN ← NIN-wide; AT")
    assert found.value == lecture.CIFAR10["NIN ← NIN-wide"]["AT"]
    assert "lecture" in found.origin


def test_a_number_says_where_it_comes_from():
    origin = look_up("K3.effect").origin
    for part in ("K3", "distillation", "lecture scale", "seeds 0 to 5", "tlcourse run distill"):
        assert part in origin


@pytest.mark.parametrize(
    ("address", "said"),
    [
        ("K99.effect", "there is no claim K99"),
        ("K1.mean", "a claim has effect, low, high, verdict and paper"),
        ("K1@huge.effect", "there is no claim K1@huge"),
        ("", "there is no claim"),
        ("lecture.NONE; a; b", "NONE"),
        ("lecture.CIFAR10; a; b", "'a'"),
        ("lecture.CIFAR10; a", "missing"),
        ("nowhere.lecture; errors; alone", "nowhere has no record"),
        ("distillation.lecture; errors; alone", "name more coordinates"),
        ("distillation.lecture; errors; nobody; width=300", "nobody"),
        ("distillation.lecture; errors; alone; width=299", "no width=299"),
        ("distillation.lecture; errors; alone; width", "sequence"),
    ],
)
def test_an_address_that_leads_nowhere_says_so(address, said):
    with pytest.raises(ValueError, match="leads nowhere") as error:
        look_up(address)
    assert said in str(error.value)


@pytest.mark.parametrize(
    ("value", "shown", "text"),
    [
        (67.83, "0.0", "67.8"),
        (67.83, "?", "68"),
        (-2.83, "+1.5", "−2.8"),
        (2.83, "+1.5", "+2.8"),
        (1019.4, "1,000", "1,019"),
        (0.5, "0.50", "0.50"),
        (63.2, "60 %", "63"),
        ("supported", "contradicted", "supported"),
    ],
)
def test_a_number_is_written_as_it_is_shown(value, shown, text):
    assert written(value, shown) == text


def test_fill_writes_numbers_anew_and_leaves_words_to_be_read():
    book = notebook(
        f"By {number('K1.effect', '1.0')} errors. It is {number('K1.verdict', 'contradicted')}.",
        f"{number('K1.low', '0')} and **{number('K1.verdict', 'Supported')}**.",
    )
    assert len(outdated(book)) == 3
    fill(book)
    assert outdated(book) == ["K1.verdict: the text says 'contradicted', the record 'supported'"]
    shown = [text for _, text in numbers(book)]
    assert shown == ["67.8", "contradicted", "58", "Supported"]
    assert book.cells[0].source.startswith('By <data value="K1.effect">67.8</data> errors.')


def test_explain_gives_every_number_a_title_and_fill_takes_it_away_again():
    book = notebook(f"By {number('K1.effect', '67.8')}.")
    explain(book)
    assert 'title="claim K1: distillation, lecture scale' in book.cells[0].source
    assert outdated(book) == []
    fill(book)
    assert book.cells[0].source == f"By {number('K1.effect', '67.8')}."


def test_a_number_whose_record_is_gone_stays_without_a_title():
    book = notebook(number("nowhere.lecture; errors; alone", "3"))
    explain(book)
    assert book.cells[0].source == number("nowhere.lecture; errors; alone", "3")


def test_code_and_outputs_are_left_alone():
    code = nbformat.v4.new_code_cell(f"# {number('K1.effect', '1')}")
    book = nbformat.v4.new_notebook(cells=[code])
    fill(book)
    assert outdated(book) == []
    assert '<data value="K1.effect">1</data>' in book.cells[0].source
