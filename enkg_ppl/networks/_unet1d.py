"""A small U-Net for series: channels by length."""

from __future__ import annotations

from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._checks import check_choice, check_whole
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._embedding import EDM_RANGE, NoiseEmbedding
from enkg_ppl.networks._mlp import zeroed
from enkg_ppl.types import Key, Scalar

GROUPS = 8  # at most; fewer where the channels do not divide by it


def _norm(channels: int) -> eqx.nn.GroupNorm:
    groups = next(g for g in range(min(GROUPS, channels), 0, -1) if channels % g == 0)
    return eqx.nn.GroupNorm(groups, channels)


def _conv(inputs: int, outputs: int, padding: str, *, size: int = 3, stride: int = 1, key: Key) -> eqx.nn.Conv1d:
    mode = "CIRCULAR" if padding == "periodic" else "ZEROS"
    return eqx.nn.Conv1d(inputs, outputs, size, stride, padding=size // 2, padding_mode=mode, key=key)


class ConvBlock1d(eqx.Module):
    """Two convolutions with a residual connection; the noise embedding is added between them.

    Args:
        inputs: channels of the input.
        outputs: channels of the output.
        embedding_size: length of the noise embedding.
        padding: of the convolutions, as in `eqx.nn.Conv1d`.
        key: for the initial weights.
    """

    norm_first: eqx.nn.GroupNorm
    first: eqx.nn.Conv1d
    noise: eqx.nn.Linear
    norm_second: eqx.nn.GroupNorm
    second: eqx.nn.Conv1d
    skip: eqx.nn.Conv1d | None

    def __init__(self, inputs: int, outputs: int, embedding_size: int, padding: str, *, key: Key):
        keys = jr.split(key, 4)
        self.norm_first = _norm(inputs)
        self.first = _conv(inputs, outputs, padding, key=keys[0])
        self.noise = eqx.nn.Linear(embedding_size, outputs, key=keys[1])
        self.norm_second = _norm(outputs)
        self.second = zeroed(_conv(outputs, outputs, padding, key=keys[2]))
        self.skip = None if inputs == outputs else _conv(inputs, outputs, padding, size=1, key=keys[3])

    def __call__(self, h, e):
        inner = self.first(jax.nn.silu(self.norm_first(h))) + self.noise(e)[:, None]
        inner = self.second(jax.nn.silu(self.norm_second(inner)))
        return (h if self.skip is None else self.skip(h)) + inner


class UNet1d(Configured):
    """A U-Net over events of shape ``(channels, length)``.

    The last layer starts at zero.

    Args:
        channels: of an event.
        width: channels at full length.
        multipliers: channels at each level over `width`; every level after the first halves the length, which must
            therefore divide by ``2**(levels - 1)``.
        num_blocks: residual blocks a level.
        padding: "zeros" or "periodic" (the ends of the series are neighbours).
        embedding_size: see `NoiseEmbedding`.
        noise_range: see `NoiseEmbedding`.
        key: for the initial weights.

    Source: Ronneberger et al., arXiv 1505.04597; residual blocks as in Ho et al., arXiv 2006.11239, appendix B.
    """

    embedding: NoiseEmbedding
    input: eqx.nn.Conv1d
    down: tuple[tuple[ConvBlock1d, ...], ...]
    shrink: tuple[eqx.nn.Conv1d, ...]
    middle: ConvBlock1d
    grow: tuple[eqx.nn.Conv1d, ...]
    up: tuple[tuple[ConvBlock1d, ...], ...]
    norm: eqx.nn.GroupNorm
    output: eqx.nn.Conv1d
    channels: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    multipliers: tuple[int, ...] = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)
    padding: Literal["zeros", "periodic"] = eqx.field(static=True)

    def __init__(
        self,
        channels: int,
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        num_blocks: int = 1,
        padding: Literal["zeros", "periodic"] = "zeros",
        embedding_size: int = 64,
        noise_range: tuple[float, float] = EDM_RANGE,
        key: Key,
    ):
        check_whole("UNet1d", channels=channels, width=width, num_blocks=num_blocks)
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"UNet1d needs multipliers >= 1, one a level; got multipliers={multipliers}")
        check_choice("UNet1d", ("zeros", "periodic"), padding=padding)
        keys = iter(jr.split(key, 4 + 2 * (num_blocks + 1) * len(multipliers)))
        widths = [width * m for m in multipliers]

        def block(inputs, outputs):
            return ConvBlock1d(inputs, outputs, embedding_size, padding, key=next(keys))

        self.embedding = NoiseEmbedding(embedding_size, noise_range, key=next(keys))
        self.input = _conv(channels, width, padding, key=next(keys))
        before = [width, *widths[:-1]]
        self.down = tuple(
            tuple(block(before[i] if j == 0 else w, w) for j in range(num_blocks)) for i, w in enumerate(widths)
        )
        self.shrink = tuple(_conv(w, w, padding, stride=2, key=next(keys)) for w in widths[:-1])
        self.middle = block(widths[-1], widths[-1])
        # On the way up a level takes what comes from below beside what it kept on the way down.
        below = [*widths[1:], widths[-1]]
        self.up = tuple(
            tuple(block(below[i] + w if j == 0 else w, w) for j in range(num_blocks)) for i, w in enumerate(widths)
        )
        self.grow = tuple(_conv(w, w, padding, key=next(keys)) for w in widths[1:])
        self.norm = _norm(width * multipliers[0])
        self.output = zeroed(_conv(width * multipliers[0], channels, padding, key=next(keys)))
        self.channels, self.width, self.multipliers = channels, width, tuple(multipliers)
        self.num_blocks, self.padding = num_blocks, padding

    def config(self) -> dict[str, Any]:
        return super().config() | self.embedding.config()

    def __call__(self, x: Float[Array, "channels length"], noise: Scalar) -> Float[Array, "channels length"]:
        factor = 2 ** (len(self.multipliers) - 1)
        if x.ndim != 2 or x.shape[0] != self.channels or x.shape[1] % factor:
            raise ValueError(
                f"UNet1d needs events of shape ({self.channels}, length) with a length that divides by {factor}; got "
                f"{x.shape}: pad the series, or use fewer multipliers"
            )
        e = jax.nn.silu(self.embedding(noise, x.dtype))
        h = self.input(x)
        kept = []
        for i, blocks in enumerate(self.down):
            for block in blocks:
                h = block(h, e)
            kept.append(h)
            if i < len(self.shrink):
                h = self.shrink[i](h)
        h = self.middle(h, e)
        for i in reversed(range(len(self.up))):
            h = jnp.concatenate([h, kept[i]])
            for block in self.up[i]:
                h = block(h, e)
            if i > 0:
                h = self.grow[i - 1](jnp.repeat(h, 2, axis=1))
        return self.output(jax.nn.silu(self.norm(h)))
