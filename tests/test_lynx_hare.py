"""The predator-prey problem: data, black box against its differentiable twin, report page."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from PIL import Image
from scipy.integrate import solve_ivp
from scipy.stats import truncnorm

from models.lynx_hare import (
    LATENT_SITES,
    PELTS,
    POSTERIORDB_NAMES,
    WILD_RATE,
    YEARS,
    model,
    peak_rate,
    predictive_draws,
    simulate,
    simulate_one,
    solve_twin,
    twin,
)
from validation.compare import scalars
from validation.demos.lynx_hare import build_page, save_picture

TIMES = YEARS[1:] - YEARS[0]
REFERENCE = "reference/posteriordb/hudson_lynx_hare-lotka_volterra.npz"


def prior_draws(size, seed=0):
    """theta (size, 4), z_init (size, 2), sigma (size, 2)."""
    rng = np.random.default_rng(seed)
    mean, sd = np.array([1.0, 0.05, 1.0, 0.05]), np.array([0.5, 0.05, 0.5, 0.05])
    theta = truncnorm.rvs(-mean / sd, np.inf, mean, sd, size=(size, 4), random_state=rng)
    return theta, 10 * np.exp(rng.standard_normal((size, 2))), np.exp(-1 + rng.standard_normal((size, 2)))


def tight_solve(theta, z_init):
    """One particle in plain populations, by another method: an oracle that shares no code."""
    alpha, beta, gamma, delta = theta

    def field(_, z):
        return [(alpha - beta * z[1]) * z[0], (delta * z[0] - gamma) * z[1]]

    return solve_ivp(field, (0, 20), z_init, "LSODA", t_eval=TIMES, rtol=1e-11, atol=1e-13).y.T


def posterior(size, seed=0):
    """Stand-in draws near the posterior, as `get_samples` returns them."""
    rng = np.random.default_rng(seed)
    centre = {
        "alpha": 0.55,
        "beta": 0.028,
        "gamma": 0.8,
        "delta": 0.024,
        "z_init": [34.0, 5.9],
        "sigma": [0.25, 0.25],
    }
    return {
        site: np.asarray(value) * np.exp(0.08 * rng.standard_normal((size, *np.shape(value))))
        for site, value in centre.items()
    }


def as_sites(theta, z_init, sigma):
    return dict(zip(LATENT_SITES, (*theta.T, z_init, sigma), strict=True))


def test_pelts_and_names_are_those_of_posteriordb(shared_data):
    with np.load(shared_data(REFERENCE), allow_pickle=False) as reference:
        np.testing.assert_array_equal(PELTS, np.vstack([reference["data_y_init"], reference["data_y"]]))
        np.testing.assert_array_equal(YEARS[1:] - YEARS[0], reference["data_ts"])
        assert set(POSTERIORDB_NAMES) == set(reference["param_names"].tolist())
    assert set(POSTERIORDB_NAMES.values()) == {name for name, _ in scalars(posterior(2))}


def test_reference_draws_explain_the_pelts(shared_data):
    """Residuals of the pelts under Stan's draws have unit variance: same equations, same noise."""
    with np.load(shared_data(REFERENCE), allow_pickle=False) as reference:
        theta, z_init, sigma = np.split(reference["draws"].reshape(-1, 8)[::50], [4, 6], axis=1)
    population = np.concatenate([z_init[:, None, :], simulate(theta, z_init)], axis=1)
    residual = (np.log(PELTS) - np.log(population)) / sigma[:, None, :]
    # 42 data, spread fitted: one, up to 1 / sqrt(2 * 42) = 0.11.
    assert np.sqrt(np.mean(residual**2)) == pytest.approx(1.0, abs=0.2)


def test_ensemble_agrees_with_the_twin_at_prior_draws():
    theta, z_init, _ = prior_draws(48)
    exact = jax.vmap(solve_twin, in_axes=(0, 0, None))(theta, z_init, jnp.asarray(TIMES))
    np.testing.assert_allclose(simulate(theta, z_init), exact, rtol=1e-4)


def test_every_particle_of_an_ensemble_is_accurate():
    theta, z_init, _ = prior_draws(1024, seed=1)
    ensemble = simulate(theta, z_init)
    calm = peak_rate(theta, z_init) < 12.0  # the oracle loses digits in the deep troughs of the wilder ones
    for j in np.flatnonzero(calm)[:12]:
        np.testing.assert_allclose(ensemble[j], tight_solve(theta[j], z_init[j]), rtol=1e-4)
        np.testing.assert_allclose(simulate_one(theta[j], z_init[j]), ensemble[j], rtol=2e-4)


