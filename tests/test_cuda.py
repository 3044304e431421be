"""The same functions on a CUDA GPU: skipped where there is none. PortraitSD there equals PortraitSD on the CPU, and the
gpu tier's loading (Stable Diffusion's module trees with random weights, float16) samples, takes feedback and trains."""

import pytest
import torch

from labkit.density import (
    CandidateStream,
    PseudoDensity,
    fine_tune,
    fit_mlp,
    importance_sample,
    perturb,
    training_weights,
)
from labkit.diffusion import (
    adapter_state,
    decode_latents,
    encode_images,
    encode_prompts,
    image_generators,
    sample,
    sample_latents,
)
from labkit.dpo import (
    DPOConfig,
    DPOTrainer,
    PreferencePairs,
    best_vs_worst,
    build_pool,
    dpo,
    faithfulness,
    hard_pairs,
    leap_pairs,
    normal_pairs,
    recon_levels,
    sdpo,
    sharpness,
)
from labkit.fabric import fabric
from labkit.metrics import cmmd, frechet_distance, kernel_distance, manifold_metrics, vendi_score
from labkit.metrics.extractors import clip_extractor, reader_extractor
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.models.sd_layout import write_layout
from labkit.portraits import caption, render_tensor, sample_specs

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
PROMPTS = ["a happy person with red hair", "a sad person wearing glasses"]


@pytest.fixture(scope="module")
def both():
    """PortraitSD on the CPU and on the GPU, in float32 without TF32 (PyTorch's default for products)."""
    torch.backends.cudnn.allow_tf32 = False
    return load_pipeline("cpu"), load_pipeline("cpu", "cuda")


def portraits(n, seed=0):
    return render_tensor(sample_specs(n, seed=seed))


def pairs(pipe, n=8):
    specs = sample_specs(n, seed=2)
    with torch.no_grad():
        winner, loser = (encode_images(pipe, portraits(n, seed)).cpu() for seed in (2, 3))
    return PreferencePairs(tuple(caption(s).text for s in specs), winner, loser)


def test_pictures_are_those_of_the_cpu(both):
    cpu, gpu = (sample(p, PROMPTS, generators=image_generators(2, 0), steps=5, eta=0.5) for p in both)
    assert gpu.device.type == "cuda"
    assert (gpu.cpu() - cpu).abs().mean() < 1e-3 and (gpu.cpu() - cpu).abs().max() < 0.05
    one = sample(both[1], PROMPTS[1], generators=image_generators(2, 0)[1:], steps=5, eta=0.5)
    assert (one[0] - gpu[1]).abs().max() < 1e-3  # image i alone is image i of the batch


@pytest.mark.parametrize("options", [{}, {"fused": True}, {"backend": "lse"}, {"adain": True}])
def test_feedback_is_that_of_the_cpu(both, options):
    images, out = portraits(3), []
    for pipe in both:
        before = dict(pipe.unet.attn_processors)
        with fabric(pipe, liked=images[:2], disliked=images[2:], end=1.0, **options) as session:
            out.append(sample_latents(pipe, PROMPTS, generators=image_generators(2, 0), steps=3).latents.cpu())
        assert session.unet_calls == 3 and all(pipe.unet.attn_processors[k] is v for k, v in before.items())
    assert (out[0] - out[1]).abs().max() < 5e-3 * out[0].abs().max()


@pytest.mark.parametrize(
    "options", [{}, {"targets": "all", "cached_draws": 1}, {"trainable": "full", "reference": "copy"}]
)
def test_training_is_that_of_the_cpu(both, options):
    config = DPOConfig(steps=3, batch_size=4, lr=1e-5, log_every=1, warmup=0, seed=1, **options)
    logs = []
    for pipe in both:
        data, before = pairs(both[0]), {k: v.clone() for k, v in pipe.unet.state_dict().items()}
        with DPOTrainer(pipe, data, config, [dpo(400.0)]) as trainer:
            logs.append([record["loss"] for record in trainer.run()])
        if "trainable" in options:
            pipe.unet.load_state_dict(before)
        assert all(torch.equal(v, before[k]) for k, v in pipe.unet.state_dict().items())
    torch.testing.assert_close(torch.tensor(logs[0]), torch.tensor(logs[1]), rtol=1e-2, atol=1e-3)


def test_pools_and_stages_mix_no_devices(both):
    pipe = both[1]
    clip, inputs = load_clip("cpu", "cuda")
    judge = faithfulness(clip, inputs)
    pool = build_pool(pipe, PROMPTS, 3, scorers=[judge, sharpness()], seed=0, steps=2)
    assert pool.latents.device.type == "cpu" and pool.scores[judge.name].shape == (2, 3)
    easy = best_vs_worst(pool, judge.name)
    with torch.no_grad():
        real = encode_images(pipe, portraits(2))
        recons = recon_levels(pipe, real, PROMPTS, (100, 400), seed=0, steps=3)
        scores = {400: judge(decode_latents(pipe, recons[400]), PROMPTS) + 5}
    normal = normal_pairs(easy, {400: recons[400]}, scores, judge.name)
    for found in (normal, hard_pairs(normal, recons[100]), leap_pairs(easy, real)):
        assert found.latents.device.type == "cpu" and len(found.training()) == 2


