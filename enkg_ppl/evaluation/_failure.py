"""What failing black boxes mean for a run: counted, named once at its end, or its end.

A run is watched by the thread that drives it; black boxes are called in threads of XLA's. `_State` is where they meet.
"""

from __future__ import annotations

import contextlib
import math
import sys
import threading
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from enkg_ppl.evaluation._shelf import Shelf
    from enkg_ppl.evaluation._store import Store

# A share of failures that is put up with where the user has not said what they mean, and what chance adds to it: the
# share is only known to so many standard deviations while a run is under way.
TOLERATED = 0.01
TOLERATED_SD = 3.0
# Of the first simulations of a run, so many failures and not one success are no matter of a few parameters.
HOPELESS = 3

# Repeated simulations of a particle: another one where the first is not what it was.
MOST_CHECKS = 2

# Errors in the simulator's own code rather than of its parameters.
PROGRAMMING_ERRORS = (NameError, AttributeError, TypeError, ImportError, SyntaxError, NotImplementedError)

MEND_CODE = "this is an error in the simulator's own code: mend it there"
MEND_ALL = "mend the simulator, or the prior"
MEND_OR_REJECT = (
    "mend the simulator there, or pass on_failure='reject' to blackbox to give such parameters zero likelihood"
)


class BlackBoxError(RuntimeError):
    """A black box failed; `__cause__` is the user's own exception, with its traceback, where there was one."""


class Failure(NamedTuple):
    """What happened (as in "raised ValueError: no root"), for which parameters, and the exception if there was one."""

    what: str
    where: str
    error: BaseException | None = None
    was_programming_error: bool = False  # of one that comes from a store, where the exception itself is not
    is_timeout: bool = False

    @property
    def is_programming_error(self) -> bool:
        return self.was_programming_error or isinstance(self.error, PROGRAMMING_ERRORS)

    @property
    def as_kept(self) -> str:
        """What happened, to be told without the exception."""
        return f"{self.what}," if self.error else self.what

    @property
    def remedy(self) -> str:
        return MEND_CODE if self.is_programming_error else MEND_OR_REJECT

    def raised_by(self, name: str, beyond: str = "", *, is_hopeless: bool = False) -> BlackBoxError:
        """As an error, to be raised from `self.error`; `is_hopeless`: rejecting would leave nothing."""
        remedy = MEND_ALL if is_hopeless and not self.is_programming_error else self.remedy
        return BlackBoxError(f"{name} {self}{beyond}: {remedy}")

    def __str__(self) -> str:
        return f"{self.what}{',' if self.error else ''} for {self.where}"


class Tally:
    """One black box in one run: simulations asked for and done, failures, and the first of those."""

    def __init__(self, name: str):
        self.name = name
        self.num_calls = self.num_done = self.num_failed = self.num_programming = 0
        self.first: Failure | None = None
        self.num_checks = 0  # simulations that were repeated, to see whether they are random
        self.num_reused = 0  # simulations that were in a store
        self._kept: list[tuple[Shelf, set[bytes]]] = []  # failures that are in a store

    def add(self, failure: Failure, size: int) -> None:
        self.first = self.first or failure
        self.num_failed += size
        self.num_programming += size * failure.is_programming_error

    def note_kept(self, shelf: Shelf, keys: set[bytes]) -> None:
        """Failures that a store keeps because they count as zero likelihood."""
        self._kept.append((shelf, keys))

    def forget_kept(self) -> None:
        """Take them out again: they end the run, so somebody will mend the simulator, and then it is to be run."""
        for shelf, keys in self._kept:
            shelf.forget(keys)
        self._kept = []

    @property
    def too_many(self) -> bool:
        """Whether these are more failures than the few that are put up with."""
        if self.num_failed == self.num_done >= HOPELESS:
            return True
        due = TOLERATED * self.num_calls
        return self.num_failed > max(1.0, due + TOLERATED_SD * math.sqrt(due))

    @property
    def beyond(self) -> str:
        """How many they are, to go on after the first of them."""
        if self.num_failed == self.num_done:
            every = "both" if self.num_done == 2 else f"all {self.num_done:,}"
            return f", and {every} simulations so far failed" if self.num_done > 1 else ""
        return (
            f", the first of {self.num_failed:,} failures in {self.num_done:,} simulations, where {TOLERATED:.0%} are "
            "put up with"
        )

    @property
    def all_failed(self) -> bool:
        return self.num_failed == self.num_calls > 0

    def error_of_all(self) -> BlackBoxError:
        assert self.first is not None
        number = f"all {self.num_calls:,} simulations" if self.num_calls > 1 else "the only simulation"
        remedy = self.first.remedy if self.first.is_programming_error else MEND_ALL
        return BlackBoxError(f"{number} of {self.name} failed, and the first {self.first}: {remedy}")


