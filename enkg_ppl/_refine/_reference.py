"""A mixture of multivariate Student-t distributions fitted to one half of the ensemble, to move the other half.

Where it fits better so, it is fitted to particles that are straightened first (see `enkg_ppl._refine._warp`). Heavy
tails keep slice moves from stalling in the tails of the target; several components let particles pass between modes. A
Student-t is a Gaussian whose covariance is scaled by a random s ~ InverseGamma(df/2, df/2), which is what turns it into
an ellipse for slice sampling (Nishihara, Murray & Adams 2014, section 3).
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import gammaln, logsumexp
from jaxtyping import Float, Int

from enkg_ppl._random import gumbel
from enkg_ppl._refine._warp import Warp, choose_given, fit_warp, no_warp
from enkg_ppl._types import AnyArray, Ensemble, Scalar, Vector


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
        v, log_jacobian = self.warp.straighten(z)
        return self.mixture.log_prob(v) + log_jacobian

    def draw_labels(self, uniforms: Float[AnyArray, " components"], chi2: Scalar):
        """See `StudentMixture`."""
        return self.mixture.draw_labels(uniforms, chi2)

    def draw_labels_given(self, uniforms: Float[AnyArray, " components"], chi2: Scalar, z: Vector):
        """See `StudentMixture`."""
        return self.mixture.draw_labels_given(uniforms, chi2, self.warp.straighten(z)[0])

    def to_ellipse(self, z: Vector, c, s) -> Vector:
        """The standard-normal coordinates of z under component c at scale s."""
        return self.mixture.to_ellipse(self.warp.straighten(z)[0], c, s)

    def from_ellipse(self, u: Vector, c, s) -> Vector:
        """The inverse of `to_ellipse`."""
        return self.warp.bend(self.mixture.from_ellipse(u, c, s))


def _mixture(log_weights, means, chols, df) -> StudentMixture:
    identity = jnp.broadcast_to(jnp.eye(means.shape[1], dtype=means.dtype), chols.shape)
    whiteners = jax.scipy.linalg.solve_triangular(chols, identity, lower=True)
    return StudentMixture(log_weights, means, chols, whiteners, df)


def _factor(covariance: Float[AnyArray, "*batch dim dim"]) -> Float[AnyArray, "*batch dim dim"]:
    """The Cholesky factor; the standard deviations where rounding has left none.

    Proposals would be NaN otherwise: in 32 bits of particles that lie in few directions, or at few places.
    """
    chol = jnp.linalg.cholesky(covariance)
    identity = jnp.broadcast_to(jnp.eye(covariance.shape[-1], dtype=chol.dtype), covariance.shape)
    sd = jnp.sqrt(covariance * identity)
    return jnp.where(jnp.all(jnp.isfinite(chol), axis=(-2, -1), keepdims=True), chol, sd)


# Constants of the fit, measured on the sbibm tasks.
NUM_EM_STEPS = 25
COVARIANCE_PRIOR = 0.5  # prior covariance of a component: this times K^(-2/d), in whitened units
LEAST_ROWS = 512  # of what is fitted; half of the scouts and half of a default ensemble then share a program
INFLATION = 1.1  # of every covariance, against overconfidence of the fit


class Groups(NamedTuple):
    """Particles around different peaks of the posterior, whose spreads may differ by orders of magnitude.

    `label`: group of every particle, 0 for the largest. `covariances`: of each; rows after `number` are empty.
    """

    label: Int[AnyArray, " particles"]
    covariances: Float[AnyArray, "groups dim dim"]
    number: Int[AnyArray, ""]


def fit_student_mixture(
    numbers: Float[AnyArray, "components particles"],
    z: Ensemble,
    present: Float[AnyArray, " particles"],
    size: Scalar,
    df: Scalar,
    groups: Groups | None = None,
) -> StudentMixture:
    """MAP estimate, from uniform `numbers`, by expectation-maximisation from a k-means++ start, on whitened particles.

    `present`: 1 where a particle counts and 0 where not. `size`: how many of the components are there. `groups`: then
    each group has a component from the start, as far as `size` reaches, and the prior of a component's covariance has
    the width of the group that it starts in; otherwise that of all particles.

    Source: Peel & McLachlan (2000), Statistics and Computing 10, section 4, with inverse-Wishart priors on the
    covariances (Fraley & Raftery 2007, J. Classification 24) and a uniform Dirichlet prior on the weights.
    """
    d, num_components = z.shape[1], numbers.shape[0]
    n = jnp.sum(present)
    centre = present @ z / n
    centred = (z - centre[None]) * present[:, None]
    covariance = centred.T @ centred / n
    # Resampled particles may repeat: a floor on the spread keeps the factor finite.
    ridge = 1e-6 * jnp.trace(covariance) / d + 1e-10
    whitener = _factor(covariance + ridge * jnp.eye(d, dtype=z.dtype))
    w = jax.scipy.linalg.solve_triangular(whitener, (z - centre[None]).T, lower=True).T
    centres, chosen = _spread_centres(numbers, w, present, groups)
    if groups is None:
        one = COVARIANCE_PRIOR * size ** (-2.0 / d) * jnp.eye(d, dtype=z.dtype)
        prior_covariances, roots = one[None], jnp.broadcast_to(jnp.linalg.cholesky(one), (num_components, d, d))
    else:
        whitening = jax.scipy.linalg.solve_triangular(whitener, jnp.eye(d, dtype=z.dtype), lower=True)
        local = jnp.einsum("ij,gjk,lk->gil", whitening, groups.covariances, whitening)
        share = jnp.maximum(size / groups.number, 1.0)
        prior_covariances = COVARIANCE_PRIOR * share ** (-2.0 / d) * local[groups.label[chosen]]
        roots = jnp.linalg.cholesky(prior_covariances)
    prior_df = d + 2.0
    there = jnp.arange(num_components) < size
    start = _mixture(jnp.where(there, -jnp.log(size), -jnp.inf), centres, roots, df)

    def em_step(_, mixture: StudentMixture) -> StudentMixture:
        responsibilities = jax.nn.softmax(jax.vmap(mixture.log_joint)(w), axis=1) * present[:, None]
        delta = jnp.sum(jax.vmap(mixture._residuals)(w) ** 2, axis=-1)
        u = responsibilities * (df + d) / (df + delta)
        mass = jnp.sum(responsibilities, axis=0)
        total = jnp.sum(u, axis=0)[:, None]
        # An empty component stays where it is.
        means = (u.T @ w + 1e-6 * mixture.means) / (total + 1e-6)

        def scatter(u_k, mean):
            centred = w - mean[None]
            return (u_k[:, None] * centred).T @ centred

        covariances = jax.vmap(scatter)(u.T, means) + prior_df * prior_covariances
        covariances = covariances / (mass + prior_df)[:, None, None]
        log_weights = jnp.where(there, jnp.log((mass + 1) / (n + size)), -jnp.inf)
        return _mixture(log_weights, means, _factor(covariances), df)

    fitted = jax.lax.fori_loop(0, NUM_EM_STEPS, em_step, start)
    means = centre[None] + fitted.means @ whitener.T
    chols = INFLATION**0.5 * jnp.einsum("ij,kjl->kil", whitener, fitted.chols)
    return _mixture(fitted.log_weights, means, chols, df)


class Shape(NamedTuple):
    """Number of components, degrees of freedom, and the coordinates that the others follow."""

    size: int
    df: float
    given: tuple[int, ...] = ()


_fit = eqx.filter_jit(fit_student_mixture)


@eqx.filter_jit
def _log_prob(mixture: StudentMixture, v: Ensemble) -> Float[AnyArray, " particles"]:
    return jax.vmap(mixture.log_prob)(v)


def fit(
    rng: np.random.Generator, z: Ensemble, shape: Shape, room: int, labels: Int[np.ndarray, " particles"] | None = None
) -> Reference:
    """The reference of this shape; `room`: components to make room for, one number for all that share the kernels.

    `labels`: the peak that each particle belongs to, where there are several (see `Groups`).
    """
    z = np.asarray(z)
    warp = fit_warp(z, shape.given)
    straight = warp.straighten_all(z)[0]
    v, present = _padded(straight)
    groups = _groups(straight, labels, len(v))
    return Reference(_fit(_numbers(rng, v, room), v, present, *_as(v.dtype, shape), groups=groups), warp)


MOST_GROUPS = 32


def _groups(v: Ensemble, labels: Int[np.ndarray, " particles"] | None, rows: int) -> Groups | None:
    """Groups of the particles v, filled up to this many rows; None where there are not two.

    Few particles say little of their covariance: it is drawn towards that within all groups.
    """
    found, label, counts = (
        ([], None, None) if labels is None else np.unique(labels, return_inverse=True, return_counts=True)
    )
    if len(found) < 2 or label is None or counts is None:
        return None
    order = np.argsort(-counts, kind="stable")[:MOST_GROUPS]
    place = np.full(len(found), len(order) - 1)
    place[order] = np.arange(len(order))
    label, d = place[label], v.shape[1]
    scatters = np.stack([_scatter(np.asarray(v[label == g], float)) for g in range(len(order))])
    sizes = np.bincount(label, minlength=len(order)).astype(float)
    within = scatters.sum(axis=0) / len(v)
    within += (1e-10 * np.trace(within) / d + 1e-14) * np.eye(d)
    covariances = np.zeros((MOST_GROUPS, d, d)) + np.eye(d)
    covariances[: len(order)] = (scatters + (d + 2) * within) / (sizes + d + 2)[:, None, None]
    filled = np.concatenate([label, np.full(rows - len(v), label[0])])
    return Groups(filled, covariances.astype(v.dtype), np.asarray(len(order), v.dtype))


def _scatter(v: Ensemble) -> Float[np.ndarray, "dim dim"]:
    centred = np.asarray(v - v.mean(axis=0))
    return centred.T @ centred


def best_shape(
    rng: np.random.Generator,
    z: Ensemble,
    shapes: list[Shape],
    room: int,
    labels: Int[np.ndarray, " particles"] | None = None,
) -> tuple[Shape, float]:
    """The shape whose fit to three quarters of the particles gives the rest the highest density, and its mean log.

    Each is tried as it is and, where particles that are straightened look more like a Gaussian, on those. `labels`: see
    `fit`.
    """
    z = np.asarray(z)
    train = rng.random(len(z)) < 0.75
    followed = choose_given(z[train], z[~train]) if train.any() and not train.all() else ()
    tried: list[tuple[float, Shape]] = []
    for given in dict.fromkeys([(), followed]):
        warp = fit_warp(z[train], given)
        v, log_jacobian = warp.straighten_all(z)
        rows = len(_padded(v)[0])
        groups = _groups(v, labels, rows)
        v, present = _padded(v)
        numbers, of_fit = _numbers(rng, v, room), present * _filled(train, len(v))
        for shape in shapes:
            mixture = _fit(numbers, v, of_fit, *_as(v.dtype, shape), groups=groups)
            log_prob = np.asarray(_log_prob(mixture, v))[: len(z)] + log_jacobian
            tried.append((float(np.mean(log_prob[~train])), shape._replace(given=given)))
    score, shape = max(tried, key=lambda pair: pair[0])
    return shape, score


def mean_log_prob(reference: Reference, z: Ensemble) -> float:
    """Over the particles z."""
    v, log_jacobian = reference.warp.straighten_all(np.asarray(z))
    log_prob = np.asarray(_log_prob(reference.mixture, _padded(v)[0]))[: len(v)]
    return float(np.mean(log_prob + log_jacobian))


def labels(reference: Reference, z: Ensemble) -> np.ndarray:
    """The likeliest component of every particle."""
    mixture, v = reference.mixture, reference.warp.straighten_all(np.asarray(z, float))[0]
    log_weights, means, whiteners = (
        np.asarray(a, float) for a in (mixture.log_weights, mixture.means, mixture.whiteners)
    )
    df, d = float(mixture.df), v.shape[1]
    joint = np.empty((len(v), len(means)))
    for k, (log_weight, mean, whitener) in enumerate(zip(log_weights, means, whiteners, strict=True)):
        delta = (((v - mean) @ whitener.T) ** 2).sum(axis=1)
        joint[:, k] = log_weight + np.log(np.diag(whitener)).sum() - 0.5 * (df + d) * np.log1p(delta / df)
    return joint.argmax(axis=1)


def _numbers(rng: np.random.Generator, v: np.ndarray, room: int) -> np.ndarray:
    return rng.random((room, len(v))).astype(v.dtype)


def _as(dtype, shape: Shape) -> list[np.ndarray]:
    return [np.asarray(number, dtype) for number in (shape.size, shape.df)]


def _padded(v: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Filled up to a power of two, at least `LEAST_ROWS`, since each size is compiled; and which rows are particles."""
    n = len(v)
    size = max(LEAST_ROWS, 1 << (n - 1).bit_length())
    filled = np.concatenate([v, np.repeat(v[:1], size - n, axis=0)])
    return filled, _filled(np.ones(n, bool), size).astype(v.dtype)


