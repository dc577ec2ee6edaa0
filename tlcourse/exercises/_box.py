"""How exercises look in a notebook and on a saved page: a box, with hints and solution folded."""

import ast
import inspect
import re
import textwrap
from html import escape

from IPython.display import display

from tlcourse.exercises._exercise import Exercise

BOX = (
    "border:1px solid var(--jp-border-color2,#d0d0d0);border-left:5px solid #e69f00;"
    "border-radius:8px;padding:.6em .9em;max-width:800px;line-height:1.5"
)
PRE = (  # a solution has at most 88 columns; 100 fit the box
    "overflow-x:auto;white-space:pre;background:var(--jp-layout-color2,#f3f3f3);padding:.6em .8em;"
    "border-radius:5px;font:12px/1.5 var(--jp-code-font-family,monospace)"
)


def box(exercise: Exercise) -> None:
    """Show title, kind, difficulty, minutes and task, and, folded, each hint and the solution."""
    kind, level, minutes = exercise.kind, exercise.difficulty, f"{exercise.minutes} minutes"
    optional = "" if exercise.core else " · optional"
    facts = f"{kind} · {'●' * level}{'○' * (3 - level)} · {minutes}{optional}"
    spoken = f"{kind}, difficulty {level} of 3, {minutes}"
    folded = [
        _details(f"Hint {i} of {len(exercise.hints)}", f"<p>{_words(text)}</p>")
        for i, text in enumerate(exercise.hints, 1)
    ]
    folded.append(_details("Solution", _code(source(exercise))))
    page = (
        f'<div style="{BOX}"><strong>Exercise: {escape(exercise.title)}</strong><br>'
        f'<span role="img" aria-label="{spoken}" style="opacity:.75">{facts}</span>'
        f"<p>{_words(exercise.task)}</p>{''.join(folded)}</div>"
    )
    _show(page, f"Exercise: {exercise.title} ({facts})\n{exercise.task}")


def fold(title: str, code: str) -> None:
    """Show code under a title that folds out."""
    _show(_details(title, _code(code)), f"{title}:\n{code}")


def source(exercise: Exercise) -> str:
    """The source of the reference, under the name that the answer has."""
    text = textwrap.dedent(inspect.getsource(exercise.reference)).rstrip()
    (function,) = ast.parse(text).body
    assert isinstance(function, ast.FunctionDef)
    body = text.splitlines()[function.body[0].lineno - 1 :]
    return "\n".join([f"def {exercise.signature}:", *body])


def _show(page: str, text: str) -> None:
    display({"text/html": page, "text/plain": text}, raw=True)


def _details(title: str, content: str) -> str:
    return f'<details><summary style="cursor:pointer">{escape(title)}</summary>{content}</details>'


def _code(text: str) -> str:
    return f'<pre style="{PRE}"><code style="all:unset">{escape(text)}</code></pre>'


def _words(text: str) -> str:
    """Plain text, where `backticks` mark code; line breaks stay."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text)).replace("\n", "<br>")
