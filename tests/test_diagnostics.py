"""Each sign trips where it should, and stays silent where all is right."""

import re

import arviz as az
import numpy as np
import pytest

from enkg_ppl import Posterior
from enkg_ppl._agreement import agreement
from enkg_ppl._diagnostics import diagnose, distinct_share, effective_rank
from enkg_ppl._weights import pareto_khat

N, DIM = 512, 3


def psis_khat(log_weights):
    if int(az.__version__.split(".")[0]) >= 1:
        from arviz_stats.base import array_stats

        return float(array_stats.psislw(-log_weights)[1])  # there it takes log likelihoods, the weights' inverse
    return float(az.psislw(log_weights)[1])


@pytest.mark.parametrize(("n", "sd"), [(100, 1.0), (400, 0.5), (2500, 2.0), (3600, 4.0), (4900, 1.5)])
def test_khat_is_arvizs(n, sd):
    """Where 3 sqrt(n) is a whole number: elsewhere the two lines of ArviZ cut the tail one draw apart."""
    log_weights = sd * np.random.default_rng(n).standard_normal(n)
    np.testing.assert_allclose(pareto_khat(log_weights), psis_khat(log_weights), rtol=1e-6)
    assert pareto_khat(np.append(log_weights, -np.inf)) == pareto_khat(log_weights)


def test_khat_of_no_tail():
    assert np.isnan(pareto_khat(np.zeros(100)))
    assert np.isnan(pareto_khat(np.zeros(3)))


def ensembles(shifts, seed=0):
    rng = np.random.default_rng(seed)
    z = rng.standard_normal((len(shifts), N, DIM)) + np.asarray(shifts, float)[:, None, None]
    return z, -0.5 * (z**2).sum(-1)


def test_independent_ensembles_agree():
    """Over 20 seeds R-hat stays below its limit, and the effective size near the number of draws."""
    found = [agreement(np.random.default_rng(s), *ensembles([0, 0, 0, 0], s)) for s in range(20)]
    assert max(a.r_hat for a in found) < 1 + 12 / N
    assert np.median([a.ess for a in found]) > 0.5 * 4 * N
    assert min(a.balance_p for a in found) > 1e-4


def test_a_shifted_ensemble_is_found():
    found = agreement(np.random.default_rng(0), *ensembles([0, 0, 0, 0.4]))
    assert found.r_hat > 1.02
    assert found.ess < 0.1 * 4 * N


def test_unbalanced_modes_are_found():
    rng = np.random.default_rng(1)
    z, _ = ensembles([0, 0])
    log_likelihood = rng.standard_normal((2, N))
    for second, lowest, highest in ((0.5, 1e-4, 1.0), (0.7, 0.0, 1e-4)):
        side = np.stack([rng.random(N) < share for share in (0.5, second)])
        modes = z + np.where(side, 8.0, -8.0)[:, :, None]
        found = agreement(np.random.default_rng(0), modes, log_likelihood)
        assert found.num_modes >= 2
        assert lowest <= found.balance_p <= highest


def posterior(draws, **rest):
    return Posterior(draws, 100, "method", log_likelihood=np.zeros(len(draws)), **rest)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({}, None),
        (
            {"draws": np.repeat(np.random.default_rng(0).standard_normal((N // 4, DIM)), 4, axis=0)},
            "only 25% of the draws",
        ),
        ({"log_weights": 4 * np.random.default_rng(0).standard_normal(N)}, "heavy tail .k-hat"),
        ({"stats": {"correlation": 0.5, "correlation_limit": 0.15}}, "still remember where they were resampled"),
        ({"stats": {"num_failed": 30}}, "30 of 100 simulations failed"),
        ({"draws": np.full((N, DIM), np.nan)}, "not finite"),
        ({"messages": ["the budget of forward evaluations ended"]}, "the budget of forward evaluations ended"),
    ],
)
def test_signs(change, words):
    given = {"draws": np.random.default_rng(0).standard_normal((N, DIM)), "log_weights": np.linspace(0, 1, N)} | change
    found = diagnose([posterior(given.pop("draws"), **given)], 1.0, 10, np.zeros((1, N)))
    if words is None:
        assert found.warnings == []
    else:
        assert len(found.warnings) == 1
        assert re.search(words, found.warnings[0])
        assert found.warnings[0] in str(found)


def test_misfit_is_found():
    draws = np.random.default_rng(0).standard_normal((N, DIM))
    assert "miss the data" in diagnose([posterior(draws)], 5.0, 20, np.zeros((1, N))).warnings[0]
    assert diagnose([posterior(draws)], 5.0, 1, np.zeros((1, N))).warnings == []


def test_disagreement_is_told_with_a_remedy():
    z, log_likelihood = ensembles([0, 1.0])
    found = diagnose([posterior(z[0]), posterior(z[1])], None, 0, log_likelihood)
    assert any(
        "the 2 ensembles disagree" in sentence and "raise num_particles" in sentence for sentence in found.warnings
    )


def test_effective_rank():
    line = np.outer(np.random.default_rng(0).standard_normal(N), np.ones(DIM))
    assert abs(effective_rank(line) - 1) < 1e-9
    assert 2.8 < effective_rank(np.random.default_rng(0).standard_normal((N, DIM))) <= 3
    assert distinct_share(np.repeat(np.eye(4), 2, axis=0)) == 0.5
