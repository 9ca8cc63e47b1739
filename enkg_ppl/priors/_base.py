"""What a diffusion prior must offer: a denoiser for one particle, and its rough size."""

from __future__ import annotations

import abc
from typing import NamedTuple

import equinox as eqx
from jaxtyping import Array, Float

from enkg_ppl.types import Key, Scalar, Vector


class Grid(NamedTuple):
    """What a latent vector is: `channels` of values at the points of a line, a plane or a box of this `shape`.

    `periodic`: whether opposite edges meet.
    """

    channels: int
    shape: tuple[int, ...]
    periodic: bool


class Prior(eqx.Module):
    """A distribution over latent vectors, known through its denoiser.

    A new prior implements `denoise` and the three attributes. `conditional_sample`, `sample` and
    `log_prob` are for closed forms; where a prior leaves them out, the flow (`enkg_ppl.Flow`)
    answers them from the denoiser.
    """

    @property
    @abc.abstractmethod
    def dim(self) -> int:
        """Length of the latent vector."""

    @property
    @abc.abstractmethod
    def location(self) -> Vector:
        """Mean of the prior, or a rough guess of it; the flow starts around it."""

    @property
    @abc.abstractmethod
    def scale(self) -> Scalar:
        """Standard deviation along the prior's widest direction, at least roughly."""

    @abc.abstractmethod
    def denoise(self, x: Vector, sigma: Scalar) -> Vector:
        """Return ``E[x0 | x0 + sigma * eps = x]`` for ONE particle, ``eps ~ N(0, I)``, ``sigma > 0``."""

    def conditional_sample(self, key: Key, x: Vector, sigma: Scalar) -> Vector | None:
        """Draw ``x0 ~ p(x0 | x0 + sigma * eps = x)`` in closed form, or return None where there is none."""
        return None

    def sample(self, key: Key) -> Float[Array, " dim"] | None:
        """Draw one latent vector in closed form, or return None where there is none."""
        return None

    def log_prob(self, x: Vector) -> Scalar | None:
        """Log density of the prior itself (noise level 0) in nats, or None where there is no closed form."""
        return None

    @property
    def chunk_size(self) -> int | None:
        """Particles evaluated at a time, to bound memory (see `over_particles`); None for the whole ensemble."""
        return None

    @property
    def grid(self) -> Grid | None:
        """What the latent vector is a field on, or None where neighbours in it are no neighbours."""
        return None

    @property
    def has_affine_denoiser(self) -> bool:
        """Whether `denoise` is affine in x, so that its derivative is the same everywhere: true of Gaussian priors."""
        return False

    @property
    def has_transport(self) -> bool:
        """Whether `decode` and `encode` are closed forms; where not, the probability flow takes their place."""
        return False

    def decode(self, z: Vector) -> Vector:
        """Map ``z ~ N(0, I)`` to ``x ~ prior`` in closed form."""
        raise TypeError(f"{type(self).__name__} has no closed-form transport; use Flow(prior).decode")

    def encode(self, x: Vector) -> Vector:
        """The inverse of `decode`."""
        raise TypeError(f"{type(self).__name__} has no closed-form transport; use Flow(prior).encode")
