"""HG-DPO: reconstructions, stages, hand-over and inference rules. Numbers in brackets: tests of dpo.md, section 4."""

import copy
import math
from contextlib import nullcontext
from dataclasses import replace

import pytest
import torch
from dpo_by_hand import merge, updates
from tiny_models import tiny_pipeline

from labkit.diffusion import (
    AdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    adapter_state,
    add_lora,
    base_fingerprint,
    encode_prompts,
    image_generators,
    merge_lora,
    unet_output,
    use_adapters,
)
from labkit.dpo import (
    DPOConfig,
    Pool,
    Stage,
    attach,
    best_vs_worst,
    dpo,
    each_step,
    hard_pairs,
    leap_pairs,
    normal_pairs,
    recon_levels,
    run_stages,
    sd_recon,
    statistics,
    text_window,
    up_blocks,
)
from labkit.dpo.recon import best_level, recon_timesteps

PROMPTS = ("a happy person", "a person with red hair", "a person wearing blue clothes")


@pytest.fixture
def pipe():
    return tiny_pipeline()


@pytest.fixture
def real():
    return torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))


def easy_pairs(pipe, scores=None):
    latents = torch.randn(3, 3, 4, 8, 8, generator=torch.Generator().manual_seed(4))
    scores = torch.tensor([[0.1, 0.5, 0.3], [0.2, 0.9, 0.4], [0.6, 0.0, 0.1]]) if scores is None else scores
    return best_vs_worst(Pool(PROMPTS, latents, {"judge": scores}), "judge")


# ---- SDRecon [31] ----------------------------------------------------------------------------------------------


def test_t_0_returns_the_picture_and_more_noise_goes_further_from_it(pipe, real):
    levels = recon_levels(pipe, real, PROMPTS, (0, 100, 500, 1000), seed=0, steps=10, guidance_scale=1.0)
    assert torch.equal(levels[0], real)
    distance = [float((levels[t] - real).square().mean()) for t in (100, 500, 1000)]
    assert distance == sorted(distance)
    assert distance[0] < distance[2] / 4


@pytest.mark.parametrize(("t", "kept"), [(100, 0.946), (500, 0.526), (1000, 0.068)])
def test_the_start_keeps_the_published_share_of_the_picture_even_at_full_noise(pipe, real, t, kept):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    for picture in (real, torch.zeros_like(real)):
        options = {"generators": image_generators(3, 0), "steps": 1, "guidance_scale": 1.0}
        sd_recon(pipe, picture, PROMPTS, t, **options)
    assert torch.allclose(seen[0] - seen[1], kept * real, atol=3e-3)


def test_timesteps_begin_at_t_and_keep_the_spacing_of_the_whole_range():
    assert recon_timesteps(1000, 10)[0] == 999
    assert recon_timesteps(400, 10) == [400, 300, 200, 100]
    assert recon_timesteps(30, 10) == [30]
    assert recon_timesteps(0, 10) == []
    for t in (-1, 1001):
        with pytest.raises(ValueError, match="expected 0"):
            recon_timesteps(t, 10)


def test_the_best_level_is_the_smallest_among_equal_scores():
    level, score = best_level({500: torch.tensor([0.5, 0.1]), 400: torch.tensor([0.5, 0.0])})
    assert level.tolist() == [400, 500]
    assert score.tolist() == pytest.approx([0.5, 0.1])
    with pytest.raises(ValueError, match="NaN"):
        best_level({400: torch.tensor([float("nan")])})


def test_a_picture_has_the_same_noise_at_all_levels_and_another_one_other_noise(pipe, real):
    seen = []
    pipe.unet.register_forward_pre_hook(lambda module, args: seen.append((args[0], int(args[1]))))
    recon_levels(pipe, real, PROMPTS, (300, 800), seed=2, steps=1, guidance_scale=1.0)
    abar = [pipe.scheduler.alphas_cumprod[t] for _, t in seen]
    noise = [(x - a.sqrt() * real) / (1 - a).sqrt() for (x, _), a in zip(seen, abar, strict=True)]
    torch.testing.assert_close(noise[0], noise[1], rtol=0, atol=1e-4)
    assert (noise[0][0] - noise[0][1]).abs().mean() > 0.5


