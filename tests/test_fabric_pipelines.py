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
    LCMScheduler,
    StableDiffusionControlNetPAGPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionPAGImg2ImgPipeline,
    StableDiffusionPAGPipeline,
    StableDiffusionPanoramaPipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPAGPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor2_0
from PIL import Image
from tiny_models import seeded, tiny_pipeline, tiny_sdxl_pipeline

from labkit.diffusion import add_lora, encode_images, execution_device, image_generators, labelled_rows, sample
from labkit.fabric import (
    PRESETS,
    FabricError,
    FabricWarning,
    FeedbackLoop,
    ReferenceCache,
    fabric,
    self_attentions,
)
from labkit.fabric.references import Reference, as_references
from labkit.images import ImageError

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
    if kind == "sd" and step == "active":  # our own sampler, encoder and decoder
        options = {"generators": image_generators(1, 0), "steps": 1}
        made_here = sample(pipe, "a red house", **options)
        options["generators"] = image_generators(1, 0)
        assert torch.equal(made_here, sample(made(kind, own=()), "a red house", **options))


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


# ---- which rows read what ------------------------------------------------------------------------------------------


def calls_of(pipe, generate, **feedback):
    """What the generation's own calls of the U-Net got and gave, while there is feedback."""
    calls = []

    def keep(unet, args, kwargs, output):
        if args:  # the reference pass names its arguments
            calls.append((*args, kwargs["encoder_hidden_states"], output[0]))

    handle = pipe.unet.register_forward_hook(keep, with_kwargs=True)
    try:
        with fabric(pipe, end=1.0, **feedback) as session:
            generate()
    finally:
        handle.remove()
    return calls, session


def test_views_of_a_panorama_may_be_stacked_in_any_order():
    """Two views a call: the rows are [uncond, cond, uncond, cond]."""
    pipe, signs = made("sd", StableDiffusionPanoramaPipeline), {"liked": [LIKED], "disliked": [DISLIKED]}
    pipe.get_views = lambda *_, **__: [(0, 8, 0, 8), (0, 8, 8, 16)]  # of the native size, side by side
    options = {"num_inference_steps": 1, "height": 64, "width": 128, "view_batch_size": 2, "output_type": "latent"}

    def generate(negative="", **more):
        pipe("a red house", negative_prompt=negative, **options, **more)

    calls, session = calls_of(pipe, generate, **signs)
    assert session.active_calls == len(calls) > 0
    x, t, text, output = calls[0]
    assert torch.equal(text[0], text[2]) and not torch.equal(text[0], text[1])
    for row, label in enumerate(["uncond", "cond"] * 2):
        with torch.no_grad(), labelled_rows([label]), fabric(pipe, end=1.0, **signs):
            close(output[row : row + 1], pipe.unet(x[row : row + 1], t, encoder_hidden_states=text[row : row + 1])[0])
    with pytest.raises(FabricError, match="no labels for 4 rows"):  # equal texts: nothing tells the rows apart
        calls_of(pipe, lambda: generate("a red house"), **signs)


def test_guidance_that_ends_on_the_way_leaves_conditional_rows():
    """diffusers' own recipe for dynamic guidance: from the second step on the call has conditional rows only."""
    pipe = made("sd", own=())

    def stop(pipe, index, t, found):
        pipe._guidance_scale = 0.0
        return {"prompt_embeds": found["prompt_embeds"].chunk(2)[-1]}

    def generate():
        options = {"callback_on_step_end": stop, "callback_on_step_end_tensor_inputs": ["prompt_embeds"]}
        pipe("a red house", num_inference_steps=2, output_type="latent", **options)

    calls, session = calls_of(pipe, generate, liked=[LIKED])
    assert ([len(x) for x, *_ in calls], session.active_calls) == ([2, 1], 2)
    x, t, text, output = calls[1]
    with torch.no_grad(), labelled_rows(["cond"]), fabric(pipe, end=1.0, liked=[LIKED]):
        close(output, pipe.unet(x, t, encoder_hidden_states=text)[0])


