"""Known starting points, from values of the latent sites to latent vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.types import Ensemble


def starting_points(model: NumPyroModel, init: Mapping[str, Any] | Sequence[Mapping[str, Any]]) -> Ensemble:
    """Latent vectors, shape (points, dim); `init`: a value of every latent site, or a list of such.

    Raises `ModelError` for sites that lack or do not exist, and for values of another shape or outside of their
    support.
    """
    points: list[Any] = list(init) if isinstance(init, list | tuple) else [init]
    if not points or not all(isinstance(point, Mapping) for point in points):
        raise ModelError(f"init must be a dictionary with a value of each latent site, or a list of such; got {init!r}")
    names = [site.name for site in model.sites]
    for point in points:
        for name in point:
            if name not in names:
                raise ModelError(f"init names '{name}', and the latent sites are {', '.join(names)}")
        for site in model.sites:
            if site.name not in point:
                raise ModelError(f"init has no value of latent site '{site.name}': give one of {', '.join(names)} each")
            if np.shape(point[site.name]) != site.shape:
                raise ModelError(
                    f"init has a value of shape {np.shape(point[site.name])} for latent site '{site.name}', whose "
                    f"shape is {site.shape}: correct it"
                )
    # Compiled, so that black boxes, which the latent vector does not depend on, are not called.
    latents = jax.jit(lambda values: jnp.asarray(model.unconstrain(values), float))
    z = np.stack([np.asarray(latents({name: jnp.asarray(point[name], float) for name in names})) for point in points])
    for site in model.sites:
        part = z[:, site.start : site.stop]
        if not np.isfinite(part).all():
            row = int(np.argmin(np.isfinite(part).all(axis=1)))
            raise ModelError(
                f"init has {points[row][site.name]} for latent site '{site.name}', where its prior is zero: give "
                "a value inside of its support"
            )
    return z
