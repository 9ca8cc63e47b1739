"""Tensors from a checkpoint, by name, as NumPy arrays. No code in a file is ever run."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Where training codes keep the weights, the averaged ones first.
CONTAINERS = ("ema", "ema_model", "state_dict", "model", "net")


def read_tensors(source: str | Path | Mapping[str, Any], weights: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of `source`: a ``.safetensors`` file, a file of ``torch.save``, or a mapping from names to tensors.

    `weights`: the entry of the checkpoint that holds the network, such as "ema"; by default the first there is of
    `CONTAINERS`, or the checkpoint itself where its values are tensors.

    Files of ``torch.save`` are read with ``weights_only=True``, which needs PyTorch (the extra "torch"); what holds
    anything but tensors and plain containers is refused. Half-precision tensors become 32-bit ones.

    Raises `FileNotFoundError` where there is no file, `ValueError` where its content is no checkpoint.
    """
    if isinstance(source, Mapping):
        content, name = source, "the mapping"
    else:
        path = Path(source)
        if not path.is_file():
            raise FileNotFoundError(f"there is no file {path}: give the path of the checkpoint")
        content, name = (_safetensors(path) if path.suffix == ".safetensors" else _torch(path)), str(path)
    content = _entry(content, weights, name)
    tensors = {key: _array(value) for key, value in content.items()}
    wrong = sorted(str(key) for key, value in tensors.items() if value is None or not isinstance(key, str))
    if wrong or not tensors:
        found = f"{len(wrong)} other entries, such as {wrong[0]!r}" if wrong else "no entry at all"
        raise ValueError(
            f"{name} should hold a state dict, names with tensors, and holds {found}: "
            "save network.state_dict(), or say with `weights` which entry holds it"
        )
    return tensors  # type: ignore


def _entry(content: Any, weights: str | None, name: str) -> Mapping:
    if not isinstance(content, Mapping):
        raise ValueError(
            f"{name} should hold a state dict, names with tensors, and holds a {type(content).__name__}: "
            "save network.state_dict()"
        )
    nested = [str(key) for key, value in content.items() if isinstance(value, Mapping)]
    if weights is None:
        weights = next((key for key in CONTAINERS if key in nested), None)
        if weights is None:
            return content
    if weights not in nested:
        raise ValueError(f"{name} has no entry {weights!r} with tensors; it has {nested}: choose `weights` from these")
    return content[weights]


def _array(value: Any) -> np.ndarray | None:
    """A copy of a tensor or array, None for anything else."""
    if hasattr(value, "detach"):  # a PyTorch tensor, without importing PyTorch
        value = value.detach().cpu()
        if not value.is_floating_point():
            return value.numpy()
        return value.double().numpy() if value.element_size() == 8 else value.float().numpy()
    if not hasattr(value, "dtype") or not hasattr(value, "shape"):
        return None
    value = np.asarray(value)
    if value.dtype.kind not in "biufV":
        return None
    return value.astype(np.float32) if value.dtype.itemsize < 4 and value.dtype.kind not in "biu" else value


def _safetensors(path: Path) -> dict[str, Any]:
    from safetensors import SafetensorError
    from safetensors.flax import load_file  # JAX arrays: NumPy has no bfloat16

    try:
        return load_file(str(path))
    except (SafetensorError, ValueError, KeyError) as error:
        raise ValueError(f"{path} is no safetensors file, or a damaged one ({error}): fetch it again") from error


def _torch(path: Path) -> Any:
    try:
        import torch  # pyright: ignore[reportMissingImports]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"reading {path.name} needs PyTorch: pip install 'enkg_ppl[torch]', or convert the file to safetensors"
        ) from error
    if not zipfile.is_zipfile(path):
        # The format before PyTorch 1.6 is a bare pickle; so are the network pickles of research code.
        hint = "it is no zip archive, which torch.save has written since 2020"
    else:
        hint = None
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError ... by kind of damage
        why = hint or str(error).splitlines()[0][:120]
        raise ValueError(
            f"{path} cannot be read as plain tensors ({why}). It is damaged, or holds Python objects that would have "
            "to be run: where you trust it, load it yourself and pass its state_dict()"
        ) from error
