"""Host code in JAX code: calls, counts, and what a user reads when it fails."""

import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest
from numpyro.infer import Predictive

from enkg_ppl import BlackBoxError, EnKG, GaussianPrior, InverseProblem, blackbox, guide
from enkg_ppl.evaluation._black_box import raise_host_failure, watch_black_boxes
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import GaussianLikelihood

A, B = np.arange(6.0).reshape(3, 2), np.array([1.0, 2.0, 3.0])
EXPECTED = np.stack([A.sum(1) * B, B**2], axis=1)


def one(a, b):
    return np.array([a.sum() * b, b**2])


def together(a, b):
    return np.stack([a.sum(1) * b, b**2], axis=1)


@pytest.mark.parametrize("vectorized", [False, True])
def test_one_and_many(vectorized):
    calls = []

    def fn(a, b):
        calls.append(np.shape(b))
        return together(a, b) if vectorized else one(a, b)

    simulate = blackbox(fn, (2,), vectorized=vectorized)
    np.testing.assert_allclose(simulate(A[1], B[1]), EXPECTED[1])
    np.testing.assert_allclose(jax.jit(jax.vmap(simulate))(A, B), EXPECTED)
    assert simulate.num_calls == 4
    assert calls == ([(1,), (3,)] if vectorized else [()] * 4)


def test_unbatched_and_nested_arguments():
    """An argument that all particles share arrives once a particle; nested vmaps are one flat batch."""
    simulate = blackbox(together, (2,), vectorized=True)
    shared = jax.vmap(simulate, in_axes=(0, None))(A, 2.0)
    np.testing.assert_allclose(shared, together(A, np.full(3, 2.0)))
    nested = jax.vmap(jax.vmap(simulate, in_axes=(None, 0)), in_axes=(0, None))(A, B)
    np.testing.assert_allclose(nested, [[one(a, b) for b in B] for a in A])
    assert simulate.num_calls == 3 + 9


def test_executor_and_subprocess():
    def fn(a, b):
        code = f"print({float(a.sum() * b)!r}, {float(b**2)!r})"
        out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        return np.array(out.split(), float)

    with ThreadPoolExecutor(2) as pool:
        simulate = blackbox(fn, (2,), executor=pool)
        np.testing.assert_allclose(jax.vmap(simulate)(A, B), EXPECTED)
    assert simulate.num_calls == 3


def test_no_gradient():
    simulate = blackbox(one, (2,), name="climate")
    with pytest.raises(TypeError, match=r"climate is a black box and has no gradient: use .*EnKG"):
        jax.grad(lambda b: simulate(A[0], b).sum())(1.0)


def run(simulate):
    problem = InverseProblem(GaussianPrior.standard(2), simulate, GaussianLikelihood(jnp.zeros(2), 1.0))
    return guide(jax.random.key(0), problem, num_particles=8, progress=lambda *_: None)


def fails(theta):
    if theta[0] > 0.5:
        raise ZeroDivisionError("in the user's own code")
    return theta


def test_the_users_traceback_and_parameters():
    simulate = blackbox(fails, (2,))
    with pytest.raises(BlackBoxError) as caught:
        run(simulate)
    message = str(caught.value)
    assert message.startswith("fails raised ZeroDivisionError: in the user's own code, for theta=[")
    assert "on_failure='reject'" in message
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    lines = traceback.format_exception(caught.value.__cause__)
    assert any("raise ZeroDivisionError" in line and "in fails" in line for line in lines)
    assert simulate.num_calls <= 16, "it was called again after it had failed"


def test_a_failing_ensemble_names_its_first_member():
    def fn(theta):
        raise OSError("disk full")

    with pytest.raises(BlackBoxError, match=r"fn raised OSError: disk full, for an ensemble of 8 whose first"):
        run(blackbox(fn, (2,), vectorized=True, on_failure="raise"))


