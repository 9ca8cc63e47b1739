"""Host code (NumPy, SciPy, a subprocess) as a simulator inside JAX code."""

from __future__ import annotations

import contextlib
import inspect
import math
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeoutError
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl._host_call import host_call


class BlackBoxError(RuntimeError):
    """A black box failed; `__cause__` is the user's own exception, with its traceback, where there was one."""


class _State:
    """Shared between the driver's thread and XLA's callback threads; the lock serialises drivers."""

    lock = threading.RLock()
    collecting = 0  # > 0: failures are kept for the driver instead of raised inside XLA
    failure: BlackBoxError | None = None
    active: np.ndarray | None = None  # which particles of the ensemble the driver wants


@contextlib.contextmanager
def raise_host_failure() -> Iterator[None]:
    """Inside, a failing black box answers NaN without being called again; on the way out its error is raised.

    Raising inside a callback would print XLA's traceback over the user's.
    """
    with _State.lock:
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
            _State.collecting -= 1
            _State.failure = None


@contextlib.contextmanager
def only_rows(active: np.ndarray) -> Iterator[None]:
    """Inside, black boxes are called for these particles only (boolean mask); the others get NaN."""
    with _State.lock:
        previous, _State.active = _State.active, active
        try:
            yield
        finally:
            _State.active = previous


def blackbox(
    fn: Callable,
    shape: tuple[int, ...],
    *,
    dtype=None,
    vectorized: bool = False,
    executor: Executor | None = None,
    timeout: float | None = None,
    on_failure: Literal["raise", "reject"] = "raise",
    name: str | None = None,
) -> BlackBox:
    """Wrap host code as a simulator that can be called inside a NumPyro model.

    `fn`: takes NumPy arrays and returns an array of `shape` for one particle. With `vectorized=True` every
    argument has a leading particle axis and so must the result, `(particles, *shape)`: one call an ensemble.
    Otherwise it is called once a particle, in turn, or side by side where an `executor` is given (anything with
    `submit`; a process pool needs a picklable `fn`).
    `shape`: shape of the result for one particle, `()` for a number. `dtype`: of the result (default: JAX's float).
    `timeout`: seconds a call may take.
    `on_failure`: what an exception, a time-out or a NaN means. "raise" stops the run with a `BlackBoxError` that
    names the parameters; "reject" gives such parameters zero likelihood (their result is NaN).
    `name`: for messages (default: the function's own).

    The result counts: `num_calls` is the number of particles simulated so far. Asking for a gradient raises
    `TypeError`.

    Raises `TypeError` where `fn` cannot be called, `ValueError` for a shape, timeout or on_failure that makes
    no sense.
    """
    return BlackBox(fn, shape, dtype, vectorized, executor, timeout, on_failure, name)