def test_what_a_pipeline_remembers_of_its_last_call_labels_no_rows():
    pipe = made("sd", own=())
    run(pipe, "sd")
    assert pipe.do_classifier_free_guidance
    with pytest.raises(FabricError, match="no labels for 2 rows"), fabric(pipe, liked=[LIKED]):
        pipe.unet(torch.zeros(2, 4, 8, 8), 500, encoder_hidden_states=torch.zeros(2, 16, 32))


def lora_scale():
    """It is set inside the U-Net's own call: before, and for the references' own call, the adapters look as ever."""
    pipe = made("sd")
    for p in add_lora(pipe.unet, "style", seed=0, rank=2):
        p.data.normal_(std=0.3, generator=torch.Generator().manual_seed(0))
    return pipe, [{"cross_attention_kwargs": {"scale": scale}} for scale in (1.0, 0.1)]


def told_guidance():
    """A distilled model is told the guidance in an argument of its own."""
    config = {name: one for name, one in parts("sd")["unet"].config.items() if not name.startswith("_")}
    unet = seeded(lambda: UNet2DConditionModel(**config | {"time_cond_proj_dim": 8}), 3)
    scheduler = LCMScheduler.from_config(parts("sd")["scheduler"].config)
    return made("sd", own=(), unet=unet, scheduler=scheduler), [{"g": 2.0}, {"g": 9.0}]


@pytest.mark.parametrize("case", [lora_scale, told_guidance], ids=lambda one: one.__name__)
def test_a_kept_cache_is_asked_for_all_that_a_call_says(case):
    pipe, (first, other) = case()

    def generated(cache, options):
        return with_feedback(pipe, "sd", "active", feedback={"disliked": None, "cache": cache}, **options)

    kept = ReferenceCache()
    generated(kept, first)
    assert generated(kept, first)[1].reference_rows == 0
    result, session = generated(kept, other)
    assert session.reference_rows == 1 and torch.equal(result, generated(ReferenceCache(), other)[0])


# ---- nothing happens without a word ---------------------------------------------------------------------------------


def test_a_session_that_did_nothing_says_so():
    pipe = made("sd", own=())
    for options in ({"start": 0.9, "end": 0.1}, {"end": 0.3}):
        with pytest.warns(FabricWarning, match="had no effect: the calls were at timesteps 1 to 1, none inside"):
            with fabric(pipe, liked=[LIKED], **options):
                run(pipe, "sd")
    late = made("img2img", own=())
    with pytest.warns(FabricWarning, match="img2img skips the beginning"), fabric(late, liked=[LIKED]):
        run(late, "img2img", strength=0.2, num_inference_steps=5)
    with pytest.warns(FabricWarning, match="never entered"):
        fabric(pipe, liked=[LIKED])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        fabric(pipe)
        with fabric(pipe, liked=[LIKED], max_weight=0.0):  # switched off on purpose
            run(pipe, "sd")


# ---- one at a time --------------------------------------------------------------------------------------------------


def test_a_model_that_waits_elsewhere_runs_where_its_hooks_say():
    from accelerate.hooks import AlignDevicesHook, CpuOffload, SequentialHook

    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    assert execution_device(model) == torch.device("cpu")
    model._hf_hook = CpuOffload("cuda:0")  # the whole model
    assert execution_device(model) == torch.device("cuda:0")
    model._hf_hook = AlignDevicesHook(io_same_device=True)  # part by part: the outer hook knows no device
    model[0]._hf_hook = SequentialHook(AlignDevicesHook(execution_device="cuda:1"))
    assert execution_device(model) == torch.device("cuda:1")


