"""Inception Score, Vendi score, CLIPScore and MIND: closed forms, ranges, invariances."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import clip_score, inception_score, monge_distance, vendi_score


def normal(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_i1_i2_uniform_and_balanced_one_hot():
    assert inception_score(torch.zeros(20, 7), splits=2).mean == pytest.approx(1, abs=1e-12)
    one_hot = 1000.0 * torch.eye(5).repeat(4, 1)
    assert inception_score(one_hot, splits=4).mean == pytest.approx(5, abs=1e-9)


@settings(max_examples=15)
@given(seed=st.integers(0, 999), scale=st.sampled_from([0.1, 3.0, 1e4]), splits=st.integers(1, 4))
def test_inception_score_range_and_invariances(seed, scale, splits):
    logits = scale * normal(24, 6, seed)
    score = inception_score(logits, splits=splits)
    assert 1 - 1e-9 <= score.mean <= 6 + 1e-9
    shift = 50 * normal(24, 1, seed + 1)
    assert inception_score(logits + shift, splits=splits).mean == pytest.approx(score.mean, rel=1e-9)
    order = torch.randperm(24, generator=torch.Generator().manual_seed(seed))
    assert inception_score(logits[order], splits=1).mean == pytest.approx(
        inception_score(logits, splits=1).mean, rel=1e-9
    )


def test_inception_score_splits_shuffle_and_spread():
    logits = 4 * normal(100, 5)
    scores = [inception_score(logits, splits=s, generator=torch.Generator().manual_seed(0)) for s in (1, 10, 50)]
    assert scores[0].mean > scores[1].mean > scores[2].mean  # more splits read lower
    assert scores[0].std is None
    assert scores[1].std == pytest.approx(float(torch.tensor(scores[1].per_split, dtype=torch.float64).std()))
    ordered = 1000.0 * torch.eye(5).repeat_interleave(20, dim=0)  # class-ordered samples must be shuffled
    assert inception_score(ordered, splits=5).mean == pytest.approx(1)
    assert inception_score(ordered, splits=5, generator=torch.Generator().manual_seed(0)).mean > 3
    assert len(inception_score(logits[:11], splits=3).per_split) == 3
    with pytest.raises(ValueError, match="splits = 11"):
        inception_score(normal(10, 3), splits=11)


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


def test_m1_monge_distance_of_a_shift():
    x, mu = normal(200, 32), torch.full((32,), 2 / 32**0.5, dtype=torch.float64)  # |mu|^2 = 4
    values = [
        monge_distance(real=x, fake=x + mu, generator=torch.Generator().manual_seed(s), directions=500)
        for s in range(4)
    ]
    assert sum(values) / 4 == pytest.approx(12, rel=0.08)
    assert monge_distance(real=x, fake=x, generator=torch.Generator().manual_seed(0)) == 0
    first = monge_distance(real=x, fake=x[:50] + mu, generator=torch.Generator().manual_seed(0))
    assert first == monge_distance(real=x, fake=x[:50] + mu, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: inception_score(x * torch.nan), "NaN"),
        (lambda x: inception_score(x[0]), "2-D"),
        (lambda x: vendi_score(x * 0), "all zeros"),
        (lambda x: vendi_score(x, normalise=False), "norm 1"),
        (lambda x: vendi_score(x, order=-1), "order must be"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x[:3]), "10 images but 3 texts"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x[:, :2]), "features"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=x, rule="mine"), "unknown rule"),
        (lambda x: clip_score(image_embeddings=x, text_embeddings=0 * x), "all zeros"),
        (lambda x: monge_distance(real=x, fake=x, generator=torch.Generator(), directions=0), "directions"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(normal(10, 3))
    assert "\n" not in str(error.value)
