"""Counts, labels and settings that come out of NumPy or torch give what Python's own numbers give."""

import numpy as np
import pytest
import torch

from labkit.metrics import (
    GaussianStats,
    bradley_terry,
    cluster_bootstrap,
    cmmd,
    fid_infinity,
    frechet_null,
    kernel_distance,
    krippendorff_alpha,
    manifold_metrics,
    nearest_neighbours,
    noise_floor,
    sign_test,
    vendi_score,
    wilson_interval,
    win_rate,
)
from labkit.metrics.manifold import expected_coverage

# Eight bits hold every count below, but not the products and sums made of them.
KINDS = [np.int64, np.int32, np.uint8, lambda v: torch.tensor(v), lambda v: torch.tensor(v, dtype=torch.uint8)]
each_kind = pytest.mark.parametrize("kind", KINDS, ids=["int64", "int32", "uint8", "tensor", "uint8 tensor"])


def cloud(n, d=3, seed=0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator():
    return torch.Generator().manual_seed(0)


@each_kind
@pytest.mark.parametrize(
    ("wins", "losses", "p"), [(116, 78, 0.00773451), (60, 40, 0.0568879), (8, 2, 0.109375), (0, 5, 0.0625)]
)
def test_sign_test_has_its_exact_value_for_every_kind_of_count(kind, wins, losses, p):
    got = sign_test(kind(wins), kind(losses))
    assert type(got) is float and got == sign_test(wins, losses) == pytest.approx(p, rel=1e-5)


@each_kind
def test_wilson_and_noise_formulas_do_not_overflow(kind):
    assert wilson_interval(kind(120), kind(200)) == wilson_interval(120, 200)
    assert noise_floor([1.0, 4.0], n_real=kind(200), n_fake=kind(90)) == noise_floor([1.0, 4.0], n_real=200, n_fake=90)
    counts = {"n_real": 200, "n_fake": 190, "k": 5}
    assert expected_coverage(**{name: kind(n) for name, n in counts.items()}) == expected_coverage(**counts)


@each_kind
def test_settings_may_be_counted_by_numpy_or_torch(kind, tmp_path):
    x, y = cloud(30), 0.4 + cloud(25, seed=1)
    near, plain = nearest_neighbours(x, kind(3)), nearest_neighbours(x, 3)
    assert all(torch.equal(a, b) for a, b in zip(near, plain, strict=True))
    got = manifold_metrics(real=x, fake=y, k=kind(4))
    assert got.as_dict() == manifold_metrics(real=x, fake=y, k=4).as_dict() and type(got.k) is int
    options = {"subsets": 3, "subset_size": 20}
    assert kernel_distance(
        real=x, fake=y, generator=generator(), **{name: kind(v) for name, v in options.items()}
    ) == kernel_distance(real=x, fake=y, generator=generator(), **options)
    assert cmmd(real=x, fake=y, sigma=kind(2)) == cmmd(real=x, fake=y, sigma=2)
    options = {"points": 4, "smallest": 12}
    assert fid_infinity(
        real=x, fake=y, generator=generator(), **{name: kind(v) for name, v in options.items()}
    ) == fid_infinity(real=x, fake=y, generator=generator(), **options)
    null, p = frechet_null(real=x, fake=y, rounds=kind(3), generator=generator())
    assert len(null) == 3 and p in (0.25, 0.5, 0.75, 1.0)
    stats = GaussianStats.from_moments(mean=[0, 0], covariance=[[2, 0], [0, 1]], n=kind(200))
    assert GaussianStats.load(stats.save(tmp_path / "stats.json")).n == 200


@pytest.mark.parametrize("kind", [np.array, torch.tensor, lambda v: torch.tensor(v, dtype=torch.uint8)])
def test_prompts_and_labels_in_arrays_are_compared_by_value(kind):
    """The elements of a tensor are objects of their own: as keys they would make every comparison a prompt."""
    outcome, prompts = [1.0, 0.0, 0.0, 1.0, 1.0, 1.0], [7, 7, 7, 8, 9, 9]
    draw = lambda p: win_rate(outcome, prompts=p, generator=np.random.default_rng(0))  # noqa: E731
    assert draw(kind(prompts)) == draw(prompts) == draw(list(kind(prompts))) and draw(prompts).prompts == 3
    labels = [[0, 1, 1, 2, 0, 1], [0, 1, 2, 2, 0, 0]]
    assert krippendorff_alpha(kind(labels)) == krippendorff_alpha(labels) == krippendorff_alpha(list(map(kind, labels)))
    games = {"first": [1, 1, 2, 1], "second": [2, 3, 3, 2], "outcome": [1, 0, 1, 1]}
    ours, theirs = bradley_terry(**games), bradley_terry(**{name: kind(v) for name, v in games.items()})
    assert ours.names == theirs.names == ("1", "2", "3") and (ours.strengths == theirs.strengths).all()


@pytest.mark.parametrize("resamples", [np.int64(200), torch.tensor(200)])
def test_resampling_counts_likewise(resamples):
    values = [0.2, 0.9, 0.4, 1.0, 0.7]
    rng = np.random.default_rng
    assert cluster_bootstrap(values, generator=rng(0), resamples=resamples) == cluster_bootstrap(
        values, generator=rng(0), resamples=200
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_features_give_the_metrics_of_the_same_numbers_in_double(dtype):
    x, y = cloud(30).to(dtype), (0.5 + cloud(25, seed=1)).to(dtype)
    for metric in (kernel_distance, cmmd):
        assert metric(real=x, fake=y).value == pytest.approx(metric(real=x.double(), fake=y.double()).value, rel=1e-9)
    assert manifold_metrics(real=x, fake=y).as_dict() == manifold_metrics(real=x.double(), fake=y.double()).as_dict()
    assert vendi_score(x) == vendi_score(x.double())
    scores = win_rate(torch.tensor([1, 0, 0.5, 1], dtype=dtype), generator=np.random.default_rng(0))
    assert (scores.value, scores.ties) == (0.625, 1)


@pytest.mark.parametrize(
    "bad", [60.0, np.float64(60), torch.tensor(60.0), True, np.True_, torch.tensor(True), "60", None]
)
def test_what_is_no_count_is_refused(bad):
    with pytest.raises(TypeError, match="wins must be an integer"):
        sign_test(bad, 40)
    with pytest.raises(TypeError, match="k must be an integer"):
        nearest_neighbours(cloud(9), bad)
