"""Refinements: from an approximate ensemble, or none, to exact posterior draws. One kernel, one file."""

from enkg_ppl._refine._base import Refinement
from enkg_ppl._refine._importance import AdaptiveImportanceSampling
from enkg_ppl._refine._latent_slice import LatentSlice
from enkg_ppl._refine._tempered_smc import TemperedSMC
from enkg_ppl._refine._waltz import DiffusionWaltz

__all__ = ["AdaptiveImportanceSampling", "DiffusionWaltz", "LatentSlice", "Refinement", "TemperedSMC"]
