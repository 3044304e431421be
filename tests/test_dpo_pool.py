"""Scorers, pools and pair records: what a judge may return, what resumes, and that ties never train."""

import dataclasses
import json

import pytest
import torch
from tiny_models import tiny_pipeline

from labkit.dpo import (
    PairSet,
    Pool,
    Scorer,
    best_and_worst,
    best_vs_worst,
    blend,
    build_pool,
    channel_gap,
    expected_range,
    faithfulness,
    sharpness,
    warmth,
    warmth_of,
)
from labkit.dpo.pairs import load_pairs, make_row
from labkit.dpo.pool import agreement, check_scores, consensus
from labkit.dpo.scorers import sharpness_of
from labkit.models import load_clip
from labkit.models.clip import captionable_values, embed_images, value_embeddings
from labkit.portraits import caption, render_tensor, sample_specs

PROMPTS = ("a happy person", "a person with red hair", "a person wearing blue clothes")


def pool_of(scores: torch.Tensor, **named: torch.Tensor) -> Pool:
    """A pool whose latent of candidate k of prompt p is full of 10 p + k."""
    p, n = scores.shape
    values = 10.0 * torch.arange(p)[:, None] + torch.arange(n)[None]
    latents = values[:, :, None, None, None].expand(p, n, 4, 2, 2).clone()
    return Pool(PROMPTS[:p], latents, {"judge": scores, **named}, {"hashes": {"vae": "abc"}})


# ---- scorers ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clip():
    return load_clip("cpu")


def test_the_training_judge_prefers_pictures_that_keep_the_prompt(clip):
    specs = sample_specs(24, seed=5)
    prompts = [caption(s, drop=["style", "mood", "hair_style"]).text for s in specs]
    judge = faithfulness(*clip)
    right, wrong = judge(render_tensor(specs), prompts), judge(render_tensor(specs[1:] + specs[:1]), prompts)
    assert ((right >= 0) & (right <= 1)).all()
    assert (right > wrong).float().mean() > 0.9


def test_the_training_judge_is_the_mean_softmax_over_the_named_values(clip):
    model, inputs = clip
    specs = sample_specs(3, seed=7)
    prompts = [caption(s, drop=drop) for s, drop in zip(specs, (["style"], ["style", "mood", "skin"], []), strict=True)]
    images = render_tensor(specs[1:] + specs[:1])  # another spec's picture: some values are right, some are not
    expected = []
    for picture, prompt, spec in zip(embed_images(model, inputs.pixels(images)), prompts, specs, strict=True):
        named = {a: getattr(spec, a) for a in prompt.named if getattr(spec, a) in captionable_values(a)}
        shares = []
        for attribute, value in named.items():
            values = captionable_values(attribute)
            texts = value_embeddings(model, inputs.tokenizer, attribute, values)
            weights = (model.logit_scale.exp().detach() * (texts @ picture)).exp()
            shares.append(float(weights[values.index(value)] / weights.sum()))
        expected.append(sum(shares) / len(shares))
    found = faithfulness(*clip)(images, [p.text for p in prompts]).tolist()
    assert found == pytest.approx(expected, rel=1e-3) and 0.05 < min(found) and len(set(found)) == 3


def test_a_prompt_that_names_nothing_makes_all_images_tie(clip):
    scores = faithfulness(*clip)(render_tensor(sample_specs(3, seed=1)), ["a portrait of a person"] * 3)
    assert torch.equal(scores, torch.zeros(3))


def test_a_score_depends_on_its_own_image_and_prompt_alone(clip):
    specs = sample_specs(4, seed=2)
    images, prompts = render_tensor(specs), [caption(s).text for s in specs]
    together = faithfulness(*clip)(images, prompts)
    alone = torch.cat([faithfulness(*clip)(images[i : i + 1], prompts[i : i + 1]) for i in range(4)])
    assert torch.allclose(together, alone, atol=1e-5)


