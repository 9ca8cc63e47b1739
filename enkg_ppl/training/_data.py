"""Where batches come from: an array, a memory-mapped file, or an iterator of batches."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

# Rows that the statistics are taken from, and rows that are checked at a time.
STATISTICS_ROWS = 65_536
CHUNK_ROWS = 8_192
# Of an iterator nobody knows the length: the statistics and the held-out events are from its beginning.
STREAM_ROWS = 8_192
MIN_EVENTS = 2


class Source(Protocol):
    """Training events. `sample`: those for the statistics; `held_out`: those never trained on."""

    event_shape: tuple[int, ...]
    sample: np.ndarray
    held_out: np.ndarray

    @property
    def num_events(self) -> int | None:
        """For training; None where nobody knows."""
        ...

    def batch(self, step: int) -> np.ndarray:
        """The events ``(batch_size, *event_shape)`` of one step; `StopIteration` where there are no more."""
        ...

    def fingerprint(self) -> dict[str, Any]:
        """What tells these data from others, in JSON values."""
        ...


def open_data(data, batch_size: int | None, held_out: float, seed: int) -> tuple[Source, int]:
    """A source for whatever the user has, and the batch size.

    `data`: an array with the events along the leading axis, the path of an ``.npy`` file (read by memory mapping), or
    an iterable of arrays of events.
    """
    if isinstance(data, str | Path):
        path = Path(data)
        if path.suffix != ".npy" or not path.exists():
            raise ValueError(f"data as a path must be an existing .npy file; got {str(data)!r}")
        data = np.load(path, mmap_mode="r", allow_pickle=False)
    if hasattr(data, "shape") and hasattr(data, "dtype"):
        array = data if isinstance(data, np.memmap) else np.asarray(data)
        return _array_source(array, batch_size, held_out, seed)
    if isinstance(data, Iterable):
        return _stream_source(data, batch_size, held_out)
    raise TypeError(
        "data must be an array with the events along its leading axis, the path of an .npy file, or an iterable of "
        f"arrays of events; got {type(data).__name__}"
    )


def _array_source(array: np.ndarray, batch_size: int | None, held_out: float, seed: int):
    if array.dtype.kind not in "fiu":
        raise TypeError(f"data must be real; got an array of {array.dtype}: take real and imaginary parts apart")
    if array.ndim < 2:
        raise ValueError(
            f"data must have the events along the leading axis, (events, *event_shape); got shape {array.shape}: "
            "for scalars add an axis, data[:, None]"
        )
    if len(array) < MIN_EVENTS:
        raise ValueError(f"data must hold at least {MIN_EVENTS} events to train on; got {len(array)}")
    num_held_out = round(held_out * len(array))
    batch_size = _batch_size(batch_size, array.shape[1:], len(array) - num_held_out)
    num_held_out = _whole_batches(num_held_out, batch_size)
    return ArraySource(array, num_held_out, batch_size, seed), batch_size


def _stream_source(data: Iterable, batch_size: int | None, held_out: float):
    stream = Rebatched(data)
    first = stream.peek(1)
    batch_size = _batch_size(batch_size, first.shape[1:], STREAM_ROWS)
    return StreamSource(stream, held_out, batch_size), batch_size


def _batch_size(asked: int | None, event_shape: tuple[int, ...], num_events: int) -> int:
    default = 1024 if len(event_shape) == 1 else 128
    if asked is not None and asked < 1:
        raise ValueError(f"batch_size must be at least 1; got {asked}")
    if asked is not None and asked > num_events:
        raise ValueError(f"batch_size must be at most the {num_events} events to train on; got {asked}")
    return min(default, num_events) if asked is None else asked


def _whole_batches(num: int, batch_size: int) -> int:
    """At most 16 batches, and whole ones, so that the held-out loss has one compiled shape."""
    return num if num <= batch_size else min(num // batch_size, 16) * batch_size


class ArraySource:
    """An array in memory or on disk, in an order that follows from the seed and the step alone.

    Every epoch is a new permutation; batches run across its end, so that no event is left out.
    """

    def __init__(self, array: np.ndarray, num_held_out: int, batch_size: int, seed: int):
        self._array, self._batch_size, self._seed = array, batch_size, seed
        self._on_disk = isinstance(array, np.memmap)
        self.event_shape = array.shape[1:]
        order = self._generator(0).permutation(len(array))
        self._rows = np.sort(order[num_held_out:])
        self.num_events = len(self._rows)
        self._epoch, self._order = -1, self._rows
        if not self._on_disk:
            for start in range(0, len(array), CHUNK_ROWS):
                check_finite(array[start : start + CHUNK_ROWS])
        self.held_out = self._read(np.sort(order[:num_held_out]))
        few = self._generator(1).permutation(self.num_events)[:STATISTICS_ROWS]
        self.sample = self._read(self._rows[np.sort(few)])

    def batch(self, step: int) -> np.ndarray:
        start, parts = step * self._batch_size, []
        missing = self._batch_size
        while missing:
            epoch, offset = divmod(start, self.num_events)
            rows = self._epoch_order(epoch)[offset : offset + missing]
            parts.append(rows)
            start, missing = start + len(rows), missing - len(rows)
        return self._read(np.concatenate(parts))

    def fingerprint(self) -> dict[str, Any]:
        import hashlib

        rows = np.linspace(0, len(self._array) - 1, min(len(self._array), 64)).astype(int)
        digest = hashlib.sha256(np.ascontiguousarray(self._array[rows]).tobytes()).hexdigest()
        return {"shape": list(self._array.shape), "dtype": str(self._array.dtype), "sha256_of_64_rows": digest}

    def _epoch_order(self, epoch: int) -> np.ndarray:
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = self._rows[self._generator(2 + epoch).permutation(self.num_events)]
        return self._order

    def _generator(self, stream: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, stream])))

    def _read(self, rows: np.ndarray) -> np.ndarray:
        events = np.asarray(self._array[rows])
        if self._on_disk:  # too large to look at as a whole beforehand
            check_finite(events)
        return events


class Rebatched:
    """An iterable of arrays of events, to be read in batches of any size; begun anew where that is possible."""

    def __init__(self, data: Iterable):
        self._data = data
        self._iterator: Iterator = iter(data)
        self._can_restart = self._iterator is not data
        self._buffer: list[np.ndarray] = []
        self._event_shape: tuple[int, ...] | None = None

    def peek(self, num: int) -> np.ndarray:
        """The next `num` events, or those that are left, without taking them."""
        while sum(map(len, self._buffer)) < num:
            try:
                self._buffer.append(self._next())
            except StopIteration:
                break
        if not self._buffer:
            raise ValueError("data must hold at least one batch of events; the iterator gave none")
        return np.concatenate(self._buffer)[:num]

    def take(self, num: int) -> np.ndarray:
        """The next `num` events; `StopIteration` where they are used up."""
        while sum(map(len, self._buffer)) < num:
            try:
                self._buffer.append(self._next())
            except StopIteration:
                if not self._can_restart:
                    raise
                self._iterator = iter(self._data)
                self._buffer.append(self._next())
        rows = np.concatenate(self._buffer)
        self._buffer = [rows[num:]] if len(rows) > num else []
        return rows[:num]

    def _next(self) -> np.ndarray:
        batch = next(self._iterator)
        if not hasattr(batch, "shape"):
            raise TypeError(
                f"the iterator must give arrays of events; got {type(batch).__name__}: leave out labels, as in "
                "(x for x, _ in loader)"
            )
        events = np.asarray(batch)
        shape = self._event_shape or events.shape[1:]
        if events.ndim < 2 or events.shape[1:] != shape:
            raise ValueError(
                f"the iterator must give arrays (events, *event_shape), of one event shape {shape}; got {events.shape}"
            )
        self._event_shape = shape
        check_finite(events)
        return events


class StreamSource:
    """Batches in the order in which an iterator gives them.

    The order is the iterator's: a resumed run skips as many batches as were used, which is exact where the iterator
    gives the same ones again.
    """

    def __init__(self, stream: Rebatched, held_out: float, batch_size: int):
        self._stream, self._batch_size, self._step = stream, batch_size, 0
        first = stream.peek(max(STREAM_ROWS, 2 * batch_size))
        if len(first) < max(MIN_EVENTS, batch_size):
            raise ValueError(
                f"data must hold at least {max(MIN_EVENTS, batch_size)} events to train on with batch_size="
                f"{batch_size}; the iterator gave {len(first)}"
            )
        self.event_shape = first.shape[1:]
        num_held_out = _whole_batches(min(round(held_out * len(first)), len(first) - batch_size), batch_size)
        self.held_out = stream.take(num_held_out) if num_held_out else first[:0]
        self.sample = first[num_held_out:]
        self.num_events: int | None = None

    def batch(self, step: int) -> np.ndarray:
        while self._step < step:
            self._stream.take(self._batch_size)
            self._step += 1
        self._step += 1
        return self._stream.take(self._batch_size)

    def fingerprint(self) -> dict[str, Any]:
        return {"iterator of events of shape": list(self.event_shape)}


def check_finite(events: np.ndarray) -> None:
    if events.dtype.kind == "f" and not np.isfinite(events).all():
        wrong = np.sum(~np.isfinite(events).reshape(len(events), math.prod(events.shape[1:])).all(axis=1))
        raise ValueError(
            f"data must be finite; {wrong} of {len(events)} events looked at hold NaN or infinity: drop them"
        )
