"""The bridge to NumPyro, the only place besides `calibration` that imports it."""

from enkg_ppl.numpyro._diffusion_prior import DiffusionPrior, DiffusionReparam
from enkg_ppl.numpyro._enkg import EnKG
from enkg_ppl.numpyro._fit_prior import FittedPrior, fit_prior
from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.numpyro.transports import UnsupportedPriorError

__all__ = [
    "DiffusionPrior",
    "DiffusionReparam",
    "EnKG",
    "FittedPrior",
    "ModelError",
    "UnsupportedPriorError",
    "fit_prior",
]
