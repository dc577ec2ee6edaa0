"""What code made a record: a digest of the syntax that decided its numbers, and of nothing else."""

import ast
import hashlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from tlcourse.methods._checks import expect

EVERYTHING = "*"
UNMEASURED = ("tlcourse.claims", "tlcourse.records")  # they read rows, they do not make them


def code_digest(module: str) -> str:
    """SHA-256 of the syntax of a module and of what it uses of tlcourse, without docstrings,
    annotations and claims.

    Of another module counts what defines the names that are used, what those definitions use, and
    so on; a module that is imported as a whole counts as a whole.
    """
    chosen: dict[str, set[int]] = {}
    todo = [(module, EVERYTHING)]
    while todo:
        name, wanted = todo.pop()
        if name not in UNMEASURED:
            statements, places = _syntax(name), chosen.setdefault(name, set())
            defined = any(wanted in statement.defines for statement in statements)
            for place, statement in enumerate(statements):
                needed = not defined or wanted in statement.defines or not statement.defines
                if needed and place not in places:
                    places.add(place)
                    todo += statement.uses
    bare = {
        name: "\n".join(_syntax(name)[place].text for place in sorted(places))
        for name, places in chosen.items()
    }
    return hashlib.sha256(
        "\n".join(f"# {name}\n{bare[name]}" for name in sorted(bare)).encode()
    ).hexdigest()


def forget_files() -> None:
    """Read the files again when the next digest is asked for."""
    _syntax.cache_clear()


class _Bare(ast.NodeTransformer):
    """Drops what cannot change a row: docstrings, annotations, and the claims of an experiment."""

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST:
        node.returns = None
        return self._undocumented(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        return self._undocumented(node)

    def visit_Module(self, node: ast.Module) -> ast.AST:
        return self._undocumented(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node

    def visit_AnnAssign(self, node: ast.AnnAssign) -> ast.AST:
        node.annotation = ast.Constant(None)
        self.generic_visit(node)
        return node

    def visit_Call(self, node: ast.Call) -> ast.AST:
        node.keywords = [keyword for keyword in node.keywords if keyword.arg != "claims"]
        self.generic_visit(node)
        return node

    def _undocumented(self, node: Any) -> ast.AST:
        first = node.body[0] if node.body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
        ):
            node.body = node.body[1:] or [ast.Pass()]
        self.generic_visit(node)
        return node


@dataclass(frozen=True)
class _Statement:
    """A statement of a module: its bare syntax, the names that it defines (none: it does
    something), and what it uses of tlcourse.
    """

    text: str
    defines: frozenset[str]
    uses: tuple[tuple[str, str], ...]


@cache
def _syntax(module: str) -> list[_Statement]:
    """The statements of a module, without those about claims; an import of several names is one for
    each.
    """
    spec = importlib.util.find_spec(module)
    expect(spec is not None and spec.origin is not None, f"module {module} has no source file")
    tree = ast.parse(Path(spec.origin).read_text())  # type: ignore[union-attr, arg-type]
    tree.body = [
        part
        for node in tree.body
        if not _is_about_claims(node, tree)
        for part in _one_name_each(node)
    ]
    body = _Bare().visit(tree).body
    top = frozenset[str]().union(*(_defined(node) for node in body))
    return [
        _Statement(_plain(node), _defined(node), tuple(_used(node, module, top))) for node in body
    ]


def _one_name_each(node: ast.stmt) -> list[ast.stmt]:
    if isinstance(node, ast.ImportFrom):
        return [
            ast.ImportFrom(module=node.module, names=[alias], level=node.level)
            for alias in node.names
        ]
    return [node]


def _defined(node: ast.stmt) -> frozenset[str]:
    if isinstance(node, ast.FunctionDef | ast.ClassDef):
        return frozenset({node.name})
    if isinstance(node, ast.Import | ast.ImportFrom):
        return frozenset(alias.asname or alias.name.split(".")[0] for alias in node.names)
    targets = (
        node.targets
        if isinstance(node, ast.Assign)
        else [node.target]
        if isinstance(node, ast.AnnAssign)
        else []
    )
    return frozenset(
        part.id for target in targets for part in ast.walk(target) if isinstance(part, ast.Name)
    )


def _used(node: ast.stmt, module: str, top: frozenset[str]) -> Iterator[tuple[str, str]]:
    """What a statement uses: modules of tlcourse, each with a name in it or with everything."""
    for part in ast.walk(node):
        if isinstance(part, ast.Name) and part.id in top:
            yield module, part.id
        if isinstance(part, ast.Import):
            yield from ((alias.name, EVERYTHING) for alias in part.names if _is_module(alias.name))
        if isinstance(part, ast.ImportFrom) and part.module:
            for alias in part.names:
                if _is_module(f"{part.module}.{alias.name}"):
                    yield f"{part.module}.{alias.name}", EVERYTHING
                elif _is_module(part.module):
                    yield part.module, alias.name


def _plain(node: Any) -> str:
    """The tree as text that is the same in every version of Python, which `ast.dump` and
    `ast.unparse` do not promise.
    """
    if isinstance(node, ast.AST):
        fields = [
            f"{name}={_plain(value)}"
            for name, value in ast.iter_fields(node)
            if value not in (None, [])
        ]
        return f"{type(node).__name__}({', '.join(fields)})"
    return f"[{', '.join(map(_plain, node))}]" if isinstance(node, list) else repr(node)


def _is_about_claims(node: ast.stmt, tree: ast.Module) -> bool:
    """An import from `tlcourse.claims`, or a module's assignment of something that it calls from
    there.
    """
    sources = [
        n for n in tree.body if isinstance(n, ast.ImportFrom) and n.module == "tlcourse.claims"
    ]
    names = {alias.asname or alias.name for source in sources for alias in source.names}
    called = (
        node.value.func
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)
        else None
    )
    return node in sources or (isinstance(called, ast.Name) and called.id in names)


def _is_module(name: str) -> bool:
    """Whether it is a module of tlcourse. Packages only gather; their modules are named on their
    own.
    """
    if not name.startswith("tlcourse."):
        return False
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    return spec is not None and not spec.submodule_search_locations
