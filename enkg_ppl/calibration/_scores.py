"""Scores of posterior draws against the truth; all in the units of the draws, and smaller is better but for the SSR."""

from __future__ import annotations

import numpy as np
from jaxtyping import ArrayLike, Float

BLOCK = 256  # draws whose distances to all others are held in memory at a time


def crps(draws: ArrayLike, truth: ArrayLike, *, fair: bool = True) -> np.ndarray | np.float64:
    """Continuous ranked probability score of every scalar, ``E|x - truth| - E|x - x'| / 2``; 0 is perfect.

    Args:
        draws: shape ``(num_draws, *shape)``.
        truth: shape ``shape``.
        fair: estimate the score of the distribution that the draws come from, without bias (Ferro 2014, Q. J. R.
            Meteorol. Soc. 140); False scores the draws themselves, as tables of ensemble methods mostly do.

    Returns:
        Scores of shape ``shape``, to be averaged as needed.

    Raises:
        ValueError: where the shapes do not fit, or a fair score is asked of a single draw.

    Source: Gneiting & Raftery (2007), J. Am. Stat. Assoc. 102, equation 21.
    """
    x, t = _checked("crps", draws, truth)
    j = len(x)
    x = np.sort(x, axis=0)
    # sum over pairs of |x_i - x_k| = 2 sum_i (2 i - j + 1) x_i for sorted x, i = 0..j-1
    weight = (2 * np.arange(j) - j + 1).reshape(-1, *[1] * t.ndim)
    pairs = 2 * np.sum(weight * x, axis=0)
    return np.mean(np.abs(x - t), axis=0) - 0.5 * pairs / _num_pairs("crps", j, fair)


def energy_score(draws: ArrayLike, truth: ArrayLike, *, fair: bool = True) -> float:
    """The score of all scalars together, ``E||x - truth|| - E||x - x'|| / 2`` with the Euclidean norm; 0 is perfect.

    Args:
        draws: shape ``(num_draws, *shape)``.
        truth: shape ``shape``.
        fair: as in `crps`.

    Raises:
        ValueError: where the shapes do not fit, or a fair score is asked of a single draw.

    Source: Gneiting & Raftery (2007), J. Am. Stat. Assoc. 102, equation 22, with beta = 1.
    """
    x, t = _checked("energy_score", draws, truth)
    x, t = x.reshape(len(x), -1), t.ravel()
    pairs = 0.0
    for start in range(0, len(x), BLOCK):
        difference = x[start : start + BLOCK, None] - x
        pairs += float(np.sqrt(np.sum(difference**2, axis=-1)).sum())
    error = np.mean(np.linalg.norm(x - t, axis=1))
    return float(error - 0.5 * pairs / _num_pairs("energy_score", len(x), fair))


def spread_skill_ratio(draws: ArrayLike, truth: ArrayLike) -> float:
    """Spread of the draws over the error of their mean; 1 is right, below 1 is overconfident.

    ``sqrt((J + 1)/J * mean_j ||x_j - xbar||^2 / ||xbar - truth||^2)``, with J draws and the mean over J - 1. Squares
    are summed over all of ``shape``, so several cases go in one call as ``(num_draws, cases, dim)``. The ratio of a
    single scalar has a large variance.

    Args:
        draws: shape ``(num_draws, *shape)``.
        truth: shape ``shape``.

    Raises:
        ValueError: where the shapes do not fit, or there are fewer than two draws.

    Source: Fortin et al. (2014), J. Hydrometeorol. 15, equation 15.
    """
    x, t = _checked("spread_skill_ratio", draws, truth)
    j = len(x)
    if j < 2:
        raise ValueError("spread_skill_ratio needs at least 2 draws; got 1")
    spread = np.sum(np.var(x, axis=0, ddof=1))
    error = np.sum((x.mean(axis=0) - t) ** 2)
    with np.errstate(divide="ignore"):
        return float(np.sqrt((j + 1) / j * spread / error))


def _checked(name: str, draws, truth) -> tuple[Float[np.ndarray, "..."], Float[np.ndarray, "..."]]:
    x, t = np.asarray(draws, float), np.asarray(truth, float)
    if x.ndim == 0 or x.shape[1:] != t.shape or not len(x):
        raise ValueError(
            f"{name} needs draws of shape (num_draws, *shape) for a truth of shape (*shape); "
            f"got draws {x.shape} and truth {t.shape}"
        )
    return x, t


def _num_pairs(name: str, j: int, fair: bool) -> int:
    if fair and j < 2:
        raise ValueError(f"{name} needs at least 2 draws, or fair=False; got 1")
    return j * (j - 1) if fair else j * j
