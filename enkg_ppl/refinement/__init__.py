"""Refinements: from an approximate ensemble, or none, to exact posterior draws. One kernel, one file.

A new refinement derives from `Refinement` and implements `run`, which is given an `enkg_ppl.evaluation.Evaluator` that
simulates and counts, for the `standardised` problem unless the refinement's `evaluator` says otherwise. It returns an
`enkg_ppl.posterior.Posterior`, whose `stats` are `enkg_ppl.posterior.Statistics`, and reports its `Progress` by
``progress(fraction, words)``. Pass it as ``refine=`` to `EnKG` or `infer`.

`Found` and `Peak` are the result of a search for modes, which one refinement passes on to the next. `LatentSlice`
is the name that `EllipticalSlice` had in version 0.1.
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
