"""The probability-flow ODE in few evaluations of the denoiser: each step takes one, and remembers the last three.

In units of the prior's scale, ``v = (x - location) / scale`` and ``s = sigma / scale``, the flow (Karras et al. 2022,
eq. 4) is linear but for the denoiser, so it integrates to

    down:  v' = (s'/s) v + s' * int_{s'}^{s} D(r) / r^2 dr        D: denoised v
    up:    v' = v + int_s^{s'} e(r) dr                            e = (v - D) / s, the noise

D or e is a polynomial in log s through the last values; once the denoiser was asked at the end of a step, the step is
made again with that value as well. Its weights depend on the levels alone, so they are numbers when the program is
traced.

Source: exponential integrators for this flow: Zhang & Chen (2022), arXiv 2204.13902; Lu et al. (2022), arXiv
2211.01095; the correction that costs no evaluation: Zhao et al. (2023), arXiv 2302.04867.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from enkg_ppl.priors._denoiser import Denoiser
from enkg_ppl.types import AnyArray, Scalar, Vector

# Noise levels over the prior's scale, and evaluations of the denoiser on the way. Modes a 25th of the scale wide have
# sds and means that are wrong by 1.3 % of the sd at most, Gaussian features of a 100th are .5 % too wide (after 48
# evaluations in steps of the classical Runge-Kutta method: 3.8 and 1.6 %); the distributions of mixtures in two
# dimensions are .001 of the scale off (.0004 there). Single paths may end up elsewhere.
HIGHEST, LOWEST = 20.0, 1e-3
STEPS_DOWN, STEPS_UP = 24, 32
# Past values that a step is predicted by, and corrected by together with the new one. With one more, steps swing where
# components part.
MEMORY, OF_CORRECTION = 3, 2
# Where components part, steps in log s are shorter than the mean one by this share; where that is, from -1 to 1.
SHORTER, PARTING = 0.5, -0.2


START = float(np.hypot(HIGHEST, 1.0))  # sd of v at the highest level


class Steps(NamedTuple):
    """Of each step: its level; what the corrected state before it, and the values known then, are multiplied by to
    correct the state here; and the same to predict the next one."""

    level: Float[AnyArray, " steps"]
    ratio_here: Float[AnyArray, " steps"]
    weights_here: Float[AnyArray, "steps memory+1"]
    ratio_next: Float[AnyArray, " steps"]
    weights_next: Float[AnyArray, "steps memory"]


def levels(num_steps: int) -> Float[np.ndarray, " steps+1"]:
    """Noise levels over the prior's scale, from the highest to the lowest."""
    t = np.linspace(-1, 1, num_steps + 1)
    t = t - SHORTER * np.sin(np.pi * (t - PARTING)) / np.pi
    return HIGHEST * (LOWEST / HIGHEST) ** ((t - t[0]) / (t[-1] - t[0]))


@functools.cache
def steps(down: bool) -> Steps:
    """Those of the map from noise to data, or back."""
    s = levels(STEPS_DOWN) if down else levels(STEPS_UP)[::-1]
    num = len(s) - 1
    ratio = s[1:] / s[:-1] if down else np.ones(num)
    here, then = np.zeros((num, MEMORY + 1)), np.zeros((num, MEMORY))
    for k in range(num):
        known, also = min(MEMORY, k + 1), min(OF_CORRECTION, k + 1)
        then[k, MEMORY - known :] = _weights(s[k + 1 - known : k + 1], s[k], s[k + 1], down)
        if k + 1 < num:
            here[k + 1, MEMORY - also :] = _weights(s[k + 1 - also : k + 2], s[k], s[k + 1], down)
    return Steps(s[:-1], np.concatenate([[1.0], ratio[:-1]]), here, ratio, then)


def _weights(nodes: Float[np.ndarray, " nodes"], start: float, end: float, down: bool) -> Float[np.ndarray, " nodes"]:
    """Of the values at these levels in the integral from `start` to `end`: by Gauss-Legendre, exact to rounding."""
    x, w = np.polynomial.legendre.leggauss(32)
    log_s = np.log(start) + 0.5 * (x + 1) * np.log(end / start)
    measure = 0.5 * w * np.log(end / start) * (-end * np.exp(-log_s) if down else np.exp(log_s))
    t = np.log(nodes)
    return np.array(
        [np.sum(measure * np.prod([(log_s - b) / (a - b) for b in t if b != a], axis=0, initial=1.0)) for a in t]
    )


def flow_down(prior: Denoiser, z: Vector) -> Vector:
    """x of z ~ N(0, I), by one evaluation of the denoiser at each of `STEPS_DOWN` noise levels."""
    location, scale = prior.location, jnp.asarray(prior.scale, z.dtype)

    def denoised(v, s):
        return (prior.denoise(location + scale * v, scale * s) - location) / scale

    return location + scale * _integrate(denoised, START * z, steps(down=True))


def flow_up(prior: Denoiser, x: Vector) -> Vector:
    """z of x, by one evaluation of the denoiser at each of `STEPS_UP` noise levels."""
    location, scale = prior.location, jnp.asarray(prior.scale, x.dtype)

    def noise(v, s):
        return (v - (prior.denoise(location + scale * v, scale * s) - location) / scale) / s

    return _integrate(noise, (x - location) / scale, steps(down=False)) / START


def _integrate(value: Callable[[Vector, Scalar], Vector], start: Vector, steps: Steps) -> Vector:
    dtype = start.dtype

    @functools.partial(jax.checkpoint, prevent_cse=False)  # a gradient keeps the path's points, not a network's insides
    def step(carry, now: Steps):
        corrected, predicted, known = carry
        known = jnp.concatenate([known, value(predicted, now.level).astype(dtype)[None]])
        corrected = now.ratio_here * corrected + jnp.asarray(now.weights_here) @ known
        known = known[1:]
        predicted = now.ratio_next * corrected + jnp.asarray(now.weights_next) @ known
        return (corrected, predicted, known), None

    known = jnp.zeros((MEMORY, *start.shape), dtype)
    every = Steps(*(jnp.asarray(a, dtype) for a in steps))
    return jax.lax.scan(step, (start, start, known), every)[0][1]
