"""Exercises of lesson 01."""

import math

import torch

from labkit.course.checks import exercise


def add_noise(x0, noise, alpha_bar):
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4)."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


@exercise("l01.add_noise", reference=add_noise)
def check_add_noise(c, fn):
    c.callable(fn)
    x0, noise = c.randn(2, 3, 4, 4), c.randn(2, 3, 4, 4)
    got = c.call(fn, x0, noise, 0.64)
    c.tensor(got, shape=(2, 3, 4, 4), dtype=torch.float32)
    c.mistake("l01.no_root", got=got, looks_like=0.64 * x0 + 0.36 * noise)
    c.mistake("l01.swapped", got=got, looks_like=0.6 * x0 + 0.8 * noise)
    c.hand(c.call(fn, torch.tensor([1.0]), torch.tensor([2.0]), 0.64), torch.tensor([2.0]))
    c.close(got, 0.8 * x0 + 0.6 * noise)
    c.close(c.call(fn, x0, noise, 1.0), x0)


@check_add_noise.wrong("l01.no_root")
def _(x0, noise, alpha_bar):
    return alpha_bar * x0 + (1 - alpha_bar) * noise


@check_add_noise.wrong("l01.swapped")
def _(x0, noise, alpha_bar):
    return (1 - alpha_bar) ** 0.5 * x0 + alpha_bar**0.5 * noise


def mixture_noise(x_t, alpha_bar, weights, means, deviations):
    """(x_t - sqrt(alpha_bar) E[x0 | x_t]) / sqrt(1 - alpha_bar) for a mixture of normals on a line."""
    root = alpha_bar**0.5
    variance = alpha_bar * deviations**2 + 1 - alpha_bar  # [K]
    away = x_t[:, None] - root * means  # [n, K]
    log_share = weights.log() - 0.5 * variance.log() - away**2 / (2 * variance)
    share = log_share.softmax(dim=1)  # [n, K]
    guess = (share * (means + root * deviations**2 / variance * away)).sum(1)  # [n]
    return (x_t - root * guess) / (1 - alpha_bar) ** 0.5


def _average_guess(x, alpha_bar, parts):
    """E[x0 | x_t] by adding up over a fine grid of clean values, in plain Python."""
    top = bottom = 0.0
    for step in range(-6000, 6001):
        clean = step / 1000
        prior = sum(w / s * math.exp(-((clean - m) ** 2) / (2 * s * s)) for w, m, s in parts)
        chance = prior * math.exp(-((x - alpha_bar**0.5 * clean) ** 2) / (2 * (1 - alpha_bar)))
        top, bottom = top + clean * chance, bottom + chance
    return top / bottom


@exercise("l01.mixture_noise", reference=mixture_noise)
def check_mixture_noise(c, fn):
    c.callable(fn)
    parts, level = [(0.7, -1.0, 0.4), (0.3, 1.2, 0.8)], 0.5
    law = tuple(torch.tensor(column, dtype=torch.float64) for column in zip(*parts, strict=True))
    x = torch.tensor([-1.4, 0.1, 0.9], dtype=torch.float64)
    guess = torch.tensor([_average_guess(float(v), level, parts) for v in x], dtype=torch.float64)
    got = c.call(fn, x.clone(), level, *(part.clone() for part in law))
    c.tensor(got, shape=(3,))
    c.mistake("l01.guess_instead", got=got, looks_like=guess)
    one = torch.ones(1, dtype=torch.float64)
    c.hand(c.call(fn, torch.tensor([2.0], dtype=torch.float64), 0.64, one, 0 * one, one), 1.2 * one)
    c.close(got, (x - level**0.5 * guess) / (1 - level) ** 0.5, key="l01.mix")


@check_mixture_noise.wrong("l01.guess_instead")
def _(x_t, alpha_bar, weights, means, deviations):
    noise = mixture_noise(x_t, alpha_bar, weights, means, deviations)
    return predict_x0(x_t, noise, alpha_bar)


@check_mixture_noise.wrong("l01.mix")
def _(x_t, alpha_bar, weights, means, deviations):
    each = [
        mixture_noise(x_t, alpha_bar, weights[k : k + 1], means[k : k + 1], deviations[k : k + 1])
        for k in range(len(means))
    ]
    return (torch.stack(each, 1) * weights).sum(1)  # the weights of the data, whatever x_t is


