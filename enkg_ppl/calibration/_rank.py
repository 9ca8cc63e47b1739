"""The rank of a truth among posterior draws, where floats cannot tell some of them apart.

Gamma(0.02, 0.02) has values far below the smallest float: a sampler gives 0 for them, an inference stops at the
smallest normal number, and as numbers all truths would lie below all draws. Close to an end of the support such values
are one value, the end; truth and draws alike are moved there, which leaves the ranks of a right posterior uniform.
"""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

# Values this near to an end other than 0, in units of its rounding, are not told from it: samplers stop a bit short.
NEAR = 4
# Log likelihoods of draws and truth come from different programs, whose sums differ by rounding.
NEAR_LOG_LIKELIHOOD = 8


def rank(
    draws: Float[np.ndarray, "draws dim"],
    truths: Float[np.ndarray, " dim"],
    rng: np.random.Generator,
    low: Float[np.ndarray, " dim"],
    high: Float[np.ndarray, " dim"],
) -> Int[np.ndarray, " dim"]:
    """Number of draws below the truth, ties broken at random. `low`, `high`: ends of the support, NaN for none."""
    if np.isnan(truths).any():
        raise ValueError("the truth is NaN")
    if np.isnan(draws).any():
        raise ValueError("some posterior draws are NaN")
    draws, truths = (_at_ends(values, low, high) for values in (draws, truths))
    ties = np.sum(draws == truths, axis=0)
    return np.sum(draws < truths, axis=0) + rng.integers(0, ties + 1)


def rank_log_likelihood(draws: Float[np.ndarray, " draws"], truth: float, rng: np.random.Generator) -> int:
    """The same of log likelihoods; those that agree up to rounding are ties."""
    if np.isnan(truth):
        raise ValueError("the log likelihood of the truth is NaN")
    if np.isnan(draws).any():
        raise ValueError("the log likelihoods of some posterior draws are NaN")
    allowed = NEAR_LOG_LIKELIHOOD * jnp.finfo(jnp.zeros(()).dtype).eps * abs(truth) if np.isfinite(truth) else 0.0
    with np.errstate(invalid="ignore"):
        ties = (draws == truth) | (np.abs(draws - truth) <= allowed)
    return int(np.sum((draws < truth) & ~ties) + rng.integers(0, np.sum(ties) + 1))


def _at_ends(values: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Values that JAX's floats do not tell from 0, from infinity or from an end of the support are moved there."""
    numbers = jnp.finfo(jnp.zeros(()).dtype)
    tiny, largest, eps = float(numbers.tiny), float(numbers.max), float(numbers.eps)
    values = np.where(np.abs(values) <= tiny, 0.0, values)
    values = np.where(np.abs(values) >= largest * (1 - NEAR * eps), np.copysign(np.inf, values), values)
    for end in (low, high):
        near = np.isfinite(end) & (np.abs(values - end) <= NEAR * eps * np.abs(end))
        values = np.where(near, end, values)
    return values
