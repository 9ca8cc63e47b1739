"""Diffusion priors, one file per family."""

from enkg_ppl._prior._base import Grid, Prior
from enkg_ppl._prior._chunks import in_chunks, over_particles
from enkg_ppl._prior._file import PriorFileError, load_prior, save_prior
from enkg_ppl._prior._gaussian import GaussianPrior
from enkg_ppl._prior._mixture import MixturePrior
from enkg_ppl._prior._network import NetworkPrior
from enkg_ppl._prior._preconditioning import EDM, IDDPM, VE, VP, Direct, Discrete, Preconditioning
from enkg_ppl._prior._product import ProductPrior
from enkg_ppl._prior._torch import TorchNetwork

__all__ = [
    "EDM",
    "IDDPM",
    "VE",
    "VP",
    "Direct",
    "Discrete",
    "GaussianPrior",
    "Grid",
    "MixturePrior",
    "NetworkPrior",
    "Preconditioning",
    "Prior",
    "PriorFileError",
    "ProductPrior",
    "TorchNetwork",
    "in_chunks",
    "load_prior",
    "over_particles",
    "save_prior",
]
