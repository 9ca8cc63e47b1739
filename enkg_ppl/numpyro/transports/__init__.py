"""Every ordinary NumPyro prior as a deterministic map of a standard normal.

``theta = from_standard(fn, z)`` with ``z ~ N(0, I)`` has distribution `fn`, so a posterior becomes ``N(z; 0,
I) L(from_standard(fn, z))`` whatever the prior. The maps are elementwise quantile transforms (increasing,
exact in both tails), affine ones, or chains of conditional quantiles (Rosenblatt 1952); none needs to be
differentiated, all may be traced with parameters that depend on other latents, and the dtype of `z` (or of the
value) is the dtype of the computation and of the result.

To support another distribution, `register` its map and the inverse (with the shape of the score, where that is not the
value's: `standard_shape`), or, for a scalar family, `elementwise`, with the parameters by name; in your own code, or in
a file of this folder. `enkg_ppl.quantiles` has the quantile functions; `inside`, `positive` and `finite` keep values
off the bounds of a support. A distribution without a transport raises `UnsupportedPriorError`.
"""

# Each of these registers its distributions.
from enkg_ppl.numpyro.transports import (
    _circular,
    _copula,
    _elementwise,
    _folded,
    _matrix,
    _mixture,
    _normal,
    _process,
    _simplex,
    _student,
    _truncated,
    _wrappers,
)
from enkg_ppl.numpyro.transports._base import (
    elementwise,
    finite,
    from_standard,
    inside,
    positive,
    register,
    standard_shape,
    to_standard,
)
from enkg_ppl.numpyro.transports._refusal import UnsupportedPriorError

__all__ = [
    "UnsupportedPriorError",
    "elementwise",
    "finite",
    "from_standard",
    "inside",
    "positive",
    "register",
    "standard_shape",
    "to_standard",
]

del _circular, _copula, _elementwise, _folded, _matrix, _mixture, _normal, _process, _simplex, _student
del _truncated, _wrappers
