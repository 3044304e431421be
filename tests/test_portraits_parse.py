"""Reading a caption back gives exactly what it names."""

import numpy as np
import pytest

from labkit.portraits import ATTRIBUTES, TEMPLATES, caption, describe, random_caption, sample_specs
from labkit.portraits.attributes import HELD_OUT_STYLES, TRAINING_STYLES
from labkit.portraits.parse import open_attributes, parse_caption, unknown_words


@pytest.mark.parametrize("template", range(TEMPLATES["en"]))
def test_parsing_inverts_every_paraphrase(template):
    rng = np.random.default_rng(template)
    for spec in sample_specs(400, seed=template, styles=TRAINING_STYLES + HELD_OUT_STYLES):
        drop = [a for a in ATTRIBUTES if rng.random() < rng.random()]
        said = caption(spec, drop=drop, template=template)
        assert parse_caption(said.text) == {a: v for a, v in spec.items() if a in said.named}, said.text


@pytest.mark.parametrize("template", range(TEMPLATES["en"]))
def test_every_single_value_is_read_from_a_caption_that_names_it_alone(template):
    for attribute, values in ATTRIBUTES.items():
        for value in values:
            said = describe({attribute: value}, template=template)
            assert parse_caption(said.text) == ({attribute: value} if said.named else {})


def test_what_a_caption_does_not_name_is_open_but_a_bald_head_closes_the_hair_colour():
    assert open_attributes("a portrait of a person") == frozenset(ATTRIBUTES)
    assert open_attributes("a happy person with glasses") == frozenset(ATTRIBUTES) - {"mood", "glasses"}
    assert open_attributes("a person with a bald head") == frozenset(ATTRIBUTES) - {"hair_style", "hair_color"}


def test_words_of_no_caption_are_unknown_and_those_of_every_caption_are_known():
    rng = np.random.default_rng(3)
    for spec in sample_specs(40, seed=5):
        assert unknown_words(random_caption(spec, rng).text) == []
    assert unknown_words("A cat") == ["cat"]
    assert unknown_words("a hand-drawn portrait of a person, outlined style") == ["hand-drawn", "outlined"]
    assert unknown_words("two happy cats, cats with Red hair in 4k") == ["two", "cats", "4k"]
    assert unknown_words("赤い髪の人") == ["赤い髪の人"] and unknown_words("  ") == []
