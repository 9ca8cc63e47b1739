"""Can the last importance weights be trusted?"""

from __future__ import annotations

import numpy as np

from enkg_ppl.diagnostics._finding import Finding, of_the_worst
from enkg_ppl.diagnostics._weights import LEAST_POSITIVE, effective_size, equal, num_positive, pareto_khat

# Above this k-hat an average under importance weights may be wrong by any amount (Vehtari et al. 2024).
LARGEST_KHAT = 0.7
# Effective size of the last weights, as a share of the particles. One weight above all others has no tail to show.
LEAST_WEIGHT_SHARE = 0.02


def are_sound(log_weights: np.ndarray) -> bool:
    """Whether none of the first two checks below finds anything."""
    enough = effective_size(log_weights) > LEAST_WEIGHT_SHARE * len(log_weights)
    return not pareto_khat(log_weights) > LARGEST_KHAT and enough


def check_khat(khat: float) -> list[Finding]:
    """Of the tail of the weights, in the worst ensemble."""
    if np.isnan(khat) or khat <= LARGEST_KHAT:
        return []
    advice = (
        f"the last importance weights have a heavy tail (k-hat {khat:.2f}, above {LARGEST_KHAT}): the log evidence "
        "and shares of far modes may be off; raise num_particles, or TemperedSMC(pilot_size=...)"
    )
    return [Finding("pareto_khat", khat, LARGEST_KHAT, advice)]


def check_effective_size(log_weights: list[np.ndarray]) -> list[Finding]:
    """Of the weights of every ensemble."""
    n, size = len(log_weights[0]), min(map(effective_size, log_weights))
    if size >= LEAST_WEIGHT_SHARE * n:
        return []
    advice = (
        f"the {n} last importance weights{of_the_worst(log_weights)} are worth {size:.2g} equal ones, so a few "
        "particles stand for the whole posterior: raise num_particles or max_forward_evaluations, or narrow the prior"
    )
    return [Finding("effective_weights", size, LEAST_WEIGHT_SHARE * n, advice)]


def check_positive(log_weights: list[np.ndarray]) -> list[Finding]:
    """Of the weights of every ensemble: how many are not zero. Equal ones need no tail to be judged by."""
    n = len(log_weights[0])
    positive = [num_positive(w) for w in log_weights if not (equal(w) and num_positive(w) == n)]
    if min(positive, default=LEAST_POSITIVE) >= LEAST_POSITIVE:
        return []
    advice = (
        f"only {min(positive)} of the {n} last importance weights{of_the_worst(log_weights)} are not zero, too few to "
        "tell whether they can be trusted: raise num_particles, or narrow the prior"
    )
    return [Finding("positive_weights", min(positive), LEAST_POSITIVE, advice)]
