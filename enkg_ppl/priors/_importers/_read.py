"""Tensors from a checkpoint, by name, as NumPy arrays. No code in a file is ever run."""

from __future__ import annotations

import pickletools
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

# Where training codes keep the weights that they did not average.
CONTAINERS = ("state_dict", "model", "net")
# What files of tensors consist of besides plain containers.
PLAIN = re.compile(
    r"torch(\._utils|\.storage|\.serialization|\._tensor|\.nn\.parameter|)\.\w+|collections\.OrderedDict"
)
SHOWN = 3  # names in a message


def is_averaged(name: str) -> bool:
    """Whether a name speaks of weights that were averaged over the training (EMA): "unet_ema", "ema_model"."""
    words = re.split(r"[^a-z0-9]+", name.lower())
    return "ema" in words and not {"non", "no", "not"} & set(words)


def read_tensors(source: str | Path | Mapping[str, Any], weights: str | None = None) -> dict[str, np.ndarray]:
    """The tensors of `source`: a ``.safetensors`` file, a file of ``torch.save``, or a mapping from names to tensors.

    `weights`: the entry of the checkpoint that holds the network, such as "ema"; by default the averaged one, else the
    one of `CONTAINERS`, or the checkpoint itself where its values are tensors.

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
    nested = {str(key): value for key, value in content.items() if isinstance(value, Mapping)}
    if weights is None:
        averaged = [key for key, value in nested.items() if is_averaged(key) and value]
        if len(averaged) > 1:
            raise ValueError(f"{name} holds several averaged networks, {averaged}: choose one with `weights`")
        plain = [key for key in CONTAINERS if key in nested and _has_tensors(nested[key])]
        if len(plain) > 1 and not averaged:
            raise ValueError(f"{name} holds several networks, {plain}: choose one with `weights`")
        if not averaged and not plain:
            return content
        weights = (averaged or plain)[0]
    if weights not in nested:
        raise ValueError(
            f"{name} has no entry {weights!r} with tensors; it has {list(nested)}: choose `weights` from these"
        )
    entry = nested[weights]
    within = [value for value in entry.values() if isinstance(value, Mapping) and _has_tensors(value)]
    if not _has_tensors(entry) and len(within) == 1:
        return within[0]
    if not _has_tensors(entry):
        others = [key for key, value in nested.items() if key != weights and _has_tensors(value)]
        raise ValueError(
            f"{name} has no tensors with names under {weights!r}, only {', '.join(map(str, list(entry)[:SHOWN]))}: "
            f"copy them into the network and save its state_dict(), or choose `weights` from {others}"
        )
    return entry


def _has_tensors(entry: Mapping) -> bool:
    return any(hasattr(value, "shape") for value in entry.values())


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
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of pickle protocols that it may not know
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # UnpicklingError, RuntimeError, EOFError, KeyError ... by kind of damage
        classes = pickled_classes(path)
        if classes:
            more = f" and {len(classes) - SHOWN} more" if len(classes) > SHOWN else ""
            raise ValueError(
                f"{path} cannot be read as plain tensors: it also holds objects of {', '.join(classes[:SHOWN])}{more}, "
                "for which code of their own would have to be run; where you trust the file, load it with "
                "torch.load(path, weights_only=False) and pass the state dict in it"
            ) from error
        raise ValueError(
            f"{path} cannot be read as plain tensors: it is damaged, or no file of torch.save "
            f"({_first_sentence(error)}); fetch it again"
        ) from error


def _first_sentence(error: Exception) -> str:
    """Without the colours of a terminal."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).strip()
    first = re.split(r"[.:]?\s*\n|\. ", text)[0]
    return first if " " in first else type(error).__name__  # a KeyError has but the key


def pickled_classes(path: Path) -> list[str]:
    """Classes and functions that a file of torch.save, or a bare pickle, names besides tensors; nothing is run."""
    found: list[str] = []
    try:
        for stream in _pickles(path):
            for name in _globals(stream):
                if re.fullmatch(r"\w[\w.]*", name) and not PLAIN.fullmatch(name) and name not in found:
                    found.append(name)
    except Exception:  # a damaged stream: what was found until there
        pass
    return found


def _pickles(path: Path) -> Iterator[bytes]:
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            yield from (archive.read(name) for name in archive.namelist() if name.endswith(".pkl"))
    else:
        yield path.read_bytes()


def _globals(stream: bytes) -> Iterator[str]:
    """Dotted names that a pickle would import, by its opcodes; several pickles may follow one another."""
    start = 0
    while start < len(stream):
        strings: list[str] = []  # as they come: STACK_GLOBAL takes the last two
        memo: dict[int, str | None] = {}
        end, top = start, None
        for code, argument, position in pickletools.genops(stream[start:]):
            end = start + (position or 0) + 1
            if code.name == "MEMOIZE":
                memo[len(memo)] = top
            elif "PUT" in code.name:
                memo[int(argument)] = top  # pyright: ignore[reportArgumentType]
            else:
                if code.name in ("GLOBAL", "INST"):
                    yield str(argument).replace(" ", ".", 1)
                elif code.name == "STACK_GLOBAL":
                    yield ".".join(strings[-2:])
                is_known = "GET" in code.name
                top = memo.get(int(argument)) if is_known else argument  # pyright: ignore[reportArgumentType]
                top = top if isinstance(top, str) and code.name not in ("GLOBAL", "INST") else None
                if top is not None:
                    strings.append(top)
        start = end
