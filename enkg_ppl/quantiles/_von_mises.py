"""Von Mises: the angle from the location, in (-pi, pi)."""

import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl.quantiles._bracket import invert
from enkg_ppl.quantiles._tails import LOG_2, Values, log1mexp, log_ndtr, ndtri_exp

_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(48)
_NODES, _WEIGHTS = 0.5 * (_NODES + 1.0), 0.5 * _WEIGHTS  # on (0, 1)
REACH = 40.0  # the quadrature ends where the density has fallen by this much in the log


def _log_upper(t: Values, kappa: Values) -> Values:
    """``log`` of the integral of ``exp(kappa (cos s - 1))`` over ``(t, pi)``, for ``0 <= t <= pi``.

    By Gauss-Legendre quadrature up to where the density is ``exp(-REACH)`` of that at `t`, or to pi. The difference
    of cosines is a product of sines, ``cos s - cos t = -2 sin((s + t) / 2) sin((s - t) / 2)``, and does not cancel.
    """
    half = jnp.sin(0.5 * t)
    end = 2.0 * jnp.arcsin(jnp.sqrt(jnp.minimum(half * half + 0.5 * REACH / kappa, 1.0)))
    width = jnp.clip(end - t, 0.0, jnp.pi - t)

    def ratio(node):
        distance = node * width
        return jnp.exp(-2.0 * kappa * jnp.sin(t + 0.5 * distance) * jnp.sin(0.5 * distance))

    ratios = jax.vmap(ratio)(jnp.asarray(_NODES, t.dtype))
    mean = jnp.tensordot(jnp.asarray(_WEIGHTS, t.dtype), ratios, 1)
    return jnp.log(mean) + jnp.log(width) - 2.0 * kappa * half * half


def von_mises(z: Values, concentration: Values) -> Values:
    """Quantile of the von Mises distribution around 0, cut at -pi and pi.

    Args:
        z: score.
        concentration: above 0.

    Returns:
        The angle in radians, of the sign of `z`.
    """
    kappa = concentration
    log_total = LOG_2 + _log_upper(jnp.zeros_like(kappa), kappa)

    def tails(t):
        log_q = _log_upper(t, kappa) - log_total
        log_density = -2.0 * kappa * jnp.square(jnp.sin(0.5 * t)) - log_total
        return log1mexp(-log_q), log_q, log_density

    size = jnp.abs(z)
    # nearly normal in 2 sqrt(kappa) sin(t / 2) if concentrated, nearly uniform if not
    normal = 2.0 * jnp.arcsin(jnp.minimum(0.5 * size / jnp.sqrt(kappa), 1.0))
    uniform = jnp.pi * -jnp.expm1(LOG_2 + log_ndtr(-size))
    start = jnp.where(kappa > 1.0, normal, uniform)
    high = jnp.full_like(z, jnp.pi)
    # above the median, so that the upper tail is the one that is inverted
    angle = invert(tails, jnp.maximum(size, jnp.finfo(z.dtype).tiny), jnp.zeros_like(z), high, jnp.minimum(start, high))
    return jnp.sign(z) * angle


def von_mises_score(angle: Values, concentration: Values) -> Values:
    """Inverse of `von_mises`.

    Args:
        angle: in radians, between -pi and pi.
        concentration: above 0.
    """
    log_total = LOG_2 + _log_upper(jnp.zeros_like(concentration), concentration)
    log_q = _log_upper(jnp.minimum(jnp.abs(angle), jnp.pi), concentration) - log_total
    return -jnp.sign(angle) * ndtri_exp(jnp.minimum(log_q, -LOG_2))
