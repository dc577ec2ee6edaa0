"""What code made a record: a digest of the syntax that decided its numbers, and of nothing else.

It begins at a function and follows the names that it uses, statement by statement, through the
modules of tlcourse. Docstrings, annotations, argument checks, asserts, the texts of errors and the
names of modules stay out, so rewording an error or moving a function leaves every record current.
"""

import ast
import hashlib
import importlib.util
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

import tlcourse

EVERYTHING = "*"
SHOWN = "tlcourse.progress"  # what it shows changes no row
HARMLESS = {  # calls that change nothing, so that an unused assignment of what they give may go
    *("all", "any", "bool", "dict", "float", "int", "isinstance", "join", "len", "list", "map"),
    *("max", "min", "numel", "repr", "set", "sorted", "str", "sum", "tuple", "type", "zip"),
}
UNMEASURED = {"seeds", "minutes", "workers", "choices"}  # fields of a scale that change no row
Place = tuple[str, str]  # a module, and a name in it or EVERYTHING
Node = tuple[str, int]  # a module, and the position of a statement in it


@dataclass(frozen=True)
class Code:
    """Where the code of an experiment begins, and the values of its scale.

    Plain words, so that a worker process can say which code it has loaded.
    """

    run: Place
    tune: Place | None
    scale: Place
    values: str

    @classmethod
    def of(cls, experiment: Any, plan: Any) -> "Code":
        """The code of an experiment at a scale."""
        values = {f.name: getattr(plan, f.name) for f in fields(plan) if f.name not in UNMEASURED}
        tune = _place(experiment.tune) if experiment.tune else None
        return cls(_place(experiment.run), tune, _place(type(plan)), repr(values))

    def digests(self) -> tuple[str, str]:
        """SHA-256 of what run reaches, and of what tune does ("" without one).

        Of what both reach, the second counts experiments only: seed 0 judges the rest for both.
        """
        run = _reached([self.run, self.scale])
        first = _digest(run, self.values)
        if self.tune is None:
            return first, ""
        tune = _reached([self.tune, self.scale])
        own = {node for node in tune if node not in run or not _is_house(node[0])}
        return first, _digest(own, self.values)


def code_digest(module: str, name: str = EVERYTHING) -> str:
    """SHA-256 of the syntax of a function, or of all of a module, and of what it uses."""
    return _digest(_reached([(module, name)]), "")


def forget_files() -> None:
    """Read the files again when the next digest is asked for."""
    _statements.cache_clear()
    _bindings.cache_clear()


def _place(thing: Any) -> Place:
    return thing.__module__, thing.__qualname__


def _is_house(module: str) -> bool:
    """Part of tlcourse, but not of its experiments."""
    return module.startswith("tlcourse.") and not module.startswith("tlcourse.experiments")


def _reached(places: Iterable[Place]) -> set[Node]:
    """The statements that define these names, and what they use, and so on."""
    found: set[Node] = set()
    todo = [node for place in places for node in _defining(*place)]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [used for nodes in _bindings(node).values() for used in nodes]
    return found


def _digest(nodes: set[Node], values: str) -> str:
    """Of each statement its syntax, and the syntax that each name in it is bound to."""
    texts = []
    for node in nodes:
        bindings = sorted(_bindings(node).items())
        bound = [(name, sorted(_text(n) for n in to if n in nodes)) for name, to in bindings]
        texts.append(f"{_text(node)} {bound}")
    return hashlib.sha256("\n".join([values, *sorted(texts)]).encode()).hexdigest()


def _text(node: Node) -> str:
    return _statements(node[0])[node[1]].text


@cache
def _bindings(node: Node) -> dict[str, list[Node]]:
    """The names that a statement uses, each with the statements that define it.

    Under "" stands what its module does when it is imported.
    """
    every = _statements(node[0])
    effects = [(node[0], i) for i, part in enumerate(every) if not part.defines]
    return {"": effects} | {name: _defining(*place) for name, place in every[node[1]].uses}


def _defining(module: str, name: str) -> list[Node]:
    """The statements that define a name, wherever it was imported from; all, if none is found."""
    every, nodes = _statements(module), []
    found = [i for i, statement in enumerate(every) if name in statement.defines]
    for i in found or range(len(every)):
        source = every[i].source
        nodes += _defining(*source) if source else [(module, i)]
    return nodes


@dataclass(frozen=True)
class _Statement:
    """A statement of a module.

    text: its bare syntax; defines: names (none: it does something); uses: names with their places;
    source: for an import from tlcourse, the place that it stands for.
    """

    text: str
    defines: frozenset[str]
    uses: tuple[tuple[str, Place], ...]
    source: Place | None


@cache
def _statements(module: str) -> list[_Statement]:
    """The statements of a module; an import of several names is one for each."""
    file = _file(module)
    if file is None:
        raise ValueError(f"module {module} has no source file")
    tree = ast.parse(file.read_text(encoding="utf-8"))
    body = [part for node in _Bare().visit(tree).body for part in _one_name_each(node)]
    defines = [_defined(node) for node in body]
    top = frozenset[str]().union(*defines)
    return [
        _Statement(_plain(node), names, tuple(_used(node, module, top)), _source(node))
        for node, names in zip(body, defines)
    ]


