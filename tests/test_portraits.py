"""The world: what a spec says is what the picture shows and the caption names."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from labkit.portraits import (
    ATTRIBUTES,
    HELD_OUT_COMBINATIONS,
    TEMPLATES,
    PortraitSpec,
    allowed_values,
    build_dataset,
    caption,
    contains,
    describe,
    differences,
    load_dataset,
    random_caption,
    render,
    render_array,
    render_tensor,
    sample_specs,
)
from labkit.portraits.dataset import write_atomically

STYLES = ATTRIBUTES["style"]
FROZEN = "3bfa7856afb687fbe77a7c9ccb626a3a8a26398287fe236296229ffc5cae2c2e"


def base(style: str) -> PortraitSpec:
    return PortraitSpec(style=style, mood="calm")


@pytest.mark.parametrize("style", STYLES)
def test_every_value_a_style_claims_is_visible(style):
    for attribute in list(ATTRIBUTES)[1:]:
        values = [v for v in allowed_values(style, attribute) if not (attribute == "hair_color" and v == "none")]
        images = [render_array(base(style).with_(**{attribute: v})).astype(int) for v in values]
        for i, first in enumerate(images):
            for j in range(i):
                changed = (np.abs(first - images[j]).max(-1) > 24).sum()
                assert changed >= 8, f"{style}: {attribute} {values[i]} and {values[j]} differ in {changed} pixels"


def test_rendering_is_deterministic_and_has_the_asked_size():
    spec = PortraitSpec(style="toon-head", hair_style="spiky")
    assert np.array_equal(render_array(spec), render_array(spec))
    assert render(spec, 128).size == (128, 128)
    tensor = render_tensor([spec, base("micah")])
    assert tensor.shape == (2, 3, 64, 64)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    for size in (0, -8, 60):
        with pytest.raises(ValueError, match="multiple of 8"):
            render(spec, size)


def test_the_art_has_not_changed():
    digest = hashlib.sha256(b"".join(render_array(base(style)).tobytes() for style in STYLES)).hexdigest()
    assert digest == FROZEN, (
        "the drawings changed: pin dicebear-core, dicebear-styles and resvg-py, or retrain everything"
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mood": "angry"}, "unknown mood 'angry'"),
        ({"style": "toon-head", "glasses": "glasses"}, "toon-head cannot draw glasses 'glasses'"),
        ({"hair_style": "bald"}, "contradicts"),
        ({"hair_color": "none"}, "contradicts"),
    ],
)
def test_impossible_specs_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        PortraitSpec(**values)


def test_shaving_and_growing_hair_keeps_the_colour_consistent():
    bald = PortraitSpec(hair_color="red").with_(hair_style="bald")
    assert bald.hair_color == "none"
    assert bald.with_(hair_style="bob").hair_color == "brown"


def test_a_longer_sample_starts_with_the_shorter_one_and_the_seed_matters():
    assert sample_specs(20, seed=4)[:7] == sample_specs(7, seed=4)
    assert sample_specs(20, seed=4) != sample_specs(20, seed=5)


def test_marginals_correlations_exclusions_and_rare_shares_hold():
    specs = sample_specs(600, seed=0, marginals={"mood": {"happy": 9.0}})
    assert 0.68 < np.mean([s.mood == "happy" for s in specs]) < 0.82  # 9 / 12
    given = [({"style": "personas"}, {"background": {"lemon": 1e6}})]
    specs = sample_specs(200, seed=0, given=given)
    assert all(s.background == "lemon" for s in specs if s.style == "personas")
    assert any(s.background != "lemon" for s in specs if s.style != "personas")
    specs = sample_specs(400, seed=0, exclude=HELD_OUT_COMBINATIONS)
    assert not any(contains(s, c) for s in specs for c in HELD_OUT_COMBINATIONS)
    rare = {"hair_color": "pink", "beard": "beard"}
    share = np.mean([contains(s, rare) for s in sample_specs(600, seed=0, rare=[(rare, 0.1)])])
    assert 0.06 < share < 0.14
    first = sample_specs(30, seed=1)
    assert not set(first) & set(sample_specs(30, seed=1, avoid=first))


def test_impossible_conditions_and_unknown_names_are_errors():
    with pytest.raises(ValueError, match="relax"):
        sample_specs(1, seed=0, styles=("toon-head",), rare=[({"glasses": "sunglasses"}, 1.0)])
    with pytest.raises(ValueError, match="unknown mood"):
        sample_specs(1, seed=0, marginals={"mood": {"grumpy": 1}})
    with pytest.raises(ValueError, match="shares"):
        sample_specs(1, seed=0, rare=[({"mood": "sad"}, 1.5)])


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_a_caption_says_what_it_names_and_only_that(lang):
    spec = PortraitSpec(glasses="glasses", beard="moustache")
    for template in range(TEMPLATES[lang]):
        full = caption(spec, lang, template=template)
        assert full.named == set(ATTRIBUTES)
        for attribute in ATTRIBUTES:
            open_ = caption(spec, lang, drop=[attribute], template=template)
            assert open_.named == set(ATTRIBUTES) - {attribute}
            for value in allowed_values(spec.style, attribute):
                if attribute == "style" or (attribute == "hair_color" and value == "none") or value == "bald":
                    continue
                other = spec.with_(**{attribute: value})
                assert caption(other, lang, drop=[attribute], template=template).text == open_.text
                assert (caption(other, lang, template=template).text == full.text) == (other == spec)


def test_a_bald_head_has_no_hair_colour_to_name():
    assert caption(PortraitSpec().with_(hair_style="bald")).named == set(ATTRIBUTES) - {"hair_color"}


def test_random_captions_leave_attributes_open():
    rng = np.random.default_rng(0)
    sizes = [len(random_caption(PortraitSpec(), rng).named) for _ in range(300)]
    assert min(sizes) <= 1
    assert max(sizes) == len(ATTRIBUTES)
    assert 0.4 < np.mean(sizes) / len(ATTRIBUTES) < 0.75


def test_wrong_caption_arguments_are_errors():
    with pytest.raises(ValueError, match="unknown attribute 'hat'"):
        caption(PortraitSpec(), drop=["hat"])
    with pytest.raises(ValueError, match="unknown language"):
        caption(PortraitSpec(), "fr")
    with pytest.raises(ValueError, match="template 9"):
        describe({"mood": "sad"}, template=9)


@pytest.mark.parametrize("lang", ["en", "ja"])
def test_differences_name_each_changed_attribute_once(lang):
    a = PortraitSpec()
    assert differences(a, a, lang) == []
    assert len(differences(a, a.with_(mood="sad", clothes="red"), lang)) == 2


def test_a_data_set_resumes_and_refuses_a_foreign_folder(tmp_path: Path):
    specs = sample_specs(6, seed=0)
    folder = build_dataset(tmp_path / "set", specs, processes=1, progress=False)
    images, loaded = load_dataset(folder)
    assert loaded == specs
    assert np.array_equal(images[3], render_array(specs[3]))
    next(folder.glob("*.parquet")).unlink()  # as if killed before the shard was written
    assert load_dataset(build_dataset(folder, specs, processes=1, progress=False))[1] == specs
    with pytest.raises(FileExistsError, match="another data set"):
        build_dataset(folder, sample_specs(6, seed=1), processes=1, progress=False)
    with pytest.raises(FileNotFoundError, match="no portrait shards"):
        load_dataset(tmp_path / "nothing")


def test_a_full_disk_leaves_the_old_file(tmp_path: Path):
    path = tmp_path / "file"
    path.write_text("old")

    def fail(temporary: Path) -> None:
        temporary.write_text("half")
        raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
