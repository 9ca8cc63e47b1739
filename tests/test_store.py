"""Finished simulations are kept, found again by their arguments, and believed only where nothing is amiss."""

import concurrent.futures
import json
import os
import pickle
import resource
import subprocess
import sys
import threading
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import BlackBoxError, EnKG, ModelError, blackbox
from enkg_ppl.evaluation import Store
from enkg_ppl.evaluation._entry import Entry
from enkg_ppl.evaluation._failure import raise_host_failure, watch_black_boxes


class Counted:
    """A function that writes down what it is called with; vectorised calls row by row."""

    def __init__(self, fn, vectorized=False):
        self.fn, self.vectorized, self.calls = fn, vectorized, []
        self.lock = threading.Lock()
        self.__name__ = getattr(fn, "__name__", "fn")

    def __call__(self, *args):
        with self.lock:
            self.calls += zip(*map(list, args), strict=True) if self.vectorized else [args]
        return self.fn(*args)


def double(x):
    return 2 * x


def halve_below_two(x):
    if np.any(x > 2):
        raise ArithmeticError("above two")
    return x / 2


def in_a_run(box, x, check=False, store=None):
    """The box at every row of x, as a run calls it."""
    with watch_black_boxes(check, store), raise_host_failure():
        return np.asarray(jax.block_until_ready(jax.jit(jax.vmap(box))(jnp.asarray(x))))


def boxes(fn, vectorized, folder, **options):
    """The same simulator in two processes, as it were."""
    for _ in range(2):
        counted = Counted(fn, vectorized)
        yield blackbox(counted, (), vectorized=vectorized, store=folder, name="solver", **options), counted


X = np.array([0.5, 1.0, 1.5, 0.5, 2.0])


@pytest.mark.parametrize("vectorized", [False, True])
def test_what_is_kept_is_not_run_again(vectorized, tmp_path):
    first, second = boxes(double, vectorized, tmp_path / "store")
    np.testing.assert_array_equal(in_a_run(first[0], X), 2 * X)
    assert [len(first[1].calls), first[0].num_calls, first[0].num_reused] == [4, 4, 1]  # .5 is there twice
    files = sorted(file.name for file in (tmp_path / "store").glob("solver-*/*.safetensors"))
    assert len(files) == (1 if vectorized else 4)
    np.testing.assert_array_equal(in_a_run(second[0], np.append(X, 3.0)), [*2 * X, 6.0])
    assert [call[0] for call in second[1].calls] == [3.0]
    assert [second[0].num_calls, second[0].num_reused] == [1, 5]
    assert len(Store(tmp_path / "store")) == 5


def test_executors_keep_what_is_finished_behind_one_that_is_not(tmp_path):
    """And after an error, what was under way."""
    folder, others = tmp_path / "store", threading.Event()

    def waits(x):
        if x == 0.0:
            assert others.wait(60)
            raise ArithmeticError("zero")
        return x

    def fails():
        with pytest.raises(BlackBoxError):
            in_a_run(box, np.arange(8.0))

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        box = blackbox(waits, (), executor=pool, store=folder, on_failure="raise")
        caller = threading.Thread(target=fails)
        caller.start()
        while len(Store(folder)) < 7:
            assert caller.is_alive()
        others.set()
        caller.join()
    assert len(Store(folder)) == 7
    assert not Store(folder).table()["failed"].any()


# -- arguments --------------------------------------------------------------------------------------------------------


def test_arguments_are_told_apart_bit_by_bit(tmp_path):
    counted = Counted(lambda x: np.copysign(1.0, x))
    box = blackbox(counted, (), store=tmp_path, name="sign")
    x = np.array([0.0, -0.0, np.nan, np.nan])
    np.testing.assert_array_equal(in_a_run(box, x)[:2], [1.0, -1.0])
    assert len(counted.calls) == 3
    in_a_run(box, x)
    assert len(counted.calls) == 3
    in_a_run(box, x.astype(np.float32))
    assert len(counted.calls) == 6
    assert [len(one) for one in Store(tmp_path).simulators] == [3, 3]


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        (np.float64(1.5),),
        (np.int32(3), np.int8(3), np.uint16(4)),
        (np.bool_(True), np.bool_(False)),
        (np.zeros((0, 3)), np.ones((2, 0), bool)),
        (np.arange(6.0).reshape(2, 3).T, np.array(1 + 2j)),
        (jnp.array([1.0, 2.0], jnp.bfloat16), np.float16(1.0)),
    ],
    ids=lambda a: "-".join(f"{np.asarray(x).dtype}{np.shape(x)}" for x in a) or "none",
)
@pytest.mark.parametrize("dtype", [float, int, complex])
def test_arguments_and_results_of_all_kinds(arguments, dtype, tmp_path):
    counted = Counted(lambda *args: np.full((2, 1), len(args) + sum(np.sum(np.asarray(a, complex)) for a in args).real))
    found = []
    for _ in range(2):
        box = blackbox(counted, (2, 1), dtype=dtype, store=tmp_path, name="sums")
        with watch_black_boxes(), raise_host_failure():
            found.append(box(*arguments))
    assert len(counted.calls) == 1
    assert found[0].dtype == found[1].dtype == np.dtype(dtype)
    np.testing.assert_array_equal(*found)
    table = Store(tmp_path).table()
    np.testing.assert_array_equal(table["result"], np.asarray(found[0])[None])
    for i, a in enumerate(arguments):
        np.testing.assert_array_equal(table[f"argument {i}"], np.asarray(a)[None])


