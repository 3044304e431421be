"""The diffusion layer that all papers share: small pure functions, one sampler, a cost ledger and safe adapters.

Modules, in the order in which to read them:

    schedule        the forward process, and the identities between what a network may predict
    steps           which timesteps a sampler visits, and how one step is taken
    ddim            one DDIM step as a Gaussian: mean, spread, sample, log-probability, KL
    noise           one generator per image: an image does not depend on its neighbours in the batch
    guidance        what the U-Net is asked: text conditions, classifier-free guidance, one prediction
    sample          the sampler: from prompts to latents and images
    images          between latents, tensors and pictures
    flow            rectified flow: the path, what a model predicts on it, its noise levels
    ledger          what a method costs, counted
    adapters        which adapters a model has and which are on; lora_adapters adds, merges and stores them
    lora_files      LoRA as plain diffusers reads it, and whole pipelines
    guards          the base stays what it was, and whatever should be trained is trained
    devices         where a model computes; precision: where bfloat16 is worth having

The names below are in the order of use; everything else is imported from its module.
"""

from labkit.diffusion.adapters import (
    AdapterError,
    active_adapters,
    adapter_names,
    adapter_parameters,
    disabled_adapters,
    use_adapters,
)
from labkit.diffusion.ddim import ddim_mean_sigma, ddim_step, density_sigma, gaussian_log_prob, log_prob_ratio, step_kl
from labkit.diffusion.devices import execution_device
from labkit.diffusion.guards import base_fingerprint, base_parameters, base_sums, check_gradients
from labkit.diffusion.guidance import (
    PromptConditions,
    denoiser_of,
    encode_prompts,
    has_text_encoder,
    labelled_rows,
    predict_noise,
    row_labels,
    unet_output,
)
from labkit.diffusion.images import (
    decode_latents,
    encode_images,
    from_pil,
    from_uint8,
    scale_latents,
    to_pil,
    to_uint8,
    unscale_latents,
    vae_scale_factor,
)
from labkit.diffusion.ledger import Counts, NFELedger
from labkit.diffusion.lora_adapters import (
    adapter_state,
    add_lora,
    load_adapter_state,
    lora,
    lora_targets,
    merge_lora,
    remove_lora,
)
from labkit.diffusion.lora_files import load_lora, save_lora, save_pipeline
from labkit.diffusion.noise import draw_noise, image_generators
from labkit.diffusion.precision import float32_only, in_bfloat16, native_bfloat16
from labkit.diffusion.sample import SampledLatents, SamplerStep, initial_latents, sample, sample_latents
from labkit.diffusion.schedule import (
    add_noise,
    alpha_bar,
    epsilon_from_v,
    epsilon_from_x0,
    predict_x0,
    sd_alphas_cumprod,
    to_epsilon,
    v_from_epsilon,
    v_target,
)
from labkit.diffusion.steps import ddim_timesteps, is_plain_ddim

__all__ = [
    # sampling: from prompts to pictures
    "sample",
    "sample_latents",
    "image_generators",
    "draw_noise",
    "initial_latents",
    "SampledLatents",
    "SamplerStep",
    "to_pil",
    "from_pil",
    "to_uint8",
    "from_uint8",
    "decode_latents",
    "encode_images",
    "scale_latents",
    "unscale_latents",
    "vae_scale_factor",
    # one prediction and its guidance
    "PromptConditions",
    "encode_prompts",
    "has_text_encoder",
    "predict_noise",
    "unet_output",
    "denoiser_of",
    "labelled_rows",
    "row_labels",
    # the forward process
    "sd_alphas_cumprod",
    "alpha_bar",
    "add_noise",
    "predict_x0",
    "epsilon_from_x0",
    "epsilon_from_v",
    "v_from_epsilon",
    "v_target",
    "to_epsilon",
    # one step of a sampler
    "ddim_timesteps",
    "ddim_step",
    "ddim_mean_sigma",
    "density_sigma",
    "gaussian_log_prob",
    "log_prob_ratio",
    "step_kl",
    "is_plain_ddim",
    # what it costs
    "NFELedger",
    "Counts",
    # adapters
    "lora",
    "add_lora",
    "lora_targets",
    "remove_lora",
    "merge_lora",
    "adapter_state",
    "load_adapter_state",
    "save_lora",
    "load_lora",
    "save_pipeline",
    "use_adapters",
    "disabled_adapters",
    "active_adapters",
    "adapter_names",
    "adapter_parameters",
    "AdapterError",
    # guards and machines
    "base_fingerprint",
    "base_parameters",
    "base_sums",
    "check_gradients",
    "execution_device",
    "native_bfloat16",
    "float32_only",
    "in_bfloat16",
]