@pytest.mark.parametrize("name", ["DDPMScheduler", "LCMScheduler", "TCDScheduler"])
def test_schedules_of_zero_terminal_snr_give_pictures(name):
    import diffusers

    pipe = made("sd", own=())
    changes = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **changes)
    with fabric(pipe, liked=[LIKED]) as session:
        assert run(pipe, "sd").isfinite().all()
    assert session.active_calls == 1


def test_a_sign_with_fewer_references_is_filled_with_zeros_as_in_the_comfyui_node():
    """A token whose K and V are zero has the logit 0 and gives nothing: it only takes attention away."""
    pipe = made("sd", own=())
    text, x = torch.randn(2, 16, 32), torch.randn(2, 4, 8, 8)

    def call(liked, disliked, seen=None, **options):
        observer = None if seen is None else seen.append
        with torch.no_grad(), fabric(pipe, liked=liked, disliked=disliked, observer=observer, **options):
            with labelled_rows(["uncond", "cond"]):
                return pipe.unet(x, 500, encoder_hidden_states=text)[0]

    seen, one = [], {"max_weight": 0.4, "negative_scale": 1.0}
    plain, without = call([], []), call([LIKED, LIKED], [], **one)
    padded = call([LIKED, LIKED], [], seen, zero_padding=True, **one)
    assert torch.equal(without[0], plain[0])
    assert (padded[0] - plain[0]).abs().max() > 1e-3
    close(padded[1], without[1])
    filled = [o.reference for o in seen if o.sign == "disliked"]
    assert filled and all(not r.k.any() and not r.v.any() and r.k.shape[2] == 2 * r.tokens[0] for r in filled)
    assert {round(float(w), 6) for r in filled for w in r.weights} == {0.4}
    both = ([LIKED], [DISLIKED])
    assert torch.equal(call(*both, zero_padding=True, **one), call(*both, **one))  # nothing to fill
    session = fabric(pipe, settings="comfy", steps=20)
    weights = [session.weight_at(float(t)) for t in session._timesteps()]
    assert weights == [1.0] * 16 + [0.0] * 4


def test_what_cannot_work_is_refused_in_one_line_and_what_can_works():
    pipe = made("sd", own=())
    with pytest.raises(ImageError, match="empty picture"):
        fabric(pipe, liked=[Image.new("RGB", (0, 0))])
    refiner = made("sdxl", own=())
    refiner.register_to_config(requires_aesthetics_score=True)
    with pytest.raises(FabricError, match="refiner.*reference_prompt=None"):
        fabric(refiner, liked=[LIKED])
    refiner = made("sdxl")
    config = {"projection_class_embeddings_input_dim": 32 + 5 * 8}
    refiner.unet.register_to_config(**config)
    with pytest.raises(ValueError, match="takes 5 numbers.*refiner"):
        sample(refiner, "a house", generators=image_generators(1, 0), steps=1)


def test_one_picture_is_one_reference_in_whatever_form_it_comes():
    """[-1, 1], [0, 1] as `output_type="pt"` gives it, [0, 255], uint8, 16 bits and a file: the same key and noise."""
    levels = (torch.arange(3 * 6 * 5) * 2 + 40).reshape(3, 6, 5).to(torch.uint8)
    own, small = levels.float() / 127.5 - 1, levels.float() / 255
    array = levels.permute(1, 2, 0).numpy()
    forms = [own, levels, levels.float(), array, array.astype("uint16") * 257, Image.fromarray(array)]
    found = [Reference(one) for one in forms] + [Reference(small, (0, 1)), Reference(small.numpy(), (0, 1))]
    for one in found:
        close(one.image, own, 1e-6)
    assert len({one.key for one in (found[1], *found[3:6])}) == 1
    together = as_references(liked=[own.abs()], disliked=[own])  # what one cannot say, both can
    close(together["liked"][0].image, own.abs())
    with pytest.raises(ImageError, match="declare value_range"):
        as_references(liked=[small])


