"""Beta: I_x(a, b) of logit(x) = u + log(a / b), and its inverse."""

import jax.numpy as jnp
from jax import lax

from enkg_ppl.quantiles._gamma import _stirling, _until_converged
from enkg_ppl.quantiles._tails import (
    HALF_LOG_2PI,
    Values,
    _log_tails,
    expm1_minus,
    log1mexp,
    log1p_minus,
    ndtri_exp,
    normal_score,
)

# Newton steps after which none of 6,000 random cases changes beyond rounding: |z| up to 30, shapes from
# 1e-4 to 1e4
BETA_STEPS = 14  # 14 needed
STUDENT_STEPS = 7  # 6 needed


def _beta_constant(a: Values, b: Values) -> Values:
    """``log(m^a (1-m)^b / B(a, b))`` at the mean ``m = a / (a + b)``, without cancelling log-gammas (Loader 2000)."""
    half_log = 0.5 * (jnp.log(a) + jnp.log(b) - jnp.log(a + b)) - HALF_LOG_2PI
    return half_log + _stirling(a + b) - _stirling(a) - _stirling(b)


def _beta_divergence(u: Values, a: Values, b: Values) -> Values:
    """``KL(mean, x) = log(1 - m + m e^u) - m u`` at ``logit x = u + logit m``, ``m = a / (a + b)``, to
    relative accuracy.
    """
    m = jnp.minimum(a, b) / (a + b)
    v = jnp.where(a <= b, u, -u)
    near = jnp.minimum(v, 30.0)
    w = m * jnp.expm1(near)
    divergence = jnp.where(w < 1.0, log1p_minus(w) + m * expm1_minus(near), jnp.log1p(w) - m * near)
    return jnp.where(v > 30.0, jnp.log(m) + (1.0 - m) * v, divergence)


def _share(u: Values, a: Values, b: Values) -> Values:
    """``x`` at ``logit x = u + log(a / b)``."""
    return 1.0 / (1.0 + b / a * jnp.exp(-u))


def _beta_fraction(a: Values, b: Values, u: Values) -> Values:
    """``I_x(a, b) B(a, b) / (x^a (1-x)^b)`` by its continued fraction, for ``x <= (a+1)/(a+b+2)``.

    The even part of DLMF 8.17.22, in the form of Didonato & Morris (1992, eq. 9), by Lentz's method. What
    matters for large shapes is the distance from the mean, ``a - (a + b) x``, which `u` gives without
    cancellation.
    """
    x, y = _share(u, a, b), _share(-u, b, a)
    excess = 1.0 - a * y * jnp.expm1(u)  # 1 + a - (a + b) x

    def step(n, state):
        c, d, h, _ = state
        numerator = (a + n - 1.0) * (a + b + n - 1.0) / jnp.square(a + 2.0 * n - 1.0) * n * (b - n) * x * x
        denominator = n + n * (b - n) * x / (a + 2.0 * n - 1.0)
        denominator = denominator + (a + n) / (a + 2.0 * n + 1.0) * (excess + n * (1.0 + y))
        d = 1.0 / (numerator * d + denominator)
        c = denominator + numerator / c
        return c, d, h * c * d, c * d - 1.0

    d = (a + 1.0) / (a * excess)
    c = jnp.full_like(x, 1e30)
    return _until_converged(step, (c, d, d, jnp.ones_like(x)), x.dtype)[2]


def _beta_log_tails(u: Values, a: Values, b: Values, constant: Values) -> tuple[Values, Values, Values]:
    """Logs of ``I_x(a, b)``, ``I_{1-x}(b, a)`` and the density of ``logit x`` at ``logit x = u + log(a /
    b)``.

    The density is `constant` (see `_beta_constant`) less ``(a + b) KL(mean, x)``.
    """
    direct = _share(u, a, b) <= (a + 1.0) / (a + b + 2.0)
    first = jnp.where(direct, a, b), jnp.where(direct, b, a), jnp.where(direct, u, -u)
    log_density = constant - (a + b) * _beta_divergence(u, a, b)
    log_tail = jnp.minimum(log_density + jnp.log(_beta_fraction(*first)), 0.0)
    other = log1mexp(jnp.maximum(-log_tail, jnp.finfo(u.dtype).tiny))
    return jnp.where(direct, log_tail, other), jnp.where(direct, other, log_tail), log_density


