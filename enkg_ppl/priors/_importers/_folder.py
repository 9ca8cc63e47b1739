"""Where a folder of diffusers keeps its network: which sub-folder, and which files of several."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np

from enkg_ppl.priors._importers._read import is_averaged, read_tensors
from enkg_ppl.priors._importers._schedulers import read_json

NETWORK = "UNet2DModel"
STEM = "diffusion_pytorch_model"
# One network may be there in several kinds of files, the first of these is read. An index lists the files of a network
# that is cut in pieces.
KINDS = ("safetensors index", "safetensors", "bin index", "bin")
# Precisions that a variant's name tells, the finest first; the name of the full one is empty.
PRECISIONS = ("", "fp32", "fp16", "bf16")
# What a pipeline may hold beside its network without changing what the network makes.
HARMLESS = ("scheduler", "safety_checker", "feature_extractor")


def network_folder(folder: Path, subfolder: str | None) -> Path:
    """The folder with the network's ``config.json``: `folder` itself or one below it, an averaged one (EMA) first.

    Raises `FileNotFoundError` where there is none, `ValueError` where several could be meant, and for the pipeline of a
    network that does not make the events themselves.
    """
    if subfolder is not None:
        found = folder / subfolder
        if not (found / "config.json").is_file():
            raise FileNotFoundError(
                f"there is no {found / 'config.json'}: the networks in {folder} are {', '.join(_names(folder))}"
            )
        _refuse_other_parts(folder, found)
        return found
    if (folder / "model_index.json").is_file() or not (folder / "config.json").is_file():
        names = _names(folder)
    else:
        names = [".", *(name for name in _names(folder) if is_averaged(name))]
    averaged = [name for name in names if is_averaged(name)]
    chosen = averaged or [name for name in names if name == "unet"] or names
    if len(chosen) > 1:
        raise ValueError(f"{folder} holds several networks, {', '.join(chosen)}: choose one with subfolder=")
    found = folder / chosen[0] if chosen else folder
    if not (found / "config.json").is_file():
        return found  # whoever reads it says so
    for place in {folder, found.parent}:
        _refuse_other_parts(place, found)
    return found


def _names(folder: Path) -> list[str]:
    """Sub-folders with a network, those that say so and those that are called so."""
    return [
        path.name
        for path in (sorted(folder.iterdir()) if folder.is_dir() else [])
        if (path / "config.json").is_file()
        and (_class_name(path / "config.json") == NETWORK or path.name.startswith("unet"))
    ]


def _class_name(path: Path) -> str | None:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError):
        return None
    return content.get("_class_name") if isinstance(content, dict) else None


def _refuse_other_parts(pipeline: Path, network: Path) -> None:
    """Refuse the network of a pipeline with further parts: it makes a decoder's latents, or needs a text or image."""
    others = [
        f"{name} ({kind})"
        for name, kind in _parts(pipeline, network).items()
        if name not in HARMLESS and kind != NETWORK and name != network.name
    ]
    if others:
        raise ValueError(
            f"{pipeline} is a pipeline with {' and '.join(others)} beside the network, which therefore makes latents "
            "or needs a condition, and is no prior of images: only pipelines of a unet and a scheduler can be "
            f"imported; to take the latents themselves for the events, copy {network.name} and scheduler to a folder "
            "of their own"
        )


def _parts(pipeline: Path, network: Path) -> dict[str, str]:
    """Names and classes of what a pipeline's index lists or, where there is none, of what lies in its folder."""
    if (pipeline / "model_index.json").is_file():
        index = read_json(pipeline / "model_index.json", "pipeline")
        return {
            name: str(value[-1])
            for name, value in index.items()
            if not name.startswith("_") and isinstance(value, list) and any(value)
        }
    if network.parent == pipeline and not network.name.startswith("unet"):
        return {}  # a network on its own among other things
    return {
        path.name: _class_name(path / "config.json") or "of no class that is told"
        for path in sorted(pipeline.iterdir())
        if any((path / name).is_file() for name in ("config.json", "scheduler_config.json"))
    }


# ----------------------------------------------------------------------------------------------------
# Files
# ----------------------------------------------------------------------------------------------------


