"""Six patients eliminate a drug at speeds of their own: a hierarchy, with the black box inside its plate.

The black box solves an equation by halving intervals, its twin by Newton's method.

    python -m validation.demos.beside_nuts    EnKG on the black box beside NUTS on the twin

Reference: L. Michaelis and M. L. Menten, "Die Kinetik der Invertinwirkung", Biochemische Zeitschrift 49 (1913) 333-369:
elimination that saturates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from enkg_ppl import blackbox

Simulator = Callable[..., Float[Array, "..."]]

PATIENTS = 6
HOURS: Float[np.ndarray, "3"] = np.array([1.0, 2.0, 4.0])
# mg/l: after the dose, and where elimination runs at half its speed.
DOSE, HALF_SPEED = 10.0, 2.0
ASSAY_ERROR = 0.1  # of ln c


def log_concentration(log_speed: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape 3"]:
    """ln of a drug's concentration (mg/l) at `HOURS`, of any number of patients at once: the black box.

    With x = ln(c / K) Michaelis and Menten's c' = -v c / (K + c) integrates to e^x + x = b - v t / K, solved by
    halving an interval. `log_speed`: ln v, v in mg/l/h.
    """
    target = DOSE / HALF_SPEED + np.log(DOSE / HALF_SPEED) - np.exp(log_speed)[..., None] * HOURS / HALF_SPEED
    low, high = np.minimum(target, 1.0) - math.e, target
    for _ in range(64):
        middle = (low + high) / 2
        above = np.exp(middle) + middle > target
        low, high = np.where(above, low, middle), np.where(above, middle, high)
    return np.log(HALF_SPEED) + (low + high) / 2


def log_concentration_twin(log_speed: Float[Array, "*shape"]) -> Float[Array, "*shape 3"]:
    """`log_concentration` by Newton's method in JAX."""
    elapsed = jnp.multiply.outer(jnp.exp(log_speed), HOURS / HALF_SPEED)
    target = DOSE / HALF_SPEED + math.log(DOSE / HALF_SPEED) - elapsed
    # e^x + x is convex: from above the root Newton's steps come down to it and do not pass it.
    x = jnp.where(target > 1.0, jnp.log(jnp.maximum(target, 1.0)), target)
    for _ in range(8):
        x = x - (jnp.exp(x) + x - target) / (jnp.exp(x) + 1.0)
    return math.log(HALF_SPEED) + x


def _model(simulate: Simulator, y: Float[ArrayLike, "6 3"] | None) -> None:
    centre = numpyro.sample("centre", dist.Normal(0.5, 1.0))
    spread = numpyro.sample("spread", dist.HalfNormal(0.5))
    with numpyro.plate("patients", PATIENTS):
        log_speed = numpyro.sample("log_speed", dist.Normal(centre, spread))
        numpyro.sample("y", dist.Normal(simulate(log_speed), ASSAY_ERROR).to_event(1), obs=y)


concentration_blackbox = blackbox(log_concentration, shape=(PATIENTS, len(HOURS)), vectorized=True)


def model(y: Float[ArrayLike, "6 3"] | None = None) -> None:
    """Six patients' blood samples. Sites: `centre`, `spread` of the patients, and in the plate `log_speed (6,)`."""
    _model(concentration_blackbox, y)


def twin(y: Float[ArrayLike, "6 3"] | None = None) -> None:
    """`model` with Newton's method."""
    _model(log_concentration_twin, y)
