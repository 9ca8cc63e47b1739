"""A training run on disk: one safetensors file with JSON in its header, replaced in one step."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from enkg_ppl._files import replacing, shown

FORMAT = 1
NAME = "training.safetensors"


def named_arrays(tree) -> dict[str, np.ndarray]:
    """The arrays of a pytree by their path, such as ``.params.layers[0].weight``."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    # A copy: the buffers behind the arrays are given to the next step.
    return {jax.tree_util.keystr(path): np.array(leaf, order="C") for path, leaf in leaves}


def save(folder: Path, tree, header: dict[str, Any]) -> None:
    """Write arrays and header; a run that is killed leaves the old file or the new one."""
    with replacing(folder / NAME) as beside:
        save_file(named_arrays(tree), beside, metadata={"enkg_ppl": json.dumps({"format": FORMAT, **header})})


def load(folder: Path, tree, run: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Arrays in the structure of `tree` and the header, of the same run; None where there is no file.

    `run`: what makes it the same run; every entry must agree with the header's entry "run".
    Raises `ValueError` where the file is damaged, is none of ours, or holds another run; it is left as it is.
    """
    path = folder / NAME
    if not path.exists():
        return None
    elsewhere = "give another folder, or delete it to start anew"
    try:
        with safe_open(path, framework="numpy") as file:
            header = json.loads((file.metadata() or {})["enkg_ppl"])
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise ValueError(f"{path} is no checkpoint of a training run ({error}): {elsewhere}") from error
    if header.get("format") != FORMAT:
        raise ValueError(f"{path} has format {header.get('format')} and this version reads {FORMAT}: {elsewhere}")
    stored = header["run"]
    for name in {**stored, **run}:
        if stored.get(name) != run.get(name):
            raise ValueError(
                f"{path} holds another run, with {name} = {shown(stored.get(name))} where {shown(run.get(name))} was "
                f"asked for: {elsewhere}"
            )
    return _filled(tree, arrays, path, elsewhere), header


def _filled(tree, arrays: dict[str, np.ndarray], path: Path, elsewhere: str):
    leaves, structure = jax.tree_util.tree_flatten_with_path(tree)
    found = []
    for where, leaf in leaves:
        name = jax.tree_util.keystr(where)
        array = arrays.get(name)
        if array is None or array.shape != leaf.shape or array.dtype != leaf.dtype:
            have = "missing" if array is None else f"{array.dtype}{array.shape}"
            raise ValueError(f"{path} has {name} {have} where {leaf.dtype}{leaf.shape} is needed: {elsewhere}")
        found.append(array)
    return jax.tree_util.tree_unflatten(structure, found)
