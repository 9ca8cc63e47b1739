"""Priors on disk: bit for bit the same, whole or not at all, and never wrong in silence."""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from enkg_ppl import GaussianPrior, InverseProblem, KalmanCorrection, NetworkPrior, guide, load_prior, save_prior
from enkg_ppl.likelihood import GaussianLikelihood
from enkg_ppl.networks import ResidualMLP, UNet1d
from enkg_ppl.priors import PriorFileError
from enkg_ppl.priors._file import _checksum
from enkg_ppl.priors.preconditioning import EDM, IDDPM, VE, VP, Discrete

ROOT = Path(__file__).resolve().parents[1]
ALPHAS = np.cumprod(1 - np.linspace(1e-4, 0.02, 20))
RECORD = {"steps": 3, "losses": [0.5, np.float32(0.25), float("nan")], "data": "two dots"}
NETWORKS = {
    "mlp": (ResidualMLP(2, width=4, depth=2, embedding_size=4, key=jr.key(0)), (2,)),
    "unet": (UNet1d(1, width=4, multipliers=(1, 2), embedding_size=4, key=jr.key(0)), (1, 4)),
}


def prior_of(name="mlp", weights=jnp.float64, preconditioning=None, **options) -> NetworkPrior:
    """With random numbers in every parameter, the smallest and largest and both zeros among them."""
    network, shape = NETWORKS[name]
    leaves, structure = jax.tree.flatten(network)
    rng = np.random.default_rng(0)
    leaves = [jnp.asarray(rng.standard_normal(a.shape), weights) for a in leaves]
    special = [jnp.finfo(weights).tiny, jnp.finfo(weights).max, -0.0, 1e-3]
    leaves[0] = leaves[0].ravel().at[:4].set(jnp.asarray(special, weights)).reshape(leaves[0].shape)
    given = {"location": jnp.full(shape, 0.1, jnp.float32), "scale": 1 / 3, "shift": 0.7, "spread": jnp.float32(2.1)}
    network = jax.tree.unflatten(structure, leaves)
    return NetworkPrior(network, preconditioning or EDM(0.4), shape, **{**given, "record": RECORD, **options})


def assert_same(ours, theirs):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert (a.dtype, a.shape, a.weak_type) == (b.dtype, b.shape, b.weak_type)
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()


@pytest.mark.parametrize("dtype", [jnp.float64, jnp.float32, jnp.bfloat16], ids=lambda d: jnp.dtype(d).name)
@pytest.mark.parametrize("name", NETWORKS)
def test_bit_for_bit(tmp_path, name, dtype):
    prior = prior_of(name, dtype, chunk_size=7, dtype="bfloat16")
    path = save_prior(prior, tmp_path / "one" / "prior")
    assert sorted(os.listdir(path)) == ["prior.json", "weights.safetensors"]
    assert os.listdir(path.parent) == ["prior"], "no temporary folder is left"
    again = load_prior(path)
    assert_same(prior, again)
    assert again.record["losses"] == [0.5, 0.25, None]


@pytest.mark.parametrize("pre", [EDM(), VP(18.0), VE(0.1, 9.0), IDDPM(9), Discrete(ALPHAS, "v", time_scale=0.1)])
def test_preconditionings_survive(tmp_path, pre):
    prior = prior_of(preconditioning=pre)
    again = load_prior(save_prior(prior, tmp_path / "prior"))
    assert again.preconditioning == pre
    assert (again.sigma_min, again.sigma_max) == (prior.sigma_min, prior.sigma_max)


def test_a_loaded_prior_denoises_alike_without_compiling_again(tmp_path):
    traces = []

    @eqx.filter_jit
    def denoise(prior, x):
        traces.append(1)
        return prior.denoise(x, jnp.asarray(0.3))

    prior = NetworkPrior(NETWORKS["mlp"][0], EDM(), 2, location=0.5, scale=1.0)
    again = load_prior(save_prior(prior, tmp_path / "prior"))
    x = jnp.array([0.2, -0.4])
    assert np.asarray(denoise(prior, x)).tobytes() == np.asarray(denoise(again, x)).tobytes()
    assert len(traces) == 1


def test_loading_compiles_next_to_nothing(tmp_path, caplog):
    """No weight is drawn to be thrown away, none converted: programs of their own, 90 for these 70 arrays."""
    prior = prior_of("unet")
    save_prior(prior, tmp_path / "prior")
    jax.clear_caches()
    with jax.log_compiles():
        loaded = load_prior(tmp_path / "prior")
    assert_same(loaded, prior)
    programs = [r.getMessage() for r in caplog.records if r.getMessage().startswith("Finished XLA compilation")]
    assert 0 < len(programs) < 30  # what is left is the network's look at one event, and checks of numbers


def test_names_are_paths_in_the_tree(tmp_path):
    """A field that is added before another must not shift it into its place."""
    path = save_prior(prior_of(), tmp_path / "prior")
    names = set(json.loads((path / "prior.json").read_text())["tensors"])
    assert {"network.blocks.1.first.weight", "network.embedding.second.bias", "location", "scale"} <= names


