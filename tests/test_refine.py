"""Moves leave their target invariant, the mixture is SciPy's, and tempering gives closed-form posteriors."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from scipy.stats import multivariate_normal, multivariate_t

from enkg_ppl import (
    EllipticalSlice,
    GaussianPrior,
    InverseProblem,
    KalmanCorrection,
    MixturePrior,
    TemperedSMC,
    blackbox,
    guide,
    infer,
)
from enkg_ppl.bijections._warp import fit_warp
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.mixtures._fit import Shape, best_shape, fit
from enkg_ppl.mixtures._student import Reference, gaussian, inflated, mean_log_prob
from enkg_ppl.refinement._linearised import linearised_reference
from enkg_ppl.refinement._target import Start, Target
from enkg_ppl.refinement.moves import _mixing as mixing
from enkg_ppl.refinement.moves._jump_and_slice import jump, slice_move
from enkg_ppl.refinement.moves._space import Group, Space, log_standard_normal

J, DIM = 512, 2
ROOM = 4  # components that the kernels have room for
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
    return Space(Evaluator(LINEAR, MANY)).group(np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, MANY))


@pytest.fixture(scope="module")
def reference():
    """A mixture fitted to other points than the posterior's, so that moves have something to correct."""
    z = jr.normal(jr.key(7), (J, DIM)) * jnp.array([[0.7, 1.0]]) + jnp.array([[1.0, 0.3]])
    return fit(np.random.default_rng(8), z, Shape(3, 5.0), ROOM)


@pytest.fixture(scope="module")
def bent(reference):
    """The same with a warp that nothing asked for: locations and scales of z[1] that follow z[0]."""
    rng = np.random.default_rng(9)
    z = rng.standard_normal((J, DIM))
    z[:, 1] = 0.5 * z[:, 0] ** 2 + np.exp(0.3 * z[:, 0]) * z[:, 1]
    return Reference(reference.mixture, fit_warp(z, (0,)))


def test_mixture_density_is_scipys(reference):
    point, mixture = np.array([0.4, -0.2]), reference.mixture
    parts = [
        np.exp(log_weight) * multivariate_t(mean, chol @ chol.T, df=5).pdf(point)
        for log_weight, mean, chol in zip(
            *(np.asarray(a)[:3] for a in (mixture.log_weights, mixture.means, mixture.chols)), strict=True
        )
    ]
    np.testing.assert_allclose(reference.log_prob(jnp.asarray(point)), np.log(sum(parts)), rtol=1e-9)
    np.testing.assert_allclose(np.exp(mixture.log_weights).sum(), 1.0, rtol=1e-9)
    wider = inflated(reference, 4.0).mixture
    np.testing.assert_allclose(wider.chols, 2 * mixture.chols)
    np.testing.assert_allclose(wider.whiteners @ wider.chols, np.broadcast_to(np.eye(DIM), (ROOM, DIM, DIM)), atol=1e-9)


def test_mixture_finds_separated_groups():
    centres = np.array([[-4.0, 0.0], [4.0, 1.0], [0.0, 6.0]])
    z = jnp.asarray(np.repeat(centres, 100, axis=0)) + 0.3 * jr.normal(jr.key(1), (300, DIM))
    fitted = fit(np.random.default_rng(2), z, Shape(3, 5.0), ROOM)
    gaps = np.linalg.norm(np.asarray(fitted.mixture.means)[:3, None] - centres[None], axis=-1)
    assert np.all(gaps.min(axis=0) < 0.15)
    np.testing.assert_allclose(np.exp(fitted.mixture.log_weights), [1 / 3, 1 / 3, 1 / 3, 0], atol=0.02)


def test_the_shape_is_that_of_the_particles():
    """One Gaussian, two groups, heavy tails: each wants its own number of components and degrees of freedom."""
    rng = np.random.default_rng(5)
    shapes = [Shape(size, df) for size in (1, 2, 4) for df in (5.0, 25.0)]
    normal = rng.standard_normal((400, DIM))
    groups = normal + np.where(rng.random((400, 1)) < 0.5, 6.0, -6.0)
    heavy = normal / np.sqrt(rng.chisquare(3, (400, 1)) / 3)
    shape, score = best_shape(rng, normal, shapes, ROOM)
    assert shape.df == 25.0
    assert abs(score + DIM / 2 * np.log(2 * np.pi * np.e)) < 4 * (DIM / 2 / 100) ** 0.5  # the entropy, by 100 particles
    assert best_shape(rng, groups, shapes, ROOM)[0].size >= 2
    assert best_shape(rng, heavy, shapes, ROOM)[0].df == 5.0


