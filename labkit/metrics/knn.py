"""Exact nearest neighbours in blocks: never the N x N matrix, and no digits lost to |a|^2 + |b|^2 - 2 a.b.

Matrix products are fast but cancel: with features far from the origin, float32 loses every digit of a small distance.
So (1) the common mean is subtracted and the scale divided out, (2) blocks of *lower bounds* of the squared distances
come from matrix products under a byte budget (float32; float64 when d is small) and a few more than k candidates are
kept per query, (3) candidates are measured again by direct subtraction in float64, and (4) where the bounds do not
prove that nothing was missed, everything that they leave possible is measured. The bounds allow for 4 sqrt(d) roundoffs
(probabilistic rounding analysis, Higham & Mary 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from labkit.metrics.checks import as_features, check_k, same_width, work_device

BLOCK_BYTES = 128 * 2**20


@dataclass(frozen=True)
class Block:
    """Rows `rows` of the first set against rows `cols` of the second, in units of `DistanceBlocks.unit`.

    `lower` [r, c] is below the squared distance by at most `slack_rows[:, None] + slack_cols` ([r] and [c]).
    """

    rows: slice
    cols: slice
    lower: Tensor
    slack_rows: Tensor
    slack_cols: Tensor


class DistanceBlocks:
    """Squared Euclidean distances between two sets, block by block.

    Args:
        a: [N, d] features.
        b: [M, d] features; None: `a` against itself, upper triangle of blocks only, diagonal masked with inf.
        block_bytes: memory that one block and its temporaries may take.
    """

    def __init__(self, a: Tensor, b: Tensor | None = None, *, block_bytes: int = BLOCK_BYTES) -> None:
        if block_bytes < 1:
            raise ValueError(f"block_bytes = {block_bytes} must be positive: pass a memory budget in bytes")
        self.self_mode = b is None
        device = work_device(a) if b is None else work_device(a, b)
        self.a = a.to(device)
        self.b = self.a if b is None else b.to(device)
        self.device, self.block_bytes, self.d = device, block_bytes, a.shape[1]
        self.dtype = torch.float64 if self.d <= 32 else torch.float32
        # A square block of side s takes about 3 matrices [s, s] and 3 of its features [s, d], 8 bytes an entry.
        self.side = max(1, int((-self.d + (self.d**2 + block_bytes / 6) ** 0.5) / 2))
        sets = (self.a,) if b is None else (self.a, self.b)
        # Any common shift near the mean will do, as long as subtracting it rounds only once.
        self.work = torch.float64 if any(x.dtype == torch.float64 for x in sets) else torch.float32
        start = self.a[0].double()  # summing differences from it keeps constant features exactly constant
        total = sum((x[s].double() - start).sum(dim=0) for x in sets for s in self._slices(x))
        self.shift = (start + total / sum(len(x) for x in sets)).to(self.work)  # [d]
        largest = max(float((x[s].to(self.work) - self.shift).abs().max()) for x in sets for s in self._slices(x))
        self.scale = largest or 1.0
        self.unit = self.scale**2
        # Products may run in reduced precision when the user allowed it (TF32, bf16): the bound follows.
        roundoff = torch.finfo(self.dtype).eps / 2
        if self.dtype == torch.float32:
            precision = torch.get_float32_matmul_precision()
            roundoff = {"highest": roundoff, "high": 2.0**-11, "medium": 2.0**-8}[precision]
        self.error = roundoff * (4 * self.d**0.5 + 16)

    def __iter__(self) -> Iterator[Block]:
        for rows in self._slices(self.a):
            x = self._centred(self.a, rows)  # [r, d]
            norm_x = x.square().sum(dim=1)
            for cols in self._slices(self.b):
                if self.self_mode and cols.start < rows.start:
                    continue
                y = self._centred(self.b, cols)  # [c, d]
                norm_y = y.square().sum(dim=1)
                lower = self._lower(x, norm_x, y, norm_y)  # [r, c]
                if self.self_mode and cols.start == rows.start:
                    lower.fill_diagonal_(torch.inf)
                yield Block(rows, cols, lower, 2 * self.error * norm_x, 2 * self.error * norm_y)

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances [Q, K] of a[i] and b[j] by direct subtraction in float64; i and j are [Q, 1] or [Q, K]."""
        shape = torch.broadcast_shapes(i.shape, j.shape)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        step = max(1, 2**18 // (shape[1] * self.d))  # 2 MB: stays in the cache
        for start in range(0, shape[0], step):
            s = slice(start, start + step)
            out[s] = (self.a[i[s]].double() - self.b[j[s]].double()).square_().sum(dim=2)
        return out

    def lower_rows(self, i: Tensor) -> Tensor:
        """Lower bounds [q, M] of the squared distances of a[i] to all of b, in units of `unit`."""
        return self._lower_all(self._centred(self.a, i), self.b)

    def lower_columns(self, j: Tensor) -> Tensor:
        """Lower bounds [q, N] of the squared distances of b[j] to all of a, in units of `unit`."""
        return self._lower_all(self._centred(self.b, j), self.a)

    def _lower_all(self, x: Tensor, others: Tensor) -> Tensor:
        norm_x, parts = x.square().sum(dim=1), []
        for rows in self._slices(others):
            y = self._centred(others, rows)
            parts.append(self._lower(x, norm_x, y, y.square().sum(dim=1)))
        return torch.cat(parts, dim=1)

    def _lower(self, x: Tensor, norm_x: Tensor, y: Tensor, norm_y: Tensor) -> Tensor:
        shrink = 1 - self.error
        return (shrink * norm_x[:, None] + shrink * norm_y).addmm_(x, y.T, alpha=-2)

    def _centred(self, x: Tensor, rows: slice | Tensor) -> Tensor:
        return ((x[rows].to(self.work) - self.shift) / self.scale).to(self.dtype)

    def _slices(self, x: Tensor) -> Iterator[slice]:
        return (slice(start, min(start + self.side, len(x))) for start in range(0, len(x), self.side))


class Shortlist:
    """The smallest lower bounds seen so far for each of n queries.

    Args:
        n: queries.
        items: what they are compared with, all of it sooner or later through `merge`.
        keep: candidates kept per query.
    """

    def __init__(self, n: int, items: int, keep: int, blocks: DistanceBlocks) -> None:
        compared = items - blocks.self_mode  # a point is not its own neighbour
        self.items, self.keep, self.complete = items, min(keep, compared), keep >= compared
        self.block_bytes = blocks.block_bytes
        self.bounds = torch.full((n, self.keep), torch.inf, dtype=blocks.dtype, device=blocks.device)
        self.indices = torch.zeros((n, self.keep), dtype=torch.long, device=blocks.device)

    def merge(self, queries: slice, lower: Tensor, offset: int) -> None:
        """Take in lower bounds [q, c] of queries `queries` against items offset .. offset + c."""
        bounds, indices = lower.topk(min(self.keep, lower.shape[1]), dim=1, largest=False, sorted=False)
        bounds = torch.cat([self.bounds[queries], bounds], dim=1)
        indices = torch.cat([self.indices[queries], indices + offset], dim=1)
        self.bounds[queries], order = bounds.topk(self.keep, dim=1, largest=False, sorted=False)
        self.indices[queries] = indices.gather(1, order)

    def best(
        self,
        k: int,
        unit: float,
        measure: Callable[[Tensor, Tensor], Tensor],
        bounds: Callable[[Tensor], Tensor],
    ) -> tuple[Tensor, Tensor]:
        """The k smallest exact values [n, k], ascending, and their items [n, k].

        Args:
            unit: what one unit of the bounds is in the exact measure.
            measure: (queries [Q, 1], items [Q, K]) -> exact values [Q, K].
            bounds: queries [q] -> lower bounds [q, items], inf for a masked pair.
        """
        queries = torch.arange(len(self.bounds), device=self.bounds.device)
        values, indices = _smallest(measure(queries[:, None], self.indices), self.indices, k)
        if not self.complete:  # are those that were left out certainly no nearer than what was found?
            left_out = self.bounds.max(dim=1).values.double() * unit
            doubtful = queries[(values[:, k - 1] > left_out) & (values[:, k - 1] > 0)]
            for part in doubtful.split(max(1, self.block_bytes // (64 * self.items))):
                possible = bounds(part).double() * unit <= values[part, k - 1, None]  # [q, items]
                row, item = possible.nonzero(as_tuple=True)
                exact = torch.full(possible.shape, torch.inf, dtype=torch.float64, device=part.device)
                exact[row, item] = measure(part[row, None], item[:, None])[:, 0]
                values[part], indices[part] = exact.topk(k, dim=1, largest=False)
        return values, indices


def _smallest(values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = values.topk(k, dim=1, largest=False)  # sorted ascending
    return values, indices.gather(1, order)


def nearest_neighbours(
    points: object,
    k: int,
    *,
    queries: object | None = None,
    squared: bool = False,
    spare: int = 4,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Exact k nearest neighbours in `points` of every query, or of every point among the others.

    Args:
        points: features [N, d].
        k: neighbours wanted, 1 <= k < N (k <= N with queries).
        queries: features [Q, d]; None: the points themselves, each masked out of its own list. A query that equals a
            point is at distance 0 from it: nothing is masked.
        squared: return squared distances.
        spare: candidates kept beyond k before the exact measurement.
        block_bytes: memory that one block of distances may take.

    Returns:
        distances [Q, k] float64, ascending, and indices [Q, k] into points. Equal distances are in no particular order.

    Raises:
        ValueError: bad features, different widths, or k out of range.
    """
    points = as_features("points", points, min_rows=1 if queries is not None else 2)
    if queries is None:
        k = check_k(k, len(points), "points")
        blocks, n = DistanceBlocks(points, block_bytes=block_bytes), len(points)
    else:
        queries = as_features("queries", queries, min_rows=1)
        same_width(points, queries, ("points", "queries"))
        k = check_k(k, len(points), "points", queries=True)
        blocks, n = DistanceBlocks(queries, points, block_bytes=block_bytes), len(queries)
    candidates = Shortlist(n, len(points), k + spare, blocks)
    for block in blocks:
        candidates.merge(block.rows, block.lower, block.cols.start)
        if blocks.self_mode and block.cols.start > block.rows.start:
            candidates.merge(block.cols, block.lower.T.contiguous(), block.rows.start)

    def bounds(i: Tensor) -> Tensor:
        lower = blocks.lower_rows(i)
        return lower.scatter(1, i[:, None], torch.inf) if blocks.self_mode else lower

    values, indices = candidates.best(k, blocks.unit, blocks.exact, bounds)
    return (values if squared else values.sqrt()), indices