def test_names_versions_and_shapes_are_told_apart(tmp_path):
    counted = Counted(double)
    for name, version, shape in [("a", "", ()), ("b", "", ()), ("a", 2, ()), ("a", "", (1,))]:
        box = blackbox(
            lambda x, shape=shape: np.broadcast_to(counted(x), shape), shape, store=tmp_path, name=name, version=version
        )
        in_a_run(box, X)
    assert len(counted.calls) == 16
    assert [(one.name, one.version) for one in Store(tmp_path).simulators] == [
        ("a", ""),
        ("a", ""),
        ("a", "2"),
        ("b", ""),
    ]
    with pytest.raises(ValueError, match=r"holds several sets .*\[0\] 4 of a .*: take one of store.simulators"):
        Store(tmp_path).table()


def test_a_simulator_without_a_name_or_with_that_of_another_is_refused(tmp_path):
    with pytest.raises(BlackBoxError, match="a lambda has no name to be kept under: pass name="):
        in_a_run(blackbox(lambda x: x, (), store=tmp_path), X)
    one, other = (blackbox(Counted(double), (), store=tmp_path, name="solver") for _ in range(2))
    with pytest.raises(BlackBoxError, match="two black boxes called solver keep their simulations in .*another name="):
        in_a_run(lambda x: one(x) + other(x), X)


# -- failures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorized", [False, True])
def test_failures_that_counted_come_back_the_same(vectorized, tmp_path):
    x = np.linspace(0.0, 2.2, 45)  # four above two
    (box, _), (again, counted) = boxes(halve_below_two, vectorized, tmp_path, on_failure="reject")
    np.testing.assert_array_equal(in_a_run(box, x), in_a_run(again, x))
    assert counted.calls == []
    assert [box.num_rejected, again.num_rejected] == [4, 4]
    assert Store(tmp_path).table()["failed"].sum() == 4
    assert Store(tmp_path).forget_failures() == 4
    assert len(Store(tmp_path)) == 41
    in_a_run(again, x)
    assert sorted({call[0] for call in counted.calls}) == sorted(x[x > 2])


@pytest.mark.parametrize("vectorized", [False, True])
def test_tolerated_failures_are_told_as_before(vectorized, tmp_path):
    x = np.linspace(0.0, 2.01, 400)
    told = []
    for box, _ in boxes(halve_below_two, vectorized, tmp_path):
        with pytest.warns(
            UserWarning, match="^solver failed for 2 of 400 simulations.*above two, for argument 0=2.00"
        ) as caught:
            in_a_run(box, x)
        told.append([str(one.message) for one in caught])
    assert told[0] == told[1]


@pytest.mark.parametrize("vectorized", [False, True])
def test_failures_count_in_the_order_that_they_had(vectorized, tmp_path):
    """Whatever is known already: where the first three fail, and nothing else was simulated, the run ends."""
    x = np.array([3.0, 3.1, 3.2, *np.linspace(0.0, 1.0, 397)])
    for known in (x[3:3], x[3:]):
        box = blackbox(halve_below_two, (), vectorized=vectorized, store=tmp_path)
        if len(known):
            in_a_run(box, known)
        with pytest.raises(BlackBoxError, match="all 3 simulations so far failed"):
            in_a_run(box, x)


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("on_failure", ["tolerate", "raise", "reject"])
def test_failures_that_end_a_run_are_not_kept(on_failure, vectorized, tmp_path):
    """So that mended code runs."""
    (box, _), _ = boxes(halve_below_two, vectorized, tmp_path, on_failure=on_failure)
    x = np.linspace(3.0, 4.0, 40) if on_failure == "reject" else np.linspace(1.0, 4.0, 40)
    with pytest.raises(BlackBoxError):
        in_a_run(box, x)
    table = Store(tmp_path)
    assert len(table) == 0 or not table.table()["failed"].any()
    mended = Counted(lambda x: x / 2, vectorized)
    np.testing.assert_array_equal(
        in_a_run(blackbox(mended, (), vectorized=vectorized, store=tmp_path, name="solver"), x), x / 2
    )
    nothing_was_kept = on_failure == "reject" or (vectorized and on_failure == "raise")
    assert len(mended.calls) == (40 if nothing_was_kept else np.sum(x > 2))


