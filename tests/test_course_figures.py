"""Figures of the course: they show what they are given, fit, describe themselves, and stay readable for everybody."""

import base64
import io
import itertools

import numpy as np
import pytest
from PIL import Image

from labkit.figures import (
    bar_with_interval,
    before_after,
    curve_with_interval,
    heatmap_overlay,
    image_grid,
    label_points,
    new_figure,
    strips,
)
from labkit.figures.base import text_width, wrap_text
from labkit.figures.charts import _spread
from labkit.figures.images import as_pixel_list, as_pixels
from labkit.figures.style import PALETTE, japanese_font


def flat(color, side=16):
    return Image.new("RGB", (side, side), color)


COLORS = ["#E03030", "#30B030", "#3030E0", "#E0C020", "#20C0C0"]


def rgb(color):
    return np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)])


def drawn(figure):
    return np.asarray(Image.open(io.BytesIO(figure.png())).convert("RGB")).astype(int)


def share(pixels, color):
    """Share of the figure's pixels that have this colour."""
    return float((np.abs(pixels - rgb(color)).max(axis=-1) < 6).mean())


class TestImages:
    def test_every_accepted_form_gives_the_same_pixels(self):
        rng = np.random.default_rng(0)
        array = rng.integers(0, 256, (8, 6, 3), dtype=np.uint8)
        as_float = array.transpose(2, 0, 1) / 127.5 - 1  # [3, 8, 6] in [-1, 1]
        for form in (array, Image.fromarray(array), as_float, as_float.astype(np.float32)):
            assert np.array_equal(as_pixels(form), array)

    def test_floats_are_rounded_and_clipped_not_truncated(self):
        values = np.array([-1.0, 1.0, 3.0, -3.0, 100.6 / 127.5 - 1], dtype=np.float64)
        pixels = as_pixels(np.broadcast_to(values, (3, 1, 5)).copy())
        assert pixels[0, :, 0].tolist() == [0, 255, 255, 0, 101]

    def test_a_batch_is_split_into_its_images(self):
        batch = np.zeros((4, 3, 5, 5), dtype=np.float32)
        batch[2] = 1
        assert [int(image[0, 0, 0]) for image in as_pixel_list(batch)] == [128, 128, 255, 128]

    def test_sixteen_bits_and_the_cameras_turn_are_shown_as_a_viewer_shows_them(self, tmp_path):
        deep = Image.fromarray(np.array([[0, 32896], [65535, 257]], dtype=np.uint16))
        assert as_pixels(deep)[..., 0].tolist() == [[0, 128], [255, 1]]
        exif = Image.Exif()
        exif[0x0112] = 6  # the camera was turned by a quarter
        Image.new("RGB", (6, 4)).save(tmp_path / "turned.png", exif=exif)
        with Image.open(tmp_path / "turned.png") as turned:
            assert as_pixels(turned).shape == (6, 4, 3)

    def test_transparency_lies_over_white(self):
        assert as_pixels(Image.new("RGBA", (2, 2), (255, 0, 0, 0))).tolist() == [[[255, 255, 255]] * 2] * 2

    @pytest.mark.parametrize(
        ("bad", "error", "says"),
        [
            (np.full((3, 4, 4), np.nan), ValueError, "NaN"),
            (np.zeros((4, 4, 3)), ValueError, "[3, H, W]"),
            (np.zeros((4, 4), dtype=np.int64), ValueError, "int64"),
            ("portrait.png", TypeError, "str"),
        ],
    )
    def test_what_is_no_image_is_refused_with_what_was_expected(self, bad, error, says):
        with pytest.raises(error, match=says.replace("[", r"\[")):
            as_pixels(bad)

    def test_a_single_image_in_place_of_a_list_is_refused(self):
        with pytest.raises(TypeError, match=r"\[image\]"):
            image_grid(flat("#000000"))


