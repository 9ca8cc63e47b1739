"""What a method is, what it returns, and how its simulator calls are counted."""

from __future__ import annotations

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.evaluation._host_call import host_call
from validation.target import Draws, Target


@dataclasses.dataclass(frozen=True)
class Result:
    """Draws of one run and what they cost.

    `draws`: in the order of `Target.flatten`, or latent vectors where the target is an `InverseProblem`.
    `num_forward_evaluations`: simulator evaluations, one per parameter vector per call, all that the run made.
    `num_gradients`: of the simulator; 0 for a gradient-free method. `seconds`: wall-clock, compilation included.
    `log_evidence`: nats, where the method yields one. `warnings`: sentences that its user would have read.
    """

    draws: Draws
    num_forward_evaluations: int
    num_gradients: int
    seconds: float
    log_evidence: float | None = None
    warnings: list[str] = dataclasses.field(default_factory=list)


class Run(Protocol):
    """Infer a target.

    `seed`: of all random numbers. `num_draws`: how many draws to return. `progress`: show a bar.
    `budget`: simulator evaluations to aim at, None for what a user would take; what was spent is in the result.
    """

    def __call__(
        self, target: Target, seed: int, num_draws: int, progress: bool, *, budget: int | None = None
    ) -> Result: ...


@dataclasses.dataclass(frozen=True)
class Method:
    """An algorithm as a user would run it.

    `name`: as on the command line. `summary`: what it is, with its settings, in a line. `run`: see `Run`.
    `needs_gradient`: of the simulator. `needs_model`: a NumPyro model, not an `InverseProblem`.
    `sources`: files and folders, relative to the checkout, whose change makes earlier results obsolete.
    """

    name: str
    summary: str
    run: Run
    needs_gradient: bool = False
    needs_model: bool = False
    sources: tuple[str, ...] = (
        "enkg_ppl/numpyro",
        "enkg_ppl/priors",
        "enkg_ppl/likelihood.py",
        "enkg_ppl/priors/_flow.py",
    )

    def refuses(self, target: Target) -> str | None:
        """Why this method cannot be tried on a target; None where it can."""
        if self.needs_model and target.model is None:
            return f"{self.name} needs a NumPyro model"
        if self.needs_gradient and not target.differentiable:
            return f"{self.name} needs a gradient"
        return None


class Counter:
    """Counts simulator evaluations where they happen.

    ``log_density(z) + counter(z)`` adds nothing and counts one for every vector that is asked for, also where the
    number of steps is only known at run time. A program that asks twice for the same value pays twice, as it would
    with a simulator in host code behind it.
    """

    def __init__(self):
        self.count = 0

    def __call__(self, z: Float[Array, "*shape"]) -> Array:
        zero = jax.ShapeDtypeStruct((), jnp.result_type(float))
        return host_call(self._add, zero, z.ravel())

    def _add(self, z: np.ndarray) -> np.ndarray:
        self.count += int(np.prod(z.shape[:-1]))
        return np.zeros(z.shape[:-1], jnp.result_type(float))


def kept(chains: np.ndarray, num_draws: int) -> Draws:
    """`num_draws` rows of ``(walkers, steps, dim)``, equally far apart in time; fewer where there are not so many.

    Walkers that move together are dependent within a step, so whole steps are taken as far as they go.
    """
    in_time = np.swapaxes(np.asarray(chains), 0, 1).reshape(-1, chains.shape[-1])  # step by step
    num_walkers, num_steps = chains.shape[:2]
    steps = min(num_steps, max(1, -(-num_draws // num_walkers)))
    chosen = np.linspace(0, num_steps - 1, steps).round().astype(int)
    rows = in_time.reshape(num_steps, num_walkers, -1)[chosen].reshape(steps * num_walkers, -1)
    if len(rows) > num_draws:
        rows = rows[np.linspace(0, len(rows) - 1, num_draws).round().astype(int)]
    return rows
