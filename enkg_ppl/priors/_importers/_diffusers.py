"""Folders of Hugging Face diffusers with a `UNet2DModel` and its scheduler."""

from __future__ import annotations

import re
from pathlib import Path

from enkg_ppl.networks._adm_unet import ADMUNet
from enkg_ppl.networks._blocks import Resampling
from enkg_ppl.priors._importers._fill import Source, fill, source
from enkg_ppl.priors._importers._folder import network_folder, read_network
from enkg_ppl.priors._importers._prior import as_prior, check_preconditioning
from enkg_ppl.priors._importers._schedulers import read_json, refuse_unknown, scheduler_preconditioning
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import Preconditioning

ENTRY_SD = 0.5  # of images in [-1, 1]
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
# Settings that are read below; that are of the training alone; and what an average of networks (EMA) adds to them.
READ = {
    *("sample_size", "in_channels", "out_channels", "center_input_sample", "time_embedding_dim", "freq_shift"),
    *("flip_sin_to_cos", "down_block_types", "up_block_types", "block_out_channels", "layers_per_block"),
    *("mid_block_scale_factor", "downsample_padding", "attention_head_dim", "norm_num_groups", "norm_eps"),
    *("attn_norm_num_groups", "resnet_time_scale_shift", "add_attention"),
}
TRAINING = {"dropout", "num_train_timesteps"}  # the second for time_embedding_type="learned" alone
AVERAGE = {"decay", "min_decay", "optimization_step", "update_after_step", "use_ema_warmup", "inv_gamma", "power"}
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
    subfolder: str | None = None,
    variant: str | None = None,
    **options,
) -> NetworkPrior:
    """A prior from a folder that diffusers saved: a `UNet2DModel`, or a pipeline with `unet/` and `scheduler/`.

    Supported are down and up blocks with and without attention, group normalisation and positional time embedding: the
    DDPM kind. Another configuration is refused with an error that names the setting, and so is a pipeline with further
    parts, such as the decoder of a latent diffusion. Warns where the scheduler is one of distilled networks.

    Args:
        folder: holds ``config.json`` and the weights, and ``scheduler/scheduler_config.json`` or
            ``scheduler_config.json``; or is the folder of a pipeline, or of a training checkpoint. Weights are
            ``diffusion_pytorch_model.safetensors`` (or ``.bin``, which needs the extra "torch"), whole or in pieces
            with an index.
        preconditioning: by default that of the scheduler's configuration, the defaults of its class included: the betas
            of any discrete variance-preserving scheduler of diffusers 0.42 with "epsilon", "v_prediction" or "sample"
            as prediction, and the noise levels of its EDM schedulers.
        shape: of one event, where the configuration has no `sample_size`.
        subfolder: of the network, such as "unet"; by default an averaged one (EMA) such as ``unet_ema/``, else
            ``unet/``, else `folder` itself. The choice is in ``record["weights"]`` of the prior.
        variant: of its files, such as "fp16"; by default an averaged one, else the full precision, else the highest
            precision available. The choice is in ``record["weights"]`` too.
        **options: of `NetworkPrior`; `location` and `scale` as for `import_edm`. The scheduler's own steps between the
            noise levels, clipping and thresholding belong to its sampler and are not imported.

    Raises:
        FileNotFoundError: where a file is missing.
        ValueError: for a configuration or weights that are not supported.
    """
    if preconditioning is not None:
        check_preconditioning("import_diffusers", preconditioning)
    folder = Path(folder)
    unet = network_folder(folder, subfolder)
    config = read_json(unet / "config.json", "UNet2DModel")
    network_config, settings = _network_config(config, unet / "config.json", shape)
    if preconditioning is None:
        preconditioning = _preconditioning(_scheduler_file(folder, unet))
    tensors, weights = read_network(unet, variant)
    tensors = {_renamed(key): value for key, value in tensors.items()}

    def locate(network):
        return _sources(network, settings["attended"])

    network = fill(ADMUNet, network_config, locate, tensors, (), str(weights))
    taken = weights.relative_to(folder).as_posix()
    return as_prior(network, preconditioning, folder.resolve(), ENTRY_SD, options, weights=taken)


_preconditioning = scheduler_preconditioning


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
    refuse_unknown(
        config,
        {*FIXED, *READ, *TRAINING, *AVERAGE},
        path,
        "take the entry out of the file where the network is the same without it",
    )
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
    if groups is None:
        raise ValueError(f"{path} has norm_num_groups=None; a network with group normalisation can be imported")
    # As UNetMidBlock2D reads it: its attention is normalised with groups of its own, or not at all.
    shift = config.get("resnet_time_scale_shift", "default")
    if shift not in ("default", "scale_shift"):
        raise ValueError(
            f"{path} has resnet_time_scale_shift={shift!r}; only 'default' and 'scale_shift' can be imported"
        )
    scale_shift = shift == "scale_shift"
    middle_groups = config.get("attn_norm_num_groups") or (None if scale_shift else groups)
    if middle_groups not in (None, groups):
        raise ValueError(f"{path} has attn_norm_num_groups={middle_groups}; only norm_num_groups={groups} is supported")
    if shape is None:
        size = config.get("sample_size")
        if size is None:
            raise ValueError(f"{path} has no sample_size: give shape=(channels, height, width)")
        rows, columns = size if isinstance(size, list) else (size, size)
        shape = (config.get("in_channels", 3), rows, columns)
    channels_in, channels_out = config.get("in_channels", 3), config.get("out_channels", 3)
    if channels_out < channels_in:
        raise ValueError(
            f"{path} has in_channels={channels_in} and out_channels={channels_out}: a network that takes another image "
            "beside the noisy one (superresolution, inpainting) is no prior and cannot be imported"
        )
    # Twice as many: a predicted variance (variance_type="learned"), of which a denoiser has no need.
    if channels_in != shape[0] or channels_out not in (channels_in, 2 * channels_in):
        raise ValueError(
            f"{path} has {channels_in} channels in and {channels_out} out, which does not fit events of shape "
            f"{tuple(shape)}"
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