@pytest.mark.parametrize(
    ("fn", "words"),
    [
        (lambda theta: np.zeros(3), r"returned shape \(3,\) where \(2,\) is due: correct the shape given to blackbox"),
        (lambda theta: np.array(["a", "b"]), r"returned dtype <U1 where float64 is due: return numbers"),
        (lambda theta: theta + 1j, r"returned dtype complex128 .*stack real and imaginary"),
        (lambda theta: theta * np.nan, r"returned NaN for theta=\[.*on_failure='reject'"),
        (lambda theta: None, r"returned dtype object where float64 is due"),
    ],
    ids=["shape", "strings", "complex", "nan", "none"],
)
def test_bad_results(fn, words):
    with pytest.raises(BlackBoxError, match=words):
        run(blackbox(fn, (2,), name="simulate"))
    with pytest.raises(Exception, match=words):
        blackbox(fn, (2,), name="simulate")(jnp.ones(2))


def test_missing_particle_axis():
    with pytest.raises(BlackBoxError, match=r"returned shape \(2,\) where \(8, 2\) is due, one leading axis"):
        run(blackbox(lambda theta: np.zeros(2), (2,), vectorized=True))


def test_rejected_parameters_are_nan():
    simulate = blackbox(fails, (2,), on_failure="reject")
    theta = np.array([[0.0, 1.0], [1.0, 1.0]])
    np.testing.assert_array_equal(jax.vmap(simulate)(theta), [[0.0, 1.0], [np.nan, np.nan]])
    assert (simulate.num_calls, simulate.num_rejected) == (2, 1)
    assert np.all(np.isfinite(run(simulate).draws))


def test_timeout():
    simulate = blackbox(lambda theta: time.sleep(1.0), (2,), timeout=0.05, name="slow")
    with pytest.raises(BlackBoxError, match=r"slow took longer than 0.05 s, for theta="):
        run(simulate)


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: blackbox(3, ()), TypeError, "blackbox needs a function; got 3"),
        (lambda: blackbox(one, "ab"), ValueError, "shape as a tuple of whole numbers"),
        (lambda: blackbox(one, (2,), on_failure="skip"), ValueError, "'tolerate', 'raise' or 'reject'; got 'skip'"),
        (lambda: blackbox(one, (2,), timeout=0), ValueError, "timeout > 0 seconds or None; got 0"),
        (lambda: blackbox(one, (2,), executor=3), TypeError, "executor with a submit method; got 3"),
    ],
)
def test_bad_arguments(make, error, words):
    with pytest.raises(error, match=words):
        make()


def test_large_ensembles_do_not_deadlock():
    """Large arrays in a callback have hung JAX on few cores before."""
    simulate = blackbox(lambda x: np.cumsum(x, axis=1), (4096,), vectorized=True)
    x = np.ones((512, 4096))
    np.testing.assert_array_equal(jax.jit(jax.vmap(simulate))(x)[:, -1], 4096)


# -- is it a function of its arguments? -------------------------------------------------------------------------------

RNG = np.random.default_rng(0)
MATRIX = np.random.default_rng(1).standard_normal((300, 2))


def noisy(theta):
    return theta + RNG.normal()


def noisy_in_order(theta):
    """The same numbers in every call, but others for every particle of it."""
    return theta + np.random.default_rng(0).normal(size=theta.shape)


def common_noise(theta):
    return theta + np.random.default_rng(0).normal(size=2)


def rounds_otherwise_alone(theta):
    return np.tile(theta, 150) @ MATRIX * (1 + 1e-13 * len(theta))


@pytest.mark.parametrize(
    ("fn", "vectorized", "words", "checks"),
    [
        (
            noisy,
            False,
            r"^noisy is random: with the same parameters \(theta=\[.*\]\) it gave another result, .*latent site",
            1,
        ),
        (noisy, True, r"^noisy is random: .*: use common random numbers .*, or return an estimate", 2),
        (noisy_in_order, True, r"^noisy_in_order gives other results .* alone than among other particles: random", 2),
        (common_noise, False, None, 1),
        (common_noise, True, None, 1),
        (rounds_otherwise_alone, True, None, 1),
    ],
)
def test_random_simulators_are_told(fn, vectorized, words, checks):
    simulate = blackbox(fn, (2,), vectorized=vectorized)
    problem = InverseProblem(GaussianPrior.standard(2), simulate, GaussianLikelihood(jnp.zeros(2), 1.0))
    evaluate = Evaluator(problem, 8)
    with pytest.warns(UserWarning, match=words) if words else nullcontext(), watch_black_boxes(check=True) as seen:
        for _ in range(3):
            evaluate.log_likelihood(np.random.default_rng(2).standard_normal((8, 2)))
    assert seen.num_checks == checks
    assert simulate.num_calls == 24 + checks
    quiet = blackbox(fn, (2,), vectorized=vectorized, check_deterministic=False)
    with watch_black_boxes(check=True):
        Evaluator(InverseProblem(problem.prior, quiet, problem.likelihood), 8).log_likelihood(np.ones((8, 2)))
    assert quiet.num_calls == 8


