"""Searches find every peak of posteriors whose peaks are known, and say how likely others were overlooked."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal, norm

from enkg_ppl import GaussianPrior, InverseProblem, TemperedSMC, infer
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._ledger import Ledger
from enkg_ppl.likelihood import GaussianLikelihood, Likelihood, Response
from enkg_ppl.mixtures._fit import Shape, fit
from enkg_ppl.mixtures._student import around
from enkg_ppl.refinement import _tempered_smc
from enkg_ppl.refinement._missing import evidence_disagrees, missing_modes, shares_apart, shares_disagree
from enkg_ppl.refinement._peaks import SETTLED, Found, Peak, find_peaks, nearest_peak
from enkg_ppl.refinement._target import Start
from enkg_ppl.refinement.moves._space import Space
from validation.posteriors.separated import ROOTS_Y, solutions, two_equations

NOISE = 1e-4
ROOTS = InverseProblem(
    GaussianPrior.standard(2), lambda z: two_equations(z[0], z[1]), GaussianLikelihood(jnp.array(ROOTS_Y), NOISE)
)


def searched(problem, num_particles=256, num_draws=256, ledger=None, **options):
    evaluate = Evaluator(problem, 256, ledger=ledger)
    z = np.random.default_rng(0).standard_normal((num_draws, problem.dim))
    response = evaluate.response(z)
    before = evaluate.count
    found = find_peaks(np.random.default_rng(1), evaluate, z, response, num_particles, **options)
    return found, evaluate.count - before


def test_every_root_is_found_with_its_mass():
    """Four peaks 1e-4 wide among prior draws that are all thousands of nats away; masses by the Jacobians."""
    found, _ = searched(ROOTS)
    at, _, mass = solutions()
    assert len(found.peaks) == len(at) == 4
    peaks = sorted(found.peaks, key=lambda peak: tuple(peak.z))
    np.testing.assert_allclose([peak.z for peak in peaks], at, atol=3 * NOISE)
    evidence = np.array([peak.log_evidence for peak in peaks])
    np.testing.assert_allclose(np.exp(evidence - np.logaddexp.reduce(evidence)), mass, rtol=0.02)
    assert found.settled
    assert not missing_modes(found, np.repeat(at, 100, axis=0))


@pytest.mark.parametrize("spare", [20, 60, 150, 400])
def test_a_search_that_the_budget_cuts_says_so(spare):
    """It needs more than 400 evaluations; what its own allowance ends, for few particles, is no want of budget."""
    ledger = Ledger(limit=10_000)
    assert searched(ROOTS, ledger=ledger, spare=spare)[1] <= spare
    assert ledger.short
    for options in ({"spare": 8_000}, {"num_particles": 16}):
        ledger = Ledger(limit=10_000)
        assert searched(ROOTS, ledger=ledger, **options)[1] > 400
        assert not ledger.short


def test_one_gaussian_is_one_peak_with_the_exact_evidence():
    A, y, noise = np.random.default_rng(2).standard_normal((3, 5)), np.array([1.0, -0.5, 2.0]), 0.3
    found, _ = searched(InverseProblem(GaussianPrior.standard(5), lambda z: A @ z, GaussianLikelihood(y, noise)))
    (peak,) = found.peaks
    exact = multivariate_normal(np.zeros(3), A @ A.T + noise**2 * np.eye(3)).logpdf(y)
    assert abs(peak.log_evidence - exact) < 0.01
    precision = np.eye(5) + A.T @ A / noise**2
    np.testing.assert_allclose(peak.chol @ peak.chol.T, np.linalg.inv(precision), atol=1e-6)
    step = peak.z - np.linalg.solve(precision, A.T @ y / noise**2)
    assert 0.5 * step @ precision @ step < SETTLED
    assert peak.hits == found.num_searches


class UnknownNoise(Likelihood):
    """y ~ N(g[:-1], exp(g[-1])^2): the last output decides on the noise."""

    y: jax.Array

    def log_prob(self, g):
        return jax.scipy.stats.norm.logpdf(self.y, g[:-1], jnp.exp(g[-1])).sum()

    def fisher(self, g):
        return jnp.exp(-2 * g[-1]) * jnp.ones_like(self.y)

    def response(self, g):
        return Response(g[:-1], self.y, jnp.exp(2 * g[-1]) * jnp.ones_like(self.y))


def test_an_unknown_noise_level_is_found_too():
    """Forty data around 2 with noise 0.05, where the prior has 1: the peak is where SciPy's BFGS puts it."""
    y = jnp.asarray(2 + 0.05 * np.random.default_rng(3).standard_normal(40))
    problem = InverseProblem(
        GaussianPrior.standard(2), lambda z: jnp.concatenate([jnp.full(40, 3 * z[0]), 2 * z[1:]]), UnknownNoise(y)
    )
    found, _ = searched(problem)

    def minus_log_posterior(z):
        return 0.5 * z @ z - norm.logpdf(np.asarray(y), 3 * z[0], np.exp(2 * z[1])).sum()

    best = minimize(minus_log_posterior, [0.6, -1.3], method="BFGS")
    (peak,) = found.peaks
    # A search stops where the next step promises a tenth of a nat, which is 0.45 of a standard deviation.
    width = np.array([np.exp(2 * best.x[1]) / 3 / 40**0.5, 1 / 2 / 80**0.5])  # by Fisher's information
    assert np.all(np.abs(peak.z - best.x) < 0.6 * width)


