"""The bridge to NumPyro, the only place besides `calibration` that imports it.

`EnKG` takes the place of `MCMC`; its results before an error are a `PartialResult`, with ensembles `UnderWay`.
`DiffusionPrior` is the distribution of a site under an `enkg_ppl.priors.Prior`, and `DiffusionReparam` moves such a
site to standard-normal space for other samplers. `fit_prior` learns a prior from a model's draws (`FittedPrior`, its
`FittedSite`s). A model that cannot be inferred raises `ModelError`, a distribution without a transport
`UnsupportedPriorError`: `enkg_ppl.numpyro.transports` says how to give it one.
"""

from enkg_ppl.numpyro._diffusion_prior import DiffusionPrior, DiffusionReparam
from enkg_ppl.numpyro._enkg import EnKG
from enkg_ppl.numpyro._fit_prior import FittedPrior, FittedSite, fit_prior
from enkg_ppl.numpyro._partial import PartialResult, UnderWay
from enkg_ppl.numpyro._refusals import ModelError
from enkg_ppl.numpyro.transports import UnsupportedPriorError

__all__ = [
    "DiffusionPrior",
    "DiffusionReparam",
    "EnKG",
    "FittedPrior",
    "FittedSite",
    "ModelError",
    "PartialResult",
    "UnderWay",
    "UnsupportedPriorError",
    "fit_prior",
]
