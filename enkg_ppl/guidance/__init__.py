"""The guided flow, and corrections: how an ensemble at one noise level is steered towards the data.

`guide` carries an ensemble down the noise levels; a `Correction` steers it at each. One paper, one file:
`KalmanCorrection` is the default, which keeps `Pairs` of draws and outputs, and `PublishedCorrection` the paper's.

A new correction derives from `Correction` and implements its five abstract methods: `step` receives the present
noise levels as a `Level` and calls `Respond`, which simulates an ensemble and returns its
`enkg_ppl.likelihood.Response`. Pass it as ``correction=`` to `EnKG`, `infer` or `guide`.
"""

from enkg_ppl.evaluation import Respond
from enkg_ppl.guidance._base import Correction, Level
from enkg_ppl.guidance._guide import guide
from enkg_ppl.guidance._kalman import KalmanCorrection
from enkg_ppl.guidance._published import PublishedCorrection
from enkg_ppl.linearise._slope import Pairs

__all__ = ["Correction", "KalmanCorrection", "Level", "Pairs", "PublishedCorrection", "Respond", "guide"]
