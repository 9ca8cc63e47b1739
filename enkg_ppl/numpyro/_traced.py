"""A run inside `jax.jit`, `jax.vmap` or `jax.lax.map`: one call of the host for every data set.

The tempering decides on the host how far to go, so a run is no pure JAX program; inside one it is a callback, which
gives the same draws as outside, data set after data set. Only the shapes of the results have to be known beforehand.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.core import Tracer
from jax.custom_batching import sequential_vmap

from enkg_ppl.evaluation._ensembles import settings_of_this_thread
from enkg_ppl.evaluation._host_call import host_call
from enkg_ppl.numpyro._model import NumPyroModel


class TracedResult(NamedTuple):
    """What a run inside a JAX program leaves; arrays lead with (ensemble, particle), numbers are arrays too."""

    samples: dict[str, jax.Array]
    extra_fields: dict[str, jax.Array]
    log_likelihood: dict[str, jax.Array]
    num_forward_evaluations: jax.Array
    log_evidence: jax.Array  # NaN where there is none
    log_evidence_error: jax.Array
    num_warnings: jax.Array


def is_traced(*trees: Any) -> bool:
    """Whether any leaf belongs to a JAX program that is being traced."""
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(trees))


def run_traced(enkg, rng_key: jax.Array, args: tuple, kwargs: dict[str, Any], extra_fields) -> TracedResult:
    """`EnKG.run` on the host at run time, for every data set in turn where there are several."""
    dynamic, static = eqx.partition((args, kwargs), eqx.is_array)

    settings = settings_of_this_thread()

    def on_host(key_data, dynamic):
        args, kwargs = eqx.combine(dynamic, static)
        one = copy.copy(enkg)
        one.progress_bar = False
        with settings():
            try:
                one.run(jr.wrap_key_data(jnp.asarray(key_data)), *args, extra_fields=extra_fields, **kwargs)
            finally:
                enkg.partial = one.partial
            return jax.tree.map(np.asarray, outcome(one))

    shapes = _shapes(enkg, eqx.combine(jax.tree.map(_blank, dynamic), static), extra_fields)
    leaves, structure = jax.tree.flatten(dynamic)

    @sequential_vmap
    def call(key_data, leaves):
        return host_call(
            lambda key_data, *leaves: on_host(key_data, structure.unflatten(leaves)), shapes, key_data, *leaves
        )

    return call(jr.key_data(rng_key), leaves)


def outcome(enkg) -> TracedResult:
    """The results of a finished run, as one tree of arrays."""
    number: Callable = lambda value: jnp.asarray(jnp.nan if value is None else value, float)  # noqa: E731
    return TracedResult(
        enkg.get_samples(group_by_chain=True),
        enkg.get_extra_fields(group_by_chain=True),
        enkg.get_log_likelihood(group_by_chain=True),
        jnp.asarray(enkg.num_forward_evaluations),
        number(enkg.log_evidence),
        number(enkg.log_evidence_error),
        jnp.asarray(len(enkg.diagnostics().warnings)),
    )


def _blank(leaf) -> np.ndarray:
    return np.zeros(leaf.shape, leaf.dtype)


def _shapes(enkg, arguments: tuple, extra_fields) -> Any:
    """Shapes of the outcome, from the model on blank data."""
    args, kwargs = arguments
    with jax.ensure_compile_time_eval():
        model = NumPyroModel(enkg.model, args, kwargs, is_blank=True)

        def final(z):
            values, observations = model.simulator.replay(z)
            pointwise = {name: observation.log_prob() for name, observation in observations.items()}
            return values, pointwise

        lead = (enkg.num_ensembles, enkg.num_particles)
        z = jax.ShapeDtypeStruct((*lead, model.dim), jnp.zeros(()).dtype)
        samples, pointwise = jax.eval_shape(jax.vmap(jax.vmap(final)), z)
    number = jax.ShapeDtypeStruct((), jnp.zeros(()).dtype)
    count = jax.ShapeDtypeStruct((), jnp.zeros((), int).dtype)
    fields = dict.fromkeys({"potential_energy", *extra_fields}, jax.ShapeDtypeStruct(lead, number.dtype))
    shapes: list[Any] = [samples, fields, pointwise, count, number, number, count]
    return TracedResult(*shapes)
