"""A dose-response curve, with noise of unknown size.

    python -m validation.demos.beside_nuts    EnKG on the black box beside NUTS on the twin

Reference: A. V. Hill, "The possible effects of the aggregation of the molecules of haemoglobin on its dissociation
curves", Journal of Physiology 40 (1910) iv-vii.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, ArrayLike, Float

from enkg_ppl import blackbox

Simulator = Callable[..., Float[Array, "..."]]

DOSES: Float[np.ndarray, "12"] = np.geomspace(0.05, 100.0, 12)


def response(
    top: Float[np.ndarray, " particles"],
    log_half: Float[np.ndarray, " particles"],
    slope: Float[np.ndarray, " particles"],
) -> Float[np.ndarray, "particles 12"]:
    """Hill's response at `DOSES`: the black box. `log_half`: ln of the dose with half the effect."""
    ratio = np.exp(log_half)[:, None] / DOSES
    return top[:, None] / (1.0 + ratio ** slope[:, None])


def response_twin(top: Float[Array, ""], log_half: Float[Array, ""], slope: Float[Array, ""]) -> Float[Array, "12"]:
    """`response` as a logistic curve of the log dose, in JAX."""
    return top * jax.nn.sigmoid(slope * (jnp.log(DOSES) - log_half))


def _model(simulate: Simulator, y: Float[ArrayLike, "12"] | None) -> None:
    top = numpyro.sample("top", dist.Normal(1.0, 0.5))
    log_half = numpyro.sample("log_half", dist.Normal(1.0, 1.5))
    slope = numpyro.sample("slope", dist.LogNormal(0.0, 0.5))
    noise = numpyro.sample("noise", dist.HalfNormal(0.3))
    numpyro.sample("y", dist.Normal(simulate(top, log_half, slope), noise).to_event(1), obs=y)


response_blackbox = blackbox(response, shape=(len(DOSES),), vectorized=True)


def model(y: Float[ArrayLike, "12"] | None = None) -> None:
    """Twelve noisy responses. Sites: `top`, `log_half`, `slope` of the curve, and `noise`, the unknown sd."""
    _model(response_blackbox, y)


def twin(y: Float[ArrayLike, "12"] | None = None) -> None:
    """`model` with the curve in JAX."""
    _model(response_twin, y)
