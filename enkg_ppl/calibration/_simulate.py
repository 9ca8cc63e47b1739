"""The part of a calibration study that knows NumPyro models: truths and data from the prior predictive, likelihoods."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
from numpyro import handlers
from numpyro.distributions import constraints

from enkg_ppl.evaluation._black_box import raise_host_failure
from enkg_ppl.evaluation._marks import poisoned
from enkg_ppl.numpyro import ModelError
from enkg_ppl.numpyro._response import ranks_may_differ

Values = dict[str, np.ndarray]


class Simulated(NamedTuple):
    """One data set. `truth`: by site, deterministic sites included. `data`: by argument. `log_likelihood`: of the data
    there. `ends`: of the support of every latent site that has any, lower and upper, NaN where there is none."""

    truth: Values
    data: Values
    log_likelihood: float
    ends: dict[str, tuple[np.ndarray, np.ndarray]]


class PriorPredictive:
    """Simulates (truth, data) pairs from a NumPyro model, one run of the model a pair.

    `model`: what is to be inferred: the user's model, or, where its data are no arguments of it, the model conditioned
    on data that are passed by keyword. `data`: the argument that takes the data of each observed site.
    `latents`: shapes of the latent sites; `deterministics`: those of the deterministic ones; `data_shapes`: those of
    the data.

    Raises `ModelError` for a model whose joint distribution cannot be simulated.
    """

    def __init__(
        self, model: Callable, args: tuple, kwargs: Mapping[str, Any], data: str | Iterable[str] | Mapping | None
    ):
        self.args = args
        self.kwargs = {name: value for name, value in kwargs.items() if value is not None}
        free = _free_arguments(model, args, self.kwargs)
        wanted = _site_to_argument(data, free)
        arguments = {argument: None for argument in wanted.values() if argument in free}
        self._model, self._no_data = model, arguments
        sites = self._sites()
        self.data = {site: argument for site, argument in wanted.items() if data is not None or site in sites}
        self._check(sites, free)
        self.conditioned = any(argument not in free for argument in self.data.values())
        self.model = _conditioned(model, arguments, self.data) if self.conditioned else model
        self.data_shapes = {site: sites[site]["shape"] for site in self.data}
        samples = {name: site for name, site in sites.items() if name not in self.data}
        self.latents = {name: site["shape"] for name, site in samples.items() if site["type"] == "sample"}
        self.deterministics = {name: site["shape"] for name, site in samples.items() if site["type"] == "deterministic"}
        self._simulate = jax.jit(poisoned(self._draw))
        self._log_likelihood = jax.jit(jax.vmap(poisoned(self._log_likelihood_at), in_axes=(0, None)))

    def simulate(self, key: jax.Array) -> Simulated:
        """One data set with its truth."""
        with raise_host_failure():
            truth, data, log_likelihood, ends = jax.device_get(jax.block_until_ready(self._simulate(key)))
        return Simulated(truth, {self.data[site]: value for site, value in data.items()}, float(log_likelihood), ends)

    def log_likelihood(self, draws: Mapping[str, Any], data: Mapping[str, Any]) -> np.ndarray:
        """Log density of the data at each of the draws (every latent site, leading axis draws): one run a draw."""
        latents = {name: jnp.asarray(draws[name]) for name in self.latents}
        with raise_host_failure():
            return np.asarray(jax.block_until_ready(self._log_likelihood(latents, dict(data))))

    # -- inside JAX ----------------------------------------------------------------------------------------------

    def _trace(self, key: jax.Array) -> dict[str, Any]:
        """One run of the model without data."""
        with ranks_may_differ():
            traced = handlers.trace(handlers.seed(self._model, key))
            return traced.get_trace(*self.args, **self.kwargs, **self._no_data)

    def _draw(self, key: jax.Array):
        trace = self._trace(key)
        values = {name: jnp.asarray(trace[name]["value"]) for name in (*self.latents, *self.deterministics)}
        data = {site: jnp.asarray(trace[site]["value"]) for site in self.data}
        ends = {name: _ends(trace[name]["fn"].support, values[name]) for name in self.latents}
        return values, data, self._total(trace), {name: pair for name, pair in ends.items() if pair is not None}

    def _log_likelihood_at(self, latents, data):
        with ranks_may_differ():
            seeded = handlers.seed(handlers.substitute(self.model, data=latents), jr.key(0))
            return self._total(handlers.trace(seeded).get_trace(*self.args, **self.kwargs, **data))

    def _total(self, trace) -> jax.Array:
        total = jnp.zeros(())
        with ranks_may_differ():
            for site in self.data:
                total = total + jnp.sum(trace[site]["fn"].log_prob(trace[site]["value"]))
        return total

    # -- checks --------------------------------------------------------------------------------------------------

    def _sites(self) -> dict[str, dict[str, Any]]:
        """Every sample and deterministic site: type, shape and whether it is observed; no black box is called."""
        found: dict[str, dict[str, Any]] = {}

        def run(key):
            for name, site in self._trace(key).items():
                if site["type"] in ("sample", "deterministic"):
                    observed = site["type"] == "sample" and site["is_observed"]
                    found[name] = {"type": site["type"], "shape": jnp.shape(site["value"]), "observed": observed}
            return 0

        jax.eval_shape(run, jr.key(0))
        return found

    def _check(self, sites, free) -> None:
        samples = [name for name, site in sites.items() if site["type"] == "sample"]
        for name, site in sites.items():
            if site["observed"]:
                raise ModelError(
                    f"site '{name}' is observed while data are to be simulated (or is a numpyro.factor): sbc needs a "
                    "model that it can draw data from, so leave that data out of args and kwargs"
                )
        if not self.data:
            arguments = ", ".join(free) or "none"
            raise ModelError(
                "no observed site was recognised, as none has the name of an argument that takes its data (free "
                f"arguments: {arguments}; sites: {', '.join(samples)}): pass data={{'site': 'argument'}} or data='site'"
            )
        for name in self.data:
            if name not in samples:
                raise ModelError(f"data names '{name}', which is no sample site of the model ({', '.join(samples)})")
        if len(self.data) == len(samples):
            raise ModelError("the model has no latent site: every sample site is named as data")


def _ends(support: constraints.Constraint, value: jax.Array) -> tuple[jax.Array, jax.Array] | None:
    """Lower and upper end of the support of every entry, as the distribution tells them; NaN for none."""
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    if support is constraints.simplex:
        found: tuple[Any, Any] = (0.0, 1.0)
    else:
        found = getattr(support, "lower_bound", jnp.nan), getattr(support, "upper_bound", jnp.nan)
    if not jnp.issubdtype(value.dtype, jnp.floating):
        return None
    try:
        low, high = (jnp.broadcast_to(jnp.asarray(end, value.dtype), value.shape) for end in found)
    except (TypeError, ValueError):  # a constraint of several entries, with ends of its own
        return None
    return low, high


def _free_arguments(model: Callable, args: tuple, kwargs: Mapping[str, Any]) -> list[str]:
    """Arguments that were not given and have no default, or None as default."""
    signature = inspect.signature(model)
    try:
        given = signature.bind_partial(*args, **kwargs).arguments
    except TypeError as error:
        name = getattr(model, "__name__", "the model")
        raise TypeError(f"{name}{signature} does not take these args and kwargs of sbc: {error}") from None
    return [
        p.name
        for p in signature.parameters.values()
        if p.name not in given
        and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
        and (p.default is None or p.default is p.empty)
    ]


def _site_to_argument(data, free: list[str]) -> dict[str, str]:
    if data is None:
        return {name: name for name in free}
    if isinstance(data, str):
        return {data: data}
    return dict(data) if isinstance(data, Mapping) else {name: name for name in data}


def _conditioned(model: Callable, no_data: dict[str, None], data: dict[str, str]) -> Callable:
    """The model with its data given by keyword, whatever it takes itself."""

    def conditioned(*args, **kwargs):
        values = {site: kwargs.pop(argument) for site, argument in data.items() if argument in kwargs}
        return handlers.condition(model, data=values)(*args, **(no_data | kwargs))

    conditioned.__name__ = getattr(model, "__name__", "model")
    return conditioned
