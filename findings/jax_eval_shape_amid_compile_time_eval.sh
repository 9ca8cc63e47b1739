#!/usr/bin/env bash
# jax 0.10.2: inside `jax.ensure_compile_time_eval()`, `jax.eval_shape` of a function without array arguments computes:
# every operation of it is compiled and run, although only shapes come back.
#
# `eval_shape` is what one asks for the structure of a network without drawing its weights, and
# `ensure_compile_time_eval` what one needs to look at values amid somebody else's trace. Where they meet, operations that
# depend on no argument are not staged: a key that is made, or closed over, inside the function is a value like any other,
# so a network of 63 layers was initialised, one program for each shape of weights, to be thrown away. Passed as an
# argument the same key stays abstract, and `make_jaxpr` stages both. Nothing tells: the answer is the same.
#
# Seen (programs compiled): as usual 0 without and 0 with an argument; amid compile-time evaluation 16 without and 0 with.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install -q 'jax==0.10.2' 'jaxlib==0.10.2'
env -u JAX_COMPILATION_CACHE_DIR "$folder/venv/bin/python" - <<'PY'
import sys

import jax
import jax.numpy as jnp

programs = []
jax.monitoring.register_event_duration_secs_listener(
    lambda name, seconds, **more: programs.append(name) if name.endswith("backend_compile_duration") else None
)
SIZES = range(2, 10)


def layers(x):
    return [jnp.sin(jnp.pad(x, (0, size))) for size in SIZES]


def compiled(look):
    jax.clear_caches()
    programs.clear()
    shapes = [out.shape for out in look()]
    assert shapes == [(len(x) + size,) for size in SIZES]
    return len(programs)


x = jax.block_until_ready(jnp.ones(3))
looks = {
    "without": lambda: jax.eval_shape(lambda: layers(x)),
    "with": lambda: jax.eval_shape(layers, x),
}
usual = {name: compiled(look) for name, look in looks.items()}
with jax.ensure_compile_time_eval():
    amid = {name: compiled(look) for name, look in looks.items()}
print(f"programs compiled, an argument or none: usually {usual}, amid compile-time evaluation {amid}")
as_seen = usual == {"without": 0, "with": 0} and amid["without"] >= len(SIZES) > amid["with"]
sys.exit(0 if as_seen else "this version behaves otherwise")
PY
