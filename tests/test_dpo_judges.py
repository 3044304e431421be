"""Judges learnt from votes, published judges by structure, and the report of side effects."""

import math

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from labkit.dpo import Scorer, side_effects
from labkit.dpo import gpu_scorers as gpu
from labkit.dpo.preference import (
    ArtDirector,
    PreferenceModel,
    Votes,
    fit_bradley_terry,
    simulate_votes,
    train_preference,
    vote_accuracy,
)
from labkit.models import ModelLoadError, load_clip, load_reader
from labkit.portraits import ATTRIBUTES, PortraitSpec, render_tensor, sample_specs

DIRECTOR = ArtDirector({"clothes": {"red": 1.0, "orange": 1.0}}, faithful=2.0, noise=0.25)


@pytest.fixture(scope="module")
def clip():
    return load_clip("cpu")


# ---- votes -----------------------------------------------------------------------------------------------------


def test_utility_is_faithfulness_plus_taste():
    spec = PortraitSpec(mood="happy", clothes="red", hair_color="brown")
    assert DIRECTOR.utility(spec, "a happy person with black hair") == pytest.approx(2.0 * 0.5 + 1.0)
    assert DIRECTOR.utility(spec, "a portrait of a person") == pytest.approx(1.0)


def test_votes_depend_on_seed_and_number_alone_and_equal_portraits_tie_for_the_indifferent():
    long, short = simulate_votes(DIRECTOR, 12, seed=3), simulate_votes(DIRECTOR, 5, seed=3)
    assert long.prompts[:5] == short.prompts
    assert long.outcome[:5].tolist() == short.outcome.tolist()
    never = ArtDirector({}, indifferent=10.0)
    assert (simulate_votes(never, 4, seed=0).outcome == 0.5).all()


def test_without_noise_the_director_always_votes_for_the_higher_utility():
    strict = ArtDirector(DIRECTOR.taste, noise=1e-6)
    votes = simulate_votes(strict, 40, seed=1)
    for prompt, a, b, outcome in zip(votes.prompts, votes.first, votes.second, votes.outcome, strict=True):
        gap = strict.utility(a, prompt) - strict.utility(b, prompt)
        assert outcome == (0.5 if gap == 0 else float(gap > 0))


# ---- Bradley-Terry ---------------------------------------------------------------------------------------------


def test_planted_weights_are_recovered():
    generator = torch.Generator().manual_seed(0)
    truth = torch.tensor([1.5, -1.0, 0.0, 0.5])
    a, b = torch.randn(2, 20_000, 4, generator=generator)
    outcome = (torch.rand(20_000, generator=generator) < torch.sigmoid((a - b) @ truth)).float()
    assert torch.allclose(fit_bradley_terry(a, b, outcome, ridge=1e-6), truth, atol=0.07)


def test_swapping_the_sides_and_the_outcome_changes_nothing():
    generator = torch.Generator().manual_seed(1)
    a, b = torch.randn(2, 200, 5, generator=generator)
    outcome = torch.randint(0, 3, (200,), generator=generator) / 2
    assert torch.allclose(fit_bradley_terry(a, b, outcome), fit_bradley_terry(b, a, 1 - outcome), atol=1e-5)


def test_the_gradient_vanishes_at_the_fit():
    generator = torch.Generator().manual_seed(2)
    a, b = torch.randn(2, 300, 6, generator=generator).double()
    y = torch.randint(0, 2, (300,), generator=generator).double()
    w = fit_bradley_terry(a, b, y, ridge=0.01).double()
    gradient = (a - b).T @ (torch.sigmoid((a - b) @ w) - y) / 300 + 0.01 * w
    assert gradient.abs().max() < 1e-6


def test_only_ties_teach_nothing():
    with pytest.raises(ValueError, match="all votes are ties"):
        fit_bradley_terry(torch.randn(3, 2), torch.randn(3, 2), torch.full((3,), 0.5))
    with pytest.raises(ValueError, match="outcome must hold"):
        fit_bradley_terry(torch.randn(2, 2), torch.randn(2, 2), torch.tensor([0.0, 2.0]))


