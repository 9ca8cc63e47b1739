"""A simulator as a linear map: ridge regression, and what follows from it.

The library's own: not part of what is promised to others.
"""

from enkg_ppl.linearise._noise import is_known, typical_noise
from enkg_ppl.linearise._penalty import Fixed, GeneralisedCrossValidation, LeaveOneOut
from enkg_ppl.linearise._ridge import affine_ridge, ridge

__all__ = ["Fixed", "GeneralisedCrossValidation", "LeaveOneOut", "affine_ridge", "is_known", "ridge", "typical_noise"]