# ---- pairs of the stages ---------------------------------------------------------------------------------------


def test_normal_winners_are_the_best_reconstructions_and_lose_where_they_score_less(pipe, real):
    easy = easy_pairs(pipe)  # winners score 0.5, 0.9, 0.6
    easy = replace(easy, rows=easy.rows[::-1])  # rows in another order than the pool's prompts
    recons = {400: real, 500: real + 1}
    scores = {400: torch.tensor([0.7, 0.8, 0.6]), 500: torch.tensor([0.8, 0.7, 0.1])}
    normal = normal_pairs(easy, recons, scores, "judge")
    assert normal.column("tie") == [True, True, False]  # equal, worse: neither trains
    assert normal.column("source_w") == ["sdrecon t=400", "sdrecon t=400", "sdrecon t=500"]
    assert normal.column("source_l") == easy.column("source_w")
    assert normal.column("score_w") == pytest.approx([0.6, 0.8, 0.8])
    training = normal.training()
    assert training.prompts == PROMPTS[:1]
    assert torch.equal(training.winner[0], real[0] + 1)
    assert torch.equal(training.loser[0], easy.training().winner[2])
    assert training.margin.tolist() == pytest.approx([0.3])


def test_the_hard_stage_takes_the_pictures_that_normal_kept_against_its_winners(pipe, real):
    easy = easy_pairs(pipe)
    easy = replace(easy, rows=(easy.rows[2], easy.rows[0], easy.rows[1]))
    normal = normal_pairs(easy, {400: real}, {400: torch.tensor([0.7, 0.8, 0.9])}, "judge")
    hard = hard_pairs(normal, real * 2)
    assert hard.column("tie") == normal.column("tie") == [False, False, True]
    training = hard.training()
    assert torch.equal(training.winner, real[[2, 0]] * 2)
    assert torch.equal(training.loser, real[[2, 0]])
    assert training.margin is None


def test_the_leap_sets_real_pictures_against_generated_losers(pipe, real):
    easy = easy_pairs(pipe)
    easy = replace(easy, rows=(easy.rows[1], easy.rows[2], easy.rows[0]))
    training = leap_pairs(easy, real).training()
    assert torch.equal(training.winner, real[[1, 2, 0]])
    assert torch.equal(training.loser, easy.training().loser)


def test_pictures_in_another_order_or_shape_are_refused(pipe, real):
    with pytest.raises(ValueError, match="one per prompt"):
        leap_pairs(easy_pairs(pipe), real[:2])
    with pytest.raises(ValueError, match="one per prompt"):
        leap_pairs(easy_pairs(pipe), torch.zeros(3, 4, 4, 4))


# ---- hand-over [28] --------------------------------------------------------------------------------------------


def stages(pipe, real, steps=4, names=("easy", "hard"), targets="attention"):
    easy = easy_pairs(pipe)
    pairs = (easy.training(), leap_pairs(easy, real).training())
    config = DPOConfig(steps=steps, batch_size=3, lr=1e-2, log_every=1, rank=2, targets=targets, warmup=0)
    terms = ([dpo(500.0), statistics()], [dpo(500.0)])
    return [Stage(n, p, t, config) for n, p, t in zip(names, pairs, terms, strict=True)]


def output(pipe):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(2, 4, 8, 8, generator=generator)
    with torch.no_grad():
        return unet_output(pipe.unet, x, 500, encode_prompts(pipe, PROMPTS[:2]))


def test_every_stage_starts_at_ln_2_and_the_next_reference_is_the_last_policy(pipe, real):
    before = base_fingerprint(pipe.unet)
    logs = run_stages(pipe, stages(pipe, real))
    for name in ("easy", "hard"):
        assert logs[name][0]["dpo"] == pytest.approx(math.log(2), abs=1e-6)
        assert logs[name][-1]["dpo"] < math.log(2)
    assert base_fingerprint(pipe.unet) == before
    assert active_adapters(pipe.unet) == ("easy", "hard")
    assert not any(p.requires_grad for p in pipe.unet.parameters())


