"""What preference training at scale costs, before a GPU is rented: GPU hours, days, disk and memory (`labkit plan`).

    labkit plan --pairs 1e6 --gpus 8                  candidates are made and judged, then trained on
    labkit plan --pairs 1e6 --gpus 8 --pictures       the pairs exist as pictures: encode and train

A pair passes four stages: candidates are sampled and decoded, a judge scores them, pictures that exist are encoded
instead, pairs are trained on. What one of each multiplies is counted on PyTorch's meta device (`labkit.models.sizing`);
how fast a GPU multiplies is assumed (`PEAKS`, `REACHED`), so hours are a forecast, compared with no GPU yet. Text
encoders, the loading of files, stops and restarts are left out. Bytes are those that labkit writes and holds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from labkit.dpo.config import DPOConfig
from labkit.models.sizing import COSTS, FREE_GB, PEAKS, REACHED, TooSmall, sizes_for

FLOAT = 4  # bytes: latents and text states are stored in float32
LATENT = {"sd15": 4 * 64 * 64, "sdxl": 4 * 128 * 128}  # numbers in the latents of one picture
TEXT = {"sd15": 77 * 768, "sdxl": 77 * 2048 + 1280}  # numbers in the states of one prompt; SDXL's pooled text too
JUDGE = "pickscore"
KNOBS = ("candidates", "sampler_steps", "guidance", "epochs")


@dataclass(frozen=True)
class Plan:
    """A run, in numbers of everything that costs.

    Args:
        pairs: preference pairs to train on.
        gpus: of one kind, all at work in every stage.
        gpu: a kind of `labkit.models.sizing.PEAKS`.
        model: "sd15" (512 x 512 pixels) or "sdxl" (1024 x 1024).
        candidates: pictures made for one pair, the best against the worst; 2 or more.
        sampler_steps: of each picture. guided: whether each step has two rows, with and without the prompt.
        epochs: how often a pair is trained on.
        prompts: distinct ones; None: one for each pair.
        pictures: the pairs exist as pictures, so nothing is made or judged, and both are encoded.
        reached: the share of a GPU's peak that the networks reach, in (0, 1].

    Raises:
        ValueError: a number that is not positive, fewer than 2 candidates, an unknown model or GPU.
        TooSmall: (when asked for hours) the GPU does not hold one pair.
    """

    pairs: int = 1_000_000
    gpus: int = 8
    gpu: str = "A100"
    model: str = "sd15"
    candidates: float = 8
    sampler_steps: float = 20
    guided: bool = True
    epochs: float = 2
    prompts: int | None = None
    pictures: bool = False
    reached: float = REACHED

    def __post_init__(self) -> None:
        for name, known in (("gpu", PEAKS), ("model", LATENT)):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(known)}")
        for name in ("pairs", "gpus", "sampler_steps", "epochs", "reached"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}, expected a positive number")
        if self.candidates < 2:
            raise ValueError(
                f"candidates is {self.candidates}, expected 2 or more: one has nothing to be compared with"
            )
        if self.reached > 1:
            raise ValueError(f"reached is {self.reached}, expected a share up to 1")
        if self.prompts is not None and not 0 < self.prompts <= self.pairs:
            raise ValueError(f"prompts is {self.prompts}, expected 1 .. {self.pairs}")

    @cached_property
    def recomputed(self) -> bool:
        """Whether activations are recomputed in backward, since the GPU does not hold them."""
        options = {"rows": 16, "steps": 1, "free_gb": FREE_GB[self.gpu], "peak_tflops": PEAKS[self.gpu]}
        return sizes_for("train", model=self.model, **options).checkpointing

    @property
    def tflop(self) -> dict[str, float]:
        """TFLOP of each stage, for one pair."""
        sample, score, encode = COSTS[self.model, "sample"], COSTS[JUDGE, "score"], COSTS[self.model, "encode"]
        train = COSTS[self.model, "train again" if self.recomputed else "train"]
        step = sample.row_tflop if self.guided else sample.row_tflop / 2
        made = 0 if self.pictures else self.candidates
        return {
            "generate": made * (self.sampler_steps * step + sample.row_once_tflop),
            "score": made * score.row_tflop,
            "encode": 2 * encode.row_tflop if self.pictures else 0.0,
            "train": self.epochs * train.row_tflop,
        }

    @property
    def gpu_hours(self) -> dict[str, float]:
        """Hours of one GPU for each stage, for all pairs."""
        speed = 3600 * self.reached * PEAKS[self.gpu]  # TFLOP per hour
        return {stage: self.pairs * tflop / speed for stage, tflop in self.tflop.items()}

    @property
    def days(self) -> float:
        """Days until all is done, the GPUs sharing every stage evenly."""
        return sum(self.gpu_hours.values()) / self.gpus / 24

    @property
    def disk_gb(self) -> dict[str, float]:
        """10^9 bytes of latents: of all candidates, and of the winners and losers, which are enough to train on."""
        latent = FLOAT * LATENT[self.model] / 1e9
        made = 0 if self.pictures else self.candidates
        return {"candidates": self.pairs * made * latent, "pairs": self.pairs * 2 * latent}

    @property
    def states_gb(self) -> float:
        """10^9 bytes that the states of all distinct prompts take."""
        return (self.prompts or self.pairs) * FLOAT * TEXT[self.model] / 1e9

    @property
    def kept_gb(self) -> float:
        """What a process keeps of them by default: with more prompts each step encodes its own."""
        return min(self.prompts or self.pairs, DPOConfig.kept_prompts) * FLOAT * TEXT[self.model] / 1e9

    def halved(self, knob: str) -> Plan:
        """The plan with one of KNOBS at half ("guidance": without it, which is half of the U-Net's rows)."""
        if knob == "guidance":
            return replace(self, guided=False)
        if knob == "candidates":
            return replace(self, candidates=max(2, self.candidates / 2))
        return replace(self, **{knob: getattr(self, knob) / 2})

    @property
    def saved(self) -> dict[str, float]:
        """The share of all GPU hours that halving each knob saves, the largest first. The first one dominates."""
        whole = sum(self.tflop.values())
        shares = {knob: 1 - sum(self.halved(knob).tflop.values()) / whole for knob in KNOBS}
        return dict(sorted(shares.items(), key=lambda item: -item[1]))


WORDS = {
    "en": {
        "head": ["stage", "TFLOP a pair", "GPU hours", "share"], "total": "total",
        "stages": {"generate": "generate", "score": "score", "encode": "encode", "train": "train"},
        "knobs": {
            "candidates": "half as many candidates", "sampler_steps": "half as many sampler steps",
            "guidance": "no guidance", "epochs": "half as many epochs",
        },
        "saves": ["change", "saves"],
    },
    "ja": {
        "head": ["段階", "1ペアのTFLOP", "GPU時間", "割合"], "total": "合計",
        "stages": {"generate": "生成", "score": "採点", "encode": "エンコード", "train": "学習"},
        "knobs": {
            "candidates": "候補の枚数を半分にする", "sampler_steps": "サンプラーのステップ数を半分にする",
            "guidance": "誘導をやめる", "epochs": "エポック数を半分にする",
        },
        "saves": ["変更", "減る割合"],
    },
}  # fmt: skip


def tables(plan: Plan, lang: str = "en") -> str:
    """Stages, then knobs, as two Markdown tables in a language of WORDS; what costs nothing is left out."""
    words, tflop, hours = WORDS[lang], plan.tflop, plan.gpu_hours
    whole = sum(hours.values())
    rows = [
        [words["stages"][stage], f"{tflop[stage]:,.1f}", f"{hours[stage]:,.0f}", f"{hours[stage] / whole:.1%}"]
        for stage in tflop
        if tflop[stage]
    ]
    rows.append([words["total"], f"{sum(tflop.values()):,.1f}", f"{whole:,.0f}", "100%"])
    knobs = [[words["knobs"][knob], f"{share:.0%}"] for knob, share in plan.saved.items() if share]
    return _table(words["head"], rows) + "\n\n" + _table(words["saves"], knobs)


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def report(plan: Plan) -> str:
    """The tables, and what they rest on, for a terminal."""
    disk, made = plan.disk_gb, "pictures that exist"
    if not plan.pictures:
        made = f"{plan.candidates:g} candidates a pair, {plan.sampler_steps:g} steps"
        made += ", guided" if plan.guided else ", without guidance"
    lines = [
        f"{plan.pairs:,} pairs, {plan.model}: {made}, {plan.epochs:g} epochs",
        f"{plan.gpus} x {plan.gpu}: {plan.days:.1f} days, if a GPU reaches {plan.reached:.0%} of its peak of "
        f"{PEAKS[plan.gpu]:g} TFLOP/s (assumed, not measured)",
        "",
        tables(plan),
        "",
        f"disk: {disk['pairs']:,.0f} GB for winners and losers"
        + (f", {disk['candidates']:,.0f} GB if all candidates are kept" if disk["candidates"] else ""),
        f"states of {plan.prompts or plan.pairs:,} distinct prompts: {plan.states_gb:,.1f} GB, of which no process "
        f"keeps more than {plan.kept_gb:,.1f} GB (DPOConfig.kept_prompts)",
    ]
    if plan.recomputed:
        lines.append("training recomputes activations: the GPU does not hold them")
    return "\n".join(lines)


# ---- labkit plan ---------------------------------------------------------------------------------------------------


def whole(text: str) -> int:
    """A whole number, also as 1e6. Raises ValueError for others."""
    if not float(text).is_integer():
        raise ValueError(f"{text} is no whole number")
    return int(float(text))


def add_parser(subparsers: Any) -> None:
    """Register `labkit plan`."""
    parser = subparsers.add_parser(
        "plan",
        help="forecast what preference training at scale costs",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    plan = Plan()
    parser.add_argument("--pairs", type=whole, default=plan.pairs, help=f"default: {plan.pairs:,}")
    parser.add_argument("--gpus", type=whole, default=plan.gpus, help=f"default: {plan.gpus}")
    parser.add_argument("--gpu", choices=PEAKS, default=plan.gpu, help=f"default: {plan.gpu}")
    parser.add_argument("--model", choices=LATENT, default=plan.model, help=f"default: {plan.model}")
    parser.add_argument("--candidates", type=whole, default=plan.candidates, help=f"a pair, default: {plan.candidates}")
    parser.add_argument(
        "--sampler-steps", type=whole, default=plan.sampler_steps, help=f"a candidate, default: {plan.sampler_steps}"
    )
    parser.add_argument("--no-guidance", dest="guided", action="store_false", help="one row a step, not two")
    parser.add_argument("--epochs", type=float, default=plan.epochs, help=f"default: {plan.epochs}")
    parser.add_argument("--prompts", type=whole, help="distinct prompts (default: one for each pair)")
    parser.add_argument(
        "--pictures", action="store_true", help="the pairs exist as pictures: nothing is made or judged"
    )
    parser.add_argument(
        "--reached", type=float, default=plan.reached, metavar="SHARE", help=f"of the peak, default: {plan.reached}"
    )
    parser.set_defaults(func=run)


def run(args: argparse.Namespace) -> int:
    """`labkit plan`: 0 printed, 2 a number that does not fit."""
    given: Mapping[str, Any] = {name: getattr(args, name) for name in Plan.__dataclass_fields__}
    try:
        print(report(Plan(**given)))
    except (ValueError, TooSmall) as error:
        print(f"labkit plan: {error}", file=sys.stderr)
        return 2
    return 0
