"""Programs as simulators: how they are told the parameters, what is read of them, and how they fail."""

import functools
import multiprocessing
import os
import pickle
import re
import shutil
import subprocess
import time
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import numpyro
import numpyro.distributions as dist
import pytest

from enkg_ppl import BlackBoxError, EnKG, blackbox
from enkg_ppl.evaluation import command_simulator
from enkg_ppl.evaluation._black_box import raise_host_failure

multiprocessing.set_forkserver_preload(["enkg_ppl"])
FRESH = multiprocessing.get_context("forkserver")
A, B = np.array([[1.0, 2.0], [1.0, -1.0], [0.5, 0.0]]), np.array([0.0, 0.0, 1.0])


@pytest.fixture(scope="module")
def linear(tmp_path_factory):
    """A compiled program, in a folder whose name would be several words, and more, to a shell."""
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("needs a C compiler (cc)")
    path = tmp_path_factory.mktemp("made by cc") / "linear $(exit) 'map'"
    source = Path(__file__).parent / "linear.c"
    subprocess.run([compiler, "-O1", "-o", path, source], check=True)
    return path


@pytest.fixture
def place(tmp_path):
    """Where the directories of simulations are made."""
    path = tmp_path / "of simulations; rm *"
    path.mkdir()
    return path


@pytest.fixture
def make(place):
    """`command_simulator`, with the directories there."""
    return functools.partial(command_simulator, directory=place)


def all_of(simulate, *args):
    with raise_host_failure():
        return jax.block_until_ready(jax.vmap(simulate)(*args))


def ways(linear, make):
    """The same program, told and read in every way."""
    files = {"settings/input file.txt": "{ a = {a}; b = {b}; }"}
    return {
        "arguments": make([linear, "arguments", "{a}", "{b}"], parameters=["a", "b"]),
        "file": make([linear, "file"], parameters=["a", "b"], files=files, output="result.txt"),
        "standard input": make([linear, "input"], parameters=["a", "b"], stdin="{a}\n{b}\n"),
        "vector": make([linear, "arguments", "{x}"]),
        "numbers of a vector": make([linear, "input"], stdin="{x[0]} {x[1]}"),
        "a parser": make([linear, "arguments", "{x}"], parse=lambda text: [float(word) for word in text.split()[3:]]),
    }


@pytest.mark.parametrize("way", ["arguments", "file", "standard input", "vector", "numbers of a vector", "a parser"])
def test_numbers_go_there_and_back_exactly(linear, make, place, way):
    simulate = ways(linear, make)[way]
    x = np.array([[0.1, -1 / 3], [1e-300, 5e-324], [-1.7976931348623157e308 / 4, 2.0], [np.pi, -0.0]])
    expected = np.stack([x[:, 0] + 2 * x[:, 1], x[:, 0] - x[:, 1], 0.5 * x[:, 0] + 1], axis=1)
    rows = (x,) if simulate.parameters == ("x",) else (x[:, 0], x[:, 1])
    np.testing.assert_array_equal([simulate(*row) for row in zip(*rows, strict=True)], expected)
    with ThreadPoolExecutor(3) as pool:
        side_by_side = all_of(blackbox(simulate, (3,), executor=pool, timeout=60.0), *rows)
    np.testing.assert_array_equal(side_by_side, expected)
    assert not any(place.iterdir())


def test_in_processes_and_in_another_working_directory(linear, make, place, tmp_path, monkeypatch):
    """Programs and templates are found where the simulator was made, whatever the directory of the worker is."""
    monkeypatch.chdir(linear.parent)
    (tmp_path / "input.txt").write_text("{x}")
    shutil.copy(linear, tmp_path / "program")
    monkeypatch.chdir(tmp_path)
    made = make(["./program", "arguments", "{x}"])
    assert repr(pickle.loads(pickle.dumps(made))) == "<program(x)>"
    x = np.arange(8.0).reshape(4, 2)
    with ProcessPoolExecutor(2, mp_context=FRESH) as pool:
        simulate = blackbox(made, (3,), executor=pool, timeout=60.0)
        monkeypatch.chdir("/")
        np.testing.assert_array_equal(all_of(simulate, x), x @ A.T + B)
    monkeypatch.chdir(tmp_path)
    reads = make(["cat", Path("input.txt")])
    from_template = make(["cat", "input.txt"], files="input.txt")
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(from_template(x), x)
    (tmp_path / "input.txt").write_text("5 6")
    np.testing.assert_array_equal(reads(), [5.0, 6.0])


