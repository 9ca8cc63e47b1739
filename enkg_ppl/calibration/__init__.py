"""Is a posterior right? Simulation-based calibration, expected coverage and scores, for any NumPyro inference."""

from enkg_ppl.calibration._coverage import Coverage, coverage
from enkg_ppl.calibration._ecdf import Bands
from enkg_ppl.calibration._result import SBC
from enkg_ppl.calibration._sbc import sbc
from enkg_ppl.calibration._scores import crps, energy_score, spread_skill_ratio

__all__ = ["SBC", "Bands", "Coverage", "coverage", "crps", "energy_score", "sbc", "spread_skill_ratio"]
