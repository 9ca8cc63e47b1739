"""A network prior on disk: a folder with the weights (safetensors) and everything else (JSON). No pickle.

``weights.safetensors`` holds every array, named by its path in the tree (``network.blocks.0.first.weight``).
``prior.json`` names the architecture with its arguments, the preconditioning, the rest of the prior, the shape and
dtype of every tensor, and two SHA-256 sums: of the weights' file and of its own content.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import safetensors.numpy

from enkg_ppl._files import replacing
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import PRECONDITIONINGS

FORMAT, VERSION = "enkg_ppl prior", 1
JSON_NAME, WEIGHTS_NAME = "prior.json", "weights.safetensors"
FIELDS = ("location", "scale", "shift", "spread")  # arrays of the prior beside the network's
# Names of a dtype in the JSON and in the header of the weights.
DTYPES = {
    "float64": ("F64", np.dtype(np.float64)),
    "float32": ("F32", np.dtype(np.float32)),
    "float16": ("F16", np.dtype(np.float16)),
    "bfloat16": ("BF16", np.dtype(jnp.bfloat16)),
}


class PriorFileError(ValueError):
    """A prior cannot be written or read; the message names the file and the remedy."""


def save_prior(prior: NetworkPrior, path: str | os.PathLike, *, overwrite: bool = False) -> Path:
    """Write a prior to a folder, which appears whole or not at all.

    `load_prior` gives the same prior back, bit for bit.

    Args:
        prior: with a network of this library.
        path: the folder.
        overwrite: replace the prior that is there; other files of the folder stay. Without it an existing path is
            refused.

    Returns:
        The path.

    Raises:
        PriorFileError: where the path exists, and for a network that is not one of this library's: such a prior is
            code, which is not stored in a file.
    """
    path = Path(path)
    content, arrays = _described(prior)
    if path.exists() and not overwrite:
        raise PriorFileError(f"{path} exists: give another path, or overwrite=True to replace the prior in it")
    if path.exists() and not path.is_dir():
        raise PriorFileError(f"{path} is a file and a prior is a folder: give another path")
    if path.exists():
        # The JSON is last and holds the sum of the weights: a reader in between is told, not misled.
        with replacing(path / JSON_NAME) as text, replacing(path / WEIGHTS_NAME) as weights:
            _write(text, weights, content, arrays)
    else:
        with replacing(path) as folder:
            folder.mkdir()
            _write(folder / JSON_NAME, folder / WEIGHTS_NAME, content, arrays)
    return path


def load_prior(path: str | os.PathLike) -> NetworkPrior:
    """Read a prior that `save_prior` wrote.

    Arrays come back in the dtype they were saved in; 64-bit ones are rounded to 32 bits, with a warning, where JAX has
    64-bit floats off.

    Args:
        path: the folder.

    Raises:
        PriorFileError: where the folder is no prior, was truncated or changed, or comes from a newer version.
    """
    path = Path(path)
    content = _read_json(path / JSON_NAME)
    tensors = _read_weights(path / WEIGHTS_NAME, content)
    try:
        return _rebuilt(content, tensors, path)
    except PriorFileError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise PriorFileError(
            f"{path / JSON_NAME} describes no prior that this version can build ({error}): save the prior again"
        ) from error


# ---- the description


def _described(prior: NetworkPrior) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The JSON and the arrays of a prior."""
    if not isinstance(prior, NetworkPrior):
        raise PriorFileError(f"save_prior needs a NetworkPrior; got {type(prior).__name__}")
    network, preconditioning = prior.network, prior.preconditioning
    for part, registry in ((network, _networks()), (preconditioning, PRECONDITIONINGS)):
        name = type(part).__name__
        if registry.get(name) is not type(part):
            raise PriorFileError(
                f"save_prior cannot save {name}, which is code of its own; it saves {', '.join(sorted(registry))}"
            )
    arrays = {f"network.{name}": leaf for name, leaf in _named(network).items()}
    arrays |= {name: getattr(prior, name) for name in FIELDS}
    arrays = {name: np.ascontiguousarray(leaf).reshape(leaf.shape) for name, leaf in sorted(arrays.items())}
    content = {
        "format": FORMAT,
        "version": VERSION,
        "network": {"class": type(network).__name__, "config": network.config()},
        "preconditioning": {"class": type(preconditioning).__name__, "config": preconditioning.config()},
        "event_shape": list(prior.event_shape),
        "sigma_min": prior.sigma_min,
        "sigma_max": prior.sigma_max,
        "chunk_size": prior.chunk_size,
        "dtype": prior.dtype,
        "record": dict(prior.record),
        "tensors": {name: {"shape": list(a.shape), "dtype": a.dtype.name} for name, a in arrays.items()},
    }
    return content, arrays


def _named(network) -> dict[str, Any]:
    """Arrays of a network by their path in the tree; never by their index, which a new field would shift."""
    named = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(network)[0]:
        name = jax.tree_util.keystr(path, simple=True, separator=".")
        if getattr(leaf, "dtype", None) is None or leaf.dtype.name not in DTYPES:
            raise PriorFileError(
                f"{type(network).__name__} holds {name} of type {getattr(leaf, 'dtype', type(leaf).__name__)}, and a "
                "network may hold float arrays only: make it a static field"
            )
        named[name] = leaf
    return named


def _checksum(content: dict[str, Any]) -> str:
    """SHA-256 of the content apart from the sum itself, whatever the white space and the order."""
    kept = {name: value for name, value in content.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(kept, sort_keys=True, allow_nan=False).encode()).hexdigest()


# ---- writing


