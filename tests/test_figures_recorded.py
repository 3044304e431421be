"""The forest plot of recorded means and the learner's own numbers."""

import numpy as np
import pytest

from labkit.figures import recorded_means, recorded_paths
from labkit.studies import estimate

ROWS = {
    "curriculum": estimate(np.array([[0.10, 0.14], [0.12, 0.10], [0.11, 0.15]])),
    "leap": estimate(np.array([[-0.02, 0.01], [0.00, 0.02], [-0.01, 0.01]])),
}


def test_every_row_shows_mean_interval_and_seeds_and_the_learners_star():
    figure = recorded_means(ROWS, xlabel="gain", yours={"leap": 0.03}, reference={"base": 0.0}, title="Gains")
    (axes,) = figure.axes
    lines = [line for line in axes.lines if line.get_marker() in ("o", "*")]
    points = {tuple(np.round(np.ravel(line.get_xdata()).astype(float), 6)): line.get_marker() for line in lines}
    assert points[tuple(np.round(ROWS["leap"].per_seed, 6))] == "o"
    assert points[(0.03,)] == "*"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["curriculum", "leap"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first row is on top
    assert "leap +0.002" in figure.alt
    assert "your run +0.030" in figure.alt
    assert "curriculum +0.120 [" in figure.alt


@pytest.mark.parametrize(("rows", "yours"), [({}, {}), (ROWS, {"base": 0.1})])
def test_a_number_without_a_row_is_refused(rows, yours):
    with pytest.raises(ValueError, match="without a row: (none|base)"):
        recorded_means(rows, xlabel="gain", yours=yours)


def test_a_path_ends_in_its_number_and_in_the_description():
    figure = recorded_paths({"draft": ([1, 2, 4], [0.1, 0.4, 0.3]), "search": (3, 0.2)}, xlabel="NFE", ylabel="gold")
    ends = {text.get_text(): text.xy for text in figure.axes[0].texts}
    assert ends == {"1": (4.0, 0.3), "2": (3.0, 0.2)}
    assert "draft (4, 0.3)" in figure.alt and "search (3, 0.2)" in figure.alt
    with pytest.raises(ValueError, match="draft: x and y"):
        recorded_paths({"draft": ([1, 2], [0.1])}, xlabel="NFE", ylabel="gold")
    with pytest.raises(ValueError, match="nothing to draw"):
        recorded_paths({}, xlabel="NFE", ylabel="gold")
