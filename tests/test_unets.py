"""The U-Nets that users train: layers against independent ones, symmetries, settings, precision."""

import json
import re

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest

from enkg_ppl.networks import NETWORKS, ADMUNet, ConvDDPM, SongUNet
from enkg_ppl.networks._blocks import Attention
from enkg_ppl.networks._layers import Conv2d, GroupNorm, downsample, glorot, upsample

SETTINGS = {
    "SongUNet": {
        "shape": [2, 8, 16],
        "width": 8,
        "multipliers": [1, 2],
        "num_blocks": 1,
        "attention_resolutions": [8],
        "padding": "periodic",
        "noise_features": "fourier",
        "noise_multiplier": 2,
        "embedding_multiplier": 3,
        "encoder": "residual",
        "decoder": "skip",
        "resample_filter": [1, 3, 3, 1],
        "waves": [],
    },
    "ADMUNet": {
        "shape": [1, 8, 8],
        "channels": [8, 16],
        "num_blocks": 1,
        "attention_resolutions": [4],
        "decoder_attention_resolutions": [8, 4],
        "head_channels": None,
        "num_heads": 2,
        "out_channels": 2,
        "feature_size": 12,
        "embedding_size": 20,
        "endpoint": True,
        "sine_first": True,
        "scale_shift": False,
        "resample": "conv",
        "pad_ahead": True,
        "groups": 4,
        "min_group_channels": 2,
        "eps": 1e-6,
        "middle_attention": False,
        "middle_norm": False,
        "middle_scale": 0.5,
        "affine_input": [2.0, -1.0],
        "padding": "periodic",
    },
    "ConvDDPM": {"shape": [1, 6, 5], "widths": [3, 4], "kernel": 5, "num_frequencies": 4, "hidden": 7},
}


def compiled(function, *args):
    """Compiling takes longer than running here, hence without optimisation."""
    arrays, static = eqx.partition(args, eqx.is_array)

    def call(arrays):
        return function(*eqx.combine(arrays, static))

    return jax.jit(call, compiler_options={"xla_backend_optimization_level": 0})(arrays)


def built(name, **changes):
    return NETWORKS[name](**{**SETTINGS[name], **changes}, key=jr.key(0))


def skeleton(name, **changes):
    """The network's tree without its numbers, for which nothing is computed."""
    return eqx.filter_eval_shape(built, name, **changes)


def scrambled(tree):
    """With parameters that are nowhere zero, so that no part of the network is silent."""
    random = np.random.default_rng(1)

    def fill(path, leaf):
        if not hasattr(leaf, "dtype"):
            return leaf
        is_scale = "norm" in jax.tree_util.keystr(path) and path[-1].name == "weight"
        return jnp.asarray(is_scale + random.normal(size=leaf.shape) / (1 + np.prod(leaf.shape[:-1]) ** 0.5))

    return jax.tree_util.tree_map_with_path(fill, tree)


# Layers.


@pytest.mark.parametrize("padding", ["zeros", "periodic"])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolution_is_equinoxs(padding, stride):
    ours = Conv2d(2, 3, 3, key=jr.key(0), stride=stride, padding=padding)
    mode = "CIRCULAR" if padding == "periodic" else "ZEROS"
    theirs = eqx.nn.Conv2d(2, 3, 3, stride=stride, padding=1, padding_mode=mode, key=jr.key(1))
    ours = eqx.tree_at(
        lambda c: (c.weight, c.bias), ours, (jnp.transpose(theirs.weight, (2, 3, 1, 0)), theirs.bias.reshape(-1))
    )
    x = jr.normal(jr.key(2), (4, 6, 2))
    np.testing.assert_allclose(ours(x), jnp.transpose(theirs(jnp.transpose(x, (2, 0, 1))), (1, 2, 0)), atol=1e-12)


def test_group_norm_is_equinoxs():
    ours, theirs = scrambled(GroupNorm(6, groups=3, eps=1e-3)), eqx.nn.GroupNorm(3, 6, eps=1e-3)
    theirs = eqx.tree_at(lambda n: (n.weight, n.bias), theirs, (ours.weight, ours.bias))
    x = 3 + jr.normal(jr.key(2), (4, 5, 6))
    np.testing.assert_allclose(ours(x), jnp.transpose(theirs(jnp.transpose(x, (2, 0, 1))), (1, 2, 0)), atol=1e-12)


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 0, 1)])
@pytest.mark.parametrize("padding", ["zeros", "periodic"])
def test_resampling_is_a_filter_and_its_transpose(taps, padding):
    """Constants stay constants (away from zero padding), and ``<down x, y> = <x, up y> / 4``."""
    x, y = jr.normal(jr.key(0), (8, 6, 1)), jr.normal(jr.key(1), (4, 3, 1))
    low, high = downsample(x, taps, padding), upsample(y, taps, padding)
    assert low.shape == y.shape
    assert high.shape == x.shape
    np.testing.assert_allclose(jnp.vdot(low, y), jnp.vdot(x, high) / 4, rtol=1e-10)
    if padding == "periodic":
        np.testing.assert_allclose(downsample(jnp.ones((8, 6, 1)), taps, padding), 1, rtol=1e-12)


