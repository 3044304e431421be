"""Feedback through whole U-Nets and pipelines: what must not change, what must, and what it costs."""

import contextlib
import copy
import warnings

import pytest
import torch
from fabric_reference import obvious_unet
from tiny_models import tiny_pipeline

from labkit.diffusion import NFELedger, encode_images, encode_prompts, image_generators, labelled_rows, sample
from labkit.fabric import (
    FabricError,
    FabricWarning,
    Reference,
    ReferenceCache,
    fabric,
    noised_reference,
    reference_noise,
    self_attentions,
)
from labkit.fabric.attention import moments
from labkit.fabric.equations import alpha_bar_at
from labkit.fabric.processor import FabricProcessor
from labkit.images import ImageError


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def pictures(n=2, seed=5, size=64):
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(seed)) * 2 - 1


def one_call(pipe, rows=2, seed=0, t=500, prompt="a red house", negative="", labels=None):
    """Arguments of a U-Net call with the rows [uncond..., cond...]."""
    g = torch.Generator().manual_seed(seed)
    x = torch.randn(rows // 2, 4, 8, 8, generator=g).repeat(2, 1, 1, 1)
    c = encode_prompts(pipe, [prompt] * (rows // 2), [negative] * (rows // 2))
    labels = labels or ["uncond"] * (rows // 2) + ["cond"] * (rows // 2)
    return x, t, torch.cat([c.uncond, c.cond]), labels


def call(pipe, x, t, text, labels):
    with torch.no_grad(), labelled_rows(labels):
        return pipe.unet(x, t, encoder_hidden_states=text)[0]


def generate(pipe, n=2, seed=0, steps=4, g=3.0, **options):
    generators = image_generators(n, seed)
    return sample(pipe, "a red house", generators=generators, steps=steps, guidance_scale=g, **options)


def latents(pipe, image):
    with torch.no_grad():
        return encode_images(pipe, image[None])[0]


def with_scheduler(pipe, name, **options):
    import diffusers

    other = copy.copy(pipe)
    other.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    return other


SAMPLERS = (
    "DDIMScheduler",
    "PNDMScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "LCMScheduler",
    "LMSDiscreteScheduler",
    "DEISMultistepScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DDPMScheduler",
)


# ---- what must not change -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
def test_weight_zero_and_no_references_are_bitwise_plain_for_every_scheduler(pipe, name):
    if "LMS" in name:
        pytest.importorskip("scipy")
    p = with_scheduler(pipe, name, **({"skip_prk_steps": True} if name == "PNDMScheduler" else {}))
    states = []

    def run():
        generator = torch.Generator().manual_seed(0)
        result = p("a red house", num_inference_steps=3, generator=generator, output_type="latent")
        states.append(generator.get_state())
        return result

    plain = run().images
    with fabric(p, liked=[], disliked=[]):
        assert torch.equal(run().images, plain)
    with NFELedger(p) as ledger, fabric(p, liked=pictures(), disliked=pictures(1), max_weight=0.0) as session:
        assert torch.equal(run().images, plain)
    assert session.reference_rows == 0
    assert ledger.counts.unet_calls == session.unet_calls
    with fabric(p, liked=pictures(), max_weight=0.5):
        assert not torch.equal(run().images, plain)
    assert all(torch.equal(state, states[0]) for state in states)  # references draw from generators of their own


def test_the_global_random_state_is_not_touched(pipe):
    before = torch.random.get_rng_state()
    with fabric(pipe, liked=pictures(), disliked=pictures(1)):
        generate(pipe, steps=2)
    assert torch.equal(before, torch.random.get_rng_state())


def test_likes_leave_unconditional_rows_alone_and_dislikes_conditional_ones(pipe):
    x, t, text, labels = one_call(pipe, rows=4)
    plain = call(pipe, x, t, text, labels)
    with fabric(pipe, liked=pictures(), max_weight=1.0):
        liked = call(pipe, x, t, text, labels)
    with fabric(pipe, disliked=pictures(), max_weight=1.0):
        disliked = call(pipe, x, t, text, labels)
    assert torch.equal(liked[:2], plain[:2])
    assert torch.equal(disliked[2:], plain[2:])
    assert (liked[2:] - plain[2:]).abs().max() > 1e-4
    assert (disliked[:2] - plain[:2]).abs().max() > 1e-4


def test_everything_is_restored_on_exit_and_after_an_exception(pipe):
    before = dict(pipe.unet.attn_processors)
    hooks = len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks)
    plain = generate(pipe, steps=2)
    with fabric(pipe, liked=pictures()) as session:
        kinds = {name: type(p) for name, p in pipe.unet.attn_processors.items()}
        generate(pipe, steps=2)
    assert {kinds[name] for name in kinds if "attn1" in name} == {FabricProcessor}
    assert all(pipe.unet.attn_processors[name] is p for name, p in before.items())

    def explode(*_):
        raise ZeroDivisionError

    handle = pipe.unet.conv_out.register_forward_pre_hook(explode)
    try:
        with contextlib.suppress(ZeroDivisionError), fabric(pipe, liked=pictures()) as session:
            generate(pipe, steps=2)
    finally:
        handle.remove()
    assert all(pipe.unet.attn_processors[name] is p for name, p in before.items())
    assert (len(pipe.unet._forward_hooks), len(pipe.unet._forward_pre_hooks)) == hooks
    assert len(session.cache) == 0
    assert torch.equal(generate(pipe, steps=2), plain)


def test_cross_attention_processors_stay_the_same_objects(pipe):
    before = {name: p for name, p in pipe.unet.attn_processors.items() if "attn2" in name}
    with fabric(pipe, liked=pictures(), end=1.0):
        assert all(pipe.unet.attn_processors[name] is p for name, p in before.items())
        generate(pipe, steps=1)


def test_nested_use_is_refused_and_the_outer_session_goes_on(pipe):
    plain = generate(pipe, steps=2)
    with fabric(pipe, liked=pictures()):
        first = generate(pipe, steps=2)
        with pytest.raises(FabricError, match="already open"), fabric(pipe, liked=pictures(1)):
            pass
        assert torch.equal(generate(pipe, steps=2), first)
    assert torch.equal(generate(pipe, steps=2), plain)


# ---- what must happen -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["sdpa", "lse"])
@pytest.mark.parametrize("prompt", ["", "a red house"])
@pytest.mark.parametrize("adain", [False, True])
def test_self_reference_is_a_no_op_through_the_whole_unet(pipe, backend, prompt, adain):
    image, t = pictures(1)[0], 400
    reference = Reference(image)
    noise = reference_noise(reference.key, 0, t, (4, 8, 8))
    x = noised_reference(latents(pipe, image), noise, t, pipe.scheduler.alphas_cumprod)[None].repeat(2, 1, 1, 1)
    text = encode_prompts(pipe, [prompt], [""])
    text = torch.cat([text.uncond, text.cond])
    plain = call(pipe, x, t, text, ["uncond", "cond"])
    for weight in (0.1, 1.0, 5.0):
        options = {"max_weight": weight, "negative_scale": 1.0, "backend": backend, "adain": adain}
        warnings.simplefilter("ignore", FabricWarning)
        with fabric(pipe, liked=[reference], disliked=[reference], reference_prompt=prompt, **options):
            same = call(pipe, x, t, text, ["uncond", "cond"])
        assert (same[1] - plain[1]).abs().max() < 1e-5
        assert ((same[0] - plain[0]).abs().max() < 1e-5) == (prompt == "")
    with fabric(pipe, liked=[reference], reference_prompt=None):
        assert (call(pipe, x, t, text, ["uncond", "cond"])[1] - plain[1]).abs().max() < 1e-5
    with fabric(pipe, liked=[Reference(-image)], reference_prompt=prompt):
        assert (call(pipe, x, t, text, ["uncond", "cond"])[1] - plain[1]).abs().max() > 1e-3


@pytest.mark.parametrize("backend", ["sdpa", "lse"])
def test_whole_unet_agrees_with_the_slow_obvious_implementation(pipe, backend):
    x, t, text, labels = one_call(pipe, rows=4)
    liked, disliked = [Reference(p) for p in pictures(2)], [Reference(p) for p in pictures(1, seed=9)]
    abar = pipe.scheduler.alphas_cumprod

    def noised(references):
        noises = [reference_noise(r.key, 3, t, (4, 8, 8)) for r in references]
        return [noised_reference(latents(pipe, r.image), e, t, abar) for r, e in zip(references, noises, strict=True)]

    empty = encode_prompts(pipe, [""]).cond
    with torch.no_grad():
        parts = noised(liked), noised(disliked)
        expected = obvious_unet(pipe.unet, x, t, text, *parts, 0.6, 0.3, labels, empty)
    with fabric(pipe, liked=liked, disliked=disliked, max_weight=0.6, seed=3, backend=backend):
        assert (call(pipe, x, t, text, labels) - expected).abs().max() < 1e-5


def test_call_and_row_counts(pipe):
    options = {"max_weight": 0.8, "clock": "steps", "steps": 10, "start": 0.0, "end": 0.5}
    with NFELedger(pipe) as plain:
        generate(pipe, steps=10)
    with NFELedger(pipe) as ledger, fabric(pipe, liked=pictures(2), disliked=pictures(1, seed=8), **options) as session:
        generate(pipe, steps=10)
    assert session.unet_calls == plain.counts.unet_calls == 10
    assert session.active_calls == 6
    assert session.reference_rows == 6 * 3
    assert ledger.counts.unet_rows - plain.counts.unet_rows == 6 * 3
    assert ledger.counts.unet_calls == 10 + 6  # likes and dislikes share the pass
    with NFELedger(pipe) as ledger, fabric(pipe, liked=pictures(5), chunk=2, **options):
        generate(pipe, steps=10)
    assert ledger.counts.unet_calls == 10 + 6 * 3
    with NFELedger(pipe) as ledger, fabric(pipe, liked=pictures(2), max_weight=0.8, start=0.9, end=0.1):
        generate(pipe, steps=10)
    assert ledger.counts.unet_rows == plain.counts.unet_rows


def test_fused_rows_are_two_forwards_in_one_call(pipe):
    options = {"liked": pictures(3), "disliked": pictures(1, seed=8), "end": 0.5}
    for more in ({}, {"backend": "lse"}, {"adain": True}, {"reference_prompt": None}):
        with fabric(pipe, **options, **more) as two:
            expected = generate(pipe, steps=4)
        cache = ReferenceCache()
        with NFELedger(pipe) as ledger, fabric(pipe, fused=True, cache=cache, **options, **more) as one:
            assert (generate(pipe, steps=4) - expected).abs().max() < 1e-5
        assert (one.reference_rows, ledger.counts.unet_calls) == (two.reference_rows, 4)
        assert ledger.counts.unet_rows == 4 * 2 * 2 + two.active_calls * 4
        with fabric(pipe, fused=True, cache=cache, **options, **more) as again:
            assert (generate(pipe, steps=4) - expected).abs().max() < 1e-5
        assert again.reference_rows == 0
    with (  # too many for one call
        pytest.warns(FabricWarning, match="no effect for 4 references.*give chunk=4"),
        NFELedger(pipe) as ledger,
        fabric(pipe, fused=True, chunk=3, **options),
    ):
        generate(pipe, steps=4)
    assert ledger.counts.unet_calls == 4 + 2 * 2


def test_depths_choose_the_layers_that_read_references(pipe):
    x, t, text, labels = one_call(pipe)
    depths = sorted({layer.depth for layer, _ in self_attentions(pipe.unet)})
    assert len(depths) > 1

    def out(**options):
        seen = []
        with fabric(pipe, liked=pictures(2), observer=lambda o: seen.append(o.layer.depth), **options):
            return call(pipe, x, t, text, labels), sorted(set(seen))

    everywhere, layers = out()
    assert layers == depths
    outer, layers = out(depths=(0.0, depths[0]))
    assert layers == depths[:1]
    inner, layers = out(depths=(depths[1], 1.0))
    assert layers == depths[1:]
    plain = call(pipe, x, t, text, labels)
    for one, other in ((everywhere, outer), (everywhere, inner), (outer, inner), (outer, plain)):
        assert (one - other).abs().max() > 1e-5
    with pytest.raises(FabricError, match="no self-attention lies at depths"), fabric(pipe, depths=(0.99, 0.99)):
        pass


def test_adain_gives_queries_and_keys_the_moments_of_the_references(pipe):
    x, t, text, labels = one_call(pipe)
    seen = []

    def out(liked, **options):
        with fabric(pipe, liked=liked, observer=seen.append, **options):
            return call(pipe, x, t, text, labels)

    a, b = pictures(2)
    with_adain = out([a, b], adain=True)
    assert (with_adain - out([a, b])).abs().max() > 1e-4
    assert (with_adain - out([b, a], adain=True)).abs().max() < 1e-5
    assert (with_adain - out([a, b, a, b], adain=True, max_weight=0.4)).abs().max() < 1e-5
    first = seen[0]
    assert (moments(first.k)[0] - moments(first.reference.k)[0]).abs().max() < 1e-5
    assert torch.equal(out([a], adain=True, max_weight=0.0), call(pipe, x, t, text, labels))


def test_sliced_attention_stays_and_agrees(pipe):
    p = tiny_pipeline()
    x, t, text, labels = one_call(p)

    def run():
        with fabric(p, liked=pictures(2), disliked=pictures(1, seed=7)):
            return call(p, x, t, text, labels)

    whole = run()
    p.enable_attention_slicing(1)
    kinds = {type(one).__name__ for one in p.unet.attn_processors.values()}
    assert (run() - whole).abs().max() < 1e-5
    assert {type(one).__name__ for one in p.unet.attn_processors.values()} == kinds == {"SlicedAttnProcessor"}


def test_dislikes_do_nothing_without_guidance_and_a_warning_says_so(pipe):
    plain = generate(pipe, steps=2, g=1.0)
    with pytest.warns(FabricWarning, match="guidance is off"), fabric(pipe, disliked=pictures()):
        assert torch.equal(generate(pipe, steps=2, g=1.0), plain)


def test_at_guidance_zero_likes_do_nothing(pipe):
    plain = generate(pipe, steps=2, g=0.0)
    with fabric(pipe, liked=pictures()):
        assert (generate(pipe, steps=2, g=0.0) - plain).abs().max() < 1e-5


def test_equal_prompts_and_equal_references_make_guidance_irrelevant(pipe):
    images = []
    for g in (1.5, 6.0):
        with fabric(pipe, liked=pictures(), disliked=pictures(), negative_scale=1.0):
            images.append(generate(pipe, steps=2, g=g, negative_prompts="a red house"))
    assert (images[0] - images[1]).abs().max() < 1e-4


def test_swapping_prompts_and_references_swaps_the_two_predictions(pipe):
    x, t, text, labels = one_call(pipe)
    likes, dislikes = pictures(2), pictures(1, seed=7)
    with fabric(pipe, liked=likes, disliked=dislikes, negative_scale=1.0):
        normal = call(pipe, x, t, text, labels)
    with fabric(pipe, liked=dislikes, disliked=likes, negative_scale=1.0):
        swapped = call(pipe, x, t, text.flip(0), labels)
    assert (normal - swapped.flip(0)).abs().max() < 1e-5


def test_row_order_does_not_matter_when_labels_match(pipe):
    x, t, text, labels = one_call(pipe, rows=4)
    with fabric(pipe, liked=pictures(2), disliked=pictures(1, seed=7)):
        normal = call(pipe, x, t, text, labels)
        flipped = call(pipe, x.flip(0), t, text.flip(0), labels[::-1])
    assert (normal - flipped.flip(0)).abs().max() < 1e-5


def test_image_alone_is_image_in_a_batch_and_chunks_change_nothing(pipe):
    options = {"liked": pictures(3), "disliked": pictures(1, seed=7)}
    with fabric(pipe, **options):
        batch = generate(pipe, n=3, steps=3)
        alone = sample(pipe, "a red house", generators=image_generators(1, 0, first=1), steps=3)
        assert (alone[0] - batch[1]).abs().max() < 1e-4
        assert (generate(pipe, n=3, steps=3, batch_size=2) - batch).abs().max() < 1e-4
    for chunk in (1, 2):
        with fabric(pipe, chunk=chunk, **options):
            assert (generate(pipe, n=3, steps=3) - batch).abs().max() < 1e-4


def test_copies_add_up_and_count_normalisation_undoes_it(pipe):
    x, t, text, labels = one_call(pipe)
    image = pictures(1)[0]

    def out(n, **options):
        with fabric(pipe, liked=[image] * n, **options):
            return call(pipe, x, t, text, labels)

    assert (out(3, max_weight=0.2) - out(1, max_weight=0.6)).abs().max() < 1e-5
    assert (out(3, max_weight=0.6, count_normalized=True) - out(1, max_weight=0.6)).abs().max() < 1e-5
    assert (out(1, max_weight=0.2) - out(1, max_weight=0.6)).abs().max() > 1e-4


def test_a_ramp_over_the_depth_weighs_the_middle_by_its_scale(pipe):
    """Layers by their depth: the outermost keep 0.8, the middle gets 0.25 of it; at a scale of 0 it reads nothing."""

    def weights(scale, **options):
        seen = []
        with fabric(pipe, liked=pictures(2), bottleneck_scale=scale, max_weight=0.8, observer=seen.append, **options):
            call(pipe, *one_call(pipe))
        return {o.layer: {round(float(w), 6) for w in o.reference.weights} for o in seen}

    layers = [layer for layer, _ in self_attentions(pipe.unet)]
    assert {layer.depth for layer in layers} >= {0.0, 1.0}
    assert weights(0.25) == {layer: {round(0.8 * (1 - 0.75 * layer.depth), 6)} for layer in layers}
    assert weights(0.25, count_normalized=True) == {
        layer: {round(0.4 * (1 - 0.75 * layer.depth), 6)} for layer in layers
    }
    assert set(weights(0.0)) == {layer for layer in layers if layer.depth < 1}


def test_reference_mass_is_reported_per_step_layer_and_sign(pipe):
    with fabric(pipe, liked=pictures(), disliked=pictures(1, seed=3), backend="lse", end=1.0) as session:
        generate(pipe, steps=3)
    layers = {layer.name for layer, _ in self_attentions(pipe.unet)}
    assert len(session.mass) == 3 * len(layers) * 2
    assert all(0 < m < 1 for m in session.mass.values())
    with fabric(pipe, liked=pictures(), backend="lse", mass_cap=0.1) as session:
        generate(pipe, steps=2)
    assert max(session.mass.values()) <= 0.1 + 1e-6


def test_observer_sees_queries_and_reference_tokens(pipe):
    seen = []
    with fabric(pipe, liked=pictures(3), end=1.0, observer=seen.append):
        generate(pipe, n=2, steps=1)
    assert {o.layer.name for o in seen} == {layer.name for layer, _ in self_attentions(pipe.unet)}
    first = seen[0]
    assert (first.sign, first.rows, first.reference.tokens) == ("liked", (2, 3), (64, 64, 64))
    assert first.q.shape[0] == 2
    assert first.reference.k.shape[2] == len(first.reference.weights) == 192


def test_pooled_tokens_carry_the_weight_of_those_they_stand_for(pipe):
    totals = {}
    for pool in (1, 2):
        seen = []
        with fabric(pipe, liked=pictures(2), pool=pool, max_weight=0.3, observer=seen.append):
            call(pipe, *one_call(pipe))
        totals[pool] = [float(o.reference.weights.sum()) for o in seen]
        assert {round(float(w), 6) for o in seen for w in o.reference.weights} == {0.3 if pool == 1 else 1.2}
        assert [o.reference.tokens for o in seen][0] == ((64, 64) if pool == 1 else (16, 16))
    assert totals[2] == pytest.approx(totals[1])


def test_pooled_references_stay_close_to_full_ones(pipe):
    x, t, text, labels = one_call(pipe)
    plain = call(pipe, x, t, text, labels)
    outs = []
    for pool in (1, 2):
        with fabric(pipe, liked=pictures(2), pool=pool):
            outs.append(call(pipe, x, t, text, labels))
    effect = (outs[0] - plain).abs().mean()
    assert 0 < (outs[1] - outs[0]).abs().mean() < effect


# ---- cache ----------------------------------------------------------------------------------------------------------


def test_cache_hits_are_bitwise_fresh_computations_and_cost_no_rows(pipe):
    cache, options = ReferenceCache(), {"liked": pictures(2), "seed": 4}
    with fabric(pipe, **options):
        fresh = generate(pipe, steps=3)
    with fabric(pipe, cache=cache, **options) as first:
        assert torch.equal(generate(pipe, steps=3), fresh)
    with fabric(pipe, cache=cache, **options) as second:
        assert torch.equal(generate(pipe, steps=3), fresh)
    assert first.reference_rows > 0
    assert second.reference_rows == 0
    more = [*options["liked"], pictures(1, seed=77)[0]]
    with fabric(pipe, cache=cache, liked=more, seed=4) as third:
        generate(pipe, steps=3)
    assert third.reference_rows == third.active_calls


def test_cached_k_and_v_are_the_projections_of_the_states_that_enter_the_layers(pipe):
    cache, attentions, states = ReferenceCache(), self_attentions(pipe.unet), {}

    def watch(name):
        def keep(attn, args):
            states.setdefault(name, args[0])  # of the first call, the reference pass

        return keep

    handles = [attn.register_forward_pre_hook(watch(layer.name)) for layer, attn in attentions]
    try:
        with fabric(pipe, cache=cache, liked=pictures(1)):
            call(pipe, *one_call(pipe))
    finally:
        for handle in handles:
            handle.remove()
    (entry,) = cache._entries.values()
    for layer, attn in attentions:
        for project, kept in zip((attn.to_k, attn.to_v), entry[layer.name], strict=False):
            again = project(states[layer.name]).view(1, -1, attn.heads, kept.shape[-1]).transpose(1, 2)
            assert torch.equal(again, kept)


def test_any_change_of_what_k_and_v_depend_on_misses_the_cache(pipe):
    p = tiny_pipeline()
    cache = ReferenceCache()

    def rows(pipe=p, liked=None, **options):
        with fabric(pipe, cache=cache, liked=pictures(1) if liked is None else liked, **options) as session:
            x, t, text, labels = one_call(pipe, t=options.pop("t", 500))
            call(pipe, x, t, text, labels)
        return session.reference_rows

    assert (rows(), rows()) == (1, 0)
    assert rows(seed=1) == 1
    assert rows(liked=pictures(1, seed=9)) == 1
    assert rows(noise="image") == 1
    assert rows(reference_prompt="a house") == 1
    assert rows(max_weight=0.1) == 0
    with fabric(p, cache=cache, liked=pictures(1)) as session:
        x, _, text, labels = one_call(p)
        call(p, x, 501, text, labels)
        call(p, torch.randn(2, 4, 8, 16), 500, text, labels)
    assert session.reference_rows == 2
    with torch.no_grad():
        p.unet.conv_in.weight.mul_(1.001)
    assert (rows(), rows()) == (1, 0)
    assert rows(pipe=tiny_pipeline(seed=3)) == 1
    p.unet.double()
    with fabric(p, cache=cache, liked=pictures(1)) as session:
        call(p, x.double(), 500, text.double(), labels)
    assert session.reference_rows == 1


def test_adapters_are_part_of_the_cache_key_and_compose(pipe):
    from labkit.diffusion import add_lora, use_adapters

    p = tiny_pipeline()
    cache = ReferenceCache()
    x, t, text, labels = one_call(p)

    def run():
        with fabric(p, cache=cache, liked=pictures(1)) as session:
            return call(p, x, t, text, labels), session.reference_rows

    base, _ = run()
    add_lora(p.unet, "style", rank=2, seed=0)
    with torch.no_grad():
        for name, parameter in p.unet.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.02)
    adapted, rows = run()
    assert rows == 1
    assert (adapted - base).abs().max() > 1e-4
    with use_adapters(p.unet, {}):
        off, rows = run()
    assert rows == 1
    assert (off - base).abs().max() < 1e-6
    assert run()[1] == 0


def test_later_sessions_do_not_encode_references_again_unless_the_vae_has_changed():
    p, cache, encoded = tiny_pipeline(), ReferenceCache(), []
    handle = p.vae.encoder.register_forward_hook(lambda *_: encoded.append(1))

    def encodings(cache=cache, n=2):
        encoded.clear()
        with fabric(p, cache=cache, liked=pictures(n)):
            out = call(p, *one_call(p))
        return len(encoded), out

    (first, fresh), (again, kept) = encodings(), encodings()
    assert (first, again) == (2, 0)
    assert torch.equal(kept, fresh)
    assert encodings(n=3)[0] == 1
    with torch.no_grad():
        p.vae.encoder.conv_in.weight.mul_(1.5)
    changed, other = encodings()
    assert changed == 2
    assert not torch.equal(other, fresh)
    p.vae.register_to_config(scaling_factor=2 * p.vae.config.scaling_factor)
    assert (encodings()[0], encodings()[0]) == (2, 0)
    cache.clear()
    assert encodings()[0] == 2
    nothing = ReferenceCache(max_bytes=0)
    assert (encodings(nothing)[0], encodings(nothing)[0]) == (2, 2)
    handle.remove()


@pytest.mark.parametrize("fused", [False, True])
def test_cached_references_carry_no_graph(fused):
    p, cache = tiny_pipeline(), ReferenceCache()
    p.unet.requires_grad_(True)
    x, t, text, labels = one_call(p)
    with fabric(p, cache=cache, liked=pictures(1), fused=fused), labelled_rows(labels):
        assert p.unet(x, t, encoder_hidden_states=text)[0].requires_grad
    kept = [x for states in cache._entries.values() for tensors in states.values() for x in tensors]
    assert kept
    assert not any(x.requires_grad for x in kept)


def test_cache_keeps_to_its_size():
    p, cache = tiny_pipeline(), ReferenceCache(max_bytes=300_000)
    with fabric(p, cache=cache, liked=pictures(4)):
        generate(p, steps=4)
    assert 0 < cache.bytes <= 300_000
    cache.clear()
    assert (len(cache), cache.bytes) == (0, 0)


# ---- bad input ------------------------------------------------------------------------------------------------------


def test_images_of_any_size_and_mode_are_taken(pipe):
    from PIL import Image

    odd = [Image.new("L", (50, 90), 100), Image.new("RGBA", (64, 64), (9, 99, 200, 30)), Image.new("P", (7, 300), 3)]
    with fabric(pipe, liked=[*odd, torch.zeros(3, 33, 20)], value_range=(-1, 1)):
        assert generate(pipe, steps=2).isfinite().all()
        assert generate(pipe, steps=2, height=64, width=96).isfinite().all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"liked": torch.zeros(3, 8, 8)}, "put it in a list"),
        ({"liked": "picture.png"}, "put it in a list"),
        ({"liked": ["picture.png"]}, "no image file picture.png"),
        ({"disliked": [-torch.ones(2, 8, 8)]}, "has shape"),
        ({"liked": [torch.full((3, 8, 8), float("nan"))]}, "half precision may have overflowed"),
        ({"liked": [torch.rand(3, 8, 8)]}, r"declare value_range=\(0, 1\)"),
        ({"settings": "official"}, "no preset 'official'"),
        ({"strength": 0.3}, "unknown setting"),
        ({"chunk": 0}, "must be positive"),
    ],
)
def test_bad_input_is_refused_in_one_line(pipe, options, message):
    of_a_picture = {"liked", "disliked"} & {*options} and "list" not in message
    with pytest.raises(ImageError if of_a_picture else FabricError, match=message):
        fabric(pipe, **options)


