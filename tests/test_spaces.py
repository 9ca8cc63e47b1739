"""Coordinates of the moves: straightening of ensembles, and whitening of hierarchies given their scales."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.contrib.control_flow import scan
from numpyro.infer.util import unconstrain_fn
from scipy.stats import halfnorm, multivariate_normal, norm

from enkg_ppl import EnKG, InverseProblem, TemperedSMC, blackbox, infer
from enkg_ppl.bijections._warp import choose_given, fit_warp, no_warp
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import GaussianLikelihood, Response
from enkg_ppl.linearise._conditional import fit_conditional
from enkg_ppl.mixtures._fit import Shape, fit
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.priors import GaussianPrior
from enkg_ppl.refinement import _tempered_smc
from enkg_ppl.refinement._starts import Starts
from enkg_ppl.refinement._target import Target
from enkg_ppl.refinement.moves._jump_and_slice import jump, slice_move
from enkg_ppl.refinement.moves._space import Space, best_space, scales, simulated

N = 600
BLOCK = 128  # one size, so that kernels are compiled once


def funnel(rng, n=N, dim=4):
    z = rng.standard_normal((n, dim))
    z[:, 1:] *= np.exp(z[:, :1])
    return z


def banana(rng, n=N, dim=3):
    z = rng.standard_normal((n, dim))
    z[:, 1] += z[:, 0] ** 2
    return z


@pytest.mark.parametrize("ensemble", [funnel, banana])
def test_a_warp_is_a_bijection_with_its_jacobian(ensemble):
    z = ensemble(np.random.default_rng(0))
    warp = fit_warp(z, (0,))
    far = np.concatenate([z[:20], 5 * z[:20]])  # polynomials end somewhere outside of the particles
    v, log_jacobian = jax.vmap(warp.forward)(jnp.asarray(far))
    np.testing.assert_allclose(jax.vmap(warp.inverse)(v), far, rtol=1e-9, atol=1e-9)
    slopes = jax.vmap(jax.jacfwd(lambda z: warp.forward(z)[0]))(jnp.asarray(far))
    np.testing.assert_allclose(np.linalg.slogdet(slopes)[1], log_jacobian, rtol=1e-9, atol=1e-9)
    for ours, jaxs in zip(warp.forward_all(far), (v, log_jacobian), strict=True):
        np.testing.assert_allclose(ours, jaxs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("ensemble", [funnel, banana])
def test_straightened_particles_are_nearly_normal(ensemble):
    """Location and scale as they were made: v[1] is what was drawn, to the error of 10 coefficients a coordinate."""
    rng = np.random.default_rng(1)
    z = ensemble(rng, 4000)
    drawn = z[:, 1] / np.exp(z[:, 0]) if ensemble is funnel else z[:, 1] - z[:, 0] ** 2
    v, _ = fit_warp(z, (0,)).forward_all(z)
    inner = np.abs(z[:, 0]) < 2
    assert np.corrcoef(v[inner, 1], drawn[inner])[0, 1] > 0.99
    assert abs(v[inner, 1].std() - 1) < 0.1


def test_coordinates_to_follow_are_found_where_there_are_any():
    rng = np.random.default_rng(2)
    assert choose_given(funnel(rng), funnel(rng))[:1] == (0,)
    assert choose_given(banana(rng), banana(rng)) == (0,)
    mixing = rng.standard_normal((6, 6))
    straight = [rng.standard_normal((N, 6)) @ mixing for _ in range(2)]
    assert choose_given(*straight) == ()
    assert choose_given(straight[0][:40], straight[1]) == ()  # too few for it
    warp = no_warp(6, straight[0].dtype)
    np.testing.assert_array_equal(warp.forward_all(straight[0])[0], straight[0])


def test_a_warp_without_spread_is_finite():
    warp = fit_warp(np.ones((30, 3)), (0,))
    assert np.isfinite(warp.forward_all(np.ones((2, 3)))[0]).all()


# ---- hierarchies, linear given their scales: y = theta + noise, theta ~ N(mu, tau), tau and the noise unknown

GROUPS = 5
Y = jnp.array([1.0, -0.5, 2.0, 0.3, 1.4])


def hierarchy(y=None, *, simulate=lambda theta: theta):
    mu = numpyro.sample("mu", dist.Normal(0.0, 2.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(0.5))
    with numpyro.plate("groups", GROUPS):
        theta = numpyro.sample("theta", dist.Normal(mu, tau))
    numpyro.sample("y", dist.Normal(simulate(theta), noise).to_event(1), obs=y)


MU, TAU, NOISE = 0, 1, 2


@pytest.fixture(scope="module")
def problem():
    return NumPyroModel(hierarchy, (), {"y": Y}).problem()


@pytest.fixture(scope="module")
def pairs(problem):
    """Simulations of particles from the prior."""
    z = np.random.default_rng(3).standard_normal((200, problem.dim))
    evaluate = Evaluator(problem, BLOCK)
    return simulated(evaluate, problem.unconstrained_values, z, evaluate.log_likelihood_and_response(z)[1])


@pytest.fixture(scope="module")
def conditional(problem, pairs):
    return fit_conditional(problem.unconstrained_values, pairs.free, pairs.response, (TAU, NOISE), problem.dim)


@pytest.fixture(scope="module")
def space(problem, conditional):
    return Space(Evaluator(problem, BLOCK), conditional)


def test_free_values_are_numpyros(problem):
    z = np.random.default_rng(4).standard_normal(problem.dim)
    expected = unconstrain_fn(hierarchy, (), {"y": Y}, problem.constrain(jnp.asarray(z)))
    free = problem.unconstrained_values(jnp.asarray(z))
    np.testing.assert_allclose(
        free, np.concatenate([np.ravel(expected[name]) for name in ("mu", "tau", "noise", "theta")])
    )


def exact_conditional(z):
    """Mean and covariance of z given its tau and noise, from theta = mu + tau z_theta and mu = 2 z_mu."""
    tau, noise = halfnorm(scale=[1.0, 0.5]).ppf(norm.cdf(z[[TAU, NOISE]]))
    a = np.concatenate([2 * np.ones((GROUPS, 1)), tau * np.eye(GROUPS)], axis=1) / noise
    covariance = np.linalg.inv(np.eye(1 + GROUPS) + a.T @ a)
    return covariance @ a.T @ (np.asarray(Y) / noise), covariance


def test_given_the_scales_it_is_the_exact_posterior(problem, space):
    """w = 0 is the mean; w = e_i are its columns of a root of the covariance; also where no simulation was."""
    rest = [MU, *range(3, problem.dim)]
    for tau, noise in ((0.3, -0.2), (-2.5, 1.0), (2.0, -2.8)):
        h = np.zeros(problem.dim)
        h[[TAU, NOISE]] = tau, noise
        mean, covariance = exact_conditional(h)
        (centre, *steps), _ = space.latents(np.concatenate([h[None], h + np.eye(problem.dim)]))
        np.testing.assert_allclose(centre[rest], mean, atol=2e-3 * np.sqrt(np.diag(covariance)).max())
        assert np.all(centre[[TAU, NOISE]] == [tau, noise])
        root = (np.asarray(steps) - centre)[rest][:, rest].T
        np.testing.assert_allclose(root @ root.T, covariance, rtol=2e-3, atol=1e-4)


def test_positions_are_a_bijection_and_have_the_priors_density(problem, space):
    """Change of variables: the density of z by SciPy, the Jacobian by differences."""
    z = 1.5 * np.random.default_rng(5).standard_normal((20, problem.dim))
    position, log_jacobian = space._forward(z)
    back, log_prior = space.latents(position)
    np.testing.assert_allclose(back, z, rtol=1e-8, atol=1e-8)
    step = 1e-5 * np.eye(problem.dim)
    around = np.concatenate([z[:, None] + step, z[:, None] - step], axis=1).reshape(-1, problem.dim)
    up, down = np.moveaxis(space._forward(around)[0].reshape(20, 2, problem.dim, problem.dim), 1, 0)
    slopes = np.swapaxes(up - down, 1, 2) / 2e-5
    np.testing.assert_allclose(np.linalg.slogdet(slopes)[1], log_jacobian, rtol=1e-6, atol=1e-6)
    expected = multivariate_normal(np.zeros(problem.dim)).logpdf(z) - log_jacobian
    np.testing.assert_allclose(log_prior, expected, rtol=1e-9)


@pytest.mark.parametrize("wrong", [False, True], ids=["well-fitted", "badly-fitted"])
def test_moves_in_whitened_coordinates_leave_the_posterior_invariant(problem, pairs, wrong):
    """Without data the posterior is the prior, whose draws are exact: they stay so, though the simulator is misjudged.

    Five rounds; means and variances within 4.5 standard errors; without the Jacobian off by far.
    """
    response = pairs.response
    if wrong:
        response = response._replace(prediction=-2 * response.prediction + 1, observation=response.observation + 3)
    conditional = fit_conditional(problem.unconstrained_values, pairs.free, response, (TAU, NOISE), problem.dim)
    flat = InverseProblem(problem.prior, lambda z: z[:1] * 0, GaussianLikelihood(jnp.zeros(1), 1.0))
    space, n = Space(Evaluator(flat, BLOCK), conditional), 8192
    rng = np.random.default_rng(7)
    z = rng.standard_normal((n, problem.dim))
    group = space.group(space.positions(z))
    reference = fit(rng, group.position[:N], Shape(2, 5.0), 4)
    target = Target(jnp.asarray(1.0), None)
    for _ in range(3):
        group, moved = jump(rng, space, target, reference, group, rng.random(n) < 0.5)
        group = slice_move(rng, space, target, reference, group)
        assert moved.mean() > 0.03
    now, _ = space.latents(group.position)
    assert np.mean(np.abs(now - z).max(axis=1) > 1e-9) > 0.9
    assert np.abs(now.mean(axis=0)).max() < 4.5 / n**0.5
    assert np.abs(now.var(axis=0) - 1).max() < 4.5 * (2 / n) ** 0.5


def walk(y=None):
    step = numpyro.sample("step", dist.HalfNormal(1.0))

    def move(level, y_t):
        level = numpyro.sample("level", dist.Normal(level, step))
        numpyro.sample("y", dist.Normal(level, 0.1), obs=y_t)
        return level, None

    scan(move, 0.0, y, length=4)


def counts(y=None):
    mean = numpyro.sample("mean", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    shift = numpyro.sample("shift", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    numpyro.sample("y", dist.Poisson(jnp.exp(mean)).to_event(1), obs=y)
    numpyro.sample("x", dist.Normal(shift, 1.0).to_event(1), obs=y)


def regression(y=None):
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
    noise = numpyro.sample("noise", dist.LogNormal(0.0, 1.0))
    numpyro.sample("y", dist.Normal(slope[0] + slope[1] * jnp.arange(4.0), noise).to_event(1), obs=y)


def by_hand(y=None):
    mu = numpyro.sample("mu", dist.Normal(0.0, 1.0))
    tau = numpyro.sample("tau", dist.HalfNormal(1.0))
    raw = numpyro.sample("raw", dist.Normal(0.0, 1.0).expand([3]).to_event(1))
    theta = numpyro.deterministic("theta", mu + tau * raw)
    numpyro.deterministic("odds", jnp.exp(mu))  # a report that decides nothing
    numpyro.sample("y", dist.Normal(theta, 0.5).to_event(1), obs=y)


@pytest.mark.parametrize(
    ("model", "data", "expected"),
    [
        (hierarchy, Y, (TAU, NOISE)),
        (walk, jnp.ones(4), (0,)),
        (counts, jnp.ones(3), ()),
        (regression, jnp.ones(4), (2,)),
        (by_hand, jnp.ones(3), (1,)),
    ],
    ids=["hierarchy", "walk", "counts", "regression", "by-hand"],
)
def test_scales_are_told_from_the_rest(model, data, expected):
    """Scales of others and of the noise; not what the noise of a count depends on, its own mean."""
    problem = NumPyroModel(model, (), {"y": data}).problem()
    evaluate = Evaluator(problem, BLOCK)
    z = np.random.default_rng(8).standard_normal((300, problem.dim))
    found = simulated(evaluate, problem.unconstrained_values, z, evaluate.log_likelihood_and_response(z)[1])
    assert scales(evaluate, problem.unconstrained_values, found) == expected


def test_coordinates_are_chosen_by_the_particles(problem, pairs):
    """Draws of the posterior given scales from a grid of them want the whitened coordinates; those of a Gaussian z."""
    rng = np.random.default_rng(9)
    evaluate = Evaluator(problem, BLOCK)
    z = rng.standard_normal((400, problem.dim))
    z[:, NOISE] = 0.5 * z[:, NOISE] - 1.5  # small noise: what the data pin down
    rest = [MU, *range(3, problem.dim)]
    for row in z:
        row[rest] = rng.multivariate_normal(*exact_conditional(row))
    space = best_space(rng, evaluate, problem.unconstrained_values, z, pairs, (TAU, NOISE))
    assert space.conditional is not None
    plain = rng.standard_normal((400, problem.dim))
    space = best_space(rng, evaluate, problem.unconstrained_values, plain, pairs, (TAU, NOISE))
    assert space.conditional is None


def test_too_few_simulations_or_too_many_data():
    problem = InverseProblem(GaussianPrior.standard(3), lambda z: z, GaussianLikelihood(jnp.zeros(3), 1.0))
    evaluate = Evaluator(problem, BLOCK)
    z = np.random.default_rng(10).standard_normal((40, 3))
    whole = evaluate.log_likelihood_and_response(z)[1]
    assert simulated(evaluate, None, z, whole) is not None
    failed = Response(np.where(np.arange(40)[:, None] < 35, np.nan, np.asarray(whole.prediction)), *whole[1:])
    assert simulated(evaluate, None, z, failed) is None
    wide = Response(*(np.zeros((40, 3_000_000), np.float32) for _ in range(3)))
    assert simulated(evaluate, None, z, wide) is None


def test_black_boxes_are_called_for_evaluations_alone():
    """Knowing the unknowns takes no simulation, though the simulator is in the midst of the model."""
    calls = []
    simulate = blackbox(lambda theta: calls.append(len(theta)) or theta, (GROUPS,), vectorized=True)

    def model(y=None):
        hierarchy(y, simulate=simulate)

    enkg = EnKG(model, num_particles=2 * BLOCK, refine=TemperedSMC(pilot_size=BLOCK), progress_bar=False)
    enkg.run(jr.key(0), y=Y)
    assert sum(calls) == enkg.num_forward_evaluations


def test_a_simulator_that_others_depend_on_is_not_called_for_coordinates():
    simulate = blackbox(lambda x: x**2, (), vectorized=True)

    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0))
        z = numpyro.sample("z", dist.Normal(simulate(x), 1.0))
        numpyro.sample("y", dist.Normal(z, 1.0), obs=y)

    assert NumPyroModel(model, (), {"y": 1.0}).problem().unconstrained_values is None


def test_pilot_and_whole_ensemble_are_compared_in_the_same_coordinates(monkeypatch):
    """Both as latent vectors z, although the pilot moves in z and the whole ensemble in w (see `fit_conditional`)."""
    seen = {}
    from_pilot = Starts.from_pilot

    def chosen(self, z):
        space, start = from_pilot(self, z)
        seen.update(found=z, space=space)
        return space, start

    def compared(places, pilot, whole):
        seen.update(pilot=pilot[0], whole=whole[0])
        return 0.0

    monkeypatch.setattr(Starts, "_first_step", lambda self, space, start: space.conditional is None)
    monkeypatch.setattr(Starts, "from_pilot", chosen)
    monkeypatch.setattr(_tempered_smc, "shares_apart", compared)
    problem = NumPyroModel(hierarchy, (), {"y": Y}).problem()
    posterior = infer(jax.random.key(0), problem, num_particles=256, refine=TemperedSMC(pilot_size=128))
    assert seen["space"].conditional is not None
    np.testing.assert_array_equal(seen["pilot"], seen["found"])
    np.testing.assert_allclose(jax.vmap(problem.prior.decode)(seen["whole"]), posterior.draws, rtol=1e-12)
