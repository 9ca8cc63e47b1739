"""A calibration study on disk: what is done so far, written whole after every data set."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl._files import replacing, shown

FORMAT = 2
PENDING, DONE, FAILED = 0, 1, 2


@dataclasses.dataclass
class State:
    """One row a data set; rows of data sets that are not done hold nothing of meaning."""

    status: np.ndarray  # PENDING, DONE or FAILED
    ranks: np.ndarray  # (datasets, scalars)
    evaluations: np.ndarray  # -1: not counted
    seconds: np.ndarray
    truths: np.ndarray  # (datasets, dim)
    draws: np.ndarray  # (datasets, draws, dim); no rows where draws are not kept
    failures: dict[int, str]
    warnings: dict[int, list[str]]
    # One data set as it was simulated, by name of the array, and its number; see `_witness`.
    witness: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)
    witness_row: int = -1

    @classmethod
    def empty(cls, num_datasets: int, num_scalars: int, dim: int, num_draws: int, keep_draws: bool) -> State:
        return cls(
            status=np.zeros(num_datasets, np.int8),
            ranks=np.full((num_datasets, num_scalars), -1, np.int32),
            evaluations=np.full(num_datasets, -1, np.int64),
            seconds=np.zeros(num_datasets),
            truths=np.full((num_datasets, dim), np.nan),
            draws=np.full((num_datasets if keep_draws else 0, num_draws, dim), np.nan),
            failures={},
            warnings={},
        )

    def with_room(self, num_datasets: int) -> State:
        """At least this many rows; what is done stays."""
        more = num_datasets - len(self.status)
        if more <= 0:
            return self
        keep_draws = len(self.draws) > 0
        room = State.empty(more, self.ranks.shape[1], self.truths.shape[1], self.draws.shape[1], keep_draws)
        joined = {name: np.concatenate([getattr(self, name), getattr(room, name)]) for name in _ARRAYS}
        return dataclasses.replace(self, **joined)


_ARRAYS = ("status", "ranks", "evaluations", "seconds", "truths", "draws")
_WITNESS = "witness_"  # and a number: names of sites may hold what names of files may not


def load(path: Path, study: dict[str, Any]) -> State | None:
    """The state of this study in the file; None where there is no file.

    Raises `ValueError` where the file holds another study, or no study at all; it is left as it is.
    """
    if not path.exists():
        return None
    elsewhere = "give another file, or delete this one to start anew"
    try:
        with np.load(path, allow_pickle=False) as file:
            stored = json.loads(str(file["study"]))
            messages = json.loads(str(file["messages"]))
            arrays = {name: file[name] for name in _ARRAYS if name in file}
            witness = {name: file[f"{_WITNESS}{i}"] for i, name in enumerate(messages.get("witness", []))}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of a calibration study ({error}): {elsewhere}") from error
    if stored.get("format") != study["format"]:
        raise ValueError(
            f"{path} was written by another version (format {stored.get('format')} where {study['format']} is read): "
            f"{elsewhere}"
        )
    for name in {**stored, **study}:
        if stored.get(name) != study.get(name):
            old, new = _differing(stored.get(name), study.get(name))
            raise ValueError(
                f"{path} holds another study, with {name} = {shown(old)} where {shown(new)} was asked for: {elsewhere}"
            )
    failures = {int(i): text for i, text in messages["failures"].items()}
    warnings = {int(i): texts for i, texts in messages["warnings"].items()}
    return State(
        **arrays, failures=failures, warnings=warnings, witness=witness, witness_row=int(messages["witness_row"])
    )


def save(path: Path, study: dict[str, Any], state: State) -> None:
    """Write the file in one step: a run that is killed leaves the old file or the new one."""
    messages = {name: getattr(state, name) for name in ("failures", "warnings", "witness_row")}
    messages["witness"] = list(state.witness)
    arrays: dict[str, Any] = {name: getattr(state, name) for name in _ARRAYS}
    arrays |= {f"{_WITNESS}{i}": value for i, value in enumerate(state.witness.values())}
    with replacing(path) as beside, beside.open("wb") as file:
        np.savez(file, study=np.array(json.dumps(study)), messages=np.array(json.dumps(messages)), **arrays)


def _differing(old: Any, new: Any) -> tuple[Any, Any]:
    """Of two dictionaries the entries that differ."""
    if not (isinstance(old, dict) and isinstance(new, dict)):
        return old, new
    names = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    return {name: old.get(name) for name in names}, {name: new.get(name) for name in names}
