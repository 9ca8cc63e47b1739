"""Tail probabilities and quantiles of chi-squares and normals, for work on the host, by SciPy, which JAX brings along.

JAX's own would be compiled for every use, which takes longer than everything else that a diagnostic does.
"""

from scipy.special import gammainc, gammaincc, gammainccinv, gammaincinv, ndtri

__all__ = ["gammainc", "gammaincc", "gammainccinv", "gammaincinv", "ndtri"]
