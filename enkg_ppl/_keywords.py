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


# What settings of corrections and refinements were called in version 0.1.
FORMER = {
    "num_scouts": "it is called pilot_size now",
    "prior_share": "it is called defensive_weight now",
    "memory": "it is called forgetting_factor now",
}


def check_settings(cls: type, settings: Mapping[str, Any]) -> None:
    """The same for a class whose constructor is made of its fields: called before it, with the keywords given."""
    named = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "args", "kwargs")]
    for name in settings:
        if name not in named:
            former = FORMER if _now(name) in named else {}
            raise TypeError(f"{cls.__name__} has no argument '{name}'; {_hint(name, named, ', '.join(named), former)}")


def _now(name: str) -> str:
    """The name that a former one has now; the name itself where it is none."""
    return FORMER[name].split()[-2] if name in FORMER else name


def _hint(name: str, named: list[str], options: str, instead: Mapping[str, Any]) -> str:
    if name in instead:
        return instead[name].replace("{known}", options)
    close = difflib.get_close_matches(name, named, 1)
    return f"did you mean '{close[0]}'?" if close else f"it takes {options}"
