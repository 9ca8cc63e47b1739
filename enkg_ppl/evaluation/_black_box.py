"""Host code (NumPy, SciPy, a subprocess) as a simulator inside JAX code."""

from __future__ import annotations

import contextlib
import inspect
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl._checks import whole_shape
from enkg_ppl._keywords import explain_keywords
from enkg_ppl.evaluation._external import External, SimulationError, SimulatorGone, describe
from enkg_ppl.evaluation._failure import (
    HOPELESS,
    BlackBoxError,
    Failure,
    Run,
    Tally,
    _State,
    only_rows,
    raise_host_failure,
    warn_user,
    watch_black_boxes,
)
from enkg_ppl.evaluation._host_call import host_call
from enkg_ppl.evaluation._recall import Recall, Results
from enkg_ppl.evaluation._store import Store
from enkg_ppl.evaluation._workers import (
    SimulatorTimeout,
    UnusableExecutor,
    WorkerDied,
    Workers,
    forks,
    is_picklable,
    timed,
)

__all__ = ["BlackBox", "BlackBoxError", "blackbox", "only_rows", "raise_host_failure", "watch_black_boxes"]

# Calls of a vectorised simulator, repeated on parts of an ensemble, that are made to find which particle it fails for.
MOST_REPEATS = 64

# Differences between alone and in company that are this share of the spread over particles do not matter.
SMALL_SHARE = 1e-3
SILENCE = " (check_deterministic=False of blackbox leaves the question out)"

ON_FAILURE = ("tolerate", "raise", "reject")


