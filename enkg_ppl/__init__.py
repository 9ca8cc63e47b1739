"""Ensemble Kalman Diffusion Guidance: posteriors for simulators that cannot be differentiated, inside NumPyro."""

from enkg_ppl._blackbox import BlackBoxError, blackbox
from enkg_ppl._correction import Correction, KalmanCorrection, PublishedCorrection
from enkg_ppl._flow import Flow
from enkg_ppl._guide import guide
from enkg_ppl._infer import infer
from enkg_ppl._likelihood import GaussianLikelihood, Likelihood, PoissonLikelihood, Response, StudentTLikelihood
from enkg_ppl._numpyro import EnKG, ModelError, UnsupportedPriorError
from enkg_ppl._posterior import Posterior
from enkg_ppl._prior import GaussianPrior, MixturePrior, Prior
from enkg_ppl._problem import InverseProblem
from enkg_ppl._refine import DiffusionWaltz, LatentSlice, Refinement, TemperedSMC
from enkg_ppl._schedule import Karras, Schedule, VarianceExploding, VariancePreserving

__version__ = "0.1.0"

__all__ = [
    "BlackBoxError",
    "Correction",
    "DiffusionWaltz",
    "EnKG",
    "Flow",
    "GaussianLikelihood",
    "GaussianPrior",
    "InverseProblem",
    "KalmanCorrection",
    "Karras",
    "LatentSlice",
    "Likelihood",
    "MixturePrior",
    "ModelError",
    "PoissonLikelihood",
    "Posterior",
    "Prior",
    "PublishedCorrection",
    "Refinement",
    "Response",
    "Schedule",
    "StudentTLikelihood",
    "TemperedSMC",
    "UnsupportedPriorError",
    "VarianceExploding",
    "VariancePreserving",
    "blackbox",
    "guide",
    "infer",
]
