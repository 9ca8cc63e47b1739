"""Do independent ensembles agree? R-hat, effective sample size and the balance of modes across them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from enkg_ppl._special import gammaincc, ndtri
from enkg_ppl.diagnostics._valleys import cells
from enkg_ppl.mixtures._fit import SIZES, best_fit, fit
from enkg_ppl.mixtures._student import labels

Draws = Float[np.ndarray, "ensembles particles dim"]
MOST_MODES = 8
MOST_TO_FIT = 512  # draws of all ensembles that modes are looked for in
MOST_DIM = 16  # that mixtures are fitted in; beyond, valleys along a few directions are looked for
BLOCK = 256  # scalars that are ranked at a time, to bound memory


class Agreement(NamedTuple):
    """`r_hat`: the largest of any scalar. `ess`: effective draws of all ensembles together, by the scatter of their
    means. `num_modes`: places that the draws fall into; `balance_p`: p-value of equal shares in every ensemble."""

    r_hat: float
    ess: float
    num_modes: int
    balance_p: float


def agreement(
    rng: np.random.Generator, z: Draws, log_likelihood: Float[np.ndarray, "ensembles particles"]
) -> Agreement:
    """Compare ensembles, two or more, by their latent vectors and log likelihoods.

    Particles have no order, so unlike chains they are not split. R-hat is of normalised ranks, of the scalars and of
    their distance from the median (Vehtari et al. 2021, Bayesian Analysis 16, section 3).
    """
    m, n, d = z.shape
    draws, last = np.reshape(z, (m * n, d)), np.reshape(log_likelihood, (m * n, 1))
    within, between = [], []
    for start in range(0, d, BLOCK):
        block = draws[:, start : start + BLOCK]
        some = block if start + BLOCK < d else np.concatenate([block, last], axis=1)
        for part in _with_distance(some):
            scores = _scores(part).reshape(-1, m, n)
            means = scores.mean(axis=2)
            within.append((np.einsum("kmn,kmn->k", scores, scores) - n * np.sum(means**2, axis=1)) / (m * (n - 1)))
            between.append(means.var(axis=1, ddof=1))
    within, between = np.concatenate(within), np.concatenate(between)
    # A scalar that is the same in all draws has neither, and tells nothing.
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(between > 0, between / within, 0.0)
    r_hat = float(np.sqrt((n - 1) / n + ratio).max())
    # Of independent draws the means would scatter by within / n; pooled over scalars, since ensembles are few.
    ess = m * n / max(1.0, float(np.mean(n * ratio)))
    return Agreement(r_hat, ess, *_balance(rng, z))


def _with_distance(scalars: Float[np.ndarray, "draws scalars"]) -> tuple[np.ndarray, np.ndarray]:
    """The scalars by row, and their distances from the median."""
    rows = np.ascontiguousarray(scalars.T)
    middle = rows.shape[1] // 2  # a draw: halfway between two, both would be as far
    with np.errstate(invalid="ignore"):  # a log likelihood may be -inf
        return rows, np.abs(rows - np.partition(rows, middle, axis=1)[:, middle, None])


def _scores(rows: Float[np.ndarray, "scalars draws"]) -> Float[np.ndarray, "scalars draws"]:
    """Normal scores of the ranks in each row; equal values have the mean of their ranks."""
    k, n = rows.shape
    order = np.argsort(rows, axis=1)
    ordered = np.take_along_axis(rows, order, axis=1)
    table = np.asarray(ndtri((np.arange(1, n + 1) - 0.375) / (n + 0.25)), float)
    ranked = np.broadcast_to(table, (k, n)).copy()
    for i in np.flatnonzero((ordered[:, 1:] == ordered[:, :-1]).any(axis=1)):
        _, first, count = np.unique(ordered[i], return_index=True, return_counts=True)
        mean_rank = first + 1 + 0.5 * (count - 1)
        ranked[i] = np.repeat(np.asarray(ndtri((mean_rank - 0.375) / (n + 0.25)), float), count)
    scores = np.empty((k, n))
    np.put_along_axis(scores, order, ranked, axis=1)
    return scores


def _balance(rng: np.random.Generator, z: Draws) -> tuple[int, float]:
    """Number of modes, and the p-value of their shares being the same in all ensembles (chi-square)."""
    m, n, d = z.shape
    flat = z.reshape(m * n, d)
    found = (_components if d <= MOST_DIM else cells)(rng, flat).reshape(m, n)
    counts = np.stack([np.bincount(row, minlength=found.max() + 1) for row in found])
    counts = counts[:, counts.sum(axis=0) >= 5 * m]  # fewer draws make no chi-square
    if counts.shape[1] < 2:
        return 1, 1.0
    expected = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return counts.shape[1], float(gammaincc((m - 1) * (counts.shape[1] - 1) / 2, statistic / 2))


def _components(rng: np.random.Generator, flat: Float[np.ndarray, "draws dim"]) -> Int[np.ndarray, " draws"]:
    """The component of each draw in the mixture that suits them best."""
    chosen = flat[rng.choice(len(flat), min(len(flat), MOST_TO_FIT), replace=False)]
    room = max(size for size in SIZES if size <= MOST_MODES)
    shape, _ = best_fit(rng, chosen, MOST_MODES, room)
    if shape.size == 1:
        return np.zeros(len(flat), int)
    return labels(fit(rng, chosen, shape, room), flat)
