"""The guided flow, and corrections: how an ensemble at one noise level is steered towards the data.

One paper, one file. A new correction derives from `Correction`; its `step` is given a `Level` and calls `Respond`.
"""

from enkg_ppl.evaluation import Respond
from enkg_ppl.guidance._base import Correction, Level
from enkg_ppl.guidance._guide import guide
from enkg_ppl.guidance._kalman import KalmanCorrection
from enkg_ppl.guidance._published import PublishedCorrection

__all__ = ["Correction", "KalmanCorrection", "Level", "PublishedCorrection", "Respond", "guide"]
