"""What `EnKG` is given, looked at before anything runs."""

from __future__ import annotations

import difflib
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np


def as_typed_key(rng_key) -> jax.Array:
    if not isinstance(rng_key, jax.Array | np.ndarray):
        raise TypeError(f"run needs a random key first, as in run(jax.random.key(0), ...); got {rng_key!r}")
    rng_key = jnp.asarray(rng_key)
    if jnp.issubdtype(rng_key.dtype, jax.dtypes.prng_key):
        return rng_key
    if rng_key.dtype != jnp.uint32 or rng_key.ndim != 1:
        raise TypeError(
            f"run needs a random key first, as in run(jax.random.key(0), ...); got an array of {rng_key.dtype}"
        )
    return jr.wrap_key_data(rng_key)


def check_count(name: str, value, least: int, why: str) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"EnKG needs {name} as a whole number >= {least} ({why}); got {value!r}")


def check_extra_fields(extra_fields) -> None:
    known = ("potential_energy", "log_likelihood")
    for field in extra_fields:
        if field not in known:
            raise ValueError(f"extra_fields may hold {' and '.join(known)}; got {field!r}")


def refuse_unknown(unknown: dict[str, Any]) -> None:
    known = ["num_particles", "num_ensembles", "ensemble_method", "correction", "schedule", "refine", "progress_bar"]
    known += ["max_forward_evaluations", "chunk_size"]
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(known)}"
        raise TypeError(f"EnKG has no argument '{name}'; {hint}")