def _file(module: str) -> Path | None:
    """Where a module's source lies; of tlcourse's it is looked up without importing anything."""
    first, *rest = module.split(".")
    if first != "tlcourse":
        spec = importlib.util.find_spec(module)
        return Path(spec.origin) if spec and spec.origin else None
    bare = [Path(folder).joinpath(*rest) for folder in tlcourse.__path__]
    places = [place for b in bare for place in (b.with_suffix(".py"), b / "__init__.py")]
    return next((place for place in places if place.is_file()), None)


def _one_name_each(node: ast.stmt) -> list[ast.stmt]:
    if isinstance(node, ast.ImportFrom):
        return [ast.ImportFrom(node.module, [alias], node.level) for alias in node.names]
    return [node]


def _defined(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return frozenset({node.name})
    if isinstance(node, ast.Import | ast.ImportFrom):
        return frozenset(alias.asname or alias.name.split(".")[0] for alias in node.names)
    targets = node.targets if isinstance(node, ast.Assign) else []
    targets = [node.target] if isinstance(node, ast.AnnAssign | ast.AugAssign) else targets
    names = (part for target in targets for part in ast.walk(target))
    return frozenset(part.id for part in names if isinstance(part, ast.Name))


def _source(node: ast.AST) -> Place | None:
    """The place in tlcourse that an import of one name stands for."""
    if not isinstance(node, ast.Import | ast.ImportFrom):
        return None
    name = node.names[0].name
    if isinstance(node, ast.Import):
        return (name, EVERYTHING) if _is_module(name) else None
    whole = f"{node.module}.{name}"
    if _is_module(whole):
        return whole, EVERYTHING
    return (node.module, name) if node.module and _is_module(node.module) else None


def _used(node: ast.stmt, module: str, top: frozenset[str]) -> Iterator[tuple[str, Place]]:
    """The names in a statement that its module or an import inside it defines."""
    inside = [part for part in ast.walk(node) if isinstance(part, ast.Import | ast.ImportFrom)]
    for part in (one for several in inside for one in _one_name_each(several)):
        place = _source(part)
        if place and part is not node:
            yield next(iter(_defined(part))), place
    names = {part.id for part in ast.walk(node) if isinstance(part, ast.Name)} & top
    yield from ((name, (module, name)) for name in sorted(names))


def _is_module(name: str) -> bool:
    ours = name.startswith("tlcourse.") and not name.startswith(SHOWN)
    return ours and _file(name) is not None


class _Bare(ast.NodeTransformer):
    """Drops what cannot change a row: annotations, the texts of errors, docstrings and checks."""

    def visit(self, node: ast.AST) -> Any:
        """The node with what lies inside it, bare."""
        for name in {"annotation", "returns"} & set(node._fields):
            setattr(node, name, None)
        bare: Any = super().visit(node)
        for name in {"body", "orelse", "finalbody"} & set(node._fields):
            if isinstance(body := getattr(bare, name), list):
                setattr(bare, name, [part for part in body if not _says_nothing(part)])
        if isinstance(node, ast.FunctionDef):
            bare.body = _without_unused(bare.body)
        return bare

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        """The kind of an error counts, its text does not."""
        return ast.Raise(node.exc.func if isinstance(node.exc, ast.Call) else node.exc, None)


def _says_nothing(node: ast.stmt) -> bool:
    """A docstring, a bare call of `expect…`, an assert, or a condition with nothing under it."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
        return _called(node.value).lstrip("_").split("_")[0] == "expect"
    if isinstance(node, ast.If):
        return not node.body and not node.orelse
    return isinstance(node, ast.Assert | ast.Pass) or (
        isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
    )


def _called(call: ast.Call) -> str:
    return getattr(call.func, "id", getattr(call.func, "attr", ""))


def _without_unused(body: list[ast.stmt]) -> list[ast.stmt]:
    """Without what was put together for a check or an error's text, now that these are gone."""
    while True:
        names = [part for node in body for part in ast.walk(node) if isinstance(part, ast.Name)]
        used = {part.id for part in names if isinstance(part.ctx, ast.Load)}
        kept = [node for node in body if _defined(node) & used or not _only_names(node)]
        if len(kept) == len(body):
            return body
        body = kept


def _only_names(node: ast.stmt) -> bool:
    """An assignment that gives names to values and does nothing else."""
    if not isinstance(node, ast.Assign):
        return False
    parts = [part for target in node.targets for part in ast.walk(target)]
    calls = [part for part in ast.walk(node.value) if isinstance(part, ast.Call)]
    plain = all(isinstance(part, ast.Name | ast.Tuple | ast.Store) for part in parts)
    return plain and all(_called(call) in HARMLESS for call in calls)


def _plain(node: Any) -> str:
    """The tree as text that is the same in every Python, which `ast.unparse` does not promise."""
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tlcourse":
        return _plain(node.names)  # where it is imported from does not count, what it is does
    if isinstance(node, ast.AST):
        parts = [(key, part) for key, part in ast.iter_fields(node) if part not in (None, [])]
        return f"{type(node).__name__}({', '.join(f'{key}={_plain(part)}' for key, part in parts)})"
    return f"[{', '.join(map(_plain, node))}]" if isinstance(node, list) else repr(node)
