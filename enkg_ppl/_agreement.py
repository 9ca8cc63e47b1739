"""Do independent ensembles agree? R-hat, effective sample size and the balance of modes across them."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from enkg_ppl._refine._mixing import SIZES, best_fit
from enkg_ppl._refine._reference import fit, labels
from enkg_ppl._special import gammaincc, ndtri

Draws = Float[np.ndarray, "ensembles particles dim"]
MOST_MODES = 8
MOST_TO_FIT = 512  # draws of all ensembles that modes are looked for in


class Agreement(NamedTuple):
    """`r_hat`: the largest of any scalar. `ess`: effective draws of all ensembles together, by the scatter of their
    means. `num_modes`: components that the draws fall into; `balance_p`: p-value of equal shares in every ensemble."""

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
    m, n, _ = z.shape
    scalars = np.concatenate([z, log_likelihood[:, :, None]], axis=-1)
    scores = np.concatenate([_scores(scalars), _scores(np.abs(scalars - np.median(scalars, axis=(0, 1))))], axis=-1)
    within = scores.var(axis=1, ddof=1).mean(axis=0)
    between = scores.mean(axis=1).var(axis=0, ddof=1)
    r_hat = float(np.sqrt((n - 1) / n + between / within).max())
    # Of independent draws the means would scatter by within / n; pooled over scalars, since ensembles are few.
    ess = m * n / max(1.0, float(np.mean(n * between / within)))
    return Agreement(r_hat, ess, *_balance(rng, z))


def _scores(scalars: Draws) -> Draws:
    """Normal scores of the ranks over all ensembles."""
    m, n, k = scalars.shape
    flat = scalars.reshape(m * n, k)
    ranks = np.argsort(np.argsort(flat, axis=0), axis=0) + 1
    return np.asarray(ndtri((ranks - 0.375) / (m * n + 0.25)), float).reshape(m, n, k)


def _balance(rng: np.random.Generator, z: Draws) -> tuple[int, float]:
    """Number of mixture components, and the p-value of their shares being the same in all ensembles (chi-square)."""
    m, n, d = z.shape
    flat = z.reshape(m * n, d)
    chosen = flat[rng.choice(m * n, min(m * n, MOST_TO_FIT), replace=False)]
    room = max(size for size in SIZES if size <= MOST_MODES)
    shape, _ = best_fit(rng, chosen, MOST_MODES, room)
    if shape.size == 1:
        return 1, 1.0
    mixture = fit(rng, chosen, shape, room)
    found = labels(mixture, flat).reshape(m, n)
    counts = np.stack([np.bincount(row, minlength=room) for row in found])
    counts = counts[:, counts.sum(axis=0) >= 5 * m]  # fewer draws make no chi-square
    if counts.shape[1] < 2:
        return 1, 1.0
    expected = counts.sum(axis=0) * counts.sum(axis=1, keepdims=True) / counts.sum()
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return counts.shape[1], float(gammaincc((m - 1) * (counts.shape[1] - 1) / 2, statistic / 2))
