"""Priors that are no transport of a standard normal, each in one sentence with what to write instead."""

import numpyro.distributions as dist
from numpyro.distributions.transforms import AbsTransform


class UnsupportedPriorError(TypeError):
    """A latent site has a distribution without a transport to a standard normal; the message names the remedy."""


CENSORED = (dist.LeftCensoredDistribution, dist.RightCensoredDistribution, dist.IntervalCensoredDistribution)
POINT_MASS = (dist.HurdleGamma, dist.HurdleLogNormal)
MIXTURE = (dist.MixtureSameFamily, dist.MixtureGeneral)

# What follows "<name> ", by class; the first that fits is taken.
REASONS: dict[type | tuple[type, ...], str] = {
    dist.MaskedDistribution: "is not a prior: masking removes the density of a latent site, so it would be improper; "
    "mask the likelihood, or leave the site out of the model.",
    dist.ImproperUniform: "cannot be sampled, and the ensemble starts in the prior; give a proper prior, "
    "e.g. dist.Normal(0, 100).",
    dist.Delta: "leaves nothing to infer; write the site as numpyro.deterministic, or pass the value as a constant.",
    dist.Unit: "carries no value, only a log weight; declare it with obs=, or through numpyro.factor.",
    CENSORED: "is a likelihood of incomplete data; declare it with obs=, or take its base distribution as prior.",
    POINT_MASS: "has a point mass beside its density, and the ensemble moves along continuous paths; marginalise the "
    "choice out of the likelihood, or take its continuous part as prior.",
    dist.ProjectedNormal: "has more scores than dimensions; sample x from dist.Normal(concentration, 1).to_event(1), "
    "and use x / jnp.linalg.norm(x) in the model.",
    dist.SineBivariateVonMises: "has no closed quantiles; learn it with fit_prior(fn), or take independent "
    "dist.VonMises angles.",
    dist.SineSkewed: "has no closed quantiles; learn it with fit_prior(fn), or take its base distribution.",
    dist.TruncatedPolyaGamma: "has no closed quantiles; learn it with fit_prior(fn), or take a dist.TruncatedGamma.",
    MIXTURE: "has several dimensions, and only mixtures of scalars are transports; learn it with fit_prior(fn), or "
    "write a Gaussian mixture as DiffusionPrior(MixturePrior(...)).",
    dist.FoldedDistribution: "takes the absolute value of a skewed distribution; sample the base distribution, and use "
    "its jnp.abs in the model.",
}


def reason(fn) -> str:
    name = type(fn).__name__
    for cls, words in REASONS.items():
        if isinstance(fn, cls):
            return f"{name} {words}"
    if folds(fn):
        return (
            f"{name} takes an absolute value, which has no inverse; sample the base distribution, and use its jnp.abs "
            "in the model."
        )
    if _is_discrete(fn):
        return (
            f"{name} is discrete, and the ensemble moves along continuous paths; marginalise the site out "
            "of the likelihood, or condition on it."
        )
    return (
        f"{name} has no transport from a standard normal; learn it with fit_prior(fn), build the site from supported "
        "distributions, or give it one with enkg_ppl.numpyro.transports.register."
    )


def folds(fn) -> bool:
    transformed = isinstance(fn, dist.TransformedDistribution)
    return transformed and any(isinstance(t, AbsTransform) for t in fn.transforms)


def _is_discrete(fn) -> bool:
    try:
        return bool(fn.support.is_discrete)
    except (AttributeError, NotImplementedError):
        return False
