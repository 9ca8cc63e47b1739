"""Several independent ensembles: in turn, on several devices, or side by side with joint calls of the simulator."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import jax
import numpy as np

from enkg_ppl.evaluation._failure import continue_run, current_run
from enkg_ppl.types import Ensemble

EnsembleMethod = Literal["sequential", "parallel", "vectorized"]
METHODS = ("sequential", "parallel", "vectorized")
Result = TypeVar("Result")


def run_ensembles(one: Callable[[int, Barrier | None], Result], num: int, method: EnsembleMethod) -> list[Result]:
    """``one(i, barrier)`` for every ensemble i, in the order of i whatever the method.

    "sequential": in turn. "parallel": ensemble i on device ``i % len(jax.local_devices())``, a thread for each device;
    with one device that is "sequential", and a warning says so. "vectorized": a thread for each ensemble on one device;
    what they ask of the simulator meets in one call (`Barrier`). The first error of any ensemble is raised.
    """
    devices = jax.local_devices()
    if method == "parallel" and len(devices) == 1 and num > 1:
        warnings.warn(
            f"ensemble_method='parallel' finds one device, so the {num} ensembles run in turn: on a CPU, set "
            f"jax.config.update('jax_num_cpu_devices', {num}) before anything else of JAX",
            stacklevel=3,
        )
    if num == 1 or method == "sequential" or (method == "parallel" and len(devices) == 1):
        return [one(i, None) for i in range(num)]
    settings = settings_of_this_thread()
    if method == "parallel":

        def on_device(i: int) -> Result:
            device = devices[i % len(devices)]
            # Naming the default device would compile anew what is compiled for it already.
            with settings(), nullcontext() if i % len(devices) == 0 else jax.default_device(device):
                return one(i, None)

        with ThreadPoolExecutor(min(num, len(devices))) as pool:
            return list(pool.map(on_device, range(num)))
    barrier = Barrier(num)

    def in_company(i: int) -> Result:
        with settings(), barrier.attended(i):
            return one(i, barrier)

    with ThreadPoolExecutor(num) as pool:
        return list(pool.map(in_company, range(num)))


def settings_of_this_thread() -> Callable[[], contextlib.AbstractContextManager]:
    """What ``with jax.enable_x64(...)`` and ``with jax.default_device(...)`` set, for use in other threads.

    They do not inherit it, and a program compiled under one setting is not found under another. Black boxes that they
    call belong to the run of this thread.
    """
    run = current_run()
    x64, device = bool(jax.config.read("jax_enable_x64")), jax.config.jax_default_device  # pyright: ignore[reportAttributeAccessIssue]

    @contextlib.contextmanager
    def restored() -> Iterator[None]:
        with jax.enable_x64(x64), jax.default_device(device), continue_run(run):
            yield

    return restored


@dataclasses.dataclass
class _Request:
    """What one ensemble wants simulated."""

    member: int
    simulator: Any  # requests for the same one may be joined
    simulate: Callable[[Ensemble, Callable], Any]
    x: Ensemble
    finish: Callable
    done: bool = False
    answer: Any = None
    error: Exception | None = None


class Barrier:
    """Joins the calls of ensembles in different threads, so that one call simulates for all.

    A call is made as soon as every ensemble that is still running has asked; in the order of the ensembles, so that the
    result does not depend on which thread was first.

    Args:
        num_members: number of ensembles.
    """

    def __init__(self, num_members: int):
        self._condition = threading.Condition()
        self._num_members = num_members
        self._asked: list[_Request] = []
        self._here = threading.local()

    @contextlib.contextmanager
    def attended(self, member: int) -> Iterator[None]:
        """Inside, this thread is the ensemble `member`; the others do not wait for it afterwards.

        Args:
            member: number of the ensemble.
        """
        self._here.member = member
        try:
            yield
        finally:
            with self._condition:
                self._num_members -= 1
                self._serve_if_complete()

    def simulate(self, simulator, simulate: Callable[[Ensemble, Callable], Any], x: Ensemble, finish: Callable):
        """``simulate(x, finish)``, the x of all ensembles together.

        Args:
            simulator: the same object for calls that can be joined.
            simulate: the joint call.
            x: this ensemble's latent vectors, shape (particles, dim).
            finish: passed on to `simulate`.
        """
        request = _Request(self._here.member, simulator, simulate, x, finish)
        with self._condition:
            self._asked.append(request)
            self._serve_if_complete()
            self._condition.wait_for(lambda: request.done)
        if request.error is not None:
            raise request.error
        return request.answer

    def _serve_if_complete(self) -> None:
        if not self._asked or len(self._asked) < self._num_members:
            return
        waiting, self._asked = sorted(self._asked, key=lambda r: r.member), []
        while waiting:
            first = waiting[0]
            joined = [r for r in waiting if r.simulator is first.simulator and r.finish is first.finish]
            waiting = [r for r in waiting if not any(r is other for other in joined)]
            _serve(joined)
        self._condition.notify_all()


def _serve(requests: list[_Request]) -> None:
    """One call for all of them; what it raises, each of them raises."""
    ends = np.cumsum([len(r.x) for r in requests])
    try:
        together = requests[0].simulate(np.concatenate([r.x for r in requests]), requests[0].finish)
        for r, end in zip(requests, ends, strict=True):
            r.answer = jax.tree.map(lambda a, r=r, end=end: a[end - len(r.x) : end], together)
    except Exception as error:
        for r in requests:
            r.error = error
    for r in requests:
        r.done = True
