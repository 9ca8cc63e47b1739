"""Truncation of a symmetric location-scale family, of a gamma distribution and of a power law."""

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpyro.distributions as dist
from numpyro.distributions import truncated

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import checked, elementwise, from_standard, inside, like, log_ratio, to_standard

# ----------------------------------------------------------------------------------------------------
# Symmetric families
# ----------------------------------------------------------------------------------------------------

BASES: dict[type, Callable] = {
    dist.Normal: lambda base, shape, dtype: q.normal(),
    dist.Cauchy: lambda base, shape, dtype: q.cauchy(),
    dist.Laplace: lambda base, shape, dtype: q.laplace(),
    dist.Logistic: lambda base, shape, dtype: q.logistic(),
    dist.SoftLaplace: lambda base, shape, dtype: q.soft_laplace(),
    dist.StudentT: lambda base, shape, dtype: q.student_t(jnp.broadcast_to(jnp.asarray(base.df, dtype), shape)),
}


def location_scale(base, array):
    """Family, location and scale of a symmetric distribution, as arrays like `array`."""
    family = next(make for cls, make in BASES.items() if isinstance(base, cls))
    return family(base, array.shape, array.dtype), *(like(v, array, array.shape) for v in (base.loc, base.scale))


def _bounds(fn, array):
    return (like(getattr(fn, *bound), array, array.shape) for bound in (("low", -math.inf), ("high", math.inf)))


def _truncation(fn, array):
    """Family, location, scale and bounds of a truncated distribution, as arrays like `array`."""
    return *location_scale(fn.base_dist, array), *_bounds(fn, array)


def _from_standard_truncated(fn, z):
    z = checked(fn, z, fn.shape(), "score")
    family, loc, scale, low, high = _truncation(fn, z)
    a, b = (low - loc) / scale, (high - loc) / scale
    # Below the median count from `low`, above it from `high`: the same problem reflected. Near a bound the
    # distance from it is what is accurate, elsewhere the distance from the location.
    lower = z <= 0
    sign = jnp.where(lower, 1.0, -1.0)
    value, offset = q.truncated_lower(family, -jnp.abs(z), jnp.where(lower, a, -b), jnp.where(lower, b, -a))
    at_bound = q.nearer_bound(value, offset)
    anchor = jnp.where(at_bound, jnp.where(lower, low, high), loc)
    return inside(anchor + sign * scale * jnp.where(at_bound, offset, value), low, high)


def _to_standard_truncated(fn, value):
    value = checked(fn, value, fn.shape(), "value")
    family, loc, scale, low, high = _truncation(fn, value)
    distances = ((value - loc) / scale, (value - low) / scale, (high - value) / scale)
    return q.truncated_score(family, *distances, (low - loc) / scale, (high - loc) / scale)


for _cls in (
    truncated.LeftTruncatedDistribution,
    truncated.RightTruncatedDistribution,
    truncated.TwoSidedTruncatedDistribution,
):
    from_standard.register(_cls, _from_standard_truncated)
    to_standard.register(_cls, _to_standard_truncated)


# ----------------------------------------------------------------------------------------------------
# Gamma
# ----------------------------------------------------------------------------------------------------


def _gamma_parameters(fn, array):
    base, (low, high) = fn.base_dist, _bounds(fn, array)
    shape, rate = (like(v, array, array.shape) for v in (base.concentration, base.rate))
    return shape, rate, jnp.maximum(low, 0.0), high


def _from_standard_gamma(fn, z):
    z = checked(fn, z, fn.shape(), "score")
    shape, rate, low, high = _gamma_parameters(fn, z)
    return inside(q.truncated_gamma(z, shape, rate * low, rate * high) / rate, low, high)


def _to_standard_gamma(fn, value):
    value = checked(fn, value, fn.shape(), "value")
    shape, rate, low, high = _gamma_parameters(fn, value)
    distances = (rate * value, rate * (value - low), rate * (high - value))
    return q.truncated_gamma_score(*distances, shape, rate * low, rate * high)


for _cls in (dist.LeftTruncatedGamma, dist.RightTruncatedGamma, dist.TwoSidedTruncatedGamma):
    from_standard.register(_cls, _from_standard_gamma)
    to_standard.register(_cls, _to_standard_gamma)


# ----------------------------------------------------------------------------------------------------
# Power law: the log of the value is a truncated exponential variable, dense at one end and thin at the other
# ----------------------------------------------------------------------------------------------------


def _ends(alpha, of_low, of_high):
    """What belongs to the dense end and to the thin one, given for the low and the high one."""
    dense_is_high = alpha > -1.0
    return jnp.where(dense_is_high, of_high, of_low), jnp.where(dense_is_high, of_low, of_high)


def _log_decay(alpha):
    """Rate of the exponential in the log of the value; at alpha = -1 the limit is reached to rounding."""
    return jnp.maximum(jnp.abs(alpha + 1.0), 1e-20)


def _power_law(z, alpha, low, high):
    rate = _log_decay(alpha)
    fall = rate * log_ratio(high, low)  # of the log density from the dense end to the thin one
    log_dense, log_thin = _ends(alpha, q.log_ndtr(z), q.log_ndtr(-z))
    # distances in the log, each where it does not cancel: 1 - e^(-rate d) = P(nearer the dense end) (1 - e^-fall)
    part = -jnp.exp(log_dense) * jnp.expm1(-fall)
    from_dense = jnp.where(part < 0.5, -jnp.log1p(-part), -jnp.logaddexp(log_thin, log_dense - fall)) / rate
    from_thin = jnp.log1p(jnp.exp(log_thin + fall + q.log1mexp(fall))) / rate
    thin = from_thin < from_dense
    from_high = (alpha > -1.0) ^ thin
    distance = jnp.where(thin, from_thin, from_dense)
    return inside(jnp.where(from_high, high * jnp.exp(-distance), low * jnp.exp(distance)), low, high)


def _power_law_score(x, alpha, low, high):
    rate = _log_decay(alpha)
    log_total = q.log1mexp(rate * log_ratio(high, low))
    to_dense, to_thin = (rate * d for d in _ends(alpha, log_ratio(x, low), log_ratio(high, x)))
    log_dense = q.log1mexp(to_dense) - log_total
    log_thin = q.log1mexp(to_thin) - to_dense - log_total
    return q.normal_score(*(jnp.minimum(t, 0.0) for t in _ends(alpha, log_dense, log_thin)))


elementwise(dist.DoublyTruncatedPowerLaw, "alpha low high", _power_law, _power_law_score)
elementwise(
    dist.LowerTruncatedPowerLaw,
    "alpha low",
    lambda z, alpha, low: inside(low * jnp.exp(q.exponential(z) / (-1.0 - alpha)), low, jnp.inf),
    lambda x, alpha, low: q.log_exponential_score(jnp.log((-1.0 - alpha) * log_ratio(x, low))),
)
