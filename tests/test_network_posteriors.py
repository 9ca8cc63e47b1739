"""Posteriors under trained networks: cameras, the truth by a grid against closed forms and another integral, EnKG."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from numpyro.infer.util import log_density
from scipy import ndimage

pytest.importorskip("sklearn", reason="needs the extra 'validation'")

from enkg_ppl import EnKG
from enkg_ppl.numpyro._model import NumPyroModel
from models import toys
from validation import metrics
from validation.posteriors import network_prior
from validation.posteriors.network_prior import CAMERAS, Camera, blur, grid_truth
from validation.store import Settings, Store, run_key
from validation.target import Truth

PLANAR = {camera.prior + "_" + camera.name: camera for camera in CAMERAS if camera.prior in toys.TOYS}
TARGETS = {target.name: target for target in network_prior.targets()}
SHIPPED = [name for name in PLANAR if f"network_prior/{name}" in TARGETS]


def test_every_shipped_prior_is_seen_by_both_cameras():
    assert "two_moons_linear" in SHIPPED
    for name in SHIPPED:
        assert f"network_prior/{PLANAR[name].prior}_linear" in TARGETS
        assert f"network_prior/{PLANAR[name].prior}_saturating" in TARGETS


@pytest.mark.parametrize("camera", CAMERAS, ids=lambda camera: f"{camera.prior}_{camera.name}")
def test_both_ways_through_a_camera(camera: Camera):
    x = camera.x + 0.3 * np.random.default_rng(0).standard_normal((5, len(camera.x)))
    images = x.reshape(5, 8, 8) if len(camera.x) == 64 else x
    on_host = camera.on_host(images)
    assert on_host.shape == (5, len(camera.y))
    np.testing.assert_allclose(on_host, jax.vmap(camera.differentiable)(jnp.asarray(images)), rtol=1e-12)
    assert camera.saturates == (np.abs(camera.on_host(100 * images)).max() <= 1)
    # data are a few noise sd from what the camera shows of the truth
    misfit = (camera.y - camera.on_host(camera.x[None])[0]) / camera.noise_sd
    assert 0.3 < np.sum(misfit**2) ** 0.5 / len(misfit) ** 0.5 < 1.8 or len(misfit) < 3
    assert np.abs(misfit).max() < 4


def test_blur_is_a_convolution():
    image = np.random.default_rng(0).random((8, 8))
    kernel = np.outer([1, 2, 1], [1, 2, 1]) / 16
    np.testing.assert_allclose(
        blur(8) @ image.ravel(), ndimage.convolve(image, kernel, mode="constant").ravel(), rtol=1e-12
    )


def test_drawn_digit_has_ink_where_a_three_has():
    image = CAMERAS[-1].x.reshape(8, 8)
    assert (image.min(), image.max()) == (0, 1)
    assert 0.2 < image.mean() < 0.5
    assert image[3:5, :3].sum() == 0  # open to the left


@pytest.mark.parametrize("name", SHIPPED)
def test_black_box_and_twin_are_one_model(name):
    target = TARGETS[f"network_prior/{name}"]
    assert target.model is not None
    assert target.twin is not None
    z = np.random.default_rng(1).standard_normal((4, 2))
    through = [NumPyroModel(model, (), dict(target.kwargs)).problem() for model in (target.model, target.twin)]
    values = [jax.jit(jax.vmap(problem.log_likelihood))(jnp.asarray(z)) for problem in through]
    np.testing.assert_allclose(*values, rtol=1e-9)


def test_conditional_draws_keep_the_precision_of_a_32_bit_network():
    """The shipped weights have 32 bits, also where JAX counts in 64: guidance draws from them by the reverse SDE."""
    prior = network_prior.prior("two_moons")
    assert prior.location.dtype == jnp.float32
    sigma = jnp.asarray(0.5)  # 64 bits
    x0 = prior.conditional_sample(jax.random.key(0), prior.location, sigma)
    assert x0.dtype == jnp.float32
    assert np.all(np.isfinite(x0))


def test_retrained_weights_make_results_obsolete(tmp_path):
    from validation.methods import METHODS

    target = TARGETS["network_prior/two_moons_linear"]
    file = tmp_path / "prior.json"
    keys = []
    for text in ("one", "one", "another"):
        file.write_text(text)
        keys.append(run_key(dataclasses.replace(target, files=(file,)), METHODS["enkg"], Settings()))
    assert keys[0] == keys[1] != keys[2]

    calls = []

    def truth():
        calls.append(1)
        return Truth(np.zeros((4, 2)), "counted")

    store = Store(tmp_path)
    counted = dataclasses.replace(target, truth=truth, files=(file,))
    store.truth(counted)
    store.truth(counted)
    file.write_text("a third")
    store.truth(counted)
    assert len(calls) == 2


def mixture_posterior(exact, camera):
    """Mean, sd and log evidence under a mixture prior and a linear camera, by the formulas of Gaussians."""
    means, variance = np.asarray(exact.means), float(exact.variances.min())
    (b,) = camera.B
    seen_variance = variance * b @ b + camera.noise_sd**2
    gain = variance * b / seen_variance
    residual = camera.y[0] - means @ b
    log_joint = -0.5 * (residual**2 / seen_variance + math.log(2 * math.pi * seen_variance)) - math.log(len(means))
    log_evidence = np.logaddexp.reduce(log_joint)
    masses = np.exp(log_joint - log_evidence)
    centres = means + residual[:, None] * gain
    mean = masses @ centres
    within = variance * (1 - gain * b)
    return mean, np.sqrt(within + masses @ (centres - mean) ** 2), log_evidence


@pytest.mark.parametrize("toy", ["ring", pytest.param("two_moons", marks=pytest.mark.slow)])
def test_grid_truth_of_an_exact_prior(toy, monkeypatch):
    """With the toy's own mixture in the network's place the posterior is a closed form."""
    exact, camera = toys.TOYS[toy](), PLANAR[f"{toy}_linear"]
    monkeypatch.setattr(network_prior, "prior", lambda name: exact)
    monkeypatch.setattr(network_prior, "flow_on_grid", network_prior.flow_on_grid.__wrapped__)
    truth = grid_truth(camera)
    mean, sd, log_evidence = mixture_posterior(exact, camera)
    assert truth.log_evidence == pytest.approx(log_evidence, abs=1e-3)
    np.testing.assert_allclose(truth.means, mean, atol=1e-3)
    np.testing.assert_allclose(truth.sds, sd, rtol=1e-3)
    # the draws are of this very density
    assert metrics.mean_error(truth.draws, mean, sd).worst < 4 / math.sqrt(len(truth.draws))
    ratio = metrics.sd_ratio(truth.draws, sd)
    assert 0.96 < ratio.smallest <= ratio.largest < 1.04


def z_grid(target, half_width=5.5, num=161):
    """Draws and log weights of the posterior by a grid over z, through the model that EnKG gets."""
    axis = np.linspace(-half_width, half_width, num)
    z = np.stack(np.meshgrid(axis, axis, indexing="ij"), axis=-1).reshape(-1, 2)
    assert target.twin is not None
    model = NumPyroModel(target.twin, (), dict(target.kwargs))
    problem = model.problem()

    def one(z):
        u = problem.prior.decode(z)
        return problem.log_likelihood(u), model.simulator.replay(u)[0]["x"]

    log_likelihood, x = jax.jit(lambda z: jax.lax.map(one, z, batch_size=4096))(jnp.asarray(z))
    log_prior = -0.5 * np.sum(z**2, axis=1) + 2 * math.log((axis[1] - axis[0]) / math.sqrt(2 * math.pi))
    return np.asarray(x), log_prior + np.asarray(log_likelihood)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_truth_by_a_grid_over_z(name):
    """The density of the adaptive flow over x, and the fixed steps over z without any density, give one posterior.

    The fixed steps are a slightly other prior, hence 1 % and 0.01 sd.
    """
    target, truth = TARGETS[f"network_prior/{name}"], grid_truth(PLANAR[name])
    x, log_mass = z_grid(target)
    log_evidence = np.logaddexp.reduce(log_mass)
    mass = np.exp(log_mass - log_evidence)
    mean = mass @ x
    assert truth.log_evidence == pytest.approx(log_evidence, abs=0.01)
    assert np.all(np.abs(truth.means - mean) < 0.015 * truth.sds)
    np.testing.assert_allclose(np.sqrt(mass @ (x - mean) ** 2), truth.sds, rtol=0.015)


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_flow_density_integrates_to_one(name):
    grid = network_prior.flow_on_grid(PLANAR[name].prior)
    assert np.exp(grid.log_density).sum() * grid.cell.prod() == pytest.approx(1, abs=1e-3)


@pytest.mark.slow
def test_density_for_nuts_is_that_of_the_truth():
    """`FLOW_STEPS` fixed steps against the adaptive grid, at draws of the posterior."""
    target, truth = TARGETS["network_prior/two_moons_linear"], grid_truth(PLANAR["two_moons_linear"])
    x = truth.draws[:50]
    grid = network_prior.flow_on_grid("two_moons")
    nearest = [np.abs(axis[:, None] - x[:, i]).argmin(axis=0) for i, axis in enumerate((grid.x1, grid.x2))]
    on_grid = np.stack([grid.x1[nearest[0]], grid.x2[nearest[1]]], axis=1)
    blind = {"y": None}

    def density(x):
        return log_density(target.twin, (), blind, {"x": x, "y": jnp.zeros(1)})[0]

    camera = PLANAR["two_moons_linear"]
    seen = camera.on_host(on_grid)[:, 0]
    log_likelihood = -0.5 * ((seen / camera.noise_sd) ** 2 + math.log(2 * math.pi * camera.noise_sd**2))
    values = np.asarray(jax.jit(jax.vmap(density))(jnp.asarray(on_grid)))
    np.testing.assert_allclose(values - log_likelihood, grid.log_density[tuple(nearest)], atol=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("camera", ["linear", "saturating"])
def test_default_enkg_finds_the_truth(camera):
    target, truth = TARGETS[f"network_prior/two_moons_{camera}"], grid_truth(PLANAR[f"two_moons_{camera}"])
    assert target.model is not None
    enkg = EnKG(target.model, num_particles=2000, progress_bar=False)
    enkg.run(jax.random.key(0), **target.kwargs)
    draws = target.flatten(enkg.get_samples())
    assert metrics.mean_error(draws, truth.means, truth.sds).worst < 0.15
    ratio = metrics.sd_ratio(draws, truth.sds)
    assert 0.85 < ratio.smallest <= ratio.largest < 1.15
    assert metrics.c2st(draws, truth.draws) < 0.55
    assert enkg.log_evidence == pytest.approx(truth.log_evidence, abs=0.15)
