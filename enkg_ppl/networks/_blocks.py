"""What the U-Nets are built of: embedding of the noise, residual block, self-attention."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._random import normals
from enkg_ppl.networks._layers import (
    Conv2d,
    Features,
    GroupNorm,
    Linear,
    Padding,
    downsample,
    fusion_barrier,
    on_device,
    upsample,
)
from enkg_ppl.types import Key, Scalar

Taps = tuple[float, ...]
MAX_PERIOD = 10_000.0  # of the slowest sinusoid of a positional embedding (Vaswani et al. 2017, section 3.5)
FOURIER_SCALE = 16.0  # standard deviation of random frequencies (Song et al. 2021, appendix C)


class PositionalFeatures(eqx.Module):
    """Sines and cosines of the noise coordinate at frequencies from 1 down to about 1 / 10,000.

    Attributes:
        size: number of features, even.
        endpoint: let the lowest frequency be 1 / 10,000 exactly.
        sine_first: the order of the two halves.
    """

    size: int = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)
    sine_first: bool = eqx.field(static=True)

    def __call__(self, noise: Scalar) -> Float[Array, " size"]:
        half = self.size // 2
        steps = jnp.arange(half, dtype=noise.dtype) / (half - 1 if self.endpoint else half)
        angles = noise * MAX_PERIOD**-steps
        first, second = (jnp.sin, jnp.cos) if self.sine_first else (jnp.cos, jnp.sin)
        return jnp.concatenate([first(angles), second(angles)])


class FourierFeatures(eqx.Module):
    """Sines and cosines of the noise coordinate at random frequencies, which training leaves unchanged.

    Args:
        size: number of features, even.
        key: for the frequencies.
    """

    frequencies: Float[Array, " half"]

    def __init__(self, size: int, *, key: Key):
        self.frequencies = on_device(FOURIER_SCALE * normals(key, (size // 2,), jnp.result_type(float)))

    def __call__(self, noise: Scalar) -> Float[Array, " size"]:
        angles = 2 * jnp.pi * noise * jax.lax.stop_gradient(self.frequencies).astype(noise.dtype)
        return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)])


class NoiseMap(eqx.Module):
    """Features of the noise coordinate through two layers with SiLU after each.

    Args:
        features: of the noise coordinate.
        in_size: number of features.
        size: length of the embedding.
        key: for the initial weights.
    """

    features: PositionalFeatures | FourierFeatures
    first: Linear
    second: Linear

    def __init__(self, features: PositionalFeatures | FourierFeatures, in_size: int, size: int, *, key: Key):
        key_first, key_second = jr.split(key)
        self.features = features
        self.first = Linear(in_size, size, key=key_first)
        self.second = Linear(size, size, key=key_second)

    def __call__(self, noise: Scalar, dtype) -> Float[Array, " size"]:
        # In 32 bits at least: bfloat16 cannot tell step 900 of a schedule from step 901.
        wide = jnp.asarray(noise)
        features = self.features(wide.astype(jnp.promote_types(wide.dtype, jnp.float32))).astype(dtype)
        return jax.nn.silu(self.second(jax.nn.silu(self.first(features))))


class Attention(eqx.Module):
    """Multi-head self-attention between the pixels, with a residual connection (Vaswani et al. 2017).

    The output rows of `qkv` are all queries, then all keys, then all values; heads lie one after the other in each.

    Args:
        channels: of the features.
        heads: number of heads.
        norm: normalisation before the attention, or None.
        skip_scale: factor on the sum with the residual connection.
        key: for the initial weights.
    """

    norm: GroupNorm | None
    qkv: Linear
    out: Linear
    heads: int = eqx.field(static=True)
    skip_scale: float = eqx.field(static=True)

    def __init__(self, channels: int, heads: int, norm: GroupNorm | None, skip_scale: float, *, key: Key):
        if channels % heads:
            raise ValueError(
                f"attention needs channels divisible by the number of heads; got {channels} channels and {heads} "
                "heads: change the channels of the network or of a head"
            )
        key_qkv, key_out = jr.split(key)
        self.norm = norm
        self.qkv = Linear(channels, 3 * channels, key=key_qkv)
        self.out = Linear(channels, channels, key=key_out, gain=0)
        self.heads = heads
        self.skip_scale = skip_scale

    def __call__(self, x: Features) -> Features:
        height, width, channels = x.shape
        inner = x if self.norm is None else self.norm(x)
        pixels = self.qkv(inner.reshape(height * width, channels))
        # Heads first, (3, heads, pixels, size): every product below is then one of plain matrices.
        q, k, v = pixels.reshape(-1, 3, self.heads, channels // self.heads).transpose(1, 2, 0, 3)
        # Written out: `jax.nn.dot_product_attention` works in 32 bits where 64 are asked for.
        wide = jnp.promote_types(x.dtype, jnp.float32)
        logits = jnp.matmul(q * q.shape[-1] ** -0.5, k.mT, preferred_element_type=wide)
        mixed = (jax.nn.softmax(logits).astype(x.dtype) @ v).transpose(1, 0, 2)
        return (x + self.out(mixed.reshape(height * width, channels)).reshape(x.shape)) * self.skip_scale


class Resampling(eqx.Module):
    """Halve or double the resolution: pooling or repeating pixels, with a convolution where the network has one.

    Args:
        channels: of the features.
        direction: "up" doubles, "down" halves.
        learned: with a convolution.
        ahead: pad it after the last row and column only.
        padding: "zeros" or "periodic".
        key: for the initial weights.
    """

    conv: Conv2d | None
    direction: Literal["up", "down"] = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        direction: Literal["up", "down"],
        *,
        learned: bool,
        ahead: bool = False,
        padding: Padding = "zeros",
        key: Key,
    ):
        stride, margin = (2, (0, 1) if ahead else (1, 1)) if direction == "down" else (1, (1, 1))
        self.conv = None
        if learned:
            self.conv = Conv2d(channels, channels, 3, key=key, stride=stride, margin=margin, padding=padding)
        self.direction = direction

    def __call__(self, x: Features) -> Features:
        if self.direction == "up":
            x = upsample(x, (1, 1), "zeros")
        elif self.conv is None:
            x = downsample(x, (1, 1), "zeros")
        return x if self.conv is None else self.conv(x)


class ResidualBlock(eqx.Module):
    """Two convolutions beside a skip connection, the noise embedding in between, self-attention after them.

    ``h = conv0(resample(silu(norm0(x))))``, then ``silu(norm1(h + e))`` or, with `scale_shift`, ``silu((1 + scale)
    norm1(h) + shift)``, then `conv1`; the result is ``skip_scale (h + skip(resample(x)))``.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        embedding_size: length of the noise embedding.
        groups: function from a number of channels to the groups of its normalisation.
        eps: added to the variance in the normalisation.
        scale_shift: the embedding scales and shifts rather than being added.
        skip_scale: factor on the sum with the skip connection.
        resample: "up", "down" or None.
        taps: filter of the resampling.
        project: a learned skip connection wherever the block resamples, even if its channels stay the same.
        heads: of the attention, 0 for none.
        attention_norm: normalisation before the attention.
        padding: "zeros" or "periodic".
        key: for the initial weights.

    Source: Ho et al. 2020 (arXiv 2006.11239), Dhariwal & Nichol 2021 (arXiv 2105.05233), Song et al. 2021 (arXiv
    2011.13456), whose blocks differ in these settings only.
    """

    norm0: GroupNorm
    conv0: Conv2d
    affine: Linear
    norm1: GroupNorm
    conv1: Conv2d
    skip: Linear | None
    attention: Attention | None
    resample: Literal["up", "down"] | None = eqx.field(static=True)
    taps: Taps = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)
    scale_shift: bool = eqx.field(static=True)
    skip_scale: float = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        embedding_size: int,
        *,
        groups,
        eps: float,
        scale_shift: bool,
        skip_scale: float = 1.0,
        resample: Literal["up", "down"] | None = None,
        taps: Taps = (1, 1),
        project: bool = False,
        heads: int = 0,
        attention_norm: bool = True,
        padding: Padding = "zeros",
        key: Key,
    ):
        keys = jr.split(key, 5)
        self.norm0 = GroupNorm(in_channels, groups=groups(in_channels), eps=eps)
        self.conv0 = Conv2d(in_channels, out_channels, 3, key=keys[0], padding=padding)
        self.affine = Linear(embedding_size, out_channels * (2 if scale_shift else 1), key=keys[1])
        self.norm1 = GroupNorm(out_channels, groups=groups(out_channels), eps=eps)
        # Zero, so that an untrained block passes its input on.
        self.conv1 = Conv2d(out_channels, out_channels, 3, key=keys[2], gain=0, padding=padding)
        changes = in_channels != out_channels or (project and resample is not None)
        self.skip = Linear(in_channels, out_channels, key=keys[3]) if changes else None
        self.attention = None
        if heads:
            norm = GroupNorm(out_channels, groups=groups(out_channels), eps=eps) if attention_norm else None
            self.attention = Attention(out_channels, heads, norm, skip_scale, key=keys[4])
        self.resample = resample
        self.taps = taps
        self.padding = padding
        self.scale_shift = scale_shift
        self.skip_scale = skip_scale

    def _resampled(self, x: Features) -> Features:
        if self.resample is None:
            return x
        return (downsample if self.resample == "down" else upsample)(x, self.taps, self.padding)

    def __call__(self, x: Features, embedding: Float[Array, " embedding"]) -> Features:
        h = self.conv0(self._resampled(jax.nn.silu(self.norm0(x))))
        e = self.affine(embedding)[None, None]
        if self.scale_shift:
            scale, shift = jnp.split(e, 2, axis=-1)
            h = self.norm1(h) * (1 + scale) + shift
        else:
            h = self.norm1(h + e)
        h = self.conv1(jax.nn.silu(h))
        x = self._resampled(x)
        x = (h + (x if self.skip is None else self.skip(x))) * self.skip_scale
        return fusion_barrier(x if self.attention is None else self.attention(x), self.conv1.weight)


Shape = tuple[int, int, int]  # channels, height, width


def checked_shape(name: str, shape: Sequence[int], num_levels: int) -> Shape:
    """Every level after the first halves height and width, which must come out even."""
    factor = 2 ** (num_levels - 1)
    if len(shape) != 3 or min(shape) < 1 or shape[1] % factor or shape[2] % factor:
        raise ValueError(
            f"{name} with {num_levels} levels needs shape=(channels, height, width) with height and width divisible "
            f"by {factor}; got shape={tuple(shape)}: use fewer levels, or pad the fields"
        )
    return int(shape[0]), int(shape[1]), int(shape[2])


def resolutions(shape: Shape, num_levels: int) -> list[int]:
    """The shorter side of a feature map at every level."""
    return [min(shape[1:]) >> level for level in range(num_levels)]


def check_attention(name: str, wanted, shape: Shape, num_levels: int) -> None:
    """Attention at a resolution that no level has would silently be left out."""
    missing = sorted(set(wanted) - set(resolutions(shape, num_levels)))
    if missing:
        raise ValueError(
            f"{name} needs attention_resolutions among those of its levels, {resolutions(shape, num_levels)}; "
            f"got {missing}: choose from these, or add levels"
        )


def check_event(name: str, x: Array, shape: Shape) -> None:
    if x.shape != shape:
        raise ValueError(f"{name} was made for events of shape {shape}; got {x.shape}: reshape the events")


def ints(values) -> tuple[int, ...]:
    return tuple(int(v) for v in values)
