"""PC-CLIP on real CLIPModel classes: towers, vocabulary traps, what is trained and what never moves, WiSE, LoRA."""

from __future__ import annotations

import copy
import json
from dataclasses import asdict, replace
from types import SimpleNamespace

import pytest
import torch
from tiny_models import seeded

from labkit.models import load_clip
from labkit.models.clip_inputs import ClipInputs
from labkit.models.sd_layout import clip_tokenizer
from labkit.pairwise import (
    Pair,
    PairwiseConfig,
    Statement,
    TemplateWriter,
    TextTower,
    cache_embeddings,
    directed_statements,
    evaluate_pairs,
    interpolate,
    natural_pairs,
    portrait_wording,
    preset,
    sentence,
    shuffled,
    train_pairwise,
    unit,
    zero_shot,
)
from labkit.pairwise.towers import as_tensor, check_vocabulary
from labkit.portraits import caption, describe, render_tensor, sample_specs

WORDING = portrait_wording()
CONTEXT = 96


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiny_clip(seed: int = 0, eos: int = 513):
    """A CLIPModel of width 32: vision 32/16 with 2 layers, text with 2 layers and 96 positions."""
    from transformers import CLIPConfig, CLIPModel

    width = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4, "num_hidden_layers": 2}
    text = width | {"vocab_size": 514, "max_position_embeddings": CONTEXT, "bos_token_id": 512, "eos_token_id": eos}
    vision = width | {"image_size": 32, "patch_size": 16}
    config = CLIPConfig(text_config=text | {"pad_token_id": 513}, vision_config=vision, projection_dim=24)
    clip = seeded(lambda: CLIPModel(config), seed)
    return clip, ClipInputs(clip_tokenizer(514, CONTEXT), clip.config, mean=(0.5,) * 3, std=(0.5,) * 3)


@pytest.fixture(scope="module")
def world():
    """The tiny CLIP, cached image embeddings of 24 portraits, their attributes, captions and 40 records."""
    clip, inputs = tiny_clip()
    specs = sample_specs(24, seed=1)
    values = [spec.to_dict() for spec in specs]
    images = cache_embeddings(clip, inputs, render_tensor(specs, 32))
    records = TemplateWriter(WORDING)(natural_pairs(values, 40, WORDING, generator()), values).records
    named = [caption(s, drop=("style", "clothes", "skin", "background", "beard")) for s in specs]
    captions = [(c.text, {a: getattr(s, a) for a in c.named}) for c, s in zip(named, specs, strict=True)]
    return SimpleNamespace(
        clip=clip, inputs=inputs, images=images, values=values, records=records, captions=captions, specs=specs
    )


def train(world, config, seed=0, **options):
    return train_pairwise(
        world.clip,
        world.inputs,
        world.images,
        world.values,
        world.records,
        config,
        wording=WORDING,
        generator=generator(seed),
        captions=world.captions,
        **options,
    )


# ---- towers -------------------------------------------------------------------------------------------------------


def test_both_shapes_of_transformers_features_are_understood():
    x = torch.ones(2, 3)
    assert as_tensor(x) is x
    assert as_tensor(SimpleNamespace(pooler_output=x)) is x
    with pytest.raises(TypeError, match="pooler_output"):
        as_tensor({"pooler_output": x})


def test_embeddings_have_length_one_and_do_not_depend_on_padding_batch_or_repetition(world):
    texts = ["a sad face", "the first has red hair, the second has a bald head", "a sad face"]
    one = TextTower(world.clip, world.inputs)(texts)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(3))
    assert torch.equal(one[0], one[2])
    alone = torch.cat([TextTower(world.clip, world.inputs)([t]) for t in texts])
    torch.testing.assert_close(one, alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(TextTower(world.clip, world.inputs, batch=1)(texts), one, atol=1e-5, rtol=0)
    padded = world.inputs(texts)  # the full context, with and without mask
    for given in (padded, {"input_ids": padded["input_ids"]}):
        torch.testing.assert_close(unit(as_tensor(world.clip.get_text_features(**given))), one, atol=1e-5, rtol=0)


def test_a_sentence_is_read_at_its_first_end_token(world):
    batch = world.inputs(["a sad face", "the first has red hair, the second has a bald head"])
    end = (batch["input_ids"] == 513).int().argmax(1)  # the padding is the same token: the first one counts
    with torch.no_grad():
        states = world.clip.text_model(**batch).last_hidden_state[torch.arange(2), end]
        expected = unit(world.clip.text_projection(states))
    got = TextTower(world.clip, world.inputs)(["a sad face", "the first has red hair, the second has a bald head"])
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=0)


