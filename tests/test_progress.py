"""A bar of text, which a saved notebook needs no kernel for."""

import io
import sys
from types import SimpleNamespace

import IPython
import pytest

from tlcourse.progress import progress_bar


@pytest.fixture
def shown(monkeypatch):
    """A notebook's cell: the texts that its one output has shown."""
    texts = []
    handle = SimpleNamespace(update=lambda data, raw: texts.append(data["text/plain"]))
    monkeypatch.setattr(IPython, "get_ipython", lambda: SimpleNamespace(kernel=object()))
    monkeypatch.setattr("IPython.display.display", lambda data, **options: handle)
    return texts


def test_in_a_notebook_one_output_is_written_over_and_empty_in_the_end(shown, capsys):
    with progress_bar(total=3, desc="fit", leave=False, mininterval=0) as bar:
        for _ in range(3):
            bar.update()
    assert any(text.startswith("fit: 100%") for text in shown)
    assert all("\r" not in text and "\n" not in text and len(text) <= 80 for text in shown)
    assert shown[-1] == ""
    assert capsys.readouterr() == ("", "")


def test_a_bar_that_stays_shows_its_end(shown):
    with progress_bar(total=2, leave=True, mininterval=0) as bar:
        bar.update(2)
    assert "2/2" in shown[-1]


def test_a_disabled_bar_shows_nothing(shown):
    with progress_bar(total=2, disable=True) as bar:
        bar.update(2)
    assert shown == []


def test_in_a_terminal_it_is_a_line_of_stderr(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with progress_bar(total=2, mininterval=0) as bar:
        bar.update(2)
    assert "2/2" in sys.stderr.getvalue()
