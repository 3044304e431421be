"""Exercises of lesson 02."""

import math

import torch

from labkit.course.checks import exercise


def frechet(mean_1, cov_1, mean_2, cov_2):
    """|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2) (Dowson & Landau 1982; Heusel et al. 2017, eq. 6)."""
    values, vectors = torch.linalg.eigh(cov_1)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T  # S1^(1/2)
    product = torch.linalg.eigvalsh(root @ cov_2 @ root)  # the eigenvalues of S1 S2
    covariance_term = cov_1.trace() + cov_2.trace() - 2 * product.clamp(min=0).sqrt().sum()
    return (mean_1 - mean_2).square().sum() + covariance_term


@exercise("l02.frechet", reference=frechet)
def check_frechet(c, fn):
    c.callable(fn)
    x, y = c.randn(40, 3, dtype=torch.float64), c.randn(40, 3, dtype=torch.float64)
    y = y @ torch.tensor([[2.0, 0.5, 0.0], [0.0, 1.0, -0.7], [0.3, 0.0, 0.5]], dtype=torch.float64) + 3
    m1, s1, m2, s2 = x.mean(0), torch.cov(x.T), y.mean(0), torch.cov(y.T)
    got = c.call(fn, m1, s1, m2, s2)
    c.number(got)
    gap, traces = (m1 - m2).square().sum(), s1.trace() + s2.trace()
    root = torch.linalg.eigvals(s1 @ s2).sqrt().real.sum()
    c.mistake("l02.no_two", got=got, looks_like=gap + traces - root)
    c.mistake("l02.elementwise", got=got, looks_like=gap + traces - 2 * (s1.diagonal() * s2.diagonal()).sqrt().sum())
    c.mistake("l02.not_squared", got=got, looks_like=gap.sqrt() + traces - 2 * root)
    zero = torch.zeros(3, dtype=torch.float64)
    small, large = (torch.tensor(d, dtype=torch.float64).diag() for d in ([1.0, 4.0, 9.0], [4.0, 9.0, 16.0]))
    c.hand(c.call(fn, zero, small, zero, large), 3.0)
    c.close(got, float(gap + traces - 2 * root))
    flat = torch.ones(3, 3, dtype=torch.float64)
    c.close(c.call(fn, zero, flat, zero + 1, flat), 3.0)  # covariances of rank one
    few, others = (torch.cov(c.randn(16, 8, dtype=torch.float64)) for _ in range(2))  # 8 pictures, 16 dimensions
    values, vectors = torch.linalg.eigh(few)
    half = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    root, none = torch.linalg.eigvalsh(half @ others @ half).clamp(min=0).sqrt().sum(), torch.zeros(16).double()
    c.close(c.call(fn, none, few, none, others), float(few.trace() + others.trace() - 2 * root), rtol=1e-3)


@check_frechet.wrong("l02.no_two")
def _(mean_1, cov_1, mean_2, cov_2):
    root = torch.linalg.eigvals(cov_1 @ cov_2).sqrt().real.sum()
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - root


@check_frechet.wrong("l02.elementwise")
def _(mean_1, cov_1, mean_2, cov_2):
    root = (cov_1.diagonal() * cov_2.diagonal()).sqrt().sum()
    return (mean_1 - mean_2).square().sum() + cov_1.trace() + cov_2.trace() - 2 * root


@check_frechet.wrong("l02.not_squared")
def _(mean_1, cov_1, mean_2, cov_2):
    root = torch.linalg.eigvals(cov_1 @ cov_2).sqrt().real.sum()
    return (mean_1 - mean_2).norm() + cov_1.trace() + cov_2.trace() - 2 * root


def at_infinity(ns, values):
    """Intercept of the least-squares line through values over 1/n (Chong & Forsyth 2020, FID at infinity)."""
    x = 1 / torch.tensor(ns, dtype=torch.float64)
    y = torch.tensor(values, dtype=torch.float64)
    slope = ((x - x.mean()) * (y - y.mean())).sum() / (x - x.mean()).square().sum()
    return float(y.mean() - slope * x.mean())


def _line(x, y):
    """Slope and intercept by the normal equations, in plain Python."""
    n, sx, sy = len(x), sum(x), sum(y)
    slope = (n * sum(a * b for a, b in zip(x, y, strict=True)) - sx * sy) / (n * sum(a * a for a in x) - sx * sx)
    return slope, (sy - slope * sx) / n


