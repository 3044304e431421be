"""Vendi score and CLIPScore: closed forms, ranges, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import clip_score, vendi_score


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_vendi_score_counts_different_samples():
    assert vendi_score(torch.ones(9, 4)) == pytest.approx(1)
    for order in (0.1, 1.0, 2.0, math.inf):
        assert vendi_score(torch.eye(6), order=order) == pytest.approx(6)
        assert vendi_score(torch.eye(6).repeat(3, 1), order=order) == pytest.approx(6)  # copies add nothing
    uneven = torch.cat([torch.eye(3), torch.eye(3)[:1].repeat(20, 1)])
    scores = [vendi_score(uneven, order=order) for order in (0.1, 1.0, 2.0, math.inf)]
    assert scores == sorted(scores, reverse=True)
    assert scores[-1] == pytest.approx(23 / 21)
    p = torch.tensor([21, 1, 1]) / 23
    assert scores[1] == pytest.approx(math.exp(-float((p * p.log()).sum())), rel=1e-6)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), n=st.integers(2, 20), d=st.integers(1, 20))
def test_vendi_score_range_and_both_gram_sides_agree(seed, n, d):
    x = normal(n, d, seed)
    score = vendi_score(x)
    assert 1 - 1e-9 <= score <= min(n, d) + 1e-9
    padded = torch.cat([x, torch.zeros(n, 40)], dim=1)  # now n < d: the other Gram matrix
    assert vendi_score(padded) == pytest.approx(score, rel=1e-8)
    assert vendi_score(3 * x) == pytest.approx(score, rel=1e-9)


def test_clip_score_clamp_rules():
    image = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    side = math.sqrt(1 - 0.04)
    text = torch.tensor([[0.2, side], [-0.2, side]])
    assert clip_score(image_embeddings=image, text_embeddings=text).value == pytest.approx(25, rel=1e-6)
    other = clip_score(image_embeddings=image, text_embeddings=text, rule="torchmetrics")
    assert other.value == pytest.approx(0, abs=1e-5)
    assert other.cosines.tolist() == pytest.approx([0.2, -0.2], rel=1e-6)
    scaled = clip_score(image_embeddings=5 * image, text_embeddings=0.1 * text[:1].repeat(2, 1), rule="torchmetrics")
    assert scaled.value == pytest.approx(20, rel=1e-6)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: vendi_score(x * torch.nan), "NaN"),
        (lambda x: vendi_score(x[0]), "2-D"),
        (lambda x: vendi_score(x * 0), "all zeros"),
        (lambda x: vendi_score(x, normalise=False), "norm 1"),
        (lambda x: vendi_score(x, order=-1), "order must be"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x[:3]), "10 images but 3 texts"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x[:, :2]), "features"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x, rule="mine"), "unknown rule"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=0 * x), "all zeros"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(normal(10, 3))
    assert "\n" not in str(error.value)
