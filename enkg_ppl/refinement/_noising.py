"""Noise that knows the data: less of it along what the data determine, around a point shifted towards them.

Noise of standard deviation sigma, ``x_t = x + sigma eps``, is undone by a draw from ``p(x | x_t)``, which knows the
prior and not the data. Where the likelihood is ``exp(-(x - x*)^T H (x - x*) / 2)`` and no eigenvalue of
``sigma^2 H`` is above 1, noise with

    x_t ~ N(x + P (x* - x), sigma^2 (I - P)),    P = sigma^2 H,

makes likelihood times density of x_t, over N(x_t; x, sigma^2 I), free of x: every draw from the prior's conditional
is then a draw from the posterior's. Put differently, that likelihood is a Gaussian of covariance
``H^-1 - sigma^2`` in x_t, blurred by sigma. Other likelihoods leave a ratio to be accepted or not; eigenvalues above 1
are cut.

``P (x* - x)`` is computed as a gain times ``y - G(x)``, and the slope of G is learnt from moves made before.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float

from enkg_ppl.linearise._penalty import Fixed
from enkg_ppl.linearise._ridge import ridge

# Largest eigenvalue of P: at 1 there would be no noise left along it.
MAX_SHARE = 0.95
# Shifts longer than this many of their own standard deviations are cut, against wild simulators.
MAX_SHIFT = 4.0
# Differences of an output beyond this many times their median are cut.
MAX_STEEPNESS = 5.0
# Pairs that the slope is learnt from, and the penalty, in squared lengths of a typical pair.
MAX_PAIRS = 1024
RIDGE = 0.3
# Directions that are kept, the best determined first: an ensemble does not tell more of them apart.
MAX_DIRECTIONS = 256

Points = Float[np.ndarray, "particles dim"]
Innovation = Float[np.ndarray, "particles m"]
Levels = Float[np.ndarray, " particles"]


@dataclasses.dataclass(frozen=True)
class Noising:
    """``x_t ~ N(x + shift(x), sigma^2 (I - P))``, with P the same for all x.

    `directions`: eigenvectors of H = J^T Gamma^-1 J, shape (dim, rank), for the slope J of the simulator.
    `outputs`: where each moves the data, in units of their noise, times ``Gamma^(-1/2)``, shape (m, rank).
    `slopes`: the square roots of the eigenvalues, shape (rank,).
    """

    directions: Float[np.ndarray, "dim rank"]
    outputs: Float[np.ndarray, "m rank"]
    slopes: Float[np.ndarray, " rank"]

    @classmethod
    def plain(cls, dim: int, m: int) -> Noising:
        """Isotropic noise and no shift."""
        return cls(np.zeros((dim, 0)), np.zeros((m, 0)), np.zeros(0))

    @classmethod
    def from_slope(cls, slope: Float[np.ndarray, "dim m"], gamma: Float[np.ndarray, " m"]) -> Noising:
        """From the transposed slope of the simulator and the variances of the data."""
        if slope.size == 0:
            return cls.plain(*slope.shape)
        sd = np.sqrt(gamma)
        directions, slopes, outputs = np.linalg.svd(slope / sd, full_matrices=False)
        rank = min(int(np.sum(slopes > 1e-6 * max(slopes[0], np.finfo(float).tiny))), MAX_DIRECTIONS)
        return cls(directions[:, :rank], outputs[:rank].T / sd[:, None], slopes[:rank])

    def _shares(self, sigma: Levels) -> Float[np.ndarray, "particles rank"]:
        """Eigenvalues of P at each particle's noise level."""
        return np.minimum((self.slopes * sigma[:, None]) ** 2, MAX_SHARE)

    def shift(self, innovation: Innovation, sigma: Levels) -> Points:
        """``P (x* - x)`` for particles with these innovations ``y - G(x)``."""
        share = self._shares(sigma)
        shift = (innovation @ self.outputs) * share / self.slopes
        length2 = np.sum(shift**2, axis=1)
        longest2 = MAX_SHIFT**2 * sigma**2 * np.sum(share, axis=1)
        shift *= np.sqrt(longest2 / np.maximum(np.maximum(length2, longest2), np.finfo(float).tiny))[:, None]
        return shift @ self.directions.T

    def noise(self, normals: Points, sigma: Levels) -> Points:
        """Draws of ``N(0, sigma^2 (I - P))`` from draws of N(0, I)."""
        missing = (normals @ self.directions) * (1 - np.sqrt(1 - self._shares(sigma)))
        return sigma[:, None] * (normals - missing @ self.directions.T)

    def log_density_ratio(self, x_t: Points, x: Points, shift: Points, sigma: Levels):
        """``log N(x_t; x + shift, sigma^2 (I - P)) - log N(x_t; x, sigma^2 I)`` but for terms without x."""
        share = self._shares(sigma)
        away = x_t - x
        rest = away - shift
        along = rest @ self.directions
        # |rest|^2 - |away|^2, without the cancellation of two large squares
        square = np.sum(shift * (shift - 2 * away), axis=1) + np.sum(along**2 * share / (1 - share), axis=1)
        return -0.5 * square / sigma**2


class SlopePool:
    """The transposed slope of a simulator, from pairs of nearby inputs and their outputs: the latest `MAX_PAIRS`.

    Ridge regression of ``(G(x') - G(x)) / (sqrt 2 sigma)`` on ``(x' - x) / (sqrt 2 sigma)``. Outputs that differ by far
    more than most do are cut: a particle in a steep place must not speak for all.
    """

    def __init__(self, dim: int, m: int):
        self._dx, self._dg = np.zeros((0, dim)), np.zeros((0, m))

    def add(self, dx: Points, dg: Innovation, sigma: Levels) -> None:
        """Take in a step's pairs of differences."""
        scale = 1 / (2**0.5 * sigma[:, None])
        self._dx = np.concatenate([self._dx, dx * scale])[-MAX_PAIRS:]
        self._dg = np.concatenate([self._dg, dg * scale])[-MAX_PAIRS:]

    def slope(self) -> Float[np.ndarray, "dim m"]:
        """Shape (dim, m), in units of the output over those of x; zeros before there are two pairs."""
        if len(self._dx) < 2:
            return np.zeros((self._dx.shape[1], self._dg.shape[1]))
        most = MAX_STEEPNESS * np.median(np.abs(self._dg), axis=0)
        return ridge(self._dx, np.clip(self._dg, -most, most), Fixed(RIDGE), np)