class TestGrid:
    def test_shows_every_image_once_and_equally_large(self):
        pixels = drawn(image_grid([flat(color) for color in COLORS], columns=3))
        shares = [share(pixels, color) for color in COLORS]
        assert min(shares) > 0.1
        assert max(shares) - min(shares) < 0.01 * max(shares)

    def test_wide_and_tall_images_keep_their_shape(self):
        pixels = drawn(image_grid([Image.new("RGB", (40, 20), COLORS[0]), Image.new("RGB", (20, 40), COLORS[1])]))
        for color, ratio in zip(COLORS, (2.0, 0.5), strict=False):
            rows, columns = np.nonzero(np.abs(pixels - rgb(color)).max(axis=-1) < 6)
            assert np.ptp(columns) / np.ptp(rows) == pytest.approx(ratio, rel=0.05)

    @pytest.mark.parametrize("count", [1, 2, 5, 7, 9, 12, 16, 30])
    def test_fits_a_notebook_cell(self, count):
        figure = image_grid([flat("#808080")] * count, [f"caption number {i}" for i in range(count)])
        assert figure.get_size_inches()[0] <= 9.01
        assert len(figure.axes) == count

    def test_captions_and_scores_are_drawn_and_described_in_both_languages(self):
        bare = image_grid([flat("#808080")] * 2)
        for lang, words in (("en", "grid of 2 images"), ("ja", "画像2枚")):
            full = image_grid([flat("#808080")] * 2, ["a", "笑顔"], [0.25, 1], score_label="r", lang=lang)
            assert full.get_size_inches()[1] > bare.get_size_inches()[1] + 0.2
            assert words in full.alt and "1: a (r 0.25)" in full.alt and "2: 笑顔 (r 1.00)" in full.alt
            shown = [text.get_text() for text in full.texts]
            assert {"a", "笑顔", "r 0.25", "r 1.00"} <= set(shown)

    def test_a_frame_has_the_colour_of_its_role(self):
        pixels = drawn(image_grid([flat("#808080")] * 2, frames={0: "winner"}))
        assert share(pixels, PALETTE[2]) > 0.005
        assert share(drawn(image_grid([flat("#808080")] * 2)), PALETTE[2]) == 0

    @pytest.mark.parametrize("argument", ["captions", "scores"])
    def test_lists_of_another_length_are_refused(self, argument):
        with pytest.raises(ValueError, match=f"3 {argument}; expected 2"):
            image_grid([flat("#808080")] * 2, **{argument: [1, 2, 3]})

    def test_no_image_is_refused(self):
        with pytest.raises(ValueError, match="no images"):
            image_grid([])

    def test_scores_may_be_a_tensor_or_array(self):
        assert "0.50" in image_grid([flat("#808080")] * 2, scores=np.array([0.5, 0.25], dtype=np.float32)).alt


class TestStrips:
    def test_before_is_above_after_and_seeds_are_over_the_columns(self):
        figure = before_after([flat(COLORS[0])] * 2, [flat(COLORS[1])] * 2, seeds=[7, 11], lang="ja")
        pixels = drawn(figure)
        height = {color: np.nonzero(np.abs(pixels - rgb(color)).max(axis=-1) < 6)[0].mean() for color in COLORS[:2]}
        assert height[COLORS[0]] < height[COLORS[1]]
        shown = [text.get_text() for text in figure.texts]
        assert {"シード7", "シード11", "学習前", "学習後"} <= set(shown)
        assert "7, 11" in figure.alt

    def test_rows_without_scores_stay_bare_beside_rows_with(self):
        figure = strips({"a": [flat("#808080")] * 2, "b": [flat("#808080")] * 2}, scores={"b": [1, 2]})
        numbers = [text.get_text() for text in figure.texts if text.get_text()[:1].isdigit()]
        assert numbers == ["1.00", "2.00"]

    def test_rows_of_different_length_are_refused(self):
        with pytest.raises(ValueError, match="same seeds in every row"):
            before_after([flat("#808080")] * 2, [flat("#808080")] * 3)


class TestHeat:
    def test_the_hottest_place_is_the_one_of_the_map(self):
        heat = np.zeros((8, 8))
        heat[1, 6] = 1
        figure = heatmap_overlay(flat("#808080", 64), heat, label="attention weight", lang="en")
        assert "at the top right" in figure.alt
        box = figure.axes[0].images[0].get_array()
        brightness = np.asarray(box).astype(int).sum(axis=-1)
        warm = np.asarray(box)[..., 0].astype(int) - np.asarray(box)[..., 2]
        row, column = np.unravel_index((warm + brightness * 0.5).argmax(), warm.shape)
        assert row < 256 / 3 and column > 2 * 256 / 3

    def test_all_maps_share_one_scale(self):
        figure = heatmap_overlay([flat("#808080")] * 2, [np.full((4, 4), 0.0), np.full((4, 4), 2.0)], label="w")
        first, second = (np.asarray(axes.images[0].get_array()).astype(int).mean() for axes in figure.axes[:2])
        assert abs(first - second) > 30

    def test_one_image_serves_several_maps_but_other_numbers_are_refused(self):
        assert len(heatmap_overlay(flat("#808080"), np.ones((3, 4, 4)), label="w").axes) == 4  # 3 + colour bar
        with pytest.raises(ValueError, match="2 images and 3 maps"):
            heatmap_overlay([flat("#808080")] * 2, np.ones((3, 4, 4)), label="w")

    def test_a_map_that_is_not_finite_is_refused(self):
        with pytest.raises(ValueError, match="map 0 contains NaN"):
            heatmap_overlay(flat("#808080"), np.full((4, 4), np.nan), label="w")


