"""A stationary Gaussian field on a periodic 32 x 32 grid, seen at 64 points: 1,024 unknowns, all known exactly."""

from __future__ import annotations

import dataclasses
import functools

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from enkg_ppl import GaussianPrior, InverseProblem
from enkg_ppl.likelihood import GaussianLikelihood
from models._hartley import Hartley
from validation.posteriors.closed_form import GaussianPosterior
from validation.target import Target, Truth

SIZE, NUM_DATA = 32, 64
NOISE_SDS, NUM_TRUTHS = (0.1, 1.0), 10
NUM_PARTICLES, NUM_DRAWS = 100, 1000
# Spectral density (CUTOFF^2 + |k|^2)^-ROUGHNESS in waves per period: features of about a fifth of the grid's width.
CUTOFF, ROUGHNESS = 3.0, 2.5


class AtPoints(eqx.Module):
    """A field's values at some of its points."""

    points: Int[Array, " data"]

    def __call__(self, x: Float[Array | np.ndarray, " dim"]) -> Float[Array, " data"]:
        return x[self.points]


def spectrum(size: int) -> Float[np.ndarray, " dim"]:
    """Variances of the Hartley modes, `(size^2,)`; they sum to size^2, so that every point has variance 1."""
    k = np.fft.fftfreq(size, 1 / size)
    density = (CUTOFF**2 + k[:, None] ** 2 + k[None, :] ** 2) ** -ROUGHNESS
    return (density / density.mean()).ravel()


def covariance(size: int) -> Float[np.ndarray, "dim dim"]:
    """Of the field's values at all pairs of points."""
    k, n = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    angle = 2 * np.pi / size * k * n
    # cas(a + b) = cos a cas b + sin a cas(-b)
    cas, sac = np.cos(angle) + np.sin(angle), np.cos(angle) - np.sin(angle)
    basis = (np.kron(np.cos(angle), cas) + np.kron(np.sin(angle), sac)) / size
    return (basis * spectrum(size)) @ basis.T


def prior(size: int) -> GaussianPrior:
    """The field as a diffusion prior, diagonal in Hartley modes."""
    variances = jnp.asarray(spectrum(size))
    return GaussianPrior(jnp.zeros_like(variances), variances, Hartley(size), Hartley(size))


@dataclasses.dataclass(frozen=True)
class FieldData:
    """One truth, the points where it was seen, and what was seen."""

    x: Float[np.ndarray, " dim"]
    points: Int[np.ndarray, " data"]
    y: Float[np.ndarray, " data"]


def simulate(noise_sd: float, number: int) -> FieldData:
    """Data of truth `number`; the two noise levels share fields and points."""
    rng = np.random.default_rng(number)
    x = np.asarray(Hartley(SIZE)(jnp.asarray(np.sqrt(spectrum(SIZE)) * rng.standard_normal(SIZE**2))), float)
    points = np.sort(rng.choice(SIZE**2, NUM_DATA, replace=False))
    return FieldData(x, points, x[points] + noise_sd * rng.standard_normal(NUM_DATA))


def targets() -> list[Target]:
    """``gaussian_field/noise_<sd>/<1..10>``."""
    return [
        Target(
            name=f"gaussian_field/noise_{noise_sd}/{number}",
            suites=("gaussian_field", f"gaussian_field/noise_{noise_sd}"),
            truth=functools.partial(_truth, noise_sd, number),
            problem=functools.partial(_problem, noise_sd, number),
            num_particles=NUM_PARTICLES,
        )
        for noise_sd in NOISE_SDS
        for number in range(1, NUM_TRUTHS + 1)
    ]


def _problem(noise_sd: float, number: int) -> InverseProblem:
    data = simulate(noise_sd, number)
    return InverseProblem(prior(SIZE), AtPoints(jnp.asarray(data.points)), GaussianLikelihood(data.y, noise_sd))


def _truth(noise_sd: float, number: int) -> Truth:
    data = simulate(noise_sd, number)
    H = np.eye(SIZE**2)[data.points]
    posterior = GaussianPosterior(H, data.y, noise_sd, np.zeros(SIZE**2), covariance(SIZE))
    return posterior.truth(data.x, NUM_DRAWS)
