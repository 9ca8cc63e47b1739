"""Simulations that take too long, whose process dies, and pools that break: who is blamed, and what goes on."""

import multiprocessing
import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from concurrent.futures.thread import BrokenThreadPool

import jax
import numpy as np
import pytest
import simulators

from enkg_ppl import BlackBoxError, blackbox
from enkg_ppl.evaluation import _workers as workers
from enkg_ppl.evaluation._black_box import raise_host_failure

# Workers begin as copies of a process that has only imported the package, which is what takes time.
multiprocessing.set_forkserver_preload(["enkg_ppl"])
FRESH = multiprocessing.get_context("forkserver")
X = np.array([0.0, 1.0, 3.0, 0.5, 1.5, 0.2, 0.3, 0.4])[:, None]
EXPECTED = np.where(X > 2, np.nan, 2 * X)


def all_of(simulate, x=X):
    with raise_host_failure():
        return jax.block_until_ready(jax.vmap(simulate)(x))


@pytest.fixture
def pool():
    with ProcessPoolExecutor(2, mp_context=FRESH) as pool:
        yield pool


def test_a_worker_that_dies_takes_none_with_it(pool):
    """One of eight ends its process: that one alone is rejected, in this ensemble and the next, with the same pool."""
    simulate = blackbox(simulators.dies, (1,), executor=pool, on_failure="reject")
    np.testing.assert_array_equal(all_of(simulate), EXPECTED)
    assert (simulate.num_calls, simulate.num_rejected) == (8, 1)
    another = blackbox(simulators.dies, (1,), executor=pool)
    np.testing.assert_array_equal(all_of(another, X[3:]), EXPECTED[3:])
    words = r"^dies ended its worker process \(killed, out of memory, or os._exit\), for x=\[3\.\]: mend"
    with pytest.raises(BlackBoxError, match=words):
        all_of(another)


def test_a_pool_whose_processes_always_die(pool):
    words = (
        r"^the executor of always_dies ends its worker processes at every simulation \(.*\): start the program under "
        r"`if __name__ == '__main__':`"
    )
    with pytest.raises(BlackBoxError, match=words) as caught:
        all_of(blackbox(simulators.always_dies, (1,), executor=pool, on_failure="reject"))
    assert isinstance(caught.value.__cause__, BrokenProcessPool)


@pytest.mark.parametrize("fn", [simulators.sleeps, simulators.hangs], ids=["sleeps", "holds the lock"])
def test_too_long_in_a_process(pool, fn, monkeypatch):
    monkeypatch.setattr(workers, "GRACE", 2.0)
    simulate = blackbox(fn, (1,), executor=pool, timeout=1.0, on_failure="reject")
    np.testing.assert_array_equal(all_of(simulate), EXPECTED)
    assert simulate.num_rejected == 1


def test_a_time_out_begins_with_the_simulation():
    """Two threads, both busy with a slow one: the six that wait for them are in time."""
    begun = []

    def fn(x):
        begun.append(float(x[0]))
        time.sleep(5.0 if x[0] > 0 else 0.0)
        return x

    x = np.array([1.0, 2.0, -1.0, -2.0, -3.0, -4.0, 3.0, -5.0])[:, None]
    with ThreadPoolExecutor(2) as threads:
        started = time.monotonic()
        found = all_of(blackbox(fn, (1,), executor=threads, timeout=0.3, on_failure="reject"), x)
        np.testing.assert_array_equal(found, np.where(x > 0, np.nan, x))
    assert time.monotonic() - started < 4.0  # nobody waits for what is left behind, the pool's end included
    assert len(begun) == 8


def test_an_own_time_out_error_is_an_error_like_any_other():
    def fn(x):
        raise TimeoutError("no licence within 5 s")

    with pytest.raises(BlackBoxError, match=r"^fn raised TimeoutError: no licence within 5 s, for x="):
        all_of(blackbox(fn, (1,), on_failure="raise"))


ENDS = """
import glob, subprocess, time
from concurrent.futures import ThreadPoolExecutor
import numpy as np
from enkg_ppl import blackbox

def turns(x):
    while True:
        pass

def sleeps(x):
    time.sleep(60)

def starts(x):
    subprocess.run(["sleep", "60"])

def simulate(fn, executor=None):
    timed = blackbox(fn, (1,), timeout=0.2, on_failure="reject", executor=executor)
    return bool(np.isnan(np.asarray(timed(np.ones(1))))[0])

print(simulate(turns, ThreadPoolExecutor(1)), simulate(sleeps), simulate(starts))
time.sleep(0.3)
print([open(children).read() for children in glob.glob("/proc/self/task/*/children")])
busy = time.process_time()
time.sleep(0.3)
print(time.process_time() - busy < 0.2)
"""


def test_the_program_ends_after_a_time_out():
    """In time, though the simulations would take a minute; processes and loops that they began are ended at once."""
    started = time.monotonic()
    done = subprocess.run([sys.executable, "-c", ENDS], capture_output=True, text=True, timeout=50, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert time.monotonic() - started < 50
    simulated, processes, idle = done.stdout.splitlines()
    assert (simulated, idle) == ("True True True", "True")
    if os.path.exists("/proc/self/task"):
        assert set(processes) <= set("[], '")


def test_what_cannot_be_used():
    closed = ThreadPoolExecutor(1)
    closed.shutdown()
    words = (
        r"^the executor of fn takes no further simulation \(cannot schedule .*\): keep it open until the run has ended"
    )
    with pytest.raises(BlackBoxError, match=words):
        all_of(blackbox(lambda x: x, (1,), executor=closed, name="fn"))

    def start():
        raise OSError("no licence")

    broken = ThreadPoolExecutor(1, initializer=start)
    words = r"^the executor of fn is broken \(BrokenThreadPool: .*\) and cannot be made anew here: use a concurrent"
    with pytest.raises(BlackBoxError, match=words) as caught:
        all_of(blackbox(lambda x: x, (1,), executor=broken, name="fn"))
    assert isinstance(caught.value.__cause__, BrokenThreadPool)


def test_pools_that_cannot_work_are_told_beforehand(pool):
    with pytest.raises(
        TypeError, match=r"^<lambda> cannot be sent to the processes of a ProcessPoolExecutor: define it"
    ):
        blackbox(lambda x: x, (1,), executor=pool)
    words = r"^the ProcessPoolExecutor of dies forks, .* process hangs where it uses JAX: .*get_context\('spawn'\)"
    with (
        ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("fork")) as forking,
        pytest.warns(UserWarning, match=words),
    ):
        blackbox(simulators.dies, (1,), executor=forking)
