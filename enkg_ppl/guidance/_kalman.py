"""A guided flow that is consistent: the Kalman update of a conditional draw, then fresh noise.

At noise level sigma every particle draws ``z ~ p(x0 | x_sigma)``, is simulated there, and is updated by the Kalman
filter with perturbed observations (Burgers, van Leeuwen & Evensen 1998, eq. 13):

    x0' = z + C A (A^T C A + S + Gamma)^-1 (y + eta - G(z)),     x_next = x0' + sigma_next eps,

where C is the covariance of ``p(x0 | x_sigma)``, A (dim x m) the slope of the simulator and S the variance of what the
slope does not explain. If ``x_sigma ~ p_sigma(. | y)`` and the problem is linear and Gaussian, then
``x0' ~ p(x0 | x_sigma, y)`` and ``x_next ~ p_next(. | y)`` exactly, whatever the noise level: there is no step size.

An ensemble Kalman filter would estimate ``C A`` and ``A^T C A`` from the ensemble. Here only the simulator has to be
learned, because the prior is known: ``C = sigma^2 dD/dx``, the derivative of the denoiser (Tweedie's formula, second
order: Meng et al. 2021, arXiv 2111.04726, theorem 1). So the particles may be far fewer than unknowns or data. The
slope is the one learned at earlier levels (`_slope`), which does not know this level's draws: an ensemble that is
moved by a gain fitted to itself loses spread (Houtekamer & Mitchell 1998, Mon. Wea. Rev. 126). S is measured on
draws that the slope has not seen, and is as large as the slope is wrong.
"""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._random import normals
from enkg_ppl.guidance._base import Correction, Level
from enkg_ppl.guidance._bounds import MOST, bounded
from enkg_ppl.guidance._gain import covariance_product, eigh, kalman_shift, krylov_shift
from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._slope import Pairs, judged, learn, no_pairs
from enkg_ppl.priors import GaussianPrior, Prior, chunked_vmap, in_chunks
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Karras, Schedule, VarianceExploding
from enkg_ppl.types import AnyArray, Ensemble, Key, Scalar

# Particles whose own derivatives of the denoiser are held in memory at a time.
PARTICLES_AT_A_TIME = 16
# Above twice the prior's widest direction the noise hides everything.
FIRST_LEVEL = 2.0
LEVELS_OF_FIELDS, LAST_LEVEL_OF_FIELDS = 28, 0.015
# Of a conditional draw; under the vorticity prior 8 are no better.
DRAW_STEPS_OF_FIELDS = 6
# Weight of a level's simulations when the next level's slope is fitted. A field has more unknowns than there are pairs
# and would need many levels of them, but wider ensembles bend more. Slopes that are told of the grid need fewer pairs,
# and of vorticity they miss least at .45. The one that is not predicts best where none predicts well (after a time of
# 5), and then it is the average that counts.
FORGETTING, FORGETTING_OF_FIELDS, FORGETTING_OF_FIELDS_LOCAL = 0.5, 0.8, 0.45


