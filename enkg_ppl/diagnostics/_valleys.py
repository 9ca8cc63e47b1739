"""Where draws fall apart: valleys of their density along a few directions, for latent spaces with many dimensions.

A mixture fitted in all dimensions costs a Cholesky factor and a solve of every component at every step, and has more
numbers than there are draws. Modes that are apart are so along some direction; those along which the draws look
least like one hill are looked at one by one. No direction is chosen by what tells ensembles apart, so that the shares
of what is found can be tested.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

NUM_DIRECTIONS = 12
MOST_TO_FIT = 512  # draws that densities are fitted to
NUM_ITERATIONS = 2
# Directions of extreme fourth moments (FOBI) want this many draws a dimension; beyond, noise has the most extreme.
DRAWS_PER_DIM = 8
COMPONENTS, NUM_STEPS = (1, 2, 3, 4, 6, 8), 100
LEAST_SD = 0.01  # of a component, in standard deviations of all draws
GRID = 256
# Two hills are two where the density between them falls below this share of the lower one.
VALLEY = 0.5
ERRORS = 3.0  # by which the numbers of draws in valley and hill must differ


def cells(rng: np.random.Generator, z: Float[np.ndarray, "draws dim"]) -> Int[np.ndarray, " draws"]:
    """The cell of every draw, 0, 1, ...: all in 0 where no valley is found."""
    along = _projections(rng, z)
    chosen = along[:, rng.choice(len(z), min(len(z), MOST_TO_FIT), replace=False)]
    labels = np.stack([np.searchsorted(found, x) for found, x in zip(_cuts(chosen), along, strict=True)], axis=1)
    return np.unique(labels, axis=0, return_inverse=True)[1].reshape(-1)


def _projections(rng: np.random.Generator, z) -> Float[np.ndarray, "directions draws"]:
    """The draws along the directions that look most like two hills: coordinates, principal components, FOBI's."""
    n, d = z.shape
    x = np.asarray(z - z.mean(axis=0), np.float32 if d > n else float).T  # half the time for as good directions
    candidates = [x]
    if n >= DRAWS_PER_DIM * d:
        values, vectors = np.linalg.eigh(x @ x.T)
        components = vectors[:, values > 1e-9 * max(values[-1], 1e-300)].T @ x
        white = components / components.std(axis=1, keepdims=True)
        # Cardoso (1989), ICASSP: directions in which the fourth moments are extreme.
        extreme = np.linalg.eigh((white * np.sum(white**2, axis=0)) @ white.T)[1].T @ white
        candidates += [components, extreme]
    else:
        candidates.append(_leading(rng, x).T @ x)
    found = []
    for part in candidates:
        sd = part.std(axis=1)
        part = part[sd > 1e-12 * max(sd.max(), 1e-300)]
        part = part / part.std(axis=1, keepdims=True)
        best = np.argsort(-_bimodality(part), kind="stable")[:NUM_DIRECTIONS]
        found.append(part[best])
    joined = np.concatenate(found)
    return joined[np.argsort(-_bimodality(joined), kind="stable")[:NUM_DIRECTIONS]]


def _leading(rng: np.random.Generator, x: Float[np.ndarray, "dim draws"]) -> Float[np.ndarray, "dim directions"]:
    """The leading principal components, by iterations from random projections.

    Source: Halko, Martinsson & Tropp (2011), SIAM Review 53, algorithm 4.4.
    """
    directions = _orthonormal(x @ rng.standard_normal((x.shape[1], 2 * NUM_DIRECTIONS), x.dtype))
    for _ in range(NUM_ITERATIONS):
        directions = _orthonormal(x @ (x.T @ directions))
    projected = directions.T @ x
    return directions @ np.linalg.eigh(projected @ projected.T)[1][:, ::-1]


def _orthonormal(columns: Float[np.ndarray, "dim directions"]) -> Float[np.ndarray, "dim directions"]:
    """Their span, by the inner products: LAPACK's QR of a tall matrix takes longer on cores that are busy."""
    values, vectors = np.linalg.eigh(columns.T @ columns)
    kept = values > 1e-7 * max(values[-1], 1e-30)
    return columns @ (vectors[:, kept] / np.sqrt(values[kept]))


