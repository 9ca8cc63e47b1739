"""Ridge regression of a simulator's outputs on its inputs, in JAX (also while it is traced) or in NumPy.

The guided flow is one compiled program and takes `jax.numpy`; the refinements work on the host, where every new shape
would be compiled, and take NumPy. What differs between uses is the rule for the penalty alone (`_penalty`).
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from enkg_ppl.linearise._penalty import Axes, Fixed, GeneralisedCrossValidation, LeaveOneOut, positive
from enkg_ppl.types import AnyArray


def ridge(
    X: Float[AnyArray, "rows dim"],
    Y: Float[AnyArray, "rows m"],
    rule: LeaveOneOut | GeneralisedCrossValidation | Fixed,
    xp: Any = jnp,
) -> Any:
    """``argmin_A ||Y - X A||^2 + penalty ||A||^2``, shape (dim, m), with the penalty that `rule` chooses.

    `xp`: `jax.numpy` or `numpy`, which the arrays belong to. No matrix has two sides of the longer of rows and dim.
    """
    unit = power_of_two(xp.max(xp.abs(Y), axis=0), xp)[None]
    return _fit(X, Y / unit, rule, xp)[0] * unit  # so that squares neither overflow nor vanish; no digit is lost


def affine_ridge(X: Float[np.ndarray, "rows dim"], Y: Float[np.ndarray, "rows m"]):
    """Slope (m, dim), intercept (m,) and what they leave (m,), by generalised cross-validation on the host.

    What they leave is the expected squared error of a new prediction.
    """
    centre, middle = X.mean(axis=0), Y.mean(axis=0)
    slope, error = _fit(X - centre, Y - middle, GeneralisedCrossValidation(), np)
    return slope.T, middle - slope.T @ centre, error


def _fit(X, Y, rule, xp: Any) -> tuple[Any, Any]:
    """The slope, and for every datum the rule's mean square of what it misses in other rows (None of a fixed one)."""
    if isinstance(rule, Fixed):
        return _solved(X, Y, rule.penalty(X, xp), xp), None
    x = _principal_axes(X, xp)
    moments = x.scores.T @ Y
    size = positive(xp.sum(Y**2, axis=0), xp)

    def loss(penalty):
        """Summed over the data, each in units of its own mean square."""
        return xp.sum(rule.errors(x, Y, moments, penalty, xp) / size)

    penalties = rule.penalties(x, X.dtype, xp)
    losses = jax.lax.map(loss, penalties) if xp is jnp else np.array([loss(penalty) for penalty in penalties])
    penalty = penalties[xp.argmin(losses)]
    slope = x.axes @ (moments / (x.values + penalty)[:, None])
    return slope, rule.errors(x, Y, moments, penalty, xp) / len(X)


def _principal_axes(X, xp: Any) -> Axes:
    """By one eigendecomposition, of the smaller of ``X X^T`` and ``X^T X``; it serves all penalties."""
    if X.shape[0] > X.shape[1]:
        values, axes = xp.linalg.eigh(X.T @ X)
        return Axes(xp.maximum(values, 0.0), X @ axes, axes)
    values, U = xp.linalg.eigh(X @ X.T)
    values = xp.maximum(values, 0.0)
    kept = values > 100 * xp.finfo(X.dtype).eps * values[-1]
    axes = X.T @ (U * xp.where(kept, 1 / xp.sqrt(xp.where(kept, values, 1.0)), 0.0)[None])
    return Axes(values, U * xp.sqrt(values)[None], axes)


def _solved(X, Y, penalty, xp: Any):
    """For one penalty a solution of the normal equations, of rows or of dimensions, whichever are fewer."""
    by_rows = X.shape[0] <= X.shape[1]
    gram = X @ X.T if by_rows else X.T @ X
    gram = gram + penalty * xp.eye(len(gram), dtype=X.dtype)
    return X.T @ xp.linalg.solve(gram, Y) if by_rows else xp.linalg.solve(gram, X.T @ Y)


def power_of_two(a: Float[AnyArray, " m"], xp: Any = jnp):
    """One of the size of each number; 1 for zero, and no smaller or larger than its own inverse can be."""
    limit = xp.finfo(a.dtype).maxexp - 2
    _, exponent = xp.frexp(a)
    return xp.ldexp(xp.ones_like(a), xp.where(a > 0, xp.clip(exponent, -limit, limit), 0))
