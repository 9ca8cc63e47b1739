"""Nested samplers that many users pick for likelihoods without a gradient: nautilus and dynesty, optional peers."""

from __future__ import annotations

import time
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from scipy.special import ndtri

from validation.methods._base import Method, Result
from validation.methods._latent import Latent
from validation.resampling import systematic
from validation.target import Target

NUM_LIVE = 100  # of nautilus
EFFECTIVE_SHARE = 0.5  # effective size that is asked for, as a share of the draws
SMALLEST, LARGEST = 1e-12, 1 - 1e-12  # of a uniform number, so that its normal quantile is finite


def run_nautilus(target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None) -> Result:
    """Importance nested sampling with bounds by neural networks, over z.

    With 100 live points, which needed the fewest evaluations of those tried (100 to 2,000) and gave right means; all
    else is its default. It ends at an effective size of half the draws, or at `budget`; the draws are resampled from
    all its evaluations.

    Raises `RuntimeError` where nautilus is not installed.

    Source: Lange (2023), Mon. Not. R. Astron. Soc. 525, 3181.
    """
    try:
        import nautilus  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError(
            "method 'nautilus' needs the package nautilus-sampler: pip install nautilus-sampler"
        ) from None
    start = time.perf_counter()
    latent, batch = _Batches(target), 100
    sampler = nautilus.Sampler(
        ndtri,
        latent.log_likelihood,
        n_dim=latent.dim,
        n_live=NUM_LIVE,
        n_batch=batch,
        vectorized=True,
        pass_dict=False,
        seed=seed,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # networks that have not converged in its few steps, which it knows
        limit = np.inf if budget is None else budget
        ended = sampler.run(n_eff=EFFECTIVE_SHARE * num_draws, n_like_max=limit, verbose=progress)
    z, log_weights, _ = sampler.posterior()
    said = [] if ended else [f"nautilus had not ended after {sampler.n_like:,} evaluations"]
    return latent.result(seed, z, log_weights, num_draws, start, float(sampler.log_z), said)


def run_dynesty(target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None) -> Result:
    """Dynamic nested sampling with its defaults (multi-ellipsoid bounds), over z.

    It ends at an effective size of half the draws, or at `budget`; the draws are resampled from all its points.

    Raises `RuntimeError` where dynesty is not installed.

    Source: Speagle (2020), Mon. Not. R. Astron. Soc. 493, 3132.
    """
    try:
        import dynesty  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise RuntimeError("method 'dynesty' needs the package dynesty: pip install dynesty") from None
    start = time.perf_counter()
    latent = _Batches(target)

    def log_likelihood(u: np.ndarray) -> float:
        return float(latent.log_likelihood(_normal(u)[None])[0])

    sampler = dynesty.DynamicNestedSampler(
        log_likelihood, lambda u: u, latent.dim, rstate=np.random.Generator(np.random.PCG64(seed))
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        sampler.run_nested(n_effective=int(EFFECTIVE_SHARE * num_draws), maxcall=budget, print_progress=progress)
    found = sampler.results
    log_evidence = float(found.logz[-1])
    return latent.result(seed, _normal(found.samples), found.logwt - log_evidence, num_draws, start, log_evidence, [])


def _normal(u: np.ndarray) -> np.ndarray:
    return ndtri(np.clip(u, SMALLEST, LARGEST))


class _Batches:
    """A target's log likelihood for NumPy, one program for all sizes of batches."""

    SIZE = 100

    def __init__(self, target: Target):
        self._latent = Latent(target)
        self.dim = self._latent.dim
        self.count = 0
        self._program = jax.jit(jax.vmap(self._latent.log_likelihood))

    def log_likelihood(self, z: np.ndarray) -> np.ndarray:
        """Of every row, each counted once; rows that fill up a batch are not."""
        z = np.clip(np.atleast_2d(z), ndtri(SMALLEST), ndtri(LARGEST))
        self.count += len(z)
        size = 1 if len(z) == 1 else self.SIZE
        parts = []
        for first in range(0, len(z), size):
            rows = np.minimum(np.arange(first, first + size), len(z) - 1)
            parts.append(np.asarray(self._program(jnp.asarray(z[rows])))[: len(z) - first])
        return np.concatenate(parts)

    def result(self, seed, z, log_weights, num_draws, start, log_evidence, said) -> Result:
        """Draws resampled from a weighted set."""
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(z))
        chosen = order[systematic(rng.random(), np.asarray(log_weights)[order], num_draws)]
        return Result(
            draws=self._latent.flatten(jnp.asarray(np.asarray(z)[chosen])),
            num_forward_evaluations=self.count,
            num_gradients=0,
            seconds=time.perf_counter() - start,
            log_evidence=log_evidence,
            warnings=said,
        )


METHODS = [
    Method(
        "nautilus",
        "importance nested sampling, effective size half the draws (pip install nautilus-sampler)",
        run_nautilus,
    ),
    Method("dynesty", "dynamic nested sampling, effective size half the draws (pip install dynesty)", run_dynesty),
]