def test_the_learnt_judge_predicts_unseen_votes_and_survives_the_disk(clip, tmp_path):
    model = train_preference(simulate_votes(DIRECTOR, 60, seed=0), *clip, ridge=1e-2)
    unseen = simulate_votes(ArtDirector(DIRECTOR.taste, noise=1e-6, indifferent=1e-9), 30, seed=1)
    accuracy = vote_accuracy(model.scorer(*clip), unseen)
    assert accuracy > 0.65, accuracy
    model.save(tmp_path / "judge.safetensors")
    again = PreferenceModel.load(tmp_path / "judge.safetensors")
    assert torch.equal(again.weights, model.weights)
    assert (again.name, again.votes) == (model.name, 60)


def test_accuracy_on_votes_counts_decided_ones_and_ties_of_the_judge_as_a_half():
    specs = [PortraitSpec(mood="happy", clothes=c) for c in ("red", "blue", "green", "red", "blue")]
    votes = Votes(("p",) * 5, tuple(specs), tuple(specs[::-1]), np.array([1.0, 0.0, 1.0, 1.0, 0.5]))
    scores = iter([torch.tensor([2.0, 1.0, 3.0, 0.0, 9.0]), torch.tensor([1.0, 4.0, 3.0, 1.0, 0.0])])
    judge = Scorer("fixed", lambda images, prompts: next(scores))
    assert vote_accuracy(judge, votes) == (1 + 1 + 0.5 + 0) / 4


# ---- published judges ------------------------------------------------------------------------------------------


