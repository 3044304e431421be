"""GaussianStats: the same statistics for any batching, exact storage, and no comparison of unlike things."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labkit.metrics import Fingerprint, GaussianStats, frechet_distance

MADE_HERE = Fingerprint("tiny/pool", "ab" * 32, "clean-299: uint8 rounded")


def rows(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def same(a: GaussianStats, b: GaussianStats, tolerance: float = 1e-12) -> None:
    assert a.n == b.n
    torch.testing.assert_close(a.mean, b.mean, rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(a.covariance, b.covariance, rtol=tolerance, atol=tolerance)


def test_matches_numpy_for_both_ddof():
    x = rows(37, 5)
    for ddof in (0, 1):
        stats = GaussianStats.from_features(x, ddof=ddof)
        np.testing.assert_allclose(stats.covariance.numpy(), np.cov(x.numpy(), rowvar=False, ddof=ddof), rtol=1e-12)
        np.testing.assert_allclose(stats.mean.numpy(), x.mean(0).numpy(), rtol=1e-12)


def test_wide_features_take_the_blocked_product_to_the_same_covariance():
    x = rows(50, 300)
    covariance = GaussianStats.from_features(x).covariance
    np.testing.assert_allclose(covariance.numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-10, atol=1e-13)
    torch.testing.assert_close(covariance, covariance.T, rtol=1e-12, atol=1e-14)


@settings(max_examples=15)
@given(cuts=st.lists(st.integers(1, 39), max_size=6), seed=st.integers(0, 99))
def test_any_split_and_merge_order_gives_the_batch_statistics(cuts, seed):
    x = rows(40, 4, seed)
    edges = sorted({0, 40, *cuts})
    parts = [x[a:b] for a, b in zip(edges, edges[1:], strict=False)]
    whole = GaussianStats.from_features(x)
    streamed = GaussianStats()
    for part in parts:
        streamed.update(part)
    same(streamed, whole)
    pool = [GaussianStats().update(part) for part in reversed(parts)]
    while len(pool) > 1:  # a merge tree of another order
        pool.append(pool.pop(0).merge(pool.pop(0)))
    same(pool[0], whole)


def test_chunks_may_have_different_dtypes():
    x = rows(30, 3).float()
    mixed = GaussianStats().update(x[:10]).update(x[10:20].double()).update(x[20:].numpy())
    same(mixed, GaussianStats.from_features(x))


def test_merging_with_an_empty_accumulator_changes_nothing():
    stats = GaussianStats.from_features(rows(9, 3))
    same(GaussianStats().merge(stats), stats)
    same(stats.merge(GaussianStats()), stats)


def test_a_mean_of_a_million_does_not_break_the_covariance():
    x = rows(200, 6)
    shifted = GaussianStats()
    for part in (x + 1e6).split(13):
        shifted.update(part)
    torch.testing.assert_close(shifted.covariance, GaussianStats.from_features(x).covariance, rtol=1e-7, atol=1e-8)


def test_f7_three_constant_images_need_ddof_one():
    features = torch.tensor([0.0, 127.0, 255.0])[:, None].expand(3, 3) / 255
    stats = GaussianStats.from_features(features)
    torch.testing.assert_close(stats.mean, torch.full((3,), 0.5, dtype=torch.float64), atol=1e-3, rtol=0)
    torch.testing.assert_close(stats.covariance, torch.full((3, 3), 0.25, dtype=torch.float64), atol=1e-3, rtol=0)


@pytest.mark.parametrize("ending", ["safetensors", "json"])
def test_saving_and_loading_is_bit_exact_and_keeps_the_fingerprint(tmp_path, ending):
    stats = GaussianStats.from_features(rows(20, 4), ddof=0, fingerprint=MADE_HERE)
    loaded = GaussianStats.load(stats.save(tmp_path / f"stats.{ending}"))
    assert torch.equal(loaded.mean, stats.mean) and torch.equal(loaded.m2, stats.m2)
    assert (loaded.n, loaded.ddof, loaded.fingerprint) == (20, 0, MADE_HERE)
    assert [p.name for p in tmp_path.iterdir()] == [f"stats.{ending}"]  # no partial file is left
    loaded.update(rows(5, 4, seed=1))  # accumulation goes on after loading
    same(loaded, GaussianStats.from_features(torch.cat([rows(20, 4), rows(5, 4, seed=1)]), ddof=0))


def test_a_failed_save_keeps_the_old_file(tmp_path, monkeypatch):
    path = GaussianStats.from_features(rows(20, 4)).save(tmp_path / "stats.json")
    before = path.read_bytes()
    monkeypatch.setattr("os.replace", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        GaussianStats.from_features(rows(8, 4)).save(path)
    assert path.read_bytes() == before


def test_damaged_foreign_and_missing_files_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="no statistics file"):
        GaussianStats.load(tmp_path / "none.safetensors")
    path = GaussianStats.from_features(rows(20, 4)).save(tmp_path / "stats.safetensors")
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="not a statistics file"):
        GaussianStats.load(path)
    (tmp_path / "other.json").write_text(json.dumps({"mean": [0.0], "m2": [[1.0]], "n": 3, "ddof": 1}))
    with pytest.raises(ValueError, match="not a statistics file"):
        GaussianStats.load(tmp_path / "other.json")
    with pytest.raises(ValueError, match="unknown ending"):
        GaussianStats.from_features(rows(20, 4)).save(tmp_path / "stats.npz")


def test_different_fingerprints_are_never_compared_or_merged():
    other = Fingerprint("tiny/pool", "ab" * 32, "legacy-299: uint8 rounded")
    a = GaussianStats.from_features(rows(20, 4), fingerprint=MADE_HERE)
    b = GaussianStats.from_features(rows(20, 4), fingerprint=other)
    for compare in (lambda: a.merge(b), lambda: frechet_distance(real=a, fake=b)):
        with pytest.raises(ValueError, match=r"pipeline: .*clean-299.* != .*legacy-299"):
            compare()
    assert frechet_distance(real=a, fake=a).value == pytest.approx(0, abs=1e-9)
    unknown = GaussianStats.from_features(rows(20, 4))
    assert any("fingerprint" in w for w in frechet_distance(real=a, fake=unknown).warnings)


def test_ddof_must_agree():
    a, b = GaussianStats.from_features(rows(20, 4), ddof=0), GaussianStats.from_features(rows(20, 4))
    with pytest.raises(ValueError, match="ddof = 0"):
        a.merge(b)
    with pytest.raises(ValueError, match="real has ddof = 0"):
        frechet_distance(real=a, fake=b)
    with pytest.raises(ValueError, match="ddof must be 0 or 1"):
        GaussianStats(ddof=2)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (torch.tensor([[1.0, torch.nan]]), "NaN or infinite"),
        (torch.tensor([[1.0, torch.inf]]), "NaN or infinite"),
        (torch.zeros(5), "must be 2-D"),
        (torch.zeros(0, 3), "0 sample"),
        (torch.zeros(2, 4), "4 features"),
    ],
)
def test_bad_batches_are_refused_and_change_nothing(features, message):
    stats = GaussianStats.from_features(rows(10, 3))
    before = stats.m2.clone()
    with pytest.raises(ValueError, match=message) as error:
        stats.update(features)
    assert "\n" not in str(error.value)
    assert stats.n == 10 and torch.equal(stats.m2, before)


def test_moments_are_checked():
    with pytest.raises(ValueError, match="not symmetric"):
        GaussianStats.from_moments(mean=[0, 0], covariance=[[1, 2], [0, 1]])
    with pytest.raises(ValueError, match=r"\[d\]"):
        GaussianStats.from_moments(mean=[0, 0, 0], covariance=[[1, 0], [0, 1]])
    stats = GaussianStats.from_moments(mean=[0, 0], covariance=[[1, 0], [0, 1]])
    with pytest.raises(ValueError, match="sample count"):
        stats.merge(stats)
    same(
        GaussianStats.from_moments(mean=[0, 0], covariance=[[1, 0], [0, 1]], n=5).merge(GaussianStats()),
        GaussianStats.from_moments(mean=[0, 0], covariance=[[1, 0], [0, 1]], n=5),
    )
    with pytest.raises(ValueError, match="1 sample"):
        _ = GaussianStats().update([[1.0, 2.0]]).covariance
