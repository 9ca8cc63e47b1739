"""A NumPyro model as an inverse problem: latent sites become one vector z.

The model is run with every latent site substituted by the transport of its part of z (in the manner of HMC's
unconstrain-reparam), so hierarchical priors, plates and control flow work as in any other inference. The prior of z is
standard normal, but for sites with a `DiffusionPrior`: their part of z is the site itself in standard units, so that
the guided flow sees their denoiser and the simulator none of it. What comes out
of a run is, for every observed site, its distribution, value and scale: that is the simulator's output, and the
likelihood is a function of it alone.
"""

from __future__ import annotations

import difflib
import inspect
import math
import threading
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from jax.interpreters.partial_eval import dce_jaxpr
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.primitives import Messenger

from enkg_ppl._likelihood import Likelihood, Response
from enkg_ppl._numpyro._diffusion_prior import DiffusionPrior, diffusion_prior_in, in_standard_units
from enkg_ppl._numpyro._response import UnusableObservation, gaussian_response, ranks_may_differ
from enkg_ppl._numpyro._transport import UnsupportedPriorError, from_standard, standard_shape, to_standard
from enkg_ppl._prior import GaussianPrior, Prior
from enkg_ppl._prior._product import ProductPrior
from enkg_ppl._problem import InverseProblem
from enkg_ppl._types import AnyArray, Key, Scalar, Vector

# NumPyro keeps one stack of handlers for all threads.
_TRACING = threading.RLock()


class ModelError(ValueError):
    """The model, or what was passed to it, cannot be inferred as it is; the message says what to change."""


class LatentSite(NamedTuple):
    """Where a latent site lives in z."""

    name: str
    shape: tuple[int, ...]  # of its part of z, which is a standard-normal score unless it is a diffusion prior
    start: int
    stop: int


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


def _prior_of(site) -> dist.Distribution:
    """The distribution of a latent site that its part of z stands for."""
    fn = site["fn"].base_dist if _is_imputed(site) else site["fn"]
    return fn if diffusion_prior_in(fn) is None else in_standard_units(fn)


