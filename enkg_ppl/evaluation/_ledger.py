"""The account of a run's simulations: how many were made, how many may be made, and what is kept for later."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple

from enkg_ppl.types import Ensemble


class BudgetEnd(RuntimeError):
    """Simulations beyond the limit were requested; they were not made."""


class Reached(NamedTuple):
    """A stage of a run that was finished.

    Attributes:
        problem: whose coordinates the particles are in.
        draws: the particles.
        words: a short description of the stage.
    """

    problem: Any
    draws: Ensemble | None
    words: str


@dataclasses.dataclass
class Ledger:
    """The account of one ensemble, shared by all evaluators of a run, whatever their coordinates.

    Attributes:
        limit: simulations that may be made, or None.
        count: simulations made, one a particle and call.
        num_failed: simulations that failed.
        num_skipped: particles that were not finite, and so not simulated.
        held: simulations kept for later (`reserving`).
        short: whether anything was left out for lack of simulations.
        whole_limit: limit of the whole run.
        num_sharing: number of ensembles that share it.
        reached: last stage that the ensemble completed, for runs that do not end (`Evaluator.reach`).
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
        """Accounts of ensembles that share one limit equally, so that no draw depends on which came first.

        Args:
            limit: simulations of the whole run, or None.
            num: number of ensembles.
        """
        share = None if limit is None else limit // num
        return [cls(limit=share, whole_limit=limit, num_sharing=num) for _ in range(num)]

    @property
    def remaining(self) -> float:
        """Simulations that may still be made, those kept for later apart."""
        return float("inf") if self.limit is None else self.limit - self.count - self.held

    def affords(self, num: float) -> bool:
        """Whether so many simulations may still be made; a caller who is refused has cut the run short (`short`).

        Args:
            num: number of simulations.
        """
        enough = num <= self.remaining
        self.short |= not enough
        return enough

    def book(self, num: int) -> None:
        """Count simulations that are about to be made.

        Args:
            num: number of simulations.

        Raises:
            BudgetEnd: where they may not be made.
        """
        if num > self.remaining:
            raise BudgetEnd(
                f"{num:,} simulations were asked for where {max(self.remaining, 0):,.0f} are left of "
                f"{self.named_limit}: raise it, or lower num_particles"
            )
        self.count += num

    @contextlib.contextmanager
    def reserving(self, num: int) -> Iterator[None]:
        """Inside, so many simulations are kept for later.

        Args:
            num: number of simulations.
        """
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
        """Sentence of a refusal.

        Args:
            what: what cannot be done.
            need: simulations of this ensemble, without those kept for later.
            remedy: what the user can do instead.
        """
        of_each = f" in each of {self.num_sharing} ensembles" if self.num_sharing > 1 else ""
        least = (self.held + need) * self.num_sharing
        return f"{self.named_limit} is too few for {what}{of_each}: allow at least {least:,}, or {remedy}"
