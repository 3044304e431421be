"""The second round of lesson 06: captions as careless as those that made the base."""

import numpy as np

from labkit.portraits.parse import parse_caption
from labkit.studies import l06
from labkit.studies.l06_controls import MISLABELLED, careless
from labkit.training.parts import MISLABELLED as OF_THE_BASE


def test_careless_captions_name_the_same_attributes_and_are_as_often_wrong_as_those_of_the_base():
    said, wrong = careless(200, 3), []
    assert MISLABELLED == OF_THE_BASE
    assert set(said) == set(l06.half_named(200, 10_003)[1])
    for text, other in said.items():
        right, told = parse_caption(text), parse_caption(other)
        assert right.get("style") == told.get("style")
        # a head that becomes bald has no colour of hair to name
        assert set(right) - {"hair_color", "hair_style"} == set(told) - {"hair_color", "hair_style"}
        wrong += [told[name] != value for name, value in right.items() if name in ("mood", "clothes", "background")]
    assert len(wrong) > 200
    assert abs(np.mean(wrong) - MISLABELLED) < 4 * (MISLABELLED * (1 - MISLABELLED) / len(wrong)) ** 0.5


def test_the_same_seed_gives_the_same_careless_captions_and_another_seed_others():
    assert careless(8, 0) == careless(8, 0)
    assert set(careless(8, 0)) != set(careless(8, 1))
