"""Adaptive tempered sequential Monte Carlo with moves that need no gradient."""

from __future__ import annotations

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
from jax.scipy.special import logsumexp
from jaxtyping import Array, Float

from enkg_ppl._forward import Evaluator
from enkg_ppl._posterior import Posterior
from enkg_ppl._prior import Prior
from enkg_ppl._random import normals, uniforms
from enkg_ppl._refine._base import Progress, Refinement, decode, encode, standardised
from enkg_ppl._refine._moves import Group, Start, Target, jump, log_standard_normal, slice_move
from enkg_ppl._refine._reference import fit, inflated
from enkg_ppl._types import Ensemble, Key, Scalar

NUM_BISECTIONS = 60


class TemperedSMC(Refinement):
    """Exact posterior draws and the evidence, by tempering from a start to the posterior.

    The posterior in z, where the prior is N(0, I), is reached through ``q^(1 - beta) (N(z; 0, I) L)^beta``. Each
    beta is as large as keeps the effective sample size of the weights at `target_ess`; then the particles are
    resampled and moved until they have forgotten where they were resampled. The two halves of the ensemble move
    in turn, by label jumps and elliptical slices of a Student-t mixture fitted to the other half.

    `target_ess`: as a share of the particles. `num_components`: of the mixture.
    `max_correlation`, `max_cycles`: moves repeat until the largest correlation, over z, z^2 and the rank of the log
    likelihood, between the ensemble now and just after resampling is below this; (between, at the end).
    `prior_share`, `inflation`: where a guided ensemble is given, q is a mixture fitted to it, its covariances
    inflated, with this share of the prior mixed in, so that no mode of the posterior is lost.

    Sources: Del Moral, Doucet & Jasra (2006), J. R. Stat. Soc. B 68; the adaptive choice of beta: Jasra, Stephens,
    Doucet & Tsagaris (2011), section 3.3; the moves: see `enkg_ppl._refine._moves`.
    """

    target_ess: float = 0.5
    num_components: int = eqx.field(static=True, default=8)
    max_correlation: tuple[float, float] = eqx.field(static=True, default=(0.3, 0.15))
    min_cycles: tuple[int, int] = eqx.field(static=True, default=(1, 3))
    max_cycles: tuple[int, int] = eqx.field(static=True, default=(4, 12))
    prior_share: float = 0.2
    inflation: float = 2.0

    def __check_init__(self):
        if not 0 < self.target_ess < 1:
            raise ValueError(f"TemperedSMC needs 0 < target_ess < 1; got target_ess={self.target_ess}")
        if self.num_components < 1:
            raise ValueError(f"TemperedSMC needs num_components >= 1; got {self.num_components}")
        if not 0 < self.prior_share < 1:
            raise ValueError(f"TemperedSMC needs 0 < prior_share < 1; got prior_share={self.prior_share}")

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
                "TemperedSMC needs at least 4 particles, two in each half of the ensemble; "
                f"got num_particles={num_particles}"
            )
        progress = progress or (lambda fraction, words: None)
        evaluate = evaluator or Evaluator(standardised(problem), batch_size(num_particles))
        count, num_failed = evaluate.count, evaluate.num_failed
        key_start, key = jr.split(key)
        start, z = self._start(key_start, problem, num_particles, guided)
        log_likelihood = evaluate.log_likelihood(z)
        if not bool(jnp.any(jnp.isfinite(log_likelihood))):
            raise ValueError(
                f"the likelihood is zero or not finite at all {num_particles} starting particles: check the "
                "simulator and the data, widen the observation noise, or use more particles"
            )
        ensemble, beta, log_evidence = Group(z, log_likelihood), 0.0, 0.0
        trace: list[dict[str, float]] = []
        while beta < 1:
            key, key_resample, key_move = jr.split(key, 3)
            numbers = uniforms(key_resample, (num_particles + 1,), z.dtype)
            ensemble, beta, gain, ess = _reweight(numbers, ensemble, start, jnp.asarray(beta, z.dtype), self.target_ess)
            beta, log_evidence = float(beta), log_evidence + float(gain)
            ensemble, moved = self._move(key_move, evaluate, Target(jnp.asarray(beta, z.dtype), start), ensemble)
            trace.append({"beta": beta, "ess": float(ess), **moved})
            progress(beta, f"temperature {beta:.3g}, {evaluate.count:,} evaluations")
        x = _decode_all(problem.prior, ensemble.z)
        return Posterior(
            draws=x,
            log_likelihood=ensemble.log_likelihood,
            log_evidence=log_evidence,
            num_forward_evaluations=evaluate.count - count,
            method="TemperedSMC",
            stats={
                "num_levels": len(trace),
                "num_cycles": sum(int(level["num_cycles"]) for level in trace),
                "jump_acceptance": trace[-1]["jump_acceptance"],
                "correlation": trace[-1]["correlation"],
                "correlation_limit": self._limit(True, num_particles),
                "num_failed": evaluate.num_failed - num_failed,
                "levels": trace,
            },
        )

    def _start(self, key: Key, problem, num_particles: int, guided: Ensemble | None):
        """The first ensemble: prior draws, or draws of a mixture that covers the guided ensemble."""
        location = problem.prior.location
        if guided is None:
            return None, jnp.asarray(normals(key, (num_particles, problem.dim), location.dtype))
        key_fit, key_draw = jr.split(key)
        z = _encode_all(problem.prior, guided)
        mixture = fit(key_fit, z, self._components(guided.shape[0], problem.dim))
        start = Start(inflated(mixture, self.inflation), self.prior_share)
        return start, start.sample(key_draw, num_particles)

    def _components(self, num_particles: int, dim: int) -> int:
        """A component wants a few particles a dimension; with fewer, one Gaussian-like ellipse is better."""
        return max(1, min(self.num_components, num_particles // (2 * (dim + 1))))

    def _limit(self, last: bool, num_particles: int) -> float:
        # Correlations of independent ensembles scatter by 1 / sqrt(J): no use in waiting for less.
        return max(self.max_correlation[last], 3 / num_particles**0.5)

    def _move(self, key: Key, evaluate: Evaluator, target: Target, ensemble: Group):
        """Cycles of jump and slice on each half in turn, until the resampled places are forgotten."""
        last = bool(target.beta == 1)
        num_particles, dim = ensemble.z.shape
        features = _features(*ensemble)
        half = num_particles // 2
        halves = [Group(*(a[:half] for a in ensemble)), Group(*(a[half:] for a in ensemble))]
        cycle, correlation, acceptance = 0, 1.0, jnp.asarray(0.0)
        while cycle < self.min_cycles[last] or (
            cycle < self.max_cycles[last] and correlation > self._limit(last, num_particles)
        ):
            for k in (0, 1):
                key_fit, key_jump, key_slice = jr.split(jr.fold_in(key, 2 * cycle + k), 3)
                other = halves[1 - k].z
                reference = fit(key_fit, other, self._components(other.shape[0], dim))
                halves[k], acceptance = jump(key_jump, evaluate, target, reference, halves[k])
                halves[k] = slice_move(key_slice, evaluate, target, reference, halves[k])
            cycle += 1
            ensemble = Group(*(jnp.concatenate(pair) for pair in zip(*halves, strict=True)))
            correlation = float(_largest_correlation(features, _features(*ensemble)))
        moved = {"num_cycles": cycle, "correlation": correlation, "jump_acceptance": float(acceptance)}
        return ensemble, moved


def batch_size(num_particles: int) -> int:
    """Particles that are simulated at a time: half the ensemble, rounded up."""
    return -(-num_particles // 2)


@eqx.filter_jit
def _decode_all(prior: Prior, z: Ensemble) -> Ensemble:
    return jax.vmap(lambda z: decode(prior, z))(z)


@eqx.filter_jit
def _encode_all(prior: Prior, x: Ensemble) -> Ensemble:
    return jax.vmap(lambda x: encode(prior, x))(x)


@eqx.filter_jit
def _reweight(numbers, ensemble: Group, start: Start | None, beta, target_ess: float):
    """Raise beta until the weights' effective sample size falls to the target, and resample.

    Returns the resampled ensemble, the new beta, the gain in log evidence and the effective sample size (share).
    """
    n = ensemble.z.shape[0]
    log_start = jax.vmap(log_standard_normal if start is None else start.log_prob)(ensemble.z)
    log_weight = jax.vmap(log_standard_normal)(ensemble.z) - log_start + ensemble.log_likelihood
    finite = jnp.isfinite(log_weight)

    def increment(step):
        return jnp.where(finite, step * jnp.where(finite, log_weight, 0.0), -jnp.inf)

    def ess(step):
        w = increment(step)
        return jnp.exp(2 * logsumexp(w) - logsumexp(2 * w)) / n

    # Particles of zero likelihood are gone at any beta > 0: the target counts from those that are left.
    goal = target_ess * jnp.minimum(1.0, jnp.mean(finite))

    def halve(_, bracket):
        low, high = bracket
        middle = 0.5 * (low + high)
        enough = ess(middle) >= goal
        return jnp.where(enough, middle, low), jnp.where(enough, high, middle)

    room = jnp.asarray(1.0 - beta, log_weight.dtype)
    low, _ = jax.lax.fori_loop(0, NUM_BISECTIONS, halve, (jnp.zeros_like(room), room))
    reaches_end = ess(room) >= goal
    step = jnp.where(reaches_end, room, jnp.maximum(low, jnp.finfo(room.dtype).tiny))
    w = increment(step)
    beta = jnp.where(reaches_end, 1.0, beta + step)
    # In random order: the halves of the ensemble must not sort the particles.
    chosen = _systematic(numbers[0], jax.nn.softmax(w))[jnp.argsort(numbers[1:])]
    resampled = Group(ensemble.z[chosen], ensemble.log_likelihood[chosen])
    return resampled, beta, logsumexp(w) - jnp.log(n), ess(step)


def _systematic(offset: Scalar, weights: Float[Array, " particles"]):
    """Indices of a systematic resample: n equally spaced points, one random offset in [0, 1)."""
    n = weights.shape[0]
    points = (jnp.arange(n) + offset) / n
    return jnp.clip(jnp.searchsorted(jnp.cumsum(weights), points), 0, n - 1)


@eqx.filter_jit
def _features(z: Ensemble, log_likelihood: Float[Array, " particles"]) -> Float[Array, "particles features"]:
    """z, z^2 and the rank of the log likelihood, standardised over the ensemble."""
    rank = jnp.argsort(jnp.argsort(log_likelihood)).astype(z.dtype)
    features = jnp.concatenate([z, z**2, rank[:, None]], axis=1)
    centred = features - jnp.mean(features, axis=0, keepdims=True)
    sd = jnp.std(features, axis=0, keepdims=True)
    return centred / jnp.where(sd > 0, sd, 1.0)


@jax.jit
def _largest_correlation(a, b) -> Scalar:
    return jnp.max(jnp.abs(jnp.mean(a * b, axis=0)))
