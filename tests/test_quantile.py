"""Quantile functions of a score against scipy, and their convergence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
from hypothesis import given
from hypothesis import strategies as st

from enkg_ppl import _quantile as q

EPS = {"float64": 2.3e-16, "float32": 1.2e-7}
jitted = {name: jax.jit(getattr(q, name)) for name in ("log_ndtr", "ndtri_exp", "expm1_minus", "log1p_minus")}
gamma_there_and_back = jax.jit(lambda z, a: (q.gamma(z, a), q.gamma_score(q.gamma(z, a), a)))
beta_there_and_back = jax.jit(lambda z, a, b: (q.beta(z, a, b), q.beta_score(q.beta(z, a, b), a, b)))
truncated_normal = jax.jit(q.truncated_normal)


def scores(reach):
    return st.floats(-reach, reach)


shapes = st.floats(-3, 4).map(lambda exponent: 10.0**exponent)


@pytest.mark.parametrize("dtype", EPS)
def test_log_ndtr_in_both_tails(dtype):
    z = np.concatenate([np.linspace(-35, 8, 2000), -np.logspace(-8, 6, 400)]).astype(dtype)
    expected = sp.log_ndtr(z.astype(float))
    # relative rounding of z moves log Phi(z) by |z phi(z) / Phi(z)|, and that of the upper tail by z^2 of itself
    tolerance = 4 * EPS[dtype] * (2 + np.abs(z) * np.minimum(np.abs(z), 8))
    assert np.all(np.abs(np.asarray(jitted["log_ndtr"](z), float) / expected - 1) < tolerance)


@pytest.mark.parametrize("dtype", EPS)
def test_ndtri_exp_inverts_log_ndtr(dtype):
    z = np.concatenate([np.linspace(-30, 8, 2000), -np.logspace(-8, 4, 400)]).astype(dtype)
    log_p = sp.log_ndtr(z.astype(float)).astype(dtype)
    found = np.asarray(jitted["ndtri_exp"](log_p), float)
    assert np.all(np.abs(found - z) < 8 * EPS[dtype] * (1 + np.abs(z)))


def test_ndtri_exp_at_the_ends():
    found = q.ndtri_exp(jnp.asarray([-jnp.inf, 0.0, -jnp.log(2.0)]))
    np.testing.assert_allclose(found, [-np.inf, np.inf, 0.0], atol=1e-15)
    assert np.isnan(q.ndtri_exp(jnp.asarray(0.1)))


@pytest.mark.parametrize("name", ["expm1_minus", "log1p_minus"])
def test_differences_do_not_cancel(name):
    magnitudes = np.logspace(-3, -0.35, 300)
    x = np.concatenate([-magnitudes, magnitudes, [1.0, 3.0, 20.0]])
    wide = x.astype(np.longdouble)
    expected = np.expm1(wide) - wide if name == "expm1_minus" else np.log1p(wide) - wide
    np.testing.assert_allclose(jitted[name](x), expected.astype(float), rtol=4e-15)
    third = {"expm1_minus": 1 / 3, "log1p_minus": -2 / 3}[name]
    tiny = jnp.asarray([1e-7, -1e-9])
    sign = 1.0 if name == "expm1_minus" else -1.0
    np.testing.assert_allclose(jitted[name](tiny), sign * 0.5 * tiny**2 * (1 + third * tiny), rtol=1e-13)


@given(scores(30), shapes)
def test_gamma_round_trip(z, a):
    log_x, back = gamma_there_and_back(jnp.asarray(z), jnp.asarray(a))
    # between the upper tail and x = 1, Q = 1 - P cancels for a small shape: 1e-16 / a
    assert abs(float(back) - z) < 1e-12 * (1 + abs(z)) + 1e-15 / a
    assert np.isfinite(log_x)


@given(scores(30), shapes, shapes)
def test_beta_round_trip(z, a, b):
    logit_x, back = beta_there_and_back(jnp.asarray(z), jnp.asarray(a), jnp.asarray(b))
    assert abs(float(back) - z) < 1e-11 * (1 + abs(z)) + 1e-14 / min(a, b)
    assert np.isfinite(logit_x)


@given(scores(8), st.floats(-20, 20), st.floats(1e-6, 40))
def test_truncated_normal_stays_inside_and_mirrors(z, low, width):
    low, high = jnp.asarray(low), jnp.asarray(low + width)
    value = truncated_normal(jnp.asarray(z), low, high)
    assert low <= value <= high
    mirrored = truncated_normal(-jnp.asarray(z), -high, -low)
    np.testing.assert_allclose(value, -mirrored, rtol=1e-12, atol=1e-12)


def test_truncated_normal_without_bounds_is_the_score():
    z = jnp.linspace(-30, 30, 101)
    infinite = jnp.full_like(z, jnp.inf)
    np.testing.assert_allclose(truncated_normal(z, -infinite, infinite), z, rtol=1e-13, atol=1e-15)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float64", 1e-11), ("float32", 1e-3)])
@pytest.mark.parametrize("family", ["gamma", "beta", "student_t"])
def test_more_newton_steps_change_nothing(family, dtype, tolerance, monkeypatch):
    rng = np.random.default_rng(0)
    reach = 30 if dtype == "float64" else 8
    z = rng.uniform(-1, 1, 500) * np.where(np.arange(500) % 2, reach, 3)
    a, b = 10.0 ** rng.uniform(-2, 3, (2, 500))
    z, a, b = (jnp.asarray(v, dtype) for v in (z, a, b))
    functions = {
        "gamma": lambda: q.gamma(z, a),
        "beta": lambda: q.beta(z, a, b),
        "student_t": lambda: jnp.log(jnp.abs(q.quantile(q.student_t(a), z))),
    }
    found = jax.jit(functions[family])()
    for name in ("GAMMA_STEPS", "BETA_STEPS", "STUDENT_STEPS"):
        monkeypatch.setattr(q, name, getattr(q, name) + 20)
    more = jax.jit(partial(functions[family]))()
    known = np.isfinite(more)
    assert known.mean() > 0.8
    np.testing.assert_allclose(found[known], more[known], rtol=tolerance, atol=tolerance)
