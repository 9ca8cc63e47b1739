"""Ensemble Kalman Diffusion Guidance: with its defaults, and each correction without refinement."""

from __future__ import annotations

import functools
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

import enkg_ppl
from enkg_ppl import EnKG, PublishedCorrection
from validation.methods._base import Method, Result
from validation.target import Target

Options = Callable[[], dict[str, Any]]


def run(
    target: Target,
    seed: int,
    num_draws: int,
    progress: bool,
    *,
    budget: int | None = None,
    options: Options = dict,
) -> Result:
    """As many particles as draws; `options` gives what else `EnKG` or `infer` is called with."""
    chosen: dict[str, Any] = options() | ({} if budget is None else {"max_forward_evaluations": budget})
    key = jax.random.key(seed)
    start = time.perf_counter()
    if target.model is None:
        assert target.problem is not None
        posterior = enkg_ppl.infer(key, target.problem(), num_particles=num_draws, **chosen)
        return Result(
            draws=np.asarray(posterior.draws),
            num_forward_evaluations=posterior.num_forward_evaluations,
            num_gradients=0,
            seconds=time.perf_counter() - start,
            log_evidence=posterior.log_evidence,
            warnings=list(posterior.messages),
        )
    enkg = EnKG(target.model, num_particles=num_draws, progress_bar=progress, **chosen)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="EnKG: ")  # they are in diagnostics(), and go into the table
        enkg.run(key, *target.args, **target.kwargs)
    return Result(
        draws=target.flatten(enkg.get_samples()),
        num_forward_evaluations=enkg.num_forward_evaluations,
        num_gradients=0,
        seconds=time.perf_counter() - start,
        log_evidence=enkg.log_evidence,
        warnings=list(enkg.diagnostics().warnings),
    )


def unrefined_kalman() -> dict[str, Any]:
    return {"refine": None}  # of fields with more levels than of others


def unrefined_published() -> dict[str, Any]:
    return {"correction": PublishedCorrection(), "refine": None}


SOURCES = ("enkg_ppl",)
METHODS = [
    Method("enkg", "EnKG(model) with its defaults, a particle a draw", run, sources=SOURCES),
    Method(
        "enkg-kalman",
        "the guided ensemble of the default correction, refine=None",
        functools.partial(run, options=unrefined_kalman),
        sources=SOURCES,
    ),
    Method(
        "enkg-published",
        "the published algorithm (Zheng et al., arXiv 2409.20175), refine=None",
        functools.partial(run, options=unrefined_published),
        sources=SOURCES,
    ),
]
