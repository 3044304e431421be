"""The last section of lessons 03 to 08: the very cell that learners run, on the gpu tier's own way of loading, with
random weights in the published layouts, and on the course's flow-matching transformer; and what a tier forecasts,
refuses and stands in for."""

import ast
import shutil
from functools import lru_cache

import matplotlib
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from labkit import real
from labkit.authoring.source import read_source
from labkit.course import lab as session
from labkit.course import start
from labkit.course.i18n import set_language, use_lesson
from labkit.course.lesson_files import CourseError
from labkit.course.manifest import Project
from labkit.diffusion import adapter_names
from labkit.dpo import gpu_scorers
from labkit.errors import ModelLoadError
from labkit.figures import CourseFigure
from labkit.metrics import vendi_score
from labkit.models.published import CLIP, PICKSCORE, SD15, SDXL
from labkit.models.sd_layout import clip_tokenizer, write_layout
from labkit.models.sizing import TooSmall
from labkit.portraits import render_tensor, sample_specs

matplotlib.use("agg")
TINY = real.Plan(4, 2, 2, 5.0, train_steps=2, pairs=2, lr=1e-3, rank=2, targets="attention", kappa=2500.0, text_lr=1e-3)


def acceptance(rho, tau, w):
    from labkit.density import acceptance_probability

    return acceptance_probability(rho, threshold=tau, ratio=w)


def choose_pairs(scores):
    best, worst = scores.max(1), scores.min(1)
    return best.indices, worst.indices, best.values > worst.values


def wins(after, before, margin):
    return np.where(np.abs(after - before) <= margin, 0.5, (after > before).astype(float))


# What cells before the last section have defined: answers to exercises, and names of contenders.
DEFINED = {
    "03": {"acceptance": acceptance, "vendi": vendi_score},
    "05": {"choose_pairs": choose_pairs, "wins": wins},
    "08": {"contenders": {"base": "base", "best_of_n": "best-of-N", "dpo": "Diffusion-DPO"}},
}
CASES = [("03", "sd15"), ("04", "sdxl"), ("05", "sd15"), ("06", "sd15"), ("07", "sd15"), ("08", "sd15")]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """LABKIT_MODELS as `labkit fetch` leaves it, in small."""
    from transformers import CLIPConfig, CLIPModel

    folder = tmp_path_factory.mktemp("models")
    write_layout(folder / SD15.folder, "sd15")
    write_layout(folder / SDXL.folder, "sdxl")
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 600, "bos_token_id": 598, "eos_token_id": 599}
    config = CLIPConfig(text_config=text, vision_config=tower | {"image_size": 32}, projection_dim=32)
    for seed, model in enumerate((CLIP, PICKSCORE)):
        torch.manual_seed(seed)
        CLIPModel(config).save_pretrained(folder / model.folder)
        clip_tokenizer(600).save_pretrained(folder / model.folder)
    return folder


@pytest.fixture
def lesson(models, tmp_path, monkeypatch):
    """Open a lesson on tier gpu, whose device is the CPU here and whose plan is small."""
    monkeypatch.setenv("LABKIT_MODELS", str(models))
    monkeypatch.setitem(real.PLANS, "gpu", TINY)

    def opened(number):
        lab = start(number, tier="smoke", lang="en", interactive=False, home=tmp_path, results=tmp_path)
        lab.tier, lab.__dict__["device"] = "gpu", torch.device("cpu")
        return lab

    yield opened
    session._current = None
    use_lesson(None)
    set_language("en")


@pytest.fixture
def small(tmp_path):
    """Open a lesson on tier smoke."""
    yield lambda number: start(number, tier="smoke", lang="en", interactive=False, home=tmp_path, results=tmp_path)
    session._current = None
    use_lesson(None)
    set_language("en")


