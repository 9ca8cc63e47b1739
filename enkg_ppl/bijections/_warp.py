"""A bijection that straightens an ensemble: location and scale of every coordinate follow a few of the coordinates.

Hierarchies make funnels and curved ridges: given a scale or two, all else is close to a Gaussian whose centre and
widths move with them. ``v_i = (z_i - m_i(h)) exp(-s_i(h))`` with quadratic m and s of the few coordinates h, which stay
what they are, takes that away and leaves to a mixture what a mixture can do. It is triangular, so its inverse and its
Jacobian are in closed form whatever m and s are.

The coordinates h are chosen one by one: each has to raise the density of particles that were held out.

Source: a location-scale step of a triangular transport, Marzouk, Moselhy, Parno & Spantini (2016), section 4; the
weighted regressions: Aitkin (1987), J. R. Stat. Soc. C 36, 332.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from enkg_ppl.types import AnyArray, Ensemble, Scalar, Vector

MOST_GIVEN = 3  # coordinates that others may follow
PAIRS = tuple(combinations_with_replacement(range(MOST_GIVEN), 2))
NUM_FEATURES = 1 + MOST_GIVEN + len(PAIRS)
NUM_CANDIDATES = 6  # that are tried for each, those whose moments with others are farthest from a Gaussian's
LEAST_PARTICLES = 4  # for each dimension and feature; with fewer nothing is straightened
NUM_REGRESSIONS = 8
# How far the polynomials are followed beyond the particles: in standard deviations of h, and as a share of the range of
# a location or scale.
BEYOND, FARTHER = 1.5, 0.5
RIDGE = 1e-2  # in particles
# What counts as a gain in held-out density: this many standard errors.
SIGNIFICANT = 2.0


class Warp(eqx.Module):
    """``v = (z - m(h)) exp(-s(h))`` with h = `given` z; outside of the particles it was fitted to, as at their edge."""

    given: Float[AnyArray, "given dim"]  # rows of the identity, or of zeros where there are fewer
    centre: Float[AnyArray, " given"]
    width: Float[AnyArray, " given"]
    range: Float[AnyArray, "2 given"]
    locations: Float[AnyArray, "features dim"]
    log_scales: Float[AnyArray, "features dim"]
    location_range: Float[AnyArray, "2 dim"]
    log_scale_range: Float[AnyArray, "2 dim"]

    def _location_and_log_scale(self, z: Vector) -> tuple[Vector, Vector]:
        features = _features(jnp, ((jnp.clip(self.given @ z, *self.range) - self.centre) / self.width)[None])[0]
        return (
            jnp.clip(features @ self.locations, *self.location_range),
            jnp.clip(features @ self.log_scales, *self.log_scale_range),
        )

    def forward(self, z: Vector) -> tuple[Vector, Scalar]:
        """v of z, and the log of the Jacobian's determinant."""
        location, log_scale = self._location_and_log_scale(z)
        return (z - location) * jnp.exp(-log_scale), -jnp.sum(log_scale)

    def inverse(self, v: Vector) -> Vector:
        """The inverse: h is the same in v and z."""
        location, log_scale = self._location_and_log_scale(v)
        return v * jnp.exp(log_scale) + location

    def forward_all(self, z: Ensemble) -> tuple[np.ndarray, np.ndarray]:
        """Both, of an ensemble, by NumPy: compiles nothing."""
        location, log_scale = self._of_all(z)
        return np.asarray((z - location) * np.exp(-log_scale)), -log_scale.sum(axis=1)

    def inverse_all(self, v: Ensemble) -> Ensemble:
        """The inverse, of an ensemble, by NumPy."""
        location, log_scale = self._of_all(v)
        return np.asarray(v * np.exp(log_scale) + location)

    def _of_all(self, z: Ensemble) -> tuple[np.ndarray, np.ndarray]:
        """Location and log scale of every coordinate of every particle, by NumPy."""
        given = np.asarray(z) @ np.asarray(self.given).T
        features = _features(np, (np.clip(given, *np.asarray(self.range)) - self.centre) / self.width)
        location = np.clip(features @ self.locations, *np.asarray(self.location_range))
        return location, np.clip(features @ self.log_scales, *np.asarray(self.log_scale_range))


