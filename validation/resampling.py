"""A weighted set of draws turned into draws that count alike."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int


def systematic(offset: float, log_weights: Float[np.ndarray, " draws"], num: int) -> Int[np.ndarray, " num"]:
    """Indices of `num` draws: equally spaced points of the cumulative weights, one `offset` in [0, 1) for all."""
    weights = np.exp(log_weights - log_weights.max())
    levels = (np.arange(num) + offset) / num
    return np.minimum(np.searchsorted(np.cumsum(weights) / weights.sum(), levels), len(weights) - 1)
