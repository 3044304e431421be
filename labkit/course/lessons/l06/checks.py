"""Exercises of lesson 06."""

import math

import numpy as np
import torch

from labkit.course.checks import exercise
from labkit.dpo.equations import statistics_loss
from labkit.dpo.pool import best_and_worst, expected_range
from labkit.metrics import holm


@exercise("l06.expected_range", reference=expected_range)
def check_expected_range(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, 8))
    c.mistake("l06.one_end", when=abs(got - expected_range(8) / 2) < 0.01)
    c.mistake("l06.no_step", when=got > 20)
    c.mistake("l06.one_less", when=abs(got - expected_range(7)) < 0.01)
    c.hand(c.call(fn, 2), 2 / math.pi**0.5, rtol=1e-2)
    c.close(got, 2.8472, rtol=1e-2)
    c.close(c.call(fn, 20), 3.7350, rtol=1e-2)
    c.require(abs(c.number(c.call(fn, 1))) < 1e-2, "l06.alone")


def _covered(n):
    x = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    below = torch.special.ndtr(x)
    return x, below, 1 - below**n - (1 - below) ** n


@check_expected_range.wrong("l06.one_end")
def _(n):
    return expected_range(n) / 2


@check_expected_range.wrong("l06.no_step")
def _(n):
    return float(_covered(n)[2].sum())


@check_expected_range.wrong("l06.one_less")
def _(n):
    return expected_range(n - 1)


@check_expected_range.wrong("l06.alone")
def _(n):
    return max(expected_range(n), expected_range(2))


def cohen_kappa(first, second):
    """kappa = (p_o - p_e) / (1 - p_e) (Cohen 1960); 1 where both raters only ever give one and the same label."""
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum((first.count(v) / n) * (second.count(v) / n) for v in set(first) | set(second))
    return 1.0 if chance == 1 else (observed - chance) / (1 - chance)


@exercise("l06.cohen_kappa", reference=cohen_kappa)
def check_cohen_kappa(c, fn):
    c.callable(fn)
    first = ["left", "left", "right", "right", "tie", "left", "right", "left", "left", "right"]
    second = ["left", "right", "right", "right", "left", "left", "right", "left", "tie", "left"]
    got = c.number(c.call(fn, first, second), hi=1.0)
    observed, chance = 0.6, 0.5 * 0.5 + 0.4 * 0.4 + 0.1 * 0.1
    c.mistake("l06.raw_agreement", got=got, looks_like=observed)
    c.mistake("l06.uniform_chance", got=got, looks_like=(observed - 1 / 3) / (2 / 3))
    c.mistake("l06.not_rescaled", got=got, looks_like=observed - chance)
    c.hand(got, (observed - chance) / (1 - chance))
    c.close(c.call(fn, ["left", "right"] * 3, ["right", "left"] * 3), -1.0)
    c.close(c.call(fn, ["left", "left", "right", "right"], ["left", "right", "left", "right"]), 0.0)
    c.close(c.call(fn, ["A"] * 8 + ["B"] * 2, ["A"] * 4 + ["B"] * 6), (0.6 - 0.44) / 0.56)  # unequal marginals
    c.close(c.call(fn, ["tie"] * 4, ["tie"] * 4), 1.0, key="l06.one_label")


@check_cohen_kappa.wrong("l06.raw_agreement")
def _(first, second):
    return sum(a == b for a, b in zip(first, second, strict=True)) / len(first)


@check_cohen_kappa.wrong("l06.uniform_chance")
def _(first, second):
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / len(first)
    return (observed - 1 / 3) / (2 / 3)


@check_cohen_kappa.wrong("l06.not_rescaled")
def _(first, second):
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    return observed - sum((first.count(v) / n) * (second.count(v) / n) for v in set(first) | set(second))


@check_cohen_kappa.wrong("l06.one_label")
def _(first, second):
    n = len(first)
    observed = sum(a == b for a, b in zip(first, second, strict=True)) / n
    chance = sum((first.count(v) / n) * (second.count(v) / n) for v in set(first) | set(second))
    return 0.0 if chance == 1 else (observed - chance) / (1 - chance)


@exercise("l06.statistics_loss", reference=statistics_loss)
def check_statistics_loss(c, fn):
    c.callable(fn)
    eps, ref, factor = c.randn(3, 4, 5, 6), c.randn(3, 4, 5, 6), c.rand(3) + 0.5
    got = c.call(fn, eps, ref, factor)
    c.mistake("l06.pixelwise", got=got, looks_like=factor**2 * ((eps - ref) ** 2).mean((2, 3)).sum(1))
    c.tensor(got, shape=(3,), dtype=torch.float32)
    c.mistake("l06.c_not_squared", got=got, looks_like=factor * (eps - ref).mean((2, 3)).square().sum(1))
    c.mistake("l06.mean_of_channels", got=got, looks_like=factor**2 * (eps - ref).mean((2, 3)).square().mean(1))
    c.hand(c.call(fn, torch.full((1, 2, 2, 2), 3.0), torch.ones(1, 2, 2, 2), torch.tensor([0.5])), torch.tensor([2.0]))
    means = torch.stack([torch.stack([(eps - ref)[b, k].sum() / 30 for k in range(4)]) for b in range(3)])
    c.close(got, factor * factor * (means * means).sum(1))
    mixed = (eps - ref).flatten(2)[:, :, torch.arange(29, -1, -1)].view_as(eps) + ref
    c.close(c.call(fn, mixed, ref, factor), got, key="l06.pixelwise")
    trained = eps.clone().requires_grad_()
    c.has_gradient(c.call(fn, trained, ref, factor), trained)


