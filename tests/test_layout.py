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
    "numpyro": ("numpyro", "calibration"),
    "arviz": ("_arviz.py",),
    "blackjax": (),  # what methods are validated against, not what they are made of
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


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


# The package of priors needs evaluation, which needs the problem; what a problem's prior is, only type checkers ask.
TYPING_ALONE = {"enkg_ppl.problem"}


def imported_modules(path: Path, modules: set[str]) -> set[str]:
    """Modules of ours that a file imports, wherever in it, with the packages that they are in."""
    tree = ast.parse(path.read_text())
    typing = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    unseen = {n for block in typing for n in ast.walk(block)} if module_of(path) in TYPING_ALONE else set()
    found = set()
    for node in ast.walk(tree):
        if node in unseen or not isinstance(node, ast.ImportFrom | ast.Import):
            continue
        names = [a.name for a in node.names]
        if isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{name}" if f"{node.module}.{name}" in modules else node.module for name in names]
        found |= {str(name) for name in names} & modules
    for name in list(found):  # a package is imported before its modules
        parents = {name.rsplit(".", i)[0] for i in range(1, name.count(".") + 1)}
        here = f"{module_of(path)}."
        found |= {p for p in parents & modules if not here.startswith(f"{p}.")}
    return found


@pytest.mark.parametrize("folders", [("enkg_ppl",), ("models", "validation")], ids=lambda f: "+".join(f))
def test_no_module_imports_itself_by_a_detour(folders):
    paths = {module_of(p): p for folder in folders for p in sorted((ROOT / folder).rglob("*.py"))}
    imports = {name: imported_modules(path, set(paths)) for name, path in paths.items()}
    done: set[str] = set()

    def visit(name: str, way: tuple[str, ...]):
        assert name not in way, " -> ".join((*way[way.index(name) :], name))
        if name not in done:
            for other in sorted(imports[name]):
                visit(other, (*way, name))
            done.add(name)

    for name in paths:
        visit(name, ())


@pytest.mark.parametrize("path", sorted((ROOT / "models").rglob("*.py")), ids=lambda p: str(p.relative_to(ROOT)))
def test_models_know_nothing_of_what_judges_them(path):
    assert "validation" not in imported(path)


# Private modules of the package that models and validation import all the same, and why.
PRIVATE_IMPORTS = {
    ("models/kolmogorov.py", "enkg_ppl.training._loss"): "the training's own loss, on fields that it has not seen",
    ("validation/methods/_base.py", "enkg_ppl.evaluation._host_call"): "counts in host code that cannot deadlock",
    ("validation/methods/_latent.py", "enkg_ppl.numpyro._model"): "a NumPyro model as an inverse problem",
    ("validation/store.py", "enkg_ppl._files"): "files that appear whole or not at all",
    ("validation/train_speed.py", "enkg_ppl.training._step"): "times the compiled step without the loop around it",
}


def private_imports(path: Path) -> set[tuple[str, str]]:
    """Private modules, and private names of public ones, that a file imports from the package, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    private = {name for name in found if name.startswith("enkg_ppl.") and "._" in name}
    # Up to the private part: what is taken out of a private module does not matter.
    return {(str(path.relative_to(ROOT)), re.sub(r"(\._\w+)\..*", r"\1", name)) for name in private}


def test_models_and_validation_use_what_users_have():
    """Both ways: no private import that is not listed, and none listed that is gone."""
    paths = [path for folder in ("models", "validation") for path in sorted((ROOT / folder).rglob("*.py"))]
    assert set().union(*map(private_imports, paths)) == set(PRIVATE_IMPORTS)


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
        "from enkg_ppl import train_prior; assert enkg_ppl.train_prior is train_prior;"
        "from enkg_ppl.priors import import_edm; assert import_edm.__name__ == 'import_edm';"
        "assert not hasattr(enkg_ppl, 'train_priors'); assert not hasattr(enkg_ppl.priors, 'import_edn')"
    )
    assert subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False).returncode == 0


@pytest.mark.parametrize("name", sorted(importlib.import_module("enkg_ppl")._HOMES))
def test_names_of_version_0_1_still_work_and_say_where_they_are(name):
    package = importlib.import_module("enkg_ppl")
    with pytest.warns(DeprecationWarning, match=rf"enkg_ppl\.{name} has moved: write 'from enkg_ppl\.") as caught:
        old = getattr(package, name)
    _, home, _, now = re.findall(r"'(from) (\S+) (import) (\w+)'", str(caught[0].message))[0]
    assert getattr(importlib.import_module(home), now) is old


def test_only_the_package_goes_into_the_wheel():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert config["tool"]["hatch"]["build"]["targets"]["wheel"]["packages"] == ["enkg_ppl"]


def test_whoever_installs_the_package_gets_nothing_that_it_does_not_import():
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())
    required = {re.split(r"[><=;\[ ]", line)[0] for line in config["project"]["dependencies"]}
    assert required <= set().union(*map(imported, PACKAGE))


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
