"""Settings and fixtures for every test: 64-bit floats, no silent rank promotion, reproducible examples."""

import datetime
import gc
import os
import sys
from collections.abc import Callable
from pathlib import Path

# With one pytest-xdist worker per core, BLAS and LAPACK threads only get in each other's way.
# The libraries read this when they are loaded, hence before the imports.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# No deadline: the first example compiles. Derandomised: a run that passed passes again.
hypothesis.settings.register_profile("enkg_ppl", deadline=None, derandomize=True)
hypothesis.settings.load_profile("enkg_ppl")

SHARED = Path(__file__).resolve().parents[2] / "shared"


def pytest_configure(config: pytest.Config) -> None:
    if sys.version_info < (3, 12) and not hasattr(config, "workerinput"):
        _silence_arviz_announcement()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if any(item.get_closest_marker("gpu") for item in items) and jax.default_backend() == "cpu":
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="JAX sees no accelerator"))


@pytest.fixture(scope="session")
def shared_data() -> Callable[[str], Path]:
    """``shared_data(path)`` gives the path of reference data, ``../shared/<path>`` beside the checkout.

    Where the data is absent, as on a user's machine, the test is skipped.
    """

    def find(path: str) -> Path:
        found = SHARED / path
        if not found.exists():
            pytest.skip(f"needs the reference data ../shared/{path}, which is not here")
        return found

    return find


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_do_not_pile_up():
    """JAX keeps what it compiled: over a few hundred tests gigabytes, and memory mappings until Linux gives no more.

    A process may have 65,530 mappings; past them the compiler crashes. Clearing costs the next tests the few programs
    that they would have shared, hence not after every file. Memory goes with the mappings: 15,000 come with 3 GB.
    """
    yield
    mappings = Path("/proc/self/maps")  # on Linux only, as is the limit
    if mappings.exists() and mappings.read_bytes().count(b"\n") > 15_000:
        jax.clear_caches()
        gc.collect()


def _silence_arviz_announcement() -> None:
    """Mark ArviZ 0.23's announcement as given today.

    At the first import of the day it warns and then renames a marker file; two workers that do so at
    once fail with `FileNotFoundError`.
    """
    from platformdirs import user_cache_dir

    marker = Path(user_cache_dir("arviz", "arviz")) / "daily_warning"
    marker.parent.mkdir(parents=True, exist_ok=True)
    marker.write_text(datetime.date.today().isoformat())
