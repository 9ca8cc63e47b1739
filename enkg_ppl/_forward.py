"""Evaluate a whole ensemble: vectorised or in chunks inside JAX, and counted from the host."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl._blackbox import only_rows, raise_host_failure
from enkg_ppl._correction._base import Evaluate
from enkg_ppl._problem import InverseProblem
from enkg_ppl._types import Ensemble

# A partly finished ensemble is packed into a batch of 1/8 of the size where it fits: two compiled sizes, and the
# last few particles of a slice move do not cost a whole ensemble.
SMALL_BATCH_FRACTION = 8


def ensemble_forward(forward, chunk_size: int | None = None) -> Evaluate:
    """The forward map on ensembles: all particles at once, or `chunk_size` at a time to bound memory."""
    if chunk_size is None:
        return jax.vmap(forward)
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1 particle, or None for all at once; got {chunk_size}")
    return lambda x: jax.lax.map(forward, x, batch_size=chunk_size)


@eqx.filter_jit
def _log_likelihood(problem: InverseProblem, x: Ensemble, chunk_size: int | None) -> Float[Array, " particles"]:
    log_likelihood = jax.vmap(problem.likelihood.log_prob)(ensemble_forward(problem.forward, chunk_size)(x))
    # A simulator that fails (NaN) or overflows gives its parameters no chance, rather than ending the run.
    return jnp.where(jnp.isfinite(log_likelihood), log_likelihood, -jnp.inf)


def calls_host(problem: InverseProblem) -> bool:
    """Whether the forward map calls host code."""
    jaxpr = jax.make_jaxpr(problem.forward)(jax.ShapeDtypeStruct((problem.dim,), problem.prior.location.dtype))
    return "pure_callback" in str(jaxpr)


class Evaluator:
    """Log likelihoods of ensembles, with the exact count of forward evaluations: one per particle per call.

    Rows that only pad a batch are not asked for and not counted; black boxes are not called for them.
    """

    def __init__(self, problem: InverseProblem, chunk_size: int | None = None):
        self.problem = problem
        self.chunk_size = chunk_size
        self.count = 0
        self.num_failed = 0
        self._on_host = calls_host(problem)

    def __call__(self, x: Ensemble, wanted: np.ndarray | None = None) -> Float[Array, " particles"]:
        """Log likelihood of every particle, or of the `wanted` ones only (boolean mask; -inf elsewhere)."""
        wanted = np.ones(len(x), bool) if wanted is None else wanted
        self.count += int(wanted.sum())
        small = -(-len(x) // SMALL_BATCH_FRACTION)
        with raise_host_failure():
            if self._on_host:
                with only_rows(wanted):
                    result = jax.block_until_ready(_log_likelihood(self.problem, x, self.chunk_size))
                result = jnp.where(jnp.asarray(wanted), result, -jnp.inf)
            elif 0 < wanted.sum() <= small:
                rows = np.flatnonzero(wanted)
                padded = np.concatenate([rows, np.full(small - len(rows), rows[0])])
                packed = _log_likelihood(self.problem, x[padded], self.chunk_size)
                result = jnp.full(len(x), -jnp.inf, packed.dtype).at[padded].set(packed)
            else:
                result = jax.block_until_ready(_log_likelihood(self.problem, x, self.chunk_size))
        self.num_failed += int((np.isneginf(np.asarray(result)) & wanted).sum())
        return result
