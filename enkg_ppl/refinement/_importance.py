"""Independent draws from a proposal that learns from every simulation made so far, weighted to be exact."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import equinox as eqx
import jax
import numpy as np
from jaxtyping import Float, Int

from enkg_ppl._checks import check_share, check_whole
from enkg_ppl.diagnostics._weights import effective_size, pareto_khat
from enkg_ppl.evaluation._blocks import block_size
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import Response
from enkg_ppl.mixtures._fit import DFS, Shape, best_shape, equal_draws, fit
from enkg_ppl.mixtures._student import Reference, around, inflated
from enkg_ppl.posterior import Posterior, WeightedSample
from enkg_ppl.priors import Prior
from enkg_ppl.priors._coordinates import decode_all, encode_all
from enkg_ppl.refinement._base import Progress, Refinement, host_rng, standardised
from enkg_ppl.refinement._missing import ended_beside, evidence_disagrees, missing_modes
from enkg_ppl.refinement._peaks import Found, Peak, find_peaks, nearest_peak
from enkg_ppl.refinement._pool import Halves, Pool, Proposal
from enkg_ppl.refinement.moves._space import log_standard_normal
from enkg_ppl.refinement.moves._steps import log_mean_exp
from enkg_ppl.types import Ensemble, Key

# Draws of the prior that searches begin from: per basin of a few dimensions, and at most.
PRIOR_DRAWS, MOST_PRIOR_DRAWS = 128, 512
AMPLE = 8  # evaluations for each draw of the prior that must be left to search again
LEAST_ROUND, ROUND_PER_DIM = 64, 8  # draws of the first round; others at least as many
POOR = 0.25  # efficiency of a proposal that is not drawn from at length
LEAST_GROWTH = 0.25  # of all evaluations so far, that a round adds at least; it adds as many at most
LEAST_EFFECTIVE = 100  # draws, however few are asked for: fewer do not tell whether the proposal fits
FEW = 30  # effective draws, with fewer of which the weights are flattened for the resampling too
SOUND_KHAT, LARGEST_KHAT = 0.5, 0.7  # weights whose variance is finite; whose averages can be trusted
# Flattened weights that a mixture is fitted to are worth this many draws a dimension.
FITTED_PER_DIM = 16
SIZES = (1, 2, 4, 8, 16, 32)
MOST_TO_COMPARE = 2048  # draws by which shapes are chosen
INFLATED, LEAST_WEIGHT = 1.5, 0.1  # covariances around peaks; their least relative weight
# Share of a wide twin of the mixture, and its covariance: tails that no point has shown are not in any fit.
TAIL_SHARE, TAILS = 0.15, 3.0
PEAK_SHARE = 0.1  # of every proposal, around the peaks where there are several: a fit may forget one
# Evaluations a particle until it is asked whether it gets anywhere; rounds of which the best counts, and how many times
# its efficiency is hoped for.
FREE, PATIENCE, HOPEFUL = 4, 3, 4.0
NEAR = 0.5  # power that the weights must come to until then


class Attempt(NamedTuple):
    """`posterior`: as far as it got, None where there was nothing to begin from. `fits`: whether it can be trusted."""

    posterior: Posterior | None
    fits: bool
    found: Found | None


@dataclasses.dataclass
class _Round:
    """What the weights say after a round."""

    ess: float  # effective size of all weights
    target: float  # what it should come to
    khat: float
    efficiency: float  # of the draws of this round
    flattening: float  # power of the weights that mixtures are fitted under, 1 where they can be used as they are

    @property
    def is_enough(self) -> bool:
        """Whether the draws can be trusted; the heavier the tail of the weights, the more of them there must be."""
        surplus = max(self.khat - SOUND_KHAT, 0.0) / (LARGEST_KHAT - SOUND_KHAT)
        return self.khat < LARGEST_KHAT and self.ess >= (1 + surplus) * self.target


class AdaptiveImportanceSampling(Refinement):
    """Exact posterior draws and the evidence, from weighted draws of a mixture that adapts to all evaluations so far.

    Searches from prior draws find the peaks; a Student-t mixture around them is the first proposal. Each round draws
    from the proposal, weights all evaluations made so far by the mean density of all proposals, and fits the next
    mixture to the weighted points. It ends when the effective size of the weights suffices and they have no heavy tail.
    The draws are resampled from the weighted set, so some repeat; the evidence uses all of it.

    No draw is moved by a Markov chain, so a draw costs one or two simulations where the mixture fits. Where it does not
    fit, in many dimensions or on thin curved ridges, the weights show it, and `refine="auto"` continues with
    `TemperedSMC`.

    Attributes:
        effective_share: effective size at which it ends, as a share of the particles.
        num_components: largest number of components of the mixture.
        defensive_weight: weight of the prior in each proposal, which bounds the importance weights.
        max_evaluations: for each particle, after which it gives up.

    Sources: Cornuet, Marin, Mira & Robert (2012), Scand. J. Stat. 39, 798; k-hat of the weights: Vehtari, Simpson,
    Gelman, Yao & Gabry (2024), J. Mach. Learn. Res. 25; weights that are flattened for the fit: Koblents & Miguez
    (2015), Stat. Comput. 25, 407.
    """

    effective_share: float = eqx.field(static=True, default=0.9)
    num_components: int = eqx.field(static=True, default=32)
    defensive_weight: float = eqx.field(static=True, default=0.05)
    max_evaluations: float = eqx.field(static=True, default=24.0)

    def __check_init__(self):
        name = type(self).__name__
        check_share(name, effective_share=self.effective_share, defensive_weight=self.defensive_weight)
        check_whole(name, num_components=self.num_components)
        if not self.max_evaluations > 0:
            raise ValueError(f"AdaptiveImportanceSampling needs max_evaluations > 0; got {self.max_evaluations}")

    def num_guided(self, num_particles: int, dim: int) -> int:
        return 0

    def least_evaluations(self, dim: int) -> int:
        """Smallest number of evaluations with which it can run.

        Args:
            dim: length of the latent vector.
        """
        return 2 * max(LEAST_ROUND, ROUND_PER_DIM * (dim + 1))

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
        """
        made = attempt(
            self, key, problem, num_particles=num_particles, evaluator=evaluator, progress=progress, init=init
        )
        if made.posterior is None:
            raise ValueError(
                "importance sampling found no point of finite likelihood to begin from: check the simulator and the "
                "data, or leave refine at 'auto'"
            )
        return made.posterior