def test_searches_keep_to_their_allowance():
    for spare in (30, 100, 1000):
        assert searched(ROOTS, spare=spare)[1] <= spare
    assert searched(ROOTS, spare=10) == (None, 0)


def test_a_known_starting_point_is_enough():
    """Where no draw of the prior is usable, what the user knows is."""
    narrow = InverseProblem(
        GaussianPrior.standard(2),
        lambda z: jnp.where(jnp.sum((z - 1) ** 2) < 0.01, 1.0, 1e3) * (z - 1),
        GaussianLikelihood(jnp.zeros(2), 0.01),
    )
    found, _ = searched(narrow, init=np.array([[1.02, 0.97]]))
    assert np.abs(found.peaks[0].z - 1).max() < 1e-3


def peak(z, log_evidence, hits, width=0.1):
    z = np.asarray(z, float)
    return Peak(z, log_evidence, np.eye(len(z)) / width, log_evidence, hits)


def test_what_says_that_a_mode_may_be_missing():
    near, far = peak([0.0, 0.0], 0.0, 9), peak([3.0, 0.0], -1.0, 1)
    draws = np.repeat([[0.0, 0.0], [3.0, 0.0]], [80, 20], axis=0)
    (sentence,) = missing_modes(Found((near, far), 20, 1.0, 4), draws)
    assert "20% of the draws are around peaks that only one of 20 searches found" in sentence
    (sentence,) = missing_modes(Found((near, far._replace(hits=5)), 20, 1.0, 4), draws[:80])
    assert (
        "about 27% of the posterior should be around peaks that a search found, and 0.0% of the draws are" in sentence
    )
    (sentence,) = missing_modes(Found((near,), 90, 1.0, 4), draws[:80])
    assert "81 of 90 searches from prior draws ended at fits too poor to matter" in sentence
    assert not missing_modes(Found((near, far._replace(hits=5)), 20, 1.0, 4), draws)
    assert not missing_modes(Found((near, far._replace(log_evidence=-9.0)), 20, 1.0, 4), draws)
    assert not missing_modes(None, draws)


def test_pilot_and_whole_ensemble_must_agree_on_the_evidence():
    assert not evidence_disagrees((-10.0, 0.3), (-10.9, 0.1))
    (sentence,) = evidence_disagrees((-10.0, 0.3), (-14.0, 0.1))
    assert "log evidence of the pilot ensemble is -10.0 and that of the whole one -14.0" in sentence


