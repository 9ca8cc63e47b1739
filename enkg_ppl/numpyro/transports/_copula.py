"""Gaussian copulas: correlated scores, each through the transport of its marginal."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from enkg_ppl.numpyro.transports._base import checked, from_standard, matrix_like, to_standard


@from_standard.register
def _(fn: dist.GaussianCopula, z):
    z = checked(fn, z, fn.shape(), "score")
    correlated = jnp.einsum("...ij,...j->...i", matrix_like(fn, fn.base_dist.scale_tril, z), z)
    return from_standard(fn.marginal_dist.expand(fn.shape()), correlated)


@to_standard.register
def _(fn: dist.GaussianCopula, value):
    value = checked(fn, value, fn.shape(), "value")
    correlated = to_standard(fn.marginal_dist.expand(fn.shape()), value)
    return solve_triangular(matrix_like(fn, fn.base_dist.scale_tril, value), correlated[..., None], lower=True)[..., 0]
