"""Von Mises: the quantile of the angle from the location, cut opposite to it and wrapped to ``(-pi, pi)``.

The cut turns with the location, so a prior that is concentrated near pi is one bump of scores, not two.
"""

import jax.numpy as jnp
import numpyro.distributions as dist

from enkg_ppl import quantiles as q
from enkg_ppl.numpyro.transports._base import elementwise, inside


def _wrapped(angle):
    """The same direction in ``[-pi, pi]``; what lies there already is not touched, hence not rounded."""
    turned = angle - 2.0 * jnp.pi * jnp.round(angle / (2.0 * jnp.pi))
    return jnp.where(jnp.abs(angle) <= jnp.pi, angle, turned)


elementwise(
    dist.VonMises,
    "loc concentration",
    lambda z, loc, kappa: inside(_wrapped(loc + q.von_mises(z, kappa)), -jnp.pi, jnp.pi),
    lambda x, loc, kappa: q.von_mises_score(_wrapped(x - loc), kappa),
)