class Run:
    """What the black boxes of one run did.

    `check`: whether one simulation of each is repeated. `store`: for those that have none of their own.
    `warnings`: sentences for the user. `told`: those of them that were said already.
    """

    def __init__(self, check: bool = False, store: Store | None = None):
        self.check = check
        self.store = store
        self.warnings: list[str] = []
        self.told: list[str] = []
        self._new: list[str] = []
        self._tallies: dict[Any, Tally] = {}

    def tally(self, box) -> Tally:
        return self._tallies.setdefault(box, Tally(box.name))

    def accounts_of_stores(self) -> dict[str, int]:
        """How many simulations of black boxes a store had, and how many were run, repeated ones included."""
        tallies = [tally for box, tally in self._tallies.items() if box.store is not None or self.store is not None]
        if not tallies:
            return {}
        reused = sum(tally.num_reused for tally in tallies)
        return {"num_reused": reused, "num_simulated": sum(tally.num_calls for tally in tallies) - reused}

    def others(self, box) -> list[Any]:
        """The other black boxes of this run."""
        return [other for other in self._tallies if other is not box]

    @property
    def num_checks(self) -> int:
        """Particles that were simulated again, to see whether that is random: at most `MOST_CHECKS`."""
        return max((tally.num_checks for tally in self._tallies.values()), default=0)

    def finish(self) -> list[str]:
        """Warnings, at the end of the run. Raises `BlackBoxError` where every simulation failed."""
        self.raise_if_all_failed()
        for box, tally in self._tallies.items():
            if tally.num_failed and box.on_failure == "tolerate" and tally.first is not None:
                self.warnings.append(
                    f"{tally.name} failed for {tally.num_failed:,} of {tally.num_calls:,} simulations, which were "
                    f"given zero likelihood; the first {tally.first}: mend the simulator there, or "
                    "pass on_failure='reject' to blackbox where such parameters are impossible"
                )
        return self.warnings

    def raise_if_all_failed(self, error: BaseException | None = None) -> None:
        """`error`: what came of it elsewhere."""
        for tally in self._tallies.values():
            if tally.all_failed:
                tally.forget_kept()
                raise tally.error_of_all() from (tally.first and tally.first.error) or error

    def say(self, sentence: str) -> None:
        """To the user, as soon as the driver has control."""
        self.warnings.append(sentence)
        self._new.append(sentence)

    def say_news(self) -> None:
        """What the user should hear while the run is under way."""
        news, self._new = self._new, []
        self.told += news
        for sentence in news:
            warn_user(sentence)


_RUN: ContextVar[Run | None] = ContextVar("enkg_ppl_run", default=None)


class _State:
    """Shared between the driver's thread and XLA's callback threads; the lock serialises drivers."""

    lock = threading.RLock()
    collecting = 0  # > 0: failures are kept for the driver instead of raised inside XLA
    failure: BaseException | None = None
    run: Run | None = None  # of the driver
    active: np.ndarray | None = None  # which particles of the ensemble the driver wants


@contextlib.contextmanager
def watch_black_boxes(check: bool = False, store: Store | None = None) -> Iterator[Run]:
    """Inside is one run: a few failures are put up with, and named in one warning on the way out.

    Within another such context it is part of that run. `check`: repeat a simulation, to see whether it is random.
    `store`: of black boxes that have none of their own.
    """
    outer = _RUN.get()
    if outer is not None:
        yield outer
        return
    run = Run(check, store)
    with continue_run(run):
        yield run
    for sentence in run.finish():
        if sentence not in run.told:
            warn_user(sentence)


@contextlib.contextmanager
def continue_run(run: Run | None) -> Iterator[None]:
    """Inside, this thread drives that run. What comes of it where every simulation failed is told as just that."""
    token = _RUN.set(run)
    try:
        yield
    except BlackBoxError:
        raise
    except Exception as error:
        if run is not None:
            run.raise_if_all_failed(error)
        raise
    finally:
        _RUN.reset(token)


def current_run() -> Run | None:
    """The run that this thread drives."""
    return _RUN.get()


@contextlib.contextmanager
def raise_host_failure() -> Iterator[None]:
    """Inside, a failing black box answers NaN without being called again; on the way out its error is raised.

    Raising inside a callback would print XLA's traceback over the user's.
    """
    with _State.lock:
        outer, _State.run = _State.run, _RUN.get()
        _State.collecting += 1
        _State.failure = None
        try:
            yield
        except Exception as error:
            if _State.failure is None:
                raise
            raise _State.failure from (_State.failure.__cause__ or error)
        else:
            if _State.failure is not None:
                raise _State.failure from _State.failure.__cause__
        finally:
            run, _State.run = _State.run, outer
            _State.collecting -= 1
            _State.failure = None
        if run is not None:
            run.say_news()


@contextlib.contextmanager
def only_rows(active: np.ndarray) -> Iterator[None]:
    """Inside, black boxes are called for these particles only (boolean mask); the others get NaN."""
    with _State.lock:
        previous, _State.active = _State.active, active
        try:
            yield
        finally:
            _State.active = previous


_PACKAGE = str(Path(__file__).parents[1])


def warn_user(sentence: str) -> None:
    """A warning at the line that called this package."""
    frame, level, outermost = sys._getframe(1), 2, 1
    while frame is not None:
        outermost = level if frame.f_code.co_filename.startswith(_PACKAGE) else outermost
        frame, level = frame.f_back, level + 1
    warnings.warn(sentence, stacklevel=outermost + 1)
