"""The forest plot of recorded means and the learner's own numbers."""

import numpy as np
import pytest
from matplotlib.text import Text

from labkit.figures import bar_with_interval, family_looks, recorded_means, recorded_paths, recorded_plane
from labkit.figures.style import MARKERS, MUTED, PALETTE
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


FAMILIES = [("raft", "rwr"), ("ddpo", "grpo"), ("draft",), ("dpo",), ("nft",), ("search", "", "guidance")]


def test_every_member_of_every_family_is_told_apart_by_colour_and_marker_and_line():
    looks = family_looks(FAMILIES)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks) == 9
    assert looks["raft"].colour == looks["rwr"].colour == PALETTE[0] != looks["grpo"].colour
    assert looks["raft"].line != looks["rwr"].line and looks["guidance"].marker == MARKERS[2]
    for families, message in [
        ([("a",)] * 7, "at most 6 families"),
        ([tuple("abcdefg")], "6 members"),
        ([("a",), ("a",)], "two places"),
    ]:
        with pytest.raises(ValueError, match=message):
            family_looks(families)


def test_charts_draw_the_looks_that_were_given_and_gray_for_labels_without():
    looks = family_looks(FAMILIES)
    paths = {name: ([1, 2], [i, i]) for i, name in enumerate(["rwr", "grpo", "stranger"])}
    axes = recorded_paths(paths, xlabel="NFE", ylabel="gold", looks=looks).axes[0]
    drawn = {float(line.get_ydata()[0]): line for line in axes.lines if len(line.get_xdata()) == 2}
    assert [drawn[i].get_marker() for i in (0.0, 1.0, 2.0)] == ["s", "s", "o"]
    assert [drawn[i].get_color() for i in (0.0, 1.0, 2.0)] == [PALETTE[0], PALETTE[1], MUTED]
    assert drawn[0.0].get_linestyle() == "--"
    rows = {"rwr": (ROWS["leap"], ROWS["curriculum"]), "draft": (ROWS["curriculum"], ROWS["leap"])}
    axes = recorded_plane(rows, xlabel="x", ylabel="y", yours={"draft": (0.1, 0.2)}, looks=looks).axes[0]
    marks = {line.get_marker(): line.get_color() for line in axes.lines if line.get_markersize() > 10}
    assert marks == {"s": PALETTE[0], "o": PALETTE[2], "*": PALETTE[2]}


@pytest.mark.parametrize(
    "title",
    [
        "Guidance away from the worse model: gain over plain guidance",
        "悪いモデルから遠ざかる誘導について、通常の誘導と比べた伸び",
    ],
)
def test_a_title_ends_inside_of_the_figure_however_wide_the_labels_at_its_left(title):
    rows = {"asked for nothing (the paper's own way)": ROWS["leap"], "asked for the prompt": ROWS["leap"]}
    for figure in (
        recorded_means(rows, xlabel="gain", reference={"no change": 0.0}, title=title),
        bar_with_interval(list(rows), [0.1, 0.2], xlabel="gain", title=title),
    ):
        figure.draw_without_rendering()
        joined = {shown.get_text().replace("\n", "").replace(" ", ""): shown for shown in figure.findobj(Text)}
        written = joined[title.replace(" ", "")].get_window_extent()
        assert written.x1 <= figure.bbox.x1
        assert written.y1 <= figure.bbox.y1
