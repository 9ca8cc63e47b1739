"""Host code within JAX programs: batches, memory, several devices, and one core that has to do everything."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import io_callback

from enkg_ppl.evaluation._host_call import calls_host, has_loops, host_call

NUMBER = jax.ShapeDtypeStruct((), jnp.float64)


def weighted(x, y):
    """Over the last axis of both, whatever leads."""
    return np.sum(x * y, axis=-1)


def call(x, y):
    return host_call(weighted, NUMBER, x, y)


X = np.arange(24.0).reshape(2, 4, 3)
Y = np.array([1.0, -2.0, 0.5])


@pytest.mark.parametrize("transform", [jax.jit, lambda f: f], ids=["jit", "eager"])
def test_batches(transform):
    np.testing.assert_array_equal(transform(call)(X[0, 0], Y), X[0, 0] @ Y)
    np.testing.assert_array_equal(transform(jax.vmap(call, (0, None)))(X[0], Y), X[0] @ Y)
    np.testing.assert_array_equal(transform(jax.vmap(call, (1, None)))(X[0].T, Y), X[0] @ Y)
    np.testing.assert_array_equal(transform(jax.vmap(jax.vmap(call, (0, None)), (0, None)))(X, Y), X @ Y)
    np.testing.assert_array_equal(transform(lambda x: jax.lax.map(lambda x: call(x, Y), x))(X[0]), X[0] @ Y)


def test_a_batch_is_one_call():
    seen = []

    def note(x):
        seen.append(x.shape)
        return x.sum(axis=-1)

    jax.jit(jax.vmap(lambda x: host_call(note, NUMBER, x)))(X[0])
    assert seen == [(4, 3)]


def test_trees_of_results():
    shapes = {"sum": NUMBER, "twice": jax.ShapeDtypeStruct((3,), jnp.float32)}

    def both(x):
        return {"sum": x.sum(axis=-1), "twice": (2 * x).astype(np.float32)}

    found = jax.jit(jax.vmap(lambda x: host_call(both, shapes, x)))(X[0])
    np.testing.assert_array_equal(found["sum"], X[0].sum(axis=-1))
    np.testing.assert_array_equal(found["twice"], 2 * X[0])
    assert found["twice"].dtype == np.float32


def test_arguments_may_be_kept():
    """They are copies, not XLA's own memory, which the next run of the program writes to."""
    kept = []

    def keep(x):
        kept.append(x)
        return x.sum(axis=-1)

    program = jax.jit(lambda x: host_call(keep, NUMBER, jnp.sin(x)))
    points = np.random.default_rng(0).standard_normal((20, 1000))
    for point in points:
        jax.block_until_ready(program(point))
    for got, point in zip(kept, points, strict=True):
        np.testing.assert_allclose(got, np.sin(point), rtol=1e-12)
        got[:] = 0.0  # and the caller's to change


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: np.float32(1.0)], ids=["shape", "dtype"])
def test_wrong_results_are_told(wrong):
    with pytest.raises(ValueError, match=r"host code must return float64 of shape \(\)"):
        host_call(wrong, NUMBER, Y)


def test_what_calls_the_host():
    assert calls_host(jax.make_jaxpr(call)(X[0, 0], Y))
    assert calls_host(jax.make_jaxpr(lambda x: jax.pure_callback(np.sum, NUMBER, x))(Y))
    assert calls_host(jax.make_jaxpr(lambda x: io_callback(np.sum, NUMBER, x))(Y))
    assert not calls_host(jax.make_jaxpr(jnp.sin)(Y))
    assert not calls_host(jax.make_jaxpr(lambda x: jax.debug.print("{}", x) or x)(Y))


def custom_jvp(f):
    g = jax.custom_jvp(f)
    g.defjvp(lambda primals, tangents: (f(*primals), tangents[0]))
    return g


def custom_vjp(f):
    g = jax.custom_vjp(f)
    g.defvjp(lambda x: (f(x), x), lambda x, cotangent: (cotangent,))
    return g


