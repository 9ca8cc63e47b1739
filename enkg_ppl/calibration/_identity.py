"""What must agree for two calls of `sbc` to be one study, in JSON values."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import jax
import jax.random as jr
import numpy as np

from enkg_ppl.calibration._file import FORMAT
from enkg_ppl.calibration._simulate import PriorPredictive

# Settings of an inference that change its draws, where it has them under these names, whatever its constructor takes.
NUMBERS = ("num_particles", "num_ensembles", "max_forward_evaluations", "num_warmup", "num_samples", "thinning")
PARTS = ("refine", "correction", "schedule")
# Arguments of constructors that change no draws, or that are compared in another way (the model: by simulation).
NO_SETTINGS = ("self", "model", "sampler", "progress_bar", "chunk_size", "jit_model_args", "ensemble_method")


def identity(model, engine, rng_key, prior: PriorPredictive, names, num_draws: int, keep_draws: bool) -> dict[str, Any]:
    """The study's model by name and shapes, its inference by settings, key and numbers; more data sets may follow."""
    typed = jax.numpy.issubdtype(rng_key.dtype, jax.dtypes.prng_key)
    kernel = getattr(engine, "sampler", None)
    method: dict[str, Any] = {"type": type(engine).__name__, "kernel": type(kernel).__name__}
    method |= {name: getattr(engine, name) for name in NUMBERS if isinstance(getattr(engine, name, None), int)}
    method |= {name: _described(getattr(engine, name)) for name in PARTS if hasattr(engine, name)}
    method |= _settings(engine) | {f"kernel {name}": value for name, value in _settings(kernel).items()}
    found = {
        "format": FORMAT,
        "model": getattr(model, "__name__", type(model).__name__),
        "inference": method,
        "rng_key": np.asarray(jr.key_data(rng_key) if typed else rng_key).tolist(),
        "arguments": digest((prior.args, prior.kwargs)),
        "data": prior.data,
        "scalars": names,
        "sites": prior.latents | prior.deterministics | prior.data_shapes,
        "num_draws": num_draws,
        "keep_draws": keep_draws,
        "precision": str(jax.numpy.zeros(()).dtype),
    }
    return json.loads(json.dumps(found))


def _settings(thing: Any) -> dict[str, Any]:
    """What the constructors took, as far as the object keeps it under the same name; counters and states are left."""
    kept = getattr(thing, "__dict__", {})
    taken = [name for made in type(thing).__mro__ for name in _parameters(made) if name not in NO_SETTINGS]
    return {name: _described(kept[own]) for name in taken for own in (name, f"_{name}") if own in kept}


def _parameters(made: type) -> list[str]:
    try:
        return list(inspect.signature(made.__init__).parameters)
    except (TypeError, ValueError):  # written in C
        return []


def _described(value: Any) -> Any:
    """A value that differs where the setting does: functions and unknown objects by name, arrays by their digest."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    arrays = [leaf for leaf in jax.tree.leaves(value) if isinstance(leaf, jax.Array | np.ndarray)]
    text = repr(value)
    if " at 0x" in text:  # an address, which says nothing
        text = getattr(value, "__qualname__", type(value).__name__)
    return f"{text} {digest(arrays)}" if arrays else text


def digest(tree) -> str:
    """A fingerprint of the arrays and plain values among the arguments; functions and other objects by type."""
    found = hashlib.sha256()
    leaves, structure = jax.tree.flatten(tree)
    found.update(str(structure).encode())
    for leaf in leaves:
        if isinstance(leaf, str | bytes):
            found.update(repr(leaf).encode())
            continue
        array = np.asarray(leaf)
        plain = array.dtype != object
        found.update(f"{array.shape}{array.dtype}".encode() if plain else type(leaf).__name__.encode())
        if plain:
            found.update(array.tobytes())
    return found.hexdigest()[:16]