@pytest.mark.parametrize("reference", ["stage", "base"])
def test_two_stages_are_those_computed_by_hand(pipe, real, reference):
    """The easy stage, its update merged, then the hard stage against its own start, or against the base."""
    easy = easy_pairs(pipe)
    config = DPOConfig(steps=2, batch_size=2, lr=1e-2, warmup=0, rank=2, log_every=1)
    plan = [
        Stage("easy", easy.training(), [dpo(20.0)], config),
        Stage("hard", replace(leap_pairs(easy, real).training(), margin=torch.ones(3)), [dpo(30.0)], config),
    ]
    logs = run_stages(pipe, plan, reference=reference)

    def loss(kappa):
        return lambda w, lo, ref_w, ref_l, margin: torch.log1p(torch.exp(kappa * ((w - ref_w) - (lo - ref_l))))

    hand = tiny_pipeline()
    first, losses = updates(tiny_pipeline(), plan[0].pairs, replace(config, adapter="easy"), loss(20.0))
    merge(hand.unet, first)
    start = None if reference == "stage" else tiny_pipeline().unet
    second, more = updates(hand, plan[1].pairs, replace(config, adapter="hard"), loss(30.0), reference=start)
    for name, state, expected in (("easy", first, losses), ("hard", second, more)):
        assert [r["dpo"] for r in logs[name]] == pytest.approx([float(x.mean()) for x in expected], rel=1e-4)
        found = adapter_parameters(pipe.unet, name)
        assert found.keys() == state.keys()
        for path, value in state.items():
            torch.testing.assert_close(found[path].detach(), value, rtol=0, atol=1e-4, msg=path)


@pytest.mark.parametrize("targets", ["attention", "all"])
def test_adapters_side_by_side_compute_what_the_merged_stages_computed(pipe, real, targets):
    merged = copy.deepcopy(pipe)
    run_stages(pipe, stages(pipe, real, targets=targets))
    for name in ("easy", "hard"):
        state = {k: v.detach().clone() for k, v in adapter_parameters(pipe.unet, name).items()}
        attach(merged.unet, name, state)
        merge_lora(merged.unet, name)
    assert torch.allclose(output(pipe), output(merged), atol=1e-5)
    assert not torch.allclose(output(pipe), output(tiny_pipeline()), atol=1e-3)


def test_a_state_of_two_ranks_is_refused(pipe):
    state = {f"mid_block.{k}.lora_A.x.weight": torch.zeros(rank, 4) for k, rank in enumerate((2, 3))}
    with pytest.raises(AdapterError, match="ranks"):
        attach(pipe.unet, "x", state)


def test_with_the_base_as_reference_later_stages_do_not_start_at_ln_2(pipe, real):
    logs = run_stages(pipe, stages(pipe, real, steps=10), reference="base")
    assert logs["easy"][0]["dpo"] == pytest.approx(math.log(2), abs=1e-6)
    assert abs(logs["hard"][0]["dpo"] - math.log(2)) > 1e-4


@pytest.mark.parametrize("stop_at", [0, 3])
def test_a_look_after_every_step_changes_no_bit(stop_at):
    """each_step: the same logs and adapters, one call a step, also where a callback ends the stage early."""

    def run(watched):
        pipe, real = tiny_pipeline(), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))
        plan = [replace(s, config=replace(s.config, log_every=3, steps=7)) for s in stages(pipe, real)]
        seen = []
        with each_step(lambda: seen.append(1)) if watched else nullcontext():
            logs = run_stages(pipe, plan, callback=lambda name, record: record["step"] == stop_at)
        return logs, {n: adapter_state(pipe.unet, n) for n in ("easy", "hard")}, len(seen)

    (logs, states, _), (watched_logs, watched_states, steps) = run(False), run(True)
    assert steps == 2 * (stop_at or 7)
    for name in ("easy", "hard"):
        assert [r["loss"] for r in logs[name]] == [r["loss"] for r in watched_logs[name]]
        assert (
            [r["step"] for r in logs[name]]
            == [r["step"] for r in watched_logs[name]]
            == ([3] if stop_at else [3, 6, 7])
        )
        assert all(torch.equal(states[name][k], watched_states[name][k]) for k in states[name])


