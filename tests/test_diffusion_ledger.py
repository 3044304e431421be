"""The cost ledger: exact counts for sampling, training, checkpointing, nesting, rewards."""

import pytest
import torch

from labkit.diffusion import (
    NFELedger,
    decode_latents,
    encode_images,
    encode_prompts,
    image_generators,
    predict_noise,
    sample,
    sample_latents,
)
from tests.tiny_models import tiny_pipeline


@pytest.fixture
def pipe():
    return tiny_pipeline()


def train_once(pipe, rows: int = 3) -> None:
    """One forward and one backward on `rows` rows."""
    x = torch.zeros((rows, 4, 8, 8))
    predict_noise(pipe, x, 401, encode_prompts(pipe, [""] * rows)).square().mean().backward()


def test_sampling_counts_steps_times_rows_and_guidance_doubles_them(pipe):
    for scale, rows in ((1.0, 2), (3.0, 4)):
        with NFELedger(pipe) as ledger:
            sample(pipe, ["a hat", "a coat"], generators=image_generators(2, 0), steps=5, guidance_scale=scale)
        assert (ledger.counts.unet_calls, ledger.counts.unet_rows, ledger.nfe) == (5, 5 * rows, 5 * rows)
        assert ledger.counts.vae_decode_rows == 2 and ledger.counts.vae_encode_rows == 0
        assert ledger.counts.text_rows == 4  # two prompts and their negatives, once
        assert ledger.counts.unet_backward_rows == 0 and ledger.seconds > 0


def test_a_training_step_costs_three_and_with_gradient_checkpointing_four(pipe):
    pipe.unet.requires_grad_(True)
    with NFELedger(pipe) as plain:
        train_once(pipe)
    assert (plain.nfe, plain.counts.unet_backward_rows) == (9, 3)
    pipe.unet.enable_gradient_checkpointing()
    with NFELedger(pipe) as recomputed:
        train_once(pipe)
    assert (recomputed.nfe, recomputed.counts.unet_recomputed_rows) == (12, 3)


def test_checkpointing_around_the_unet_costs_four_as_well(pipe):
    start = torch.randn((2, 4, 8, 8), generator=torch.Generator().manual_seed(0)).requires_grad_()
    options = {"latents": start, "steps": 3, "guidance_scale": 1.0, "grad_steps": 3}
    for checkpoint, nfe in ((False, 3 * 2 * 3), (True, 4 * 2 * 3)):
        with NFELedger(pipe) as ledger:
            out = sample_latents(pipe, "a hat", generators=image_generators(2, 0), checkpoint=checkpoint, **options)
            out.latents.sum().backward()
        assert ledger.nfe == nfe


def test_a_dpo_pair_costs_eight(pipe):
    """dpo.md 5.4: two policy rows with gradient and two reference rows without."""
    pipe.unet.requires_grad_(True)
    with NFELedger(pipe) as ledger:
        with torch.no_grad():
            predict_noise(pipe, torch.zeros((2, 4, 8, 8)), 401, encode_prompts(pipe, [""] * 2))
        train_once(pipe, rows=2)
    assert ledger.nfe == 8


def test_backward_counts_only_inside_and_a_forward_that_is_never_used_costs_one(pipe):
    pipe.unet.requires_grad_(True)
    with NFELedger(pipe) as ledger:
        output = predict_noise(pipe, torch.zeros((2, 4, 8, 8)), 401, encode_prompts(pipe, [""] * 2))
    output.sum().backward()
    assert ledger.nfe == 2


def test_ledgers_nest_and_each_counts_what_is_inside_it(pipe):
    with NFELedger(pipe) as outer:
        sample_latents(pipe, "a hat", generators=image_generators(1, 0), steps=2, guidance_scale=1.0)
        with NFELedger(pipe) as inner:
            sample_latents(pipe, "a hat", generators=image_generators(1, 0), steps=3, guidance_scale=1.0)
    assert (inner.nfe, outer.nfe) == (3, 5)


def test_hooks_are_removed_also_after_an_exception(pipe):
    modules = (pipe.unet, pipe.vae.encoder, pipe.vae.decoder, pipe.text_encoder)
    with pytest.raises(ZeroDivisionError), NFELedger(pipe) as ledger:
        raise ZeroDivisionError
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in modules)
    sample_latents(pipe, "a hat", generators=image_generators(1, 0), steps=1)
    assert ledger.nfe == 0
    with NFELedger(pipe) as open_one, pytest.raises(RuntimeError, match="already open"):
        open_one.__enter__()


def test_vae_passes_are_counted_by_images(pipe):
    with NFELedger(pipe) as ledger:
        z = encode_images(pipe, torch.zeros((3, 3, 16, 16)), batch_size=2)
        decode_latents(pipe, z)
    assert (ledger.counts.vae_encode_rows, ledger.counts.vae_decode_rows, ledger.nfe) == (3, 3, 0)


def test_reward_calls_are_counted_and_pass_through(pipe):
    with NFELedger(pipe) as ledger:
        score = ledger.scorer(lambda images, prompts=None: images.flatten(1).mean(1))
        scores = score(torch.ones((4, 3, 8, 8)), prompts=["a"] * 4)
        score(images=torch.ones((2, 3, 8, 8)))
        ledger.add_reward(5)
    assert torch.equal(scores, torch.ones(4))
    assert (ledger.counts.reward_calls, ledger.counts.reward_rows) == (3, 11)


def test_a_bare_unet_can_be_counted_and_the_table_holds_everything(pipe):
    with NFELedger(pipe.unet) as ledger:
        sample_latents(pipe, "a hat", generators=image_generators(2, 0), steps=2, guidance_scale=1.0)
    table = ledger.as_dict()
    assert table["nfe"] == table["unet_rows"] == 4 and table["text_rows"] == 0
    assert set(table) >= {"nfe", "unet_calls", "vae_decode_rows", "reward_rows", "seconds"}
