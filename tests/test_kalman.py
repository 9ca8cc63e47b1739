"""The default correction against the closed form of linear-Gaussian problems, and where it must not fall over."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, KalmanCorrection, MixturePrior, guide
from enkg_ppl.guidance._gain import covariance_product, eigh, kalman_shift, krylov_shift
from enkg_ppl.likelihood import GaussianLikelihood, PoissonLikelihood

DIM, DATA, NOISE, PARTICLES = 10, 5, 0.1, 1024


def apply(A, x):
    """As a `Partial` A is data, so that every seed shares one compiled program."""
    return A @ x


def linear_problem(seed, noise=NOISE):
    key_A, key_x, key_noise = jr.split(jr.key(seed), 3)
    A = jr.normal(key_A, (DATA, DIM))
    y = A @ jr.normal(key_x, (DIM,)) + noise * jr.normal(key_noise, (DATA,))
    problem = InverseProblem(GaussianPrior.standard(DIM), jax.tree_util.Partial(apply, A), GaussianLikelihood(y, noise))
    covariance = np.linalg.inv(np.eye(DIM) + A.T @ A / noise**2)
    return problem, covariance @ (A.T @ y) / noise**2, covariance


@pytest.mark.parametrize("seed", range(5))
def test_linear_gaussian_posterior(seed):
    """Mean within 0.15 posterior sd in every coordinate, variance trace within 15 % (over 20 seeds: no miss of either).

    The trace is mostly that of the directions without data, so it is asked of the whitened covariance too.
    """
    problem, mean, covariance = linear_problem(seed)
    posterior = guide(jr.key(100 + seed), problem, num_particles=PARTICLES)
    error = np.abs(posterior.mean() - mean) / np.sqrt(np.diag(covariance))
    assert error.max() < 0.15
    assert abs(posterior.sd() @ posterior.sd() / np.trace(covariance) - 1) < 0.15
    whitened = np.linalg.solve(covariance, np.cov(np.asarray(posterior.draws).T))
    assert abs(np.trace(whitened) / DIM - 1) < 0.15
    assert posterior.num_forward_evaluations == 20 * PARTICLES


def test_it_sees_the_noise_level():
    """What the published correction cannot: ten times the noise, and the spread grows as the closed form's does."""
    spreads = []
    for noise in (0.1, 1.0):
        problem, _, covariance = linear_problem(0, noise)
        posterior = guide(jr.key(1), problem, num_particles=PARTICLES)
        spreads.append(posterior.sd() @ posterior.sd() / np.trace(covariance))
    np.testing.assert_allclose(spreads, 1.0, atol=0.15)


def test_the_prior_comes_back_where_the_data_say_nothing():
    problem, _, _ = linear_problem(0)
    silent = InverseProblem(problem.prior, jax.tree_util.Partial(apply, jnp.zeros((DATA, DIM))), problem.likelihood)
    posterior = guide(jr.key(2), silent, num_particles=PARTICLES)
    np.testing.assert_allclose(posterior.mean(), 0.0, atol=5 / PARTICLES**0.5)
    np.testing.assert_allclose(posterior.sd(), 1.0, atol=5 / (2 * PARTICLES) ** 0.5)


def test_a_mixture_prior_with_a_network_like_denoiser():
    """A prior without closed-form draws goes through the flow and the reverse SDE; both modes survive vague data."""
    prior = MixturePrior([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.2, 0.2])
    problem = InverseProblem(prior, lambda x: x[1:], GaussianLikelihood(jnp.array([0.3]), 0.5))
    posterior = guide(jr.key(3), problem, num_particles=512)
    share = np.mean(np.asarray(posterior.draws)[:, 0] > 0)
    assert abs(share - 0.5) < 5 * 0.5 / 512**0.5
    gain = 0.2 / (0.2 + 0.25)
    assert abs(posterior.mean()[1] - gain * 0.3) < 5 * (0.2 * (1 - gain) / 512) ** 0.5
    assert prior.sample(jr.key(0)).shape == (2,)


@pytest.mark.parametrize("forward", [lambda x: jnp.exp(8 * x[:5]), lambda x: jnp.where(x[:5] > 0.5, jnp.nan, x[:5])])
def test_wild_simulators_leave_finite_draws(forward):
    """Overflow and NaN in part of the ensemble: the particles concerned are left alone, none becomes NaN."""
    problem = InverseProblem(GaussianPrior.standard(DIM), forward, GaussianLikelihood(0.3 * jnp.ones(DATA), 0.1))
    posterior = guide(jr.key(4), problem, num_particles=128)
    assert np.all(np.isfinite(posterior.draws))


def test_poisson_counts():
    """One rate, many counts: the guided mean of log rate is near the Gamma-like posterior's mode."""
    counts = jnp.array([7.0, 9.0, 11.0, 8.0, 10.0, 12.0])
    problem = InverseProblem(
        GaussianPrior.standard(1), lambda x: jnp.exp(2 + 0.5 * x[0]) * jnp.ones(6), PoissonLikelihood(counts)
    )
    posterior = guide(jr.key(5), problem, num_particles=512)
    grid = np.linspace(-2, 3, 2001)
    log_post = [-0.5 * g**2 + counts.sum() * (2 + 0.5 * g) - 6 * np.exp(2 + 0.5 * g) for g in grid]
    weights = np.exp(np.array(log_post) - max(log_post))
    mean = np.sum(grid * weights) / weights.sum()
    sd = np.sqrt(np.sum((grid - mean) ** 2 * weights) / weights.sum())
    assert abs(posterior.mean()[0] - mean) < 0.3 * sd
    assert 0.8 < posterior.sd()[0] / sd < 1.25


