"""DPO updates written out with diffusers' own calls, to compare the trainer with.

From labkit come only which pairs, timesteps and noise a step draws (tested by themselves) and where the LoRA matrices
sit. Noising, prompts, both networks' calls, errors, clipping, learning rate and AdamW are spelled out here.
"""

from __future__ import annotations

import copy

import torch

from labkit.diffusion import add_lora
from labkit.diffusion.adapters import adapter_parameters
from labkit.dpo.noise import draw_pairs, rows_of_step


def embed(pipe, prompts):
    ids = pipe.tokenizer(list(prompts), padding="max_length", truncation=True, return_tensors="pt").input_ids
    return pipe.text_encoder(ids)[0]


def noise_errors(unet, pipe, clean, noise, t, text):
    """Mean squared error of the predicted noise, [B]."""
    abar = pipe.scheduler.alphas_cumprod[t].view(-1, 1, 1, 1)
    x_t = abar.sqrt() * clean + (1 - abar).sqrt() * noise
    eps = unet(x_t, t, encoder_hidden_states=text).sample
    if pipe.scheduler.config.prediction_type == "v_prediction":
        eps = abar.sqrt() * eps + (1 - abar).sqrt() * x_t
    return ((eps - noise) ** 2).mean((1, 2, 3))


def updates(pipe, pairs, config, loss, *, reference=None):
    """Train `pipe` in place for config.steps updates; returns its trained tensors and each step's per-pair loss.

    loss: (e_w, e_l, e_ref,w, e_ref,l, margin) -> [B]. reference: a U-Net, by default a copy of the pipeline's.
    """
    reference = copy.deepcopy(pipe.unet) if reference is None else reference
    at_start = {p: embed(pipe, [p]).detach() for p in {*pairs.prompts, ""}}
    model = pipe.unet if config.model == "unet" else pipe.text_encoder
    if config.trainable == "lora":
        add_lora(model, config.adapter, seed=config.seed, rank=config.rank)
        parameters = adapter_parameters(model, config.adapter)
    else:
        parameters = dict(model.requires_grad_(True).named_parameters())
    first, second = ({k: torch.zeros_like(p) for k, p in parameters.items()} for _ in range(2))
    losses = []
    for step in range(config.steps):
        rows = rows_of_step(step, config.batch_size, len(pairs), config.seed)
        index = [pair for pair, _ in rows]
        draws = draw_pairs(rows, pairs.winner.shape[1:], seed=config.seed, t_window=config.t_window)
        shown = [
            "" if u < config.prompt_dropout else pairs.prompts[i] for i, u in zip(index, draws.uniform, strict=True)
        ]
        fixed = torch.cat([at_start[p] for p in shown])
        live = fixed if config.model == "unet" else embed(pipe, shown)
        errors = [
            noise_errors(pipe.unet, pipe, x[index], draws.noise, draws.t, live) for x in (pairs.winner, pairs.loser)
        ]
        with torch.no_grad():
            known = [
                noise_errors(reference, pipe, x[index], draws.noise, draws.t, fixed)
                for x in (pairs.winner, pairs.loser)
            ]
        per_pair = loss(*errors, *known, pairs.margin[index])
        losses.append(per_pair.detach())
        gradients = torch.autograd.grad(per_pair.mean(), list(parameters.values()))
        norm = sum(float(g.square().sum()) for g in gradients) ** 0.5
        clip = min(1.0, config.clip / norm)
        lr = config.lr * min(1.0, (step + 1) / max(1, config.warmup))
        with torch.no_grad():
            for (name, p), g in zip(parameters.items(), gradients, strict=True):
                first[name] = 0.9 * first[name] + 0.1 * clip * g
                second[name] = 0.999 * second[name] + 0.001 * (clip * g) ** 2
                mean, square = first[name] / (1 - 0.9 ** (step + 1)), second[name] / (1 - 0.999 ** (step + 1))
                p.copy_(p * (1 - lr * config.weight_decay) - lr * mean / (square.sqrt() + 1e-8))
    return {k: p.detach().clone() for k, p in parameters.items()}, losses


def merge(unet, state):
    """Add B A of an adapter's tensors to the weights of a U-Net without adapters."""
    weights = dict(unet.named_parameters())
    for path, a in state.items():
        if ".lora_A." in path:
            b = state[path.replace(".lora_A.", ".lora_B.")]
            with torch.no_grad():
                weights[path.partition(".lora_A.")[0] + ".weight"] += b @ a
