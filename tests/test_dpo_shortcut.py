"""Winners found by texture alone."""

from __future__ import annotations

import pytest
import torch

from labkit.dpo import told_apart
from labkit.dpo.data import PreferencePairs
from labkit.dpo.shortcut import texture


def pairs(n: int, rougher: float, shift: float = 0.0, seed: int = 0) -> PreferencePairs:
    """Winners with more noise, or brighter, than losers whose content is another one."""
    g = torch.Generator().manual_seed(seed)
    content = torch.randn(2, n, 3, 1, 1, generator=g).expand(2, n, 3, 8, 8)
    noise = 0.1 * torch.randn(2, n, 3, 8, 8, generator=g)
    winner, loser = content[0] + (1 + rougher) * noise[0] + shift, content[1] + noise[1]
    return PreferencePairs([f"prompt {i}" for i in range(n)], winner.contiguous(), loser.contiguous())


def test_texture_by_hand():
    x = torch.tensor([[[[0.0, 2.0], [1.0, 5.0]]]])  # mean 2, steps right 2 and 4, below 1 and 3
    mean, spread, right, below = texture(x)[0].tolist()
    assert (mean, right, below) == (2.0, 3.0, 2.0)
    assert spread == pytest.approx((14 / 3) ** 0.5)  # 4 + 0 + 1 + 9, divided by 3


def test_texture_keeps_channels_apart():
    x = torch.zeros(2, 3, 4, 4)
    x[1, 2] = 7.0
    assert texture(x)[1].tolist() == [0, 0, 7.0] + [0] * 9


def test_rougher_winners_are_found_and_equal_ones_are_not():
    assert told_apart(pairs(60, 1.0))[0] == 1.0
    shares = [told_apart(pairs(60, 0.0, seed=seed))[0] for seed in range(10)]
    assert 0.4 < sum(shares) / 10 < 0.6


def test_a_rule_does_not_know_the_pair_that_it_judges():
    """With as many numbers as pairs a rule that had seen its pair would find every winner of pure chance."""
    assert told_apart(pairs(14, 0.0, seed=3), ridge=1e-6)[0] < 0.9


def test_the_rule_left_out_is_the_one_fitted_without_the_pair():
    some = pairs(12, 0.1, seed=5)
    gap = texture(some.winner) - texture(some.loser)
    gap, right = gap / gap.std(0), 0
    for i in range(12):
        known = torch.cat([gap[:i], gap[i + 1 :]])
        right += float(gap[i] @ torch.linalg.solve(known.T @ known + 10 * torch.eye(12).double(), known.sum(0))) > 0
    share, margin = told_apart(some)
    assert share == pytest.approx(right / 12)
    assert margin == pytest.approx(1.96 * (share * (1 - share) / 12) ** 0.5)


def test_two_pairs_are_refused():
    with pytest.raises(ValueError, match="2 pairs, expected at least 3"):
        told_apart(pairs(2, 1.0))
