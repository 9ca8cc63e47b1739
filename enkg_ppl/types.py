"""Array aliases shared by every file, and the glossary from symbols to names.

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

AnyArray = Array | np.ndarray  # JAX's inside compiled kernels, NumPy's between them
Key = PRNGKeyArray
Scalar = Float[AnyArray, ""]
Vector = Float[AnyArray, " dim"]
Ensemble = Float[AnyArray, "particles dim"]
Output = Any  # what the simulator returns for one particle: an array or a pytree of arrays
EnsembleOutput = Any  # the same with a leading particle axis on every leaf
