"""Layers of the U-Nets, for one feature map with channels last: ``(height, width, channels)``.

Channels last is what XLA's convolutions on the CPU are fastest with. Weights are cast to the type of
the features, so the caller chooses the precision by the type of what goes in.
"""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from enkg_ppl._random import uniforms
from enkg_ppl.types import Key

Padding = Literal["zeros", "periodic"]
Features = Float[Array, "height width channels"]
Image = Float[Array, "channels height width"]


def glorot(key: Key, shape: tuple[int, ...], fan_in: int, fan_out: int, gain: float) -> Array:
    """Uniform weights with variance ``2 gain^2 / (fan_in + fan_out)`` (Glorot & Bengio 2010, equation 16)."""
    if gain == 0:
        return constant(0.0, shape)
    bound = gain * (6 / (fan_in + fan_out)) ** 0.5
    return on_device(bound * (2 * uniforms(key, shape, jnp.result_type(float)) - 1))


def constant(value: float, shape: tuple[int, ...]) -> Array:
    """An array of one number."""
    return on_device(np.full(shape, value, jnp.result_type(float)))


def on_device(a) -> Array:
    """As an array of JAX's, for which nothing is compiled: a network has weights of dozens of shapes."""
    return a if isinstance(a, Tracer) else jax.device_put(a)


def pad(x: Features, rows: tuple[int, int], columns: tuple[int, int], padding: Padding) -> Features:
    """Widen a feature map by zeros, or by its own other side where the domain is periodic."""
    widths = (rows, columns, (0, 0))
    return jnp.pad(x, widths, mode="wrap") if padding == "periodic" else jnp.pad(x, widths)


class Linear(eqx.Module):
    """``weight @ x + bias`` for a vector, or for every pixel of a feature map (a convolution with a 1 x 1 kernel).

    Args:
        in_size: length of the input.
        out_size: length of the output.
        key: for the initial weights.
        gain: factor on the initial weights.
    """

    weight: Float[Array, "out in"]
    bias: Float[Array, " out"]

    def __init__(self, in_size: int, out_size: int, *, key: Key, gain: float = 1.0):
        self.weight = glorot(key, (out_size, in_size), in_size, out_size, gain)
        self.bias = constant(0.0, (out_size,))

    def __call__(self, x: Float[Array, "*pixels in"]) -> Float[Array, "*pixels out"]:
        out = x @ self.weight.astype(x.dtype).T
        return out + jnp.broadcast_to(self.bias.astype(x.dtype), out.shape)


class Conv2d(eqx.Module):
    """Convolution with a square kernel of odd size.

    Args:
        in_channels: of the input.
        out_channels: of the output.
        size: side of the kernel.
        key: for the initial weights.
        gain: factor on the initial weights.
        stride: 2 halves the resolution.
        margin: padding before and after each axis (default: what keeps the resolution); some networks pad only after
            the last row and column when they downsample.
        padding: "zeros" or "periodic".
    """

    weight: Float[Array, "size size in out"]
    bias: Float[Array, " out"]
    stride: int = eqx.field(static=True)
    margin: tuple[int, int] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        size: int,
        *,
        key: Key,
        gain: float = 1.0,
        stride: int = 1,
        margin: tuple[int, int] | None = None,
        padding: Padding = "zeros",
    ):
        area = size * size
        self.weight = glorot(
            key, (size, size, in_channels, out_channels), area * in_channels, area * out_channels, gain
        )
        self.bias = constant(0.0, (out_channels,))
        self.stride = stride
        self.margin = (size // 2, size // 2) if margin is None else margin
        self.padding = padding

    def __call__(self, x: Features) -> Features:
        margin = self.margin
        if self.padding == "periodic" and margin != (0, 0):
            x, margin = pad(x, margin, margin, "periodic"), (0, 0)
        out = jax.lax.conv_general_dilated(
            x[None],
            self.weight.astype(x.dtype),
            window_strides=(self.stride, self.stride),
            padding=(margin, margin),
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )[0]
        return out + self.bias.astype(x.dtype)[None, None]


def sum_of_pixels(pixels: Float[Array, "pixels channels"]) -> Float[Array, " channels"]:
    """By adding halves to each other: on the CPU, where XLA's own sum does not use vectors, three times as fast."""
    while pixels.shape[0] % 2 == 0:
        half = pixels.shape[0] // 2
        pixels = pixels[:half] + pixels[half:]
    return jnp.sum(pixels, axis=0)


class GroupNorm(eqx.Module):
    """Group normalisation (Wu & He 2018), with a scale and a shift for every channel.

    The statistics are computed in 32 bits at least.

    Args:
        channels: of the features.
        groups: number of groups.
        eps: added to the variance.
    """

    weight: Float[Array, " channels"]
    bias: Float[Array, " channels"]
    groups: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)

    def __init__(self, channels: int, *, groups: int, eps: float):
        if channels % groups:
            raise ValueError(
                f"GroupNorm needs channels divisible by the number of groups; got {channels} channels in {groups} "
                "groups: change the channels of the network or its groups"
            )
        self.weight = constant(1.0, (channels,))
        self.bias = constant(0.0, (channels,))
        self.groups = groups
        self.eps = eps

    def __call__(self, x: Features) -> Features:
        height, width, channels = x.shape
        size = channels // self.groups
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        pixels = wide.reshape(height * width, channels)

        def mean_of_group(pixels):
            """For every channel."""
            sums = sum_of_pixels(pixels).reshape(self.groups, size)
            return jnp.repeat(jnp.sum(sums, axis=1) / (height * width * size), size)

        mean = mean_of_group(pixels)
        rate = jax.lax.rsqrt(mean_of_group((pixels - mean[None]) ** 2) + self.eps)
        weight = self.weight.astype(wide.dtype) * rate
        shift = self.bias.astype(wide.dtype) - weight * mean
        return (wide * weight[None, None] + shift[None, None]).astype(x.dtype)


