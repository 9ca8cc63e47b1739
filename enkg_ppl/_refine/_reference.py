"""A mixture of multivariate Student-t distributions fitted to one half of the ensemble, to move the other half.

Heavy tails keep slice moves from stalling in the tails of the target; several components let particles pass
between modes. A Student-t is a Gaussian whose covariance is scaled by a random s ~ InverseGamma(df/2, df/2), which
is what turns it into an ellipse for slice sampling (Nishihara, Murray & Adams 2014, section 3).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float, Int

from enkg_ppl._types import Ensemble, Key, Scalar, Vector


class StudentMixture(eqx.Module):
    """``sum_k weights_k t_df(means_k, chols_k chols_k^T)``."""

    log_weights: Float[Array, " components"]
    means: Float[Array, "components dim"]
    chols: Float[Array, "components dim dim"]
    whiteners: Float[Array, "components dim dim"]  # L_k^-1: products are far cheaper than batched solves
    df: int = eqx.field(static=True)

    def _residuals(self, z: Vector) -> Float[Array, "components dim"]:
        """``L_k^-1 (z - m_k)`` for every component."""
        return jnp.einsum("kij,kj->ki", self.whiteners, z[None] - self.means)

    def log_joint(self, z: Vector) -> Float[Array, " components"]:
        """Log of weight times density of every component at z."""
        d = z.shape[0]
        delta = jnp.sum(self._residuals(z) ** 2, axis=-1)
        log_det = -jnp.sum(jnp.log(jnp.diagonal(self.whiteners, axis1=-2, axis2=-1)), axis=-1)
        constant = gammaln((self.df + d) / 2) - gammaln(self.df / 2) - 0.5 * d * jnp.log(self.df * jnp.pi)
        return self.log_weights + constant - log_det - 0.5 * (self.df + d) * jnp.log1p(delta / self.df)

    def log_prob(self, z: Vector) -> Scalar:
        return logsumexp(self.log_joint(z))

    def sample_component(self, key: Key) -> tuple[Int[Array, ""], Scalar]:
        """Draw a component and a scale ``(c, s)``."""
        key_component, key_scale = jr.split(key)
        c = jr.categorical(key_component, self.log_weights)
        return c, self.df / _chi_square(key_scale, self.df, self.means.dtype)

    def sample_component_given(self, key: Key, z: Vector) -> tuple[Int[Array, ""], Scalar]:
        """Draw ``(c, s)`` given z: the component, then ``s ~ InverseGamma((df + d)/2, (df + delta_c)/2)``."""
        key_component, key_scale = jr.split(key)
        c = jr.categorical(key_component, self.log_joint(z))
        delta = jnp.sum(self._residuals(z)[c] ** 2)
        return c, (self.df + delta) / _chi_square(key_scale, self.df + z.shape[0], z.dtype)

    def to_ellipse(self, z: Vector, c, s) -> Vector:
        """The standard-normal coordinates of z under component c at scale s."""
        return self._residuals(z)[c] / jnp.sqrt(s)

    def from_ellipse(self, u: Vector, c, s) -> Vector:
        """The inverse of `to_ellipse`."""
        return self.means[c] + jnp.sqrt(s) * self.chols[c] @ u

    def sample(self, key: Key) -> Vector:
        key_component, key_noise = jr.split(key)
        c, s = self.sample_component(key_component)
        return self.from_ellipse(jr.normal(key_noise, self.means.shape[1:], self.means.dtype), c, s)


def _chi_square(key: Key, df: int, dtype) -> Scalar:
    """A sum of squared normals: for whole df much faster to draw than a gamma variate."""
    return jnp.sum(jr.normal(key, (df,), dtype) ** 2)


def _mixture(log_weights, means, chols, df: int) -> StudentMixture:
    identity = jnp.broadcast_to(jnp.eye(means.shape[1], dtype=means.dtype), chols.shape)
    whiteners = jax.scipy.linalg.solve_triangular(chols, identity, lower=True)
    return StudentMixture(log_weights, means, chols, whiteners, df)


# Constants of the fit, measured on the sbibm tasks.
DF = 5  # degrees of freedom
NUM_EM_STEPS = 25
COVARIANCE_PRIOR = 0.5  # prior covariance of a component: this times K^(-2/d), in whitened units
INFLATION = 1.1  # of every covariance, against overconfidence of the fit


def fit_student_mixture(key: Key, z: Ensemble, num_components: int) -> StudentMixture:
    """MAP estimate by expectation-maximisation from a k-means++ start, on whitened particles.

    Source: Peel & McLachlan (2000), Statistics and Computing 10, section 4, with inverse-Wishart priors on the
    covariances (Fraley & Raftery 2007, J. Classification 24) and a uniform Dirichlet prior on the weights.
    """
    n, d = z.shape
    centre = jnp.mean(z, axis=0)
    covariance = (z - centre[None]).T @ (z - centre[None]) / n
    # Resampled particles may repeat: a floor on the spread keeps the factor finite.
    ridge = 1e-6 * jnp.trace(covariance) / d + 1e-10
    whitener = jnp.linalg.cholesky(covariance + ridge * jnp.eye(d))
    w = jax.scipy.linalg.solve_triangular(whitener, (z - centre[None]).T, lower=True).T
    prior_covariance = COVARIANCE_PRIOR * num_components ** (-2.0 / d) * jnp.eye(d)
    prior_df = d + 2.0
    start = _mixture(
        jnp.full(num_components, -jnp.log(num_components), z.dtype),
        _spread_centres(key, w, num_components),
        jnp.broadcast_to(jnp.linalg.cholesky(prior_covariance), (num_components, d, d)),
        DF,
    )

    def em_step(_, mixture: StudentMixture) -> StudentMixture:
        responsibilities = jax.nn.softmax(jax.vmap(mixture.log_joint)(w), axis=1)
        delta = jnp.sum(jax.vmap(mixture._residuals)(w) ** 2, axis=-1)
        u = responsibilities * (DF + d) / (DF + delta)
        mass = jnp.sum(responsibilities, axis=0)
        total = jnp.sum(u, axis=0)[:, None]
        # An empty component stays where it is.
        means = (u.T @ w + 1e-6 * mixture.means) / (total + 1e-6)

        def scatter(u_k, mean):
            centred = w - mean[None]
            return (u_k[:, None] * centred).T @ centred

        covariances = jax.vmap(scatter)(u.T, means) + prior_df * prior_covariance[None]
        covariances = covariances / (mass + prior_df)[:, None, None]
        log_weights = jnp.log((mass + 1) / (n + num_components))
        return _mixture(log_weights, means, jnp.linalg.cholesky(covariances), DF)

    fitted = jax.lax.fori_loop(0, NUM_EM_STEPS, em_step, start)
    means = centre[None] + fitted.means @ whitener.T
    chols = INFLATION**0.5 * jnp.einsum("ij,kjl->kil", whitener, fitted.chols)
    return _mixture(fitted.log_weights, means, chols, DF)


def inflated(mixture: StudentMixture, factor) -> StudentMixture:
    """The same mixture with every covariance multiplied by `factor`."""
    return _mixture(mixture.log_weights, mixture.means, mixture.chols * factor**0.5, mixture.df)


def _spread_centres(key: Key, w: Ensemble, num_components: int) -> Float[Array, "components dim"]:
    """k-means++: each next centre with probability proportional to the squared distance to the nearest so far.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """
    n, d = w.shape
    key, key_first = jr.split(key)
    first = w[jr.randint(key_first, (), 0, n)]
    centres = jnp.broadcast_to(first, (num_components, d))  # the rest are overwritten in turn

    def add(k, state):
        centres, distance2 = state
        new = w[jr.categorical(jr.fold_in(key, k), jnp.log(distance2 + 1e-12))]
        distance2 = jnp.minimum(distance2, jnp.sum((w - new[None]) ** 2, axis=1))
        return centres.at[k].set(new), distance2

    distance2 = jnp.sum((w - first[None]) ** 2, axis=1)
    return jax.lax.fori_loop(1, num_components, add, (centres, distance2))[0]
