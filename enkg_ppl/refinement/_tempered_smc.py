"""Adaptive tempered sequential Monte Carlo with moves that need no gradient."""

from __future__ import annotations

import dataclasses

import equinox as eqx
import numpy as np

from enkg_ppl._checks import check_whole
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.mixtures._fit import best_fit, fit, most_components
from enkg_ppl.mixtures._student import Reference
from enkg_ppl.posterior import Posterior, Statistics, TemperingLevel
from enkg_ppl.priors._coordinates import decode_all, encode_all
from enkg_ppl.refinement._base import Progress, Refinement, check_halves, host_rng, standardised
from enkg_ppl.refinement._linearised import simulated_reference
from enkg_ppl.refinement._missing import SHARES_DIFFER, evidence_disagrees, missing_modes, shares_apart, shares_disagree
from enkg_ppl.refinement._peaks import Found
from enkg_ppl.refinement._starts import Starts
from enkg_ppl.refinement._target import Start, Target, log_weights
from enkg_ppl.refinement.moves._mixing import Cycles, mix
from enkg_ppl.refinement.moves._space import Group, Space
from enkg_ppl.refinement.moves._steps import largest_step, log_mean_exp, systematic
from enkg_ppl.types import Ensemble, Key

PAIRS = ("target_ess", "max_correlation", "min_cycles", "max_cycles", "defensive_weight", "inflation")
LEAST_PILOT, PILOT_PER_DIM = 512, 8
# Evaluations a particle that are kept for the whole ensemble, and that the pilot ensemble must at least have.
RESERVE, RESERVE_PILOT = 5, 8


@dataclasses.dataclass
class _Run:
    """A tempered ensemble, and how it came about."""

    ensemble: Group
    log_evidence: float
    levels: list[TemperingLevel]
    log_weights: np.ndarray  # of the last step, before resampling
    stopped_at: float | None = None  # the temperature at which evaluations ran out


