"""Whoever extends the package needs no private name: what is public says in public words what it takes and gives."""

import ast
import importlib
import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parents[1]
# What is documented as the library's surface; `test_namespaces_are_those_documented` holds it to the files.
NAMESPACES = (
    "enkg_ppl",
    "enkg_ppl.calibration",
    "enkg_ppl.diagnostics",
    "enkg_ppl.evaluation",
    "enkg_ppl.guidance",
    "enkg_ppl.likelihood",
    "enkg_ppl.networks",
    "enkg_ppl.networks.parts",
    "enkg_ppl.numpyro",
    "enkg_ppl.numpyro.transports",
    "enkg_ppl.posterior",
    "enkg_ppl.priors",
    "enkg_ppl.priors.preconditioning",
    "enkg_ppl.problem",
    "enkg_ppl.quantiles",
    "enkg_ppl.refinement",
    "enkg_ppl.schedule",
    "enkg_ppl.training",
    "enkg_ppl.types",
)
# Packages of the method's own parts: nothing in them is promised, and no public signature leads there.
INTERNAL = {"enkg_ppl.bijections", "enkg_ppl.linearise", "enkg_ppl.mixtures", "enkg_ppl.refinement.moves"}
PUBLIC_METHODS = {"__init__", "__call__"}


class Definition(NamedTuple):
    """Where a name is defined, however it was imported; `node` is None for a whole module."""

    module: str
    name: str
    node: ast.AST | None


@cache
def file_of(module: str) -> Path | None:
    """The file of a module of ours, or None."""
    stem = ROOT.joinpath(*module.split("."))
    paths = (stem.with_suffix(".py"), stem / "__init__.py")
    return next((path for path in paths if path.is_file()), None)


@cache
def bindings(module: str) -> dict[str, ast.stmt]:
    """The statement that gives each name of a module its meaning; what only type checkers see is among them."""
    path = file_of(module)
    assert path is not None, module
    body = ast.parse(path.read_text()).body
    body += [inner for node in body if isinstance(node, ast.If) for inner in node.body]
    found: dict[str, ast.stmt] = {}
    for node in body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            found |= {(alias.asname or alias.name.split(".")[0]): node for alias in node.names}
        elif isinstance(node, ast.ClassDef | ast.FunctionDef):
            found[node.name] = node
        elif isinstance(node, ast.Assign):
            found |= {n.id: node for target in node.targets for n in ast.walk(target) if isinstance(n, ast.Name)}
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found[node.target.id] = node
    return found


def definition(module: str, dotted: str) -> Definition | None:
    """Where a (dotted) name in a module of ours is defined; None for other packages, builtins and local names."""
    first, _, rest = dotted.partition(".")
    node = bindings(module).get(first)
    if node is None:
        return None
    if isinstance(node, ast.ImportFrom):
        original = next(alias.name for alias in node.names if (alias.asname or alias.name) == first)
        source = f"{node.module}.{original}"
        if file_of(source):
            return definition(source, rest) if rest else Definition(source, "", None)
        return definition(str(node.module), original) if file_of(str(node.module)) else None
    if isinstance(node, ast.Import):
        return None
    return Definition(module, first, node)


@cache
def exported(namespace: str) -> tuple[str, ...]:
    return tuple(importlib.import_module(namespace).__all__)


@cache
def public() -> dict[tuple[str, str], str]:
    """The public dotted name of every definition that has one."""
    found = {}
    for namespace in NAMESPACES:
        for name in exported(namespace):
            where = definition(namespace, name)
            if where is not None:
                found.setdefault((where.module, where.name), f"{namespace}.{name}")
    return found


def names_in(annotation: ast.AST | None) -> set[str]:
    """(Dotted) names that an annotation is made of; the words of a shape are none."""
    if annotation is None:
        return set()
    if isinstance(annotation, ast.Attribute | ast.Name):
        return {ast.unparse(annotation)}
    return {name for child in ast.iter_child_nodes(annotation) for name in names_in(child)}


def signature(function: ast.FunctionDef) -> set[str]:
    a = function.args
    arguments = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(arg for arg in (a.vararg, a.kwarg) if arg)]
    return names_in(function.returns).union(*(names_in(arg.annotation) for arg in arguments))