def two_places(rng, num_particles, share):
    """Draws of two places ten apart, this share of them at the second."""
    z = rng.normal(size=(num_particles, 2))
    z[: round(share * num_particles), 0] += 10.0
    return rng.permutation(z)


def test_pilot_and_whole_ensemble_must_agree_on_the_shares():
    """Standard errors by hand: shares .3 and .15 of 400 and 1,600 independent draws; fewer where draws remember."""
    rng = np.random.default_rng(0)
    pilot, whole = two_places(rng, 400, 0.3), two_places(rng, 1600, 0.15)
    places = fit(rng, pilot, Shape(2, 25.0), 2)
    pooled = (120 + 240 + 1) / 2002
    expected = 0.15 / np.sqrt(pooled * (1 - pooled) * (1 / 400 + 1 / 1600))
    assert shares_apart(places, (pilot, 0.0), (whole, 0.0)) == pytest.approx(expected, rel=1e-6)
    assert shares_apart(places, (pilot, 0.5), (whole, 0.5)) == pytest.approx(expected / 3**0.5, rel=0.01)
    assert shares_apart(places, (pilot, 0.0), (two_places(rng, 1600, 0.3), 0.0)) < 0.1
    (sentence,) = shares_disagree(expected)
    assert "shares of the modes are uncertain" in sentence
    assert not shares_disagree(3.9)


@pytest.mark.parametrize("budget", [2000, 3500, 4250, 6000, 10_000])
def test_moving_on_keeps_to_the_budget(monkeypatch, budget):
    """Whether the run was cut short before or there is room for some of the cycles."""
    problem = InverseProblem(GaussianPrior.standard(2), lambda x: x[:1] ** 2, GaussianLikelihood(jnp.ones(1), 0.5))
    monkeypatch.setattr(_tempered_smc, "shares_apart", lambda *_: 9.0)
    refine = TemperedSMC(pilot_size=128)
    posterior = infer(jax.random.key(0), problem, num_particles=256, refine=refine, max_forward_evaluations=budget)
    assert posterior.num_forward_evaluations <= budget
    assert any("max_forward_evaluations" in sentence for sentence in posterior.messages)


@pytest.mark.parametrize(("found", "warned"), [([9.0, 0.5], False), ([9.0, 8.0], True), ([0.5], False)])
def test_an_ensemble_whose_shares_are_not_the_pilots_moves_on(monkeypatch, found, warned):
    """Once: more cycles, counted; a sentence only if that did not help."""
    problem = InverseProblem(GaussianPrior.standard(2), lambda x: x[:1] ** 2, GaussianLikelihood(jnp.ones(1), 0.5))
    options: dict = {"num_particles": 256, "refine": TemperedSMC(pilot_size=128)}
    usual = infer(jax.random.key(0), problem, **options)
    answers = iter(found)
    monkeypatch.setattr(_tempered_smc, "shares_apart", lambda *_: next(answers))
    posterior = infer(jax.random.key(0), problem, **options)
    assert next(answers, None) is None
    more = posterior.stats["num_cycles"] - usual.stats["num_cycles"]
    assert (more >= 8) if len(found) == 2 else (more == 0)
    assert (posterior.num_forward_evaluations > usual.num_forward_evaluations) == (len(found) == 2)
    assert any("shares of the modes" in sentence for sentence in posterior.messages) == warned


def test_particles_belong_to_the_peak_in_whose_width_they_are():
    """A wide peak beside a narrow one: not the nearer centre, but the likelier one."""
    peaks = (peak([0.0, 0.0], 0.0, 1, width=1.0), peak([2.0, 0.0], 0.0, 1, width=0.01))
    assert list(nearest_peak(peaks, np.array([[0.1, 0.0], [1.6, 0.0], [2.005, 0.0]]))) == [0, 0, 1]


