"""DPO on somebody's own pairs, from the table to the LoRA: encode, train, save, draw before and after, count wins.

Everything lies in one folder, and calling again goes on where it stopped:

    encoded/        latents, one file per 32 pairs, named by the content of the pictures and the VAE; training reads
                    each step's rows from there, so a run holds no more in memory than its batch. pictures.jsonl says
                    what decoding found, so that going on reads the bytes of the pictures and decodes none
    checkpoint.safetensors, log.jsonl     of the training
    lora/pytorch_lora_weights.safetensors     for `pipe.load_lora_weights`
    before/, after/, before_after.png     the same prompts and seeds with and without the LoRA
    report.json, report.txt     what was read, what was learnt, what may be concluded
"""

from __future__ import annotations

import hashlib
import json
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, floor
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from labkit.checkpoint import digest, locked
from labkit.diffusion import (
    base_fingerprint,
    denoiser_of,
    encode_images,
    from_uint8,
    image_generators,
    sample,
    save_lora,
    to_pil,
    use_adapters,
    vae_scale_factor,
)
from labkit.diffusion.guidance import long_prompts
from labkit.dpo.config import DPOConfig
from labkit.dpo.data import PreferencePairs
from labkit.dpo.folders import FoundPair, FoundPairs, find_pairs, read_picture
from labkit.dpo.shards import Shards
from labkit.dpo.terms import Term, dpo, sft
from labkit.dpo.trainer import DPOTrainer, Record
from labkit.errors import LabkitWarning
from labkit.files import write_atomically
from labkit.images import fit_levels, read_levels
from labkit.metrics import outcomes, wilson_interval, win_rate

CHUNK = 32  # pairs per file of latents
FEW = 50  # held-out pairs below which a report says that they decide little
Size = tuple[int, int]


@dataclass(frozen=True)
class OwnReport:
    """What a run on own pairs gave.

    Attributes:
        lora: the file for `pipe.load_lora_weights`.
        pairs, held_out: how many pairs trained and how many were kept back. left_out: reason -> rows that are no pairs.
        steps: updates made. log: the trainer's records.
        accuracy, accuracy_low, accuracy_high: share of the held-out pairs whose winner the LoRA prefers, more than its
            reference does, with Wilson's 95% interval; None without held-out pairs. 0.5 is chance.
        judge, win_rate, win_low, win_high: share of prompts whose picture the judge likes better after the training
            than before, with its interval; None without a judge.
        lines: the report as text.
    """

    lora: Path
    pairs: int
    held_out: int
    left_out: dict[str, int]
    steps: int
    log: list[Record]
    accuracy: float | None
    accuracy_low: float | None
    accuracy_high: float | None
    judge: str | None
    win_rate: float | None
    win_low: float | None
    win_high: float | None
    lines: tuple[str, ...]


