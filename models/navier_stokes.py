"""Where did the flow come from? A vorticity field from a sparse, noisy look at what became of it.

The Kolmogorov flow of `models.kolmogorov` (viscosity 1/40) carries a vorticity field w on a grid of 32 x 32 points over
a time T of 1 or 5; every second point of the result is seen, 16 x 16 numbers, with noise of .1 or 1 of the field's
standard deviation. Unknown is w itself: 1,024 numbers, the prior being the network of `models.kolmogorov`.

    python -m models.navier_stokes                   the table: eight truths in each of four settings
    python -m models.navier_stokes --quick           one truth of each, J = 32 particles
    python -m models.navier_stokes --picture FILE    fields and spreads of one setting

Truths are fields of fresh trajectories, which no training has seen.

Source of the setting: Takao et al. (2026), "Noise, Denoise, Correct", there on 64 x 64 points.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl import GaussianLikelihood, InverseProblem
from enkg_ppl._types import Vector
from models import kolmogorov
from validation import metrics

SIZE, STRIDE = 32, 2
NUM_PARTICLES = 96
# Standard deviation of the vorticity of the flow, over many trajectories.
FIELD_SD = 2.16
TRUTHS_SEED, NUM_TRUTHS = 2, 8  # seeds 0 and 1 made the fields of the training


@dataclasses.dataclass(frozen=True)
class Setting:
    """`duration`: T. `noise_share`: standard deviation of the noise over that of the field. `budget`: evaluations."""

    name: str
    duration: float
    noise_share: float
    budget: int


SETTINGS = {
    s.name: s
    for s in (
        Setting("T1_low", 1.0, 0.1, 3_000),
        Setting("T1_high", 1.0, 1.0, 3_000),
        Setting("T5_low", 5.0, 0.1, 8_000),
        Setting("T5_high", 5.0, 1.0, 5_000),
    )
}


class Look:
    """The forward map: the flow over a time T, and every second point of the result."""

    def __init__(self, duration: float):
        self.step = kolmogorov.solver(SIZE)
        self.num_steps = round(duration / kolmogorov.TIME_STEP)

    def __call__(self, w: Vector) -> Float[Array, "256"]:
        start = jnp.asarray(w).reshape(1, SIZE, SIZE)
        after = jax.lax.fori_loop(0, self.num_steps, lambda _, w: self.step(w), start)
        return after[0, ::STRIDE, ::STRIDE].ravel()


@functools.cache
def look(duration: float) -> Look:
    return Look(duration)


@functools.cache
def truths(num: int = NUM_TRUTHS) -> Float[np.ndarray, "truths 1024"]:
    """Fields of fresh trajectories, one each, after the spin-up."""
    starts = kolmogorov.random_starts(np.random.default_rng(TRUTHS_SEED), num, kolmogorov.FINE)
    fields = kolmogorov.advance(kolmogorov.SPIN_UP, kolmogorov.FINE)(jnp.asarray(starts, jnp.float32))
    return kolmogorov.truncate(np.asarray(fields), SIZE).reshape(num, -1).astype(np.float32)


@functools.cache
def prior():
    return kolmogorov.load()


def problem(setting: Setting, truth: Float[np.ndarray, "1024"], seed: int = 0) -> InverseProblem:
    """What is seen of one truth, with noise from this seed."""
    forward, sd = look(setting.duration), setting.noise_share * FIELD_SD
    noise = sd * np.random.default_rng((3, seed)).standard_normal((SIZE // STRIDE) ** 2)
    y = np.asarray(jax.jit(forward)(jnp.asarray(truth))) + noise
    return InverseProblem(prior(), forward, GaussianLikelihood(jnp.asarray(y, jnp.float32), sd))


def score(draws, truth, problem: InverseProblem) -> dict[str, float]:
    """`l2`: relative error of the mean. `crps`: over the field's standard deviation. `ssr`: spread over skill.
    `chi2`: per datum, mean over the draws (their own simulations, which no method is charged for).
    """
    draws = np.asarray(draws, float)
    seen = np.asarray(jax.jit(jax.vmap(problem.forward))(jnp.asarray(draws, jnp.float32)), float)
    likelihood: Any = problem.likelihood
    chi2 = np.mean(((seen - np.asarray(likelihood.y)) / np.asarray(likelihood.noise_sd)) ** 2)
    return {
        "l2": float(metrics.relative_l2(draws.mean(axis=0), truth)),
        "crps": float(metrics.crps(draws, truth)) / FIELD_SD,
        "ssr": float(metrics.spread_skill_ratio(draws, truth)),
        "chi2": float(chi2),
    }
