"""The waltz leaves posteriors invariant, reaches them from a guided ensemble, and says where it has not."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.special import logsumexp
from scipy.stats import multivariate_normal, norm, poisson

from enkg_ppl import DiffusionWaltz, GaussianPrior, InverseProblem, MixturePrior, guide
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import GaussianLikelihood, PoissonLikelihood
from enkg_ppl.priors import Prior
from enkg_ppl.refinement._noising import MAX_PAIRS, RIDGE, Noising, SlopePool
from enkg_ppl.refinement._stationarity import Snapshot, compare, drift_p_value
from enkg_ppl.refinement._waltz import _Waltz

J, MANY = 512, 8192
A = np.array([[1.0, 0.5]])
Y, NOISE = np.array([1.5]), 0.3


def apply(A, x):
    return A @ x


LINEAR = InverseProblem(
    GaussianPrior.standard(2), jax.tree_util.Partial(apply, jnp.asarray(A)), GaussianLikelihood(Y, NOISE)
)
COVARIANCE = np.linalg.inv(np.eye(2) + A.T @ A / NOISE**2)
MEAN = COVARIANCE @ (A.T @ Y) / NOISE**2


def errors(draws, mean, covariance):
    """Whitened means, variances and covariances in standard errors of independent draws."""
    u = np.linalg.solve(np.linalg.cholesky(covariance), (np.asarray(draws) - mean).T).T
    n, (i, j) = len(u), np.triu_indices(len(mean), 1)
    return np.concatenate(
        [u.mean(0) * n**0.5, (np.mean(u**2, axis=0) - 1) * (n / 2) ** 0.5, np.mean(u[:, i] * u[:, j], axis=0) * n**0.5]
    )


def grid_moments(log_density, low, high, num=401):
    """Means, standard deviations and P(x0 > 0) of a density on the plane, by summation over a grid."""
    axis = np.linspace(low, high, num)
    x = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    w = log_density(x)
    w = np.exp(w - w.max())
    w /= w.sum()
    mean = w @ x
    return mean, np.sqrt(w @ (x - mean) ** 2), w @ (x[:, 0] > 0)


def test_noise_that_knows_a_linear_gaussian_likelihood():
    """Likelihood times density of x_t over N(x_t; x, sigma^2) is free of x, by SciPy's densities."""
    rng = np.random.default_rng(0)
    B, gamma, y = rng.standard_normal((3, 5)), np.array([0.5, 1.0, 2.0]), rng.standard_normal(3)
    noising = Noising.from_slope(B.T, gamma)
    H = B.T @ np.diag(1 / gamma) @ B
    sigma = np.full(6, 0.9 / np.linalg.eigvalsh(H)[-1] ** 0.5)
    x, x_t = rng.standard_normal((6, 5)), np.repeat(rng.standard_normal((1, 5)), 6, axis=0)
    shift = noising.shift(y - x @ B.T, sigma)
    P = sigma[0] ** 2 * H
    np.testing.assert_allclose(shift, (y - x @ B.T) / gamma @ B * sigma[0] ** 2)
    oracle = [
        multivariate_normal(a + s, sigma[0] ** 2 * (np.eye(5) - P)).logpdf(b) - norm(a, sigma[0]).logpdf(b).sum()
        for a, s, b in zip(x, shift, x_t, strict=True)
    ]
    ratio = noising.log_density_ratio(x_t, x, shift, sigma)
    np.testing.assert_allclose(ratio - ratio[0], np.array(oracle) - oracle[0], atol=1e-9)
    log_likelihood = np.array([multivariate_normal(B @ a, np.diag(gamma)).logpdf(y) for a in x])
    np.testing.assert_allclose(log_likelihood + ratio, log_likelihood[0] + ratio[0], atol=1e-9)


def test_noise_has_the_covariance_that_its_density_says():
    noising = Noising.from_slope(np.array([[3.0, 0.5], [0.0, 1.0], [0.0, 0.0]]), np.ones(2))
    normals = np.eye(3)
    root = noising.noise(normals, np.full(3, 0.7))  # rows: the image of each axis
    density = np.linalg.inv(root.T @ root)
    x_t = np.random.default_rng(1).standard_normal((4, 3))
    zero, sigma = np.zeros((4, 3)), np.full(4, 0.7)
    quadratic = -0.5 * np.einsum("ni,ij,nj->n", x_t, density, x_t) + 0.5 * np.sum(x_t**2, axis=1) / 0.49
    np.testing.assert_allclose(noising.log_density_ratio(x_t, zero, zero, sigma), quadratic, atol=1e-9)


