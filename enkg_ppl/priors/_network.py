"""A trained network as a prior."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl._checks import check_whole, whole_shape
from enkg_ppl.priors._base import Grid, Prior
from enkg_ppl.priors._record import Record
from enkg_ppl.priors._reverse_sde import sde_sample
from enkg_ppl.priors.preconditioning import Direct, Preconditioning
from enkg_ppl.types import AnyArray, Key, Scalar, Vector

# Points along its longest side that make an event a field.
LEAST_GRID = 8
ROUGH_STEPS = 12  # of the reverse SDE, one evaluation each
DTYPES = ("bfloat16", "float16", "float32", "float64")


class _Function(eqx.Module):
    """A plain function as a module without arrays, so that it is code and not data to JAX's transformations."""

    function: Callable = eqx.field(static=True)

    def __call__(self, x, noise):
        return self.function(x, noise)


class NetworkPrior(Prior):
    """A prior whose denoiser is a preconditioned network.

    Outside the trusted noise levels, the denoiser is extrapolated: below `sigma_min` with the score of `sigma_min`,
    ``D(x, sigma) = x + (sigma / sigma_min)^2 (D(x, sigma_min) - x)``; above `sigma_max`, where the prior is narrow
    compared with the noise, with ``D(x, sigma) = m + c (D(m + c (x - m), sigma_max) - m)``, m the location and ``c =
    sigma_max / sigma``, whose error is of order (scale / sigma_max)^2 of the correction.

    Args:
        network: any callable ``network(x, noise)`` of ONE event of shape `event_shape` and a scalar, that returns an
            array of that shape. An Equinox module is differentiated, cast and saved; a plain function's arrays become
            constants.
        preconditioning: turns the network into a denoiser (`EDM`, `VP`, `VE`, `IDDPM`, `Discrete`, `Direct`).
        event_shape: the latent vector x is the flattened event.
        location: mean of the data, broadcast to the event shape or flat.
        scale: standard deviation of the data along their widest principal direction (not of one entry: for images it is
            several times larger). The probability flow starts at 200 of it, the guided flow at 2.
        shift: the network's input is ``(x - shift) / spread``; may be an array that broadcasts to the event.
        spread: the network's noise level is ``sigma / spread``; one number, since the noise is alike in every
            direction.
        sigma_min: smallest noise level, in units of x, at which the network is to be trusted (default: the
            preconditioning's).
        sigma_max: largest such noise level (default: the preconditioning's).
        chunk_size: the library evaluates at most this many particles at a time, to bound memory; in code of your own
            use `chunked_vmap`.
        dtype: precision of the network's own arithmetic, such as "bfloat16"; None for the caller's. Input and output,
            and the noise coordinate, keep the caller's precision.
        record: JSON values stored with the prior, such as how it was trained.

    Raises:
        ValueError: for invalid arguments, and for a network whose output does not have the event's shape.

    Source: Karras et al. 2022, arXiv 2206.00364, eq. 7.
    """

    network: Callable
    preconditioning: Preconditioning
    event_shape: tuple[int, ...] = eqx.field(static=True)
    shift: Float[AnyArray, "..."]
    spread: Scalar
    sigma_min: float | None = eqx.field(static=True)
    sigma_max: float | None = eqx.field(static=True)
    dtype: str | None = eqx.field(static=True)
    record: Record = eqx.field(static=True)
    _location: Vector
    _scale: Scalar
    _chunk_size: int | None = eqx.field(static=True)

    def __init__(
        self,
        network: Callable[[Array, Scalar], Array],
        preconditioning: Preconditioning,
        event_shape: tuple[int, ...] | int,
        *,
        location: Float[AnyArray, "..."] | float,
        scale: Scalar | float,
        shift: Float[AnyArray, "..."] | float = 0.0,
        spread: Scalar | float = 1.0,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        chunk_size: int | None = None,
        dtype: str | None = None,
        record: Mapping[str, Any] | None = None,
    ):
        if not callable(network):
            raise TypeError(f"NetworkPrior needs a network that can be called as network(x, noise); got {network!r}")
        if not isinstance(preconditioning, Preconditioning):
            raise TypeError(f"NetworkPrior needs a preconditioning such as EDM(); got {preconditioning!r}")
        self.network = network if _is_pytree_node(network) else _Function(network)
        self.preconditioning = preconditioning
        shape = whole_shape(event_shape, 1)
        if not shape:
            raise ValueError(f"NetworkPrior needs event_shape as a tuple of whole numbers >= 1; got {event_shape!r}")
        self.event_shape = shape
        self._location = _flat(location, self.event_shape)
        self._scale = _positive("scale", scale)
        self.shift = _broadcastable(shift, self.event_shape)
        self.spread = _positive("spread", spread)
        spread = float(self.spread)
        bounds = preconditioning.sigma_min, preconditioning.sigma_max
        default_min, default_max = (None if b is None else b * spread for b in bounds)
        self.sigma_min = default_min if sigma_min is None else float(sigma_min)
        self.sigma_max = default_max if sigma_max is None else float(sigma_max)
        if not 0 < (self.sigma_min or 1e-300) < (self.sigma_max or math.inf):
            raise ValueError(
                f"NetworkPrior needs 0 < sigma_min < sigma_max; got sigma_min={self.sigma_min}, "
                f"sigma_max={self.sigma_max}"
            )
        if chunk_size is not None:
            check_whole("NetworkPrior", 1, ", or None for all", chunk_size=chunk_size)
        self._chunk_size = chunk_size
        self.dtype = None if dtype is None else _checked_dtype(dtype)
        self.record = record if isinstance(record, Record) else Record(record)
        self._check_output()

    @classmethod
    def from_denoiser(
        cls, denoise: Callable[[Array, Scalar], Array], event_shape: tuple[int, ...] | int, **options
    ) -> NetworkPrior:
        """From a denoiser ``denoise(x, sigma) = E[x0 | x0 + sigma eps = x]`` of one event.

        A noise, v or x0 prediction on the steps of a schedule is used with the preconditioning `Discrete`:
        ``NetworkPrior(eps, Discrete(alphas_cumprod), event_shape, location=..., scale=...)``.

        Args:
            denoise: function of one event and the noise level.
            event_shape: the latent vector x is the flattened event.
            **options: of `NetworkPrior`.
        """
        return cls(denoise, Direct(), event_shape, **options)

    def _check_output(self) -> None:
        """Trace the network once, so that a wrong shape is told here and not amid an inference."""
        x = jax.ShapeDtypeStruct(self._location.shape, self._location.dtype)
        u = jax.ShapeDtypeStruct(self.event_shape, x.dtype)
        noise = jax.ShapeDtypeStruct((), x.dtype)
        out = eqx.filter_eval_shape(self._evaluate, u, noise)
        if not hasattr(out, "shape") or out.shape != self.event_shape:
            raise ValueError(
                f"NetworkPrior needs a network that returns the event's shape {self.event_shape}; got "
                f"{getattr(out, 'shape', type(out).__name__)}: correct event_shape, or wrap the network"
            )

    @property
    def dim(self) -> int:
        return math.prod(self.event_shape)

    @property
    def location(self) -> Vector:
        return self._location

    @property
    def scale(self) -> Scalar:
        return self._scale

    @property
    def chunk_size(self) -> int | None:
        return self._chunk_size

    @property
    def grid(self) -> Grid | None:
        """Of events ``(channels, ...)`` or ``(rows, columns)``; periodic where the network is."""
        shape = self.event_shape
        channels = 1 if len(shape) == 2 and shape[0] >= LEAST_GRID else shape[0]
        places = shape if channels == 1 and len(shape) == 2 else shape[1:]
        if not places or max(places) < LEAST_GRID:
            return None
        return Grid(channels, places, getattr(self.network, "padding", None) == "periodic")

    def rough_sample(self, key: Key) -> Vector:
        """By a few steps of the reverse SDE, at half the cost of `sample`.

        Directions narrower than a fiftieth of the prior's scale come out too narrow.

        Args:
            key: random key.
        """
        return sde_sample(key, self, ROUGH_STEPS)

    def _evaluate(self, u: Float[AnyArray, "..."], noise: Scalar) -> Float[AnyArray, "..."]:
        """The network's output for one event, in the caller's precision."""
        working = u.dtype if self.dtype is None else jnp.dtype(self.dtype)

        def cast(leaf):
            return leaf.astype(working) if eqx.is_inexact_array(leaf) else leaf

        return jax.tree.map(cast, self.network)(u.astype(working), noise).astype(u.dtype)

    def _denoise_known(self, x: Vector, sigma: Scalar) -> Vector:
        """The denoiser within the noise levels of the training."""
        shift, spread = self.shift.astype(x.dtype), self.spread.astype(x.dtype)
        u = (jnp.reshape(x, self.event_shape) - shift) / spread
        skip, out, scale, noise = self.preconditioning.coefficients(sigma / spread)
        u = skip * u + out * self._evaluate(scale * u, noise)
        return (shift + spread * u).reshape(x.shape)

    def denoise(self, x: Vector, sigma: Scalar) -> Vector:
        sigma = jnp.asarray(sigma, x.dtype)
        known = jnp.clip(sigma, self.sigma_min, self.sigma_max)
        if self.sigma_max is None:
            y = x
        else:
            location, shrink = self._location.astype(x.dtype), jnp.minimum(1.0, self.sigma_max / sigma)
            y = location + shrink * (x - location)
        x0 = self._denoise_known(y, known)
        if self.sigma_min is not None:
            x0 = y + jnp.minimum(1.0, sigma / self.sigma_min) ** 2 * (x0 - y)
        if self.sigma_max is not None:
            x0 = location + shrink * (x0 - location)
        return x0


