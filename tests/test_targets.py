"""Every target's truth against an independent way to it: prior sampling, grids, SciPy's formulas, the files."""

import functools
import math

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import integrate, stats
from scipy.special import expit

pytest.importorskip("sklearn", reason="needs the extra 'validation'")

from enkg_ppl import calibration
from enkg_ppl.numpyro._model import NumPyroModel
from validation import metrics
from validation.posteriors import _parallel_tempering as tempering
from validation.posteriors import (
    gaussian_field,
    mixture,
    nonlinear_field,
    posteriordb,
    rugged,
    sbibm,
    smooth,
    suites,
    targets,
)

BUILT_IN = targets()
EXACT = [name for name, target in BUILT_IN.items() if not target.name.startswith(("nonlinear", "gaussian"))]
EXACT = [name for name in EXACT if "closed" in name or "mixture" in name or "banana" in name or "funnel" in name]
EXACT += ["rugged/magnitudes_2", "rugged/magnitudes_4", "rugged/stepped_meter"]


def test_names_and_suites():
    assert all(name == target.name for name, target in BUILT_IN.items())
    collections = suites()
    assert {"closed_form", "mixture25", "smooth", "rugged", "gaussian_field", "nonlinear_field"} <= set(collections)
    assert collections["quick"] == [name for name in BUILT_IN if "quick" in BUILT_IN[name].suites]
    assert all((target.model is None) != (target.problem is None) for target in BUILT_IN.values())


def test_data_folder(tmp_path):
    assert set(targets(tmp_path)) == set(BUILT_IN)
    with pytest.raises(ValueError, match="data must be a folder"):
        targets(tmp_path / "nowhere")


@pytest.mark.slow
def test_the_field_that_vorticity_data_come_from_fits_them():
    """Chi-square of 256 data; other noise for another truth, and more of it in the other setting."""
    for name in ("navier_stokes/T1_low/2", "navier_stokes/T1_high/3"):
        target = BUILT_IN[name]
        truth, assumed = target.truth(), target.problem().likelihood
        assert truth.draws.shape == (1, 1024)
        assert target.misfit(truth.draws) == pytest.approx(1.0, abs=4 * (2 / 256) ** 0.5)
        assert np.ptp(assumed.noise_sd) == 0
        assert float(np.max(assumed.noise_sd)) == pytest.approx(2.16 if "high" in name else 0.216)


@pytest.mark.parametrize("name", [name for name in EXACT if not name.endswith(("/2", "/3"))])
def test_draws_agree_with_closed_form(name):
    """Worst of all scalars within what exact draws reach in all but 1 of 10,000 cases."""
    truth = BUILT_IN[name].truth()
    num_draws = len(truth.draws)
    limit = metrics.mean_error_floor(truth.draws, num_draws, mean_is_exact=True, quantile=0.999)
    assert metrics.mean_error(truth.draws, truth.means, truth.sds).worst < 1.2 * limit.worst
    ratio = metrics.sd_ratio(truth.draws, truth.sds)
    centred = (truth.draws - truth.means) / truth.sds
    error = np.sqrt(np.max(np.var(centred**2, axis=0)) / num_draws) / 2
    assert 1 - 5 * error < ratio.smallest <= ratio.largest < 1 + 5 * error
    if truth.masses is not None:
        labels = BUILT_IN[name].modes(truth.draws)
        shares = np.bincount(labels, minlength=len(truth.masses)) / num_draws
        blur = 0.002 if name == "mixture/four_corners" else 0.0  # its modes overlap a little
        sd = np.sqrt(truth.masses * (1 - truth.masses) / num_draws)
        assert np.all(np.abs(shares - truth.masses) < 4 * sd + blur + 2 / num_draws)


