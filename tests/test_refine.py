"""Moves leave their target invariant, the mixture is SciPy's, and tempering gives closed-form posteriors."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t

from enkg_ppl import GaussianLikelihood, GaussianPrior, InverseProblem, MixturePrior, TemperedSMC, guide
from enkg_ppl._forward import Evaluator
from enkg_ppl._refine._moves import Group, Start, Target, jump, slice_move
from enkg_ppl._refine._reference import fit, inflated

J, DIM = 512, 2
MANY = 65_536  # exact draws to start from: a small bias of a move must show
A = jnp.array([[1.0, 0.5]])
Y, NOISE = jnp.array([1.5]), 0.3
LINEAR = InverseProblem(GaussianPrior.standard(DIM), lambda x: A @ x, GaussianLikelihood(Y, NOISE))
COVARIANCE = np.linalg.inv(np.eye(DIM) + A.T @ A / NOISE**2)
MEAN = COVARIANCE @ (A.T @ Y) / NOISE**2
EVIDENCE = multivariate_normal(np.zeros(1), np.asarray(A @ A.T) + NOISE**2).logpdf(np.asarray(Y))


@pytest.fixture(scope="module")
def exact():
    """Draws from the exact posterior of `LINEAR`, with their likelihoods."""
    z = jnp.asarray(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, MANY))
    evaluator = Evaluator(LINEAR, MANY)
    return Group(z, evaluator.log_likelihood(z))


@pytest.fixture(scope="module")
def reference():
    """A mixture fitted to other points than the posterior's, so that moves have something to correct."""
    z = jr.normal(jr.key(7), (J, DIM)) * jnp.array([[0.7, 1.0]]) + jnp.array([[1.0, 0.3]])
    return fit(jr.key(8), z, 3)


def test_mixture_density_is_scipys(reference):
    point = np.array([0.4, -0.2])
    parts = [
        np.exp(log_weight) * multivariate_t(mean, chol @ chol.T, df=5).pdf(point)
        for log_weight, mean, chol in zip(
            *(np.asarray(a) for a in (reference.log_weights, reference.means, reference.chols)), strict=True
        )
    ]
    np.testing.assert_allclose(reference.log_prob(jnp.asarray(point)), np.log(sum(parts)), rtol=1e-9)
    np.testing.assert_allclose(np.exp(reference.log_weights).sum(), 1.0, rtol=1e-9)
    wider = inflated(reference, 4.0)
    np.testing.assert_allclose(wider.chols, 2 * reference.chols)
    np.testing.assert_allclose(wider.whiteners @ wider.chols, np.broadcast_to(np.eye(DIM), (3, DIM, DIM)), atol=1e-9)


def test_mixture_finds_separated_groups():
    centres = np.array([[-4.0, 0.0], [4.0, 1.0], [0.0, 6.0]])
    z = jnp.asarray(np.repeat(centres, 100, axis=0)) + 0.3 * jr.normal(jr.key(1), (300, DIM))
    fitted = fit(jr.key(2), z, 3)
    gaps = np.linalg.norm(np.asarray(fitted.means)[:, None] - centres[None], axis=-1)
    assert np.all(gaps.min(axis=0) < 0.15)
    np.testing.assert_allclose(np.exp(fitted.log_weights), 1 / 3, atol=0.02)


def test_mixture_of_repeated_points_is_finite():
    fitted = fit(jr.key(0), jnp.ones((20, DIM)), 2)
    assert all(np.all(np.isfinite(leaf)) for leaf in jax.tree.leaves(fitted))


@pytest.mark.parametrize("move", ["jump", "slice"])
def test_moves_leave_the_posterior_invariant(move, exact, reference):
    """Exact draws stay exact: after five moves mean and variance within 4 standard errors; and they did move.

    Over 20 seeds no miss; without the division by R, or with a jump accepted e times too often, one by far.
    """
    group, target = exact, Target(jnp.asarray(1.0), None)
    evaluator = Evaluator(LINEAR, MANY)
    for i in range(5):
        if move == "jump":
            group, share = jump(jr.key(i), evaluator, target, reference, group)
            assert 0.05 < share < 0.95
        else:
            group = slice_move(jr.key(i), evaluator, target, reference, group)
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(group.z.mean(0) - MEAN) < 4 * sd / MANY**0.5)
    assert np.all(np.abs(np.asarray(group.z).var(0) / sd**2 - 1) < 4 * (2 / MANY) ** 0.5)
    assert np.mean(np.any(np.asarray(group.z != exact.z), axis=1)) > 0.5
    np.testing.assert_allclose(group.log_likelihood, evaluator.log_likelihood(group.z), rtol=1e-9)