def test_kept_failures_are_not_believed_under_raise(tmp_path):
    in_a_run(blackbox(halve_below_two, (), store=tmp_path, on_failure="reject"), np.linspace(0, 4, 8))
    box = blackbox(Counted(double), (), store=tmp_path, on_failure="raise", name="halve_below_two")
    assert np.isfinite(in_a_run(box, np.linspace(0, 4, 8))).all()
    assert box.num_calls == 4
    assert not Store(tmp_path).table()["failed"].any()


def test_a_time_out_is_believed_where_no_more_time_is_allowed(tmp_path):
    def slow(x):
        if x > 2:
            threading.Event().wait(0.5)
        return x

    for timeout, num_calls in [(0.1, 5), (0.05, 0), (30.0, 1)]:
        box = blackbox(slow, (), store=tmp_path, timeout=timeout, on_failure="reject")
        found = in_a_run(box, np.arange(-1.0, 4.0))
        assert (box.num_calls, np.isnan(found[-1])) == (num_calls, timeout < 1)


# -- what may be amiss ------------------------------------------------------------------------------------------------


def cut(data):
    return data[: len(data) // 2]


def flipped(data):
    return data[:-9] + bytes([data[-9] ^ 1]) + data[-8:]


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("damage", [cut, flipped, lambda data: b"", lambda data: b"something else" * 9])
def test_damaged_files_are_redone_with_one_warning(damage, vectorized, tmp_path):
    (box, _), (again, counted) = boxes(double, vectorized, tmp_path)
    in_a_run(box, X)
    files = list(tmp_path.glob("solver-*/*.safetensors"))[:2]
    for file in files:
        file.write_bytes(damage(file.read_bytes()))
    with pytest.warns(UserWarning, match="is ignored and its simulations are run again, as ") as told:
        np.testing.assert_array_equal(in_a_run(again, X), 2 * X)
    assert len(told) == 1
    assert len(counted.calls) == (4 if vectorized else 2)
    third = next(boxes(double, vectorized, tmp_path))[0]
    in_a_run(third, X)
    assert third.num_calls == 0


def test_a_file_in_the_place_of_another_is_redone(tmp_path):
    """Of other arguments, or of results of another shape."""
    box = blackbox(double, (), store=tmp_path)
    wide = blackbox(lambda x: np.array([x, x]), (2,), store=tmp_path, name="wide")
    in_a_run(box, X)
    in_a_run(wide, X)
    ours = sorted(tmp_path.glob("double-*/*.safetensors"))
    ours[0].write_bytes(ours[1].read_bytes())
    again = blackbox(double, (), store=tmp_path)
    np.testing.assert_array_equal(in_a_run(again, X), 2 * X)
    assert again.num_calls == 1
    ours[0].write_bytes(next(tmp_path.glob("wide-*/*.safetensors")).read_bytes())
    again = blackbox(double, (), store=tmp_path)
    with pytest.warns(UserWarning, match="it is of another simulator, or of other shapes"):
        np.testing.assert_array_equal(in_a_run(again, X), 2 * X)
    assert again.num_calls == 1


def test_arguments_are_compared_and_not_their_key_alone(tmp_path):
    box = blackbox(double, (), store=tmp_path)
    shelf = box.store._shelf_of("double", "", [X], np.zeros(()), ["x"])
    forged = np.frombuffer(shelf.keys([X], np.array([0]))[0], np.uint8)[None]
    shelf.put(Entry(forged, [np.array([7.0])], np.array([14.0]), {}))
    np.testing.assert_array_equal(in_a_run(box, X), 2 * X)


def test_a_path_of_something_else_is_refused(tmp_path):
    file, folder, other = tmp_path / "file", tmp_path / "folder", tmp_path / "other"
    file.write_text("data")
    folder.mkdir()
    (folder / "thesis.tex").write_text("data")
    other.mkdir()
    (other / "enkg_ppl_store.json").write_text(json.dumps({"format": 99}))
    for path, words in [(file, "is a file"), (folder, "of something else than"), (other, "has format 99")]:
        for make in (Store, lambda path: blackbox(double, (), store=path), lambda path: EnKG(model, store=path)):
            with pytest.raises(ValueError, match=f"{words}.*: give another folder as store=$"):
                make(path)
    assert len(Store(tmp_path / "not yet")) == 0
    assert not (tmp_path / "not yet").exists()
    with pytest.raises(ValueError, match="holds no simulations yet"):
        Store(tmp_path / "not yet").table()


@pytest.mark.parametrize("vectorized", [False, True])
@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_ends_the_keeping_and_not_the_run(call, vectorized, tmp_path, monkeypatch):
    box = next(boxes(double, vectorized, tmp_path))[0]
    in_a_run(box, X[:1])

    def full(*_):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, full)
        patch.setattr("enkg_ppl.evaluation._shelf.SYNC_SHARE", 1e9)
        with pytest.warns(UserWarning, match=r"no longer kept in .* \(No space left on device\): make room") as told:
            found = [in_a_run(box, X), in_a_run(box, X + 1)]
    np.testing.assert_array_equal(found, [2 * X, 2 * X + 2])
    assert len(told) == 1
    assert len(Store(tmp_path)) == 1
    assert not list(tmp_path.rglob("*.tmp"))


