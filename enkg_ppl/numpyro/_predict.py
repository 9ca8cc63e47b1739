"""Draws that `EnKG.to_arviz` makes on request: replicated data, and the prior with data simulated from it."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import jax.random as jr

from enkg_ppl.evaluation._black_box import raise_host_failure, watch_black_boxes
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._marks import poisoned
from enkg_ppl.evaluation._programs import compiled
from enkg_ppl.evaluation._store import Store
from enkg_ppl.numpyro._model import NumPyroModel
from enkg_ppl.numpyro._observation import Observation
from enkg_ppl.numpyro._response import ranks_may_differ
from enkg_ppl.numpyro._result import is_standard
from enkg_ppl.numpyro._simulator import Simulator
from enkg_ppl.priors._coordinates import decode_all


def sample_observed(key: jax.Array, observations: dict[str, Observation]) -> dict[str, jax.Array]:
    """Replicated data of every observed site from its distribution at each (ensemble, particle)."""
    shape = jax.tree.leaves(observations)[0].shape[:2]
    replicate = jax.vmap(jax.vmap(lambda key, observation: observation.fn.sample(key)))
    with ranks_may_differ():
        return {
            name: replicate(jr.split(jr.fold_in(key, i), shape), observation)
            for i, (name, observation) in enumerate(observations.items())
        }


def sample_prior(
    key: jax.Array, model: NumPyroModel, num_ensembles: int, num_particles: int, store: Store | None = None
) -> dict[str, jax.Array]:
    """Prior draws of every site, and data simulated from them; leads with (ensemble, particle)."""
    key_z, key_data = jr.split(key)
    prior, block = model.problem().prior, block_size(num_particles)
    z = jr.normal(key_z, (num_ensembles, num_particles, model.dim))
    x = z if is_standard(prior) else jnp.stack([jnp.asarray(decode_all(prior, part, block)) for part in z])
    with watch_black_boxes(store=store), raise_host_failure():
        values, observations = jax.block_until_ready(_replay(model.simulator, x))
    return values | sample_observed(key_data, observations)


@compiled
def _replay(simulator: Simulator, z: jax.Array):
    return jax.vmap(jax.vmap(poisoned(simulator.replay)))(z)
