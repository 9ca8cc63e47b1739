"""Dirichlet by stick breaking: each share of what is left of the stick is a beta variable of its own.

In logs, so that a share or a remainder too small for a float is still told from zero.
"""

import jax.numpy as jnp
import numpyro.distributions as dist

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import checked, from_standard, inside, like, standard_shape, to_standard


@standard_shape.register
def _(fn: dist.Dirichlet):
    return (*fn.batch_shape, fn.event_shape[0] - 1)


def _shapes(fn, array):
    """Concentrations of every share and of what it leaves."""
    concentration = like(fn.concentration, array, fn.shape())
    return concentration[..., :-1], _sum_after(concentration)


def _sum_after(x):
    """``x[k+1] + ... + x[K]`` for every k but the last; sums of positives, nothing cancels."""
    return jnp.flip(jnp.cumsum(jnp.flip(x[..., 1:], -1), -1), -1)


@from_standard.register
def _(fn: dist.Dirichlet, z):
    z = checked(fn, z, standard_shape(fn), "score")
    logit = q.beta(z, *_shapes(fn, z))
    start = jnp.zeros((*fn.batch_shape, 1), z.dtype)
    log_left = jnp.concatenate([start, jnp.cumsum(-jnp.logaddexp(0.0, logit), -1)], -1)
    log_share = jnp.concatenate([-jnp.logaddexp(0.0, -logit), start], -1)
    return inside(jnp.exp(log_left + log_share), 0.0, 1.0)


@to_standard.register
def _(fn: dist.Dirichlet, value):
    value = checked(fn, value, fn.shape(), "value")
    return q.beta_score(jnp.log(value[..., :-1]) - jnp.log(_sum_after(value)), *_shapes(fn, value))
