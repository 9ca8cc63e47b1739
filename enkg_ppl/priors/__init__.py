"""Diffusion priors, one file per family, and the reading of diffusion models that others trained.

A new prior derives from `Prior`. How a network's output becomes a denoiser is in `enkg_ppl.priors.preconditioning`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from enkg_ppl.priors._base import Grid, Prior
from enkg_ppl.priors._chunks import in_chunks, over_particles
from enkg_ppl.priors._file import PriorFileError, load_prior, save_prior
from enkg_ppl.priors._flow import Flow
from enkg_ppl.priors._gaussian import GaussianPrior
from enkg_ppl.priors._mixture import MixturePrior
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors._product import ProductPrior
from enkg_ppl.priors._reverse_sde import sde_sample
from enkg_ppl.priors._torch import TorchNetwork

if TYPE_CHECKING:
    from enkg_ppl.priors._importers import import_adm, import_ddpm, import_diffusers, import_edm

__all__ = [
    "Flow",
    "GaussianPrior",
    "Grid",
    "MixturePrior",
    "NetworkPrior",
    "Prior",
    "PriorFileError",
    "ProductPrior",
    "TorchNetwork",
    "import_adm",
    "import_ddpm",
    "import_diffusers",
    "import_edm",
    "in_chunks",
    "load_prior",
    "over_particles",
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
