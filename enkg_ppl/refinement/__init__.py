"""Refinements: from an approximate ensemble, or none, to exact posterior draws. One kernel, one file.

A new refinement derives from `Refinement` and implements `run`, which is given an `enkg_ppl.evaluation.Evaluator` that
simulates and counts, for the `standardised` problem unless the refinement's `evaluator` says otherwise. It returns an
`enkg_ppl.posterior.Posterior`, whose `stats` hold what is in `enkg_ppl.posterior.Statistics`, and tells its caller
of its `Progress`, ``progress(fraction, words)``. It is used by ``refine=`` of `EnKG` and `infer`.

`Found` and `Peak` are what a search for modes found, which one refinement hands on to the next. `LatentSlice` is the
name that `EllipticalSlice` had in version 0.1.
"""

from enkg_ppl.refinement._base import Progress, Refinement, standardised
from enkg_ppl.refinement._elliptical_slice import EllipticalSlice
from enkg_ppl.refinement._importance import AdaptiveImportanceSampling
from enkg_ppl.refinement._peaks import Found, Peak
from enkg_ppl.refinement._tempered_smc import TemperedSMC
from enkg_ppl.refinement._waltz import DiffusionWaltz

LatentSlice = EllipticalSlice  # its name in version 0.1; latent slice sampling is another algorithm (Li & Walker 2023)

__all__ = [
    "AdaptiveImportanceSampling",
    "DiffusionWaltz",
    "EllipticalSlice",
    "Found",
    "LatentSlice",
    "Peak",
    "Progress",
    "Refinement",
    "TemperedSMC",
    "standardised",
]
