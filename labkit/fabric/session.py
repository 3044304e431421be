"""`with fabric(pipe, liked=..., disliked=...):` - feedback for any pipeline that holds a UNet2DConditionModel.

A forward pre-hook on the U-Net notices every call, whoever makes it, and runs the reference pass before it: the
references, noised to the call's own timestep, as a batch of their own whose output is thrown away (paper, algorithm 1).
(Or, fused, as more rows of the call itself, which are cut off afterwards.)
What stays are K and V of every self-attention. Likes are then shown to the conditional rows of the call, dislikes to
the unconditional ones. On exit, also after an exception, the U-Net is what it was.
"""

from __future__ import annotations

import copy
import warnings
from collections import defaultdict
from dataclasses import replace

import torch
from torch import Tensor

from labkit.diffusion import row_labels
from labkit.fabric.cache import ReferenceCache
from labkit.fabric.equations import flat_mass
from labkit.fabric.processor import Context, FabricProcessor, Layer, Observer, SignStates
from labkit.fabric.reference_pass import Job, ReferencePass
from labkit.fabric.references import as_references
from labkit.fabric.schedule import scheduled_weight, step_position, time_position
from labkit.fabric.settings import PRESETS, FabricError, FabricWarning, Settings
from labkit.fabric.unet import call_arguments, one_timestep, self_attentions, unet_of

SIGNS = {"liked": "cond", "disliked": "uncond"}  # which rows read which references
PLAIN_PROCESSORS = ("AttnProcessor", "AttnProcessor2_0", "SlicedAttnProcessor", "XFormersAttnProcessor")
BURNING = 0.75  # share of attention on references from which on images usually burn


def fabric(
    pipe,
    *,
    liked=None,
    disliked=None,
    settings: Settings | str | None = None,
    seed: int = 0,
    steps: int | None = None,
    cache: ReferenceCache | None = None,
    chunk: int | None = None,
    observer: Observer | None = None,
    **overrides,
) -> Session:
    """A context manager inside which the pipeline generates with feedback, however it is called.

    liked, disliked   lists of `Reference`s, PIL pictures (any size and mode) or float tensors [3, H, W] in [-1, 1]
    settings          `Settings` or the name of a preset ("paper", "repo", "webui", ...); overrides replace fields of it
    seed              of the references' noise; nothing else is drawn, so the images' own noise stays what it was
    steps             number of steps, for a window measured in steps if the pipeline does not run its own loop
    cache             a `ReferenceCache` that outlives the session: equal references are not computed again
    chunk             references per U-Net call; by default as many as the generation itself has rows
    observer          called with an `Observation` in every layer that reads references

    Raises FabricError for a pipeline without U-Net, an unknown preset or setting, images that are none, nested use on
    the same U-Net, and, on leaving, if no U-Net call came by although there were references.
    Warns (FabricWarning) if dislikes meet no unconditional rows, if the weights are likely to burn the images, and if
    `fused` has no effect because there are more references than `chunk`.
    """
    if isinstance(settings, str):
        if settings not in PRESETS:
            raise FabricError(f"no preset {settings!r}: there are {', '.join(PRESETS)}")
        settings = PRESETS[settings].settings
    try:
        settings = replace(settings or Settings(), **overrides)
    except TypeError:
        known = ", ".join(Settings.__dataclass_fields__)
        raise FabricError(f"unknown setting in {sorted(overrides)}: expected some of {known}") from None
    references = {"liked": as_references(liked), "disliked": as_references(disliked)}
    return Session(pipe, references, settings, seed=seed, steps=steps, cache=cache, chunk=chunk, observer=observer)


