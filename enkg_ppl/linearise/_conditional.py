"""A bijection of z under which a hierarchy's posterior is close to a Gaussian: whitened, given a few of its unknowns.

Given its scales h, most of a hierarchy is nearly Gaussian: its unknowns u are linear in z, ``u = c(h) + B(h) z``, which
the prior says without a simulation, and the simulator is nearly linear in u, ``G = A u + F(h)``, which simulations
of any ensemble tell. Then z given h and the data is N(m(h), P(h)^-1) with ``P = I + (A B)^T Gamma^-1 (A B)``, and
``w = L^T (z - m)``, ``P = L L^T``, is N(0, I): no funnel, no ridge, at scales that no particle has seen too.

It is a bijection whatever A and h are: a bad fit costs evaluations and nothing else.

Source: Rue, Martino & Chopin (2009), J. R. Stat. Soc. B 71, 319, section 3 (the Gaussian field given its
hyperparameters), with statistical linearisation (see `enkg_ppl.refinement._linearised`) in place of derivatives.
"""

from __future__ import annotations

from collections.abc import Callable

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float

from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._ridge import affine_ridge
from enkg_ppl.types import AnyArray, Ensemble, Scalar, Vector

MOST_GIVEN = 8
LEAST_NOISE = 1e-12  # of the spread of a datum's predictions
# Linear algebra a particle beyond which this is not worth its time: data times dimensions squared.
MOST_WORK = 2e7


class ConditionalGaussian(eqx.Module):
    """``w = L(h)^T (z - m(h))`` for all of z but h, which stays as it is."""

    unconstrained_values: Callable[[Vector], Vector] | None
    given: Float[AnyArray, " dim"]  # 1 for the coordinates h, 0 for others
    places: Float[AnyArray, "given free"]  # rows of the identity, or of zeros where h is shorter
    centre: Float[AnyArray, " given"]
    width: Float[AnyArray, " given"]
    slope: Float[AnyArray, "data free"]  # A, 0 for h
    offset: Float[AnyArray, "features data"]  # F
    log_noise: Float[AnyArray, "features data"]
    unexplained: Float[AnyArray, " data"]  # variance of G that the regression leaves
    observation: Float[AnyArray, " data"]

    def forward(self, z: Vector) -> tuple[Vector, Scalar]:
        """w of z, and the log of the Jacobian's determinant."""
        mean, chol = self._posterior(z)
        return chol.T @ (z - mean), jnp.sum(jnp.log(jnp.diagonal(chol)))

    def inverse(self, w: Vector) -> tuple[Vector, Scalar]:
        """z of w, and the log of the determinant of *its* Jacobian."""
        mean, chol = self._posterior(w)
        return mean + solve_triangular(chol, w, lower=True, trans=1), -jnp.sum(jnp.log(jnp.diagonal(chol)))

    def _posterior(self, z: Vector) -> tuple[Vector, Float[AnyArray, "dim dim"]]:
        """m(h), and the Cholesky factor of P(h); for h itself they are 0 and 1, so that h is the same in w and z."""
        base, free = self.given * z, self.unconstrained_values or (lambda z: z)
        identity = jnp.eye(z.shape[0], dtype=z.dtype)
        # By differences, which are exact where u is linear; derivatives would ask the black box for its own.
        c = free(base)
        b = (jax.vmap(lambda e: free(base + e))(identity) - c[None]).T * (1 - self.given)[None]
        h = (self.places @ c - self.centre) / self.width
        features = jnp.concatenate([jnp.ones(1, z.dtype), h, h**2])
        noise = jnp.exp(jnp.clip(features @ self.log_noise, -60, 60)) + self.unexplained
        a = (self.slope @ b) / jnp.sqrt(noise)[:, None]
        innovation = (self.observation - self.slope @ c - features @ self.offset) / jnp.sqrt(noise)
        chol = jnp.linalg.cholesky(identity + a.T @ a)
        mean = solve_triangular(chol, solve_triangular(chol, a.T @ innovation, lower=True), lower=True, trans=1)
        # A factor that overflowed belongs to no place that the posterior could be at.
        usable = jnp.all(jnp.isfinite(chol)) & jnp.all(jnp.isfinite(mean))
        return jnp.where(usable, mean, 0.0), jnp.where(usable, chol, identity)


def fit_conditional(
    unconstrained_values: Callable[[Vector], Vector] | None,
    u: Ensemble,
    response: Response,
    given: tuple[int, ...],
    dim: int,
) -> ConditionalGaussian:
    """From simulations: `u`, shape (pairs, free), the free values that were simulated, and their `response`."""
    dtype, d, k = u.dtype, u.shape[1], len(given)
    u = np.asarray(u, float)
    prediction, observation, noise = (np.asarray(a, float) for a in response)
    mask, places = np.zeros(dim), np.zeros((MOST_GIVEN, d))
    mask[list(given)] = 1
    places[range(k), given] = 1
    h = u @ places.T
    centre, width = np.zeros(MOST_GIVEN), np.ones(MOST_GIVEN)
    centre[:k], width[:k] = h[:, :k].mean(axis=0), h[:, :k].std(axis=0) + 1e-12
    h = (h - centre) / width
    features = np.concatenate([h, h**2], axis=1)
    rest = np.setdiff1d(np.arange(d), given)
    used = np.flatnonzero(features.std(axis=0) > 0)
    columns = np.concatenate([u[:, rest], features[:, used]], axis=1)
    spread = columns.std(axis=0) + 1e-300
    coefficients, intercept, unexplained = affine_ridge(columns / spread, prediction)
    coefficients = coefficients / spread
    slope, offset = np.zeros((prediction.shape[1], d)), np.zeros((1 + 2 * MOST_GIVEN, prediction.shape[1]))
    slope[:, rest], offset[0] = coefficients[:, : len(rest)], intercept
    offset[1 + used] = coefficients[:, len(rest) :].T
    least = LEAST_NOISE * prediction.var(axis=0) + 1e-300
    log_noise = np.zeros_like(offset)
    design = np.concatenate([np.ones((len(u), 1)), features[:, used]], axis=1)
    found = np.linalg.lstsq(design, np.log(np.maximum(noise, least)), rcond=None)[0]
    log_noise[0], log_noise[1 + used] = found[0], found[1:]
    arrays = (mask, places, centre, width, slope, offset, log_noise, unexplained, np.median(observation, axis=0))
    return ConditionalGaussian(unconstrained_values, *(a.astype(dtype) for a in arrays))