class TemperedSMC(Refinement):
    """Exact posterior draws and the evidence, by tempering from a start to the posterior.

    The posterior in z, where the prior is N(0, I), is reached through ``q^(1 - beta) (N(z; 0, I) L)^beta``. Each beta
    is as large as keeps the effective sample size of the weights at `target_ess`; then the particles are resampled and
    moved until they are decorrelated from the resampled positions. The two halves of the ensemble move in turn, by
    jumps and elliptical slices of a Student-t mixture fitted to the other half. The start q is a mixture fitted to the
    previous ensemble, its covariances inflated, with a share of the prior mixed in so that no mode of the posterior is
    lost.

    A small pilot ensemble goes first, from the guided ensemble or the prior. Its result is the start of the whole
    ensemble, which is then one or two temperatures from the posterior.

    Attributes:
        pilot_size: particles of the pilot ensemble (default: 512, or 8 for each dimension where that is more). It is
            left out where the whole ensemble is no larger, or where the budget does not suffice.
        target_ess: as a share of the particles; (from the guided ensemble or the prior, from the pilot ensemble).
        num_components: largest number of components of the mixture.
        max_correlation: moves repeat until the largest correlation, over z, z^2 and the rank of the log likelihood,
            between the present ensemble and that just after resampling is below this; (between, at the end).
        min_cycles: smallest number of cycles of moves; (between, at the end).
        max_cycles: largest number of cycles of moves; (between, at the end).
        defensive_weight: share of the prior in q; (from a guided ensemble, from the pilot). A defensive mixture,
            Hesterberg (1995), Technometrics 37, 185.
        inflation: factor on the covariances of q; (from a guided ensemble, from the pilot).

    Sources: Del Moral, Doucet & Jasra (2006), J. R. Stat. Soc. B 68; the adaptive choice of beta: Jasra, Stephens,
    Doucet & Tsagaris (2011), section 3.3; the moves: see `enkg_ppl.refinement.moves._jump_and_slice`.
    """

    pilot_size: int | None = eqx.field(static=True, default=None)
    target_ess: tuple[float, float] = (0.5, 0.2)
    num_components: int = eqx.field(static=True, default=16)
    max_correlation: tuple[float, float] = eqx.field(static=True, default=(0.3, 0.1))
    min_cycles: tuple[int, int] = eqx.field(static=True, default=(1, 1))
    max_cycles: tuple[int, int] = eqx.field(static=True, default=(4, 12))
    defensive_weight: tuple[float, float] = eqx.field(static=True, default=(0.2, 0.05))
    inflation: tuple[float, float] = eqx.field(static=True, default=(2.0, 1.2))

    def __check_init__(self):
        for name in PAIRS:
            value = getattr(self, name)
            if not (isinstance(value, tuple) and len(value) == 2):
                raise ValueError(f"TemperedSMC needs {name} as a tuple of two numbers; got {name}={value!r}")
        if not all(0 < share < 1 for share in self.target_ess):
            raise ValueError(f"TemperedSMC needs 0 < target_ess < 1, two of them; got target_ess={self.target_ess}")
        check_whole("TemperedSMC", num_components=self.num_components)
        if self.pilot_size is not None:
            check_whole("TemperedSMC", 4, ", or None", pilot_size=self.pilot_size)
        if not all(0 < share < 1 for share in self.defensive_weight):
            raise ValueError(
                f"TemperedSMC needs 0 < defensive_weight < 1, two of them; got defensive_weight={self.defensive_weight}"
            )

    def num_guided(self, num_particles: int, dim: int) -> int:
        return min(num_particles, self._pilot_size(dim))

    def _pilot_size(self, dim: int) -> int:
        return max(LEAST_PILOT, PILOT_PER_DIM * dim) if self.pilot_size is None else self.pilot_size

    def run(
        self,
        key: Key,
        problem,
        *,
        num_particles: int,
        guided: Ensemble | None = None,
        evaluator: Evaluator | None = None,
        progress: Progress | None = None,
        init: Ensemble | None = None,
        found: Found | None = None,
    ) -> Posterior:
        """Draw `num_particles` times from the posterior; see `Refinement.run`.

        Args:
            key: random key.
            problem: the inverse problem.
            num_particles: number of draws.
            guided: an ensemble near the posterior, shape (J, dim).
            evaluator: simulates and counts, for `standardised(problem)`.
            progress: called with the fraction done and a few words.
            init: latent vectors, shape (points, dim), from which peaks are searched for as well.
            found: result of an earlier search for peaks.
        """
        check_halves(self, num_particles)
        evaluate = evaluator or Evaluator(standardised(problem), block_size(num_particles))
        count, num_failed = evaluate.count, evaluate.num_failed
        room = most_components(num_particles // 2, problem.dim, self.num_components)
        linearised = simulated_reference(evaluate, problem, room)
        dtype = problem.prior.location.dtype
        rng = host_rng(key)
        tempering = _Tempering(self, rng, evaluate, room, linearised, problem.dim, dtype, progress)
        starts = Starts(
            rng, evaluate, problem, linearised, self.num_components, room, self.defensive_weight, self.inflation
        )
        space, start, stage, runs, pilot = Space(evaluate), None, 0, [], None
        reserve, pilot_size = RESERVE * num_particles, self._pilot_size(problem.dim)
        if guided is not None:
            tempering.say(0.0, "searching for modes")
            # Half of what the ensembles leave: what is found makes them cheaper, what is not may not take their place.
            spare = 0.5 * (evaluate.remaining - reserve - RESERVE_PILOT * pilot_size)
            known = None if init is None else encode_all(problem.prior, init, evaluate.batch_size)
            if found is None:
                starts.search(num_particles, spare, known)
            else:
                starts.found, starts.is_told = found, init is not None
            with evaluate.ledger.reserving(num_particles):  # for the first look at the whole ensemble
                space, start = starts.from_guided(encode_all(problem.prior, guided, evaluate.batch_size))
        if pilot_size < num_particles and evaluate.affords(reserve + RESERVE_PILOT * pilot_size):
            tempering.say(0.0, f"pilot ensemble of {pilot_size}")
            with evaluate.ledger.reserving(reserve):
                runs.append(tempering.run(pilot_size, space, start, stage, 0))
            pilot, _ = space.latents(runs[0].ensemble.position)  # the whole ensemble may move in another space
            with evaluate.ledger.reserving(num_particles):
                space, start = starts.from_pilot(pilot)
            stage = 1
        runs.append(tempering.run(num_particles, space, start, stage, None))
        last = runs[-1]
        z, _ = space.latents(last.ensemble.position)
        apart = 0.0 if pilot is None else self._apart(rng, room, pilot, z, runs)
        if pilot is not None and apart > SHARES_DIFFER:
            tempering.go_on(last, space, start)
            z, _ = space.latents(last.ensemble.position)
            apart = self._apart(rng, room, pilot, z, runs)
        levels = [level for run in runs for level in run.levels]
        messages = _out_of_budget(runs, evaluate.limit) + missing_modes(starts.found, z) + shares_disagree(apart)
        if init is not None and starts.found is None:
            messages.append(
                "the budget of forward evaluations left none to search from init: raise max_forward_evaluations, or "
                "lower num_particles"
            )
        if len(runs) > 1:
            of_runs = [(run.log_evidence, _evidence_error(run.levels, len(run.log_weights))) for run in runs]
            messages += evidence_disagrees(of_runs[0], of_runs[1])
        return Posterior(
            draws=decode_all(problem.prior, z, evaluate.batch_size),
            z=z,
            log_likelihood=last.ensemble.log_likelihood,
            log_evidence=last.log_evidence,
            log_evidence_error=_evidence_error(last.levels, num_particles),
            num_forward_evaluations=evaluate.count - count,
            method="TemperedSMC",
            stats={
                "num_levels": len(levels),
                "num_cycles": sum(int(level["num_cycles"]) for level in levels),
                "jump_acceptance": levels[-1]["jump_acceptance"],
                "independence_acceptance": levels[-1]["independence_acceptance"],
                "correlation": levels[-1]["correlation"],
                "correlation_limit": levels[-1]["limit"],
                "weight_ess": levels[-1]["ess"] * num_particles,
                "num_failed": evaluate.num_failed - num_failed,
                **_of_search(starts.found),
                "levels": levels,
            },
            messages=messages,
            log_weights=last.log_weights,
        )

    def _apart(self, rng: np.random.Generator, room: int, pilot: Ensemble, whole: Ensemble, runs: list[_Run]) -> float:
        """How far the pilot's and the whole ensemble's shares of the modes lie apart, in standard errors."""
        shape, _ = best_fit(rng, np.asarray(pilot, float), self.num_components, room)
        places = fit(rng, np.asarray(pilot, float), shape, room)
        remembered = [float(run.levels[-1]["correlation"]) for run in runs]
        return shares_apart(places, (pilot, remembered[0]), (whole, remembered[1]))


def _of_search(found: Found | None) -> Statistics:
    """What the search for peaks did, for diagnostics."""
    if found is None:
        return {}
    return {"num_searches": found.num_searches, "num_peaks": len(found.peaks)}


@dataclasses.dataclass
class _Tempering:
    """What the runs of the pilot and of the whole ensemble share: settings, random numbers, simulator, references."""

    settings: TemperedSMC
    rng: np.random.Generator
    evaluate: Evaluator
    room: int  # for components of a mixture
    linearised: Reference | None
    dim: int
    dtype: np.dtype
    progress: Progress | None

    def say(self, fraction: float, words: str) -> None:
        if self.progress is not None:
            self.progress(fraction, words)

    def run(self, n: int, space: Space, start: Start | None, stage: int, reserve: int | None) -> _Run:
        """Temper `n` particles from the start to the posterior.

        `reserve`: evaluations to leave for the run that follows; None where this is the last one.
        """
        evaluate, rng, target_ess = self.evaluate, self.rng, self.settings.target_ess[stage]
        block, last, reserve = evaluate.batch_size, reserve is None, reserve or 0
        linearised = self.linearised if space.conditional is None else None  # it is one of z
        if start is None:
            position = rng.standard_normal((n, self.dim)).astype(self.dtype)
        else:
            position = start.sample(rng, n, space)
        ensemble = space.group(position)
        if not np.isfinite(ensemble.log_likelihood).any():
            raise ValueError(
                f"the likelihood is zero or not finite at all {n} starting particles: check the "
                "simulator and the data, widen the observation noise, or use more particles"
            )
        run = _Run(ensemble, 0.0, [], np.zeros(n))
        beta, cost = 0.0, 4 * n  # of a level; the first is a guess
        while beta < 1:
            before = evaluate.count
            affordable = evaluate.remaining - reserve >= cost
            weights = log_weights(start, run.ensemble, block)
            step, ess = largest_step(weights, 1 - beta, target_ess if affordable else 0.0)
            if not affordable and not (last and step >= 1 - beta and ess >= target_ess):
                run.stopped_at = beta
            beta = 1.0 if step >= 1 - beta else beta + step
            run.log_weights = np.where(np.isfinite(weights), step * weights, -np.inf)
            run.log_evidence += log_mean_exp(run.log_weights)
            chosen = systematic(rng.random(), run.log_weights)
            chosen = chosen[rng.permutation(n)]  # the halves of the ensemble must not sort the particles
            run.ensemble = Group(*(a[chosen] for a in run.ensemble))
            cycles = self._cycles(end=last and beta == 1)
            target = Target(np.asarray(beta, self.dtype), start)
            run.ensemble, mixed = mix(rng, space, target, run.ensemble, cycles, reference=linearised, reserve=reserve)
            cost = evaluate.count - before
            run.levels.append({"beta": beta, "ess": ess, "num_particles": n, "evaluations": cost, **mixed.record()})
            evaluate.reach(f"tempered to {beta:.3g} of 1", space.latents(run.ensemble.position)[0])
            self.say(beta, f"temperature {beta:.3g}")
        return run

    def go_on(self, run: _Run, space: Space, start: Start | None) -> None:
        """Move the ensemble of a finished run on, two thirds of the cycles that there may be or more."""
        before, cycles = self.evaluate.count, self._cycles(end=True)
        cycles = dataclasses.replace(cycles, least=max(cycles.least, cycles.most * 2 // 3))
        linearised = self.linearised if space.conditional is None else None
        target = Target(np.asarray(1.0, self.dtype), start)
        run.ensemble, mixed = mix(self.rng, space, target, run.ensemble, cycles, reference=linearised)
        last = run.levels[-1]
        run.levels[-1] = {
            **last,
            **mixed.record(),
            "evaluations": last["evaluations"] + self.evaluate.count - before,
            "num_cycles": last["num_cycles"] + mixed.num_cycles,
        }

    def _cycles(self, end: bool) -> Cycles:
        s = self.settings
        return Cycles(s.num_components, self.room, s.max_correlation[end], s.min_cycles[end], s.max_cycles[end])


def _out_of_budget(runs: list[_Run], limit: int | None) -> list[str]:
    """What the user should read where evaluations ran out."""
    stopped = [run.stopped_at for run in runs if run.stopped_at is not None]
    if not stopped and not any(level["out_of_budget"] for run in runs for level in run.levels):
        return []
    where = "before the moves had forgotten their start"
    if stopped:
        where = f"at temperature {stopped[0]:.2g} of 1: weights alone carried the particles on"
    return [f"the budget of forward evaluations ended {where}; raise max_forward_evaluations, or lower num_particles"]


def _evidence_error(levels: list[TemperingLevel], num_particles: int) -> float:
    """Standard error of the log evidence, the steps' weights taken as independent: ``sum (1 / ess - 1) / J``.

    An upper bound at a step from a start, whose draws are stratified. Del Moral, Doucet & Jasra (2006), section 3.2.1.
    """
    return float(np.sqrt(sum(1 / level["ess"] - 1 for level in levels) / num_particles))
