"""Texts with places for parameters: `{name}`, `{name[3]}`, `{name[0, 1]}`.

Files of many kinds have braces of their own, so only an identifier in braces is a place; `{{name}}` is the text
`{name}`, and every other brace stands for itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import numpy as np

_INSIDE = r"[A-Za-z_]\w*(?:\[\d+(?:\s*,\s*\d+)*\])?"
_PLACE = re.compile(rf"\{{\{{({_INSIDE})\}}\}}|\{{({_INSIDE})\}}", re.ASCII)

Values = Mapping[str, np.ndarray]


def names_in(text: str) -> list[str]:
    """The parameters that it has places for, in order, each once."""
    places = [match[2].split("[")[0] for match in _PLACE.finditer(text) if match[2]]
    return list(dict.fromkeys(places))


def fill(text: str, values: Values) -> str:
    """A vector stands as its numbers with a space between them, a matrix as its rows on lines of their own."""

    def put(match: re.Match[str]) -> str:
        return "{" + match[1] + "}" if match[1] else _as_text(_value(match[2], values))

    return _PLACE.sub(put, text)


def fill_argument(text: str, values: Values) -> list[str]:
    """As one argument; where it is a place and nothing else, as one for every number."""
    match = _PLACE.fullmatch(text)
    if match is None or not match[2]:
        return [fill(text, values)]
    return [number_as_text(number) for number in _value(match[2], values).flat]


def number_as_text(number: np.generic) -> str:
    """Digits that are read back, in 64 bits, as the very same number; truth values as 1 and 0."""
    return repr(float(number)) if isinstance(number, np.floating) else str(int(number))  # type: ignore[arg-type]


def _as_text(value: np.ndarray) -> str:
    if value.ndim < 2:
        return " ".join(number_as_text(number) for number in value.flat)
    return "\n".join(_as_text(row) for row in value)


def _value(inside: str, values: Values) -> np.ndarray:
    name, _, index = inside.partition("[")
    if not index:
        return values[name]
    where = tuple(int(i) for i in index.rstrip("]").split(","))
    value = values[name]
    if len(where) != value.ndim or any(i >= n for i, n in zip(where, value.shape, strict=True)):
        raise TypeError(f"{name} has shape {value.shape}, which has no number at {{{inside}}}")
    return np.asarray(value[where])
