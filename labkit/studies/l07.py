"""Lesson 07: PC-CLIP with the wording as the variable (arXiv 2409.09721).

Sentences are trained in some frames of a bank and asked in others. Test pairs are disjoint (no portrait is in two of
them) and the same for every arm and seed. A question comes in two clause orders and is answered by choosing between the
true sentence and its mirror, so 0.5 is chance, also for a reader of positions. Retention is measured with the prompts
that rehearsal used and with prompts that it never saw.

Steps, tau, frames and the strength of the edits were chosen on other test portraits and seeds 0 to 2; the record's are
new, and no portrait that a choice was made on is asked about.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor
from transformers import CLIPModel

from labkit.diffusion import PromptConditions, encode_prompts, image_generators, sample
from labkit.models import load_clip, load_pipeline, load_reader
from labkit.models.clip import captionable_values
from labkit.pairwise import (
    ORDERS,
    DifferenceRecord,
    Pair,
    PairwiseConfig,
    RunCard,
    Statement,
    TemplateWriter,
    TextTower,
    cache_embeddings,
    choose_held_out,
    comparable,
    interpolate,
    mirrored_choice,
    natural_pairs,
    portrait_wording,
    preset,
    sentence,
    train_pairwise,
)
from labkit.pairwise import (
    unit as of_length_one,
)
from labkit.pairwise.frames import FRAMES, RANKED, TRAINED, Frame, comparative, frame_words, phrase
from labkit.pairwise.inspection import alarm_threshold, embedding_distance, patch_distance, sentence_alarm
from labkit.pairwise.vocabulary import with_words
from labkit.pairwise.wording import Wording, pick
from labkit.portraits import ATTRIBUTES, TEMPLATES, PortraitSpec, describe, random_caption, render_tensor, sample_specs
from labkit.portraits.attributes import allowed_values
from labkit.studies.estimate import Recorded, gain, level
from labkit.studies.study import Study
from labkit.worlds.products import PARTS, PRODUCT_WORDING, Photo, ProductSpec, render_products, sample_products

WORDING = portrait_wording()
CAPTION_WORDS = {  # synonyms that PortraitCLIP knows from its captions
    "mood": {v: f"a {v} person" for v in ATTRIBUTES["mood"]},
    "clothes": {v: words.replace("clothes", "shirt") for v, words in WORDING["clothes"].items()},
    "background": {v: words.replace("background", "wall") for v, words in WORDING["background"].items()},
}
NEW_WORDS = {  # synonyms that it has never seen
    "glasses": {"none": "bare eyes", "glasses": "spectacles", "sunglasses": "tinted lenses"},
    "beard": {"none": "a smooth chin", "beard": "whiskers", "moustache": "a fuzzy lip"},
    "mood": {"happy": "a grin", "calm": "a quiet look", "sad": "tears", "surprised": "an open mouth"},
}
REHEARSED = {
    a: {v: [describe({a: v}, template=k).text for k in range(TEMPLATES["en"])] for v in captionable_values(a)}
    for a in ATTRIBUTES
}
NEW_PROMPTS = {
    a: {v: [f"a photo of {WORDING[a][v]}", f"someone with {WORDING[a][v]}"] for v in values}
    for a, values in REHEARSED.items()
}
SHOP = {"standard": Photo(), "careless": Photo(brightness=0.15, shift=2.0, scale=0.06)}


@lru_cache(maxsize=1)
def clip_and_inputs():
    """PortraitCLIP with the words of all frames in its vocabulary, and what prepares its inputs."""
    return with_words(*load_clip("cpu"), frame_words())


# ---- portraits, pairs, sentences ---------------------------------------------------------------------------------


def disjoint_pairs(
    values: Sequence[Mapping[str, str]], n: int, wording: Wording, *, held_out=frozenset(), only: bool = False
) -> list[Pair]:
    """Up to n pairs (0, 1), (2, 3), ... that name one attribute each; no portrait is in two of them.

    held_out: comparisons that are not named, or with `only` the ones that alone are.
    """
    pairs = []
    for i in range(0, len(values) - 1, 2):
        every = comparable(values[i], values[i + 1], wording)
        free = comparable(values[i], values[i + 1], wording, held_out)
        choice = [a for a in every if a not in free] if only else free
        if choice and len(pairs) < n:
            a = choice[pick(f"{i}:{only}", len(choice))]
            pairs.append(Pair(i, i + 1, Statement({a: values[i][a]}, {a: values[i + 1][a]})))
    return pairs


def to_rehearse(specs: Sequence[PortraitSpec], seed: int) -> list[tuple[str, dict[str, str]]]:
    """One caption per portrait with the values that it names: every third of several attributes, the others of one."""
    rng, told = np.random.default_rng(seed), []
    for k, spec in enumerate(specs):
        a = list(ATTRIBUTES)[int(rng.integers(len(ATTRIBUTES)))]
        one = describe({a: getattr(spec, a)}, template=int(rng.integers(TEMPLATES["en"])))
        made = random_caption(spec, rng, full_share=0.3) if k % 3 == 0 else one
        told.append((made.text, {name: getattr(spec, name) for name in made.named}))
    return told


@lru_cache(maxsize=1)
def portraits(train: int, test: int) -> SimpleNamespace:
    """Portraits to learn from and to be asked about, embedded by the frozen image tower."""
    clip, inputs = clip_and_inputs()
    specs = sample_specs(train, seed=270)
    asked = sample_specs(test, seed=371, avoid=[*specs, *sample_specs(test, seed=271, avoid=specs)])
    test_pixels = render_tensor(asked, inputs.image_size)
    return SimpleNamespace(
        specs=specs,
        values=[spec.to_dict() for spec in specs],
        images=cache_embeddings(clip, inputs, render_tensor(specs, inputs.image_size)),
        captions=to_rehearse(specs, 270),
        test_specs=asked,
        test_values=[spec.to_dict() for spec in asked],
        test_images=cache_embeddings(clip, inputs, test_pixels),
        test_pixels=test_pixels,
        held_out=choose_held_out(WORDING, 0.15, torch.Generator().manual_seed(272)),
    )


def portraits_of(sizes: SimpleNamespace) -> SimpleNamespace:
    return portraits(sizes.portraits, sizes.tests)


# ---- training ----------------------------------------------------------------------------------------------------


def config_of(sizes: SimpleNamespace, **changes: object) -> PairwiseConfig:
    """The recipe for a small model at the study's sizes."""
    own = {name: getattr(sizes, name) for name in ("steps", "batch", "rehearsed", "lr", "tau", "decay")}
    return preset("robust", **(own | changes))


