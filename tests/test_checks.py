"""What constructors refuse, and files that are there whole or not at all."""

import os

import jax
import numpy as np
import pytest

from enkg_ppl import DiffusionPrior, GaussianPrior, PublishedCorrection
from enkg_ppl._files import replacing
from enkg_ppl.networks import ResidualMLP
from enkg_ppl.refinement import DiffusionWaltz, TemperedSMC

PRIOR = GaussianPrior.standard(2)
COUNTS = {
    "num_probes": lambda n: DiffusionPrior(PRIOR, num_probes=n),
    "num_components": lambda n: TemperedSMC(num_components=n),
    "max_rounds": lambda n: DiffusionWaltz(max_rounds=n),
    "num_updates": lambda n: PublishedCorrection(num_updates=n),
    "depth": lambda n: ResidualMLP(2, depth=n, key=jax.random.key(0)),
}


@pytest.mark.parametrize("name", COUNTS)
@pytest.mark.parametrize("bad", [True, 2.5, 0, "3", 3.0])
def test_counts_are_whole_numbers(name, bad):
    with pytest.raises(ValueError, match=f"needs {name} as a whole number >= 1.*; got "):
        COUNTS[name](bad)
    COUNTS[name](3)


def test_a_shape_of_the_event_is_of_whole_numbers():
    with pytest.raises(ValueError, match=r"DiffusionPrior needs event_shape .* got event_shape=\(2\.0,\)"):
        DiffusionPrior(PRIOR, event_shape=(2.0,))
    assert DiffusionPrior(PRIOR, event_shape=np.int64(2), num_probes=np.int64(3)).event_shape == (2,)


def write_half(path, text):
    """Of a file with that text, or of a folder."""
    with replacing(path) as beside:
        if text is None:
            beside.mkdir()
            (beside / "a").write_text("1")
        else:
            beside.write_text(text)
        raise KeyboardInterrupt


def test_an_interrupted_writer_leaves_the_old_file(tmp_path):
    path = tmp_path / "deep" / "file"
    with replacing(path) as beside:
        beside.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt):
        write_half(path, "new")
    assert path.read_text() == "old"
    with replacing(path) as beside:
        beside.write_text("new")
    assert path.read_text() == "new"
    assert os.listdir(path.parent) == ["file"]


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "folder"
    with pytest.raises(KeyboardInterrupt):
        write_half(path, None)
    assert os.listdir(tmp_path) == []
    with replacing(path) as beside:
        beside.mkdir()
        (beside / "a").write_text("1")
    assert os.listdir(tmp_path) == ["folder"]
    assert os.listdir(path) == ["a"]