def _filled(rows: np.ndarray, size: int) -> np.ndarray:
    return np.concatenate([rows, np.zeros(size - len(rows), bool)])


def inflated(reference: Reference, factor) -> Reference:
    """The same reference with the covariance of every component multiplied by `factor`."""
    m = reference.mixture
    return Reference(_mixture(m.log_weights, m.means, m.chols * factor**0.5, m.df), reference.warp)


def _spread_centres(
    numbers: Float[AnyArray, "components particles"], w: Ensemble, present, groups: Groups | None
) -> tuple[Float[AnyArray, "components dim"], Int[AnyArray, " components"]]:
    """k-means++: each next centre with probability proportional to the squared distance to the nearest so far.

    The first ones are one of each group, where there are groups. Returns the centres and which particles they are.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """
    num_components, d = numbers.shape[0], w.shape[1]
    of_first = present if groups is None else present * (groups.label == 0)
    first = jnp.argmax(numbers[0] * of_first)
    centres = jnp.broadcast_to(w[first], (num_components, d))  # the rest are overwritten in turn

    def add(k, state):
        centres, chosen, distance2 = state
        score = jnp.where(present > 0, jnp.log(distance2 + 1e-12) + gumbel(numbers[k]), -jnp.inf)
        if groups is not None:
            other = (k < groups.number) & (groups.label != k)
            score = jnp.where(other & jnp.any((groups.label == k) & (present > 0)), -jnp.inf, score)
        new = jnp.argmax(score)
        distance2 = jnp.minimum(distance2, jnp.sum((w - w[new][None]) ** 2, axis=1))
        return centres.at[k].set(w[new]), chosen.at[k].set(new), distance2

    distance2 = jnp.sum((w - w[first][None]) ** 2, axis=1)
    chosen = jnp.full(num_components, first)
    return jax.lax.fori_loop(1, num_components, add, (centres, chosen, distance2))[:2]


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
    arrays = (jnp.asarray(a, dtype) for a in (log_weights, filled, chols, df))
    return Reference(_mixture(*arrays), no_warp(d, np.dtype(dtype)))


def gaussian(mean, covariance, df: float, room: int) -> Reference:
    """One component, close to a Gaussian for a large `df`, with room for more."""
    d = len(mean)
    chol = np.linalg.cholesky(covariance + 1e-9 * np.trace(covariance) / d * np.eye(d))
    others = np.broadcast_to(np.eye(d), (room - 1, d, d))
    log_weights = np.concatenate([[0.0], np.full(room - 1, -np.inf)])
    means, chols = np.concatenate([[mean], np.zeros((room - 1, d))]), np.concatenate([[chol], others])
    mixture = _mixture(jnp.asarray(log_weights), jnp.asarray(means), jnp.asarray(chols), jnp.asarray(df, float))
    return Reference(mixture, no_warp(d, mixture.means.dtype))