class TestCharts:
    def test_band_of_runs_reaches_from_the_lowest_to_the_highest(self):
        runs = np.array([[0.0, 1.0, 2.0], [1.0, 3.0, 7.0]])
        figure = curve_with_interval([0, 1, 2], {"m": runs}, xlabel="x", ylabel="y")
        axes = figure.axes[0]
        assert axes.lines[0].get_ydata().tolist() == [0.5, 2.0, 4.5]
        corners = axes.collections[0].get_paths()[0].vertices
        assert {(2.0, 2.0), (2.0, 7.0), (0.0, 0.0), (0.0, 1.0)} <= {tuple(corner) for corner in corners}

    def test_a_given_interval_is_drawn_as_given_and_must_contain_its_value(self):
        figure = bar_with_interval(["a"], ([1.0], [0.5], [3.0]), xlabel="x")
        segments = figure.axes[0].collections[0].get_segments()
        assert np.asarray(segments)[0, :, 0].tolist() == [0.5, 3.0]
        with pytest.raises(ValueError, match="outside its interval"):
            bar_with_interval(["a"], ([4.0], [0.5], [3.0]), xlabel="x")

    def test_equal_runs_have_an_interval_of_width_zero(self):
        runs = np.full((3, 2), 0.1)  # their mean rounds to more than 0.1
        assert runs.mean(axis=0)[0] != 0.1
        figure = bar_with_interval(["a", "b"], runs, xlabel="x")
        assert np.ptp(np.asarray(figure.axes[0].collections[0].get_segments())[:, :, 0], axis=1).tolist() == [0, 0]

        bar_with_interval(["a"], (runs.mean(axis=0)[:1], [0.1], [0.1]), xlabel="x")

    def test_few_numbers_on_a_logarithmic_axis_are_written_out(self):
        axes = curve_with_interval([64, 128, 256], [1, 2, 3], xlabel="x", ylabel="y", log_x=True).axes[0]
        assert [text.get_text() for text in axes.get_xticklabels()] == ["64", "128", "256"]
        assert not len(axes.get_xticks(minor=True))

    def test_whole_numbers_have_whole_ticks(self):
        axes = curve_with_interval(range(2, 21), range(19), xlabel="candidates N", ylabel="gap").axes[0]
        assert all(tick == round(tick) for tick in axes.get_xticks())
        axes = curve_with_interval([0.5, 1.0], [1, 2], xlabel="weight", ylabel="gap").axes[0]
        assert any(tick != round(tick) for tick in axes.get_xticks())

    def test_axes_carry_the_labels_with_units_and_series_their_names(self):
        series = {"direct": [1, 2], "直接": [1, 2.02]}
        figure = curve_with_interval([0, 1], series, xlabel="steps", ylabel="reward (nats)", reference={"chance": 0.5})
        axes = figure.axes[0]
        assert (axes.get_xlabel(), axes.get_ylabel()) == ("steps", "reward (nats)")
        assert {"direct", "直接", "chance"} <= {text.get_text() for text in axes.texts}

    def test_names_at_line_ends_never_touch(self):
        for positions in ([0, 0, 0], [0, 5, 100, 101, 102, 103], [3.0], [10, 30, 31]):
            moved = _spread(positions, [13] * len(positions))
            assert all(b - a >= 13 - 1e-9 for a, b in itertools.pairwise(moved))
            assert np.mean(moved) == pytest.approx(np.mean(positions))
        assert _spread([0, 50, 100], [13, 13, 13]) == [0, 50, 100]
        assert _spread([0, 1, 100], [25, 13, 13]) == [-9, 10, 100]  # a name of two lines needs half of 25 and of 13

    def test_drawn_names_of_one_and_two_lines_do_not_overlap(self):
        long = {
            "zero-shot, rehearsed prompts of the old kind": [1, 0.99],
            "zero-shot, new prompts": [1, 0.98],
            "c": [0, 1],
        }
        figure = curve_with_interval([0, 1], long, xlabel="weight", ylabel="share right", ylim=(0.4, 1.03))
        figure.canvas.draw()
        names = [
            text for text in figure.axes[0].texts if text.get_text().replace("\n", " ").split()[0] in "zero-shot, c"
        ]
        boxes = sorted((text.get_window_extent() for text in names), key=lambda box: box.y0)
        assert len(boxes) == 3 and all(below.y1 <= above.y0 + 1 for below, above in itertools.pairwise(boxes))

    def test_description_names_axes_and_values_in_both_languages(self):
        make = {"xlabel": "steps", "ylabel": "reward"}
        english = curve_with_interval([0, 9], {"m": [0.125, 0.5]}, **make, lang="en").alt
        japanese = curve_with_interval([0, 9], {"m": [0.125, 0.5]}, **make, lang="ja").alt
        assert "0.125" in english and "0.5" in english and "line chart of reward over steps" in english
        assert "0.125" in japanese and "折れ線グラフ" in japanese
        assert "a 25%" in bar_with_interval(["a"], [0.25], xlabel="x", value_format="{:.0%}").alt

    def test_wrong_lengths_and_too_many_series_are_refused(self):
        with pytest.raises(ValueError, match="expected 3"):
            curve_with_interval([0, 1, 2], {"m": [1, 2]}, xlabel="x", ylabel="y")
        with pytest.raises(ValueError, match="7 series"):
            curve_with_interval([0], {str(i): [1] for i in range(7)}, xlabel="x", ylabel="y")


