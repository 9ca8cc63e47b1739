"""Ensemble Kalman Diffusion Guidance: posteriors for simulators that cannot be differentiated, inside NumPyro.

What most users need is here. The rest is in namespaces: `enkg_ppl.priors` (and `enkg_ppl.priors.preconditioning`),
`enkg_ppl.networks`, `enkg_ppl.training`, `enkg_ppl.likelihood`, `enkg_ppl.schedule`, `enkg_ppl.guidance`,
`enkg_ppl.refinement`, `enkg_ppl.evaluation`, `enkg_ppl.numpyro` (and `enkg_ppl.numpyro.transports`),
`enkg_ppl.quantiles`, `enkg_ppl.diagnostics` and `enkg_ppl.calibration`, and of what all of them speak:
`enkg_ppl.problem`, `enkg_ppl.posterior` and `enkg_ppl.types`. Each says how it is extended; CONTRIBUTING.md has
examples.
"""

from __future__ import annotations

import importlib
import warnings
from typing import TYPE_CHECKING, Any

from enkg_ppl._infer import RunProgress, infer
from enkg_ppl.evaluation import BlackBoxError, blackbox
from enkg_ppl.guidance import KalmanCorrection, PublishedCorrection, guide
from enkg_ppl.numpyro import DiffusionPrior, EnKG, ModelError, fit_prior
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors import GaussianPrior, MixturePrior, NetworkPrior, load_prior, save_prior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement import AdaptiveImportanceSampling, DiffusionWaltz, EllipticalSlice, LatentSlice, TemperedSMC
from enkg_ppl.schedule import Karras, VarianceExploding, VariancePreserving

if TYPE_CHECKING:
    from enkg_ppl.training import train_prior

__version__ = "0.1.0"

__all__ = [
    "AdaptiveImportanceSampling",
    "BlackBoxError",
    "DiffusionPrior",
    "DiffusionWaltz",
    "EllipticalSlice",
    "EnKG",
    "GaussianPrior",
    "InverseProblem",
    "KalmanCorrection",
    "Karras",
    "LatentSlice",
    "MixturePrior",
    "ModelError",
    "NetworkPrior",
    "Posterior",
    "PublishedCorrection",
    "RunProgress",
    "TemperedSMC",
    "VarianceExploding",
    "VariancePreserving",
    "blackbox",
    "fit_prior",
    "guide",
    "infer",
    "load_prior",
    "save_prior",
    "train_prior",
]

# What most runs do not need is imported when it is asked for.
_LATER = {"train_prior": "training"}

# Names that were here in version 0.1: they still work, with a warning, until the version after the next.
_MOVED = {
    "priors": "Flow Prior PriorFileError ProductPrior TorchNetwork over_particles "
    "import_adm import_ddpm import_diffusers import_edm",
    "priors.preconditioning": "EDM IDDPM VE VP Direct Discrete",
    "guidance": "Correction",
    "refinement": "Refinement",
    "likelihood": "GaussianLikelihood Likelihood PoissonLikelihood Response StudentTLikelihood",
    "schedule": "Schedule",
    "networks": "ADMUNet ResidualMLP SongUNet UNet1d",
    "training": "LogNormalNoise TrainingInterrupted",
    "numpyro": "DiffusionReparam FittedPrior UnsupportedPriorError",
}
_HOMES = {name: home for home, names in _MOVED.items() for name in names.split()}
_RENAMED = {"over_particles": "chunked_vmap"}


def __getattr__(name: str) -> Any:
    if name in _LATER:
        value = getattr(importlib.import_module(f"enkg_ppl.{_LATER[name]}"), name)
        globals()[name] = value
        return value
    if name in _HOMES:
        home, now = f"enkg_ppl.{_HOMES[name]}", _RENAMED.get(name, name)
        message = f"enkg_ppl.{name} has moved: write 'from {home} import {now}'"
        warnings.warn(message, DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(home), now)
    raise AttributeError(f"module 'enkg_ppl' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
