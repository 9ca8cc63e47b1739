"""A diffusion prior learned from draws of a NumPyro model or distribution, for priors that have no transport."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import Array, Float
from numpyro import handlers
from numpyro.distributions import constraints

from enkg_ppl.numpyro._diffusion_prior import DiffusionPrior
from enkg_ppl.numpyro._response import ranks_may_differ
from enkg_ppl.priors import NetworkPrior
from enkg_ppl.types import Key

VALUE = "value"  # the name of the only site of a distribution
NUM_DRAWS = 100_000
CHUNK = 10_000  # draws of the model at a time


class FittedSite(NamedTuple):
    """One site and its part ``[start, stop)`` of the latent vector.

    Attributes:
        shape: of the site's value.
        free_shape: of its unconstrained value.
        support: of the site.
        start: first index of its part.
        stop: index after the last.
    """

    shape: tuple[int, ...]  # of the value
    free_shape: tuple[int, ...]  # of the value without its constraint
    support: constraints.Constraint
    start: int
    stop: int


class FittedPrior:
    """A trained prior over an unconstrained, standardised vector u, and the maps between u and the learned sites.

    Call it inside a model: ``values = fitted("latent")`` samples one site, a `DiffusionPrior` over u, records every
    learned site as a deterministic one, and returns their values (of a distribution: the value itself). Made by
    `fit_prior`.

    Args:
        prior: the `NetworkPrior` over u.
        sites: the learned sites by name, each with its part of u.
        mean: mean of the unconstrained values, which u has subtracted.
        sd: standard deviation of the unconstrained values, by which u is divided.
    """

    def __init__(self, prior: NetworkPrior, sites: dict[str, FittedSite], mean: np.ndarray, sd: np.ndarray):
        self.prior = prior
        self._sites, self._mean, self._sd = sites, mean, sd

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self._sites)

    def __call__(self, name: str = "latent", **options) -> Any:
        """Sample the sites inside a model.

        Args:
            name: of the latent site over u.
            **options: those of `DiffusionPrior`, such as ``divergence="exact"``.

        Returns:
            Values by site; of a distribution: its value.
        """
        u = jnp.asarray(numpyro.sample(name, DiffusionPrior(self.prior, **options)))
        values = self._constrain(u.reshape(-1))
        for site, value in values.items():
            numpyro.deterministic(f"{name}_{site}" if self.sites == (VALUE,) else site, value)
        return self._one_or_all(values)

    def constrain(self, u: Float[Array, "..."]) -> Any:
        """Values by site for one u; of a distribution: its value. They always lie in the supports of the sites.

        Args:
            u: of the prior's event shape or flat.
        """
        return self._one_or_all(self._constrain(jnp.asarray(u).reshape(-1)))

    def unconstrain(self, values: Any) -> Float[Array, " dim"]:
        """The inverse of `constrain`, a flat u.

        Args:
            values: values by site; of a distribution: its value.
        """
        named = {VALUE: values} if self.sites == (VALUE,) else values
        free = jnp.concatenate([_unconstrain(site, jnp.asarray(named[name])) for name, site in self._sites.items()])
        return (free - jnp.asarray(self._mean, free.dtype)) / jnp.asarray(self._sd, free.dtype)

    def sample(self, key: Key, num_draws: int) -> Any:
        """Draws by the probability flow, with a leading axis of `num_draws`.

        Args:
            key: random key.
            num_draws: number of draws.
        """
        drawn = DiffusionPrior(self.prior).sample(key, (num_draws,)).reshape(num_draws, -1)
        return jax.vmap(self.constrain)(drawn)

    def _constrain(self, u: Float[Array, " dim"]) -> dict[str, Array]:
        free = u * jnp.asarray(self._sd, u.dtype) + jnp.asarray(self._mean, u.dtype)
        return {name: _constrain(site, free[site.start : site.stop]) for name, site in self._sites.items()}

    def _one_or_all(self, values: dict[str, Array]) -> Any:
        return values[VALUE] if self.sites == (VALUE,) else values


def fit_prior(
    model: Callable | dist.Distribution,
    *args,
    sites: Sequence[str] | None = None,
    num_draws: int = NUM_DRAWS,
    network=None,
    key: Key | None = None,
    training: dict[str, Any] | None = None,
    **kwargs,
) -> FittedPrior:
    """Learn a diffusion prior from the prior draws of a NumPyro model, or from the draws of a distribution.

    For priors without a transport to a standard normal (a `MixtureSameFamily`, a site whose support the library does
    not know), and for the joint prior of many sites that depend on each other. It learns the joint distribution of the
    sites, hierarchy included, as one block of an `EnKG` run.

    A site with a bounded support is learned in unconstrained coordinates (`numpyro.distributions.biject_to`), so that
    draws never leave the support. The prior's `record` holds the means and deviations that were divided out.

    Args:
        model: a model, or a distribution. Observations among the sites (``obs=None``) are drawn like everything else,
            so that a prior predictive can be learned too.
        *args: arguments of the model.
        sites: names of the sample or deterministic sites to learn (default: all continuous latent ones).
        num_draws: draws to train on.
        network: by default a `ResidualMLP` over all sites as one vector, each entry standardised. A network of your own
            receives the site's unconstrained array where there is a single site, such as an image, not standardised by
            entry.
        key: of the draws, the network's initial weights and the training.
        training: options of `train_prior`, such as ``{"num_steps": 5000}``.
        **kwargs: keyword arguments of the model.

    Raises:
        ValueError: for a site that is discrete, constant, unknown, or whose support depends on another site, and for
            draws that are not finite.
    """
    key = jr.key(0) if key is None else key
    key_draws, key_network, key_training = jr.split(key, 3)
    if isinstance(model, dist.Distribution):
        if args or kwargs or sites is not None:
            raise TypeError("fit_prior of a distribution takes no arguments of a model and no sites")
        model = _as_model(model)
        sites = (VALUE,)
    found = _find_sites(model, args, kwargs, sites)
    values = _draws(model, args, kwargs, tuple(found), key_draws, num_draws)
    free = np.concatenate(
        [np.asarray(jax.vmap(lambda v, s=site: _unconstrain(s, v))(values[name])) for name, site in found.items()],
        axis=1,
    )
    _check_draws(free, found)
    as_vector = network is None or len(found) > 1
    dim = free.shape[1]
    mean = free.mean(axis=0) if as_vector else np.zeros(dim, free.dtype)
    sd = free.std(axis=0) if as_vector else np.ones(dim, free.dtype)
    events = (free - mean) / sd
    if not as_vector:
        (site,) = found.values()
        events = events.reshape(num_draws, *(site.free_shape or (1,)))
    # Imported here, as optax and the networks take their time and most models are not fitted.
    from enkg_ppl.networks import ResidualMLP
    from enkg_ppl.training import train_prior

    network = ResidualMLP(dim, key=key_network) if network is None else network
    prior = train_prior(network, events, key=key_training, **(training or {}))
    record = {**prior.record, "sites": {n: list(s.shape) for n, s in found.items()}, "mean": mean, "sd": sd}
    return FittedPrior(_with_record(prior, record), found, mean, sd)


def _as_model(fn: dist.Distribution) -> Callable:
    def model():
        numpyro.sample(VALUE, fn)

    return model


def _with_record(prior: NetworkPrior, record: dict[str, Any]) -> NetworkPrior:
    return NetworkPrior(
        prior.network,
        prior.preconditioning,
        prior.event_shape,
        location=prior.location,
        scale=prior.scale,
        shift=prior.shift,
        spread=prior.spread,
        sigma_min=prior.sigma_min,
        sigma_max=prior.sigma_max,
        chunk_size=prior.chunk_size,
        dtype=prior.dtype,
        record=record,
    )


def _find_sites(model, args, kwargs, names: Sequence[str] | None) -> dict[str, FittedSite]:
    """The sites to learn, in the order of the model, with their places in the vector."""
    with ranks_may_differ():
        first, second = (handlers.trace(handlers.seed(model, jr.key(i))).get_trace(*args, **kwargs) for i in range(2))
    usable = {n: s for n, s in first.items() if s["type"] in ("sample", "deterministic")}
    if names is None:
        names = [n for n, s in usable.items() if s["type"] == "sample" and not s["is_observed"] and not _discrete(s)]
        if not names:
            raise ValueError("the model has no continuous latent site to learn: name sites=[...]")
    for name in names:
        if name not in usable:
            raise ValueError(f"sites names '{name}', which the model does not have; it has {', '.join(usable)}")
        if usable[name]["type"] == "sample" and usable[name]["is_observed"]:
            raise ValueError(f"site '{name}' is observed in this call, so it has no draws: leave out its data")
    found, start = {}, 0
    for name, site in usable.items():
        if name not in names:
            continue
        if _discrete(site):
            raise ValueError(f"site '{name}' is discrete, and a diffusion prior is continuous: leave it out of sites")
        support = _support(site)
        if not _same(support, _support(second[name])):
            raise ValueError(
                f"the support of site '{name}' depends on other sites: write it as a fixed distribution times or plus "
                "what it depends on, and learn that"
            )
        shape = jnp.shape(site["value"])
        free_shape = tuple(dist.biject_to(support).inverse_shape(shape))
        found[name] = FittedSite(shape, free_shape, support, start, start + math.prod(free_shape))
        start = found[name].stop
    return found


def _discrete(site) -> bool:
    return not jnp.issubdtype(jnp.result_type(site["value"]), jnp.floating)


def _support(site) -> constraints.Constraint:
    return constraints.real if site["type"] == "deterministic" else site["fn"].support


def _same(a: constraints.Constraint, b: constraints.Constraint) -> bool:
    (one, structure), (two, other) = jax.tree.flatten(a), jax.tree.flatten(b)
    return structure == other and all(np.array_equal(x, y) for x, y in zip(one, two, strict=True))


def _constrain(site: FittedSite, free: Float[Array, " part"]) -> Array:
    with ranks_may_differ():
        return dist.biject_to(site.support)(free.reshape(site.free_shape))


def _unconstrain(site: FittedSite, value: Array) -> Float[Array, " part"]:
    with ranks_may_differ():
        return jnp.ravel(dist.biject_to(site.support).inv(value))


def _draws(model, args, kwargs, names: tuple[str, ...], key: Key, num: int) -> dict[str, np.ndarray]:
    """Values of the sites ``(num, ...)``, drawn a chunk at a time."""

    @jax.jit
    def chunk(keys):
        def one(key):
            with ranks_may_differ():
                trace = handlers.trace(handlers.seed(model, key)).get_trace(*args, **kwargs)
            return {name: jnp.asarray(trace[name]["value"]) for name in names}

        return jax.vmap(one)(keys)

    size = min(CHUNK, num)
    keys = jr.split(key, (-(-num // size), size))
    parts = [jax.tree.map(np.asarray, chunk(k)) for k in keys]
    return {name: np.concatenate([part[name] for part in parts])[:num] for name in names}


def _check_draws(free: np.ndarray, found: dict[str, FittedSite]) -> None:
    for name, site in found.items():
        part = free[:, site.start : site.stop]
        if not np.isfinite(part).all():
            raise ValueError(
                f"draws of site '{name}' are NaN, infinite, or at the edge of its support: keep them away from the "
                "edge, or learn a transformed site"
            )
        if not (part.std(axis=0) > 0).all():
            raise ValueError(f"site '{name}' has an entry that never varies: leave it out of sites")
