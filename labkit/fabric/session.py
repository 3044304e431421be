"""`with fabric(pipe, liked=..., disliked=...):` - feedback for any pipeline that holds a UNet2DConditionModel.

(Joint-attention transformers, SD3 and FLUX: `joint_session`, which replaces what knows of U-Nets here.)

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

from labkit.fabric.cache import ReferenceCache
from labkit.fabric.caller import Caller, caller_of, labels_of
from labkit.fabric.equations import flat_mass
from labkit.fabric.processor import PERTURBED, Context, FabricProcessor, Layer, Observer, SignStates
from labkit.fabric.reference_pass import Job, ReferencePass
from labkit.fabric.references import as_references
from labkit.fabric.schedule import scheduled_weight, step_position, time_position
from labkit.fabric.settings import PRESETS, FabricError, FabricWarning, Settings
from labkit.fabric.unet import call_arguments, is_joint, one_timestep, self_attentions, unet_of

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
    value_range: tuple[float, float] | None = None,
    **overrides,
) -> Session:
    """A context manager inside which the pipeline generates with feedback, however it is called.

    liked, disliked   lists of pictures of any size: `Reference`s, PIL, files, arrays, tensors (see `labkit.images`)
    value_range       of float pictures: (-1, 1) for this package's, (0, 1) for those of `output_type="pt"`. None: the
                      one range that all of them together can have
    settings          `Settings` or the name of a preset ("paper", "repo", "webui", ...); overrides replace fields of it
    seed              of the references' noise; nothing else is drawn, so the images' own noise stays what it was
    steps             number of steps, for a window measured in steps if the pipeline does not run its own loop
    cache             a `ReferenceCache` that outlives the session: equal references are not computed again
    chunk             references per U-Net call; by default as many as the generation itself has rows
    observer          called with an `Observation` in every layer that reads references

    A pipeline of Stable Diffusion 3 or FLUX works as well: references are then noised by flow matching and read by the
    image tokens of its joint attention (`labkit.fabric.joint`); `adain` and `fused` are refused there.

    Raises ImageError for what is no picture and for floats whose range cannot be known, and FabricError for a pipeline
    without a model that FABRIC knows or with a compiled one, an unknown preset or setting, nested use on the same
    model, rows of which it is not known whether they are conditional, processors that are replaced meanwhile, and, on
    leaving, if no call of the model came by although there were references.
    Warns (FabricWarning) if dislikes meet no unconditional rows, if no call was inside the window, if the session was
    never entered, if the weights are likely to burn the images, and if `fused` has no effect because there are more
    references than `chunk`.
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
    references = as_references(liked=liked, disliked=disliked, value_range=value_range)
    kind = Session
    if is_joint(pipe):
        from labkit.fabric.joint_session import JointSession as kind  # it is a Session, so it imports this module
    return kind(pipe, references, settings, seed=seed, steps=steps, cache=cache, chunk=chunk, observer=observer)


