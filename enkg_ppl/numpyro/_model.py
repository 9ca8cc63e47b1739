"""A NumPyro model as an inverse problem: latent sites become one vector z.

The model is run with every latent site substituted by the transport of its part of z (in the manner of HMC's
unconstrain-reparam), so hierarchical priors, plates and control flow work as in any other inference. The prior of z is
standard normal, but for sites with a `DiffusionPrior`: their part of z is the site itself in standard units, so that
the guided flow sees their denoiser and the simulator none of it. What comes out
of a run is, for every observed site, its distribution, value and scale: that is the simulator's output, and the
likelihood is a function of it alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array

from enkg_ppl.evaluation._programs import weakly
from enkg_ppl.numpyro._diffusion_prior import DiffusionPrior, diffusion_prior_in
from enkg_ppl.numpyro._observation import Observation, SiteLikelihood, observations
from enkg_ppl.numpyro._refusals import ModelError, check_arguments, check_latent, check_observed, naming
from enkg_ppl.numpyro._response import UnusableObservation, gaussian_response
from enkg_ppl.numpyro._simulator import Constants, OneStep, Replay, Simulator
from enkg_ppl.numpyro._sites import LatentSite, hashable, is_imputed, is_latent, is_traced, of_step, prior_of, shape_of
from enkg_ppl.numpyro._support import check_support
from enkg_ppl.numpyro._unconstrained_values import unconstrained_values
from enkg_ppl.numpyro.transports import from_standard, standard_shape
from enkg_ppl.priors import GaussianPrior, Prior
from enkg_ppl.priors._product import ProductPrior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.types import Vector


class NumPyroModel:
    """A NumPyro model with its arguments, ready to be run at any z.

    `sites`: the latent sites. `dim`: length of z. `observed`: names of the observed sites. `guided`: those that the
    guidance can use; `unguided`: the others, with the reason. `deterministic`: names of deterministic sites.
    `is_blank`: the data are stand-ins for their shapes, which need not be in any support.

    Raises `ModelError` for what cannot be inferred, each with one sentence that names the site.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: dict[str, Any], *, is_blank: bool = False):
        self.model, self.args, self.kwargs = model, args, kwargs
        check_arguments(model, args, kwargs)
        self.simulator = Simulator(weakly(model), (), (), (), (), {}, (), Constants(args, kwargs))
        self._diffusion: dict[str, DiffusionPrior] = {}
        trace, shapes, steps, self.imputed = self._abstract_trace()
        frames = [frame for site in trace.values() for frame in site.get("cond_indep_stack") or ()]
        self.plates = {frame.name: frame.size for frame in frames}
        self.sites: list[LatentSite] = []
        self.observed: list[str] = []
        self.deterministic: list[str] = []
        for name, site in trace.items():
            if site["type"] == "deterministic":
                self.deterministic.append(name)
            elif site["type"] == "sample" and site["is_observed"]:
                check_observed(name, site)
                self.observed.append(name)
            elif site["type"] == "sample" and name not in self.imputed:
                start = self.sites[-1].stop if self.sites else 0
                shape = shapes[name]
                self.sites.append(LatentSite(name, shape, start, start + math.prod(shape)))
        self.dim = self.sites[-1].stop if self.sites else 0
        self._check_sites()
        sites, deterministic = tuple(self.sites), tuple(self.deterministic)
        imputed = tuple(self.imputed)
        self.simulator = Simulator(
            weakly(model), sites, deterministic, imputed, (), {}, tuple(steps.items()), self.simulator.constants
        )
        self._check_diffusion()
        if not is_blank:
            check_support(self.simulator.trace, jax.ShapeDtypeStruct((self.dim,), jnp.zeros(()).dtype))
        self.simulator = self._simulator_of_data()
        self.guided, self.unguided = self._split_by_guidance()

    # -- running the model ---------------------------------------------------------------------------------------

    def _simulator_of_data(self) -> Simulator:
        """With the arguments as data, or as constants where the model must see their values."""
        constant = self.simulator
        arrays = [leaf for leaf in jax.tree.leaves((self.args, self.kwargs)) if not hashable(leaf)]
        if not all(eqx.is_array_like(leaf) for leaf in arrays):
            return constant
        as_arrays = lambda leaf: leaf if hashable(leaf) else jnp.asarray(leaf)  # noqa: E731
        args, kwargs = jax.tree.map(as_arrays, (self.args, self.kwargs))
        c = constant
        flexible = Simulator(c.model, c.sites, c.deterministic, c.imputed, args, kwargs, c.steps)
        z = jax.ShapeDtypeStruct((self.dim,), jnp.zeros(()).dtype)
        try:
            if jax.tree.structure(eqx.filter_eval_shape(flexible, z)) != jax.tree.structure(
                eqx.filter_eval_shape(constant, z)
            ):
                return constant
        except Exception:  # whatever a model does with values that it cannot see yet: as constants it ran
            return constant
        return flexible

    def unconstrain(self, values: dict[str, Array]) -> Vector:
        """z for values of every latent site."""

        def substitute(site):
            if not is_latent(site):
                return None
            if site["name"] in self.imputed:
                return site["fn"].base_dist.sample(jr.key(0))
            return jnp.asarray(values[site["name"]])

        trace = self.simulator.run(substitute)
        return jnp.concatenate([self.simulator.score(trace[site.name]).ravel() for site in self.sites])

    def problem(self) -> InverseProblem:
        """The inverse problem for z."""
        prior = self._prior()
        constrain = lambda z: self.simulator.replay(z)[0]  # noqa: E731
        likelihood = SiteLikelihood(tuple(self.guided))
        free = None if self._diffusion else unconstrained_values(self.simulator)
        replay = Replay(self.simulator)
        return InverseProblem(prior, self.simulator, likelihood, constrain, self.unconstrain, free, replay)

    def _prior(self) -> Prior:
        """N(0, I), or diffusion priors beside it: ordinary sites that follow each other share a block."""
        if not self._diffusion:
            return GaussianPrior.standard(self.dim)
        blocks: list[Prior] = []
        copies: list[int] = []
        ordinary = 0
        for site in self.sites:
            found = self._diffusion.get(site.name)
            if found is None:
                ordinary += site.stop - site.start
                continue
            if ordinary:
                blocks.append(GaussianPrior.standard(ordinary))
                copies.append(1)
                ordinary = 0
            blocks.append(found.prior)
            copies.append((site.stop - site.start) // found.prior.dim)
        if ordinary:
            blocks.append(GaussianPrior.standard(ordinary))
            copies.append(1)
        return ProductPrior(blocks, copies)

    @property
    def diffusion_names(self) -> tuple[str, ...]:
        """Latent sites with a `DiffusionPrior`."""
        return tuple(self._diffusion)

    # -- checks --------------------------------------------------------------------------------------------------

    def _abstract_trace(self):
        """Run the model on abstract values: sites, without calling a black box.

        Returns the trace, the shapes of the latent sites' parts of z, one step's distribution of
        those in the body of a `scan`, and the names of those that need not be inferred.
        """
        found: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        once: dict[str, Any] = {}
        steps: dict[str, OneStep] = {}
        refused: dict[str, ModelError] = {}

        def substitute(site):
            if not is_latent(site):
                return None
            name, fn = site["name"], prior_of(site)
            # Not of `fn`: in standard units it is computed here, and so not known outside of this trace.
            prior = diffusion_prior_in(site["fn"].base_dist if is_imputed(site) else site["fn"])
            if prior is not None:
                self._diffusion[name] = prior
            once[name] = site["fn"]
            shapes[name] = ()
            try:
                check_latent(name, site)
                with naming(name):
                    shapes[name] = tuple(standard_shape(fn))
                    return from_standard(fn, jnp.zeros(shapes[name]))
            except ModelError as refusal:
                if not is_imputed(site):
                    raise
                refused[name] = refusal
                return fn.sample(jr.key(0))

        def run(_):
            found.update(self.simulator.run(substitute))
            return 0

        jax.eval_shape(run, 0.0)
        for name in shapes:
            if name not in found:
                raise ModelError(
                    f"latent site '{name}' has another name outside the scan or cond that it is in: apply "
                    "handlers.scope to the function that is scanned, not around the scan"
                )
        for name, fn in once.items():
            value = found[name]["value"]
            if value.ndim > len(fn.shape()) + 1:
                raise ModelError(
                    f"latent site '{name}' is in a scan within a scan, which NumPyro does not support: write the inner "
                    f"one as a loop, with sites '{name}_0', '{name}_1' and so on"
                )
            if value.ndim > len(fn.shape()):  # the axis of steps, of a site in the body of a scan
                leaves, structure = jax.tree.flatten(fn)
                steps[name] = OneStep(value.shape[0], tuple(jnp.shape(leaf) for leaf in leaves), structure)
                shapes[name] = (value.shape[0], *shapes[name])
        missing = [name for name, site in found.items() if is_latent(site) and is_imputed(site)]
        imputed = self._unused({name: shape_of(found[name]["value"]) for name in missing})
        for name, refusal in refused.items():
            if name not in imputed:
                raise refusal
        return found, shapes, steps, imputed

    def _unused(self, missing: dict[str, Any]) -> list[str]:
        """Those of the sites of missing data that no observed site depends on; `missing`: stand-ins for their values.

        What depends on what is read off the program.
        """

        def observed(values):
            def substitute(site):
                if not is_latent(site):
                    return None
                if is_imputed(site):
                    return of_step(values[site["name"]], site)
                return from_standard(prior_of(site), jnp.zeros(standard_shape(prior_of(site))))

            return observations(self.simulator.run(substitute))

        if not missing:
            return []
        program = jax.make_jaxpr(observed)(missing).jaxpr
        _, used = dce_jaxpr(program, [True] * len(program.outvars))
        return [name for name, is_used in zip(sorted(missing), used, strict=True) if not is_used]

    def _check_diffusion(self) -> None:
        """Get hold of priors that are made inside the model, and refuse those that depend on other latent sites."""
        traced = [name for name, d in self._diffusion.items() if is_traced(d)]
        if not traced:
            return

        @jax.jit
        def priors_at(z):
            found = {}

            def substitute(site):
                if is_latent(site) and site["name"] in traced:
                    found[site["name"]] = diffusion_prior_in(site["fn"])
                return self.simulator.value(site, z)

            self.simulator.run(substitute)
            return found

        # What does not depend on z is the same at any two places.
        here, there = (priors_at(jr.normal(jr.key(seed), (self.dim,))) for seed in (0, 1))
        for name in traced:
            pairs = zip(jax.tree.leaves(here[name]), jax.tree.leaves(there[name]), strict=True)
            if not all(np.array_equal(a, b) for a, b in pairs):
                raise ModelError(
                    f"the DiffusionPrior of latent site '{name}' depends on other latent sites, and its denoiser must "
                    "not: let them act on its value, as in tau * x"
                )
            self._diffusion[name] = here[name]

    def _check_sites(self) -> None:
        latents = ", ".join(site.name for site in self.sites) or "none"
        if not self.observed:
            raise ModelError(
                "the model has no observed site: give one obs=, or handlers.condition, and pass its data to run, as in "
                f"run(rng_key, ..., y=y) (latent sites: {latents})"
            )
        if not self.sites:
            raise ModelError(
                "the model has no latent site: every sample statement has obs=, so nothing is left to infer"
            )

    def _split_by_guidance(self) -> tuple[list[str], dict[str, str]]:
        guided, unguided = [], {}
        outputs: dict[str, Observation] = {}

        def usable(z, name):
            outputs.update(self.simulator(z))
            return gaussian_response(outputs[name].fn, outputs[name].value, outputs[name].scale)

        for name in self.observed:
            try:
                jax.eval_shape(
                    lambda z, name=name: usable(z, name), jax.ShapeDtypeStruct((self.dim,), jnp.zeros(()).dtype)
                )
                guided.append(name)
            except UnusableObservation as reason:
                unguided[name] = str(reason)
        return guided, unguided
