"""The methods of the course in one table: what each matches, freezes and adds, and where it fits.

The settings are those of Pan and Yang 2010, "A survey on transfer learning": table 1 asks whether
domains and tasks agree, table 2 which labels there are, and section 2.3 says both in words. (Their
table 3 is about what is transferred.) Cases that these leave open are marked as our reading.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from textwrap import fill
from typing import Any

from matplotlib.axes import Axes
from matplotlib.patches import Circle, FancyBboxPatch, Rectangle

from tlcourse.methods._checks import expect
from tlcourse.plots import BLACK, BLOCKS, VERMILLION, figure, show

ORDINARY = "ordinary learning"
SEMI_SUPERVISED = "semi-supervised learning"
UNSUPERVISED = "unsupervised learning"
ADAPTATION = "transductive transfer: domain adaptation"
ADAPTATION_WITH_LABELS = "domain adaptation with labels"
MULTI_TASK = "inductive transfer: multi-task learning"
INDUCTIVE = "inductive transfer"
SELF_TAUGHT = "inductive transfer: self-taught learning"
UNSUPERVISED_TRANSFER = "unsupervised transfer"
UNASKED = "a new task without labels"


@dataclass(frozen=True)
class Setting:
    """A setting of transfer learning, why it has its name, and which cases are called so.

    A case is four signs: the domains are the same (=) or not (≠), so are the tasks; source and
    target have labels (+) or none (-). table: cases of Pan and Yang; ours: what we count as such.
    """

    name: str
    table: tuple[str, ...]
    ours: tuple[str, ...]
    why: str


@dataclass(frozen=True)
class Method:
    """A method: its notebook, what it matches, freezes and adds ("" is nothing), where it fits.

    written: whether its notebook has it yet.
    """

    name: str
    notebook: str
    matches: str
    freezes: str
    adds: str
    fits: tuple[str, ...]
    written: bool = True

    @property
    def chapter(self) -> int:
        """The number that the notebook's name begins with."""
        return int(self.notebook[:2])


SETTINGS = (
    Setting(
        ORDINARY,
        ("==++", "==+-"),
        (),
        "Nothing differs, so by the definition nothing is transferred; from one network to another "
        "something can be, and the lecture's map puts distillation here.",
    ),
    Setting(
        SEMI_SUPERVISED,
        (),
        ("==-+",),
        "The source is more of the target's own inputs, without labels: all of them show what "
        "inputs are like, and the target's labels say what they mean.",
    ),
    Setting(
        UNSUPERVISED,
        (),
        ("==--",),
        "One kind of inputs and not one label: there may be structure to find, but nothing is "
        "transferred.",
    ),
    Setting(
        ADAPTATION,
        ("≠=+-",),
        (),
        "The source's labels answer the right question, but about other inputs, and the target has "
        "no labels to learn from.",
    ),
    Setting(
        ADAPTATION_WITH_LABELS,
        (),
        ("≠=++",),
        "The question is the same and the inputs are not; some target labels say how to correct "
        "what the source taught.",
    ),
    Setting(
        MULTI_TASK,
        ("=≠++",),
        (),
        "Two questions about the same inputs, with labels for both: one network can learn them "
        "together, or one after the other.",
    ),
    Setting(
        INDUCTIVE,
        ("≠≠++",),
        (),
        "Another question about other inputs: the source gives features to begin with, and the "
        "target's labels say what is asked now.",
    ),
    Setting(
        SELF_TAUGHT,
        ("=≠-+", "≠≠-+"),
        ("≠=-+",),
        "The source has no labels, so it can only teach what inputs are like; what to say of them, "
        "the target's labels must teach.",
    ),
    Setting(
        UNSUPERVISED_TRANSFER,
        ("≠≠--",),
        ("=≠--", "≠=--"),
        "There is no label anywhere: features of the source can help to group the target's inputs, "
        "or to describe them with fewer numbers.",
    ),
    Setting(
        UNASKED,
        (),
        ("=≠+-", "≠≠+-"),
        "The source's labels answer another question, and no target label says what the new one "
        "asks: that must be told in some other way, in words for example.",
    ),
)

SCENARIOS, TUNING = "01_what_is_transfer_learning.ipynb", "02_fine_tuning.ipynb"
TASKS, SEQUENCES = "06_multi_task_learning.ipynb", "07_continual_learning.ipynb"
NEW_QUESTION = (INDUCTIVE, MULTI_TASK)
START = (*NEW_QUESTION, SELF_TAUGHT, ADAPTATION_WITH_LABELS)  # a trained network is all it takes
SHIFT = (ADAPTATION, ADAPTATION_WITH_LABELS)

METHODS = (
    Method("domain-adversarial training", SCENARIOS, "features of both domains, labels", "",
           "a domain classifier", SHIFT),
    Method("CORAL", SCENARIOS, "covariances of features, labels", "", "", SHIFT),
    Method("fine-tuning", TUNING, "labels", "lower layers or none", "a head", START),
    Method("growing", TUNING, "labels", "old layers or none", "units or a layer", START),
    Method("distillation", "03_knowledge_distillation.ipynb", "soft targets, labels",
           "the teacher", "", (ORDINARY, SEMI_SUPERVISED)),
    Method("attention transfer", "04_attention_transfer.ipynb", "attention maps, labels",
           "the teacher", "", (ORDINARY, *NEW_QUESTION)),
    Method("Jacobian matching", "05_jacobian_matching.ipynb", "Jacobians, answers",
           "the teacher", "", (ORDINARY, *NEW_QUESTION)),
    Method("selective joint fine-tuning", TASKS, "labels of target and source", "",
           "a second head", (INDUCTIVE, ADAPTATION_WITH_LABELS)),
    Method("uncertainty weighting", TASKS, "labels of several tasks", "",
           "a noise for each task", (MULTI_TASK,)),
    Method("learning without forgetting", SEQUENCES, "labels, its own old answers",
           "a copy of itself", "a head", NEW_QUESTION),
    Method("progressive networks", SEQUENCES, "labels or rewards", "all old columns",
           "a column, adapters", (*NEW_QUESTION, ADAPTATION_WITH_LABELS), written=False),
)  # fmt: skip


