"""Compiled kernels over particles, applied in blocks of one size.

A kernel is compiled for a number of particles, which takes longer than running it. In blocks of one size, the last
one filled up, it is compiled once whatever the size of the ensemble, and small ensembles share it with large ones.
Between kernels the particles are NumPy arrays: resampling and bookkeeping compile nothing.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import numpy as np

BLOCK = 256


def block_size(num_particles: int) -> int:
    """Particles in a block: a power of two, at most `BLOCK`, that holds half an ensemble of this size."""
    half = -(-num_particles // 2)
    return min(BLOCK, 1 << max(0, half - 1).bit_length())


def in_blocks(kernel: Callable, size: int, shared: tuple, *arrays):
    """``kernel(*shared, *arrays)`` over pytrees of arrays that lead with particles, `size` of them at a time.

    Returns what the kernel does, as NumPy arrays.
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    parts = []
    for start in range(0, n, size):
        rows = np.minimum(np.arange(start, start + size), n - 1)  # the last block repeats the last particle
        parts.append(kernel(*shared, *jax.tree.map(lambda a, rows=rows: np.asarray(a)[rows], arrays)))
    parts = jax.device_get(parts)
    return jax.tree.map(lambda *pieces: np.concatenate(pieces)[:n], *parts)
