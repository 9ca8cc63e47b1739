"""Ridge regression of a simulator's outputs on its inputs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

# Penalties tried, over the largest eigenvalue of the draws' second moments; the smallest is set by rounding.
LARGEST_PENALTY, NUM_PENALTIES = 1e2, 17
RIDGES = np.geomspace(1e-6, 1e2, 33)  # times the mean eigenvalue of the Gram matrix


def ridge(X: Float[Array, "rows dim"], Y: Float[Array, "rows m"], centring: float = 0.0) -> Float[Array, "dim m"]:
    """``argmin_A ||Y - X A||^2 + penalty ||A||^2`` with the penalty of the smallest leave-one-out error.

    `centring`: the share that a row has in the mean that was taken off it, one over their number. Without it, fewer
    rows than directions seem to be predicted perfectly by the others, as centred rows add up to zero.
    One eigendecomposition, of the smaller of ``X X^T`` and ``X^T X``, serves all penalties and the leverages.
    The error is summed over the data, each in units of its own mean square.

    Source: Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, eq. 7.64 (leave-one-out).
    """
    floor = 100 * jnp.finfo(X.dtype).eps
    unit = power_of_two(jnp.max(jnp.abs(Y), axis=0))[None]
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
        leverage = centring + jnp.sum(scores**2 * inverse[None], axis=1)
        residual = residual / jnp.maximum(1 - leverage, floor)[:, None]
        return jnp.sum(jnp.sum(residual**2, axis=0) / size)

    penalties = largest * jnp.geomspace(floor, LARGEST_PENALTY, NUM_PENALTIES, dtype=X.dtype)
    penalty = penalties[jnp.argmin(jax.lax.map(error, penalties))]
    return axes @ (moments / (values + penalty)[:, None]) * unit


def power_of_two(a: Float[Array, " m"]) -> Float[Array, " m"]:
    """One of the size of each number; 1 for zero, and no smaller or larger than its own inverse can be."""
    limit = jnp.finfo(a.dtype).maxexp - 2
    _, exponent = jnp.frexp(a)
    return jnp.ldexp(jnp.ones_like(a), jnp.where(a > 0, jnp.clip(exponent, -limit, limit), 0))


def ridge_regression(z: Float[np.ndarray, "pairs dim"], g: Float[np.ndarray, "pairs m"]):
    """Slope (m, dim), intercept (m,) and residual variance (m,), the ridge chosen by generalised cross-validation.

    Source: Golub, Heath & Wahba (1979), Technometrics 21, eq. 1.4.
    """
    n = len(z)
    centre, middle = z.mean(axis=0), g.mean(axis=0)
    u, s, vt = np.linalg.svd(z - centre, full_matrices=False)
    target = u.T @ (g - middle)
    total = ((g - middle) ** 2).sum(axis=0)
    least, keep, residual = np.inf, np.ones_like(s), total / n
    for ridge in RIDGES * np.mean(s**2):
        kept = s**2 / (s**2 + ridge)
        rest = total - ((2 * kept - kept**2)[:, None] * target**2).sum(axis=0)
        error = rest / n / (1 - kept.sum() / n) ** 2  # expected squared error of a new prediction, each datum
        loss = np.sum(error / np.where(total > 0, total, 1))
        if loss < least:
            least, keep, residual = loss, kept, error
    slope = (vt.T * (keep / np.where(s > 0, s, 1.0))) @ target
    return slope.T, middle - slope.T @ centre, residual
