"""Hare and lynx: `EnKG` on the simulator without a gradient beside NUTS on its differentiable twin, and a page of both.

The problem is that of `models.lynx_hare`.

    python -m validation.demos.lynx_hare --report report/lynx_hare.html
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from numpyro.diagnostics import print_summary

from enkg_ppl import EnKG
from models.lynx_hare import LATENT_SITES, PELTS, YEARS, Draws, model, predictive_draws, twin
from models.pictures import save_png
from validation import figures, page
from validation.compare import format_moments, moments_table, scalars
from validation.demos._bands import Panel, fit_figure
from validation.nuts import nuts

NAMES = ("EnKG", "NUTS")
# With the full mass matrix a few leapfrog steps a draw are enough. Most prior draws lead to a poor local mode
# that explains the cycles as noise, 40 nats below: hence the search for a start.
NUTS_SETTINGS = {
    "num_warmup": 300,
    "num_samples": 500,
    "num_chains": 4,
    "num_starts": 100,
    "num_descents": 12,
    "dense_mass_matrix": True,
}
LABELS = (
    ("alpha", r"$\alpha$", "1/yr"),
    ("beta", r"$\beta$", "1/yr/thousand"),
    ("gamma", r"$\gamma$", "1/yr"),
    ("delta", r"$\delta$", "1/yr/thousand"),
    ("z_init[0]", r"$u(0)$", "thousand"),
    ("z_init[1]", r"$v(0)$", "thousand"),
    ("sigma[0]", r"$\sigma_u$", ""),
    ("sigma[1]", r"$\sigma_v$", ""),
)
MODEL_TEXT = """Hares <i>u</i> breed and are eaten, lynxes <i>v</i> starve and eat; pelts <i>y</i> scatter
around both by a LogNormal factor:
<span class="formula"><i>u</i>&prime; = (&alpha; &minus; &beta;<i>v</i>) <i>u</i>, &emsp;
<i>v</i>&prime; = (&minus;&gamma; + &delta;<i>u</i>) <i>v</i><br>
<i>y<sub>u</sub></i>(<i>t</i>) ~ LogNormal(ln <i>u</i>(<i>t</i>), &sigma;<i><sub>u</sub></i>), &emsp;
<i>y<sub>v</sub></i>(<i>t</i>) ~ LogNormal(ln <i>v</i>(<i>t</i>), &sigma;<i><sub>v</sub></i>)<br>
&alpha;, &gamma; ~ N<sup>+</sup>(1, 0.5), &emsp; &beta;, &delta; ~ N<sup>+</sup>(0.05, 0.05)<br>
<i>u</i>(0), <i>v</i>(0) ~ LogNormal(ln 10, 1), &emsp;
&sigma;<i><sub>u</sub></i>, &sigma;<i><sub>v</sub></i> ~ LogNormal(&minus;1, 1)</span>
What a user writes; the solver is SciPy&rsquo;s and has no gradient:"""
MODEL_CODE = """\
# Any host code: here scipy.integrate.solve_ivp, once for the whole ensemble.
simulate = blackbox(lotka_volterra, shape=(20, 2), vectorized=True)

def model(y=None):
    alpha = numpyro.sample("alpha", dist.TruncatedNormal(1.0, 0.5, low=0.0))
    beta = numpyro.sample("beta", dist.TruncatedNormal(0.05, 0.05, low=0.0))
    gamma = numpyro.sample("gamma", dist.TruncatedNormal(1.0, 0.5, low=0.0))
    delta = numpyro.sample("delta", dist.TruncatedNormal(0.05, 0.05, low=0.0))
    z_init = jnp.asarray(numpyro.sample("z_init", dist.LogNormal(math.log(10.0), 1.0).expand([2]).to_event(1)))
    sigma = jnp.asarray(numpyro.sample("sigma", dist.LogNormal(-1.0, 1.0).expand([2]).to_event(1)))
    later = simulate(jnp.stack([alpha, beta, gamma, delta]), z_init)
    population = numpyro.deterministic("population", jnp.concatenate([z_init[None, :], later]))
    numpyro.sample("y", dist.LogNormal(jnp.log(population), sigma[None, :]).to_event(2), obs=y)

