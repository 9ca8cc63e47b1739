"""Checks of arguments that many share: each names the culprit and what it may be."""

from __future__ import annotations

from typing import Any

import numpy as np


def is_whole(value: Any, least: int) -> bool:
    """Whether it is a whole number, Python's or NumPy's, of at least so much; True and False are none."""
    return isinstance(value, int | np.integer) and not isinstance(value, bool) and bool(value >= least)


def check_whole(owner: str, least: int = 1, why: str = "", /, **values: Any) -> None:
    """Raise `ValueError` unless every argument of `owner` is a whole number; `why`: follows that in the sentence."""
    for name, value in values.items():
        if not is_whole(value, least):
            raise ValueError(f"{owner} needs {name} as a whole number >= {least}{why}; got {value!r}")


def check_share(owner: str, /, **values: Any) -> None:
    """Raise `ValueError` unless every argument of `owner` lies between 0 and 1."""
    for name, value in values.items():
        if not 0 < value < 1:
            raise ValueError(f"{owner} needs 0 < {name} < 1; got {name}={value}")


def check_choice(owner: str, allowed: tuple[str, ...], /, **values: Any) -> None:
    """Raise `ValueError` unless every argument of `owner` is one of the words in `allowed`."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(f"{owner} needs {name} to be one of {allowed}; got {value!r}")


def whole_shape(shape: Any, least: int) -> tuple[int, ...] | None:
    """A shape from a whole number or a sequence of them; None where it is neither."""
    shape = shape if isinstance(shape, tuple | list) else (shape,)
    return tuple(int(n) for n in shape) if all(is_whole(n, least) for n in shape) else None