class KalmanCorrection(Correction):
    """Noise-aware guidance by Kalman updates of conditional draws; the default.

    Attributes:
        num_steps: noise levels of the default schedule; a level costs one forward evaluation a particle.
        last_level: smallest noise level of the default schedule, in units of the prior's widest standard deviation. For
            low noise, a nonlinear simulator and more pairs of draw and output than unknowns, 0.03 is better.
        rho: exponent of the default schedule as in `Karras`; None for levels in geometric progression, of which more
            are small.
        forgetting_factor: weight of one level's simulations when the next level's slope is fitted, in [0, 1], 1 for no
            forgetting (default 0.5; for priors of fields 0.45 for slopes fitted with the grid, and 0.8 for the one
            fitted without). Small values follow a nonlinear simulator, large ones average.
        num_draw_steps: reverse-SDE steps of a conditional draw, where the prior has none in closed form.
        max_innovation: innovations larger than this many of their own standard deviations (root mean square over the
            data) are scaled down to it, so that a strongly nonlinear simulator cannot throw particles out.
    """

    num_steps: int = eqx.field(static=True, default=20)
    last_level: float = 0.1
    rho: float | None = eqx.field(static=True, default=7.0)
    forgetting_factor: float | None = None
    num_draw_steps: int = eqx.field(static=True, default=8)
    max_innovation: float = 4.0

    def __check_init__(self):
        if not 0 < self.last_level < FIRST_LEVEL:
            raise ValueError(f"KalmanCorrection needs 0 < last_level < {FIRST_LEVEL:g}; got {self.last_level}")
        if self.forgetting_factor is not None and not 0 <= self.forgetting_factor <= 1:
            raise ValueError(
                f"KalmanCorrection needs 0 <= forgetting_factor <= 1; got forgetting_factor={self.forgetting_factor}"
            )
        if not self.max_innovation > 0:
            raise ValueError(f"KalmanCorrection needs max_innovation > 0; got {self.max_innovation}")

    @classmethod
    def for_problem(cls, problem: InverseProblem, **options) -> KalmanCorrection:
        """Noise levels that suit this problem's prior: more of them, and a smaller last one, for fields and images.

        For these there are fewer pairs of draw and output than unknowns, and a nonlinear simulator is linear only
        locally.

        Args:
            problem: the inverse problem.
            **options: attributes of the correction, in place of the choice made here.
        """
        if problem.prior.grid is not None:
            options = {
                "num_steps": LEVELS_OF_FIELDS,
                "last_level": LAST_LEVEL_OF_FIELDS,
                "rho": None,
                "num_draw_steps": DRAW_STEPS_OF_FIELDS,
                **options,
            }
        return cls(**options)

    def default_schedule(self, problem: InverseProblem) -> Schedule:
        scale = problem.prior.scale
        if self.rho is None:
            return VarianceExploding(self.num_steps, self.last_level * scale, FIRST_LEVEL * scale)
        return Karras(self.num_steps, self.last_level * scale, FIRST_LEVEL * scale, self.rho)

    def start(self, key: Key, problem: InverseProblem, num_particles: int, sigma) -> Ensemble:
        prior = problem.prior
        if not prior.has_transport:
            return _noised_prior_draws(key, prior, num_particles, sigma)
        shape, dtype = (num_particles, prior.dim), prior.location.dtype
        z, noise = (normals(k, shape, dtype) for k in jr.split(key))
        return _noised(prior, z, noise, sigma)

    def init(self, problem: InverseProblem, x: Ensemble) -> Pairs:
        x_j = jax.ShapeDtypeStruct(x.shape[1:], x.dtype)
        response = jax.eval_shape(lambda x_j: problem.likelihood.response(problem.forward(x_j)), x_j)
        m = response.prediction.shape[0]
        return no_pairs(x.shape[0], x.shape[1], m, x.dtype, problem.prior.grid)

    def num_updates_at(self, index: int, num_steps: int) -> int:
        return 1

    def slope(self, memory: Pairs) -> Float[Array, "dim m"]:
        return memory.slope

    def step(self, key, x, level: Level, problem: InverseProblem, respond, memory: Pairs):
        key_draw, key_perturb, key_noise = jr.split(key, 3)
        if isinstance(problem.prior, GaussianPrior):
            z = _conditional(problem.prior, normals(key_draw, x.shape, x.dtype), x, level.sigma)
        else:
            z = _draw(key_draw, problem.prior, x, level.sigma, self.num_draw_steps)
        responses = respond(z)
        perturbations = normals(key_perturb, responses.prediction.shape, x.dtype)
        noise = normals(key_noise, x.shape, x.dtype)
        # Not the number of levels: the program does not depend on it, and would be compiled anew for each.
        grid = problem.prior.grid
        forgetting = (FORGETTING, FORGETTING) if grid is None else (FORGETTING_OF_FIELDS, FORGETTING_OF_FIELDS_LOCAL)
        forgetting = forgetting if self.forgetting_factor is None else (self.forgetting_factor, self.forgetting_factor)
        settings, sigmas = (forgetting, self.max_innovation), (level.sigma, level.sigma_next)
        return _analyse(settings, problem.prior, x, z, responses, sigmas, memory, perturbations, noise)


# With random numbers from outside (`enkg_ppl._random`), the kernels of Gaussian priors are quick to compile.


@eqx.filter_jit
def _noised(prior: Prior, z: Ensemble, noise: Ensemble, sigma) -> Ensemble:
    """Draws of a prior with a transport, noised."""
    return chunked_vmap(prior, prior.decode, z) + sigma * noise


