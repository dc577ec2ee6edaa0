"""Imports run downwards only."""

import ast
import sys
from pathlib import Path

import pytest

from tlcourse.exercises import EXERCISES
from tlcourse.experiments import EXPERIMENTS

ROOT = Path(__file__).parents[1] / "tlcourse"
BASE = {"methods", "data", "scenes", "models", "checkpoints", "metrics"}
MAY_USE = {  # what a part may import of the rest; everyone may use methods._checks
    "methods": {"methods"},
    "data": set(),
    "scenes": {"data"},  # real pieces, with their labels and the names of their classes
    "models": set(),
    "checkpoints": {"data"},
    "metrics": set(),
    "training": {"data", "progress"},
    "claims": set(),
    "digests": set(),
    "lecture": set(),
    "results": {"claims", "data"},
    "progress": set(),
    "measure": {"claims", "digests", "progress", "results"},
    "experiments": BASE | {"training", "claims", "lecture", "measure", "results", "experiments"},
    "exercises": {"methods", "metrics", "training", "exercises", "chapters"},  # settings' names
    "widgets": {"widgets"},
    "plots": set(),
    "chapters": {"plots"},  # the methods of the course, and their map: for notebooks
    "publish": {"publish", "widgets"},
    "living": {"lecture", "results", "experiments"},  # these two are for notebooks and cli
    "tables": {"claims", "experiments"},
    "cli": {"data", "training", "measure", "experiments", "living", "publish"},
    "__main__": {"cli"},
    "__init__": set(),
}
METHODS_MAY_USE = {"torch", "numpy", "scipy", "skimage", "tlcourse"} | set(sys.stdlib_module_names)
FILES = sorted(ROOT.rglob("*.py"))


def imports(file: Path) -> set[str]:
    nodes = list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    sources = [node for node in nodes if isinstance(node, ast.ImportFrom)]
    assert all(node.level == 0 for node in sources), f"{file}: relative import"
    below = {
        f"tlcourse.{alias.name}"
        for node in sources
        if node.module == "tlcourse"
        for alias in node.names
    }
    return plain | {node.module or "" for node in sources if node.module != "tlcourse"} | below


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_imports_run_downwards(file):
    part = file.relative_to(ROOT).parts[0].removesuffix(".py")
    used = {
        name.split(".")[1]
        for name in imports(file)
        if name.startswith("tlcourse.") and name != "tlcourse.methods._checks"
    }
    assert used <= MAY_USE[part], f"{part} may not import {used - MAY_USE[part]}"


@pytest.mark.parametrize(
    "file", sorted((ROOT / "methods").glob("*.py")), ids=lambda file: file.name
)
def test_methods_depend_on_torch_and_arrays_alone(file):
    assert {name.split(".")[0] for name in imports(file)} <= METHODS_MAY_USE


def lines(*folders: str) -> int:
    return sum(
        len(file.read_text(encoding="utf-8").splitlines())
        for file in FILES
        if file.relative_to(ROOT).parts[0] in folders
    )


def test_the_package_stays_compact():
    of_chapters = {"experiments", "exercises", "widgets", "chapters.py"}
    page = {"plots.py", "tables.py", "living.py", "progress.py", "publish"}  # what a reader sees
    house = {file.relative_to(ROOT).parts[0] for file in FILES} - of_chapters - page - {"methods"}
    # the contract says 1,400; Jacobians, uncertainty, retrieval, adaptation, progressive networks
    # and sensitivity added the rest
    assert lines("methods") <= 2_410, "something is said twice"
    assert lines(*page) <= 1_300, "something is said twice"
    assert lines(*house) <= 3_175, "something is said twice"
    assert lines("chapters.py") <= 260, "a method is a line or two, a setting a sentence"


def test_what_belongs_to_chapters_stays_compact():
    """A verdict is what a learner is told: of a claim at a scale, or of a mistake in an answer."""
    claims = [
        scale for e in EXPERIMENTS.values() for c in e.claims for scale in c.scales or e.scales
    ]
    mistakes = [mistake for exercise in EXERCISES.values() for mistake in exercise.mistakes]
    verdicts = len(claims) + len(mistakes)
    assert lines("experiments", "exercises") <= 30 * verdicts, "something is said twice"
