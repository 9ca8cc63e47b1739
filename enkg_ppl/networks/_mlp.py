"""A residual multilayer perceptron for vectors."""

from __future__ import annotations

import math
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl._checks import check_whole
from enkg_ppl.networks._config import Configured
from enkg_ppl.networks._embedding import EDM_RANGE, NoiseEmbedding
from enkg_ppl.types import Key, Scalar


def zeroed(layer):
    """The same layer (anything with `weight` and `bias`) with all parameters zero."""
    return eqx.tree_at(lambda m: (m.weight, m.bias), layer, replace_fn=jnp.zeros_like)


class DenseBlock(eqx.Module):
    """``h + W2 silu(W1 silu(h) + V e)``, e the noise embedding.

    Args:
        width: length of h.
        embedding_size: length of e.
        key: for the initial weights.
    """

    first: eqx.nn.Linear
    second: eqx.nn.Linear
    noise: eqx.nn.Linear

    def __init__(self, width: int, embedding_size: int, *, key: Key):
        keys = jr.split(key, 3)
        self.first = eqx.nn.Linear(width, width, key=keys[0])
        self.second = eqx.nn.Linear(width, width, key=keys[1])
        self.noise = eqx.nn.Linear(embedding_size, width, use_bias=False, key=keys[2])

    def __call__(self, h, e):
        return h + self.second(jax.nn.silu(self.first(jax.nn.silu(h)) + self.noise(e)))


class ResidualMLP(Configured):
    """Residual blocks over the flattened event, conditioned on the noise level through Fourier features.

    The last layer starts at zero, so that an untrained network adds nothing to the preconditioning's skip.

    Args:
        dim: number of entries of an event (of any shape).
        width: of the hidden layers.
        depth: number of residual blocks of two layers each.
        embedding_size: length of the noise embedding.
        noise_range: see `NoiseEmbedding`.
        key: for the initial weights.

    Source: He et al., arXiv 1603.05027 (pre-activation residual blocks).
    """

    input: eqx.nn.Linear
    embedding: NoiseEmbedding
    blocks: tuple[DenseBlock, ...]
    output: eqx.nn.Linear
    dim: int = eqx.field(static=True)
    width: int = eqx.field(static=True)
    depth: int = eqx.field(static=True)

    def __init__(
        self,
        dim: int,
        *,
        width: int = 128,
        depth: int = 4,
        embedding_size: int = 64,
        noise_range: tuple[float, float] = EDM_RANGE,
        key: Key,
    ):
        check_whole("ResidualMLP", dim=dim, width=width, depth=depth)
        key_input, key_embedding, key_output, *keys = jr.split(key, 3 + depth)
        self.input = eqx.nn.Linear(dim, width, key=key_input)
        self.embedding = NoiseEmbedding(embedding_size, noise_range, key=key_embedding)
        self.blocks = tuple(DenseBlock(width, embedding_size, key=k) for k in keys)
        self.output = zeroed(eqx.nn.Linear(width, dim, key=key_output))
        self.dim, self.width, self.depth = dim, width, depth

    def config(self) -> dict[str, Any]:
        return super().config() | self.embedding.config()

    def __call__(self, x: Float[Array, "..."], noise: Scalar) -> Float[Array, "..."]:
        if x.size != self.dim:
            raise ValueError(
                f"ResidualMLP was made for events of {self.dim} entries and got shape {x.shape} with "
                f"{math.prod(x.shape)}: make it with dim={math.prod(x.shape)}"
            )
        e = jax.nn.silu(self.embedding(noise, x.dtype))
        h = self.input(x.reshape(-1))
        for block in self.blocks:
            h = block(h, e)
        return self.output(jax.nn.silu(h)).reshape(x.shape)
