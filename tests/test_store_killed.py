"""A run that is killed at any moment goes on: the numbers of an unbroken one, and nothing simulated twice."""

import collections
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

PROGRAM = Path(__file__).with_name("store_run.py")
# Simulations, or calls, that can be under way at once. The two processes of a pool have three more in their queue, and
# outlive the one that is killed until that is empty. A vectorised call that fails is halved, and under way as a whole.
WIDTH = {"threads": 4, "processes": 5, "vectorized, tolerating": 13}
KILL = "killed"


def start(kind: str, store: Path | str, log: Path, result: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, PROGRAM, kind, store, log, result], cwd=PROGRAM.parents[1])


def begun(log: Path) -> list[str]:
    return log.read_text().split() if log.exists() else []


def settle(log: Path) -> None:
    """Until nothing more is begun, by workers of a pool."""
    before = -1
    while before != (before := len(begun(log))):
        time.sleep(0.3)


def run_and_kill(kind: str, folder: Path, kills: int, total: int) -> list[str]:
    """One run, started again until it ends; returns what was begun, with the kills among it."""
    rng = np.random.default_rng(0)
    log, result = folder / "log", folder / "broken.npz"
    for _ in range(kills):
        process = start(kind, folder / "store", log, result)
        until = len(begun(log)) + rng.integers(0, max(2, 2 * total // kills))
        while len(begun(log)) < until and process.poll() is None:
            time.sleep(0.002)
        time.sleep(rng.uniform(0.0, 0.02))
        process.send_signal(signal.SIGKILL)
        process.wait()
        settle(log)
        with log.open("a") as file:
            file.write(f"{KILL}\n")
        if result.exists():
            break
    assert start(kind, folder / "store", log, result).wait() == 0
    return begun(log)


def check(kind: str, folder: Path, kills: int) -> None:
    whole = folder / "whole"
    assert start(kind, whole, folder / "whole.log", folder / "whole.npz").wait() == 0
    expected = begun(folder / "whole.log")
    assert len(expected) == len(set(expected))
    found = run_and_kill(kind, folder, kills, len(expected))
    assert found.count(KILL) >= min(2, kills)
    assert set(found) - {KILL} == set(expected)
    under_way: collections.Counter = collections.Counter()
    for i, line in enumerate(found):
        if line == KILL:
            under_way.update(set(found[max(0, i - 3 * WIDTH.get(kind, 1)) : i]) - {KILL})
    repeated = {line: n - 1 for line, n in collections.Counter(found).items() if n > 1 and line != KILL}
    assert sum(repeated.values()) <= WIDTH.get(kind, 1) * found.count(KILL)
    assert all(n <= under_way[line] for line, n in repeated.items())
    with np.load(folder / "whole.npz") as one, np.load(folder / "broken.npz") as other:
        for name in one.files:
            if name != "numbers":
                np.testing.assert_array_equal(one[name], other[name])
        asked, evidence, ran, reused, failed = one["numbers"]
        np.testing.assert_array_equal(other["numbers"][[0, 1, 4]], [asked, evidence, failed])
        if "tolerating" not in kind:
            assert other["numbers"][2] + other["numbers"][3] == ran + reused == asked


def test_killed_twice(tmp_path):
    check("vectorized", tmp_path, 2)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "kills"),
    [
        ("in turn", 20),
        ("vectorized", 20),
        ("threads", 5),
        ("processes", 5),
        ("rejecting", 5),
        ("vectorized, tolerating", 5),
    ],
)
def test_killed_many_times(kind, kills, tmp_path):
    check(kind, tmp_path, kills)
