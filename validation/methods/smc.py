"""BlackJAX's adaptive tempered sequential Monte Carlo with random-walk moves."""

from __future__ import annotations

import time

import blackjax
import jax
import jax.numpy as jnp
from blackjax.smc import adaptive_tempered, resampling
from tqdm import tqdm

from validation.methods._base import Method, Result
from validation.methods._latent import Latent
from validation.target import Target

TARGET_ESS = 0.5
NUM_STEPS = 20
# Scale of a random walk in d dimensions, over the square root of d (Roberts, Gelman & Gilks 1997).
OPTIMAL_SCALE = 2.38
# For a budget: temperatures expected, and evaluations that BlackJAX makes at each beside those of the moves.
EXPECTED_TEMPERATURES, EXTRA = 10, 3
MAX_TEMPERATURES = 200


def run(target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None) -> Result:
    """As many particles as draws, from the prior N(0, I) over z.

    At each temperature, 20 Metropolis steps whose proposal has ``2.38^2 / d`` times the particles' covariance; the
    next temperature halves the effective sample size. After the last, particles are resampled and moved once more.
    `budget` sets the number of Metropolis steps, on the guess that there are ten temperatures.
    """
    start = time.perf_counter()
    latent = Latent(target)
    num_steps = NUM_STEPS
    if budget is not None:
        num_steps = max(1, round(budget / (num_draws * (EXPECTED_TEMPERATURES + 1))) - EXTRA)
    walk = blackjax.additive_step_random_walk.build_kernel()

    def move(key, state, log_density, root):
        return walk(key, state, log_density, lambda key, z: root @ jax.random.normal(key, z.shape, z.dtype))

    kernel = adaptive_tempered.build_kernel(
        latent.log_prior,
        latent.log_likelihood,
        move,
        blackjax.additive_step_random_walk.init,
        resampling.systematic,
        TARGET_ESS,
    )

    @jax.jit
    def advance(key, state):
        covariance = jnp.atleast_2d(jnp.cov(state.particles, rowvar=False, aweights=state.weights))
        jitter = 1e-9 * jnp.mean(jnp.diagonal(covariance)) * jnp.eye(latent.dim)
        root = OPTIMAL_SCALE / latent.dim**0.5 * jnp.linalg.cholesky(covariance + jitter)
        state, info = kernel(key, state, num_steps, {"root": root[None]})
        return state, info.log_likelihood_increment

    key_start, key_run = jax.random.split(jax.random.key(seed))
    particles = jax.random.normal(key_start, (num_draws, latent.dim))
    state = adaptive_tempered.init(particles)
    # A typed zero: the Python number that BlackJAX starts from would be compiled separately.
    state = state._replace(tempering_param=jnp.zeros(()))
    log_evidence, said = 0.0, []
    with tqdm(total=1.0, disable=not progress, bar_format="SMC {percentage:3.0f}% |{bar:32}| {elapsed} {desc}") as bar:
        for _ in range(MAX_TEMPERATURES):
            last = float(state.tempering_param) >= 1
            key_run, key = jax.random.split(key_run)
            state, increment = advance(key, state)
            log_evidence += float(increment)
            bar.set_description_str(f"{latent.count:,} evaluations", refresh=False)
            bar.n = float(state.tempering_param)
            bar.refresh()
            if last:
                break
        else:
            said.append(f"SMC was stopped after {MAX_TEMPERATURES} steps at temperature {bar.n:.3g}, where 1 is due")
    return Result(
        draws=latent.flatten(jnp.asarray(state.particles)),
        num_forward_evaluations=latent.count,
        num_gradients=0,
        seconds=time.perf_counter() - start,
        log_evidence=log_evidence,
        warnings=said,
    )


METHODS = [
    Method(
        "smc",
        f"BlackJAX adaptive_tempered_smc over z, {NUM_STEPS} random-walk steps with 2.38^2 / d times the covariance",
        run,
    )
]
