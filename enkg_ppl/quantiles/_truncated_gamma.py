"""Gamma distribution of unit rate, truncated below, above or on both sides."""

import jax.numpy as jnp

from enkg_ppl.quantiles._bracket import invert
from enkg_ppl.quantiles._gamma import _gamma_constant, _gamma_log_tails, gamma
from enkg_ppl.quantiles._symmetric import _log_short_integral
from enkg_ppl.quantiles._tails import Values, _log_tails, expm1_minus, log1mexp, normal_score


def _gamma_log_mass(low: Values, high: Values, width: Values, a: Values, constant: Values) -> Values:
    """``log`` of the probability of ``(low, high)``, also where ``width = high - low`` is tiny.

    A difference of tails, in the tail that does not cancel; over a short interval the integral of the density of
    ``log x``, which is entire and log-concave whatever the shape.
    """
    u_low, u_high = jnp.log(low / a), jnp.log(high / a)
    below_low, above_low, _ = _gamma_log_tails(u_low, a, constant)
    below_high, above_high, _ = _gamma_log_tails(u_high, a, constant)
    from_above = above_low + log1mexp(jnp.maximum(above_low - above_high, 0.0))
    from_below = below_high + log1mexp(jnp.maximum(below_high - below_low, 0.0))
    difference = jnp.where(above_low < below_low, from_above, from_below)

    u_width = jnp.log1p(width / low)
    steepest = jnp.maximum(jnp.abs(a - low), jnp.abs(a - high))  # of the log density of log x
    short = (low > 0) & (u_width < 8.0) & (u_width * steepest < 2.0)
    start, length = jnp.where(short, u_low, 0.0), jnp.where(short, u_width, 1.0)
    return jnp.where(short, _log_short_integral(lambda u: constant - a * expm1_minus(u), start, length), difference)


def _largest(dtype) -> float:
    """A bound that no tail reaches, and whose products with a shape do not overflow."""
    return float(jnp.finfo(dtype).max) ** 0.5


def truncated_gamma(z: Values, concentration: Values, low: Values, high: Values) -> Values:
    """Quantile of a unit-rate gamma distribution truncated to ``(low, high)``.

    Args:
        z: score.
        concentration: above 0.
        low: lower bound, may be 0.
        high: upper bound, may be infinite.
    """
    a, constant = concentration, _gamma_constant(concentration)
    high = jnp.minimum(high, _largest(z.dtype))
    log_total = _gamma_log_mass(low, high, high - low, a, constant)

    def tails(x):
        log_p = _gamma_log_mass(low, x, x - low, a, constant) - log_total
        log_q = _gamma_log_mass(x, high, high - x, a, constant) - log_total
        log_density = constant - a * expm1_minus(jnp.log(x / a)) - jnp.log(x) - log_total
        return log_p, log_q, log_density

    # the quantile by adding up tails: exact but where it rounds to the wrong side of a bound, or nearly so
    log_p, log_q = _log_tails(z)
    log_below = jnp.logaddexp(_gamma_log_tails(jnp.log(low / a), a, constant)[0], log_p + log_total)
    log_above = jnp.logaddexp(_gamma_log_tails(jnp.log(high / a), a, constant)[1], log_q + log_total)
    start = jnp.exp(gamma(normal_score(log_below, log_above), a))
    return invert(tails, z, low, high, jnp.clip(start, low, high))


def truncated_gamma_score(
    value: Values, from_low: Values, to_high: Values, concentration: Values, low: Values, high: Values
) -> Values:
    """Inverse of `truncated_gamma`; the distances from both bounds are given, so that neither cancels.

    Args:
        value: in ``(low, high)``.
        from_low: ``value - low``.
        to_high: ``high - value``.
        concentration: above 0.
        low: lower bound, may be 0.
        high: upper bound, may be infinite.
    """
    a, constant = concentration, _gamma_constant(concentration)
    high, to_high = jnp.minimum(high, _largest(value.dtype)), jnp.minimum(to_high, _largest(value.dtype))
    log_total = _gamma_log_mass(low, high, high - low, a, constant)
    log_p = _gamma_log_mass(low, value, from_low, a, constant) - log_total
    log_q = _gamma_log_mass(value, high, to_high, a, constant) - log_total
    return normal_score(jnp.minimum(log_p, 0.0), jnp.minimum(log_q, 0.0))
