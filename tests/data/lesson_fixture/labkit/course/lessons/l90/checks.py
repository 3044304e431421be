"""Exercises of the fixture lesson: a function, a loss with gradients, a value and a class."""

import torch

from labkit.course.checks import exercise


def add_noise(x0, noise, alpha_bar):
    """x_t = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise (Ho et al. 2020, eq. 4)."""
    return alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise


@exercise("l90.add_noise", reference=add_noise)
def check_add_noise(c, fn):
    c.callable(fn)
    x0, noise = c.randn(2, 3, 4, 4), c.randn(2, 3, 4, 4)
    got = c.call(fn, x0, noise, 0.64)
    c.tensor(got, shape=(2, 3, 4, 4), dtype=torch.float32)
    c.mistake("l90.no_root", got=got, looks_like=0.64 * x0 + 0.36 * noise)
    c.hand(c.call(fn, torch.tensor([1.0]), torch.tensor([2.0]), 0.64), torch.tensor([2.0]))
    c.close(got, 0.8 * x0 + 0.6 * noise)
    c.require(c.is_close(c.call(fn, x0, noise, 1.0), x0), "l90.noise_left", alpha_bar=1.0)


@check_add_noise.wrong("l90.no_root")
def _(x0, noise, alpha_bar):
    return alpha_bar * x0 + (1 - alpha_bar) * noise


@check_add_noise.wrong("check.shape_scalar")
def _(x0, noise, alpha_bar):
    return (alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * noise).mean()


@check_add_noise.wrong("check.mutated")
def _(x0, noise, alpha_bar):
    return x0.mul_(alpha_bar**0.5).add_((1 - alpha_bar) ** 0.5 * noise)


def margin_loss(winner, loser, reference):
    """-log sigmoid((winner - loser) - reference), mean over pairs; the reference gets no gradient."""
    margin = winner - loser - reference.detach()  # [pairs]
    return -torch.nn.functional.logsigmoid(margin).mean()


def _forgotten_detach(winner, loser, reference):
    return -torch.nn.functional.logsigmoid(winner - loser - reference).mean()


def _swapped(winner, loser, reference):
    return margin_loss(loser, winner, reference)


def _no_minus(winner, loser, reference):
    return -margin_loss(winner, loser, reference)


def _detached(winner, loser, reference):
    return margin_loss(winner, loser, reference).detach()


@exercise(
    "l90.margin_loss",
    reference=margin_loss,
    wrong={
        "check.leaking_gradient": _forgotten_detach,
        "l90.margin_sign": _swapped,
        "check.sign": _no_minus,
        "check.no_gradient": _detached,
    },
)
def check_margin_loss(c, fn):
    c.callable(fn)
    winner, loser, reference = (c.randn(5).double().requires_grad_() for _ in range(3))
    got = c.call(fn, winner, loser, reference)
    c.number(got)
    want = torch.log1p(torch.exp(-(winner - loser - reference))).mean()
    swapped = torch.log1p(torch.exp(-(loser - winner - reference))).mean()
    c.mistake("l90.margin_sign", got=got, looks_like=swapped)
    c.close(got, want.detach())
    c.has_gradient(got, winner)
    c.no_gradient(got, reference)


def make_answer():
    """The 3 x 3 upper triangle of ones."""
    return torch.triu(torch.ones(3, 3))


@exercise("l90.answer", reference=make_answer, value=True)
def check_answer(c, answer):
    c.tensor(answer, shape=(3, 3))
    c.hand(answer, torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0]]))


@check_answer.wrong("check.transposed")
def _():
    return torch.tril(torch.ones(3, 3))


@check_answer.wrong("check.hand")
def _():
    return torch.ones(3, 3)


@check_answer.wrong("check.type")
def _():
    return [[1, 1, 1], [0, 1, 1], [0, 0, 1]]


class RunningMean:
    """Mean of everything added so far."""

    def __init__(self):
        self.total, self.count = 0.0, 0

    def add(self, value):
        self.total, self.count = self.total + value, self.count + 1
        return self.total / self.count


class _LastValue(RunningMean):
    def add(self, value):
        return value


class _Raises(RunningMean):
    def add(self, value):
        return self.sum / self.count


@exercise(
    "l90.running_mean",
    reference=RunningMean,
    name="RunningMean",
    wrong={"check.hand": _LastValue, "check.raised": _Raises},
)
def check_running_mean(c, cls):
    c.callable(cls)
    mean = c.call(cls)
    c.hand(c.call(mean.add, 1.0), 1.0)
    c.hand(c.call(mean.add, 3.0), 2.0)
