"""Expected coverage of joint credible regions, by tests of accuracy with random points (TARP).

A region is the ball around a reference point that holds a given share of the draws. Where draws come from the right
posterior, and the reference does not depend on the truth, the ball of credibility alpha holds the truth in a share
alpha of all data sets. Source: Lemos, Coogan, Hezaveh & Perreault-Levasseur (2023), ICML, arXiv 2302.03026.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from enkg_ppl._checks import check_share, check_whole
from enkg_ppl.calibration._result import SBC


@dataclasses.dataclass(frozen=True)
class Coverage:
    """Expected coverage at every credibility level.

    Attributes:
        credibility: the levels alpha, ``k / (num_draws + 1)``.
        expected: share of truths inside the regions of each level; equals `credibility` where the posterior is right.
        noise: value that `max_error` of a right posterior stays below with probability `level`, by bootstrap of the
            data sets.
        level: see `noise`.
        num_datasets: number of data sets.
    """

    credibility: Float[np.ndarray, " levels"]
    expected: Float[np.ndarray, " levels"]
    noise: float
    level: float
    num_datasets: int

    @property
    def max_error(self) -> float:
        """Largest ``|expected - credibility|``."""
        return float(np.max(np.abs(self.expected - self.credibility)))

    @property
    def mean_error(self) -> float:
        """Mean of ``|expected - credibility|`` over the levels."""
        return float(np.mean(np.abs(self.expected - self.credibility)))

    @property
    def inside(self) -> bool:
        """Whether the largest error is no more than chance explains."""
        return self.max_error <= self.noise

    def __str__(self) -> str:
        return (
            f"expected coverage: largest error {self.max_error:.3f}, mean error {self.mean_error:.3f}; "
            f"with {self.num_datasets} data sets a right posterior stays below {self.noise:.3f} with probability "
            f"{self.level:.2g}"
        )


def coverage(
    draws: SBC | ArrayLike,
    truths: ArrayLike | None = None,
    *,
    references: ArrayLike | None = None,
    num_references: int = 50,
    level: float = 0.95,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> Coverage:
    """TARP: are the joint credible regions of a posterior of the right size?

    Distances are Euclidean after each scalar is divided by the interquartile range of its truths.

    Args:
        draws: what `sbc` returned; or draws of shape ``(num_datasets, num_draws, dim)``, together with `truths`.
        truths: shape ``(num_datasets, dim)``.
        references: reference points, shape ``(num_datasets, dim)`` or ``(num_references, num_datasets, dim)``, in the
            units of the draws. By default truths of other data sets, chosen at random: they are distributed like the
            prior.
        num_references: points a data set; the shares are averaged over them, which makes them less noisy.
        level: for `Coverage.noise`.
        num_bootstrap: for `Coverage.noise`.
        seed: of the references and the bootstrap.

    Raises:
        ValueError: where shapes do not fit, values are not finite, fewer than 10 data sets are given, or the study kept
            no draws.
    """
    x, t = _draws_and_truths(draws, truths)
    check_share("coverage", level=level)
    rng = np.random.default_rng(seed)
    points = _references(references, num_references, t, rng)
    scale = np.subtract(*np.quantile(t, [0.75, 0.25], axis=0))
    scale = np.where(scale > 0, scale, 1.0)
    n, num_draws, _ = x.shape
    cuts = np.arange(1, num_draws + 1)
    inside = np.zeros((n, num_draws))  # share of references whose region of this level holds the truth
    for point in points:
        inside += _ranks(x / scale, t / scale, point / scale, rng)[:, None] < cuts
    inside /= len(points)
    expected = inside.mean(axis=0)
    weights = rng.multinomial(n, np.full(n, 1 / n), size=num_bootstrap) / n
    stray = np.abs(weights @ inside - expected).max(axis=1)
    return Coverage(cuts / (num_draws + 1), expected, float(np.quantile(stray, level)), level, n)


def _ranks(x, t, point, rng) -> Int[np.ndarray, " datasets"]:
    """Number of draws that are closer to the reference than the truth is, ties broken at random."""
    of_draws = np.sum((x - point[:, None]) ** 2, axis=-1)
    of_truth = np.sum((t - point) ** 2, axis=-1)[:, None]
    ties = np.sum(of_draws == of_truth, axis=1)
    return np.sum(of_draws < of_truth, axis=1) + rng.integers(0, ties + 1)


def _draws_and_truths(draws, truths):
    if isinstance(draws, SBC):
        if draws.draws is None:
            raise ValueError("coverage needs the draws of the study: run sbc with keep_draws=True")
        done = draws.finished
        x, t = draws.draws[done], draws.truths[done]
    elif truths is None:
        raise ValueError("coverage needs truths where draws are given, of shape (num_datasets, dim)")
    else:
        x, t = np.asarray(draws, float), np.asarray(truths, float)
    if x.ndim != 3 or t.shape != (x.shape[0], x.shape[2]):
        raise ValueError(
            "coverage needs draws of shape (num_datasets, num_draws, dim) and truths of shape (num_datasets, dim); "
            f"got {x.shape} and {t.shape}"
        )
    if len(x) < 10:
        raise ValueError(f"coverage needs at least 10 data sets; got {len(x)}")
    if not (np.isfinite(x).all() and np.isfinite(t).all()):
        raise ValueError("coverage needs finite draws and truths: leave out the data sets that hold NaN or infinity")
    return x, t


def _references(references, num_references: int, t, rng) -> Float[np.ndarray, "references datasets dim"]:
    n = len(t)
    if references is None:
        check_whole("coverage", num_references=num_references)
        # Another data set's truth: a shift by 1..n-1 places never lands on one's own.
        others = (np.arange(n) + rng.integers(1, n, size=(num_references, n))) % n
        return t[others]
    points = np.asarray(references, float)
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[1:] != t.shape:
        raise ValueError(
            f"coverage needs references of shape {t.shape} or (num_references, *{t.shape}); got {np.shape(references)}"
        )
    return points
