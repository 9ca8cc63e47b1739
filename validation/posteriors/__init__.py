"""Posteriors whose truth is known, one family a file; `targets` has them all by name."""

from __future__ import annotations

from pathlib import Path

from validation.posteriors import (
    closed_form,
    everyday,
    gaussian_field,
    mixture,
    navier_stokes,
    network_prior,
    nonlinear_field,
    posteriordb,
    rugged,
    sbibm,
    separated,
    smooth,
)
from validation.target import Target

# Families that need nothing but this checkout, and families whose reference draws are files.
BUILT_IN: tuple = (
    closed_form,
    mixture,
    smooth,
    everyday,
    rugged,
    separated,
    gaussian_field,
    nonlinear_field,
    network_prior,
    navier_stokes,
)
FILED: tuple = (sbibm, posteriordb)


def targets(data: Path | str | None = None) -> dict[str, Target]:
    """Every posterior by name, as ``family/posterior`` or ``family/posterior/number``.

    `data`: a folder with `sbibm/` and `posteriordb/`; without it, or where a family's folder is not there, the
    posteriors that need it are left out.

    Raises `ValueError` where `data` is given and is no folder.
    """
    found = [target for family in BUILT_IN for target in family.targets()]
    if data is not None:
        if not Path(data).is_dir():
            raise ValueError(f"data must be a folder with sbibm/ and posteriordb/; got {data}, which is none")
        for family in FILED:
            folder = Path(data) / family.FOLDER
            if folder.is_dir():
                found += family.targets(folder)
    return {target.name: target for target in found}


def suites(data: Path | str | None = None) -> dict[str, list[str]]:
    """Names of the posteriors in each suite; `data` as in `targets`."""
    collections: dict[str, list[str]] = {}
    for name, target in targets(data).items():
        for suite in target.suites:
            collections.setdefault(suite, []).append(name)
    return collections
