"""Exercises of lesson 08."""

import math

import numpy as np
import torch

from labkit.course.checks import exercise
from labkit.survey import equations as eq


def best_of_n(scores, n):
    """Expected score of the best of n drawn from M without replacement."""
    return eq.best_of_n(scores, n)


@exercise("l08.best_of_n", reference=best_of_n)
def check_best_of_n(c, fn):
    c.callable(fn)
    scores = np.array([3.0, 1.0, 2.0])
    got = float(c.call(fn, scores, 2))
    c.number(got)
    c.mistake("l08.with_replacement", got=got, looks_like=(3 * 5 + 2 * 3 + 1) / 9)
    c.mistake("l08.unsorted", got=got, looks_like=(1.0 * 1 + 2.0 * 2) / 3)
    c.mistake("l08.first_only", got=got, looks_like=3.0)
    c.mistake("l08.largest_first", got=got, looks_like=(2 * 1.0 + 1 * 2.0) / 3)
    c.hand(got, 8 / 3)
    c.hand(float(c.call(fn, scores, 1)), 2.0)
    c.hand(float(c.call(fn, scores, 3)), 3.0)
    more = c.rand(30).double().numpy()
    c.close(float(c.call(fn, more, 2)), eq.best_of_n(more, 2))
    c.close(float(c.call(fn, more, 7)), eq.best_of_n(more, 7))


@check_best_of_n.wrong("l08.with_replacement")
def _(scores, n):
    m, ordered = len(scores), np.sort(scores)
    rank = np.arange(1, m + 1)
    return float((((rank / m) ** n - ((rank - 1) / m) ** n) * ordered).sum())


@check_best_of_n.wrong("l08.unsorted")
def _(scores, n):
    m = len(scores)
    return sum(math.comb(i, n - 1) * scores[i] for i in range(m)) / math.comb(m, n)


@check_best_of_n.wrong("l08.first_only")
def _(scores, n):
    return float(np.max(scores[:n]))


@check_best_of_n.wrong("l08.largest_first")
def _(scores, n):
    ordered = sorted(scores, reverse=True)
    return sum(math.comb(i, n - 1) * score for i, score in enumerate(ordered)) / math.comb(len(scores), n)


def group_advantage(rewards):
    """(r - mean) / std within each group; 0 where a group has no spread."""
    return eq.group_advantage(rewards)


@exercise("l08.group_advantage", reference=group_advantage)
def check_group_advantage(c, fn):
    c.callable(fn)
    rewards = torch.tensor([[1.0, 3.0], [10.0, 14.0]])
    got = c.call(fn, rewards)
    c.tensor(got, shape=(2, 2), dtype=torch.float32)
    c.mistake("l08.whole_batch", got=got, looks_like=(rewards - rewards.mean()) / rewards.std(correction=0))
    c.mistake("l08.no_std", got=got, looks_like=torch.tensor([[-1.0, 1.0], [-2.0, 2.0]]))
    c.mistake("l08.sample_std", got=got, looks_like=torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]) / math.sqrt(2))
    c.mistake("l08.no_keepdim", got=got, looks_like=torch.tensor([[-1.0, -4.5], [8.0, 1.0]]))
    loose = {"rtol": 5e-4, "atol": 5e-4}  # the usual 1e-4 beside the deviation is no mistake
    c.hand(got, torch.tensor([[-1.0, 1.0], [-1.0, 1.0]]), **loose)
    for value in (2.0, 0.1):  # seven times 0.1 have a mean that is not exactly 0.1
        flat = fn(torch.full((1, 7), value))  # may be NaN: the mistake
        c.mistake("l08.no_spread", when=not c.is_close(flat, torch.zeros(1, 7), rtol=0, atol=1e-2))
    more = c.randn(4, 6)
    c.close(c.call(fn, more), eq.group_advantage(more), **loose)


@check_group_advantage.wrong("l08.whole_batch")
def _(rewards):
    return (rewards - rewards.mean()) / rewards.std(correction=0).clamp(min=1e-4)


@check_group_advantage.wrong("l08.no_std")
def _(rewards):
    return rewards - rewards.mean(1, keepdim=True)


@check_group_advantage.wrong("l08.no_spread")
def _(rewards):
    return (rewards - rewards.mean(1, keepdim=True)) / rewards.std(1, correction=0, keepdim=True)


@check_group_advantage.wrong("l08.sample_std")
def _(rewards):
    centred, std = rewards - rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    return torch.where(std > 1e-4, centred / std.clamp(min=1e-4), torch.zeros_like(rewards))


