"""Is a posterior right? Simulation-based calibration, expected coverage and scores, for any NumPyro inference.

`sbc` ranks the unknowns of simulated data among their posterior draws (the result is an `SBC`, with its `Bands`);
`coverage` counts how often regions hold them (a `Coverage`). Scores of an ensemble against the truth: `crps`,
`energy_score`, `spread_skill_ratio`. Whatever has `run` and `get_samples` like `numpyro.infer.MCMC` can be checked.
"""

from enkg_ppl.calibration._coverage import Coverage, coverage
from enkg_ppl.calibration._ecdf import Bands
from enkg_ppl.calibration._result import SBC
from enkg_ppl.calibration._sbc import sbc
from enkg_ppl.calibration._scores import crps, energy_score, spread_skill_ratio

__all__ = ["SBC", "Bands", "Coverage", "coverage", "crps", "energy_score", "sbc", "spread_skill_ratio"]
