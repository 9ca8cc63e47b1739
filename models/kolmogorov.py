"""A diffusion prior of vorticity fields: two-dimensional turbulence that a sine drives, 32 x 32 points.

The vorticity w(x, y, t) on the periodic square (0, 2 pi)^2 obeys

    dw/dt + u . grad w = laplacian(w) / 40 - 4 cos(4 y),

the Kolmogorov flow at Reynolds number 40. Arrays are ``w[i, j]`` at ``x = 2 pi i / n``, ``y = 2 pi j / n``.

    python -m models.kolmogorov data      the fields, by direct simulation
    python -m models.kolmogorov train     the network; the same command goes on where it was stopped
    python -m models.kolmogorov gaussian  the plain alternative: a Gaussian field with the mean and spectrum of the data
    python -m models.kolmogorov card      figures and pictures of the trained prior

Source: Chandler & Kerswell 2013 (doi 10.1017/jfm.2013.122), section 2, with four waves of the forcing as in Kochkov et
al. 2021 (arXiv 2102.01010).
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import equinox as eqx
import exponax
import jax
import jax.numpy as jnp
import jax.random as jr
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Array, Float
from matplotlib.figure import Figure

from enkg_ppl import GaussianPrior, NetworkPrior, load_prior, save_prior, train_prior
from enkg_ppl.networks import SongUNet
from enkg_ppl.training import LogNormalNoise
from enkg_ppl.training._loss import denoising_loss
from models import pictures
from models._hartley import Hartley

VISCOSITY, WAVES = 1 / 40, 4
# At twice the resolution kept, with steps whose error over a unit of time is below 1e-3 even at a viscosity of 1/200.
FINE, COARSE, TIME_STEP = 64, 32, 0.02
# The enstrophy forgets its start within 20 units of time and is half correlated over about 10.
SPIN_UP, INTERVAL, SNAPSHOTS = 40.0, 4.0, 24
TRAIN_TRAJECTORIES, HELD_OUT_TRAJECTORIES, TOGETHER = 192, 16, 16
COPIES = 16  # of every field, each by a random symmetry of the flow

NETWORK: dict[str, Any] = {
    "width": 8,
    "multipliers": (1, 2, 4),
    "num_blocks": 1,
    "padding": "periodic",
    "waves": ((0, WAVES),),
}
NUM_STEPS, BATCH_SIZE, LEARNING_RATE = 25_000, 16, 2e-3

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT / ".cache" / "kolmogorov"
WEIGHTS = Path(__file__).parent / "weights" / "kolmogorov_32"

Fields = Float[np.ndarray, "fields n n"]
LEAST_VARIANCE = 1e-9  # of a mode that the grid has and the data have not, over the largest


# ---- the flow


def solver(num: int, *, viscosity: float = VISCOSITY, dt: float = TIME_STEP):
    """One step of length `dt` for vorticity ``(1, num, num)``: pseudo-spectral, exponential Runge-Kutta of order 4."""
    return exponax.stepper.KolmogorovFlowVorticity(
        2,
        2 * np.pi,
        num,
        dt,
        diffusivity=viscosity,
        drag=0.0,
        injection_mode=WAVES,
        injection_scale=1.0,
        convection_scale=-1.0,
        order=4,
    )


def advance(
    duration: float, num: int, *, viscosity: float = VISCOSITY, dt: float = TIME_STEP
) -> Callable[[Array], Array]:
    """A compiled function that carries vorticity ``(fields, num, num)`` over a time that is a multiple of `dt`."""
    step, steps = solver(num, viscosity=viscosity, dt=dt), round(duration / dt)
    if steps < 1 or abs(steps * dt - duration) > 1e-9:
        raise ValueError(f"duration must be a multiple of dt; got duration={duration}, dt={dt}")

    @jax.jit
    def run(fields):
        return jax.lax.fori_loop(0, steps, lambda _, w: jax.vmap(step)(w), fields[:, None])[:, 0]

    return run


def random_starts(rng: np.random.Generator, num: int, size: int) -> Fields:
    """Smooth Gaussian fields with standard deviation 3 and mean zero."""
    noise = np.fft.fft2(rng.standard_normal((num, size, size)))
    smooth = noise * np.exp(-(wave_numbers(size) ** 2) / 32)
    smooth[:, 0, 0] = 0
    fields = np.fft.ifft2(smooth).real
    return 3 * fields / fields.std(axis=(1, 2), keepdims=True)


def wave_numbers(size: int) -> Float[np.ndarray, "size size"]:
    """Length of the wave vector of every Fourier mode."""
    k = np.fft.fftfreq(size, 1 / size)
    return np.hypot(k[:, None], k[None, :])


def truncate(fields: Fields, size: int) -> Fields:
    """The Fourier modes with both wave numbers below ``size / 2``, on a grid of that size.

    Not every second point: the modes that the coarse grid cannot hold would be folded onto others.
    """
    fine = fields.shape[-1]
    k = np.fft.fftfreq(size, 1 / size).astype(int)
    kept = k[np.abs(k) < size / 2]
    modes = np.zeros((len(fields), size, size), complex)
    modes[np.ix_(np.arange(len(fields)), kept, kept)] = np.fft.fft2(fields)[np.ix_(np.arange(len(fields)), kept, kept)]
    return np.fft.ifft2(modes).real * (size / fine) ** 2


# ---- its symmetries


class Symmetry(NamedTuple):
    """One of ``16 n`` symmetries of the flow on a grid with n points a side (n divisible by 8).

    - any shift along x: ``w(x + a, y)``; `columns` is in points of the grid, along the first axis.
    - a shift by half a wave of the forcing with a reflection: ``-w(-x, y + pi/4)``, `half_waves` times. Twice is a
      shift by one wave of the forcing, pi/2, and eight times is nothing.
    - a turn by pi: ``w(-x, -y)``, where `turned`.
    """

    columns: int
    half_waves: int
    turned: bool

    @classmethod
    def random(cls, rng: np.random.Generator, size: int) -> Symmetry:
        """All of them with equal probability."""
        return cls(int(rng.integers(size)), int(rng.integers(2 * WAVES)), bool(rng.integers(2)))

    def __call__(self, field: Float[np.ndarray, "*batch n n"]) -> Float[np.ndarray, "*batch n n"]:
        size = field.shape[-1]
        if size % (2 * WAVES):
            raise ValueError(f"half a wave of the forcing is no whole number of points on {size} x {size}")
        if self.half_waves % 2:
            field = -_backwards(field, -2)
        if self.turned:
            field = _backwards(_backwards(field, -2), -1)
        return np.roll(field, (self.columns, -self.half_waves * size // (2 * WAVES)), axis=(-2, -1))


def _backwards(field, axis: int):
    """``x -> -x`` on a periodic grid: point 0 stays."""
    return np.roll(np.flip(field, axis), 1, axis)


# ---- statistics


def enstrophy(fields: Fields) -> Float[np.ndarray, " fields"]:
    """Mean square of the vorticity of every field."""
    return np.mean(np.square(fields, dtype=np.float64), axis=(-2, -1))


def spectrum(fields: Fields) -> Float[np.ndarray, " shells"]:
    """Energy ``|w_k|^2 / (2 k^2)`` in shells of whole wave numbers 1 ... n/2 - 1, mean over fields."""
    size = fields.shape[-1]
    k = wave_numbers(size)
    k[0, 0] = np.inf
    power = np.mean(np.abs(np.fft.fft2(fields) / size**2) ** 2, axis=0) / (2 * k**2)
    return np.array([power[(k >= shell - 0.5) & (k < shell + 0.5)].sum() for shell in range(1, size // 2)])


def summary(fields: Fields) -> dict[str, Any]:
    """What the card compares: one-point moments, enstrophy, the mean profile's forced wave, and the spectrum."""
    fields = np.asarray(fields, np.float64)
    mean, sd = fields.mean(), fields.std()
    centred = (fields - mean) / sd
    square = enstrophy(fields)
    profile = np.fft.fft(fields.mean(axis=(0, 1))) / fields.shape[-1]
    return {
        "fields": len(fields),
        "mean": float(mean),
        "sd": float(sd),
        "skewness": float(np.mean(centred**3)),
        "kurtosis": float(np.mean(centred**4)),
        "enstrophy": float(square.mean()),
        "enstrophy_sd": float(square.std()),
        "forced_wave": float(2 * profile[WAVES].real),
        "energy": float(spectrum(fields).sum()),
        "spectrum": [float(e) for e in spectrum(fields)],
    }


