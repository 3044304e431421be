"""Exercises of lesson 05."""

import math

import numpy as np
import torch

from labkit.course.checks import exercise
from labkit.dpo.equations import dpo_loss, implicit_accuracy, kappa_of, sdpo_scale
from labkit.dpo.preference import aligned_density


@exercise("l05.aligned_density", reference=aligned_density)
def check_aligned_density(c, fn):
    c.callable(fn)
    p_ref, reward = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.0, 1.0, 2.0])
    got = c.call(fn, p_ref, reward, 1.0)
    c.tensor(got, shape=(3,), dtype=torch.float32)
    raised = p_ref * reward.exp()
    c.mistake("l05.not_normalised", got=got, looks_like=raised)
    c.mistake("l05.no_prior", got=got, looks_like=torch.softmax(reward, 0))
    c.hand(got, raised / raised.sum())
    half = c.call(fn, p_ref, reward, 0.5)
    c.mistake("l05.times_beta", got=half, looks_like=torch.softmax(p_ref.log() + 0.5 * reward, 0))
    c.close(half, torch.softmax(p_ref.log() + 2 * reward, 0))
    sharp = fn(p_ref, reward, 0.01)  # exp(200) does not fit into float32: the mistake
    c.mistake("l05.overflow", when=not bool(torch.isfinite(sharp).all()))
    c.close(sharp, torch.tensor([0.0, 0.0, 1.0]))


@check_aligned_density.wrong("l05.not_normalised")
def _(p_ref, reward, beta):
    return p_ref * (reward / beta).exp()


@check_aligned_density.wrong("l05.no_prior")
def _(p_ref, reward, beta):
    return torch.softmax(reward / beta, 0)


@check_aligned_density.wrong("l05.times_beta")
def _(p_ref, reward, beta):
    return torch.softmax(p_ref.log() + reward * beta, 0)


@check_aligned_density.wrong("l05.overflow")
def _(p_ref, reward, beta):
    raised = p_ref * (reward / beta).exp()
    return raised / raised.sum()


@exercise("l05.dpo_loss", reference=dpo_loss)
def check_dpo_loss(c, fn):
    c.callable(fn)
    winner, loser, ref_winner, ref_loser = (c.rand(6) for _ in range(4))
    reference = {"ref_winner": ref_winner, "ref_loser": ref_loser}
    got = c.call(fn, winner=winner, loser=loser, **reference, kappa=3.0)
    c.tensor(got, shape=(6,), dtype=torch.float32)
    difference = ((winner - ref_winner) - (loser - ref_loser)).double()
    c.mistake("l05.sign", got=got.double(), looks_like=torch.log1p(torch.exp(-3.0 * difference)))
    c.mistake("l05.no_reference", got=got.double(), looks_like=torch.log1p(torch.exp(3.0 * (winner - loser).double())))
    start = c.call(fn, winner=winner, loser=loser, ref_winner=winner, ref_loser=loser, kappa=3.0)
    c.hand(start, torch.full((6,), math.log(2.0)))
    c.close(got, torch.log1p(torch.exp(3.0 * difference)).float())
    one, zero = torch.ones(1), torch.zeros(1)
    worst = fn(winner=one, loser=zero, ref_winner=zero, ref_loser=zero, kappa=200.0)  # may be infinite: the mistake
    c.mistake("l05.unstable", when=not bool(torch.isfinite(worst).all()))
    c.close(worst, torch.tensor([200.0]))
    far = torch.ones(1, requires_grad=True)
    slope = c.gradient(fn(winner=far, loser=zero, ref_winner=zero, ref_loser=zero, kappa=200.0), far)
    c.mistake("l05.unstable", when=slope is not None and not bool(torch.isfinite(slope).all()))
    trained, other = winner.clone().requires_grad_(), loser.clone().requires_grad_()
    c.has_gradient(c.call(fn, winner=trained, loser=loser, **reference, kappa=3.0), trained)
    c.has_gradient(c.call(fn, winner=winner, loser=other, **reference, kappa=3.0), other)


