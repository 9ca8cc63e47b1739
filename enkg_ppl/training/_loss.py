"""The denoising loss, and the noise levels at which it is taken."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import ndtri
from jaxtyping import Array, Float

from enkg_ppl.types import Key

Events = Float[Array, "batch ..."]


class LogNormalNoise(eqx.Module):
    """Noise levels with ``ln sigma ~ N(mean, sd^2)``, in the network's units.

    In these units data have a standard deviation of about 0.5. The density of the probability flow needs the score from
    far above the data's scale to well below their finest detail, so the default is wider, and reaches lower, than the
    one for the best-looking images (mean -1.2, sd 1.2).

    Attributes:
        mean: of ``ln sigma``.
        sd: standard deviation of ``ln sigma``.

    Source: Karras et al., arXiv 2206.00364, table 1 (noise distribution of EDM).
    """

    mean: float = eqx.field(static=True, default=-1.5)
    sd: float = eqx.field(static=True, default=1.5)

    def __check_init__(self):
        if not self.sd > 0:
            raise ValueError(f"LogNormalNoise needs sd > 0; got sd={self.sd}")

    @property
    def range(self) -> tuple[float, float]:
        """Levels between which 98 % of the training noise lies."""
        return math.exp(self.mean - 2.33 * self.sd), math.exp(self.mean + 2.33 * self.sd)

    def levels(self, key: Key, num: int, dtype) -> Float[Array, " num"]:
        """Stratified noise levels, one from each of `num` slices of equal probability, for a less noisy loss.

        Args:
            key: random key.
            num: number of levels.
            dtype: of the result.
        """
        uniform = (jnp.arange(num) + jr.uniform(key, (num,), dtype)) / num
        margin = 0.01 / num
        return jnp.exp(self.mean + self.sd * ndtri(jnp.clip(uniform.astype(dtype), margin, 1 - margin)))


def per_event(scalars: Float[Array, " batch"], events: Events) -> Float[Array, "batch ..."]:
    """Scalars, one an event, in a shape that multiplies the events."""
    return scalars.reshape(scalars.shape + (1,) * (events.ndim - 1))


def denoising_loss(network, preconditioning, noise: LogNormalNoise, key: Key, events: Events) -> Float[Array, ""]:
    """Mean squared error of the denoiser over a batch at random noise levels, weighted by ``1 / out(sigma)^2``.

    With that weight it is the plain mean squared error of the network against
    ``(x0 - skip(sigma) x) / out(sigma)``, of order one at every noise level.

    Source: Karras et al., arXiv 2206.00364, eq. 8.
    """
    key_level, key_noise = jr.split(key)
    sigma = noise.levels(key_level, events.shape[0], events.dtype)
    x = events + per_event(sigma, events) * jr.normal(key_noise, events.shape, events.dtype)
    c = jax.vmap(preconditioning.coefficients)(sigma)
    target = (events - per_event(c.skip, events) * x) / per_event(c.out, events)
    output = jax.vmap(network)(per_event(c.input, events) * x, c.noise)
    return jnp.mean((output - target) ** 2)
