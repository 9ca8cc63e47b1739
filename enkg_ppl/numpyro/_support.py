"""Where the data may lie: densities that are zero outside of their support, and data that no unknowns could give."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer, eval_jaxpr
from jax.interpreters.partial_eval import dce_jaxpr
from numpyro.distributions import constraints

from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.types import AnyArray, Vector

WRAPPERS = (dist.MaskedDistribution, dist.ExpandedDistribution, dist.Independent)
WRAP = "wrap them, as in (y + jnp.pi) % (2 * jnp.pi) - jnp.pi"
# The first that fits; of bounds only those that are numbers are named.
IN_WORDS = (
    (constraints.boolean, "0 or 1"),
    (constraints.circular, "angles from -pi to pi"),
    (constraints.multinomial, "counts that add up to total_count"),
    (constraints.simplex, "shares that add up to 1"),
    (constraints.integer_interval, "whole numbers {} to {}"),
    (constraints.integer_greater_than, "whole numbers {} and above"),
    (constraints.interval, "numbers {} to {}"),
    (constraints.greater_than_eq, "numbers {} and above"),
    (constraints.greater_than, "numbers above {}"),
    (constraints.real, "finite numbers"),
)


def validating(fn: dist.Distribution) -> dist.Distribution:
    """The same distribution, with a density of zero outside of its support wherever it goes.

    NumPyro's densities are zero there only while they validate their arguments, which is a class's default and no part
    of a distribution's tree: one that is flattened, as `jax.vmap` does, comes back without it, and so do those within
    it. Here the default is written into each; what was made with ``validate_args=False`` keeps it.
    """
    leaves, structure = jax.tree.flatten(fn)  # the model's own is left as it was
    return unflattened(structure, leaves)


def unflattened(structure, leaves) -> dist.Distribution:
    """The distribution of a flattened one that was `validating`."""
    fn = jax.tree.unflatten(structure, leaves)
    _complete(fn)
    return fn


def _complete(part: Any) -> None:
    if isinstance(part, dist.Distribution):
        if part._validate_args is None:
            part._validate_args = dist.Distribution._validate_args
        if isinstance(part, dist.Levy):  # the one whose support is not in its tree
            part._support = constraints.greater_than(cast(Any, part.loc))
        part = vars(part)
    if isinstance(part, dict | list | tuple):
        for inner in part.values() if isinstance(part, dict) else part:
            _complete(inner)


def check_support(run: Callable[[Vector], dict[str, Any]], z: jax.ShapeDtypeStruct) -> None:
    """Refuse data outside of the support of their distribution, where no unknowns have a say in that.

    `run`: z to the model's trace. Data that some unknowns allow and others do not are for the likelihood to judge. What
    depends on z is read off the program, so that no simulator is called.
    """
    known: dict[str, tuple[Any, Any]] = {}
    fns: dict[str, dist.Distribution] = {}

    def of_sites(z):
        unknown = {}
        for name, site in run(z).items():
            if site["type"] != "sample" or not site["is_observed"]:
                continue
            value = _as_it_is_run(site["value"])
            with warnings.catch_warnings():  # of data outside of the support: that is the question
                warnings.simplefilter("ignore")
                inside = _inside(validating(site["fn"]), value)
            fns[name] = site["fn"]
            _refuse_vanishing(name, site["fn"])
            if isinstance(inside, Tracer):
                unknown[name] = inside, value
            else:
                known[name] = inside, value
        return unknown

    closed, shapes = jax.make_jaxpr(of_sites, return_shape=True)(z)
    for name in shapes:
        of_name = {other: (other == name,) * 2 for other in shapes}
        program, used = dce_jaxpr(closed.jaxpr, jax.tree.leaves(of_name), instantiate=False)
        if not used[0]:
            inside, value = eval_jaxpr(program, closed.consts)
            known[name] = np.asarray(inside), np.asarray(value)
    for name, (inside, value) in known.items():
        _refuse_outside(name, inside, value, fns[name])


def _as_it_is_run(value) -> AnyArray:
    """Data as NumPy, whose comparisons are done while the model is traced, in the run's precision."""
    if isinstance(value, Tracer):
        return value
    value = np.asarray(value)
    return value.astype(jax.dtypes.canonicalize_dtype(value.dtype))