@exercise("l02.at_infinity", reference=at_infinity)
def check_at_infinity(c, fn):
    c.callable(fn)
    ns = [50, 80, 200, 500]
    values = [3 + 120 / n + noise for n, noise in zip(ns, c.randn(4).tolist(), strict=True)]
    got = c.call(fn, list(ns), list(values))
    c.number(got)
    slope, intercept = _line([1 / n for n in ns], values)
    c.mistake("l02.line_in_n", got=got, looks_like=_line(ns, values)[1])
    c.mistake("l02.slope_instead", got=got, looks_like=slope)
    c.mistake("l02.last_value", got=got, looks_like=values[-1])
    c.hand(c.call(fn, [1, 2], [30.0, 20.0]), 10.0)
    c.close(got, intercept)


@check_at_infinity.wrong("l02.line_in_n")
def _(ns, values):
    return _line([float(n) for n in ns], list(values))[1]


@check_at_infinity.wrong("l02.slope_instead")
def _(ns, values):
    return _line([1 / n for n in ns], list(values))[0]


@check_at_infinity.wrong("l02.last_value")
def _(ns, values):
    return values[-1]


def p_value(observed, null):
    """(1 + number of null readings at least as large) / (1 + R) (Phipson & Smyth 2010)."""
    return (1 + sum(value >= observed for value in null)) / (1 + len(null))


@exercise("l02.p_value", reference=p_value)
def check_p_value(c, fn):
    c.callable(fn)
    null = [float(k) for k in range(1, 20)]
    got = c.number(c.call(fn, 16.5, list(null)), 0, 1)
    c.mistake("l02.other_tail", got=got, looks_like=17 / 20)
    c.mistake("l02.zero_possible", got=got, looks_like=3 / 19)
    c.require(c.number(c.call(fn, 16.0, list(null)), 0, 1) > got, "l02.strictly")
    c.hand(c.call(fn, 4.0, [1.0, 2.0, 3.0, 4.0]), 0.4)
    c.close(got, 4 / 20)
    c.close(c.call(fn, 100.0, list(null)), 1 / 20)
    c.close(c.call(fn, 5.0, [9.0, -8.0, 1.0, -7.0]), 2 / 5)  # in no order, and of both signs


@check_p_value.wrong("l02.other_tail")
def _(observed, null):
    return (1 + sum(value <= observed for value in null)) / (1 + len(null))


@check_p_value.wrong("l02.zero_possible")
def _(observed, null):
    return sum(value >= observed for value in null) / len(null)


@check_p_value.wrong("l02.strictly")
def _(observed, null):
    return (1 + sum(value > observed for value in null)) / (1 + len(null))


def coverage(real, fake, k):
    """Share of real points with a fake no farther than their k-th nearest other real (Naeem et al. 2020, eq. 6)."""
    between_reals = torch.cdist(real, real).fill_diagonal_(float("inf"))  # [n, n]
    radius = between_reals.kthvalue(k, dim=1).values  # [n]
    nearest_fake = torch.cdist(real, fake).min(dim=1).values  # [n]
    return (nearest_fake <= radius).double().mean()


def _shares(real, fake, k):
    """Shares that get mixed up with coverage, by plain loops: of fakes in real balls, of reals in fake balls."""

    def radius(points, i):
        return sorted(float((points[i] - points[j]).norm()) for j in range(len(points)) if j != i)[k - 1]

    def inside(points, balls):
        radii = [radius(balls, i) for i in range(len(balls))]
        hits = [any(float((p - b).norm()) <= r for b, r in zip(balls, radii, strict=True)) for p in points]
        return sum(hits) / len(hits)

    return inside(fake, real), inside(real, fake)


@exercise("l02.coverage", reference=coverage)
def check_coverage(c, fn):
    c.callable(fn)
    real, fake = c.randn(30, 2, dtype=torch.float64), 0.6 * c.randn(20, 2, dtype=torch.float64) + 0.7
    got = c.call(fn, real, fake, 3)
    c.number(got, 0, 1)
    distance = [[float((a - b).norm()) for b in real] for a in real]
    to_fake = [min(float((a - b).norm()) for b in fake) for a in real]

    def share(skip):
        """Coverage by loops; skip = 1 leaves the point itself out of its neighbours."""
        radii = [sorted(row)[2 + skip] for row in distance]
        return sum(d <= r for d, r in zip(to_fake, radii, strict=True)) / len(radii)

    precision, recall = _shares(real, fake, 3)
    c.mistake("l02.self_counted", got=got, looks_like=share(0))
    c.mistake("l02.is_precision", got=got, looks_like=precision)
    c.mistake("l02.is_recall", got=got, looks_like=recall)
    line = torch.tensor([[0.0], [1.0], [2.0], [10.0]], dtype=torch.float64)
    c.hand(c.call(fn, line, torch.tensor([[0.5], [0.6]], dtype=torch.float64), 1), 0.5)
    edge = c.call(fn, line, torch.tensor([[3.0]], dtype=torch.float64), 1)  # on the sphere of 2, inside that of 10
    c.close(edge, 0.5, key="l02.on_sphere")
    c.close(got, share(1))
    c.close(c.call(fn, real, fake + 100, 3), 0.0)