def read_network(folder: Path, variant: str | None) -> tuple[dict[str, np.ndarray], Path]:
    """The tensors of the network in `folder`, and the file that they (or their index) come from.

    `variant`: such as "fp16" of ``diffusion_pytorch_model.fp16.safetensors``; None for an averaged one ("ema"), else
    the one without a name, else the finest precision that is there.
    """
    found = _weight_files(folder)
    if not found:
        raise FileNotFoundError(_nothing(folder))
    if variant is None:
        chosen = _preferred(found, folder)
    elif variant in found:
        chosen = variant
    else:
        raise FileNotFoundError(f"there is no variant {variant!r} in {folder}: it has {_variants(found)}")
    kinds = found[chosen]
    kind = next(kind for kind in KINDS if kind in kinds)
    path = kinds[kind]
    return (_read_pieces(path) if kind.endswith("index") else read_tensors(path)), path


def _weight_files(folder: Path) -> dict[str, dict[str, Path]]:
    """Files by variant and kind. The variant stands before the last ending, or before the format's."""
    found: dict[str, dict[str, Path]] = {}
    for path in sorted(folder.glob(f"{STEM}.*")):
        words = path.name.removeprefix(f"{STEM}.").split(".")
        if re.search(r"-\d{5}-of-\d{5}$", words[0]) or not {"safetensors", "bin"} & set(words):
            continue
        is_index = "index" in words and words[-1] == "json"
        if not is_index and words[-1] not in ("safetensors", "bin"):
            continue
        kind = ("safetensors" if "safetensors" in words else "bin") + (" index" if is_index else "")
        variant = ".".join(w for w in words if w not in ("safetensors", "bin", "index", "json"))
        found.setdefault(variant, {})[kind] = path
    return found


def _preferred(found: dict[str, dict[str, Path]], folder: Path) -> str:
    averaged = [name for name in found if is_averaged(name)]
    candidates = averaged or list(found)
    for precision in PRECISIONS:
        for name in candidates:
            words = [w for w in re.split(r"[._-]", name) if w and w != "ema"]
            if words == ([precision] if precision else []):
                return name
    if len(candidates) > 1:
        raise ValueError(f"{folder} has {_variants(found)}: choose one with variant=")
    return candidates[0]


def _variants(found) -> str:
    return "the variants " + ", ".join(repr(name) if name else "'' (without a name)" for name in sorted(found))


def _nothing(folder: Path) -> str:
    pieces = sorted(path.name for path in folder.glob(f"{STEM}*-of-*"))
    if pieces:
        return (
            f"there is no {STEM}.safetensors.index.json in {folder}, which says which tensor is in which of the pieces "
            f"such as {pieces[0]}: fetch it too"
        )
    names = ", ".join(sorted(path.name for path in folder.iterdir() if path.is_file())[:6])
    return (
        f"there is no {STEM}.safetensors (or .bin) in {folder}, only {names}: save the model with save_pretrained, or "
        "fetch that file too"
    )


def _read_pieces(index: Path) -> dict[str, np.ndarray]:
    """The tensors that an index of pieces lists, each from the file that it names."""
    places = read_json(index, "network in pieces").get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) for name in places.values()) or not places:
        raise ValueError(f"{index} should list under weight_map which file holds which tensor: fetch it again")
    names = sorted(set(places.values()))
    outside = [name for name in names if Path(name).name != name]
    if outside:
        raise ValueError(f"{index} names {outside[0]}, a file outside its folder: pieces lie beside their index")
    absent = [name for name in names if not (index.parent / name).is_file()]
    if absent:
        raise FileNotFoundError(f"there is no {index.parent / absent[0]}, which {index.name} lists: fetch it too")
    tensors: dict[str, np.ndarray] = {}
    for name in names:
        piece = read_tensors(index.parent / name)
        tensors |= {key: value for key, value in piece.items() if places.get(key) == name}
    lost = sorted(set(places) - set(tensors))
    if lost:
        raise ValueError(f"{index.parent / places[lost[0]]} has no tensor {lost[0]}, which {index.name} says it holds")
    return tensors
