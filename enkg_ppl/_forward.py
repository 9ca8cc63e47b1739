"""Evaluate a whole ensemble: vectorised or in chunks inside JAX, in batches and counted from the host."""

from __future__ import annotations

import copy
from collections.abc import Callable
from contextlib import nullcontext

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from enkg_ppl._blackbox import only_rows, raise_host_failure
from enkg_ppl._ensembles import Meeting
from enkg_ppl._host_call import calls_host
from enkg_ppl._likelihood import Likelihood, Response
from enkg_ppl._problem import InverseProblem
from enkg_ppl._types import AnyArray, Ensemble, EnsembleOutput

Respond = Callable[[Ensemble], Response]  # the working responses of a whole ensemble, leading axis particles

# The last few particles of a slice move should not cost a whole batch of a slow simulator: they are packed into one
# of this share of the size.
SMALL_BATCH_FRACTION = 8
HOST_BATCHES = (1, 4, 16)
KEPT = 4  # calls of `Evaluator.response` that are remembered


def ensemble_forward(forward, x: Ensemble, chunk_size: int | None = None) -> EnsembleOutput:
    """The forward map on an ensemble: all particles at once, or `chunk_size` at a time to bound memory."""
    if chunk_size is None:
        return jax.vmap(forward)(x)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 particle, or None for all at once; got {chunk_size}")
    return jax.lax.map(forward, x, batch_size=chunk_size)


def ensemble_response(problem: InverseProblem, x: Ensemble, chunk_size: int | None = None) -> Response:
    """Simulate an ensemble; what the Kalman step needs of the result."""
    return jax.vmap(problem.likelihood.response)(ensemble_forward(problem.forward, x, chunk_size))


@eqx.filter_jit
def _simulate(forward, x: Ensemble) -> EnsembleOutput:
    return jax.vmap(forward)(x)


@eqx.filter_jit
def _log_likelihood(likelihood: Likelihood, g: EnsembleOutput) -> Float[AnyArray, " particles"]:
    return jax.vmap(likelihood.log_prob)(g)


@eqx.filter_jit
def _both(likelihood: Likelihood, g: EnsembleOutput) -> tuple[Float[AnyArray, " particles"], Response]:
    return _log_likelihood(likelihood, g), jax.vmap(likelihood.response)(g)


@eqx.filter_jit
def _response(likelihood: Likelihood, g: EnsembleOutput) -> Response:
    return jax.vmap(likelihood.response)(g)