@pytest.mark.parametrize(
    "name",
    [
        "closed_form/linear_gaussian_2",
        "mixture/four_corners",
        "mixture25/d8_m1/1",
        "smooth/banana",
        "smooth/funnel",
        "rugged/magnitudes_2",
        "rugged/magnitudes_4",
        "rugged/stepped_meter",
    ],
)
def test_truth_by_weighted_prior_draws(name):
    """Mean and evidence as the prior and the likelihood of the problem itself give them."""
    target, truth = BUILT_IN[name], BUILT_IN[name].truth()
    if target.model is None:
        problem = target.problem()
        draws = jax.jit(jax.vmap(problem.prior.sample))(jr.split(jr.key(0), 200_000))
        log_weights = np.asarray(jax.jit(jax.vmap(problem.log_likelihood))(draws))
        values = np.asarray(draws)
    else:
        model = NumPyroModel(target.model, target.args, dict(target.kwargs))
        problem = model.problem()
        z = jr.normal(jr.key(0), (200_000, model.dim))
        log_weights = np.asarray(jax.jit(jax.vmap(problem.log_likelihood))(z))
        values = target.flatten(jax.jit(jax.vmap(lambda z: model.simulator.replay(z)[0]))(z))
    weights = np.exp(log_weights - log_weights.max())
    share = weights / weights.sum()
    ess = 1 / np.sum(share**2)
    assert ess > 300
    log_evidence = math.log(weights.mean()) + log_weights.max()
    assert log_evidence == pytest.approx(truth.log_evidence, abs=4 / math.sqrt(ess))
    mean = share @ values
    error = np.sqrt(share**2 @ (values - mean) ** 2)
    assert np.all(np.abs(mean - truth.means) < 4.5 * error)


def test_banana_by_a_grid():
    def density(t2, t1):
        return math.exp(-0.5 * (t1**2 + t2**2 + ((1 - t2 - t1**2) / 0.2) ** 2)) / (2 * math.pi) ** 1.5 / 0.2

    total = integrate.dblquad(density, -3.5, 3.5, -6, 4)[0]
    truth = smooth.banana_truth()
    assert math.log(total) == pytest.approx(truth.log_evidence, abs=1e-3)
    t1, t2 = np.meshgrid(np.linspace(-3.5, 3.5, 1401), np.linspace(-6, 4, 2001), indexing="ij")
    weights = np.exp(-0.5 * (t1**2 + t2**2 + ((1 - t2 - t1**2) / 0.2) ** 2))
    weights /= weights.sum()
    for value, mean, sd in zip((t1, t2), truth.means, truth.sds, strict=True):
        exact = np.sum(weights * value)
        exact_sd = np.sqrt(np.sum(weights * (value - exact) ** 2))
        assert abs(mean - exact) < 1e-4 * exact_sd
        assert abs(sd / exact_sd - 1) < 1e-4


def test_stationary_field():
    """Unit variance at every point, a covariance that the prior's transform reproduces."""
    C = gaussian_field.covariance(16)
    np.testing.assert_allclose(np.diag(C), 1.0, rtol=1e-12)
    root = jax.vmap(gaussian_field.prior(16).decode)(jnp.eye(256))
    np.testing.assert_allclose(np.asarray(root).T @ np.asarray(root), C, atol=1e-12)
    twice = jax.vmap(lambda x: gaussian_field.Hartley(16)(gaussian_field.Hartley(16)(x)))(root)
    np.testing.assert_allclose(twice, root, atol=1e-12)


def test_field_posterior():
    """At the posterior mean the gradient of the log posterior vanishes; the pull of every datum is in it."""
    target = BUILT_IN["gaussian_field/noise_0.1/3"]
    truth, problem = target.truth(), target.problem()
    pull = jax.grad(lambda x: problem.prior.log_prob(x) + problem.log_likelihood(x))
    assert np.linalg.norm(pull(jnp.asarray(truth.mean))) < 1e-5 * np.linalg.norm(pull(jnp.zeros(1024)))
    spread = calibration.spread_skill_ratio(truth.draws, truth.simulated_from)
    assert 0.8 < spread < 1.25
    ratio = truth.draws.var(axis=0, ddof=1).sum() / np.sum(truth.sd**2)
    assert ratio == pytest.approx(1.0, abs=0.05)


