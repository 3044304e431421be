"""Points in the plane: what is drawn is what was given."""

import numpy as np
import pytest

from labkit.figures import density_map, kept_points, path_in_box

POINTS = np.array([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [-1.0, 0.5]])


def offsets(axes):
    return [np.asarray(collection.get_offsets()) for collection in axes.collections]


def test_the_map_colours_the_points_and_rings_the_ball_of_one():
    figure = density_map(
        POINTS, np.array([1.0, 2.0, 3.0, 4.0]), truth=np.eye(5), reach=2.0, ball=(3, 0.7), titles=("true", "rho"),
        label="density", alt="a map",
    )  # fmt: skip
    truth, points = figure.axes[:2]
    assert truth.images[0].get_extent() == [-2.0, 2.0, -2.0, 2.0]
    assert truth.get_title("left") + truth.get_title() == "true"
    np.testing.assert_array_equal(offsets(points)[0], POINTS)
    (ball,) = points.patches
    assert tuple(ball.center) == (-1.0, 0.5) and ball.radius == 0.7
    assert points.get_xlim() == (-2.0, 2.0) and figure.alt == "a map"


def test_kept_and_rejected_points_are_apart_and_every_stop_stays_in_the_plane():
    kept = np.array([True, False, True, False])
    figure = kept_points(
        POINTS, kept, stops=[(0.1, 0.9), (0.5, 0.8)], others={"truncation": [(0.2, 0.3)]}, names=("no", "yes"),
        titles=("left", "right"), xlabel="coverage", ylabel="precision", alt="a plane",
    )  # fmt: skip
    points, plane = figure.axes
    rejected, accepted = offsets(points)
    np.testing.assert_array_equal(rejected, POINTS[~kept])
    np.testing.assert_array_equal(accepted, POINTS[kept])
    drawn = [np.column_stack(line.get_data()).tolist() for line in plane.lines]
    assert drawn == [[[0.1, 0.9], [0.5, 0.8]], [[0.5, 0.8]], [[0.2, 0.3]]]
    assert [text.get_text() for text in plane.get_legend().get_texts()] == ["truncation"]


@pytest.mark.parametrize("best", [0, 2])
def test_the_kept_iterate_is_ringed_and_the_walls_are_drawn(best):
    deltas, path = np.array([[0.0, 0.0], [0.1, -0.1], [0.2, -0.2]]), POINTS[:3]
    figure = path_in_box(
        deltas, path, eps=0.2, background=POINTS, best=best, title="a push", titles=("box", "data"), xlabel="step",
        ylabel="delta",
    )  # fmt: skip
    box, data = figure.axes
    assert [line.get_ydata()[0] for line in box.lines[2:]] == [-0.2, 0.2]
    np.testing.assert_allclose(np.ravel(data.lines[-1].get_xydata()), path[best])
    assert figure.alt == "a push"
