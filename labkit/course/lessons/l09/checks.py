"""Exercises of lesson 09."""

import math

from scipy.stats import beta, binom, hypergeom

from labkit import inspection
from labkit.course.checks import exercise


def zero_failure_n(rate, confidence):
    """n = ceil(ln(1 - C) / ln(1 - p)): so many good pictures in a row refute a rate above p."""
    return inspection.zero_failure_n(rate, confidence)


@exercise("l09.zero_failure_n", reference=zero_failure_n, shows=(inspection.zero_failure_n,))
def check_zero_failure_n(c, fn):
    c.callable(fn)
    got = c.call(fn, 0.02, 0.95)
    c.number(got)
    c.mistake("l09.log_of_confidence", got=got, looks_like=math.ceil(math.log(0.95) / math.log(0.98)))
    c.mistake("l09.rounded_down", got=got, looks_like=148)
    c.mistake("l09.rounded_down", got=got, looks_like=math.log(0.05) / math.log(0.98))
    c.mistake("l09.rule_of_three", got=got, looks_like=150)
    c.hand(c.call(fn, 0.5, 0.75), 2)
    c.close(got, 149)
    c.close(c.call(fn, 0.05, 0.95), 59)
    c.close(c.call(fn, 0.01, 0.9), 230)


@check_zero_failure_n.wrong("l09.log_of_confidence")
def _(rate, confidence):
    return math.ceil(math.log(confidence) / math.log(1 - rate))


@check_zero_failure_n.wrong("l09.rounded_down")
def _(rate, confidence):
    return math.floor(math.log(1 - confidence) / math.log(1 - rate))


@check_zero_failure_n.wrong("l09.rule_of_three")
def _(rate, confidence):
    return math.ceil(3 / rate)


def lot_acceptance(lot, bad, n, c):
    """P(at most c bad pictures among n drawn without replacement), hypergeometric, by counting."""
    ways = sum(math.comb(bad, d) * math.comb(lot - bad, n - d) for d in range(c + 1))
    return ways / math.comb(lot, n)


@exercise("l09.lot_acceptance", reference=lot_acceptance)
def check_lot_acceptance(c, fn):
    c.callable(fn)
    got = c.call(fn, 40, 6, 12, 2)
    c.number(got, 0, 1)
    c.mistake("l09.with_replacement", got=got, looks_like=binom.cdf(2, 12, 6 / 40))
    c.mistake("l09.exactly_c", got=got, looks_like=hypergeom.pmf(2, 40, 6, 12))
    c.mistake("l09.below_c", got=got, looks_like=hypergeom.cdf(1, 40, 6, 12))
    c.mistake("l09.other_way", got=got, looks_like=1 - hypergeom.cdf(2, 40, 6, 12))
    c.hand(c.call(fn, 10, 2, 3, 0), 56 / 120)
    c.close(got, float(hypergeom.cdf(2, 40, 6, 12)))
    c.close(c.call(fn, 20, 0, 5, 0), 1.0)
    c.close(c.call(fn, 20, 1, 5, 2), 1.0)  # fewer bad pictures than c


@check_lot_acceptance.wrong("l09.with_replacement")
def _(lot, bad, n, c):
    return float(binom.cdf(c, n, bad / lot))


@check_lot_acceptance.wrong("l09.exactly_c")
def _(lot, bad, n, c):
    return math.comb(bad, c) * math.comb(lot - bad, n - c) / math.comb(lot, n)


@check_lot_acceptance.wrong("l09.below_c")
def _(lot, bad, n, c):
    return sum(math.comb(bad, d) * math.comb(lot - bad, n - d) for d in range(c)) / math.comb(lot, n)


@check_lot_acceptance.wrong("l09.other_way")
def _(lot, bad, n, c):
    return 1 - lot_acceptance(lot, bad, n, c)


