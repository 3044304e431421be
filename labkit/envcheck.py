"""Is this machine ready for the course? Python, packages, device, Japanese font, widgets, memory, disk, model files.

Lesson 00 shows `show_environment(tier)`; on a terminal it is `labkit env`, which also does what lessons do, at its
smallest (`try_out`): a picture, one LoRA step, CLIP, a Japanese title. Versions in range do not say that packages work.
Each problem comes with what to do about it. Nothing is installed and nothing is sent anywhere.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from labkit.course.i18n import LANGUAGES, get_language, t
from labkit.course.manifest import ROOT, TIERS
from labkit.course.render import language, show, table, terminal_language

OK, WARN, FAIL = "ok", "warn", "fail"
DISTRIBUTION = "diffusion-labkit"
PYTHON = ((3, 11), (3, 13))  # oldest and newest supported
MEMORY_GB = {"smoke": 2, "cpu": 4, "gpu": 12}
DISK_GB = {"smoke": 0.5, "cpu": 1, "gpu": 15}
GPU_GB = 10  # SD 1.5 in half precision with room for LoRA training
_SIGNS = {OK: "✓", WARN: "!", FAIL: "✗"}


@dataclass(frozen=True)
class Finding:
    """One checked thing: its name, how it stands ("ok", "warn", "fail"), what was found, and what to do about it."""

    name: str
    status: str
    found: str
    advice: str = ""


def check_environment(tier: str = "cpu") -> list[Finding]:
    """All findings for a tier, in the current language. Never raises for what the machine is like."""
    if tier not in TIERS:
        raise ValueError(f"unknown tier {tier!r}; choose one of {', '.join(TIERS)}")
    parts: tuple[Callable[[str], Iterable[Finding]], ...] = (
        *(_python, _packages, _device, _font, _widgets, _memory, _disk, _models),
    )
    return [finding for part in parts for finding in part(tier)]


def try_out() -> list[Finding]:
    """Do what lessons do, at its smallest, with the models that the course ships; a few seconds on a CPU.

    Returns one finding for each trial, in the current language, with the seconds it took; what a trial raises is its
    finding. On the GPU where there is one.
    """
    findings, made = [], {}
    for name, trial in {"picture": _try_picture, "lora": _try_lora, "clip": _try_clip, "title": _try_title}.items():
        begun = time.perf_counter()
        try:
            problem = trial(made)
        except Exception as error:  # a broken package may raise anything
            problem = f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
        if problem:
            findings.append(Finding(t(f"env.try.{name}"), FAIL, problem, t(f"env.try.{name}_advice")))
            if name == "picture":  # the others go on from it
                break
        else:
            found = t("env.try.done", seconds=time.perf_counter() - begun)
            findings.append(Finding(t(f"env.try.{name}"), OK, found))
    return findings


def _try_picture(made: dict[str, Any]) -> str:
    """What is wrong with a picture from a prompt, "" for nothing; leaves pipeline and picture in `made`."""
    import torch

    from labkit.diffusion import image_generators, sample
    from labkit.models import load_pipeline

    device = "cuda" if torch.cuda.is_available() else "cpu"
    pipe = load_pipeline("cpu", device)
    picture = sample(pipe, ["a portrait of a person with red hair"], generators=image_generators(1, 0), steps=8)
    made |= {"pipe": pipe, "picture": picture}
    return "" if picture.isfinite().all() and picture.std() > 0.05 else t("env.try.blank")


def _try_lora(made: dict[str, Any]) -> str:
    """What is wrong with one training step of an adapter, "" for nothing."""
    import torch

    from labkit.diffusion import encode_prompts, lora, predict_noise

    pipe = made["pipe"]
    size = pipe.unet.config.sample_size
    noise = torch.randn(2, pipe.unet.config.in_channels, size, size, generator=torch.Generator().manual_seed(0))
    noise = noise.to(pipe.unet.device)
    conditions = encode_prompts(pipe, ["a portrait of a person"] * 2)
    with lora(pipe.unet, "trial", seed=0, rank=4) as parameters:
        optimiser, before = torch.optim.AdamW(parameters, lr=1e-2), [one.detach().clone() for one in parameters]
        steps = torch.tensor([100, 500], device=noise.device)
        loss = (predict_noise(pipe, noise, steps, conditions) - 0.5 * noise).square().mean()
        loss.backward()
        optimiser.step()
        moved = any(not torch.equal(a, b) for a, b in zip(before, parameters, strict=True))
        finite = bool(loss.isfinite()) and all(bool(one.isfinite().all()) for one in parameters)
    return "" if moved and finite else t("env.try.stuck")


def _try_clip(made: dict[str, Any]) -> str:
    """What is wrong with CLIP's reading of a picture and two texts, "" for nothing."""
    import torch

    from labkit.models import load_clip

    clip, inputs = load_clip("cpu")
    with torch.no_grad():
        texts = inputs(["a person with red hair", "a person with black hair"])
        pixels = inputs.pixels(made["picture"].cpu())
        scores = clip(**texts, pixel_values=pixels).logits_per_image
    return "" if scores.shape == (1, 2) and bool(scores.isfinite().all()) else t("env.try.stuck")