def test_rows_that_fill_up_do_not_count():
    """300 particles are filled up to 512: the fit is of the 300 all the same."""
    z = np.random.default_rng(1).standard_normal((300, DIM)) + 3.0
    fitted = fit(np.random.default_rng(2), z, Shape(1, 25.0), ROOM)
    np.testing.assert_allclose(fitted.mixture.means[0], z.mean(axis=0), atol=0.05)


def test_linearised_posterior_is_the_exact_one_where_the_simulator_is_linear():
    z = np.random.default_rng(3).standard_normal((50, DIM)) + 1.0
    response = jax.vmap(LINEAR.likelihood.response)(jax.vmap(LINEAR.forward)(z))
    reference = linearised_reference(z, response, ROOM, z.dtype).mixture
    np.testing.assert_allclose(reference.means[0], MEAN, atol=1e-3)
    np.testing.assert_allclose(reference.chols[0] @ reference.chols[0].T, COVARIANCE, atol=1e-3)
    np.testing.assert_array_equal(np.exp(reference.log_weights), [1, 0, 0, 0])
    failed = response._replace(prediction=response.prediction.at[5:].set(jnp.nan))
    assert linearised_reference(z, failed, ROOM, z.dtype) is None


def test_what_the_slope_leaves_unexplained_widens_the_linearised_posterior():
    """y = x0 + sin(5 x1): the sine is noise to a straight line, of variance about 1/2."""
    z = np.random.default_rng(4).standard_normal((400, DIM))
    problem = InverseProblem(LINEAR.prior, lambda x: x[:1] + jnp.sin(5 * x[1:]), GaussianLikelihood(Y, 0.1))
    response = jax.vmap(problem.likelihood.response)(jax.vmap(problem.forward)(z))
    reference = linearised_reference(z, response, ROOM, z.dtype).mixture
    variance = (reference.chols[0] @ reference.chols[0].T)[0, 0]
    assert abs(variance - 0.51 / 1.51) < 0.05  # 0.01 / 1.01 without the residual


def test_the_better_of_two_references_is_told():
    z = np.random.default_rng(6).standard_normal((200, DIM))
    right, wrong = (gaussian(np.full(DIM, mean), np.eye(DIM), 25.0, ROOM) for mean in (0.0, 2.0))
    assert mean_log_prob(right, z) > mean_log_prob(wrong, z) + 1


def test_mixture_of_few_places_is_finite_in_32_bits():
    """Three points of eight dimensions, many times over: the covariance has no Cholesky factor once it is rounded."""
    rng = np.random.default_rng(0)
    z = np.repeat(rng.normal(size=(3, 8)), 100, axis=0).astype(np.float32)
    with jax.enable_x64(False):
        reference = fit(rng, z, Shape(4, 5.0), 16)
        assert all(np.isfinite(a).all() for a in (reference.mixture.means, reference.mixture.chols))


def test_mixture_of_repeated_points_is_finite():
    fitted = fit(np.random.default_rng(0), np.ones((20, DIM)), Shape(2, 5.0), ROOM)
    assert np.all(np.isfinite(fitted.log_prob(jnp.ones(DIM))))
    assert np.all(np.isfinite(fitted.mixture.chols))


@pytest.mark.parametrize("of", ["reference", "bent"])
@pytest.mark.parametrize("move", ["jump", "fresh-jump", "slice"])
def test_moves_leave_the_posterior_invariant(move, of, exact, request):
    """Exact draws stay exact: after five moves mean and variance within 4 standard errors; and they did move.

    Over 20 seeds no miss; without the division by R, or with a jump accepted e times too often, one by far.
    """
    group, target, reference = exact, Target(jnp.asarray(1.0), None), request.getfixturevalue(of)
    evaluator = Evaluator(LINEAR, MANY)
    space = Space(evaluator)
    for i in range(5):
        rng = np.random.default_rng(i)
        if move == "slice":
            group = slice_move(rng, space, target, reference, group)
        else:
            group, moved = jump(rng, space, target, reference, group, np.full(MANY, move == "fresh-jump"))
            assert 0.05 < moved.mean() < 0.95
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(group.position.mean(0) - MEAN) < 4 * sd / MANY**0.5)
    assert np.all(np.abs(np.asarray(group.position).var(0) / sd**2 - 1) < 4 * (2 / MANY) ** 0.5)
    assert np.mean(np.any(np.asarray(group.position != exact.position), axis=1)) > 0.5
    np.testing.assert_allclose(group.log_likelihood, evaluator.log_likelihood(group.position), rtol=1e-9)