def short_config(sizes: SimpleNamespace) -> PairwiseConfig:
    """The same for a few sentences about one small world, without rehearsal."""
    return config_of(sizes, rehearsal=0.0, steps=sizes.short_steps)


def write_records(sizes: SimpleNamespace, seed: int, frames: Sequence[str | Frame]) -> list[DifferenceRecord]:
    """True sentences about pairs of training portraits, in these frames."""
    p, generator = portraits_of(sizes), torch.Generator().manual_seed(10_000 + seed)
    pairs = natural_pairs(p.values, sizes.pairs, WORDING, generator, held_out=p.held_out)
    return TemplateWriter(WORDING, frames=frames)(pairs, p.values).records


def finetune(
    sizes: SimpleNamespace,
    seed: int,
    frames: Sequence[str | Frame],
    *,
    monitor: Callable[[int, CLIPModel], Mapping[str, float]] | None = None,
    every: int = 0,
    on_step: Callable[[int], None] | None = None,
    **changes: object,
) -> tuple[CLIPModel, RunCard]:
    """PortraitCLIP with a text tower trained on sentences in these frames, and its run card; see `train_pairwise`."""
    p, (clip, inputs) = portraits_of(sizes), clip_and_inputs()
    notes, generator = write_records(sizes, seed, frames), torch.Generator().manual_seed(20_000 + seed)
    options = {"monitor": monitor, "every": every, "on_step": on_step}
    data = {"wording": WORDING, "captions": p.captions, "generator": generator}
    return train_pairwise(clip, inputs, p.images, p.values, notes, config_of(sizes, **changes), **data, **options)


