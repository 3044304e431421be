"""Exact nearest neighbours: equal to direct float64 search whatever the offset, scale, block size or duplicates."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import labkit.metrics.knn as knn
from labkit.metrics import nearest_neighbours


def cloud(n: int, d: int, seed: int = 0, dtype=torch.float32) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def direct(queries: torch.Tensor, points: torch.Tensor, k: int, mask: bool) -> torch.Tensor:
    squared = (queries.double()[:, None] - points.double()[None]).square().sum(dim=-1)
    if mask:
        squared.fill_diagonal_(torch.inf)
    return squared.topk(k, largest=False).values


@pytest.mark.parametrize("d", [2, 33, 200])
@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("block_bytes", [1, 400_000, 2**27])
def test_exact_for_any_offset_and_block_size(d, offset, block_bytes):
    n = 20 if block_bytes == 1 else 150
    x, y = cloud(n, d) + offset, cloud(n // 4, d, 1) + offset
    found, index = nearest_neighbours(x, 5, squared=True, block_bytes=block_bytes)
    assert torch.equal(found, direct(x, x, 5, mask=True))
    assert torch.equal((x.double()[:, None] - x.double()[index]).square().sum(-1), found)
    assert not (index == torch.arange(n)[:, None]).any()
    assert torch.equal(
        nearest_neighbours(x, 5, queries=y, squared=True, block_bytes=block_bytes)[0], direct(y, x, 5, False)
    )


def test_tight_cluster_far_away_keeps_its_digits():
    x = 50 + 0.01 * cloud(200, 64)  # the case in which the float32 expansion loses every digit
    assert torch.equal(nearest_neighbours(x, 3, squared=True)[0], direct(x, x, 3, mask=True))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_extreme_scales_neither_overflow_nor_underflow(scale):
    x = cloud(80, 40).double() * scale
    assert torch.equal(nearest_neighbours(x, 4, squared=True)[0], direct(x, x, 4, mask=True))


@settings(max_examples=15)
@given(
    copies=st.integers(1, 30),
    kinds=st.integers(2, 5),
    k=st.integers(1, 12),
    d=st.sampled_from([2, 40]),
    seed=st.integers(0, 50),
)
def test_many_duplicates(copies, kinds, k, d, seed):
    x = cloud(kinds, d, seed).repeat(copies, 1)
    k = min(k, len(x) - 1)
    assert torch.equal(nearest_neighbours(x, k, squared=True, spare=2)[0], direct(x, x, k, mask=True))


def test_ties_on_a_lattice():
    side = torch.arange(6.0)
    x = torch.cartesian_prod(side, side, side)
    padded = torch.cat([x, torch.zeros(len(x), 40)], dim=1)  # d > 32: the float32 path
    for points in (x, padded):
        for k in (3, 7, 50):
            assert torch.equal(nearest_neighbours(points, k, squared=True, spare=1)[0], direct(points, points, k, True))


def test_an_outlier_does_not_spoil_the_others():
    x = torch.cat([cloud(150, 64), torch.full((1, 64), 1e4)])
    assert torch.equal(nearest_neighbours(x, 5, squared=True)[0], direct(x, x, 5, mask=True))


def test_reduced_matmul_precision_is_allowed_for():
    x = cloud(150, 64)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found = nearest_neighbours(x, 5, squared=True)[0]
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(found, direct(x, x, 5, mask=True))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64, torch.int32])
def test_dtypes(dtype):
    x = (4 * cloud(70, 50)).to(dtype)
    assert torch.equal(nearest_neighbours(x, 3, squared=True)[0], direct(x, x, 3, mask=True))


def test_a_query_that_equals_a_point_finds_it():
    x = cloud(50, 40)
    distance, index = nearest_neighbours(x, 2, queries=x[7:9])
    assert torch.equal(index[:, 0], torch.tensor([7, 8]))
    assert torch.equal(distance[:, 0], torch.zeros(2, dtype=torch.float64))


def test_all_neighbours_and_range_of_k():
    x = cloud(12, 3)
    distance, _ = nearest_neighbours(x, 11)
    full = (x.double()[:, None] - x.double()[None]).square().sum(-1).sqrt()
    torch.testing.assert_close(distance.sum(dim=1), full.sum(dim=1))
    assert nearest_neighbours(x, 12, queries=x[:1])[0].shape == (1, 12)
    for k in (0, 12, -1):
        with pytest.raises(ValueError, match="k must be between 1 and 11"):
            nearest_neighbours(x, k)
    with pytest.raises(TypeError, match="k must be an integer"):
        nearest_neighbours(x, 2.0)


@pytest.mark.parametrize("d", [3, 40])
def test_groups_tiles_and_tails_miss_nothing(d, monkeypatch):
    """Blocks wide enough for groups of columns, with a tail that belongs to none, several tiles and panels."""
    monkeypatch.setattr(knn, "TILE", 300)
    x = torch.cat([cloud(700, d), 3 + 0.01 * cloud(211, d, 1)])[torch.randperm(911, generator=torch.Generator())]
    for budget in (2**27, 600_000):
        found, index = nearest_neighbours(x, 5, squared=True, block_bytes=budget)
        assert torch.equal(found, direct(x, x, 5, mask=True))
        assert torch.equal((x.double()[:, None] - x.double()[index]).square().sum(-1), found)
        y = cloud(90, d, 2)
        assert torch.equal(
            nearest_neighbours(x, 7, queries=y, squared=True, block_bytes=budget)[0], direct(y, x, 7, False)
        )


def test_spare_candidates_are_measured_where_the_bounds_do_not_settle_it():
    x = cloud(60, 200)
    x = torch.cat([x, x + 1e-4 * cloud(60, 200, 1), x + 1e-4 * cloud(60, 200, 2), x - 1e-4 * cloud(60, 200, 3)])
    for spare in (0, 1, 6):
        assert torch.equal(nearest_neighbours(x, 2, squared=True, spare=spare)[0], direct(x, x, 2, mask=True))


def test_isometry_and_scale():
    x = cloud(90, 20, dtype=torch.float64)
    q = torch.linalg.qr(cloud(20, 20, 3, torch.float64))[0]
    distance, index = nearest_neighbours(x, 4)
    moved, index_moved = nearest_neighbours(3 * (x @ q) + 11, 4)
    torch.testing.assert_close(moved, 3 * distance, rtol=1e-10, atol=1e-10)
    assert torch.equal(index, index_moved)


def test_bad_features_get_one_line():
    x = cloud(10, 3)
    for bad, message in (
        (torch.zeros(4), "2-D"),
        (torch.full((4, 3), torch.nan), "NaN"),
        (torch.zeros(4, 2), "features"),
        ("abc", "2-D|numbers"),
    ):
        with pytest.raises((ValueError, TypeError), match=message) as error:
            nearest_neighbours(x, 2, queries=bad)
        assert "\n" not in str(error.value)