def test_density_and_its_methods_are_those_of_the_cpu(both):
    extract = [clip_extractor("cpu", device=device) for device in ("cpu", "cuda")]
    reals = portraits(60)
    features = [e(reals) for e in extract]
    torch.testing.assert_close(features[0], features[1], rtol=1e-3, atol=1e-4)
    cpu, gpu = (PseudoDensity(k=5).fit(x) for x in (features[0], features[0].cuda()))
    torch.testing.assert_close(cpu.rho.cpu(), gpu.rho.cpu(), rtol=1e-6, atol=0)
    new = features[0][:6] + 0.01
    torch.testing.assert_close(cpu.score(new).cpu(), gpu.score(new.cuda()).cpu(), rtol=1e-6, atol=0)
    assert -1 <= fit_mlp(gpu, generator=torch.Generator().manual_seed(0), epochs=2).rank_correlation <= 1

    pipe, density = both[1], PseudoDensity(k=5).fit(features[1], fingerprint=extract[1].fingerprint)
    stream = CandidateStream(pipe, "a person", seed=0, steps=2)

    def score(images):
        return density.score(extract[1](images), fingerprint=extract[1].fingerprint)

    kept = importance_sample(
        stream, score, n=2, threshold=float(score(stream(0, 6)).median()), ratio=1.0, budget=6,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    assert len(kept.samples) == 2
    mean, std = (
        torch.tensor(v, device="cuda").view(1, 3, 1, 1) for v in (extract[1].pipeline.mean, extract[1].pipeline.std)
    )
    moved = perturb(
        stream.scorer(lambda x: extract[1].network(((x + 1) / 2 - mean) / std), density.soft_score, 0),
        stream.noise(0, 1), exact=stream.judge(score, 0), direction="up", steps=1,
    )  # fmt: skip
    assert float(moved.after) != float(moved.before)
    with torch.no_grad():
        latents, conditions = encode_images(pipe, reals[:4]), encode_prompts(pipe, ["a person"] * 4)
    weights = training_weights(density.rho[:4], threshold=density.threshold(0.5), ratio=33.0)
    run = fine_tune(pipe, latents, conditions, weights=weights, steps=2, seed=0, batch=2)
    with run.applied(pipe):
        assert bool(torch.isfinite(stream(0, 1)).all())


def test_metrics_are_those_of_the_cpu():
    g = torch.Generator().manual_seed(0)
    real, fake = torch.randn(200, 32, generator=g), torch.randn(150, 32, generator=g) + 0.2
    for metric in (
        lambda real, fake: frechet_distance(real=real, fake=fake).value,
        lambda real, fake: (
            kernel_distance(
                real=real, fake=fake, subsets=3, subset_size=50, generator=torch.Generator().manual_seed(0)
            ).value
        ),
        lambda real, fake: cmmd(real=real, fake=fake).value,
        lambda real, fake: torch.tensor(list(manifold_metrics(real=real, fake=fake, k=3).as_dict().values())),
        lambda real, fake: vendi_score(fake),
    ):
        cpu, gpu = metric(real, fake), metric(real.cuda(), fake.cuda())
        torch.testing.assert_close(torch.as_tensor(gpu), torch.as_tensor(cpu), rtol=1e-6, atol=1e-8)
    reader, pictures = load_reader("cuda"), portraits(8)
    assert torch.equal(reader.read(pictures)["mood"].cpu(), load_reader().read(pictures)["mood"])
    assert reader_extractor(device="cuda")(pictures).shape == (8, 128)


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_the_gpu_tier_in_float16_samples_takes_feedback_and_trains(kind, tmp_path):
    pipe = load_pipeline("gpu", folder=write_layout(tmp_path / kind, kind))
    assert pipe.unet.dtype == torch.float16 and pipe.unet.device.type == "cuda"
    size = {"height": 64, "width": 64}
    images = sample(pipe, PROMPTS, generators=image_generators(2, 0), steps=2, **size)
    assert images.shape == (2, 3, 64, 64) and bool(torch.isfinite(images).all())
    with fabric(pipe, liked=images[:1], disliked=images[1:], end=1.0) as session:
        fed = sample(pipe, PROMPTS, generators=image_generators(2, 0), steps=2, **size)
    assert session.active_calls == 2 and not torch.equal(fed, images) and bool(torch.isfinite(fed).all())
    with torch.no_grad():
        latents = encode_images(pipe, images).cpu()
    data = PreferencePairs(tuple(PROMPTS), latents, latents.flip(0))
    pipe.unet.float()  # training adapters keeps the base in float32 and computes in bfloat16
    config = DPOConfig(steps=1, batch_size=2, rank=2, precision="bf16", log_every=1, warmup=0)
    with DPOTrainer(pipe, data, config, [sdpo(400.0)]) as trainer:
        (record,) = trainer.run()
        state = adapter_state(pipe.unet, trainer.config.adapter)
    assert record["gradient_norm"] > 0 and all(bool(torch.isfinite(v).all()) for v in state.values())