def fusion_barrier(x: Features, weight: Array) -> Features:
    """`x` itself, written to memory on the CPU before anything is computed from it (NaN if the first weight is NaN).

    XLA's fusion on the CPU copies the work of several blocks into everything that reads their result, the gradients of
    all weights among them: a step of training takes a fifth longer. It drops `jax.lax.optimization_barrier` before it
    fuses, and does not look through a conditional.
    """

    def written(x):
        first = weight.ravel()[0]
        return jax.lax.cond(first == first, lambda x: x, lambda x: jnp.full_like(x, jnp.nan), x)

    # Elsewhere a conditional would wait for the host.
    return jax.lax.platform_dependent(x, cpu=written, default=lambda x: x)


def downsample(x: Features, taps: tuple[float, ...], padding: Padding, margin: int | None = None) -> Features:
    """Filter and keep every second pixel.

    Args:
        x: feature map.
        taps: filter, an even number of taps, of whose outer product (normalised to sum 1) the kernel is; ``(1, 1)`` is
            average pooling.
        padding: "zeros" or "periodic".
        margin: padding on each side (default: what halves the resolution exactly).
    """
    if tuple(taps) == (1, 1):
        height, width, channels = x.shape
        return jnp.mean(x.reshape(height // 2, 2, width // 2, 2, channels), axis=(1, 3))
    margin = (len(taps) - 1) // 2 if margin is None else margin
    x = pad(x, (margin, margin), (margin, margin), padding)
    for axis in (0, 1):
        size = (x.shape[axis] - len(taps)) // 2 + 1
        parts = [tap * jax.lax.slice_in_dim(x, i, i + 2 * size - 1, stride=2, axis=axis) for i, tap in enumerate(taps)]
        x = sum(parts[1:], parts[0]) / sum(taps)
    return x


def upsample(x: Features, taps: tuple[float, ...], padding: Padding) -> Features:
    """Put zeros between the pixels and filter, the transpose of `downsample` times 4.

    Args:
        x: feature map.
        taps: filter as in `downsample`; ``(1, 1)`` repeats pixels.
        padding: "zeros" or "periodic".
    """
    if tuple(taps) == (1, 1):
        height, width, channels = x.shape
        repeated = jnp.broadcast_to(x[:, None, :, None], (height, 2, width, 2, channels))
        return repeated.reshape(2 * height, 2 * width, channels)
    ring = len(taps) // 2 if padding == "periodic" else 0
    x = pad(x, (ring, ring), (ring, ring), padding)
    edge = len(taps) // 2
    zero = jnp.zeros((), x.dtype)
    for axis in (0, 1):
        widths = [(edge, edge, 1) if a == axis else (0, 0, 0) for a in range(3)]
        spread, size = jax.lax.pad(x, zero, widths), 2 * x.shape[axis]
        parts = [tap * jax.lax.slice_in_dim(spread, i, i + size, axis=axis) for i, tap in enumerate(reversed(taps))]
        x = 2 * sum(parts[1:], parts[0]) / sum(taps)
    return x[2 * ring : x.shape[0] - 2 * ring, 2 * ring : x.shape[1] - 2 * ring]
