"""A failed simulation is found in whatever it went into, and in nothing else."""

import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enkg_ppl import GaussianPrior, InverseProblem, blackbox
from enkg_ppl.evaluation._black_box import raise_host_failure
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._marks import poisoned, with_failures
from enkg_ppl.likelihood import GaussianLikelihood

X = np.array([-2.0, -1.0, -0.5, 0.5, 1.0, 2.0])
FAILS = X > 0  # of `count` and `size`


def fail_or(value):
    def fn(x):
        if x > 0:
            raise ArithmeticError("no solution")
        return value(x)

    return fn


count = blackbox(fail_or(lambda x: int(3 - x)), (), dtype=int, on_failure="reject", name="count")
size = blackbox(fail_or(lambda x: x), (), on_failure="reject", name="size")
TABLE = jnp.arange(8.0)


def in_a_scan(x):
    """Fails in the second of three steps."""
    return jax.lax.scan(lambda total, step: (total + count(jnp.where(step == 1, x, -1.0)), total), 0, jnp.arange(3))[0]


def as_long_as_it_counts(x):
    """The condition fails, the body does not."""
    return jax.lax.while_loop(lambda i: i < 4 + 0 * count(x), lambda i: i + 1, 0)


def in_the_body(x):
    return jax.lax.fori_loop(0, 3, lambda i, total: total + count(x - 10.0 * (i != 2)), 0)


PROGRAMS = {
    # name: a function of x, and for which x a failure went into its value
    "as it is": (count, FAILS),
    "as a float": (lambda x: count(x) / 2.0, FAILS),
    "compared": (lambda x: jnp.where(size(x) > -1.2, 1.0, 0.0), FAILS),
    "cut to a whole number": (lambda x: size(x).astype(int), FAILS),
    "as an index": (lambda x: TABLE[count(x)], FAILS),
    "compiled apart": (lambda x: jax.jit(lambda x: count(x) > 3)(x), FAILS),
    "for a plate": (lambda x: jax.vmap(count)(jnp.stack([x, -1.0])).sum(), FAILS),
    "one of many": (lambda x: jax.lax.map(count, jnp.stack([-1.0, x])), FAILS),
    "in a scan": (in_a_scan, FAILS),
    "in a condition": (as_long_as_it_counts, FAILS),
    "in the body": (in_the_body, FAILS),
    "unused": (lambda x: (count(x), x)[1], X > 9),
    "selected": (lambda x: jnp.where(x < 1.5, count(x), 0), FAILS & (X < 1.5)),
    "in a branch": (lambda x: jax.lax.cond(x < 1.5, count, lambda x: 0, x), FAILS & (X < 1.5)),
    "deciding a branch": (lambda x: jax.lax.cond(count(x) > 3, jnp.sin, jnp.cos, x), FAILS),
    "spared": (lambda x: jnp.where(x > 0, 0, count(jnp.where(x > 0, -1.0, x))), X > 9),
    "answered for": (lambda x: jnp.where(jnp.isnan(size(x)), 7.0, size(x)) > 0, X > 9),
    "NaN of another origin": (lambda x: jnp.where(jnp.sqrt(x) > 1, count(-1.0), 0), X > 9),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_where_a_failure_went(name):
    function, expected = PROGRAMS[name]
    with raise_host_failure():
        values, failed = jax.block_until_ready(jax.jit(jax.vmap(with_failures(function)))(X))
        np.testing.assert_array_equal(failed, expected)
        np.testing.assert_array_equal(values[~FAILS], [function(x) for x in X[~FAILS]])


def test_floats_that_it_went_into_are_nan():
    def both(x):
        n = count(x)
        return {"n": n, "half": n / 2, "x": x}

    with raise_host_failure():
        found = jax.device_get(jax.vmap(poisoned(both))(X))
    np.testing.assert_array_equal(np.isnan(found["half"]), FAILS)
    np.testing.assert_array_equal(found["x"], X)
    np.testing.assert_array_equal(found["n"], np.where(FAILS, 0, (3 - X).astype(int)))


def test_outside_of_a_run_a_whole_number_cannot_tell():
    words = (
        r"count raised ArithmeticError: no solution, for x=1\., and outside of a run of EnKG nothing tells its result"
    )
    with pytest.warns(UserWarning, match=words):
        assert count(1.0) == 0


def test_programs_that_lose_nothing_stay_as_they_are():
    def plain(x):
        return jnp.sin(size(x)) + jnp.cos(x)

    program = str(jax.make_jaxpr(lambda x: poisoned(plain)(x))(1.0))
    assert program.count("select_n") == str(jax.make_jaxpr(plain)(1.0)).count("select_n")


def slow(x):
    if x > 0:
        time.sleep(0.4)
    return 1


def raises_for_any(x):
    if np.any(x > 0):
        raise ArithmeticError("no solution")
    return np.ones(len(x))


FAILING = {
    "raises": (fail_or(lambda x: 1), {}),
    "takes too long": (slow, {"timeout": 0.1}),
    "is not a number": (lambda x: np.where(x > 0, np.nan, 1.0), {}),
    "is infinite": (lambda x: np.where(x > 0, np.inf, 1.0), {}),
    "is too large": (lambda x: np.where(x > 0, 1e30, 1.0), {}),
    "vectorised": (lambda x: np.where(x > 0, np.nan, 1.0), {"vectorized": True}),
    "vectorised, raises": (raises_for_any, {"vectorized": True}),
    "side by side": (fail_or(lambda x: 1), {"executor": ThreadPoolExecutor(2)}),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, np.int32) for name in FAILING]
    + [(name, dtype) for name in ("raises", "is not a number", "vectorised, raises") for dtype in (np.uint8, bool)]
    + [("raises", np.complex64)],
)
def test_failures_have_no_chance_whatever_the_dtype(name, dtype):
    fn, options = FAILING[name]
    simulate = blackbox(fn, (), dtype=dtype, on_failure="reject", **options)
    problem = InverseProblem(
        GaussianPrior.standard(1),
        lambda z: jnp.real(simulate(z[0])).astype(float)[None] - 1.0,
        GaussianLikelihood(jnp.zeros(1), 0.5),
    )
    evaluate = Evaluator(problem, batch_size=8)
    log_likelihood, response = evaluate.log_likelihood_and_response(X[:, None])
    expected = np.where(FAILS, -np.inf, -0.5 * np.log(2 * np.pi * 0.25))
    np.testing.assert_allclose(log_likelihood, expected, rtol=1e-12)
    np.testing.assert_array_equal(np.isnan(response.prediction[:, 0]), FAILS)
    assert simulate.num_rejected == evaluate.num_failed == FAILS.sum()
    assert simulate.num_calls == len(X)
