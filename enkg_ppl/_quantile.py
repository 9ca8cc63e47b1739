"""Quantile functions of a standard normal score, exact in both tails.

Each public quantile function maps a score ``z`` to the value whose lower-tail probability is ``Phi(z)``. The
probability itself is never formed: a ``float32`` probability is 1 for every ``z`` above 5.5, and a
``float64`` one for every ``z`` above 8.3. What is carried instead is the pair ``(log_p, log_q) = (log Phi(z),
log Phi(-z))``, of which the smaller is always exact to rounding, and every family is inverted from that one.

Families without a closed form are inverted by Newton's method on the log of a tail probability. For a
log-concave density both tails are log-concave (Prekopa 1973), so from the left of the root (lower tail) or
the right of it (upper tail) the iteration is monotone, and a rigorous bracket keeps it finite from anywhere
else. The number of steps is fixed, because ``vmap`` and ``jit`` see one shape of loop that way.

All functions act elementwise on arrays of one shape and one floating dtype, and return that dtype. Nothing
here is meant to be differentiated.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Bool, Float

LOG_2 = float(np.log(2.0))
LOG_PI = float(np.log(np.pi))
HALF_LOG_2PI = 0.5 * float(np.log(2.0 * np.pi))

# Newton steps after which none of 6,000 random cases changes beyond rounding: |z| up to 30, shapes from
# 1e-4 to 1e4
NDTRI_STEPS = 6  # 5 needed
GAMMA_STEPS = 8  # 7 needed
BETA_STEPS = 14  # 14 needed
STUDENT_STEPS = 7  # 6 needed
POLISH_STEPS = 3  # the start is within 1e-3 relative, and each step squares that
MAX_TERMS = 10_000  # of a series or continued fraction; it stops by itself when every element has converged

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(12)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS  # on (0, 1)


# ----------------------------------------------------------------------------------------------------
# Elementary functions that keep relative accuracy where the textbook form cancels
# ----------------------------------------------------------------------------------------------------


def log1mexp(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 - exp(-x))`` for ``x >= 0`` (Maechler 2012): ``-inf`` at 0, 0 at infinity."""
    return jnp.where(x < LOG_2, jnp.log(-jnp.expm1(-x)), jnp.log1p(-jnp.exp(-x)))


def expm1_minus(u: Float[Array, "..."]) -> Float[Array, "..."]:
    """``exp(u) - 1 - u`` to relative accuracy, by its Taylor series for ``|u| < 1/2``."""
    small = jnp.abs(u) < 0.5
    v = jnp.where(small, u, 0.0)
    series = jnp.ones_like(v)
    for n in range(15, 2, -1):
        series = 1.0 + v * series / n
    return jnp.where(small, 0.5 * v * v * series, jnp.expm1(u) - u)


