"""A sign that a posterior should not be trusted."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """What a check found to be beyond its limit.

    Attributes:
        name: of the entry of `Diagnostics` that was checked, or of the check where it has none.
        value: what was found; the worst one of several ensembles.
        limit: what it should not exceed, or not fall below.
        advice: a sentence that says what it means and what to do.
    """

    name: str
    value: float
    limit: float
    advice: str


def of_the_worst(ensembles: list) -> str:
    """Words for a sentence that is about one of several ensembles."""
    return "" if len(ensembles) == 1 else " of the worst ensemble"
