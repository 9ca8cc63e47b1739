"""One ensemble from prior to posterior: the guided flow, then a refinement."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax.numpy as jnp
import jax.random as jr
import numpy as np

from enkg_ppl._keywords import explain_keywords
from enkg_ppl.diagnostics._fields import NUM_PRIOR_DRAWS, EnsembleCheck, check_ensemble
from enkg_ppl.evaluation._black_box import watch_black_boxes
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.guidance import Correction, KalmanCorrection
from enkg_ppl.guidance._anneal import anneal
from enkg_ppl.guidance._guide import guide
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors import Prior, chunked_vmap
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement import AdaptiveImportanceSampling, DiffusionWaltz, EllipticalSlice, Refinement, TemperedSMC
from enkg_ppl.refinement._importance import attempt
from enkg_ppl.refinement._peaks import Found
from enkg_ppl.schedule import Schedule
from enkg_ppl.types import Ensemble, Key

# Levels of the guided flow where a refinement follows: as a proposal it need not be as good as where it is the result.
PROPOSAL_LEVELS = 8


class RunProgress(NamedTuple):
    """Callbacks that report the progress of a run.

    Attributes:
        guide: called as ``guide(level, num_levels)``.
        refine: called as ``refine(fraction, words)``.
    """

    guide: Callable[[int, int], None]
    refine: Callable[[float, str], None]


@explain_keywords("infer")
@watch_black_boxes()
def infer(
    key: Key,
    problem: InverseProblem,
    *,
    num_particles: int = 1024,
    correction: Correction | None = None,
    schedule: Schedule | None = None,
    refine: Literal["auto"] | Refinement | None = "auto",
    max_forward_evaluations: int | None = None,
    chunk_size: int | None = None,
    guided: bool = True,
    check: bool = True,
    init: Ensemble | None = None,
    evaluator: Evaluator | None = None,
    progress: RunProgress | None = None,
    last_look: bool = False,
) -> Posterior:
    """Draw `num_particles` times from the posterior of an inverse problem.

    Args:
        key: random key.
        problem: the inverse problem.
        num_particles: number of draws.
        correction: of the guided flow.
        schedule: noise levels of the guided flow (default: those of the correction).
        refine: "auto", a refinement, or None for the guided ensemble as it is.
        max_forward_evaluations: limit on simulator evaluations, never exceeded.
        chunk_size: particles simulated at a time, to bound memory.
        guided: False leaves the guided flow out (where the likelihood offers no working response).
        check: whether an unrefined guided ensemble is simulated once more, to test whether it is the posterior (see
            `enkg_ppl.diagnostics._fields`).
        init: latent vectors, shape (points, dim), within reach of known modes: the search for modes starts from them
            too, other refinements start with particles there.
        evaluator: simulates and counts, for this problem; its own limit holds where `max_forward_evaluations` is None.
        progress: callbacks that report the progress.
        last_look: whether the caller simulates the draws once more where they come without their simulated values
            (`Posterior.simulated`); an evaluation of each is then kept for that.

    Returns:
        A `Posterior`; its `stats` say what was chosen and why, its `messages` what should not be trusted, and where the
            budget cut the run short.

    Raises:
        ValueError: before anything is simulated, where the budget is too small for this many particles, or for the
            correction and the schedule that were asked for.
    """
    refinement, reason = choose(problem, num_particles) if refine == "auto" else (refine, "asked for")
    if refinement is None and not guided:
        raise ValueError("without the guided flow and without a refinement there is nothing to do: set refine")
    if init is not None and (refinement is None or not guided):
        raise ValueError("init needs a refinement and data that the guided flow can use: leave refine at 'auto'")
    evaluate = evaluator or Evaluator(problem, block_size(num_particles), chunk_size)
    ledger = evaluate.ledger
    before, failed_before, ledger.short = ledger.count, ledger.num_failed, False
    if max_forward_evaluations is not None:
        ledger.limit, ledger.whole_limit = before + max_forward_evaluations, max_forward_evaluations
    as_asked = correction is not None or schedule is not None
    kept_for_later = num_particles if last_look else 0
    posterior, found = None, None
    if refine == "auto" and guided and not as_asked and weighs(refinement, problem):
        posterior, found, reason = _weighted(
            key, problem, evaluate, num_particles, kept_for_later, init, None if progress is None else progress.refine
        )
    if posterior is None:
        with ledger.reserving(kept_for_later):
            posterior = _guided_and_refined(
                key,
                problem,
                evaluate,
                refinement,
                reason,
                num_particles=num_particles,
                correction=correction,
                schedule=schedule,
                guided=guided,
                check=check,
                init=init,
                found=found,
                progress=progress,
            )
    # One account for all stages: what each of them counted for itself is part of it.
    posterior.num_forward_evaluations = ledger.count - before
    posterior.stats["num_failed"] = ledger.num_failed - failed_before
    if ledger.num_skipped:
        posterior.stats["num_not_simulated"] = ledger.num_skipped
    if ledger.short and not any("max_forward_evaluations" in sentence for sentence in posterior.messages):
        posterior.messages.append(CUT_SHORT)
    return posterior


# Latent dimensions up to which weighted draws are tried: a mixture rarely fits well enough in more.
MOST_WEIGHTED = 32
# Evaluations a draw that must be left for tempering to do better than weighted draws that do not suffice.
WORTHWHILE = 8


def weighs(refinement: Refinement | None, problem: InverseProblem) -> bool:
    """Whether weighted draws are tried before this refinement."""
    return isinstance(refinement, TemperedSMC) and problem.dim <= MOST_WEIGHTED


def _weighted(
    key: Key,
    problem: InverseProblem,
    evaluate: Evaluator,
    num_particles: int,
    kept_for_later: int,
    init: Ensemble | None,
    progress: Callable[[float, str], None] | None,
) -> tuple[Posterior | None, Found | None, str]:
    """Weighted draws where they can be trusted, or nothing better can be paid for; else what the search found, and why
    there is more to do."""
    ledger, quick = evaluate.ledger, AdaptiveImportanceSampling()
    least = quick.least_evaluations(problem.dim)
    if ledger.remaining < least:
        raise ValueError(ledger.too_few(f"num_particles={num_particles}", least))
    tried = attempt(
        quick,
        jr.fold_in(key, 2),
        problem,
        num_particles=num_particles,
        evaluator=quick.evaluator(problem, evaluate),
        progress=progress,
        init=None if init is None else np.asarray(init),
        last_look=kept_for_later,
        only_if_sound=ledger.remaining > (WORTHWHILE + 2) * num_particles + kept_for_later,
    )
    posterior = tried.posterior
    if posterior is None:
        return None, tried.found, "the search for modes leaves a doubt on weighted draws"
    weights, worth = posterior.stats.get("weights", 0), posterior.stats.get("weight_ess", 0.0)
    come_to = f"{weights:,} weighted draws came to an effective size of {worth:,.0f}"
    if tried.fits or ledger.remaining < WORTHWHILE * num_particles + kept_for_later:
        posterior.stats = {"refinement": f"AdaptiveImportanceSampling: {come_to}", **posterior.stats}
        return posterior, tried.found, come_to
    return None, tried.found, f"{come_to}, or left a doubt"


def _guided_and_refined(
    key: Key,
    problem: InverseProblem,
    evaluate: Evaluator,
    refinement: Refinement | None,
    reason: str,
    *,
    num_particles: int,
    correction: Correction | None,
    schedule: Schedule | None,
    guided: bool,
    check: bool,
    init: Ensemble | None,
    found: Found | None,
    progress: RunProgress | None,
) -> Posterior:
    """The guided flow, and then the refinement."""
    ledger, as_asked = evaluate.ledger, correction is not None or schedule is not None
    least = LEAST if refinement is not None else 0 if as_asked else MIN_LEVELS + check
    if ledger.remaining < least * num_particles:
        raise ValueError(ledger.too_few(f"num_particles={num_particles}", least * num_particles))
    key_guide, key_refine = jr.split(key)
    flow, guiding, messages = None, None, []
    num_guided = num_particles if refinement is None else refinement.num_guided(num_particles, problem.dim)
    if guided and num_guided:
        guiding = None if progress is None else progress.guide
        # The check can be done without, for the sake of what the user asked for.
        kept = LEAST if refinement is not None else int(check and not as_asked)
        with ledger.reserving(kept * num_particles):
            if correction is None:
                correction, messages = _affordable(problem, schedule, num_guided, ledger.remaining, refinement)
            if correction is not None and not (refinement is None and check and not as_asked):
                flow = guide(
                    key_guide,
                    problem,
                    num_particles=num_guided,
                    correction=correction,
                    schedule=schedule,
                    evaluator=evaluate,
                    progress=guiding,
                )
    if refinement is None:
        if flow is None:  # as usual
            assert correction is not None  # the budget pays for two levels at least
            looks_at = functools.partial(_check, problem, evaluate)
            flow = anneal(key_guide, problem, correction, evaluate, num_particles, looks_at, guiding)
        elif check:
            _check(problem, evaluate, flow)
        flow.stats["refinement"] = "none: asked for"
        posterior = flow
    else:
        draws = None if flow is None else flow.draws
        options: dict[str, Any] = {}
        if isinstance(refinement, TemperedSMC):
            options["found"] = found
        if init is not None and isinstance(refinement, TemperedSMC | AdaptiveImportanceSampling):
            options["init"] = np.asarray(init)
        elif init is not None and draws is not None:
            rows = np.linspace(0, len(draws) - 1, min(len(init), len(draws))).astype(int)
            draws = jnp.asarray(draws).at[rows].set(jnp.asarray(init, draws.dtype)[: len(rows)])
        posterior = refinement.run(
            key_refine,
            problem,
            num_particles=num_particles,
            guided=draws,
            **options,
            evaluator=refinement.evaluator(problem, evaluate),
            progress=None if progress is None else progress.refine,
        )
        if flow is not None:
            posterior.method = f"{flow.method} + {posterior.method}"
        posterior.stats = {"refinement": f"{type(refinement).__name__}: {reason}", **posterior.stats}
    posterior.messages += messages
    return posterior


CUT_SHORT = "the budget of forward evaluations cut the run short: raise max_forward_evaluations, or lower num_particles"


def _check(problem: InverseProblem, evaluate: Evaluator, flow: Posterior) -> EnsembleCheck | None:
    """Simulate the guided ensemble once more, and enter what that says about it; None where the budget ends before."""
    if not evaluate.affords(flow.num_particles):
        flow.messages.append(
            "the budget left no evaluation to check the guided ensemble: raise max_forward_evaluations"
        )
        return None
    log_likelihood, response = evaluate.log_likelihood_and_response(flow.draws)
    prior_draws = None if problem.prior.grid is not None else _prior_draws(problem.prior)
    found = check_ensemble(flow.draws, *response, prior_draws, flow.slope)
    flow.log_likelihood = log_likelihood
    flow.stats |= found.stats()
    flow.messages += found.warnings()
    flow.num_forward_evaluations += flow.num_particles
    return found


def _prior_draws(prior: Prior) -> Ensemble:
    """For `check_ensemble`."""
    return _drawn(prior, jr.split(jr.key(0), NUM_PRIOR_DRAWS))


@eqx.filter_jit
def _drawn(prior: Prior, keys) -> Ensemble:
    return chunked_vmap(prior, lambda key: prior.rough_sample(key), keys)


LEAST = 4  # evaluations a draw that any refinement needs to be of use
MIN_LEVELS = 2  # of a guided flow


def _affordable(
    problem: InverseProblem, schedule: Schedule | None, num_guided: int, budget: float, refinement: Refinement | None
) -> tuple[Correction | None, list[str]]:
    """The default correction, with as many levels as half the budget pays for, and what the user should know of it.

    None where that is not even two. Levels that the user asked for stay.
    """
    if refinement is None:
        usual = KalmanCorrection.for_problem(problem)
    else:
        usual = KalmanCorrection(num_steps=PROPOSAL_LEVELS)
    if schedule is not None:
        return usual, []
    share = budget if refinement is None else budget / 2
    num_steps = int(min(usual.num_steps, share // num_guided))
    if num_steps == usual.num_steps:
        return usual, []
    of = f"to {num_steps} of {usual.num_steps} noise levels" if num_steps >= MIN_LEVELS else "altogether"
    message = (
        f"the budget of forward evaluations cut the guided flow {of}: raise max_forward_evaluations, or lower "
        "num_particles"
    )
    if num_steps < MIN_LEVELS:
        return None, [message]
    return dataclasses.replace(usual, num_steps=num_steps), [message]


# Particles a dimension that half the ensemble needs, for a reference fitted to it.
LEAST_PER_DIM = 4


def choose(problem: InverseProblem, num_particles: int) -> tuple[Refinement, str]:
    """The refinement for this latent space and this many particles, and the reason in a few words."""
    half, dim = num_particles // 2, problem.dim
    counts = f"half the ensemble has {half / dim:.3g} particles for each of {dim} dimensions"
    if half >= LEAST_PER_DIM * dim or half < 2 * LEAST_PER_DIM:
        return TemperedSMC(), f"{counts}, {LEAST_PER_DIM} are enough to fit the references of its moves"
    if problem.prior.has_transport:
        return EllipticalSlice(), f"{counts}, too few for TemperedSMC, which wants {LEAST_PER_DIM}"
    why = f"{counts}, too few for TemperedSMC, which wants {LEAST_PER_DIM}, and the prior has no closed transport"
    return DiffusionWaltz(), why
