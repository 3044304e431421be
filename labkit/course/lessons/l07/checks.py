"""Exercises of lesson 07."""

import math
import re

import torch
import torch.nn.functional as F

from labkit.course.checks import exercise
from labkit.pairwise import comparative_prompt, contrastive_loss, difference, unit
from labkit.pairwise.equations import two_sided_cross_entropy
from labkit.pairwise.inspection import alarm_threshold


def arrow(first, second, eps=1e-6):
    """Difference embedding: both to length 1, subtract, to length 1 again; zeros for equal pictures."""
    return difference(unit(first, eps), unit(second, eps), eps)


@exercise("l07.arrow", reference=arrow, shows=(unit, difference))
def check_arrow(c, fn):
    c.callable(fn)
    a, b = 3 * c.randn(4, 6), c.randn(4, 6)
    got = c.call(fn, a, b)
    c.tensor(got, shape=(4, 6), dtype=torch.float32, finite=False)
    raw = F.normalize(a, dim=-1) - F.normalize(b, dim=-1)
    c.mistake("l07.not_renormalised", got=got, looks_like=raw)
    c.mistake("l07.not_normalised_first", got=got, looks_like=F.normalize(a - b, dim=-1))
    c.mistake("l07.wrong_way", got=got, looks_like=-F.normalize(raw, dim=-1))
    c.hand(
        c.call(fn, torch.tensor([[2.0, 0.0]]), torch.tensor([[0.0, 5.0]])),
        torch.tensor([[math.sqrt(0.5), -math.sqrt(0.5)]]),
    )
    c.close(got, F.normalize(raw, dim=-1))
    same = c.call(fn, a, a.clone())
    c.require(bool(torch.isfinite(same).all()), "l07.nan_for_equal")
    c.close(same, torch.zeros(4, 6))


@check_arrow.wrong("l07.not_renormalised")
def _(first, second, eps=1e-6):
    return F.normalize(first, dim=-1) - F.normalize(second, dim=-1)


@check_arrow.wrong("l07.not_normalised_first")
def _(first, second, eps=1e-6):
    return F.normalize(first - second, dim=-1)


@check_arrow.wrong("l07.wrong_way")
def _(first, second, eps=1e-6):
    return arrow(second, first)


@check_arrow.wrong("l07.nan_for_equal")
def _(first, second, eps=1e-6):
    raw = first / first.norm(dim=-1, keepdim=True) - second / second.norm(dim=-1, keepdim=True)
    return raw / raw.norm(dim=-1, keepdim=True)


def counterbalanced(true, mirror):
    """(mean accuracy, share right in both clause orders); ties are wrong."""
    right = true > mirror
    return right.float().mean().item(), right.all(1).float().mean().item()


@exercise("l07.counterbalanced", reference=counterbalanced)
def check_counterbalanced(c, fn):
    c.callable(fn)
    true = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    mirror = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0], [0.5, 0.2]])
    got = c.call(fn, true, mirror)
    c.instance(got, (tuple, list))
    c.length(got, 2)
    mean, both = c.number(got[0], 0, 1), c.number(got[1], 0, 1)
    c.mistake("l07.first_order_only", got=torch.tensor(mean), looks_like=torch.tensor(0.4))
    c.mistake("l07.any_order", got=torch.tensor(both), looks_like=torch.tensor(0.8))
    c.hand(torch.tensor([mean, both]), torch.tensor([0.5, 0.2]))
    tie = c.call(fn, torch.zeros(2, 2), torch.zeros(2, 2))
    c.require(float(tie[0]) == 0 and float(tie[1]) == 0, "l07.tie_counts")


@check_counterbalanced.wrong("l07.first_order_only")
def _(true, mirror):
    right = true > mirror
    return right[:, 0].float().mean().item(), right.all(1).float().mean().item()


@check_counterbalanced.wrong("l07.any_order")
def _(true, mirror):
    right = true > mirror
    return right.float().mean().item(), right.any(1).float().mean().item()


@check_counterbalanced.wrong("l07.tie_counts")
def _(true, mirror):
    right = true >= mirror
    return right.float().mean().item(), right.all(1).float().mean().item()


