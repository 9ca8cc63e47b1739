"""CONTRIBUTING.md is true: its examples run, need no private name, and would fail were their answers wrong."""

import ast
import importlib
import re

import pytest
from documents import ROOT, missing_links, python_blocks, run_program

TEXT = (ROOT / "CONTRIBUTING.md").read_text()
HEADINGS = ("A correction", "A refinement", "A transport", "A prior")
BLOCKS = dict(zip(HEADINGS, python_blocks(TEXT), strict=True))


@pytest.mark.parametrize("heading", HEADINGS)
def test_examples_run(heading, tmp_path):
    assert BLOCKS[heading] in re.split(r"^## ", TEXT.split(f"## {heading}\n")[1], flags=re.M)[0]
    run_program(BLOCKS[heading], tmp_path)


@pytest.mark.parametrize("heading", HEADINGS)
def test_examples_use_public_names_only(heading):
    tree = ast.parse(BLOCKS[heading])
    ours = [n for n in ast.walk(tree) if isinstance(n, ast.ImportFrom) and str(n.module).startswith("enkg_ppl")]
    assert ours
    for node in ours:
        for alias in node.names:
            home = importlib.import_module(str(node.module))
            assert alias.name in home.__all__ or f"{node.module}.{alias.name}" == "enkg_ppl.quantiles"
    assert not any(isinstance(n, ast.Attribute) and re.match(r"_[^_]", n.attr) for n in ast.walk(tree))


# In each example, an error that somebody could make; the example's own comparison must notice it.
ERRORS = {
    "A correction": ("jnp.linalg.solve(S, q.T @ r)", "jnp.linalg.solve(2 * S, q.T @ r)"),
    "A refinement": ("log_weights = evaluate.log_likelihood(x)", "log_weights = 0.8 * evaluate.log_likelihood(x)"),
    "A transport": ("jnp.sqrt(2 * quantiles.exponential(z))", "jnp.sqrt(2.5 * quantiles.exponential(z))"),
    "A prior": ("variances = self.scales**2 + sigma**2", "variances = self.scales**2 + 0.7 * sigma**2"),
}


@pytest.mark.slow
@pytest.mark.parametrize("heading", HEADINGS)
def test_examples_notice_an_error(heading, tmp_path):
    right, wrong = ERRORS[heading]
    assert BLOCKS[heading].count(right) == 1
    with pytest.raises(AssertionError, match="AssertionError"):
        run_program(BLOCKS[heading].replace(right, wrong), tmp_path)


def test_links_and_files_exist():
    assert not missing_links(TEXT)
    for path in re.findall(r"`((?:enkg_ppl|tests)/[\w/]+(?:\.py|/))`", TEXT):
        assert (ROOT / path).exists() or path.endswith("_name.py"), path
