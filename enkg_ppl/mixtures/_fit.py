"""Fit a mixture of multivariate Student-t distributions to particles, with weights or without.

By NumPy: a fit to a few thousand particles takes milliseconds, and a program for it would take seconds to compile.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from enkg_ppl.bijections._warp import choose_given, fit_warp
from enkg_ppl.mixtures._student import Reference, StudentMixture, log_joint, mixture, squared_distances
from enkg_ppl.types import Ensemble

# Constants of the fit, measured on the sbibm tasks.
NUM_EM_STEPS = 25
COVARIANCE_PRIOR = 0.5  # prior covariance of a component: this times K^(-2/d), in whitened units
INFLATION = 1.1  # of every covariance, against overconfidence of the fit
MOST_GROUPS = 32
# Mixtures that are tried: components, and degrees of freedom.
SIZES, DFS = (1, 2, 4, 8, 16), (5.0, 25.0)
TRAINING = 0.75  # share of the particles that shapes are fitted to, to be judged by the rest


class Shape(NamedTuple):
    """Number of components, degrees of freedom, and the coordinates that the others follow."""

    size: int
    df: float
    given: tuple[int, ...] = ()


class Groups(NamedTuple):
    """Particles around different peaks of the posterior, whose spreads may differ by orders of magnitude.

    `label`: group of every particle, 0 for the largest. `covariances`: of each.
    """

    label: Int[np.ndarray, " particles"]
    covariances: Float[np.ndarray, "groups dim dim"]

    @property
    def number(self) -> int:
        return len(self.covariances)


def fit_student_mixture(
    rng: np.random.Generator,
    z: Ensemble,
    weights: Float[np.ndarray, " particles"],
    shape: Shape,
    groups: Groups | None = None,
) -> StudentMixture:
    """MAP estimate by expectation-maximisation from a k-means++ start, on whitened particles.

    `weights`: how many draws each particle stands for. `groups`: then each group has a component from the start, as far
    as there are components, and the prior of a component's covariance has the width of the group that it starts in;
    otherwise that of all particles.

    Source: Peel & McLachlan (2000), Statistics and Computing 10, section 4, with inverse-Wishart priors on the
    covariances (Fraley & Raftery 2007, J. Classification 24) and a uniform Dirichlet prior on the weights.
    """
    z, (size, df), d = np.asarray(z, float), shape[:2], z.shape[1]
    n = weights.sum()
    centre = weights @ z / n
    centred = z - centre
    covariance = (weights * centred.T) @ centred / n
    # Resampled particles may repeat: a floor on the spread keeps the factor finite.
    ridge = 1e-6 * np.trace(covariance) / d + 1e-10
    whitener = _factors(covariance + ridge * np.eye(d))
    whitening = np.linalg.inv(whitener)
    w = centred @ whitening.T
    chosen = _spread_centres(rng, size, w, weights, groups)
    if groups is None:
        prior_covariances = np.broadcast_to(COVARIANCE_PRIOR * size ** (-2.0 / d) * np.eye(d), (size, d, d))
    else:
        local = whitening @ groups.covariances @ whitening.T
        share = max(size / groups.number, 1.0)
        prior_covariances = COVARIANCE_PRIOR * share ** (-2.0 / d) * local[groups.label[chosen]]
    prior_df = d + 2.0
    log_weights, means, chols = np.full(size, -np.log(size)), w[chosen], _factors(prior_covariances)
    for _ in range(NUM_EM_STEPS):
        whiteners = np.linalg.inv(chols)
        distances = squared_distances(means, whiteners, w)
        joint = log_joint(log_weights, whiteners, df, distances)
        responsibilities = weights[:, None] * np.exp(joint - np.logaddexp.reduce(joint, axis=1)[:, None])
        u = responsibilities * (df + d) / (df + distances)
        mass, total = responsibilities.sum(axis=0), u.sum(axis=0)[:, None]
        # An empty component stays where it is.
        means = (u.T @ w + 1e-6 * means) / (total + 1e-6)
        scatters = np.stack([_scatter(w - mean, u_k) for mean, u_k in zip(means, u.T, strict=True)])
        chols = _factors((scatters + prior_df * prior_covariances) / (mass + prior_df)[:, None, None])
        log_weights = np.log((mass + 1) / (n + size))
    return mixture(log_weights, centre + means @ whitener.T, INFLATION**0.5 * (whitener @ chols), df)


def _scatter(centred: Ensemble, weights: Float[np.ndarray, " particles"]) -> Float[np.ndarray, "dim dim"]:
    return np.asarray((weights * centred.T) @ centred)


def _factors(covariance: Float[np.ndarray, "*batch dim dim"]) -> Float[np.ndarray, "*batch dim dim"]:
    """The Cholesky factors; the standard deviations where rounding has left none.

    Proposals would be NaN otherwise: of particles that lie in few directions, or at few places.
    """
    try:
        return np.linalg.cholesky(covariance)
    except np.linalg.LinAlgError:
        if covariance.ndim > 2:
            return np.stack([_factors(one) for one in covariance])
        return np.diag(np.sqrt(np.diag(covariance)))


def _spread_centres(
    rng: np.random.Generator, size: int, w: Ensemble, weights: Float[np.ndarray, " particles"], groups: Groups | None
) -> Int[np.ndarray, " components"]:
    """k-means++: each next centre with probability proportional to the squared distance to the nearest so far.

    The first ones are one of each group, where there are groups. Returns which particles they are.

    Source: Arthur & Vassilvitskii (2007), section 2.2.
    """
    chosen: list[int] = []
    distance2 = np.ones(len(w))
    for k in range(size):
        chance = weights * (distance2 + 1e-12)
        if groups is not None and k < groups.number and np.any(chance[groups.label == k] > 0):
            chance = np.where(groups.label == k, chance, 0.0)
        chosen.append(int(rng.choice(len(w), p=chance / chance.sum())))
        new = ((w - w[chosen[-1]]) ** 2).sum(axis=1)
        distance2 = new if k == 0 else np.minimum(distance2, new)
    return np.asarray(chosen)


def fit(
    rng: np.random.Generator,
    z: Ensemble,
    shape: Shape,
    room: int,
    labels: Int[np.ndarray, " particles"] | None = None,
    weights: Float[np.ndarray, " particles"] | None = None,
) -> Reference:
    """The reference of this shape; `room`: components to make room for, one number for all that share the kernels,
    and the most that there can be.

    `labels`: the peak that each particle belongs to, where there are several (see `Groups`). `weights`: how many draws
    each particle stands for (default: one).
    """
    z, shape = np.asarray(z), shape._replace(size=min(shape.size, room))
    weights = np.ones(len(z)) if weights is None else weights
    warp = fit_warp(equal_draws(rng, z, weights), shape.given)
    v = warp.forward_all(z)[0]
    fitted = fit_student_mixture(rng, v, weights, shape, _groups(v, weights, labels))
    return Reference(_with_room(fitted, room, z.dtype), warp)


def _with_room(m: StudentMixture, room: int, dtype) -> StudentMixture:
    """The same with components of weight 0 up to this number."""
    size, d = m.means.shape
    more = room - size
    log_weights = np.concatenate([m.log_weights, np.full(more, -np.inf)])
    means = np.concatenate([m.means, np.zeros((more, d))]).astype(dtype)
    chols = np.concatenate([m.chols, np.broadcast_to(np.eye(d), (more, d, d))])
    return mixture(log_weights, means, chols, m.df)


def equal_draws(rng: np.random.Generator, z: Ensemble, weights: Float[np.ndarray, " particles"]) -> Ensemble:
    """Particles as often as their weights say; the very same ones where all weights are equal."""
    if np.ptp(weights) == 0:
        return z
    n = max(1, round(weights.sum()))
    places = (np.arange(n) + rng.random()) / n * weights.sum()
    return z[np.minimum(np.searchsorted(np.cumsum(weights), places), len(z) - 1)]


def _groups(
    v: Ensemble, weights: Float[np.ndarray, " particles"], labels: Int[np.ndarray, " particles"] | None
) -> Groups | None:
    """Groups of the particles v; None where there are not two.

    Few particles say little of their covariance: it is drawn towards that within all groups.
    """
    if labels is None:
        return None
    found, label = np.unique(labels, return_inverse=True)
    counts = np.bincount(label, weights)
    if len(found) < 2:
        return None
    order = np.argsort(-counts, kind="stable")[:MOST_GROUPS]
    place = np.full(len(found), len(order) - 1)
    place[order] = np.arange(len(order))
    label, d = place[label], v.shape[1]
    scatters = np.stack([_within(np.asarray(v[label == g], float), weights[label == g]) for g in range(len(order))])
    sizes = np.bincount(label, weights, len(order))
    within = scatters.sum(axis=0) / weights.sum()
    within += (1e-10 * np.trace(within) / d + 1e-14) * np.eye(d)
    return Groups(label, (scatters + (d + 2) * within) / (sizes + d + 2)[:, None, None])


def _within(v: Ensemble, weights: Float[np.ndarray, " particles"]) -> Float[np.ndarray, "dim dim"]:
    """Scatter about the weighted mean."""
    total = weights.sum()
    return _scatter(v - (weights @ v / total if total > 0 else 0.0), weights)


def best_shape(
    rng: np.random.Generator,
    z: Ensemble,
    shapes: list[Shape],
    room: int,
    labels: Int[np.ndarray, " particles"] | None = None,
    weights: Float[np.ndarray, " particles"] | None = None,
) -> tuple[Shape, float]:
    """The shape whose fit to three quarters of the particles gives the rest the highest density, and its mean log.

    Each is tried as it is and, where particles that are straightened look more like a Gaussian, on those. `labels`,
    `weights`: see `fit`.
    """
    z = np.asarray(z)
    weights = np.ones(len(z)) if weights is None else weights
    train = rng.random(len(z)) < TRAINING
    train[0], train[-1] = True, False  # some of each, however few there are
    fitted, judge = (equal_draws(rng, z[part], weights[part]) for part in (train, ~train))
    followed = choose_given(fitted, judge)
    best: tuple[Shape, float] | None = None
    for given in dict.fromkeys([(), followed]):
        for shape in shapes:
            tried = shape._replace(given=given)
            own = None if labels is None else labels[train]
            reference = fit(rng, z[train], tried, room, own, weights[train])
            score = float(np.average(reference.log_prob_all(z[~train]), weights=weights[~train] + np.finfo(float).tiny))
            if best is None or score > best[1]:
                best = tried, score
    assert best is not None
    return best


def most_components(num_particles: int, dim: int, wanted: int = SIZES[-1]) -> int:
    """Components that this many particles can carry: a few particles a dimension for each, and one in any case."""
    carried = max(1, min(wanted, num_particles // (2 * (dim + 1))))
    return max(size for size in SIZES if size <= carried)


def best_fit(
    rng: np.random.Generator, z: Ensemble, most: int, room: int, labels: Int[np.ndarray, " particles"] | None = None
) -> tuple[Shape, float]:
    """Number of components and degrees of freedom that fit these particles best, and how well (see `best_shape`)."""
    n, d = z.shape
    sizes = [size for size in SIZES if size <= most_components(n, d, most)]
    return best_shape(rng, z, [Shape(size, df) for size in sizes for df in DFS], room, labels)
