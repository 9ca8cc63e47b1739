"""The bridge to ArviZ, the only place that imports it; speaks to 0.23 (Python 3.11) and to 1.x."""

from __future__ import annotations

from typing import Any

import arviz as az
import jax
import numpy as np

ONE = int(az.__version__.split(".")[0]) >= 1  # the 1.x line keeps its groups in an xarray DataTree


def from_fitted(enkg, prior, posterior_predictive, log_likelihood, options: dict[str, Any]):
    """`arviz.from_numpyro`, with the pointwise log likelihood from the run instead of from running the model again.

    `enkg`: an `EnKG` that has run. `prior`, `posterior_predictive`: draws that lead with (chain, draw), or None.
    `log_likelihood`: a dictionary of arrays that lead with (chain, draw), or None.
    """
    if prior is not None and not ONE:  # 0.x reads prior draws as one chain
        prior = {name: np.reshape(values, (-1, *np.shape(values)[2:])) for name, values in prior.items()}
    with jax.numpy_rank_promotion("allow"):  # ArviZ runs the model, where NumPyro's own algebra relies on it
        idata = az.from_numpyro(
            enkg, prior=prior, posterior_predictive=posterior_predictive, log_likelihood=False, **options
        )
    if log_likelihood is not None:
        shared = {name: options[name] for name in ("coords", "dims") if name in options}
        dataset = az.convert_to_dataset(log_likelihood, **shared)
        if ONE:
            idata["log_likelihood"] = dataset
        else:
            idata.add_groups({"log_likelihood": dataset})
    return idata


def from_ranks(values: dict[str, np.ndarray]):
    """Scaled ranks of a calibration study as the group ``prior_sbc``; arrays lead with (chain, draw)."""
    dataset = az.convert_to_dataset(values)
    if ONE:
        from xarray import DataTree

        return DataTree.from_dict({"prior_sbc": dataset})
    return az.InferenceData(prior_sbc=dataset)


def from_simulations(table: dict[str, np.ndarray], attributes: dict[str, str]):
    """Kept simulations as the group ``constant_data``; arrays lead with the dimension "simulation"."""
    import xarray as xr

    dims = {name: ["simulation", *(f"{name}_dim_{i}" for i in range(a.ndim - 1))] for name, a in table.items()}
    dataset = xr.Dataset({name: (dims[name], a) for name, a in table.items()}, attrs=attributes)
    if ONE:
        return xr.DataTree.from_dict({"constant_data": dataset})
    return az.InferenceData(constant_data=dataset)
