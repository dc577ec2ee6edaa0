"""Which setting is this? Four questions about source and target, and the methods that fit."""

from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

import traitlets

from tlcourse.methods._checks import expect
from tlcourse.widgets._base import CourseWidget, Flag, module

SETTING = ("name", "table", "ours", "why")
METHOD = ("name", "chapter", "notebook", "written", "matches", "fits")
CASES = ["".join(signs) for signs in product("=≠", "=≠", "+-", "+-")]


class ScenarioWidget(CourseWidget):
    """Four questions name the setting, say why, and light up the methods that fit.

    settings: dicts of name, why, and the cases with this name, in `table` those of a published
    table, in `ours` those of our reading; a case is four signs: domains the same (=) or not (≠),
    tasks likewise, labels of the source (+) or none (-), of the target likewise; together the
    settings hold all 16, each once. methods: dicts of name, chapter, notebook, written (else there
    is no link), matches, and fits, names of settings. here: the notebook that shows it, which is
    not linked. The answers same_domain, same_task, source_labels and target_labels are synced.
    Raises ValueError for tables that do not fit.
    """

    _esm = module("scenario")
    same_domain = Flag(True).tag(sync=True)
    same_task = Flag(True).tag(sync=True)
    source_labels = Flag(True).tag(sync=True)
    target_labels = Flag(True).tag(sync=True)
    settings = traitlets.List(traitlets.Dict()).tag(sync=True)
    methods = traitlets.List(traitlets.Dict()).tag(sync=True)
    here = traitlets.Unicode("").tag(sync=True)

    def __init__(
        self,
        settings: Sequence[Mapping[str, Any]],
        methods: Sequence[Mapping[str, Any]],
        **state: Any,
    ) -> None:
        known = [_of("a setting", SETTING, each) for each in settings]
        named = [each["name"] for each in known]
        expect(len({*named}) == len(named), f"settings must have different names, got {named}")
        held = [case for each in known for case in (*each["table"], *each["ours"])]
        wrong = sorted({*held} ^ {*CASES} or {case for case in held if held.count(case) > 1})
        expect(not wrong, f"settings must hold each of the 16 cases once, look at {wrong}")
        shown = [_of("a method", METHOD, each) for each in methods]
        expect(len(shown) >= 1, "methods must be at least one, got none")
        for each in shown:
            other = ", ".join(name for name in each["fits"] if name not in named)
            expect(not other, f"{each['name']!r} fits settings that are not there: {other}")
        super().__init__(settings=known, methods=shown, **state)


def _of(what: str, keys: Sequence[str], given: Any) -> dict[str, Any]:
    """What of a dict the widget needs, in values of JSON."""
    missing = [key for key in keys if key not in given]
    expect(not missing, f"{what} must have {', '.join(missing)}, got {given!r}")
    return {key: [*v] if isinstance(v := given[key], tuple) else v for key in keys}
