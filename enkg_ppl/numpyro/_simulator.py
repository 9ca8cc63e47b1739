"""A NumPyro model as a function of z: its latent sites substituted by transports of their parts of z."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jaxtyping import Array
from numpyro import handlers

from enkg_ppl.numpyro._observation import Observation, observations
from enkg_ppl.numpyro._refusals import ModelError, Refuse
from enkg_ppl.numpyro._response import ranks_may_differ
from enkg_ppl.numpyro._sites import LatentSite, has_step, is_latent, of_step, prior_of
from enkg_ppl.numpyro.transports import from_standard, to_standard
from enkg_ppl.types import Key, Vector

# NumPyro keeps one stack of handlers for all threads.
_TRACING = threading.RLock()


def _key_of(z: Vector) -> Key:
    """Randomness that is a function of z, as all of a run is, and differs between particles."""
    bits = jax.lax.bitcast_convert_type(z.astype(jnp.float32), jnp.uint32)
    return jr.fold_in(jr.key(0), jnp.sum(bits, dtype=jnp.uint32))


class OneStep(NamedTuple):
    """A site in the body of a `scan`: number of steps, and the shapes of one step's distribution and its structure."""

    length: int
    shapes: tuple[tuple[int, ...], ...]
    structure: Any


class Constants:
    """Arguments that are part of the program; equal only to themselves."""

    def __init__(self, args: tuple, kwargs: dict[str, Any]):
        self.args, self.kwargs = args, kwargs


class Simulator(eqx.Module):
    """A NumPyro model with its arguments, as functions of z.

    The arrays among the arguments are data of the compiled programs, so that new data of the same shape need no new
    compilation; a model that looks at their values while it is traced gets them as `constants` instead.
    """

    model: Callable = eqx.field(static=True)
    sites: tuple[LatentSite, ...] = eqx.field(static=True)
    deterministic: tuple[str, ...] = eqx.field(static=True)
    imputed: tuple[str, ...] = eqx.field(static=True)  # missing data that nothing depends on: drawn, not inferred
    args: tuple
    kwargs: dict[str, Any]
    steps: tuple[tuple[str, OneStep], ...] = eqx.field(static=True)  # of sites in the body of a `scan`
    constants: Constants | None = eqx.field(static=True, default=None)

    @property
    def dim(self) -> int:
        """Length of z."""
        return self.sites[-1].stop if self.sites else 0

    def place(self, name: str) -> LatentSite:
        return next(place for place in self.sites if place.name == name)

    def trace(self, z: Vector) -> dict[str, Any]:
        """Run the model with its latent sites at z."""
        return self.run(lambda site: self.value(site, z))

    def value(self, site, z: Vector) -> Array | None:
        """What z makes of a site while the model runs; None where that is not for z to say."""
        if not is_latent(site):
            return None
        if site["name"] in self.imputed:
            key = jr.fold_in(_key_of(z), self.imputed.index(site["name"]))
            part, function = self.keys(site, key), site["fn"].base_dist.sample
        else:
            place = self.place(site["name"])
            part = z[place.start : place.stop].reshape(place.shape)
            function = functools.partial(from_standard, prior_of(site))
        # In a `cond` within a `scan` nothing says which step it is; of a value for each, NumPyro takes its own.
        every = site["name"] in dict(self.steps) and not has_step(site)
        return jax.vmap(function)(part) if every else function(of_step(part, site))

    def keys(self, site, key: Key) -> Key:
        """A key for a site, or one for each of its steps in the body of a `scan`."""
        step = dict(self.steps).get(site["name"])
        return key if step is None else jr.split(key, step.length)

    def __call__(self, z: Vector) -> dict[str, Observation]:
        """The simulator: z to the observed sites' distributions."""
        return observations(self.trace(z))

    def replay(self, z: Vector) -> tuple[dict[str, Array], dict[str, Observation]]:
        """One run in full: latent and deterministic values by site, and the observed sites."""
        trace = self.trace(z)
        kept = [site.name for site in self.sites] + list(self.imputed) + list(self.deterministic)
        return {name: jnp.asarray(trace[name]["value"]) for name in kept}, observations(trace)

    def score(self, site) -> Array:
        """The part of z that the value of a latent site stands for; `site`: as it is in a trace."""
        return self.at_every_step(site, lambda fn, value: to_standard(prior_of(site | {"fn": fn}), value))

    def at_every_step(self, site, function: Callable):
        """``function(fn, value)`` of a site, step by step where it is in the body of a `scan`."""
        value = jnp.asarray(site["value"])
        step = dict(self.steps).get(site["name"])
        if step is None:
            return function(site["fn"], value)
        # NumPyro adds the axis of steps to some distributions and forgets it in others; so one step at a time.
        pairs = zip(jax.tree.leaves(site["fn"]), step.shapes, strict=True)
        leaves = [jnp.reshape(leaf, (value.shape[0], *shape)) for leaf, shape in pairs]

        def of_one(leaves, value):
            return function(jax.tree.unflatten(step.structure, leaves), value)

        return jax.vmap(of_one)(leaves, value)

    def run(self, substitute) -> dict[str, Any]:
        """The model's trace, its sites substituted."""
        given = self if self.constants is None else self.constants
        seeded = handlers.seed(Refuse(self.model), jr.key(0))  # a fixed key: the forward map is a function of z
        try:
            with _TRACING, ranks_may_differ():
                traced = handlers.trace(handlers.substitute(seeded, substitute_fn=substitute))
                return traced.get_trace(*given.args, **given.kwargs)
        except (jax.errors.TracerArrayConversionError, jax.errors.ConcretizationTypeError) as error:
            raise ModelError(
                "the model passes JAX values to host code such as NumPy or SciPy: wrap that function, as in "
                "simulate = blackbox(fn, shape=...), or write it with jax.numpy"
            ) from error
        except ModuleNotFoundError as error:
            if error.name != "funsor":
                raise
            raise ModelError(
                "the model needs funsor, as handlers.collapse does, which EnKG cannot follow: write what is collapsed "
                "as one distribution, such as dist.BetaBinomial for a Beta site under a Binomial one"
            ) from error


class Replay(eqx.Module):
    """`Simulator.replay` as a callable of its own."""

    simulator: Simulator

    def __call__(self, z: Vector) -> tuple[dict[str, Array], dict[str, Observation]]:
        return self.simulator.replay(z)
