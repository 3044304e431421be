"""The arena's world: prompts, gold on three axes, votes and the proxies they teach."""

import numpy as np
import pytest
import torch

from labkit.models import load_clip, load_reader
from labkit.portraits import render_tensor, sample_specs
from labkit.portraits.parse import parse_caption
from labkit.survey import VoteSettings, VotingPool, gold_axes, open_prompts, saturation_of, train_proxy
from labkit.survey.leaderboard import enter_score, read_board
from labkit.survey.world import cast_votes, proxy_features


def test_prompts_are_distinct_and_leave_glasses_and_background_open():
    texts = open_prompts(20, 3)
    named = [parse_caption(text) for text in texts]
    assert len(set(texts)) == 20 and texts == open_prompts(20, 3) and texts != open_prompts(20, 4)
    assert all(len(said) >= 2 and not {"glasses", "background"} & set(said) for said in named)


def test_gold_reads_task_safety_and_taste_from_drawn_portraits():
    specs = [s for s in sample_specs(200, seed=1) if s.style == "avataaars"][:6]
    specs[0] = specs[0].with_(glasses="sunglasses", background="mint", mood="happy", clothes="red")
    specs[1] = specs[1].with_(glasses="none", background="lemon", mood="happy", clothes="red")
    text = ["a portrait of a happy person, wearing red clothes", "a portrait of a sad person, wearing blue clothes"]
    axes = gold_axes(load_reader(), render_tensor(specs[:2]), text)
    assert axes["task"] == pytest.approx([1, 0], abs=0.1)
    assert axes["safety"] == pytest.approx([0, 1], abs=0.1)
    assert axes["preference"] == pytest.approx([1, 0], abs=0.1)
    assert axes["gold"] == pytest.approx([2 / 3, 1 / 3], abs=0.1)


def test_saturation_is_the_gap_of_the_channels():
    images = torch.stack([torch.zeros(3, 4, 4), torch.tensor([1.0, -1.0, 0.0])[:, None, None].expand(3, 4, 4)])
    assert saturation_of(images).tolist() == [0.0, 1.0]


def pool(n=40, each=4):
    """Gold is the first feature, saturation the second; the others say nothing."""
    features = torch.randn(n, each, 6, generator=torch.Generator().manual_seed(0))
    return VotingPool(features, features[..., 0], features[..., 1])


def test_votes_follow_gold_and_turn_round_as_often_as_asked():
    def right(settings):
        first, second, outcome = cast_votes(pool(), settings, 0)
        gold = pool().gold.flatten()
        assert len(outcome) == settings.n and bool((first // 4 == second // 4).all()) and bool((first != second).all())
        return float(((gold[first] > gold[second]) == (outcome == 1)).float().mean())

    assert right(VoteSettings(n=4000, noise=1e-3)) > 0.99
    assert right(VoteSettings(n=4000, noise=1e-3, flips=0.25)) == pytest.approx(0.75, abs=0.03)
    assert right(VoteSettings(n=4000, noise=100.0)) == pytest.approx(0.5, abs=0.03)
    with pytest.raises(ValueError, match="flipped"):
        cast_votes(pool(), VoteSettings(flips=0.5), 0)


def correlation(head, column):
    x = torch.randn(500, 6, generator=torch.Generator().manual_seed(9))
    return float(torch.corrcoef(torch.stack([head(x)[:, 0], x[:, column]]))[0, 1])


def test_a_proxy_learns_gold_better_from_more_votes_and_the_planted_taste_if_there_is_one():
    def head(**options):
        return train_proxy(None, None, pool(), VoteSettings(**options), 1).head

    assert correlation(head(n=2000), 0) > 0.9 > correlation(head(n=15, noise=1.0), 0)
    assert abs(correlation(head(n=2000), 1)) < 0.2 and correlation(head(n=2000, bias=1.0), 1) > 0.5


def test_scores_of_a_proxy_have_unit_spread_on_the_pool_and_a_gradient_in_the_pixels():
    clip, inputs = load_clip("cpu")
    clip.requires_grad_(False)
    images = render_tensor(sample_specs(8, seed=2))
    texts = ["a portrait of a happy person"] * 8
    with torch.no_grad():
        features = proxy_features(clip, inputs, images, texts)
    one = VotingPool(features.view(2, 4, -1), torch.rand(2, 4), torch.rand(2, 4))
    proxy = train_proxy(clip, inputs, one, VoteSettings(n=50), 0, steps=20)
    scores = proxy(images.requires_grad_(), texts)
    assert float(scores.detach().mean()) == pytest.approx(0, abs=1e-3)
    assert float(scores.detach().std()) == pytest.approx(1, abs=1e-3)
    assert bool((torch.autograd.grad(scores.sum(), images)[0].flatten(1).abs().sum(1) > 0).all())
    assert np.isfinite(scores.detach().numpy()).all()


def test_a_leaderboard_keeps_every_try_best_first_and_survives_a_damaged_line(tmp_path):
    path = tmp_path / "arena.jsonl"
    assert read_board(path) == []
    enter_score(path, "raft", 0.61, nfe=3000)
    path.write_text(path.read_text("utf-8") + "{broken\n", encoding="utf-8")
    board = enter_score(path, "draft", 0.7, nfe=2000)
    assert [(row["name"], row["gold"], row["nfe"]) for row in board] == [("draft", 0.7, 2000), ("raft", 0.61, 3000)]
