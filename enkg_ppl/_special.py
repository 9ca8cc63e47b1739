"""Tail probabilities of chi-squares and normal quantiles for diagnostics, by SciPy, which JAX brings along.

JAX's own would be compiled for every use, which takes longer than everything else that a diagnostic does.
"""

from scipy.special import gammainc, gammaincc, ndtri

__all__ = ["gammainc", "gammaincc", "ndtri"]
