"""`train_prior`: from a network and data to a prior."""

from __future__ import annotations

import math
import signal
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from enkg_ppl._keywords import explain_keywords
from enkg_ppl.priors._network import NetworkPrior
from enkg_ppl.priors.preconditioning import EDM, Preconditioning
from enkg_ppl.training import _checkpoint
from enkg_ppl.training._data import Source, open_data
from enkg_ppl.training._loss import LogNormalNoise
from enkg_ppl.training._start import check_starting_point, starting_point
from enkg_ppl.training._statistics import Statistics, statistics
from enkg_ppl.training._step import Frozen, Program, Settings, Weights, advance, held_out_loss, initial

SIGMA_DATA = 0.5  # root mean square of the data in the network's units where the preconditioning names none
DEFAULT_STEPS = 10_000
# Of the run: the warm-up, at most so many steps; the time between two looks at the held-out events.
WARM_UP_SHARE, MAX_WARM_UP = 0.05, 500
EVALUATIONS = 50
EMA_SHARE = 0.02
# Small networks on vectors: the call from Python costs as much as the step.
STEPS_PER_CALL = 25


class TrainingInterrupted(KeyboardInterrupt):
    """Training was stopped by the user; the message says how to continue."""


class History(NamedTuple):
    """Losses by step; `best` is the smallest held-out loss so far."""

    steps: list[int]
    loss: list[float]
    held_out: list[float]
    best: float
    best_step: int

    def to_json(self) -> dict[str, Any]:
        return self._asdict() | {"best": self.best if math.isfinite(self.best) else None}

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> History:
        best = math.inf if stored["best"] is None else stored["best"]
        return cls(stored["steps"], stored["loss"], stored["held_out"], best, stored["best_step"])


