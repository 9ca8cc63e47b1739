"""Training: the loss by hand, the data in order, resume bit for bit, and a denoiser that comes out right."""

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
import pytest
from jax.sharding import Mesh
from safetensors import safe_open
from safetensors.numpy import load_file
from scipy.stats import norm

from enkg_ppl import GaussianPrior, NetworkPrior
from enkg_ppl.networks import ResidualMLP
from enkg_ppl.priors.preconditioning import EDM, VP, Discrete
from enkg_ppl.training import LogNormalNoise, TrainingInterrupted, _checkpoint, _data, _step, train_prior
from enkg_ppl.training._data import ArraySource, Rebatched, open_data
from enkg_ppl.training._loss import denoising_loss
from enkg_ppl.training._statistics import EXACT_DIM, statistics, widest_sd

ROOT = Path(__file__).resolve().parents[1]
MEAN = np.array([3.0, -1.0])
COVARIANCE = np.array([[1.0, 0.6], [0.6, 0.5]])
DATA = np.random.default_rng(0).multivariate_normal(MEAN, COVARIANCE, size=8192)
SMALL = DATA[:400]


def network(seed=0):
    return ResidualMLP(2, width=16, depth=1, embedding_size=8, key=jr.key(seed))


def train(data=SMALL, **options):
    """A short run: every test with these options shares its compiled programs."""
    defaults = {"batch_size": 32, "num_steps": 40, "evaluate_every": 10, "steps_per_call": 4, "progress_bar": False}
    return train_prior(network(), data, **defaults | options)


def same(a, b):
    """Whether two priors have the same numbers, bit for bit."""
    first, second = (jax.tree.leaves(eqx.filter(p, eqx.is_array)) for p in (a, b))
    return len(first) == len(second) and all(np.array_equal(x, y) for x, y in zip(first, second, strict=True))


# -- the whole -------------------------------------------------------------------------------------------------------


def test_denoiser_of_gaussian_data_is_the_exact_one():
    """The excess error, E|D - D*|^2 / E|D* - x0|^2, was .0007 to .006 over these levels; seeds change it by half."""
    prior = train(DATA, batch_size=256, num_steps=1500, evaluate_every=500, steps_per_call=25)
    exact = GaussianPrior.full(MEAN, COVARIANCE)
    rng = np.random.default_rng(1)
    for sigma in (0.03, 0.1, 0.3, 1.0, 3.0, 10.0):
        x = jnp.asarray(DATA[:2000] + sigma * rng.normal(size=(2000, 2)))
        learned, right = (jax.vmap(p.denoise, in_axes=(0, None))(x, sigma) for p in (prior, exact))
        floor = np.mean(np.sum((right - DATA[:2000]) ** 2, axis=1))
        assert np.mean(np.sum((learned - right) ** 2, axis=1)) < 0.03 * floor, sigma
    np.testing.assert_allclose(prior.location, MEAN, atol=5 * np.sqrt(1.0 / len(DATA)))
    widest = np.sqrt(np.linalg.eigvalsh(COVARIANCE)[-1])
    np.testing.assert_allclose(prior.scale, widest, rtol=5 / np.sqrt(2 * len(DATA)))


def test_record_tells_losses_time_settings_and_versions():
    prior = train()
    record = json.loads(json.dumps(dict(prior.record)))
    assert record["steps"] == [10, 20, 30, 40]
    assert len(record["loss"]) == len(record["held_out"]) == 4
    assert record["best_step"] == record["steps"][int(np.argmin(record["held_out"]))]
    assert record["settings"]["batch_size"] == 32
    assert record["num_events"] == 380
    assert record["versions"]["jax"] == jax.__version__
    timing = record["timing"]
    assert timing["steps"] == 40
    assert 0 < timing["compile_seconds"] < timing["seconds"]


def test_the_weights_returned_are_those_with_the_smallest_held_out_loss():
    """A learning rate that grows: the first evaluations are the best, the last ones are ruined."""
    options = {"optimizer": optax.adam(optax.exponential_decay(1e-3, 10, 8.0)), "ema_half_life": 0.1}
    ruined = train(**options)
    losses = ruined.record["held_out"]
    assert losses[-1] > 1.5 * min(losses)
    assert ruined.record["best_step"] < 40
    stopped = train(patience=1, num_steps=400, **options)
    assert stopped.record["timing"]["steps"] == ruined.record["best_step"] + 10
    assert same(stopped, ruined)