def upper_bound(d, n, confidence):
    """The rate p with P(at most d bad of n | p) = 1 - confidence (Clopper & Pearson 1934), by halving."""
    low, high = d / n, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        chance = sum(math.comb(n, k) * middle**k * (1 - middle) ** (n - k) for k in range(d + 1))
        low, high = (middle, high) if chance > 1 - confidence else (low, middle)
    return high


@exercise("l09.upper_bound", reference=upper_bound)
def check_upper_bound(c, fn):
    c.callable(fn)
    got = c.call(fn, 3, 40, 0.9)
    c.number(got, 0, 1)
    c.mistake("l09.observed_rate", got=got, looks_like=3 / 40)
    c.mistake("l09.two_sided", got=got, looks_like=beta.ppf(0.95, 4, 37))
    c.mistake("l09.lower_end", got=got, looks_like=beta.ppf(0.1, 3, 38))
    c.hand(c.call(fn, 0, 1, 0.95), 0.95, atol=1e-6)
    c.close(got, float(beta.ppf(0.9, 4, 37)), atol=1e-6)
    c.close(c.call(fn, 0, 80, 0.95), 1 - 0.05 ** (1 / 80), atol=1e-6)
    every = c.call(fn, 5, 5, 0.95)  # a quantile of a beta distribution is NaN here: the mistake
    c.mistake("l09.all_bad", when=isinstance(every, float) and math.isnan(every))
    c.close(every, 1.0, atol=1e-6, key="l09.all_bad")


@check_upper_bound.wrong("l09.observed_rate")
def _(d, n, confidence):
    return d / n


@check_upper_bound.wrong("l09.two_sided")
def _(d, n, confidence):
    return 1.0 if d == n else float(beta.ppf(1 - (1 - confidence) / 2, d + 1, n - d))


@check_upper_bound.wrong("l09.lower_end")
def _(d, n, confidence):
    return float(beta.ppf(1 - confidence, d, n - d + 1)) if d else 0.95


@check_upper_bound.wrong("l09.all_bad")
def _(d, n, confidence):
    return float(beta.ppf(confidence, d + 1, n - d))


def true_rate(observed, sensitivity, specificity):
    """p = (observed + Sp - 1) / (Se + Sp - 1), cut to 0..1 (Rogan & Gladen 1978)."""
    rate = (observed + specificity - 1) / (sensitivity + specificity - 1)
    return min(1.0, max(0.0, rate))


@exercise("l09.true_rate", reference=true_rate)
def check_true_rate(c, fn):
    c.callable(fn)
    got = c.call(fn, 0.06, 0.9, 0.97)
    c.number(got)
    c.mistake("l09.misses_only", got=got, looks_like=0.06 / 0.9)
    c.mistake("l09.exchanged", got=got, looks_like=(0.06 + 0.9 - 1) / 0.87)
    c.mistake("l09.exchanged", got=got, looks_like=0.0)
    c.mistake("l09.not_divided", got=got, looks_like=0.06 + 0.97 - 1)
    c.hand(c.call(fn, 0.5, 0.75, 0.75), 0.5)
    c.close(got, 0.03 / 0.87)
    c.close(c.call(fn, 0.01, 0.9, 0.97), 0.0, key="l09.not_cut")
    c.close(c.call(fn, 0.98, 0.9, 0.97), 1.0, key="l09.not_cut")


@check_true_rate.wrong("l09.misses_only")
def _(observed, sensitivity, specificity):
    return observed / sensitivity


@check_true_rate.wrong("l09.exchanged")
def _(observed, sensitivity, specificity):
    return min(1.0, max(0.0, (observed + sensitivity - 1) / (sensitivity + specificity - 1)))


@check_true_rate.wrong("l09.not_cut")
def _(observed, sensitivity, specificity):
    return (observed + specificity - 1) / (sensitivity + specificity - 1)


@check_true_rate.wrong("l09.not_divided")
def _(observed, sensitivity, specificity):
    return min(1.0, max(0.0, observed + specificity - 1))