def test_mixture25_is_as_stated():
    drawn = mixture.mixture25(80, 4, 2)
    assert drawn.means.shape == (25, 80)
    np.testing.assert_array_equal(drawn.means[0], np.tile([-16.0, -16.0], 40))
    np.testing.assert_array_equal(drawn.means[13], np.tile([0.0, 8.0], 40))
    s = np.linalg.svd(drawn.A, compute_uv=False)
    assert 0 < drawn.noise_sd < s.max() < 1
    np.testing.assert_array_equal(mixture.mixture25_mode(drawn.means), np.arange(25))


def test_parallel_tempering_by_a_grid():
    """Two correlated unknowns whose signs are free: how often signs agree, and the mean magnitude."""
    root = np.array([[1.0, 0.0], [0.8, 0.6]])
    draws, acceptance = tempering.parallel_tempering(
        jr.key(1),
        lambda x: -0.5 * jnp.sum(((1.0 - jnp.abs(x)) / 0.2) ** 2),
        root,
        np.array([0.0, 0.01, 0.05, 0.2, 1.0]),
        num_ladders=8,
        num_warmup=200,
        num_samples=500,
        thinning=4,
    )
    assert np.all((acceptance > 0.2) & (acceptance <= 1))
    a, b = np.meshgrid(*[np.linspace(-4, 4, 801)] * 2, indexing="ij")
    prior = stats.multivariate_normal(np.zeros(2), root @ root.T).pdf(np.stack([a, b], axis=-1))
    weights = prior * np.exp(-0.5 * ((1 - np.abs(a)) ** 2 + (1 - np.abs(b)) ** 2) / 0.04)
    weights /= weights.sum()
    # Eight ladders: their scatter gives the error of the mean.
    for feature, exact in (
        (draws.prod(axis=-1) > 0, weights[a * b > 0].sum()),
        (np.abs(draws[..., 0]), np.sum(weights * np.abs(a))),
        (draws[..., 1] > 0, 0.5),
    ):
        means = feature.mean(axis=1)
        assert abs(means.mean() - exact) < 5 * means.std(ddof=1) / math.sqrt(8)


@pytest.mark.parametrize("parity", [0, 1])
def test_exchanges_leave_every_temperature_as_it_is(parity):
    """N(0, 1) with the likelihood exp(-2 x^2) at four temperatures: 65,536 exact ladders, one exchange each.

    Means of x^2 within 4.5 standard errors; with half the ratio they are 20 and more off.
    """
    betas, n = jnp.array([0.0, 0.2, 0.5, 1.0]), 65_536
    variances = 1 / (1 + 4 * np.asarray(betas))
    x = np.random.default_rng(0).standard_normal((n, 4)) * np.sqrt(variances)
    swap = jax.jit(jax.vmap(lambda key, x: tempering.exchange(key, x[:, None], -2 * x**2, betas, jnp.asarray(parity))))
    after, accepted = swap(jr.split(jr.key(2), n), jnp.asarray(x))
    accepted = np.asarray(accepted).mean(axis=0)
    paired = np.array([True] * 4 if parity == 0 else [False, True, True, False])
    assert np.all((accepted > 0.3) == paired)
    errors = (np.asarray(after)[..., 0] ** 2).mean(axis=0) / variances - 1
    assert np.all(np.abs(errors) < 4.5 * (2 / n) ** 0.5)


def test_nonlinear_fields():
    data = nonlinear_field.simulate("exp", 0.1)
    blocks = np.exp(data.u.reshape(8, 2, 8, 2)).mean(axis=(1, 3)).ravel()
    assert data.noise_sd == pytest.approx(0.1 * blocks.std())
    assert np.abs(data.y - blocks).max() < 5 * data.noise_sd
    data = nonlinear_field.simulate("abs", 1.0)
    seen = np.abs(data.u.reshape(16, 16)[::2, ::2].ravel())
    assert np.abs(data.y - seen).max() < 5 * data.noise_sd == pytest.approx(5 * seen.std())