def attempt(
    settings: AdaptiveImportanceSampling,
    key: Key,
    problem,
    *,
    num_particles: int,
    evaluator: Evaluator | None = None,
    progress: Progress | None = None,
    init: Ensemble | None = None,
    only_if_sound: bool = False,
    last_look: int = 0,
) -> Attempt:
    """As `AdaptiveImportanceSampling.run`, and whether the result can be trusted.

    `only_if_sound`: whether to leave it where the search for modes has cast a doubt on whatever could follow.
    `last_look`: evaluations to leave over where what is simulated is too much to be kept for the draws.
    """
    evaluate = evaluator or Evaluator(standardised(problem), block_size(num_particles))
    before, failed_before = evaluate.count, evaluate.num_failed
    dtype = np.dtype(problem.prior.location.dtype)
    sampling = _Sampling(
        settings, host_rng(key), evaluate, Halves(problem.dim), dtype, num_particles, last_look, progress
    )
    known = None if init is None else encode_all(problem.prior, init, evaluate.batch_size)
    found = sampling.search(known)
    if found is None or not found.peaks or (only_if_sound and (found.rugged or not found.settled)):
        return Attempt(None, False, found)
    rounds = sampling.adapt(found)
    if not rounds:
        return Attempt(None, False, found)
    posterior, fits = sampling.resampled(problem.prior, found, rounds)
    posterior.num_forward_evaluations = evaluate.count - before
    posterior.stats["num_failed"] = evaluate.num_failed - failed_before
    return Attempt(posterior, fits, found)