def test_average_pooling():
    x = jnp.arange(16.0).reshape(4, 4, 1)
    np.testing.assert_allclose(downsample(x, (1, 1), "zeros")[:, :, 0], [[2.5, 4.5], [10.5, 12.5]])
    np.testing.assert_allclose(upsample(x[:2, :2], (1, 1), "zeros")[:, :, 0][:, :2], [[0, 0], [0, 0], [4, 4], [4, 4]])


def test_attention_written_out():
    """Against softmax attention, head by head, in NumPy."""
    attention = scrambled(Attention(6, 2, None, 0.5, key=jr.key(0)))
    x = jr.normal(jr.key(1), (3, 2, 6))
    pixels = np.asarray(x).reshape(6, 6)
    qkv = pixels @ np.asarray(attention.qkv.weight).T + np.asarray(attention.qkv.bias)
    heads = []
    for head in range(2):
        q, k, v = (qkv[:, 6 * part + 3 * head :][:, :3] for part in range(3))
        share = np.exp(q @ k.T / np.sqrt(3))
        heads.append(share / share.sum(1, keepdims=True) @ v)
    out = np.concatenate(heads, 1) @ np.asarray(attention.out.weight).T + np.asarray(attention.out.bias)
    np.testing.assert_allclose(attention(x), 0.5 * (pixels + out).reshape(3, 2, 6), atol=1e-12)


# Networks.


@pytest.mark.parametrize("name", SETTINGS)
def test_config_is_json_and_builds_the_same_structure(name):
    first = skeleton(name)
    assert first.config() == SETTINGS[name]
    again = eqx.filter_eval_shape(NETWORKS[name], **json.loads(json.dumps(first.config())), key=jr.key(5))
    assert jax.tree.structure(again) == jax.tree.structure(first)
    assert jax.tree.leaves(again) == jax.tree.leaves(first)
    assert all(jnp.issubdtype(leaf.dtype, jnp.floating) for leaf in jax.tree.leaves(again))


@pytest.mark.parametrize("name", SETTINGS)
def test_network_for_one_event(name):
    """An untrained network adds nothing; a scrambled one keeps shape and precision and hears the noise level."""
    x = jr.normal(jr.key(1), SETTINGS[name]["shape"], jnp.float32)
    # Noise levels that bfloat16 cannot tell apart.
    noise = jnp.array([0.5, 0.5005], jnp.float32)

    def evaluate(network, x):
        return jax.vmap(network, (None, 0))(x, noise)

    zero, out, low = compiled(
        lambda a, b, x: (evaluate(a, x), evaluate(b, x), evaluate(b, x.astype(jnp.bfloat16))),
        built(name),
        scrambled(skeleton(name)),
        x,
    )
    assert zero.shape == (2, *SETTINGS[name]["shape"])
    assert not np.any(zero)
    assert (out.dtype, low.dtype) == (jnp.float32, jnp.bfloat16)
    assert float(jnp.abs(out[1] - out[0]).max()) > 1e-6
    np.testing.assert_allclose(low.astype(jnp.float32), out, atol=0.1 * float(jnp.abs(out).max()))


@pytest.mark.parametrize("padding", ["zeros", "periodic"])
def test_periodic_networks_do_not_see_the_edge(padding):
    """A shift by whole cells of the lowest level shifts the output, for periodic padding only."""
    network = scrambled(skeleton("SongUNet", padding=padding))

    def rolled(x):
        return jnp.roll(x, (4, -6), (1, 2))

    x = jr.normal(jr.key(1), network.shape)
    a, b = compiled(lambda n, x: (rolled(n(x, jnp.float64(0.3))), n(rolled(x), jnp.float64(0.3))), network, x)
    assert (float(jnp.abs(a - b).max()) < 1e-10) == (padding == "periodic")


@pytest.mark.parametrize("name", ["SongUNet", "ADMUNet"])
def test_derivatives_of_both_modes_agree(name):
    """``u . (J v)`` forward and reverse, and a finite difference; random frequencies get no gradient."""
    network = scrambled(skeleton(name))
    x, v, u = (jr.normal(jr.key(i), network.shape) for i in range(3))
    step = 1e-5

    def f(network, x):
        return network(x, jnp.float64(0.2))

    # A program a mode, since compiling takes memory; both gradients come from one reverse pass.
    def back(network, x, u):
        parameters, static = eqx.partition(network, eqx.is_array)
        return jax.vjp(lambda p, x: f(eqx.combine(p, static), x), parameters, x)[1](u)

    parameters, reverse = compiled(back, network, x, u)
    forward = compiled(lambda network, x, v: jax.jvp(lambda x: f(network, x), (x,), (v,))[1], network, x, v)
    ends = jnp.stack([x + step * v, x - step * v])
    ahead, behind = compiled(jax.vmap(f, (None, 0)), network, ends)
    np.testing.assert_allclose(jnp.vdot(u, forward), jnp.vdot(v, reverse), rtol=1e-9)
    np.testing.assert_allclose(forward, (ahead - behind) / (2 * step), atol=1e-6 * float(jnp.abs(forward).max()))
    silent = [
        jax.tree_util.keystr(path) for path, leaf in jax.tree_util.tree_leaves_with_path(parameters) if not np.any(leaf)
    ]
    unused = {"SongUNet": [".noise.features.frequencies"], "ADMUNet": []}
    assert silent == unused[name]


