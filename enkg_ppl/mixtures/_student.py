"""A mixture of multivariate Student-t distributions fitted to one half of the ensemble, to move the other half.

Where it fits better so, it is fitted to particles that are straightened first (see `enkg_ppl.bijections._warp`). Heavy
tails keep slice moves from stalling in the tails of the target; several components let particles pass between modes. A
Student-t is a Gaussian whose covariance is scaled by a random s ~ InverseGamma(df/2, df/2), which is what turns it into
an ellipse for slice sampling (Nishihara, Murray & Adams 2014, section 3).
"""

from __future__ import annotations

import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Float, Int

from enkg_ppl._random import gumbel
from enkg_ppl.bijections._warp import Warp, no_warp
from enkg_ppl.types import AnyArray, Ensemble, Scalar, Vector


class StudentMixture(eqx.Module):
    """``sum_k weights_k t_df(means_k, chols_k chols_k^T)``; components of weight 0 are not there."""

    log_weights: Float[AnyArray, " components"]
    means: Float[AnyArray, "components dim"]
    chols: Float[AnyArray, "components dim dim"]
    whiteners: Float[AnyArray, "components dim dim"]  # L_k^-1: products are far cheaper than batched solves
    df: Scalar

    def _residuals(self, z: Vector) -> Float[AnyArray, "components dim"]:
        """``L_k^-1 (z - m_k)`` for every component."""
        return jnp.einsum("kij,kj->ki", self.whiteners, z[None] - self.means)

    def log_joint(self, z: Vector) -> Float[AnyArray, " components"]:
        """Log of weight times density of every component at z."""
        d = z.shape[0]
        delta = jnp.sum(self._residuals(z) ** 2, axis=-1)
        log_det = -jnp.sum(jnp.log(jnp.diagonal(self.whiteners, axis1=-2, axis2=-1)), axis=-1)
        constant = gammaln((self.df + d) / 2) - gammaln(self.df / 2) - 0.5 * d * jnp.log(self.df * jnp.pi)
        return self.log_weights + constant - log_det - 0.5 * (self.df + d) * jnp.log1p(delta / self.df)

    def log_prob(self, z: Vector) -> Scalar:
        return logsumexp(self.log_joint(z))

    def draw_labels(self, uniforms: Float[AnyArray, " components"], chi2: Scalar):
        """Draw a component and a scale ``(c, s)``, ``s ~ InverseGamma(df/2, df/2)``; `chi2`: chi-square of df."""
        return jnp.argmax(self.log_weights + gumbel(uniforms)), self.df / chi2

    def draw_labels_given(self, uniforms: Float[AnyArray, " components"], chi2: Scalar, z: Vector):
        """Draw ``(c, s)`` given z: the component, then ``s ~ InverseGamma((df + d)/2, (df + delta_c)/2)``.

        `chi2`: a chi-square number of ``df + d`` degrees of freedom.
        """
        c = jnp.argmax(self.log_joint(z) + gumbel(uniforms))
        delta = jnp.sum(self._residuals(z)[c] ** 2)
        return c, (self.df + delta) / chi2

    def to_ellipse(self, z: Vector, c, s) -> Vector:
        """The standard-normal coordinates of z under component c at scale s."""
        return self._residuals(z)[c] / jnp.sqrt(s)

    def from_ellipse(self, u: Vector, c, s) -> Vector:
        """The inverse of `to_ellipse`."""
        return self.means[c] + jnp.sqrt(s) * self.chols[c] @ u

    def log_joint_all(self, v: Ensemble) -> Float[np.ndarray, "particles components"]:
        """`log_joint` of an ensemble, by NumPy."""
        log_weights, means, whiteners = (np.asarray(a) for a in (self.log_weights, self.means, self.whiteners))
        return log_joint(log_weights, whiteners, float(self.df), squared_distances(means, whiteners, v))


def squared_distances(
    means: Float[np.ndarray, "components dim"], whiteners: Float[np.ndarray, "components dim dim"], v: Ensemble
) -> Float[np.ndarray, "particles components"]:
    """Mahalanobis distance of every particle to every component, squared."""
    pairs = zip(means, whiteners, strict=True)
    return np.stack([(((v - mean) @ whitener.T) ** 2).sum(axis=1) for mean, whitener in pairs], axis=1)


def log_joint(
    log_weights: Float[np.ndarray, " components"],
    whiteners: Float[np.ndarray, "components dim dim"],
    df: float,
    distances: Float[np.ndarray, "particles components"],
) -> Float[np.ndarray, "particles components"]:
    """Log of weight times density of every component at particles of these `squared_distances`."""
    d = whiteners.shape[1]
    log_det = np.log(np.diagonal(whiteners, axis1=-2, axis2=-1)).sum(axis=1)
    constant = math.lgamma((df + d) / 2) - math.lgamma(df / 2) - 0.5 * d * math.log(df * math.pi)
    return log_weights + constant + log_det - 0.5 * (df + d) * np.log1p(distances / df)


