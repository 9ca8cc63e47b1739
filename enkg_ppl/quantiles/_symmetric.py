"""Symmetric location-scale families, truncated or not."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool

from enkg_ppl.quantiles._beta import _beta_constant, _beta_invert, _beta_log_tails
from enkg_ppl.quantiles._tails import (
    LOG_2,
    LOG_PI,
    Values,
    _log_phi,
    _log_tails,
    log1mexp,
    log_ndtr,
    ndtri_exp,
    normal_score,
)

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS  # on (0, 1)

# Newton steps after which none of 6,000 random cases changes beyond rounding: |z| up to 30, shapes from
# 1e-4 to 1e4
POLISH_STEPS = 3  # the start is within 1e-3 relative, and each step squares that


class Symmetric(NamedTuple):
    """A standard symmetric distribution on the real line, in the form that `quantile`, `score` and truncation need.

    Attributes:
        log_cdf: ``log_cdf(x)``, exact in the lower tail (the upper one is ``log_cdf(-x)``).
        inverse: ``inverse(log_p, log_q)``, the quantile with these log tails.
        log_mass: ``log_mass(low, high, width)``, log probability of an interval, also where ``width = high - low`` is
            tiny.
        offset: ``offset(log_mass, low, value)``, the width of the interval from finite `low` with that log probability,
            to relative accuracy however small; `value` is its upper end, accurate to the rounding of `low`.
    """

    log_cdf: Callable
    inverse: Callable
    log_mass: Callable
    offset: Callable


def quantile(family: Symmetric, z: Values) -> Values:
    """Quantile of an untruncated symmetric family.

    Args:
        family: the distribution.
        z: score.
    """
    return family.inverse(*_log_tails(z))


def score(family: Symmetric, x: Values) -> Values:
    """Inverse of `quantile`.

    Args:
        family: the distribution.
        x: value.
    """
    z = ndtri_exp(family.log_cdf(-jnp.abs(x)))
    return jnp.where(x < 0, z, -z)


def truncated_lower(family: Symmetric, z: Values, low: Values, high: Values) -> tuple[Values, Values]:
    """Quantile of a family truncated to ``(low, high)``, for ``z <= 0``.

    For ``z > 0`` reflect: the distance from `high` is that of ``truncated_lower(family, -z, -high, -low)``.

    Args:
        family: the distribution.
        z: score, at most 0.
        low: lower bound, or -inf.
        high: upper bound, or inf.

    Returns:
        The value, and its distance from `low` to relative accuracy (``inf`` where `low` is infinite): near a bound the
            value rounds to the bound, and only the distance still separates values.
    """
    log_p, log_q = _log_tails(z)
    log_total = family.log_mass(low, high, high - low)
    outside = jax.vmap(family.log_cdf)(jnp.stack([low, -high]))
    log_below, log_above = jnp.logaddexp(outside, jnp.stack([log_p, log_q]) + log_total[None])
    value = jnp.clip(family.inverse(log_below, log_above), low, high)
    bounded = jnp.isfinite(low)
    offset = family.offset(log_p + log_total, jnp.where(bounded, low, 0.0), value)
    return value, jnp.where(bounded, offset, jnp.inf)


def nearer_bound(value: Values, offset: Values) -> Bool[Array, "..."]:
    """Whether `offset` (from the bound) is better known than `value` (from the location, to 1 ulp of 1).

    Args:
        value: distance from the location.
        offset: distance from the bound.
    """
    return offset < jnp.maximum(jnp.abs(value), 0.5)


def truncated(family: Symmetric, z: Values, low: Values, high: Values) -> Values:
    """Quantile of a standard symmetric family truncated to ``(low, high)``.

    Args:
        family: the distribution.
        z: score.
        low: lower bound, or -inf.
        high: upper bound, or inf.
    """
    lower = z <= 0
    near, far = jnp.where(lower, low, -high), jnp.where(lower, high, -low)
    value, offset = truncated_lower(family, -jnp.abs(z), near, far)
    value = jnp.where(nearer_bound(value, offset), near + offset, value)
    return jnp.where(lower, value, -value)


def truncated_normal(z: Values, low: Values, high: Values) -> Values:
    """Quantile of a standard normal truncated to ``(low, high)``.

    ``Phi(v) = Phi(low) Phi(-z) + Phi(high) Phi(z)``, solved in logs from the smaller tail, so both bounds may lie far
    in one tail.

    Args:
        z: score.
        low: lower bound, or -inf.
        high: upper bound, or inf.
    """
    return truncated(normal(), z, low, high)


def _log_difference(log_cdf: Callable, low, high):
    """``log(F(high) - F(low))`` for an interval that is not short, taken in the tail that does not cancel."""
    flip = low + high > 0
    low, high = jnp.where(flip, -high, low), jnp.where(flip, -low, high)
    log_low, log_high = jax.vmap(log_cdf)(jnp.stack([low, high]))  # one copy to compile
    return log_high + log1mexp(jnp.maximum(log_high - log_low, 0.0))


def _log_short_integral(log_density: Callable, low, width):
    """``log`` of the integral of a density over ``(low, low + width)`` by 12-point Gauss-Legendre quadrature.

    Exact to rounding while the log density changes by less than about 4 over the interval.
    """
    log_at_low = log_density(low)

    def ratio(node):
        return jnp.exp(log_density(low + node * width) - log_at_low)

    ratios = jax.vmap(ratio)(jnp.asarray(_NODES, low.dtype))
    return log_at_low + jnp.log(width) + jnp.log(jnp.tensordot(jnp.asarray(_WEIGHTS, low.dtype), ratios, 1))


def _log_mass_by_quadrature(log_cdf: Callable, log_density: Callable, short: Callable) -> Callable:
    def log_mass(low, high, width):
        is_short = short(low, high, width)
        start, length = jnp.where(is_short, low, 0.0), jnp.where(is_short, width, 1.0)
        return jnp.where(is_short, _log_short_integral(log_density, start, length), _log_difference(log_cdf, low, high))

    return log_mass


def _offset_by_newton(log_density: Callable, short: Callable, decay: Callable, reach: Callable) -> Callable:
    """Newton in ``log offset`` where the interval is short; elsewhere ``value - low`` does not cancel.

    Starts from an exponential extrapolation of the density at `low` (its log slope is minus `decay`) if that
    is well within `reach`, the distance over which it is one.
    """

    def offset(log_target, low, value):
        wide = value - low
        is_short = short(low, value, wide)
        log_at_low = log_density(low)
        rate = decay(low)
        rate = jnp.where(jnp.abs(rate) < 1e-10, 1e-10, rate)
        local = -jnp.log1p(-rate * jnp.exp(log_target - log_at_low)) / rate
        near = 0.1 * reach(low)
        start = jnp.where(local < near, local, jnp.maximum(wide, near))

        def step(_, log_width):
            width = jnp.where(is_short, jnp.exp(log_width), 1.0)
            current = _log_short_integral(log_density, low, width)
            return log_width + (log_target - current) * jnp.exp(current - log_density(low + width)) / width

        start = jnp.log(jnp.maximum(start, jnp.finfo(low.dtype).tiny))
        return jnp.where(is_short, jnp.exp(lax.fori_loop(0, POLISH_STEPS, step, start)), wide)

    return offset


def normal() -> Symmetric:
    """The standard normal."""

    def short(low, high, width):
        return width * (1.0 + jnp.maximum(jnp.abs(low), jnp.abs(high))) < 2.0

    log_mass = _log_mass_by_quadrature(log_ndtr, _log_phi, short)
    offset = _offset_by_newton(_log_phi, short, lambda low: low, jnp.ones_like)
    return Symmetric(log_ndtr, normal_score, log_mass, offset)


def student_t(df: Values) -> Symmetric:
    """Student's t: ``2 F(-t) = I_x(df/2, 1/2)`` at ``x = df / (df + t^2)``, that is ``u = -2 log t`` (DLMF 8.17).

    Args:
        df: degrees of freedom, above 0.
    """
    a, b = 0.5 * df, jnp.full_like(df, 0.5)
    constant = _beta_constant(a, b)
    log_peak = constant + 0.5 * (df + 1.0) * jnp.log1p(1.0 / df)

    def log_pdf(x):
        return log_peak - 0.5 * (df + 1.0) * jnp.log1p(x * (x / df))

    def log_cdf(x):
        bounded = jnp.clip(jnp.abs(x), jnp.finfo(x.dtype).tiny, jnp.finfo(x.dtype).max)
        log_tail = _beta_log_tails(-2.0 * jnp.log(bounded), a, b, constant)[0] - LOG_2
        log_tail = jnp.where(jnp.isinf(x), -jnp.inf, log_tail)
        return jnp.where(x < 0, log_tail, jnp.log1p(-jnp.exp(log_tail)))

    def inverse(log_p, log_q):
        log_tail = jnp.minimum(log_p, log_q) + LOG_2
        log_tail = jnp.minimum(log_tail, 0.0)
        # Wallace (1959): t^2 is nearly df expm1(z^2 c^2 / df), c = (8 df + 3) / (8 df + 1)
        c = (8.0 * df + 3.0) / (8.0 * df + 1.0)
        power = jnp.square(c * ndtri_exp(log_tail - LOG_2)) / df
        start = -(jnp.log(df) + power + log1mexp(power))
        log_inside = log1mexp(-log_tail)
        u = _beta_invert(log_tail, log_inside, a, b, start)
        t = jnp.where(jnp.isneginf(log_inside), 0.0, jnp.exp(-0.5 * u))
        return jnp.where(log_p < log_q, -t, t)

    def pole_distance(low, high):
        nearest = jnp.where(low * high < 0, 0.0, jnp.minimum(jnp.abs(low), jnp.abs(high)))
        return jnp.sqrt(df + nearest * nearest), jnp.maximum(jnp.abs(low), jnp.abs(high))

    def short(low, high, width):
        distance, furthest = pole_distance(low, high)
        finite = jnp.isfinite(low) & jnp.isfinite(high)
        steepest = (df + 1.0) * furthest / (distance * distance)
        return finite & (width < 0.5 * distance) & (width * steepest < 2.0)

    def decay(low):
        return (df + 1.0) * low / (df + low * low)

    def reach(low):
        return jnp.sqrt((df + low * low) / (df + 1.0))

    log_mass = _log_mass_by_quadrature(log_cdf, log_pdf, short)
    return Symmetric(log_cdf, inverse, log_mass, _offset_by_newton(log_pdf, short, decay, reach))


def laplace() -> Symmetric:
    """The Laplace distribution of unit scale."""

    def log_cdf(x):
        tail = -jnp.abs(x) - LOG_2
        return jnp.where(x < 0, tail, jnp.log1p(-jnp.exp(tail)))

    def inverse(log_p, log_q):
        size = -jnp.minimum(jnp.minimum(log_p, log_q) + LOG_2, 0.0)
        return jnp.where(log_p < log_q, -size, size)

    def log_mass(low, high, width):
        one_side = -LOG_2 - jnp.minimum(jnp.abs(low), jnp.abs(high)) + log1mexp(width)
        both = jnp.log(-0.5 * (jnp.expm1(jnp.minimum(low, 0.0)) + jnp.expm1(-jnp.maximum(high, 0.0))))
        return jnp.where((low < 0) & (high > 0), both, one_side)

    def offset(log_target, low, value):
        ratio = jnp.exp(log_target + LOG_2 + jnp.abs(low))
        rising, falling = jnp.log1p(ratio), -jnp.log1p(-ratio)
        return jnp.where(low >= 0, falling, jnp.where(value < 0, rising, value - low))

    return Symmetric(log_cdf, inverse, log_mass, offset)


def _log_sigmoid(x):
    return -jnp.logaddexp(0.0, -x)


def logistic() -> Symmetric:
    """The logistic distribution of unit scale."""

    def log_mass(low, high, width):
        return _log_sigmoid(high) + _log_sigmoid(-low) + log1mexp(width)

    def offset(log_target, low, value):
        # F(low + d) = F(low) + m: d = log(1 + m / F(low)) - log(1 - m / F(-low))
        rise = jnp.logaddexp(0.0, log_target - _log_sigmoid(low))
        return rise - jnp.log1p(-jnp.exp(log_target - _log_sigmoid(-low)))

    return Symmetric(_log_sigmoid, lambda log_p, log_q: log_p - log_q, log_mass, offset)


def cauchy() -> Symmetric:
    """The Cauchy distribution of unit scale: ``pi F(x)`` is the angle of the direction ``(-x, 1)``."""

    def log_cdf(x):
        return jnp.log(jnp.atan2(jnp.ones_like(x), -x)) - LOG_PI

    def inverse(log_p, log_q):
        size = 1.0 / jnp.tan(jnp.pi * jnp.exp(jnp.minimum(log_p, log_q)))
        return jnp.where(log_p < log_q, -size, size)

    def log_mass(low, high, width):
        sin_low, sin_high = 1.0 / jnp.hypot(1.0, low), 1.0 / jnp.hypot(1.0, high)
        cos_low = jnp.where(jnp.isinf(low), 1.0, -low * sin_low)
        cos_high = jnp.where(jnp.isinf(high), -1.0, -high * sin_high)
        sine = jnp.where(jnp.isinf(low), sin_high, jnp.where(jnp.isinf(high), sin_low, width * sin_low * sin_high))
        return jnp.log(jnp.atan2(sine, cos_low * cos_high + sin_low * sin_high)) - LOG_PI

    def offset(log_target, low, value):
        tangent = jnp.tan(jnp.pi * jnp.exp(log_target))
        return tangent * (1.0 + low * low) / (1.0 - low * tangent)

    return Symmetric(log_cdf, inverse, log_mass, offset)


def soft_laplace() -> Symmetric:
    """The hyperbolic secant distribution as NumPyro's ``SoftLaplace``: ``F(x) = (2 / pi) atan(e^x)``."""
    log_half_pi = LOG_PI - LOG_2

    def log_atan(log_t):
        return jnp.where(log_t < -20.0, log_t, jnp.log(jnp.atan(jnp.exp(log_t))))

    def log_tan(log_angle):
        return jnp.where(log_angle < -20.0, log_angle, jnp.log(jnp.tan(jnp.exp(log_angle))))

    def log_cdf(x):
        return log_atan(x) - log_half_pi

    def inverse(log_p, log_q):
        size = log_tan(jnp.minimum(log_p, log_q) + log_half_pi)
        return jnp.where(log_p < log_q, size, -size)

    def log_mass(low, high, width):
        return log_atan(log1mexp(width) - jnp.logaddexp(low, -high)) - log_half_pi

    def offset(log_target, low, value):
        log_t = log_tan(log_target + log_half_pi)
        return jnp.logaddexp(0.0, log_t - low) - jnp.log1p(-jnp.exp(log_t + low))

    return Symmetric(log_cdf, inverse, log_mass, offset)


def truncated_score(
    family: Symmetric, value: Values, from_low: Values, to_high: Values, low: Values, high: Values
) -> Values:
    """Inverse of `truncated`; the distances of the value from both bounds are given, so that neither cancels.

    Args:
        family: the distribution.
        value: in ``(low, high)``.
        from_low: ``value - low``.
        to_high: ``high - value``.
        low: lower bound, or -inf.
        high: upper bound, or inf.
    """
    starts, ends = jnp.stack([low, value, low]), jnp.stack([value, high, high])
    widths = jnp.stack([from_low, to_high, high - low])
    below, above, total = jax.vmap(family.log_mass)(starts, ends, widths)  # one copy to compile
    return normal_score(jnp.minimum(below - total, 0.0), jnp.minimum(above - total, 0.0))