@pytest.mark.parametrize("guided", [False, True], ids=["from-prior", "from-guided"])
def test_linear_gaussian_posterior_and_evidence(guided):
    """Mean and variance within 4.5 standard errors of J draws; evidence within 0.25 nats (20 seeds: sd 0.05)."""
    ensemble = guide(jr.key(1), LINEAR, num_particles=J).draws if guided else None
    posterior = TemperedSMC().run(jr.key(2), LINEAR, num_particles=J, guided=ensemble)
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(posterior.mean() - MEAN) < 4.5 * sd / J**0.5)
    assert np.all(np.abs(posterior.sd() ** 2 / sd**2 - 1) < 4.5 * (2 / J) ** 0.5)
    assert abs(posterior.log_evidence - EVIDENCE) < 0.25
    assert posterior.stats["levels"][-1]["beta"] == 1.0


def test_two_modes_keep_their_masses():
    """y = |x0|, the prior off centre: the masses of the modes are 0.73 and 0.27, and both survive (5 sd of J draws)."""
    prior = GaussianPrior(jnp.array([0.5, 0.0]), jnp.ones(2))
    problem = InverseProblem(prior, lambda x: jnp.abs(x[:1]), GaussianLikelihood(jnp.array([1.0]), 0.1))
    grid = np.linspace(-3, 3, 6001)
    density = np.exp(-0.5 * (grid - 0.5) ** 2 - 0.5 * (np.abs(grid) - 1) ** 2 / 0.01)
    mass = density[grid > 0].sum() / density.sum()
    posterior = TemperedSMC().run(
        jr.key(3), problem, num_particles=J, guided=guide(jr.key(4), problem, num_particles=J).draws
    )
    share = np.mean(np.asarray(posterior.draws)[:, 0] > 0)
    assert 0.6 < mass < 0.8
    assert abs(share - mass) < 5 * (mass * (1 - mass) / J) ** 0.5


def test_a_mixture_prior_is_sampled_through_its_flow():
    prior = MixturePrior([0.5, 0.5], [[-2.0, 0.0], [2.0, 0.0]], [0.2, 0.2])
    problem = InverseProblem(prior, lambda x: x[1:], GaussianLikelihood(jnp.array([0.3]), 0.5))
    posterior = TemperedSMC(min_cycles=(1, 1), max_cycles=(1, 2)).run(jr.key(5), problem, num_particles=128)
    gain = 0.2 / (0.2 + 0.25)
    assert abs(posterior.mean()[1] - gain * 0.3) < 5 * (0.2 * (1 - gain) / 128) ** 0.5
    assert abs(np.mean(np.asarray(posterior.draws)[:, 0] > 0) - 0.5) < 5 * 0.5 / 128**0.5


def test_start_is_normalised_and_covers_the_prior(reference):
    start = Start(reference, 0.2)
    grid = np.linspace(-12, 12, 241)
    points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    total = np.exp(jax.vmap(start.log_prob)(points)).sum() * (grid[1] - grid[0]) ** 2
    assert abs(total - 1) < 0.01
    prior = jax.vmap(GaussianPrior.standard(2).log_prob)(points)
    assert np.all(jax.vmap(start.log_prob)(points) >= np.log(0.2) + prior - 1e-9)


def test_zero_likelihood_regions_are_left():
    """A likelihood of zero on half the space: the posterior is the prior's other half."""
    problem = InverseProblem(
        GaussianPrior.standard(1), lambda x: jnp.where(x > 0, 0.0, jnp.nan), GaussianLikelihood(jnp.zeros(1), 1.0)
    )
    posterior = TemperedSMC().run(jr.key(6), problem, num_particles=256)
    draws = np.asarray(posterior.draws)
    assert draws.min() > 0
    assert abs(draws.mean() - (2 / np.pi) ** 0.5) < 5 * (1 - 2 / np.pi) ** 0.5 / 16
    assert abs(posterior.log_evidence - (np.log(0.5) - 0.5 * np.log(2 * np.pi))) < 0.4


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ({"target_ess": 1.0}, "0 < target_ess < 1; got target_ess=1.0"),
        ({"num_components": 0}, "num_components >= 1"),
        ({"prior_share": 0.0}, "0 < prior_share < 1"),
    ],
)
def test_bad_settings(bad, words):
    with pytest.raises(ValueError, match=f"TemperedSMC needs {words}"):
        TemperedSMC(**bad)


def test_bad_runs():
    with pytest.raises(ValueError, match="at least 4 particles.*got num_particles=3"):
        TemperedSMC().run(jr.key(0), LINEAR, num_particles=3)
    hopeless = InverseProblem(LINEAR.prior, lambda x: jnp.full(1, jnp.nan), LINEAR.likelihood)
    with pytest.raises(ValueError, match="zero or not finite at all 16 starting particles: check the simulator"):
        TemperedSMC().run(jr.key(0), hopeless, num_particles=16)
