"""Several independent priors as one: what a model with more than one unknown has."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array, Float

from enkg_ppl.priors._base import CONDITIONAL_STEPS, CORRECTIONS, Prior
from enkg_ppl.types import Key, Scalar, Vector


class ProductPrior(Prior):
    """Independent blocks, each in its own standard units, concatenated in the latent vector.

    A latent vector u holds ``(x - location) / scale`` of every block, `location` and `scale` being the block's. So one
    noise level means the same to all of them, and the conditionals of u are those of the blocks: noising u to level
    sigma is noising x to level ``scale * sigma``. Every method delegates to the blocks, each of which uses its closed
    form or the flow.

    Args:
        blocks: priors.
        copies: how often each is repeated, independently (default: once).

    Raises:
        ValueError: without blocks, and for copies that do not match them.
    """

    blocks: tuple[Prior, ...]
    copies: tuple[int, ...] = eqx.field(static=True)

    def __init__(self, blocks: Sequence[Prior], copies: Sequence[int] | None = None):
        self.blocks = tuple(blocks)
        self.copies = (1,) * len(self.blocks) if copies is None else tuple(int(n) for n in copies)
        if not self.blocks:
            raise ValueError("ProductPrior needs at least one block; got none")
        if len(self.copies) != len(self.blocks) or min(self.copies) < 1:
            raise ValueError(
                f"ProductPrior needs a positive number of copies for each of its {len(self.blocks)} blocks; "
                f"got copies={self.copies}"
            )

    @property
    def dim(self) -> int:
        return sum(n * block.dim for block, n in self._counted)

    @property
    def location(self) -> Vector:
        return jnp.zeros(self.dim, self._dtype)

    @property
    def scale(self) -> Scalar:
        return jnp.ones((), self._dtype)

    @property
    def chunk_size(self) -> int | None:
        sizes = [block.chunk_size and max(1, block.chunk_size // n) for block, n in self._counted]
        return min((size for size in sizes if size is not None), default=None)

    @property
    def has_affine_denoiser(self) -> bool:
        return all(block.has_affine_denoiser for block in self.blocks)

    @property
    def has_transport(self) -> bool:
        return all(block.has_transport for block in self.blocks)

    def denoise(self, x: Vector, sigma: Scalar) -> Vector:
        def one(block, u):
            return _standard(block, block.denoise(_own(block, u), _scale(block) * jnp.asarray(sigma, u.dtype)))

        return self._each(one, x)

    def conditional_sample(self, key: Key, x: Vector, sigma: Scalar, num_steps: int = CONDITIONAL_STEPS) -> Vector:
        def one(block, u, key):
            level = _scale(block) * jnp.asarray(sigma, u.dtype)
            return _standard(block, block.conditional_sample(key, _own(block, u), level, num_steps))

        return self._each(one, x, key)

    def sample(self, key: Key) -> Vector:
        return self._each(lambda block, _, key: _standard(block, block.sample(key)), self.location, key)

    def log_prob(self, x: Vector) -> Scalar | None:
        def one(block, u):
            log_prob = block.log_prob(_own(block, u))
            return None if log_prob is None else log_prob + block.dim * jnp.log(_scale(block))

        terms = self._each(one, x)
        return None if terms is None else jnp.sum(terms)

    def decode(self, z: Vector) -> Vector:
        return self._each(lambda block, z: _standard(block, block.decode(z)), z)

    def encode(self, x: Vector, num_corrections: int = CORRECTIONS) -> Vector:
        return self._each(lambda block, u: block.encode(_own(block, u), num_corrections), x)

    @property
    def _counted(self) -> list[tuple[Prior, int]]:
        return list(zip(self.blocks, self.copies, strict=True))

    @property
    def _dtype(self):
        return jnp.result_type(*(block.location.dtype for block in self.blocks))

    def _each(self, one: Callable, v: Vector, key: Key | None = None) -> Any:
        """Join what `one` makes of every copy of every block and its part of v; None where it makes nothing of one."""
        parts, start = [], 0
        for i, (block, n) in enumerate(self._counted):
            stop = start + n * block.dim
            part = v[start:stop].reshape(n, block.dim).astype(block.location.dtype)
            keys = () if key is None else (jr.split(jr.fold_in(key, i), n),)
            made = _over_copies(functools.partial(one, block), n, part, *keys)
            if made is None:
                return None
            parts.append(made.ravel().astype(self._dtype))
            start = stop
        return jnp.concatenate(parts)


def _over_copies(one: Callable, n: int, *arrays) -> Float[Array, "copies ..."] | None:
    # A single copy is called as it is: a network compiles to less without a batch of one.
    return one(*(a[0] for a in arrays)) if n == 1 else jax.vmap(one)(*arrays)


def _scale(block: Prior) -> Scalar:
    return jnp.asarray(block.scale, block.location.dtype)


def _own(block: Prior, u: Vector) -> Vector:
    return block.location + _scale(block) * u


def _standard(block: Prior, x: Vector) -> Vector:
    return (x - block.location) / _scale(block)