def test_the_shift_is_the_textbook_formula():
    """Each particle's own noise variance in its own gain, and a bound that only shortens."""
    keys = jr.split(jr.key(6), 3)
    half, CA, b = jr.normal(keys[0], (12, 5)), jr.normal(keys[1], (3, 12)), 5 * jr.normal(keys[2], (12,))
    covariance = half @ half.T
    for relative in (0.5, 1.0, 4.0):
        total = covariance + relative * jnp.eye(12)
        expected = CA @ jnp.linalg.solve(total, b)
        size = (b @ jnp.linalg.solve(total, b) / 12) ** 0.5
        free, bound = (kalman_shift(CA, *eigh(covariance), b, relative, limit) for limit in (1e3, 1.5))
        np.testing.assert_allclose(free, expected, rtol=1e-9)
        np.testing.assert_allclose(bound, expected * min(1.5 / size, 1.0), rtol=1e-9)


def smooth_problem(num_data):
    """A prior of two components, whose denoiser bends, and data that overlap; with the closed form of one particle."""
    dim = 24
    keys = jr.split(jr.key(11), 4)
    wide = 1.0 / (1.0 + jnp.arange(dim))
    prior = MixturePrior([0.4, 0.6], [jnp.zeros(dim), 0.5 * jnp.ones(dim)], [wide, wide[::-1]])
    A, x = jr.normal(keys[0], (dim, num_data)) / dim**0.5, jr.normal(keys[1], (dim,))
    noise = jr.uniform(keys[2], (num_data,), minval=0.05, maxval=0.5)
    CA = covariance_product(prior, x, 0.7, A)
    total = A.T @ CA + jnp.diag(noise)
    b = jnp.linalg.cholesky(total) @ jr.normal(keys[3], (num_data,))
    return (
        prior,
        x,
        A,
        noise,
        b,
        CA @ jnp.linalg.solve(total, b),
        float((b @ jnp.linalg.solve(total, b) / num_data) ** 0.5),
    )


def test_the_krylov_shift_is_exact_where_data_are_few():
    prior, x, A, noise, b, expected, _ = smooth_problem(12)
    got = krylov_shift(prior, x, 0.7, A, noise, b, 1e3, num_products=12)
    np.testing.assert_allclose(got, expected, rtol=1e-6)


def test_the_krylov_shift_of_many_data():
    """90 data by 2, 8 and 32 products: ever closer, and at last to a thousandth of the shift."""
    prior, x, A, noise, b, expected, size = smooth_problem(90)
    errors = []
    for num_products in (2, 8, 32):
        found = krylov_shift(prior, x, 0.7, A, noise, b, 1e3, num_products)
        errors.append(float(jnp.linalg.norm(found - expected) / jnp.linalg.norm(expected)))
    assert errors[0] > 5 * errors[1] > 25 * errors[2]
    assert errors[2] < 1e-3
    # The bound is that of all the data.
    bounded = krylov_shift(prior, x, 0.7, A, noise, b, 0.5 * size, 32)
    assert jnp.linalg.norm(bounded - 0.5 * expected) < 1e-3 * jnp.linalg.norm(expected)


class Turning(GaussianPrior):
    """A denoiser that is no conditional mean: its derivative turns by a right angle, and no covariance does that."""

    def denoise(self, x, sigma):
        half = len(x) // 2
        return 0.01 * x + 5 * jnp.concatenate([-x[half:], x[:half]])


def test_no_shift_is_longer_than_a_covariance_allows():
    """``|C A (I + A^T C A)^-1 b|`` is at most half of ``|b|`` where C is at most 1; here 5 turns the vectors."""
    turning = Turning(jnp.zeros(20), jnp.ones(20))
    b, A = jr.normal(jr.key(0), (12,)), jr.normal(jr.key(1), (20, 12))
    for sigma in (0.1, 0.5, 1.0):
        shift = krylov_shift(turning, jnp.ones(20), sigma, A, jnp.ones(12), b, 1e3)
        assert jnp.linalg.norm(shift) <= 0.5 * jnp.linalg.norm(b) * (1 + 1e-6)
        assert jnp.all(jnp.isfinite(shift))


def test_a_particle_without_innovation_stays():
    prior, x, A, noise, b, *_ = smooth_problem(12)
    np.testing.assert_array_equal(krylov_shift(prior, x, 0.7, A, noise, 0 * b, 4.0), 0.0)


def test_more_data_than_particles():
    """300 data on 10 unknowns with 256 particles: mean within 5 standard errors, variance within 25 %."""
    A = jr.normal(jr.key(7), (300, DIM))
    y = A @ jnp.ones(DIM) + 3.0 * jr.normal(jr.key(8), (300,))
    problem = InverseProblem(GaussianPrior.standard(DIM), jax.tree_util.Partial(apply, A), GaussianLikelihood(y, 3.0))
    covariance = np.linalg.inv(np.eye(DIM) + A.T @ A / 9)
    mean = covariance @ (A.T @ y) / 9
    posterior = guide(jr.key(9), problem, num_particles=256)
    sd = np.sqrt(np.diag(covariance))
    assert np.all(np.abs(posterior.mean() - mean) < 5 * sd / 256**0.5)
    assert abs(np.sum(posterior.sd() ** 2) / np.trace(covariance) - 1) < 0.25


def test_particles_must_be_two():
    problem, _, _ = linear_problem(0)
    for num_particles in (0, 1):
        with pytest.raises(ValueError, match=f"num_particles must be at least 2.*got {num_particles}"):
            guide(jr.key(0), problem, num_particles=num_particles)


@pytest.mark.parametrize("bad", [{"last_level": 2.0}, {"forgetting_factor": 1.5}, {"max_innovation": 0.0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"KalmanCorrection needs .*{next(iter(bad))}"):
        KalmanCorrection(**bad)
