"""Quantile functions of a standard normal score, exact in both tails.

Each public quantile function maps a score ``z`` to the value whose lower-tail probability is ``Phi(z)``. The
probability itself is never formed: a ``float32`` probability is 1 for every ``z`` above 5.5, and a
``float64`` one for every ``z`` above 8.3. What is carried instead is the pair ``(log_p, log_q) = (log Phi(z),
log Phi(-z))``, of which the smaller is always exact to rounding, and every family is inverted from that one.

Families without a closed form are inverted by Newton's method on the log of a tail probability. For a
log-concave density both tails are log-concave (Prekopa 1973), so from the left of the root (lower tail) or
the right of it (upper tail) the iteration is monotone, and a rigorous bracket keeps it finite from anywhere
else. The number of steps is fixed, because ``vmap`` and ``jit`` see one shape of loop that way.

All functions act elementwise on arrays of one shape and one floating dtype (`Values`), and return that dtype. Nothing
here is meant to be differentiated.

A symmetric family becomes a `Symmetric`, for `quantile` and `score`; other families are formulas of the pair, made by
`exponential`, `log_exponential`, `half_normal` and `invert`, and inverted by `normal_score`. `LOG_2` and `LOG_PI` are
the logarithms of 2 and pi. A new family is a file here; a distribution of your own needs only these functions
(`enkg_ppl.numpyro.transports`).
"""

from enkg_ppl.quantiles._beta import beta, beta_score
from enkg_ppl.quantiles._bracket import invert
from enkg_ppl.quantiles._gamma import gamma, gamma_score
from enkg_ppl.quantiles._symmetric import (
    Symmetric,
    cauchy,
    laplace,
    logistic,
    nearer_bound,
    normal,
    quantile,
    score,
    soft_laplace,
    student_t,
    truncated,
    truncated_lower,
    truncated_normal,
    truncated_score,
)
from enkg_ppl.quantiles._tails import (
    LOG_2,
    LOG_PI,
    Values,
    expm1_minus,
    exponential,
    half_normal,
    half_normal_score,
    log1mexp,
    log1p_minus,
    log_exponential,
    log_exponential_score,
    log_ndtr,
    ndtri_exp,
    normal_score,
)
from enkg_ppl.quantiles._truncated_gamma import truncated_gamma, truncated_gamma_score
from enkg_ppl.quantiles._von_mises import von_mises, von_mises_score

__all__ = [
    "LOG_2",
    "LOG_PI",
    "Symmetric",
    "Values",
    "beta",
    "beta_score",
    "cauchy",
    "expm1_minus",
    "exponential",
    "gamma",
    "gamma_score",
    "half_normal",
    "half_normal_score",
    "invert",
    "laplace",
    "log1mexp",
    "log1p_minus",
    "log_exponential",
    "log_exponential_score",
    "log_ndtr",
    "logistic",
    "ndtri_exp",
    "nearer_bound",
    "normal",
    "normal_score",
    "quantile",
    "score",
    "soft_laplace",
    "student_t",
    "truncated",
    "truncated_gamma",
    "truncated_gamma_score",
    "truncated_lower",
    "truncated_normal",
    "truncated_score",
    "von_mises",
    "von_mises_score",
]
