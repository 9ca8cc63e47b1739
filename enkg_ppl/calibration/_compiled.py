"""MCMC on many data sets of one shape, compiled once."""

from __future__ import annotations

import copy
from typing import Any

import jax
import numpy as np
from numpyro.infer import MCMC


class CompiledMCMC:
    """Chains whose whole run is a compiled function of key and data; by itself `MCMC` compiles anew for new data.

    `mcmc`: left as it is. `data`: the keyword arguments that change from run to run.
    """

    @staticmethod
    def takes(mcmc: MCMC) -> bool:
        """Not `EnKG`, which works from the host, and no chains on several devices."""
        return type(mcmc) is MCMC and (mcmc.num_chains == 1 or mcmc.chain_method in ("sequential", "vectorized"))

    def __init__(self, mcmc: MCMC, data: tuple[str, ...]):
        # A run inside `jax.jit` leaves traced values on both objects, hence the copies.
        self.sampler: Any = copy.copy(mcmc.sampler)
        self.num_warmup, self.num_samples = mcmc.num_warmup, mcmc.num_samples
        self.thinning, self.num_chains = mcmc.thinning, mcmc.num_chains
        self._mcmc: Any = copy.copy(mcmc)
        self._mcmc.sampler, self._mcmc.progress_bar = self.sampler, False
        self._data = data
        self._run: Any = None
        self._samples: dict[str, np.ndarray] = {}

    def run(self, rng_key: jax.Array, *args: Any, **kwargs: Any) -> None:
        """Draw; everything but the data must be as in the first run."""
        if self._run is None:
            rest = {name: value for name, value in kwargs.items() if name not in self._data}

            def run(key, data):
                self._mcmc.run(key, *args, **rest, **data)
                return self._mcmc.get_samples(group_by_chain=True)

            self._run = jax.jit(run)
        self._samples = jax.device_get(self._run(rng_key, {name: kwargs[name] for name in self._data}))

    def get_samples(self, group_by_chain: bool = False) -> dict[str, np.ndarray]:
        """Draws by site, leading axis draws, or (chains, draws) by chain."""
        return {
            name: value if group_by_chain else value.reshape(-1, *value.shape[2:])
            for name, value in self._samples.items()
        }
