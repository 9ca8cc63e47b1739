"""Importance weights between temperatures: how far a step may go, resampling, evidence."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float

NUM_BISECTIONS = 60


def log_mean_exp(a: Float[np.ndarray, " particles"]) -> float:
    top = a.max()
    return float(top + np.log(np.mean(np.exp(a - top))))


def _ess(a: Float[np.ndarray, " particles"]) -> float:
    """Effective sample size of log weights, as a share of the particles."""
    w = np.exp(a - a.max())
    return float(w.sum() ** 2 / (w**2).sum() / len(w))


def largest_step(weights: Float[np.ndarray, " particles"], room: float, target_ess: float) -> tuple[float, float]:
    """How far beta may rise until the effective sample size falls to the target, by bisection; and that size."""
    finite = np.isfinite(weights)
    values = np.asarray(weights[finite], float)
    share = len(values) / len(weights)
    # Particles of zero likelihood are gone at any beta > 0: the target counts from those that are left.
    if target_ess == 0 or _ess(room * values) >= target_ess:
        return room, share * _ess(room * values)
    low, high = 0.0, room
    for _ in range(NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if _ess(middle * values) >= target_ess else (low, middle)
    return max(low, float(np.finfo(weights.dtype).tiny)), share * _ess(low * values)


def systematic(offset: float, log_weights: Float[np.ndarray, " particles"], num: int | None = None):
    """Indices of a systematic resample: equally spaced points, one random offset in [0, 1).

    `num`: how many (default: as many as there are weights).
    """
    n = len(log_weights)
    num = n if num is None else num
    w = np.exp(log_weights - log_weights.max())
    return np.minimum(np.searchsorted(np.cumsum(w) / w.sum(), (np.arange(num) + offset) / num), n - 1)