RECIPES: dict[str, tuple[Sequence[str], dict]] = {
    "bank": (TRAINED, {}),
    "frame": (("plain",), {}),
    "fixed": (("plain",), {"both_orders": False, "mirrored": False}),
    "captions": (("plain",), {"difference": 0.0, "rehearsed": 0}),
}
"""arm -> frames, changes of the recipe"""


@lru_cache(maxsize=1)
def trained(arm: str, seed: int, key: tuple) -> CLIPModel:
    """The model of one arm."""
    frames, changes = RECIPES[arm]
    return finetune(SimpleNamespace(**dict(key)), seed, frames, **changes)[0]


def model_of(arm: str, seed: int, sizes: SimpleNamespace) -> CLIPModel:
    """The model of an arm; "wise" lies halfway between PortraitCLIP and "bank"."""
    clip, key = clip_and_inputs()[0], tuple(sorted(vars(sizes).items()))
    if arm == "base":
        return clip
    return interpolate(clip, trained("bank", seed, key), 0.5) if arm == "wise" else trained(arm, seed, key)


# ---- measuring ---------------------------------------------------------------------------------------------------


def m1(model: CLIPModel, sizes: SimpleNamespace, frames: Sequence[str] | Mapping[str, Frame]) -> dict[str, np.ndarray]:
    """Counterbalanced mirrored choice per test pair [P] by frame, and for the plain frame by clause order."""
    p, tower = portraits_of(sizes), TextTower(model, clip_and_inputs()[1])
    pairs, found = disjoint_pairs(p.test_values, sizes.asked, WORDING, held_out=p.held_out), {}
    for frame in frames:
        said = frames[frame] if isinstance(frames, Mapping) else frame
        won = mirrored_choice(tower, p.test_images, pairs, WORDING, say=partial(phrase, frame=said)).numpy()  # [P, 2]
        found[f"m1.{frame}"] = won.mean(1)
        if frame == "plain":
            found |= {f"plain.{order}": won[:, k] for k, order in enumerate(ORDERS)}
    return found


