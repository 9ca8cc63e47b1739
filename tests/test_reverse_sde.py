"""Draws of x0 given a noisy x from a denoiser alone: right in every direction, however small or large beside the noise.

Judged by ``E |draw - D|^2 / E |truth - D|^2``, group of directions by group, for truths of the prior.
"""

import itertools

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from bare import Bare, Correlated

from enkg_ppl import GaussianPrior, MixturePrior, load_prior
from enkg_ppl.priors import chunked_vmap, sde_sample
from enkg_ppl.priors._reverse_sde import log_variance_ratio, reverse_sde_sample, reverse_steps
from models import kolmogorov


def drawn(prior, x, sigma, num_steps, seed=3):
    keys = jr.split(jr.key(seed), len(x))
    run = jax.jit(
        lambda x, keys: chunked_vmap(
            prior, lambda x, key: reverse_sde_sample(key, prior, x, jnp.asarray(sigma, x.dtype), num_steps), x, keys
        )
    )
    return np.asarray(run(x, keys))


def denoised(prior, x, sigma):
    run = jax.jit(lambda x: chunked_vmap(prior, lambda x: prior.denoise(x, jnp.asarray(sigma, x.dtype)), x))
    return np.asarray(run(x))


def test_draws_from_nothing_are_the_priors():
    """A prior of scales from .03 to 3 from its denoiser alone, 64 steps: mean within 5 standard errors, variances."""
    mean, variances, n = np.linspace(-2.0, 2.0, 21), np.logspace(-3, 1, 21), 20_000
    prior = Bare(GaussianPrior(jnp.asarray(mean), jnp.asarray(variances)))
    draws = np.asarray(jax.jit(jax.vmap(lambda key: sde_sample(key, prior, 64)))(jr.split(jr.key(0), n)))
    assert np.all(np.abs(draws.mean(axis=0) - mean) < 5 * np.sqrt(variances / n))
    np.testing.assert_allclose(draws.var(axis=0) / variances, 1.0, atol=5 * (2 / n) ** 0.5 + 0.005)


@pytest.mark.parametrize(("num_steps", "smallest", "most"), [(4, 1e-2, 0.02), (8, 1e-4, 0.002), (16, 1e-7, 0.002)])
def test_directions_of_every_size_have_the_right_moments(num_steps, smallest, most):
    """One hundred directions from tiny to huge beside the noise, 40,000 draws: closed form, not the fit's recursion."""
    variances, n = np.logspace(np.log10(smallest), 8, 100), 40_000
    prior = GaussianPrior(jnp.zeros(100), jnp.asarray(variances))
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((n, 100)) * np.sqrt(1 + variances)[None])
    draws = drawn(prior, x, 1.0, num_steps) - denoised(prior, x, 1.0)
    sd = np.sqrt(variances / (1 + variances))
    assert np.all(np.abs(draws.mean(axis=0)) < 5 * sd * np.sqrt(1 + most) / n**0.5)
    np.testing.assert_allclose(draws.var(axis=0) / sd**2, 1.0, atol=most + 5 * (2 / n) ** 0.5)
    # What is left of x after its conditional mean is taken off is noise that x does not tell.
    assert np.abs(np.mean(draws * np.asarray(x), axis=0) / sd / np.sqrt(1 + variances)).max() < 5 * 1.1 / n**0.5


@pytest.mark.parametrize("num_steps", [3, 4, 6, 8, 12, 24, 64])
def test_steps_descend_and_are_right_where_they_are_fitted(num_steps):
    levels, weights = reverse_steps(num_steps)
    assert levels[0] == 1
    assert np.all(np.diff(levels) < 0)
    ratio = np.exp(log_variance_ratio(-np.diff(np.log(levels)), weights, np.logspace(-1, 6, 50)))
    most = {3: 0.05}.get(num_steps, 0.01)
    assert np.abs(ratio - 1).max() < most


def test_one_step_is_the_denoiser():
    prior = Correlated(3)
    x = jnp.array([0.3, -1.0, 2.0])
    got = reverse_sde_sample(jr.key(0), prior, x, jnp.asarray(0.5), 1)
    np.testing.assert_allclose(got, prior.denoise(x, jnp.asarray(0.5)), rtol=1e-12)