def test_measurements_do_not_depend_on_the_batch_size(world):
    pairs = natural_pairs(world.values, 30, WORDING, generator(5))
    reports = [
        evaluate_pairs(
            TextTower(world.clip, world.inputs, batch=b), world.images, pairs, WORDING, generator=generator()
        )
        for b in (1, 7, 512)
    ]
    assert reports[0] == reports[1] == reports[2]
    assert 0 < reports[0].low < reports[0].high < 1


def test_images_are_encoded_the_same_in_any_batch_size(world):
    pictures = render_tensor(world.specs[:5], 32)
    parts = cache_embeddings(world.clip, world.inputs, pictures, batch=2)
    torch.testing.assert_close(parts, world.images[:5], atol=1e-5, rtol=0)


def test_long_sentences_and_sentences_without_letters_are_errors(world):
    tower = TextTower(world.clip, world.inputs)
    with pytest.raises(ValueError, match="the context holds 96"):
        tower(["the first has red hair and " * 20])
    with pytest.raises(ValueError, match="no letters"):
        tower(["12 3 !?"])
    with pytest.raises(ValueError, match="no texts"):
        tower([])


def test_a_config_that_ends_texts_elsewhere_is_refused_because_texts_would_collapse():
    clip, inputs = tiny_clip(eos=100)
    ids = inputs(["a sad face", "hair"])["input_ids"]
    same = as_tensor(clip.get_text_features(input_ids=ids))
    torch.testing.assert_close(same[0], same[1])  # read at position 0: what the check protects from
    with pytest.raises(ValueError, match="token 100, the tokenizer with 513"):
        TextTower(clip, inputs)


def test_the_old_eos_of_2_is_accepted_only_where_it_reads_the_right_token():
    clip, inputs = tiny_clip(eos=2)  # OpenAI's published configs say 2, and the end token is the largest
    modern, _ = tiny_clip(eos=513)
    texts = ["a sad face", "hair"]
    torch.testing.assert_close(TextTower(clip, inputs)(texts), TextTower(modern, inputs)(texts))
    inputs.tokenizer.add_tokens(["zzz"])
    with pytest.raises(ValueError, match="513 is not the largest"):
        check_vocabulary(clip, inputs)


def test_a_vocabulary_without_end_token_is_refused():
    clip, _ = tiny_clip()

    class NoEnd:
        eos_token_id = None

    with pytest.raises(ValueError, match="no end-of-text token"):
        check_vocabulary(clip, SimpleNamespace(tokenizer=NoEnd()))
    NoEnd.eos_token_id = 513
    with pytest.raises(ValueError, match="does not append"):
        check_vocabulary(clip, _Bare(NoEnd()))


class _Bare:
    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    def __call__(self, texts):
        return {"input_ids": torch.tensor([[512, 5, 5]])}


# ---- training -----------------------------------------------------------------------------------------------------