def test_wild_innovations_give_bounded_shifts():
    noising = Noising.from_slope(np.eye(3)[:, :2], np.ones(2))
    shift = noising.shift(np.array([[1e100, 0.0], [0.1, 0.0]]), np.full(2, 0.5))
    np.testing.assert_allclose(shift[:, 0], [4 * 0.5 * (2 * 0.25) ** 0.5, 0.25 * 0.1])


def test_slope_pool_is_ridge_regression():
    """As the normal equations have it, whether pairs are more or fewer than dimensions; and only the latest count."""
    rng = np.random.default_rng(0)
    for dim in (3, 50):
        pool = SlopePool(dim, 2)
        assert np.all(pool.slope() == 0)
        for n in (5, 20):
            dx, dg, sigma = rng.standard_normal((n, dim)), rng.uniform(1, 2, (n, 2)), rng.uniform(1, 2, n)
            pool.add(dx, dg, sigma)
            if n == 5:
                first = dx, dg, sigma
        r, q, s = (np.concatenate(pair) for pair in zip(first, (dx, dg, sigma), strict=True))
        r, q = r / (2**0.5 * s[:, None]), q / (2**0.5 * s[:, None])
        ridge = RIDGE * np.mean(np.sum(r**2, axis=1))
        np.testing.assert_allclose(pool.slope(), np.linalg.solve(r.T @ r + ridge * np.eye(dim), r.T @ q), rtol=1e-9)
    pool.add(np.zeros((MAX_PAIRS, dim)) + np.eye(dim)[0], np.ones((MAX_PAIRS, 2)), np.ones(MAX_PAIRS))
    np.testing.assert_allclose(pool.slope()[1:], 0, atol=1e-12)


def test_slope_pool_finds_a_linear_map_despite_outliers():
    """Within 3 % of the ridge's shrinkage; five pairs in a thousand with outputs a million times too large."""
    rng = np.random.default_rng(1)
    slope = np.array([[1.0, 0.3], [-0.5, 2.0], [0.2, 0.3]])
    dx = rng.standard_normal((1000, 3))
    dg = dx @ slope
    dg[:5] *= 1e6
    pool = SlopePool(3, 2)
    pool.add(dx, dg, np.full(1000, 0.1))
    np.testing.assert_allclose(pool.slope(), slope, atol=0.06)


def test_exact_draws_stay_exact():
    """Six dimensions, four data, forty steps: all 27 whitened moments within 4.5 standard errors of J draws.

    Over 12 seeds the largest was 3.1; with nine tenths of the shift, or half the ratio that corrects for it, it is
    above 4.5 at once.
    """
    B, n = 2 * np.random.default_rng(1).standard_normal((4, 6)), 2 * MANY
    covariance = np.linalg.inv(np.eye(6) + B.T @ B)
    y = np.array([1.0, -2.0, 0.5, 3.0])
    mean = covariance @ B.T @ y
    problem = InverseProblem(
        GaussianPrior.standard(6), jax.tree_util.Partial(apply, jnp.asarray(B)), GaussianLikelihood(y, 1.0)
    )
    x = np.random.default_rng(0).multivariate_normal(mean, covariance, n)
    posterior = DiffusionWaltz(max_rounds=4, min_drift_p=0.999).run(
        jr.key(1), problem, num_particles=n, guided=jnp.asarray(x)
    )
    assert posterior.stats["num_steps"] == 40
    assert posterior.stats["correlation"] < 0.15
    assert np.abs(errors(posterior.draws, mean, covariance)).max() < 4.5
    evaluator = Evaluator(problem, 256)
    np.testing.assert_allclose(posterior.log_likelihood, evaluator.log_likelihood(posterior.draws), rtol=1e-9)


