"""Exercises of lesson 03.

The reference solutions are what a learner can write in a cell; the checks hold every answer against the same functions
of `labkit.density.equations` that `PseudoDensity`, `importance_sample` and `perturb` use (Vendi: `labkit.metrics`).
"""

import math

import torch

from labkit.course.checks import exercise
from labkit.density import equations
from labkit.metrics import vendi_score


def pseudo_density(features, k):
    """rho of Li et al. 2024 with n = 1: inverse mean distance to the k nearest others, divided by its mean."""
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    d_k = distances.topk(k, largest=False).values.mean(dim=1)
    return (1 / d_k) / (1 / d_k).mean()


def _nearest(features, k, start):
    distances = (features[:, None] - features[None]).norm(dim=2).sort(dim=1).values
    return distances[:, start : start + k]


@exercise("l03.pseudo_density", reference=pseudo_density)
def check_pseudo_density(c, fn):
    c.callable(fn)
    x = c.randn(20, 3, dtype=torch.float64)
    got = c.call(fn, x, 4)
    c.tensor(got, shape=(20,), dtype=torch.float64)
    want = 1 / _nearest(x, 4, 1).mean(dim=1)
    c.mistake(
        "l03.itself", got=got, looks_like=(1 / _nearest(x, 4, 0).mean(dim=1)) / (1 / _nearest(x, 4, 0).mean(1)).mean()
    )
    kth = 1 / _nearest(x, 4, 1)[:, -1]
    c.mistake("l03.kth", got=got, looks_like=kth / kth.mean())
    c.mistake("l03.not_normalised", got=got, looks_like=want)
    c.mistake("l03.sums_to_one", got=got, looks_like=want / want.sum())
    line = torch.arange(11, dtype=torch.float64)[:, None]
    c.hand(c.call(fn, line, 4)[:3], torch.tensor([0.66571, 0.95101, 1.10951], dtype=torch.float64), atol=1e-4)
    d_k = equations.mean_distance(x, 4)
    c.close(got, equations.pseudo_density(d_k, d_k))
    twice = torch.cat([x[:9], x[:1]])  # a duplicate is a neighbour, at distance 0
    d_k = _nearest(twice, 2, 1).mean(dim=1)
    c.close(c.call(fn, twice, 2), (1 / d_k) / (1 / d_k).mean())


@check_pseudo_density.wrong("l03.itself")
def _(features, k):
    d_k = torch.cdist(features, features).topk(k, largest=False).values.mean(dim=1)
    return (1 / d_k) / (1 / d_k).mean()


@check_pseudo_density.wrong("l03.kth")
def _(features, k):
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    d_k = distances.topk(k, largest=False).values[:, -1]
    return (1 / d_k) / (1 / d_k).mean()


@check_pseudo_density.wrong("l03.not_normalised")
def _(features, k):
    distances = torch.cdist(features, features)
    distances.fill_diagonal_(torch.inf)
    return 1 / distances.topk(k, largest=False).values.mean(dim=1)


@check_pseudo_density.wrong("l03.sums_to_one")
def _(features, k):
    rho = pseudo_density(features, k)
    return rho / rho.sum()


def acceptance(rho, tau, w):
    """The two-level rule of Li et al. 2024, with a tie on the lower side."""
    above, below = (1.0, 1 / w) if w >= 1 else (w, 1.0)
    return torch.where(rho > tau, above, below).to(rho.dtype)


@exercise("l03.acceptance", reference=acceptance)
def check_acceptance(c, fn):
    c.callable(fn)
    rho = torch.tensor([0.5, 1.0, 1.5, 2.0], dtype=torch.float64)
    high, low = c.call(fn, rho, 1.2, 4.0), c.call(fn, rho, 1.2, 0.25)
    c.tensor(high, shape=(4,))
    c.tensor(low, shape=(4,))
    c.mistake("l03.weights", got=high, looks_like=torch.tensor([1.0, 1.0, 4.0, 4.0], dtype=torch.float64))
    c.mistake("l03.wrong_side", got=high, looks_like=torch.tensor([1.0, 1.0, 0.25, 0.25], dtype=torch.float64))
    c.mistake("l03.above_one", got=low, looks_like=torch.tensor([4.0, 4.0, 1.0, 1.0], dtype=torch.float64))
    c.hand(high, torch.tensor([0.25, 0.25, 1.0, 1.0], dtype=torch.float64))
    c.hand(low, torch.tensor([1.0, 1.0, 0.25, 0.25], dtype=torch.float64))
    c.close(c.call(fn, rho, 1.0, 2.0), torch.tensor([0.5, 0.5, 1.0, 1.0], dtype=torch.float64), key="l03.tie")
    rho = 2 * c.rand(30, dtype=torch.float64)
    for w in (33.0, 1.5, 1.0, 0.03):
        c.close(c.call(fn, rho, 0.7, w), equations.acceptance_probability(rho, threshold=0.7, ratio=w))


