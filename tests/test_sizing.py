"""Sizes for a GPU: what is counted on the meta device, what fits, what is forecast."""

import pytest
import torch

from labkit.models import sizing
from labkit.models.sizing import CONTEXT_GB, COSTS, FLOOR_GB, WASTE, TooSmall, count, counted, sizes_for


def test_bytes_and_multiplications_are_counted_as_by_hand():
    """a @ b of 200 x 300 and 300 x 400 in half precision: 2 * 200 * 300 * 400 FLOP, 160 kB that live on."""
    a, b = (torch.empty(shape, device="meta", dtype=torch.float16) for shape in ((200, 300), (300, 400)))
    kept = []
    peak, tflop = count(lambda: kept.append(a @ b))
    assert tflop == pytest.approx(2 * 200 * 300 * 400 / 1e12) and peak == pytest.approx(200 * 400 * 2 / 1e9)

    linear = torch.nn.Linear(300, 400, device="meta", dtype=torch.float16)
    assert count(lambda: linear(a))[0] == pytest.approx(200 * 400 * 2 / 1e9)  # its weight, transposed, was there before

    def chain():
        x = a
        for _ in range(5):
            x = x + 1  # two of them live at a time

    assert count(chain)[0] == pytest.approx(2 * 200 * 300 * 2 / 1e9)

    def remembered():
        x = a.float().requires_grad_()
        x.exp().exp().exp().sum().backward()

    forward = 4 * 200 * 300 * 4 / 1e9  # the copy and three results, which backward needs
    assert forward < count(remembered)[0] < 2 * forward


def test_attention_in_blocks_is_attention_and_keeps_no_table_of_scores():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, n, 8, generator=generator, requires_grad=True) for n in (40, 24, 24))
    plain = torch.nn.functional.scaled_dot_product_attention(q * 8**0.25, k * 8**0.25, v)
    torch.testing.assert_close(sizing._Fused.apply(q, k, v), plain, rtol=1e-4, atol=1e-4)
    original = torch.nn.functional.scaled_dot_product_attention
    big = torch.empty(1, 8, 4096, 40, device="meta", dtype=torch.float16)
    with sizing.fused_attention():
        peak, tflop = count(lambda: torch.nn.functional.scaled_dot_product_attention(big, big, big))
    assert tflop == pytest.approx(2 * 2 * 8 * 4096 * 4096 * 40 / 1e12)
    assert peak < 8 * 4096 * 4096 * 2 / 1e9 / 4
    assert torch.nn.functional.scaled_dot_product_attention is original


def test_the_recorded_cost_of_a_guided_picture_is_what_the_full_layout_counts():
    """Stable Diffusion 1.5: 860 million weights in the U-Net, 0.8 TFLOP a call and row."""
    cost = counted("sd15", "sample")
    assert cost == COSTS["sd15", "sample"]
    assert cost.row_tflop == pytest.approx(2 * 0.8, rel=0.02)
    assert cost.fixed_gb > 2 * (860 + 123 + 84) / 1000  # half precision: U-Net, text encoder, VAE


@pytest.mark.parametrize("work", ["sample", "train"])
def test_the_recorded_costs_of_portrait_flow_are_those_of_its_transformer(work):
    assert counted("portrait-flow", work) == COSTS["portrait-flow", work]


def test_the_largest_batch_that_fits_is_chosen_and_the_forecast_is_its_sum():
    cost = COSTS["sd15", "sample"]
    free = CONTEXT_GB + WASTE * (cost.fixed_gb + 3 * cost.row_gb) + 1e-6
    chosen = sizes_for("sample", rows=100, steps=20, free_gb=free, peak_tflops=65.0)
    assert chosen.batch_size == 3 and chosen.gigabytes == pytest.approx(free, abs=1e-5)
    assert chosen.minutes == pytest.approx(100 * (20 * cost.row_tflop + cost.row_once_tflop) / (0.35 * 65) / 60)
    assert sizes_for("sample", rows=100, steps=20, free_gb=free - 1e-3, peak_tflops=65.0).batch_size == 2
    assert sizes_for("sample", rows=2, steps=20, free_gb=80.0).batch_size == 2
    assert sizes_for("sample", rows=1000, steps=20, free_gb=500.0, most=16).batch_size == 16
    twice = sizes_for("sample", rows=200, steps=20, free_gb=free, peak_tflops=130.0)
    assert twice.minutes == pytest.approx(chosen.minutes)
    assert "batch 3: about" in str(chosen)


def test_a_t4_is_the_floor_and_trains_with_activations_recomputed_where_they_do_not_fit():
    drawn = sizes_for("sample", rows=64, steps=20, free_gb=FLOOR_GB, peak_tflops=65.0)
    assert drawn.batch_size >= 16 and drawn.gigabytes <= FLOOR_GB
    plain, again = COSTS["sd15", "train"], COSTS["sd15", "train again"]
    assert again.row_gb < plain.row_gb and again.row_tflop > plain.row_tflop
    trained = sizes_for("train", rows=16, steps=100, free_gb=FLOOR_GB)
    assert 1 <= trained.batch_size <= 16 and trained.gigabytes <= FLOOR_GB
    tight = CONTEXT_GB + WASTE * (again.fixed_gb + 1.5 * again.row_gb)
    forced = sizes_for("train", rows=16, steps=100, free_gb=tight)
    assert forced.checkpointing and forced.batch_size == 1 and "recomputed" in str(forced)
    large = sizes_for("train", rows=4, steps=100, free_gb=80.0)
    assert not large.checkpointing and large.batch_size == 4
    assert sizes_for("sample", model="sdxl", rows=1, steps=1, free_gb=FLOOR_GB).gigabytes <= FLOOR_GB
    with pytest.raises(TooSmall, match="train with sdxl needs"):  # at 1024 pixels; a larger card takes it
        sizes_for("train", model="sdxl", rows=1, steps=1, free_gb=FLOOR_GB)
    assert sizes_for("train", model="sdxl", rows=1, steps=1, free_gb=40.0).batch_size == 1


def test_too_small_a_gpu_and_unknown_work_are_refused_in_one_line():
    with pytest.raises(TooSmall, match="3.0 GB are free, train with sd15 needs") as error:
        sizes_for("train", rows=4, steps=10, free_gb=3.0)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no costs of 'paint'"):
        sizes_for("paint", rows=1, steps=1)
    with pytest.raises(ValueError, match="must be positive"):
        sizes_for("sample", rows=0, steps=1)


def test_a_gpu_is_known_by_its_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, peak in (("Tesla T4", 65.0), ("NVIDIA A100-SXM4-40GB", 312.0), ("NVIDIA A10", 125.0), ("GeForce 1", 65)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda name=name: name)
        assert sizing.peak_of_gpu() == peak
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (9_000_000_000, 16_000_000_000))
    assert sizing.free_memory() == 9.0