def align_own(
    pipe,
    source: str | Path | FoundPairs,
    out: str | Path,
    *,
    config: DPOConfig | None = None,
    terms: Sequence[Term] | None = None,
    kappa: float = 2500.0,
    anchor: float = 0.0,
    sizes: Sequence[Size] | None = None,
    held_out: float = 0.1,
    prompts: Sequence[str] | None = None,
    pictures: int = 16,
    picture_steps: int = 25,
    guidance_scale: float = 5.0,
    judge: Callable[[Tensor, Sequence[str]], Tensor] | None = None,
    start: str | Path | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> OwnReport:
    """Train a LoRA on pairs that somebody collected, and say what it did.

    Args:
        pipe: a Stable Diffusion, SDXL or Stable Diffusion 3 pipeline (`labkit.models.load_pipeline`). The adapter is
            taken off again.
        source: a table or folder (`labkit.dpo.folders`), or what `find_pairs` found.
        out: the folder of the results. Call again with the same arguments to go on.
        config: of the training; by default 1,000 steps of 4 pairs that stop when the held-out pairs get worse. Looks at
            the held-out pairs and checkpoints are added where it has none.
        terms: what is minimised; by default dpo(kappa), and sft(anchor) beside it if anchor is above 0.
        sizes: (height, width) in pixels; each pair is cropped to the one whose shape is nearest. Default: the native
            square of the pipeline.
        held_out: share of the prompts that is kept back, if no row names a split. All pairs of a prompt stay together.
        prompts: for the pictures before and after; by default held-out prompts. pictures: how many at most.
        judge: (images [B, 3, H, W] in [-1, 1], prompts) -> scores, for the win rate; it must not have made the pairs.
        start: a LoRA file to go on with (see `DPOTrainer`).
        say: called with one line of progress at a time.

    Raises:
        PairsError, ImageError: a row or a picture that cannot be used, by name. ValueError: settings that do not fit.
        CheckpointError: the folder holds another run.
    """
    if pictures < 1:
        raise ValueError(f"pictures is {pictures}, expected at least 1: they show what the training did")
    if prompts is not None and not prompts:
        raise ValueError("there are no prompts to draw: write at least one, or leave them out for held-out ones")
    out = Path(out)
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file: give the name of a folder for the results")
    found = source if isinstance(source, FoundPairs) else find_pairs(source)
    train, held, left_out = _split(found, held_out)
    say(
        f"{len(train)} pairs to train on, {len(held)} held out" + "".join(f", {n} {why}" for why, n in left_out.items())
    )
    captions = list(dict.fromkeys(pair.prompt for pair in (*train, *held)))
    long, most = long_prompts(pipe, captions)
    if long:
        counts = f"{len(long)} of {len(captions)} captions"
        say(f"{counts} are longer than the {most} tokens that the text encoder reads: their ends are cut")
    sizes = list(sizes or [_native(pipe)])
    config = _completed(config or default_config(pipe), bool(held))
    if config.trainable != "lora":
        raise ValueError('own pairs train a LoRA: trainable is "full", use DPOTrainer for that')
    terms = list(terms) if terms else [dpo(kappa), *([sft(anchor)] if anchor > 0 else [])]
    with locked(out), warnings.catch_warnings():
        if long:
            warnings.filterwarnings("ignore", "the text encoder reads", LabkitWarning)  # it has just been said
        sets = encode_found(pipe, train, sizes, out / "encoded", left_out=left_out, say=say)
        held_sets = encode_found(pipe, held, sizes, out / "encoded", left_out=left_out, say=say) if held else []
        if not sets:
            raise ValueError("no pair is left to train on: winner and loser are the same picture in all of them")
        asked = list(dict.fromkeys(prompts or [p.prompt for p in (held or train)]))[:pictures]
        with DPOTrainer(
            pipe, sets, config if held_sets else replace(config, evaluate_every=0, patience=0), terms, folder=out,
            held_out=held_sets, start=start,
        ) as trainer:  # fmt: skip
            log = trainer.run(lambda record: say(_line(record)))
            steps = trainer.done
            accuracy = _accuracy(trainer, held_sets)
            with trainer.averaged():
                lora = save_lora(out / "lora", pipe, config.adapter)
                after = _draw(pipe, asked, picture_steps, guidance_scale)
            model, others = trainer.model, dict(trainer.others)
            with use_adapters(model, others):
                before = _draw(pipe, asked, picture_steps, guidance_scale)
    for name, images in (("before", before), ("after", after)):
        for i, picture in enumerate(to_pil(images)):
            write_atomically(out / name / f"{i:03d}.png", lambda p, picture=picture: picture.save(p, format="PNG"))
    sheet = before_after(before, after)
    write_atomically(out / "before_after.png", lambda p: sheet.save(p, format="PNG"))
    won = None
    if judge is not None and len(asked) > 1:
        scores = [torch.as_tensor(judge(images, asked)).float().cpu().numpy() for images in (after, before)]
        generator = np.random.default_rng(config.seed)
        won = win_rate(outcomes(candidate=scores[0], baseline=scores[1]), prompts=asked, generator=generator)
        wins = won.value * len(asked)  # a tie is half a win; a bootstrap of unanimous prompts would have no width
        bounds = wilson_interval(floor(wins), len(asked))[0], wilson_interval(ceil(wins), len(asked))[1]
        won = replace(won, low=min(won.low, bounds[0]), high=max(won.high, bounds[1]))
    n = sum(map(len, held_sets))
    low, high = (None, None) if accuracy is None else wilson_interval(round(accuracy * n), n)
    report = OwnReport(
        lora=lora, pairs=sum(map(len, sets)), held_out=n, left_out=dict(left_out), steps=steps, log=log,
        accuracy=accuracy, accuracy_low=low, accuracy_high=high,
        judge=None if won is None else getattr(judge, "name", "judge"),
        win_rate=None if won is None else won.value, win_low=None if won is None else won.low,
        win_high=None if won is None else won.high, lines=(),
    )  # fmt: skip
    report = replace(report, lines=tuple(_lines(report, config, len(asked))))
    content = {k: v for k, v in asdict(report).items() if k not in ("log", "lines")}
    content |= {"lora": lora.name, "config": asdict(config), "prompts": asked, "last": log[-1] if log else None}
    write_atomically(out / "report.json", json.dumps(content, ensure_ascii=False, indent=1))
    write_atomically(out / "report.txt", "\n".join(report.lines) + "\n")
    return report


def default_config(pipe) -> DPOConfig:
    """1,000 steps of 4 pairs, rank 8 in attention, half precision where the device has one."""
    device = denoiser_of(pipe).device
    before_bf16 = device.type == "cuda" and torch.cuda.get_device_capability(device) < (8, 0)
    return DPOConfig(
        steps=1000, batch_size=4, lr=5e-5, warmup=50, schedule="cosine", log_every=10,
        precision="fp16" if before_bf16 else "auto", evaluate_every=100, patience=3, save_every=50, prompt_dropout=0.1,
    )  # fmt: skip


def encode_found(
    pipe,
    pairs: Sequence[FoundPair],
    sizes: Sequence[Size],
    folder: str | Path,
    *,
    left_out: Counter[str] | None = None,
    say: Callable[[str], object] = lambda line: None,
) -> list[PreferencePairs]:
    """Latents of pairs of pictures: one set per size that occurs, in the order of `sizes`; they stay in their files.

    Winner and loser are cropped at the centre to the same size and encoded by the mode of the VAE's posterior. Pairs
    whose two pictures are equal are left out and counted in `left_out`.
    """
    step = vae_scale_factor(pipe) * (denoiser_of(pipe).config.get("patch_size", None) or 1)
    for height, width in sizes:
        if height < step or width < step or height % step or width % step:
            raise ValueError(f"size {width}x{height} (W x H) does not fit the VAE: expected multiples of {step}")
    left_out = Counter() if left_out is None else left_out
    waiting: dict[Size, list[_Row]] = {tuple(s): [] for s in sizes}
    made: dict[Size, list[tuple[FoundPair, list[float]]]] = {size: [] for size in waiting}
    files: dict[Size, list[Path]] = {size: [] for size in waiting}
    model, known = base_fingerprint(pipe.vae), _Known(Path(folder) / "pictures.jsonl")

    def flush(size: Size) -> None:
        rows, waiting[size] = waiting[size], []
        if rows:
            files[size].append(_encoded(pipe, rows, size, model, Path(folder)))
            made[size] += [(row.pair, row.ids) for row in rows]

    for number, pair in enumerate(pairs, 1):
        key, levels = _key(pair, list(waiting)), None
        if (seen := known.get(key)) is None:  # shape of the winner, and whether the loser is the same picture
            raw = _pair_levels(pair)
            levels = [fit_levels(one, nearest(raw[0].shape[:2], list(waiting)), "crop") for one in raw]
            seen = known.add(key, raw[0].shape[:2], bool(np.array_equal(*levels)))
        shape, equal = seen
        if equal:
            left_out["with two equal pictures"] += 1
            continue
        size = nearest(shape, list(waiting))
        waiting[size].append(_Row(pair, key, size_condition(shape, size), levels))
        if len(waiting[size]) == CHUNK:
            flush(size)
        if number % 500 == 0:
            say(f"encoded {number} of {len(pairs)} pairs")
    for size in waiting:
        flush(size)
    return [_as_pairs(rows, files[size], {"vae": model}) for size, rows in made.items() if rows]


@dataclass(frozen=True)
class _Row:
    """A pair on its way into a file. levels: its two pictures as cropped, None if they need no decoding."""

    pair: FoundPair
    key: str
    ids: list[float]
    levels: list[np.ndarray] | None


class _Known:
    """What decoding has found about pairs, by the bytes of their files: a second run reads them and decodes nothing."""

    def __init__(self, path: Path) -> None:
        self.path, self.rows = path, {}
        for line in path.read_text("utf-8").splitlines() if path.is_file() else ():
            try:
                key, height, width, equal = json.loads(line)
            except (ValueError, TypeError):
                continue  # half a line after a crash: its pair is decoded again
            self.rows[key] = ((height, width), equal)

    def get(self, key: str) -> tuple[Size, bool] | None:
        return self.rows.get(key)

    def add(self, key: str, shape: Size, equal: bool) -> tuple[Size, bool]:
        self.rows[key] = (tuple(shape), equal)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as file:
            file.write("\n" * self._torn() + json.dumps([key, *shape, equal]) + "\n")
        return self.rows[key]

    def _torn(self) -> bool:
        """Whether the file ends within a line."""
        if not self.path.stat().st_size:
            return False
        with self.path.open("rb") as file:
            file.seek(-1, 2)
            return file.read() != b"\n"


def _key(pair: FoundPair, sizes: Sequence[Size]) -> str:
    """Identity of a pair: the bytes of its two files, and the sizes that it may be cropped to."""
    found = hashlib.sha256(f"2 {sizes}".encode())
    for picture in (pair.winner, pair.loser):
        content = read_picture(picture, pair.where)
        if isinstance(content, Path):
            try:
                content = content.read_bytes()
            except OSError:
                read_levels(content, what=f"a picture of {pair.where}")  # says what is wrong, with the name
                raise
        found.update(hashlib.sha256(content).digest())
    return found.hexdigest()


def _pair_levels(pair: FoundPair) -> list[np.ndarray]:
    """Winner and loser as uint8 [H, W, 3]."""
    return [
        read_levels(read_picture(picture, pair.where), what=f"a picture of {pair.where}")
        for picture in (pair.winner, pair.loser)
    ]


def _as_pairs(
    rows: Sequence[tuple[FoundPair, list[float]]], files: Sequence[Path], hashes: dict[str, str]
) -> PreferencePairs:
    margins = [pair.margin for pair, _ in rows]
    return PreferencePairs(
        prompts=tuple(pair.prompt for pair, _ in rows),
        winner=Shards(files, "winner"),
        loser=Shards(files, "loser"),
        margin=None if None in margins else torch.tensor(margins, dtype=torch.float32),
        hashes=hashes,
        time_ids=torch.tensor([ids for _, ids in rows]),
    )


def nearest(shape: Size, sizes: Sequence[Size]) -> Size:
    """The size whose ratio of height to width is nearest to that of a picture, on a logarithmic scale."""
    ratio = np.log(shape[0] / shape[1])
    return min(sizes, key=lambda size: abs(np.log(size[0] / size[1]) - ratio))


def size_condition(shape: Size, size: Size) -> list[float]:
    """SDXL's six numbers for a picture [H, W] cropped at the centre to `size`: original size, corner of the crop after
    resizing, target size (arXiv 2307.01952, section 2.2)."""
    scale = max(size[0] / shape[0], size[1] / shape[1])
    top, left = (max(0, round((side * scale - target) / 2)) for side, target in zip(shape, size, strict=True))
    return [float(v) for v in (*shape, top, left, *size)]


def _encoded(pipe, rows: Sequence[_Row], size: Size, model: str, folder: Path) -> Path:
    """The file with the latents of a few pairs of one size; it is written unless it is there already."""
    found = hashlib.sha256(f"2 {model} {size} {[row.key for row in rows]}".encode())
    path = folder / f"{found.hexdigest()[:32]}.safetensors"
    if path.is_file():
        try:
            tensors = load_file(path)
            if tensors.pop("sum").numpy().tobytes().decode() == digest(tensors):
                return path
        except (SafetensorError, KeyError, ValueError):
            pass  # damaged: made again
    tensors = {"time_ids": torch.tensor([row.ids for row in rows])}
    levels = [row.levels or [fit_levels(one, size, "crop") for one in _pair_levels(row.pair)] for row in rows]
    with torch.no_grad():
        for side, name in enumerate(("winner", "loser")):
            images = from_uint8(np.stack([pair[side] for pair in levels]))
            tensors[name] = encode_images(pipe, images, batch_size=4).cpu().contiguous()
    mark = torch.frombuffer(bytearray(digest(tensors).encode()), dtype=torch.uint8).clone()
    return write_atomically(path, lambda p: save_file(tensors | {"sum": mark}, str(p)))


def _split(found: FoundPairs, share: float) -> tuple[list[FoundPair], list[FoundPair], Counter[str]]:
    """(train, held out, left out): by the rows' own split, else by a hash of the prompt."""
    if not 0.0 <= share < 1.0:
        raise ValueError(f"held_out is {share}, expected a share from 0 to below 1")
    if any(pair.held_out for pair in found.pairs):
        held = [pair.held_out for pair in found.pairs]
    else:
        keys = [pair.prompt or f"pair {number}" for number, pair in enumerate(found.pairs)]
        held = [int(hashlib.sha256(key.encode()).hexdigest()[:8], 16) / 16**8 < share for key in keys]
    train = [pair for pair, out in zip(found.pairs, held, strict=True) if not out]
    if not train:
        raise ValueError("every pair is held out: nothing is left to train on")
    kept_back = [pair for pair, out in zip(found.pairs, held, strict=True) if out]
    if share and not kept_back:
        warnings.warn(
            "no pair is held out, as there are too few prompts: nothing will say whether the training generalises",
            LabkitWarning,
            stacklevel=3,
        )
    return train, kept_back, Counter(found.left_out)


def _completed(config: DPOConfig, held_out: bool) -> DPOConfig:
    """The configuration with looks at the held-out pairs and checkpoints."""
    every = config.log_every * max(1, config.steps // (10 * config.log_every))
    changes = {"save_every": config.save_every or every}
    if held_out:
        changes["evaluate_every"] = config.evaluate_every or every
    return replace(config, **changes)


def _native(pipe) -> Size:
    side = denoiser_of(pipe).config.sample_size
    height, width = (side, side) if isinstance(side, int) else side
    return height * vae_scale_factor(pipe), width * vae_scale_factor(pipe)


def _accuracy(trainer: DPOTrainer, held_sets: Sequence[PreferencePairs]) -> float | None:
    if not held_sets:
        return None
    return trainer.evaluate().get("held_out_accuracy")


def _draw(pipe, prompts: Sequence[str], steps: int, guidance_scale: float) -> Tensor:
    """One picture per prompt, picture i always from seed i: [n, 3, H, W]."""
    generators = image_generators(len(prompts), 0)
    return sample(
        pipe, list(prompts), generators=generators, steps=steps, guidance_scale=guidance_scale, batch_size=4
    ).cpu()


def before_after(before: Tensor, after: Tensor, side: int = 256) -> Image.Image:
    """Two pictures per prompt beside each other, before on the left, four prompts in a row."""
    pairs = list(zip(to_pil(before), to_pil(after), strict=True))
    width, height = pairs[0][0].size
    scale = min(1.0, side / max(width, height))
    width, height = max(1, round(width * scale)), max(1, round(height * scale))
    across, gap = min(4, len(pairs)), 8
    rows = -(-len(pairs) // across)
    sheet = Image.new("RGB", (across * (2 * width + gap) - gap, rows * (height + gap) - gap), "white")
    for i, pair in enumerate(pairs):
        left, top = (i % across) * (2 * width + gap), (i // across) * (height + gap)
        for k, picture in enumerate(pair):
            sheet.paste(picture.resize((width, height), Image.Resampling.BICUBIC), (left + k * width, top))
    return sheet


def _line(record: Record) -> str:
    shown = ("loss", "d_w", "d_l", "accuracy", "held_out_loss", "held_out_accuracy")
    return f"step {int(record['step'])}: " + ", ".join(f"{key} {record[key]:.4g}" for key in shown if key in record)


def _lines(report: OwnReport, config: DPOConfig, pictures: int) -> list[str]:
    """The report in words."""
    lines = [f"{report.pairs} pairs trained {report.steps} steps; {report.held_out} pairs held out."]
    lines += [f"Left out: {n} {why}." for why, n in report.left_out.items()]
    if report.steps < config.steps:
        lines.append("Stopped early: the held-out loss no longer fell; the weights of its minimum were kept.")
    if report.accuracy is not None:
        interval = f"{report.accuracy_low:.3f} to {report.accuracy_high:.3f}"
        lines.append(
            f"Held-out pairs whose winner the LoRA prefers: {report.accuracy:.3f} (95% {interval}; chance 0.5)."
        )
        if any("held_out_loss" in record for record in report.log) and config.patience:
            lines.append("The same pairs chose the step at which to stop, which flatters this number a little.")
        if report.held_out < FEW:
            lines.append(f"{report.held_out} held-out pairs decide little: collect {FEW} or more.")
        if report.accuracy_low <= 0.5 <= report.accuracy_high:
            lines.append("This does not show that the preference was learnt: the interval holds 0.5.")
    if report.win_rate is not None:
        interval = f"{report.win_low:.3f} to {report.win_high:.3f}"
        lines.append(
            f"{report.judge} prefers the picture after: {report.win_rate:.3f} (95% {interval}; {pictures} prompts)."
        )
        if pictures < FEW:
            lines.append(f"{pictures} prompts decide little: draw {FEW} or more (--pictures {FEW}).")
        if report.win_low <= 0.5 <= report.win_high:
            lines.append("This does not show a difference: the interval holds 0.5.")
    last = report.log[-1] if report.log else {}
    if last.get("d_w", 0.0) > 0:
        lines.append("d_w is positive: winners became less likely too. Lower lr, raise kappa, or add an anchor.")
    lines.append(f'The LoRA: pipe.load_lora_weights("{report.lora.parent.name}", weight_name="{report.lora.name}").')
    return lines
