"""Draws of x0 given a noisy x, from a denoiser alone, with the right variance at every scale.

A step of the reverse SDE from noise level s to s', with ``f = 1 - (s' / s)^2``, is

    x' = (1 - f) x + f D + w f (h / h_before) (D - D_before) + s' sqrt(f) xi,     h = log(s / s'),

the multistep method of second order where ``w = 1/2`` (Lu et al. 2022, arXiv 2211.01095, algorithm 2, for the SDE) and
the ancestral step of denoising diffusion models where ``w = 0`` (Ho et al. 2020, arXiv 2006.11239, algorithm 2).

Along the exact SDE the denoised value D is a martingale. So its last increment ``D - D_before`` is noise: whatever the
weight, the mean stays right, and a weight only says how much of a noise is added that is correlated as
``Cov[x0 | x] = s^2 dD/dx`` is. That is what the exact step has and the ancestral one lacks: its covariance is
``f^2 Cov[x0 | x] + f s'^2 I``. (Euler-Maruyama has ``s^2 I`` for the covariance: of a field it makes small scales many
times too wide.) Levels and weights are therefore fitted, once for each number of steps, so that the variance is right
in a Gaussian direction of any size, however small beside the noise or large; nothing else about the prior is used.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from enkg_ppl.priors._denoiser import Denoiser
from enkg_ppl.priors._multistep import HIGHEST
from enkg_ppl.types import Key, Scalar, Vector

# Variances of a direction over that of the noise, as powers of ten, for which steps are fitted: from half a decade a
# step below 1 on. 8 steps are within 0.1 % from 1e-4 on, and two components of a mixture that lie 3.5 apart have a
# variance of 1.02 times the right one at a noise level of 2, 1.08 at 4 and 1.11 at 10 (a decade a step: 1.07, 1.14,
# 1.22).
LARGEST, DECADES, SMALLEST_OF_ALL, DIRECTIONS = 4, 0.5, -8, 80
# Above so many steps they follow a curve through so many points.
KNOTS = 8
# What the fit leaves open is decided for smooth levels and weights near their usual size.
SLIGHT, USUAL = 1e-4, 0.4


class Steps(NamedTuple):
    """`levels`: noise levels over the first one, 1 first, at each of which the denoiser is evaluated. `weights`: of
    the last increment of D at each but the first; the last one makes the draw, ``D + w (D - D_before)``.
    """

    levels: Float[np.ndarray, " steps"]
    weights: Float[np.ndarray, " steps-1"]


@functools.cache
def reverse_steps(num_steps: int) -> Steps:
    """Levels and weights with which directions of every size have the right variance."""
    from scipy.optimize import least_squares  # at the first use: half a second that not every run needs

    if num_steps == 1:
        return Steps(np.ones(1), np.zeros(0))
    smallest = max(SMALLEST_OF_ALL, -DECADES * num_steps)
    variances = np.logspace(smallest, LARGEST, DIRECTIONS)
    n = num_steps - 1
    knots = min(n, KNOTS)
    along, at = np.linspace(0, 1, n), np.linspace(0, 1, knots)

    def unpack(p):
        steps, weights = np.interp(along, at, p[:knots]), np.interp(along, at, p[knots:-1])
        weights[-1] = p[-1]
        return np.exp(steps), weights

    def misfit(p):
        slight = SLIGHT * np.concatenate([np.diff(p[:knots], 2), p[knots:] - USUAL])
        return np.concatenate([log_variance_ratio(*unpack(p), variances), slight])

    first = np.log(-0.5 * smallest * np.log(10) / n)
    p = least_squares(misfit, np.concatenate([np.full(knots, first), np.full(knots + 1, USUAL)]), max_nfev=200).x
    steps, weights = unpack(p)
    return Steps(np.exp(-np.concatenate([[0.0], np.cumsum(steps)])), weights)


def log_variance_ratio(steps, weights, variances):
    """log(variance of draws / the right one) in a Gaussian direction of this variance, the first noise being 1.

    There ``D = v / (v + s^2) x``, so that the steps are linear, and the covariance of x and D_before obeys a recursion.
    `steps`: of log sigma, each positive.
    """
    v = variances
    noise = np.exp(-2 * np.concatenate([[0.0], np.cumsum(steps)]))
    xx = xd = dd = np.zeros_like(v)
    for k, h in enumerate(steps):
        shrink, f = v / (v + noise[k]), 1 - noise[k + 1] / noise[k]
        g = weights[k - 1] * f * h / steps[k - 1] if k else 0.0
        keep = 1 - f + (f + g) * shrink
        xx, xd, dd = (
            keep**2 * xx - 2 * keep * g * xd + g**2 * dd + f * noise[k + 1],
            shrink * (keep * xx - g * xd),
            shrink**2 * xx,
        )
    shrink, w = v / (v + noise[-1]), weights[-1]
    last = ((1 + w) * shrink) ** 2 * xx - 2 * w * (1 + w) * shrink * xd + w**2 * dd
    return np.log(last * (1 + v) / v)


def reverse_sde_sample(key: Key, prior: Denoiser, x: Vector, sigma: Scalar, num_steps: int) -> Vector:
    """Draw ``x0 ~ p(x0 | x_sigma = x)`` for one particle, in `num_steps` evaluations of its denoiser."""
    # In the precision of x: a prior may be of 32 bits where JAX counts in 64.
    ratios, weights = reverse_steps(num_steps)
    if num_steps == 1:
        return prior.denoise(x, sigma)
    levels = jnp.asarray(sigma, x.dtype) * jnp.asarray(ratios, x.dtype)
    h = -np.diff(np.log(ratios))
    f = -np.expm1(-2 * h)
    carried = np.concatenate([[0.0], weights[:-1] * f[1:] * h[1:] / h[:-1]])
    keys = jr.split(key, num_steps - 1)

    def step(carry, inputs):
        x, D_before = carry
        key, sigma, sigma_next, f, g = inputs
        D = prior.denoise(x, sigma)
        noise = sigma_next * jnp.sqrt(f) * jr.normal(key, x.shape, x.dtype)
        return ((1 - f) * x + f * D + g * (D - D_before) + noise, D), None

    numbers = (jnp.asarray(a, x.dtype) for a in (f, carried))
    (x, D_before), _ = jax.lax.scan(step, (x, x), (keys, levels[:-1], levels[1:], *numbers))
    D = prior.denoise(x, levels[-1])
    return D + jnp.asarray(weights[-1], x.dtype) * (D - D_before)


def sde_sample(key: Key, prior: Denoiser, num_steps: int) -> Vector:
    """Draw x from a denoiser's prior by the reverse SDE, from a noise level at which x is negligible.

    Args:
        key: random key.
        prior: the denoiser.
        num_steps: steps of the reverse SDE.
    """
    key_noise, key_draw = jr.split(key)
    location = prior.location
    sigma = jnp.asarray(HIGHEST * prior.scale, location.dtype)
    width = jnp.sqrt(sigma**2 + prior.scale**2).astype(location.dtype)
    x = location + width * jr.normal(key_noise, location.shape, location.dtype)
    return reverse_sde_sample(key_draw, prior, x, sigma, num_steps)