class TestText:
    def test_lines_fit_and_nothing_is_lost(self):
        for words in ("a flat portrait of a calm person", "フラット調の肖像画、穏やかな表情", "supercalifragilistic"):
            lines = wrap_text(words, 0.8, 8.5, max_lines=9)
            assert all(text_width(line, 8.5) <= 0.8 for line in lines)
            assert "".join(lines).replace(" ", "") == words.replace(" ", "")

    def test_no_japanese_line_starts_with_closing_punctuation(self):
        words = "あいうえ、かきくけ。さしすせ」たちつて、なにぬね。"
        for width in np.linspace(0.4, 1.6, 25):
            assert all(line[0] not in "、。」" for line in wrap_text(words, float(width), 8.5, max_lines=30))

    def test_japanese_lines_break_between_phrases(self):
        assert wrap_text("笑顔で眼鏡をかけた短い髪の人物", 1.4, 8.5) == ["笑顔で眼鏡をかけた", "短い髪の人物"]
        assert wrap_text("FABRIC と DPO の比較、guidance 3.0", 1.4, 8.5)[0] == "FABRIC と DPO の"

    def test_what_does_not_fit_ends_in_an_ellipsis(self):
        lines = wrap_text("one two three four five six seven", 0.6, 8.5, max_lines=2)
        assert len(lines) == 2 and lines[-1].endswith("…") and text_width(lines[-1], 8.5) <= 0.6


class TestStyle:
    def test_japanese_text_has_glyphs(self):
        from matplotlib import font_manager

        name = japanese_font()
        assert name, "install matplotlib-fontja"
        face = font_manager.get_font(font_manager.findfont(name, fallback_to_default=False))
        assert all(face.get_char_index(ord(char)) for char in "拡散モデルの誘導スケール。")

    def test_drawing_japanese_warns_of_no_missing_glyph(self, recwarn, caplog):
        image_grid([flat("#808080")], ["笑顔 − 眼鏡 ≤ 3"], [0.5], score_label="報酬", title="前後の比較").png()
        assert not [str(w.message) for w in recwarn if "Glyph" in str(w.message)]
        assert "findfont" not in caplog.text

    def test_palette_stays_apart_under_colour_vision_deficiencies(self):
        # Machado, Oliveira, Fernandes 2009, severity 1.0, on linear RGB; distance in CIE Lab
        simulations = {
            "none": np.eye(3),
            "protan": [[0.1523, 1.0526, -0.2049], [0.1145, 0.7863, 0.0992], [-0.0039, -0.0481, 1.0520]],
            "deutan": [[0.3673, 0.8606, -0.2280], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
        }
        srgb = np.array([[int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)] for c in PALETTE])
        linear = np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        for name, matrix in simulations.items():
            seen = np.clip(linear @ np.asarray(matrix).T, 0, 1)
            f = np.cbrt(seen @ to_xyz.T / to_xyz.sum(axis=1))  # cube root also near 0: none of these colours is dark
            lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)
            closest = min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2))
            assert closest > 12, f"{name}: two colours of the palette are only {closest:.1f} apart"

    def test_figures_look_the_same_whatever_the_session_set(self):
        import matplotlib

        def make():
            return curve_with_interval([0, 1], {"m": [1, 2]}, xlabel="x", ylabel="y").png()

        plain = make()
        with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "axes.facecolor": "black"}):
            assert make() == plain

    def test_a_learners_own_plot_can_be_in_japanese_after_start_and_keeps_its_settings(self, tmp_path, recwarn):
        import matplotlib.pyplot as plt

        from labkit.course import set_language, start

        def drawn_by_pyplot():
            figure, axes = plt.subplots()
            axes.plot([-2, 3], [-1, 5])
            axes.set_title("拡散モデルの損失 ≤ 3", weight="bold")
            axes.set_xlabel("ステップ数")
            buffer = io.BytesIO()
            figure.savefig(buffer)
            plt.close(figure)
            return [str(w.message) for w in recwarn if "Glyph" in str(w.message)]

        with plt.rc_context({"font.family": ["serif"], "font.size": 13}):
            before = dict(plt.rcParams)
            try:
                for _ in range(2):  # the setup cell may run again
                    start("01", tier="smoke", lang="ja", home=tmp_path)
            finally:
                set_language("en")
            assert not drawn_by_pyplot()
            after = dict(plt.rcParams)
            assert {key for key in before if before[key] != after[key]} == {"font.family"}
            assert after["font.family"] == ["serif", japanese_font()]
            plt.rcParams["font.family"] = ["serif"]
            assert drawn_by_pyplot()  # without the font, boxes and a warning

    def test_figures_leave_nothing_open_in_pyplot(self):
        import matplotlib.pyplot as plt

        before = plt.get_fignums()  # whatever another test has left open
        image_grid([flat("#808080")]).png()
        assert plt.get_fignums() == before


