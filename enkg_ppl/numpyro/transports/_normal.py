"""Multivariate normals: affine maps of the score."""

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from enkg_ppl.numpyro.transports._base import checked, from_standard, like, matrix_like, to_standard


@from_standard.register
def _(fn: dist.MultivariateNormal, z):
    z = checked(fn, z, fn.shape(), "score")
    loc, tril = _mean_and_factor(fn, fn.scale_tril, z)
    return loc + jnp.einsum("...ij,...j->...i", tril, z)


@to_standard.register
def _(fn: dist.MultivariateNormal, value):
    value = checked(fn, value, fn.shape(), "value")
    loc, tril = _mean_and_factor(fn, fn.scale_tril, value)
    return solve_triangular(tril, (value - loc)[..., None], lower=True)[..., 0]


@from_standard.register
def _(fn: dist.LowRankMultivariateNormal, z):
    z = checked(fn, z, fn.shape(), "score")
    loc, factor = _mean_and_factor(fn, fn.cov_factor, z)
    scale = jnp.sqrt(like(fn.cov_diag, z, z.shape))
    return loc + scale * _low_rank_root(factor / scale[..., None], z, lambda s: 1.0 / (1.0 + s))


@to_standard.register
def _(fn: dist.LowRankMultivariateNormal, value):
    value = checked(fn, value, fn.shape(), "value")
    loc, factor = _mean_and_factor(fn, fn.cov_factor, value)
    scale = jnp.sqrt(like(fn.cov_diag, value, value.shape))
    return _low_rank_root(factor / scale[..., None], (value - loc) / scale, lambda s: -1.0 / (s * (1.0 + s)))


def _mean_and_factor(fn, factor, array):
    return like(fn.loc, array, array.shape), matrix_like(fn, factor, array)


def _low_rank_root(factor, x, weight):
    """``x + A V w(s) V^T A^T x`` for ``A^T A = V (s^2 - 1) V^T``: the symmetric root of ``I + A A^T``, or its
    inverse.

    The root is ``w(s) = (s - 1) / (s^2 - 1) = 1 / (s + 1)``, the inverse root ``(1/s - 1) / (s^2 - 1)``.
    """
    values, vectors = jnp.linalg.eigh(jnp.einsum("...ki,...kj->...ij", factor, factor))
    basis = jnp.einsum("...ki,...ij->...kj", factor, vectors)
    s = jnp.sqrt(1.0 + jnp.maximum(values, 0.0))
    return x + jnp.einsum("...kj,...j->...k", basis, weight(s) * jnp.einsum("...kj,...k->...j", basis, x))


@from_standard.register
def _(fn: dist.MatrixNormal, z):
    z = checked(fn, z, fn.shape(), "score")
    loc, rows = _mean_and_factor(fn, fn.scale_tril_row, z)
    return loc + rows @ z @ matrix_like(fn, fn.scale_tril_column, z).mT


@to_standard.register
def _(fn: dist.MatrixNormal, value):
    value = checked(fn, value, fn.shape(), "value")
    loc, rows = _mean_and_factor(fn, fn.scale_tril_row, value)
    half = solve_triangular(rows, value - loc, lower=True)
    return solve_triangular(matrix_like(fn, fn.scale_tril_column, value), half.mT, lower=True).mT


@from_standard.register
def _(fn: dist.CAR, z):
    z = checked(fn, z, fn.shape(), "score")
    loc, factor = _mean_and_factor(fn, _root_of_precision(fn), z)
    return loc + solve_triangular(factor, z[..., None], lower=True, trans="T")[..., 0]


@to_standard.register
def _(fn: dist.CAR, value):
    value = checked(fn, value, fn.shape(), "value")
    loc, factor = _mean_and_factor(fn, _root_of_precision(fn), value)
    return jnp.einsum("...ji,...j->...i", factor, value - loc)


def _root_of_precision(fn: dist.CAR):
    with jax.numpy_rank_promotion("allow"):  # NumPyro relies on it
        return jnp.linalg.cholesky(jnp.asarray(fn.precision_matrix))
