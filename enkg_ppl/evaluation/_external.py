"""Simulators outside of Python: what programs and servers have in common."""

from __future__ import annotations

import abc
import copy
import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

Shape = tuple[int, ...]

# Of what a program or a server says, so much is repeated to the user.
MOST_CHARACTERS = 500


class SimulationError(RuntimeError):
    """In place of a result that was not given: by whom, what happened instead, and for which parameters."""

    def __init__(self, name: str, what: str, where: str):
        super().__init__(name, what, where)
        self.name, self.what, self.where = name, what, where

    def __str__(self) -> str:
        return f"{self.name} {self.what}, for {self.where}"


class SimulatorGone(ConnectionError):
    """No further simulation can be had, whatever the parameters."""


class External(abc.ABC):
    """A simulator that is called with the parameters of one particle, and ends in time by itself.

    A subclass has `__call__`, which keeps to `_timeout` seconds (None: any number) and hands what it got to `_result`.
    `blackbox` says which shape is due, and in which time; without it any number of values is right.

    Args:
        name: for messages.
        parameters: names of the parameters.
    """

    _shape: Shape | Callable[..., Any] | None = None
    _timeout: float | None = None

    def __init__(self, name: str, parameters: Sequence[str]):
        self.__name__ = name
        self.parameters = tuple(parameters)

    @abc.abstractmethod
    def __call__(self, *args) -> np.ndarray:
        """The result for one particle.

        Args:
            args: values of the parameters.
        """

    def __repr__(self) -> str:
        return f"<{self.__name__}({', '.join(self.parameters)})>"

    @property
    def __signature__(self) -> inspect.Signature:
        kind = inspect.Parameter.POSITIONAL_ONLY
        return inspect.Signature([inspect.Parameter(name, kind) for name in self.parameters])

    def due(self, shape: tuple[int, ...] | Callable[..., Any], timeout: float | None) -> External:
        """This simulator, for results of a given shape in a given time.

        Args:
            shape: of the result, or a function of the arguments that returns it.
            timeout: seconds a call may take; None for any number.
        """
        made = copy.copy(self)
        made._shape, made._timeout = shape, timeout
        return made

    def _arguments(self, args: Sequence[Any]) -> list[np.ndarray]:
        """As arrays of real numbers, one for each of the parameters; `TypeError` where they are something else."""
        if len(args) != len(self.parameters):
            wanted = ", ".join(self.parameters) or "none"
            raise TypeError(f"{self.__name__} takes {len(self.parameters)} parameters ({wanted}); got {len(args)}")
        values = [np.asarray(a) for a in args]
        for name, value in zip(self.parameters, values, strict=True):
            if value.dtype.kind not in "fiub":
                raise TypeError(f"{self.__name__} takes real numbers; got {name} of dtype {value.dtype}")
        return values

    def _result(self, found: Any, args: Sequence[np.ndarray]) -> np.ndarray:
        """In the shape that is due. Raises `_error` for another number of values, and for NaN."""
        values = np.asarray(found)
        if values.dtype.kind not in "fiubc":
            raise self._error(f"gave values of dtype {values.dtype} where numbers are due", args)
        shape = self._shape(*args) if callable(self._shape) else self._shape
        if shape is not None and values.size != math.prod(shape):
            raise self._error(f"gave {_numbers(values.size)} where {math.prod(shape):,} of shape {shape} are due", args)
        if np.isnan(values).any():
            raise self._error("gave NaN", args)
        return values if shape is None else values.reshape(shape)

    def _error(self, what: str, args: Sequence[np.ndarray]) -> SimulationError:
        return SimulationError(self.__name__, what, describe(self.parameters, args))


def describe(names: Sequence[str], values: Sequence[Any]) -> str:
    """Parameters by name, for a message."""
    texts = [np.array2string(np.asarray(v), precision=6, threshold=20, separator=", ") for v in values]
    return ", ".join(f"{name}={text}" for name, text in zip(names, texts, strict=True)) or "no arguments"


def quoted(text: str) -> str:
    """The end of a foreign text, fit for a sentence: on one line, without control characters."""
    lines = [" ".join(line.split()) for line in text.splitlines()]
    one_line = " | ".join(line for line in lines if line)
    shown = "".join(c if c.isprintable() else "?" for c in one_line)
    return f'"{shown}"' if len(shown) <= MOST_CHARACTERS else f'"... {shown[-MOST_CHARACTERS:]}"'


def _numbers(count: int) -> str:
    return "1 number" if count == 1 else f"{count:,} numbers"