def last_section(number):
    """(imports of all cells, the statements of the cell but the last, the last as an expression)."""
    [path] = Project().sources.glob(f"{number}_*.py")
    cells = read_source(path).code_cells
    nodes = [node for cell in cells for node in ast.parse(cell.source).body]
    imports = [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
    [cell] = [cell for cell in cells if cell.uid == "real-run"]
    *body, last = ast.parse(cell.source).body
    return ast.Module(imports, []), ast.Module(body, []), ast.Expression(last.value)


def run_cell(number, lab, model):
    """(what lab.real gave, the names that the cell defined, its figure); the model is one more argument of lab.real."""
    given, plain = [], lab.real
    names = {"lab": lab, "lang": "en", "pipe": None, "t": lab.t} | DEFINED.get(number, {})
    imports, body, last = last_section(number)
    exec(compile(imports, number, "exec"), names)

    def asked(pipe, **how_much):
        given.append(plain(pipe, model=model, **how_much))
        return given[0]

    lab.real = asked
    exec(compile(body, number, "exec"), names)
    figure = eval(compile(last, number, "eval"), names)
    [sd] = given
    return sd, names, figure


def check_pictures_changed(number, names):
    """What each lesson's method did to pictures from the same noise."""
    changed = {"04": ("alone", "fed"), "05": ("untrained", "tuned")}.get(number)
    if changed:
        before, after = (names[name] for name in changed)
        assert not torch.allclose(before, after, atol=1e-4)
    if number == "06":
        base, easy, hard = names["drawn"].values()
        assert not torch.allclose(base, easy, atol=1e-4) and not torch.allclose(easy, hard, atol=1e-4)


@pytest.mark.parametrize(("number", "model"), CASES)
def test_the_cell_of_the_lesson_runs_on_the_published_layouts(number, model, lesson, monkeypatch, capsys):
    if model == "sdxl":  # which a learner chooses where there is room
        monkeypatch.setattr(real, "free_memory", lambda: 80.0)
    sd, names, figure = run_cell(number, lesson(number), model)
    assert isinstance(figure, CourseFigure) and figure.alt and sd.name == real.NAMES[model]
    assert type(sd.pipe).__name__ == {"sd15": "StableDiffusionPipeline", "sdxl": "StableDiffusionXLPipeline"}[model]
    assert (sd.reward.name, sd.judge.name) == ("pickscore", "clip-cosine/1")
    assert sd.pipe.vae.use_slicing  # what the forecast of decoding counts on
    assert not adapter_names(sd.pipe.unet)  # the next cell meets the pipeline as it was
    assert "Forecast from counted work" in capsys.readouterr().out
    check_pictures_changed(number, names)
    if number == "07":
        assert names["card"].drift > 0 and set(sd.wording) == {"subject", "scene"}


@pytest.fixture
def rewards(models):
    """Every other published reward as a folder of LABKIT_MODELS, in small."""
    from transformers import BlipConfig

    shutil.copytree(models / PICKSCORE.folder, models / "hpsv2.1")
    torch.manual_seed(2)
    (models / "aesthetic").mkdir()
    head = gpu_scorers.mlp(32).state_dict()
    save_file({f"layers.{name}": tensor for name, tensor in head.items()}, models / "aesthetic" / "model.safetensors")
    tower = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    text = tower | {"vocab_size": 600, "encoder_hidden_size": 32, "bos_token_id": 598, "sep_token_id": 599}
    config = BlipConfig(text_config=text, vision_config=tower | {"image_size": 32, "patch_size": 16})
    clip_tokenizer(600).save_pretrained(models / "imagereward")
    config.save_pretrained(models / "imagereward")
    net = gpu_scorers.ImageRewardNet(config).state_dict()
    save_file({k: v.contiguous() for k, v in net.items()}, models / "imagereward" / "model.safetensors")


def test_every_reward_can_be_chosen_and_a_lesson_trains_on_it(lesson, rewards):
    lab = lesson("05")
    images, prompts = render_tensor(sample_specs(3, seed=0)), ["a red fox", "a violin", "a bicycle"]
    seen = {}
    for reward in real.REWARDS:
        sd = lab.real(None, model="sd15", reward=reward, rounds=1)
        seen[sd.reward.name] = tuple(sd.reward(images, prompts).tolist())
        assert sd.names["reward"] == real.REWARDS[reward]
        real.published.cache_clear()
    assert list(seen) == ["pickscore", "hpsv2.1", "imagereward", "aesthetic", "clip-iqa-quality/1"]
    assert len(set(seen.values())) == 4  # HPSv2.1 is a copy of PickScore's folder here
    real_of, lab.real = lab.real, lambda pipe, **asked: real_of(pipe, reward="clip-iqa", **asked)
    sd, names, _ = run_cell("05", lab, "sd15")
    assert sd.reward.name == "clip-iqa-quality/1"
    check_pictures_changed("05", names)


@pytest.mark.parametrize("number", ["04", "05", "06"])
def test_the_same_cell_runs_on_the_flow_matching_transformer(number, small, capsys):
    sd, names, figure = run_cell(number, small(number), "portrait-flow")
    assert isinstance(figure, CourseFigure) and figure.alt
    assert (sd.name, type(sd.pipe).__name__) == ("PortraitFlow", "PortraitFlowPipeline")
    assert sd.denoiser is sd.pipe.transformer and not adapter_names(sd.denoiser)
    check_pictures_changed(number, names)
    # 4 prompts, pools of 2 candidates for each, trainings of 2 steps
    said, images, steps = capsys.readouterr().out, *{"04": (12, 0), "05": (16, 2), "06": (20, 4)}[number]
    assert f"On a CPU: {images} pictures of 2 steps" in said and "on one core" in said
    assert (f"training: {steps} steps of 2 pairs" in said) == bool(steps)


def test_a_tier_has_its_own_models_and_sizes_of_their_own(lesson, small):
    with pytest.raises(ValueError, match="'portrait-flow', expected one of sd15, sdxl$"):
        lesson("05").real(None, model="portrait-flow")
    with pytest.raises(ValueError, match="'sd9', expected one of sd15, sdxl, portrait-flow$"):
        small("05").real(None, model="sd9")
    with pytest.raises(ValueError, match="lesson 08 counts the work of a U-Net"):
        small("08").real(None, model="portrait-flow")
    unet, flow = real.plan_of("cpu"), real.plan_of("cpu", "portrait-flow")
    assert flow.kappa < unet.kappa and (flow.prompts, flow.train_steps) == (unet.prompts, unet.train_steps)
    found = real.forecast(model="portrait-flow", tier="cpu", rounds=3, pools=1, runs=2)
    assert (found.images, found.train_steps, found.train.batch_size) == (7 * flow.prompts, 2 * flow.train_steps, 4)
    work = found.images * (flow.steps * 0.00029 + 0.00068) + found.train_steps * flow.pairs * 0.00105  # TFLOP
    assert 60 * found.minutes == pytest.approx(work / (0.35 * 0.1)) and found.gigabytes < 2


def test_the_sizes_of_tier_gpu_fit_a_t4_beside_the_judges(monkeypatch):
    monkeypatch.setattr(real, "free_memory", lambda: 14.5)
    monkeypatch.setattr(real, "gpu_name", lambda: None)
    for how_much in ({"rounds": 3}, {"rounds": 2, "pools": 1, "runs": 1}, {"rounds": 3, "pools": 1, "runs": 2}):
        found = real.forecast(**how_much)
        assert found.gpu == "T4" and found.gigabytes <= 14.5 and found.draw.batch_size <= real.AT_ONCE
    # 16 prompts: twice one picture each, and four candidates each; 60 steps of training
    found = real.forecast(rounds=2, pools=1, runs=1)
    assert (found.images, found.train_steps) == (96, 60)
    assert found.train.batch_size >= 1 and found.gigabytes > (PICKSCORE.size + CLIP.size) / 1e9
    assert real.forecast(runs=2).train.batch_size <= real.forecast(runs=1).train.batch_size  # a copy of the base
    with pytest.raises(TooSmall) as error:
        real.forecast(model="sdxl")
    assert "\n" not in str(error.value)


def test_a_cell_that_runs_again_counts_the_models_of_its_first_run_as_free(monkeypatch):
    loaded = lru_cache(lambda: None)
    monkeypatch.setattr(real, "published", loaded)
    monkeypatch.setattr(real, "free_memory", lambda: 6.0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 8_000_000_000)
    assert real.room() == 6.0
    loaded()
    assert real.room() == 14.0


def test_what_cannot_run_stops_in_one_line_before_anything_is_loaded(lesson, tmp_path, monkeypatch):
    lab = lesson("04")
    monkeypatch.setattr(real, "free_memory", lambda: 5.0)
    monkeypatch.setattr(real, "load_pipeline", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(TooSmall, match="use the cpu tier"):
        lab.real(None)
    monkeypatch.setattr(real, "free_memory", lambda: 80.0)
    monkeypatch.setenv("LABKIT_MODELS", str(tmp_path))
    real.published.cache_clear()
    with pytest.raises(ModelLoadError, match=f"labkit fetch --tier gpu --model {SDXL.folder}"):
        lab.real(None, model="sdxl")
    for wrong in ({"model": "sd9"}, {"reward": "taste"}):
        with pytest.raises(ValueError, match="expected one of"):
            lab.real(None, **wrong)
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        with pytest.raises(CourseError, match="tier gpu needs a GPU") as error:
            start("04", tier="gpu", interactive=False, home=tmp_path)
        assert "\n" not in str(error.value)


def test_the_stand_ins_ask_the_same_three_things():
    """Both judges of portraits on renders, whose attributes are known: cool against warm, sunglasses against none."""
    spec = sample_specs(1, seed=3)[0].with_(background="mint", glasses="none", mood="happy")
    others = [spec.with_(background="pink"), spec.with_(glasses="sunglasses")]
    images, prompts = render_tensor([spec, *others]), ["a happy person"] * 3
    small = real.stand_ins()
    for judge in (small.reward, small.judge):
        best, *worse = judge(images, prompts).tolist()
        assert all(best - one > 0.2 for one in worse), judge.name  # each lacks one of three axes
