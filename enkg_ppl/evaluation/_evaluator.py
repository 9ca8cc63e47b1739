"""Evaluate a whole ensemble: vectorised or in chunks inside JAX, in batches and counted from the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from enkg_ppl.evaluation._black_box import only_rows, raise_host_failure
from enkg_ppl.evaluation._ensembles import Barrier
from enkg_ppl.evaluation._host_call import calls_black_box, calls_host, has_loops
from enkg_ppl.evaluation._ledger import Ledger, Reached
from enkg_ppl.evaluation._marks import poisoned, with_failures
from enkg_ppl.evaluation._programs import compiled, weakly
from enkg_ppl.likelihood import Likelihood, Response
from enkg_ppl.problem import InverseProblem
from enkg_ppl.types import AnyArray, Ensemble, EnsembleOutput

Respond = Callable[[Ensemble], Response]  # the working responses of a whole ensemble, leading axis particles

# The last few particles of a slice move should not cost a whole batch of a slow simulator, or of a network before it:
# they are packed into batches of these shares of the size.
SMALL_BATCH_FRACTION, SMALLEST_BATCH_FRACTION = 8, 32
HOST_BATCHES = (1, 4, 16)
LARGEST_WASTE = 0.25  # of a batch that costs what it holds, filled up with what nobody asked for
MANY_BATCHES = 64  # after which smaller ones are worth a program of their own
KEPT = 4  # calls of `Evaluator.response` that are remembered


def ensemble_forward(forward, x: Ensemble, chunk_size: int | None = None) -> EnsembleOutput:
    """The forward map on an ensemble: all particles at once, or `chunk_size` at a time to bound memory.

    Floats that a failed simulation went into are NaN, even where it returns whole numbers.
    """
    forward = poisoned(forward)
    check_chunk_size(chunk_size)
    return jax.vmap(forward)(x) if chunk_size is None else jax.lax.map(forward, x, batch_size=chunk_size)


def check_chunk_size(chunk_size: int | None) -> None:
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 particle, or None for all at once; got {chunk_size}")


def ensemble_response(problem: InverseProblem, x: Ensemble, chunk_size: int | None = None) -> Response:
    """Simulate an ensemble; what the Kalman step needs of the result.

    A particle that is not finite is not simulated: the middle of the prior is in its place, and its response is NaN.
    """
    finite = jnp.all(jnp.isfinite(x), axis=1)[:, None]
    x = jnp.where(finite, x, problem.prior.location[None])
    response = ensemble_forward(lambda x: problem.likelihood.response(problem.forward(x)), x, chunk_size)
    return Response(*(jnp.where(finite, a, jnp.nan) for a in response))


def has_failed(log_likelihood):
    """Whether a simulation failed, by its log likelihood; a likelihood of zero is no failure."""
    return np.isnan(log_likelihood) | np.isposinf(log_likelihood)


@compiled
def _simulate(forward, x: Ensemble) -> tuple[EnsembleOutput, Bool[AnyArray, " particles"]]:
    """Outputs, and which of them a failure went into that they may not show as NaN."""
    return jax.vmap(with_failures(forward))(x)


@eqx.filter_jit
def _log_likelihood(likelihood: Likelihood, g: EnsembleOutput) -> Float[AnyArray, " particles"]:
    return jax.vmap(likelihood.log_prob)(g)


@eqx.filter_jit
def _both(likelihood: Likelihood, g: EnsembleOutput) -> tuple[Float[AnyArray, " particles"], Response]:
    return _log_likelihood(likelihood, g), jax.vmap(likelihood.response)(g)


@eqx.filter_jit
def _response(likelihood: Likelihood, g: EnsembleOutput) -> Response:
    return jax.vmap(likelihood.response)(g)


class Simulated(NamedTuple):
    """Results of an ensemble's simulations.

    Attributes:
        outputs: of the simulator.
        values: of sites, where `InverseProblem.replay` has them.
    """

    outputs: EnsembleOutput
    values: Any = None


# What is made of the simulations of a batch, of which the first `kept` rows are wanted: NumPy arrays.
Finish = Callable[[Likelihood, Simulated, int], Any]


def _log_likelihoods(likelihood: Likelihood, simulated: Simulated, kept: int) -> Float[np.ndarray, " kept"]:
    return _rows(_log_likelihood(likelihood, simulated.outputs), kept)


def _both_of_them(likelihood: Likelihood, simulated: Simulated, kept: int):
    return _rows(_both(likelihood, simulated.outputs), kept)


def _all_of_it(likelihood: Likelihood, simulated: Simulated, kept: int):
    return *_both_of_them(likelihood, simulated, kept), _rows(simulated, kept)


def _responses(likelihood: Likelihood, simulated: Simulated, kept: int) -> tuple[Response, Bool[np.ndarray, " kept"]]:
    """Working responses, and whose simulation failed: the log likelihood tells that from a mean that does not exist."""
    response = _rows(_response(likelihood, simulated.outputs), kept)
    failed = np.isnan(response.prediction).any(axis=1)
    if failed.any():
        failed &= has_failed(_log_likelihoods(likelihood, simulated, kept))
    return response, failed


def _rows(tree, kept: int):
    return jax.tree.map(lambda a: a[:kept], jax.device_get(tree))


def _marked(part, failed: Bool[np.ndarray, " kept"]):
    """The same with NaN, or True, in the rows of failed simulations; what they returned stays as it is."""

    def mark(a):
        if isinstance(a, Simulated):
            return a
        mask = failed.reshape(-1, *(1,) * (a.ndim - 1))
        return np.where(mask, True, a) if a.dtype == bool else np.where(mask, np.nan, a)

    return jax.tree.map(mark, part, is_leaf=lambda a: isinstance(a, Simulated)) if failed.any() else part


class Evaluator:
    """The simulator on ensembles, called from the host; it counts simulations and refuses those over the limit.

    One evaluation is one particle in one call. Rows that only fill up a batch are not counted, and black boxes are not
    called for them. Nor are they for particles that are not finite: these have a likelihood of zero and a response that
    is NaN, and count as skipped, neither as evaluations nor as failures. The simulator is compiled for a few numbers of
    particles only: in JAX for batches of `batch_size` (and, in long runs, small ones where it has loops, as a network
    prior's flow is one), in host code for up to `HOST_BATCHES` times that, so that a vectorised one receives many
    particles in a call.

    Args:
        problem: the inverse problem whose `forward` is simulated.
        batch_size: particles in a compiled batch.
        chunk_size: particles simulated at a time, to bound memory (default: all).
        ledger: the account of simulations (default: a new one without limit). Callers ask `affords` first, and get
            `BudgetEnd` where they do not.
    """

    def __init__(
        self, problem: InverseProblem, batch_size: int, chunk_size: int | None = None, ledger: Ledger | None = None
    ):
        self.problem = problem
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.ledger = Ledger() if ledger is None else ledger
        self.barrier: Barrier | None = None
        self._kept: list[tuple[Ensemble, Response]] = []
        self.first_simulated: tuple[Ensemble, Response] | None = None  # by `response`: the guided flow's prior draws
        check_chunk_size(chunk_size)
        dtype = problem.prior.location.dtype
        program = jax.make_jaxpr(problem.forward)(jax.ShapeDtypeStruct((problem.dim,), dtype))
        self.on_host = calls_host(program)
        self.has_black_box = calls_black_box(program)
        sizes = {batch_size * factor for factor in (HOST_BATCHES if self.on_host else (1,))}
        self._usual_sizes = self._within_chunks(sizes)
        # An accelerator runs a batch in the time of a few particles.
        self._packs = has_loops(program) and jax.default_backend() == "cpu"
        if has_loops(program):
            sizes.add(-(-batch_size // SMALL_BATCH_FRACTION))
        if self.on_host and self._packs:  # a black box behind a network
            sizes.add(-(-batch_size // SMALLEST_BATCH_FRACTION))
        self._all_sizes = self._within_chunks(sizes)
        self._num_batches = [0]  # of this evaluator and those made of it for other ensembles

    def _within_chunks(self, sizes: set[int]) -> list[int]:
        return sorted({size if self.chunk_size is None else min(size, self.chunk_size) for size in sizes})

    @property
    def _sizes(self) -> list[int]:
        return self._all_sizes if self._num_batches[0] >= MANY_BATCHES else self._usual_sizes

    def another(self, ledger: Ledger, barrier: Barrier | None = None) -> Evaluator:
        """An evaluator for the same simulator with an account and a memory of its own.

        Args:
            ledger: its account.
            barrier: joins its evaluations with those of other ensembles.
        """
        other = copy.copy(self)
        other.ledger, other.barrier, other._kept = ledger, barrier, []
        other.first_simulated = None
        return other

    def handed_to(self, problem: InverseProblem) -> Evaluator:
        """An evaluator for the same simulator in other coordinates, with the same account.

        Args:
            problem: the same problem in those coordinates.
        """
        if problem is self.problem:
            return self
        # The other forward map may go through this problem's prior, which may be a large network.
        bounds = [size for size in (self.chunk_size, self.problem.prior.chunk_size) if size is not None]
        other = Evaluator(problem, self.batch_size, min(bounds, default=None), self.ledger)
        other._kept, other.barrier = self._kept, self.barrier
        other.first_simulated = self.first_simulated
        return other

    @property
    def count(self) -> int:
        """Evaluations made so far, in all coordinates."""
        return self.ledger.count

    @property
    def num_failed(self) -> int:
        """Evaluations that failed."""
        return self.ledger.num_failed

    @property
    def limit(self) -> int | None:
        """Evaluations that may be made in all, or None."""
        return self.ledger.limit

    @limit.setter
    def limit(self, limit: int | None) -> None:
        self.ledger.limit = limit

    @property
    def remaining(self) -> float:
        """Evaluations that may still be made."""
        return self.ledger.remaining

    def affords(self, num: float) -> bool:
        """Whether so many evaluations may still be made; see `Ledger.affords`.

        Args:
            num: number of evaluations.
        """
        return self.ledger.affords(num)

    def reach(self, words: str, draws: Ensemble | None = None) -> None:
        """Record that a stage is finished, and with which particles.

        Args:
            words: description of the stage.
            draws: the particles, shape (particles, dim) (default: those last simulated for their response).
        """
        if draws is None and self._kept:
            draws = self._kept[-1][0]
        self.ledger.reached = Reached(self.problem, draws, words)

    def response(self, x: Ensemble) -> Response:
        """Working responses of all particles, as NumPy arrays; NaN where the simulation failed.

        Args:
            x: latent vectors, shape (particles, dim).
        """
        response, failed = self._evaluate(x, _responses)
        self._count_failed(failed, x)
        self.first_simulated = self.first_simulated or (np.asarray(x), response)
        self._kept = [*self._kept, (np.asarray(x), response)][-KEPT:]
        return response

    @property
    def simulated(self) -> tuple[Ensemble, Response] | None:
        """Particles and responses of the last calls of `response`, concatenated; None before the first."""
        if not self._kept:
            return None
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._kept)

    def log_likelihood(self, x: Ensemble) -> Float[np.ndarray, " particles"]:
        """Log likelihood in nats of every particle; -inf where the simulation failed.

        Args:
            x: latent vectors, shape (particles, dim).
        """
        return self._without_failures(self._evaluate(x, _log_likelihoods), x)

    def log_likelihood_and_response(self, x: Ensemble) -> tuple[Float[np.ndarray, " particles"], Response]:
        """Both from one evaluation a particle.

        Args:
            x: latent vectors, shape (particles, dim).
        """
        log_likelihood, response = self._evaluate(x, _both_of_them)
        return self._without_failures(log_likelihood, x), response

    def all_of(self, x: Ensemble) -> tuple[Float[np.ndarray, " particles"], Response, Simulated | None]:
        """Log likelihood, response, and simulated values, from one evaluation a particle.

        Args:
            x: latent vectors, shape (particles, dim).

        Returns:
            The three; the last is None where the problem has no `replay`, so that it is not needed.
        """
        if self.problem.replay is None:
            return *self.log_likelihood_and_response(x), None
        log_likelihood, response, simulated = self._evaluate(x, _all_of_it)
        return self._without_failures(log_likelihood, x), response, simulated

    def _without_failures(self, log_likelihood: Float[np.ndarray, " particles"], x: Ensemble):
        """A simulator that fails (NaN) or overflows gives its parameters no chance, rather than ending the run.

        A likelihood of zero is no failure.
        """
        failed = has_failed(log_likelihood)
        self._count_failed(failed, x)
        return np.where(failed, -np.inf, log_likelihood)

    def _count_failed(self, failed: Bool[np.ndarray, " particles"], x: Ensemble) -> None:
        """Simulations that failed; what was not simulated is no fault of the simulator."""
        self.ledger.num_failed += int((failed & np.isfinite(x).all(axis=1)).sum())

    def _evaluate(self, x: Ensemble, finish: Finish):
        """Simulate the particles that are finite, and `finish` what they gave; NaN, or true, for the others."""
        x = np.asarray(x)
        finite = np.isfinite(x).all(axis=1)
        if finite.all():
            return self._simulate(x, finish)
        self.ledger.num_skipped += int((~finite).sum())
        part = self._simulate(x[finite], finish) if finite.any() else self._unknown(x[:1], finish)

        def among_all(part: np.ndarray) -> np.ndarray:
            nothing = np.nan if np.issubdtype(part.dtype, np.inexact) else 0
            whole = np.full((len(x), *part.shape[1:]), nothing, part.dtype)
            whole[finite] = part[: finite.sum()]
            return whole

        return jax.tree.map(among_all, part)

    def _unknown(self, x: Ensemble, finish: Finish):
        """What `finish` makes of outputs that nobody knows, for its shapes."""
        shapes = jax.eval_shape(jax.vmap(self._program), x)
        nothing = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), shapes)
        return finish(self.problem.likelihood, self._as_simulated(nothing), 1)

    @property
    def _program(self) -> Callable:
        """The simulator, with the values of sites where the problem has them."""
        problem = self.problem
        return weakly(problem.forward) if problem.replay is None else problem.replay

    def _as_simulated(self, found) -> Simulated:
        if self.problem.replay is None:
            return Simulated(found)
        values, outputs = found
        return Simulated(outputs, values)

    def _simulate(self, x: Ensemble, finish: Finish):
        self.ledger.book(len(x))
        if self.barrier is None:
            return self._in_batches(x, finish)
        return self.barrier.simulate(self.problem, self._in_batches, x, finish)

    def _size_for(self, left: int) -> int:
        """Size of the next batch, of those that are compiled."""
        sizes = self._sizes
        enough = next((size for size in sizes if size >= left), sizes[-1])
        if not self._packs or enough - left <= LARGEST_WASTE * enough:
            return enough
        return max((size for size in sizes if size <= left), default=enough)

    def _in_batches(self, x: Ensemble, finish: Finish):
        """The same, in batches of the sizes that are compiled."""
        parts, start = [], 0
        # The watch over host code holds a lock; ensembles on several devices need none for code in JAX.
        with raise_host_failure() if self.on_host else nullcontext():
            while start < len(x):
                left = len(x) - start
                size = self._size_for(left)
                rows, kept = np.arange(start, start + size), min(size, left)
                batch = jnp.asarray(x[np.minimum(rows, len(x) - 1)])  # filled up with the last particle
                with only_rows(rows < len(x)) if self.on_host else nullcontext():
                    found, failed = _simulate(self._program, batch)
                    part = finish(self.problem.likelihood, self._as_simulated(found), kept)
                parts.append(_marked(part, np.asarray(failed)[:kept]))
                start += size
                self._num_batches[0] += 1
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)