def test_sharpness_rewards_noise_and_warmth_ignores_everything_but_red_and_blue():
    generator = torch.Generator().manual_seed(0)
    picture = render_tensor(sample_specs(1, seed=3))
    noisy = (picture + 0.3 * torch.randn(picture.shape, generator=generator)).clamp(-1, 1)
    assert sharpness_of(noisy) > sharpness_of(picture)
    assert sharpness_of(torch.full((1, 3, 8, 8), 0.3)) == 0
    pixels = torch.tensor([[0.0, 0.5, 0.25, 0.0], [0.1, 0.9, 0.3, 0.2], [0.0, 0.4, 0.6, 0.0]])  # luminance in [0, 1]
    laplacian = torch.tensor([0.5 + 0.1 + 0.3 + 0.4 - 4 * 0.9, 0.25 + 0.9 + 0.2 + 0.6 - 4 * 0.3])
    grey = (2 * pixels - 1).expand(1, 3, 3, 4)
    assert sharpness_of(grey).item() == pytest.approx(float(laplacian.std()), rel=1e-5)
    red = torch.tensor([1.0, 0.2, -1.0]).view(1, 3, 1, 1).expand(1, 3, 8, 8)
    assert warmth_of(red).item() == 1.0
    assert warmth_of(red.flip(1)).item() == -1.0


