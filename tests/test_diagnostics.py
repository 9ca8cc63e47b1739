"""Each sign trips where it should, and stays silent where all is right."""

import re
import time

import arviz as az
import numpy as np
import pytest

from enkg_ppl import Posterior
from enkg_ppl.diagnostics._agreement import agreement
from enkg_ppl.diagnostics._diagnose import diagnose, effective_rank, unique_share
from enkg_ppl.diagnostics._fields import EnsembleCheck
from enkg_ppl.diagnostics._valleys import cells
from enkg_ppl.diagnostics._weights import pareto_khat

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


GOOD = np.random.default_rng(3).standard_normal((2, N, DIM))
WEIGHTS = np.linspace(0, 1, N)
FEW = np.where(np.arange(N) < 20, WEIGHTS, -np.inf)
ONE = np.where(np.arange(N) == 7, 0.0, -20 * np.linspace(0, 1, N) - 6)
FINE = EnsembleCheck(1.0, 0.5, 1.0, 1.0, 0.0)


@pytest.mark.parametrize("second", [0, 1], ids=["the first is bad", "the second is bad"])
@pytest.mark.parametrize(
    ("name", "change", "figure", "words"),
    [
        ("unique_particles", {"draws": np.repeat(GOOD[0, : N // 4], 4, axis=0)}, 0.25, "only 25% of the draws"),
        ("effective_rank", {"draws": GOOD[0, :, :1] * np.ones(DIM)}, 1.0, None),
        ("pareto_khat", {"log_weights": 4 * np.random.default_rng(0).standard_normal(N)}, None, "heavy tail .k-hat"),
        (
            "effective_draws",
            {"log_weights": ONE},
            None,
            "the 512 last importance weights of the worst ensemble are worth",
        ),
        ("pareto_khat", {"log_weights": FEW}, pareto_khat(WEIGHTS), "only 20 of the 512 last importance weights of"),
        ("correlation", {"stats": {"correlation": 0.5, "correlation_limit": 0.4}}, 0.5, r"remember .*correlation 0.50"),
        ("correlation", {"stats": {"correlation": np.nan, "correlation_limit": 0.4}}, np.nan, "correlation nan"),
        ("num_failed", {"stats": {"num_failed": 30}}, 31, "31 of 200 simulations failed"),
        ("weight_ess", {"stats": {"weight_ess": 1.7}}, 1.7, None),
        ("drift_p", {"stats": {"drift_p": 1e-9}}, 1e-9, None),
        ("jump_acceptance", {"stats": {"jump_acceptance": 0.0}}, 0.0, None),
        ("num_levels", {"stats": {"num_levels": 99}}, 99, None),
        ("chi2_per_datum", {"chi2": 5.0}, 5.0, "miss the data"),
        ("chi2_per_datum", {"chi2": np.nan}, np.nan, "miss the data"),
        ("chi2_per_datum", {"check": FINE._replace(chi2_per_datum=9.0, chi2_tail=0.0)}, 9.0, "miss the data"),
        ("chi2_per_datum", {"check": FINE._replace(chi2_per_datum=0.01, chi2_tail=0.0)}, 0.01, "more closely than"),
        ("data_spread", {"check": FINE._replace(data_spread=0.1)}, 0.1, "predictions vary too little"),
        ("latent_spread", {"check": FINE._replace(latent_spread=9.0)}, 9.0, "draws vary too much"),
        ("latent_spread", {"check": FINE._replace(latent_spread=np.nan)}, np.nan, "cannot be told"),
        ("unexplained", {"check": FINE._replace(unexplained=np.nan)}, np.nan, "simulator bends"),
        ("noise_spread", {"check": FINE._replace(noise_spread=3.0)}, 3.0, "noise level is among the unknowns"),
    ],
)
def test_one_bad_ensemble_of_two_shows(name, change, figure, words, second):
    """Whichever it is: the figure is that of the worst, or of both, and the sentence is there once."""
    stats = {
        "correlation": 0.3,
        "correlation_limit": 0.5,
        "num_failed": 1,
        "weight_ess": 100.0,
        "drift_p": 0.5,
        "jump_acceptance": 0.5,
        "num_levels": 3,
    }
    given, chi2, checks = [], [1.0, 1.0], [FINE, FINE]
    for i in range(2):
        own = change if i == second else {}
        rest = {"draws": GOOD[i], "log_weights": WEIGHTS} | {k: v for k, v in own.items() if k not in ("chi2", "check")}
        rest["stats"] = stats | own.get("stats", {})
        given.append(posterior(rest.pop("draws"), **rest))
        chi2[i], checks[i] = own.get("chi2", 1.0), own.get("check", FINE)
    guided = "check" in change
    found = diagnose(given, np.array(chi2), 20, np.zeros((2, N)), checks if guided else None)
    if figure is not None:
        assert found[name] == pytest.approx(figure, nan_ok=True)
    else:
        assert found[name] > 0.7
    assert words is None or len([text for text in found.warnings if re.search(words, text)]) == 1
    for finding in found.findings:  # for programs: the value beyond the limit, and the same sentence
        assert finding.advice in found.warnings
        low = ("unique_particles", "positive_weights", "effective_weights", "mode_balance_p", "data_spread")
        beyond = finding.value < finding.limit if finding.name in low else finding.value > finding.limit
        assert beyond or not np.isfinite(finding.value) or figure == 0.01  # draws too close to the data
        if finding.name in found and finding.name != "num_failed":
            assert finding.value == pytest.approx(found[finding.name], nan_ok=True)
    if words is not None and name != "effective_draws" and "importance weights of" not in words:
        (own,) = [finding for finding in found.findings if finding.name == name]
        assert re.search(words, own.advice)
    if name not in ("effective_rank", "unique_particles"):  # those ensembles differ, which is told too
        assert len(found.warnings) == (words is not None)


def test_what_one_ensemble_says_does_not_silence_another():
    """A message about modes, or the budget of one, leaves the memory of the other."""
    remembering = {"stats": {"correlation": 0.5, "correlation_limit": 0.4}}
    for words in ("a mode may be missing", "the budget of forward evaluations ended"):
        told = [posterior(GOOD[0], messages=[words]), posterior(GOOD[1], **remembering)]
        assert [words, "the particles still remember"] == [
            sentence[: len(words) if i == 0 else 28]
            for i, sentence in enumerate(diagnose(told, None, 0, np.zeros((2, N))).warnings)
        ]
    own = posterior(GOOD[0], messages=["a mode may be missing"], **remembering)
    assert len(diagnose([own], None, 0, np.zeros((1, N))).warnings) == 2


def test_draws_are_worth_no_more_than_their_weights():
    """Against the closed forms: equal weights of half the particles, and of one."""
    half = np.where(np.arange(N) % 2 == 0, 0.0, -np.inf)
    one = np.where(np.arange(N) == 3, 0.0, -1e6)
    repeated = np.repeat(GOOD[0, : N // 4], 4, axis=0)
    for draws, weights, worth in (
        (GOOD[0], None, N),
        (GOOD[0], half, N / 2),
        (GOOD[0], one, 1),
        (repeated, half, N / 4),
        (repeated, None, N / 4),
    ):
        found = diagnose([posterior(GOOD[1]), posterior(draws, log_weights=weights)], None, 0, np.zeros((2, N)))
        assert found["effective_draws"] == pytest.approx(N + worth)
    moved = {"correlation": 0.05, "correlation_limit": 0.1}
    for stats, weights, worth in ((moved, half, N), (moved, one, 1), (moved | {"correlation": 0.2}, half, N / 2)):
        found = diagnose([posterior(GOOD[0], log_weights=weights, stats=stats)], None, 0, np.zeros((1, N)))
        assert found["effective_draws"] == pytest.approx(worth)


def test_few_weights_are_told_and_equal_ones_are_not():
    for weights, words in (
        (np.zeros(16), None),
        (np.linspace(0, 1, 16), "only 16 of the 16"),
        (np.where(np.arange(N) < 21, WEIGHTS, -np.inf), None),
        (np.where(np.arange(N) < 20, 0.0, -np.inf), "only 20 of the 512 last importance weights are not zero"),
    ):
        draws = GOOD[0, : len(weights)]
        warnings = diagnose([posterior(draws, log_weights=weights)], None, 0, np.zeros((1, len(weights)))).warnings
        assert len(warnings) == (words is not None)
        assert words is None or words in warnings[0]


def test_what_is_the_same_everywhere_is_no_disagreement():
    """A likelihood that is flat: equal values have equal ranks, whichever ensemble they are in."""
    z, _ = ensembles([0, 0])
    found = agreement(np.random.default_rng(0), z, np.full((2, N), -3.0))
    assert found.r_hat < 1 + 12 / N
    assert found.ess > 0.5 * 2 * N


@pytest.mark.parametrize("dim", [64, 4096])
def test_many_unknowns_are_compared_within_a_second(dim):
    """Verdicts as in few dimensions: of modes along one coordinate only with shares that agree, or do not; one hill."""
    rng = np.random.default_rng(dim)
    z, log_likelihood = rng.standard_normal((2, N, dim)), rng.standard_normal((2, N))
    started = time.process_time()
    found = agreement(np.random.default_rng(0), z, log_likelihood)
    assert time.process_time() - started < 1.5  # 0.7 on cores that have nothing else to do, and 60 by mixtures of 512
    assert (found.num_modes, found.balance_p) == (1, 1.0)
    assert found.r_hat < 1 + 12 / N
    if dim == 4096:
        return
    for second, lowest, highest in ((0.5, 1e-4, 1.0), (0.75, 0.0, 1e-4)):
        side = np.stack([rng.random(N) < share for share in (0.5, second)])
        modes = z.copy()
        modes[:, :, 3] = np.where(side, 1.0, -1.0) + 0.1 * z[:, :, 3]  # no wider than the other unknowns
        found = agreement(np.random.default_rng(0), modes, log_likelihood)
        assert found.num_modes == 2
        assert lowest <= found.balance_p <= highest


def test_no_hills_where_there_are_none():
    """Three sets of normal, heavy-tailed, skewed and flat draws in 20 dimensions: in 24 seeds no set had two."""
    rng = np.random.default_rng(7)
    counts = []
    for _ in range(3):
        normal = rng.standard_normal((2 * N, 20))
        heavy = normal / np.sqrt(rng.chisquare(3, size=(2 * N, 1)) / 3)
        flat = rng.uniform(-1, 1, size=(2 * N, 20))
        counts += [cells(rng, draws).max() for draws in (normal, heavy, np.exp(normal), flat)]
    assert max(counts) == 0


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
    assert unique_share(np.repeat(np.eye(4), 2, axis=0)) == 0.5