def test_without_64_bits(tmp_path):
    """Files of 32 and 16 bits come back bit for bit; of 64 bits rounded, with a warning."""
    for dtype in (jnp.float64, jnp.float32, jnp.bfloat16):
        save_prior(
            prior_of(weights=dtype, scale=jnp.float32(0.3), shift=jnp.float32(0.7)), tmp_path / jnp.dtype(dtype).name
        )
    code = f"""
import warnings, pathlib, jax, hashlib
from enkg_ppl.priors import load_prior, save_prior
folder = pathlib.Path({str(tmp_path)!r})
for name in ("float32", "bfloat16"):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        save_prior(load_prior(folder / name), folder / (name + "_again"))
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    prior = load_prior(folder / "float64")
assert "rounded to 32 bits: call jax.config.update('jax_enable_x64', True)" in str(caught[0].message), caught
assert {{a.dtype.name for a in jax.tree.leaves(prior)}} == {{"float32"}}
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for name in ("float32", "bfloat16"):
        for file in ("weights.safetensors", "prior.json"):
            assert (tmp_path / name / file).read_bytes() == (tmp_path / f"{name}_again" / file).read_bytes()


# ---- writing


def test_an_existing_folder_is_kept_unless_asked(tmp_path):
    path = save_prior(prior_of(), tmp_path / "prior")
    (path / "card.md").write_text("about it")
    other = prior_of(scale=2.0)
    with pytest.raises(PriorFileError, match="prior exists: give another path, or overwrite=True"):
        save_prior(other, path)
    assert_same(load_prior(path), prior_of())
    save_prior(other, path, overwrite=True)
    assert_same(load_prior(path), other)
    assert (path / "card.md").read_text() == "about it"
    assert sorted(os.listdir(tmp_path)) == ["prior"]


def test_nothing_half_written_is_left(tmp_path, monkeypatch):
    path = tmp_path / "prior"

    def full(*args):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="no space left"):
        save_prior(prior_of(), path)
    assert os.listdir(tmp_path) == []


def test_code_cannot_be_saved(tmp_path):
    prior = NetworkPrior.from_denoiser(lambda x, sigma: x, 2, location=0.0, scale=1.0)
    with pytest.raises(PriorFileError, match="cannot save _Function, which is code of its own; it saves .*ResidualMLP"):
        save_prior(prior, tmp_path / "prior")
    with pytest.raises(PriorFileError, match="needs a NetworkPrior; got GaussianPrior"):
        save_prior(GaussianPrior.standard(2), tmp_path / "prior")
    assert os.listdir(tmp_path) == []


# ---- files that are not what they were


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """A folder with a prior, and its two files as they should be."""
    path = save_prior(prior_of(), tmp_path_factory.mktemp("stored") / "prior")
    return path, {name: (path / name).read_bytes() for name in ("prior.json", "weights.safetensors")}


@given(data=st.data())
def test_a_damaged_file_is_refused_or_means_the_same(stored, data):
    """Cut anywhere, any bit flipped, bytes put in or taken out, of either file."""
    path, whole = stored
    name = data.draw(st.sampled_from(sorted(whole)))
    content = bytearray(whole[name])
    kind = data.draw(st.sampled_from(["cut", "flip", "insert", "delete"]))
    at = data.draw(st.integers(0, len(content) - 1))
    if kind == "cut":
        del content[at:]
    elif kind == "flip":
        content[at] ^= 1 << data.draw(st.integers(0, 7))
    elif kind == "insert":
        content[at:at] = data.draw(st.binary(min_size=1, max_size=4))
    else:
        del content[at]
    try:
        (path / name).write_bytes(bytes(content))
        message, again = "", None
        try:
            again = load_prior(path)
        except PriorFileError as error:
            message = str(error)
        if again is None:
            assert str(path) in message
        else:
            assert name == "prior.json"
            assert_same(again, prior_of())  # white space only
    finally:
        (path / name).write_bytes(whole[name])


def changed(path: Path, change, *, signed: bool = True) -> Path:
    """The description changed by somebody who knows how to sign it."""
    file = path / "prior.json"
    content = json.loads(file.read_text())
    change(content)
    if signed:
        content["sha256"] = _checksum(content)
    file.write_text(json.dumps(content))
    return path


def rewritten(path: Path, tensors: dict[str, np.ndarray]) -> Path:
    """Other weights, with the right sum in the description."""
    from safetensors.numpy import save

    data = save(tensors)
    (path / "weights.safetensors").write_bytes(data)
    return changed(path, lambda c: c.update(weights_sha256=hashlib.sha256(data).hexdigest()))


def tensors_of(path: Path) -> dict[str, np.ndarray]:
    from safetensors.numpy import load_file

    return load_file(path / "weights.safetensors")


def without(tensors, name):
    return {n: a for n, a in tensors.items() if n != name}


WEIGHT = "network.input.weight"
CASES = {
    "empty folder": (lambda p: (p / "prior.json").unlink() or p, r"^[^(]*prior.json cannot be read .No such file"),
    "no weights": (lambda p: (p / "weights.safetensors").unlink() or p, "weights.safetensors cannot be read"),
    "foreign": (lambda p: (p / "prior.json").write_text('{"model": 1}') and p, "not the description of a prior"),
    "list": (lambda p: (p / "prior.json").write_text("[]") and p, "not the description of a prior"),
    "nan": (lambda p: (p / "prior.json").write_text('{"a": NaN}') and p, "no whole JSON file .NaN is not JSON"),
    "twice": (lambda p: (p / "prior.json").write_text('{"a": 1, "a": 1}') and p, "a name occurs twice"),
    "deep": (lambda p: (p / "prior.json").write_text("[" * 10**5) and p, "no whole JSON file"),
    "newer": (lambda p: changed(p, lambda c: c.update(version=2)), "version 2 and this library reads up to 1: upgrade"),
    "older": (lambda p: changed(p, lambda c: c.update(version=0)), "no format version or no tensors"),
    "tampered": (lambda p: changed(p, lambda c: c.update(sigma_max=9.0), signed=False), "was changed since it was"),
    "network": (
        lambda p: changed(p, lambda c: c["network"].update({"class": "Transformer"})),
        "names the network 'Transformer', which this version does not have: upgrade",
    ),
    "config": (
        lambda p: changed(p, lambda c: c["network"]["config"].update(colour=1)),
        "no prior that this version can build .*unexpected keyword argument 'colour'",
    ),
    "preconditioning": (
        lambda p: changed(p, lambda c: c["preconditioning"]["config"].update(sigma_data=-1.0)),
        "no prior that this version can build .*sigma_data > 0",
    ),
    "field": (lambda p: changed(p, lambda c: c.pop("event_shape")), "no prior that this version can build"),
    "width": (
        lambda p: changed(p, lambda c: c["network"]["config"].update(width=5)),
        r"holds network.\S+ of shape .* where the network has",
    ),
    "depth": (lambda p: changed(p, lambda c: c["network"]["config"].update(depth=3)), "lacks network.blocks.2.first"),
    "lacks": (lambda p: rewritten(p, without(tensors_of(p), WEIGHT)), f"lacks {WEIGHT}"),
    "unknown": (lambda p: rewritten(p, {**tensors_of(p), "x": np.zeros(1)}), "has the unknown x"),
    "shape": (lambda p: rewritten(p, {**tensors_of(p), WEIGHT: np.zeros((4, 3))}), r"as F64 \[4, 3\] where prior.json"),
    "dtype": (
        lambda p: rewritten(p, {**tensors_of(p), WEIGHT: np.zeros((4, 2), np.int64)}),
        r"as I64 \[4, 2\] where prior.json has float64",
    ),
    "no safetensors": (
        lambda p: (
            [
                (p / "weights.safetensors").write_bytes(b"PK\3\4"),
                changed(p, lambda c: c.update(weights_sha256=hashlib.sha256(b"PK\3\4").hexdigest())),
            ]
            and p
        ),
        "is no safetensors file",
    ),
}


@pytest.mark.parametrize(("change", "words"), CASES.values(), ids=CASES)
def test_wrong_files(tmp_path, change, words):
    path = change(save_prior(prior_of(), tmp_path / "prior"))
    with pytest.raises(PriorFileError, match=words) as caught:
        load_prior(path)
    assert str(path) in str(caught.value)


def test_not_a_folder(tmp_path):
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(PriorFileError, match="cannot be read .Not a directory.: give the folder that save_prior wrote"):
        load_prior(file)
    with pytest.raises(PriorFileError, match="file is a file and a prior is a folder"):
        save_prior(prior_of(), file, overwrite=True)


def plain_prior() -> NetworkPrior:
    network = ResidualMLP(2, width=4, depth=1, embedding_size=4, key=jr.key(3))
    return NetworkPrior(network, EDM(1.0), (2,), location=0.0, scale=1.0)


def test_a_prior_can_be_loaded_amid_a_traced_model(tmp_path):
    prior, x = plain_prior(), jnp.array([0.3, -0.2])
    folder = save_prior(prior, tmp_path / "prior")
    traced = jax.jit(lambda x: load_prior(folder).denoise(x, jnp.asarray(0.5)))(x)
    np.testing.assert_allclose(traced, prior.denoise(x, jnp.asarray(0.5)), rtol=1e-6)


def test_a_run_from_a_loaded_prior_is_the_same(tmp_path):
    prior = plain_prior()
    loaded = load_prior(save_prior(prior, tmp_path / "prior"))
    draws = [
        guide(
            jr.key(0),
            InverseProblem(p, lambda x: x[:1], GaussianLikelihood(jnp.array([0.4]), 0.2)),
            num_particles=16,
            correction=KalmanCorrection(num_steps=3),
        ).draws
        for p in (prior, loaded)
    ]
    np.testing.assert_array_equal(draws[0], draws[1])
