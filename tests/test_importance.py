"""Weighted draws: closed forms, no bias from fits to what is weighed, nothing simulated twice, when it gives up."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from scipy.stats import multivariate_normal, norm

from enkg_ppl import (
    AdaptiveImportanceSampling,
    DiffusionPrior,
    EnKG,
    GaussianPrior,
    InverseProblem,
    MixturePrior,
    TemperedSMC,
    blackbox,
    infer,
)
from enkg_ppl.diagnostics._weights import effective_size
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.mixtures._fit import Shape, fit
from enkg_ppl.mixtures._student import around
from enkg_ppl.numpyro import _result
from enkg_ppl.refinement._importance import _Sampling, flattening
from enkg_ppl.refinement._missing import evidence_disagrees
from enkg_ppl.refinement._pool import Halves, Pool, Proposal
from enkg_ppl.refinement.moves._stratified import draws_of, latin_hypercube

J = 512
A = np.random.default_rng(0).standard_normal((4, 6))
Y, NOISE = np.array([0.5, -1.0, 2.0, 0.3]), 0.3
LINEAR = InverseProblem(
    GaussianPrior.standard(6), lambda x: jnp.asarray(A) @ x, GaussianLikelihood(jnp.asarray(Y), NOISE)
)
COVARIANCE = np.linalg.inv(np.eye(6) + A.T @ A / NOISE**2)
MEAN = COVARIANCE @ A.T @ Y / NOISE**2
EVIDENCE = multivariate_normal(np.zeros(4), A @ A.T + NOISE**2 * np.eye(4)).logpdf(Y)


def test_linear_gaussian_posterior_and_evidence():
    posterior = infer(jr.key(0), LINEAR, num_particles=J)
    assert posterior.method == "AdaptiveImportanceSampling"
    assert posterior.stats["weight_ess"] >= 0.9 * J
    sd = np.sqrt(np.diag(COVARIANCE))
    error = np.abs(posterior.mean() - MEAN) / sd
    assert error.max() < 4 / (0.9 * J) ** 0.5
    np.testing.assert_allclose(posterior.sd() / sd, 1, atol=4 / (2 * 0.9 * J) ** 0.5)
    assert abs(posterior.log_evidence - EVIDENCE) < 4 * posterior.log_evidence_error
    assert posterior.num_forward_evaluations < 5 * J, "a fraction of what moving particles takes"
    np.testing.assert_allclose(
        posterior.log_likelihood, jax.vmap(LINEAR.log_likelihood)(jnp.asarray(posterior.draws)), rtol=1e-9
    )
    assert not posterior.messages


def ring(n: int, rng) -> np.ndarray:
    """Draws of a ring, which no small mixture fits."""
    angle = rng.uniform(0, 2 * np.pi, n)
    return (1 + 0.1 * rng.standard_normal(n))[:, None] * np.stack([np.cos(angle), np.sin(angle)], 1)


def evidence_of_ring(seed: int, own: bool) -> float:
    """Log of an evidence that is 1: rounds of 100 points, each from mixtures fitted to what was drawn before.

    `own`: each pool's proposals are fitted to its own points.
    """
    rng = np.random.default_rng(seed)

    def log_target(z):
        r = np.linalg.norm(z, axis=1)
        return norm(1, 0.1).logpdf(r) - np.log(2 * np.pi * r)

    halves = Halves(2)
    references = [fit(rng, ring(30, rng), Shape(4, 5.0), 4) for _ in halves.pools]
    for _ in range(4):
        for pool, reference in zip(halves.pools, references, strict=True):
            proposal = Proposal(((0.9, reference), (0.1, None)))
            z = proposal.sample(rng, 50, 2)
            pool.add(proposal, z, log_target(z) + 0.5 * (z**2).sum(1) + np.log(2 * np.pi))
        fitted = []
        for pool in halves.pools:
            weights = np.exp(pool.log_weights() - pool.log_weights().max())
            weights *= effective_size(pool.log_weights()) / weights.sum()
            fitted.append(fit(rng, pool.z, Shape(8, 25.0), 8, None, weights))
        references = fitted if own else fitted[::-1]
    return float(np.logaddexp.reduce(halves.log_weights()) - np.log(len(halves)))


def test_points_are_not_weighed_by_mixtures_that_were_fitted_to_them():
    """Those are high where the points are: the evidence would be too small, in 30 runs by several standard errors."""
    crossed, own = (np.exp([evidence_of_ring(seed, own) for seed in range(30)]) for own in (False, True))
    error = crossed.std(ddof=1) / 30**0.5
    assert abs(crossed.mean() - 1) < 4 * error
    assert own.mean() < 1 - 6 * own.std(ddof=1) / 30**0.5, "this is what it guards against"


def test_each_pool_gets_the_mixture_that_is_fitted_to_the_other():
    halves, rng = Halves(2), np.random.default_rng(4)
    for pool, place in zip(halves.pools, (-2.0, 2.0), strict=True):
        z = place + 0.3 * rng.standard_normal((200, 2))
        pool.add(Proposal(), z, norm(place, 0.3).logpdf(z).sum(1) - norm.logpdf(z).sum(1))
    sampling = _Sampling(AdaptiveImportanceSampling(), rng, Evaluator(LINEAR, 8), halves, np.dtype(float), J, 0, None)
    first, second = sampling.refit(sampling.look(400))
    assert np.all(first.mixture.means[first.mixture.log_weights > -np.inf] > 1)
    assert np.all(second.mixture.means[second.mixture.log_weights > -np.inf] < -1)


def normal_pool(rng, n: int = 400) -> Pool:
    """N(mean 0.3, sd 0.8) in two dimensions, weighed under two proposals; its evidence is 1."""
    pool = Pool(2)
    for scale in (1.2, 0.9):
        reference = around(np.full((1, 2), 0.2), scale**2 * 0.64 * np.eye(2)[None], np.ones(1), 25.0, float)
        proposal = Proposal(((0.95, reference), (0.05, None)))
        z = proposal.sample(rng, n, 2)
        target = norm(0.3, 0.8).logpdf(z).sum(1)
        pool.add(proposal, z, target + 0.5 * (z**2).sum(1) + np.log(2 * np.pi))
    return pool


def test_weights_are_over_the_mean_density_of_all_proposals():
    pool = normal_pool(np.random.default_rng(0))
    mean_density = np.mean([np.exp(p.log_prob(pool.z)) for p in pool._proposals], axis=0)
    np.testing.assert_allclose(
        pool.log_weights(), norm(0.3, 0.8).logpdf(pool.z).sum(1) - np.log(mean_density), rtol=1e-9, atol=1e-9
    )


def test_calibrated_weights_have_less_error_and_no_bias():
    errors = {}
    for name in ("log_weights", "calibrated_log_weights"):
        found = []
        for seed in range(60):
            pool = normal_pool(np.random.default_rng(seed))
            weights = np.exp(getattr(pool, name)())
            found.append([*(weights @ pool.z / weights.sum() - 0.3), weights.mean() - 1])
        errors[name] = np.array(found)
        standard_error = errors[name].std(axis=0, ddof=1) / 60**0.5
        assert np.all(np.abs(errors[name].mean(axis=0)) < 4 * standard_error + 1e-3)
    before, after = (np.sqrt(np.mean(errors[name] ** 2, axis=0)) for name in errors)
    assert np.all(after < [0.85, 0.85, 0.6] * before)


@pytest.mark.parametrize(("share", "distance"), [(0.003, 40.0), (1e-4, 1e3), (0.02, 12.0), (1e-8, 5.0)])
def test_a_component_that_was_never_drawn_does_not_move_the_evidence(share, distance):
    """Its mass is known and in no point: a factor for all of them, as large as rounding makes it."""
    rng = np.random.default_rng(5)
    means = np.stack([np.zeros(2), [distance, 0.0]])
    mixture = around(means, np.stack([np.eye(2)] * 2), np.array([1 - share, share]), 25.0, float)
    proposal = Proposal(((0.95, mixture), (0.05, None)))
    near = around(means[:1], np.eye(2)[None], np.ones(1), 25.0, float)
    pool = Pool(2)
    pool.add(Proposal(), z := rng.standard_normal((200, 2)), norm(0.3, 0.8).logpdf(z).sum(1) - norm.logpdf(z).sum(1))
    drawn = Proposal(((0.95, near), (0.05, None))).sample(rng, 400, 2)  # as it happens: none of the far one
    pool.add(proposal, drawn, norm(0.3, 0.8).logpdf(drawn).sum(1) - norm.logpdf(drawn).sum(1))
    log_evidence = np.logaddexp.reduce(pool.calibrated_log_weights()) - np.log(len(pool))
    error = (1 / effective_size(pool.log_weights()) - 1 / len(pool)) ** 0.5
    assert abs(log_evidence) < 4 * error + share


def test_halves_that_disagree_on_the_evidence_are_told():
    """One half has points in a mode that holds nine tenths, and the other has none: no error of theirs knows of it."""
    halves, rng = Halves(2), np.random.default_rng(6)
    for pool, log_mass in zip(halves.pools, (1.0, -1.3), strict=True):
        z = rng.standard_normal((400, 2))
        pool.add(Proposal(), z, log_mass + 0.01 * rng.standard_normal(400))
    first, second = halves.log_evidences()
    (one, error), other = first, second[0]
    assert one - other == pytest.approx(2.3, abs=0.01)
    assert error < 0.01
    names = ("one half of the weighted draws", "the other")
    (sentence,) = evidence_disagrees(first, second, names)
    assert "the log evidence of one half of the weighted draws is 1.0 and that of the other -1.3, which" in sentence
    assert evidence_disagrees((one, error), (one - 0.9, error), names) == []


def test_a_run_whose_halves_disagree_is_not_trusted(monkeypatch):
    monkeypatch.setattr(Halves, "log_evidences", lambda self: [(0.0, 0.1), (5.0, 0.1)])
    posterior = infer(jr.key(0), LINEAR, num_particles=128, refine=AdaptiveImportanceSampling())
    assert any("one half of the weighted draws" in sentence for sentence in posterior.messages)


def test_draws_of_a_mixture_are_spread_evenly():
    rng = np.random.default_rng(1)
    u = latin_hypercube(rng, 100, 3)
    np.testing.assert_array_equal(np.sort((u * 100).astype(int), axis=0), np.arange(100)[:, None] * np.ones(3))
    covariances = np.stack([0.5 * np.eye(2), np.array([[1.0, 0.6], [0.6, 0.5]])])
    reference = around(np.array([[-30.0, 0.0], [30.0, 1.0]]), covariances, np.array([0.25, 0.75]), 25.0, float)
    z = draws_of(rng, reference, 4000)
    right = z[:, 0] > 0
    assert right.sum() == 3000
    # Student-t with 25 degrees of freedom: 25 / 23 of the covariance.
    np.testing.assert_allclose(np.cov(z[right].T), 25 / 23 * covariances[1], atol=4 * 2**0.5 / 3000**0.5)
    assert np.abs(z[right].mean(axis=0) - [30, 1]).max() < 0.2 / 3000**0.5, "stratified: hardly any error"


def test_resampling_takes_points_as_often_as_they_weigh():
    halves = Halves(2)
    for seed, pool in enumerate(halves.pools):
        other = normal_pool(np.random.default_rng(seed), 100)
        for name in ("z", "log_target", "_proposals", "_counts", "_log_q"):
            setattr(pool, name, getattr(other, name))
    weights = np.exp(halves.calibrated_log_weights())
    counts = np.bincount(halves.resample(np.random.default_rng(2), 1000), minlength=len(halves))
    due = 1000 * weights / weights.sum()
    assert counts.sum() == 1000
    assert np.abs(counts - due).max() < 1 + 1e-9


def test_flattened_weights():
    log_weights = np.array([0.0, -1.0, -3.0, -np.inf, -50.0] * 20)
    power = flattening(log_weights, 39)
    assert 0 < power < 1
    assert effective_size(power * log_weights) == pytest.approx(39, rel=1e-3)
    assert flattening(np.zeros(50), 39) == 1.0


def test_weighted_fit_is_the_fit_to_draws_that_are_repeated():
    rng = np.random.default_rng(3)
    z, times = rng.standard_normal((60, 2)), rng.integers(1, 5, 60)
    weighted = fit(np.random.default_rng(0), z, Shape(1, 5.0), 1, None, times.astype(float))
    repeated = fit(np.random.default_rng(0), np.repeat(z, times, axis=0), Shape(1, 5.0), 1)
    np.testing.assert_allclose(weighted.mixture.means, repeated.mixture.means, atol=1e-9)
    np.testing.assert_allclose(weighted.mixture.chols, repeated.mixture.chols, atol=1e-9)


# -- as a user has it -----------------------------------------------------------------------------------------------

CALLS = []
simulate = blackbox(
    lambda x: CALLS.append(len(x)) or np.stack([np.exp(x[:, 0]), x[:, 0] * x[:, 1]], 1), (2,), vectorized=True
)


def curved(y=None):
    x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    f = numpyro.deterministic("f", simulate(x))
    numpyro.sample("y", dist.Normal(f, 0.2).to_event(1), obs=y)


@pytest.mark.parametrize("method", ["sequential", "vectorized"])
def test_nothing_is_simulated_twice(method):
    """Deterministic sites and likelihoods of the draws are those of the simulations that were weighed."""
    CALLS.clear()
    enkg = EnKG(curved, num_particles=J, num_ensembles=2, ensemble_method=method, progress_bar=False)
    enkg.run(jr.key(1), y=jnp.array([1.5, 0.2]))
    repeats = 2  # of a simulation, by which a random one is found out
    assert sum(CALLS) == enkg.num_forward_evaluations
    searches = 2 * 400
    assert enkg.num_forward_evaluations <= 2 * enkg.diagnostics()["weights"] + searches + repeats, "no last look in it"
    x, f = (np.asarray(enkg.get_samples()[name]) for name in ("x", "f"))
    np.testing.assert_allclose(f, np.stack([np.exp(x[:, 0]), x[:, 0] * x[:, 1]], 1), rtol=1e-12)
    exact = dist.Normal(f, 0.2).log_prob(jnp.array([1.5, 0.2])[None]).sum(-1)
    np.testing.assert_allclose(enkg.get_log_likelihood()["y"], exact, rtol=1e-9)
    potential = -dist.Normal().log_prob(x).sum(-1) - exact
    np.testing.assert_allclose(enkg.get_extra_fields()["potential_energy"], potential, rtol=1e-9)
    assert enkg.diagnostics().warnings == []
    assert enkg.diagnostics()["r_hat"] < 1.05


def test_failed_simulations_have_no_weight():
    broken = blackbox(lambda x: np.where(x[:, :1] > 0.5, np.nan, x), (1,), vectorized=True, on_failure="reject")

    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([1]).to_event(1))
        count = numpyro.deterministic("count", jnp.floor(3 * x).astype(int))
        numpyro.sample("y", dist.Normal(broken(x) + 0 * count, 0.5).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=J, progress_bar=False)
    with pytest.warns(UserWarning, match="simulations"):
        enkg.run(jr.key(2), y=jnp.array([0.4]))
    x = np.asarray(enkg.get_samples()["x"])[:, 0]
    assert x.max() <= 0.5
    grid = np.linspace(-6, 0.5, 20_001)
    density = norm.pdf(grid) * norm(0.4, 0.5).pdf(grid)
    mean = np.average(grid, weights=density)
    sd = np.average((grid - mean) ** 2, weights=density) ** 0.5
    assert abs(x.mean() - mean) < 4 * sd / (0.9 * J) ** 0.5
    assert np.issubdtype(enkg.get_samples()["count"].dtype, np.integer)


@pytest.mark.parametrize("num_ensembles", [1, 3])
def test_the_weighted_set(num_ensembles):
    """Of all that was simulated: means to four standard errors of what the weights are worth, beyond what draws are."""

    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([6]).to_event(1))
        g = numpyro.deterministic("g", jnp.asarray(A) @ x)
        numpyro.sample("y", dist.Normal(g, NOISE).to_event(1), obs=y)

    enkg = EnKG(model, num_particles=128, num_ensembles=num_ensembles, progress_bar=False)
    enkg.run(jr.key(3), y=Y)
    samples, weights = jax.device_get(enkg.get_weighted_samples())
    assert set(samples) == {"x", "g"}
    assert len(weights) == len(samples["x"]) > 2 * 128 * num_ensembles
    assert float(weights.sum()) == pytest.approx(1)
    np.testing.assert_allclose(samples["g"], samples["x"] @ A.T, rtol=1e-9)
    size = float(1 / (weights**2).sum())
    assert size >= 0.9 * 128 * num_ensembles
    sd = np.sqrt(np.diag(COVARIANCE))
    mean = np.asarray(weights @ samples["x"])
    assert np.abs((mean - MEAN) / sd).max() < 4 / size**0.5
    spread = np.asarray(weights @ (samples["x"] - mean) ** 2) ** 0.5
    np.testing.assert_allclose(spread / sd, 1, atol=4 / (2 * size) ** 0.5)
    assert set(map(tuple, np.asarray(enkg.get_samples()["x"]))) <= set(map(tuple, np.asarray(samples["x"])))


def test_a_weighted_set_that_is_too_large_is_not_kept(monkeypatch):
    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    monkeypatch.setattr(_result, "MOST_WEIGHTED_BYTES", 1000)
    enkg = EnKG(model, num_particles=64, progress_bar=False)
    enkg.run(jr.key(0), y=0.5)
    with pytest.raises(ValueError, match="more than 256 MB and were not kept: use get_samples"):
        enkg.get_weighted_samples()


def test_draws_that_were_moved_have_no_weighted_set():
    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(x, 1.0), obs=y)

    enkg = EnKG(model, num_particles=64, refine=None, progress_bar=False)
    enkg.run(jr.key(0), y=0.5)
    with pytest.raises(ValueError, match=r"moved, not weighted \(none: asked for\): use get_samples"):
        enkg.get_weighted_samples()


def test_a_diffusion_prior_is_weighed_in_z():
    prior = MixturePrior([0.3, 0.7], jnp.array([[-2.0, 0.0], [1.5, 1.0]]), jnp.array([[0.3, 0.3], [0.3, 0.3]]))

    def model(y=None):
        x = numpyro.sample("x", DiffusionPrior(prior, (2,)))
        numpyro.sample("y", dist.Normal(x[0], 1.0), obs=y)

    enkg = EnKG(model, num_particles=J, progress_bar=False)
    enkg.run(jr.key(3), y=0.2)
    assert enkg.diagnostics()["method"] == "AdaptiveImportanceSampling"
    evidence = np.array([0.3, 0.7]) * norm(np.array([-2.0, 1.5]), np.sqrt(1.3)).pdf(0.2)
    share = np.mean(np.asarray(enkg.get_samples()["x"])[:, 0] < -0.4)
    means = np.array([-2.0, 1.5]) + 0.3 / 1.3 * (0.2 - np.array([-2.0, 1.5]))
    exact = (evidence * norm(means, (0.3 / 1.3) ** 0.5).cdf(-0.4)).sum() / evidence.sum()
    assert abs(share - exact) < 4 * (0.25 / (0.9 * J)) ** 0.5
    assert abs(enkg.log_evidence - np.log(evidence.sum())) < 4 * enkg.diagnostics()["log_evidence_error"] + 0.02


def hidden(z):
    """A needle in nine dimensions: |z|^2 is known to 0.1 %, so that the posterior is a thin sphere."""
    return jnp.sum(z**2)[None]


def test_it_gives_way_to_moves_where_no_mixture_fits():
    problem = InverseProblem(GaussianPrior.standard(9), hidden, GaussianLikelihood(jnp.array([9.0]), 0.05))
    posterior = infer(jr.key(4), problem, num_particles=128)
    assert posterior.method.endswith("TemperedSMC")
    assert posterior.stats["refinement"].startswith("TemperedSMC: ")
    assert "weighted draws" in posterior.stats["refinement"]
    square = (np.asarray(posterior.draws) ** 2).sum(axis=1)
    assert np.abs(square - 9).max() < 0.5


def test_what_is_too_large_to_be_kept_is_simulated_again_within_the_budget(monkeypatch):
    monkeypatch.setattr("enkg_ppl.refinement._pool.MOST_BYTES", 20_000)
    CALLS.clear()
    enkg = EnKG(curved, num_particles=J, progress_bar=False, max_forward_evaluations=1500)
    with pytest.warns(UserWarning, match="budget of forward evaluations"):
        enkg.run(jr.key(1), y=jnp.array([1.5, 0.2]))
    assert 1400 < sum(CALLS) == enkg.num_forward_evaluations <= 1500
    x, f = (np.asarray(enkg.get_samples()[name]) for name in ("x", "f"))
    np.testing.assert_allclose(f, np.stack([np.exp(x[:, 0]), x[:, 0] * x[:, 1]], 1), rtol=1e-12)


def test_weighted_draws_that_were_asked_for_say_where_they_do_not_do():
    problem = InverseProblem(GaussianPrior.standard(9), hidden, GaussianLikelihood(jnp.array([9.0]), 0.05))
    posterior = infer(jr.key(4), problem, num_particles=128, refine=AdaptiveImportanceSampling(max_evaluations=8.0))
    assert any("weighted draws came to nothing more where the draws are worth" in said for said in posterior.messages)


def test_shares_are_right_on_average_however_few_draws_there_are():
    """Rounded to the nearest number, a share of 5 % would get none of eight draws, and the weights believe it did."""
    reference = around(np.full((1, 2), 50.0), np.eye(2)[None], np.ones(1), 25.0, float)
    proposal = Proposal(((0.95, reference), (0.05, None)))
    rng = np.random.default_rng(5)
    of_prior = [(proposal.sample(rng, 8, 2)[:, 0] < 25).sum() for _ in range(4000)]
    assert abs(np.mean(of_prior) - 0.4) < 4 * np.std(of_prior) / 4000**0.5


@pytest.mark.parametrize("budget", [70, 160, 400, 900])
def test_a_budget_is_never_exceeded_and_its_end_is_told(budget):
    problem = InverseProblem(GaussianPrior.standard(9), hidden, GaussianLikelihood(jnp.array([9.0]), 0.05))
    if budget < 80:
        with pytest.raises(ValueError, match=r"max_forward_evaluations=70 is too few .*: allow at least 160, or lower"):
            infer(jr.key(5), problem, num_particles=J, max_forward_evaluations=budget)
        return
    posterior = infer(jr.key(5), problem, num_particles=J, max_forward_evaluations=budget)
    assert posterior.num_forward_evaluations <= budget
    (told,) = [sentence for sentence in posterior.messages if "the budget of forward evaluations ended" in sentence]
    assert "raise max_forward_evaluations" in told
    assert np.isfinite(np.asarray(posterior.draws)).all()


def test_what_is_asked_for_is_done():
    posterior = infer(jr.key(6), LINEAR, num_particles=J, refine=AdaptiveImportanceSampling(effective_share=0.3))
    assert posterior.stats["refinement"] == "AdaptiveImportanceSampling: asked for"
    assert 0.3 * J <= posterior.stats["weight_ess"] < 0.9 * J
    moved = infer(jr.key(6), LINEAR, num_particles=128, refine=TemperedSMC())
    assert moved.method == "KalmanCorrection + TemperedSMC"


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"effective_share": 1.5}, "0 < effective_share < 1; got effective_share=1.5"),
        ({"defensive_weight": 0.0}, "0 < defensive_weight < 1; got defensive_weight=0.0"),
        ({"num_components": 0}, "num_components as a whole number >= 1; got 0"),
        ({"max_evaluations": -1.0}, "max_evaluations > 0; got -1.0"),
    ],
)
def test_bad_settings(bad, words):
    with pytest.raises(ValueError, match=f"AdaptiveImportanceSampling needs {words}"):
        AdaptiveImportanceSampling(**bad)
