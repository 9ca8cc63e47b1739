"""The prior's probability-flow ODE: from standard-normal z to x and back, to a tolerance, and the prior's density.

With noise levels as time (Karras et al. 2022, eq. 4 with s = 1) the flow is ``dx/dsigma = (x - D(x, sigma)) / sigma``.
It is solved in ``log sigma`` for ``u = (x - location) / sqrt(sigma^2 + scale^2)``, which stays of order one from the
largest noise level to the smallest, so that one tolerance fits the whole path.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from enkg_ppl._checks import check_whole
from enkg_ppl.priors._base import Prior
from enkg_ppl.types import Key, Scalar, Vector

if TYPE_CHECKING:
    import diffrax

# The divergence of few dimensions joins the flow's ODE: a product with the Jacobian for every dimension and evaluation,
# of which there are some 350. Of more dimensions it is integrated along the path by Gauss-Legendre at so many noise
# levels, which resolve what an adaptive path resolves (mixtures of narrow components in 40 dimensions: the same error,
# 4e-4 nats; 64 levels: .02). Exact up to the second bound: a value of a small network then costs 0.2 s of a processor
# (0.01 s at 32 dimensions, 0.5 s at 256, 2.5 s at 512; 16 random signs a level 0.05 to 0.12 s).
JOINT_DIVERGENCE_DIM, EXACT_DIVERGENCE_DIM = 32, 128
DIVERGENCE_LEVELS = 256
# Directions that go through the Jacobian at a time, to bound memory.
DIRECTIONS_AT_A_TIME = 16
# Largest / smallest noise level over the prior's scale: the start is Gaussian to (1/200)^2, and features 1e-3 of
# the prior's widest direction are still resolved at the end.
SIGMA_MAX_OVER_SCALE = 200.0
SIGMA_MIN_OVER_SCALE = 1e-4


def euler_step(prior: Prior, x: Vector, sigma: Scalar, sigma_next: Scalar) -> Vector:
    """One Euler step of the probability-flow ODE for one particle, ``sigma > 0`` to ``sigma_next >= 0``."""
    slope = (x - prior.denoise(x, sigma)) / sigma
    return x + (sigma_next - sigma) * slope


def euler_to_zero(prior: Prior, x: Vector, sigma: Scalar, num_steps, sigma_last: float, rho: float) -> Vector:
    """Map one particle from ``sigma`` to noise level 0 by Euler steps; ``num_steps`` may be traced.

    The inner grid is Karras' from ``sigma`` down to ``sigma_last``, then 0; one step is the denoiser itself.
    """
    high, low = sigma ** (1 / rho), sigma_last ** (1 / rho)

    def level(k):
        ramp = k / jnp.maximum(num_steps - 1, 1)
        return jnp.where(k < num_steps, (high + ramp * (low - high)) ** rho, 0.0)

    return jax.lax.fori_loop(0, num_steps, lambda k, x: euler_step(prior, x, level(k), level(k + 1)), x)


def _diffrax():
    """Imported where a flow is first solved: models with priors in closed form never do."""
    with jax.ensure_compile_time_eval():  # whatever arrays it makes must not be part of a program that is being traced
        import diffrax
    return diffrax


class Flow(eqx.Module):
    """The probability-flow ODE of a prior, solved to a tolerance: it maps ``z ~ N(0, I)`` to ``x ~ prior`` and back.

    `Prior.decode` approximates it in a fixed number of steps, and it gives the density of a prior without a closed
    form. Every method takes ONE particle; use `jax.vmap` for ensembles.

    Attributes:
        prior: whose denoiser drives the flow.
        sigma_max: noise level where the flow starts, in units of x (default: 200 times the prior's scale).
        sigma_min: noise level where the flow ends, in units of x (default: 1e-4 times the prior's scale). The noise
            that remains there is part of the map, and makes `inverse` the exact inverse of `forward`.
        num_steps: None for adaptive steps, or a fixed number of steps of the solver for speed.
        rtol: relative tolerance of adaptive steps (default 1e-6 with 64-bit floats, 1e-4 with 32-bit).
        atol: absolute tolerance of adaptive steps (default as `rtol`).
        max_steps: largest number of adaptive steps.
        solver: of diffrax (default `diffrax.Tsit5()`).
        adjoint: how diffrax differentiates the solve. The default, `diffrax.RecursiveCheckpointAdjoint()`, supports
            reverse mode (what NUTS uses); pass `diffrax.ForwardMode()` for forward mode.
    """

    prior: Prior
    sigma_max: float | None = None
    sigma_min: float | None = None
    num_steps: int | None = eqx.field(static=True, default=None)
    rtol: float | None = eqx.field(static=True, default=None)
    atol: float | None = eqx.field(static=True, default=None)
    max_steps: int = eqx.field(static=True, default=4096)
    solver: diffrax.AbstractSolver | None = None
    adjoint: diffrax.AbstractAdjoint | None = None

    def __check_init__(self):
        if self.num_steps is not None:
            check_whole("Flow", 1, ", or None (adaptive)", num_steps=self.num_steps)

    def _log_levels(self):
        scale = self.prior.scale
        high = SIGMA_MAX_OVER_SCALE * scale if self.sigma_max is None else self.sigma_max
        low = SIGMA_MIN_OVER_SCALE * scale if self.sigma_min is None else self.sigma_min
        return jnp.log(low), jnp.log(high)

    def _width(self, log_sigma):
        return jnp.sqrt(jnp.exp(2 * log_sigma) + self.prior.scale**2)

    def _velocity(self, log_sigma, u: Vector) -> Vector:
        """du / dlog(sigma)."""
        sigma, width = jnp.exp(log_sigma), self._width(log_sigma)
        x = self.prior.location + width * u
        return (x - self.prior.denoise(x, sigma)) / width - u * (sigma / width) ** 2

    def _solve(self, field, start, end, y0, levels=None) -> Any:
        """The state at `end`, or at every one of `levels`."""
        diffrax = _diffrax()
        tolerance = 1e-6 if jnp.finfo(jax.tree.leaves(y0)[0].dtype).bits == 64 else 1e-4
        if self.num_steps is None:
            controller = diffrax.PIDController(
                rtol=tolerance if self.rtol is None else self.rtol,
                atol=tolerance if self.atol is None else self.atol,
            )
            dt0, max_steps = None, self.max_steps
        else:
            controller, dt0, max_steps = diffrax.ConstantStepSize(), (end - start) / self.num_steps, self.num_steps + 1
        solution = diffrax.diffeqsolve(
            diffrax.ODETerm(field),
            diffrax.Tsit5() if self.solver is None else self.solver,
            start,
            end,
            dt0,
            y0,
            stepsize_controller=controller,
            max_steps=max_steps,
            saveat=diffrax.SaveAt(t1=True) if levels is None else diffrax.SaveAt(ts=levels),
            adjoint=diffrax.RecursiveCheckpointAdjoint() if self.adjoint is None else self.adjoint,
        )
        return jax.tree.map(lambda leaf: leaf[-1], solution.ys) if levels is None else solution.ys

    def forward(self, z: Vector) -> Vector:
        """Map ``z ~ N(0, I)`` to ``x ~ prior``.

        Args:
            z: shape (dim,).
        """
        low, high = self._log_levels()
        u = self._solve(lambda t, u, _: self._velocity(t, u), high, low, z)
        return self.prior.location + self._width(low) * u

    def inverse(self, x: Vector) -> Vector:
        """Map x to its z, the inverse of `forward`.

        Args:
            x: latent vector, shape (dim,).
        """
        low, high = self._log_levels()
        u = (x - self.prior.location) / self._width(low)
        return self._solve(lambda t, u, _: self._velocity(t, u), low, high, u)

    def log_prob(
        self,
        x: Vector,
        *,
        key: Key | None = None,
        divergence: Literal["exact", "hutchinson"] | None = None,
        num_probes: int = 1,
    ) -> Scalar:
        """Log density of x in nats by the instantaneous change of variables.

        Args:
            x: latent vector, shape (dim,).
            key: random key, for "hutchinson".
            divergence: "exact" (trace of the Jacobian, `dim` products with it at every noise level) or "hutchinson"
                (unbiased; vectors of random signs at each of 256 noise levels); the default is exact up to 128
                dimensions.
            num_probes: vectors of random signs at each noise level.

        Raises:
            ValueError: where Hutchinson's estimate is asked for without a key.

        Source: Chen et al., arXiv 1806.07366, theorem 1; Grathwohl et al., arXiv 1810.01367, eq. 8 (Hutchinson).
        """
        return self.log_prob_and_error(x, key=key, divergence=divergence, num_probes=num_probes)[0]

    def log_prob_and_error(
        self,
        x: Vector,
        *,
        key: Key | None = None,
        divergence: Literal["exact", "hutchinson"] | None = None,
        num_probes: int = 1,
    ) -> tuple[Scalar, Scalar]:
        """`log_prob`, and its standard error due to the random signs: 0 of an exact one, NaN of one probe.

        The error has no derivative.

        Args:
            x: latent vector, shape (dim,).
            key: random key, for "hutchinson".
            divergence: as for `log_prob`.
            num_probes: vectors of random signs at each noise level.
        """
        if divergence is None:
            divergence = "exact" if self.prior.dim <= EXACT_DIVERGENCE_DIM else "hutchinson"
        if divergence not in ("exact", "hutchinson"):
            raise ValueError(f"Flow.log_prob needs divergence 'exact' or 'hutchinson'; got {divergence!r}")
        probes = None
        if divergence == "hutchinson":
            if key is None:
                raise ValueError("Flow.log_prob needs key= for Hutchinson's estimate of the divergence")
            probes = key, num_probes
        low, high = self._log_levels()
        width = self._width(low)
        u = (x - self.prior.location) / width
        if divergence == "exact" and self.prior.dim <= JOINT_DIVERGENCE_DIM:
            z, log_expansion = self._solve(self._joint_field, low, high, (u, jnp.zeros((), x.dtype)))
            error = jnp.zeros((), x.dtype)
        else:
            z, log_expansion, error = self._expansion_along_path(low, high, u, probes)
        log_normal = -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi))
        return log_normal + log_expansion - self.prior.dim * jnp.log(width), error

    def _joint_field(self, t, state, _):
        u, _ = state
        velocity, jvp = jax.linearize(lambda u: self._velocity(t, u), u)
        return velocity, jnp.trace(jax.vmap(jvp)(jnp.eye(self.prior.dim, dtype=u.dtype)))

    def _expansion_along_path(self, low, high, u: Vector, probes: tuple[Key, int] | None):
        """z of one u, the integral of the velocity's divergence over the noise levels, and its standard error.

        Signs are drawn anew at every level, so that their errors average over the levels: a single draw for all of them
        has an error several times larger for as many products. (Hutch++ with as many products is worse still on
        correlated Gaussians: what it projects out of a Jacobian that is nearly the identity spoils the rest, of which
        random signs are exact.)
        """
        dim = self.prior.dim
        nodes, weights = np.polynomial.legendre.leggauss(DIVERGENCE_LEVELS)
        levels = low + (high - low) * jnp.asarray(0.5 * (nodes + 1), u.dtype)
        weights = (high - low) * jnp.asarray(0.5 * weights, u.dtype)
        path = self._solve(
            lambda t, u, _: self._velocity(t, u), low, high, u, jnp.append(levels, jnp.asarray(high, u.dtype))
        )
        key, count = probes or (jr.key(0), dim)
        at_a_time = min(self.prior.chunk_size or DIRECTIONS_AT_A_TIME, DIRECTIONS_AT_A_TIME, count)

        @functools.partial(jax.checkpoint, prevent_cse=False)  # a gradient keeps the path alone, as in `_multistep`
        def level(sums, inputs):
            t, u, weight, key = inputs
            _, jvp = jax.linearize(lambda u: self._velocity(t, u), u)
            if probes is None:
                directions = jnp.eye(dim, dtype=u.dtype)
            else:
                directions = jr.rademacher(key, (count, dim), u.dtype)
            blank = -count % at_a_time
            blocks = jnp.pad(directions, ((0, blank), (0, 0))).reshape(-1, at_a_time, dim)
            products = jax.lax.map(lambda block: jnp.sum(block * jax.vmap(jvp)(block), axis=1), blocks)
            products = products.reshape(-1)[:count]
            if probes is None:
                step = weight * jnp.sum(products), jnp.zeros_like(weight)
            else:
                spread = jnp.var(products, ddof=1) if count > 1 else jnp.nan
                # Without a derivative: that of one sign's NaN would reach the log density's.
                step = weight * jnp.mean(products), jax.lax.stop_gradient(weight**2 * spread / count)
            return (sums[0] + step[0], sums[1] + step[1]), None

        start = jnp.zeros((), u.dtype), jnp.zeros((), u.dtype)
        inputs = (levels, path[:-1], weights, jr.split(key, DIVERGENCE_LEVELS))
        (log_expansion, variance), _ = jax.lax.scan(level, start, inputs)
        return path[-1], log_expansion, jax.lax.stop_gradient(jnp.sqrt(variance))
