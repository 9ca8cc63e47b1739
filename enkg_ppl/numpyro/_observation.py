"""What a run of a model says about its data: the simulator's output, and its likelihood."""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jaxtyping import Array, Float

from enkg_ppl.likelihood import Likelihood, Response
from enkg_ppl.numpyro._response import gaussian_response, ranks_may_differ
from enkg_ppl.numpyro._support import unflattened, validating
from enkg_ppl.types import Scalar


class Observation(eqx.Module):
    """One observed site in one run of the model: a part of the simulator's output.

    The distribution is kept as its arrays: NumPyro's masked ones are no tree of anything but arrays.
    """

    leaves: list[Any]
    structure: Any = eqx.field(static=True)
    value: Any
    scale: Any

    def __init__(self, fn: dist.Distribution, value, scale):
        self.leaves, self.structure = jax.tree.flatten(validating(fn))
        self.value, self.scale = value, scale

    @property
    def fn(self) -> dist.Distribution:
        return unflattened(self.structure, self.leaves)

    def log_prob(self) -> Array:
        """Log density of every independent datum, before `scale`; -inf outside of the support, as in NumPyro."""
        with ranks_may_differ():
            return jnp.asarray(self.fn.log_prob(self.value))


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
        """Gradient with respect to every float in the sites' distributions, of their own structure.

        Zero where the data are outside of the support: there the density tells no way to go.
        """
        log_prob, score = eqx.filter_value_and_grad(self.log_prob)(g)
        return jax.tree.map(lambda a: jnp.where(jnp.isneginf(log_prob), 0.0, a), score)

    def fisher(self, g: dict[str, Observation]) -> Float[Array, " m"]:
        return 1 / jnp.asarray(self.response(g).noise)

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
