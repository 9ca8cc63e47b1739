"""A guided flow that is consistent: the Kalman update of a conditional draw, then fresh noise.

At noise level sigma draw ``Z1, Z2 ~ p(x0 | x_sigma)`` for every particle. Half their difference carries the
*conditional* covariance, ``r = (Z1 - Z2) / sqrt 2``, ``q = (G(Z1) - G(Z2)) / sqrt 2``, pooled over the ensemble:
``C_xg = r^T q / J``, ``C_gg = q^T q / J``. The draw is updated by the ensemble Kalman filter with perturbed
observations (Burgers, van Leeuwen & Evensen 1998, eq. 13) and noised to the next level:

    x0' = Z1 + C_xg (C_gg + Gamma)^-1 (y + eta - G(Z1)),     x_next = x0' + sigma_next eps.

If ``x_sigma ~ p_sigma(. | y)`` and the problem is linear and Gaussian, then ``x0' ~ p(x0 | x_sigma, y)`` and
``x_next ~ p_next(. | y)`` exactly, whatever the noise level: there is no step size.
"""

from __future__ import annotations

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._correction._base import Correction, Level
from enkg_ppl._flow import Flow, conditional_sample
from enkg_ppl._forward import Respond
from enkg_ppl._likelihood import Response
from enkg_ppl._problem import InverseProblem
from enkg_ppl._random import normals
from enkg_ppl._schedule import Karras
from enkg_ppl._types import Ensemble, Key


class Correlations(NamedTuple):
    """Sampled correlations of latent and output, averaged over the levels so far."""

    xg: Float[Array, "dim m"]
    gg: Float[Array, "m m"]


class KalmanCorrection(Correction):
    """Noise-aware guidance by ensemble Kalman updates of conditional draws; the default.

    `num_steps`: noise levels of the default schedule; a level costs two forward evaluations a particle.
    `memory`: weight of the past in the correlations, in [0, 1); averaging over levels removes sampling noise.
    `taper`: shrink sampled correlations towards zero where they are no larger than chance would make them.
    `num_draw_steps`: reverse-SDE steps of a conditional draw, where the prior has none in closed form.
    `max_innovation`: innovations larger than this many of their own standard deviations (root mean square over
    the data) are scaled down to it, so that a strongly nonlinear simulator cannot throw particles out.
    """

    num_steps: int = eqx.field(static=True, default=10)
    memory: float = 0.5
    taper: bool = eqx.field(static=True, default=True)
    num_draw_steps: int = eqx.field(static=True, default=8)
    max_innovation: float = 4.0

    def __check_init__(self):
        if not 0 <= self.memory < 1:
            raise ValueError(f"KalmanCorrection needs 0 <= memory < 1; got memory={self.memory}")
        if not self.max_innovation > 0:
            raise ValueError(f"KalmanCorrection needs max_innovation > 0; got {self.max_innovation}")

    def default_schedule(self, problem: InverseProblem) -> Karras:
        # Above twice the prior's widest direction the noise hides everything; below a tenth the update is done.
        scale = problem.prior.scale
        return Karras(self.num_steps, 0.1 * scale, 2.0 * scale)

    def start(self, key: Key, problem: InverseProblem, num_particles: int, sigma) -> Ensemble:
        return _noised_prior_draws(key, problem.prior, num_particles, sigma)

    def init(self, problem: InverseProblem, x: Ensemble) -> Correlations | None:
        x_j = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        response = jax.eval_shape(lambda x_j: problem.likelihood.response(problem.forward(x_j)), x_j)
        m, d = response.prediction.shape[0], x.shape[1]
        if m > x.shape[0]:
            return None  # more data than particles: solved in ensemble space, and no m x m matrix is kept
        return Correlations(jnp.zeros((d, m), x.dtype), jnp.zeros((m, m), x.dtype))

    def evaluations_per_particle(self, num_steps: int) -> int:
        return 2 * num_steps

    def step(self, key, x, level: Level, problem: InverseProblem, respond: Respond, memory: Correlations | None):
        key_draw, key_analyse = jr.split(key)
        draws = _draw_twice(key_draw, problem.prior, x, level.sigma, self.num_draw_steps)
        responses = respond(draws)
        key_perturb, key_noise = jr.split(key_analyse)
        perturbations = normals(key_perturb, (x.shape[0], responses.prediction.shape[1]), x.dtype)
        noise = normals(key_noise, x.shape, x.dtype)
        return _analyse(self, draws, responses, level, memory, perturbations, noise)


