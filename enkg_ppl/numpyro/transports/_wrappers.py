"""Distributions around another: independent dimensions, copies, deterministic transforms."""

import math

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

from enkg_ppl.numpyro.transports._base import checked, from_standard, standard_shape, to_standard
from enkg_ppl.numpyro.transports._refusal import UnsupportedPriorError, folds, reason


@standard_shape.register
def _(fn: dist.Independent):
    return standard_shape(fn.base_dist)


@from_standard.register
def _(fn: dist.Independent, z):
    return from_standard(fn.base_dist, z)


@to_standard.register
def _(fn: dist.Independent, value):
    return to_standard(fn.base_dist, value)


@standard_shape.register
def _(fn: dist.ExpandedDistribution):
    base = fn.base_dist
    return fn.batch_shape + standard_shape(base)[len(base.batch_shape) :]


@from_standard.register
def _(fn: dist.ExpandedDistribution, z):
    z = checked(fn, z, standard_shape(fn), "score")
    return _over_copies(fn, lambda one: from_standard(fn.base_dist, one), z)


@to_standard.register
def _(fn: dist.ExpandedDistribution, value):
    value = checked(fn, value, fn.shape(), "value")
    return _over_copies(fn, lambda one: to_standard(fn.base_dist, one), value)


def _over_copies(fn, apply, array):
    """Apply a map of the base distribution to every independent copy that an expanded distribution holds.

    Copies are the leading new dimensions, and every dimension where the base has size 1 and the expansion
    more. All are moved to the front, mapped over as one, and moved back.
    """
    base_batch = fn.base_dist.batch_shape
    lead = len(fn.batch_shape) - len(base_batch)
    widened = [lead + i for i, size in enumerate(base_batch) if fn.batch_shape[lead + i] != size]
    copies = (*range(lead), *widened)
    front = jnp.moveaxis(array, copies, range(len(copies)))
    sizes = front.shape[: len(copies)]
    own = base_batch + array.shape[len(fn.batch_shape) :]
    mapped = jax.vmap(apply)(front.reshape(math.prod(sizes), *own))
    event = mapped.shape[1 + len(base_batch) :]
    kept = tuple(size for i, size in enumerate(base_batch) if lead + i not in widened)
    return jnp.moveaxis(mapped.reshape(sizes + kept + event), range(len(copies)), copies)


@standard_shape.register
def _(fn: dist.TransformedDistribution):
    return standard_shape(fn.base_dist)


def _in_dtype(transforms, dtype):
    """Transforms with their arrays in the dtype of the computation."""

    def cast(leaf):
        is_float = hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf, dtype) if is_float else leaf

    return jax.tree.map(cast, transforms)


@from_standard.register
def _(fn: dist.TransformedDistribution, z):
    if folds(fn):
        raise UnsupportedPriorError(reason(fn))
    value = from_standard(fn.base_dist, z)
    with jax.numpy_rank_promotion("allow"):  # the transforms are NumPyro's, and rely on it
        for transform in _in_dtype(fn.transforms, value.dtype):
            value = transform(value)
    return jnp.asarray(value, jnp.result_type(z))


@to_standard.register
def _(fn: dist.TransformedDistribution, value):
    if folds(fn):
        raise UnsupportedPriorError(reason(fn))
    dtype = jnp.result_type(value)
    with jax.numpy_rank_promotion("allow"):
        for transform in reversed(_in_dtype(fn.transforms, dtype)):
            value = transform.inv(value)
    return to_standard(fn.base_dist, jnp.asarray(value, dtype))
