"""Diffusion priors in the plane whose exact score is known, and how to train a network on their draws.

Each toy is a mixture of Gaussians: eight on a ring, or many along the arcs of two moons and of a Swiss roll, so that
the exact denoiser and density are closed forms to compare a network with.

    python -m validation.demos.toys two_moons    trains a network, and sets its draws beside exact ones
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Float

from enkg_ppl import MixturePrior
from enkg_ppl.networks import ResidualMLP
from enkg_ppl.priors import Flow, NetworkPrior, Prior
from enkg_ppl.training import train_prior

# Steps between neighbours along an arc, in standard deviations of a component: below one, the density along the
# arc is even to 1e-8.
SPACING = 0.75
NUM_EVENTS, NUM_STEPS, BATCH_SIZE = 200_000, 10_000, 512
LEVELS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0)


def ring(num: int = 8, radius: float = 2.0, sd: float = 0.2) -> MixturePrior:
    """`num` Gaussians on a circle."""
    angles = 2 * np.pi * np.arange(num) / num
    return _mixture(radius * np.stack([np.cos(angles), np.sin(angles)], axis=1), sd)


def two_moons(sd: float = 0.1) -> MixturePrior:
    """Two interleaved half circles of radius one."""
    angles = np.linspace(0, np.pi, round(np.pi / (SPACING * sd)) + 1)
    upper = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _mixture(np.concatenate([upper, np.array([1.0, 0.5]) - upper]), sd)


def swiss_roll(sd: float = 0.1) -> MixturePrior:
    """A spiral of one and a half turns, of outer radius two, with points evenly along it."""
    fine = np.linspace(1.5 * np.pi, 4.5 * np.pi, 10_000)
    curve = np.stack([fine * np.cos(fine), fine * np.sin(fine)], axis=1) * 2 / (4.5 * np.pi)
    length = np.concatenate([[0], np.cumsum(np.linalg.norm(np.diff(curve, axis=0), axis=1))])
    even = np.linspace(0, length[-1], round(length[-1] / (SPACING * sd)) + 1)
    return _mixture(np.stack([np.interp(even, length, curve[:, i]) for i in range(2)], axis=1), sd)


def _mixture(means: Float[np.ndarray, "components 2"], sd: float) -> MixturePrior:
    num = len(means)
    return MixturePrior(np.full(num, 1 / num), means, np.full(num, sd**2))


TOYS = {"ring": ring, "two_moons": two_moons, "swiss_roll": swiss_roll}


def draws(key, exact: MixturePrior, num: int) -> Float[np.ndarray, "num 2"]:
    """Exact draws."""
    return np.asarray(jax.jit(jax.vmap(exact.sample))(jr.split(key, num)))


def train(exact: MixturePrior, *, seed: int = 0, num_steps: int = NUM_STEPS, **options) -> NetworkPrior:
    """The recipe of the shipped priors: a `ResidualMLP` on 200,000 exact draws; about a minute of one CPU core."""
    key_data, key_network, key_training = jr.split(jr.key(seed), 3)
    data = draws(key_data, exact, NUM_EVENTS)
    options = {"batch_size": BATCH_SIZE, "num_steps": num_steps, "key": key_training, **options}
    return train_prior(ResidualMLP(2, key=key_network), data, **options)


def excess_error(prior: Prior, exact: MixturePrior, key, num: int = 20_000) -> dict[float, float]:
    """By noise level: ``E|D - D*|^2 / E|D* - x0|^2``, which is the relative excess of the mean squared error.

    The two are equal in expectation because D* is the conditional mean; this one has far less Monte Carlo error.
    """
    key_data, key_noise = jr.split(key)
    x0 = draws(key_data, exact, num)

    @jax.jit
    def measure(prior, exact, x0, x, sigma):
        learned, right = (jax.vmap(lambda x, p=p: p.denoise(x, sigma))(x) for p in (prior, exact))
        return jnp.sum((learned - right) ** 2) / jnp.sum((right - x0) ** 2)

    noise = np.asarray(jr.normal(key_noise, x0.shape, x0.dtype))
    return {sigma: float(measure(prior, exact, x0, x0 + sigma * noise, sigma)) for sigma in LEVELS}


def log_prob_error(prior: Prior, exact: MixturePrior, key, num: int = 1000) -> Float[np.ndarray, " num"]:
    """Log density of the flow minus the exact one, in nats, at exact draws."""
    x = jnp.asarray(draws(key, exact, num))
    flow = Flow(prior, rtol=1e-5, atol=1e-5)
    learned = jax.jit(lambda flow, x: jax.vmap(flow.log_prob)(x))(flow, x)
    return np.asarray(learned - jax.vmap(exact.log_prob)(x))


def flow_draws(prior: Prior, key, num: int) -> Float[np.ndarray, "num 2"]:
    """Draws of a prior through its probability flow, solved adaptively."""
    z = jr.normal(key, (num, prior.dim))
    return np.asarray(jax.jit(lambda flow, z: jax.vmap(flow.forward)(z))(Flow(prior), z))
