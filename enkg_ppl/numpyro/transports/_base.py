"""What every transport shares: the three functions that dispatch on the distribution, shapes, open supports."""

from collections.abc import Callable
from functools import singledispatch
from typing import Any

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from enkg_ppl.numpyro.transports._refusal import UnsupportedPriorError, reason


@singledispatch
def standard_shape(fn: dist.Distribution) -> tuple[int, ...]:
    """Shape of the standard normal score that `from_standard` takes, batch dimensions of `fn` first.

    Args:
        fn: the distribution.
    """
    return fn.shape()


@singledispatch
def from_standard(fn: dist.Distribution, z: Float[Array, "..."]) -> Float[Array, "..."]:
    """The value of `fn` at a standard normal score.

    Args:
        fn: the distribution.
        z: score, of shape ``standard_shape(fn)``.

    Returns:
        The value, of shape ``fn.shape()`` and the dtype of `z`, strictly inside the support: a value that rounds to a
            bound, to zero or to infinity becomes the nearest float inside.

    Raises:
        UnsupportedPriorError: for a distribution without a transport.
        ValueError: for a wrong shape.
    """
    raise UnsupportedPriorError(reason(fn))


@singledispatch
def to_standard(fn: dist.Distribution, value: Float[Array, "..."]) -> Float[Array, "..."]:
    """The inverse of `from_standard`: the score of a value.

    Args:
        fn: the distribution.
        value: of shape ``fn.shape()``.

    Returns:
        The score, of shape ``standard_shape(fn)``.

    Raises:
        UnsupportedPriorError: for a distribution without a transport.
        ValueError: for a wrong shape.
    """
    raise UnsupportedPriorError(reason(fn))


def above(bound: Float[Array, "..."]) -> Float[Array, "..."]:
    """The next float up, skipping the denormals, which accelerators and XLA on the CPU flush to zero."""
    tiny = jnp.finfo(bound.dtype).tiny
    up = jnp.nextafter(bound, jnp.full_like(bound, jnp.inf))
    return jnp.where(jnp.abs(up) < tiny, tiny, up)


def inside(value, low, high) -> Float[Array, "..."]:
    """Move values that rounded to a bound (infinity included) to the nearest float inside the open interval.

    Args:
        value: the values.
        low: lower bound.
        high: upper bound.
    """
    low, high = jnp.broadcast_to(low, value.shape), jnp.broadcast_to(high, value.shape)
    return jnp.clip(value, above(low.astype(value.dtype)), -above(-high.astype(value.dtype)))


def positive(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Move values that rounded to zero or to infinity to the nearest float inside.

    Args:
        value: the values.
    """
    return inside(value, 0.0, jnp.inf)


def finite(value: Float[Array, "..."]) -> Float[Array, "..."]:
    """Move values that rounded to an infinity to the nearest float inside.

    Args:
        value: the values.
    """
    return inside(value, -jnp.inf, jnp.inf)


def log_ratio(x, y):
    """``log(x / y)``, from the difference where the two are close."""
    ratio = x / y
    close = jnp.abs(ratio - 1.0) < 0.5
    return jnp.where(close, jnp.log1p(jnp.where(close, (x - y) / y, 0.0)), jnp.log(ratio))


def checked(fn: dist.Distribution, array, shape: tuple[int, ...], what: str) -> Float[Array, "..."]:
    array = jnp.asarray(array)
    if array.shape != shape:
        raise ValueError(f"{type(fn).__name__} takes a {what} of shape {shape}; got {array.shape}")
    return array


def like(value, array: Float[Array, "..."], shape: tuple[int, ...]) -> Float[Array, "..."]:
    """A parameter in the dtype of `array`, broadcast to `shape`."""
    return jnp.broadcast_to(jnp.asarray(value, array.dtype), shape)


def matrix_like(fn: dist.Distribution, matrix, array: Float[Array, "..."]) -> Float[Array, "..."]:
    """A matrix parameter in the dtype of `array`, one for each element of the batch."""
    return like(matrix, array, fn.batch_shape + jnp.shape(matrix)[-2:])


def log_density_like(fn: dist.Distribution, value: Float[Array, "..."]) -> Float[Array, "..."]:
    """NumPyro's log density, in the dtype of the value."""
    with jax.numpy_rank_promotion("allow"):  # NumPyro relies on it
        return jnp.asarray(fn.log_prob(value), value.dtype)


def register(
    cls: type[dist.Distribution],
    forward: Callable[[Any, Array], Array],
    inverse: Callable[[Any, Array], Array],
    shape: Callable[[Any], tuple[int, ...]] | None = None,
) -> None:
    """Give a distribution, and those that derive from it, a transport; one that it had is replaced.

    Both functions may be traced with parameters of `fn` that are traced, and keep the dtype of the array.

    Args:
        cls: the distribution.
        forward: ``forward(fn, z)``, the value at a standard normal score, which `from_standard` then returns. It must
            have distribution `fn`, and lie strictly inside the support (`inside`, `positive` and `finite` move values
            that rounding puts on a bound).
        inverse: ``inverse(fn, value)``, the score of a value, for `to_standard`.
        shape: ``shape(fn)``, of the score, where it is not the value's.
    """
    from_standard.register(cls, forward)
    to_standard.register(cls, inverse)
    if shape is not None:
        standard_shape.register(cls, shape)


def elementwise(cls: type[dist.Distribution], names: str, forward: Callable, inverse: Callable) -> None:
    """`register` for a scalar family.

    Parameters are broadcast to the batch shape and cast to the dtype of the array, so neither rank promotion nor a
    double-precision constant in the model reaches the formulas.

    Args:
        cls: the distribution.
        names: of its parameters, attributes of the distribution, with spaces between them.
        forward: ``forward(z, *parameters)``, the value at a standard normal score.
        inverse: ``inverse(value, *parameters)``, the score of a value.
    """

    def parameters(fn, array):
        return (like(getattr(fn, name), array, array.shape) for name in names.split())

    def value_of(fn, z):
        z = checked(fn, z, fn.shape(), "score")
        return forward(z, *parameters(fn, z))

    def score_of(fn, value):
        value = checked(fn, value, fn.shape(), "value")
        return inverse(value, *parameters(fn, value))

    register(cls, value_of, score_of)
