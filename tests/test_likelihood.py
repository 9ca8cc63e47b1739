"""Likelihoods against SciPy; score and Fisher information against differences and Monte Carlo."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats as st

from enkg_ppl.likelihood import GaussianLikelihood, PoissonLikelihood, StudentTLikelihood

G = jnp.array([1.2, 3.0, 0.7])
Y = jnp.array([1.0, 4.0, 2.0])
RNG = np.random.default_rng(0)

# A new likelihood adds a line: how to make it from data, and SciPy's distribution at G.
LIKELIHOODS = {
    "gaussian": (lambda y: GaussianLikelihood(y, [0.5, 1.0, 2.0]), st.norm(G, [0.5, 1.0, 2.0])),
    "poisson": (PoissonLikelihood, st.poisson(G)),
    "student": (lambda y: StudentTLikelihood(y, 0.8, 4.0), st.t(4.0, G, 0.8)),
}
each = pytest.mark.parametrize(("make", "scipy"), LIKELIHOODS.values(), ids=LIKELIHOODS)


@each
def test_log_prob_is_scipys(make, scipy):
    log_prob = scipy.logpmf if hasattr(scipy, "pmf") and isinstance(scipy.dist, st.rv_discrete) else scipy.logpdf
    np.testing.assert_allclose(make(Y).log_prob(G), np.sum(log_prob(Y)), rtol=1e-10)


@each
def test_score_is_the_gradient(make, scipy):
    likelihood, step = make(Y), 1e-6
    numeric = [
        (likelihood.log_prob(G.at[i].add(step)) - likelihood.log_prob(G.at[i].add(-step))) / (2 * step)
        for i in range(3)
    ]
    np.testing.assert_allclose(likelihood.score(G), numeric, rtol=1e-6, atol=1e-7)


@each
def test_fisher_is_the_scores_variance(make, scipy):
    """E[score^2] over 20,000 data sets drawn by SciPy, within five standard errors."""
    data = jnp.asarray(scipy.rvs((20_000, 3), random_state=RNG), float)
    squares = np.asarray(jax.vmap(lambda y: make(y).score(G))(data)) ** 2
    assert np.all(np.abs(squares.mean(0) - make(Y).fisher(G)) < 5 * squares.std(0) / 20_000**0.5)


@each
def test_response_is_one_step_of_fisher_scoring(make, scipy):
    likelihood = make(Y)
    response = likelihood.response(G)
    np.testing.assert_allclose(response.noise, 1 / likelihood.fisher(G), rtol=1e-12)
    np.testing.assert_allclose(response.observation, G + response.noise * likelihood.score(G), rtol=1e-10)


def test_gaussian_response_is_the_data():
    response = GaussianLikelihood(Y, 0.3).response(G)
    np.testing.assert_allclose(response.observation, Y, rtol=1e-12)
    np.testing.assert_allclose(response.noise, 0.09, rtol=1e-12)


def test_poisson_survives_a_rate_of_zero():
    zero = jnp.array([0.0, 1.0, 1.0])
    assert PoissonLikelihood(Y).log_prob(zero) == -jnp.inf
    assert all(np.all(np.isfinite(part)) for part in PoissonLikelihood(Y).response(zero))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: GaussianLikelihood(Y, 0.0), "GaussianLikelihood needs noise_sd > 0 everywhere"),
        (lambda: GaussianLikelihood(jnp.ones((2, 2)), 1.0), r"y as a vector; got shape \(2, 2\): use y.ravel"),
        (lambda: StudentTLikelihood(Y, 1.0, -1.0), "StudentTLikelihood needs df > 0"),
    ],
)
def test_bad_likelihoods(make, words):
    with pytest.raises(ValueError, match=words):
        make()
