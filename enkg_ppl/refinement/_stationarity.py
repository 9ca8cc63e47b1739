"""Whether a moving ensemble has forgotten where it was, and has stopped drifting."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from enkg_ppl.refinement.moves._mixing import features, largest_correlation

# Directions that are looked at: the ensemble's widest, which small moves take longest to cross.
MAX_DIRECTIONS = 16
NUM_SIGN_FLIPS = 400


class Snapshot(NamedTuple):
    """Where the ensemble was, particle by particle."""

    x: Any  # Float[np.ndarray, "particles dim"]
    log_likelihood: Any  # Float[np.ndarray, " particles"]


@dataclasses.dataclass(frozen=True)
class Verdict:
    """`correlation` of now with the latest snapshot that is forgotten, or else with the first; `limit`: what counts as
    forgotten; `drift_p`: p-value of no drift since that snapshot, None where none is forgotten."""

    correlation: float
    limit: float
    drift_p: float | None

    def good(self, min_drift_p: float) -> bool:
        return self.drift_p is not None and self.drift_p >= min_drift_p


def compare(rng: np.random.Generator, snapshots: Sequence[Snapshot], max_correlation: float) -> Verdict:
    """Compare the last snapshot with the latest earlier one that it has forgotten."""
    now = snapshots[-1]
    # Correlations of independent ensembles scatter by 1 / sqrt(J): no use in waiting for less.
    limit = max(max_correlation, 3 / len(now.x) ** 0.5)
    project = _widest_directions(now.x)
    here = features(project(now.x), now.log_likelihood)
    correlation = 1.0
    for then in reversed(snapshots[:-1]):
        correlation = largest_correlation(features(project(then.x), then.log_likelihood), here)
        if correlation <= limit:
            return Verdict(correlation, limit, drift_p_value(rng, then, now))
    return Verdict(correlation, limit, None)


def drift_p_value(rng: np.random.Generator, then: Snapshot, now: Snapshot) -> float:
    """p-value of the hypothesis that particles are now distributed as then, by random changes of sign.

    In equilibrium under reversible moves (then, now) and (now, then) of a particle are equally likely, however much
    they are correlated: differences of any feature change sign with probability one half. The features are ranks, in
    both snapshots together, along the widest directions, of the distance from the median there, and of the log
    likelihood; the statistic is the mean square of their t-like means.
    """
    n = len(now.x)
    both = np.concatenate([then.x, now.x]).astype(float)
    log_likelihood: Any = np.concatenate([then.log_likelihood, now.log_likelihood])
    ranks = features(_widest_directions(both)(both), log_likelihood)
    difference = ranks[n:] - ranks[:n]
    difference = difference / np.maximum(np.sqrt(np.mean(difference**2, axis=0)), np.finfo(float).tiny)
    signs = rng.choice([-1.0, 1.0], (NUM_SIGN_FLIPS, n))
    by_chance = np.mean((signs @ difference) ** 2, axis=1)
    seen = np.mean(np.sum(difference, axis=0) ** 2)
    return float((1 + np.sum(by_chance >= seen)) / (1 + NUM_SIGN_FLIPS))


def _widest_directions(x: Float[np.ndarray, "particles dim"]) -> Callable[[np.ndarray], Any]:
    """The projection on the ensemble's leading principal directions; on all axes where there are few."""
    x = x.astype(float)
    if x.shape[1] <= MAX_DIRECTIONS:
        return lambda a: np.asarray(a, float)
    _, _, directions = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)
    return lambda a: np.asarray(a, float) @ directions[:MAX_DIRECTIONS].T