def test_nothing_is_read_by_a_shell(linear, make, place):
    words = ["a b", "$(touch x)", "`touch x`", "; touch x", "*", "~", '"', "'", "\\n", "", "{", "{}", "{ a }", "é\n"]
    texts = []
    simulate = make([linear, "echo", *words, "-{a}-{{a}}"], parse=lambda text: texts.append(text) or [1])
    simulate(np.float32(0.1))
    assert texts == ["\n".join([*words, "-0.10000000149011612-{a}"]) + "\n"]


def test_how_values_are_written(make):
    texts = []

    def written(text, *values, parameters=None):
        simulate = make(["cat"], stdin=text, parameters=parameters, parse=lambda t: texts.append(t) or 1)
        simulate(*values)
        return texts[-1]

    matrix = np.arange(6.0).reshape(2, 3)
    assert written("{a}|{a[1, 2]}|{a[0,0]}", matrix) == "0.0 1.0 2.0\n3.0 4.0 5.0|5.0|0.0"
    assert written('{"a": {a}, "b": {"c": {b}}} {{a[0]}} {1}', 2, True, parameters=["a", "b"]) == (
        '{"a": 2, "b": {"c": 1}} {a[0]} {1}'
    )
    assert written("{a}", np.array([np.inf, -np.inf, np.nan, 1e22])) == "inf -inf nan 1e+22"
    assert float(written("{a}", np.float32(1 / 3))) == float(np.float32(1 / 3))


def test_posterior_of_a_linear_program(linear, make, place):
    """x ~ N(0, I), y = A x + b noise of sd .5: closed form. 256 draws: three standard errors of mean and sd."""
    simulate = blackbox(make([linear, "arguments", "{x}"]), shape=(3,), executor=ThreadPoolExecutor(4), timeout=60.0)

    def model(y=None):
        x = numpyro.sample("x", dist.Normal(0.0, 1.0).expand([2]).to_event(1))
        numpyro.sample("y", dist.Normal(simulate(x), 0.5).to_event(1), obs=y)

    y = np.array([2.0, -0.5, 1.4])
    covariance = np.linalg.inv(np.eye(2) + A.T @ A / 0.25)
    mean, sd = covariance @ A.T @ (y - B) / 0.25, np.sqrt(np.diag(covariance))
    enkg = EnKG(model, num_particles=256, progress_bar=False)
    enkg.run(jax.random.key(0), y=jnp.asarray(y))
    x = np.asarray(enkg.get_samples()["x"])
    assert simulate.num_calls == enkg.num_forward_evaluations
    np.testing.assert_array_less(np.abs(x.mean(0) - mean) / sd, 3 / np.sqrt(256))
    np.testing.assert_array_less(np.abs(x.std(0) / sd - 1), 3 / np.sqrt(2 * 256))
    assert not any(place.iterdir())


