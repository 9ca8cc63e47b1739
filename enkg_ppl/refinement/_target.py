"""Where a refinement is heading: the posterior, tempered from the prior or from a mixture that covers it."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from enkg_ppl.evaluation._blocks import in_blocks
from enkg_ppl.mixtures._student import Reference
from enkg_ppl.refinement.moves._space import Group, Space
from enkg_ppl.types import AnyArray, Ensemble, Scalar, Vector


class Start(eqx.Module):
    """A proposal that covers the posterior: a fitted mixture with a share of the prior, so that no mode is lost.

    Half of that share is N(0, I) in the coordinates of the positions: the prior too where those are z, and else the
    conditional Gaussian at scales drawn from their prior. `peaks`: a mixture around peaks that the other one does not
    cover, with the share `peak_share` of what the prior leaves, which may be 0.
    """

    reference: Reference
    defensive_weight: Scalar
    peaks: Reference | None = None
    peak_share: Scalar | None = None

    def log_prob(self, position: Vector, log_prior: Scalar) -> Scalar:
        normal = -0.5 * jnp.sum(position**2) - 0.5 * position.shape[0] * jnp.log(2 * jnp.pi)
        broad = jnp.logaddexp(log_prior, normal) - jnp.log(2.0)
        fitted = self.reference.log_prob(position)
        if self.peaks is not None and self.peak_share is not None:
            others = jnp.log(self.peak_share) + self.peaks.log_prob(position)
            fitted = jnp.logaddexp(jnp.log1p(-self.peak_share) + fitted, others)
        return jnp.logaddexp(jnp.log1p(-self.defensive_weight) + fitted, jnp.log(self.defensive_weight) + broad)

    def sample(self, rng: np.random.Generator, num_particles: int, space: Space) -> Ensemble:
        """Positions, with a stratified choice of components: each gets its share of the particles to the nearest one.

        In the order of the components, prior draws first, which systematic resampling keeps stratified.
        """
        mixture = self.reference.mixture
        k, d = mixture.means.shape
        dtype = mixture.means.dtype
        share = float(self.defensive_weight)
        mixed = (1 - share) * np.exp(np.asarray(mixture.log_weights, float))
        peak_share = 0.0 if self.peaks is None or self.peak_share is None else float(self.peak_share)
        if self.peaks is not None and peak_share > 0:
            others = np.exp(np.asarray(self.peaks.mixture.log_weights, float))
            mixed = np.concatenate([(1 - peak_share) * mixed, peak_share * (1 - share) * others])
        edges = np.cumsum(np.concatenate([[share / 2, share / 2], mixed]))
        places = (np.arange(num_particles) + rng.random()) / num_particles * edges[-1]
        component = np.minimum(np.searchsorted(edges, places), len(edges) - 1) - 2  # -2: the prior, -1: N(0, I)
        chi2 = rng.chisquare(float(mixture.df), num_particles).astype(dtype)
        normals = rng.standard_normal((num_particles, d)).astype(dtype)
        position = in_blocks(_sample, space.block, (self.reference,), np.minimum(component, k - 1), chi2, normals)
        if self.peaks is not None and peak_share > 0:
            at_peak = component >= k
            chi2 = rng.chisquare(float(self.peaks.df), num_particles).astype(dtype)
            around = in_blocks(_sample, space.block, (self.peaks,), np.maximum(component - k, 0), chi2, normals)
            position = np.where(at_peak[:, None], around, position)
        of_prior = component == -2
        if of_prior.any():
            position[of_prior] = space.positions(normals[of_prior])
        return np.where((component == -1)[:, None], normals, position)


@eqx.filter_jit
def _sample(reference: Reference, component, chi2, normals) -> Ensemble:
    def sample(component, chi2, u):
        return reference.from_ellipse(u, jnp.maximum(component, 0), reference.df / chi2)

    return jax.vmap(sample)(component, chi2, normals)


class Target(eqx.Module):
    """The tempered posterior between a start and the posterior, as a log density of particles.

    ``log pi = (1 - beta) log q + beta (log p + log L)``, where q is the prior p itself (`start` None: ordinary
    tempering of the likelihood) or a mixture that covers the posterior.
    """

    beta: Scalar
    start: Start | None

    def log_prob(self, particle: Group) -> Scalar:
        position, log_prior, log_likelihood = particle
        # Where beta is 0 a likelihood of zero does not count yet.
        tempered = jnp.where(self.beta > 0, self.beta * log_likelihood, 0.0)
        if self.start is None:
            return log_prior + tempered
        return (1 - self.beta) * self.start.log_prob(position, log_prior) + self.beta * log_prior + tempered


@eqx.filter_jit
def _start_log_prob(start: Start, position: Ensemble, log_prior) -> Float[AnyArray, " particles"]:
    return jax.vmap(start.log_prob)(position, log_prior)


def log_density(start: Start, position: Ensemble, log_prior, block: int) -> Float[np.ndarray, " particles"]:
    """Of the start at every position; `log_prior`: the prior's there."""
    return in_blocks(_start_log_prob, block, (start,), position, log_prior)


def log_weights(start: Start | None, group: Group, block: int) -> Float[np.ndarray, " particles"]:
    """Log of posterior over start at every particle."""
    if start is None:
        return np.asarray(group.log_likelihood)
    density = log_density(start, group.position, group.log_prior, block)
    # Where the prior is zero, so is the posterior.
    possible = np.isfinite(group.log_prior)
    return np.where(possible, group.log_prior - density, -np.inf) + group.log_likelihood