class Session:
    """State of one `fabric` context. Counters: `unet_calls`, `active_calls`, `reference_rows`; see also `mass`."""

    _unused = False  # made with references, and not entered yet
    kind = "U-Net"
    processors = PLAIN_PROCESSORS  # that a hook may stand in for
    hook = FabricProcessor
    reader = ReferencePass

    def __init__(self, pipe, references, settings, *, seed, steps, cache, chunk, observer):
        self.pipe, self.references, self.settings = pipe, references, settings
        self.steps = steps
        self.unet = self._model(pipe)
        self.scheduler = pipe.scheduler  # that of the last caller
        self._own_loop = True  # the last caller was no pipeline
        if steps is not None and steps < 1 or chunk is not None and chunk < 1 or seed < 0:
            raise FabricError(f"steps={steps} and chunk={chunk} must be positive, seed={seed} must not be negative")
        self.cache = ReferenceCache() if cache is None else cache
        self._private_cache = cache is None
        self.unet_calls = self.active_calls = 0
        self._mass: dict[tuple[float, str, str], list[Tensor]] = defaultdict(list)
        self._warned: set[str] = set()
        self._context = Context(backend=settings.backend, cap=settings.mass_cap, observer=observer)
        self._pass = self.reader(pipe, settings, self._context, self.cache, seed=seed, chunk=chunk)
        self._read_schedule()
        self._restore: list = []
        self._lent: list = []  # processors that others have put in the place of ours for this call
        self._jobs: list[Job] = []  # references that are rows of the call that is running
        self._seen: list[float] = []  # timesteps of calls without references
        self._expected: set[tuple[str, str]] = set()  # (sign, layer) that have to read references in this call
        self._unused = any(references.values())

    # ---- entering and leaving --------------------------------------------------------------------------------------

    def __enter__(self) -> Session:
        if self._restore:
            raise FabricError("this session is already open: call fabric(...) again for a new one")
        self._unused = False
        self._attentions = attentions = self._layers()
        for layer, attn in attentions:
            kind = type(attn.processor).__name__
            if isinstance(attn.processor, FabricProcessor):
                raise FabricError(
                    "a fabric session is already open on this model: leave it first, or add to its references"
                )
            if kind not in self.processors or attn.fused_projections:
                kind += " with fused projections" if attn.fused_projections else ""
                raise FabricError(
                    f"{layer.name} has a {kind}: expected {' or '.join(self.processors)}, unfuse or reset it first"
                )
        low, high = self.settings.depths
        if not any(low <= layer.depth <= high for layer, _ in attentions):
            known = ", ".join(f"{depth:g}" for depth in sorted({layer.depth for layer, _ in attentions}))
            raise FabricError(f"no self-attention lies at depths {low} to {high}: this model has {known}")
        self._warn_before_burning()
        self._context.on_mass = self._on_mass
        for layer, attn in attentions:
            self._restore.append((attn, attn.processor))
            attn.set_processor(self.hook(layer, attn.processor, self._context))
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
        self._context.on_mass = None
        self._give_back()
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
        if kind is not None or not any(self.references.values()):
            return
        if self.unet_calls == 0:
            raise FabricError(
                f"no call of the {self.kind} came by: generate inside the with block, with this pipeline's own model"
            )
        s = self.settings
        if self.active_calls == 0 and self._seen and max(s.max_weight, s.min_weight) > 0 and not self._warned:
            self._warn(
                f"references had no effect: the calls were at timesteps {max(self._seen):g} to {min(self._seen):g}, "
                f"none inside the window from start={s.start:g} to end={s.end:g} (img2img skips the beginning)"
            )

    def __del__(self) -> None:
        if self._unused:
            warnings.warn(
                "a fabric session was never entered, references had no effect: write `with fabric(...):`",
                FabricWarning,
                stacklevel=2,
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
            position = time_position(t, self._train_steps(), s.start, s.end)
        else:
            timesteps = self._timesteps()
            index = min(range(len(timesteps)), key=lambda i: abs(timesteps[i] - t))
            if abs(timesteps[index] - t) > 1e-2 * max(1.0, t):
                raise FabricError(
                    f"timestep {t} is none of the scheduler's: give fabric(steps=...) or clock='training'"
                )
            position = step_position(index, len(timesteps), s.start, s.end, end_included=s.end_included)
        return scheduled_weight(position, max_weight=s.max_weight, min_weight=s.min_weight, shape=s.shape)

    # ---- the hooks ---------------------------------------------------------------------------------------------------

    def _before(self, unet, args: tuple, kwargs: dict) -> tuple[tuple, dict] | None:
        if self._pass.running:  # our own reference pass
            return None
        call = self._arguments(args, kwargs)
        t = self._timestep(call)
        self.unet_calls += 1
        context = self._context
        caller = caller_of(unet)
        self._listen(caller)
        if self._private_cache and context.t != t:  # nothing to be reused: keep the references of one step only
            self.cache.clear()
        context.mode, context.t = "idle", t
        if not any(self.references.values()):
            return None
        self._take_over()
        weight = self.weight_at(t)
        signs = {"liked": weight, "disliked": weight * self.settings.negative_scale}
        signs = {s: w for s, w in signs.items() if w > 0 and (self.references[s] or self.settings.zero_padding)}
        if not signs:
            self._seen.append(t)
            return None
        labels = self._labels(call, caller)
        rows = {s: tuple(i for i, label in enumerate(labels) if label == SIGNS[s]) for s in signs}
        if "disliked" in rows and self.references["disliked"] and not rows["disliked"]:
            self._without_unconditional()
        rows = {s: own for s, own in rows.items() if own}
        if not any(self.references[s] for s in rows):
            self._seen.append(t)
            return None
        states, jobs = self._pass.states({s: self.references[s] for s in rows}, call, t, rows)
        if n := self._pass.unfused:
            self._warn(
                f"fused=True had no effect for {n} references, they had a U-Net call of their own: give chunk={n} "
                "(calls with masks over tokens cannot be fused at all)"
            )
        size = self._pass.size_of(call)
        assembled: dict[tuple[str, str], SignStates | None] = {}

        def of(sign: str, layer: Layer) -> SignStates | None:
            key = sign, layer.name
            if key not in assembled:
                assembled[key] = self._pass.assemble(states, sign, layer, signs[sign], size)
            return assembled[key]

        self.active_calls += 1
        layers = self._running(call)
        self._expected = {(s, one.name) for s in rows for one in layers if self._pass.layer_weight(one, signs[s]) > 0}
        context.rows, context.states, context.mode = rows, of, "inject"
        context.injected, context.appended, self._jobs = set(), len(jobs), jobs
        return ((), self._pass.appended(jobs, call)) if jobs else None

    def _after(self, unet, args: tuple, output):
        if self._pass.running:
            return None
        context = self._context
        missed = self._expected - context.injected if context.mode == "inject" and output is not None else set()
        jobs, self._jobs = self._jobs, []
        context.mode, context.rows, context.states, context.appended = "idle", {}, None, 0
        self._give_back()
        if missed:
            names = sorted({name for _, name in missed})
            raise FabricError(
                f"{len(names)} of {len(self._attentions)} self-attentions did not ask for references, first "
                f"{names[0]}: something leaves them out or replaces their processors"
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

    def _model(self, pipe):
        return unet_of(pipe)

    def _layers(self):
        return self_attentions(self.unet)

    def _arguments(self, args: tuple, kwargs: dict) -> dict:
        """The call's arguments by name; "sample" [B, ...] and "encoder_hidden_states" whatever the model calls them."""
        return call_arguments(self.unet, args, kwargs)

    def _timestep(self, call: dict) -> float:
        """As the scheduler counts it."""
        return one_timestep(call["timestep"])

    def _labels(self, call: dict, caller: Caller | None) -> tuple[str, ...]:
        return labels_of(call, caller)

    def _running(self, call: dict) -> list[Layer]:
        """The layers that run in this call."""
        return [layer for layer, _ in self._attentions]

    def _without_unconditional(self) -> None:
        self._warn("dislikes act through the unconditional rows, but guidance is off: they have no effect")

    def _read_schedule(self) -> None:
        self.alphas_cumprod = self._pass.alphas_cumprod = _alphas_cumprod(self.scheduler)

    def _train_steps(self) -> int:
        return len(self.alphas_cumprod)

    def _listen(self, caller: Caller | None) -> None:
        """The noise schedule and the timesteps are those of the pipeline that is running."""
        self.scheduler = (self.pipe if caller is None else caller.pipe).scheduler
        self._own_loop = caller is None
        self._read_schedule()

    def _take_over(self) -> None:
        """Stand in for PAG's processors during this call; refuse any other that has come in the place of ours."""
        for layer, attn in self._attentions:
            found = attn.processor
            if isinstance(found, FabricProcessor) and found.context is self._context:
                continue
            if type(found).__name__ not in PERTURBED:
                raise FabricError(
                    f"{layer.name} now has a {type(found).__name__}: set processors (slicing, IP-Adapter, ...) before "
                    "the with block, not inside"
                )
            self._lent.append((attn, found))
            attn.set_processor(FabricProcessor(layer, found, self._context))

    def _give_back(self) -> None:
        while self._lent:
            attn, found = self._lent.pop()
            attn.set_processor(found)

    def _timesteps(self) -> list[float]:
        """The sampler's distinct timesteps in order."""
        scheduler = self.scheduler
        if self.steps is not None and self._own_loop:
            scheduler = copy.deepcopy(scheduler)
            scheduler.set_timesteps(self.steps)
        elif getattr(scheduler, "num_inference_steps", None) is None:
            raise FabricError("a window in steps needs to know how many there are: give fabric(steps=...)")
        return list(dict.fromkeys(float(t) for t in scheduler.timesteps))


def _alphas_cumprod(scheduler) -> Tensor:
    values = getattr(scheduler, "alphas_cumprod", None)
    if values is None:
        raise FabricError(f"{type(scheduler).__name__} has no alphas_cumprod: FABRIC needs a diffusion schedule")
    return values
