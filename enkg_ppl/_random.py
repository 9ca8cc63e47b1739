"""Random numbers for the compiled kernels, drawn outside them.

Generating them is most of what a small kernel takes to compile. Drawn here, in a few sizes that every kernel shares,
they are compiled once; inside a trace (`lax.scan`) they are drawn in place, and are the same numbers.
"""

from __future__ import annotations

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Float

from enkg_ppl.types import AnyArray, Key

SMALLEST = 1024  # sizes are powers of two from here on


@functools.partial(jax.jit, static_argnames=("kind", "size", "dtype"))
def _draw(key: Key, kind: str, size: int, dtype) -> jax.Array:
    return jr.normal(key, (size,), dtype) if kind == "normal" else jr.uniform(key, (size,), dtype)


def _shaped(key: Key, kind: str, shape: tuple[int, ...], dtype) -> Any:
    n = math.prod(shape)
    size = max(SMALLEST, 1 << (n - 1).bit_length())
    flat = _draw(key, kind, size, np.dtype(dtype))
    if not isinstance(flat, Tracer):
        return np.asarray(flat)[:n].reshape(shape)  # by NumPy, which compiles nothing
    return flat[:n].reshape(shape)


def normals(key: Key, shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """Standard normal numbers."""
    return _shaped(key, "normal", shape, dtype)


def uniforms(key: Key, shape: tuple[int, ...], dtype) -> Float[Array, "..."]:
    """Uniform numbers in [0, 1)."""
    return _shaped(key, "uniform", shape, dtype)


def gumbel(uniform: AnyArray) -> jax.Array:
    """Gumbel numbers from uniform ones: ``argmax(log_weights + gumbel)`` draws from the weights."""
    return -jnp.log(-jnp.log(uniform))
