"""Folders of Hugging Face diffusers with a `UNet2DModel` and its scheduler."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl._import._fill import Source, fill, source
from enkg_ppl._import._prior import as_prior, check_preconditioning
from enkg_ppl._import._read import read_tensors
from enkg_ppl._network._adm_unet import ADMUNet
from enkg_ppl._network._blocks import Resampling
from enkg_ppl._prior._network import NetworkPrior
from enkg_ppl._prior._preconditioning import Discrete, Preconditioning

ENTRY_SD = 0.5  # of images in [-1, 1]
WEIGHTS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
PREDICTIONS: dict[str, Any] = {"epsilon": "noise", "v_prediction": "v", "sample": "x0"}
# Their betas are those of a discrete variance-preserving process, whatever their way of sampling.
SCHEDULERS = (
    "DDPMScheduler",
    "DDIMScheduler",
    "PNDMScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
)
# Settings of UNet2DModel with one supported value each: the value that a configuration means by leaving it out.
FIXED = {
    "time_embedding_type": "positional",
    "mid_block_type": "UNetMidBlock2D",
    "downsample_type": "conv",
    "upsample_type": "conv",
    "act_fn": "silu",
    "class_embed_type": None,
    "num_class_embeds": None,
}
SAME_AS_FIXED = {("act_fn", "swish")}
# Names inside a residual block, ours and theirs.
BLOCK = {
    "norm0": "norm1",
    "conv0": "conv1",
    "affine": "time_emb_proj",
    "norm1": "norm2",
    "conv1": "conv2",
    "skip": "conv_shortcut",
}
# Attention before diffusers 0.12, and since.
RENAMED = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def import_diffusers(
    folder: str | Path,
    *,
    preconditioning: Preconditioning | None = None,
    shape: tuple[int, int, int] | None = None,
    **options,
) -> NetworkPrior:
    """A prior from a folder that diffusers saved: a `UNet2DModel`, or a pipeline with `unet/` and `scheduler/`.

    - `folder`: holds ``config.json`` and ``diffusion_pytorch_model.safetensors`` (or ``.bin``, which needs the extra
      "torch"), and ``scheduler/scheduler_config.json`` or ``scheduler_config.json``; or is a pipeline's.
    - `preconditioning`: by default what the scheduler's configuration says: the schedules "linear", "scaled_linear"
      and "squaredcos_cap_v2" or trained betas, with "epsilon", "v_prediction" or "sample" as prediction.
    - `shape`: of one event, where the configuration has no `sample_size`.
    - `options`: of `NetworkPrior`; `location` and `scale` as for `import_edm`. The scheduler's own steps between the
      noise levels, clipping and thresholding belong to its sampler and are not imported.

    Supported are down and up blocks with and without attention, group normalisation and positional time embedding:
    the DDPM kind. Another configuration is refused in a sentence that names the setting.

    Raises `FileNotFoundError` and `ValueError`.
    """
    if preconditioning is not None:
        check_preconditioning("import_diffusers", preconditioning)
    folder = Path(folder)
    unet = folder / "unet" if (folder / "unet" / "config.json").is_file() else folder
    config = _json(unet / "config.json", "UNet2DModel")
    network_config, settings = _network_config(config, unet / "config.json", shape)
    if preconditioning is None:
        preconditioning = _preconditioning(_scheduler_file(folder, unet))
    weights = next((unet / name for name in WEIGHTS if (unet / name).is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"there is no {WEIGHTS[0]} in {unet}: save the model with save_pretrained")
    tensors = {_renamed(key): value for key, value in read_tensors(weights).items()}

    def locate(network):
        return _sources(network, settings["attended"])

    network = fill(ADMUNet, network_config, locate, tensors, (), str(weights))
    return as_prior(network, preconditioning, folder.resolve(), ENTRY_SD, options)


def _json(path: Path, what: str) -> dict:
    if not path.is_file():
        raise FileNotFoundError(f"there is no {path}: give the folder that save_pretrained of a {what} wrote")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON file ({error}): fetch it again") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} should hold the configuration of a {what} and holds a {type(content).__name__}")
    return content


def _scheduler_file(folder: Path, unet: Path) -> Path:
    for place in (folder / "scheduler", folder, unet.parent / "scheduler"):
        if (place / "scheduler_config.json").is_file():
            return place / "scheduler_config.json"
    raise FileNotFoundError(
        f"there is no scheduler/scheduler_config.json in {folder}: save the scheduler there, or say what the network "
        "predicts with preconditioning=Discrete(alphas_cumprod, prediction)"
    )


def _network_config(config: dict, path: Path, shape) -> tuple[dict, dict]:
    if config.get("_class_name", "UNet2DModel") != "UNet2DModel":
        raise ValueError(f"{path} is the configuration of a {config['_class_name']}; only UNet2DModel can be imported")
    for name, value in FIXED.items():
        given = config.get(name, value)
        if given != value and (name, given) not in SAME_AS_FIXED:
            raise ValueError(f"{path} has {name}={given!r}; only {value!r} can be imported")
    down = config.get("down_block_types", ["DownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D", "AttnDownBlock2D"])
    up = config.get("up_block_types", ["AttnUpBlock2D", "AttnUpBlock2D", "AttnUpBlock2D", "UpBlock2D"])
    for name, kinds, allowed in (
        ("down_block_types", down, ("DownBlock2D", "AttnDownBlock2D")),
        ("up_block_types", up, ("UpBlock2D", "AttnUpBlock2D")),
    ):
        other = [kind for kind in kinds if kind not in allowed]
        if other:
            raise ValueError(f"{path} has {name} with {other[0]}; only {' and '.join(allowed)} can be imported")
    channels = config.get("block_out_channels", [224, 448, 672, 896])
    if not len(down) == len(up) == len(channels):
        raise ValueError(
            f"{path} should have as many down_block_types and up_block_types as block_out_channels; got {len(down)}, "
            f"{len(up)} and {len(channels)}"
        )
    if config.get("freq_shift", 0) not in (0, 1):
        raise ValueError(f"{path} has freq_shift={config['freq_shift']}; only 0 and 1 can be imported")
    if config.get("downsample_padding", 1) not in (0, 1):
        raise ValueError(f"{path} has downsample_padding={config['downsample_padding']}; only 0 and 1 can be imported")
    groups = config.get("norm_num_groups", 32)
    # As UNetMidBlock2D reads it: its attention is normalised with groups of its own, or not at all.
    scale_shift = config.get("resnet_time_scale_shift", "default") == "scale_shift"
    middle_groups = config.get("attn_norm_num_groups") or (None if scale_shift else groups)
    if middle_groups not in (None, groups):
        raise ValueError(f"{path} has attn_norm_num_groups={middle_groups}; only norm_num_groups={groups} is supported")
    if shape is None:
        size = config.get("sample_size")
        if size is None:
            raise ValueError(f"{path} has no sample_size: give shape=(channels, height, width)")
        rows, columns = size if isinstance(size, list) else (size, size)
        shape = (config.get("in_channels", 3), rows, columns)
    if config.get("in_channels", 3) != shape[0] or config.get("out_channels", 3) < shape[0]:
        raise ValueError(
            f"{path} has {config.get('in_channels', 3)} channels in and {config.get('out_channels', 3)} out, which "
            f"does not fit events of shape {tuple(shape)}"
        )
    side = min(shape[1:])
    attended = {
        "down": ["Attn" in kind for kind in down],
        "up": ["Attn" in kind for kind in up],
    }
    return {
        "shape": tuple(shape),
        "channels": tuple(channels),
        "num_blocks": config.get("layers_per_block", 2),
        "attention_resolutions": tuple(side >> i for i, yes in enumerate(attended["down"]) if yes),
        "decoder_attention_resolutions": tuple(side >> i for i, yes in enumerate(reversed(attended["up"])) if yes),
        "head_channels": config.get("attention_head_dim", 8),
        "out_channels": config.get("out_channels", 3),
        "embedding_size": config.get("time_embedding_dim") or 4 * channels[0],
        "endpoint": config.get("freq_shift", 0) == 1,
        "sine_first": not config.get("flip_sin_to_cos", True),
        "scale_shift": scale_shift,
        "resample": "conv",
        "pad_ahead": config.get("downsample_padding", 1) == 0,
        "groups": groups,
        "eps": config.get("norm_eps", 1e-5),
        "middle_attention": config.get("add_attention", True),
        "middle_norm": middle_groups is not None,
        "middle_scale": 1 / config.get("mid_block_scale_factor", 1),
        "affine_input": (2.0, -1.0) if config.get("center_input_sample", False) else (1.0, 0.0),
    }, {"attended": attended}


def _preconditioning(path: Path) -> Discrete:
    config = _json(path, "scheduler")
    kind = config.get("_class_name", "DDPMScheduler")
    if kind not in SCHEDULERS:
        raise ValueError(
            f"{path} is the configuration of a {kind}, which is no variance-preserving schedule of discrete steps: "
            "give the preconditioning of the training"
        )
    prediction = config.get("prediction_type", "epsilon")
    if prediction not in PREDICTIONS:
        raise ValueError(f"{path} has prediction_type={prediction!r}; one of {sorted(PREDICTIONS)} can be imported")
    if config.get("rescale_betas_zero_snr", False):
        raise ValueError(
            f"{path} has rescale_betas_zero_snr, whose last noise level is infinite: give "
            "preconditioning=Discrete(alphas_cumprod, prediction) without that step"
        )
    return Discrete(np.cumprod(1 - _betas(config, path)), PREDICTIONS[prediction])


def _betas(config: dict, path: Path) -> np.ndarray:
    if config.get("trained_betas") is not None:
        return np.asarray(config["trained_betas"], float)
    steps = config.get("num_train_timesteps", 1000)
    first, last = config.get("beta_start", 1e-4), config.get("beta_end", 0.02)
    schedule = config.get("beta_schedule", "linear")
    if schedule == "linear":
        return np.linspace(first, last, steps)
    if schedule == "scaled_linear":
        return np.linspace(first**0.5, last**0.5, steps) ** 2
    if schedule == "squaredcos_cap_v2":  # Nichol & Dhariwal 2021 (arXiv 2102.09672), eq. 17
        alpha_bar = np.cos((np.arange(steps + 1) / steps + 0.008) / 1.008 * np.pi / 2) ** 2
        return np.minimum(1 - alpha_bar[1:] / alpha_bar[:-1], 0.999)
    raise ValueError(
        f"{path} has beta_schedule={schedule!r}; 'linear', 'scaled_linear' and 'squaredcos_cap_v2' can be imported"
    )


def _renamed(key: str) -> str:
    match = re.match(r"(.*\.attentions\.\d+)\.(query|key|value|proj_attn)\.(weight|bias)$", key)
    return f"{match[1]}.{RENAMED[match[2]]}.{match[3]}" if match else key


def _sources(network, attended: dict[str, list[bool]]) -> dict[str, Source]:
    def block(path: str, name: str, number: int, attention: bool) -> dict[str, Source]:
        found = {f"{path}.{ours}": source(f"{name}.resnets.{number}.{theirs}") for ours, theirs in BLOCK.items()}
        if attention:
            theirs = f"{name}.attentions.{number}"
            found[f"{path}.attention.norm"] = source(f"{theirs}.group_norm")
            found[f"{path}.attention.qkv"] = source(*(f"{theirs}.to_{part}" for part in "qkv"))
            found[f"{path}.attention.out"] = source(f"{theirs}.to_out.0")
        return found

    sources = {
        ".noise.first": source("time_embedding.linear_1"),
        ".noise.second": source("time_embedding.linear_2"),
        ".encoder_levels[0].enter": source("conv_in"),
        ".norm": source("conv_norm_out"),
        ".out": source("conv_out"),
    }
    sources |= block(".decoder_levels[0].enter[0]", "mid_block", 0, network.middle_attention)
    sources |= block(".decoder_levels[0].enter[1]", "mid_block", 1, False)
    for i, level in enumerate(network.encoder_levels):
        if isinstance(level.enter, Resampling):
            sources[f".encoder_levels[{i}].enter.conv"] = source(f"down_blocks.{i - 1}.downsamplers.0.conv")
        for j in range(len(level.blocks)):
            sources |= block(f".encoder_levels[{i}].blocks[{j}]", f"down_blocks.{i}", j, attended["down"][i])
    for i, level in enumerate(network.decoder_levels):
        if i > 0:
            sources[f".decoder_levels[{i}].enter[0].conv"] = source(f"up_blocks.{i - 1}.upsamplers.0.conv")
        for j in range(len(level.blocks)):
            sources |= block(f".decoder_levels[{i}].blocks[{j}]", f"up_blocks.{i}", j, attended["up"][i])
    return sources
