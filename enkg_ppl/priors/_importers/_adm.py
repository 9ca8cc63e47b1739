"""Checkpoints of guided diffusion's `UNetModel` (Dhariwal & Nichol 2021) and of its ancestor, improved diffusion."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np

from enkg_ppl.networks._adm_unet import ADMUNet
from enkg_ppl.networks._blocks import Resampling, ResidualBlock
from enkg_ppl.priors._importers._edm import below_prefix
from enkg_ppl.priors._importers._fill import Source, fill, heads_first, source
from enkg_ppl.priors._importers._prior import as_prior, check_preconditioning, refuse_labels
from enkg_ppl.priors._importers._read import read_tensors
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import Preconditioning

ANCHOR = "time_embed.0.weight"
ENTRY_SD = 0.5  # of images in [-1, 1]
# Names inside a residual block, ours and theirs.
BLOCK = {
    "norm0": "in_layers.0",
    "conv0": "in_layers.2",
    "affine": "emb_layers.1",
    "norm1": "out_layers.0",
    "conv1": "out_layers.3",
    "skip": "skip_connection",
}


def import_adm(
    checkpoint: str | Path | Mapping[str, Any],
    preconditioning: Preconditioning,
    shape: tuple[int, int, int],
    *,
    head_channels: int | None = None,
    num_heads: int | None = None,
    attention_order: Literal["heads first", "qkv first"] = "heads first",
    weights: str | None = None,
    **options,
) -> NetworkPrior:
    """A prior from a checkpoint of guided diffusion's `UNetModel` (ADM).

    All settings that are not arguments are read from the names and shapes. Where the network predicts a variance beside
    the noise (``learn_sigma``), that half is dropped. Class-conditional networks are refused.

    Args:
        checkpoint: as for `import_edm`.
        preconditioning: of the training, which is not in the file. ``Discrete(alphas_cumprod)`` with the schedule of
            the training, or `VP()` where the network was used with it (its linear schedule is the same up to
            discretisation, and both give the network the step number).
        shape: of one event, (channels, height, width).
        head_channels: channels of an attention head; give this or `num_heads`, which are not in the file.
        num_heads: number of attention heads.
        attention_order: "qkv first" for networks made with ``use_new_attention_order``.
        weights: as for `import_edm`.
        **options: of `NetworkPrior`; `location` and `scale` as for `import_edm`.

    Raises:
        ValueError: for a file that is no such checkpoint; the message gives the reason.
    """
    check_preconditioning("import_adm", preconditioning)
    if (head_channels is None) == (num_heads is None):
        raise ValueError(
            "import_adm needs one of head_channels and num_heads, as in the training's settings; "
            f"got head_channels={head_channels}, num_heads={num_heads}"
        )
    if attention_order not in ("heads first", "qkv first"):
        raise ValueError(f"import_adm needs attention_order 'heads first' or 'qkv first'; got {attention_order!r}")
    name = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    tensors = below_prefix(read_tensors(checkpoint, weights), ANCHOR, name, "import_adm", "UNetModel")
    refuse_labels(tensors.get("label_emb.weight"), 0, name)
    config = _config(tensors, name, tuple(shape))
    config |= {"head_channels": head_channels, "num_heads": num_heads or 1}

    def locate(network):
        return _sources(network, attention_order)

    network = fill(ADMUNet, config, locate, tensors, (), name)
    return as_prior(network, preconditioning, checkpoint, ENTRY_SD, options)


def _config(tensors: Mapping[str, np.ndarray], name: str, shape) -> dict:
    def tensor(key: str) -> np.ndarray:
        if key not in tensors:
            raise ValueError(f"{name} has no tensor {key}, which its architecture is read from: is it complete?")
        return tensors[key]

    def numbers(pattern: str) -> set[int]:
        return {int(m[1]) for m in (re.match(pattern, key) for key in tensors) if m}

    # Input block 0 is the stem. A residual block that keeps the resolution has the level's channels; what halves it is
    # a convolution ("op"), nothing at all (pooling), or a residual block, which is told by its place.
    present = numbers(r"input_blocks\.(\d+)\.0\.")
    last = max(present, default=0)
    outputs = len(numbers(r"output_blocks\.(\d+)\.0\."))
    # On the way down there are levels (blocks + 1) entries with the stem, on the way up as many.
    if last + 1 != outputs or last < 1:
        raise ValueError(f"{name} should have as many input_blocks as output_blocks; got {last + 1} and {outputs}")
    ups = sorted(
        i for i in range(outputs) if any(re.match(rf"output_blocks\.{i}\.[12]\.(conv|in_layers)\.", k) for k in tensors)
    )
    plain = sorted(set(range(1, last + 1)) - present)
    if ups:
        num_blocks = ups[0]
    elif plain:
        num_blocks = plain[0] - 1
    else:
        num_blocks = last
    levels = (last + 1) // (num_blocks + 1)
    if num_blocks < 1 or levels * (num_blocks + 1) != last + 1:
        raise ValueError(f"{name} should have the same number of residual blocks at every level; it does not")
    firsts = [1 + level * (num_blocks + 1) for level in range(levels)]
    side = min(shape[1:])
    halving = f"input_blocks.{num_blocks + 1}.0"
    if levels == 1 or f"{halving}.in_layers.0.weight" in tensors:
        resample = "block"
    else:
        resample = "conv" if f"{halving}.op.weight" in tensors else "plain"
    channels = [tensor(f"input_blocks.{i}.0.out_layers.3.weight").shape[0] for i in firsts]
    affine = tensor("input_blocks.1.0.emb_layers.1.weight").shape[0]
    stem = tensor("input_blocks.0.0.weight").shape
    if stem[1] != shape[0] or stem[0] != channels[0]:
        raise ValueError(
            f"{name} has a stem from {stem[1]} to {stem[0]} channels; expected {shape[0]} (of shape={shape}) to "
            f"{channels[0]}: correct shape"
        )

    def attended(blocks: str, indices) -> tuple[int, ...]:
        here = [f"{blocks}.{i}.1.qkv.weight" in tensors for i in indices]
        return tuple(side >> level for level, yes in enumerate(here) if yes)

    return {
        "shape": shape,
        "channels": tuple(channels),
        "num_blocks": num_blocks,
        "attention_resolutions": attended("input_blocks", firsts),
        "decoder_attention_resolutions": attended(
            "output_blocks", [(levels - 1 - level) * (num_blocks + 1) for level in range(levels)]
        ),
        "out_channels": tensor("out.2.weight").shape[0],
        "feature_size": tensors[ANCHOR].shape[1],
        "embedding_size": tensors[ANCHOR].shape[0],
        "scale_shift": affine == 2 * channels[0],
        "resample": resample,
        "middle_attention": "middle_block.1.qkv.weight" in tensors,
    }


def _sources(network, attention_order: str) -> dict[str, Source]:
    def block(path: str, name: str, at: ResidualBlock, following: str) -> dict[str, Source]:
        found = {f"{path}.{ours}": source(f"{name}.{theirs}") for ours, theirs in BLOCK.items()}
        if at.attention is not None:
            rows = heads_first(at.attention.heads) if attention_order == "heads first" else None
            found[f"{path}.attention.norm"] = source(f"{following}.norm")
            found[f"{path}.attention.qkv"] = source(f"{following}.qkv", rows=rows)
            found[f"{path}.attention.out"] = source(f"{following}.proj_out")
        return found

    def layer(path: str, name: str, at, convolution: str) -> dict[str, Source]:
        if isinstance(at, Resampling):
            return {f"{path}.conv": source(f"{name}.{convolution}")}
        return block(path, name, at, "")

    sources = {".noise.first": source("time_embed.0"), ".noise.second": source("time_embed.2")}
    sources |= {
        ".norm": source("out.0"),
        ".out": source("out.2"),
        ".encoder_levels[0].enter": source("input_blocks.0.0"),
    }
    stride = network.num_blocks + 1
    for i, level in enumerate(network.encoder_levels):
        at = f".encoder_levels[{i}]"
        if i > 0:
            sources |= layer(f"{at}.enter", f"input_blocks.{i * stride}.0", level.enter, "op")
        for j, inner in enumerate(level.blocks):
            theirs = f"input_blocks.{i * stride + 1 + j}"
            sources |= block(f"{at}.blocks[{j}]", f"{theirs}.0", inner, f"{theirs}.1")
    middle = network.decoder_levels[0].enter
    last = 2 if middle[0].attention is not None else 1
    sources |= block(".decoder_levels[0].enter[0]", "middle_block.0", middle[0], "middle_block.1")
    sources |= block(".decoder_levels[0].enter[1]", f"middle_block.{last}", middle[1], "")
    for i, level in enumerate(network.decoder_levels):
        at = f".decoder_levels[{i}]"
        if i > 0:  # at the end of the level before, after its attention
            place = 1 if network.decoder_levels[i - 1].blocks[-1].attention is None else 2
            sources |= layer(f"{at}.enter[0]", f"output_blocks.{i * stride - 1}.{place}", level.enter[0], "conv")
        for j, inner in enumerate(level.blocks):
            theirs = f"output_blocks.{i * stride + j}"
            sources |= block(f"{at}.blocks[{j}]", f"{theirs}.0", inner, f"{theirs}.1")
    return sources