def test_pipelines_without_unet_or_schedule_are_refused(pipe):
    class DiT:
        transformer = object()

    with pytest.raises(FabricError, match="holds a transformer"):
        fabric(DiT(), liked=pictures())
    flow = copy.copy(pipe)
    from diffusers import FlowMatchEulerDiscreteScheduler

    flow.scheduler = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(FabricError, match="no alphas_cumprod"):
        fabric(flow, liked=pictures())


def test_references_that_never_meet_the_unet_are_an_error(pipe):
    with pytest.raises(FabricError, match="no call of the U-Net"), fabric(pipe, liked=pictures()):
        pass
    x, t, text, _ = one_call(pipe)
    with pytest.raises(FabricError, match="labelled_rows"), fabric(tiny_pipeline(), liked=pictures()) as session:
        session.unet(x, t, encoder_hidden_states=text)
    with pytest.raises(FabricError, match="now has a AttnProcessor2_0"), fabric(pipe, liked=pictures()):
        from diffusers.models.attention_processor import AttnProcessor2_0

        for _, attn in self_attentions(pipe.unet):
            attn.processor = AttnProcessor2_0()
        call(pipe, *one_call(pipe))


def test_different_timesteps_in_one_call_are_refused(pipe):
    x, _, text, labels = one_call(pipe)
    with pytest.raises(FabricError, match="different timesteps"), fabric(pipe, liked=pictures()):
        call(pipe, x, torch.tensor([1, 2]), text, labels)