def test_references_are_no_rows_of_a_call_whose_texts_are_longer():
    pipe = made("sd", own=())
    g = torch.Generator().manual_seed(0)
    texts = {name: torch.randn(1, 32, 32, generator=g) for name in ("prompt_embeds", "negative_prompt_embeds")}
    options = {"num_inference_steps": 1, "output_type": "latent", **texts}

    def generate():
        return pipe(generator=torch.Generator().manual_seed(0), **options).images

    with fabric(pipe, liked=[LIKED], end=1.0):
        expected = generate()
    with pytest.warns(FabricWarning, match="fused=True had no effect"):
        with fabric(pipe, liked=[LIKED], end=1.0, fused=True):
            assert torch.equal(generate(), expected)


def test_a_vae_without_posterior_encodes_references():
    from diffusers import AutoencoderTiny

    blocks = {"encoder_block_out_channels": (8,) * 4, "decoder_block_out_channels": (8,) * 4}
    counts = {"num_encoder_blocks": (1,) * 4, "num_decoder_blocks": (1,) * 4}
    vae = seeded(lambda: AutoencoderTiny(latent_channels=4, **blocks, **counts), 4)
    pipe = made("sd", own=(), vae=vae)
    result, session = with_feedback(pipe, "sd", "active")
    assert session.reference_rows == 2
    assert not torch.equal(result, expected("sd", "active")[1])
    assert torch.equal(encode_images(pipe, LIKED[None]), vae.encode(LIKED[None]).latents)
    with pytest.raises(ValueError, match="no posterior"):
        encode_images(pipe, LIKED[None], generators=image_generators(1, 0))


# ---- rounds of any pipeline -----------------------------------------------------------------------------------------


def test_a_preset_also_says_how_rounds_sample():
    pipe = made("sd", own=())
    for name, preset in PRESETS.items():
        loop = FeedbackLoop(pipe, "a house", settings=name)
        assert loop.steps == (preset.steps or 20) and loop.images == (preset.images or 4)
        assert loop.guidance_scale == (6.0 if preset.guidance_scale is None else preset.guidance_scale)
    assert FeedbackLoop(pipe, "a house", settings="repo-generate", images=2, steps=1, guidance_scale=2.0).images == 2
    loop = FeedbackLoop(pipe, "a house", settings="paper", images=2, steps=1)
    assert len(loop.run(lambda images: images.mean((1, 2, 3)))) == PRESETS["paper"].rounds == 3


@pytest.mark.parametrize("kind", ["sdxl", "img2img", "controlnet"])
def test_rounds_of_any_pipeline_are_its_own_calls(kind, tmp_path):
    pipe = made(kind, own=())
    call = {"sdxl": {"height": 64, "width": 128}, "img2img": {"image": START / 2 + 0.5, "strength": 1.0}}
    call = call.get(kind, {"image": START / 2 + 0.5, "controlnet_conditioning_scale": 0.5})
    options = {"images": 2, "steps": 1, "guidance_scale": 3.0, "end": 1.0, "seed": 4}
    loop = FeedbackLoop(pipe, "a house", call=call, folder=tmp_path, **options)
    first = loop.generate()
    assert first.shape == (2, 3, 64, 128 if kind == "sdxl" else 64)
    loop.feedback(liked=[1], disliked=[0])
    second = loop.generate()
    own = {
        "num_inference_steps": 1,
        "guidance_scale": 3.0,
        "output_type": "pt",
        "generator": image_generators(2, 4, first=2),
    }
    with fabric(pipe, liked=[first[1]], disliked=[first[0]], end=1.0, seed=5):
        by_hand = pipe(["a house"] * 2, **own, **call).images * 2 - 1
    assert (second - by_hand).abs().max() < 1 / 127  # rounded to 8 bit
    assert torch.equal(FeedbackLoop(pipe, "a house", call=call, folder=tmp_path, **options).rounds[1].images, second)
    with pytest.raises(FabricError, match="other call"):
        FeedbackLoop(pipe, "a house", call={**call, "eta": 0.5}, folder=tmp_path, **options)