@explain_keywords("train_prior")
def train_prior(
    network,
    data,
    *,
    key=None,
    preconditioning: Preconditioning | None = None,
    noise: LogNormalNoise | None = None,
    batch_size: int | None = None,
    num_steps: int | None = None,
    num_epochs: float | None = None,
    learning_rate: float = 1e-3,
    warm_up: int | None = None,
    ema_half_life: float | None = None,
    max_gradient_norm: float | None = 1.0,
    weight_decay: float = 0.0,
    optimizer: optax.GradientTransformation | None = None,
    centre: Literal["element", "channel", "none"] | None = None,
    dtype: str | None = "float32",
    held_out: float = 0.05,
    patience: int | None = None,
    evaluate_every: int | None = None,
    checkpoint: str | Path | None = None,
    checkpoint_every: int | None = None,
    steps_per_call: int | None = None,
    devices: Sequence[Any] | None = None,
    progress_bar: bool = True,
) -> NetworkPrior:
    """Train a network to denoise, and return the resulting diffusion prior.

    Args:
        network: an Equinox module, called with one event and the noise coordinate, such as `ResidualMLP(dim, key=key)`;
            training starts at its present weights.
        data: an array ``(events, *event_shape)``; the path of an ``.npy`` file, which is memory-mapped and read a batch
            at a time (a `np.memmap` likewise); or an iterable of arrays of events (a list, a generator, a data loader),
            restarted at its end where that is possible.
        key: fixes the order of the data, the held-out events and the noise (default: ``jax.random.key(0)``).
        preconditioning: by default `EDM()`.
        noise: the distribution of noise levels (default: `LogNormalNoise()`).
        batch_size: by default 1024 for vectors and 128 for other events.
        num_steps: steps of training (default: 10,000).
        num_epochs: passes over the data, in place of `num_steps`.
        learning_rate: the largest one; it falls along a cosine to zero at the end.
        warm_up: steps over which the learning rate rises (default: 5 % of the run, at most 500).
        ema_half_life: half-life in steps of the moving average of the weights, which the prior gets (default: 2 % of
            the run).
        max_gradient_norm: longer gradients are scaled down to it; None leaves them.
        weight_decay: as in AdamW.
        optimizer: an optax optimiser in place of learning rate, warm-up, gradient norm and weight decay.
        centre: subtract a mean for each "element" of an event (the default for vectors), each "channel" (its first
            axis; the default otherwise), or "none". One number scales all: the noise is the same in every direction.
        dtype: of the weights, in training and after; None keeps the network's own.
        held_out: share of the events that is kept for the held-out loss (of an iterator: of its first 8,192). The loss
            is always computed with the same noise, and the weights with the smallest one are returned.
        patience: stop after so many evaluations of the held-out loss without a smaller one.
        evaluate_every: steps between evaluations of the held-out loss (default: 50 evaluations in all).
        checkpoint: a folder. The run is saved there regularly and when it is interrupted (Ctrl-C), and the same call
            continues from there, to the same weights bit for bit. An iterator is read from its start again and the
            batches that were used are skipped.
        checkpoint_every: steps between checkpoints (default: at every evaluation).
        steps_per_call: steps between two returns to Python (default: 25 for vectors and 1 for other events).
        devices: share every batch between them; its size must be a multiple of their number. On a CPU with several
            cores, ``jax.config.update("jax_num_cpu_devices", 2)`` before anything else and ``devices=jax.devices()``
            make U-Nets a third faster, since a convolution there keeps one core busy.
        progress_bar: show one, with the losses.

    Returns:
        A `NetworkPrior` whose `record` holds the losses, the time and the settings.

    Raises:
        ValueError: for data that are not finite, do not vary, or are too few, and for a checkpoint of another run.
        FloatingPointError: where the loss is no longer finite.
        TrainingInterrupted: after Ctrl-C.

    Source: Karras et al., arXiv 2206.00364, eq. 8 and table 1 (EDM).
    """
    key = jr.key(0) if key is None else key
    preconditioning = EDM() if preconditioning is None else preconditioning
    noise = LogNormalNoise() if noise is None else noise
    _check(num_steps, num_epochs, learning_rate, held_out, patience, checkpoint, checkpoint_every)
    key_data, key_train, key_held_out = jr.split(key, 3)
    source, batch_size = open_data(data, batch_size, held_out, int(jr.bits(key_data, dtype=jnp.uint32)))
    num_steps = _num_steps(num_steps, num_epochs, source, batch_size)
    if patience is not None and not len(source.held_out):
        raise ValueError(f"patience={patience} needs held-out events; got held_out={held_out}: set held_out=0.05")

    params, static = eqx.partition(network, eqx.is_inexact_array)
    if dtype is not None:
        params = jax.tree.map(lambda leaf: leaf.astype(dtype), params)
    working = np.dtype(jnp.result_type(*jax.tree.leaves(params)))
    _check_network(eqx.combine(params, static), source.event_shape, working)
    vectors = len(source.event_shape) == 1
    sigma_data = float(getattr(preconditioning, "sigma_data", SIGMA_DATA))
    summary = statistics(source.sample, centre or ("element" if vectors else "channel"), sigma_data)

    settings = Settings(
        learning_rate=learning_rate,
        warm_up=float(min(WARM_UP_SHARE * num_steps, MAX_WARM_UP) if warm_up is None else warm_up),
        num_steps=float(num_steps),
        ema_half_life=float(EMA_SHARE * num_steps if ema_half_life is None else ema_half_life),
    )
    arrays, rest = eqx.partition(preconditioning, eqx.is_array)
    program = Program(Frozen(static), Frozen(rest), noise, max_gradient_norm, weight_decay, optimizer)
    run = _Run(program, settings, arrays, key_train, key_held_out, source, summary, batch_size, working, devices)
    run.steps_per_call = steps_per_call or (STEPS_PER_CALL if vectors else 1)
    run.evaluate_every = evaluate_every or max(1, num_steps // EVALUATIONS)
    run.patience = patience
    run.folder = None if checkpoint is None else Path(checkpoint)
    run.checkpoint_every = checkpoint_every or run.evaluate_every
    run.identity = {
        "settings": settings._asdict(),
        "batch_size": batch_size,
        "held_out": held_out,
        "noise": [noise.mean, noise.sd],
        "max_gradient_norm": max_gradient_norm,
        "weight_decay": weight_decay,
        "own_optimizer": optimizer is not None,
        "preconditioning": type(preconditioning).__name__,
        "network": type(network).__name__,
        "patience": patience,
        "evaluate_every": run.evaluate_every,
        "key": np.asarray(jr.key_data(key)).tolist(),
        "dtype": str(working),
        "data": source.fingerprint(),
    }
    if checkpoint is not None:
        run.start = starting_point(params, static, preconditioning, optimizer, summary, len(source.sample))
    params, history, timing = run.train(params, num_steps, progress_bar)
    low, high = noise.range
    own_low, own_high = preconditioning.sigma_min, preconditioning.sigma_max
    return NetworkPrior(
        eqx.combine(params, static),
        preconditioning,
        source.event_shape,
        location=summary.location,
        scale=summary.scale,
        shift=summary.shift,
        spread=summary.spread,
        sigma_min=summary.spread * (low if own_low is None else max(low, own_low)),
        sigma_max=summary.spread * (high if own_high is None else min(high, own_high)),
        record=_record(run, history, timing),
    )


class _Run:
    """One run of training: the loop around the compiled steps."""

    steps_per_call: int
    evaluate_every: int
    checkpoint_every: int
    patience: int | None
    folder: Path | None
    identity: dict[str, Any]
    start: dict[str, Any] | None = None

    def __init__(self, program, settings, arrays, key, key_held_out, source, summary, batch_size, dtype, devices):
        self.program: Program = program
        self.settings: Settings = settings
        self.arrays = arrays
        self.key, self.key_held_out = key, key_held_out
        self.source: Source = source
        self.summary: Statistics = summary
        self.batch_size, self.dtype = batch_size, dtype
        self.replicated = self.split = None
        if devices is not None:
            if batch_size % len(devices):
                raise ValueError(
                    f"batch_size must be a multiple of the number of devices; got {batch_size} for {len(devices)}"
                )
            mesh = Mesh(np.asarray(devices), ("batch",))
            self.replicated = NamedSharding(mesh, PartitionSpec())
            self.split = NamedSharding(mesh, PartitionSpec(None, "batch"))
        self.held_out = self._held_out_batches()

    def train(self, params, num_steps: int, progress_bar: bool):
        weights = self._everywhere(initial(self.program, params))
        best, history = weights.average, History([], [], [], math.inf, 0)
        before = 0.0
        found = self.folder and _checkpoint.load(self.folder, {"weights": weights, "best": best}, self.identity)
        if self.folder and self.start and found:
            stored, header = found
            check_starting_point(self.folder / _checkpoint.NAME, header.get("start"), self.start)
            weights, best = (self._everywhere(stored[name]) for name in ("weights", "best"))
            history, before = History.from_json(header["history"]), header["seconds"]
        best = jax.tree.map(jnp.array, best)  # a copy: the average's buffers go to the next step
        step, started, compile_seconds = int(weights.step), time.perf_counter(), 0.0
        first_step, pending = step, []
        bar = tqdm(total=num_steps, initial=step, disable=not progress_bar, file=sys.stderr, desc="training")

        def save():
            if self.folder is not None:
                header = {
                    "run": self.identity,
                    "start": self.start,
                    "history": history.to_json(),
                    "step": step,
                    "seconds": before + time.perf_counter() - started,
                }
                _checkpoint.save(self.folder, {"weights": weights, "best": best}, header)

        with bar, _Interruption() as interruption:
            while step < num_steps and not self._is_stale(history):
                num = self._until_next_pause(step, num_steps)
                batches, num = self._batches(step, num)
                if not num:
                    break
                called = time.perf_counter()
                weights, losses = advance(self.program, self.settings, self.arrays, self.key, weights, batches, num)
                if step == first_step:  # later calls return at once and compute in the background
                    compile_seconds = time.perf_counter() - called
                step += num
                pending.append(losses[:num] if num < len(losses) else losses)
                bar.update(num)
                if step % self.evaluate_every == 0 or step == num_steps:
                    history, best = self._evaluate(history, best, weights, pending, step)
                    pending = []
                    held_out = {"held_out": f"{history.held_out[-1]:.4f}"} if self.held_out else {}
                    bar.set_postfix({"loss": f"{history.loss[-1]:.4f}", **held_out})
                if interruption.asked or step % self.checkpoint_every == 0 or step == num_steps:
                    save()
                if interruption.asked:
                    break
            if pending:  # the iterator ended, or the user did
                history, best = self._evaluate(history, best, weights, pending, step)
                save()
        seconds = before + time.perf_counter() - started
        if interruption.asked:
            remedy = f"the same call goes on from {self.folder}" if self.folder else "give checkpoint=folder to go on"
            raise TrainingInterrupted(f"training stopped after {step} of {num_steps} steps; {remedy}")
        if step == 0:
            raise ValueError("data must hold at least one batch to train on; the iterator gave none")
        chosen = best if len(self.held_out) else weights.average
        num_done = max(step - first_step, 1)
        timing = {
            "steps": step,
            "seconds": seconds,
            "compile_seconds": compile_seconds,
            "steps_per_second": num_done / max(seconds - before - compile_seconds, 1e-9),
        }
        return jax.tree.map(lambda leaf: jnp.asarray(np.asarray(leaf)), chosen), history, timing

    def _is_stale(self, history: History) -> bool:
        if self.patience is None or not history.steps:
            return False
        return history.steps[-1] - history.best_step >= self.patience * self.evaluate_every

    def _until_next_pause(self, step: int, num_steps: int) -> int:
        every = [self.evaluate_every, self.checkpoint_every]
        return min(self.steps_per_call, num_steps - step, *(n - step % n for n in every))

    def _batches(self, step: int, num: int):
        """The next `num` batches, in the network's units, and how many there are; the shape is always the same."""
        found: list[np.ndarray] = []
        try:
            while len(found) < num:
                found.append(self._normalised(self.source.batch(step + len(found))))
        except StopIteration:
            if not found:
                return None, 0
        num = len(found)
        stacked = np.stack(found + found[-1:] * (self.steps_per_call - num))
        return (jnp.asarray(stacked) if self.split is None else jax.device_put(stacked, self.split)), num

    def _normalised(self, events: np.ndarray) -> np.ndarray:
        return ((events - self.summary.shift) / self.summary.spread).astype(self.dtype)

    def _held_out_batches(self) -> list[Any]:
        events = self._normalised(self.source.held_out)
        size = min(self.batch_size, len(events))
        starts = range(0, len(events), size) if size else []
        return [self._everywhere(jnp.asarray(events[i : i + size])) for i in starts]

    def _everywhere(self, tree):
        return jax.tree.map(jnp.asarray, tree) if self.replicated is None else jax.device_put(tree, self.replicated)

    def _evaluate(self, history: History, best, weights: Weights, pending: list, step: int):
        loss = float(np.mean(np.concatenate([np.asarray(losses) for losses in pending])))
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss is {loss} at step {step}: lower learning_rate={self.settings.learning_rate} or "
                "max_gradient_norm"
            )
        history = history._replace(steps=[*history.steps, step], loss=[*history.loss, loss])
        if not self.held_out:
            return history._replace(best_step=step), best
        losses = [
            held_out_loss(self.program, self.arrays, jr.fold_in(self.key_held_out, i), weights.average, events)
            for i, events in enumerate(self.held_out)
        ]
        held_out = float(np.mean([float(loss) for loss in losses]))
        history = history._replace(held_out=[*history.held_out, held_out])
        if held_out < history.best:
            history = history._replace(best=held_out, best_step=step)
            best = jax.tree.map(lambda leaf: jnp.array(leaf, copy=True), weights.average)
        return history, best


