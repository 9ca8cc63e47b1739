"""What a run of a model says about its data: the simulator's output, and its likelihood."""

from __future__ import annotations

from typing import Any, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from enkg_ppl._likelihood import Likelihood, Response
from enkg_ppl._numpyro._response import gaussian_response, ranks_may_differ
from enkg_ppl._types import Scalar


class Observation(eqx.Module):
    """One observed site in one run of the model: a part of the simulator's output.

    The distribution is kept as its arrays: NumPyro's masked ones are no tree of anything but arrays.
    """

    leaves: list[Any]
    structure: Any = eqx.field(static=True)
    value: Any
    scale: Any

    def __init__(self, fn: dist.Distribution, value, scale):
        self.leaves, self.structure = jax.tree.flatten(fn)
        self.value, self.scale = value, scale

    @property
    def fn(self) -> dist.Distribution:
        return jax.tree.unflatten(self.structure, self.leaves)

    def log_prob(self) -> Array:
        """Log density of every independent datum, before `scale`."""
        with ranks_may_differ():
            log_prob = jnp.asarray(self.fn.log_prob(self.value))
            if _is_uniform(self.fn):  # NumPyro's density of it is the same outside of the bounds
                inside = cast(Any, self.fn.support)(self.value)
                return jnp.where(inside, log_prob, -jnp.inf)
            return log_prob


def _is_uniform(fn: dist.Distribution) -> bool:
    while isinstance(fn, dist.Independent | dist.ExpandedDistribution):
        fn = fn.base_dist
    return isinstance(fn, dist.Uniform)


class SiteLikelihood(Likelihood):
    """Sum of the observed sites' log densities, each times its `handlers.scale`."""

    guided: tuple[str, ...] = eqx.field(static=True)

    def log_prob(self, g: dict[str, Observation]) -> Scalar:
        total = jnp.zeros(())
        for observation in g.values():
            log_prob = observation.log_prob()
            total = total + jnp.sum(log_prob if observation.scale is None else log_prob * observation.scale)
        return total

    def score(self, g: dict[str, Observation]) -> dict[str, Observation]:
        """Gradient with respect to every float in the sites' distributions, of their own structure."""
        return eqx.filter_grad(self.log_prob)(g)

    def fisher(self, g: dict[str, Observation]) -> Float[Array, " m"]:
        return 1 / self.response(g).noise

    def response(self, g: dict[str, Observation]) -> Response:
        parts = []
        for name in self.guided:
            parts.append(gaussian_response(g[name].fn, g[name].value, g[name].scale))
        return Response(*(jnp.concatenate(arrays) for arrays in zip(*parts, strict=True)))


def observations(trace) -> dict[str, Observation]:
    def as_arrays(tree):
        return jax.tree.map(jnp.asarray, tree)

    return {
        name: Observation(as_arrays(site["fn"]), as_arrays(site["value"]), as_arrays(site["scale"]))
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"]
    }