def test_an_error_that_was_caught_inside_the_block_is_the_only_one(pipe):
    x, t, text, _ = one_call(pipe)
    with fabric(pipe, liked=pictures(1)) as session:
        with pytest.raises(FabricError, match="no labels for 2 rows"):
            pipe.unet(x, t, encoder_hidden_states=text)
    assert (session.unet_calls, session.active_calls) == (1, 0)


def test_a_warning_comes_before_images_burn(pipe):
    with pytest.warns(FabricWarning, match="burn"), fabric(pipe, liked=pictures(8), max_weight=0.8):
        generate(pipe, steps=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with fabric(pipe, liked=pictures(8), max_weight=0.8, count_normalized=True, end=1.0):
            generate(pipe, steps=1)


# ---- other pipelines ------------------------------------------------------------------------------------------------


def latent_output(pipe, **options):
    g = torch.Generator().manual_seed(0)
    return pipe("a house", num_inference_steps=2, generator=g, output_type="latent", **options).images


@pytest.mark.parametrize("kind", ["sd15", "sdxl"])
def test_full_layouts_have_their_layers_calls_and_self_reference(kind, tmp_path):
    from labkit.models.load import load_pipeline
    from labkit.models.sd_layout import write_layout

    p = load_pipeline("gpu", "cpu", folder=write_layout(tmp_path / kind, kind))
    layers = self_attentions(p.unet)
    assert len(layers) == {"sd15": 16, "sdxl": 70}[kind]
    assert max(layer.depth for layer, _ in layers) == 1.0
    blocks = {".".join(layer.name.split(".")[: 1 if "mid" in layer.name else 2]): layer.depth for layer, _ in layers}
    halves = {"down_blocks.0": 0.0, "down_blocks.1": 0.25, "down_blocks.2": 0.5, "mid_block": 1.0}
    halves |= {"up_blocks.1": 0.5, "up_blocks.2": 0.25, "up_blocks.3": 0.0}
    thirds = {
        "down_blocks.1": 1 / 3,
        "down_blocks.2": 2 / 3,
        "mid_block": 1.0,
        "up_blocks.0": 2 / 3,
        "up_blocks.1": 1 / 3,
    }
    assert blocks == pytest.approx({"sd15": halves, "sdxl": thirds}[kind])  # block by block, as in the paper's code
    before = dict(p.unet.attn_processors)
    image, t = pictures(1)[0], 500
    reference = Reference(image)
    noise = reference_noise(reference.key, 0, t, (4, 8, 8))
    x = noised_reference(latents(p, image), noise, t, p.scheduler.alphas_cumprod)[None]
    c = encode_prompts(p, [""], height=64, width=64)
    added = None if c.pooled is None else {"text_embeds": c.pooled, "time_ids": c.time_ids}

    def run():
        with torch.no_grad(), labelled_rows(["cond"]):
            return p.unet(x, t, encoder_hidden_states=c.cond, added_cond_kwargs=added)[0]

    plain = run()
    with fabric(p, liked=[reference], max_weight=2.0):
        assert (run() - plain).abs().max() < 1e-5
    with fabric(p, liked=[-image]):
        assert (run() - plain).abs().max() > 1e-4
    with fabric(p, liked=pictures(2), disliked=pictures(1, seed=8), end=1.0) as session:
        two = latent_output(p, height=64, width=64)
    assert (session.unet_calls, session.active_calls, session.reference_rows) == (2, 2, 6)
    with (
        NFELedger(p) as ledger,
        fabric(p, liked=pictures(2), disliked=pictures(1, seed=8), end=1.0, fused=True, chunk=3),
    ):
        assert (latent_output(p, height=64, width=64) - two).abs().max() < 1e-4
    assert (ledger.counts.unet_calls, ledger.counts.unet_rows) == (2, 10)
    assert all(p.unet.attn_processors[name] is q for name, q in before.items())


def test_image_to_image_works(pipe):
    from diffusers import StableDiffusionImg2ImgPipeline

    p = StableDiffusionImg2ImgPipeline(**pipe.components)
    p.set_progress_bar_config(disable=True)
    plain = latent_output(p, image=pictures(1), strength=1.0)
    with fabric(p, liked=pictures(2)) as session:
        assert not torch.equal(latent_output(p, image=pictures(1), strength=1.0), plain)
    assert session.active_calls > 0


def test_inpainting_unet_gets_an_empty_mask_and_the_reference_as_its_picture(pipe):
    from diffusers import StableDiffusionInpaintPipeline, UNet2DConditionModel

    config = {**pipe.unet.config, "in_channels": 9}
    p = StableDiffusionInpaintPipeline(**{**pipe.components, "unet": UNet2DConditionModel.from_config(config).eval()})
    p.set_progress_bar_config(disable=True)
    inputs = []
    with fabric(p, liked=pictures(1)):
        p.unet.conv_in.register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
        latent_output(p, image=pictures(1), mask_image=torch.ones(1, 1, 64, 64))
    reference = inputs[0]
    assert reference.shape == (1, 9, 8, 8)
    assert not reference[:, 4].any()
    assert (reference[0, 5:] - latents(p, pictures(1)[0])).abs().max() < 1e-5
    inputs.clear()
    with fabric(p, liked=pictures(1), fused=True):
        latent_output(p, image=pictures(1), mask_image=torch.ones(1, 1, 64, 64))
    assert (len(inputs[0]), len(inputs)) == (3, 2)
    assert (inputs[0][2:] - reference).abs().max() < 1e-5


def test_controlnet_residuals_do_not_reach_the_references(pipe):
    from diffusers import ControlNetModel, StableDiffusionControlNetPipeline

    net = ControlNetModel.from_unet(pipe.unet, conditioning_embedding_out_channels=(8, 8, 8, 8))
    p = StableDiffusionControlNetPipeline(**pipe.components, controlnet=net.eval())
    p.set_progress_bar_config(disable=True)
    residuals = []

    def look(unet, args, kwargs):
        residuals.append(kwargs.get("mid_block_additional_residual") is not None)

    handle = pipe.unet.register_forward_pre_hook(look, with_kwargs=True)
    try:
        with fabric(p, liked=pictures(1), end=1.0):
            two = latent_output(p, image=pictures(1))
    finally:
        handle.remove()
    assert sorted(residuals) == [False, False, True, True]
    with fabric(p, liked=pictures(1), end=1.0, fused=True):
        assert (latent_output(p, image=pictures(1)) - two).abs().max() < 1e-4


def test_ip_adapter_keeps_its_processors_and_references_get_no_image_prompt():
    from tiny_models import TEXT_WIDTH

    p, width, g = tiny_pipeline(), 24, torch.Generator().manual_seed(0)

    def draw(*shape):
        return torch.randn(*shape, generator=g) * 0.1

    layers = [name for name in p.unet.attn_processors if "attn2" in name]
    adapter = {}
    for number in range(len(layers)):
        for kind in ("k", "v"):
            adapter[f"{2 * number + 1}.to_{kind}_ip.weight"] = draw(32, TEXT_WIDTH)
    projection = {"proj.weight": draw(4 * TEXT_WIDTH, width), "proj.bias": draw(4 * TEXT_WIDTH)}
    projection |= {"norm.weight": torch.ones(TEXT_WIDTH), "norm.bias": torch.zeros(TEXT_WIDTH)}
    p.unet._load_ip_adapter_weights([{"image_proj": projection, "ip_adapter": adapter}])
    x, t, text, labels = one_call(p)
    embeds = {"image_embeds": [draw(2, 1, width)]}
    seen = []
    p.unet.encoder_hid_proj.register_forward_pre_hook(lambda _, args: seen.append(args[0][0]))

    def run():
        with torch.no_grad(), labelled_rows(labels):
            return p.unet(x, t, encoder_hidden_states=text, added_cond_kwargs=embeds)[0]

    plain, before = run(), dict(p.unet.attn_processors)
    seen.clear()
    with fabric(p, liked=pictures(3), chunk=3):
        assert all(p.unet.attn_processors[name] is before[name] for name in layers)
        two = run()
    assert (two - plain).abs().max() > 1e-4
    with fabric(p, liked=pictures(3), chunk=3, fused=True):
        assert (run() - two).abs().max() < 1e-5
    assert len(seen.pop()) == 5
    assert [len(one) for one in seen] == [3, 2]
    assert not seen[0].any()
    assert torch.equal(seen[1], embeds["image_embeds"][0])
    assert all(p.unet.attn_processors[name] is one for name, one in before.items())


def test_alpha_bar_is_that_of_the_training_schedule(pipe):
    abar = pipe.scheduler.alphas_cumprod
    assert alpha_bar_at(500, abar) == pytest.approx(float(abar[500]), rel=1e-5)
