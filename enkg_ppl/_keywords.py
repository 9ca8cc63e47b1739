"""A good message for a misspelt argument, with the function's real signature left as it is."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def explain_keywords(
    owner: str, instead: Mapping[str, str] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """A decorator: an argument that the function does not have is a `TypeError` that suggests one it has.

    `owner`: how users call the function. `instead`: what to say of arguments that others are known to take, in place of
    a suggestion; ``{known}`` in it stands for the names of the arguments.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        parameters = inspect.signature(function).parameters.values()
        named = [p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != "self"]
        options = ", ".join(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

        @functools.wraps(function)
        def checked(*args: P.args, **kwargs: P.kwargs) -> R:
            for name in kwargs:
                if name not in named:
                    raise TypeError(f"{owner} has no argument '{name}'; {_hint(name, named, options, instead or {})}")
            return function(*args, **kwargs)

        return checked

    return decorate


def _hint(name: str, named: list[str], options: str, instead: Mapping[str, Any]) -> str:
    if name in instead:
        return instead[name].replace("{known}", options)
    close = difflib.get_close_matches(name, named, 1)
    return f"did you mean '{close[0]}'?" if close else f"it takes {options}"
