"""Draws of a proposal that are spread evenly: each coordinate's values come one from each of n equal shares."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int

from enkg_ppl._special import gammaincinv, ndtri
from enkg_ppl.mixtures._student import Reference
from enkg_ppl.types import Ensemble


def latin_hypercube(rng: np.random.Generator, n: int, d: int) -> Float[np.ndarray, "n d"]:
    """Uniform numbers, each column stratified; averages of sums of functions of one column have hardly any error.

    Source: McKay, Beckman & Conover (1979), Technometrics 21, 239.
    """
    places = rng.permuted(np.broadcast_to(np.arange(n), (d, n)), axis=1).T
    return (places + rng.uniform(1e-9, 1 - 1e-9, (n, d))) / n


def normals(rng: np.random.Generator, n: int, d: int) -> Ensemble:
    """Draws of N(0, I)."""
    return np.asarray(ndtri(latin_hypercube(rng, n, d)))


def shared_out(rng: np.random.Generator, shares: Float[np.ndarray, " parts"], n: int) -> Int[np.ndarray, " n"]:
    """Parts of n draws, in order: each has its share of them to the nearest one, and on average just that."""
    edges = np.cumsum(shares) / shares.sum()
    return np.minimum(np.searchsorted(edges, (np.arange(n) + rng.random()) / n), len(edges) - 1)


def draws_of(rng: np.random.Generator, reference: Reference, n: int) -> Ensemble:
    """Draws of a mixture: each component has its share of them to the nearest one, and those are stratified."""
    d, df = reference.mixture.means.shape[1], float(reference.df)
    component = shared_out(rng, np.exp(reference.mixture.log_weights), n)
    uniforms = np.empty((n, d + 1))
    for k in np.unique(component):
        rows = component == k
        uniforms[rows] = latin_hypercube(rng, int(rows.sum()), d + 1)
    chi2 = 2 * gammaincinv(df / 2, uniforms[:, 0])
    return reference.places(component, chi2, np.asarray(ndtri(uniforms[:, 1:])))
