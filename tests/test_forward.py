"""The evaluator: batches, subsets and counts, for simulators in JAX and in host code."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, blackbox
from enkg_ppl.evaluation._evaluator import MANY_BATCHES, Evaluator
from enkg_ppl.evaluation._ledger import BudgetEnd
from enkg_ppl.likelihood import GaussianLikelihood, Response

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


def careful(x):
    """Never called with what is not a number."""
    assert np.isfinite(x).all()
    return np.sin(x)


@pytest.mark.parametrize("rows", [[3], [0, 20], range(21)])
def test_particles_that_are_not_finite_are_not_simulated(rows):
    simulate = blackbox(careful, (2,), vectorized=True)
    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), simulate, LIKELIHOOD), batch_size=11)
    x = X.copy()
    x[list(rows), 0] = [np.nan, np.inf][len(rows) % 2]
    bad = ~np.isfinite(x).all(axis=1)
    log_likelihood, response = evaluate.log_likelihood_and_response(x)
    expected = np.array([LIKELIHOOD.log_prob(g) for g in np.sin(X)])
    np.testing.assert_allclose(log_likelihood, np.where(bad, -np.inf, expected), rtol=1e-12)
    for a, b in zip(evaluate.response(x), response, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(np.isnan(a).any(axis=1), bad)
    np.testing.assert_array_equal(evaluate.log_likelihood(x), log_likelihood)
    assert evaluate.count == simulate.num_calls == 3 * (21 - bad.sum())
    assert (evaluate.num_failed, evaluate.ledger.num_skipped) == (0, 3 * bad.sum())


def test_failures_are_counted_in_the_guided_flow_too():
    """A mean that does not exist is no failure where the likelihood does."""

    class Centreless(GaussianLikelihood):
        def response(self, g):
            return Response(jnp.where(g > 0.9, jnp.nan, g), self.y, self.noise_sd**2)

    problem = InverseProblem(
        GaussianPrior.standard(2), lambda x: jnp.where(x < -1, jnp.nan, x), Centreless(jnp.zeros(2), 1.0)
    )
    evaluate = Evaluator(problem, batch_size=4)
    response = evaluate.response(X)
    failed = (X < -1).any(axis=1)
    assert 0 < failed.sum() < np.isnan(response.prediction).any(axis=1).sum()
    assert evaluate.num_failed == failed.sum()


def test_nothing_is_simulated_over_the_limit():
    simulate = blackbox(careful, (2,), vectorized=True)
    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), simulate, LIKELIHOOD), batch_size=11)
    evaluate.limit = 50
    evaluate.response(X)
    other = evaluate.handed_to(InverseProblem(GaussianPrior.standard(2), simulate, LIKELIHOOD))
    other.log_likelihood(X)
    for ask in (evaluate, other):
        with pytest.raises(BudgetEnd, match="21 simulations were asked for where 8 are left of max_forward_eval"):
            ask.log_likelihood(X)
    assert simulate.num_calls == evaluate.count == other.count == 42


def test_names_say_nothing_of_what_a_program_does():
    @jax.jit
    def no_host_call_here(x):
        return jnp.sin(x)

    def while_scan(x):
        return no_host_call_here(x)

    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), jax.jit(while_scan), LIKELIHOOD), batch_size=16)
    assert not evaluate.on_host
    assert evaluate._all_sizes == [16]


def test_few_particles_cost_few_evaluations_of_a_network():
    """A network before a black box runs for rows that fill up a batch as well, so batches are packed."""
    rows, seen = [0], []

    def note(x):
        rows[0] += x.size
        return np.zeros_like(x)

    def network(x, _):  # of which there is a loop, as in a flow
        return x + jax.pure_callback(note, jax.ShapeDtypeStruct((), x.dtype), x[0], vmap_method="expand_dims"), None

    box = blackbox(lambda x: (seen.append(len(x)), careful(x))[1], (2,), vectorized=True)

    def forward(z):
        return box(jax.lax.scan(network, z, None, length=3)[0])

    evaluate = Evaluator(InverseProblem(GaussianPrior.standard(2), forward, LIKELIHOOD), batch_size=256)
    for _ in range(MANY_BATCHES):  # until small batches are worth a program
        rows[0] = 0
        evaluate.log_likelihood(np.zeros((1, 2)))
        assert rows[0] == 3 * 256
    for num, most in ((256, 256), (200, 256), (100, 104), (37, 40), (5, 8), (1024, 1024), (1100, 1104)):
        rows[0] = 0
        seen.clear()
        z = np.random.default_rng(num).standard_normal((num, 2))
        np.testing.assert_allclose(
            evaluate.log_likelihood(z),
            Evaluator(InverseProblem(GaussianPrior.standard(2), box, LIKELIHOOD), batch_size=256).log_likelihood(z),
            rtol=1e-6,
        )
        assert rows[0] <= 3 * most, num
        assert sum(seen) == 2 * num