def test_without_held_out_events_the_last_weights_are_returned():
    prior = train(held_out=0)
    assert prior.record["held_out"] == []
    assert prior.record["num_events"] == len(SMALL)
    assert not same(prior, train(held_out=0, num_steps=20))


def test_progress_bar_shows_the_losses(capsys):
    train(progress_bar=True)
    shown = capsys.readouterr().err
    assert "40/40" in shown
    assert "loss=" in shown
    assert "held_out=" in shown


def test_images_have_a_mean_a_channel_and_events_keep_their_shape():
    images = np.random.default_rng(2).normal([[[5.0]], [[-5.0]]], 1.0, size=(64, 2, 3, 3))
    small = ResidualMLP(18, width=16, depth=1, embedding_size=8, key=jr.key(0))
    prior = train_prior(small, images, batch_size=16, num_steps=2, held_out=0, progress_bar=False)
    assert prior.event_shape == (2, 3, 3)
    assert prior.shift.shape == (2, 1, 1)
    np.testing.assert_allclose(prior.shift[:, 0, 0], images.mean(axis=(0, 2, 3)), rtol=1e-6)


# -- the loss --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preconditioning", [EDM(0.7), VP(), Discrete(np.geomspace(0.999, 0.01, 50), "v")])
def test_loss_is_the_weighted_error_of_the_denoiser(preconditioning, monkeypatch):
    """Karras et al. 2022, eq. 8, from `NetworkPrior.denoise` and `loss_weight`."""
    net = eqx.tree_at(lambda n: n.output.weight, network(), jnp.ones((2, 16)))
    prior = NetworkPrior(net, preconditioning, (2,), location=np.zeros(2), scale=1.0)
    events, noise = jnp.asarray(DATA[:64] - MEAN), LogNormalNoise(-0.5, 0.4)
    drawn = {}
    for name, where, what in (("sigma", LogNormalNoise, "levels"), ("eps", jr, "normal")):
        real = getattr(where, what)

        def spy(*args, name=name, real=real):
            drawn[name] = real(*args)
            return drawn[name]

        monkeypatch.setattr(where, what, spy)
    loss = denoising_loss(net, preconditioning, noise, jr.key(3), events)
    x = events + drawn["sigma"][:, None] * drawn["eps"]
    error = jnp.mean((jax.vmap(prior.denoise)(x, drawn["sigma"]) - events) ** 2, axis=1)
    np.testing.assert_allclose(loss, jnp.mean(jax.vmap(preconditioning.loss_weight)(drawn["sigma"]) * error), rtol=1e-8)


def test_noise_levels_are_log_normal_one_from_every_slice():
    noise = LogNormalNoise(-1.0, 1.3)
    levels = np.asarray(noise.levels(jr.key(0), 1000, jnp.float64))
    quantiles = norm.cdf((np.log(levels) + 1.0) / 1.3)
    np.testing.assert_array_equal(np.floor(np.sort(quantiles) * 1000), np.arange(1000))
    assert np.mean((levels > noise.range[0]) & (levels < noise.range[1])) == pytest.approx(0.98, abs=2e-3)


def test_learning_rate_and_average_follow_their_formulas():
    settings = _step.Settings(2e-3, 10.0, 100.0, 7.0)
    ours = [float(_step.learning_rate(jnp.asarray(i), settings)) for i in range(100)]
    np.testing.assert_allclose(ours[10:], 2e-3 * 0.5 * (1 + np.cos(np.pi * np.arange(90) / 90)), rtol=1e-6)
    np.testing.assert_allclose(ours[:10], 2e-4 * np.arange(1, 11), rtol=1e-6)
    assert float(_step.ema_decay(jnp.asarray(10**6), settings)) == pytest.approx(0.5 ** (1 / 7))
    assert float(_step.ema_decay(jnp.asarray(39), settings)) == pytest.approx(0.5 ** (1 / 2))