enkg = EnKG(model, num_particles=1024)
enkg.run(jax.random.key(0), y=pelts)
enkg.print_summary()
"""


def fit_panels(samples: Draws, reference: Draws, seed: int = 0) -> list[Panel]:
    """Predictive bands of two posteriors, hares then lynxes, eight times a year.

    Args:
        samples: draws of the method, `(draws, *site shape)` a site.
        reference: draws of the reference, laid out alike.
        seed: of the replicated observation noise.
    """
    grid = np.linspace(YEARS[0], YEARS[-1], 161)
    bands = [predictive_draws(np.random.default_rng(seed), draws, grid) for draws in (samples, reference)]
    return [
        Panel(title, "pelts (thousands)", YEARS, PELTS[:, k], grid, bands[0][..., k], bands[1][..., k])
        for k, title in enumerate(("Snowshoe hare", "Canada lynx"))
    ]


def build_page(samples: Draws, reference: Draws, diagnostics: Any, facts: dict[str, str], command: str) -> str:
    """The report as one HTML page.

    Args:
        samples: draws of EnKG, `(draws, *site shape)` a site.
        reference: draws of NUTS, laid out alike.
        diagnostics: what `EnKG.diagnostics()` returned.
        facts: the large numbers under the title.
        command: how to make this page again.
    """
    rows = moments_table(samples, reference, LATENT_SITES)
    ours, theirs = dict(scalars(samples, LATENT_SITES)), dict(scalars(reference, LATENT_SITES))
    parameters = [figures.Scalar(label, unit, ours[name], theirs[name]) for name, label, unit in LABELS]
    shift = max(abs(row.shift) for row in rows)
    ratios = [row.sd_ratio for row in rows]
    lead = (
        "Twenty-one years of pelts, an ecologist&rsquo;s equations, and a solver that nobody can "
        "differentiate. Ensemble Kalman Diffusion Guidance (EnKG) infers rates, first populations and noise "
        "by running the solver forward only. NUTS, given a differentiable copy of the same model, says what "
        f"the answer should be: <strong>means within {shift:.2f} posterior standard deviations, "
        f"standard deviations {min(ratios):.2f} to {max(ratios):.2f} times as large</strong>."
    )
    panels = fit_panels(samples, reference)
    fits = [
        page.svg(
            fit_figure([panel], NAMES, (5.2, 3.5), legend=False),
            f"Predictive bands and data: {panel.title}",
        )
        for panel in panels
    ]
    pair = page.svg(figures.pair_figure(parameters, NAMES), "Joint posterior of all pairs of parameters")
    intervals = page.svg(figures.interval_figure(parameters, NAMES), "Posterior intervals of each parameter")
    sections = [
        page.Section(
            "Pelts that the posterior predicts",
            "The hare peaks first and the lynx a year or two later, ten years a cycle. Bands hold 50 and 90 "
            "% of pelt counts replicated from the posterior, noise included; about two of the 21 points "
            "should lie outside the wider one.",
            page.figure_block(fits, f"{page.legend_html(NAMES)} &emsp; points: pelts as recorded, in thousands."),
        ),
        page.Section(
            "Parameters",
            "Rates are correlated: the data fix the length of the cycle and the mean populations better than "
            "any single rate. A method that only got the marginals right would fail off the diagonal.",
            page.figure_block([pair], "Regions of highest density holding 50 and 90 % of the draws.", wide=True),
        ),
        page.Section(
            "Agreement in numbers",
            "Each parameter on the reference&rsquo;s own scale; thick 50 %, thin 90 %. A hundred independent "
            "draws would tell means apart to 0.1, a thousand to 0.03.",
            page.figure_block([intervals], "Both posteriors, centred and scaled by mean and sd of NUTS.", wide=True)
            + page.moments_block(rows, NAMES),
        ),
        page.Section("What EnKG says of itself", "Known without any reference.", page.diagnostics_block(diagnostics)),
        page.Section("Model", MODEL_TEXT, page.code_block(MODEL_CODE)),
        page.Section("Make this page", "From a checkout, with every seed fixed:", page.code_block(command)),
    ]
    return page.page("Hares, lynxes and no gradient", lead, facts, sections)


def save_picture(samples: Draws, reference: Draws, path: str | Path) -> Path:
    """Write the fit as PNG (1600 x 700 pixels), as the README shows it."""
    return save_png(fit_figure(fit_panels(samples, reference), NAMES, (10.0, 4.375)), path)


def main(argv: list[str] | None = None) -> None:
    """Infer with EnKG, judge by NUTS, print both, write the page; its path is the last line printed."""
    parser = argparse.ArgumentParser(prog="python -m validation.demos.lynx_hare", description=main.__doc__)
    parser.add_argument("--num-particles", type=int, default=1024, help="ensemble size (default 1024)")
    parser.add_argument("--seed", type=int, default=0, help="seed of both methods (default 0)")
    parser.add_argument("--report", type=Path, default=Path("report/lynx_hare.html"), help="where the page goes")
    parser.add_argument("--picture", type=Path, help="also write the fit as PNG to this path")
    options = parser.parse_args(argv)
    jax.config.update("jax_enable_x64", True)

    print(f"EnKG on the black box, {options.num_particles} particles", flush=True)
    start = time.perf_counter()
    enkg = EnKG(model, num_particles=options.num_particles)
    enkg.run(jax.random.key(options.seed), YEARS, y=PELTS)
    samples = {name: np.asarray(draws) for name, draws in enkg.get_samples().items()}
    seconds = time.perf_counter() - start
    enkg.print_summary()

    print("NUTS on the differentiable twin", flush=True)
    reference = nuts(jax.random.key(options.seed + 1), twin, YEARS, y=PELTS, **NUTS_SETTINGS)
    print_summary({site: reference.samples[site] for site in LATENT_SITES}, prob=0.9)
    print(f"Number of divergences: {reference.num_divergences}\n")

    print(format_moments(moments_table(samples, reference.flat(), LATENT_SITES), NAMES))
    print(
        f"\nEnKG  {enkg.num_forward_evaluations:>9,} forward evaluations  {seconds:6.1f} s"
        f"\nNUTS  {reference.num_gradient_evaluations:>9,} gradient evaluations {reference.seconds:6.1f} s"
    )
    if enkg.log_evidence is not None:
        print(f"log evidence {float(np.mean(enkg.log_evidence)):.2f} (EnKG)")

    facts = {
        "solver runs by EnKG": f"{enkg.num_forward_evaluations:,}",
        "solver runs a posterior draw": f"{enkg.num_forward_evaluations / options.num_particles:.0f}",
        "EnKG, compilation included": f"{seconds:.0f} s",
        "gradients by NUTS": f"{reference.num_gradient_evaluations:,}",
        "NUTS, compilation included": f"{reference.seconds:.0f} s",
    }
    command = f"python -m validation.demos.lynx_hare --num-particles {options.num_particles} --seed {options.seed}"
    options.report.parent.mkdir(parents=True, exist_ok=True)
    options.report.write_text(build_page(samples, reference.flat(), enkg.diagnostics(), facts, command), "utf-8")
    if options.picture is not None:
        save_picture(samples, reference.flat(), options.picture)
    print(options.report)


if __name__ == "__main__":
    main()
