"""The two-dimensional toy: the data it draws, the pairs it makes, the run it repeats."""

import copy
import math

import pytest
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


def test_two_steps_are_those_computed_by_hand():
    base = Denoiser(generator())
    winner, loser = ring(40, generator(1)), ring(40, generator(2)) + 0.3
    found = train_toy(base, winner, loser, [dpo(20.0), sft(2.0)], seed=3, steps=2, batch=16, lr=1e-2, samples=8)
    draw, model = generator(3), copy.deepcopy(base).requires_grad_(True)
    first, second = ([torch.zeros_like(p) for p in model.parameters()] for _ in range(2))
    for step in (1, 2):
        rows = torch.randint(40, (16,), generator=draw)
        t = torch.randint(100, (16,), generator=draw)
        noise = torch.randn(16, 2, generator=draw)
        abar = ALPHAS[t][:, None]
        e = {}
        for name, x in (("w", winner), ("l", loser)):
            x_t = abar.sqrt() * x[rows] + (1 - abar).sqrt() * noise
            e[name], e["ref_" + name] = (((net(x_t, t) - noise) ** 2).mean(1) for net in (model, base))
        difference = (e["w"] - e["ref_w"].detach()) - (e["l"] - e["ref_l"].detach())
        loss = torch.log1p(torch.exp(20 * difference)) + 2 * e["w"]
        gradients = torch.autograd.grad(loss.mean(), list(model.parameters()))
        for i, (p, g) in enumerate(zip(model.parameters(), gradients, strict=True)):
            first[i], second[i] = 0.9 * first[i] + 0.1 * g, 0.999 * second[i] + 0.001 * g**2
            p.data -= 1e-2 * (first[i] / (1 - 0.9**step)) / ((second[i] / (1 - 0.999**step)).sqrt() + 1e-8)
        assert found.log[step - 1]["loss"] == pytest.approx(float(loss.detach().mean()), rel=1e-5)
        assert found.log[step - 1]["d_w"] == pytest.approx(float((e["w"] - e["ref_w"]).detach().mean()), abs=1e-6)
    for mine, theirs in zip(model.parameters(), found.model.parameters(), strict=True):
        torch.testing.assert_close(theirs, mine, rtol=0, atol=1e-4)


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
