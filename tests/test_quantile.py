"""Quantile functions of a score against scipy, and their convergence."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special as sp
from hypothesis import given
from hypothesis import strategies as st

from enkg_ppl import quantiles as q

EPS = {"float64": 2.3e-16, "float32": 1.2e-7}
# Compilation is nearly all of the time here; unoptimised it takes half as long.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
jitted = {name: quick(getattr(q, name)) for name in ("log_ndtr", "ndtri_exp", "expm1_minus", "log1p_minus")}
gamma_there_and_back = quick(lambda z, a: (q.gamma(z, a), q.gamma_score(q.gamma(z, a), a)))
beta_there_and_back = quick(lambda z, a, b: (q.beta(z, a, b), q.beta_score(q.beta(z, a, b), a, b)))
truncated_normal = quick(q.truncated_normal)


@pytest.mark.parametrize("dtype", EPS)
def test_log_ndtr_in_both_tails(dtype):
    z = np.concatenate([np.linspace(-35, 8, 2000), -np.logspace(-8, 6, 400)]).astype(dtype)
    expected = sp.log_ndtr(z.astype(float))
    # rounding in exp(-z^2 / 2) moves the upper tail by z^2 of itself; log1p of XLA adds up to 2e-14 before
    # jax 0.12
    tolerance = 4 * EPS[dtype] * (30 + np.abs(z) * np.minimum(np.abs(z), 8))
    assert np.all(np.abs(np.asarray(jitted["log_ndtr"](z), float) / expected - 1) < tolerance)


@pytest.mark.parametrize("dtype", EPS)
def test_ndtri_exp_inverts_log_ndtr(dtype):
    z = np.concatenate([np.linspace(-30, 8, 2000), -np.logspace(-8, 4, 400)]).astype(dtype)
    log_p = sp.log_ndtr(z.astype(float)).astype(dtype)
    found = np.asarray(jitted["ndtri_exp"](log_p), float)
    assert np.all(np.abs(found - z) < 8 * EPS[dtype] * (1 + np.abs(z)))


def test_ndtri_exp_at_the_ends():
    found = jitted["ndtri_exp"](jnp.asarray([-jnp.inf, 0.0, -jnp.log(2.0), 0.1]))
    np.testing.assert_allclose(found, [-np.inf, np.inf, 0.0, np.nan], atol=1e-15)


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


@pytest.mark.parametrize("family", ["gamma", "beta"])
def test_newton_converges_for_all_shapes(family):
    """The inverse finds the score again: z up to 30, shapes from 1e-3 to 1e4, and all three far apart."""
    rng = np.random.default_rng(0)
    z = jnp.asarray(rng.uniform(-1, 1, 2_000) * np.where(np.arange(2_000) % 2, 30, 3))
    a, b = jnp.asarray(10.0 ** rng.uniform(-3, 4, (2, 2_000)))
    value, back = {"gamma": lambda: gamma_there_and_back(z, a), "beta": lambda: beta_there_and_back(z, a, b)}[family]()
    # between the tails of a small shape the far probability is one minus the near one: 1e-16 / shape
    smallest = a if family == "gamma" else jnp.minimum(a, b)
    assert np.all(np.abs(back - z) < 1e-11 * (1 + np.abs(z)) + 1e-14 / smallest)
    assert np.all(np.isfinite(value))


@given(st.floats(-1e30, -1e-30))
def test_ndtri_exp_is_the_inverse_everywhere(log_p):
    z = float(jitted["ndtri_exp"](jnp.asarray(log_p)))
    assert abs(float(jitted["log_ndtr"](jnp.asarray(z))) / log_p - 1) < 1e-13


@given(st.floats(-20, 20), st.floats(1e-6, 40))
def test_truncated_normal_stays_inside_increases_and_mirrors(low, width):
    z = np.linspace(-8, 8, 33)
    low, high = np.full_like(z, low), np.full_like(z, low + width)
    value = np.asarray(truncated_normal(z, low, high))
    assert np.all((low <= value) & (value <= high))
    assert np.all(np.diff(value) >= -1e-15 * np.abs(value[1:]))
    np.testing.assert_allclose(value, -np.asarray(truncated_normal(-z, -high, -low)), rtol=1e-12, atol=1e-12)


def test_truncated_normal_without_bounds_is_the_score():
    z = np.linspace(-30, 30, 33)
    infinite = np.full_like(z, np.inf)
    np.testing.assert_allclose(truncated_normal(z, -infinite, infinite), z, rtol=1e-13, atol=1e-15)
