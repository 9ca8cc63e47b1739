"""What a refinement must offer, and the change of variables that they all work in."""

from __future__ import annotations

import abc
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax.random as jr
import numpy as np

from enkg_ppl._keywords import check_settings
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.evaluation._programs import weakly
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors import GaussianPrior, Prior
from enkg_ppl.problem import InverseProblem
from enkg_ppl.types import Ensemble, Key, Vector

Progress = Callable[[float, str], None]  # (fraction done, a few words)


class Refinement(eqx.Module):
    """Turns an inverse problem, and perhaps a guided ensemble, into exact posterior draws."""

    def __new__(cls, *args, **settings):
        check_settings(cls, settings)
        return super().__new__(cls)

    def num_guided(self, num_particles: int, dim: int) -> int:
        """Particles that the guided flow should have.

        Args:
            num_particles: number of draws wanted.
            dim: length of the latent vector.
        """
        return num_particles

    def evaluator(self, problem: InverseProblem, evaluate: Evaluator) -> Evaluator:
        """The evaluator for this refinement, after the guided flow: by default in the standardised latent space.

        Args:
            problem: the inverse problem.
            evaluate: the evaluator of the guided flow.
        """
        return evaluate.handed_to(standardised(problem))

    @abc.abstractmethod
    def run(
        self,
        key: Key,
        problem: InverseProblem,
        *,
        num_particles: int,
        guided: Ensemble | None = None,
        evaluator: Evaluator | None = None,
        progress: Progress | None = None,
    ) -> Posterior:
        """Draw `num_particles` times from the posterior.

        Args:
            key: random key.
            problem: the inverse problem.
            num_particles: number of draws.
            guided: an ensemble near the posterior, shape (J, dim).
            evaluator: simulates and counts, for `standardised(problem)`.
            progress: called with the fraction done and a few words.

        Returns:
            A `Posterior` whose `num_forward_evaluations` are those made here.
        """


class _Decoded(eqx.Module):
    """The forward map as a function of z; the prior is its data, not part of the program."""

    prior: Prior
    forward: Callable[[Vector], Any]

    def __call__(self, z: Vector):
        return self.forward(self.prior.decode(z))


def check_halves(refinement: Refinement, num_particles: int) -> None:
    """Refuse ensembles whose halves cannot be references for each other."""
    if num_particles < 4:
        name = type(refinement).__name__
        raise ValueError(
            f"{name} needs at least 4 particles, two in each half of the ensemble; got num_particles={num_particles}"
        )


def host_rng(key: Key) -> np.random.Generator:
    """Random numbers of the refinements, which loop on the host: drawn by NumPy, they compile nothing."""
    return np.random.default_rng(np.asarray(jr.key_data(key)).ravel())


def standardised(problem: InverseProblem) -> InverseProblem:
    """The same problem for z, whose prior is N(0, I); the same object where its prior is N(0, I) already.

    Args:
        problem: the inverse problem.
    """
    if isinstance(problem.prior, GaussianPrior) and problem.prior.is_standard:
        return problem
    location = problem.prior.location
    prior = GaussianPrior(location * 0, location * 0 + 1)
    replay = None if problem.replay is None else _Decoded(problem.prior, problem.replay)
    return InverseProblem(prior, _Decoded(problem.prior, weakly(problem.forward)), problem.likelihood, replay=replay)
