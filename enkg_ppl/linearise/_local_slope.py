"""Slopes of fields: ridge regression with a penalty that has learned where each datum comes from.

With fewer pairs than unknowns a ridge spreads what it finds over everything that happens to vary alike. On a field the
part of the input that matters to a datum lies together, wherever that is; so the square of the last slope, smoothed
over the grid, is the variance that the next slope's entries are expected to have. Nothing about the simulator is
assumed: a datum that depends on everything has a slope that is spread over everything.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from enkg_ppl.linearise._penalty import positive
from enkg_ppl.priors import Grid

# Width over which squares are smoothed, in points of the grid, and what any entry is expected to have at least, over
# the largest.
WIDTH, LEAST = 2.0, 3e-3
# Penalties over the mean square of a pair in units of the expected variances: they compete for what they predict.
PENALTIES = (0.02, 0.1, 0.5)
# Steps of the conjugate gradient method from the last slope, which is near.
NUM_STEPS = 8


def smoothed(grid: Grid, values: Float[Array, "dim m"]) -> Float[Array, "dim m"]:
    """A Gaussian mean over the grid; at an edge over what there is."""
    a = values.reshape(grid.channels, *grid.shape, -1)
    for axis, n in enumerate(grid.shape, start=1):
        i = jnp.arange(n)
        distance = jnp.abs(i[:, None] - i[None])
        if grid.periodic:
            distance = jnp.minimum(distance, n - distance)
        kernel = jnp.exp(-0.5 * (distance / WIDTH) ** 2)
        kernel = (kernel / kernel.sum(axis=1, keepdims=True)).astype(a.dtype)
        a = jnp.moveaxis(jnp.tensordot(kernel, a, axes=(1, axis)), 0, axis)
    return a.reshape(values.shape)


def expected_variances(grid: Grid, slope: Float[Array, "dim m"]) -> Float[Array, "dim m"]:
    """Up to a factor for each datum; all the same where the slope is nothing yet."""
    square = smoothed(grid, (slope / _largest(jnp.abs(slope))) ** 2)
    return square / _largest(square) + LEAST


def _largest(a: Float[Array, "dim m"]) -> Float[Array, "1 m"]:
    return positive(jnp.max(a, axis=0, keepdims=True), jnp)


def local_ridge(
    X: Float[Array, "rows dim"],
    Y: Float[Array, "rows m"],
    variances: Float[Array, "dim m"],
    num_rows,
    starts: Float[Array, "penalties dim m"],
) -> Float[Array, "penalties dim m"]:
    """``argmin_A |Y - X A|^2 + penalty sum A^2 / variances`` datum by datum, for each of `PENALTIES`.

    `num_rows`: what the rows, which may be weighted, count for. A penalty is in units of the mean of
    ``sum_i variances_i X_i^2`` over the rows. `starts`: slopes to begin with.

    Source: Golub & Van Loan, Matrix Computations, 4th ed., section 11.3 (conjugate gradients).
    """
    k, m = len(PENALTIES), Y.shape[1]
    # Every column is a problem of its own, and all penalties' columns go through the same products.
    root, Y = jnp.tile(jnp.sqrt(variances), (1, k)), jnp.tile(Y, (1, k))
    unit = jnp.sum(X**2, axis=0) @ variances / num_rows
    ridge = jnp.outer(jnp.asarray(PENALTIES, X.dtype), positive(unit, jnp)).reshape(1, -1)
    start = jnp.moveaxis(starts, 0, 1).reshape(len(root), k * m)
    b = start / root
    residual = root * (X.T @ (Y - X @ start)) - ridge * b
    size = jnp.sum(residual**2, axis=0)

    def step(_, state):
        b, residual, direction, size = state
        image = root * (X.T @ (X @ (root * direction))) + ridge * direction
        length = size / positive(jnp.sum(direction * image, axis=0), jnp)
        b, residual = b + length[None] * direction, residual - length[None] * image
        new = jnp.sum(residual**2, axis=0)
        return b, residual, residual + (new / positive(size, jnp))[None] * direction, new

    found = root * jax.lax.fori_loop(0, NUM_STEPS, step, (b, residual, residual, size))[0]
    return jnp.moveaxis(found.reshape(len(root), k, m), 1, 0)