def scenarios() -> dict[str, list[dict[str, Any]]]:
    """Both tables as plain dicts: `ScenarioWidget(**scenarios())`."""
    methods = [asdict(one) | {"chapter": one.chapter} for one in METHODS]
    return {"settings": [asdict(one) for one in SETTINGS], "methods": methods}


COLUMNS = {"matches": (1.89, 1.4), "freezes": (3.34, 0.97), "adds": (4.38, 0.97)}  # left, width
HIGH, RIGHT = 0.47, 5.42  # of a line, and the end of it


def course_map(lit: str = "") -> None:
    """Show what every method matches, freezes and adds; lit: a method whose chapter is lit up.

    Raises ValueError for a method that the course does not have.
    """
    known = {method.name: method.chapter for method in METHODS}
    expect(lit in ("", *known), f"lit must be one of {', '.join(known)}, got {lit!r}")
    here = known.get(lit)
    top = len(METHODS) * HIGH
    fig, axes = figure(size=(RIGHT, top + 0.46))
    fig.set_layout_engine("constrained", w_pad=0, h_pad=0)
    axes.set(xlim=(0, RIGHT), ylim=(-0.04, top + 0.42))
    axes.axis("off")
    for name, (left, width) in COLUMNS.items():
        words: dict[str, Any] = {"ha": "center", "va": "center", "weight": "bold", "fontsize": 11}
        axes.text(left + width / 2, top + 0.22, name, **words)
    for chapter, group in groupby(METHODS, lambda method: method.chapter):
        methods = list(group)
        _chapter(axes, chapter, methods, top, lit=chapter == here)
        top -= len(methods) * HIGH
    said = [f"Chapter {m.chapter}, {m.name}: {_words(m)}." for m in METHODS]
    where = f" Chapter {here} is lit up." if here else ""
    show(fig, f"The map of the course, a line for each method.{where} {' '.join(said)}")


def _words(method: Method) -> str:
    return f"matches {method.matches}; freezes {method.freezes or 'nothing'}; adds " + (
        method.adds or "nothing"
    )


def _chapter(axes: Axes, chapter: int, methods: Sequence[Method], top: float, lit: bool) -> None:
    """The lines of a chapter from `top` down, its number beside them."""
    high = len(methods) * HIGH
    axes.plot([0, RIGHT], [top, top], color="#bbbbbb", linewidth=0.8)
    if lit:
        style: dict[str, Any] = {"facecolor": "#fdf0cf", "edgecolor": BLACK, "linewidth": 2.2}
        axes.add_patch(Rectangle((0.02, top - high + 0.02), RIGHT - 0.04, high - 0.04, **style))
    middle = (0.2, top - high / 2)
    axes.add_patch(Circle(middle, 0.125, color=BLACK if lit else "#e4e4e4", linewidth=0, zorder=3))
    ink: dict[str, Any] = {"color": "white" if lit else BLACK}
    ink |= {"weight": "bold" if lit else "normal", "zorder": 4}
    axes.text(*middle, str(chapter), ha="center", va="center_baseline", fontsize=10, **ink)
    for i, method in enumerate(methods):
        y = top - (i + 0.5) * HIGH
        weight = "bold" if lit else "normal"
        name: dict[str, Any] = {"va": "center", "fontsize": 9.5, "weight": weight}
        axes.text(0.39, y, fill(method.name, 19, break_on_hyphens=False), linespacing=1.05, **name)
        for column, (left, width) in COLUMNS.items():
            if text := getattr(method, column):
                _mark(axes, column, text, (left, y), width)


def _mark(axes: Axes, column: str, text: str, at: tuple[float, float], width: float) -> None:
    """What is matched beside the arrow of a loss; what is frozen or added in its block."""
    (x, y), lines = at, fill(text, 17 if column == "matches" else 12)
    words: dict[str, Any] = {"va": "center", "fontsize": 9.5, "linespacing": 1.0}
    if column == "matches":
        arrow = {"arrowstyle": "<|-|>", "color": VERMILLION, "linewidth": 1.5}
        ends = (x + 0.19, y), (x, y)
        axes.annotate("", *ends, arrowprops={**arrow, "shrinkA": 0, "shrinkB": 0})
        axes.text(x + 0.23, y, lines, **words)
        return
    look = BLOCKS["frozen" if column == "freezes" else "new"]
    style: dict[str, Any] = {"boxstyle": "round,pad=0,rounding_size=0.06", **look}
    axes.add_patch(FancyBboxPatch((x, y - 0.18), width, 0.36, **style))
    inside = axes.text(x + width / 2, y, lines, ha="center", **words)
    if column == "freezes":
        inside.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.85})
