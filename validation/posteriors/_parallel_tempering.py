"""Parallel tempering with elliptical slices: long exact chains for Gaussian priors whose posterior has many modes."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from blackjax.mcmc import elliptical_slice
from jaxtyping import Array, ArrayLike, Float, PRNGKeyArray


def exchange(
    key: PRNGKeyArray,
    z: Float[Array, "temperature dim"],
    log_likelihood: Float[Array, " temperature"],
    betas: Float[Array, " temperatures"],
    parity: Array,
) -> tuple[Float[Array, "temperature dim"], Array]:
    """Exchanges of neighbours, pairs (0, 1), (2, 3), ... where `parity` is 0; returns z and who moved."""
    index = jnp.arange(len(betas))
    partner = jnp.where((index - parity) % 2 == 0, index + 1, index - 1)
    partner = jnp.where((partner < 0) | (partner >= len(betas)), index, partner)
    log_ratio = (betas - betas[partner]) * (log_likelihood[partner] - log_likelihood)
    # Both of a pair must see the same number.
    number = jax.random.uniform(key, (len(betas),))[jnp.minimum(index, partner)]
    accepted = (jnp.log(number) < log_ratio) & (partner != index)
    return z[jnp.where(accepted, partner, index)], accepted


def parallel_tempering(
    rng_key: PRNGKeyArray,
    log_likelihood: Callable[[Float[Array, " dim"]], Float[Array, ""]],
    root: Float[ArrayLike, "dim dim"],
    betas: Float[ArrayLike, " temperatures"],
    *,
    num_ladders: int,
    num_warmup: int,
    num_samples: int,
    thinning: int,
) -> tuple[Float[np.ndarray, "ladder draw dim"], Float[np.ndarray, " gaps"]]:
    """Draws from ``N(x; 0, root root^T) L(x)``, and the acceptance rate of exchanges between neighbours.

    A round: two elliptical slices of ``L^beta`` at every temperature, then exchanges between neighbours, even pairs and
    odd pairs in turn. `betas` rise from 0, where x is drawn afresh from the prior every round, to 1. Ladders are
    independent of each other.

    Sources: Murray, Adams & MacKay, arXiv 1001.0175 (the slices, as BlackJAX has them); Syed, Bouchard-Cote,
    Deligiannidis & Doucet, arXiv 1905.02939 (why in turn).
    """
    root, betas = jnp.asarray(root), jnp.asarray(betas)
    dim, num_temperatures = len(root), len(betas)
    # In whitened coordinates, so that no factor is taken again.
    kernel = elliptical_slice.build_kernel(jnp.eye(dim), jnp.zeros(dim))

    def log_density(z: Float[Array, " dim"]) -> Float[Array, ""]:
        return log_likelihood(root @ z)

    def move(key: PRNGKeyArray, z: Float[Array, " dim"], beta: Float[Array, ""]) -> Float[Array, " dim"]:
        def tempered(z):
            return beta * log_density(z)

        key_fresh, *keys = jax.random.split(key, 3)
        state = elliptical_slice.init(z, tempered)
        for key_slice in keys:
            state, _ = kernel(key_slice, state, tempered)
        return jnp.where(beta == 0, jax.random.normal(key_fresh, z.shape), jnp.asarray(state.position))

    @jax.vmap
    def round_of_one(key: PRNGKeyArray, z: Float[Array, "temperature dim"], parity: Array):
        key_move, key_exchange = jax.random.split(key)
        z = jax.vmap(move)(jax.random.split(key_move, num_temperatures), z, betas)
        return exchange(key_exchange, z, jax.vmap(log_density)(z), betas, parity)

    def one_round(carry, _):
        key, z, count, accepted = carry
        key, key_round = jax.random.split(key)
        parity = jnp.full(num_ladders, count % 2)
        z, now = round_of_one(jax.random.split(key_round, num_ladders), z, parity)
        return (key, z, count + 1, accepted + now.mean(axis=0)), None

    def one_draw(carry, _):
        carry, _ = jax.lax.scan(one_round, carry, None, length=thinning)
        return carry, carry[1][:, -1]

    @jax.jit
    def chain(key):
        key, key_start = jax.random.split(key)
        z = jax.random.normal(key_start, (num_ladders, num_temperatures, dim))
        carry = (key, z, jnp.asarray(0), jnp.zeros(num_temperatures))
        carry, _ = jax.lax.scan(one_draw, carry, None, length=max(1, num_warmup // thinning))
        carry = (*carry[:2], jnp.asarray(0), jnp.zeros(num_temperatures))
        (_, _, count, accepted), draws = jax.lax.scan(one_draw, carry, None, length=num_samples)
        # The coldest has a partner every other round.
        return draws @ root.T, 2 * accepted / count

    draws, accepted = chain(rng_key)
    # Every temperature counts both its gaps; take them apart from the cold end.
    gaps = np.zeros(num_temperatures - 1)
    gaps[-1] = accepted[-1]
    for i in range(num_temperatures - 2, 0, -1):
        gaps[i - 1] = accepted[i] - gaps[i]
    return np.swapaxes(np.asarray(draws), 0, 1), gaps
