"""Where a refinement is heading: the posterior, tempered from the prior or from a mixture that covers it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl._refine._blocks import in_blocks
from enkg_ppl._refine._reference import StudentMixture
from enkg_ppl._types import Ensemble, Scalar, Vector


def log_standard_normal(z: Vector) -> Scalar:
    return -0.5 * jnp.sum(z**2) - 0.5 * z.shape[0] * jnp.log(2 * jnp.pi)


class Start(eqx.Module):
    """A proposal that covers the posterior: a fitted mixture with a share of the prior, so that no mode is lost."""

    mixture: StudentMixture
    prior_share: Scalar

    def log_prob(self, z: Vector) -> Scalar:
        return jnp.logaddexp(
            jnp.log1p(-self.prior_share) + self.mixture.log_prob(z),
            jnp.log(self.prior_share) + log_standard_normal(z),
        )

    def sample(self, rng: np.random.Generator, num_particles: int, block: int) -> Ensemble:
        """Draws with a stratified choice of components: each gets its share of the particles to the nearest one.

        In the order of the components, prior draws first, which systematic resampling keeps stratified.
        """
        k, d = self.mixture.means.shape
        dtype = self.mixture.means.dtype
        share = float(self.prior_share)
        mixed = (1 - share) * np.exp(np.asarray(self.mixture.log_weights, float))
        edges = np.cumsum(np.concatenate([[share], mixed]))
        places = (np.arange(num_particles) + rng.random()) / num_particles * edges[-1]
        component = np.minimum(np.searchsorted(edges, places), k) - 1  # -1: the prior
        chi2 = rng.chisquare(float(self.mixture.df), num_particles).astype(dtype)
        normals = rng.standard_normal((num_particles, d)).astype(dtype)
        return in_blocks(_sample_start, block, (self.mixture,), component, chi2, normals)


@eqx.filter_jit
def _sample_start(mixture: StudentMixture, component, chi2, normals) -> Ensemble:
    def sample(component, chi2, u):
        return jnp.where(component < 0, u, mixture.from_ellipse(u, jnp.maximum(component, 0), mixture.df / chi2))

    return jax.vmap(sample)(component, chi2, normals)


class Target(eqx.Module):
    """The tempered posterior between a start and the posterior, as a log density of (z, log likelihood).

    ``log pi = (1 - beta) log q(z) + beta (log N(z; 0, I) + log L)``, where q is the prior itself (`start` None:
    ordinary tempering of the likelihood) or a mixture that covers the posterior.
    """

    beta: Scalar
    start: Start | None

    def log_prob(self, z: Vector, log_likelihood: Scalar) -> Scalar:
        # Where beta is 0 a likelihood of zero does not count yet.
        tempered = jnp.where(self.beta > 0, self.beta * log_likelihood, 0.0)
        if self.start is None:
            return log_standard_normal(z) + tempered
        return (1 - self.beta) * self.start.log_prob(z) + self.beta * log_standard_normal(z) + tempered


@eqx.filter_jit
def _log_weights(start: Start | None, z: Ensemble, log_likelihood):
    if start is None:
        return log_likelihood
    return jax.vmap(log_standard_normal)(z) - jax.vmap(start.log_prob)(z) + log_likelihood


def log_weights(start: Start | None, z: Ensemble, log_likelihood, block: int):
    """Log of posterior over start at every particle, shape (particles,)."""
    return in_blocks(_log_weights, block, (start,), z, log_likelihood)
