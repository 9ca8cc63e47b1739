"""A diffusion prior as a NumPyro distribution."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from jax.core import Tracer
from jaxtyping import Array
from numpyro.distributions import constraints
from numpyro.distributions.batch_util import promote_batch_shape
from numpyro.distributions.util import validate_sample
from numpyro.infer.reparam import Reparam

from enkg_ppl._checks import check_whole, whole_shape
from enkg_ppl.numpyro.transports import UnsupportedPriorError, from_standard, standard_shape, to_standard
from enkg_ppl.priors import GaussianPrior, NetworkPrior, Prior
from enkg_ppl.priors._flow import EXACT_DIVERGENCE_DIM, Flow
from enkg_ppl.types import Key

# Fresh ones at every noise level: little more work than 8 that stay the same in the flow's ODE, a fifth of the error.
NUM_PROBES = 16
SEED_PROBES = 0  # the same probes for every value, so that the density is a smooth function


class DiffusionPrior(dist.Distribution):
    """The distribution of a diffusion model: a NumPyro distribution over arrays of `event_shape`.

    Draws come from the prior's own sampler where it has one, otherwise from ``z ~ N(0, I)`` by the probability flow in
    a fixed number of steps; so they are differentiable in a network's weights.

    `log_prob` is the prior's own where it has one, otherwise that of the flow by the instantaneous change of variables,
    and differentiable. The signs of the "hutchinson" estimate are the same for all values. The density is therefore
    deterministic and smooth, with an error that varies slowly with the value and that averaging over values does not
    remove. `log_prob_error` is its standard error, which falls with the square root of `num_probes`. SVI tolerates this
    error; where densities of two priors are compared, or MCMC serves as ground truth, use "exact", or avoid the density
    altogether: see `DiffusionReparam`.

    `EnKG` treats all sites with a `DiffusionPrior`, in plates too, jointly with the ordinary ones; ``NUTS`` and ``SVI``
    work through `log_prob`. There is no closed-form mean or variance. The distribution is a JAX pytree whose arrays are
    data: weights of the same structure share compiled programs.

    Args:
        denoiser: a prior, such as a trained `NetworkPrior`, or a function ``denoise(x, sigma)`` that returns ``E[x0 |
            x0 + sigma eps = x]`` for ONE array x of `event_shape`.
        event_shape: the latent vector of the prior is the flattened event (default: the prior's own, for other priors
            ``(dim,)``).
        location: mean of the data; only for a function, since a prior has its own.
        scale: standard deviation of the data along the widest principal direction; only for a function.
        divergence: "exact" costs a product with the network's derivative for every dimension and noise level,
            "hutchinson" only for each of `num_probes` vectors of random signs (default: exact up to 128 dimensions).
        num_probes: vectors of random signs for "hutchinson".
        num_steps: fixed steps of the flow for the density (6 evaluations each); None for adaptive steps, which are as
            many as the worst value of a batch needs.
        validate_args: as in every NumPyro distribution.

    Raises:
        TypeError: for a denoiser that is neither a prior nor a function.
        ValueError: for a shape or a setting that does not fit.

    Source: Chen et al., arXiv 1806.07366, theorem 1; Grathwohl et al., arXiv 1810.01367 (fixed probes along the flow).
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012 (NumPyro declares it so)
    pytree_data_fields = ("_arrays", "_copies")
    pytree_aux_fields = ("_static", "_divergence", "_num_probes", "_num_steps")

    def __init__(
        self,
        denoiser: Prior | Callable[[Array, Array], Array],
        event_shape: tuple[int, ...] | int | None = None,
        *,
        location: Array | float | None = None,
        scale: Array | float | None = None,
        divergence: Literal["exact", "hutchinson"] | None = None,
        num_probes: int = NUM_PROBES,
        num_steps: int | None = None,
        validate_args: bool | None = None,
    ):
        prior = _as_prior(denoiser, event_shape, location, scale)
        event_shape = _event_shape(prior, event_shape)
        if divergence not in (None, "exact", "hutchinson"):
            raise ValueError(f"DiffusionPrior needs divergence as 'exact', 'hutchinson' or None; got {divergence!r}")
        check_whole("DiffusionPrior", num_probes=num_probes, **({} if num_steps is None else {"num_steps": num_steps}))
        # Arrays apart from all else: only they may differ between calls of one compiled program.
        self._arrays, self._static = eqx.partition(prior, _is_array)
        self._copies = np.zeros((), np.float32)
        self._divergence, self._num_probes, self._num_steps = divergence, num_probes, num_steps
        super().__init__((), event_shape, validate_args=validate_args)

    @property
    def prior(self) -> Prior:
        """The prior over flat latent vectors."""
        return eqx.combine(self._arrays, self._static)

    @property
    def support(self):
        n = len(self.event_shape)
        return constraints.real if n == 0 else constraints.independent(constraints.real, n)

    @property
    def mean(self):
        raise NotImplementedError("a DiffusionPrior has no mean in closed form: average draws of it")

    @property
    def variance(self):
        raise NotImplementedError("a DiffusionPrior has no variance in closed form: take it from draws")

    def sample(self, key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Independent draws.

        Args:
            key: random key.
            sample_shape: leading shape of the result.

        Returns:
            Draws of shape ``sample_shape + batch_shape + event_shape``.
        """
        return self._drawn(key, sample_shape, lambda key, prior: prior.sample(key))

    def rsample(self, key, sample_shape: tuple[int, ...] = ()) -> Array:
        """Draws by the flow, differentiable in the prior's arrays, whether or not the prior has a sampler of its own.

        Args:
            key: random key.
            sample_shape: leading shape of the result.
        """

        def flow_draw(key, prior):
            return prior.decode(jr.normal(key, prior.location.shape, prior.location.dtype))

        return self._drawn(key, sample_shape, flow_draw)

    def _drawn(self, key, sample_shape, one: Callable[[Key, Prior], Any]) -> Array:
        shape = self.shape(sample_shape)
        num_batch = len(shape) - len(self.event_shape)
        n = math.prod(shape[:num_batch])
        keys = key if n == 1 and num_batch == 0 else jr.split(key, n)
        if num_batch == 0:
            return one(keys, self.prior).reshape(shape)
        if not self.batch_shape:
            return jax.vmap(lambda key: one(key, self.prior))(keys).reshape(shape)
        keys = keys.reshape(sample_shape + self.batch_shape + keys.shape[1:])
        draws = self._over_batch(lambda prior, key: one(key, prior), keys, len(sample_shape))
        return draws.reshape(shape)

    def log_prob(self, value, intermediates=None) -> Array:
        """Log density in nats, one number for each batch entry.

        Args:
            value: array whose shape ends in `event_shape`.
            intermediates: ignored; NumPyro passes it.
        """
        return self._log_prob(value)

    def log_prob_error(self, value) -> Array:
        """Standard error of `log_prob` in nats due to the random signs; 0 where there are none.

        The errors at different values are strongly correlated, so differences of `log_prob` are more precise than this.

        Args:
            value: as for `log_prob`, whose result has the same shape.
        """
        return self._each(value, lambda prior, x: self._log_density(prior, x)[1])

    @validate_sample
    def _log_prob(self, value) -> Array:
        return self._each(value, lambda prior, x: self._log_density(prior, x)[0])

    def _each(self, value, part: Callable[[Prior, Array], Any]) -> Array:
        """`part` of the prior and one flat value, for all values."""
        value = jnp.asarray(value)
        n = len(self.event_shape)
        if value.shape[value.ndim - n :] != self.event_shape:
            raise ValueError(
                f"this DiffusionPrior is over arrays that end in shape {self.event_shape}; got a value of shape "
                f"{value.shape}"
            )
        lead = jnp.broadcast_shapes(value.shape[: value.ndim - n], self.batch_shape)
        x = jnp.broadcast_to(value, lead + self.event_shape).reshape(*lead, -1)
        return self._over_batch(part, x, len(lead) - len(self.batch_shape))

    def _log_density(self, prior: Prior, x: Any) -> tuple[Any, Any]:
        """Of one flat value, and its standard error."""
        x = x.astype(prior.location.dtype)
        closed_form = prior.log_prob(x)
        if closed_form is not None:
            return closed_form, jnp.zeros_like(closed_form)
        divergence: Any = self._divergence or ("exact" if prior.dim <= EXACT_DIVERGENCE_DIM else "hutchinson")
        flow = Flow(prior, num_steps=self._num_steps)
        return flow.log_prob_and_error(x, key=jr.key(SEED_PROBES), divergence=divergence, num_probes=self._num_probes)

    def _over_batch(self, one: Callable[[Prior, Array], Any], arrays: Array, num_lead: int) -> Array:
        """``one(prior, array)`` over `num_lead` axes of independent copies, then over the axes of a batched prior."""
        call = lambda prior_arrays, array: one(eqx.combine(prior_arrays, self._static), array)  # noqa: E731
        for _ in self.batch_shape:
            call = jax.vmap(call)
        for _ in range(num_lead):
            call = jax.vmap(call, in_axes=(None, 0))
        return call(self._arrays, arrays)


def _promoted(d: DiffusionPrior) -> Any:
    """After `jax.vmap` or NumPyro's `scan` every array leads with new axes, and so does the marker `_copies`."""
    new = copy.copy(d)
    new._batch_shape = jnp.shape(d._copies)
    return new


promote_batch_shape.register(DiffusionPrior, _promoted)


def _is_array(leaf) -> bool:
    return isinstance(leaf, jax.Array | np.ndarray | np.generic)


def _as_prior(denoiser: Any, event_shape, location, scale) -> Prior:
    if isinstance(denoiser, Prior):
        if location is not None or scale is not None:
            raise ValueError(
                "DiffusionPrior takes location and scale for a function only: a prior knows its own, so leave them out"
            )
        return denoiser
    if not callable(denoiser):
        raise TypeError(f"DiffusionPrior needs a prior, or a function denoise(x, sigma); got {denoiser!r}")
    if event_shape is None or location is None or scale is None:
        raise ValueError(
            "DiffusionPrior needs event_shape, location and scale for a function denoise(x, sigma), which does not "
            f"know them; got event_shape={event_shape}, location={location}, scale={scale}"
        )
    for name, value in (("location", location), ("scale", scale)):
        if isinstance(value, Tracer):
            raise UnsupportedPriorError(
                f"DiffusionPrior needs {name} as numbers that depend on no other site: give it fixed ones, and scale "
                "or shift the value of the site in the model, as in s * x"
            )
    with jax.ensure_compile_time_eval():  # its checks look at values, also amid a traced model
        function: Any = denoiser
        return NetworkPrior.from_denoiser(function, event_shape, location=location, scale=scale)


def _event_shape(prior: Prior, event_shape) -> tuple[int, ...]:
    if event_shape is None:
        event_shape = getattr(prior, "event_shape", (prior.dim,))
    shape = whole_shape(event_shape, 0)
    if shape is None or math.prod(shape) != prior.dim:
        raise ValueError(
            f"DiffusionPrior needs event_shape with as many entries as its prior has dimensions, {prior.dim}; got "
            f"event_shape={event_shape}"
        )
    return shape


# ----------------------------------------------------------------------------------------------------
# Transports
# ----------------------------------------------------------------------------------------------------


@standard_shape.register
def _(fn: DiffusionPrior):
    return fn.shape()


@from_standard.register
def _(fn: DiffusionPrior, z):
    return _transported(fn, lambda prior, z: prior.decode(z), z)


@to_standard.register
def _(fn: DiffusionPrior, value):
    return _transported(fn, lambda prior, x: prior.encode(x), value)


def _transported(fn: DiffusionPrior, transport, array):
    array = jnp.asarray(array)
    if array.shape != fn.shape():
        raise ValueError(f"DiffusionPrior takes an array of shape {fn.shape()}; got {array.shape}")
    one = lambda prior, flat: transport(prior, flat.astype(prior.location.dtype))  # noqa: E731
    return fn._over_batch(one, array.reshape(*fn.batch_shape, -1), 0).reshape(array.shape).astype(array.dtype)


def diffusion_prior_in(fn: Any) -> DiffusionPrior | None:
    """The `DiffusionPrior` under a distribution's wrappers (expanded, independent, transformed), or None."""
    while not isinstance(fn, DiffusionPrior):
        fn = getattr(fn, "base_dist", None)
        if fn is None:
            return None
    return fn


def in_standard_units(fn: dist.Distribution) -> dist.Distribution:
    """`fn` as a function of ``(x - location) / scale``: the `DiffusionPrior` in it becomes a Gaussian of that size.

    So `from_standard` of the result scales, shifts and goes through the wrappers, and never decodes.
    """

    def replace(d):
        if not isinstance(d, DiffusionPrior):
            return d
        location, scale = d.prior.location, jnp.asarray(d.prior.scale, d.prior.location.dtype)
        return DiffusionPrior(GaussianPrior(location, jnp.full_like(location, 1.0) * scale**2), d.event_shape)

    return jax.tree.map(replace, fn, is_leaf=lambda d: isinstance(d, DiffusionPrior))


# ----------------------------------------------------------------------------------------------------
# Reparameterisation
# ----------------------------------------------------------------------------------------------------


class DiffusionReparam(Reparam):
    """Sample a `DiffusionPrior` site through ``z ~ N(0, I)``: the site ``<name>_z`` becomes the latent one.

    For gradient-based inference where the simulator has a gradient: ``numpyro.handlers.reparam(model, config={"x":
    DiffusionReparam()})``. The site's value is the flow of z in a fixed number of steps, the same map that `EnKG`'s
    refinements use, so both have the same posterior. No density of the flow is needed: a gradient costs 24 evaluations
    of the network instead of hundreds with their divergences. Prefer it for NUTS above a few dimensions, or where the
    data are weakly informative. Without it NUTS works in x, which is better where the data determine all of x, and
    necessary for guides that should resemble x.

    Works through `expand`, `to_event`, plates and transforms.

    Raises:
        ValueError: for other distributions, and for an observed site.
    """

    def __call__(self, name, fn, obs):
        if diffusion_prior_in(fn) is None:
            raise ValueError(f"DiffusionReparam is for a DiffusionPrior; got {type(fn).__name__} at site '{name}'")
        if obs is not None:
            raise ValueError(f"DiffusionReparam is for latent sites; site '{name}' is observed")
        shape, num_batch = standard_shape(fn), len(fn.batch_shape)
        normal = dist.Normal(jnp.zeros(shape), 1.0).to_event(len(shape) - num_batch)
        z = numpyro.sample(f"{name}_z", normal)
        return None, from_standard(fn, z)