@check_acceptance.wrong("l03.weights")
def _(rho, tau, w):
    return torch.where(rho > tau, w, 1.0).to(rho.dtype)


@check_acceptance.wrong("l03.wrong_side")
def _(rho, tau, w):
    return acceptance(rho, tau, 1 / w)


@check_acceptance.wrong("l03.above_one")
def _(rho, tau, w):
    return torch.where(rho > tau, 1.0, 1 / w).to(rho.dtype)


@check_acceptance.wrong("l03.tie")
def _(rho, tau, w):
    above, below = (1.0, 1 / w) if w >= 1 else (w, 1.0)
    return torch.where(rho >= tau, above, below).to(rho.dtype)


def forecast(pi, w):
    """Closed forms of the two-level rule."""
    above, below = (pi, (1 - pi) / w) if w >= 1 else (w * pi, 1 - pi)
    rate = above + below
    return rate, above / rate, 1 / rate


@exercise("l03.forecast", reference=forecast)
def check_forecast(c, fn):
    c.callable(fn)
    got = c.call(fn, 0.2, 4.0)
    c.length(got, 3)
    rate, share, calls = (c.number(value) for value in got)
    c.require(not math.isclose(rate, 0.2 + 0.8 / 4) or not math.isclose(share, 0.2), "l03.share_before")
    c.require(not math.isclose(calls, rate), "l03.not_inverted")
    c.close(rate, 0.4)
    c.close(share, 0.5)
    c.close(calls, 2.5)
    rate, share, calls = c.call(fn, 0.2, 0.25)
    c.close(rate, 0.85, key="l03.below_one")
    c.close(share, 0.05 / 0.85, key="l03.below_one")
    for pi, w in ((0.1, 33.0), (0.9, 33.0), (0.1, 0.03), (0.4, 1.5), (0.4, 1.0)):
        want = equations.forecast(pi, ratio=w)
        c.close(c.call(fn, pi, w), (want.acceptance, want.share_above_after, want.calls_per_sample))


@check_forecast.wrong("l03.share_before")
def _(pi, w):
    rate, _, calls = forecast(pi, w)
    return rate, pi, calls


@check_forecast.wrong("l03.not_inverted")
def _(pi, w):
    rate, share, _ = forecast(pi, w)
    return rate, share, rate


@check_forecast.wrong("l03.below_one")
def _(pi, w):
    rate = pi + (1 - pi) / w
    return rate, pi / rate, 1 / rate


def push_step(delta, gradient, alpha, eps):
    """One step of projected sign ascent in the maximum norm."""
    return (delta + alpha * gradient.sign()).clamp(-eps, eps)


@exercise("l03.push_step", reference=push_step)
def check_push_step(c, fn):
    c.callable(fn)
    delta = torch.tensor([0.0, 0.09, -0.09, 0.05], dtype=torch.float64)
    gradient = torch.tensor([3.0, 0.2, -5.0, -0.4], dtype=torch.float64)
    got = c.call(fn, delta, gradient, 0.025, 0.1)
    c.tensor(got, shape=(4,), dtype=torch.float64)
    c.mistake("l03.no_sign", got=got, looks_like=(delta + 0.025 * gradient).clamp(-0.1, 0.1))
    c.mistake("l03.no_box", got=got, looks_like=delta + 0.025 * gradient.sign())
    c.mistake("l03.downhill", got=got, looks_like=(delta - 0.025 * gradient.sign()).clamp(-0.1, 0.1))
    c.hand(got, torch.tensor([0.025, 0.1, -0.1, 0.025], dtype=torch.float64))
    still = c.call(fn, torch.tensor([0.05, 0.02]), torch.tensor([0.0, 1.0]), 0.025, 0.1)
    c.close(still, torch.tensor([0.05, 0.045]))  # where the gradient is 0, nothing moves
    far = c.call(fn, torch.zeros(3), torch.ones(3), 5.0, 0.5)
    c.close(far, torch.full((3,), 0.5))
    delta, gradient = 0.1 * (2 * c.rand(4, 3, dtype=torch.float64) - 1), c.randn(4, 3, dtype=torch.float64)
    c.close(c.call(fn, delta, gradient, 0.025, 0.1), equations.push_step(delta, gradient, 0.025, 0.1))


@check_push_step.wrong("l03.no_sign")
def _(delta, gradient, alpha, eps):
    return (delta + alpha * gradient).clamp(-eps, eps)


