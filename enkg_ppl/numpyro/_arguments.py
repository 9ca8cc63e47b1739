"""What `EnKG` is given, looked at before anything runs."""

from __future__ import annotations

import difflib
import re
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from enkg_ppl.evaluation._black_box import BlackBoxError


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


# What an MCMC or a kernel takes, and what stands in its place.
OF_MCMC = {
    "num_samples": "draws are particles, so pass num_particles=",
    "num_chains": "chains are independent ensembles, so pass num_ensembles=",
    "num_warmup": "an ensemble has no warm-up, so leave it out",
    "thinning": "particles are no successive draws, so leave it out",
    "chain_method": "chains are ensembles, so pass ensemble_method=",
    "num_steps": "steps are of its parts, as in refine=TemperedSMC(...) or correction=KalmanCorrection(num_steps=...)",
    "step_size": "there are no trajectories and no step size, so leave it out",
    "target_accept_prob": "there are no trajectories to tune, so leave it out",
    "max_tree_depth": "there are no trajectories, so leave it out",
    "dense_mass": "there is no mass matrix, so leave it out",
    "init_strategy": "particles start from the prior, so leave it out",
    "guide": "there is no variational guide, so leave it out",
    "progress_rate": "pass progress_bar=True or False",
    "jit_model_args": "arguments of the model are traced where they can be, so leave it out",
}


def refuse_unknown(unknown: dict[str, Any]) -> None:
    known = ["num_particles", "num_ensembles", "ensemble_method", "correction", "schedule", "refine", "progress_bar"]
    known += ["max_forward_evaluations", "chunk_size", "init", "store"]
    for name in unknown:
        close = difflib.get_close_matches(name, known, 1)
        if name in ("kernel", "sampler"):
            close, known = [], [*known, "and the model itself in place of a kernel, as in EnKG(model)"]
        hint = f"did you mean '{close[0]}'?" if close else f"it takes {', '.join(known)}"
        raise TypeError(f"EnKG has no argument '{name}'; {OF_MCMC.get(name, hint)}")


def check_model(model) -> None:
    if callable(model):
        return
    if callable(getattr(model, "model", None)):  # a kernel, or a sampler
        raise TypeError(
            f"EnKG takes the place of {type(model).__name__}: pass the model itself, as in EnKG(model), not a kernel "
            "around it"
        )
    raise TypeError(f"EnKG needs a NumPyro model, a function with sample statements; got {model!r}")


def about_plates(error: BlackBoxError, plates: dict[str, int]) -> BlackBoxError:
    """The same error; where a black box met all entries of a plate at once, with what to do about it."""
    found = re.search(r"returned shape \(([\d, ]*)\) where \(([\d, ]*)\) is due", str(error))
    if found is None:
        return error
    returned, due = (tuple(map(int, re.findall(r"\d+", text))) for text in found.groups())
    for name, size in plates.items():
        if size in returned and len(returned) > len(due):
            return BlackBoxError(
                f"{str(error)[: found.end()]}, as in plate '{name}' it gets all {size} entries at once: "
                f'pass blackbox(..., plates="map") to call it for each, or make shape={returned} and let the '
                "simulator take arrays"
            )
    return error