# ---- data


def simulate(seed: int, num: int, name: str = "") -> tuple[Float[np.ndarray, "trajectories snapshots n n"], np.ndarray]:
    """Snapshots of `num` trajectories after the spin-up, 32 x 32, and the enstrophy and energy of every 64 x 64 one.

    The series ``(2, trajectories, times)`` starts at time zero, with the spin-up.
    """
    run = advance(INTERVAL, FINE)
    rng = np.random.default_rng(seed)
    skipped = round(SPIN_UP / INTERVAL)
    snapshots, series = [], []
    for start in range(0, num, TOGETHER):
        began = time.process_time()
        w = jnp.asarray(random_starts(rng, TOGETHER, FINE))  # 32 bits, unless JAX is told otherwise
        states = [np.asarray(w)]
        for _ in range(skipped + SNAPSHOTS):
            w = run(w)
            states.append(np.asarray(w))
        path = np.stack(states, axis=1)  # trajectories times n n
        if not np.isfinite(path).all():
            raise FloatingPointError("the simulation overflowed: take a smaller TIME_STEP")
        energy = [[spectrum(state[None]).sum() for state in one] for one in path]
        series.append(np.stack([np.stack([enstrophy(one) for one in path]), np.array(energy)]))
        snapshots.append(np.stack([truncate(one[skipped + 1 :], COARSE) for one in path]).astype(np.float32))
        print(f"{name} {start + TOGETHER}/{num} trajectories, {time.process_time() - began:.0f} s of CPU", flush=True)
    return np.concatenate(snapshots)[:num], np.concatenate(series, axis=1)[:, :num]