def _inside(fn: dist.Distribution, value) -> Any:
    """Which data the distribution allows, one by one where they are independent; NaN is looked at elsewhere."""
    if isinstance(fn, dist.MaskedDistribution):
        if fn._mask is False:
            return True
        mask = fn._mask if isinstance(fn._mask, Tracer) else np.asarray(fn._mask)
        inside = _inside(fn.base_dist, value)
        return inside | ~mask.reshape(mask.shape + (1,) * (fn.event_dim - _dims_of_one(fn.base_dist)))
    if isinstance(fn, dist.ExpandedDistribution | dist.Independent):
        return _inside(fn.base_dist, value)
    if isinstance(fn, dist.Unit) or not fn._validate_args:
        return True
    try:
        inside = fn._validate_sample(value)
    except jax.errors.TracerArrayConversionError:  # NumPyro compares NumPy's arrays by NumPy, bounds from JAX or not
        inside = fn._validate_sample(jnp.asarray(value))
    if isinstance(fn, dist.TransformedDistribution) and not fn.event_dim:
        before = value
        for transform in reversed(fn.transforms):
            before = transform.inv(before)
        inside = inside & _inside(fn.base_dist, before)
    return inside | (value != value).any(axis=tuple(range(-fn.event_dim, 0)))


def _dims_of_one(fn: dist.Distribution) -> int:
    """Dimensions of what `_inside` looks at as one datum."""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    return fn.event_dim


def _refuse_outside(name: str, inside, value, fn: dist.Distribution) -> None:
    places = np.argwhere(~np.asarray(inside))
    if not len(places):
        return
    value = np.asarray(value)
    first = tuple(int(i) for i in places[0])
    datum = value[first] if len(first) <= value.ndim else value
    datum = f"{datum:g}" if datum.ndim == 0 else np.array2string(datum, precision=6, threshold=6).replace("\n", "")
    where = f" at {list(first)}" if first else ""
    more = f" and {len(places) - 1:,} more" if len(places) > 1 else ""
    while isinstance(fn, WRAPPERS):
        fn = fn.base_dist
    remedy = (
        WRAP if isinstance(fn.support, type(constraints.circular)) else "correct them or choose another distribution"
    )
    raise ModelError(
        f"observed site '{name}' has data outside of the support of {_in_words(fn)}: {datum}{where}{more}; {remedy} "
        "(given validate_args=False, it would count them all the same)"
    )


def _refuse_vanishing(name: str, fn: dist.Distribution) -> None:
    """A noise, or another parameter, that is a number in 64 bits and zero in the run's precision."""
    for leaf in jax.tree.leaves(fn):
        if isinstance(leaf, Tracer) or not isinstance(leaf, float | np.floating | np.ndarray):
            continue
        size = np.abs(np.asarray(leaf))
        if not np.issubdtype(size.dtype, np.floating):
            continue
        limits = jnp.finfo(jax.dtypes.canonicalize_dtype(size.dtype))
        vanishing = size[(size > 0) & (size < float(limits.tiny))]
        if vanishing.size:
            raise ModelError(
                f"observed site '{name}' has the parameter {vanishing[0]:.3g}, which is zero in {limits.bits} bits: "
                "run in 64 bits (numpyro.enable_x64() before anything else of JAX), or change the units of the data"
            )


def _in_words(fn: dist.Distribution) -> str:
    name, support = type(fn).__name__, fn.support
    if type(fn) is dist.TransformedDistribution:  # what it allows is up to its base
        return f"the transformed {type(fn.base_dist).__name__}"
    while isinstance(support, constraints.independent):
        support = support.base_constraint
    for kind, words in IN_WORDS:
        if isinstance(support, kind if isinstance(kind, type) else type(kind)):
            bounds: list[Any] = [getattr(support, bound, None) for bound in ("lower_bound", "upper_bound")]
            if "{" in words and any(np.ndim(b) or isinstance(b, Tracer) for b in bounds):
                return f"{name}, {words.split(' {')[0]} within its bounds"
            return f"{name}, {words.format(*(b if b is None else f'{b:g}' for b in bounds))}"
    return f"{name}, {support}"
