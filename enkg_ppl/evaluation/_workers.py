"""Calls of a simulator that end: in time, and without taking others with them.

A time-out is measured where the simulation runs, from its start. A thread cannot be stopped from outside, so what takes
too long is left behind in one that nobody waits for; the processes it had started are ended, and it is told to end.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import pickle
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from pathlib import Path
from typing import Any

from enkg_ppl.evaluation._external import External

# Seconds beyond its time after which the worker of a pool is ended from outside, as where compiled code holds Python's
# lock; within them it may also have to start.
GRACE = 30.0
POLL = 0.25  # seconds between two looks at that

# Simulations one after the other, each of which breaks a new pool: it is the pool, not they.
HOPELESS = 3

Outcome = tuple[int, Any, BaseException | None]  # which call, its result, or what it raised


class SimulatorTimeout(TimeoutError):
    """In place of a result that took too long; its text, if it has one, goes on after saying so."""


class WorkerDied(RuntimeError):
    """In place of a result whose worker process ended."""


class UnusableExecutor(RuntimeError):
    """No further call can be made with this executor."""


class _Ended(SystemExit):
    """Raised in a thread that is left behind; threads end by a `SystemExit` without a word."""


class Timed:
    """`fn`, for at most so many seconds a call; can be sent to another process where `fn` can."""

    def __init__(self, fn: Callable, seconds: float):
        self.fn, self.seconds = fn, seconds

    def __call__(self, *args):
        done: list[tuple[Any, BaseException | None]] = []

        def work():
            try:
                done.append((self.fn(*args), None))
            except BaseException as error:
                done.append((None, error))

        thread = threading.Thread(target=work, daemon=True)  # at its end the program does not wait for it
        thread.start()
        thread.join(self.seconds)
        if not done:
            _leave_behind(thread)
            raise SimulatorTimeout
        value, error = done[0]
        if error is not None:
            raise error
        return value


def timed(fn: Callable, seconds: float | None) -> Callable:
    """`fn` within its time; what is no Python function sees to that itself."""
    return fn if seconds is None or isinstance(fn, External) else Timed(fn, seconds)


def _leave_behind(thread: threading.Thread) -> None:
    if thread.native_id is not None:
        for pid in _children(Path(f"/proc/self/task/{thread.native_id}/children")):
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    if thread.ident is not None:  # heard as soon as it runs Python code
        ctypes.pythonapi.PyThreadState_SetAsyncExc(ctypes.c_ulong(thread.ident), ctypes.py_object(_Ended))


def _children(file: Path) -> Iterator[int]:
    """Processes that a thread has started, and theirs; none where the system does not tell (it is Linux that does)."""
    try:
        found = [int(pid) for pid in file.read_text().split()]
    except OSError:
        return
    for pid in found:
        for task in Path(f"/proc/{pid}/task").glob("*/children"):
            yield from _children(task)
        yield pid


_remade: weakref.WeakKeyDictionary[Executor, Executor] = weakref.WeakKeyDictionary()


class Workers:
    """An executor, remade where its processes die."""

    def __init__(self, executor: Executor, fn: Callable, timeout: float | None):
        self._executor, self._timeout = executor, timeout
        self._fn = timed(fn, timeout)

    def outcomes(
        self, calls: Sequence[Sequence[Any]], finished: Callable[[int, Any], None] | None = None
    ) -> Iterator[Outcome]:
        """Results, or what was raised, of every call, as they come.

        `finished`: told at once which call gave which result, in whatever thread that is known, for a slow call holds
        up all that come after it.
        Where a pool breaks, calls are repeated one by one until the one is found that breaks it; the others then go on
        side by side. Raises `UnusableExecutor` where no call can be made at all.
        """
        left, in_turn = list(range(len(calls))), 0
        while left:
            lost: list[int] = []
            cause = None
            for i, value, error in self._together(left, calls, finished):
                if isinstance(error, BrokenExecutor):
                    lost.append(i)
                    cause = error
                else:
                    yield i, value, error
            left = lost
            if cause is None:
                return
            self._remake(cause)
            # Calls are begun in order, so the culprit is among the first few.
            for i in left[: 2 * getattr(self._current, "_max_workers", len(left)) + 1]:
                _, value, error = next(self._together([i], calls, finished))
                left = left[1:]
                if not isinstance(error, BrokenExecutor):
                    in_turn = 0
                    yield i, value, error
                    continue
                in_turn += 1
                if in_turn == HOPELESS:
                    raise UnusableExecutor(
                        f"ends its worker processes at every simulation ({error}): start the program under "
                        "`if __name__ == '__main__':` where they are spawned, and try the simulator by itself"
                    ) from error
                self._remake(error)
                yield i, None, WorkerDied(str(error))
                break

    def _together(self, which: Sequence[int], calls, finished) -> Iterator[Outcome]:
        futures: list[Future] = []
        try:
            for i in which:
                futures.append(self._submit(calls[i]))
                if finished is not None:
                    futures[-1].add_done_callback(functools.partial(_tell, finished, i))
            for i, future in zip(which, futures, strict=True):
                try:
                    yield i, self._result(future), None
                except (Exception, SystemExit) as error:
                    yield i, None, error
        finally:
            for future in futures:
                future.cancel()

    @property
    def _current(self) -> Executor:
        """Black boxes may share a pool, and then share the one that was made in its place."""
        executor = self._executor
        while executor in _remade:
            executor = _remade[executor]
        return executor

    def _submit(self, args) -> Future:
        try:
            return self._current.submit(self._fn, *args)
        except BrokenExecutor as error:
            broken = Future()
            broken.set_exception(error)
            return broken
        except RuntimeError as error:
            raise UnusableExecutor(
                f"takes no further simulation ({error}): keep it open until the run has ended"
            ) from error

    def _result(self, future: Future):
        if self._timeout is None or not isinstance(self._current, ProcessPoolExecutor):
            return future.result()
        begun = None
        while True:
            try:
                return future.result(POLL)
            except FutureTimeoutError:
                if future.done():
                    return future.result()
            begun = begun or (time.monotonic() if future.running() else None)
            # One call may wait in the queue of a worker and count as running.
            if begun is not None and time.monotonic() - begun > 2 * self._timeout + GRACE:
                for process in list(self._current._processes.values()):
                    process.kill()
                raise SimulatorTimeout

    def _remake(self, error: BrokenExecutor) -> None:
        old: Any = self._current
        kind = type(old)
        if kind is ProcessPoolExecutor:
            new: Executor = ProcessPoolExecutor(
                old._max_workers,
                old._mp_context,
                old._initializer,
                old._initargs,
                max_tasks_per_child=old._max_tasks_per_child,
            )
        elif hasattr(kind, "get_reusable_executor"):  # loky's
            made = kind.get_reusable_executor(max_workers=old._max_workers)
            new = made[0] if isinstance(made, tuple) else made
        else:
            raise UnusableExecutor(
                f"is broken ({type(error).__name__}: {error}) and cannot be made anew here: use a "
                "concurrent.futures.ProcessPoolExecutor, or make it again and run again"
            ) from error
        if new is not old:
            _remade[old] = new


def _tell(finished: Callable[[int, Any], None], i: int, future: Future) -> None:
    if not future.cancelled() and future.exception() is None:
        finished(i, future.result())


def is_picklable(fn: Callable) -> bool:
    try:
        pickle.dumps(fn)
    except Exception:  # whatever an object does that was not made for it
        return False
    return True


def forks(executor: Executor) -> bool:
    """Whether it starts its processes as copies of this one, threads and their locks left out."""
    context: Any = getattr(executor, "_mp_context", None)
    return isinstance(executor, ProcessPoolExecutor) and context.get_start_method() == "fork"
