"""Several ensembles: in turn, on several devices, and side by side give the same draws; threads fail as one does."""

import os
import subprocess
import sys
import textwrap
import threading
import warnings

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import BlackBoxError, EnKG, blackbox
from enkg_ppl.evaluation._ensembles import run_ensembles

Y = jnp.array([0.5, 0.3])
SETTINGS = {"num_particles": 64, "num_ensembles": 3, "progress_bar": False}


def products(x):
    return np.stack([x[:, 0], x[:, 0] * x[:, 1]], axis=1)


def model_of(simulate):
    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0, 1).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(simulate(x), 0.3).to_event(1), obs=y)

    return model


def by_host(calls):
    """A black box that writes down how many particles each call had."""

    def simulate(x):
        calls.append(len(x))
        return products(x)

    return model_of(blackbox(simulate, shape=(2,), vectorized=True))


def test_vectorized_ensembles_share_calls_and_change_no_draw():
    alone, together = [], []
    in_turn = EnKG(by_host(alone), **SETTINGS)
    in_turn.run(jr.key(0), y=Y)
    side_by_side = EnKG(by_host(together), ensemble_method="vectorized", **SETTINGS)
    side_by_side.run(jr.key(0), y=Y)
    for name, draws in in_turn.get_samples(group_by_chain=True).items():
        np.testing.assert_array_equal(side_by_side.get_samples(group_by_chain=True)[name], draws)
    assert side_by_side.num_forward_evaluations == in_turn.num_forward_evaluations == sum(alone) == sum(together)
    assert len(together) < 0.6 * len(alone)


def test_parallel_with_one_device_says_what_to_set():
    enkg = EnKG(model_of(lambda x: jnp.stack([x[0], x[0] * x[1]])), ensemble_method="parallel", **SETTINGS)
    with pytest.warns(UserWarning, match=r"finds one device, so the 3 ensembles run in turn.*jax_num_cpu_devices', 3"):
        enkg.run(jr.key(0), y=Y)


@pytest.mark.slow
def test_several_devices_give_what_one_gives():
    """In a process of its own, since devices are counted when JAX starts."""
    code = """
        import warnings
        import jax, jax.numpy as jnp, jax.random as jr, numpy as np, numpyro, numpyro.distributions as dist
        from enkg_ppl import EnKG
        jax.config.update("jax_num_cpu_devices", 2)
        used = set()

        def model(y=None):
            x = numpyro.sample("x", dist.Normal(0, 1))
            used.add(jax.config.jax_default_device)
            numpyro.sample("y", dist.Normal(x**2, 0.3), obs=y)

        warnings.simplefilter("error")
        draws = []
        for method in ("sequential", "parallel"):
            enkg = EnKG(model, num_particles=32, num_ensembles=2, ensemble_method=method, progress_bar=False)
            enkg.run(jr.key(0), y=0.5)
            draws.append(np.asarray(enkg.get_samples(group_by_chain=True)["x"]))
        np.testing.assert_array_equal(*draws)
        assert draws[0].shape == (2, 32) and not np.array_equal(*draws[0])
        assert used == {None, jax.devices()[1]}, used
    """
    environment = {**os.environ, "JAX_ENABLE_X64": "0"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_precision_set_for_a_block_holds_in_the_threads():
    model = model_of(lambda x: jnp.stack([x[0], x[0] * x[1]]))
    with jax.enable_x64(False):
        enkg = EnKG(model, ensemble_method="vectorized", **SETTINGS)
        enkg.run(jr.key(0), y=np.asarray(Y, np.float32))
    assert enkg.get_samples()["x"].dtype == np.float32


def test_a_failure_in_one_ensemble_is_the_users_own():
    def simulate(x):
        raise RuntimeError("licence server unreachable")

    model = model_of(blackbox(simulate, shape=(2,), vectorized=True, name="solver"))
    with pytest.raises(BlackBoxError, match="solver raised RuntimeError: licence server unreachable"):
        EnKG(model, ensemble_method="vectorized", **SETTINGS).run(jr.key(0), y=Y)


def test_a_meeting_waits_for_those_still_running():
    """Ensembles of different lengths: calls shrink as they leave, each gets its own rows, in the order of ensembles."""
    calls, lock = [], threading.Lock()

    def simulate(x, finish):
        with lock:
            calls.append(x[:, 0].tolist())
        return finish(x)

    def one(i, barrier):
        return [barrier.simulate("s", simulate, np.full((1, 1), 10.0 * i + k), double) for k in range(i + 1)]

    def double(x):
        return 2 * x

    results = run_ensembles(one, 3, "vectorized")
    assert calls == [[0, 10, 20], [11, 21], [22]]
    assert [[float(a[0, 0]) for a in rows] for rows in results] == [[0], [20, 22], [40, 42, 44]]


def test_different_questions_at_a_meeting_are_not_mixed():
    sums, products_ = [], []

    def add(x):
        sums.append(len(x))
        return x + 1

    def multiply(x):
        products_.append(len(x))
        return x * 3

    def one(i, barrier):
        finish = add if i == 0 else multiply
        return float(barrier.simulate("s", lambda x, finish: finish(x), np.full((1, 1), float(i)), finish)[0, 0])

    assert run_ensembles(one, 3, "vectorized") == [1.0, 3.0, 6.0]
    assert (sums, products_) == ([1], [2])


def test_everyone_at_a_meeting_hears_of_a_failure():
    def simulate(x, finish):
        raise FloatingPointError("no")

    heard = []

    def one(i, barrier):
        with pytest.raises(FloatingPointError):
            barrier.simulate("s", simulate, np.zeros((1, 1)), np.sum)
        heard.append(i)

    run_ensembles(one, 3, "vectorized")
    assert sorted(heard) == [0, 1, 2]


def test_unknown_method():
    with pytest.raises(ValueError, match="ensemble_method must be one of sequential, parallel, vectorized; got 'pmap'"):
        EnKG(model_of(jnp.sin), ensemble_method="pmap")  # pyright: ignore[reportArgumentType]


def test_one_ensemble_needs_no_thread():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert run_ensembles(lambda i, barrier: (i, barrier, threading.current_thread()), 1, "parallel") == [
            (0, None, threading.current_thread())
        ]