def test_meter_and_magnitudes_modes():
    assert rugged.magnitudes_mode(np.array([[-1.0, -1.0], [1.0, -1.0], [-1.0, 1.0], [1.0, 1.0]])).tolist() == [
        0,
        1,
        2,
        3,
    ]
    assert rugged.transmitters_mode(np.array([[1.0, 0, 0, 0], [0, 0, 1.0, 0]])).tolist() == [1, 0]


def test_crescent():
    """The density integrates to one; mean and variance are those of its samples."""
    crescent = sbibm.Crescent(jnp.array([0.4, 0.2]))
    centre = np.asarray(crescent.centre)
    x, y = np.meshgrid(np.linspace(1e-5, 0.16, 801), np.linspace(-0.16, 0.16, 1601), indexing="ij")
    points = jnp.asarray(np.stack([x, y], axis=-1) + centre)
    cell = (0.16 / 800) * (0.32 / 1600)
    assert np.exp(crescent.log_prob(points)).sum() * cell == pytest.approx(1, abs=0.005)
    assert crescent.log_prob(jnp.asarray(centre - [0.1, 0.0])) == -jnp.inf
    samples = np.asarray(crescent.sample(jr.key(0), (40_000,)))
    np.testing.assert_allclose(samples.mean(axis=0), crescent.mean, atol=4 * 0.07 / 200)
    np.testing.assert_allclose(samples.var(axis=0), crescent.variance, rtol=0.04)


# Files


def sbibm_log_density(task, theta, x, design=None):
    """Prior times likelihood, up to a constant of theta, as the benchmark states them."""
    if task == "gaussian_linear":
        return stats.norm(0, math.sqrt(0.1)).logpdf(theta).sum() + stats.norm(theta, math.sqrt(0.1)).logpdf(x).sum()
    if task == "gaussian_linear_uniform":
        return stats.norm(theta, math.sqrt(0.1)).logpdf(x).sum() if np.all(np.abs(theta) <= 1) else -np.inf
    if task == "bernoulli_glm":
        D = np.eye(9) - np.diag(np.ones(8), -1)
        F = D @ D + np.diag(np.sqrt(np.arange(9) / 9))
        p = expit(design @ theta)
        prior = -0.5 * (0.5 * theta[0] ** 2 + np.sum((F @ theta[1:]) ** 2))
        return prior + np.sum(np.where(x == 1, np.log(p), np.log(1 - p)))
    if task == "lotka_volterra":
        a, b, c, d = theta
        path = integrate.solve_ivp(
            lambda t, u: [a * u[0] - b * u[0] * u[1], -c * u[1] + d * u[0] * u[1]],
            (0, 18.9),
            [30.0, 1.0],
            t_eval=np.minimum(2.1 * np.arange(10), 18.9),
            rtol=1e-9,
            atol=1e-12,
        ).y.ravel()
        prior = stats.lognorm(0.5, scale=np.exp([-0.125, -3, -0.125, -3])).logpdf(theta).sum()
        return prior + stats.lognorm(0.1, scale=path).logpdf(x).sum()
    if task == "slcp":
        s1, s2, r = theta[2] ** 2, theta[3] ** 2, np.tanh(theta[4])
        S = np.array([[s1**2, r * s1 * s2], [r * s1 * s2, s2**2]]) + 1e-6 * np.eye(2)
        return stats.multivariate_normal(theta[:2], S).logpdf(np.reshape(x, (4, 2))).sum()
    p = np.array([x[0] + abs(theta[0] + theta[1]) / math.sqrt(2) - 0.25, x[1] - (theta[1] - theta[0]) / math.sqrt(2)])
    rho = np.hypot(*p)
    return stats.norm(0.1, 0.01).logpdf(rho) - math.log(rho) if p[0] > 0 else -np.inf


def density_of_theta(target, theta):
    return log_density(target.model, target.args, dict(target.kwargs), {"theta": theta})[0]