def _is_latent(site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def _is_imputed(site) -> bool:
    """Whether a site stands for the missing ones among data, as `obs_mask` makes it."""
    return site["name"].endswith("_unobserved") and isinstance(site["fn"], dist.MaskedDistribution)


def _of_step(part: AnyArray, site) -> AnyArray:
    """What belongs to the present step, in the body of a `scan`: NumPyro says which that is."""
    step = site["infer"].get("_scan_current_index")
    return part if step is None else part[step]


def _key_of(z: Vector) -> Key:
    """Randomness that is a function of z, as all of a run is, and differs between particles."""
    bits = jax.lax.bitcast_convert_type(z.astype(jnp.float32), jnp.uint32)
    return jr.fold_in(jr.key(0), jnp.sum(bits, dtype=jnp.uint32))


class _Constants:
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
    constants: _Constants | None = eqx.field(static=True, default=None)

    def trace(self, z: Vector) -> dict[str, Any]:
        """Run the model with its latent sites at z."""
        return self.run(lambda site: self.value(site, z))

    def value(self, site, z: Vector) -> Array | None:
        """What z makes of a site while the model runs; None where that is not for z to say."""
        if not _is_latent(site):
            return None
        if site["name"] in self.imputed:
            key = jr.fold_in(_key_of(z), self.imputed.index(site["name"]))
            step = site["infer"].get("_scan_current_index")
            return site["fn"].base_dist.sample(key if step is None else jr.fold_in(key, step))
        place = next(place for place in self.sites if place.name == site["name"])
        part = z[place.start : place.stop].reshape(place.shape)
        return from_standard(_prior_of(site), _of_step(part, site))

    def __call__(self, z: Vector) -> dict[str, Observation]:
        """The simulator: z to the observed sites' distributions."""
        return _observations(self.trace(z))

    def replay(self, z: Vector) -> tuple[dict[str, Array], dict[str, Observation]]:
        """One run in full: latent and deterministic values by site, and the observed sites."""
        trace = self.trace(z)
        kept = [site.name for site in self.sites] + list(self.imputed) + list(self.deterministic)
        return {name: jnp.asarray(trace[name]["value"]) for name in kept}, _observations(trace)

    def run(self, substitute) -> dict[str, Any]:
        """The model's trace, its sites substituted."""
        given = self if self.constants is None else self.constants
        seeded = handlers.seed(_Refuse(self.model), jr.key(0))  # a fixed key: the forward map is a function of z
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


class _Refuse(Messenger):
    """Refuses subsampling, and latent sites that `handlers.block` hides: those would be drawn once, as if known."""

    def process_message(self, msg):
        if msg["type"] == "plate":
            _check_plate(msg)
        if msg["type"] != "prng_key" or msg["kwargs"]["rng_key"] is not None:
            return
        # The hidden site is in no message that gets here: NumPyro's block asks for a random key on its behalf.
        frame = inspect.currentframe()
        while frame is not None:
            hidden: Any = frame.f_locals.get("msg")
            if isinstance(frame.f_locals.get("self"), handlers.block) and hidden["type"] in ("sample", "control_flow"):
                raise ModelError(
                    f"latent site '{hidden['name']}' is hidden by handlers.block, so it cannot be inferred: take it "
                    "out of the block, or fix its value inside, as in handlers.condition(model, data={...})"
                )
            frame = frame.f_back


def _observations(trace) -> dict[str, Observation]:
    def as_arrays(tree):
        return jax.tree.map(jnp.asarray, tree)

    return {
        name: Observation(as_arrays(site["fn"]), as_arrays(site["value"]), as_arrays(site["scale"]))
        for name, site in trace.items()
        if site["type"] == "sample" and site["is_observed"]
    }


class NumPyroModel:
    """A NumPyro model with its arguments, ready to be run at any z.

    `sites`: the latent sites. `dim`: length of z. `observed`: names of the observed sites. `guided`: those that the
    guidance can use; `unguided`: the others, with the reason. `deterministic`: names of deterministic sites.

    Raises `ModelError` for what cannot be inferred, each with one sentence that names the site.
    """

    def __init__(self, model: Callable, args: tuple, kwargs: dict[str, Any]):
        self.model, self.args, self.kwargs = model, args, kwargs
        _check_arguments(model, args, kwargs)
        self.simulator = Simulator(model, (), (), (), (), {}, _Constants(args, kwargs))
        self._diffusion: dict[str, DiffusionPrior] = {}
        trace, shapes, self._steps, self.imputed = self._abstract_trace()
        self.sites: list[LatentSite] = []
        self.observed: list[str] = []
        self.deterministic: list[str] = []
        for name, site in trace.items():
            if site["type"] == "deterministic":
                self.deterministic.append(name)
            elif site["type"] == "sample" and site["is_observed"]:
                _check_observed(name, site)
                self.observed.append(name)
            elif site["type"] == "sample" and name not in self.imputed:
                start = self.sites[-1].stop if self.sites else 0
                shape = shapes[name]
                self.sites.append(LatentSite(name, shape, start, start + math.prod(shape)))
        self.dim = self.sites[-1].stop if self.sites else 0
        self._check_sites()
        sites, deterministic = tuple(self.sites), tuple(self.deterministic)
        imputed = tuple(self.imputed)
        self.simulator = Simulator(model, sites, deterministic, imputed, (), {}, self.simulator.constants)
        self._check_diffusion()
        self.simulator = self._simulator_of_data()
        self.guided, self.unguided = self._split_by_guidance()

    # -- running the model ---------------------------------------------------------------------------------------

    def _simulator_of_data(self) -> Simulator:
        """With the arguments as data, or as constants where the model must see their values."""
        constant = self.simulator
        arrays = [leaf for leaf in jax.tree.leaves((self.args, self.kwargs)) if not _hashable(leaf)]
        if not all(eqx.is_array_like(leaf) for leaf in arrays):
            return constant
        as_arrays = lambda leaf: leaf if _hashable(leaf) else jnp.asarray(leaf)  # noqa: E731
        args, kwargs = jax.tree.map(as_arrays, (self.args, self.kwargs))
        flexible = Simulator(self.model, constant.sites, constant.deterministic, constant.imputed, args, kwargs)
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
            if not _is_latent(site):
                return None
            if site["name"] in self.imputed:
                return site["fn"].base_dist.sample(jr.key(0))
            return jnp.asarray(values[site["name"]])

        trace = self.simulator.run(substitute)
        return jnp.concatenate([self._score(trace[site.name]).ravel() for site in self.sites])

    def _score(self, site) -> Array:
        """The part of z that a latent site's value stands for."""
        value = jnp.asarray(site["value"])
        step = self._steps.get(site["name"])
        if step is None:
            return to_standard(_prior_of(site), value)
        # NumPyro adds the axis of steps to some distributions and forgets it in others; so one step at a time.
        shapes, structure = jax.tree.flatten(step)
        pairs = zip(jax.tree.leaves(site["fn"]), shapes, strict=True)
        leaves = [jnp.reshape(leaf, (value.shape[0], *one.shape)) for leaf, one in pairs]

        def score(leaves, value):
            return to_standard(_prior_of(site | {"fn": jax.tree.unflatten(structure, leaves)}), value)

        return jax.vmap(score)(leaves, value)

    def problem(self) -> InverseProblem:
        """The inverse problem for z."""
        prior = self._prior()
        constrain = lambda z: self.simulator.replay(z)[0]  # noqa: E731
        return InverseProblem(prior, self.simulator, SiteLikelihood(tuple(self.guided)), constrain, self.unconstrain)

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

        Returns the trace, the shapes of the latent sites' parts of z, one step's distribution as shapes for
        those in the body of a `scan`, and the names of those that need not be inferred.
        """
        found: dict[str, Any] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        steps: dict[str, Any] = {}
        refused: dict[str, ModelError] = {}

        def substitute(site):
            if not _is_latent(site):
                return None
            name, fn = site["name"], _prior_of(site)
            # Not of `fn`: in standard units it is computed here, and so not known outside of this trace.
            prior = diffusion_prior_in(site["fn"].base_dist if _is_imputed(site) else site["fn"])
            if prior is not None:
                self._diffusion[name] = prior
            if "_scan_current_index" in site["infer"]:
                steps[name] = jax.tree.map(_shape_of, site["fn"])
            shapes[name] = ()
            try:
                _check_latent(name, site)
                with _naming(name):
                    shapes[name] = tuple(standard_shape(fn))
                    return from_standard(fn, jnp.zeros(shapes[name]))
            except ModelError as refusal:
                if not _is_imputed(site):
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
        for name in steps:
            shapes[name] = (found[name]["value"].shape[0], *shapes[name])
        missing = [name for name, site in found.items() if _is_latent(site) and _is_imputed(site)]
        imputed = self._unused({name: _shape_of(found[name]["value"]) for name in missing})
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
                if not _is_latent(site):
                    return None
                if _is_imputed(site):
                    return _of_step(values[site["name"]], site)
                return from_standard(_prior_of(site), jnp.zeros(standard_shape(_prior_of(site))))

            return _observations(self.simulator.run(substitute))

        if not missing:
            return []
        program = jax.make_jaxpr(observed)(missing).jaxpr
        _, used = dce_jaxpr(program, [True] * len(program.outvars))
        return [name for name, is_used in zip(sorted(missing), used, strict=True) if not is_used]

    def _check_diffusion(self) -> None:
        """Get hold of priors that are made inside the model, and refuse those that depend on other latent sites."""
        traced = [name for name, d in self._diffusion.items() if _is_traced(d)]
        if not traced:
            return

        @jax.jit
        def priors_at(z):
            found = {}

            def substitute(site):
                if _is_latent(site) and site["name"] in traced:
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


def _shape_of(value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


def _is_traced(tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def _hashable(leaf) -> bool:
    """Whether a leaf of the arguments can be a static part of a compiled program."""
    return isinstance(leaf, str | bytes | bool | int | float | complex | None) or callable(leaf)


class _naming:
    """Puts the site's name in front of a transport's refusal."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UnsupportedPriorError):
            raise ModelError(f"latent site '{self.name}': {error}") from error


def _check_latent(name: str, site) -> None:
    if name.endswith("_unwrapped") and isinstance(site["fn"], dist.ImproperUniform):
        raise ModelError(
            f"latent site '{name}' is an angle that CircularReparam gave an improper prior: drop that reparam, "
            "dist.VonMises itself is a prior that needs none"
        )
    with _naming(name):
        standard_shape(_prior_of(site))
    if site["scale"] is not None:
        raise ModelError(
            f"latent site '{name}' is under handlers.scale or plate subsampling, which changes its prior: take the "
            "scale off latent sites and keep it on observed ones"
        )


def _check_plate(site) -> None:
    size, subsample_size = site["args"]
    if subsample_size is not None and size != subsample_size:
        raise ModelError(
            f"plate '{site['name']}' subsamples {subsample_size} of {size}: EnKG needs all the data at once, so drop "
            "subsample_size"
        )


def _check_observed(name: str, site) -> None:
    value = site["value"]
    if isinstance(value, Tracer) or isinstance(site["fn"], dist.MaskedDistribution):
        return  # depends on the latents, or is masked where it is missing
    if jnp.issubdtype(jnp.result_type(value), jnp.inexact) and bool(np.isnan(np.asarray(value)).any()):
        raise ModelError(
            f"the data of observed site '{name}' hold NaN: leave the missing ones out, or mask them with "
            "handlers.mask(mask=~jnp.isnan(y))"
        )


def _check_arguments(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
    try:
        signature = inspect.signature(model)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        known = list(signature.parameters)
        wrong = [name for name in kwargs if name not in known]
        same = [name for name in known if wrong and name.lower() == wrong[0].lower()]
        close = same or (difflib.get_close_matches(wrong[0], known, 1) if wrong else [])
        hint = f"; did you mean '{close[0]}'?" if close else ""
        name = getattr(model, "__name__", "the model")
        raise TypeError(f"{name}{signature} was called wrongly by run: {error}{hint}") from None
