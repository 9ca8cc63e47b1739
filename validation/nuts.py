"""Ground truth by gradients: the No-U-Turn sampler on any differentiable NumPyro model."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import blackjax
import jax
import jax.numpy as jnp
import numpy as np
from blackjax.adaptation.base import get_filter_adapt_info_fn
from jax.flatten_util import ravel_pytree
from jaxtyping import Array, Float, Int, Key, PRNGKeyArray
from numpyro import handlers
from numpyro.diagnostics import effective_sample_size, split_gelman_rubin
from numpyro.infer import init_to_sample
from numpyro.infer.util import constrain_fn, potential_energy, unconstrain_fn
from scipy.optimize import minimize
from tqdm import tqdm

Samples = dict[str, np.ndarray]
Unconstrained = dict[str, Array]
LogDensity = Callable[[Unconstrained], Float[Array, ""]]


class NutsResult(NamedTuple):
    """Draws of several NUTS chains and what they cost.

    Attributes:
        samples: constrained draws of every latent and deterministic site, `(chain, draw, *site shape)`.
        num_gradient_evaluations: leapfrog steps of all chains, warm-up included, one gradient each, plus one
            at each chain's start and those of the descents to it. Chains run in lock-step, so a machine may
            have computed more.
        seconds: wall-clock time, compilation included.
        num_divergences: divergent transitions after warm-up, all chains together.
        r_hat: split R-hat of each latent site, in the site's shape.
        ess: effective number of draws of each latent site, in the site's shape.
        step_size: adapted leapfrog step, one a chain.
    """

    samples: Samples
    num_gradient_evaluations: int
    seconds: float
    num_divergences: int
    r_hat: Samples
    ess: Samples
    step_size: np.ndarray

    def flat(self) -> Samples:
        """All chains laid end to end: `(chain * draw, *site shape)` for every site."""
        return {name: draws.reshape(-1, *draws.shape[2:]) for name, draws in self.samples.items()}

    @property
    def worst_r_hat(self) -> float:
        """The largest R-hat of any scalar; above 1.01 the chains disagree. NaN where one is not defined."""
        return float(np.max([np.max(value) for value in self.r_hat.values()]))

    @property
    def smallest_ess(self) -> float:
        """The smallest effective number of draws of any scalar. NaN where one is not defined."""
        return float(np.min([np.min(value) for value in self.ess.values()]))


def nuts(
    rng_key: PRNGKeyArray,
    model: Callable[..., Any],
    *args: Any,
    num_warmup: int = 1000,
    num_samples: int = 1000,
    num_chains: int = 4,
    target_acceptance_rate: float = 0.8,
    dense_mass_matrix: bool = False,
    init_strategy: Callable[..., Any] = init_to_sample,
    num_starts: int = 100,
    num_descents: int = 0,
    progress: bool = True,
    **kwargs: Any,
) -> NutsResult:
    """Sample the posterior of a NumPyro model with BlackJAX's NUTS, as ground truth for other algorithms.

    Step size and mass matrix are adapted in Stan's windows; the chains adapt separately and run vectorised.

    Args:
        rng_key: a key, typed (`jax.random.key`) or raw.
        model: a NumPyro model with continuous latent sites and a differentiable likelihood.
        *args: positional arguments of the model.
        num_warmup: adaptation steps of each chain, not kept.
        num_samples: draws kept of each chain.
        num_chains: independent chains.
        target_acceptance_rate: what the step size aims for; nearer to 1 means smaller steps.
        dense_mass_matrix: adapt a full mass matrix (strong linear correlations) instead of a diagonal one.
        init_strategy: a NumPyro initialisation strategy, by default a prior draw.
        num_starts: how many such starts each chain tries; it runs from the most probable of them. Chains
            choose separately, so that R-hat still sees modes far apart.
        num_descents: from how many of its best starts each chain climbs to a mode first, to run from the
            highest found; against poor local modes. Not for densities without a bound (centred hierarchies).
        progress: show a bar on stderr.
        **kwargs: keyword arguments of the model.

    Returns:
        Draws, cost and convergence diagnostics.

    Raises:
        ValueError: for a count below one (four for draws, or R-hat is not defined; none for descents), for a
            discrete latent site, and when no start has finite density.

    References:
        M. D. Hoffman and A. Gelman, "The No-U-Turn Sampler: Adaptively Setting Path Lengths in Hamiltonian
        Monte Carlo", Journal of Machine Learning Research 15 (2014) 1593-1623.
    """
    _check_counts(
        num_warmup=(num_warmup, 1),
        num_samples=(num_samples, 4),
        num_chains=(num_chains, 1),
        num_starts=(num_starts, 1),
        num_descents=(num_descents, 0),
    )
    start = time.perf_counter()
    init_key, warmup_key, sample_key = jax.random.split(rng_key, 3)

    def log_density(position: Unconstrained) -> Float[Array, ""]:
        return -jnp.asarray(potential_energy(model, args, kwargs, position), float)

    def candidate(key: PRNGKeyArray) -> Unconstrained:
        seeded = handlers.substitute(handlers.seed(model, key), substitute_fn=init_strategy)
        # One precision for all: a prior of 32 bits draws in 32, and BlackJAX's steps want what they began with.
        start = unconstrain_fn(model, args, kwargs, _latent_values(seeded, args, kwargs))
        return jax.tree.map(lambda leaf: jnp.asarray(leaf, float), start)

    def constrain(position: Unconstrained) -> dict[str, Array]:
        return constrain_fn(model, args, kwargs, position, return_deterministic=True)

    keys = jax.random.split(init_key, (num_chains, num_starts))
    starts, num_search = _best_starts(keys, candidate, log_density, num_descents)
    with tqdm(total=num_warmup + num_samples, disable=not progress, desc="NUTS", unit="step") as bar:
        bar.set_postfix_str("compiling and adapting")
        states, parameters, warmup_steps = _adapt(
            warmup_key, log_density, starts, num_warmup, target_acceptance_rate, dense_mass_matrix
        )
        bar.update(num_warmup)
        positions, steps, divergent = _sample(sample_key, log_density, states, parameters, num_samples, bar)

    constrained = jax.jit(jax.vmap(jax.vmap(constrain)))(positions)
    samples = {name: np.asarray(draws) for name, draws in constrained.items()}
    latent = [name for name in samples if name in starts]
    return NutsResult(
        samples=samples,
        num_gradient_evaluations=int(np.sum(warmup_steps) + np.sum(steps)) + num_chains + num_search,
        seconds=time.perf_counter() - start,
        num_divergences=int(np.sum(divergent)),
        r_hat={name: split_gelman_rubin(samples[name]) for name in latent},
        ess={name: effective_sample_size(samples[name]) for name in latent},
        step_size=np.asarray(parameters["step_size"]),
    )


def _check_counts(**counts: tuple[int, int]) -> None:
    """Every count against the least that it may be."""
    for name, (value, least) in counts.items():
        if value < least:
            raise ValueError(f"nuts needs {name} >= {least}; got {name}={value}")


def _latent_values(seeded: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Array]:
    """Values of the latent sites in one run of a seeded model."""
    sites = handlers.trace(seeded).get_trace(*args, **kwargs)
    latent = {name: site for name, site in sites.items() if site["type"] == "sample" and not site["is_observed"]}
    discrete = [name for name, site in latent.items() if site["fn"].support.is_discrete]
    if discrete:
        raise ValueError(f"nuts needs continuous latent sites; {discrete} are discrete")
    return {name: site["value"] for name, site in latent.items()}


def _best_starts(
    keys: Key[Array, "chain start"],
    candidate: Callable[[PRNGKeyArray], Unconstrained],
    log_density: LogDensity,
    num_descents: int,
) -> tuple[Unconstrained, int]:
    """For every chain the best of its candidates, `(chain, ...)`, and the gradient evaluations that took."""
    num_kept = min(max(num_descents, 1), keys.shape[1])

    @jax.jit
    @jax.vmap
    def best(keys: Key[Array, " start"]) -> tuple[Unconstrained, Float[Array, " kept"]]:
        candidates = jax.vmap(candidate)(keys)
        density = jax.vmap(log_density)(candidates)
        density = jnp.where(jnp.isnan(density), -jnp.inf, density)
        order = jnp.argsort(-density)[:num_kept]
        return jax.tree.map(lambda leaf: leaf[order], candidates), density[order]

    candidates, density = best(keys)
    if not np.all(np.isfinite(density[:, 0])):
        raise ValueError(
            f"nuts found no start of finite posterior density in num_starts={keys.shape[1]} tries; "
            "check the model's support, or raise num_starts"
        )
    if num_descents == 0:
        return jax.tree.map(lambda leaf: leaf[:, 0], candidates), 0
    return _descend(candidates, log_density)


def _descend(candidates: Unconstrained, log_density: LogDensity) -> tuple[Unconstrained, int]:
    """The highest mode that each chain reaches from its candidates `(chain, kept, ...)`, by L-BFGS."""
    _, unravel = ravel_pytree(jax.tree.map(lambda leaf: leaf[0, 0], candidates))
    points = np.asarray(jax.vmap(jax.vmap(lambda point: ravel_pytree(point)[0]))(candidates))
    value_and_grad = jax.jit(jax.value_and_grad(lambda flat: -log_density(unravel(flat))))

    def objective(flat: Float[np.ndarray, " dim"]) -> tuple[float, Float[np.ndarray, " dim"]]:
        value, gradient = value_and_grad(jnp.asarray(flat, points.dtype))
        # Outside the support: a wall that the line search turns back from.
        finite = np.nan_to_num(np.asarray(gradient, float), posinf=0.0, neginf=0.0)
        return (float(value) if np.isfinite(value) else 1e30), finite

    searches = [[minimize(objective, point, jac=True, method="L-BFGS-B") for point in of_chain] for of_chain in points]
    modes = np.stack([min(of_chain, key=lambda found: found.fun).x for of_chain in searches])
    num_gradients = sum(found.nfev for of_chain in searches for found in of_chain)
    return jax.vmap(unravel)(jnp.asarray(modes, points.dtype)), num_gradients


def _adapt(
    rng_key: PRNGKeyArray,
    log_density: LogDensity,
    starts: Unconstrained,
    num_warmup: int,
    target_acceptance_rate: float,
    dense_mass_matrix: bool,
) -> tuple[Any, dict[str, Array], Int[np.ndarray, "chain step"]]:
    """Window adaptation of every chain: its last state, its step size and mass matrix, its leapfrog steps."""
    warmup = blackjax.window_adaptation(
        blackjax.nuts,
        log_density,
        is_mass_matrix_diagonal=not dense_mass_matrix,
        target_acceptance_rate=target_acceptance_rate,
        # Whole trajectories of the warm-up would be kept otherwise.
        adaptation_info_fn=get_filter_adapt_info_fn(info_keys={"num_integration_steps"}),
    )

    @jax.jit
    @jax.vmap
    def run(key: PRNGKeyArray, position: Unconstrained) -> tuple[Any, dict[str, Array], Array]:
        (state, parameters), info = warmup.run(key, position, num_warmup)  # pyright: ignore[reportCallIssue]
        tuned = {name: parameters[name] for name in ("step_size", "inverse_mass_matrix")}
        return state, tuned, info.info.num_integration_steps

    num_chains = jax.tree.leaves(starts)[0].shape[0]
    states, parameters, steps = run(jax.random.split(rng_key, num_chains), starts)
    return states, parameters, np.asarray(steps)


def _sample(
    rng_key: PRNGKeyArray,
    log_density: LogDensity,
    states: Any,
    parameters: dict[str, Array],
    num_samples: int,
    bar: tqdm,
    num_reports: int = 20,
) -> tuple[Unconstrained, Int[np.ndarray, "chain draw"], np.ndarray]:
    """Draws of every chain, `(chain, draw, ...)`, their leapfrog steps and whether they diverged."""
    kernel = blackjax.nuts.build_kernel()

    @jax.jit
    def step(state: Any, key: PRNGKeyArray) -> tuple[Any, tuple[Unconstrained, Array, Array]]:
        def one(key: PRNGKeyArray, state: Any, tuned: dict[str, Array]) -> tuple[Any, Any]:
            return kernel(key, state, log_density, tuned["step_size"], tuned["inverse_mass_matrix"])

        state, info = jax.vmap(one)(jax.random.split(key, num_chains), state, parameters)
        return state, (state.position, info.num_integration_steps, info.is_divergent)

    # A remainder would be compiled again as a scan of its own length: take chunks that divide the run.
    num_chains = parameters["step_size"].shape[0]
    num_chunks = max(n for n in range(1, num_reports + 1) if num_samples % n == 0)
    scan = jax.jit(lambda state, keys: jax.lax.scan(step, state, keys))
    chunks, num_divergences = [], 0
    for keys in jnp.split(jax.random.split(rng_key, num_samples), num_chunks):
        states, chunk = scan(states, keys)
        chunks.append(jax.tree.map(np.asarray, chunk))
        num_divergences += int(np.sum(chunks[-1][2]))
        bar.update(len(keys))
        bar.set_postfix_str(f"{num_divergences} divergences")
    joined = jax.tree.map(lambda *parts: np.swapaxes(np.concatenate(parts), 0, 1), *chunks)
    return joined
