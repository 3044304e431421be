"""Exact nearest neighbours in blocks: never the N x N matrix, and no digits lost to |a|^2 + |b|^2 - 2 a.b.

Matrix products are fast but cancel: with features far from the origin, float32 loses every digit of a small distance.
So (1) the common mean is subtracted (and an extreme scale divided out), (2) blocks of *lower bounds* of the squared
distances come from matrix products under a byte budget (float32; float64 when d is small) and a few more than k
candidates are kept per query, (3) the k likeliest are measured again by direct subtraction in float64, the spare ones
where their bounds leave room, and (4) where the bounds do not prove that nothing was missed, everything that they leave
possible is measured. The bounds allow for 4 sqrt(d) roundoffs
(probabilistic rounding analysis, Higham & Mary 2019).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from labkit.metrics.checks import as_features, check_k, same_width, work_device
from labkit.metrics.products import rows_by_rows

BLOCK_BYTES = 128 * 2**20
TILE = 1024  # longest side of a block: 4 MB of distances stay in the cache while they are worked on
MERGE = 220_000  # multiply-adds that take as long as one row of a block takes to be sorted in
SAMPLE = 256  # rows from which the common shift is taken
PLAIN = (1e-6, 1e6)  # largest deviations from the shift that need no scale
ITEMS = 2**29  # points that a key of the shortlist can number: a float64 has so many digits more than a float32
FAR = float(torch.finfo(torch.float32).max)
ROWS = 256  # queries that are sorted in at a time
GROUP = 8  # columns of a block of which only the smallest is looked at first


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
        # A square block of side s takes about 3 matrices [s, s] and 3 of its features [s, d], 8 bytes an entry. Panels
        # are the centred features of several blocks, so that they are not made anew for each of them.
        side = max(1, int((-self.d + (self.d**2 + block_bytes / 6) ** 0.5) / 2))
        tile = TILE
        if self.self_mode:  # the more blocks, the nearer to half of the products, and the more sorting
            tile = max(TILE // 4, min(TILE, int((len(a) * MERGE / self.d) ** 0.5)))
        self.side, self.panel = min(side, tile // GROUP * GROUP), max(side, block_bytes // (32 * self.d))
        sets = (self.a,) if b is None else (self.a, self.b)
        self.work = torch.float64 if any(x.dtype == torch.float64 for x in sets) else torch.float32
        # Any common shift near the mean will do, as long as subtracting it rounds only once.
        start = self.a[0].double()  # summing differences from it keeps constant features exactly constant
        total, n = torch.zeros_like(start), 0
        for x in sets:
            rows = x[:: -(-len(x) // SAMPLE)].double() - start
            total, n = total + rows.sum(dim=0), n + len(rows)
        self.shift = (start + total / n).to(self.work)  # [d]
        ends = [end(dim=0).to(self.work) - self.shift for x in sets for end in (x.amin, x.amax)]  # [d] each
        largest = max(float(end.abs().max()) for end in ends) or 1.0
        self.scale = 1.0 if PLAIN[0] < largest < PLAIN[1] else largest
        self.unit = self.scale**2
        # Products may run in reduced precision when the user allowed it (TF32, bf16): the bound follows.
        roundoff = torch.finfo(self.dtype).eps / 2
        if self.dtype == torch.float32:
            precision = torch.get_float32_matmul_precision()
            roundoff = {"highest": roundoff, "high": 2.0**-11, "medium": 2.0**-8}[precision]
        self.error = roundoff * (4 * self.d**0.5 + 16)

    def __iter__(self) -> Iterator[Block]:
        """The blocks, one after the other in the same memory: whoever keeps one copies it."""
        space = torch.empty(self.side**2, dtype=self.dtype, device=self.device)
        lefts = _cuts(len(self.a), self.panel)
        step = self.side if len(lefts) == 1 and not self.self_mode else self.panel  # used once: as small as a block
        for left in lefts:
            x = self._centred(self.a, slice(*left))  # [p, d]
            norm_x = _squares(x)
            for right in _cuts(len(self.b), step):
                if self.self_mode and right[0] < left[0]:
                    continue
                same = self.self_mode and right == left
                y = x if same else self._centred(self.b, slice(*right))
                norm_y = norm_x if same else _squares(y)
                for i, j in _cuts(len(x), self.side):
                    for k, m in _cuts(len(y), self.side):
                        if same and k < i:
                            continue
                        lower = self._lower(x[i:j], norm_x[i:j], y[k:m], norm_y[k:m], space)  # [r, c]
                        if same and k == i:
                            lower.fill_diagonal_(torch.inf)
                        slacks = 2 * self.error * norm_x[i:j], 2 * self.error * norm_y[k:m]
                        rows, cols = slice(left[0] + i, left[0] + j), slice(right[0] + k, right[0] + m)
                        yield Block(rows, cols, lower, *slacks)

    def exact(self, i: Tensor, j: Tensor) -> Tensor:
        """Squared distances [Q, K] of a[i] and b[j] by direct subtraction in float64; i and j are [Q, 1] or [Q, K]."""
        shape = torch.broadcast_shapes(i.shape, j.shape)
        out = torch.empty(shape, dtype=torch.float64, device=self.device)
        step = max(1, 2**16 // (shape[1] * self.d))  # half a MB: stays in the cache
        for start in range(0, shape[0], step):
            s = slice(start, start + step)
            x, y = (side.index_select(0, k[s].flatten()).double() for side, k in ((self.a, i), (self.b, j)))
            x, y = x.view(-1, i.shape[1], self.d), y.view(-1, j.shape[1], self.d)
            wide, narrow = (x, y) if i.shape[1] == shape[1] else (y, x)
            out[s] = wide.sub_(narrow).square_().sum(dim=2)
        return out

    def lower_rows(self, i: Tensor) -> Tensor:
        """Lower bounds [q, M] of the squared distances of a[i] to all of b, in units of `unit`."""
        return self._lower_all(self._centred(self.a, i), self.b)

    def lower_columns(self, j: Tensor) -> Tensor:
        """Lower bounds [q, N] of the squared distances of b[j] to all of a, in units of `unit`."""
        return self._lower_all(self._centred(self.b, j), self.a)

    def _lower_all(self, x: Tensor, others: Tensor) -> Tensor:
        norm_x, parts = _squares(x), []
        for rows in _cuts(len(others), self.side):
            y = self._centred(others, slice(*rows))
            parts.append(self._lower(x, norm_x, y, _squares(y)))
        return torch.cat(parts, dim=1)

    def _lower(self, x: Tensor, norm_x: Tensor, y: Tensor, norm_y: Tensor, out: Tensor | None = None) -> Tensor:
        shrink, shape = 1 - self.error, (len(x), len(y))
        if out is None or out.numel() < shape[0] * shape[1]:
            out = torch.empty(shape, dtype=x.dtype, device=x.device)
        out = out.flatten()[: shape[0] * shape[1]].view(shape)
        return rows_by_rows(x, y, out).mul_(-2).add_(shrink * norm_x[:, None]).add_(shrink * norm_y)

    def _centred(self, x: Tensor, rows: slice | Tensor) -> Tensor:
        centred = x[rows].to(self.work) - self.shift
        return (centred if self.scale == 1.0 else centred.div_(self.scale)).to(self.dtype)


def _cuts(n: int, step: int) -> list[tuple[int, int]]:
    """(start, stop) of the parts of n rows."""
    return [(start, min(start + step, n)) for start in range(0, n, step)]


def _squares(x: Tensor) -> Tensor:
    """|x_i|^2 of each row, [n]."""
    return torch.linalg.vector_norm(x, dim=1).square_()


class Shortlist:
    """The smallest lower bounds seen so far for each of n queries.

    On the CPU a float32 bound and its item are one float64: the bound fills the upper half of the digits, the item the
    lower, so that NumPy's partition, ten times faster than torch's topk on short rows, sorts both at once.

    Args:
        n: queries.
        items: what they are compared with, all of it sooner or later through `merge`.
        keep: candidates kept per query.
    """

    def __init__(self, n: int, items: int, keep: int, blocks: DistanceBlocks) -> None:
        compared = items - blocks.self_mode  # a point is not its own neighbour
        self.items, self.keep, self.complete = items, min(keep, compared), keep >= compared
        self.block_bytes, self.dtype = blocks.block_bytes, blocks.dtype
        self.packed = blocks.dtype == torch.float32 and blocks.device.type == "cpu" and items <= ITEMS
        if self.packed:
            self.keys = torch.full((n, self.keep), FAR, dtype=torch.float64)
            self.buffers: dict[str, Tensor] = {}
        else:
            self.bounds = torch.full((n, self.keep), torch.inf, dtype=blocks.dtype, device=blocks.device)
            self.indices = torch.zeros((n, self.keep), dtype=torch.long, device=blocks.device)

    def merge(self, queries: slice, lower: Tensor, offset: int) -> None:
        """Take in lower bounds [q, c] of queries `queries` against items offset .. offset + c."""
        if self.packed:
            for start, stop in _cuts(len(lower), ROWS):
                own = self.keys[queries.start + start : queries.start + stop]  # [r, keep]
                keys = self._fresh(lower[start:stop], offset)  # [r, keep + m], the first `keep` are free
                keys[:, : self.keep] = own
                keys.numpy().partition(self.keep - 1, axis=1)
                own.copy_(keys[:, : self.keep])
            return
        bounds, indices = lower.topk(min(self.keep, lower.shape[1]), dim=1, largest=False, sorted=False)
        bounds = torch.cat([self.bounds[queries], bounds], dim=1)
        indices = torch.cat([self.indices[queries], indices + offset], dim=1)
        self.bounds[queries], order = bounds.topk(self.keep, dim=1, largest=False, sorted=False)
        self.indices[queries] = indices.gather(1, order)

    def merge_columns(self, queries: slice, lower: Tensor, offset: int) -> None:
        """`merge` of the transpose: lower bounds [c, q], without copying it."""
        self.merge(queries, lower.T, offset)

    def _fresh(self, lower: Tensor, offset: int) -> Tensor:
        """Keys of bounds [r, c] among which the `keep` smallest of each row are, behind `keep` free places.

        Those lie in the `keep` groups of columns whose own smallest are the smallest, so that most elements are only
        compared with those of their group. Buffers are used again: fresh memory costs more than what is done in it.
        """
        rows, columns = lower.shape
        groups = columns // GROUP
        if groups < 2 * self.keep:
            chosen, rest = 0, torch.arange(columns)
        else:  # column j belongs to group j % groups; the last few belong to none
            least = _least_of_groups(lower, groups).numpy()  # [r, groups]
            chosen, rest = self.keep * GROUP, torch.arange(groups * GROUP, columns)
        members = self._buffer("members", rows, chosen + len(rest), torch.int64)
        if chosen:
            best = torch.from_numpy(np.argpartition(least, self.keep - 1, axis=1)[:, : self.keep])
            steps = torch.arange(0, groups * GROUP, groups)
            torch.add(best[:, :, None], steps, out=members[:, :chosen].unflatten(1, (self.keep, GROUP)))
        members[:, chosen:] = rest
        values = self._buffer("values", rows, members.shape[1], torch.float32)
        torch.gather(lower, 1, members, out=values)
        keys = self._buffer("keys", rows, self.keep + members.shape[1], torch.float64)
        keys[:, self.keep :] = values.clamp_(max=FAR)
        keys.view(torch.int64)[:, self.keep :] |= members.add_(offset)
        return keys

    def _buffer(self, name: str, rows: int, columns: int, dtype: torch.dtype) -> Tensor:
        """[rows, columns] of whatever was there."""
        if name not in self.buffers or self.buffers[name].numel() < rows * columns:
            self.buffers[name] = torch.empty(rows * columns, dtype=dtype)
        return self.buffers[name][: rows * columns].view(rows, columns)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Bounds [n, keep], ascending, and their items."""
        if not self.packed:
            bounds, order = self.bounds.sort(dim=1)
            return bounds, self.indices.gather(1, order)
        bits = torch.from_numpy(np.sort(self.keys.numpy(), axis=1)).view(torch.int64)
        bounds = (bits & -ITEMS).view(torch.float64).float()
        return torch.where(bounds >= FAR, torch.inf, bounds), bits & (ITEMS - 1)

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
        lower, candidates = self.kept()
        queries = torch.arange(len(lower), device=lower.device)
        values, indices = _smallest(measure(queries[:, None], candidates[:, :k]), candidates[:, :k], k)
        if self.keep > k:  # a spare one is measured only where its bound leaves room for it
            rows = queries[lower[:, k].double() * unit < values[:, k - 1]]
            spare = measure(rows[:, None], candidates[rows, k:])
            both = torch.cat([values[rows], spare], dim=1), torch.cat([indices[rows], candidates[rows, k:]], dim=1)
            values[rows], indices[rows] = _smallest(*both, k)
        if not self.complete:  # are those that were left out certainly no nearer than what was found?
            left_out = lower[:, -1].double() * unit
            doubtful = queries[(values[:, k - 1] > left_out) & (values[:, k - 1] > 0)]
            for part in doubtful.split(max(1, self.block_bytes // (64 * self.items))) if len(doubtful) else ():
                possible = bounds(part).double() * unit <= values[part, k - 1, None]  # [q, items]
                row, item = possible.nonzero(as_tuple=True)
                exact = torch.full(possible.shape, torch.inf, dtype=torch.float64, device=part.device)
                exact[row, item] = measure(part[row, None], item[:, None])[:, 0]
                values[part], indices[part] = exact.topk(k, dim=1, largest=False)
        return values, indices


def _least_of_groups(lower: Tensor, groups: int) -> Tensor:
    """The smallest of each group of columns [q, groups]; a transposed block is reduced along the rows that it has."""
    body = groups * GROUP
    if lower.is_contiguous():
        return lower[:, :body].unflatten(1, (GROUP, groups)).amin(dim=1)
    return lower.T[:body].unflatten(0, (GROUP, groups)).amin(dim=0).T.contiguous()


def _smallest(values: Tensor, indices: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, order = values.topk(k, dim=1, largest=False)  # sorted ascending
    return values, indices.gather(1, order)


def nearest_neighbours(
    points: object,
    k: int,
    *,
    queries: object | None = None,
    squared: bool = False,
    spare: int = 6,
    block_bytes: int = BLOCK_BYTES,
) -> tuple[Tensor, Tensor]:
    """Exact k nearest neighbours in `points` of every query, or of every point among the others.

    Args:
        points: features [N, d].
        k: neighbours wanted, 1 <= k < N (k <= N with queries).
        queries: features [Q, d]; None: the points themselves, each masked out of its own list. A query that equals a
            point is at distance 0 from it: nothing is masked.
        squared: return squared distances.
        spare: candidates kept beyond k, which are measured where the bounds do not settle the matter.
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
            candidates.merge_columns(block.cols, block.lower, block.rows.start)

    def bounds(i: Tensor) -> Tensor:
        lower = blocks.lower_rows(i)
        return lower.scatter(1, i[:, None], torch.inf) if blocks.self_mode else lower

    values, indices = candidates.best(k, blocks.unit, blocks.exact, bounds)
    return (values if squared else values.sqrt()), indices
