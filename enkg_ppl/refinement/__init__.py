"""Refinements: from an approximate ensemble, or none, to exact posterior draws. One kernel, one file.

A new refinement derives from `Refinement`; its `run` is given an `enkg_ppl.evaluation.Evaluator`, which simulates.
"""

from enkg_ppl.refinement._base import Progress, Refinement, standardised
from enkg_ppl.refinement._elliptical_slice import EllipticalSlice
from enkg_ppl.refinement._importance import AdaptiveImportanceSampling
from enkg_ppl.refinement._tempered_smc import TemperedSMC
from enkg_ppl.refinement._waltz import DiffusionWaltz

LatentSlice = EllipticalSlice  # its name in version 0.1; latent slice sampling is another algorithm (Li & Walker 2023)

__all__ = [
    "AdaptiveImportanceSampling",
    "DiffusionWaltz",
    "EllipticalSlice",
    "LatentSlice",
    "Progress",
    "Refinement",
    "TemperedSMC",
    "standardised",
]
