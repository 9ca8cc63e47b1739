"""Are ranks uniform? Simultaneous bands for the ECDF of ranks, exact for discrete ranks.

With `num_draws` draws a rank takes `num_draws + 1` values, so at ``z = k / (num_draws + 1)`` the number of ranks below
k is binomial(n, z) when ranks are uniform. The band is the set of counts whose two-sided binomial tail probability
exceeds one gamma at every point; gamma is set by the probability that the whole ECDF stays inside, which a Markov
recursion over the points gives without simulation. ArviZ has such bands too, but its two lines compute them in
different ways and treat the ranks as continuous; a verdict should not depend on the version of Python.

Source: Säilynoja, Bürkner & Vehtari (2022), Statistics and Computing 32, 32, section 2 (optimisation method).
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

MAX_POINTS = 100  # more add cost and no power: neighbouring points are almost the same test
NUM_BISECTIONS = 40


class Bands(NamedTuple):
    """A simultaneous band for the ECDF of uniform ranks.

    Attributes:
        points: where the ECDF is evaluated, values of z in (0, 1).
        lower: smallest value inside, one a point.
        upper: largest value inside, one a point.
        level: probability that the ECDF of uniform ranks is inside at every point; at least the requested one.
    """

    points: Float[np.ndarray, " points"]
    lower: Float[np.ndarray, " points"]
    upper: Float[np.ndarray, " points"]
    level: float


def below(ranks: Int[np.ndarray, " n"], num_draws: int) -> Int[np.ndarray, " points"]:
    """Number of ranks below every cut."""
    return np.searchsorted(np.sort(ranks), cuts(num_draws), side="left")


def cuts(num_draws: int) -> Int[np.ndarray, " points"]:
    """The values of k at which ranks below k are counted."""
    return np.unique(np.linspace(1, num_draws, min(num_draws, MAX_POINTS)).round().astype(int))


@lru_cache(maxsize=64)
def bands(n: int, num_draws: int, level: float) -> Bands:
    """The band for `n` ranks among `num_draws` draws; see the module."""
    z = cuts(num_draws) / (num_draws + 1)
    tails = _tails(n, z)
    low, high = np.log(1e-15), 0.0  # of log gamma
    for _ in range(NUM_BISECTIONS):
        middle = 0.5 * (low + high)
        if _probability_inside(n, z, tails > np.exp(middle)) >= level:
            low = middle
        else:
            high = middle
    inside = tails > np.exp(low)
    lower = inside.argmax(axis=1) / n
    upper = (n - inside[:, ::-1].argmax(axis=1)) / n
    return Bands(z, lower, upper, _probability_inside(n, z, inside))


def p_value(ranks: Int[np.ndarray, " n"], num_draws: int) -> float:
    """Probability that uniform ranks stray at least as far from uniform, at their worst point, as these."""
    n, z = len(ranks), cuts(num_draws) / (num_draws + 1)
    tails = _tails(n, z)
    worst = tails[np.arange(len(z)), below(ranks, num_draws)].min()
    inside = tails > worst * (1 + 1e-9)  # the observed count itself is outside, whatever the rounding
    return float(np.clip(1.0 - _probability_inside(n, z, inside), 0.0, 1.0))


def _tails(n: int, z: Float[np.ndarray, " points"]) -> Float[np.ndarray, "points counts"]:
    """Two-sided tail probability ``2 min(P(X <= c), P(X >= c))`` of every count c = 0..n, for X ~ binomial(n, z)."""
    counts = np.arange(n + 1)
    pmf = np.exp(_log_choose(n) + counts * np.log(z)[:, None] + (n - counts) * np.log1p(-z)[:, None])
    at_most = np.cumsum(pmf, axis=1)
    at_least = np.cumsum(pmf[:, ::-1], axis=1)[:, ::-1]
    return 2 * np.minimum(at_most, at_least)


def _probability_inside(n: int, z, inside) -> float:
    """Probability that the counts of n uniform numbers below each z are inside at every point.

    Given c below one point, the next count is c + binomial(n - c, step / (1 - z)).
    """
    log_factorial = _log_factorial(n)
    before, probability, left = np.zeros(1, int), np.ones(1), 0.0
    for right, wanted in zip(z, inside, strict=True):
        now = np.flatnonzero(wanted)
        if not len(now):
            return 0.0
        p = (right - left) / (1 - left)
        more, rest = now - before[:, None], n - before[:, None]
        possible = more >= 0
        more = np.where(possible, more, 0)
        log_pmf = log_factorial[rest] - log_factorial[more] - log_factorial[rest - more]
        log_pmf = log_pmf + more * math.log(p) + (rest - more) * math.log1p(-p)
        probability = probability @ np.where(possible, np.exp(log_pmf), 0.0)
        before, left = now, right
    return float(probability.sum())


@lru_cache(maxsize=8)
def _log_factorial(n: int) -> Float[np.ndarray, " counts"]:
    return np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, n + 1)))])


def _log_choose(n: int) -> Float[np.ndarray, " counts"]:
    log_factorial = _log_factorial(n)
    return log_factorial[n] - log_factorial - log_factorial[::-1]
