"""Sites of a model: which are latent, and what stands for them in z."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpyro.distributions as dist
from jax.core import Tracer

from enkg_ppl.numpyro._diffusion_prior import diffusion_prior_in, in_standard_units
from enkg_ppl.types import AnyArray


class LatentSite(NamedTuple):
    """Where a latent site lives in z."""

    name: str
    shape: tuple[int, ...]  # of its part of z, which is a standard-normal score unless it is a diffusion prior
    start: int
    stop: int


def prior_of(site) -> dist.Distribution:
    """The distribution of a latent site that its part of z stands for."""
    fn = site["fn"].base_dist if is_imputed(site) else site["fn"]
    return fn if diffusion_prior_in(fn) is None else in_standard_units(fn)


def is_latent(site) -> bool:
    return site["type"] == "sample" and not site["is_observed"]


def is_imputed(site) -> bool:
    """Whether a site stands for the missing ones among data, as `obs_mask` makes it."""
    return site["name"].endswith("_unobserved") and isinstance(site["fn"], dist.MaskedDistribution)


def has_step(site) -> bool:
    """Whether NumPyro says which step of a `scan` a site is at."""
    return "_scan_current_index" in site["infer"]


def of_step(part: AnyArray, site) -> AnyArray:
    """What belongs to the present step, in the body of a `scan`: NumPyro says which that is."""
    step = site["infer"].get("_scan_current_index")
    return part if step is None else part[step]


def shape_of(value) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(value), jnp.result_type(value))


def is_traced(tree) -> bool:
    return any(isinstance(leaf, Tracer) for leaf in jax.tree.leaves(tree))


def hashable(leaf) -> bool:
    """Whether a leaf of the arguments can be a static part of a compiled program."""
    return isinstance(leaf, str | bytes | bool | int | float | complex | None) or callable(leaf)