def _features(xp, x):
    """Quadratic polynomials, shape (particles, features)."""
    pairs = [x[:, a] * x[:, b] for a, b in PAIRS]
    return xp.stack([xp.ones_like(x[:, 0]), *(x[:, a] for a in range(MOST_GIVEN)), *pairs], axis=1)


def fit_warp(z: Ensemble, given: tuple[int, ...]) -> Warp:
    """By maximum likelihood of ``z_i | h ~ N(m_i(h), exp(2 s_i(h)))``, each coordinate on its own.

    A location or scale stays constant where following h does not lower Akaike's criterion. No `given`: the identity.
    """
    dtype, d, k = z.dtype, z.shape[1], len(given)
    z = np.asarray(z, float)
    chosen = np.zeros((MOST_GIVEN, d))
    chosen[range(k), given] = 1
    h = z @ chosen.T
    centre, width, bounds = np.zeros(MOST_GIVEN), np.ones(MOST_GIVEN), np.zeros((2, MOST_GIVEN))
    centre[:k], width[:k] = h[:, :k].mean(axis=0), h[:, :k].std(axis=0) + 1e-12
    beyond = BEYOND * width[:k]
    bounds[:, :k] = h[:, :k].min(axis=0) - beyond, h[:, :k].max(axis=0) + beyond
    locations, log_scales = np.zeros((2, NUM_FEATURES, d))
    features = _features(np, (h - centre) / width)
    if k:
        used = np.flatnonzero(np.any(features != 0, axis=0))
        rest = np.setdiff1d(np.arange(d), given)
        found = _regressions(features[:, used], z[:, rest])
        for coefficients, values in zip((locations, log_scales), found, strict=True):
            coefficients[np.ix_(used, rest)] = values
    location, log_scale = features @ locations, features @ log_scales
    arrays = (chosen, centre, width, bounds, locations, log_scales, _range(location), _range(log_scale))
    return Warp(*(a.astype(dtype) for a in arrays))


def _range(a: Float[np.ndarray, "particles dim"]) -> Float[np.ndarray, "2 dim"]:
    low, high = a.min(axis=0), a.max(axis=0)
    return np.stack([low - FARTHER * (high - low), high + FARTHER * (high - low)])


def _regressions(features: Float[np.ndarray, "n f"], z: Float[np.ndarray, "n rest"]):
    """Coefficients (f, rest) of locations and of log scales, by turns of weighted least squares and Fisher scoring."""
    f = features.shape[1]
    ridge = RIDGE * np.eye(f)
    constant = np.zeros((f, z.shape[1]))
    constant[0] = np.log(z.std(axis=0) + 1e-12)
    log_scales = constant.copy()
    information = features.T @ features + ridge
    middle = z.mean(axis=0)
    locations = np.zeros_like(constant)
    locations[0] = middle
    for _ in range(NUM_REGRESSIONS):
        weights = np.exp(-2 * features @ (log_scales - log_scales[:1] * (np.arange(f) == 0)[:, None]))
        gram = np.einsum("nf,nr,ng->rfg", features, weights, features, optimize=True) + ridge
        moments = features.T @ (weights * (z - middle))
        locations = np.linalg.solve(gram, moments.T[..., None])[..., 0].T
        locations[0] += middle
        residuals = z - features @ locations
        # Bounded, so that a far particle does not decide, and the scoring does not overshoot.
        score = np.clip(0.5 * (residuals**2 * np.exp(-2 * features @ log_scales) - 1), -0.5, 2.0)
        log_scales = log_scales + np.linalg.solve(information, features.T @ score)

    def loss(location, log_scale):
        """Twice the negative log likelihood."""
        return np.sum(2 * log_scale + (z - location) ** 2 * np.exp(-2 * log_scale), axis=0)

    residual = np.zeros_like(constant)
    residual[0] = 0.5 * np.log(np.mean((z - features @ locations) ** 2, axis=0) + 1e-24)
    follows = loss(features @ locations, features @ log_scales) + 2 * (f - 1) < loss(
        features @ locations, features @ residual
    )
    log_scales = np.where(follows, log_scales, residual)
    # With what is left of the scale, is a location that follows h worth its coefficients?
    still = np.zeros_like(constant)
    still[0] = middle
    alone = np.where(follows, log_scales, constant)
    moves = loss(features @ locations, features @ log_scales) + 2 * (f - 1) < loss(features @ still, features @ alone)
    return np.where(moves, locations, still), np.where(moves, log_scales, alone)


