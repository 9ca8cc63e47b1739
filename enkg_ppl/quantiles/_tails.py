"""Tails in logs: elementary functions without cancellation, the normal and the exponential."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float

Values = Float[Array, "..."]  # of any shape, the same for all arguments

LOG_2 = float(np.log(2.0))
LOG_PI = float(np.log(np.pi))
HALF_LOG_2PI = 0.5 * float(np.log(2.0 * np.pi))

# Newton steps after which none of 6,000 random cases changes beyond rounding: |z| up to 30, shapes from
# 1e-4 to 1e4
NDTRI_STEPS = 6  # 5 needed


def log1mexp(x: Values) -> Values:
    """``log(1 - exp(-x))`` (Maechler 2012): ``-inf`` at 0, 0 at infinity.

    Args:
        x: at least 0.
    """
    return jnp.where(x < LOG_2, jnp.log(-jnp.expm1(-x)), jnp.log1p(-jnp.exp(-x)))


def expm1_minus(u: Values) -> Values:
    """``exp(u) - 1 - u`` to relative accuracy, by its Taylor series for ``|u| < 1/2``.

    Args:
        u: any real number.
    """
    small = jnp.abs(u) < 0.5
    v = jnp.where(small, u, 0.0)
    series = jnp.ones_like(v)
    for n in range(15, 2, -1):
        series = 1.0 + v * series / n
    return jnp.where(small, 0.5 * v * v * series, jnp.expm1(u) - u)


def log1p_minus(w: Values) -> Values:
    """``log(1 + w) - w`` to relative accuracy: with ``r = w / (2 + w)``, ``log(1 + w) = 2 artanh(r)``.

    Args:
        w: above -1.
    """
    small = (w > -0.51) & (w < 1.0)
    v = jnp.where(small, w, 0.0)
    r = v / (2.0 + v)
    series = jnp.zeros_like(v)
    for n in range(33, 1, -2):
        series = 1.0 / n + r * r * series
    return jnp.where(small, r * (2.0 * r * r * series - v), jnp.log1p(w) - w)


def log_ndtr(z: Values) -> Values:
    """Log of the standard normal cdf, to relative accuracy in both tails.

    JAX's own loses the upper tail (0.2 % at ``z = 4`` in float32), and truncates the asymptotic series of the lower one
    (Abramowitz & Stegun 26.2.12) after three terms, which costs 4e-9 at ``z = -20`` in float64.

    Args:
        z: score.
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


def _log_phi(x: Values) -> Values:
    return -0.5 * x * x - HALF_LOG_2PI


def _log_tails(z: Values) -> tuple[Values, Values]:
    # the barrier keeps XLA from compiling a copy of the error function into every use: a third of the compile
    # time
    return lax.optimization_barrier((log_ndtr(z), log_ndtr(-z)))


def ndtri_exp(log_p: Values) -> Values:
    """The normal quantile of a log probability: the inverse of `log_ndtr`.

    Newton on ``log Phi``, which is concave, from ``-sqrt(-2 (log_p + log 2))``: that lies left of the root because
    ``Phi(x) <= exp(-x^2 / 2) / 2`` for ``x <= 0``. Above the median the other tail is inverted and the sign changed.

    Args:
        log_p: below 0, of any size.

    Returns:
        The score z with ``log Phi(z) = log_p``; ``-inf`` at ``-inf``, ``inf`` at 0, ``nan`` above 0.
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


def normal_score(log_p: Values, log_q: Values) -> Values:
    """The score of a value whose log tail probabilities are given; uses the smaller one.

    Args:
        log_p: log of the lower tail.
        log_q: log of the upper tail.
    """
    lower = log_p < log_q
    z = ndtri_exp(jnp.where(lower, log_p, log_q))
    return jnp.where(lower, z, -z)


def half_normal(z: Values) -> Values:
    """Quantile of ``|N(0, 1)|``, to relative accuracy near zero: ``sqrt(2) erfinv(Phi(z))`` below the median.

    Args:
        z: score.
    """
    log_p, log_q = _log_tails(z)
    small = float(np.sqrt(2.0)) * lax.erf_inv(jnp.exp(jnp.minimum(log_p, -LOG_2)))
    return jnp.where(z <= 0, small, -ndtri_exp(log_q - LOG_2))


def half_normal_score(x: Values) -> Values:
    """Inverse of `half_normal`.

    Args:
        x: value, above 0.
    """
    y = x * float(np.sqrt(0.5))
    return normal_score(jnp.log(lax.erf(y)), LOG_2 + log_ndtr(-x))


def exponential(z: Values) -> Values:
    """Quantile of the unit exponential: ``-log Phi(-z)``.

    Args:
        z: score.
    """
    return -log_ndtr(-z)


def log_exponential(z: Values) -> Values:
    """Log of `exponential`, finite where the exponential itself underflows; minus a Gumbel quantile at ``-z``.

    Args:
        z: score.
    """
    # -log(1 - p) = p to rounding once p < 1e-19
    return jnp.where(z < -9.0, log_ndtr(z), jnp.log(exponential(jnp.maximum(z, -9.0))))


def log_exponential_score(log_x: Values) -> Values:
    """Inverse of `log_exponential`: the score of a unit exponential value, given its log.

    Args:
        log_x: log of the value.
    """
    log_q = -jnp.exp(log_x)
    log_p = jnp.where(log_x < -45.0, log_x, log1mexp(-log_q))
    return normal_score(log_p, log_q)