def test_from_a_guided_ensemble_with_too_little_spread():
    guided = 0.4 * guide(jr.key(2), LINEAR, num_particles=J).draws[:300]
    posterior = DiffusionWaltz().run(jr.key(3), LINEAR, num_particles=J, guided=guided)
    assert np.abs(errors(posterior.draws, MEAN, COVARIANCE)).max() < 4
    assert posterior.messages == []
    assert posterior.log_evidence is None
    assert "TemperedSMC" in posterior.why_no_evidence
    assert posterior.num_forward_evaluations == J * (1 + posterior.stats["num_steps"])
    assert abs(posterior.stats["acceptance"] - 0.3) < 0.1


def test_a_mixture_prior_with_a_nonlinear_simulator():
    """Two modes of unequal mass under a curved likelihood: grid moments and mass within 4 standard errors."""
    weights, means, sd, y, noise = np.array([0.3, 0.7]), np.array([[-1.0, 0.0], [1.0, 0.5]]), 0.6, 1.0, 0.5

    def log_density(x):
        parts = [np.log(w) + norm(m, sd).logpdf(x).sum(axis=1) for w, m in zip(weights, means, strict=True)]
        return logsumexp(parts, axis=0) + norm(x[:, 0] ** 2 + x[:, 1], noise).logpdf(y)

    mean, deviation, mass = grid_moments(log_density, -4, 4)
    problem = InverseProblem(
        MixturePrior(weights, means, np.full(2, sd**2)),
        lambda x: x[:1] ** 2 + x[1:],
        GaussianLikelihood(jnp.array([y]), noise),
    )
    posterior = DiffusionWaltz(max_rounds=8, min_drift_p=0.999).run(jr.key(4), problem, num_particles=MANY)
    assert np.all(np.abs(posterior.mean() - mean) < 4 * deviation / MANY**0.5)
    # the fourth moment of these densities is below 5 sd^4, so the relative error of the variance is below sqrt(4 / J)
    assert np.all(np.abs(posterior.sd() ** 2 / deviation**2 - 1) < 4 * (4 / MANY) ** 0.5)
    assert abs(np.mean(posterior.draws[:, 0] > 0) - mass) < 4 * (mass * (1 - mass) / MANY) ** 0.5
    assert 0.05 < mass < 0.95


def test_poisson_counts():
    """Counts whose noise depends on the particle, against a grid."""
    counts, base = np.array([3.0, 0.0, 7.0]), np.array([[1.0, 0.3], [-0.5, 0.8], [0.6, 0.9]])

    def log_density(x):
        return norm.logpdf(x).sum(axis=1) + poisson(np.exp(1 + x @ base.T)).logpmf(counts).sum(axis=1)

    mean, deviation, _ = grid_moments(log_density, -5, 5)
    problem = InverseProblem(GaussianPrior.standard(2), lambda x: jnp.exp(1 + base @ x), PoissonLikelihood(counts))
    posterior = DiffusionWaltz(max_rounds=4, min_drift_p=0.999).run(jr.key(5), problem, num_particles=MANY)
    assert np.all(np.abs(posterior.mean() - mean) < 4 * deviation / MANY**0.5)
    assert np.all(np.abs(posterior.sd() ** 2 / deviation**2 - 1) < 4 * (3 / MANY) ** 0.5)


def test_fewer_particles_than_dimensions():
    """64 dimensions, 16 data, 40 particles, from an ensemble a prior sd off and too narrow: it comes home.

    Mean square of the whitened mean within 5 sd of what 40 draws give, mean variance ratio within 0.25.
    """
    rng = np.random.default_rng(6)
    variances = 1 / (1.0 + np.arange(64))
    B = 0.5 * rng.standard_normal((16, 64))
    y = B @ (np.sqrt(variances) * rng.standard_normal(64)) + rng.standard_normal(16)
    covariance = np.linalg.inv(np.diag(1 / variances) + B.T @ B)
    mean = covariance @ B.T @ y
    prior = GaussianPrior(jnp.zeros(64), jnp.asarray(variances))
    problem = InverseProblem(prior, jax.tree_util.Partial(apply, jnp.asarray(B)), GaussianLikelihood(y, 1.0))
    start = np.sqrt(variances) * (1 + 0.5 * rng.standard_normal((40, 64)))
    posterior = DiffusionWaltz().run(jr.key(7), problem, num_particles=40, guided=start)
    assert posterior.messages == []
    u = np.linalg.solve(np.linalg.cholesky(covariance), (np.asarray(posterior.draws) - mean).T).T
    assert abs(np.mean(u.mean(0) ** 2) * 40 - 1) < 5 * (2 / 64) ** 0.5
    assert abs(np.mean(u.var(0, ddof=1)) - 1) < 0.25


