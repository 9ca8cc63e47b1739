"""What cannot be inferred, each with one sentence that names the site and the way out."""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
import numpyro.distributions as dist
from jax.core import Tracer
from numpyro import handlers
from numpyro.primitives import Messenger

from enkg_ppl.numpyro._sites import prior_of
from enkg_ppl.numpyro.transports import UnsupportedPriorError, standard_shape


class ModelError(ValueError):
    """The model, or what was passed to it, cannot be inferred as it is; the message says what to change."""


class Refuse(Messenger):
    """Refuses subsampling, and latent sites that `handlers.block` hides: those would be drawn once, as if known.

    Data that are a list become an array.
    """

    def process_message(self, msg):
        if msg["type"] == "plate":
            check_plate(msg)
        if msg["type"] == "sample" and msg["value"] is not None:
            msg["value"] = as_data(msg["name"], msg["value"])
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


class naming:
    """Puts the site's name in front of a transport's refusal."""

    def __init__(self, name: str):
        self.name = name

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        if isinstance(error, UnsupportedPriorError):
            raise ModelError(f"latent site '{self.name}': {error}") from error


def check_latent(name: str, site) -> None:
    if name.endswith("_unwrapped") and isinstance(site["fn"], dist.ImproperUniform):
        raise ModelError(
            f"latent site '{name}' is an angle that CircularReparam gave an improper prior: drop that reparam, "
            "dist.VonMises itself is a prior that needs none"
        )
    with naming(name):
        standard_shape(prior_of(site))
    if site["scale"] is not None:
        raise ModelError(
            f"latent site '{name}' is under handlers.scale or plate subsampling, which changes its prior: take the "
            "scale off latent sites and keep it on observed ones"
        )


def as_data(name: str, value):
    """Data as JAX takes them: lists and tuples of numbers as an array."""
    if not isinstance(value, list | tuple):
        return value
    try:
        array = np.asarray(value) if not any(isinstance(leaf, Tracer) for leaf in value) else jnp.stack(value)
    except ValueError as error:  # ragged
        raise ModelError(
            f"the data of observed site '{name}' are a {type(value).__name__} that makes no array ({error}): pass an "
            "array of numbers"
        ) from error
    if array.dtype.kind not in "fiub":
        raise ModelError(
            f"the data of observed site '{name}' are a {type(value).__name__} of {array.dtype}: pass an array of "
            "numbers"
        )
    return array


def check_plate(site) -> None:
    size, subsample_size = site["args"]
    if subsample_size is not None and size != subsample_size:
        raise ModelError(
            f"plate '{site['name']}' subsamples {subsample_size} of {size}: EnKG needs all the data at once, so drop "
            "subsample_size"
        )


def check_observed(name: str, site) -> None:
    value = site["value"]
    due, given = tuple(site["fn"].shape()), tuple(np.shape(value))
    try:
        np.broadcast_shapes(due, given)
    except ValueError:
        raise ModelError(
            f"the data of observed site '{name}' have shape {given} where its distribution has {due}: pass data of "
            "that shape, or with them the arguments of the model that belong to these data"
        ) from None
    if isinstance(value, Tracer) or isinstance(site["fn"], dist.MaskedDistribution):
        return  # depends on the latents, or is masked where it is missing
    if jnp.issubdtype(jnp.result_type(value), jnp.inexact) and bool(np.isnan(np.asarray(value)).any()):
        raise ModelError(
            f"the data of observed site '{name}' hold NaN: leave the missing ones out, or mask them with "
            "handlers.mask(mask=~jnp.isnan(y))"
        )


def check_arguments(model: Callable, args: tuple, kwargs: dict[str, Any]) -> None:
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