@check_dpo_loss.wrong("l05.sign")
def _(*, winner, loser, ref_winner, ref_loser, kappa):
    return -torch.nn.functional.logsigmoid(kappa * ((winner - ref_winner) - (loser - ref_loser)))


@check_dpo_loss.wrong("l05.no_reference")
def _(*, winner, loser, ref_winner, ref_loser, kappa):
    return -torch.nn.functional.logsigmoid(-kappa * (winner - loser))


@check_dpo_loss.wrong("l05.unstable")
def _(*, winner, loser, ref_winner, ref_loser, kappa):
    return -torch.log(torch.sigmoid(-kappa * ((winner - ref_winner) - (loser - ref_loser))))


@check_dpo_loss.wrong("check.no_gradient")
def _(*, winner, loser, ref_winner, ref_loser, kappa):
    return -torch.nn.functional.logsigmoid(-kappa * ((winner - ref_winner) - (loser - ref_loser))).detach()


@exercise("l05.kappa_of", reference=kappa_of)
def check_kappa_of(c, fn):
    c.callable(fn)
    c.number(c.call(fn, 2500, False, False, 512))
    c.hand(float(c.call(fn, 2500, False, False, 512)), 2500.0)
    halved = float(c.call(fn, 5000, False, True, 512))
    c.mistake("l05.no_half", got=halved, looks_like=5000.0)
    c.hand(halved, 2500.0)
    summed = float(c.call(fn, 2, True, False, 512))
    c.mistake("l05.divided", got=summed, looks_like=2 / 512)
    c.hand(summed, 1024.0)
    c.close(float(c.call(fn, 3, True, True, 100)), 150.0)


@check_kappa_of.wrong("l05.no_half")
def _(beta, summed, half, elements):
    return beta * elements if summed else beta


@check_kappa_of.wrong("l05.divided")
def _(beta, summed, half, elements):
    return (beta / elements if summed else beta) * (0.5 if half else 1.0)


def choose_pairs(scores):
    """Best against worst of every prompt; a prompt whose images all tie is no pair."""
    best, worst = scores.max(1), scores.min(1)
    return best.indices, worst.indices, best.values > worst.values


@exercise("l05.choose_pairs", reference=choose_pairs)
def check_choose_pairs(c, fn):
    c.callable(fn)
    scores = torch.tensor([[0.1, 0.9, 0.5], [0.3, 0.3, 0.3], [0.8, 0.2, 0.4]])
    got = c.call(fn, scores)
    c.length(got, 3)
    best, worst, keep = got
    c.shape(best, (3,))
    c.shape(worst, (3,))
    c.shape(keep, (3,))
    rows = torch.tensor([0, 2])  # the two prompts that are no ties
    c.mistake("l05.same_side", when=c.is_close(best[rows], worst[rows]))
    c.mistake("l05.swapped", when=c.is_close(best[rows], torch.tensor([0, 1])))
    c.hand(best[rows], torch.tensor([1, 0]))
    c.hand(worst[rows], torch.tensor([0, 1]))
    c.mistake("l05.ties_kept", when=bool(keep[1]))
    c.equal(keep, torch.tensor([True, False, True]))
    c.equal(c.call(fn, torch.tensor([[0.9, 0.9, 0.1], [0.5, 0.9, 0.5]]))[2], torch.tensor([True, True]))  # no ties
    more = c.rand(20, 5)
    best, worst, keep = c.call(fn, more)
    ordered = more.argsort(1)
    c.close(best, ordered[:, -1])
    c.close(worst, ordered[:, 0])
    c.require(bool(keep.all()), "check.value")


@check_choose_pairs.wrong("l05.same_side")
def _(scores):
    best = scores.max(1)
    return best.indices, best.indices, best.values > scores.min(1).values


