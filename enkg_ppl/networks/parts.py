"""What the networks of `enkg_ppl.networks` are made of, for a network of your own.

For one feature map with channels last (`Features`; an `Image` has its channels first), cast to the precision of what
goes in: `Linear`, `Conv2d`, `GroupNorm`, `PixelNorm`, `Attention`, `Resampling` and `ResidualBlock`, with `Padding` by
zeros or from the other end; `downsample` and `upsample` by filters (`Taps`).
For vectors and series: `DenseBlock` and `ConvBlock1d`. The noise coordinate becomes features (`PositionalFeatures`,
`FourierFeatures`) and an embedding (`NoiseMap`, `NoiseEmbedding`). A U-Net's resolutions are `SongEncoderLevel` and
`SongDecoderLevel`, or `ADMEncoderLevel` and `ADMDecoderLevel`.
"""

from enkg_ppl.networks._adm_unet import ADMDecoderLevel, ADMEncoderLevel
from enkg_ppl.networks._blocks import (
    Attention,
    FourierFeatures,
    NoiseMap,
    PositionalFeatures,
    Resampling,
    ResidualBlock,
    Taps,
)
from enkg_ppl.networks._conv_ddpm import PixelNorm
from enkg_ppl.networks._embedding import NoiseEmbedding
from enkg_ppl.networks._layers import Conv2d, Features, GroupNorm, Image, Linear, Padding, downsample, upsample
from enkg_ppl.networks._mlp import DenseBlock
from enkg_ppl.networks._song_unet import SongDecoderLevel, SongEncoderLevel
from enkg_ppl.networks._unet1d import ConvBlock1d

__all__ = [
    "ADMDecoderLevel",
    "ADMEncoderLevel",
    "Attention",
    "Conv2d",
    "ConvBlock1d",
    "DenseBlock",
    "Features",
    "FourierFeatures",
    "GroupNorm",
    "Image",
    "Linear",
    "NoiseEmbedding",
    "NoiseMap",
    "Padding",
    "PixelNorm",
    "PositionalFeatures",
    "Resampling",
    "ResidualBlock",
    "SongDecoderLevel",
    "SongEncoderLevel",
    "Taps",
    "downsample",
    "upsample",
]
