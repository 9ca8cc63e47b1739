"""Array aliases that the library's signatures use, and the glossary from symbols to names.

They are `jaxtyping` annotations, for readers, type checkers and code of your own that extends the library:

====================  ==========================================================================
alias                 meaning
====================  ==========================================================================
`AnyArray`            an array of JAX's or NumPy's
`Key`                 a random key, as `jax.random.key` makes it
`Scalar`              a float array without axes
`Vector`              one latent vector, shape (dim,)
`Ensemble`            latent vectors, shape (particles, dim)
`Output`              what the simulator returns for one particle: an array or a pytree of arrays
`EnsembleOutput`      the same with a leading particle axis on every leaf
====================  ==========================================================================

The glossary:

====================  ==========================================================================
symbol                name
====================  ==========================================================================
``J``                 number of particles in an ensemble
``d``                 dimension of the latent vector
``m``                 number of data (length of the simulator output)
``x``                 a latent vector; ``x_t`` at noise level ``sigma_t``, ``x0`` at noise level 0
``z``                 the same point in the space where the prior is ``N(0, I)``
``D(x, sigma)``       denoiser ``E[x0 | x0 + sigma * eps = x]``
``G``, ``g``          simulator (forward map) and its output
``Gamma``             covariance of the observation noise
``C_xg``, ``C_gg``    covariance of latent and output, and of the output
====================  ==========================================================================

Ensembles have one orientation everywhere: particles first.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from jaxtyping import Array, Float, PRNGKeyArray

__all__ = ["AnyArray", "Ensemble", "EnsembleOutput", "Key", "Output", "Scalar", "Vector"]

AnyArray = Array | np.ndarray  # JAX's inside compiled kernels, NumPy's between them
Key = PRNGKeyArray
Scalar = Float[AnyArray, ""]
Vector = Float[AnyArray, " dim"]
Ensemble = Float[AnyArray, "particles dim"]
Output = Any  # what the simulator returns for one particle: an array or a pytree of arrays
EnsembleOutput = Any  # the same with a leading particle axis on every leaf
