"""Every prior keeps its contract: denoiser, conditional draws, sampler and density agree with SciPy's densities."""

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.fft import dct, idct
from scipy.stats import multivariate_normal

from enkg_ppl import GaussianPrior, MixturePrior

RNG = np.random.default_rng(0)
DIM = 4
MEAN = RNG.normal(size=DIM)
VARIANCES = np.array([0.3, 1.0, 2.0, 0.1])
FACTOR = RNG.normal(size=(DIM, DIM))
COVARIANCE = FACTOR @ FACTOR.T + 0.2 * np.eye(DIM)
DCT = dct(np.eye(DIM), norm="ortho", axis=0)
WEIGHTS = np.array([0.5, 0.2, 0.3])
MEANS = 2 * RNG.normal(size=(3, DIM))
COVARIANCES = np.stack([COVARIANCE, np.eye(DIM), np.diag(VARIANCES)])
SIGMA = 0.7

# A new prior adds a line: the prior, and its components (weights, means, covariances) for the oracle.
PRIORS = {
    "gaussian-diagonal": (
        GaussianPrior(jnp.asarray(MEAN), jnp.asarray(VARIANCES)),
        ([1.0], [MEAN], [np.diag(VARIANCES)]),
    ),
    "gaussian-full": (GaussianPrior.full(MEAN, COVARIANCE), ([1.0], [MEAN], [COVARIANCE])),
    "gaussian-eigenbasis": (
        GaussianPrior(
            jnp.asarray(MEAN), jnp.asarray(VARIANCES), lambda v: jnp.asarray(DCT) @ v, lambda v: jnp.asarray(DCT.T) @ v
        ),
        ([1.0], [MEAN], [idct(np.diag(VARIANCES) @ DCT, norm="ortho", axis=0)]),
    ),
    "mixture-isotropic": (
        MixturePrior(WEIGHTS, MEANS, [0.5, 1.0, 0.2]),
        (WEIGHTS, MEANS, [v * np.eye(DIM) for v in (0.5, 1.0, 0.2)]),
    ),
    "mixture-full": (MixturePrior.full(WEIGHTS, MEANS, COVARIANCES), (WEIGHTS, MEANS, COVARIANCES)),
}
each_prior = pytest.mark.parametrize(("prior", "components"), PRIORS.values(), ids=PRIORS)
POINT = jnp.asarray(MEAN + 0.8)


def density(components, x, sigma=0.0):
    noise = sigma**2 * np.eye(DIM)
    return sum(w * multivariate_normal(m, c + noise).pdf(x) for w, m, c in zip(*components, strict=True))


@each_prior
def test_log_prob_is_scipys(prior, components):
    np.testing.assert_allclose(prior.log_prob(POINT), np.log(density(components, POINT)), rtol=1e-10)


@each_prior
def test_denoiser_is_tweedies_formula(prior, components):
    """D = x + sigma^2 grad log p_sigma, the gradient by central differences of SciPy's density."""
    step = 1e-5 * np.eye(DIM)
    up = np.log(density(components, np.asarray(POINT) + step, SIGMA))
    down = np.log(density(components, np.asarray(POINT) - step, SIGMA))
    np.testing.assert_allclose(prior.denoise(POINT, SIGMA), POINT + SIGMA**2 * (up - down) / 2e-5, rtol=1e-6, atol=1e-7)


@each_prior
def test_conditional_draws_have_the_conditionals_moments(prior, components):
    """Mean D(x) and covariance sigma^2 dD/dx, within five Monte Carlo standard errors of 20,000 draws."""
    n = 20_000
    keys = jr.split(jr.key(1), n)
    draws = np.asarray(jax.jit(jax.vmap(lambda k: prior.conditional_sample(k, POINT, SIGMA)))(keys))
    covariance = SIGMA**2 * np.asarray(jax.jacfwd(prior.denoise)(POINT, SIGMA))
    sd = np.sqrt(np.diag(covariance))
    np.testing.assert_allclose(draws.mean(0), prior.denoise(POINT, SIGMA), atol=5 * sd.max() / n**0.5)
    products = (draws - draws.mean(0))[:, :, None] * (draws - draws.mean(0))[:, None, :]
    error = products.std(0) / n**0.5
    assert np.all(np.abs(products.mean(0) - covariance) < 5 * error + 1e-12)


@each_prior
def test_samples_have_the_priors_moments(prior, components):
    n = 20_000
    draws = np.asarray(jax.jit(jax.vmap(prior.sample))(jr.split(jr.key(2), n)))
    mean = sum(w * np.asarray(m) for w, m, _ in zip(*components, strict=True))
    second = sum(w * (c + np.outer(m, m)) for w, m, c in zip(*components, strict=True))
    covariance = second - np.outer(mean, mean)
    assert np.all(np.abs(draws.mean(0) - mean) < 5 * np.sqrt(np.diag(covariance) / n))
    np.testing.assert_allclose(prior.location, mean, atol=1e-12)
    products = draws[:, :, None] * draws[:, None, :]
    assert np.all(np.abs(products.mean(0) - second) < 5 * products.std(0) / n**0.5)


@each_prior
def test_scale_covers_the_widest_direction(prior, components):
    mean = sum(w * np.asarray(m) for w, m, _ in zip(*components, strict=True))
    spread = sum(w * (c + np.outer(m - mean, m - mean)) for w, m, c in zip(*components, strict=True))
    widest = np.sqrt(np.linalg.eigvalsh(spread)[-1])
    assert widest <= float(prior.scale) * (1 + 1e-9)
    assert float(prior.scale) < 1.5 * widest


@each_prior
def test_every_prior_decodes_and_encodes(prior, components):
    if not prior.has_transport:  # by the flow, and encode inverts that very map
        np.testing.assert_allclose(prior.encode(prior.decode(POINT)), POINT, atol=1e-5)
        return
    np.testing.assert_allclose(prior.encode(prior.decode(POINT)), POINT, rtol=1e-10)
    jacobian = np.asarray(jax.jacfwd(prior.decode)(POINT))
    np.testing.assert_allclose(jacobian @ jacobian.T, components[2][0], rtol=1e-9, atol=1e-12)


def test_priors_are_pytrees():
    for prior, _ in PRIORS.values():
        arrays, static = eqx.partition(prior, eqx.is_array)
        again = eqx.combine(jax.tree.map(lambda a: a + 0, arrays), static)
        np.testing.assert_allclose(again.denoise(POINT, SIGMA), prior.denoise(POINT, SIGMA))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianPrior(jnp.zeros(3), jnp.ones(2)), "GaussianPrior needs mean and variances as vectors of one"),
        (lambda: GaussianPrior.full(jnp.zeros(2), -jnp.eye(2)), "positive definite covariance; its smallest"),
        (lambda: GaussianPrior.full(jnp.zeros(3), jnp.eye(2)), r"covariance of shape \(3, 3\)"),
        (lambda: MixturePrior([1.0, 0.0], jnp.zeros((2, 2)), [1.0, 1.0]), "positive weights and variances"),
        (lambda: MixturePrior([1.0], jnp.zeros((2, 2)), [1.0]), "weights .components,. and means"),
    ],
)
def test_bad_priors(make, words):
    with pytest.raises(ValueError, match=words):
        make()
