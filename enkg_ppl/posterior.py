"""What inference returns: draws, evidence, counts and what was seen on the way."""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Array, Float

from enkg_ppl.types import AnyArray, Ensemble

__all__ = ["Posterior", "WeightedSample"]


class WeightedSample(NamedTuple):
    """All that was simulated, weighted to stand for the posterior: `z` of shape (points, dim), N(0, I) under the prior;
    `log_weights`, whose mean weight is the evidence; `simulated` there, None where it was too much to be kept."""

    z: Ensemble
    log_weights: Float[AnyArray, " points"]
    simulated: Any = None


@dataclasses.dataclass
class Posterior:
    """Equally weighted draws of the latent vector, and how they came about.

    `draws`: shape (particles, dim). `log_likelihood`: shape (particles,) in nats, or None where it was not
    evaluated at the draws. `log_evidence`: nats, or None with the reason in `why_no_evidence`; `log_evidence_error`:
    its standard error.
    `num_forward_evaluations`: exact count, one per particle per call. `method`: what produced the draws.
    `log_weights`: of the last resampling, for diagnostics. `slope`: the linear map from latent to output that the
    guided flow learned, where it learns one. `stats`: numbers for the diagnostics. `messages`: sentences that the
    user should read. `simulated`: all that was simulated at the draws, where it was kept. `z`: the standard-normal
    vectors that the draws are the values of, for methods that move there; None where only the draws are known.
    `weighted`: the set that weighted draws were resampled from, which is worth more; None where they were moved.
    """

    draws: Ensemble
    num_forward_evaluations: int
    method: str
    log_likelihood: Float[AnyArray, " particles"] | None = None
    log_evidence: float | None = None
    log_evidence_error: float | None = None
    why_no_evidence: str = "the guided flow alone gives no evidence; use a refinement such as TemperedSMC"
    log_weights: Float[AnyArray, " particles"] | None = None
    stats: dict[str, Any] = dataclasses.field(default_factory=dict)
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