class Reference(eqx.Module):
    """The distribution of z whose straightened v has the mixture's."""

    mixture: StudentMixture
    warp: Warp

    @property
    def num_components(self) -> int:
        return self.mixture.log_weights.shape[0]

    @property
    def df(self) -> Scalar:
        return self.mixture.df

    def log_prob(self, z: Vector) -> Scalar:
        v, log_jacobian = self.warp.forward(z)
        return self.mixture.log_prob(v) + log_jacobian

    def draw_labels(self, uniforms: Float[AnyArray, " components"], chi2: Scalar):
        """See `StudentMixture`."""
        return self.mixture.draw_labels(uniforms, chi2)

    def draw_labels_given(self, uniforms: Float[AnyArray, " components"], chi2: Scalar, z: Vector):
        """See `StudentMixture`."""
        return self.mixture.draw_labels_given(uniforms, chi2, self.warp.forward(z)[0])

    def to_ellipse(self, z: Vector, c, s) -> Vector:
        """The standard-normal coordinates of z under component c at scale s."""
        return self.mixture.to_ellipse(self.warp.forward(z)[0], c, s)

    def from_ellipse(self, u: Vector, c, s) -> Vector:
        """The inverse of `to_ellipse`."""
        return self.warp.inverse(self.mixture.from_ellipse(u, c, s))

    def log_prob_all(self, z: Ensemble) -> Float[np.ndarray, " particles"]:
        """`log_prob` of an ensemble, by NumPy: compiles nothing."""
        v, log_jacobian = self.warp.forward_all(np.asarray(z, float))
        return np.logaddexp.reduce(self.mixture.log_joint_all(v), axis=1) + log_jacobian

    def places(self, component: Int[np.ndarray, " particles"], chi2, normals: Ensemble) -> Ensemble:
        """Draws of given components, from chi-square numbers of `df` degrees of freedom and normal ones; by NumPy."""
        chols, means = (np.asarray(a, float) for a in (self.mixture.chols, self.mixture.means))
        v = np.empty(normals.shape)
        for k in np.unique(component):
            rows = component == k
            scales = np.sqrt(float(self.df) / chi2[rows])
            v[rows] = means[k] + scales[:, None] * (normals[rows] @ chols[k].T)
        return self.warp.inverse_all(v)


def mixture(log_weights, means, chols, df) -> StudentMixture:
    """Of NumPy arrays; all Cholesky factors are lower triangular."""
    dtype = np.asarray(means).dtype
    whiteners = np.linalg.inv(np.asarray(chols, float))
    return StudentMixture(*(np.asarray(a, dtype) for a in (log_weights, means, chols, whiteners, df)))


def mean_log_prob(reference: Reference, z: Ensemble) -> float:
    """Over the particles z."""
    return float(np.mean(reference.log_prob_all(z)))


def labels(reference: Reference, z: Ensemble) -> Int[np.ndarray, " particles"]:
    """The likeliest component of every particle."""
    v = reference.warp.forward_all(np.asarray(z, float))[0]
    return reference.mixture.log_joint_all(v).argmax(axis=1)


def inflated(reference: Reference, factor, df: float | None = None) -> Reference:
    """The same reference with the covariance of every component multiplied by `factor`, and perhaps another `df`."""
    m = reference.mixture
    new_df = m.df if df is None else df
    return Reference(mixture(m.log_weights, m.means, m.chols * np.sqrt(factor), new_df), reference.warp)


def around(
    means: Float[np.ndarray, "peaks dim"],
    covariances: Float[np.ndarray, "peaks dim dim"],
    weights: Float[np.ndarray, " peaks"],
    df: float,
    dtype,
) -> Reference:
    """A component for each of a few given ones, with room for a power of two, at least 4: few programs serve all."""
    k, d = means.shape
    room = max(4, 1 << (k - 1).bit_length())
    chols = np.zeros((room, d, d)) + np.eye(d)
    for place, covariance in zip(chols, covariances, strict=False):
        place[:] = np.linalg.cholesky(covariance + (1e-10 * np.trace(covariance) / d) * np.eye(d))
    log_weights = np.full(room, -np.inf)
    log_weights[:k] = np.log(weights / weights.sum())
    filled = np.concatenate([means, np.zeros((room - k, d))])
    return Reference(mixture(log_weights, filled.astype(dtype), chols, df), no_warp(d, np.dtype(dtype)))


def gaussian(mean, covariance, df: float, room: int) -> Reference:
    """One component, close to a Gaussian for a large `df`, with room for more."""
    d = len(mean)
    chol = np.linalg.cholesky(covariance + 1e-9 * np.trace(covariance) / d * np.eye(d))
    others = np.broadcast_to(np.eye(d), (room - 1, d, d))
    log_weights = np.concatenate([[0.0], np.full(room - 1, -np.inf)])
    means, chols = np.concatenate([[mean], np.zeros((room - 1, d))]), np.concatenate([[chol], others])
    return Reference(mixture(log_weights, means, chols, df), no_warp(d, means.dtype))
