"""What inference returns: draws, evidence, counts and what was seen on the way.

A refinement of your own returns a `Posterior`, with what it counted and measured in `Statistics`, of which
`TemperingLevel`, a `MovesRecord` and more, is a part; `WeightedSample` is what weighted draws were resampled from.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple, TypedDict

import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.types import AnyArray, Ensemble

__all__ = ["MovesRecord", "Posterior", "Statistics", "TemperingLevel", "WeightedSample"]


class WeightedSample(NamedTuple):
    """All simulated points, weighted to represent the posterior.

    Attributes:
        z: shape (points, dim), N(0, I) under the prior.
        log_weights: shape (points,); the mean of the weights is the evidence.
        simulated: simulated values at the points, None where they took too much memory to be kept.
    """

    z: Ensemble
    log_weights: Float[AnyArray, " points"]
    simulated: Any = None


class MovesRecord(TypedDict):
    """Statistics of the Markov moves of an ensemble.

    Attributes:
        num_cycles: cycles made.
        correlation: largest correlation with the state where the moves began.
        limit: correlation up to which the ensemble counts as decorrelated.
        jump_acceptance: accepted share of the jumps.
        independence_acceptance: accepted share of the independence proposals.
        out_of_budget: whether evaluations ran out.
    """

    num_cycles: int
    correlation: float
    limit: float
    jump_acceptance: float
    independence_acceptance: float
    out_of_budget: bool


class TemperingLevel(MovesRecord):
    """One temperature of `TemperedSMC`.

    Attributes:
        beta: from 0 (the start) to 1 (the posterior).
        ess: effective size of the weights that led here, as a share of `num_particles`.
        num_particles: particles of the ensemble.
        evaluations: forward evaluations at this temperature.
    """

    beta: float
    ess: float
    num_particles: int
    evaluations: int


class Statistics(TypedDict, total=False):
    """Counts and measurements of an ensemble's run; the diagnostics read some entries and list all but `levels`.

    The description of an entry names what writes it; an entry that does not apply is left out. Shares and correlations
    are between 0 and 1, and everything else without a unit is a count. A refinement of your own may add entries,
    numbers or texts, in a type that derives from this one.
    """

    refinement: str
    """What made the draws exact, and why it was chosen. By `infer`."""
    num_failed: int
    """Simulations that gave no number, of all that this ensemble made. By `infer`, and by every refinement."""
    num_not_simulated: int
    """Particles that were not finite and so not simulated. By `infer`, where there were any."""
    num_cycles: int
    """Cycles: of moves by `TemperedSMC` and `EllipticalSlice`, back up to a middle noise level by `anneal`."""
    cycles: str
    """Why the guided flow ended, "arrived" where it is the posterior. By `anneal`."""
    chi2_per_datum: float
    """Mean squared misfit in units of the noise variance, 1 where all is right. By `check_ensemble`."""
    data_spread: float
    """Variance of the predictions over what the slope implies, a ratio. By `check_ensemble`."""
    latent_spread: float
    """Total variance of the draws over what slope and prior imply, a ratio. By `check_ensemble`."""
    unexplained: float
    """Output variance that the slope leaves, in units of the noise variance. By `check_ensemble`."""
    noise_spread: float
    """Standard deviation over the draws of the log noise variance, in nats. By `check_ensemble`."""
    num_levels: int
    """Temperatures, those of the pilot ensemble included. By `TemperedSMC`."""
    levels: list[TemperingLevel]
    """What was done at each of them. By `TemperedSMC`."""
    jump_acceptance: float
    """Share of the last jumps that were accepted. By `TemperedSMC` and `EllipticalSlice`."""
    independence_acceptance: float
    """Share of the last independence proposals that were accepted. By `TemperedSMC` and
    `EllipticalSlice`."""
    correlation: float
    """Largest correlation of the ensemble with where its last moves began. By `TemperedSMC`, `EllipticalSlice` and
    `DiffusionWaltz`."""
    correlation_limit: float
    """The correlation up to which the beginning counts as forgotten. By `TemperedSMC`, `EllipticalSlice` and
    `DiffusionWaltz`."""
    drift_p: float | None
    """P-value of no drift between the last rounds, None where it was not tested. By `EllipticalSlice` and
    `DiffusionWaltz`."""
    weight_ess: float
    """Effective size of the last importance weights, in draws. By `TemperedSMC` and `AdaptiveImportanceSampling`."""
    weights: int
    """Weighted points. By `AdaptiveImportanceSampling`."""
    num_rounds: int
    """Rounds of weighted draws. By `AdaptiveImportanceSampling`."""
    num_searches: int
    """Searches for modes that ended at a peak. By `TemperedSMC` and `AdaptiveImportanceSampling`."""
    num_peaks: int
    """Peaks found that may hold mass. By `TemperedSMC` and `AdaptiveImportanceSampling`."""
    num_steps: int
    """Steps of every particle. By `DiffusionWaltz`."""
    acceptance: float
    """Share of the last round's steps that were accepted. By `DiffusionWaltz`."""
    sigma: float
    """Noise level of the last steps, in units of the latent vector. By `DiffusionWaltz`."""


@dataclasses.dataclass
class Posterior:
    """Equally weighted draws of the latent vector, and how they were obtained.

    Attributes:
        draws: shape (particles, dim).
        num_forward_evaluations: exact count, one per particle per call.
        method: what produced the draws.
        log_likelihood: shape (particles,) in nats, or None where it was not evaluated at the draws.
        log_evidence: nats, or None with the reason in `why_no_evidence`.
        log_evidence_error: standard error of `log_evidence` in nats, or None.
        why_no_evidence: the reason where `log_evidence` is None.
        log_weights: of the last resampling, for diagnostics.
        stats: what the diagnostics read and list (see `Statistics`).
        messages: sentences that the user should read.
        slope: the linear map from latent to output that the guided flow learned, where it learns one.
        simulated: all simulated values at the draws, where they were kept.
        z: the standard-normal vectors that map to the draws, for methods that move in z; None where only the draws are
            known.
        weighted: the set that weighted draws were resampled from, whose averages are more precise; None where draws
            were moved.
    """

    draws: Ensemble
    num_forward_evaluations: int
    method: str
    log_likelihood: Float[AnyArray, " particles"] | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    why_no_evidence: str = "the guided flow alone gives no evidence; use a refinement such as TemperedSMC"
    log_weights: Float[AnyArray, " particles"] | None = None
    stats: Statistics = dataclasses.field(default_factory=Statistics)
    messages: list[str] = dataclasses.field(default_factory=list)
    slope: Float[Array, "dim m"] | None = None
    simulated: Any = None
    z: Ensemble | None = None
    weighted: WeightedSample | None = None

    @property
    def num_particles(self) -> int:
        return self.draws.shape[0]

    def mean(self) -> np.ndarray:
        """Posterior mean of the latent vector, shape (dim,)."""
        return np.asarray(self.draws).mean(axis=0)

    def sd(self) -> np.ndarray:
        """Posterior standard deviation of the latent vector, shape (dim,)."""
        return np.asarray(self.draws).std(axis=0, ddof=1)
