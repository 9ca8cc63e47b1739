"""Evaluate a whole ensemble: vectorised or in chunks inside JAX, in batches and counted from the host."""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from enkg_ppl._blackbox import only_rows, raise_host_failure
from enkg_ppl._likelihood import Likelihood, Response
from enkg_ppl._problem import InverseProblem
from enkg_ppl._types import Ensemble, EnsembleOutput

Respond = Callable[[Ensemble], Response]  # the working responses of a whole ensemble, leading axis particles

# The last few particles of a slice move should not cost a whole batch of a slow simulator: they are packed into one
# of this share of the size.
SMALL_BATCH_FRACTION = 8


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
def _simulate(forward, x: Ensemble, chunk_size: int | None) -> EnsembleOutput:
    return ensemble_forward(forward, x, chunk_size)


@eqx.filter_jit
def _log_likelihood(likelihood: Likelihood, g: EnsembleOutput) -> Float[Array, " particles"]:
    log_likelihood = jax.vmap(likelihood.log_prob)(g)
    # A simulator that fails (NaN) or overflows gives its parameters no chance, rather than ending the run.
    return jnp.where(jnp.isfinite(log_likelihood), log_likelihood, -jnp.inf)


@eqx.filter_jit
def _response(likelihood: Likelihood, g: EnsembleOutput) -> Response:
    return jax.vmap(likelihood.response)(g)


class Evaluator:
    """The simulator on ensembles, called from the host, with the exact count of forward evaluations.

    One evaluation is one particle in one call. Rows that only fill up a batch are not asked for and not counted;
    black boxes are not called for them. A simulator in JAX always sees batches of `batch_size` particles (and small
    ones where it has loops), so that it is compiled once; one in host code sees all wanted particles in one call.
    """

    def __init__(self, problem: InverseProblem, batch_size: int, chunk_size: int | None = None):
        self.problem = problem
        self.batch_size = batch_size
        self.chunk_size = chunk_size
        self.count = 0
        self.num_failed = 0
        dtype = problem.prior.location.dtype
        code = str(jax.make_jaxpr(problem.forward)(jax.ShapeDtypeStruct((problem.dim,), dtype)))
        self._on_host = "pure_callback" in code
        self._small = -(-batch_size // SMALL_BATCH_FRACTION) if "while[" in code or "scan[" in code else 0

    def response(self, x: Ensemble) -> Response:
        """Working responses of all particles."""
        return self._evaluate(x, np.ones(len(x), bool), _response)

    def log_likelihood(self, x: Ensemble, wanted: Bool[np.ndarray, " particles"] | None = None):
        """Log likelihood of every particle, or of the `wanted` ones only (-inf elsewhere), shape (particles,)."""
        wanted = np.ones(len(x), bool) if wanted is None else wanted
        if not wanted.any():
            return jnp.full(len(x), -jnp.inf, x.dtype)
        result = self._evaluate(x, wanted, _log_likelihood)
        if not wanted.all():
            result = jnp.where(jnp.asarray(wanted), result, -jnp.inf)
        self.num_failed += int((np.isneginf(np.asarray(result)) & wanted).sum())
        return result

    def _evaluate(self, x: Ensemble, wanted, finish):
        """Simulate, and `finish(likelihood, outputs)`; rows that are not wanted hold anything."""
        self.count += int(wanted.sum())
        likelihood = self.problem.likelihood
        with raise_host_failure():
            if self._on_host:
                with only_rows(wanted):
                    outputs = jax.block_until_ready(_simulate(self.problem.forward, x, self.chunk_size))
                return finish(likelihood, outputs)
            rows = np.flatnonzero(wanted)
            size = self._small if len(rows) <= self._small else self.batch_size
            if len(rows) == len(x) == size:
                return finish(likelihood, _simulate(self.problem.forward, x, self.chunk_size))
            return self._in_batches(x, rows, size, finish)

    def _in_batches(self, x: Ensemble, rows, size: int, finish):
        # Put together by NumPy: every number of rows would be another program for JAX to compile.
        all_x, found = np.asarray(x), None
        for start in range(0, len(rows), size):
            batch = rows[start : start + size]
            padded = np.concatenate([batch, np.full(size - len(batch), batch[0])])
            part = jax.device_get(
                finish(
                    self.problem.likelihood,
                    _simulate(self.problem.forward, jnp.asarray(all_x[padded]), self.chunk_size),
                )
            )
            if found is None:
                found = jax.tree.map(lambda a: np.zeros((len(x), *a.shape[1:]), a.dtype), part)
            for whole, piece in zip(jax.tree.leaves(found), jax.tree.leaves(part), strict=True):
                whole[batch] = piece[: len(batch)]
        return jax.tree.map(jnp.asarray, found)