def promised(node: ast.AST) -> dict[str, set[str]]:
    """What a public definition says to the outside: where, and the names in it."""
    if isinstance(node, ast.FunctionDef):
        return {"": signature(node)}
    if isinstance(node, ast.Assign | ast.AnnAssign):
        parts = names_in(getattr(node, "annotation", None))
        return {"": parts | (names_in(node.value) if is_alias(node.value) else set())}
    assert isinstance(node, ast.ClassDef), ast.dump(node)
    found = {"its bases": {name for base in node.bases for name in names_in(base)}}
    for part in node.body:
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_":
            found[part.target.id] = names_in(part.annotation)
        elif isinstance(part, ast.FunctionDef) and (part.name[0] != "_" or part.name in PUBLIC_METHODS):
            found[part.name] = found.get(part.name, set()) | signature(part)
            found |= attributes_set_in(part)
    return found


def attributes_set_in(method: ast.FunctionDef) -> dict[str, set[str]]:
    """Public attributes whose type a method declares, as in ``self.ledger: Ledger = ...``."""
    set_here = [n for n in ast.walk(method) if isinstance(n, ast.AnnAssign) and isinstance(n.target, ast.Attribute)]
    return {n.target.attr: names_in(n.annotation) for n in set_here if n.target.attr[0] != "_"}


def is_alias(value: ast.AST | None) -> bool:
    """Whether an assignment names a type (``Respond = Callable[...]``, ``Key = PRNGKeyArray``), not a value."""
    return isinstance(value, ast.Subscript | ast.Name | ast.Attribute | ast.BinOp)


def private_types(namespace: str, name: str) -> list[str]:
    """Types of ours in what a public name promises that have no public name."""
    where = definition(namespace, name)
    if where is None or where.node is None:
        return []
    found = []
    for place, names in promised(where.node).items():
        for used in sorted(names):
            there = definition(where.module, used)
            if there is not None and (there.module, there.name) not in public():
                found.append(f"{namespace}.{name}{place and '.' + place}: {used} of {there.module}")
    return found


def modules() -> list[str]:
    paths = sorted((ROOT / "enkg_ppl").rglob("*.py"))
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [name for name in names if not any(part.startswith("_") for part in name.split("."))]


def test_namespaces_are_those_documented():
    """Every module without an underscore is public, with `__all__`, or one of the few internal packages, without."""
    assert set(modules()) == {*NAMESPACES, *INTERNAL}
    assert all("__all__" in bindings(name) for name in NAMESPACES)
    assert not any("__all__" in bindings(name) for name in INTERNAL)


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_types_in_public_signatures_are_public(namespace):
    assert not [line for name in exported(namespace) for line in private_types(namespace, name)]


def test_a_private_type_would_be_seen():
    """Of what the test above looks at: arguments, results, fields, attributes, aliases, bases."""
    hidden = definition("enkg_ppl.guidance._bounds", "Bounded")
    assert hidden is not None
    assert (hidden.module, hidden.name) not in public()
    code = """
class New(Bounded):
    field: Bounded | None
    _own: Bounded
    def method(self, *rest: list[Bounded]) -> "Bounded": ...
    def _private(self, x: Bounded): ...
    def __init__(self, x: Bounded):
        self.kept: Bounded = x
"""
    found = promised(ast.parse(code).body[0])
    assert [place for place, names in found.items() if "Bounded" in names] == [
        "its bases",
        "field",
        "method",
        "__init__",
        "kept",
    ]
    assert promised(ast.parse("Alias = Callable[[Bounded], int]").body[0])[""] == {"Callable", "Bounded", "int"}


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_everything_exported_is_documented(namespace):
    """Namespaces, classes and functions by their own docstring, aliases and other values by their module's."""
    module = importlib.import_module(namespace)
    assert len((module.__doc__ or "").strip()) > 60
    for name in exported(namespace):
        where = definition(namespace, name)
        assert where is not None, f"{namespace}.{name} is nowhere defined"
        if isinstance(where.node, ast.ClassDef | ast.FunctionDef):
            assert (ast.get_docstring(where.node) or "").strip(), f"{namespace}.{name} has no docstring"
        else:
            texts = (module.__doc__, importlib.import_module(where.module).__doc__)
            assert any(f"`{name}`" in (text or "") for text in texts), f"{namespace}.{name}: no docstring names it"


