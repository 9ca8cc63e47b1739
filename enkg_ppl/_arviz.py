"""The bridge to ArviZ, the only place that imports it; speaks to 0.23 (Python 3.11) and to 1.x."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.random as jr
import numpy as np

IS_ONE = None  # set on first use: importing ArviZ takes a second that most runs need not spend


def _arviz():
    import arviz

    global IS_ONE
    IS_ONE = int(arviz.__version__.split(".")[0]) >= 1
    return arviz


def to_arviz(enkg, prior, posterior_predictive, log_likelihood: bool, kwargs: dict[str, Any]):
    """See `EnKG.to_arviz`."""
    from numpyro.infer import Predictive

    az = _arviz()
    shape = (enkg.num_chains, enkg.num_samples)
    if prior is True:
        draws = Predictive(enkg.model, num_samples=math.prod(shape))
        prior = draws(jr.key(0), *enkg._args, **_without_data(enkg))
    if posterior_predictive is True:
        draws = Predictive(enkg.model, enkg.get_samples())
        posterior_predictive = draws(jr.key(1), *enkg._args, **_without_data(enkg))
    return az, prior, posterior_predictive, jax, np, log_likelihood, kwargs