SAID = "; its standard error ends"
FAILURES = {
    "a status": (
        ["fails", "{x}", "-"],
        rf'ended with status 3{SAID} "\?\[31mline of long ago \| no root \| the model broke off"',
    ),
    "a signal": (["fails", "{x}", "c"], rf"was ended by SIGABRT{SAID} .*broke off"),
    "nothing": (["writes", "{x}", " \n"], rf'wrote nothing to standard output{SAID} "done"'),
    "no numbers": (
        ["writes", "{x}", "1\none\n"],
        r"wrote standard output that numpy.loadtxt cannot read \(\"ValueError: could not convert string 'one' .*\"; "
        rf"parse= of command_simulator takes a function that does\){SAID} \"done",
    ),
    "too few": (["writes", "{x}", "1 2"], rf'gave 2 numbers where 3 of shape \(3,\) are due{SAID} "done"'),
    "too many": (["writes", "{x}", "1 2 3 4"], r"gave 4 numbers where 3"),
    "NaN": (["writes", "{x}", "1 nan 3"], rf'gave NaN{SAID} "done"'),
    "no text": (["writes", "{x}", "\udcff"], r"wrote standard output as something that is no text \('utf-8' codec"),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_failures_are_told_in_a_sentence(linear, make, place, kind):
    arguments, words = FAILURES[kind]
    simulate = blackbox(make([linear, *arguments]), (3,), name="linear")
    with pytest.raises(BlackBoxError, match=f"^linear {words}.*, for x=3\\.: mend the simulator there, or") as caught:
        all_of(simulate, np.array([3.0]))
    (kept,) = place.iterdir()
    assert f"its files are in {kept}, for x=3.:" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (kept / "standard_error").exists()
    assert simulate.num_rejected == 1


def test_no_file_and_no_parser_that_reads(linear, make, place):
    def parse(text):
        raise KeyError("no such\nentry")

    with pytest.raises(RuntimeError, match=r"^linear.* wrote no file a/b.txt; its standard error is empty; its files"):
        make([linear, "echo", "{x}"], output="a/b.txt")(1.0)
    with pytest.raises(
        RuntimeError, match=r"wrote standard output that parse cannot read \(\"KeyError: .*\);.*, for x=1"
    ) as e:
        make([linear, "echo", "{x}"], parse=parse)(np.float64(1.0))
    assert isinstance(e.value.__cause__, KeyError)
    (place / "not a program").write_text("\0")
    (place / "not a program").chmod(0o700)
    with pytest.raises(RuntimeError, match=r"^not a program could not be started \(\[Errno 8\] Exec format error"):
        make([place / "not a program", "{x}"])(1.0)
    with pytest.raises(RuntimeError, match="could not be started.*null byte"):
        make([linear, "\0{x}"])(1.0)


@pytest.mark.parametrize("executor", ["none", "threads", "processes"])
def test_failing_particles_alone_are_rejected(linear, make, place, executor):
    x = np.array([0.0, 3.0, 1.0, 5.0, 2.0])
    made = make([linear, "fails", "{x}", "c"], keep="none")
    pools = {"threads": ThreadPoolExecutor, "processes": lambda n: ProcessPoolExecutor(n, mp_context=FRESH)}
    pool = pools[executor](2) if executor in pools else None
    simulate = blackbox(made, (3,), executor=pool, on_failure="reject")
    expected = np.where(x[:, None] > 2, np.nan, x[:, None] * A[:, 0] + B)
    np.testing.assert_array_equal(all_of(simulate, x), expected)
    assert (simulate.num_calls, simulate.num_rejected) == (5, 2)
    if pool is not None:
        pool.shutdown()
    assert not any(place.iterdir())


@pytest.mark.parametrize(("keep", "count"), [("none", 0), ("failed", 1), ("all", 3)])
def test_which_directories_are_kept(linear, make, place, keep, count):
    simulate = make([linear, "fails", "{x}", "-"], keep=keep)
    simulate(1.0)
    simulate(2.0)
    with pytest.raises(RuntimeError, match="ended with status 3") as caught:
        simulate(3.0)
    assert len(list(place.iterdir())) == count
    assert ("its files are in" in str(caught.value)) == (keep != "none")
    if keep == "all":
        written = [(path / "standard_output").read_text() for path in place.iterdir()]
        assert sorted(text[:7] for text in written) == ["", "# three", "# three"]


def test_directories_are_made_where_temporary_files_are(linear, place, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(place))
    command_simulator([linear, "fails", "{x}", "-"], keep="all")(1.0)
    (made,) = place.iterdir()
    assert made.name.startswith("linear $(exit) 'map'-")


def is_running(pid: int) -> bool:
    """What has ended but was not yet waited for runs no more."""
    found = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False).stdout
    return bool(found.strip()) and not found.strip().startswith("Z")


@pytest.mark.parametrize("executor", ["none", "threads", "processes"])
def test_a_time_out_ends_all_that_was_started(linear, make, place, tmp_path, executor):
    pid = tmp_path / "pid"
    pools = {"threads": ThreadPoolExecutor, "processes": lambda n: ProcessPoolExecutor(n, mp_context=FRESH)}
    pool = pools[executor](2) if executor in pools else None
    made = make([linear, "hangs", "{x}", str(pid)])
    simulate = blackbox(made, (3,), executor=pool, timeout=1.5, on_failure="reject", name="linear")
    begun = time.monotonic()
    x = np.array([0.0, 3.0, 1.0])
    np.testing.assert_array_equal(np.isnan(all_of(simulate, x))[:, 0], x > 2)
    assert time.monotonic() - begun < 20
    deadline = time.monotonic() + 5  # the kernel ends it in its own time
    while is_running(int(pid.read_text())) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not is_running(int(pid.read_text()))
    strict = blackbox(made, (3,), executor=pool, timeout=0.3, on_failure="raise", name="linear")
    words = r"^linear took longer than 0.3 s; its files are in (.*), for x=3\.: mend"
    with pytest.raises(BlackBoxError, match=words) as caught:
        all_of(strict, np.array([3.0]))
    assert Path(re.match(words, str(caught.value))[1]) in list(place.iterdir())
    if pool is not None:
        pool.shutdown()