def no_warp(dim: int, dtype) -> Warp:
    """The identity."""
    return fit_warp(np.zeros((1, dim), dtype), ())


def choose_given(train: Ensemble, test: Ensemble, most: int = MOST_GIVEN) -> tuple[int, ...]:
    """The coordinates that others are to follow, by greedy choice; none where that does not help.

    Each must raise the density of the `test` particles, under a Gaussian fitted to the straightened `train`.
    """
    train, test = (np.asarray(z, float) for z in (train, test))
    given: tuple[int, ...] = ()
    n, d = train.shape
    if d < 2 or n < LEAST_PARTICLES * (d + NUM_FEATURES):
        return given
    best = held_out(train, test, given)
    likely = candidates(train)
    while len(given) < most:
        tried = {j: held_out(train, test, (*given, j)) for j in likely if j not in given}
        if not tried:
            break
        j = max(tried, key=lambda j: tried[j].mean())
        if not significant(tried[j] - best):
            break
        given, best = (*given, j), tried[j]
    return given


def significant(gain: Float[np.ndarray, " particles"]) -> bool:
    """Whether held-out densities rose by more than chance would have them."""
    return bool(gain.mean() > SIGNIFICANT * gain.std() / len(gain) ** 0.5 + 1e-9)


def held_out(train: Ensemble, test: Ensemble, given: tuple[int, ...]) -> Float[np.ndarray, " particles"]:
    """Log density of every `test` particle under a Gaussian fitted to the straightened `train`."""
    warp = fit_warp(train, given)
    v, _ = warp.forward_all(train)
    w, log_jacobian = warp.forward_all(test)
    centre, d = v.mean(axis=0), v.shape[1]
    covariance = np.atleast_2d(np.cov(v.T))
    covariance += (1e-9 * np.trace(covariance) / d + 1e-12) * np.eye(d)
    chol = np.linalg.cholesky(covariance)
    residuals = np.linalg.solve(chol, (w - centre).T)
    log_det = np.log(np.diag(chol)).sum()
    return log_jacobian - 0.5 * (residuals**2).sum(axis=0) - log_det - 0.5 * d * np.log(2 * np.pi)


def candidates(z: Ensemble) -> list[int]:
    """Coordinates that locations or scales of others follow, by third moments that a Gaussian has not."""
    n, d = z.shape
    x = (z - z.mean(axis=0)) / (z.std(axis=0) + 1e-12)
    correlation = x.T @ x / n
    strength = np.empty(d)
    for j in range(d):
        rest = x - x[:, j : j + 1] * correlation[j]
        spread = rest.var(axis=0)
        spread[spread < 1e-6] = np.inf
        square = x[:, j] ** 2 - 1
        square = square / (square.std() + 1e-12)
        bends = (square @ rest / n) ** 2 / spread
        swells = (x[:, j] @ (rest**2 / spread - 1) / n) ** 2 / 2
        strength[j] = np.sum(np.delete(bends + swells, j))
    return [int(j) for j in np.argsort(-strength)[:NUM_CANDIDATES]]