def on_a_mesh(f):
    everywhere = jax.sharding.PartitionSpec()
    mesh = jax.make_mesh((1,), ("devices",))
    return jax.shard_map(f, mesh=mesh, in_specs=everywhere, out_specs=everywhere, check_vma=False)


# A function of a number that calls another one, and whether it has a loop of its own.
WITHIN = {
    "jit": (jax.jit, False),
    "jit-in-jit": (lambda f: jax.jit(lambda x: jax.jit(f)(x) + 1), False),
    "scan": (lambda f: lambda x: jax.lax.scan(lambda c, _: (f(c), None), x, None, length=2)[0], True),
    "while": (lambda f: lambda x: jax.lax.while_loop(lambda c: f(c) < 0, lambda c: c + 1, x), True),
    "map": (lambda f: lambda x: jax.lax.map(f, jnp.stack([x, x])), True),
    "cond": (lambda f: lambda x: jax.lax.cond(x > 0, f, jnp.cos, x), False),
    "switch": (lambda f: lambda x: jax.lax.switch(0, [jnp.cos, jnp.tan, f], x), False),
    "vmap": (lambda f: lambda x: jax.vmap(f)(jnp.stack([x, x])), False),
    "checkpoint": (jax.checkpoint, False),
    "custom_jvp": (custom_jvp, False),
    "custom_vjp": (custom_vjp, False),
    "sequential_vmap": (jax.custom_batching.sequential_vmap, False),
    "shard_map": (on_a_mesh, False),
}


@pytest.mark.parametrize("name", WITHIN)
def test_what_calls_the_host_is_found_however_deep(name):
    wrap, has_loop = WITHIN[name]

    def no_host_call_nor_scan_here(x):
        return jnp.sin(x)

    def pure(x):
        return host_call(lambda a: np.sin(a), NUMBER, x)

    for f, on_host in ((jax.jit(no_host_call_nor_scan_here), False), (pure, True)):
        program = jax.make_jaxpr(wrap(f))(1.0)
        assert (calls_host(program), has_loops(program)) == (on_host, has_loop)
        assert (calls_host(program.jaxpr), has_loops(program.jaxpr)) == (on_host, has_loop)


def test_there_is_no_gradient():
    with pytest.raises(TypeError, match="has no gradient: use a method that needs none"):
        jax.grad(call)(X[0, 0], Y)


def in_a_process(program: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"JAX_ENABLE_X64": "1"} | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


ONE_CORE = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
import jax, jax.numpy as jnp, numpy as np
from enkg_ppl import blackbox
simulate = blackbox(lambda x: x[:1], shape=(1,))
def slow(x):
    return simulate(jax.lax.fori_loop(0, 20, lambda i, y: jnp.sin(y @ y * x + y), x))
program = jax.jit(jax.vmap(slow))
for i in range(100):
    np.asarray(program(np.random.default_rng(i).standard_normal((1000, 16))))
print("done")
"""


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="the cores of a process cannot be chosen here")
def test_one_core_is_enough():
    """128 kB of arguments, which `jax.pure_callback` would wait for forever within its first few calls."""
    assert in_a_process(ONE_CORE) == "done\n"


SEVERAL_DEVICES = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from enkg_ppl import blackbox
simulate = blackbox(lambda x: x.sum(), shape=())
rows = NamedSharding(Mesh(np.array(jax.devices()), ("rows",)), PartitionSpec("rows"))
x = jax.device_put(np.arange(24.0).reshape(8, 3), rows)
found = jax.jit(lambda x: 2 * jax.vmap(simulate)(x + 1.0))(x)
print(len(jax.devices()), np.array_equal(found, 2 * (np.asarray(x) + 1).sum(axis=1)), simulate.num_calls)
"""


def test_rows_on_several_devices():
    """Gathered on one of them, and simulated once."""
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=4"
    assert in_a_process(SEVERAL_DEVICES, XLA_FLAGS=flags) == "4 True 8\n"