def _beta_invert(log_p: Values, log_q: Values, a: Values, b: Values, start: Values | None = None) -> Values:
    """``u = logit(x) - log(a / b)`` of the beta quantile with log tails `log_p`, `log_q`.

    Newton on the log of the smaller tail, between the power-law bounds ``I_x <= x^a (1-x)^-a / (a B)`` and
    its mirror image. The upper tail is the lower one of ``1 - x``.
    """
    flip = log_q < log_p
    a, b = jnp.where(flip, b, a), jnp.where(flip, a, b)
    log_p, log_q = jnp.where(flip, log_q, log_p), jnp.where(flip, log_p, log_q)
    n, constant = a + b, _beta_constant(a, b)
    low = (log_p + jnp.log(a) - constant - n * jnp.log1p(a / b)) / a
    high = -(log_q + jnp.log(b) - constant - n * jnp.log1p(b / a)) / b
    high = jnp.maximum(low, high)
    if start is None:
        num_steps, start = BETA_STEPS, _beta_start(ndtri_exp(log_p), a, b, low, high)
    else:
        num_steps, start = STUDENT_STEPS, jnp.where(flip, -start, start)

    def step(_, u):
        log_tail, _, log_density = _beta_log_tails(u, a, b, constant)
        return jnp.clip(u - (log_tail - log_p) * jnp.exp(log_tail - log_density), low, high)

    u = lax.fori_loop(0, num_steps, step, jnp.clip(start, low, high))
    return jnp.where(flip, -u, u)


def _beta_start(z: Values, a: Values, b: Values, low: Values, high: Values) -> Values:
    """Abramowitz & Stegun 26.5.22 where both shapes exceed 1, else one of the power-law bounds.

    The upper bound is the tight one if it lies so near ``x = 1`` that ``x^(a-1)`` is constant from there on.
    """
    usable = jnp.minimum(a, b) > 1.0
    ra = 1.0 / (2.0 * jnp.where(usable, a, 2.0) - 1.0)
    rb = 1.0 / (2.0 * jnp.where(usable, b, 2.0) - 1.0)
    h, lam = 2.0 / (ra + rb), (z * z - 3.0) / 6.0
    w = -z * jnp.sqrt(jnp.maximum(h + lam, 0.0)) / h - (rb - ra) * (lam + 5.0 / 6.0 - 2.0 / (3.0 * h))
    bound = jnp.where(high > jnp.log(b) + 1.0, high, low)
    return jnp.where(usable, -2.0 * w, bound)


def beta(z: Values, concentration1: Values, concentration0: Values) -> Values:
    """LOGIT of the quantile of a beta distribution; the logit, since both ends round off.

    Args:
        z: score.
        concentration1: shape ``a`` of the density ``x^(a - 1) (1 - x)^(b - 1)``, above 0.
        concentration0: shape ``b``, above 0.

    Returns:
        ``logit x`` with ``I_x(concentration1, concentration0) = Phi(z)``.
    """
    u = _beta_invert(*_log_tails(z), concentration1, concentration0)
    return u + jnp.log(concentration1) - jnp.log(concentration0)


def beta_score(logit_x: Values, concentration1: Values, concentration0: Values) -> Values:
    """Inverse of `beta`.

    Args:
        logit_x: logit of the value.
        concentration1: as for `beta`.
        concentration0: as for `beta`.
    """
    u = logit_x - jnp.log(concentration1) + jnp.log(concentration0)
    constant = _beta_constant(concentration1, concentration0)
    log_p, log_q, _ = _beta_log_tails(u, concentration1, concentration0, constant)
    return normal_score(log_p, log_q)
