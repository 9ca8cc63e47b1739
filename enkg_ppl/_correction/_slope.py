"""The linear map that best predicts the simulator's output, learned from all simulations so far.

Simulations stay true: a pair (draw, output) from an earlier noise level still says something about the same map.
Pairs are kept for a few levels, older ones count less, and ridge regression turns them into a slope. Its penalty is
chosen by leave-one-out prediction, which tells apart a map that is linear (almost no penalty: with as many pairs as
the draws have directions it is found exactly) from one whose curvature looks like noise.
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from enkg_ppl._types import Ensemble

# Pairs are kept until there are this many: on a field of as many unknowns they determine a linear map.
ROWS = 1024
# Penalties tried, over the largest eigenvalue of the draws' second moments; the smallest is set by rounding.
LARGEST_PENALTY, NUM_PENALTIES = 1e2, 17


class Pairs(NamedTuple):
    """Centred draws and outputs of the last levels, newest first, and the slope learned from them."""

    draws: Float[Array, "levels particles dim"]
    outputs: Float[Array, "levels particles m"]
    weights: Float[Array, "levels particles"]
    slope: Float[Array, "dim m"]


def no_pairs(num_particles: int, dim: int, m: int, dtype) -> Pairs:
    """Room for the pairs of as many levels as make `ROWS`, two at least; the slope is zero until something is known."""
    levels = max(2, -(-ROWS // num_particles))
    shape = (levels, num_particles)
    return Pairs(*(jnp.zeros(s, dtype) for s in ((*shape, dim), (*shape, m), shape, (dim, m))))


def learn(
    pairs: Pairs,
    r: Ensemble,
    q: Float[Array, "particles m"],
    weight,
    forget,
    reach: Float[Array, " m"] | float = jnp.inf,
) -> Pairs:
    """Add the centred pairs (r, q) of one level, let the older ones count `forget` times as much, and fit anew.

    `reach`: outputs farther from the middle are pulled in to it; outputs of older levels may be wilder than this one's.
    """
    draws, outputs, weights = (
        jnp.concatenate([new[None], old[:-1]])
        for new, old in zip((r, q, weight), (pairs.draws, pairs.outputs, forget * pairs.weights), strict=True)
    )
    most = 2 * jnp.broadcast_to(reach, q.shape[1:])[None, None]  # the middle itself may lie as far out
    outputs = jnp.clip(outputs, -most, most)
    root = jnp.sqrt(weights).reshape(-1, 1)
    slope = ridge(root * draws.reshape(-1, r.shape[1]), root * outputs.reshape(-1, q.shape[1]))
    return Pairs(draws, outputs, weights, slope)


def ridge(X: Float[Array, "rows dim"], Y: Float[Array, "rows m"]) -> Float[Array, "dim m"]:
    """``argmin_A ||Y - X A||^2 + penalty ||A||^2`` with the penalty of the smallest leave-one-out error.

    One eigendecomposition, of the smaller of ``X X^T`` and ``X^T X``, serves all penalties and the leverages.
    The error is summed over the data, each in units of its own mean square.

    Source: Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, eq. 7.64 (leave-one-out).
    """
    floor = 100 * jnp.finfo(X.dtype).eps
    unit = _power_of_two(jnp.max(jnp.abs(Y), axis=0))[None]
    Y = Y / unit  # so that squares neither overflow nor vanish; no digit is lost
    if X.shape[0] <= X.shape[1]:
        values, U = jnp.linalg.eigh(X @ X.T)
        values = jnp.maximum(values, 0.0)
        scores = U * jnp.sqrt(values)[None]  # X in its principal axes
        kept = values > floor * values[-1]
        axes = X.T @ (U * jnp.where(kept, 1 / jnp.sqrt(jnp.where(kept, values, 1.0)), 0.0)[None])
    else:
        values, axes = jnp.linalg.eigh(X.T @ X)
        values = jnp.maximum(values, 0.0)
        scores = X @ axes
    largest = jnp.where(values[-1] > 0, values[-1], 1.0)
    moments = scores.T @ Y
    size = jnp.sum(Y**2, axis=0)
    size = jnp.where(size > 0, size, 1.0)

    def error(penalty):
        inverse = 1 / (values + penalty)
        residual = Y - scores @ (inverse[:, None] * moments)
        leverage = jnp.sum(scores**2 * inverse[None], axis=1)
        residual = residual / jnp.maximum(1 - leverage, floor)[:, None]
        return jnp.sum(jnp.sum(residual**2, axis=0) / size)

    penalties = largest * jnp.geomspace(floor, LARGEST_PENALTY, NUM_PENALTIES, dtype=X.dtype)
    penalty = penalties[jnp.argmin(jax.lax.map(error, penalties))]
    return axes @ (moments / (values + penalty)[:, None]) * unit


def _power_of_two(a: Float[Array, " m"]) -> Float[Array, " m"]:
    """One of the size of each number; 1 for zero, and no smaller or larger than its own inverse can be."""
    limit = jnp.finfo(a.dtype).maxexp - 2
    _, exponent = jnp.frexp(a)
    return jnp.ldexp(jnp.ones_like(a), jnp.where(a > 0, jnp.clip(exponent, -limit, limit), 0))