@dataclasses.dataclass
class _Sampling:
    """What the rounds share."""

    settings: AdaptiveImportanceSampling
    rng: np.random.Generator
    evaluate: Evaluator
    pool: Halves
    dtype: np.dtype
    num_particles: int
    last_look: int
    progress: Progress | None
    several: tuple[Peak, ...] = ()  # peaks, where there is more than one
    shape: Shape | None = None
    chosen_at: int = 0  # evaluations when the shape was chosen
    so_far: float = 0.0  # as a share of what is to be done

    @property
    def target(self) -> float:
        """Effective size that is wanted."""
        return max(self.settings.effective_share * self.num_particles, LEAST_EFFECTIVE)

    def proposal(self, reference: Reference, peaks: Reference | None) -> Proposal:
        """The fitted mixture with its wide twin, the peaks where there are several, and the prior."""
        tails = inflated(reference, TAILS, DFS[0])
        others = [(TAIL_SHARE, tails), (self.settings.defensive_weight, None)]
        if peaks is not None:
            others.append((PEAK_SHARE, peaks))
        return Proposal(((1 - sum(share for share, _ in others), reference), *others))

    @property
    def to_fit(self) -> float:
        """Effective size of the weights that a mixture can be fitted to."""
        return min(FITTED_PER_DIM * (self.dim + 1), self.target)

    def say(self, fraction: float, words: str) -> None:
        self.so_far = max(self.so_far, min(fraction, 1.0))  # the effective size may fall when a tail is found
        if self.progress is not None:
            self.progress(self.so_far, words)

    def search(self, init: Ensemble | None) -> Found | None:
        """Draw from the prior, and look for peaks from there; once more where that leaves a doubt."""
        self.say(0.0, "searching for modes")
        size = min(PRIOR_DRAWS * 2 ** min(self.dim, 10), MOST_PRIOR_DRAWS, max(self.num_particles, LEAST_ROUND))
        found, drawn = None, []
        for _ in range(2):
            part = int(min(size, self.evaluate.remaining / 4)) // 2 * 2
            if part < 4:
                break
            drawn.append(self._evaluated([Proposal()] * 2, part))
            z, response = (
                jax.tree.map(lambda *parts: np.concatenate(parts), *pieces) for pieces in zip(*drawn, strict=True)
            )
            self.evaluate.reach("searching for modes", z)
            spare = 0.5 * self.evaluate.remaining
            found = find_peaks(self.rng.spawn(1)[0], self.evaluate, z, response, self.num_particles, spare, init)
            is_clear = found is not None and found.settled and not found.rugged
            if is_clear or self.evaluate.remaining < AMPLE * part:  # weights need something too
                break
        return found

    def adapt(self, found: Found) -> list[_Round]:
        """Rounds of draws, each from mixtures fitted to all that came before, until it is enough or there is no more to
        be had."""
        self.several = found.several
        start = _around(found, self.dtype)
        references, peaks = (start, start), start if found.several else None
        rounds: list[_Round] = []
        size = self.affordable(self.least_round)
        while size:
            drawn = self.draw([self.proposal(reference, peaks) for reference in references], size)
            rounds.append(self.look(size))
            now = rounds[-1]
            words = f"{now.ess:,.0f} of {now.target:,.0f} effective draws"
            self.evaluate.reach(words, drawn)
            self.say(now.ess / now.target, words)
            size = self.next_size(rounds)
            if size and (now.flattening == 1 or now.efficiency < POOR):  # else rather more draws from a good proposal
                references = self.refit(now)
        return rounds

    def resampled(self, prior: Prior, found: Found, rounds: list[_Round]) -> tuple[Posterior, bool]:
        """Equally weighted draws, and whether they can be trusted."""
        last, pool = rounds[-1], self.pool
        power = 1.0 if last.ess >= FEW else last.flattening  # a handful of points would say less than wider draws
        chosen = pool.resample(self.rng, self.num_particles, power)
        points, again = np.unique(chosen, return_inverse=True)
        z = pool.z[points].astype(self.dtype)
        messages = missing_modes(found, z[again], weighted=True)
        if last.is_enough:
            first, second = pool.log_evidences()
            messages += evidence_disagrees(first, second, ("one half of the weighted draws", "the other"))
        doubts = found.rugged or not found.settled or ended_beside(found, z[again])
        fits = last.is_enough and not doubts and not messages
        if last.is_enough:
            self.evaluate.ledger.short = False  # what could not be paid for was not needed
        else:
            messages.append(self._not_enough(last, power))
        calibrated = pool.calibrated_log_weights()
        log_likelihood = pool.log_target[points] - log_standard_normal(np.asarray(z, float))
        posterior = Posterior(
            draws=decode_all(prior, z, self.evaluate.batch_size)[again],
            z=z[again],
            log_likelihood=log_likelihood[again].astype(self.dtype),
            log_evidence=log_mean_exp(calibrated),
            log_evidence_error=float(np.sqrt(max(1 / last.ess - 1 / len(pool), 0.0))),
            num_forward_evaluations=0,
            method="AdaptiveImportanceSampling",
            stats={
                "num_rounds": len(rounds),
                "weight_ess": last.ess,
                "weights": len(pool),
                "num_searches": found.num_searches,
                "num_peaks": len(found.peaks),
            },
            messages=messages,
            log_weights=pool.log_weights(),
            simulated=pool.simulated_at(chosen),
            weighted=WeightedSample(pool.z, calibrated, pool.simulated_at(np.arange(len(pool)))),
        )
        return posterior, fits

    def _not_enough(self, last: _Round, power: float) -> str:
        """What the user should read where the draws are worth less than was wanted."""
        short = self.evaluate.ledger.short
        ended = "the budget of forward evaluations ended" if short else "weighted draws came to nothing more"
        remedy = "raise max_forward_evaluations, or lower num_particles" if short else "leave refine at 'auto'"
        wider = "" if power == 1 else f", so they are wider than the posterior (its power {power:.2g})"
        worth = f"the draws are worth {last.ess:,.0f} independent ones and {last.target:,.0f} were due"
        return f"{ended} where {worth}{wider}; {remedy}"

    @property
    def dim(self) -> int:
        return self.pool.pools[0].z.shape[1]

    @property
    def least_round(self) -> int:
        """Draws of the first round."""
        return max(LEAST_ROUND, ROUND_PER_DIM * (self.dim + 1))

    def draw(self, proposals: Sequence[Proposal], size: int) -> Ensemble:
        """Half of the draws from each proposal, for its own pool."""
        return self._evaluated(proposals, size)[0]

    def _evaluated(self, proposals: Sequence[Proposal], size: int) -> tuple[Ensemble, Response]:
        parts = [proposal.sample(self.rng, size // 2, self.dim).astype(self.dtype) for proposal in proposals]
        z = np.concatenate(parts)
        log_likelihood, response, simulated = self.evaluate.all_of(z)
        start = 0
        for pool, proposal, part in zip(self.pool.pools, proposals, parts, strict=True):
            rows = slice(start, start + len(part))
            start += len(part)
            own = jax.tree.map(lambda a, rows=rows: a[rows], simulated)
            pool.add(proposal, np.asarray(part, float), log_likelihood[rows], own)
        return z, response

    def look(self, size: int) -> _Round:
        """What the weights say after a round of this size."""
        log_weights = self.pool.log_weights()
        khat = pareto_khat(log_weights)
        latest = np.concatenate([pool.log_weights()[-(size // 2) :] for pool in self.pool.pools])
        return _Round(
            ess=effective_size(log_weights),
            target=self.target,
            khat=-np.inf if np.isnan(khat) else khat,  # equal weights have no tail
            efficiency=effective_size(latest) / size,
            flattening=flattening(log_weights, self.to_fit),
        )

    def next_size(self, rounds: list[_Round]) -> int:
        """Draws of the next round; 0 where there is none, as all is well, or nothing gets better, or is left to pay."""
        now, total = rounds[-1], len(self.pool)
        if now.is_enough:
            return 0
        unit = max(self.num_particles, LEAST_EFFECTIVE)
        hoped = HOPEFUL * max(one.efficiency for one in rounds[-PATIENCE:])
        projected = total + (self.target - now.ess) / max(hoped, 1e-9)
        hopeless = now.flattening < NEAR or max(total, projected) > self.settings.max_evaluations * unit
        if total > FREE * unit and hopeless:
            return 0
        least = self.least_round
        if now.efficiency < POOR:  # another fit helps more than more draws from this one
            return self.affordable(int(max(2 * least, LEAST_GROWTH * total)))
        wanted = self.target if now.flattening == 1 else min(self.target, self.to_fit)
        needed = 1.05 * (wanted - now.ess) / max(now.efficiency, now.ess / total)
        return self.affordable(int(np.clip(needed, LEAST_ROUND, max(total, least))))

    def affordable(self, size: int) -> int:
        """So many draws, or what is left to pay; 0 where that is hardly any."""
        reserve = 0 if self.pool.keeps(size) else self.last_look
        if not self.evaluate.affords(size + reserve):
            size = int(self.evaluate.remaining - reserve)
        return size // 2 * 2 if size >= LEAST_ROUND // 4 else 0

    def refit(self, now: _Round) -> tuple[Reference, Reference]:
        """For each pool the mixture that fits what has weight in the other one.

        Its shape is chosen anew when there are twice as many evaluations.
        """
        if self.shape is None or len(self.pool) > 1.9 * self.chosen_at:
            self.chosen_at, self.shape = len(self.pool), None
        one, other = (self._fitted(pool, now) for pool in self.pool.pools)
        return other, one

    def _fitted(self, pool: Pool, now: _Round) -> Reference:
        d = self.dim
        flat = now.flattening * pool.log_weights()
        weights = np.exp(flat - flat.max())
        used = weights > 1e-8
        z, weights, size = pool.z[used], weights[used], effective_size(flat)
        weights *= size / weights.sum()
        if self.shape is None:
            sizes = [k for k in SIZES if k <= max(1, min(self.settings.num_components, size // (2 * (d + 1))))]
            shapes = [Shape(k, df) for k in sizes for df in DFS]
            few, worth = z, weights
            if len(z) > MOST_TO_COMPARE:
                few = equal_draws(self.rng, z, weights * MOST_TO_COMPARE / size)
                worth = np.full(len(few), size / len(few))
            self.shape = best_shape(self.rng, few, shapes, sizes[-1], self._labels(few), worth)[0]
        return fit(self.rng, z, self.shape, self.shape.size, self._labels(z), weights)

    def _labels(self, z: Ensemble) -> Int[np.ndarray, " particles"] | None:
        """The peak that each point belongs to; None where there is only one."""
        return nearest_peak(self.several, z) if self.several else None


def flattening(log_weights: Float[np.ndarray, " points"], least: float) -> float:
    """The largest power of the weights, at most 1, under which they are worth this many draws, or half of them."""
    values = log_weights[np.isfinite(log_weights)]
    least = min(least, 0.5 * len(values))
    low, high = 0.0, 1.0
    if effective_size(values) >= least:
        return 1.0
    for _ in range(30):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if effective_size(middle * values) >= least else (low, middle)
    return low


def _around(found: Found, dtype) -> Reference:
    """A component for each peak, somewhat wider than Laplace's approximation.

    Also for those that Laplace thinks nothing of: a search may end on the slope of a mode that it did not reach.
    """
    peaks, best = found.peaks, found.peaks[0].log_evidence
    evidence = np.array([peak.log_evidence for peak in peaks])
    # Between what Laplace says of their masses and equal ones: the approximation may be far off.
    weights = np.exp(np.maximum(evidence - best, np.log(LEAST_WEIGHT)))
    covariances = INFLATED * np.stack([peak.chol @ peak.chol.T for peak in peaks])
    return around(np.stack([peak.z for peak in peaks]), covariances, weights, DFS[0], dtype)