def test_steps_are_those_of_optax_and_the_average_is_of_their_weights():
    """A loop by hand: clipped Adam with the learning rate of the schedule, and the moving average in NumPy."""
    prior = train(held_out=0, num_steps=6, warm_up=2, ema_half_life=0.2, max_gradient_norm=0.3, dtype=None)
    source, _ = open_data(SMALL, 32, 0.0, int(jr.bits(jr.split(jr.key(0), 3)[0], dtype=jnp.uint32)))
    key = jr.split(jr.key(0), 3)[1]
    settings = _step.Settings(1e-3, 2.0, 6.0, 0.2)
    params, static = eqx.partition(network(), eqx.is_array)
    optimizer = optax.chain(
        optax.clip_by_global_norm(0.3), optax.adam(lambda step: _step.learning_rate(step, settings))
    )
    state, average = optimizer.init(params), jax.tree.map(np.asarray, params)
    loss = lambda p, k, x: denoising_loss(eqx.combine(p, static), EDM(), LogNormalNoise(), k, x)  # noqa: E731
    for step in range(6):
        events = jnp.asarray((source.batch(step) - np.asarray(prior.shift)) / float(prior.spread))
        updates, state = optimizer.update(jax.grad(loss)(params, jr.fold_in(key, step), events), state)
        params = optax.apply_updates(params, updates)
        decay = 0.5 ** (1 / min(0.2, 0.05 * (step + 1)))
        average = jax.tree.map(lambda a, p, d=decay: d * a + (1 - d) * np.asarray(p), average, params)
    for ours, theirs in zip(jax.tree.leaves(prior.network), jax.tree.leaves(average), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-9)


# -- data ------------------------------------------------------------------------------------------------------------


def test_every_epoch_is_a_permutation_and_held_out_events_stay_out():
    rows = np.arange(103.0)[:, None]
    source = ArraySource(rows, 13, 20, seed=5)
    seen = np.concatenate([source.batch(step) for step in range(9)])[:, 0]
    kept = set(source.held_out[:, 0])
    assert len(kept) == 13
    first, second = seen[:90], seen[90:180]
    assert set(first) == set(second) == set(rows[:, 0]) - kept
    assert not np.array_equal(first, second)
    np.testing.assert_array_equal(source.batch(4)[:, 0], seen[80:100])  # by the step alone, in any order


def test_a_memory_mapped_file_is_read_a_batch_at_a_time_and_trains_alike(tmp_path, monkeypatch):
    path = tmp_path / "events.npy"
    np.save(path, SMALL)
    unbroken = train(SMALL)
    monkeypatch.setattr(_data, "STATISTICS_ROWS", 400)
    largest = []
    real = ArraySource._read
    monkeypatch.setattr(ArraySource, "_read", lambda self, rows: largest.append(len(rows)) or real(self, rows))
    assert same(train(path), unbroken)
    assert sorted(largest)[:-1] == sorted([20] + [32] * 40)  # the held-out events and the batches; statistics apart
    assert same(train(str(path)), unbroken)
    assert same(train(np.load(path, mmap_mode="r")), unbroken)
    assert same(train(jnp.asarray(SMALL)), unbroken)


def test_iterators_are_rebatched_and_begun_anew_where_they_can_be():
    batches = [np.arange(10.0)[:, None], np.arange(10.0, 13.0)[:, None]]
    again = Rebatched(batches)
    assert [again.take(4)[:, 0].tolist() for _ in range(4)][3] == [12.0, 0.0, 1.0, 2.0]
    once = Rebatched(iter(batches))
    assert len(once.peek(100)) == 13
    assert [once.take(4)[0, 0] for _ in range(3)] == [0.0, 4.0, 8.0]
    with pytest.raises(StopIteration):
        once.take(4)