class Evaluator:
    """The simulator on ensembles, called from the host, with the exact count of forward evaluations.

    One evaluation is one particle in one call. Rows that only fill up a batch are not counted, and black boxes are not
    called for them. The simulator is compiled for a few numbers of particles only: in JAX for batches of `batch_size`
    (and small ones where it has loops), in host code for up to `HOST_BATCHES` times that, so that a vectorised one
    sees many particles in a call.

    `limit`: the number of evaluations that may be made in all, or None; callers ask `remaining` first.
    `meeting`: where other ensembles' evaluations are joined with these.
    """

    def __init__(self, problem: InverseProblem, batch_size: int, chunk_size: int | None = None):
        self.problem = problem
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.limit: int | None = None
        self.count = 0
        self.num_failed = 0
        self.meeting: Meeting | None = None
        self._kept: list[tuple[Ensemble, Response]] = []
        self.first_simulated: tuple[Ensemble, Response] | None = None  # by `response`: the guided flow's prior draws
        if chunk_size is not None and chunk_size < 1:
            raise ValueError(f"chunk_size must be at least 1 particle, or None for all at once; got {chunk_size}")
        dtype = problem.prior.location.dtype
        code = str(jax.make_jaxpr(problem.forward)(jax.ShapeDtypeStruct((problem.dim,), dtype)))
        self._on_host = calls_host(code)
        if self._on_host:
            sizes = {batch_size * factor for factor in HOST_BATCHES}
        elif "while[" in code or "scan[" in code:
            sizes = {-(-batch_size // SMALL_BATCH_FRACTION), batch_size}
        else:
            sizes = {batch_size}
        self._sizes = sorted({size if chunk_size is None else min(size, chunk_size) for size in sizes})

    def another(self, meeting: Meeting | None = None) -> Evaluator:
        """An evaluator for the same simulator with a count, a limit and a memory of its own."""
        other = copy.copy(self)
        other.limit, other.count, other.num_failed, other.meeting, other._kept = None, 0, 0, meeting, []
        other.first_simulated = None
        return other

    def handed_to(self, problem: InverseProblem) -> Evaluator:
        """An evaluator for the same simulator in other coordinates, with what is left of the budget."""
        if problem is self.problem:
            return self
        # The other forward map may go through this problem's prior, which may be a large network.
        bounds = [size for size in (self.chunk_size, self.problem.prior.chunk_size) if size is not None]
        other = Evaluator(problem, self.batch_size, min(bounds, default=None))
        other.limit = None if self.limit is None else self.limit - self.count
        other._kept, other.meeting = self._kept, self.meeting
        other.first_simulated = self.first_simulated
        return other

    @property
    def remaining(self) -> float:
        """Evaluations that may still be made."""
        return float("inf") if self.limit is None else self.limit - self.count

    def response(self, x: Ensemble) -> Response:
        """Working responses of all particles, as NumPy arrays."""
        response = self._evaluate(x, _response)
        self.first_simulated = self.first_simulated or (np.asarray(x), response)
        self._kept = [*self._kept, (np.asarray(x), response)][-KEPT:]
        return response

    @property
    def simulated(self) -> tuple[Ensemble, Response] | None:
        """Particles of the last calls of `response` and what they gave, one below the other; None before the first."""
        if not self._kept:
            return None
        return jax.tree.map(lambda *parts: np.concatenate(parts), *self._kept)

    def log_likelihood(self, x: Ensemble) -> Float[np.ndarray, " particles"]:
        """Log likelihood of every particle; -inf where the simulation failed."""
        return self._without_failures(self._evaluate(x, _log_likelihood))

    def log_likelihood_and_response(self, x: Ensemble) -> tuple[Float[np.ndarray, " particles"], Response]:
        """Both from one evaluation a particle."""
        log_likelihood, response = self._evaluate(x, _both)
        return self._without_failures(log_likelihood), response

    def _without_failures(self, log_likelihood: Float[np.ndarray, " particles"]):
        """A simulator that fails (NaN) or overflows gives its parameters no chance, rather than ending the run.

        A likelihood of zero is no failure.
        """
        failed = np.isnan(log_likelihood) | np.isposinf(log_likelihood)
        self.num_failed += int(failed.sum())
        return np.where(failed, -np.inf, log_likelihood)

    def _evaluate(self, x: Ensemble, finish):
        """Simulate, and `finish(likelihood, outputs)`; NumPy arrays."""
        x = np.asarray(x)
        self.count += len(x)
        if self.meeting is None:
            return self._in_batches(x, finish)
        return self.meeting.simulate(self.problem, self._in_batches, x, finish)

    def _in_batches(self, x: Ensemble, finish):
        """The same, in batches of the sizes that are compiled."""
        parts, start = [], 0
        # The watch over host code holds a lock; ensembles on several devices need none for code in JAX.
        with raise_host_failure() if self._on_host else nullcontext():
            while start < len(x):
                left = len(x) - start
                size = next((size for size in self._sizes if size >= left), self._sizes[-1])
                rows, kept = np.arange(start, start + size), min(size, left)
                batch = jnp.asarray(x[np.minimum(rows, len(x) - 1)])  # filled up with the last particle
                with only_rows(rows < len(x)) if self._on_host else nullcontext():
                    outputs = _simulate(self.problem.forward, batch)
                    part = jax.device_get(finish(self.problem.likelihood, outputs))
                parts.append(jax.tree.map(lambda a, k=kept: a[:k], part))
                start += size
        return jax.tree.map(lambda *pieces: np.concatenate(pieces), *parts)