@pytest.mark.parametrize("task", sbibm.TASKS)
def test_sbibm_models(shared_data, task):
    found = targets(shared_data("reference"))
    for number in (1, 4):
        target = found[f"sbibm/{task}/{number}"]
        theta = target.truth().draws[:20]
        (x,) = target.kwargs.values()
        ours = np.asarray(jax.jit(jax.vmap(functools.partial(density_of_theta, target)))(jnp.asarray(theta)))
        theirs = np.array([sbibm_log_density(task, row, np.asarray(x).ravel(), *target.args) for row in theta])
        assert np.isfinite(theirs).all()
        # Reference draws are stored in single precision, and the ODE's error is 1e-5 of noise 0.1, twenty times.
        np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=5e-3 if task == "lotka_volterra" else 1e-8)


def marginal_likelihood(task, value):
    width = math.sqrt(0.1)
    prior, ends = (stats.norm(0, width), (-3, 3)) if task == "gaussian_linear" else (stats.uniform(-1, 2), (-1, 1))
    return integrate.quad(lambda t: prior.pdf(t) * stats.norm(t, width).pdf(value), *ends)[0]


@pytest.mark.parametrize("task", ["gaussian_linear", "gaussian_linear_uniform", "two_moons"])
def test_sbibm_closed_forms(shared_data, task):
    """Means and sds as the 5,000 reference draws have them; evidence by SciPy's quadrature or prior draws."""
    found = targets(shared_data("reference"))
    for number in range(1, 6):
        target = found[f"sbibm/{task}/{number}"]
        truth = target.truth()
        assert metrics.mean_error(truth.draws, truth.means, truth.sds).worst < 4.5 / math.sqrt(5000)
        x = next(iter(target.kwargs.values()))
        if task == "two_moons":
            theta = np.random.default_rng(number).uniform(-1, 1, (400_000, 2))
            p1 = x[0] + np.abs(theta.sum(axis=1)) / math.sqrt(2) - 0.25
            rho = np.hypot(p1, x[1] - (theta[:, 1] - theta[:, 0]) / math.sqrt(2))
            likelihood = np.where(p1 > 0, stats.norm(0.1, 0.01).pdf(rho) / (math.pi * rho), 0)
            error = likelihood.std() / math.sqrt(len(theta)) / likelihood.mean()
            assert math.log(likelihood.mean()) == pytest.approx(truth.log_evidence, abs=4 * error)
            shares = np.bincount(target.modes(truth.draws)) / 5000
            assert np.abs(shares - 0.5).max() < 4 * 0.5 / math.sqrt(5000)
            continue
        parts = [marginal_likelihood(task, value) for value in x]
        assert np.sum(np.log(parts)) == pytest.approx(truth.log_evidence, abs=1e-6)


def posteriordb_log_density(name, row, data):
    """As Stan's programs state them, for parameters in the order of `param_names`; constants left out."""
    norm = stats.norm
    if name == "eight_schools_noncentered":
        theta, mu, tau = row[:8], row[8], row[9]
        z = (theta - mu) / tau
        prior = norm(0, 5).logpdf(mu) + stats.halfcauchy(scale=5).logpdf(tau) + norm.logpdf(z).sum()
        return prior + norm(theta, data["data_sigma"]).logpdf(data["data_y"]).sum()
    if name == "kidscore_momiq":
        fit = row[0] + row[1] * data["data_mom_iq"]
        return stats.halfcauchy(scale=2.5).logpdf(row[2]) + norm(fit, row[2]).logpdf(data["data_kid_score"]).sum()
    if name == "gp_regr":
        rho, alpha, sigma = row
        gap = np.subtract.outer(data["data_x"], data["data_x"])
        K = alpha**2 * np.exp(-0.5 * (gap / rho) ** 2) + sigma * np.eye(11)
        prior = stats.gamma(25, scale=1 / 4).logpdf(rho) + norm(0, 2).logpdf(alpha) + norm(0, 1).logpdf(sigma)
        return prior + stats.multivariate_normal(np.zeros(11), K).logpdf(data["data_y"])
    beta, sigma = row[:5], row[5]
    prior = norm(0, 10).logpdf(beta).sum() + norm(0, 10).logpdf(sigma)
    return prior + norm(data["data_X"] @ beta, sigma).logpdf(data["data_y"]).sum()