class _Interruption:
    """Turns the first Ctrl-C into a flag, so that a step is finished and saved; the second one stops at once."""

    def __enter__(self):
        self.asked = False
        self._is_main = threading.current_thread() is threading.main_thread()
        self._previous = signal.signal(signal.SIGINT, self._ask) if self._is_main else None
        return self

    def _ask(self, number, frame):
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True

    def __exit__(self, *_):
        if self._is_main:
            signal.signal(signal.SIGINT, self._previous)


def _check(num_steps, num_epochs, learning_rate, held_out, patience, checkpoint, checkpoint_every) -> None:
    if num_steps is not None and num_epochs is not None:
        raise ValueError(f"give num_steps or num_epochs, not both; got {num_steps} and {num_epochs}")
    for name, value in {"num_steps": num_steps, "num_epochs": num_epochs, "patience": patience}.items():
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be positive; got {value}")
    if not learning_rate > 0:
        raise ValueError(f"learning_rate must be positive; got {learning_rate}")
    if not 0 <= held_out < 1:
        raise ValueError(f"held_out must be a share in [0, 1); got {held_out}: 0.05 keeps a twentieth for checks")
    if checkpoint_every is not None and checkpoint is None:
        raise ValueError(f"checkpoint_every={checkpoint_every} needs a folder: give checkpoint=")


