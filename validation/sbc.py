"""``python -m validation sbc``: is the posterior calibrated, on models small enough for hundreds of data sets?"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import math
import re
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import jax.random as jr
import numpy as np
import numpyro
import numpyro.distributions as dist
from numpyro.infer import MCMC, NUTS

from enkg_ppl import DiffusionPrior, EnKG, blackbox, calibration
from enkg_ppl.priors import sde_sample
from models import kolmogorov as flow
from models import navier_stokes

OUT = Path("report") / "sbc"
LEAST_DATASETS = 10


@dataclasses.dataclass(frozen=True)
class Case:
    """A model with the arguments that are not data.

    `name`: on the command line. `model`: see `calibration.sbc`. `kwargs`: its other arguments.
    `about`: in a few words. `differentiable`: whether NUTS can run. `sites`: what is ranked (default: all unknowns).
    `datasets`, `particles`: as many, unless the command says otherwise. `options`: of `EnKG`. `single`: JAX's default
    precision, whatever the command says. `standard`: whether it is studied unless models are named.
    """

    name: str
    model: Callable
    about: str
    kwargs: dict[str, Any] = dataclasses.field(default_factory=dict)
    differentiable: bool = True
    sites: tuple[str, ...] | None = None
    datasets: int = 300
    particles: int = 512
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    single: bool = False
    standard: bool = True


# -- a black box: an epidemic in NumPy -------------------------------------------------------------------------------

DAYS = np.array([4, 8, 12, 16, 20, 24, 32, 40])
STEPS_PER_DAY = 4


def epidemic(transmission, recovery, seed) -> np.ndarray:
    """Share of infected people on `DAYS`; arguments of shape (particles,), result (particles, days).

    S' = -b S I, I' = b S I - g I, by Euler steps of a quarter of a day from I = seed.
    """
    b, g, i = (np.asarray(a, float) for a in (transmission, recovery, seed))
    i = np.minimum(i, 1.0)  # everybody; the prior's tail goes further
    s, path = 1 - i, []
    for step in range(1, DAYS[-1] * STEPS_PER_DAY + 1):
        infections, recoveries = b * s * i / STEPS_PER_DAY, g * i / STEPS_PER_DAY
        s, i = np.maximum(s - infections, 0.0), i + infections - recoveries
        if step % STEPS_PER_DAY == 0 and step // STEPS_PER_DAY in DAYS:
            path.append(i)
    return np.stack(path, axis=-1)


simulate_epidemic = blackbox(epidemic, (len(DAYS),), vectorized=True)


def epidemic_model(cases=None):
    """Three unknowns behind a simulator in NumPy; noise of 15 %."""
    transmission = numpyro.sample("transmission", dist.LogNormal(math.log(0.5), 0.3))
    recovery = numpyro.sample("recovery", dist.LogNormal(math.log(0.15), 0.3))
    seed = numpyro.sample("seed", dist.LogNormal(math.log(0.01), 0.5))
    infected = simulate_epidemic(transmission, recovery, seed)
    numpyro.sample("cases", dist.LogNormal(jnp.log(jnp.maximum(infected, 1e-12)), 0.15).to_event(1), obs=cases)


# -- an unknown noise scale: a regression ----------------------------------------------------------------------------


def regression(x, y=None):
    """A line with noise of unknown scale; three unknowns."""
    intercept = numpyro.sample("intercept", dist.Normal(0.0, 2.0))
    slope = numpyro.sample("slope", dist.Normal(0.0, 1.0))
    noise = numpyro.sample("noise", dist.HalfNormal(1.0))
    with numpyro.plate("data", x.shape[0]):
        numpyro.sample("y", dist.Normal(intercept + slope * x, noise), obs=y)


# -- several modes: a sign that the data do not show -----------------------------------------------------------------


def sign(y=None):
    """|a + b| and |b - a| are seen, their signs are not: four modes, whose masses the prior makes unequal."""
    a = numpyro.sample("a", dist.Normal(0.3, 1.0))
    b = numpyro.sample("b", dist.Normal(0.0, 1.0))
    seen = jnp.abs(jnp.stack([jnp.add(a, b), jnp.subtract(b, a)])) / math.sqrt(2.0)
    numpyro.sample("y", dist.Normal(seen, 0.15).to_event(1), obs=y)


# -- a field under a network prior -----------------------------------------------------------------------------------


class FineDraws(DiffusionPrior):
    """A diffusion prior whose draws are those of its reverse SDE in many steps.

    The draws of the probability flow need not have the same law: a network's denoiser is no exact conditional mean, and
    the flow adds up its errors where the SDE forgets them. Of `kolmogorov_32`, the network itself thinks the small
    scales of the flow's draws too rough by half.
    """

    NUM_STEPS = 128

    def sample(self, key, sample_shape=()):
        keys = jr.split(key, math.prod(sample_shape))
        drawn = jax.vmap(lambda key: sde_sample(key, self.prior, self.NUM_STEPS))(keys)
        return drawn.reshape(*sample_shape, *self.event_shape)


def kolmogorov(seen=None, setting: str = "T1_low"):
    """The vorticity of `models.navier_stokes` from what is seen of it later.

    Ranked are the amplitudes of four bands of wave numbers, the field at four points, and four integrals: its enstrophy
    and its means over three quarters of the domain (that over all of it is zero).
    """
    case = navier_stokes.SETTINGS[setting]
    field = jnp.asarray(numpyro.sample("field", FineDraws(navier_stokes.prior())))
    w = field.reshape(navier_stokes.SIZE, navier_stokes.SIZE)
    power, k = jnp.abs(jnp.fft.fft2(w, norm="forward")) ** 2, flow.wave_numbers(navier_stokes.SIZE)
    edges = ((0.0, 3.5), (3.5, 7.5), (7.5, 10.5), (10.5, math.inf))
    bands = [jnp.sqrt(jnp.sum(jnp.where((k >= low) & (k < high), power, 0.0))) for low, high in edges]
    numpyro.deterministic("bands", jnp.stack(bands))
    numpyro.deterministic("points", w[jnp.array([1, 8, 17, 26]), jnp.array([4, 27, 13, 22])])
    half = navier_stokes.SIZE // 2
    quarters = [jnp.mean(w[:half, :half]), jnp.mean(w[:half, half:]), jnp.mean(w[half:, :half])]
    numpyro.deterministic("integrals", jnp.stack([jnp.mean(w**2), *quarters]))
    after = navier_stokes.look(case.duration)(field.ravel())
    numpyro.sample("seen", dist.Normal(after, case.noise_share * navier_stokes.FIELD_SD).to_event(1), obs=seen)


CASES = {
    case.name: case
    for case in (
        Case("epidemic", epidemic_model, "a black box in NumPy", differentiable=False),
        Case("regression", regression, "unknown noise scale", {"x": jnp.linspace(-2.0, 2.0, 9)}),
        Case("sign", sign, "four modes"),
        Case(
            "kolmogorov",
            kolmogorov,
            "1,024 unknowns under a network prior",
            differentiable=False,
            sites=("bands", "points", "integrals"),
            datasets=100,
            particles=100,
            options={"refine": None},
            single=True,
            standard=False,  # hours
        ),
    )
}


# -- methods ---------------------------------------------------------------------------------------------------------


def nuts(model: Callable) -> MCMC:
    """The chain that the ensembles are compared with: 1,000 draws after a warm-up of 500, two thinned to one."""
    return MCMC(NUTS(model, target_accept_prob=0.9), num_warmup=500, num_samples=2000, thinning=2, progress_bar=False)


def inference(method: str, num_particles: int, **options) -> Callable:
    return nuts if method == "nuts" else partial(EnKG, num_particles=num_particles, progress_bar=False, **options)


# -- the command -----------------------------------------------------------------------------------------------------

COLUMNS = [
    "model",
    "method",
    "data sets",
    "failed",
    "warned",
    "scalars",
    "outside 95 %",
    "smallest p",
    "calibrated",
    "coverage error",
    "coverage mean error",
    "coverage noise",
    "evaluations a data set",
    "seconds a data set",
]


def main(argv: Sequence[str]) -> int:
    """Run the studies that are asked for; 0 where each is calibrated by the bands that its scalars share."""
    parser = _parser()
    options = parser.parse_args(argv)
    if options.datasets is not None and options.datasets < LEAST_DATASETS:
        parser.error(f"--datasets must be at least {LEAST_DATASETS}, which coverage needs; got {options.datasets}")
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.models:
        case = CASES[name]
        if options.method == "nuts" and not case.differentiable:
            print(f"{name}: a black box has no gradient, so there is no NUTS to compare with\n")
            continue
        rows.append(_study(case, options))
    _write(options.out / f"sbc-{options.method}.csv", COLUMNS, rows)
    good = all(row["calibrated"] for row in rows)
    print(f"{'calibrated' if good else 'NOT calibrated'}: tables and pictures are in {options.out}")
    return 0 if good else 1


def _study(case: Case, options) -> dict[str, Any]:
    print(f"{case.name} ({case.about}), {options.method}", flush=True)
    stem = options.out / f"{case.name}-{options.method}"
    jax.config.update("jax_enable_x64", not (options.float32 or case.single))
    started = time.perf_counter()
    study = calibration.sbc(
        case.model,
        inference(options.method, options.particles or case.particles, **case.options),
        num_datasets=options.datasets or case.datasets,
        num_draws=options.draws,
        rng_key=jr.key(options.seed),
        kwargs=case.kwargs,
        sites=case.sites,
        file=stem.with_suffix(".npz"),
        progress_bar=not options.quiet,
    )
    study.plot(stem.with_suffix(".png"))
    numbered = [{"data set": i} | dict(zip(study.names, row, strict=True)) for i, row in enumerate(study.ranks)]
    _write(stem.with_suffix(".csv"), ["data set", *study.names], numbered)
    tarp = calibration.coverage(study)
    lines = [str(study), *_most_frequent(study.warnings), str(tarp), f"{time.perf_counter() - started:.0f} s now"]
    print("\n".join(lines), end="\n\n", flush=True)
    evaluations = study.num_forward_evaluations
    p_values = study.p_values()
    return {
        "model": case.name,
        "method": options.method,
        "data sets": study.num_datasets,
        "failed": len(study.failures),
        "warned": len(study.warnings),
        "scalars": len(study.names),
        "outside 95 %": sum(not ok for ok in study.inside().values()),
        "smallest p": f"{min(p_values.values()):.3g}",
        "calibrated": study.calibrated(),
        "coverage error": f"{tarp.max_error:.4f}",
        "coverage mean error": f"{tarp.mean_error:.4f}",
        "coverage noise": f"{tarp.noise:.4f}",
        "evaluations a data set": "" if evaluations is None else round(evaluations / int(study.finished.sum())),
        "seconds a data set": f"{np.median(study.seconds):.2f}",
    }


def _most_frequent(told_by_run: Mapping[int, list[str]], at_most: int = 3) -> list[str]:
    """Warnings that differ in their figures only, counted together."""
    counts: dict[str, list[str]] = {}
    for told in told_by_run.values():
        for sentence in told:
            counts.setdefault(re.sub(r"[\d.,]+", "", sentence), []).append(sentence)
    most = sorted(counts.values(), key=len, reverse=True)[:at_most]
    return [f"{len(alike)} times: {alike[0]}" for alike in most]


def _write(path: Path, columns: list[str], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m validation sbc", description=__doc__)
    standard = [case.name for case in CASES.values() if case.standard]
    parser.add_argument(
        "--models", nargs="+", choices=list(CASES), default=standard, help=f"default: {' '.join(standard)}"
    )
    parser.add_argument("--method", choices=("enkg", "nuts"), default="enkg")
    parser.add_argument("--datasets", type=int, help="simulated data sets a model (default 300; kolmogorov 100)")
    parser.add_argument("--particles", type=int, help="of EnKG (default 512; kolmogorov 100)")
    parser.add_argument("--draws", type=int, default=99, help="posterior draws to rank each truth among (default 99)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=OUT, help=f"where results go and studies resume (default {OUT})")
    parser.add_argument("--float32", action="store_true", help="JAX's default precision instead of double")
    parser.add_argument("--quiet", action="store_true", help="no progress bar")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
