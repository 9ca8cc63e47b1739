"""What is known about how a prior came to be: JSON values that travel with it."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np


class Record(Mapping):
    """A read-only dictionary of JSON values that can be compared and hashed, as static fields must be.

    NumPy and JAX numbers and arrays become plain ones, infinities and NaN become None.

    Args:
        values: the entries.

    Raises:
        TypeError: for values that JSON cannot represent.
    """

    def __init__(self, values: Mapping[str, Any] | None = None):
        self._text = json.dumps(_plain(dict(values or {}), "record"), sort_keys=True, allow_nan=False)

    def __getitem__(self, name: str) -> Any:
        return json.loads(self._text)[name]

    def __iter__(self) -> Iterator[str]:
        return iter(json.loads(self._text))

    def __len__(self) -> int:
        return len(json.loads(self._text))

    def __eq__(self, other) -> bool:
        return isinstance(other, Record) and self._text == other._text

    def __hash__(self) -> int:
        return hash(self._text)

    def __repr__(self) -> str:
        return f"Record({self._text if len(self._text) < 200 else self._text[:197] + '...'})"


def _plain(value: Any, where: str) -> Any:
    if isinstance(value, Mapping):
        return {str(name): _plain(v, f"{where}[{name!r}]") for name, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v, f"{where}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, np.generic | np.ndarray | jax.Array):
        return _plain(np.asarray(value).tolist(), where)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{where} holds {type(value).__name__}, which has no place in JSON: record numbers and text only")
