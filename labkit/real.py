"""Stable Diffusion in the place of the course's small model: what the last section of lessons 03 to 08 runs on.

A lesson's method is written for any pipeline, any judge, any sizes. `load` gives all three of a tier as one object, so
that one cell serves every tier:

    tier         pictures                         reward: chooses and trains   judge: only looks    eyes: embeds
    smoke, cpu   the pipeline that is handed in   PortraitCLIP                 AttributeReader      PortraitCLIP
    gpu          Stable Diffusion 1.5, or SDXL    PickScore, or another one    CLIP ViT-L/14        CLIP ViT-L/14

On smoke and cpu `model="portrait-flow"` puts the course's flow-matching transformer (SD3's layout) in the place of the
pipeline that is handed in; judges and prompts stay.

The judges of portraits ask three things, as lesson 08 does: what the prompt names, no sunglasses, a cool background. So
there is something to choose between pictures that all obey the prompt.

How much is drawn and trained is a plan of the tier; how much of it at once is what the GPU has room for
(`labkit.models.sizing`), known before a single weight is loaded. Published weights were never at hand where this was
written: the tests run every lesson's cell on random weights in the published layouts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor

from labkit.diffusion import denoiser_of, image_generators, sample
from labkit.dpo import DPOConfig, Scorer, faithfulness
from labkit.dpo.gpu_scorers import load_scorer
from labkit.dpo.own import default_config
from labkit.dpo.scorers import clip_image_features, clip_scorer
from labkit.errors import ModelLoadError
from labkit.models import load_clip, load_flow, load_pipeline, load_reader
from labkit.models.clip import captionable_values, value_embeddings
from labkit.models.load import FLOW
from labkit.models.paths import local_model
from labkit.models.published import CLIP, PICKSCORE, SDXL
from labkit.models.sizing import CPU_TFLOPS, FLOOR, Sizes, free_memory, gpu_name, sizes_for
from labkit.pairwise import portrait_wording
from labkit.portraits.parse import parse_caption
from labkit.survey.world import FORBIDDEN, LIKED, gold_axes, open_prompts

NAMES = {"sd15": "Stable Diffusion 1.5", "sdxl": "SDXL"}
SMALL_NAMES = {FLOW: "PortraitFlow"}  # the choices of the tiers smoke and cpu
REWARDS = {
    "pickscore": "PickScore", "hpsv2.1": "HPSv2.1", "imagereward": "ImageReward", "aesthetic": "LAION aesthetic",
    "clip-iqa": "CLIP-IQA",
}  # fmt: skip
NEED_UNET = ("08",)  # lessons whose methods are written for a U-Net and DDIM: log-probabilities of steps, counted calls
UNET_GB = {"sd15": 1.72, "sdxl": 5.14}  # in half precision: runs one after the other keep a copy of the base
SMALL_BATCH = 64  # pictures at once on the tiers smoke and cpu
AT_ONCE = 16  # pictures that are drawn at once, at the most: more is hardly quicker, and the forecast may be wrong
SUBJECTS = (
    "a red fox", "a glass teapot", "a lighthouse", "a bicycle", "a bowl of ramen", "a tabby cat", "a violin",
    "a tin robot",
)  # fmt: skip
SCENES = ("in fresh snow", "on a market stall", "under a starry sky", "against a brick wall")


@dataclass(frozen=True)
class Plan:
    """How much a tier does.

    prompts: to train on, and as many that are held out; candidates: pictures for each in a pool; steps,
    guidance_scale: of the sampler; train_steps of `pairs` pairs, lr, rank, targets, kappa: of DPO; text_lr: of a text
    tower (PC-CLIP).
    """

    prompts: int
    candidates: int
    steps: int
    guidance_scale: float
    train_steps: int
    pairs: int
    lr: float
    rank: int
    targets: str
    kappa: float
    text_lr: float


SMALL = {
    "guidance_scale": 3.0,
    "lr": 4e-4,
    "rank": 16,
    "targets": "all",
    "kappa": 400.0,
    "text_lr": 5e-4,
}  # as in lesson 05
PLANS = {
    "smoke": Plan(prompts=4, candidates=2, steps=2, train_steps=2, pairs=2, **SMALL),
    "cpu": Plan(prompts=8, candidates=4, steps=8, train_steps=20, pairs=4, **SMALL),
    "gpu": Plan(
        16, 4, 25, 5.0, train_steps=60, pairs=12, lr=1e-4, rank=8, targets="attention", kappa=2500.0, text_lr=1e-5
    ),
}
# What differs for portrait-flow. Its terms compare errors of velocities, 0.34 on portraits at all noise levels, where
# those of portrait-sd's noise are 0.014: twenty times smaller. With the same kappa the loss was 0.000 after the cpu
# tier's 20 steps, and the pictures gained least; divided by sixteen kappa is about as strong as lesson 05's.
FLOW_PLAN = {"kappa": 25.0}


def plan_of(tier: str, model: str = "sd15") -> Plan:
    """How much a tier does with a model.

    Raises:
        ValueError: the tier has no such model.
    """
    known = NAMES if tier == "gpu" else NAMES | SMALL_NAMES
    if model not in known:
        raise ValueError(f"model is {model!r}, expected one of {', '.join(known)}")
    return replace(PLANS[tier], **FLOW_PLAN) if model in SMALL_NAMES else PLANS[tier]


@dataclass(frozen=True)
class Forecast:
    """What a section will take on the GPU, or portrait-flow on a core of the CPU: counted work, not measured.

    Attributes:
        gpu: its name, or "CPU". images, train_steps: in all. draw, train: sizes of both (train: None where nothing
            trains).
        gigabytes: at the most, judges included; free_gb: there are. minutes: of drawing and training.
    """

    gpu: str
    images: int
    train_steps: int
    draw: Sizes
    train: Sizes | None
    gigabytes: float
    free_gb: float
    minutes: float


def forecast(*, model: str = "sd15", tier: str = "gpu", rounds: int = 1, pools: int = 0, runs: int = 0) -> Forecast:
    """Sizes of the gpu tier that fit beside the judges, and what they take; without a GPU those of a T4. Of
    portrait-flow: what its tier takes here.

    Args:
        model: "sd15" or "sdxl", or "portrait-flow". tier: "smoke" or "cpu" of portrait-flow.
        rounds: how often one picture per prompt is drawn. pools: of candidates.
        runs: trainings with DPO.

    Raises:
        ValueError: another model. TooSmall: the GPU has no room for one image or one pair; one line.
    """
    if model in SMALL_NAMES:
        return _on_a_core(plan_of(tier, model), model, rounds, pools, runs)
    plan, judges = plan_of("gpu", model), (PICKSCORE.size + CLIP.size) / 1e9  # float32 in their files and in memory
    free = room()
    judges += UNET_GB[model] if runs > 1 else 0.0
    images = plan.prompts * (rounds + pools * plan.candidates)
    draw = sizes_for("sample", model=model, rows=max(images, 1), steps=plan.steps, free_gb=free - judges, most=AT_ONCE)
    found, steps = [draw], runs * plan.train_steps
    if runs:
        found.append(sizes_for("train", model=model, rows=plan.pairs, steps=steps, free_gb=free - judges))
    return Forecast(
        gpu_name() or FLOOR, images, steps, draw, found[1] if runs else None,
        judges + max(one.gigabytes for one in found), free, sum(one.minutes for one in found),
    )  # fmt: skip


def _on_a_core(plan: Plan, model: str, rounds: int, pools: int, runs: int) -> Forecast:
    free, images = psutil.virtual_memory().available / 1e9, plan.prompts * (rounds + pools * plan.candidates)
    given = {"model": model, "free_gb": free, "peak_tflops": CPU_TFLOPS}
    draw, train = sizes_for("sample", rows=images, steps=plan.steps, most=SMALL_BATCH, **given), None
    if runs:
        train = sizes_for("train", rows=plan.pairs, steps=runs * plan.train_steps, **given)
    found = [draw, *([train] if train else [])]
    return Forecast(
        "CPU", images, runs * plan.train_steps, draw, train, max(one.gigabytes for one in found), free,
        sum(one.minutes for one in found),
    )  # fmt: skip


def room() -> float:
    """Free memory in 10^9 bytes; what this process holds since an earlier `load` counts as free, it is used again."""
    again = torch.cuda.is_available() and published.cache_info().currsize
    return free_memory() + (torch.cuda.memory_reserved() / 1e9 if again else 0.0)


@dataclass(frozen=True)
class Real:
    """A pipeline, who judges its pictures, and the tier's sizes.

    Attributes:
        name: of the model. pipe: a Stable Diffusion or SDXL pipeline, or that of PortraitFlow.
        reward: the judge that chooses and trains. judge: another one that never does, so that it can prove something.
            names: role -> name of both.
        prompts, held_out: as many of each, all different. candidates: pictures for each prompt in a pool.
        said: prompt -> attribute -> value that it names. wording: attribute -> value -> words (`labkit.pairwise`).
        sampling: steps, guidance_scale and batch_size for every function that draws.
        config, kappa: of a run of DPO. text_lr: for training a text tower. seed: of all that is drawn.
    """

    name: str
    pipe: Any
    reward: Scorer
    judge: Scorer
    names: Mapping[str, str]
    eyes: tuple[Any, Any]  # (clip, inputs)
    prompts: list[str]
    held_out: list[str]
    said: Mapping[str, Mapping[str, str]]
    wording: Mapping[str, Mapping[str, str]]
    candidates: int
    sampling: Mapping[str, Any]
    config: DPOConfig
    kappa: float
    text_lr: float
    seed: int

    @property
    def denoiser(self) -> torch.nn.Module:
        """The network that adapters go on: the pipeline's U-Net, or its transformer."""
        return denoiser_of(self.pipe)

    def draw(self, prompts: Sequence[str], *, first: int = 0) -> Tensor:
        """One picture for each prompt [n, 3, H, W] in [-1, 1] on the CPU; picture i has noise number first + i."""
        generators = image_generators(len(prompts), self.seed, first=first)
        return sample(self.pipe, list(prompts), generators=generators, **self.sampling).cpu()

    def opinions(self, images: Tensor, prompts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """What reward and judge say of pictures [n, 3, H, W] for their prompts: [n] each."""
        return self.reward(images, prompts).numpy(), self.judge(images, prompts).numpy()

    @torch.no_grad()
    def embed(self, images: Tensor) -> Tensor:
        """Unit-length CLIP features [n, d] of pictures [n, 3, H, W] in [-1, 1], on CLIP's device."""
        return clip_image_features(*self.eyes, images, batch_size=32)


def load(
    tier: str, device: torch.device | str, pipe: Any, *, seed: int = 0, model: str = "sd15", reward: str = "pickscore",
    rounds: int = 1, pools: int = 0, runs: int = 0,
) -> Real:  # fmt: skip
    """What a section runs on.

    Args:
        tier: "smoke", "cpu" or "gpu". device: where the models of tier gpu go.
        pipe: the small pipeline of the lesson, which stands in on smoke and cpu.
        model: of tier gpu, "sd15" or "sdxl"; "portrait-flow" on the others, in the place of `pipe`.
        reward: of tier gpu, a name of `labkit.dpo.gpu_scorers.NAMES`.
        rounds, pools, runs: how much will be drawn and trained, see `forecast`.

    Raises:
        ValueError: the tier has no such model. TooSmall: the GPU has no room; nothing was loaded. ModelLoadError:
            weights are missing; one line says which.
    """
    plan = plan_of(tier, model)
    if tier != "gpu":
        small, batch = stand_ins(), SMALL_BATCH
        if model in SMALL_NAMES:
            pipe = load_flow(device)
        prompts = open_prompts(2 * plan.prompts, 7000 + seed)
        config, wording = _config(plan, seed), portrait_wording()
        said = {text: parse_caption(text) for text in prompts}
        parts = {"name": SMALL_NAMES.get(model, "PortraitSD"), "pipe": pipe, **vars(small)}
    else:
        found = forecast(model=model, rounds=rounds, pools=pools, runs=runs)
        large, batch = published(model, reward, str(device)), found.draw.batch_size
        known, wording = photographs(), words_of_photographs()
        prompts, said = list(known), known
        prompts = prompts[: plan.prompts] + prompts[-plan.prompts :]
        config = replace(_config(plan, seed), precision=default_config(large.pipe).precision)
        if found.train is not None:
            train = found.train
            config = replace(config, micro_batch=train.batch_size, checkpointing=train.checkpointing)
        parts = {"name": NAMES[model], **vars(large)}
    sampling = {"steps": plan.steps, "guidance_scale": plan.guidance_scale, "batch_size": batch}
    return Real(
        **parts, prompts=prompts[: plan.prompts], held_out=prompts[plan.prompts :], candidates=plan.candidates,
        said=said, wording=wording, sampling=sampling, config=config, kappa=plan.kappa, text_lr=plan.text_lr, seed=seed,
    )  # fmt: skip


def _config(plan: Plan, seed: int) -> DPOConfig:
    every = max(1, plan.train_steps // 10)
    return DPOConfig(
        steps=plan.train_steps, batch_size=plan.pairs, lr=plan.lr, rank=plan.rank, targets=plan.targets, warmup=5,
        log_every=every, precision="auto", seed=seed,
    )  # fmt: skip


def photographs() -> dict[str, dict[str, str]]:
    """Every subject in every scene: 32 prompts and what they name; each half has all subjects and all scenes."""
    pairs = [(s, c) for s in range(len(SUBJECTS)) for c in range(len(SCENES))]
    pairs.sort(key=lambda pair: (sum(pair) % 2, pair))
    return {
        f"a photograph of {SUBJECTS[s]} {SCENES[c]}": {"subject": SUBJECTS[s], "scene": SCENES[c]} for s, c in pairs
    }


def words_of_photographs() -> dict[str, dict[str, str]]:
    """How a difference of two photographs is said: "the first has a red fox, the second has a lighthouse"."""
    return {"subject": {s: s for s in SUBJECTS}, "scene": {c: f"a place {c}" for c in SCENES}}


@lru_cache(maxsize=1)
def stand_ins() -> SimpleNamespace:
    """The judges of portraits, in the roles of the published ones."""
    eyes, reader = load_clip("cpu"), load_reader()
    judge = Scorer("attribute-reader/1", lambda images, prompts: gold_axes(reader, images, prompts)["gold"])
    names = {"reward": "PortraitCLIP", "judge": "AttributeReader"}
    return SimpleNamespace(reward=three_axes(*eyes), judge=judge, names=names, eyes=eyes)


def three_axes(clip, inputs) -> Scorer:
    """What the gold judge of lesson 08 asks (`labkit.survey.gold_axes`), answered by PortraitCLIP: in [0, 1]."""
    task = faithfulness(clip, inputs)
    asked = ((FORBIDDEN[0], FORBIDDEN[1:]), LIKED)  # attribute, values
    texts = [value_embeddings(clip, inputs.tokenizer, a, captionable_values(a)) for a, _ in asked]
    columns = [[captionable_values(a).index(v) for v in values] for a, values in asked]

    def score(images: Tensor, prompts: Sequence[str]) -> Tensor:
        pictures, scale = clip_image_features(clip, inputs, images), clip.logit_scale.exp()
        shown = [(scale * pictures @ text.T).softmax(-1)[:, c].sum(1) for text, c in zip(texts, columns, strict=True)]
        return (task(images, prompts) + 1 - shown[0].cpu() + shown[1].cpu()) / 3

    return Scorer("portrait-axes/1", score)


@lru_cache(maxsize=1)
def published(model: str, reward: str, device: str) -> SimpleNamespace:
    """Pipeline and judges of the gpu tier, loaded once."""
    folder = None
    if reward not in REWARDS:
        raise ValueError(f"reward is {reward!r}, expected one of {', '.join(REWARDS)}")
    if model == "sdxl":
        folder = local_model(SDXL.folder)
        if folder is None:
            raise ModelLoadError(
                f"{SDXL.folder} is not in LABKIT_MODELS: fetch it with labkit fetch --tier gpu --model {SDXL.folder}"
            )
    pipe = load_pipeline("gpu", device, folder=folder)
    eyes, names = load_clip("gpu", device), {"reward": REWARDS[reward], "judge": "CLIP"}
    return SimpleNamespace(
        pipe=pipe, reward=load_scorer(reward, device), judge=clip_scorer(*eyes), names=names, eyes=eyes
    )
