"""Five posteriors of posteriordb, with ten thousand reference draws each.

Where a prior there is flat, it is a Normal here, so wide that means move by less than 0.005 posterior standard
deviations; the models say how wide.

Source: Magnusson, Torgander, Buerkner, Zhang, Carpenter & Vehtari, "posteriordb: Testing, Benchmarking and Developing
Bayesian Inference Algorithms", arXiv 2407.04967; github.com/stan-dev/posteriordb.
"""

from __future__ import annotations

import functools
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
from jaxtyping import ArrayLike, Float

from models import lynx_hare
from validation.target import Target, Truth

FOLDER = "posteriordb"


def eight_schools_noncentered(sigma: Float[ArrayLike, "8"], y: Float[ArrayLike, "8"] | None = None) -> None:
    """Effects of coaching in eight schools, each theta_j = mu + tau z_j seen with a known standard error."""
    mu = numpyro.sample("mu", dist.Normal(0.0, 5.0))
    tau = numpyro.sample("tau", dist.HalfCauchy(5.0))
    with numpyro.plate("schools", 8):
        z = numpyro.sample("z", dist.Normal(0.0, 1.0))
        theta = numpyro.deterministic("theta", mu + tau * z)
        numpyro.sample("y", dist.Normal(theta, sigma), obs=y)


# The posterior of (b1, b2) has standard deviations (5.9, 0.059) around (26, 0.61). Each of these priors alone moves
# the means by less than 0.005 of that, and the two pull in opposite directions.
INTERCEPT_SD, SLOPE_SD = 200.0, 3.0


def kidscore_momiq(mom_iq: Float[ArrayLike, " kids"], kid_score: Float[ArrayLike, " kids"] | None = None) -> None:
    """A child's test score by the mother's IQ, b1 + b2 IQ; priors of b that are flat in the source."""
    beta = numpyro.sample("beta", dist.Normal(jnp.zeros(2), jnp.array([INTERCEPT_SD, SLOPE_SD])).to_event(1))
    sigma = numpyro.sample("sigma", dist.HalfCauchy(2.5))
    beta = jnp.asarray(beta)
    numpyro.sample("kid_score", dist.Normal(beta[0] + beta[1] * jnp.asarray(mom_iq), sigma).to_event(1), obs=kid_score)


def gp_regr(x: Float[ArrayLike, " points"], y: Float[ArrayLike, " points"] | None = None) -> None:
    """Gaussian process regression: length scale rho, amplitude alpha, and sigma, the VARIANCE of the noise."""
    rho = jnp.asarray(numpyro.sample("rho", dist.Gamma(25.0, 4.0)))
    alpha = jnp.asarray(numpyro.sample("alpha", dist.HalfNormal(2.0)))
    sigma = jnp.asarray(numpyro.sample("sigma", dist.HalfNormal(1.0)))
    x = jnp.asarray(x, float)
    distance = x[:, None] - x[None, :]
    covariance = alpha**2 * jnp.exp(-(distance**2) / (2 * rho**2)) + sigma * jnp.eye(len(x))
    numpyro.sample("y", dist.MultivariateNormal(jnp.zeros(len(x)), covariance), obs=y)


def sblri_blr(X: Float[ArrayLike, "points covariates"], y: Float[ArrayLike, " points"] | None = None) -> None:
    """Linear regression without intercept on five covariates, noise of unknown size."""
    X = jnp.asarray(X)
    beta = jnp.asarray(numpyro.sample("beta", dist.Normal(0.0, 10.0).expand([X.shape[1]]).to_event(1)))
    sigma = numpyro.sample("sigma", dist.HalfNormal(10.0))
    numpyro.sample("y", dist.Normal(X @ beta, sigma).to_event(1), obs=y)


def targets(folder: Path) -> list[Target]:
    """The posteriors whose file is in `folder`: ``posteriordb/<name>``."""
    found = []
    for name, (file, build) in POSTERIORS.items():
        path = folder / f"{file}.npz"
        if path.exists():
            with np.load(path, allow_pickle=False) as data:
                found.append(build(name=f"posteriordb/{name}", data=data, truth=functools.partial(_truth, path)))
    return found


def _truth(path: Path) -> Truth:
    with np.load(path, allow_pickle=False) as file:
        draws = file["draws"].reshape(-1, len(file["param_names"]))
    return Truth(np.asarray(draws, float), source="posteriordb reference draws")


def _eight_schools(name, data, truth) -> Target:
    return Target(
        name=name,
        suites=(FOLDER,),
        truth=truth,
        model=eight_schools_noncentered,
        args=(np.asarray(data["data_sigma"], float),),
        kwargs={"y": np.asarray(data["data_y"], float)},
        sites=("theta", "mu", "tau"),
    )


def _hudson_lynx_hare(name, data, truth) -> Target:
    # The file has the first year's counts apart.
    years = np.concatenate([[0.0], np.asarray(data["data_ts"], float)])
    pelts = np.concatenate([data["data_y_init"][None], data["data_y"]]).astype(float)
    return Target(
        name=name,
        suites=(FOLDER,),
        truth=truth,
        model=lynx_hare.model,
        args=(years,),
        kwargs={"y": pelts},
        sites=lynx_hare.LATENT_SITES,
        twin=lynx_hare.twin,
    )


def _kidscore_momiq(name, data, truth) -> Target:
    return Target(
        name=name,
        suites=(FOLDER,),
        truth=truth,
        model=kidscore_momiq,
        args=(np.asarray(data["data_mom_iq"], float),),
        kwargs={"kid_score": np.asarray(data["data_kid_score"], float)},
        sites=("beta", "sigma"),
    )


def _gp_regr(name, data, truth) -> Target:
    return Target(
        name=name,
        suites=(FOLDER,),
        truth=truth,
        model=gp_regr,
        args=(np.asarray(data["data_x"], float),),
        kwargs={"y": np.asarray(data["data_y"], float)},
        sites=("rho", "alpha", "sigma"),
    )


def _sblri_blr(name, data, truth) -> Target:
    return Target(
        name=name,
        suites=(FOLDER,),
        truth=truth,
        model=sblri_blr,
        args=(np.asarray(data["data_X"], float),),
        kwargs={"y": np.asarray(data["data_y"], float)},
        sites=("beta", "sigma"),
    )


POSTERIORS = {
    "eight_schools_noncentered": ("eight_schools-eight_schools_noncentered", _eight_schools),
    "hudson_lynx_hare": ("hudson_lynx_hare-lotka_volterra", _hudson_lynx_hare),
    "kidscore_momiq": ("kidiq-kidscore_momiq", _kidscore_momiq),
    "gp_regr": ("gp_pois_regr-gp_regr", _gp_regr),
    "sblri_blr": ("sblri-blr", _sblri_blr),
}
