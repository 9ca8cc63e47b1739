"""An imported network as a prior."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import Preconditioning

# Of the variance of all entries, the share that is taken to lie along the widest direction, where the data are not at
# hand to tell. Images and smooth fields have 0.1 to 0.3.
WIDEST_SHARE = 0.25


def default_scale(dim: int, entry_sd: float) -> float:
    """A guess of the standard deviation along the widest principal direction, rather too large than too small."""
    return entry_sd * math.sqrt(max(1.0, WIDEST_SHARE * dim))


def as_prior(
    network, preconditioning: Preconditioning, source: Any, entry_sd: float, options: dict, **found: str
) -> NetworkPrior:
    """The prior, with `location` 0 and a guessed `scale` unless `options` say otherwise.

    `found`: goes into the record, such as which of several files was taken.
    """
    origin = Path(source).name if isinstance(source, str | Path) else "a mapping of tensors"
    defaults = {
        "location": 0.0,
        "scale": default_scale(math.prod(network.shape), entry_sd) * float(options.get("spread", 1.0)),
        "record": {"imported_from": origin, **found},
    }
    return NetworkPrior(network, preconditioning, network.shape, **{**defaults, **options})


def check_preconditioning(function: str, preconditioning: Any) -> None:
    if not isinstance(preconditioning, Preconditioning):
        raise TypeError(
            f"{function} needs the preconditioning that the network was trained with, such as EDM(), VP() or "
            f"Discrete(alphas_cumprod); got {preconditioning!r}"
        )


def refuse_labels(weight: np.ndarray | None, axis: int, name: str) -> None:
    """Refuse a checkpoint whose embedding of class labels has this weight, the labels along `axis`."""
    if weight is not None:
        raise ValueError(
            f"{name} is a class-conditional network ({weight.shape[axis]} labels); only unconditional ones can be "
            "imported"
        )
