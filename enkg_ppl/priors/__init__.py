"""Diffusion priors, one file per family, and the reading of diffusion models that others trained.

A new `Prior` implements `denoise`, ``E[x0 | x0 + sigma eps]`` of one vector, with `dim`, `location` and `scale`;
closed forms that it has besides make it faster. `Flow`, `decode` and `encode` use those that there are, and the
probability flow where there are none. A prior of fields has a `Grid`. Priors of your own are used like those here, in
`DiffusionPrior` and `InverseProblem`; `chunked_vmap` and `in_chunks` apply them to ensembles where memory is short.
`NetworkPrior` makes a prior of a network, in JAX or `TorchNetwork`'s; how the network's output becomes a denoiser is in
`enkg_ppl.priors.preconditioning`, and how it came to be in the prior's `Record`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enkg_ppl.priors._base import Grid, Prior
from enkg_ppl.priors._chunks import chunked_vmap, in_chunks
from enkg_ppl.priors._file import PriorFileError, load_prior, save_prior
from enkg_ppl.priors._flow import Flow
from enkg_ppl.priors._gaussian import GaussianPrior
from enkg_ppl.priors._mixture import MixturePrior
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors._product import ProductPrior
from enkg_ppl.priors._record import Record
from enkg_ppl.priors._reverse_sde import sde_sample
from enkg_ppl.priors._torch import TorchNetwork

if TYPE_CHECKING:
    from enkg_ppl.priors._importers import import_adm, import_ddpm, import_diffusers, import_edm

from enkg_ppl.priors._denoiser import Denoiser

__all__ = [
    "Denoiser",
    "Flow",
    "GaussianPrior",
    "Grid",
    "MixturePrior",
    "NetworkPrior",
    "Prior",
    "PriorFileError",
    "ProductPrior",
    "Record",
    "TorchNetwork",
    "chunked_vmap",
    "import_adm",
    "import_ddpm",
    "import_diffusers",
    "import_edm",
    "in_chunks",
    "load_prior",
    "save_prior",
    "sde_sample",
]

# Imported when asked for, with the networks that they make.
_IMPORTERS = ("import_adm", "import_ddpm", "import_diffusers", "import_edm")


def __getattr__(name: str) -> Any:
    if name not in _IMPORTERS:
        raise AttributeError(f"module 'enkg_ppl.priors' has no attribute '{name}'")
    return getattr(importlib.import_module("enkg_ppl.priors._importers"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_IMPORTERS})