# -- plates -----------------------------------------------------------------------------------------------------------


def scalar(a, b):
    return float(a) * float(b)


@pytest.mark.parametrize("vectorized", [False, True])
def test_plates_element_by_element(vectorized):
    simulate = blackbox(lambda a, b: np.multiply(a, b), (), vectorized=vectorized, plates="map")
    a, b = np.arange(6.0).reshape(3, 2), 2.0
    np.testing.assert_array_equal(simulate(a, b), 2 * a)
    assert simulate.num_calls == 6
    np.testing.assert_array_equal(jax.jit(jax.vmap(simulate, (0, None)))(a, b), 2 * a)
    assert simulate.num_calls == 12
    assert simulate(3.0, b) == 6.0
    pairs = blackbox(lambda a: np.array([a, -a]), (2,), plates="map")
    np.testing.assert_array_equal(pairs(a), np.stack([a, -a], axis=-1))


@pytest.mark.parametrize(
    ("fn", "what"),
    [
        (scalar, "raised TypeError: only .*, for a=.*"),
        (np.multiply, r"returned shape \(2,\) where \(\) is due"),
        (lambda a, b: 1.0 if a > 0 else 0.0, "raised ValueError: The truth value of an array .*"),
    ],
    ids=["float", "array", "if"],
)
def test_a_plate_around_a_number(fn, what):
    simulate = blackbox(fn, (), name="simulate", on_failure="raise")
    name = "x1" if fn is np.multiply else "a"
    words = (
        rf"^simulate {what}, as {name} has shape \(2,\): where that is a plate, pass plates='map' .*, or shape=\(2,\)"
    )
    with pytest.raises(BlackBoxError, match=words), raise_host_failure():
        jax.block_until_ready(jax.vmap(simulate)(A, B))


def line_model(simulate):
    def model(times, y=None):
        a = numpyro.sample("a", dist.Normal(0.0, 1.0))
        numpyro.sample("y", dist.Normal(simulate(a, times), 0.1).to_event(1), obs=y)

    return model


@pytest.mark.parametrize("vectorized", [False, True])
def test_a_shape_that_follows_an_argument_serves_other_points_too(vectorized):
    """Inferred from five data and predicted at seven, by one model: y = a t."""

    def line(a, times):
        return a[..., None] * times if vectorized else a * times

    model = line_model(blackbox(line, lambda a, times: times.shape, vectorized=vectorized))
    times = jnp.arange(5.0)
    enkg = EnKG(model, num_particles=64, progress_bar=False)
    enkg.run(jr.key(0), times, y=2 * times)
    drawn = Predictive(model, enkg.get_samples())(jr.key(1), jnp.arange(7.0))["y"]
    assert drawn.shape == (64, 7)
    # sd of a: 0.1 / sqrt(30), of the mean of 64 predictions at t = 6 below 0.14 / 8
    np.testing.assert_allclose(drawn.mean(axis=0), 2 * jnp.arange(7.0), atol=5 * 0.14 / 8)


def test_a_result_at_other_points_says_how_its_shape_may_follow():
    simulate = blackbox(lambda a, times: a * times, (5,), name="line")
    with pytest.raises(
        Exception, match=r"returned shape \(7,\) where \(5,\) is due, as times has: .*one number for each "
    ):
        simulate(jnp.array(1.0), jnp.arange(7.0)).block_until_ready()
    with pytest.raises(ValueError, match="or a function of the arguments that returns one; got 'five'"):
        blackbox(lambda a: a, lambda a: "five")(jnp.array(1.0))
