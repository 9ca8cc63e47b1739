"""Ensemble Kalman Diffusion Guidance as published: Zheng et al., arXiv 2409.20175, algorithm 1."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.core import Tracer
from jaxtyping import Array, Float

from enkg_ppl._checks import check_whole
from enkg_ppl.evaluation._evaluator import Respond
from enkg_ppl.guidance._base import Correction, Level
from enkg_ppl.likelihood import Response
from enkg_ppl.priors import chunked_vmap
from enkg_ppl.priors._flow import euler_step, euler_to_zero
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Karras
from enkg_ppl.types import Ensemble, Key


class PublishedCorrection(Correction):
    """The correction exactly as published.

    Every particle is mapped to noise level 0 by Euler steps of the probability-flow ODE and simulated, ``g_j =
    G(x0_j)``; with ``e_j = g_j - y`` and ``c = E (G - mean G)^T / J`` (J x J, rows j) the update is ``x <- x - scale /
    ||c||_F * c (x - mean x)``. The division by ``||c||_F`` cancels the noise level: the result cannot depend on it, and
    the ensemble collapses. Use it to reproduce the paper; for posteriors use `KalmanCorrection` and a refinement.

    The default is the paper's setting for Navier-Stokes; black-hole imaging used ``guidance_scale=3.5, num_updates=1,
    start_fraction=stop_fraction=0.1, lr_min_ratio=1e-3``.

    Attributes:
        guidance_scale: step size, dimensionless.
        num_updates: updates a level.
        start_fraction: fraction of the levels left unguided at the start.
        stop_fraction: fraction of the levels left unguided at the end.
        lr_min_ratio: > 0 lets the scale decay linearly to this value.
        max_inner_steps: Euler steps to noise level 0 at level i of N are ``min(1 + (N - i) // levels_per_inner_step,
            max_inner_steps)``.
        levels_per_inner_step: see `max_inner_steps`.
        inner_sigma_min: smallest noise level of the Euler steps before 0.
        rho: exponent of their noise levels, as in `Karras`.
    """

    guidance_scale: float = 2.0
    num_updates: int = eqx.field(static=True, default=2)
    start_fraction: float = eqx.field(static=True, default=0.05)
    stop_fraction: float = eqx.field(static=True, default=0.05)
    lr_min_ratio: float = eqx.field(static=True, default=0.0)
    max_inner_steps: int = eqx.field(static=True, default=20)
    levels_per_inner_step: int = eqx.field(static=True, default=4)
    inner_sigma_min: float = 0.002
    rho: float = eqx.field(static=True, default=7.0)

    def __check_init__(self):
        if not self.guidance_scale > 0:
            raise ValueError(f"PublishedCorrection needs guidance_scale > 0; got {self.guidance_scale}")
        check_whole("PublishedCorrection", num_updates=self.num_updates)

    def default_schedule(self, problem: InverseProblem) -> Karras:
        return Karras(80, 0.002, 80.0, 7.0)

    def start(self, key: Key, problem: InverseProblem, num_particles: int, sigma) -> Ensemble:
        location = problem.prior.location
        return sigma * jr.normal(key, (num_particles, problem.dim), location.dtype)

    def init(self, problem: InverseProblem, x: Ensemble) -> None:
        return None

    def is_guided(self, index, num_steps: int):
        """Whether a level is guided: ``start N < i < N - int(stop N)``.

        Args:
            index: of the level, i.
            num_steps: number of levels, N.
        """
        first, last = self.start_fraction * num_steps, num_steps - int(self.stop_fraction * num_steps)
        return (first < index) & (index < last)

    def num_updates_at(self, index: int, num_steps: int) -> int:
        return self.num_updates if self.is_guided(index, num_steps) else 0

    def num_inner_steps(self, index, num_steps: int):
        """Euler steps from a level to noise level 0.

        Args:
            index: of the level.
            num_steps: number of levels.
        """
        return jnp.minimum(1 + (num_steps - index) // self.levels_per_inner_step, self.max_inner_steps)

    def scale(self, index, num_steps: int):
        """Step size at a level.

        Args:
            index: of the level.
            num_steps: number of levels.
        """
        if self.lr_min_ratio <= 0:
            return jnp.asarray(self.guidance_scale)
        decay = (num_steps - index) / num_steps
        return self.guidance_scale * (1 - self.lr_min_ratio) * decay + self.lr_min_ratio

    def update(self, x: Ensemble, level: Level, problem: InverseProblem, respond: Respond) -> Ensemble:
        """One ensemble Kalman update at a fixed noise level.

        Args:
            x: the ensemble, shape (particles, dim).
            level: the present noise level and the next.
            problem: the inverse problem.
            respond: simulates an ensemble and returns its working responses.
        """
        n = self.num_inner_steps(level.index, level.num_steps)
        x0 = _to_zero(problem.prior, x, level.sigma, n, self.inner_sigma_min, self.rho)
        return _kalman_step(x, respond(x0), self.scale(level.index, level.num_steps))

    def step(self, key, x, level, problem, respond, memory):
        def updates(x):
            for _ in range(self.num_updates):
                x = self.update(x, level, problem, respond)
            return x

        guided = self.is_guided(level.index, level.num_steps)
        if isinstance(guided, Tracer):
            x = jax.lax.cond(guided, updates, lambda x: x, x)
        elif guided:  # on the host the level is known
            x = updates(x)
        return _to_next_level(problem.prior, x, level.sigma, level.sigma_next), memory


@eqx.filter_jit
def _to_zero(prior, x: Ensemble, sigma, num_steps, sigma_last: float, rho: float) -> Ensemble:
    return chunked_vmap(prior, lambda x_j: euler_to_zero(prior, x_j, sigma, num_steps, sigma_last, rho), x)


@eqx.filter_jit
def _kalman_step(x: Ensemble, response: Response, scale) -> Ensemble:
    """The update of the particles that were simulated; one whose simulation failed stays, and moves no other."""
    g, y = response.prediction, response.observation
    usable = jnp.all(jnp.isfinite(g) & jnp.isfinite(y), axis=1)[:, None]
    n = jnp.maximum(jnp.sum(usable), 1)
    g, y, there = (jnp.where(usable, a, 0.0) for a in (g, y, x))
    # c is only used over its norm: in other units, by a power of two, it is the same to the last bit, and finite.
    largest = jnp.maximum(jnp.max(jnp.abs(g)), jnp.max(jnp.abs(y)))
    exponent = -jnp.frexp(largest)[1]
    g, y = jnp.ldexp(g, exponent), jnp.ldexp(y, exponent)
    e = g - y
    c = e @ _centred(g, usable, n).T / n
    norm = jnp.linalg.norm(c)
    return x - scale / jnp.where(norm > 0, norm, 1.0) * c @ _centred(there, usable, n)


def _centred(a: Float[Array, "particles _"], usable, n):
    """Minus the mean of the usable rows; the others, which are zero, stay so."""
    return jnp.where(usable, a - jnp.sum(a, axis=0, keepdims=True) / n, 0.0)


@eqx.filter_jit
def _to_next_level(prior, x: Ensemble, sigma, sigma_next) -> Ensemble:
    return chunked_vmap(prior, lambda x_j: euler_step(prior, x_j, sigma, sigma_next), x)
