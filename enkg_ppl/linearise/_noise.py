"""One noise variance for each datum, where the noise depends on the particle (an unknown scale, Poisson).

`ConditionalGaussian` has no use for it: it follows how the noise varies with the scales.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from enkg_ppl.types import AnyArray


def typical_noise(
    noise: Float[AnyArray, "particles m"], usable: Bool[AnyArray, " particles"] | None = None, xp: Any = np
) -> Any:
    """The median over the usable particles of the variances that are numbers above zero; 1 where there are none.

    `usable`: all by default. `xp`: `numpy` or `jax.numpy`.
    """
    known = is_known(noise, xp) if usable is None else is_known(noise, xp) & usable[:, None]
    nothing = xp.where(xp.any(known, axis=0, keepdims=True), xp.nan, 1.0)
    with np.errstate(over="ignore"):  # of the sum of the two in the middle
        middle = xp.nanquantile(xp.where(known, noise, nothing), 0.5, axis=0, method="midpoint")
    return xp.where(xp.isfinite(middle), middle, 1.0)


def is_known(noise: Float[AnyArray, "particles m"], xp: Any = np) -> Any:
    """Whether a variance is a number above zero.

    The smallest number there is stands for zero, as at a count whose rate is (`gaussian_response`).
    """
    return xp.isfinite(noise) & (noise > xp.finfo(noise.dtype).tiny)
