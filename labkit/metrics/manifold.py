"""Precision, recall (Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020), and the realism score.

Each real point carries a ball that reaches to its k-th nearest other real point; the union of the balls stands for the
real manifold, and the same for fakes. Then

    precision = share of fakes in at least one real ball        recall   = share of reals in at least one fake ball
    density   = (real ball, fake) incidences / (k n_fake)       coverage = share of real balls with at least one fake
    realism   = max over real balls of radius / distance, per fake (>= 1 iff inside a ball of positive radius)

All of it in three blocked passes over distances: real-real, fake-fake (radii) and real-fake. Membership is decided
exactly: pairs too close to a sphere for float32 are measured again in float64.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, check_k, same_width, whole_number
from labkit.metrics.knn import BLOCK_BYTES, Block, DistanceBlocks, Shortlist, nearest_neighbours


@dataclass(frozen=True)
class ManifoldResult:
    """The four numbers and what they are made of.

    Attributes:
        precision, recall, coverage: shares in [0, 1]. density: in [0, n_real / k], 1 on average for equal laws.
        expected_coverage: mean coverage when both sets come from one law; raise k until it is at least 0.95.
        realism: [n_fake] max of radius / distance over the real balls (unsquared).
        nearest_real: [n_fake] index of the nearest real; nearest_distance: [n_fake] its distance.
        fake_balls: [n_fake] number of real balls that hold each fake. covered: [n_real] bool, ball holds a fake.
        recalled: [n_real] bool, real lies in a fake ball. radii_real [n_real], radii_fake [n_fake]: k-th distances.
        boundary: "closed" (distance <= radius, robust to duplicates) or "open" (<, as in prdc).
    """

    precision: float
    recall: float
    density: float
    coverage: float
    expected_coverage: float
    k: int
    n_real: int
    n_fake: int
    boundary: str
    realism: Tensor = field(repr=False)
    nearest_real: Tensor = field(repr=False)
    nearest_distance: Tensor = field(repr=False)
    fake_balls: Tensor = field(repr=False)
    covered: Tensor = field(repr=False)
    recalled: Tensor = field(repr=False)
    radii_real: Tensor = field(repr=False)
    radii_fake: Tensor = field(repr=False)

    def as_dict(self) -> dict[str, float]:
        """{"precision", "recall", "density", "coverage"} -> float."""
        return {name: getattr(self, name) for name in ("precision", "recall", "density", "coverage")}


def manifold_metrics(
    *,
    real: object,
    fake: object,
    k: int = 5,
    boundary: str = "closed",
    prune_realism: bool = False,
    block_bytes: int = BLOCK_BYTES,
) -> ManifoldResult:
    """Precision, recall, density, coverage and realism of fake features against real ones.

    Args:
        real: features [n_real, d]; fake: features [n_fake, d]. Use equal counts, and state them with the result.
        k: neighbours behind each radius. 3 in Kynkaanniemi et al., 5 in Naeem et al.
        boundary: "closed" counts a point on the sphere as inside (official precision/recall code), "open" does not
            (prdc).
        prune_realism: drop real balls wider than the median from the realism score, as the paper does.
        block_bytes: memory that one block of distances may take.

    Raises:
        ValueError: bad features, different widths, k >= n_real or k >= n_fake, unknown boundary.
    """
    if boundary not in ("closed", "open"):
        raise ValueError(f'boundary must be "closed" (<=) or "open" (<), got {boundary!r}')
    real, fake = as_features("real", real), as_features("fake", fake)
    same_width(real, fake)
    check_k(k, len(real), "real")
    k = check_k(k, len(fake), "fake")
    radii = [  # squared, in float64
        nearest_neighbours(x, k, squared=True, block_bytes=block_bytes)[0][:, -1] for x in (real, fake)
    ]
    blocks = DistanceBlocks(real, fake, block_bytes=block_bytes)
    square_real, square_fake = (r.to(blocks.device) for r in radii)
    cross = _CrossPass(blocks, square_real, square_fake, closed=boundary == "closed", prune=prune_realism)
    for block in blocks:
        cross.add(block)
    realism, (nearest_distance, nearest_real) = cross.realism(), cross.nearest()
    n_real, n_fake = len(real), len(fake)
    return ManifoldResult(
        precision=float((cross.fake_balls > 0).double().mean()),
        recall=float(cross.recalled.double().mean()),
        density=int(cross.fake_balls.sum()) / (k * n_fake),
        coverage=float(cross.covered.double().mean()),
        expected_coverage=expected_coverage(n_real=n_real, n_fake=n_fake, k=k),
        k=k,
        n_real=n_real,
        n_fake=n_fake,
        boundary=boundary,
        realism=realism,
        nearest_real=nearest_real,
        nearest_distance=nearest_distance,
        fake_balls=cross.fake_balls,
        covered=cross.covered,
        recalled=cross.recalled,
        radii_real=square_real.sqrt(),
        radii_fake=square_fake.sqrt(),
    )


def expected_coverage(*, n_real: int, n_fake: int, k: int) -> float:
    """Mean coverage for any one continuous law: 1 - prod_{i=1..k} (N - i) / (N + M - i), about 1 - 2^-k for N = M.

    A real ball misses every fake iff the k nearest of the other N - 1 + M points are all real.
    """
    n_real, n_fake = whole_number("n_real", n_real), whole_number("n_fake", n_fake)
    k = check_k(k, n_real, "real")
    miss = 1.0
    for i in range(1, k + 1):
        miss *= (n_real - i) / (n_real + n_fake - i)
    return 1 - miss


class _CrossPass:
    """State of the real-fake pass. Rows are reals, columns are fakes; radii are squared."""

    def __init__(
        self, blocks: DistanceBlocks, square_real: Tensor, square_fake: Tensor, *, closed: bool, prune: bool
    ) -> None:
        self.blocks, self.closed = blocks, closed
        self.square_real, self.square_fake = square_real, square_fake
        n_real, n_fake, device = len(square_real), len(square_fake), blocks.device
        self.fake_balls = torch.zeros(n_fake, dtype=torch.long, device=device)
        self.covered = torch.zeros(n_real, dtype=torch.bool, device=device)
        self.recalled = torch.zeros(n_real, dtype=torch.bool, device=device)
        self.nearest_candidates = Shortlist(n_fake, n_real, 3, blocks)
        self.realism_candidates = Shortlist(n_fake, n_real, 3, blocks)
        # Realism is 1 / min of distance / radius. Balls of radius 0 and pruned balls never attain the minimum.
        usable = square_real > 0
        if prune:
            usable &= square_real <= square_real.median()
        self.realism_radius = torch.where(usable, square_real, 0.0)  # [n_real]

    def add(self, block: Block) -> None:
        in_real = self._inside(block, self.square_real[block.rows, None], block.slack_rows, block.slack_cols)
        self.fake_balls[block.cols] += in_real.sum(dim=0)
        self.covered[block.rows] |= in_real.any(dim=1)
        self.recalled[block.rows] |= self._inside(
            block, self.square_fake[None, block.cols], block.slack_rows, block.slack_cols
        ).any(dim=1)
        by_fake = block.lower.T.contiguous()  # [c, r]
        self.nearest_candidates.merge(block.cols, by_fake, block.rows.start)
        by_fake.clamp_(min=torch.finfo(by_fake.dtype).tiny).mul_(self._weight(block.rows))
        self.realism_candidates.merge(block.cols, by_fake, block.rows.start)

    def _weight(self, rows: slice) -> Tensor:
        """Factor [r] that turns a lower bound into one of distance^2 / radius^2; inf for balls that do not count."""
        weight = self.blocks.unit / self.realism_radius[rows]
        return (weight * (1 - 4 * torch.finfo(self.blocks.dtype).eps)).to(self.blocks.dtype)

    def _inside(self, block: Block, square: Tensor, slack_rows: Tensor, slack_cols: Tensor) -> Tensor:
        """Bool [r, c]: distance <= (or <) radius, the squared radii [r, 1] or [1, c] in float64."""
        scaled = square / self.blocks.unit
        # Whoever's lower bound is outside is outside; whoever's upper bound is inside is inside; the rest is measured.
        maybe = self._within(block.lower, scaled.to(block.lower.dtype))
        if square.shape[1] == 1:
            sure = scaled - slack_rows[:, None] - slack_cols.max()
        else:
            sure = scaled - slack_cols - slack_rows.max()
        inside = self._within(block.lower, sure.to(block.lower.dtype)) & maybe
        i, j = (maybe ^ inside).nonzero(as_tuple=True)
        if len(i):
            exact = self.blocks.exact(i[:, None] + block.rows.start, j[:, None] + block.cols.start)[:, 0]
            inside[i, j] = self._within(exact, square.expand_as(block.lower)[i, j])
        return inside

    def _within(self, squared: Tensor, square_radius: Tensor) -> Tensor:
        return squared <= square_radius if self.closed else squared < square_radius

    def nearest(self) -> tuple[Tensor, Tensor]:
        """Distance [n_fake] to and index [n_fake] of the nearest real."""
        values, indices = self.nearest_candidates.best(
            1, self.blocks.unit, lambda j, i: self.blocks.exact(i, j), self.blocks.lower_columns
        )
        return values[:, 0].sqrt(), indices[:, 0]

    def realism(self) -> Tensor:
        """max radius / distance [n_fake]; inf on top of a real, 0 if no ball counts."""

        def ratio(j: Tensor, i: Tensor) -> Tensor:
            square = self.realism_radius[i]
            return torch.where(square > 0, self.blocks.exact(i, j) / square, torch.inf)

        def bounds(j: Tensor) -> Tensor:
            return self.blocks.lower_columns(j).clamp(min=0) * self._weight(slice(None))

        values, _ = self.realism_candidates.best(1, 1.0, ratio, bounds)
        return values[:, 0].rsqrt()