SHOWN = """
%matplotlib inline
import matplotlib.pyplot as plt
from PIL import Image
from labkit.figures import image_grid
from labkit.figures.widgets import explore, picture, slider

def square(level):
    return image_grid([Image.new("RGB", (16, 16), (level, 0, 0))], alt=f"a square of {level}")

display(square(1))
display(picture(square(2)))
display(explore(square, {"level": slider("level", 0, 255, 3)}))
display(explore(square, {"level": slider("level", 0, 255, 4)}, interactive=False))
square(200)
"""
LIVE = """
handle = display({"text/plain": "waiting"}, raw=True, display_id=True)
for level in (5, 6, 7):
    handle.update(picture(square(level)))
"""


def test_an_executed_notebook_holds_each_figure_once_with_its_description(tmp_path):
    import nbformat
    from nbclient import NotebookClient

    from labkit.authoring.run.report import thumbnail

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(code) for code in (SHOWN, LIVE)])
    NotebookClient(notebook, timeout=300, startup_timeout=300, kernel_name="python3").execute()
    outputs = [output.data for output in notebook.cells[0].outputs]
    pictures = [data for data in outputs if "iVBORw0KGgo" in str(data)]  # how every PNG begins in base64
    assert [str(data).count("iVBORw0KGgo") for data in pictures] == [1] * 5
    assert [data["text/plain"] for data in pictures][::4] == ["a square of 1", "a square of 200"]
    assert all(f'alt="{data["text/plain"]}"' in data["text/html"] for data in pictures)
    assert len(outputs) == 6  # and the controls of one widget
    [live] = notebook.cells[1].outputs  # a picture that is drawn again and again stays one output
    assert live.data["text/plain"] == "a square of 7" and str(live.data).count("iVBORw0KGgo") == 1

    nbformat.write(notebook, tmp_path / "shown.ipynb")
    small = Image.open(io.BytesIO(base64.b64decode(thumbnail(tmp_path / "shown.ipynb").split(",")[1])))
    assert small.getpixel((small.width // 2, small.height // 2)) == (1, 0, 0)  # the first of them


def test_names_of_points_touch_neither_each_other_nor_other_points():
    points = {f"noise {k}": xy for k, xy in enumerate([(0.5, 0.5), (0.52, 0.5), (0.54, 0.51), (0.0, 0.0), (1.0, 1.0)])}
    figure = new_figure(6.0, 4.0, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(*np.array(list(points.values())).T)
    axes.margins(0.1)
    label_points(axes, points)
    boxes = {text.get_text(): text.get_window_extent() for text in axes.texts}
    assert set(boxes) == set(points)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes.values(), 2))
    frame = axes.get_window_extent()
    for name, box in boxes.items():
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0 and box.y1 <= frame.y1
        others = [axes.transData.transform(xy) for other, xy in points.items() if other != name]
        assert not any(box.contains(*xy) for xy in others)


def test_a_name_without_a_free_place_is_shown_all_the_same():
    figure = new_figure(1.2, 1.2, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter([0, 0], [0, 0])
    label_points(axes, {"a very long name of a point": (0, 0), "and one more that is as long": (0, 0)})
    assert len(axes.texts) == 2