def _try_title(made: dict[str, Any]) -> str:
    """What is wrong with a figure that has a Japanese title, "" for nothing."""
    import io

    from labkit.figures import figure_style, new_figure

    with warnings.catch_warnings(record=True) as heard, figure_style():
        warnings.simplefilter("always")
        figure = new_figure(2, 1)
        figure.suptitle("拡散モデルの画像")
        figure.savefig(io.BytesIO(), format="png")
    missing = [str(one.message) for one in heard if "missing from" in str(one.message)]
    return missing[0] if missing else ""


def show_environment(tier: str = "cpu") -> list[Finding]:
    """Show the findings as a table (in a notebook or on a terminal) and return them."""
    findings = check_environment(tier)
    show(*report(findings))
    return findings


def report(findings: Iterable[Finding]) -> tuple[str, str]:
    """(html, text): the findings as a table, and a line that sums them up."""
    findings = list(findings)
    headers = [t(f"env.column.{name}") for name in ("what", "found", "advice")]
    rows = [[f"{_SIGNS[one.status]} {one.name}", one.found, one.advice] for one in findings]
    html_text, text = table(headers, rows)
    worst = FAIL if any(one.status == FAIL for one in findings) else WARN
    worst = worst if any(one.status != OK for one in findings) else OK
    verdict = t(f"env.verdict.{worst}")
    return f"{html_text}<p><b>{verdict}</b></p>", f"{text}\n\n{verdict}"


def _python(tier: str) -> Iterable[Finding]:
    found = f"{platform.python_version()} ({platform.system()} {platform.machine()})"
    oldest, newest = (".".join(map(str, pair)) for pair in PYTHON)
    fits = PYTHON[0] <= sys.version_info[:2] <= PYTHON[1]
    advice = "" if fits else t("env.python.advice", oldest=oldest, newest=newest)
    yield Finding("Python", OK if fits else FAIL, found, advice)


def requirements(*extras: str) -> dict[str, str]:
    """Name -> version range of the dependencies (what lessons import), and of what the named extras add.

    Read from the installed distribution, else from pyproject.toml beside the package.
    """
    try:
        lines = [line.split(";")[0] for line in requires(DISTRIBUTION) or () if _needed(line, extras)]
    except PackageNotFoundError:
        import tomllib

        path = ROOT / "pyproject.toml"
        project = tomllib.loads(path.read_text(encoding="utf-8"))["project"] if path.exists() else {}
        optional = project.get("optional-dependencies", {})
        lines = [*project.get("dependencies", []), *(line for extra in extras for line in optional.get(extra, []))]
    found = (re.match(r"([A-Za-z0-9._-]+)\s*(?:\[[^]]*\])?\s*\(?([^()]*)\)?$", line.strip()) for line in lines)
    return {match[1]: match[2].strip() for match in found if match}


def _needed(line: str, extras: Iterable[str]) -> bool:
    marker = line.partition(";")[2]
    of_extra = re.search(r"extra\s*==\s*['\"]([^'\"]+)['\"]", marker)
    return of_extra is None or of_extra[1] in extras


def _packages(tier: str) -> Iterable[Finding]:
    from packaging.specifiers import SpecifierSet

    wanted = requirements() if on_colab() else requirements("course")  # on Colab: what the install cell installs
    install = t("env.packages.colab") if on_colab() else t("env.packages.install")
    good = 0
    for name, span in sorted(wanted.items()):
        try:
            have = version(name)
        except PackageNotFoundError:
            yield Finding(name, FAIL, t("env.packages.missing"), install)
            continue
        if SpecifierSet(span).contains(have, prereleases=True):
            good += 1
        else:
            yield Finding(name, FAIL, have, t("env.packages.range", range=span, install=install))
    if good:
        yield Finding(t("env.packages.name"), OK, t("env.packages.found", good=good, total=len(wanted)))