def entries(docstring: str | None, section: str) -> list[str]:
    """What a section such as ``Args:`` of a docstring has entries for, in order; the stars of ``*args`` left out."""
    found, inside = [], False
    for line in (docstring or "").splitlines():
        if line[:1].strip():
            inside = line == section
        elif inside and line.startswith("    ") and line[4:5].strip():
            name, _, text = line.strip().partition(": ")
            assert text, f"{line!r} is not 'name: description'"
            found.append(name.lstrip("*"))
    return found


def parameters(function: ast.FunctionDef) -> list[str]:
    """Names of the arguments in order, without the `self` or `cls` of a method."""
    a = function.args
    given = [*a.posonlyargs, *a.args, a.vararg, *a.kwonlyargs, a.kwarg]
    bound = "cls" if "classmethod" in map(ast.unparse, function.decorator_list) else "self"
    return [arg.arg for arg in given if arg is not None and arg.arg != bound]


def undescribed_fields(node: ast.ClassDef) -> list[str]:
    """Public fields of a class without a text of their own below them."""
    followed = zip(node.body, [*node.body[1:], None], strict=True)
    return [
        part.target.id
        for part, below in followed
        if isinstance(part, ast.AnnAssign) and isinstance(part.target, ast.Name) and part.target.id[0] != "_"
        if not (isinstance(below, ast.Expr) and isinstance(below.value, ast.Constant))
    ]


def misdescribed(node: ast.AST, name: str) -> list[str]:
    """Functions and classes in a definition whose sections are not about what they take, one by one and in order."""
    if isinstance(node, ast.FunctionDef):
        docstring = ast.get_docstring(node)
        wanted = {"Args:": parameters(node), "Attributes:": []}
    elif isinstance(node, ast.ClassDef):
        docstring = ast.get_docstring(node)
        init = next((part for part in node.body if isinstance(part, ast.FunctionDef) and part.name == "__init__"), None)
        fields = undescribed_fields(node)
        wanted = {"Args:": parameters(init), "Attributes:": []} if init else {"Args:": [], "Attributes:": fields}
    else:
        return []
    found = [
        f"{name}: {section} {told} instead of {want}"
        for section, want in wanted.items()
        if docstring and (told := entries(docstring, section)) != want
    ]
    for part in node.body if isinstance(node, ast.ClassDef) else []:
        if isinstance(part, ast.FunctionDef) and (part.name[0] != "_" or part.name == "__call__"):
            found += misdescribed(part, f"{name}.{part.name}")
    return found


@pytest.mark.parametrize("namespace", NAMESPACES)
def test_every_argument_is_described(namespace):
    """Once, in ``Args:`` or, of fields, in ``Attributes:``; overriding methods without a docstring inherit theirs."""
    places = {name: definition(namespace, name) for name in exported(namespace)}
    nodes = {name: where.node for name, where in places.items() if where is not None and where.node is not None}
    assert not [line for name, node in nodes.items() for line in misdescribed(node, name)]


def test_a_missing_description_would_be_seen():
    code = '''
class New:
    """Something.

    Attributes:
        first: of two lines,
            this is the second: no entry.
        third: that there is not.

    Source: none.
    """
    first: int
    second: int
    own: int
    """Described here."""
    def method(self, x, *args, y):
        """Do it.

        Args:
            x: a number.
            *args: others.

        Returns:
            A number.
        """
'''
    assert misdescribed(ast.parse(code).body[0], "New") == [
        "New: Attributes: ['first', 'third'] instead of ['first', 'second']",
        "New.method: Args: ['x', 'args'] instead of ['x', 'args', 'y']",
    ]


def test_star_imports_give_what_is_announced():
    """Each in a fresh interpreter's empty module, and all without a warning."""
    lines = ["import importlib"]
    for namespace in NAMESPACES:
        lines += [
            "found = {}",
            f"exec('from {namespace} import *', found)",
            f"missing = set(importlib.import_module('{namespace}').__all__) - set(found)",
            f"assert not missing, ('{namespace}', missing)",
        ]
    command = [sys.executable, "-W", "error::DeprecationWarning:enkg_ppl", "-c", "\n".join(lines)]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