class Session:
    """State of one `fabric` context. Counters: `unet_calls`, `active_calls`, `reference_rows`; see also `mass`."""

    def __init__(self, pipe, references, settings, *, seed, steps, cache, chunk, observer):
        self.pipe, self.references, self.settings = pipe, references, settings
        self.steps = steps
        self.unet = unet_of(pipe)
        self.alphas_cumprod = getattr(pipe.scheduler, "alphas_cumprod", None)
        if self.alphas_cumprod is None:
            raise FabricError(
                f"{type(pipe.scheduler).__name__} has no alphas_cumprod: FABRIC needs a diffusion schedule"
            )
        if steps is not None and steps < 1 or chunk is not None and chunk < 1 or seed < 0:
            raise FabricError(f"steps={steps} and chunk={chunk} must be positive, seed={seed} must not be negative")
        self.cache = ReferenceCache() if cache is None else cache
        self._private_cache = cache is None
        self.unet_calls = self.active_calls = 0
        self._mass: dict[tuple[float, str, str], list[Tensor]] = defaultdict(list)
        self._warned: set[str] = set()
        self._context = Context(
            backend=settings.backend, cap=settings.mass_cap, observer=observer, on_mass=self._on_mass
        )
        self._pass = ReferencePass(pipe, settings, self._context, self.cache, seed=seed, chunk=chunk)
        self._restore: list = []
        self._jobs: list[Job] = []  # references that are rows of the call that is running

    # ---- entering and leaving --------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        if self._restore:
            raise FabricError("this session is already open: call fabric(...) again for a new one")
        attentions = self_attentions(self.unet)
        for layer, attn in attentions:
            kind = type(attn.processor).__name__
            if isinstance(attn.processor, FabricProcessor):
                raise FabricError(
                    "a fabric session is already open on this U-Net: leave it first, or add to its references"
                )
            if kind not in PLAIN_PROCESSORS or attn.fused_projections:
                kind += " with fused projections" if attn.fused_projections else ""
                raise FabricError(
                    f"{layer.name} has a {kind}: expected {' or '.join(PLAIN_PROCESSORS)}, unfuse or reset it first"
                )
        low, high = self.settings.depths
        if not any(low <= layer.depth <= high for layer, _ in attentions):
            known = ", ".join(f"{depth:g}" for depth in sorted({layer.depth for layer, _ in attentions}))
            raise FabricError(f"no self-attention lies at depths {low} to {high}: this U-Net has {known}")
        self._warn_before_burning()
        for layer, attn in attentions:
            self._restore.append((attn, attn.processor))
            attn.set_processor(FabricProcessor(layer, attn.processor, self._context))
        self._hooks = [
            self.unet.register_forward_pre_hook(self._before, prepend=True, with_kwargs=True),
            self.unet.register_forward_hook(self._after, prepend=True, always_call=True),
        ]
        return self

    def _warn_before_burning(self) -> None:
        most = 1 if self.settings.count_normalized else None
        liked, disliked = (len(self.references[sign][:most]) for sign in SIGNS)
        top = max(self.settings.max_weight, self.settings.min_weight)
        expected = flat_mass(max(liked, disliked * self.settings.negative_scale) * top)
        if expected > BURNING and self.settings.mass_cap is None:
            self._warn(
                f"with these weights about {expected:.0%} of the attention goes to references, images tend to burn: "
                "lower max_weight, or set count_normalized=True or mass_cap"
            )

    def __exit__(self, kind, error, traceback) -> None:
        for hook in self._hooks:
            hook.remove()
        while self._restore:
            attn, original = self._restore.pop()
            attn.set_processor(original)
        self._pass.clear()
        if self._private_cache:
            self.cache.clear()
        mass = list(self.mass.values())
        if mass and sum(mass) / len(mass) > BURNING:
            self._warn(
                f"{sum(mass) / len(mass):.0%} of the attention went to references, images tend to burn: lower weights"
            )
        if kind is None and self.unet_calls == 0 and any(self.references.values()):
            raise FabricError(
                "no call of the U-Net came by: generate inside the with block, with this pipeline's own U-Net"
            )

    @property
    def reference_rows(self) -> int:
        """Rows of U-Net calls that references have cost so far; what the cache held costs none."""
        return self._pass.rows

    @property
    def mass(self) -> dict[tuple[float, str, str], float]:
        """Mean share of attention on references by (timestep, layer, sign); filled by the "lse" back end only."""
        return {key: float(torch.stack(values).mean()) for key, values in self._mass.items()}

    def weight_at(self, t: float) -> float:
        """The scheduled weight of a liked reference at timestep t, before depth and count."""
        s = self.settings
        if s.clock == "training":
            position = time_position(t, len(self.alphas_cumprod), s.start, s.end)
        else:
            timesteps = self._timesteps()
            index = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))
            if abs(timesteps[index] - t) > 1e-2 * max(1.0, t):
                raise FabricError(
                    f"timestep {t} is none of the scheduler's: give fabric(steps=...) or clock='training'"
                )
            position = step_position(index, len(timesteps), s.start, s.end)
        return scheduled_weight(position, max_weight=s.max_weight, min_weight=s.min_weight, shape=s.shape)

    # ---- the hooks ---------------------------------------------------------------------------------------------------

    def _before(self, unet, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self._pass.running:  # our own reference pass
            return None
        call = call_arguments(unet, args, kwargs)
        sample, t = call["sample"], one_timestep(call["timestep"])
        self.unet_calls += 1
        context = self._context
        if self._private_cache and context.t != t:  # nothing to be reused: keep the references of one step only
            self.cache.clear()
        context.mode, context.t = "idle", t
        if not any(self.references.values()):
            return None
        weight = self.weight_at(t)
        signs = {"liked": weight, "disliked": weight * self.settings.negative_scale}
        signs = {s: w for s, w in signs.items() if w > 0 and self.references[s]}
        if not signs:
            return None
        labels = self._labels(len(sample))
        rows = {s: tuple(i for i, label in enumerate(labels) if label == SIGNS[s]) for s in signs}
        if "disliked" in rows and not rows["disliked"]:
            self._warn("dislikes act through the unconditional rows, but guidance is off: they have no effect")
        rows = {s: own for s, own in rows.items() if own}
        if not rows:
            return None
        states, jobs = self._pass.states({s: self.references[s] for s in rows}, call, t, rows)
        if n := self._pass.unfused:
            self._warn(
                f"fused=True had no effect for {n} references, they had a U-Net call of their own: give chunk={n} "
                "(calls with masks over tokens cannot be fused at all)"
            )
        size = sample.shape[2:]
        assembled: dict[tuple[str, str], SignStates | None] = {}

        def of(sign: str, layer: Layer) -> SignStates | None:
            key = sign, layer.name
            if key not in assembled:
                assembled[key] = self._pass.assemble(states[sign], layer, signs[sign], size)
            return assembled[key]

        self.active_calls += 1
        context.rows, context.states, context.mode = rows, of, "inject"
        context.injections, context.appended, self._jobs = 0, len(jobs), jobs
        return ((), self._pass.appended(jobs, call)) if jobs else None

    def _after(self, unet, args: tuple, output):
        if self._pass.running:
            return None
        context = self._context
        failed = context.mode == "inject" and output is not None and context.injections == 0
        jobs, self._jobs = self._jobs, []
        context.mode, context.rows, context.states, context.appended = "idle", {}, None, 0
        if failed:
            raise FabricError(
                "the U-Net ran but no self-attention asked for references: something replaced its processors"
            )
        if output is None or not jobs:
            return None
        self._pass.keep(jobs)
        prediction = output[0][: -len(jobs)]  # the references' own rows are of no interest
        return (prediction,) if isinstance(output, tuple) else type(output)(sample=prediction)

    def _on_mass(self, layer: Layer, sign: str, mass: Tensor) -> None:
        mean = mass.detach().float().mean()
        self._mass[(self._context.t, layer.name, sign)].append(mean)

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, FabricWarning, stacklevel=3)

    # ---- what a call is ----------------------------------------------------------------------------------------------

    def _labels(self, rows: int) -> tuple[str, ...]:
        """ "cond" or "uncond" for every row: as labelled by the caller, else as the running pipeline says."""
        labels = row_labels()
        if labels is None and hasattr(self.pipe, "_guidance_scale"):
            guided = bool(self.pipe.do_classifier_free_guidance)
            if guided and rows % 2:
                raise FabricError(f"a guided call has {rows} rows, expected [uncond, cond]: use labelled_rows(...)")
            labels = ("uncond",) * (rows // 2) + ("cond",) * (rows // 2) if guided else ("cond",) * rows
        if labels is None or len(labels) != rows:
            got = "no labels" if labels is None else f"{len(labels)} labels"
            raise FabricError(
                f"{got} for {rows} rows of the U-Net: wrap the call in labkit.diffusion.labelled_rows([...])"
            )
        return labels

    def _timesteps(self) -> list[float]:
        """The sampler's distinct timesteps in order."""
        scheduler = self.pipe.scheduler
        if self.steps is not None:
            scheduler = copy.deepcopy(scheduler)
            scheduler.set_timesteps(self.steps)
        elif getattr(scheduler, "num_inference_steps", None) is None:
            raise FabricError("a window in steps needs to know how many there are: give fabric(steps=...)")
        return list(dict.fromkeys(float(t) for t in scheduler.timesteps))
