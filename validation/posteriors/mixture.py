"""Mixture priors with linear observations: the posterior is a mixture again.

The twenty-five components of `mixture25` are those on which guidance of diffusion models is commonly tried:
Cardoso, Janati El Idrissi, Le Corff & Moulines, "Monte Carlo guided diffusion for Bayesian linear inverse problems",
arXiv 2308.07983.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from enkg_ppl import InverseProblem, MixturePrior
from enkg_ppl.likelihood import GaussianLikelihood
from validation.target import Target, Truth

DIMS, NUM_DATA, NUM_INSTANCES = (8, 80, 800), (1, 2, 4), 3
NUM_DRAWS = 4000
SPACING = 8.0
GRID = np.array(list(itertools.product(range(-2, 3), repeat=2)))


@dataclasses.dataclass(frozen=True)
class MixtureProblem:
    """``x ~ sum_k weights_k N(means_k, I)``, ``y ~ N(A x, noise_sd^2 I)``; A has orthogonal rows."""

    weights: Float[np.ndarray, " components"]
    means: Float[np.ndarray, "components dim"]
    A: Float[np.ndarray, "data dim"]
    noise_sd: float
    y: Float[np.ndarray, " data"]
    x: Float[np.ndarray, " dim"]

    def problem(self) -> InverseProblem:
        prior = MixturePrior(self.weights, self.means, np.ones(len(self.weights)))
        return InverseProblem(prior, _Linear(jnp.asarray(self.A)), GaussianLikelihood(self.y, self.noise_sd))

    def truth(self) -> Truth:
        """Components with one covariance, I less what the data tell; weights by their evidence."""
        num_data, dim = self.A.shape
        gram = self.A @ self.A.T
        gain = self.A.T @ np.linalg.inv(gram + self.noise_sd**2 * np.eye(num_data))
        residuals = self.y - self.means @ self.A.T
        C_yy = gram + self.noise_sd**2 * np.eye(num_data)
        _, log_determinant = np.linalg.slogdet(2 * math.pi * C_yy)
        misfit = np.sum(residuals * np.linalg.solve(C_yy, residuals.T).T, axis=1)
        log_joint = np.log(self.weights) - 0.5 * (misfit + log_determinant)
        log_evidence = float(np.logaddexp.reduce(log_joint))
        masses = np.exp(log_joint - log_evidence)
        means = self.means + residuals @ gain.T

        # I - gain A = (I - P) + what noise leaves of P, the projection onto the rows of A
        rows = np.linalg.qr(self.A.T)[0]
        left = np.eye(num_data) - rows.T @ gain @ self.A @ rows
        values, basis = np.linalg.eigh(left)
        root = rows @ (basis * np.sqrt(np.maximum(values, 0))) @ basis.T
        variance = 1 - np.sum((gain @ self.A) * np.eye(dim), axis=1)

        rng = np.random.default_rng(0)
        component = rng.choice(len(masses), NUM_DRAWS, p=masses)
        noise = rng.standard_normal((NUM_DRAWS, dim))
        along = noise @ rows
        draws = means[component] + noise - along @ rows.T + along @ root.T
        mean = masses @ means
        between = masses @ (means - mean) ** 2
        return Truth(
            draws,
            source="closed form",
            mean=mean,
            sd=np.sqrt(variance + between),
            log_evidence=log_evidence,
            masses=masses,
            simulated_from=self.x,
        )


class _Linear(eqx.Module):
    A: Float[Array, "data dim"]

    def __call__(self, x: Float[Array | np.ndarray, " dim"]) -> Float[Array, " data"]:
        return self.A @ x


def mixture25(dim: int, num_data: int, instance: int) -> MixtureProblem:
    """One random instance: weights |N(0, 1)|^2, A = U diag(s) V^T with s ~ U(0, 1) sorted, noise sd ~ U(0, 1) max s."""
    rng = np.random.default_rng((dim, num_data, instance))
    means = SPACING * np.tile(GRID, dim // 2)
    weights = rng.standard_normal(len(GRID)) ** 2
    weights /= weights.sum()
    U, _, V = np.linalg.svd(rng.standard_normal((num_data, dim)), full_matrices=False)
    s = np.sort(rng.uniform(size=num_data))[::-1]
    A = U @ np.diag(s) @ V
    noise_sd = rng.uniform() * s.max()
    x = means[rng.choice(len(weights), p=weights)] + rng.standard_normal(dim)
    y = A @ x + noise_sd * rng.standard_normal(num_data)
    return MixtureProblem(weights, means, A, float(noise_sd), y, x)


def mixture25_mode(draws: Float[np.ndarray, "draws dim"]) -> Int[np.ndarray, " draws"]:
    """The component whose mean is nearest: sixteen standard deviations apart or more, in eight dimensions."""
    cells = [np.clip(np.rint(draws[:, k::2].mean(axis=1) / SPACING), -2, 2).astype(int) + 2 for k in (0, 1)]
    return 5 * cells[0] + cells[1]


def four_corners() -> MixtureProblem:
    """Four components in the plane, of which one datum keeps two: small enough for a quick look."""
    weights = np.array([0.1, 0.2, 0.3, 0.4])
    means = 3.0 * np.array([[-1.0, -1.0], [-1.0, 1.0], [1.0, -1.0], [1.0, 1.0]])
    return MixtureProblem(weights, means, np.array([[1.0, 0.0]]), 0.5, np.array([3.3]), np.array([3.0, 3.0]))


def four_corners_mode(draws: Float[np.ndarray, "draws 2"]) -> Int[np.ndarray, " draws"]:
    """The quadrant."""
    return 2 * (draws[:, 0] > 0) + (draws[:, 1] > 0)


def targets() -> list[Target]:
    """``mixture/four_corners`` and ``mixture25/d<dim>_m<data>/<1..3>``."""
    found = [
        Target(
            name="mixture/four_corners",
            suites=("mixture", "quick"),
            truth=lambda: four_corners().truth(),
            problem=lambda: four_corners().problem(),
            modes=four_corners_mode,
        )
    ]
    for dim, num_data, instance in itertools.product(DIMS, NUM_DATA, range(1, NUM_INSTANCES + 1)):
        make = functools.partial(mixture25, dim, num_data, instance)
        found.append(
            Target(
                name=f"mixture25/d{dim}_m{num_data}/{instance}",
                suites=("mixture25", f"mixture25/d{dim}"),
                truth=functools.partial(_truth, make),
                problem=functools.partial(_problem, make),
                modes=mixture25_mode,
            )
        )
    return found


def _truth(make) -> Truth:
    return make().truth()


def _problem(make) -> InverseProblem:
    return make().problem()
