"""The noise level as a vector that a network can work with."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.types import Key, Scalar

# Cycles over the range of noise coordinates. The slowest is almost a straight line; faster ones than the largest would
# make the denoiser rough in sigma, which the probability flow integrates over.
SLOWEST, FASTEST = 0.25, 8.0
# ``log(sigma) / 4``, the noise coordinate of `EDM`, for sigma from 3e-4 to 400 standard deviations of the data.
EDM_RANGE = (-2.0, 1.5)


def fourier_features(noise: Scalar, size: int, noise_range: tuple[float, float]) -> Float[Array, " size"]:
    """Cosines and sines of the noise coordinate, `size` of them in all, at fixed frequencies spread in log."""
    low, high = noise_range
    cycles = jnp.asarray(np.geomspace(SLOWEST, FASTEST, size // 2), noise.dtype)
    angles = 2 * jnp.pi * cycles * (noise - low) / (high - low)
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)])


class NoiseEmbedding(eqx.Module):
    """Fourier features of the noise coordinate through two linear layers with SiLU between them.

    Args:
        size: length of the embedding, an even number.
        noise_range: smallest and largest noise coordinate of the preconditioning; the default suits `EDM`.
        key: for the initial weights.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    size: int = eqx.field(static=True)
    noise_range: tuple[float, float] = eqx.field(static=True)

    def __init__(self, size: int, noise_range=EDM_RANGE, *, key: Key):
        if size < 2 or size % 2:
            raise ValueError(f"a noise embedding needs an even size >= 2; got embedding_size={size}")
        low, high = (float(v) for v in noise_range)
        if not low < high:
            raise ValueError(f"a noise embedding needs noise_range=(low, high) with low < high; got {noise_range}")
        key_first, key_second = jr.split(key)
        self.first = eqx.nn.Linear(size, size, key=key_first)
        self.second = eqx.nn.Linear(size, size, key=key_second)
        self.size = size
        self.noise_range = (low, high)

    def config(self) -> dict[str, Any]:
        return {"embedding_size": self.size, "noise_range": list(self.noise_range)}

    def __call__(self, noise: Scalar, dtype) -> Float[Array, " size"]:
        # The features keep the precision of `noise`: eight bits of bfloat16 would not tell noise levels apart.
        features = fourier_features(jnp.asarray(noise), self.size, self.noise_range).astype(dtype)
        return self.second(jax.nn.silu(self.first(features)))
