"""What the flow and the reverse SDE ask of a prior."""

from __future__ import annotations

from typing import Protocol

from enkg_ppl.types import Scalar, Vector


class Denoiser(Protocol):
    """The part of a `Prior` that all else can be computed from."""

    @property
    def location(self) -> Vector: ...

    @property
    def scale(self) -> Scalar: ...

    def denoise(self, x: Vector, sigma: Scalar) -> Vector: ...
