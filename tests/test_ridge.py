"""Ridge regression and its three rules against their definitions, gone through row by row; and one typical noise."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from enkg_ppl.linearise._noise import typical_noise
from enkg_ppl.linearise._penalty import (
    LARGEST_PENALTY,
    MEAN_PENALTIES,
    NUM_PENALTIES,
    Fixed,
    GeneralisedCrossValidation,
    LeaveOneOut,
)
from enkg_ppl.linearise._ridge import affine_ridge, ridge

SHAPES = [(30, 7), (9, 14), (12, 12)]


def data(rows, dim, seed=0):
    """Inputs of unlike sizes; outputs that are linear, linear with noise, and noise, a thousandfold apart."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(rows, dim)) * np.geomspace(0.1, 3, dim)
    Y = X @ rng.normal(size=(dim, 3)) * [1, 1, 0] + rng.normal(size=(rows, 3)) * [0, 1, 1]
    return X, Y * [1e-3, 1.0, 1e3]


def dense(X, Y, penalty):
    return np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T @ Y)


def left_out(X, Y, penalty, affine):
    """Squared errors of every row from a fit to the others, with an intercept of its own where `affine`."""
    missed = []
    for i in range(len(X)):
        x, y = np.delete(X, i, axis=0), np.delete(Y, i, axis=0)
        centre, middle = (x.mean(axis=0), y.mean(axis=0)) if affine else (0.0, 0.0)
        missed.append(Y[i] - middle - (X[i] - centre) @ dense(x - centre, y - middle, penalty))
    return np.sum(np.square(missed), axis=0)


def unfitted(X, penalty):
    return np.eye(len(X)) - X @ np.linalg.solve(X.T @ X + penalty * np.eye(X.shape[1]), X.T)


def cross_validated(X, Y, penalty):
    """Golub, Heath & Wahba (1979), eq. 1.4."""
    rest = unfitted(X, penalty)
    return np.sum((rest @ Y) ** 2, axis=0) / len(X) / (np.trace(rest) / len(X)) ** 2


def best(penalties, errors, Y):
    return penalties[np.argmin([np.sum(errors(penalty) / np.sum(Y**2, axis=0)) for penalty in penalties])]


def in_both(X, Y, rule):
    """In NumPy, and in JAX while it is traced."""
    found = ridge(X, Y, rule, np)
    assert isinstance(found, np.ndarray)
    return found, np.asarray(jax.jit(lambda X, Y: ridge(X, Y, rule))(X, Y))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [False, True])
def test_leave_one_out(shape, affine):
    X, Y = data(*shape)
    if affine:
        X, Y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    largest = np.linalg.norm(X, 2) ** 2
    penalties = largest * np.geomspace(100 * np.finfo(float).eps, LARGEST_PENALTY, NUM_PENALTIES)
    if shape[0] <= shape[1]:
        # Where the smallest penalties fit every row exactly, 0 / 0 is left of the dense solution: they never win here.
        penalties = penalties[penalties > 1e-8 * largest]
    penalty = best(penalties, lambda penalty: left_out(X, Y, penalty, affine), Y)
    for found in in_both(X, Y, LeaveOneOut(1 / len(X) if affine else 0.0)):
        np.testing.assert_allclose(found, dense(X, Y, penalty), rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_generalised_cross_validation(shape):
    X, Y = data(*shape)
    x, y = X - X.mean(axis=0), Y - Y.mean(axis=0)
    penalties = np.sum(x**2) / min(shape) * np.geomspace(*MEAN_PENALTIES)
    penalty = best(penalties, lambda penalty: cross_validated(x, y, penalty), y)
    for found in in_both(x, y, GeneralisedCrossValidation()):
        np.testing.assert_allclose(found, dense(x, y, penalty), rtol=1e-7, atol=1e-9)
    slope, intercept, error = affine_ridge(X, Y)
    np.testing.assert_allclose(slope.T, dense(x, y, penalty), rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(intercept, Y.mean(axis=0) - slope @ X.mean(axis=0))
    # The squares that are left are a difference of sums of squares.
    rounding = 100 * np.finfo(float).eps * np.sum(y**2, axis=0) * len(x) / np.trace(unfitted(x, penalty)) ** 2
    expected = cross_validated(x, y, penalty)
    assert np.all(np.abs(error - expected) < 1e-7 * expected + rounding)


@pytest.mark.parametrize("shape", SHAPES)
def test_fixed(shape):
    X, Y = data(*shape)
    for found in in_both(X, Y, Fixed(0.3)):
        np.testing.assert_allclose(found, dense(X, Y, 0.3 * np.mean(np.sum(X**2, axis=1))), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [LeaveOneOut(), GeneralisedCrossValidation(), Fixed(0.3)])
@pytest.mark.parametrize("size", [1e-200, 1e100, 1e200])
def test_outputs_of_any_size(rule, size):
    X, Y = data(30, 7)
    for small, large in zip(in_both(X, Y, rule), in_both(X, size * Y, rule), strict=True):
        np.testing.assert_allclose(large / size, small, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("rule", [LeaveOneOut(), GeneralisedCrossValidation(), Fixed(0.3)])
def test_inputs_that_do_not_vary_tell_nothing(rule):
    Y = data(9, 4)[1]
    for found in in_both(np.zeros((9, 4)), Y, rule):
        np.testing.assert_array_equal(found, np.zeros((4, 3)))
    slope, intercept, error = affine_ridge(np.ones((9, 4)), Y)
    np.testing.assert_array_equal(slope, np.zeros((3, 4)))
    np.testing.assert_allclose(intercept, Y.mean(axis=0))
    np.testing.assert_allclose(error, Y.var(axis=0))


@pytest.mark.parametrize("xp", [np, jnp])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_typical_noise(xp, dtype):
    """The median of what is a number above zero; the smallest number there is counts as zero."""
    zero = np.finfo(dtype).tiny
    noise = np.array([[1, zero, 0, np.inf], [2, 3, zero, np.nan], [4, 5, 0, zero], [9, np.nan, 0, 0]], dtype)
    np.testing.assert_array_equal(typical_noise(xp.asarray(noise), xp=xp), [3, 4, 1, 1])
    usable = xp.asarray([True, True, False, False])
    np.testing.assert_array_equal(typical_noise(xp.asarray(noise), usable, xp), [1.5, 3, 1, 1])
