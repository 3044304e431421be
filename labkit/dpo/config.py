"""What a run of DPO is, in one frozen object."""

from __future__ import annotations

from dataclasses import dataclass

from labkit.metrics.checks import plain_numbers

CHOICES = {
    "trainable": ("lora", "full"),
    "targets": ("attention", "all"),
    "model": ("unet", "transformer", "text_encoder", "text_encoder_2", "text_encoders"),
    "reference": ("adapter", "copy"),
    "precision": ("fp32", "bf16", "fp16", "auto"),
    "schedule": ("constant", "cosine"),
    "optimizer": ("adamw", "adamw8bit"),
    "diverged": ("warn", "stop"),
    "weighting": ("constant", "noise"),
    "density": ("uniform", "logit_normal"),
}


@dataclass(frozen=True)
class DPOConfig:
    """steps, batch_size: pairs per process and step; micro_batch: pairs per forward (None: all of them at once).

    lr rises linearly over `warmup` steps and stays. clip: norm of the gradient.
    schedule    what the learning rate does after its rise: "constant", or "cosine" down to 0 at the last step.
    optimizer   "adamw", or "adamw8bit" of bitsandbytes, where that is installed: a quarter of the memory.
    ema         decay of an average of the weights (`DPOTrainer.averaged`), for example 0.999; 0: none.
    trainable   "lora" of `rank` (trained under the name `adapter`), or "full".
    targets     where LoRA sits: "attention", every attention projection; "all", every linear layer and convolution but
                the first and the last (a small U-Net has little to say in its attention alone).
    model       "unet", or "text_encoder", for SDXL also "text_encoder_2", or "text_encoders": both in one run (the
                U-Net stays, prompts are encoded in every step). For Stable Diffusion 3 "transformer", which "unet" then
                means as well.
    reference   "adapter": the same model without the new adapter; "copy": a frozen copy made at the start. Same bits.
    t_window    train on timesteps first .. last + 1 only; for a flow model level i of T is sigma = (i + 1) / T, before
                the scheduler's shift.
    density     how often a timestep of the window is drawn: "uniform", or "logit_normal", the middle more often (Stable
                Diffusion 3, arXiv 2403.03206).
    weighting   of a flow model's errors: "constant", the error of the velocity, or "noise", that of the noise, which
                fades out towards pure noise (`labkit.dpo.flow`). Without effect on a U-Net.
    prompt_dropout   share of pairs trained with the empty prompt, for classifier-free guidance.
    cached_draws     K > 0: every pair has K fixed (t, noise) draws whose reference errors are computed once.
    kept_prompts     the states of so many distinct prompts are kept in memory (0.24 MB each for Stable Diffusion 1.5);
                with more, every step encodes its own. Text encoders that train keep all: the reference needs them.
    foreign_pairs    allow pairs whose images another U-Net made (stages of a curriculum, bought data).
    precision   "bf16" computes the networks under autocast; weights that train and all errors stay float32.
                "auto": bf16 where that is faster (`native_bfloat16`), else fp32. "fp16", for a T4 and
                other GPUs without bf16: the same, and the loss is scaled so that small gradients do not vanish.
    checkpointing    recompute activations in backward: less memory, a quarter more time.
    sharded     several processes hold a part of the frozen base each (FSDP), and all of the adapter: for a base that
                fills a GPU. The numbers stay the same; LoRA on a U-Net or transformer only (`labkit.dpo.sharding`).
    save_every  steps between checkpoints, a multiple of log_every; 0: none.
    evaluate_every, patience   steps between looks at the held-out pairs, a multiple of log_every; after `patience`
                looks without a smaller held-out loss training stops and the best weights are taken; 0: neither.
    diverged    what happens when the loss has grown far beyond its start: "warn", or "stop" (DivergenceError).
    """

    steps: int = 200
    batch_size: int = 16
    micro_batch: int | None = None
    lr: float = 1e-4
    warmup: int = 10
    clip: float = 1.0
    weight_decay: float = 0.0
    seed: int = 0
    trainable: str = "lora"
    model: str = "unet"
    rank: int = 8
    targets: str = "attention"
    adapter: str = "dpo"
    reference: str = "adapter"
    t_window: tuple[int, int] = (0, 1000)
    prompt_dropout: float = 0.0
    cached_draws: int = 0
    foreign_pairs: bool = False
    precision: str = "fp32"
    checkpointing: bool = False
    log_every: int = 10
    save_every: int = 0
    schedule: str = "constant"
    optimizer: str = "adamw"
    ema: float = 0.0
    evaluate_every: int = 0
    patience: int = 0
    diverged: str = "warn"
    weighting: str = "constant"
    density: str = "uniform"
    kept_prompts: int = 10_000
    sharded: bool = False

    def __post_init__(self) -> None:
        plain_numbers(self)
        object.__setattr__(self, "t_window", tuple(int(t) for t in self.t_window))
        for name, choices in CHOICES.items():
            if getattr(self, name) not in choices:
                raise ValueError(f"{name} is {getattr(self, name)!r}, expected one of {', '.join(choices)}")
        for name in ("steps", "batch_size", "rank", "log_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}, expected at least 1")
        if self.kept_prompts < 0:
            raise ValueError(f"kept_prompts is {self.kept_prompts}, expected 0 or more")
        if self.micro_batch is not None and self.micro_batch < 1:
            raise ValueError(f"micro_batch is {self.micro_batch}, expected a positive number or None")
        if not self.lr > 0 or not self.clip > 0:
            raise ValueError(f"lr is {self.lr} and clip {self.clip}: expected positive numbers")
        if not 0.0 <= self.prompt_dropout < 1.0:
            raise ValueError(f"prompt_dropout is {self.prompt_dropout}, expected a share from 0 to below 1")
        if len(self.t_window) != 2 or not 0 <= self.t_window[0] < self.t_window[1]:
            raise ValueError(f"t_window is {self.t_window}, expected (first, last + 1), for example (0, 1000)")
        for name in ("save_every", "evaluate_every"):
            if getattr(self, name) < 0 or getattr(self, name) % self.log_every:
                raise ValueError(
                    f"{name} is {getattr(self, name)}, expected a multiple of log_every ({self.log_every}) or 0"
                )
        if not 0.0 <= self.ema < 1.0:
            raise ValueError(f"ema is {self.ema}, expected a decay from 0 (none) to below 1")
        if self.patience < 0 or (self.patience and not self.evaluate_every):
            raise ValueError(f"patience is {self.patience}: expected 0, or set evaluate_every and give held-out pairs")
        if self.trainable == "full" and self.reference == "adapter":
            raise ValueError('full training has no adapter to switch off: use reference="copy"')
        if self.sharded and (self.trainable == "full" or self.reference == "copy" or "text" in self.model):
            raise ValueError(
                'sharded spreads the frozen base of one network: use trainable="lora", reference="adapter" and the '
                "U-Net or transformer"
            )
