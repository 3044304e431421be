"""Contenders of labkit.survey on a tiny pipeline: first steps written out, costs counted by hand, bad input."""

import math

import pytest
import torch
from tiny_models import tiny_pipeline

from labkit.checkpoint import CheckpointError
from labkit.diffusion import (
    adapter_names,
    adapter_state,
    add_lora,
    base_fingerprint,
    ddim_step,
    ddim_timesteps,
    decode_latents,
    encode_prompts,
    image_generators,
    remove_lora,
    sample_latents,
)
from labkit.diffusion.adapters import adapter_parameters
from labkit.dpo import Scorer
from labkit.models import load_pipeline
from labkit.models.sd_layout import write_layout
from labkit.survey import CONTENDERS, ArenaSettings, BudgetError, Policy, enter, path_divergence, prices
from labkit.survey.arena import METHODS
from labkit.survey.trained import update_price

PROMPTS = ["a red hat", "a blue hat", "a green hat"]
SMALL = ArenaSettings(
    steps=3, prompts=2, group=2, lr=1e-2, rank=2, draws=2, trained_steps=2, k=2, precision="fp32", checks=1
)


def reward(images, prompts):
    """Red minus blue, in one place of the picture: differentiable, and different for every picture."""
    return 10 * (images[:, 0, 10:20, 5:30].mean((1, 2)) - images[:, 2, 30:50, 20:40].mean((1, 2)))


@pytest.fixture(scope="module")
def pipe():
    return tiny_pipeline()


def trained_state(pipe, name, settings=SMALL, updates=1, **options):
    with Policy(pipe, PROMPTS, reward, seed=5, settings=settings, **options) as policy:
        policy.run(METHODS[name], updates, name=name)
        return policy.state(), policy.log


class Hand:
    """A first update written out: own sampling, own loss, AdamW."""

    def __init__(self, pipe, settings):
        self.pipe, self.s, self.alphas = pipe, settings, pipe.scheduler.alphas_cumprod
        with Policy(pipe, PROMPTS, reward, seed=5, settings=settings) as policy:
            self.index = policy.chosen(0)
            self.generators = {purpose: policy.generator(0, purpose) for purpose in (1, 2, 3)}
        add_lora(pipe.unet, "arena", seed=5, rank=settings.rank, suffixes=None)

    def sampled(self, per_prompt, **options):
        rows = [PROMPTS[i] for i in self.index for _ in range(per_prompt)]
        made = sample_latents(
            self.pipe, rows, generators=image_generators(len(rows), 5), steps=self.s.steps, eta=self.s.eta,
            guidance_scale=1.0, keep_trajectory=True, **options,
        )  # fmt: skip
        return rows, made

    def epsilon(self, x, t, rows):
        text = encode_prompts(self.pipe, rows).cond
        return self.pipe.unet(x, t, encoder_hidden_states=text).sample

    def picture(self, latents):
        return decode_latents(self.pipe, latents).clamp(-1, 1)

    def finish(self, loss):
        parameters = adapter_parameters(self.pipe.unet, "arena")
        optimizer = torch.optim.AdamW(parameters.values(), lr=self.s.lr, weight_decay=0.0)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters.values(), 1.0)
        optimizer.step()
        state = adapter_state(self.pipe.unet, "arena")
        remove_lora(self.pipe.unet, "arena")
        return state


def same(found, expected):
    assert found.keys() == expected.keys()
    moved = 0
    for name, value in expected.items():
        # AdamW's first step is lr * sign: where a gradient is nearly 0, rounding decides its sign
        agree = (found[name] - value).abs() < 1e-4
        assert float(agree.float().mean()) > 0.98, name
        moved += int(".lora_B." in name and bool(value.any()))
    assert moved > 5