def _num_steps(num_steps: int | None, num_epochs: float | None, source: Source, batch_size: int) -> int:
    if num_epochs is None:
        return DEFAULT_STEPS if num_steps is None else num_steps
    if source.num_events is None:
        raise ValueError("num_epochs needs data of known length, not an iterator: give num_steps")
    return max(1, math.ceil(num_epochs * source.num_events / batch_size))


def _check_network(network, event_shape: tuple[int, ...], dtype) -> None:
    event = jax.ShapeDtypeStruct(event_shape, dtype)
    try:
        found = eqx.filter_eval_shape(network, event, jax.ShapeDtypeStruct((), dtype))
    except Exception as error:
        raise ValueError(f"the network does not take events of the data's shape {event_shape}: {error}") from error
    if found.shape != event_shape:
        raise ValueError(
            f"the network must return an array of shape {event_shape}, as the event; it gives {found.shape}"
        )


def _record(run: _Run, history: History, timing: dict[str, Any]) -> dict[str, Any]:
    """What the prior's file tells of its training, in JSON values."""
    versions = {"jax": jax.__version__, "equinox": eqx.__version__, "optax": optax.__version__}
    return {
        **{name: getattr(history, name) for name in ("steps", "loss", "held_out", "best_step")},
        "timing": timing,
        "settings": {name: value for name, value in run.identity.items() if name != "data"},
        "data": run.source.fingerprint(),
        "num_events": run.source.num_events,
        "platform": jax.default_backend(),
        "versions": versions,
    }