@check_coverage.wrong("l02.self_counted")
def _(real, fake, k):
    radius = torch.cdist(real, real).kthvalue(k, dim=1).values
    return (torch.cdist(real, fake).min(dim=1).values <= radius).double().mean()


@check_coverage.wrong("l02.on_sphere")
def _(real, fake, k):
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    return (torch.cdist(real, fake).min(dim=1).values < radius).double().mean()


@check_coverage.wrong("l02.is_precision")
def _(real, fake, k):
    radius = torch.cdist(real, real).kthvalue(k + 1, dim=1).values
    return (torch.cdist(real, fake) <= radius[:, None]).any(dim=0).double().mean()


@check_coverage.wrong("l02.is_recall")
def _(real, fake, k):
    radius = torch.cdist(fake, fake).kthvalue(k + 1, dim=1).values
    return (torch.cdist(real, fake) <= radius).any(dim=1).double().mean()


def cluster_interval(values, prompts, generator, resamples=2000):
    """95 % percentile interval of the mean over prompts: whole prompts are resampled (Efron 1979, by cluster)."""
    count = torch.bincount(prompts)  # [P]
    per_prompt = torch.bincount(prompts, weights=values) / count  # [P]
    chosen = torch.randint(len(count), (resamples, len(count)), generator=generator)  # [resamples, P]
    means = per_prompt[chosen].mean(dim=1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


@exercise("l02.cluster_interval", reference=cluster_interval)
def check_cluster_interval(c, fn):
    c.callable(fn)
    per_prompt, copies = c.rand(40, dtype=torch.float64), 8
    prompts = torch.arange(40).repeat_interleave(copies)
    got = c.call(fn, per_prompt.repeat_interleave(copies), prompts, c.generator, 8000)
    c.instance(got, (tuple, list))
    c.length(got, 2)
    low, high = (c.number(v) for v in got)
    c.mistake("l02.order", when=low > high)
    ratio = (high - low) / (2 * 1.96 * float(per_prompt.std(correction=0)) / 40**0.5)
    c.mistake("l02.naive", when=0.25 < ratio < 0.5)
    c.mistake("l02.no_mean", when=ratio > 3)
    c.require(0.94 < ratio < 1.06, "l02.width", ratio=f"{ratio:.2f}")  # 90 %: 0.84, 98 %: 1.19
    c.require(low < float(per_prompt.mean()) < high, "l02.off_centre")
    heavy = torch.cat([torch.zeros(500, dtype=torch.long), torch.arange(1, 40)])  # one prompt with 500 comparisons
    won = (heavy == 0).double()
    c.require(c.number(c.call(fn, won, heavy, c.generator)[1]) < 0.3, "l02.heavy_prompt")
    values = per_prompt.repeat_interleave(copies)
    again = [c.call(fn, values, prompts, torch.Generator().manual_seed(1)) for _ in range(2)]
    c.require(c.is_close(again[0], again[1], rtol=0, atol=0), "check.generator")
    # skewed values, unequal numbers of comparisons, rows in no order: a percentile interval is not symmetric
    rare = (torch.arange(1, 13, dtype=torch.float64) / 12) ** 6
    noted = torch.arange(12).repeat_interleave(torch.arange(2, 14))[torch.randperm(90, generator=c.generator)]
    means = rare[torch.randint(12, (20_000, 12), generator=c.generator)].mean(1)
    for seed in range(3):
        ends = c.call(fn, rare[noted], noted, torch.Generator().manual_seed(seed), 4000)
        wanted = tuple(float(means.quantile(q)) for q in (0.025, 0.975))
        c.close(tuple(float(v) for v in ends), wanted, rtol=0, atol=0.2 * float(means.std()))
    same = c.call(fn, torch.full((80,), 0.5, dtype=torch.float64), torch.arange(40).repeat(2), c.generator)
    c.close(tuple(float(v) for v in same), (0.5, 0.5))


@check_cluster_interval.wrong("l02.naive")
def _(values, prompts, generator, resamples=2000):
    means = values[torch.randint(len(values), (resamples, len(values)), generator=generator)].mean(dim=1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


@check_cluster_interval.wrong("l02.no_mean")
def _(values, prompts, generator, resamples=2000):
    per_prompt = torch.bincount(prompts, weights=values) / torch.bincount(prompts)
    return float(per_prompt.quantile(0.025)), float(per_prompt.quantile(0.975))


@check_cluster_interval.wrong("l02.order")
def _(values, prompts, generator, resamples=2000):
    low, high = cluster_interval(values, prompts, generator, resamples)
    return high, low


@check_cluster_interval.wrong("l02.heavy_prompt")
def _(values, prompts, generator, resamples=2000):
    count = torch.bincount(prompts)
    chosen = torch.randint(len(count), (resamples, len(count)), generator=generator)
    means = torch.bincount(prompts, weights=values)[chosen].sum(dim=1) / count[chosen].sum(dim=1)
    return float(means.quantile(0.025)), float(means.quantile(0.975))


def kid(real, fake):
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3 (Binkowski et al. 2018): no row meets itself."""

    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_self(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return without_self(real) + without_self(fake) - 2 * kernel(real, fake).mean()


@exercise("l02.kid", reference=kid)
def check_kid(c, fn):
    c.callable(fn)
    x, y = c.randn(5, 4, dtype=torch.float64), c.randn(7, 4, dtype=torch.float64) + 0.5
    got = c.call(fn, x, y)
    c.number(got)
    cross, a, b = ((p @ r.T / 4 + 1) ** 3 for p, r in ((x, y), (x, x), (y, y)))
    alone = [(k.sum() - k.diag().sum()) / (n * (n - 1)) for k, n in ((a, 5), (b, 7))]
    c.mistake("l02.kid_self", got=got, looks_like=a.mean() + b.mean() - 2 * cross.mean())
    c.mistake("l02.kid_once", got=got, looks_like=sum(alone) - cross.mean())
    long = [(p @ r.T + 1) ** 3 for p, r in ((x, y), (x, x), (y, y))]
    longer = [(k.sum() - k.diag().sum()) / (n * (n - 1)) for k, n in ((long[1], 5), (long[2], 7))]
    c.mistake("l02.kid_no_d", got=got, looks_like=sum(longer) - 2 * long[0].mean())
    two = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    c.hand(c.call(fn, two, two.clone()), -3.5)
    c.close(got, sum(alone) - 2 * cross.mean())


@check_kid.wrong("l02.kid_self")
def _(real, fake):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    return kernel(real, real).mean() + kernel(fake, fake).mean() - 2 * kernel(real, fake).mean()


@check_kid.wrong("l02.kid_once")
def _(real, fake):
    def kernel(a, b):
        return (a @ b.T / a.shape[1] + 1) ** 3

    def without_self(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return without_self(real) + without_self(fake) - kernel(real, fake).mean()


@check_kid.wrong("l02.kid_no_d")
def _(real, fake):
    def kernel(a, b):
        return (a @ b.T + 1) ** 3

    def without_self(x):
        k = kernel(x, x)
        return (k.sum() - k.trace()) / (len(x) * (len(x) - 1))

    return without_self(real) + without_self(fake) - 2 * kernel(real, fake).mean()


def prompts_needed(rate, z_alarm=1.96, z_miss=0.84):
    """Prompts that tell a true win rate from 0.5: (z_alarm 0.5 + z_miss sqrt(p(1-p)))^2 / (p - 0.5)^2, rounded up."""
    reach = z_alarm * 0.5 + z_miss * (rate * (1 - rate)) ** 0.5
    return math.ceil((reach / (rate - 0.5)) ** 2)


@exercise("l02.prompts_needed", reference=prompts_needed)
def check_prompts_needed(c, fn):
    c.callable(fn)
    got = c.number(c.call(fn, 0.7, 1.96, 0.84))
    c.mistake("l02.no_miss", got=got, looks_like=math.ceil((1.96 * 0.5 / 0.2) ** 2))
    c.mistake("l02.prompts_not_squared", got=got, looks_like=math.ceil((1.96 * 0.5 + 0.84 * 0.21**0.5) / 0.2))
    c.mistake("l02.rounded", got=got, looks_like=math.floor(((1.96 * 0.5 + 0.84 * 0.21**0.5) / 0.2) ** 2))
    c.hand(c.call(fn, 0.6, 1.96, 0.84), 194)
    c.close(got, 47)
    c.close(c.call(fn, 0.3, 1.96, 0.84), 47)
    c.close(c.call(fn, 0.8, 2.0, 0.0), 12)
    c.close(c.call(fn, 0.75, 1.0, 0.0), 4)  # a whole number stays


@check_prompts_needed.wrong("l02.no_miss")
def _(rate, z_alarm=1.96, z_miss=0.84):
    return math.ceil((z_alarm * 0.5 / (rate - 0.5)) ** 2)


@check_prompts_needed.wrong("l02.prompts_not_squared")
def _(rate, z_alarm=1.96, z_miss=0.84):
    return math.ceil((z_alarm * 0.5 + z_miss * (rate * (1 - rate)) ** 0.5) / abs(rate - 0.5))


@check_prompts_needed.wrong("l02.rounded")
def _(rate, z_alarm=1.96, z_miss=0.84):
    return int(((z_alarm * 0.5 + z_miss * (rate * (1 - rate)) ** 0.5) / (rate - 0.5)) ** 2)
