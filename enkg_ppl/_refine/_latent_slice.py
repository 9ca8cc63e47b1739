"""Exact posterior draws by moves in the latent space, from a guided ensemble, without tempering."""

from __future__ import annotations

import equinox as eqx
import numpy as np

from enkg_ppl._forward import Evaluator
from enkg_ppl._posterior import Posterior
from enkg_ppl._refine._base import Progress, Refinement, host_rng, standardised
from enkg_ppl._refine._blocks import block_size, in_blocks
from enkg_ppl._refine._coordinates import decode_all, encode_all
from enkg_ppl._refine._linearised import linearised_reference
from enkg_ppl._refine._mixing import Cycles, mix
from enkg_ppl._refine._moves import Group
from enkg_ppl._refine._stationarity import Snapshot, drift_p_value
from enkg_ppl._refine._target import Target
from enkg_ppl._types import Ensemble, Key


class LatentSlice(Refinement):
    """Markov chains in z, where the prior is N(0, I): jumps and elliptical slices, no gradient, no tempering.

    Rounds of cycles: a round ends when the ensemble has forgotten where the round began. When a round leaves
    the distribution where it was, by a test of no drift, the chains have settled.

    For posteriors with one mode, and for latent spaces too large for `TemperedSMC`: there the reference of the moves
    is the posterior of the simulator linearised by the simulations of the guided flow. It gives no evidence, and
    masses of modes that are far apart stay what the guided flow made them.

    `linearise`: "auto" where half the ensemble has fewer than `PARTICLES_PER_DIM` particles a dimension, True, False.
    `max_correlation`: see `TemperedSMC`. `max_cycles`: in all.

    Sources: Murray, Adams & MacKay (2010); Nishihara, Murray & Adams (2014); see `enkg_ppl._refine._moves`.
    """

    linearise: bool | str = eqx.field(static=True, default="auto")
    max_correlation: float = eqx.field(static=True, default=0.2)
    max_cycles: int = eqx.field(static=True, default=40)
    num_components: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        if self.linearise not in ("auto", True, False):
            raise ValueError(f"LatentSlice needs linearise as 'auto', True or False; got {self.linearise!r}")
        if self.max_cycles < 2:
            raise ValueError(f"LatentSlice needs max_cycles >= 2, two rounds of one; got {self.max_cycles}")

    def run(
        self,
        key: Key,
        problem,
        *,
        num_particles: int,
        guided: Ensemble | None = None,
        evaluator: Evaluator | None = None,
        progress: Progress | None = None,
    ) -> Posterior:
        if num_particles < 4:
            raise ValueError(
                "LatentSlice needs at least 4 particles, two in each half of the ensemble; "
                f"got num_particles={num_particles}"
            )
        progress = progress or (lambda fraction, words: None)
        evaluate = evaluator or Evaluator(standardised(problem), block_size(num_particles))
        count, num_failed, rng = evaluate.count, evaluate.num_failed, host_rng(key)
        dtype = problem.prior.location.dtype
        if guided is None:
            z = rng.standard_normal((num_particles, problem.dim)).astype(dtype)
        else:
            z = encode_all(problem.prior, guided, evaluate.batch_size)
        reference = self._reference(evaluate, problem, num_particles)
        ensemble = Group(z, evaluate.log_likelihood(z))
        target = Target(np.asarray(1.0, dtype), None)
        done, drift_p, settled, mixed, before = 0, 0.0, False, None, None
        while done < self.max_cycles and not settled:
            cycles = Cycles(self.num_components, self.max_correlation, 1, self.max_cycles - done)
            ensemble, mixed = mix(rng, evaluate, target, ensemble, cycles, reference=reference)
            done += mixed.num_cycles
            if before is not None:
                drift_p = drift_p_value(rng, Snapshot(*before), Snapshot(*ensemble))
                settled = drift_p >= LEAST_DRIFT_P and mixed.correlation <= mixed.limit
            before = ensemble
            progress(min(0.99, done / self.max_cycles), f"{done} cycles, {evaluate.count:,} evaluations")
            if mixed.out_of_budget or evaluate.remaining < num_particles:
                break
        messages = []
        if not settled:
            what = "the budget of forward evaluations" if done < self.max_cycles else f"{self.max_cycles} cycles"
            messages = [
                f"the chains of LatentSlice had not settled after {what} (p-value of no drift "
                f"{drift_p:.2g}, correlation {mixed.correlation:.2f}): raise max_forward_evaluations or LatentSlice(max_cycles=...)"
            ]
        return Posterior(
            draws=decode_all(problem.prior, ensemble.z, evaluate.batch_size),
            log_likelihood=ensemble.log_likelihood,
            num_forward_evaluations=evaluate.count - count,
            method="LatentSlice",
            why_no_evidence="LatentSlice gives no evidence; use TemperedSMC",
            stats={
                "num_cycles": done,
                "jump_acceptance": mixed.jump_acceptance,
                "fresh_acceptance": mixed.fresh_acceptance,
                "correlation": mixed.correlation,
                "correlation_limit": mixed.limit,
                "drift_p": drift_p,
                "reference": "mixtures" if reference is None else "linearised simulator",
                "num_failed": evaluate.num_failed - num_failed,
            },
            messages=messages,
        )

    def _reference(self, evaluate: Evaluator, problem, num_particles: int):
        """The linearised posterior where it is asked for and the guided flow left simulations, else None."""
        few = num_particles // 2 < PARTICLES_PER_DIM * problem.dim
        if evaluate.simulated is None or not (self.linearise is True or (self.linearise == "auto" and few)):
            return None
        x, response = evaluate.simulated
        return linearised_reference(encode_all(problem.prior, x, evaluate.batch_size), response)


# Below this, an ellipse fitted to half the ensemble is noise.
PARTICLES_PER_DIM = 8
LEAST_DRIFT_P = 0.01