def test_a_failing_stage_leaves_the_base_weights_and_no_adapter(pipe, real):
    before = base_fingerprint(pipe.unet)

    def fail(name, record):
        if name == "hard":
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        run_stages(pipe, stages(pipe, real), callback=fail)
    assert base_fingerprint(pipe.unet) == before
    assert adapter_names(pipe.unet) == ()


def test_stages_that_were_cut_go_on_with_the_same_bits(tmp_path):
    def run(folder, callback=None):
        pipe, real = tiny_pipeline(), torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))
        plan = [replace(s, config=replace(s.config, save_every=2, log_every=2)) for s in stages(pipe, real)]
        logs = run_stages(pipe, plan, folder=folder, callback=callback)
        return logs, {n: adapter_state(pipe.unet, n) for n in ("easy", "hard")}

    def cut(name, record):
        if (name, record["step"]) == ("hard", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", cut)
    seen = []
    logs, states = run(tmp_path / "cut", lambda name, record: seen.append((name, record["step"])))
    whole_logs, whole = run(tmp_path / "whole")
    assert seen == [("hard", 4)]  # neither the easy stage nor the first half of the hard one ran again
    for name in whole:
        assert all(torch.equal(states[name][k], v) for k, v in whole[name].items())
        assert [r["dpo"] for r in logs[name]] == [r["dpo"] for r in whole_logs[name]]


def test_names_that_repeat_and_unknown_references_are_refused(pipe, real):
    with pytest.raises(ValueError, match="distinct"):
        run_stages(pipe, stages(pipe, real, names=("easy", "easy")))
    with pytest.raises(ValueError, match="'stage'"):
        run_stages(pipe, stages(pipe, real), reference="policy")


# ---- inference rules [29] --------------------------------------------------------------------------------------


def with_random_lora(pipe, name="hard"):
    add_lora(pipe.unet, name, seed=0, rank=2)
    generator = torch.Generator().manual_seed(7)
    for parameter in adapter_parameters(pipe.unet, name).values():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)


def test_scale_0_is_the_base_bitwise_and_half_the_scale_about_half_the_change(pipe):
    base = output(pipe)
    with_random_lora(pipe)
    with use_adapters(pipe.unet, {"hard": 0.0}):
        assert torch.equal(output(pipe), base)
    with use_adapters(pipe.unet, {"hard": 0.5}):
        half = (output(pipe) - base).norm()
    whole = (output(pipe) - base).norm()
    assert 0.35 < half / whole < 0.65


def test_the_last_stage_can_be_kept_to_the_up_blocks_and_everything_comes_back(pipe):
    with_random_lora(pipe)
    whole, active = output(pipe), active_adapters(pipe.unet)
    with use_adapters(pipe.unet, {"hard": 1.0}, where={"hard": up_blocks}):
        masked = output(pipe)
    for path, parameter in adapter_parameters(pipe.unet, "hard").items():
        if ".lora_B." in path and not up_blocks(path):
            parameter.data.zero_()
    assert torch.allclose(masked, output(pipe), atol=1e-6)
    assert not torch.allclose(masked, whole, atol=1e-5)
    assert active_adapters(pipe.unet) == active


def test_a_rule_for_one_adapter_leaves_the_other_whole(pipe):
    with_random_lora(pipe, "easy")
    easy = output(pipe)
    with_random_lora(pipe, "hard")
    with use_adapters(pipe.unet, {"easy": 1.0, "hard": 1.0}, where={"hard": lambda path: False}):
        assert torch.equal(output(pipe), easy)
    with pytest.raises(AdapterError, match="ghost"), use_adapters(pipe.unet, {"easy": 1.0}, where={"ghost": up_blocks}):
        pass


def test_the_text_encoder_is_switched_by_timestep(pipe):
    base, tuned = encode_prompts(pipe, PROMPTS[:1]), encode_prompts(pipe, PROMPTS[1:2])
    conditions = text_window(base, tuned)
    assert [conditions(t) is tuned for t in (0, 899, 900, 999, 1000)] == [False, False, True, True, True]
    with pytest.raises(ValueError, match="same prompts"):
        text_window(base, encode_prompts(pipe, PROMPTS))


def test_an_adapter_that_is_not_there_is_named(pipe):
    with pytest.raises(RuntimeError, match="normal"):
        with use_adapters(pipe.unet, {"normal": 1.0}):
            pass