@exercise("l08.truncated_chain", reference=eq.truncated_chain)
def check_truncated_chain(c, fn):
    c.callable(fn)
    theta = torch.tensor(1.0, requires_grad=True)

    def slope(k, steps=4):
        end = c.call(fn, lambda x, i: x / 2 + (i + 1) * theta, torch.tensor(8.0), steps, k)
        return end, torch.autograd.grad(end, theta, allow_unused=True)[0] if end.requires_grad else torch.zeros(())

    end, last = slope(1)
    c.mistake("l08.skipped", got=end.detach(), looks_like=torch.tensor(8.0))  # untouched, or step 3 alone: 8 / 2 + 4
    c.hand(end, torch.tensor(0.5 + 4.0 + 1.5 + 0.5 + 0.125))
    c.mistake("l08.all_steps", got=last, looks_like=torch.tensor(4 + 1.5 + 0.5 + 0.125))
    none = c.is_close(last, torch.tensor(0.0))
    c.mistake("l08.one_few", when=none and c.is_close(slope(2)[1], torch.tensor(4.0)))
    c.mistake("l08.none_recorded", when=none and c.is_close(slope(4)[1], torch.tensor(0.0)))
    c.mistake("l08.first_steps", when=none or c.is_close(last, torch.tensor(0.125)))
    c.mistake("l08.one_short", when=c.is_close(last, torch.tensor(5.5)))
    c.hand(last, torch.tensor(4.0))
    c.close(slope(2)[1], torch.tensor(4 + 1.5))
    c.close(slope(4)[1], torch.tensor(4 + 1.5 + 0.5 + 0.125))


@check_truncated_chain.wrong("l08.all_steps")
def _(step, x, steps, k):
    for i in range(steps):
        x = step(x, i)
    return x


@check_truncated_chain.wrong("l08.first_steps")
def _(step, x, steps, k):
    for i in range(steps):
        with torch.set_grad_enabled(i < k):
            x = step(x, i)
    return x


@check_truncated_chain.wrong("l08.one_few")
def _(step, x, steps, k):
    for i in range(steps):
        with torch.set_grad_enabled(i > steps - k):
            x = step(x, i)
    return x


@check_truncated_chain.wrong("l08.one_short")
def _(step, x, steps, k):
    for i in range(steps):
        with torch.set_grad_enabled(i >= steps - k - 1):
            x = step(x, i)
    return x


def fk_weights(now, before, strength):
    """Weights of k particles from the rise of their rewards: proportional to exp(strength (now - before))."""
    history = torch.stack([before, now])
    return eq.fk_weights(eq.fk_potential(history.flatten(1), strength).view_as(now))


@exercise("l08.fk_weights", reference=fk_weights)
def check_fk_weights(c, fn):
    c.callable(fn)
    now, before = torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[1.0, 1.0, 1.0]])
    got = c.call(fn, now, before, math.log(2.0))
    c.tensor(got, shape=(1, 3), dtype=torch.float32)
    c.mistake("l08.not_normalised", got=got, looks_like=torch.tensor([[1.0, 2.0, 4.0]]))
    c.mistake("l08.over_prompts", got=got, looks_like=torch.ones(1, 3))
    c.mistake("l08.falls", got=got, looks_like=torch.tensor([[4.0, 2.0, 1.0]]) / 7)
    c.mistake("l08.no_strength", got=got, looks_like=torch.softmax(now - before, 1))
    c.hand(got, torch.tensor([[1.0, 2.0, 4.0]]) / 7)
    two = c.call(fn, torch.tensor([[2.0, 1.0], [3.0, 3.0]]), torch.tensor([[1.0, 1.0], [3.0, 3.0]]), math.log(2.0))
    c.mistake("l08.over_prompts", got=two, looks_like=torch.tensor([[2.0, 1.0], [1.0, 1.0]]) / 5)
    c.hand(two, torch.tensor([[2 / 3, 1 / 3], [0.5, 0.5]]))
    rise = c.call(fn, torch.tensor([[5.0, 6.0]]), torch.tensor([[5.0, 5.0]]), 1.0)
    same = c.call(fn, torch.tensor([[5.0, 6.0]]), torch.tensor([[5.0, 6.0]]), 1.0)
    c.mistake("l08.level", when=not c.is_close(same, torch.tensor([[0.5, 0.5]])))
    c.close(rise, torch.tensor([[1.0, math.e]]) / (1 + math.e))
    huge = fn(torch.tensor([[500.0, 501.0], [0.0, 1.0]]), torch.zeros(2, 2), 1.0)  # exp(500) does not fit: the mistake
    c.mistake("l08.overflow", when=not bool(torch.isfinite(huge).all()))
    c.close(huge, torch.tensor([[1.0, math.e]] * 2) / (1 + math.e), key="l08.overflow")
    a, b = c.randn(3, 5), c.randn(3, 5)
    c.close(c.call(fn, a, b, 2.0), torch.softmax(2.0 * (a - b), 1))


@check_fk_weights.wrong("l08.not_normalised")
def _(now, before, strength):
    return (strength * (now - before)).exp()


@check_fk_weights.wrong("l08.over_prompts")
def _(now, before, strength):
    return torch.softmax((strength * (now - before)).flatten(), 0).view_as(now)


@check_fk_weights.wrong("l08.level")
def _(now, before, strength):
    return torch.softmax(strength * now, 1)


@check_fk_weights.wrong("l08.overflow")
def _(now, before, strength):
    raised = (strength * (now - before)).exp()
    return raised / raised.sum(1, keepdim=True)
