"""What a correction must offer to the guided flow."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Int

from enkg_ppl.evaluation._evaluator import Respond
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Schedule
from enkg_ppl.types import Ensemble, Key, Scalar


class Level(NamedTuple):
    """Where the flow is: level `index` of `num_steps`, from `sigma` to `sigma_next`."""

    index: Int[Array, ""]
    num_steps: int
    sigma: Scalar
    sigma_next: Scalar


class Correction(eqx.Module):
    """One step of the guided flow. A new correction implements the five abstract methods below.

    `step` is traced inside `lax.scan`, or called level by level from the host: what is costly to compile should be
    jitted within it, apart from `respond`, so that it is compiled once for all simulators.
    """

    @abc.abstractmethod
    def default_schedule(self, problem: InverseProblem) -> Schedule:
        """Noise levels that suit this correction."""

    @abc.abstractmethod
    def start(self, key: Key, problem: InverseProblem, num_particles: int, sigma: Scalar) -> Ensemble:
        """The ensemble at the first noise level."""

    @abc.abstractmethod
    def init(self, problem: InverseProblem, x: Ensemble) -> Any:
        """What is carried from level to level besides the ensemble (None where nothing is)."""

    @abc.abstractmethod
    def step(
        self, key: Key, x: Ensemble, level: Level, problem: InverseProblem, respond: Respond, memory: Any
    ) -> tuple[Ensemble, Any]:
        """Steer the ensemble by the data at `level.sigma` and bring it to `level.sigma_next`."""

    @abc.abstractmethod
    def num_updates_at(self, index: int, num_steps: int) -> int:
        """How often `step` simulates every particle at level `index` of `num_steps`: for planning, nothing counts it.

        A step that asks for more than the budget has left ends the flow (`BudgetEnd`).
        """

    def slope(self, memory: Any) -> Float[Array, "dim m"] | None:
        """The linear map from latent to output learned on the way, None where there is none."""
        return None