def _is_pytree_node(value: Any) -> bool:
    """Whether JAX sees the arrays inside (modules, `Partial`), rather than one opaque leaf."""
    leaves = jax.tree.leaves(value)
    return not (len(leaves) == 1 and leaves[0] is value)


def _checked_dtype(dtype) -> str:
    name = jnp.dtype(dtype).name
    if name not in DTYPES:
        raise ValueError(f"NetworkPrior needs dtype as one of {', '.join(DTYPES)}, or None; got {dtype!r}")
    return name


def _floating(values) -> Array:
    """As a float array of a dtype of its own: Python numbers are weakly typed, and would compile a program more."""
    values = jnp.asarray(values)
    return jnp.array(values, values.dtype if jnp.issubdtype(values.dtype, jnp.floating) else jnp.result_type(float))


def _positive(name: str, value) -> Array:
    value = _floating(value)
    if value.shape != ():
        remedy = ": divide the data by their spreads first, and multiply in the model" if name == "spread" else ""
        raise ValueError(f"NetworkPrior needs {name} as one number; got shape {value.shape}{remedy}")
    if not (bool(jnp.isfinite(value)) and value > 0):
        raise ValueError(f"NetworkPrior needs {name} > 0; got {name}={float(value)}")
    return value


def _flat(location, shape: tuple[int, ...]) -> Array:
    location = _floating(location)
    if location.shape == (math.prod(shape),):
        return location
    return jnp.broadcast_to(_broadcastable(location, shape, "location"), shape).reshape(-1)


def _broadcastable(values, shape: tuple[int, ...], name: str = "shift") -> Array:
    """With as many axes as the event, so that no rank is promoted later."""
    values = _floating(values)
    try:
        fits = np.broadcast_shapes(values.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"NetworkPrior needs {name} to broadcast to the event's shape {shape}; got {values.shape}")
    return values.reshape((1,) * (len(shape) - values.ndim) + values.shape)
