"""Corrections: how an ensemble at one noise level is steered towards the data. One paper, one file."""

from enkg_ppl._correction._base import Correction, Level
from enkg_ppl._correction._kalman import KalmanCorrection
from enkg_ppl._correction._published import PublishedCorrection

__all__ = ["Correction", "KalmanCorrection", "Level", "PublishedCorrection"]
