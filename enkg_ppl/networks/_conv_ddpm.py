"""A plain stack of wide convolutions at full resolution."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._checks import check_whole
from enkg_ppl.networks._blocks import check_event
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._layers import Conv2d, Features, Image, Linear, constant
from enkg_ppl.types import Key, Scalar

EPS = 1e-5


class PixelNorm(eqx.Module):
    """Layer normalisation over the whole feature map, with a scale and a shift for every entry.

    Attributes:
        weight: the scales.
        bias: the shifts.
    """

    weight: Float[Array, "height width channels"]
    bias: Float[Array, "height width channels"]

    def __call__(self, x: Features) -> Features:
        wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        centred = wide - jnp.mean(wide)
        normal = centred * jax.lax.rsqrt(jnp.mean(centred**2) + EPS)
        return (normal * self.weight.astype(wide.dtype) + self.bias.astype(wide.dtype)).astype(x.dtype)


class ConvDDPM(Configured):
    """Convolutions, layer normalisation and GELU at full resolution; the noise is added after the first of them.

    The noise coordinate is the fraction of the schedule in [0, 1] (step / number of steps); its features are ``[sin(t
    f), cos(t f) - 1]``. A network for small images: it has one parameter per pixel and channel.

    Args:
        shape: of one event, ``(channels, height, width)``.
        widths: channels between the layers.
        kernel: side of the kernels, an odd number; the last layer has 3.
        num_frequencies: size of the noise features.
        hidden: size of the three hidden layers that embed them.
        key: for the initial weights; the last layer starts at zero.
    """

    frequencies: Float[Array, " frequencies"]
    time: tuple[Linear, ...]
    convs: tuple[Conv2d, ...]
    norms: tuple[PixelNorm, ...]
    out: Conv2d
    shape: tuple[int, int, int] = eqx.field(static=True)
    widths: tuple[int, ...] = eqx.field(static=True)
    kernel: int = eqx.field(static=True)
    num_frequencies: int = eqx.field(static=True)
    hidden: int = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        widths: tuple[int, ...] = (16, 32, 32, 16),
        kernel: int = 7,
        num_frequencies: int = 16,
        hidden: int = 128,
        key: Key,
    ):
        self.shape = tuple(int(n) for n in shape)  # type: ignore
        self.widths = tuple(int(n) for n in widths)
        if len(self.shape) != 3 or min(self.shape) < 1:
            raise ValueError(f"ConvDDPM needs shape=(channels, height, width); got shape={shape}")
        if not self.widths or min(self.widths) < 1:
            raise ValueError(f"ConvDDPM needs widths >= 1, at least one; got widths={widths}")
        if kernel < 1 or kernel % 2 == 0:
            raise ValueError(f"ConvDDPM needs an odd kernel; got kernel={kernel}")
        check_whole("ConvDDPM", num_frequencies=num_frequencies, hidden=hidden)
        self.kernel, self.num_frequencies, self.hidden = kernel, num_frequencies, hidden
        key_out, *keys = jr.split(key, 5 + len(self.widths))
        channels, height, width = self.shape
        # From a constant to a few dozen turns over the schedule.
        self.frequencies = jnp.pi * jnp.arange(num_frequencies)
        sizes = (2 * num_frequencies, hidden, hidden, hidden, self.widths[0])
        self.time = tuple(Linear(a, b, key=k) for a, b, k in zip(sizes[:-1], sizes[1:], keys[:4], strict=True))
        inputs = (channels, *self.widths[:-1])
        self.convs = tuple(Conv2d(a, b, kernel, key=k) for a, b, k in zip(inputs, self.widths, keys[4:], strict=True))
        sizes = [(height, width, n) for n in self.widths]
        self.norms = tuple(PixelNorm(constant(1.0, size), constant(0.0, size)) for size in sizes)
        self.out = Conv2d(self.widths[-1], channels, 3, key=key_out, gain=0)

    def __call__(self, x: Image, noise: Scalar) -> Image:
        """Evaluate for one event.

        Args:
            x: the event, shape (channels, height, width).
            noise: fraction of the schedule.
        """
        check_event("ConvDDPM", x, self.shape)
        wide = jnp.asarray(noise)
        wide = wide.astype(jnp.promote_types(wide.dtype, jnp.float32))
        angles = wide * jax.lax.stop_gradient(self.frequencies).astype(wide.dtype)
        e = jnp.concatenate([jnp.sin(angles), jnp.cos(angles) - 1]).astype(x.dtype)
        for layer in self.time[:-1]:
            e = jax.nn.gelu(layer(e), approximate=False)
        e = self.time[-1](e)
        h = jnp.transpose(x, (1, 2, 0))
        for i, (conv, norm) in enumerate(zip(self.convs, self.norms, strict=True)):
            h = jax.nn.gelu(norm(conv(h)), approximate=False)
            if i == 0:
                h = h + e[None, None]
        return jnp.transpose(self.out(h), (2, 0, 1))
