"""Host code within JAX programs, as `jax.pure_callback` has it, but safe where one core has to do everything.

`jax.pure_callback` makes JAX arrays of the arguments and copies large ones in a thread of the very pool that runs the
program: on one core the callback waits for a copy that cannot begin before the callback ends. Here the function gets
NumPy arrays, copied in its own thread.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray
from jax.experimental import io_callback
from jax.extend.core import ClosedJaxpr, Jaxpr, Primitive
from jax.extend.core.primitives import scan_p, while_p
from jax.interpreters import ad, batching, mlir

host_call_p = Primitive("host_call")
host_call_p.multiple_results = True


def host_call(function: Callable, result: Any, *args: Any, flagged: bool = False) -> Any:
    """`function` of NumPy arrays, called by the compiled program.

    `result`: `jax.ShapeDtypeStruct`, or a tree of them, of what `function` returns. It must be a function of its
    arguments alone: it may be called more than once, or not at all. Under `jax.vmap` every argument, and so must every
    result, leads with the new axis. There is no gradient. `flagged`: the last result says whether the call failed.
    """
    leaves, structure = jax.tree.flatten(result)
    shapes = tuple((tuple(leaf.shape), np.dtype(leaf.dtype)) for leaf in leaves)

    def flat(*args):
        return jax.tree.leaves(function(*args))

    found = host_call_p.bind(*(jnp.asarray(a) for a in args), function=flat, shapes=shapes, flagged=flagged)
    return jax.tree.unflatten(structure, found)


def calls_host(program: Any) -> bool:
    """Whether a program, as `jax.make_jaxpr` makes it, has host code in it."""
    return not primitives_of(program).isdisjoint(_host_primitives())


def calls_black_box(program: Any) -> bool:
    """Whether a program, as `jax.make_jaxpr` makes it, has a `blackbox` in it."""
    return any(e.primitive is host_call_p and e.params["flagged"] for e in equations_of(program))


def has_loops(program: Any) -> bool:
    """Whether a program, as `jax.make_jaxpr` makes it, has a `scan` or `while_loop` in it."""
    return not primitives_of(program).isdisjoint({scan_p, while_p})


@functools.cache
def _host_primitives() -> frozenset[Primitive]:
    """Ours, and those of JAX's callbacks, which it does not give names to outside of its programs."""
    number = jax.ShapeDtypeStruct((), np.float32)
    found = {host_call_p}
    for callback in (jax.pure_callback, io_callback):
        found |= primitives_of(jax.make_jaxpr(lambda call=callback: call(lambda: np.float32(0), number))())
    return frozenset(found)


def primitives_of(program: Any) -> set[Primitive]:
    """The primitives of all equations of a program, those of the programs within its equations included."""
    return {equation.primitive for equation in equations_of(program)}


def equations_of(program: Any) -> list[Any]:
    """All equations of a program, those of the programs within its equations included."""
    found: list[Any] = []
    seen: set[int] = set()  # what is called twice is looked at once

    def look(part: Any) -> None:
        if isinstance(part, ClosedJaxpr):
            part = part.jaxpr
        if isinstance(part, Jaxpr):
            if id(part) in seen:
                return
            seen.add(id(part))
            for equation in part.eqns:
                found.append(equation)
                look(equation.params)
        elif isinstance(part, dict):
            look(list(part.values()))
        elif isinstance(part, tuple | list):
            for piece in part:
                look(piece)

    look(program)
    return found


def _on_host(function: Callable, *args) -> tuple[np.ndarray, ...]:
    # Copies: the originals are XLA's own memory, which is gone after the call, and a function may keep what it got.
    return tuple(np.asarray(value) for value in function(*(np.array(a) for a in args)))


@host_call_p.def_impl
def _now(*args, function, shapes, flagged):
    found = _on_host(function, *args)
    for value, (shape, dtype) in zip(found, shapes, strict=True):
        if (value.shape, value.dtype) != (shape, dtype):
            raise ValueError(f"host code must return {dtype} of shape {shape}; got {value.dtype} of {value.shape}")
    return [jnp.asarray(value) for value in found]


@host_call_p.def_abstract_eval
def _abstract(*_, function, shapes, flagged):
    return [ShapedArray(*shape) for shape in shapes]


def _batch(args, axes, *, function, shapes, flagged):
    size = next(a.shape[axis] for a, axis in zip(args, axes, strict=True) if axis is not None)
    leading = [
        jnp.broadcast_to(a, (size, *a.shape)) if axis is None else jnp.moveaxis(a, axis, 0)
        for a, axis in zip(args, axes, strict=True)
    ]
    shapes = tuple(((size, *shape), dtype) for shape, dtype in shapes)
    return host_call_p.bind(*leading, function=function, shapes=shapes, flagged=flagged), [0] * len(shapes)


def _lower(ctx, *operands, function, shapes, flagged):
    if getattr(ctx.module_context.axis_context, "num_devices", 2) > 1:  # a program over several devices: JAX's own

        def on_one(*args):
            results = [jax.ShapeDtypeStruct(*shape) for shape in shapes]
            return jax.pure_callback(lambda *a: list(_on_host(function, *a)), results, *args)

        return mlir.lower_fun(on_one, multiple_results=True)(ctx, *operands)
    found, _, _ = mlir.emit_python_callback(
        ctx,
        functools.partial(_on_host, function),
        None,
        list(operands),
        ctx.avals_in,
        ctx.avals_out,
        has_side_effect=False,
        returns_token=False,
    )
    return found


def _no_gradient(*_, **__):
    raise TypeError("host code within a JAX program has no gradient: use a method that needs none")


ad.primitive_jvps[host_call_p] = _no_gradient
batching.primitive_batchers[host_call_p] = _batch
mlir.register_lowering(host_call_p, _lower)
