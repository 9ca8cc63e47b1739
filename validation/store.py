"""What a run leaves on disk: one JSON and one file of draws each, truths, and when they are out of date."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl._files import replacing
from validation.methods import Method
from validation.target import Draws, Target, Truth

# What a truth may hold besides its draws.
ARRAYS = ("mean", "sd", "masses", "simulated_from")
ROOT = Path(__file__).resolve().parents[1]
SCORING = ("validation/metrics.py", "validation/scoring.py", "enkg_ppl/calibration/_scores.py")


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a result depends on besides target, method and seed."""

    num_draws: int = 2000
    budget: int | None = None
    float32: bool = False


@dataclasses.dataclass
class Record:
    """One run of a method on a target. `status`: "done", or "failed" with the sentence in `message`.

    `key`: of the code and the settings that it came from; `scored`: of the code that judged it. `figures`: scores by
    name, None where not defined. `names`: of the scalars. `trace`: where a failed run broke.
    """

    target: str
    method: str
    seed: int
    key: str
    settings: dict[str, Any]
    status: str = "failed"
    scored: str = ""
    dim: int = 0
    num_draws: int = 0
    figures: dict[str, float | None] = dataclasses.field(default_factory=dict)
    num_forward_evaluations: int = 0
    num_gradients: int = 0
    seconds: float = 0.0
    log_evidence: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)
    message: str = ""
    trace: str = ""
    names: list[str] = dataclasses.field(default_factory=list)


class Store:
    """The folder `out`: ``runs/*.json``, ``runs/*.npz`` (draws) and ``truths/*.npz``. Every write is atomic.

    `runs`: another name for the first folder.
    """

    def __init__(self, out: Path, runs: str = "runs"):
        self.out = Path(out)
        self.runs = self.out / runs
        self.truths = self.out / "truths"
        for folder in (self.runs, self.truths):
            folder.mkdir(parents=True, exist_ok=True)

    # -- runs ----------------------------------------------------------------------------------------------------

    def read(self, target: str, method: str, seed: int) -> Record | None:
        """The record of a run; None where there is none that can be read."""
        return _read_record(self._path(target, method, seed))

    def records(self) -> list[Record]:
        """All that are there, by target, method and seed."""
        found = [_read_record(path) for path in self.runs.glob("*.json")]
        return sorted((r for r in found if r is not None), key=lambda r: (r.target, r.method, r.seed))

    def write(self, record: Record, draws: Draws | None) -> None:
        """Draws first: a record without its draws would count as done."""
        path = self._path(record.target, record.method, record.seed)
        if draws is None:
            path.with_suffix(".npz").unlink(missing_ok=True)
        else:
            atomic(path.with_suffix(".npz"), lambda file: np.savez(file, draws=np.asarray(draws, np.float32)))
        text = json.dumps(_plain(dataclasses.asdict(record)), indent=1, allow_nan=False)
        atomic(path, lambda file: file.write(text.encode()))

    def draws(self, record: Record) -> Draws | None:
        """What a run drew, in single precision; None where it failed."""
        path = self._path(record.target, record.method, record.seed).with_suffix(".npz")
        if not path.exists():
            return None
        with np.load(path, allow_pickle=False) as file:
            return file["draws"].astype(float)

    def _path(self, target: str, method: str, seed: int) -> Path:
        return self.runs / f"{slug(target)}--{slug(method)}--{seed}.json"

    # -- truths --------------------------------------------------------------------------------------------------

    def truth(self, target: Target) -> Truth:
        """The truth about a target, kept from the first time it is asked for as long as its code is the same."""
        path = self.truths / f"{slug(target.name)}.npz"
        key = fingerprint([_source(target.truth), *target.files], target.name)
        kept = _read_truth(path, key)
        if kept is not None:
            return kept
        truth = target.truth()
        optional = {name: getattr(truth, name) for name in (*ARRAYS, "log_evidence")}
        arrays: dict[str, Any] = {name: np.asarray(a, float) for name, a in optional.items() if a is not None}
        arrays |= {"draws": np.asarray(truth.draws, float), "source": np.array(truth.source), "key": np.array(key)}
        atomic(path, lambda file: np.savez(file, **arrays))
        return truth

    def cached_truth(self, name: str) -> Truth | None:
        """The truth that was last used for a target, by name."""
        return _read_truth(self.truths / f"{slug(name)}.npz", None)


def fingerprint(paths: Iterable[Path], *words: Any) -> str:
    """A short hash of files, folders of Python files, and whatever else a result depends on."""
    digest = hashlib.sha256(json.dumps(words, default=str, sort_keys=True).encode())
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(file.name.encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def run_key(target: Target, method: Method, settings: Settings) -> str:
    """Changes when the code of the method or of the target changes, or the settings do."""
    code = [ROOT / source for source in method.sources] + [_source(method.run)]
    return fingerprint([*code, *_target_sources(target)], dataclasses.asdict(settings))


def score_key(target: Target) -> str:
    """Changes when the code that judges a run changes, or that of the truth does."""
    return fingerprint([ROOT / name for name in SCORING] + _target_sources(target))


def _target_sources(target: Target) -> list[Path]:
    made_of = [target.truth, target.model, target.twin, target.problem, target.modes, target.misfit]
    return list(dict.fromkeys([*(_source(part) for part in made_of if part is not None), *target.files]))


def slug(name: str) -> str:
    """A name as part of a file name."""
    return re.sub(r"[^\w.+-]+", "_", name)


def group(name: str) -> str:
    """The name without the number of an observation: ``sbibm/slcp`` for ``sbibm/slcp/3``."""
    head, _, tail = name.rpartition("/")
    return head if head and tail.isdigit() else name


def _source(function: Callable) -> Path:
    """The file that a function, method or partial was written in."""
    while hasattr(function, "func") or hasattr(function, "__wrapped__"):
        function = getattr(function, "func", None) or function.__wrapped__
    code = inspect.unwrap(getattr(function, "__func__", function))
    module = sys.modules.get(getattr(code, "__module__", None) or type(code).__module__)
    return Path(getattr(module, "__file__", None) or __file__)


def _read_record(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None  # absent, cut short, or of another version


def _read_truth(path: Path, key: str | None) -> Truth | None:
    try:
        with np.load(path, allow_pickle=False) as file:
            if key is not None and str(file["key"]) != key:
                return None
            log_evidence = float(file["log_evidence"]) if "log_evidence" in file else None
            optional = {name: file[name] for name in ARRAYS if name in file}
            return Truth(draws=file["draws"], source=str(file["source"]), log_evidence=log_evidence, **optional)
    except (OSError, ValueError, KeyError, EOFError):
        return None


def _plain(value: Any) -> Any:
    """As JSON holds it; numbers that are not finite become None."""
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def atomic(path: Path, write: Callable[[Any], Any]) -> None:
    """Under another name first, so that an interruption leaves the old file or the new one."""
    with replacing(path) as beside, beside.open("wb") as file:
        write(file)
