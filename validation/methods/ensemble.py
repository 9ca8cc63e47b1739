"""NumPyro's ensemble samplers: affine-invariant moves (AIES) and ensemble slices (ESS)."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
from numpyro import handlers
from numpyro.infer import AIES, ESS, MCMC
from numpyro.infer.util import constrain_fn, initialize_model

from validation.methods._base import Counter, Method, Result, kept
from validation.methods._latent import Latent
from validation.target import Draws, Target, flatten

NUM_WALKERS, WALKERS_PER_DIM = 100, 4
EVALUATIONS_PER_DRAW = 200
# Evaluations that a walker's step takes, to plan with (the true number is counted): AIES evaluates the place where a
# walker is, again, and the place proposed; the slices of ESS go on for all walkers until the last one is done.
AIES_COST, ESS_COST = 2, 24


def run(
    target: Target,
    seed: int,
    num_draws: int,
    progress: bool,
    *,
    budget: int | None = None,
    kernel: Callable[..., Any],
    cost: int,
) -> Result:
    """``MCMC(kernel(model), chain_method="vectorized")`` with NumPyro's own moves and start.

    100 walkers, or four a dimension where that is more; the first half of the steps is warm-up; the draws are taken
    at equal distances from the rest. Works in NumPyro's unconstrained space, from `init_to_uniform`, as NumPyro does;
    an `InverseProblem` is sampled in z from its prior. `budget`: 200 evaluations a draw by default.
    """
    start = time.perf_counter()
    space = _Model(target) if target.model is not None else _Problem(target)
    num_walkers = 2 * (max(NUM_WALKERS, WALKERS_PER_DIM * space.dim(seed)) // 2)
    steps = (EVALUATIONS_PER_DRAW * num_draws if budget is None else budget) // (num_walkers * cost)
    num_samples = max(1, steps // 2)
    mcmc = MCMC(
        kernel(potential_fn=space.potential),
        num_warmup=max(1, steps - num_samples),
        num_samples=num_samples,
        num_chains=num_walkers,
        chain_method="vectorized",
        progress_bar=progress,
    )
    key_start, key = jax.random.split(jax.random.key(seed))
    mcmc.run(key, init_params=space.start(key_start, num_walkers))
    chains = jax.tree.map(np.asarray, mcmc.get_samples(group_by_chain=True))
    # Tree by tree: every leaf is thinned alike.
    z = jax.tree.map(lambda a: kept(a.reshape(*a.shape[:2], -1), num_draws).reshape(-1, *a.shape[2:]), chains)
    draws = space.flatten(z)
    return Result(draws, space.count, 0, time.perf_counter() - start)


class _Model:
    """A NumPyro model in NumPyro's unconstrained space; counts every run of it."""

    def __init__(self, target: Target):
        self._target = target
        self._counter = Counter()
        self._args, self._kwargs = target.args, dict(target.kwargs)

    @property
    def count(self) -> int:
        return self._counter.count

    def _counted(self, *args, **kwargs):
        assert self._target.model is not None
        with handlers.trace() as trace:
            self._target.model(*args, **kwargs)
        latent = next(s for s in trace.values() if s["type"] == "sample" and not s["is_observed"])
        numpyro.factor("_count", self._counter(jnp.asarray(latent["value"], float)))

    def _initialise(self, key, model):
        return initialize_model(
            key, model, model_args=self._args, model_kwargs=self._kwargs, dynamic_args=False, validate_grad=False
        )

    def dim(self, seed: int) -> int:
        def latent():
            seeded = handlers.seed(self._target.model, jax.random.key(seed))
            trace = handlers.trace(seeded).get_trace(*self._args, **self._kwargs)
            return [s["value"] for s in trace.values() if s["type"] == "sample" and not s["is_observed"]]

        return sum(int(np.prod(value.shape)) for value in jax.eval_shape(latent))  # without calling a simulator

    def start(self, key, num_walkers: int):
        info = self._initialise(jax.random.split(key, num_walkers), self._counted)
        self._potential = info.potential_fn
        return info.param_info.z

    def potential(self, z):
        return self._potential(z)

    def flatten(self, z) -> Draws:
        constrain = functools.partial(
            constrain_fn, self._target.model, self._args, self._kwargs, return_deterministic=True
        )
        return flatten(jax.jit(jax.vmap(constrain))(z), self._target.sites)


class _Problem:
    """An inverse problem in z."""

    def __init__(self, target: Target):
        self._latent = Latent(target)

    @property
    def count(self) -> int:
        return self._latent.count

    def dim(self, seed: int) -> int:
        return self._latent.dim

    def start(self, key, num_walkers: int):
        return jax.random.normal(key, (num_walkers, self._latent.dim))

    def potential(self, z):
        return -self._latent.log_prior(z) - self._latent.log_likelihood(z)

    def flatten(self, z) -> Draws:
        return self._latent.flatten(z)


METHODS = [
    Method(
        "aies",
        "NumPyro AIES (differential evolution), vectorised walkers, NumPyro's unconstrained space",
        functools.partial(run, kernel=AIES, cost=AIES_COST),
    ),
    Method(
        "ess",
        "NumPyro ESS (differential slices), vectorised walkers, NumPyro's unconstrained space",
        functools.partial(run, kernel=ESS, cost=ESS_COST),
    ),
]