LIMITED = """
import resource, sys, warnings
import numpy as np
sys.path.insert(0, {tests!r})
from test_store import blackbox, in_a_run
box = blackbox(lambda x: np.full(1000, x), (1000,), store={folder!r}, name="large")
in_a_run(box, [1.0])
resource.setrlimit(resource.RLIMIT_FSIZE, (2000, resource.RLIM_INFINITY))
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    found = in_a_run(box, np.arange(4.0))
assert (found[:, 0] == np.arange(4.0)).all()
assert ["no longer kept" in str(one.message) for one in told] == [True], told
"""


def test_a_limit_of_the_system_is_a_full_disk(tmp_path):
    code = LIMITED.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=True)
    assert len(Store(tmp_path)) == 1
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] != 2000


WRITER = """
import sys
sys.path.insert(0, {tests!r})
import numpy as np
from test_store import blackbox, double, in_a_run
box = blackbox(double, (), vectorized={vectorized}, store={folder!r})
for i in range(20):
    x = np.arange({first} + 10.0 * i, {first} + 10.0 * i + 20)
    assert (in_a_run(box, x) == 2 * x).all()
print(box.num_calls)
"""


@pytest.mark.parametrize("vectorized", [False, True])
def test_two_processes_at_once(vectorized, tmp_path):
    """Nothing is lost, nothing is wrong, and nobody is warned."""
    options = {"tests": str(Path(__file__).parent), "folder": str(tmp_path), "vectorized": vectorized}
    commands = [[sys.executable, "-W", "error::UserWarning", "-c", WRITER.format(first=i, **options)] for i in (0, 5)]
    root = Path(__file__).parents[1]
    env = os.environ | {"JAX_ENABLE_X64": "1"}
    running = [subprocess.Popen(command, cwd=root, env=env, stdout=subprocess.PIPE, text=True) for command in commands]
    ran = [int(process.communicate()[0]) for process in running]
    assert [process.returncode for process in running] == [0, 0]
    table = Store(tmp_path).table()
    np.testing.assert_array_equal(np.sort(table["x"]), np.arange(215.0))
    np.testing.assert_array_equal(table["result"], 2 * table["x"])
    assert 215 <= sum(ran) <= 420
    third = blackbox(double, (), vectorized=vectorized, store=tmp_path)
    in_a_run(third, np.arange(215.0))
    assert third.num_calls == 0


def test_files_of_another_process_are_found_while_both_run(tmp_path):
    (one, counted), (other, theirs) = boxes(double, False, tmp_path)
    in_a_run(one, X[:1])
    in_a_run(one, X[:1])  # by now it knows its own files
    in_a_run(other, X)
    in_a_run(one, X)
    assert (len(counted.calls), len(theirs.calls)) == (1, 3)


# -- runs -------------------------------------------------------------------------------------------------------------


def decay(amount, rate):
    return amount * np.exp(-rate * np.arange(5))


Y = jnp.array([2.1, 1.2, 0.75, 0.5, 0.3])


def model(y=None, simulate=None, noise=0.1):
    amount = numpyro.sample("amount", dist.LogNormal(1.0, 1.0))
    rate = numpyro.sample("rate", dist.HalfNormal(1.0))
    numpyro.sample("y", dist.Normal(simulate(amount, rate), noise).to_event(1), obs=y)


