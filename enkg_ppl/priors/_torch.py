"""A PyTorch module as a network, evaluated on the host: for models that nobody wants to rewrite in JAX.

An ensemble is one call of the module. The directional derivative that the guided flow needs comes from
``torch.func.jvp``, its transpose (for reverse mode) from ``torch.func.vjp``; both go through one linear JAX primitive,
because JAX cannot transpose a host callback by itself.
"""

from __future__ import annotations

import math
import warnings
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir
from jaxtyping import Array, Float

from enkg_ppl.evaluation._host_call import host_call
from enkg_ppl.types import Scalar


class TorchNetwork(eqx.Module):
    """``network(x, noise)`` by a PyTorch module, for `NetworkPrior`.

    Works under `jax.jit` and `jax.vmap` and has first derivatives in both modes (the module must suit `torch.func`).
    Second derivatives raise `TypeError`: the gradient of `Flow.log_prob` needs them, the gradient of `Flow.decode` does
    not.

    Args:
        module: called as ``module(x, noise)`` with x of shape (batch, *event_shape) and noise (batch,), on the module's
            own device and in its own precision; returns (batch, *event_shape). It is put into evaluation mode when the
            network is made, and its parameters are not trained or saved by this library.

    Raises:
        ImportError: without PyTorch.
    """

    _host: _Host = eqx.field(static=True)

    def __init__(self, module: Any):
        self._host = _Host(module)

    def __call__(self, x: Float[Array, "..."], noise: Scalar) -> Float[Array, "..."]:
        host, shape = self._host, x.shape
        dtype = x.dtype

        @jax.custom_jvp
        def value(point):
            result = jax.ShapeDtypeStruct((math.prod(shape),), dtype)
            return host_call(lambda p: host.value(p, shape), result, point)

        @value.defjvp
        def _(primals, tangents):
            (point,), (direction,) = primals, tangents
            return value(point), _derivative.bind(point, direction, host=host, shape=shape, transpose=False)

        # One vector of everything that is differentiated, so that one product with one Jacobian serves.
        point = jnp.concatenate([x.reshape(-1), jnp.asarray(noise, dtype)[None]])
        return value(point).reshape(shape)


class _Host:
    """The module behind NumPy arrays; any leading axes are one batch. Compared by identity, as static fields are."""

    def __init__(self, module):
        try:
            import torch  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ImportError("TorchNetwork needs PyTorch: pip install 'enkg_ppl[torch]'") from error
        if not isinstance(module, torch.nn.Module):
            raise TypeError(f"TorchNetwork needs a torch.nn.Module; got {module!r}")
        self.torch, self.module = torch, module.eval()
        reference = next((p for p in module.parameters() if p.is_floating_point()), torch.zeros(()))
        self.dtype, self.device = reference.dtype, reference.device
        with warnings.catch_warnings():  # at its first use PyTorch loads rules and warns about its own code
            warnings.simplefilter("ignore", DeprecationWarning)
            torch.func.jvp(torch.sin, (torch.zeros(1),), (torch.ones(1),))

    def _tensor(self, values: np.ndarray):
        return self.torch.from_numpy(np.array(values, np.float64)).to(self.device, self.dtype)

    def _numpy(self, tensor, shape, dtype) -> np.ndarray:
        return tensor.detach().to("cpu", self.torch.float64).numpy().reshape(shape).astype(dtype)

    def _function(self, shape):
        """From (batch, dim + 1) to (batch, dim), as the module computes it."""

        def function(points):
            return self.module(points[:, :-1].reshape(-1, *shape), points[:, -1]).reshape(len(points), -1)

        return function

    def value(self, point, shape) -> np.ndarray:
        rows = point.reshape(-1, point.shape[-1])
        with self.torch.no_grad():
            out = self.module(self._tensor(rows[:, :-1]).reshape(-1, *shape), self._tensor(rows[:, -1]))
        if tuple(out.shape) != (len(rows), *shape):
            raise ValueError(
                f"{type(self.module).__name__} returned shape {tuple(out.shape)} where {(len(rows), *shape)} is due: "
                "wrap the module, or correct event_shape"
            )
        return self._numpy(out, (*point.shape[:-1], math.prod(shape)), point.dtype)

    def derivative(self, point, direction, shape, transpose: bool) -> np.ndarray:
        """The Jacobian at each point times a direction, or the transposed Jacobian times one."""
        batch = np.broadcast_shapes(point.shape[:-1], direction.shape[:-1])
        points, directions = (
            self._tensor(np.broadcast_to(a, (*batch, a.shape[-1])).reshape(-1, a.shape[-1])) for a in (point, direction)
        )
        function = self._function(shape)
        if transpose:
            _, pull = self.torch.func.vjp(function, points)
            out = pull(directions)[0]
        else:
            _, out = self.torch.func.jvp(function, (points,), (directions,))
        return self._numpy(out, (*batch, out.shape[-1]), direction.dtype)