@pytest.mark.parametrize(
    ("forward", "failures"),
    [
        (lambda x: jnp.where(x[:1] > 1.2, jnp.nan, x[:1] + 0.5 * x[1:]), True),
        (lambda x: jnp.exp(300 * x[:1]), False),  # far beyond the data, a likelihood of zero
    ],
    ids=["nan", "overflow"],
)
def test_failing_simulations_are_rejections(forward, failures):
    problem = InverseProblem(LINEAR.prior, forward, LINEAR.likelihood)
    posterior = DiffusionWaltz(max_rounds=2).run(jr.key(8), problem, num_particles=J)
    assert (posterior.stats["num_failed"] > 0) == failures
    assert np.all(np.isfinite(posterior.draws))
    assert np.all(np.isfinite(posterior.log_likelihood))


class NoResponse(GaussianLikelihood):
    def response(self, g):
        raise TypeError("no working response")


def test_a_likelihood_without_working_response():
    """Plain noise, nothing else: exact draws stay exact."""
    problem = InverseProblem(LINEAR.prior, LINEAR.forward, NoResponse(jnp.asarray(Y), NOISE))
    x = np.random.default_rng(1).multivariate_normal(MEAN, COVARIANCE, MANY)
    posterior = DiffusionWaltz(max_rounds=4, min_drift_p=0.999).run(jr.key(12), problem, num_particles=MANY, guided=x)
    assert np.abs(errors(posterior.draws, MEAN, COVARIANCE)).max() < 4
    assert np.any(posterior.draws != x)


def test_without_data_the_prior_comes_back_at_once():
    problem = InverseProblem(LINEAR.prior, jax.tree_util.Partial(apply, jnp.zeros((1, 2))), LINEAR.likelihood)
    start = 0.1 * np.random.default_rng(2).standard_normal((J, 2))
    posterior = DiffusionWaltz().run(jr.key(13), problem, num_particles=J, guided=start)
    assert posterior.stats["acceptance"] == 1.0
    assert posterior.stats["sigma"] <= 10
    assert np.abs(errors(posterior.draws, np.zeros(2), np.eye(2))).max() < 4


def test_a_prior_without_closed_form_draws():
    """A denoiser alone: conditional draws by the reverse SDE; moments within 0.15 sd and 20 % (its own error)."""
    prior = DenoiserOnly(LINEAR.prior)
    problem = InverseProblem(prior, LINEAR.forward, LINEAR.likelihood)
    posterior = DiffusionWaltz(num_draw_steps=16).run(jr.key(14), problem, num_particles=J, guided=np.zeros((J, 2)))
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(posterior.mean() - MEAN) < (0.15 + 4 / J**0.5) * sd)
    assert np.all(np.abs(posterior.sd() / sd - 1) < 0.2)


class DenoiserOnly(Prior):
    """What a network offers."""

    of: GaussianPrior

    @property
    def dim(self):
        return self.of.dim

    @property
    def location(self):
        return self.of.location

    @property
    def scale(self):
        return self.of.scale

    def denoise(self, x, sigma):
        return self.of.denoise(x, sigma)


def test_each_half_learns_from_the_other():
    evaluator = Evaluator(LINEAR, 256)
    waltz = _Waltz(DiffusionWaltz(), np.random.default_rng(0), LINEAR, evaluator, J, None)
    waltz.step()
    before = waltz.halves[1].pool.slope()
    waltz.step()
    gamma = np.array([NOISE**2])
    first, second = (half.noising.slopes for half in waltz.halves)
    np.testing.assert_allclose(first, Noising.from_slope(before, gamma).slopes)
    np.testing.assert_allclose(second, Noising.from_slope(waltz.halves[0].pool.slope(), gamma).slopes)
    assert not np.allclose(first, second, rtol=1e-6)