def run(simulate, store=None, **options):
    def of_this(y=None):
        model(y, simulate)

    enkg = EnKG(of_this, num_particles=64, progress_bar=False, store=store, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        enkg.run(jax.random.key(0), y=Y)
    return enkg


def test_a_run_uses_its_store_and_says_so(tmp_path, capsys):
    simulate = blackbox(decay, (5,))
    plain, first, second = run(simulate), run(simulate, tmp_path), run(simulate, tmp_path)
    for name, draws in plain.get_samples().items():
        np.testing.assert_array_equal(draws, first.get_samples()[name])
        np.testing.assert_array_equal(draws, second.get_samples()[name])
    counts = [enkg.num_forward_evaluations for enkg in (plain, first, second)]
    assert len(set(counts)) == 1
    assert "num_reused" not in plain.diagnostics()
    found = second.diagnostics()
    assert (found["num_reused"], found["num_simulated"]) == (counts[0] - 1, 1)  # one is repeated
    assert first.diagnostics()["num_simulated"] == len(Store(tmp_path)) + 1
    second.print_summary()
    expected = f"{counts[0] - 1:,} of {counts[0]:,} simulations were in the store, and were not run again"
    assert expected in capsys.readouterr().out
    before = simulate.num_calls
    second.to_arviz(prior=True)
    prior = simulate.num_calls - before
    second.to_arviz(prior=True)
    assert simulate.num_calls == before + prior
    assert prior > 0
    assert pickle.loads(pickle.dumps(Store(tmp_path))).path == tmp_path


def test_a_budget_counts_what_is_reused(tmp_path):
    """So that a run that goes on decides as an unbroken one."""
    simulate = blackbox(decay, (5,))
    found = [run(simulate, tmp_path, max_forward_evaluations=600) for _ in range(2)]
    assert found[0].num_forward_evaluations == found[1].num_forward_evaluations <= 600
    np.testing.assert_array_equal(*(enkg.get_samples()["rate"] for enkg in found))
    assert found[1].diagnostics()["num_simulated"] <= 1


def test_a_store_of_its_own_goes_before_that_of_the_run(tmp_path):
    run(blackbox(decay, (5,), store=tmp_path / "own"), tmp_path / "runs")
    assert len(Store(tmp_path / "own")) > 0
    assert len(Store(tmp_path / "runs")) == 0


def test_a_run_without_black_boxes_has_nothing_to_keep(tmp_path):
    with pytest.raises(ModelError, match="black boxes, and the model has none: wrap the costly part of it, as in"):
        run(lambda amount, rate: amount * jnp.exp(-rate * jnp.arange(5)), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("vectorized", [False, True])
def test_the_repeated_simulation_is_a_real_one(vectorized, tmp_path):
    """It tells of a simulator that has changed, or is random."""
    state = [0.0]

    def changing(x):
        return x + state[0]

    def random(x):
        return x + np.random.default_rng().normal(size=np.shape(x))

    for fn in (changing, random):
        box = blackbox(fn, (), vectorized=vectorized, store=tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            in_a_run(box, X)
    state[0] = 1.0
    for fn, words in [(changing, "another result .* than is kept in .* pass another version="), (random, "is random")]:
        box = blackbox(fn, (), vectorized=vectorized, store=tmp_path)
        with pytest.warns(UserWarning, match=words):
            in_a_run(box, X, check=True)
        assert (box.num_calls, box.num_reused) == (2, 5)
    state[0] = 0.0
    box = blackbox(changing, (), vectorized=vectorized, store=tmp_path)
    in_a_run(box, X, check=True)
    assert box.num_calls == 1


def test_the_table_and_its_arviz(tmp_path):
    def solve(x, result):
        return np.append(x, result)

    box = blackbox(solve, (3,), store=tmp_path, version="2", plates=None)
    x, y = np.arange(8.0).reshape(4, 2), np.arange(4)
    with watch_black_boxes(), raise_host_failure():
        jax.block_until_ready(jax.vmap(box)(x, y))
    table = Store(tmp_path).table()
    assert {name: a.shape for name, a in table.items()} == {
        "x": (4, 2),
        "argument 1": (4,),
        "result": (4, 3),
        "failed": (4,),
    }
    np.testing.assert_array_equal(table["result"], np.column_stack([table["x"], table["argument 1"]]))
    data = Store(tmp_path).to_arviz()["constant_data"]
    assert data.sizes == {"simulation": 4, "x_dim_0": 2, "result_dim_0": 3}
    assert data.attrs == {"simulator": "solve", "version": "2"}
    assert repr(Store(tmp_path)).endswith("4 of solve 2 (x: float64(2,), argument 1: int64(), result: float64(3,)))")
