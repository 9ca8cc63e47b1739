"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` for a new file or folder, which takes its place when all is written.

    Whoever is interrupted leaves the old one or the new one. A folder takes no other's place.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        for file in [beside] if beside.is_file() else beside.iterdir():
            with file.open("rb") as written:
                os.fsync(written.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True) if beside.is_file() else shutil.rmtree(beside, ignore_errors=True)


def shown(value: object) -> str:
    """What a file holds, cut to the length of a line."""
    text = repr(value)
    return text if len(text) < 120 else text[:117] + "..."
