"""The kernel of KID, (gamma a.b + coef)^3, summed over float32 features in float32 without losing what KID looks at.

KID is a small difference of large means: features are far from the origin, so every kernel value is large and nearly
the same. With any vector m near the common mean, a = m + a',

    gamma a_i.a_j + coef = u_ij + s_i + s_j,    u_ij = gamma a'_i.a'_j,    s_i = gamma (m.a'_i + |m|^2 / 2) + coef / 2
    (u + s_i + s_j)^3    = u^2 (u + 3 s_i + 3 s_j)  +  3 u (s_i + s_j)^2  +  (s_i + s_j)^3

and only the first term needs a matrix: the sums of the other two are products of vectors, in float64. The matrix is
small where the kernel is large, so float32 suffices for it, in half the time of float64.

Random subsets are sums over the same matrix: each of its values is computed once for all of them where that is less
work (100 subsets of 1,000 among 10,000 pictures repeat every pair).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from labkit.metrics.products import rows_by_rows, strictly_below

BLOCK = 1360  # rows and columns of a block: wide enough for the product to run at full speed
CHUNK = 256  # rows that are converted to float64 at a time
SAMPLE = 512  # rows of each side from which m is taken
LARGEST = 1e11  # of gamma a.b + coef: its third power is far inside float32


def suits(real: Tensor, fake: Tensor, degree: int, gamma: float, coef: float) -> bool:
    """Whether `CubicKernel` takes these features: degree 3, no float64, products in full float32 without overflow."""
    if degree != 3 or not (gamma > 0 and coef > 0) or torch.float64 in (real.dtype, fake.dtype):
        return False
    largest = max(float(end.abs()) for x in (real, fake) for end in x.aminmax())
    in_range = gamma * real.shape[1] * (2 * largest) ** 2 + coef < LARGEST
    return in_range and torch.get_float32_matmul_precision() == "highest"


class CubicKernel:
    """Sums of (gamma a.b + coef)^3 within and across two sets of features [n, d] and [m, d] on one device."""

    def __init__(self, real: Tensor, fake: Tensor, gamma: float, coef: float) -> None:
        self.root = gamma**0.5
        self.features = (real, fake)
        mean = sum(x[:: -(-len(x) // SAMPLE)].double().mean(dim=0) for x in self.features) / 2  # [d], about
        self.shift = mean * self.root
        constant = float(self.shift @ self.shift + coef) / 2
        self.small: list[Tensor] = []  # sqrt(gamma) a' [n, d] float32
        self.side: list[Tensor] = []  # s [n] float64
        self.own: list[Tensor] = []  # u_ii [n] float64
        self.space: Tensor | None = None  # [2, BLOCK^2], where the blocks are made
        self.picked: list[Tensor] | None = None  # [size, d] of each side, where a subset's rows are put together
        self.plain: dict[int, Tensor] = {}  # moments [3, d] of a whole set
        for x in self.features:
            small = torch.empty(x.shape, dtype=torch.float32, device=x.device)
            side, own = (torch.empty(len(x), dtype=torch.float64, device=x.device) for _ in range(2))
            for start, centred in self._centred(x):
                rows = slice(start, start + len(centred))
                small[rows], own[rows] = centred.float(), centred.square().sum(dim=1)
                side[rows] = centred @ self.shift + constant
            self.small.append(small)
            self.side.append(side)
            self.own.append(own)

    def _centred(self, x: Tensor) -> Iterator[tuple[int, Tensor]]:
        """(first row, sqrt(gamma) a' of some rows in float64)."""
        for start in range(0, len(x), CHUNK):
            yield start, x[start : start + CHUNK].double().mul_(self.root).sub_(self.shift)

    def _moments(self, which: int, weights: Tensor) -> list[Tensor]:
        """sum_i w_i s_i^p sqrt(gamma) a'_i for p = 0, 1, 2, each [K, d], of weights [n, K] in float64."""
        side = self.side[which][:, None]
        powers = torch.cat([weights, weights * side, weights * side.square()], dim=1)  # [n, 3 K]
        out = torch.zeros(powers.shape[1], len(self.shift), dtype=torch.float64, device=weights.device)
        for start, centred in self._centred(self.features[which]):
            out.addmm_(powers[start : start + len(centred)].T, centred)
        return list(out.chunk(3))

    # ---- all pairs ----------------------------------------------------------------------------------------------

    def within(self, which: int) -> Tensor:
        """sum_{j != i} k(x_i, x_j) for each i of one set, [n] float64."""
        s, own = self.side[which], self.own[which]
        sums = torch.zeros_like(s)
        for i, j, block in self._blocks(self.small[which], s):
            sums[i : i + BLOCK] += block.sum(dim=1)
            sums[j : j + BLOCK] += block.sum(dim=0)
        sums += self._rest(which, which)
        return sums - 12 * own * s.square() - 8 * s**3  # what the rest counts for i = j

    def across(self) -> tuple[Tensor, Tensor]:
        """(sum_j k(x_i, y_j) [n], sum_i k(x_i, y_j) [m]), float64."""
        sums = [torch.zeros_like(s) for s in self.side]
        for i, j, block in self._blocks(self.small[0], self.side[0], self.small[1], self.side[1]):
            sums[0][i : i + BLOCK] += block.sum(dim=1)
            sums[1][j : j + BLOCK] += block.sum(dim=0)
        return sums[0] + self._rest(0, 1), sums[1] + self._rest(1, 0)

    def _rest(self, which: int, other: int) -> Tensor:
        """sum_j 3 u_ij (s_i + s_j)^2 + (s_i + s_j)^3 for each i of one set over all j of the other, [n]."""
        s, t = self.side[which], self.side[other]
        if other not in self.plain:
            ones = torch.ones(len(t), 1, dtype=torch.float64, device=t.device)
            self.plain[other] = torch.cat(self._moments(other, ones))
        a = self.plain[other]  # [3, d]
        linear = torch.empty_like(s)
        for start, centred in self._centred(self.features[which]):
            rows = slice(start, start + len(centred))
            products = centred @ a.T  # [rows, 3]
            powers = torch.stack([s[rows].square(), 2 * s[rows], torch.ones_like(s[rows])], dim=1)
            linear[rows] = (products * powers).sum(dim=1)
        p1, p2, p3 = t.sum(), t.square().sum(), (t**3).sum()
        return 3 * linear + len(t) * s**3 + 3 * s.square() * p1 + 3 * s * p2 + p3

    # ---- random subsets -----------------------------------------------------------------------------------------

    def subsets(self, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> Tensor:
        """The U-statistic of each pair of subsets [K]: `rows` are indices of the first set, `columns` of the second."""
        n, m = (len(x) for x in self.features)
        k, size, d = len(rows), len(rows[0]), len(self.shift)
        weights = [
            torch.zeros(len(x), k, dtype=torch.float64, device=x.device).index_put_(
                (torch.cat(list(picked)), torch.arange(k, device=x.device).repeat_interleave(size)),
                torch.ones((), dtype=torch.float64, device=x.device),
            )
            for x, picked in zip(self.features, (rows, columns), strict=True)
        ]
        whole = (n * n / 2 + m * m / 2 + n * m) * (d + k)
        if whole <= k * 2 * size * size * d:  # a product with itself costs half
            curved = self._curved_of_all(weights)
        else:
            curved = torch.stack([self._curved_of_one(x, y) for x, y in zip(rows, columns, strict=True)], dim=1)
        moments = [self._moments(side, weights[side]) for side in (0, 1)]
        powers = [[weights[side].T @ self.side[side] ** p for p in (1, 2, 3)] for side in (0, 1)]  # [K] each

        def product(one: Tensor, other: Tensor) -> Tensor:
            return (one * other).sum(dim=1)

        def total(side: int) -> Tensor:
            (a0, a1, a2), (p1, p2, p3) = moments[side], powers[side]
            s, own = self.side[side], self.own[side]
            diagonal = weights[side].T @ (12 * own * s.square() + 8 * s**3)
            linear = 6 * (product(a0, a2) + product(a1, a1))
            return curved[side] + linear + 2 * size * p3 + 6 * p1 * p2 - diagonal

        (a0, a1, a2), (b0, b1, b2) = moments
        (p1, p2, p3), (q1, q2, q3) = powers
        linear = 3 * (product(a2, b0) + 2 * product(a1, b1) + product(a0, b2))
        cross = curved[2] + linear + size * (p3 + q3) + 3 * (p2 * q1 + p1 * q2)
        return (total(0) + total(1)) / (size * (size - 1)) - 2 * cross / size**2

    def _curved_of_all(self, weights: Sequence[Tensor]) -> Tensor:
        """sum of u^2 (u + 3 s_i + 3 s_j) over each subset: within the first, within the second, across, [3, K]."""
        marks = [w.float() for w in weights]
        out = torch.zeros(3, weights[0].shape[1], dtype=torch.float64, device=weights[0].device)
        for side in (0, 1):
            for i, j, block in self._blocks(self.small[side], self.side[side]):
                out[side] += 2 * (marks[side][i : i + BLOCK] * (block @ marks[side][j : j + BLOCK])).sum(dim=0)
        for i, j, block in self._blocks(self.small[0], self.side[0], self.small[1], self.side[1]):
            out[2] += (marks[0][i : i + BLOCK] * (block @ marks[1][j : j + BLOCK])).sum(dim=0)
        return out

    def _curved_of_one(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The same of one subset, [3]."""
        if self.picked is None:  # asked for once, not for every subset
            self.picked = [x.new_empty(len(rows), x.shape[1]) for x in self.small]
        x = torch.index_select(self.small[0], 0, rows, out=self.picked[0])
        y = torch.index_select(self.small[1], 0, columns, out=self.picked[1])
        s, t = self.side[0][rows], self.side[1][columns]
        within = [
            2 * sum(float(block.sum(dim=1).double().sum()) for *_, block in self._blocks(*side))
            for side in ((x, s), (y, t))
        ]
        across = sum(float(block.sum(dim=1).double().sum()) for *_, block in self._blocks(x, s, y, t))
        return torch.tensor([*within, across], dtype=torch.float64, device=x.device)

    # ---- the matrix ---------------------------------------------------------------------------------------------

    def _blocks(
        self, x: Tensor, s: Tensor, y: Tensor | None = None, t: Tensor | None = None
    ) -> Iterator[tuple[int, int, Tensor]]:
        """(start of rows, start of columns, u^2 (u + 3 s_i + 3 s_j) in float32); of one set: every pair i != j in one
        order only, the other one is 0 or not there."""
        same = y is None
        y, t = (x, s) if y is None or t is None else (y, t)
        s, t = (3 * s).float(), (3 * t).float()
        if self.space is None:
            self.space = torch.empty(2, BLOCK * BLOCK, dtype=torch.float32, device=x.device)
        for i in range(0, len(x), BLOCK):
            for j in range(i if same else 0, len(y), BLOCK):
                rows, columns = x[i : i + BLOCK], y[j : j + BLOCK]
                u, block = (part[: len(rows) * len(columns)].view(len(rows), len(columns)) for part in self.space)
                if same and i == j:
                    strictly_below(rows, u)
                else:
                    rows_by_rows(rows, columns, u)
                torch.add(s[i : i + BLOCK, None], t[j : j + BLOCK], out=block)
                yield i, j, block.add_(u).mul_(u).mul_(u)