def test_groups_far_narrower_than_their_distance_are_fitted_as_narrow():
    """Clusters 1e-4 wide and 2 apart: held-out draws have the density of the truth, not 1e4 times less."""
    rng = np.random.default_rng(4)
    centres, labels = np.array([[-1.0, 0.5], [1.0, 0.0]]), np.arange(400) % 2
    z, held_out = (centres[labels] + NOISE * rng.standard_normal((400, 2)) for _ in range(2))
    truth = np.logaddexp(*(multivariate_normal(c, NOISE**2 * np.eye(2)).logpdf(held_out) - np.log(2) for c in centres))
    fits = [fit(np.random.default_rng(0), z, Shape(2, 5.0), 4, given) for given in (None, labels)]
    blind, told = (float(np.mean(truth - jax.vmap(f.log_prob)(held_out))) for f in fits)
    assert told < 0.3  # nats lost to heavy tails and inflation
    assert blind > 5


def test_a_start_around_peaks_is_normalised_and_drawn_from():
    """Its density integrates to one, and draws have the moments of the density."""
    reference = around(np.zeros((1, 2)), np.eye(2)[None], np.ones(1), 5.0, float)
    peaks = around(
        np.array([[3.0, 0.0], [-3.0, 1.0]]), 0.2 * np.array([np.eye(2)] * 2), np.array([1.0, 3.0]), 5.0, float
    )
    start = Start(reference, np.array(0.2), peaks, np.array(0.5))
    grid = np.linspace(-14, 14, 561)
    points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    density = np.exp(jax.vmap(start.log_prob)(points, jax.vmap(GaussianPrior.standard(2).log_prob)(points)))
    cell = (grid[1] - grid[0]) ** 2
    assert abs(density.sum() * cell - 1) < 0.01
    z = start.sample(np.random.default_rng(5), 20_000, Space(Evaluator(ROOTS, 256)))
    near = np.linalg.norm(z - [-3.0, 1.0], axis=1) < 1
    exact = (density * (np.linalg.norm(points - jnp.array([[-3.0, 1.0]]), axis=1) < 1)).sum() * cell
    assert abs(near.mean() - exact) < 4 * (exact * (1 - exact) / 20_000) ** 0.5


@pytest.mark.parametrize(("where", "refine"), [("_starts", TemperedSMC()), ("_importance", "auto")])
def test_every_ensemble_searches_with_random_numbers_of_its_own(monkeypatch, where, refine):
    """With the same ones all ensembles would overlook the same peaks, and agree."""
    seen = []

    class Enough(Exception):
        pass

    def record(rng, *_):
        seen.append(rng.random())
        raise Enough

    monkeypatch.setattr(f"enkg_ppl.refinement.{where}.find_peaks", record)
    for seed in (0, 1, 0):
        with pytest.raises(Enough):
            infer(jax.random.key(seed), ROOTS, num_particles=16, refine=refine)
    assert seen[0] == seen[2] != seen[1]


@pytest.mark.slow
def test_modes_that_the_guided_ensemble_loses_are_there():
    """Four roots at noise 1e-4: shares within five standard errors, evidence by the Jacobians."""
    at, jacobian, mass = solutions()
    posterior = infer(jax.random.key(0), ROOTS, num_particles=256)
    share = np.bincount(((np.asarray(posterior.draws)[:, None] - at[None]) ** 2).sum(-1).argmin(1), minlength=4) / 256
    np.testing.assert_allclose(share, mass, atol=5 * (0.25 / 256) ** 0.5)
    exact = np.logaddexp.reduce(-0.5 * (at**2).sum(1) - np.log(2 * np.pi) - np.log(np.abs(np.linalg.det(jacobian))))
    assert abs(posterior.log_evidence - exact) < 5 * posterior.log_evidence_error + 0.1
    assert not [m for m in posterior.messages if "mode" in m]