@eqx.filter_jit
def _conditional(prior: GaussianPrior, eps: Ensemble, x: Ensemble, sigma) -> Ensemble:
    """Draws of the conditional of a Gaussian prior given noised values x."""
    return jax.vmap(lambda eps_j, x_j: prior.conditional_decode(eps_j, x_j, sigma))(eps, x)


@eqx.filter_jit
def _noised_prior_draws(key: Key, prior, num_particles: int, sigma) -> Ensemble:
    key_draw, key_noise = jr.split(key)
    x0 = chunked_vmap(prior, lambda key: prior.rough_sample(key), jr.split(key_draw, num_particles))
    return x0 + sigma * jr.normal(key_noise, x0.shape, x0.dtype)


@eqx.filter_jit
def _draw(key: Key, prior, x: Ensemble, sigma, num_draw_steps: int) -> Ensemble:
    keys = jr.split(key, x.shape[0])
    return chunked_vmap(prior, lambda key, x_j: prior.conditional_sample(key, x_j, sigma, num_draw_steps), keys, x)


@eqx.filter_jit
def _analyse(
    settings: tuple[tuple[float, float], float],
    prior: Prior,
    x: Ensemble,
    z: Ensemble,
    responses: Response,
    sigmas: tuple[Scalar, Scalar],
    memory: Pairs,
    perturbations: Float[Array, "particles m"],
    noise: Ensemble,
):
    """The Kalman update of z and the step to the next noise level; returns it and what was learned."""
    (forgetting, max_innovation), (sigma, sigma_next) = settings, sigmas
    usable, prediction, gamma, relative, reach = bounded(responses)
    n = jnp.maximum(jnp.sum(usable), 2)
    root = jnp.sqrt(gamma)[None]
    r, q = (_centred(a, usable, n) for a in (z, prediction))
    # From here on outputs are in units of the noise.
    memory = judged(memory, r, q, root[0], n)
    A = jnp.clip(memory.slope / root, -MOST, MOST)
    S = jnp.sum((q / root - r @ A) ** 2, axis=0) / (n - 1)
    innovation = jnp.clip((responses.observation - responses.prediction) / root, -MOST, MOST)
    innovation = innovation + jnp.sqrt(relative)[:, None] * perturbations
    innovation = jnp.where(usable[:, None], innovation, 0.0)
    # What the slope misses by more than can be added to 1 would drown all other data: its unit is that miss.
    unit = jnp.where(S * jnp.finfo(S.dtype).eps > 1, jnp.sqrt(S), 1.0)
    A, S, innovation = A / unit[None], S / unit**2, innovation / unit[None]

    if prior.has_affine_denoiser:  # one covariance serves all particles
        CA = covariance_product(prior, x[0], sigma, A)
        system = (CA, *eigh(A.T @ CA + jnp.diag(S)))
        shifts = jax.vmap(lambda b, s: kalman_shift(*system, b, s, max_innovation))(innovation, relative)
    else:

        def shift(x_j, b, s):
            return krylov_shift(prior, x_j, sigma, A, S + s, b, max_innovation)

        chunk = PARTICLES_AT_A_TIME if prior.chunk_size is None else min(PARTICLES_AT_A_TIME, prior.chunk_size)
        shifts = in_chunks(chunk, shift, x, innovation, relative)
    # In units of C a shift is no larger than the innovation: what is, rounding made.
    farthest = max_innovation * len(gamma) ** 0.5 * jnp.maximum(prior.scale, sigma)
    sound = usable & (jnp.linalg.norm(shifts, axis=1) <= farthest)
    x0 = z + jnp.where(sound[:, None], shifts, 0.0)
    learned = learn(memory, r, q, usable.astype(x.dtype), forgetting[0], reach, prior.grid, forgetting[1])
    return x0 + sigma_next * noise, learned


def _centred(a: Float[AnyArray, "particles _"], usable, n):
    """Minus the mean of the usable rows; the others become zero."""
    a = jnp.where(usable[:, None], a, 0.0)
    return jnp.where(usable[:, None], a - jnp.sum(a, axis=0)[None] / n, 0.0)
