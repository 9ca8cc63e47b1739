"""The U-Net of score-based models: DDPM++ and NCSN++."""

from __future__ import annotations

from typing import Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array

from enkg_ppl._checks import check_choice, check_whole
from enkg_ppl.networks._blocks import (
    FourierFeatures,
    NoiseMap,
    PositionalFeatures,
    ResidualBlock,
    check_attention,
    check_event,
    checked_shape,
    ints,
    resolutions,
)
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._layers import Conv2d, GroupNorm, Image, Linear, Padding, downsample, upsample
from enkg_ppl.types import Key, Scalar

EPS = 1e-6
SKIP_SCALE = 0.5**0.5  # keeps the variance of a sum of two branches


def _groups(channels: int) -> int:
    return max(1, min(32, channels // 4))


class SongEncoderLevel(eqx.Module):
    """A resolution of the encoder.

    Attributes:
        enter: the first convolution, or the block that halves the resolution.
        image: map from the image at this resolution to the features, or None.
        blocks: residual blocks.
    """

    enter: Conv2d | ResidualBlock  # the stem at full resolution, a halving block below
    image: Linear | Conv2d | None  # from the image at this resolution to the features
    blocks: tuple[ResidualBlock, ...]


class SongDecoderLevel(eqx.Module):
    """A resolution of the decoder; some levels add an image to the output.

    Attributes:
        enter: the middle blocks at the lowest resolution, otherwise the block that doubles it.
        blocks: residual blocks.
        norm: normalisation before `out`, or None.
        out: convolution to the image, or None.
    """

    enter: tuple[ResidualBlock, ...]  # the middle of the U at the lowest resolution, a doubling block above
    blocks: tuple[ResidualBlock, ...]
    norm: GroupNorm | None  # normalisation before `out`
    out: Conv2d | None  # from the features to an image at this resolution


class SongUNet(Configured):
    """U-Net with residual blocks and self-attention for events of shape ``(channels, height, width)``.

    This is the one to train: any number of channels, height and width divisible by ``2**(levels - 1)``, periodic
    domains too. There is no dropout, no class label and no augmentation label. Last layers start at zero: an untrained
    network adds nothing to the preconditioning's skip.

    Args:
        shape: of one event.
        width: channels at full resolution.
        multipliers: channels at each level over `width`; every level after the first halves the resolution.
        num_blocks: residual blocks a level.
        attention_resolutions: the levels with self-attention, named by the shorter side of their feature maps (16 for
            maps of 16 x 16). The lowest level has attention always.
        padding: "zeros", or "periodic" where the two ends of each axis are neighbours.
        noise_features: "positional" (DDPM++) or "fourier" (NCSN++; random frequencies).
        noise_multiplier: number of noise features over `width`.
        embedding_multiplier: length of the noise embedding over `width`.
        encoder: "standard" (DDPM++), "skip", or "residual" (NCSN++): how the image enters at lower resolutions.
        decoder: "standard", or "skip": the output is a sum over resolutions.
        resample_filter: (1, 1) pools and repeats pixels (DDPM++), (1, 3, 3, 1) is smoother (NCSN++).
        waves: integer wave numbers ``(a, b)`` whose cosine and sine, ``2 pi (a i / height + b j / width)`` at pixel (i,
            j), are input channels beside the event: positional channels, for a periodic domain whose distribution is
            not invariant under every shift (a forcing, a coast). A periodic network has no other; with them it is
            equivariant only under the shifts that leave them unchanged.
        key: for the initial weights.

    Source: Song et al. 2021 (arXiv 2011.13456), as refined by Karras et al. 2022 (arXiv 2206.00364, table 7).
    """

    noise: NoiseMap
    encoder_levels: tuple[SongEncoderLevel, ...]
    decoder_levels: tuple[SongDecoderLevel, ...]
    shape: tuple[int, int, int] = eqx.field(static=True)
    width: int = eqx.field(static=True)
    multipliers: tuple[int, ...] = eqx.field(static=True)
    num_blocks: int = eqx.field(static=True)
    attention_resolutions: tuple[int, ...] = eqx.field(static=True)
    padding: Padding = eqx.field(static=True)
    noise_features: Literal["positional", "fourier"] = eqx.field(static=True)
    noise_multiplier: int = eqx.field(static=True)
    embedding_multiplier: int = eqx.field(static=True)
    encoder: Literal["standard", "skip", "residual"] = eqx.field(static=True)
    decoder: Literal["standard", "skip"] = eqx.field(static=True)
    resample_filter: tuple[float, ...] = eqx.field(static=True)
    waves: tuple[tuple[int, int], ...] = eqx.field(static=True)

    def __init__(
        self,
        shape: tuple[int, int, int],
        *,
        width: int = 32,
        multipliers: tuple[int, ...] = (1, 2, 2),
        num_blocks: int = 2,
        attention_resolutions: tuple[int, ...] = (),
        padding: Padding = "zeros",
        noise_features: Literal["positional", "fourier"] = "positional",
        noise_multiplier: int = 1,
        embedding_multiplier: int = 4,
        encoder: Literal["standard", "skip", "residual"] = "standard",
        decoder: Literal["standard", "skip"] = "standard",
        resample_filter: tuple[float, ...] = (1, 1),
        waves: tuple[tuple[int, int], ...] = (),
        key: Key,
    ):
        self.multipliers = multipliers = ints(multipliers)
        self.attention_resolutions = ints(attention_resolutions)
        self.resample_filter = taps = tuple(resample_filter)
        check_choice("SongUNet", ("zeros", "periodic"), padding=padding)
        check_choice("SongUNet", ("positional", "fourier"), noise_features=noise_features)
        check_choice("SongUNet", ("standard", "skip", "residual"), encoder=encoder)
        check_choice("SongUNet", ("standard", "skip"), decoder=decoder)
        multiplied = {"noise_multiplier": noise_multiplier, "embedding_multiplier": embedding_multiplier}
        check_whole("SongUNet", width=width, num_blocks=num_blocks, **multiplied)
        if width % 4:
            raise ValueError(f"SongUNet needs a width divisible by 4; got width={width}")
        if not multipliers or min(multipliers) < 1:
            raise ValueError(f"SongUNet needs multipliers >= 1, one a level; got multipliers={multipliers}")
        if not taps or len(taps) % 2 or sum(taps) == 0:
            raise ValueError(f"SongUNet needs resample_filter with an even number of taps; got {resample_filter}")
        if any(len(wave) != 2 or any(int(number) != number for number in wave) for wave in waves):
            raise ValueError(f"SongUNet needs waves as pairs of whole wave numbers (rows, columns); got waves={waves}")
        self.waves = tuple((int(a), int(b)) for a, b in waves)
        levels = len(multipliers)
        self.shape = shape = checked_shape("SongUNet", shape, levels)
        check_attention("SongUNet", self.attention_resolutions, shape, levels)
        self.width, self.num_blocks, self.padding = width, num_blocks, padding
        self.noise_features, self.noise_multiplier = noise_features, noise_multiplier
        self.embedding_multiplier, self.encoder, self.decoder = embedding_multiplier, encoder, decoder

        keys = iter(jr.split(key, 4 + levels * (2 * num_blocks + 6)))
        embedding_size, feature_size = width * embedding_multiplier, width * noise_multiplier
        attended = [r in self.attention_resolutions for r in resolutions(shape, levels)]
        features = (
            PositionalFeatures(feature_size, endpoint=True, sine_first=True)
            if noise_features == "positional"
            else FourierFeatures(feature_size, key=next(keys))
        )
        self.noise = NoiseMap(features, feature_size, embedding_size, key=next(keys))

        def block(inputs, outputs, *, attention=False, resample=None):
            return ResidualBlock(
                inputs,
                outputs,
                embedding_size,
                groups=_groups,
                eps=EPS,
                scale_shift=False,
                skip_scale=SKIP_SCALE,
                resample=resample,
                taps=taps,
                project=True,
                heads=int(attention),
                padding=padding,
                key=next(keys),
            )

        down = []
        channels, image_channels = width, shape[0]
        kept = []  # channels of everything that the decoder will take up again
        for level, multiplier in enumerate(multipliers):
            image = None
            if level == 0:
                enter = Conv2d(shape[0] + 2 * len(self.waves), width, 3, key=next(keys), padding=padding)
            else:
                enter = block(channels, channels, resample="down")
                if encoder == "skip":
                    image = Linear(shape[0], channels, key=next(keys))
                elif encoder == "residual":
                    # The padding of the filter is the convolution's, which comes first here.
                    margin = (len(taps) + 1) // 2
                    image = Conv2d(
                        image_channels, channels, 3, key=next(keys), margin=(margin, margin), padding=padding
                    )
                    image_channels = channels
            kept.append(channels)
            blocks = []
            for _ in range(num_blocks):
                blocks.append(block(channels, width * multiplier, attention=attended[level]))
                channels = width * multiplier
                kept.append(channels)
            down.append(SongEncoderLevel(enter, image, tuple(blocks)))

        up = []
        for level in reversed(range(levels)):
            if level == levels - 1:
                enter = (block(channels, channels, attention=True), block(channels, channels))
            else:
                enter = (block(channels, channels, resample="up"),)
            blocks = []
            for i in range(num_blocks + 1):
                attention = attended[level] and i == num_blocks
                blocks.append(block(channels + kept.pop(), width * multipliers[level], attention=attention))
                channels = width * multipliers[level]
            norm = out = None
            if level == 0 or decoder == "skip":
                norm = GroupNorm(channels, groups=_groups(channels), eps=EPS)
                out = Conv2d(channels, shape[0], 3, key=next(keys), gain=0, padding=padding)
            up.append(SongDecoderLevel(enter, tuple(blocks), norm, out))
        self.encoder_levels, self.decoder_levels = tuple(down), tuple(up)

    def __call__(self, x: Image, noise: Scalar) -> Image:
        """Evaluate for one event.

        Args:
            x: the event, shape (channels, height, width).
            noise: the preconditioning's noise coordinate.
        """
        check_event("SongUNet", x, self.shape)
        e = self.noise(noise, x.dtype)
        image = jnp.transpose(x, (1, 2, 0))
        h, kept = jnp.concatenate([image, *self._marks(x.dtype)], axis=-1), []
        for level in self.encoder_levels:
            h = level.enter(h) if isinstance(level.enter, Conv2d) else level.enter(h, e)
            if isinstance(level.image, Conv2d):
                filtered = downsample(level.image(image), self.resample_filter, self.padding, margin=0)
                h = image = (h + filtered) * SKIP_SCALE
            elif level.image is not None:
                image = downsample(image, self.resample_filter, self.padding)
                h = h + level.image(image)
            kept.append(h)
            for block in level.blocks:
                h = block(h, e)
                kept.append(h)

        out: Array | None = None
        for level in self.decoder_levels:
            for block in level.enter:
                h = block(h, e)
            for block in level.blocks:
                h = block(jnp.concatenate([h, kept.pop()], axis=-1), e)
            if out is not None:
                out = upsample(out, self.resample_filter, self.padding)
            if level.out is not None and level.norm is not None:
                image = level.out(jax.nn.silu(level.norm(h)))
                out = image if out is None else out + image
        assert out is not None  # the last level has one
        return jnp.transpose(out, (2, 0, 1))

    def _marks(self, dtype) -> list[Array]:
        """Cosine and sine of every wave, ``(height, width, 2)``."""
        height, width = self.shape[1:]
        marks = []
        for a, b in self.waves:
            angle = 2 * np.pi * (a * np.arange(height)[:, None] / height + b * np.arange(width)[None] / width)
            marks.append(jnp.asarray(np.stack([np.cos(angle), np.sin(angle)], axis=-1), dtype))
        return marks
