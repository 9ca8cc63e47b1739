"""Values of the latent sites without constraints, as gradient-based samplers see them, as a function of z."""

from __future__ import annotations

import math

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.interpreters.partial_eval import dce_jaxpr
from numpyro.distributions import biject_to

from enkg_ppl.evaluation._host_call import calls_host
from enkg_ppl.numpyro._simulator import Simulator
from enkg_ppl.types import Vector

# Deterministic sites that are larger than this, in dimensions, are left out.
MOST_COMPUTED = 4


class UnconstrainedValues(eqx.Module):
    """Every site in its own part: unconstrained, or its score where NumPyro knows no such coordinates.

    After the dim latent ones, `computed`: deterministic sites, for what a hierarchy is written in by hand.
    """

    simulator: Simulator
    computed: tuple[str, ...] = eqx.field(static=True)

    def __call__(self, z: Vector) -> Vector:
        trace = self.simulator.trace(z)
        parts = []
        for place in self.simulator.sites:
            part = z[place.start : place.stop]
            free = self.simulator.at_every_step(trace[place.name], _free_value)
            if free is None or free.size != math.prod(place.shape):
                parts.append(part)
            else:
                # What rounds to a bound has none.
                parts.append(jnp.where(jnp.isfinite(free), free, 0.0).ravel().astype(z.dtype))
        for name in self.computed:
            value = jnp.ravel(jnp.asarray(trace[name]["value"], z.dtype))
            parts.append(jnp.where(jnp.isfinite(value), value, 0.0))
        return jnp.concatenate(parts)


def _free_value(fn: dist.Distribution, value):
    try:
        return biject_to(fn.support).inv(value)
    except (NotImplementedError, AttributeError, TypeError):
        return None


def unconstrained_values(simulator: Simulator) -> UnconstrainedValues | None:
    """None where it takes a black box to know the latent sites; without deterministic sites that take one."""
    z = jax.ShapeDtypeStruct((simulator.dim,), jnp.zeros(()).dtype)

    def needs_simulation(values: UnconstrainedValues) -> bool:
        program = jax.make_jaxpr(values)(z).jaxpr
        needed, _ = dce_jaxpr(program, [True] * len(program.outvars))
        return calls_host(needed)

    def values_of(z):
        return simulator.replay(z)[0]

    def usable(name: str) -> bool:
        value = jax.eval_shape(values_of, z)[name]
        small = value.size <= MOST_COMPUTED * simulator.dim
        return (
            small
            and jnp.issubdtype(value.dtype, jnp.floating)
            and not needs_simulation(UnconstrainedValues(simulator, (name,)))
        )

    latent = UnconstrainedValues(simulator, ())
    if needs_simulation(latent):
        return None
    return UnconstrainedValues(simulator, tuple(name for name in simulator.deterministic if usable(name)))
