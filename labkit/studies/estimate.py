"""From recorded numbers to a verdict: differences of arms with the same seeds and prompts, interval, decision."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from labkit.studies.store import Record, read_record
from labkit.studies.study import NotRecorded, StudyError

REPRODUCED, CONTRADICTED, EQUIVALENT, UNDECIDED = "reproduced", "contradicted", "equivalent", "undecided"


class Recorded:
    """A record's numbers as arrays [seeds, prompts]."""

    def __init__(self, record: Record) -> None:
        self._values, self.lesson = record.values, record.lesson
        self.asked: set[str] = set()  # arms whose numbers were asked for: what one more seed of an estimate takes

    def since(self, first: int) -> Recorded:
        """The same record without the seeds below `first`."""
        view = copy.copy(self)
        view._values = {key: numbers for key, numbers in self._values.items() if key[1] >= first}
        return view

    def before(self, last: int) -> Recorded:
        """The same record without the seeds from `last` on."""
        view = copy.copy(self)
        view._values = {key: numbers for key, numbers in self._values.items() if key[1] < last}
        return view

    def seeds(self, *arms: str) -> list[int]:
        """Seeds that all these arms have, in order."""
        self.asked.update(arms)
        found = [{seed for arm, seed in self._values if arm == wanted} for wanted in arms]
        return sorted(set.intersection(*found)) if found else []

    def values(self, metric: str, arm: str, *, seeds: list[int] | None = None) -> np.ndarray:
        """Numbers of one metric and arm, [seeds, prompts] in float64.

        Raises:
            NotRecorded: nothing recorded for this arm.
            StudyError: a unit without this metric.
        """
        seeds = self.seeds(arm) if seeds is None else seeds
        if not seeds:
            raise NotRecorded(f"study {self.lesson} has no recorded units of arm {arm!r}: record them")
        self.asked.add(arm)
        rows = [self._values[arm, seed].get(metric) for seed in seeds]
        if any(row is None for row in rows):
            known = ", ".join(sorted(self._values[arm, seeds[0]]))
            raise StudyError(f"arm {arm!r} has no metric {metric!r}: expected one of {known}")
        return np.stack(rows).astype(float)

    def pair(self, metric: str, arm: str, against: str) -> tuple[np.ndarray, np.ndarray]:
        """The numbers of two arms on the seeds that both have."""
        seeds = self.seeds(arm, against)
        return self.values(metric, arm, seeds=seeds), self.values(metric, against, seeds=seeds)


Contrast = Callable[[Recorded], np.ndarray]  # -> [seeds, prompts], or [seeds, 1]


def level(metric: str, arm: str) -> Contrast:
    """The metric itself."""
    return lambda recorded: recorded.values(metric, arm)


def gain(metric: str, arm: str, against: str) -> Contrast:
    """metric(arm) - metric(against), same seeds and prompts."""

    def contrast(recorded: Recorded) -> np.ndarray:
        first, second = recorded.pair(metric, arm, against)
        return first - second

    return contrast


def win_share(metric: str, arm: str, against: str, *, margin: float = 0.0) -> Contrast:
    """1 where the arm is better by more than `margin`, 0.5 for ties, 0 where it is worse."""

    def contrast(recorded: Recorded) -> np.ndarray:
        first, second = recorded.pair(metric, arm, against)
        gap = first - second
        return np.where(np.abs(gap) <= margin, 0.5, (gap > 0).astype(float))

    return contrast


def by_seed(contrast: Contrast) -> Contrast:
    """The mean of each seed, [seeds, 1]: for studies whose seeds draw their own prompts, targets or pictures. Rows of
    two seeds then have nothing in common, and only the seeds say how large chance is."""
    return lambda recorded: contrast(recorded).mean(1, keepdims=True)