def noisings(hand, latents):
    rows = [i for i in range(len(latents)) for _ in range(hand.s.draws)]
    noise = torch.randn(len(rows), *latents.shape[1:], generator=hand.generators[1])
    t = torch.randint(1000, (len(rows),), generator=hand.generators[1])
    a = hand.alphas[t].view(-1, 1, 1, 1)
    return rows, noise, t, a, a.sqrt() * latents[rows] + (1 - a).sqrt() * noise


@pytest.mark.parametrize("name", ["raft", "rwr"])
def test_a_first_step_on_weighted_own_samples_is_the_one_written_out(pipe, name):
    hand = Hand(pipe, SMALL)
    with torch.no_grad():
        texts, made = hand.sampled(2)
        r = reward(hand.picture(made.latents), texts).view(2, 2)
    if name == "raft":
        weight = (r == r.max(1, keepdim=True).values).float()
    else:
        spread = (r - r.mean(1, keepdim=True)).std()
        e = torch.exp((r - r.max()) / (0.5 * spread))
        weight = 2 * e / e.sum(1, keepdim=True)
    used = weight.flatten().nonzero().flatten()
    rows, noise, t, _, x_t = noisings(hand, made.latents[used])
    w = weight.flatten()[used][rows]
    prediction = hand.epsilon(x_t, t, [texts[int(used[i])] for i in rows])
    loss = (w * (prediction - noise).square().flatten(1).mean(1)).mean()
    same(first(name), hand.finish(loss))


def first(name, settings=SMALL):
    """The contender's own first update, on an equal pipeline."""
    return trained_state(tiny_pipeline(), name, settings)[0]


@pytest.mark.parametrize("grouped", [False, True])
def test_a_first_policy_gradient_is_the_advantage_times_the_gradient_of_the_log_probabilities(pipe, grouped):
    """At the start every ratio is 1, so PPO's step is that of -A log p; one optimizer step per trained timestep."""
    settings = ArenaSettings(**{**vars(SMALL), "trained_steps": 1, "grouped": grouped})
    hand = Hand(pipe, settings)
    with torch.no_grad():
        texts, made = hand.sampled(2)
        r = reward(hand.picture(made.latents), texts).view(2, 2)
    flat = r if grouped else r.view(1, 4)
    advantage = ((flat - flat.mean(1, keepdim=True)) / flat.std(1, correction=0, keepdim=True)).flatten()
    i = int(torch.randperm(3, generator=hand.generators[2])[0])
    t, t_prev = ddim_timesteps(pipe.scheduler, 3)[i]
    x_t, x_prev = made.trajectory[:, i], made.trajectory[:, i + 1]
    log_p = ddim_step(hand.epsilon(x_t, t, texts), t, t_prev, x_t, hand.alphas, eta=1.0, x_prev=x_prev)[1]
    same(first("ddpo", settings), hand.finish((-advantage * log_p / x_t[0].numel()).mean()))


def test_a_first_step_of_draft_is_the_rewards_own_gradient_through_the_last_steps(pipe):
    hand = Hand(pipe, SMALL)
    rows = [PROMPTS[i] for i in hand.index]
    generators = image_generators(len(rows), 5)
    x = torch.stack([torch.randn(4, 8, 8, generator=g) for g in generators])
    for i, (t, t_prev) in enumerate(ddim_timesteps(pipe.scheduler, 3)):
        with torch.set_grad_enabled(i >= 1):  # K = 2 of 3
            eps = hand.epsilon(x, t, rows)
            x, _ = ddim_step(eps, t, t_prev, x, hand.alphas, eta=1.0, generators=generators)
    same(first("draft"), hand.finish(-reward(hand.picture(x), rows).mean()))


