"""Priors without closed forms, so that everything about them has to come from their denoisers."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from enkg_ppl.priors import Prior


class Bare(Prior):
    """A prior known by its denoiser alone."""

    inner: Prior

    dim = property(lambda self: self.inner.dim)
    location = property(lambda self: self.inner.location)
    scale = property(lambda self: self.inner.scale)

    def denoise(self, x, sigma):
        return self.inner.denoise(x, sigma)


class Correlated(Prior):
    """N(0, S) with S_ij = 0.9^|i - j|, whose Jacobians have large entries off the diagonal, by its denoiser alone."""

    variances: jax.Array
    directions: jax.Array

    def __init__(self, dim):
        i = np.arange(dim)
        variances, directions = np.linalg.eigh(0.9 ** np.abs(i[:, None] - i))
        self.variances, self.directions = jnp.asarray(variances), jnp.asarray(directions)

    dim = property(lambda self: self.variances.size)
    location = property(lambda self: jnp.zeros_like(self.variances))
    scale = property(lambda self: jnp.sqrt(self.variances[-1]))

    def denoise(self, x, sigma):
        return self.directions @ (self.variances / (self.variances + sigma**2) * (self.directions.T @ x))

    def values(self, num):
        """Draws of it, and their log density in closed form."""
        z = jr.normal(jr.key(3), (num, self.dim))
        x = (z * jnp.sqrt(self.variances)[None]) @ self.directions.T
        return x, -0.5 * (z**2 + jnp.log(2 * jnp.pi)).sum(-1) - 0.5 * jnp.log(self.variances).sum()