def test_directions_that_are_correlated():
    """The whole covariance of the draws given one x, whose Jacobian is far from diagonal."""
    prior, sigma, n = Correlated(12), 0.7, 40_000
    x = jnp.linspace(-1.0, 2.0, 12)
    draws = drawn(prior, jnp.broadcast_to(x, (n, 12)), sigma, 8)
    exact = sigma**2 * np.asarray(jax.jacfwd(prior.denoise)(x, jnp.asarray(sigma)))
    sd = np.sqrt(np.diag(exact))
    assert np.all(np.abs(draws.mean(0) - denoised(prior, x[None], sigma)[0]) < 5 * sd / n**0.5)
    assert np.abs(np.cov(draws.T) - exact).max() < (0.02 + 5 * (2 / n) ** 0.5) * exact.max()


ROOT = kolmogorov.WEIGHTS.parent
MIXTURE = MixturePrior([0.6, 0.4], [[-2.0, 0.0, 0.0], [1.5, 1.0, 0.0]], [[0.3, 1.0, 1e-3], [0.5, 0.2, 1e-3]])


@pytest.mark.parametrize("sigma", [0.1, 0.5, 1.0, 2.0, 4.0])
def test_a_mixture(sigma):
    """Not Gaussian, with one direction thirty times narrower; against truths from the closed form.

    Up to twice the prior's scale, where the guided flow begins: a step is too coarse there for two components.
    """
    n = 40_000
    truth = jax.vmap(MIXTURE.sample)(jr.split(jr.key(1), n))
    x = truth + sigma * jr.normal(jr.key(2), truth.shape)
    D = denoised(MIXTURE, x, sigma)
    right, got = (np.square(np.asarray(a) - D) for a in (truth, drawn(Bare(MIXTURE), x, sigma, 8)))
    error = 5 * (np.std(right, axis=0) + np.std(got, axis=0)) / n**0.5 / right.mean(axis=0)
    np.testing.assert_array_less(np.abs(got.mean(axis=0) / right.mean(axis=0) - 1), 0.1 + error)


def bands(fields):
    """Mean square in four bands of wave numbers, and in all; shape (fields, 5)."""
    k = kolmogorov.wave_numbers(fields.shape[-1])
    power = np.abs(np.fft.fft2(fields)) ** 2
    edges = (-1, 3.5, 7.5, 10.5, np.inf)
    one = [power[:, (k >= low) & (k < high)].sum(axis=1) for low, high in itertools.pairwise(edges)]
    return np.stack([*one, power.sum(axis=(1, 2))], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("sigma", [13.0, 5.0, 2.5, 1.0, 0.4])
def test_a_network_of_fields(sigma):
    """Eight steps against sixty-four, from the same noisy fields; a trained denoiser is no exact conditional mean, so
    that truths would judge the network as well. Errors by chance are of the differences between the fields.
    """
    prior, n = kolmogorov.load(), 48
    truth = kolmogorov.samples(prior, n, seed=5).reshape(n, -1)
    x = jnp.asarray(truth + sigma * np.random.default_rng(0).standard_normal(truth.shape), jnp.float32)
    D = denoised(prior, x, sigma)
    few, many = (bands((drawn(prior, x, sigma, k, k) - D).reshape(n, 32, 32)) for k in (8, 64))
    error = 4 * np.std(few - many, axis=0) / n**0.5 / many.mean(axis=0)
    np.testing.assert_array_less(np.abs(few.mean(axis=0) / many.mean(axis=0) - 1), [0.15] * 4 + [0.05] + error)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.5, 0.2, 0.05])
def test_a_network_of_images(share):
    prior, n = load_prior(ROOT / "digits"), 256
    sigma = share * float(prior.scale)
    truth = np.asarray(jax.jit(jax.vmap(lambda z: prior.decode(z)))(jr.normal(jr.key(5), (n, prior.dim), jnp.float32)))
    x = jnp.asarray(truth + sigma * np.random.default_rng(0).standard_normal(truth.shape), jnp.float32)
    D = denoised(prior, x, sigma)
    few, many = (np.sum((drawn(prior, x, sigma, k, k) - D) ** 2, axis=1) for k in (8, 64))
    assert abs(few.mean() / many.mean() - 1) < 0.05 + 4 * np.std(few - many) / n**0.5 / many.mean()
