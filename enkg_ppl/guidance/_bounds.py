"""Bounds that keep the Kalman step finite whatever the simulator returns, and that ordinary outputs never meet.

A simulator may be unstable for some particles and return 1e30 where others return 1, and noise may be given as zero
(counts whose rate is zero) or too small to be told from it. Squares of such numbers overflow. So outputs are pulled in
to a distance from the others' median (Winsor's principle), and noise is measured in no smaller a unit than rounding
leaves room for.
"""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._noise import is_known, typical_noise

# Largest number of anything in units of the noise, and of a ratio of noises: its square is far from overflow.
MOST = 1e10


class Bounded(NamedTuple):
    """What the Kalman step works with, leading axis particles where they differ.

    `usable`: simulations that gave numbers. `prediction`: pulled in. `noise`: one variance a datum, and `relative`:
    each particle's in units of it. `reach`: how far from the middle predictions may lie.
    """

    usable: Bool[Array, " particles"]
    prediction: Float[Array, "particles m"]
    noise: Float[Array, " m"]
    relative: Float[Array, " particles"]
    reach: Float[Array, " m"]


def bounded(responses: Response) -> Bounded:
    """Where the noise depends on the particle (an unknown scale, Poisson) each datum's median serves as the unit and
    every particle has the median ratio over its data: exact where particles differ by a common factor.
    """
    prediction, observation, noise = responses
    limits = jnp.finfo(prediction.dtype)
    usable = jnp.all(jnp.isfinite(prediction) & jnp.isfinite(observation), axis=1)
    gamma = typical_noise(noise, usable, jnp)
    numbers = jnp.where(usable[:, None], prediction, jnp.nan)
    quartiles = jnp.array([0.25, 0.5, 0.75], prediction.dtype)
    low, middle, high = jnp.nanquantile(numbers, quartiles, axis=0, method="midpoint")
    reach = limits.eps**-0.75 * jnp.fmax(high - low, jnp.sqrt(gamma))
    most = float(limits.max) ** 0.75
    centre = jnp.where(jnp.isfinite(middle), middle, 0.0)[None]
    prediction = jnp.clip(jnp.clip(prediction, centre - reach[None], centre + reach[None]), -most, most)
    gamma = jnp.maximum(gamma, (limits.eps * _spread(prediction, usable)) ** 2)
    known = usable[:, None] & is_known(noise, jnp)
    relative = jnp.nanmedian(jnp.where(known, noise / gamma[None], jnp.nan), axis=1)
    relative = jnp.where(jnp.isnan(relative), 1.0, jnp.clip(relative, 1 / MOST, MOST))
    return Bounded(usable, prediction, gamma, relative, reach)


def _spread(a: Float[Array, "particles m"], usable) -> Float[Array, " m"]:
    """Half the range of the usable ones."""
    low = jnp.min(jnp.where(usable[:, None], a, jnp.inf), axis=0)
    high = jnp.max(jnp.where(usable[:, None], a, -jnp.inf), axis=0)
    return jnp.where(high > low, high / 2 - low / 2, 0.0)
