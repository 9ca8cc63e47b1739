"""One call of a black box beside its store: which rows are known, which are to be simulated, what is kept of them."""

from __future__ import annotations

import contextlib
import threading
from collections import deque
from collections.abc import Callable, Generator, Sequence

import numpy as np

from enkg_ppl.evaluation._entry import Entry, KeptFailure
from enkg_ppl.evaluation._failure import Failure
from enkg_ppl.evaluation._shelf import KEY_BYTES, Shelf

Results = Generator[tuple[np.ndarray, "np.ndarray | Failure"]]


class Recall:
    """`wanted`: the rows that are asked for, in ascending order. `together`: a vectorised call, whose rows are kept in
    one file at its end: were they kept in parts, a run that goes on would simulate the others in other company, and
    round otherwise.

    `missing`: rows to be simulated, each set of arguments once. `num_reused`: those that are not.
    """

    def __init__(
        self,
        shelf: Shelf,
        rows: Sequence[np.ndarray],
        wanted: np.ndarray,
        *,
        together: bool,
        believes: Callable[[KeptFailure], bool],
        as_failure: Callable[[KeptFailure, int], Failure],
        timeout: float | None,
    ):
        self.shelf, self._rows, self._together, self._timeout = shelf, rows, together, timeout
        self._lock = threading.Lock()
        self._key_of = dict(zip(map(int, wanted), shelf.keys(rows, wanted), strict=True))
        first: dict[bytes, int] = {}
        self._alike: dict[int, list[int]] = {}  # rows with the same arguments, by the first of them
        for row, key in self._key_of.items():
            self._alike.setdefault(first.setdefault(key, row), []).append(row)
        self._found: list[tuple[int, np.ndarray | Failure]] = []
        missing = []
        known = shelf.find(first, rows)
        for key, row in first.items():
            value = known.get(key)
            if value is None or (isinstance(value, KeptFailure) and not believes(value)):
                missing.append(row)
            else:
                value = as_failure(value, row) if isinstance(value, KeptFailure) else value
                self._found.append((row, value))
        self.missing = np.array(missing, int)
        self.num_reused = len(wanted) - len(missing)
        self._not_kept = set(missing)
        self._waiting: list[tuple[int, np.ndarray | KeptFailure]] = []

    def merged(self, fresh: Results) -> Results:
        """What is known and what is simulated, in the order of rows, so that failures count in the order they had."""
        found = deque(self._found)
        with contextlib.closing(fresh):
            for where, value in fresh:
                while found and found[0][0] < where[0]:
                    row, known = found.popleft()
                    yield np.array(self._alike[row]), known
                yield np.concatenate([self._alike[int(row)] for row in where]), value
        for row, known in found:
            yield np.array(self._alike[row]), known

    def is_reused(self, row: int) -> bool:
        """Whether this row's result was in the store, and not simulated now."""
        return any(row in self._alike[found] for found, _ in self._found)

    def keys_of(self, where: np.ndarray) -> set[bytes]:
        return {self._key_of[int(row)] for row in where}

    def keep(self, where: np.ndarray, value: np.ndarray | Failure) -> None:
        """Keep the result of these rows, unless it is kept already; of a failure, once it has counted.

        May be called from the threads in which simulations end.
        """
        if isinstance(value, Failure):
            kept = KeptFailure(value.as_kept, value.is_programming_error, self._timeout if value.is_timeout else None)
        else:
            kept = value
        with self._lock:
            new = [int(row) for row in where if int(row) in self._not_kept]
            self._not_kept.difference_update(new)
            self._waiting += [(row, kept) for row in new]
            if not self._together:
                self._write()

    def keep_good(self, group: np.ndarray, found: Sequence[np.ndarray | Failure]) -> None:
        """Keep those results of a group of rows that are no failures."""
        for i, value in enumerate(found):
            if not isinstance(value, Failure):
                self.keep(group[i : i + 1], value)

    def close(self, *, with_failures: bool) -> None:
        """At the end of the call; failures that ended it are not kept."""
        with self._lock:
            if not with_failures:
                self._waiting = [(row, value) for row, value in self._waiting if not isinstance(value, KeptFailure)]
            self._write()

    def _write(self) -> None:
        if not self._waiting:
            return
        waiting, self._waiting = sorted(self._waiting, key=lambda pair: pair[0]), []
        where = [row for row, _ in waiting]
        dtype, shape = self.shelf.about["result"]
        results = np.zeros((len(where), *shape), dtype)
        failures = {}
        for i, (_, value) in enumerate(waiting):
            if isinstance(value, KeptFailure):
                failures[i] = value
                results[i] = np.nan if np.issubdtype(results.dtype, np.inexact) else 0
            else:
                results[i] = value
        keys = np.frombuffer(b"".join(self._key_of[row] for row in where), np.uint8).reshape(-1, KEY_BYTES)
        self.shelf.put(Entry(keys, [np.ascontiguousarray(a[where]) for a in self._rows], results, failures))
