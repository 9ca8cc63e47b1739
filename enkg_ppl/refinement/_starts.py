"""What tempering starts from: a distribution that covers an ensemble, in the coordinates that suit it."""

from __future__ import annotations

import dataclasses

import numpy as np

from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.linearise._conditional import fit_conditional
from enkg_ppl.mixtures._fit import DFS, best_fit, fit
from enkg_ppl.mixtures._student import Reference, around, inflated, mean_log_prob
from enkg_ppl.priors._coordinates import encode_all
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement._peaks import RELEVANT, Found, Peak, find_peaks
from enkg_ppl.refinement._target import Start, log_density, log_weights
from enkg_ppl.refinement.moves._space import Simulated, Space, best_space, log_standard_normal, scales, simulated
from enkg_ppl.refinement.moves._steps import largest_step
from enkg_ppl.types import Ensemble

# Nats by which a start may be thinner at a peak than the posterior, and by which evidence is too low to matter.
THIN, NEGLIGIBLE = 3.0, 7.0
PEAK_SHARE = 0.5  # half for what the ensemble found, half for what the search found besides: either may be the truth
INFLATED, LEAST_WEIGHT, MAPPED = 1.5, 0.1, 16  # covariances around peaks; least relative weight; draws for coordinates
PILOTS, PILOT_ESS = 128, 0.5  # particles that a start is tried with, and their effective share at its first step


