"""Exercises on what a domain, a task and a setting are, of the chapter on transfer learning."""

from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from tlcourse.chapters import SETTINGS
from tlcourse.exercises._compare import Told, short, tried
from tlcourse.exercises._exercise import Exercise, Function

Signs = tuple[bool, ...]
OfTable = Callable[[Tensor], Tensor]

WRITTEN = ("=", "≠"), ("=", "≠"), ("+", "-"), ("+", "-")
QUESTIONS = "the same domain, the same task, labels of the source, labels of the target"
REASONS = {  # of each question's wrong answer
    "scans": (
        "Another device makes other pictures: inputs are distributed differently.",
        "Both clinics ask for fractures; how pictures look is a matter of the domain.",
        "The first clinic's scans are labelled; there are no other labels.",
        "Nobody has labelled the second clinic's scans.",
    ),
    "accents": (
        "The same words sound different, so inputs are distributed differently.",
        "The words to be recognised are the same; only how they sound is not.",
        "The texts of the many recordings are their labels.",
        "Some of its recordings have texts: few labels are labels.",
    ),
    "phone": (
        "The photographs are the same; another network is no other domain.",
        "The question is the same; a smaller network is no other task.",
        "The large network has learnt from labels.",
        "The photographs come with their labels, also for the small network.",
    ),
    "road": (
        "The pictures are the same, whatever is asked about them.",
        "A kind and a distance are different labels: the task is another.",
        "The kind of each pixel is a label.",
        "The distance of each pixel is a label, though it is a number.",
    ),
    "moles": (
        "Skin looks unlike photographs of things: inputs are distributed differently.",
        "Which thing it is, and whether it is harmless: these labels have nothing in common.",
        "The photographs of things are labelled.",
        "The pictures of skin are labelled: fine-tuning needs that.",
    ),
    "reviews": (
        "Books and reviews are both text, but of other words: inputs are distributed differently.",
        "To guess a word and to give stars are different tasks.",
        "Nobody has labelled the books: the missing word comes from the text itself.",
        "500 reviews have their stars: few labels are labels.",
    ),
}


def signs_of(situation: str) -> Signs:
    """Each is another setting; its name stands beside it."""
    signs = {
        "scans": (False, True, True, False),  # domain adaptation
        "accents": (False, True, True, True),  # domain adaptation with labels
        "phone": (True, True, True, True),  # ordinary learning
        "road": (True, False, True, True),  # multi-task learning
        "moles": (False, False, True, True),  # inductive transfer
        "reviews": (False, False, False, True),  # self-taught learning
    }
    return signs[situation]