def _write(text: Path, file: Path, content: dict[str, Any], arrays: dict[str, np.ndarray]) -> None:
    weights = safetensors.numpy.save(arrays)
    content = {**content, "weights_sha256": hashlib.sha256(weights).hexdigest()}
    content = {**content, "sha256": _checksum(content)}
    file.write_bytes(weights)
    text.write_bytes(json.dumps(content, indent=1, allow_nan=False).encode())


# ---- reading

ANEW = "copy or save the prior again"


def _read(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise PriorFileError(
            f"{file} cannot be read ({error.strerror or error}): give the folder that save_prior wrote"
        ) from error


def _read_json(file: Path) -> dict[str, Any]:
    text = _read(file)
    try:
        content = json.loads(text.decode(), object_pairs_hook=_without_repeats, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise PriorFileError(f"{file} is no whole JSON file ({error}): {ANEW}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise PriorFileError(f"{file} is not the description of a prior of this library: give another folder")
    version = content.get("version")
    if isinstance(version, int) and version > VERSION:
        raise PriorFileError(
            f"{file} has format version {version} and this library reads up to {VERSION}: upgrade enkg_ppl"
        )
    if content.get("sha256") != _checksum(content):
        raise PriorFileError(f"{file} was changed since it was written (its SHA-256 differs): {ANEW}")
    if version != VERSION or not isinstance(content.get("tensors"), dict):
        raise PriorFileError(f"{file} has no format version or no tensors that this library knows: {ANEW}")
    return content


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        raise ValueError("a name occurs twice")
    return values


def _no_constant(name: str):
    raise ValueError(f"{name} is not JSON")


def _read_weights(file: Path, content: dict[str, Any]) -> dict[str, np.ndarray]:
    """The tensors, in the shapes and dtypes that the JSON announces."""
    data = _read(file)
    if hashlib.sha256(data).hexdigest() != content.get("weights_sha256"):
        raise PriorFileError(
            f"{file} was cut short or changed, or belongs to another {JSON_NAME} (its SHA-256 differs): {ANEW}"
        )
    try:
        stored = dict(safetensors.deserialize(data))
    except Exception as error:  # safetensors has its own exception, in Rust
        raise PriorFileError(f"{file} is no safetensors file ({error}): {ANEW}") from error
    _same_names(file, set(stored), set(content["tensors"]))
    tensors = {}
    for name, expected in content["tensors"].items():
        tensor = stored[name]
        code, dtype = DTYPES.get(str(expected["dtype"]), (None, None))
        if dtype is None or tensor["dtype"] != code or list(tensor["shape"]) != expected["shape"]:
            raise PriorFileError(
                f"{file} holds {name} as {tensor['dtype']} {list(tensor['shape'])} where {JSON_NAME} has "
                f"{expected['dtype']} {expected['shape']}: {ANEW}"
            )
        values = np.frombuffer(tensor["data"], dtype.newbyteorder("<")).reshape(expected["shape"])
        tensors[name] = values.astype(dtype, copy=False)
    return tensors


def _same_names(file: Path, found: set[str], wanted: set[str]) -> None:
    for names, word in ((wanted - found, "lacks"), (found - wanted, "has the unknown")):
        if names:
            shown = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise PriorFileError(f"{file} {word} {shown}: {ANEW}")


def _rebuilt(content: dict[str, Any], tensors: dict[str, np.ndarray], path: Path) -> NetworkPrior:
    network_class = _registered(_networks(), "network", content, path)
    config = content["network"]["config"]
    # Its structure alone: no weight is drawn to be thrown away.
    skeleton = eqx.filter_eval_shape(network_class, **config, key=jr.key(0))
    wanted = _named(skeleton)
    file = path / WEIGHTS_NAME
    _same_names(file, set(tensors), {f"network.{name}" for name in wanted} | set(FIELDS))
    for name, leaf in wanted.items():
        if tensors[f"network.{name}"].shape != leaf.shape:
            raise PriorFileError(
                f"{file} holds network.{name} of shape {tensors[f'network.{name}'].shape} where the network has "
                f"{leaf.shape}: {ANEW}"
            )
    kind = _registered(PRECONDITIONINGS, "preconditioning", content, path)
    with jax.ensure_compile_time_eval():  # its checks look at values, also where a model loads it while traced
        arrays = _to_jax(tensors, file)
        network = jax.tree.unflatten(jax.tree.structure(skeleton), [arrays[f"network.{name}"] for name in wanted])
        return NetworkPrior(
            network,
            kind(**content["preconditioning"]["config"]),
            tuple(content["event_shape"]),
            **{name: arrays[name] for name in FIELDS},
            **{name: content[name] for name in ("sigma_min", "sigma_max", "chunk_size", "dtype", "record")},
        )


def _networks() -> dict[str, type]:
    """Imported when a file is read or written, which most runs do not."""
    from enkg_ppl.networks import NETWORKS

    return NETWORKS


def _registered(registry: dict[str, type], what: str, content: dict[str, Any], path: Path) -> type:
    name = content[what]["class"]
    if name not in registry:
        raise PriorFileError(
            f"{path / JSON_NAME} names the {what} {name!r}, which this version does not have: upgrade enkg_ppl"
        )
    return registry[name]


def _to_jax(tensors: dict[str, np.ndarray], file: Path) -> dict[str, jax.Array]:
    if not jax.config.read("jax_enable_x64") and any(a.dtype == np.float64 for a in tensors.values()):
        warnings.warn(
            f"{file} holds 64-bit floats and they are rounded to 32 bits: call "
            "jax.config.update('jax_enable_x64', True) first to keep them",
            stacklevel=4,
        )
        tensors = {n: a.astype(np.float32) if a.dtype == np.float64 else a for n, a in tensors.items()}
    return {name: jax.device_put(a) for name, a in tensors.items()}  # a conversion would be compiled for every shape
