"""Multivariate Student t: given the coordinates before it, each one is a scaled t variable (Ding 2016)."""

import jax.numpy as jnp
import numpyro.distributions as dist
from jax.scipy.linalg import solve_triangular

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import checked, finite, from_standard, like, matrix_like, to_standard


def _degrees(fn, array):
    """Of the distribution, and of each coordinate given those before it: one more for every one of them."""
    df = like(fn.df, array, fn.batch_shape)[..., None]
    return df, df + like(jnp.arange(array.shape[-1]), array, array.shape)


@from_standard.register
def _(fn: dist.MultivariateStudentT, z):
    z = checked(fn, z, fn.shape(), "score")
    df, dfs = _degrees(fn, z)
    t = q.quantile(q.student_t(dfs), z)
    # df + |y_1..k|^2 = (df + |y_1..k-1|^2) (1 + t_k^2 / df_k)
    log_growth = jnp.log1p(t * (t / dfs))
    y = t * jnp.sqrt(df / dfs) * jnp.exp(0.5 * (jnp.cumsum(log_growth, -1) - log_growth))
    return finite(like(fn.loc, z, z.shape) + jnp.einsum("...ij,...j->...i", matrix_like(fn, fn.scale_tril, z), y))


@to_standard.register
def _(fn: dist.MultivariateStudentT, value):
    value = checked(fn, value, fn.shape(), "value")
    df, dfs = _degrees(fn, value)
    centred = value - like(fn.loc, value, value.shape)
    y = solve_triangular(matrix_like(fn, fn.scale_tril, value), centred[..., None], lower=True)[..., 0]
    before = jnp.pad(jnp.cumsum(jnp.square(y), -1)[..., :-1], [(0, 0)] * (y.ndim - 1) + [(1, 0)])
    return q.score(q.student_t(dfs), y * jnp.sqrt(dfs / (df + before)))
