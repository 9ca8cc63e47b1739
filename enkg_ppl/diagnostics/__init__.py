"""Can a posterior be trusted? Checks of a finished run.

`diagnose` checks the posteriors of a run's ensembles; `Diagnostics` is the resulting table, which
`EnKG.diagnostics()` returns, and its `findings` are what the checks found beyond their limits (`Finding`).
`check_ensemble` tests whether a guided ensemble is the posterior that its own slope implies (`EnsembleCheck`). Of draws
and weights: `effective_rank`, `unique_share`, `effective_size`, `pareto_khat`.

The entries that a refinement of your own should report are in `enkg_ppl.posterior.Statistics`; any other entry of
`Posterior.stats` that is a number or a text is listed as it is, and sentences in `Posterior.messages` become warnings.
"""

from enkg_ppl.diagnostics._diagnose import Diagnostics, diagnose, effective_rank, unique_share
from enkg_ppl.diagnostics._fields import EnsembleCheck, check_ensemble
from enkg_ppl.diagnostics._finding import Finding
from enkg_ppl.diagnostics._weights import effective_size, pareto_khat

__all__ = [
    "Diagnostics",
    "EnsembleCheck",
    "Finding",
    "check_ensemble",
    "diagnose",
    "effective_rank",
    "effective_size",
    "pareto_khat",
    "unique_share",
]
