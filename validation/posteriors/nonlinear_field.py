"""A Gaussian field u on a periodic 16 x 16 grid, seen through a nonlinearity: 256 unknowns, 64 data.

`exp`: y = averages of exp(u) over blocks of 2 x 2 points; one mode, so NUTS in whitened coordinates is the truth.
`abs`: y = |u| at every other point; signs are free, so the truth is parallel tempering of the 64 values seen, and the
rest of the field follows as a Gaussian. The noise is 0.1 or 1.0 of the standard deviation of the signal over its data.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro.diagnostics import split_gelman_rubin

from enkg_ppl import InverseProblem
from enkg_ppl.likelihood import GaussianLikelihood
from validation.nuts import nuts
from validation.posteriors._parallel_tempering import parallel_tempering
from validation.posteriors.gaussian_field import Hartley, covariance, prior, spectrum
from validation.target import Target, Truth

SIZE = 16
NOISE_SHARES = (0.1, 1.0)
NUM_PARTICLES = 100
NUTS_SETTINGS: dict[str, Any] = {"num_warmup": 700, "num_samples": 1000, "num_chains": 4}
TEMPERING_SETTINGS = {"num_ladders": 8, "num_warmup": 1000, "num_samples": 500, "thinning": 20}
BETAS = np.concatenate([[0.0], np.geomspace(1e-3, 1.0, 32)])
MAX_R_HAT = 1.05
POINTS = (2 * SIZE * np.arange(SIZE // 2)[:, None] + 2 * np.arange(SIZE // 2)).ravel()


def block_averages(u: Float[Array, "256"]) -> Float[Array, "64"]:
    """exp(u), averaged over blocks of 2 x 2 points."""
    half = SIZE // 2
    return jnp.exp(u).reshape(half, 2, half, 2).mean(axis=(1, 3)).ravel()


def magnitudes(u: Float[Array, "256"]) -> Float[Array, "64"]:
    """|u| at every other point."""
    return jnp.abs(u[POINTS])


FORWARD: dict[str, Callable] = {"exp": block_averages, "abs": magnitudes}


@dataclasses.dataclass(frozen=True)
class FieldData:
    """A field, its noisy data and the noise's standard deviation."""

    u: Float[np.ndarray, "256"]
    y: Float[np.ndarray, "64"]
    noise_sd: float


def simulate(kind: str, noise_share: float) -> FieldData:
    rng = np.random.default_rng(11)
    u = np.asarray(Hartley(SIZE)(jnp.asarray(np.sqrt(spectrum(SIZE)) * rng.standard_normal(SIZE**2))), float)
    signal = np.asarray(FORWARD[kind](jnp.asarray(u)), float)
    noise_sd = float(noise_share * signal.std())
    return FieldData(u, signal + noise_sd * rng.standard_normal(len(signal)), noise_sd)


def targets() -> list[Target]:
    """``nonlinear_field/<exp or abs>_noise_<share>``."""
    truths = {"exp": exp_truth, "abs": abs_truth}
    return [
        Target(
            name=f"nonlinear_field/{kind}_noise_{share}",
            suites=("nonlinear_field",),
            truth=functools.partial(truths[kind], share),
            problem=functools.partial(_problem, kind, share),
            num_particles=NUM_PARTICLES,
            differentiable=kind == "exp",
        )
        for kind in FORWARD
        for share in NOISE_SHARES
    ]


def _problem(kind: str, noise_share: float) -> InverseProblem:
    data = simulate(kind, noise_share)
    return InverseProblem(prior(SIZE), FORWARD[kind], GaussianLikelihood(data.y, data.noise_sd))


def exp_truth(noise_share: float) -> Truth:
    data = simulate("exp", noise_share)
    field = prior(SIZE)

    def whitened() -> None:
        z = jnp.asarray(numpyro.sample("z", dist.Normal(0.0, 1.0).expand([SIZE**2]).to_event(1)))
        u = jnp.asarray(numpyro.deterministic("u", field.decode(z)))
        numpyro.sample("y", dist.Normal(block_averages(u), data.noise_sd).to_event(1), obs=data.y)

    result = nuts(jax.random.key(0), whitened, progress=False, **NUTS_SETTINGS)
    _check("NUTS", split_gelman_rubin(result.samples["u"]))
    source = f"NUTS in whitened coordinates, effective sample size at least {result.smallest_ess:.0f}"
    return Truth(result.flat()["u"], source=source, simulated_from=data.u)


def abs_truth(noise_share: float) -> Truth:
    data = simulate("abs", noise_share)
    C = covariance(SIZE)
    C_vv = C[np.ix_(POINTS, POINTS)]
    y = jnp.asarray(data.y)

    def log_likelihood(v: Float[Array, "64"]) -> Float[Array, ""]:
        return -0.5 * jnp.sum(((y - jnp.abs(v)) / data.noise_sd) ** 2)

    v, _ = parallel_tempering(jax.random.key(0), log_likelihood, np.linalg.cholesky(C_vv), BETAS, **TEMPERING_SETTINGS)
    # Magnitudes, and signs relative to where the signal is strongest: the sign of the whole field is a coin.
    features = np.concatenate([np.abs(v), v * v[..., [int(np.argmax(data.y))]]], axis=-1)
    _check("parallel tempering", split_gelman_rubin(features))
    rng = np.random.default_rng(0)
    v = v.reshape(-1, len(POINTS))
    v = v * rng.choice([-1.0, 1.0], (len(v), 1))
    # The rest of the field given v: a prior draw, moved by the gain times what it lacks of v.
    K = np.linalg.solve(C_vv, C[POINTS]).T
    values, basis = np.linalg.eigh(C)
    draws = rng.standard_normal((len(v), SIZE**2)) @ (basis * np.sqrt(np.maximum(values, 0))).T
    draws = draws + (v - draws[:, POINTS]) @ K.T
    source = "parallel tempering with elliptical slices"
    return Truth(draws, source=source, mean=np.zeros(SIZE**2), simulated_from=data.u)


def _check(method: str, r_hat: Float[np.ndarray, " scalars"]) -> None:
    if not np.max(r_hat) < MAX_R_HAT:
        raise RuntimeError(
            f"{method} did not converge: R-hat {np.max(r_hat):.3f} where below {MAX_R_HAT} is needed; "
            "raise num_warmup and num_samples"
        )
