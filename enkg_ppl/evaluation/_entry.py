"""One file of a store: finished simulations of one simulator, as safetensors with a checksum in the header.

A file holds the rows of one call, or a single one. What is in it is believed only as a whole: the checksum covers the
header and every array.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

ABOUT, FAILURES, CHECKSUM = "enkg_ppl", "failures", "checksum"  # texts in the header
# What safetensors can name; anything else is kept as its bytes, on a last axis of its own.
PLAIN = {"bool", *(f"{kind}{bits}" for kind in ("int", "uint") for bits in (8, 16, 32, 64))}
PLAIN |= {"float16", "float32", "float64"}


class KeptFailure(NamedTuple):
    """A simulation that counted as zero likelihood: what happened, and the time-out if it was one."""

    what: str
    is_programming_error: bool = False
    timeout: float | None = None


class Entry(NamedTuple):
    """Simulations, one a row. `keys`: shape (rows, 16), bytes. `failures`: by number of the row."""

    keys: np.ndarray
    arguments: list[np.ndarray]
    results: np.ndarray
    failures: dict[int, KeptFailure]


class Damaged(ValueError):
    """A file that is not what was written."""


def as_text(about: dict[str, Any]) -> str:
    """What the simulator is, as the header has it."""
    return json.dumps(about, sort_keys=True)


def to_bytes(entry: Entry, about: str) -> bytes:
    """`about`: what the simulator is, as text."""
    failed = np.zeros(len(entry.keys), bool)
    failed[list(entry.failures)] = True
    arrays = {f"argument.{i}": _plain(a) for i, a in enumerate(entry.arguments)}
    arrays |= {"key": entry.keys, "result": _plain(entry.results), "failed": failed}
    failures = json.dumps(entry.failures) if entry.failures else "{}"
    checksum = _checksum(about, failures, arrays)
    return save(arrays, metadata={ABOUT: about, FAILURES: failures, CHECKSUM: checksum})


def from_bytes(data: bytes, about: dict[str, Any], text: str) -> Entry:
    """`text`: `about` as text. Raises `Damaged` for what `to_bytes` did not write, or wrote of another simulator."""
    try:
        arrays = load(data)
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])["__metadata__"]
        checksum, failures, of = header[CHECKSUM], header[FAILURES], header[ABOUT]
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise Damaged(f"cut short or no file of a store: {error}") from error
    if checksum != _checksum(of, failures, arrays):
        raise Damaged("its checksum is wrong")
    if of != text:
        raise Damaged("it is of another simulator, or of other shapes")
    try:
        rows = len(arrays["key"])
        parts = [arrays[f"argument.{i}"] for i in range(len(about["arguments"]))]
        arguments = [_typed(a, rows, *kind) for a, kind in zip(parts, about["arguments"], strict=True)]
        results = _typed(arrays["result"], rows, *about["result"])
    except (KeyError, ValueError) as error:
        raise Damaged(f"its arrays have not the shapes that are due: {error}") from error
    kept = {int(row): KeptFailure(*parts) for row, parts in json.loads(failures).items()}
    return Entry(arrays["key"], arguments, results, kept)


def keys_in(path: Path) -> tuple[list[bytes], np.ndarray]:
    """Keys of the rows, and which of them failed, without reading the rest; not checked. Raises `Damaged`."""
    try:
        with safe_open(path, framework="numpy") as file:
            keys, failed = file.get_tensor("key"), file.get_tensor("failed")
    except (SafetensorError, ValueError, KeyError) as error:
        raise Damaged(f"cut short or no file of a store: {error}") from error
    return [key.tobytes() for key in keys], failed


def kind_of(dtype, shape) -> list[Any]:
    """Dtype and shape of one row, as the header has them."""
    return [np.dtype(dtype).name, list(shape)]


def _plain(a: np.ndarray) -> np.ndarray:
    if a.dtype.name in PLAIN:
        return np.ascontiguousarray(a)
    return np.frombuffer(a.tobytes(), np.uint8).reshape(*a.shape, a.dtype.itemsize)


def _typed(a: np.ndarray, rows: int, dtype: str, shape: list[int]) -> np.ndarray:
    wanted = (rows, *shape)
    if dtype not in PLAIN:
        kind = np.dtype(dtype)
        if a.dtype != np.uint8 or a.shape != (*wanted, kind.itemsize):
            raise ValueError(f"{a.dtype}{a.shape} for the bytes of {dtype}{wanted}")
        return np.frombuffer(a.tobytes(), kind).reshape(wanted)
    if a.dtype.name != dtype or a.shape != wanted:
        raise ValueError(f"{a.dtype}{a.shape} where {dtype}{wanted} is due")
    return a


def _checksum(about: str, failures: str, arrays: dict[str, np.ndarray]) -> str:
    digest = hashlib.blake2b(f"{about}{failures}".encode(), digest_size=16)
    for name in sorted(arrays):
        a = arrays[name]
        digest.update(f"{name} {a.dtype.str} {a.shape};".encode())
        digest.update(np.ascontiguousarray(a).data if a.size else b"")
    return digest.hexdigest()
