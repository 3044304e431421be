"""Exercises of lesson 05."""

import math

import torch

from labkit.course.checks import exercise
from labkit.dpo.equations import dpo_loss, kappa_of


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
    trained = winner.clone().requires_grad_()
    c.has_gradient(c.call(fn, winner=trained, loser=loser, **reference, kappa=3.0), trained)


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