def on_new_seeds(contrast: Contrast, first: int) -> Contrast:
    """The contrast on seeds from `first` on alone: for a claim that was made after a look at the earlier ones."""

    def restricted(recorded: Recorded) -> np.ndarray:
        return contrast(recorded.since(first))

    return restricted


def on_first_seeds(contrast: Contrast, last: int) -> Contrast:
    """The contrast on seeds below `last` alone: what one knew before the later ones."""
    return lambda recorded: contrast(recorded.before(last))


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds and prompts with its 95 % interval.

    Attributes:
        value, low, high: in the metric's unit. standard_error: half of what a t interval is made of.
        per_seed: the mean of each seed. prompts: numbers per seed.
        prompt_error: the part of the standard error that comes from the choice of prompts; more seeds leave it.
    """

    value: float
    low: float
    high: float
    standard_error: float
    per_seed: tuple[float, ...]
    prompts: int
    prompt_error: float = 0.0

    @property
    def seeds(self) -> int:
        return len(self.per_seed)


def estimate(values: np.ndarray, *, confidence: float = 0.95) -> Estimate:
    """Mean of values [seeds, prompts] for seeds and prompts that are both drawn at random (crossed random effects).

    The variance of the mean is A + B - C with A = var(seed means) / S, B = var(prompt means) / P and
    C = var(residuals) / (S P), at least max(A, B); degrees of freedom after Satterthwaite. One seed alone, or one
    number per seed, leaves the other source of chance.

    Raises:
        NotRecorded: fewer than two numbers.
        StudyError: numbers that are not finite.
    """
    values = np.atleast_2d(np.asarray(values, dtype=float))
    s, p = values.shape
    if values.size < 2:
        raise NotRecorded(f"expected at least two numbers [seeds, prompts], got {values.shape}: record more seeds")
    if not np.isfinite(values).all():
        raise StudyError(f"expected finite numbers [seeds, prompts], got NaN or infinity in shape {values.shape}")
    mean = float(values.mean())
    by_seed, by_prompt = values.mean(1), values.mean(0)
    a = by_seed.var(ddof=1) / s if s > 1 else 0.0
    b = by_prompt.var(ddof=1) / p if p > 1 else 0.0
    c = 0.0
    if s > 1 and p > 1:
        residual = values - by_seed[:, None] - by_prompt[None] + mean
        c = float((residual**2).sum()) / ((s - 1) * (p - 1)) / (s * p)
    variance = max(a + b - c, a, b)
    parts = [(part, n - 1) for part, n in ((a, s), (b, p)) if n > 1]
    bottom = sum(part**2 / df for part, df in parts)
    freedom = (a + b) ** 2 / bottom if bottom > 0 else float(max(df for _, df in parts))
    error = math.sqrt(variance)
    half = float(stats.t.ppf(0.5 + confidence / 2, freedom)) * error
    prompt_error = min(error, math.sqrt(max(0.0, b - c))) if p > 1 else 0.0
    return Estimate(mean, mean - half, mean + half, error, tuple(map(float, by_seed)), p, prompt_error)


def means(
    recorded: Recorded,
    metric: str,
    arms: Mapping[str, str],
    *,
    against: str | None = None,
    prompts: int | None = None,
) -> dict[str, Estimate]:
    """Label -> estimate of a metric, or of its gain over the arm `against`; for a chart.

    Args:
        arms: label -> arm; those that are not recorded yet, or have one number alone, are left out.
        prompts: only the first ones, those of a live run (default: all).
    """
    found = {}
    for label, arm in arms.items():
        if recorded.seeds(*((arm, against) if against else (arm,))):
            values = (gain(metric, arm, against) if against else level(metric, arm))(recorded)[:, :prompts]
            if values.size > 1:
                found[label] = estimate(values)
    return found


def recorded_levels(lesson: str, metrics: Sequence[str], arm: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean, lower and upper end of the 95 % interval of each metric of an arm [metrics], as bar charts take them.

    Raises:
        StudyError: nothing recorded for this arm, or a metric that it does not have.
    """
    recorded = Recorded(read_record(lesson))
    found = [estimate(recorded.values(metric, arm)) for metric in metrics]
    return tuple(np.array([getattr(one, end) for one in found]) for end in ("value", "low", "high"))