# ---- point (..., dim + 1) and direction (..., dim + 1) to (..., dim); transposed, (..., dim) to (..., dim + 1)
_derivative = Primitive("torch_derivative")


def _shape_of_result(point, direction, shape, transpose: bool) -> tuple[int, ...]:
    batch = np.broadcast_shapes(point.shape[:-1], direction.shape[:-1])
    return (*batch, math.prod(shape) + (1 if transpose else 0))


@_derivative.def_abstract_eval
def _abstract(point, direction, *, host, shape, transpose):
    return direction.update(shape=_shape_of_result(point, direction, shape, transpose))


def _by_callback(point, direction, *, host, shape, transpose):
    result = jax.ShapeDtypeStruct(_shape_of_result(point, direction, shape, transpose), direction.dtype)
    return host_call(lambda p, d: host.derivative(p, d, shape, transpose), result, point, direction)


_derivative.def_impl(_by_callback)
mlir.register_lowering(_derivative, mlir.lower_fun(_by_callback, multiple_results=False))


def _batch(args, dims, **params):
    lead = [jnp.expand_dims(a, 0) if d is None else jnp.moveaxis(a, d, 0) for a, d in zip(args, dims, strict=True)]
    # Both need as many axes, or the batches would be matched from the wrong end.
    rank = max(a.ndim for a in lead)
    lead = [a.reshape(a.shape[0], *(1,) * (rank - a.ndim), *a.shape[1:]) for a in lead]
    return _derivative.bind(*lead, **params), 0


batching.primitive_batchers[_derivative] = _batch


def _transpose(cotangent, point, direction, *, host, shape, transpose):
    if ad.is_undefined_primal(point):
        raise TypeError("a PyTorch module has first derivatives here, and a second one was asked for")
    if type(cotangent) is ad.Zero:
        return None, ad.Zero(direction.aval)
    pulled = _derivative.bind(point, cotangent, host=host, shape=shape, transpose=not transpose)
    # Where one direction served several points, its cotangents add up.
    wanted = direction.aval.shape
    repeated = tuple(i for i in range(len(wanted) - 1) if wanted[i] == 1 and pulled.shape[i] != 1)
    return None, pulled.sum(axis=repeated, keepdims=True) if repeated else pulled


ad.primitive_transposes[_derivative] = _transpose


def _jvp(primals, tangents, **params):
    (point, direction), (point_dot, direction_dot) = primals, tangents
    if type(point_dot) is not ad.Zero:
        raise TypeError(
            "a PyTorch module has no second derivatives here (the gradient of Flow.log_prob needs them): sample in the "
            "latent space of Flow.decode, or import the network into JAX"
        )
    out = _derivative.bind(point, direction, **params)
    if type(direction_dot) is ad.Zero:
        return out, jnp.zeros_like(out)
    return out, _derivative.bind(point, direction_dot, **params)


ad.primitive_jvps[_derivative] = _jvp
