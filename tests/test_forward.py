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
@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_wanted_rows(name, share):
    forward = SIMULATORS[name]
    problem = InverseProblem(GaussianPrior.standard(2), forward, LIKELIHOOD)
    evaluate = Evaluator(problem, batch_size=11)
    wanted = np.arange(21) < share * 21
    calls = getattr(forward, "num_calls", 0)
    found = np.asarray(evaluate.log_likelihood(X, wanted))
    reference = np.sin(np.sin(np.sin(X))) if name == "jax-with-loops" else np.sin(X)
    expected = [LIKELIHOOD.log_prob(g) for g in reference]
    np.testing.assert_allclose(found[wanted], np.array(expected)[wanted], rtol=1e-12)
    assert np.all(np.isneginf(found[~wanted]))
    assert evaluate.count == wanted.sum()
    if name.startswith("host"):
        assert forward.num_calls - calls == wanted.sum()


def test_not_a_number_is_no_chance():
    problem = InverseProblem(GaussianPrior.standard(2), lambda x: jnp.log(x), LIKELIHOOD)
    evaluate = Evaluator(problem, batch_size=21)
    found = np.asarray(evaluate.log_likelihood(X))
    bad = np.any(X <= 0, axis=1)
    assert bad.any()
    np.testing.assert_array_equal(np.isneginf(found), bad)
    assert evaluate.num_failed == bad.sum()