def test_evaluations_run_out():
    """Never more than the budget, and a sentence that says what is missing and what to do."""
    evaluator = Evaluator(LINEAR, 256)
    evaluator.limit = 5 * J + 100
    told = []
    posterior = DiffusionWaltz().run(
        jr.key(9),
        LINEAR,
        num_particles=J,
        evaluator=evaluator,
        progress=lambda fraction, words: told.append((fraction, words)),
    )
    assert posterior.num_forward_evaluations == 5 * J
    assert len(posterior.messages) == 1
    for words in (
        "after 4 steps",
        "evaluations ran out",
        "still remember their start",
        "raise max_forward_evaluations",
    ):
        assert words in posterior.messages[0]
    assert told[-1] == (1.0, "4 steps")
    assert told[0][1].startswith("correlation ")
    evaluator.limit = evaluator.count + J - 1
    with pytest.raises(ValueError, match="needs a forward evaluation for each of its 512 starting .* 511 are left"):
        DiffusionWaltz().run(jr.key(9), LINEAR, num_particles=J, evaluator=evaluator)


def test_rounds_are_over():
    posterior = DiffusionWaltz(max_rounds=1, steps_per_round=1).run(jr.key(10), LINEAR, num_particles=J)
    assert "after 1 steps because max_rounds=1 were over" in posterior.messages[0]
    assert "raise max_rounds" in posterior.messages[0]


def test_an_evaluator_for_another_space_is_not_used_but_its_account_is():
    other = Evaluator(InverseProblem(GaussianPrior.standard(2), LINEAR.forward, LINEAR.likelihood), 256)
    other.limit = 3 * J
    posterior = DiffusionWaltz().run(jr.key(11), LINEAR, num_particles=J, evaluator=other)
    assert other.count == posterior.num_forward_evaluations == 3 * J


def test_drift_is_found_and_equilibrium_is_not_called_drift():
    """Correlated pairs in equilibrium: p < 0.05 in at most 12 of 100 (binomial, 3 sd); shifted by 0.4 sd: often."""
    rng = np.random.default_rng(12)
    quiet, shifted = [], []
    for _ in range(100):
        then = rng.standard_normal((200, 3))
        now = 0.5 * then + 0.75**0.5 * rng.standard_normal((200, 3))
        before = Snapshot(then, -np.sum(then**2, axis=1))
        quiet.append(drift_p_value(rng, before, Snapshot(now, -np.sum(now**2, axis=1))))
        moved = now + np.array([0.4, 0.0, 0.0])
        shifted.append(drift_p_value(rng, before, Snapshot(moved, -np.sum(now**2, axis=1))))
    assert np.sum(np.array(quiet) < 0.05) <= 12
    assert np.mean(quiet) < 0.6
    assert np.sum(np.array(shifted) < 0.05) >= 95


def test_forgotten_is_told_from_remembered():
    """Along 30 dimensions, one of which hardly moves: the widest directions find it."""
    rng = np.random.default_rng(13)
    x = rng.standard_normal((1000, 30)) * np.linspace(3, 1, 30)
    fresh = rng.standard_normal((1000, 30)) * np.linspace(3, 1, 30)
    stuck = np.concatenate([x[:, :1], fresh[:, 1:]], axis=1)
    noise = [rng.standard_normal(1000) for _ in range(2)]
    first = Snapshot(x, noise[0])
    assert compare(rng, [first, Snapshot(fresh, noise[1])], 0.15).good(0.001)
    verdict = compare(rng, [first, Snapshot(stuck, noise[1])], 0.15)
    assert verdict.drift_p is None
    assert verdict.correlation > 0.6


@pytest.mark.parametrize(
    "bad",
    [
        {"max_rounds": 0},
        {"steps_per_round": 0},
        {"acceptance": 1.0},
        {"spread": -0.1},
        {"max_correlation": 0.0},
        {"min_drift_p": 1.0},
    ],
)
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"DiffusionWaltz needs .*{next(iter(bad))}"):
        DiffusionWaltz(**bad)


def test_too_few_particles():
    with pytest.raises(ValueError, match="at least 4 particles.*got num_particles=3"):
        DiffusionWaltz().run(jr.key(0), LINEAR, num_particles=3)
