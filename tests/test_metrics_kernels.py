"""KID and CMMD: exact vectors K1-K3, C1, C2, unbiasedness, jackknife errors, and the near-linearity of CMMD."""

import pytest
import torch

import labkit.metrics.cubic as cubic
import labkit.metrics.kernels as kernels
import labkit.metrics.products as products
from labkit.metrics import cmmd, kernel_distance


def cloud(n: int, d: int, seed: int = 0, scale: float = 1.0) -> torch.Tensor:
    return scale * torch.randn(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def formula(x: torch.Tensor, y: torch.Tensor) -> float:
    """Unbiased MMD2 with full matrices."""
    (n, d), m = x.shape, len(y)
    k = lambda a, b: (a @ b.T / d + 1) ** 3  # noqa: E731
    xx, yy = k(x, x).fill_diagonal_(0).sum() / (n * (n - 1)), k(y, y).fill_diagonal_(0).sum() / (m * (m - 1))
    return float(xx + yy - 2 * k(x, y).mean())


def test_k1_point_masses():
    d = 9
    y = torch.zeros(7, d)
    y[:, 0] = d**0.5
    assert kernel_distance(real=torch.zeros(5, d), fake=y).value == pytest.approx(7, abs=1e-9)


def test_k2_two_gaussian_widths():
    runs = [kernel_distance(real=cloud(200, 4, 2 * i), fake=cloud(200, 4, 2 * i + 1, 1.5)).value for i in range(20)]
    values = torch.tensor(runs)
    assert float(values.mean()) == pytest.approx(3 / 4 * (1 - 1.5**2) ** 2, abs=4 * float(values.std()) / 20**0.5)


def test_k3_a_set_against_itself_is_negative_not_zero():
    x = cloud(100, 8)
    kernel = (x @ x.T / 8 + 1) ** 3
    diagonal = float(kernel.diagonal().mean())
    off = float((kernel.sum() - kernel.diagonal().sum()) / (100 * 99))
    value = kernel_distance(real=x, fake=x).value
    assert value == pytest.approx(2 / 100 * (off - diagonal), rel=1e-9)
    assert value < -0.05


@pytest.mark.parametrize("block", [3, 2048])
def test_blocks_equal_the_formula(block, monkeypatch):
    monkeypatch.setattr(kernels, "BLOCK", block)
    x, y = cloud(23, 5), 0.3 + cloud(17, 5, 1)
    assert kernel_distance(real=x, fake=y).value == pytest.approx(formula(x, y), rel=1e-10)
    full = cmmd(real=x, fake=y, sigma=1.0, scale=1.0, normalise=False)
    k = lambda a, b: torch.exp(-(torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist") ** 2) / 2)  # noqa: E731
    assert full.value == pytest.approx(float(k(x, x).mean() + k(y, y).mean() - 2 * k(x, y).mean()), rel=1e-9)


def test_one_subset_of_everything_is_the_all_pairs_value():
    x, y = cloud(40, 6), 0.2 + cloud(40, 6, 1)
    subset = kernel_distance(real=x, fake=y, subsets=1, subset_size=40, generator=generator())
    assert subset.value == pytest.approx(kernel_distance(real=x, fake=y).value, rel=1e-12)
    assert (subset.estimator, subset.standard_error) == ("subsets", None)


def test_subsets_are_seeded_and_centre_on_the_all_pairs_value():
    x, y = cloud(120, 4), 0.5 + cloud(100, 4, 1)
    draw = lambda seed: kernel_distance(real=x, fake=y, subsets=60, subset_size=30, generator=generator(seed))  # noqa: E731
    assert draw(1) == draw(1)
    assert draw(1) != draw(2)
    assert draw(1).value == pytest.approx(kernel_distance(real=x, fake=y).value, abs=4 * draw(1).subset_std / 60**0.5)


def test_unbiased_for_equal_laws_and_the_jackknife_error_is_of_the_right_size():
    runs = [kernel_distance(real=cloud(60, 3, 2 * i), fake=cloud(50, 3, 2 * i + 1)) for i in range(80)]
    values = torch.tensor([r.value for r in runs])
    spread = float(values.std())
    assert abs(float(values.mean())) < 4 * spread / 80**0.5
    shifted = [kernel_distance(real=cloud(60, 3, 2 * i), fake=0.8 + cloud(50, 3, 2 * i + 1)) for i in range(80)]
    values, errors = torch.tensor([r.value for r in shifted]), torch.tensor([r.standard_error for r in shifted])
    assert 0.75 < float(errors.square().mean().sqrt()) / float(values.std()) < 1.35


def test_float32_features_lose_nothing():
    x, y = cloud(200, 64).float(), 0.1 + cloud(200, 64, 1).float()
    assert kernel_distance(real=x, fake=y).value == kernel_distance(real=x.double(), fake=y.double()).value


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_sets_are_multiplied_in_float32_and_keep_their_digits(offset, dtype, monkeypatch):
    """The shifted kernel against float64, with several blocks: value, standard error and subsets."""
    monkeypatch.setattr(kernels, "SMALL", 0)
    monkeypatch.setattr(cubic, "BLOCK", 64)
    monkeypatch.setattr(cubic, "CHUNK", 50)
    x, y = (offset + cloud(230, 24)).to(dtype), (offset + 0.2 + 1.1 * cloud(170, 24, 1)).to(dtype)
    exact = kernel_distance(real=x.double(), fake=y.double())
    mean = float(((x.double() @ y.double().T) / 24 + 1).pow(3).mean())
    fast = kernel_distance(real=x, fake=y)
    assert (fast.value, fast.standard_error) != (exact.value, exact.standard_error)  # it is the other way
    assert fast.value == pytest.approx(exact.value, abs=1e-8 * mean)
    assert fast.standard_error == pytest.approx(exact.standard_error, rel=1e-6)
    for size in (20, 170):  # few repeats: each subset alone; many: the whole matrix once
        options = {"subsets": 15, "subset_size": size}
        fast = kernel_distance(real=x, fake=y, generator=generator(), **options)
        want = kernel_distance(real=x.double(), fake=y.double(), generator=generator(), **options)
        assert fast.value == pytest.approx(want.value, abs=1e-7 * mean)
        assert fast.subset_std == pytest.approx(want.subset_std, rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_set_with_itself_is_multiplied_below_the_diagonal_whatever_was_in_memory(dtype):
    x = cloud(7, 3).to(dtype)
    out = products.strictly_below(x, torch.full((7, 7), float("nan"), dtype=dtype))
    assert torch.allclose(out, (x @ x.T).tril(-1), atol=1e-6)
    assert not out.triu().any()


def test_what_float32_cannot_hold_stays_in_float64():
    x, y = cloud(50, 8).float(), 0.1 + cloud(40, 8, 1).float()
    for options in ({"degree": 2}, {"coef": 0.0}, {"gamma": 1e12}):
        options |= {"subsets": 3, "subset_size": 10}
        one = kernel_distance(real=x, fake=y, generator=generator(), **options)
        assert one == kernel_distance(real=x.double(), fake=y.double(), generator=generator(), **options)


# ---- CMMD ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("second", "want"), [((0.0, 1.0), 19.900332501663787), ((-1.0, 0.0), 39.60265338648949)])
def test_c1_c2_point_masses(second, want):
    x, y = torch.tensor([[1.0, 0.0]]).repeat(4, 1), torch.tensor([second]).repeat(6, 1)
    assert cmmd(real=x, fake=y).value == pytest.approx(want, rel=1e-13)


def test_range_and_near_linearity():
    x, y = cloud(400, 32), cloud(400, 32, 1)
    y[:, 0] += 1.5
    for pair in ((x, y), (x, x), (x[:20], y[:10])):
        result = cmmd(real=pair[0], fake=pair[1])
        assert 0 <= result.value <= 39.6027
    result = cmmd(real=x, fake=y)
    unit = [s / s.norm(dim=1, keepdim=True) for s in (x, y)]
    means = float((unit[0].mean(0) - unit[1].mean(0)).square().sum())
    assert result.mean_part == pytest.approx(10 * means)
    assert result.value == pytest.approx(10 * means, rel=0.02)
    assert cmmd(real=x, fake=x).value == pytest.approx(0, abs=1e-10)


def test_bias_is_what_equal_laws_read_and_the_unbiased_part_is_zero():
    runs = [cmmd(real=cloud(40, 8, 2 * i), fake=cloud(60, 8, 2 * i + 1)) for i in range(40)]
    value, bias, unbiased = (torch.tensor([getattr(r, n) for r in runs]) for n in ("value", "bias", "unbiased"))
    error = float(unbiased.std()) / 40**0.5
    assert abs(float(unbiased.mean())) < 4 * error
    assert float(value.mean()) == pytest.approx(float(bias.mean()), abs=4 * error)


def test_tiny_differences_survive_the_kernel_near_one():
    x = torch.nn.functional.normalize(cloud(50, 16), dim=1)
    y = torch.nn.functional.normalize(x + 1e-5 * cloud(1, 16, 1), dim=1)
    result = cmmd(real=x, fake=y)
    assert result.value == pytest.approx(result.mean_part, rel=0.05)
    assert 0 < result.value < 1e-7


def test_median_width_sees_what_sigma_ten_does_not():
    x = cloud(300, 4)
    y = torch.where(cloud(300, 4, 1) > 0, 1.0, -1.0).double()  # same mean, other shape
    wide, median = cmmd(real=x, fake=y), cmmd(real=x, fake=y, sigma="median")
    assert 0.3 < median.sigma < 3
    assert median.value - median.bias > 10 * (wide.value - wide.bias)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: kernel_distance(real=x, fake=x, subsets=3), "no generator"),
        (
            lambda x: kernel_distance(real=x, fake=x, subsets=3, subset_size=99, generator=generator()),
            "subset_size = 99",
        ),
        (lambda x: kernel_distance(real=x, fake=x[:, :2]), "features"),
        (lambda x: kernel_distance(real=x, fake=x[:1]), "fake has 1 sample"),
        (lambda x: cmmd(real=x, fake=x * 0), "all zeros"),
        (lambda x: cmmd(real=x, fake=x, sigma=0), "sigma must be"),
        (lambda x: cmmd(real=x, fake=x * torch.nan), "NaN"),
    ],
)
def test_bad_input_gets_one_line(call, message):
    with pytest.raises(ValueError, match=message) as error:
        call(cloud(10, 3))
    assert "\n" not in str(error.value)
    with pytest.raises(TypeError):
        kernel_distance(cloud(5, 2), cloud(5, 2))