def test_what_a_program_leaves_running_ends_with_it(linear, make, place):
    """It would hold a pipe open for ten minutes, and write into a directory that is gone."""
    begun = time.monotonic()
    simulate = make([linear, "leaves", "{x}"])
    np.testing.assert_array_equal(np.ravel(simulate(1.0)), B)
    assert time.monotonic() - begun < 10


REFUSED = [
    (TypeError, {"command": "heat {x}"}, "as a list"),
    (TypeError, {"command": []}, "as a list"),
    (FileNotFoundError, {"command": ["./no such program"]}, "no such program: give command_simulator the path"),
    (FileNotFoundError, {"command": ["no-such-program"]}, "no program no-such-program on PATH"),
    (PermissionError, {"command": [Path(__file__)]}, "may not be executed: run chmod"),
    (ValueError, {"keep": "some"}, "keep 'failed', 'all' or 'none'; got 'some'"),
    (ValueError, {"command": ["cat", "{b}", "{a}"]}, r"places for b, a: .*parameters=\['b', 'a'\]"),
    (ValueError, {"command": ["cat", "{b}"], "parameters": ["a"]}, "parameter 'a' has no place: write {a}"),
    (ValueError, {"command": ["cat", "{a}{print}"], "parameters": ["a"]}, "write {{print}} for the text {print}"),
    (ValueError, {"command": ["cat", "{a}"], "parameters": ["a", "a"]}, "every one of its parameters once"),
    (ValueError, {"files": {"/etc/x": ""}}, "'/etc/x' does not lie in the directory"),
    (ValueError, {"files": {"a/../../x": ""}}, "does not lie in"),
    (ValueError, {"files": {"..\\x": ""}}, "does not lie in"),
    (ValueError, {"files": {"C:x": ""}}, "does not lie in"),
    (ValueError, {"files": {"": ""}}, "does not lie in"),
    (ValueError, {"files": {"a\0": ""}}, "does not lie in"),
    (ValueError, {"output": "../x"}, "does not lie in"),
    (ValueError, {"output": "./standard_error"}, "is taken"),
    (FileNotFoundError, {"files": "no such template"}, "no template no such template: give its path"),
    (FileNotFoundError, {"directory": "/no/such/place"}, "no directory /no/such/place"),
]


@pytest.mark.parametrize(("error", "change", "words"), REFUSED, ids=[words for *_, words in REFUSED])
def test_settings_that_are_refused(error, change, words):
    with pytest.raises(error, match=words):
        command_simulator(**{"command": ["cat", "{a}"], **change})


def test_calls_that_are_refused(make, place):
    simulate = make(["cat"], stdin="{a[2]}")
    for args, words in [
        ((1.0, 2.0), r"^cat takes 1 parameters \(a\); got 2"),
        (("1; rm",), "takes real numbers; got a of dtype <U5"),
        ((1j,), "takes real numbers; got a of dtype complex"),
        ((np.zeros(2),), r"a has shape \(2,\), which has no number at {a\[2\]}"),
    ]:
        with pytest.raises(TypeError, match=words):
            simulate(*args)
    with pytest.raises(ValueError, match="cat simulates one particle a call: drop vectorized=True"):
        blackbox(simulate, (1,), vectorized=True)
    assert not any(place.iterdir())


def test_a_shape_that_follows_an_argument(make, place):
    simulate = blackbox(make(["cat"], stdin="{times}"), shape=lambda times: times.shape)
    np.testing.assert_array_equal(simulate(jnp.arange(6.0).reshape(2, 3)), np.arange(6.0).reshape(2, 3))


def test_the_environment_is_the_users(make, monkeypatch):
    monkeypatch.setitem(os.environ, "ENKG_ANSWER", "7")
    awk = make(["awk", 'BEGIN { print ENVIRON["ENKG_ANSWER"] + {x} }'])
    assert awk(1.0) == 8
