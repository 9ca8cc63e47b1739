"""Putting named tensors into a network, each exactly once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np

SHOWN = 5  # names in a message


@dataclass(frozen=True)
class Source:
    """Where the `weight` and `bias` of one of our layers come from.

    `names`: of the layer in the checkpoint; several are put one below the other. `rows`: reorders the first axis.
    `exact`: the tensor has the name itself, without ".weight" or ".bias".
    """

    names: tuple[str, ...]
    rows: Callable[[np.ndarray], np.ndarray] | None = None
    exact: bool = False


def source(*names: str, rows=None, exact=False) -> Source:
    return Source(names, rows, exact)


def interleaved_heads(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows ordered by head, then channel, then (query, key, value): as `Attention` orders them."""

    def reorder(w):
        return np.moveaxis(w.reshape(heads, -1, 3, *w.shape[1:]), 2, 0).reshape(w.shape)

    return reorder


def heads_first(heads: int) -> Callable[[np.ndarray], np.ndarray]:
    """Rows ordered by head, then (query, key, value), then channel: as `Attention` orders them."""

    def reorder(w):
        return np.moveaxis(w.reshape(heads, 3, -1, *w.shape[1:]), 1, 0).reshape(w.shape)

    return reorder


def fill(
    network_class: type,
    config: Mapping,
    locate: Callable[[Any], Mapping[str, Source]],
    tensors: Mapping[str, np.ndarray],
    ignored: Iterable[str],
    checkpoint: str,
) -> eqx.Module:
    """A network of that class and config with the tensors of a checkpoint in it.

    `locate`: from the network's skeleton to the `Source` of every layer, by path in our tree. `ignored`: names that
    may be there without a place. Kernels are turned from PyTorch's order (out, in, rows, columns) to ours.

    Raises `ValueError` that names what is missing, left over, of another shape or of whole numbers.
    """
    skeleton = eqx.filter_eval_shape(network_class, **config, key=jr.key(0))
    sources = locate(skeleton)
    left = set(tensors) - set(ignored)
    missing, misfits, whole = [], [], []

    def put(path, leaf):
        if not isinstance(leaf, jax.ShapeDtypeStruct):
            return leaf
        layer, _, kind = jax.tree_util.keystr(path).rpartition(".")
        found = sources[layer]
        names = [name if found.exact else f"{name}.{kind}" for name in found.names]
        absent = [name for name in names if name not in tensors]
        if absent:
            missing.extend(absent)
            return leaf
        left.difference_update(names)
        value = np.concatenate([tensors[name] for name in names])
        if not jnp.issubdtype(value.dtype, jnp.floating):  # such as weights of 8 bits, whose scale is elsewhere
            whole.append(f"{names[0]} ({value.dtype})")
            return leaf
        shape = leaf.shape
        if len(shape) == 4:  # a kernel
            shape = (shape[3], shape[2], *shape[:2])
        elif len(shape) == 3:  # one entry a pixel and channel
            shape = (shape[2], *shape[:2])
        # A 1 x 1 convolution is a matrix to us.
        flat = value.reshape(value.shape[: len(shape)]) if set(value.shape[len(shape) :]) <= {1} else value
        if flat.shape != shape:
            misfits.append(f"{names[0]} {tuple(value.shape)} instead of {tuple(shape)}")
            return leaf
        if found.rows is not None:
            flat = found.rows(flat)
        if len(shape) > 2:
            flat = np.transpose(flat, (2, 3, 1, 0) if len(shape) == 4 else (1, 2, 0))
        return jnp.asarray(flat)

    network = jax.tree_util.tree_map_with_path(put, skeleton)
    kinds = {"missing": missing, "without a place": left, "of another shape": misfits, "of whole numbers": whole}
    problems = [f"{what}: {_listed(names)}" for what, names in kinds.items() if names]
    if problems:
        raise ValueError(
            f"{checkpoint} does not fit {network_class.__name__} with the settings read from it. Tensors "
            + "; ".join(problems)
            + ". Check that it is the architecture asked for, and the arguments of the import"
        )
    return network


def _listed(names: Iterable[str]) -> str:
    names = sorted(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