@pytest.mark.parametrize("guided", [False, True], ids=["from-prior", "from-guided"])
@pytest.mark.parametrize("pilot_size", [None, 256], ids=["alone", "after-pilot"])
def test_linear_gaussian_posterior_and_evidence(guided, pilot_size):
    """Mean and variance within 4.5 standard errors of J draws; evidence within 4 of its own."""
    ensemble = guide(jr.key(1), LINEAR, num_particles=J).draws if guided else None
    posterior = TemperedSMC(pilot_size=pilot_size).run(jr.key(2), LINEAR, num_particles=J, guided=ensemble)
    assert {level["num_particles"] for level in posterior.stats["levels"]} == ({J, 256} if pilot_size else {J})
    sd = np.sqrt(np.diag(COVARIANCE))
    assert np.all(np.abs(posterior.mean() - MEAN) < 4.5 * sd / J**0.5)
    assert np.all(np.abs(posterior.sd() ** 2 / sd**2 - 1) < 4.5 * (2 / J) ** 0.5)
    assert abs(posterior.log_evidence - EVIDENCE) < 4 * posterior.log_evidence_error
    assert posterior.log_evidence_error < 0.15
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


def test_latent_slice_reaches_the_posterior():
    """From a guided ensemble that is off on purpose: mean and variance within 4.5 standard errors of J draws."""
    z = np.random.default_rng(7).standard_normal((J, DIM)) * 0.3 + 1.0
    posterior = EllipticalSlice().run(jr.key(7), LINEAR, num_particles=J, guided=z)
    sd = np.sqrt(np.diag(COVARIANCE))
    assert not posterior.messages
    assert np.all(np.abs(posterior.mean() - MEAN) < 4.5 * sd / J**0.5)
    assert np.all(np.abs(posterior.sd() ** 2 / sd**2 - 1) < 4.5 * (2 / J) ** 0.5)
    assert posterior.log_evidence is None
    assert "use TemperedSMC" in posterior.why_no_evidence


def test_latent_slice_in_more_dimensions_than_particles():
    """100 unknowns, 48 particles, 10 data: by the linearised simulator, which costs 20 evaluations a particle."""
    rng = np.random.default_rng(0)
    B = jnp.asarray(rng.standard_normal((10, 100))) / 10
    y = jnp.asarray(B @ rng.standard_normal(100) + 0.3 * rng.standard_normal(10))
    problem = InverseProblem(GaussianPrior.standard(100), lambda x: B @ x, GaussianLikelihood(y, 0.3))
    posterior = infer(jr.key(1), problem, num_particles=48)
    assert posterior.method == "KalmanCorrection + EllipticalSlice"
    assert "too few for TemperedSMC" in posterior.stats["refinement"]
    covariance = np.linalg.inv(np.eye(100) + B.T @ B / 0.09)
    mean = covariance @ np.asarray(B.T @ y) / 0.09
    # B x is what the data tell about: in its directions the mean has a standard error of sd / sqrt(48).
    seen, sd = np.asarray(B @ (posterior.mean() - mean)), np.sqrt(np.diag(B @ covariance @ B.T))
    assert np.all(np.abs(seen) < 4.5 * sd / 48**0.5)
    assert abs(np.asarray(posterior.draws).var(axis=0).sum() / np.trace(covariance) - 1) < 4.5 * (2 / 48 / 90) ** 0.5


@pytest.mark.parametrize("per_particle", [5, 8, 12])
def test_a_budget_is_never_exceeded(per_particle):
    """And what it cut short is told; enough of it changes nothing."""
    calls = []
    simulate = blackbox(lambda x: calls.append(len(x)) or np.tanh(3 * x[:, :1]), (1,), vectorized=True)
    problem = InverseProblem(LINEAR.prior, simulate, GaussianLikelihood(jnp.array([0.9]), 0.01))
    budget = 64 * per_particle
    posterior = infer(jr.key(3), problem, num_particles=64, refine=TemperedSMC(), max_forward_evaluations=budget)
    assert sum(calls) == posterior.num_forward_evaluations <= 64 * per_particle
    assert np.isfinite(np.asarray(posterior.draws)).all()
    assert any("the budget of forward evaluations ended" in sentence for sentence in posterior.messages)


def test_a_budget_that_suffices_changes_nothing():
    free, bounded = (
        infer(jr.key(4), LINEAR, num_particles=64, max_forward_evaluations=budget) for budget in (None, 64 * 1000)
    )
    np.testing.assert_array_equal(free.draws, bounded.draws)
    assert not bounded.messages


def test_a_hopeless_budget_is_refused():
    with pytest.raises(ValueError, match="max_forward_evaluations=60 is too few for num_particles=64: allow at least"):
        infer(jr.key(4), LINEAR, num_particles=64, max_forward_evaluations=60)
    with pytest.raises(ValueError, match="nothing to do"):
        infer(jr.key(4), LINEAR, num_particles=64, refine=None, guided=False)


