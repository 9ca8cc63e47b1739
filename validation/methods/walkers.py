"""emcee's affine-invariant ensemble sampler, an optional peer."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp
import numpy as np

from validation.methods._base import Method, Result, kept
from validation.methods._latent import Latent
from validation.target import Target

NUM_WALKERS, WALKERS_PER_DIM = 100, 4
EVALUATIONS_PER_DRAW = 200


def run(target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None) -> Result:
    """Stretch moves (emcee's default) over z, from its prior N(0, I).

    100 walkers, or four a dimension where that is more; the first half of the steps is burn-in; the draws are taken
    at equal distances from the rest. `budget`: 200 evaluations a draw by default.

    Raises `RuntimeError` where emcee is not installed.

    Source: Foreman-Mackey et al., arXiv 1202.3665.
    """
    try:
        import emcee  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError("method 'emcee' needs the package emcee: pip install emcee") from None

    start = time.perf_counter()
    latent = Latent(target)
    num_walkers = 2 * (max(NUM_WALKERS, WALKERS_PER_DIM * latent.dim) // 2)

    @jax.jit
    @jax.vmap
    def log_density(z):
        return latent.log_prior(z) + latent.log_likelihood(z)

    def vectorised(z: np.ndarray) -> np.ndarray:
        # In one shape, that of half the walkers or of all at the start: each new one would be compiled.
        return np.asarray(log_density(z))

    sampler = emcee.EnsembleSampler(num_walkers, latent.dim, vectorised, vectorize=True)
    sampler.random_state = np.random.RandomState(seed).get_state()
    steps = max(2, (EVALUATIONS_PER_DRAW * num_draws if budget is None else budget) // num_walkers)
    sampler.run_mcmc(np.asarray(latent.prior_draws(seed, num_walkers)), steps, progress=progress)
    chains = np.swapaxes(np.asarray(sampler.get_chain(discard=steps // 2)), 0, 1)
    draws = latent.flatten(jnp.asarray(kept(chains, num_draws)))
    return Result(draws, latent.count, 0, time.perf_counter() - start)


METHODS = [
    Method("emcee", "emcee's stretch moves, z from its prior (pip install emcee)", run),
]