def predict_x0(x_t, eps, alpha_bar):
    """x0 = (x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


@exercise("l01.predict_x0", reference=predict_x0)
def check_predict_x0(c, fn):
    c.callable(fn)
    x0, noise = c.randn(2, 3, 4, 4), c.randn(2, 3, 4, 4)
    x_t = 0.8 * x0 + 0.6 * noise
    got = c.call(fn, x_t, noise, 0.64)
    c.tensor(got, shape=(2, 3, 4, 4), dtype=torch.float32)
    c.mistake("l01.not_divided", got=got, looks_like=0.8 * x0)
    c.mistake("l01.plus_noise", got=got, looks_like=(x_t + 0.6 * noise) / 0.8)
    c.hand(c.call(fn, torch.tensor([2.0]), torch.tensor([2.0]), 0.64), torch.tensor([1.0]))
    c.close(got, x0)


@check_predict_x0.wrong("l01.not_divided")
def _(x_t, eps, alpha_bar):
    return x_t - (1 - alpha_bar) ** 0.5 * eps


@check_predict_x0.wrong("l01.plus_noise")
def _(x_t, eps, alpha_bar):
    return (x_t + (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


def guided(eps_empty, eps_prompt, scale):
    """eps(x_t) + w (eps(x_t, c) - eps(x_t)) (Ho & Salimans 2022, in the convention of Stable Diffusion)."""
    return eps_empty + scale * (eps_prompt - eps_empty)


@exercise("l01.guided", reference=guided)
def check_guided(c, fn):
    c.callable(fn)
    empty, prompt = c.randn(2, 4, 3, 3), c.randn(2, 4, 3, 3)
    got = c.call(fn, empty, prompt, 3.0)
    c.tensor(got, shape=(2, 4, 3, 3), dtype=torch.float32)
    c.mistake("l01.from_prompt", got=got, looks_like=4 * prompt - 3 * empty)
    c.mistake("l01.roles", got=got, looks_like=3 * empty - 2 * prompt)
    c.hand(c.call(fn, torch.tensor([1.0]), torch.tensor([3.0]), 2.0), torch.tensor([5.0]))
    c.close(got, 3 * prompt - 2 * empty)
    c.close(c.call(fn, empty, prompt, 0.0), empty)


@check_guided.wrong("l01.from_prompt")
def _(eps_empty, eps_prompt, scale):
    return eps_prompt + scale * (eps_prompt - eps_empty)


@check_guided.wrong("l01.roles")
def _(eps_empty, eps_prompt, scale):
    return eps_prompt + scale * (eps_empty - eps_prompt)


def ddim_step(x_t, eps, alpha_bar, alpha_bar_next):
    """Deterministic DDIM (Song et al. 2020, eq. 12 with sigma = 0)."""
    guess = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar_next**0.5 * guess + (1 - alpha_bar_next) ** 0.5 * eps


@exercise("l01.ddim_step", reference=ddim_step)
def check_ddim_step(c, fn):
    c.callable(fn)
    x0, noise = c.randn(2, 3, 4, 4), c.randn(2, 3, 4, 4)
    x_t = 0.6 * x0 + 0.8 * noise
    got = c.call(fn, x_t, noise, 0.36, 0.64)
    c.tensor(got, shape=(2, 3, 4, 4), dtype=torch.float32)
    c.mistake("l01.only_guess", got=got, looks_like=x0)
    c.mistake("l01.same_level", got=got, looks_like=x_t)
    c.hand(c.call(fn, torch.tensor([2.2]), torch.tensor([2.0]), 0.36, 0.64), torch.tensor([2.0]))
    c.close(got, 0.8 * x0 + 0.6 * noise)
    c.close(c.call(fn, x_t, noise, 0.36, 1.0), x0)


@check_ddim_step.wrong("l01.only_guess")
def _(x_t, eps, alpha_bar, alpha_bar_next):
    return (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5


@check_ddim_step.wrong("l01.same_level")
def _(x_t, eps, alpha_bar, alpha_bar_next):
    guess = (x_t - (1 - alpha_bar) ** 0.5 * eps) / alpha_bar**0.5
    return alpha_bar**0.5 * guess + (1 - alpha_bar) ** 0.5 * eps


def attention_weights(query, key):
    """softmax(q . k / sqrt(d)) over the keys (Vaswani et al. 2017, eq. 1): [B, N, d], [B, M, d] -> [B, N, M]."""
    return (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=-1)


@exercise("l01.attention_weights", reference=attention_weights)
def check_attention_weights(c, fn):
    c.callable(fn)
    query, key = c.randn(2, 3, 4), c.randn(2, 5, 4)
    got = c.call(fn, query, key)
    c.tensor(got, shape=(2, 3, 5), dtype=torch.float32)
    products = torch.einsum("bnd,bmd->bnm", query, key)
    c.mistake("l01.no_softmax", got=got, looks_like=products / 2)
    c.mistake("l01.unscaled", got=got, looks_like=products.softmax(-1))
    c.mistake("l01.over_queries", got=got, looks_like=(products / 2).softmax(1))
    c.hand(c.call(fn, torch.ones(1, 1, 1), torch.tensor([[[math.log(3.0)], [0.0]]])), torch.tensor([[[0.75, 0.25]]]))
    c.close(got, (products / 2).exp() / (products / 2).exp().sum(2, keepdim=True))


@check_attention_weights.wrong("l01.no_softmax")
def _(query, key):
    return query @ key.transpose(1, 2) / query.shape[-1] ** 0.5


@check_attention_weights.wrong("l01.unscaled")
def _(query, key):
    return (query @ key.transpose(1, 2)).softmax(dim=-1)


@check_attention_weights.wrong("l01.over_queries")
def _(query, key):
    return (query @ key.transpose(1, 2) / query.shape[-1] ** 0.5).softmax(dim=1)


def plan_cost(scales):
    """U-Net evaluations of one picture: one at scale 1, where the empty prompt cancels, else two per step."""
    return sum(1 if scale == 1 else 2 for scale in scales)


@exercise("l01.plan_cost", reference=plan_cost)
def check_plan_cost(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, [3.0, 1.0, 1.0, 5.0, 2.0]))
    c.mistake("l01.always_two", got=got, looks_like=10)
    c.mistake("l01.always_one", got=got, looks_like=5)
    c.mistake("l01.paid_by_scale", got=got, looks_like=12)
    c.hand(c.call(fn, [3.0, 1.0]), 3)
    c.close(got, 8)
    c.close(c.call(fn, [1.0] * 7), 7)


@check_plan_cost.wrong("l01.always_two")
def _(scales):
    return 2 * len(scales)


@check_plan_cost.wrong("l01.always_one")
def _(scales):
    return len(scales)


@check_plan_cost.wrong("l01.paid_by_scale")
def _(scales):
    return sum(scales)
