"""Report pages and their pictures: tables, ticks, regions, legends."""

import itertools

import numpy as np

from models.pictures import REFERENCE
from validation import figures, page


def test_diagnostics_of_any_kind_are_shown():
    assert "<pre>free &amp; easy</pre>" in page.diagnostics_block("free & easy")
    assert "<td>num levels</td>" in page.diagnostics_block({"num_levels": 3})


def test_highest_density_levels_of_a_gaussian():
    x = np.linspace(-6, 6, 241)
    density = np.exp(-0.5 * (x[:, None] ** 2 + x[None, :] ** 2))
    # A disk that holds the share p of a standard Gaussian ends at the height 1 - p.
    np.testing.assert_allclose(figures.highest_density_levels(density, (0.9, 0.5)), [0.1, 0.5], rtol=0.02)


def test_long_values_of_a_table_are_wrapped_and_ticks_stand_apart():
    sentence = "half the ensemble has 64 particles for each of 8 dimensions"
    found = page.diagnostics_block({"refinement": sentence, "num_levels": 12})
    assert f"<td class=text>{sentence}</td>" in found
    assert "<td>12</td>" in found
    for low, high in ((0.0205, 0.0295), (0.45, 0.66), (26.0, 43.0), (-1e-3, 1e-3)):
        ticks = figures._inner_ticks((low, high))
        assert ticks
        assert all(b - a >= 0.36 * (high - low) for a, b in itertools.pairwise(ticks))


def test_the_legend_of_the_intervals_is_what_is_drawn():
    rng = np.random.default_rng(0)
    scalar = figures.Scalar("x", "", rng.normal(size=100), rng.normal(size=100))
    figure = figures.interval_figure([scalar], ("A", "B"))
    drawn = {
        line.get_color(): line.get_linestyle() for line in figure.axes[0].get_lines() if len(line.get_xdata()) == 2
    }
    legend = {line.get_color(): line.get_linestyle() for line in figure.legends[0].get_lines()}
    assert legend == drawn
    assert legend[REFERENCE] == "--"
