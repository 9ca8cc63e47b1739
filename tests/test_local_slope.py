"""Slopes of fields, which learn where a datum comes from."""

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl import NetworkPrior
from enkg_ppl.linearise._local_slope import PENALTIES, expected_variances, local_ridge, smoothed
from enkg_ppl.linearise._slope import judged, learn, no_pairs
from enkg_ppl.networks import SongUNet
from enkg_ppl.priors import Grid
from enkg_ppl.priors.preconditioning import EDM


def test_each_penalty_is_the_ridge_in_closed_form():
    """Eight conjugate-gradient steps solve eight unknowns exactly; every datum has variances of its own."""
    rng = np.random.default_rng(0)
    X, Y, variances = rng.normal(size=(30, 8)), rng.normal(size=(30, 3)), rng.uniform(0.2, 1.0, (8, 3))
    got = local_ridge(*(jnp.asarray(a) for a in (X, Y, variances)), 30, jnp.zeros((3, 8, 3)))
    for penalty, slope in zip(PENALTIES, np.asarray(got), strict=True):
        for k in range(3):
            unit = np.mean(X**2 @ variances[:, k])
            exact = np.linalg.solve(X.T @ X + penalty * unit * np.diag(1 / variances[:, k]), X.T @ Y[:, k])
            np.testing.assert_allclose(slope[:, k], exact, rtol=1e-6)


@pytest.mark.parametrize("periodic", [True, False])
def test_smoothing_is_a_mean_over_neighbours(periodic):
    grid = Grid(2, (12, 16), periodic)
    flat = smoothed(grid, jnp.ones((grid.channels * 12 * 16, 1)))
    np.testing.assert_allclose(flat, 1.0, rtol=1e-6)
    corner = jnp.zeros((2, 12, 16, 1)).at[0, 0, 0].set(1.0).reshape(-1, 1)
    spread = np.asarray(smoothed(grid, corner)).reshape(2, 12, 16)
    assert np.all(spread[1] == 0)  # channels are apart
    assert spread[0, 0, 1] == pytest.approx(spread[0, 0, 0] * np.exp(-0.125), rel=0.5)
    assert (spread[0, 0, 15] > 1e-3) == periodic
    assert (spread[0, 11, 0] > 1e-3) == periodic


def test_nothing_is_expected_of_a_slope_that_is_not_known():
    np.testing.assert_allclose(expected_variances(Grid(1, (8,), False), jnp.zeros((8, 2))), 3e-3)


def convolution(size=64):
    """Each datum a mean over five neighbours."""
    i = np.arange(size)
    distance = np.minimum(abs(i[:, None] - i[::2]), size - abs(i[:, None] - i[::2]))
    return jnp.asarray(np.exp(-0.5 * distance**2) * (distance < 4))


def residual(grid, seed):
    """Of new pairs, over their variance, after four levels of 16 pairs of rough fields: fewer than unknowns."""
    A, pairs = convolution(), no_pairs(16, 64, 32, jnp.float64, grid)
    for level in range(5):
        r = jr.normal(jr.fold_in(jr.key(seed), level), (16, 64))
        r = r - r.mean(axis=0, keepdims=True)
        q = r @ A
        pairs = judged(pairs, r, q, jnp.ones(32), 16)
        left = float(jnp.sum((q - r @ pairs.slope) ** 2) / jnp.sum(q**2))
        pairs = learn(pairs, r, q, jnp.ones(16), 0.8, grid=grid)
    return left


def test_locality_helps_where_pairs_are_few():
    """Sixty pairs, 64 unknowns, a simulator that looks at five of them: a third of the error that a ridge leaves."""
    with_grid = np.mean([residual(Grid(1, (64,), True), seed) for seed in range(5)])
    without = np.mean([residual(None, seed) for seed in range(5)])
    assert with_grid < 0.5 * without


def test_a_slope_that_predicts_nothing_is_not_used():
    pairs = no_pairs(16, 8, 2, jnp.float64)
    r = jr.normal(jr.key(0), (16, 8))
    r = r - r.mean(axis=0, keepdims=True)
    A = jr.normal(jr.key(1), (8, 2))
    pairs = learn(pairs, r, r @ A, jnp.ones(16), 0.8)
    assert jnp.any(judged(pairs, r, r @ A, jnp.ones(2), 16).slope != 0)
    assert jnp.all(judged(pairs, r, -r @ A, jnp.ones(2), 16).slope == 0)  # worse than none


def network(shape, **options):
    if len(shape) == 3 and "padding" in options:
        net = SongUNet(shape, key=jr.key(0), width=4, multipliers=(1,), num_blocks=1, **options)
    else:
        net = lambda x, noise: x  # noqa: E731
    return NetworkPrior(net, EDM(), shape, location=0.0, scale=1.0)


@pytest.mark.parametrize(
    ("shape", "options", "grid"),
    [
        ((5,), {}, None),
        ((300,), {}, None),  # a vector of unknowns, as far as anybody knows
        ((2, 3), {}, None),
        ((2, 50), {}, Grid(2, (50,), False)),
        ((8, 8), {}, Grid(1, (8, 8), False)),
        ((1, 8, 8), {"padding": "periodic"}, Grid(1, (8, 8), True)),
        ((3, 16, 8), {"padding": "zeros"}, Grid(3, (16, 8), False)),
    ],
)
def test_which_events_are_fields(shape, options, grid):
    assert network(shape, **options).grid == grid


def test_outputs_of_any_size_in_32_bits():
    """Slopes of outputs of 1e-20 and 1e20 are found in 32 bits."""
    grid = Grid(1, (64,), True)
    A = convolution().astype(jnp.float32)
    r = jr.normal(jr.key(0), (256, 64), jnp.float32)
    for unit in (1e-20, 1e20):
        pairs = learn(no_pairs(256, 64, 32, jnp.float32, grid), r, unit * (r @ A), jnp.ones(256), 0.8, grid=grid)
        assert jax.numpy.isfinite(pairs.candidates).all()
        np.testing.assert_allclose(pairs.candidates[1] / unit, A, atol=0.2)


def test_slopes_with_and_without_the_grid_forget_each_in_their_own_time():
    """Two levels, the older bent otherwise: each candidate is the one of a run in which all forget as it does."""
    rng, grid = np.random.default_rng(5), Grid(1, (8,), True)
    levels = [(rng.standard_normal((16, 8)), rng.standard_normal((8, 3))) for _ in range(2)]

    def learned(forget, forget_local):
        pairs = no_pairs(16, 8, 3, jnp.float64, grid)
        for r, A in levels:
            pairs = learn(pairs, jnp.asarray(r), jnp.asarray(r @ A), jnp.ones(16), forget, jnp.inf, grid, forget_local)
        return pairs.candidates

    both = learned(0.8, 0.1)
    np.testing.assert_allclose(both[0], learned(0.8, None)[0], rtol=1e-10)
    np.testing.assert_allclose(both[1:], learned(0.1, None)[1:], rtol=1e-10)
    assert np.max(np.abs(both - learned(0.8, None))[1:]) > 0.01
    assert np.max(np.abs(both - learned(0.1, None))[0]) > 0.01
    newest = learned(0.0, None)[0]  # only the last level counts
    np.testing.assert_allclose(newest, levels[1][1], rtol=1e-5, atol=1e-5)
