"""A Gaussian reference from simulations that are there already: the posterior of the simulator linearised by them.

With more dimensions than particles a sampled covariance is of no use, but the prior is known and the simulator mostly
answers to few directions. Every simulation of the guided flow is a pair (z, G(z)); ridge regression of G on z gives a
slope A and what it leaves unexplained, and ``N(z; 0, I)`` with data ``y ~ N(A z + b, Gamma + residual)`` has a Gaussian
posterior in closed form (statistical linearisation; Särkkä 2013, Bayesian Filtering and Smoothing, section 5.3).
"""

from __future__ import annotations

import jax
import numpy as np

from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._noise import typical_noise
from enkg_ppl.linearise._ridge import affine_ridge
from enkg_ppl.mixtures._student import Reference, gaussian
from enkg_ppl.priors._coordinates import encode_all
from enkg_ppl.problem import InverseProblem
from enkg_ppl.types import Ensemble

DF = 25.0
LARGEST = 1e100  # output whose square is still far from overflow


def linearised_reference(z: Ensemble, response: Response, room: int, dtype) -> Reference | None:
    """The posterior of the linearised simulator; `z`: shape (pairs, dim), `response`: of the same particles.

    `room`: see `fit`. None where hardly any simulation is usable.
    """
    z = np.asarray(z, float)
    g, observed, noise = np.asarray(response.prediction, float), np.asarray(response.observation, float), response.noise
    usable = (np.abs(g) < LARGEST).all(axis=1) & np.isfinite(observed).all(axis=1) & np.isfinite(z).all(axis=1)
    z, g, observed = (a[usable] for a in (z, g, observed))
    if len(z) < 8:
        return None
    slope, intercept, residual = affine_ridge(z, g)
    noise = typical_noise(np.asarray(noise)[usable]) + residual
    scaled = slope / np.sqrt(noise)[:, None]
    precision = np.eye(z.shape[1]) + scaled.T @ scaled
    innovation = (np.median(observed, axis=0) - intercept) / np.sqrt(noise)
    covariance = np.linalg.inv(precision)
    mean = covariance @ (scaled.T @ innovation)
    if not (np.isfinite(mean).all() and np.isfinite(covariance).all()):
        return None
    reference = gaussian(mean, 0.5 * (covariance + covariance.T), DF, room)
    return jax.tree.map(lambda a: a.astype(dtype), reference)


def simulated_reference(evaluate: Evaluator, problem: InverseProblem, room: int) -> Reference | None:
    """From what the guided flow simulated, as the evaluator remembers it; None where there was none."""
    if evaluate.simulated is None:
        return None
    x, response = evaluate.simulated
    z = encode_all(problem.prior, x, evaluate.batch_size)
    return linearised_reference(z, response, room, problem.prior.location.dtype)