def wealth(x, p0, bet):
    """M_t = prod_{i <= t} (1 + bet (x_i - p0)): a fair game if the rate is p0 (testing by betting)."""
    money, course = 1.0, []
    for seen in x:
        money *= 1 + bet * (seen - p0)
        course.append(money)
    return course


@exercise("l09.wealth", reference=wealth)
def check_wealth(c, fn):
    c.callable(fn)

    def numbers(x, p0, bet):
        got = c.call(fn, list(x), p0, bet)
        c.mistake("l09.last_only", when=isinstance(got, int | float))
        c.length(got, len(x))
        return [c.number(value) for value in got]

    x, p0, bet = [0, 1, 1, 0, 1], 0.2, 1.5
    got = numbers(x, p0, bet)
    factors = [1 + bet * (value - p0) for value in x]
    c.mistake("l09.single_bets", when=all(abs(a - b) < 1e-9 for a, b in zip(got, factors, strict=True)))
    added = [1 + sum(bet * (value - p0) for value in x[: t + 1]) for t in range(5)]
    c.mistake("l09.added_up", when=all(abs(a - b) < 1e-9 for a, b in zip(got, added, strict=True)))
    reverse = [math.prod(1 + bet * (p0 - value) for value in x[: t + 1]) for t in range(5)]
    c.mistake("l09.wrong_side", when=all(abs(a - b) < 1e-9 for a, b in zip(got, reverse, strict=True)))
    c.hand(tuple(numbers([1, 0], 0.25, 2.0)), (2.5, 1.25))
    c.close(tuple(got), tuple(math.prod(factors[: t + 1]) for t in range(5)))
    c.close(tuple(numbers([0, 1, 0], 0.2, 0.0)), (1.0, 1.0, 1.0))


@check_wealth.wrong("l09.single_bets")
def _(x, p0, bet):
    return [1 + bet * (value - p0) for value in x]


@check_wealth.wrong("l09.added_up")
def _(x, p0, bet):
    return [1 + sum(bet * (value - p0) for value in x[: t + 1]) for t in range(len(x))]


@check_wealth.wrong("l09.wrong_side")
def _(x, p0, bet):
    return [math.prod(1 + bet * (p0 - value) for value in x[: t + 1]) for t in range(len(x))]


@check_wealth.wrong("l09.last_only")
def _(x, p0, bet):
    return math.prod(1 + bet * (value - p0) for value in x)


def mean_inspected(lot, bad, n, c):
    """Pictures looked at per lot if refused lots are sorted: n + (1 - Pa)(N - n) (average total inspection, ATI)."""
    return n + (1 - lot_acceptance(lot, bad, n, c)) * (lot - n)


@exercise("l09.mean_inspected", reference=mean_inspected, shows=(lot_acceptance,))
def check_mean_inspected(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, 40, 6, 12, 2))
    passes = float(hypergeom.cdf(2, 40, 6, 12))
    c.mistake("l09.sorts_accepted", got=got, looks_like=12 + passes * 28)
    c.mistake("l09.sample_forgotten", got=got, looks_like=(1 - passes) * 28)
    c.mistake("l09.sample_twice", got=got, looks_like=12 + (1 - passes) * 40)
    c.hand(c.call(fn, 10, 2, 3, 0), 3 + 64 / 120 * 7)
    c.close(got, 12 + (1 - passes) * 28)
    c.close(c.call(fn, 40, 0, 12, 2), 12.0)


@check_mean_inspected.wrong("l09.sorts_accepted")
def _(lot, bad, n, c):
    return n + lot_acceptance(lot, bad, n, c) * (lot - n)


@check_mean_inspected.wrong("l09.sample_forgotten")
def _(lot, bad, n, c):
    return (1 - lot_acceptance(lot, bad, n, c)) * (lot - n)


@check_mean_inspected.wrong("l09.sample_twice")
def _(lot, bad, n, c):
    return n + (1 - lot_acceptance(lot, bad, n, c)) * lot