def m1_of_words(model: CLIPModel, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """The same with other words in the plain frame: comparisons never named in training, synonyms, degrees."""
    p, tower = portraits_of(sizes), TextTower(model, clip_and_inputs()[1])
    ranked = {a: {v: v for v in values} for a, (values, _, _) in RANKED.items()}
    unseen = disjoint_pairs(p.test_values, sizes.asked, WORDING, held_out=p.held_out, only=True)
    asked = {
        "unseen": (unseen, WORDING, sentence),
        "caption_words": (disjoint_pairs(p.test_values, sizes.asked, CAPTION_WORDS), CAPTION_WORDS, sentence),
        "new_words": (disjoint_pairs(p.test_values, sizes.asked, NEW_WORDS), NEW_WORDS, sentence),
        "degrees": (disjoint_pairs(p.test_values, sizes.asked, ranked), ranked, by_degree),
    }
    return {
        f"m1.{name}": mirrored_choice(tower, p.test_images, pairs, words, say=say).numpy().mean(1)
        for name, (pairs, words, say) in asked.items()
    }


def by_degree(statement: Statement, wording: Wording, *, order: str) -> str:
    """`comparative` with the arguments of `sentence`."""
    return comparative(statement, order=order)


Prompts = Mapping[str, Mapping[str, Sequence[str]]]  # attribute -> value -> sentences


@torch.no_grad()
def recognised(model: CLIPModel, sizes: SimpleNamespace, prompts: Prompts) -> np.ndarray:
    """Share of a test portrait's attributes that zero-shot classification gets right, [portraits]."""
    p, tower = portraits_of(sizes), TextTower(model, clip_and_inputs()[1])
    right = []
    for a, texts in prompts.items():
        names = list(texts)
        classes = torch.stack([of_length_one(tower(list(said)).mean(0)) for said in texts.values()])  # [V, d]
        found = (p.test_images @ classes.T).argmax(1).tolist()
        asked = zip(found, (row[a] for row in p.test_values), strict=True)
        right.append([float(names[k] == value) if value in names else np.nan for k, value in asked])
    return np.nanmean(np.array(right), axis=0)


def reading(model: CLIPModel, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """All numbers of one reader: every frame, other words, retention."""
    return {
        **m1(model, sizes, tuple(FRAMES)),
        **m1_of_words(model, sizes),
        "retention": recognised(model, sizes, REHEARSED),
        "retention.new": recognised(model, sizes, NEW_PROMPTS),
    }


# ---- pictures drawn with a difference sentence -------------------------------------------------------------------


@torch.no_grad()
def sentence_direction(model: CLIPModel, said: Statement, frames: Sequence[str] = TRAINED) -> Tensor:
    """How the text tower's state at the end of a sentence changes when the sentence is turned around: the state of
    the true sentence minus that of its mirror, mean over frames and clause orders, [d]."""
    tower = TextTower(model, clip_and_inputs()[1])
    states = []
    for turned in (said, said.mirrored()):
        texts = [phrase(turned, WORDING, frame, order=order) for frame in frames for order in ORDERS]
        rows = [
            model.text_model(input_ids=ids[None], attention_mask=torch.ones_like(ids)[None]).pooler_output[0]
            for ids in tower.tokens(texts)
        ]
        states.append(torch.stack(rows).mean(0))
    return states[0] - states[1]


Drawn = tuple[Tensor, np.ndarray, np.ndarray]


def drawn(direction: Tensor, strength: float, seed: int, sizes: SimpleNamespace) -> Drawn:
    """Pictures of captions that say "no glasses", with `strength` times a direction [d] added to every token.

    Returns:
        Pictures [n, 3, 64, 64]; by the AttributeReader, the probability of glasses and that of the mood asked for [n].
    """
    pipe, reader = drawing_models()
    faces = sample_specs(sizes.edits, seed=373, marginals={"style": {"toon-head": 0}})
    texts = [describe({"mood": s.mood, "hair_style": s.hair_style, "glasses": "none"}).text for s in faces]
    with torch.no_grad():
        plain = encode_prompts(pipe, texts)
    moved = PromptConditions(plain.cond + strength * direction, plain.uncond)
    generators = image_generators(sizes.edits, 30_000 + seed)
    pictures = sample(
        pipe, None, conditions=moved, steps=sizes.draw_steps, guidance_scale=3.0, generators=generators
    ).clamp(-1, 1)
    p = {name: found.cpu().numpy() for name, found in reader.probabilities(pictures).items()}
    mood = np.array([p["mood"][k, ATTRIBUTES["mood"].index(s.mood)] for k, s in enumerate(faces)])
    return pictures, 1 - p["glasses"][:, ATTRIBUTES["glasses"].index("none")], mood


@lru_cache(maxsize=1)
def drawing_models():
    """PortraitSD and the AttributeReader."""
    return load_pipeline("cpu"), load_reader()


GLASSES = Statement({"glasses": "glasses"}, {"glasses": "none"})


def random_direction(like: Tensor, seed: int) -> Tensor:
    """A random direction [d] of the same length: the control."""
    noise = torch.randn(like.shape, generator=torch.Generator().manual_seed(40_000 + seed))
    return noise * like.norm() / noise.norm()


def edits(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Glasses and mood without an edit, with the sentence's direction, with a random one."""
    direction = sentence_direction(model_of("bank", seed, sizes), GLASSES)
    made = {
        "none": drawn(direction, 0.0, seed, sizes),
        "sentence": drawn(direction, sizes.strength, seed, sizes),
        "random": drawn(random_direction(direction, seed), sizes.strength, seed, sizes),
    }
    return {f"glasses.{k}": g for k, (_, g, _) in made.items()} | {f"mood.{k}": m for k, (_, _, m) in made.items()}


# ---- what the frozen tower does not see --------------------------------------------------------------------------

PIN_WORDING = {"pin": {"left": "a left pin", "right": "a right pin"}}


def with_pins(pixels: Tensor, side: str) -> Tensor:
    """The pictures [N, 3, 64, 64] with a white pin of 2 x 2 pixels on the left or right of the clothes."""
    pinned, column = pixels.clone(), {"left": 20, "right": 42}[side]
    pinned[:, :, 58:60, column : column + 2] = 1.0
    return pinned


def pin(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """M1 on pins after training on pins alone. Every pair of portraits is asked twice, with the pins exchanged: what
    else differs between the two cancels."""
    clip, inputs = clip_and_inputs()
    p = portraits_of(sizes)
    pixels = render_tensor(p.specs, inputs.image_size)
    learn = torch.cat([cache_embeddings(clip, inputs, with_pins(pixels, side)) for side in PIN_WORDING["pin"]])
    values = [{"pin": side} for side in PIN_WORDING["pin"] for _ in p.specs]
    pairs = natural_pairs(values, sizes.pairs, PIN_WORDING, torch.Generator().manual_seed(50_000 + seed))
    notes = TemplateWriter(PIN_WORDING, frames=("bare",))(pairs, values).records
    model, _ = train_pairwise(
        clip, inputs, learn, values, notes, short_config(sizes), wording=PIN_WORDING,
        generator=torch.Generator().manual_seed(60_000 + seed),
    )  # fmt: skip
    ask = torch.cat([cache_embeddings(clip, inputs, with_pins(p.test_pixels, side)) for side in PIN_WORDING["pin"]])
    n, said = len(p.test_specs), Statement({"pin": "left"}, {"pin": "right"})
    partner = [(i + n // 2) % n for i in range(n)]
    asked = [Pair(i, n + j, said) for i, j in enumerate(partner)] + [
        Pair(j, n + i, said) for i, j in enumerate(partner)
    ]
    won = mirrored_choice(TextTower(model, inputs), ask, asked, PIN_WORDING, say=partial(phrase, frame="bare"))
    return {"m1.pin": won.mean(1).reshape(2, n).mean(0).numpy()}


# ---- the inspection desk -----------------------------------------------------------------------------------------


def one_change(spec: PortraitSpec, generator: torch.Generator) -> PortraitSpec:
    """The same portrait with one attribute changed to another value that its style can draw."""
    for k in torch.randperm(len(ATTRIBUTES), generator=generator).tolist():
        name = list(ATTRIBUTES)[k]
        others = [v for v in allowed_values(spec.style, name) if v not in (getattr(spec, name), "none", "bald")]
        if name != "style" and others and not (name.startswith("hair") and spec.hair_style == "bald"):
            return spec.with_(**{name: others[int(torch.randint(len(others), (1,), generator=generator))]})
    raise ValueError(f"{spec} cannot be changed")


def lamp(seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Raw distance of embeddings that more light makes, and that a changed attribute makes, per test portrait."""
    clip, inputs = clip_and_inputs()
    p, generator = portraits_of(sizes), torch.Generator().manual_seed(70_000 + seed)
    changed = render_tensor([one_change(s, generator) for s in p.test_specs], inputs.image_size)
    moved = {"lamp": (p.test_pixels + 0.4).clamp(-1, 1), "change": changed}
    return {k: (cache_embeddings(clip, inputs, x) - p.test_images).norm(dim=-1).numpy() for k, x in moved.items()}


def inspector(seed: int, sizes: SimpleNamespace) -> CLIPModel:
    """PortraitCLIP with a text tower trained on differences of painted plates."""
    clip, inputs = clip_and_inputs()
    generator = torch.Generator().manual_seed(80_000 + seed)
    plates = sample_products(sizes.products, generator=generator)
    photo = Photo(brightness=0.05, shift=0.5, scale=0.02)
    images = cache_embeddings(clip, inputs, render_products(plates, generator=generator, photo=photo))
    values = [plate.to_dict() for plate in plates]
    pairs = natural_pairs(values, sizes.pairs, PRODUCT_WORDING, generator)
    notes = TemplateWriter(PRODUCT_WORDING, frames=("bare",))(pairs, values).records
    return train_pairwise(
        clip, inputs, images, values, notes, short_config(sizes), wording=PRODUCT_WORDING,
        generator=generator,
    )[0]  # fmt: skip


ALARMS = ("clip", "patch", "sentence")


@torch.no_grad()
def alarm_scores(model: CLIPModel, shots: Tensor, reference: Tensor) -> dict[str, Tensor]:
    """Three scores per photograph [N]: raw CLIP distance, worst patch, best-fitting defect sentence."""
    clip, inputs = clip_and_inputs()
    tower, u = TextTower(model, inputs), cache_embeddings(clip, inputs, torch.cat([reference[None], shots]))
    defects = [Statement({a: PARTS[a][1]}, {a: PARTS[a][0]}) for a in PARTS]
    words = [tower([phrase(s, PRODUCT_WORDING, "bare", order=o) for s in defects]) for o in ORDERS]
    return {
        "clip": embedding_distance(u[1:], u[0]),
        "patch": patch_distance(shots, reference),
        "sentence": sentence_alarm(u[1:], u[0], of_length_one(sum(words))),
    }


def desk(model: CLIPModel, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """Per plate, 1 where an alarm was false ("false.KIND.SETUP") or missing ("missed.KIND.SETUP"), [plates]; the
    thresholds allow 5 % false alarms on other standard photographs of good plates."""
    generator, n = torch.Generator().manual_seed(190_000 + seed), sizes.checked
    reference = render_products([ProductSpec()], generator=generator)[0]
    calm = alarm_scores(model, render_products([ProductSpec()] * n, generator=generator), reference)
    limits = {kind: alarm_threshold(score, 0.05) for kind, score in calm.items()}
    spoilt = torch.randint(len(PARTS), (n,), generator=generator).tolist()
    shown = [ProductSpec()] * n + [ProductSpec().with_(**{list(PARTS)[k]: list(PARTS.values())[k][1]}) for k in spoilt]
    found = {}
    for name, photo in SHOP.items():
        scores = alarm_scores(model, render_products(shown, generator=generator, photo=photo), reference)
        for kind in ALARMS:
            alarm = (scores[kind] > limits[kind]).double().numpy()
            found |= {f"false.{kind}.{name}": alarm[:n], f"missed.{kind}.{name}": 1 - alarm[n:]}
    return found


# ---- the study ---------------------------------------------------------------------------------------------------


def unit(arm: str, seed: int, sizes: SimpleNamespace) -> dict[str, np.ndarray]:
    """One arm."""
    other = {"edits": edits, "pin": pin, "lamp": lamp}
    if arm in other:
        return other[arm](seed, sizes)
    if arm == "desk":
        return desk(inspector(seed, sizes), seed, sizes)
    model = model_of(arm, seed, sizes)
    if arm in ("fixed", "captions"):
        return m1(model, sizes, ("plain",)) | {"retention": recognised(model, sizes, REHEARSED)}
    return reading(model, sizes)


def estimate_frames(arm: str, frames: Sequence[str], against: str = "") -> Callable[[Recorded], np.ndarray]:
    """M1 per pair, averaged over frames; minus that of another arm."""

    def contrast(recorded: Recorded) -> np.ndarray:
        seeds = recorded.seeds(arm, *([against] if against else []))
        mean = [np.mean([recorded.values(f"m1.{f}", a, seeds=seeds) for f in frames], 0) for a in (arm, against) if a]
        return mean[0] - mean[1] if against else mean[0]

    return contrast


def estimate_difference(arm: str, first: str, second: str) -> Callable[[Recorded], np.ndarray]:
    """One metric of an arm minus another of the same arm."""
    return lambda recorded: recorded.values(first, arm) - recorded.values(second, arm)


def estimate_lost(metric: str, arm: str) -> Callable[[Recorded], np.ndarray]:
    """The base's metric minus the arm's, over all seeds of the arm: nothing is drawn in the base, so its seeds are
    copies, and pairing with the few that are recorded would leave out most runs of the arm."""

    def contrast(recorded: Recorded) -> np.ndarray:
        base = recorded.values(metric, "base")
        assert (base == base[:1]).all()
        return base[:1] - recorded.values(metric, arm)

    return contrast


def estimate_errors(recorded: Recorded) -> np.ndarray:
    """Error rate (mean of false alarms and misses) of the worst patch minus that of sentences, careless photographs."""
    error = {k: (recorded.values(f"false.{k}.careless", "desk") + recorded.values(f"missed.{k}.careless", "desk")) / 2
             for k in ("patch", "sentence")}  # fmt: skip
    return error["patch"] - error["sentence"]


ESTIMATES = {
    "base_chance": level("m1.plain", "base"),
    "robust_reads": level("m1.plain", "bank"),
    "retention_kept": estimate_lost("retention", "bank"),
    "captions_chance": level("m1.plain", "captions"),
    "fixed_position": level("plain.second-first", "fixed"),
    "unseen_comparisons": level("m1.unseen", "bank"),
    "frame_alone": estimate_frames("frame", ("while", "only", "unlike", "after")),
    "new_grammar": estimate_frames("bank", ("while", "only", "unlike", "after"), "frame"),
    "after_marker": level("m1.after", "bank"),
    "negation": level("m1.negated", "bank"),
    "new_markers": estimate_frames("bank", ("sides", "numbers")),
    "new_prompts": estimate_lost("retention.new", "bank"),
    "wise_cures": gain("retention.new", "base", "wise"),
    "wise_reads": level("m1.plain", "wise"),
    "sentence_draws": estimate_difference("edits", "glasses.sentence", "glasses.random"),
    "unseen_attribute": level("m1.pin", "pin"),
    "lamp_exceeds": estimate_difference("lamp", "lamp", "change"),
    "photos_matter": estimate_difference("desk", "false.clip.careless", "false.clip.standard"),
    "sentences_inspect": estimate_errors,
}

STUDY = Study(
    lesson="07",
    unit=unit,
    arms=("base", "bank", "wise", "edits", "frame", "fixed", "captions", "pin", "lamp", "desk"),
    seeds=(3, 4, 5, 6, 7),
    more=dict.fromkeys(("bank", "frame"), range(8, 40)),
    sizes={
        "portraits": 256, "tests": 400, "asked": 160, "pairs": 1500, "steps": 200, "short_steps": 100, "batch": 48,
        "rehearsed": 16, "lr": 2e-3, "tau": 0.1, "decay": 0.85, "edits": 16, "draw_steps": 10, "strength": 1.0,
        "products": 128, "checked": 60,
    },
    estimates=ESTIMATES,
    weights=("portrait-clip", "portrait-sd", "attribute-reader"),
    modules=("labkit.pairwise.frames", "labkit.pairwise.vocabulary"),
    # misses at a threshold that sixty photographs set: on an Intel machine two units, recorded on an AMD one, differ by
    # .23 and .13, the first of them the same under the code of then and of now
    tolerance={"": 0.1, "*/missed.*": 0.35},
    cheap="base",
    covers=("bank", "desk", "edits"),
)  # fmt: skip
