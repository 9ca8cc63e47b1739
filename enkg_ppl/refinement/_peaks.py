"""Where the posterior has peaks: many searches from prior draws, each by damped Gauss-Newton steps.

An ensemble that follows one slope finds one mode, and weights cannot bring back a mode that no particle is near. Draws
from the prior know nothing of the data, so among them are some in the basin of every mode that is not tiny: those whose
posterior density is the highest among their neighbours start a search each. Slopes are differences of simulations; no
simulator is differentiated. Searches that come together are one; two that are left are two peaks only where the
density falls on the way between them. How many searches ended at a peak says how likely others were overlooked.

Sources: Levenberg-Marquardt steps with Fisher information, Osborne (1992), Int. Stat. Rev. 60, 99; the density between
two points as a test of one peak, Ursem (1999), Proc. CEC, 1633; Laplace's approximation of a mode's mass, Tierney &
Kadane (1986), J. Am. Stat. Assoc. 81, 82.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from enkg_ppl._special import gammaincc
from enkg_ppl.evaluation._evaluator import Evaluator
from enkg_ppl.likelihood import Response
from enkg_ppl.types import Ensemble

MOST_SEARCHES = 48
MOST_STEPS = 12
TRIALS = 3  # steps that are tried with one slope, each damped more than the last
FIRST_DIFFERENCE, LEAST_DIFFERENCE, DIFFERENCE = 0.03, 3e-4, 0.3  # of z for slopes; the last in posterior sd
FIRST_DAMPING, LESS, MORE = 0.1, 0.1, 8.0
LONGEST_STEP = 1.5  # in any coordinate of z
SETTLED = 0.1  # nats that the next step promises, below which a search has arrived
BEST_CASE = 10.0  # times what its slope promises: what a search may bring at best
UNFITTED = 0.5  # nats a datum that a better fit promises, above which the noise waits
SAME = 2.0  # posterior sd between two searches, below which they have come together
VALLEY = 1.0  # nats that the density falls between two peaks
RELEVANT = 25.0  # nats of log evidence below the highest peak, beyond which a peak holds nothing
WEIGHTY = 5.0  # nats below the highest peak, within which a peak matters to the posterior
LEAST_HITS, LEAST_SHARE = 3, 0.3  # searches that end at such a peak, and at all of them
SAFE_SHARE = 0.5  # the same of many searches, below which a posterior is told to be rugged
TAIL = 1e-5  # chance of as large a misfit, below which the best fit cannot be right
MOST_ROUNDS = 40
# Evaluations for each particle of the ensemble that this is done for: of a round at most, and of all of them.
EVALUATIONS, ALL_EVALUATIONS = 1.5, 28.0


class Peak(NamedTuple):
    """A local maximum of a posterior, with the Gaussian around it.

    Attributes:
        z: point of highest density.
        log_posterior: log of prior times likelihood there.
        whitener: L^-1 of the covariance L L^T of the Gaussian.
        log_evidence: Laplace's approximation.
        hits: searches that ended here.
    """

    z: Float[np.ndarray, " dim"]
    log_posterior: float
    whitener: Float[np.ndarray, "dim dim"]
    log_evidence: float
    hits: int

    @property
    def chol(self) -> Float[np.ndarray, "dim dim"]:
        """L of the covariance L L^T."""
        return np.linalg.inv(self.whitener)


@dataclasses.dataclass(frozen=True)
class Found:
    """Peaks of a posterior, found by searches from many points.

    Attributes:
        peaks: those that may hold mass, the highest evidence first.
        num_searches: searches that ended at these or at lower peaks, and not on a slope.
        misfit: chi-square per datum at the best fit.
        num_data: number of data.
    """

    peaks: tuple[Peak, ...]
    num_searches: int
    misfit: float
    num_data: int

    @property
    def rugged(self) -> bool:
        """Whether most searches ended at peaks too low to matter, so that there must be many."""
        share = LEAST_SHARE if self.num_searches <= MOST_SEARCHES else SAFE_SHARE
        return self.num_hits < share * self.num_searches

    @property
    def num_hits(self) -> int:
        """Searches that ended at one of the peaks."""
        return sum(peak.hits for peak in self.peaks)

    @property
    def settled(self) -> bool:
        """Whether another round is unlikely to find more: all searches would have had to miss an undiscovered peak."""
        best = self.peaks[0].log_evidence
        hits = [peak.hits for peak in self.peaks if peak.log_evidence > best - WEIGHTY]
        fits = gammaincc(self.num_data / 2, self.misfit * self.num_data / 2) > TAIL
        return min(hits) >= LEAST_HITS and self.num_hits >= LEAST_SHARE * self.num_searches and bool(fits)

    @property
    def several(self) -> tuple[Peak, ...]:
        """The peaks where there is more than one; otherwise empty."""
        return self.peaks if len(self.peaks) > 1 else ()


def nearest_peak(peaks: Sequence[Peak], z: Ensemble) -> Int[np.ndarray, " particles"]:
    """The peak that each particle most likely belongs to, by Student-t distributions around the peaks."""
    z = np.asarray(z, float)
    d = z.shape[1]
    log_density = np.empty((len(z), len(peaks)))
    for k, peak in enumerate(peaks):
        square = (((z - peak.z) @ peak.whitener.T) ** 2).sum(axis=1)
        log_density[:, k] = np.log(np.diag(peak.whitener)).sum() - 0.5 * (5 + d) * np.log1p(square / 5)
    return log_density.argmax(axis=1)


@dataclasses.dataclass
class _Searches:
    """Searches under way, one a row."""

    z: Float[np.ndarray, "searches dim"]
    log_posterior: Float[np.ndarray, " searches"]
    response: Response
    hits: Int[np.ndarray, " searches"]
    damping: Float[np.ndarray, " searches"]
    precision: Float[np.ndarray, "searches dim dim"]
    gradient: Float[np.ndarray, "searches dim"]
    of_noise: Bool[np.ndarray, "searches dim"]  # unknowns that decide on the noise alone
    active: Bool[np.ndarray, " searches"]
    arrived: Bool[np.ndarray, " searches"]  # at a peak, however low

    def keep(self, rows: np.ndarray) -> None:
        self.response = Response(*(a[rows] for a in self.response))
        for name in ("z", "log_posterior", "hits", "damping", "precision", "gradient", "of_noise", "active", "arrived"):
            setattr(self, name, getattr(self, name)[rows])


class _Objective:
    """Log of prior times likelihood at many z.

    Evaluations left: `of_round` and `of_search`, that the search allows itself, and `spare`, that the budget does.
    """

    def __init__(self, evaluate: Evaluator, of_search: float, spare: float, dtype):
        self.evaluate, self.of_round, self.of_search, self.spare = evaluate, of_search, of_search, spare
        self.dtype = dtype

    def affords(self, n: int) -> bool:
        """Only what the budget does not allow, though the search would, has cut the run short."""
        if n > min(self.of_round, self.of_search):
            return False
        within = n <= self.spare
        self.evaluate.ledger.short |= not within
        return within and self.evaluate.affords(n)

    def __call__(self, z: Float[np.ndarray, "n dim"]) -> tuple[np.ndarray, Response]:
        self.of_round, self.of_search, self.spare = (
            left - len(z) for left in (self.of_round, self.of_search, self.spare)
        )
        z = z.astype(self.dtype)
        log_likelihood, response = self.evaluate.log_likelihood_and_response(z)
        response = Response(*(np.asarray(a, float) for a in response))
        usable = np.all([np.isfinite(a).all(axis=1) for a in response], axis=0)
        z = z.astype(float)
        log_prior = -0.5 * (z**2).sum(axis=1) - 0.5 * z.shape[1] * np.log(2 * np.pi)
        return np.where(usable, log_prior + np.asarray(log_likelihood, float), -np.inf), response


def find_peaks(
    rng: np.random.Generator,
    evaluate: Evaluator,
    z: Ensemble,
    response: Response,
    num_particles: int,
    spare: float = float("inf"),
    init: Ensemble | None = None,
) -> Found | None:
    """Search from draws z of the prior, whose working responses are known.

    One round of searches, and further ones while a peak that may hold mass was hardly found, most searches end
    elsewhere, or nothing that was found fits the data. `num_particles`: of the ensemble that this is done for, by which
    evaluations are allowed; `spare`: at most so many. `init`: known places to search from besides, in z. None where the
    evaluations do not suffice, or no draw is usable.
    """
    d = z.shape[1]
    response = Response(*(np.asarray(a, float) for a in response))
    z = np.asarray(z)
    order, num_highest = _starting_points(z.astype(float), _approximate(z, response))
    objective = _Objective(evaluate, ALL_EVALUATIONS * num_particles, spare, z.dtype)
    usual, most = (
        int(min(MOST_SEARCHES, allowance // (d + 8)))
        for allowance in (EVALUATIONS * num_particles, min(EVALUATIONS * num_particles, max(spare, 0)))
    )
    evaluate.ledger.short |= most < usual
    batch = min(most, max(num_highest, MOST_SEARCHES // 2))
    ends, found = None, None
    for _ in range(MOST_ROUNDS):
        objective.of_round = EVALUATIONS * num_particles
        if len(order) < batch and found is not None and objective.affords(len(z) + batch * (d + 2)):
            z = rng.standard_normal(z.shape).astype(z.dtype)
            order, _ = _starting_points(z.astype(float), objective(z)[0])
        rows, order = order[:batch], order[batch:]
        if len(rows) < 2 or not objective.affords(len(rows)):
            break
        ends = _joined(ends, _begun(objective, z[rows].astype(float)))
        if init is not None and objective.affords(len(init)):
            known = _begun(objective, np.asarray(init, float))
            known.hits[:] = LEAST_HITS  # found on purpose, which says nothing of how hard it is to find
            ends, init = _joined(ends, known), None
        if not len(ends.z):
            continue
        _go_on(rng, objective, ends)
        _merge(ends)
        found = _peaks(objective, ends)
        if found.settled:
            break
        batch = most
    return found


def _begun(objective: _Objective, z: Float[np.ndarray, "n dim"]) -> _Searches:
    """Searches at every row of z that can be simulated."""
    n, d = z.shape
    log_posterior, response = objective(z)
    searches = _Searches(
        z,
        log_posterior,
        response,
        np.ones(n, int),
        np.full(n, FIRST_DAMPING),
        np.broadcast_to(np.eye(d), (n, d, d)).copy(),
        np.zeros((n, d)),
        np.zeros((n, d), bool),
        np.isfinite(log_posterior),
        np.zeros(n, bool),
    )
    searches.keep(searches.active)
    return searches


def _go_on(rng: np.random.Generator, objective: _Objective, s: _Searches) -> None:
    """Climb. What has not arrived when the steps are used up goes on in the next round, if there is one."""
    d = s.z.shape[1]
    for step in range(MOST_STEPS):
        here = np.flatnonzero(s.active)
        if not len(here) or not objective.affords(len(here) * (d + 1)):
            break
        _slopes(rng, objective, s, here)
        _climb(objective, s, here)
        if step >= 1:
            _merge(s, here)


def _joined(a: _Searches | None, b: _Searches) -> _Searches:
    if a is None:
        return b
    names = [field.name for field in dataclasses.fields(_Searches) if field.name != "response"]
    arrays = {name: np.concatenate([getattr(a, name), getattr(b, name)]) for name in names}
    return _Searches(response=Response(*map(np.concatenate, zip(a.response, b.response, strict=True))), **arrays)


def _approximate(z: Ensemble, response: Response) -> Float[np.ndarray, " particles"]:
    """Log posterior of working responses, to within what only depends on the data."""
    prediction, observation, noise = response
    with np.errstate(all="ignore"):
        misfit = ((observation - prediction) ** 2 / noise + np.log(noise)).sum(axis=1)
    value = -0.5 * misfit - 0.5 * (np.asarray(z, float) ** 2).sum(axis=1)
    return np.where(np.isfinite(value), value, -np.inf)


def _starting_points(z: Float[np.ndarray, "n dim"], value: Float[np.ndarray, " n"]) -> tuple[np.ndarray, int]:
    """Draws by how many of their neighbours have a higher value, the fewest first; and how many have none."""
    usable = np.flatnonzero(np.isfinite(value))
    z, value = z[usable], value[usable]
    n, d = z.shape
    if n < 2:
        return usable, n
    square = (z**2).sum(axis=1)
    distance = square[:, None] + square[None] - 2 * z @ z.T
    neighbours = np.argpartition(distance, min(2 * (d + 1), n - 1), axis=1)[:, : min(2 * (d + 1), n - 1) + 1]
    higher = (value[neighbours] > value[:, None]).sum(axis=1)
    return usable[np.lexsort((-value, higher))], int((higher == 0).sum())


def _slopes(rng: np.random.Generator, objective: _Objective, s: _Searches, here: np.ndarray) -> None:
    """Gradient and Fisher information of each search, by differences."""
    d = s.z.shape[1]
    width = 1 / np.sqrt(np.einsum("nii->ni", s.precision[here]))
    first = np.all(s.gradient[here] == 0, axis=1)
    h = np.clip(DIFFERENCE * width, LEAST_DIFFERENCE, FIRST_DIFFERENCE)
    h[first] = FIRST_DIFFERENCE
    h *= rng.choice([-1.0, 1.0], h.shape)
    h = (s.z[here] + h).astype(objective.dtype).astype(float) - s.z[here]  # as it is after rounding
    moved = s.z[here][:, None] + h[:, :, None] * np.eye(d)
    value, response = objective(moved.reshape(-1, d))
    shape = (len(here), d, -1)
    prediction, _, noise = (a.reshape(shape) for a in response)
    known = Response(*(a[here] for a in s.response))
    with np.errstate(all="ignore"):
        root = np.sqrt(known.noise)[:, None]
        J = (prediction - known.prediction[:, None]) / h[:, :, None] / root  # (searches, dim, data)
        N = np.log(noise / known.noise[:, None]) / h[:, :, None]
        rise = (value.reshape(len(here), d) - s.log_posterior[here][:, None]) / h
    usable = np.isfinite(J).all(axis=2) & np.isfinite(N).all(axis=2) & np.isfinite(rise)
    J, N = (np.where(usable[:, :, None], a, 0.0) for a in (J, N))
    with np.errstate(all="ignore"):
        information = np.einsum("nim,njm->nij", J, J)
        of_noise = 0.5 * np.einsum("nim,njm->nij", N, N)
    # Unknowns that decide on the noise alone: the working response does not say which way they should go.
    alone = np.einsum("nii->ni", information) < 1e-3 * np.einsum("nii->ni", of_noise)
    both = alone[:, :, None] & alone[:, None]
    information = np.where(both, of_noise, information)
    with np.errstate(all="ignore"):
        residual = (known.observation - known.prediction) / np.sqrt(known.noise)
        gradient = np.einsum("nim,nm->ni", J, residual)
    # Outputs so large that their squares are not finite say nothing of where to go.
    lost = ~np.isfinite(information).all(axis=(1, 2)) | ~np.isfinite(gradient).all(axis=1)
    information[lost], gradient[lost] = 0.0, 0.0
    s.active[here[lost]] = False
    precision = information + np.eye(d)
    by_rise = rise + 0.5 * h * np.einsum("nii->ni", precision)
    s.precision[here] = precision
    s.of_noise[here] = alone
    s.gradient[here] = np.where(alone, np.where(usable, by_rise, 0.0), gradient - s.z[here])


def _climb(objective: _Objective, s: _Searches, here: np.ndarray) -> None:
    """One step up of each search, damped until the density rises."""
    promised = _promised(s.precision[here], s.gradient[here])
    hopeless = s.log_posterior[here] + BEST_CASE * promised < s.log_posterior.max() - RELEVANT
    s.arrived[here] = (promised < SETTLED) | hopeless
    s.active[here[s.arrived[here]]] = False
    here = here[s.active[here]]
    # The noise is learned from what a good fit leaves, not from what a bad one does.
    gradient = s.gradient.copy()
    of_means = np.where(s.of_noise, 0.0, gradient)
    unfitted = _promised(s.precision[here], of_means[here]) > UNFITTED * s.response.prediction.shape[1]
    gradient[here[unfitted]] = of_means[here[unfitted]]
    for _ in range(TRIALS):
        if not len(here) or not objective.affords(len(here)):
            break
        P, diagonal = s.precision[here], np.einsum("nii->ni", s.precision[here])
        damped = P + (s.damping[here][:, None] * diagonal)[:, :, None] * np.eye(P.shape[1])
        step = np.linalg.solve(damped, gradient[here][:, :, None])[..., 0]
        step *= np.minimum(1, LONGEST_STEP / np.maximum(np.abs(step).max(axis=1), 1e-300))[:, None]
        value, response = objective(s.z[here] + step)
        better = value > s.log_posterior[here]
        rows = here[better]
        s.z[rows] += step[better]
        s.z[rows] = s.z[rows].astype(objective.dtype)
        s.log_posterior[rows] = value[better]
        for known, new in zip(s.response, response, strict=True):
            known[rows] = new[better]
        s.damping[rows] *= LESS
        here = here[~better]
        s.damping[here] = np.maximum(s.damping[here], FIRST_DAMPING * LESS) * MORE
    s.active[here] = s.damping[here] < 1e6


def _promised(precision: Float[np.ndarray, "n dim dim"], gradient: Float[np.ndarray, "n dim"]) -> np.ndarray:
    """Nats that a full step would bring if the simulator were linear."""
    return 0.5 * np.einsum("ni,ni->n", gradient, np.linalg.solve(precision, gradient[:, :, None])[..., 0])


def _merge(s: _Searches, rows: np.ndarray | None = None) -> None:
    """Searches that have come together go on as one, the higher; `rows`: those that may have moved (default: all)."""
    rows = np.arange(len(s.z)) if rows is None else rows
    left = np.ones(len(s.z), bool)
    rank = np.empty(len(s.z), int)
    rank[np.argsort(s.log_posterior, kind="stable")] = np.arange(len(s.z))
    for row in rows[np.argsort(rank[rows])]:  # the lowest first: what it joins may join a higher one
        higher = np.flatnonzero(left & (rank > rank[row]))
        step = s.z[higher] - s.z[row]
        here = np.einsum("ni,ij,nj->n", step, s.precision[row], step)
        there = np.einsum("ni,nij,nj->n", step, s.precision[higher], step)
        distance = np.minimum(here, there)
        if len(higher) and distance.min() < SAME**2:
            s.hits[higher[distance.argmin()]] += s.hits[row]
            left[row] = False
    s.keep(left)


def _peaks(objective: _Objective, s: _Searches) -> Found:
    """What is left, and of that what may hold mass and is parted by a valley."""
    d = s.z.shape[1]
    evidence = np.array([
        f + 0.5 * d * np.log(2 * np.pi) - 0.5 * np.linalg.slogdet(P)[1]
        for f, P in zip(s.log_posterior, s.precision, strict=True)
    ])  # fmt: skip
    relevant = np.flatnonzero(evidence > evidence.max() - RELEVANT)
    relevant = relevant[np.argsort(-s.log_posterior[relevant], kind="stable")]
    parted: list[int] = []
    hits = s.hits.copy()
    for row in relevant:
        for other in _nearest(s, row, parted):
            if not _valley(objective, s, row, other):
                hits[other] += hits[row]
                break
        else:
            parted.append(int(row))
    best = int(np.argmax(s.log_posterior))
    misfit = np.mean((s.response.observation[best] - s.response.prediction[best]) ** 2 / s.response.noise[best])
    peaks = [
        Peak(s.z[k], float(s.log_posterior[k]), np.linalg.cholesky(s.precision[k]).T, float(evidence[k]), int(hits[k]))
        for k in parted
    ]
    peaks.sort(key=lambda peak: -peak.log_evidence)
    low = int(s.hits[s.arrived & (evidence <= evidence.max() - RELEVANT)].sum())
    return Found(tuple(peaks), sum(peak.hits for peak in peaks) + low, float(misfit), s.response.prediction.shape[1])


def _nearest(s: _Searches, row: int, others: list[int]) -> list[int]:
    """The two nearest of the others, in posterior standard deviations."""
    steps = [s.z[other] - s.z[row] for other in others]
    return [others[k] for k in np.argsort([step @ s.precision[row] @ step for step in steps])[:2]]


def _valley(objective: _Objective, s: _Searches, row: int, other: int) -> bool:
    """Whether the density falls between two ends of searches."""
    between = np.array([0.25, 0.5, 0.75])[:, None]
    if not objective.affords(len(between)):
        return True
    value, _ = objective(s.z[row] + between * (s.z[other] - s.z[row]))
    return bool(value.min() < min(s.log_posterior[row], s.log_posterior[other]) - VALLEY)
