"""The networks of our own for vectors and series: structure, precision, derivatives, symmetry, messages."""

import json

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl.networks import NETWORKS, ResidualMLP, UNet1d
from enkg_ppl.networks._embedding import fourier_features

KEY = jr.key(0)
CASES = {
    "mlp": (ResidualMLP(3, width=8, depth=2, embedding_size=8, key=KEY), (3,)),
    "mlp-image": (ResidualMLP(6, width=8, depth=1, embedding_size=8, key=KEY), (2, 3)),
    "unet": (UNet1d(2, width=6, multipliers=(1, 2), padding="periodic", embedding_size=8, key=KEY), (2, 8)),
}
each = pytest.mark.parametrize(("network", "shape"), CASES.values(), ids=CASES)
NOISE = jnp.asarray(0.3)


def random_parameters(network):
    """Every parameter N(0, 0.1), the zeros included: an untrained network would hide mistakes."""
    leaves, structure = jax.tree.flatten(network)
    keys = jr.split(jr.key(1), len(leaves))
    drawn = [0.3 * jr.normal(k, a.shape, a.dtype) for k, a in zip(keys, leaves, strict=True)]
    return jax.tree.unflatten(structure, drawn)


@each
def test_an_untrained_network_returns_zero(network, shape):
    np.testing.assert_array_equal(network(jr.normal(KEY, shape), NOISE), np.zeros(shape))


@each
def test_config_builds_the_same_tree(network, shape):
    config = json.loads(json.dumps(network.config()))
    again = NETWORKS[type(network).__name__](**config, key=KEY)
    assert jax.tree.structure(again) == jax.tree.structure(network)
    assert [a.shape for a in jax.tree.leaves(again)] == [a.shape for a in jax.tree.leaves(network)]
    assert all(eqx.is_inexact_array(leaf) for leaf in jax.tree.leaves(network)), "parameters only"


@each
def test_every_parameter_and_the_noise_matter(network, shape):
    network = random_parameters(network)
    x = jr.normal(KEY, shape)
    gradient, by_noise = jax.jit(jax.grad(lambda n, noise: jnp.sum(n(x, noise) ** 2), (0, 1)))(network, NOISE)
    for path, leaf in jax.tree_util.tree_flatten_with_path(gradient)[0]:
        assert np.any(np.asarray(leaf) != 0), jax.tree_util.keystr(path)
    assert by_noise != 0


@each
def test_derivatives_of_both_modes_agree_with_differences(network, shape):
    network = random_parameters(network)
    x, v = jr.normal(KEY, (2, *shape))
    one = jax.jit(lambda x: network(x, NOISE))
    _, forward = jax.jvp(one, (x,), (v,))
    _, pull = jax.vjp(one, x)
    step = 1e-5
    difference = (one(x + step * v) - one(x - step * v)) / (2 * step)
    np.testing.assert_allclose(forward, difference, rtol=1e-6, atol=1e-8)
    np.testing.assert_allclose(jnp.sum(pull(v)[0] * v), jnp.sum(forward * v), rtol=1e-9)


@each
def test_bfloat16_stays_bfloat16(network, shape):
    network = random_parameters(network)
    x = jr.normal(KEY, shape)
    small = jax.tree.map(lambda a: a.astype(jnp.bfloat16), network)(x.astype(jnp.bfloat16), NOISE)
    assert small.dtype == jnp.bfloat16
    full = network(x, NOISE)
    # Eight bits; a few layers of rounding.
    np.testing.assert_allclose(small.astype(float), full, atol=0.05 * float(jnp.max(jnp.abs(full))))


def test_periodic_padding_knows_no_ends():
    """Shifting the series by whole cells of the coarsest level shifts the output alike; with zeros it does not."""
    network, shape = CASES["unet"]
    x = jr.normal(KEY, shape)
    for padding, equal in (("periodic", True), ("zeros", False)):
        net = random_parameters(UNet1d(**{**network.config(), "padding": padding}, key=KEY))
        rolled, shifted = net(jnp.roll(x, 2, axis=1), NOISE), jnp.roll(net(x, NOISE), 2, axis=1)
        assert np.allclose(rolled, shifted, rtol=1e-9, atol=1e-12) == equal


def test_features_tell_noise_levels_apart():
    """Over the whole range no two of 200 levels look alike, and no feature moves by more than its frequency allows."""
    noise = jnp.linspace(-2, 1.5, 200)
    features = np.asarray(jax.vmap(lambda n: fourier_features(n, 32, (-2.0, 1.5)))(noise))
    distance = np.linalg.norm(features[:, None] - features[None], axis=-1) + 10 * np.eye(200)
    assert distance.min() > 0.1
    assert np.abs(np.diff(features, axis=0)).max() <= 2 * np.pi * 8 / 199 + 1e-9


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ResidualMLP(0, key=KEY), "ResidualMLP needs dim as a whole number >= 1; got 0"),
        (lambda: ResidualMLP(2, embedding_size=3, key=KEY), "even size >= 2; got embedding_size=3"),
        (lambda: ResidualMLP(2, noise_range=(1, 0), key=KEY), r"low < high; got \(1, 0\)"),
        (lambda: CASES["mlp"][0](jnp.zeros(4), NOISE), r"events of 3 entries and got shape \(4,\).*make it with dim=4"),
        (lambda: UNet1d(1, width=0, key=KEY), "UNet1d needs width as a whole number >= 1; got 0"),
        (lambda: UNet1d(1, multipliers=(), key=KEY), "multipliers >= 1, one a level"),
        (lambda: UNet1d(1, padding="same", key=KEY), r"padding to be one of \('zeros', 'periodic'\); got 'same'"),
        (lambda: CASES["unet"][0](jnp.zeros((2, 7)), NOISE), r"divides by 2; got \(2, 7\): pad the series"),
    ],
)
def test_messages(make, words):
    with pytest.raises(ValueError, match=words):
        make()
