"""FABRIC in joint attention: SD3 and FLUX layouts with random weights, working and idle."""

import copy
import warnings
from functools import cache

import pytest
import torch
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
)
from tiny_models import TEXT_WIDTH, seeded, tiny_text_encoder, tiny_vae

from labkit.diffusion import labelled_rows
from labkit.fabric import FabricError, FabricWarning, FeedbackLoop, ReferenceCache, fabric, reference_noise
from labkit.fabric.caller import Caller
from labkit.fabric.joint import attend_joint, flow_reference, joint_attentions
from labkit.fabric.joint_session import joint_labels, pack
from labkit.fabric.references import Reference, encode_reference
from labkit.models.sd_layout import clip_tokenizer

KINDS = ("sd3", "flux")
WINDOW = {"active": {"end": 1.0}, "idle": {"start": 0.5, "end": 0.6}}  # the only step is at sigma = 1


def picture(seed):
    return torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(seed)) * 2 - 1


LIKED, DISLIKED = picture(1), picture(2)


@cache
def model(kind):
    """Latents of 4 channels, 4 x 4 of them: four image tokens. SD3: SD3.5's second attention in the first block."""
    if kind == "flux":
        sizes = {"in_channels": 16, "num_layers": 1, "num_single_layers": 2, "axes_dims_rope": (4, 6, 6)}
        heads = {"attention_head_dim": 16, "num_attention_heads": 2, "guidance_embeds": True}
        text = {"joint_attention_dim": TEXT_WIDTH, "pooled_projection_dim": TEXT_WIDTH}
        return seeded(lambda: FluxTransformer2DModel(**sizes, **heads, **text), 5)
    sizes = {"sample_size": 4, "in_channels": 4, "out_channels": 4, "num_layers": 3, "pos_embed_max_size": 8}
    heads = {"attention_head_dim": 16, "num_attention_heads": 2, "caption_projection_dim": 32}
    text = {"joint_attention_dim": 2 * TEXT_WIDTH, "pooled_projection_dim": 2 * TEXT_WIDTH}
    own = {"dual_attention_layers": (0,), "qk_norm": "rms_norm"}
    return seeded(lambda: SD3Transformer2DModel(**sizes, **heads, **text, **own), 6)


