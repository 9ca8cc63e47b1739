"""A finished run under names that ArviZ can hold: no site named like a dimension, no '/' as in scoped sites."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from types import SimpleNamespace
from typing import Any

from numpyro.primitives import Messenger

# A variable of such a name becomes a coordinate, and its draws are lost.
DIMENSIONS = ("chain", "draw")
SUFFIX = "_site"


def new_names(ranks: Mapping[str, int], plates: Iterable[str] = ()) -> dict[str, str]:
    """Other names for those of the sites and plates that cannot stay.

    `ranks`: number of axes of every site, chains and draws apart; ArviZ calls those without a plate ``site_dim_0`` ...
    """
    plates = list(dict.fromkeys(plates))
    taken = {f"{site}_dim_{i}" for site, rank in ranks.items() for i in range(rank)} | {*DIMENSIONS, *plates}
    found: dict[str, str] = {}
    used = {*ranks, *taken}

    def free(name: str) -> str:
        while name in used:
            name += "_"
        used.add(name)
        return name

    for site in ranks:
        if "/" in site or site in taken:
            plain = site.replace("/", ".")
            found[site] = free(plain if plain not in taken else plain + SUFFIX)
    for plate in plates:
        if "/" in plate or plate in DIMENSIONS:
            plain = plate.replace("/", ".")
            found.setdefault(plate, free(plain if plain not in DIMENSIONS else plain + "_plate"))
    return found


def what_was_renamed(names: Mapping[str, str]) -> str:
    """What was renamed, and why."""
    pairs = ", ".join(f"'{old}' as '{new}'" for old, new in names.items())
    return (
        f"to_arviz keeps {pairs}: ArviZ has no room for names of its dimensions, such as chain, draw and x_dim_0, nor "
        "for '/'; rename the sites to choose other names"
    )


def renamed(values: Mapping[str, Any] | None, names: Mapping[str, str]) -> dict[str, Any] | None:
    """The dictionary under the new names."""
    return None if values is None else {names.get(name, name): value for name, value in values.items()}


def renamed_run(enkg, names: Mapping[str, str]):
    """A copy of a finished `EnKG` whose samples and whose model have the new names."""
    other = copy.copy(enkg)
    other.model = _renaming(enkg.model, names)
    other.sampler = SimpleNamespace(model=other.model)
    other._result = copy.copy(enkg._result)
    other._result.samples = renamed(enkg._result.samples, names)
    other._result.latent_names = [names.get(name, name) for name in enkg._result.latent_names]
    return other


def _renaming(model: Callable, names: Mapping[str, str]) -> Callable:
    def renaming(*args, **kwargs):
        with _Rename(names):
            return model(*args, **kwargs)

    return renaming


class _Rename(Messenger):
    """Sites and plates under other names, for handlers outside."""

    def __init__(self, names: Mapping[str, str]):
        super().__init__(None)
        self.names = names

    def process_message(self, msg):
        if msg.get("name") in self.names:
            msg["name"] = self.names[msg["name"]]
        stack = msg.get("cond_indep_stack")
        if stack:
            msg["cond_indep_stack"] = [frame._replace(name=self.names.get(frame.name, frame.name)) for frame in stack]