def test_a_generator_that_ends_ends_the_training(monkeypatch):
    monkeypatch.setattr(_data, "STREAM_ROWS", 200)
    prior = train(SMALL[i : i + 50] for i in range(0, 400, 50))
    assert prior.record["timing"]["steps"] == (400 - 10) // 32
    assert len(prior.record["held_out"]) == 2  # at 10 steps and at the end


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (np.where(np.arange(400)[:, None] == 7, np.nan, SMALL), {}, "1 of 400 events looked at hold NaN or infinity"),
        (iter([SMALL * np.inf]), {}, "hold NaN or infinity"),
        (SMALL[:1], {}, "at least 2 events to train on; got 1"),
        (SMALL[:, 0], {}, r"for scalars add an axis"),
        (SMALL + 1j, {}, "real and imaginary parts apart"),
        (SMALL[:, :1], {}, r"does not take events of the data's shape \(1,\)"),
        (np.ones_like(SMALL), {}, "every event is the same"),
        (SMALL, {"batch_size": 1000}, "at most the 380 events"),
        (SMALL, {"batch_size": 0}, "batch_size must be at least 1"),
        (SMALL, {"num_steps": 0}, "num_steps must be positive; got 0"),
        (SMALL, {"num_epochs": 2}, "num_steps or num_epochs, not both"),
        (SMALL, {"learning_rate": -1.0}, "learning_rate must be positive"),
        (SMALL, {"held_out": 1.0}, "held_out must be a share"),
        (SMALL, {"held_out": 0.0, "patience": 3}, "patience=3 needs held-out events"),
        (SMALL, {"centre": "pixel"}, "centre must be 'element', 'channel' or 'none'"),
        (SMALL, {"checkpoint_every": 5}, "give checkpoint="),
        (SMALL, {"devices": [None] * 5}, "multiple of the number of devices; got 32 for 5"),
        ("nowhere.npy", {}, "existing .npy file"),
        (iter([]), {}, "the iterator gave none"),
        (iter([SMALL, SMALL[:, :1]]), {}, "one event shape"),
        (iter([(SMALL, 0)]), {}, "leave out labels"),
        (iter([SMALL[:20]]), {}, "at least 32 events"),
        (5, {}, "an array with the events along its leading axis"),
    ],
)
def test_what_cannot_be_trained_on_is_told_in_a_sentence(data, options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train(data, **options)


def test_a_loss_that_blows_up_is_told():
    with pytest.raises(FloatingPointError, match="lower learning_rate=1e"):
        train(learning_rate=1e30, warm_up=0, max_gradient_norm=None)


# -- statistics ------------------------------------------------------------------------------------------------------


def test_statistics_are_numpys():
    events = np.random.default_rng(3).normal(2.0, [[1.0], [3.0]], size=(500, 2, 4))
    found = statistics(events, "channel", 0.5)
    np.testing.assert_allclose(found.shift, events.mean(axis=(0, 2))[:, None], rtol=1e-12)
    assert np.sqrt(np.mean(((events - found.shift) / found.spread) ** 2)) == pytest.approx(0.5)
    np.testing.assert_allclose(found.location, events.mean(axis=0).ravel())
    flat = events.reshape(500, 8)
    assert found.scale == pytest.approx(np.linalg.norm(flat - flat.mean(axis=0), 2) / np.sqrt(500))


def test_widest_direction_in_many_dimensions():
    """A smooth field is measured to Monte Carlo error; white noise does not look wider than it is."""
    rng = np.random.default_rng(4)
    num, dim = 800, 2 * EXACT_DIM
    sds = 3.0 / (1 + np.arange(dim))
    basis = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    field = (rng.normal(size=(num, dim)) * sds) @ basis
    assert widest_sd(field) == pytest.approx(3.0, rel=4 / np.sqrt(num))
    assert widest_sd(rng.normal(size=(num, dim))) == pytest.approx(1.0, rel=0.15)


# -- checkpoints -----------------------------------------------------------------------------------------------------


def interrupt_at(monkeypatch, step, action):
    """Do something while the batch of a step is read."""
    real = ArraySource.batch

    def batch(self, i):
        if i == step:
            action()
        return real(self, i)

    monkeypatch.setattr(ArraySource, "batch", batch)


def test_training_after_ctrl_c_goes_on_bit_for_bit(tmp_path, monkeypatch):
    unbroken, before = train(), signal.getsignal(signal.SIGINT)  # a background job may ignore it
    with monkeypatch.context() as patch:
        interrupt_at(patch, 22, lambda: signal.raise_signal(signal.SIGINT))
        with pytest.raises(TrainingInterrupted, match="the same call goes on from"):
            train(checkpoint=tmp_path)
    assert signal.getsignal(signal.SIGINT) is before
    resumed = train(checkpoint=tmp_path)
    assert same(resumed, unbroken)
    for name in ("steps", "loss", "held_out"):
        assert resumed.record[name][-1] == unbroken.record[name][-1]
    assert [p.name for p in tmp_path.iterdir()] == [_checkpoint.NAME]
    assert same(train(checkpoint=tmp_path), unbroken)  # a finished run is there at once


def test_training_after_a_crash_goes_on_from_the_last_checkpoint(tmp_path, monkeypatch):
    def crash():
        raise MemoryError

    with monkeypatch.context() as patch:
        interrupt_at(patch, 33, crash)
        with pytest.raises(MemoryError):
            train(checkpoint=tmp_path, checkpoint_every=7)
    with safe_open(tmp_path / _checkpoint.NAME, framework="numpy") as file:
        assert json.loads(file.metadata()["enkg_ppl"])["step"] == 28
    assert same(train(checkpoint=tmp_path, checkpoint_every=7), train())


def test_training_on_an_iterator_goes_on_bit_for_bit(tmp_path, monkeypatch):
    monkeypatch.setattr(_data, "STREAM_ROWS", 200)

    class Loader:
        """Gives its batches anew each time, and is interrupted once."""

        def __init__(self, stop):
            self.stop = stop

        def __iter__(self):
            for i in range(200):
                if i == self.stop:
                    signal.raise_signal(signal.SIGINT)
                yield np.random.default_rng(i).multivariate_normal(MEAN, COVARIANCE, size=100)

    unbroken = train(Loader(None))
    with pytest.raises(TrainingInterrupted):
        train(Loader(8), checkpoint=tmp_path)
    assert same(train(Loader(None), checkpoint=tmp_path), unbroken)


def test_ctrl_c_without_a_folder_says_what_would_have_helped(monkeypatch):
    interrupt_at(monkeypatch, 5, lambda: signal.raise_signal(signal.SIGINT))
    with pytest.raises(TrainingInterrupted, match="give checkpoint=folder to go on"):
        train()


def test_a_second_ctrl_c_stops_at_once(monkeypatch):
    interrupt_at(monkeypatch, 5, lambda: [signal.raise_signal(signal.SIGINT) for _ in range(2)])
    with pytest.raises(KeyboardInterrupt) as error:
        train()
    assert not isinstance(error.value, TrainingInterrupted)


def test_a_checkpoint_of_another_run_or_a_damaged_one_is_refused(tmp_path):
    train(checkpoint=tmp_path, num_steps=4)
    for options, message in [
        ({"learning_rate": 2e-3}, "settings"),
        ({"key": jr.key(1)}, "key = "),
        ({"batch_size": 16}, "batch_size = 32 where 16"),
        ({"data": SMALL + 1}, "data = "),
    ]:
        with pytest.raises(ValueError, match=message):
            train(checkpoint=tmp_path, **{"num_steps": 4} | options)
    with pytest.raises(ValueError, match=r"input.weight float32\(16, 2\) where float32\(8, 2\) is needed"):
        train_prior(
            ResidualMLP(2, width=8, depth=1, embedding_size=8, key=jr.key(0)),
            SMALL,
            batch_size=32,
            num_steps=4,
            evaluate_every=10,
            steps_per_call=4,
            checkpoint=tmp_path,
            progress_bar=False,
        )
    file = tmp_path / _checkpoint.NAME
    whole = file.read_bytes()
    for damaged in (whole[:-1], whole[:100], b"", b"no tensors at all"):
        file.write_bytes(damaged)
        with pytest.raises(ValueError, match="is no checkpoint of a training run"):
            train(checkpoint=tmp_path, num_steps=4)
        assert file.read_bytes() == damaged
    file.write_bytes(whole)
    assert train(checkpoint=tmp_path, num_steps=4).record["timing"]["steps"] == 4


class Damped(eqx.Module):
    net: ResidualMLP
    function: Callable

    def __call__(self, x, noise):
        return self.function(self.net(x, noise))


def test_a_checkpoint_of_another_start_is_refused(tmp_path):
    """Class, shapes and settings agree; weights, functions, the optimiser's numbers or the data do not."""
    options = {"batch_size": 32, "num_steps": 4, "evaluate_every": 10, "steps_per_call": 4, "progress_bar": False}
    adam = optax.adam(1e-3)

    def run(net, data, folder, **rest):
        return train_prior(net, data, checkpoint=tmp_path / folder, **options, **rest)

    first = run(network(), SMALL, "array")
    assert same(run(network(), SMALL, "array"), first)
    moved = eqx.tree_at(lambda net: net.input.weight, network(), replace_fn=lambda w: w + 0.01)
    for net, rest, what in [
        (moved, {}, "starting weights"),
        (network(), {"preconditioning": EDM(sigma_data=0.3)}, "preconditioning"),
        (network(), {"centre": "none"}, "centring and scale of the data"),
    ]:
        with pytest.raises(ValueError, match=f"holds another run, with another {what} than .*: give another folder"):
            run(net, SMALL, "array", **rest)
    run(Damped(network(), jnp.tanh), SMALL, "function")
    run(Damped(network(), jnp.tanh), SMALL, "function")
    with pytest.raises(ValueError, match="another network than"):
        run(Damped(network(), jnp.sin), SMALL, "function")
    run(network(), SMALL, "own", optimizer=adam)
    with pytest.raises(ValueError, match="another optimizer than"):
        run(network(), SMALL, "own", optimizer=optax.adam(2e-3))
    run(network(), [SMALL[:200], SMALL[200:]], "stream")
    run(network(), [SMALL[200:], SMALL[:200]], "stream")  # other events of the same data
    with pytest.raises(ValueError, match="another centring and scale of the data"):
        run(network(), [SMALL + 2.0], "stream")


def test_arrays_in_a_checkpoint_have_their_path_as_name(tmp_path):
    train(checkpoint=tmp_path, num_steps=4)
    assert "['weights'].params.blocks[0].first.weight" in load_file(tmp_path / _checkpoint.NAME)


# -- compilation and devices -----------------------------------------------------------------------------------------


def test_nothing_is_compiled_anew_within_a_run_nor_for_other_settings():
    train()
    before = _step.advance._cache_size(), _step.held_out_loss._cache_size()
    train(num_steps=37, evaluate_every=9, learning_rate=3e-4, warm_up=3, ema_half_life=5.0, key=jr.key(7))
    assert (_step.advance._cache_size(), _step.held_out_loss._cache_size()) == before


DEVICES = """
import sys
import jax, numpy as np
sys.path.insert(0, "tests")
jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
from test_training import train
assert jax.device_count() == 4
one, four = train(dtype=None), train(dtype=None, devices=jax.devices())
for a, b in zip(jax.tree.leaves(one.network), jax.tree.leaves(four.network), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12)
np.testing.assert_allclose(one.record["held_out"], four.record["held_out"], rtol=1e-9)
print("shards", len(four.record["held_out"]))
"""


def test_several_devices_give_what_one_gives(monkeypatch):
    flags = os.environ.get("XLA_FLAGS", "")  # those of this run, which may compile in haste
    monkeypatch.setenv("XLA_FLAGS", f"{flags} --xla_force_host_platform_device_count=4")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    command = [sys.executable, "-W", "ignore", "-c", DEVICES]
    result = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "shards 4" in result.stdout


def test_batches_are_split_between_devices(monkeypatch):
    """The batch axis is what is sharded: seen on one device through its sharding."""
    from enkg_ppl.training import _train

    shardings = []
    real = _train.advance

    def spy(*args):
        shardings.append(args[5].sharding)
        return real(*args)

    monkeypatch.setattr(_train, "advance", spy)
    train(num_steps=4, devices=jax.devices()[:1])
    assert isinstance(shardings[0].mesh, Mesh)
    assert shardings[0].spec == jax.sharding.PartitionSpec(None, "batch")
    assert math.prod(shardings[0].shard_shape((4, 32, 2))) == 4 * 32 * 2
