"""FABRIC on the pipelines that people have: every kind of pipeline under every circumstance, working and idle.

One step of sampling is one call of the U-Net; a window that holds it makes it work, one that does not leaves it idle.
"""

import copy
import warnings
from functools import cache

import pytest
import torch
from diffusers import (
    ControlNetModel,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from tiny_models import seeded, tiny_pipeline, tiny_sdxl_pipeline

from labkit.diffusion import labelled_rows
from labkit.fabric import FabricError, FabricWarning, fabric, self_attentions

KINDS = ("sd", "sdxl", "img2img", "controlnet")
STEPS = ("active", "idle")
WITH_PAG = {
    "sd": StableDiffusionPAGPipeline,
    "sdxl": StableDiffusionXLPAGPipeline,
    "img2img": StableDiffusionPAGImg2ImgPipeline,
    "controlnet": StableDiffusionControlNetPAGPipeline,
}
WINDOW = {"active": {"end": 1.0}, "idle": {"end": 0.3}}  # the only step is at progress 0.999


def picture(seed, size=64):
    return torch.rand(3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


LIKED, DISLIKED, START = picture(1), picture(2), picture(3)[None]


@cache
def parts(kind):
    """Components, shared by all that do not change them."""
    components = dict((tiny_sdxl_pipeline() if kind == "sdxl" else tiny_pipeline()).components)
    if kind == "controlnet":
        unet = components["unet"]
        components["controlnet"] = seeded(
            lambda: ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(8, 8, 8, 8)), 9
        )
    return components


CLASSES = {
    "sd": StableDiffusionPipeline,
    "sdxl": StableDiffusionXLPipeline,
    "img2img": StableDiffusionImg2ImgPipeline,
    "controlnet": StableDiffusionControlNetPipeline,
}


def made(kind, cls=None, own=("unet",), **more):
    """A pipeline whose `own` components are copies, so that it may be changed."""
    components = parts(kind)
    copies = {name: copy.deepcopy(components[name]) for name in own if components.get(name) is not None}
    pipe = (cls or CLASSES[kind])(**{**components, **copies, **more})
    pipe.set_progress_bar_config(disable=True)
    return pipe


def run(pipe, kind, g=3.0, **options):
    """One step, latents [2, 4, 8, 8]."""
    more = {"img2img": {"image": START, "strength": 1.0}, "controlnet": {"image": START / 2 + 0.5}}.get(kind, {})
    texts = {} if "prompt_embeds" in options else {"prompt": ["a red house", ""]}  # one text is the negative one
    generator = [torch.Generator().manual_seed(seed) for seed in (0, 1)]
    options = {"num_inference_steps": 1, "guidance_scale": g, "output_type": "latent"} | texts | more | options
    return pipe(generator=generator, **options).images


def with_feedback(pipe, kind, step, opened_on=None, feedback=None, **options):
    """The latents of `run` with one like and one dislike, and the session; an idle one warns that it did nothing."""
    feedback = {"liked": [LIKED], "disliked": [DISLIKED], **WINDOW[step]} | (feedback or {})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", FabricWarning)
        with fabric(opened_on or pipe, **feedback) as session:
            result = run(pipe, kind, **options)
    said = [str(one.message) for one in caught if issubclass(one.category, FabricWarning)]
    assert [("had no effect" in one) for one in said] == [True] * (step == "idle")
    assert (session.unet_calls, session.active_calls) == (1, int(step == "active"))
    return result, session


@cache
def expected(kind, step):
    """What a pipeline in no special circumstance gives: plain, and with feedback."""
    pipe = made(kind, own=())
    plain, (result, _) = run(pipe, kind), with_feedback(pipe, kind, step)
    assert torch.equal(result, plain) == (step == "idle")
    return plain, result


def close(a, b, tolerance=1e-5):
    assert (a - b).abs().max() < tolerance * (1 + b.abs().max())


# ---- the matrix ----------------------------------------------------------------------------------------------------


def slicing(kind, step):
    pipe = made(kind)
    pipe.enable_attention_slicing(1)
    close(with_feedback(pipe, kind, step)[0], expected(kind, step)[1])


def offload(kind, step):
    """Sequential offload: between calls the weights are on no device at all."""
    from accelerate import cpu_offload

    pipe = made(kind, own=("unet", "vae", "text_encoder", "text_encoder_2", "controlnet"))
    for model in (one for one in pipe.components.values() if isinstance(one, torch.nn.Module)):
        cpu_offload(model, torch.device("cpu"))
    assert next(pipe.unet.parameters()).is_meta
    assert torch.equal(with_feedback(pipe, kind, step)[0], expected(kind, step)[1])


def compiled(kind, step):
    pipe = made(kind)
    pipe.unet.mid_block.compile(backend="eager")  # a part is enough; nothing is compiled before it runs
    with pytest.raises(FabricError, match="compiled"):
        fabric(pipe, liked=[LIKED], **WINDOW[step])
    pipe = made(kind)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    with pytest.raises(FabricError, match="compiled"):
        fabric(pipe, liked=[LIKED], **WINDOW[step])


def pag(kind, step):
    """The rows are [uncond, cond, perturbed cond]: the first two parts are those of a call without PAG."""
    pipe = made(kind, WITH_PAG[kind], pag_applied_layers=["mid"])
    calls = []

    def keep(unet, args, kwargs, output):
        if args and len(args[0]) == 6:
            calls.append((args, kwargs, output[0]))

    before = dict(pipe.unet.attn_processors)
    handle = pipe.unet.register_forward_hook(keep, with_kwargs=True)
    result, session = with_feedback(pipe, kind, step)
    handle.remove()
    assert all(pipe.unet.attn_processors[name] is one for name, one in before.items())
    assert torch.equal(result, run(pipe, kind)) == (step == "idle")
    assert session.reference_rows == 2 * (step == "active")
    ((x, t), kwargs, output), rows = calls[0], slice(0, 4)
    keys = ("down_block_additional_residuals", "mid_block_additional_residual", "added_cond_kwargs")
    more = {key: cut(kwargs.get(key), rows) for key in keys}
    signs = {"liked": [LIKED], "disliked": [DISLIKED]}
    with torch.no_grad(), labelled_rows(["uncond"] * 2 + ["cond"] * 2), warnings.catch_warnings():
        warnings.simplefilter("ignore", FabricWarning)
        with fabric(pipe, **signs, **WINDOW[step]):
            alone = pipe.unet(x[rows], t, encoder_hidden_states=kwargs["encoder_hidden_states"][rows], **more)[0]
    close(output[rows], alone)
    assert (output[4:] - output[2:4]).abs().max() > 1e-4


def cut(value, rows):
    if isinstance(value, dict):
        return {name: cut(one, rows) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [cut(one, rows) for one in value]
    return None if value is None else value[rows]


def zero_snr(kind, step):
    """The first timestep is pure noise, where log sigma is infinite; the only step is at it, so windows are turned."""
    pipe = made(kind, own=())
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, **changes)
    assert float(pipe.scheduler.alphas_cumprod[-1]) == 0
    window = {"active": {"end": 0.3}, "idle": {"start": 0.7, "end": 1.0}}[step]
    result, _ = with_feedback(pipe, kind, step, feedback=window)
    assert result.isfinite().all()
    assert torch.equal(result, run(pipe, kind)) == (step == "idle")


def sibling(kind, step):
    """Opened on a pipeline that shares the U-Net and remembers a call without guidance."""
    pipe = made(kind, own=())
    components = {name: one for name, one in pipe.components.items() if name != "controlnet"}
    opener = (StableDiffusionXLPipeline if kind == "sdxl" else StableDiffusionPipeline)(**components)
    opener.set_progress_bar_config(disable=True)
    run(opener, "sd", g=1.0)
    assert not opener.do_classifier_free_guidance
    assert torch.equal(with_feedback(pipe, kind, step, opened_on=opener)[0], expected(kind, step)[1])


def no_text_encoder(kind, step):
    pipe = made(kind, own=())
    names = ("prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
    ask = {"device": "cpu", "num_images_per_prompt": 1, "do_classifier_free_guidance": True}
    texts = dict(zip(names, pipe.encode_prompt(prompt=["a red house"] * 2, **ask), strict=False))
    own = {"reference_prompt": None}
    with_encoder, _ = with_feedback(pipe, kind, step, feedback=own, **texts)
    without = {"text_encoder": None, "tokenizer": None} | ({"text_encoder_2": None} if kind == "sdxl" else {})
    bare = made(kind, own=(), **without)
    assert torch.equal(with_feedback(bare, kind, step, feedback=own, **texts)[0], with_encoder)
    with pytest.raises(FabricError, match="no text encoder.*reference_prompt=None"):
        fabric(bare, liked=[LIKED], **WINDOW[step])


def replaced(kind, step):
    """One processor of many is replaced inside the block."""
    pipe = made(kind)
    layer, attn = self_attentions(pipe.unet)[1]
    with pytest.raises(FabricError, match=f"{layer.name} now has a AttnProcessor2_0"):
        with fabric(pipe, liked=[LIKED], **WINDOW[step]):
            attn.processor = AttnProcessor2_0()
            run(pipe, kind)
    assert torch.equal(run(pipe, kind), expected(kind, step)[0])


CIRCUMSTANCES = (slicing, offload, compiled, pag, zero_snr, sibling, no_text_encoder, replaced)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("circumstance", CIRCUMSTANCES, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", KINDS)
def test_feedback_is_exact_or_refused(kind, circumstance, step):
    circumstance(kind, step)