def test_a_first_step_of_nft_goes_towards_good_samples_and_away_from_bad_ones(pipe):
    hand = Hand(pipe, SMALL)
    with torch.no_grad():
        texts, made = hand.sampled(2)
        r = reward(hand.picture(made.latents), texts).view(2, 2)
    rho = (((r - r.mean(1, keepdim=True)) / r.std(1, correction=0, keepdim=True) / 2).clamp(-1, 1) / 2 + 0.5).flatten()
    rows, _, t, a, x_t = noisings(hand, made.latents)
    clean = (x_t - (1 - a).sqrt() * hand.epsilon(x_t, t, [texts[i] for i in rows])) / a.sqrt()
    error = clean - made.latents[rows]
    scale = error.detach().abs().flatten(1).mean(1)
    sign = 2 * rho[rows] - 1  # at the start both predictions agree: the loss moves by (2 rho - 1) of the error
    same(first("nft"), hand.finish((sign * error.square().flatten(1).mean(1) / scale).mean()))


def test_ratios_are_one_at_the_start_and_move_afterwards(pipe):
    settings = ArenaSettings(**{**vars(SMALL), "trained_steps": 1, "epochs": 1})
    assert trained_state(pipe, "ddpo", settings)[1][0]["ratio"] == 1.0
    twice = trained_state(pipe, "ddpo", ArenaSettings(**{**vars(settings), "epochs": 2, "kl": 1.0}))[1][0]
    assert twice["ratio"] != 1.0 and twice["kl"] > 0


def test_a_reward_without_spread_trains_nothing(pipe):
    def flat(images, prompts):
        return torch.zeros(len(images))

    for name in ("raft", "ddpo", "nft"):
        with Policy(pipe, PROMPTS, flat, seed=5, settings=SMALL) as policy:
            start = policy.state()
            policy.run(METHODS[name], 1, name=name)
            end = policy.state()
        moved = max(float((end[k] - start[k]).abs().max()) for k in start)
        assert moved < 1e-4 or name == "nft" and moved <= 1.1 * SMALL.lr  # AdamW makes steps of rounding errors
        if name != "nft":
            assert moved == 0.0


# ---- costs -----------------------------------------------------------------------------------------------------------


def test_prices_are_ratios_of_operations(pipe):
    assert 0.01 < prices(pipe).decode < 100


BY_HAND = {  # U-Net rows forward and backward of one update, decoded pictures forward and backward, queries
    "raft": (4 * 3 + 4, 4, 4, 0, 4),  # 4 pictures of 3 steps; 2 kept, 2 draws
    "rwr": (4 * 3 + 8, 8, 4, 0, 4),
    "ddpo": (4 * 3 + 8, 8, 4, 0, 4),  # 2 of 3 steps
    "grpo": (4 * 3 + 8, 8, 4, 0, 4),
    "draft": (2 * 3, 4, 2, 2, 2),  # one picture a prompt, the last 2 steps with gradient
    "nft": (4 * 3 + 16, 8, 4, 0, 4),  # 2 draws, each by the old and the new policy
}


@pytest.mark.parametrize("name", BY_HAND)
def test_the_ledger_equals_counts_by_hand_and_the_price_that_was_named(pipe, name):
    with Policy(pipe, PROMPTS, reward, seed=5, settings=SMALL) as policy:
        policy.run(METHODS[name], 2, name=name)
        counts, log, price = policy.ledger.counts, policy.log, policy.prices
    forward, backward, decoded, decoded_back, queries = BY_HAND[name]
    assert counts.unet_rows == 2 * forward and counts.unet_backward_rows == 2 * backward
    assert counts.vae_decode_rows == 2 * decoded and counts.vae_decode_backward_rows == 2 * decoded_back
    assert log[-1]["queries"] == 2 * queries
    one = forward + 2 * backward + price.decode * (decoded + 2 * decoded_back)
    assert log[0]["nfe"] == pytest.approx(one) and log[1]["nfe"] == pytest.approx(2 * one)
    assert update_price(name, SMALL, price) == pytest.approx(one)


@pytest.mark.parametrize("name", ["raft", "ddpo", "draft", "dpo", "kto"])
def test_a_budget_too_small_for_one_update_names_the_number_needed(pipe, name):
    settings = ArenaSettings(**{**vars(SMALL), "candidates": 2, "batch": 2})
    with pytest.raises(BudgetError, match=r"too small, one update needs (\d+)") as found:
        enter(name, pipe, PROMPTS, reward, nfe=5, seed=0, settings=settings)
    needed = int(str(found.value).rsplit(" ", 1)[1]) + 1
    assert enter(name, pipe, PROMPTS, reward, nfe=needed, seed=0, settings=settings).training <= needed
    assert adapter_names(pipe.unet) == ()