@check_statistics_loss.wrong("l06.pixelwise")
def _(eps, eps_ref, c):
    return c**2 * ((eps - eps_ref) ** 2).mean((2, 3)).sum(1)


@check_statistics_loss.wrong("check.no_gradient")
def _(eps, eps_ref, c):
    return c**2 * (eps.detach() - eps_ref).mean((2, 3)).square().sum(1)


@check_statistics_loss.wrong("l06.c_not_squared")
def _(eps, eps_ref, c):
    return c * (eps - eps_ref).mean((2, 3)).square().sum(1)


@check_statistics_loss.wrong("l06.mean_of_channels")
def _(eps, eps_ref, c):
    return c**2 * (eps - eps_ref).mean((2, 3)).square().mean(1)


def normal_winners(recon_scores, easy_scores):
    """Column of each picture's best reconstruction (the first of equals), and whether it beats the easy winner."""
    level, _ = best_and_worst(recon_scores)
    return level, recon_scores.gather(1, level[:, None]).squeeze(1) > easy_scores


@exercise("l06.normal_winners", reference=normal_winners)
def check_normal_winners(c, fn):
    c.callable(fn)
    recon = torch.tensor([[0.7, 0.9], [0.7, 0.9], [0.5, 0.4], [0.6, 0.6], [0.2, 0.1]])
    easy = torch.tensor([0.8, 0.9, 0.1, 0.3, 0.6])
    got = c.call(fn, recon, easy)
    c.instance(got, (tuple, list))
    c.length(got, 2)
    c.mistake("l06.lowest_level", got=got[0], looks_like=recon.argmin(1))
    c.mistake("l06.keeps_equal", got=got[1], looks_like=torch.tensor([True, True, True, True, False]))
    c.mistake("l06.keeps_worse", got=got[1], looks_like=torch.tensor([False, False, False, False, True]))
    c.equal(got[0], torch.tensor([1, 1, 0, 0, 0]), key="l06.last_level")
    c.tensor(got[1], shape=(5,), dtype=torch.bool)
    c.equal(got[1], torch.tensor([True, False, True, True, False]))
    column, beats = c.call(fn, torch.tensor([[0.1, 0.3, 0.8], [0.2, 0.9, 0.4]]), torch.tensor([0.7, 0.95]))
    c.equal(column, torch.tensor([2, 1]))
    c.equal(beats, torch.tensor([True, False]))


@check_normal_winners.wrong("l06.lowest_level")
def _(recon_scores, easy_scores):
    return recon_scores.argmin(1), recon_scores.min(1).values > easy_scores


@check_normal_winners.wrong("l06.keeps_equal")
def _(recon_scores, easy_scores):
    return recon_scores.argmax(1), recon_scores.max(1).values >= easy_scores


@check_normal_winners.wrong("l06.keeps_worse")
def _(recon_scores, easy_scores):
    return recon_scores.argmax(1), recon_scores.max(1).values < easy_scores


@check_normal_winners.wrong("l06.last_level")
def _(recon_scores, easy_scores):
    last = recon_scores.shape[1] - 1
    return last - recon_scores.flip(1).argmax(1), recon_scores.max(1).values > easy_scores


def pareto_front(points):
    """Points (faithfulness, distance) that no other dominates: more of the first, less of the second is better."""
    points = [(float(faithful), -float(far)) for faithful, far in points]
    return np.array([not any(q != p and q[0] >= p[0] and q[1] >= p[1] for q in points) for p in points])


@exercise("l06.pareto_front", reference=pareto_front)
def check_pareto_front(c, fn):
    c.callable(fn)
    points = np.array([[0.8, 9.0], [0.7, 9.0], [0.9, 11.0], [0.85, 10.0], [0.6, 8.0], [0.65, 12.0]])
    got = np.asarray(c.call(fn, points))
    c.array(got, shape=(6,), dtype=bool)
    c.mistake("l06.both_larger", got=got, looks_like=np.array([False, False, True, False, False, True]))
    c.mistake("l06.dominated_ones", got=got, looks_like=np.array([False, True, False, False, False, True]))
    c.mistake("l06.strict_on_both", got=got, looks_like=np.array([True, True, True, True, True, False]))
    c.hand(got, np.array([True, False, True, True, True, False]))
    farther = np.asarray(c.call(fn, np.array([[0.6, 8.0], [0.6, 8.5]])))  # as faithful, but farther away
    c.equal(farther, np.array([True, False]), key="l06.strict_on_both")
    twins = np.asarray(c.call(fn, np.array([[0.8, 9.0], [0.8, 9.0], [0.7, 10.0]])))
    c.equal(twins, np.array([True, True, False]), key="l06.equal_points")