def what_differs(source: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """A domain has the sums of rows, a task each row divided by its sum."""
    P_S, P_T = source / source.sum(), target / target.sum()
    x_S, x_T = P_S.sum(1), P_T.sum(1)
    domain = (x_S - x_T).abs().max()
    task = (P_S / x_S[:, None] - P_T / x_T[:, None]).abs().max()
    return domain, task


def setting(signs: Signs) -> str:
    """The name that the table of the course has for it."""
    case = "".join(yes if sign else no for sign, (yes, no) in zip(signs, WRITTEN))
    return next(one.name for one in SETTINGS if case in one.table + one.ours)


def reason(situation: str, signs: Signs) -> str:
    """What is wrong with four signs, by the first wrong one."""
    pairs = zip(signs, signs_of(situation), REASONS[situation])
    why = next(why for sign, right, why in pairs if sign != right)
    name = setting(signs)
    same = name == setting(signs_of(situation))
    said = f"is {name}, but not by these signs" if same else f"would be {name}"
    return f'"{situation}" {said}. {why}'


def judged_by_reasons(answer: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The four signs, or what is to be said of them."""
    situation, found = inputs["situation"], answer(**inputs)
    if isinstance(found, list | tuple) and any(sign is ... for sign in found[:4]):
        raise Told(f'Not attempted yet: "{situation}" has no signs.')
    signs = tried(_four, None, found)
    if signs is None:
        got = short(found)[:60]
        raise Told(f"Not yet: return four of True and False: {QUESTIONS}; got {got}.")
    if signs != signs_of(situation):
        raise Told(f"Not yet: {reason(situation, signs)}")
    return {"": str(signs)}


def _four(found: Any) -> Signs | None:
    if isinstance(found, Tensor | np.ndarray) and found.shape == (4,):
        found = found.tolist()
    fits = isinstance(found, list | tuple) and len(found) == 4 and {*found} <= {True, False}
    return tuple(map(bool, found)) if fits else None


def two_numbers(answer: Function, inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Each by its name."""
    found = answer(**inputs)
    if tried(len, 0, found) != 2:
        raise Told("Not yet: return two numbers: how far P(x) and P(y | x) differ.")
    return dict(zip(("how far P(x) differs", "how far P(y | x) differs"), found))


def _for_situation(g: Generator, size: int) -> dict[str, Any]:
    return {"situation": [*REASONS][(size - 1) % len(REASONS)]}


def _for_tables(g: Generator, size: int) -> dict[str, Any]:
    """First another domain, then another task, then neither; then both, in larger tables."""
    source = torch.tensor([[6.0, 2.0], [3.0, 9.0]])
    first = ([[3.0, 1.0], [9.0, 27.0]], [[2.0, 6.0], [9.0, 3.0]], [[12.0, 4.0], [6.0, 18.0]])
    if size <= len(first):
        return {"source": source, "target": torch.tensor(first[size - 1])}
    shape = 2 + size % 3, 2 + size % 2
    return {name: torch.randint(1, 20, shape, generator=g).float() for name in ("source", "target")}


def _changed(situation: str, i: int) -> tuple[str, Function]:
    """The signs with one of them wrong, and what is said of it."""
    right = signs_of(situation)
    wrong = (*right[:i], not right[i], *right[i + 1 :])
    return reason(
        situation, wrong
    ), lambda situation_: wrong if situation_ == situation else signs_of(situation_)


def _joint(n: Tensor) -> Tensor:
    return n / n.sum()


def _of_x(n: Tensor) -> Tensor:
    return n.sum(1) / n.sum()


def _of_y(n: Tensor) -> Tensor:
    return n.sum(0) / n.sum()


def _y_given_x(n: Tensor) -> Tensor:
    return n / n.sum(1, keepdim=True)


def _x_given_y(n: Tensor) -> Tensor:
    return n / n.sum(0)


def _largest(difference: Tensor) -> Tensor:
    return difference.abs().max()


def _differ(
    of_domain: OfTable = _of_x, of_task: OfTable = _y_given_x, far: OfTable = _largest
) -> Function:
    """A version of the two numbers: what is compared of each table, and how."""
    return lambda source, target: tuple(
        far(part(source) - part(target)) for part in (of_domain, of_task)
    )


EXERCISES: dict[str, Exercise] = {
    "marginal_of_a_sample": Exercise(
        title="the same pictures, the same question?",
        task="Two samples were counted: rows are inputs x, columns are labels y, and `source` and "
        "`target` hold how often each pair came. One may be larger than the other. A domain has "
        "P(x), a task P(y | x). Complete `my_differences(source, target)`: two numbers, the "
        "largest absolute difference between both samples' P(x), and that between their P(y | x). "
        "By hand first: `source` is [[6, 2], [3, 9]] and `target` [[3, 1], [9, 27]]. Is it "
        "another domain, another task, or both?",
        kind="complete",
        difficulty=1,
        minutes=5,
        reference=what_differs,
        draw=_for_tables,
        see=two_numbers,
        mistakes=[
            (
                "P(x, y) is compared where P(x) should be; sum each row over its labels.",
                _differ(_joint),
            ),
            (
                "the first number compares P(y), shares of labels: columns are added up instead "
                "of rows.",
                _differ(_of_y),
            ),
            (
                "the first number compares counts; divide by the size of each sample.",
                _differ(lambda n: n.sum(1)),
            ),
            (
                "the conditional is the wrong way round, P(x | y): divide each row by its own "
                "sum, not each column.",
                _differ(of_task=_x_given_y),
            ),
            (
                "P(x, y) is compared where P(y | x) should be: rows do not add up to 1. Divide "
                "each by its own sum.",
                _differ(of_task=_joint),
            ),
            (
                "the second number compares counts; divide each row by its own sum.",
                _differ(of_task=lambda n: n),
            ),
            (
                "both numbers compare counts; divide by the size of each sample, or of each row.",
                _differ(lambda n: n.sum(1), lambda n: n),
            ),
            (
                "the second number compares P(y), as if labels did not depend on inputs.",
                _differ(of_task=_of_y),
            ),
            (
                "rows and columns are exchanged: these are P(y) and P(x | y).",
                _differ(_of_y, _x_given_y),
            ),
            (
                "both numbers compare P(x, y), in which domain and task are mixed.",
                _differ(_joint, _joint),
            ),
            (
                "the two numbers are exchanged: P(x) comes first.",
                _differ(_y_given_x, _of_x),
            ),
            (
                "these are sums of differences; the largest one is asked for.",
                _differ(far=lambda d: d.abs().sum()),
            ),
            (
                "these are means of differences; the largest one is asked for.",
                _differ(far=lambda d: d.abs().mean()),
            ),
            (
                "the differences have their signs, so one below 0 counts for nothing.",
                _differ(far=torch.max),
            ),
        ],
        hints=[
            "How many of all samples are in the first row? And of these, how many have label 0?",
            "`source.sum(1)` counts each x. What must it be divided by, and what is divided by it?",
            "P(x) is `source.sum(1) / source.sum()`, and P(y | x) is `source / source.sum(1, "
            "keepdim=True)`; then `.abs().max()` of each difference.",
        ],
    ),
    "name_the_setting": Exercise(
        title="six situations",
        task="Complete `my_signs(situation)`: four of True and False, whether the domain is the "
        "same, the task is the same, the source has labels, the target has any.\n"
        '"scans": labelled scans of one clinic teach a network fractures; another clinic, with '
        "another device, asks the same of unlabelled ones.\n"
        '"accents": many recordings with their texts teach it words; of another accent, a few have '
        "texts.\n"
        '"phone": a large network has learnt labelled photographs; these, labels and all, teach a '
        "small one the same.\n"
        '"road": of one set of pictures, kind and distance of each pixel are known; a network that '
        "knows kinds learns distances.\n"
        '"moles": a network names things in labelled photographs; labelled pictures of skin teach '
        "it whether a mole is harmless.\n"
        '"reviews": a network has guessed words left out of books; 500 reviews with stars teach '
        "it stars.",
        kind="complete",
        difficulty=1,
        minutes=8,
        core=True,
        reference=signs_of,
        draw=_for_situation,
        see=judged_by_reasons,
        mistakes=[_changed(situation, i) for situation, i in product(REASONS, range(4))],
        hints=[
            "Do the two have the same inputs, equally often? Then it is one domain. Do they have "
            "the same labels, with the same meaning? Then it is one task.",
            "Of a network's size nothing is asked. Few labels are labels. What is taken from an "
            "input itself is none.",
            "Only one has the same domain and the same task. Two more have the same task, and "
            "one more the same domain. All sources have labels but one, and so have all targets.",
        ],
    ),
}
