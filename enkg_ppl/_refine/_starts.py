"""What tempering starts from: a distribution that covers an ensemble, in the coordinates that suit it."""

from __future__ import annotations

import dataclasses

import numpy as np

from enkg_ppl._forward import Evaluator
from enkg_ppl._problem import InverseProblem
from enkg_ppl._refine._conditional import fit_conditional
from enkg_ppl._refine._coordinates import encode_all
from enkg_ppl._refine._mixing import DFS, best_fit
from enkg_ppl._refine._reference import Reference, fit, inflated, mean_log_prob
from enkg_ppl._refine._space import Simulated, Space, best_space, scales, simulated
from enkg_ppl._refine._steps import largest_step
from enkg_ppl._refine._target import Start, log_weights
from enkg_ppl._types import Ensemble

PILOTS, PILOT_ESS = 128, 0.5  # particles that a start is tried with, and their effective share at its first step


@dataclasses.dataclass
class Starts:
    """`prior_share`, `inflation`: see `TemperedSMC`; `linearised`: the posterior of the linearised simulator, in z."""

    rng: np.random.Generator
    evaluate: Evaluator
    problem: InverseProblem
    linearised: Reference | None
    num_components: int
    room: int
    prior_share: tuple[float, float]
    inflation: tuple[float, float]
    scales: tuple[int, ...] = ()  # coordinates of z that others are to be given

    def from_guided(self, z: Ensemble) -> tuple[Space, Start]:
        """From a guided ensemble.

        Where the problem has scales, this is tried beside the conditional Gaussian at the scales of the ensemble, which
        need not be near the posterior in all else: the better start is the one whose first step goes farther.
        """
        plain = Space(self.evaluate)
        start = self._covering(plain, z, 0)
        pairs = self._pairs()
        self.scales = () if pairs is None else scales(self.evaluate, self.problem.free_values, pairs)
        if pairs is None or not self.scales or not self.evaluate.affords(2 * PILOTS):
            return plain, start
        free, d = self.problem.free_values, z.shape[1]
        space = Space(self.evaluate, fit_conditional(free, pairs.free, pairs.response, self.scales, d))
        position = self.rng.standard_normal(z.shape).astype(z.dtype)
        position[:, self.scales] = z[:, self.scales]
        other = self._covering(space, position, 0)
        return max(((plain, start), (space, other)), key=lambda pair: self._first_step(*pair))

    def from_scouts(self, z: Ensemble) -> tuple[Space, Start]:
        """From draws of the posterior, which are simulated once more where the problem has scales."""
        space = Space(self.evaluate)
        if self.scales and self.evaluate.affords(len(z)):
            free, response = self.problem.free_values, self.evaluate.log_likelihood_and_response(z)[1]
            pairs = simulated(self.evaluate, free, z, response)
            if pairs is not None:
                space = best_space(self.rng, self.evaluate, free, z, pairs, self.scales)
        return space, self._covering(space, space.positions(z), 1)

    def _pairs(self) -> Simulated | None:
        """Simulations of the guided flow."""
        if self.evaluate.simulated is None:
            return None
        x, response = self.evaluate.simulated
        z = encode_all(self.problem.prior, x, self.evaluate.batch_size)
        return simulated(self.evaluate, self.problem.free_values, z, response)

    def _covering(self, space: Space, position: Ensemble, stage: int) -> Start:
        """A mixture, or the linearised posterior if that is better."""
        # As an array: a Python number would be part of the program, and every kernel be compiled for each share.
        share = np.asarray(self.prior_share[stage], position.dtype)
        shape, score = best_fit(self.rng, position, self.num_components, self.room)
        linearised = self.linearised if space.conditional is None else None
        if linearised is not None and mean_log_prob(linearised, position) > score:
            return Start(inflated(linearised, self.inflation[1]), share)
        # Heavy tails, whatever fits best: what the start leaves out, weights cannot bring back.
        mixture = fit(self.rng, position, shape._replace(df=DFS[0]), self.room)
        return Start(inflated(mixture, self.inflation[stage]), share)

    def _first_step(self, space: Space, start: Start) -> float:
        group = space.group(start.sample(self.rng, PILOTS, space))
        weights = log_weights(start, group, space.block)
        return largest_step(weights, 1.0, PILOT_ESS)[0] if np.isfinite(weights).any() else 0.0