@exercise("l07.contrastive_loss", reference=contrastive_loss, shows=(two_sided_cross_entropy,))
def check_contrastive_loss(c, fn):
    c.callable(fn)
    x, y = F.normalize(c.randn(5, 8), dim=-1), F.normalize(c.randn(5, 8), dim=-1)
    got = c.call(fn, x, y, 0.2)
    c.tensor(got, shape=(), dtype=torch.float32)
    logits = x @ y.T
    rows = -(logits / 0.2).log_softmax(1).diagonal().mean()
    columns = -(logits / 0.2).log_softmax(0).diagonal().mean()
    c.mistake("l07.one_side", got=got, looks_like=rows)
    c.mistake("l07.one_side", got=got, looks_like=columns)
    hot = -((logits * 0.2).log_softmax(1).diagonal().mean() + (logits * 0.2).log_softmax(0).diagonal().mean()) / 2
    c.mistake("l07.tau_multiplied", got=got, looks_like=hot)
    c.mistake("l07.sum_of_sides", got=got, looks_like=rows + columns)
    c.close(got, (rows + columns) / 2)
    same = torch.ones(7, 4) / 2
    c.hand(c.call(fn, same, same, 0.3), torch.tensor(math.log(7)))
    for side in range(2):  # both towers learn
        sides = [x.clone(), y.clone()]
        sides[side].requires_grad_()
        c.has_gradient(c.call(fn, *sides, 0.2), sides[side])


@check_contrastive_loss.wrong("l07.one_side")
def _(text, arrows, tau):
    return F.cross_entropy(text @ arrows.T / tau, torch.arange(len(text)))


@check_contrastive_loss.wrong("l07.tau_multiplied")
def _(text, arrows, tau):
    return contrastive_loss(text, arrows, 1 / tau)


@check_contrastive_loss.wrong("check.no_gradient")
def _(text, arrows, tau):
    return contrastive_loss(text, arrows.detach(), tau)


@check_contrastive_loss.wrong("l07.sum_of_sides")
def _(text, arrows, tau):
    return 2 * contrastive_loss(text, arrows, tau)


@exercise("l07.comparative_prompt", reference=comparative_prompt, shows=(unit,))
def check_comparative_prompt(c, fn):
    c.callable(fn)
    e_i, e_j, t_ij = (F.normalize(c.randn(8), dim=-1) for _ in range(3))
    got = c.call(fn, e_i, e_j, t_ij, 0.7)
    c.tensor(got, shape=(8,), dtype=torch.float32)
    c.mistake("l07.class_not_unit", got=got, looks_like=0.7 * e_j + 0.3 * (e_i - t_ij))
    c.mistake("l07.plus_difference", got=got, looks_like=F.normalize(0.7 * e_j + 0.3 * (e_i + t_ij), dim=-1))
    c.mistake("l07.alpha_swapped", got=got, looks_like=F.normalize(0.3 * e_j + 0.7 * (e_i - t_ij), dim=-1))
    c.close(got, F.normalize(0.7 * e_j + 0.3 * (e_i - t_ij), dim=-1))
    c.close(c.call(fn, e_i, e_j, e_i - e_j, 0.4), e_j)
    short = c.call(fn, e_i, e_j, t_ij, 0.4, 0.5)
    c.require(c.is_close(short, F.normalize(0.4 * e_j + 0.6 * (e_i - 0.5 * t_ij), dim=-1)), "l07.beta_ignored")


@check_comparative_prompt.wrong("l07.class_not_unit")
def _(e_i, e_j, t_ij, alpha, beta=1.0):
    return alpha * e_j + (1 - alpha) * (e_i - beta * t_ij)


@check_comparative_prompt.wrong("l07.plus_difference")
def _(e_i, e_j, t_ij, alpha, beta=1.0):
    return comparative_prompt(e_i, e_j, -t_ij, alpha, beta)


@check_comparative_prompt.wrong("l07.alpha_swapped")
def _(e_i, e_j, t_ij, alpha, beta=1.0):
    return comparative_prompt(e_i, e_j, t_ij, 1 - alpha, beta)


@check_comparative_prompt.wrong("l07.beta_ignored")
def _(e_i, e_j, t_ij, alpha, beta=1.0):
    return comparative_prompt(e_i, e_j, t_ij, alpha)


@exercise("l07.threshold", reference=alarm_threshold)
def check_threshold(c, fn):
    c.callable(fn)
    good = torch.tensor([5.0, 1.0, 4.0, 2.0, 3.0, 9.0, 8.0, 7.0, 6.0, 10.0, 0.0])
    got = torch.tensor(c.number(c.call(fn, good, 0.2), -1, 11), dtype=torch.float32)
    c.mistake("l07.threshold_below", got=got, looks_like=torch.tensor(2.0))
    c.mistake("l07.threshold_extreme", got=got, looks_like=torch.tensor(10.0))
    c.hand(got, torch.tensor(8.0))
    many = c.randn(400)
    value = c.number(c.call(fn, many, 0.05), -10, 10)
    above = int((many > value).sum())  # any value between the 20th and the 21st largest does that
    c.require(above == 20, "l07.threshold_share", above=above)


