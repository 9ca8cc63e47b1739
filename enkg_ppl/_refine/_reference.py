"""A mixture of multivariate Student-t distributions fitted to one half of the ensemble, to move the other half.

Heavy tails keep slice moves from stalling in the tails of the target; several components let particles pass
between modes. A Student-t is a Gaussian whose covariance is scaled by a random s ~ InverseGamma(df/2, df/2), which
is what turns it into an ellipse for slice sampling (Nishihara, Murray & Adams 2014, section 3).
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Array, Float

from enkg_ppl._random import gumbel, uniforms
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

    def draw_labels(self, uniforms: Float[Array, " components"], normals: Float[Array, " df"]):
        """Draw a component and a scale ``(c, s)``, ``s ~ InverseGamma(df/2, df/2)``, from random numbers."""
        c = jnp.argmax(self.log_weights + gumbel(uniforms))
        return c, self.df / jnp.sum(normals**2)

    def draw_labels_given(self, uniforms: Float[Array, " components"], normals: Float[Array, " df+dim"], z: Vector):
        """Draw ``(c, s)`` given z: the component, then ``s ~ InverseGamma((df + d)/2, (df + delta_c)/2)``."""
        c = jnp.argmax(self.log_joint(z) + gumbel(uniforms))
        delta = jnp.sum(self._residuals(z)[c] ** 2)
        return c, (self.df + delta) / jnp.sum(normals**2)  # a chi-square of whole degrees of freedom

    def to_ellipse(self, z: Vector, c, s) -> Vector:
        """The standard-normal coordinates of z under component c at scale s."""
        return self._residuals(z)[c] / jnp.sqrt(s)

    def from_ellipse(self, u: Vector, c, s) -> Vector:
        """The inverse of `to_ellipse`."""
        return self.means[c] + jnp.sqrt(s) * self.chols[c] @ u


def _mixture(log_weights, means, chols, df: int) -> StudentMixture:
    identity = jnp.broadcast_to(jnp.eye(means.shape[1], dtype=means.dtype), chols.shape)
    whiteners = jax.scipy.linalg.solve_triangular(chols, identity, lower=True)
    return StudentMixture(log_weights, means, chols, whiteners, df)


# Constants of the fit, measured on the sbibm tasks.
DF = 5  # degrees of freedom
NUM_EM_STEPS = 25
COVARIANCE_PRIOR = 0.5  # prior covariance of a component: this times K^(-2/d), in whitened units
INFLATION = 1.1  # of every covariance, against overconfidence of the fit


def fit_student_mixture(numbers: Float[Array, "components particles"], z: Ensemble) -> StudentMixture:
    """MAP estimate, from uniform `numbers`, by expectation-maximisation from a k-means++ start, on whitened particles.

    Source: Peel & McLachlan (2000), Statistics and Computing 10, section 4, with inverse-Wishart priors on the
    covariances (Fraley & Raftery 2007, J. Classification 24) and a uniform Dirichlet prior on the weights.
    """
    n, d = z.shape
    num_components = numbers.shape[0]
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
        _spread_centres(numbers, w),
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


def fit(key: Key, z: Ensemble, num_components: int) -> StudentMixture:
    """`fit_student_mixture` with random numbers from a key."""
    return _fit(uniforms(key, (num_components, z.shape[0]), z.dtype), z)


_fit = eqx.filter_jit(fit_student_mixture)


def inflated(mixture: StudentMixture, factor) -> StudentMixture:
    """The same mixture with every covariance multiplied by `factor`."""
    return _mixture(mixture.log_weights, mixture.means, mixture.chols * factor**0.5, mixture.df)


def _spread_centres(numbers: Float[Array, "components particles"], w: Ensemble) -> Float[Array, "components dim"]:
    """k-means++: each next centre with probability proportional to the squared distance to the nearest so far.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """
    num_components, d = numbers.shape[0], w.shape[1]
    first = w[jnp.argmax(numbers[0])]
    centres = jnp.broadcast_to(first, (num_components, d))  # the rest are overwritten in turn

    def add(k, state):
        centres, distance2 = state
        new = w[jnp.argmax(jnp.log(distance2 + 1e-12) + gumbel(numbers[k]))]
        distance2 = jnp.minimum(distance2, jnp.sum((w - new[None]) ** 2, axis=1))
        return centres.at[k].set(new), distance2

    distance2 = jnp.sum((w - first[None]) ** 2, axis=1)
    return jax.lax.fori_loop(1, num_components, add, (centres, distance2))[0]