@check_choose_pairs.wrong("l05.swapped")
def _(scores):
    best, worst = scores.max(1), scores.min(1)
    return worst.indices, best.indices, best.values > worst.values


@check_choose_pairs.wrong("l05.ties_kept")
def _(scores):
    best, worst = scores.max(1), scores.min(1)
    return best.indices, worst.indices, best.values >= worst.values


def safe_scale(g_w, g_l, mu):
    """lambda of SDPO for one pair per row: how much of the loser's gradient does not push the winner."""
    return sdpo_scale(winner_residual=g_w, loser_residual=g_l, mu=mu)


@exercise("l05.safe_scale", reference=safe_scale)
def check_safe_scale(c, fn):
    c.callable(fn)
    g_w = torch.tensor([[2.0, 0.0], [2.0, 0.0], [2.0, 0.0]])
    g_l = torch.tensor([[4.0, 3.0], [-4.0, 3.0], [0.5, 3.0]])
    got = c.call(fn, g_w, g_l, 0.5)
    c.tensor(got, shape=(3,), dtype=torch.float32)
    c.mistake("l05.no_clip", got=got, looks_like=torch.tensor([0.25, 1.0, 2.0]))
    c.mistake("l05.opposite", when=float(got[1]) <= 0)
    c.mistake("l05.wrong_square", got=got[:1], looks_like=torch.tensor([0.5 * 25 / 8]).clamp(max=1))
    c.hand(got, torch.tensor([0.25, 1.0, 1.0]))
    a = c.randn(5, 3) * torch.tensor([0.5, 1.0, 2.0, 3.0, 1.5])[:, None]  # rows of different length
    b = 1.5 * a + 0.3 * c.randn(5, 3)  # along the winner's: the clip is at 1, and most rows are below
    c.close(c.call(fn, a, b, 0.2), sdpo_scale(winner_residual=a, loser_residual=b, mu=0.2))


@check_safe_scale.wrong("l05.no_clip")
def _(g_w, g_l, mu):
    overlap = (g_w * g_l).sum(1)
    return torch.where(overlap > 0, (1 - mu) * g_w.square().sum(1) / overlap, torch.ones_like(overlap))


@check_safe_scale.wrong("l05.opposite")
def _(g_w, g_l, mu):
    return ((1 - mu) * g_w.square().sum(1) / (g_w * g_l).sum(1)).clamp(0, 1)


@check_safe_scale.wrong("l05.wrong_square")
def _(g_w, g_l, mu):
    overlap = (g_w * g_l).sum(1)
    scale = ((1 - mu) * g_l.square().sum(1) / overlap.clamp(min=1e-30)).clamp(0, 1)
    return torch.where(overlap > 0, scale, torch.ones_like(overlap))


def wins(after, before, margin):
    """Per prompt 1 for a win by more than the margin, 0.5 for a tie, 0 for a loss."""
    gap = after - before
    return np.where(np.abs(gap) <= margin, 0.5, (gap > 0).astype(float))


@exercise("l05.wins", reference=wins)
def check_wins(c, fn):
    c.callable(fn)
    after, before = np.array([0.9, 0.5, 0.2, 0.7]), np.array([0.5, 0.52, 0.4, 0.7])
    got = c.call(fn, after, before, 0.05)
    c.array(got, shape=(4,))
    c.mistake("l05.no_ties", got=got, looks_like=np.array([1.0, 0.0, 0.0, 0.0]))
    c.mistake("l05.swapped_models", got=got, looks_like=np.array([0.0, 0.5, 1.0, 0.5]))
    c.hand(got, np.array([1.0, 0.5, 0.0, 0.5]))
    c.hand(c.call(fn, np.array([0.75, 0.25]), np.array([0.5, 0.5]), 0.25), np.array([0.5, 0.5]))  # just within
    a, b = c.rand(30).numpy(), c.rand(30).numpy()
    c.close(np.asarray(c.call(fn, a, b, 0.1)) + np.asarray(c.call(fn, b, a, 0.1)), np.ones(30))