def _better(points):
    better = np.asarray(points, dtype=float) * [1, -1]
    return better[:, None] >= better[None], better[:, None] > better[None]  # [n, n, 2]


@check_pareto_front.wrong("l06.both_larger")
def _(points):
    points = np.asarray(points)
    as_good, strictly = points[:, None] >= points[None], points[:, None] > points[None]
    return ~(as_good.all(-1) & strictly.any(-1)).any(0)


@check_pareto_front.wrong("l06.dominated_ones")
def _(points):
    as_good, strictly = _better(points)
    return (as_good.all(-1) & strictly.any(-1)).any(0)


@check_pareto_front.wrong("l06.strict_on_both")
def _(points):
    return ~_better(points)[1].all(-1).any(0)


@check_pareto_front.wrong("l06.equal_points")
def _(points):
    as_good = _better(points)[0].all(-1)
    return as_good.sum(0) == 1


@exercise("l06.holm", reference=holm)
def check_holm(c, fn):
    c.callable(fn)
    p = np.array([0.02, 0.3, 0.01, 0.012])
    got = c.call(fn, p.copy())
    c.array(got, shape=(4,))
    c.mistake("l06.bonferroni", got=got, looks_like=np.minimum(4 * p, 1))
    c.mistake("l06.not_monotone", got=got, looks_like=np.array([0.04, 0.3, 0.04, 0.036]))
    c.mistake("l06.holm_sorted", got=got, looks_like=np.array([0.04, 0.04, 0.04, 0.3]))
    c.hand(c.call(fn, np.array([0.01, 0.04, 0.03])), np.array([0.03, 0.06, 0.06]))
    c.close(got, np.array([0.04, 0.3, 0.04, 0.04]))
    c.close(c.call(fn, np.array([0.03, 0.01, 0.02])), np.array([0.04, 0.03, 0.04]))  # an order that is not its inverse
    c.close(c.call(fn, np.array([0.6, 0.9])), np.array([1.0, 1.0]), key="l06.above_one")


@check_holm.wrong("l06.bonferroni")
def _(p_values):
    return np.minimum(len(p_values) * p_values, 1)


@check_holm.wrong("l06.not_monotone")
def _(p_values):
    order = np.argsort(p_values)
    out = np.empty(len(p_values))
    out[order] = np.minimum(p_values[order] * np.arange(len(p_values), 0, -1), 1)
    return out


@check_holm.wrong("l06.holm_sorted")
def _(p_values):
    ordered = np.sort(p_values) * np.arange(len(p_values), 0, -1)
    return np.minimum(np.maximum.accumulate(ordered), 1)


@check_holm.wrong("l06.above_one")
def _(p_values):
    order = np.argsort(p_values)
    out = np.empty(len(p_values))
    out[order] = np.maximum.accumulate(p_values[order] * np.arange(len(p_values), 0, -1))
    return out


def merged(weight, updates):
    """W + sum of scale up down: the weight of a layer with LoRA adapters (Hu et al. 2021), each with its strength."""
    return weight + sum(scale * (up @ down) for up, down, scale in updates)


@exercise("l06.merged", reference=merged)
def check_merged(c, fn):
    c.callable(fn)
    weight = c.randn(4, 3)
    updates = [(c.randn(4, 2), c.randn(2, 3), 0.5), (c.randn(4, 1), c.randn(1, 3), 3.0)]
    got = c.call(fn, weight.clone(), list(updates))
    c.tensor(got, shape=(4, 3), dtype=torch.float32)
    parts = [torch.einsum("or,ri->oi", up, down) for up, down, _ in updates]
    c.mistake("l06.no_base", got=got, looks_like=0.5 * parts[0] + 3 * parts[1])
    c.mistake("l06.full_strength", got=got, looks_like=weight + parts[0] + parts[1])
    c.mistake("l06.base_scaled", got=got, looks_like=0.5 * 3 * weight + 0.5 * parts[0] + 3 * parts[1])
    one = torch.tensor([[1.0]])
    c.hand(c.call(fn, torch.tensor([[2.0, 0.0]]), [(one, torch.tensor([[4.0, 6.0]]), 0.5)]), torch.tensor([[4.0, 3.0]]))
    c.close(got, weight + 0.5 * parts[0] + 3 * parts[1])
    c.close(c.call(fn, weight.clone(), []), weight)


@check_merged.wrong("l06.no_base")
def _(weight, updates):
    return sum((scale * (up @ down) for up, down, scale in updates), torch.zeros_like(weight))


@check_merged.wrong("l06.full_strength")
def _(weight, updates):
    return weight + sum(up @ down for up, down, _ in updates)


@check_merged.wrong("l06.base_scaled")
def _(weight, updates):
    for _, _, scale in updates:
        weight = scale * weight
    return weight + sum(scale * (up @ down) for up, down, scale in updates)