@explain_keywords("blackbox")
def blackbox(
    fn: Callable,
    shape: tuple[int, ...] | Callable[..., tuple[int, ...]],
    *,
    dtype=None,
    vectorized: bool = False,
    executor: Executor | None = None,
    timeout: float | None = None,
    on_failure: Literal["tolerate", "raise", "reject"] = "tolerate",
    plates: Literal["map"] | None = None,
    check_deterministic: bool = True,
    name: str | None = None,
    store: Store | str | Path | None = None,
    version: str | int = "",
) -> BlackBox:
    """Wrap host code as a simulator that can be called inside a NumPyro model.

    A simulator must be a function of its arguments. One that draws random numbers becomes so by common random numbers
    (`np.random.default_rng(0)` made anew inside `fn`, and the same numbers for every particle), by taking its noise as
    an argument that is a latent site of the model, or, approximately, by an estimate such as the mean of many runs.

    The result of a failure is NaN, so a model may handle it with `jnp.where(jnp.isnan(f), ..., f)`. Results that cannot
    hold NaN (`dtype=int`, bool) are 0 there, and the likelihood is zero all the same.

    The store finds simulations by `name`, `version`, and the arguments bit by bit. The simulator must be a function of
    those alone: not of global settings, files, or variables in a closure. Failures are stored where they count as zero
    likelihood, as under "reject" and, being few, "tolerate", and are returned as failures again. Those that end a run
    are not stored, and under "raise" none is stored or reused, so that corrected code runs again. A stored time-out is
    reused unless more time is allowed now. `Store(folder).forget_failures()` makes all failures run again. A vectorised
    call is stored as a whole when it has ended; of identical arguments only one is run.

    Under `jax.lax.cond` the simulator is called for every particle, since JAX evaluates both branches of an ensemble
    and selects afterwards. To avoid parameters outside its domain, write two `where`s: `jnp.where(good,
    simulate(jnp.where(good, a, safe)), otherwise)` with any `safe` inside the domain. Asking for a gradient raises
    `TypeError`. A warning is given for a process pool that forks.

    Args:
        fn: takes NumPy arrays and returns an array of `shape` for one particle; for a program or a server, the result
            of `command_simulator` or `umbridge_simulator` of `enkg_ppl.evaluation`.
        shape: of the result for one particle, `()` for a number. Where it follows an argument, so that the model can
            also be run at other points, a function of the arguments: `lambda a, times: times.shape`.
        dtype: of the result (default: JAX's float).
        vectorized: True where every argument of `fn` has a leading particle axis and so has the result, `(particles,
            *shape)`: one call an ensemble. Otherwise `fn` is called once a particle.
        executor: runs the calls side by side instead of in turn: anything with `submit`. A process pool needs a
            picklable `fn`; one that forks (the default on Linux before Python 3.14) hangs where `fn` uses JAX: pass it
            `mp_context=multiprocessing.get_context("spawn")`. A `ProcessPoolExecutor` whose worker dies is made anew,
            and the lost simulations are repeated.
        timeout: seconds a call may take, from its start. A call that takes longer is abandoned in a thread that ends
            with the program. The processes that it started are ended (on Linux), its own Python code too, compiled code
            is not.
        on_failure: treatment of an exception, `sys.exit`, a time-out, the death of a worker process or a NaN.
            "tolerate": a few failures, at most 1 % of a run's simulations (up to chance while the run goes on), have
            zero likelihood, and one warning at the end names the first; more of them raise, and so does an error in the
            code of `fn` (a `NameError`, `AttributeError`, `TypeError`, `ImportError`, ...). Outside of a run they all
            raise. "raise": the first raises. "reject": such parameters have zero likelihood, however many; it raises
            only where every simulation fails.
        plates: "map" simulates the elements of plates one by one: every argument is then one number a simulation, and
            `simulate(a)` of an `a` of shape (5,) is five simulations with a result of shape `(5, *shape)`.
        check_deterministic: whether each run repeats one simulation, and warns where the result differs.
        name: for messages, and for the store (default: the function's own).
        store: a folder, or a `Store`, in which every simulation is kept as soon as it is finished. Stored simulations
            are not repeated, in this run or any other; a run that was killed, started again with the same key, ends
            with the numbers of an unbroken one.
        version: of the simulator: change it when its results change. Simulations of other versions stay, unused.

    Returns:
        A `BlackBox`. Its `num_calls` is the number of particles simulated so far, including the repeated one (as
            in `EnKG.num_forward_evaluations`); `num_reused` that of results from the store, which
            `EnKG.num_forward_evaluations` counts too; `num_rejected` that of failures. `num_repeated` counts separately
            the repetitions after a failure: where a vectorised call raises, its ensemble is halved until the failing
            particles are known. Elements of plates count one each.

    Raises:
        BlackBoxError: when called, where failures are not tolerated; the message names the parameters.
        TypeError: where `fn` cannot be called, or cannot be sent to the processes of a pool.
        ValueError: for an invalid shape, timeout, plates or on_failure, or a store that is a file or a folder of
            something else.
    """
    return BlackBox(
        fn, shape, dtype, vectorized, executor, timeout, on_failure, plates, check_deterministic, name, store, version
    )


