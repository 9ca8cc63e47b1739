"""The small convolutional DDPM of "hot versus cold diffusion", as an archive of NumPy arrays."""

from __future__ import annotations

import zipfile
from pathlib import Path

import numpy as np

from enkg_ppl.networks._conv_ddpm import ConvDDPM
from enkg_ppl.priors._importers._fill import Source, fill, source
from enkg_ppl.priors._importers._prior import as_prior
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import Discrete

ROOT = "gt."
TIME_LAYERS = (0, 2, 4, 6)  # between them are the activations
ENTRY_SD = 0.25  # of images in [-0.5, 0.5]


def import_ddpm(path: str | Path, **options) -> NetworkPrior:
    """A prior from the archive of a `ConvDDPM` that predicts the noise, such as the MNIST network of that project.

    Args:
        path: an ``.npz`` with ``alpha_t`` (cumulative products at times 0, 1/T, ..., 1) and the parameters under
            ``gt.``: ``blocks`` (convolution and normalisation, the last one a convolution only), ``time_embed``,
            ``frequencies``.
        **options: of `NetworkPrior`; `location` and `scale` as for `import_edm`. The latent vector is in the network's
            units, [-0.5, 0.5] for those digits, whose network is reliable up to about ``sigma_max=10``.

    Raises:
        FileNotFoundError: where there is no file.
        ValueError: where it holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}: give the path of the archive")
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive}
    except (ValueError, OSError, EOFError, AttributeError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is no archive of plain NumPy arrays ({error}): fetch it again") from error
    tensors = {name[len(ROOT) :]: value for name, value in arrays.items() if name.startswith(ROOT)}
    config = _config(tensors, str(path))
    alphas = arrays.get("alpha_t", np.zeros(0))
    if alphas.ndim != 1 or len(alphas) < 3:
        raise ValueError(f"{path} should hold the schedule alpha_t, cumulative products at times 0, 1/T, ..., 1")
    steps = len(alphas) - 1
    # The network is told the time i / T; step i = 0 is the clean image's.
    preconditioning = Discrete(alphas[1:], "noise", time_scale=1 / steps, time_offset=1 / steps)
    network = fill(ConvDDPM, config, _sources, tensors, (), str(path))
    return as_prior(network, preconditioning, path, ENTRY_SD, options)


def _config(tensors: dict[str, np.ndarray], name: str) -> dict:
    depth = sum(f"blocks.{i}.net.0.weight" in tensors for i in range(len(tensors)))
    needed = ["blocks.0.net.1.weight", "time_embed.0.weight", "frequencies", f"blocks.{depth}.weight"]
    absent = [key for key in needed if key not in tensors]
    if depth == 0 or absent:
        raise ValueError(
            f"{name} is no archive of a ConvDDPM: it has no array {ROOT}{(absent or needed)[0]}; its names start with "
            f"{sorted(tensors)[:2] or 'something else than gt.'}"
        )
    kernels = [tensors[f"blocks.{i}.net.0.weight"] for i in range(depth)]
    return {
        "shape": (kernels[0].shape[1], *tensors["blocks.0.net.1.weight"].shape[1:]),
        "widths": tuple(kernel.shape[0] for kernel in kernels),
        "kernel": kernels[0].shape[2],
        "num_frequencies": len(tensors["frequencies"]),
        "hidden": tensors["time_embed.0.weight"].shape[0],
    }


def _sources(network: ConvDDPM) -> dict[str, Source]:
    sources = {"": source("frequencies", exact=True)}
    sources |= {f".time[{i}]": source(f"time_embed.{n}") for i, n in enumerate(TIME_LAYERS)}
    for i in range(len(network.convs)):
        sources[f".convs[{i}]"] = source(f"blocks.{i}.net.0")
        sources[f".norms[{i}]"] = source(f"blocks.{i}.net.1")
    return sources | {".out": source(f"blocks.{len(network.convs)}")}