def test_a_guided_ensemble_is_checked():
    """One more evaluation a particle, and a sentence where the draws are not the posterior."""
    right = infer(jr.key(5), LINEAR, num_particles=64, refine=None)
    assert right.num_forward_evaluations == 64 * (KalmanCorrection().num_steps + 1)
    assert not right.messages
    expected = jax.vmap(LINEAR.log_likelihood)(jnp.asarray(right.draws))
    np.testing.assert_allclose(np.asarray(right.log_likelihood), expected, rtol=1e-10)
    steep = InverseProblem(LINEAR.prior, lambda x: jnp.exp(3 * x[:1]), GaussianLikelihood(jnp.array([2.0]), 0.5))
    assert any("bends" in m for m in infer(jr.key(5), steep, num_particles=64, refine=None).messages)
    unseen = infer(jr.key(5), steep, num_particles=64, refine=None, check=False)
    assert not unseen.messages
    assert unseen.log_likelihood is None


def test_a_check_keeps_to_the_budget():
    posterior = infer(jr.key(5), LINEAR, num_particles=64, refine=None, max_forward_evaluations=64 * 7)
    assert posterior.num_forward_evaluations == 64 * 7
    assert "chi2_per_datum" in posterior.stats
    usual = KalmanCorrection()
    posterior = infer(jr.key(5), LINEAR, num_particles=64, refine=None, correction=usual, max_forward_evaluations=1280)
    assert posterior.num_forward_evaluations == 64 * usual.num_steps
    assert "left no evaluation to check" in posterior.messages[0]


def test_start_is_stratified(reference):
    """Each component gets its share of the particles to the nearest one or two, not to sampling noise."""
    far = gaussian(np.full(DIM, 50.0), np.eye(DIM), 25.0, ROOM)
    z = Start(far, np.array(0.25)).sample(np.random.default_rng(0), 400, Space(Evaluator(LINEAR, 64)))
    assert abs((z[:, 0] > 25).sum() - 300) <= 1


@pytest.mark.parametrize("of", ["reference", "bent"])
def test_start_is_normalised_and_covers_the_prior(of, request):
    start = Start(request.getfixturevalue(of), np.array(0.2))
    grid = np.linspace(-12, 12, 241)
    points = jnp.asarray(np.stack(np.meshgrid(grid, grid), -1).reshape(-1, 2))
    prior = jax.vmap(GaussianPrior.standard(2).log_prob)(points)
    density = jax.vmap(start.log_prob)(points, prior)
    assert abs(np.exp(density).sum() * (grid[1] - grid[0]) ** 2 - 1) < 0.01
    assert np.all(density >= np.log(0.2) + prior - 1e-9)


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
        ({"target_ess": (1.0, 0.2)}, r"0 < target_ess < 1, two of them; got target_ess=.1.0, 0.2"),
        ({"target_ess": 0.5}, "target_ess as a tuple of two numbers; got target_ess=0.5"),
        ({"num_components": 0}, "num_components as a whole number >= 1"),
        ({"defensive_weight": (0.2, 0.0)}, "0 < defensive_weight < 1"),
        ({"pilot_size": 3}, "pilot_size as a whole number >= 4, or None; got 3"),
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


def test_particles_are_to_forget_a_light_mode(monkeypatch):
    """Moves within two far modes, 4 % of the particles in one, forget every rank at once and not the mode."""
    rng = np.random.default_rng(0)
    n = 1000
    light = (np.arange(n) % 25 == 0)[:, None]

    def within_modes(*_):
        return rng.standard_normal((n // 2, DIM)) + np.where(light[: n // 2], 12.0, 0.0)

    def group(z):
        return Group(z, log_standard_normal(z), rng.standard_normal(len(z)))

    z = np.concatenate([within_modes(), within_modes()])
    space = Space(Evaluator(LINEAR, 64))
    cycles = mixing.Cycles(4, ROOM, 0.2, 1, 5)
    monkeypatch.setattr(mixing, "jump", lambda rng, e, t, reference, group, fresh: (group, np.zeros(n // 2, bool)))
    monkeypatch.setattr(mixing, "slice_move", lambda *a: group(within_modes()))
    _, stuck = mixing.mix(rng, space, Target(1.0, None), group(z), cycles)
    assert stuck.num_cycles == cycles.most
    assert stuck.correlation > 0.5  # the light mode may hold two components
    monkeypatch.setattr(mixing, "LEAST_SHARE", 0.2)  # the light mode no longer counts as a place
    _, free = mixing.mix(rng, space, Target(1.0, None), group(z), cycles)
    assert free.num_cycles < cycles.most
