"""The two-dimensional toy: the data it draws, the pairs it makes, the run it repeats."""

import math

import torch

from labkit.dpo import dpo, sft
from labkit.dpo.toy import train_toy
from labkit.worlds.toy import ALPHAS, Denoiser, make_pairs, off_ring, pretrain, reward, ring, sample_points


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_data_lie_on_the_ring_and_noise_does_not():
    points = ring(4000, generator())
    assert off_ring(points).float().mean() < 1e-3
    assert off_ring(torch.zeros(1, 2)).all() and off_ring(2 * points).all()
    angles = torch.atan2(points[:, 1], points[:, 0]) / (2 * math.pi / 8)
    assert (angles - angles.round()).abs().max() < 0.5 and len(angles.round().remainder(8).unique()) == 8


def test_the_schedule_ends_in_noise():
    assert ALPHAS[0] > 0.99 and ALPHAS[-1] < 0.01


def test_the_winner_is_never_worse_than_the_loser():
    winner, loser = make_pairs(Denoiser(generator()), 50, 4, generator(1))
    assert (reward(winner) > reward(loser)).all()


def test_pretraining_finds_the_ring():
    model = pretrain(0, 300)
    assert off_ring(sample_points(model, 500, generator())).float().mean() < 0.6
    untrained = off_ring(sample_points(Denoiser(generator()), 500, generator())).float().mean()
    assert untrained > 0.6


def test_a_run_is_repeated_by_its_seed_and_leaves_the_base_alone():
    base = Denoiser(generator())
    before = [p.clone() for p in base.parameters()]
    winner, loser = make_pairs(base, 50, 4, generator(1))
    runs = [train_toy(base, winner, loser, [dpo(10.0)], seed=3, steps=4, samples=20) for _ in range(2)]
    assert torch.equal(runs[0].points, runs[1].points) and runs[0].log == runs[1].log
    assert all(torch.equal(a, b) for a, b in zip(before, base.parameters(), strict=True))
    assert runs[0].log[0]["d_w"] == runs[0].log[0]["d_l"] == 0.0  # the first step starts at the reference


def test_a_function_may_stand_for_the_terms_and_sft_lowers_the_winners_error():
    base = pretrain(0, 50)
    winner, loser = make_pairs(base, 100, 4, generator(1))
    named = train_toy(base, winner, loser, [sft(1.0)], seed=0, steps=60, lr=1e-3, samples=20)
    function = train_toy(base, winner, loser, lambda p: p.winner_error, seed=0, steps=60, lr=1e-3, samples=20)
    assert torch.equal(named.points, function.points)
    assert named.log[-1]["d_w"] < 0