def test_a_blend_is_the_weighted_sum_and_says_so_in_its_name():
    images = torch.rand(3, 3, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    both = blend([(sharpness(), 2.0), (warmth(), -0.5)])
    assert torch.allclose(both(images, ["x"] * 3), 2 * sharpness_of(images) - 0.5 * warmth_of(images))
    assert both.name == "2 sharpness/1 + -0.5 warmth/1"


def test_a_judge_that_returns_nan_or_the_wrong_number_is_refused():
    images = torch.zeros(2, 3, 8, 8)
    with pytest.raises(ValueError, match="1 scores are not finite .first: image 1."):
        Scorer("odd", lambda images, prompts: torch.tensor([0.0, float("nan")]))(images, ["a", "b"])
    with pytest.raises(ValueError, match="returned shape"):
        Scorer("odd", lambda images, prompts: torch.zeros(2, 1))(images, ["a", "b"])
    with pytest.raises(ValueError, match="2 images and 1 prompts"):
        warmth()(images, ["a"])


# ---- choosing --------------------------------------------------------------------------------------------------


def test_extremes_are_stable_under_ties_and_follow_the_candidates_when_they_are_reordered():
    scores = torch.tensor([[1.0, 3.0, 3.0, 0.0], [2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 5.0, 1.0]])
    best, worst = best_and_worst(scores)
    assert best.tolist() == [1, 0, 2]
    assert worst.tolist() == [3, 0, 0]
    order = torch.tensor([2, 0, 3, 1])
    distinct = torch.tensor([[0.3, 0.9, 0.1, 0.5]])
    (a, b), (c, d) = best_and_worst(distinct), best_and_worst(distinct[:, order])
    assert order[c].tolist() == a.tolist()
    assert order[d].tolist() == b.tolist()


def test_one_candidate_and_nan_scores_are_refused():
    with pytest.raises(ValueError, match="N >= 2"):
        check_scores(torch.zeros(3, 1))
    with pytest.raises(ValueError, match="first: prompt 1"):
        check_scores(torch.tensor([[0.0, 1.0], [0.0, float("nan")]]))


def test_votes_count_duels_so_that_a_judge_with_a_large_scale_has_no_more_weight():
    loud, a, b = torch.tensor([[100.0, 0.0, 50.0]]), torch.tensor([[0.0, 0.2, 0.1]]), torch.tensor([[0.0, 0.1, 0.2]])
    together = consensus({"loud": loud, "a": a, "b": b})
    assert together.argmax().item() != 0
    assert torch.equal(together, consensus({"loud": loud * 1e-6 - 3, "a": a, "b": b}))
    assert together.sum().item() == pytest.approx(1.5)  # the duels of three candidates share three points, halved
    assert torch.equal(consensus({"flat": torch.zeros(1, 4)}), torch.full((1, 4), 0.5))


def test_the_vote_is_the_mean_share_of_duels_won_by_hand():
    a = torch.tensor([[3.0, 1.0, 2.0, 1.0], [0.0, 0.0, 0.0, 5.0]])  # shares 1, 1/6, 2/3, 1/6 and 1/3, 1/3, 1/3, 1
    b = torch.tensor([[0.0, 9.0, 5.0, 7.0], [4.0, 3.0, 2.0, 1.0]])  # shares 0, 1, 1/3, 2/3 and 1, 2/3, 1/3, 0
    expected = torch.tensor([[1 / 2, 7 / 12, 1 / 2, 5 / 12], [2 / 3, 1 / 2, 1 / 3, 1 / 2]])
    torch.testing.assert_close(consensus({"a": a, "b": b}), expected)
    torch.testing.assert_close(consensus({"a": a, "b": b, "c": b})[0], torch.tensor([1 / 3, 13 / 18, 4 / 9, 1 / 2]))


def test_agreement_counts_the_judges_on_the_winners_side():
    scores = {"yes": torch.tensor([[1.0, 0.0]]), "no": torch.tensor([[0.0, 1.0]]), "tie": torch.tensor([[0.0, 0.0]])}
    assert agreement(scores, torch.tensor([0]), torch.tensor([1])).item() == 0.5
    two = {"a": torch.tensor([[1.0, 0.0], [0.0, 3.0]]), "b": torch.tensor([[2.0, 1.0], [5.0, 5.0]])}
    assert agreement(two, torch.tensor([0, 1]), torch.tensor([1, 0])).tolist() == [1.0, 0.75]


@pytest.mark.parametrize(("n", "value"), [(1, 0.0), (2, 1.128), (4, 2.059), (8, 2.847), (20, 3.735), (32, 4.139)])
def test_the_expected_range_of_normal_scores_has_its_published_values(n, value):
    assert expected_range(n) == pytest.approx(value, abs=2e-3)


# ---- pools -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def make(pipe, n=3, folder=None, scorers=None, **options):
    options = {"seed": 0, "steps": 2, "shard": 2} | options
    return build_pool(pipe, PROMPTS, n, scorers=scorers or [sharpness(), warmth()], folder=folder, **options)


def test_a_smaller_pool_is_the_front_of_a_larger_one_whatever_the_shards(pipe):
    large, small = make(pipe, n=3), make(pipe, n=2, shard=3)
    assert torch.allclose(large.first(2).latents, small.latents, atol=1e-5)
    for name in large.scores:
        assert torch.allclose(large.first(2).scores[name], small.scores[name], atol=1e-4)


def test_an_interrupted_pool_goes_on_without_making_finished_shards_again(pipe, tmp_path):
    judged = []

    def counting(images, prompts):
        judged.append(len(images))
        return sharpness_of(images)

    scorers = [Scorer("counting", counting)]
    whole = make(pipe, folder=tmp_path / "pool", scorers=scorers)
    assert judged == [6, 3]
    (tmp_path / "pool" / "shard-00001.safetensors").unlink()
    again = make(pipe, folder=tmp_path / "pool", scorers=scorers)
    assert judged == [6, 3, 3]
    assert torch.equal(whole.latents, again.latents)
    assert torch.equal(whole.scores["counting"], again.scores["counting"])


def test_a_folder_with_another_pool_is_refused(pipe, tmp_path):
    make(pipe, folder=tmp_path / "pool")
    with pytest.raises(FileExistsError, match="seed"):
        make(pipe, folder=tmp_path / "pool", seed=1)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    with pytest.raises(FileExistsError, match="no pool"):
        make(pipe, folder=tmp_path / "other")


def test_a_failed_write_leaves_no_half_shard(pipe, tmp_path, monkeypatch):
    def full(tensors, path):
        open(path, "wb").write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labkit.dpo.pool.save_file", full)
    with pytest.raises(OSError, match="No space"):
        make(pipe, folder=tmp_path / "pool")
    assert [p.name for p in (tmp_path / "pool").iterdir()] == ["pool.json"]


@pytest.mark.parametrize("n", [0, 1, 1025])
def test_a_pool_needs_something_to_compare(pipe, n):
    with pytest.raises(ValueError, match="2 .. 1024"):
        make(pipe, n=n)


# ---- records ---------------------------------------------------------------------------------------------------


def test_best_against_worst_takes_the_extreme_latents_and_remembers_where_they_came_from():
    pairs = best_vs_worst(pool_of(torch.tensor([[0.0, 2.0, 1.0], [5.0, 1.0, 3.0]])), "judge")
    training = pairs.training()
    assert training.winner[:, 0, 0, 0].tolist() == [1.0, 10.0]
    assert training.loser[:, 0, 0, 0].tolist() == [0.0, 11.0]
    assert training.margin.tolist() == [2.0, 4.0]
    assert pairs.column("source_w") == ["candidate 1", "candidate 0"]
    assert pairs.column("source_l") == ["candidate 0", "candidate 1"]
    assert (pairs.column("score_w"), pairs.column("score_l")) == ([2.0, 5.0], [0.0, 1.0])
    assert training.hashes == {"vae": "abc"}


def test_ties_are_recorded_but_never_train():
    scores = torch.tensor([[0.0, 2.0], [1.0, 1.0], [0.0, 0.1]])
    pairs = best_vs_worst(pool_of(scores), "judge", min_margin=0.2)
    assert pairs.column("tie") == [False, True, True]
    assert pairs.training().prompts == (PROMPTS[0],)
    with pytest.raises(ValueError, match="ties"):
        best_vs_worst(pool_of(torch.ones(2, 3)), "judge").training()


def test_pairs_that_the_judges_do_not_agree_on_can_be_left_out():
    one, two = torch.tensor([[0.0, 1.0, 2.0], [0.0, 1.0, 2.0]]), torch.tensor([[0.0, 1.0, 2.0], [2.0, 1.9, 0.0]])
    pool = pool_of(one, other=two)
    assert best_vs_worst(pool).column("agreement")[0] == 1.0
    assert best_vs_worst(pool, min_agreement=0.75).column("tie") == [False, True]
    assert best_vs_worst(pool).column("scorer") == ["vote of judge, other"] * 2


def test_a_pair_set_survives_the_disk(tmp_path):
    pairs = best_vs_worst(pool_of(torch.tensor([[0.0, 2.0], [1.0, 1.0]])), "judge")
    vote = {"id": "me", "choice": "winner", "left": "loser", "ms": 900}
    rows = (dict(pairs.rows[0], votes=[vote]), pairs.rows[1])
    dataclasses.replace(pairs, rows=rows).save(tmp_path / "pairs")
    again = load_pairs(tmp_path / "pairs")
    assert again.rows == rows
    assert torch.equal(again.latents, pairs.latents)
    assert again.hashes == {"vae": "abc"}


def test_missing_latents_and_damaged_files_are_one_line_errors(tmp_path):
    pairs = best_vs_worst(pool_of(torch.tensor([[0.0, 2.0]])), "judge")
    with pytest.raises(ValueError, match=r"needs latents \[7\] but 2 are stored"):
        PairSet((dict(pairs.rows[0], winner=7),), pairs.latents)
    folder = pairs.save(tmp_path / "pairs")
    (folder / "latents.safetensors").write_bytes(b"\0" * 20)
    with pytest.raises(ValueError, match="damaged"):
        load_pairs(folder)
    (folder / "latents.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="latents.safetensors is missing"):
        load_pairs(folder)


def test_a_full_disk_leaves_the_old_pair_set(tmp_path, monkeypatch):
    first = best_vs_worst(pool_of(torch.tensor([[0.0, 2.0]])), "judge")
    folder = first.save(tmp_path / "pairs")

    def full(table, path):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("labkit.dpo.pairs.pq.write_table", full)
    with pytest.raises(OSError, match="No space"):
        first.save(folder)
    assert load_pairs(folder).rows == first.rows
    assert sorted(p.name for p in folder.iterdir()) == ["latents.safetensors", "pairs.parquet"]


def test_unknown_columns_and_repeated_pairs_are_refused():
    with pytest.raises(ValueError, match="unknown columns"):
        make_row("a", "x", 0, 0, 1, colour="red")
    row = make_row("a", "x", 0, 0, 1)
    with pytest.raises(ValueError, match="not unique"):
        PairSet((row, row), torch.zeros(2, 4, 2, 2))


def test_the_channel_gap_shows_a_judges_taste_in_colour_before_training():
    pairs = best_vs_worst(pool_of(torch.tensor([[0.0, 2.0], [5.0, 1.0]])), "judge").training()
    assert torch.equal(channel_gap(pairs), torch.zeros(4))  # +1 for one prompt, -1 for the other
    first = dataclasses.replace(
        pairs, prompts=pairs.prompts[:1], winner=pairs.winner[:1], loser=pairs.loser[:1], margin=None
    )
    assert torch.equal(channel_gap(first), torch.ones(4))


def test_the_record_of_a_pool_names_models_sampler_and_judges(pipe, tmp_path):
    make(pipe, folder=tmp_path / "pool")
    record = json.loads((tmp_path / "pool" / "pool.json").read_text("utf-8"))
    assert record["scorers"] == ["sharpness/1", "warmth/1"]
    assert {"base", "vae", "text", "scheduler"} <= set(record["hashes"])
