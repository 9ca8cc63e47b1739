"""A calibration study on disk: what is done so far, written whole after every data set."""

from __future__ import annotations

import dataclasses
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

FORMAT = 1
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
        return State(**joined, failures=self.failures, warnings=self.warnings)


_ARRAYS = ("status", "ranks", "evaluations", "seconds", "truths", "draws")


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
            arrays = {name: file[name] for name in _ARRAYS}
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no file of a calibration study ({error}): {elsewhere}") from error
    for name in {**stored, **study}:
        if stored.get(name) != study.get(name):
            raise ValueError(
                f"{path} holds another study, with {name} = {_short(stored.get(name))} where {_short(study.get(name))} "
                f"was asked for: {elsewhere}"
            )
    failures = {int(i): text for i, text in messages["failures"].items()}
    return State(**arrays, failures=failures, warnings={int(i): texts for i, texts in messages["warnings"].items()})


def save(path: Path, study: dict[str, Any], state: State) -> None:
    """Write the file in one step: a run that is killed leaves the old file or the new one."""
    messages = json.dumps({"failures": state.failures, "warnings": state.warnings})
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with beside.open("wb") as file:
            np.savez(
                file,
                study=np.array(json.dumps(study)),
                messages=np.array(messages),
                **{name: getattr(state, name) for name in _ARRAYS},
            )
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
