"""The diffusion waltz: noise, denoise, correct; exact moves in data space for any prior with conditional draws."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.random as jr
import numpy as np
from jaxtyping import Float

from enkg_ppl._checks import check_share, check_whole
from enkg_ppl.evaluation._blocks import block_size, in_blocks
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import Response
from enkg_ppl.linearise._noise import typical_noise
from enkg_ppl.posterior import Posterior
from enkg_ppl.priors import Prior, chunked_vmap
from enkg_ppl.problem import InverseProblem
from enkg_ppl.refinement._base import Progress, Refinement, check_halves, host_rng
from enkg_ppl.refinement._noising import Noising, Points, SlopePool
from enkg_ppl.refinement._stationarity import Snapshot, compare
from enkg_ppl.types import Ensemble, Key

Simulate = Callable[[Any], tuple[Float[np.ndarray, " particles"], Response]]

# The first step tries noise levels between these shares of the prior's widest standard deviation, in so many classes.
SEARCH = (1e-3, 1.0)
NUM_CLASSES = 8
# A step of log sigma is this times (acceptance - target) / sqrt(number of steps).
ADAPTATION = 2.0
# Log ratios below this: the simulator out there says nothing about its slope here.
HOPELESS = -100.0
# At this many of the prior's widest standard deviations a denoised particle has forgotten itself.
MAX_LEVEL = 10.0
# Innovations beyond this overflow when they are squared.
LARGEST = 1e100


@dataclasses.dataclass
class _Half:
    """One half of the ensemble, and what its moves have told about the simulator."""

    x: Points
    log_likelihood: Float[np.ndarray, " particles"]
    response: Response
    pool: SlopePool
    noising: Noising


class DiffusionWaltz(Refinement):
    """Exact moves for any prior with conditional draws: no ODE is solved, and no gradient is needed.

    A step noises a particle, ``x_t ~ N(x + s(x), sigma^2 (I - P))``, denoises it by a draw ``x' ~ p(x0 | x_t)`` of the
    prior, simulates it, and accepts it with probability ``min(1, w(x') / w(x))``, where

        w(x) = L(x) N(x_t; x + s(x), sigma^2 (I - P)) / N(x_t; x, sigma^2 I).

    (x, x_t) has the density ``p(x) L(x) N(x_t; x + s(x), sigma^2 (I - P))``. In it x_t is drawn given x, and x given
    x_t by an independence move whose proposal is ``p(x) N(x_t; x, sigma^2 I)``, normalised. Shift s and share P make w
    nearly constant where the simulator is nearly linear (`enkg_ppl.refinement._noising`); they come from the other half
    of the ensemble. A step costs one forward evaluation a particle. Conditional draws of a network are as exact as
    their reverse SDE.

    The ensemble moves until it is decorrelated from its state some rounds ago and has not drifted since, or for
    `max_rounds`, or until evaluations run out; in the last two cases the posterior's messages say so.

    Attributes:
        max_rounds: largest number of rounds.
        steps_per_round: steps of a round.
        acceptance: the share of accepted moves that sigma is adapted to.
        spread: standard deviation of log sigma over the particles of a step; its smaller values serve places where the
            posterior is narrower than elsewhere.
        max_correlation: largest rank correlation that counts as decorrelated (never less than ``3 / sqrt(particles)``).
        min_drift_p: smallest p-value of the test for drift that counts as no drift.
        num_draw_steps: reverse-SDE steps of a conditional draw, where the prior has none in closed form.

    Source: the waltz and its shift by an ensemble Kalman gain: Takao et al. (2026), "Noise, Denoise, Correct". Leaving
    out the share P of the noise, and the shift that goes with it, is new here.
    """

    max_rounds: int = eqx.field(static=True, default=30)
    steps_per_round: int = eqx.field(static=True, default=10)
    acceptance: float = eqx.field(static=True, default=0.3)
    spread: float = eqx.field(static=True, default=0.6)
    max_correlation: float = eqx.field(static=True, default=0.15)
    min_drift_p: float = eqx.field(static=True, default=0.05)
    num_draw_steps: int = eqx.field(static=True, default=8)

    def __check_init__(self):
        counts, shares = ("max_rounds", "steps_per_round"), ("acceptance", "max_correlation", "min_drift_p")
        check_whole("DiffusionWaltz", **{name: getattr(self, name) for name in (*counts, "num_draw_steps")})
        check_share("DiffusionWaltz", **{name: getattr(self, name) for name in shares})
        if not self.spread >= 0:
            raise ValueError(f"DiffusionWaltz needs spread >= 0; got spread={self.spread}")

    def evaluator(self, problem: InverseProblem, evaluate: Evaluator) -> Evaluator:
        return evaluate  # it moves in the prior's own space

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
        """Draw `num_particles` times from the posterior; see `Refinement.run`.

        Args:
            key: random key.
            problem: the inverse problem.
            num_particles: number of draws.
            guided: an ensemble near the posterior, shape (J, dim).
            evaluator: simulates and counts, for `problem` itself.
            progress: called with the fraction done and a few words.

        Raises:
            ValueError: for fewer than four particles, and where no starting particle has a positive likelihood.
        """
        check_halves(self, num_particles)
        progress = progress or (lambda fraction, words: None)
        evaluate = _evaluator(problem, num_particles, evaluator)
        count, num_failed = evaluate.count, evaluate.num_failed
        rng = host_rng(key)
        waltz = _Waltz(self, rng, problem, evaluate, num_particles, guided)
        snapshots = [waltz.snapshot()]
        verdict, out_of_budget = None, False
        for round_ in range(self.max_rounds):
            for _ in range(self.steps_per_round):
                out_of_budget = not evaluate.affords(num_particles)
                if out_of_budget:
                    break
                waltz.step()
            snapshots.append(waltz.snapshot())
            verdict = compare(rng, snapshots, self.max_correlation)
            words = f"correlation {verdict.correlation:.2f}"
            evaluate.reach(f"moved for {waltz.num_steps} steps", snapshots[-1].x)
            progress((round_ + 1) / self.max_rounds, words)
            if out_of_budget or verdict.good(self.min_drift_p):
                break
        assert verdict is not None  # there is at least one round
        progress(1.0, f"{waltz.num_steps} steps")
        x: Any = snapshots[-1].x
        return Posterior(
            draws=x,
            log_likelihood=snapshots[-1].log_likelihood,
            num_forward_evaluations=evaluate.count - count,
            method="DiffusionWaltz",
            why_no_evidence="DiffusionWaltz moves within the posterior and gives no evidence; use TemperedSMC for it",
            stats={
                "num_steps": waltz.num_steps,
                "acceptance": waltz.recent_acceptance(self.steps_per_round),
                "sigma": waltz.sigma,
                "correlation": verdict.correlation,
                "correlation_limit": verdict.limit,
                "drift_p": verdict.drift_p,
                "num_failed": evaluate.num_failed - num_failed,
            },
            messages=self._messages(verdict, waltz.num_steps, out_of_budget),
        )

    def _messages(self, verdict, num_steps: int, out_of_budget: bool) -> list[str]:
        if verdict.good(self.min_drift_p):
            return []
        if verdict.drift_p is None:
            numbers = f"correlation {verdict.correlation:.2f}, {verdict.limit:.2f} allowed"
            how = f"the draws still remember their start ({numbers})"
        else:
            how = f"the ensemble was still drifting (p-value {verdict.drift_p:.3f}, {self.min_drift_p} needed)"
        why = "evaluations ran out" if out_of_budget else f"max_rounds={self.max_rounds} were over"
        remedy = "max_forward_evaluations" if out_of_budget else "max_rounds"
        return [
            f"DiffusionWaltz stopped after {num_steps} steps because {why}, while {how}: "
            f"raise {remedy}, or num_particles until TemperedSMC can be used"
        ]


class _Waltz:
    """The dance itself: both halves, the noise level and its adaptation."""

    def __init__(
        self,
        settings: DiffusionWaltz,
        rng: np.random.Generator,
        problem: InverseProblem,
        evaluate: Evaluator,
        num_particles: int,
        guided: Ensemble | None,
    ):
        self.settings, self.rng = settings, rng
        self.prior, self.block = problem.prior, evaluate.batch_size
        self.simulate = _simulator(problem, evaluate)
        x = _start(rng, problem.prior, num_particles, guided, self.block)
        if evaluate.remaining < num_particles:
            raise ValueError(
                f"DiffusionWaltz needs a forward evaluation for each of its {num_particles} starting particles; "
                f"{evaluate.remaining} are left: raise max_forward_evaluations, or use fewer particles"
            )
        x, log_likelihood, response = _usable(rng, x, *self.simulate(x))
        self.scale = float(problem.prior.scale)
        self.num_steps, self.acceptances = 0, []
        self.sigma = SEARCH[1] * self.scale
        m = response.prediction.shape[1]
        self.gamma = typical_noise(response.noise)
        self.halves = [
            _Half(x[rows], log_likelihood[rows], jax.tree.map(lambda a, r=rows: a[r], response),
                  SlopePool(problem.dim, m), Noising.plain(problem.dim, m))
            for rows in (slice(len(x) // 2), slice(len(x) // 2, None))
        ]  # fmt: skip

    def snapshot(self) -> Snapshot:
        return Snapshot(
            np.concatenate([half.x for half in self.halves]),
            np.concatenate([half.log_likelihood for half in self.halves]),
        )

    def recent_acceptance(self, num_steps: int) -> float:
        return float(np.mean(self.acceptances[-num_steps:])) if self.acceptances else 0.0

    def step(self) -> None:
        """One half after the other; then the noise level learns from both."""
        # Learning costs linear algebra: every step at first, then once a round.
        learn = self.num_steps < self.settings.steps_per_round or self.num_steps % self.settings.steps_per_round == 0
        levels, chances = [], []
        for half, other in (self.halves, self.halves[::-1]):
            if learn:
                half.noising = Noising.from_slope(other.pool.slope(), self.gamma)
            sigma = self._levels(len(half.x))
            chances.append(self._move(half, sigma))
            levels.append(sigma)
        chance = np.concatenate(chances)
        if self.num_steps == 0:
            self.sigma = _widest(np.concatenate(levels), chance, self.settings.acceptance)
        else:
            gain = ADAPTATION / self.num_steps**0.5
            self.sigma *= float(np.exp(gain * (chance.mean() - self.settings.acceptance)))
            self.sigma = min(self.sigma, MAX_LEVEL * self.scale)
        self.num_steps += 1
        self.acceptances.append(float(chance.mean()))

    def _levels(self, n: int) -> Float[np.ndarray, " particles"]:
        if self.num_steps == 0:
            low, high = np.log(SEARCH)
            return self.scale * np.exp(low + (high - low) * self.rng.permutation(n) / max(n - 1, 1))
        return self.sigma * np.exp(self.settings.spread * self.rng.standard_normal(n))

    def _move(self, half: _Half, sigma: Float[np.ndarray, " particles"]):
        """Noise, denoise, correct; returns the probabilities of acceptance."""
        x, noising = np.asarray(half.x, float), half.noising
        shift = noising.shift(_innovation(half.response), sigma)
        dtype = half.x.dtype
        x_t = (x + shift + noising.noise(self.rng.standard_normal(x.shape), sigma)).astype(dtype)
        seeds = self.rng.integers(0, 2**32, len(x), dtype=np.uint32)
        steps = self.settings.num_draw_steps
        proposal = in_blocks(_denoise, self.block, (self.prior, steps), x_t, sigma.astype(dtype), seeds)
        log_likelihood, response = self.simulate(proposal)
        new = np.asarray(proposal, float)
        log_ratio = log_likelihood - half.log_likelihood
        log_ratio += noising.log_density_ratio(x_t, new, noising.shift(_innovation(response), sigma), sigma)
        log_ratio -= noising.log_density_ratio(x_t, x, shift, sigma)
        # A failed simulation, or an overflow on the way to it, is a rejection.
        log_ratio = np.where(np.isfinite(log_likelihood) & ~np.isnan(log_ratio), log_ratio, -np.inf)
        accept = np.log(self.rng.random(len(x))) < log_ratio
        near = log_ratio > HOPELESS
        dg = np.asarray(response.prediction - half.response.prediction, float)[near]
        half.pool.add((new - x)[near], dg, sigma[near])
        half.x = np.where(accept[:, None], proposal, half.x)
        half.log_likelihood = np.where(accept, log_likelihood, half.log_likelihood)
        half.response = jax.tree.map(lambda a, b: np.where(accept[:, None], a, b), response, half.response)
        return np.exp(np.minimum(log_ratio, 0.0))


@eqx.filter_jit
def _denoise(prior: Prior, num_steps: int, x_t: Ensemble, sigma, seeds) -> Ensemble:
    return chunked_vmap(
        prior, lambda x, s, seed: prior.conditional_sample(jr.key(seed), x, s, num_steps), x_t, sigma, seeds
    )


@eqx.filter_jit
def _prior_draws(prior: Prior, seeds) -> Ensemble:
    return chunked_vmap(prior, lambda seed: prior.sample(jr.key(seed)), seeds)


def _evaluator(problem: InverseProblem, num_particles: int, evaluator: Evaluator | None) -> Evaluator:
    """The one that was handed over if it is for this problem; else one of our own with its account."""
    if evaluator is not None and evaluator.problem.prior is problem.prior:
        return evaluator
    if evaluator is None:
        return Evaluator(problem, block_size(num_particles))
    return Evaluator(problem, evaluator.batch_size, ledger=evaluator.ledger)


def _start(rng: np.random.Generator, prior: Prior, num_particles: int, guided, block: int) -> Points:
    """The guided ensemble, or prior draws."""
    if guided is None:
        seeds = rng.integers(0, 2**32, num_particles, dtype=np.uint32)
        return in_blocks(_prior_draws, block, (prior,), seeds)
    # The halves must not sort the particles; too few are repeated, too many left out.
    return np.asarray(guided)[np.resize(rng.permutation(len(guided)), num_particles)]


def _usable(rng: np.random.Generator, x: Points, log_likelihood, response: Response):
    """The particles, those where the simulation failed at the places of others: there they would wait for a way out."""
    usable = np.flatnonzero(np.isfinite(log_likelihood))
    if len(usable) == 0:
        raise ValueError(
            f"the likelihood is zero or not finite at all {len(x)} starting particles: check the "
            "simulator and the data, widen the observation noise, or use more particles"
        )
    places = np.arange(len(x))
    lost = ~np.isfinite(log_likelihood)
    places[lost] = rng.choice(usable, int(lost.sum()))
    return x[places], log_likelihood[places], jax.tree.map(lambda a: a[places], response)


def _simulator(problem: InverseProblem, evaluate: Evaluator) -> Simulate:
    """Log likelihoods and working responses; responses without data where the likelihood offers none."""
    one = jax.ShapeDtypeStruct((problem.dim,), problem.prior.location.dtype)
    try:
        jax.eval_shape(lambda x: problem.likelihood.response(problem.forward(x)), one)
    except TypeError:

        def plain(x: Any):
            none: Any = np.zeros((len(x), 0))
            return evaluate.log_likelihood(x), Response(none, none, none)

        return plain
    return evaluate.log_likelihood_and_response


def _innovation(response: Response) -> Float[np.ndarray, "particles m"]:
    innovation = np.asarray(response.observation, float) - np.asarray(response.prediction, float)
    innovation = np.clip(innovation, -LARGEST, LARGEST)
    return np.where(np.isnan(innovation), 0.0, innovation)


def _widest(sigma, chance, acceptance: float) -> float:
    """The largest class of noise levels that was accepted often enough; the smallest where none was."""
    order = np.argsort(sigma)
    classes = np.array_split(order, min(NUM_CLASSES, len(order)))
    levels = [float(np.exp(np.mean(np.log(sigma[rows])))) for rows in classes]
    enough = [level for level, rows in zip(levels, classes, strict=True) if chance[rows].mean() >= acceptance]
    return max(enough, default=levels[0])
