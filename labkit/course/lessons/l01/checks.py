"""Exercises of lesson 01."""

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
