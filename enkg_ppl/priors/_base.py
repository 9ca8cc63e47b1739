"""What a diffusion prior must offer: a denoiser for one particle, and its rough size. The rest follows from these."""

from __future__ import annotations

import abc
from typing import NamedTuple

import equinox as eqx
import jax
import jax.random as jr

from enkg_ppl.priors._multistep import flow_down, flow_up
from enkg_ppl.priors._reverse_sde import reverse_sde_sample
from enkg_ppl.types import Key, Scalar, Vector

CONDITIONAL_STEPS = 8  # of the reverse SDE, one evaluation of the denoiser each
CORRECTIONS = 2  # of z, by what its own x lacks; each makes the error some thirty times smaller


class Grid(NamedTuple):
    """The grid of a latent vector that is a field on a line, a plane or a box.

    Attributes:
        channels: values at each point.
        shape: points along each axis.
        periodic: whether opposite edges are neighbours.
    """

    channels: int
    shape: tuple[int, ...]
    periodic: bool


class Prior(eqx.Module):
    """A distribution over latent vectors, known through its denoiser.

    A new prior implements `denoise` and the three attributes `dim`, `location` and `scale`. All else follows from the
    denoiser: `decode` and `encode` by the probability-flow ODE in a fixed number of steps, `sample` by `decode`, and
    `conditional_sample` by the reverse SDE. A prior with closed forms overrides them. Only `log_prob` has no default
    where there is no closed form; `Flow(prior).log_prob` has one.

    Every method takes ONE particle; `chunked_vmap` applies it to ensembles.
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
        """Return ``E[x0 | x0 + sigma * eps = x]`` for ONE particle, ``eps ~ N(0, I)``.

        Args:
            x: noisy latent vector, shape (dim,).
            sigma: noise level, above 0.
        """

    def sample(self, key: Key) -> Vector:
        """Draw one latent vector.

        Args:
            key: random key.
        """
        return self.decode(jr.normal(key, self.location.shape, self.location.dtype))

    def rough_sample(self, key: Key) -> Vector:
        """Draw one latent vector, approximately where that is cheaper: for starting points, not for weighting.

        Args:
            key: random key.
        """
        return self.sample(key)

    def conditional_sample(self, key: Key, x: Vector, sigma: Scalar, num_steps: int = CONDITIONAL_STEPS) -> Vector:
        """Draw ``x0 ~ p(x0 | x0 + sigma * eps = x)``.

        Args:
            key: random key.
            x: noisy latent vector, shape (dim,).
            sigma: noise level, above 0.
            num_steps: steps of the reverse SDE, one evaluation of the denoiser each; closed forms need none.
        """
        return reverse_sde_sample(key, self, x, sigma, num_steps)

    def decode(self, z: Vector) -> Vector:
        """Map ``z ~ N(0, I)`` to ``x ~ prior``, in 24 evaluations of the denoiser.

        The steps are the same for all z, so that this is one smooth map. A method that uses the prior through this map
        alone has exactly the distribution of its values as prior.

        Args:
            z: shape (dim,).
        """
        return flow_down(self, z)

    def encode(self, x: Vector, num_corrections: int = CORRECTIONS) -> Vector:
        """The inverse of `decode`, in 32 evaluations of the denoiser and 56 for every correction.

        Args:
            x: latent vector, shape (dim,).
            num_corrections: with 0, z is that of the flow in the opposite direction, whose steps differ from those of
                `decode`.
        """
        first = flow_up(self, x)
        if not num_corrections:
            return first
        corrected = lambda z, _: (z + first - flow_up(self, flow_down(self, z)), None)  # noqa: E731
        return jax.lax.scan(corrected, first, None, num_corrections)[0]

    def log_prob(self, x: Vector) -> Scalar | None:
        """Log density of the prior itself (noise level 0) in nats, or None where there is no closed form.

        Args:
            x: latent vector, shape (dim,).
        """
        return None

    @property
    def chunk_size(self) -> int | None:
        """Particles evaluated at a time, to bound memory (see `chunked_vmap`); None for the whole ensemble."""
        return None

    @property
    def grid(self) -> Grid | None:
        """The grid that the latent vector is a field on, or None where adjacent entries are not neighbours."""
        return None

    @property
    def has_affine_denoiser(self) -> bool:
        """Whether `denoise` is affine in x, so that its derivative is constant: true of Gaussian priors."""
        return False

    @property
    def has_transport(self) -> bool:
        """Whether `decode` and `encode` are closed forms of negligible cost."""
        return False
