"""What a correction must offer to the guided flow."""

from __future__ import annotations

import abc
from typing import Any, NamedTuple

import equinox as eqx
from jaxtyping import Array, Float, Int

from enkg_ppl._keywords import check_settings
from enkg_ppl.evaluation._evaluator import Respond
from enkg_ppl.problem import InverseProblem
from enkg_ppl.schedule import Schedule
from enkg_ppl.types import Ensemble, Key, Scalar


class Level(NamedTuple):
    """A step of the flow between two noise levels.

    Attributes:
        index: of the level.
        num_steps: number of levels.
        sigma: noise level before the step.
        sigma_next: noise level after the step.
    """

    index: Int[Array, ""]
    num_steps: int
    sigma: Scalar
    sigma_next: Scalar


class Correction(eqx.Module):
    """One step of the guided flow; a new correction implements the five abstract methods below.

    `step` is traced inside `lax.scan`, or called level by level from the host. Within it, code that is costly to
    compile should be jitted, apart from `respond`, so that it is compiled once for all simulators.
    """

    def __new__(cls, *args, **settings):
        check_settings(cls, settings)
        return super().__new__(cls)

    @abc.abstractmethod
    def default_schedule(self, problem: InverseProblem) -> Schedule:
        """Noise levels that suit this correction.

        Args:
            problem: the inverse problem.
        """

    @abc.abstractmethod
    def start(self, key: Key, problem: InverseProblem, num_particles: int, sigma: Scalar) -> Ensemble:
        """The ensemble at the first noise level, shape (num_particles, dim).

        Args:
            key: random key.
            problem: the inverse problem.
            num_particles: particles of the ensemble.
            sigma: the first noise level.
        """

    @abc.abstractmethod
    def init(self, problem: InverseProblem, x: Ensemble) -> Any:
        """State carried from level to level besides the ensemble (None where there is none).

        Args:
            problem: the inverse problem.
            x: the ensemble at the first noise level, shape (particles, dim).
        """

    @abc.abstractmethod
    def step(
        self, key: Key, x: Ensemble, level: Level, problem: InverseProblem, respond: Respond, memory: Any
    ) -> tuple[Ensemble, Any]:
        """Update the ensemble by the data at `level.sigma` and bring it to `level.sigma_next`.

        Args:
            key: random key.
            x: the ensemble at `level.sigma`, shape (particles, dim).
            level: the present noise level and the next.
            problem: the inverse problem.
            respond: simulates an ensemble and returns its working responses.
            memory: the state carried from level to level.

        Returns:
            The ensemble at the next level and the new state.
        """

    @abc.abstractmethod
    def num_updates_at(self, index: int, num_steps: int) -> int:
        """How often `step` simulates every particle at a level; used for planning, not for counting.

        A step that asks for more than the budget has left ends the flow (`BudgetEnd`).

        Args:
            index: of the level.
            num_steps: number of levels.
        """

    def slope(self, memory: Any) -> Float[Array, "dim m"] | None:
        """The linear map from latent to output learned during the flow, None where there is none.

        Args:
            memory: the state after the last level.
        """
        return None
