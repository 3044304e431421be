"""The statistics of acceptance: how many pictures to look at, what may be concluded, and when to stop looking.

    plans           `zero_failure_n`, `two_point_plan`; `acceptance`: the operating characteristic (OC)
    what ships      `average_outgoing_quality` (AOQ), `outgoing_quality_limit` (AOQL), `average_total_inspection` (ATI)
    intervals       `clopper_pearson`, `upper_bound`, `lot_upper_bound`; Wilson's is `labkit.metrics.wilson_interval`
    inspectors      `true_rate`: what imperfect eyes saw, corrected; `majority_rate`
    one at a time   `sprt` (Wald 1945), `e_process` (valid whenever one looks), `csp1` (Dodge 1943)
    thresholds      `certification_p_value` (learn then test, Angelopoulos et al., arXiv 2110.01052)

Symbols: N lot size (`lot`), n sample size, c acceptance number, d defectives in the sample, D defectives in the lot, p
rate of defectives, Pa probability that a lot is accepted. Rates are shares (0.02 is 2 %).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.stats import beta, binom, hypergeom

from labkit.metrics.checks import whole_number

ROUNDING = 1e-9  # 0.07 x 100 is 7.000000000000001: a share of a lot is rounded before it is cut to whole pictures


def check_share(name: str, value: float, *, ends: bool = False) -> float:
    """`value` as a float in (0, 1), with `ends` in [0, 1]."""
    value = float(value)
    if not (0 <= value <= 1 if ends else 0 < value < 1):
        raise ValueError(f"{name} = {value:g} must be {'from 0 to' if ends else 'between 0 and'} 1: 2 % is 0.02")
    return value


def check_count(name: str, value: object, low: int, high: int, what: str) -> int:
    """`value` as an int from `low` to `high`; `what` says what the upper end is."""
    value = whole_number(name, value)
    if not low <= value <= high:
        raise ValueError(f"{name} = {value} must be from {low} to {high} ({what})")
    return value


def smallest(condition: Callable[[int], bool], low: int, high: int) -> int | None:
    """The first n in low..high for which a condition holds that stays true from there on; None if it never does."""
    if low > high or not condition(high):
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if condition(middle) else (middle + 1, high)
    return low


# ---- single plans: look at n pictures, accept the lot if at most c are defective ------------------------------------


def acceptance(rate: object, *, n: int, c: int, lot: int | None = None) -> np.ndarray | float:
    """Pa(p), the operating characteristic: how often a lot of quality p passes.

        Pa = sum_{d <= c} binomial(d; n, p);   of a lot of N pictures, D = p N of them bad: hypergeometric(d; N, D, n)

    Args:
        rate: p, a number or an array. With `lot` it is rounded to whole pictures.
        n: sample size. c: acceptance number (0 <= c). lot: N; None: the lot is so large that n does not count.

    Raises:
        ValueError: a rate outside 0..1, a negative c, or a sample larger than the lot.
    """
    n, c = check_count("n", n, 1, lot or 10**9, "the lot"), check_count("c", c, 0, 10**9, "no defectives is 0")
    p = np.asarray(rate, dtype=float)
    if not ((p >= 0) & (p <= 1)).all():
        raise ValueError("rates must lie in 0..1: 2 % is 0.02")
    pa = binom.cdf(c, n, p) if lot is None else hypergeom.cdf(c, lot, np.rint(p * lot).astype(int), n)
    return float(pa) if p.ndim == 0 else pa


def zero_failure_n(rate: float, confidence: float = 0.95, *, lot: int | None = None) -> int:
    """How many pictures must all be good to be `confidence` sure that at most `rate` are bad.

        n = ceil( ln(1 - C) / ln(1 - p) );   of a lot of N: the smallest n for which a lot with one bad picture more
        than p N passes with probability <= 1 - C (hypergeometric)

    2 % and 95 %: 149; of a lot of 500: 119.

    Raises:
        ValueError: a rate or confidence outside (0, 1), or a lot without room for more than `rate`.
    """
    rate, miss = check_share("rate", rate), 1 - check_share("confidence", confidence)
    if lot is None:
        return math.ceil(math.log(miss) / math.log1p(-rate) - ROUNDING)
    bad = math.floor(rate * check_count("lot", lot, 1, 10**9, "pictures") + ROUNDING) + 1
    if bad > lot:
        raise ValueError(f"a lot of {lot} cannot hold more than {rate:g} of bad pictures: inspect all of it")
    return smallest(lambda n: hypergeom.cdf(0, lot, bad, n) <= miss, 1, lot)  # all of it always suffices


def two_point_plan(
    good: float, bad: float, *, alpha: float = 0.05, beta_risk: float = 0.1, lot: int | None = None
) -> tuple[int, int]:
    """The smallest (n, c) that both sides can sign: Pa(good) >= 1 - alpha and Pa(bad) <= beta.

    Args:
        good: p1, quality that the maker wants accepted. bad: p2, quality that the customer wants refused.
        alpha: the maker's risk. beta_risk: the customer's risk beta.
        lot: N; then Pa is hypergeometric, with floor(p1 N) and ceil(p2 N) bad pictures.

    Returns:
        (n, c). For 1 % and 5 %: (132, 3).

    Raises:
        ValueError: not 0 < good < bad < 1, or two rates so close that more than ten million pictures tell them apart.
    """
    good, bad = check_share("good", good), check_share("bad", bad)
    alpha, beta_risk = check_share("alpha", alpha), check_share("beta_risk", beta_risk)
    if not good < bad:
        raise ValueError(f"good = {good:g} must be below bad = {bad:g}: a plan tells good lots from bad ones")
    if lot is None:
        limit = 10**7

        def passes(c: int, n: int, which: float) -> float:
            return binom.cdf(c, n, which)
    else:
        limit = check_count("lot", lot, 1, 10**9, "pictures")
        counts = {good: math.floor(good * lot + ROUNDING), bad: math.ceil(bad * lot - ROUNDING)}

        def passes(c: int, n: int, which: float) -> float:
            return hypergeom.cdf(c, lot, counts[which], n)

    for c in range(limit):
        n = smallest(lambda n, c=c: passes(c, n, bad) <= beta_risk, c + 1, limit)
        if n is None:
            break
        if passes(c, n, good) >= 1 - alpha:
            return n, c
    raise ValueError(f"no plan of up to {limit} pictures tells {good:g} from {bad:g}: take them further apart")


def average_outgoing_quality(rate: object, *, n: int, c: int, lot: int) -> np.ndarray | float:
    """AOQ = p Pa (N - n) / N: the rate of bad pictures that leave the house if refused lots are sorted picture by
    picture and bad ones are replaced ("rectification")."""
    return np.asarray(rate, dtype=float) * acceptance(rate, n=n, c=c) * (lot - n) / lot


def outgoing_quality_limit(*, n: int, c: int, lot: int) -> tuple[float, float]:
    """(AOQL, p): the worst average outgoing quality, and the incoming rate p at which it happens.

    Very good lots leave good; very bad ones are refused and sorted. The worst lies in between.
    """
    return _peak(lambda p: float(average_outgoing_quality(p, n=n, c=c, lot=lot)))


def average_total_inspection(rate: object, *, n: int, c: int, lot: int) -> np.ndarray | float:
    """ATI = n + (1 - Pa)(N - n): pictures looked at per lot, the sorting of refused lots included."""
    return n + (1 - acceptance(rate, n=n, c=c)) * (lot - n)


def _peak(function: Callable[[float], float]) -> tuple[float, float]:
    """(value, place) of the maximum in 0..1 of a function with one peak, found near the best point of a grid."""
    grid = np.concatenate([np.geomspace(1e-7, 0.1, 400), np.linspace(0.101, 1, 100)])
    best = int(np.argmax([function(p) for p in grid]))
    low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found = minimize_scalar(lambda p: -function(p), bounds=(low, high), method="bounded", options={"xatol": 1e-12})
    return -float(found.fun), float(found.x)


# ---- intervals ------------------------------------------------------------------------------------------------------


def clopper_pearson(d: int, n: int, *, level: float = 0.95) -> tuple[float, float]:
    """The exact two-sided interval of a rate: covers it at least `level` of the time, whatever it is (2 of 80: 0.30 %
    to 8.74 %). Clopper & Pearson 1934."""
    tail = (1 - check_share("level", level)) / 2
    d, n = _defects(d, n)
    low = 0.0 if d == 0 else float(beta.ppf(tail, d, n - d + 1))
    return low, upper_bound(d, n, confidence=1 - tail)


def upper_bound(d: int, n: int, *, confidence: float = 0.95) -> float:
    """The one-sided bound: a rate above it shows d or fewer defectives in n with probability < 1 - confidence.

    beta.ppf(C, d + 1, n - d): 0 of 59 gives 4.95 %, 0 of 80 gives 3.68 % (the "rule of three", 3 / n).
    """
    check_share("confidence", confidence)
    d, n = _defects(d, n)
    return 1.0 if d == n else float(beta.ppf(confidence, d + 1, n - d))


def lot_upper_bound(d: int, n: int, *, lot: int, confidence: float = 0.95) -> int:
    """The largest number D of bad pictures in the lot of N that the sample does not refute: of all larger numbers, each
    shows d or fewer with probability <= 1 - confidence (hypergeometric, exact)."""
    miss = 1 - check_share("confidence", confidence)
    d, n = _defects(d, n)
    check_count("n", n, 1, lot, "the lot")
    most = lot - (n - d)  # the good ones of the sample are known
    first = smallest(lambda bad: hypergeom.cdf(d, lot, bad, n) <= miss, d, most)
    return most if first is None else first - 1


def _defects(d: object, n: object) -> tuple[int, int]:
    n = check_count("n", n, 1, 10**9, "pictures")
    return check_count("d", d, 0, n, "the sample"), n


# ---- inspectors -----------------------------------------------------------------------------------------------------


def true_rate(observed: float, *, sensitivity: float, specificity: float) -> float:
    """p = (observed + Sp - 1) / (Se + Sp - 1), cut to 0..1: the rate behind what imperfect inspectors reported (Rogan &
    Gladen 1978).

    Args:
        observed: share reported as defective. sensitivity: Se, share of defectives that are noticed.
        specificity: Sp, share of good pictures that are let through. Measure both with planted pictures.

    Raises:
        ValueError: Se + Sp <= 1: such an inspector tells less than a coin.
    """
    observed = check_share("observed", observed, ends=True)
    se, sp = (
        check_share("sensitivity", sensitivity, ends=True),
        check_share("specificity", specificity, ends=True),
    )
    if se + sp <= 1:
        raise ValueError(
            f"sensitivity {se:g} + specificity {sp:g} must exceed 1: a coin reaches 1; train the inspector"
        )
    return min(1.0, max(0.0, (observed + sp - 1) / (se + sp - 1)))


def majority_rate(rate: float, voters: int) -> float:
    """How often the majority of an odd number of independent voters is right, each right with probability `rate`
    (five of 65 %: 76 %). Never compare the rate of one vote with the rate of a majority."""
    if check_count("voters", voters, 1, 10**6, "people") % 2 == 0:
        raise ValueError(f"voters = {voters} can tie: use an odd number")
    return float(binom.sf(voters // 2, voters, check_share("rate", rate, ends=True)))


def design_effect(cluster: float, correlation: float) -> float:
    """1 + (m - 1) rho: by how much m correlated pictures of one prompt inflate the sample that is needed (Kish)."""
    return 1 + (cluster - 1) * correlation


# ---- one picture at a time ------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SPRT:
    """Wald's sequential test as two lines over n: accept at d <= slope n - accept_at, reject at d >= slope n +
    reject_at; at `truncate` pictures it decides by the nearer line.

    Attributes:
        accept_at: h1. reject_at: h2. slope: s. truncate: the last n; None: no end.
    """

    accept_at: float
    reject_at: float
    slope: float
    truncate: int | None = None

    def decide(self, d: int, n: int) -> str:
        """ "accept", "reject" or "go on" after n pictures with d defectives."""
        if d >= self.slope * n + self.reject_at:
            return "reject"
        if d <= self.slope * n - self.accept_at:
            return "accept"
        if self.truncate is None or n < self.truncate:
            return "go on"
        return "accept" if d <= self.slope * n + (self.reject_at - self.accept_at) / 2 else "reject"

    def first_acceptance(self) -> int:
        """The earliest n at which a lot can be accepted: all pictures so far are good."""
        return math.ceil(self.accept_at / self.slope)

    def performance(self, rate: float, *, horizon: int = 20_000) -> tuple[float, float]:
        """(probability of acceptance, mean number of pictures), exact by the distribution of d after each n.

        Without `truncate` the walk is followed until less than 1e-12 of the probability is undecided.

        Raises:
            ValueError: more than that is undecided after `horizon` pictures.
        """
        p, accepted, looked = check_share("rate", rate, ends=True), 0.0, 0.0
        alive = np.ones(1)  # alive[d]: still undecided, d defectives so far
        for n in range(1, horizon + 1):
            looked += alive.sum()
            alive = np.append(alive * (1 - p), 0.0) + np.append(0.0, alive * p)
            for d in np.flatnonzero(alive):
                if (decision := self.decide(d, n)) != "go on":
                    accepted += alive[d] * (decision == "accept")
                    alive[d] = 0.0
            if alive.sum() < 1e-12:
                return float(accepted), float(looked)
        raise ValueError(f"the test is undecided after {horizon} pictures: give it a truncate")


def sprt(good: float, bad: float, *, alpha: float = 0.05, beta_risk: float = 0.1, truncate: int | None = None) -> SPRT:
    """Wald's sequential probability ratio test of p1 against p2 (Wald 1945).

        g = ln[p2 (1 - p1) / (p1 (1 - p2))],  h1 = ln[(1 - alpha) / beta] / g,  h2 = ln[(1 - beta) / alpha] / g,
        s = ln[(1 - p1) / (1 - p2)] / g

    Args:
        good: p1. bad: p2. alpha, beta_risk: risks of refusing p1 and of accepting p2.
        truncate: where to stop in any case; three times the single plan's n costs next to nothing.
    """
    p1, p2 = check_share("good", good), check_share("bad", bad)
    if not p1 < p2:
        raise ValueError(f"good = {p1:g} must be below bad = {p2:g}: the test tells good lots from bad ones")
    alpha, beta_risk = check_share("alpha", alpha), check_share("beta_risk", beta_risk)
    if truncate is not None:
        check_count("truncate", truncate, 1, 10**9, "pictures")
    g = math.log(p2 * (1 - p1) / (p1 * (1 - p2)))
    return SPRT(
        accept_at=math.log((1 - alpha) / beta_risk) / g,
        reject_at=math.log((1 - beta_risk) / alpha) / g,
        slope=math.log((1 - p1) / (1 - p2)) / g,
        truncate=truncate,
    )


E_BETS = (0.05, 0.1, 0.2, 0.4, 0.8)  # as shares of the largest bet that cannot lose everything


def e_process(x: Sequence[int], p0: float, *, side: str = "above", bets: Sequence[float] = E_BETS) -> np.ndarray:
    """Wealth M_t of a gambler who bets against a claim about the rate; M_t >= 1 / alpha refutes it at level alpha,
    whenever one looks and however often (Ville's inequality; testing by betting, Waudby-Smith & Ramdas 2024).

        M_t = mean over bets of  prod_{i <= t} (1 + lambda (x_i - p0))      against "p <= p0" (side "above")
                                 prod_{i <= t} (1 + lambda (p0 - x_i))      against "p >= p0" (side "below")

    Args:
        x: [T] 1 defective, 0 good, in the order of inspection. p0: the claim.
        side: "above" raises the alarm (the rate is more than p0), "below" releases (it is less).
        bets: lambda as shares of its largest value, 1 / p0 or 1 / (1 - p0). Their mean is a fair game as well, and
            no one needs to guess the right one.

    Returns:
        M [T] float64; start is 1.
    """
    p0 = check_share("p0", p0)
    x = np.asarray(x, dtype=float)
    if x.ndim != 1 or not np.isin(x, (0.0, 1.0)).all():
        raise ValueError("x must be a 1-D sequence of 0 (good) and 1 (defective)")
    if side not in ("above", "below"):
        raise ValueError(f'side = {side!r} must be "above" (alarm) or "below" (release)')
    if not len(bets) or not all(0 <= bet < 1 for bet in bets):
        raise ValueError(f"bets = {tuple(bets)} must be shares in [0, 1): who bets everything cannot come back")
    gain, most = (x - p0, 1 / p0) if side == "above" else (p0 - x, 1 / (1 - p0))
    wealth = np.cumsum(np.log1p(np.outer(np.asarray(bets) * most, gain)), axis=1)  # [bets, T], log
    return np.exp(np.minimum(wealth, 700)).mean(axis=0)  # [T]; exp(710) is no float any more


@dataclass(frozen=True)
class CSP1:
    """What Dodge's continuous plan does at one rate: share of pictures inspected, and average outgoing quality."""

    inspected: float
    outgoing: float


def csp1(rate: float, *, clearance: int, fraction: float) -> CSP1:
    """Dodge's continuous sampling plan CSP-1 (1943): look at every picture until i in a row are good, then at a
    fraction f at random; at the first defective, back to every picture.

        u = (1 - q^i) / (p q^i)  pictures in the first phase,  v = 1 / (f p)  in the second,  q = 1 - p
        inspected F = (u + f v) / (u + v),   outgoing quality p (1 - F)

    Args:
        rate: p in (0, 1). clearance: i. fraction: f in (0, 1].
    """
    p, i = check_share("rate", rate), check_count("clearance", clearance, 1, 10**9, "pictures")
    f = check_share("fraction", fraction, ends=True)
    if f == 0:
        raise ValueError("fraction = 0 never finds a defective again: inspect at least some")
    clean = (1 - p) ** i  # q^i
    # F = (u + f v) / (u + v), numerator and denominator times p q^i
    inspected = 1 / (1 - clean + clean / f)
    return CSP1(inspected=inspected, outgoing=p * (1 - inspected))


def csp1_limit(*, clearance: int, fraction: float) -> tuple[float, float]:
    """(AOQL, p) of CSP-1: i = 100 and f = 10 % never let more than 1.09 % out on average."""
    return _peak(lambda p: csp1(p, clearance=clearance, fraction=fraction).outgoing if p < 1 else 0.0)


# ---- thresholds -----------------------------------------------------------------------------------------------------


def certification_p_value(k: int, n: int, *, alpha: float) -> float:
    """P(at most k defectives among n | rate = alpha) = binom.cdf(k, n, alpha): how surprising so few defectives would
    be if the threshold let more than alpha through (learn then test, arXiv 2110.01052).

    3 of 300 at 3 %: 0.0199, certified at 5 %; 5 of 300: 0.112, not. Nobody above the threshold (n = 0) proves nothing.
    """
    if check_count("n", n, 0, 10**9, "pictures") == 0:
        return 1.0
    return float(binom.cdf(check_count("k", k, 0, n, "the accepted"), n, check_share("alpha", alpha)))
