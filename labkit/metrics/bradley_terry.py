"""Strengths of more than two models from pairwise comparisons: Bradley & Terry (1952), ties after Davidson (1970).

    P(i beats j) = s_i / Z,    P(tie) = nu sqrt(s_i s_j) / Z,    Z = s_i + s_j + nu sqrt(s_i s_j)

with log s_i and log nu ~ N(0, 1 / prior) as a weak prior, fitted by Newton steps. Unlike Elo, the order of the games
does not matter.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

import numpy as np

from labkit.metrics.checks import plain_list, whole_number


@dataclass(frozen=True)
class BradleyTerryResult:
    """Fitted strengths.

    Attributes:
        names: models, in order of first appearance.
        strengths: [m] log strengths, mean 0. low, high: [m] bootstrap interval (NaN without bootstrap).
        nu: tie parameter (0 when there were no ties).
        worst_pair: the two models whose games fit worst. worst_residual: (observed - expected score) / standard
            deviation there; beyond about 3 the models do not lie on one line.
        games: comparisons used.
    """

    names: tuple[str, ...]
    strengths: np.ndarray
    low: np.ndarray
    high: np.ndarray
    nu: float
    worst_pair: tuple[str, str]
    worst_residual: float
    games: int
    level: float = field(default=0.95)

    def probability(self, first: str, second: str) -> tuple[float, float, float]:
        """P(first wins), P(tie), P(second wins)."""
        i, j = self.names.index(first), self.names.index(second)
        win, tie = _probabilities(self.strengths[i] - self.strengths[j], self.nu)
        return float(win), float(tie), float(1 - win - tie)

    def ranking(self) -> list[str]:
        """Names from strongest to weakest."""
        return [self.names[i] for i in np.argsort(-self.strengths, kind="stable")]


def bradley_terry(
    *,
    first: Sequence[str],
    second: Sequence[str],
    outcome: Sequence[float],
    prompts: Sequence[Hashable] | None = None,
    prior: float = 0.01,
    resamples: int = 0,
    level: float = 0.95,
    generator: np.random.Generator | None = None,
) -> BradleyTerryResult:
    """Fit strengths to n comparisons.

    Args:
        first, second: [n] names of the two models of each comparison.
        outcome: [n] 1 the first won, 0 the second won, 0.5 tie.
        prompts: [n] prompt of each comparison; the bootstrap resamples whole prompts.
        prior: precision of the Gaussian prior on log strengths; keeps a model that never lost finite.
        resamples: bootstrap resamples for the intervals, 0 for none.
        generator: NumPy generator of the bootstrap.

    Raises:
        ValueError: lengths that differ, other outcomes, a model against itself, models that no chain of comparisons
            connects, or a bootstrap without a generator.
    """
    first, second = [str(name) for name in plain_list(first)], [str(name) for name in plain_list(second)]
    outcome = np.asarray(plain_list(outcome), dtype=np.float64)
    prompts = list(range(len(first))) if prompts is None else plain_list(prompts)
    resamples = whole_number("resamples", resamples)
    lengths = len(first), len(second), len(outcome), len(prompts)
    if len(set(lengths)) > 1 or not first:
        raise ValueError(f"first, second, outcome and prompts need equal non-zero lengths, got {lengths}")
    if not np.isin(outcome, (0.0, 0.5, 1.0)).all():
        raise ValueError("outcome must hold 1 (first won), 0.5 (tie) and 0 (second won) only")
    if not prior > 0:
        raise ValueError(f"prior = {prior!r} must be positive: it keeps a model that never lost finite")
    if resamples and generator is None:
        raise ValueError("the bootstrap draws at random but no generator was given: pass np.random.default_rng(seed)")
    names = tuple(dict.fromkeys(name for pair in zip(first, second, strict=True) for name in pair))
    number = {name: i for i, name in enumerate(names)}
    i, j = np.array([number[name] for name in first]), np.array([number[name] for name in second])
    if (i == j).any():
        raise ValueError(f"model {names[i[i == j][0]]!r} is compared with itself: drop those rows")
    groups = {prompt: g for g, prompt in enumerate(dict.fromkeys(prompts))}
    group = np.array([groups[prompt] for prompt in prompts])
    m = len(names)
    _require_connected(i, j, names)
    wins, ties = _tables(i, j, outcome, np.ones(len(i)), m)
    theta, nu = _fit(wins, ties, prior)
    low = high = np.full(m, np.nan)
    if resamples:
        draws = np.empty((resamples, m))
        for r in range(resamples):
            weight = np.bincount(generator.integers(0, len(groups), len(groups)), minlength=len(groups))[group]
            draws[r] = _fit(*_tables(i, j, outcome, weight.astype(float), m), prior)[0]
        low, high = np.quantile(draws, [0.5 - level / 2, 0.5 + level / 2], axis=0)
    pair, residual = _worst_pair(wins, ties, theta, nu)
    worst = (names[pair[0]], names[pair[1]])
    return BradleyTerryResult(names, theta, low, high, nu, worst, residual, len(i), level)


def _probabilities(difference: np.ndarray, nu: float) -> tuple[np.ndarray, np.ndarray]:
    """P(win), P(tie) for a difference of log strengths, dividing by the larger strength against overflow."""
    top = np.maximum(difference / 2, -difference / 2)
    win, loss, tie = np.exp(difference / 2 - top), np.exp(-difference / 2 - top), nu * np.exp(-top)
    return win / (win + loss + tie), tie / (win + loss + tie)


def _tables(i: np.ndarray, j: np.ndarray, outcome: np.ndarray, weight: np.ndarray, m: int) -> tuple:
    """wins[a, b]: how often a beat b; ties[a, b]: symmetric; both [m, m]."""
    wins, ties = np.zeros((m, m)), np.zeros((m, m))
    np.add.at(wins, (i, j), weight * (outcome == 1))
    np.add.at(wins, (j, i), weight * (outcome == 0))
    np.add.at(ties, (i, j), weight * (outcome == 0.5))
    return wins, ties + ties.T


def _fit(wins: np.ndarray, ties: np.ndarray, prior: float) -> tuple[np.ndarray, float]:
    """Posterior mode of theta [m] (mean 0) and nu. The posterior is concave in (theta, log nu)."""
    m = len(wins)
    games = wins + wins.T + ties  # [m, m], symmetric
    tied = ties.sum() > 0
    parameters = np.zeros(m + 1)  # theta, log nu

    def objective(p: np.ndarray) -> float:
        difference = p[:m, None] - p[None, :m]
        win, tie = _probabilities(difference, np.exp(p[m]) if tied else 0.0)
        likelihood = (wins * np.log(win)).sum() + (0.5 * (ties * np.log(tie)).sum() if tied else 0.0)
        return likelihood - 0.5 * prior * (p**2).sum()

    value = objective(parameters)
    for _ in range(100):
        difference = parameters[:m, None] - parameters[None, :m]
        win, tie = _probabilities(difference, np.exp(parameters[m]) if tied else 0.0)
        # A game's log-probability is (score of i: 1, 1/2 or 0) x difference + [tie] log nu - log Z.
        gradient = np.zeros(m + 1)
        gradient[:m] = (wins + 0.5 * ties - games * (win + 0.5 * tie)).sum(axis=1)
        variance = games * (win + 0.25 * tie - (win + 0.5 * tie) ** 2)  # [m, m] of the score
        hessian = np.zeros((m + 1, m + 1))
        hessian[:m, :m] = np.diag(variance.sum(axis=1)) - variance
        if tied:  # log nu: score is the number of ties
            gradient[m] = 0.5 * (ties - games * tie).sum()
            hessian[m, m] = 0.5 * (games * tie * (1 - tie)).sum()
            hessian[:m, m] = hessian[m, :m] = (games * tie * (0.5 - win - 0.5 * tie)).sum(axis=1)
        gradient -= prior * parameters
        hessian += prior * np.eye(m + 1)
        step, size = np.linalg.solve(hessian, gradient), 1.0
        while size > 1e-8 and objective(parameters + size * step) < value:
            size /= 2
        parameters = parameters + size * step
        parameters[:m] -= parameters[:m].mean()
        value = objective(parameters)
        if np.abs(gradient).max() < 1e-9 * max(1.0, games.sum()):
            break
    return parameters[:m], float(np.exp(parameters[m])) if tied else 0.0


def _worst_pair(wins: np.ndarray, ties: np.ndarray, theta: np.ndarray, nu: float) -> tuple[tuple[int, int], float]:
    """Pair (i, j) with the largest |observed - expected score| / standard deviation, and that residual for i."""
    games = wins + wins.T + ties
    win, tie = _probabilities(theta[:, None] - theta[None, :], nu)
    expected, spread = games * (win + 0.5 * tie), np.sqrt(games * (win + 0.25 * tie - (win + 0.5 * tie) ** 2))
    residual = np.where(games > 0, (wins + 0.5 * ties - expected) / np.maximum(spread, 1e-12), 0.0)
    residual = np.triu(residual, 1)
    i, j = np.unravel_index(np.abs(residual).argmax(), residual.shape)
    return (int(i), int(j)), float(residual[i, j])


def _require_connected(i: np.ndarray, j: np.ndarray, names: tuple[str, ...]) -> None:
    reached, frontier = {0}, {0}
    while frontier:
        neighbours = {int(b) for a, b in zip(i, j, strict=True) if a in frontier}
        neighbours |= {int(a) for a, b in zip(i, j, strict=True) if b in frontier}
        frontier = neighbours - reached
        reached |= frontier
    if len(reached) < len(names):
        apart = [name for k, name in enumerate(names) if k not in reached]
        raise ValueError(f"no chain of comparisons connects {names[0]!r} with {apart}: compare them or fit them apart")
