"""Ensemble Kalman Diffusion Guidance: posteriors for simulators that cannot be differentiated, inside NumPyro."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enkg_ppl._blackbox import BlackBoxError, blackbox
from enkg_ppl._correction import Correction, KalmanCorrection, PublishedCorrection
from enkg_ppl._flow import Flow
from enkg_ppl._guide import guide
from enkg_ppl._infer import infer
from enkg_ppl._likelihood import GaussianLikelihood, Likelihood, PoissonLikelihood, Response, StudentTLikelihood
from enkg_ppl._numpyro import (
    DiffusionPrior,
    DiffusionReparam,
    EnKG,
    FittedPrior,
    ModelError,
    UnsupportedPriorError,
    fit_prior,
)
from enkg_ppl._posterior import Posterior
from enkg_ppl._prior import (
    EDM,
    IDDPM,
    VE,
    VP,
    Direct,
    Discrete,
    GaussianPrior,
    MixturePrior,
    NetworkPrior,
    Prior,
    PriorFileError,
    ProductPrior,
    TorchNetwork,
    load_prior,
    over_particles,
    save_prior,
)
from enkg_ppl._problem import InverseProblem
from enkg_ppl._refine import AdaptiveImportanceSampling, DiffusionWaltz, LatentSlice, Refinement, TemperedSMC
from enkg_ppl._schedule import Karras, Schedule, VarianceExploding, VariancePreserving

if TYPE_CHECKING:
    from enkg_ppl._import import import_adm, import_ddpm, import_diffusers, import_edm
    from enkg_ppl._network import ADMUNet, ResidualMLP, SongUNet, UNet1d
    from enkg_ppl._training import LogNormalNoise, TrainingInterrupted, train_prior

__version__ = "0.1.0"

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "ADMUNet",
    "AdaptiveImportanceSampling",
    "BlackBoxError",
    "Correction",
    "DiffusionPrior",
    "DiffusionReparam",
    "DiffusionWaltz",
    "Direct",
    "Discrete",
    "EnKG",
    "FittedPrior",
    "Flow",
    "GaussianLikelihood",
    "GaussianPrior",
    "InverseProblem",
    "KalmanCorrection",
    "Karras",
    "LatentSlice",
    "Likelihood",
    "LogNormalNoise",
    "MixturePrior",
    "ModelError",
    "NetworkPrior",
    "PoissonLikelihood",
    "Posterior",
    "Prior",
    "PriorFileError",
    "ProductPrior",
    "PublishedCorrection",
    "Refinement",
    "ResidualMLP",
    "Response",
    "Schedule",
    "SongUNet",
    "StudentTLikelihood",
    "TemperedSMC",
    "TorchNetwork",
    "TrainingInterrupted",
    "UNet1d",
    "UnsupportedPriorError",
    "VarianceExploding",
    "VariancePreserving",
    "blackbox",
    "fit_prior",
    "guide",
    "import_adm",
    "import_ddpm",
    "import_diffusers",
    "import_edm",
    "infer",
    "load_prior",
    "over_particles",
    "save_prior",
    "train_prior",
]

# What most runs do not need is imported when it is asked for: networks, their training and their import.
_LATER = {
    "ADMUNet": "_network",
    "ResidualMLP": "_network",
    "SongUNet": "_network",
    "UNet1d": "_network",
    "LogNormalNoise": "_training",
    "TrainingInterrupted": "_training",
    "train_prior": "_training",
    "import_adm": "_import",
    "import_ddpm": "_import",
    "import_diffusers": "_import",
    "import_edm": "_import",
}


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module 'enkg_ppl' has no attribute '{name}'")
    value = getattr(importlib.import_module(f"enkg_ppl.{_LATER[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_LATER})