@pytest.mark.parametrize("name", ["eight_schools_noncentered", "kidscore_momiq", "gp_regr", "sblri_blr"])
def test_posteriordb_models(shared_data, name):
    target = targets(shared_data("reference"))[f"posteriordb/{name}"]
    rows = target.truth().draws[::500]
    sites = {
        "eight_schools_noncentered": lambda r: {"mu": r[8], "tau": r[9], "z": (r[:8] - r[8]) / r[9]},
        "kidscore_momiq": lambda r: {"beta": r[:2], "sigma": r[2]},
        "gp_regr": lambda r: {"rho": r[0], "alpha": r[1], "sigma": r[2]},
        "sblri_blr": lambda r: {"beta": r[:5], "sigma": r[5]},
    }[name]
    density = jax.jit(jax.vmap(lambda r: log_density(target.model, target.args, dict(target.kwargs), sites(r))[0]))
    with jax.numpy_rank_promotion("allow"):  # NumPyro's own algebra
        ours = np.asarray(density(jnp.asarray(rows)))
    file = posteriordb.POSTERIORS[name][0]
    data = np.load(shared_data(f"reference/posteriordb/{file}.npz"), allow_pickle=False)
    theirs = np.array([posteriordb_log_density(name, row, data) for row in rows])
    # The wide Normal in place of a flat prior varies a little over the posterior.
    tolerance = 0.05 if name == "kidscore_momiq" else 1e-7
    np.testing.assert_allclose(ours - ours[0], theirs - theirs[0], atol=tolerance)


def test_wide_priors_change_nothing(shared_data):
    """Reference draws reweighted by the Normal that stands for a flat prior: means stay within 0.005 sd."""
    draws = targets(shared_data("reference"))["posteriordb/kidscore_momiq"].truth().draws
    widths = np.array([posteriordb.INTERCEPT_SD, posteriordb.SLOPE_SD])
    weights = np.exp(stats.norm(0, widths).logpdf(draws[:, :2]).sum(axis=1))
    weights /= weights.sum()
    mean = weights @ draws
    assert np.all(np.abs(mean - draws.mean(axis=0)) < 0.005 * draws.std(axis=0))
    sd = np.sqrt(weights @ (draws - mean) ** 2)
    np.testing.assert_allclose(sd, draws.std(axis=0), rtol=0.005)


def test_lynx_hare_gets_the_data_of_the_file(shared_data):
    from models import lynx_hare

    target = targets(shared_data("reference"))["posteriordb/hudson_lynx_hare"]
    np.testing.assert_allclose(target.kwargs["y"], lynx_hare.PELTS)
    np.testing.assert_allclose(np.diff(target.args[0]), 1.0)
    assert target.with_gradient is lynx_hare.twin
    assert target.truth().draws.shape == (10_000, 8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["rugged/transmitters", "rugged/thermostat"])
def test_smc_truth_by_weighted_prior_draws(name):
    """What many particles found, against a million prior draws."""
    target, truth = BUILT_IN[name], BUILT_IN[name].truth()
    model = NumPyroModel(target.model, target.args, dict(target.kwargs))
    problem = model.problem()
    z = jr.normal(jr.key(0), (1_000_000, model.dim))
    log_weights = np.asarray(jax.jit(jax.vmap(problem.log_likelihood))(z))
    values = target.flatten(jax.jit(jax.vmap(lambda z: model.simulator.replay(z)[0]))(z))
    weights = np.exp(log_weights - log_weights.max())
    share = weights / weights.sum()
    mean = share @ values
    # Particles that share an ancestor count less; a tenth of them is a cautious guess.
    error = np.sqrt(share**2 @ (values - mean) ** 2 + truth.sds**2 / (len(truth.draws) / 10))
    assert np.all(np.abs(mean - truth.means) < 4 * error)
    log_evidence = math.log(weights.mean()) + log_weights.max()
    # Standard errors: of the weighted prior draws, and 0.05 for the particles.
    assert abs(log_evidence - truth.log_evidence) < 4 * math.hypot(np.sum(share**2) ** 0.5, 0.05)
