"""The account of a run's simulations: how many were made, how many may be made, and what is kept for later."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from enkg_ppl.types import Ensemble


class BudgetEnd(RuntimeError):
    """Simulations beyond the limit were asked for; they were not made."""


class Reached(NamedTuple):
    """A stage of a run that was finished: particles in the coordinates of a problem, and a few words."""

    problem: Any
    draws: Ensemble | None
    words: str


@dataclasses.dataclass
class Ledger:
    """The account of one ensemble. All evaluators of a run share it, whatever their coordinates.

    `limit`: simulations that may be made, or None. `count`: those made, one a particle and call. `num_failed`: those of
    them that failed. `num_skipped`: particles that were not finite, and so not simulated. `held`: those kept for later
    (`reserving`). `short`: whether anything was left undone for want of them. `whole_limit`, `num_sharing`: the limit
    of the whole run, and by how many ensembles it is shared. `reached`: where the ensemble is, for runs that do not
    end (`Evaluator.reach`).
    """

    limit: int | None = None
    count: int = 0
    num_failed: int = 0
    num_skipped: int = 0
    held: int = 0
    short: bool = False
    whole_limit: int | None = None
    num_sharing: int = 1
    reached: Reached | None = None

    @classmethod
    def shared(cls, limit: int | None, num: int) -> list[Ledger]:
        """Accounts of `num` ensembles that share one limit equally, so that no draw depends on which came first."""
        share = None if limit is None else limit // num
        return [cls(limit=share, whole_limit=limit, num_sharing=num) for _ in range(num)]

    @property
    def remaining(self) -> float:
        """Simulations that may still be made, those kept for later apart."""
        return float("inf") if self.limit is None else self.limit - self.count - self.held

    def affords(self, num: float) -> bool:
        """Whether so many may still be made. A caller who does without them has cut the run short."""
        enough = num <= self.remaining
        self.short |= not enough
        return enough

    def book(self, num: int) -> None:
        """Count simulations that are about to be made; raises `BudgetEnd` where they may not be."""
        if num > self.remaining:
            raise BudgetEnd(
                f"{num:,} simulations were asked for where {max(self.remaining, 0):,.0f} are left of "
                f"{self.named_limit}: raise it, or lower num_particles"
            )
        self.count += num

    @contextlib.contextmanager
    def reserving(self, num: int) -> Iterator[None]:
        """Inside, so many are kept for what comes afterwards."""
        self.held += num
        try:
            yield
        finally:
            self.held -= num

    @property
    def named_limit(self) -> str:
        """The limit as the user gave it."""
        return f"max_forward_evaluations={self.limit if self.whole_limit is None else self.whole_limit}"

    def too_few(self, what: str, need: int, remedy: str = "lower num_particles") -> str:
        """Sentence of a refusal; `need`: simulations of this ensemble beside those kept for later."""
        of_each = f" in each of {self.num_sharing} ensembles" if self.num_sharing > 1 else ""
        least = (self.held + need) * self.num_sharing
        return f"{self.named_limit} is too few for {what}{of_each}: allow at least {least:,}, or {remedy}"
