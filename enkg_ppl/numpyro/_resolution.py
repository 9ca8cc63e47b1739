"""Whether the numbers of a run are fine enough for its noise: 32 bits hold seven digits, and some data need more."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.likelihood import Response
from enkg_ppl.numpyro._observation import Observation, SiteLikelihood
from enkg_ppl.numpyro._response import ranks_may_differ

# Distance of neighbouring numbers over the standard deviation of the noise, root mean square over a site's data: at
# this, rounding of data and predictions moves a posterior by a tenth of its width.
COARSE = 0.25
# Nats by which the log likelihood may be rounded from draw to draw (moments) and in all (evidence).
SCATTER, SHIFT = 0.1, 0.3
# Below this many nats a bound on that rounding is not looked into.
NO_MATTER = 0.02
NUM_DRAWS = 64  # that are looked at again in 64 bits
# Rounding of an argument over the spread of its values.
COARSE_ARGUMENT = 1e-3
BITS_64 = "run in 64 bits (numpyro.enable_x64() before anything else of JAX)"


def check_resolution(
    model: Callable,
    args: tuple,
    kwargs: dict[str, Any],
    observations: dict[str, Observation],
    guided: tuple[str, ...],
    response: Response | None,
    log_likelihood: Float[Array, "ensembles particles"],
) -> list[str]:
    """A sentence where rounding decides on the posterior, or nothing.

    `observations`, `response`: at the draws, leading axes (ensemble, particle); `response`: of the guided sites.
    """
    bits = jnp.finfo(log_likelihood.dtype).bits
    found = [] if response is None else _coarse_data(observations, guided, response, bits)
    if bits >= 64:
        return found
    return (
        found
        or _coarse_arguments(model, args, kwargs, observations)
        or _coarse_likelihood(observations, np.asarray(log_likelihood))
    )


def _coarse_data(observations, guided, response: Response, bits: int) -> list[str]:
    start = 0
    for name in guided:
        observation = observations[name]
        shape = jnp.broadcast_shapes(observation.fn.shape(), jnp.shape(observation.value)[2:])
        stop = start + math.prod(shape)
        prediction, observed, noise = (np.asarray(a)[..., start:stop].reshape(-1, stop - start) for a in response)
        start = stop
        size = np.fmax(np.abs(prediction), np.abs(observed))
        with np.errstate(all="ignore"):
            step, sd = (np.nanmedian(a, axis=0) for a in (np.spacing(size), np.sqrt(noise)))
            coarse = np.sqrt(np.mean((step / sd) ** 2))
        if not coarse > COARSE:
            continue
        worst = int(np.nanargmax(step / sd))
        remedy = f"{BITS_64}, or take" if bits < 64 else "take"
        return [
            f"the noise of observed site '{name}' is lost in rounding: near {np.median(size[:, worst]):.9g} numbers of "
            f"{bits} bits are {step[worst]:.2g} apart, and its standard deviation is {sd[worst]:.2g}; {remedy} an "
            "offset off data and simulator"
        ]
    return []


def _coarse_arguments(model, args, kwargs, observations) -> list[str]:
    """Of arrays in 64 bits that JAX rounds; the data themselves are compared with their noise instead."""
    data = [np.asarray(observation.value)[0, 0] for observation in observations.values()]
    for path, leaf in jax.tree_util.tree_flatten_with_path((args, kwargs))[0]:
        if not (isinstance(leaf, np.ndarray) and leaf.dtype == np.float64 and leaf.size > 1):
            continue
        rounded = leaf.astype(np.float32)
        if any(np.array_equal(rounded, a) for a in data):
            continue
        with np.errstate(all="ignore"):
            error, spread = np.abs(leaf - rounded.astype(float)).max(), leaf.std()
        same = spread < 1e-12 * np.abs(leaf).max()  # but for rounding in 64 bits
        if same or not (np.isfinite(error) and error > COARSE_ARGUMENT * spread > 0):
            continue
        where = f"near {np.abs(leaf).max():.9g} numbers of 32 bits are {np.spacing(np.abs(rounded).max()):.2g} apart"
        return [
            f"argument '{_name(model, path)}' of the model is lost in rounding: {where}, and its values have a "
            f"standard deviation of {spread:.2g}; {BITS_64}, or take an offset off before passing it"
        ]
    return []


def _name(model, path) -> str:
    part, first = path[0].idx, path[1]  # of (args, kwargs), and a place or a name in it
    if part == 1:
        return str(first.key)
    try:
        return list(inspect.signature(model).parameters)[first.idx]
    except (TypeError, ValueError, IndexError):
        return str(first.idx)


@eqx.filter_jit
def _log_probs(observations: dict[str, Observation]):
    """Log likelihood of every site at every draw, `scale` included."""

    def of_site(observation: Observation):
        return SiteLikelihood(()).log_prob({"": observation})

    return {name: jax.vmap(of_site)(observation) for name, observation in observations.items()}


def _coarse_likelihood(observations: dict[str, Observation], log_likelihood: np.ndarray) -> list[str]:
    """The log likelihood of a few draws in 64 bits beside that of the run."""
    if _bound(observations) < NO_MATTER:
        return []
    flat = log_likelihood.ravel()
    some = np.unique(np.linspace(0, flat.size - 1, NUM_DRAWS).astype(int))

    def in_64(a):
        a = np.asarray(a).reshape(-1, *np.shape(a)[2:])[some]
        return a.astype(np.float64) if a.dtype == np.float32 else a

    try:
        with jax.enable_x64(True), ranks_may_differ():
            exact = jax.device_get(_log_probs(jax.tree.map(in_64, observations)))
    except Exception:  # a distribution of the user's that cannot do without 32 bits: nothing to compare with
        return []
    errors = flat[some].astype(float) - sum(exact.values())
    errors = errors[np.isfinite(errors)]
    if len(errors) < 2 or not (errors.std() > SCATTER or abs(errors.mean()) > SHIFT):
        return []
    name = max(observations, key=lambda name: _largest(observations[name]))
    return [
        f"32 bits round the log likelihood by {errors.std():.2g} nats from draw to draw and by {errors.mean():.2g} in "
        f"all, with numbers up to {_largest(observations[name]):.2g} at observed site '{name}': {BITS_64}, or model "
        "smaller numbers"
    ]


def _bound(observations: dict[str, Observation]) -> float:
    """Of the rounding: terms of a log density are at most about its numbers times their logarithm."""
    eps, total = float(jnp.finfo(jnp.float32).eps), 0.0
    for observation in observations.values():
        size, num_data = _largest(observation), math.prod(np.shape(observation.value)[2:])
        total += (eps * size * math.log(2 + size)) ** 2 * num_data
    return total**0.5


def _largest(observation: Observation) -> float:
    sizes = [0.0]
    for leaf in (*observation.leaves, observation.value):
        a = np.abs(np.asarray(leaf, float))
        sizes.append(float(np.max(a, initial=0.0, where=np.isfinite(a))))
    return max(sizes)
