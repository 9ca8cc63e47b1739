"""Gamma: P(a, x) and Q(a, x) of x = a e^u, and their inverse."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax

from enkg_ppl.quantiles._tails import HALF_LOG_2PI, Values, _log_tails, expm1_minus, log1mexp, normal_score

MAX_TERMS = 10_000  # of a series or continued fraction; it stops by itself when every element has converged

# Newton steps after which none of 6,000 random cases changes beyond rounding: |z| up to 30, shapes from
# 1e-4 to 1e4
GAMMA_STEPS = 8  # 7 needed


def _stirling(x: Values) -> Values:
    """``log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2`` (DLMF 5.11.1), without cancellation for large x."""
    r = 1.0 / jnp.maximum(x, 10.0)
    s = r * r
    series = s * (1 / 1188 - s * (691 / 360360))
    series = r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - series))))
    y = jnp.minimum(x, 10.0)
    return jnp.where(x > 10.0, series, lax.lgamma(y) - (y - 0.5) * jnp.log(y) + y - HALF_LOG_2PI)


def _until_converged(step: Callable, state: tuple, dtype) -> tuple:
    """Iterate ``step(n, state)``, whose last entry is the current relative change, until all are at rounding."""

    def unfinished(carry):
        n, current = carry
        return (n < MAX_TERMS) & jnp.any(jnp.abs(current[-1]) > jnp.finfo(dtype).eps)

    def advance(carry):
        n, current = carry
        return n + 1, step(n.astype(dtype), current)

    return lax.while_loop(unfinished, advance, (jnp.asarray(1), state))[1]


def _gamma_series(a: Values, x: Values) -> Values:
    """``1 + x/(a+1) + x^2/((a+1)(a+2)) + ...`` (DLMF 8.11.4), for ``x <= max(a, 1)``."""

    def step(n, state):
        total, term, _ = state
        term = term * x / (a + n)
        return total + term, term, term / total

    return _until_converged(step, (jnp.ones_like(x), jnp.ones_like(x), jnp.ones_like(x)), x.dtype)[0]


def _gamma_fraction(a: Values, x: Values) -> Values:
    """``Gamma(a, x) / (x^a e^-x)`` by its continued fraction (DLMF 8.9.2, Lentz's method), for ``x >= max(a, 1)``."""

    def step(n, state):
        c, d, h, _ = state
        numerator = -n * (n - a)
        b = x + 1.0 - a + 2.0 * n
        d = 1.0 / (numerator * d + b)
        c = b + numerator / c
        return c, d, h * c * d, c * d - 1.0

    d = 1.0 / (x + 1.0 - a)
    c = jnp.full_like(x, 1e30)
    return _until_converged(step, (c, d, d, jnp.ones_like(x)), x.dtype)[2]


def _gamma_constant(a: Values) -> Values:
    """``log(a^a e^-a / Gamma(a))``, the log density of ``log x`` at ``x = a``."""
    small = a < 10.0
    b = jnp.where(small, a, 1.0)
    direct = (b + 1.0) * jnp.log(b) - b - lax.lgamma(b + 1.0)
    return jnp.where(small, direct, 0.5 * jnp.log(a) - HALF_LOG_2PI - _stirling(a))


def _gamma_log_tails(u: Values, a: Values, constant: Values) -> tuple[Values, Values, Values]:
    """Logs of ``P(a, x)``, ``Q(a, x)`` and the density of ``log x`` at ``x = a e^u``; `constant` is
    `_gamma_constant`.

    The density is its value at the mean times ``exp(-a (e^u - 1 - u))`` (Loader 2000): nothing large cancels.
    """
    x = a * jnp.exp(u)
    log_density = constant - a * expm1_minus(u)
    split = jnp.maximum(a, 1.0)
    log_p = log_density - jnp.log(a) + jnp.log(_gamma_series(a, jnp.minimum(x, split)))
    log_q = log_density + jnp.log(_gamma_fraction(a, jnp.maximum(x, split)))
    below = x <= split
    log_tail = jnp.minimum(jnp.where(below, log_p, log_q), 0.0)
    other = log1mexp(jnp.maximum(-log_tail, jnp.finfo(u.dtype).tiny))
    return jnp.where(below, log_tail, other), jnp.where(below, other, log_tail), log_density


def gamma(z: Values, concentration: Values) -> Values:
    """LOG of the quantile of a unit-rate gamma distribution; the log, since small shapes underflow.

    Newton in ``u = log(x / a)`` on ``log P`` below the median and on ``log Q`` above it. Starts: Wilson & Hilferty
    (1931), or the power-law bound ``P <= x^a / Gamma(a + 1)`` where that is nearer. Kept below ``a + sqrt(2 a t) + t``,
    ``t = -log Q`` (Boucheron, Lugosi & Massart 2013, section 2.4).

    Args:
        z: score.
        concentration: shape ``a``, above 0.

    Returns:
        ``log x`` with ``P(concentration, x) = Phi(z)``.
    """
    a = concentration
    lower = z <= 0
    log_p, log_q = _log_tails(z)
    log_target = jnp.where(lower, log_p, log_q)
    sign = jnp.where(lower, 1.0, -1.0)

    low = (log_p + lax.lgamma(a + 1.0)) / a - jnp.log(a)
    high = jnp.where(lower, 0.0, jnp.log1p(jnp.sqrt(-2.0 * log_q / a) - log_q / a))
    cube = 1.0 - 1.0 / (9.0 * a) + z / (3.0 * jnp.sqrt(a))
    hilferty = jnp.where(cube > 0.1, 3.0 * jnp.log(jnp.maximum(cube, 0.1)), low)
    small = jnp.where(lower | (low + jnp.log(a) < -2.0), low, high)
    start = jnp.clip(jnp.where(a < 1.0, small, hilferty), low, high)

    constant = _gamma_constant(a)

    def step(_, u):
        log_p, log_q, log_density = _gamma_log_tails(u, a, constant)
        log_tail = jnp.where(lower, log_p, log_q)
        return jnp.clip(u - sign * (log_tail - log_target) * jnp.exp(log_tail - log_density), low, high)

    return jnp.log(a) + lax.fori_loop(0, GAMMA_STEPS, step, start)


def gamma_score(log_x: Values, concentration: Values) -> Values:
    """Inverse of `gamma`: the score of a unit-rate gamma value, given its log.

    Args:
        log_x: log of the value.
        concentration: above 0.
    """
    u = log_x - jnp.log(concentration)
    log_p, log_q, _ = _gamma_log_tails(u, concentration, _gamma_constant(concentration))
    return normal_score(log_p, log_q)
