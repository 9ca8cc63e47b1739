"""The evaluator: batches, subsets and counts, for simulators in JAX and in host code."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import GaussianLikelihood, GaussianPrior, InverseProblem, blackbox
from enkg_ppl._forward import Evaluator

X = np.asarray(jr.normal(jr.key(0), (21, 2)))
LIKELIHOOD = GaussianLikelihood(jnp.array([0.1, 0.2]), 0.5)


def looping(x):
    return jax.lax.fori_loop(0, 3, lambda _, x: jnp.sin(x), x)


SIMULATORS = {
    "jax": jnp.sin,
    "jax-with-loops": looping,
    "host": blackbox(lambda x: np.sin(x), (2,), vectorized=True),
    "host-in-turn": blackbox(lambda x: np.sin(x), (2,)),
}


@pytest.mark.parametrize("name", SIMULATORS)
@pytest.mark.parametrize("rows", [1, 7, 11, 21])
@pytest.mark.parametrize("chunk_size", [None, 4])
def test_any_number_of_rows(name, rows, chunk_size):
    forward = SIMULATORS[name]
    problem = InverseProblem(GaussianPrior.standard(2), forward, LIKELIHOOD)
    evaluate = Evaluator(problem, batch_size=11, chunk_size=chunk_size)
    calls = getattr(forward, "num_calls", 0)
    reference = np.sin(np.sin(np.sin(X))) if name == "jax-with-loops" else np.sin(X)
    expected = [LIKELIHOOD.log_prob(g) for g in reference[:rows]]
    log_likelihood, response = evaluate.log_likelihood_and_response(X[:rows])
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-12)
    np.testing.assert_allclose(response.prediction, reference[:rows], rtol=1e-12)
    np.testing.assert_allclose(evaluate.log_likelihood(X[:rows]), expected, rtol=1e-12)
    assert evaluate.count == 2 * rows
    if name.startswith("host"):
        assert forward.num_calls - calls == 2 * rows


def test_what_the_guided_flow_simulated_is_kept():
    problem = InverseProblem(GaussianPrior.standard(2), jnp.sin, LIKELIHOOD)
    evaluate = Evaluator(problem, batch_size=11)
    assert evaluate.simulated is None
    evaluate.response(X[:5])
    evaluate.response(X[5:])
    x, response = evaluate.simulated
    np.testing.assert_array_equal(x, X)
    np.testing.assert_allclose(response.prediction, np.sin(X), rtol=1e-12)


def test_the_budget_goes_with_the_coordinates():
    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), jnp.sin, LIKELIHOOD), batch_size=11)
    assert evaluate.remaining == float("inf")
    evaluate.limit = 30
    evaluate.log_likelihood(X)
    assert evaluate.remaining == 9
    other = evaluate.handed_to(InverseProblem(GaussianPrior.standard(2), jnp.cos, LIKELIHOOD))
    assert other.remaining == 9
    assert evaluate.handed_to(evaluate.problem) is evaluate


def test_bad_chunks():
    problem = InverseProblem(GaussianPrior.standard(2), jnp.sin, LIKELIHOOD)
    with pytest.raises(ValueError, match="chunk_size must be at least 1 particle.*got 0"):
        Evaluator(problem, 11, chunk_size=0)


def test_not_a_number_is_no_chance():
    problem = InverseProblem(GaussianPrior.standard(2), lambda x: jnp.log(x), LIKELIHOOD)
    evaluate = Evaluator(problem, batch_size=21)
    found = np.asarray(evaluate.log_likelihood(X))
    bad = np.any(X <= 0, axis=1)
    assert bad.any()
    np.testing.assert_array_equal(np.isneginf(found), bad)
    assert evaluate.num_failed == bad.sum()


def test_a_likelihood_of_zero_is_no_failure():
    class HardEdge(GaussianLikelihood):
        def log_prob(self, g):
            return jnp.where(g[0] > 0, 0.0, -jnp.inf)

    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), jnp.sin, HardEdge(jnp.zeros(2), 1.0)), 21)
    found = evaluate.log_likelihood(X)
    np.testing.assert_array_equal(np.isneginf(found), np.sin(X[:, 0]) <= 0)
    assert evaluate.num_failed == 0