@check_push_step.wrong("l03.no_box")
def _(delta, gradient, alpha, eps):
    return delta + alpha * gradient.sign()


@check_push_step.wrong("l03.downhill")
def _(delta, gradient, alpha, eps):
    return (delta - alpha * gradient.sign()).clamp(-eps, eps)


def vendi(features):
    """Vendi score (Friedman & Dieng 2023) with cosine similarity: exponential of the entropy of the eigenvalues."""
    unit = features.double() / features.double().norm(dim=1, keepdim=True)
    shares = torch.linalg.eigvalsh(unit @ unit.T / len(unit))
    shares = shares[shares > 1e-12]
    return float((-(shares * shares.log()).sum()).exp())


def _entropy(similarity, base=math.e):
    shares = torch.linalg.eigvalsh(similarity)
    shares = shares[shares > 1e-12]
    return float(-(shares * shares.log()).sum() / math.log(base))


@exercise("l03.vendi", reference=vendi)
def check_vendi(c, fn):
    c.callable(fn)
    a, b = torch.eye(2, dtype=torch.float64)
    pairs = torch.stack([a, a, b, b])
    c.number(c.call(fn, pairs))
    x = c.randn(12, 5, dtype=torch.float64)
    unit = x / x.norm(dim=1, keepdim=True)
    got = torch.tensor(float(c.call(fn, x)), dtype=torch.float64)

    def looks(value):
        return torch.tensor(value, dtype=torch.float64)

    c.mistake("l03.vendi_entropy", got=got, looks_like=looks(_entropy(unit @ unit.T / 12)))
    c.mistake("l03.vendi_lengths", got=got, looks_like=looks(math.exp(_entropy(x @ x.T / 12))))
    c.mistake("l03.vendi_bits", got=got, looks_like=looks(math.exp(_entropy(unit @ unit.T / 12, base=2))))
    c.hand(looks(float(c.call(fn, pairs))), looks(2.0), atol=1e-6)
    c.close(c.call(fn, 3 * torch.eye(6, dtype=torch.float64)), 6.0)
    c.close(c.call(fn, torch.ones(5, 3, dtype=torch.float64)), 1.0)
    c.close(got, vendi_score(x))


@check_vendi.wrong("l03.vendi_entropy")
def _(features):
    return math.log(vendi(features))


@check_vendi.wrong("l03.vendi_lengths")
def _(features):
    return math.exp(_entropy(features.double() @ features.double().T / len(features)))


@check_vendi.wrong("l03.vendi_bits")
def _(features):
    return math.exp(math.log(vendi(features)) / math.log(2))


def best_iterate(path, scores):
    """The iterate of the highest score of each picture."""
    return path[scores.argmax(dim=0), torch.arange(path.shape[1])]


@exercise("l03.best_iterate", reference=best_iterate)
def check_best_iterate(c, fn):
    c.callable(fn)
    path = torch.arange(12, dtype=torch.float64).reshape(3, 2, 2)  # [S, B, 2]
    scores = torch.tensor([[1.0, 5.0], [3.0, 4.0], [2.0, 4.0]], dtype=torch.float64)
    got = c.call(fn, path, scores)
    c.tensor(got, shape=(2, 2), dtype=torch.float64)
    longer = torch.arange(8, dtype=torch.float64).reshape(4, 2)
    apart = torch.tensor([[1.0, 9.0], [3.0, 4.0], [2.0, 1.0], [0.0, 5.0]], dtype=torch.float64)
    chosen = c.call(fn, longer, apart)
    c.mistake("l03.best_last", got=chosen, looks_like=longer[-1])
    c.mistake("l03.best_common", got=chosen, looks_like=longer[apart.sum(dim=1).argmax()])
    c.mistake("l03.best_start", got=chosen, looks_like=longer[1:][apart[1:].argmax(dim=0), torch.arange(2)])
    c.hand(got, torch.tensor([[4.0, 5.0], [2.0, 3.0]], dtype=torch.float64))
    path, scores = c.randn(6, 5, 3, 2, 2, dtype=torch.float64), c.randn(6, 5, dtype=torch.float64)
    c.close(c.call(fn, path, scores), torch.stack([path[int(scores[:, i].argmax()), i] for i in range(5)]))
    alone, below = c.randn(4, 1, 3), -1 - c.rand(4, 1)  # one picture, all scores negative
    c.close(c.call(fn, alone, below), alone[below.argmax(dim=0)[0]])


@check_best_iterate.wrong("l03.best_last")
def _(path, scores):
    return path[-1]


@check_best_iterate.wrong("l03.best_common")
def _(path, scores):
    return path[scores.sum(dim=1).argmax()]


