#!/usr/bin/env bash
# numpyro 0.22.0, arviz 0.23.4 (Python 3.11): a latent site called "draw" is not in the posterior that from_numpyro makes.
#
# ArviZ names the dimensions of draws "chain" and "draw". A variable of the name of a dimension is that dimension's
# coordinate, and the site's draws are dropped for the numbers 0, 1, 2, ...: the site is gone from the data variables,
# from every summary and from the coordinate, and no warning says so. The same holds for "chain", and for "x_dim_0" beside a vector "x".
#
# Seen: the samples have ['a', 'draw'], the posterior ['a'], the coordinate "draw" is 0, 1, 2, ...
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3.11}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'numpyro==0.22.0' 'jax==0.10.2' 'jaxlib==0.10.2' 'arviz==0.23.4'
"$folder/venv/bin/python" -W ignore - <<'PY'
import sys

import arviz
import jax
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS


def model():
    numpyro.sample("a", dist.Normal())
    numpyro.sample("draw", dist.Normal(5.0, 0.1))
    numpyro.sample("y", dist.Normal(), obs=0.0)


mcmc = MCMC(NUTS(model), num_warmup=20, num_samples=20, progress_bar=False)
mcmc.run(jax.random.key(0))
posterior = arviz.from_numpyro(mcmc).posterior
samples, variables = sorted(mcmc.get_samples()), sorted(posterior.data_vars)
print(f"samples {samples}, posterior {variables}, coordinate draw begins {posterior.coords['draw'].values.ravel()[:3]}")
sys.exit(0 if samples == ["a", "draw"] and variables == ["a"] else "this version behaves otherwise")
PY
