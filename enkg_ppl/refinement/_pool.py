"""All evaluations of a run as one weighted sample, whichever proposals they came from."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Float, Int

from enkg_ppl.diagnostics._weights import effective_size
from enkg_ppl.mixtures._student import Reference
from enkg_ppl.refinement.moves._space import log_standard_normal
from enkg_ppl.refinement.moves._steps import log_mean_exp, systematic
from enkg_ppl.refinement.moves._stratified import draws_of, normals, shared_out
from enkg_ppl.types import AnyArray, Ensemble

# Calibration of weights: points for each variate at least, ridge as a share of variances, the least factor, and the
# share of the effective size that must be left.
LEAST_PER_VARIATE, RIDGE, LEAST_FACTOR, LEAST_KEPT = 10, 1e-4, 0.1, 0.9
SURPRISING = 5.0  # standard deviations of a chi-square, beyond which means of variates are no chance
MOST_BYTES = 2**30  # of what was simulated, kept for the draws


class Proposal(NamedTuple):
    """A mixture of mixtures, each with its share; None for the prior N(0, I), which bounds the weights."""

    parts: tuple[tuple[float, Reference | None], ...] = ((1.0, None),)

    def log_prob(self, z: Ensemble) -> Float[np.ndarray, " particles"]:
        z = np.asarray(z, float)
        parts = [
            np.log(share) + (log_standard_normal(z) if part is None else part.log_prob_all(z))
            for share, part in self.parts
        ]
        return np.logaddexp.reduce(parts, axis=0)

    def sample(self, rng: np.random.Generator, n: int, dim: int) -> Ensemble:
        """Each part has its share of the draws to the nearest one, above or below at random: on average just that."""
        which = shared_out(rng, np.array([share for share, _ in self.parts]), n)
        counts = np.bincount(which, minlength=len(self.parts))
        return np.concatenate([
            normals(rng, count, dim) if part is None else draws_of(rng, part, count)
            for count, (_, part) in zip(counts, self.parts, strict=True)
        ])  # fmt: skip


class Pool:
    """Evaluations with deterministic-mixture weights: the target over the mean density of all proposals.

    So a point that a poor proposal drew weighs what it should under the good one that came later, and nothing that
    was paid for is thrown away.

    `z`: all points. `log_target`: prior times likelihood there. `simulated`: what the simulator returned, where
    it is kept; None where that would take too much memory.

    Source: Cornuet, Marin, Mira & Robert (2012), Scand. J. Stat. 39, 798; the weights: Owen & Zhou (2000), J. Am.
    Stat. Assoc. 95, 135.
    """

    def __init__(self, dim: int):
        self.z = np.empty((0, dim))
        self.log_target = np.empty(0)
        self.simulated: Any = None
        self._proposals: list[Proposal] = []
        self._counts: list[int] = []
        self._log_q = np.empty((0, 0))  # of every point under every proposal
        self._bytes_a_point = 0.0

    def __len__(self) -> int:
        return len(self.z)

    def add(
        self, proposal: Proposal, z: Ensemble, log_likelihood: Float[AnyArray, " particles"], simulated: Any = None
    ) -> None:
        """Points that the proposal drew, and what the simulator said."""
        old = proposal.log_prob(self.z)[:, None] if len(self) else np.empty((0, 1))
        self._proposals.append(proposal)
        self._counts.append(len(z))
        new = np.stack([one.log_prob(z) for one in self._proposals], axis=1)
        self._log_q = np.concatenate([np.concatenate([self._log_q, old], axis=1), new])
        self.z = np.concatenate([self.z, z])
        log_prior = log_standard_normal(np.asarray(z, float))
        self.log_target = np.concatenate([self.log_target, log_prior + np.asarray(log_likelihood, float)])
        self._keep(simulated)

    def _keep(self, simulated: Any) -> None:
        if simulated is None:
            return
        new = len(jax.tree.leaves(simulated)[0])
        self._bytes_a_point = sum(a.nbytes for a in jax.tree.leaves(simulated)) / new
        if not self.keeps(0):
            self.simulated = None
        elif len(self) == new:
            self.simulated = simulated
        else:
            self.simulated = jax.tree.map(lambda *parts: np.concatenate(parts), self.simulated, simulated)

    def keeps(self, more: int) -> bool:
        """Whether what is simulated is kept, so many points on."""
        return self._bytes_a_point * (len(self) + more) <= MOST_BYTES

    def _log_mean_density(self) -> Float[np.ndarray, " points"]:
        """Of all proposals together, at every point."""
        shares = np.log(np.asarray(self._counts) / len(self))
        return np.logaddexp.reduce(self._log_q + shares, axis=1)

    def log_weights(self) -> Float[np.ndarray, " points"]:
        """Their mean estimates the evidence."""
        return self.log_target - self._log_mean_density()

    def log_evidence(self) -> tuple[float, float]:
        """Log of the mean calibrated weight, and its standard error."""
        log_weights = self.calibrated_log_weights()
        error = np.sqrt(max(1 / effective_size(log_weights) - 1 / len(self), 0.0))
        return log_mean_exp(log_weights), float(error)

    def calibrated_log_weights(self) -> Float[np.ndarray, " points"]:
        """The same with less chance in them: the last proposal's mass and moments, which are known, come out right.

        As control variates of every average that is taken under the weights: where the proposal is close to the target,
        the target's own moments then have hardly any error left. Source: Owen & Zhou (2000), section 4.
        """
        reference, density = self._proposals[-1].parts[0][1], self._log_mean_density()
        log_weights = self.log_target - density
        if reference is None:
            return log_weights
        h = _zero_means(reference, self.z, density)
        mean = h.mean(axis=0)
        if LEAST_PER_VARIATE * h.shape[1] > len(self):
            return log_weights
        covariance = np.cov(h.T) + RIDGE * np.diag(h.var(axis=0) + 1e-300)
        coefficients, num = np.linalg.solve(covariance, mean), h.shape[1]
        # A far component of small share, of which there is no draw: its mass and its part of the variance are missing,
        # in all points alike, and the points do not know by how much such means vary.
        if len(self) * mean @ coefficients > num + SURPRISING * np.sqrt(2 * num):
            return log_weights
        factor = 1 - (h - mean) @ coefficients
        calibrated = log_weights + np.log(np.maximum(factor, LEAST_FACTOR))
        # Where few points decide, the factors are chance themselves.
        helps = effective_size(calibrated) > LEAST_KEPT * effective_size(log_weights)
        return calibrated if helps else log_weights


def _zero_means(reference: Reference, z: Ensemble, log_density) -> Float[np.ndarray, "points variates"]:
    """Functions of the points that average to zero under their density: the mass of every component of the mixture, and
    mean and variance of every straightened coordinate."""
    m = reference.mixture
    v, log_jacobian = reference.warp.forward_all(z)
    shares = np.exp(np.asarray(m.log_weights, float))
    ratios = np.exp(m.log_joint_all(v) + (log_jacobian - log_density)[:, None])
    mean = shares @ m.means
    variances = (np.asarray(m.chols) ** 2).sum(axis=2) * float(m.df) / (float(m.df) - 2)
    variance = shares @ (variances + (m.means - mean) ** 2)
    x = (v - mean) / np.sqrt(variance)
    total = ratios.sum(axis=1)[:, None]
    return np.concatenate([ratios[:, shares > 0] - shares[shares > 0], total * x, total * (x**2 - 1)], axis=1)


class Halves:
    """Two pools, each of whose proposals are fitted to the other's points.

    A mixture that is fitted to a few points is high where these are; under the density of proposals that were fitted to
    them, points would weigh too little, and the evidence would come out too small.
    """

    def __init__(self, dim: int):
        self.pools = Pool(dim), Pool(dim)

    def __len__(self) -> int:
        return sum(map(len, self.pools))

    @property
    def z(self) -> Ensemble:
        """All points, those of the first pool first."""
        return np.concatenate([pool.z for pool in self.pools])

    @property
    def log_target(self) -> Float[np.ndarray, " points"]:
        return np.concatenate([pool.log_target for pool in self.pools])

    def keeps(self, more: int) -> bool:
        """Whether what is simulated is kept, so many points on."""
        return all(pool.keeps(more // 2) for pool in self.pools)

    def log_weights(self) -> Float[np.ndarray, " points"]:
        """Their mean estimates the evidence."""
        return np.concatenate([pool.log_weights() for pool in self.pools])

    def log_evidences(self) -> list[tuple[float, float]]:
        """Of each pool, by its own points alone, with the standard error."""
        return [pool.log_evidence() for pool in self.pools]

    def calibrated_log_weights(self) -> Float[np.ndarray, " points"]:
        """See `Pool`."""
        return np.concatenate([pool.calibrated_log_weights() for pool in self.pools])

    def simulated_at(self, points: Int[np.ndarray, " n"]) -> Any:
        """What was simulated at these; None where it was not kept."""
        kept = [pool.simulated for pool in self.pools]
        if any(one is None for one in kept):
            return None
        return jax.tree.map(lambda *parts: np.concatenate(parts)[points], *kept)

    def resample(self, rng: np.random.Generator, n: int, power: float = 1.0) -> Int[np.ndarray, " n"]:
        """Which points are n equally weighted draws, in random order; `power`: of the weights.

        Systematic along the direction in which the sample is widest, where it matters most that the draws are spread
        as the weights are.
        """
        z, log_weights = self.z, power * (self.calibrated_log_weights() if power == 1 else self.log_weights())
        weights = np.exp(log_weights - log_weights.max())
        centred = z - weights @ z / weights.sum()
        along = centred @ np.linalg.eigh((weights * centred.T) @ centred)[1][:, -1]
        order = np.argsort(along, kind="stable")
        return order[systematic(rng.random(), log_weights[order], n)][rng.permutation(n)]
