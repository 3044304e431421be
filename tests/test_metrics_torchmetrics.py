"""Parity with torchmetrics on a tiny custom network, and the PRDC wrapper in one and in two processes."""

import copy
import json
from pathlib import Path

import pytest
import torch
from processes import meet, run_apart

pytest.importorskip("torchmetrics", reason="torchmetrics is not installed (extra dev): parity cannot be tested")
pytest.importorskip("torchmetrics.image", reason="torchmetrics.image cannot be imported")

from labkit.metrics import clip_score, frechet_distance, kernel_distance, manifold_metrics  # noqa: E402
from labkit.metrics.torchmetrics_wrappers import ManifoldMetric  # noqa: E402


class Tiny(torch.nn.Module):
    """uint8 images [N, 3, 8, 8] -> features [N, 6] in float64."""

    num_features = 6

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(3 * 64, 6, generator=generator, dtype=torch.float64) / 14

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return torch.tanh((images.flatten(1).double() / 127.5 - 1) @ self.weight)


def images(n: int, seed: int, top: int = 256) -> torch.Tensor:
    return torch.randint(0, top, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)


@pytest.fixture
def sides():
    return images(60, 0), images(45, 1, 200)


def test_frechet_distance_equals_torchmetrics_fid(sides):
    from torchmetrics.image.fid import FrechetInceptionDistance

    metric = FrechetInceptionDistance(feature=Tiny())
    for real, x in zip((True, False), sides, strict=True):
        for part in x.split(20):
            metric.update(part, real=real)
    ours = frechet_distance(real=Tiny()(sides[0]), fake=Tiny()(sides[1])).value
    assert ours == pytest.approx(float(metric.compute()), rel=1e-6)
    assert ours > 0.01


def test_kernel_distance_equals_torchmetrics_kid(sides):
    from torchmetrics.image.kid import KernelInceptionDistance

    real, fake = sides[0][:45], sides[1]
    metric = KernelInceptionDistance(feature=Tiny(), subsets=1, subset_size=45)
    metric.update(real, real=True)
    metric.update(fake, real=False)
    ours = kernel_distance(real=Tiny()(real), fake=Tiny()(fake)).value
    assert ours == pytest.approx(float(metric.compute()[0]), rel=1e-6, abs=1e-9)


def test_clip_score_equals_torchmetrics_with_a_custom_model():
    from torchmetrics.functional.multimodal import clip_score as theirs

    generator = torch.Generator().manual_seed(3)
    image_table, text_table = torch.randn(6, 5, generator=generator), torch.randn(6, 5, generator=generator) + 0.5
    calls = iter((image_table, text_table))

    class Model(torch.nn.Module):
        config = None

        def get_image_features(self, *_, **__):
            return next(calls)

        def get_text_features(self, *_, **__):
            return next(calls)

    def processor(**inputs):
        n = len(inputs.get("images") or inputs.get("text"))
        return {name: torch.zeros(n, 1) for name in ("pixel_values", "input_ids", "attention_mask")}

    try:
        value = theirs(list(images(6, 4)), ["text"] * 6, model_name_or_path=lambda: (Model(), processor))
    except (ImportError, ModuleNotFoundError, ValueError) as error:
        pytest.skip(f"this torchmetrics cannot score with a callable model: {error}")
    ours = clip_score(image_embeddings=image_table, text_embeddings=text_table, rule="torchmetrics").value
    assert ours == pytest.approx(float(value), rel=1e-5)
    assert ours > 0


# ---- the wrapper --------------------------------------------------------------------------------------------------


def features(n: int, seed: int) -> torch.Tensor:
    return torch.randn(n, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_wrapper_equals_the_function_for_any_batching():
    x, y = features(40, 0), 0.5 + features(30, 1)
    metric = ManifoldMetric(k=3)
    for part in x.split(7):
        metric.update(part, real=True)
    for part in y.split(11):
        metric.update(part, real=False)
    values = {name: float(value) for name, value in metric.compute().items()}
    assert values == manifold_metrics(real=x, fake=y, k=3).as_dict()
    assert copy.deepcopy(metric).compute()["density"] == values["density"]
    with pytest.raises(TypeError):
        metric.update(x, True)


def test_wrapper_with_an_extractor_reset_and_errors():
    metric = ManifoldMetric(k=2, feature=Tiny(), reset_real_features=False)
    metric.update(images(3, 2), real=False)
    with pytest.raises(ValueError, match="no real features"):
        metric.compute()
    metric.reset()
    metric.update(images(20, 0), real=True)
    metric.update(images(15, 1), real=False)
    first = metric.compute()["recall"]
    metric.reset()
    assert len(metric.real_features) == 1 and len(metric.fake_features) == 0
    metric.update(images(15, 1), real=False)
    assert metric.compute()["recall"] == first
    with pytest.raises(ValueError, match="2-D"):
        ManifoldMetric().update(torch.zeros(3), real=True)


def _worker(rank: int, folder: Path) -> None:
    meet(rank, folder)
    x, y = features(40, 0), 0.5 + features(30, 1)
    # Unequal shares; in the second round process 1 has no fakes at all, which hangs a plain "cat" state.
    shares = {
        "uneven": ((x[:25], y[:4]), (x[25:], y[4:])),
        "one side empty": ((x[:10], y), (x[10:], y[:0])),
    }
    out = {}
    for name, share in shares.items():
        metric = ManifoldMetric(k=3)
        for real, rows in zip((True, False), share[rank], strict=True):
            if len(rows):
                metric.update(rows, real=real)
        values = metric.compute()
        out[name] = {key: float(value) for key, value in values.items()}
        out[name + " restored"] = sum(len(part) for part in metric.real_features)  # sync must not keep the others' rows
    metric = ManifoldMetric(k=3)
    for real in (True, False):
        metric.update(torch.randn(9, 4 + rank), real=real)  # different extractors: an error everywhere, no hang
    try:
        metric.compute()
    except ValueError as error:
        out["mismatch"] = str(error)
    (folder / f"{rank}.json").write_text(json.dumps(out))
    torch.distributed.destroy_process_group()


def test_two_processes_give_the_score_of_all_features(tmp_path):
    if not torch.distributed.is_available() or not torch.distributed.is_gloo_available():
        pytest.skip("this torch has no gloo backend")
    assert run_apart(_worker, (0, tmp_path), (1, tmp_path)) == [0, 0]
    want = manifold_metrics(real=features(40, 0), fake=0.5 + features(30, 1), k=3).as_dict()
    for rank, reals in ((0, (25, 10)), (1, (15, 30))):
        out = json.loads((tmp_path / f"{rank}.json").read_text())
        assert out["uneven"] == want
        assert out["one side empty"] == want
        assert (out["uneven restored"], out["one side empty restored"]) == reals
        assert "processes hold different real_features" in out["mismatch"]
