"""The Hartley transform: a real basis of stationary fields on a periodic grid."""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


class Hartley(eqx.Module):
    """Discrete Hartley transform of one field, flattened row by row; orthonormal, and its own inverse."""

    size: int = eqx.field(static=True)

    def __call__(self, x: Float[Array | np.ndarray, " dim"]) -> Float[Array, " dim"]:
        spectrum = jnp.fft.fft2(x.reshape(self.size, self.size), norm="ortho")
        return (spectrum.real - spectrum.imag).ravel()