@pytest.mark.parametrize("x64", [True, False])
def test_weights_are_those_that_jax_draws(x64):
    """Bit for bit, at once and while traced, whatever the shape is."""
    with jax.enable_x64(x64):
        for shape in ((3, 3, 5, 7), (1,), (64, 33)):
            key, bound = jr.key(sum(shape)), 0.7 * (6 / 30) ** 0.5
            expected = bound * jr.uniform(key, shape, minval=-1, maxval=1)
            for ours in (glorot(key, shape, 10, 20, 0.7), jax.jit(lambda k, s=shape: glorot(k, s, 10, 20, 0.7))(key)):
                assert isinstance(ours, jax.Array)
                assert ours.dtype == expected.dtype
                np.testing.assert_array_equal(ours, expected)


def test_a_network_is_made_of_few_programs(caplog):
    """Not one for every shape of weights, of which this network has thirty: that took most of a minute."""
    jax.clear_caches()
    with jax.log_compiles():
        network = SongUNet((1, 16, 16), width=12, multipliers=(1, 2, 3), num_blocks=2, key=jr.key(0))
    shapes = {leaf.shape for leaf in jax.tree.leaves(eqx.filter(network, eqx.is_array))}
    programs = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    assert len(shapes) > 25
    assert 0 < len(programs) < 20


def test_attention_is_where_it_was_asked_for():
    settings = {"width": 4, "multipliers": (1, 1, 1), "num_blocks": 2, "attention_resolutions": (8,)}
    network = eqx.filter_eval_shape(SongUNet, (1, 32, 16), **settings, key=jr.key(0))
    there = [[b.attention is not None for b in level.blocks] for level in network.encoder_levels]
    assert there == [[False, False], [True, True], [False, False]]
    back = [[b.attention is not None for b in level.blocks] for level in network.decoder_levels]
    assert back == [[False] * 3, [False, False, True], [False] * 3]


@pytest.mark.parametrize(
    ("network", "settings", "message"),
    [
        (SongUNet, {"shape": (1, 12, 10)}, "divisible by 4"),
        (SongUNet, {"shape": (32, 32)}, "shape=(channels, height, width)"),
        (SongUNet, {"shape": (1, 32, 32), "attention_resolutions": (12,)}, "[32, 16, 8]; got [12]"),
        (SongUNet, {"shape": (1, 32, 32), "padding": "reflect"}, "padding"),
        (SongUNet, {"shape": (1, 32, 32), "width": 30}, "width divisible by 4"),
        (SongUNet, {"shape": (1, 32, 32), "num_blocks": 0}, "num_blocks as a whole number >= 1"),
        (SongUNet, {"shape": (1, 32, 32), "multipliers": ()}, "multipliers >= 1"),
        (SongUNet, {"shape": (1, 32, 32), "resample_filter": (1, 2, 1)}, "even number of taps"),
        (ADMUNet, {"shape": (1, 30, 32)}, "divisible by 4"),
        (ADMUNet, {"shape": (1, 32, 32), "channels": ()}, "channels >= 1"),
        (ADMUNet, {"shape": (1, 32, 32), "channels": (40, 40)}, "40 channels in 32 groups"),
        (ADMUNet, {"shape": (3, 32, 32), "out_channels": 1}, "out_channels"),
        (ADMUNet, {"shape": (1, 32, 32), "resample": "fir"}, "resample"),
        (ADMUNet, {"shape": (1, 32, 32), "head_channels": None, "num_heads": 5}, "5 heads"),
        (ConvDDPM, {"shape": (28, 28)}, "shape=(channels, height, width)"),
        (ConvDDPM, {"shape": (1, 28, 28), "kernel": 4}, "odd kernel"),
    ],
)
def test_settings_that_make_no_network(network, settings, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        eqx.filter_eval_shape(network, **settings, key=jr.key(0))


def test_events_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"made for events of shape \(1, 6, 5\); got \(1, 8, 16\)"):
        eqx.filter_eval_shape(lambda n, x: n(x, jnp.zeros(())), skeleton("ConvDDPM"), jnp.zeros((1, 8, 16)))