class BlackBox:
    """A simulator in host code; made by `blackbox`.

    Args:
        fn: see `blackbox`, as for all arguments.
        shape: of the result for one particle, or a function of the arguments.
        dtype: of the result.
        vectorized: whether `fn` takes all particles at once.
        executor: runs the calls side by side.
        timeout: seconds a call may take.
        on_failure: "tolerate", "raise" or "reject".
        plates: "map", or None.
        check_deterministic: whether each run repeats one simulation.
        name: for messages and the store.
        store: where finished simulations are kept.
        version: of the simulator.
    """

    def __init__(
        self,
        fn,
        shape,
        dtype,
        vectorized,
        executor,
        timeout,
        on_failure,
        plates,
        check_deterministic,
        name,
        store,
        version,
    ):
        if not callable(fn):
            raise TypeError(f"blackbox needs a function; got {fn!r}")
        shape = shape if callable(shape) else _as_shape(shape)
        if on_failure not in ON_FAILURE:
            raise ValueError(f"blackbox needs on_failure 'tolerate', 'raise' or 'reject'; got {on_failure!r}")
        if plates not in (None, "map"):
            raise ValueError(f"blackbox needs plates 'map' or None; got {plates!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"blackbox needs timeout > 0 seconds or None; got {timeout!r}")
        if executor is not None and not hasattr(executor, "submit"):
            raise TypeError(f"blackbox needs an executor with a submit method; got {executor!r}")
        if executor is not None and vectorized:
            raise ValueError("blackbox takes an executor or vectorized=True, not both: drop one of them")
        if isinstance(fn, External):
            if vectorized:
                raise ValueError(f"{fn.__name__} simulates one particle a call: drop vectorized=True")
            fn = fn.due(shape, timeout)
        self.fn = fn
        self.shape = shape
        self.dtype = dtype
        self.vectorized = vectorized
        self.executor = executor
        self.timeout = timeout
        self.on_failure = on_failure
        self.plates = plates
        self.check_deterministic = check_deterministic
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.store = None if store is None else Store(store)
        self.version = str(version)
        self.num_calls = 0
        self.num_reused = 0
        self.num_rejected = 0
        self.num_repeated = 0
        self.__name__ = self.name
        self._argument_names = _argument_names(fn)
        self._workers = None if executor is None else Workers(executor, fn, timeout)
        self._timed = timed(fn, timeout)
        if isinstance(executor, ProcessPoolExecutor):
            self._check_pool(executor)

    def _check_pool(self, pool: ProcessPoolExecutor) -> None:
        if not is_picklable(self.fn):
            raise TypeError(
                f"{self.name} cannot be sent to the processes of a ProcessPoolExecutor: define it with def at the top "
                "level of a module, or use a ThreadPoolExecutor"
            )
        if forks(pool):
            warn_user(
                f"the ProcessPoolExecutor of {self.name} forks, and a forked process hangs where it uses JAX: make it "
                "with mp_context=multiprocessing.get_context('spawn')"
            )

    def __repr__(self) -> str:
        return f"blackbox({self.name}, shape={self.shape}, num_calls={self.num_calls})"

    def __call__(self, *args) -> jax.Array:
        """Simulate.

        Args:
            *args: arrays or numbers; under `jax.vmap` each gains a leading axis, as does the result.
        """
        args = tuple(jnp.asarray(a) for a in args)
        if self.plates is None:
            return self._call(args)
        plates = np.broadcast_shapes(*(a.shape for a in args))
        flat = tuple(jnp.broadcast_to(a, plates).reshape(-1) for a in args)
        found = jax.vmap(lambda *each: self._call(each))(*flat) if plates else self._call(args)
        return found.reshape((*plates, *found.shape[1:])) if plates else found

    def _call(self, args) -> jax.Array:
        ranks = tuple(a.ndim for a in args)
        shape = _as_shape(self.shape(*args)) if callable(self.shape) else self.shape
        result = jax.ShapeDtypeStruct(shape, jax.dtypes.canonicalize_dtype(self.dtype or float))
        failed = jax.ShapeDtypeStruct((), np.dtype(bool))

        @jax.custom_jvp
        def call(*args):
            return host_call(lambda *a: self._host(ranks, result, a), (result, failed), *args, flagged=True)

        @call.defjvp
        def _(primals, tangents):
            raise TypeError(
                f"{self.name} is a black box and has no gradient: use a method that needs none (EnKG), "
                "or write the simulator in JAX"
            )

        return call(*args)[0]

    # -- called by XLA -------------------------------------------------------------------------------------------

    def _host(self, ranks: tuple[int, ...], result, args) -> tuple[np.ndarray, np.ndarray]:
        """With every argument batched alike (or none): the batch of results, and which of them failed."""
        batch = args[0].shape[: args[0].ndim - ranks[0]] if args else ()
        rows = [a.reshape((math.prod(batch), *a.shape[len(batch) :])) for a in args]
        wanted = self._wanted(batch)
        out = np.full((len(wanted), *result.shape), _filler(result.dtype), result.dtype)
        failed = np.ones(len(wanted), bool)
        driven = _State.collecting > 0
        if not (driven and _State.failure is not None):
            try:
                self._simulate(rows, np.flatnonzero(wanted), out, failed)
            except (BlackBoxError, KeyboardInterrupt) as error:
                if not driven:
                    raise
                _State.failure = error
        return out.reshape((*batch, *result.shape)), failed.reshape(batch)

    def _wanted(self, batch: tuple[int, ...]) -> np.ndarray:
        """Boolean mask over the flattened batch."""
        active = _State.active
        if active is None or not batch or batch[0] != len(active):
            return np.ones(math.prod(batch), bool)
        return np.repeat(active, math.prod(batch[1:]))

    def _simulate(self, rows: list[np.ndarray], wanted: np.ndarray, out: np.ndarray, failed: np.ndarray) -> None:
        if not len(wanted):
            return
        run = _State.run if _State.collecting else None
        tally = Tally(self.name) if run is None else run.tally(self)
        policy = "raise" if run is None and self.on_failure == "tolerate" else self.on_failure
        tally.num_calls += len(wanted)
        recall = self._recall(run, rows, wanted, out, policy)
        if recall is None:
            results = self._fresh(rows, wanted, out, policy)
        else:
            results = recall.merged(self._fresh(rows, recall.missing, out, policy, recall))
            self.num_reused += recall.num_reused
            tally.num_reused += recall.num_reused
        with self._kept_as_it_comes(recall, run), contextlib.closing(results):
            for where, value in results:
                tally.num_done += len(where)
                if isinstance(value, Failure):
                    self._failed(value, len(where), tally, policy, out.dtype)
                    if recall is not None:
                        recall.keep(where, value)
                        tally.note_kept(recall.shelf, recall.keys_of(where))
                else:
                    out[where], failed[where] = value, False
        if tally.all_failed and tally.num_programming == tally.num_failed:
            tally.forget_kept()
            raise tally.error_of_all() from tally.first and tally.first.error
        good = wanted[~failed[wanted]]
        if run is not None and run.check and self.check_deterministic and not tally.num_checks and len(good):
            self._check(run, rows, good, out, recall)

    def _fresh(self, rows, wanted: np.ndarray, out: np.ndarray, policy: str, recall: Recall | None = None) -> Results:
        """Simulations that are really run; `recall`: where good ones are kept."""
        if self.vectorized:
            return self._together(rows, wanted, out, policy, recall)
        return self._each(rows, wanted, out, recall)

    # -- the store -----------------------------------------------------------------------------------------------

    def _recall(self, run: Run | None, rows, wanted: np.ndarray, out: np.ndarray, policy: str) -> Recall | None:
        """What the store knows of these simulations; None where there is no store."""
        store = self._store_in(run)
        if store is None:
            return None
        self._check_name(store, run)
        result = jax.ShapeDtypeStruct(out.shape[1:], out.dtype)
        names = [self._argument_name(i) for i in range(len(rows))]
        return Recall(
            store._shelf_of(self.name, self.version, rows, result, names),
            rows,
            wanted,
            together=self.vectorized,
            believes=lambda kept: (
                policy != "raise" and (kept.timeout is None or self._allows_no_more_than(kept.timeout))
            ),
            as_failure=lambda kept, row: Failure(
                kept.what, self._describe(rows, row), None, kept.is_programming_error, kept.timeout is not None
            ),
            timeout=self.timeout,
        )

    def _store_in(self, run: Run | None) -> Store | None:
        """Its own, or that of the run. (An empty store is false, as all that has a length of 0.)"""
        return self.store if self.store is not None or run is None else run.store

    def _allows_no_more_than(self, seconds: float | None) -> bool:
        return seconds is None or (self.timeout is not None and self.timeout <= seconds)

    def _check_name(self, store: Store, run: Run | None) -> None:
        """A store knows simulators by their names, so they must have some."""
        if self.name == "<lambda>":
            raise BlackBoxError("a black box of a lambda has no name to be kept under: pass name= to blackbox")
        for other in [] if run is None else run.others(self):
            place = other._store_in(run)
            same = (other.name, other.version) == (self.name, self.version) and other.fn is not self.fn
            if same and place is not None and place.path == store.path:
                raise BlackBoxError(
                    f"two black boxes called {self.name} keep their simulations in {store.path}, where nothing would "
                    "tell them apart: give each another name="
                )

    @contextlib.contextmanager
    def _kept_as_it_comes(self, recall: Recall | None, run: Run | None) -> Iterator[None]:
        """Inside is one call; what is left of it is kept at its end, and what the store has to say is said."""
        store = self._store_in(run)
        if recall is None or store is None:
            yield
            return
        try:
            yield
            recall.close(with_failures=True)
        except BlackBoxError:
            recall.close(with_failures=False)
            raise
        finally:
            for sentence in store.take_news():
                if run is None:
                    warn_user(sentence)
                else:
                    run.say(sentence)

    def _failed(self, failure: Failure, size: int, tally: Tally, policy: str, dtype) -> None:
        """Count a failure of so many particles, or raise."""
        self.num_rejected += size
        tally.add(failure, size)
        if policy == "raise":
            raise failure.raised_by(self.name) from failure.error
        if policy == "reject":
            if not _State.collecting and not np.issubdtype(dtype, np.inexact):
                warn_user(
                    f"{self.name} {failure}, and outside of a run of EnKG nothing tells its result of {dtype}, which "
                    "cannot be NaN, from a 0: leave such parameters out, or give blackbox a float dtype"
                )
            return
        first = tally.first or failure
        if failure.is_programming_error:
            tally.forget_kept()
            raise failure.raised_by(self.name) from failure.error
        if tally.too_many:
            tally.forget_kept()
            is_hopeless = tally.num_failed == tally.num_done >= HOPELESS
            raise first.raised_by(self.name, tally.beyond, is_hopeless=is_hopeless) from first.error

    # -- simulations: which particles, and their results or what happened instead --------------------------------

    def _each(self, rows, wanted, out, recall: Recall | None = None) -> Results:
        """One particle a call."""

        def result(i: int, value) -> np.ndarray | Failure:
            value = self._kept(self._checked(value, rows, out.shape[1:]), rows, wanted[i : i + 1], out.dtype)
            if recall is not None and not isinstance(value, Failure):
                recall.keep(wanted[i : i + 1], value)
            return value

        def finished(i: int, value) -> None:
            with contextlib.suppress(BlackBoxError):  # which is raised in its turn
                result(i, value)

        calls = [[a[row] for a in rows] for row in wanted]
        for i, value, error in self._outcomes(calls, None if recall is None else finished):
            self.num_calls += 1
            where = wanted[i : i + 1]
            if isinstance(error, SimulatorGone):
                raise BlackBoxError(f"{self.name} {error}") from error
            yield where, result(i, value) if error is None else self._failure(error, rows, where)

    def _outcomes(self, calls: Sequence[Sequence], finished: Callable[[int, Any], None] | None) -> Iterator:
        if self._workers is not None:
            try:
                yield from self._workers.outcomes(calls, finished)
            except UnusableExecutor as error:
                raise BlackBoxError(f"the executor of {self.name} {error}") from error.__cause__
            return
        for i, args in enumerate(calls):
            try:
                value, error = self._timed(*args), None
            except (Exception, SystemExit) as raised:
                value, error = None, raised
            yield i, value, error

    def _together(self, rows, wanted, out, policy: str, recall: Recall | None = None) -> Results:
        """An ensemble a call; where that raises, its halves, until it is known for which particles it does."""
        self.num_calls += len(wanted)
        groups, repeats = [wanted] if len(wanted) else [], 0
        while groups:
            group = groups.pop()
            try:
                result = self._timed(*(a[group] for a in rows))
            except (Exception, SystemExit) as error:
                failure = self._failure(error, rows, group)
                hopeless = failure.is_programming_error or isinstance(error, SimulatorTimeout)
                if len(group) == 1 or policy == "raise" or hopeless or repeats >= MOST_REPEATS:
                    yield group, failure
                    continue
                half = len(group) // 2
                groups += [group[half:], group[:half]]
                repeats += 2
                self.num_repeated += len(group)
                continue
            result = self._checked(result, rows, (len(group), *out.shape[1:]))
            found = [self._kept(value, rows, group[i : i + 1], out.dtype) for i, value in enumerate(result)]
            if recall is not None:  # all of them, should the first end the run
                recall.keep_good(group, found)
            for i, value in enumerate(found):
                yield group[i : i + 1], value

    def _failure(self, error: BaseException, rows, where: np.ndarray) -> Failure:
        text = self._describe(rows, where[0])
        if len(where) > 1:
            text = f"an ensemble of {len(where)} whose first member is {text}"
        if isinstance(error, SimulatorTimeout):
            what = f"took longer than {self.timeout} s{error}"
        elif isinstance(error, WorkerDied):
            what = "ended its worker process (killed, out of memory, or os._exit)"
        elif isinstance(error, SimulationError):
            what = error.what
        elif isinstance(error, SystemExit):
            what = f"called sys.exit({error.code!r})"
        else:
            what = f"raised {type(error).__name__}: {error}"
            if isinstance(error, TypeError | ValueError):
                text += "" if callable(self.shape) else self._of_plates(rows, self.shape, None)
        return Failure(what, text, error, is_timeout=isinstance(error, SimulatorTimeout))

    def _kept(self, value: np.ndarray, rows, where: np.ndarray, dtype) -> np.ndarray | Failure:
        """The value in its dtype, or the failure that it is."""
        if np.isnan(value).any():
            return Failure("returned NaN", self._describe(rows, where[0]))
        if np.issubdtype(dtype, np.inexact) or value.dtype == dtype:
            return value.astype(dtype)
        with np.errstate(all="ignore"):
            kept = value.astype(dtype)
            held = np.isfinite(value)
            if not np.issubdtype(dtype, np.bool_):
                held &= np.abs(kept.astype(float) - value.astype(float)) < 1
        if not np.all(held):
            return Failure(
                f"returned {value[~held].flat[0]}, which {dtype} cannot hold,", self._describe(rows, where[0])
            )
        return kept

    def _checked(self, value, rows, shape: tuple[int, ...]) -> np.ndarray:
        """As an array of numbers of the shape that is due."""
        dtype = jax.dtypes.canonicalize_dtype(self.dtype or float)
        try:
            array = np.asarray(value)
        except ValueError as error:  # a ragged list
            raise BlackBoxError(f"{self.name} returned something that is no array ({error})") from error
        if not (np.issubdtype(array.dtype, np.number) or array.dtype == bool):
            raise BlackBoxError(
                f"{self.name} returned dtype {array.dtype} where {np.dtype(dtype)} is due: return numbers"
            )
        if np.iscomplexobj(array) and not np.issubdtype(dtype, np.complexfloating):
            raise BlackBoxError(
                f"{self.name} returned dtype {array.dtype} where {np.dtype(dtype)} is due: stack real and imaginary "
                "parts into one real array"
            )
        if array.shape != shape:
            each = ", one leading axis for the particles" if self.vectorized else ""
            of_one = slice(int(self.vectorized), None)
            advice = self._of_plates(rows, shape[of_one], array.shape[of_one]) or self._of_argument(
                rows, array.shape[of_one]
            )
            raise BlackBoxError(
                f"{self.name} returned shape {array.shape} where {shape} is due{each}"
                + (advice or ": correct the shape given to blackbox, or what the simulator returns")
            )
        return array

    def _of_plates(self, rows, due: tuple[int, ...], found: tuple[int, ...] | None) -> str:
        """What to do about an argument with axes, where one number may have been meant; `found`: shape of a result."""
        for i, a in enumerate(rows):
            plates = a.shape[1:]
            if plates and (due == () if found is None else found == plates + due):
                return (
                    f", as {self._argument_name(i)} has shape {plates}: where that is a plate, pass plates='map' to "
                    f"blackbox to simulate its elements one by one, or shape={plates + due} for all in a call"
                )
        return ""

    def _of_argument(self, rows, found: tuple[int, ...]) -> str:
        """What to do about a result of the shape of an argument, as at other points than those of the data."""
        for i, a in enumerate(rows):
            if a.shape[1:] == found and not callable(self.shape):
                arguments, name = ", ".join(map(self._argument_name, range(len(rows)))), self._argument_name(i)
                return (
                    f", as {name} has: where the result has one number for each of {name}, pass "
                    f"shape=lambda {arguments}: {name}.shape to blackbox"
                )
        return ""

    # -- is it a function of its arguments? ----------------------------------------------------------------------

    def _check(self, run: Run, rows, good: np.ndarray, out: np.ndarray, recall: Recall | None) -> None:
        """Simulate one particle again; where the result is another, say what that means."""
        row = good[-1]
        same = self._describe(rows, row)
        again = self._again(run, rows, row, out)
        if again is not None and _agree(again, out[row]):
            return
        if recall is not None and recall.is_reused(row):
            self._check_reused(run, rows, good, out, again, recall)
            return
        if self.vectorized and again is not None:
            # In the company of others sums round otherwise, and step sizes may be others: alone and alone must agree.
            twice = self._again(run, rows, row, out)
            if twice is not None and _agree(again, twice):
                if np.all(_distance(again, out[row]) <= SMALL_SHARE * np.std(out[good], axis=0)):
                    return
                run.say(
                    f"{self.name} gives other results for the same parameters ({same}) alone than among other "
                    f"particles: random numbers, and all else, must be the same for every one of them{SILENCE}"
                )
                return
        self._say_random(run, same)

    def _check_reused(self, run: Run, rows, good: np.ndarray, out: np.ndarray, again, recall: Recall) -> None:
        """The same of a result that comes from the store: it may be the simulator that is another one now."""
        row = good[-1]
        same = self._describe(rows, row)
        near = again is not None and _distance(again, out[row]) <= SMALL_SHARE * np.std(out[good], axis=0)
        if self.vectorized and np.all(near):  # it was simulated in the company of others
            return
        twice = self._again(run, rows, row, out)
        if again is not None and not (twice is not None and _agree(again, twice)):
            self._say_random(run, same)
            return
        run.say(
            f"{self.name} gives another result for the same parameters ({same}) than is kept in "
            f"{recall.shelf.folder.parent}, so it has changed since: pass another version= to blackbox, or another "
            f"store{SILENCE}"
        )

    def _say_random(self, run: Run, same: str) -> None:
        run.say(
            f"{self.name} is random: with the same parameters ({same}) it gave another result, and a noisy likelihood "
            "costs many times the simulations and makes the posterior wrong: use common random numbers "
            "(np.random.default_rng(0), made anew in every call), make its noise a latent site that it takes as an "
            f"argument, or return an estimate such as the mean of many simulations{SILENCE}"
        )

    def _again(self, run: Run, rows, row: int, out: np.ndarray) -> np.ndarray | None:
        """The result of one more simulation, or None if it failed."""
        one = np.array([row])
        tally = run.tally(self)
        tally.num_checks += 1
        tally.num_calls += 1
        tally.num_done += 1
        results = self._fresh(rows, one, out, "raise")
        with contextlib.closing(results):
            value = next(results)[1]
        return None if isinstance(value, Failure) else value

    def _describe(self, rows, row: int) -> str:
        """The arguments of one particle, by name."""
        return describe([self._argument_name(i) for i in range(len(rows))], [a[row] for a in rows])

    def _argument_name(self, i: int) -> str:
        return self._argument_names[i] if i < len(self._argument_names) else f"argument {i}"


def _distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    return np.abs(a.astype(complex) - b.astype(complex))


def _agree(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal up to rounding, in units of the largest number among them; infinities included."""
    if not np.issubdtype(a.dtype, np.inexact):
        return bool(np.array_equal(a, b))
    finite = np.isfinite(a) & np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite]):
        return False
    scale = np.max(np.abs(a[finite]), initial=0.0)
    return bool(np.all(_distance(a[finite], b[finite]) <= np.finfo(a.dtype).eps ** 0.5 * scale))


def _as_shape(shape) -> tuple[int, ...]:
    found = whole_shape(shape, 0)
    if found is None:
        raise ValueError(
            "blackbox needs shape as a tuple of whole numbers, for one particle, or a function of the arguments that "
            f"returns one; got {shape!r}"
        )
    return found


def _filler(dtype):
    return np.nan if np.issubdtype(dtype, np.inexact) else 0


def _argument_names(fn) -> list[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