def _bimodality(x: Float[np.ndarray, "directions draws"]) -> Float[np.ndarray, " directions"]:
    """``(skewness^2 + 1) / kurtosis`` of standardised rows: 1 for two points whatever their shares, 1/3 for a normal.

    Source: Pearson (1916), Phil. Trans. R. Soc. A 216, p. 433.
    """
    square = x * x
    third = np.einsum("ij,ij->i", square, x) / x.shape[1]
    fourth = np.einsum("ij,ij->i", square, square) / x.shape[1]
    return (third**2 + 1) / fourth


def _cuts(x: Float[np.ndarray, "directions draws"]) -> list[Float[np.ndarray, " cuts"]]:
    """Where to cut every row: at the bottoms of the valleys of the normal mixture that suits it best (BIC)."""
    n = x.shape[1]
    fits = [_normal_mixture(x, k) for k in COMPONENTS]
    bic = np.stack([-2 * fit[3] + (3 * k - 1) * np.log(n) for k, fit in zip(COMPONENTS, fits, strict=True)])
    found = []
    for i, best in enumerate(bic.argmin(axis=0)):
        weights, means, sds, _ = (part[i] for part in fits[best])
        grid = np.linspace(x[i].min(), x[i].max(), GRID)
        density = np.sum(weights / sds * np.exp(-0.5 * ((grid[:, None] - means) / sds) ** 2), axis=1)
        found.append(_seen(x[i], grid, density, _valleys(density)))
    return found


def _seen(x: Float[np.ndarray, " draws"], grid, density, bottoms: list[int]) -> Float[np.ndarray, " cuts"]:
    """The valleys that hold fewer draws than the hills beside them by more than chance; a mixture may have others."""
    found, begin = [], 0
    for i, bottom in enumerate(bottoms):
        end = bottoms[i + 1] if i + 1 < len(bottoms) else len(grid)
        hills = grid[begin + density[begin:bottom].argmax()], grid[bottom + density[bottom:end].argmax()]
        half = (hills[1] - hills[0]) / 6
        low, *high = (np.sum(np.abs(x - centre) < half) for centre in (grid[bottom], *hills))
        if min(high) - low > ERRORS * (min(high) + low) ** 0.5:
            found.append(grid[bottom])
            begin = bottom
    return np.asarray(found)


def _valleys(density: Float[np.ndarray, " grid"]) -> list[int]:
    """Places of the lowest points between hills."""
    found, hill, bottom = [], 0, None
    for i, value in enumerate(density):
        if bottom is None:
            if value > density[hill]:
                hill = i
            elif value < VALLEY * density[hill]:
                bottom = i
        elif value < density[bottom]:
            bottom = i
        elif density[bottom] < VALLEY * value:  # as high again: another hill begins
            found.append(bottom)
            hill, bottom = i, None
    return found


def _normal_mixture(x: Float[np.ndarray, "directions draws"], k: int):
    """Weights, means and sds, each (directions, k), and the log likelihood, of every row, by EM from its quantiles."""
    means = np.quantile(x, (np.arange(k) + 0.5) / k, axis=1).T
    sds, weights = np.full(means.shape, 1 / k**0.5), np.full(means.shape, 1 / k)
    log_likelihood = np.zeros(len(x))
    for _ in range(NUM_STEPS if k > 1 else 2):
        log_joint = np.log(weights / sds)[:, :, None] - 0.5 * ((x[:, None] - means[:, :, None]) / sds[:, :, None]) ** 2
        largest = log_joint.max(axis=1, keepdims=True)
        joint = np.exp(log_joint - largest)
        total = joint.sum(axis=1, keepdims=True)
        log_likelihood = np.sum(largest + np.log(total), axis=(1, 2)) - 0.5 * x.shape[1] * np.log(2 * np.pi)
        share = joint / total
        count = share.sum(axis=2) + 1e-9
        weights, means = count / count.sum(axis=1, keepdims=True), np.einsum("dkn,dn->dk", share, x) / count
        square = np.einsum("dkn,dn->dk", share, x * x) / count - means**2
        sds = np.sqrt(np.maximum(square, 0) + LEAST_SD**2)
    return weights, means, sds, log_likelihood