@pytest.mark.parametrize("name", ["best_of_n", "fk", "guidance", "fabric"])
def test_a_search_with_too_little_per_picture_names_the_number_needed(pipe, name):
    with pytest.raises(BudgetError, match="per delivered picture are too few"):
        enter(name, pipe, PROMPTS, reward, nfe=1, delivered=10, seed=0, settings=SMALL)


@pytest.mark.parametrize("name", ["base", "best_of_n", "fk", "guidance", "fabric"])
def test_deliveries_cost_what_was_said(pipe, name):
    entry = enter(name, pipe, PROMPTS, reward, nfe=3 * 60, delivered=3, seed=0, settings=SMALL)
    latents = entry.deliver(PROMPTS, 4)
    assert latents.shape == (3, 4, 8, 8) and entry.training == 0 and entry.state is None
    with entry.ledger:
        decode_latents(pipe, latents)  # the delivered picture is looked at
    paid = prices(pipe).nfe(entry.ledger.counts) / 3
    extra = prices(pipe).decode if name in ("best_of_n", "fk") else 0  # it was decoded when it was scored
    if name == "fabric":
        assert paid <= entry.per_image + prices(pipe).decode
    elif name == "guidance":
        assert paid == pytest.approx(entry.per_image + prices(pipe).decode)
    else:
        assert paid == pytest.approx(entry.per_image + extra)
    assert torch.equal(latents, entry.deliver(PROMPTS, 4))


# ---- behaviour -------------------------------------------------------------------------------------------------------


def test_best_of_n_delivers_the_best_of_what_it_looked_at(pipe):
    nfe = 3 * 4 * prices(pipe).sampled(3)  # four more of each
    entry = enter("best_of_n", pipe, PROMPTS, reward, nfe=nfe, delivered=3, seed=0, settings=SMALL)
    latents, scores = entry.deliver(PROMPTS, 4), entry.extra["scores"]
    assert scores.shape[1] == 5
    with torch.no_grad():
        found = reward(decode_latents(pipe, latents).clamp(-1, 1), PROMPTS)
    torch.testing.assert_close(found, scores.max(1).values, atol=1e-4, rtol=1e-4)


