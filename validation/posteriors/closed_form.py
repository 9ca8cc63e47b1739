"""Linear-Gaussian models: posterior and evidence by linear algebra."""

from __future__ import annotations

import functools
import math

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, Float

from validation.target import Target, Truth

NOISE_SD = 0.3
NUM_DRAWS = 10_000
# In ten dimensions and in a hundred there are fewer data than unknowns: some directions stay as the prior has them.
NUM_DATA = {2: 2, 10: 6, 100: 50}


def linear_gaussian(A: Float[ArrayLike, "data dim"], y: Float[ArrayLike, " data"] | None = None) -> None:
    """theta ~ N(0, I), y ~ N(A theta, 0.3^2 I)."""
    A = jnp.asarray(A)
    theta = jnp.asarray(numpyro.sample("theta", dist.Normal(0.0, 1.0).expand([A.shape[1]]).to_event(1)))
    numpyro.sample("y", dist.Normal(A @ theta, NOISE_SD).to_event(1), obs=y)


class GaussianPosterior:
    """``x ~ N(prior_mean, prior_covariance)``, ``y = A x + N(0, noise_sd^2 I)``: everything that one may ask.

    `mean`, `covariance`: of x given y. `log_evidence`: nats.
    """

    def __init__(
        self,
        A: Float[np.ndarray, "data dim"],
        y: Float[np.ndarray, " data"],
        noise_sd: float,
        prior_mean: Float[np.ndarray, " dim"],
        prior_covariance: Float[np.ndarray, "dim dim"],
    ):
        C_xg = prior_covariance @ A.T
        C_yy = A @ C_xg + noise_sd**2 * np.eye(len(y))
        K = np.linalg.solve(C_yy, C_xg.T).T
        residual = y - A @ prior_mean
        self.mean = prior_mean + K @ residual
        self.covariance = prior_covariance - K @ C_xg.T
        _, log_determinant = np.linalg.slogdet(2 * math.pi * C_yy)
        self.log_evidence = float(-0.5 * (residual @ np.linalg.solve(C_yy, residual) + log_determinant))

    @property
    def sd(self) -> Float[np.ndarray, " dim"]:
        return np.sqrt(np.diag(self.covariance))

    def sample(self, rng: np.random.Generator, num_draws: int) -> Float[np.ndarray, "draws dim"]:
        """Independent exact draws."""
        variances, basis = np.linalg.eigh(self.covariance)
        root = basis * np.sqrt(np.maximum(variances, 0))
        return self.mean + rng.standard_normal((num_draws, len(self.mean))) @ root.T

    def truth(self, simulated_from: Float[np.ndarray, " dim"], num_draws: int) -> Truth:
        return Truth(
            self.sample(np.random.default_rng(0), num_draws),
            source="closed form",
            mean=self.mean,
            sd=self.sd,
            log_evidence=self.log_evidence,
            simulated_from=simulated_from,
        )


def targets() -> list[Target]:
    """``closed_form/linear_gaussian_<dim>`` in 2, 10 and 100 dimensions."""
    return [_target(dim, num_data) for dim, num_data in NUM_DATA.items()]


def _target(dim: int, num_data: int) -> Target:
    rng = np.random.default_rng(dim)
    A = rng.standard_normal((num_data, dim)) / math.sqrt(dim)
    theta = rng.standard_normal(dim)
    y = A @ theta + NOISE_SD * rng.standard_normal(num_data)
    return Target(
        name=f"closed_form/linear_gaussian_{dim}",
        suites=("closed_form", "quick") if dim <= 10 else ("closed_form",),
        truth=functools.partial(_truth, A, y, theta),
        model=linear_gaussian,
        args=(A,),
        kwargs={"y": y},
        sites=("theta",),
    )


def _truth(A: Float[np.ndarray, "data dim"], y: Float[np.ndarray, " data"], theta: Float[np.ndarray, " dim"]) -> Truth:
    dim = len(theta)
    posterior = GaussianPosterior(A, y, NOISE_SD, np.zeros(dim), np.eye(dim))
    return posterior.truth(theta, NUM_DRAWS)