def test_absurd_particles_stay_finite_and_leave_the_others_alone():
    theta, z_init, _ = prior_draws(32, seed=2)
    expected = simulate(theta, z_init)
    theta[0], z_init[0] = [1e9, 1e9, 1e9, 1e9], [1e30, 1e30]
    theta[1], z_init[1] = [np.inf, 0.0, np.inf, 0.0], [np.inf, 0.0]
    theta[2] = [50.0, 1e-6, 60.0, 3.0]
    theta[3, 1] = np.nan
    assert np.all(peak_rate(theta[:3], z_init[:3]) > WILD_RATE)
    result = simulate(theta, z_init)
    assert np.all(np.isfinite(result[:3]))
    assert np.all(result[:3] > 0)
    assert np.all(np.isnan(result[3]))
    np.testing.assert_allclose(result[4:], expected[4:], rtol=1e-4)


def test_wild_rates_hardly_occur_in_the_prior():
    theta, z_init, _ = prior_draws(20_000, seed=3)
    assert np.mean(peak_rate(theta, z_init) > WILD_RATE) < 1e-3


def test_times_may_carry_a_particle_axis():
    theta, z_init, _ = prior_draws(3, seed=4)
    times = np.array([0.5, 2.0])
    once = simulate(theta, z_init, times)
    assert once.shape == (3, 2, 2)
    np.testing.assert_array_equal(simulate(theta, z_init, np.tile(times, (3, 1))), once)


def test_twin_has_the_gradient_of_the_black_box():
    sites = {name: value[0] for name, value in posterior(1).items()}
    theta, z_init = np.array([sites[name] for name in LATENT_SITES[:4]]), sites["z_init"]
    jacobian = jax.jacrev(lambda t: jnp.log(solve_twin(t, jnp.asarray(z_init), jnp.asarray(TIMES))))(theta)
    for k in range(4):
        step = 1e-3 * theta[k] * np.eye(4)[k]
        up, down = simulate(np.stack([theta + step, theta - step]), np.stack([z_init, z_init]))
        numerical = (np.log(up) - np.log(down)) / (2e-3 * theta[k])
        # Central differences of a solver good to 1e-6: a few 1e-3 of the largest entry.
        np.testing.assert_allclose(jacobian[..., k], numerical, atol=2e-3 * np.abs(numerical).max())


def test_model_and_twin_are_the_same_density():
    draws = jax.tree.map(jnp.asarray, as_sites(*prior_draws(16, seed=5)))

    def density(some_model):
        def of_one(values):
            return log_density(some_model, (YEARS,), {"y": PELTS}, values)[0]

        return jax.jit(jax.vmap(of_one))(draws)

    np.testing.assert_allclose(density(model), density(twin), rtol=1e-4)


def test_predictive_draws_start_at_the_first_year():
    samples = posterior(200)
    draws = predictive_draws(np.random.default_rng(0), samples, YEARS)
    assert draws.shape == (200, 21, 2)
    # Median of LogNormal noise is one; its sampling error at 200 draws is 1.25 * 0.25 / sqrt(200).
    np.testing.assert_allclose(np.median(draws[:, 0], 0), np.median(samples["z_init"], 0), rtol=0.09)


@pytest.fixture(scope="module")
def report():
    return build_page(
        posterior(300),
        posterior(400, seed=1),
        {"method": "a < b", "levels": np.arange(12.0), "warnings": []},
        {"solver runs": "92,160"},
        "python -m validation.demos.lynx_hare",
    )


def test_page_is_self_contained(report):
    assert report.startswith("<!doctype html>")
    assert "http" not in report
    assert not re.search(r"<(script|link|img|iframe|object)\b|\bsrc=|@import|url\((?!#)", report)
    assert set(re.findall(r'href="(.)', report)) <= {"#"}
    assert len(report) < 1_000_000
    assert report.count("<svg") == report.count("</svg>") == 4


def test_page_shows_numbers_and_escapes_text(report):
    for text in ("a &lt; b", "12 values, 0 to 11", "z_init[1]", "92,160", "difference / sd", "<td>none</td>"):
        assert text in report
    ids = re.findall(r'<clipPath id="([^"]+)"', report)
    assert len(ids) == len(set(ids)), "two pictures on one page must not share an id"


def test_picture_fits_a_readme(tmp_path):
    path = save_picture(posterior(300), posterior(300, seed=1), tmp_path / "docs" / "fit.png")
    with Image.open(path) as picture:
        assert picture.size == (1600, 700)
    assert path.stat().st_size < 150_000
