"""A prior's functions of one particle over a whole ensemble, in chunks where the prior asks for them."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from enkg_ppl.priors._base import Prior


def chunked_vmap(prior: Prior, fn: Callable, *arrays):
    """``jax.vmap(fn)(*arrays)``, at most ``prior.chunk_size`` particles at a time.

    A network's activations, or an adaptive ODE's slowest particle, then concern one chunk and not the ensemble.

    Args:
        prior: whose `chunk_size` holds.
        fn: function of one particle.
        *arrays: pytrees of arrays whose leading axis is particles.
    """
    return in_chunks(prior.chunk_size, fn, *arrays)


def in_chunks(chunk_size: int | None, fn: Callable, *arrays):
    """``jax.vmap(fn)(*arrays)``, at most `chunk_size` rows at a time.

    Chunks are of equal size, the last one filled up with its last particle, so that one program serves all; they may be
    differentiated in either mode. `jax.lax.map` has a separate program for the remainder, which runs beside the other;
    on a CPU of two cores XLA then deadlocks where both have batches for LAPACK.

    Args:
        chunk_size: rows at a time, None for all.
        fn: function of one row.
        *arrays: pytrees of arrays whose leading axis is particles (random keys too).
    """
    n = jax.tree.leaves(arrays)[0].shape[0]
    if chunk_size is None or n <= chunk_size:
        return jax.vmap(fn)(*arrays)
    num_chunks = -(-n // chunk_size)
    size = -(-n // num_chunks)
    rows = jnp.minimum(jnp.arange(num_chunks * size), n - 1).reshape(num_chunks, size)
    out = jax.lax.map(lambda rows: jax.vmap(fn)(*jax.tree.map(lambda a: a[rows], arrays)), rows)
    return jax.tree.map(lambda a: a.reshape(num_chunks * size, *a.shape[2:])[:n], out)
