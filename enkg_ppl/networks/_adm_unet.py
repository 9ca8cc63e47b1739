"""The U-Net of denoising diffusion models, from DDPM to ADM."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr

from enkg_ppl._checks import check_choice, check_whole
from enkg_ppl.networks._blocks import (
    NoiseMap,
    PositionalFeatures,
    Resampling,
    ResidualBlock,
    check_attention,
    check_event,
    checked_shape,
    ints,
    resolutions,
)
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._layers import Conv2d, GroupNorm, Image, Padding
from enkg_ppl.types import Key, Scalar


class ADMEncoderLevel(eqx.Module):
    """A resolution of the encoder.

    Attributes:
        enter: the first convolution, or the layer that halves the resolution.
        blocks: residual blocks.
    """

    enter: Conv2d | ResidualBlock | Resampling  # the stem at full resolution, a halving layer below
    blocks: tuple[ResidualBlock, ...]


class ADMDecoderLevel(eqx.Module):
    """A resolution of the decoder.

    Attributes:
        enter: the middle blocks at the lowest resolution, otherwise the layer that doubles it.
        blocks: residual blocks.
    """

    enter: tuple[ResidualBlock | Resampling, ...]  # the middle of the U at the lowest resolution, a doubling above
    blocks: tuple[ResidualBlock, ...]


class ADMUNet(Configured):
    """U-Net with residual blocks and self-attention for events of shape ``(channels, height, width)``.

    One class for the U-Net of Ho et al. 2020 (arXiv 2006.11239), ADM of Dhariwal & Nichol 2021 (arXiv 2105.05233), and
    their descendants: `DhariwalUNet` of the EDM code, `UNetModel` of guided diffusion and `UNet2DModel` of diffusers
    differ in these settings only. The defaults are ADM's. There is no dropout and no class label.

    Args:
        shape: of one event.
        channels: of the features, one entry a level; every level after the first halves height and width.
        num_blocks: residual blocks a level.
        attention_resolutions: the levels with self-attention, named by the shorter side of their feature maps.
        decoder_attention_resolutions: the same in the decoder (default: as in the encoder).
        head_channels: channels of an attention head.
        num_heads: number of heads where `head_channels` is None.
        out_channels: by default those of `shape`; a network that also predicts a variance has twice as many, and those
            after the first half are dropped.
        feature_size: number of features of the noise (default: ``channels[0]``).
        embedding_size: length of the noise embedding (default: four times `feature_size`).
        endpoint: see `PositionalFeatures`.
        sine_first: see `PositionalFeatures`.
        scale_shift: the embedding scales and shifts the normalised features (ADM) rather than being added.
        resample: "block" (residual blocks that halve and double), "conv", or "plain" (pooling, repeating).
        pad_ahead: a halving convolution is padded after the last row and column only.
        groups: of the normalisation; fewer where a group would have under `min_group_channels` channels.
        min_group_channels: smallest number of channels in a group.
        eps: added to the variance in the normalisation.
        middle_attention: self-attention at the lowest level.
        middle_norm: normalisation before that attention.
        middle_scale: factor on the residual sums of the middle blocks.
        affine_input: (a, b) where the network's input is ``a x + b``.
        padding: "zeros", or "periodic" where the two ends of each axis are neighbours.
        key: for the initial weights; the last layer starts at zero.
    """

    noise: NoiseMap
    encoder_levels: tuple[ADMEncoderLevel, ...]
    decoder_levels: tuple[ADMDecoderLevel, ...]
    norm: GroupNorm
    out: Conv2d
    shape: tuple[int, int, int] = eqx.field(static=True)
    channels: tuple[int, ...] = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)
    attention_resolutions: tuple[int, ...] = eqx.field(static=True)
    decoder_attention_resolutions: tuple[int, ...] = eqx.field(static=True)
    head_channels: int | None = eqx.field(static=True)
    num_heads: int = eqx.field(static=True)
    out_channels: int = eqx.field(static=True)
    feature_size: int = eqx.field(static=True)
    embedding_size: int = eqx.field(static=True)
    endpoint: bool = eqx.field(static=True)
    sine_first: bool = eqx.field(static=True)
    scale_shift: bool = eqx.field(static=True)
    resample: Literal["block", "conv", "plain"] = eqx.field(static=True)
    pad_ahead: bool = eqx.field(static=True)
    groups: int = eqx.field(static=True)
    min_group_channels: int = eqx.field(static=True)
    eps: float = eqx.field(static=True)
    middle_attention: bool = eqx.field(static=True)
    middle_norm: bool = eqx.field(static=True)
    middle_scale: float = eqx.field(static=True)
    affine_input: tuple[float, float] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        channels: tuple[int, ...] = (64, 128, 192),
        num_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        decoder_attention_resolutions: tuple[int, ...] | None = None,
        head_channels: int | None = 64,
        num_heads: int = 1,
        out_channels: int | None = None,
        feature_size: int | None = None,
        embedding_size: int | None = None,
        endpoint: bool = False,
        sine_first: bool = False,
        scale_shift: bool = True,
        resample: Literal["block", "conv", "plain"] = "block",
        pad_ahead: bool = False,
        groups: int = 32,
        min_group_channels: int = 1,
        eps: float = 1e-5,
        middle_attention: bool = True,
        middle_norm: bool = True,
        middle_scale: float = 1.0,
        affine_input: tuple[float, float] = (1.0, 0.0),
        padding: Padding = "zeros",
        key: Key,
    ):
        self.channels = channels = ints(channels)
        self.attention_resolutions = ints(attention_resolutions)
        self.decoder_attention_resolutions = (
            self.attention_resolutions if decoder_attention_resolutions is None else ints(decoder_attention_resolutions)
        )
        if not channels or min(channels) < 1:
            raise ValueError(f"ADMUNet needs channels >= 1, one entry a level; got channels={channels}")
        levels = len(channels)
        self.shape = shape = checked_shape("ADMUNet", shape, levels)
        self.out_channels = shape[0] if out_channels is None else out_channels
        self.feature_size = channels[0] if feature_size is None else feature_size
        self.embedding_size = 4 * self.feature_size if embedding_size is None else embedding_size
        check_whole("ADMUNet", num_blocks=num_blocks, num_heads=num_heads, groups=groups)
        if self.feature_size < 4 or self.feature_size % 2:
            raise ValueError(f"ADMUNet needs an even feature_size of 4 or more; got {self.feature_size}")
        if self.out_channels < shape[0]:
            raise ValueError(
                f"ADMUNet needs out_channels >= the {shape[0]} channels of an event; got out_channels={out_channels}"
            )
        check_choice("ADMUNet", ("zeros", "periodic"), padding=padding)
        check_choice("ADMUNet", ("block", "conv", "plain"), resample=resample)
        check_attention("ADMUNet", self.attention_resolutions, shape, levels)
        check_attention("ADMUNet", self.decoder_attention_resolutions, shape, levels)
        self.num_blocks, self.head_channels, self.num_heads = num_blocks, head_channels, num_heads
        self.endpoint, self.sine_first, self.scale_shift = endpoint, sine_first, scale_shift
        self.resample, self.pad_ahead, self.padding = resample, pad_ahead, padding
        self.groups, self.min_group_channels, self.eps = groups, min_group_channels, eps
        self.middle_attention, self.middle_norm, self.middle_scale = middle_attention, middle_norm, middle_scale
        self.affine_input = (float(affine_input[0]), float(affine_input[1]))

        keys = iter(jr.split(key, 6 + levels * (2 * num_blocks + 4)))
        features = PositionalFeatures(self.feature_size, endpoint, sine_first)
        self.noise = NoiseMap(features, self.feature_size, self.embedding_size, key=next(keys))

        def groups_of(n):
            return max(1, min(groups, n // min_group_channels))

        def block(inputs, outputs, *, attention=False, **settings):
            heads = num_heads if head_channels is None else max(1, outputs // head_channels)
            return ResidualBlock(
                inputs,
                outputs,
                self.embedding_size,
                groups=groups_of,
                eps=eps,
                scale_shift=scale_shift,
                heads=heads if attention else 0,
                padding=padding,
                key=next(keys),
                **settings,
            )

        def middle(**settings):
            return block(channels[-1], channels[-1], skip_scale=middle_scale, **settings)

        def resampling(n, direction: Literal["up", "down"]):
            if resample == "block":
                return block(n, n, resample=direction)
            return Resampling(
                n, direction, learned=resample == "conv", ahead=pad_ahead, padding=padding, key=next(keys)
            )

        sides = resolutions(shape, levels)
        down = []
        width = channels[0]
        kept = []  # channels of everything that the decoder will take up again
        for level, outputs in enumerate(channels):
            if level == 0:
                enter = Conv2d(shape[0], width, 3, key=next(keys), padding=padding)
            else:
                enter = resampling(width, "down")
            kept.append(width)
            blocks = []
            for _ in range(num_blocks):
                blocks.append(block(width, outputs, attention=sides[level] in self.attention_resolutions))
                width = outputs
                kept.append(width)
            down.append(ADMEncoderLevel(enter, tuple(blocks)))

        up = []
        for level in reversed(range(levels)):
            if level == levels - 1:
                enter = (middle(attention=middle_attention, attention_norm=middle_norm), middle())
            else:
                enter = (resampling(width, "up"),)
            attention = sides[level] in self.decoder_attention_resolutions
            blocks = []
            for _ in range(num_blocks + 1):
                blocks.append(block(width + kept.pop(), channels[level], attention=attention))
                width = channels[level]
            up.append(ADMDecoderLevel(enter, tuple(blocks)))
        self.encoder_levels, self.decoder_levels = tuple(down), tuple(up)
        self.norm = GroupNorm(width, groups=groups_of(width), eps=eps)
        self.out = Conv2d(width, self.out_channels, 3, key=next(keys), gain=0, padding=padding)

    def __call__(self, x: Image, noise: Scalar) -> Image:
        """Evaluate for one event.

        Args:
            x: the event, shape (channels, height, width).
            noise: the preconditioning's noise coordinate.
        """
        check_event("ADMUNet", x, self.shape)
        e = self.noise(noise, x.dtype)
        factor, offset = self.affine_input
        h, kept = jnp.transpose(factor * x + offset, (1, 2, 0)), []
        for level in self.encoder_levels:
            h = _apply(level.enter, h, e)
            kept.append(h)
            for block in level.blocks:
                h = block(h, e)
                kept.append(h)
        for level in self.decoder_levels:
            for layer in level.enter:
                h = _apply(layer, h, e)
            for block in level.blocks:
                h = block(jnp.concatenate([h, kept.pop()], axis=-1), e)
        out = self.out(jax.nn.silu(self.norm(h)))
        return jnp.transpose(out[:, :, : self.shape[0]], (2, 0, 1))


def _apply(layer, h, e):
    return layer(h, e) if isinstance(layer, ResidualBlock) else layer(h)