@check_best_iterate.wrong("l03.best_start")
def _(path, scores):
    return path[1:][scores[1:].argmax(dim=0), torch.arange(path.shape[1])]


def fixed_share(pi, w_real, w_fake=1.0):
    """Share above tau at the fixed point of weighted training."""
    above = pi * w_real / w_fake
    return above / (above + 1 - pi)


@exercise("l03.fixed_share", reference=fixed_share)
def check_fixed_share(c, fn):
    c.callable(fn)
    one, both = c.number(c.call(fn, 0.5, 4.0)), c.number(c.call(fn, 0.5, 4.0, 0.25))
    c.require(not math.isclose(both, 0.5) or not math.isclose(one, 0.8), "l03.fixed_product")
    c.require(not math.isclose(one, 2.0), "l03.fixed_no_share")
    c.require(not math.isclose(one, 4.0), "l03.fixed_odds")
    c.close(one, 0.8)
    c.close(both, 16 / 17)
    for pi, w_real, w_fake in ((0.3, 33.0, 1.0), (0.3, 0.03, 1.0), (0.2, 33.0, 1 / 33), (0.7, 2.0, 2.0)):
        law = torch.tensor([1 - pi, pi], dtype=torch.float64)
        seen = [torch.tensor([1.0, w], dtype=torch.float64) for w in (w_real, w_fake)]
        want = float(equations.fixed_point(law, w_real=seen[0], w_fake=seen[1])[1])
        c.close(c.call(fn, pi, w_real, w_fake), want)


@check_fixed_share.wrong("l03.fixed_product")
def _(pi, w_real, w_fake=1.0):
    return fixed_share(pi, w_real * w_fake)


@check_fixed_share.wrong("l03.fixed_no_share")
def _(pi, w_real, w_fake=1.0):
    return pi * w_real / w_fake


@check_fixed_share.wrong("l03.fixed_odds")
def _(pi, w_real, w_fake=1.0):
    return pi * w_real / w_fake / (1 - pi)


def weighted_mean(values, weights):
    """Self-normalised importance sampling: mean, its standard error, and the effective number of samples."""
    total = weights.sum()
    mean = (weights * values).sum() / total
    error = (weights.square() * (values - mean).square()).sum().sqrt() / total
    return float(mean), float(error), float(total.square() / weights.square().sum())


@exercise("l03.weighted_mean", reference=weighted_mean)
def check_weighted_mean(c, fn):
    c.callable(fn)
    values, weights = c.rand(9, dtype=torch.float64), c.rand(9, dtype=torch.float64) + 0.1
    got = c.call(fn, values, weights)
    c.length(got, 3)
    got = [c.number(one) for one in got]
    share = weights / weights.sum()
    mean = float(share @ values)
    c.mistake("l03.weights_not_normalised", got=got[0], looks_like=float((weights * values).mean()))
    c.mistake("l03.all_count", got=got[2], looks_like=9.0)
    spread = float((share @ (values - mean).square()).sqrt())
    c.mistake("l03.spread_not_error", got=got[1], looks_like=spread)
    c.mistake("l03.weights_once", got=got[1], looks_like=spread / 3)
    example = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64), torch.tensor([1.0, 1.0, 0.25, 0.25]).double()
    c.hand([c.number(one) for one in c.call(fn, *example)], [0.5, 2.125**0.5 / 5, 50 / 17])
    c.close(got, [mean, float((share.square() @ (values - mean).square()).sqrt()), 1 / float(share.square().sum())])
    scaled = [c.number(one) for one in c.call(fn, values, 10 * weights)]
    c.close(scaled, got, key="l03.scale_matters")


@check_weighted_mean.wrong("l03.weights_not_normalised")
def _(values, weights):
    mean = (weights * values).mean()
    error = (weights.square() * (values - mean).square()).sum().sqrt() / weights.sum()
    return float(mean), float(error), float(weights.sum().square() / weights.square().sum())


@check_weighted_mean.wrong("l03.all_count")
def _(values, weights):
    mean = (weights * values).sum() / weights.sum()
    error = (weights.square() * (values - mean).square()).sum().sqrt() / weights.sum()
    return float(mean), float(error), float(len(values))


@check_weighted_mean.wrong("l03.spread_not_error")
def _(values, weights):
    share = weights / weights.sum()
    mean = (share * values).sum()
    spread = (share * (values - mean).square()).sum().sqrt()
    return float(mean), float(spread), float(1 / share.square().sum())


@check_weighted_mean.wrong("l03.weights_once")
def _(values, weights):
    share = weights / weights.sum()
    mean = (share * values).sum()
    error = (share * (values - mean).square()).sum().sqrt() / len(values) ** 0.5
    return float(mean), float(error), float(1 / share.square().sum())