@eqx.filter_jit
def _noised_prior_draws(key: Key, prior, num_particles: int, sigma) -> Ensemble:
    key_draw, key_noise = jr.split(key)
    x0 = jax.vmap(Flow(prior).sample)(jr.split(key_draw, num_particles))
    return x0 + sigma * jr.normal(key_noise, x0.shape, x0.dtype)


@eqx.filter_jit
def _draw_twice(key: Key, prior, x: Ensemble, sigma, num_draw_steps: int) -> Ensemble:
    """Z1 and Z2 of every particle, one below the other: shape (2 J, dim)."""
    x = jnp.concatenate([x, x])
    keys = jr.split(key, x.shape[0])
    return jax.vmap(lambda key, x_j: conditional_sample(key, prior, x_j, sigma, num_draw_steps))(keys, x)


@eqx.filter_jit
def _analyse(
    settings: KalmanCorrection,
    draws: Ensemble,
    responses: Response,
    level: Level,
    memory: Correlations | None,
    perturbations: Float[Array, "particles m"],
    noise: Ensemble,
):
    """The Kalman update of Z1 and the step to the next noise level; returns it and the memory."""
    n = draws.shape[0] // 2
    z1, z2 = draws[:n], draws[n:]
    response, response2 = (jax.tree.map(lambda a, s=s: a[s], responses) for s in (slice(n), slice(n, None)))
    usable = _usable(response) & _usable(response2)
    r, q = (z1 - z2) / 2**0.5, (response.prediction - response2.prediction) / 2**0.5
    r, q = jnp.where(usable[:, None], r, 0.0), jnp.where(usable[:, None], q, 0.0)
    gamma = _typical_noise(response, usable)
    innovation = jnp.where(usable[:, None], response.observation - response.prediction, 0.0)
    innovation = innovation + jnp.sqrt(gamma)[None] * perturbations
    n = jnp.maximum(jnp.sum(usable), 1)
    if memory is None:
        shift = _ensemble_space_shift(r, q, n, gamma, innovation, settings.max_innovation)
    else:
        C_xg, C_gg, memory = _covariances(settings, r, q, n, level.index == 0, memory)
        shift = _kalman_shift(C_xg, C_gg, gamma, innovation, settings.max_innovation)
    x0 = z1 + jnp.where(usable[:, None], shift, 0.0)
    return x0 + level.sigma_next * noise, memory


def _covariances(
    settings: KalmanCorrection, r: Ensemble, q: Float[Array, "particles m"], n, is_first, past: Correlations
):
    """Pooled conditional covariances: sampled correlations averaged over levels, tapered, times today's sd."""
    sd_r, sd_q = jnp.sqrt(jnp.sum(r**2, axis=0) / n), jnp.sqrt(jnp.sum(q**2, axis=0) / n)
    r, q = r / _nonzero(sd_r)[None], q / _nonzero(sd_q)[None]
    weight = jnp.where(is_first, 0.0, settings.memory)
    xg = weight * past.xg + (1 - weight) * r.T @ q / n
    gg = weight * past.gg + (1 - weight) * q.T @ q / n
    memory = Correlations(xg, gg)
    if settings.taper:
        # The average over levels counts for (1 + w) / (1 - w) ensembles once it has run in.
        size = n * jnp.where(is_first, 1.0, (1 + settings.memory) / (1 - settings.memory))
        diagonal = jnp.diag(gg)
        xg, gg = _tapered(xg, size), _tapered(gg, size)
        gg = gg + jnp.diag(diagonal - jnp.diag(gg))
    return sd_r[:, None] * xg * sd_q[None], sd_q[:, None] * gg * sd_q[None], memory


