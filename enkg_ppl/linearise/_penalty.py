"""Rules for the penalty of a ridge regression.

Rows that are left out one at a time cost no further fit: what is missed of one is its residual over ``1 - leverage``.

Sources: Hastie, Tibshirani & Friedman (2009), The Elements of Statistical Learning, eq. 7.64 (leave-one-out); Golub,
Heath & Wahba (1979), Technometrics 21, eq. 1.4 (generalised cross-validation).
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

# Penalties tried by `LeaveOneOut`, over the largest eigenvalue of X^T X; the smallest is set by rounding.
LARGEST_PENALTY, NUM_PENALTIES = 1e2, 17
# Penalties tried by `GeneralisedCrossValidation`, over the mean eigenvalue: smallest, largest, number.
MEAN_PENALTIES = (1e-6, 1e2, 33)


class Axes(NamedTuple):
    """``X = scores axes^T``; `values`: squared lengths of the columns of `scores`, rising, as many as X has axes."""

    values: Any
    scores: Any
    axes: Any


def positive(a, xp: Any):
    """Where there is nothing, 1 to divide by."""
    return xp.where(a > 0, a, 1.0)


@dataclasses.dataclass(frozen=True)
class LeaveOneOut:
    """The penalty with the smallest error of rows that are left out one at a time.

    `centring`: the share that a row has in the mean that was taken off it, one over their number. Without it, fewer
    rows than directions seem to be predicted perfectly by the others, as centred rows add up to zero.
    """

    centring: float = 0.0

    def penalties(self, x: Axes, dtype, xp: Any):
        smallest = 100 * xp.finfo(dtype).eps
        return positive(x.values[-1], xp) * xp.geomspace(smallest, LARGEST_PENALTY, NUM_PENALTIES, dtype=dtype)

    def errors(self, x: Axes, Y, moments, penalty, xp: Any):
        """Squares of what is missed, summed over the rows; `moments`: ``scores^T Y``."""
        inverse = 1 / (x.values + penalty)
        residual = Y - x.scores @ (inverse[:, None] * moments)
        leverage = self.centring + xp.sum(x.scores**2 * inverse[None], axis=1)
        residual = residual / xp.maximum(1 - leverage, 100 * xp.finfo(Y.dtype).eps)[:, None]
        return xp.sum(residual**2, axis=0)


@dataclasses.dataclass(frozen=True)
class GeneralisedCrossValidation:
    """As `LeaveOneOut`, every row with the mean leverage, for which the rows need not be gone through."""

    def penalties(self, x: Axes, dtype, xp: Any):
        return positive(xp.mean(x.values), xp) * xp.geomspace(*MEAN_PENALTIES, dtype=dtype)

    def errors(self, x: Axes, Y, moments, penalty, xp: Any):
        inverse = 1 / (x.values + penalty)
        explained = xp.sum(((1 + penalty * inverse) * inverse)[:, None] * moments**2, axis=0)
        return (xp.sum(Y**2, axis=0) - explained) / (1 - xp.sum(x.values * inverse) / len(Y)) ** 2


@dataclasses.dataclass(frozen=True)
class Fixed:
    """`share` times the mean square of a row."""

    share: float

    def penalty(self, X, xp: Any):
        return self.share * positive(xp.sum(X**2) / len(X), xp)
