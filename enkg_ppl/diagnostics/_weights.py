"""Whether importance weights can be trusted: the Pareto shape of their upper tail, k-hat.

In NumPy and here, because importing ArviZ takes seconds, which every run would pay; a test holds it to ArviZ's.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float

LEAST_TAIL = 5
LEAST_POSITIVE = 21  # weights that are not zero, for a tail of that length
ROUNDING = 1e-8  # of the largest weight: what differs by less is equal


def num_positive(log_weights: Float[np.ndarray, " particles"]) -> int:
    """Particles whose weight is not zero."""
    return int(np.sum(np.isfinite(log_weights)))


def effective_size(log_weights: Float[np.ndarray, " particles"]) -> float:
    """Number of equally weighted draws with the same variance: ``(sum w)^2 / sum w^2``; 0 where all weights are zero.

    Args:
        log_weights: shape (particles,), unnormalised.
    """
    finite = np.asarray(log_weights, float)[np.isfinite(log_weights)]
    if not len(finite):
        return 0.0
    weights = np.exp(finite - finite.max())
    return float(weights.sum() ** 2 / np.sum(weights**2))


def equal(log_weights: Float[np.ndarray, " particles"]) -> bool:
    """Whether the particles whose weight is not zero have the same one."""
    finite = np.asarray(log_weights, float)[np.isfinite(log_weights)]
    return len(finite) > 0 and float(np.ptp(finite)) <= ROUNDING


def pareto_khat(log_weights: Float[np.ndarray, " particles"]) -> float:
    """k-hat of importance weights; below 0.7 averages under them are reliable. NaN for too few or equal weights.

    Args:
        log_weights: shape (particles,), unnormalised.

    Sources: Vehtari, Simpson, Gelman, Yao & Gabry (2024), J. Mach. Learn. Res. 25, section 3 (length of the tail, prior
    on k); Zhang & Stephens (2009), Technometrics 51, section 4 (the fit).
    """
    finite = np.sort(np.asarray(log_weights, float)[np.isfinite(log_weights)])
    n = len(finite)
    tail = math.ceil(min(0.2 * n, 3 * n**0.5))
    if tail < LEAST_TAIL:
        return float("nan")
    weights = np.exp(finite - finite[-1])
    excess = weights[-tail:] - weights[-tail - 1]
    if excess[-1] <= ROUNDING:
        return float("nan")
    excess = np.maximum(excess, np.finfo(float).tiny)
    k = _generalised_pareto_shape(excess)
    return (tail * k + 10 * 0.5) / (tail + 10)  # a weak prior that k is 0.5


def _generalised_pareto_shape(excess: Float[np.ndarray, " tail"]) -> float:
    """Posterior mean over a grid of the scale parameter, `excess` in rising order."""
    n = len(excess)
    m = 30 + int(n**0.5)
    quartile = excess[int(n / 4 + 0.5) - 1]
    b = 1 / excess[-1] + (1 - np.sqrt(m / (np.arange(1, m + 1) - 0.5))) / (3 * quartile)
    k = np.mean(np.log1p(-b[:, None] * excess[None]), axis=1)
    log_likelihood = n * (np.log(-b / k) - k - 1)
    weights = np.exp(log_likelihood - log_likelihood.max())
    b = np.sum(b * weights) / weights.sum()
    return float(np.mean(np.log1p(-b * excess)))
