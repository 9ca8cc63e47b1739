"""A stochastic epidemic from its weekly counts: the black box simulates people, one by one.

Its twin is the differential equation of a large population, so the two posteriors differ, whatever the method: over 16
seeds of the clocks by 0.23, 0.14 and 0.38 posterior standard deviations (root mean square) in the means of
`transmission`, `recovery` and `infected`.

    python -m validation.demos.beside_nuts    EnKG on the black box beside NUTS on the twin

Reference: W. O. Kermack and A. G. McKendrick, "A Contribution to the Mathematical Theory of Epidemics", Proceedings of
the Royal Society A 115 (1927) 700-721: SIR.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from enkg_ppl import blackbox
from models import gillespie
from models._runge_kutta import runge_kutta

Simulator = Callable[..., Float[Array, "..."]]

POPULATION, WEEKS = 2000, 12
# Epidemics averaged for each particle: over seeds of the clocks their mean has a sd of a sixth to a half of the noise.
REPLICATES = 4
# Common random numbers: the forward map is a function of the parameters, the same one at every call.
CLOCK_SEED = 1
# A case a week comes from elsewhere, so that no expectation is zero.
IMPORTED = 1.0
# Weekly counts have a relative sd of 1 / sqrt(concentration) at least; a single epidemic's own is below that.
CONCENTRATION = 12.0
# Runge-Kutta steps a week; the prior's fastest epidemics double in a few of them.
STEPS = 8


def weekly_cases(
    transmission: Float[np.ndarray, " particles"],
    recovery: Float[np.ndarray, " particles"],
    infected: Float[np.ndarray, " particles"],
    seed: int = CLOCK_SEED,
) -> Float[np.ndarray, "particles 12"]:
    """Infections in every week, the mean of a few simulated epidemics: the black box. Units as in `gillespie`."""
    people = gillespie.simulate(
        transmission,
        recovery,
        infected,
        population=POPULATION,
        num_weeks=WEEKS,
        num_replicates=REPLICATES,
        seed=seed,
    )
    return -np.diff(people[..., 0], axis=-1).mean(axis=1)


def weekly_cases_twin(
    transmission: Float[Array, ""], recovery: Float[Array, ""], infected: Float[Array, ""]
) -> Float[Array, "12"]:
    """What `weekly_cases` tends to in a large population: SIR's differential equation, by Runge and Kutta."""

    def slope(state: Float[Array, "2"]) -> Float[Array, "2"]:
        susceptible, sick = state
        infections = transmission * susceptible * sick
        return jnp.stack([-infections, infections - recovery * sick])

    def step(state: Float[Array, "2"], _: Any) -> tuple[Float[Array, "2"], Float[Array, ""]]:
        state = runge_kutta(slope, state, 1 / STEPS)
        return state, state[0]

    start = jnp.stack([1 - infected, infected])
    _, susceptible = jax.lax.scan(step, start, None, length=WEEKS * STEPS)
    return -POPULATION * jnp.diff(jnp.concatenate([start[:1], susceptible[STEPS - 1 :: STEPS]]))


def _model(simulate: Simulator, y: Float[ArrayLike, "12"] | None) -> None:
    transmission = numpyro.sample("transmission", dist.LogNormal(math.log(2.0), 0.5))
    recovery = numpyro.sample("recovery", dist.LogNormal(0.0, 0.5))
    infected = numpyro.sample("infected", dist.Beta(2.0, 98.0))
    cases = numpyro.deterministic("cases", IMPORTED + simulate(transmission, recovery, infected))
    numpyro.sample("y", dist.NegativeBinomial2(cases, CONCENTRATION).to_event(1), obs=y)


weekly_cases_blackbox = blackbox(weekly_cases, shape=(WEEKS,), vectorized=True)


def model(y: Float[ArrayLike, "12"] | None = None) -> None:
    """Weekly counts of an epidemic. Sites: `transmission`, `recovery` (per week), `infected` (share)."""
    _model(weekly_cases_blackbox, y)


def twin(y: Float[ArrayLike, "12"] | None = None) -> None:
    """`model` with the differential equation in place of people."""
    _model(weekly_cases_twin, y)