@check_threshold.wrong("l07.threshold_below")
def _(good, share):
    return torch.quantile(good.double(), share).item()


@check_threshold.wrong("l07.threshold_extreme")
def _(good, share):
    return good.max().item()


def mixed_weights(old, new, a):
    """WiSE-FT (Wortsman et al. 2021): (1 - a) old + a new for every weight, by name."""
    return {name: (1 - a) * old[name] + a * new[name] for name in old}


@exercise("l07.mixed_weights", reference=mixed_weights)
def check_mixed_weights(c, fn):
    c.callable(fn)
    old = {"w": c.randn(2, 3), "b": c.randn(3)}
    new = {"w": c.randn(2, 3), "b": c.randn(3)}
    got = c.call(fn, dict(old), dict(new), 0.25)
    c.instance(got, dict)
    c.keys(got, ["w", "b"])
    c.tensor(got["w"], shape=(2, 3), dtype=torch.float32)
    c.mistake("l07.ends_swapped", got=got["w"], looks_like=0.25 * old["w"] + 0.75 * new["w"])
    c.mistake("l07.only_added", got=got["w"], looks_like=old["w"] + 0.25 * new["w"])
    two = c.call(fn, {"x": torch.tensor([0.0, 2.0])}, {"x": torch.tensor([4.0, 4.0])}, 0.5)
    c.hand(two["x"], torch.tensor([2.0, 3.0]))
    for name in old:
        c.close(got[name], old[name] + (new[name] - old[name]) / 4)


@check_mixed_weights.wrong("l07.ends_swapped")
def _(old, new, a):
    return {name: a * old[name] + (1 - a) * new[name] for name in old}


@check_mixed_weights.wrong("l07.only_added")
def _(old, new, a):
    return {name: old[name] + a * new[name] for name in old}


def marker_rule(said, a, b):
    """Right minus wrong values, if a marker hands its picture to the next value behind it and to no other."""
    rightly = {a: "first", b: "second"}
    score, owner = 0, None
    for found in re.findall("|".join([re.escape(a), re.escape(b), "first", "second"]), said):
        if found in ("first", "second"):
            owner = found
        elif owner is not None:
            score += 1 if rightly[found] == owner else -1
            owner = None
    return score


@exercise("l07.marker_rule", reference=marker_rule)
def check_marker_rule(c, fn):
    c.callable(fn)
    red, black = "red hair", "black hair"

    def score(said, a=red, b=black):
        return c.number(c.call(fn, said, a, b))

    c.hand(score("the first has red hair, the second has black hair"), 2)
    c.hand(score("the first has black hair, the second has red hair"), -2)
    c.mistake("l07.value_before", when=score("red hair in the first, black hair in the second") >= 0)
    c.mistake("l07.marker_kept", when=score("the first has red hair, not black hair") != 1)
    c.mistake("l07.part_of_word", when=score("first no glasses, second glasses", "no glasses", "glasses") != 2)
    c.close(score("unlike the second, the first has red hair"), 1)
    c.close(score("it is not the second that has red hair"), -1)
    c.close(score("left: red hair; right: black hair"), 0)
    c.close(score("first: hair (red), second: hair (dark)", "hair (red)", "hair (dark)"), 2)
    c.close(score("the second has a beard, the first has no beard", "no beard", "a beard"), 2)


@check_marker_rule.wrong("l07.value_before")
def _(said, a, b):
    order = re.findall("first|second", said)
    values = sorted([a, b], key=lambda v: said.find(v))
    rightly = {a: "first", b: "second"}
    pairs = [(v, m) for v, m in zip([v for v in values if v in said], order, strict=False)]
    return sum(1 if rightly[v] == m else -1 for v, m in pairs)


@check_marker_rule.wrong("l07.marker_kept")
def _(said, a, b):
    rightly = {a: "first", b: "second"}
    score, owner = 0, None
    for found in re.findall("|".join([a, b, "first", "second"]), said):
        if found in ("first", "second"):
            owner = found
        elif owner is not None:
            score += 1 if rightly[found] == owner else -1
    return score


@check_marker_rule.wrong("l07.part_of_word")
def _(said, a, b):
    places = [(found.start(), found.group()) for found in re.finditer("first|second", said)]
    places += [(said.find(value), value) for value in (a, b) if value in said]
    rightly = {a: "first", b: "second"}
    score, owner = 0, None
    for _, found in sorted(places):
        if found in ("first", "second"):
            owner = found
        elif owner is not None:
            score += 1 if rightly[found] == owner else -1
            owner = None
    return score
