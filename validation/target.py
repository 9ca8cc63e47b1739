"""What a method is judged on: a posterior to be found, and the truth about it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, Int

from enkg_ppl import InverseProblem

Draws = Float[np.ndarray, "draws dim"]


@dataclasses.dataclass(frozen=True)
class Truth:
    """What is known about a posterior.

    `draws`: exact draws, or long-run ones; a single one where no more is known than what the data were simulated from.
    `mean`, `sd`: by default those of the draws; give the closed form where
    there is one. `log_evidence`: nats, where known. `masses`: of the modes that `Target.modes` numbers, by default
    their shares of the draws. `simulated_from`: the unknowns that the data were simulated from, in the draws' layout.
    `source`: where it comes from, in a few words.
    """

    draws: Draws
    source: str
    mean: Float[np.ndarray, " dim"] | None = None
    sd: Float[np.ndarray, " dim"] | None = None
    log_evidence: float | None = None
    masses: Float[np.ndarray, " modes"] | None = None
    simulated_from: Float[np.ndarray, " dim"] | None = None

    @property
    def means(self) -> Float[np.ndarray, " dim"]:
        return self.draws.mean(axis=0) if self.mean is None else self.mean

    @property
    def sds(self) -> Float[np.ndarray, " dim"]:
        return self.draws.std(axis=0, ddof=1) if self.sd is None else self.sd


@dataclasses.dataclass(frozen=True)
class Target:
    """One posterior: a NumPyro model with its data, or an inverse problem, and its truth.

    `name`: as in ``sbibm/slcp/1``. `suites`: the collections it belongs to.
    `truth`: called when needed; may read a file or sample for minutes (the runner keeps what it returns).
    `model`, `args`, `kwargs`: the NumPyro model and what `run` is called with; `sites` are those that are compared, in
    the order in which `flatten` lays them out.
    `problem`: called for an `InverseProblem`, where the prior is no NumPyro model; draws are its latent vectors.
    `twin`: the same model with the same sites, differentiable, where `model` is a black box; see `with_gradient`.
    `num_particles`: the ensemble that it is meant for, where not the runner's usual one.
    `modes`: numbers the mode of each of ``(draws, dim)``, where there are several.
    `misfit`: chi-square per datum of draws, where the truth is no more than what the data were simulated from.
    `files`: whatever else it depends on, such as the weights of a network; their change makes results obsolete.
    `differentiable`: whether gradient methods such as NUTS may be tried, on `with_gradient`.
    """

    name: str
    suites: tuple[str, ...]
    truth: Callable[[], Truth]
    model: Callable | None = None
    args: tuple = ()
    kwargs: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    sites: tuple[str, ...] = ()
    problem: Callable[[], InverseProblem] | None = None
    modes: Callable[[Draws], Int[np.ndarray, " draws"]] | None = None
    misfit: Callable[[Draws], float] | None = None
    differentiable: bool = True
    twin: Callable | None = None
    num_particles: int | None = None
    files: tuple[Path, ...] = ()

    @property
    def with_gradient(self) -> Callable | None:
        """The model that gradient methods get: the twin where there is one."""
        return self.model if self.twin is None else self.twin

    def flatten(self, samples: Mapping[str, ArrayLike]) -> Draws:
        """Draws of the sites, each ``(draws, *site shape)``, side by side: ``(draws, dim)``."""
        return flatten(samples, self.sites)


def flatten(samples: Mapping[str, ArrayLike], sites: Iterable[str]) -> Draws:
    """Sites side by side, in order: ``(draws, dim)``."""
    columns = [np.asarray(samples[site], float) for site in sites]
    return np.concatenate([column.reshape(len(column), -1) for column in columns], axis=1)