def _typical_noise(response: Response, usable) -> Float[Array, " m"]:
    """One noise variance a datum: where it depends on the particle (Poisson, unknown scale), the median serves all."""
    gamma = jnp.nanmedian(jnp.where(usable[:, None], response.noise, jnp.nan), axis=0)
    return jnp.where(jnp.isfinite(gamma) & (gamma > 0), gamma, 1.0)


def _kalman_shift(C_xg, C_gg, gamma, innovation: Float[Array, "particles m"], max_innovation: float) -> Ensemble:
    """``C_xg (C_gg + Gamma)^-1 innovation`` for every particle, the innovation bounded."""
    # In units of each datum's own spread the noise is a floor under the eigenvalues, which a taper may push below it.
    scale = jnp.sqrt(jnp.diag(C_gg) + gamma)
    eigenvalues, vectors = jnp.linalg.eigh((C_gg + jnp.diag(gamma)) / scale[:, None] / scale[None])
    rounding = scale.shape[0] * jnp.finfo(scale.dtype).eps
    eigenvalues = jnp.maximum(eigenvalues, jnp.maximum(jnp.min(gamma / scale**2), rounding))
    u = (innovation / scale[None]) @ vectors
    u = u * _bound(jnp.mean(u**2 / eigenvalues[None], axis=1), max_innovation)[:, None]
    return ((u / eigenvalues[None]) @ vectors.T / scale[None]) @ C_xg.T


def _ensemble_space_shift(
    r: Ensemble,
    q: Float[Array, "particles m"],
    n,
    gamma,
    innovation: Float[Array, "particles m"],
    max_innovation: float,
) -> Ensemble:
    """`_kalman_shift` with the untapered covariances of this level alone, by a J x J solve.

    With ``W = q Gamma^-1/2`` and ``b = innovation Gamma^-1/2`` Woodbury's identity turns ``C_xg (C_gg + Gamma)^-1``
    into ``r^T (n I + W W^T)^-1 W Gamma^-1/2`` (Evensen 2003, Ocean Dynamics 53, section 4).
    """
    W, b = q / jnp.sqrt(gamma)[None], innovation / jnp.sqrt(gamma)[None]
    Wb = b @ W.T
    weights = jnp.linalg.solve(n * jnp.eye(W.shape[0], dtype=W.dtype) + W @ W.T, Wb.T).T
    size2 = (jnp.sum(b**2, axis=1) - jnp.sum(Wb * weights, axis=1)) / b.shape[1]
    return (weights * _bound(size2, max_innovation)[:, None]) @ r


def _bound(size2: Float[Array, " particles"], max_innovation: float) -> Float[Array, " particles"]:
    """Factor that brings an innovation of mean square `size2` (in its own variances) down to the largest allowed."""
    return jnp.minimum(1.0, max_innovation / jnp.sqrt(jnp.maximum(size2, 1e-12)))


def _usable(response: Response):
    """Particles whose simulation and working response are finite."""
    return jnp.all(jnp.isfinite(response.prediction) & jnp.isfinite(response.observation), axis=1)


def _nonzero(sd):
    return jnp.where(sd > 0, sd, 1.0)


def _tapered(correlation, size):
    """Shrink by ``rho^2 / (rho^2 + (1 + rho^2) / size)``, with rho^2 corrected for its own sampling bias."""
    rho2 = jnp.clip((correlation**2 * size - 1) / jnp.maximum(size - 1, 1), 0.0, 1.0)
    return correlation * rho2 / (rho2 + (1 + rho2) / size)
