"""Parity with the authors' own code, on records of its runs."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enkg_ppl import InverseProblem, Karras, MixturePrior, PublishedCorrection, guide
from enkg_ppl.evaluation._evaluator import ensemble_response
from enkg_ppl.guidance import Level
from enkg_ppl.guidance._published import _kalman_step
from enkg_ppl.likelihood import GaussianLikelihood, Response

RUNS = ["linear_small_scale", "linear_two_updates", "nonlinear_small_scale", "nonlinear_decaying_scale"]


class FromNoise(PublishedCorrection):
    """The published correction, started from recorded noise."""

    noise: jax.Array = None

    def start(self, key, problem, num_particles, sigma):
        return sigma * self.noise


@pytest.fixture(scope="module", params=RUNS)
def record(request, shared_data):
    data = dict(np.load(shared_data(f"parity/{request.param}.npz"), allow_pickle=False))
    config = json.loads(str(data["config"]))
    A = jnp.asarray(data["A"])
    linear = str(data["forward"]) == "linear"
    forward = (lambda x: A @ x) if linear else (lambda x: jnp.tanh(A @ x) + 0.1 * (A @ x) ** 2)
    prior = MixturePrior(data["weights"], data["means"], data["variances"])
    problem = InverseProblem(prior, forward, GaussianLikelihood(data["y"], 1.0))
    correction = FromNoise(
        config["guidance_scale"],
        config["num_updates"],
        config["threshold_start"],
        config["threshold_end"],
        config["lr_min_ratio"],
        noise=jnp.asarray(data["noise"]),
    )
    schedule = Karras(config["num_steps"], config["sigma_min"], config["sigma_max"], float(config["rho"]))
    return request.param, data, problem, correction, schedule


def test_number_of_guided_levels(record):
    _, data, _, correction, schedule = record
    guided = [bool(correction.is_guided(i, schedule.num_steps)) for i in range(schedule.num_steps)]
    assert sum(guided) == data["num_guided_steps"]
    planned = [correction.num_updates_at(i, schedule.num_steps) for i in range(schedule.num_steps)]
    assert sum(planned) == correction.num_updates * sum(guided)


def test_recorded_updates(record):
    """All updates of one level, at three noise levels, to 1e-6 of the largest coordinate."""
    _, data, problem, correction, schedule = record
    levels = np.asarray(schedule.levels())

    @jax.jit
    def level_updates(x, index, sigma):
        level = Level(index, schedule.num_steps, sigma, sigma)
        for _ in range(correction.num_updates):
            x = correction.update(x, level, problem, lambda x: ensemble_response(problem, x))
        return x

    for before, after, sigma, num_ode_steps, scale in zip(
        *(data[f"update_{name}"] for name in ("before", "after", "sigma", "ode_steps", "scale")), strict=True
    ):
        index = int(np.argmin(np.abs(levels - sigma)))
        assert correction.num_inner_steps(index, schedule.num_steps) == num_ode_steps
        np.testing.assert_allclose(correction.scale(index, schedule.num_steps), scale, rtol=1e-12)
        # The recorded level is the authors' float32 one, 1e-7 off the formula's.
        error = np.abs(level_updates(before, index, sigma) - after).max() / np.abs(after).max()
        assert error < 1e-6


def test_final_ensemble_of_the_stable_run(record):
    """The other three runs amplify rounding (the record says by how much), so only their updates are compared."""
    name, data, problem, correction, schedule = record
    if name != "nonlinear_small_scale":
        assert data["max_change_under_1e7_perturbation"] > 1e-3
        return
    posterior = guide(
        jax.random.key(0), problem, num_particles=len(data["noise"]), correction=correction, schedule=schedule
    )
    error = np.abs(np.asarray(posterior.draws) - data["final"]).max()
    assert error < 10 * data["max_change_under_1e7_perturbation"]
    assert posterior.num_forward_evaluations == len(data["noise"]) * int(data["num_guided_steps"])


def test_noise_level_cancels():
    """Why it is not the default: the published update is the same whatever the observation noise."""
    x = jax.random.normal(jax.random.key(0), (32, 3))
    level = Level(jnp.asarray(20), 80, jnp.asarray(1.0), jnp.asarray(0.9))

    def update(noise):
        problem = InverseProblem(
            MixturePrior([1.0], jnp.zeros((1, 3)), [1.0]), lambda x: x**2, GaussianLikelihood(jnp.ones(3), noise)
        )
        return PublishedCorrection().update(x, level, problem, lambda x: ensemble_response(problem, x))

    np.testing.assert_allclose(update(0.1), update(10.0), rtol=1e-9)
    assert np.abs(update(0.1) - x).max() > 0.1


@pytest.mark.parametrize("bad", [{"guidance_scale": 0.0}, {"num_updates": 0}])
def test_bad_settings(bad):
    with pytest.raises(ValueError, match=f"PublishedCorrection needs {next(iter(bad))}"):
        PublishedCorrection(**bad)


def test_a_failed_simulation_moves_no_other_particle():
    """The update of the others is the paper's of them alone; written out in NumPy. Large outputs do not overflow."""
    rng = np.random.default_rng(0)
    x, g, y = rng.standard_normal((12, 3)), rng.standard_normal((12, 4)), rng.standard_normal(4)
    failed = np.isin(np.arange(12), [2, 7])

    def exact(x, g):
        e, spread = g - y, g - g.mean(axis=0)
        c = e @ spread.T / len(g)
        return x - 0.7 / np.linalg.norm(c) * c @ (x - x.mean(axis=0))

    def update(g, y):
        return np.asarray(_kalman_step(x, Response(g, np.tile(y, (12, 1)), np.ones((12, 4))), 0.7))

    np.testing.assert_allclose(update(g, y), exact(x, g), rtol=1e-12)
    for bad in (np.nan, np.inf):
        found = update(np.where(failed[:, None], bad, g), y)
        np.testing.assert_array_equal(found[failed], x[failed])
        np.testing.assert_allclose(found[~failed], exact(x[~failed], g[~failed]), rtol=1e-12)
    huge = 2.0**1020  # its square is no number
    np.testing.assert_array_equal(update(g * huge, y * huge), update(g, y))
    np.testing.assert_array_equal(update(g * 0, y * 0), x)