@dataclass(frozen=True)
class Decision:
    """A verdict and, where it is undecided, what it would take: about how many seeds, or, where the prompts alone leave
    the interval too wide, about how many prompts. Both None: the estimate lies on the border itself."""

    verdict: str
    seeds_needed: int | None = None
    prompts_needed: int | None = None


def decide(found: Estimate, *, low: float, high: float, smallest: float) -> Decision:
    """What a recorded estimate says about a claim "the value lies between low and high" (one end may be infinite).

    equivalent     one-sided claims: the whole interval lies closer than `smallest` to the border
    reproduced     the whole interval lies inside
    contradicted   the whole interval lies outside
    undecided      anything else; one seed decides nothing
    """
    if found.seeds < 2:  # how far seeds lie apart is not known
        return Decision(UNDECIDED, 3)
    one_sided = math.isinf(low) != math.isinf(high)
    if one_sided and smallest > 0:
        border = high if math.isinf(low) else low
        if border - smallest < found.low and found.high < border + smallest:
            return Decision(EQUIVALENT)
    if low < found.low and found.high < high:
        return Decision(REPRODUCED)
    if found.high <= low or found.low >= high:
        return Decision(CONTRADICTED)
    ends = [end for end in (low, high) if math.isfinite(end)]
    if one_sided and smallest > 0:  # the nearest border between two verdicts that is not crossed for good
        ends += [ends[0] - smallest, ends[0] + smallest]
    distance = sorted(abs(found.value - end) for end in ends)
    target = distance[0] if len(distance) == 1 else max(distance[0], distance[1] / 2)
    seeds = _seeds_for(found, target)
    return Decision(UNDECIDED, seeds, None if seeds else _prompts_for(found, target))


def _seeds_for(found: Estimate, half: float, *, confidence: float = 0.95, most: int = 100_000) -> int | None:
    """The fewest seeds (from 32 on up to a sixteenth more) whose t interval reaches no further than `half`, the prompts
    staying as they are. Few seeds pay twice, by the root of n and by the quantile (4.3 at three, 2.0 at fifty)."""
    fixed = found.prompt_error**2
    return _fewest((found.standard_error**2 - fixed) * found.seeds, fixed, half, confidence=confidence, most=most)


def _prompts_for(found: Estimate, half: float, *, confidence: float = 0.95, most: int = 100_000) -> int | None:
    """The same for prompts, which may take half of the variance that `half` allows; the other half is for the seeds."""
    per_prompt = found.prompt_error**2 * found.prompts
    return _fewest(per_prompt, 0.0, half / math.sqrt(2), confidence=confidence, most=most) if per_prompt > 0 else None


def _fewest(each: float, fixed: float, half: float, *, confidence: float, most: int) -> int | None:
    """The smallest n with t(n - 1)^2 (fixed + each / n) <= half^2, or None."""
    n = 2
    while half > 0 and n < most:
        quantile = float(stats.t.ppf(0.5 + confidence / 2, n - 1))
        if quantile**2 * (fixed + each / n) <= half**2:
            return n
        n += max(1, n // 16)
    return None


def fits(value: float, error: float, found: Estimate, *, confidence: float = 0.95) -> bool:
    """Whether one more run, of one seed, with this value and standard error agrees with what was recorded: its
    distance from the recorded mean lies inside the prediction interval of a new seed."""
    spread = float(np.var(found.per_seed, ddof=1)) if found.seeds > 1 else 0.0
    total = math.sqrt(found.standard_error**2 + spread + error**2)
    quantile = float(stats.t.ppf(0.5 + confidence / 2, max(1, found.seeds - 1)))
    return abs(value - found.value) <= quantile * total