def test_guidance_of_strength_zero_is_plain_sampling_and_raises_the_reward_otherwise(pipe):
    def run(scale):
        settings = ArenaSettings(**{**vars(SMALL), "scale": scale, "eta": 0.0})
        entry = enter("guidance", pipe, PROMPTS, reward, nfe=3000, delivered=3, seed=0, settings=settings)
        return entry.deliver(PROMPTS, 4)

    plain = sample_latents(
        pipe, PROMPTS, generators=image_generators(3, 4), steps=3, guidance_scale=1.0, eta=0.0
    ).latents  # fmt: skip
    torch.testing.assert_close(run(0.0).detach(), plain, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        scores = [float(reward(decode_latents(pipe, x).clamp(-1, 1), PROMPTS).mean()) for x in (plain, run(20.0))]
    assert scores[1] > scores[0]


def test_steering_without_strength_keeps_every_particle_and_delivers_the_best(pipe):
    weak = ArenaSettings(**{**vars(SMALL), "strength": 0.0})
    options = {"nfe": 3 * 60, "delivered": 3, "seed": 0}
    fk = enter("fk", pipe, PROMPTS, reward, settings=weak, **options)
    k = round(fk.per_image / (prices(pipe).sampled(3) + prices(pipe).decode))
    with torch.no_grad():
        latents = fk.deliver(PROMPTS, 4)
        rows = [p for p in PROMPTS for _ in range(k)]
        made = sample_latents(
            pipe, rows, generators=image_generators(len(rows), 4), steps=3, eta=1.0, guidance_scale=1.0
        )
        scores = reward(decode_latents(pipe, made.latents).clamp(-1, 1), rows).view(3, k)
    best = made.latents.view(3, k, 4, 8, 8)[torch.arange(3), scores.argmax(1)]
    torch.testing.assert_close(latents, best, atol=1e-5, rtol=1e-5)


def test_more_updates_of_draft_raise_the_reward_of_new_pictures(pipe):
    settings = ArenaSettings(**{**vars(SMALL), "eta": 1.0, "lr": 3e-3})
    before = enter("base", pipe, PROMPTS, reward, nfe=0, seed=0, settings=settings).deliver(PROMPTS * 4, 9)
    after = enter("draft", pipe, PROMPTS, reward, nfe=600, seed=0, settings=settings).deliver(PROMPTS * 4, 9)
    with torch.no_grad():
        r = [float(reward(decode_latents(pipe, x).clamp(-1, 1), PROMPTS * 4).mean()) for x in (before, after)]
    assert r[1] > r[0]


def test_a_policy_like_the_base_has_no_divergence_and_a_trained_one_has(pipe):
    state, _ = trained_state(pipe, "draft", updates=3)
    latents, kl = path_divergence(pipe, state, PROMPTS, seed=4, settings=SMALL)
    assert bool((kl > 0).all())
    entry = enter("base", pipe, PROMPTS, reward, nfe=0, seed=0, settings=SMALL)
    fresh = {name: torch.zeros_like(value) for name, value in state.items()}
    plain, none = path_divergence(pipe, fresh, PROMPTS, seed=4, settings=SMALL)
    torch.testing.assert_close(none, torch.zeros(3), atol=1e-6, rtol=0)
    torch.testing.assert_close(plain, entry.deliver(PROMPTS, 4), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match="eta is 0"):
        path_divergence(pipe, state, PROMPTS, seed=4, settings=ArenaSettings(**{**vars(SMALL), "eta": 0.0}))


@pytest.mark.parametrize("name", ["raft", "nft"])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not(pipe, tmp_path, name):
    options = {"settings": SMALL, "seed": 1}
    cost = update_price(name, SMALL, prices(pipe))
    whole = enter(name, pipe, PROMPTS, reward, nfe=3 * cost, **options)
    half = {"folder": tmp_path, "save_every": 1}
    enter(name, pipe, PROMPTS, reward, nfe=3 * cost, callback=lambda record: record["update"] == 2, **options, **half)
    resumed = enter(name, pipe, PROMPTS, reward, nfe=3 * cost, **options, **half)
    assert resumed.log == whole.log and len(whole.log) == 3
    assert all(torch.equal(whole.state[k], resumed.state[k]) for k in whole.state)


def test_a_run_goes_on_from_its_own_checkpoint_alone(pipe, tmp_path):
    """Other prompts, another base, other adapters beside it, another reward by name: named, and nothing is trained."""
    cost = update_price("raft", SMALL, prices(pipe))
    options = {"nfe": cost, "seed": 1, "settings": SMALL, "folder": tmp_path}
    enter("raft", pipe, PROMPTS, reward, **options)
    with pytest.raises(CheckpointError, match="with other prompts: choose"):
        enter("raft", pipe, PROMPTS[::-1], reward, **options)
    with pytest.raises(CheckpointError, match="with other reward: choose"):
        enter("raft", pipe, PROMPTS, Scorer("brightness", reward), **options)
    weight = pipe.unet.conv_in.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight += 0.25
    with pytest.raises(CheckpointError, match="with other base: choose"):
        enter("raft", pipe, PROMPTS, reward, **options)
    with torch.no_grad():
        weight.copy_(kept)
    add_lora(pipe.unet, "style", rank=1, seed=0)
    try:
        with pytest.raises(CheckpointError, match="with other adapters: choose"):
            enter("raft", pipe, PROMPTS, reward, **options)
    finally:
        remove_lora(pipe.unet, "style")
    assert len(enter("raft", pipe, PROMPTS, reward, **options).log) == 1


def test_the_pipeline_is_as_before_after_every_contender(pipe):
    before, grads = base_fingerprint(pipe.unet), [p.requires_grad for p in pipe.unet.parameters()]
    settings = ArenaSettings(**{**vars(SMALL), "candidates": 2, "batch": 2})
    for name in ("grpo", "alignprop", "dpo", "kto", "fk"):
        enter(name, pipe, PROMPTS, reward, nfe=400, seed=0, delivered=3, settings=settings).deliver(PROMPTS, 1)
    assert base_fingerprint(pipe.unet) == before and adapter_names(pipe.unet) == ()
    assert [p.requires_grad for p in pipe.unet.parameters()] == grads


def test_dpo_asks_nothing_after_labelling(pipe):
    settings = ArenaSettings(**{**vars(SMALL), "candidates": 2, "batch": 2})
    log = enter("dpo", pipe, PROMPTS, reward, nfe=600, seed=0, settings=settings).log
    assert log[0]["queries"] == log[-1]["queries"] > 0
    assert log[-1]["nfe"] > log[0]["nfe"]


# ---- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (lambda images, prompts: torch.full((len(images),), math.nan), "4 scores that are NaN"),
        (lambda images, prompts: images.mean((2, 3)), r"returned \(4, 3\), expected a tensor of shape \(4,\)"),
        (lambda images, prompts: 0.5, "returned float"),
    ],
)
def test_a_reward_that_fails_is_refused(pipe, bad, message):
    with pytest.raises(ValueError, match=message):
        enter("raft", pipe, PROMPTS, bad, nfe=500, seed=0, settings=SMALL)
    assert adapter_names(pipe.unet) == ()