def _device(tier: str) -> Iterable[Finding]:
    name = t("env.device.name")
    try:
        import torch
    except Exception as error:  # a broken torch may raise anything
        yield Finding(name, FAIL, f"{type(error).__name__}: {error}"[:200], t("env.packages.install"))
        return
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        size = properties.total_memory / 2**30
        found = f"CUDA: {properties.name}, {size:.0f} GB, torch {torch.__version__}"
        small = tier == "gpu" and size < GPU_GB
        yield Finding(name, WARN if small else OK, found, t("env.device.small", need=GPU_GB) if small else "")
        return
    mps = torch.backends.mps.is_available()
    kind = "Apple GPU (MPS)" if mps else t("env.device.cpu", count=torch.get_num_threads())
    found = f"{kind}, torch {torch.__version__}"
    if tier == "gpu":
        unused = shutil.which("nvidia-smi") is not None
        yield Finding(name, FAIL, found, t("env.device.build") if unused else t("env.device.none"))
    else:
        yield Finding(name, OK, found, t("env.device.enough"))


def _font(tier: str) -> Iterable[Finding]:
    from labkit.figures.style import japanese_font

    font = japanese_font()
    advice = "" if font else t("env.font.advice")
    yield Finding(t("env.font.name"), OK if font else WARN, font or t("env.font.none"), advice)


def _widgets(tier: str) -> Iterable[Finding]:
    try:
        have = version("ipywidgets")
    except PackageNotFoundError:
        return  # already among the packages
    if have == "8.1.9" and in_vscode():
        yield Finding("ipywidgets", WARN, f"{have}, VS Code", t("env.widgets.vscode"))
    elif on_colab() and not have.startswith("7."):
        yield Finding("ipywidgets", WARN, f"{have}, Colab", t("env.widgets.colab"))
    else:
        yield Finding("ipywidgets", OK, have)


def _memory(tier: str) -> Iterable[Finding]:
    try:
        import psutil
    except ImportError:
        return  # already among the packages
    memory = psutil.virtual_memory()
    free, need = memory.available / 2**30, MEMORY_GB[tier]
    found = t("env.memory.found", free=free, total=memory.total / 2**30)
    enough = free >= need
    yield Finding(
        t("env.memory.name"), OK if enough else WARN, found, "" if enough else t("env.memory.advice", need=need)
    )


def _disk(tier: str) -> Iterable[Finding]:
    name, folder = t("env.disk.name"), Path(os.environ.get("LABKIT_RESULTS") or "build")
    while not folder.is_dir():
        folder = folder.absolute().parent
    free, need = shutil.disk_usage(folder).free / 2**30, DISK_GB[tier]
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError:
        yield Finding(name, WARN, t("env.disk.readonly", folder=folder), t("env.disk.writable"))
        return
    enough = free >= need
    advice = "" if enough else t("env.disk.advice", need=need)
    yield Finding(name, OK if enough else FAIL, t("env.disk.found", free=free), advice)


def _models(tier: str) -> Iterable[Finding]:
    from labkit.errors import ModelLoadError
    from labkit.models.checksums import read_checksums, verify

    name = t("env.models.name")
    try:
        folders = sorted({path.split("/")[0] for path in read_checksums() if "/" in path})
        checked = sum(verify(folder) for folder in folders)
    except ModelLoadError as error:
        yield Finding(name, FAIL, str(error), t("env.models.advice"))
        return
    if checked:
        yield Finding(name, OK, t("env.models.found", files=checked))
    else:
        yield Finding(name, FAIL, t("env.models.none"), t("env.models.advice"))


def on_colab() -> bool:
    """True on Google Colab."""
    return "google.colab" in sys.modules or "COLAB_RELEASE_TAG" in os.environ


def in_vscode() -> bool:
    """True in a kernel or terminal that VS Code started."""
    return os.environ.get("TERM_PROGRAM") == "vscode" or any(name.startswith("VSCODE_") for name in os.environ)


def add_parser(subparsers: Any) -> None:
    """Register `labkit env`."""
    parser = subparsers.add_parser("env", help="check this machine", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--tier", choices=TIERS, default="cpu", help="what the machine shall do (default: cpu)")
    parser.add_argument("--lang", choices=LANGUAGES, help="language of the report")
    parser.add_argument("--quick", action="store_true", help="only look: do not make a picture, train, ask CLIP")
    parser.set_defaults(func=main)


def main(args: argparse.Namespace) -> int:
    """Print the findings; 1 when something is in the way, else 0."""
    with language(terminal_language(args.lang or get_language())):
        findings = check_environment(args.tier) + ([] if args.quick else try_out())
        print(report(findings)[1])
    return 1 if any(one.status == FAIL for one in findings) else 0
