"""The bridge to NumPyro, the only place besides `calibration` that imports it."""

from enkg_ppl._numpyro._enkg import EnKG
from enkg_ppl._numpyro._model import ModelError
from enkg_ppl._numpyro._transport import UnsupportedPriorError

__all__ = ["EnKG", "ModelError", "UnsupportedPriorError"]