class BlackBox:
    """A simulator in host code; made by `blackbox`."""

    def __init__(self, fn, shape, dtype, vectorized, executor, timeout, on_failure, name):
        if not callable(fn):
            raise TypeError(f"blackbox needs a function; got {fn!r}")
        shape = (shape,) if isinstance(shape, int | np.integer) else shape
        if not isinstance(shape, tuple | list) or not all(isinstance(n, int | np.integer) and n >= 0 for n in shape):
            raise ValueError(f"blackbox needs shape as a tuple of whole numbers, for one particle; got {shape!r}")
        if on_failure not in ("raise", "reject"):
            raise ValueError(f"blackbox needs on_failure 'raise' or 'reject'; got {on_failure!r}")
        if timeout is not None and not timeout > 0:
            raise ValueError(f"blackbox needs timeout > 0 seconds or None; got {timeout!r}")
        if executor is not None and not hasattr(executor, "submit"):
            raise TypeError(f"blackbox needs an executor with a submit method; got {executor!r}")
        if executor is not None and vectorized:
            raise ValueError("blackbox takes an executor or vectorized=True, not both: drop one of them")
        self.fn = fn
        self.shape = tuple(int(n) for n in shape)
        self.dtype = dtype
        self.vectorized = vectorized
        self.executor = executor
        self.timeout = timeout
        self.on_failure = on_failure
        self.name = name or getattr(fn, "__name__", type(fn).__name__)
        self.num_calls = 0
        self.num_rejected = 0
        self.__name__ = self.name
        self._argument_names = _argument_names(fn)

    def __repr__(self) -> str:
        return f"blackbox({self.name}, shape={self.shape}, num_calls={self.num_calls})"

    def __call__(self, *args) -> jax.Array:
        """Simulate. Arguments: arrays or numbers; under `jax.vmap` each gains a leading axis, as does the result."""
        args = tuple(jnp.asarray(a) for a in args)
        ranks = tuple(a.ndim for a in args)
        result = jax.ShapeDtypeStruct(self.shape, jax.dtypes.canonicalize_dtype(self.dtype or float))

        @jax.custom_jvp
        def call(*args):
            return host_call(lambda *a: self._host(ranks, result.dtype, a), result, *args)

        @call.defjvp
        def _(primals, tangents):
            raise TypeError(
                f"{self.name} is a black box and has no gradient: use a method that needs none (EnKG), "
                "or write the simulator in JAX"
            )

        return call(*args)

    def _host(self, ranks: tuple[int, ...], dtype, args) -> np.ndarray:
        """Called by XLA with every argument batched alike (or none); returns the batch of results."""
        batch = args[0].shape[: args[0].ndim - ranks[0]] if args else ()
        rows = [a.reshape((-1, *a.shape[len(batch) :])) for a in args]
        wanted = self._wanted(batch)
        out = np.full((len(wanted), *self.shape), _filler(dtype), dtype)
        if not (_State.collecting and _State.failure is not None):
            try:
                self._simulate(rows, np.flatnonzero(wanted), out)
            except BlackBoxError as error:
                if not _State.collecting:
                    raise
                _State.failure = error
        return out.reshape((*batch, *self.shape))

    def _wanted(self, batch: tuple[int, ...]) -> np.ndarray:
        """Boolean mask over the flattened batch."""
        active = _State.active
        if active is None or not batch or batch[0] != len(active):
            return np.ones(math.prod(batch), bool)
        return np.repeat(active, math.prod(batch[1:]))

    def _simulate(self, rows: list[np.ndarray], wanted: np.ndarray, out: np.ndarray) -> None:
        if self.vectorized:
            self._simulate_together(rows, wanted, out)
        else:
            self._simulate_in_turn(rows, wanted, out)

    def _simulate_together(self, rows, wanted, out) -> None:
        if not len(wanted):
            return
        batch = [a[wanted] for a in rows]
        self.num_calls += len(wanted)
        try:
            result = self._call(batch)
        except Exception as error:
            where = f"an ensemble of {len(wanted)} whose first member is {self._describe(rows, wanted[0])}"
            self._fail(where, error)
            return
        result = self._checked(result, (len(wanted), *self.shape), out.dtype)
        for row, value in zip(wanted, result, strict=True):
            self._keep(rows, row, value, out)

    def _simulate_in_turn(self, rows, wanted, out) -> None:
        futures: list[Future | None] = [None] * len(wanted)
        if self.executor is not None:
            futures = [self.executor.submit(self.fn, *(a[row] for a in rows)) for row in wanted]
        try:
            for row, future in zip(wanted, futures, strict=True):
                self.num_calls += 1
                try:
                    if future is None:
                        value = self._call([a[row] for a in rows])
                    else:
                        value = future.result(self.timeout)
                except Exception as error:
                    self._fail(self._describe(rows, row), error)
                    continue
                self._keep(rows, row, self._checked(value, self.shape, out.dtype), out)
        finally:
            for future in futures:
                if future is not None:
                    future.cancel()

    def _call(self, args):
        if self.timeout is None:
            return self.fn(*args)
        pool = ThreadPoolExecutor(1)
        try:
            return pool.submit(self.fn, *args).result(self.timeout)
        finally:
            pool.shutdown(wait=False)  # a thread cannot be stopped: a late result is thrown away

    def _keep(self, rows, row: int, value: np.ndarray, out: np.ndarray) -> None:
        if np.isnan(value).any():
            if self.on_failure == "raise":
                raise BlackBoxError(
                    f"{self.name} returned NaN for {self._describe(rows, row)}: mend the simulator there, or pass "
                    "on_failure='reject' to blackbox to give such parameters zero likelihood"
                )
            self.num_rejected += 1
            value = np.full_like(value, np.nan)
        out[row] = value

    def _fail(self, where: str, error: Exception) -> None:
        if self.on_failure == "reject":
            self.num_rejected += 1
            return
        what = f"took longer than {self.timeout} s" if isinstance(error, FutureTimeoutError) else ""
        what = what or f"raised {type(error).__name__}: {error}"
        raise BlackBoxError(
            f"{self.name} {what}, for {where}: mend the simulator there, or pass on_failure='reject' to "
            "blackbox to give such parameters zero likelihood"
        ) from error

    def _checked(self, value, shape: tuple[int, ...], dtype) -> np.ndarray:
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
            raise BlackBoxError(
                f"{self.name} returned shape {array.shape} where {shape} is due{each}: correct the shape given to "
                "blackbox, or what the simulator returns"
            )
        return array.astype(dtype)

    def _describe(self, rows, row: int) -> str:
        """The arguments of one particle, by name."""
        parts = []
        for i, a in enumerate(rows):
            name = self._argument_names[i] if i < len(self._argument_names) else f"argument {i}"
            text = np.array2string(np.asarray(a[row]), precision=6, threshold=20, separator=", ")
            parts.append(f"{name}={text}")
        return ", ".join(parts) or "no arguments"


def _filler(dtype):
    return np.nan if np.issubdtype(dtype, np.inexact) else 0


def _argument_names(fn) -> list[str]:
    try:
        parameters = inspect.signature(fn).parameters.values()
    except (TypeError, ValueError):
        return []
    return [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