def made(kind, **parts):
    """A pipeline without text encoders; it shares the model and the VAE with all others."""
    names = ["text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"]
    names += ["text_encoder_3", "tokenizer_3"] if kind == "sd3" else []
    shared = {"transformer": model(kind), "vae": vae(), "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0)}
    cls = StableDiffusion3Pipeline if kind == "sd3" else FluxPipeline
    pipe = cls(**{**dict.fromkeys(names), **shared, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


@cache
def vae():
    vae = tiny_vae()
    vae.register_to_config(shift_factor=0.1)
    return vae


@cache
def texts(kind):
    g = torch.Generator().manual_seed(3)
    width = TEXT_WIDTH * (2 if kind == "sd3" else 1)
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    return {name: torch.randn(2, *([] if "pooled" in name else [3]), width, generator=g) for name in names}


def run(pipe, kind, guided=True, steps=1, **options):
    """Final latents of two images with one text: [2, 4, 4, 4], or packed [2, 4, 16]."""
    embeds = {name: one[:1].repeat(2, *[1] * (one.ndim - 1)) for name, one in texts(kind).items()}
    if kind == "sd3":
        options = {"guidance_scale": 3.0 if guided else 1.0} | options
    else:
        options = {"guidance_scale": 3.0, "true_cfg_scale": 3.0 if guided else 1.0} | options
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    options = {"num_inference_steps": steps, "output_type": "latent", "height": 32, "width": 32} | embeds | options
    return pipe(generator=generator, **options).images


@cache
def plain(kind, guided=True):
    return run(made(kind), kind, guided)


def with_feedback(pipe, kind, guided=True, steps=1, call=None, **feedback):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FabricWarning)
        with fabric(pipe, **{"end": 1.0, "reference_prompt": None} | feedback) as session:
            return run(pipe, kind, guided, steps, **(call or {})), session


def close(a, b, tolerance=1e-5):
    assert (a - b).abs().max() < tolerance * (1 + b.abs().max())


def arguments(kind, x, t, text, pooled):
    """Those of a direct call with latents x [B, 4, 4, 4] at timestep t."""
    call = {"encoder_hidden_states": text, "pooled_projections": pooled, "return_dict": False}
    if kind == "sd3":
        return call | {"hidden_states": x, "timestep": torch.full((len(x),), t)}
    ids = FluxPipeline._prepare_latent_image_ids(len(x), 2, 2, "cpu", torch.float32)
    flux = {"img_ids": ids, "txt_ids": torch.zeros(text.shape[1], 3), "guidance": torch.full((len(x),), 3.0)}
    return call | flux | {"hidden_states": pack(x), "timestep": torch.full((len(x),), t / 1000)}


def direct(kind, x, t=700.0, labels=("cond", "cond"), pipe=None, **feedback):
    """A call of the model itself, without feedback if there is none."""
    pipe, rows = pipe or made(kind), len(x)
    embeds = [texts(kind)[name][:1].repeat(rows, *more) for name, more in (("prompt_embeds", (1, 1)),)]
    pooled = texts(kind)["pooled_prompt_embeds"][:1].repeat(rows, 1)
    with torch.no_grad(), labelled_rows(labels[:rows]):
        if not feedback:
            return pipe.transformer(**arguments(kind, x, t, embeds[0], pooled))[0]
        with fabric(pipe, **{"end": 1.0, "reference_prompt": None} | feedback):
            return pipe.transformer(**arguments(kind, x, t, embeds[0], pooled))[0]


# ---- the attention -------------------------------------------------------------------------------------------------


def test_references_take_their_share_from_the_image_and_leave_the_text_its_own():
    """Written out with softmax tables: 3 text tokens, 4 of the image, 5 of references with two weights."""
    g = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 3, 4, 8, generator=g) for _ in range(3))
    k_text, v_text = (torch.randn(2, 3, 3, 8, generator=g) for _ in range(2))
    k_ref, v_ref = (torch.randn(1, 3, 5, 8, generator=g) for _ in range(2))
    w = torch.tensor([0.5, 0.5, 0.5, 2.0, 2.0])
    own, text, ref = ((q @ keys.transpose(-1, -2) / 8**0.5).exp() for keys in (k, k_text, k_ref.expand(2, -1, -1, -1)))
    ref = ref * w
    share = text.sum(-1) / (text.sum(-1) + own.sum(-1))  # as without references
    both = torch.cat([own, ref], -1)
    seen = both / both.sum(-1, keepdim=True) @ torch.cat([v, v_ref.expand(2, -1, -1, -1)], 2)
    words = text / text.sum(-1, keepdim=True) @ v_text
    expected = share[..., None] * words + (1 - share[..., None]) * seen
    out, mass = attend_joint(q, k, v, k_text, v_text, k_ref, v_ref, w)
    close(out, expected)
    close(mass, ref.sum(-1) / both.sum(-1))
    close(attend_joint(q, k, v, k_text[:, :, :0], v_text[:, :, :0], k_ref, v_ref, w)[0], seen)
    _, capped = attend_joint(q, k, v, k_text, v_text, k_ref, v_ref, w, cap=0.3)
    assert torch.equal(capped, mass.clamp(max=0.3)) and bool((mass > 0.3).any())
    copies = torch.full((4,), 7.0)
    close(
        attend_joint(q[:1], k[:1], v[:1], k_text[:1], v_text[:1], k[:1], v[:1], copies)[0],
        share[:1, ..., None] * words[:1]
        + (1 - share[:1, ..., None]) * (own[:1] / own[:1].sum(-1, keepdim=True) @ v[:1]),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_references_are_noised_along_the_straight_path(kind):
    x, noise = torch.tensor([2.0, -1.0]), torch.tensor([0.5, 3.0])
    assert torch.equal(flow_reference(x, noise, 0.25), torch.tensor([1.625, 0.0]))
    assert torch.equal(flow_reference(x, noise, 0.0), x) and torch.equal(flow_reference(x, noise, 1.0), noise)
    pipe, seen = made(kind), []
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    _, session = with_feedback(pipe, kind, steps=3, liked=[LIKED], noise="image")
    handle.remove()
    passes = [k for k in seen if len(k["hidden_states"]) == 1]
    assert len(passes) == 3 and session.reference_rows == 3
    x0 = encode_reference(pipe, Reference(LIKED), 32, 32)
    noise = reference_noise(Reference(LIKED).key, 0, None, x0.shape)
    for k, sigma in zip(passes, pipe.scheduler.sigmas, strict=False):
        x = (1 - sigma) * x0 + sigma * noise
        close(k["hidden_states"][0], pack(x[None])[0] if kind == "flux" else x)
        close(k["timestep"], torch.tensor([float(sigma) * (1000 if kind == "sd3" else 1)]))


def test_latents_are_packed_as_flux_packs_them():
    x = torch.arange(2 * 4 * 4 * 6.0).reshape(2, 4, 4, 6)
    assert torch.equal(pack(x), FluxPipeline._pack_latents(x, 2, 4, 4, 6))


# ---- what holds exactly --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_changes_without_references_without_weight_and_outside_the_window(kind):
    pipe = made(kind)
    before = dict(pipe.transformer.attn_processors)
    for feedback in ({}, {"liked": [LIKED], "disliked": [DISLIKED], "max_weight": 0.0}):
        result, session = with_feedback(pipe, kind, **feedback)
        assert torch.equal(result, plain(kind)) and session.active_calls == 0
    with pytest.warns(FabricWarning, match="had no effect: the calls were at timesteps 1000 to 1000"):
        with fabric(pipe, liked=[LIKED], reference_prompt=None, **WINDOW["idle"]):
            assert torch.equal(run(pipe, kind), plain(kind))
    with pytest.raises(RuntimeError), fabric(pipe, liked=[LIKED], reference_prompt=None):
        raise RuntimeError
    after = pipe.transformer.attn_processors
    assert before.keys() == after.keys() and all(after[name] is one for name, one in before.items())
    assert not pipe.transformer._forward_hooks and not pipe.transformer._forward_pre_hooks


@pytest.mark.parametrize("kind", KINDS)
def test_a_reference_equal_to_the_picture_changes_nothing(kind):
    """The row is the reference as the pass sees it: every layer reads its own keys and values, at any weight."""
    pipe = made(kind)
    reference = Reference(LIKED)
    x0 = encode_reference(pipe, reference, 32, 32)
    x = flow_reference(x0, reference_noise(reference.key, 0, 700.0, x0.shape), 0.7)
    other = torch.randn(4, 4, 4, generator=torch.Generator().manual_seed(4))
    rows = torch.stack([x, other])
    before = direct(kind, rows)
    for sign, label in (("liked", "cond"), ("disliked", "uncond")):
        after = direct(kind, rows, labels=(label,) * 2, max_weight=2.0, **{sign: [LIKED]})
        close(after[0], before[0])
        assert (after[1] - before[1]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_rows_read_the_references_of_their_sign_only(kind):
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    before = direct(kind, x)
    mixed = direct(kind, x, labels=("uncond", "cond"), liked=[LIKED], disliked=[DISLIKED], negative_scale=1.0)
    seen = []
    liked = direct(kind, x, liked=[LIKED], observer=seen.append)
    assert [one.layer for one in seen] == [layer for layer, _ in joint_attentions(model(kind))]
    assert {(one.q.shape[2], one.k.shape[2], one.reference.k.shape[2]) for one in seen} == {(4, 4, 4)}  # of the image
    disliked = direct(kind, x, labels=("uncond",) * 2, disliked=[DISLIKED], negative_scale=1.0)
    close(mixed[1], liked[1])
    close(mixed[0], disliked[0])
    alone = direct(kind, x, labels=("cond", "uncond"), liked=[LIKED])
    close(alone[1], before[1])
    assert (alone[0] - before[0]).abs().max() > 1e-3


# ---- whole pipelines -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_likes_and_dislikes_move_the_output_in_different_ways(kind):
    pipe, calls = made(kind), 1 if kind == "sd3" else 2  # FLUX: one call for each of the two texts
    liked, session = with_feedback(pipe, kind, liked=[LIKED])
    assert (session.unet_calls, session.active_calls, session.reference_rows) == (calls, 1, 1)
    disliked, _ = with_feedback(pipe, kind, disliked=[LIKED], negative_scale=1.0)
    both, session = with_feedback(pipe, kind, liked=[LIKED], disliked=[DISLIKED], backend="lse")
    assert (session.active_calls, session.reference_rows) == (calls, 2)
    moved = [one - plain(kind) for one in (liked, disliked, both)]
    assert all(one.abs().max() > 1e-3 for one in moved)
    assert (moved[0] - moved[1]).abs().max() > 1e-3 and (moved[0] - moved[2]).abs().max() > 1e-4
    layers = {name for _, name, sign in session.mass if sign == "liked"}
    assert layers == {layer.name for layer, _ in joint_attentions(pipe.transformer)}
    assert all(0 < share < 1 for share in session.mass.values())
    again, _ = with_feedback(pipe, kind, liked=[LIKED], disliked=[DISLIKED])
    assert torch.equal(again, both)  # the back end only says what is measured


@pytest.mark.parametrize("kind", KINDS)
def test_dislikes_without_guidance_are_warned_of_and_likes_are_not(kind):
    pipe = made(kind)
    with pytest.warns(FabricWarning, match="guidance is off") as said:
        with fabric(pipe, disliked=[DISLIKED], reference_prompt=None, end=1.0):
            assert torch.equal(run(pipe, kind, guided=False), plain(kind, False))
    assert len(said) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fabric(pipe, liked=[LIKED], disliked=[DISLIKED], reference_prompt=None, end=1.0):
            run(pipe, kind)  # guided: FLUX's call with the prompt alone is no reason to warn
        with fabric(pipe, liked=[LIKED], reference_prompt=None, end=1.0):
            assert not torch.equal(run(pipe, kind, guided=False), plain(kind, False))


def test_flux_calls_are_told_apart_by_their_text_even_where_the_texts_are_equal():
    """Equal texts are two tensors of the same values: which one is given tells the calls apart."""
    pipe, seen = made("flux"), []
    same = {"negative_prompt_embeds": texts("flux")["prompt_embeds"][:1].repeat(2, 1, 1)}
    signs = {"liked": [LIKED], "disliked": [DISLIKED]}
    with_feedback(pipe, "flux", call=same, observer=seen.append, **signs)
    layers = len(joint_attentions(pipe.transformer))
    assert [one.sign for one in seen] == ["liked"] * layers + ["disliked"] * layers


def test_flux_rows_are_labelled_by_values_where_a_copy_of_the_text_is_given_and_refused_in_doubt():
    positive, negative = (texts("flux")[name] for name in ("prompt_embeds", "negative_prompt_embeds"))

    def labels(text, prompt=positive, guided=True):
        own = {"do_true_cfg": guided, "prompt_embeds": prompt, "negative_prompt_embeds": negative}
        return joint_labels({"sample": text, "encoder_hidden_states": text}, Caller(None, own))

    assert labels(positive.clone()) == ("cond", "cond") and labels(negative.clone()) == ("uncond", "uncond")
    assert labels(negative, guided=False) == ("cond", "cond")
    for text, prompt in ((negative.clone(), negative.clone()), (positive + 1, positive)):
        with pytest.raises(FabricError, match="cannot be told whether"):
            labels(text, prompt)


def test_skip_layer_guidance_reads_likes_in_the_layers_that_run():
    pipe, seen = made("sd3"), []
    options = {"skip_guidance_layers": [1], "skip_layer_guidance_start": -1.0, "skip_layer_guidance_stop": 1.0}
    plainly = run(pipe, "sd3", **options)
    result, session = with_feedback(pipe, "sd3", liked=[LIKED], call=options, observer=seen.append)
    assert (session.unet_calls, session.active_calls, session.reference_rows) == (2, 2, 1)
    assert [one.layer.name.split(".")[1] for one in seen] == list("001200" + "2")
    assert not torch.equal(result, plainly)


def test_a_kept_cache_computes_nothing_twice_and_other_texts_again():
    pipe, kept = made("sd3"), ReferenceCache()
    first, one = with_feedback(pipe, "sd3", liked=[LIKED, DISLIKED], cache=kept, steps=2)
    second, two = with_feedback(pipe, "sd3", liked=[LIKED, DISLIKED], cache=kept, steps=2)
    assert (one.reference_rows, two.reference_rows) == (4, 0) and torch.equal(first, second)
    other = {"prompt_embeds": texts("sd3")["prompt_embeds"][1:].repeat(2, 1, 1)}
    assert with_feedback(pipe, "sd3", liked=[LIKED], cache=kept, call=other)[1].reference_rows == 1


@pytest.mark.parametrize("kind", KINDS)
def test_the_reference_prompt_is_encoded_as_the_pipeline_encodes_texts(kind):
    from transformers import CLIPTextModelWithProjection, T5Config, T5EncoderModel

    first, tokenizer = tiny_text_encoder(), clip_tokenizer(514, 16)
    projected = seeded(lambda: CLIPTextModelWithProjection(first.config), 3)
    if kind == "sd3":
        encoders = {"text_encoder": projected, "text_encoder_2": projected}  # without T5, as many run it
    else:
        sizes = {"vocab_size": 514, "d_model": TEXT_WIDTH, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
        encoders = {"text_encoder": first, "text_encoder_2": seeded(lambda: T5EncoderModel(T5Config(**sizes)), 4)}
    pipe, seen = made(kind, **encoders, tokenizer=tokenizer, tokenizer_2=tokenizer), []
    call = {"max_sequence_length": 5, **dict.fromkeys(texts(kind)), "prompt": "a house", "negative_prompt": "a tree"}
    call["num_images_per_prompt"] = 2
    handle = pipe.transformer.register_forward_pre_hook(lambda m, a, k: seen.append(k), with_kwargs=True)
    result, _ = with_feedback(pipe, kind, liked=[LIKED], reference_prompt="a house", call=call)
    own = next(k for k in seen if len(k["hidden_states"]) == 1)
    cond = max((k for k in seen if len(k["hidden_states"]) > 1), key=lambda k: k is not seen[-1] or kind == "sd3")
    for name in ("encoder_hidden_states", "pooled_projections"):
        close(own[name][0], cond[name][-1])
    assert torch.equal(result, with_feedback(pipe, kind, liked=[LIKED], call=call)[0])  # the same text either way
    other, _ = with_feedback(pipe, kind, liked=[LIKED], reference_prompt="", call=call)
    handle.remove()
    assert not torch.equal(other, result)


# ---- what cannot work is refused in one line -------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_supported_is_refused_in_one_line(kind):
    pipe = made(kind)

    def refused(match, pipe=pipe, **options):
        with pytest.raises(FabricError, match=match) as error:
            with fabric(pipe, **{"liked": [LIKED], "reference_prompt": None} | options):
                run(pipe, kind)
        assert "\n" not in str(error.value)

    for name in ("adain", "fused"):
        refused(f"{name} works with U-Nets only", **{name: True})
    refused("no text encoder.*reference_prompt=None", reference_prompt="")
    from diffusers import DDIMScheduler

    refused("DDIMScheduler is no schedule of flow matching", copied(pipe, scheduler=DDIMScheduler()))
    inverted = FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    refused("no schedule of flow matching whose sigma", copied(pipe, scheduler=inverted))
    own = copied(pipe, transformer=copy.deepcopy(pipe.transformer))
    first = joint_attentions(own.transformer)[0][1]
    usual = first.processor
    first.processor = type("SharedAttnProcessor", (type(usual),), {})()
    refused("has a SharedAttnProcessor: expected JointAttnProcessor2_0 or FluxAttnProcessor", own)
    first.processor = usual
    own.transformer.transformer_blocks[0].compile(backend="eager")
    refused("the transformer is compiled", own)
    with pytest.raises(FabricError, match="has no U-Net.*call={}") as error:
        FeedbackLoop(pipe, "a red house")
    assert "\n" not in str(error.value)
    with fabric(pipe, reference_prompt=None):
        refused("already open on this model")
    with pytest.raises(FabricError, match="no labels for 2 rows"):
        with fabric(pipe, liked=[LIKED], reference_prompt=None):
            text, pooled = texts(kind)["prompt_embeds"], texts(kind)["pooled_prompt_embeds"]
            pipe.transformer(**arguments(kind, torch.zeros(2, 4, 4, 4), 700.0, text, pooled))
    with (
        pytest.raises(FabricError, match="no call of the transformer"),
        fabric(pipe, liked=[LIKED], reference_prompt=None),
    ):
        pass
    moving = copied(pipe, scheduler=FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True))
    with pytest.raises(FabricError, match="depend on the size of the picture"):
        direct(kind, torch.zeros(2, 4, 4, 4), pipe=moving, liked=[LIKED], clock="steps", steps=4)


def copied(pipe, **parts):
    pipe = type(pipe)(**{**pipe.components, **parts})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_flux_with_a_picture_beside_the_generated_one_is_refused():
    pipe = made("flux")
    call = arguments(
        "flux", torch.zeros(1, 4, 4, 4), 700.0, texts("flux")["prompt_embeds"][:1], torch.zeros(1, TEXT_WIDTH)
    )
    call["img_ids"] = torch.cat([call["img_ids"], call["img_ids"] + torch.tensor([1.0, 0.0, 0.0])])
    call["hidden_states"] = call["hidden_states"].repeat(1, 2, 1)
    with pytest.raises(FabricError, match="8 image tokens on a grid of 2 x 2.*Kontext"), labelled_rows(["cond"]):
        with fabric(pipe, liked=[LIKED], reference_prompt=None):
            pipe.transformer(**call)


def test_the_middle_of_the_stack_is_depth_one():
    depths = [(layer.name, layer.depth) for layer, _ in joint_attentions(model("sd3"))]
    names = ("0.attn", "0.attn2", "1.attn", "2.attn")
    assert depths == [(f"transformer_blocks.{name}", d) for name, d in zip(names, (0, 0, 1, 0), strict=True)]
    assert [layer.depth for layer, _ in joint_attentions(model("flux"))] == [0, 1, 0]
    x = torch.randn(2, 4, 4, 4, generator=torch.Generator().manual_seed(4))
    seen = []
    direct("flux", x, liked=[LIKED], depths=(0.5, 1.0), observer=seen.append)
    assert [one.layer.name for one in seen] == ["single_transformer_blocks.0.attn"]
