"""Cholesky factors: LKJ by partial correlations, Wishart and inverse Wishart by Bartlett's decomposition.

The matrices themselves (`LKJ`, `Wishart`, `InverseWishart`) are NumPyro's transforms of these. Scores are the entries
of the lower triangle, row by row.
"""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import (
    checked,
    from_standard,
    like,
    matrix_like,
    positive,
    standard_shape,
    to_standard,
)

# ----------------------------------------------------------------------------------------------------
# LKJ
# ----------------------------------------------------------------------------------------------------


@standard_shape.register
def _(fn: dist.LKJCholesky):
    return (*fn.batch_shape, fn.dimension * (fn.dimension - 1) // 2)


def _partial_correlations(fn, array):
    """Their places below the diagonal, and the shape b of each: ``(1 + r) / 2 ~ Beta(b, b)`` with b one half lower
    from column to column (Lewandowski, Kurowicka & Joe 2009, section 2.4).
    """
    i, j = jnp.tril_indices(fn.dimension, -1)
    first = like(fn.concentration, array, fn.batch_shape)[..., None] + 0.5 * (fn.dimension - 2)
    return i, j, first - like(0.5 * j, array, array.shape)


@from_standard.register
def _(fn: dist.LKJCholesky, z):
    z = checked(fn, z, standard_shape(fn), "score")
    i, j, shape = _partial_correlations(fn, z)
    half = 0.5 * q.beta(z, shape, shape)  # r = tanh(half), and sqrt(1 - r^2) = sech(half)
    rows = jnp.zeros(fn.shape(), z.dtype).at[..., i, j].set(half)
    log_sech = jnp.minimum(q.LOG_2 - jnp.abs(rows) - jnp.log1p(jnp.exp(-2.0 * jnp.abs(rows))), 0.0)
    left = jnp.exp(jnp.cumsum(log_sech, -1) - log_sech)  # of a row of unit length, before each entry
    factor = jnp.tril(jnp.tanh(rows) * left, -1)
    k = jnp.arange(fn.dimension)
    return factor.at[..., k, k].set(positive(left[..., k, k]))


@to_standard.register
def _(fn: dist.LKJCholesky, value):
    value = checked(fn, value, fn.shape(), "value")
    i, j, _ = _partial_correlations(fn, jnp.zeros(standard_shape(fn), value.dtype))
    squares = jnp.square(jnp.tril(value))
    after = jnp.sqrt(jnp.flip(jnp.cumsum(jnp.flip(squares, -1), -1), -1))[..., i, j + 1]
    logit = 2.0 * jnp.arcsinh(value[..., i, j] / after)
    shape = _partial_correlations(fn, logit)[2]
    return q.beta_score(logit, shape, shape)


# ----------------------------------------------------------------------------------------------------
# Wishart and inverse Wishart
# ----------------------------------------------------------------------------------------------------


def _triangle_shape(fn):
    dim = fn.event_shape[0]
    return (*fn.batch_shape, dim * (dim + 1) // 2)


standard_shape.register(dist.WishartCholesky, _triangle_shape)
standard_shape.register(dist.InverseWishartCholesky, _triangle_shape)


def _bartlett(z, degrees):
    """Lower triangular A with normal entries below the diagonal and roots of chi-squares of `degrees` on it."""
    dim = degrees.shape[-1]
    i, j = jnp.tril_indices(dim)
    k = jnp.arange(dim)
    factor = jnp.zeros((*degrees.shape, dim), z.dtype).at[..., i, j].set(z)
    log_chi2 = q.LOG_2 + q.gamma(factor[..., k, k], 0.5 * degrees)
    return factor.at[..., k, k].set(positive(jnp.exp(0.5 * log_chi2)))


def _bartlett_score(factor, degrees):
    """Inverse of `_bartlett`."""
    i, j = jnp.tril_indices(degrees.shape[-1])
    k = jnp.arange(degrees.shape[-1])
    score = q.gamma_score(2.0 * jnp.log(factor[..., k, k]) - q.LOG_2, 0.5 * degrees)
    return factor.at[..., k, k].set(score)[..., i, j]


def _degrees(fn, array, first):
    """``concentration + first`` down the diagonal, plus or minus one from row to row."""
    concentration = like(fn.concentration, array, fn.batch_shape)[..., None]
    return concentration + like(first, array, fn.shape()[:-1])


def _falling(fn, array):
    return _degrees(fn, array, -jnp.arange(fn.event_shape[0]))


def _rising(fn, array):
    return _degrees(fn, array, jnp.arange(1 - fn.event_shape[0], 1))


@from_standard.register
def _(fn: dist.WishartCholesky, z):
    z = checked(fn, z, standard_shape(fn), "score")
    return matrix_like(fn, fn.scale_tril, z) @ _bartlett(z, _falling(fn, z))


@to_standard.register
def _(fn: dist.WishartCholesky, value):
    value = checked(fn, value, fn.shape(), "value")
    factor = solve_triangular(matrix_like(fn, fn.scale_tril, value), value, lower=True)
    return _bartlett_score(factor, _falling(fn, value))


@from_standard.register
def _(fn: dist.InverseWishartCholesky, z):
    z = checked(fn, z, standard_shape(fn), "score")
    # scores of the other sign, so that the diagonal, which is inverted, grows with its score
    factor = _bartlett(-z, _rising(fn, z))
    identity = jnp.broadcast_to(jnp.eye(factor.shape[-1], dtype=z.dtype), factor.shape)
    return matrix_like(fn, fn.scale_tril, z) @ solve_triangular(factor, identity, lower=True)


@to_standard.register
def _(fn: dist.InverseWishartCholesky, value):
    value = checked(fn, value, fn.shape(), "value")
    factor = solve_triangular(value, matrix_like(fn, fn.scale_tril, value), lower=True)
    return -_bartlett_score(factor, _rising(fn, value))
