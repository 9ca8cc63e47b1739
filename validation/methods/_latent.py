"""Any target as a log likelihood over z, prior N(0, I): where gradient-free samplers are at home."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.refinement import standardised
from validation.methods._base import Counter
from validation.target import Draws, Target, flatten

# Stands for a likelihood of zero: samplers that multiply it by a temperature of zero would make NaN of -inf.
NEVER = -1e30


class Latent:
    """A target in the standardised latent space.

    `dim`: length of z. `count`: simulator evaluations so far.
    """

    def __init__(self, target: Target):
        self._target = target
        self._counter = Counter()
        if target.model is None:
            assert target.problem is not None
            self._original = target.problem()
        else:
            self._original = NumPyroModel(target.model, target.args, dict(target.kwargs)).problem()
        self._problem = standardised(self._original)
        self.dim = self._problem.dim

    @property
    def count(self) -> int:
        return self._counter.count

    def log_likelihood(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log likelihood of one z in nats, counted; a very small number where it is zero or not a number."""
        value = self._problem.log_likelihood(z)
        return jnp.where(jnp.isfinite(value), value, NEVER) + self._counter(z)

    def log_prior(self, z: Float[Array, " dim"]) -> Float[Array, ""]:
        """Log density of N(0, I)."""
        return -0.5 * jnp.sum(z**2 + jnp.log(2 * jnp.pi))

    def prior_draws(self, seed: int, num_draws: int) -> Float[Array, "draws dim"]:
        return jax.random.normal(jax.random.key(seed), (num_draws, self.dim))

    def flatten(self, z: Float[Array, "draws dim"]) -> Draws:
        """Draws as the target compares them; not counted."""
        if self._target.model is None:
            return np.asarray(jax.jit(jax.vmap(self._original.prior.decode))(z))
        return flatten(jax.jit(jax.vmap(self._original.constrain))(z), self._target.sites)
