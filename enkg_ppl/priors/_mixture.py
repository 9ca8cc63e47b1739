"""Gaussian mixtures: the tractable stand-in for a trained prior with several modes."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Float

from enkg_ppl.priors._base import CONDITIONAL_STEPS, Prior
from enkg_ppl.types import AnyArray, Key, Scalar, Vector


class MixturePrior(Prior):
    """``sum_k weights_k N(means_k, covariance_k)``, every conditional in closed form.

    Make one with `MixturePrior(weights, means, variances)` or `MixturePrior.full(weights, means, covariances)`. Noising
    a component only adds ``sigma^2`` to its eigenvalues, so the mixture at any noise level, its denoiser and its
    conditional draws follow from the components'.

    Args:
        weights: shape (components,); they are normalised.
        means: shape (components, dim).
        variances: shape ``(components,)`` (isotropic) or ``(components, dim)`` (along the axes, or the columns of
            `bases`).
        bases: orthonormal eigenvectors of each covariance as columns, shape (components, dim, dim); None for the axes.
    """

    log_weights: Float[AnyArray, " components"]
    means: Float[AnyArray, "components dim"]
    variances: Float[AnyArray, "components dim"]
    bases: Float[AnyArray, "components dim dim"] | None

    def __init__(self, weights, means, variances, bases=None):
        weights, means, variances = jnp.asarray(weights), jnp.asarray(means), jnp.asarray(variances)
        if means.ndim != 2 or weights.shape != means.shape[:1]:
            raise ValueError(
                "MixturePrior needs weights (components,) and means (components, dim); "
                f"got weights {weights.shape}, means {means.shape}"
            )
        if variances.ndim == 1:
            variances = jnp.broadcast_to(variances[:, None], means.shape)
        if variances.shape != means.shape:
            raise ValueError(
                "MixturePrior needs variances (components,) or (components, dim); "
                f"got {variances.shape} for means {means.shape}"
            )
        if not bool(jnp.all(weights > 0)) or not bool(jnp.all(variances > 0)):
            raise ValueError("MixturePrior needs positive weights and variances; leave out empty components")
        self.log_weights = jnp.log(weights) - jnp.log(jnp.sum(weights))
        self.means = means
        self.variances = variances
        self.bases = bases

    @classmethod
    def full(cls, weights, means, covariances: Float[AnyArray, "components dim dim"]) -> MixturePrior:
        """From full covariance matrices, one a component.

        Args:
            weights: shape (components,); they are normalised.
            means: shape (components, dim).
            covariances: symmetric positive definite, shape (components, dim, dim).
        """
        variances, bases = jnp.linalg.eigh(jnp.asarray(covariances))
        return cls(weights, means, variances, bases)

    @property
    def dim(self) -> int:
        return self.means.shape[1]

    @property
    def location(self) -> Vector:
        return jnp.exp(self.log_weights) @ self.means

    @property
    def scale(self) -> Scalar:
        weights = jnp.exp(self.log_weights)
        centred = (self.means - self.location[None]) * jnp.sqrt(weights)[:, None]
        between = jnp.linalg.norm(centred, ord=2)  # largest singular value: sd of the means
        return jnp.sqrt(between**2 + jnp.max(self.variances))

    def _to_bases(self, v: Float[AnyArray, "components dim"]) -> Float[AnyArray, "components dim"]:
        return v if self.bases is None else jnp.einsum("kij,ki->kj", self.bases, v)

    def _from_bases(self, v: Float[AnyArray, "components dim"]) -> Float[AnyArray, "components dim"]:
        return v if self.bases is None else jnp.einsum("kij,kj->ki", self.bases, v)

    def _log_joint(self, x: Vector, sigma) -> Float[AnyArray, " components"]:
        """Log of weight times density of each component at noise level sigma."""
        u = self._to_bases(x[None] - self.means)
        variances = self.variances + sigma**2
        log_density = -0.5 * jnp.sum(u**2 / variances + jnp.log(2 * jnp.pi * variances), axis=-1)
        return self.log_weights + log_density

    def _component_denoise(self, x: Vector, sigma) -> Float[AnyArray, "components dim"]:
        shrink = self.variances / (self.variances + sigma**2)
        return self.means + self._from_bases(shrink * self._to_bases(x[None] - self.means))

    def denoise(self, x: Vector, sigma: Scalar) -> Vector:
        responsibilities = jax.nn.softmax(self._log_joint(x, sigma))
        return responsibilities @ self._component_denoise(x, sigma)

    def conditional_sample(self, key: Key, x: Vector, sigma: Scalar, num_steps: int = CONDITIONAL_STEPS) -> Vector:
        key_component, key_noise = jr.split(key)
        k = jr.categorical(key_component, self._log_joint(x, sigma))
        variances = self.variances * sigma**2 / (self.variances + sigma**2)
        eps = jr.normal(key_noise, x.shape, x.dtype)
        noise = self._from_bases(jnp.sqrt(variances) * eps[None])
        return (self._component_denoise(x, sigma) + noise)[k]

    def sample(self, key: Key) -> Vector:
        key_component, key_noise = jr.split(key)
        k = jr.categorical(key_component, self.log_weights)
        eps = jr.normal(key_noise, self.means.shape[1:], self.means.dtype)
        noise = self._from_bases(jnp.sqrt(self.variances) * eps[None])
        return (self.means + noise)[k]

    def log_prob(self, x: Vector, sigma: Scalar | float = 0.0) -> Scalar:
        """Log density in nats of the prior noised to a level.

        Args:
            x: latent vector, shape (dim,).
            sigma: the noise level.
        """
        return logsumexp(self._log_joint(x, sigma))