def log1p_minus(w: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(1 + w) - w`` to relative accuracy: with ``r = w / (2 + w)``, ``log(1 + w) = 2 artanh(r)``."""
    small = (w > -0.51) & (w < 1.0)
    v = jnp.where(small, w, 0.0)
    r = v / (2.0 + v)
    series = jnp.zeros_like(v)
    for n in range(33, 1, -2):
        series = 1.0 / n + r * r * series
    return jnp.where(small, r * (2.0 * r * r * series - v), jnp.log1p(w) - w)


def log_ndtr(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log of the standard normal cdf, to relative accuracy in both tails.

    JAX's own loses the upper tail (0.2 % at ``z = 4`` in float32), and truncates the asymptotic series of the
    lower one (Abramowitz & Stegun 26.2.12) after three terms, which costs 4e-9 at ``z = -20`` in float64.
    """
    size = jnp.abs(z)
    tail = 0.5 * lax.erfc(size * float(np.sqrt(0.5)))
    start = 20.0 if z.dtype == jnp.float64 else 10.0
    far = jnp.maximum(size, start)
    inverse_square, series = 1.0 / (far * far), jnp.ones_like(z)
    for n in range(17, 0, -2):
        series = 1.0 - n * inverse_square * series
    asymptotic = -0.5 * size * size - HALF_LOG_2PI - jnp.log(far) + jnp.log(series)
    lower = jnp.where(size < start, jnp.log(tail), asymptotic)
    return jnp.where(z > 0, jnp.log1p(-tail), lower)


def _log_phi(x: Float[Array, "..."]) -> Float[Array, "..."]:
    return -0.5 * x * x - HALF_LOG_2PI


def _log_tails(z: Float[Array, "..."]) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    # the barrier keeps XLA from compiling a copy of the error function into every use: a third of the compile
    # time
    return lax.optimization_barrier((log_ndtr(z), log_ndtr(-z)))


# ----------------------------------------------------------------------------------------------------
# Normal
# ----------------------------------------------------------------------------------------------------


def ndtri_exp(log_p: Float[Array, "..."]) -> Float[Array, "..."]:
    """The normal quantile of a log probability: the inverse of `log_ndtr`.

    **Arguments:** `log_p` below 0, of any size.
    **Returns:** `z` with ``log Phi(z) = log_p``; ``-inf`` at ``-inf``, ``inf`` at 0, ``nan`` above 0.

    Newton on ``log Phi``, which is concave, from ``-sqrt(-2 (log_p + log 2))``: that lies left of the root
    because ``Phi(x) <= exp(-x^2 / 2) / 2`` for ``x <= 0``. Above the median the other tail is inverted and
    the sign turned.
    """
    upper = log_p > -LOG_2
    target = jnp.where(upper, log1mexp(-log_p), log_p)
    start = -jnp.sqrt(jnp.maximum(-2.0 * (target + LOG_2), 0.0))

    def step(_, x):
        log_cdf = log_ndtr(x)
        # Phi / phi, whose logs cancel far out, where two terms of its expansion are enough for a slope
        far = jnp.minimum(x, -10.0)
        mills = jnp.where(x < -10.0, (1.0 / (far * far) - 1.0) / far, jnp.exp(log_cdf - _log_phi(x)))
        return jnp.minimum(x - (log_cdf - target) * mills, 0.0)

    root = lax.fori_loop(0, NDTRI_STEPS, step, start)
    root = jnp.where(jnp.isneginf(target), -jnp.inf, root)
    return jnp.where(upper, -root, root)


def normal_score(log_p: Float[Array, "..."], log_q: Float[Array, "..."]) -> Float[Array, "..."]:
    """The score of a value whose log lower and upper tail probabilities are given; uses the smaller one."""
    lower = log_p < log_q
    z = ndtri_exp(jnp.where(lower, log_p, log_q))
    return jnp.where(lower, z, -z)


def half_normal(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Quantile of ``|N(0, 1)|``, to relative accuracy near zero: ``sqrt(2) erfinv(Phi(z))`` below the
    median.
    """
    log_p, log_q = _log_tails(z)
    small = float(np.sqrt(2.0)) * lax.erf_inv(jnp.exp(jnp.minimum(log_p, -LOG_2)))
    return jnp.where(z <= 0, small, -ndtri_exp(log_q - LOG_2))


def half_normal_score(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `half_normal`."""
    y = x * float(np.sqrt(0.5))
    return normal_score(jnp.log(lax.erf(y)), LOG_2 + log_ndtr(-x))


# ----------------------------------------------------------------------------------------------------
# The exponential and what is made of it
# ----------------------------------------------------------------------------------------------------


def exponential(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Quantile of the unit exponential: ``-log Phi(-z)``."""
    return -log_ndtr(-z)


def log_exponential(z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Log of `exponential`, finite where the exponential itself underflows; minus a Gumbel quantile at
    ``-z``.
    """
    # -log(1 - p) = p to rounding once p < 1e-19
    return jnp.where(z < -9.0, log_ndtr(z), jnp.log(exponential(jnp.maximum(z, -9.0))))


def log_exponential_score(log_x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `log_exponential`: the score of a unit exponential value, given its log."""
    log_q = -jnp.exp(log_x)
    log_p = jnp.where(log_x < -45.0, log_x, log1mexp(-log_q))
    return normal_score(log_p, log_q)


# ----------------------------------------------------------------------------------------------------
# Gamma: P(a, x) and Q(a, x) of x = a e^u
# ----------------------------------------------------------------------------------------------------


def _stirling(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log Gamma(x) - (x - 1/2) log x + x - log(2 pi) / 2`` (DLMF 5.11.1), without cancellation for large
    x.
    """
    r = 1.0 / jnp.maximum(x, 10.0)
    s = r * r
    series = s * (1 / 1188 - s * (691 / 360360))
    series = r * (1 / 12 - s * (1 / 360 - s * (1 / 1260 - s * (1 / 1680 - series))))
    y = jnp.minimum(x, 10.0)
    return jnp.where(x > 10.0, series, lax.lgamma(y) - (y - 0.5) * jnp.log(y) + y - HALF_LOG_2PI)


def _until_converged(step: Callable, state: tuple, dtype) -> tuple:
    """Iterate ``step(n, state)``, whose last entry is the current relative change, until all are at
    rounding.
    """

    def unfinished(carry):
        n, current = carry
        return (n < MAX_TERMS) & jnp.any(jnp.abs(current[-1]) > jnp.finfo(dtype).eps)

    def advance(carry):
        n, current = carry
        return n + 1, step(n.astype(dtype), current)

    return lax.while_loop(unfinished, advance, (jnp.asarray(1), state))[1]


def _gamma_series(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``1 + x/(a+1) + x^2/((a+1)(a+2)) + ...`` (DLMF 8.11.4), for ``x <= max(a, 1)``."""

    def step(n, state):
        total, term, _ = state
        term = term * x / (a + n)
        return total + term, term, term / total

    return _until_converged(step, (jnp.ones_like(x), jnp.ones_like(x), jnp.ones_like(x)), x.dtype)[0]


def _gamma_fraction(a: Float[Array, "..."], x: Float[Array, "..."]) -> Float[Array, "..."]:
    """``Gamma(a, x) / (x^a e^-x)`` by its continued fraction (DLMF 8.9.2, Lentz's method), for ``x >=
    max(a, 1)``.
    """

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


def _gamma_constant(a: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(a^a e^-a / Gamma(a))``, the log density of ``log x`` at ``x = a``."""
    small = a < 10.0
    b = jnp.where(small, a, 1.0)
    direct = (b + 1.0) * jnp.log(b) - b - lax.lgamma(b + 1.0)
    return jnp.where(small, direct, 0.5 * jnp.log(a) - HALF_LOG_2PI - _stirling(a))


def _gamma_log_tails(
    u: Float[Array, "..."], a: Float[Array, "..."], constant: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
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


def gamma(z: Float[Array, "..."], concentration: Float[Array, "..."]) -> Float[Array, "..."]:
    """LOG of the quantile of a unit-rate gamma distribution; the log, since small shapes underflow.

    **Arguments:** score `z`; `concentration` above 0. **Returns:** ``log x`` with ``P(concentration, x) =
    Phi(z)``.

    Newton in ``u = log(x / a)`` on ``log P`` below the median and on ``log Q`` above it. Starts: Wilson &
    Hilferty (1931), or the power-law bound ``P <= x^a / Gamma(a + 1)`` where that is nearer. Kept below ``a +
    sqrt(2 a t) + t``, ``t = -log Q`` (Boucheron, Lugosi & Massart 2013, section 2.4).
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


def gamma_score(log_x: Float[Array, "..."], concentration: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `gamma`: the score of a unit-rate gamma value, given its log."""
    u = log_x - jnp.log(concentration)
    log_p, log_q, _ = _gamma_log_tails(u, concentration, _gamma_constant(concentration))
    return normal_score(log_p, log_q)


# ----------------------------------------------------------------------------------------------------
# Beta: I_x(a, b) of logit(x) = u + log(a / b)
# ----------------------------------------------------------------------------------------------------


def _beta_constant(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``log(m^a (1-m)^b / B(a, b))`` at the mean ``m = a / (a + b)``, without cancelling log-gammas
    (Loader 2000).
    """
    half_log = 0.5 * (jnp.log(a) + jnp.log(b) - jnp.log(a + b)) - HALF_LOG_2PI
    return half_log + _stirling(a + b) - _stirling(a) - _stirling(b)


def _beta_divergence(u: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``KL(mean, x) = log(1 - m + m e^u) - m u`` at ``logit x = u + logit m``, ``m = a / (a + b)``, to
    relative accuracy.
    """
    m = jnp.minimum(a, b) / (a + b)
    v = jnp.where(a <= b, u, -u)
    near = jnp.minimum(v, 30.0)
    w = m * jnp.expm1(near)
    divergence = jnp.where(w < 1.0, log1p_minus(w) + m * expm1_minus(near), jnp.log1p(w) - m * near)
    return jnp.where(v > 30.0, jnp.log(m) + (1.0 - m) * v, divergence)


def _share(u: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, "..."]:
    """``x`` at ``logit x = u + log(a / b)``."""
    return 1.0 / (1.0 + b / a * jnp.exp(-u))


def _beta_fraction(a: Float[Array, "..."], b: Float[Array, "..."], u: Float[Array, "..."]) -> Float[Array, "..."]:
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


def _beta_log_tails(
    u: Float[Array, "..."], a: Float[Array, "..."], b: Float[Array, "..."], constant: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."], Float[Array, "..."]]:
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


def _beta_invert(
    log_p: Float[Array, "..."],
    log_q: Float[Array, "..."],
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    start: Float[Array, "..."] | None = None,
) -> Float[Array, "..."]:
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


def _beta_start(
    z: Float[Array, "..."],
    a: Float[Array, "..."],
    b: Float[Array, "..."],
    low: Float[Array, "..."],
    high: Float[Array, "..."],
) -> Float[Array, "..."]:
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


def beta(
    z: Float[Array, "..."], concentration1: Float[Array, "..."], concentration0: Float[Array, "..."]
) -> Float[Array, "..."]:
    """LOGIT of the quantile of a beta distribution; the logit, since both ends round off.

    **Arguments:** score `z`; shapes of ``x^(concentration1 - 1) (1 - x)^(concentration0 - 1)``, above 0.
    **Returns:** ``logit x`` with ``I_x(concentration1, concentration0) = Phi(z)``.
    """
    u = _beta_invert(*_log_tails(z), concentration1, concentration0)
    return u + jnp.log(concentration1) - jnp.log(concentration0)


def beta_score(
    logit_x: Float[Array, "..."], concentration1: Float[Array, "..."], concentration0: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Inverse of `beta`."""
    u = logit_x - jnp.log(concentration1) + jnp.log(concentration0)
    constant = _beta_constant(concentration1, concentration0)
    log_p, log_q, _ = _beta_log_tails(u, concentration1, concentration0, constant)
    return normal_score(log_p, log_q)


# ----------------------------------------------------------------------------------------------------
# Symmetric location-scale families, truncated or not
# ----------------------------------------------------------------------------------------------------


class Symmetric(NamedTuple):
    """A standard symmetric distribution on the real line, as what `quantile`, `score` and truncation need.

    - `log_cdf(x)`: exact in the lower tail (the upper one is ``log_cdf(-x)``).
    - `inverse(log_p, log_q)`: the quantile with these log tails.
    - `log_mass(low, high, width)`: log probability of an interval, also where ``width = high - low`` is tiny.
    - `offset(log_mass, low, value)`: the width of the interval from finite `low` with that log probability,
      to relative accuracy however small; `value` is its upper end, accurate to the rounding of `low`.
    """

    log_cdf: Callable
    inverse: Callable
    log_mass: Callable
    offset: Callable


def quantile(family: Symmetric, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """Quantile of an untruncated symmetric family at score `z`."""
    return family.inverse(*_log_tails(z))


def score(family: Symmetric, x: Float[Array, "..."]) -> Float[Array, "..."]:
    """Inverse of `quantile`."""
    z = ndtri_exp(family.log_cdf(-jnp.abs(x)))
    return jnp.where(x < 0, z, -z)


def truncated_lower(
    family: Symmetric, z: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]
) -> tuple[Float[Array, "..."], Float[Array, "..."]]:
    """Quantile of a family truncated to ``(low, high)``, for ``z <= 0``.

    **Returns:** the value, and its distance from `low` to relative accuracy (``inf`` where `low` is
    infinite): near a bound the value rounds to the bound, and the distance is what still tells values apart.
    For ``z > 0`` reflect: the distance from `high` is that of ``truncated_lower(family, -z, -high, -low)``.
    """
    log_p, log_q = _log_tails(z)
    log_total = family.log_mass(low, high, high - low)
    outside = jax.vmap(family.log_cdf)(jnp.stack([low, -high]))
    log_below, log_above = jnp.logaddexp(outside, jnp.stack([log_p, log_q]) + log_total[None])
    value = jnp.clip(family.inverse(log_below, log_above), low, high)
    bounded = jnp.isfinite(low)
    offset = family.offset(log_p + log_total, jnp.where(bounded, low, 0.0), value)
    return value, jnp.where(bounded, offset, jnp.inf)


def nearer_bound(value: Float[Array, "..."], offset: Float[Array, "..."]) -> Bool[Array, "..."]:
    """Whether `offset` (from the bound) is better known than `value` (from the location, to 1 ulp of 1)."""
    return offset < jnp.maximum(jnp.abs(value), 0.5)


def truncated(
    family: Symmetric, z: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Quantile of a standard symmetric family truncated to ``(low, high)``; infinite bounds are allowed."""
    lower = z <= 0
    near, far = jnp.where(lower, low, -high), jnp.where(lower, high, -low)
    value, offset = truncated_lower(family, -jnp.abs(z), near, far)
    value = jnp.where(nearer_bound(value, offset), near + offset, value)
    return jnp.where(lower, value, -value)


def truncated_normal(
    z: Float[Array, "..."], low: Float[Array, "..."], high: Float[Array, "..."]
) -> Float[Array, "..."]:
    """Quantile of a standard normal truncated to ``(low, high)``.

    ``Phi(v) = Phi(low) Phi(-z) + Phi(high) Phi(z)``, solved in logs from the smaller tail, so both bounds may
    lie far in one tail.
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


def student_t(df: Float[Array, "..."]) -> Symmetric:
    """Student's t: ``2 F(-t) = I_x(df/2, 1/2)`` at ``x = df / (df + t^2)``, that is ``u = -2 log t`` (DLMF
    8.17).
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
    family: Symmetric,
    value: Float[Array, "..."],
    from_low: Float[Array, "..."],
    to_high: Float[Array, "..."],
    low: Float[Array, "..."],
    high: Float[Array, "..."],
) -> Float[Array, "..."]:
    """Inverse of `truncated`; the distances of the value from both bounds are given, so that neither
    cancels.
    """
    starts, ends = jnp.stack([low, value, low]), jnp.stack([value, high, high])
    widths = jnp.stack([from_low, to_high, high - low])
    below, above, total = jax.vmap(family.log_mass)(starts, ends, widths)  # one copy to compile
    return normal_score(jnp.minimum(below - total, 0.0), jnp.minimum(above - total, 0.0))
