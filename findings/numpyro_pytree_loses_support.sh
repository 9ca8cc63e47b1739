#!/usr/bin/env bash
# numpyro 0.22.0, jax 0.10.2: outside of its support a distribution has log density -inf only as long as it has not been
# through a pytree.
#
# NumPyro validates by default, and under jit that is what puts -inf where the data are impossible. The default is an
# attribute of the class; flattening stores the instance's, which is None, so what comes back out of tree_unflatten,
# vmap, scan or the arguments of jit evaluates the density's formula wherever it is asked. A likelihood whose support
# depends on an unknown (start + HalfNormal, Pareto, LogUniform) then has no edge: posteriors come out wrong and finite.
# A guard against it belongs wherever a distribution is carried through a transformation.
#
# Seen: fresh -inf; through the argument of jit -0.7257913; through vmap -0.7257913; with validate_args=True -inf.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'numpyro==0.22.0' 'jax==0.10.2' 'jaxlib==0.10.2'
"$folder/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp
import numpyro.distributions as dist

y = jnp.float32(-1.0)  # a HalfNormal has no such values
log_prob = jax.jit(lambda d, y: d.log_prob(y))
fresh = float(jax.jit(lambda scale, y: dist.HalfNormal(scale).log_prob(y))(1.0, y))
through_jit = float(log_prob(dist.HalfNormal(1.0), y))
several = jax.vmap(lambda scale: dist.HalfNormal(scale))(jnp.ones(2))
through_vmap = float(jax.jit(jax.vmap(lambda d: d.log_prob(y)))(several)[0])
told = float(log_prob(dist.HalfNormal(1.0, validate_args=True), y))
print(f"fresh {fresh}, through jit {through_jit:.7f}, through vmap {through_vmap:.7f}, validate_args=True {told}")
as_seen = fresh == told == -jnp.inf and abs(through_jit + 0.7257914) < 1e-5 and abs(through_vmap + 0.7257914) < 1e-5
sys.exit(0 if as_seen else "this version behaves otherwise")
PY