@check_wins.wrong("l05.no_ties")
def _(after, before, margin):
    return (after - before > margin).astype(float)


@check_wins.wrong("l05.swapped_models")
def _(after, before, margin):
    gap = before - after
    return np.where(np.abs(gap) <= margin, 0.5, (gap > 0).astype(float))


@exercise("l05.implicit_accuracy", reference=implicit_accuracy)
def check_implicit_accuracy(c, fn):
    c.callable(fn)
    s = torch.tensor([2.0, -0.5, 0.1, 7.0, -3.0, 0.0, 0.0, -0.2])
    got = c.call(fn, s)
    c.number(got, name="result")
    c.mistake("l05.ties_lost", got=got, looks_like=3 / 8)
    c.mistake("l05.ties_won", got=got, looks_like=5 / 8)
    c.mistake("l05.mean_sigmoid", got=got, looks_like=float(torch.sigmoid(s).mean()))
    c.hand(c.call(fn, torch.tensor([1.0, 3.0, -2.0, 0.0])), 0.625)
    c.close(got, 0.5)
    c.close(c.call(fn, torch.zeros(4)), 0.5, key="l05.ties_lost")


@check_implicit_accuracy.wrong("l05.ties_lost")
def _(s):
    return (s > 0).float().mean()


@check_implicit_accuracy.wrong("l05.ties_won")
def _(s):
    return (s >= 0).float().mean()


@check_implicit_accuracy.wrong("l05.mean_sigmoid")
def _(s):
    return torch.sigmoid(s).mean()


def paired_gain(after, before):
    """Mean gain, half its 95 % interval prompt by prompt, and the half width if the two had other prompts."""
    n, gap = len(after), after - before
    paired = 1.96 * (gap.var(ddof=1) / n) ** 0.5
    apart = 1.96 * (after.var(ddof=1) / n + before.var(ddof=1) / n) ** 0.5
    return float(gap.mean()), float(paired), float(apart)


@exercise("l05.paired_gain", reference=paired_gain)
def check_paired_gain(c, fn):
    c.callable(fn)
    before = c.rand(20, dtype=torch.float64).numpy()
    after = before + 0.1 + 0.2 * c.rand(20, dtype=torch.float64).numpy()
    got = c.call(fn, after.copy(), before.copy())
    c.length(got, 3)
    got = [c.number(one) for one in got]
    gap = after - before
    c.mistake("l05.gain_swapped", got=got[0], looks_like=-gap.mean())
    c.mistake("l05.no_root_n", got=got[1], looks_like=1.96 * np.std(gap, ddof=1))
    c.mistake("l05.same_widths", when=c.is_close(torch.tensor(got[1]), torch.tensor(got[2])))
    example = np.array([0.5, 0.7, 0.9]), np.array([0.25, 0.45, 0.65])
    c.hand([c.number(one) for one in c.call(fn, *example)], [0.25, 0.0, 1.96 * (2 * 0.04 / 3) ** 0.5])
    want = 1.96 * np.std(gap, ddof=1) / 20**0.5, 1.96 * ((np.var(after, ddof=1) + np.var(before, ddof=1)) / 20) ** 0.5
    c.close(got, [gap.mean(), *want])


@check_paired_gain.wrong("l05.gain_swapped")
def _(after, before):
    return paired_gain(before, after)


@check_paired_gain.wrong("l05.no_root_n")
def _(after, before):
    gap = after - before
    apart = 1.96 * (after.var(ddof=1) + before.var(ddof=1)) ** 0.5
    return float(gap.mean()), float(1.96 * gap.std(ddof=1)), float(apart)


@check_paired_gain.wrong("l05.same_widths")
def _(after, before):
    apart = 1.96 * ((after.var(ddof=1) + before.var(ddof=1)) / len(after)) ** 0.5
    return float((after - before).mean()), float(apart), float(apart)