@dataclasses.dataclass
class Starts:
    """`defensive_weight`, `inflation`: see `TemperedSMC`; `linearised`: posterior of the linearised simulator, in z."""

    rng: np.random.Generator
    evaluate: Evaluator
    problem: InverseProblem
    linearised: Reference | None
    num_components: int
    room: int
    defensive_weight: tuple[float, float]
    inflation: tuple[float, float]
    scales: tuple[int, ...] = ()  # coordinates of z that others are to be given
    found: Found | None = None  # peaks of the posterior, by `search`
    is_told: bool = False  # whether the user knows where to search from

    def search(self, num_particles: int, spare: float, init: Ensemble | None = None) -> None:
        """Look for peaks, from the draws of the prior that the guided flow began with, and from z `init`.

        `spare`: evaluations that may be spent on it.
        """
        if self.evaluate.first_simulated is None:
            return
        x, response = self.evaluate.first_simulated
        z = encode_all(self.problem.prior, x, self.evaluate.batch_size)
        self.is_told = init is not None
        # Random numbers of its own, so that all else goes on as without a search; others in each ensemble, so that not
        # all of them overlook the same peaks.
        own = self.rng.spawn(1)[0]
        self.found = find_peaks(own, self.evaluate, z, response, num_particles, spare, init)

    @property
    def _peaks(self) -> tuple[Peak, ...]:
        return () if self.found is None else self.found.several

    def from_guided(self, z: Ensemble) -> tuple[Space, Start]:
        """From a guided ensemble.

        Where the problem has scales, this is tried beside the conditional Gaussian at the scales of the ensemble, which
        need not be near the posterior in all else: the better start is the one whose first step goes farther.
        """
        plain = Space(self.evaluate, peaks=self._peaks)
        start = self._covering(plain, z, 0)
        pairs = self._pairs()
        self.scales = () if pairs is None else scales(self.evaluate, self.problem.unconstrained_values, pairs)
        if pairs is None or not self.scales or not self.evaluate.affords(2 * PILOTS):
            return plain, start
        free, d = self.problem.unconstrained_values, z.shape[1]
        space = Space(self.evaluate, fit_conditional(free, pairs.free, pairs.response, self.scales, d), self._peaks)
        position = self.rng.standard_normal(z.shape).astype(z.dtype)
        position[:, self.scales] = z[:, self.scales]
        other = self._covering(space, position, 0)
        return max(((plain, start), (space, other)), key=lambda pair: self._first_step(*pair))

    def from_pilot(self, z: Ensemble) -> tuple[Space, Start]:
        """From draws of the posterior, which are simulated once more where the problem has scales."""
        space = Space(self.evaluate, peaks=self._peaks)
        if self.scales and self.evaluate.affords(len(z)):
            free, response = self.problem.unconstrained_values, self.evaluate.log_likelihood_and_response(z)[1]
            pairs = simulated(self.evaluate, free, z, response)
            if pairs is not None:
                space = best_space(self.rng, self.evaluate, free, z, pairs, self.scales)
                space.peaks = self._peaks
        return space, self._covering(space, space.positions(z), 1)

    def _pairs(self) -> Simulated | None:
        """Simulations of the guided flow."""
        if self.evaluate.simulated is None:
            return None
        x, response = self.evaluate.simulated
        z = encode_all(self.problem.prior, x, self.evaluate.batch_size)
        return simulated(self.evaluate, self.problem.unconstrained_values, z, response)

    def _covering(self, space: Space, position: Ensemble, stage: int) -> Start:
        """A mixture, or the linearised posterior if that is better."""
        # As an array: a Python number would be part of the program, and every kernel be compiled for each share.
        share = np.asarray(self.defensive_weight[stage], position.dtype)
        labels = space.labels(position)
        shape, score = best_fit(self.rng, position, self.num_components, self.room, labels)
        linearised = self.linearised if space.conditional is None else None
        if linearised is not None and mean_log_prob(linearised, position) > score:
            return self._with_peaks(space, Start(inflated(linearised, self.inflation[1]), share))
        # Heavy tails, whatever fits best: what the start leaves out, weights cannot bring back.
        mixture = fit(self.rng, position, shape._replace(df=DFS[0]), self.room, labels)
        return self._with_peaks(space, Start(inflated(mixture, self.inflation[stage]), share))

    def _with_peaks(self, space: Space, start: Start) -> Start:
        """The same start, with a mixture around all peaks where it covers one of them too thinly."""
        if self.found is None:
            return start
        peaks = self.found.peaks
        dtype, rng = start.reference.mixture.means.dtype, np.random.default_rng(1)
        z = np.stack([peak.z for peak in peaks])
        position, log_prior = space.positions(z.astype(dtype)), space.latents(space.positions(z.astype(dtype)))[1]
        density = log_density(start, position, log_prior, space.block)
        evidence = np.array([peak.log_evidence for peak in peaks])
        # Laplace's posterior density at each peak, in the coordinates of the positions.
        due = np.array([peak.log_posterior for peak in peaks]) - np.logaddexp.reduce(evidence)
        due += log_prior - log_standard_normal(z)
        # Covariances that are inflated on purpose make a start thinner, the more so the more unknowns there are.
        thin = THIN if len(peaks) > 1 or self.is_told else RELEVANT
        thin += 0.5 * z.shape[1] * max(1.0, np.log(max(self.inflation)))
        if np.all((density > due - thin) | (evidence < evidence.max() - NEGLIGIBLE)):
            # The same program as with peaks, since other data may need them.
            nothing = around(np.asarray(position[:1], float), np.eye(z.shape[1])[None], np.ones(1), DFS[0], dtype)
            return Start(start.reference, start.defensive_weight, nothing, np.zeros((), dtype))
        covariances = []
        for peak in peaks:
            around_it = peak.z + rng.standard_normal((MAPPED * (z.shape[1] + 1), z.shape[1])) @ peak.chol.T
            covariances.append(np.atleast_2d(np.cov(space.positions(around_it.astype(dtype)).T.astype(float))))
        # Between what Laplace says of their masses and equal ones: the approximation may be far off.
        weights = np.exp(np.maximum(evidence - evidence.max(), np.log(LEAST_WEIGHT)))
        mixture = around(np.asarray(position, float), INFLATED * np.stack(covariances), weights, DFS[0], dtype)
        return Start(start.reference, start.defensive_weight, mixture, np.asarray(PEAK_SHARE, dtype))

    def _first_step(self, space: Space, start: Start) -> float:
        group = space.group(start.sample(self.rng, PILOTS, space))
        weights = log_weights(start, group, space.block)
        return largest_step(weights, 1.0, PILOT_ESS)[0] if np.isfinite(weights).any() else 0.0
