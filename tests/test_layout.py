"""The structure keeps its promises: what the core imports, what the wheel holds, what files may say."""

import ast
import importlib
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = sorted((ROOT / "enkg_ppl").rglob("*.py"))
BRIDGES = {
    "numpyro": ("_numpyro", "calibration"),
    "arviz": ("_arviz.py",),
    "blackjax": ("_refine",),
    "scipy": ("_special.py", "_reverse_sde.py"),
    "torch": ("_torch.py", "_read.py"),  # of an extra: imported where a function needs it
}


def imported(path: Path) -> set[str]:
    """Top-level packages that a file imports, wherever in it."""
    nodes = list(ast.walk(ast.parse(path.read_text())))
    plain = {alias.name.split(".")[0] for n in nodes if isinstance(n, ast.Import) for alias in n.names}
    return plain | {(n.module or "").split(".")[0] for n in nodes if isinstance(n, ast.ImportFrom)}


@pytest.mark.parametrize("path", PACKAGE, ids=lambda p: str(p.relative_to(ROOT)))
def test_foreign_imports_stay_in_their_bridges(path):
    for package, places in BRIDGES.items():
        if not any(place in path.relative_to(ROOT).parts for place in places):
            assert package not in imported(path)
    drawing = {"matplotlib"} if path.name == "_plot.py" else set()
    assert not imported(path) & {"models", "validation", "matplotlib"} - drawing


def test_slow_packages_are_not_imported_with_the_package():
    """Most runs do not need them; torch is not even installed. With them an import takes more than twice as long."""
    slow = ("arviz", "blackjax", "diffrax", "matplotlib", "optax", "scipy.optimize", "torch")
    code = f"import sys, enkg_ppl; print([name for name in {slow} if name in sys.modules])"
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"


def test_names_that_are_imported_when_asked_for_are_like_all_others():
    """They are listed, they can be imported by name and by star, and one that does not exist is no attribute."""
    code = (
        "import enkg_ppl; assert set(enkg_ppl.__all__) <= set(dir(enkg_ppl));"
        "from enkg_ppl import SongUNet, train_prior; assert enkg_ppl.train_prior is train_prior;"
        "from enkg_ppl import *; assert import_edm.__name__ == 'import_edm';"
        "assert not hasattr(enkg_ppl, 'train_priors')"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False).returncode == 0


def test_only_the_package_goes_into_the_wheel():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["enkg_ppl"]


def test_version_is_one():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    version = config["project"]["version"]
    assert importlib.import_module("enkg_ppl").__version__ == version
    assert f"version: {version}" in (ROOT / "CITATION.cff").read_text()


def test_everything_exported_is_documented():
    package = importlib.import_module("enkg_ppl")
    for name in package.__all__:
        assert (getattr(package, name).__doc__ or "").strip(), name


def test_constraints_are_names_and_versions_only():
    for line in (ROOT / "constraints.txt").read_text().splitlines():
        assert re.fullmatch(r"(#.*)?|[\w.\-]+==[\w.]+( ?; ?python_\w+ [<>=]+ ['\"][\d.]+['\"])?", line), line
