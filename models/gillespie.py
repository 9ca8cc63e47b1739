"""An epidemic, person by person: Gillespie's stochastic simulation of SIR for a whole ensemble, in NumPy.

Anybody infected infects others at the rate `transmission` times the susceptible share, and recovers at the rate
`recovery`. Every event is simulated, so the law is exact.

References:
    D. T. Gillespie, "Exact stochastic simulation of coupled chemical reactions", Journal of Physical Chemistry 81
    (1977) 2340-2361.
    D. F. Anderson, "A modified next reaction method for simulating chemical systems with time dependent propensities
    and delays", Journal of Chemical Physics 127 (2007) 214107: the same law from one unit-rate clock a reaction.
    M. Rathinam, P. W. Sheppard, M. Khammash, "Efficient computation of parameter sensitivities of discrete stochastic
    chemical reaction networks", Journal of Chemical Physics 132 (2010) 034103: common clocks.
"""

from __future__ import annotations

import functools

import numpy as np
from jaxtyping import Float, Int

# Rows whose epidemic is over are dropped every so many events.
SWEEP = 32


@functools.lru_cache(maxsize=4)
def clocks(population: int, num_replicates: int, seed: int) -> Float[np.ndarray, "replicates 2 events"]:
    """Gaps between the events that a clock of unit rate rings in, for infections and for recoveries."""
    return np.random.default_rng(seed).standard_exponential((num_replicates, 2, population + 1))


def simulate(
    transmission: Float[np.ndarray, " particles"],
    recovery: Float[np.ndarray, " particles"],
    infected: Float[np.ndarray, " particles"],
    *,
    population: int,
    num_weeks: int,
    num_replicates: int,
    seed: int,
) -> Int[np.ndarray, "particles replicates weeks+1 3"]:
    """How many people are susceptible, infected and recovered at the start and after every week.

    The clocks depend on `seed` only: an ensemble shares them, and the same parameters give the same epidemic. Without
    that a forward map would not be a function, and a particle that was lucky once could not be asked again.

    Args:
        transmission: per week and infected person, while everybody is susceptible.
        recovery: per week and infected person.
        infected: share of the population infected at the start. The replicates round it to whole people up or down,
            so that their mean keeps the fraction; never fewer than one.
        population: people, in every replicate.
        num_weeks: weeks to simulate.
        num_replicates: epidemics of each particle, on different clocks.
        seed: of the clocks.
    """
    dither = (np.arange(num_replicates) + 0.5) / num_replicates
    first = np.clip(np.floor(population * np.asarray(infected, float)[:, None] + dither), 1, population)
    gaps = clocks(population, num_replicates, seed).ravel()
    # The last week of the record takes what happens after the end.
    record = np.zeros((first.size, num_weeks + 1, 2), int)

    live = np.ones(first.size, bool)
    row = np.arange(first.size)
    beta = np.repeat(np.asarray(transmission, float) / population, num_replicates)
    gamma = np.repeat(np.asarray(recovery, float), num_replicates)
    sick = first.ravel().astype(int)
    well = population - sick
    time = np.zeros(first.size)
    # Where a row finds its next gap: so many infections, or recoveries, after the clock's first.
    clock = np.tile(np.arange(num_replicates), len(first)) * 2 * (population + 1)
    first_infection, first_recovery = clock + well, clock + 2 * population + 1
    due_infection, due_recovery = gaps[clock], gaps[clock + population + 1]
    while row.size:
        with np.errstate(divide="ignore", invalid="ignore"):  # no more infections, or an epidemic that is over
            for _ in range(SWEEP):
                infect, recover = beta * well * sick, gamma * sick
                until_infection, until_recovery = due_infection / infect, due_recovery / recover
                infects = until_infection < until_recovery
                step = np.minimum(until_infection, until_recovery)
                time += step
                live = time < num_weeks
                record[row, np.where(live, time, num_weeks).astype(int), infects.astype(int)] += 1
                well -= infects & live
                sick += np.where(infects, 1, -1) * live
                gap = gaps[np.where(infects, first_infection - well, first_recovery - well - sick)]
                due_infection = np.where(infects, gap, due_infection - infect * step)
                due_recovery = np.where(infects, due_recovery - recover * step, gap)
        row, sick, well, time = row[live], sick[live], well[live], time[live]
        beta, gamma = beta[live], gamma[live]
        first_infection, first_recovery = first_infection[live], first_recovery[live]
        due_infection, due_recovery = due_infection[live], due_recovery[live]

    recoveries, infections = np.moveaxis(np.cumsum(record[:, :-1], axis=1), -1, 0)
    ever, gone = (np.pad(total, ((0, 0), (1, 0))) for total in (infections, recoveries))
    ever += first.ravel()[:, None].astype(int)
    people = np.stack([population - ever, ever - gone, gone], axis=-1)
    return people.reshape(*first.shape, num_weeks + 1, 3)
