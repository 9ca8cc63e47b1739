"""Compiled programs of a user's model, which live as long as the model does.

A program is kept with what it was compiled for: jitted at the top of a module, it keeps the model, its black boxes and
itself for ever, megabytes for each model. So every model has programs of its own, which know it by a weak reference
and go when it goes. (Kept on the model itself they would not: Python's collector does not see through them.)
"""

from __future__ import annotations

import dataclasses
import logging
import types
import weakref
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax


class Weak:
    """A callable that is not kept alive; equal to others of the same. What holds it must live elsewhere."""

    def __init__(self, fn: Callable):
        self._ref, self._hash = weakref.ref(fn), hash(fn)
        self.__name__ = getattr(fn, "__name__", type(fn).__name__)

    def get(self) -> Callable:
        fn = self._ref()
        assert fn is not None, "the model is gone while it is run"
        return fn

    def __call__(self, *args, **kwargs):
        return self.get()(*args, **kwargs)

    def __eq__(self, other) -> bool:
        return isinstance(other, Weak) and self._ref == other._ref

    def __hash__(self) -> int:
        return self._hash


def weakly(fn: Any) -> Any:
    """`fn` by a weak reference, where that can be: trees of arrays are data, and a bound method is gone at once."""
    if isinstance(fn, Weak | eqx.Module | types.MethodType | types.BuiltinMethodType):
        return fn
    try:
        return Weak(fn)
    except TypeError:  # no weak references, or no hash
        return fn


_CALLBACKS = logging.getLogger("jax._src.callback")


def _said_below(record: logging.LogRecord) -> bool:
    return record.getMessage() != "jax.pure_callback failed"


_programs: dict[int, dict[Callable, Callable]] = {}  # by the id of a living model, then by what is done with it


def compiled(function: Callable) -> Callable:
    """`equinox.filter_jit` for functions of something that holds a model by a weak reference."""
    shared = eqx.filter_jit(function)

    def call(*args):
        model = _model_in(args)
        if model is None:
            return shared(*args)
        dynamic, static = eqx.partition(args, eqx.is_array)
        leaves, structure = jax.tree.flatten(static)
        program = _program(model, function)
        _CALLBACKS.addFilter(_said_below)
        try:
            return program((structure, tuple(leaves)), dynamic)
        except Exception as error:
            if "_EquinoxRuntimeError" not in str(error):
                raise
        finally:
            _CALLBACKS.removeFilter(_said_below)
        return shared(
            *args
        )  # an `equinox.error_if` of the model's, as diffrax has them: filter_jit knows how to say it

    return call


def _program(model: Weak, function: Callable) -> Callable:
    alive = model.get()
    if id(alive) not in _programs:
        _programs.setdefault(id(alive), {})  # ensembles in other threads may come here at once
        weakref.finalize(alive, _programs.pop, id(alive), None).atexit = False
    own = _programs[id(alive)]
    if function not in own:

        def run(key, dynamic):
            structure, leaves = key
            return function(*eqx.combine(dynamic, jax.tree.unflatten(structure, leaves)))

        return own.setdefault(function, jax.jit(run, static_argnums=0))
    return own[function]


def _model_in(tree: Any) -> Weak | None:
    if isinstance(tree, Weak):
        return tree
    if isinstance(tree, eqx.Module):
        tree = tuple(getattr(tree, field.name, None) for field in dataclasses.fields(tree))
    if isinstance(tree, tuple | list):
        return next((found for found in map(_model_in, tree) if found is not None), None)
    return None