def tiny_imagereward():
    from transformers import BlipConfig

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    text = {"vocab_size": 90, "encoder_hidden_size": 32, "max_position_embeddings": 40, "bos_token_id": 1}
    config = BlipConfig(
        vision_config=sizes | {"image_size": 32, "patch_size": 8},
        text_config=sizes | text | {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        net = gpu.ImageRewardNet(config).eval()
        for parameter in net.parameters():  # the default initial weights hardly let anything through
            torch.nn.init.normal_(parameter, std=0.3)
        return net


def published_name(name):
    """A name of ImageRewardNet -> that of the published checkpoint, written out independently of the converter."""
    whole = {"class_embedding": "cls_token", "position_embedding": "pos_embed"}
    if name.startswith("mlp."):
        return "mlp.layers." + name[4:]
    if name.startswith("text_encoder."):
        return "blip." + name
    name = name.removeprefix("vision_model.").removeprefix("embeddings.").removeprefix("encoder.")
    for ours, theirs in [
        ("patch_embedding.", "patch_embed.proj."), ("post_layernorm", "norm"), ("layers.", "blocks."),
        ("self_attn.projection", "attn.proj"), ("self_attn", "attn"), ("layer_norm", "norm"),
    ]:  # fmt: skip
        name = name.replace(ours, theirs)
    return "blip.visual_encoder." + whole.get(name, name)


def test_every_name_of_the_published_imagereward_finds_its_place():
    net = tiny_imagereward()
    state = net.state_dict()
    published = {published_name(k): v for k, v in state.items()} | {"blip.text_proj.weight": torch.zeros(1)}
    assert "blip.visual_encoder.blocks.1.attn.qkv.weight" in published
    assert "blip.text_encoder.encoder.layer.0.crossattention.self.query.weight" in published
    assert "blip.visual_encoder.blocks.0.mlp.fc1.weight" in published
    renamed = gpu.imagereward_state(published)
    assert all(renamed[k] is v for k, v in state.items())
    assert len(renamed) == len(state)


def test_imagereward_looks_at_the_picture_and_at_the_prompt():
    net = tiny_imagereward()

    def words(texts, max_length, **_):
        ids = torch.tensor([[2 + (ord(c) % 80) for c in text.ljust(max_length)[:max_length]] for text in texts])
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}

    judge = gpu.imagereward(net, words, image_size=32)
    images = torch.rand(2, 3, 40, 40, generator=torch.Generator().manual_seed(0)) * 2 - 1
    same_picture = judge(images[:1].expand(2, -1, -1, -1), ["a dog", "one cat"])
    same_prompt = judge(images, ["a dog", "a dog"])
    assert same_picture[0] != same_picture[1]
    assert same_prompt[0] != same_prompt[1]


def test_pickscore_is_the_logit_scale_times_the_cosine(clip):
    from labkit.dpo.scorers import clip_scorer

    images, prompts = render_tensor(sample_specs(3, seed=0)), ["a happy person", "glasses", "a red shirt"]
    cosine = clip_scorer(*clip)(images, prompts)
    assert cosine.abs().max() <= 1
    expected = clip[0].logit_scale.exp() * cosine
    assert torch.allclose(gpu.clip_preference("pickscore", *clip)(images, prompts), expected, atol=1e-4)


def test_the_aesthetic_head_ignores_the_prompt_and_loads_strictly(clip, tmp_path):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        head = gpu.mlp(clip[0].config.projection_dim).eval()
    images = render_tensor(sample_specs(2, seed=0))
    judge = gpu.aesthetic(*clip, head)
    assert torch.equal(judge(images, ["a", "b"]), judge(images, ["c", "d"]))
    state = {f"layers.{k}": v for k, v in head.state_dict().items()}
    assert "layers.7.weight" in state  # the published numbering
    gpu.load_strictly(gpu.mlp(clip[0].config.projection_dim), state, tmp_path)
    del state["layers.7.weight"]
    with pytest.raises(ModelLoadError, match="missing"):
        gpu.load_strictly(gpu.mlp(clip[0].config.projection_dim), state, tmp_path)


def test_clip_iqa_is_the_softmax_over_two_opposite_sentences(clip):
    model, inputs = clip
    images = render_tensor(sample_specs(3, seed=0))
    judge = gpu.clip_iqa(model, inputs, asks="sharpness")
    batch = inputs(["Sharp photo.", "Blurry photo."])
    with torch.no_grad():  # by transformers' own forward pass
        expected = model(**batch, pixel_values=inputs.pixels(images)).logits_per_image.softmax(-1)[:, 0]
    assert torch.allclose(judge(images, ["a", "b", "c"]), expected, atol=1e-5)
    assert torch.equal(judge(images, ["a", "b", "c"]), judge(images, ["d", "e", "f"]))
    assert not torch.allclose(gpu.clip_iqa(model, inputs)(images, ["a"] * 3), expected, atol=1e-3)
    with pytest.raises(ValueError, match="quality, sharpness"):
        gpu.clip_iqa(model, inputs, asks="beauty")


def test_what_cannot_be_loaded_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.delenv("LABKIT_MODELS", raising=False)
    with pytest.raises(ModelLoadError, match="convert it to safetensors"):
        gpu.load_scorer("hpsv2.1", "cpu")
    with pytest.raises(ModelLoadError, match="expected one of"):
        gpu.load_scorer("beauty", "cpu")
    save_file({"x": torch.zeros(1)}, str(tmp_path / "model.safetensors"))
    with pytest.raises(ModelLoadError, match="config.json"):
        gpu.load_scorer("imagereward", "cpu", folder=tmp_path)


# ---- side effects ----------------------------------------------------------------------------------------------


class PlantedReader:
    """Reads attributes from where a test put them: channel 0, row a, column 0 holds the index of attribute a."""

    def read(self, images):
        return {name: images[:, 0, a, 0].long() for a, name in enumerate(ATTRIBUTES)}

    def features(self, images):
        return images[:, 0, :, 0]


def planted(rng, n, mood_happy):
    """Images whose every attribute is uniform over two values, but happy with a given probability."""
    images = torch.zeros(n, 3, 64, 64)
    for a, name in enumerate(ATTRIBUTES):
        p = mood_happy if name == "mood" else 0.5
        images[:, 0, a, 0] = torch.from_numpy((rng.random(n) >= p).astype(np.float32))
    return images


def report(before, after, prompts, **options):
    rng = np.random.default_rng(0)
    return side_effects(PlantedReader(), before=before, after=after, prompts=prompts, generator=rng, **options)


def moved(found, alpha=0.05):
    """Attributes whose marginal moved, at a family-wise error of alpha."""
    return [a.attribute for a in found.attributes if a.p_value < alpha]


def test_a_planted_shift_is_found_and_nothing_else():
    rng = np.random.default_rng(1)
    prompts = [f"a person wearing red clothes, number {i // 4}" for i in range(400)]
    found = report(planted(rng, 400, 0.3), planted(rng, 400, 0.8), prompts)
    assert moved(found) == ["mood"]
    happy = next(s for s in found.shifts if (s.attribute, s.value) == ("mood", "happy"))
    assert happy.low < 0.5 < happy.high
    assert happy.change == pytest.approx(happy.after - happy.before)
    assert found.largest(1)[0].attribute == "mood"
    assert "clothes" not in {s.attribute for s in found.shifts}  # the prompts name it


def test_shares_are_means_over_prompts_not_over_images():
    """Three pictures of one prompt, one of another: mood 0 has shares 2/3 and 0 before, 1/3 and 1 after."""
    before, after = torch.zeros(4, 3, 64, 64), torch.zeros(4, 3, 64, 64)
    row = list(ATTRIBUTES).index("mood")
    before[:, 0, row, 0] = torch.tensor([0.0, 1.0, 0.0, 1.0])
    after[:, 0, row, 0] = torch.tensor([1.0, 0.0, 1.0, 0.0])
    found = report(before, after, ["a portrait number 1"] * 3 + ["a portrait number 2"])
    shift = next(s for s in found.shifts if (s.attribute, s.value) == ("mood", ATTRIBUTES["mood"][0]))
    assert (shift.before, shift.after, shift.change) == pytest.approx((1 / 3, 2 / 3, 1 / 3))
    mood = next(a for a in found.attributes if a.attribute == "mood")
    assert (mood.distance, mood.images, mood.prompts) == (pytest.approx(1 / 3), 4, 2)
    assert found.largest(1)[0].attribute == "mood"
    assert found.diversity_before == found.diversity_after == pytest.approx(2 / 3)  # distances 1, 0, 1 of the first


def test_identical_images_have_no_side_effects():
    images = planted(np.random.default_rng(2), 40, 0.5)
    found = report(images, images, [f"a portrait number {i // 2}" for i in range(40)])
    assert all(s.change == s.low == s.high == 0 for s in found.shifts)
    assert all(a.distance == 0 and a.p_value == 1 for a in found.attributes)
    assert found.diversity_change == 0


def test_exchanging_the_sides_changes_the_sign():
    rng = np.random.default_rng(3)
    a, b = planted(rng, 60, 0.3), planted(rng, 60, 0.7)
    prompts = [f"a portrait number {i // 3}" for i in range(60)]
    forth, back = report(a, b, prompts), report(b, a, prompts)
    assert [s.change for s in forth.shifts] == pytest.approx([-s.change for s in back.shifts])
    assert forth.diversity_change == pytest.approx(-back.diversity_change)


def test_the_false_alarm_rate_is_the_promised_one():
    alarms = 0
    for k in range(60):
        rng = np.random.default_rng(100 + k)
        prompts = [f"a portrait number {i // 2}" for i in range(60)]
        alarms += bool(moved(report(planted(rng, 60, 0.5), planted(rng, 60, 0.5), prompts, resamples=300)))
    assert alarms <= 9  # 5 % of 60 is 3; P(more than 9) < 0.001


def test_the_real_reader_reports_on_renders():
    sad = [s.with_(mood="sad") for s in sample_specs(12, seed=0)]
    happy = [s.with_(mood="happy") for s in sad]
    rng = np.random.default_rng(0)
    found = side_effects(
        load_reader(), before=render_tensor(sad), after=render_tensor(happy),
        prompts=[f"a portrait number {i}" for i in range(12)], generator=rng,
    )  # fmt: skip
    assert moved(found) == ["mood"]
    assert math.isnan(found.diversity_change)  # one image a prompt


def test_bad_input_of_the_report_is_refused():
    images = planted(np.random.default_rng(4), 4, 0.5)
    with pytest.raises(ValueError, match="equal numbers"):
        report(images, images[:3], ["a"] * 4)
    with pytest.raises(ValueError, match="2 different prompts"):
        report(images, images, ["a"] * 4)
