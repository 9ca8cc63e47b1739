"""The simulations that a store has of one simulator: a folder of files, and an index of what is in them.

A simulation is known by its arguments, bit by bit: 0.0 is not -0.0, and a number of 32 bits is none of 64. A file of a
single one has its key for a name, so most of the index is a list of names; files of whole calls are opened for theirs.
Files are written beside and then renamed, so another process sees a file whole or not at all.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl.evaluation._entry import Damaged, Entry, KeptFailure, as_text, from_bytes, keys_in, kind_of, to_bytes

KEY_BYTES = 16
SUFFIX, FAILED, MANY = ".safetensors", ".failed.safetensors", "many-"
ABOUT = "about.json"
# Share of the time that may go into waiting for the disk. A file that was not waited for may be lost with the machine's
# power (not with the process): the checksum finds that out, and its simulations are run again.
SYNC_SHARE = 0.1

_SINGLE, _SINGLE_FAILED = "", "failed"  # in the index, for files whose name follows from the key


def describe(name: str, version: str, rows: Sequence[np.ndarray], result) -> dict[str, Any]:
    """What a simulator is to a store: all of it must agree. `rows`: its arguments, with a leading axis."""
    return {
        "simulator": name,
        "version": version,
        "arguments": [kind_of(a.dtype, a.shape[1:]) for a in rows],
        "result": kind_of(result.dtype, result.shape),
    }


def digest_of(about: dict[str, Any]) -> str:
    """Tells simulators apart."""
    return hashlib.blake2b(as_text(about).encode(), digest_size=8).hexdigest()


def folder_name(about: dict[str, Any]) -> str:
    """Readable, and different for whatever is different."""
    readable = re.sub(r"[^\w.-]+", "_", about["simulator"])[:40]
    return f"{readable}-{digest_of(about)}"


class Shelf:
    """`about`: see `describe`. `names`: of the arguments, for those who read the table. `report`: told of files that
    are damaged, and of a disk that takes no more (which raises nothing)."""

    def __init__(self, folder: Path, about: dict[str, Any], names: list[str], report: Callable[[str, str], None]):
        self.folder, self.about, self.names = folder, about, names
        self._report = report
        self._files: dict[bytes, str] = {}  # by key: where it is
        self._many: set[str] = set()  # files of whole calls that are in the index
        self._stamp = -1
        self._lock = threading.RLock()
        self._text = as_text(about)
        self._seed = digest_of(about).encode()
        self._begun, self._waited = time.monotonic(), 0.0
        self.is_writable = True
        self._is_made = False  # the folder, with what it is
        self._look()

    def __len__(self) -> int:
        self._look()
        return len(self._files)

    def keys(self, rows: Sequence[np.ndarray], wanted: np.ndarray) -> list[bytes]:
        """The keys of these rows."""
        parts = [np.ascontiguousarray(a) for a in rows]
        found = []
        for row in wanted:
            digest = hashlib.blake2b(self._seed, digest_size=KEY_BYTES)
            for a in parts:
                digest.update(a[row].tobytes())
            found.append(digest.digest())
        return found

    # -- reading -------------------------------------------------------------------------------------------------

    def find(self, row_of: dict[bytes, int], rows: Sequence[np.ndarray]) -> dict[bytes, np.ndarray | KeptFailure]:
        """What is known of these keys, each with the row of its arguments; only what the files prove."""
        self._look()
        files: dict[str, None] = {}
        with self._lock:
            for key in row_of:
                if key in self._files:
                    files[self._name(key)] = None
        known: dict[bytes, np.ndarray | KeptFailure] = {}
        for name in files:
            entry = self._read(name)
            if entry is None:
                continue
            for i, key in enumerate(map(bytes, entry.keys)):
                row = row_of.get(key)
                if row is None or not _same(entry.arguments, i, rows, row):
                    continue
                if key not in known or isinstance(known[key], KeptFailure):
                    known[key] = entry.failures[i] if i in entry.failures else entry.results[i]
        return known

    def table(self) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
        """All arguments, results, and which of them failed; rows in the order of their keys."""
        self._look()
        with self._lock:
            names = sorted({self._name(key): None for key in self._files})
        known: dict[bytes, tuple[list[np.ndarray], np.ndarray, bool]] = {}
        for name in names:
            entry = self._read(name)
            if entry is None:
                continue
            for i, key in enumerate(map(bytes, entry.keys)):
                if key not in known or known[key][2]:
                    known[key] = [a[i] for a in entry.arguments], entry.results[i], i in entry.failures
        ordered = [known[key] for key in sorted(known)]
        arguments = [
            np.stack([row[0][i] for row in ordered]) if ordered else np.zeros((0, *shape), dtype)
            for i, (dtype, shape) in enumerate(self.about["arguments"])
        ]
        dtype, shape = self.about["result"]
        results = np.stack([row[1] for row in ordered]) if ordered else np.zeros((0, *shape), dtype)
        return arguments, results, np.array([row[2] for row in ordered], bool)

    def _name(self, key: bytes) -> str:
        where = self._files[key]
        return where if where.startswith(MANY) else key.hex() + (FAILED if where else SUFFIX)

    def _read(self, name: str) -> Entry | None:
        """The content of a file; None, and out of the index, where it is gone or not to be believed."""
        try:
            return from_bytes((self.folder / name).read_bytes(), self.about, self._text)
        except FileNotFoundError:  # another process has forgotten it
            pass
        except (OSError, Damaged) as error:
            self._damaged(name, error)
        with self._lock:
            for key in (
                [key for key in self._files if self._name(key) == name] if name.startswith(MANY) else [_key(name)]
            ):
                self._files.pop(key, None)
        return None

    def _damaged(self, name: str, error: Exception) -> None:
        self._report(
            "damaged",
            f"{self.folder / name} is ignored and its simulations are run again, as {error}: delete it if the "
            "warning comes back",
        )

    def _look(self) -> None:
        """Take what other processes have added into the index."""
        with self._lock:
            stamp = self._now()
            if stamp == self._stamp:
                return
            self._stamp = stamp
            if stamp < 0:  # there is no folder yet
                return
            for name in os.listdir(self.folder):
                if name.startswith(MANY) and name.endswith(SUFFIX):
                    self._add_many(name)
                elif name.endswith(SUFFIX) and (key := _key(name)):
                    if not name.endswith(FAILED):
                        self._files[key] = _SINGLE
                    else:
                        self._files.setdefault(key, _SINGLE_FAILED)

    def _add_many(self, name: str) -> None:
        if name in self._many:
            return
        self._many.add(name)
        try:
            keys, failed = keys_in(self.folder / name)
        except FileNotFoundError:
            return
        except (OSError, Damaged) as error:
            self._damaged(name, error)
            return
        self._index(name, keys, failed)

    def _index(self, name: str, keys: Sequence[bytes], failed: np.ndarray) -> None:
        for key, has_failed in zip(keys, failed, strict=False):
            if has_failed:
                self._files.setdefault(key, name)
            else:
                self._files[key] = name

    def _now(self) -> int:
        try:
            return self.folder.stat().st_mtime_ns
        except OSError:
            return -1

    # -- writing -------------------------------------------------------------------------------------------------

    def put(self, entry: Entry) -> None:
        """Write a file, whole or not at all; a disk that takes no more is reported, and not asked again."""
        if not (self.is_writable and len(entry.keys)):
            return
        keys = [key.tobytes() for key in entry.keys]
        failed = np.isin(np.arange(len(keys)), list(entry.failures))
        if len(keys) == 1:
            name = keys[0].hex() + (FAILED if failed[0] else SUFFIX)
        else:
            name = f"{MANY}{hashlib.blake2b(b''.join(keys), digest_size=KEY_BYTES).hexdigest()}{SUFFIX}"
        with self._lock:
            try:
                self._write_about()
                current = self._now() == self._stamp
                self._write(name, to_bytes(entry, self._text))
            except OSError as error:
                self.is_writable = False
                self._report(
                    "full",
                    f"simulations are no longer kept in {self.folder.parent} ({error.strerror or error}): make room "
                    "there, as a run that starts again repeats those of now",
                )
                return
            if current:  # nobody else's files have come, so there is no need to look again
                self._stamp = self._now()
            if len(keys) == 1:
                self._files[keys[0]] = _SINGLE_FAILED if failed[0] else _SINGLE
            else:
                self._many.add(name)
                self._index(name, keys, failed)

    def forget(self, keys: set[bytes] | None = None) -> int:
        """Take failures out, those of these keys or all, so that they are run again; returns how many there were."""
        self._look()
        count = 0
        with self._lock:
            names = {self._name(key) for key in (self._files if keys is None else keys & self._files.keys())}
            for name in names:
                entry = self._read(name) if name.startswith(MANY) or name.endswith(FAILED) else None
                if entry is None:
                    continue
                found = [bytes(key) for key in entry.keys]
                gone = [i for i in entry.failures if keys is None or found[i] in keys]
                if not gone:
                    continue
                count += len(gone)
                left = np.setdiff1d(np.arange(len(found)), gone)
                for key in found:
                    if key in self._files and self._name(key) == name:
                        del self._files[key]
                failures = {int(np.searchsorted(left, i)): f for i, f in entry.failures.items() if i not in gone}
                self.put(Entry(entry.keys[left], [a[left] for a in entry.arguments], entry.results[left], failures))
                if self.is_writable:
                    (self.folder / name).unlink(missing_ok=True)
                    self._many.discard(name)
        return count

    def _write_about(self) -> None:
        if self._is_made:
            return
        if not (self.folder / ABOUT).exists():
            self.folder.mkdir(parents=True, exist_ok=True)
            self._write(ABOUT, json.dumps({"about": self.about, "names": self.names}).encode())
        self._is_made = True

    def _write(self, name: str, data: bytes) -> None:
        started = time.monotonic()
        sync = self._waited <= SYNC_SHARE * (started - self._begun)
        self._waited += write_whole(self.folder / name, data, sync=sync)


def write_whole(path: Path, data: bytes, *, sync: bool = True) -> float:
    """Write a file in one step; a process that is killed leaves the old one or the new one. Returns seconds of `sync`,
    in which the disk was waited for."""
    beside = path.with_name(f"{path.name}.{os.getpid()}.{threading.get_ident()}.tmp")
    waited = 0.0
    try:
        with open(beside, "wb", buffering=0) as file:
            left = memoryview(data)
            while left:
                left = left[os.write(file.fileno(), left) :]
            if sync:
                started = time.monotonic()
                os.fsync(file.fileno())
                waited = time.monotonic() - started
        os.replace(beside, path)
    except BaseException:
        with contextlib.suppress(OSError):
            beside.unlink(missing_ok=True)
        raise
    return waited


def _key(name: str) -> bytes:
    """The key that a file of a single simulation is named by; empty where it is none of ours."""
    try:
        key = bytes.fromhex(name.split(".")[0])
    except ValueError:
        return b""
    return key if len(key) == KEY_BYTES else b""


def _same(kept: Sequence[np.ndarray], i: int, rows: Sequence[np.ndarray], row: int) -> bool:
    return all(a[i].tobytes() == b[row].tobytes() for a, b in zip(kept, rows, strict=True))