def with_symmetries(fields: Fields, copies: int, seed: int) -> Float[np.ndarray, "events 1 n n"]:
    """`copies` of every field, each by a random symmetry of the flow."""
    rng = np.random.default_rng(seed)
    out = np.empty((copies * len(fields), 1, *fields.shape[1:]), np.float32)
    for i, event in enumerate(out):
        event[0] = Symmetry.random(rng, fields.shape[-1])(fields[i // copies])
    return out


def write_data(folder: Path = DATA, *, seed: int = 0) -> None:
    """``train.npy`` and ``held_out.npy``, ``(events, 1, 32, 32)`` float32, and ``series.npz``."""
    folder.mkdir(parents=True, exist_ok=True)
    fields, series = simulate(seed, TRAIN_TRAJECTORIES, "train")
    others, other_series = simulate(seed + 1, HELD_OUT_TRAJECTORIES, "held out")
    flat, other_flat = (f.reshape(-1, COARSE, COARSE) for f in (fields, others))
    np.savez(folder / "series.npz", train=series, held_out=other_series)
    np.save(folder / "fields.npy", flat)
    np.save(folder / "train.npy", with_symmetries(flat, COPIES, seed))
    np.save(folder / "held_out.npy", with_symmetries(other_flat, 1, seed + 1))


# ---- the plain alternative to a network


def gaussian_moments(fields: Fields) -> tuple[Float[np.ndarray, "n n"], Float[np.ndarray, "n n"]]:
    """Mean field, and variances of the Hartley modes of a Gaussian field whose law no shift changes, but for its mean.

    Over all symmetries of the flow: the mean depends on y alone.
    """
    symmetries = [Symmetry(0, half_waves, turned) for half_waves in range(2 * WAVES) for turned in (False, True)]
    profile = np.mean([symmetry(fields).mean(axis=(0, 1)) for symmetry in symmetries], axis=0)
    mean = np.broadcast_to(profile, fields.shape[1:])
    power = [np.mean(np.abs(np.fft.fft2(s(fields) - mean, norm="ortho")) ** 2, axis=0) for s in symmetries]
    return mean, np.mean(power, axis=0)


def gaussian(fields: Fields) -> GaussianPrior:
    """The Gaussian prior with the moments of these fields; modes without any variance get a trace of it."""
    return _gaussian_prior(*gaussian_moments(np.asarray(fields, np.float64)))


def _gaussian_prior(mean: Float[np.ndarray, "_ n"], power: Float[np.ndarray, "n n"]) -> GaussianPrior:
    variances = np.maximum(power, LEAST_VARIANCE * power.max()).ravel()
    basis, mean = Hartley(len(power)), np.broadcast_to(mean, power.shape)
    return GaussianPrior(jnp.asarray(mean.ravel(), jnp.float32), jnp.asarray(variances, jnp.float32), basis, basis)


def load_gaussian(folder: Path = WEIGHTS) -> GaussianPrior:
    """The one that is shipped, of the training's fields."""
    with np.load(folder / "gaussian.npz") as stored:
        return _gaussian_prior(stored["mean"], stored["power"])


# ---- training


def network(key) -> SongUNet:
    """The network of the shipped prior.

    Shifts along y change the law of the fields unless they are by whole waves of the forcing, so the network is
    told where in a wave it is; a periodic network could not know.
    """
    return SongUNet((1, COARSE, COARSE), key=key, **NETWORK)


def train(folder: Path = DATA, *, num_steps: int = NUM_STEPS, seed: int = 0, **options) -> NetworkPrior:
    """The recipe of the shipped prior; goes on from the checkpoint in `folder` where there is one."""
    key_network, key_training = jr.split(jr.key(seed))
    options = {
        "batch_size": BATCH_SIZE,
        "learning_rate": LEARNING_RATE,
        "num_steps": num_steps,
        "held_out": 0.02,
        "evaluate_every": max(1, num_steps // 20),
        "checkpoint": folder / "training",
        "key": key_training,
        **options,
    }
    return train_prior(network(key_network), folder / "train.npy", **options)


# ---- how good it is


def load(folder: Path = WEIGHTS) -> NetworkPrior:
    """The shipped prior; its file holds the weights in 16 bits, here they are in 32."""
    return cast(load_prior(folder), jnp.float32)


def cast(prior: NetworkPrior, dtype) -> NetworkPrior:
    """The same prior with the network's weights in another precision."""
    # By NumPy: nothing has to be compiled.
    weights = jax.tree.map(lambda leaf: jax.device_put(np.asarray(leaf).astype(dtype)), prior.network)
    return eqx.tree_at(lambda p: p.network, prior, weights)


def denoising_losses(
    prior: NetworkPrior, fields: Fields, *, seed: int = 0, repeats: int = 8
) -> Float[np.ndarray, " batches"]:
    """The training's loss, noise levels included, over batches of fields."""
    events = (fields.reshape(-1, *prior.event_shape) - np.asarray(prior.shift)) / float(prior.spread)
    events = events.astype(np.float32)

    @jax.jit
    def loss(prior, key, events):
        return denoising_loss(prior.network, prior.preconditioning, LogNormalNoise(), key, events)

    starts = range(0, len(events) - BATCH_SIZE + 1, BATCH_SIZE)
    keys = iter(jr.split(jr.key(seed), repeats * len(starts)))
    return np.array([loss(prior, next(keys), events[i : i + BATCH_SIZE]) for _ in range(repeats) for i in starts])


def samples(prior: NetworkPrior, num: int, *, seed: int = 0, batch: int = 16) -> Fields:
    """Draws of the prior, ``(num, n, n)``, by the flow in fixed steps that inference uses, in 32 bits."""
    prior = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), prior)
    z = np.asarray(jr.normal(jr.key(seed), (num, prior.dim), jnp.float32))
    run = jax.jit(lambda prior, z: jax.vmap(prior.decode)(z))
    drawn = [np.asarray(run(prior, np.resize(z[i : i + batch], (batch, prior.dim)))) for i in range(0, num, batch)]
    return np.concatenate(drawn)[:num].reshape(num, *prior.event_shape[1:])


def with_data_statistics(prior: NetworkPrior, folder: Path = DATA) -> NetworkPrior:
    """The same prior, whose record also holds the `summary` of the data and the loss on trajectories of their own."""
    fields, held_out = np.load(folder / "fields.npy"), np.load(folder / "held_out.npy")[:, 0]
    losses = [denoising_losses(prior, some) for some in (fields[:: max(1, len(fields) // len(held_out))], held_out)]
    entries = {
        "train": summary(fields),
        "held_out_trajectories": summary(held_out),
        "loss_on_training_fields": _mean_and_error(losses[0]),
        "loss_on_held_out_trajectories": _mean_and_error(losses[1]),
    }
    names = ("location", "scale", "shift", "spread", "sigma_min", "sigma_max", "chunk_size", "dtype")
    options: dict[str, Any] = {name: getattr(prior, name) for name in names}
    options["record"] = {**prior.record, "flow": entries}
    return NetworkPrior(prior.network, prior.preconditioning, prior.event_shape, **options)


def _mean_and_error(values: Float[np.ndarray, " n"]) -> list[float]:
    return [float(values.mean()), float(values.std(ddof=1) / np.sqrt(len(values)))]


# ---- the card


def picture(prior: NetworkPrior, drawn: Fields, data: Fields) -> Figure:
    """Losses by step, samples, data, and both energy spectra."""
    record = prior.record
    with pictures.style():
        figure, axes = plt.subplots(1, 4, figsize=(15, 3.7), layout="constrained")
        axes[0].plot(record["steps"], record["loss"], color=pictures.MUTED, label="training")
        axes[0].plot(record["steps"], record["held_out"], color=pictures.METHOD, label="held out")
        axes[0].set(xlabel="step", title="Loss", ylim=(0, None))
        axes[0].legend()
        bound = 3 * data.std()
        for ax, fields, title in ((axes[1], drawn, "Samples"), (axes[2], data, "Data")):
            sheet = np.full((4 * (COARSE + 1) - 1, 4 * (COARSE + 1) - 1), np.nan)
            for k, field in enumerate(fields[:16]):
                i, j = (n * (COARSE + 1) for n in divmod(k, 4))
                sheet[i : i + COARSE, j : j + COARSE] = field.T  # x to the right
            image = ax.imshow(sheet, cmap="RdBu_r", vmin=-bound, vmax=bound, origin="lower")
            ax.set(title=title)
            ax.set_axis_off()
        figure.colorbar(image, ax=axes[2], label="vorticity", shrink=0.85)
        shells = np.arange(1, COARSE // 2)
        axes[3].loglog(shells, spectrum(data), color=pictures.REFERENCE, ls=(0, pictures.DASHES[1]), label="data")
        axes[3].loglog(shells, spectrum(drawn), color=pictures.METHOD, label="samples")
        axes[3].set(xlabel="wave number", title="Energy")
        axes[3].legend()
        plt.close(figure)
    return figure


def card(prior: NetworkPrior, drawn: Fields, data: Fields, series: Float[np.ndarray, "2 trajectories times"]) -> str:
    """The card as Markdown; `series` is the simulation's, as `simulate` gives it."""
    record, flow = prior.record, prior.record["flow"]
    timing, settings = record["timing"], record["settings"]
    own, right = summary(drawn), summary(data)
    num_weights = sum(leaf.size for leaf in jax.tree.leaves(prior.network))
    arguments = ", ".join(f"{k}={v}" for k, v in prior.network.config().items())
    rows = {
        "event": " x ".join(map(str, prior.event_shape)),
        "network": f"`SongUNet({arguments})`, {num_weights:,} weights, stored in 16 bits",
        "preconditioning": "`EDM`",
        "noise levels": f"{prior.sigma_min:.3g} to {prior.sigma_max:.3g}",
        "batch size, steps": f"{settings['batch_size']}, {timing['steps']:,}; weights of step {record['best_step']:,}",
        "time": f"{timing['seconds']:.0f} s ({timing['compile_seconds']:.0f} s of them compilation) on one "
        f"{record['platform'].upper()} core shared with much other work",
        "loss on fields trained on, on other trajectories": " and ".join(
            f"{mean:.4f} +- {error:.4f}"
            for mean, error in (flow["loss_on_training_fields"], flow["loss_on_held_out_trajectories"])
        ),
        "versions": ", ".join(f"{k} {v}" for k, v in record["versions"].items()),
    }
    profiles = [np.sqrt(np.var(fields, axis=0).mean(axis=0)) for fields in (drawn, data)]
    ratio = profiles[0] / profiles[1]
    names = {
        "sd": "standard deviation of the vorticity",
        "skewness": "skewness (zero by symmetry)",
        "kurtosis": "kurtosis",
        "enstrophy": "enstrophy: mean square of the vorticity",
        "enstrophy_sd": "enstrophy, standard deviation over fields",
        "energy": "energy a unit of area",
        "forced_wave": "mean flow: amplitude of cos 4y",
    }
    lines = [
        "# Kolmogorov flow, vorticity 32 x 32",
        "",
        "Vorticity on the periodic square (0, 2 pi)^2 with viscosity 1/40 and forcing -4 cos 4y. "
        f"{TRAIN_TRAJECTORIES} trajectories from random starts, {SNAPSHOTS} snapshots of each every {INTERVAL:g} units "
        f"of time after a spin-up of {SPIN_UP:g}; simulated on 64 x 64, Fourier modes beyond the 32 x 32 grid cut off "
        f"(3e-5 of the enstrophy); every field {COPIES} times, each time by a random one of the 512 symmetries that "
        f"the flow has on this grid. {HELD_OUT_TRAJECTORIES} more trajectories were kept for the figures below.",
        "",
        *(f"    python -m models.kolmogorov {verb}" for verb in ("data", "train", "card")),
        "",
        "| | |",
        "|---|---|",
        *(f"| {key} | {value} |" for key, value in rows.items()),
        "",
        f"| | {len(drawn)} samples | {len(data)} fields of other trajectories |",
        "|---|---|---|",
        *(f"| {words} | {own[name]:.3f} | {right[name]:.3f} |" for name, words in names.items()),
        "",
        f"Standard deviation at a point as a function of y, samples over data: {ratio.min():.2f} to {ratio.max():.2f}.",
        "",
        f"How stationary the data are: thirds of the time after the spin-up have enstrophies {_thirds(series[0])} and "
        f"energies {_thirds(series[1])} (standard errors over trajectories).",
        "",
        'Curve "held out" of the picture: events left out of the training, among them other copies of fields that were '
        "in it. The loss on other trajectories, in the table, is free of that.",
        "",
        "Energy by shell of wave numbers, samples over data:",
        "",
        "| " + " | ".join(map(str, range(1, COARSE // 2))) + " |",
        "|" + "---|" * (COARSE // 2 - 1),
        "| " + " | ".join(f"{a / b:.2f}" for a, b in zip(own["spectrum"], right["spectrum"], strict=True)) + " |",
        "",
        "![losses, samples, data and spectra](card.png)",
        "",
    ]
    return "\n".join(lines)


def _thirds(series: Float[np.ndarray, "trajectories times"]) -> str:
    parts = np.array_split(series[:, -SNAPSHOTS:], 3, axis=1)
    means = [part.mean(axis=1) for part in parts]
    return ", ".join(f"{m.mean():.3f} +- {m.std(ddof=1) / np.sqrt(len(m)):.3f}" for m in means)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m models.kolmogorov", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("verb", choices=("data", "train", "gaussian", "card"))
    parser.add_argument("--data", type=Path, default=DATA, help="folder of the fields (default .cache/kolmogorov)")
    parser.add_argument("--folder", type=Path, default=WEIGHTS, help="of the prior and its card")
    parser.add_argument("--num-steps", type=int, default=NUM_STEPS)
    parser.add_argument("--samples", type=int, default=256, help="that the card compares with data")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    if options.verb == "data":
        write_data(options.data, seed=options.seed)
    elif options.verb == "train":
        prior = with_data_statistics(train(options.data, num_steps=options.num_steps, seed=options.seed), options.data)
        save_prior(cast(prior, jnp.float16), options.folder, overwrite=True)
        print(options.folder)
    elif options.verb == "gaussian":
        mean, power = gaussian_moments(np.load(options.data / "fields.npy").astype(np.float64))
        np.savez(options.folder / "gaussian.npz", mean=mean[:1].astype(np.float32), power=power.astype(np.float32))
        print(options.folder / "gaussian.npz")
    else:
        prior, data = load(options.folder), np.load(options.data / "held_out.npy")[:, 0]
        data = np.random.default_rng(options.seed).permutation(data)
        drawn = samples(prior, options.samples, seed=options.seed)
        pictures.save_png(picture(prior, drawn, data), options.folder / "card.png", 1500)
        with np.load(options.data / "series.npz") as stored:
            text = card(prior, drawn, data, stored["train"])
        (options.folder / "card.md").write_text(text, "utf-8")
        print(options.folder / "card.md")


if __name__ == "__main__":
    main()
