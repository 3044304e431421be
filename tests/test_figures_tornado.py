"""The tornado chart shows every assumption with both ends, from the best guess on."""

import pytest

from labkit.figures import tornado_chart


def test_bars_begin_at_the_best_guess_and_end_at_the_two_values():
    figure = tornado_chart(
        ["loss", "price"], [3.0, 1.5], [-2.0, 1.0], base=1.25, xlabel="return", ends=("low", "high"), lang="en"
    )
    [axes] = figure.axes
    low, high = axes.containers[0], axes.containers[1]
    assert [(bar.get_x(), bar.get_width()) for bar in low] == [(1.25, 1.75), (1.25, 0.25)]
    assert [(bar.get_x(), bar.get_width()) for bar in high] == [(1.25, -3.25), (1.25, -0.25)]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["loss", "price"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first on top
    assert "loss 3.0 / -2.0" in figure.alt


@pytest.mark.parametrize(("labels", "low", "high"), [([], [], []), (["a", "b"], [1.0], [2.0, 3.0])])
def test_a_value_per_label_is_needed(labels, low, high):
    with pytest.raises(ValueError, match="expected one of each per label"):
        tornado_chart(labels, low, high, base=0.0, xlabel="x", ends=("low", "high"))
