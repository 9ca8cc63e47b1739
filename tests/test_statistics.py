"""`Statistics` is what runs write and diagnostics read, every entry described with those who write it."""

import ast
import re
from pathlib import Path

import jax.numpy as jnp
import jax.random as jr
import pytest

from enkg_ppl import (
    AdaptiveImportanceSampling,
    DiffusionWaltz,
    EllipticalSlice,
    GaussianPrior,
    InverseProblem,
    TemperedSMC,
    infer,
)
from enkg_ppl.diagnostics import _diagnose as diagnose_module
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.posterior import Statistics, TemperingLevel

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "enkg_ppl").rglob("*.py"))
ENTRIES = set(Statistics.__annotations__)
A = jnp.array([[1.0, 0.5]])
LINEAR = InverseProblem(GaussianPrior.standard(2), lambda x: A @ x, GaussianLikelihood(jnp.array([1.5]), 0.3))


def descriptions() -> dict[str, str]:
    """The text below every entry of `Statistics`."""
    tree = ast.parse((ROOT / "enkg_ppl" / "posterior.py").read_text())
    body = next(n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Statistics").body
    found = {}
    for entry, text in zip(body, [*body[1:], None], strict=True):
        if isinstance(entry, ast.AnnAssign) and isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            found[ast.unparse(entry.target)] = str(text.value.value)
    return found


def is_statistics(node: ast.AST) -> bool:
    """Whether an expression is somebody's statistics: `posterior.stats`, `p.stats`, `stats`, `one.stats()`."""
    return ast.unparse(node).removesuffix("()").split(".")[-1] in ("stats", "statistics")


def keys_of(node: ast.AST | None) -> set[str]:
    """Constant keys of the dictionaries in an expression, those of unpacked ones included."""
    dicts = [n for n in ast.walk(node) if isinstance(n, ast.Dict)] if node is not None else []
    return {key.value for d in dicts for key in d.keys if isinstance(key, ast.Constant)}


def written(path: Path) -> set[str]:
    """Keys that a file writes into statistics."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.keyword) and node.arg == "stats":
            found |= keys_of(node.value)
        elif isinstance(node, ast.Assign | ast.AugAssign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            for target in targets:
                if is_statistics(target):
                    found |= keys_of(node.value)
                elif isinstance(target, ast.Subscript) and is_statistics(target.value):
                    found.add(ast.literal_eval(target.slice))
        elif isinstance(node, ast.FunctionDef) and node.returns and ast.unparse(node.returns) == "Statistics":
            found |= keys_of(node)
    return found


def read(path: Path) -> set[str]:
    """Keys that a file reads from statistics."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Subscript) and is_statistics(node.value) and isinstance(node.slice, ast.Constant):
            found.add(node.slice.value)
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "get":
            if is_statistics(node.func.value):
                found.add(ast.literal_eval(node.args[0]))
        elif (
            isinstance(node, ast.Compare) and is_statistics(node.comparators[0]) and isinstance(node.left, ast.Constant)
        ):
            found.add(node.left.value)
    return found


def test_every_key_that_is_written_is_an_entry_and_every_entry_is_written():
    found = {key: path.name for path in FILES for key in written(path)}
    assert set(found) == ENTRIES, {key: found.get(key) for key in set(found) ^ ENTRIES}


def test_every_key_that_is_read_is_an_entry():
    found = {key for path in FILES for key in read(path)}
    assert {"correlation", "correlation_limit", "num_failed", "weight_ess"} <= found  # the search finds those there are
    lists = (diagnose_module.SMALLEST, diagnose_module.SUMS, diagnose_module.UNLISTED)
    assert found.union(*lists) <= ENTRIES


def test_the_searches_find_keys(tmp_path):
    path = tmp_path / "code.py"
    path.write_text(
        "p.stats['a'] = 1\np.stats |= {'b': 2, **{'c': 3}}\nPosterior(stats={'d': 4})\n"
        "def f() -> Statistics:\n    found = {'e': 5}\n    found |= {'f': 6}\n    return found\nother['g'] = 7\n"
        "stats.get('h', 0)\n'i' in p.stats\np.stats['j'] + other['k']\n"
    )
    assert written(path) == set("abcdef")
    assert read(path) >= set("hij")
    assert not read(path) & set("gk")


def test_every_entry_is_described_with_those_who_write_it():
    texts = descriptions()
    assert set(texts) == ENTRIES
    for name, text in texts.items():
        assert re.search(r"^[A-Z].{10,}\. By .*`|by `", text, re.DOTALL), name


@pytest.mark.parametrize(
    "refinement",
    [None, TemperedSMC(), EllipticalSlice(), DiffusionWaltz(), AdaptiveImportanceSampling()],
    ids=lambda refinement: type(refinement).__name__,
)
def test_a_run_writes_what_is_said_to_be_its_own(refinement):
    """No entry but those described as by `infer` and by this refinement, or by the guided flow and its check."""
    posterior = infer(jr.key(0), LINEAR, num_particles=64, refine=refinement)
    writers = ["infer"] + (["anneal", "check_ensemble"] if refinement is None else [type(refinement).__name__])
    allowed = {name for name, text in descriptions().items() if any(f"`{writer}`" in text for writer in writers)}
    assert set(posterior.stats) <= allowed
    sometimes = {"num_not_simulated"}  # where a particle was not finite, or where modes were searched for
    sometimes |= {"num_searches", "num_peaks"} if isinstance(refinement, TemperedSMC) else set()
    assert allowed - sometimes <= set(posterior.stats)
    for level in posterior.stats.get("levels", []):
        assert set(level) == set(TemperingLevel.__annotations__)
    for name, value in posterior.stats.items():
        kinds = {"str": str, "int": int, "float": float, "float | None": (float, type(None)), "list": list}
        declared = str(Statistics.__annotations__[name].__forward_arg__).split("[")[0]
        assert isinstance(value, kinds[declared]), (name, type(value))
