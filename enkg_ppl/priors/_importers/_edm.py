"""Checkpoints of the EDM code's U-Nets (Karras et al. 2022): SongUNet and DhariwalUNet."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl.networks._adm_unet import ADMUNet
from enkg_ppl.networks._song_unet import SongUNet
from enkg_ppl.priors._importers._fill import Source, fill, interleaved_heads, source
from enkg_ppl.priors._importers._prior import as_prior, check_preconditioning, refuse_labels
from enkg_ppl.priors._importers._read import is_averaged, read_tensors
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import Preconditioning

ANCHOR = "map_layer0.weight"
HEAD_CHANNELS = 64  # of DhariwalUNet, where the code leaves no choice
ENTRY_SD = 0.5  # of the data, as the EDM code takes it (sigma_data)
# Names inside a residual block, ours and theirs.
BLOCK = {
    "norm0": "norm0",
    "conv0": "conv0",
    "affine": "affine",
    "norm1": "norm1",
    "conv1": "conv1",
    "skip": "skip",
    "attention.norm": "norm2",
    "attention.out": "proj",
}


def import_edm(
    checkpoint: str | Path | Mapping[str, Any],
    preconditioning: Preconditioning,
    *,
    weights: str | None = None,
    **options,
) -> NetworkPrior:
    """A prior from a checkpoint of the EDM code's networks, `SongUNet` (DDPM++, NCSN++) and `DhariwalUNet` (ADM).

    The architecture is read from the names and shapes. Every tensor is used once, except the weights of augmentation
    labels, which are zero in sampling. Class-conditional networks are refused.

    Args:
        checkpoint: a file of ``torch.save`` (read with ``weights_only=True``; needs the extra "torch"), a
            ``.safetensors`` file, or a mapping from names to tensors. It holds a state dict or, as in the checkpoints
            of EnKG's authors, a dictionary with one: ``{"ema": state_dict, ...}``.
        preconditioning: of the training, which is not in the file. The checkpoints of EnKG's authors need `EDM()` for
            Navier-Stokes and `VP()` for black holes and faces.
        weights: entry of the checkpoint's dictionary that has the state dict.
        **options: of `NetworkPrior`. `location` is 0 by default. The default `scale` is a guess for data with entries
            of standard deviation 0.5: pass the real one (the square root of the largest eigenvalue of the data's
            covariance) where you have data.

    Raises:
        ValueError: for a file that is no such checkpoint; the message gives the reason.
    """
    check_preconditioning("import_edm", preconditioning)
    name = "the checkpoint" if isinstance(checkpoint, Mapping) else str(checkpoint)
    tensors = below_prefix(read_tensors(checkpoint, weights), ANCHOR, name, "import_edm", "SongUNet or DhariwalUNet")
    refuse_labels(tensors.get("map_label.weight"), 1, name)
    if "out_conv.weight" in tensors:
        network_class, config, locate = ADMUNet, _dhariwal_config(tensors, name), _dhariwal_sources
    else:
        network_class, config, locate = SongUNet, _song_config(tensors, name), _song_sources
    taps = np.asarray(config.get("resample_filter", (1, 1)), float)
    kernel = np.outer(taps, taps) / taps.sum() ** 2
    filters = [key for key in tensors if key.endswith(".resample_filter")]
    odd = [key for key in filters if tensors[key].shape[2:] != kernel.shape or not np.allclose(tensors[key], kernel)]
    if odd:
        raise ValueError(f"{name} should have one resample_filter throughout; {odd[0]} differs")
    ignored = [*filters, "map_augment.weight"]
    network = fill(network_class, config, locate, tensors, ignored, name)
    return as_prior(network, preconditioning, checkpoint, ENTRY_SD, options)


def below_prefix(
    tensors: Mapping[str, np.ndarray], anchor: str, name: str, function: str, networks: str
) -> dict[str, np.ndarray]:
    """The tensors without what wrappers ("module.", "model.") put before the names of the network.

    `u`, the steps of iDDPM beside the network in its preconditioning, is dropped.
    """
    prefixes = [key[: -len(anchor)] for key in tensors if key == anchor or key.endswith("." + anchor)]
    averaged = [prefix for prefix in prefixes if is_averaged(prefix)]
    if len(prefixes) > 1 and len(averaged) == 1:  # the network beside its average
        others = tuple(prefix for prefix in prefixes if prefix not in averaged and prefix)
        if len(others) == len(prefixes) - 1:
            tensors = {key: value for key, value in tensors.items() if not key.startswith(others)}
            prefixes = averaged
    if len(prefixes) > 1:
        raise ValueError(
            f"{name} holds {len(prefixes)} networks, below {', '.join(map(repr, prefixes))}: pass the state dict of one"
        )
    if not prefixes:
        raise ValueError(
            f"{name} is no {networks}: {function} looks for one tensor {anchor} and finds none (its first "
            f"names are {', '.join(sorted(tensors)[:3])}); import_edm reads networks of the EDM code, import_adm "
            "those of guided diffusion, import_diffusers folders of diffusers"
        )
    prefix = prefixes[0]
    parent = re.sub(r"[^.]+\.$", "", prefix)
    left = {key: value for key, value in tensors.items() if not (prefix and key == parent + "u")}
    outside = sorted(key for key in left if not key.startswith(prefix))
    if outside:
        raise ValueError(
            f"{name} has tensors beside the network {prefix!r}, such as {outside[0]}: pass the network's state dict"
        )
    return {key[len(prefix) :]: value for key, value in left.items()}


def _sides(tensors, name: str) -> list[int]:
    """Resolutions of the levels, the highest first."""
    found = {int(m[1]) for m in (re.match(r"enc\.(\d+)x\1_(?:conv|down)\.", key) for key in tensors) if m}
    sides = sorted(found, reverse=True)
    if not sides or any(a != 2 * b for a, b in itertools.pairwise(sides)):
        raise ValueError(f"{name} should have levels enc.64x64_conv, enc.32x32_down and so on; its levels are {sides}")
    return sides


def _tensor(tensors, key: str, name: str) -> np.ndarray:
    if key not in tensors:
        raise ValueError(f"{name} has no tensor {key}, which its architecture is read from: is it complete?")
    return tensors[key]


def _blocks_of(tensors, side: int) -> int:
    return len({m[1] for m in (re.match(rf"enc\.{side}x{side}_block(\d+)\.", key) for key in tensors) if m})


def _common(tensors, name: str) -> tuple[list[int], list[int], int, tuple[int, ...]]:
    """Sides, channels a level, blocks a level and attention of either network."""
    sides = _sides(tensors, name)
    num_blocks = _blocks_of(tensors, sides[0])
    if num_blocks < 1:
        raise ValueError(f"{name} has no tensors enc.{sides[0]}x{sides[0]}_block0: is it complete?")
    widths = [_tensor(tensors, f"enc.{r}x{r}_block0.conv1.weight", name).shape[0] for r in sides]
    attention = tuple(r for r in sides if f"enc.{r}x{r}_block0.qkv.weight" in tensors)
    return sides, widths, num_blocks, attention


def _song_config(tensors, name: str) -> dict:
    sides, widths, num_blocks, attention = _common(tensors, name)
    stem = _tensor(tensors, f"enc.{sides[0]}x{sides[0]}_conv.weight", name)
    width, channels = stem.shape[:2]
    if any(w % width for w in widths):
        raise ValueError(f"{name} should have channels that are multiples of {width}; a level has {widths}")
    filters = [value for key, value in tensors.items() if key.endswith(".resample_filter")]
    # The filter is an outer product normalised to sum 1: its column sums over the first are the taps up to scale.
    taps = (1.0, 1.0)
    if filters:
        sums = filters[0][0, 0].sum(axis=0)
        taps = tuple(float(v) for v in np.round(sums / sums[0], 4))
    has = {what: any(f"_aux_{what}." in key for key in tensors) for what in ("skip", "residual")}
    below = f"dec.{sides[-1]}x{sides[-1]}_aux_conv.weight"
    return {
        "shape": (channels, sides[0], sides[0]),
        "width": width,
        "multipliers": tuple(w // width for w in widths),
        "num_blocks": num_blocks,
        "attention_resolutions": attention,
        "noise_features": "fourier" if "map_noise.freqs" in tensors else "positional",
        "noise_multiplier": tensors[ANCHOR].shape[1] // width,
        "embedding_multiplier": tensors[ANCHOR].shape[0] // width,
        "encoder": "skip" if has["skip"] else "residual" if has["residual"] else "standard",
        "decoder": "skip" if len(sides) > 1 and below in tensors else "standard",
        "resample_filter": taps,
    }


def _dhariwal_config(tensors, name: str) -> dict:
    sides, widths, num_blocks, attention = _common(tensors, name)
    channels = _tensor(tensors, f"enc.{sides[0]}x{sides[0]}_conv.weight", name).shape[1]
    return {
        "shape": (channels, sides[0], sides[0]),
        "channels": tuple(widths),
        "num_blocks": num_blocks,
        "attention_resolutions": attention,
        "head_channels": HEAD_CHANNELS,
        "out_channels": tensors["out_conv.weight"].shape[0],
        "feature_size": tensors[ANCHOR].shape[1],
        "embedding_size": tensors[ANCHOR].shape[0],
        "min_group_channels": 4,
        # Where the lowest level is narrower than a head, the code leaves its attention out.
        "middle_attention": f"dec.{sides[-1]}x{sides[-1]}_in0.qkv.weight" in tensors,
    }


def _block_sources(path: str, name: str, block) -> dict[str, Source]:
    sources = {f"{path}.{ours}": source(f"{name}.{theirs}") for ours, theirs in BLOCK.items()}
    if block.attention is not None:
        sources[f"{path}.attention.qkv"] = source(f"{name}.qkv", rows=interleaved_heads(block.attention.heads))
    return sources


def _shared_sources(network) -> dict[str, Source]:
    """Layers that both networks name alike."""
    sources = {".noise.first": source("map_layer0"), ".noise.second": source("map_layer1")}
    side = network.shape[1]
    for i, level in enumerate(network.encoder_levels):
        at, theirs = f".encoder_levels[{i}]", f"enc.{side >> i}x{side >> i}"
        if i == 0:
            sources[at + ".enter"] = source(theirs + "_conv")
        else:
            sources |= _block_sources(at + ".enter", theirs + "_down", level.enter)
        for j, block in enumerate(level.blocks):
            sources |= _block_sources(f"{at}.blocks[{j}]", f"{theirs}_block{j}", block)
    lowest = len(network.decoder_levels) - 1
    for i, level in enumerate(network.decoder_levels):
        at, theirs = f".decoder_levels[{i}]", f"dec.{side >> (lowest - i)}x{side >> (lowest - i)}"
        enter = ("_in0", "_in1") if i == 0 else ("_up",)
        for j, (block, suffix) in enumerate(zip(level.enter, enter, strict=True)):
            sources |= _block_sources(f"{at}.enter[{j}]", theirs + suffix, block)
        for j, block in enumerate(level.blocks):
            sources |= _block_sources(f"{at}.blocks[{j}]", f"{theirs}_block{j}", block)
    return sources


def _dhariwal_sources(network) -> dict[str, Source]:
    return _shared_sources(network) | {".norm": source("out_norm"), ".out": source("out_conv")}


def _song_sources(network) -> dict[str, Source]:
    sources = _shared_sources(network)
    sources[".noise.features"] = source("map_noise.freqs", exact=True)
    side, lowest = network.shape[1], len(network.decoder_levels) - 1
    image = "_aux_skip" if network.encoder == "skip" else "_aux_residual"
    for i in range(lowest + 1):
        sources[f".encoder_levels[{i}].image"] = source(f"enc.{side >> i}x{side >> i}{image}")
        theirs = f"dec.{side >> (lowest - i)}x{side >> (lowest - i)}"
        sources[f".decoder_levels[{i}].norm"] = source(theirs + "_aux_norm")
        sources[f".decoder_levels[{i}].out"] = source(theirs + "_aux_conv")
    return sources
