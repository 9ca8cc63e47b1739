"""Diffusion priors, one file per family."""

from enkg_ppl._prior._base import Prior
from enkg_ppl._prior._gaussian import GaussianPrior
from enkg_ppl._prior._mixture import MixturePrior

__all__ = ["GaussianPrior", "MixturePrior", "Prior"]
