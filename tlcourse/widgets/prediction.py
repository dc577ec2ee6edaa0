"""Predict first, then look: a question whose answer was measured."""

from collections.abc import Sequence

import numpy as np
import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Flag, Number, Whole, array, module, number


class PredictionWidget(CourseWidget):
    """A question, the learner's answer and reason; then the measured value, and why in a sentence.

    With `choices`, answer is one of them. Without, answer is a number, measured with an interval
    (low, high), in `unit`. What the learner does is in `choice` or `number` (None until set),
    `because`, `sure` (percent), `revealed` and `surprise`: synced, and kept with the notebook. The
    answer is not on the page before it is asked for, but it is in the page's source. Raises
    ValueError for an answer that is not among the choices, a number that is not finite, or an
    interval that does not hold it.
    """

    _esm = module("prediction")
    question = traitlets.Unicode().tag(sync=True)
    choices = traitlets.List(traitlets.Unicode()).tag(sync=True)
    unit = traitlets.Unicode().tag(sync=True)
    answer = traitlets.Unicode().tag(sync=True)
    low = Number().tag(sync=True)
    high = Number().tag(sync=True)
    why = traitlets.Unicode().tag(sync=True)
    choice = traitlets.Unicode("").tag(sync=True)
    number = Number(None, allow_none=True).tag(sync=True)
    because = traitlets.Unicode("").tag(sync=True)
    sure = Whole(50, min=0, max=100).tag(sync=True)
    revealed = Flag(False).tag(sync=True)
    surprise = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        question: str,
        *,
        answer: str | float,
        why: str,
        choices: Sequence[str] = (),
        interval: tuple[float, float] | None = None,
        unit: str = "",
    ) -> None:
        expect(bool(question.strip()), "question must not be empty")
        low = high = 0.0
        if choices:
            unique = len(set(choices)) == len(choices) and "" not in choices
            expect(
                unique and len(choices) > 1,
                f"choices must be at least two different texts, got {list(choices)}",
            )
            expect(answer in choices, f"answer must be one of {list(choices)}, got {answer!r}")
        else:
            answer = number("answer", answer)
            ends = array((answer, answer) if interval is None else interval)
            expect(ends.shape == (2,), f"interval must be two numbers, got {interval!r}")
            low, high = (number("an end of interval", end) for end in ends)
            expect(
                low <= answer <= high,
                f"interval must hold the answer {answer:g}, got {low:g} to {high:g}",
            )
        text = answer if isinstance(answer, str) else _plain(answer)
        super().__init__(
            question=question,
            choices=list(choices),
            unit=unit,
            answer=text,
            low=float(_plain(low)),
            high=float(_plain(high)),
            why=why,
        )


def _plain(number: float) -> str:
    """Three digits, as one would say it: 67.8, not 67.83333; 1000, not 1e+03; 0.00002, not 2e-5."""
    if abs(number) >= 999.5:
        return f"{number:.0f}"
    three = float(f"{number:.3g}") + 0.0  # never -0
    return np.format_float_positional(three, trim="-") if abs(three) >= 1e-6 else f"{three:g}"
