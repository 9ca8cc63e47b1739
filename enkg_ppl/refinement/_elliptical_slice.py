"""Exact posterior draws by moves in the latent space, from a guided ensemble, without tempering."""

from __future__ import annotations

import equinox as eqx
import numpy as np

from enkg_ppl._checks import check_whole
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.mixtures._fit import most_components
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors._coordinates import decode_all, encode_all
from enkg_ppl.refinement._base import Progress, Refinement, check_halves, host_rng, standardised
from enkg_ppl.refinement._linearised import simulated_reference
from enkg_ppl.refinement._stationarity import Snapshot, drift_p_value
from enkg_ppl.refinement._target import Target
from enkg_ppl.refinement.moves._mixing import Cycles, Mixed, mix
from enkg_ppl.refinement.moves._space import Space
from enkg_ppl.types import Ensemble, Key


class EllipticalSlice(Refinement):
    """Markov chains in z, where the prior is N(0, I): jumps and elliptical slices, no gradient, no tempering.

    The moves go in rounds of cycles; a round ends when the ensemble is decorrelated from its start. The chains have
    converged when a round leaves the distribution unchanged, by a test of no drift.

    For posteriors with one mode, and for latent spaces too large for `TemperedSMC`: there the reference of the moves is
    the posterior of the simulator linearised by the simulations of the guided flow. It gives no evidence, and the
    masses of modes that are far apart stay those of the guided flow.

    Attributes:
        max_correlation: as in `TemperedSMC`, one number.
        max_cycles: of the whole run.
        num_components: as in `TemperedSMC`.

    Sources: Murray, Adams & MacKay (2010); Nishihara, Murray & Adams (2014); see
    `enkg_ppl.refinement.moves._jump_and_slice`.
    """

    max_correlation: float = eqx.field(static=True, default=0.2)
    max_cycles: int = eqx.field(static=True, default=40)
    num_components: int = eqx.field(static=True, default=16)

    def __check_init__(self):
        check_whole("EllipticalSlice", 2, " (two rounds of one)", max_cycles=self.max_cycles)

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
        check_halves(self, num_particles)
        progress = progress or (lambda fraction, words: None)
        evaluate = evaluator or Evaluator(standardised(problem), block_size(num_particles))
        count, num_failed, rng = evaluate.count, evaluate.num_failed, host_rng(key)
        dtype = problem.prior.location.dtype
        if guided is None:
            z = rng.standard_normal((num_particles, problem.dim)).astype(dtype)
        else:
            z = encode_all(problem.prior, guided, evaluate.batch_size)
        room = most_components(num_particles // 2, problem.dim, self.num_components)
        reference = simulated_reference(evaluate, problem, room)
        space = Space(evaluate)
        ensemble = space.group(z)
        target = Target(np.asarray(1.0, dtype), None)
        done, drift_p, settled, before = 0, 0.0, False, None
        mixed = Mixed(0, 1.0, 1.0, 0.0, 0.0, False)
        while done < self.max_cycles and not settled:
            cycles = Cycles(self.num_components, room, self.max_correlation, 1, self.max_cycles - done)
            ensemble, mixed = mix(rng, space, target, ensemble, cycles, reference=reference)
            done += mixed.num_cycles
            if before is not None:
                drift_p = drift_p_value(
                    rng, *(Snapshot(one.position, one.log_likelihood) for one in (before, ensemble))
                )
                settled = drift_p >= LEAST_DRIFT_P and mixed.correlation <= mixed.limit
            before = ensemble
            evaluate.reach(f"moved for {done} of at most {self.max_cycles} cycles", ensemble.position)
            progress(min(0.99, done / self.max_cycles), f"{done} cycles")
            if mixed.out_of_budget or settled or not evaluate.affords(num_particles):
                break
        messages = []
        if not settled:
            what = "the budget of forward evaluations" if done < self.max_cycles else f"{self.max_cycles} cycles"
            messages = [
                f"the chains of EllipticalSlice had not settled after {what} (p-value of no drift "
                f"{drift_p:.2g}, correlation {mixed.correlation:.2f}): raise max_forward_evaluations, or "
                f"pass refine=EllipticalSlice(max_cycles={2 * self.max_cycles})"
            ]
        return Posterior(
            draws=decode_all(problem.prior, ensemble.position, evaluate.batch_size),
            z=ensemble.position,
            log_likelihood=ensemble.log_likelihood,
            num_forward_evaluations=evaluate.count - count,
            method="EllipticalSlice",
            why_no_evidence="EllipticalSlice gives no evidence; use TemperedSMC",
            stats={
                "num_cycles": done,
                "jump_acceptance": mixed.jump_acceptance,
                "independence_acceptance": mixed.independence_acceptance,
                "correlation": mixed.correlation,
                "correlation_limit": mixed.limit,
                "drift_p": drift_p,
                "num_failed": evaluate.num_failed - num_failed,
            },
            messages=messages,
        )


# Chains are called settled where a drift like theirs would be seen by chance this often.
LEAST_DRIFT_P = 0.01
