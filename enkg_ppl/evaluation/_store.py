"""A folder in which every finished simulation of a black box is kept, and found again."""

from __future__ import annotations

import json
import threading
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl.evaluation._shelf import ABOUT, Shelf, describe, folder_name, write_whole

FORMAT = 1
MARK = "enkg_ppl_store.json"  # tells a store from a folder of something else


class Simulations:
    """The stored simulations of one simulator: of one name, version, and one set of shapes and dtypes.

    They are had from `Store.simulators`.
    """

    _shelf: Shelf

    @classmethod
    def _of(cls, shelf: Shelf) -> Simulations:
        made = cls()
        made._shelf = shelf
        return made

    @property
    def name(self) -> str:
        """Name of the simulator."""
        return self._shelf.about["simulator"]

    @property
    def version(self) -> str:
        """As given to `blackbox`; empty where none was."""
        return self._shelf.about["version"]

    def __len__(self) -> int:
        return len(self._shelf)

    def __repr__(self) -> str:
        kinds = [
            *zip(self._names(), self._shelf.about["arguments"], strict=True),
            ("result", self._shelf.about["result"]),
        ]
        shapes = ", ".join(f"{name}: {dtype}{tuple(shape)}" for name, (dtype, shape) in kinds)
        version = f" {self.version}" if self.version else ""
        return f"{len(self):,} of {self.name}{version} ({shapes})"

    def table(self) -> dict[str, np.ndarray]:
        """The stored arguments and results as arrays.

        Returns:
            Arguments by name, "result" and "failed"; each has the simulations as leading axis. Of a simulation that
                failed, "failed" is True and "result" NaN (0 where it cannot be NaN). An argument named like one of
                these two is called "argument 0", by its place.
        """
        arguments, results, failed = self._shelf.table()
        return {**dict(zip(self._names(), arguments, strict=True)), "result": results, "failed": failed}

    def to_arviz(self):
        """The table as ArviZ's `InferenceData` (0.x) or `DataTree` (1.x).

        It is the group constant_data, with the first dimension "simulation": the points are where the runs simulated,
        and not draws of a distribution.
        """
        from enkg_ppl._arviz import from_simulations  # importing ArviZ takes seconds

        return from_simulations(self.table(), {"simulator": self.name, "version": self.version})

    def forget_failures(self) -> int:
        """Remove failed simulations, so that they are run again; returns how many there were."""
        return self._shelf.forget()

    def _names(self) -> list[str]:
        given = self._shelf.names
        number = len(self._shelf.about["arguments"])
        usable = [i < len(given) and given[i] not in ("result", "failed") for i in range(number)]
        return [given[i] if usable[i] else f"argument {i}" for i in range(number)]


class Store:
    """A folder of finished simulations; what `blackbox(..., store=)` and `EnKG(..., store=)` take, or its path alone.

    `len` is the number of simulations in it. Reading it never executes code: the files are safetensors.

    Args:
        path: a folder, which need not exist yet. It may be used by several simulators, which are told apart by name,
            version, shapes and dtypes, and by several processes at once, which may then both simulate a point that
            neither had yet.

    Raises:
        ValueError: where the path is a file, or a folder of something else.
    """

    def __init__(self, path: str | Path | Store):
        self.path = path.path if isinstance(path, Store) else Path(path)
        self._shelves: dict[str, Shelf] = {}
        self._lock = threading.RLock()
        self._news: list[str] = []
        self._told: set[str] = set()
        self._check()

    def __reduce__(self):
        return Store, (self.path,)

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}: {'; '.join(map(repr, self.simulators)) or 'empty'})"

    def __len__(self) -> int:
        return sum(map(len, self.simulators))

    @property
    def simulators(self) -> list[Simulations]:
        """The stored simulations of each simulator, in the order of names, versions and shapes."""
        found = []
        for file in sorted(self.path.glob(f"*/{ABOUT}")):
            try:
                stored = json.loads(file.read_text())
                if folder_name(stored["about"]) != file.parent.name:
                    continue
            except (OSError, ValueError, KeyError, TypeError):
                continue
            found.append(Simulations._of(self._shelf(stored["about"], stored["names"])))
        return sorted(found, key=lambda one: (one.name, one.version, repr(one)))

    def table(self) -> dict[str, np.ndarray]:
        """The table of the only simulator; see `Simulations.table`.

        Raises:
            ValueError: where there are several simulators, or none.
        """
        return self._only().table()

    def to_arviz(self):
        """The only simulator as ArviZ reads it; see `Simulations.to_arviz`.

        Raises:
            ValueError: where there are several simulators, or none.
        """
        return self._only().to_arviz()

    def forget_failures(self) -> int:
        """Remove failed simulations of all simulators, so that they are run again; returns how many there were."""
        return sum(one.forget_failures() for one in self.simulators)

    def _only(self) -> Simulations:
        found = self.simulators
        if len(found) == 1:
            return found[0]
        if not found:
            raise ValueError(f"{self.path} holds no simulations yet: run something with store={str(self.path)!r} first")
        listed = "; ".join(f"[{i}] {one!r}" for i, one in enumerate(found))
        raise ValueError(f"{self.path} holds several sets of simulations ({listed}): take one of store.simulators")

    # -- for black boxes -----------------------------------------------------------------------------------------

    def _shelf_of(self, name: str, version: str, rows, result, names: list[str]) -> Shelf:
        """The files of a black box's simulations.

        Args:
            name: of the simulator.
            version: of the simulator.
            rows: arguments with a leading axis.
            result: shape and dtype of the result.
            names: of the arguments.
        """
        return self._shelf(describe(name, version, rows, result), names)

    def _shelf(self, about: dict[str, Any], names: list[str]) -> Shelf:
        folder = folder_name(about)
        with self._lock:
            if folder not in self._shelves:
                self._mark()
                self._shelves[folder] = Shelf(self.path / folder, about, names, self._report)
            return self._shelves[folder]

    def take_news(self) -> list[str]:
        """Sentences for the user that were not shown yet."""
        with self._lock:
            news, self._news = self._news, []
        return news

    def _report(self, subject: str, sentence: str) -> None:
        """Once for each subject: a hundred damaged files are one piece of news."""
        with self._lock:
            if subject not in self._told:
                self._told.add(subject)
                self._news.append(sentence)

    def _check(self) -> None:
        elsewhere = "give another folder as store="
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ValueError(f"a store is a folder, and {self.path} is a file: {elsewhere}")
        mark = self.path / MARK
        if not mark.exists():
            if any(not file.name.startswith(MARK) for file in self.path.iterdir()) and not mark.exists():
                raise ValueError(f"{self.path} is a folder of something else than simulations: {elsewhere}")
            return
        try:
            found = json.loads(mark.read_text())["format"]
        except (ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{mark} is damaged ({error}): restore it, or {elsewhere}") from error
        if found != FORMAT:
            raise ValueError(f"{self.path} has format {found} and this version reads {FORMAT}: {elsewhere}")

    def _mark(self) -> None:
        """Make the folder. Where that cannot be, the first file that cannot be written says so."""
        try:
            if not (self.path / MARK).exists():
                self.path.mkdir(parents=True, exist_ok=True)
                write_whole(self.path / MARK, json.dumps({"format": FORMAT}).encode())
        except OSError:
            pass