def test_a_reward_without_gradient_cannot_be_climbed(pipe):
    def detached(images, prompts):
        return reward(images, prompts).detach()

    for name in ("draft", "guidance"):
        with pytest.raises(ValueError, match="gives no gradient"):
            enter(name, pipe, PROMPTS, detached, nfe=900, delivered=3, seed=0, settings=SMALL).deliver(PROMPTS, 1)


def test_groups_of_one_are_refused_before_anything_runs():
    with pytest.raises(ValueError, match="groups of one"):
        ArenaSettings(group=1)
    with pytest.raises(ValueError, match="1 .. 8"):
        ArenaSettings(k=9)
    with pytest.raises(ValueError, match="no contender 'ppo'"):
        enter("ppo", None, PROMPTS, reward, nfe=1, seed=0)


@pytest.mark.optin
@pytest.mark.parametrize("name", CONTENDERS)
def test_one_step_of_every_contender_on_the_module_tree_of_stable_diffusion(tmp_path, name):
    """Random weights, guidance as on the gpu tier, one prompt, one update."""
    sd15 = load_pipeline("gpu", device="cpu", folder=write_layout(tmp_path / "model"))
    settings = ArenaSettings(
        steps=2, prompts=1, group=2, rank=2, draws=1, trained_steps=1, k=1, checks=1, candidates=2, batch=2,
        guidance_scale=3.0, precision="fp32",
    )  # fmt: skip

    def red(images, prompts):
        return images[:, 0].mean((1, 2))

    price = prices(sd15)
    needed = {"dpo": 400 + 20 * price.decode, "kto": 400 + 20 * price.decode}
    nfe = needed.get(name) or (update_price(name, settings, price) if name in METHODS else 60 + 10 * price.decode)
    entry = enter(name, sd15, ["a red hat", "a blue hat"], red, nfe=nfe, delivered=1, seed=0, settings=settings)
    latents = entry.deliver(["a red hat"], 1)
    assert latents.shape[0] == 1 and bool(torch.isfinite(latents).all())
    assert entry.training <= nfe and (entry.state is None) == (name not in METHODS and name not in needed)
