"""Absolute values of a symmetric location-scale family."""

import jax.numpy as jnp
import numpyro.distributions as dist

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import checked, from_standard, log_density_like, positive, to_standard
from enkg_ppl.numpyro.transports._refusal import UnsupportedPriorError, reason
from enkg_ppl.numpyro.transports._truncated import BASES, location_scale


def _base(fn):
    """The folded distribution, without the expansion that NumPyro may have put around it."""
    base = fn.base_dist
    while isinstance(base, dist.ExpandedDistribution):
        base = base.base_dist
    if not isinstance(base, tuple(BASES)):
        raise UnsupportedPriorError(reason(fn))
    return base


def _log_tails(family, loc, scale, x):
    """``P(-x < X < x)`` and ``P(|X| > x)``, the first to relative accuracy however small `x`."""
    below, above = (-x - loc) / scale, (x - loc) / scale
    log_p = family.log_mass(below, above, 2.0 * x / scale)
    return jnp.minimum(log_p, 0.0), jnp.minimum(jnp.logaddexp(family.log_cdf(below), family.log_cdf(-above)), 0.0)


@from_standard.register
def _(fn: dist.FoldedDistribution, z):
    base = _base(fn)
    z = checked(fn, z, fn.shape(), "score")
    family, loc, scale = location_scale(base, z)

    def tails(x):
        return *_log_tails(family, loc, scale, x), log_density_like(fn, x)

    # |X - loc| is the smaller one in distribution, because the density is unimodal, and |X| <= |loc| + |X - loc|
    half = positive(scale * q.truncated(family, z, jnp.zeros_like(z), jnp.full_like(z, jnp.inf)))
    low, high = positive(0.99 * half), positive(1.01 * (half + jnp.abs(loc)))
    return positive(q.invert(tails, z, low, high, jnp.where(loc == 0, half, 0.5 * (low + high))))


@to_standard.register
def _(fn: dist.FoldedDistribution, value):
    base = _base(fn)
    value = checked(fn, value, fn.shape(), "value")
    family, loc, scale = location_scale(base, value)
    return q.normal_score(*_log_tails(family, loc, scale, value))