def test_only_the_text_blocks_move_and_the_original_stays_bit_for_bit(world):
    before = copy.deepcopy(world.clip.state_dict())
    model, card = train(world, preset("robust", steps=3, batch=8, lr=1e-2))
    for name, old in before.items():
        assert torch.equal(world.clip.state_dict()[name], old)
        moved = not torch.equal(model.state_dict()[name], old)
        assert moved == name.startswith("text_model.encoder."), name
    assert model.vision_model is world.clip.vision_model
    assert card.trainable == sum(p.numel() for p in world.clip.text_model.encoder.parameters())
    assert card.drift > 0.01
    assert all(-1 <= c <= 1 for c in card.mirror_cosine)
    assert card.mirror_cosine[0] != card.mirror_cosine[1]
    assert not any(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("name", ["robust", "paper", "squared"])
def test_one_step_is_the_one_worked_out_by_hand(world, name):
    """The batch drawn again, the loss in loops, and the first step of Adam: p - lr g / (|g| + eps)."""
    lr, batch, few = 1e-3, 12, {a: WORDING[a] for a in ("glasses", "beard")}  # so that sentences fit several pairs
    written = TemplateWriter(few)(natural_pairs(world.values, 40, few, generator()), world.values).records
    named = [{a: row[a]} for row, a in zip(world.values, ("glasses", "beard") * 12, strict=True)]
    told = [(describe(one).text, one) for one in named]
    world = SimpleNamespace(**vars(world) | {"records": written, "captions": told})
    options = {"robust": {}, "paper": {"tau": 0.3}, "squared": {"loss": "squared", "rehearsal": 0.5, "difference": 2.0}}
    config = preset("paper" if name == "paper" else "robust", steps=1, **{"batch": batch, "lr": lr} | options[name])
    model, card = train(world, config)
    g = generator()
    torch.randint(2**31, (1,), generator=g)
    drawn = torch.randint(len(written), (batch // 2 if config.mirrored else batch,), generator=g).tolist()
    second_clause_first = (torch.rand(batch, generator=g) < 0.5).tolist()
    rows = []  # (sentence, number of the first image, of the second, what is said of them)
    for k in drawn:
        r = written[k]
        rows.append([r.sentences, r.first, r.second, r.statement])
    if config.mirrored:
        for k in drawn:
            r = written[k]
            rows.append([r.mirrored, r.second, r.first, r.statement.mirrored()])
    texts = [s[swapped and config.both_orders] for (s, *_), swapped in zip(rows, second_clause_first, strict=True)]
    clip = copy.deepcopy(world.clip)
    clip.text_model.encoder.requires_grad_(True)

    def encode(texts):
        return unit(as_tensor(clip.get_text_features(**world.inputs(texts))))

    def cross_entropy(table, fits):
        sides = []
        for t, true in ((table, fits), (table.T, list(zip(*fits, strict=True)))):
            own = [[t[a].logsumexp(0) - t[a][b] for b in range(len(t)) if true[a][b]] for a in range(len(t))]
            sides.append(sum(sum(one) / len(one) for one in own) / len(own))
        return sum(sides) / 2

    def has(image, named):
        return all(world.values[image][attribute] == value for attribute, value in named.items())

    t, raw = encode(texts), torch.stack([world.images[i] - world.images[j] for _, i, j, _ in rows])
    if config.loss == "squared":
        loss = sum(((a - b) ** 2).sum() for a, b in zip(t, raw, strict=True)) / batch
    else:
        table = t @ (raw / raw.norm(dim=1, keepdim=True)).T / config.tau
        fits = [[a == b for b in range(batch)] for a in range(batch)]
        if config.true_targets:
            fits = [[has(i, s.first) and has(j, s.second) for _, i, j, _ in rows] for *_, s in rows]
            assert fits != [list(column) for column in zip(*fits, strict=True)]  # who fits whom is no symmetry
        loss = cross_entropy(table, fits)
    assert card.loss == [pytest.approx(float(loss.detach()), abs=1e-5)]
    loss = config.difference * loss
    if config.rehearsal:
        index = torch.randint(len(world.images), (batch,), generator=g).tolist()
        table = clip.logit_scale.exp() * encode([told[i][0] for i in index]) @ world.images[index].T
        fits = [[has(i, told[a][1]) for i in index] for a in index]
        assert fits != [list(column) for column in zip(*fits, strict=True)]
        loss = loss + config.rehearsal * cross_entropy(table, fits)
    parameters = list(clip.text_model.encoder.parameters())
    for p, grad, got in zip(
        parameters, torch.autograd.grad(loss, parameters), model.text_model.encoder.parameters(), strict=True
    ):
        clear = grad.abs() > 1e-5 * grad.abs().max() + 1e-7  # smaller ones are rounding
        torch.testing.assert_close(got[clear], (p - lr * grad / (grad.abs() + 1e-8))[clear], atol=2e-5, rtol=0)


def test_pairs_of_equal_pictures_are_dropped_and_counted(world):
    images = world.images.clone()
    images[world.records[0].second] = images[world.records[0].first]
    same = sum(torch.equal(images[r.first], images[r.second]) for r in world.records)
    twins = SimpleNamespace(**vars(world) | {"images": images})
    _, card = train(twins, preset("paper", steps=2, batch=40))
    assert card.dropped == same >= 1
    assert all(x == x for x in card.loss)


def test_the_papers_learning_rate_is_nothing_for_a_few_steps(world):
    model, card = train(world, preset("paper", steps=3, batch=16))
    assert card.drift < 1e-6
    texts = ["the first has red hair, the second has black hair"]
    there, here = (TextTower(m, world.inputs)(texts) for m in (model, world.clip))
    torch.testing.assert_close(there, here, atol=1e-5, rtol=0)
    assert card.config["tau"] == 1.0
    assert not card.config["mirrored"]


def test_the_same_seed_gives_the_same_run(world):
    config = preset("robust", steps=2, batch=8)
    a, card_a = train(world, config)
    b, card_b = train(world, config)
    assert card_a.loss == card_b.loss
    assert all(torch.equal(x, y) for x, y in zip(a.parameters(), b.parameters(), strict=True))
    _, other = train(world, config, seed=1)
    assert other.loss != card_a.loss


def test_training_learns_to_read_differences_of_what_it_has_seen(world):
    """On images that give everything away (one axis per value), 50 steps must beat chance by far in both orders."""
    wording = {"mood": WORDING["mood"]}
    basis = dict(zip(wording["mood"], torch.linalg.qr(torch.randn(24, 24, generator=generator()))[0], strict=False))
    images = unit(
        torch.stack(
            [basis[v["mood"]] + 0.1 * torch.randn(24, generator=generator(i)) for i, v in enumerate(world.values)]
        )
    )
    writer = TemplateWriter(wording, forms=1)
    records = writer(natural_pairs(world.values, 200, wording, generator()), world.values).records
    test = natural_pairs(world.values, 100, wording, generator(7))
    config = preset("robust", steps=50, batch=16, lr=3e-3, rehearsal=0.0)
    options = {"wording": wording, "generator": generator()}
    model, card = train_pairwise(world.clip, world.inputs, images, world.values, records, config, **options)
    report = evaluate_pairs(TextTower(model, world.inputs), images, test, wording, generator=generator())
    assert report.m1 > 0.8
    assert report.low > 0.5
    assert card.loss[-1] < card.loss[0]
    mixed = shuffled(records, generator(3))
    assert sorted(r.sentences for r in mixed) == sorted(r.sentences for r in records)
    assert [(r.first, r.second) for r in mixed] == [(r.first, r.second) for r in records]
    assert [r.sentences for r in mixed] != [r.sentences for r in records]


def test_the_control_without_differences_needs_no_sentences_to_learn_captions(world):
    steps = []
    model, card = train(
        world,
        preset("robust", steps=2, batch=8, difference=0.0),
        monitor=lambda step, model: {"seen": float(step)},
        every=1,
        on_step=steps.append,
    )
    assert card.loss == []
    assert card.history == [{"step": 1, "seen": 1.0}, {"step": 2, "seen": 2.0}]
    assert steps == [1, 2]
    assert json.loads(json.dumps(asdict(card)))["records"] == 40
    assert card.seconds > 0


def test_targets_from_the_attributes_give_shuffled_sentences_back(world):
    """Why the control trains with true_targets=False: its loss must not know what the sentences say."""
    mixed = SimpleNamespace(**vars(world) | {"records": shuffled(world.records, generator(3))})
    config = preset("robust", steps=1, batch=16, rehearsal=0.0)
    blind = [train(w, replace(config, true_targets=False))[1] for w in (world, mixed)]
    assert blind[0].floor == blind[1].floor == [0.0]
    assert train(mixed, config)[1].floor[0] > 0


def test_the_squared_loss_trains_too(world):
    _, card = train(world, preset("robust", steps=4, batch=16, loss="squared", rehearsal=0.0, lr=3e-3))
    assert card.loss[-1] < card.loss[0]


def test_wise_ends_are_the_two_models_bit_for_bit_and_the_middle_is_the_mean(world):
    tuned, _ = train(world, preset("robust", steps=2, batch=8, lr=1e-2))
    old, new = world.clip.state_dict(), tuned.state_dict()
    for a, expected in ((0.0, old), (1.0, new)):
        mixed = interpolate(world.clip, tuned, a).state_dict()
        assert all(torch.equal(mixed[k], expected[k]) for k in expected)
    half = interpolate(world.clip, tuned, 0.5).state_dict()
    for name in old:
        torch.testing.assert_close(half[name], ((old[name] + new[name]) / 2).to(old[name].dtype))
    with pytest.raises(ValueError, match="a is 2"):
        interpolate(world.clip, tuned, 2)


def test_what_cannot_be_trained_is_refused_in_one_line(world):
    robust = preset("robust", steps=1, batch=8)
    options = {"wording": WORDING, "generator": generator()}
    common = (world.clip, world.inputs, world.images, world.values)
    with pytest.raises(ValueError, match="no records"):
        train_pairwise(*common, [], robust, **options, captions=world.captions)
    with pytest.raises(ValueError, match="rehearsal needs one caption"):
        train_pairwise(*common, world.records, robust, **options)
    foreign = [("a tail", {"tail": "long"})] * 24
    with pytest.raises(ValueError, match="captions name tail"):
        train_pairwise(*common, world.records, robust, **options, captions=foreign)
    same = world.images[:1].expand(24, -1)
    with pytest.raises(ValueError, match="identical embeddings"):
        train_pairwise(world.clip, world.inputs, same, world.values, world.records, preset("paper", steps=1), **options)
    with pytest.raises(ValueError, match="unknown preset 'best'"):
        preset("best", steps=1)
    with pytest.raises(ValueError, match="nothing would be learnt"):
        PairwiseConfig(steps=1, difference=0, rehearsal=0)
    with pytest.raises(ValueError, match="loss is 'nce', expected one of contrastive, squared"):
        preset("robust", steps=1, loss="nce")


# ---- PortraitCLIP and the published layout ------------------------------------------------------------------------


def test_every_statement_about_portraits_and_products_fits_portrait_clip():
    from labkit.pairwise.wording import FORMS, ORDERS
    from labkit.worlds.products import PRODUCT_WORDING

    clip, inputs = load_clip("cpu")
    tower = TextTower(clip, inputs)
    for wording in (WORDING, PRODUCT_WORDING):
        texts = [
            sentence(s, wording, order=o, form=f)
            for s in directed_statements(wording)
            for o in ORDERS
            for f in range(FORMS)
        ]
        assert max(len(row) for row in tower.tokens(texts)) <= inputs.context
        assert tower(texts[:8]).shape == (8, 128)


def test_zero_shot_with_cached_images_agrees_with_that_of_the_models():
    from labkit.models.clip import captionable_values, zero_shot_accuracy
    from labkit.portraits import TEMPLATES

    clip, inputs = load_clip("cpu")
    specs = sample_specs(12, seed=3)
    pictures = render_tensor(specs)
    prompts = {
        a: {v: [describe({a: v}, template=k).text for k in range(TEMPLATES["en"])] for v in captionable_values(a)}
        for a in ("glasses", "hair_color")
    }
    values = [spec.to_dict() for spec in specs]
    got = zero_shot(TextTower(clip, inputs), cache_embeddings(clip, inputs, pictures), values, prompts)
    expected = zero_shot_accuracy(clip, inputs.tokenizer, pictures, specs)
    assert got == {a: pytest.approx(expected[a]) for a in prompts}


@pytest.mark.slow
def test_one_step_on_the_layout_of_vit_b_32():
    """151 million random weights in OpenAI's layout, its eos_token_id = 2 included."""
    from transformers import CLIPConfig, CLIPModel

    with torch.device("meta"):
        clip = CLIPModel(CLIPConfig(text_config={"eos_token_id": 2, "bos_token_id": 0}))
    assert sum(p.numel() for p in clip.parameters()) == 151_277_313  # openai/clip-vit-base-patch32
    clip = clip.to_empty(device="cpu").eval().requires_grad_(False)
    noise = torch.randn(1_000_003, generator=generator()) * 0.02
    for name, parameter in clip.named_parameters():
        if "norm" in name or parameter.ndim == 0:
            parameter.data.fill_(0.0 if name.endswith("bias") else 1.0)
            continue
        repeats = -(-parameter.numel() // len(noise))
        parameter.data.copy_(noise.repeat(repeats)[: parameter.numel()].view(parameter.shape))
    for name, buffer in clip.named_buffers():
        assert name.endswith("position_ids")
        buffer.copy_(torch.arange(buffer.shape[-1])[None])
    inputs = ClipInputs(clip_tokenizer(49408), clip.config, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
    pictures = torch.rand(2, 3, 64, 64, generator=generator()) * 2 - 1
    images = cache_embeddings(clip, inputs, pictures)
    assert images.shape == (2, 512)
    values = [{"mood": "sad"}, {"mood": "happy"}]
    wording = {"mood": WORDING["mood"]}
    pair = Pair(0, 1, Statement({"mood": "sad"}, {"mood": "happy"}))
    records = TemplateWriter(wording)([pair, pair.mirrored()], values).records
    config = preset("paper", steps=1, batch=8, lr=1e-3, tau=0.1)
    model, card = train_pairwise(clip, inputs, images, values, records, config, wording=wording, generator=generator())
    assert card.trainable == 12 * (4 * (512 * 512 + 512) + 2 * 512 * 2048 + 2048 + 512 + 4 * 512)
    assert card.drift > 1e-4
    assert model.vision_model is clip.vision_model
    assert torch.isfinite(TextTower(model, inputs)([records[0].sentences[0]])).all()
